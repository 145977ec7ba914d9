# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Transitions that the tests of several transforms share."""

from __future__ import annotations

import numpy as np
import torch
from tensordict import TensorDict
from torch import Tensor

from tests.golden_vectors import GOLDEN
from torchrl_o2o.data import load_offline


def load(case: str) -> dict[str, Tensor]:
    """The numbers of a golden file; these files also hold an environment's name."""
    with np.load(GOLDEN / f"{case}.npz", allow_pickle=False) as file:
        return {key: torch.from_numpy(file[key]) for key in file.files if file[key].dtype.kind in "fi"}


def golden_data(case: str, lengths: list[int] | None = None) -> TensorDict:
    """The golden rows as transitions in float64, episodes by length or by terminal and time limit."""
    tree = load(case)
    size = len(tree["dataset/reward"])
    arrays = {
        "observations": tree["dataset/observation"].numpy(),
        "next_observations": tree["dataset/observation"].numpy(),
        "actions": torch.zeros(size, 1).numpy(),
        "rewards": tree["dataset/reward"].numpy(),
        "terminals": tree["dataset/terminated"].numpy(),
    }
    limit = int(tree["hp/max_episode_steps"])
    if lengths is not None:
        arrays["episode"] = torch.arange(len(lengths)).repeat_interleave(torch.tensor(lengths)).numpy()
    data = load_offline(arrays, max_episode_steps=limit, min_episode_length=1)
    data["observation"] = tree["dataset/observation"]
    data["next", "reward"] = tree["dataset/reward"].unsqueeze(-1)
    return data


def steps_of_two_episodes() -> TensorDict:
    """Rewards 1, 2, 4, 8 up to a time limit, then 1, 1 up to a terminal; states are numbered."""
    flag = torch.zeros(6, 1, dtype=torch.bool)
    terminated, truncated = flag.clone(), flag.clone()
    terminated[5], truncated[3] = True, True
    return TensorDict(
        {
            "observation": torch.arange(6.0).unsqueeze(-1),
            "action": torch.zeros(6, 1),
            "episode": torch.tensor([0, 0, 0, 0, 1, 1]),
            "next": {
                "observation": torch.arange(6.0).unsqueeze(-1) + 100.0,
                "reward": torch.tensor([1.0, 2.0, 4.0, 8.0, 1.0, 1.0]).unsqueeze(-1),
                "terminated": terminated,
                "truncated": truncated,
                "done": terminated | truncated,
            },
        },
        [6],
    )
