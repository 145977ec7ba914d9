# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
from __future__ import annotations

import copy
import warnings
from typing import Any

import pytest
import torch
from torch import nn
from torchrl.objectives import SoftUpdate

from torchrl_o2o.errors import O2OSpecError
from torchrl_o2o.modules import make_actor, make_qvalue_ensemble
from torchrl_o2o.objectives import EnsembleSACLoss
from torchrl_o2o.testing import random_transitions
from torchrl_o2o.updates import Descend, Update, compile_update
from torchrl_o2o.updates.graph import capture
from torchrl_o2o.updates.precision import lower_products

ROWS, UTD = 64, 2


def make(dtype: torch.dtype | None, **options: Any) -> tuple[EnsembleSACLoss, Update]:
    torch.manual_seed(0)
    critics = make_qvalue_ensemble(5, 2, num_qvalue_nets=3, hidden_sizes=(64, 64))
    loss = EnsembleSACLoss(make_actor(5, 2, hidden_sizes=(64, 64)), critics, sub_sample_len=2)
    optims: dict[str, torch.optim.Optimizer] = {
        "qvalue": torch.optim.Adam(loss.qvalue_network_params.parameters()),
        "actor": torch.optim.Adam(loss.actor_network_params.parameters()),
    }
    updater = SoftUpdate(loss, tau=0.005)
    return loss, compile_update(loss, optims, updater, utd_ratio=UTD, matmul_dtype=dtype, **options)


def products(graph: torch.fx.GraphModule) -> list[tuple[torch.dtype, tuple[int, ...]]]:
    """Type and inner and outer sizes of every product, as they are computed."""
    found: list[tuple[torch.dtype, tuple[int, ...]]] = []

    class Listing(torch.fx.Interpreter):
        def run_node(self, n: torch.fx.Node) -> Any:
            value = super().run_node(n)
            if getattr(n.target, "overloadpacket", None) in (torch.ops.aten.mm, torch.ops.aten.bmm):
                found.append((value.dtype, (*value.shape[-2:], self.env[n.args[0]].shape[-1])))  # type: ignore[index]
            return value

    Listing(graph, garbage_collect_values=False).run(*graph.example)  # type: ignore[arg-type]
    return found


def test_only_wide_products_are_shortened(captured: list[Any]) -> None:
    loss, update = make(torch.bfloat16)
    batch = random_transitions(UTD * ROWS, 5, 2)
    update(batch)
    listed = [each for graph in captured for each in products(graph)]
    assert {dtype for dtype, _ in listed} == {torch.bfloat16, torch.float32}
    assert all((dtype == torch.bfloat16) == (min(sizes) >= 64) for dtype, sizes in listed)
    assert all(value.dtype == torch.float32 for value in loss.state_dict().values() if value.is_floating_point())


def test_updates_stay_close_to_float32(captured: list[Any]) -> None:
    results = []
    for dtype in (None, torch.bfloat16):
        loss, update = make(dtype)
        torch.manual_seed(1)
        for seed in range(10):
            generator = torch.Generator().manual_seed(seed)
            update(random_transitions(UTD * ROWS, 5, 2, generator=generator))
        metrics = update(random_transitions(UTD * ROWS, 5, 2, generator=torch.Generator().manual_seed(10)))
        assert metrics["finite"]
        results.append((loss, metrics))
    (exact, expected), (short, metrics) = results
    assert not torch.equal(expected["loss_qvalue"], metrics["loss_qvalue"])
    for name in ("loss_qvalue", "qvalue", "target_value", "loss_actor"):
        torch.testing.assert_close(metrics[name], expected[name], rtol=0.02, atol=0.01)
    moved = [(a - b).abs().max() for a, b in zip(exact.parameters(), short.parameters(), strict=True)]
    assert max(moved) < 20 * 1e-3  # the two have made UTD * 10 steps of at most the learning rate, mostly alike


def test_summands_of_products_are_added_in_float32() -> None:
    torch.manual_seed(0)
    layer = nn.Linear(64, 64)
    inputs = {"x": torch.randn(64, 64), "w": layer.weight.detach(), "b": layer.bias.detach()}
    graph = capture(lambda t: ({"y": torch.addmm(t["b"], t["x"], t["w"].t())}, {}), inputs)
    plain = copy.deepcopy(graph.module)
    assert lower_products(graph.module.graph, torch.bfloat16) == 1
    graph.module.recompile()
    expected = (inputs["x"].bfloat16() @ inputs["w"].bfloat16().t()).float() + inputs["b"]
    assert torch.equal(graph.module(*inputs.values())[0], expected)
    torch.testing.assert_close(plain(*inputs.values())[0], expected, rtol=0.02, atol=0.02)


def test_float64_and_narrow_products_stay() -> None:
    for dtype, size in ((torch.float64, 64), (torch.float32, 63)):
        inputs = {"x": torch.randn(64, size, dtype=dtype), "w": torch.randn(size, 64, dtype=dtype)}
        graph = capture(lambda t: ({"y": t["x"] @ t["w"]}, {}), inputs)
        assert lower_products(graph.module.graph, torch.bfloat16) == 0


def test_other_types_are_refused() -> None:
    with pytest.raises(O2OSpecError, match=r"float16.*expected torch\.bfloat16"):
        make(torch.float16)


def test_slow_products_are_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torchrl_o2o.updates.update.has_bfloat16", lambda device: False)
    with pytest.warns(UserWarning, match="expected hardware with instructions for it"):
        make(torch.bfloat16)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        make(None)


def test_autocast_is_near_and_refused_where_it_is_slow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torchrl_o2o.updates.update.has_bfloat16", lambda device: True)
    batch, found = random_transitions(ROWS, 5, 2), []
    for autocast in (False, True):
        loss, compiled = make(None)
        update = Update(loss, Descend("qvalue", torch.optim.Adam(loss.qvalue_network_params.parameters())))
        torch.manual_seed(1)
        found.append((update.autocast() if autocast else update)(batch)["loss_qvalue"])
    assert found[0] != found[1]
    torch.testing.assert_close(found[1].float(), found[0], rtol=0.02, atol=0.0)
    assert all(value.dtype == torch.float32 for value in loss.state_dict().values() if value.is_floating_point())
    with pytest.raises(O2OSpecError, match="compile the update with matmul_dtype"):
        update.compile()
    with pytest.raises(O2OSpecError, match="compile the update with matmul_dtype"):
        compiled.autocast()
    monkeypatch.setattr("torchrl_o2o.updates.update.has_bfloat16", lambda device: False)
    with pytest.raises(O2OSpecError, match="expected hardware with instructions for bfloat16"):
        update.autocast()
