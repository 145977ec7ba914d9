# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Policies that choose with critics: the best of N actions of a flow or a policy, or the best of several policies."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence

import torch
from tensordict.nn import ProbabilisticTensorDictModule, ProbabilisticTensorDictSequential, TensorDictModule
from torch import Tensor, nn
from torch.func import functional_call, vmap
from torchrl.data import Bounded

from torchrl_o2o.errors import O2OSpecError, check_count, check_option
from torchrl_o2o.functional.conservative import best_of
from torchrl_o2o.modules.boxes import box_edges, make_squash
from torchrl_o2o.modules.distributions import TanhNormal
from torchrl_o2o.modules.flow import ClipToBox, euler_flow

__all__ = ["BestOfN", "BestOfPolicies", "BestOfSamples", "MeanOnly", "mode_net", "moments_and_place"]


class _Judged(nn.Module):
    """A policy that chooses among actions by an ensemble of critics."""

    def __init__(self, critic: nn.Module, critic_params: Mapping[str, Tensor], aggregation: str) -> None:
        super().__init__()
        check_option("aggregation", aggregation, ("mean", "min", "first"))
        self.aggregation = aggregation
        self.critics = nn.ParameterDict({_plain(name): value for name, value in critic_params.items()})
        self._names = tuple(critic_params)
        # In __dict__, because the template's parameters are not part of the policy; without dropout, as in evaluation.
        self.__dict__["_critic"] = copy.deepcopy(critic).eval()

    def best(self, observation: Tensor, action: Tensor) -> Tensor:
        """The actions with the largest values, [*B, A], of actions [M, *B, A] at observations [M, *B, o]."""

        def judge(member: dict[str, Tensor]) -> Tensor:
            return functional_call(self.critic, member, (observation, action))

        if torch.compiler.is_exporting():  # exporting LayerNorm under vmap would fix the batch size
            members = zip(*(value.unbind() for value in self.judges.values()))
            qvalue = torch.stack([judge(dict(zip(self._names, member))) for member in members]).squeeze(-1)
        else:
            qvalue = vmap(judge)(self.judges).squeeze(-1)
        qvalue = qvalue.amin(0) if self.aggregation == "min" else qvalue.mean(0)
        return best_of(qvalue, action)[0]

    @property
    def stacked(self) -> dict[str, Tensor]:
        """The parameters of the critics by the template's names, stacked."""
        return {name: self.critics[_plain(name)] for name in self._names}

    @property
    def judges(self) -> dict[str, Tensor]:
        """The parameters of the critics that are used, stacked."""
        if self.aggregation != "first":
            return self.stacked
        return {name: value[:1] for name, value in self.stacked.items()}

    @property
    def critic(self) -> nn.Module:
        """One critic's net, the template of all."""
        return self.__dict__["_critic"]


class BestOfN(_Judged):
    r"""The best of N actions of a flow according to the critics, :math:`\arg\max_n \mathrm{agg}_j Q_j(s,a_n)`.

    Source: Li, Zhou & Levine 2025 (QC), arXiv:2507.07969, Eq. 8, and the authors' ``best-of-n``.

    Args:
        flow: the net of :func:`make_flow_network`.
        critic: one critic's net, the template of all.
        critic_params: their stacked parameters by dotted names; these very tensors are used.
        low: lower edge of the actions, shape [A].
        high: upper edge, shape [A].

    Keyword Args:
        num_samples: N.
        flow_steps: Euler steps of the flow.
        aggregation: ``"mean"`` or ``"min"`` over critics, or ``"first"``.

    Raises:
        O2OSpecError: if a number is below 1 or the aggregation unknown.

    Examples:
        >>> from torchrl_o2o.modules import make_flow_network, make_qvalue_ensemble
        >>> critics = make_qvalue_ensemble(3, 1, num_qvalue_nets=2, hidden_sizes=(8,))
        >>> params = {name: torch.stack([each.module.get_parameter(name) for each in critics])
        ...           for name, _ in critics[0].module.named_parameters()}
        >>> flow, edge = make_flow_network(3, 1, hidden_sizes=(8,)).module, torch.ones(1)
        >>> settings = {"num_samples": 4, "flow_steps": 2, "aggregation": "mean"}
        >>> best = BestOfN(flow, critics[0].module, params, -edge, edge, **settings)
        >>> best(torch.zeros(5, 3)).shape
        torch.Size([5, 1])
    """

    low: Tensor
    high: Tensor

    def __init__(
        self,
        flow: nn.Module,
        critic: nn.Module,
        critic_params: Mapping[str, Tensor],
        low: Tensor,
        high: Tensor,
        *,
        num_samples: int,
        flow_steps: int,
        aggregation: str,
    ) -> None:
        super().__init__(critic, critic_params, aggregation)
        self.num_samples = check_count("num_samples", num_samples, least=1)
        self.flow_steps = check_count("flow_steps", flow_steps, least=1)
        self.flow = flow
        self.register_buffer("low", low)
        self.register_buffer("high", high)

    def forward(self, observation: Tensor) -> Tensor:
        """Map observations [*B, o] to actions [*B, A], with noise of torch's global generator."""
        repeated = observation.expand(self.num_samples, *observation.shape)
        noise = torch.randn(*repeated.shape[:-1], len(self.low), dtype=repeated.dtype, device=repeated.device)
        action = euler_flow(lambda point, time: self.flow(repeated, point, time), noise, self.flow_steps)
        action = torch.minimum(torch.maximum(action, self.low), self.high)
        return self.best(repeated, action)


class BestOfSamples(_Judged):
    r"""The best of N draws of a Gaussian policy according to critics, :math:`\arg\max_n \mathrm{agg}_j Q_j(s,a_n)`.

    Source: Kumar et al. 2019 (BEAR), arXiv:1906.00949, section 5, with the first critic alone.

    Args:
        policy: net from observations to mean and standard deviation.
        place: net from draws to actions in the box.
        critic: one critic's net, the template of all.
        critic_params: their stacked parameters by dotted names; these very tensors are used.

    Keyword Args:
        num_samples: N.
        action_dim: A.
        aggregation: ``"mean"`` or ``"min"`` over critics, or ``"first"``.

    Raises:
        O2OSpecError: if a number is below 1 or the aggregation unknown.

    Examples:
        >>> from torchrl_o2o.modules import make_actor, make_qvalue_ensemble
        >>> (critic,) = make_qvalue_ensemble(3, 1, num_qvalue_nets=1, hidden_sizes=(8,))
        >>> params = {name: value[None] for name, value in critic.module.named_parameters()}
        >>> policy, settings = make_actor(3, 1)[0].module, {"num_samples": 4, "action_dim": 1, "aggregation": "mean"}
        >>> BestOfSamples(policy, nn.Tanh(), critic.module, params, **settings)(torch.zeros(5, 3)).shape
        torch.Size([5, 1])
    """

    def __init__(
        self,
        policy: nn.Module,
        place: nn.Module,
        critic: nn.Module,
        critic_params: Mapping[str, Tensor],
        *,
        num_samples: int,
        action_dim: int,
        aggregation: str,
    ) -> None:
        super().__init__(critic, critic_params, aggregation)
        self.num_samples = check_count("num_samples", num_samples, least=1)
        self.action_dim = check_count("action_dim", action_dim, least=1)
        self.policy, self.place = policy, place

    def forward(self, observation: Tensor) -> Tensor:
        """Map observations [*B, o] to actions [*B, A], with noise of torch's global generator."""
        loc, scale = self.policy(observation)
        noise = torch.randn(self.num_samples, *loc.shape, dtype=loc.dtype, device=loc.device)
        action = self.place(loc + scale * noise)
        return self.best(observation.expand(self.num_samples, *observation.shape), action)


class MeanOnly(nn.Module):
    """A module that returns the first of a pair of mean and standard deviation.

    Examples:
        >>> MeanOnly()((torch.zeros(2), torch.ones(2)))
        tensor([0., 0.])
    """

    def forward(self, moments: tuple[Tensor, Tensor]) -> Tensor:
        """Return the mean of a pair, each [*B, A]."""
        return moments[0]


class BestOfPolicies(_Judged):
    r"""The best of several policies' actions according to critics, :math:`\arg\max_i \mathrm{agg}_j Q_j(s,a_i)`.

    Source: Zhang et al. 2023 (PEX), arXiv:2302.00935; the evaluation of their code with :math:`\epsilon=0`.

    Args:
        policies: nets, each from observations to actions.
        critic: one critic's net, the template of all.
        critic_params: their stacked parameters by dotted names; these very tensors are used.

    Keyword Args:
        aggregation: ``"mean"`` or ``"min"`` over critics, or ``"first"``.

    Raises:
        O2OSpecError: if the aggregation is unknown.

    Examples:
        >>> from torchrl_o2o.modules import make_qvalue_ensemble
        >>> critics = make_qvalue_ensemble(3, 1, num_qvalue_nets=2, hidden_sizes=(8,))
        >>> params = {name: torch.stack([each.module.get_parameter(name) for each in critics])
        ...           for name, _ in critics[0].module.named_parameters()}
        >>> policies = [nn.Linear(3, 1), nn.Linear(3, 1)]
        >>> BestOfPolicies(policies, critics[0].module, params, aggregation="min")(torch.zeros(5, 3)).shape
        torch.Size([5, 1])
    """

    def __init__(
        self, policies: Sequence[nn.Module], critic: nn.Module, critic_params: Mapping[str, Tensor], *, aggregation: str
    ) -> None:
        super().__init__(critic, critic_params, aggregation)
        self.policies = nn.ModuleList(policies)

    def forward(self, observation: Tensor) -> Tensor:
        """Map observations [*B, o] to actions [*B, A]."""
        action = torch.stack([policy(observation) for policy in self.policies])
        return self.best(observation.expand(len(action), *observation.shape), action)


def mode_net(actor: ProbabilisticTensorDictSequential, action: Bounded) -> nn.Sequential:
    """A Gaussian actor's deterministic action as one network of its own layers.

    Args:
        actor: of :func:`~torchrl_o2o.modules.make_actor` or :func:`~torchrl_o2o.modules.make_gaussian_actor`.
        action: bounded spec of its actions, shape [A].

    Returns:
        A net from observations [*B, o] to actions [*B, A].

    Raises:
        O2OSpecError: if it is another actor.

    Examples:
        >>> from torchrl_o2o.modules import make_actor
        >>> actor = make_actor(3, 1, hidden_sizes=(8,))
        >>> mode_net(actor, actor.spec["action"])(torch.zeros(5, 3)).shape
        torch.Size([5, 1])
    """
    net, place = moments_and_place(actor, action)
    return nn.Sequential(net, MeanOnly(), place)


def moments_and_place(actor: ProbabilisticTensorDictSequential, action: Bounded) -> tuple[nn.Module, nn.Module]:
    """A Gaussian actor's own layers, and the map from draws of its normal distribution to the box.

    Args:
        actor: of :func:`~torchrl_o2o.modules.make_actor` or :func:`~torchrl_o2o.modules.make_gaussian_actor`.
        action: bounded spec of its actions, shape [A].

    Returns:
        A net from observations [*B, o] to mean and standard deviation, and a net that maps draws to actions [*B, A].

    Raises:
        O2OSpecError: if it is another actor.
    """
    body, head = actor[0], actor[-1]
    net = body.module if isinstance(body, TensorDictModule) else None
    if len(actor) != 2 or not isinstance(net, nn.Module) or not isinstance(head, ProbabilisticTensorDictModule):
        raise O2OSpecError(
            f"got {type(actor).__name__} of {len(actor)} parts, expected a network and a distribution; build the actor "
            f"with make_actor(...) or make_gaussian_actor(...)"
        )
    squashed = head.distribution_class is TanhNormal
    return net, make_squash(action) if squashed else ClipToBox(*box_edges(action))


def _plain(name: str) -> str:
    """A parameter's name without dots, because ``ParameterDict`` does not accept them."""
    return name.replace(".", "/")
