# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
from __future__ import annotations

import re
import time
from pathlib import Path

import numpy as np
import pytest

from tests.shared_data import shared_file
from torchrl_o2o.data import audit, load_offline
from torchrl_o2o.errors import O2ODataError

h5py = pytest.importorskip("h5py")
Arrays = dict[str, np.ndarray]


def write_hdf5(path: Path, arrays: Arrays) -> Path:
    with h5py.File(path, "w") as file:
        for key, values in arrays.items():
            file.create_dataset(key, data=values, compression="gzip")
        file["infos/qpos"] = np.zeros(3)
        file["metadata/algorithm"] = "SAC"
    return path


def test_d4rl_and_npz_and_a_dictionary_agree(flat: Arrays, tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", **flat)
    first = load_offline(write_hdf5(tmp_path / "a.hdf5", flat))
    np.testing.assert_array_equal(first["next", "observation"], flat["next_observations"])
    for source in (tmp_path / "a.npz", f"path:{tmp_path}/a.npz", flat, {**flat, "infos": {"qpos": 1}}):
        assert (load_offline(source) == first).all()


def test_our_own_transitions_are_a_source(flat: Arrays) -> None:
    data = load_offline(flat)
    again = load_offline(data)
    assert (again == data).all()
    with pytest.raises(O2ODataError, match=r"lacks \['action'\]; expected the entries"):
        load_offline(data.exclude("action"))


def test_a_file_without_timeouts(flat: Arrays, tmp_path: Path) -> None:
    del flat["timeouts"]
    path = write_hdf5(tmp_path / "maze2d.hdf5", flat)
    with pytest.raises(O2ODataError, match=re.escape(f"{path} has no timeouts")):
        load_offline(path)
    with pytest.warns(UserWarning, match="1 transitions do not continue in the next row"):  # cut elsewhere
        data = load_offline(path, max_episode_steps=4)
    assert data["next", "done"][:, 0].nonzero()[:, 0].tolist() == [3, 7, 11]


@pytest.mark.parametrize("suffix", [".hdf5", ".npz", ".pickle"])
@pytest.mark.parametrize("damage", ["garbage", "truncated", "empty"])
def test_damaged_files_are_refused_at_once(flat: Arrays, tmp_path: Path, suffix: str, damage: str) -> None:
    path = tmp_path / f"a{suffix}"
    if suffix == ".npz":
        np.savez(path, **flat)
    else:
        write_hdf5(path, flat)
    content = path.read_bytes()
    path.write_bytes({"garbage": b"\x00garbage" * 99, "truncated": content[: len(content) // 2], "empty": b""}[damage])
    start = time.perf_counter()
    with pytest.raises(O2ODataError, match=re.escape(str(path))):
        load_offline(path, cache_dir=tmp_path / "cache")
    assert time.perf_counter() - start < 1
    assert not (tmp_path / "cache").exists()


def test_pickled_objects_in_an_npz_are_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", observations=np.array([{"a": 1}], dtype=object))
    with pytest.raises(
        O2ODataError, match=r"not a readable npz file of plain arrays \(Object arrays cannot be loaded.*store each"
    ):
        load_offline(tmp_path / "a.npz")


def test_the_door_episodes_replayed() -> None:
    path = shared_file("door_human_replayed_f32.npz")
    data = load_offline(path)
    with np.load(path) as arrays:
        np.testing.assert_array_equal(data["observation"], arrays["observations"])
        np.testing.assert_array_equal(data["next", "observation"], arrays["next_observations"])
        np.testing.assert_array_equal(data["action"], arrays["actions"])
        np.testing.assert_array_equal(data["episode"], arrays["episode"])
    assert (len(data), int(data["episode"][-1]) + 1) == (6729, 25)
    assert int(data["next", "truncated"].sum()) == 25
    assert not data["next", "terminated"].any()
    assert audit(data).ok


def test_lists_of_demonstrations_are_told_and_can_be_loaded(tmp_path: Path) -> None:
    path = tmp_path / "demos.hdf5"
    with h5py.File(path, "w") as file:
        for number in range(3):
            demo = file.create_group(f"data/demo_{number}")
            states = np.stack([np.arange(5.0), np.full(5, number)], -1)
            demo["obs/state"], demo["next_obs/state"] = states[:-1], states[1:]
            demo["actions"], demo["rewards"], demo["terminals"] = np.eye(4)[:, :1], np.arange(4), np.arange(4) == 3
        file["mask/train"], file["mask/valid"] = np.array(["demo_0", "demo_2"], "S"), np.array(["demo_1"], "S")
    with pytest.warns(UserWarning, match="mask/train, mask/valid: lists of demonstrations that are not read; all 3"):
        assert len(load_offline(path, obs_keys=["state"])) == 12
    with h5py.File(path) as file:
        chosen = [file["data"][name.decode()] for name in file["mask/train"]]
        data = load_offline(chosen, obs_keys=["state"])
    assert data["observation"][:, 1].unique_consecutive().tolist() == [0, 2]
