# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""A script's configuration outside of the script."""

from __future__ import annotations

import copy
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from hydra.core.config_store import ConfigStore
from omegaconf import OmegaConf

from torchrl_o2o.errors import O2OSpecError
from torchrl_o2o.scripts import script_config, start
from torchrl_o2o.trainers.launch import accept_actors, accept_seeds


def test_it_is_what_the_command_line_composes() -> None:
    cfg = script_config("rlpd_seeds", ["task=hopper", "preset=cpu", "utd_ratio=3"])
    assert (cfg.env.env_id, cfg.utd_ratio, cfg.actor.hidden_sizes) == ("Hopper-v5", 3, [64, 64])
    assert not OmegaConf.missing_keys(cfg)
    cfg.utd_ratio = 7
    assert script_config("rlpd", ["utd_ratio=3"]).utd_ratio == 3


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["presett=cpu"], r"Could not override 'presett'\. \(in presett=cpu\); the settings .* are in .*awac$"),
        (["preset=cpuu"], "Could not find 'preset/cpuu'"),
        (["a b"], r"\(in a b\)"),
    ],
)
def test_what_hydra_refuses_is_said_in_a_line(words: list[str], said: str) -> None:
    with pytest.raises(O2OSpecError, match=said):
        script_config("awac", words)


def test_a_section_that_is_null_where_a_library_has_a_group_of_its_name_is_explained(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As after register_with_torchrl(); Hydra's error named neither the word nor a way out."""
    script_config("awac")  # Hydra's plugins enter the store when they are first needed, and would leave it below
    store = ConfigStore.instance()
    without = {name: group for name, group in store.repo.items() if name != "env"}  # another test may have registered
    monkeypatch.setattr(store, "repo", copy.deepcopy(without))
    assert script_config("awac", ["env=null"]).env is None
    store.store(group="env", name="theirs", node={"x": 1})
    with pytest.raises(O2OSpecError, match=r"\(in env=null\), .* register_with_torchrl\(\) .* as in cfg.env = None"):
        script_config("awac", ["env=null"])
    assert script_config("awac", ["env.env_id=Hopper-v5"]).env.env_id == "Hopper-v5"


def test_settings_files_from_elsewhere_are_looked_at_first(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("hydra: {callbacks: {mine: {_target_: os.getcwd}}}")
    with pytest.raises(O2OSpecError, match="configures Hydra itself"):
        script_config("awac", [f"hydra.searchpath=[file://{tmp_path}]"])


def test_without_hydra_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "hydra", None)
    with pytest.raises(O2OSpecError, match=r"hydra is not installed; pip install torchrl_o2o\[sota\]"):
        script_config("awac")


def test_settings_are_read_as_utf_8_in_every_locale(tmp_path: Path) -> None:
    """A comment with an umlaut was refused under LC_ALL=C."""
    (tmp_path / "mine.yaml").write_text("# Übung\nseed: 1\n", encoding="utf-8")
    code = f"from torchrl_o2o.scripts import check_config_dirs as check; check(['--config-dir', {str(tmp_path)!r}])"
    env = {**os.environ, "LC_ALL": "C", "PYTHONCOERCECLOCALE": "0"}
    done = subprocess.run([sys.executable, "-X", "utf8=0", "-c", code], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("word", "others"),
    [
        ("actors=2", "a3rl, awac, rlpd, rlpd_async"),
        ("fleet.slack=3", "a3rl, awac, rlpd, rlpd_async"),
        ("seeds=[0,1]", "a3rl_seeds, rlpd_seeds"),
    ],
)
def test_a_setting_of_other_scripts_is_refused_with_their_names(
    monkeypatch: pytest.MonkeyPatch, word: str, others: str
) -> None:
    """Hydra proposed +actors=2, which was then refused as well."""
    ran = []
    monkeypatch.setattr("sys.argv", ["cql.py", "task=hopper", word])
    with pytest.raises(SystemExit, match=rf"got {re.escape(word)}, .* one of the scripts {others}; start one of them"):
        start(lambda: ran.append("cql"))
    (accept_seeds if "seeds" in word else accept_actors)()
    start(lambda: ran.append("rlpd"))
    assert ran == ["rlpd"]
