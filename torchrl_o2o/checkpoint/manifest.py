# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""What makes a checkpoint's files trustworthy: values without code, a manifest of sizes and hashes, and its check."""

from __future__ import annotations

import hashlib
import io
import json
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from torchrl_o2o.durable import write_durably
from torchrl_o2o.errors import O2OCheckpointError

__all__ = ["MANIFEST", "digest", "dump", "load", "read_manifest", "verify_file", "write_manifest"]

#: The manifest's name within a checkpoint's folder.
MANIFEST = "manifest.json"
_DIGEST_BYTES = 32


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
    return hashlib.blake2b(data, digest_size=_DIGEST_BYTES).hexdigest()


def dump(name: str, state: Any) -> bytes:
    """Serialize an object's state and make sure that it can be read back without running code.

    Args:
        name: the object's name, for the message.
        state: tensors and plain values in dicts, lists and tuples.

    Raises:
        O2OCheckpointError: if the state holds anything else, such as numpy arrays or own classes.

    Examples:
        >>> load(dump("counters", {"step": 3}))
        {'step': 3}
        >>> dump("counters", {"step": object()})
        Traceback (most recent call last):
        torchrl_o2o.errors.O2OCheckpointError: the state of 'counters' cannot be read back without running code ...
    """
    stream = io.BytesIO()
    try:
        torch.save(state, stream)
        data = stream.getvalue()
        load(data)
    except Exception as error:  # pickle raises what the state's own classes raise
        reason = str(error).partition("\n")[0]
        raise O2OCheckpointError(
            f"the state of {name!r} cannot be read back without running code ({type(error).__name__}: {reason}); "
            "return tensors and plain numbers, strings, lists and dicts from its state_dict()"
        ) from error
    return data


def load(data: bytes) -> Any:
    """Read what :func:`dump` wrote, tensors onto the CPU.

    Args:
        data: a file's content.

    Raises:
        O2OCheckpointError: if reading it would run code.

    Examples:
        >>> load(dump("weights", {"w": torch.ones(2)}))
        {'w': tensor([1., 1.])}
    """
    try:
        return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        reason = str(error).partition("\n")[0]
        raise O2OCheckpointError(f"refused, because reading it would run code ({reason})") from error


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
        O2OCheckpointError: if it is absent, damaged, or not a manifest.

    Examples:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> write_manifest(folder, {"step": 4}); read_manifest(folder)
        {'step': 4}
        >>> _ = (folder / MANIFEST).write_text("{}")
        >>> read_manifest(folder)
        Traceback (most recent call last):
        torchrl_o2o.errors.O2OCheckpointError: ...manifest.json is damaged ...
    """
    path = folder / MANIFEST
    try:
        envelope = json.loads(path.read_bytes())
        text = envelope["manifest"]
        if digest(text.encode()) != envelope["blake2b"]:
            raise ValueError("its hash does not match")
        return json.loads(text)
    except OSError as error:
        raise O2OCheckpointError(f"{path} cannot be read ({error})") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise O2OCheckpointError(f"{path} is damaged ({error})") from error


def verify_file(path: Path, entry: Mapping[str, Any]) -> bytes:
    """Read a file and check it against its manifest entry.

    Args:
        path: the file.
        entry: with the expected ``bytes`` (its size) and ``blake2b``.

    Returns:
        The content.

    Raises:
        O2OCheckpointError: if the file is missing, cut short or altered.

    Examples:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "a"
        >>> _ = path.write_bytes(b"ab")
        >>> verify_file(path, {"bytes": 3, "blake2b": digest(b"abc")})
        Traceback (most recent call last):
        torchrl_o2o.errors.O2OCheckpointError: ...a has 2 bytes, expected 3...
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise O2OCheckpointError(f"{path} cannot be read ({error})") from error
    if len(data) != entry["bytes"]:
        raise O2OCheckpointError(f"{path} has {len(data)} bytes, expected {entry['bytes']}: it was cut short")
    if digest(data) != entry["blake2b"]:
        raise O2OCheckpointError(f"{path} does not match its hash: its content was altered")
    return data
