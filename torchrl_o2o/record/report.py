# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Report on runs: learning curves, and a table over the seeds of every group of runs.

Figures over seeds are interquartile means with 95 % stratified bootstrap intervals (Agarwal et al., 2021).
"""

from __future__ import annotations

import warnings
import zipfile
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from torchrl_o2o.arguments import checked_arguments
from torchrl_o2o.durable import replace_durably
from torchrl_o2o.errors import O2ODataError, O2OSpecError
from torchrl_o2o.record.curves import common_scores, dip, gain, iqm, regret, stratified_bootstrap_interval
from torchrl_o2o.record.figures import Curve, Panel, draw_panels
from torchrl_o2o.record.html import write_html
from torchrl_o2o.record.runs import Group, Run, find_runs, group_runs, load_run

__all__ = ["load_peers", "write_report"]

# Environment steps of each phase of CORL's published curves.
_PEER_STEPS = 1_000_000
# What numpy, zip and zlib raise for a damaged file: RuntimeError for wrong flags and versions of an entry.
_DAMAGED = (OSError, EOFError, ValueError, RuntimeError, zipfile.BadZipFile, zlib.error)
# Seed of the bootstrap resamples, so that reports of the same runs are equal.
_BOOTSTRAP_SEED = 0
# The score at which regret is zero, by metric.
_OPTIMA = {"evaluation/normalized_score": 100.0, "evaluation/success": 1.0}
# Training metrics that the figure shows, in this order.
_TRAINING = {
    "train/qvalue": "mean Q of the batch",
    "train/qvalue_std": "disagreement of the critics",
    "train/offline_share": "share of offline rows",
    "train/effective_sample_size": "effective sample size",
    "train/entropy": "entropy of the policy",
}
_INTERVALS = "Interquartile means over seeds; in brackets the 95 % stratified bootstrap interval."
_NO_INTERVALS = "One seed per group: there is no interval, and no conclusion about the algorithm."
_LEGEND = """\
Dip: fall below the hand-over score in the first tenth of the online steps. Regret: time average of 1 - score / optimum
while online, where the metric has an optimum. Gain: last score minus hand-over score."""


def load_peers(path: str | Path, task: str) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Read published curves of one task.

    Args:
        path: an ``.npz`` with the keys ``<algorithm>/<task>/offline`` and ``.../online``, each ``[seeds, evaluations]``
            of normalized scores, which count as evenly spaced over the one million steps of a phase, the last one at
            its end.
        task: the task's name in that file.

    Returns:
        Steps ``[n]`` and scores ``[seeds, n]`` by algorithm; empty if the file does not contain the task.

    Raises:
        O2ODataError: if the file cannot be read, or one phase is missing or has other seeds than the other.

    Examples:
        >>> import tempfile
        >>> import numpy as np
        >>> from torchrl_o2o.record import load_peers
        >>> path = tempfile.mkdtemp() + "/peers.npz"
        >>> np.savez(path, **{"IQL/pen/offline": np.zeros((4, 2)), "IQL/pen/online": np.ones((4, 2))})
        >>> load_peers(path, "pen")["IQL"][0]
        array([-500000.,       0.,  500000., 1000000.])
    """
    try:
        phases = _phases(path, task)
    except _DAMAGED as error:
        raise O2ODataError(
            f"cannot read the peers' curves from {path} ({error}); expected an .npz with the keys "
            "algorithm/task/offline and algorithm/task/online."
        ) from error
    return {name: _joined(f"{path}: {name}/{task}", *both) for name, both in phases.items()}


def _phases(path: str | Path, task: str) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Offline and online scores by algorithm."""
    file = np.load(path, allow_pickle=False)
    if not isinstance(file, np.lib.npyio.NpzFile):
        raise ValueError("it holds a single array without a name")
    with file:
        names = [key.split("/")[0] for key in file.files if key.endswith(f"/{task}/online")]
        lacking = [name for name in names if f"{name}/{task}/offline" not in file.files]
        if lacking:
            raise ValueError(f"it has no {lacking[0]}/{task}/offline")
        return {name: (file[f"{name}/{task}/offline"], file[f"{name}/{task}/online"]) for name in names}


def _joined(name: str, offline: np.ndarray, online: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    if offline.ndim != 2 or online.ndim != 2 or len(offline) != len(online):
        raise O2ODataError(
            f"{name} has the shapes {list(offline.shape)} offline and {list(online.shape)} online, expected [seeds, "
            "evaluations] with the same number of seeds"
        )
    spaced = [np.linspace(0.0, _PEER_STEPS, phase.shape[1] + 1)[1:] for phase in (offline, online)]
    return np.concatenate([spaced[0] - _PEER_STEPS, spaced[1]]), np.hstack([offline, online])


@checked_arguments
def write_report(
    folders: Iterable[str | Path],
    out: str | Path,
    *,
    metric: str = "evaluation/return",
    peers: str | Path | None = None,
    peers_task: str | None = None,
    ignore: Sequence[str] = (),
    levels: Mapping[str, float] | None = None,
) -> Path:
    """Write a report on runs: ``report.md``, its figures, and ``report.html`` with both in one file.

    ``curves.png`` shows the metric over the steps. ``training.png`` shows logged training metrics: the mean Q of the
    batches, the critics' disagreement, the share of offline rows, the effective sample size and the entropy.

    Args:
        folders: run folders, or folders of run folders.
        out: folder to write to; made if absent, files of an earlier report are replaced.
        metric: the evaluation metric to report. Regret needs one with a known optimum: ``evaluation/normalized_score``
            or ``evaluation/success``.
        peers: published curves to draw too (:func:`load_peers`); only for normalized scores.
        peers_task: the task's name in the peers' file; ``None`` uses the runs' own task names.
        ignore: as in :func:`group_runs`.
        levels: values of the metric to compare with, by name, such as the data's mean; drawn as lines.

    Returns:
        The path of ``report.md``.

    Raises:
        O2ODataError: if a run or the peers' file is unusable.
        O2OSpecError: if peers are requested with another metric or for unknown tasks, matplotlib is missing, or ``out``
            cannot be written.

    Examples:
        >>> import tempfile
        >>> from torchrl_o2o.record import Recorder
        >>> from torchrl_o2o.record import write_report
        >>> folder = Path(tempfile.mkdtemp())
        >>> for seed in (0, 1):
        ...     config = {"algorithm": "rlpd", "task": "Hopper-v5"}
        ...     with Recorder(folder / f"seed-{seed}", config=config, seed=seed) as recorder:
        ...         for step, score in ((0, 50.0), (100, 40.0), (1000, 90.0)):
        ...             recorder.log(step, {"evaluation/normalized_score": score})
        >>> report = write_report([folder], folder, metric="evaluation/normalized_score")
        >>> next(line for line in report.read_text().splitlines() if "rlpd" in line)
        '| Hopper-v5 | rlpd | 2 | 1,000 | 90 [90, 90] | 10 | 0.37 | 40 |'
    """
    if peers is not None and metric != "evaluation/normalized_score":
        raise O2OSpecError(
            f"got peers' curves and metric={metric}, expected evaluation/normalized_score, which the curves contain"
        )
    groups = group_runs(_load_runs(find_runs(folders), metric), ignore=ignore)
    generator = np.random.default_rng(_BOOTSTRAP_SEED)
    panels = _panels(groups, metric.rpartition("/")[2].replace("_", " "), generator, levels)
    if peers is not None:
        _add_peers(panels, peers, peers_task)
    figures = {"curves.png": list(panels.values()), "training.png": _training_panels(groups, generator)}
    out = Path(out)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise O2OSpecError(f"cannot write a report to {out} ({error}); choose a writable folder") from error
    images = {name: out / name for name, shown in figures.items() if shown}
    for name, image in images.items():
        draw_panels(figures[name], image)
    text = _markdown(groups, metric, list(images), generator)
    replace_durably(out / "report.md", text.encode())
    write_html(text, out / "report.html", title=metric, images=images)
    return out / "report.md"


def _panels(
    groups: Sequence[Group], ylabel: str, generator: np.random.Generator, levels: Mapping[str, float] | None = None
) -> dict[str, Panel]:
    """One panel per task; a group with a single evaluation is drawn only if no group has a curve."""
    panels = {group.task: Panel(group.task, ylabel, [], levels or {}) for group in groups}
    for group in groups:
        panels[group.task].curves.append(Curve.over_seeds(group.label, group.steps, group.scores, generator))
    for panel in panels.values():
        panel.curves[:] = [curve for curve in panel.curves if len(curve.steps) > 1] or panel.curves
    return panels


def _training_panels(groups: Sequence[Group], generator: np.random.Generator) -> list[Panel]:
    """Panels of training metrics, for the groups that logged them."""
    panels = []
    for metric, ylabel in _TRAINING.items():
        logged = [group for group in (_logged(group, metric) for group in groups) if group is not None]
        panels += _panels(logged, ylabel, generator).values()
    return panels


def _logged(group: Group, metric: str) -> Group | None:
    """The same runs with another metric; ``None`` if a run lacks it, or if the runs have no step in common."""
    steps, scores = common_scores([run.curve(metric) for run in group.runs])
    return replace(group, steps=steps, scores=scores) if len(steps) else None


def _load_runs(folders: Sequence[Path], metric: str) -> list[Run]:
    """Load the runs that can be reported, and skip those that have nothing to report yet."""
    runs, failed = [], []
    for folder in folders:
        if not (folder / "metrics.jsonl").exists():  # the run is just beginning
            failed.append(O2ODataError(f"{folder} has no metrics yet."))
            continue
        try:
            runs.append(load_run(folder, metric))
        except O2ODataError as error:
            failed.append(error)
    if not runs:
        raise failed[0]
    for error in failed:
        warnings.warn(f"a run is skipped: {error}", stacklevel=3)
    return runs


def _add_peers(panels: Mapping[str, Panel], path: str | Path, task: str | None) -> None:
    found = False
    for panel in panels.values():
        for label, (steps, scores) in load_peers(path, task or panel.title).items():
            panel.curves.append(Curve(f"{label} (published)", steps, iqm(scores, axis=0), peer=True))
            found = True
    if not found:
        raise O2OSpecError(
            f"got {path} without the tasks {task or sorted(panels)}; name one of its tasks with peers_task"
        )


def _markdown(groups: Sequence[Group], metric: str, images: Sequence[str], generator: np.random.Generator) -> str:
    results = [_result_row(group, _OPTIMA.get(metric), generator) for group in groups]
    origins = [_origin_row(group) for group in groups]
    lines = [
        f"# {metric}",
        "",
        f"{_INTERVALS if any(len(group.runs) > 1 for group in groups) else _NO_INTERVALS} {_LEGEND}",
        "",
        *(f"**{line}**\n" for line in _remarks(groups)),
        *(f"![{Path(name).stem}]({name})\n" for name in images),
        *_table(("task", "group", "seeds", "steps", "final score", "dip", "regret", "gain"), results),
        "",
        *_table(("task", "group", "command of the first seed", "commit", "versions"), origins),
        "",
    ]
    return "\n".join(lines)


def _remarks(groups: Sequence[Group]) -> list[str]:
    """Remarks on what the numbers do not show."""
    remarks = []
    for group in groups:
        remarks += [f"{run.folder} is unfinished, at step {run.steps[-1]:,}: left out." for run in group.unfinished]
        if len(group.steps) == 1:
            remarks.append(f"{group.label} has one evaluation so far, at step {group.steps[0]:,}: no curve.")
        for run in group.runs:
            lost = ~np.isfinite(run.scores)
            if lost.any():
                what = "NaN" if np.isnan(run.scores[lost][0]) else "infinity"
                where = f"{run.folder} measured {what} at step {run.steps[lost][0]:,}"
                remarks.append(f"{where}: all numbers computed from it are NaN.")
    return remarks


def _result_row(group: Group, optimum: float | None, generator: np.random.Generator) -> list[str]:
    final, interval = group.scores[:, -1], ""
    if len(final) > 1:  # one seed has no interval
        low, high = stratified_bootstrap_interval(final, generator=generator)
        interval = f" [{low:.4g}, {high:.4g}]"
    switch = [f"{value:.3g}" if value is not None else "–" for value in _switch_figures(group, optimum)]
    score = f"{iqm(final):.4g}{interval}"
    seeds = f"{len(group.runs)}{f' (+{len(group.unfinished)} unfinished)' if group.unfinished else ''}"
    return [group.task, group.label, seeds, f"{group.steps[-1]:,}", score, *switch]


def _switch_figures(group: Group, optimum: float | None) -> list[float | None]:
    """Dip, regret and gain over seeds; None if the curve lacks the phase concerned."""
    online, handed_over = int(np.sum(group.steps > 0)), bool(group.steps[0] <= 0)
    metrics: list[Callable[..., float] | None] = [None] * 3
    if online and handed_over:
        metrics = [dip, None, gain]
    if optimum is not None and online and online + handed_over > 1:
        metrics[1] = partial(regret, optimum=optimum)
    return [
        None if metric is None else float(iqm([metric(group.steps, scores) for scores in group.scores]))
        for metric in metrics
    ]


def _origin_row(group: Group) -> list[str]:
    records = [run.record for run in group.runs]
    named = [record.get("versions", {}).items() for record in records]
    versions = [", ".join(f"{name} {version}" for name, version in each) or "–" for each in named]
    commits = [_commit(record.get("commit")) for record in records]
    return [group.task, group.label, _code(records[0].get("command")), _distinct(commits), _distinct(versions)]


def _code(command: str | None) -> str:
    if not command:
        return "–"
    fence = "``" if "`" in command else "`"
    return f"{fence}{command}{fence}"


def _commit(commit: Any) -> str:
    if isinstance(commit, Mapping) and "hash" in commit:
        return f"{commit['hash'][:10]}{' with changes' if commit.get('dirty') else ''}"
    return str(commit)[:10] if commit else "–"


def _distinct(values: Iterable[str]) -> str:
    return "; ".join(dict.fromkeys(values))


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    one_line = ([" ".join(cell.split()).replace("|", "\\|") for cell in row] for row in rows)
    cells = [head, ["---"] * len(head), *one_line]
    return [f"| {' | '.join(row)} |" for row in cells]
