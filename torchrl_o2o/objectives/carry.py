# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Carry networks and optimizers of an offline loss over to an online one.

The offline side may be a loss module or its ``state_dict()`` read from a checkpoint
(:func:`torchrl_o2o.checkpoint.load_objects`), so that several online runs can start from one pre-training. If something
does not fit, an error gives the reason. Nothing is skipped silently.
"""

from __future__ import annotations

import copy
import inspect
from collections import OrderedDict, defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from tensordict.nn import ProbabilisticTensorDictSequential, TensorDictModule
from torch import Tensor
from torchrl.objectives.common import LossModule

from torchrl_o2o.arguments import checked_arguments
from torchrl_o2o.errors import O2OSpecError
from torchrl_o2o.modules.aligned import check_alignable, residual_parameters
from torchrl_o2o.modules.temperature import Temperature
from torchrl_o2o.objectives.aca import ACALoss

__all__ = ["ParameterSource", "align", "carry_optimizer", "carry_over", "stack_agents"]

#: Parts of a loss that are not networks.
_PARTS = ("temperature", "penalty", "multiplier")

ParameterSource = LossModule | Mapping[str, Tensor]


@checked_arguments
def carry_over(
    source: ParameterSource, destination: LossModule, names: Sequence[str] = ("actor_network", "qvalue_network")
) -> list[str]:
    """Copy networks of an offline loss into an online one; everything else of the latter stays as it was initialized.

    Target networks are copied with their networks where the source has them. Otherwise they start equal to the network.
    ``"temperature"``, CQL's ``"penalty"`` (its Lagrange multiplier) and the ``"multiplier"`` of BRAC and BEAR can be
    carried over, too.

    Args:
        source: the offline loss, or its state.
        destination: the online loss, changed in place.
        names: attributes to copy. Defaults to ``("actor_network", "qvalue_network")``; use ``("actor_network",)`` for a
            method with a new critic. ``"offline_actor_network=actor_network"`` copies the source's actor to another
            name (PEX).

    Returns:
        The parts of ``destination`` that were *not* carried over and keep their initial parameters, for the log.

    Raises:
        O2OSpecError: if a network is missing on either side, or the parameters of the two differ (a deterministic and a
            stochastic actor, different widths, different numbers of critics).

    Examples:
        >>> import torch
        >>> from torchrl_o2o.modules import make_actor, make_qvalue_ensemble
        >>> from torchrl_o2o.objectives import CQLLoss, EnsembleSACLoss
        >>> def networks():
        ...     return make_actor(3, 2, hidden_sizes=(8,)), make_qvalue_ensemble(3, 2, num_qvalue_nets=2)
        >>> offline, online = CQLLoss(*networks()), EnsembleSACLoss(*networks())
        >>> carry_over(offline, online)
        ['temperature']
        >>> torch.equal(offline.qvalue_network_params["module", "head", "weight"],
        ...             online.qvalue_network_params["module", "head", "weight"])
        True
    """
    state = _state(source)
    available = _networks(destination)
    carried = {name.partition("=")[0]: name.rpartition("=")[2] for name in names}
    for name, origin in carried.items():
        if name not in available:
            raise O2OSpecError(
                f"got {name!r} to carry over, expected one of {available}, which the online loss has; correct the name "
                "or leave it out"
            )
        group, source_group = (each if each in _PARTS else f"{each}_params" for each in (name, origin))
        _copy(state, source_group, destination, group)
        target = f"target_{group}"
        if hasattr(destination, target) and getattr(destination, target) is not None and _below(destination, target):
            source_target = f"target_{source_group}"
            _copy(state, source_target if _select(state, source_target) else source_group, destination, target)
    return [name for name in available if name not in carried]


def carry_optimizer(
    state: Mapping[str, Any] | torch.optim.Optimizer, destination: torch.optim.Optimizer
) -> torch.optim.Optimizer:
    """Copy an offline optimizer's moments and step counts to an online one, which keeps its learning rate and settings.

    The references differ: Cal-QL, IQL and ACA's code keep the moments, while ACA's paper recommends new ones.

    Args:
        state: the offline optimizer or its ``state_dict()``.
        destination: the online optimizer of the same parameters, changed in place.

    Returns:
        ``destination``.

    Raises:
        O2OSpecError: if the two do not steer the same parameters, are of different kinds, as Adam and SGD, or the
            online one needs moments that the offline one does not keep, as with ``amsgrad``.

    Examples:
        >>> import torch
        >>> first, second = torch.nn.Linear(2, 1), torch.nn.Linear(2, 1)
        >>> offline = torch.optim.Adam(first.parameters(), lr=1e-3)
        >>> first(torch.ones(1, 2)).sum().backward()
        >>> offline.step()
        >>> online = carry_optimizer(offline, torch.optim.Adam(second.parameters(), lr=1e-4))
        >>> online.param_groups[0]["lr"], int(online.state[second.weight]["step"])
        (0.0001, 1)
    """
    saved = dict(state) if isinstance(state, Mapping) else state.state_dict()
    theirs, own = (_kind(each["param_groups"]) for each in (saved, destination.state_dict()))
    if theirs != own:
        raise O2OSpecError(
            f"the offline optimizer has the options {theirs}, expected {own} as {type(destination).__name__} has: its "
            f"state means nothing to another kind; start with a new online optimizer, or take the same kind"
        )
    params = [value for group in destination.param_groups for value in group["params"]]
    moments = [saved["state"].get(index) for group in saved["param_groups"] for index in group["params"]]
    if len(params) != len(moments) or any(
        tensor.shape != param.shape
        for param, entries in zip(params, moments, strict=True)
        for name, tensor in (entries or {}).items()
        if isinstance(tensor, Tensor) and name != "step"
    ):
        raise O2OSpecError(
            f"got an offline optimizer of {len(moments)} parameters and an online one of {len(params)}, expected "
            "parameters of the same number and shapes; start with a new online optimizer, or build both for the same "
            "networks"
        )
    sizes = [[len(group["params"]) for group in each] for each in (saved["param_groups"], destination.param_groups)]
    if sizes[0] != sizes[1]:
        raise O2OSpecError(
            f"the offline optimizer has groups of {sizes[0]} parameters, expected {sizes[1]}, as the online one has: "
            f"they are matched by their order; build both with the same groups, or start with a new online optimizer"
        )
    groups = [
        {**{key: value for key, value in new.items() if key != "params"}, "params": old["params"]}
        for old, new in zip(saved["param_groups"], destination.param_groups, strict=True)
    ]
    _try_step(destination, groups, saved["state"])
    # Copied, because torch keeps the given tensors and both optimizers would update the same moments.
    destination.load_state_dict({"state": copy.deepcopy(saved["state"]), "param_groups": groups})
    return destination


def _kind(groups: Sequence[Mapping[str, Any]]) -> list[str]:
    """The options that tell optimizers with different states apart."""
    return [name for name in ("betas", "momentum", "alpha", "rho", "etas", "lr_decay", "t0") if name in groups[0]]


def _try_step(optim: torch.optim.Optimizer, groups: Sequence[Mapping[str, Any]], state: Mapping[int, Any]) -> None:
    """Raise if an optimizer cannot make a step with a state: a twin makes it, with one parameter of each group."""
    closure = inspect.signature(optim.step).parameters.get("closure")
    if closure is not None and closure.default is closure.empty:
        return  # its step evaluates the loss
    moments: dict[int, Any] = {}
    probes: list[dict[str, Any]] = []
    for group, own in zip(groups, optim.param_groups, strict=True):
        index = next((index for index in group["params"] if state.get(index)), None)
        if index is not None:
            moments[len(probes)] = copy.deepcopy(state[index])
            param = torch.zeros_like(own["params"][group["params"].index(index)], requires_grad=True)
            param.grad = torch.zeros_like(param)
            probes.append({**own, "params": [param]})
    twin = object.__new__(type(optim))
    hooks = {name: OrderedDict() for name in vars(optim) if name.endswith("_hooks")}
    vars(twin).update({**vars(optim), **hooks, "state": defaultdict(dict), "param_groups": probes})
    try:
        twin.load_state_dict(
            {"state": moments, "param_groups": [{**one, "params": [i]} for i, one in enumerate(probes)]}
        )
        twin.step()
    except KeyError as error:
        raise O2OSpecError(
            f"the offline optimizer's state has no {error}, expected what a {type(optim).__name__} with the online "
            "settings keeps; start with a new online optimizer, or build both of one kind and with the same settings"
        ) from error


@checked_arguments
def stack_agents(sources: Sequence[ParameterSource]) -> dict[str, Tensor]:
    """K agents' actors and critics as the state of one pessimistic ensemble, for :func:`carry_over`.

    The members of the averaged actor are the agents' actors. The critics are in the order of the agents. Targets are
    omitted, so they start equal to the critics, as in the authors' code.

    Source: Lee et al. 2021 (Off2On).

    Args:
        sources: the agents' offline losses, or their states, with stochastic actors from
            :func:`~torchrl_o2o.modules.make_actor`.

    Returns:
        Actor and critics under the names of :class:`~torchrl_o2o.objectives.PessimisticEnsembleLoss` with
        :func:`~torchrl_o2o.modules.average_actors`.

    Raises:
        O2OSpecError: if there is no agent, or the agents have different networks.

    Examples:
        >>> from torchrl_o2o.modules import average_actors, make_actor, make_qvalue_ensemble
        >>> from torchrl_o2o.objectives import CQLLoss, PessimisticEnsembleLoss
        >>> def networks():
        ...     return make_actor(3, 2, hidden_sizes=(8,)), make_qvalue_ensemble(3, 2, num_qvalue_nets=2)
        >>> agents = [CQLLoss(*networks()) for _ in range(3)]
        >>> fresh = [networks() for _ in agents]
        >>> actor = average_actors([actor for actor, _ in fresh])
        >>> online = PessimisticEnsembleLoss(actor, [critic for _, pair in fresh for critic in pair])
        >>> carry_over(stack_agents(agents), online)
        ['temperature']
    """
    states = [_state(source) for source in sources]
    if not states:
        raise O2OSpecError("got no agent to stack, expected at least one; pass a list of losses or of their states")
    groups = {"actor_network_params.module.0.module.": torch.stack, "qvalue_network_params.": torch.cat}
    stacked: dict[str, Tensor] = {}
    for (group, join), member in zip(groups.items(), ("members.", ""), strict=True):
        shapes = [{key: value.shape for key, value in state.items() if key.startswith(group)} for state in states]
        for position, shape in enumerate(shapes):
            if shape != shapes[0]:
                different = sorted({key for key, _ in set(shape.items()) ^ set(shapes[0].items())})
                raise O2OSpecError(
                    f"agent {position} and agent 0 have different networks, expected the same for all agents; they "
                    f"differ in {different[:4]}"
                )
        for key in shapes[0]:
            stacked[group + member + key.removeprefix(group)] = join([state[key] for state in states])
    return stacked


@checked_arguments
def align(
    source: ParameterSource,
    actor: ProbabilisticTensorDictSequential,
    residuals: list[TensorDictModule],
    *,
    temperature: Temperature | None = None,
    beta: float = 7.0,
    interpolation: float = 1.0,
) -> ACALoss:
    r"""Actor-critic alignment: start the online critic at :math:`\log\pi_0(a|s)+Z(s)`.

    The offline critic is not used. The offline policy is copied into ``actor`` and, frozen, into the critic. The
    residuals and their targets become the baselines with zero action columns. The temperature is new. It works with any
    stochastic Gaussian policy. Train the baselines together with the policy
    (:class:`~torchrl_o2o.objectives.SACMLLoss`) or afterwards on the frozen policy of another learner
    (:class:`~torchrl_o2o.objectives.BaselineLoss`).

    Source: Yu & Zhang 2023 (ACA).

    Args:
        source: ``SACMLLoss``, ``BaselineLoss`` or the state of one.
        actor: the online policy, built like the offline one; changed in place.
        residuals: critics R_i(s, a), as many as there are baselines, with the same hidden layers and without LayerNorm.

    Keyword Args:
        temperature: see :class:`~torchrl_o2o.objectives.ACALoss`; alpha starts at 1 by default.
        beta: see :class:`~torchrl_o2o.objectives.ACALoss`.
        interpolation: initial k. Defaults to 1.

    Returns:
        The online loss.

    Raises:
        O2OSpecError: if the policy is deterministic, there are no baselines, or the networks differ.

    Examples:
        >>> from torchrl_o2o.modules import make_actor, make_baselines, make_qvalue_ensemble
        >>> from torchrl_o2o.objectives import BaselineLoss
        >>> policy = make_actor(3, 2, hidden_sizes=(8,))
        >>> offline = BaselineLoss(policy, make_baselines(3, hidden_sizes=(8,)))
        >>> residuals = make_qvalue_ensemble(3, 2, num_qvalue_nets=2, hidden_sizes=(8,), layer_norm=False)
        >>> align(offline, make_actor(3, 2, hidden_sizes=(8,)), residuals).interpolation
        tensor(1.)
    """
    for policy in (getattr(source, "actor_network", None), actor):
        if policy is not None:
            check_alignable(policy)
    state = _state(source)
    baseline = _select(state, "baseline_network_params")
    if not baseline:
        raise O2OSpecError(
            f"got an offline loss with {sorted({key.split('.')[0] for key in state})}, expected a baseline Z(s) among "
            "them; train one for its policy with BaselineLoss(policy, make_baselines(...)), and pass that loss"
        )
    policy_state = _select(state, "actor_network_params")
    _check_same("actor_network", policy_state, dict(actor.state_dict()))
    actor.load_state_dict(policy_state)
    loss = ACALoss(actor, residuals, actor, temperature=temperature, beta=beta, interpolation=interpolation)
    params = _select(loss.state_dict(), "qvalue_network_params")
    for key, value in residual_parameters(baseline, params).items():
        for group in ("qvalue_network_params", "target_qvalue_network_params"):
            _below(loss, group)[key].data.copy_(value)
    return loss


def _state(source: ParameterSource) -> dict[str, Tensor]:
    state = source if isinstance(source, Mapping) else source.state_dict()
    return {key: value for key, value in state.items() if isinstance(value, Tensor)}


def _select(state: Mapping[str, Tensor], group: str) -> dict[str, Tensor]:
    return {key.removeprefix(group + "."): value for key, value in state.items() if key.startswith(group + ".")}


def _below(loss: LossModule, group: str) -> dict[str, Tensor]:
    """The loss's own tensors of one group, under dotted names."""
    return _select({**dict(loss.named_parameters()), **dict(loss.named_buffers())}, group)


def _networks(loss: LossModule) -> list[str]:
    groups = dict.fromkeys(name.split(".")[0] for name in loss.state_dict())
    names = [name.removesuffix("_params") for name in groups if name.endswith("_params")]
    names = [name for name in names if not name.startswith("target_")]
    return [*names, *(name for name in _PARTS if name in groups)]


def _copy(state: Mapping[str, Tensor], source: str, loss: LossModule, group: str) -> None:
    given, live = _select(state, source), _below(loss, group)
    if not given:
        groups = sorted({key.split(".")[0].removesuffix("_params") for key in state} - {"_value_estimator"})
        raise O2OSpecError(
            f"got {source.removesuffix('_params')!r} to carry over, expected one of {groups}, which the offline loss "
            "has; leave the name out to start with a new network"
        )
    _check_same(source.removesuffix("_params"), given, live)
    for key, value in given.items():
        live[key].data.copy_(value)


def _check_same(name: str, given: Mapping[str, Tensor], live: Mapping[str, Tensor]) -> None:
    if {key: value.shape for key, value in given.items()} == {key: value.shape for key, value in live.items()}:
        return
    wrong = [
        key for key in [*given, *live] if key not in given or key not in live or given[key].shape != live[key].shape
    ]
    shapes = [tuple(side[wrong[0]].shape) if wrong[0] in side else "nothing" for side in (given, live)]
    raise O2OSpecError(
        f"got an offline {name} with {shapes[0]} at {wrong[0]!r}, expected {shapes[1]} as in the online one "
        f"({len(set(wrong))} such entries); build both with the same function and sizes (policy family, hidden_sizes, "
        "number of critics, LayerNorm)"
    )
