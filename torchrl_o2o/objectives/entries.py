# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""What losses read from a batch of transitions: the names of its entries, and the checks of each entry's shape."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar, cast

import torch
from tensordict import TensorDictBase
from tensordict.nn import TensorDictModuleBase
from tensordict.utils import NestedKey
from torch import Tensor
from torchrl.objectives.common import LossModule

from torchrl_o2o.errors import O2OSpecError
from torchrl_o2o.modules.boxes import action_specs
from torchrl_o2o.modules.input_checks import check_rows
from torchrl_o2o.objectives.feed_forward import input_dims
from torchrl_o2o.objectives.networks import Inputs

__all__ = ["ReadsTransitions"]


class ReadsTransitions(LossModule):
    """Abstract base of modules that read transitions, with the names of the entries and a check of each.

    Every method returns one entry or one group of entries, or raises an error that names the entry. Shapes are written
    with ``*B``, the shape of the batch, which is that of the recorded actions without their last dimension.
    Subclasses set ``_networks_read``.
    """

    @dataclass
    class _AcceptedKeys(LossModule._AcceptedKeys):
        """Tensordict keys that can be renamed with ``set_keys``.

        Attributes:
            action: the action taken. Defaults to ``"action"``.
            value: V(s); the next state's value is written under it for the value estimator. Defaults to
                ``"state_value"``.
            state_action_value: the entry the critics write. Defaults to ``"state_action_value"``.
            log_prob: entry for the next action's log-density, which the value estimator reads. Defaults to
                ``"_log_prob"``.
            priority: entry for the absolute TD error. Defaults to ``"td_error"``.
            priority_weight: importance weights, if present. Defaults to ``"priority_weight"``.
            reward: Defaults to ``"reward"``.
            done: Defaults to ``"done"``.
            terminated: Defaults to ``"terminated"``.
        """

        action: NestedKey = "action"
        value: NestedKey = "state_value"
        state_action_value: NestedKey = "state_action_value"
        log_prob: NestedKey = "_log_prob"
        priority: NestedKey = "td_error"
        priority_weight: NestedKey = "priority_weight"
        reward: NestedKey = "reward"
        done: NestedKey = "done"
        terminated: NestedKey = "terminated"

    # A property of LossModule. It is annotated here, because each subclass has more keys than its parent.
    tensor_keys: _AcceptedKeys  # pyright: ignore[reportIncompatibleMethodOverride]
    default_keys = _AcceptedKeys

    #: Attributes of the networks whose inputs are read at s, and of those whose inputs are also read at s'.
    _networks_read: ClassVar[tuple[tuple[str, ...], tuple[str, ...]]] = ((), ())
    #: Whether rewards and flags are read; behavior cloning and density models read none.
    _bootstraps: ClassVar[bool] = True

    def __init__(self) -> None:
        self._forget_reads()
        super().__init__()

    def _forget_reads(self) -> None:
        """Compute anew which entries are read, because keys have changed."""
        self._in_keys: list[NestedKey] | None = None
        self._reads: dict[tuple[str, ...], list[NestedKey]] = {}
        self._dims: dict[tuple[str, ...], dict[NestedKey, tuple[int, ...]]] = {}

    @property
    def in_keys(self) -> list[NestedKey]:
        """Entries that ``forward`` reads under the current settings, in the order of its positional arguments."""
        return self._keys_read() if self._in_keys is None else self._in_keys

    @in_keys.setter
    def in_keys(self, value: Sequence[NestedKey]) -> None:
        self._in_keys = list(value)

    def _keys_read(self) -> list[NestedKey]:
        """The entries of :attr:`in_keys`, unless the user has set others."""
        keys, (current, following) = self.tensor_keys, self._networks_read
        names: list[NestedKey] = [keys.action]
        outcome = (keys.reward, keys.done, keys.terminated) if self._bootstraps else ()
        names += [("next", key) for key in (*self._inputs_of(following), *outcome)]
        return list(dict.fromkeys([*names, *self._inputs_of(current)]))

    def _inputs_of(self, networks: tuple[str, ...]) -> list[NestedKey]:
        """The entries that the named networks read, without the action."""
        if networks not in self._reads:
            modules: list[TensorDictModuleBase] = [getattr(self, name) for name in networks]
            keys = dict.fromkeys(key for module in modules for key in module.in_keys)
            self._reads[networks] = [key for key in keys if key != self.tensor_keys.action]
        return self._reads[networks]

    def _state(self, tensordict: TensorDictBase) -> Inputs:
        """s: the networks' inputs besides the action."""
        return self._inputs(tensordict, tensordict, self._networks_read[0])

    def _next_state(self, tensordict: TensorDictBase) -> Inputs:
        """s': the same inputs at the next state."""
        return self._inputs(tensordict, self._following(tensordict), self._networks_read[1])

    def _inputs(self, tensordict: TensorDictBase, source: TensorDictBase, networks: tuple[str, ...]) -> Inputs:
        """The inputs of the named networks from ``source``, which is the batch or its ``"next"`` part."""
        entries = {key: self._entry(source, key) for key in self._inputs_of(networks)}
        if networks not in self._dims:
            modules: list[TensorDictModuleBase] = [getattr(self, name) for name in networks]
            self._dims[networks] = {key: dims for key in entries if (dims := input_dims(modules, key))}
        for key, dims in self._dims[networks].items():
            self._check_rows(tensordict, key, entries[key], dims)
        return entries

    def _check_rows(
        self, tensordict: TensorDictBase, key: NestedKey, value: Tensor, dims: tuple[int, ...] = (1,)
    ) -> None:
        """Raise if there is not one input for each action."""
        action = tensordict.get(self.tensor_keys.action, None)
        if action is not None:
            check_rows(key, value, self.tensor_keys.action, action, dims)

    def _rows(self, tensordict: TensorDictBase) -> torch.Size:
        """*B, from the shape of the recorded action: a hand-made batch may have no batch size."""
        return self._entry(tensordict, self.tensor_keys.action).shape[:-1]

    def _entry(self, tensordict: TensorDictBase, key: NestedKey) -> Tensor:
        """A required entry."""
        value = tensordict.get(key, None)
        if value is None:
            there = sorted(map(str, tensordict.keys(include_nested=True, leaves_only=True)))
            raise O2OSpecError(
                f"got a batch with {there}, expected {key!r}, one of the entries {self.in_keys} that "
                f"{type(self).__name__} reads; sample whole transitions, or rename entries with loss.set_keys(...) and "
                "the networks' in_keys"
            )
        return value

    @cached_property
    def _action_width(self) -> int | None:
        """A, from the actor's spec; ``None`` if it has none."""
        specs = action_specs(getattr(self, "actor_network", None))
        return specs[0].shape[-1] if len(specs) == 1 and specs[0].ndim == 1 else None

    def _action(self, tensordict: TensorDictBase) -> Tensor:
        """The recorded action, shape [*B, A]."""
        action = self._entry(tensordict, self.tensor_keys.action)
        width = self._action_width
        if not action.is_floating_point() or (width is not None and action.shape[-1:] != (width,)):
            raise O2OSpecError(
                f"got {self.tensor_keys.action!r} of shape {list(action.shape)} and {action.dtype}, expected "
                f"{'' if width is None else f'{width} '}floating point numbers a row, like the actor's actions; load "
                "the data with torchrl_o2o.data.load_offline, or build the networks for these actions"
            )
        return action

    def _following(self, tensordict: TensorDictBase) -> TensorDictBase:
        """The entries under ``"next"``."""
        return cast(TensorDictBase, self._entry(tensordict, "next"))

    def _check_outcome(self, following: TensorDictBase, rows: torch.Size) -> None:
        """Raise if reward or flags do not have the shape [*rows]; the estimator's own error would not name the entry.

        Flags must be bool, because the estimator computes ``~flag``, and ``~1`` is -2 for integers.
        """
        keys = self.tensor_keys
        for key in (keys.reward, keys.done, keys.terminated):
            value = self._column(following, key, rows)
            if key != keys.reward and value.dtype != torch.bool:
                raise O2OSpecError(f"got {key!r} of {value.dtype} under 'next', expected bool; convert it with .bool()")

    def _column(self, following: TensorDictBase, key: NestedKey, rows: torch.Size) -> Tensor:
        """An entry under ``"next"`` with one number per row, shape [*B, 1]."""
        value = self._entry(following, key)
        if tuple(value.shape) != (*rows, 1):
            raise O2OSpecError(
                f"got {key!r} of shape {tuple(value.shape)} under 'next', expected one column, {(*rows, 1)}; reshape "
                "it, for example with unsqueeze(-1)"
            )
        return value

    def _weights(self, tensordict: TensorDictBase) -> Tensor | None:
        return self._one_each(tensordict, self.tensor_keys.priority_weight)

    def _one_each(self, tensordict: TensorDictBase, key: NestedKey) -> Tensor | None:
        """An optional entry with one number per row, as [*B]."""
        value = tensordict.get(key, None)
        if value is None:
            return None
        rows = self._rows(tensordict)
        if value.numel() != rows.numel():
            raise O2OSpecError(
                f"got {key!r} of shape {tuple(value.shape)} for a batch of {tuple(rows)}, expected one number for each "
                "transition"
            )
        return value.reshape(rows)

    def _one_each_required(self, tensordict: TensorDictBase, key: NestedKey, remedy: str) -> Tensor:
        """A required entry with one number per row, as [*B]; ``remedy`` is the end of the message if it is missing."""
        value = self._one_each(tensordict, key)
        if value is None:
            raise O2OSpecError(f"got a batch without {key!r}{remedy}")
        return value

    def _calibrating_return(self, tensordict: TensorDictBase, key: NestedKey) -> Tensor:
        """The discounted return of each row, as [*B], which losses with ``calibrate`` read."""
        remedy = (
            ", expected each row's return; add them to the data and to finished online episodes with "
            "torchrl_o2o.data.transforms.add_mc_return, or set calibrate = False"
        )
        return self._one_each_required(tensordict, key, remedy)

    def _recorded_next_action(self, tensordict: TensorDictBase, key: NestedKey, like: Tensor, otherwise: str) -> Tensor:
        """The action that the data took at s', shape of ``like``; ``otherwise`` names the setting that needs none."""
        recorded = tensordict.get(key, None)
        if recorded is None:
            raise O2OSpecError(
                f"the batch has no {key!r}, the action of the next step; pass the data through add_next_action(...), "
                f"or take {otherwise}"
            )
        if recorded.shape != like.shape:
            raise O2OSpecError(
                f"got {key!r} of shape {list(recorded.shape)}, expected that of the actions, {list(like.shape)}; pass "
                f"the data through add_next_action(...)"
            )
        return recorded

    def _check_batch(self, tensordict: TensorDictBase, call: str) -> None:
        """Raise for calls in the form of the first release, which passed tensors instead of the batch."""
        if isinstance(tensordict, Tensor):
            raise O2OSpecError(
                f"got a tensor of shape {list(tensordict.shape)} for the batch, expected {type(self).__name__}.{call}; "
                "pass the batch first and results of earlier steps as keyword arguments"
            )

    def _required_weights(self, tensordict: TensorDictBase) -> Tensor:
        """Importance weights, shape [*B], for a loss that must have them; raises if there are none."""
        weights = self._weights(tensordict)
        if weights is None:
            key = self.tensor_keys.priority_weight
            raise O2OSpecError(
                f"got a batch without {key!r}, expected importance weights, because this {type(self).__name__} weights "
                "its losses; use a sampler that writes them, or name their entry with "
                "loss.set_keys(priority_weight=...)"
            )
        return weights

    def _check_steps(self, tensordict: TensorDictBase, rows: torch.Size) -> None:
        key = getattr(self.value_estimator.tensor_keys, "steps_to_next_obs", None)
        steps = None if key is None else tensordict.get(key, None)
        if steps is not None and steps.numel() != rows.numel():
            raise O2OSpecError(
                f"got {key!r} of shape {list(steps.shape)} for rows {list(rows)}, expected one number of steps per row"
            )
