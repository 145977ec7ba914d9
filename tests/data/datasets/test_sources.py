# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
from __future__ import annotations

import pickle
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from torchrl_o2o.data import describe_offline, load_offline
from torchrl_o2o.data.datasets.sources import known_names, local_minari_ids
from torchrl_o2o.errors import O2ODataError

minari = pytest.importorskip("minari")


def offline(dataset_id: str) -> None:
    raise ConnectionError("no network")


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch, dataset_root: Path) -> None:
    monkeypatch.setattr(minari, "download_dataset", offline)


@pytest.mark.usefixtures("no_network")
@pytest.mark.parametrize(
    ("name", "close"),
    [("D4RL/dor/human-v2", "D4RL/door/human-v2"), ("mujoco/hoper/expert-v0", "mujoco/hopper/expert-v0")],
)
def test_what_cannot_be_downloaded(name: str, close: str, dataset_root: Path) -> None:
    with pytest.raises(O2ODataError) as caught:
        load_offline(name)
    message = str(caught.value)
    assert f"{name!r} is not in {dataset_root} and cannot be downloaded (ConnectionError: no network)." in message
    assert f"Close matches: {close}" in message
    assert "Without a network, copy the data set's folder there." in message


@pytest.mark.usefixtures("no_network")
def test_own_names_are_never_downloaded() -> None:
    with pytest.raises(O2ODataError, match=r"nor known\. Close matches: o2o/halfcheetah/linear-mix-v0"):
        load_offline("o2o/halfcheetah/linear-mx-v0")
    with pytest.raises(O2ODataError, match=r"nor known\. See `o2o data list` for names\."):
        load_offline("o2o/zzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzz-v0")


def test_what_is_absent_is_downloaded(monkeypatch: pytest.MonkeyPatch, dataset_root: Path) -> None:
    from torchrl_o2o.data import make_local_dataset

    def download(dataset_id: str) -> None:
        made = make_local_dataset("o2o/hopper/random-v0", num_steps=100, root=dataset_root / ".elsewhere")
        (dataset_root / "mujoco/hopper").mkdir(parents=True)
        made.rename(dataset_root / dataset_id)

    pytest.importorskip("mujoco")
    monkeypatch.setattr(minari, "download_dataset", download)
    assert len(load_offline("mujoco/hopper/random-v0", min_episode_length=1)) == 100
    assert local_minari_ids() == ["mujoco/hopper/random-v0"]
    assert "mujoco/hopper/random-v0" in known_names()


def test_files_are_never_guessed(tmp_path: Path, flat: dict[str, np.ndarray], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    np.savez("a.npz", **flat)
    with pytest.raises(O2ODataError, match=r"'a\.npz' is not a data set id.*Give a local file as a pathlib.Path or as"):
        load_offline("a.npz")
    assert len(load_offline("path:a.npz")) == len(load_offline(Path("a.npz"))) == 12


def test_files_of_no_known_kind(tmp_path: Path) -> None:
    with pytest.raises(O2ODataError, match=r"absent\.npz does not exist; expected a file or a Minari"):
        load_offline(tmp_path / "absent.npz")
    (tmp_path / "a.txt").write_text("1,2")
    with pytest.raises(O2ODataError, match=r"ends in '\.txt'; expected \.hdf5 or \.h5 \(D4RL\), \.npz"):
        load_offline(tmp_path / "a.txt")
    with pytest.raises(O2ODataError, match=r"metadata\.json is missing; expected a Minari data set"):
        load_offline(tmp_path)


@pytest.mark.parametrize("source", [None, 3, b"x", object()])
def test_things_that_are_no_source(source: Any) -> None:
    with pytest.raises(O2ODataError, match=r"is not a source; expected a name|is a int; expected a dictionary"):
        load_offline(source)


def test_the_cache_folder_may_be_a_word(tmp_path: Path) -> None:
    episode = {"observations": np.zeros((3, 2)), "actions": np.zeros((2, 1)), "rewards": np.arange(2.0)}
    (tmp_path / "demos.pkl").write_bytes(pickle.dumps([episode], protocol=4))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert len(load_offline(tmp_path / "demos.pkl", cache_dir=str(tmp_path / "kept"))) == 2
    assert list((tmp_path / "kept").iterdir())


def test_a_set_that_minari_has_opened_says_what_to_give_instead() -> None:
    class MinariDataset:
        spec = type("Spec", (), {"dataset_id": "D4RL/door/human-v2"})

        def iterate_episodes(self) -> None: ...

    with pytest.raises(
        O2ODataError, match=r"Give its name, 'D4RL/door/human-v2', or, if it was filtered, its episodes"
    ):
        load_offline(MinariDataset())  # type: ignore[arg-type]


def test_a_known_set_loads_from_its_cache_quickly(dataset_root: Path) -> None:
    pytest.importorskip("mujoco")
    from torchrl_o2o.data import make_local_dataset

    make_local_dataset("o2o/halfcheetah/random-v0", num_steps=5000)
    first = load_offline("o2o/halfcheetah/random-v0")
    (before,) = (dataset_root / ".torchrl_o2o").iterdir()
    (dataset_root / "o2o/halfcheetah/random-v0/data/main_data.hdf5").touch()  # recorded anew, as far as anyone can tell
    again = load_offline("o2o/halfcheetah/random-v0")
    assert (first == again).all()
    (after,) = (dataset_root / ".torchrl_o2o").iterdir()
    assert after != before
    start = time.perf_counter()
    describe_offline("o2o/halfcheetah/random-v0")
    assert time.perf_counter() - start < 1


@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("meta/info.json", "it is LeRobot's"),
        ("dataset_info.json", "RLDS"),
        (".zgroup", "it is Zarr's"),
        ("episode_1.npz", "its 1 files such as episode_1.npz are loaded one by one"),
        ("notes.txt", "TensorDict.memmap. Read another form"),
    ],
)
def test_folders_of_others(name: str, what: str, tmp_path: Path) -> None:
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text("{}")
    with pytest.raises(O2ODataError, match=what):
        load_offline(tmp_path)


@pytest.mark.parametrize("kind", ["npz", "hdf5", "groups"])
def test_arrays_of_a_closed_file_are_refused_with_advice(tmp_path: Path, kind: str) -> None:
    arrays: dict[str, np.ndarray] = {
        "observations": np.zeros((10, 3)),
        "actions": np.zeros((10, 1)),
        "rewards": np.zeros(10),
        "terminals": np.arange(10) == 9,
        "timeouts": np.zeros(10, bool),
    }
    path = tmp_path / f"rows.{kind}"
    source: Any
    if kind == "npz":
        np.savez(path, **arrays)
        with np.load(path) as source:
            assert load_offline(source).data.shape == (10,)
    else:
        h5py = pytest.importorskip("h5py")
        with h5py.File(path, "w") as file:
            for name, values in arrays.items():
                file[f"episode_0/{name}"] = values
            source = file["episode_0"] if kind == "hdf5" else [file["episode_0"]]
            assert load_offline(source).data.shape == (10,)
    with pytest.raises(O2ODataError, match="whose file is closed, expected an open one; load it within the `with`"):
        load_offline(source)


@pytest.mark.parametrize("name", ["a.hdf5", "a.npz", "a.csv", "a.pkl", "data/main_data.hdf5", "data/metadata.json"])
def test_pointers_of_git_and_web_pages_are_not_called_damaged(name: str, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    for file in ("data/main_data.hdf5", "data/metadata.json", name):  # the last one is read first, or the only one
        (tmp_path / file).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n")
    source = tmp_path if name.startswith("data/") else tmp_path / name
    with pytest.raises(
        O2ODataError, match="is a pointer of Git LFS, not the file itself; fetch it with `git lfs pull`"
    ):
        load_offline(source, cache=False)
    if source.is_file():
        source.write_text("\n<!DOCTYPE html>\n<html><title>404 Not Found</title></html>\n")
        with pytest.raises(O2ODataError, match="is a web page, not the file itself; download it again"):
            load_offline(source, cache=False)


def test_a_relative_path_to_nothing_is_told_with_the_working_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(O2ODataError, match=f"logs.npz does not exist in the working folder {tmp_path}; expected"):
        load_offline("path:logs.npz")
