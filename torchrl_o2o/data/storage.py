# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""One storage for both sources: offline data in the first slots, and online data in a ring after them."""

from __future__ import annotations

import bisect
import math
import shutil
import tempfile
from pathlib import Path
from typing import Any, Protocol, cast

import torch
from tensordict import NestedKey, TensorDictBase
from torch import Tensor
from torchrl.data import LazyMemmapStorage, LazyTensorStorage, Storage

from torchrl_o2o.arguments import checked_arguments
from torchrl_o2o.data.keys import TRANSITION, check_steps, stored_keys
from torchrl_o2o.durable import reserve
from torchrl_o2o.errors import O2ODataError, O2OSpecError

__all__ = ["MappedStorage", "offline_online_storage"]


class Rows(Protocol):
    """The interface of all storages."""

    def __len__(self) -> int:
        """The number of rows."""
        ...

    def get(self, index: Any) -> Any:
        """Rows, by number, slice or tensor of numbers."""
        ...

    def set(self, cursor: Any, data: Any, *, set_cursor: bool = True) -> None:
        """Write rows, by number, slice or tensor of numbers."""
        ...


def rows_of(storage: Storage) -> Rows:
    """The same storage, with the type annotations of :class:`Rows`.

    Args:
        storage: any.

    Returns:
        The same.

    Examples:
        >>> storage = LazyTensorStorage(4)
        >>> len(rows_of(storage)), rows_of(storage) is storage
        (0, True)
    """
    # TorchRL's base class declares no length, and only integer indices.
    return cast(Rows, storage)


def check_no_gradients(rows: TensorDictBase) -> None:
    """Raise for rows that require gradients, because a storage would keep their graph.

    Args:
        rows: the rows to store.

    Raises:
        O2ODataError: if an entry requires gradients; the message names it.

    Examples:
        >>> from torchrl_o2o.testing import random_transitions
        >>> check_no_gradients(random_transitions(4, 3, 2))
    """
    for key, value in rows.items(True, True):
        if isinstance(value, Tensor) and value.requires_grad:
            raise O2ODataError(f"{key!r} of the data requires gradients, expected plain numbers; store data.detach()")


class MappedStorage(LazyMemmapStorage):
    """Offline rows, followed by slots for online rows, in memory-mapped files.

    It differs in two ways from TorchRL's storage. It reserves disk space before it writes, because a mapped write to a
    full disk kills the process. And it records which offline rows were written, so that a save does not read all of
    them to find changes. Change offline rows only through the storage or the writer: checkpoints miss changes made in
    place in ``storage[a:b]``, which is a view of the files.

    Args:
        num_offline: number of offline rows at its start.
        online_capacity: number of slots after them.
        scratch_dir: folder of the files, empty or absent. The files stay when the process ends, but no run reads them
            again.

    Raises:
        O2OSpecError: if the folder is not empty, is or lies in a file, or cannot be written.
        O2ODataError: when the first rows are written, if the disk has no room for all slots.

    Examples:
        >>> import tempfile
        >>> from torchrl_o2o.testing import random_transitions
        >>> storage = MappedStorage(4, 2, tempfile.mkdtemp())
        >>> storage.set(slice(0, 4), random_transitions(4, 3, 2))
        >>> storage.set(slice(4, 6), random_transitions(2, 3, 2))
        >>> len(storage), storage.offline_writes
        (6, 1)
    """

    def __init__(self, num_offline: int, online_capacity: int, scratch_dir: str | Path) -> None:
        folder = Path(scratch_dir).absolute()  # the files are made when the first rows are written
        if folder.exists() and not (folder.is_dir() and next(folder.iterdir(), None) is None):
            found = "not empty" if folder.is_dir() else "a file"
            raise O2OSpecError(
                f"got scratch_dir={str(scratch_dir)!r}, which is {found}, expected a folder that is empty or absent; "
                "pass another one, or remove it if an earlier run left it. No run needs old files: a resumed run gets "
                "its rows from the data and the checkpoint"
            )
        _check_writable(folder)
        super().__init__(num_offline + online_capacity, scratch_dir=folder)
        self.num_offline = num_offline
        #: How often offline rows were written.
        self.offline_writes = 0
        self._firsts: list[tuple[int, int]] = []  # (number of a write, its first slot), both increasing

    def _init(self, data: TensorDictBase) -> None:
        """Create the files and reserve all their blocks before a row is written."""
        folder, leaves = Path(str(self.scratch_dir)), data.values(include_nested=True, leaves_only=True)
        size = self.max_size * sum(leaf.element_size() * math.prod(leaf.shape) for leaf in leaves)
        what = f"{self.max_size} rows take {size / 1e9:.3g} GB in {folder}"
        remedy = "make room, name a folder on another disk, or lower online_capacity"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            free = shutil.disk_usage(folder).free
            if size > free:
                raise O2ODataError(f"{what}, where {free / 1e9:.3g} GB are free; {remedy}")
            super()._init(data)
            for path in folder.rglob("*.memmap"):
                reserve(path)
        except OSError as error:
            shutil.rmtree(folder, ignore_errors=True)  # the folder was empty before
            raise O2ODataError(f"{what}, which failed ({error}); {remedy}") from error

    def get(self, index: Any) -> Any:
        """Read rows, as in any storage."""
        if self.initialized and self._in_filled(index):
            return self._storage[index]  # indexing a view of the filled slots would take twice the time
        return super().get(index)

    def _in_filled(self, index: Any) -> bool:
        """Whether an index consists of numbers of written rows."""
        if not isinstance(index, Tensor) or index.dtype != torch.int64 or not index.numel():
            return False
        low, high = index.aminmax()
        return bool(low >= 0 and high < len(self))

    # TorchRL declares overloads, which no single method matches.
    def set(  # pyright: ignore[reportIncompatibleVariableOverride]
        self, cursor: Any, data: Any, *, set_cursor: bool = True
    ) -> None:
        """Write rows, as in any storage."""
        super().set(cursor, data, set_cursor=set_cursor)
        self._note(cursor)

    def _apply_conditional_patch(self, index: Tensor, patch: dict[NestedKey, Tensor]) -> None:
        super()._apply_conditional_patch(index, patch)
        self._note(index)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load another storage's rows."""
        super().load_state_dict(state_dict)
        self._note(0)

    def first_written(self, since: int) -> int:
        """The first offline slot written after a number of writes; ``num_offline`` if none was.

        Args:
            since: an earlier value of :attr:`offline_writes`.
        """
        later = bisect.bisect_right(self._firsts, (since, self.num_offline))
        return self._firsts[later][1] if later < len(self._firsts) else self.num_offline

    def _note(self, cursor: Any) -> None:
        """Record the first offline slot of a write."""
        first = _first_slot(cursor, self.max_size)
        if first < self.num_offline:
            self.offline_writes += 1
            while self._firsts and self._firsts[-1][1] >= first:  # this write begins at a lower slot
                self._firsts.pop()
            self._firsts.append((self.offline_writes, first))


def _check_writable(folder: Path) -> None:
    """Raise if no file can be made in a folder, which may be absent; removes what it makes for that."""
    absent = [each for each in (folder, *folder.parents) if not each.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise O2OSpecError(
            f"got scratch_dir={str(folder)!r}, in which no file can be made ({error}), expected a folder that can be "
            "written; name another one, or change its permissions"
        ) from error
    finally:
        for each in absent:
            if each.is_dir():
                each.rmdir()


def _first_slot(cursor: Any, size: int) -> int:
    """The lowest slot of an index; ``size`` if it is empty."""
    if isinstance(cursor, slice):
        slots = range(size)[cursor]
        return min(slots[0], slots[-1]) if slots else size
    index = torch.as_tensor(cursor)
    index = index.nonzero() if index.dtype == torch.bool else index
    return int((index % size).min()) if index.numel() else size


def check_mapped(device: torch.device | str) -> None:
    """Raise for rows in memory-mapped files on another device than the CPU.

    Args:
        device: of the storage.

    Raises:
        O2OSpecError: if it is another one.

    Examples:
        >>> check_mapped("cpu")
    """
    if torch.device(device).type != "cpu":
        raise O2OSpecError(
            f"got scratch_dir with device={str(device)!r}, expected 'cpu', because files are mapped into host memory; "
            "leave device out, and move each batch with batch.to(device)"
        )


@checked_arguments
def offline_online_storage(
    offline: TensorDictBase,
    online_capacity: int,
    *,
    device: torch.device | str = "cpu",
    scratch_dir: str | Path | None = None,
) -> LazyTensorStorage:
    """Storage whose first ``len(offline)`` slots hold the data set and whose other slots are for online transitions.

    A row is offline exactly if its index is below ``len(offline)``, so any sampler can distinguish the sources and draw
    exact fractions, a batch is one gather, and a checkpoint is one file. Write to it with
    :class:`~torchrl_o2o.data.OnlineWriter`, which never touches the offline slots.

    ``device`` alone moves the data path to a GPU. The writer moves rows there, and every sampler of this package
    delivers its batches there, with ``index`` and ``priority_weight``. Row numbers are drawn on the CPU from the replay
    buffer's generator, so a seed draws the same rows on every device; they are moved once per batch.
    :class:`~torchrl_o2o.data.PoolSampler` gathers and scores its pool on the device of storage and networks and returns
    one number per row. Samplers with stored priorities keep them in host memory.

    Use ``scratch_dir`` for more rows than fit in memory. They are then in memory-mapped files, as in TorchRL's
    :class:`~torchrl.data.LazyMemmapStorage`, and batches are read from the disk. Memory-mapped offline rows, see
    :func:`~torchrl_o2o.data.load_offline`, are copied from file to file. A run draws the same batches as from memory.

    Args:
        offline: transitions, shape [N], with at least the entries of :data:`~torchrl_o2o.data.TRANSITION`. The steps of
            :func:`~torchrl_o2o.data.n_step` are kept. Other entries are dropped, because the environment will not
            deliver them.
        online_capacity: number of slots for online transitions, at least 1.
        device: device of the storage. Defaults to ``"cpu"``.
        scratch_dir: folder for memory-mapped files, empty or absent, see :class:`MappedStorage`; the files stay when
            the process ends. ``None`` (default) keeps the rows in memory.

    Returns:
        A storage of ``N + online_capacity`` slots, the first N filled.

    Raises:
        O2ODataError: if the data are empty, lack entries or require gradients, or the disk has no room for all slots.
        O2OSpecError: if the capacity is below 1, or ``scratch_dir`` is not empty or given with another device.

    Examples:
        >>> import torch
        >>> from tensordict import TensorDict
        >>> flag = torch.zeros(3, 1, dtype=torch.bool)
        >>> following = {"observation": torch.zeros(3, 2), "reward": torch.zeros(3, 1)}
        >>> following |= {"terminated": flag, "truncated": flag, "done": flag}
        >>> data = TensorDict({"observation": torch.zeros(3, 2), "action": torch.zeros(3, 1), "next": following}, [3])
        >>> storage = offline_online_storage(data, 10)
        >>> len(storage), storage.max_size
        (3, 13)
    """
    if offline.batch_dims != 1 or len(offline) == 0:
        raise O2ODataError(f"got offline data of batch shape {tuple(offline.batch_size)}, expected [N] with N >= 1")
    missing = [key for key in TRANSITION if key not in offline.keys(include_nested=True)]
    if missing:
        raise O2ODataError(
            f"got offline data without {missing}, expected all entries of TRANSITION; load them with "
            "torchrl_o2o.data.load_offline"
        )
    if online_capacity < 1:
        raise O2OSpecError(
            f"got online_capacity={online_capacity}, expected at least 1, usually the number of online steps"
        )
    check_no_gradients(offline)
    check_steps(offline)
    size = len(offline)
    if scratch_dir is None:
        storage = LazyTensorStorage(size + online_capacity, device=device)
    else:
        check_mapped(device)
        storage = MappedStorage(size, online_capacity, scratch_dir)
    storage.set(slice(0, size), offline.select(*stored_keys(offline)).to(device))
    return storage
