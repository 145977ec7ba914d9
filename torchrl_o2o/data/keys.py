# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""The keys of a stored transition: TorchRL's TED layout, written down once."""

from __future__ import annotations

from tensordict import NestedKey

__all__ = ["EPISODE", "TRANSITION"]

#: What a loss reads and a replay buffer stores. ``done`` is always ``terminated | truncated``.
TRANSITION: tuple[NestedKey, ...] = (
    "observation",
    "action",
    ("next", "observation"),
    ("next", "reward"),
    ("next", "terminated"),
    ("next", "truncated"),
    ("next", "done"),
)

#: The number of a row's episode in an offline data set, int64, contiguous from 0; not part of a replayed transition.
EPISODE: NestedKey = "episode"
