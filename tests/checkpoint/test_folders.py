# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""The folder of checkpoints: listing, pruning, sweeping."""

from __future__ import annotations

from torchrl_o2o.checkpoint.folders import SEGMENTS, prune, retire, steps, sweep
from torchrl_o2o.checkpoint.manifest import write_manifest


def make_checkpoint(root, step, segments=()):
    (root / SEGMENTS).mkdir(exist_ok=True)
    (root / f"step-{step}").mkdir()
    entries = [{"file": name, "bytes": 0, "blake2b": ""} for name in segments]
    for name in segments:
        (root / SEGMENTS / name).touch()
    write_manifest(root / f"step-{step}", {"step": step, "files": {}, "buffer": {"segments": entries}})


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_steps_are_ordered_as_numbers_and_other_names_left_alone(tmp_path):
    for name in ("step-9", "step-10", "step-100", "step-7.tmp", "step-8.broken", "step-x", "notes"):
        (tmp_path / name).mkdir()
    assert steps(tmp_path) == [100, 10, 9]
    assert steps(tmp_path / "absent") == []


def test_prune_keeps_the_newest_and_the_segments_they_name(tmp_path):
    make_checkpoint(tmp_path, 1, ["a.pt"])
    make_checkpoint(tmp_path, 2, ["a.pt", "b.pt"])
    make_checkpoint(tmp_path, 10, ["b.pt", "c.pt"])
    prune(tmp_path, keep=2)
    assert names(tmp_path) == [SEGMENTS, "step-10", "step-2"]
    assert names(tmp_path / SEGMENTS) == ["a.pt", "b.pt", "c.pt"]
    prune(tmp_path, keep=1)
    assert names(tmp_path / SEGMENTS) == ["b.pt", "c.pt"]


def test_a_retired_checkpoint_keeps_its_segments_until_the_next_prune(tmp_path):
    make_checkpoint(tmp_path, 1, ["a.pt"])
    make_checkpoint(tmp_path, 2, ["b.pt"])
    retire(tmp_path, 2)
    sweep(tmp_path)
    assert names(tmp_path) == [SEGMENTS, "step-1", "step-2.broken"]
    assert names(tmp_path / SEGMENTS) == ["a.pt", "b.pt"]
    prune(tmp_path, keep=2)
    assert names(tmp_path) == [SEGMENTS, "step-1"]
    assert names(tmp_path / SEGMENTS) == ["a.pt"]


def test_sweep_removes_staged_files_and_orphans(tmp_path):
    make_checkpoint(tmp_path, 1, ["a.pt"])
    (tmp_path / "step-2.tmp").mkdir()
    (tmp_path / "step-2.tmp" / "net.pt").touch()
    (tmp_path / "latest.tmp").touch()
    (tmp_path / SEGMENTS / "b.pt").touch()
    (tmp_path / SEGMENTS / "c.pt.tmp").touch()
    sweep(tmp_path)
    assert names(tmp_path) == [SEGMENTS, "step-1"]
    assert names(tmp_path / SEGMENTS) == ["a.pt"]


def test_sweep_removes_no_segment_while_a_manifest_cannot_be_read(tmp_path):
    make_checkpoint(tmp_path, 1, ["a.pt"])
    (tmp_path / "step-1" / "manifest.json").write_text("damaged")
    (tmp_path / "step-2.tmp").mkdir()
    sweep(tmp_path)
    assert names(tmp_path) == [SEGMENTS, "step-1"]
    assert names(tmp_path / SEGMENTS) == ["a.pt"]
