# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""From configuration to phases; the scripts' own tests run all of it."""

from __future__ import annotations

import pytest
import torch

from torchrl_o2o.errors import O2OSpecError
from torchrl_o2o.modules import make_gaussian_actor
from torchrl_o2o.objectives import BCLoss
from torchrl_o2o.scripts import script_config
from torchrl_o2o.trainers import compiling
from torchrl_o2o.trainers.compiling import choose_route, product_dtype
from torchrl_o2o.updates import Descend, Update, matmul_route


@pytest.mark.parametrize("name", ["onednn", "auto"])
def test_the_route_of_products_is_named_or_probed_and_put_back(name: str) -> None:
    with matmul_route("default"):
        choose_route(name)
    with pytest.raises(O2OSpecError, match="matmul_route"):
        choose_route("mkl")


def test_products_are_shortened_only_on_request_and_only_compiled() -> None:
    for dtype, compiled, expected in (("float32", False, None), ("bfloat16", True, torch.bfloat16)):
        assert product_dtype(dtype, compiled=compiled) is expected
    with pytest.raises(O2OSpecError, match="compile=true"):
        product_dtype("bfloat16", compiled=False)
    with pytest.raises(O2OSpecError, match="float16"):
        product_dtype("float16")


@pytest.mark.parametrize("compiled", [False, True])
def test_scripts_keep_memory_if_they_compile(monkeypatch: pytest.MonkeyPatch, compiled: bool) -> None:
    calls: list[None] = []
    monkeypatch.setattr(compiling, "keep_freed_memory", lambda: calls.append(None))
    actor = make_gaussian_actor(3, 2, hidden_sizes=(8,))
    update = Update(BCLoss(actor), Descend("actor", torch.optim.Adam(actor.parameters())))
    compiling.compiled(update, script_config("bc", [f"compile={str(compiled).lower()}"]))
    assert len(calls) == compiled
