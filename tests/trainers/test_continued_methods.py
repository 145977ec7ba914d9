# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""What is a method's own when a run continues from recordings: pools, phases, confidences, weights that fall."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torchrl.data import LazyTensorStorage, TensorDictReplayBuffer
from torchrl.data.replay_buffers.samplers import RandomSampler

from tests.scripts.phases import assert_equal, dying, newest, rows
from tests.trainers.test_continuing import EVERY, record, train
from torchrl_o2o.checkpoint.reading import newest_valid, read_rows
from torchrl_o2o.data import ChunkSampler, OnlineWriter
from torchrl_o2o.functional.alignment import interpolation_weight
from torchrl_o2o.trainers import continue_run

pytestmark = [
    pytest.mark.usefixtures("linear_medium"),
    pytest.mark.filterwarnings("ignore:No target network updater", "ignore:.*columns of", "ignore:.*gamma"),
    pytest.mark.filterwarnings("ignore:.*(collapsed|reach the threshold).*", "ignore:.*no row is at a time limit"),
]
_FRAMES, _NEW = 24, 30
WORDS = {
    "a3rl": ("utd_ratio=2", "advantage.num_samples=2", "pool_multiplier=1", "online.init_random_frames=4"),
    "sope": (
        "online.init_random_frames=4",
        "phases.every=13",
        "phases.rule={max_updates: 4, check_every: 2, patience: 100, sope_code: false}",
    ),
    "samg": ("encoder.hidden_sizes=[16]", "encoder.num_steps=6", "handover.warmup_steps=2", "threshold=0.2"),
    "aca": ("baseline.hidden_sizes=[16]",),
    "qc": ("hidden_sizes=[16]", "phases.flow.warmup=0", "algorithm=qc_fql"),
}


def stored(run: Path) -> tuple[dict[str, int], Any]:
    """Sizes of the regions in the newest checkpoint, and all rows."""
    manifest, _ = newest_valid(run / "checkpoints")
    assert manifest is not None
    sizes = {region["name"]: min(region["total"], region["capacity"]) for region in manifest["buffer"]["regions"]}
    return sizes, read_rows(run / "checkpoints", manifest)


def of(run: Path, name: str) -> list[Any]:
    """What was logged in the continuations."""
    return [row[f"train/{name}"] for row in rows(run) if row["step"] > _FRAMES and f"train/{name}" in row]


@pytest.mark.parametrize("script", ["a3rl", pytest.param("sope", marks=pytest.mark.slow), "samg"])
def test_a_round_killed_in_the_middle_goes_on_bit_for_bit(tmp_path: Path, script: str) -> None:
    whole = train(tmp_path / "whole", script, *WORDS[script])
    parts, new = Path(shutil.copytree(whole, tmp_path / "parts")), record(tmp_path / "new.npz")
    continue_run(whole, [new], num_steps=4, schedule=EVERY)
    with dying("online", _FRAMES + 2):
        continue_run(parts, [new], num_steps=4, schedule=EVERY)
    continue_run(parts, resume=True, schedule=EVERY)
    assert rows(whole) == rows(parts)
    for name in ("loss", "actor_optim", "qvalue_optim", "update", "rng", "buffer", "counters"):
        assert_equal(newest(whole, name), newest(parts, name), name)


def test_the_pool_of_a3rl_and_its_density_ratio_go_on(tmp_path: Path) -> None:
    run = train(tmp_path / "run", "a3rl", *WORDS["a3rl"])
    ratio, sampler = newest(run, "density_ratio_loss"), newest(run, "buffer")["sampler"]
    num_offline = stored(run)[0]["offline"]
    for seed in (0, 1):
        continue_run(run, [record(tmp_path / f"{seed}.npz", seed)], num_steps=3, schedule=EVERY)
    assert stored(run)[0] == {"offline": num_offline, "online": _FRAMES + 2 * _NEW}
    learnt = newest(run, "density_ratio_loss")
    assert any(not torch.equal(value, ratio[name]) for name, value in learnt.items())
    assert newest(run, "buffer")["sampler"]["beta"] == sampler["beta"]
    assert len(of(run, "kl_to_uniform")) == len(of(run, "loss_density_ratio")) == 6
    assert 0.0 < sum(of(run, "offline_share")) < 6.0


def test_a3rl_by_turns_goes_on_by_score_alone(tmp_path: Path) -> None:
    run = train(tmp_path / "run", "a3rl", *WORDS["a3rl"], "alternate=[1,100]")
    assert newest(run, "buffer")["sampler"]["alpha"] == 0.0, "the last step was a uniform one"
    continue_run(run, [record(tmp_path / "new.npz")], num_steps=2, schedule=EVERY)
    assert newest(run, "buffer")["sampler"]["alpha"] == 0.3
    assert len(of(run, "kl_to_uniform")) == 2


def test_sope_has_its_phases_at_the_steps_that_they_are_due(tmp_path: Path) -> None:
    run = train(tmp_path / "run", "sope", *WORDS["sope"])
    sizes = stored(run)[0]
    continue_run(run, [record(tmp_path / "new.npz")], num_steps=5, schedule=EVERY)
    assert {row["step"]: row["train/phase_updates"] for row in rows(run) if "train/phase_updates" in row} == {
        13: 4.0,
        26: 4.0,
    }
    assert stored(run)[0] == {"offline": sizes["offline"], "online": _FRAMES + _NEW}
    counts = {name: int(newest(run, f"{name}_optim")["state"][0]["step"]) for name in ("qvalue", "actor")}
    assert counts["qvalue"] == counts["actor"] + 2 * 4


@pytest.mark.slow
def test_speq_has_no_offline_rows(tmp_path: Path) -> None:
    rule = "phases.rule={max_updates: 4, check_every: 2, patience: null, sope_code: false}"
    run = train(tmp_path / "run", "sope", *WORDS["sope"], rule, "algorithm=speq")
    continue_run(run, [record(tmp_path / "new.npz")], num_steps=3, schedule=EVERY)
    assert stored(run)[0] == {"online": _FRAMES + _NEW}
    assert of(run, "phase_updates") == [4.0]


def test_samg_knows_new_recordings_by_the_confidence_that_was_fitted(tmp_path: Path) -> None:
    words = ("guidance.guidance=linear", f"guidance.cutoff={2 * _FRAMES}")
    run = train(tmp_path / "run", "samg", *WORDS["samg"], *words)
    confidence, loss = newest(run, "confidence"), newest(run, "loss")
    continue_run(run, [record(tmp_path / "new.npz")], num_steps=3, schedule=EVERY)
    assert_equal(newest(run, "confidence"), confidence, "confidence")
    after = newest(run, "loss")
    frozen = [name for name in after if name.startswith("_value_estimator")]
    assert frozen
    for name in frozen:
        assert torch.equal(after[name], loss[name]), name
    assert after["_value_estimator.weight"].item() == pytest.approx(0.5), "as faded as at the last step"
    sizes, data = stored(run)
    assert sum(sizes.values()) == _FRAMES + _NEW
    p = data["p_off"]
    assert p.shape == (_FRAMES + _NEW, 1)
    assert ((p == 0.0) | (p >= 0.2)).all()
    assert len(of(run, "p_mean")) == 3


@pytest.mark.slow
def test_the_weight_of_aca_falls_on(tmp_path: Path) -> None:
    run = train(tmp_path / "run", "aca", *WORDS["aca"])
    calls = newest(run, "update")["calls"]
    continue_run(run, [record(tmp_path / "new.npz")], num_steps=3, schedule=EVERY)
    assert of(run, "interpolation") == pytest.approx(
        [interpolation_weight(calls + number, horizon=40.0, floor=0.5) for number in range(3)]
    )


@pytest.mark.slow
def test_chunks_do_not_go_from_what_a_run_collected_into_a_recording(tmp_path: Path) -> None:
    run = train(tmp_path / "run", "qc", *WORDS["qc"])
    own = len(stored(run)[1])
    continue_run(run, [record(tmp_path / "new.npz")], num_steps=3, schedule=EVERY)
    data = stored(run)[1]
    assert len(data) == own + _NEW
    storage = LazyTensorStorage(len(data) + 1)
    storage.set(torch.arange(len(data)), data)
    sampler = ChunkSampler(RandomSampler(), 5, gamma=0.99)
    TensorDictReplayBuffer(storage=storage, sampler=sampler, writer=OnlineWriter(len(data)), batch_size=1)
    valid = sampler.chunks(storage, torch.arange(own - 5, own))["valid"].sum(1)
    assert valid.tolist() == [1.0, 4.0, 3.0, 2.0, 1.0], "an episode ended before the last four rows"
