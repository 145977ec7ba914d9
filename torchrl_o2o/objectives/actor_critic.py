# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""An actor and E critics with targets: the networks that all losses of the package but the model losses hold."""

from __future__ import annotations

from typing import ClassVar

from tensordict import TensorDict, TensorDictBase, TensorDictParams
from tensordict.nn import ProbabilisticTensorDictSequential, TensorDictModule, TensorDictModuleBase
from torch import Tensor

from torchrl_o2o.errors import O2OSpecError
from torchrl_o2o.functional.soft import sac_actor_objective
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
        O2OSpecError: if the critics are not a list of at least one, each with parameters of its own, or the actor is
            deterministic where its density is needed.
    """

    actor_network: TensorDictModuleBase
    actor_network_params: TensorDictParams
    target_actor_network_params: TensorDictParams
    qvalue_network: TensorDictModule
    qvalue_network_params: TensorDictParams
    target_qvalue_network_params: TensorDictParams

    _networks_read = (("actor_network", "qvalue_network"), ("actor_network", "qvalue_network"))
    #: Whether actions are drawn from the actor or scored by its density.
    _stochastic: ClassVar[bool] = True

    def __init__(
        self,
        actor_network: TensorDictModuleBase,
        qvalue_network: list[TensorDictModule],
        *,
        target_actor: bool = False,
        reduction: Reduction = "mean",
    ) -> None:
        super().__init__(reduction)
        if self._stochastic and not isinstance(actor_network, ProbabilisticTensorDictSequential):
            raise O2OSpecError(
                f"got the deterministic actor {type(actor_network).__name__}, expected a stochastic one, for example "
                f"make_actor(...), make_gaussian_actor(...) or ProbabilisticActor(...)"
            )
        members = _members(qvalue_network)
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
        if keys.action not in self.qvalue_network.in_keys:
            raise O2OSpecError(
                f"the critics read {self.qvalue_network.in_keys}, expected the action {keys.action!r} among them; "
                f"build them with in_keys=[..., {keys.action!r}], or name theirs with loss.set_keys(action=...)"
            )
        return ActorCritic(self.actor_network, self.qvalue_network, keys.action, keys.state_action_value)


def _members(networks: list[TensorDictModule]) -> list[TensorDictModule]:
    """The critics as a list, if they are one."""
    if isinstance(networks, TensorDictModuleBase):
        raise O2OSpecError(
            f"got one {type(networks).__name__}, expected a list of critics, each with parameters of its own, for "
            f"example make_qvalue_ensemble(...)"
        )
    members = list(networks)
    if not members:
        raise O2OSpecError("got no critic; pass a list of them, for example make_qvalue_ensemble(...)")
    if len({id(member) for member in members}) < len(members):
        raise O2OSpecError(
            "got one critic several times, expected critics with parameters of their own; copies of one network stay "
            "equal for ever. Build each anew, for example by make_qvalue_ensemble(...)"
        )
    return members
