# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""The run's record: what is written, what is refused, and that a resumed run ends with the same file."""

from __future__ import annotations

import importlib.metadata
import json
import math
import os
import subprocess
import sys
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from tensordict import TensorDict

from torchrl_o2o.errors import O2OCheckpointError, O2OSpecError
from torchrl_o2o.record.files import read_metrics, read_run
from torchrl_o2o.record.recorder import Recorder


def rows_without_time(folder):
    return [{name: value for name, value in row.items() if name != "time"} for row in read_metrics(folder)]


def test_rows_hold_numbers_of_every_kind(tmp_path):
    with Recorder(tmp_path, config={}) as recorder:
        recorder.log(
            3,
            {
                "a/float": 0.5,
                "a/int": 2**53 + 1,
                "a/bool": True,
                "a/tensor": torch.tensor([1.25], requires_grad=True),
                "a/long": torch.tensor(7),
                "a/numpy": np.float32(0.75),
            },
        )
    (row,) = read_metrics(tmp_path)
    assert row.pop("time") >= 0
    expected = {"a/float": 0.5, "a/int": 2**53 + 1, "a/bool": 1, "a/tensor": 1.25, "a/long": 7, "a/numpy": 0.75}
    assert row == {"step": 3} | expected


def test_non_finite_values_are_strings_in_the_file_and_floats_when_read(tmp_path):
    with Recorder(tmp_path, config={}) as recorder:
        recorder.log(0, {"a/nan": math.nan, "a/inf": torch.tensor(math.inf), "a/minus": -math.inf})
    stored = json.loads((tmp_path / "metrics.jsonl").read_text())
    assert (stored["a/nan"], stored["a/inf"], stored["a/minus"]) == ("nan", "inf", "-inf")
    (row,) = read_metrics(tmp_path)
    assert math.isnan(row["a/nan"])
    assert (row["a/inf"], row["a/minus"]) == (math.inf, -math.inf)


@pytest.mark.parametrize(
    ("metrics", "message"),
    [
        ({"loss": torch.zeros(2)}, r"'loss' of shape \(2,\)"),
        ({"loss": torch.zeros(0)}, r"shape \(0,\)"),
        ({"loss": "high"}, "a str as metric 'loss'"),
        ({"loss": torch.tensor(1j)}, "a complex as metric"),
        ({"loss": np.ma.array([1.0], mask=[True])}, "metric 'loss' of which 1 are masked"),
        ({"loss": np.ma.masked}, "metric 'loss' of which 1 are masked"),
        ({"": 1.0}, "metric name '', expected a word"),
        ({"step": 1.0}, "'step', which is a reserved column"),
        ({"time": 1.0}, "train/time"),
    ],
)
def test_what_is_not_a_number_is_refused(tmp_path, metrics, message):
    with Recorder(tmp_path, config={}) as recorder, pytest.raises(O2OSpecError, match=message):
        recorder.log(0, metrics)
    assert read_metrics(tmp_path) == []


def test_steps_may_repeat_but_never_go_down(tmp_path):
    with Recorder(tmp_path, config={}) as recorder:
        recorder.log(1, {"train/a": 0})
        recorder.log(1, {"eval/a": 1})
        with pytest.raises(O2OSpecError, match="step 0 after step 1"):
            recorder.log(0, {"train/a": 0})


def test_a_row_is_readable_before_the_recorder_is_closed(tmp_path):
    with Recorder(tmp_path, config={}) as recorder:
        recorder.log(1, {"train/a": 1})
        assert rows_without_time(tmp_path) == [{"step": 1, "train/a": 1}]


def test_run_file_describes_the_run_without_the_environment(tmp_path, monkeypatch):
    @dataclass
    class Config:
        gamma: float = 0.99
        hidden: tuple[int, ...] = (256, 256)
        target: float = math.inf
        data: Path = Path("a/b")
        dtype: torch.dtype = torch.float32

    monkeypatch.setenv("WANDB_API_KEY", "a-secret-value")
    monkeypatch.setattr(sys, "argv", ["train.py", "name=two words"])
    Recorder(tmp_path, config=Config(), seed=3).close()
    run = read_run(tmp_path)
    expected = {
        "gamma": 0.99,
        "hidden": [256, 256],
        "target": "inf",
        "data": "a/b",
        "dtype": "torch.float32",
        "seed": 3,
    }
    assert run["config"] == expected
    assert run["command"] == "train.py 'name=two words'"
    # The metadata of a CUDA build name the release alone, where the module adds "+cu130".
    assert run["versions"]["torch"] == importlib.metadata.version("torch")
    assert torch.__version__.startswith(run["versions"]["torch"])
    assert run["threads"] == torch.get_num_threads()
    assert "a-secret-value" not in (tmp_path / "run.json").read_text()


def test_seed_may_not_contradict_the_configuration(tmp_path):
    with pytest.raises(O2OSpecError, match=r"seed=1 and config\['seed'\]=2"):
        Recorder(tmp_path, config={"seed": 2}, seed=1)


def test_a_folder_with_a_run_is_refused_unless_resumed(tmp_path):
    Recorder(tmp_path, config={"a": 1}).close()
    with pytest.raises(O2OCheckpointError, match=r"already contains a run \(run.json, metrics.jsonl\); resume it"):
        Recorder(tmp_path, config={"a": 1})
    Recorder(tmp_path, config={"a": 2}, resume=True).close()
    run = read_run(tmp_path)
    assert run["config"] == {"a": 1}
    assert [again["config"] for again in run["resumed"]] == [{"a": 2}]


def test_foreign_files_and_resume_of_nothing_are_fine(tmp_path):
    (tmp_path / ".hydra").mkdir()
    Recorder(tmp_path, config={}).close()
    Recorder(tmp_path / "fresh", config={}, resume=True).close()
    assert "resumed" not in read_run(tmp_path / "fresh")


def train(recorder, counters, until):
    while counters["step"] < until:
        counters["step"] += 1
        recorder.log(counters["step"], {"train/value": counters["step"] ** 0.5})


def test_resumed_run_ends_with_the_file_of_an_uninterrupted_one(tmp_path):
    with Recorder(tmp_path / "whole", config={}) as recorder:
        train(recorder, {"step": 0}, 9)
    with Recorder(tmp_path / "parts", config={}) as recorder:
        train(recorder, {"step": 0}, 4)
        state = json.loads(json.dumps(recorder.state_dict()))
        train(recorder, {"step": 4}, 7)
    with open(tmp_path / "parts" / "metrics.jsonl", "ab") as file:
        file.write(b'{"step": 8, "tra')  # killed within a write
    with Recorder(tmp_path / "parts", config={}, resume=True) as recorder:
        recorder.load_state_dict(state)
        train(recorder, {"step": 4}, 9)
    assert rows_without_time(tmp_path / "parts") == rows_without_time(tmp_path / "whole")
    times = [row["time"] for row in read_metrics(tmp_path / "parts")]
    assert times == sorted(times)


def test_time_goes_on_from_the_checkpoint(tmp_path):
    with Recorder(tmp_path, config={}) as recorder:
        recorder.load_state_dict(recorder.state_dict() | {"seconds": 1000.0})
        recorder.log(1, {})
    assert 1000 <= read_metrics(tmp_path)[0]["time"] < 1010


def test_resume_without_a_state_drops_the_rows_it_will_write_again(tmp_path):
    with Recorder(tmp_path, config={}) as recorder:
        train(recorder, {"step": 0}, 5)
    with Recorder(tmp_path, config={}, resume=True) as recorder:
        with pytest.warns(UserWarning, match="3 rows from step 3 on are dropped"):
            recorder.log(3, {"train/value": 0.0})
        recorder.log(4, {"train/value": 0.0})
    assert [row["step"] for row in read_metrics(tmp_path)] == [1, 2, 3, 4]


def test_state_of_a_longer_file_is_refused(tmp_path):
    with (
        Recorder(tmp_path, config={}) as recorder,
        pytest.raises(O2OCheckpointError, match=r"at least 99 .*: rows were"),
    ):
        recorder.load_state_dict({"position": 99, "step": 4, "seconds": 0.0})


def test_second_writer_in_the_folder_is_refused_and_the_first_one_named(tmp_path):
    with Recorder(tmp_path, config={}), pytest.raises(O2OCheckpointError, match=f"in use by process {os.getpid()} on"):
        Recorder(tmp_path, config={}, resume=True)
    Recorder(tmp_path, config={}, resume=True).close()


def test_lock_of_another_process_holds_until_it_is_killed(tmp_path):
    code = (
        "import sys, time; from torchrl_o2o.record import Recorder; "
        "recorder = Recorder(sys.argv[1], config={}); print('ready', flush=True); time.sleep(60)"
    )
    other = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    try:
        assert other.stdout.readline() == "ready\n"
        with pytest.raises(O2OCheckpointError, match=f"in use by process {other.pid} on"):
            Recorder(tmp_path, config={}, resume=True)
    finally:
        other.kill()
        other.wait()
    Recorder(tmp_path, config={}, resume=True).close()


def test_failed_start_frees_the_folder(tmp_path):
    Recorder(tmp_path, config={}).close()
    with pytest.raises(O2OCheckpointError, match="already contains a run"):
        Recorder(tmp_path, config={})
    Recorder(tmp_path, config={}, resume=True).close()


def test_unwritable_folder_is_an_error_at_the_start(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(O2OCheckpointError, match="cannot make the run folder"):
        Recorder(tmp_path / "file" / "run", config={})


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_read_only_folder_is_an_error_at_the_start(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(O2OCheckpointError, match="choose a writable"):
        Recorder(tmp_path, config={})


def test_full_disk_leaves_whole_rows(tmp_path):
    code = (
        "import resource, signal, sys; from torchrl_o2o.record import Recorder\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "recorder = Recorder(sys.argv[1], config={})\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        "for step in range(100): recorder.log(step, {'train/value': step})"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True)
    assert "O2OCheckpointError" in done.stderr
    assert "make room on the disk" in done.stderr
    assert (tmp_path / "metrics.jsonl").read_bytes().endswith(b"\n")
    steps = [row["step"] for row in read_metrics(tmp_path)]
    assert steps == list(range(len(steps)))
    assert len(steps) > 10


def test_readers_name_the_line_and_the_file(tmp_path):
    with pytest.raises(O2OCheckpointError, match=r"cannot read .*metrics.jsonl"):
        read_metrics(tmp_path)
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\nnonsense\n')
    with pytest.raises(O2OCheckpointError, match="line 2 is not a row"):
        read_metrics(tmp_path)
    (tmp_path / "run.json").write_text("{")
    with pytest.raises(O2OCheckpointError, match="is not JSON"):
        read_run(tmp_path)


def test_a_run_is_resumed_with_its_own_seed(tmp_path):
    with Recorder(tmp_path, config={}, seed=1) as recorder:
        recorder.log(0, {"loss": 1.0})
    with pytest.raises(O2OSpecError, match=r"got seed=2 for the run in .*, which has the seed 1"):
        Recorder(tmp_path, config={}, seed=2, resume=True)
    with Recorder(tmp_path, config={}, seed=1, resume=True) as recorder:
        recorder.log(1, {"loss": 1.0})


def test_a_dumped_view_takes_no_more_room_than_its_rows(tmp_path):
    rows = TensorDict({"reward": torch.zeros(100_000)}, [100_000])
    with Recorder(tmp_path, config={}) as recorder:
        file = recorder.dump("few", rows[:2])
    assert file.stat().st_size < 10_000


def test_batch_is_dumped_for_a_look(tmp_path):
    batch = TensorDict({"observation": torch.rand(3, 2), ("next", "reward"): torch.full((3, 1), math.nan)}, [3])
    with Recorder(tmp_path, config={}) as recorder:
        path = recorder.dump("offending-batch", batch)
        with pytest.raises(O2OCheckpointError, match="cannot write"):
            recorder.dump("absent/folder", batch)
    dumped = torch.load(path, weights_only=True)
    assert dumped["next"]["reward"].isnan().all()
    assert torch.equal(dumped["observation"], batch["observation"])


def test_nothing_warns_in_a_plain_run(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with Recorder(tmp_path, config={}, seed=1) as recorder:
            recorder.log(1, {"train/a": 1.0})


@pytest.mark.parametrize("step", [1.5, "1", None, math.nan, math.inf, [1], torch.ones(2)])
def test_steps_are_whole_numbers(tmp_path: Path, step: object) -> None:
    with Recorder(tmp_path, config={}) as recorder, pytest.raises(O2OSpecError, match="expected a whole number"):
        recorder.log(step, {"train/loss": 1.0})  # type: ignore[arg-type]


def test_steps_of_any_kind_of_whole_number(tmp_path: Path) -> None:
    with Recorder(tmp_path, config={}) as recorder:
        for step in (-1, 0.0, np.int64(1), torch.tensor(2), np.float32(3)):
            recorder.log(step, {})  # type: ignore[arg-type]
        for metrics in ({1: 2.0}, {"train/loss": 10**400}):
            with pytest.raises(O2OSpecError, match=r"metric name 1, a int|with 1329 bits"):
                recorder.log(4, metrics)  # type: ignore[arg-type]
    assert [row["step"] for row in read_metrics(tmp_path)] == [-1, 0, 1, 2, 3]
    with pytest.raises(O2OSpecError, match="was closed"):
        recorder.log(5, {})


@pytest.mark.parametrize("row", ['{"step": 1, "x": null}', '{"x": 1}', '{"step": "a"}', "[1]", "3", "[" * 100_000])
def test_rows_that_are_none_are_named(tmp_path: Path, row: str) -> None:
    (tmp_path / "metrics.jsonl").write_text(f'{{"step": 0, "x": 1}}\n{row}\n')
    with pytest.raises(O2OCheckpointError, match="line 2 is not a row of metrics"):
        read_metrics(tmp_path)


@pytest.mark.parametrize("run", ["[]", "3", '{"config": []}', '{"versions": null}', '{"command": 5}', "[" * 100_000])
def test_what_describes_no_run_is_told(tmp_path: Path, run: str) -> None:
    (tmp_path / "run.json").write_text(run)
    with pytest.raises(O2OCheckpointError, match=r"run\.json is (not JSON|JSON, but)"):
        read_run(tmp_path)


def test_the_working_directory_may_change(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "elsewhere").mkdir()
    with Recorder("run", config={"seed": 0}) as recorder:
        monkeypatch.chdir(tmp_path / "elsewhere")
        recorder.log(1, {"train/x": 1.0})
        recorder.note("lineage", ["a"])
    assert (len(read_metrics(tmp_path / "run")), read_run(tmp_path / "run")["lineage"]) == (1, ["a"])


def test_metrics_that_are_none_and_bytes_are_refused(tmp_path: Path) -> None:
    words = r"got metrics=None, a NoneType, expected a dictionary of numbers"
    with Recorder(tmp_path / "run", config={"seed": 0}) as recorder, pytest.raises(O2OSpecError, match=words):
        recorder.log(1, None)  # pyright: ignore[reportArgumentType]
    with pytest.raises(O2OSpecError, match="config value key is a bytes"):
        Recorder(tmp_path / "other", config={"key": b"xx"})


def test_a_tilde_is_not_the_name_of_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not every shell replaces the one of `run_dir=~/runs`; removing a folder called "~" is dangerous."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(O2OSpecError, match=r"got the folder ~/runs, which would be .*write your home folder in full"):
        Recorder("~/runs", config={})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["../batch", "a/../../b", "", "/batch"])
def test_dumps_stay_in_the_folder_of_the_run(tmp_path: Path, name: str) -> None:
    with Recorder(tmp_path / "run", config={}) as recorder, pytest.raises(O2OSpecError, match="in the run's folder"):
        recorder.dump(name, TensorDict({}, []))
    assert not list(tmp_path.rglob("*.pt"))


def test_a_closed_recorder_has_no_state(tmp_path: Path) -> None:
    with Recorder(tmp_path, config={}) as recorder:
        state = recorder.state_dict()
    for call in (recorder.state_dict, lambda: recorder.load_state_dict(state)):
        with pytest.raises(O2OSpecError, match=r"after the recorder of .* was closed.*'with' block"):
            call()
