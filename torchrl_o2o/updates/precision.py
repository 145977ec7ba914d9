# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Lower only the matrix products of captured graphs to a shorter dtype."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx

__all__ = ["WIDE", "has_bfloat16", "lower_products"]

_ATEN = torch.ops.aten
#: Operation -> the product without the summand, and the position of its first factor among the arguments.
_PRODUCTS: dict[Any, tuple[Any, int]] = {
    _ATEN.mm.default: (_ATEN.mm.default, 0),
    _ATEN.bmm.default: (_ATEN.bmm.default, 0),
    _ATEN.addmm.default: (_ATEN.mm.default, 1),
    _ATEN.baddbmm.default: (_ATEN.bmm.default, 1),
}
#: Only products without a dimension below this are lowered. This excludes the first layer, which reads observations,
#: and the last one, which writes Q values: at a Q of 500, eight bits mean steps of 2.
WIDE = 64


def has_bfloat16(device: torch.device) -> bool:
    """Whether a device has instructions for products in bfloat16; without them, they take several times as long.

    Args:
        device: a GPU, or the processor.

    Examples:
        >>> type(has_bfloat16(torch.device("cpu")))
        <class 'bool'>
    """
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return any(found for name, found in torch.cpu.get_capabilities().items() if name.endswith("bf16"))


def lower_products(graph: fx.Graph, dtype: torch.dtype) -> int:
    """Compute products of wide float32 matrices in a shorter type, with float32 results.

    Parameters, gradients, the optimizer and elementwise operations stay in float32, as under ``torch.autocast``. Narrow
    products (:data:`WIDE`) stay in float32, too.

    Args:
        graph: an aten graph with example values; rewritten in place.
        dtype: ``torch.bfloat16``.

    Returns:
        The number of changed products.
    """
    short: dict[fx.Node, fx.Node] = {}
    count = 0
    for node in list(graph.nodes):
        plain, at = _PRODUCTS.get(node.target, (None, 0))
        if plain is None or not _is_wide(node, *node.args[at : at + 2]) or node.kwargs:
            continue
        for factor in node.args[at : at + 2]:
            if factor not in short:
                with graph.inserting_after(factor):
                    short[factor] = _cast(graph, factor, dtype)
        with graph.inserting_before(node):
            product = graph.call_function(plain, tuple(short[factor] for factor in node.args[at : at + 2]))
            result = _cast(graph, product, torch.float32)
            if at:
                result = graph.call_function(_ATEN.add.Tensor, (result, node.args[0]))
        node.replace_all_uses_with(result)
        graph.erase_node(node)
        count += 1
    return count


def _cast(graph: fx.Graph, node: fx.Node, dtype: torch.dtype) -> fx.Node:
    return graph.call_function(_ATEN._to_copy.default, (node,), {"dtype": dtype})


def _is_wide(node: fx.Node, left: Any, right: Any) -> bool:
    values = [each.meta.get("val", each.meta.get("tensor_meta")) for each in (node, left, right)]
    shapes = [value.shape for value in values if isinstance(value, Tensor) and value.dtype == torch.float32]
    return len(shapes) == len(values) and min(*shapes[0][-2:], shapes[1][-1]) >= WIDE
