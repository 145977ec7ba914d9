# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Policy expansion (PEX): a frozen offline policy and a new one; the critics choose which one acts.

Shapes: ``B`` any batch shape, ``A`` action dimensions.
"""

from __future__ import annotations

import copy
from typing import Literal, NamedTuple, cast

import torch
from tensordict import TensorDictBase, TensorDictParams
from tensordict.nn import (
    ProbabilisticTensorDictSequential,
    TensorDictModule,
)
from torch import Tensor
from torchrl.data import Composite
from torchrl.envs.utils import ExplorationType, exploration_type
from torchrl.modules import Actor

from torchrl_o2o.arguments import checked_arguments
from torchrl_o2o.errors import O2OSpecError
from torchrl_o2o.functional.noise import GeneratorNoise, NoiseSource
from torchrl_o2o.functional.offline import advantage_weight, expansion_probability
from torchrl_o2o.modules.best_of import BestOfPolicies, mode_net
from torchrl_o2o.modules.boxes import action_box, action_spec
from torchrl_o2o.objectives.acting import ActsByLoss
from torchrl_o2o.objectives.actor_critic import one_observation
from torchrl_o2o.objectives.base import Reduction, dispatch
from torchrl_o2o.objectives.iql import IQLLoss
from torchrl_o2o.objectives.networks import (
    Inputs,
    flat_parameters,
    inner_module,
    inner_parameters,
    policy_distribution,
    sample_policy,
    stochastic,
    with_parameters,
)

__all__ = ["ExpandedPolicy", "PEXLoss", "Proposals"]


class Proposals(NamedTuple):
    """The actions of both policies at some states, and the choice between them.

    Args:
        offline: mode of the frozen policy, shape [*B, A].
        new: action of the new policy, shape [*B, A].
        probability: of the frozen and of the new policy's action, shape [*B, 2].
        takes_new: 1 where the new policy's action is taken, else 0, shape [*B].
    """

    offline: Tensor
    new: Tensor
    probability: Tensor
    takes_new: Tensor

    @property
    def action(self) -> Tensor:
        """The chosen actions, shape [*B, A]."""
        return torch.where(self.takes_new.bool().unsqueeze(-1), self.new, self.offline)


class PEXLoss(IQLLoss):
    r"""IQL whose new policy learns from actions proposed by itself and by the frozen offline policy.

    .. math::
        a_1=\mathrm{mode}\,\pi_\beta(s),\quad a_2\sim\pi(\cdot|s),\qquad
        P(i)\propto\exp\big(\kappa\min_j Q_j(s,a_i)\big),\qquad \tilde a=a_i

        L_\pi=-\frac1B\sum_b \min\big(e^{\beta(\min_j Q'_j(s,\tilde a)-V(s))},100\big)\log\pi(\tilde a|s)

    V and critics learn as in :class:`IQLLoss`, from the recorded actions; the policy is not trained on these. One
    choice is drawn for each row. The order of an update is the authors': step V and critics, both with losses of the
    old parameters; move the targets; then step the policy with the new V, critics and targets.

    Source: Zhang et al. 2023, arXiv:2302.00935, and the authors' code.

    The new policy has no constraint to the data, and may learn to imitate the offline one. ``offline_share`` is the
    share of choices of the offline one. :math:`\kappa` multiplies the unnormalized values, so the scale of rewards
    changes the choice.

    Importance weights multiply the rows of :math:`L_Q` and :math:`L_V`, not those of :math:`L_\pi`.

    Args:
        actor_network: the new policy :math:`\pi`, freshly initialized, :func:`~torchrl_o2o.modules.make_gaussian_actor`
            with ``clip_samples=False`` in the authors' code.
        qvalue_network: critics, two in the reference.
        value_network: V(s).
        offline_actor_network: the offline policy :math:`\pi_\beta`; a copy of it is kept and never trained.

    Keyword Args:
        inv_temperature: :math:`\kappa`; 0 chooses with equal probability, infinity the larger value. Defaults to 10.
        expectile: see :class:`IQLLoss`. Defaults to 0.9.
        beta: see :class:`IQLLoss`. Defaults to 10.
        weight_clip: bound of the weights. Defaults to 100.
        ensemble_reduction: ``"mean"`` (default) or ``"sum"`` over members in the critic loss.
        reduction: ``"mean"`` (default), ``"sum"`` or ``"none"`` over the batch.

    Raises:
        O2OSpecError: if a policy is deterministic, ``inv_temperature`` negative, or see :class:`IQLLoss`.

    Examples:
        >>> from torchrl_o2o.modules import make_gaussian_actor, make_qvalue_ensemble, make_value_network
        >>> from torchrl_o2o.objectives import PEXLoss
        >>> from torchrl_o2o.testing import random_transitions
        >>> offline, new = (make_gaussian_actor(5, 2, hidden_sizes=(16,)) for _ in range(2))
        >>> critics = make_qvalue_ensemble(5, 2, num_qvalue_nets=2, layer_norm=False, hidden_sizes=(16,))
        >>> loss = PEXLoss(new, critics, make_value_network(5, hidden_sizes=(16,)), offline)
        >>> loss_actor, info = loss.actor_loss(random_transitions(8, 5, 2))
        >>> sorted(info)
        ['advantage', 'clipped', 'imitation_error', 'offline_share', 'weight']
    """

    out_keys = [
        "loss_actor",
        "loss_qvalue",
        "loss_value",
        "advantage",
        "weight",
        "clipped",
        "imitation_error",
        "offline_share",
        "value",
        "qvalue",
        "target_qvalue",
        "target_value",
    ]

    offline_actor_network: ProbabilisticTensorDictSequential
    offline_actor_network_params: TensorDictParams
    target_offline_actor_network_params: TensorDictParams

    _stochastic = True

    def __init__(
        self,
        actor_network: ProbabilisticTensorDictSequential,
        qvalue_network: list[TensorDictModule],
        value_network: TensorDictModule,
        offline_actor_network: ProbabilisticTensorDictSequential,
        *,
        inv_temperature: float = 10.0,
        expectile: float = 0.9,
        beta: float = 10.0,
        weight_clip: float = 100.0,
        ensemble_reduction: Literal["sum", "mean"] = "mean",
        reduction: Reduction = "mean",
    ) -> None:
        super().__init__(
            actor_network,
            qvalue_network,
            value_network,
            expectile=expectile,
            beta=beta,
            weight_clip=weight_clip,
            ensemble_reduction=ensemble_reduction,
            reduction=reduction,
        )
        if not isinstance(offline_actor_network, ProbabilisticTensorDictSequential):
            raise O2OSpecError(
                f"got the deterministic offline policy {type(offline_actor_network).__name__}, expected a stochastic "
                "one, whose mode acts; build it with make_gaussian_actor(...), for example"
            )
        if not inv_temperature >= 0.0:
            raise O2OSpecError(f"got inv_temperature={inv_temperature}, expected 0 (equal probabilities) or more")
        frozen = copy.deepcopy(offline_actor_network).requires_grad_(False).eval()
        self.convert_to_functional(frozen, "offline_actor_network", create_target_params=False)
        self.inv_temperature = inv_temperature

    def make_actor(self) -> Actor:
        r"""The policy to deploy: the mode of either policy, whichever the current critics value more.

        It is :class:`ExpandedPolicy` under ``DETERMINISTIC`` with :math:`\epsilon=0`.

        Returns:
            An actor that shares this loss's parameters.

        Raises:
            O2OSpecError: if policies and critics read more than one observation; use :class:`ExpandedPolicy` then.
        """
        read = one_observation(self, [*self.offline_actor_network.in_keys, *self.actor_network.in_keys])
        spec = action_box(action_spec(self.actor_network))
        policies = [
            mode_net(with_parameters(network, params), spec)
            for network, params in (
                (self.offline_actor_network, self.offline_actor_network_params),
                (stochastic(self.actor_network), self.actor_network_params),
            )
        ]
        critics = inner_parameters(flat_parameters(self.qvalue_network_params))
        net = BestOfPolicies(policies, inner_module(self.qvalue_network), critics, aggregation="min")
        key = self.tensor_keys.action
        return Actor(net, in_keys=[read], out_keys=[key], spec=Composite({key: spec.clone()}))

    @torch.no_grad()
    def propose(
        self,
        state: Inputs,
        noise: NoiseSource | None = None,
        *,
        greedy: float | None = None,
        like: Tensor | None = None,
    ) -> Proposals:
        r"""Both policies' actions, and a choice between them by the online critics.

        Args:
            state: the entries that the networks read, each of shape [*B, ...].
            noise: the source of random numbers; ``None`` (default) is the loss's own source.

        Keyword Args:
            greedy: ``None`` (default), for collecting, takes a sample of the new policy and draws the choice by the
                probabilities. A number :math:`\epsilon`, for evaluation, replaces with probability :math:`1-\epsilon`
                the sample by the mode and, independently, the draw by the larger value.
            like: any actions at the states, shape [*B, A], which give the noise its shape and dtype; ``None`` (default)
                takes the offline policy's.

        Returns:
            The proposals.
        """
        source = self.noise if noise is None else noise
        frozen = policy_distribution(
            self.offline_actor_network, flat_parameters(self.offline_actor_network_params), state
        )
        offline, policy = cast(Tensor, frozen.mode), self._policy(state)
        given = offline if like is None else like
        new = sample_policy(policy, source.normal("action", given))[0]
        row = given[..., 0]
        if greedy is not None:
            explores = _fraction(source, "eval_action", row) <= greedy
            new = torch.where(explores.unsqueeze(-1), new, policy.mode)
        values = [self._qvalues(state, action, self._frozen_critics).amin(0) for action in (offline, new)]
        probability = expansion_probability(torch.stack(values, -1), self.inv_temperature)
        takes_new = _fraction(source, "choice", row) >= probability[..., 0]
        if greedy is not None:
            explores = _fraction(source, "eval_choice", row) <= greedy
            takes_new = torch.where(explores, takes_new, values[1] > values[0])
        return Proposals(offline, new, probability, takes_new.to(offline.dtype))

    # Takes no metrics of the value step, because they are of recorded actions and this policy is trained on proposed
    # ones.
    def actor_loss(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, tensordict: TensorDictBase
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss of the new policy on actions that are proposed at the batch's states.

        Args:
            tensordict: transitions, shape [*B]; not modified. Of the recorded action only the shape is used.

        Returns:
            The loss, and per row, detached: ``advantage``, ``weight``, ``clipped`` (1 at its bound),
            ``imitation_error`` (negative log-density of the proposed action) and ``offline_share`` (1 where the frozen
            policy's action was taken).
        """
        state = self._state(tensordict)
        proposals = self.propose(state, like=self._action(tensordict))
        action = proposals.action  # a~
        advantage = self._data_q(state, action) - self._value(state).detach()  # min_j Q'_j(s, a~) - V(s)
        weight = advantage_weight(advantage, self.beta, self.weight_clip)
        error = -self._policy(state).log_prob(action)
        info = {"advantage": advantage, "weight": weight, "imitation_error": error.detach()}
        info |= {"clipped": (weight >= self.weight_clip).to(weight.dtype), "offline_share": 1.0 - proposals.takes_new}
        return self._reduce(weight * error), info

    @dispatch
    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """All three losses from one set of parameters, and their statistics; writes the priority to the batch."""
        loss_value, value_info = self.value_loss(tensordict)
        loss_actor, actor_info = self.actor_loss(tensordict)
        loss_qvalue, info = self.qvalue_loss(tensordict)
        losses = {"loss_actor": loss_actor, "loss_qvalue": loss_qvalue, "loss_value": loss_value}
        return self._collect(tensordict, losses, {**value_info, **actor_info, **info})


class ExpandedPolicy(ActsByLoss[PEXLoss]):
    r"""The policy with which PEX collects and is evaluated: the current critics choose between both policies' actions.

    It uses the loss's current parameters. It is random under ``ExplorationType.RANDOM``. ``DETERMINISTIC`` is the
    authors' evaluation, in which each of the two decisions is random with probability :math:`\epsilon`.

    Source: Zhang et al. 2023, arXiv:2302.00935; the evaluation is their code's.

    Args:
        loss: the loss with the policies and critics.

    Keyword Args:
        eval_eps: :math:`\epsilon`; 0 evaluates without randomness. Defaults to 0.1.

    Raises:
        O2OSpecError: if ``eval_eps`` is not in [0, 1].

    Examples:
        >>> import torch
        >>> from tensordict import TensorDict
        >>> from torchrl_o2o.modules import make_gaussian_actor, make_qvalue_ensemble, make_value_network
        >>> from torchrl_o2o.objectives import ExpandedPolicy, PEXLoss
        >>> offline, new = (make_gaussian_actor(5, 2, hidden_sizes=(16,)) for _ in range(2))
        >>> critics = make_qvalue_ensemble(5, 2, num_qvalue_nets=2, hidden_sizes=(16,))
        >>> policy = ExpandedPolicy(PEXLoss(new, critics, make_value_network(5, hidden_sizes=(16,)), offline))
        >>> policy(TensorDict({"observation": torch.zeros(4, 5)}, [4]))["action"].shape
        torch.Size([4, 2])
    """

    @checked_arguments
    def __init__(self, loss: PEXLoss, *, eval_eps: float = 0.1) -> None:
        super().__init__(loss)
        if not 0.0 <= eval_eps <= 1.0:
            raise O2OSpecError(f"got eval_eps={eval_eps}, expected a probability in [0, 1]")
        self.eval_eps = eval_eps
        self.noise: NoiseSource = GeneratorNoise()

    @torch.no_grad()
    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Write the action.

        Args:
            tensordict: the state, shape [*B].

        Returns:
            The same with the action.
        """
        greedy = self.eval_eps if exploration_type() == ExplorationType.DETERMINISTIC else None
        with self._acting():
            proposals = self.by.propose(self._state(tensordict), self.noise, greedy=greedy)
        return tensordict.set(self.out_keys[0], proposals.action)


def _fraction(noise: NoiseSource, name: str, like: Tensor) -> Tensor:
    """Uniform numbers in [0, 1)."""
    return 0.5 * (noise.uniform(name, like) + 1.0)
