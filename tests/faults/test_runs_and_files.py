# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Cases of the second list about runs and their files: B18 to B21, C24, C25, C27 and what a report does with NaN.

The letters are those of the list: A wrong numbers, B runs that end, C intruders, D friction.
"""

from __future__ import annotations

import errno
import json
import os
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from tensordict import TensorDict
from torchrl.data import LazyTensorStorage, TensorDictReplayBuffer

from tests.record.test_sinks import FakeWandb
from torchrl_o2o import durable
from torchrl_o2o.checkpoint import Checkpointer, folders, load_objects, manifest
from torchrl_o2o.checkpoint.manifest import read_manifest, write_manifest
from torchrl_o2o.collectors.single import StepCollector
from torchrl_o2o.collectors.vector import VectorCollector, make_vector_env
from torchrl_o2o.commands import data
from torchrl_o2o.data import OnlineWriter, offline_online_storage
from torchrl_o2o.errors import O2OCheckpointError, O2OSpecError
from torchrl_o2o.modules import make_actor
from torchrl_o2o.record.curves import dip, gain, handover_score, iqm, regret, stratified_bootstrap_interval
from torchrl_o2o.record.figures import Curve, Panel, draw_panels
from torchrl_o2o.record.files import read_metrics
from torchrl_o2o.record.recorder import Recorder
from torchrl_o2o.record.report import write_report
from torchrl_o2o.record.runs import find_runs, group_runs, load_run
from torchrl_o2o.record.sinks import ProgressSink, TensorBoardSink
from torchrl_o2o.testing import DelayedRewardEnv
from torchrl_o2o.trainers.evaluation import EvaluationResult
from torchrl_o2o.trainers.interrupt import graceful_exit
from torchrl_o2o.trainers.session import Schedule, Session


def score() -> EvaluationResult:
    return EvaluationResult(returns=np.array([1.0]), lengths=np.array([10]))


def make_env() -> gymnasium.Env:
    return gymnasium.wrappers.TimeLimit(DelayedRewardEnv(), 4)


class TwoPhases:
    """Six updates offline, a hand-over, nine transitions online, in one folder; an 'update' adds a random number."""

    def __init__(self, folder: Path, resume: bool = False, num_envs: int = 0, **options: Any) -> None:
        torch.manual_seed(0)
        actor = make_actor(1, 1, hidden_sizes=(4,))
        self.walk: dict[str, Any] = {"value": torch.zeros(()), "handed_over": 0}
        if num_envs:
            self.collector: Any = VectorCollector(
                make_vector_env(make_env, num_envs), actor, total_frames=9, seeds=[*range(num_envs)]
            )
        else:
            self.collector = StepCollector(make_env(), actor, total_frames=9, seed=0)
        schedule = options.pop("schedule", Schedule(eval_every=4, log_every=1, checkpoint_every=4))
        objects = {"walk": self.walk, "collector": self.collector}
        self.session = Session(folder, {"seed": 0}, objects, None, score, schedule, resume, **options)

    def update(self) -> None:
        self.walk["value"] = self.walk["value"] + torch.randn(())
        self.session.log({"value": self.walk["value"]})

    def run(self) -> TwoPhases:
        with self.session as session:
            for _ in session.offline(6):
                self.update()
            if not session.is_online and not session.stopped:
                self.walk["handed_over"] += 1
            for _ in session.online(self.collector):
                self.update()
        return self


def rows(folder: Path) -> list[dict[str, Any]]:
    return [row | {"time": 0} for row in read_metrics(folder)]


@pytest.fixture(autouse=True)
def _handlers() -> Iterator[None]:
    previous = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in previous.items():
        signal.signal(number, handler)


def test_case_b19_offline_and_online_in_one_folder(tmp_path: Path) -> None:
    whole = TwoPhases(tmp_path / "run").run()
    evaluations = [row["step"] for row in read_metrics(tmp_path / "run") if "evaluation/return" in row]
    assert evaluations == [-6, -4, 0, 4, 8, 9]
    assert [row["step"] for row in read_metrics(tmp_path / "run") if "train/value" in row] == [*range(-5, 10)]
    assert folders.steps(tmp_path / "run" / "checkpoints") == [15, 14]
    assert whole.walk["handed_over"] == 1


class Asked(graceful_exit):
    """A signal comes right after the run was looked at for the n-th time, or while it evaluates, and so on."""

    def __init__(self, after: int) -> None:
        super().__init__()
        self.after, self.looks = after, 0

    @property
    def requested(self) -> bool:
        seen = super().requested
        self.looks += 1
        if self.looks == self.after:
            os.kill(os.getpid(), signal.SIGTERM)
        return seen


def test_case_b19_a_signal_between_two_looks_never_ends_a_run_without_a_checkpoint(tmp_path: Path) -> None:
    whole = TwoPhases(tmp_path / "whole")
    whole.session.interrupt = Asked(10**6)
    whole.run()
    for after in range(1, whole.session.interrupt.looks - 1):
        folder = tmp_path / str(after)
        first = TwoPhases(folder)
        first.session.interrupt = Asked(after)
        with pytest.raises(SystemExit, match="143"):
            first.run()
        done = first.session.counters
        assert folders.steps(folder / "checkpoints")[0] == done["offline"] + done["online"], "nothing is lost"
        second = TwoPhases(folder, resume=True).run()
        assert second.walk == whole.walk
        assert rows(folder) == rows(tmp_path / "whole")


def test_case_b19_several_environments_at_once_miss_no_evaluation(tmp_path: Path) -> None:
    TwoPhases(tmp_path / "run", num_envs=3).run()
    found = [row["step"] for row in read_metrics(tmp_path / "run") if "evaluation/return" in row]
    assert found == [-6, -4, 0, 6, 9]  # 4 lies between 3 and 6, 8 between 6 and 9
    assert len([row for row in read_metrics(tmp_path / "run") if "train/episode_return" in row]) == 3


def test_case_a07_the_policy_is_written_at_every_checkpoint(tmp_path: Path) -> None:
    seen: list[tuple[Path, int]] = []

    def on_save(folder: Path) -> None:
        seen.append((folder, folders.steps(folder / "checkpoints")[0]))

    TwoPhases(tmp_path / "run", on_save=on_save).run()
    assert seen == [(tmp_path / "run", step) for step in (4, 6, 10, 14, 15)]
    seen.clear()
    TwoPhases(tmp_path / "run", resume=True, on_save=on_save).run()
    assert seen == [(tmp_path / "run", 15)], "a process killed between checkpoint and policy left an older policy"


def test_case_d_a_run_says_where_it_is_and_what_next(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "my run"
    TwoPhases(folder, on_save=lambda run: (run / "policy.pt").write_text("here")).run()
    first, *_, complete, policy, curves = capsys.readouterr().err.splitlines()
    assert first.endswith(f"seed 0: {folder}")
    assert "seed 0: complete: return 1" in complete
    assert policy == f"  policy: {folder / 'policy.pt'}"
    assert curves == f"  curves: o2o report '{folder}'"


# Sinks


class Failing:
    """A sink that cannot do one thing."""

    def __init__(self, fails_at: str) -> None:
        self.fails_at, self.rows = fails_at, 0

    def _do(self, name: str) -> None:
        if name == self.fails_at:
            raise OSError(28, "No space left on device")

    def write(self, step: int, metrics: dict[str, float]) -> None:
        self.rows += 1
        self._do("write")

    def rewind(self, step: int) -> None:
        self._do("rewind")

    def close(self) -> None:
        self._do("close")


@pytest.mark.parametrize("fails_at", ["write", "rewind", "close"])
def test_case_b20_a_sink_that_fails_does_not_end_the_run(tmp_path: Path, fails_at: str) -> None:
    recorder = Recorder(tmp_path, config={})
    sink = Failing(fails_at)
    recorder._sinks = [sink]

    def run() -> None:
        recorder.load_state_dict(recorder.state_dict() | {"step": 0})
        for step in (1, 2):
            recorder.log(step, {"train/loss": 1.0})
        recorder.close()

    with pytest.warns(UserWarning, match=r"Failing FAILED \(OSError.*No space left.*the run continues"):
        run()
    assert sink.rows == {"write": 1, "rewind": 0, "close": 2}[fails_at]
    assert [row["step"] for row in read_metrics(tmp_path)] == [1, 2]
    Recorder(tmp_path, config={}, resume=True).close()


@pytest.mark.parametrize("kind", ["tensorboard", "wandb"])
def test_case_b20_a_sink_that_cannot_start_does_not_end_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    def refuse(*words: Any, **settings: Any) -> None:
        raise OSError(28, "No space left on device")

    fake = FakeWandb()
    fake.init = refuse
    monkeypatch.setitem(sys.modules, "wandb", fake)
    monkeypatch.setattr(TensorBoardSink, "__init__", refuse)
    options: dict[str, Any] = {"tensorboard": True} if kind == "tensorboard" else {"wandb": {}}
    with (
        pytest.warns(UserWarning, match="FAILED .*No space left"),
        Recorder(tmp_path, config={}, **options) as recorder,
    ):
        recorder.log(1, {"train/loss": 1.0})
    assert len(read_metrics(tmp_path)) == 1


def test_case_b21_tensorboard_shows_each_step_once_after_a_resume(tmp_path: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    with Recorder(tmp_path, config={}, tensorboard=True) as recorder:
        for step in (-2, -1, 0):
            recorder.log(step, {"train/x": 1.0})
        state = recorder.state_dict()
        recorder.log(1, {"train/x": 1.0})
    for cut in ("state", "step"):
        with Recorder(tmp_path, config={}, tensorboard=True, resume=True) as recorder, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if cut == "state":
                recorder.load_state_dict(state)
            for step in (1, 2):
                recorder.log(step, {"train/x": 2.0})
        events = accumulator.EventAccumulator(str(tmp_path / "tensorboard"))
        events.Reload()
        found = [(event.step, event.value) for event in events.Scalars("train/x")]
        assert found == [(-2, 1.0), (-1, 1.0), (0, 1.0), (1, 2.0), (2, 2.0)]


def test_case_b21_wandb_gets_negative_steps_and_each_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeWandb()
    fake.init = lambda **settings: fake
    monkeypatch.setitem(sys.modules, "wandb", fake)
    with Recorder(tmp_path, config={}, wandb={}) as recorder:
        for step in (-2, -1):
            recorder.log(step, {"train/x": float(step)})
        state = recorder.state_dict()
        recorder.log(0, {"train/x": 0.0})
        recorder.log(1, {"train/x": 1.0})
    fake.summary = {"step": 1}
    with Recorder(tmp_path, config={}, wandb={}, resume=True) as recorder:
        recorder.load_state_dict(state)
        for step in (0, 1, 2):
            recorder.log(step, {"train/x": float(step)})
    assert [row["step"] for row in fake.rows] == [-2, -1, 0, 1, 1, 2]
    assert all(row["step"] == row["train/x"] for row in fake.rows)


def test_case_a14_the_bar_shows_the_evaluations_return_and_counts_up(capsys: pytest.CaptureFixture[str]) -> None:
    sink = ProgressSink(10)
    sink.write(-10, {"evaluation/return": 3.0})
    sink.write(0, {"train/loss": 0.25, "train/q": 1.5})
    sink.write(10, {"evaluation/return": 71.0})
    sink.write(10, {"handover/return": 42.0, "handover/dip": 1.0})
    assert sink._bar is not None
    assert (sink._bar.n, sink._bar.total) == (20, 20)
    sink.close()
    shown = capsys.readouterr().err
    assert "return=71" in shown
    assert "return=42" not in shown
    assert "-" not in shown.replace("--", "")


# Checkpoints


def new_buffer(offline: int = 6, online: int = 8, value: float = 0.0) -> TensorDictReplayBuffer:
    storage = offline_online_storage(rows_of(range(offline), value), online)
    return TensorDictReplayBuffer(storage=storage, writer=OnlineWriter(offline), batch_size=4)


def rows_of(numbers: Iterable[int], value: float = 0.0) -> TensorDict:
    reward = torch.tensor([[float(number) + value] for number in numbers])
    flags = torch.zeros(len(reward), 1, dtype=torch.bool)
    following = {"observation": reward, "reward": reward, "done": flags, "terminated": flags, "truncated": flags}
    return TensorDict({"observation": reward, "action": reward, "next": following}, [len(reward)])


def refilled(buffer: TensorDictReplayBuffer, count: int, times: int = 1) -> None:
    for _ in range(times):
        buffer._writer._empty()
        buffer.extend(rows_of(range(100, 100 + min(count, 8))))
        for number in range(8, count):
            buffer.extend(rows_of([100 + number]))


REWRITES: dict[str, Callable[[TensorDictReplayBuffer], Any]] = {
    "emptied and refilled to the same count": lambda buffer: refilled(buffer, 5),
    "to a larger count": lambda buffer: refilled(buffer, 7),
    "to a smaller count": lambda buffer: refilled(buffer, 3),
    "emptied twice": lambda buffer: refilled(buffer, 5, times=2),
    "emptied and filled over the end of the ring": lambda buffer: refilled(buffer, 12),
    "one online row set": lambda buffer: buffer.storage.set(torch.tensor([8]), rows_of([55]), set_cursor=False),
    "one offline row set": lambda buffer: buffer.storage.set(torch.tensor([2]), rows_of([55]), set_cursor=False),
    "one bit": lambda buffer: buffer.storage._storage["next", "done"][7].logical_not_(),
    "rows exchanged": lambda buffer: buffer.storage.set(torch.tensor([7, 8]), rows_of([12, 11]), set_cursor=False),
}


@pytest.mark.parametrize("rewrite", REWRITES)
@pytest.mark.parametrize("resumed", [False, True])
def test_case_a03_rows_that_were_changed_between_two_checkpoints(tmp_path: Path, rewrite: str, resumed: bool) -> None:
    buffer = new_buffer()
    checkpoint = Checkpointer(tmp_path, objects={}, buffer=buffer)
    buffer.extend(rows_of(range(10, 15)))
    checkpoint.save(1)
    if resumed:
        buffer = new_buffer()
        checkpoint = Checkpointer(tmp_path, objects={}, buffer=buffer)
        checkpoint.restore()
    REWRITES[rewrite](buffer)
    checkpoint.save(2)
    other = new_buffer()
    assert Checkpointer(tmp_path, objects={}, buffer=other).restore() == 2
    alive = 6 + min(buffer.writer.total_written, 8)
    assert (other.storage[:alive] == buffer.storage[:alive]).all()


@pytest.mark.parametrize("counts", [[5], [7], [3], [8], [12], [5, 5], [12, 5], [9, 9, 9]])
def test_case_a03_a_buffer_emptied_and_refilled(tmp_path: Path, counts: list[int]) -> None:
    def make() -> TensorDictReplayBuffer:
        return TensorDictReplayBuffer(storage=LazyTensorStorage(8), batch_size=4)

    buffer, number = make(), 100
    checkpoint = Checkpointer(tmp_path, objects={}, buffer=buffer)
    buffer.extend(rows_of(range(5)))
    checkpoint.save(1)
    for count in counts:
        buffer.empty()
        for _ in range(count):
            buffer.add(rows_of([number])[0])
            number += 1
    checkpoint.save(2)
    other = make()
    assert Checkpointer(tmp_path, objects={}, buffer=other).restore() == 2
    assert len(other) == len(buffer) == min(counts[-1], 8)
    assert sorted(other[:]["action"].flatten().tolist()) == [*range(number - len(other), number)]


@pytest.mark.parametrize("count", [0, 3, 5, 9])
def test_case_a03_offline_and_online_rows_emptied(tmp_path: Path, count: int) -> None:
    buffer = new_buffer()
    checkpoint = Checkpointer(tmp_path, objects={}, buffer=buffer)
    buffer.extend(rows_of(range(10, 15)))
    checkpoint.save(1)
    buffer.empty()
    for number in range(count):
        buffer.extend(rows_of([100 + number]))
    checkpoint.save(2)
    other = new_buffer()
    assert Checkpointer(tmp_path, objects={}, buffer=other).restore() == 2
    assert len(other) == len(buffer)
    alive = 6 + min(count, 8)
    assert (other.storage._storage[:alive] == buffer.storage._storage[:alive]).all()


def test_case_a03_a_row_that_was_not_changed_is_not_written_again(tmp_path: Path) -> None:
    buffer = new_buffer()
    checkpoint = Checkpointer(tmp_path, objects={}, buffer=buffer)
    for step in range(1, 5):
        buffer.extend(rows_of(range(10 * step, 10 * step + 3)))
        checkpoint.save(step)
    entries = read_manifest(tmp_path / "step-4")["buffer"]["segments"]
    assert [(entry["start"], entry["stop"]) for entry in entries] == [(0, 6), (3, 6), (6, 8), (8, 9), (9, 12)]


def test_case_a13_other_data_of_the_same_size_are_refused(tmp_path: Path) -> None:
    Checkpointer(tmp_path, objects={}, buffer=new_buffer()).save(1)
    with pytest.raises(O2OCheckpointError, match=r"offline rows with other values .*other data of the same name"):
        Checkpointer(tmp_path, objects={}, buffer=new_buffer(value=1e-6)).restore()
    assert Checkpointer(tmp_path, objects={}, buffer=new_buffer()).restore() == 1


def saved_twice(folder: Path, **options: Any) -> dict[str, int]:
    counters = {"updates": 4}
    checkpoint = Checkpointer(folder, objects={"counters": counters}, **options)
    checkpoint.save(4)
    counters["updates"] = 8
    checkpoint.save(8)
    return counters


@pytest.mark.parametrize("number", [errno.EACCES, errno.EMFILE, errno.EIO, errno.ESTALE, errno.ENOMEM])
@pytest.mark.parametrize("name", ["manifest.json", "counters.pt"])
def test_case_b18_a_file_that_cannot_be_read_for_a_moment_is_not_damaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, name: str
) -> None:
    saved_twice(tmp_path)
    real = manifest.read_file

    def refuse(path: Path) -> bytes:
        if path.name == name and path.parent.name == "step-8":
            raise OSError(number, os.strerror(number), str(path))
        return real(path)

    with monkeypatch.context() as patch:
        patch.setattr(manifest, "read_file", refuse)
        with pytest.raises(O2OCheckpointError, match=rf"step-8/{name} cannot be read at the moment"):
            Checkpointer(tmp_path, objects={"counters": {}}).restore()
    counters: dict[str, int] = {}
    assert Checkpointer(tmp_path, objects={"counters": counters}).restore() == 8
    assert counters == {"updates": 8}


@pytest.mark.parametrize("number", [errno.EACCES, errno.EMFILE, errno.EIO])
def test_case_b18_a_folder_that_cannot_be_listed_for_a_moment_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    buffer = new_buffer()
    Checkpointer(tmp_path, objects={}, buffer=buffer).save(1)
    before = sorted(path.name for path in tmp_path.rglob("*"))

    def refuse(path: Any) -> Any:
        raise OSError(number, os.strerror(number), str(path))

    with monkeypatch.context() as patch:
        for name in ("listdir", "scandir"):
            patch.setattr(os, name, refuse)
        with pytest.raises(O2OCheckpointError, match=r"cannot (write|be read)"):
            Checkpointer(tmp_path, objects={}, buffer=new_buffer()).restore()
    assert sorted(path.name for path in tmp_path.rglob("*")) == before
    assert Checkpointer(tmp_path, objects={}, buffer=new_buffer()).restore() == 1


def test_case_b18_a_run_folder_that_was_moved(tmp_path: Path) -> None:
    first = TwoPhases(tmp_path / "run")

    def move_after_the_offline_phase() -> None:
        with first.session as session:
            for _ in session.offline(6):
                first.update()
            (tmp_path / "run").rename(tmp_path / "elsewhere")
            TwoPhases(tmp_path / "run").run()
            for _ in session.online(first.collector):
                first.update()

    with pytest.raises(O2OCheckpointError, match="it was moved or removed during the run; move it back"):
        move_after_the_offline_phase()
    assert folders.steps(tmp_path / "run" / "checkpoints") == [15, 14], "the run that took the name is whole"
    whole = TwoPhases(tmp_path / "elsewhere", resume=True).run()
    assert whole.session.counters == {"offline": 6, "online": 9}


@pytest.mark.parametrize("harm", ["removed", "cut", "altered"])
def test_case_b18_one_damaged_segment_that_all_checkpoints_share(tmp_path: Path, harm: str) -> None:
    buffer = new_buffer()
    checkpoint = Checkpointer(tmp_path, objects={}, buffer=buffer)
    buffer.extend(rows_of(range(10, 15)))
    checkpoint.save(1)
    checkpoint.save(2)
    for segment in list((tmp_path / "segments").glob("*.pt")):
        content = segment.read_bytes()
        if harm == "removed":
            segment.unlink()
        else:
            segment.write_bytes(content[:-1] if harm == "cut" else b"x" + content[1:])
        other = new_buffer()
        with pytest.warns(UserWarning, match=rf"DAMAGED: .*{segment.name}.*its copy is used"):
            assert Checkpointer(tmp_path, objects={}, buffer=other).restore() == 2
        assert (other.storage[:11] == buffer.storage[:11]).all()
        assert segment.read_bytes() == content


def drop(key: str) -> Callable[[dict[str, Any]], Any]:
    return lambda body: body.pop(key)


HARMS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "no files": drop("files"),
    "no buffer": drop("buffer"),
    "no step": drop("step"),
    "no config": drop("config"),
    "no versions": drop("versions"),
    "another step": lambda body: body.update(step=3),
    "no generators": lambda body: body["files"].pop("rng.pt"),
    "no state of the buffer": lambda body: body["files"].pop("buffer.pt"),
    "no hash": lambda body: body["files"]["counters.pt"].pop("blake2b"),
    "no region": lambda body: body["buffer"]["regions"].pop(),
    "a segment less": lambda body: body["buffer"]["segments"].pop(),
    "first segment less": lambda body: body["buffer"]["segments"].pop(0),
    "segment of no region": lambda body: body["buffer"]["segments"][0].update(region="other"),
    "segments out of turn": lambda body: body["buffer"]["segments"].reverse(),
    "other rows": lambda body: body["buffer"]["segments"][-1].update(start=0, stop=4),
    "no start": lambda body: body["buffer"]["segments"][0].pop("start"),
    "fewer rows": lambda body: body["buffer"]["regions"][-1].update(total=4),
    "no list": lambda body: body["buffer"].update(segments=None),
}


@pytest.mark.parametrize("harm", HARMS)
def test_case_b18_a_manifest_whose_entries_do_not_fit_together(tmp_path: Path, harm: str) -> None:
    buffer, counters = new_buffer(), {"updates": 1}
    checkpoint = Checkpointer(tmp_path, objects={"counters": counters}, buffer=buffer)
    for step in (1, 2):
        buffer.extend(rows_of(range(10 * step, 10 * step + 5)))
        counters["updates"] = step
        checkpoint.save(step)
    body = read_manifest(tmp_path / "step-2")
    HARMS[harm](body)
    write_manifest(tmp_path / "step-2", body)
    other = new_buffer()
    with pytest.warns(UserWarning, match=r"STEP 2 IS DAMAGED: .*(does not|do not) fit together"):
        assert Checkpointer(tmp_path, objects={"counters": counters}, buffer=other).restore() == 1
    assert counters == {"updates": 1}
    assert other.storage[6:11]["action"].flatten().tolist() == [10, 11, 12, 13, 14]


@pytest.mark.parametrize("where", ["first newline", "last newline", "a brace", "a digit"])
def test_case_b18_metrics_with_one_changed_byte(tmp_path: Path, where: str) -> None:
    with Recorder(tmp_path, config={}) as recorder:
        for step in (1, 2, 3):
            recorder.log(step, {"train/x": 0.5})
        state = recorder.state_dict()
        recorder.log(4, {"train/x": 0.5})
    path = tmp_path / "metrics.jsonl"
    content = bytearray(path.read_bytes())
    ends = [index for index, byte in enumerate(content) if byte == 10]
    position = {"first newline": ends[0], "last newline": ends[2], "a brace": ends[0] + 1, "a digit": ends[0] - 2}[
        where
    ]
    content[position] = ord("7")
    path.write_bytes(content)
    with Recorder(tmp_path, config={}, resume=True) as recorder:
        with pytest.warns(UserWarning, match=r"metrics\.jsonl WAS ALTERED since the checkpoint"):
            recorder.load_state_dict(state)
        recorder.log(4, {"train/x": 0.5})
    left = {"first newline": [3, 4], "last newline": [1, 2, 4], "a brace": [1, 3, 4], "a digit": [1, 2, 3, 4]}[where]
    assert [row["step"] for row in read_metrics(tmp_path)] == left
    assert (tmp_path / "metrics.jsonl.damaged").read_bytes() == bytes(content)


def test_case_b19_objects_are_read_beside_a_run_that_saves_and_removes(tmp_path: Path) -> None:
    counters = {"updates": 0}
    checkpoint = Checkpointer(tmp_path, objects={"counters": counters}, keep=1)
    checkpoint.save(1)
    stop = threading.Event()

    def save() -> None:
        while not stop.is_set():
            counters["updates"] += 1
            checkpoint.save(counters["updates"] + 1)

    thread = threading.Thread(target=save)
    thread.start()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            for _ in range(50):
                load_objects(tmp_path, {"counters": {}})
    finally:
        stop.set()
        thread.join()


def test_case_b20_a_disk_that_is_full_at_the_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*words: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(durable.os, "fsync", full)
        with pytest.raises(O2OCheckpointError, match="No space left"):
            Recorder(tmp_path / "run", config={})
    Recorder(tmp_path / "run", config={}).close()


@pytest.mark.parametrize("size", [0, 1, 2**20, 2**20 + 1])
def test_case_b21_a_system_without_posix_fallocate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    monkeypatch.delattr(os, "posix_fallocate")
    path = tmp_path / "file"
    with path.open("wb") as file:
        file.truncate(size)
    durable.reserve(path)
    assert path.read_bytes() == bytes(size)
    assert path.stat().st_blocks * 512 >= size


# Links


@pytest.fixture
def theirs(tmp_path: Path) -> Iterator[Path]:
    """A folder of somebody else with a file in it, which must be there unchanged in the end."""
    folder = tmp_path / "theirs"
    folder.mkdir()
    for name in ("precious", "precious.pt", "precious.tmp"):
        (folder / name).write_text("precious")
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    yield folder
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


FILES = (
    ".lock",
    "metrics.jsonl",
    "run.json.tmp",
    "offending-batch.pt",
    "offending-batch.pt.tmp",
    "metrics.jsonl.damaged",
)
INNER = ("latest", "latest.tmp", ".lock", "step-4.tmp", "step-4.tmp/counters.pt", "segments/x.tmp", "segments/x.pt")


def attempt(act: Callable[[], Any]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with suppress(O2OCheckpointError):
            act()


@pytest.mark.parametrize("name", FILES)
def test_case_c24_a_link_in_the_place_of_a_file(tmp_path: Path, theirs: Path, name: str) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / name).symlink_to(theirs / "precious")

    def work() -> None:
        with Recorder(run, config={}, resume=True) as recorder:
            recorder.log(1, {"train/x": 1.0})
            state = recorder.state_dict()
            recorder.dump("offending-batch", TensorDict({"x": torch.ones(1)}, [1]))
            recorder.load_state_dict(state | {"blake2b": "other"})

    attempt(work)


@pytest.mark.parametrize("name", INNER)
def test_case_c24_a_link_among_the_checkpoints(tmp_path: Path, theirs: Path, name: str) -> None:
    root = tmp_path / "run"
    for parent in (root / "segments", (root / name).parent):
        parent.mkdir(parents=True, exist_ok=True)
    (root / name).symlink_to(theirs / "precious")
    attempt(lambda: saved_twice(root))


@pytest.mark.parametrize("name", ["", "segments", "step-4.tmp", "step-2", "step-2.broken", "step-9.broken"])
def test_case_c24_a_link_in_the_place_of_a_folder(tmp_path: Path, theirs: Path, name: str) -> None:
    root = tmp_path / "run"
    if name:
        root.mkdir()
    (root / name if name else root).symlink_to(theirs, target_is_directory=True)
    attempt(lambda: saved_twice(root, keep=1))
    attempt(lambda: Checkpointer(root, objects={"counters": {}}).restore())


@pytest.mark.parametrize("name", ["checkpoints", "checkpoints/segments"])
def test_case_c24_linked_folders_are_refused_by_name(tmp_path: Path, theirs: Path, name: str) -> None:
    link = tmp_path / "run" / name
    link.parent.mkdir(parents=True)
    link.symlink_to(theirs, target_is_directory=True)
    with pytest.raises(O2OCheckpointError, match=rf"{name}, a symbolic link to .*theirs"):
        Checkpointer(tmp_path / "run" / "checkpoints", objects={})


@pytest.mark.parametrize("options", [{"tensorboard": True}, {"wandb": {}}])
def test_case_c24_linked_folders_of_sinks(tmp_path: Path, theirs: Path, options: dict[str, Any]) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / next(iter(options))).symlink_to(theirs, target_is_directory=True)
    with pytest.raises(O2OCheckpointError, match="a symbolic link"):
        Recorder(tmp_path / "run", config={}, **options)
    Recorder(tmp_path / "run", config={}).close()


# Curves and reports

NAN = float("nan")


@pytest.mark.parametrize("position", [0, 1, 2, 3])
def test_case_a06_a_diverged_seed_is_not_cut_off(position: int) -> None:
    scores = np.insert([60.0, 70.0, 80.0], position, NAN)
    assert np.isnan(iqm(scores))
    assert np.isnan(iqm([scores, [1.0, 2.0, 3.0, 4.0]], axis=1)).tolist() == [True, False]
    low, high = stratified_bootstrap_interval(scores, generator=np.random.default_rng(0))
    assert np.isnan(low)
    assert np.isnan(high)


@pytest.mark.parametrize("position", range(4))
def test_case_a06_a_curve_with_a_nan(position: int) -> None:
    steps, scores = np.array([-10.0, 0.0, 5.0, 50.0]), np.array([1.0, 40.0, 30.0, 60.0])
    scores[position] = NAN
    assert np.isnan(dip(steps, scores)) == (position in (1, 2))
    assert np.isnan(gain(steps, scores)) == (position in (1, 3))
    assert np.isnan(regret(steps, scores)) == (position > 0)
    assert np.isnan(handover_score(steps, scores)) == (position == 1)


@pytest.mark.parametrize("bad", [NAN, float("inf")])
def test_case_a06_steps_that_are_none(bad: float) -> None:
    with pytest.raises(O2OSpecError, match="expected finite steps"):
        dip([0.0, 1.0, bad], [1.0, 2.0, 3.0])


def write_run(folder: Path, scores: Iterable[float], seed: int = 0, **config: Any) -> None:
    with Recorder(folder, config={"algorithm": "rlpd", "task": "door", **config}, seed=seed) as recorder:
        for step, score_ in enumerate(scores):
            recorder.log(100 * step, {"evaluation/return": score_})


def report(folder: Path) -> str:
    pytest.importorskip("matplotlib")
    return write_report([folder], folder / "out").read_text()


def test_case_a06_a_report_says_nan_where_a_seed_diverged(tmp_path: Path) -> None:
    for seed, last in enumerate((60.0, 70.0, 80.0, NAN)):
        write_run(tmp_path / str(seed), [10.0, 20.0, last], seed)
    text = report(tmp_path)
    assert "| door | rlpd | 4 | 200 | nan [nan, nan] | 0 | – | nan |" in text
    assert f"{tmp_path / '3'} measured NaN at step 200" in text


def test_case_b19_a_report_beside_a_run_that_saves(tmp_path: Path) -> None:
    write_run(tmp_path / "done", [1.0, 2.0])
    recorder = Recorder(tmp_path / "going", config={"algorithm": "rlpd", "task": "door"}, seed=1)
    checkpoint = Checkpointer(tmp_path / "going" / "checkpoints", objects={"recorder": recorder}, keep=1)
    stop = threading.Event()

    def run() -> None:
        step = 0
        while not stop.is_set():
            recorder.log(step, {"evaluation/return": 1.0})
            checkpoint.save(step)
            step += 100

    thread = threading.Thread(target=run)
    thread.start()
    try:
        for _ in range(300):
            assert len(find_runs([tmp_path])) == 2
        time.sleep(0.2)
        load_run(tmp_path / "going")
    finally:
        stop.set()
        thread.join()
        recorder.close()


def test_case_d_runs_that_have_nothing_to_report_yet_do_not_keep_the_others(tmp_path: Path) -> None:
    write_run(tmp_path / "a", [10.0, 20.0, 30.0], 0)
    write_run(tmp_path / "b", [10.0, 20.0, 32.0], 1)
    write_run(tmp_path / "c", [10.0], 2)
    write_run(tmp_path / "d", [], 3)
    write_run(tmp_path / "e", [10.0], 0, algorithm="iql")
    with pytest.warns(UserWarning, match="is skipped"):
        text = report(tmp_path)
    assert "| door | rlpd | 2 (+1 unfinished) | 200 | 31 [30, 32] |" in text
    assert f"{tmp_path / 'c'} is unfinished, at step 0: left out" in text
    assert "iql has one evaluation so far, at step 0: no curve" in text


def test_case_d_one_seed_has_no_interval_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[Any] = []
    monkeypatch.setattr("torchrl_o2o.record.report.draw_panels", lambda panels, path: drawn.extend(panels))
    write_run(tmp_path / "a", [10.0, 20.0, 30.0])
    text = report(tmp_path)
    assert "| door | rlpd | 1 | 200 | 30 | 0 | – | 20 |" in text
    assert "95 %" not in text
    assert drawn[0].curves[0].low is None


def test_case_d_labels_name_nothing_cosmetic(tmp_path: Path) -> None:
    for seed in (0, 1):
        own = {"run_dir": f"runs/{seed}", "num_threads": seed, "recorder": {"tensorboard": bool(seed)}}
        write_run(tmp_path / f"a{seed}", [1.0, 2.0], seed, utd_ratio=20, **own)
        write_run(tmp_path / f"b{seed}", [1.0, 2.0], seed, utd_ratio=1, schedule={"log_every": seed}, **own)
    groups = group_runs([load_run(folder) for folder in find_runs([tmp_path])])
    assert [(group.label, len(group.runs)) for group in groups] == [("rlpd utd_ratio=20", 2), ("rlpd utd_ratio=1", 2)]


def test_case_d_figures_show_whole_labels_and_plain_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    figure = pytest.importorskip("matplotlib.figure")
    kept: list[Any] = []
    real = figure.Figure.savefig
    monkeypatch.setattr(figure.Figure, "savefig", lambda self, *a, **k: (kept.append(self), real(self, *a, **k)))
    labels = [f"rlpd {number} with_a_long_key=and a long value that continues" for number in range(5)]
    curves = [Curve(label, np.arange(3), 1000 + np.arange(3) / 1e3) for label in labels]
    draw_panels([Panel("door", "return", curves)], tmp_path / "a.png")
    (drawn,) = kept
    (legend,) = drawn.legends
    box, frame = legend.get_window_extent(), drawn.bbox
    assert frame.x0 <= box.x0 < box.x1 <= frame.x1
    assert frame.y0 <= box.y0 < box.y1 <= frame.y1
    assert legend.get_title().get_text() == "", "no interval is claimed where none is drawn"
    drawn.canvas.draw()
    assert drawn.axes[0].yaxis.get_offset_text().get_text() == ""


@pytest.mark.parametrize("number", [NAN, float("inf"), -float("inf")])
def test_case_d_json_knows_no_nan(number: float) -> None:
    text = data._json({"a": {"b": (number, 1.0)}, "c": np.float32(number)})
    assert json.loads(text, parse_constant=pytest.fail) == {"a": {"b": [str(number), 1.0]}, "c": str(number)}
