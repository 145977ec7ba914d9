# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Ensemble soft actor-critic of N agents at once: the pure cores of the single loss under vmap."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Literal

import torch
from tensordict import TensorDictBase
from torch import Tensor, nn
from torch.func import vmap
from torchrl.objectives.value import TD0Estimator

from torchrl_o2o.errors import O2OSpecError
from torchrl_o2o.functional.soft import soft_value, temperature_objective
from torchrl_o2o.objectives.ensemble_sac import EnsembleSACLoss
from torchrl_o2o.objectives.networks import ActorCritic, Inputs, Parameters, flat_parameters
from torchrl_o2o.seeds.stacking import stack_leaves

__all__ = ["StackedSAC", "stack_losses"]

_BOTH = ("actor_network", "qvalue_network")
_SETTINGS = (
    "num_qvalue_nets",
    "sub_sample_len",
    "subset_per",
    "entropy_backup",
    "actor_q",
    "ensemble_reduction",
    "weight_actor",
    "reduction",
    "tensor_keys",
)


def _next_value(
    networks: ActorCritic, actor: Parameters, target: Parameters, inputs: Inputs, noise: Tensor, members: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    core = partial(EnsembleSACLoss._next_value, networks)
    if members is None:
        return vmap(partial(core, members=None), randomness="different")(actor, target, inputs, noise)
    return vmap(core, randomness="different")(actor, target, inputs, noise, members)


def _regress(
    networks: ActorCritic,
    qvalue: Parameters,
    inputs: Inputs,
    action: Tensor,
    target: Tensor,
    reduction: Literal["sum", "mean"],
) -> tuple[Tensor, Tensor]:
    core = partial(EnsembleSACLoss._regress, networks, reduction=reduction)
    return vmap(core, randomness="different")(qvalue, inputs, action, target)


def _climb(
    networks: ActorCritic,
    actor: Parameters,
    qvalue: Parameters,
    inputs: Inputs,
    noise: Tensor,
    alpha: Tensor,
    over: str,
) -> tuple[Tensor, Tensor]:
    core = partial(EnsembleSACLoss._climb, networks, over=over)
    return vmap(core, randomness="different")(actor, qvalue, inputs, noise, alpha)


def stack_losses(losses: Sequence[EnsembleSACLoss]) -> StackedSAC:
    """Stack the losses of N agents that differ in nothing but their parameters; see :class:`StackedSAC`.

    Args:
        losses: one per agent; from now on their parameters are slices of the stack's.

    Returns:
        The stack, whose losses have one entry per agent.

    Raises:
        O2OSpecError: if the losses differ in a setting or a shape, or cannot be stacked.

    Examples:
        >>> from torchrl_o2o.modules import make_actor, make_qvalue_ensemble
        >>> losses = [EnsembleSACLoss(make_actor(3, 2), make_qvalue_ensemble(3, 2)) for _ in range(2)]
        >>> stack_losses(losses).num_agents
        2
    """
    return StackedSAC(losses)


class StackedSAC:
    """``qvalue_loss``, ``actor_loss`` and ``alpha_loss`` of N agents at once, each agent's as its own loss computes it.

    Batches have shape [N, *B], row i of agent i. Every agent draws from its own loss's ``noise``, in the order of the
    single loss. The agents' losses stay usable, to evaluate, save and load: their parameters are slices of
    the leaves :attr:`actor`, :attr:`qvalue`, :attr:`target_qvalue` and :attr:`log_alpha`.

    A loss of N values is summed before its gradient is taken: no parameter of one agent occurs in another's loss, and
    an elementwise optimizer (:class:`~torchrl_o2o.seeds.StackedOptimizer`) keeps the agents apart as well.

    Args:
        losses: one per agent, with equal settings, TD(0) targets, no dropout and a reduction over the batch.

    Raises:
        O2OSpecError: if that is not so.

    Examples:
        >>> import torch
        >>> from torchrl_o2o.modules import make_actor, make_qvalue_ensemble
        >>> from torchrl_o2o.testing import random_transitions
        >>> def agent():
        ...     critics = make_qvalue_ensemble(3, 2, num_qvalue_nets=4, hidden_sizes=(8,))
        ...     return EnsembleSACLoss(make_actor(3, 2, hidden_sizes=(8,)), critics, sub_sample_len=2)
        >>> stack = StackedSAC([agent() for _ in range(3)])
        >>> batches = torch.stack([random_transitions(16, 3, 2) for _ in range(3)])
        >>> losses, info = stack.qvalue_loss(batches)
        >>> losses.shape, info["qvalue"].shape
        (torch.Size([3]), torch.Size([3, 4, 16]))
        >>> losses, info = stack.actor_loss(batches)
        >>> stack.alpha_loss(info["log_prob"])[0].shape
        torch.Size([3])
    """

    #: Names of the functions that :meth:`compile` replaces.
    _cores = {"_next_value": _next_value, "_regress": _regress, "_climb": _climb}

    def __init__(self, losses: Sequence[EnsembleSACLoss]) -> None:
        #: The agents' own losses.
        self.losses = list(losses)
        _check(self.losses)
        self.actor = stack_leaves([flat_parameters(loss.actor_network_params) for loss in losses])
        self.qvalue = stack_leaves([flat_parameters(loss.qvalue_network_params) for loss in losses])
        self.target_qvalue = stack_leaves([flat_parameters(loss.target_qvalue_network_params) for loss in losses])
        self.log_alpha = stack_leaves([{"value": loss.temperature.log_alpha} for loss in losses])["value"]
        self._next_value, self._regress, self._climb = _next_value, _regress, _climb

    @property
    def num_agents(self) -> int:
        """N."""
        return len(self.losses)

    @property
    def leaves(self) -> list[Tensor]:
        """All trained leaves, for :class:`~torchrl_o2o.seeds.StackedOptimizer`."""
        return [*self.actor.values(), *self.qvalue.values(), self.log_alpha]

    @property
    def networks(self) -> ActorCritic:
        """The templates of actor and critic."""
        return self.losses[0]._networks

    @property
    def alpha(self) -> Tensor:
        """The temperatures, detached, shape [N]."""
        return self.log_alpha.detach().exp()

    def compile(self, *, mode: str | None = None) -> None:
        """Compile the pure cores, as :meth:`~torchrl_o2o.objectives.base.TransitionLoss.compile` does for one agent.

        Args:
            mode: ``torch.compile``'s mode. Defaults to its own default.
        """
        for name, core in self._cores.items():
            self.__dict__[name] = torch.compile(core, mode=mode, dynamic=False, fullgraph=True)

    def qvalue_loss(self, batches: TensorDictBase) -> tuple[Tensor, dict[str, Tensor]]:
        """Critic losses of one minibatch per agent.

        Args:
            batches: transitions, shape [N, *B]; not modified.

        Returns:
            The losses, shape [N], and ``td_error`` (shape [N, *B]), ``qvalue`` (shape [N, E, *B]) and
            ``target_value`` (shape [N, *B]), detached.
        """
        first, target = self.losses[0], self.target_value(batches)
        action = batches.get(first.tensor_keys.action)
        inputs, reduction = first._inputs(batches, *_BOTH), first.ensemble_reduction
        error, qvalue = self._regress(self.networks, self.qvalue, inputs, action, target, reduction)
        qvalue = qvalue.detach()
        td_error = (qvalue - target.unsqueeze(1)).abs().mean(1)
        info = {"td_error": td_error, "qvalue": qvalue, "target_value": target}
        return self._reduce(error, first._weights(batches)), info

    def actor_loss(self, batches: TensorDictBase) -> tuple[Tensor, dict[str, Tensor]]:
        """Actor losses of one minibatch per agent.

        Args:
            batches: transitions, shape [N, *B]; not modified.

        Returns:
            The losses, shape [N], and ``log_prob``, shape [N, *B], detached, for :meth:`alpha_loss`.
        """
        first = self.losses[0]
        noise = self._normal("action", batches.get(first.tensor_keys.action))
        critics, inputs = _detached(self.qvalue), first._inputs(batches, *_BOTH)
        objective, log_prob = self._climb(self.networks, self.actor, critics, inputs, noise, self.alpha, first.actor_q)
        weights = first._weights(batches) if first.weight_actor else None
        return self._reduce(objective, weights), {"log_prob": log_prob.detach()}

    def alpha_loss(self, log_prob: Tensor, weights: Tensor | None = None) -> tuple[Tensor, dict[str, Tensor]]:
        """Temperature losses from the actor pass's log-densities; zero where the temperature is fixed.

        Args:
            log_prob: what :meth:`actor_loss` returned, shape [N, *B].
            weights: importance weights, shape [N, *B]; used if ``weight_actor``. Defaults to ``None``.

        Returns:
            The losses, shape [N], and ``alpha`` and ``entropy``, shape [N].
        """
        temperature = self.losses[0].temperature
        entropy = -_per_agent_mean(log_prob)
        if weights is not None and self.losses[0].weight_actor:  # as in EnsembleSACLoss
            entropy = -_per_agent_mean(weights * log_prob)
            log_prob = -entropy.reshape(-1, *(1,) * (log_prob.ndim - 1)).expand_as(log_prob)
        info = {"alpha": self.alpha, "entropy": entropy.detach()}
        if temperature.target_entropy is None:
            return torch.zeros_like(info["alpha"]), info
        log_alpha = self.log_alpha.reshape(-1, *(1,) * (log_prob.ndim - 1))
        return self._reduce(
            temperature_objective(log_alpha, log_prob, temperature.target_entropy, temperature.form)
        ), info

    @torch.no_grad()
    def target_value(self, batches: TensorDictBase) -> Tensor:
        """The Bellman targets, shape [N, *B], without gradient.

        Args:
            batches: transitions, shape [N, *B]; not modified.
        """
        first = self.losses[0]
        keys = first.tensor_keys
        noise = self._normal("next_action", batches.get(keys.action))
        target, rows = self._target_members(noise[..., 0])
        inputs, actor = first._inputs(batches.get("next"), *_BOTH), _detached(self.actor)
        action, log_prob, qvalue = self._next_value(self.networks, actor, target, inputs, noise, rows)
        alpha = self.alpha.reshape(-1, *(1,) * (qvalue.ndim - 1))
        value = soft_value(qvalue, log_prob, alpha) if first.entropy_backup else qvalue
        columns = {keys.log_prob: log_prob, keys.state_action_value: qvalue, keys.value: value}
        return first._estimate(batches, columns, action)

    @torch.no_grad()
    def update_targets(self, tau: float) -> None:
        """Average the critics into their targets, theta' <- theta' + tau (theta - theta').

        Args:
            tau: the share of the new, in [0, 1].
        """
        targets, sources = zip(*((self.target_qvalue[name], value) for name, value in self.qvalue.items()), strict=True)
        torch._foreach_lerp_(targets, sources, tau)

    def _target_members(self, like: Tensor) -> tuple[dict[str, Tensor], Tensor | None]:
        """As the single loss's: per agent the drawn members' parameters, or all and the rows' members."""
        first = self.losses[0]
        if first.sub_sample_len == first.num_qvalue_nets:
            return self.target_qvalue, None
        size, per_row = (first.num_qvalue_nets, first.sub_sample_len), first.subset_per == "sample"
        drawn = [loss.noise.subset("target", *size, like[0], per_row=per_row) for loss in self.losses]
        index = torch.stack(drawn)
        if per_row:
            return self.target_qvalue, index
        agents = torch.arange(self.num_agents, device=index.device).unsqueeze(-1)
        return {name: value[agents, index] for name, value in self.target_qvalue.items()}, None

    def _normal(self, name: str, like: Tensor) -> Tensor:
        return torch.stack([loss.noise.normal(name, like[0]) for loss in self.losses])

    def _reduce(self, rows: Tensor, weights: Tensor | None = None) -> Tensor:
        rows = rows if weights is None else rows * weights
        return _per_agent_mean(rows) if self.losses[0].reduction == "mean" else rows.flatten(1).sum(1)


def _per_agent_mean(rows: Tensor) -> Tensor:
    return rows.flatten(1).mean(1)


def _detached(params: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.detach() for name, value in params.items()}


def _check(losses: list[EnsembleSACLoss]) -> None:
    """Refuse losses that one set of cores cannot stand for."""
    if not losses or any(type(loss) is not EnsembleSACLoss for loss in losses):
        kinds = sorted({type(loss).__name__ for loss in losses})
        raise O2OSpecError(f"got {len(losses)} losses of {kinds or 'no kind'}, expected EnsembleSACLoss, at least one")
    for position, loss in enumerate(losses):
        ours, theirs = _settings(loss), _settings(losses[0])
        differing = [name for name in ours if ours[name] != theirs[name]]
        if differing:
            raise O2OSpecError(f"loss {position} differs from loss 0 in {', '.join(differing)}; stack equal agents")
        if not isinstance(loss.value_estimator, TD0Estimator):
            raise O2OSpecError(f"got {type(loss.value_estimator).__name__}, expected TD(0) targets in a stack")
        if any(isinstance(module, nn.Dropout) and module.p > 0 for module in loss.qvalue_network.modules()):
            raise O2OSpecError(
                "the critics drop out units by the global generator, not per agent; train such one by one"
            )
    if losses[0].reduction == "none":
        raise O2OSpecError("got reduction='none', expected 'mean' or 'sum': a stack has one loss per agent")


def _settings(loss: EnsembleSACLoss) -> dict[str, object]:
    temperature, estimator = loss.temperature, loss.value_estimator
    return {name: getattr(loss, name) for name in _SETTINGS} | {
        "temperature": (temperature.form, temperature.target_entropy),
        "gamma": float(estimator.gamma) if isinstance(estimator, TD0Estimator) else None,
    }
