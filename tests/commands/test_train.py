# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
from __future__ import annotations

import os
import sys

import pytest

from torchrl_o2o.commands.cli import main


class Became(Exception):
    """Raised in place of becoming another program."""


@pytest.fixture
def commands(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """What the process would have become."""
    seen: list[list[str]] = []

    def become(program: str, command: list[str]) -> None:
        assert program == command[0] == sys.executable
        seen.append(command)
        raise Became

    monkeypatch.setattr(os, "execv", become)
    return seen


def test_overrides_and_options_of_hydra_reach_the_script(commands: list[list[str]]) -> None:
    with pytest.raises(Became):
        main(["train", "rlpd", "seed=1", "--cfg", "job"])
    assert commands[0][-3:] == ["seed=1", "--cfg", "job"]
    assert commands[0][-4].endswith("rlpd.py")


@pytest.mark.parametrize("name", ["rlpd_seeds", "rlpd/rlpd_seeds"])
def test_other_scripts_of_a_folder(name: str, commands: list[list[str]]) -> None:
    with pytest.raises(Became):
        main(["train", name, "seeds=[0,1,2]"])
    assert commands[0][-1] == "seeds=[0,1,2]"
    assert commands[0][-2].endswith("rlpd/rlpd_seeds.py")


@pytest.mark.parametrize("name", ["rlpdd", "a3rl/rlpd", "", "../rlpd"])
def test_unknown_scripts_are_named(name: str, commands: list[list[str]], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", name]) == 2
    assert "expected one of a3rl, " in capsys.readouterr().err
    assert not commands
