# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Functions of named tensors as graphs: capture them, split off loop-invariant parts, and compile them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, fx
from torch.func import vmap
from torch.fx.experimental.proxy_tensor import make_fx

from torchrl_o2o.errors import O2OSpecError
from torchrl_o2o.updates.rewrite import DECOMPOSITIONS, is_random, is_view, tidy

__all__ = ["Executable", "Graph", "Named", "capture", "hoist", "over_leading_dim"]

Named = Mapping[str, Tensor]
_PRODUCTS = (torch.ops.aten.mm, torch.ops.aten.addmm, torch.ops.aten.bmm, torch.ops.aten.baddbmm)


class Graph(NamedTuple):
    """A captured function: its operations, the names of its inputs and outputs, and which inputs it overwrites."""

    module: fx.GraphModule
    inputs: list[str]
    outputs: list[str]
    changed: list[str]

    def executable(
        self, compiler: Callable[[fx.GraphModule, list[Tensor]], Callable[..., Any]], examples: Named
    ) -> Executable:
        """Compile it, with each changed input overwritten by its new value at the end.

        Args:
            compiler: a function from a graph and example inputs to a callable; if it returns the graph, this runs
                eagerly.
            examples: at least the inputs, by name; not modified.

        Returns:
            What computes the outputs.
        """
        graph = fx.Graph()
        copies: dict[fx.Node, fx.Node] = {}
        # Captured graphs return a tuple; other modules may return anything.
        values = cast(tuple[fx.Node, ...], graph.graph_copy(self.module.graph, copies))
        placeholders = dict(zip(self.inputs, graph.find_nodes(op="placeholder"), strict=True))
        kept, new = values[: len(self.outputs)], values[len(self.outputs) :]
        for name, value in zip(self.changed, new, strict=True):
            graph.call_function(torch.ops.aten.copy_.default, (placeholders[name], value))
        graph.output(tuple(kept))
        unused = [name for name, node in placeholders.items() if not node.users]
        for name in unused:
            graph.erase_node(placeholders[name])
        for node in graph.find_nodes(op="placeholder"):
            node.meta.pop("val", None)  # each is of a mode of its own, and inductor's C++ wrapper refuses a mixture
        module = fx.GraphModule(self.module, graph)
        used = [name for name in self.inputs if name not in unused]
        return Executable(compiler(module, [examples[name] for name in used]), used, self.outputs)


class Executable(NamedTuple):
    """A graph ready to run on named tensors."""

    function: Callable[..., Any]
    inputs: list[str]
    outputs: list[str]

    def __call__(self, values: Named) -> dict[str, Tensor]:
        """Run the graph; changed inputs are overwritten in ``values``.

        Args:
            values: at least the inputs, by name.

        Returns:
            The outputs by name.
        """
        results = self.function(*[values[name] for name in self.inputs])
        return dict(zip(self.outputs, results, strict=True))


def capture(
    function: Callable[[dict[str, Tensor]], tuple[Named, Named]], inputs: Named, *, decompose: bool = True
) -> Graph:
    """Record the tensor operations of a function; its Python code is not part of the graph.

    Args:
        function: a function from named tensors to outputs and to new values of some inputs. It may differentiate, but
            not read values.
        inputs: an example; not modified. Shapes, dtypes and devices are those of every later call.
        decompose: whether some operations are replaced by simpler ones, which compile better but cannot be vectorized.
            Defaults to ``True``.

    Returns:
        The graph.

    Raises:
        O2OSpecError: if the function overwrites an input, as batch normalization does in training mode.

    Examples:
        >>> import torch
        >>> graph = capture(lambda t: ({"y": 2 * t["x"]}, {"x": t["x"] + 1}), {"x": torch.zeros(2)})
        >>> x = torch.zeros(2)
        >>> graph.executable(lambda module, _: module, {"x": x})({"x": x})["y"], x
        (tensor([0., 0.]), tensor([1., 1.]))
    """
    names: list[list[str]] = []

    def flat(*tensors: Tensor) -> list[Tensor]:
        outputs, changed = function(dict(zip(inputs, tensors, strict=True)))
        names[:] = [list(outputs), list(changed)]
        return [*outputs.values(), *changed.values()]

    table = DECOMPOSITIONS if decompose else {}
    examples = [value.detach().clone() for value in inputs.values()]
    module = make_fx(flat, decomposition_table=table)(*examples)
    if written := [name for name, value in zip(inputs, examples, strict=True) if value._version]:
        raise O2OSpecError(
            f"got networks that write into {written[0].removeprefix('state:')!r} while they are evaluated, expected "
            "none that do in a compiled update, which would lose what they write; put batch normalization into "
            "evaluation mode, take layer normalization, or do not compile the update"
        )
    module.graph.eliminate_dead_code()
    tidy(module.graph)
    return Graph(module, list(inputs), *names)


def hoist(graph: Graph, per_round: Collection[str], outside: Collection[str]) -> tuple[Graph | None, Graph]:
    """Split a loop's body into a part that can be computed beforehand and the rest.

    Products that depend on a round's data, but on nothing that earlier rounds change, can be computed for all rounds in
    one pass beforehand. An example are the next actions if the actor is frozen.

    Args:
        graph: the body.
        per_round: inputs that differ between rounds and are known beforehand.
        outside: further inputs that are not known beforehand.

    Returns:
        The part to compute beforehand (``None`` if nothing is worth it), whose outputs are inputs of the second part.
    """
    free = _known_beforehand(graph, per_round, {*outside, *graph.changed})
    output = graph.module.graph.output_node()
    edge: dict[fx.Node, None] = {}
    rest: set[fx.Node] = set()
    queue = list(output.all_input_nodes)
    while queue:
        node = queue.pop()
        if node in free and not is_view(node):
            edge[node] = None
        elif node not in rest:
            rest.add(node)
            queue += node.all_input_nodes
    if not edge:
        return None, graph
    order = [node for node in graph.module.graph.nodes if node in edge]
    names = [f"hoisted:{i}" for i in range(len(order))]
    return _upstream(graph, order, names), _downstream(graph, dict(zip(order, names, strict=True)), rest)


def _known_beforehand(graph: Graph, per_round: Collection[str], outside: Collection[str]) -> set[fx.Node]:
    """Nodes that depend on a product and on a round's own data, but not on the outside or on other rounds."""
    names = dict(zip(graph.module.graph.find_nodes(op="placeholder"), graph.inputs, strict=True))
    bound: set[fx.Node] = set()
    varying: set[fx.Node] = set()
    costly: set[fx.Node] = set()
    for node in graph.module.graph.nodes:
        needs = node.all_input_nodes
        if names.get(node) in outside or any(need in bound for need in needs) or is_random(node):
            bound.add(node)
        if names.get(node) in per_round or any(need in varying for need in needs):
            varying.add(node)
        product = getattr(node.target, "overloadpacket", None) in _PRODUCTS
        if (product and node in varying) or any(need in costly for need in needs):
            costly.add(node)
    return {node for node in varying & costly - bound if node.op == "call_function"}


def _upstream(graph: Graph, order: list[fx.Node], names: list[str]) -> Graph:
    new, copies = fx.Graph(), {}
    wanted = set(order)
    for node in reversed(graph.module.graph.nodes):
        if node in wanted:
            wanted.update(node.all_input_nodes)
    for node in graph.module.graph.nodes:
        if node in wanted:
            copies[node] = new.node_copy(node, copies.__getitem__)
    new.output([copies[node] for node in order])
    placeholders = zip(graph.inputs, graph.module.graph.find_nodes(op="placeholder"), strict=True)
    return Graph(fx.GraphModule(graph.module, new), [name for name, node in placeholders if node in wanted], names, [])


def _downstream(graph: Graph, edge: dict[fx.Node, str], rest: set[fx.Node]) -> Graph:
    new, copies = fx.Graph(), {}
    old = graph.module.graph
    for node in old.find_nodes(op="placeholder"):
        copies[node] = new.node_copy(node, copies.__getitem__)
    for node, name in edge.items():
        copies[node] = new.placeholder(name.replace(":", "_"))
    for node in old.nodes:
        if node in rest and node.op != "placeholder":
            copies[node] = new.node_copy(node, copies.__getitem__)
    new.output(fx.map_arg(old.output_node().args[0], copies.__getitem__))
    inputs = [*graph.inputs, *edge.values()]
    return Graph(fx.GraphModule(graph.module, new), inputs, graph.outputs, graph.changed)


def over_leading_dim(graph: Graph, inputs: Named, mapped: Collection[str], *, decompose: bool = True) -> Graph:
    """The same function for all entries of a leading dimension at once.

    Args:
        graph: a function; every input that it changes must be mapped.
        inputs: an example, in which the mapped ones have one more leading dimension.
        mapped: which inputs have it.
        decompose: see :func:`capture`; ``False`` if the result will be vectorized again. Defaults to ``True``.

    Returns:
        A graph whose outputs and changes have the leading dimension.
    """
    dims = tuple(0 if name in mapped else None for name in graph.inputs)

    def batched(values: dict[str, Tensor]) -> tuple[Named, Named]:
        results = vmap(graph.module, dims)(*[values[name] for name in graph.inputs])
        outputs, changed = results[: len(graph.outputs)], results[len(graph.outputs) :]
        return dict(zip(graph.outputs, outputs, strict=True)), dict(zip(graph.changed, changed, strict=True))

    return capture(batched, {name: inputs[name] for name in graph.inputs}, decompose=decompose)
