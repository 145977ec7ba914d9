# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Cases 15 to 23, 27, 30 and 31: killed, damaged, full, read-only, interrupted, twice at once, not finite."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pytest
import torch

import torchrl_o2o.data.datasets.cache as cache
from tests.checkpoint.test_checkpointer import cut, flip, no_space
from tests.checkpoint.test_crash import PROCESSES, ROWS, check_kills, in_process, litter
from tests.checkpoint.test_whole_run import OFFLINE_UPDATES, Training
from tests.checkpoint.tiny_run import Run, assert_identical, uninterrupted
from tests.record.test_sinks import FakeWandb
from tests.scripts.phases import newest
from tests.scripts.running import ROOT, compose, script_of
from torchrl_o2o import durable
from torchrl_o2o.checkpoint import Checkpointer, folders
from torchrl_o2o.checkpoint.manifest import read_manifest, write_manifest
from torchrl_o2o.data import make_local_dataset
from torchrl_o2o.errors import O2OCheckpointError, O2ODataError
from torchrl_o2o.functional.diagnostics import NonFiniteError
from torchrl_o2o.record.files import read_metrics
from torchrl_o2o.record.recorder import Recorder
from torchrl_o2o.testing import random_transitions
from torchrl_o2o.trainers import options
from torchrl_o2o.trainers.interrupt import graceful_exit, resume_command
from torchrl_o2o.updates import Update

KINDS = ("agent", *ROWS)


@pytest.fixture
def small_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The data set of the script's CPU task, in small."""
    pytest.importorskip("mujoco")
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))
    return make_local_dataset("o2o/halfcheetah/linear-mix-v0", num_steps=2000, root=tmp_path / "minari")


@pytest.mark.parametrize(("kind", "kills"), list(zip(KINDS, (4, 3, 3), strict=True)))
def test_case_15_kill_9_at_random_instants_of_a_save(tmp_path: Path, kind: str, kills: int) -> None:
    check_kills(tmp_path, kind, kills)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_case_15_kill_9_at_a_hundred_random_instants_of_a_save(tmp_path: Path, kind: str) -> None:
    check_kills(tmp_path, kind, kills=100)


def die_after_the_rename(folder: Path) -> None:
    run = Run(folder, resume=True).train(4)
    folders.replace_durably = lambda path, data: os._exit(9)
    run.save()


def test_case_16_killed_between_the_checkpoint_and_its_pointer(tmp_path: Path) -> None:
    Run(tmp_path / "run").train(4).save().close()
    assert in_process(die_after_the_rename, tmp_path / "run") == 9
    root = tmp_path / "run" / "checkpoints"
    assert (root / "latest").read_text() == "step-4"
    run = Run(tmp_path / "run", resume=True)
    assert run.restored == 8, "the newest complete one counts, not the pointer"
    assert litter(root) == []
    assert_identical(run.train(4).save().everything(), uninterrupted(tmp_path / "whole", 12))


@pytest.mark.parametrize("harm", [cut, flip, Path.unlink], ids=["cut", "flipped", "missing"])
def test_case_17_damaged_newest_checkpoint(tmp_path: Path, harm) -> None:
    Run(tmp_path / "run").train(4).save().train(4).save().close()
    harm(tmp_path / "run" / "checkpoints" / "step-8" / "optim.pt")
    with pytest.warns(UserWarning, match=r"THE CHECKPOINT OF STEP 8 IS DAMAGED: .*optim\.pt"):
        run = Run(tmp_path / "run", resume=True)
    assert run.restored == 4
    assert_identical(run.train(4).everything(), uninterrupted(tmp_path / "whole", 8))


def test_case_18_disk_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run(tmp_path / "run").train(4).save().train(4)
    with monkeypatch.context() as patch:
        patch.setattr(durable.os, "fsync", lambda descriptor: no_space())
        with pytest.raises(O2OCheckpointError, match=r"step 8 cannot be written .*No space left.*make room"):
            run.save()
    assert folders.steps(tmp_path / "run" / "checkpoints") == [4]
    run.train(2).save().close()
    assert_identical(Run(tmp_path / "run", resume=True).everything(), uninterrupted(tmp_path / "whole", 10))


def convert_more_than_fits(folder: Path) -> None:
    (folder / "source.json").write_text("{}")
    data = random_transitions(200_000, 17, 6).set("episode", torch.zeros(200_000, dtype=torch.long))
    raw = cache.RawDataset(data, cache.SourceMeta("large"))
    with pytest.warns(UserWarning, match=r"cannot keep converted data .*No space left"):
        read = cache.cached(folder / "cache", [folder / "source.json"], {}, lambda: raw)
    assert len(read.data) == 200_000
    assert list((folder / "cache").iterdir()) == []


def test_case_18_six_megabytes_of_disk(tmp_path: Path) -> None:
    mount = ["mount", "-t", "tmpfs", "-o", "size=6m", "tmpfs", str(tmp_path)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("a small file system can only be mounted by root")
    try:
        state = {"weights": torch.rand(100)}
        checkpoint = Checkpointer(tmp_path, objects={"state": state})
        checkpoint.save(1)
        state["weights"] = torch.rand(4_000_000)
        with pytest.raises(O2OCheckpointError, match="No space left"):
            checkpoint.save(2)
        assert checkpoint.restore() == 1
        assert in_process(convert_more_than_fits, tmp_path) == 0, "a mapped write would end in SIGBUS"
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)


def make_more_than_fits(folder: Path) -> None:
    with pytest.raises(O2ODataError, match=r"no room for the data set's .* MB \(No space left on device\); make room"):
        make_local_dataset("o2o/hopper/random-v0", root=folder)
    assert [path for path in folder.rglob("*") if path.is_file()] == []


def test_case_b20_making_a_data_set_on_a_full_disk(tmp_path: Path) -> None:
    mount = ["mount", "-t", "tmpfs", "-o", "size=6m", "tmpfs", str(tmp_path)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("a small file system can only be mounted by root")
    try:
        assert in_process(make_more_than_fits, tmp_path) == 0, "HDF5 would end the interpreter"
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)


def start_where_nothing_may_be_written(folder: Path) -> None:
    if os.geteuid() == 0:
        os.seteuid(65534)  # root may write everywhere
    for start in (lambda: Recorder(folder, config={}), lambda: Checkpointer(folder, objects={})):
        try:
            start()
        except O2OCheckpointError as error:
            if "writable" in str(error):
                continue
        sys.exit(1)


def test_case_19_read_only_folder() -> None:
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o555)
    try:
        assert in_process(start_where_nothing_may_be_written, folder) == 0
    finally:
        folder.chmod(0o755)
        shutil.rmtree(folder)


def test_case_20_checkpoint_of_another_run(tmp_path: Path) -> None:
    def checkpointer(config: dict, width: int = 3) -> Checkpointer:
        return Checkpointer(tmp_path, objects={"net": torch.nn.Linear(width, 1)}, config=config)

    checkpointer({"algorithm": "awac"}).save(1)
    with pytest.raises(O2OCheckpointError, match="algorithm is 'awac' in the checkpoint and 'rlpd' now"):
        checkpointer({"algorithm": "rlpd"}).restore()
    with pytest.raises(O2OCheckpointError, match=r"'net' .*does not fit this run's Linear"):
        checkpointer({"algorithm": "awac"}, width=5).restore()
    body = read_manifest(tmp_path / "step-1")
    body["versions"]["torchrl"] = "0.1"
    write_manifest(tmp_path / "step-1", body)
    with pytest.warns(UserWarning, match=r"torchrl 0\.1 then"):
        assert checkpointer({"algorithm": "awac"}).restore() == 1


def train_until_asked(folder: Path, deaf: bool) -> None:
    run = Run(folder)
    with graceful_exit() as interrupt:
        while deaf or not interrupt.requested:
            run.train(1)
            time.sleep(0.01)
        run.save().close()
        (folder / "said").write_text(resume_command())
    sys.exit(interrupt.exit_code)


@pytest.mark.parametrize(
    ("signals", "code"), [([signal.SIGTERM], 143), ([signal.SIGINT], 130), ([signal.SIGINT, signal.SIGINT], 1)]
)
def test_case_21_asked_to_stop(tmp_path: Path, signals: list[signal.Signals], code: int) -> None:
    process = PROCESSES.Process(target=train_until_asked, args=(tmp_path, len(signals) == 2))
    process.start()
    while not (tmp_path / "metrics.jsonl").exists() or len(read_metrics(tmp_path)) < 3:
        time.sleep(0.01)
        assert process.is_alive()
    began = time.monotonic()
    for number in signals:
        os.kill(process.pid, number)
        time.sleep(0.2)
    process.join(20)
    assert process.exitcode == code  # 1: a KeyboardInterrupt, at once
    assert time.monotonic() - began < 5
    if len(signals) == 1:
        assert (tmp_path / "said").read_text().endswith("resume=true")
        assert Run(tmp_path, resume=True).restored == len(read_metrics(tmp_path))


@pytest.mark.filterwarnings("ignore:a batch at offline_fraction")
def test_case_22_resumed_offline_at_the_switch_and_twice_in_mid_episode(tmp_path: Path) -> None:
    pytest.importorskip("mujoco")
    whole = Training(tmp_path / "whole", "Hopper-v5")
    assert whole.run() == 0
    expected = whole.everything()
    parts = Training(tmp_path / "parts", "Hopper-v5")
    for stop in (7, OFFLINE_UPDATES, 34, 35):
        assert parts.run(signal_at=stop) == 143
        parts = Training(tmp_path / "parts", "Hopper-v5", resume=True)
        assert parts.restored == stop
    assert parts.run() == 0
    torch.testing.assert_close(parts.everything(), expected, rtol=0, atol=0)


def small_script_run(folder: Path, *words: str) -> None:
    words += (
        "task=halfcheetah",
        "data=linear-mix-v0",
        "preset=cpu",
        "compile=false",
        f"run_dir={folder}",
        "online.batch_size=8",
    )
    words += ("actor.hidden_sizes=[16]", "qvalue.hidden_sizes=[16]", "offline.num_steps=6", "schedule.eval_every=100")
    words += ("online.total_frames=100", "online.init_random_frames=5", "evaluation.num_episodes=1")
    script_of("rlpd").train(compose("rlpd", *words, "schedule.log_every=1"))


@pytest.mark.parametrize("stop", [0, *(pytest.param(stop, marks=pytest.mark.slow) for stop in (3, 6, 9))])
def test_case_22_the_script_asked_to_stop_by_a_signal(
    tmp_path: Path, small_data: Path, monkeypatch: pytest.MonkeyPatch, stop: int
) -> None:
    """During the first evaluation (0), offline (3), at the last offline update (6) and online (9)."""
    small_script_run(tmp_path / "whole")
    update, evaluate, count = Update.__call__, options.evaluate, iter(range(1, 10**6))

    def asked(self, batch):
        if next(count) == stop:
            os.kill(os.getpid(), signal.SIGTERM)
        return update(self, batch)

    def asked_at_first(*arguments, **options):
        os.kill(os.getpid(), signal.SIGTERM)
        return evaluate(*arguments, **options)

    with monkeypatch.context() as patched:
        patched.setattr(Update, "__call__", asked)
        if stop == 0:
            patched.setattr(options, "evaluate", asked_at_first)
        with pytest.raises(SystemExit) as caught:
            small_script_run(tmp_path / "parts")
    assert caught.value.code == 143
    small_script_run(tmp_path / "parts", "resume=true")
    assert_identical(newest(tmp_path / "parts", "loss"), newest(tmp_path / "whole", "loss"))
    rows = [[row | {"time": 0} for row in read_metrics(tmp_path / name)] for name in ("parts", "whole")]
    assert rows[0] == rows[1]


def train_and_close(folder: Path) -> None:
    torch.set_num_threads(1)
    Training(folder, "Hopper-v5").run()


@pytest.mark.filterwarnings("ignore:a batch at offline_fraction")
def test_case_23_one_seed_two_processes(tmp_path: Path) -> None:
    pytest.importorskip("mujoco")
    for name in ("first", "second"):
        assert in_process(train_and_close, tmp_path / name) == 0
    first, second = ([row | {"time": 0} for row in read_metrics(tmp_path / name)] for name in ("first", "second"))
    assert first == second
    assert len(first) > OFFLINE_UPDATES
    assert "Numbers of threads" in (ROOT / "docs/robustness.md").read_text()


def test_case_27_an_update_that_is_not_finite(tmp_path: Path) -> None:
    pytest.importorskip("mujoco")
    run = Training(tmp_path, "Hopper-v5")
    run.checkpoint.save(1)
    before = {name: value.clone() for name, value in run.loss.state_dict().items()}
    run.buffer.storage._storage["next", "reward"][:] = np.nan
    with run.recorder:
        batch = run.buffer.sample()
        run.buffer.sample = lambda: batch
        with (
            pytest.raises(
                NonFiniteError, match=r"loss_qvalue \(1 of 1 values\).*The batch is in .*offending-batch\.pt"
            ),
            run.recorder.dump_if_not_finite(batch),
        ):
            run.update()
    assert_identical(dict(run.loss.state_dict()), before)
    dumped = torch.load(tmp_path / "offending-batch.pt", weights_only=True)
    assert torch.equal(dumped["observation"], batch["observation"])
    assert folders.verify(tmp_path / "checkpoints", 1)["step"] == 1


def test_case_27_the_script_keeps_the_batch_and_says_how_to_go_on(tmp_path: Path, small_data: Path) -> None:
    words = [
        "task=halfcheetah",
        "data=linear-mix-v0",
        "preset=cpu",
        "compile=false",
        f"run_dir={tmp_path / 'run'}",
        "schedule.checkpoint_every=3",
    ]
    words += [
        "online.batch_size=8",
        "online.init_random_frames=10",
        "convention.reward_scale=1e30",
    ]  # its square overflows
    words += ["online.total_frames=400", "evaluation.num_episodes=1", "evaluation.num_envs=1"]
    command = [sys.executable, str(ROOT / "sota-implementations/rlpd/rlpd.py"), *words]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1
    message = done.stderr[done.stderr.index("NonFiniteError: not finite: loss_qvalue") :]
    assert "Traceback" not in message
    assert "resume=true" in message
    assert folders.verify(tmp_path / "run" / "checkpoints", 9)["step"] == 9
    assert torch.load(tmp_path / "run" / "offending-batch.pt", weights_only=True)["next"]["reward"].abs().max() > 1e20


def test_case_30_wandb_without_key_or_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeWandb()
    monkeypatch.setitem(sys.modules, "wandb", fake)
    with pytest.warns(UserWarning, match="WANDB IS OFFLINE"):
        recorder = Recorder(tmp_path, config={}, wandb={"project": "p"})
    with recorder:
        recorder.log(1, {"train/loss": 1.0})
    assert read_metrics(tmp_path)[0]["train/loss"] == 1.0
    assert fake.rows == [{"step": 1, "train/loss": 1.0}]


def test_case_31_two_runs_in_one_folder(tmp_path: Path) -> None:
    first = Run(tmp_path)
    with pytest.raises(O2OCheckpointError, match=rf"in use by process {os.getpid()} .*stop that run"):
        Run(tmp_path, resume=True)
    first.train(1).save().close()
    with pytest.raises(O2OCheckpointError, match="already contains a run"):
        Run(tmp_path)
    assert Run(tmp_path, resume=True).restored == 1
