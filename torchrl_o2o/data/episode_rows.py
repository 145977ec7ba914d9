# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Build n-step rows of an episode while it is collected."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from tensordict import TensorDict, TensorDictBase, cat

from torchrl_o2o.arguments import checked_arguments
from torchrl_o2o.data.keys import EPISODE, check_one_step, cut_off_, stored_keys
from torchrl_o2o.data.transforms.steps import check_horizon, n_step
from torchrl_o2o.errors import O2OSpecError

__all__ = ["EpisodeRows"]


class EpisodeRows:
    """Buffer for the transitions of one environment until their episode has ended and n-step sums are known.

    DrQ-v2's replay also stores an episode when it has ended. Add it to a run's objects, so that a resumed run continues
    in mid-episode, and pass :meth:`cut` to the collector as ``on_cut``.

    Args:
        n: number of steps in a sum, at least 1. Rows are delivered at the end of their episode, also with 1.
        gamma: discount in [0, 1].

    Examples:
        >>> from torchrl_o2o.testing import random_transitions
        >>> rows, (first, second) = EpisodeRows(2, 0.5), random_transitions(2, 1, 1).split(1)
        >>> first["next", "done"], second["next", "done"] = torch.tensor([[False]]), torch.tensor([[True]])
        >>> len(rows.add(first)), rows.add(second)["steps_to_next_obs"].tolist()
        (0, [2, 1])
    """

    @checked_arguments
    def __init__(self, n: int, gamma: float) -> None:
        check_horizon(n, gamma)
        self.n, self.gamma = n, gamma
        self._open: list[TensorDictBase] = []
        self._ended: list[TensorDictBase] = []

    def add(self, transition: TensorDictBase) -> TensorDictBase:
        """Add a transition [1].

        Args:
            transition: a transition in TED; only the entries of :func:`~torchrl_o2o.data.stored_keys` are kept.

        Returns:
            The rows [k] of the whole episode if it has ended, else none.

        Raises:
            O2OSpecError: if it is not one transition.
            O2ODataError: if it spans several steps.
        """
        if transition.batch_size != torch.Size([1]):
            raise O2OSpecError(
                f"got transitions of batch shape {list(transition.batch_size)}, expected [1]; add one at a time, as "
                "StepCollector delivers them, and use one EpisodeRows for each environment"
            )
        check_one_step(transition, "a sum over n steps")
        kept = transition.select(*stored_keys(transition))
        self._open.append(kept.detach().clone())  # the caller may reuse its memory
        if transition["next", "done"].item():
            self._close()
        ended, self._ended = self._ended, []
        return cat(ended) if ended else transition[:0]

    def cut(self) -> None:
        """End the episode at the last added transition; its rows are returned by the next :meth:`add`."""
        if self._open:
            self._open[-1] = cut_off_(self._open[-1].clone())
            self._close()

    def _close(self) -> None:
        episode = cat(self._open)
        rows = n_step(episode.set(EPISODE, torch.zeros(len(episode), dtype=torch.long)), n=self.n, gamma=self.gamma)
        self._ended.append(rows.select(*stored_keys(rows)))
        self._open = []

    def state_dict(self) -> dict[str, Any]:
        """The rows that are not complete yet."""
        return {name: cat(rows).to_dict() for name, rows in (("open", self._open), ("ended", self._ended)) if rows}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned."""
        kept = {name: TensorDict(rows, [len(rows["action"])]) for name, rows in state_dict.items()}
        self._open = list(kept["open"].split(1)) if "open" in kept else []
        self._ended = [kept["ended"]] if "ended" in kept else []
