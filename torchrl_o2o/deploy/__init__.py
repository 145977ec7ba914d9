# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Policies that leave the package: export."""

from __future__ import annotations

from torchrl_o2o.deploy.export import export_policy

__all__ = [
    "export_policy",
]
