# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Compare how much of the state-action space several data sets cover, by clusters of their union."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from tensordict import TensorDictBase

from torchrl_o2o.arguments import checked_arguments
from torchrl_o2o.data.datasets.optional import require
from torchrl_o2o.errors import O2ODataError, O2OSpecError, check_count, check_seed
from torchrl_o2o.pictures import check_picture, plain_text, save_figure

__all__ = ["Coverage", "coverage", "plot_coverage"]


@dataclass(frozen=True)
class Coverage:
    """The distribution of several data sets' rows over clusters.

    Args:
        embedding: t-SNE of the sampled rows, shape [N, 2].
        source: which data set each row is from, an index into ``covered``, shape [N].
        cluster: which cluster each row is in, shape [N].
        covered: data set -> share of the clusters in which it has rows.
    """

    embedding: np.ndarray
    source: np.ndarray
    cluster: np.ndarray
    covered: dict[str, float]


@checked_arguments
def coverage(
    data: Mapping[str, TensorDictBase],
    *,
    num_clusters: int = 50,
    rows_per_source: int = 1_000,
    min_rows: int = 5,
    seed: int = 0,
) -> Coverage:
    """Embed state-action pairs of several data sets, cluster the union, and compute each data set's share of clusters.

    Source: SAMG's appendix C.7 compares data sets with t-SNE, hierarchical clustering and the share of clusters
    covered.

    The numbers of rows and clusters are ours. Pairs are standardized first. Shares depend on the other data sets, so
    compare only shares of the same call.

    Args:
        data: name -> transitions [N] with ``observation`` and ``action``, at least two.
        num_clusters: number of clusters of the union. Defaults to 50.
        rows_per_source: rows drawn from each data set, the same number from all. Defaults to 1000.
        min_rows: a data set covers a cluster in which it has at least this many of its rows. Defaults to 5.
        seed: seed of the draw and of t-SNE. Defaults to 0.

    Returns:
        The embedding, the clusters and each data set's share of them.

    Raises:
        O2OSpecError: if scikit-learn is not installed, fewer than two data sets are given, a number is below 1, or the
            seed is not in [0, 2**32).
        O2ODataError: if they have no rows, no vectors of observations, or other shapes, or there are fewer rows than
            clusters.

    Examples:
        >>> import pytest, torch
        >>> _ = pytest.importorskip("sklearn")
        >>> from tensordict import TensorDict
        >>> def rows(shift):
        ...     return TensorDict({"observation": torch.randn(60, 3) + shift, "action": torch.rand(60, 2)}, [60])
        >>> found = coverage({"a": rows(0.0), "b": rows(50.0)}, num_clusters=2, rows_per_source=50)
        >>> found.covered
        {'a': 0.5, 'b': 0.5}
    """
    manifold, cluster = require("sklearn.manifold", "coverage"), require("sklearn.cluster", "coverage")
    if len(data) < 2:
        raise O2OSpecError(
            f"got {len(data)} data set, expected two or more, because coverage is relative to their union"
        )
    for name, number in (("num_clusters", num_clusters), ("rows_per_source", rows_per_source), ("min_rows", min_rows)):
        check_count(name, number, least=1)
    check_seed(seed, below=2**32)  # as numpy's, from which t-SNE draws
    pairs = _pairs(data, rows_per_source, seed)
    source = np.repeat(np.arange(len(data)), [len(part) for part in pairs])
    union = np.concatenate(pairs)
    if len(union) < max(num_clusters, 5):
        raise O2ODataError(
            f"got {len(union)} rows for {num_clusters} clusters, expected at least as many rows as clusters; lower "
            "num_clusters"
        )
    spread = union.std(0)
    union = (union - union.mean(0)) / np.where(spread > 0, spread, 1.0)
    perplexity = min(30.0, (len(union) - 1) / 3)
    embedding = manifold.TSNE(perplexity=perplexity, random_state=seed, init="pca").fit_transform(union)
    label = cluster.AgglomerativeClustering(n_clusters=num_clusters).fit_predict(embedding)
    counts = np.zeros((len(data), num_clusters), dtype=int)
    np.add.at(counts, (source, label), 1)
    covered = {name: float(share) for name, share in zip(data, (counts >= min_rows).mean(1))}
    return Coverage(embedding, source, label, covered)


def _pairs(data: Mapping[str, TensorDictBase], number: int, seed: int) -> list[np.ndarray]:
    """Draw the same number of (s, a) rows from each data set, without replacement."""
    for name, rows in data.items():
        shape = list(rows["observation"].shape)
        if len(shape) != 2 or not shape[0]:
            raise O2ODataError(
                f"{name} has observations of shape {shape}, expected at least one vector, [N, o]; compare the features "
                "of an encoder where observations are images"
            )
    number = min(number, *(len(rows) for rows in data.values()))
    generator = torch.Generator().manual_seed(seed)
    pairs = []
    for rows in data.values():
        index = torch.randperm(len(rows), generator=generator)[:number]
        pairs.append(torch.cat([rows["observation"][index], rows["action"][index]], -1).double().numpy())
    widths = {name: part.shape[-1] for name, part in zip(data, pairs)}
    if len(set(widths.values())) > 1:
        raise O2ODataError(
            f"got data sets whose pairs have different widths, {widths}, expected the same width; compare data sets of "
            "one environment"
        )
    return pairs


def plot_coverage(found: Coverage, path: str | Path) -> Path:
    """Draw the embedding, one color per data set.

    Args:
        found: result of :func:`coverage`.
        path: the picture's file; its suffix chooses the format.

    Returns:
        The file.

    Raises:
        O2OSpecError: if matplotlib is not installed or does not write such files, or the file cannot be written.

    Examples:
        >>> import numpy as np, pytest, tempfile
        >>> _ = pytest.importorskip("matplotlib")
        >>> found = Coverage(np.random.rand(6, 2), np.arange(6) % 2, np.zeros(6, int), {"a": 0.5, "b": 1.0})
        >>> plot_coverage(found, f"{tempfile.mkdtemp()}/coverage.png").stat().st_size > 1000
        True
    """
    check_picture(path)
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.5, 5), layout="constrained")
    axis = figure.subplots()
    for number, (name, share) in enumerate(found.covered.items()):
        points = found.embedding[found.source == number]
        axis.scatter(points[:, 0], points[:, 1], s=3, label=plain_text(f"{name}: {share:.0%} of the clusters"))
    axis.set(xticks=[], yticks=[])
    axis.legend(markerscale=3, fontsize="small")
    return save_figure(figure, path)
