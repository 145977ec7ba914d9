# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""examples/{rlpd_pixels,drqv2}.py: a few steps on the task that needs no renderer."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.scripts.phases import newest
from tests.scripts.running import compose, load_script, script_of
from torchrl_o2o.collectors import FrameActor
from torchrl_o2o.commands.cli import main
from torchrl_o2o.data import FrameStorage, load_offline, stack_rows
from torchrl_o2o.deploy import export_policy, load_policy, read_policy
from torchrl_o2o.errors import O2ODataError
from torchrl_o2o.functional import linear_schedule

pytestmark = [
    pytest.mark.filterwarnings("ignore:No target network updater"),
    pytest.mark.filterwarnings("ignore:.*gamma.*"),
]
SHORT: dict[str, Any] = {
    "batch_size": 8,
    "features": (4, 4),
    "latent_dim": 5,
    "hidden_sizes": (8,),
    "eval_every": 20,
    "eval_episodes": 1,
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set in V-D4RL's form, of the task's size."""
    path, rng = tmp_path_factory.mktemp("vd4rl"), np.random.default_rng(0)
    for number in range(3):
        first = np.arange(13) == 0
        rows = {"image": rng.integers(0, 256, (13, 16, 16, 3), dtype=np.uint8), "is_first": first}
        action, reward = rng.uniform(-1, 1, (13, 2)).astype(np.float32), np.ones(13, np.float32)
        np.savez(path / f"2024010{number}T000000-{number}-13.npz", action=action, reward=reward, **rows)
    return path


def lines(capsys: pytest.CaptureFixture[str]) -> list[str]:
    found = (re.match(r"step (-?\d+): return -?\d+\.\d, ", line) for line in capsys.readouterr().out.splitlines())
    return [match.group(1) for match in found if match]


def test_rlpd_pixels(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    script = load_script("examples/rlpd_pixels.py")
    settings = {"dataset": str(folder), "total_frames": 60, "init_random_frames": 20, "num_qvalue_nets": 2}
    loss = script.main(script.Config(**SHORT, **settings, utd_ratio=2))
    assert all(value.isfinite().all() for value in loss.parameters())
    assert lines(capsys) == ["40", "60"]


def script_settings(run: Path, folder: Path, *words: str) -> Any:
    tiny = ("encoder.features=[4,4]", "encoder.latent_dim=5", "actor.hidden_sizes=[8]", "qvalue.hidden_sizes=[8]")
    short = ("online.total_frames=60", "online.init_random_frames=20", "online.batch_size=8", "utd_ratio=2")
    often = ("schedule.eval_every=20", "schedule.log_every=10", "schedule.checkpoint_every=30")
    words = (*tiny, *short, *often, "qvalue.num_qvalue_nets=2", "evaluation.num_episodes=1", *words)
    return compose("rlpd_pixels", f"run_dir={run}", f"dataset.source={folder}", *words)


def test_twins_end_in_the_same_parameters(folder: Path, tmp_path: Path) -> None:
    script = load_script("examples/rlpd_pixels.py")
    settings = {"dataset": str(folder), "total_frames": 60, "init_random_frames": 20, "num_qvalue_nets": 2}
    loss = script.main(script.Config(**SHORT, **settings, utd_ratio=2))
    script_of("rlpd_pixels").train(script_settings(tmp_path / "run", folder))
    theirs = newest(tmp_path / "run", "loss")
    for name, value in loss.state_dict().items():
        assert torch.equal(value, theirs[name]), name


def check_policy(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The run's policy acts on raw frames as on stacks, is evaluated, exported, and drawn without a renderer."""
    policy = read_policy(run)
    assert (policy.dims, policy.sees) == ((9, 16, 16, 2), True)
    act, frame = FrameActor(load_policy(run)), np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8)
    np.testing.assert_array_equal(act(frame), act(np.tile(np.moveaxis(frame, -1, 0), (3, 1, 1))))
    assert main(["evaluate", str(run), "--episodes", "2", "--video", str(run / "seen.gif")]) == 0
    assert main(["play", str(run)]) == 0
    assert "policy.gif: 26 frames, return" in capsys.readouterr().out
    assert {"policy.gif", "seen-best.gif", "seen-worst.gif"} <= {path.name for path in run.iterdir()}
    exported = torch.export.load(export_policy(run, run / "policy.pt2")).module()
    stacks = torch.randint(0, 256, (4, 9, 16, 16), dtype=torch.uint8)
    torch.testing.assert_close(exported(stacks), torch.from_numpy(act(stacks.numpy())), rtol=0.0, atol=1e-6)


def test_resumed_equals_uninterrupted(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Stopped in the middle of an episode, frames and all."""
    script_of("rlpd_pixels").train(script_settings(tmp_path / "whole", folder))
    with pytest.raises(RuntimeError, match="stopped"), stopped_after(37):
        script_of("rlpd_pixels").train(script_settings(tmp_path / "run", folder))
    script_of("rlpd_pixels").train(script_settings(tmp_path / "run", folder, "resume=true"))
    whole, resumed = (newest(tmp_path / name, "loss") for name in ("whole", "run"))
    assert all(torch.equal(value, resumed[name]) for name, value in whole.items())
    check_policy(tmp_path / "run", capsys)


@contextmanager
def stopped_after(steps: int) -> Iterator[None]:
    """Let a run die in its update after so many transitions, as a killed process does."""
    before, count = FrameStorage.set, itertools.count(1)

    def dying(self: FrameStorage, *args: Any, **kwargs: Any) -> None:
        if kwargs.get("set_cursor", True) and next(count) > steps:
            raise RuntimeError("stopped")
        before(self, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FrameStorage, "set", dying)
        yield


def test_published_settings() -> None:
    """Ball et al. 2023, the authors' `rlpd_pixels_config` and command."""
    cfg = compose("rlpd_pixels", "preset=paper")
    assert (cfg.qvalue.num_qvalue_nets, cfg.loss.sub_sample_len, cfg.loss.entropy_backup) == (10, 1, False)
    assert (cfg.optim.lr, cfg.target.tau, cfg.value_estimator.gamma, cfg.temperature.init) == (3e-4, 0.005, 0.99, 0.1)
    assert (list(cfg.encoder.features), list(cfg.encoder.strides)) == ([32, 64, 128, 256], [2, 2, 2, 2])
    assert (cfg.online.batch_size, cfg.online.init_random_frames, cfg.pad, cfg.utd_ratio) == (256, 5_000, 4, 1)


def test_drqv2(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    script = load_script("examples/drqv2.py")
    loss = script.main(script.Config(**SHORT, dataset=str(folder), offline_steps=20, total_frames=60))
    assert all(value.isfinite().all() for value in loss.parameters())
    assert float(loss.std) < 1.0
    assert lines(capsys) == ["0", "20", "40", "60"]


def drqv2_settings(run: Path, folder: Path, *words: str) -> Any:
    tiny = ("encoder.features=[4,4]", "actor.latent_dim=5", "actor.hidden_sizes=[8]", "qvalue.hidden_sizes=[8]")
    short = ("offline.num_steps=20", "online.batch_size=8", "evaluation.num_episodes=1", "schedule.eval_every=10")
    often = ("schedule.log_every=5", "schedule.checkpoint_every=10")
    return compose("drqv2", f"run_dir={run}", f"dataset.source={folder}", *tiny, *short, *often, *words)


def test_the_drqv2_script_learns_offline_the_same_twice(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train = script_of("drqv2").train
    train(drqv2_settings(tmp_path / "whole", folder))
    train(drqv2_settings(tmp_path / "run", folder))
    whole, again = (newest(tmp_path / name, "loss") for name in ("whole", "run"))
    assert all(torch.equal(value, again[name]) for name, value in whole.items())
    assert float(whole["std"]) < 1.0
    check_policy(tmp_path / "run", capsys)
    cfg = compose("drqv2", "preset=paper")
    assert (cfg.offline.num_steps, cfg.optim.lr, cfg.target.tau, cfg.cloning.bc_weight) == (550_000, 3e-4, 0.01, 2.5)


def test_drqv2s_noise_is_the_counters_before_each_update(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """V-D4RL counts two steps an update from 0, so the first update has the full noise; then the steps online count."""
    script, counted = script_of("drqv2"), list[int]()

    def spy(step: int, *schedule: Any) -> float:
        counted.append(step)
        return linear_schedule(step, *schedule)

    monkeypatch.setattr(script, "linear_schedule", spy)
    script.train(drqv2_settings(tmp_path, folder, "offline.num_steps=3", "online.total_frames=2"))
    assert counted == [0, 2, 4, 6, 7, 8]


@pytest.mark.parametrize("source", [None, "folder"])
def test_drqv2_resumed_online_equals_uninterrupted(source: str | None, folder: Path, tmp_path: Path) -> None:
    """Without data, stopped while an episode's rows wait for its end; and continued from data."""
    offline = () if source else ("preset=online", "offline.num_steps=0", "dataset.source=null")
    words = ("algorithm=drqv2", "online.total_frames=60", "online.init_random_frames=26", "n_step=3", *offline)
    words = (*words, "channels_last=true")
    words = (*words, "encoder.strides=[2,1]", "pad=1", "online.buffer_size=100", "schedule.checkpoint_every=9")
    train = script_of("drqv2").train
    train(drqv2_settings(tmp_path / "whole", folder, *words))
    if source is None:
        with pytest.raises(RuntimeError, match="stopped"), stopped_after(1):
            train(drqv2_settings(tmp_path / "run", folder, *words))
        train(drqv2_settings(tmp_path / "run", folder, *words, "resume=true"))
        whole, resumed = (newest(tmp_path / name, "loss") for name in ("whole", "run"))
        assert all(torch.equal(value, resumed[name]) for name, value in whole.items())
    policy = read_policy(tmp_path / "whole")
    assert policy.parts.distribution is None


def test_drqv2_published_settings_and_cloning(folder: Path, tmp_path: Path) -> None:
    """Yarats et al. 2021, medium tasks; V-D4RL's cloning moves actor and encoder."""
    cfg = compose("drqv2", "preset=online")
    assert (cfg.algorithm, cfg.offline.num_steps, cfg.offline_fraction, cfg.dataset.source) == ("drqv2", 0, 0.0, None)
    assert (cfg.optim.lr, cfg.n_step, cfg.update_every, cfg.online.batch_size) == (1e-4, 3, 2, 256)
    assert (cfg.std.start, cfg.std.end, cfg.std.duration, cfg.loss.noise_clip) == (1.0, 0.1, 500_000, 0.3)
    assert (cfg.online.init_random_frames, cfg.online.buffer_size, cfg.target.tau) == (2_000, 1_000_000, 0.01)
    script_of("drqv2").train(drqv2_settings(tmp_path, folder, "algorithm=bc", "offline.num_steps=4"))
    assert read_policy(tmp_path).sees


@pytest.mark.parametrize(("size", "actions"), [(20, 2), (16, 3)])
def test_data_of_another_environment_are_refused_first(size: int, actions: int, tmp_path: Path) -> None:
    random, first = np.random.default_rng(0), np.arange(12) == 0
    np.savez(
        tmp_path / "a.npz",
        image=random.integers(0, 256, (12, size, size, 3), np.uint8),
        is_first=first,
        action=random.uniform(-1, 1, (12, actions)),
        reward=random.uniform(size=12),
    )
    message = (
        rf"a\.npz with stacks of frames \[9, {size}, {size}\] and {actions} numbers an action, .* \[9, 16, 16\] and 2"
    )
    for script, words in (("rlpd_pixels", ()), ("drqv2", ("offline.num_steps=4",))):
        run = (f"run_dir={tmp_path / script}", f"dataset.source={tmp_path / 'a.npz'}", "preset=cpu")
        with pytest.raises(O2ODataError, match=message):
            script_of(script).train(compose(script, *run, *words))


@pytest.mark.parametrize("words", [(), ("penalty.target_gap=0.5",)])
def test_v_d4rls_cql(words: tuple[str, ...], folder: Path, tmp_path: Path) -> None:
    """Lu et al. 2023, their command; a multiplier is trained if asked for."""
    cfg = compose("drqv2", "preset=paper")
    assert (cfg.penalty.weight, cfg.penalty.num_actions, cfg.penalty.importance_sampling) == (10.0, 10, False)
    words = ("algorithm=drqv2_cql", "n_step=1", "penalty.num_actions=2", "offline.num_steps=4", *words)
    script_of("drqv2").train(drqv2_settings(tmp_path, folder, *words, "schedule.checkpoint_every=4"))
    assert (newest(tmp_path, "loss")["penalty.log_multiplier"].item() != 0.0) == (len(words) == 5)
    assert read_policy(tmp_path).sees


@pytest.mark.slow
def test_recorded_frames_are_learned_from_and_the_policy_records(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Frames are recorded at random, a run learns from them on rendered frames, and its policy records more."""
    pytest.importorskip("minari")
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "sets"))
    words = ["--env", "o2o/DotReach-v0", "--size", "12", "--action-repeat", "2"]
    assert main(["data", "make", "dot/random-v0", *words, "--steps", "60"]) == 0
    rendered = ("+env.render_size=12", "+env.action_repeat=2", "dataset.source=dot/random-v0", "pad=1")
    script_of("rlpd_pixels").train(script_settings(tmp_path / "run", tmp_path, *rendered))
    policy = read_policy(tmp_path / "run")
    assert (policy.dims, policy.env["render_size"]) == ((9, 12, 12, 2), 12)
    assert main(["data", "make", "dot/rlpd-v0", *words, "--steps", "30", "--policy", str(tmp_path / "run")]) == 0
    assert main(["evaluate", str(tmp_path / "run"), "--episodes", "1", "--video", str(tmp_path / "seen.gif")]) == 0
    assert "episode" in capsys.readouterr().out
    data = stack_rows(load_offline("dot/rlpd-v0"))
    act = FrameActor(load_policy(tmp_path / "run", native_actions=False))
    stacks = data.stacks(torch.arange(13))["observation"]
    np.testing.assert_allclose(act(stacks.numpy()), data.rows["action"][:13], rtol=0.0, atol=1e-6)
