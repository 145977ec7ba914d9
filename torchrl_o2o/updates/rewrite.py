# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Rewrites of captured graphs that keep the mathematics and that compilers do not make."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, fx

__all__ = ["DECOMPOSITIONS", "is_random", "is_view", "tidy"]

_ATEN = torch.ops.aten
#: Inductor unrolls sums of at most this many terms, which are then not vectorized.
_FEW = 8
_RESHAPES = (_ATEN.view.default, _ATEN._unsafe_view.default, _ATEN.expand.default, _ATEN.detach.default)


def tidy(graph: fx.Graph) -> None:
    """Merge duplicate computations, drop reshapes without effect, and compute transposed products directly.

    Readable losses may evaluate the same network twice, for example IQL's target critics for V and for the actor. If
    nothing has changed in between, one evaluation is enough.

    :math:`(AB)^T=B^TA^T`: gradients of weights then have the weights' own layout, so the optimizer reads and writes in
    order. Gradients of first layers, which are tall, are not changed, because libraries compute products with long rows
    twice as fast.

    Args:
        graph: an aten graph with example values; rewritten in place.
    """
    _out_of_place(graph)
    _merge_equal(graph)
    for node in list(graph.nodes):
        source = node.args[0] if node.args else None
        if node.target in _RESHAPES and isinstance(source, fx.Node) and _same_layout(node, source):
            node.replace_all_uses_with(source)
    graph.eliminate_dead_code()
    products = {_ATEN.transpose.int: _ATEN.bmm.default, _ATEN.t.default: _ATEN.mm.default}
    for node in list(graph.nodes):
        if node.target in products and _swaps_last(node) and _is_product(node.args[0]) and not _is_tall(node):
            with graph.inserting_before(node):
                left, right = (_transposed(graph, factor) for factor in node.args[0].args)
                fresh = graph.call_function(products[node.target], (right, left))
            fresh.meta = dict(node.meta)
            node.replace_all_uses_with(fresh)
    graph.eliminate_dead_code()


def is_view(node: fx.Node) -> bool:
    """Whether a node's result shares memory with its input.

    Args:
        node: of an aten graph.

    Returns:
        The answer.
    """
    schema = getattr(node.target, "_schema", None)
    return schema is not None and any(value.alias_info is not None for value in schema.returns)


def is_random(node: fx.Node) -> bool:
    """Whether a node draws random numbers.

    Args:
        node: of an aten graph.

    Returns:
        The answer.
    """
    return torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ())


def _is_mutable(node: fx.Node) -> bool:
    return bool(getattr(getattr(node.target, "_schema", None), "is_mutable", False))


def _out_of_place(graph: fx.Graph) -> None:
    """Replace in-place operations on values that nothing else reads, such as in a clamp's backward pass."""
    for node in graph.nodes:
        if _is_mutable(node) and isinstance(node.target, torch._ops.OpOverload):
            base, (name, overload) = node.args[0], str(node.target).removeprefix("aten.").split(".")
            made_here = isinstance(base, fx.Node) and base.op == "call_function" and not is_view(base)
            fresh = made_here and len(base.users) == 1
            packet = getattr(_ATEN, name.removesuffix("_"), None)
            if fresh and name.endswith("_") and packet is not None and overload in packet.overloads():
                node.target = getattr(packet, overload)


def _merge_equal(graph: fx.Graph) -> None:
    first: dict[Any, fx.Node] = {}
    calls = [node for node in graph.nodes if node.op == "call_function"]
    if any(_is_mutable(node) for node in calls):
        return
    for node in calls:
        if is_random(node):
            continue
        known = first.setdefault((node.target, _hashable(node.args), _hashable(node.kwargs)), node)
        if known is not node:
            node.replace_all_uses_with(known)
    graph.eliminate_dead_code()


def _hashable(argument: Any) -> Any:
    """A key that is equal only for equal arguments; 1, 1.0 and True are different."""
    if isinstance(argument, list | tuple):
        return tuple(_hashable(each) for each in argument)
    if isinstance(argument, Mapping):
        return tuple((name, _hashable(each)) for name, each in sorted(argument.items()))
    return argument if isinstance(argument, fx.Node) else (type(argument), repr(argument))


def _value(node: fx.Node) -> Any:
    return node.meta.get("val", node.meta.get("tensor_meta"))


def _same_layout(node: fx.Node, source: fx.Node) -> bool:
    now, before = _value(node), _value(source)
    return (
        isinstance(now, Tensor)
        and isinstance(before, Tensor)
        and now.shape == before.shape
        and now.stride() == before.stride()
    )


def _swaps_last(node: fx.Node) -> bool:
    if node.target is _ATEN.t.default:
        return _value(node).ndim == 2
    axes = {axis % 3 for axis in node.args[1:3] if isinstance(axis, int)}
    return axes == {1, 2} and _value(node).ndim == 3


def _is_tall(node: fx.Node) -> bool:
    """Whether a matrix has more rows than columns, so that the transposed product takes half the time."""
    return _value(node).shape[-2] > _value(node).shape[-1]


def _is_product(node: Any) -> bool:
    return isinstance(node, fx.Node) and node.target in (_ATEN.bmm.default, _ATEN.mm.default) and len(node.users) == 1


def _transposed(graph: fx.Graph, node: fx.Node) -> fx.Node:
    """The transpose of a factor; undoes an existing transpose."""
    if node.target in (_ATEN.transpose.int, _ATEN.t.default) and _swaps_last(node):
        (source,) = node.all_input_nodes
        return source
    value = _value(node)
    fresh = graph.call_function(_ATEN.transpose.int, (node, -2, -1))
    fresh.meta = {"val": value.transpose(-2, -1)}
    return fresh


def _kept(value: Tensor) -> Tensor:
    """The same tensor, marked so that a compiler stores it instead of recomputing it at each use."""
    return value.as_strided(value.shape, value.stride())


def _layer_norm(
    features: Tensor, shape: list[int], weight: Tensor | None, bias: Tensor | None, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    dims = list(range(features.ndim - len(shape), features.ndim))
    mean = features.mean(dims, keepdim=True)
    centered = features - mean
    rstd = _kept((centered.square().mean(dims, keepdim=True) + eps).rsqrt())
    out = centered * rstd
    out = out if weight is None else out * weight
    return (out if bias is None else out + bias), mean, rstd


def _layer_norm_backward(
    gradient: Tensor,
    features: Tensor,
    shape: list[int],
    mean: Tensor,
    rstd: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    mask: list[bool],
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    dims = list(range(features.ndim - len(shape), features.ndim))
    outer = list(range(features.ndim - len(shape)))
    normalized = (features - mean) * rstd
    inner = gradient if weight is None else gradient * weight
    shift = inner.mean(dims, keepdim=True)
    tilt = (inner * normalized).mean(dims, keepdim=True)
    return (
        (inner - shift - normalized * tilt) * rstd if mask[0] else None,
        (gradient * normalized).sum(outer) if mask[1] and weight is not None else None,
        gradient.sum(outer) if mask[2] and bias is not None else None,
    )


def _sum(value: Tensor, dim: list[int] | None, keepdim: bool = False, *, dtype: torch.dtype | None = None) -> Any:
    """A sum along a short row, such as a log-probability's terms, with stored terms, so that logarithms vectorize."""
    last = value.ndim - 1
    along_row = dim is not None and [axis % max(value.ndim, 1) for axis in dim] == [last]
    if not along_row or value.shape[-1] > _FEW or dtype is not None or not value.is_floating_point():
        return NotImplemented
    total = _kept(value).unsqueeze(-1).sum([last, last + 1])  # two dimensions, so that the rewrite applies only once
    return total.unsqueeze(-1) if keepdim else total


#: Layer normalization with stored scale factors, because inductor recomputes a root and a division at each use; and
#: short sums with stored terms.
DECOMPOSITIONS: dict[Any, Callable[..., Any]] = {
    _ATEN.native_layer_norm.default: _layer_norm,
    _ATEN.native_layer_norm_backward.default: _layer_norm_backward,
    _ATEN.sum.dim_IntList: _sum,
}
