# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""The base class of all losses: parameters, value estimator and reduction. It contains no equations."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Mapping
from typing import Any, Literal, Self, cast

import torch
from tensordict import TensorDict, TensorDictBase, TensorDictParams
from tensordict.nn import TensorDictModule, TensorDictModuleBase
from tensordict.nn import dispatch as guessing_dispatch
from tensordict.utils import NestedKey
from torch import Tensor, nn
from torchrl.objectives.common import LossModule
from torchrl.objectives.utils import ValueEstimators, dispatch_value_estimator
from torchrl.objectives.value import TD0Estimator, ValueEstimatorBase

from torchrl_o2o.arguments import ChecksArguments
from torchrl_o2o.errors import O2OSpecError, as_float, check_option
from torchrl_o2o.functional.noise import GeneratorNoise, NoiseSource
from torchrl_o2o.modules.boxes import actor_box, inner_edges
from torchrl_o2o.modules.input_checks import check_parameters
from torchrl_o2o.objectives.entries import ReadsTransitions
from torchrl_o2o.objectives.networks import Inputs, Parameters, Randomness, call_ensemble, flat_parameters

__all__ = ["Reduction", "TransitionLoss", "dispatch"]

Reduction = Literal["mean", "sum", "none"] | None

#: Lets ``forward`` take tensors by name. TensorDict's default guesses their batch size. It mistakes the last dimension
#: for a batch dimension if all entries have the same width, for example observations and actions of one number each.
dispatch = guessing_dispatch(auto_batch_size=False)


class TransitionLoss(ChecksArguments, ReadsTransitions):
    r"""Abstract base of losses on batches of transitions.

    Importance weights under ``tensor_keys.priority_weight`` multiply the rows of losses that fit something to the data:
    critics, state values, baselines, VAEs, and the actors of behavior cloning and AWR. The losses of other actors, of
    temperatures and penalty weights, and of flows and density ratios ignore them, as in the papers on such samplers.
    Each class documents which of its losses are weighted. They are *not* renormalized
    (:math:`\frac1B\sum_b w_b\ell_b`): the sampler decides their scale. TorchRL's own losses divide by their sum.

    Where it is faster, all members of an ensemble are evaluated at once (:func:`torch.func.vmap`): on devices other
    than a CPU, and when compiled. ``loss.deactivate_vmap = True`` always evaluates one member after the other, for
    networks that vmap does not support. Members that draw random numbers draw ``"different"`` ones unless
    ``set_vmap_randomness`` changes it. A compiled update needs ``update.recompile()`` after either change.

    Subclasses set ``_networks_read``, by which :class:`~torchrl_o2o.objectives.entries.ReadsTransitions` reads a batch,
    and end their ``__init__`` with :meth:`make_value_estimator`.

    Args:
        reduction: ``"mean"``, ``"sum"`` or ``"none"`` over the batch; ``None`` is ``"mean"``, as in TorchRL.

    Raises:
        O2OSpecError: if the reduction is unknown.
    """

    # TensorDictModuleBase replaces the list of a class by a property.
    out_keys: list[NestedKey]
    default_value_estimator = ValueEstimators.TD0
    SUPPORTED_VALUE_ESTIMATORS = (ValueEstimators.TD0,)

    #: Whether members of ensembles are always evaluated one after the other.
    deactivate_vmap: bool = False
    _vmap_randomness: Randomness | None

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Give a class that inherits its outputs its own list, which its first object turns into a property.

        TensorDict does this only for the class of the object itself. A parent's list would stay a list until the
        parent's first object is built, and would then change for the children.
        """
        super().__init_subclass__(**kwargs)
        if "out_keys" not in vars(cls) and isinstance(cls.out_keys, list):
            cls.out_keys = list(cls.out_keys)

    def __init__(self, reduction: Reduction = "mean") -> None:
        super().__init__()
        self._written: list[NestedKey] = list(self.out_keys)
        self.reduction = reduction
        self.noise: NoiseSource = GeneratorNoise()

    @property
    def reduction(self) -> Literal["mean", "sum", "none"]:
        """``"mean"``, ``"sum"`` or ``"none"`` over the batch; may be changed at any time.

        With ``"none"``, :attr:`out_keys` are only the losses, because scalars have no rows.
        """
        return self._reduction

    @reduction.setter
    def reduction(self, value: Reduction) -> None:
        value = "mean" if value is None else value
        check_option("reduction", value, ("mean", "sum", "none"))
        self._reduction: Literal["mean", "sum", "none"] = value
        self._name_outputs()

    def _name_outputs(self, *more: NestedKey) -> None:
        """Set ``out_keys`` to what ``forward`` returns under this reduction; ``more`` adds outputs of this loss."""
        self._written += more
        if self.out_keys == self.out_keys_source:  # unless the user has selected some of them
            rows = self.reduction == "none"
            written = [key for key in self._written if not rows or str(key).startswith("loss_")]
            self.out_keys = written  # pyright: ignore[reportIncompatibleMethodOverride]  # a property, see above

    def convert_to_functional(  # pyright: ignore[reportIncompatibleMethodOverride]  # TorchRL's refuses more arguments
        self,
        module: TensorDictModule | list[TensorDictModule],
        module_name: str,
        expand_dim: int | None = None,
        create_target_params: bool = False,
        compare_against: list[nn.Parameter] | None = None,
    ) -> None:
        """Like TorchRL's, but raises if the loss could not train the given parameters of a network.

        Args:
            module: a network, or a list of members to be stacked.
            module_name: what the loss calls it.
            expand_dim: number of members.
            create_target_params: whether it has targets. Defaults to ``False``.
            compare_against: see TorchRL's. Defaults to ``None``.

        Raises:
            O2OSpecError: if a layer's size is not known yet, or members that are copied into a stack share parameters
                with a network that is not copied.
        """
        own = {id(value) for value in self.parameters()}
        for member in module if isinstance(module, list) else [module]:
            check_parameters(member, module_name, own if isinstance(module, list) else set())
        network = cast(TensorDictModule, module)  # TorchRL's annotation omits lists
        super().convert_to_functional(network, module_name, expand_dim, create_target_params, compare_against)
        if isinstance(module, list) and len(module) == 1:
            setattr(self, f"{module_name}_params", _stack_of_one(module[0]))

    @torch.no_grad()
    def reset_parameters_recursive(self) -> None:
        """Draw new parameters for all networks by their layers' own ``reset_parameters``; frozen ones stay.

        Each member of an ensemble is drawn as the single network that it is. TorchRL draws the stacked tensors of all
        members, whose dimensions have another meaning, and other numbers for targets. Targets start equal to their
        networks here. The recipe of :func:`~torchrl_o2o.modules.initialize_` is not repeated.
        """
        for name, network in list(vars(self).items()):
            params = self._modules.get(f"{name}_params")
            if isinstance(network, TensorDictModuleBase) and isinstance(params, TensorDictParams):
                self._reset_network(name, network, params)

    def _reset_network(self, name: str, network: TensorDictModuleBase, params: TensorDictParams) -> None:
        values, leaves = cast(TensorDictBase, params.data), flat_parameters(params)
        frozen = {key: value.detach().clone() for key, value in leaves.items() if not value.requires_grad}
        for member in values.unbind(0) if values.ndim else [values]:
            with member.to_module(network, preserve_module_state=False):
                network.reset_parameters_recursive()
        for key, value in frozen.items():
            leaves[key].data.copy_(value)
        target = self._modules.get(f"target_{name}_params")
        if isinstance(target, TensorDictParams):
            target.data.copy_(values)

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """Like every module's, but names and shapes are compared before anything is loaded.

        Args:
            state_dict: the result of ``state_dict()`` of a loss of this class.
            strict: whether the names must be the same. Defaults to ``True``.
            assign: whether to use the given tensors themselves instead of copying their values. Defaults to ``False``.

        Raises:
            O2OSpecError: if a tensor has another shape, or, with ``strict``, a tensor is missing or unknown.
        """
        if not isinstance(state_dict, Mapping):
            raise O2OSpecError(f"got a {type(state_dict).__name__}, expected the result of loss.state_dict()")
        current = self._current_state(state_dict, "")
        missing, unknown = self._other_names(current, "")
        if strict and (missing or unknown):
            raise O2OSpecError(
                f"got a state that lacks {len(missing)} names, such as {missing[:3]}, and has {len(unknown)} unknown "
                f"ones, such as {unknown[:3]}, expected the names of this {type(self).__name__}; build the loss like "
                "the saved one, or load with strict=False, which keeps the current values of missing names"
            )
        for name, own in self.state_dict().items():
            given: Any = current.get(name)
            if isinstance(given, Tensor) and isinstance(own, Tensor) and given.shape != own.shape:
                raise O2OSpecError(
                    f"got {name!r} of shape {list(given.shape)}, expected {list(own.shape)} as in this "
                    f"{type(self).__name__}; build its networks with the dimensions, hidden_sizes and number of "
                    "critics of the saved loss"
                )
        return super().load_state_dict(state_dict, strict, assign)

    def _current_state(self, state_dict: Mapping[str, Any], prefix: str) -> Mapping[str, Any]:
        """A state of an earlier version of this class, converted to the current names, which begin with ``prefix``."""
        return state_dict

    def _other_names(self, state_dict: Mapping[str, Any], prefix: str) -> tuple[list[str], list[str]]:
        """Names that are missing in a state, and unknown names; all begin with ``prefix``."""
        own = {f"{prefix}{name}" for name in self.state_dict()}
        given = {name for name in state_dict if name.startswith(prefix)}
        return sorted(own - given), sorted(given - own)

    def _load_from_state_dict(
        self,
        state_dict: Any,
        prefix: str,
        local_metadata: Any,
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        """Check the names if the loss is part of another module, too, because TensorDictParams does not report them."""
        state_dict = self._current_state(state_dict, prefix)
        missing, unknown = self._other_names(state_dict, prefix)
        held = tuple(f"{prefix}{name}." for name, child in self.named_children() if isinstance(child, TensorDictParams))
        missing_keys += [name for name in missing if name.startswith(held)]
        unexpected_keys += [name for name in unknown if name.startswith(held)]
        arguments = (local_metadata, strict, missing_keys, unexpected_keys, error_msgs)
        super()._load_from_state_dict(state_dict, prefix, *arguments)

    def _apply(self, fn: Any) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Like every module's, but the discount stays float32, because 0.99 becomes 0.988 in bfloat16."""
        estimator = cast(Any, self._value_estimator)
        before: Tensor | None = getattr(estimator, "gamma", None)
        out = super()._apply(fn)
        if before is not None and estimator.gamma.itemsize < 4:
            estimator.gamma = before.to(estimator.gamma.device)
        return out

    def make_value_estimator(
        self,
        value_type: ValueEstimators | ValueEstimatorBase | type[ValueEstimatorBase] | None = None,
        **hyperparams: Any,
    ) -> Self:
        """Choose how the target is computed from the reward and the next value.

        The constructor calls this, because the buffer ``gamma`` is part of the state that strict loading compares.

        Args:
            value_type: ``ValueEstimators.TD0`` (default), an estimator such as SAMG's, or a class of estimators.
            hyperparams: for TD0, ``gamma`` (defaults to 0.99); for a class, the arguments of its constructor.
                ``value_network`` is ``None`` unless given, because losses pass the next value to the estimator.

        Returns:
            This loss.

        Raises:
            O2OSpecError: if hyper-parameters are given together with an estimator object, a class does not take them,
                or ``gamma`` is outside [0, 1].
        """
        if "gamma" in hyperparams:
            if not 0.0 <= as_float(hyperparams["gamma"]) <= 1.0:
                raise O2OSpecError(f"got gamma={hyperparams['gamma']}, expected a discount in [0, 1]")
            hyperparams["gamma"] = float(hyperparams["gamma"])  # a buffer of integers would load 0.99 as 0
        if value_type is None:
            value_type = self.default_value_estimator
        if isinstance(value_type, type) and issubclass(value_type, ValueEstimatorBase):
            value_type, hyperparams = self._built(value_type, hyperparams), {}
        if isinstance(value_type, ValueEstimatorBase):
            if hyperparams:
                raise O2OSpecError(
                    f"got {sorted(hyperparams)} together with a {type(value_type).__name__} object, expected one or "
                    f"the other; pass them to the constructor of {type(value_type).__name__}"
                )
            # TorchRL's annotation omits estimator instances.
            LossModule.make_value_estimator(self, cast(ValueEstimators, value_type))
        else:
            supported = self.SUPPORTED_VALUE_ESTIMATORS
            estimator = dispatch_value_estimator(self, value_type, supported=supported, **hyperparams)
            # Losses pass the next value in. A network kept here would get out of sync in deep copies and casts.
            estimator.value_network = None
        self._forward_value_estimator_keys()
        return self

    def _built(self, kind: type[ValueEstimatorBase], hyperparams: Mapping[str, Any]) -> ValueEstimatorBase:
        """Build an estimator from its class, on the device of this loss."""
        asked = inspect.signature(kind).parameters
        known = {"value_network": None, "device": self._default_device}
        given = {name: value for name, value in known.items() if name in asked} | dict(hyperparams)
        try:
            return kind(**given)
        except TypeError as error:
            raise O2OSpecError(
                f"got {kind.__name__} with {sorted(hyperparams)}, expected the arguments of its constructor ({error}); "
                f"correct them, or pass an object, make_value_estimator({kind.__name__}(...))"
            ) from error

    def _forward_value_estimator_keys(self, **kwargs: NestedKey) -> None:
        self._forget_reads()
        if self._value_estimator is not None:
            keys = self.tensor_keys
            self._value_estimator.set_keys(
                value=keys.value, reward=keys.reward, done=keys.done, terminated=keys.terminated
            )

    def _hold_box(self, actor_network: TensorDictModuleBase) -> None:
        """Register the actor's action box as buffers ``action_low`` and ``action_high``, each [A], of default dtype."""
        for name, edge in zip(("action_low", "action_high"), inner_edges(*actor_box(actor_network)), strict=True):
            self.register_buffer(name, edge)

    @property
    def vmap_randomness(self) -> Randomness:
        """The randomness of ensemble members that draw numbers, for example by dropout; see ``set_vmap_randomness``."""
        return self._vmap_randomness or "different"

    def _make_vmap(self) -> None:
        """Override TorchRL's caching of vmap functions: every call reads the setting instead."""

    def _call_ensemble(
        self, network: TensorDictModuleBase, params: Parameters, inputs: Inputs, out_key: NestedKey
    ) -> Tensor:
        """The members' outputs, shape [E, *B]."""
        return call_ensemble(network, params, inputs, out_key, self._vmap_randomness, self.deactivate_vmap)

    def _reduce(
        self, loss: Tensor, weights: Tensor | None = None, reduction: Literal["mean", "sum"] | None = None
    ) -> Tensor:
        """Reduce over the batch; ``reduction`` replaces the loss's own, unless that is ``"none"``."""
        loss = loss if weights is None else loss * weights
        if self.reduction == "none":
            return loss
        if not loss.numel():
            raise O2OSpecError(
                f"got an empty batch for {type(self).__name__}, expected at least one row, because a mean over no rows "
                "is NaN"
            )
        return loss.mean() if (reduction or self.reduction) == "mean" else loss.sum()

    def _estimate(
        self,
        tensordict: TensorDictBase,
        value: Tensor,
        *,
        qvalue: Tensor | None = None,
        log_prob: Tensor | None = None,
        action: Tensor | None = None,
        discount: Tensor | None = None,
    ) -> Tensor:
        """y = r + gamma (1 - d) V(s'), as the value estimator computes it, shape [*B].

        The estimator finds V(s') under ``"next"``, and a', Q'(s', a') and log pi(a'|s') if the loss has them. The batch
        itself is not modified. A ``discount``, [*B, 1], replaces gamma^n (1 - d).
        """
        keys, following, estimator = self.tensor_keys, self._following(tensordict), self.value_estimator
        self._check_outcome(following, value.shape)
        self._check_steps(tensordict, value.shape)
        if discount is not None:
            estimator, tensordict = _discounted(estimator, tensordict, discount, keys.terminated)
            following = self._following(tensordict)
        if type(estimator) is TD0Estimator and estimator.value_network is None and not estimator.average_rewards:
            # This estimator reads none of the entries that are set below.
            return estimator.value_estimate(tensordict, next_value=value.unsqueeze(-1)).squeeze(-1)
        following = following.copy().set(keys.value, value.unsqueeze(-1))
        for key, column in ((keys.state_action_value, qvalue), (keys.log_prob, log_prob)):
            if column is not None:
                following.set(key, column.unsqueeze(-1))
        if action is not None:
            following.set(keys.action, action)
        target = estimator.value_estimate(tensordict.copy().set("next", following)).squeeze(-1)
        if target.shape != value.shape:
            raise O2OSpecError(
                f"{type(estimator).__name__} gave targets of shape {list(target.shape)}, expected {list(value.shape)}; "
                "give every further entry that it reads from the batch the shape [*B, 1]"
            )
        return target

    def _collect(
        self, tensordict: TensorDictBase, losses: dict[str, Tensor], info: dict[str, Tensor]
    ) -> TensorDictBase:
        """The output of ``forward``: losses and batch means of the metrics. Writes the priority, if there is one."""
        if "td_error" in info:
            if tensordict.is_locked:
                raise O2OSpecError(
                    f"got a locked batch, expected one into which {self.tensor_keys.priority!r} can be written; pass "
                    "batch.copy()"
                )
            tensordict.set(self.tensor_keys.priority, info.pop("td_error"))
        if self.reduction == "none":
            rows = tensordict.batch_size or next(iter(losses.values())).shape
            return TensorDict(losses, rows)
        return TensorDict({**losses, **{key: value.mean() for key, value in info.items()}}, [])


def _stack_of_one(member: TensorDictModule) -> TensorDictParams:
    """The parameters of an ensemble of one, each [1, ...]. TorchRL would make views, which no optimizer finds."""

    def stacked(value: Tensor) -> Tensor:
        own = value.detach().clone().unsqueeze(0)
        return nn.Parameter(own, value.requires_grad) if isinstance(value, nn.Parameter) else own

    params = cast(TensorDictBase, TensorDict.from_module(member)).apply(stacked, batch_size=[1], filter_empty=False)
    return TensorDictParams(cast(TensorDictBase, params), no_convert=True)


def _discounted(
    estimator: ValueEstimatorBase, tensordict: TensorDictBase, discount: Tensor, terminated: NestedKey
) -> tuple[ValueEstimatorBase, TensorDictBase]:
    """An estimator whose gamma is each row's factor of the next value, and a batch without other discounts."""
    if not isinstance(estimator, TD0Estimator):
        raise O2OSpecError(
            f"got rows with their own discounts and a {type(estimator).__name__}, expected a TD0Estimator or a "
            "subclass, because the discounts replace its gamma; exclude the discounts from the batch, or change the "
            "estimator"
        )
    twin = copy.copy(estimator)  # a separate estimator, so that the loss's keeps its gamma
    twin._buffers = {**estimator._buffers, "gamma": discount}
    following = cast(TensorDictBase, tensordict.get("next")).copy()
    following.set(terminated, torch.zeros_like(following.get(terminated)))
    return twin, tensordict.exclude(estimator.tensor_keys.steps_to_next_obs).set("next", following)
