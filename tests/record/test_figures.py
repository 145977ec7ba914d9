# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
from __future__ import annotations

import sys

import numpy as np
import pytest

from torchrl_o2o.errors import O2OSpecError
from torchrl_o2o.record.figures import Curve, Panel, _draw_panel, draw_panels

matplotlib = pytest.importorskip("matplotlib")


def axes():
    from matplotlib.figure import Figure

    return Figure().subplots()


def curve(label, steps, **kwargs):
    return Curve(label, np.array(steps), np.linspace(0.0, 1.0, len(steps)), **kwargs)


def drawn(*curves):
    ax = axes()
    _draw_panel(ax, Panel("door", "score", list(curves)), {curve.label: "C0" for curve in curves})
    return ax


def test_the_handover_is_marked_where_there_is_one():
    both, online = drawn(curve("a", [-10, 0, 10])), drawn(curve("a", [0, 10]))
    assert [line.get_label() for line in both.get_lines()] == ["a", "hand-over"]
    assert [line.get_label() for line in online.get_lines()] == ["a"]
    assert "offline" in both.get_xlabel()
    assert "offline" not in online.get_xlabel()


def test_peers_are_cut_to_the_steps_of_the_runs():
    ax = drawn(curve("ours", [0, 10, 20]), curve("peer", [-1000, 0, 15, 1000], peer=True))
    assert ax.get_xlim() == (0, 20)
    np.testing.assert_array_equal(ax.get_lines()[1].get_xdata(), [0, 15])


def test_intervals_are_bands():
    ends = {"low": np.zeros(3), "high": np.ones(3)}
    assert len(drawn(curve("a", [0, 1, 2], **ends)).collections) == 1
    assert len(drawn(curve("a", [0, 1, 2])).collections) == 0


def test_a_single_evaluation_is_a_marker():
    (line,) = drawn(curve("a", [5])).get_lines()
    assert line.get_marker() == "o"


def test_panels_become_one_image(tmp_path):
    panels = [Panel(f"task {i}", "score", [curve(f"run {j}", [0, 1, 2]) for j in range(12)]) for i in range(5)]
    draw_panels(panels, tmp_path / "five.png")
    draw_panels(panels[:1], tmp_path / "one.png")
    five, one = (matplotlib.image.imread(tmp_path / f"{name}.png") for name in ("five", "one"))
    assert five.shape[1] > 2 * one.shape[1]
    assert five.shape[0] > one.shape[0]


def test_matplotlib_is_optional(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(O2OSpecError, match=r"torchrl_o2o\[plot\]"):
        draw_panels([Panel("task", "score", [curve("run", [0, 1])])], tmp_path / "none.png")


def test_levels_are_labelled_lines():
    ax = axes()
    _draw_panel(ax, Panel("door", "score", [curve("a", [0, 10])], {"data, mean": 0.3, "data, best": 0.9}), {"a": "C0"})
    lines = {line.get_label(): line.get_ydata() for line in ax.get_lines()[1:]}
    assert {name: list(values) for name, values in lines.items()} == {
        "data, mean": [0.3, 0.3],
        "data, best": [0.9, 0.9],
    }


def test_what_cannot_be_drawn(tmp_path):
    step = np.arange(2)
    for panels, message in (
        ([], "got no panels"),
        ([Panel("Hopper", "return", [])], "panel 'Hopper' without a curve"),
        ([Panel("Hopper", "return", [Curve("a", step[:0], step[:0])])], "curve 'a' with the shapes"),
        (
            [Panel("Hopper", "return", [Curve("a", step, step[:1])])],
            "expected vectors of one length",
        ),
        ([Panel("Hopper", "return", [Curve("a", [0, 1], step)])], "curve 'a' with steps that are a list"),
        ([Panel("Hopper", "return", [Curve("a", step, step)], {"data": float("nan")})], "level 'data' of the panel"),
        ([Panel("Hopper", "return", [Curve("a", step, step)], {"data": "high"})], "level 'data' of the panel"),
    ):
        with pytest.raises(O2OSpecError, match=message):
            draw_panels(panels, tmp_path / "curves.png")
    draw_panels([Panel("Hopper", "return", [Curve("a", step, step)])], tmp_path / "new" / "curves.png")
    assert (tmp_path / "new" / "curves.png").exists()


@pytest.mark.parametrize("label", ["$a_{", "$x$ and $y_{$", "_hidden", "", "__"])
def test_every_label_is_in_the_legend_as_it_is_written(tmp_path, label):
    panel = Panel(label, "$return_{$", [curve(label, [0, 1])], levels={f"{label}level": 0.5})
    draw_panels([panel], tmp_path / "a.svg")
    ax = axes()
    _draw_panel(ax, panel, {label: "C0"})
    shown = [text.replace(r"\$", "$") for text in ax.get_legend_handles_labels()[1]]
    assert [text.removeprefix(" ") for text in shown] == [label, f"{label}level"]


def test_the_suffix_chooses_the_format(tmp_path):
    draw_panels([Panel("Hopper", "return", [curve("a", [0, 1])])], tmp_path / "new" / "a.pdf")
    assert (tmp_path / "new" / "a.pdf").read_bytes().startswith(b"%PDF")
    with pytest.raises(O2OSpecError, match=r"picture .*a\.docx, expected a name"):
        draw_panels([Panel("Hopper", "return", [curve("a", [0, 1])])], tmp_path / "a.docx")
