# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""The pages of the data sets that are made here: their recipes, and statistics of those that are on this machine."""

from __future__ import annotations

from pathlib import Path

from reference import replace

from torchrl_o2o.data import describe_offline
from torchrl_o2o.data.datasets.cache import dataset_root
from torchrl_o2o.data.datasets.recipes import LOCAL_DATASETS, Recipe
from torchrl_o2o.data.figure import plot_offline

HEAD = """\
# Local data sets

`o2o data make NAME` makes a data set in seconds to minutes, in Minari's format and folder. Nothing is downloaded.
`--steps` sets the number of steps. `o2o data show NAME` summarizes returns, lengths, terminal states and the
origin of the data; `--plot FILE.png` draws them. Names with *yes* in the last column need `--policy FILE.npz`.
To load your own data, see [data](../data.md).

| name | environment | steps | policy | needs a policy |
|---|---|---|---|---|
"""


def write(folder: Path) -> None:
    """Write the list and a page for each data set."""
    rows = [
        f"| [{name}]({_file(name)}) | {recipe.env_id} | {recipe.num_steps:,} | {_actor(recipe)} | "
        f"{'yes' if recipe.needs_policy else ''} |"
        for name, recipe in LOCAL_DATASETS.items()
    ]
    contents = "\n".join(["", "```{toctree}", ":hidden:", "", *map(_file, LOCAL_DATASETS), "```", ""])
    replace(folder / "datasets.md", HEAD + "\n".join(rows) + "\n" + contents)
    for name, recipe in LOCAL_DATASETS.items():
        replace(folder / _file(name), "\n".join(_page(name, recipe, folder)))


def _file(name: str) -> str:
    return f"data-{name.replace('/', '-')}.md"


def _actor(recipe: Recipe) -> str:
    return recipe.description.rpartition(", ")[0]


def _page(name: str, recipe: Recipe, folder: Path) -> list[str]:
    policy = " --policy FILE.npz" if recipe.needs_policy else ""
    lines = [
        f"# {name}",
        "",
        f"Environment: `{recipe.env_id}`. Policy: {_actor(recipe)}. {recipe.num_steps:,} steps by default.",
        "",
        "```",
        f"o2o data make {name}{policy}",
        "```",
        "",
        "```python",
        "from torchrl_o2o.data import load_offline",
        "",
        f'data = load_offline("{name}")',
        "```",
        "",
    ]
    return [*lines, *(_measured(name, folder) if (dataset_root() / name).exists() else [])]


def _measured(name: str, folder: Path) -> list[str]:
    """What `o2o data show` prints, and its figure."""
    figure = f"data-{name.replace('/', '-')}.png"
    plot_offline(name, folder / figure)
    return [
        "## What is in it",
        "",
        "Of the one that was made with seed 0 for this page:",
        "",
        "```",
        str(describe_offline(name)),
        "```",
        "",
        f"![returns, lengths and rewards]({figure})",
        "",
    ]
