# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""What benchmarks measured before on this machine, so that `make bench` says what became slower.

Absolute times depend on what else runs. What is kept and compared is a contender's rate over that of a reference
contender of the same run: 2.0 is twice as fast as the reference. The rows lie in `benchmarks/history.jsonl`, which is
not committed; they name processor, cores, commit and time.
"""

from __future__ import annotations

import json
import os
import platform
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from torchrl_o2o.provenance import git_commit

HISTORY = Path(__file__).with_name("history.jsonl")
#: A ratio that fell by more than this is printed.
TOLERANCE = 0.1


def machine() -> str:
    """Processor and cores; no host name."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        name = platform.processor() or platform.machine()
    return f"{name}, {os.cpu_count()} cores"


def remember(benchmark: str, times: Mapping[str, float], reference: str, history: Path = HISTORY) -> list[str]:
    """Write this run's ratios down and say which fell since the last run on this machine.

    Args:
        benchmark: what was measured, settings included; only equal names are compared.
        times: of each contender in one unit, the reference among them.
        reference: the contender whose rate is 1.
        history: the file of the rows.

    Returns:
        One sentence for each ratio that fell by more than a tenth; they are printed too.
    """
    ratios = {name: times[reference] / value for name, value in times.items() if name != reference}
    key = {"benchmark": benchmark, "machine": machine(), "reference": reference}
    before = [row for row in _rows(history) if all(row.get(name) == value for name, value in key.items())]
    now = {**key, "when": datetime.now(UTC).isoformat(timespec="seconds")}
    commit = git_commit(HISTORY.parent)
    with history.open("a", encoding="utf-8") as file:
        file.write(json.dumps({**now, "commit": commit and commit["hash"], "ratios": ratios}) + "\n")
    fallen = _fallen(before[-1], ratios) if before else []
    for line in fallen:
        print(f"slower: {benchmark}: {line}", file=sys.stderr, flush=True)
    return fallen


def _fallen(before: Mapping[str, Any], ratios: Mapping[str, float]) -> list[str]:
    since = f"since {before['when']} ({(before['commit'] or 'no commit')[:10]})"
    return [
        f"{name} is {now:.2f} times as fast as {before['reference']}, and was {then:.2f} {since}"
        for name, then in before["ratios"].items()
        if (now := ratios.get(name)) is not None and now < (1 - TOLERANCE) * then
    ]


def _rows(history: Path) -> list[dict[str, Any]]:
    if not history.exists():
        return []
    return [json.loads(line) for line in history.read_text(encoding="utf-8").splitlines()]
