# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""The base class of losses with an actor and E critics with targets."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

import torch
from tensordict import TensorDictParams
from tensordict.nn import TensorDictModule, TensorDictModuleBase
from tensordict.utils import NestedKey
from torch import Tensor
from torch.distributions import Distribution

from torchrl_o2o.errors import O2OSpecError
from torchrl_o2o.functional.soft import ensemble_squared_error
from torchrl_o2o.modules.critics import QValueNet
from torchrl_o2o.objectives.base import Reduction, TransitionLoss
from torchrl_o2o.objectives.members import check_members
from torchrl_o2o.objectives.networks import (
    Inputs,
    Parameters,
    flat_parameters,
    policy_distribution,
    stochastic,
    tied,
)

__all__ = ["ActorCriticLoss", "inputs_made_inside", "one_observation"]


#: Start of the names of a critic's output layer, which critics may share.
_HEAD = "module.head."


class ActorCriticLoss(TransitionLoss):
    """Abstract base of losses with an actor and a list of critics, the latter with target networks.

    Args:
        actor_network: the actor, stochastic or deterministic.
        qvalue_network: E critics, at least one.
        target_actor: whether the actor has a target network as well. Defaults to ``False``.
        reduction: over the batch.

    Raises:
        O2OSpecError: if the critics are not a list of at least one network, two critics share parameters, or the actor
            is deterministic and the loss needs its density.
    """

    actor_network: TensorDictModule
    actor_network_params: TensorDictParams
    target_actor_network_params: TensorDictParams
    qvalue_network: TensorDictModule
    qvalue_network_params: TensorDictParams
    target_qvalue_network_params: TensorDictParams

    _networks_read = (("actor_network", "qvalue_network"), ("actor_network", "qvalue_network"))
    #: Whether actions are drawn from the actor or scored by its density.
    _stochastic: ClassVar[bool] = True
    #: Upper bound on all Q values, if a loss has one.
    q_max: float | None = None

    def __init__(
        self,
        actor_network: TensorDictModule,
        qvalue_network: list[TensorDictModule],
        *,
        target_actor: bool = False,
        reduction: Reduction = "mean",
    ) -> None:
        super().__init__(reduction)
        if self._stochastic:
            stochastic(actor_network)
        members = check_members(qvalue_network)
        self.convert_to_functional(actor_network, "actor_network", create_target_params=target_actor)
        self.convert_to_functional(members, "qvalue_network", len(members), create_target_params=True)
        self.num_qvalue_nets = len(members)
        self._shared_head = _shares_head(members)

    def _reset_network(self, name: str, network: TensorDictModuleBase, params: TensorDictParams) -> None:
        super()._reset_network(name, network, params)
        if self._shared_head and name == "qvalue_network":  # the copies of the output layer stay equal
            for group in (params, self.target_qvalue_network_params):
                for key, value in flat_parameters(group, detach=True).items():
                    if key.startswith(_HEAD):
                        value.copy_(value[:1].expand_as(value))

    def _policy(self, state: Inputs) -> Distribution:
        """pi(.|s), with gradient."""
        return policy_distribution(self.actor_network, flat_parameters(self.actor_network_params), state)

    def _qvalues(self, state: Inputs, action: Tensor, params: Parameters | None = None) -> Tensor:
        """Q_i(s, a), shape [E, *B], of the critics that are trained or of other ``params``."""
        keys, network = self.tensor_keys, self.qvalue_network
        if keys.action not in network.in_keys:
            raise O2OSpecError(
                f"the critics read {network.in_keys}, expected the action {keys.action!r} among them; build them with "
                f"in_keys=[..., {keys.action!r}], or set their key with loss.set_keys(action=...)"
            )
        params = self._trained_critics() if params is None else params
        qvalue = self._call_ensemble(network, params, {**state, keys.action: action}, keys.state_action_value)
        if qvalue.shape[1:] != action.shape[:-1]:
            raise O2OSpecError(
                f"a critic gave {keys.state_action_value!r} of shape {list(qvalue.shape[1:])} for actions of shape "
                f"{list(action.shape)}, expected one number per action, [*B, 1]; give its last layer one output"
            )
        return qvalue if self.q_max is None else qvalue.clamp(max=self.q_max)

    def _trained_critics(self) -> Parameters:
        """Parameters of the critics with gradient; the copies of a shared output layer share one gradient."""
        params = flat_parameters(self.qvalue_network_params)
        return tied(params, _HEAD) if self._shared_head else params

    @property
    def _frozen_critics(self) -> Parameters:
        """The critics' current parameters without gradient, for training an actor."""
        return flat_parameters(self.qvalue_network_params, detach=True)

    @property
    def _target_critics(self) -> Parameters:
        """Parameters of the target critics."""
        return flat_parameters(self.target_qvalue_network_params)

    def _bellman_error(
        self, qvalue: Tensor, target: Tensor, over_members: Literal["sum", "mean"] = "sum"
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """sum_i (Q_i(s, a) - y)^2 of each row, shape [*B], and its metrics, detached."""
        error = ensemble_squared_error(qvalue, target, over_members)
        qvalue = qvalue.detach()
        return error, {"td_error": (qvalue - target).abs().mean(0), "qvalue": qvalue, "target_value": target}


def inputs_made_inside(loss: TransitionLoss, *names: str) -> list[NestedKey]:
    """The inputs of a loss's networks that the loss itself computes, such as the encoder's latent or a flow's noise.

    Args:
        loss: the loss.
        names: attributes of the loss that hold the networks.

    Returns:
        The entries.

    Examples:
        >>> from torchrl_o2o.modules import make_flow_network, make_qvalue_ensemble
        >>> from torchrl_o2o.objectives import BestOfNLoss
        >>> flow = make_flow_network(3, 2, hidden_sizes=(8,))
        >>> loss = BestOfNLoss(flow, make_qvalue_ensemble(3, 2, num_qvalue_nets=2, hidden_sizes=(8,)))
        >>> inputs_made_inside(loss, "qvalue_network"), len(inputs_made_inside(loss, "actor_network"))
        ([], 2)
    """
    read, asked = (
        dict.fromkeys(key for name in each for key in getattr(loss, name).in_keys)
        for each in (loss._networks_read[0], names)
    )
    return [key for key in asked if key not in read and key != loss.tensor_keys.action]


def one_observation(loss: ActorCriticLoss, read: Sequence[NestedKey]) -> NestedKey:
    """The one observation that all policies and critics of a loss read.

    Args:
        loss: the loss whose critics choose the action.
        read: the entries that its policies read.

    Returns:
        The entry.

    Raises:
        O2OSpecError: if the policies read several observations, or the critics do not read this observation and then
            the action.

    Examples:
        >>> from torchrl_o2o.modules import make_actor, make_qvalue_ensemble
        >>> from torchrl_o2o.objectives import AWACLoss
        >>> critics = make_qvalue_ensemble(3, 2, num_qvalue_nets=2, hidden_sizes=(8,))
        >>> loss = AWACLoss(make_actor(3, 2, hidden_sizes=(8,)), critics)
        >>> one_observation(loss, loss.actor_network.in_keys)
        'observation'
    """
    critics, keys = list(loss.qvalue_network.in_keys), list(dict.fromkeys(read))
    if len(keys) != 1 or critics != [keys[0], loss.tensor_keys.action]:
        raise O2OSpecError(
            f"got a {type(loss).__name__} whose policies read {keys} and whose critics read {critics}, expected one "
            "observation for all of them and, for the critics, the action after it; a deployed actor gets one "
            "observation. Join the observations into one entry, for example with torchrl.envs.CatTensors"
        )
    return keys[0]


def _shares_head(members: list[TensorDictModule]) -> bool:
    """Whether the critics share their output layer. Raises if only some do, or if the copies differ."""
    nets = [getattr(member, "module", None) for member in members]
    shared = [isinstance(net, QValueNet) and net.shared_head for net in nets]
    if not any(shared):
        return False
    heads = [net.head.state_dict() for net in nets if isinstance(net, QValueNet)]
    equal = all(torch.equal(head[name], heads[0][name]) for head in heads for name in head)
    if not all(shared) or not equal:
        raise O2OSpecError(
            "got critics of which only some share their output layer, expected one output layer for all or one for "
            "each; build them with make_qvalue_ensemble(..., shared_head=True)"
        )
    return True
