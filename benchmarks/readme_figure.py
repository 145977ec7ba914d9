# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Draw README's figure, RLPD and SAC over five seeds, from the evaluations in `sota-implementations/rlpd/results.csv`.

python benchmarks/readme_figure.py docs/figures/rlpd.png
"""

from __future__ import annotations

import csv
import sys
from pathlib import Path

import numpy as np

from torchrl_o2o.data import describe_offline
from torchrl_o2o.record import Curve, Panel, draw_panels

RESULTS = Path(__file__).parents[1] / "sota-implementations/rlpd/results.csv"
DATASET = "o2o/halfcheetah/linear-mix-v0"
LABELS = {"rlpd": "RLPD, half of each batch from the data", "sac": "SAC, without the data"}


def curve(algorithm: str) -> Curve:
    """Interquartile mean over seeds, with its interval."""
    with RESULTS.open() as file:
        rows = [row for row in csv.DictReader(file) if row["task"] == "halfcheetah-linear-mix-cpu"]
    rows = [row for row in rows if row["algorithm"] == algorithm]
    seeds, steps = (sorted({int(row[name]) for row in rows}) for name in ("seed", "step"))
    found = {(int(row["seed"]), int(row["step"])): float(row["evaluation_return"]) for row in rows}
    scores = np.array([[found[seed, step] for step in steps] for seed in seeds])
    return Curve.over_seeds(LABELS[algorithm], np.array(steps), scores, np.random.default_rng(0))


def main() -> None:
    """Draw."""
    info = describe_offline(DATASET)
    levels = {"data, mean episode": info.returns.mean, "data, best episode": info.returns.max}
    panel = Panel("HalfCheetah-v5, five seeds", "return", [curve("rlpd"), curve("sac")], levels)
    target = Path(sys.argv[1])
    target.parent.mkdir(parents=True, exist_ok=True)
    draw_panels([panel], target)


if __name__ == "__main__":
    main()
