# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""The documentation site: `make docs`. The modules in `_ext` generate what can be generated."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from sphinx.application import Sphinx

HERE = Path(__file__).parent
ROOT = HERE.parent
sys.path.insert(0, str(HERE / "_ext"))

import datasets  # noqa: E402
import docstrings  # noqa: E402
import gallery  # noqa: E402
import links  # noqa: E402
import reference  # noqa: E402
import results  # noqa: E402

from torchrl_o2o import __version__  # noqa: E402

#: `O2O_DOCS_EXECUTE=0` leaves out running examples and tutorials: a first look in a minute.
EXECUTE = os.environ.get("O2O_DOCS_EXECUTE", "1") != "0"
#: `O2O_DOCS_ONLINE=1` links to the references of torch, TorchRL and others, whose inventories are on the network.
ONLINE = os.environ.get("O2O_DOCS_ONLINE", "0") == "1"

project = "torchrl_o2o"
author = "The torchrl_o2o contributors"
copyright = author
version = release = __version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.mathjax",
    "sphinx_copybutton",
    "sphinx_design",
    "sphinx_gallery.gen_gallery",
]
if ONLINE:
    extensions.append("sphinx.ext.intersphinx")
intersphinx_mapping = {
    "python": ("https://docs.python.org/3", None),
    "torch": ("https://docs.pytorch.org/docs/stable", None),
    "torchrl": ("https://docs.pytorch.org/rl/stable", None),
    "tensordict": ("https://docs.pytorch.org/tensordict/stable", None),
    "gymnasium": ("https://gymnasium.farama.org", None),
}

html_theme = "furo"
html_title = f"torchrl_o2o {__version__}"
exclude_patterns = ["_build", "_ext", "tutorials", "generated/examples"]
source_suffix = {".md": "markdown", ".rst": "restructuredtext"}
suppress_warnings = ["config.cache"]
nitpicky = False

myst_enable_extensions = ["colon_fence", "dollarmath", "deflist"]
myst_heading_anchors = 3

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_default_options = {"members": True, "show-inheritance": True}
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True
napoleon_custom_sections = [("Keyword Args", "params_style")]
copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True

(HERE / "generated").mkdir(exist_ok=True)
gallery.write_examples(ROOT, HERE / "generated" / "examples")
sphinx_gallery_conf = gallery.configuration(ROOT, execute=EXECUTE)


def setup(app: Sphinx) -> None:
    """Generate pages before Sphinx looks for sources; fix links that leave the folder of the pages."""
    reference.write(HERE / "generated")
    datasets.write(HERE / "generated")
    links.write_pages(ROOT, HERE / "generated")
    app.connect("source-read", results.append)
    app.connect("source-read", links.fix)
    app.connect("autodoc-process-docstring", docstrings.fix, priority=400)
