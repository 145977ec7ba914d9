# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
from __future__ import annotations

from pathlib import Path

import pytest

from torchrl_o2o.errors import O2OSpecError
from torchrl_o2o.pictures import check_picture, plain_text, save_figure

figures = pytest.importorskip("matplotlib.figure")


@pytest.mark.parametrize(
    ("name", "begins"), [("a.png", b"\x89PNG"), ("a.pdf", b"%PDF"), ("a.svg", b"<?xml"), ("A.PNG", b"\x89PNG")]
)
def test_the_suffix_chooses_the_format(tmp_path: Path, name: str, begins: bytes) -> None:
    assert save_figure(figures.Figure(), tmp_path / name).read_bytes().startswith(begins)


@pytest.mark.parametrize("name", ["a.docx", "a", "", "a."])
def test_other_suffixes_are_refused_before_anything_is_drawn(tmp_path: Path, name: str) -> None:
    with pytest.raises(O2OSpecError, match=r"expected a name that ends in one of .*\.pdf, .*\.png"):
        check_picture(tmp_path / name)


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "folder.png").mkdir()
    for path in (tmp_path / "file" / "a.png", tmp_path / "none" / "a.png", tmp_path / "folder.png"):
        with pytest.raises(O2OSpecError, match=r"cannot be written to .*in a folder that exists"):
            save_figure(figures.Figure(), path)


@pytest.mark.parametrize("text", ["a=$b_{", "$x_$", "$$", r"a\$b", "5 $"])
def test_dollar_signs_are_drawn_as_they_are(tmp_path: Path, text: str) -> None:
    from matplotlib.cbook import is_math_text

    assert not is_math_text(plain_text(text))
    figure = figures.Figure()
    figure.subplots().set(title=plain_text(text))
    save_figure(figure, tmp_path / "a.svg")
