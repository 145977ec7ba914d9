# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Look data over before the first gradient step: what is broken, what looks broken, what does not fit the environment.

Everything is vectorized: a million transitions take a second or two. Shapes: N transitions, E episodes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from tensordict import NestedKey, TensorDict, TensorDictBase
from torch import Tensor

from torchrl_o2o.data.env_match import EnvLike, match_environment
from torchrl_o2o.data.findings import AuditReport, Finding
from torchrl_o2o.data.keys import EPISODE, TRANSITION
from torchrl_o2o.errors import O2ODataError

__all__ = ["AuditReport", "Finding", "audit", "drop_non_finite"]

_LARGE_REWARD = 1e6
#: Slack at the action bounds for float32 rounding, relative to the box's width.
_ROUNDING = 1e-6
_FLOAT_KEYS: tuple[NestedKey, ...] = ("observation", "action", ("next", "observation"), ("next", "reward"))


@dataclass(frozen=True)
class _Subject:
    """Data under audit with the place of each row."""

    data: TensorDictBase
    episode: Tensor  # [N]
    step: Tensor  # [N]

    def finding(
        self, code: str, severity: Literal["error", "warning", "note"], rows: Tensor, key: NestedKey, message: str
    ) -> list[Finding]:
        """Report the rows of a mask [N], if any; the message may use {count}, {key} and {place}."""
        count = int(rows.sum())
        if not count:
            return []
        first = int(rows.int().argmax())
        episode, step = int(self.episode[first]), int(self.step[first])
        name = key if isinstance(key, str) else ".".join(key)
        place = f"first at episode {episode}, step {step}"
        text = message.format(count=count, key=name, place=place)
        return [Finding(code, severity, text, count=count, key=name, episode=episode, step=step)]


def audit(
    data: TensorDictBase,
    *,
    action_low: float | Sequence[float] | Tensor = -1.0,
    action_high: float | Sequence[float] | Tensor = 1.0,
    env: EnvLike | None = None,
    on_bad: Literal["error", "drop", "report"] = "error",
    name: str = "data",
) -> AuditReport:
    """Examine transitions in TED.

    Errors: missing or misshapen entries, no rows, NaN or infinite values, actions outside the box, dimensions or bounds
    that differ from the environment's. Warnings: columns without variation, rewards that are all equal or beyond 1e6,
    next observations that do not continue in the next row, an episode that goes on after its end.

    Args:
        data: transitions [N] with the entries of :data:`~torchrl_o2o.data.TRANSITION` and ``episode``. Not modified.
        action_low: lower bound of the actions, one for all or [a].
        action_high: upper bound.
        env: an environment (gymnasium or TorchRL) or the id of one, to compare dimensions and action bounds with.
        on_bad: ``"error"`` raises if there are errors, ``"report"`` never does, ``"drop"`` reports rows that are not
            finite as a warning, for a caller who then applies :func:`drop_non_finite`, and raises the other errors.
        name: what to call the data.

    Returns:
        The report, errors included where they are not raised.

    Raises:
        O2ODataError: see ``on_bad``. The message names key, episode, step and remedy.

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
    layout = _check_layout(data)
    if layout:
        report = AuditReport(name, len(data) if data.ndim else 0, 0, tuple(layout))
        if on_bad != "report":
            report.raise_if_bad()
        return report
    subject = _subject(data)
    findings, finite = _check_finite(subject, "warning" if on_bad == "drop" else "error")
    episodes = int(subject.episode[-1]) + 1
    if finite is not None and on_bad == "drop":
        subject = _Subject(data[finite], subject.episode[finite], subject.step[finite])
    low, high = (torch.as_tensor(bound, dtype=torch.float32) for bound in (action_low, action_high))
    if len(subject.data):
        findings += _check_actions(subject, low, high)
        findings += [finding for check in _CHECKS for finding in check(subject)]
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

    The last row before a gap becomes truncated, the first after it begins a new episode, so that no return is ever
    computed across the gap.

    Args:
        data: transitions [N] with ``episode``.

    Returns:
        New transitions; episodes are numbered anew from 0.

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
        raise O2ODataError("no transition is finite; expected numbers. Look at how the data were recorded.")
    episode = data.get(EPISODE)[kept]
    begins = torch.ones(len(kept), dtype=torch.bool)
    begins[1:] = (episode[1:] != episode[:-1]) | (kept[1:] != kept[:-1] + 1)
    ends = torch.cat([begins[1:], begins.new_ones(1)]).unsqueeze(-1)
    out = data[kept].clone()
    out.set(EPISODE, begins.long().cumsum(0) - 1)
    terminated = out.get(("next", "terminated"))
    out.set(("next", "truncated"), (out.get(("next", "truncated")) | ends) & ~terminated)
    out.set(("next", "done"), terminated | out.get(("next", "truncated")))
    return out


def _check_layout(data: TensorDictBase) -> list[Finding]:
    keys = data.keys(include_nested=True)
    missing = [key if isinstance(key, str) else ".".join(key) for key in (*TRANSITION, EPISODE) if key not in keys]
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
            message = f"{'.'.join(key)} has the shape {tuple(data.get(key).shape)}; expected [N, 1]."
            findings.append(Finding("layout", "error", message, key=".".join(key)))
    if data.get("observation").shape != data.get(("next", "observation")).shape:
        message = "observation and next.observation differ in shape."
        findings.append(Finding("layout", "error", message, key="next.observation"))
    return findings


def _subject(data: TensorDictBase) -> _Subject:
    episode = data.get(EPISODE)
    rows = torch.arange(len(episode))
    begins = torch.ones_like(episode, dtype=torch.bool)
    begins[1:] = episode[1:] != episode[:-1]
    return _Subject(data, episode, rows - torch.where(begins, rows, 0).cummax(0).values)


def _finite_rows(values: Tensor) -> Tensor:
    if not values.is_floating_point():
        return torch.ones(len(values), dtype=torch.bool)
    return torch.isfinite(values).flatten(1).all(1)


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
    outside = ((action < low - slack) | (action > high + slack)).flatten(1).any(1)
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
    last = torch.ones_like(done)
    last[:-1] = subject.episode[1:] != subject.episode[:-1]
    findings += subject.finding(
        "goes_on", "warning", done & ~last, ("next", "done"),
        "{count} transitions are done although their episode goes on, {place}; returns stop there.",
    )  # fmt: skip
    findings += subject.finding(
        "unfinished", "warning", last & ~done, ("next", "done"),
        "{count} episodes end without a flag, {place}; mark their last transition truncated.",
    )  # fmt: skip
    return findings


def _check_alignment(subject: _Subject) -> list[Finding]:
    same_episode = (subject.episode[1:] == subject.episode[:-1]) & (subject.step[1:] == subject.step[:-1] + 1)
    observation, following = subject.data.get("observation"), subject.data.get(("next", "observation"))
    differ = (following[:-1] != observation[1:]).flatten(1).any(1) & same_episode
    broken = torch.cat([differ, differ.new_zeros(1)])
    return subject.finding(
        "misaligned", "warning", broken, ("next", "observation"),
        "{count} transitions do not continue in the next row of their episode, {place}: rows are shuffled, missing or "
        "shifted against each other. Temporal-difference targets may be sound, returns are not.",
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
            continue  # single pixels may well never change
        empty = "all zero, looks empty" if not (low[columns].any() or high[columns].any()) else "looks empty"
        shown = f"{columns[:8]}{' and more' if len(columns) > 8 else ''}"
        message = f"{len(columns)} of {values.shape[1]} columns of {key} never change ({empty}): {shown}."
        findings.append(Finding("constant_columns", "warning", message, count=len(columns), key=key))
    return findings


def _check_reward(subject: _Subject) -> list[Finding]:
    reward = subject.data.get(("next", "reward")).squeeze(-1)
    findings = subject.finding(
        "large_reward", "warning", reward.abs() > _LARGE_REWARD, ("next", "reward"),
        f"{{count}} rewards are beyond {_LARGE_REWARD:g} in size, {{place}}; scale them down.",
    )  # fmt: skip
    if len(reward) > 1 and bool((reward == reward[0]).all()):
        message = f"every reward is {reward[0].item():g}: there is nothing to learn from, or the reward was not stored."
        findings.append(Finding("constant_reward", "warning", message, count=len(reward), key="next.reward"))
    return findings


_CHECKS: tuple[Callable[[_Subject], list[Finding]], ...] = (
    _check_flags,
    _check_alignment,
    _check_variation,
    _check_reward,
)
