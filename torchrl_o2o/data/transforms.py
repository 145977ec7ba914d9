# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Transforms of a data set, applied once before training: reward scaling, returns, standardized observations.

Each is a pure function of transitions in TED. The matching TorchRL transform applies the same numbers to the
environment, so that offline and online data agree. Scale rewards first, because returns are sums of scaled rewards.
Compute n-step sums last.

Shapes: N transitions, o observation dimensions.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

import torch
from tensordict import TensorDictBase
from tensordict.utils import NestedKey
from torch import Tensor
from torchrl.envs.transforms import ObservationNorm, RewardScaling

from torchrl_o2o.arguments import checked_arguments
from torchrl_o2o.data.episodes import column, ends_of, flag_column, number_episodes, number_runs, warn_of_gaps
from torchrl_o2o.data.keys import EPISODE, STEPS, check_entries, check_flat, check_padding, has_steps
from torchrl_o2o.errors import O2ODataError, O2OSpecError, check_number, check_option

__all__ = [
    "AffineReward",
    "ObservationStats",
    "add_mc_return",
    "add_next_action",
    "check_horizon",
    "check_one_step",
    "end_at_success",
    "episode_returns",
    "locomotion_reward",
    "mc_return",
    "n_step",
]


_OBSERVED: tuple[NestedKey, ...] = ("observation", ("next", "observation"))


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
        return data.copy().set(("next", "reward"), reward.to(_real(reward)) * self.scale + self.shift)

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
    return total.to(_real(reward))


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


def check_horizon(n: int, gamma: float) -> None:
    """Raise unless there is at least one step and the discount is in [0, 1].

    Args:
        n: number of steps.
        gamma: discount.

    Raises:
        O2OSpecError: if one is out of range.

    Examples:
        >>> check_horizon(3, 0.99)
    """
    if n < 1 or not 0 <= gamma <= 1:
        raise O2OSpecError(f"got n={n} and gamma={gamma}, expected at least one step and a discount in [0, 1]")


@checked_arguments
def n_step(data: TensorDictBase, *, n: int, gamma: float) -> TensorDictBase:
    r"""Turn one-step transitions into n-step transitions, which do not cross the end of their episode.

    .. math::
        R_t = \sum_{i<m}\gamma^i r_{t+i},\qquad s'_t = s_{t+m},\qquad m = \min(n, \text{steps left in the episode})

    Everything under ``"next"``, including ``terminated``, is from the m-th step. m is written under
    ``"steps_to_next_obs"``, by which TorchRL's value estimators, and so all losses of this package, discount:
    :math:`y = R_t + \gamma^m (1-d) V(s_{t+m})`. Give the losses the same gamma.

    Apply it to a whole offline data set, or to whole batches of a collector, ``Collector(...,
    postproc=functools.partial(n_step, n=3, gamma=0.99))``, where rows at the end of a batch have fewer steps. Store
    both with their steps (:func:`~torchrl_o2o.data.offline_online_storage` does). There is no off-policy correction.

    Difference from :class:`torchrl.data.MultiStep`: MultiStep keeps ``terminated`` and ``done`` of the first step, so
    rows up to n - 1 steps before a terminal bootstrap from it.

    Source: Sutton 1988; n-step returns in SAC and DQN as in Hessel et al. 2018 (Rainbow), section 3.

    Args:
        data: one-step transitions [N], in order, with ``episode`` or a collector's ``("collector", "traj_ids")``,
            rewards already transformed.

    Keyword Args:
        n: number of steps, at least 1.
        gamma: discount in [0, 1].

    Returns:
        The data with new entries under ``"next"`` and ``"steps_to_next_obs"``, int64, shape [N]; the input is not
        modified. Rewards keep their dtype, but integers become floating point. Sums are computed in float64.

    Raises:
        O2ODataError: if the data are not flat, do not mark episodes, or are already n-step rows.
        O2OSpecError: if an argument is out of range.

    Examples:
        >>> import torch
        >>> from torchrl_o2o.data import n_step
        >>> from torchrl_o2o.testing import DelayedRewardEnv, probe_transitions
        >>> data = probe_transitions(DelayedRewardEnv(), 4).set("episode", torch.tensor([0, 0, 1, 1]))
        >>> rows = n_step(data, n=2, gamma=0.5)
        >>> rows["next", "reward"].squeeze(-1), rows["next", "terminated"].squeeze(-1)
        (tensor([0.5000, 1.0000, 0.5000, 1.0000]), tensor([True, True, True, True]))
        >>> rows["steps_to_next_obs"]
        tensor([2, 1, 2, 1])
    """
    check_horizon(n, gamma)
    check_flat(data)
    check_entries(data, ("next", "reward"))
    check_one_step(data, "a sum over n steps")
    trajectory = data.get(("collector", "traj_ids"), None)
    segment = number_episodes(data) if trajectory is None else _segments(data, column(data, trajectory, "traj_ids"))
    row = torch.arange(len(data), device=segment.device)
    last = (torch.bincount(segment).cumsum(0) - 1)[segment].minimum(row + n - 1)
    reward = data.get(("next", "reward"))
    total, wide = torch.zeros_like(reward, dtype=torch.float64), reward.double()
    for step in range(n):
        inside = (row + step <= last).reshape(-1, *(1,) * (reward.ndim - 1))
        total += torch.where(inside, gamma**step * wide[(row + step).minimum(last)], 0.0)
    # The copies, here and below: rows of a lazy stack are the data's own, and `last` names some of them several times.
    following = data.get("next")[last].copy().set("reward", total.to(_real(reward)))
    return data.copy().set("next", following).set(STEPS, last - row + 1)


def add_next_action(data: TensorDictBase, *, key: NestedKey = ("next", "action")) -> TensorDictBase:
    """Add the action recorded in the next step, as ReBRAC needs it (Tarasov et al. 2023), under ``("next", "action")``.

    Rows without a next step in their episode are left out: those cut by a time limit, and the very last row. A terminal
    row stays and gets the action of the next row, which is not used because nothing bootstraps.

    Args:
        data: transitions [N] with ``episode``, in the order of recording.
        key: entry for the actions, [N, A]. Defaults to ``("next", "action")``.

    Returns:
        New data with at most N - 1 rows; the input is not modified.

    Raises:
        O2ODataError: if ``episode`` is missing, or rows span several steps.

    Examples:
        >>> import torch
        >>> from tensordict import TensorDict
        >>> from torchrl_o2o.data.transforms import add_next_action
        >>> ends = torch.tensor([[False], [True], [False], [False]])
        >>> data = TensorDict({"episode": torch.tensor([0, 0, 1, 2]), "action": torch.arange(4.0).unsqueeze(-1),
        ...                    "next": {"terminated": ends}}, [4])
        >>> add_next_action(data)["next", "action"].squeeze(-1)
        tensor([1., 2.])
    """
    check_one_step(data, "the action of the next step")
    check_entries(data, "action", ("next", "terminated"))
    episode = number_episodes(data)
    goes_on = (episode[1:] == episode[:-1]) | data["next", "terminated"].squeeze(-1)[:-1]
    rows = goes_on.nonzero().squeeze(-1)
    out = cast(TensorDictBase, data[rows])  # TensorDict's annotation does not say what indexing returns
    return out.copy().set(key, data["action"][rows + 1])


def end_at_success(data: TensorDictBase, success: Tensor) -> TensorDictBase:
    """End episodes at their successes, as Cal-QL's authors do for demonstrations of binary Adroit.

    Episodes without success, and rows after an episode's last success, are left out. Every success is terminal, so an
    episode with several successes is divided.

    Args:
        data: transitions [N] with ``episode``, in the order of recording.
        success: bool, or 0 and 1, [N] or [N, 1]: whether the step succeeded.

    Returns:
        New data with at most N rows and episodes numbered from 0; the input is not modified.

    Raises:
        O2ODataError: if no step succeeds, ``success`` holds other numbers, such as rewards, ``episode`` is missing, or
            rows are shuffled or span several steps.

    Examples:
        >>> import torch
        >>> from torchrl_o2o.data import end_at_success
        >>> from torchrl_o2o.testing import random_transitions
        >>> data = random_transitions(6, 3, 2).set("episode", torch.tensor([0, 0, 0, 0, 1, 1]))
        >>> for key in ("terminated", "truncated", "done"):
        ...     data["next", key] = torch.zeros(6, 1, dtype=torch.bool)
        >>> cut = end_at_success(data, torch.tensor([False, True, True, False, False, False]))
        >>> cut["episode"], cut["next", "terminated"].squeeze(-1)  # the second episode never succeeds
        (tensor([0, 0, 1]), tensor([False,  True,  True]))
    """
    check_one_step(data, "an episode's successes")
    episode, success = number_episodes(data), flag_column(data, torch.as_tensor(success), "success")
    if not success.any():
        raise O2ODataError(
            f"none of the {len(data)} steps succeeds; expected at least one success. Check the success flags"
        )
    row = torch.arange(len(data), device=episode.device)
    last = torch.full_like(row, -1).scatter_reduce_(0, episode[success], row[success], "amax")
    kept = (row <= last[episode]).nonzero().squeeze(-1)
    out, reached = cast(TensorDictBase, data[kept]).copy(), success[kept].unsqueeze(-1)
    terminal = out.get(("next", "terminated"), None)
    out.set(("next", "done"), ends_of(data)[kept].unsqueeze(-1) | reached)
    out.set(("next", "terminated"), reached if terminal is None else terminal | reached)
    return out.set(EPISODE, number_runs(episode[kept], ends_of(out)))


def check_one_step(data: TensorDictBase, what: str) -> None:
    """Raise for rows over several steps, whose rewards are sums and whose next observations are several steps ahead.

    Args:
        data: transitions.
        what: name of the quantity that needs single steps, for the message.

    Raises:
        O2ODataError: if the data have ``"steps_to_next_obs"``.

    Examples:
        >>> from torchrl_o2o.testing import random_transitions
        >>> check_one_step(random_transitions(4, 3, 2), "a Monte-Carlo return")
    """
    if has_steps(data):
        raise O2ODataError(
            f"the transitions have {STEPS!r}, so their rewards are sums over n steps, from which {what} cannot be "
            "computed; apply n_step last"
        )


def _segments(data: TensorDictBase, trajectory: Tensor) -> Tensor:
    """Consecutive numbers of the trajectories' runs of rows, shape [N]; a collector may reuse its own numbers."""
    check_padding(data)
    number = number_runs(trajectory, ends_of(data))
    warn_of_gaps(data, number)
    return number


def _rewards(data: TensorDictBase) -> Tensor:
    check_entries(data, ("next", "reward"))
    return column(data, data.get(("next", "reward")), "reward")


def _real(reward: Tensor) -> torch.dtype:
    """The dtype of sums of discounted rewards: floating point even if rewards are integers."""
    return reward.dtype if reward.is_floating_point() else torch.get_default_dtype()


def _equals(reward: Tensor, failure_reward: float) -> Tensor:
    """Which rewards are the reward of failure, [N], up to the rounding of a transform in the rewards' dtype.

    Scaled and shifted rewards are rounded relative to the larger of both terms, and so to the largest reward.
    """
    if not len(reward):
        return reward == failure_reward
    close = 2.0 * torch.finfo(_real(reward)).eps * max(float(reward.abs().max()), abs(failure_reward))
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


@dataclass(frozen=True)
class ObservationStats:
    """Frozen mean and scale of a data set's observations; save them with the policy.

    Args:
        mean: [o].
        scale: [o], the population standard deviation plus 1e-3, as in CORL (and in TD3+BC).

    Examples:
        >>> import torch
        >>> from tensordict import TensorDict
        >>> from torchrl_o2o.data.transforms import ObservationStats
        >>> observation = torch.tensor([[1.0], [3.0]])
        >>> data = TensorDict({"observation": observation, "next": {"observation": observation + 2}}, [2])
        >>> stats = ObservationStats.of(data)
        >>> stats.mean, stats.scale
        (tensor([2.]), tensor([1.0010]))
        >>> stats(data)["next", "observation"].squeeze(-1)
        tensor([0.9990, 2.9970])
    """

    mean: Tensor
    scale: Tensor

    @classmethod
    def of(cls, data: TensorDictBase, *, eps: float = 1e-3) -> ObservationStats:
        """Compute the statistics over the rows' observations (not the next ones).

        Args:
            data: transitions [N] with vector observations.
            eps: added to the standard deviation.

        Raises:
            O2OSpecError: if the observations are images, or several entries, or ``eps`` is negative or not finite.
            O2ODataError: if there is no observation, the data are not flat, one is not finite, or a scale is 0.
        """
        check_number("eps", eps, least=0)
        check_flat(data)
        check_entries(data, "observation")
        observation = data.get("observation")
        if not isinstance(observation, Tensor):
            raise O2OSpecError(
                f"observations are several entries, {sorted(map(str, observation.keys()))}; expected one vector per "
                "row. Join them, or do not standardize observations"
            )
        if not observation.is_floating_point():
            raise O2OSpecError(f"observations are {observation.dtype}; expected floats. Images are not standardized.")
        if not len(data) or not observation.isfinite().all():
            raise O2ODataError(
                f"got {len(data)} transitions, {int((~observation.isfinite()).flatten(1).any(1).sum())} of them with "
                "observations that are not finite; expected at least one, and all finite. Load the data with "
                "load_offline, which checks both"
            )
        wide = observation.double()
        scale = (wide.std(0, correction=0) + eps).to(observation.dtype)
        if (zero := scale == 0).any():
            raise O2ODataError(
                f"entry {int(zero.flatten().nonzero()[0])} of the observations never changes, and eps={eps} is 0 in "
                f"{observation.dtype}, expected scales above 0, by which observations are divided; pass a larger eps"
            )
        return cls(wide.mean(0).to(observation.dtype), scale)

    def __call__(self, data: TensorDictBase) -> TensorDictBase:
        """Return the data with standardized observations of the same type; the input is not modified.

        Raises:
            O2OSpecError: if the observations have another width than those of the statistics.
            O2ODataError: if there are none.
        """
        check_entries(data, *_OBSERVED)
        out = data.copy()
        for key in _OBSERVED:
            observation = data.get(key)
            self.check(observation.shape[1:])
            value = (observation - self.mean) / self.scale
            out.set(key, value.to(observation.dtype) if observation.is_floating_point() else value)
        return out

    def check(self, shape: Sequence[int] | None) -> None:
        """Raise for observations of another width, because broadcasting might accept them.

        Args:
            shape: of one observation.

        Raises:
            O2OSpecError: if it is not that of the statistics.
        """
        if tuple(shape or ()) != tuple(self.mean.shape):
            raise O2OSpecError(
                f"got observations of shape {list(shape or ())}, expected {list(self.mean.shape)} as in the "
                "statistics; compute the statistics on data of this environment"
            )

    def transform(self) -> ObservationNorm:
        """Return the same transform for a TorchRL environment."""
        return ObservationNorm(loc=self.mean, scale=self.scale, in_keys=["observation"], standard_normal=True)

    def state_dict(self) -> dict[str, Any]:
        """Return the statistics for a checkpoint."""
        return {"mean": self.mean, "scale": self.scale}

    @classmethod
    def from_state_dict(cls, state: dict[str, Any]) -> ObservationStats:
        """Rebuild the statistics from :meth:`state_dict`."""
        return cls(state["mean"], state["scale"])
