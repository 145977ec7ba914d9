# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Checkpoints of a whole run. A crash at any time leaves the newest complete checkpoint intact.

``FOLDER/step-N/`` holds one file per object, the generators' states and a manifest with every file's size and hash. It
is written as ``step-N.tmp/``, flushed, and put in place by one rename. Readers take the newest checkpoint that is
complete and unaltered. The rows of the replay buffer are in ``FOLDER/segments/``, in files that never change and that
later checkpoints share, so that a save writes only new rows. A checkpoint contains no code, only tensors and plain
values, which are read with ``torch.load(weights_only=True)``.
"""

from __future__ import annotations

from torchrl_o2o.checkpoint.checkpointer import Checkpointer
from torchrl_o2o.checkpoint.lockstep import common_step
from torchrl_o2o.checkpoint.reading import load_objects
from torchrl_o2o.checkpoint.rng import restore_rng_state, rng_state
from torchrl_o2o.checkpoint.streams import RandomStream

__all__ = [
    "Checkpointer",
    "RandomStream",
    "common_step",
    "load_objects",
    "restore_rng_state",
    "rng_state",
]
