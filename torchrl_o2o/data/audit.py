# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Audit data before the first gradient step: report rows that are broken, suspicious, or do not fit the environment.

All checks are vectorized, and work in parts where they would otherwise copy whole columns. Shapes: N transitions, E
episodes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Literal, cast

import torch
from tensordict import NestedKey, TensorDict, TensorDictBase
from torch import Tensor

from torchrl_o2o.data.env_match import EnvFacts, EnvLike, match_environment
from torchrl_o2o.data.findings import AuditReport, Finding
from torchrl_o2o.data.keys import EPISODE, TRANSITION, key_text
from torchrl_o2o.errors import O2ODataError, check_option

__all__ = ["AuditReport", "Finding", "audit", "check_limit", "drop_non_finite"]

_LARGE_REWARD = 1e6
#: Fewer than ``_FEW`` cases may be chance. Distances are measured on at most ``_SAMPLE`` rows and ``_NUMBERS`` numbers.
_FEW, _SAMPLE, _NUMBERS = 2, 10_000, 10_000_000
#: Numbers of a column that are examined at a time.
_AT_ONCE = 2**22
#: Data with at least this number of rows are a recording and not a toy example.
_MANY = 1_000
#: If all episodes end in a terminal state after the same number of steps, and it is below this, the task is short.
_SUSPICIOUS_LENGTH = 20
#: Factor by which a jump over a reset exceeds a usual step (also by chance if there are few ends), and factor by which
#: first observations are closer to each other than to arbitrary ones.
_JUMP, _ALIKE = 1.3, 1 / 3
#: Tolerance at the action bounds for float32 rounding, relative to the box's width.
_ROUNDING = 1e-6
_FLOAT_KEYS: tuple[NestedKey, ...] = ("observation", "action", ("next", "observation"), ("next", "reward"))


@dataclass(frozen=True)
class _Subject:
    """Data under audit, with the position of each row."""

    data: TensorDictBase
    starts: Tensor  # [E] rows of the whole data at which an episode begins
    rows: Tensor | None = None  # [N] positions of these rows in the whole data, if some were left out

    def steps(self, rows: Tensor) -> Tensor:
        """The positions of given rows within their episodes."""
        rows = rows if self.rows is None else self.rows[rows]
        return rows - self.starts[torch.searchsorted(self.starts, rows, right=True) - 1]

    def same_episode(self) -> Tensor:
        """Whether a row's episode continues in the next row, [N - 1]."""
        episode = self.data.get(EPISODE)
        same = episode[1:] == episode[:-1]
        return same if self.rows is None else same & (self.rows[1:] == self.rows[:-1] + 1)

    def finding(
        self, code: str, severity: Literal["error", "warning", "note"], rows: Tensor, key: NestedKey, message: str
    ) -> list[Finding]:
        """Report rows, by a mask [N] or by number, if any; the message may use {count}, {key} and {place}."""
        mask = rows.dtype == torch.bool
        count = _count(rows) if mask else len(rows)
        if not count:
            return []
        first = rows.view(torch.uint8).argmax().reshape(1) if mask else rows[:1]
        episode, step = int(self.data.get(EPISODE)[first]), int(self.steps(first))
        name = key_text(key)
        place = f"first at episode {episode}, step {step}"
        text = message.format(count=count, key=name, place=place)
        return [Finding(code, severity, text, count=count, key=name, episode=episode, step=step)]


def _count(mask: Tensor) -> int:
    """Number of rows in a mask. A sum would convert the mask to integers first, with eight times the memory."""
    return int(torch.count_nonzero(mask))


def _in_parts(mask: Callable[..., Tensor], *columns: Tensor) -> Tensor:
    """Compute a mask of rows, [N], in parts, so that intermediate results stay small."""
    rows = max(1, _AT_ONCE // max(1, columns[0][:1].numel()))
    parts = [mask(*part) for part in zip(*(column.split(rows) for column in columns))]
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def _spread(mask: Tensor, most: int) -> Tensor:
    """Indices of the rows of a mask; if they are more than ``most``, an evenly spread selection."""
    stride, before, found = max(1, _count(mask) // most), 0, []
    for number, part in enumerate(mask.split(_AT_ONCE)):
        rows = part.nonzero().squeeze(-1)
        found.append(rows[-before % stride :: stride] + number * _AT_ONCE)
        before += len(rows)
    return torch.cat(found)


def audit(
    data: TensorDictBase,
    *,
    action_low: float | Sequence[float] | Tensor = -1.0,
    action_high: float | Sequence[float] | Tensor = 1.0,
    env: EnvLike | EnvFacts | None = None,
    on_bad: Literal["error", "drop", "report"] = "error",
    name: str = "data",
    max_episode_steps: int | None = None,
) -> AuditReport:
    """Examine transitions in TED.

    Errors: missing or misshapen entries, no rows, NaN or infinite values, actions outside the box, dimensions or bounds
    that differ from the environment's, episodes beyond the time limit, terminal states that are all exactly at it, most
    rows not continuing in the next row, next observations that are the next episode's first, the row's own or zeros at
    time limits, most rows zero throughout. Warnings: columns without
    variation, rewards that are all equal or beyond 1e6, some next observations that do not continue in the next row, an
    episode that continues after its end.

    Args:
        data: transitions [N] with the entries of :data:`~torchrl_o2o.data.TRANSITION` and ``episode``. Not modified.
        action_low: lower bound of the actions, one for all or [a].
        action_high: upper bound.
        env: an environment (gymnasium or TorchRL), its id, or its :class:`~torchrl_o2o.data.env_match.EnvFacts`, with
            which dimensions and action bounds are compared.
        on_bad: ``"error"`` raises if there are errors, ``"report"`` never does, ``"drop"`` reports rows that are not
            finite as a warning and raises the other errors, for callers that then apply :func:`drop_non_finite`.
        name: name of the data in messages.
        max_episode_steps: the time limit of the episodes; ``None`` skips this check.

    Returns:
        The report, including the errors that are not raised.

    Raises:
        O2ODataError: see ``on_bad``. The message names key, episode, step and remedy.
        O2OSpecError: if ``on_bad`` is unknown.

    Examples:
        >>> import torch
        >>> from torchrl_o2o.data import audit, load_offline
        >>> arrays = {"observations": torch.randn(8, 3).numpy(), "actions": torch.rand(8, 2).numpy() * 2,
        ...           "rewards": torch.randn(8).numpy(), "episode": [0] * 8}
        >>> data = load_offline(arrays, action_bounds=(0.0, 2.0))
        >>> audit(data, name="toy").ok
        True
        >>> data["action"][3, 1] = 1.5
        >>> print(audit(data, name="toy", on_bad="report"))
        toy: 7 transitions in 1 episodes; 1 error, 0 warnings
          error [action_out_of_bounds] 1 actions are outside the box [-1, 1], first at episode 0, step 3...
    """
    check_option("on_bad", on_bad, ("error", "drop", "report"))
    layout = _check_layout(data)
    if layout:
        report = AuditReport(name, len(data) if data.ndim else 0, 0, tuple(layout))
        if on_bad != "report":
            report.raise_if_bad()
        return report
    subject = _subject(data)
    findings, finite = _check_finite(subject, "warning" if on_bad == "drop" else "error")
    episodes = int(data.get(EPISODE)[-1]) + 1
    if finite is not None and on_bad == "drop":
        subject = _Subject(data[finite], subject.starts, finite.nonzero().squeeze(-1))
    low, high = (torch.as_tensor(bound, dtype=torch.float32) for bound in (action_low, action_high))
    if len(subject.data):
        findings += _check_actions(subject, low, high)
        findings += [finding for check in _CHECKS for finding in check(subject)]
        findings += check_limit(subject.data, max_episode_steps, "error")
    else:
        findings.append(Finding("empty", "error", "no finite transition is left.", count=0))
    if env is not None:
        findings += match_environment(data, env, low, high)
    report = AuditReport(name, len(data), episodes, tuple(findings))
    if on_bad != "report":
        report.raise_if_bad()
    return report


def drop_non_finite(data: TensorDictBase) -> TensorDict:
    """Leave out every transition with a NaN or an infinity, and end the episode before each gap.

    The last row before a gap becomes truncated, and the first row after it begins a new episode. Returns are then never
    computed across the gap.

    Args:
        data: transitions [N] with ``episode``.

    Returns:
        New transitions, with episodes numbered from 0.

    Raises:
        O2ODataError: if nothing is left.

    Examples:
        >>> import torch
        >>> from torchrl_o2o.data import load_offline
        >>> from torchrl_o2o.data.audit import drop_non_finite
        >>> data = load_offline({"observations": torch.randn(7, 3).numpy(), "actions": torch.zeros(7, 1).numpy(),
        ...                      "rewards": torch.randn(7).numpy(), "episode": [0] * 7})
        >>> data["action"][2] = float("nan")
        >>> drop_non_finite(data)["episode"].tolist()
        [0, 0, 1, 1, 1]
    """
    finite = torch.stack([_finite_rows(data.get(key)) for key in _FLOAT_KEYS]).all(0)
    kept = finite.nonzero().squeeze(-1)
    if not len(kept):
        raise O2ODataError("got no finite transition; expected at least one. Check how the data were recorded.")
    episode = data.get(EPISODE)[kept]
    begins = torch.ones(len(kept), dtype=torch.bool)
    begins[1:] = (episode[1:] != episode[:-1]) | (kept[1:] != kept[:-1] + 1)
    ends = torch.cat([begins[1:], begins.new_ones(1)]).unsqueeze(-1)
    out = cast(TensorDictBase, data[kept]).clone()  # the annotation does not say what indexing returns
    out.set(EPISODE, begins.long().cumsum(0) - 1)
    terminated = out.get(("next", "terminated"))
    out.set(("next", "truncated"), (out.get(("next", "truncated")) | ends) & ~terminated)
    out.set(("next", "done"), terminated | out.get(("next", "truncated")))
    return out


def _check_layout(data: TensorDictBase) -> list[Finding]:
    keys = data.keys(include_nested=True)
    missing = [key_text(key) for key in (*TRANSITION, EPISODE) if key not in keys]
    if missing or data.ndim != 1:
        message = (
            f"the transitions have the batch size {tuple(data.shape)} and lack {missing}; expected [N] and every key."
        )
        return [Finding("layout", "error", message, count=len(missing))]
    if not len(data):
        return [Finding("empty", "error", "there are no transitions; expected at least one.", count=0)]
    findings = []
    for key in TRANSITION[3:]:
        if data.get(key).shape[1:] != (1,):
            message = f"{key_text(key)} has the shape {tuple(data.get(key).shape)}; expected [N, 1]."
            findings.append(Finding("layout", "error", message, key=key_text(key)))
    if data.get("observation").shape != data.get(("next", "observation")).shape:
        message = "observation and next.observation differ in shape."
        findings.append(Finding("layout", "error", message, key="next.observation"))
    return findings


def _subject(data: TensorDictBase) -> _Subject:
    episode = data.get(EPISODE)
    return _Subject(data, torch.cat([torch.zeros(1).long(), (episode[1:] != episode[:-1]).nonzero().squeeze(-1) + 1]))


def _finite_rows(values: Tensor) -> Tensor:
    if not values.is_floating_point():
        return torch.ones(len(values), dtype=torch.bool)
    return _in_parts(lambda part: torch.isfinite(part).flatten(1).all(1), values)


def _check_finite(subject: _Subject, severity: Literal["error", "warning"]) -> tuple[list[Finding], Tensor | None]:
    remedy = "they are dropped." if severity == "warning" else "pass on_bad='drop' to leave those transitions out."
    message = "{count} transitions have a NaN or infinite {key}, {place}; " + remedy
    findings: list[Finding] = []
    finite = torch.ones(len(subject.data), dtype=torch.bool)
    for key in _FLOAT_KEYS:
        rows = _finite_rows(subject.data.get(key))
        finite &= rows
        findings += subject.finding("non_finite", severity, ~rows, key, message)
    return findings, finite if findings else None


def _check_actions(subject: _Subject, low: Tensor, high: Tensor) -> list[Finding]:
    action = subject.data.get("action")
    slack = _ROUNDING * (high - low)
    outside = _in_parts(lambda part: ((part < low - slack) | (part > high + slack)).flatten(1).any(1), action)
    if not outside.any():
        return []
    seen = f"they span [{action.min().item():.4g}, {action.max().item():.4g}]"
    box = f"[{low.min().item():g}, {high.max().item():g}]"
    message = (
        "{count} actions are outside the box " + box + ", {place}; " + seen + ". "
        "Pass actions='clip' or actions='rescale', or action_bounds if they are in other units."
    )
    return subject.finding("action_out_of_bounds", "error", outside, "action", message)


def _check_flags(subject: _Subject) -> list[Finding]:
    terminated, truncated, done = (
        subject.data.get(("next", k)).squeeze(-1) for k in ("terminated", "truncated", "done")
    )
    findings = subject.finding(
        "both_flags", "warning", terminated & truncated, ("next", "truncated"),
        "{count} transitions are both terminated and truncated, {place}; they count as terminated.",
    )  # fmt: skip
    findings += subject.finding(
        "done_flag", "error", done != (terminated | truncated), ("next", "done"),
        "{count} transitions have {key} != terminated | truncated, {place}; recompute it.",
    )  # fmt: skip
    episode = subject.data.get(EPISODE)
    last = torch.cat([episode[1:] != episode[:-1], torch.ones(1, dtype=torch.bool)])
    findings += subject.finding(
        "goes_on", "warning", done & ~last, ("next", "done"),
        "{count} transitions are done although their episode continues, {place}; returns stop there.",
    )  # fmt: skip
    findings += subject.finding(
        "unfinished", "warning", last & ~done, ("next", "done"),
        "{count} episodes end without a flag, {place}; mark their last transition truncated.",
    )  # fmt: skip
    return findings


def check_limit(data: TensorDictBase, limit: int | None, severity: Literal["error", "warning"]) -> list[Finding]:
    """Compare episodes with a time limit.

    Args:
        data: transitions [N] with ``episode``.
        limit: the time limit; with ``None``, only terminal states that all come after the same number of steps are
            found.
        severity: severity of episodes that are longer. Terminal states that are all exactly at the limit are always an
            error.

    Returns:
        What was found.
    """
    subject = _subject(data)
    terminated, truncated = (data.get(("next", key)).squeeze(-1) for key in ("terminated", "truncated"))
    findings = []
    if limit is not None:
        remedy = "Pass max_episode_steps if the limit is another; otherwise, an array that ends episodes was not read."
        findings += subject.finding(
            "beyond_limit", severity, _reached(subject, limit), ("next", "done"),
            f"{{count}} episodes are longer than the time limit of {limit} steps, {{place}}. {remedy}",
        )  # fmt: skip
    steps = subject.steps(terminated.nonzero().squeeze(-1))
    if len(steps) == 1 and limit is not None and int(steps[0]) + 1 == limit and limit >= _SUSPICIOUS_LENGTH:
        return findings + subject.finding(
            "terminals_at_limit", "warning", terminated, ("next", "terminated"),
            f"the only terminal state is exactly at the time limit of {limit} steps, {{place}}: was it cut there? "
            "Then pass names={{'terminals': 'timeouts'}} with the array's name; else "
            "names={{'terminals': 'terminals'}}.",
        )  # fmt: skip
    if (
        len(steps) < _FEW
        or not bool((steps == steps[0]).all())
        or bool((subject.steps(truncated.nonzero().squeeze(-1)) >= steps[0] - 1).any())
    ):
        return findings
    length = int(steps[0]) + 1
    if limit is not None and length == limit:
        return findings + subject.finding(
            "terminals_at_limit", "error", terminated, ("next", "terminated"),
            f"all {{count}} terminal states are exactly at the time limit of {limit} steps, {{place}}: they look like "
            "time limits stored as terminals. Pass names={{'terminals': 'timeouts'}} with the array's name, or "
            "names={{'terminals': 'terminals'}} if they are terminal indeed.",
        )  # fmt: skip
    if limit is None and length >= _SUSPICIOUS_LENGTH:
        return findings + subject.finding(
            "terminals_alike", "warning", terminated, ("next", "terminated"),
            f"all {{count}} terminal states come after exactly {length} steps, {{place}}: are they time limits? Pass "
            "env or max_episode_steps to compare.",
        )  # fmt: skip
    return findings


def _reached(subject: _Subject, step: int) -> Tensor:
    """Indices of the rows that have a given number of rows before them in their episode."""
    lengths = torch.diff(subject.starts, append=torch.tensor([len(subject.data)]))
    return subject.starts[lengths > step] + step


def _distances(first: Tensor, second: Tensor, scale: Tensor) -> Tensor:
    """Distances between rows, [N], each column in units of its spread."""
    return ((first.flatten(1).float() - second.flatten(1).float()) / scale).square().mean(1).sqrt()


def _check_alignment(subject: _Subject) -> list[Finding]:
    """Check that rows continue in the next row, and not in the next episode."""
    observation, following = subject.data.get("observation"), subject.data.get(("next", "observation"))
    if len(observation) < 2 or observation.shape != following.shape:
        return []
    same = subject.same_episode()
    differ = _in_parts(lambda one, other: (one != other).flatten(1).any(1), following[:-1], observation[1:])
    broken = torch.cat([differ & same, differ.new_zeros(1)])
    stuck = _in_parts(lambda one, other: (one == other).flatten(1).all(1), following, observation).logical_and_(broken)
    if _count(stuck) > _count(same) // 2:
        return subject.finding(
            "stuck", "error" if len(observation) >= _MANY else "warning", stuck, ("next", "observation"),
            f"{{count}} of {_count(same)} transitions have their own observation as the next one, {{place}}, though "
            "the next row has another: one array was stored twice, before and after it changed. Copy observations "
            "where they are recorded, or leave next observations out.",
        )  # fmt: skip
    if _count(broken) > _count(same) // 2 and _come_elsewhere(observation, following, broken):
        return subject.finding(
            "shuffled", "error", broken, ("next", "observation"),
            f"{{count}} of {_count(same)} transitions continue in another row than the next, {{place}}: the rows are "
            "shuffled. Put them in order; or, if they are single transitions, give each row an episode of its own (an "
            "array episode = 0, 1, 2, ...) and pass min_episode_length=1.",
        )  # fmt: skip
    findings = subject.finding(
        "misaligned", "warning", broken, ("next", "observation"),
        "{count} transitions do not continue in the next row of their episode, {place}: rows are shuffled, missing or "
        "shifted against each other. Temporal-difference targets may be sound, returns are not.",
    )  # fmt: skip
    return findings + _check_jumps(subject, same, ~differ & ~same)


def _come_elsewhere(observation: Tensor, following: Tensor, broken: Tensor) -> bool:
    """Whether the next observations are observations of other rows, in arbitrary order."""
    rows = _spread(broken, _SAMPLE)
    sought = [row.tobytes() for row in following[rows].flatten(1).cpu().numpy()]
    place: dict[bytes, int | None] = dict.fromkeys(sought)
    for number, row in enumerate(observation.flatten(1).cpu().numpy()):
        if (content := row.tobytes()) in place:
            place[content] = number
    found = [place[content] for content in sought]
    offsets = Counter(there - here for here, there in zip(rows.tolist(), found) if there is not None)
    return 2 * offsets.total() > len(rows) and 2 * max(offsets.values()) < len(rows)


def _check_jumps(subject: _Subject, same: Tensor, meets: Tensor) -> list[Finding]:
    """Find truncated episodes whose last next observation is the first one of the next episode, taken after a reset.

    A reset is recognized by its jump, or by first observations that are all alike. After a terminal row it is harmless.
    """
    observation, following = subject.data.get("observation"), subject.data.get(("next", "observation"))
    cut = ~same & subject.data.get(("next", "truncated")).squeeze(-1)[:-1]
    ends = (cut & meets).nonzero().squeeze(-1)
    if len(ends) < _FEW or 2 * len(ends) < _count(cut) or not same.any():
        return []
    inside = _spread(same, min(_SAMPLE, 1 + _NUMBERS // max(1, observation[0].numel())))
    spread = observation[inside].flatten(1).float().std(0, correction=0)
    scale = torch.where(spread > 0, spread, 1.0)
    usual = _distances(observation[inside], following[inside], scale).median()
    any_two = _distances(observation[inside], observation[inside.flip(0)], scale).median()
    jump = _distances(observation[ends], following[ends], scale).median() / usual
    alike = _distances(following[ends], following[ends.flip(0)], scale).median() < _ALIKE * any_two
    if not (jump > _JUMP or alike):
        return []
    certain = bool(jump > 1 + 3 / len(ends) ** 0.5) or (bool(alike) and len(ends) > _FEW)
    return subject.finding(
        "next_of_next", "error" if certain else "warning",
        torch.zeros(len(observation), dtype=torch.bool).index_fill_(0, ends, True), ("next", "observation"),
        "{count} episodes end with a next observation that is the next episode's first, {place}: they look "
        "as if taken after a reset. Record them before it, or leave next observations out.",
    )  # fmt: skip


def _check_variation(subject: _Subject) -> list[Finding]:
    if len(subject.data) < 2:
        return []
    findings = []
    for key in ("observation", "action"):
        values = subject.data.get(key).flatten(1)
        low, high = values.amin(0), values.amax(0)
        columns = (low == high).nonzero().squeeze(-1).tolist()
        if not columns or (subject.data.get(key).ndim > 2 and len(columns) < values.shape[1]):
            continue  # single pixels may never change
        empty = "all zero, looks empty" if not (low[columns].any() or high[columns].any()) else "looks empty"
        shown = f"{columns[:8]}{' and more' if len(columns) > 8 else ''}"
        message = f"{len(columns)} of {values.shape[1]} columns of {key} never change ({empty}): {shown}."
        findings.append(Finding("constant_columns", "warning", message, count=len(columns), key=key))
    return findings


def _check_empty_rows(subject: _Subject) -> list[Finding]:
    """Find zeros in place of data: in whole rows, or in the next observations of truncated episodes."""
    parts = {key: subject.data.get(key).flatten(1).any(1).bool() for key in _FLOAT_KEYS}
    filled, truncated = reduce(torch.logical_or, parts.values()), subject.data.get(("next", "truncated")).squeeze(-1)
    lost = truncated & parts["observation"] & ~parts["next", "observation"]
    if _count(lost) > _FEW and 2 * _count(lost) > _count(truncated):
        return subject.finding(
            "zero_next", "error" if len(lost) >= _MANY else "warning", lost, ("next", "observation"),
            "{count} transitions at a time limit have a next observation of zeros, {place}: it was not recorded, and "
            "values would be bootstrapped from it. Leave next observations out; the rows without one are then dropped.",
        )  # fmt: skip
    empty = ~(filled | subject.data.get(("next", "done")).squeeze(-1))
    if not filled.any() or _count(empty) <= _FEW:
        return []
    return subject.finding(
        "empty_rows", "error" if _MANY <= len(empty) < 2 * _count(empty) else "warning", empty, "observation",
        f"{{count}} of {len(filled)} rows are zero throughout, observation, action, next observation and reward, "
        "{place}: they were never written, or pad shorter episodes. Leave them out.",
    )  # fmt: skip


def _check_reward(subject: _Subject) -> list[Finding]:
    reward = subject.data.get(("next", "reward")).squeeze(-1)
    findings = subject.finding(
        "large_reward", "warning", _in_parts(lambda part: part.abs() > _LARGE_REWARD, reward), ("next", "reward"),
        f"{{count}} rewards are beyond {_LARGE_REWARD:g} in size, {{place}}; scale them down.",
    )  # fmt: skip
    if len(reward) > 1 and bool(reward.amin() == reward.amax()):
        message = f"every reward is {reward[0].item():g}: there is nothing to learn from, or the reward was not stored."
        findings.append(Finding("constant_reward", "warning", message, count=len(reward), key="next.reward"))
    return findings


_CHECKS: tuple[Callable[[_Subject], list[Finding]], ...] = (
    _check_flags,
    _check_alignment,
    _check_variation,
    _check_empty_rows,
    _check_reward,
)
