# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Transitions in memory-mapped files stay there; what would need memory is refused."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tensordict import MemoryMappedTensor, TensorDict, TensorDictBase

from torchrl_o2o.data import check_offline, load_offline, offline_online_storage
from torchrl_o2o.errors import O2ODataError, O2OSpecError
from torchrl_o2o.testing import random_transitions


def episodes() -> TensorDict:
    """Four episodes of ten rows, each continuing in the next one."""
    data = random_transitions(40, 3, 2, generator=torch.Generator().manual_seed(0))
    walk = torch.randn(4, 11, 3, generator=torch.Generator().manual_seed(1)).cumsum(1)
    data["observation"], data["next", "observation"] = walk[:, :-1].reshape(40, 3), walk[:, 1:].reshape(40, 3)
    data["next", "terminated"].zero_()
    data["next", "truncated"] = data["next", "done"] = (torch.arange(40) % 10 == 9).unsqueeze(-1)
    return data.set("episode", torch.arange(40) // 10).set("unread", torch.zeros(40))


def folder(path: Path, change: Callable[[TensorDict], object] = lambda data: None) -> Path:
    data = episodes()
    change(data)
    data.memmap(path)
    return path


@pytest.mark.parametrize("form", ["folder", "text", "tensordict"])
def test_rows_are_those_of_memory_and_look_into_the_files(tmp_path: Path, form: str) -> None:
    path = folder(tmp_path / "rows")
    source: Any = {"folder": path, "text": f"path:{path}", "tensordict": TensorDict.load_memmap(path)}[form]
    data, expected = load_offline(source), load_offline(episodes())
    assert set(data.keys(True, True)) == set(expected.keys(True, True))
    assert bool((data == expected).all())
    assert all(isinstance(value, MemoryMappedTensor) for value in data.values(True, True))
    storage = offline_online_storage(data, 5, scratch_dir=tmp_path / "scratch")
    assert bool((storage[:] == data.exclude("episode")).all())
    assert check_offline(source).codes == check_offline(episodes()).codes


def test_trajectory_ids_of_torchrl_count_as_episodes(tmp_path: Path) -> None:
    path = folder(tmp_path, lambda data: data.rename_key_("episode", ("collector", "traj_ids")))
    assert load_offline(path)["episode"].tolist() == episodes()["episode"].tolist()


def test_actions_that_are_clipped_come_into_memory(tmp_path: Path) -> None:
    path = folder(tmp_path, lambda data: data["action"].__setitem__((3, 0), 1.5))
    with pytest.raises(O2ODataError, match="1 actions are outside the box"):
        load_offline(path)
    with pytest.warns(UserWarning, match="1 actions were outside"):
        data = load_offline(path, actions="clip")
    assert float(data["action"][3, 0]) == 1.0
    assert float(TensorDict.load_memmap(path)["action"][3, 0]) == 1.5


BROKEN: dict[str, tuple[Callable[[TensorDict], object], str]] = {
    "float64": (lambda data: data.set("observation", data["observation"].double()), "'observation' is torch.float64"),
    "flags": (lambda data: data.set(("next", "done"), data["next", "done"].float()), "expected torch.bool"),
    "shape": (lambda data: data.set(("next", "reward"), data["next", "reward"].squeeze(-1)), r"expected torch.float32"),
    "missing": (lambda data: data.exclude("episode", inplace=True), "'episode' is missing"),
    "steps": (lambda data: data.set("steps_to_next_obs", torch.ones(40)), "map the one-step rows"),
    "order": (lambda data: data["episode"].__setitem__(5, 2), "row 5 is of episode 2, the row before it of 0"),
    "first": (lambda data: data["episode"].add_(1), "row 0 is of episode 1, the row before it of -1"),
    "short": (lambda data: data["episode"][1:].add_(1), "1 episodes have fewer than 2 transitions"),
    "nan": (lambda data: data["observation"].__setitem__((3, 0), float("nan")), "1 transitions have a NaN"),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_what_would_have_to_be_converted_is_refused(tmp_path: Path, kind: str) -> None:
    change, message = BROKEN[kind]
    path = folder(tmp_path, change)
    with pytest.raises(O2ODataError, match=message):
        load_offline(path)


@pytest.mark.parametrize("options", [{"names": {"unread": "ignore"}}, {"obs_keys": ["unread"]}, {"on_bad": "drop"}])
def test_options_that_change_rows_are_refused(tmp_path: Path, options: dict[str, Any]) -> None:
    with pytest.raises(O2OSpecError, match=next(iter(options))):
        load_offline(folder(tmp_path), **options)


def test_a_file_cut_short_is_refused_and_left_as_it_is(tmp_path: Path) -> None:
    file = folder(tmp_path) / "next" / "reward.memmap"
    os.truncate(file, 20)
    with pytest.raises(O2ODataError, match="has 20 bytes, expected 160"):
        load_offline(tmp_path)
    assert file.stat().st_size == 20


def test_a_folder_of_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "meta.json").write_text("[")
    with pytest.raises(O2ODataError, match="was not written by TensorDict"):
        load_offline(tmp_path)


def test_many_rows_are_looked_at_in_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torchrl_o2o.data.datasets.mapped._ROWS_AT_ONCE", 7)
    path = folder(tmp_path / "rows")
    assert check_offline(path).codes == check_offline(episodes()).codes
    data: TensorDictBase = TensorDict.load_memmap(path)
    data["episode"][28] = 0
    with pytest.raises(O2ODataError, match="row 28 is of episode 0, the row before it of 2"):
        load_offline(path)


def test_terminals_at_the_time_limit_can_be_said_to_be_terminal(tmp_path: Path) -> None:
    """The loader's error about them says what to pass, and takes it."""

    def all_terminal(data: TensorDict) -> None:
        data["next", "terminated"] = data["next", "done"].clone()
        data["next", "truncated"] = torch.zeros_like(data["next", "done"])

    where = folder(tmp_path / "rows", all_terminal)
    with pytest.raises(O2ODataError, match=r"names={'terminals': 'terminals'} if they are terminal"):
        load_offline(where, max_episode_steps=10)
    data = load_offline(where, max_episode_steps=10, names={"terminals": "terminals"})
    assert int(data["next", "terminated"].sum()) == 4
