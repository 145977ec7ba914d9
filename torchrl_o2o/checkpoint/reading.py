# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Read checkpoints: find the newest valid one, check that it fits, load its objects."""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from tensordict import TensorDict, cat

from torchrl_o2o.checkpoint.folders import step_folder, steps, verify, verify_segment
from torchrl_o2o.checkpoint.manifest import FORMAT, DamagedError, load, verify_file
from torchrl_o2o.checkpoint.segments import Region
from torchrl_o2o.errors import O2OCheckpointError, O2OSpecError
from torchrl_o2o.provenance import package_versions

#: Entries of an optimizer's state that have the shape of a parameter.
_MOMENTS = {"exp_avg", "exp_avg_sq", "max_exp_avg_sq", "momentum_buffer", "square_avg", "grad_avg", "exp_inf", "sum"}

__all__ = [
    "FORMAT",
    "check_config",
    "checked_objects",
    "load_objects",
    "newest_valid",
    "read_rows",
    "read_state",
    "restore_objects",
    "warn_of_versions",
]

#: Files of a checkpoint that do not hold objects of the run.
_OWN_STATES = ("rng", "buffer")
# Retries if the running process removes checkpoints while they are read, which takes milliseconds.
_TRIES = 100
_NAME = re.compile(r"[A-Za-z0-9_]+")
#: The scripts' settings that are the lengths of a run's phases.
_LENGTHS = ("online.total_frames", "offline.num_steps")


def checked_objects(objects: Mapping[str, Any]) -> dict[str, Any]:
    """Raise for objects that cannot be saved, before a run begins.

    Args:
        objects: by name, dicts or objects with ``state_dict()`` and ``load_state_dict()``.

    Raises:
        O2OSpecError: if a name is not a word or taken, or an object has no state.

    Examples:
        >>> checked_objects({"counters": {}})
        {'counters': {}}
        >>> checked_objects({"rng": {}})
        Traceback (most recent call last):
        torchrl_o2o.errors.O2OSpecError: got the object name 'rng', expected letters, digits and _, ...
    """
    for name, item in objects.items():
        if not _NAME.fullmatch(name) or name in _OWN_STATES:
            raise O2OSpecError(
                f"got the object name {name!r}, expected letters, digits and _, and none of {_OWN_STATES}"
            )
        if not isinstance(item, dict) and not (hasattr(item, "state_dict") and hasattr(item, "load_state_dict")):
            raise O2OSpecError(
                f"got a {type(item).__name__} as object {name!r}, expected a dict or an object with state_dict()"
            )
    return dict(objects)


def newest_valid(root: Path) -> tuple[dict[str, Any] | None, list[int]]:
    """Find the newest checkpoint whose files are all present and unaltered; warn of each damaged one.

    Args:
        root: the folder of checkpoints.

    Returns:
        Its manifest, or None if there is no checkpoint at all; and the steps of the damaged ones that are newer.

    Raises:
        O2OCheckpointError: if all are damaged, or the newest has the layout of another version of this package.

    Examples:
        >>> newest_valid(Path("nowhere"))
        (None, [])
    """
    damaged: list[int] = []
    for _ in range(_TRIES):
        damaged, vanished = [], False
        for step in _steps(root):
            try:
                manifest = verify(root, step)
            except DamagedError as error:
                if not step_folder(root, step).exists():  # the running process has removed it in the meantime
                    vanished = True
                    continue
                damaged.append(step)
                warnings.warn(f"THE CHECKPOINT OF STEP {step} IS DAMAGED: {error}", stacklevel=4)
                continue
            _check_format(manifest, root, step)
            return manifest, damaged
        if not vanished:
            break
    if damaged:
        raise O2OCheckpointError(
            f"every checkpoint in {root} is damaged (steps {damaged}, see the warnings); "
            "restore the files from a copy, or start a new run in another folder"
        )
    return None, []


def _steps(root: Path) -> list[int]:
    try:
        return steps(root)
    except OSError as error:
        raise O2OCheckpointError(f"{root} cannot be read at the moment ({error}); fix that and try again") from error


def _check_format(manifest: Any, root: Path, step: int) -> None:
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        known = manifest if isinstance(manifest, dict) else {}
        raise O2OCheckpointError(
            f"got the format {known.get('format')} of the checkpoint of step {step} in {root}, expected {FORMAT} in "
            f"this version of torchrl_o2o; resume with torchrl_o2o {known.get('versions', {}).get('torchrl_o2o')}"
        )


def check_config(saved: Mapping[str, Any], present: Mapping[str, Any]) -> None:
    """Raise if a checkpoint has another configuration.

    A setting that is null counts as absent, so that older checkpoints stay usable when a newer version adds settings.

    Args:
        saved: the checkpoint's configuration, plain values.
        present: this run's.

    Raises:
        O2OCheckpointError: if a setting differs; the message names each one with both values. Also if the checkpoint is
            of a continued run and this run is not a continuation.

    Examples:
        >>> check_config({"algorithm": "awac"}, {"algorithm": "rlpd"})
        Traceback (most recent call last):
        torchrl_o2o.errors.O2OCheckpointError: ... algorithm is 'awac' in the checkpoint and 'rlpd' now...
        >>> check_config({"online": {"total_frames": 5}}, {"online": {"total_frames": 9}})
        Traceback (most recent call last):
        torchrl_o2o.errors.O2OCheckpointError: ... online.total_frames is 5 in the checkpoint and 9 now. Resume with ...
        >>> check_config({"evaluation": {"num_episodes": 5}}, {"evaluation": {"num_episodes": 5, "video": None}})
    """
    if "lineage" in saved and "lineage" not in present:
        raise O2OCheckpointError(
            f"got a checkpoint of round {saved['lineage'][-1]['round']} of `o2o continue`, expected one that the run's "
            "script wrote: the script cannot resume a continued run; go on with `o2o continue`, or fine-tune it in "
            "another folder (pretrained=FOLDER run_dir=...)"
        )
    absent = "absent"
    saved, present = _made("", saved), _made("", present)
    differing = [
        f"{key} is {saved.get(key, absent)!r} in the checkpoint and {present.get(key, absent)!r} now"
        for key in sorted(saved.keys() | present.keys())
        if saved.get(key, absent) != present.get(key, absent)
    ]
    if not differing:
        return
    longer = any(saved.get(key, absent) != present.get(key, absent) for key in _LENGTHS)
    further = (
        ". A run's length is fixed at its start, because schedules and the buffer depend on it: for a longer one, "
        "start a new run (pretrained=FOLDER starts it from an earlier offline phase), or learn from new recordings "
        "with `o2o continue RUN --data NEW`"
    )
    raise O2OCheckpointError(
        f"got a checkpoint of another configuration: {'; '.join(differing)}. Resume with its configuration, or "
        f"start a new run in another folder{further if longer else ''}"
    )


def _made(prefix: str, config: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that are not null, by their dotted names."""
    made: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, Mapping) and value:
            made |= _made(f"{prefix}{key}.", value)
        elif value is not None:
            made[f"{prefix}{key}"] = value
    return made


def warn_of_versions(saved: Mapping[str, str | None]) -> None:
    """Warn if packages that affect a run's numbers have other versions than when the checkpoint was written.

    Args:
        saved: the versions at that time, from :func:`~torchrl_o2o.provenance.package_versions`.

    Examples:
        >>> warn_of_versions(package_versions())
    """
    present = package_versions()
    differing = [f"{name} {saved.get(name)} then, {now} now" for name, now in present.items() if saved.get(name) != now]
    if differing:
        warnings.warn(
            f"the checkpoint was written with other versions ({'; '.join(differing)}): the resumed run may differ "
            "from an uninterrupted one",
            stacklevel=3,
        )


def read_state(root: Path, manifest: Mapping[str, Any], name: str) -> Any:
    """Read one object's state.

    Args:
        root: the folder of checkpoints.
        manifest: the checkpoint's.
        name: the object's.

    Raises:
        O2OCheckpointError: if the file is missing or altered.

    Examples:
        >>> import tempfile
        >>> from torchrl_o2o.checkpoint import Checkpointer
        >>> root = Path(tempfile.mkdtemp())
        >>> Checkpointer(root, objects={"counters": {"updates": 3}}).save(3)
        >>> manifest, _ = newest_valid(root)
        >>> read_state(root, manifest, "counters")
        {'updates': 3}
    """
    file = f"{name}.pt"
    return load(verify_file(step_folder(root, manifest["step"]) / file, manifest["files"][file]))


def read_rows(root: Path, manifest: Mapping[str, Any]) -> TensorDict | None:
    """Read the live rows of a checkpoint's buffer: first those given before the run, then those written, oldest first.

    Args:
        root: the folder of checkpoints.
        manifest: the checkpoint's.

    Returns:
        The rows [N]; ``None`` if the checkpoint has no buffer, or an empty one.

    Raises:
        O2OCheckpointError: if a file is missing or altered, or the buffer keeps frames besides its rows.

    Examples:
        >>> import tempfile
        >>> from torchrl.data import LazyTensorStorage, TensorDictReplayBuffer
        >>> from torchrl_o2o.checkpoint import Checkpointer
        >>> root, buffer = Path(tempfile.mkdtemp()), TensorDictReplayBuffer(storage=LazyTensorStorage(2))
        >>> for step in range(3):
        ...     _ = buffer.extend(TensorDict({"reward": torch.tensor([float(step)])}, [1]))
        >>> Checkpointer(root, objects={}, buffer=buffer).save(3)
        >>> read_rows(root, newest_valid(root)[0])["reward"]
        tensor([1., 2.])
    """
    regions = {region["name"]: Region(**region) for region in manifest["buffer"]["regions"]}
    if regions.keys() - {"offline", "online"}:
        raise O2OCheckpointError(f"got a buffer with {sorted(regions)} in {root}, expected only rows of numbers")
    parts = []
    for entry in manifest["buffer"]["segments"]:
        rows = TensorDict(load(verify_segment(root, entry)[0]), [entry["stop"] - entry["start"]])
        parts.append(rows[max(0, regions[entry["region"]].oldest - entry["start"]) :])
    return cat(parts) if parts else None


def restore_objects(root: Path, manifest: Mapping[str, Any], objects: Mapping[str, Any]) -> None:
    """Load states into objects; a dict is emptied and filled.

    Args:
        root: the folder of checkpoints.
        manifest: the checkpoint's.
        objects: by name; each must have a file in the checkpoint.

    Raises:
        O2OCheckpointError: if a state does not fit its object.

    Examples:
        >>> import tempfile
        >>> from torchrl_o2o.checkpoint import Checkpointer
        >>> root, counters = Path(tempfile.mkdtemp()), {}
        >>> Checkpointer(root, objects={"counters": {"updates": 3}}).save(3)
        >>> manifest, _ = newest_valid(root)
        >>> restore_objects(root, manifest, {"counters": counters})
        >>> counters
        {'updates': 3}
    """
    _load_states(manifest["step"], {name: read_state(root, manifest, name) for name in objects}, objects)


def _load_states(step: int, states: Mapping[str, Any], objects: Mapping[str, Any]) -> None:
    for name, item in objects.items():
        if isinstance(item, dict):
            item.clear()
            item.update(states[name])
            continue
        try:
            if isinstance(item, torch.optim.Optimizer):
                _check_moments(item, states[name])
            item.load_state_dict(states[name])
        except (RuntimeError, ValueError, KeyError, TypeError) as error:
            raise O2OCheckpointError(
                f"the state of {name!r} in the checkpoint of step {step} does not fit this run's "
                f"{type(item).__name__}: {error}"
            ) from error


def _check_moments(optim: torch.optim.Optimizer, state: Mapping[str, Any]) -> None:
    """Raise if an optimizer's saved moments have other shapes than its parameters, which torch does not check."""
    params = [param for group in optim.param_groups for param in group["params"]]
    for index, entries in state["state"].items():
        for name in _MOMENTS & entries.keys():
            shape = list(getattr(entries[name], "shape", []))
            if isinstance(index, int) and index < len(params) and shape != list(params[index].shape):
                raise ValueError(f"{name!r} of parameter {index} is {shape}, the parameter {list(params[index].shape)}")


def load_objects(folder: str | Path, objects: Mapping[str, Any]) -> int:
    """Read some objects of the newest valid checkpoint, such as a policy to evaluate, without changing the disk.

    Args:
        folder: the folder of checkpoints; a run may be writing to it.
        objects: the objects to read, as in :class:`Checkpointer`.

    Returns:
        The checkpoint's step.

    Raises:
        O2OCheckpointError: if there is no valid checkpoint, or it does not contain the objects, or their states do not
            fit.

    Examples:
        >>> import tempfile
        >>> from torchrl_o2o.checkpoint import Checkpointer, load_objects
        >>> folder, counters = tempfile.mkdtemp(), {}
        >>> Checkpointer(folder, objects={"counters": {"updates": 3}}).save(3)
        >>> load_objects(folder, {"counters": counters}), counters
        (3, {'updates': 3})
    """
    root, objects = Path(folder), checked_objects(objects)
    for _ in range(_TRIES - 1):
        with suppress(DamagedError):  # removed in the meantime by the running process
            return _load_newest(root, objects)
    return _load_newest(root, objects)


def _load_newest(root: Path, objects: Mapping[str, Any]) -> int:
    manifest, _ = newest_valid(root)
    if manifest is None:
        raise O2OCheckpointError(f"got the folder {root} without a checkpoint, expected one with step-N folders")
    missing = sorted(name for name in objects if f"{name}.pt" not in manifest["files"])
    if missing:
        raise O2OCheckpointError(
            f"got {missing}, expected objects that the checkpoint of step {manifest['step']} in {root} contains; it "
            f"has the files {sorted(manifest['files'])}"
        )
    warn_of_versions(manifest["versions"])
    restore_objects(root, manifest, objects)
    return manifest["step"]
