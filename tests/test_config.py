# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
from __future__ import annotations

from dataclasses import dataclass, make_dataclass

import pytest

from torchrl_o2o.config import parse_config
from torchrl_o2o.errors import O2OSpecError


@dataclass
class Config:
    seed: int = 0
    lr: float = 1e-3
    hidden_sizes: tuple[int, ...] = (64, 64)
    env: str = "HalfCheetah-v5"


def test_fields_are_typed() -> None:
    config = parse_config(Config, ["seed=3", "lr=1e-4", "hidden_sizes=[8,8,8]", "env=o2o/PointMaze-Medium-v0"])
    assert config == Config(3, 1e-4, (8, 8, 8), "o2o/PointMaze-Medium-v0")
    assert parse_config(Config, []) == Config()


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("sedd=1", "unknown setting 'sedd'; did you mean seed"),
        ("seed", "got 'seed', expected field=value"),
        ("seed=many", "seed=many"),
        ("--seed=1", "unknown setting '--seed'"),
    ],
)
def test_refusals(word: str, message: str) -> None:
    with pytest.raises(O2OSpecError, match=message):
        parse_config(Config, [word])


@pytest.mark.parametrize("word", ["-h", "--help"])
def test_help_lists_the_fields_and_ends(word: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        parse_config(Config, ["seed=1", word])
    assert ended.value.code == 0
    text = capsys.readouterr().out
    assert "seed=0  (int)" in text
    assert "hidden_sizes=(64, 64)  (tuple[int, ...])" in text


def test_help_names_types_that_are_no_strings(capsys: pytest.CaptureFixture[str]) -> None:
    schema = make_dataclass("Schema", [("seed", int, 0), ("sizes", tuple[int, ...], (8,))])
    with pytest.raises(SystemExit):
        parse_config(schema, ["-h"])
    assert "  seed=0  (int)\n  sizes=(8,)  (tuple[int, ...])\n" in capsys.readouterr().out
