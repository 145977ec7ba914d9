# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Checkpoints of a whole run that a crash at any instant cannot spoil.

``FOLDER/step-N/`` holds one file per object, the generators' states and a manifest with every file's size and hash. It
is written as ``step-N.tmp/``, flushed, and put in place by one rename; whoever reads takes the newest one that is
complete and unaltered. The rows of the replay buffer lie in ``FOLDER/segments/``, in files that never change and that
successive checkpoints share, so that a save costs what is new. Nothing in a checkpoint is code: tensors and plain
values only, read with ``torch.load(weights_only=True)``.
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
