# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""The page of the data sets that are made here, from their recipes."""

from __future__ import annotations

from pathlib import Path

from reference import replace

from torchrl_o2o.data.datasets.recipes import LOCAL_DATASETS

HEAD = """\
# Data sets made here

`o2o data make NAME` makes one in seconds to minutes, with Minari's layout, into Minari's folder. Nothing is downloaded.
`--steps` asks for more or fewer. `o2o data show NAME` sums up returns, lengths, terminals and how the
data came about; `--plot FILE.png` draws them. Names with *yes* in the last column need an actor: `--policy FILE.npz`.
Data of your own: [data](../data.md).

| name | environment | steps | what acts | needs a policy |
|---|---|---|---|---|
"""


def write(folder: Path) -> None:
    """Write the page."""
    rows = [
        f"| `{name}` | {recipe.env_id} | {recipe.num_steps:,} | {recipe.description.rpartition(', ')[0]} | "
        f"{'yes' if recipe.needs_policy else ''} |"
        for name, recipe in LOCAL_DATASETS.items()
    ]
    replace(folder / "datasets.md", HEAD + "\n".join(rows) + "\n")
