# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Whole updates of an agent, written as a list of steps, which run eagerly, compiled, or stacked over agents."""

from __future__ import annotations

from torchrl_o2o._moved import old_names
from torchrl_o2o.updates.agents import StackedNonFiniteError, StackedUpdate
from torchrl_o2o.updates.first_edition import compile_update, stack_updates
from torchrl_o2o.updates.matmul import (
    MatmulReport,
    RouteMeasurement,
    choose_matmul_route,
    matmul_route,
    probe_matmul_routes,
    set_matmul_route,
)
from torchrl_o2o.updates.memory import keep_freed_memory
from torchrl_o2o.updates.natural import NaturalGradient
from torchrl_o2o.updates.steps import Copy, Descend, Every, Ghost, Joint, MoveTargets, Repeat, Step, Whole
from torchrl_o2o.updates.update import Update

__all__ = [
    "Copy",
    "Descend",
    "Every",
    "Ghost",
    "Joint",
    "MatmulReport",
    "MoveTargets",
    "NaturalGradient",
    "Repeat",
    "RouteMeasurement",
    "StackedNonFiniteError",
    "StackedUpdate",
    "Step",
    "Update",
    "Whole",
    "choose_matmul_route",
    "compile_update",
    "keep_freed_memory",
    "matmul_route",
    "probe_matmul_routes",
    "set_matmul_route",
    "stack_updates",
]

__getattr__ = old_names(__name__, {"Measured": RouteMeasurement})
