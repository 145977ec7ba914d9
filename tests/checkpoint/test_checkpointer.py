# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Resume is exact, mismatches are named, damage is found and survived."""

from __future__ import annotations

import errno
import itertools
import os
import shutil
import subprocess
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from tensordict import TensorDict
from torchrl.data import LazyTensorStorage, ListStorage, TensorDictReplayBuffer
from torchrl.data.replay_buffers.writers import TensorDictMaxValueWriter

from tests.checkpoint.tiny_run import ONLINE, Run, assert_identical, new_buffer, rows, uninterrupted
from torchrl_o2o import durable
from torchrl_o2o.checkpoint import Checkpointer, folders, load_objects
from torchrl_o2o.checkpoint.manifest import digest, read_manifest, write_manifest
from torchrl_o2o.durable import FolderLock
from torchrl_o2o.errors import O2OCheckpointError, O2OSpecError
from torchrl_o2o.record.files import read_metrics


def names(folder):
    return sorted(path.name for path in folder.iterdir() if path.name != ".lock")


def flip(path: Path, position: float = 0.5) -> None:
    data = bytearray(path.read_bytes())
    data[int(position * (len(data) - 1))] ^= 1
    path.write_bytes(data)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def no_space():
    raise OSError(errno.ENOSPC, "No space left on device")


def segments_of(root: Path, step: int) -> list[dict]:
    return read_manifest(root / f"step-{step}")["buffer"]["segments"]


# Resume


@pytest.mark.parametrize("interruptions", [[1], [15], [7, 40], [7, 7, 23, 60]])
def test_resumed_run_equals_the_uninterrupted_one(tmp_path, interruptions):
    whole = uninterrupted(tmp_path / "whole", 70)
    parts = Run(tmp_path / "parts")
    for updates in interruptions:
        parts.train(updates - parts.counters["updates"]).save()
        parts.train(3).close()  # lost
        parts = Run(tmp_path / "parts", resume=True, seed=99)
        assert parts.restored == updates
    parts.train(70 - parts.counters["updates"])
    assert_identical(parts.everything(), whole)
    series = [
        [{name: value for name, value in row.items() if name != "time"} for row in read_metrics(tmp_path / folder)]
        for folder in ("whole", "parts")
    ]
    assert series[0] == series[1]


def test_five_hundred_updates_with_a_save_every_fifty(tmp_path):
    whole = uninterrupted(tmp_path / "whole", 500)
    parts = Run(tmp_path / "parts")
    for _ in range(10):
        parts.train(50).save().close()
        parts = Run(tmp_path / "parts", resume=True, seed=99)
    assert_identical(parts.everything(), whole)


def test_saving_does_not_disturb_the_run(tmp_path):
    plain = uninterrupted(tmp_path / "plain", 20)
    saving = Run(tmp_path / "saving")
    for _ in range(20):
        saving.train(1).save()
    assert_identical(saving.everything(), plain)


def test_restore_without_a_checkpoint_is_none(tmp_path, caplog):
    with caplog.at_level("INFO", "torchrl_o2o"):
        assert Run(tmp_path, resume=True).restored is None
    assert "starting a new run" in caplog.text


def test_saving_the_step_saved_last_does_nothing(tmp_path):
    run = Run(tmp_path).train(3).save()
    before = (tmp_path / "checkpoints" / "step-3" / "manifest.json").stat().st_mtime_ns
    run.save()
    assert (tmp_path / "checkpoints" / "step-3" / "manifest.json").stat().st_mtime_ns == before


def test_steps_go_up(tmp_path):
    Run(tmp_path).train(5).save().close()
    other = Checkpointer(tmp_path / "checkpoints", objects={"counters": {}})
    with pytest.raises(O2OCheckpointError, match=r"got step 4, expected more than 5, .*restore\(\)"):
        other.save(4)


def test_prefetching_buffer_is_warned_of(tmp_path):
    buffer = TensorDictReplayBuffer(storage=LazyTensorStorage(4), prefetch=2, batch_size=1)
    with pytest.warns(UserWarning, match="the buffer prefetches"):
        Checkpointer(tmp_path, objects={}, buffer=buffer)


# What is kept


def test_newest_two_are_kept_and_latest_points_to_the_newest(tmp_path):
    run = Run(tmp_path)
    for _ in range(4):
        run.train(2).save()
    root = tmp_path / "checkpoints"
    assert names(root) == ["latest", "segments", "step-6", "step-8"]
    assert (root / "latest").read_text() == "step-8"


def test_rows_are_written_once_and_shared(tmp_path):
    run = Run(tmp_path).train(2).save()
    root = tmp_path / "checkpoints"
    first = {path.name: path.stat().st_mtime_ns for path in (root / "segments").iterdir()}
    run.train(2).save()
    second = {path.name: path.stat().st_mtime_ns for path in (root / "segments").iterdir()}
    assert first.items() < second.items()
    assert sum(entry["stop"] - entry["start"] for entry in segments_of(root, 4)) == len(run.buffer)


def test_segments_of_overwritten_rows_are_removed(tmp_path):
    run = Run(tmp_path)
    for _ in range(30):
        run.train(4).save()
    root = tmp_path / "checkpoints"
    named = {
        entry["file"] for step in (116, 120) for entry in read_manifest(root / f"step-{step}")["buffer"]["segments"]
    }
    assert set(names(root / "segments")) == named | {f"{name}.copy" for name in named}
    online = [entry for entry in segments_of(root, 120) if entry["region"] == "online"]
    assert online[0]["stop"] > run.buffer.writer.total_written - ONLINE
    assert len(online) <= ONLINE


def test_upstream_round_robin_buffer_is_saved_too(tmp_path):
    def make():
        return TensorDictReplayBuffer(storage=LazyTensorStorage(10), batch_size=4)

    buffer = make()
    checkpoint = Checkpointer(tmp_path, objects={}, buffer=buffer)
    for step in range(1, 6):
        buffer.extend(rows(step * 3, 3))
        checkpoint.save(step)
    copy = make()
    assert Checkpointer(tmp_path, objects={}, buffer=copy).restore() == 5
    assert_identical(copy.storage[:].to_dict(), buffer.storage[:].to_dict())
    assert (copy.writer._cursor, len(copy)) == (5, 10)


@pytest.mark.parametrize(
    ("buffer", "message"),
    [
        (TensorDictReplayBuffer(storage=ListStorage(4)), "a ListStorage, expected a tensor storage"),
        (
            TensorDictReplayBuffer(storage=LazyTensorStorage(4), writer=TensorDictMaxValueWriter(rank_key="reward")),
            "a TensorDictMaxValueWriter, expected an OnlineWriter",
        ),
    ],
)
def test_buffers_without_an_order_are_refused(tmp_path, buffer, message):
    with pytest.raises(O2OSpecError, match=message):
        Checkpointer(tmp_path, objects={}, buffer=buffer)


def test_rows_written_out_of_turn_are_refused(tmp_path):
    buffer = TensorDictReplayBuffer(storage=LazyTensorStorage(6))
    checkpoint = Checkpointer(tmp_path, objects={}, buffer=buffer)
    buffer.extend(rows(0, 4))
    buffer.writer.write_at(torch.tensor([1]), rows(9, 1))
    with pytest.raises(O2OSpecError, match="written in order; use add and extend"):
        checkpoint.save(1)


# Objects


def test_object_whose_state_needs_code_is_refused_at_the_save(tmp_path):
    checkpoint = Checkpointer(tmp_path, objects={"counters": {"mean": np.zeros(2)}})
    with pytest.raises(O2OCheckpointError, match="the state of 'counters' cannot be read back without running code"):
        checkpoint.save(1)
    assert names(tmp_path) == ["segments"]


@pytest.mark.parametrize(
    ("objects", "message"),
    [
        ({"net": 3}, r"got a int as object 'net', expected a dict or an object with state_dict"),
        ({"../net": {}}, r"object name '\.\./net'"),
        ({"rng": {}}, "object name 'rng'"),
    ],
)
def test_what_has_no_state_is_refused_at_the_start(tmp_path, objects, message):
    with pytest.raises(O2OSpecError, match=message):
        Checkpointer(tmp_path, objects=objects)


def test_keep_must_be_positive(tmp_path):
    with pytest.raises(O2OSpecError, match="got keep=0"):
        Checkpointer(tmp_path, objects={}, keep=0)


def test_unwritable_folder_is_an_error_at_the_start(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(O2OCheckpointError, match="choose a writable folder"):
        Checkpointer(tmp_path / "file" / "checkpoints", objects={})


def test_a_malicious_file_is_not_executed(tmp_path):
    class Payload:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "executed",))

    Checkpointer(tmp_path, objects={"counters": {}}).save(1)
    path = tmp_path / "step-1" / "counters.pt"
    torch.save(Payload(), path)
    body = read_manifest(tmp_path / "step-1")
    data = path.read_bytes()
    body["files"]["counters.pt"] = {"bytes": len(data), "blake2b": digest(data)}
    write_manifest(tmp_path / "step-1", body)
    with pytest.raises(O2OCheckpointError, match="refused, because reading it would run code"):
        Checkpointer(tmp_path, objects={"counters": {}}).restore()
    assert not (tmp_path / "executed").exists()


# Mismatches


def test_other_configuration_is_refused_naming_both_sides(tmp_path):
    Checkpointer(tmp_path, objects={}, config={"algorithm": "awac", "gamma": 0.99}).save(1)
    with pytest.raises(
        O2OCheckpointError, match=r"algorithm is 'awac' in the checkpoint and 'rlpd' now; gamma is 0.99"
    ):
        Checkpointer(tmp_path, objects={}, config={"algorithm": "rlpd"}).restore()


def test_settings_that_differ_are_named_one_by_one_and_a_longer_run_is_told_what_to_do(tmp_path):
    saved = {"online": {"total_frames": 10, "batch_size": 4, "capacity": None}, "loss": {"tau": 0.1}}
    Checkpointer(tmp_path, objects={}, config=saved).save(1)
    for longer, part in ((True, {"total_frames": 20}), (False, {"batch_size": 8})):
        with pytest.raises(O2OCheckpointError) as told:
            Checkpointer(tmp_path, objects={}, config={**saved, "online": saved["online"] | part}).restore()
        name, value = next(iter(part.items()))
        words = (
            f"of another configuration: online.{name} is {saved['online'][name]} in the checkpoint and {value} now. "
        )
        assert f"{words}Resume with its configuration" in str(told.value)
        assert ("pretrained=FOLDER" in str(told.value)) is ("o2o continue RUN" in str(told.value)) is longer
    Checkpointer(tmp_path, objects={}, config={**saved, "online": {"total_frames": 10, "batch_size": 4}}).restore()


def test_a_script_that_resumes_a_continued_run_is_told_how_to_go_on(tmp_path):
    config = {"algorithm": "awac"}
    Checkpointer(tmp_path, objects={}, config={**config, "lineage": [{"round": 0}, {"round": 2}]}).save(1)
    with pytest.raises(O2OCheckpointError, match=r"round 2 of `o2o continue`.*pretrained=FOLDER"):
        Checkpointer(tmp_path, objects={}, config=config).restore()


def test_other_objects_are_refused_naming_both_sides(tmp_path):
    Checkpointer(tmp_path, objects={"net": {}, "optim": {}}).save(1)
    with pytest.raises(O2OCheckpointError, match=r"got the objects \['actor', 'net'\], expected \['net', 'optim'\]"):
        Checkpointer(tmp_path, objects={"net": {}, "actor": {}}).restore()


def test_other_shapes_are_refused_naming_both_sides(tmp_path):
    Checkpointer(tmp_path, objects={"net": torch.nn.Linear(3, 2)}).save(1)
    with pytest.raises(
        O2OCheckpointError, match=r"'net' in the checkpoint of step 1 does not fit(?s:.*)\[2, 3\](?s:.*)\[2, 4\]"
    ):
        Checkpointer(tmp_path, objects={"net": torch.nn.Linear(4, 2)}).restore()


def test_other_offline_data_are_refused_naming_both_sizes(tmp_path):
    Checkpointer(tmp_path, objects={}, buffer=new_buffer()).save(1)
    with pytest.raises(O2OCheckpointError, match=r"offline region .* \(0, 29\), expected \(0, 30\)"):
        Checkpointer(tmp_path, objects={}, buffer=new_buffer(offline=29)).restore()


def test_other_rows_are_refused_naming_the_key(tmp_path):
    Checkpointer(tmp_path, objects={}, buffer=new_buffer()).save(1)
    buffer = TensorDictReplayBuffer(storage=LazyTensorStorage(50), writer=new_buffer().writer)
    buffer.storage.set(torch.arange(30), TensorDict({"observation": torch.zeros(30, 3)}, [30]))
    with pytest.raises(O2OCheckpointError, match=r"\('next', 'reward'\).*absent"):
        Checkpointer(tmp_path, objects={}, buffer=buffer).restore()


def test_other_versions_are_a_warning(tmp_path):
    Checkpointer(tmp_path, objects={"counters": {}}).save(1)
    body = read_manifest(tmp_path / "step-1")
    body["versions"]["torch"] = "1.0"
    write_manifest(tmp_path / "step-1", body)
    with pytest.warns(UserWarning, match=r"torch 1.0 then, .* now"):
        assert Checkpointer(tmp_path, objects={"counters": {}}).restore() == 1


def test_newer_format_is_refused(tmp_path):
    Checkpointer(tmp_path, objects={}).save(1)
    write_manifest(tmp_path / "step-1", read_manifest(tmp_path / "step-1") | {"format": 2})
    with pytest.raises(O2OCheckpointError, match=r"got the format 2 .*expected 1 in this version of torchrl_o2o"):
        Checkpointer(tmp_path, objects={}).restore()


# Damage


FILES = ("net.pt", "optim.pt", "counters.pt", "recorder.pt", "rng.pt", "buffer.pt", "manifest.json")


def remove(path: Path) -> None:
    path.unlink()


@pytest.mark.parametrize("harm", [flip, cut, remove])
@pytest.mark.parametrize("name", FILES)
def test_damaged_newest_checkpoint_falls_back_with_a_warning(tmp_path, name, harm):
    Run(tmp_path).train(4).save().train(4).save().close()
    harm(tmp_path / "checkpoints" / "step-8" / name)
    with pytest.warns(UserWarning, match=f"THE CHECKPOINT OF STEP 8 IS DAMAGED: .*{name}"):
        run = Run(tmp_path, resume=True)
    assert (run.restored, run.counters["updates"]) == (4, 4)
    result = run.train(4).save().everything()
    assert_identical(result, uninterrupted(tmp_path / "whole", 8))
    assert names(tmp_path / "checkpoints") == ["latest", "segments", "step-4", "step-8"]
    run.close()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run = Run(tmp_path, resume=True)
        run.close()
    assert run.restored == 8


@pytest.mark.parametrize("position", np.linspace(0, 1, 12))
def test_a_flipped_bit_anywhere_in_the_manifest_is_found(tmp_path, position):
    Checkpointer(tmp_path, objects={"counters": {"updates": 3}}).save(1)
    flip(tmp_path / "step-1" / "manifest.json", position)
    with pytest.raises(O2OCheckpointError, match="every checkpoint"), pytest.warns(UserWarning, match="DAMAGED"):
        Checkpointer(tmp_path, objects={"counters": {}}).restore()


@pytest.mark.parametrize("harm", [flip, cut, remove])
def test_damaged_new_segment_falls_back(tmp_path, harm):
    Run(tmp_path).train(4).save().train(4).save().close()
    root = tmp_path / "checkpoints"
    newest = segments_of(root, 8)[-1]["file"]
    for name in (newest, f"{newest}.copy"):
        harm(root / "segments" / name)
    with pytest.warns(UserWarning, match=f"STEP 8 IS DAMAGED: .*{newest}"):
        assert Run(tmp_path, resume=True).restored == 4


@pytest.mark.parametrize("harm", [flip, cut, remove])
@pytest.mark.parametrize("position", [0, -1])
def test_a_damaged_segment_is_taken_from_its_copy_and_mended(tmp_path, harm, position):
    Run(tmp_path / "run").train(4).save().train(4).save().close()
    root = tmp_path / "run" / "checkpoints"
    segment = root / "segments" / segments_of(root, 8)[position]["file"]
    content = segment.read_bytes()
    harm(segment)
    with pytest.warns(UserWarning, match=rf"DAMAGED: .*{segment.name}.*its copy is used"):
        run = Run(tmp_path / "run", resume=True)
    assert run.restored == 8
    assert segment.read_bytes() == content
    assert_identical(run.train(4).everything(), uninterrupted(tmp_path / "whole", 12))


def test_a_copy_that_is_missing_is_made_again(tmp_path):
    Run(tmp_path, copies=False).train(4).save().close()
    segments = tmp_path / "checkpoints" / "segments"
    assert not list(segments.glob("*.copy"))
    Run(tmp_path, resume=True).close()
    assert {path.read_bytes() for path in segments.glob("*.copy")} == {p.read_bytes() for p in segments.glob("*.pt")}


def test_nothing_is_lost_or_restarted_if_all_are_damaged(tmp_path):
    Run(tmp_path).train(4).save().train(4).save().close()
    root = tmp_path / "checkpoints"
    shared = segments_of(root, 8)[0]["file"]
    for name in (shared, f"{shared}.copy"):
        flip(root / "segments" / name)
    for _ in range(2):
        with pytest.raises(O2OCheckpointError, match=r"steps \[8, 4\]"), pytest.warns(UserWarning, match="DAMAGED"):
            Checkpointer(root, objects={}).restore()
    for name in (shared, f"{shared}.copy"):
        flip(root / "segments" / name)
    assert Run(tmp_path, resume=True).restored == 8


# Disk


@pytest.mark.parametrize("flushed", range(12))
def test_full_disk_is_an_error_and_the_run_goes_on(tmp_path, monkeypatch, flushed):
    run = Run(tmp_path / "run").train(4).save().train(4)
    root = tmp_path / "run" / "checkpoints"
    calls = itertools.count()
    with monkeypatch.context() as patch:
        real = os.fsync
        patch.setattr(durable.os, "fsync", lambda descriptor: real(descriptor) if next(calls) < flushed else no_space())
        with pytest.raises(O2OCheckpointError, match=r"step 8 cannot be written .*No space left.*make room"):
            run.save()
    assert names(root) == ["latest", "segments", "step-4"]
    segments = [entry["file"] for entry in segments_of(root, 4)]
    assert names(root / "segments") == sorted([*segments, *(f"{name}.copy" for name in segments)])
    run.train(2).save().close()
    run = Run(tmp_path / "run", resume=True)
    assert run.restored == 10
    assert_identical(run.everything(), uninterrupted(tmp_path / "whole", 10))


def test_full_disk_after_the_rename_leaves_a_valid_checkpoint(tmp_path, monkeypatch):
    checkpoint = Checkpointer(tmp_path, objects={"counters": {"updates": 1}}, buffer=new_buffer())
    with monkeypatch.context() as patch:
        patch.setattr(folders, "replace_durably", lambda path, data: no_space())
        with pytest.raises(O2OCheckpointError, match="No space left"):
            checkpoint.save(1)
    checkpoint.save(2)
    assert Checkpointer(tmp_path, objects={"counters": {}}, buffer=new_buffer()).restore() == 2


def test_really_full_disk(tmp_path):
    small = tmp_path / "small"
    small.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=6m", "tmpfs", str(small)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("a small file system can only be mounted by root")
    try:
        weights = {"w": torch.rand(100)}
        checkpoint = Checkpointer(small / "checkpoints", objects={"weights": weights})
        checkpoint.save(1)
        weights["w"] = torch.rand(2_000_000)
        with pytest.raises(O2OCheckpointError, match="No space left"):
            checkpoint.save(2)
        weights["w"] = torch.rand(50)
        checkpoint.save(3)
        assert load_objects(small / "checkpoints", {"weights": weights}) == 3
        assert names(small / "checkpoints") == ["latest", "segments", "step-1", "step-3"]
    finally:
        subprocess.run(["umount", str(small)], check=True)


def test_two_runs_do_not_write_at_once(tmp_path):
    checkpoint = Checkpointer(tmp_path, objects={})
    with FolderLock(tmp_path), pytest.raises(O2OCheckpointError, match="in use by process"):
        checkpoint.save(1)
    checkpoint.save(1)


# Reading some of it


def test_single_objects_are_read_without_changing_anything(tmp_path):
    run = Run(tmp_path).train(5).save()
    (tmp_path / "checkpoints" / "step-9.tmp").mkdir()  # the run is writing
    before = names(tmp_path / "checkpoints")
    net = torch.nn.Sequential(torch.nn.Linear(2, 8), torch.nn.Dropout(0.2), torch.nn.Linear(8, 1))
    assert load_objects(tmp_path / "checkpoints", {"net": net}) == 5
    assert_identical(net.state_dict(), run.net.state_dict())
    assert names(tmp_path / "checkpoints") == before


def test_reading_what_is_not_there_says_what_is(tmp_path):
    with pytest.raises(O2OCheckpointError, match="without a checkpoint"):
        load_objects(tmp_path, {})
    Checkpointer(tmp_path, objects={"net": {}}).save(1)
    with pytest.raises(O2OCheckpointError, match=r"got \['actor'\], expected .*\['net.pt', 'rng.pt'\]"):
        load_objects(tmp_path, {"actor": {}})


def test_the_working_directory_may_change(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Hydra's runs and some environments change it; a folder given from there stays where it was."""
    monkeypatch.chdir(tmp_path)
    counters = {"updates": 1}
    checkpoint = Checkpointer("run/checkpoints", objects={"counters": counters})
    checkpoint.save(1)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    counters["updates"] = 2
    checkpoint.save(2)
    counters["updates"] = 3
    assert (checkpoint.restore(), counters) == (2, {"updates": 2})
    assert (tmp_path / "run/checkpoints/step-2").is_dir()
