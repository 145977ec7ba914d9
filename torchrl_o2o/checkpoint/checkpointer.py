# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Save and restore a run: the part of the subpackage that scripts call."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Mapping
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from torchrl.data import ReplayBuffer

from torchrl_o2o.arguments import checked_arguments
from torchrl_o2o.checkpoint import folders
from torchrl_o2o.checkpoint.buffer import BufferArchive
from torchrl_o2o.checkpoint.manifest import FORMAT, DamagedError, digest, dump, write_manifest
from torchrl_o2o.checkpoint.reading import (
    check_config,
    checked_objects,
    newest_valid,
    read_state,
    restore_objects,
    warn_of_versions,
)
from torchrl_o2o.checkpoint.rng import restore_rng_state, rng_state
from torchrl_o2o.durable import FolderLock, identity, refuse_link, refuse_other, replace_durably, write_durably
from torchrl_o2o.errors import O2OCheckpointError, O2OSpecError, check_count
from torchrl_o2o.provenance import package_versions, plain_config

__all__ = ["Checkpointer"]

_LOG = logging.getLogger(__name__)

_NO_ROWS: dict[str, Any] = {"regions": [], "segments": [], "given": None}


class Checkpointer:
    """Save everything a run needs to continue as if it had never stopped, and restore it.

    Besides the given objects and buffer it keeps the states of the global random generators. Creating a checkpointer
    removes what a killed process left in the folder.

    Args:
        folder: the folder of checkpoints; made if absent.

    Keyword Args:
        objects: the parts of the run by name: objects with ``state_dict()`` and ``load_state_dict()`` (modules,
            optimizers, a :class:`~torchrl_o2o.record.Recorder`), or a dict, which is restored in place. Their states
            consist of tensors and plain values, which can be read without running code.
        buffer: a replay buffer with an :class:`~torchrl_o2o.data.OnlineWriter` or a round-robin writer. Rows that are
            changed after they were saved are found and saved again, with all rows written after them. Defaults to
            ``None``.
        keep: how many checkpoints to keep. Defaults to ``2``, so that there is one to fall back to.
        copies: store the buffer's rows twice on the disk, because the checkpoints share their files and one damaged
            file would spoil them all. Defaults to ``True``.
        config: settings that must be equal in the run that saves and the run that restores, including the algorithm's
            name: a mapping or dataclass of plain values. Defaults to ``None``, which checks nothing.

    Raises:
        O2OSpecError: if an object has no state, a name is not a word, or the order of the buffer's rows is unknown.
        O2OCheckpointError: if the folder cannot be written, or is a symbolic link.

    Examples:
        >>> import tempfile
        >>> import torch
        >>> folder = tempfile.mkdtemp()
        >>> net, counters = torch.nn.Linear(2, 1), {"updates": 0}
        >>> checkpoint = Checkpointer(folder, objects={"net": net, "counters": counters}, config={"algorithm": "awac"})
        >>> print(checkpoint.restore())
        None
        >>> counters["updates"] = 10
        >>> checkpoint.save(10)
        >>> counters["updates"] = 99
        >>> checkpoint.restore(), counters
        (10, {'updates': 10})
    """

    @checked_arguments
    def __init__(
        self,
        folder: str | Path,
        *,
        objects: Mapping[str, Any],
        buffer: ReplayBuffer | None = None,
        keep: int = 2,
        copies: bool = True,
        config: Any = None,
    ) -> None:
        if keep < 1:
            raise O2OSpecError(f"got keep={keep}, expected at least 1")
        self.folder = Path(folder).absolute()  # an environment, or Hydra, may change the working directory
        self._objects = checked_objects(objects)
        self._keep = keep
        self._config = {} if config is None else plain_config(config)
        self._last_step: int | None = None
        for own in (self.folder, self.folder / folders.SEGMENTS):
            refuse_link(own)
        try:
            (self.folder / folders.SEGMENTS).mkdir(parents=True, exist_ok=True)
            with FolderLock(self.folder):
                folders.sweep(self.folder)
            self._identity = identity(self.folder)
        except OSError as error:
            raise O2OCheckpointError(f"cannot write to {self.folder} ({error}); choose a writable folder") from error
        self._copies = copies
        self._archive = None if buffer is None else BufferArchive(buffer, self.folder / folders.SEGMENTS, copies)

    def save(self, step: int) -> None:
        """Write a checkpoint to the disk and remove the oldest ones beyond ``keep``.

        Args:
            step: the run's step counter, which must increase from save to save. Saving the step that was saved or
                restored last does nothing.

        Raises:
            O2OCheckpointError: if it cannot be written (disk full, an object whose state is not plain, a folder that
                was moved), or its step is not above those in the folder. Earlier checkpoints are intact and the run may
                continue.
            O2OSpecError: if the step is not a whole number of at least 0.
        """
        step = check_count("step", step)
        if step == self._last_step:
            return
        refuse_other(self.folder, self._identity)
        try:
            newest = max(folders.steps(self.folder), default=-1)
            if step <= newest:
                raise O2OCheckpointError(
                    f"got step {step}, expected more than {newest}, the newest checkpoint in {self.folder}; call "
                    "restore() first, or choose another folder for a new run"
                )
            with FolderLock(self.folder):
                self._write(step)
                folders.prune(self.folder, self._keep)
        except OSError as error:
            raise O2OCheckpointError(
                f"the checkpoint of step {step} cannot be written to {self.folder} ({error}); make room on the disk. "
                "Earlier checkpoints are intact"
            ) from error
        self._last_step = step

    def _write(self, step: int) -> None:
        staged = self.folder / f"step-{step}.tmp"
        try:
            rows = _NO_ROWS if self._archive is None else self._archive.save_rows()
            staged.mkdir()
            files = {f"{name}.pt": _write_state(staged, name, state) for name, state in self._states().items()}
            write_manifest(staged, self._description(step) | {"files": files, "buffer": rows})
            folders.commit(staged, self.folder, step)
        except BaseException:
            with suppress(OSError):  # whatever cannot be removed now is removed at the next start
                folders.sweep(self.folder)
            raise
        if self._archive is not None:
            self._archive.adopt(rows)

    def _states(self) -> dict[str, Any]:
        states = {name: item if isinstance(item, dict) else item.state_dict() for name, item in self._objects.items()}
        if self._archive is not None:
            states["buffer"] = self._archive.state_dict()
        return states | {"rng": rng_state()}

    def _description(self, step: int) -> dict[str, Any]:
        return {
            "format": FORMAT,
            "step": int(step),
            "saved": datetime.now(UTC).isoformat(timespec="seconds"),
            "config": self._config,
            "versions": package_versions(),
        }

    def restore(self) -> int | None:
        """Bring everything back from the newest checkpoint that is complete and unaltered.

        A damaged checkpoint is set aside with a warning, and the previous one is used. A checkpoint that cannot be read
        at the moment does not count as damaged.

        Returns:
            The checkpoint's step, or None if there is no checkpoint yet.

        Raises:
            O2OCheckpointError: if all checkpoints are damaged, one cannot be read at the moment, or the checkpoint has
                another configuration, other objects or other shapes.
        """
        manifest, damaged = newest_valid(self.folder)
        if manifest is None:
            _LOG.info("no checkpoint in %s to resume from: starting a new run", self.folder)
            return None
        check_config(manifest["config"], self._config)
        self._check_objects(manifest)
        warn_of_versions(manifest["versions"])
        restore_objects(self.folder, manifest, self._objects)
        if self._archive is not None:
            state = read_state(self.folder, manifest, "buffer")
            self._archive.restore(manifest["buffer"], state, self._read_segment)
        restore_rng_state(read_state(self.folder, manifest, "rng"))
        for step in damaged:
            folders.retire(self.folder, step)
        self._last_step = manifest["step"]
        return self._last_step

    def _read_segment(self, entry: Mapping[str, Any]) -> bytes:
        """Read a segment, and restore its second copy if one is missing or damaged."""
        data, error = folders.verify_segment(self.folder, entry)
        path = self.folder / folders.SEGMENTS / entry["file"]
        if error is not None:
            warnings.warn(f"A FILE OF THE BUFFER IS DAMAGED: {error}; its copy is used", stacklevel=5)
        with suppress(OSError):  # the next save reports a full disk
            if isinstance(error, DamagedError):
                replace_durably(path, data)
            elif self._copies and not folders.copy_of(path).exists():
                replace_durably(folders.copy_of(path), data)
        return data

    def _check_objects(self, manifest: Mapping[str, Any]) -> None:
        saved = {name.removesuffix(".pt") for name in manifest["files"]} - {"rng"}
        given = {*self._objects} | ({"buffer"} if self._archive is not None else set())
        if saved != given:
            raise O2OCheckpointError(
                f"got the objects {sorted(given)}, expected {sorted(saved)} as in the checkpoint of step "
                f"{manifest['step']}; pass the same objects, or read some of them with load_objects()"
            )


def _write_state(folder: Path, name: str, state: Any) -> dict[str, Any]:
    data = dump(name, state)
    write_durably(folder / f"{name}.pt", data)
    return {"bytes": len(data), "blake2b": digest(data)}
