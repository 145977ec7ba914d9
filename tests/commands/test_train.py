# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
from __future__ import annotations

import subprocess

import pytest

from torchrl_o2o.commands.cli import main


@pytest.fixture
def commands(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """What would have been run."""
    seen: list[list[str]] = []

    def run(command: list[str], **_: object) -> subprocess.CompletedProcess:
        seen.append(command)
        return subprocess.CompletedProcess(command, 3)

    monkeypatch.setattr(subprocess, "run", run)
    return seen


def test_overrides_and_options_of_hydra_reach_the_script(commands: list[list[str]]) -> None:
    assert main(["train", "rlpd", "seed=1", "--cfg", "job"]) == 3
    assert commands[0][-3:] == ["seed=1", "--cfg", "job"]
    assert commands[0][-4].endswith("rlpd.py")


def test_unknown_scripts_are_named(commands: list[list[str]], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "rlpdd"]) == 2
    assert "there are a3rl, " in capsys.readouterr().err
    assert not commands
