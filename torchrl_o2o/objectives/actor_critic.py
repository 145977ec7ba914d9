# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""An actor and E critics with targets: the networks that all losses of the package but the model losses hold."""

from __future__ import annotations

from tensordict import TensorDict, TensorDictBase, TensorDictParams
from tensordict.nn import TensorDictModule, TensorDictModuleBase
from torch import Tensor

from torchrl_o2o.errors import O2OSpecError
from torchrl_o2o.functional import sac_actor_objective
from torchrl_o2o.objectives.base import Reduction, TransitionLoss
from torchrl_o2o.objectives.networks import ActorCritic, Inputs, Parameters

__all__ = ["ActorCriticLoss", "climb"]


def climb(
    networks: ActorCritic,
    actor: Parameters,
    qvalue: Parameters,
    inputs: Inputs,
    noise: Tensor,
    alpha: Tensor,
    over: str,
) -> tuple[Tensor, Tensor]:
    """The soft actor-critic's actor core: objective per row and log pi(a|s), both of shape [*B].

    Args:
        networks: templates of actor and critic.
        actor: the actor's parameters.
        qvalue: the critics' parameters, without gradient.
        inputs: what both read at s.
        noise: standard-normal numbers for the action, shape [*B, A].
        alpha: entropy temperature, a scalar.
        over: ``"mean"`` or ``"min"`` of the critics.

    Returns:
        ``alpha log pi - Q`` and ``log pi``.
    """
    action, log_prob = networks.sample(actor, inputs, noise)
    values = networks.qvalues(qvalue, inputs, action)
    return sac_actor_objective(log_prob, values.mean(0) if over == "mean" else values.amin(0), alpha), log_prob


class ActorCriticLoss(TransitionLoss):
    """Abstract base of losses with an actor and a list of critics, the latter with target networks.

    Args:
        actor_network: the actor, stochastic or deterministic.
        qvalue_network: E critics, at least one.
        target_actor: whether the actor has a target network as well. Defaults to ``False``.
        reduction: over the batch.

    Raises:
        O2OSpecError: if no critic is given.
    """

    actor_network: TensorDictModuleBase
    actor_network_params: TensorDictParams
    target_actor_network_params: TensorDictParams
    qvalue_network: TensorDictModule
    qvalue_network_params: TensorDictParams
    target_qvalue_network_params: TensorDictParams

    _networks_read = (("actor_network", "qvalue_network"), ("actor_network", "qvalue_network"))

    def __init__(
        self,
        actor_network: TensorDictModuleBase,
        qvalue_network: list[TensorDictModule],
        *,
        target_actor: bool = False,
        reduction: Reduction = "mean",
    ) -> None:
        super().__init__(reduction)
        members = list(qvalue_network)
        if not members:
            raise O2OSpecError("got no critic; pass a list of them, for example make_qvalue_ensemble(...)")
        self.convert_to_functional(actor_network, "actor_network", create_target_params=target_actor)
        self.convert_to_functional(members, "qvalue_network", len(members), create_target_params=True)
        self.num_qvalue_nets = len(members)

    def _collect(
        self, tensordict: TensorDictBase, losses: dict[str, Tensor], info: dict[str, Tensor]
    ) -> TensorDictBase:
        """The output of ``forward``: losses and the batch means of what was measured; writes the priority."""
        tensordict.set(self.tensor_keys.priority, info.pop("td_error"))
        if self.reduction == "none":
            return TensorDict(losses, tensordict.batch_size)
        return TensorDict({**losses, **{key: value.mean() for key, value in info.items()}}, [])

    @property
    def _networks(self) -> ActorCritic:
        keys = self.tensor_keys
        return ActorCritic(self.actor_network, self.qvalue_network, keys.action, keys.state_action_value)
