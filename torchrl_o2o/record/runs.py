# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Read run folders: the learning curve of a run, and groups of runs that differ only in their seed."""

from __future__ import annotations

import json
import os
import shlex
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from torchrl_o2o.arguments import checked_arguments
from torchrl_o2o.errors import O2ODataError, O2OSpecError
from torchrl_o2o.record.curves import common_scores
from torchrl_o2o.record.files import read_metrics, read_rows, read_run

__all__ = ["Group", "Run", "find_runs", "group_runs", "load_run"]

# Configuration entries that name a figure's task, and a curve; the first one present is used.
_TASK_KEYS = ("task", "task_name", "env_id", "env", "env_name", "dataset")
_NAME_KEYS = ("algorithm", "algo", "method")
# Entries and sections that do not influence the results: they neither split groups nor appear in labels.
_COSMETIC = {
    *("run_dir", "out", "folder", "resume", "recorder", "num_threads", "schedule", "env_guard", "hydra"),
    *("log_every", "eval_every", "checkpoint_every", "tensorboard", "wandb", "progress", "matmul_route"),
}
_NOT_RUNS = ("checkpoints", "tensorboard", "wandb")


@dataclass(frozen=True, eq=False)
class Run:
    """One run's evaluations and their origin.

    Args:
        folder: the run's folder.
        seed: its seed.
        config: the rest of its configuration, with nested keys joined by dots.
        record: the content of ``run.json``.
        steps: ``[n]``, rising; negative steps are offline.
        scores: ``[n]``, the metric at those steps.
        rows: the rows of ``metrics.jsonl``, for :meth:`curve`. Defaults to none.

    Examples:
        >>> rows = [{"step": 0, "train/qvalue": 1.0}, {"step": 10, "train/qvalue": 2.0}]
        >>> config, none = {"algorithm": "rlpd", "task_name": "hopper"}, np.array([])
        >>> run = Run(Path("runs/a"), 0, config, {}, none, none, rows)
        >>> run.name, run.task
        ('rlpd', 'hopper')
        >>> run.curve("train/qvalue")
        (array([ 0, 10]), array([1., 2.]))
    """

    folder: Path
    seed: int
    config: Mapping[str, Any]
    record: Mapping[str, Any]
    steps: np.ndarray
    scores: np.ndarray
    rows: Sequence[Mapping[str, Any]] = ()

    def curve(self, metric: str) -> tuple[np.ndarray, np.ndarray]:
        """Steps and values of any metric that the run logged; the last row of equal steps counts.

        Args:
            metric: its name, such as ``train/qvalue``.
        """
        points = {row["step"]: row[metric] for row in self.rows if metric in row}
        steps = sorted(points)
        return np.array(steps), np.array([points[step] for step in steps])

    @property
    def name(self) -> str:
        """The algorithm that the configuration names, or else the script that ran."""
        named = self._named(_NAME_KEYS)
        command = self.record.get("command") or ""
        try:
            words = shlex.split(command)
        except ValueError:  # an unclosed quote
            words = command.split()
        words = words or [self.folder.name]
        return named or Path(words[0]).stem

    @property
    def task(self) -> str:
        """The task that the configuration names; empty if it names none."""
        return self._named(_TASK_KEYS)

    def _named(self, keys: Sequence[str]) -> str:
        """The first of these entries that the configuration has, on one line; empty if it has none, or only nulls."""
        found = next((self.config[key] for key in keys if self.config.get(key) is not None), "")
        return " ".join(str(found).split())


@dataclass(frozen=True, eq=False)
class Group:
    """Runs of one configuration, ordered by seed and cut to the steps that all of them have.

    Args:
        label: distinguishes the group from the others of its task.
        task: see :attr:`Run.task`.
        runs: the runs.
        steps: ``[n]``, the common steps.
        scores: ``[seeds, n]``.
        unfinished: skipped runs, less than half as long as the longest.

    Examples:
        >>> def run(seed, last):
        ...     config = {"algorithm": "rlpd", "task_name": "hopper"}
        ...     return Run(Path(f"runs/{seed}"), seed, config, {}, np.array([0, 10]), np.array([0.0, last]))
        >>> group = group_runs([run(1, 70.0), run(0, 60.0)])[0]
        >>> group.label, group.task, group.scores.tolist()
        ('rlpd', 'hopper', [[0.0, 60.0], [0.0, 70.0]])
    """

    label: str
    task: str
    runs: Sequence[Run]
    steps: np.ndarray
    scores: np.ndarray
    unfinished: Sequence[Run] = field(default=())


def find_runs(folders: Iterable[str | Path]) -> list[Path]:
    """Find run folders: the given folders if they contain a ``run.json``, otherwise the folders below them that do.

    A run within a run (the offline phase of a fine-tuning) is skipped unless it is given itself.

    Args:
        folders: run folders or folders of run folders.

    Returns:
        Run folders, each once, in the order given.

    Raises:
        O2ODataError: if a folder contains no run.
        O2OSpecError: if ``folders`` is not a list of at least one folder.

    Examples:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from torchrl_o2o.record import find_runs
        >>> root = Path(tempfile.mkdtemp())
        >>> for name in ("a", "b"):
        ...     (root / name).mkdir(); _ = (root / name / "run.json").write_text("{}")
        >>> [run.name for run in find_runs([root, root / "a"])]
        ['a', 'b']
    """
    if isinstance(folders, str | Path) or not (folders := list(folders)):
        raise O2OSpecError(f"got folders={folders!r}, expected a list of at least one folder")
    found: dict[Path, None] = {}
    for folder in map(Path, folders):
        runs = sorted(_run_folders(folder))
        if not runs:
            raise O2ODataError(f"got {folder} without a run, expected a run.json in it or below it")
        inner = {run for run in runs if any(above in runs for above in run.parents)}  # its phases
        found.update(dict.fromkeys(run.resolve() for run in runs if run not in inner))
    return list(found)


def _run_folders(folder: Path) -> Iterator[Path]:
    """Folders with a run.json. Folders that runs create temporarily while saving are not searched."""
    seen: set[str] = set()
    for where, inner, files in os.walk(folder, followlinks=True):  # ignores folders that have vanished in the meantime
        if (place := os.path.realpath(where)) in seen:  # a link to a parent folder, or to a folder that was searched
            inner[:] = []
            continue
        seen.add(place)
        inner[:] = sorted(name for name in inner if name not in _NOT_RUNS)
        if "run.json" in files:
            yield Path(where)


def load_run(folder: str | Path, metric: str = "evaluation/return") -> Run:
    """Read one run. An incomplete last line is skipped with a warning; the last row of equal steps counts.

    If the run did its own offline phase, in its folder ``offline``, the evaluations at negative steps are read from
    there. The folder of the pre-training that it started from (``pretrained``) is not part of the configuration,
    because every seed has its own.

    Args:
        folder: the run's folder, with ``run.json`` and ``metrics.jsonl``.
        metric: the metric to report.

    Returns:
        The run.

    Raises:
        O2ODataError: if the configuration has no seed or one that is no whole number, or no row has the metric.
        O2OCheckpointError: if a file is missing or damaged.

    Examples:
        >>> import tempfile
        >>> from torchrl_o2o.record import Recorder
        >>> from torchrl_o2o.record import load_run
        >>> folder = tempfile.mkdtemp()
        >>> with Recorder(folder, config={"task": "Hopper-v5"}, seed=1) as recorder:
        ...     recorder.log(0, {"evaluation/return": 5.0})
        ...     recorder.log(100, {"evaluation/return": 9.0})
        >>> run = load_run(folder)
        >>> run.seed, run.task, run.steps.tolist(), run.scores.tolist()
        (1, 'Hopper-v5', [0, 100], [5.0, 9.0])
    """
    folder = Path(folder)
    record = read_run(folder)
    config = _flatten(record.get("config", {}))
    if "seed" not in config:
        raise O2ODataError(
            f"got {folder / 'run.json'} without config.seed; record the seed, because a report is over seeds"
        )
    if not isinstance(config["seed"], int) or isinstance(config["seed"], bool):
        raise O2ODataError(
            f"got {folder / 'run.json'} with config.seed={config['seed']!r}, expected a whole number, because runs are "
            "told apart by it; record one run for each seed"
        )
    rows, torn = read_rows(folder)
    if torn:
        warnings.warn(f"{folder / 'metrics.jsonl'} ends in the middle of a line, which is skipped", stacklevel=2)
    config.pop("pretrained", None)
    if (folder / "offline" / "run.json").exists():
        rows = [*(row for row in read_metrics(folder / "offline") if row["step"] < 0), *rows]
    run = Run(folder, config.pop("seed"), config, record, np.array([]), np.array([]), rows)
    steps, scores = run.curve(metric)
    if not len(steps):
        there = sorted({name for row in rows for name in row if name.startswith("eval")})
        raise O2ODataError(f"{folder} has no metric {metric!r}; it has {', '.join(there) or 'no evaluations'}.")
    return replace(run, steps=steps, scores=scores)


def _flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in config.items():
        flat |= _flatten(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat


@checked_arguments
def group_runs(runs: Sequence[Run], *, ignore: Sequence[str] = ()) -> list[Group]:
    """Group runs that differ only in the seed.

    Args:
        runs: the runs.
        ignore: further configuration entries that may differ within a group, with nested keys joined by dots.

    Returns:
        Groups in the order of their first runs. A label names the algorithm and the settings that distinguish groups of
        the same algorithm and task.

    Raises:
        O2ODataError: if a group has the same seed twice, or its runs have no step in common.

    Examples:
        >>> import numpy as np
        >>> from pathlib import Path
        >>> from torchrl_o2o.record import Run, group_runs
        >>> def run(seed, utd):
        ...     config = {"utd": utd, "gamma": 0.9}
        ...     return Run(Path("r"), seed, config, {"command": "rlpd.py"}, np.arange(2), np.ones(2))
        >>> [(group.label, len(group.runs)) for group in group_runs([run(0, 1), run(1, 1), run(0, 20)])]
        [('rlpd utd=1', 2), ('rlpd utd=20', 1)]
    """
    by_config: dict[str, list[Run]] = {}
    for run in runs:
        # Entries that are null are dropped: a run of a version without a setting equals one in which it is null.
        config = {key: value for key, value in run.config.items() if value is not None and _tells(key, ignore)}
        by_config.setdefault(_text([run.name, config]), []).append(run)
    heads = [members[0] for members in by_config.values()]
    return [_group(members, _label(members[0], heads, ignore)) for members in by_config.values()]


def _text(value: Any) -> str:
    """A text that is the same for equal values, so that ``lr=1`` and ``lr=1.0`` are one setting."""
    return json.dumps(_whole(value), sort_keys=True)


def _whole(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _whole(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_whole(each) for each in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _tells(key: str, ignore: Sequence[str]) -> bool:
    """Whether an entry can split a group."""
    return key not in ignore and key.partition(".")[0] not in _COSMETIC


def _label(run: Run, heads: Sequence[Run], ignore: Sequence[str]) -> str:
    rivals = [head.config for head in heads if (head.name, head.task) == (run.name, run.task)]
    keys = dict.fromkeys(key for config in rivals for key in config if _tells(key, ignore))
    values = {key: [_text(config.get(key)) for config in rivals] for key in keys}

    def rank(key: str) -> tuple[Any, ...]:  # entries of all runs first, then short names
        return any(key not in config for config in rivals), key.count("."), len(key), key

    telling = sorted((key for key in keys if len(set(values[key])) > 1), key=rank)
    alone = [key for key in telling if len(set(values[key])) == len(rivals)]  # a single entry that distinguishes all
    shown = [key for key in alone[:1] or _enough(telling, values) if key in run.config]
    return " ".join([run.name, *(f"{key}={run.config[key]}" for key in shown)]).replace("\n", " ")


def _enough(telling: Sequence[str], values: Mapping[str, Sequence[str]]) -> list[str]:
    """The first entries that together distinguish all groups."""
    chosen: list[str] = []
    apart = 1
    for key in telling:
        distinct = len(set(zip(*(values[name] for name in (*chosen, key)), strict=True)))
        if distinct > apart:
            chosen, apart = [*chosen, key], distinct
    return chosen


def _group(runs: Sequence[Run], label: str) -> Group:
    runs = sorted(runs, key=lambda run: run.seed)
    for run, following in pairwise(runs):
        if run.seed == following.seed:
            raise O2ODataError(
                f"got {run.folder} and {following.folder}, both {label} with seed {run.seed}; leave one out"
            )
    runs, unfinished = _finished(runs)
    steps, scores = common_scores([(run.steps, run.scores) for run in runs])
    if not len(steps):
        raise O2ODataError(f"got runs of {label} without a common evaluation step; report them separately")
    for run in runs:
        if run.steps[-1] > steps[-1]:
            warnings.warn(f"{run.folder} is cut at step {steps[-1]}, the last one that all seeds have", stacklevel=3)
    left_out = np.setdiff1d(np.concatenate([run.steps[run.steps <= steps[-1]] for run in runs]), steps)
    if len(left_out):
        lacking = next(run for run in runs if left_out[0] not in run.steps)
        warnings.warn(
            f"{len(left_out)} evaluations of {label} are left out, the first at step {left_out[0]}, because not all "
            f"seeds have them: {lacking.folder} does not",
            stacklevel=3,
        )
    return Group(label, runs[0].task, runs, steps, scores, unfinished)


def _finished(runs: Sequence[Run]) -> tuple[list[Run], list[Run]]:
    """Separate runs less than half as long as the longest, because a common curve would be cut to their length."""
    spans = [run.steps[-1] - run.steps[0] for run in runs]
    far = [span >= max(spans) / 2 for span in spans]
    finished = [run for run, enough in zip(runs, far, strict=True) if enough]
    unfinished = [run for run, enough in zip(runs, far, strict=True) if not enough]
    for run in unfinished:
        warnings.warn(f"{run.folder} is unfinished, at step {run.steps[-1]}, and is skipped", stacklevel=4)
    return finished, unfinished
