# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Offline data sets: one module per source; all produce the same TED TensorDict."""

from __future__ import annotations
