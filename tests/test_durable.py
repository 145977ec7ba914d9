# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Files are replaced whole or not at all, and a folder has one writer."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from torchrl_o2o import durable
from torchrl_o2o.checkpoint.manifest import read_manifest
from torchrl_o2o.deploy import load_policy
from torchrl_o2o.durable import FolderLock, read_file, replace_durably, sync_folder, write_durably
from torchrl_o2o.errors import O2OCheckpointError
from torchrl_o2o.record import read_metrics


def test_file_is_replaced(tmp_path):
    path = tmp_path / "latest"
    replace_durably(path, b"one")
    replace_durably(path, b"two")
    assert path.read_bytes() == b"two"
    assert os.listdir(tmp_path) == ["latest"]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs POSIX pipes")
def test_nobody_waits_for_a_pipe_in_the_place_of_a_file(tmp_path):
    """`o2o report` and `o2o evaluate` waited forever."""
    for name in ("metrics.jsonl", "policy.pt", "manifest.json"):
        os.mkfifo(tmp_path / name)
    with pytest.raises(O2OCheckpointError, match="not a regular file"):
        read_metrics(tmp_path)
    with pytest.raises(O2OCheckpointError, match="not a regular file"):
        load_policy(tmp_path)
    with pytest.raises(O2OCheckpointError, match="not a regular file"):
        read_manifest(tmp_path)
    with pytest.raises(IsADirectoryError):
        read_file(tmp_path)
    (tmp_path / "link").symlink_to(__file__)
    assert read_file(tmp_path / "link") == Path(__file__).read_bytes()


def test_failed_replacement_leaves_the_old_content(tmp_path, monkeypatch):
    path = tmp_path / "latest"
    replace_durably(path, b"one")

    def fsync(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(durable.os, "fsync", fsync)
    with pytest.raises(OSError, match="No space left"):
        replace_durably(path, b"two")
    assert path.read_bytes() == b"one"


def test_every_write_is_flushed_to_the_disk(tmp_path, monkeypatch):
    synced = []
    real = os.fsync
    monkeypatch.setattr(
        durable.os,
        "fsync",
        lambda descriptor: (synced.append(os.readlink(f"/proc/self/fd/{descriptor}")), real(descriptor)),
    )
    write_durably(tmp_path / "a", b"abc")
    sync_folder(tmp_path)
    replace_durably(tmp_path / "b", b"abc")
    expected = ["a", "", "b.tmp", ""]
    assert synced == [str(tmp_path / name) if name else str(tmp_path) for name in expected]


def test_lock_is_exclusive_and_names_its_holder(tmp_path):
    with FolderLock(tmp_path), pytest.raises(O2OCheckpointError, match=rf"in use by process {os.getpid()} on \S+ \("):
        FolderLock(tmp_path)
    FolderLock(tmp_path).release()


def test_lock_of_a_dead_process_is_no_obstacle(tmp_path):
    code = "import os, sys; from torchrl_o2o.durable import FolderLock; lock = FolderLock(sys.argv[1]); os._exit(9)"
    assert subprocess.run([sys.executable, "-c", code, str(tmp_path)]).returncode == 9
    assert (tmp_path / ".lock").read_text().startswith("process ")
    FolderLock(tmp_path).release()


def test_lock_may_be_released_twice(tmp_path):
    lock = FolderLock(tmp_path)
    lock.release()
    lock.release()


def test_missing_folder_is_an_error(tmp_path):
    with pytest.raises(O2OCheckpointError, match="choose a writable folder"):
        FolderLock(tmp_path / "absent")


@pytest.mark.parametrize("path", [".", "/", ""])
def test_a_folder_is_not_replaced(path):
    with pytest.raises(IsADirectoryError):
        replace_durably(Path(path), b"one")
