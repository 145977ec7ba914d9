# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""The demonstration's folder and summary: before, after, without data, the data's best, a random policy."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from torchrl_o2o.data import describe_offline
from torchrl_o2o.envs.scores import find_reference
from torchrl_o2o.errors import O2OCheckpointError
from torchrl_o2o.record.files import read_metrics, read_run
from torchrl_o2o.record.report import write_report

__all__ = ["fresh_folder", "summarize"]


def fresh_folder(base: Path) -> Path:
    """Make the first of ``base``, ``base-2``, ``base-3``, ... that does not exist yet.

    Args:
        base: the requested folder.

    Returns:
        The new folder.

    Raises:
        O2OCheckpointError: if it cannot be made.

    Examples:
        >>> import tempfile
        >>> from torchrl_o2o.commands.demo_summary import fresh_folder
        >>> base = Path(tempfile.mkdtemp()) / "demo"
        >>> fresh_folder(base).name, fresh_folder(base).name
        ('demo', 'demo-2')
    """
    candidate, number = base, 1
    while candidate.exists():
        number += 1
        candidate = base.with_name(f"{base.name}-{number}")
    try:
        candidate.mkdir(parents=True)
    except OSError as error:
        raise O2OCheckpointError(f"cannot make {candidate} ({error}); choose a writable folder with --out") from error
    return candidate


def summarize(out: Path, dataset: str) -> str:
    """Draw the learning curves and write the results as a table.

    Args:
        out: a folder with the runs ``rlpd`` and ``sac``.
        dataset: the data set's name.

    Returns:
        The table and the paths of all files, as text.
    """
    info = describe_offline(dataset)
    levels = {"data, mean episode": info.returns.mean, "data, best episode": info.returns.max}
    report = write_report([out / "rlpd", out / "sac"], out, levels=levels)
    rlpd, sac = _evaluations(out / "rlpd"), _evaluations(out / "sac")
    env_id = read_run(out / "rlpd")["config"]["env"]["env_id"]
    reference = find_reference(env_id)
    rows = [
        ("RLPD before training", _shown(rlpd[0])),
        (f"RLPD after {rlpd[-1]['step']} steps", _shown(rlpd[-1])),
        (f"SAC without data, {sac[-1]['step']} steps", _shown(sac[-1])),
        ("data, mean episode", f"{info.returns.mean:9.2f}"),
        ("data, best episode", f"{info.returns.max:9.2f}"),
        ("random policy", "unknown" if reference is None else f"{reference.random:9.2f}"),
    ]
    width = max(len(name) for name, _ in rows)
    table = "\n".join(f"  {name:<{width}}  {value}" for name, value in rows)
    return f"\n{env_id}, return per episode\n{table}\n\nreport: {report.with_name('report.html')}\n" + (
        f"policy: {out / 'rlpd' / 'policy.pt'}\nmetrics: {out / 'rlpd' / 'metrics.jsonl'}"
    )


def _evaluations(folder: Path) -> list[dict[str, Any]]:
    return [row for row in read_metrics(folder) if "evaluation/return" in row]


def _shown(row: dict[str, Any]) -> str:
    text = f"{row['evaluation/return']:9.2f} +- {row['evaluation/return_std']:.2f} over episodes"
    success = row.get("evaluation/success", math.nan)
    return text if math.isnan(success) else f"{text}, success {success:.2f}"
