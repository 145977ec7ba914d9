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


def test_the_last_rows_alone_divide_a_file_into_episodes(tmp_path: Path) -> None:
    """It was read as one episode, with a transition over each reset and the dummy action after it."""
    _, episodes = golden_episodes()
    joined = {key: np.concatenate([episode[key] for episode in episodes]) for key in episodes[0]}
    write(tmp_path, [joined])
    expected = load_vd4rl(tmp_path).rows
    write(tmp_path, [joined], leave_out=("is_first",))
    assert (load_vd4rl(tmp_path).rows == expected).all()
    joined["is_last"] = joined["is_last"] & False
    write(tmp_path, [joined])
    last = len(episodes[0]["reward"]) - 1
    with pytest.raises(O2ODataError, match=rf"row {last} has is_last=False, but row {last + 1} begins an episode"):
        load_vd4rl(tmp_path)


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
    with pytest.raises(O2ODataError, match="not a readable npz"):
        load_vd4rl(tmp_path / "episode.npz")


def random_rows(rows: int = 6, actions: int = 2, **entries: Any) -> dict[str, Any]:
    random = np.random.default_rng(0)
    return {
        "image": random.integers(0, 256, (rows, 16, 16, 3), np.uint8),
        "action": random.uniform(-1, 1, (rows, actions)).astype(np.float32),
        "reward": random.uniform(size=rows).astype(np.float32),
        "is_first": np.arange(rows) == 0,
        "is_terminal": np.zeros(rows, bool),
        **entries,
    }


@pytest.mark.parametrize("packed", [False, True])
def test_npz_cut_or_changed_anywhere_is_named(tmp_path: Path, packed: bool) -> None:
    """What zip, zlib and numpy raise is theirs alone."""
    (np.savez_compressed if packed else np.savez)(tmp_path / "whole.npz", **random_rows())
    content = (tmp_path / "whole.npz").read_bytes()
    (tmp_path / "whole.npz").unlink()
    spoiled = [b"", content[:100], content[: len(content) // 2], content[:-10]]
    for place in range(60, len(content) // 2, len(content) // 9):
        spoiled.append(content[:place] + bytes([content[place] ^ 0x55]) + content[place + 1 :])
    for each in spoiled:
        (tmp_path / "bad.npz").write_bytes(each)
        with pytest.raises(O2ODataError, match=r"bad\.npz"):
            load_vd4rl(tmp_path)


def test_hdf5_shows_its_own_bytes_only(tmp_path: Path) -> None:
    """Links and storage that lead out of the file would show other files as data."""
    h5py = pytest.importorskip("h5py")
    rows = random_rows()
    np.arange(6.0).tofile(tmp_path / "secret")
    with h5py.File(tmp_path / "other.h5", "w") as other:
        other["reward"] = rows["reward"]
    cases = {
        "linked": lambda file: file.__setitem__("reward", h5py.ExternalLink(str(tmp_path / "other.h5"), "reward")),
        "stored": lambda file: file.create_dataset("reward", (6,), "f8", external=[(str(tmp_path / "secret"), 0, 48)]),
        "group": lambda file: file.create_group("reward"),
        "large": lambda file: file.create_dataset("reward", (10**11,), "u1", chunks=(10**6,), compression="gzip"),
    }
    for name, write_reward in cases.items():
        path = tmp_path / f"{name}.hdf5"
        with h5py.File(path, "w") as file:
            file["observation"], file["action"] = rows["image"].transpose(0, 3, 1, 2), rows["action"]
            file["step_type"] = np.array([0, 1, 1, 1, 1, 2])
            write_reward(file)
        with pytest.raises(O2ODataError, match=rf"{name}\.hdf5"):
            load_vd4rl(path)


def test_pickled_objects_are_not_read(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", **random_rows(reward=np.array([{"a": 1}] * 6, dtype=object)))
    with pytest.raises(O2ODataError, match="Object arrays"):
        load_vd4rl(tmp_path)


def test_other_entries_that_could_say_how_episodes_end(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", **random_rows(is_last=np.arange(6) == 5, terminals=np.zeros(6, bool)))
    with pytest.raises(O2ODataError, match=r"has \['terminals'\], which is not read"):
        load_vd4rl(tmp_path)


def test_files_of_different_environments(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", **random_rows())
    np.savez(tmp_path / "b.npz", **random_rows(actions=3))
    with pytest.raises(O2ODataError, match=r"'action' has rows of shape \[3\] in episode 0 of .*b\.npz, \[2\] before"):
        load_vd4rl(tmp_path)


def test_numbers_that_are_none_are_named_by_file_episode_and_step(tmp_path: Path) -> None:
    rows = random_rows()
    rows["reward"][3:5] = np.nan
    np.savez(tmp_path / "a.npz", **rows)
    with pytest.raises(O2ODataError, match=r"'reward' of episode 0 of .*a\.npz is nan at step 2, .*2 such numbers"):
        load_vd4rl(tmp_path)


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"image": np.zeros((6, 16, 16, 3), np.uint8)}, "3 of 3 columns of observation never change"),
        ({"action": np.zeros((6, 2))}, "2 of 2 columns of action never change"),
        ({"reward": np.zeros(6)}, "every reward is 0"),
        ({"reward": np.arange(6) * 1e7}, "beyond 1e"),
    ],
)
def test_what_looks_empty_or_huge_is_told(tmp_path: Path, entries: dict[str, Any], message: str) -> None:
    np.savez(tmp_path / "a.npz", **random_rows(**entries))
    with pytest.warns(UserWarning, match=message):
        load_vd4rl(tmp_path)


def test_sound_files_are_loaded_without_a_word(tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    """A channel may be empty, as one of the dot's is."""
    rows = random_rows()
    rows["image"][..., 2] = 0
    np.savez(tmp_path / "a.npz", **rows)
    assert len(load_vd4rl(tmp_path)) == 5
    assert not [each for each in recwarn if each.category is UserWarning]
