# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Results of a claim's runs, collected from run folders and stored as CSV with command, commit, machine and hours."""

from __future__ import annotations

import csv
import io
import json
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path

import numpy as np

from torchrl_o2o.durable import replace_durably
from torchrl_o2o.errors import O2OCheckpointError, O2ODataError
from torchrl_o2o.record.runs import load_run
from torchrl_o2o.reproduce.claims import Claim, Job

__all__ = ["OUTCOME", "Result", "collect", "read_results", "write_results"]

#: Written into a run's folder at its end: {"status": "finished", "failed" or "stopped", "hours": h, "machine": text}.
OUTCOME = "outcome.json"


@dataclass(frozen=True, eq=False)
class Result:
    """One run's outcome.

    Args:
        group: as in :class:`~torchrl_o2o.reproduce.claims.Job`.
        task: as in :class:`~torchrl_o2o.reproduce.claims.Job`.
        seed: as in :class:`~torchrl_o2o.reproduce.claims.Job`.
        key: the job's key; a result with another key belongs to other settings.
        status: ``finished`` or ``failed``.
        hours: running time of its process, summed over all resumed parts.
        machine: processor and number of cores.
        commit: commit of the checkout it ran from; empty outside a checkout.
        command: the training script and its overrides.
        steps: ``[n]``, increasing, negative offline.
        scores: ``[n]``, evaluations; NaN is kept.

    Examples:
        >>> curve = {"steps": np.array([0.0, 10.0]), "scores": np.array([20.0, 80.0])}
        >>> result = Result("rlpd", "hopper", 0, "rlpd-1a2b", "finished", 0.5, "8 cores", "", "rlpd.py seed=0", **curve)
        >>> result.status, float(result.scores[-1])
        ('finished', 80.0)
    """

    group: str
    task: str
    seed: int
    key: str
    status: str
    hours: float
    machine: str
    commit: str
    command: str
    steps: np.ndarray
    scores: np.ndarray


_COLUMNS = [field.name for field in fields(Result) if field.name not in ("steps", "scores")] + ["curve"]


def read_results(path: str | Path) -> list[Result]:
    """Read a claim's CSV file.

    Args:
        path: the file; a missing file counts as one without results.

    Returns:
        The results, in the order of the file.

    Raises:
        O2ODataError: if the file has other columns or a damaged row.

    Examples:
        >>> from pathlib import Path
        >>> from torchrl_o2o.reproduce import read_results
        >>> read_results(Path("/nowhere/claim.csv"))
        []
    """
    path = Path(path)
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        if reader.fieldnames != _COLUMNS:
            raise O2ODataError(f"got {path} with the columns {reader.fieldnames}, expected {_COLUMNS}")
        return [_result(row, path) for row in reader]


def _result(row: Mapping[str, str], path: Path) -> Result:
    try:
        points = [point.split(":") for point in row["curve"].split(";") if point]
        steps, scores = (np.array([float(point[at]) for point in points]) for at in (0, 1))
        texts = {name: row[name] for name in ("group", "task", "key", "status", "machine", "commit", "command")}
        return Result(**texts, seed=int(row["seed"]), hours=float(row["hours"]), steps=steps, scores=scores)
    except (ValueError, IndexError, AttributeError) as error:
        raise O2ODataError(f"{path} has a damaged row ({error}): {dict(row)}.") from error


def write_results(path: str | Path, results: Iterable[Result]) -> None:
    """Write a claim's CSV file, replacing the old one in one step.

    Args:
        path: the file; its folder is made if absent.
        results: the results, one row each. The curve is one column of ``step:score`` joined by semicolons.

    Examples:
        >>> import tempfile
        >>> from pathlib import Path
        >>> import numpy as np
        >>> from torchrl_o2o.reproduce import Result, read_results, write_results
        >>> path = Path(tempfile.mkdtemp()) / "claim.csv"
        >>> curve = {"steps": np.array([0.0, 10.0]), "scores": np.array([1.0, float("nan")])}
        >>> write_results(path, [Result("rlpd", "maze", 0, "k", "finished", 0.1, "cpu", "", "rlpd.py", **curve)])
        >>> read_results(path)[0].scores
        array([ 1., nan])
    """
    text = io.StringIO()
    writer = csv.DictWriter(text, _COLUMNS, lineterminator="\n")
    writer.writeheader()
    for result in results:
        row = {name: getattr(result, name) for name in _COLUMNS[:-1]}
        points = zip(result.steps.tolist(), result.scores.tolist(), strict=True)
        writer.writerow(row | {"curve": ";".join(f"{step:g}:{score:.6g}" for step, score in points)})
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_durably(path, text.getvalue().encode())


def collect(claim: Claim, runs: Path, known: Iterable[Result], *, shared: Iterable[Result] = ()) -> list[Result]:
    """Combine known results with those in run folders; results with other settings than the claim's are skipped.

    Args:
        claim: whose runs.
        runs: folder of run folders, each named after its job's key.
        known: earlier results; a finished one is never replaced.
        shared: results of other claims. A finished one with the same script, overrides and seed counts for this claim
            as well, under this claim's names of group and task.

    A finished run that cannot be read, or lacks the claim's metric, counts as failed, and a warning says why.

    Returns:
        Results in the order of the claim's jobs.
    """
    before = {result.key: result for result in shared if result.status == "finished"}
    before |= {result.key: result for result in known if result.status == "finished" or result.key not in before}
    found = (_latest(job, claim, runs / job.key, before.get(job.key)) for job in claim.jobs())
    return [result for result in found if result is not None]


def _latest(job: Job, claim: Claim, folder: Path, before: Result | None) -> Result | None:
    if (before is not None and before.status == "finished") or not (folder / OUTCOME).exists():
        return before and replace(before, group=job.group, task=job.task)
    outcome = json.loads((folder / OUTCOME).read_text(encoding="utf-8"))
    if outcome["status"] not in ("finished", "failed"):  # stopped: it will be continued later
        return None
    steps, scores, record, status = np.zeros(0), np.zeros(0), {}, outcome["status"]
    if status == "finished":
        try:
            run = load_run(folder, claim.metric)
            steps, scores, record = run.steps, run.scores, run.record
        except (O2ODataError, O2OCheckpointError) as error:
            status = "failed"
            warnings.warn(f"{claim.name}: a finished run counts as failed, because {error}", stacklevel=3)
    commit = (record.get("commit") or {}).get("hash", "")
    dirty = " with changes" if (record.get("commit") or {}).get("dirty") else ""
    command = " ".join([job.script, *job.overrides, f"seed={job.seed}"])
    place = (outcome["hours"], outcome["machine"], commit + dirty, command)
    return Result(job.group, job.task, job.seed, job.key, status, *place, steps, scores)
