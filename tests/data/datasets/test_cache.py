# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tensordict import TensorDict

from torchrl_o2o.data.datasets.cache import RawDataset, SourceMeta, cached, dataset_root, default_cache_dir
from torchrl_o2o.data.findings import Finding


def raw(value: float = 1.0) -> RawDataset:
    data = TensorDict({"observation": torch.full((4, 2), value), "next": {"reward": torch.arange(4.0)}}, [4])
    meta = SourceMeta("toy", "Toy-v0", 7, (-1.0,), (2.0,), provenance={"seed": 3})
    return RawDataset(data, meta, (Finding("unfinished", "note", "1 episode."),))


class Counter:
    """A reader that counts how often it reads."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self) -> RawDataset:
        self.calls += 1
        return raw()


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "metadata.json"
    path.write_text("{}")
    return path


def test_second_reading_comes_from_the_cache(tmp_path: Path, source: Path) -> None:
    convert = Counter()
    first = cached(tmp_path / "cache", [source], {"a": 1}, convert)
    second = cached(tmp_path / "cache", [source], {"a": 1}, convert)
    assert convert.calls == 1
    assert (second.data == first.data).all()
    assert (second.meta, second.notes) == (first.meta, first.notes)
    assert second.data.device is None
    assert not second.data.is_locked


def test_writing_to_the_result_leaves_the_cache_alone(tmp_path: Path, source: Path) -> None:
    for _ in range(2):
        data = cached(tmp_path / "cache", [source], {}, Counter()).data
        assert data["observation"][0, 0] == 1.0
        data["observation"][:] = 9.0


def test_other_files_or_options_are_read_anew(tmp_path: Path, source: Path) -> None:
    convert = Counter()
    cached(tmp_path / "cache", [source], {"a": 1}, convert)
    cached(tmp_path / "cache", [source], {"a": 2}, convert)
    assert convert.calls == 2
    status = source.stat()
    source.write_text("[]")  # same size, and the time put back: told apart by its content
    os.utime(source, ns=(status.st_atime_ns, status.st_mtime_ns))
    cached(tmp_path / "cache", [source], {"a": 1}, convert)
    assert convert.calls == 3


def test_a_file_of_the_same_size_and_time_is_read_anew(tmp_path: Path) -> None:
    """Archives that can be reproduced give all their files one time; the earlier file's rows were returned."""
    source, convert = tmp_path / "demos.pickle", Counter()
    for content in (b"1", b"2"):
        source.write_bytes(content)
        os.utime(source, ns=(10**18, 10**18))
        cached(tmp_path / "cache", [source], {}, convert)
    assert convert.calls == 2


def test_changed_files_take_the_place_of_what_was_converted_before(tmp_path: Path, source: Path) -> None:
    other, cache = tmp_path / "source-2.json", tmp_path / "cache"
    other.write_text("{}")
    for files, options in (([source], {"a": 1}), ([source], {"a": 2}), ([other], {"a": 1})):
        cached(cache, files, options, Counter())
    entries = {path.name for path in cache.iterdir()}
    for number in range(3):
        source.write_text(str(number))
        cached(cache, [source], {"a": 1}, Counter())
        assert len(list(cache.iterdir())) == len(entries)
    assert len(entries & {path.name for path in cache.iterdir()}) == 2


@pytest.mark.parametrize("damage", ["flip", "truncate", "remove", "add", "manifest"])
def test_a_damaged_entry_is_made_anew(tmp_path: Path, source: Path, damage: str) -> None:
    convert = Counter()
    cached(tmp_path / "cache", [source], {}, convert)
    (entry,) = (tmp_path / "cache").iterdir()
    path = next(entry.rglob("observation.memmap"))
    if damage == "flip":
        content = bytearray(path.read_bytes())
        content[5] ^= 1
        path.write_bytes(content)
    elif damage == "truncate":
        path.write_bytes(path.read_bytes()[:-4])
    elif damage == "remove":
        path.unlink()
    elif damage == "add":
        (entry / "transitions" / "other.pickle").write_bytes(b"cos\nsystem\n")
    else:
        (entry / "manifest.json").write_text(json.dumps({"files": {}})[:-3])
    with pytest.warns(UserWarning, match="are damaged .*; reading the source again"):
        again = cached(tmp_path / "cache", [source], {}, convert)
    assert convert.calls == 2
    assert (again.data == raw().data).all()
    assert cached(tmp_path / "cache", [source], {}, convert).meta == raw().meta
    assert convert.calls == 2
    assert [path.name for path in (tmp_path / "cache").iterdir()] == [entry.name]


def test_a_folder_that_cannot_be_written_only_warns(tmp_path: Path, source: Path) -> None:
    (tmp_path / "cache").write_text("a file")
    with pytest.warns(UserWarning, match="cannot keep converted data"):
        result = cached(tmp_path / "cache", [source], {}, Counter())
    assert len(result.data) == 4


def test_an_error_while_converting_leaves_nothing(tmp_path: Path, source: Path) -> None:
    def fail() -> RawDataset:
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        cached(tmp_path / "cache", [source], {}, fail)
    assert not (tmp_path / "cache").exists()


def test_metadata_keep_their_types(tmp_path: Path, source: Path) -> None:
    plain = replace(raw(), meta=SourceMeta("toy"))
    for _ in range(2):
        assert cached(tmp_path / "cache", [source], {}, lambda: plain).meta == SourceMeta("toy")


def test_killed_while_converting_is_converted_anew(tmp_path: Path, source: Path) -> None:
    script = f"""
    import time, torch
    from pathlib import Path
    from tensordict import TensorDict
    import torchrl_o2o.data.datasets.cache as cache
    def slow(path, content):
        print("all but the manifest is written", flush=True)
        time.sleep(60)
    cache.write_durably = slow
    half = cache.RawDataset(TensorDict({{"observation": torch.zeros(4, 2)}}, [4]), cache.SourceMeta("half"))
    cache.cached(Path({str(tmp_path / "cache")!r}), [Path({str(source)!r})], {{}}, lambda: half)
    """
    process = subprocess.Popen([sys.executable, "-c", textwrap.dedent(script)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline().startswith("all but")
    process.kill()
    process.wait()
    process.stdout.close()
    assert [path.name.startswith(".") for path in (tmp_path / "cache").iterdir()] == [True]
    convert = Counter()
    for _ in range(2):
        assert (cached(tmp_path / "cache", [source], {}, convert).data == raw().data).all()
    assert convert.calls == 1
    assert [path.name.startswith(".") for path in (tmp_path / "cache").iterdir()] == [False]


def test_a_million_rows_are_read_back_quickly(tmp_path: Path, source: Path) -> None:
    data = TensorDict({"observation": torch.from_numpy(np.zeros((1_000_000, 17), np.float32))}, [1_000_000])
    cached(tmp_path / "cache", [source], {}, lambda: RawDataset(data, SourceMeta("big")))
    start = time.perf_counter()
    cached(tmp_path / "cache", [source], {}, Counter())
    assert time.perf_counter() - start < 5


def test_the_folders_are_minaris(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    storage = pytest.importorskip("minari.storage")
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "a"))
    assert dataset_root() == storage.get_dataset_path()
    assert default_cache_dir().parent == tmp_path / "a"
    monkeypatch.delenv("MINARI_DATASETS_PATH")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert dataset_root() == storage.get_dataset_path()
