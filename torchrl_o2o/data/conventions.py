# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Reward and observation conventions of the papers, by method and domain: one table, applied in one place.

The papers use different reward scales. :func:`get_convention` returns the convention of a method in a domain.
:class:`FittedConvention` computes the statistics on a data set, and applies the convention exactly once to data, to
online transitions and to environments. Logged returns are never changed. The convention is saved with the policy,
because the policy is useless without it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from types import MappingProxyType
from typing import Any

import gymnasium
import torch
from tensordict import TensorDictBase

from torchrl_o2o._moved import renamed_arguments
from torchrl_o2o.arguments import checked_arguments
from torchrl_o2o.data.keys import CONVENTION_APPLIED
from torchrl_o2o.data.transforms import AffineReward, ObservationStats, locomotion_reward
from torchrl_o2o.envs.units import standardized
from torchrl_o2o.errors import O2ODataError, check_number, check_option

__all__ = ["CONVENTIONS", "Convention", "FittedConvention", "get_convention"]


@checked_arguments
@dataclass(frozen=True)
class Convention:
    """The transforms of rewards and observations before learning.

    Args:
        reward_scale: factor of the reward. Defaults to 1.
        reward_shift: added after scaling. Defaults to 0.
        scale_by_returns: whether rewards are first multiplied by 1000 and divided by the range of the data's returns
            (IQL). Defaults to ``False``.
        normalize_observations: whether observations are standardized by the data's statistics (CORL). Defaults to
            ``False``.
        observation_eps: added to their standard deviations. Defaults to 1e-3 (CORL); ODT's is 1e-6.
        ignore_termination: whether values are learned as if no episode terminated: ``terminated`` becomes ``False``,
            and such an end counts as ``truncated`` (AWAC's authors on hands). Defaults to ``False``.

    Examples:
        >>> Convention(reward_scale=10.0, reward_shift=-5.0)
        Convention(reward_scale=10.0, reward_shift=-5.0, scale_by_returns=False, normalize_observations=False, ...)
    """

    reward_scale: float = 1.0
    reward_shift: float = 0.0
    scale_by_returns: bool = False
    normalize_observations: bool = False
    observation_eps: float = 1e-3
    ignore_termination: bool = False

    def __post_init__(self) -> None:
        """Raise for factors that would erase rewards or change their sign."""
        check_number("reward_scale", self.reward_scale, above=0)
        check_number("reward_shift", self.reward_shift)
        check_number("observation_eps", self.observation_eps, above=0)

    def fit(self, offline: TensorDictBase) -> FittedConvention:
        """Compute the numbers of the convention from a data set.

        Args:
            offline: transitions [N] as recorded, with ``episode``.

        Returns:
            The transforms for these data and for everything that follows them.

        Raises:
            O2ODataError: if rewards are to be scaled by returns that are all equal, or a convention was already applied
                to the data.

        Examples:
            >>> from torchrl_o2o.testing import ContextualTargetEnv, probe_transitions
            >>> Convention(reward_shift=-1.0).fit(probe_transitions(ContextualTargetEnv(), 20)).reward
            AffineReward(scale=1.0, shift=-1.0)
        """
        _refuse_applied(offline)
        spread = locomotion_reward(offline).scale if self.scale_by_returns else 1.0
        stats = ObservationStats.of(offline, eps=self.observation_eps) if self.normalize_observations else None
        reward = AffineReward(self.reward_scale * spread, self.reward_shift)
        return FittedConvention(reward, stats, ignore_termination=self.ignore_termination)


Convention.__init__ = renamed_arguments(normalise_observations="normalize_observations")(Convention.__init__)


@dataclass(frozen=True)
class FittedConvention:
    """A convention with the numbers computed from a data set.

    :meth:`data` and :meth:`online` mark the rows that they return (``"convention_applied"``), and refuse marked rows.
    Replay buffers do not store the mark.

    Args:
        reward: the reward's transform.
        observation: the statistics for standardization; ``None`` leaves observations unchanged.
        ignore_termination: see :class:`Convention`. Defaults to ``False``.

    Examples:
        >>> fitted = FittedConvention(AffineReward(shift=-1.0), None)
        >>> FittedConvention.from_state_dict(fitted.state_dict()) == fitted
        True
    """

    reward: AffineReward
    observation: ObservationStats | None
    ignore_termination: bool = False

    def data(self, offline: TensorDictBase) -> TensorDictBase:
        """Transform recorded transitions [N]; the input is not modified.

        Raises:
            O2ODataError: if a convention was already applied to them.
            O2OSpecError: if the observations have another width than the statistics.
        """
        data = self.online(offline)
        return data if self.observation is None else self.observation(data)

    def online(self, transition: TensorDictBase) -> TensorDictBase:
        """Transform transitions collected in :meth:`env`, whose observations are already standardized.

        Raises:
            O2ODataError: if a convention was already applied to them.
        """
        _refuse_applied(transition)
        data = self.reward(transition)
        if self.ignore_termination:
            terminated = data.get(("next", "terminated"))
            data.set(("next", "truncated"), data.get(("next", "truncated")) | terminated)
            data.set(("next", "terminated"), torch.zeros_like(terminated))
        reward = data.get(("next", "reward"))
        return data.set(CONVENTION_APPLIED, reward.new_ones(data.batch_size, dtype=torch.bool))

    def env(self, env: gymnasium.Env) -> gymnasium.Env:
        """Wrap an environment so that it standardizes observations. Rewards, and so returns, are unchanged.

        Raises:
            O2OSpecError: if its observations have another width than the statistics, or are already standardized.
        """
        if self.observation is None:
            return env
        mean, scale = self.observation.mean.numpy(), self.observation.scale.numpy()
        self.observation.check(env.observation_space.shape)
        return standardized(env, mean, scale)

    def state_dict(self) -> dict[str, Any]:
        """Plain values and tensors, for a checkpoint or a policy file."""
        observation = None if self.observation is None else self.observation.state_dict()
        return {
            "reward": asdict(self.reward),
            "observation": observation,
            "ignore_termination": self.ignore_termination,
        }

    @classmethod
    def from_state_dict(cls, state: Mapping[str, Any]) -> FittedConvention:
        """Rebuild from :meth:`state_dict`; states from before ``ignore_termination`` existed never ignored it."""
        observation = state["observation"]
        stats = None if observation is None else ObservationStats.from_state_dict(observation)
        ignored = bool(state.get("ignore_termination", False))
        return cls(AffineReward(**state["reward"]), stats, ignore_termination=ignored)

    def same_as(self, other: FittedConvention) -> bool:
        """Whether two give the same numbers.

        Examples:
            >>> one, other = (FittedConvention(AffineReward(shift=shift), None) for shift in (0.0, -1.0))
            >>> one.same_as(one), one.same_as(other)
            (True, False)
        """
        mine, theirs = self.observation, other.observation
        if (self.reward, self.ignore_termination) != (other.reward, other.ignore_termination):
            return False
        if (mine is None) != (theirs is None):
            return False
        return (
            mine is None
            or theirs is None
            or (torch.equal(mine.mean, theirs.mean) and torch.equal(mine.scale, theirs.scale))
        )


def _refuse_applied(data: TensorDictBase) -> None:
    """Raise for rows that :meth:`FittedConvention.data` or :meth:`FittedConvention.online` returned."""
    if data.get(CONVENTION_APPLIED, None) is not None:
        raise O2ODataError(
            "got rows to which a convention was already applied, expected rows as recorded or collected, because a "
            "second application scales rewards and standardizes observations again; apply the convention once, to the "
            "raw rows"
        )


_PLAIN, _MINUS_ONE = Convention(), Convention(reward_shift=-1.0)
_STANDARDIZED = Convention(normalize_observations=True)
_STANDARDIZED_MINUS_ONE = Convention(reward_shift=-1.0, normalize_observations=True)
_ODT = Convention(normalize_observations=True, observation_eps=1e-6)
_MAZE_TEN, _HAND_TEN = Convention(10.0, -5.0), Convention(10.0, 5.0)


def _row(locomotion: Convention, maze: Convention, adroit: Convention) -> Mapping[str, Convention]:
    return MappingProxyType({"locomotion": locomotion, "antmaze": maze, "pointmaze": maze, "adroit": adroit})


#: By method, then domain. Recorded rewards are 0 and 1 in mazes, -1 and 0 in binary Adroit.
CONVENTIONS: Mapping[str, Mapping[str, Convention]] = MappingProxyType(
    {
        "rlpd": _row(_PLAIN, _MINUS_ONE, _PLAIN),  # its authors' code; A3RL the same
        "a3rl": _row(_PLAIN, _MINUS_ONE, _PLAIN),
        "aca": _row(_PLAIN, _MINUS_ONE, _PLAIN),  # its authors shift online only, but both phases need the same scale
        "off2on": _row(_PLAIN, _PLAIN, _PLAIN),
        "awac": _row(_STANDARDIZED, _STANDARDIZED_MINUS_ONE, _STANDARDIZED),  # CORL
        "awac_authors": _row(_PLAIN, _MINUS_ONE, _PLAIN),  # its authors' code; mazes like the others
        "iql": _row(Convention(scale_by_returns=True), _MINUS_ONE, _PLAIN),  # its authors' code
        "iql_corl": _row(_STANDARDIZED, _STANDARDIZED_MINUS_ONE, _STANDARDIZED),  # CORL, except hopper's scaled rewards
        "td3_bc": _row(_STANDARDIZED, _STANDARDIZED_MINUS_ONE, _STANDARDIZED),  # CORL
        "bc": _row(_STANDARDIZED, _STANDARDIZED_MINUS_ONE, _STANDARDIZED),  # CORL
        "odt": _row(_ODT, _ODT, _ODT),  # its authors' code; target returns are in the environment's units
        "pex": _row(_PLAIN, _MINUS_ONE, _PLAIN),  # its authors' code
        "sope": _row(_PLAIN, _MINUS_ONE, _PLAIN),  # its paper has locomotion only
        "rebrac": _row(_PLAIN, Convention(reward_scale=100.0), _PLAIN),  # its authors' code
        "qc": _row(_PLAIN, _MINUS_ONE, _PLAIN),  # FQL's and QC's codes
        "spot": _row(_PLAIN, _MINUS_ONE, _PLAIN),  # CORL
        "brac": _row(_PLAIN, _MINUS_ONE, _PLAIN),  # BEAR and AWR as well; mazes like the others
        "cql": _row(_STANDARDIZED, _MAZE_TEN, _HAND_TEN),  # CORL offline; its authors on mazes and hands
        "cal_ql": _row(_PLAIN, _MAZE_TEN, _HAND_TEN),  # its authors' code
    }
)


def get_convention(method: str, domain: str) -> Convention:
    """Look up the convention of a method in a domain.

    SAMG uses the row of the learner that it wraps, without standardized observations.

    Args:
        method: a key of :data:`CONVENTIONS`.
        domain: ``"locomotion"``, ``"antmaze"``, ``"pointmaze"`` or ``"adroit"`` (binary rewards).

    Returns:
        The convention, not fitted to data yet.

    Raises:
        O2OSpecError: if there is no such row or column.

    Examples:
        >>> get_convention("cal_ql", "antmaze").reward_scale
        10.0
    """
    check_option("method", method, tuple(CONVENTIONS))
    check_option("domain", domain, tuple(CONVENTIONS[method]))
    return CONVENTIONS[method][domain]
