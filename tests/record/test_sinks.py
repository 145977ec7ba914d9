# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""What the optional sinks receive, and what happens where they cannot work."""

from __future__ import annotations

import sys
import types
from contextlib import suppress

import numpy as np
import pytest
import torch

from torchrl_o2o.envs.video import write_video
from torchrl_o2o.errors import O2OSpecError
from torchrl_o2o.record.files import read_run
from torchrl_o2o.record.recorder import Recorder


def test_tensorboard_events_hold_the_metrics(tmp_path):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    with Recorder(tmp_path, config={}, tensorboard=True) as recorder:
        recorder.log(4, {"eval/return": 2.5})
    events = accumulator.EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [(event.step, event.value) for event in events.Scalars("eval/return")] == [(4, 2.5)]


def test_tensorboard_shows_gifs(tmp_path):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    video = write_video(tmp_path / "a.gif", [np.zeros((8, 8, 3), np.uint8)] * 2, 10.0)
    with Recorder(tmp_path / "run", config={}, tensorboard=True) as recorder:
        recorder.show(4, {"best": video})
        with pytest.warns(UserWarning, match=r"GIFs and not a\.mp4"):
            recorder.show(5, {"best": video.with_suffix(".mp4")})
        recorder.log(6, {"a": 1.0})
    events = accumulator.EventAccumulator(str(tmp_path / "run" / "tensorboard"))
    events.Reload()
    (image,) = events.Images("evaluation/best")
    assert (image.step, image.encoded_image_string) == (4, video.read_bytes())
    assert events.Scalars("a")


def test_wandb_gets_the_file_and_a_failing_sink_ends_nothing(tmp_path, monkeypatch):
    fake = FakeWandb()
    fake.Video = lambda path, format: (path, format)
    monkeypatch.setitem(sys.modules, "wandb", fake)
    with Recorder(tmp_path / "run", config={}, wandb={"mode": "offline"}) as recorder:
        recorder.show(4, {"best": tmp_path / "a.mp4"})
        del fake.Video
        with pytest.warns(UserWarning, match="WandbSink FAILED"):
            recorder.show(5, {"best": tmp_path / "a.mp4"})
        recorder.log(6, {"a": 1.0})
    assert fake.rows == [{"step": 4, "evaluation/best": (str(tmp_path / "a.mp4"), "mp4")}]


class FakeWandb(types.ModuleType):
    """Refuses to go online, as wandb does without a key or a network."""

    class errors:
        class Error(Exception):
            pass

    def __init__(self):
        super().__init__("wandb")
        self.calls, self.rows, self.finished, self.metrics, self.summary = [], [], False, {}, {}

    def init(self, **settings):
        self.calls.append(settings)
        if settings.get("mode") != "offline":
            raise self.errors.Error("no key")
        return self

    def define_metric(self, name, **options):
        self.metrics[name] = options

    def log(self, row):
        self.rows.append(row)

    def finish(self, exit_code=0):
        self.finished, self.exit_code = True, exit_code


def test_wandb_without_a_key_goes_on_offline_with_a_warning(tmp_path, monkeypatch):
    fake = FakeWandb()
    monkeypatch.setitem(sys.modules, "wandb", fake)
    with pytest.warns(UserWarning, match="WANDB IS OFFLINE: no key"):
        recorder = Recorder(tmp_path, config={"gamma": 0.9}, wandb={"project": "p"})
    with recorder:
        recorder.log(1, {"train/a": torch.tensor(2.0)})
    assert [call.get("mode") for call in fake.calls] == [None, "offline"]
    assert fake.calls[1]["project"] == "p"
    assert fake.calls[1]["config"] == {"gamma": 0.9}
    assert fake.calls[1]["id"] == read_run(tmp_path)["id"]
    assert fake.rows == [{"step": 1, "train/a": 2.0}]
    assert fake.metrics["*"] == {"step_metric": "step"}
    assert fake.finished


@pytest.mark.parametrize("error", [None, ValueError])
def test_wandb_knows_whether_a_run_failed(tmp_path, monkeypatch, error):
    fake = FakeWandb()
    monkeypatch.setattr(fake, "init", lambda **settings: fake)
    monkeypatch.setitem(sys.modules, "wandb", fake)
    with suppress(ValueError), Recorder(tmp_path, config={}, wandb={}) as recorder:
        recorder.log(1, {"train/a": 1.0})
        if error is not None:
            raise error
    assert (fake.finished, fake.exit_code) == (True, 0 if error is None else 1)


def test_wandb_that_is_not_installed_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(O2OSpecError, match=r"pip install torchrl_o2o\[wandb\]"):
        Recorder(tmp_path, config={}, wandb={})


def test_progress_bar_shows_the_step_and_metrics(tmp_path, capsys):
    with Recorder(tmp_path, config={}, progress_total=8) as recorder:
        recorder.log(2, {"train/loss": 0.25})
        recorder.log(8, {"train/loss": 0.5})
    shown = capsys.readouterr().err
    assert "8/8" in shown
    assert "loss=0.5" in shown


def test_tensorboard_that_is_not_installed_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(O2OSpecError, match=r"pip install torchrl_o2o\[tensorboard\]"):
        Recorder(tmp_path, config={}, tensorboard=True)


def test_a_sink_that_fails_to_start_leaves_the_folder_free(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(O2OSpecError):
        Recorder(tmp_path, config={}, wandb={})
    Recorder(tmp_path, config={}).close()
