# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from torchrl_o2o.data.datasets.casting import StoredArray
from torchrl_o2o.data.datasets.hdf5 import StoredGroup, open_hdf5, read_array
from torchrl_o2o.errors import O2ODataError, O2OSpecError

h5py = pytest.importorskip("h5py")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    with h5py.File(tmp_path / "a.hdf5", "w") as file:
        file["group/x"] = np.arange(3.0)
        file["y"] = np.arange(4)
        file.create_dataset("fill", (2,), "f4", fillvalue=7.0)
        file["type"] = np.dtype("f4")
    return tmp_path / "a.hdf5"


def test_a_file_is_a_mapping(path: Path) -> None:
    with open_hdf5(path) as file:
        assert (sorted(file), len(file), "y" in file, "z" in file, 3 in file) == (
            ["fill", "group", "type", "y"], 4, True, False, False,
        )  # fmt: skip
        group = file["group"]
        assert isinstance(group, StoredGroup)
        assert isinstance(group["x"], StoredArray)
        np.testing.assert_array_equal(group["x"], np.arange(3.0))
        np.testing.assert_array_equal(read_array(file, "group/x"), np.arange(3.0))
        assert np.asarray(file["fill"]).tolist() == [7, 7]
        assert file.get("z") is None
        with pytest.raises(O2ODataError, match="/group is a group; expected an array"):
            read_array(file, "group")
        with pytest.raises(O2ODataError, match=r"a.hdf5: /group has no z; it holds \['x'\]"):
            read_array(group, "z")
        with pytest.raises(O2ODataError, match="/type is neither an array nor a group"):
            file["type"]


def test_a_file_that_is_locked_or_away(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def opened(error: Exception) -> None:
        monkeypatch.setattr(h5py, "File", lambda *args: (_ for _ in ()).throw(error))
        with open_hdf5(path):
            pass

    with pytest.raises(O2ODataError, match="is locked: another process"):
        opened(BlockingIOError(11, "unable to lock file"))
    with pytest.raises(O2ODataError, match="cannot be read"):
        opened(PermissionError(13, "Permission denied"))
    with pytest.raises(O2ODataError, match="is damaged or not HDF5"):
        opened(OSError("file signature not found"))


def test_a_wrong_option_is_no_damage_of_the_file(path: Path) -> None:
    with pytest.raises(O2OSpecError, match=r"^got names"), open_hdf5(path):
        raise O2OSpecError("got names={'terminals': 'success'}")


def test_a_link_to_nothing_or_to_itself_is_named(path: Path) -> None:
    for name, target, what in (("gone", "/nowhere/x", "is a link to /nowhere/x"), ("loop", "/loop", "without end")):
        with h5py.File(path, "a") as file:
            file[name] = h5py.SoftLink(target)
        with open_hdf5(path) as file, pytest.raises(O2ODataError, match=rf"/{name} .*{what}"):
            file[name]


def test_a_file_that_is_intact_is_not_called_damaged(path: Path) -> None:
    with h5py.File(path, "w") as file:  # a chunk that claims to be compressed by a plugin, as by blosc
        settings = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        settings.set_chunk((4,))
        settings.set_filter(32001, h5py.h5z.FLAG_OPTIONAL, (1,))
        shape = h5py.h5s.create_simple((4,))
        stored = h5py.h5d.create(file.id, b"rewards", h5py.h5t.NATIVE_DOUBLE, shape, settings)
        stored.write_direct_chunk((0,), bytes(32), 0)
    with pytest.raises(O2ODataError, match="plugin of HDF5 that is not installed"), open_hdf5(path) as file:
        read_array(file, "rewards")
    writer = "file = h5py.File(sys.argv[1], 'w', libver='latest'); file.swmr_mode = True; file.flush(); os._exit(0)"
    subprocess.run([sys.executable, "-c", f"import h5py, os, sys; {writer}", str(path)], check=True)
    with pytest.raises(O2ODataError, match=r"marked as open for writing.*h5clear -s"), open_hdf5(path):
        pass
