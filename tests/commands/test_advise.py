# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from torchrl_o2o.commands.cli import main
from torchrl_o2o.data import load, make_local_dataset
from torchrl_o2o.deploy import save_policy
from torchrl_o2o.modules import make_actor

SOURCE = "o2o/hopper/random-v0"


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    make_local_dataset(SOURCE, num_steps=300, root=tmp_path)
    return SOURCE


def test_of_a_data_set(data: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["advise", data]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith(f"{data}: 300 transitions in ")
    assert any(line.startswith("Use rlpd") for line in lines)
    assert len(lines) <= 10
    assert lines[-1].startswith("The returns alone do not show")


def test_of_a_data_set_and_a_policy(data: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    policy = save_policy(tmp_path / "policy.pt", make_actor(11, 3, hidden_sizes=(8,)), env="Hopper-v5")
    assert main(["advise", data, "--policy", str(policy), "--episodes", "3"]) == 0
    out = capsys.readouterr().out
    assert "3 episodes, mean return" in out
    assert "The policy's mean return minus the data's" in out
    assert len(out.splitlines()) <= 10


def test_the_returns_are_those_of_all_rows_and_the_data_are_read_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without next observations each episode's last row is no transition; its reward counts all the same."""
    ends = np.arange(40) % 10 == 9
    np.savez(
        tmp_path / "log.npz", observations=np.random.default_rng(0).normal(size=(40, 3)), actions=np.zeros((40, 1)),
        rewards=100.0 * ends, terminals=np.zeros(40), timeouts=ends,
    )  # fmt: skip
    read, times = load.read_source, []
    monkeypatch.setattr(load, "read_source", lambda *words: times.append(1) or read(*words))
    assert main(["advise", f"path:{tmp_path / 'log.npz'}"]) == 0
    assert "Best recorded return 100, mean 100" in capsys.readouterr().out
    assert len(times) == 1
