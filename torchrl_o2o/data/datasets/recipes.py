# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""The data sets that this package makes itself: their names, environments and reference scores. Imports nothing heavy.

Reference scores belong to today's environments (-v5), not to D4RL's old ones: a random policy's mean return over 100
episodes and the expert's on Minari's model cards (for Ant the medium one, no expert's being known). In the mazes a
return is the success.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

__all__ = ["LOCAL_DATASETS", "Recipe"]

Kind = Literal[
    "maze", "uniform", "linear-random", "linear-medium", "linear-mix", "medium", "expert", "medium-expert", "cloned"
]


@dataclass(frozen=True)
class Recipe:
    """How one local data set is made.

    Args:
        env_id: the environment, or one of this package's tasks.
        kind: what acts in it.
        num_steps: environment steps simulated by default.
        actor: the name of the environment's actor in a policy file; for linear policies that file's name.
        ref_min_score: return that counts as a score of 0.
        ref_max_score: return that counts as a score of 100.
    """

    env_id: str
    kind: Kind
    num_steps: int
    actor: str | None = None
    ref_min_score: float | None = None
    ref_max_score: float | None = None

    @property
    def needs_policy(self) -> bool:
        """Whether a policy has to be given to make it."""
        return self.kind in ("medium", "expert", "medium-expert", "cloned")

    @property
    def description(self) -> str:
        """One line on how the data come about."""
        return f"{_HOW[self.kind]}, {self.env_id}"


_HOW: Mapping[str, str] = {
    "maze": "a noisy PD controller chases random goals along shortest paths, relabelled to the task's goal",
    "uniform": "uniform actions",
    "linear-random": "untrained linear policies, one an episode, action noise 0.1",
    "linear-medium": "one half-trained linear policy, action noise 0.1",
    "linear-mix": "snapshots of a linear policy's training, one an episode, action noise 0.1",
    "medium": "a given half-trained actor",
    "expert": "a given expert actor",
    "medium-expert": "a given half-trained actor, then a given expert",
    "cloned": "a given expert actor, action noise between 0 and 0.5 drawn anew each episode",
}

_LOCOMOTION: Mapping[str, tuple[str, str, float, float]] = {
    "halfcheetah": ("HalfCheetah-v5", "HalfCheetah", -282.49, 17641.80),
    "hopper": ("Hopper-v5", "Hopper", 16.67, 4098.17),
    "walker2d": ("Walker2d-v5", "Walker2d", 1.77, 6956.61),
    "ant": ("Ant-v5", "Ant", -48.05, 6022.47),
}


def _recipes() -> dict[str, Recipe]:
    recipes: dict[str, Recipe] = {}
    for size, task in (("umaze", "UMaze"), ("medium", "Medium"), ("large", "Large")):
        recipes[f"o2o/pointmaze/{size}-play-v0"] = Recipe(f"o2o/PointMaze-{task}-v0", "maze", 100_000, None, 0.0, 1.0)
    for name in ("halfcheetah", "hopper"):
        env_id, _, low, high = _LOCOMOTION[name]
        for kind in ("linear-random", "linear-medium", "linear-mix"):
            recipes[f"o2o/{name}/{kind}-v0"] = Recipe(env_id, kind, 100_000, name, low, high)
    for name, (env_id, actor, low, high) in _LOCOMOTION.items():
        recipes[f"o2o/{name}/random-v0"] = Recipe(env_id, "uniform", 50_000, None, low, high)
        for kind in ("medium", "expert", "medium-expert"):
            recipes[f"o2o/{name}/{kind}-v0"] = Recipe(env_id, kind, 100_000, actor, low, high)
    for name in ("door", "pen", "hammer", "relocate"):
        for kind in ("expert", "cloned"):
            recipes[f"o2o/adroit/{name}/{kind}-v0"] = Recipe(f"AdroitHand{name.title()}Sparse-v1", kind, 20_000, name)
    return recipes


#: Every name that ``make_local_dataset`` takes.
LOCAL_DATASETS: Mapping[str, Recipe] = MappingProxyType(_recipes())
