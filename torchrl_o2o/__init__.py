# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Offline-to-online reinforcement learning components for TorchRL.

Importing this package is cheap: nothing here imports torch. Import the components from the subpackages, for example
from :mod:`torchrl_o2o.data`, :mod:`torchrl_o2o.modules`, :mod:`torchrl_o2o.objectives` and
:mod:`torchrl_o2o.trainers`.
"""

from __future__ import annotations

from torchrl_o2o._moved import install as _install

__all__ = ["__version__"]

__version__ = "0.1.0"

_install()
