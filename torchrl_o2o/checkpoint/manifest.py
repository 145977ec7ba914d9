# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Verify a checkpoint's files: values without code, a manifest of sizes and hashes, and its check."""

from __future__ import annotations

import copy
import errno
import hashlib
import io
import json
import pickle
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from torchrl_o2o.durable import read_file, write_durably
from torchrl_o2o.errors import O2OCheckpointError

__all__ = [
    "FORMAT",
    "MANIFEST",
    "DamagedError",
    "check_manifest",
    "digest",
    "dump",
    "load",
    "read_manifest",
    "running_digest",
    "verify_file",
    "write_manifest",
]

#: The manifest's name within a checkpoint's folder.
MANIFEST = "manifest.json"
#: Version of the checkpoint layout; raised when older readers cannot read newer checkpoints.
FORMAT = 1
_DIGEST_BYTES = 32
_GLOBAL = re.compile(r"Unsupported global: GLOBAL (\S+)")
_MISSING = (errno.ENOENT, errno.ENOTDIR, errno.EISDIR)


class DamagedError(O2OCheckpointError):
    """A file of a checkpoint is missing, cut short, altered or contradicts another one.

    A file that cannot be read at the moment (permissions, too many open files, a disk that is not mounted) does not
    count as damaged: its checkpoint is neither skipped nor removed.
    """


def _read(path: Path) -> bytes:
    try:
        return read_file(path)
    except OSError as error:
        if error.errno in _MISSING:
            raise DamagedError(f"{path} is missing ({error})") from error
        raise O2OCheckpointError(
            f"{path} cannot be read at the moment ({error}), so its checkpoint cannot be checked; fix that and resume "
            "again, or move the checkpoint away to continue without it"
        ) from error


def digest(data: bytes) -> str:
    """Hash bytes with BLAKE2b.

    Args:
        data: any bytes.

    Returns:
        64 hexadecimal digits.

    Examples:
        >>> digest(b"abc")[:8]
        'bddd813c'
    """
    return running_digest(data).hexdigest()


def running_digest(data: bytes = b"") -> hashlib.blake2b:
    """Begin a :func:`digest` of bytes that come in parts; pass each part to the result's ``update``.

    Args:
        data: the first bytes. Defaults to none.

    Examples:
        >>> parts = running_digest(b"ab"); parts.update(b"c"); parts.hexdigest() == digest(b"abc")
        True
    """
    return hashlib.blake2b(data, digest_size=_DIGEST_BYTES)


def dump(name: str, state: Any) -> bytes:
    """Serialize an object's state and make sure that it can be read back without running code.

    Args:
        name: the object's name, for the message.
        state: tensors and plain values in dicts, lists and tuples.

    Raises:
        O2OCheckpointError: if the state contains anything else, such as numpy arrays or objects of your own classes.

    Examples:
        >>> load(dump("counters", {"step": 3}))
        {'step': 3}
        >>> dump("counters", {"step": object()})
        Traceback (most recent call last):
        torchrl_o2o.errors.O2OCheckpointError: the state of 'counters' cannot be read back without running code ...
    """
    stream = io.BytesIO()
    try:
        torch.save(_without_neighbors(state), stream)
        data = stream.getvalue()
        load(data, device="meta")  # everything but the tensors' values, which would need memory twice
    except Exception as error:  # pickle raises whatever the classes of the state raise
        reason = str(error) if isinstance(error, O2OCheckpointError) else f"{type(error).__name__}: {error}"
        raise O2OCheckpointError(
            f"the state of {name!r} cannot be read back without running code ({reason.partition(chr(10))[0]}); return "
            "tensors and plain numbers, strings, lists and dicts from its state_dict(). Convert numpy arrays with "
            "torch.as_tensor() and numpy numbers with item()"
        ) from error
    return data


def _without_neighbors(state: Any) -> Any:
    """A state whose tensors are no parts of larger ones, of which torch would save the rest, too.

    The parameters of stacked agents are slices of common tensors.
    """
    if isinstance(state, torch.Tensor):
        own = state.numel() * state.element_size()
        if state.layout != torch.strided or state.untyped_storage().nbytes() <= own:
            return state
        alone = state.detach().clone()
        return torch.nn.Parameter(alone, state.requires_grad) if isinstance(state, torch.nn.Parameter) else alone
    if isinstance(state, dict):
        out = copy.copy(state)  # of the same class, with the attributes that modules add to their states
        out.update({key: _without_neighbors(value) for key, value in state.items()})
        return out
    if type(state) in (list, tuple):
        return type(state)(_without_neighbors(value) for value in state)
    return state


def load(data: bytes, *, device: str = "cpu") -> Any:
    """Read what :func:`dump` wrote.

    Args:
        data: a file's content.

    Keyword Args:
        device: where tensors go. Defaults to ``"cpu"``.

    Raises:
        O2OCheckpointError: if reading the data would run code.

    Examples:
        >>> load(dump("weights", {"w": torch.ones(2)}))
        {'w': tensor([1., 1.])}
    """
    try:
        return torch.load(io.BytesIO(data), map_location=device, weights_only=True)
    except pickle.UnpicklingError as error:
        named = _GLOBAL.search(str(error))  # torch's own message explains how to load it regardless
        reason = f"it names {named[1]}" if named else str(error).partition("\n")[0]
        raise O2OCheckpointError(f"refused, because reading it would run code: {reason}") from error


def write_manifest(folder: Path, body: Mapping[str, Any]) -> None:
    """Write a manifest that carries its own hash.

    Args:
        folder: the checkpoint's folder.
        body: JSON values.

    Raises:
        OSError: if it cannot be written.

    Examples:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> write_manifest(folder, {"step": 4})
        >>> sorted(json.loads((folder / MANIFEST).read_text()))
        ['blake2b', 'manifest']
    """
    text = json.dumps(body, allow_nan=False)
    envelope = json.dumps({"blake2b": digest(text.encode()), "manifest": text})
    write_durably(folder / MANIFEST, envelope.encode())


def read_manifest(folder: Path) -> dict[str, Any]:
    """Read a manifest and check it against its own hash.

    Args:
        folder: the checkpoint's folder.

    Raises:
        DamagedError: if it is absent, damaged, or not a manifest.
        O2OCheckpointError: if it cannot be read at the moment.

    Examples:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> write_manifest(folder, {"step": 4}); read_manifest(folder)
        {'step': 4}
        >>> _ = (folder / MANIFEST).write_text("{}")
        >>> read_manifest(folder)
        Traceback (most recent call last):
        torchrl_o2o.checkpoint.manifest.DamagedError: ...manifest.json is damaged ...
    """
    path = folder / MANIFEST
    try:
        envelope = json.loads(_read(path))
        text = envelope["manifest"]
        if digest(text.encode()) != envelope["blake2b"]:
            raise ValueError("its hash does not match")
        return json.loads(text)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DamagedError(f"{path} is damaged ({error})") from error


def check_manifest(manifest: Mapping[str, Any], step: int) -> None:
    """Check that a manifest's entries fit together, so that no row is missing after a resume.

    Args:
        manifest: of this version's :data:`FORMAT`.
        step: the step of the folder it lies in.

    Raises:
        DamagedError: if they do not; the message says what does not fit.

    Examples:
        >>> check_manifest({"step": 3}, 4)
        Traceback (most recent call last):
        torchrl_o2o.checkpoint.manifest.DamagedError: the manifest of step 4 does not fit together: it says step 3
    """
    try:
        if manifest["step"] != step:
            raise ValueError(f"it says step {manifest['step']}")
        needed = {"rng.pt"} | ({"buffer.pt"} if manifest["buffer"]["regions"] else set())
        if absent := needed - manifest["files"].keys():
            raise ValueError(f"it has no {sorted(absent)}")
        entries = [*manifest["files"].values(), *manifest["buffer"]["segments"]]
        if not all(isinstance(entry["bytes"], int) and isinstance(entry["blake2b"], str) for entry in entries):
            raise ValueError("a size or hash is missing")
        _check_rows(manifest["buffer"]["regions"], manifest["buffer"]["segments"])
        _ = manifest["config"].keys(), manifest["versions"].keys()
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise DamagedError(
            f"the manifest of step {step} does not fit together: {f'no {error}' if type(error) is KeyError else error}"
        ) from error


def _check_rows(regions: Sequence[Mapping[str, Any]], segments: Sequence[Mapping[str, Any]]) -> None:
    """Check that each region's segments cover its live rows without a gap, and none crosses the end of the ring."""
    names = [region["name"] for region in regions]
    if strange := {entry["region"] for entry in segments} - set(names):
        raise ValueError(f"segments of no region: {sorted(strange)}")
    for region in regions:
        total, capacity = region["total"], region["capacity"]
        position, first = None, max(0, total - capacity)
        for entry in [entry for entry in segments if entry["region"] == region["name"]]:
            start, stop = entry["start"], entry["stop"]
            begins = start <= first if position is None else start == position
            if not (begins and 0 <= start < stop <= total and start // capacity == (stop - 1) // capacity):
                raise ValueError(f"{region['name']} rows {start} to {stop} of {total} are out of turn")
            position = stop
        if (first if position is None else position) != total:
            raise ValueError(f"{region['name']} rows from {first if position is None else position} on are missing")


def verify_file(path: Path, entry: Mapping[str, Any]) -> bytes:
    """Read a file and check it against its manifest entry.

    Args:
        path: the file.
        entry: with the expected ``bytes`` (its size) and ``blake2b``.

    Returns:
        The content.

    Raises:
        DamagedError: if the file is missing, cut short or altered.
        O2OCheckpointError: if it cannot be read at the moment.

    Examples:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "a"
        >>> _ = path.write_bytes(b"ab")
        >>> verify_file(path, {"bytes": 3, "blake2b": digest(b"abc")})
        Traceback (most recent call last):
        torchrl_o2o.checkpoint.manifest.DamagedError: ...a has 2 bytes, expected 3...
    """
    data = _read(path)
    if len(data) != entry["bytes"]:
        raise DamagedError(f"{path} has {len(data)} bytes, expected {entry['bytes']}: it was cut short")
    if digest(data) != entry["blake2b"]:
        raise DamagedError(f"{path} does not match its hash: its content was altered")
    return data
