# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Take the best of several actions of a policy according to a critic, as BEAR and BRAC do in evaluation."""

from __future__ import annotations

import torch
from tensordict import TensorDictBase
from torch import Tensor
from torchrl.data import Composite
from torchrl.modules import Actor

from torchrl_o2o.arguments import checked_arguments
from torchrl_o2o.errors import O2OSpecError
from torchrl_o2o.functional.conservative import best_of
from torchrl_o2o.modules.best_of import BestOfSamples, moments_and_place
from torchrl_o2o.modules.boxes import action_box, action_spec
from torchrl_o2o.objectives.acting import ActsByLoss
from torchrl_o2o.objectives.actor_critic import ActorCriticLoss, one_observation
from torchrl_o2o.objectives.networks import (
    Inputs,
    flat_parameters,
    inner_module,
    inner_parameters,
    repeated,
    sample_policy,
    stochastic,
    with_parameters,
)

__all__ = ["BestAction"]


class BestAction(ActsByLoss[ActorCriticLoss]):
    r"""Draw N actions from a loss's actor and take the one that its first critic values most.

    .. math:: a=\arg\max_{a_k}Q_1(s,a_k),\qquad a_1\dots a_N\sim\pi(\cdot|s)

    It uses the loss's current parameters, also while they are trained. It is random under every exploration type.

    Source: Kumar et al. 2019 (BEAR), section 5; Wu et al. 2019 (BRAC) evaluate in the same way.

    Args:
        loss: a loss with a stochastic actor and critics.

    Keyword Args:
        num_actions: N. Defaults to 10.

    Raises:
        O2OSpecError: if ``num_actions`` is below 1, or the actor is deterministic.

    Examples:
        >>> import torch
        >>> from tensordict import TensorDict
        >>> from torchrl_o2o.modules import make_actor, make_qvalue_ensemble
        >>> from torchrl_o2o.objectives import AWACLoss, BestAction
        >>> actor, critics = make_actor(3, 2, hidden_sizes=(8,)), make_qvalue_ensemble(3, 2, num_qvalue_nets=2)
        >>> policy = BestAction(AWACLoss(actor, critics))
        >>> policy(TensorDict({"observation": torch.zeros(4, 3)}, [4]))["action"].shape
        torch.Size([4, 2])
    """

    @checked_arguments
    def __init__(self, loss: ActorCriticLoss, *, num_actions: int = 10) -> None:
        super().__init__(loss)
        if num_actions < 1:
            raise O2OSpecError(f"got num_actions={num_actions}, expected at least 1")
        stochastic(loss.actor_network)
        self.num_actions = num_actions

    def make_actor(self) -> Actor:
        r"""The policy to deploy, which takes the same actions and does not need the loss.

        Returns:
            An actor that shares the loss's parameters; random under every exploration type.

        Raises:
            O2OSpecError: if the loss's actor is not one of :func:`~torchrl_o2o.modules.make_actor` or
                :func:`~torchrl_o2o.modules.make_gaussian_actor`, or actor and critics read more than one observation.
        """
        loss = self.by
        read = one_observation(loss, loss.actor_network.in_keys)
        spec = action_box(action_spec(loss.actor_network))
        actor = with_parameters(stochastic(loss.actor_network), loss.actor_network_params)
        net = BestOfSamples(
            *moments_and_place(actor, spec),
            inner_module(loss.qvalue_network),
            inner_parameters(flat_parameters(loss.qvalue_network_params)),
            num_samples=self.num_actions,
            action_dim=spec.shape[-1],
            aggregation="first",
        )
        (key,) = self.out_keys
        return Actor(net, in_keys=[read], out_keys=[key], spec=Composite({key: spec.clone()}))

    @torch.no_grad()
    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Write the best action.

        Args:
            tensordict: what actor and critics read, shape [*B]; changed in place.

        Returns:
            The same.
        """
        with self._acting():
            return tensordict.set(self.out_keys[0], self._best(self._state(tensordict)))

    def _best(self, state: Inputs) -> Tensor:
        """The best of N actions, shape [*B, A]."""
        loss = self.by
        policy, count = loss._policy(state), (self.num_actions,)
        like = state[loss.actor_network.in_keys[0]]
        like = like.new_empty((*like.shape[:-1], action_spec(loss.actor_network).shape[-1]))
        action, _ = sample_policy(policy, loss.noise.normal("best_action", like, count), count)  # [N, *B, A]
        qvalue = loss._qvalues(repeated(state, *count), action)[0]  # Q_1, [N, *B]
        return best_of(qvalue, action)[0]
