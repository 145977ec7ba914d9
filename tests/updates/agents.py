# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Small agents of every kind, with the loop their script writes out, for comparison with the compiled update."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from tensordict import TensorDict
from torch import Tensor
from torchrl.objectives import SoftUpdate

from torchrl_o2o.modules import (
    ConservativePenalty,
    make_actor,
    make_baselines,
    make_deterministic_actor,
    make_gaussian_actor,
    make_qvalue_ensemble,
    make_value_network,
)
from torchrl_o2o.objectives import (
    ACALoss,
    AWACLoss,
    CalQLLoss,
    CQLLoss,
    EnsembleSACLoss,
    IQLLoss,
    SACMLLoss,
    SAMGEstimator,
    TD3BCLoss,
)
from torchrl_o2o.testing import random_transitions

OBSERVATION, A, HIDDEN = 5, 2, (12, 12)
UTD = 3


@dataclass
class Agent:
    loss: Any
    optims: dict[str, torch.optim.Optimizer]
    updater: SoftUpdate

    def descend(self, name: str, value: Tensor) -> None:
        self.optims[name].zero_grad()
        value.backward()
        self.optims[name].step()

    def tensors(self) -> dict[str, Tensor]:
        out = {f"loss.{name}": value.clone() for name, value in self.loss.state_dict().items()}
        for name, optim in self.optims.items():
            for index, state in optim.state_dict()["state"].items():
                out |= {f"{name}.{index}.{key}": torch.as_tensor(value).clone() for key, value in state.items()}
        return out


def critics(count: int = 2, layer_norm: bool = False, residual_blocks: int = 0) -> list:
    shape: dict[str, Any] = {"hidden_sizes": HIDDEN, "layer_norm": layer_norm, "residual_blocks": residual_blocks}
    return make_qvalue_ensemble(OBSERVATION, A, num_qvalue_nets=count, **shape)


def actor() -> Any:
    return make_actor(OBSERVATION, A, hidden_sizes=HIDDEN)


def penalty() -> ConservativePenalty:
    return ConservativePenalty(5.0, num_actions=3, target_gap=0.8)


def samg() -> IQLLoss:
    """A mixed target: the value estimator holds a frozen critic of its own."""
    loss = LOSSES["iql"]()
    loss.make_value_estimator(SAMGEstimator.from_loss(loss))
    return loss


LOSSES: dict[str, Callable[[], Any]] = {
    "rlpd": lambda: EnsembleSACLoss(actor(), critics(4, True), sub_sample_len=2),
    "residual": lambda: EnsembleSACLoss(actor(), critics(4, True, residual_blocks=1), sub_sample_len=2),
    "per_sample": lambda: EnsembleSACLoss(actor(), critics(4), sub_sample_len=2, subset_per="sample", actor_q="min"),
    "awac": lambda: AWACLoss(make_gaussian_actor(OBSERVATION, A, hidden_sizes=HIDDEN), critics()),
    "iql": lambda: IQLLoss(
        make_gaussian_actor(OBSERVATION, A, hidden_sizes=HIDDEN),
        critics(),
        make_value_network(OBSERVATION, hidden_sizes=HIDDEN),
    ),
    "cql": lambda: CQLLoss(actor(), critics(), penalty=penalty(), max_target_backup=True),
    "cal_ql": lambda: CalQLLoss(actor(), critics(), penalty=penalty()),
    "td3_bc": lambda: TD3BCLoss(make_deterministic_actor(OBSERVATION, A, hidden_sizes=HIDDEN), critics()),
    "sac_ml": lambda: SACMLLoss(actor(), critics(), make_baselines(OBSERVATION, hidden_sizes=HIDDEN)),
    "aca": lambda: ACALoss(actor(), critics(), actor()),
    "samg": samg,
}
# Losses in the order of the scripts, and whether all are taken at the same parameters.
ORDERS: dict[str, tuple[str, ...]] = {
    "rlpd": ("qvalue", "actor", "alpha"),
    "residual": ("qvalue", "actor", "alpha"),
    "per_sample": ("qvalue", "actor", "alpha"),
    "awac": ("qvalue", "actor"),
    "iql": ("value", "actor", "qvalue"),
    "cql": ("qvalue", "actor", "alpha", "alpha_prime"),
    "cal_ql": ("qvalue", "actor", "alpha", "alpha_prime"),
    "td3_bc": ("qvalue", "actor"),
    "sac_ml": ("alpha", "qvalue", "baseline", "actor"),
    "aca": ("alpha", "qvalue", "actor"),
    "samg": ("value", "actor", "qvalue"),
}
JOINT = {"cql", "cal_ql"}
REPEATED = {"rlpd", "residual", "per_sample"}


def parameters(loss: Any, name: str) -> list[torch.nn.Parameter]:
    if name in ("alpha", "alpha_prime"):
        return list((loss.temperature if name == "alpha" else loss.penalty).parameters())
    return list(getattr(loss, f"{name}_network_params").parameters())


def make_agent(kind: str, dtype: torch.dtype = torch.float64, seed: int = 0) -> Agent:
    torch.manual_seed(seed)
    loss = LOSSES[kind]().to(dtype)
    updater = SoftUpdate(loss, tau=0.1)
    optims: dict[str, torch.optim.Optimizer] = {
        name: torch.optim.Adam(parameters(loss, name), lr=1e-2) for name in ORDERS[kind]
    }
    return Agent(loss, optims, updater)


def make_batch(dtype: torch.dtype = torch.float64, rows: int = UTD * 8) -> TensorDict:
    batch = random_transitions(rows, OBSERVATION, A, generator=torch.Generator().manual_seed(7))
    batch["mc_return"] = batch["next", "reward"] - 0.5
    batch["p_off"] = batch["next", "reward"].sigmoid()
    return batch.apply(lambda x: x.to(dtype) if x.is_floating_point() else x)  # type: ignore[return-value]


def loop(kind: str, agent: Agent, batch: TensorDict) -> None:
    """One update as the scripts write it."""
    loss = agent.loss
    if kind in REPEATED:
        for minibatch in batch.split(len(batch) // UTD):
            agent.descend("qvalue", loss.qvalue_loss(minibatch)[0])
            agent.updater.step()
        value, info = loss.actor_loss(minibatch)
        agent.descend("actor", value)
        agent.descend("alpha", loss.alpha_loss(minibatch, log_prob=info["log_prob"])[0])
        return
    if kind in JOINT:
        out = loss(batch.clone())
        for name in ORDERS[kind]:
            agent.optims[name].zero_grad()
        sum(out[f"loss_{name}"] for name in ORDERS[kind]).backward()
        for name in ORDERS[kind]:
            agent.optims[name].step()
    else:
        for name in ORDERS[kind]:
            agent.descend(name, getattr(loss, f"{name}_loss")(batch)[0])
    agent.updater.step()
