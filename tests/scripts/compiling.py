# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""A script's compiled update against the one it writes out."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from tensordict import TensorDictBase
from tensordict.utils import NestedKey

from tests.scripts.phases import assert_equal
from torchrl_o2o.functional.diagnostics import NonFiniteError
from torchrl_o2o.trainers.learner import Learner

MakeLearner = Callable[[bool], Learner]


def trained(make: MakeLearner, compiled: bool, batch: TensorDictBase, updates: int) -> dict[str, Any]:
    """Everything that some updates leave behind."""
    torch.manual_seed(0)
    learner = make(compiled)
    metrics = [learner.update(batch) for _ in range(updates)]
    return {"metrics": metrics, "states": states(learner), "rng": torch.get_rng_state()}


def states(learner: Learner) -> dict[str, Any]:
    """What a checkpoint would hold."""
    objects = learner.objects()
    return {name: entry if isinstance(entry, dict) else entry.state_dict() for name, entry in objects.items()}


def assert_compiled_equals_written_out(make: MakeLearner, batch: TensorDictBase, updates: int) -> None:
    """All metrics that are written out, parameters, optimizers and counters; the random numbers bit for bit."""
    written, fast = (trained(make, compiled, batch, updates) for compiled in (False, True))
    for step, (ours, theirs) in enumerate(zip(written["metrics"], fast["metrics"], strict=True)):
        for name, value in ours.items():
            assert theirs[name].item() == pytest.approx(value.item(), rel=1e-4, abs=1e-5), (step, name)
    torch.testing.assert_close(numbers(fast["states"]), numbers(written["states"]), rtol=1e-4, atol=1e-5)
    assert torch.equal(fast["rng"], written["rng"])


def numbers(state: Any, where: str = "") -> dict[str, float | torch.Tensor]:
    """The numbers of a nested state by their places."""
    if isinstance(state, dict | list | tuple):
        entries = state.items() if isinstance(state, dict) else enumerate(state)
        return {place: value for key, entry in entries for place, value in numbers(entry, f"{where}.{key}").items()}
    return {where: state} if isinstance(state, torch.Tensor | int | float) else {}


def assert_resumed_is_bit_for_bit(make: MakeLearner, batch: TensorDictBase, stop: int, updates: int) -> None:
    """A new learner that compiles anew continues from what was saved as the first one does."""
    first, resumed = make(True), make(True)
    torch.manual_seed(0)
    for _ in range(stop):
        first.update(batch)
    saved, rng = copy.deepcopy(states(first)), torch.get_rng_state()
    ends = []
    for learner in (first, resumed):
        if learner is resumed:
            for name, entry in learner.objects().items():
                entry.update(saved[name]) if isinstance(entry, dict) else entry.load_state_dict(saved[name])
        torch.set_rng_state(rng)
        metrics = [learner.update(batch) for _ in range(updates - stop)]
        ends.append({"metrics": metrics, "states": states(learner)})
    assert_equal(ends[0], ends[1], "resumed")


def assert_what_is_not_finite_is_refused(make: MakeLearner, batch: TensorDictBase, key: NestedKey) -> None:
    """Compiled, with the error of the written-out update, and the loss as it was."""
    broken = batch.clone()
    broken[key][0] = float("nan")
    learner = make(True)
    before = {name: value.clone() for name, value in learner.loss.state_dict().items()}
    with pytest.raises(NonFiniteError, match="loss_"):
        learner.update(broken)
    assert_equal(dict(learner.loss.state_dict()), before, "loss")
