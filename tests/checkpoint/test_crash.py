# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Killed anywhere within a save, a run loses no more than that save, and leaves nothing behind.

The runs are killed in processes of their own: at every single operation on the file system in turn, and by ``kill -9``
at random instants.
"""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import sys
import time
from pathlib import Path

import pytest
import torch

from tests.checkpoint.tiny_run import OFFLINE, Run, new_buffer, rows, uninterrupted
from torchrl_o2o.checkpoint import Checkpointer
from torchrl_o2o.record.files import read_metrics

# Processes from a server that has imported torch already: fast to start, and no thread is forked.
PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["tests.checkpoint.tiny_run"])
#: What a save does to the file system, as Python announces it.
OPERATIONS = frozenset({"open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.truncate"})
#: Rows of the online buffer by kind of save.
ROWS = {"buffer": 20, "large buffer": 100_000}


def crash_at(operation: int, folder: Path) -> None:
    """From now on count operations below the folder, and die without any cleaning up before the given one."""
    count = 0

    def hook(event, arguments):
        nonlocal count
        if event in OPERATIONS and str(folder) in str(arguments[0]):
            if count == operation:
                os._exit(9)
            count += 1

    sys.addaudithook(hook)


def save_and_crash(folder: Path, operation: int) -> None:
    run = Run(folder, resume=True)
    run.train(4)
    crash_at(operation, folder)
    run.save()
    (folder / "survived").touch()


def in_process(target, *arguments) -> int:
    process = PROCESSES.Process(target=target, args=arguments)
    process.start()
    process.join()
    return process.exitcode


def litter(root: Path) -> list[Path]:
    return [path for path in root.rglob("*") if path.suffix in (".tmp", ".broken")]


@pytest.mark.parametrize("stride", [pytest.param(1, marks=pytest.mark.slow), 3])
def test_crash_before_every_operation_of_a_save(tmp_path, stride):
    folder = tmp_path / "run"
    start = Run(folder)
    for _ in range(3):  # the next save also removes a checkpoint and segments
        start.train(8).save()
    start.close()
    expected = uninterrupted(tmp_path / "whole", 60)
    step, operation = 24, 0
    while not (folder / "survived").exists():
        assert in_process(save_and_crash, folder, operation) in (0, 9)
        run = Run(folder, resume=True)
        assert run.restored in (step, step + 4)
        assert litter(folder / "checkpoints") == []
        step = run.restored
        run.close()
        operation += stride
    assert operation > 25
    assert step <= 60
    run = Run(folder, resume=True).train(60 - step)
    torch.testing.assert_close(run.everything(), expected, rtol=0, atol=0)
    run.close()
    assert [row["step"] for row in read_metrics(folder)] == list(range(1, 61))


def save_forever(folder: Path, kind: str) -> None:
    """Save as fast as possible; ``progress`` says how far it got."""
    state = {"step": 0, "weights": torch.zeros(20_000 if kind == "agent" else 10)}
    buffer = None if kind == "agent" else new_buffer(online=ROWS[kind])
    checkpoint = Checkpointer(folder / "checkpoints", objects={"state": state}, buffer=buffer)
    if checkpoint.restore() is None and buffer is not None:
        buffer.extend(rows(0, ROWS[kind]))
    while True:
        state["step"] += 1
        state["weights"].fill_(state["step"])
        if buffer is not None:
            buffer.extend(rows(buffer.writer.total_written, 1 + state["step"] % 7))
        checkpoint.save(state["step"])
        with open(folder / "progress", "a") as file:
            file.write(f"{state['step']}\n")


def check_kills(folder: Path, kind: str, kills: int) -> None:
    rng = random.Random(kind)
    for _ in range(kills):
        process = PROCESSES.Process(target=save_forever, args=(folder, kind))
        before = (folder / "progress").read_text() if (folder / "progress").exists() else ""
        process.start()
        while (folder / "progress").exists() is False or (folder / "progress").read_text() == before:
            time.sleep(0.002)
            assert process.is_alive(), "the saver failed by itself"
        time.sleep(rng.uniform(0, 0.06))
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        check_after_kill(folder, kind)


def check_after_kill(folder: Path, kind: str) -> None:
    state = {}
    buffer = None if kind == "agent" else new_buffer(online=ROWS[kind])
    step = Checkpointer(folder / "checkpoints", objects={"state": state}, buffer=buffer).restore()
    saved = int((folder / "progress").read_text().split()[-1])
    assert step == state["step"]
    assert saved <= step <= saved + 1
    assert (state["weights"] == step).all()
    assert litter(folder / "checkpoints") == []
    if buffer is not None:
        total = buffer.writer.total_written
        numbers = buffer.storage[OFFLINE:]["observation"][:, 0].sort().values
        torch.testing.assert_close(numbers, torch.arange(max(0, total - len(numbers)), total, dtype=torch.float32))


@pytest.mark.parametrize("kind", ["agent", "buffer"])
def test_kill_at_random_instants(tmp_path, kind):
    check_kills(tmp_path, kind, kills=5)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["agent", "buffer", "large buffer"])
def test_kill_at_a_hundred_random_instants(tmp_path, kind):
    check_kills(tmp_path, kind, kills=100)
