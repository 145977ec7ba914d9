# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Offline-to-online reinforcement learning components for TorchRL.

Importing this package is cheap: nothing here imports torch. Take the parts from their namespaces,
:mod:`torchrl_o2o.data`, :mod:`torchrl_o2o.modules`, :mod:`torchrl_o2o.objectives` and the leaves
:mod:`torchrl_o2o.envs`, :mod:`torchrl_o2o.trainers`, :mod:`torchrl_o2o.record`, :mod:`torchrl_o2o.checkpoint`.
"""

from __future__ import annotations

from torchrl_o2o._moved import install as _install

__all__ = ["__version__"]

__version__ = "0.1.0"

_install()
