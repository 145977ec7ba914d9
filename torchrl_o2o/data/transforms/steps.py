# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Rows of several steps, rows with the next step's action, and episodes that end at their success.

Compute n-step sums last, because other transforms need rows of one step.

Shapes: N transitions, A action dimensions.
"""

from __future__ import annotations

from typing import cast

import torch
from tensordict import TensorDictBase
from tensordict.utils import NestedKey
from torch import Tensor

from torchrl_o2o.arguments import checked_arguments
from torchrl_o2o.data.episodes import column, ends_of, flag_column, number_episodes, number_runs, warn_of_gaps
from torchrl_o2o.data.keys import EPISODE, STEPS, check_entries, check_flat, check_one_step, check_padding
from torchrl_o2o.data.transforms.rewards import real_dtype
from torchrl_o2o.errors import O2ODataError, O2OSpecError

__all__ = ["add_next_action", "check_horizon", "end_at_success", "n_step"]


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
    following = data.get("next")[last].copy().set("reward", total.to(real_dtype(reward)))
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


def _segments(data: TensorDictBase, trajectory: Tensor) -> Tensor:
    """Consecutive numbers of the trajectories' runs of rows, shape [N]; a collector may reuse its own numbers."""
    check_padding(data)
    number = number_runs(trajectory, ends_of(data))
    warn_of_gaps(data, number)
    return number
