# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""What is recorded about a run, and what is kept out."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections import UserDict
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import torch

from torchrl_o2o.errors import O2OSpecError
from torchrl_o2o.provenance import describe_run, git_commit, package_versions, plain_config, plain_number


@dataclass
class Optim:
    lr: float = 3e-4
    betas: tuple[float, float] = (0.9, 0.999)


@dataclass
class Config:
    optim: Optim = field(default_factory=Optim)
    data: Path = Path("a/b")
    target: float = -math.inf


def test_nested_dataclasses_and_mappings_become_json():
    expected = {"optim": {"lr": 3e-4, "betas": [0.9, 0.999]}, "data": "a/b", "target": "-inf"}
    assert plain_config(Config()) == expected
    assert plain_config(UserDict(data=Path("a"), nested=UserDict(n=np.int64(3)))) == {"data": "a", "nested": {"n": 3}}
    assert json.loads(json.dumps(plain_config(Config()), allow_nan=False)) == expected


def test_hydra_configuration_becomes_json():
    omegaconf = pytest.importorskip("omegaconf")
    config = omegaconf.OmegaConf.create({"optim": {"lr": 0.1, "betas": [1, 2]}, "twice": "${optim.lr}"})
    assert plain_config(config) == {"optim": {"lr": 0.1, "betas": [1, 2]}, "twice": 0.1}


@pytest.mark.parametrize("value", [torch.optim.Adam, object(), {1, 2}, torch.zeros(2)])
def test_what_json_cannot_hold_is_refused_naming_the_key(value):
    with pytest.raises(O2OSpecError, match=r"config value optim\.0 is a "):
        plain_config({"optim": [value]})


def test_configuration_must_have_names():
    with pytest.raises(O2OSpecError, match="a list as config"):
        plain_config([1])


@pytest.mark.parametrize("value", [0, 1.5, math.nan, math.inf, -math.inf])
def test_numbers_survive_json(value):
    back = float(json.loads(json.dumps(plain_number(value), allow_nan=False)))
    assert back == value or (math.isnan(back) and math.isnan(value))


def test_versions_are_those_that_are_imported():
    versions = package_versions()
    assert torch.__version__.startswith(versions["torch"])  # a CUDA build may add "+cu130" to its release
    assert versions["numpy"] == np.__version__
    assert versions["python"] == ".".join(map(str, sys.version_info[:3]))


@pytest.fixture
def checkout(tmp_path):
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b"]
    (tmp_path / "train.py").write_text("1")
    for words in (["init", "-q"], ["add", "train.py"], ["commit", "-q", "-m", "one"]):
        subprocess.run([*git, *words], check=True)
    return tmp_path


def test_commit_is_dirty_when_a_tracked_file_differs(checkout):
    clean = git_commit(checkout)
    (checkout / "notes").write_text("untracked")
    assert git_commit(checkout) == clean
    (checkout / "train.py").write_text("2")
    assert git_commit(checkout) == {"hash": clean["hash"], "dirty": True}
    assert (len(clean["hash"]), clean["dirty"]) == (40, False)


def test_commit_is_that_of_the_script(checkout, monkeypatch):
    monkeypatch.setattr(sys, "argv", [str(checkout / "train.py"), "name=two words"])
    run = describe_run({})
    assert run["commit"] == git_commit(checkout)
    assert run["command"].endswith("train.py 'name=two words'")


def test_no_git_is_no_commit(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert git_commit(tmp_path) is None
