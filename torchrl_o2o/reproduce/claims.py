# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Declarations of claims: one YAML file each, with the runs that test it and the rule that decides."""

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
#: Statistics that score a run's learning curve; more is better in all of them.
STATISTICS = ("final", "gain", "kept", "mean")
#: ``more``: better by the smallest difference of interest; ``no_less``: not worse by that much.
RULES = ("more", "no_less")


@dataclass(frozen=True)
class Comparison:
    """One part of a claim: a group against another one, or against zero.

    Args:
        group: the group that the claim speaks of.
        than: the group it is compared with; ``None`` compares with zero, as for a gain.
        statistic: ``final``, the last evaluation; ``gain``, that minus the hand-over score; ``kept``, minus the fall
            early online (0: no dip); ``mean``, the time average while online.
        rule: ``more`` or ``no_less``.
        margin: smallest difference of interest, in units of the metric, positive.
        window: part of the online steps in which a fall counts for ``kept``, in (0, 1]. Defaults to 0.1. Where updates
            begin after a warm-up, the window has to reach beyond it.
        start: the group whose score at the hand-over ``gain`` and ``kept`` are measured from, by seed and task; the
            group's own evaluation at step 0 then counts as its first online. For methods that act by another policy
            from step 0 on. ``None`` (default) is the group itself.

    Raises:
        O2OSpecError: if the statistic or the rule is unknown, a number is out of range, or the statistic has no start.

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
            raise O2OSpecError(f"margin={self.margin}; expected a smallest difference of interest above 0.")
        if not 0.0 < self.window <= 1.0:
            raise O2OSpecError(f"window={self.window}; expected a part of the online steps, in (0, 1].")
        if self.start is not None and self.statistic not in ("gain", "kept"):
            raise O2OSpecError(f"start={self.start} with statistic={self.statistic}; only gain and kept have a start.")


@dataclass(frozen=True)
class Job:
    """One training: what :func:`~torchrl_o2o.scripts.script_command` is given, and whom it counts for.

    Args:
        group: the claim's name of what is compared.
        task: the claim's name of the task.
        seed: of the run.
        script: the training script.
        overrides: Hydra overrides without the seed and the run's folder.
        offline_of: key of the run whose offline phase this one starts from; ``None`` does its own. It does not count
            for the key: an offline phase of the same settings and seed gives the same numbers.

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
        """Names the run by what determines its numbers, so that claims share their runs."""
        words = json.dumps([self.script, self.overrides, self.seed])
        return f"{self.script}-{hashlib.blake2b(words.encode(), digest_size=6).hexdigest()}"


@dataclass(frozen=True)
class Claim:
    """A claim of a paper, and the runs that test it.

    Args:
        name: the file's name.
        paper: authors, year, arXiv number.
        where: figure, table or section.
        statement: the claim in one sentence.
        metric: of the evaluations, such as ``evaluation/normalized_score``.
        seeds: one run of every group and task for each.
        settings: how they were chosen and where they differ from the paper's.
        script: the training script of groups that name none.
        overrides: for all runs.
        tasks: overrides by task.
        groups: overrides by group; a first entry ``script=NAME`` takes another script.
        comparisons: what is compared; the claim holds if all of them do.
        share_offline: the group whose offline phase serves all groups, where they differ only afterwards; ``None`` lets
            every run do its own.

    Raises:
        O2OSpecError: if a comparison names a group that there is not, or there is no task, group, comparison or seed.

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
            raise O2OSpecError(f"{self.name}: comparisons name {unknown}; the groups are {sorted(self.groups)}.")
        if not (self.tasks and self.groups and self.comparisons and self.seeds):
            raise O2OSpecError(f"{self.name}: expected at least one task, group, comparison and seed.")

    def jobs(self) -> Iterator[Job]:
        """All runs, ordered so that the first task is answered first, seed by seed.

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
        Names that :func:`load_claim` takes.

    Examples:
        >>> from torchrl_o2o.reproduce import find_claims
        >>> "rlpd-layer-norm" in find_claims()
        True
    """
    return sorted(path.stem for path in CLAIMS.glob("*.yaml"))


def load_claim(name: str | Path) -> Claim:
    """Read a claim.

    Args:
        name: one of :func:`find_claims`, or the path of a YAML file of your own (it ends in ``.yaml``).

    Returns:
        The claim, checked.

    Raises:
        O2OSpecError: if there is no such claim, or the file lacks a key, has an unknown one, or contradicts itself.

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
        raise O2OSpecError(f"there is no claim {str(name)!r}; there are {', '.join(close)}.") from error
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
        raise O2OSpecError(f"{path} has {have}; expected exactly {sorted(needed)}, and perhaps {may}.")
    try:
        parts = tuple(Comparison(**part) for part in data["comparisons"])
    except TypeError as error:
        wanted = [field.name for field in fields(Comparison)]
        raise O2OSpecError(f"{path}: a comparison is off ({error}); expected {wanted}.") from error
    if not isinstance(data["seeds"], list):
        raise O2OSpecError(f"{path}: seeds is {data['seeds']!r}; expected a list, such as [0, 1, 2, 3, 4].")
    seeds = tuple(check_seed(seed, f"{path}: seeds") for seed in data["seeds"])
    data |= {"comparisons": parts, "seeds": seeds, "overrides": _words(path, "overrides", data["overrides"])}
    data |= {key: _overrides(path, key, data[key]) for key in ("tasks", "groups")}
    claim = Claim(name=path.stem, **data)
    _check_apart(path, claim)
    return claim


def _check_apart(path: Path, claim: Claim) -> None:
    """Raise if two groups or tasks have the same runs, because their results would have the same name."""
    known: dict[str, Job] = {}
    for job in claim.jobs():
        if (same := known.setdefault(job.key, job)) is not job:
            one, other = (f"{each.group} on {each.task}, seed {each.seed}" for each in (same, job))
            raise O2OSpecError(
                f"{path}: {one} and {other} are the same run, {job.script} with {list(job.overrides)}; expected that "
                "groups and tasks differ in their overrides, and each seed once."
            )


def _overrides(path: Path, key: str, section: Any) -> dict[str, tuple[str, ...]]:
    if not isinstance(section, dict):
        raise O2OSpecError(f"{path}: {key} is {section!r}; expected a dictionary of lists of overrides.")
    return {str(name): _words(path, f"{key}.{name}", words) for name, words in section.items()}


def _words(path: Path, key: str, words: Any) -> tuple[str, ...]:
    if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
        raise O2OSpecError(f'{path}: {key} is {words!r}; expected a list of overrides, such as ["a=1", "b=2"].')
    return tuple(words)
