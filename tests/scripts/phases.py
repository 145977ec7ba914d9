# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""What every script of a two-phase method has to pass: learning, exact resume, one pre-training for many."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
from omegaconf import OmegaConf

from tests.scripts.running import DOMAIN_TASKS, TASKS, compose, script_of
from torchrl_o2o.checkpoint import Checkpointer
from torchrl_o2o.checkpoint.manifest import load
from torchrl_o2o.deploy import read_policy
from torchrl_o2o.errors import O2OCheckpointError, O2OSpecError
from torchrl_o2o.record.files import read_metrics
from torchrl_o2o.trainers.launch import launch
from torchrl_o2o.trainers.pipeline import Pretrained

SHORT = (
    "task=halfcheetah",
    "preset=cpu",
    "actor.hidden_sizes=[16]",
    "compile=false",
    "offline.num_steps=6",
    "offline.batch_size=16",
    "online.total_frames=24",
    "online.batch_size=16",
    "evaluation.num_episodes=1",
    "+env.max_episode_steps=20",
    "schedule.eval_every=12",
    "schedule.log_every=1",
    "schedule.checkpoint_every=1000",
)
#: Phase and step of a checkpoint after which the process dies: offline, at the hand-over, online in mid-episode.
STOPS = [
    pytest.param("offline", 3, marks=pytest.mark.slow),
    pytest.param("offline", 6, marks=pytest.mark.slow),
    ("online", 5),
    pytest.param("online", 17, marks=pytest.mark.slow),
]


class Stop(Exception):
    """A process that dies."""


@contextmanager
def dying(phase: str, stop: int) -> Iterator[None]:
    """End the run right after the checkpoint of a step of a phase, or of a run folder of that name, was saved."""
    save = Checkpointer.save

    def save_and_die(self: Checkpointer, step: int) -> None:
        save(self, step)
        folders = [folder.name for folder in self.folder.parents[:2]]  # an offline phase may have folders of its own
        if step == stop and (phase in folders or (phase == "online" and "offline" not in folders)):
            raise Stop

    with patch.object(Checkpointer, "save", save_and_die), pytest.raises(Stop):
        yield


def rows(folder: Path) -> list[dict[str, Any]]:
    """A run's metrics without the times."""
    return [{key: value for key, value in row.items() if key != "time"} for row in read_metrics(folder)]


def newest(folder: Path, name: str) -> Any:
    """An object's state in the newest checkpoint."""
    path = max((folder / "checkpoints").glob("step-*"), key=lambda step: int(step.name.split("-")[1]))
    return load((path / f"{name}.pt").read_bytes())


def assert_equal(one: Any, other: Any, where: str) -> None:
    """Nested states equal bit for bit."""
    assert type(one) is type(other), where
    if isinstance(one, torch.Tensor):
        assert torch.equal(one, other), where
    elif isinstance(one, dict):
        assert list(one) == list(other), where
        for key in one:
            assert_equal(one[key], other[key], f"{where}.{key}")
    elif isinstance(one, list | tuple):
        assert len(one) == len(other), where
        for index, pair in enumerate(zip(one, other)):
            assert_equal(*pair, f"{where}[{index}]")
    else:
        assert one == other, where


class PhasesContract:
    """Derive a test class from this and set ``script``, and ``words`` for what is small in it."""

    script: str
    words: tuple[str, ...] = ()
    #: Objects of the online run that are compared besides the loss.
    optims: tuple[str, ...] = ("actor", "qvalue")
    #: Values that do not fit the online phase, with a word of what is said; none where the hand-over has no settings.
    misfits: tuple[tuple[str, str], ...] = (
        ("handover.data=foo", "data"),
        ("handover.carry=[value_of_nothing]", "value_of_nothing"),
    )
    #: Runs of the offline phase.
    offline: tuple[str, ...] = ("offline",)

    def config(self, folder: Path, *words: str) -> Any:
        return compose(self.script, *SHORT, *self.words, f"run_dir={folder}", *words)

    def train(self, folder: Path, *words: str) -> None:
        script_of(self.script).train(self.config(folder, *words))

    def start(self, run: Path) -> Any:
        """The state that the online loss starts from."""
        return Pretrained.read(run / self.offline[0]).states["loss"]

    def test_both_phases_are_logged_and_learn(self, tmp_path: Path) -> None:
        run = tmp_path / "run"
        self.train(run)
        online = rows(run)
        assert (online[0]["step"], online[-1]["step"]) == (0, 24)
        for folder in self.offline:
            offline = rows(run / folder)
            assert (offline[0]["step"], offline[-1]["step"]) == (-6, 0)
            assert all("evaluation/return" in row for row in (offline[0], offline[-1]))
        assert [row["step"] for row in online if "evaluation/return" in row] == [0, 12, 24]
        assert any(key.startswith("train/loss_") for row in online for key in row)
        for folder in (run, *(run / folder for folder in self.offline)):
            policy = read_policy(folder)
            assert policy.env is not None
            assert policy.convention is not None
            assert torch.equal(policy.actor().spec["action"].space.high, policy.high), "native"
        start = self.start(run)
        moved = [
            name
            for name, value in newest(run, "loss").items()
            if name.startswith("actor_network_params") and not torch.equal(value, start.get(name, value))
        ]
        assert moved, "the actor learns online"

    @pytest.mark.parametrize(("phase", "step"), STOPS)
    def test_resumed_equals_uninterrupted(self, tmp_path: Path, phase: str, step: int) -> None:
        every = f"schedule.checkpoint_every={step}"
        self.train(tmp_path / "whole", every)
        with dying(phase, step):
            self.train(tmp_path / "parts", every)
        self.train(tmp_path / "parts", every, "resume=true")
        for folder in (*self.offline, "."):
            assert rows(tmp_path / "whole" / folder) == rows(tmp_path / "parts" / folder)
        for name in ("loss", "buffer", "rng", *(f"{name}_optim" for name in self.optims)):
            assert_equal(newest(tmp_path / "whole", name), newest(tmp_path / "parts", name), name)

    def test_one_pretraining_serves_many_fine_tunings(self, tmp_path: Path) -> None:
        self.train(tmp_path / "one")
        self.train(tmp_path / "other", f"pretrained={tmp_path / 'one' / 'offline'}")
        assert rows(tmp_path / "one") == rows(tmp_path / "other")
        assert not (tmp_path / "other" / "offline").exists()

    def test_the_offline_phase_alone_and_what_continues_it(self, tmp_path: Path) -> None:
        self.train(tmp_path / "whole")
        self.train(tmp_path / "parts", "online.total_frames=0")
        assert not (tmp_path / "parts" / "run.json").exists(), "nothing of an online phase"
        for folder in self.offline:
            assert rows(tmp_path / "whole" / folder) == rows(tmp_path / "parts" / folder)
        self.train(tmp_path / "parts", "resume=true")
        assert rows(tmp_path / "whole") == rows(tmp_path / "parts")

    def test_a_pretraining_that_does_not_fit_is_refused(self, tmp_path: Path) -> None:
        self.train(tmp_path / "one", "online.total_frames=8")
        start = f"pretrained={tmp_path / 'one' / 'offline'}"
        with pytest.raises(O2OSpecError, match="convention"):
            self.train(tmp_path / "other", start, "convention={reward_scale: 7.0}")
        with pytest.raises(O2OSpecError, match="hidden_sizes"):
            self.train(tmp_path / "other", start, "actor.hidden_sizes=[8]")
        with pytest.raises(O2OCheckpointError, match="no checkpoint"):
            self.train(tmp_path / "other", f"pretrained={tmp_path / 'nowhere'}")
        with pytest.raises(O2OCheckpointError, match="expected a pre-training"):
            self.train(tmp_path / "other", f"pretrained={tmp_path / 'one'}")
        with pytest.raises(SystemExit, match="which leave no step"):
            launch(self.config(tmp_path / "other", start, "online.total_frames=0"), script_of(self.script).train)
        assert not (tmp_path / "other").exists()

    @pytest.mark.parametrize(
        ("preset", "tasks"),
        [
            ("paper", DOMAIN_TASKS),
            pytest.param("paper", TASKS, marks=pytest.mark.slow),
            pytest.param("cpu", TASKS, marks=pytest.mark.slow),
        ],
        ids=["paper", "paper, all", "cpu, all"],
    )
    def test_every_task_composes(self, preset: str, tasks: list[str]) -> None:
        for task in tasks:
            cfg = compose(self.script, f"task={task}", f"preset={preset}")
            OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)
            assert cfg.preset == preset

    @pytest.mark.parametrize("word", ["online.total_frames=-5", "online.batch_size=abc", "seed=abc", "num_threads=0"])
    def test_settings_of_all_phases_are_checked_before_the_first(self, tmp_path: Path, word: str) -> None:
        name, _, value = word.partition("=")
        with pytest.raises(SystemExit, match=f"got {name}={value}, expected a whole number of at least"):
            launch(self.config(tmp_path / "run", word), script_of(self.script).train)
        assert not (tmp_path / "run").exists()

    def test_a_hand_over_that_does_not_fit_is_known_before_the_training(self, tmp_path: Path) -> None:
        for word, said in self.misfits:
            with pytest.raises(SystemExit, match=said):
                launch(self.config(tmp_path / "run", word), script_of(self.script).train)
        assert not (tmp_path / "run").exists()
