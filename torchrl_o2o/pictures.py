# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Write figures of matplotlib, which is imported only when something is drawn."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

from torchrl_o2o.durable import replace_durably
from torchrl_o2o.errors import O2OSpecError

__all__ = ["check_picture", "plain_text", "save_figure"]


def check_picture(path: str | Path) -> Path:
    """Raise if a picture cannot be written under a name, before something is computed for it.

    Args:
        path: the picture's file; its suffix chooses the format.

    Returns:
        The path.

    Raises:
        O2OSpecError: if matplotlib is not installed or does not write files with this suffix.

    Examples:
        >>> import pytest
        >>> _ = pytest.importorskip("matplotlib")
        >>> check_picture("curves.pdf").name
        'curves.pdf'
        >>> check_picture("curves.docx")
        Traceback (most recent call last):
        torchrl_o2o.errors.O2OSpecError: got the picture curves.docx, expected a name that ends in one of ..., .png, ...
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise O2OSpecError("drawing needs matplotlib, which is not installed; pip install torchrl_o2o[plot]") from error
    known = sorted(Figure().canvas.get_supported_filetypes())
    if Path(path).suffix.lower()[1:] not in known:
        raise O2OSpecError(
            f"got the picture {path}, expected a name that ends in one of {', '.join(f'.{name}' for name in known)}; "
            "rename it, for example to end in .png"
        )
    return Path(path)


def save_figure(figure: Any, path: str | Path) -> Path:
    """Write a figure; a reader sees the old or the new file.

    Args:
        figure: of matplotlib.
        path: the picture's file; its suffix chooses the format.

    Returns:
        The file.

    Raises:
        O2OSpecError: as :func:`check_picture`, or if the file cannot be written.

    Examples:
        >>> import pytest, tempfile
        >>> figures = pytest.importorskip("matplotlib.figure")
        >>> save_figure(figures.Figure(), tempfile.mkdtemp() + "/empty.svg").name
        'empty.svg'
    """
    path, image = check_picture(path), io.BytesIO()
    figure.savefig(image, bbox_inches="tight", dpi=150, format=path.suffix.lower()[1:])
    try:
        replace_durably(path, image.getvalue())
    except OSError as error:
        raise O2OSpecError(
            f"the picture cannot be written to {path} ({error}); name a file in a folder that exists and can be written"
        ) from error
    return path


def plain_text(text: str) -> str:
    r"""A text that matplotlib draws letter by letter: a dollar sign would begin a formula.

    Args:
        text: such as a setting or the name of a file.

    Examples:
        >>> plain_text("x=$a_{")
        'x=\\$a_{'
    """
    return text.replace("$", r"\$")
