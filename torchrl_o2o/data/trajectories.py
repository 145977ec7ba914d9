# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Whole trajectories with returns-to-go, for return-conditioned policies (ODT)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from tensordict import TensorDict, TensorDictBase, stack
from torch import Tensor

from torchrl_o2o.arguments import checked_arguments
from torchrl_o2o.data.episodes import number_episodes
from torchrl_o2o.data.keys import check_entries, check_one_step
from torchrl_o2o.errors import O2ODataError, O2OSpecError, check_count, check_number, check_state

__all__ = ["TrajectoryReplay", "returns_to_go"]


def returns_to_go(reward: Tensor | np.ndarray | Sequence[float]) -> Tensor:
    r"""Undiscounted returns, :math:`R_t=\sum_{i\ge t}r_i`.

    Args:
        reward: of one episode, shape [T].

    Returns:
        R, shape [T].

    Examples:
        >>> import torch
        >>> returns_to_go(torch.tensor([1.0, 2.0, 3.0]))
        tensor([6., 5., 3.])
    """
    return torch.as_tensor(reward).flip(0).cumsum(0).flip(0)


def _scaled_returns(reward: Tensor, scale: float) -> Tensor:
    """Scaled returns to go, [T, 1], in the rewards' type; their sums may be beyond it, as in float16."""
    narrow = reward.is_floating_point() and reward.dtype.itemsize < 4
    scaled = returns_to_go(reward.float() if narrow else reward).unsqueeze(-1) * scale
    return scaled.to(reward.dtype) if narrow else scaled


class TrajectoryReplay:
    """A ring of trajectories from which slices of equal length are drawn, with a uniform start.

    The offline trajectories are sorted by their returns, so that the worst is replaced first. The returns-to-go are the
    achieved ones, not the target returns. All slices have full length, because TorchRL's transformer has no mask for
    padding, which the authors' code adds on the left. An episode's last ``context - 1`` steps therefore never start a
    slice, and episodes shorter than ``context`` are never drawn; a smaller ``context`` reads them.

    Source: Zheng et al. 2022 (ODT), Algorithm 1 and section 4.

    Args:
        capacity: largest number of trajectories. Defaults to 1000.

    Keyword Args:
        return_scale: factor of the returns. Defaults to 0.001; 1 on AntMaze.

    Raises:
        O2OSpecError: if ``capacity`` is below 1.

    Examples:
        >>> import torch
        >>> replay = TrajectoryReplay(capacity=2, return_scale=1.0)
        >>> for reward in (1.0, 2.0, 3.0):
        ...     replay.append(torch.zeros(4, 3), torch.zeros(4, 2), torch.full((4,), reward))
        >>> replay.sample(5, context=2)["return_to_go"].shape
        torch.Size([5, 2, 1])
        >>> [float(each["return_to_go"][0]) for each in replay.episodes]
        [12.0, 8.0]
    """

    @checked_arguments
    def __init__(self, capacity: int = 1_000, *, return_scale: float = 0.001) -> None:
        if capacity < 1:
            raise O2OSpecError(f"got capacity={capacity}, expected at least 1 trajectory")
        check_number("return_scale", return_scale, above=0)
        self.capacity, self.return_scale = capacity, return_scale
        self.episodes: list[TensorDict] = []
        self._oldest = 0
        self._appended: set[int] = set()

    def append(
        self, observation: Tensor | np.ndarray, action: Tensor | np.ndarray, reward: Tensor | np.ndarray
    ) -> None:
        """Add a copy of one episode in the dtypes of the first, which replaces the oldest if the ring is full.

        Args:
            observation: observations as the policy reads them, shape [T, o].
            action: shape [T, A]; clipped to 1e-6 inside the box [-1, 1].
            reward: shape [T].

        Raises:
            O2OSpecError: if they differ in length, they or the sums of rewards are not finite, or their widths are not
                those of the stored trajectories.
        """
        observation, action, reward = map(torch.as_tensor, (observation, action, reward))
        same = reward.ndim == 1 and 0 < len(reward) == len(observation) == len(action)
        to_go = _scaled_returns(reward.detach(), self.return_scale) if same else reward
        if not same or not all(bool(each.isfinite().all()) for each in (observation, action, reward, to_go)):
            raise O2OSpecError(
                f"got observations {list(observation.shape)}, actions {list(action.shape)} and rewards "
                f"{list(reward.shape)}, expected [T, o], [T, A] and [T] with T at least 1, all finite, including the "
                "sums of rewards"
            )
        found = {"observation": observation.shape[1:], "action": action.shape[1:]}
        if self.episodes and any(self.episodes[0][key].shape[1:] != shape for key, shape in found.items()):
            known = {key: list(self.episodes[0][key].shape[1:]) for key in found}
            raise O2OSpecError(
                f"got observations {list(observation.shape)} and actions {list(action.shape)}, expected rows of "
                f"{known} as in the stored trajectories; use data of one environment"
            )
        observation, action = observation.detach().clone(), action.detach().clamp(-1.0 + 1e-6, 1.0 - 1e-6)
        columns = {"observation": observation, "action": action, "return_to_go": to_go}
        if self.episodes:  # so that slices of any episodes have one dtype
            columns = {key: column.to(self.episodes[0][key].dtype) for key, column in columns.items()}
        episode = TensorDict(columns, [len(reward)])
        self._appended.add(len(self.episodes) if len(self.episodes) < self.capacity else self._oldest)
        if len(self.episodes) < self.capacity:
            self.episodes.append(episode)
            return
        self.episodes[self._oldest] = episode
        self._oldest = (self._oldest + 1) % self.capacity

    def load(self, rows: TensorDictBase) -> None:
        """Load the best episodes of a data set, the worst of them first.

        Args:
            rows: transitions [N] with ``episode``, and observations as the policy reads them.

        Raises:
            O2ODataError: if there are no rows, or they lack an entry or episode numbers, are shuffled, or go over
                several steps.
        """
        check_one_step(rows, "a return to go")
        check_entries(rows, "observation", "action", ("next", "reward"))
        if not len(rows):
            raise O2ODataError("got no transitions, expected at least one episode; load a data set first")
        _, lengths = number_episodes(rows).unique_consecutive(return_counts=True)
        episodes = rows.split(lengths.tolist())
        for each in sorted(episodes, key=lambda each: float(each["next", "reward"].sum()))[-self.capacity :]:
            self.append(each["observation"], each["action"], each["next", "reward"].squeeze(-1))
        self._appended.clear()

    def state_dict(self) -> dict[str, Any]:
        """The trajectories that were appended to the loaded data."""
        episodes = {position: self.episodes[position].to_dict() for position in sorted(self._appended)}
        return {"oldest": self._oldest, "length": len(self.episodes), "appended": episodes}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Continue from what :meth:`state_dict` returned, on the same loaded data.

        Args:
            state_dict: what was returned.

        Raises:
            O2OSpecError: if other data were loaded, some of them were overwritten since, or it is not such a state.
        """
        check_state(self, state_dict, {"oldest": 0, "length": 0, "appended": None})
        appended = state_dict["appended"]
        loaded = 1 + max({-1, *range(len(self.episodes))} - self._appended)
        if lost := sorted(position for position in self._appended - set(appended) if position < loaded):
            raise O2OSpecError(f"trajectory {lost[0]} of the data was overwritten since; load the data again first")
        other = state_dict["length"] < loaded
        if other or any(position not in appended for position in range(loaded, state_dict["length"])):
            raise O2OSpecError(f"got {loaded} trajectories, other data than those that the state was saved with")
        del self.episodes[loaded:]  # drop what was appended in the meantime
        self.episodes += [TensorDict({})] * (state_dict["length"] - loaded)
        for position, episode in appended.items():
            self.episodes[position] = TensorDict(episode, [len(episode["action"])])
        self._oldest, self._appended = state_dict["oldest"], set(appended)

    def sample(self, batch_size: int, context: int) -> TensorDictBase:
        """Draw slices.

        Args:
            batch_size: B.
            context: K, steps of a slice.

        Returns:
            ``observation``, ``action`` and ``return_to_go``, shape [B, K].

        Raises:
            O2OSpecError: if ``batch_size`` or ``context`` is below 1, or no episode has as many steps.
        """
        batch_size, context = check_count("batch_size", batch_size, least=1), check_count("context", context, least=1)
        starts = torch.tensor([max(len(episode) - context + 1, 0) for episode in self.episodes], dtype=torch.float64)
        if not starts.sum() > 0:
            raise O2OSpecError(
                f"got context={context}, expected at most the length of an episode; use a shorter context"
            )
        which = torch.multinomial(starts, batch_size, replacement=True)
        first = (torch.rand(batch_size, dtype=torch.float64) * starts[which]).long()
        pairs = zip(which.tolist(), first.tolist(), strict=True)
        return stack([self.episodes[int(index)][start : start + context] for index, start in pairs])
