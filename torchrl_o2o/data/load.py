# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Load any source as audited transitions in TED."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor

from torchrl_o2o.data.audit import audit, check_limit, drop_non_finite
from torchrl_o2o.data.datasets.cache import RawDataset
from torchrl_o2o.data.datasets.columns import ReadOptions
from torchrl_o2o.data.datasets.mapped import is_mapped
from torchrl_o2o.data.datasets.sources import Source, read_source
from torchrl_o2o.data.env_match import EnvFacts, EnvLike, env_facts, match_keys, match_settings, match_units
from torchrl_o2o.data.findings import AuditReport, Finding
from torchrl_o2o.errors import O2ODataError, O2OSpecError, check_option

__all__ = ["DatasetInfo", "Stats", "check_offline", "describe_offline", "describe_returns", "load_offline"]

OnBad = Literal["error", "drop", "report"]
Bounds = tuple[float | Sequence[float], float | Sequence[float]]


@dataclass(frozen=True)
class Stats:
    """Mean, population standard deviation and range over episodes."""

    mean: float
    std: float
    min: float
    max: float


@dataclass(frozen=True)
class DatasetInfo:
    """A description of a data set: a summary of its transitions, and the metadata of its source.

    Args:
        id: its name or file.
        env_id: the environment or own task it was recorded in, where stated; ``make_env`` takes it.
        transitions: number of rows N.
        episodes: number of episodes.
        observation_shape: shape of one observation.
        action_dim: a.
        action_low: [a] lower bounds of the actions as stored; ``None`` if the source does not state them.
        action_high: [a] upper bounds.
        returns: undiscounted sums of the stored rewards, those of rows without a next observation included.
        lengths: transitions per episode.
        terminated: number of episodes that end in a terminal state.
        max_episode_steps: the recorded environment's time limit.
        ref_min_score: return that counts as a score of 0.
        ref_max_score: return that counts as a score of 100.
        provenance: how the data were made.
        notes: the reader's changes.

    Examples:
        >>> import numpy as np
        >>> from torchrl_o2o.data import describe_offline
        >>> info = describe_offline({"observations": np.zeros((6, 2)), "actions": np.zeros((6, 1)),
        ...                          "rewards": np.ones(6), "episode": np.array([0, 0, 0, 1, 1, 1])})
        >>> info.observation_shape, info.action_dim, info.lengths.mean
        ((2,), 1, 2.0)
    """

    id: str
    env_id: str | None
    transitions: int
    episodes: int
    observation_shape: tuple[int, ...]
    action_dim: int
    action_low: tuple[float, ...] | None
    action_high: tuple[float, ...] | None
    returns: Stats
    lengths: Stats
    terminated: int
    max_episode_steps: int | None
    ref_min_score: float | None
    ref_max_score: float | None
    provenance: Mapping[str, Any]
    notes: tuple[Finding, ...]


def load_offline(
    source: Source,
    *,
    env: EnvLike | None = None,
    actions: Literal["error", "clip", "rescale"] = "error",
    on_bad: Literal["error", "drop"] = "error",
    action_bounds: Bounds | None = None,
    max_episode_steps: int | None = None,
    obs_keys: Sequence[str] | None = None,
    names: Mapping[str, str] | None = None,
    min_episode_length: int = 2,
    cache: bool = True,
    cache_dir: str | Path | None = None,
) -> TensorDict:
    """Load a data set as transitions in TED and audit it.

    The result has the entries of :data:`~torchrl_o2o.data.TRANSITION` and ``episode`` [N] (the rows of an episode are
    together and in order). Floats are float32, cast once; images stay uint8. Actions are in [-1, 1], as in the
    environments of :func:`torchrl_o2o.envs.make_env`: actions of a source that states another box are mapped affinely.
    ``terminated`` marks true terminals, ``truncated`` any other end. Rewards are as stored (see
    :mod:`torchrl_o2o.data.transforms`).

    A Minari data set stores the successor of each episode's last step. It therefore yields one transition more per
    truncated episode than a D4RL file, where that row is dropped (as in ``d4rl.qlearning_dataset``).

    Args:
        source: one of

            - a name: a Minari id (``"D4RL/door/human-v2"``), downloaded if absent, or a local data set
              (``"o2o/halfcheetah/linear-mix-v0"``), made if absent;
            - a file as :class:`~pathlib.Path` or ``"path:FILE"``: HDF5 (D4RL's flat arrays, robomimic's
              ``data/demo_0``), npz, csv, a pickle of demonstrations, or the folder of a Minari data set;
            - a dictionary of flat arrays with the same names as in D4RL, and ``episode`` or ``timeouts``;
            - a list of episodes (dictionaries) with T+1 ``observations`` for T ``actions`` and ``rewards``;
            - transitions in TED;
            - memory-mapped transitions in TED, or the folder that ``TensorDict.memmap`` wrote, as TorchRL's own data
              sets do. Use them for data larger than memory. They are audited in parts and not converted, so they need
              ``episode`` numbers from 0 on, and rows that would have to be converted or left out raise an error.
        env: an environment or its id, with which dimensions and action bounds are compared.
        actions: what to do with actions outside the box: ``"error"``; ``"clip"``; ``"rescale"`` divides each dimension
            by its largest absolute value if this is above 1, which changes the meaning of actions and needs an
            environment with the same scale. The last two warn with a count.
        on_bad: what to do with transitions that are not finite: ``"error"``, or ``"drop"`` them, end the episode there
            and warn with a count.
        action_bounds: (low, high) of the actions as stored; ``None`` takes the bounds that the source states, or (-1,
            1).
        max_episode_steps: the time limit, at which episodes are cut in sources that do not mark their ends. It is an
            error if episodes are longer, or if all terminal states are exactly at the limit. ``None`` takes the limit
            of ``env``, or of the source, and only warns about longer episodes.
        obs_keys: entries of a dictionary observation to concatenate, in order; ``None`` takes those of ``observation``,
            ``achieved_goal`` and ``desired_goal`` that exist (PointMaze without ``achieved_goal``).
        names: array -> its role, for arrays whose names are not in :data:`~torchrl_o2o.data.datasets.columns.NAMES` or
            mean something else. A role is a key of that table, ``"dones"`` (terminals, but time limits at
            ``max_episode_steps`` and in rows of ``timeouts``, one of which is needed) or ``"ignore"``.
        min_episode_length: shorter episodes are skipped with a warning.
        cache: whether the converted form of Minari data sets and pickles is kept in memory-mapped files, keyed by the
            files' state.
        cache_dir: folder of the cache; ``None`` is a hidden folder beside Minari's data sets.

    Returns:
        The transitions [N], in memory. Those of a memory-mapped source are views of its files, except for actions that
        are mapped or clipped; changes in place change the files.

    Raises:
        O2ODataError: if the source is unknown, missing, damaged, empty, or fails the audit.
        O2OSpecError: if a library is missing.

    Examples:
        >>> import numpy as np
        >>> from torchrl_o2o.data import load_offline
        >>> episode = {"observations": np.arange(8.0).reshape(4, 2), "actions": np.array([[0.5], [-0.5], [0.1]]),
        ...            "rewards": np.array([0.0, 0.0, 1.0]), "terminations": np.array([False, False, True])}
        >>> data = load_offline([episode])
        >>> data["next", "observation"]
        tensor([[2., 3.],
                [4., 5.],
                [6., 7.]])
        >>> data["next", "terminated"].squeeze(-1)
        tensor([False, False,  True])
    """
    if actions not in ("error", "clip", "rescale") or on_bad not in ("error", "drop"):
        raise O2OSpecError(
            f"actions={actions!r}, on_bad={on_bad!r}; expected error, clip or rescale, and error or drop."
        )
    options = _options(max_episode_steps, obs_keys, names, min_episode_length, cache=cache, cache_dir=cache_dir)
    data, report = _examine(source, options, env, action_bounds, actions, "report" if on_bad == "error" else on_bad)
    for finding in report.warnings:
        warnings.warn(f"{report.name}: {finding.message}", stacklevel=2)
    report.raise_if_bad()
    if any(finding.code == "non_finite" for finding in report.findings):
        data = drop_non_finite(data)
    return data


def _options(
    max_episode_steps: int | None,
    obs_keys: Sequence[str] | None,
    names: Mapping[str, str] | None,
    min_episode_length: int,
    **cache: Any,
) -> ReadOptions:
    if isinstance(obs_keys, str):
        raise O2OSpecError(f"obs_keys={obs_keys!r}; expected a list of keys, such as [{obs_keys!r}].")
    if names is not None and not isinstance(names, Mapping):
        raise O2OSpecError(f"names={names!r}; expected a dictionary from an array's name to its role.")
    keys = None if obs_keys is None else tuple(obs_keys)
    return ReadOptions(max_episode_steps, keys, min_episode_length, names=dict(names or {}), **cache)


def _examine(
    source: Source, options: ReadOptions, env: EnvLike | None, bounds: Bounds | None, actions: str, on_bad: OnBad
) -> tuple[TensorDict, AuditReport]:
    """Read a source, map its actions and audit it."""
    check_option("actions", actions, ("error", "clip", "rescale"))
    raw = read_source(source, options)
    mapped, shape = is_mapped(raw.data), raw.data["observation"].shape[1:]
    if mapped and on_bad == "drop":
        raise O2OSpecError(
            f"got on_bad='drop' for {raw.meta.id}, but rows cannot be dropped from memory-mapped files; write the "
            "files without these rows, or use load_offline(data.clone(), on_bad='drop') in memory"
        )
    facts = None if env is None else env_facts(env, shape[-1] if len(shape) == 3 else None)
    data, found = _boxed(raw, bounds, actions)
    if facts is not None and bounds is None and raw.meta.action_low is None:
        units = match_units(raw.data, facts)  # actions in TED are in [-1, 1], as in this package's environments
        found += (
            [replace(each, severity="warning") for each in units]
            if mapped or isinstance(source, TensorDictBase)
            else units
        )
    if facts is not None:
        found += match_keys(options.obs_keys or raw.meta.obs_keys, facts)
        found += match_settings(raw.meta.recorded, facts)
    limit = options.max_episode_steps
    if limit is None and any(note.code == "no_timeouts" for note in raw.notes):
        limit = _known_limit(raw, facts)
    report = audit(data, env=facts, on_bad=on_bad, name=raw.meta.id, max_episode_steps=limit)
    if limit is None and (known := _known_limit(raw, facts)) is not None:  # without a limit, audit has checked already
        found += check_limit(data, known, "warning")
    findings = (*(_in_env(note, facts) for note in raw.notes), *found, *report.findings)
    if "terminals" in options.names.values():  # the caller has confirmed their meaning
        findings = tuple(finding for finding in findings if finding.code != "terminals_at_limit")
    return data, replace(report, findings=findings)


def _in_env(note: Finding, facts: EnvFacts | None) -> Finding:
    """A reader's note, made more specific with the environment's properties."""
    if note.code != "no_entry_goes_on" or facts is None or not facts.moves:
        return note
    message = (
        f"the rows are shuffled: no entry of the observation continues from one row to the next, as in {facts.name} "
        "some do. Put the rows in the order in which they were recorded, or record next observations with them."
    )
    return replace(note, code="shuffled", severity="error", message=message)


def _known_limit(raw: RawDataset, facts: EnvFacts | None) -> int | None:
    return raw.meta.max_episode_steps if facts is None or facts.max_episode_steps is None else facts.max_episode_steps


def check_offline(
    source: Source,
    *,
    env: EnvLike | None = None,
    actions: Literal["error", "clip", "rescale"] = "error",
    action_bounds: Bounds | None = None,
    max_episode_steps: int | None = None,
    obs_keys: Sequence[str] | None = None,
    names: Mapping[str, str] | None = None,
    min_episode_length: int = 2,
) -> AuditReport:
    """Audit a source like :func:`load_offline`, and report all findings instead of raising.

    Args:
        source: as in :func:`load_offline`.
        env: as in :func:`load_offline`.
        actions: as in :func:`load_offline`.
        action_bounds: as in :func:`load_offline`.
        max_episode_steps: as in :func:`load_offline`.
        obs_keys: as in :func:`load_offline`.
        names: as in :func:`load_offline`.
        min_episode_length: as in :func:`load_offline`.

    Returns:
        The report, which is ``ok`` if :func:`load_offline` would accept the data.

    Raises:
        O2ODataError: if the source cannot be read at all.

    Examples:
        >>> import numpy as np
        >>> from torchrl_o2o.data import check_offline
        >>> report = check_offline({"observations": np.zeros((5, 2)), "actions": np.full((5, 1), 3.0),
        ...                         "rewards": np.zeros(5), "episode": np.zeros(5)})
        >>> report.ok, report.codes
        (False, ('no_next_observation', 'action_out_of_bounds', 'constant_columns', 'constant_columns',
         'constant_reward'))
    """
    options = _options(max_episode_steps, obs_keys, names, min_episode_length)
    return _examine(source, options, env, action_bounds, actions, "report")[1]


def describe_offline(
    source: Source,
    *,
    max_episode_steps: int | None = None,
    obs_keys: Sequence[str] | None = None,
    names: Mapping[str, str] | None = None,
    min_episode_length: int = 2,
) -> DatasetInfo:
    """Summarize a data set without an audit.

    Args:
        source: as in :func:`load_offline`.
        max_episode_steps: as in :func:`load_offline`.
        obs_keys: as in :func:`load_offline`.
        names: as in :func:`load_offline`.
        min_episode_length: as in :func:`load_offline`.

    Returns:
        The summary.

    Raises:
        O2ODataError: if the source cannot be read.

    Examples:
        >>> import numpy as np
        >>> from torchrl_o2o.data import describe_offline
        >>> info = describe_offline({"observations": np.zeros((6, 2)), "actions": np.zeros((6, 1)),
        ...                          "rewards": np.arange(6.0), "episode": np.array([0, 0, 0, 1, 1, 1])})
        >>> info.transitions, info.episodes, info.returns
        (4, 2, Stats(mean=7.5, std=4.5, min=3.0, max=12.0))
    """
    options = _options(max_episode_steps, obs_keys, names, min_episode_length)
    return _describe(read_source(source, options))


def describe_returns(
    source: Source,
    *,
    max_episode_steps: int | None = None,
    obs_keys: Sequence[str] | None = None,
    names: Mapping[str, str] | None = None,
    min_episode_length: int = 2,
) -> tuple[DatasetInfo, Tensor]:
    """Summarize a data set like :func:`describe_offline` and return each episode's return, reading the source once.

    Args:
        source: as in :func:`load_offline`.
        max_episode_steps: as in :func:`load_offline`.
        obs_keys: as in :func:`load_offline`.
        names: as in :func:`load_offline`.
        min_episode_length: as in :func:`load_offline`.

    Returns:
        The summary, and undiscounted sums of the stored rewards, [E] float64, including those of rows without a next
        observation.

    Raises:
        O2ODataError: if the source cannot be read.

    Examples:
        >>> import numpy as np
        >>> from torchrl_o2o.data.load import describe_returns
        >>> describe_returns({"observations": np.zeros((6, 2)), "actions": np.zeros((6, 1)),
        ...                   "rewards": np.arange(6.0), "episode": np.array([0, 0, 0, 1, 1, 1])})[1]
        tensor([ 3., 12.], dtype=torch.float64)
    """
    raw = read_source(source, _options(max_episode_steps, obs_keys, names, min_episode_length))
    return _describe(raw), raw.episode_returns()


def _describe(raw: RawDataset) -> DatasetInfo:
    data, meta = raw.data, raw.meta
    lengths = torch.bincount(data["episode"])
    return DatasetInfo(
        id=meta.id,
        env_id=meta.env_id,
        transitions=len(data),
        episodes=len(lengths),
        observation_shape=tuple(data["observation"].shape[1:]),
        action_dim=data["action"].shape[-1],
        action_low=meta.action_low,
        action_high=meta.action_high,
        returns=_stats(raw.episode_returns()),
        lengths=_stats(lengths.double()),
        terminated=int(data["next", "terminated"].sum()),
        max_episode_steps=meta.max_episode_steps,
        ref_min_score=meta.ref_min_score,
        ref_max_score=meta.ref_max_score,
        provenance=meta.provenance,
        notes=raw.notes,
    )


def _stats(values: Tensor) -> Stats:
    return Stats(values.mean().item(), values.std(correction=0).item(), values.min().item(), values.max().item())


def _boxed(raw: RawDataset, bounds: Bounds | None, policy: str) -> tuple[TensorDict, list[Finding]]:
    """Map the actions to [-1, 1], and treat those outside according to ``policy``."""
    whole = next((note for note in raw.notes if note.code == "whole_actions"), None)
    if whole is not None and bounds is None and raw.meta.action_low is None:
        raise O2ODataError(whole.message)
    low, high = _bounds(raw, bounds)
    action, found = raw.data["action"], []
    if not (bool((low == -1).all()) and bool((high == 1).all())):
        # A dimension with a single value becomes 0, because any action of an environment means that value.
        action = (action - (high + low) / 2) / torch.where(high > low, (high - low) / 2, 1.0)
        message = f"actions were mapped from [{low.min():g}, {high.max():g}] to [-1, 1]."
        found.append(Finding("mapped_actions", "note", message, count=len(action), key="action"))
    if bool(action.amin() >= -1) and bool(action.amax() <= 1):  # neither holds if one is NaN
        return (raw.data.copy().set("action", action) if found else raw.data), found
    finite = action.isfinite()  # the audit must find the rest; clipping must not hide it
    size = torch.where(finite, action.abs(), 0.0)
    outside = int((size > 1 + 2e-6).any(-1).sum())
    if outside and policy != "error":
        message = f"{outside} actions were outside [-1, 1] (to {size.max():.4g}); policy: {policy}."
        found.append(Finding("repaired_actions", "warning", message, count=outside, key="action"))
        if policy == "rescale":
            action = action / size.amax(0).clamp(min=1.0)
    if policy != "error" or not outside:  # for "error" this is only float32 rounding, within the audit's slack
        action = torch.where(finite, action.clamp(-1.0, 1.0), action)
    return raw.data.copy().set("action", action), found


def _bounds(raw: RawDataset, bounds: Bounds | None) -> tuple[Tensor, Tensor]:
    stated = (raw.meta.action_low or -1.0, raw.meta.action_high or 1.0) if bounds is None else bounds
    shape = raw.data["action"].shape[-1:]
    try:
        low, high = (torch.as_tensor(bound, dtype=torch.float32) for bound in stated)
    except (TypeError, ValueError, RuntimeError) as error:
        raise O2OSpecError(
            f"got action_bounds={bounds!r}, expected two, low and high, each a number or one per action dimension"
        ) from error
    if any(bound.ndim > 1 or bound.numel() not in (1, *shape) for bound in (low, high)):
        raise O2OSpecError(
            f"got action_bounds of the shapes {tuple(low.shape)}, {tuple(high.shape)}, expected numbers or one per "
            f"dimension of actions {list(shape)}"
        )
    if not bool((torch.isfinite(low) & torch.isfinite(high) & (low <= high)).all()):
        raise O2OSpecError(
            f"got the action box [{low.tolist()}, {high.tolist()}], expected finite bounds, the lower ones first; pass "
            "action_bounds=(low, high)."
        )
    return low.expand(shape), high.expand(shape)
