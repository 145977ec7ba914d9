# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Rewards and their sums: scaling, episodes' returns, Monte-Carlo returns.

Scale rewards first, because returns are sums of scaled rewards.

Shapes: N transitions, E episodes.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Literal

import torch
from tensordict import TensorDictBase
from torch import Tensor
from torchrl.envs.transforms import RewardScaling

from torchrl_o2o.data.episodes import column, number_episodes
from torchrl_o2o.data.keys import check_entries, check_one_step
from torchrl_o2o.errors import O2ODataError, O2OSpecError, check_number, check_option

__all__ = ["AffineReward", "add_mc_return", "episode_returns", "locomotion_reward", "mc_return", "real_dtype"]


@dataclass(frozen=True)
class AffineReward:
    """The reward transform ``r -> scale * r + shift``.

    What papers use: none for RLPD; ``shift=-1`` for AntMaze (RLPD, IQL); ``scale=10, shift=-5`` for AntMaze and
    ``scale=10, shift=5`` for binary Adroit with rewards in {-1, 0} (CQL, Cal-QL).

    Args:
        scale: factor.
        shift: added after scaling.

    Raises:
        O2OSpecError: if the factor is not positive, or either is not finite.

    Examples:
        >>> import torch
        >>> from tensordict import TensorDict
        >>> from torchrl_o2o.data.transforms import AffineReward
        >>> data = TensorDict({"next": {"reward": torch.tensor([[0.0], [1.0]])}}, [2])
        >>> AffineReward(10.0, -5.0)(data)["next", "reward"].squeeze(-1)
        tensor([-5.,  5.])
        >>> data["next", "reward"].squeeze(-1)
        tensor([0., 1.])
    """

    scale: float = 1.0
    shift: float = 0.0

    def __post_init__(self) -> None:
        """Raise for factors that would erase rewards or change their sign."""
        check_number("scale", self.scale, above=0)
        check_number("shift", self.shift)

    def __call__(self, data: TensorDictBase) -> TensorDictBase:
        """Return the data with transformed rewards, whole numbers as floating point; the input is not modified.

        Raises:
            O2ODataError: if rewards are missing, or are sums over several steps and there is a shift.
        """
        check_entries(data, ("next", "reward"))
        if self.shift:
            check_one_step(data, "a shift of the reward")
        reward = data.get(("next", "reward"))
        return data.copy().set(("next", "reward"), reward.to(real_dtype(reward)) * self.scale + self.shift)

    def transform(self) -> RewardScaling:
        """Return the same transform for a TorchRL environment."""
        return RewardScaling(loc=self.shift, scale=self.scale)


def episode_returns(data: TensorDictBase) -> Tensor:
    """Sum the rewards of each episode, undiscounted.

    Args:
        data: transitions [N] with ``episode``.

    Returns:
        [E] float64, in the order of the data.

    Raises:
        O2ODataError: if ``episode`` is missing, rows are shuffled, or there is not one reward a row.

    Examples:
        >>> import torch
        >>> from tensordict import TensorDict
        >>> from torchrl_o2o.data.transforms import episode_returns
        >>> data = TensorDict({"episode": torch.tensor([0, 0, 1]), "next": {"reward": torch.ones(3, 1)}}, [3])
        >>> episode_returns(data)
        tensor([2., 1.], dtype=torch.float64)
    """
    check_one_step(data, "an episode's return")
    episode, reward = number_episodes(data), _rewards(data).double()
    count = int(episode[-1]) + 1 if len(episode) else 0
    return reward.new_zeros(count).index_add_(0, episode, reward)


def locomotion_reward(data: TensorDictBase, *, max_episode_steps: int = 1000) -> AffineReward:
    """Return the scaling of locomotion rewards in papers on D4RL (IQL's ``normalize``, CORL's ``modify_reward``).

    ``r -> r * max_episode_steps / (highest return - lowest return)`` over the episodes of the data set.

    Args:
        data: transitions [N] with ``episode``.
        max_episode_steps: the environment's time limit.

    Raises:
        O2ODataError: if all episodes have the same return, there are no episodes, or ``episode`` is missing.

    Examples:
        >>> import torch
        >>> from tensordict import TensorDict
        >>> from torchrl_o2o.data.transforms import locomotion_reward
        >>> data = TensorDict({"episode": torch.tensor([0, 0, 1]), "next": {"reward": torch.ones(3, 1)}}, [3])
        >>> locomotion_reward(data)
        AffineReward(scale=1000.0, shift=0.0)
    """
    returns = episode_returns(data)
    if not len(returns):
        raise O2ODataError("got no transitions, expected episodes, by whose returns rewards are scaled")
    spread = float(returns.max() - returns.min())
    if not returns.isfinite().all():
        first = int((~returns.isfinite()).nonzero()[0])
        raise O2ODataError(f"episode {first} returns {float(returns[first])}; expected finite rewards to scale by.")
    if spread <= 0:
        raise O2ODataError(
            f"all {len(returns)} episodes return {float(returns[0]):g}; expected returns that differ: their "
            "range is the divisor."
        )
    return AffineReward(scale=max_episode_steps / spread)


def mc_return(reward: Tensor, segment: Tensor, gamma: float) -> Tensor:
    r"""Discounted sum of the rewards from each row to the end of its segment: :math:`G_t = r_t + \gamma G_{t+1}`.

    The sum over the next :math:`2^k` rows is built from two sums over :math:`2^{k-1}`, so the cost is
    :math:`N\log_2 T` whatever the segments' lengths T.

    Args:
        reward: [N].
        segment: [N] integers, equal for the rows of one segment, which are together and in order.
        gamma: discount in [0, 1].

    Returns:
        [N] in the reward's dtype, whole numbers as floating point; sums are formed in float64.

    Examples:
        >>> import torch
        >>> from torchrl_o2o.data.transforms import mc_return
        >>> mc_return(torch.tensor([1.0, 1.0, 1.0, 8.0]), torch.tensor([0, 0, 0, 1]), 0.5)
        tensor([1.7500, 1.5000, 1.0000, 8.0000])
    """
    total, factor, span = reward.double(), gamma, 1
    while span < len(total):
        together = segment[:-span] == segment[span:]
        if not together.any():
            break
        following = torch.where(together, total[span:], 0.0)
        total = torch.cat([total[:-span] + factor * following, total[-span:]])
        factor, span = factor * factor, 2 * span
    return total.to(real_dtype(reward))


def add_mc_return(
    data: TensorDictBase,
    *,
    gamma: float,
    failure_reward: float | None = None,
    failure_rule: Literal["all", "last"] = "all",
    key: str = "mc_return",
) -> TensorDictBase:
    r"""Add the Monte-Carlo return of each row, as Cal-QL needs it (Nakamoto et al. 2023).

    The sum ends with the episode, terminated or truncated. In sparse tasks, an unsuccessful episode cut by the time
    limit would look better than it is. With ``failure_reward``, its rows get the value of failing forever,
    :math:`r_{fail}/(1-\gamma)`.

    Args:
        data: transitions [N] with ``episode``, rewards already transformed.
        gamma: discount in [0, 1), or 1 without ``failure_reward``.
        failure_reward: the reward of a step without success, after the transforms of rewards; it is compared up to
            their rounding. ``None`` for dense rewards.
        failure_rule: an episode fails if ``"all"`` its rewards are ``failure_reward`` (the official Cal-QL), or if its
            ``"last"`` one is (CORL, which thereby discards successes before the end of an episode).
        key: entry for the returns, [N, 1].

    Returns:
        The data with the new entry; the input is not modified.

    Raises:
        O2ODataError: if ``episode`` is missing, rows are shuffled, or there is not one reward a row.
        O2OSpecError: if the discount is out of range, or the rule is unknown.

    Warns:
        UserWarning: if rewards differ and no step has ``failure_reward``, or rows were left out inside of episodes.

    Examples:
        >>> import torch
        >>> from tensordict import TensorDict
        >>> from torchrl_o2o.data.transforms import add_mc_return
        >>> flags = torch.tensor([[False], [True], [False], [True]])
        >>> data = TensorDict({"episode": torch.tensor([0, 0, 1, 1]), "next": {"done": flags,
        ...                    "reward": torch.tensor([[-1.0], [0.0], [-1.0], [-1.0]])}}, [4])
        >>> add_mc_return(data, gamma=0.5, failure_reward=-1.0)["mc_return"].squeeze(-1)
        tensor([-1.,  0., -2., -2.])
    """
    if not 0 <= gamma <= 1 or (gamma == 1 and failure_reward is not None):
        raise O2OSpecError(
            f"gamma={gamma} with failure_reward={failure_reward}; expected [0, 1), or 1 without the latter."
        )
    check_option("failure_rule", failure_rule, ("all", "last"))
    if failure_reward is not None:
        check_number("failure_reward", failure_reward)
    check_one_step(data, "a Monte-Carlo return")
    reward, segment = _rewards(data), number_episodes(data)
    value = mc_return(reward, segment, gamma)
    if failure_reward is not None:
        failed = _failed(_equals(reward, failure_reward), segment, failure_rule)
        value = torch.where(failed, failure_reward / (1 - gamma), value)
    return data.copy().set(key, value.unsqueeze(-1))


def real_dtype(reward: Tensor) -> torch.dtype:
    """The dtype of sums of discounted rewards: floating point even if rewards are integers.

    Args:
        reward: rewards of any dtype and shape.

    Examples:
        >>> real_dtype(torch.ones(2, dtype=torch.int64))
        torch.float32
    """
    return reward.dtype if reward.is_floating_point() else torch.get_default_dtype()


def _rewards(data: TensorDictBase) -> Tensor:
    check_entries(data, ("next", "reward"))
    return column(data, data.get(("next", "reward")), "reward")


def _equals(reward: Tensor, failure_reward: float) -> Tensor:
    """Which rewards are the reward of failure, [N], up to the rounding of a transform in the rewards' dtype.

    Scaled and shifted rewards are rounded relative to the larger of both terms, and so to the largest reward.
    """
    if not len(reward):
        return reward == failure_reward
    close = 2.0 * torch.finfo(real_dtype(reward)).eps * max(float(reward.abs().max()), abs(failure_reward))
    found = (reward.double() - failure_reward).abs() <= close
    if not found.any() and bool((reward < reward.max()).any()):
        warnings.warn(
            f"no step has failure_reward={failure_reward}: rewards are {float(reward.min()):g} to "
            f"{float(reward.max()):g}, so no episode counts as failed. Pass what the data pay for a step without "
            "success, after their transforms",
            stacklevel=3,
        )
    return found


def _failed(failure: Tensor, segment: Tensor, rule: Literal["all", "last"]) -> Tensor:
    lengths = torch.bincount(segment)
    if rule == "last":
        return failure[lengths.cumsum(0) - 1][segment]
    return (torch.zeros_like(lengths).index_add_(0, segment, failure.long()) == lengths)[segment]
