# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Draw learning curves with matplotlib, an optional dependency that is imported when something is drawn."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np

from torchrl_o2o.arguments import checked_arguments
from torchrl_o2o.errors import O2OSpecError, check_number
from torchrl_o2o.pictures import check_picture, plain_text, save_figure
from torchrl_o2o.record.curves import iqm, stratified_bootstrap_interval

__all__ = ["Curve", "Panel", "draw_panels"]

_COLUMNS = 3
_INCHES_PER_LETTER, _INCHES_PER_LINE = 0.09, 0.2
#: Okabe and Ito (2008), without black, which is used for the levels.
_COLORBLIND_SAFE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#F0E442")
_LEVEL_STYLES = ("--", ":", "-.", (0, (1, 4)))
_STATISTIC = "interquartile mean over seeds, 95 % bootstrap interval"


@dataclass(frozen=True, eq=False)
class Curve:
    """One line of a panel.

    Args:
        label: its name in the legend; curves with the same label have the same color in all panels.
        steps: ``[n]``, negative while offline.
        middle: ``[n]``.
        low: ``[n]``, lower end of the interval, or ``None`` for no band.
        high: ``[n]``, upper end.
        peer: whether it is a published curve, drawn thin and dotted.

    Examples:
        >>> middle = np.array([10.0, 60.0])
        >>> curve = Curve("rlpd", np.array([0, 1_000]), middle, low=middle - 5.0, high=middle + 5.0)
        >>> curve.high.tolist()
        [15.0, 65.0]
    """

    label: str
    steps: np.ndarray
    middle: np.ndarray
    low: np.ndarray | None = None
    high: np.ndarray | None = None
    peer: bool = False

    @classmethod
    def over_seeds(cls, label: str, steps: np.ndarray, scores: np.ndarray, generator: np.random.Generator) -> Curve:
        """The interquartile mean over seeds with its 95 % bootstrap interval; one seed is a line without a band.

        Args:
            label: its name in the legend.
            steps: ``[n]``, negative while offline.
            scores: ``[seeds, n]``.
            generator: draws the bootstrap's samples.

        Examples:
            >>> curve = Curve.over_seeds("rlpd", np.arange(3), np.ones((5, 3)), np.random.default_rng(0))
            >>> curve.middle.tolist(), curve.high.tolist()
            ([1.0, 1.0, 1.0], [1.0, 1.0, 1.0])
        """
        if len(scores) == 1:
            return cls(label, steps, scores[0])
        ends = [stratified_bootstrap_interval(column, generator=generator) for column in scores.T]
        low, high = np.array(ends).T
        return cls(label, steps, iqm(scores, axis=0), low, high)


@dataclass(frozen=True, eq=False)
class Panel:
    """One pair of axes.

    Args:
        title: above the axes.
        ylabel: beside them.
        curves: the curves, in drawing order.
        levels: values to compare with, by their names in the legend; drawn as thin horizontal lines. Defaults to none.

    Examples:
        >>> curve = Curve("rlpd", np.array([0, 1_000]), np.array([10.0, 60.0]))
        >>> panel = Panel("Hopper-v5", "normalized score", [curve], levels={"behavior policy": 45.0})  # for draw_panels
        >>> [each.label for each in panel.curves]
        ['rlpd']
    """

    title: str
    ylabel: str
    curves: list[Curve]
    levels: Mapping[str, float] = field(default_factory=dict)


@checked_arguments
def draw_panels(panels: Sequence[Panel], path: str | Path) -> None:
    """Draw panels side by side, one legend below, into a file.

    Curves with negative steps have a dashed line at step 0, the hand-over. Peers' curves are cut to the steps of the
    others.

    Args:
        panels: at least one, each with at least one curve that is not a peer's.
        path: the file to write, in a new folder if it does not exist; its suffix chooses the format.

    Raises:
        O2OSpecError: if matplotlib is not installed or does not write such files, the file cannot be written, there is
            nothing to draw, a curve's vectors are no arrays or differ in length, or a level is no finite number.

    Examples:
        >>> import tempfile
        >>> from pathlib import Path
        >>> import numpy as np
        >>> from torchrl_o2o.record import Curve, Panel, draw_panels
        >>> path = Path(tempfile.mkdtemp()) / "curves.png"
        >>> draw_panels([Panel("Hopper-v5", "return", [Curve("rlpd", np.arange(3), np.ones(3))])], path)
        >>> path.read_bytes()[1:4]
        b'PNG'
    """
    check_picture(path)
    from matplotlib import color_sequences
    from matplotlib.figure import Figure

    _check(panels)
    columns = min(_COLUMNS, len(panels))
    rows = math.ceil(len(panels) / columns)
    width = 1.2 + 4.4 * columns
    figure = Figure(figsize=(width, 0.9 + 3.2 * rows), dpi=150, layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).flat
    labels = dict.fromkeys(curve.label for panel in panels for curve in panel.curves)
    palette = _COLORBLIND_SAFE if len(labels) <= len(_COLORBLIND_SAFE) else color_sequences["tab20"]
    colors = {label: palette[index % len(palette)] for index, label in enumerate(labels)}
    for panel, ax in zip(panels, axes):
        _draw_panel(ax, panel, colors)
    for ax in list(axes):
        ax.set_visible(False)
    banded = any(curve.low is not None for panel in panels for curve in panel.curves)
    _draw_legend(figure, width, _STATISTIC if banded else None)
    with suppress(OSError):  # what prevents it prevents the file, too, and is told there
        Path(path).parent.mkdir(parents=True, exist_ok=True)
    save_figure(figure, path)


def _check(panels: Sequence[Panel]) -> None:
    if not panels:
        raise O2OSpecError("got no panels, expected at least one")
    for panel in panels:
        if all(curve.peer for curve in panel.curves):
            raise O2OSpecError(f"got the panel {panel.title!r} without a curve that is not a peer's, expected one")
        for name, level in panel.levels.items():
            check_number(f"the level {name!r} of the panel {panel.title!r}", level)
        for curve in panel.curves:
            vectors = {"steps": curve.steps, "middle": curve.middle, "low": curve.low, "high": curve.high}
            odd = [name for name, vector in vectors.items() if not isinstance(vector, np.ndarray | None)]
            if odd:
                raise O2OSpecError(
                    f"got the curve {curve.label!r} with {odd[0]} that are a {type(vectors[odd[0]]).__name__}, "
                    "expected arrays of numpy; pass numpy.asarray(...)"
                )
            shapes = {name: np.shape(vector) for name, vector in vectors.items() if vector is not None}
            if len(set(shapes.values())) > 1 or len(shapes["steps"]) != 1 or shapes["steps"] == (0,):
                raise O2OSpecError(
                    f"got the curve {curve.label!r} with the shapes {shapes}, expected vectors of one length, at least "
                    "1; leave empty curves out"
                )


def _draw_legend(figure: Any, width: float, title: str | None) -> None:
    """Draw the legend with as many columns as fit, and enlarge the figure by its rows."""
    handles: dict[str, Any] = {}
    for ax in figure.axes:
        handles |= dict(zip(*reversed(ax.get_legend_handles_labels()), strict=True))
    labels = [textwrap.fill(label, int(width / _INCHES_PER_LETTER) - 8) for label in handles]
    longest = max(len(line) for label in labels for line in label.splitlines() or [label])
    columns = max(1, min(len(labels), int(width / (_INCHES_PER_LETTER * (longest + 6)))))
    lines = math.ceil(sum(label.count("\n") + 1 for label in labels) / columns) + (title is not None)
    figure.set_figheight(figure.get_figheight() + _INCHES_PER_LINE * max(0, lines - 2))
    figure.legend(
        handles.values(),
        labels,
        loc="outside lower center",
        ncols=columns,
        frameon=False,
        title=title,
        title_fontsize="small",
    )


def _draw_panel(ax: Any, panel: Panel, colors: dict[str, Any]) -> None:
    from matplotlib.ticker import EngFormatter

    own = [curve for curve in panel.curves if not curve.peer]
    first, last = min(curve.steps[0] for curve in own), max(curve.steps[-1] for curve in own)
    for curve in panel.curves:
        _draw_curve(ax, curve, (curve.steps >= first) & (curve.steps <= last), colors[curve.label])
    for style, (label, level) in zip(cycle(_LEVEL_STYLES), panel.levels.items()):
        ax.axhline(level, color="black", ls=style, lw=1, zorder=1, label=_legend(label))
    if first < 0 < last:
        ax.axvline(0, color="0.35", ls="--", lw=1, zorder=0, label="hand-over")
    if first < last:
        ax.set_xlim(first, last)
    xlabel = "steps (negative: offline training)" if first < 0 else "environment steps"
    ax.set(title=plain_text(panel.title), xlabel=xlabel, ylabel=plain_text(panel.ylabel))
    ax.xaxis.set_major_formatter(EngFormatter(sep=""))
    ax.ticklabel_format(axis="y", useOffset=False)  # no offset such as "+1e3" above the axis
    ax.spines[["top", "right"]].set_visible(False)
    ax.grid(axis="y", color="0.9", lw=0.8)
    ax.set_axisbelow(True)


def _draw_curve(ax: Any, curve: Curve, shown: np.ndarray, color: Any) -> None:
    style = {"lw": 1.0, "ls": (0, (1, 1.5)), "alpha": 0.8} if curve.peer else {"lw": 1.8}
    # A single evaluation is not visible as a line, so mark it.
    marker = "o" if shown.sum() == 1 else ""
    steps = curve.steps[shown]
    ax.plot(steps, curve.middle[shown], color=color, label=_legend(curve.label), marker=marker, **style)
    if curve.low is not None and curve.high is not None:
        ax.fill_between(steps, curve.low[shown], curve.high[shown], color=color, alpha=0.2, lw=0)


def _legend(label: str) -> str:
    """A label as matplotlib's legends show it: they leave out empty ones and those that begin with an underscore."""
    return f" {plain_text(label)}" if label[:1] in ("", "_") else plain_text(label)
