# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Data sets as TorchRL's own tools take them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torchrl.data import ImmutableDatasetWriter, LazyTensorStorage, ReplayBuffer
from torchrl.data.datasets import register_dataset

from torchrl_o2o.data.keys import TRANSITION
from torchrl_o2o.data.load import load_offline
from torchrl_o2o.errors import check_count

__all__ = ["offline_replay_buffer", "register_with_torchrl"]


def offline_replay_buffer(
    source: str,
    *,
    batch_size: int | None = None,
    env: str | None = None,
    action_bounds: tuple[float, float] | None = None,
    max_episode_steps: int | None = None,
    obs_keys: Sequence[str] | None = None,
    device: torch.device | str = "cpu",
) -> ReplayBuffer:
    """A data set as a replay buffer that cannot be extended, drawn from uniformly with replacement.

    Rows have the entries of :data:`TRANSITION` and no others, so that they can be concatenated with what a collector
    delivers. The arguments but for ``batch_size`` and ``device`` are those of :func:`load_offline`, which audits the
    data.

    Args:
        source: name or file.
        batch_size: rows of one ``sample()``; ``None`` (default) asks for it there.
        env: environment that the data should fit.
        action_bounds: box of the recorded actions.
        max_episode_steps: time limit.
        obs_keys: of observations in several entries.
        device: of the storage. Defaults to ``"cpu"``.

    Returns:
        The buffer.

    Raises:
        O2ODataError: if the data cannot be read or are broken.
        O2OSpecError: if the batch size is not positive.

    Examples:
        >>> import numpy as np, tempfile
        >>> path = tempfile.mkdtemp() + "/log.npz"
        >>> rows = {"observations": np.zeros((6, 2)), "actions": np.zeros((6, 1)), "rewards": np.ones(6)}
        >>> np.savez(path, **rows, terminals=np.arange(6) == 5, timeouts=np.zeros(6, bool))
        >>> buffer = offline_replay_buffer(f"path:{path}", batch_size=4)
        >>> buffer.sample()["next", "reward"].shape
        torch.Size([4, 1])
    """
    if batch_size is not None:
        check_count("batch_size", batch_size, least=1)
    data = load_offline(
        source, env=env, action_bounds=action_bounds, max_episode_steps=max_episode_steps, obs_keys=obs_keys
    )
    storage = LazyTensorStorage(len(data), device=device)
    storage.set(range(len(data)), data.select(*TRANSITION))
    return ReplayBuffer(storage=storage, writer=ImmutableDatasetWriter(), batch_size=batch_size)


def register_with_torchrl(prefix: str = "o2o") -> None:
    """Let TorchRL's ``load_dataset`` read everything that :func:`load_offline` reads.

    ``load_dataset("o2o:NAME", batch_size=256)`` is then :func:`offline_replay_buffer`, and so are the data-set strings
    of TorchRL's ``OfflineToOnlineReplayBuffer`` and trainers. Calling it again changes nothing.

    Args:
        prefix: before the colon. Defaults to ``"o2o"``.

    Examples:
        >>> from torchrl.data.datasets import load_dataset
        >>> register_with_torchrl()
        >>> load_dataset("o2o:path:nothing.npz")
        Traceback (most recent call last):
        ...
        torchrl_o2o.errors.O2ODataError: ...
    """
    register_dataset(prefix, f"{__name__}:{offline_replay_buffer.__name__}", replace=True)
