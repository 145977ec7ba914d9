# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from torchrl_o2o.commands.cli import main
from torchrl_o2o.errors import O2OSpecError
from torchrl_o2o.scripts import check_config_dirs


class Became(Exception):
    """Raised in the place of becoming another program."""


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
    assert "there are a3rl, " in capsys.readouterr().err
    assert not commands


FOREIGN = {
    "callbacks": ("task/mine.yaml", "env: {}\nhydra: {callbacks: {x: {_target_: os.mkdir, name: was_here}}}"),
    "a quoted key": ("task/mine.yaml", '"\\x68ydra": {callbacks: {x: {_target_: os.mkdir}}}'),
    "a dotted key": ("task/mine.yaml", "hydra.callbacks: {x: {_target_: os.mkdir}}"),
    "a second document": ("task/mine.yaml", "env: {}\n---\nhydra: {}"),
    "the package": ("task/mine.yaml", "# @package hydra.callbacks.x\n_target_: os.mkdir"),
    "a default's package": ("task/mine.yaml", "defaults:\n  - /domain@hydra.callbacks.x: maze\n"),
    "a default": ("mine.yaml", "defaults:\n  - rlpd\n  - override hydra/launcher: joblib\n"),
    "a group of its own": ("hydra/callbacks/mine.yaml", "x: {_target_: os.mkdir}"),
    "not YAML": ("task/mine.yaml", "a: [1"),
}


@pytest.mark.parametrize(
    "form",
    [
        "--config-dir={}",
        "--config-dir {}",
        "-cd {}",
        "--config-path={}",
        "-cp {}",
        "--config-d {}",
        "hydra.searchpath=[file://{}]",
    ],
)
@pytest.mark.parametrize("name", ["callbacks", "a group of its own"])
def test_folders_of_settings_are_looked_at(
    name: str, form: str, tmp_path: Path, commands: list[list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path, *FOREIGN[name])
    assert main(["train", "rlpd", *form.format(tmp_path).split(), "task=mine"]) == 2
    assert "configures Hydra itself (hydra" in capsys.readouterr().err
    assert not commands


@pytest.mark.parametrize("name", FOREIGN)
def test_settings_files_that_configure_hydra_are_refused(name: str, tmp_path: Path) -> None:
    """Through hydra.callbacks, a task file from elsewhere would run code."""
    write(tmp_path, *FOREIGN[name])
    with pytest.raises(O2OSpecError, match=r"configures Hydra itself|cannot be read as YAML"):
        check_config_dirs(["--config-dir", str(tmp_path)])


def test_other_settings_files_are_taken(tmp_path: Path, commands: list[list[str]]) -> None:
    write(tmp_path, "task/mine.yaml", "# @package _global_\n# for Hydra\nenv: {env_id: Hopper-v5}\ntask_name: mine\n")
    with pytest.raises(Became):
        main(["train", "rlpd", "--config-dir", str(tmp_path), "task=mine"])


def write(folder: Path, name: str, text: str) -> None:
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(text)
