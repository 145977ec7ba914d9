# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""A run that takes new recordings in: its rows, numbers, record and refusals, and kills in the middle."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.scripts.phases import SHORT, assert_equal, dying, newest, rows
from tests.scripts.running import compose, script_of
from torchrl_o2o.checkpoint.fingerprints import fingerprint
from torchrl_o2o.checkpoint.reading import newest_valid, read_rows
from torchrl_o2o.commands.cli import main
from torchrl_o2o.data import TRANSITION, load_offline
from torchrl_o2o.deploy import load_policy, read_policy
from torchrl_o2o.envs import seed_everything
from torchrl_o2o.errors import O2OCheckpointError, O2ODataError, O2OSpecError
from torchrl_o2o.record.files import read_run
from torchrl_o2o.trainers import Pretrained, RunStatus, Schedule, Session, continue_run, load_problem, offline_phase
from torchrl_o2o.trainers.algorithms import make_awac
from torchrl_o2o.trainers.continued_methods import find_method

pytestmark = [
    pytest.mark.usefixtures("linear_medium"),
    pytest.mark.filterwarnings("ignore:No target network updater", "ignore:.*columns of"),
]
EVERY = Schedule(eval_every=100, log_every=1, checkpoint_every=2)


def record(path: Path, seed: int = 0, steps: int = 30, **columns: Any) -> Path:
    """A log of two episodes."""
    draw = np.random.default_rng(seed)
    ends = np.arange(1, steps + 1) % (steps // 2) == 0
    log = {
        "observations": draw.normal(size=(steps, 17)),
        "actions": draw.uniform(-0.9, 0.9, size=(steps, 6)),
        "rewards": draw.normal(size=steps),
        "terminals": ends,
        "timeouts": np.zeros(steps, bool),
    }
    np.savez(path, **{**log, **columns})
    return path


def train(folder: Path, script: str = "awac", *words: str) -> Path:
    sizes = () if script in ("rlpd", "bc", "qc") else ("qvalue.hidden_sizes=[16]",)
    alone = script in ("rlpd", "a3rl", "sope")  # they have no offline phase
    short = [word for word in SHORT if not (alone and word.startswith("offline."))]
    cfg = compose(script, *short, *sizes, f"run_dir={folder}", *words)
    script_of(script).train(cfg)
    return folder


def pretrain(folder: Path, *words: str) -> Path:
    """Only the offline phase of AWAC."""
    cfg = compose("awac", *SHORT, "qvalue.hidden_sizes=[16]", f"run_dir={folder}", *words)
    with offline_phase(cfg, load_problem(cfg, "awac"), make_awac) as phase:
        for _ in phase.steps():
            phase.log(phase.learner.update(phase.sample()))
    return folder / "offline"


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pretrain(tmp_path_factory.mktemp("finished"))


@pytest.fixture
def run(tmp_path: Path, finished: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "run" / "offline"))


@pytest.fixture
def twin(tmp_path: Path, finished: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "twin" / "offline"))


def test_a_round_is_the_update_on_all_rows(run: Path, tmp_path: Path) -> None:
    new = record(tmp_path / "new.npz")
    start = Pretrained.read(run)
    lineage = continue_run(run, [new], num_steps=4, schedule=EVERY)
    cfg = compose("awac", *SHORT, "qvalue.hidden_sizes=[16]")
    learner = make_awac(cfg, (17, 6))
    learner.loss.load_state_dict(start.states["loss"])
    for name, optim in learner.optims.items():
        optim.load_state_dict(start.states[f"{name}_optim"])
    both = [load_offline("o2o/halfcheetah/linear-medium-v0"), load_offline(new)]
    data = torch.cat([start.convention.data(each).select(*TRANSITION) for each in both])
    seed_everything(1)
    for _ in range(4):
        learner.update(data[torch.randint(0, len(data), (16,))])
    for name, value in learner.loss.state_dict().items():
        assert torch.equal(value, newest(run, "loss")[name]), name
    assert [(entry["round"], entry["rows"], entry["updates"]) for entry in lineage] == [
        (0, len(both[0]), 0),
        (1, 30, 4),
    ]
    assert lineage[1]["fingerprint"] == fingerprint(both[1].select(*TRANSITION))
    assert read_run(run)["lineage"] == lineage


def test_rounds_follow_each_other(run: Path, tmp_path: Path) -> None:
    one, two, three = (record(tmp_path / f"{number}.npz", number) for number in range(3))
    before, labels = rows(run), read_policy(run).metadata
    continue_run(run, [one], num_steps=3, schedule=EVERY)
    one.unlink()  # the run has its own copy
    lineage = continue_run(run, [two, three], num_steps=2, schedule=EVERY)
    assert [entry["round"] for entry in lineage] == [0, 1, 2, 2]
    after = rows(run)
    assert after[: len(before)] == before
    assert [row["step"] for row in after[len(before) :] if "train/loss_qvalue" in row] == [1, 2, 3, 4, 5]
    assert [row["step"] for row in after if "evaluation/return" in row] == [-6, 0, 3, 5]
    manifest, _ = newest_valid(run / "checkpoints")
    assert manifest is not None
    assert (manifest["step"], manifest["config"]["lineage"]) == (11, lineage)
    stored = read_rows(run / "checkpoints", manifest)
    assert stored is not None
    assert len(stored) == sum(entry["rows"] for entry in lineage)
    weight, learnt = next(load_policy(run).parameters()), newest(run, "loss").values()
    assert any(torch.equal(weight, value) for value in learnt), "policy.pt is the newest policy"
    assert read_policy(run).metadata == labels
    assert (labels["algorithm"], labels["seed"]) == ("awac", 0)
    train(tmp_path / "other", "awac", f"pretrained={run}")
    assert rows(tmp_path / "other")[-1]["step"] == 24


@pytest.mark.parametrize("stop", [8, pytest.param(10, marks=pytest.mark.slow)])
def test_a_round_killed_in_the_middle_goes_on_bit_for_bit(run: Path, twin: Path, tmp_path: Path, stop: int) -> None:
    new, whole, parts = record(tmp_path / "new.npz"), run, twin
    continue_run(whole, [new], num_steps=4, schedule=EVERY)
    with dying("offline", stop):
        continue_run(parts, [new], num_steps=4, schedule=EVERY)
    continue_run(parts, [new] if stop == 8 else [], resume=True, schedule=EVERY)
    assert rows(whole) == rows(parts)
    for name in ("loss", "actor_optim", "qvalue_optim", "update", "rng", "buffer", "counters"):
        assert_equal(newest(whole, name), newest(parts, name), name)
    assert continue_run(parts, resume=True)[-1]["updates"] == 4, "finished: nothing is left"


def test_a_round_killed_before_its_first_checkpoint_begins_anew(run: Path, twin: Path, tmp_path: Path) -> None:
    new = record(tmp_path / "new.npz")

    def die(session: Session) -> None:
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Session, "_save", die)
        with pytest.raises(KeyboardInterrupt):
            continue_run(run, [new], num_steps=4, schedule=EVERY)
    assert "lineage" not in read_run(run)
    continue_run(run, [new], num_steps=4, resume=True, schedule=EVERY)
    continue_run(twin, [new], num_steps=4, schedule=EVERY)
    assert rows(run) == rows(twin)


def test_what_is_refused(run: Path, tmp_path: Path) -> None:
    new = record(tmp_path / "new.npz")
    for arguments, kind, said in [
        (([],), O2OSpecError, "no round of .* has begun"),
        (([new],), O2OSpecError, "got num_steps=None"),
        (([record(tmp_path / "wide.npz", observations=np.zeros((30, 4)))],), O2ODataError, "has the shape"),
        (([record(tmp_path / "nan.npz", rewards=np.full(30, np.nan))],), O2ODataError, "NaN"),
    ]:
        with pytest.raises(kind, match=said):
            continue_run(run, *arguments, num_steps=None if "num_steps" in said else 2)
    with pytest.raises(O2ODataError, match=r"linear-medium-v0, with which the run began; name new recordings"):
        continue_run(run, [new, "o2o/halfcheetah/linear-medium-v0"], num_steps=2)
    assert "lineage" not in read_run(run)
    continue_run(run, [new], num_steps=2, schedule=EVERY)
    with pytest.raises(O2ODataError, match="with which the run began"):
        continue_run(run, ["o2o/halfcheetah/linear-medium-v0"], num_steps=2)
    (tmp_path / "copy.npz").write_bytes(new.read_bytes())
    with pytest.raises(O2ODataError, match=r"holds the rows of .*new\.npz, which the run has had since round 1"):
        continue_run(run, [tmp_path / "copy.npz"], num_steps=2)
    with pytest.raises(O2ODataError, match="4 observation entries and 6 action dimensions, expected"):
        continue_run(run, [tmp_path / "wide.npz"], num_steps=2, with_env=False)
    other = record(tmp_path / "more.npz", 5)
    with dying("offline", 10):
        continue_run(run, [other], num_steps=4, schedule=EVERY)
    with pytest.raises(O2OCheckpointError, match=r"round 2 of .* has 2 updates left"):
        continue_run(run, [record(tmp_path / "third.npz", 6)], num_steps=4)
    with pytest.raises(O2OCheckpointError, match=r"round 2 of .* has 2 updates left"):
        continue_run(run, [record(tmp_path / "more.npz", 7)], num_steps=4, resume=True)  # other data of the same name
    with pytest.raises(O2OSpecError, match="got num_steps=5, expected 4"):
        continue_run(run, num_steps=5, resume=True)


def test_other_data_under_the_name_of_the_runs_own(tmp_path: Path) -> None:
    source = record(tmp_path / "own.npz")
    folder, words = tmp_path / "run", (f"dataset.source=path:{source}",)
    pretrain(folder, *words)
    record(source, seed=9)
    with pytest.raises(O2ODataError, match="other data of the same name"):
        continue_run(folder / "offline", [record(tmp_path / "new.npz", 3)], num_steps=2)
    with pytest.raises(O2OCheckpointError, match="other data of the same name"):
        train(folder, "awac", *words, "resume=true")


#: Small networks, by the script that has them.
_Q = "qvalue.hidden_sizes=[16]"
_BRAC = (_Q, "clone_steps=2", "warm_start=2", "best_of=3")
_CHUNKS = ("hidden_sizes=[16]", "phases.flow.warmup=0", "phases.rlpd.random=4")
_SAMG = ("encoder.hidden_sizes=[16]", "encoder.num_steps=6", "handover.warmup_steps=2", "threshold=0.2")
#: Scripts that continue, with words and with the phases that do.
BOTH, FIRST = ("offline", "."), ("offline",)


@pytest.mark.parametrize(
    ("script", "words", "phases"),
    [
        pytest.param("iql", ("value.hidden_sizes=[16]",), BOTH, marks=pytest.mark.slow),
        pytest.param("td3_bc", (), BOTH, marks=pytest.mark.slow),
        pytest.param("cql", ("algorithm=cal_ql",), BOTH, marks=pytest.mark.slow),
        pytest.param("cql", ("algorithm=cql", "learner=sac", "collect=step"), BOTH, marks=pytest.mark.slow),
        pytest.param("bc", ("policy=gaussian",), BOTH, marks=pytest.mark.slow),
        pytest.param(
            "bc", ("policy=tanh_gaussian", "learner=sac", f"sac.{_Q}", "sac.utd_ratio=2"), BOTH, marks=pytest.mark.slow
        ),
        pytest.param("rebrac", (), FIRST),
        pytest.param("rebrac", (), (".",), marks=pytest.mark.slow),
        pytest.param("spot", ("vae_steps=2",), BOTH, marks=pytest.mark.slow),
        pytest.param("behavior_regularized", _BRAC, BOTH, marks=pytest.mark.slow),
        pytest.param("behavior_regularized", (_Q, "method=brac_dual", "warm_start=2"), BOTH, marks=pytest.mark.slow),
        pytest.param("behavior_regularized", ("method=bear", "warm_start=2"), BOTH, marks=pytest.mark.slow),
        pytest.param("pex", ("value.hidden_sizes=[16]", "+online.online_capacity=24"), BOTH, marks=pytest.mark.slow),
        pytest.param("wsrl", ("handover.warmup_steps=4",), BOTH, marks=pytest.mark.slow),
        pytest.param("qc", (*_CHUNKS, "algorithm=qc_fql"), BOTH, marks=pytest.mark.slow),
        pytest.param("qc", (*_CHUNKS, "algorithm=qc_rlpd"), (".",), marks=pytest.mark.slow),
        pytest.param("aca", ("baseline.hidden_sizes=[16]",), BOTH, marks=pytest.mark.slow),
        pytest.param("aca", ("baseline.hidden_sizes=[16]", "learner=sac"), BOTH, marks=pytest.mark.slow),
        pytest.param("samg", _SAMG, FIRST, marks=pytest.mark.slow),
        pytest.param("samg", (*_SAMG, "base=iql", "value.hidden_sizes=[16]"), BOTH, marks=pytest.mark.slow),
        (
            "rlpd",
            ("qvalue.hidden_sizes=[16]", "utd_ratio=2", "online.init_random_frames=4"),
            (".",),
        ),
    ],
)
def test_scripts_that_can(tmp_path: Path, script: str, words: tuple[str, ...], phases: tuple[str, ...]) -> None:
    run, new = train(tmp_path / "run", script, *words), record(tmp_path / "new.npz")
    for phase in phases:
        before = newest(run / phase, "loss")
        lineage = continue_run(run / phase, [new], num_steps=3, schedule=EVERY)
        last = rows(run / phase)[-1]["step"]
        assert last == (27 if phase == "." else 3)
        left_out = script == "rebrac" and phase == "offline"  # the very last row has no next action
        assert lineage[0]["rows"] == newest_rows(run / phase) - 30 + left_out
        assert any(not torch.equal(value, before[name]) for name, value in newest(run / phase, "loss").items())
    if "." in phases and script in ("wsrl", "samg"):
        assert lineage[0]["rows"] == 24, "the data set was let go"
    else:
        assert lineage[0]["rows"] > 24, "the rows of the data set and those collected"


def newest_rows(folder: Path) -> int:
    manifest, _ = newest_valid(folder / "checkpoints")
    return manifest["buffer"]["length"]  # type: ignore[index]


def test_a_method_that_cannot_and_a_run_that_is_not_over(run: Path, tmp_path: Path) -> None:
    for config, said in {
        "off2on": r"is a run of off2on online, which cannot continue from recordings alone: its rows have priorities",
        "awr": r"is a run of awr, which cannot .*: one of its steps is an iteration .*; expected",
        "bc-gaussian-none": r"a share of 0.1 of its data \(best_episodes\)",
    }.items():
        status, extra = RunStatus.read(run), {"online": {}} if config == "off2on" else {}
        extra |= {"best_episodes": 0.1} if config.startswith("bc") else {}
        status.config.clear()
        status.config.update(algorithm=config, **extra)
        with pytest.raises(O2OSpecError, match=said):
            find_method(status.folder, status.config)
    with dying("online", 12):
        train(tmp_path / "begun", "awac", "schedule.checkpoint_every=12")
    with pytest.raises(O2OCheckpointError, match="is at 12 of 24 steps, expected a finished run; let it finish"):
        continue_run(tmp_path / "begun", [tmp_path / "new.npz"], num_steps=2)


def test_the_command_without_an_environment(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    new = record(tmp_path / "new.npz")
    before = rows(run)
    words = ["continue", str(run), "--data", f"path:{new}", "--steps", "3", "--log-every", "1"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("torchrl_o2o.trainers.continuing.make_gym_env", lambda **_: 1 / 0)
        assert main(words) == 2
        assert re.search("cannot be built here.*--without-env", capsys.readouterr().err)
        assert main([*words, "--without-env"]) == 0
    said = capsys.readouterr()
    assert f"round 1: 30 rows of path:{new}, 3 updates" in said.out
    assert "awac, halfcheetah" in said.err
    assert not any("evaluation/return" in row for row in rows(run)[len(before) :])
