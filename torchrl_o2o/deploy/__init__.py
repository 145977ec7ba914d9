# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Deploy policies: one policy file for all methods, and export to other runtimes."""

from __future__ import annotations

from torchrl_o2o.deploy.export import export_policy
from torchrl_o2o.deploy.policy import PolicyFile, load_policy, policy_saver, read_policy, save_policy

__all__ = [
    "PolicyFile",
    "export_policy",
    "load_policy",
    "policy_saver",
    "read_policy",
    "save_policy",
]
