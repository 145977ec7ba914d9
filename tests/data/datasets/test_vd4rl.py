# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests import golden_vectors as golden
from tests.data.test_frames import named
from torchrl_o2o.data import load_vd4rl
from torchrl_o2o.errors import O2ODataError


def image(number: int, size: int = 8) -> np.ndarray:
    channels = (number + 10 * np.arange(3)) % 256
    return np.broadcast_to(channels, (size, size, 3)).astype(np.uint8)


def golden_episodes() -> tuple[golden.Tree, list[dict[str, Any]]]:
    tree, out = golden.load("rlpd_pixels/buffer_vd4rl_A"), []
    bounds = np.concatenate([[0], (tree["input/episode_length"].numpy() + 1).cumsum()])
    for first, last in itertools.pairwise(bounds):
        count = int(last - first)
        out.append(
            {
                "image": np.stack([image(int(each)) for each in tree["input/frame_id"][first:last]]),
                "action": tree["input/action"][first:last].numpy().astype(np.float32),
                "reward": tree["input/reward"][first:last].numpy().astype(np.float32),
                "discount": np.ones(count, np.float32),
                "is_first": np.arange(count) == 0,
                "is_last": np.arange(count) == count - 1,
                "is_terminal": np.zeros(count, bool),
            }
        )
    return tree, out


def write(folder: Path, episodes: list[dict[str, Any]], leave_out: tuple[str, ...] = ()) -> Path:
    for number, episode in enumerate(episodes):
        kept = {key: value for key, value in episode.items() if key not in leave_out}
        np.savez(folder / f"2021010{number + 1}T000000-{number}-{len(episode['reward'])}.npz", **kept)
    return folder


@pytest.mark.parametrize("mixed", [False, True])
def test_npz_as_the_authors_meant_it_and_as_their_loader_has_it(tmp_path: Path, mixed: bool) -> None:
    tree, episodes = golden_episodes()
    data = load_vd4rl(write(tmp_path, episodes), mixed_episodes=mixed)
    rows = data.stacks(torch.arange(len(data)))
    expected = "out" if mixed else "intended"
    assert torch.equal(named(rows["observation"]), tree[f"{expected}/obs_frame_id"])
    assert torch.equal(named(rows["next", "observation"]), tree[f"{expected}/next_frame_id"])
    golden.assert_close(rows["action"].double(), tree["out/action"], "action", 1e-7)
    golden.assert_close(rows["next", "reward"].squeeze(-1).double(), tree["out/reward"], "reward", 1e-7)
    assert torch.equal(1.0 - rows["next", "terminated"].squeeze(-1).double(), tree["out/mask"])
    assert int(rows["next", "done"].sum()) == 3


def test_hdf5_has_several_episodes_with_channels_first(tmp_path: Path) -> None:
    h5py = pytest.importorskip("h5py")
    tree, episodes = golden_episodes()
    joined = {key: np.concatenate([episode[key] for episode in episodes]) for key in episodes[0]}
    with h5py.File(tmp_path / "shard_1.hdf5", "w") as file:
        file["observation"] = joined["image"].transpose(0, 3, 1, 2)
        for key in ("action", "reward", "discount"):
            file[key] = joined[key]
        file["step_type"] = np.where(joined["is_first"], 0, np.where(joined["is_last"], 2, 1))
    rows = (data := load_vd4rl(tmp_path)).stacks(torch.arange(len(data)))
    assert torch.equal(named(rows["observation"]), tree["intended/obs_frame_id"])
    assert torch.equal(named(rows["next", "observation"]), tree["intended/next_frame_id"])


def test_terminals_of_older_files_are_where_the_discount_is_zero(tmp_path: Path) -> None:
    _, episodes = golden_episodes()
    episodes[0]["discount"][-1] = 0.0
    data = load_vd4rl(write(tmp_path, episodes, ("is_terminal", "is_last")))
    assert data.rows["next", "terminated"].squeeze(-1).nonzero().squeeze(-1).tolist() == [5]
    assert data.rows["next", "truncated"].squeeze(-1).nonzero().squeeze(-1).tolist() == [10, 17]


def test_damaged_files_are_refused(tmp_path: Path) -> None:
    _, episodes = golden_episodes()
    with pytest.raises(O2ODataError, match=r"has no \.npz"):
        load_vd4rl(tmp_path)
    for change, match in (
        ({"image": episodes[0]["image"][:-1]}, "frames or rows are missing"),
        ({"is_first": np.zeros(7, bool)}, "frame at reset is missing"),
        ({"image": episodes[0]["image"] / 255.0}, "expected uint8"),
    ):
        np.savez(tmp_path / "episode.npz", **{**episodes[0], **change})
        with pytest.raises(O2ODataError, match=match):
            load_vd4rl(tmp_path / "episode.npz")
    np.savez(tmp_path / "episode.npz", **{key: value for key, value in episodes[0].items() if key != "image"})
    with pytest.raises(O2ODataError, match="expected 'image'"):
        load_vd4rl(tmp_path / "episode.npz")
    (tmp_path / "episode.npz").write_bytes(b"nothing")
    with pytest.raises(O2ODataError, match="cannot be read"):
        load_vd4rl(tmp_path / "episode.npz")
