# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Networks, batches and environments that do not fit are named in a sentence, and not by torch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from tensordict import TensorDict

from torchrl_o2o.collectors import StepCollector, VectorCollector, make_vector_env
from torchrl_o2o.envs import make_gym_env
from torchrl_o2o.errors import O2OSpecError
from torchrl_o2o.modules import make_action_vae, make_actor, make_deterministic_actor, make_qvalue_ensemble
from torchrl_o2o.objectives import BCLoss, EnsembleSACLoss, TD3BCLoss, VAELoss
from torchrl_o2o.testing import random_transitions
from torchrl_o2o.trainers import evaluate

SMALL: Any = {"hidden_sizes": (8,)}


def critics(*more: Any) -> list[Any]:
    return [*make_qvalue_ensemble(5, 3, num_qvalue_nets=2, **SMALL), *more]


LOSSES: dict[str, Callable[[], Any]] = {
    "sac": lambda: EnsembleSACLoss(make_actor(5, 3, **SMALL), critics()),
    "td3_bc": lambda: TD3BCLoss(make_deterministic_actor(5, 3, **SMALL), critics()),
    "bc": lambda: BCLoss(make_actor(5, 3, **SMALL)),
    "vae": lambda: VAELoss(make_action_vae(5, 3, **SMALL)),
}
BATCHES: dict[str, tuple[Callable[[TensorDict], Any], str]] = {
    "another observation": (lambda batch: random_transitions(6, 6, 3), r"shape \[6, 6\]"),
    "another action": (lambda batch: random_transitions(6, 5, 4), r"\[6, 4\]"),
    "float64": (lambda batch: batch.apply(lambda x: x.double() if x.is_floating_point() else x), "float64 on cpu"),
    "elsewhere": (lambda batch: batch.to("meta"), "on meta"),
}


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("loss", LOSSES)
def test_a_batch_that_does_not_fit_the_networks(loss: str, batch: str) -> None:
    change, told = BATCHES[batch]
    with pytest.raises(O2OSpecError, match=told):
        LOSSES[loss]()(change(random_transitions(6, 5, 3)))


@pytest.mark.parametrize("loss", ["sac", "bc"])
def test_actions_are_no_whole_numbers(loss: str) -> None:
    batch = random_transitions(6, 5, 3).set("action", torch.zeros(6, 3, dtype=torch.long))
    with pytest.raises(O2OSpecError, match=r"torch\.int64, expected 3 floating point numbers a row"):
        LOSSES[loss]()(batch)


def test_critics_of_several_shapes() -> None:
    odd = make_qvalue_ensemble(5, 3, num_qvalue_nets=1, hidden_sizes=(9,))
    with pytest.raises(O2OSpecError, match="number 2 has other layers"):
        EnsembleSACLoss(make_actor(5, 3, **SMALL), critics(*odd))


RUNS: dict[str, Callable[[Any], Any]] = {
    "step": lambda actor: list(StepCollector(make_gym_env("Pendulum-v1"), actor, total_frames=1, seed=0)),
    "vector": lambda actor: list(
        VectorCollector(make_vector_env(lambda: make_gym_env("Pendulum-v1"), 2), actor, total_frames=2)
    ),
    "evaluate": lambda actor: evaluate(actor, "Pendulum-v1", num_episodes=1, seed=0),
}


@pytest.mark.parametrize("run", RUNS)
def test_an_actor_that_does_not_fit_the_environment(run: str) -> None:
    with pytest.raises(O2OSpecError, match="takes rows of 5 numbers in all"):
        RUNS[run](make_actor(5, 1, **SMALL))
    with pytest.raises(O2OSpecError, match="reads 'state'"):
        RUNS[run](make_actor(3, 1, observation_key="state", **SMALL))
    with pytest.raises(O2OSpecError, match=r"writes \['loc', 'scale', 'taken'\], expected 'action' among them"):
        RUNS[run](make_actor(3, 1, action_key="taken", **SMALL))


def test_other_errors_of_torch_stay_what_they_are() -> None:
    class Broken(torch.nn.Module):
        def forward(self, observation: torch.Tensor) -> torch.Tensor:
            raise RuntimeError("of its own")

    actor = make_deterministic_actor(3, 1, **SMALL)
    actor.module = Broken()
    with pytest.raises(RuntimeError, match="of its own"):
        RUNS["evaluate"](actor)
