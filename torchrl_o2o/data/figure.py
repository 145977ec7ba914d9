# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Plot a data set: returns and lengths of its episodes, and its rewards."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from torchrl_o2o.data.datasets.columns import ReadOptions
from torchrl_o2o.data.datasets.sources import Source, read_source
from torchrl_o2o.pictures import check_picture, plain_text, save_figure

__all__ = ["plot_offline"]


def plot_offline(
    source: Source,
    path: str | Path,
    *,
    max_episode_steps: int | None = None,
    obs_keys: Sequence[str] | None = None,
    names: Mapping[str, str] | None = None,
    min_episode_length: int = 2,
) -> Path:
    """Draw histograms of the episodes' returns and lengths and of the rewards.

    Args:
        source: as in :func:`~torchrl_o2o.data.load_offline`.
        path: the picture's file; its suffix chooses the format.
        max_episode_steps: as in :func:`~torchrl_o2o.data.load_offline`.
        obs_keys: as in :func:`~torchrl_o2o.data.load_offline`.
        names: as in :func:`~torchrl_o2o.data.load_offline`.
        min_episode_length: as in :func:`~torchrl_o2o.data.load_offline`.

    Returns:
        The file.

    Raises:
        O2ODataError: if the source cannot be read.
        O2OSpecError: if matplotlib is not installed or does not write such files, or the file cannot be written.

    Examples:
        >>> import numpy as np, tempfile
        >>> from torchrl_o2o.data.figure import plot_offline
        >>> arrays = {"observations": np.zeros((6, 2)), "actions": np.zeros((6, 1)), "rewards": np.arange(6.0),
        ...           "episode": np.array([0, 0, 0, 1, 1, 1])}
        >>> plot_offline(arrays, f"{tempfile.mkdtemp()}/data.png").stat().st_size > 1000
        True
    """
    check_picture(path)
    from matplotlib.figure import Figure

    keys = None if obs_keys is None else tuple(obs_keys)
    raw = read_source(source, ReadOptions(max_episode_steps, keys, min_episode_length, names=dict(names or {})))
    panels = {
        "return of an episode": raw.episode_returns(),
        "length of an episode": torch.bincount(raw.data["episode"]),
        "reward of a step": raw.data["next", "reward"].squeeze(-1),
    }
    figure = Figure(figsize=(9, 2.8), layout="constrained")
    for axis, (label, values) in zip(figure.subplots(1, len(panels)), panels.items()):
        axis.hist(values[values.isfinite()].numpy(), bins=40)
        axis.set(xlabel=label)
    figure.suptitle(plain_text(f"{raw.meta.id}: {len(raw.data)} transitions"), fontsize="medium")
    return save_figure(figure, path)
