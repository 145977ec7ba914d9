# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Turn a report in Markdown into one HTML file; markdown-it-py, which renders it, is an optional dependency."""

from __future__ import annotations

import base64
import html
from collections.abc import Mapping
from pathlib import Path

from torchrl_o2o.durable import replace_durably
from torchrl_o2o.errors import O2OSpecError

__all__ = ["write_html"]

_PAGE = """\
<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>{title}</title>
<style>
body {{ font-family: system-ui, sans-serif; line-height: 1.5; max-width: 75rem; margin: 2rem auto; padding: 0 1rem; }}
img {{ max-width: 100%; }}
table {{ border-collapse: collapse; margin: 1rem 0; display: block; overflow-x: auto; }}
th, td {{ border-bottom: 1px solid #ccc; padding: 0.3rem 0.7rem; text-align: left; vertical-align: top; }}
</style>
{body}
</html>
"""


def write_html(markdown: str, path: str | Path, *, title: str, images: Mapping[str, Path] | None = None) -> None:
    """Write Markdown as an HTML page that needs no other file.

    HTML within the Markdown is shown as text, because labels come from configurations of unknown origin.

    Args:
        markdown: the text, CommonMark with tables.
        path: the file to write.
        title: the title of the browser window.
        images: PNG files by their names in the text; existing ones are embedded in the page. Defaults to none.

    Raises:
        O2OSpecError: if markdown-it-py is not installed.

    Examples:
        >>> import tempfile
        >>> page = Path(tempfile.mkdtemp()) / "report.html"
        >>> write_html("# Return\\n\\n| task |\\n|---|\\n| door |", page, title="Report")
        >>> "<td>door</td>" in page.read_text()
        True
    """
    try:
        from markdown_it import MarkdownIt
    except ImportError as error:
        raise O2OSpecError("an HTML report needs markdown-it-py; pip install torchrl_o2o[plot]") from error
    body = MarkdownIt("commonmark", {"html": False}).enable("table").render(markdown)
    for name, image in (images or {}).items():
        if not image.exists():  # keep it as a link
            continue
        data = base64.b64encode(image.read_bytes()).decode("ascii")
        body = body.replace(f'src="{html.escape(name)}"', f'src="data:image/png;base64,{data}"')
    replace_durably(Path(path), _PAGE.format(title=html.escape(title), body=body).encode())
