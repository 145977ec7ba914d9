# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Whole updates as compiled functions: :func:`compile_update`, and of many agents at once: :func:`stack_updates`."""

from __future__ import annotations

from torchrl_o2o.compiled.stacked import StackedUpdate, stack_updates
from torchrl_o2o.compiled.update import CompiledUpdate, compile_update

__all__ = ["CompiledUpdate", "StackedUpdate", "compile_update", "stack_updates"]
