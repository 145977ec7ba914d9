# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""The result of a reader, and a memory-mapped cache that avoids reading the same files twice."""

from __future__ import annotations

import hashlib
import json
import os
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from tensordict import TensorDict
from torch import Tensor

from torchrl_o2o.data.datasets.staging import discard_directory, staged_directory
from torchrl_o2o.data.findings import Finding
from torchrl_o2o.data.transforms import episode_returns
from torchrl_o2o.durable import reserve, write_durably

__all__ = ["RawDataset", "SourceMeta", "cached", "dataset_root", "default_cache_dir"]

_FORMAT = 4  # increased when the readers return different rows
_MANIFEST = "manifest.json"
_HIDDEN_FOLDER = ".torchrl_o2o"


@dataclass(frozen=True)
class SourceMeta:
    """The metadata of a source; JSON values only.

    Args:
        id: the data set's name or its file.
        env_id: the environment or own task it was recorded in.
        max_episode_steps: that environment's time limit.
        action_low: [a] lower bounds of the actions as stored, if known.
        action_high: [a] upper bounds.
        ref_min_score: return that counts as a score of 0.
        ref_max_score: return that counts as a score of 100.
        provenance: how the data were made: algorithm, author, seed, versions, ...
        recorded: how the environment was made, and the one for evaluation, in the form of
            :func:`~torchrl_o2o.data.env_match.described`.
        obs_keys: the entries of a dictionary observation that were joined, in order.
    """

    id: str
    env_id: str | None = None
    max_episode_steps: int | None = None
    action_low: tuple[float, ...] | None = None
    action_high: tuple[float, ...] | None = None
    ref_min_score: float | None = None
    ref_max_score: float | None = None
    provenance: Mapping[str, Any] = field(default_factory=dict)
    recorded: tuple[Mapping[str, Any], ...] = ()
    obs_keys: tuple[str, ...] = ()


@dataclass(frozen=True)
class RawDataset:
    """Transitions [N] in TED as stored, the source's metadata, and the reader's changes.

    ``returns`` are the sums of all of each episode's rewards, including those of dropped rows; ``None`` if no row was
    dropped.
    """

    data: TensorDict
    meta: SourceMeta
    notes: tuple[Finding, ...] = ()
    returns: tuple[float, ...] | None = None

    def episode_returns(self) -> Tensor:
        """Return the sum of the stored rewards of each episode, [E] float64."""
        if self.returns is None:
            return episode_returns(self.data)
        return torch.tensor(self.returns, dtype=torch.float64)


def dataset_root() -> Path:
    """Return Minari's data set folder: ``$MINARI_DATASETS_PATH``, else ``~/.minari/datasets``."""
    stated = os.environ.get("MINARI_DATASETS_PATH")
    return Path(stated) if stated is not None else Path.home() / ".minari" / "datasets"


def default_cache_dir() -> Path:
    """Return the default folder of converted data, a hidden folder beside Minari's data sets."""
    return dataset_root() / _HIDDEN_FOLDER


def cached(
    cache_dir: Path, files: Iterable[Path], options: Mapping[str, Any], convert: Callable[[], RawDataset]
) -> RawDataset:
    """Return ``convert()``, or its cached result for the same files and options.

    An entry is named by two hashes. The first is of the files' paths, the options and the cache's format, the
    second of the files' sizes and times of modification and change and the content of JSON files. If only the
    second differs, the files were changed, and the new entry replaces the old one. An entry is created by one
    rename, so a killed conversion leaves none. A manifest holds the hashes of its files; an entry that does not
    match its manifest is discarded and made again. Entries can be deleted at any time.

    Args:
        cache_dir: the folder of entries.
        files: everything that ``convert`` reads.
        options: further values on which its result depends; JSON values.
        convert: the function that reads the source.
    """
    files = sorted(files)
    source = f"{files[0].stem}-{_hash([_FORMAT, [str(path.resolve()) for path in files], options])}-"
    entry = cache_dir / f"{source}{_hash([_state(path) for path in files])}"
    found = _read(entry)
    if found is not None:
        return found
    raw = convert()
    try:
        discard_directory(entry)
        _write(entry, raw)
        for other in cache_dir.iterdir():
            if other.name.startswith(source) and other != entry:
                discard_directory(other)
    except OSError as error:
        warnings.warn(f"cannot keep converted data in {cache_dir} ({error}); they will be read again.", stacklevel=2)
    return raw


def _hash(value: Any) -> str:
    return hashlib.blake2b(json.dumps(value, sort_keys=True).encode(), digest_size=8).hexdigest()


def _state(path: Path) -> list[Any]:
    """Size and times of a file, and for JSON a hash of its content.

    Archives and copies may give another content the same time of modification, but not the same time of change.
    """
    status = path.stat()
    content = hashlib.blake2b(path.read_bytes()).hexdigest() if path.suffix == ".json" else ""
    return [status.st_size, status.st_mtime_ns, status.st_ctime_ns, content]


def _write(entry: Path, raw: RawDataset) -> None:
    with staged_directory(entry, sync=False) as folder:
        _memmap(raw.data, folder / "transitions")
        manifest = {
            "files": _hashes(folder),
            "meta": asdict(raw.meta),
            "notes": [asdict(note) for note in raw.notes],
            "returns": raw.returns,
        }
        write_durably(folder / _MANIFEST, json.dumps(manifest).encode())


def _memmap(data: TensorDict, folder: Path) -> None:
    """Write memory-mapped files, reserving their blocks first: on a full disk a mapped write raises SIGBUS."""
    mapped = data.memmap_like(str(folder))
    for path in folder.rglob("*.memmap"):
        reserve(path)
    mapped.update_(data)


def _hashes(folder: Path) -> dict[str, str]:
    hashes = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.name != _MANIFEST:
            with path.open("rb") as file:
                hashes[path.relative_to(folder).as_posix()] = hashlib.file_digest(file, "blake2b").hexdigest()
    return hashes


def _read(entry: Path) -> RawDataset | None:
    """Return a cache entry, or None if there is none or it does not match its manifest."""
    try:
        manifest = json.loads((entry / _MANIFEST).read_bytes())
        if manifest["files"] != _hashes(entry):
            raise ValueError("its files differ from its manifest")
        data = TensorDict.load_memmap(entry / "transitions", allow_pickle=False).clone().clear_device_()
        meta = SourceMeta(**manifest["meta"])
        notes = tuple(Finding(**note) for note in manifest["notes"])
    except (FileNotFoundError, NotADirectoryError):
        return None
    except Exception as error:  # whatever is wrong with an entry, the source can still be read
        warnings.warn(f"the converted data in {entry} are damaged ({error}); reading the source again.", stacklevel=3)
        return None
    bounds = {
        name: None if (value := getattr(meta, name)) is None else tuple(value) for name in ("action_low", "action_high")
    }
    meta, returns = replace(meta, recorded=tuple(meta.recorded), obs_keys=tuple(meta.obs_keys)), manifest["returns"]
    return RawDataset(data, replace(meta, **bounds), notes, None if returns is None else tuple(returns))
