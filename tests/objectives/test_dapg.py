# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""DAPG's loss, its divergence, and whole updates against the authors' numbers in float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tensordict import TensorDict
from torch import Tensor
from torch.distributions import Normal, kl_divergence
from torch.nn.utils import parameters_to_vector

from tests import golden_vectors as golden
from torchrl_o2o.errors import O2OSpecError
from torchrl_o2o.modules import RescaledGaussian, make_deterministic_actor, make_rescaled_actor
from torchrl_o2o.objectives import DAPGLoss, join_sources
from torchrl_o2o.testing import LossContract
from torchrl_o2o.updates import NaturalGradient

CASES = ("dapg/update_A", "dapg/update_B")


def rows(number: int, seed: int = 0) -> TensorDict:
    source = torch.Generator().manual_seed(seed)
    widths = {"observation": 5, "action": 3, "advantage": 1}
    columns = {name: torch.randn(number, width, generator=source) for name, width in widths.items()}
    return TensorDict(columns, [number])


def build(**settings: Any) -> DAPGLoss:
    torch.manual_seed(0)
    demos = rows(9, seed=7)
    return DAPGLoss(make_rescaled_actor(demos["observation"], demos["action"], hidden_sizes=(16,)), **settings)


class TestContract(LossContract):
    trains = {"loss_actor": ("actor_network_params",)}

    def make_loss(self, *, observation_key: Any = "observation", action_key: Any = "action") -> DAPGLoss:
        torch.manual_seed(0)
        columns = (torch.randn(9, width) for width in (self.observation_dim, self.action_dim))
        keys = {"observation_key": observation_key, "action_key": action_key}
        return DAPGLoss(make_rescaled_actor(*columns, hidden_sizes=(16,), **keys))

    def make_batch(self, **keys: Any) -> TensorDict:
        batch = super().make_batch(**keys)
        size = len(batch)
        return batch.update({"advantage": torch.linspace(-1.0, 2.0, size), "is_offline": torch.zeros(size) > 0})

    def bootstrapped(self, loss: Any, batch: TensorDict) -> None:
        """Returns are in the advantages."""


def fill(policy: RescaledGaussian, tree: golden.Tree) -> None:
    golden.fill(policy.net, {key: value for key, value in tree.items() if key != "log_std"})
    policy.log_std.data.copy_(tree["log_std"])


def expected(tree: golden.Tree) -> Tensor:
    """Golden arrays in the order of the policy's parameters."""
    layers = [part for pair in golden.golden_layers(tree) for part in pair]
    return torch.cat([part.reshape(-1) for part in (tree["log_std"], *layers)])


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("case", CASES)
def test_golden_updates(case: str) -> None:
    tree = golden.load(case)
    demos = TensorDict({name: tree[f"demo/{name}"] for name in ("observation", "action")}, [11])
    demos["advantage"] = torch.full((11,), torch.nan)  # not read
    actor = make_rescaled_actor(demos["observation"], demos["action"], hidden_sizes=(16, 16))
    policy = actor[0].module
    for name in ("in_shift", "in_scale", "out_shift", "out_scale"):
        getattr(policy, name).copy_(tree[f"transform/{name}"])
    hp = {name: golden.hp(tree, name) for name in ("damping", "min_log_std", "lam_0", "lam_1", "normalized_step_size")}
    loss = DAPGLoss(actor, lam_0=hp["lam_0"], lam_1=hp["lam_1"])
    fill(policy, golden.sub(tree, "policy"))
    assert next(iter(dict(policy.named_parameters()))) == "log_std"
    iterations = int(golden.hp(tree, "cg_iters"))
    settings = {"step_size": hp["normalized_step_size"], "damping": hp["damping"], "cg_iterations": iterations}
    natural = NaturalGradient(policy.parameters(), **settings)
    for index in range(int(golden.hp(tree, "n_updates"))):
        step = golden.sub(tree, f"step{index}")
        columns = {name: step[name] for name in ("observation", "action", "advantage")}
        own = TensorDict(columns, [len(columns["advantage"])])
        value, info = loss.actor_loss(join_sources(demos, own))
        golden.assert_close(info["weight"][11:], step["out/weight_policy"], "weights of the policy's rows")
        golden.assert_close(info["weight"][:11], step["out/weight_demo"], "weights of the demonstrations")
        natural.zero_grad()
        value.backward()
        gradient = -parameters_to_vector(part.grad for part in policy.parameters())
        golden.assert_close(gradient, expected(golden.sub(step, "out/dapg_gradient")), "gradient")
        before = parameters_to_vector(policy.parameters()).detach()
        direction = natural.step(lambda own=own: loss.divergence(own))
        golden.assert_close(direction, expected(golden.sub(step, "out/npg_direction")), "direction", 1e-6)
        moved = parameters_to_vector(policy.parameters()).detach() - before
        golden.assert_close(moved / direction, step["out/step_size"].expand_as(moved), "step size", 1e-6)
        policy.log_std.data.clamp_(min=hp["min_log_std"])
        after = golden.sub(step, "out/policy_after")
        golden.assert_close(parameters_to_vector(policy.parameters()), expected(after), "policy", 1e-6)
        fill(policy, after)  # each step starts from the stored parameters
        loss.iteration += 1


def test_the_divergence_is_that_of_two_gaussians_and_has_no_slope() -> None:
    loss, batch = build(), rows(6)
    divergence = loss.divergence(batch)
    slopes = torch.autograd.grad(divergence, list(loss.actor_network_params.parameters()))
    assert divergence == 0.0
    assert all(slope.abs().max() < 1e-6 for slope in slopes)
    # Of the second order: half of v F v along a direction is the divergence of a small step.
    policy = loss.actor_network[0].module.double()
    batch = batch.double()
    with torch.no_grad():
        before = Normal(*policy(batch["observation"]))
        policy.log_std.add_(1e-4)
        after = Normal(*policy(batch["observation"]))
    moved = kl_divergence(before, after).sum(-1).mean()
    torch.testing.assert_close(moved, torch.tensor(0.5 * 3 * 2 * 1e-8, dtype=torch.float64), rtol=1e-3, atol=0.0)


def test_iterations_are_part_of_the_state_and_let_the_demonstrations_fade() -> None:
    loss, batch = build(lam_0=0.5, lam_1=0.5), join_sources(rows(2, seed=1), rows(6))
    loss.iteration += 3
    _, info = loss.actor_loss(batch)
    torch.testing.assert_close(info["weight"][:2], torch.full((2,), 0.01 * 0.5 * 0.5**3))
    other = build(lam_0=0.5, lam_1=0.5)
    other.load_state_dict(loss.state_dict())
    assert other.iteration == 3


def test_the_mean_is_over_the_policys_rows() -> None:
    loss, batch = build(), join_sources(rows(4, seed=1), rows(6))
    mean, info = loss.actor_loss(batch)
    loss.reduction = "sum"
    total, _ = loss.actor_loss(batch)
    torch.testing.assert_close(mean, total / 6)
    torch.testing.assert_close(total, -(info["weight"] * info["log_prob"]).sum())


def test_what_cannot_be_an_iteration_is_refused() -> None:
    loss = build()
    with pytest.raises(O2OSpecError, match=r"got a batch without 'is_offline'.*join_sources\(demos, rows\)"):
        loss.actor_loss(rows(4))
    with pytest.raises(O2OSpecError, match="got 4 rows that are all demonstrations"):
        loss.actor_loss(rows(4).set("is_offline", torch.ones(4) > 0))
    with pytest.raises(O2OSpecError, match=r"got lam_0=0.1, lam_1=1.5; expected .*lam_1 in \[0, 1\]"):
        build(lam_0=0.1, lam_1=1.5)
    with pytest.raises(O2OSpecError, match="got the deterministic actor Actor, expected a stochastic one"):
        DAPGLoss(make_deterministic_actor(5, 3))  # type: ignore[arg-type]
