# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Reference returns for normalized scores, each with its source.

A score is 100 (R - R_random) / (R_expert - R_random) of an undiscounted raw return R. References belong to an
environment *version*: on Hopper a random policy returns -20.3 in D4RL's (version 2) and 16.7 in version 5. Therefore
D4RL's table is used only for D4RL's data set names, and the table of version 5 only for gymnasium's ids.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
from numpy.typing import ArrayLike

from torchrl_o2o.errors import O2OSpecError, check_unmasked

__all__ = [
    "D4RL_REFERENCES",
    "OWN_REFERENCES",
    "V5_REFERENCES",
    "Reference",
    "find_reference",
    "get_reference",
    "normalized_score",
]


@dataclass(frozen=True)
class Reference:
    """The two returns that correspond to scores of 0 and 100.

    Args:
        random: return of the uniformly random policy.
        expert: return of the expert, above that of ``random``.
        source: source of both numbers.

    Raises:
        O2OSpecError: if one is not finite, or the expert's is not above the random policy's.

    Examples:
        >>> Reference(0.0, 1.0, "by definition").expert
        1.0
    """

    random: float
    expert: float
    source: str

    def __post_init__(self) -> None:
        """Raise for returns that do not define a score."""
        if not -math.inf < self.random < self.expert < math.inf:
            raise O2OSpecError(
                f"got random={self.random}, expert={self.expert}, expected two finite returns, the expert's above the "
                f"random policy's"
            )


_D4RL = "D4RL, d4rl/infos.py"
#: D4RL's references by environment, the same for all its data sets of that environment.
D4RL_REFERENCES: Mapping[str, Reference] = MappingProxyType(
    {
        "halfcheetah": Reference(-280.178953, 12135.0, _D4RL),
        "hopper": Reference(-20.272305, 3234.3, _D4RL),
        "walker2d": Reference(1.629008, 4592.3, _D4RL),
        "ant": Reference(-325.6, 3879.7, _D4RL),
        "antmaze": Reference(0.0, 1.0, _D4RL),
        "pen": Reference(96.262799, 3076.8331017826877, _D4RL),
        "hammer": Reference(-274.856578, 12794.134825156867, _D4RL),
        "relocate": Reference(-6.425911, 4233.877797728884, _D4RL),
        "door": Reference(-56.512833, 2880.5693087298737, _D4RL),
        "kitchen": Reference(0.0, 4.0, _D4RL),
        "maze2d-umaze": Reference(23.85, 161.86, _D4RL),
        "maze2d-medium": Reference(13.13, 277.39, _D4RL),
        "maze2d-large": Reference(6.7, 273.99, _D4RL),
    }
)

_V5 = "random: uniform actions, 100 episodes, gymnasium 1.4.0 with mujoco 4.0.0; expert: {} in Farama's model card"
#: References for gymnasium's version 5. Ant-v5 is absent: no expert's return is published for it.
V5_REFERENCES: Mapping[str, Reference] = MappingProxyType(
    {
        "HalfCheetah-v5": Reference(-282.49, 17641.80, _V5.format("TQC expert")),
        "Hopper-v5": Reference(16.67, 4098.17, _V5.format("expert")),
        "Walker2d-v5": Reference(1.77, 6956.61, _V5.format("expert")),
    }
)

_SPARSE = "sparse reward of 1 at the goal, which ends the episode: the return is the success"
#: References of this package's own tasks.
OWN_REFERENCES: Mapping[str, Reference] = MappingProxyType(
    {f"o2o/PointMaze-{size}-v0": Reference(0.0, 1.0, _SPARSE) for size in ("UMaze", "Medium", "Large")}
)

# The data set names of D4RL's table; the first group is the key. Dense mazes have other references.
_D4RL_NAMES = (
    r"(halfcheetah|hopper|walker2d|ant)-(?:random|medium|medium-replay|full-replay|medium-expert|expert)-v[0-2]",
    r"(antmaze)-(?:umaze|umaze-diverse|(?:medium|large)-(?:play|diverse))-v[0-2]",
    r"(pen|hammer|relocate|door)-(?:human|cloned|expert)-v[01]",
    r"(kitchen)-(?:complete|partial|mixed)-v0",
    r"(maze2d-(?:umaze|medium|large))-v[12]",
)


def find_reference(task: str) -> Reference | None:
    """Look up the reference of a task.

    Args:
        task: a D4RL data set ("hopper-medium-v2"), a gymnasium id of version 5 ("Hopper-v5") or an own task
            ("o2o/PointMaze-Medium-v0").

    Returns:
        Its reference, or ``None`` if there is none for exactly this version.

    Examples:
        >>> from torchrl_o2o.envs import find_reference
        >>> find_reference("hopper-medium-replay-v2").random, find_reference("Hopper-v5").random
        (-20.272305, 16.67)
        >>> find_reference("Hopper-v4") is None
        True
    """
    if task in V5_REFERENCES or task in OWN_REFERENCES:
        return V5_REFERENCES.get(task) or OWN_REFERENCES[task]
    matches = (re.fullmatch(pattern, task) for pattern in _D4RL_NAMES)
    return next((D4RL_REFERENCES[match[1]] for match in matches if match), None)


def get_reference(task: str) -> Reference:
    """Like :func:`find_reference`, but raises if there is no reference.

    Args:
        task: as in :func:`find_reference`.

    Returns:
        The reference.

    Raises:
        O2OSpecError: if there is no reference for the task.

    Examples:
        >>> from torchrl_o2o.envs import get_reference
        >>> get_reference("antmaze-umaze-v2")
        Reference(random=0.0, expert=1.0, source='D4RL, d4rl/infos.py')
    """
    reference = find_reference(task)
    if reference is None:
        known = ", ".join([*V5_REFERENCES, *OWN_REFERENCES])
        raise O2OSpecError(
            f"got {task!r}, which has no reference return, expected one of {known} or a D4RL data set name such as "
            "'hopper-medium-v2'. Pass a Reference(random, expert, source) to use your own."
        )
    return reference


def normalized_score(returns: ArrayLike, task: str | Reference) -> np.ndarray:
    """Scale raw returns so that a random policy scores 0 and the reference expert 100 (D4RL, Fu et al., 2020).

    Args:
        returns: undiscounted returns in the environment's own reward, any shape.
        task: a name for :func:`find_reference`, or a :class:`Reference`.

    Returns:
        Scores of the same shape, float64; not clipped.

    Raises:
        O2OSpecError: if there is no reference for the task, or returns are masked.

    Examples:
        >>> from torchrl_o2o.envs import Reference, normalized_score
        >>> normalized_score([-280.178953, 12135.0], "halfcheetah-medium-v2")
        array([  0., 100.])
        >>> float(normalized_score(3.0, Reference(random=2.0, expert=4.0, source="own measurement")))
        50.0
    """
    reference = get_reference(task) if isinstance(task, str) else task
    check_unmasked("returns", returns)
    return 100.0 * (np.asarray(returns, dtype=np.float64) - reference.random) / (reference.expert - reference.random)
