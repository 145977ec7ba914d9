# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""From configuration to phases; the scripts' own tests run all of it."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from hydra.core.singleton import Singleton
from omegaconf import OmegaConf, open_dict

from torchrl_o2o.data import Convention
from torchrl_o2o.errors import O2ODataError, O2OSpecError
from torchrl_o2o.functional.diagnostics import NonFiniteError
from torchrl_o2o.scripts import find_script, script_config
from torchrl_o2o.testing import random_transitions
from torchrl_o2o.trainers import Problem, RunOptions
from torchrl_o2o.trainers.algorithms import make_awac
from torchrl_o2o.trainers.launch import accept_seeds, launch, offline_phase, run_options
from torchrl_o2o.trainers.seeds import seed_configs

CONFIG = {
    "algorithm": "awac",
    "seed": 3,
    "resume": False,
    "run_dir": "runs/x",
    "num_threads": 1,
    "matmul_route": "default",
    "matmul_dtype": "float32",
    "compile": False,
    "schedule": {"eval_every": 7, "log_every": 1, "checkpoint_every": 1},
    "evaluation": {"num_episodes": 2},
    "recorder": {"tensorboard": False},
    "env_guard": {"timeout": None},
    "online": {"total_frames": 10},
}


def test_what_has_no_influence_is_not_compared(tmp_path: Path) -> None:
    cfg = OmegaConf.create(CONFIG)
    options = run_options(cfg, tmp_path)
    kept = ("algorithm", "seed", "matmul_route", "matmul_dtype", "compile", "evaluation", "online")
    assert options.config == {key: CONFIG[key] for key in kept}
    assert (options.seed, options.schedule.eval_every, options.evaluation) == (3, 7, {"num_episodes": 2})
    assert "online" not in run_options(cfg, tmp_path, without=("online",)).config
    cfg.online.scratch_dir = "elsewhere"
    assert run_options(cfg, tmp_path).config == options.config


@pytest.mark.parametrize(
    "name",
    [
        *("evaluation.actor", "evaluation.env", "evaluation.seed", "evaluation.reference"),
        *("recorder.folder", "recorder.config", "recorder.seed", "recorder.resume", "env_guard.make_env"),
    ],
)
def test_what_the_script_sets_itself_is_refused_before_anything_is_written(tmp_path: Path, name: str) -> None:
    cfg = OmegaConf.merge(OmegaConf.create(CONFIG), OmegaConf.from_dotlist([f"{name}=5"]))
    with pytest.raises(O2OSpecError, match=rf"got {name}, which the script sets itself; leave it out"):
        run_options(cfg, tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", ["offline.learner", "online.problem", "online.buffer", "online.handover"])
def test_a_phase_takes_from_its_section_what_is_the_users_to_say(name: str) -> None:
    sections = {"offline": {"num_steps": 1, "batch_size": 1}, "pretrained": None}
    cfg = OmegaConf.merge(OmegaConf.create(CONFIG | sections), OmegaConf.from_dotlist([f"{name}=5"]))
    with pytest.raises(O2OSpecError, match=rf"got {name}, which the script sets itself"):
        offline_phase(cfg, None, None)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("word", "told"),
    [
        ("+evaluation.timeout=long", r"got evaluation.timeout='long', expected a number or None"),
        ("+recorder.wandb=o2o", r"got recorder.wandb='o2o', expected Mapping or None"),
        ("+online.online_capacity=many", r"got online.online_capacity='many', expected a whole number or None"),
    ],
)
def test_values_of_another_kind_are_refused_before_anything_is_written(tmp_path: Path, word: str, told: str) -> None:
    """An evaluation was refused when it began, in a folder that then held a run."""
    with pytest.raises(O2OSpecError, match=told):
        pretraining(tmp_path, word)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (
            ("handover.data=none", "+online.online_capacity=2"),
            r"got online_capacity=2, .* at least the 16 rows",
        ),
        (("handover.data=symmetric", "+online.online_capacity=7"), r"needs 8 online rows, .* has 7 online slots"),
        (("handover.data=symmetric", "online.total_frames=7"), r"needs 8 online rows, .* has 7 online slots"),
        (("+online.scratch_dir=FULL",), r"got scratch_dir=.*, which is not empty"),
        (("+online.scratch_dir=/proc/rows",), r"got scratch_dir=.*, in which no file can be made"),
        (("+actors=0",), r"got num_actors=0, expected a whole number of at least 1"),
        (("+actors=2", "+fleet.lag=3"), r"got fleet.lag, expected one of"),
    ],
)
def test_online_settings_are_refused_before_the_offline_phase(
    tmp_path: Path, words: tuple[str, ...], told: str
) -> None:
    """They were refused after it, which may be a day later."""
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    with pytest.raises(O2OSpecError, match=told):
        pretraining(tmp_path, *(word.replace("FULL", str(tmp_path / "full")) for word in words))
    assert not (tmp_path / "run").exists()


def test_references_to_nothing_and_sections_that_are_null_are_told_without_a_traceback() -> None:
    cfg = script_config("awac", ["preset=cpu", "compile=false", "optim.lr=${nothing}"])
    with pytest.raises(SystemExit, match=r"O2OSpecError: got settings that cannot be read: .*'nothing' not found"):
        launch(cfg, lambda cfg: None)
    cfg = script_config("awac", ["preset=cpu", "compile=false", "value_estimator=null"])
    with pytest.raises(SystemExit, match=r"O2OSpecError: got None in the place of a section of settings"):
        launch(cfg, lambda cfg: make_awac(cfg, (3, 2)))


def test_a_word_of_the_command_line_that_refers_to_itself_is_told_without_a_traceback() -> None:
    before, word = Singleton.get_state(), "run_dir=runs/${hydra:job.override_dirname}"
    with initialize_config_dir(str(find_script("awac").parent), version_base="1.3"):
        cfg = compose("config", ["preset=cpu", word], return_hydra_config=True)
    HydraConfig.instance().set_config(cfg)
    with open_dict(cfg):
        del cfg["hydra"]  # as in a script
    try:
        with pytest.raises(SystemExit, match=r"got settings that cannot be read: .*run_dir=runs/\$\{hydra:job"):
            launch(cfg, lambda cfg: None)
    finally:
        Singleton.set_state(before)


def test_options_are_checked_when_they_are_made() -> None:
    """From Python, an unknown argument was told of in the first evaluation, in a folder that then held a run."""
    with pytest.raises(O2OSpecError, match=r"got evaluation.episodes, expected one of num_episodes"):
        RunOptions("runs/x", {}, seed=0, evaluation={"episodes": 1})
    with pytest.raises(O2OSpecError, match=r"got env_guard.max_rebuilds='few', expected a whole number"):
        RunOptions("runs/x", {}, seed=0, env_guard={"max_rebuilds": "few"})


def pretraining(folder: Path, *words: str) -> None:
    """The offline phase of AWAC with a batch of 16 and 12 online steps."""
    rows = random_transitions(100, 3, 1)
    problem = Problem({"env_id": "Pendulum-v1", "max_episode_steps": 9}, rows, Convention().fit(rows))
    sizes = ["offline.num_steps=2", "offline.batch_size=16", "online.total_frames=12", "online.batch_size=16"]
    settings = ["preset=cpu", "compile=false", "evaluation.num_episodes=1", f"run_dir={folder}/run", *sizes]
    offline_phase(script_config("awac", [*settings, *words]), problem, make_awac, then=make_awac)


@pytest.mark.parametrize("seeds", [3, None, "all", [], [1.5], [-1], [True], ["a"]])
def test_seeds_are_a_list_of_whole_numbers(seeds: object) -> None:
    with pytest.raises(
        O2OSpecError, match=r"got seeds=.*expected (a list of seeds, such as seeds=\[|an integer, not neg)"
    ):
        seed_configs(OmegaConf.create({"seeds": seeds, "run_dir": "runs/${seed}", "resume": False}))


def test_seeds_are_five_if_not_said(tmp_path: Path) -> None:
    cfg = OmegaConf.create({"run_dir": f"{tmp_path}/${{seed}}", "resume": False})
    assert [own.seed for own in seed_configs(cfg)] == [0, 1, 2, 3, 4]
    cfg.seeds = [7]
    assert [own.seed for own in seed_configs(cfg)] == [7]


@pytest.mark.parametrize("word", ["seed=7", "+seed=7", "++seed=7"])
def test_one_seed_for_many_is_refused(monkeypatch: pytest.MonkeyPatch, word: str) -> None:
    monkeypatch.setattr("sys.argv", ["rlpd_seeds.py", "task=hopper", word])
    with pytest.raises(SystemExit, match=r"O2OSpecError: got \+*seed=7, .*; pass seeds=\[7\]"):
        accept_seeds()
    monkeypatch.setattr("sys.argv", ["rlpd_seeds.py", "task=hopper", "seeds=[7]"])
    accept_seeds()
    assert sys.argv[1:] == ["task=hopper", "+seeds=[7]"]


def test_short_products_without_compilation_end_with_a_sentence() -> None:
    with pytest.raises(SystemExit, match="compile=true"):
        launch(OmegaConf.create(CONFIG | {"matmul_dtype": "bfloat16"}), lambda _: None)


def test_divergence_ends_with_a_sentence() -> None:
    def train(_: object) -> None:
        raise NonFiniteError("not finite: loss_actor")

    with pytest.raises(SystemExit, match=r"(?s)not finite: loss_actor.*resume=true"):
        launch(OmegaConf.create(CONFIG), train)


def test_what_does_not_fit_ends_with_a_sentence() -> None:
    def train(_: object) -> None:
        raise O2ODataError("the data's observation has the shape [11]")

    with pytest.raises(SystemExit, match=r"^O2ODataError: the data's observation has the shape \[11\]$"):
        launch(OmegaConf.create(CONFIG), train)
