# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Check the members of an ensemble: networks of the same shape, each with its own parameters."""

from __future__ import annotations

import collections
import itertools
from collections.abc import Sequence
from typing import Literal

import torch
from tensordict.nn import TensorDictModule, TensorDictModuleBase

from torchrl_o2o.errors import O2OSpecError
from torchrl_o2o.modules.input_checks import check_parameters, differing_layer

__all__ = ["check_members"]

_MAKERS = {"critic": "make_qvalue_ensemble(...)", "baseline": "make_baselines(...)"}


def check_members(
    networks: list[TensorDictModule], kind: Literal["critic", "baseline"] = "critic"
) -> list[TensorDictModule]:
    """Check that networks can form an ensemble, and return them.

    Args:
        networks: critics or baselines.
        kind: their name in messages. Defaults to ``"critic"``.

    Returns:
        The same networks.

    Raises:
        O2OSpecError: if they are not a list or an empty one, one occurs twice, or they share parameters, differ in
            shape, layers, settings or keys, or have layers without a size.

    Examples:
        >>> from torchrl_o2o.modules import make_qvalue_ensemble
        >>> len(check_members(make_qvalue_ensemble(3, 2, num_qvalue_nets=2, hidden_sizes=(8,))))
        2
    """
    maker = _MAKERS[kind]
    if isinstance(networks, TensorDictModuleBase):
        raise O2OSpecError(
            f"got one {type(networks).__name__}, expected a list of {kind}s, each with its own parameters, for example "
            f"{maker}"
        )
    members = list(networks)
    if not members:
        raise O2OSpecError(f"got no {kind}, expected at least one; pass a list of them, for example {maker}")
    for member in members:
        check_parameters(member, kind)
    if any(_are_copies(one, other) for one, other in itertools.combinations(members, 2)):
        raise O2OSpecError(
            f"got one {kind} several times, expected {kind}s with separate parameters, because copies of one network "
            f"always stay equal; build each separately, for example with {maker}"
        )
    owners = collections.Counter(id(value) for member in members for value in member.parameters())
    if max(owners.values(), default=1) > 1:
        shared = ", or with shared_head=True for one output layer" if kind == "critic" else ""
        raise O2OSpecError(
            f"got {kind}s that share parameters, expected {kind}s with separate parameters, because a loss keeps a "
            f"copy for each; build each {kind} separately, for example with {maker}{shared}"
        )
    shapes = [{name: tuple(value.shape) for name, value in member.named_parameters()} for member in members]
    if odd := next((number for number, each in enumerate(shapes) if each != shapes[0]), None):
        raise O2OSpecError(
            f"got {kind}s of which number {odd} has other layers than the first, expected networks of the same shape; "
            f"build them alike, for example with {maker}"
        )
    _check_alike(members, kind, maker)
    return members


def _check_alike(members: Sequence[TensorDictModule], kind: str, maker: str) -> None:
    """Raise if members differ in what is no parameter: a loss evaluates all with the first one's layers and keys."""
    if odd := differing_layer(members):
        number, name, own, first = odd
        raise O2OSpecError(
            f"got {kind}s of which number {number} has {own} at {name!r} and the first {first}, expected {kind}s that "
            f"differ only in their parameters, because the first one's layers evaluate all; build them alike, for "
            f"example with {maker}"
        )


def _are_copies(one: TensorDictModule, other: TensorDictModule) -> bool:
    pairs = list(zip(one.parameters(), other.parameters(), strict=False))
    return bool(pairs) and all(mine.shape == theirs.shape and torch.equal(mine, theirs) for mine, theirs in pairs)
