# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Declarations of claims: one YAML file per claim, with its runs and its decision rule."""

from __future__ import annotations

import difflib
import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, dataclass, fields, replace
from pathlib import Path
from typing import Any

from torchrl_o2o.errors import O2OSpecError, check_option, check_seed

__all__ = ["RULES", "STATISTICS", "Claim", "Comparison", "Job", "find_claims", "load_claim"]

CLAIMS = Path(__file__).with_name("claims")
#: Statistics that score a run's learning curve; for all of them larger is better.
STATISTICS = ("final", "late", "gain", "kept", "mean")
#: ``more``: better by at least the smallest difference of interest; ``no_less``: not worse by as much as that.
RULES = ("more", "no_less")


@dataclass(frozen=True)
class Comparison:
    """One part of a claim: a comparison of a group with another one or with zero.

    Args:
        group: the group that the claim is about.
        than: the group to compare with; ``None`` compares with zero, for instance for a gain.
        statistic: ``final``, the last evaluation; ``late``, the mean of the evaluations at the end of the online phase,
            for scores that jump between evaluations; ``gain``, the last evaluation minus the hand-over score; ``kept``,
            the negative fall early in the online phase (0: no dip); ``mean``, the time average of the online phase.
        rule: ``more`` or ``no_less``.
        margin: smallest difference of interest, in units of the metric, positive.
        window: part of the online steps, in (0, 1], in which a fall counts for ``kept``, and whose evaluations, at the
            end, count for ``late``. Defaults to 0.1. If updates begin after a warm-up, that of ``kept`` must reach
            beyond it.
        start: the group whose hand-over score is the reference of ``gain`` and ``kept``, for each seed and task. The
            evaluation at step 0 then counts as the first online one. Use it for methods that act with another policy
            from step 0 on. ``None`` (default) is the group itself.

    Raises:
        O2OSpecError: if the statistic or the rule is unknown, a number is out of range, or ``start`` is given for
            another statistic.

    Examples:
        >>> part = Comparison("rlpd", than="sac", statistic="final", rule="more", margin=5.0)
        >>> part.measured
        'final'
    """

    group: str
    than: str | None
    statistic: str
    rule: str
    margin: float
    window: float = 0.1
    start: str | None = None

    @property
    def measured(self) -> str:
        """The statistic in words.

        Examples:
            >>> Comparison("pex", None, "kept", "no_less", 3.0, window=0.5, start="direct").measured
            'kept over 50 % of the steps, from the start of direct'
        """
        over = f" over {self.window:.0%} of the steps".replace("%", " %") if self.window != 0.1 else ""
        return self.statistic + over + (f", from the start of {self.start}" if self.start is not None else "")

    def __post_init__(self) -> None:
        check_option("statistic", self.statistic, STATISTICS)
        check_option("rule", self.rule, RULES)
        if not self.margin > 0:
            raise O2OSpecError(f"got margin={self.margin}, expected a smallest difference of interest above 0")
        if not 0.0 < self.window <= 1.0:
            raise O2OSpecError(f"window={self.window}; expected a part of the online steps, in (0, 1].")
        if self.start is not None and self.statistic not in ("gain", "kept"):
            raise O2OSpecError(
                f"got start={self.start} with statistic={self.statistic}, expected gain or kept; leave start out"
            )


@dataclass(frozen=True)
class Job:
    """One training: the arguments of :func:`~torchrl_o2o.scripts.script_command`, and the group and task it counts for.

    Args:
        group: the name of the group in the claim.
        task: the name of the task in the claim.
        seed: the run's seed.
        script: the training script.
        overrides: Hydra overrides without the seed and the run's folder.
        offline_of: key of the run whose offline phase this one starts from; ``None`` runs its own. It is not part of
            the key, because an offline phase with the same settings and seed gives the same numbers.

    Examples:
        >>> Job("no-norm", "hopper", 0, "rlpd", ("task=hopper", "qvalue.layer_norm=false")).key
        'rlpd-af050bdd9cb7'
    """

    group: str
    task: str
    seed: int
    script: str
    overrides: tuple[str, ...]
    offline_of: str | None = None

    @property
    def key(self) -> str:
        """Name of the run, from the settings that determine its numbers, so that claims share their runs."""
        words = json.dumps([self.script, self.overrides, self.seed])
        return f"{self.script}-{hashlib.blake2b(words.encode(), digest_size=6).hexdigest()}"


@dataclass(frozen=True)
class Claim:
    """A claim of a paper, and the runs that test it.

    Args:
        name: the file's name.
        paper: authors, year, arXiv number.
        where: figure, table or section of the paper.
        statement: the claim in one sentence.
        metric: the evaluation metric, such as ``evaluation/normalized_score``.
        seeds: the seeds; every group and task has one run per seed.
        settings: how the settings were chosen and where they differ from the paper's.
        script: the training script of groups that do not name one.
        overrides: overrides of all runs.
        tasks: overrides by task.
        groups: overrides by group; a first entry ``script=NAME`` selects another script.
        comparisons: the comparisons; the claim holds if all of them do.
        share_offline: the group whose offline phase all groups start from, if they differ only afterwards; with
            ``None`` every run does its own.

    Raises:
        O2OSpecError: if a comparison names an unknown group, or there is no task, group, comparison or seed.

    Examples:
        >>> from torchrl_o2o.reproduce import load_claim
        >>> claim = load_claim("rlpd-layer-norm")
        >>> claim.metric, len(claim.seeds)
        ('evaluation/normalized_score', 5)
    """

    name: str
    paper: str
    where: str
    statement: str
    metric: str
    seeds: tuple[int, ...]
    settings: str
    script: str
    overrides: tuple[str, ...]
    tasks: Mapping[str, tuple[str, ...]]
    groups: Mapping[str, tuple[str, ...]]
    comparisons: tuple[Comparison, ...]
    share_offline: str | None = None

    def __post_init__(self) -> None:
        if self.share_offline is not None:
            check_option("share_offline", self.share_offline, tuple(self.groups))
        named = {name for part in self.comparisons for name in (part.group, part.than, part.start) if name}
        if unknown := sorted(named - set(self.groups)):
            raise O2OSpecError(
                f"{self.name}: got comparisons of the unknown groups {unknown}, expected some of {sorted(self.groups)}"
            )
        if not (self.tasks and self.groups and self.comparisons and self.seeds):
            raise O2OSpecError(f"{self.name}: got no task, group, comparison or seed, expected at least one of each")

    def jobs(self) -> Iterator[Job]:
        """All runs, ordered by task and then by seed, so that the first task finishes first.

        Examples:
            >>> from torchrl_o2o.reproduce import find_claims, load_claim
            >>> next(load_claim(find_claims()[0]).jobs()).seed
            0
        """
        for task in self.tasks:
            for seed in self.seeds:
                first = self._job(self.share_offline, task, seed) if self.share_offline is not None else None
                if first is not None:
                    yield first
                for group in self.groups:
                    if group != self.share_offline:
                        yield replace(self._job(group, task, seed), offline_of=first and first.key)

    def _job(self, group: str, task: str, seed: int) -> Job:
        script, how = self._script(self.groups[group])
        return Job(group, task, seed, script, (*self.tasks[task], *self.overrides, *how))

    def _script(self, overrides: tuple[str, ...]) -> tuple[str, tuple[str, ...]]:
        if overrides and overrides[0].startswith("script="):
            return overrides[0].removeprefix("script="), overrides[1:]
        return self.script, overrides


def find_claims() -> list[str]:
    """Name the claims that the package declares, in alphabetic order.

    Returns:
        Names that :func:`load_claim` accepts.

    Examples:
        >>> from torchrl_o2o.reproduce import find_claims
        >>> "rlpd-layer-norm" in find_claims()
        True
    """
    return sorted(path.stem for path in CLAIMS.glob("*.yaml"))


def load_claim(name: str | Path) -> Claim:
    """Read a claim.

    Args:
        name: one of :func:`find_claims`, or the path of your own YAML file, which ends in ``.yaml``.

    Returns:
        The claim.

    Raises:
        O2OSpecError: if the claim does not exist, or the file lacks a key, has an unknown key, or contradicts itself.

    Examples:
        >>> from torchrl_o2o.reproduce import load_claim
        >>> load_claim("rlpd-layer-norm").script
        'rlpd'
    """
    path = Path(name) if str(name).endswith(".yaml") else CLAIMS / f"{name}.yaml"
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        close = difflib.get_close_matches(str(name), find_claims()) or find_claims()
        raise O2OSpecError(f"got the unknown claim {str(name)!r}, expected one of {', '.join(close)}") from error
    return _claim(path, text)


def _claim(path: Path, text: str) -> Claim:
    import yaml

    known = {field.name: field.default is MISSING for field in fields(Claim) if field.name != "name"}
    needed = {name for name, is_needed in known.items() if is_needed}
    try:
        data: Any = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise O2OSpecError(f"{path} cannot be read as YAML ({error}).") from error
    if not isinstance(data, dict) or not needed <= set(data) <= set(known):
        have = sorted(data) if isinstance(data, dict) else type(data).__name__
        may = sorted(set(known) - needed)
        raise O2OSpecError(f"got the keys {have} in {path}, expected exactly {sorted(needed)} and optionally {may}")
    try:
        parts = tuple(Comparison(**part) for part in data["comparisons"])
    except TypeError as error:
        wanted = [field.name for field in fields(Comparison)]
        raise O2OSpecError(f"{path}: got a wrong comparison ({error}), expected {wanted}") from error
    if not isinstance(data["seeds"], list):
        raise O2OSpecError(f"{path}: seeds is {data['seeds']!r}; expected a list, such as [0, 1, 2, 3, 4].")
    seeds = tuple(check_seed(seed, f"{path}: seeds") for seed in data["seeds"])
    data |= {"comparisons": parts, "seeds": seeds, "overrides": _words(path, "overrides", data["overrides"])}
    data |= {key: _overrides(path, key, data[key]) for key in ("tasks", "groups")}
    claim = Claim(name=path.stem, **data)
    _check_apart(path, claim)
    return claim


def _check_apart(path: Path, claim: Claim) -> None:
    """Raise if two groups or tasks share a run, because their results would have the same name."""
    known: dict[str, Job] = {}
    for job in claim.jobs():
        if (same := known.setdefault(job.key, job)) is not job:
            one, other = (f"{each.group} on {each.task}, seed {each.seed}" for each in (same, job))
            raise O2OSpecError(
                f"{path}: got the same run for {one} and {other}, {job.script} with {list(job.overrides)}; expected "
                "groups and tasks that differ in their overrides, and each seed once"
            )


def _overrides(path: Path, key: str, section: Any) -> dict[str, tuple[str, ...]]:
    if not isinstance(section, dict):
        raise O2OSpecError(f"{path}: got {key}={section!r}, expected a dictionary of lists of overrides")
    return {str(name): _words(path, f"{key}.{name}", words) for name, words in section.items()}


def _words(path: Path, key: str, words: Any) -> tuple[str, ...]:
    if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
        raise O2OSpecError(f'{path}: {key} is {words!r}; expected a list of overrides, such as ["a=1", "b=2"].')
    return tuple(words)
