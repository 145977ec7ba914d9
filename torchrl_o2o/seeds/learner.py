# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""RLPD's Algorithm 1 for N agents at once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from tensordict import TensorDictBase
from torch import Tensor

from torchrl_o2o.errors import O2OSpecError
from torchrl_o2o.objectives.ensemble_sac import EnsembleSACLoss
from torchrl_o2o.seeds.sac import stack_losses
from torchrl_o2o.seeds.stacking import StackedNonFiniteError, StackedOptimizer
from torchrl_o2o.updates.stacked import StackedUpdate, stack_updates
from torchrl_o2o.updates.state import target_pairs
from torchrl_o2o.updates.steps import Learning, Part
from torchrl_o2o.updates.update import CompiledUpdate, Mode

__all__ = ["METRICS", "SingleLearner", "StackedLearner"]

#: What an update returns.
METRICS = ("loss_qvalue", "loss_actor", "loss_alpha", "alpha", "entropy", "qvalue", "qvalue_std", "target_value")


class SingleLearner(Protocol):
    """What one agent learns with: its loss and optimizers."""

    loss: EnsembleSACLoss
    critic_optim: torch.optim.Optimizer
    actor_optim: torch.optim.Optimizer
    alpha_optim: torch.optim.Optimizer


class StackedLearner:
    """The update of N agents: ``utd_ratio`` critic steps, then one actor and one temperature step.

    Source: Ball et al. 2023 (RLPD), Algorithm 1.

    Args:
        learners: one per agent, that differ in nothing but their parameters.

    Keyword Args:
        tau: share of the new parameters in the targets. Defaults to 0.005.

    Examples:
        >>> import torch
        >>> from types import SimpleNamespace
        >>> from torch.optim import Adam
        >>> from torchrl_o2o.modules import make_actor, make_qvalue_ensemble
        >>> from torchrl_o2o.testing import random_transitions
        >>> def learner():
        ...     loss = EnsembleSACLoss(make_actor(3, 2), make_qvalue_ensemble(3, 2, num_qvalue_nets=2))
        ...     parts = loss.qvalue_network_params, loss.actor_network_params, loss.temperature
        ...     critic, actor, alpha = (Adam(part.parameters(), lr=3e-4) for part in parts)
        ...     return SimpleNamespace(loss=loss, critic_optim=critic, actor_optim=actor, alpha_optim=alpha)
        >>> stacked = StackedLearner([learner() for _ in range(3)])
        >>> batches = torch.stack([random_transitions(4 * 16, 3, 2) for _ in range(3)])
        >>> stacked.update(batches, batch_size=16)["loss_qvalue"].shape
        torch.Size([3])
    """

    def __init__(self, learners: Sequence[SingleLearner], *, tau: float = 0.005) -> None:
        self.stack = stack_losses([learner.loss for learner in learners])
        leaves, self.tau, self._learners = self.stack.leaves, tau, list(learners)
        self.critic_optim = StackedOptimizer([learner.critic_optim for learner in learners], leaves)
        self.actor_optim = StackedOptimizer([learner.actor_optim for learner in learners], leaves)
        self.alpha_optim = StackedOptimizer([learner.alpha_optim for learner in learners], leaves)

        self._options: dict[str, Any] | None = None
        self._compiled: dict[int, StackedUpdate] = {}

    @property
    def optimizers(self) -> list[StackedOptimizer]:
        """Those of critics, actors and temperatures; none once compiled, when the agents' own hold all there is."""
        return [] if self._options is not None else [self.critic_optim, self.actor_optim, self.alpha_optim]

    def compile(self, *, mode: Mode = "default", matmul_dtype: torch.dtype | None = None) -> None:
        """From now on :meth:`update` computes its numbers as one compiled function.

        It is :func:`~torchrl_o2o.updates.stack_updates` of the agents' compiled updates. The agents' optimizers, Adam
        or AdamW, take over.

        Args:
            mode: see :func:`~torchrl_o2o.updates.compile_update`. Defaults to ``"default"``.
            matmul_dtype: see there. Defaults to float32.
        """
        for optim in self.optimizers:
            optim.share()
            for agent in optim.agents:
                for state in agent.state.values():  # one tensor for all agents, which each of them is to count in
                    state["step"] = state["step"].clone()
        self._options = {"mode": mode, "matmul_dtype": matmul_dtype}
        self._compiled.clear()

    def _whole(self, utd_ratio: int) -> StackedUpdate:
        assert self._options is not None
        if utd_ratio not in self._compiled:
            updates = []
            for agent in self._learners:
                optims = {"qvalue": agent.critic_optim, "actor": agent.actor_optim, "alpha": agent.alpha_optim}
                learning = Learning(agent.loss, optims, target_pairs(agent.loss), self.tau)
                parts = (Part(("qvalue",), True), Part(("actor", "alpha"), False))
                updates.append(CompiledUpdate(learning, parts, utd_ratio, **self._options))
            self._compiled[utd_ratio] = stack_updates(updates)
        return self._compiled[utd_ratio]

    def _update_compiled(self, batches: TensorDictBase, batch_size: int) -> dict[str, Tensor]:
        metrics = self._whole(batches.shape[1] // batch_size)(batches)
        metrics.setdefault("qvalue_std", torch.zeros_like(metrics["loss_qvalue"]))  # of a single critic
        agents = (~metrics["finite"]).nonzero().flatten().tolist()
        if agents:
            bad = [name for name in METRICS if name.startswith("loss_") and not metrics[name].isfinite().all()]
            raise StackedNonFiniteError(
                f"not finite: {', '.join(bad) or 'a loss or gradient of an earlier minibatch'}", agents
            )
        return {name: metrics[name] for name in METRICS}

    def update(self, batches: TensorDictBase, batch_size: int) -> dict[str, Tensor]:
        """One update of all agents.

        Args:
            batches: transitions, shape [N, utd_ratio * batch_size]; row i is agent i's.
            batch_size: rows of each agent's minibatches.

        Returns:
            Of the last minibatch, each of shape [N]: ``loss_qvalue``, ``loss_actor``, ``loss_alpha``, ``alpha``,
            ``entropy``, ``qvalue``, ``qvalue_std`` (over members) and ``target_value``.

        Raises:
            O2OSpecError: if the batches have another shape.
            StackedNonFiniteError: if a loss or gradient is not finite.
        """
        if batches.ndim != 2 or batches.shape[0] != self.stack.num_agents or batches.shape[1] == 0:
            expected = f"[{self.stack.num_agents}, utd_ratio * batch_size]"
            raise O2OSpecError(f"got batches of shape {tuple(batches.shape)}, expected {expected}")
        if self._options is not None:
            return self._update_compiled(batches, batch_size)
        losses: dict[str, Tensor] = {}
        minibatches, info = batches, losses
        for minibatches in batches.split(batch_size, 1):
            losses["loss_qvalue"], info = self.stack.qvalue_loss(minibatches)
            self.critic_optim.descend(losses["loss_qvalue"], "loss_qvalue")
            self.stack.update_targets(self.tau)
        losses["loss_actor"], actor_info = self.stack.actor_loss(minibatches)
        self.actor_optim.descend(losses["loss_actor"], "loss_actor")
        losses["loss_alpha"], alpha_info = self.stack.alpha_loss(actor_info["log_prob"])
        self.alpha_optim.descend(losses["loss_alpha"], "loss_alpha")
        detached = {name: loss.detach() for name, loss in losses.items()}
        return detached | alpha_info | _summary(info["qvalue"], info["target_value"])


def _summary(qvalue: Tensor, target: Tensor) -> dict[str, Tensor]:
    """Means over rows, shape [N], from shapes [N, E, *B] and [N, *B]."""
    spread = qvalue.std(1) if qvalue.shape[1] > 1 else torch.zeros_like(target)
    means = {"qvalue": qvalue.flatten(1), "qvalue_std": spread.flatten(1), "target_value": target.flatten(1)}
    return {name: values.mean(1) for name, values in means.items()}
