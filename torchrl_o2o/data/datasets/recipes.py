# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""The data sets that this package can make: names, environments and makers. Importing this module is cheap."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

__all__ = ["LOCAL_DATASETS", "Recipe"]

Kind = Literal[
    "maze",
    "uniform",
    "chase",
    "linear-random",
    "linear-medium",
    "linear-mix",
    "medium",
    "expert",
    "medium-expert",
    "cloned",
    "teacher-medium",
    "teacher-replay",
    "teacher-medium-expert",
    "teacher-expert",
]


@dataclass(frozen=True)
class Recipe:
    """The recipe of a local data set.

    Args:
        env_id: the environment, or one of this package's tasks.
        kind: the kind of policy that acts in it.
        num_steps: environment steps simulated by default.
        actors: groups of arrays in the policy file, each acting for an equal share of the steps; for linear policies
            and teachers, the name of the packaged file.
    """

    env_id: str
    kind: Kind
    num_steps: int
    actors: tuple[str, ...] = ()

    @property
    def needs_policy(self) -> bool:
        """Whether it needs a policy from the caller."""
        return self.kind in ("medium", "expert", "medium-expert", "cloned")

    @property
    def description(self) -> str:
        """One line about how the data are made."""
        return f"{_HOW[self.kind]}, {self.env_id}"


_HOW: Mapping[str, str] = {
    "maze": "a noisy PD controller chases random goals along shortest paths, relabeled to the task's goal",
    "uniform": "uniform actions",
    "chase": "a controller that steers straight to the target it sees, action noise 0.7",
    "linear-random": "untrained linear policies, one an episode, action noise 0.1",
    "linear-medium": "one half-trained linear policy, action noise 0.1",
    "linear-mix": "snapshots of a linear policy's training, one an episode, action noise 0.1",
    "medium": "a given half-trained actor",
    "expert": "a given expert actor",
    "medium-expert": "a given half-trained actor, then a given expert",
    "cloned": "a given expert actor, action noise between 0 and 0.5 drawn for each episode",
    "teacher-medium": "the packaged teacher at about a third of its best return",
    "teacher-replay": "the packaged teacher's snapshots up to medium, in the order of training",
    "teacher-medium-expert": "the packaged teacher, half at about a third of its best return, half at its best",
    "teacher-expert": "the packaged teacher at its best return",
}

#: Environments that have a packaged teacher.
_LOCOMOTION = ("HalfCheetah", "Hopper", "Walker2d", "Ant")
#: The data sets of a teacher, and how each is made.
_TEACHERS: Mapping[str, Kind] = {
    "medium": "teacher-medium",
    "medium-replay": "teacher-replay",
    "medium-expert": "teacher-medium-expert",
    "expert": "teacher-expert",
}


def _recipes() -> dict[str, Recipe]:
    recipes: dict[str, Recipe] = {}
    for size, task in (("umaze", "UMaze"), ("medium", "Medium"), ("large", "Large")):
        recipes[f"o2o/pointmaze/{size}-play-v0"] = Recipe(f"o2o/PointMaze-{task}-v0", "maze", 100_000)
    for env in _LOCOMOTION[:2]:
        for kind in ("linear-random", "linear-medium", "linear-mix"):
            recipes[f"o2o/{env.lower()}/{kind}-v0"] = Recipe(
                f"{env}-v5", kind, 100_000, (f"{env.lower()}_linear_f32.npz",)
            )
    for env in _LOCOMOTION:
        recipes[f"o2o/{env.lower()}/random-v0"] = Recipe(f"{env}-v5", "uniform", 50_000)
        # Names in Stable-Baselines3's zoo, whose SAC actors are the weaker ones.
        medium, expert = f"sac_{env}/", f"tqc_{env}/"
        shares: dict[Kind, tuple[str, ...]] = {
            "medium": (medium,),
            "expert": (expert,),
            "medium-expert": (medium, expert),
        }
        for kind, actors in shares.items():
            recipes[f"o2o/{env.lower()}/{kind}-v0"] = Recipe(f"{env}-v5", kind, 100_000, actors)
        recipes[f"o2o/{env.lower()}/random-v1"] = Recipe(f"{env}-v5", "uniform", 200_000)
    for env in _LOCOMOTION:
        for level, kind in _TEACHERS.items():
            recipes[f"o2o/{env.lower()}/{level}-v1"] = Recipe(f"{env}-v5", kind, 200_000, ("teachers_f32.npz",))
    for name in ("door", "pen", "hammer", "relocate"):
        for kind in ("expert", "cloned"):
            recipes[f"o2o/adroit/{name}/{kind}-v0"] = Recipe(
                f"AdroitHand{name.title()}Sparse-v1", kind, 20_000, (f"{name}/",)
            )
    recipes["o2o/dotreach/chase-v0"] = Recipe("o2o/DotReach-v0", "chase", 1_000)
    return recipes


#: Every name that ``make_local_dataset`` takes.
LOCAL_DATASETS: Mapping[str, Recipe] = MappingProxyType(_recipes())
