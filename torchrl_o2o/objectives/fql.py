# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Flow Q-learning: a flow model of the data's actions, distilled into one step or sampled best of N."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from tensordict import TensorDictBase, TensorDictParams
from tensordict.nn import TensorDictModule
from tensordict.utils import NestedKey
from torch import Tensor
from torchrl.modules import Actor

from torchrl_o2o.errors import O2OSpecError, check_count, check_number, check_option
from torchrl_o2o.functional.conservative import best_of
from torchrl_o2o.functional.offline import q_normalization
from torchrl_o2o.modules.best_of import BestOfN
from torchrl_o2o.modules.flow import FLOW_POINT, FLOW_TIME, FlowNetwork, euler_flow, one_step_network
from torchrl_o2o.objectives.actor_critic import one_observation
from torchrl_o2o.objectives.base import Reduction, dispatch
from torchrl_o2o.objectives.critic import CriticLoss
from torchrl_o2o.objectives.networks import (
    Inputs,
    call_network,
    flat_parameters,
    inner_module,
    inner_parameters,
    repeated,
    with_parameters,
)

__all__ = ["BestOfNLoss", "FQLLoss"]

_Aggregation = Literal["mean", "min"]


class FlowLoss(CriticLoss):
    """Abstract base of losses with critics and a flow that is fitted to the data's actions.

    Args:
        actor_network: the network held as :attr:`actor_network`.
        flow_network: the velocity field.
        qvalue_network: critics, two in the references.
        flow_steps: number of Euler steps.
        aggregation: ``"mean"`` or ``"min"`` of the target critics.
        ensemble_reduction: ``"mean"`` or ``"sum"`` over members in the critic loss.
        reduction: over the batch.

    Raises:
        O2OSpecError: if a number is below 1, an option is unknown, or the flow reads an observation that the critics do
            not read.
    """

    @dataclass
    class _AcceptedKeys(CriticLoss._AcceptedKeys):
        """Tensordict keys that can be renamed with ``set_keys``.

        Attributes:
            valid: which actions of a chunk belong to its episode, shape [*B, h], if present. The flow's loss omits the
                others. Defaults to ``"valid"``.
        """

        valid: NestedKey = "valid"

    default_keys = _AcceptedKeys
    tensor_keys: _AcceptedKeys  # pyright: ignore[reportIncompatibleVariableOverride]

    action_low: Tensor
    action_high: Tensor
    flow_network: TensorDictModule

    _stochastic = False
    _networks_read = (("qvalue_network",), ("qvalue_network",))
    #: The attribute that holds the flow.
    _flow: ClassVar[str] = "flow_network"

    def __init__(
        self,
        actor_network: TensorDictModule,
        flow_network: FlowNetwork,
        qvalue_network: list[TensorDictModule],
        *,
        flow_steps: int,
        aggregation: _Aggregation,
        ensemble_reduction: Literal["sum", "mean"],
        reduction: Reduction,
    ) -> None:
        if not isinstance(flow_network, FlowNetwork):
            raise O2OSpecError(
                f"got {type(flow_network).__name__} for the flow, expected a FlowNetwork; build it with "
                "make_flow_network(...)"
            )
        super().__init__(actor_network, qvalue_network, ensemble_reduction=ensemble_reduction, reduction=reduction)
        check_option("aggregation", aggregation, ("mean", "min"))
        self.aggregation: _Aggregation = aggregation
        self.flow_steps = check_count("flow_steps", flow_steps, least=1)
        self._hold_box(flow_network)
        if flow_network.in_keys[0] not in self.qvalue_network.in_keys:
            raise O2OSpecError(
                f"got a flow that reads {flow_network.in_keys[0]!r}, expected one of the critics' entries, "
                f"{self.qvalue_network.in_keys}; build both for the same observation"
            )

    @property
    def _flow_params(self) -> TensorDictParams:
        return getattr(self, f"{self._flow}_params")

    def _velocity(self, state: Inputs, point: Tensor, time: Tensor, *, detach: bool = False) -> Tensor:
        """v(s, x, t), shape [*B, A]."""
        network: TensorDictModule = getattr(self, self._flow)
        params = flat_parameters(self._flow_params, detach=detach)
        return call_network(network, params, {**state, FLOW_POINT: point, FLOW_TIME: time}, "velocity")

    def _end_of_flow(self, state: Inputs, noise: Tensor) -> Tensor:
        """The action at the end of the flow, clipped to the box, without gradient."""
        with torch.no_grad():
            end = euler_flow(lambda x, t: self._velocity(state, x, t, detach=True), noise, self.flow_steps)
            return self._clip(end)

    def _clip(self, action: Tensor) -> Tensor:
        return torch.minimum(torch.maximum(action, self.action_low), self.action_high)

    def _aggregate(self, qvalues: Tensor) -> Tensor:
        """agg_j Q_j, shape [*B]."""
        return qvalues.mean(0) if self.aggregation == "mean" else qvalues.amin(0)

    def flow_loss(self, tensordict: TensorDictBase) -> tuple[Tensor, dict[str, Tensor]]:
        """Fit the flow to the recorded actions.

        Args:
            tensordict: transitions, shape [*B]; not modified.

        Returns:
            The loss, and ``flow_error``, its rows, shape [*B], detached.
        """
        action, state = self._action(tensordict), self._state(tensordict)
        start = self.noise.normal("flow_start", action)  # x_0
        time = 0.5 * (self.noise.uniform("flow_time", action[..., :1]) + 1.0)  # t ~ U[0, 1)
        point = (1.0 - time) * start + time * action  # x_t
        square = (self._velocity(state, point, time) - (action - start)).square()
        error = self._masked(tensordict, square).mean(-1)
        return self._reduce(error), {"flow_error": error.detach()}

    def _masked(self, tensordict: TensorDictBase, square: Tensor) -> Tensor:
        """Mask the actions of a chunk after the end of its episode."""
        valid = tensordict.get(self.tensor_keys.valid, None)
        if valid is None:
            return square
        steps, size = valid.shape[-1], square.shape[-1]
        if valid.shape[:-1] != square.shape[:-1] or size % steps:
            raise O2OSpecError(
                f"got {self.tensor_keys.valid!r} of shape {list(valid.shape)} for actions of shape "
                f"{list(square.shape)}, expected one number for each action of a chunk; sample with ChunkSampler"
            )
        return square * valid.to(square.dtype).repeat_interleave(size // steps, -1)


class FQLLoss(FlowLoss):
    r"""Flow Q-learning: a one-step policy that maximizes the critics and stays close to a flow of the data's actions.

    With a velocity field v, a one-step policy :math:`\mu(s,z)`, noise :math:`z,x_0\sim N(0,I)`, :math:`t\sim U[0,1]`
    and :math:`x_t=(1-t)x_0+ta`:

    .. math::
        y = r+\gamma(1-d)\,\mathrm{agg}_j Q'_j\big(s',\mathrm{clip}\,\mu(s',z')\big),\qquad
        L_Q = \frac1B\sum_b\frac1E\sum_j(Q_j(s,a)-y)^2,\qquad
        L_v = \frac1{BA}\sum_b\lVert v(s,x_t,t)-(a-x_0)\rVert^2

        L_\mu = \frac\alpha{BA}\sum_b\lVert\mu(s,z)-\mathrm{flow}(s,z)\rVert^2
        - \frac\lambda B\sum_b\frac1E\sum_j Q_j\big(s,\mathrm{clip}\,\mu(s,z)\big)

    where flow(s, z) follows v from z in ``flow_steps`` Euler steps and is clipped at the end, without gradient.
    :math:`\lambda` is 1, or, with ``normalize_q_loss``, 1 divided by the mean of \|Q\|.

    The authors take one step of a single Adam for everything, and the target critics follow the critics from *before*
    that step::

        Joint(MoveTargets(targets), Descend("qvalue", ...), Descend("flow", ...), Descend("actor", ...))

    On chunks of h actions (:class:`~torchrl_o2o.data.ChunkSampler`) this is QC-FQL. With the first action and the
    return of h steps it is FQL-n. The flow's error counts where ``valid`` is 1, the critics' error where the whole
    chunk is valid (by the weight that the sampler writes), and the policy's error everywhere.

    Source: Park, Li & Levine 2025, arXiv:2502.02538, Eq. 3, 6-8, Algorithm 1; on chunks Li, Zhou & Levine 2025,
    arXiv:2507.07969, section 4, and both authors' codes.

    Differences from the paper: the paper prints sums over action dimensions, while the code and this class take means.

    Importance weights multiply the rows of :math:`L_Q` alone: those of a chunk say where its return is known.

    Args:
        actor_network: the policy, from :func:`~torchrl_o2o.modules.make_one_step_actor`.
        flow_network: :func:`~torchrl_o2o.modules.make_flow_network`.
        qvalue_network: two critics, in the paper with GELU and LayerNorm behind it.

    Keyword Args:
        alpha: weight of the distillation. It is the buffer ``alpha``, so that it can be changed online. Defaults to 10.
        flow_steps: Euler steps. Defaults to 10.
        aggregation: ``"mean"`` (default) or ``"min"`` of the target critics.
        normalize_q_loss: whether the Q term is divided by the mean of its absolute value. Defaults to ``False``; the
            authors recommend it for new tasks.
        ensemble_reduction: ``"mean"`` (default) or ``"sum"`` over members in the critic loss.
        reduction: ``"mean"`` (default), ``"sum"`` or ``"none"`` over the batch.

    Raises:
        O2OSpecError: if the actor was not built by ``make_one_step_actor``, or a setting is out of range or unknown.

    Examples:
        >>> from torchrl_o2o.modules import make_flow_network, make_one_step_actor, make_qvalue_ensemble
        >>> from torchrl_o2o.objectives import FQLLoss
        >>> from torchrl_o2o.testing import random_transitions
        >>> sizes = {"hidden_sizes": (32, 32)}
        >>> critics = make_qvalue_ensemble(
        ...     17, 6, num_qvalue_nets=2, activation="gelu", layer_norm="after_activation", **sizes
        ... )
        >>> loss = FQLLoss(make_one_step_actor(17, 6, **sizes), make_flow_network(17, 6, **sizes), critics)
        >>> out = loss(random_transitions(8, 17, 6))
        >>> sorted(key for key in out.keys() if key.startswith("loss_"))
        ['loss_actor', 'loss_flow', 'loss_qvalue']
    """

    out_keys = ["loss_actor", "loss_flow", "loss_qvalue", "distill_error", "flow_error", "q_weight", "qvalue_policy"]
    out_keys += ["qvalue", "target_value"]

    alpha: Tensor
    flow_network_params: TensorDictParams
    target_flow_network_params: TensorDictParams

    def __init__(
        self,
        actor_network: Actor,
        flow_network: FlowNetwork,
        qvalue_network: list[TensorDictModule],
        *,
        alpha: float = 10.0,
        flow_steps: int = 10,
        aggregation: _Aggregation = "mean",
        normalize_q_loss: bool = False,
        ensemble_reduction: Literal["sum", "mean"] = "mean",
        reduction: Reduction = "mean",
    ) -> None:
        check_number("alpha", alpha, least=0)
        super().__init__(
            one_step_network(actor_network),
            flow_network,
            qvalue_network,
            flow_steps=flow_steps,
            aggregation=aggregation,
            ensemble_reduction=ensemble_reduction,
            reduction=reduction,
        )
        self.convert_to_functional(flow_network, "flow_network")
        self.register_buffer("alpha", torch.tensor(alpha, dtype=torch.get_default_dtype()))
        self.normalize_q_loss = normalize_q_loss
        self.make_value_estimator()

    def _one_step(self, state: Inputs, noise: Tensor) -> Tensor:
        """mu(s, z), not clipped, shape [*B, A]."""
        params = flat_parameters(self.actor_network_params)
        return call_network(self.actor_network, params, {**state, FLOW_POINT: noise}, self.actor_network.out_keys[0])

    @torch.no_grad()
    def target_value(self, tensordict: TensorDictBase) -> Tensor:
        """See :meth:`CriticLoss.target_value`."""
        following, noise = self._next_state(tensordict), self.noise.normal("next_action", self._action(tensordict))
        action = self._clip(self._one_step(following, noise))  # a' = clip mu(s', z')
        value = self._aggregate(self._qvalues(following, action, self._target_critics))  # agg_j Q'_j(s', a')
        return self._estimate(tensordict, value, qvalue=value, action=action)

    def actor_loss(self, tensordict: TensorDictBase) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss of the one-step policy; no gradient reaches the flow or the critics.

        Args:
            tensordict: transitions, shape [*B]; not modified. Of the recorded action only the shape is used.

        Returns:
            The loss, and detached: ``distill_error`` and ``qvalue_policy`` per row, shape [*B], and the scalar
            ``q_weight`` (lambda).
        """
        state, noise = self._state(tensordict), self.noise.normal("distill", self._action(tensordict))
        action = self._one_step(state, noise)  # mu(s, z)
        distance = (action - self._end_of_flow(state, noise)).square().mean(-1)
        qvalue = self._qvalues(state, self._clip(action), self._frozen_critics).mean(0)
        weight = q_normalization(qvalue) if self.normalize_q_loss else qvalue.new_ones(())
        info = {"distill_error": distance.detach(), "qvalue_policy": qvalue.detach(), "q_weight": weight}
        return self._reduce(self.alpha * distance - weight * qvalue), info

    @dispatch
    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """All losses from one set of parameters, and their statistics; writes the priority to the batch."""
        loss_qvalue, info = self.qvalue_loss(tensordict)
        loss_flow, flow_info = self.flow_loss(tensordict)
        loss_actor, actor_info = self.actor_loss(tensordict)
        losses = {"loss_actor": loss_actor, "loss_flow": loss_flow, "loss_qvalue": loss_qvalue}
        return self._collect(tensordict, losses, {**actor_info, **flow_info, **info})


class BestOfNLoss(FlowLoss):
    r"""A flow of the data's actions, and critics; the policy takes the best of N actions of the flow.

    With N actions :math:`a'_n` of the flow at s' and :math:`n^*=\arg\max_n\mathrm{agg}_jQ_j(s',a'_n)` by the *online*
    critics:

    .. math::
        y = r+\gamma(1-d)\,\mathrm{agg}_jQ'_j(s',a'_{n^*}),\qquad
        L_Q = \frac1B\sum_b\frac1E\sum_j(Q_j(s,a)-y)^2,\qquad
        L_v = \frac1{BA}\sum_b\lVert v(s,x_t,t)-(a-x_0)\rVert^2

    No policy is trained; :meth:`make_actor` chooses among N actions when it acts. On chunks of h actions
    (:class:`~torchrl_o2o.data.ChunkSampler`) this is QC. On single actions it is BFN, and with the first action and the
    return of h steps BFN-n. Masks and the order of a whole update are as in :class:`FQLLoss`.

    Source: Li, Zhou & Levine 2025 (QC), arXiv:2507.07969, Eq. 8-10, and the authors' code.

    Differences from the paper: none in the equations. The flow is held as ``actor_network``, because it is the only
    policy.

    Importance weights multiply the rows of :math:`L_Q` alone: those of a chunk say where its return is known.

    Args:
        flow_network: :func:`~torchrl_o2o.modules.make_flow_network`.
        qvalue_network: two critics, in the paper with GELU and LayerNorm behind it.

    Keyword Args:
        num_samples: number N of the flow's actions. Defaults to 32, as in QC; BFN has 4.
        flow_steps: Euler steps. Defaults to 10.
        aggregation: ``"mean"`` (default) or ``"min"`` of the critics, both in the choice and in the value.
        ensemble_reduction: ``"mean"`` (default) or ``"sum"`` over members in the critic loss.
        reduction: ``"mean"`` (default), ``"sum"`` or ``"none"`` over the batch.

    Raises:
        O2OSpecError: if a setting is out of range or unknown.

    Examples:
        >>> from torchrl_o2o.modules import make_flow_network, make_qvalue_ensemble
        >>> from torchrl_o2o.objectives import BestOfNLoss
        >>> from torchrl_o2o.testing import random_transitions
        >>> critics = make_qvalue_ensemble(17, 6, num_qvalue_nets=2, hidden_sizes=(32, 32))
        >>> loss = BestOfNLoss(make_flow_network(17, 6, hidden_sizes=(32, 32)), critics, num_samples=4)
        >>> loss(random_transitions(8, 17, 6))["loss_qvalue"].shape
        torch.Size([])
        >>> import torch
        >>> from tensordict import TensorDict
        >>> loss.make_actor()(TensorDict({"observation": torch.zeros(5, 17)}, [5]))["action"].shape
        torch.Size([5, 6])
    """

    out_keys = ["loss_flow", "loss_qvalue", "flow_error", "qvalue", "target_value"]
    _flow = "actor_network"

    def __init__(
        self,
        flow_network: FlowNetwork,
        qvalue_network: list[TensorDictModule],
        *,
        num_samples: int = 32,
        flow_steps: int = 10,
        aggregation: _Aggregation = "mean",
        ensemble_reduction: Literal["sum", "mean"] = "mean",
        reduction: Reduction = "mean",
    ) -> None:
        super().__init__(
            flow_network,
            flow_network,
            qvalue_network,
            flow_steps=flow_steps,
            aggregation=aggregation,
            ensemble_reduction=ensemble_reduction,
            reduction=reduction,
        )
        self.num_samples = check_count("num_samples", num_samples, least=1)
        self.make_value_estimator()

    def make_actor(self) -> Actor:
        """The policy: the best of N actions of the flow according to the current critics.

        Returns:
            An actor that shares this loss's parameters; random under every exploration type.

        Raises:
            O2OSpecError: if the critics read anything besides the flow's observation and the action.
        """
        read = one_observation(self, [key for key in self.actor_network.in_keys if key not in (FLOW_POINT, FLOW_TIME)])
        flow = with_parameters(self.actor_network, self.actor_network_params)
        assert isinstance(flow, FlowNetwork)  # checked by the constructor
        net = BestOfN(
            inner_module(flow),
            inner_module(self.qvalue_network),
            inner_parameters(flat_parameters(self.qvalue_network_params)),
            self.action_low.clone(),
            self.action_high.clone(),
            num_samples=self.num_samples,
            flow_steps=self.flow_steps,
            aggregation=self.aggregation,
        )
        (action_key,) = flow.spec.keys(True, True)
        return Actor(net, in_keys=[read], out_keys=[action_key], spec=flow.spec.clone())

    @torch.no_grad()
    def target_value(self, tensordict: TensorDictBase) -> Tensor:
        """See :meth:`CriticLoss.target_value`."""
        following, count = self._next_state(tensordict), self.num_samples
        many = repeated(following, count)
        noise = self.noise.normal("next_action", self._action(tensordict), (count,))
        actions = self._end_of_flow(many, noise)  # a'_n, shape [N, *B, A]
        score = self._aggregate(self._qvalues(many, actions, self._frozen_critics))
        action = best_of(score, actions)[0]  # a'_n*
        value = self._aggregate(self._qvalues(following, action, self._target_critics))  # agg_j Q'_j(s', a'_n*)
        return self._estimate(tensordict, value, qvalue=value, action=action)

    @dispatch
    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Both losses from one set of parameters, and their statistics; writes the priority to the batch."""
        loss_qvalue, info = self.qvalue_loss(tensordict)
        loss_flow, flow_info = self.flow_loss(tensordict)
        losses = {"loss_flow": loss_flow, "loss_qvalue": loss_qvalue}
        return self._collect(tensordict, losses, {**flow_info, **info})
