# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Writers for the online slots of a storage that begins with offline rows."""

from __future__ import annotations

import json
import warnings
from collections.abc import Collection, Sequence
from multiprocessing.context import get_spawning_popen
from pathlib import Path
from typing import Any

import torch
from tensordict import TensorDictBase
from torch import Tensor
from torchrl.data import RoundRobinWriter, SliceSampler, Storage, Writer

from torchrl_o2o.arguments import checked_arguments
from torchrl_o2o.data.keys import STEPS, check_padding, check_steps, cut_off_, has_steps
from torchrl_o2o.data.storage import rows_of
from torchrl_o2o.envs.outputs import all_finite
from torchrl_o2o.errors import O2OSpecError, check_count, check_state

__all__ = ["OnlineWriter", "check_offline_rows", "row_differences"]

_OUTCOME = ("reward", "original_reward", "done", "terminated", "truncated")


class OnlineWriter(Writer):
    """Round-robin writer over the online slots of :func:`~torchrl_o2o.data.offline_online_storage`.

    The offline slots ``0 .. num_offline - 1`` are never written. When the online slots are full, the oldest online
    transition is overwritten.

    Rows count as one episode up to one that is done. If a collector is stopped in mid-episode and another one writes
    on, call :meth:`truncate_last` in between, or chunks and slices join the two episodes.

    Several threads may write through their replay buffer, whose lock guards the writer. Several processes may not,
    because each would have its own count, so a writer cannot be pickled to another process. Actors in other processes
    send their rows to the learner, see :class:`~torchrl_o2o.collectors.Fleet`, or to a replay service, see
    :func:`~torchrl_o2o.collectors.serve_replay`.

    Args:
        num_offline: number of slots at the storage's start that are never written.

    Keyword Args:
        num_reserved: number of the last offline slots that are reserved for :meth:`write_offline`; see
            :func:`~torchrl_o2o.data.reserve_slots`. Defaults to 0.

    Raises:
        O2OSpecError: if ``num_offline`` is negative or leaves no online slot, a batch is larger than the online region,
            the first rows differ from the stored ones in entries, shapes or dtypes (torch would fill with zeros or
            broadcast), rows over several steps reach a terminal without being marked terminal, or slices of TorchRL's
            ``SliceSampler`` would join offline and online rows.

    Examples:
        >>> import torch
        >>> from tensordict import TensorDict
        >>> from torchrl.data import LazyTensorStorage, TensorDictReplayBuffer
        >>> storage = LazyTensorStorage(5)
        >>> storage.set(torch.arange(3), TensorDict({"x": torch.arange(3)}, [3]))
        >>> buffer = TensorDictReplayBuffer(storage=storage, writer=OnlineWriter(3), batch_size=1)
        >>> buffer.extend(TensorDict({"x": torch.tensor([10, 11])}, [2]))
        tensor([3, 4])
        >>> buffer.extend(TensorDict({"x": torch.tensor([12])}, [1]))  # the oldest online row, not an offline one
        tensor([3])
        >>> storage[:]["x"]
        tensor([ 0,  1,  2, 12, 11])
    """

    @checked_arguments
    def __init__(self, num_offline: int, *, num_reserved: int = 0) -> None:
        super().__init__()
        self.num_offline = check_count("num_offline", num_offline)
        self.num_reserved = check_count("num_reserved", num_reserved)
        if num_reserved > num_offline:
            raise O2OSpecError(
                f"got num_reserved={num_reserved} of num_offline={num_offline} slots, expected at most num_offline; "
                "lower num_reserved"
            )
        self.total_written = 0
        self.offline_written = 0  #: rows written into the reserved slots, ever
        self._alike: list[tuple[Any, ...]] | None = None  # entries, shapes and types that have been compared

    @property
    def capacity(self) -> int:
        """Number of online slots.

        Raises:
            O2OSpecError: if the offline rows fill the whole storage.
        """
        capacity = self._storage.max_size - self.num_offline
        if capacity < 1:
            raise O2OSpecError(
                f"got num_offline={self.num_offline} for a storage of {self._storage.max_size} slots, expected at "
                "least one online slot; build the storage with offline_online_storage(offline, online_capacity)"
            )
        return capacity

    @property
    def _write_count(self) -> int:
        """The ``write_count`` of a replay buffer.

        Raises:
            O2OSpecError: if a buffer uses it to find a row's slot.
        """
        buffers = self._storage._attached_entities_iter()
        if self.num_offline and not all(getattr(buffer, "_sync", True) for buffer in buffers):
            raise O2OSpecError(
                "got a prioritized replay buffer with sync=False, expected sync=True, because it would take the slots "
                "of offline rows for those of new ones; build it with sync=True"
            )
        return self.total_written

    def _slots(self, count: int) -> Tensor:
        if count > self.capacity:
            raise O2OSpecError(
                f"got {count} transitions at once for {self.capacity} online slots; raise online_capacity, or write "
                "fewer rows at once"
            )
        first = self.total_written
        if self.num_offline and any(map(_draws_slices, self._storage._attached_entities_iter())):
            self._check_slices(first + count)
        self.total_written += count
        return self.num_offline + torch.arange(first, first + count) % self.capacity

    def _check_slices(self, total: int) -> None:
        """Raise if TorchRL's slices, which take the storage for one ring, would join offline and online rows."""
        if total > self.capacity:
            raise O2OSpecError(
                f"got {total} online rows for {self.capacity} slots and a SliceSampler, whose slices would lead from "
                "the last online slot to the first offline row; raise online_capacity to the number of online steps, "
                "or draw with a ChunkSampler"
            )
        if self.total_written == 0 and len(rows_of(self._storage)) >= self.num_offline:
            last = self._storage.get(self.num_offline - 1)
            done = last.get(("next", "done"), None) if isinstance(last, TensorDictBase) else None
            if done is not None and not done.all():
                raise O2OSpecError(
                    "the last offline row does not end its episode, so a SliceSampler's slices would lead from it to "
                    "the first online row; load whole episodes, or set its truncated and done flags before it is stored"
                )

    # The same signature as TorchRL's round-robin writers; their base class declares another.
    def add(self, data: Any) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Write one transition and return its slot."""
        self._compare(data, 0)
        index = self._slots(1)[0]
        self._storage.set(int(index), data)
        self._mark(index)
        return index

    def extend(self, data: TensorDictBase | Sequence[Any]) -> Tensor:
        """Write a batch of transitions, shape [n], and return their slots, shape [n]; n may be 0."""
        if len(data) == 0:
            return torch.zeros(0, dtype=torch.int64)
        self._compare(data, 1)
        _check_terminals(data)
        index = self._slots(len(data))
        rows_of(self._storage).set(index, data)
        self._mark(index)
        return index

    def write_offline(self, data: TensorDictBase) -> Tensor:
        """Write transitions [n] into the reserved offline slots, the oldest first; return their slots.

        Raises:
            O2OSpecError: if there are more of them than reserved slots, or the storage is a
                :class:`~torchrl_o2o.data.FrameStorage`, which has no slots for images among the offline rows.
        """
        if len(data) > self.num_reserved:
            raise O2OSpecError(
                f"got {len(data)} transitions for {self.num_reserved} reserved offline slots; reserve more in the data "
                f"and the writer: data = reserve_slots(data, R) and OnlineWriter(len(data), num_reserved=R)"
            )
        self._compare(data, 1)
        first, self.offline_written = self.offline_written, self.offline_written + len(data)
        index = (
            self.num_offline - self.num_reserved + torch.arange(first, self.offline_written) % max(self.num_reserved, 1)
        )
        rows_of(self._storage).set(index, data, set_cursor=False)
        self._mark(index)
        return index

    def __getstate__(self) -> Any:
        if get_spawning_popen() is not None:
            raise O2OSpecError(
                "an OnlineWriter cannot be pickled, because it would count rows in several processes; keep the buffer "
                "in the learner's process, and let actors in other processes send their rows "
                "(torchrl_o2o.collectors.Fleet)"
            )
        return super().__getstate__()

    def _compare(self, data: Any, batch_dims: int) -> None:
        """Raise if rows do not match the stored ones, because torch would broadcast or mix entries.

        The full comparison runs only if the layout differs from that of the previous rows. Rows that are not finite
        raise an error, too, because they would end the run whenever they are drawn.
        """
        if isinstance(data, TensorDictBase):
            check_steps(data)
            if batch_dims:
                check_padding(data)
        if isinstance(data, TensorDictBase) and data.batch_dims != batch_dims:
            raise O2OSpecError(
                f"got transitions of batch shape {list(data.batch_size)}, expected {['N'][:batch_dims]}; flatten them "
                "with data.reshape(-1), and add a single one with buffer.add(data)"
            )
        held = len(rows_of(self._storage))
        if held < self.num_offline:  # the new rows are beyond the storage's length, so uniform draws do not reach them
            warnings.warn(
                f"got online transitions for a storage that holds {held} of {self.num_offline} offline rows: "
                "buffer.empty() removes the data set, too, and samplers that do not check this draw the old rows. "
                "Build the storage and its buffers again, with OnlineWriter(0) if they should hold only online rows",
                stacklevel=4,
            )
        if not isinstance(data, TensorDictBase):
            return
        entries = list(data.items(True, True))
        if held:
            alike = [(key, value.shape[batch_dims:], value.dtype, value.requires_grad) for key, value in entries]
            if alike != self._alike:
                self._look_closely(data, batch_dims, alike)
        for key, value in entries:
            if value.is_floating_point() and not _is_finite(value):
                rows = value.isfinite().reshape(*value.shape[:batch_dims], -1).all(-1)
                where = f"row {int(rows.logical_not().nonzero()[0, 0])} of {len(rows)}" if batch_dims else "a row"
                raise O2OSpecError(
                    f"{key!r} of the transitions is not finite in {where}, expected finite values, because an update "
                    "with it would fail; leave the row out, or collect from GuardedEnv(lambda: ...), which rejects "
                    "such steps"
                )

    def _look_closely(self, data: TensorDictBase, batch_dims: int, alike: list[tuple[Any, ...]]) -> None:
        stored = self._storage.get(0)
        own = {getattr(buffer, "priority_key", None) for buffer in self._storage._attached_entities_iter()} | {"index"}
        if isinstance(stored, TensorDictBase) and (found := row_differences(data, stored, batch_dims, own)):
            raise O2OSpecError(
                f"the transitions do not fit the rows in the storage: {'; '.join(found)}. {_advice(data, stored)}"
            )
        graph = [key for key, *_, requires_grad in alike if requires_grad]
        if graph:
            raise O2OSpecError(
                f"{graph[0]!r} of the transitions requires gradients, which a storage would keep forever; collect "
                "under torch.no_grad(), or write data.detach()"
            )
        self._alike = alike

    def truncate_last(self) -> None:
        """Mark the last written transition as truncated, because its episode ended there.

        Raises:
            O2OSpecError: if nothing was written yet.
        """
        if self.total_written == 0:
            raise O2OSpecError("got no written transition, expected one to truncate; write one first")
        slot = torch.tensor([self.num_offline + (self.total_written - 1) % self.capacity])
        rows = rows_of(self._storage)
        rows.set(slot, cut_off_(rows.get(slot).clone()), set_cursor=False)

    def _mark(self, index: Tensor) -> None:
        for entity in self._storage._attached_entities_iter():
            entity.mark_update(index)

    def _empty(self, empty_write_count: bool = True) -> None:
        self.total_written, self.offline_written = 0, 0

    def state_dict(self) -> dict[str, Any]:
        """The number of online transitions ever written, which gives the next slot, and the size of a full ring."""
        more = {"offline_written": self.offline_written} if self.num_reserved else {}
        if self._storage is not None and self.total_written > self.capacity:
            more["capacity"] = self.capacity
        return {"num_offline": self.num_offline, "total_written": self.total_written, **more}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned.

        Raises:
            O2OSpecError: if the state belongs to another number of offline slots, or to a full ring of another size.
        """
        left = "the saved writer had {} offline slots, this one {}; load the data set with which the run was started"
        own = {"num_offline": self.num_offline, "total_written": 0, "offline_written": 0, "capacity": 1}
        check_state(self, state_dict, own, same={"num_offline": left}, optional=("offline_written", "capacity"))
        full = state_dict.get("capacity")
        if full is not None and self._storage is not None and full != self.capacity:
            raise O2OSpecError(
                f"the saved writer's {full} online slots were full, this one has {self.capacity}, so the order of the "
                "rows would change; build the storage with the online_capacity of that run"
            )
        self.total_written = state_dict["total_written"]
        self.offline_written = state_dict.get("offline_written", 0)

    def dumps(self, path: str | Path) -> None:
        """Write :meth:`state_dict` as JSON into a folder."""
        folder = Path(path)
        folder.mkdir(exist_ok=True)
        (folder / "online_writer.json").write_text(json.dumps(self.state_dict()))

    def loads(self, path: str | Path) -> None:
        """Read what :meth:`dumps` wrote."""
        self.load_state_dict(json.loads((Path(path) / "online_writer.json").read_text()))

    def __repr__(self) -> str:
        return f"OnlineWriter(num_offline={self.num_offline}, total_written={self.total_written})"


def _draws_slices(buffer: Any) -> bool:
    return isinstance(getattr(buffer, "_sampler", None), SliceSampler)


def _is_finite(value: Tensor) -> bool:
    """Whether all values are finite; through numpy if possible, which is much faster for single rows."""
    if value.device.type != "cpu" or value.dtype not in (torch.float32, torch.float64):
        return bool(value.isfinite().all())
    return all_finite((value.detach() if value.requires_grad else value).numpy())


def check_offline_rows(storage: Storage, num_offline: int) -> None:
    """Raise if offline rows of a storage are overwritten, or their number differs from a sampler's.

    Args:
        storage: the sampled storage.
        num_offline: the sampler's number of offline rows at the storage's start.

    Raises:
        O2OSpecError: if a replay buffer of this storage has an :class:`OnlineWriter` of another number of offline rows,
            or torchrl's default writer, which starts at the offline rows, or if the storage was emptied or is not flat.

    Examples:
        >>> import torch
        >>> from tensordict import TensorDict
        >>> from torchrl.data import LazyTensorStorage, TensorDictReplayBuffer
        >>> storage = LazyTensorStorage(5)
        >>> storage.set(torch.arange(3), TensorDict({"x": torch.arange(3)}, [3]))
        >>> buffer = TensorDictReplayBuffer(storage=storage, batch_size=1)  # the writer was forgotten
        >>> _ = buffer.extend(TensorDict({"x": torch.tensor([10])}, [1]))
        >>> check_offline_rows(storage, 3)
        Traceback (most recent call last):
        ...
        torchrl_o2o.errors.O2OSpecError: the replay buffer's TensorDictRoundRobinWriter has overwritten offline rows;
        build the buffer with writer=OnlineWriter(3)
    """
    if getattr(storage, "ndim", 1) > 1:
        raise O2OSpecError(f"got a storage of {storage.ndim} dimensions, expected flat transitions (ndim=1)")
    expected, size = 0, len(rows_of(storage))
    for buffer in storage._attached_entities_iter():
        writer = getattr(buffer, "_writer", None)
        if isinstance(writer, OnlineWriter):
            expected = max(expected, min(num_offline + writer.total_written, getattr(storage, "max_size", 0)))
        if isinstance(writer, OnlineWriter) and writer.num_offline != num_offline:
            raise O2OSpecError(
                f"got a sampler with num_offline={num_offline} and a writer with num_offline={writer.num_offline}, "
                "expected the same; pass the length of the data set to both"
            )
        # This is allowed if the same writer wrote the data set, until it reaches the data set's first row again.
        if num_offline and isinstance(writer, RoundRobinWriter):
            written = int(getattr(writer, "_write_count", 0))
            if 0 < written < size or written > getattr(storage, "max_size", written):
                raise O2OSpecError(
                    f"the replay buffer's {type(writer).__name__} has overwritten offline rows; build the buffer with "
                    f"writer=OnlineWriter({num_offline})"
                )
    if size < expected:
        raise O2OSpecError(
            f"the storage holds {size} rows, expected {num_offline} offline ones and those written since; "
            "buffer.empty() removes the data set, too. Build the storage and its buffers again"
        )


def _advice(data: TensorDictBase, stored: TensorDictBase) -> str:
    """Advice on how to make rows fit."""
    if has_steps(data) and not has_steps(stored):
        return (
            f"The new rows are sums over several steps, for which the losses need a stored {STEPS!r}: apply "
            "n_step(...) to the offline data, too, or store one-step rows"
        )
    if has_steps(stored) and not has_steps(data):
        return (
            f"The stored rows are sums over several steps: apply n_step(...) to the new rows, too, or set their "
            f"{STEPS!r} to ones"
        )
    return (
        "Select the storage's entries with data.select(*stored_keys(data)), or fill the storage with rows of the same "
        "entries from the start"
    )


def _check_terminals(data: Any) -> None:
    """Raise if n-step rows end in a terminal step without being marked terminal, as from TorchRL's MultiStep.

    The m-th step of row i is row i + m - 1 of the batch, if it has the same next observation.
    """
    steps = data.get(STEPS, None) if isinstance(data, TensorDictBase) else None
    if steps is None:
        return
    following, row = data.get("next"), torch.arange(len(data), device=steps.device)
    last = row + steps.reshape(-1) - 1
    row, last = (part[(last > row) & (last < len(data))] for part in (row, last))
    keys = [key for key in following.keys(True, True) if key not in _OUTCOME]
    same = torch.ones_like(row, dtype=torch.bool)
    for value in map(following.get, keys):
        same &= (value[row] == value[last]).reshape(len(row), value.shape[1:].numel()).all(-1)
    ends = following.get("terminated").reshape(-1)
    if (wrong := same & (ends[row] != ends[last])).any():
        raise O2OSpecError(
            f"row {int(row[wrong][0])} spans several steps to the terminal of row {int(last[wrong][0])}, but its own "
            "'terminated' is False, so it would bootstrap; torchrl's MultiStep keeps the first step's flags. Make "
            "rows over several steps with torchrl_o2o.data.n_step"
        )


def row_differences(
    data: TensorDictBase, stored: TensorDictBase, batch_dims: int, free: Collection[Any] = ()
) -> list[str]:
    """The differences in layout between rows, or one row, and a stored row.

    Args:
        data: the rows.
        stored: one row.
        batch_dims: number of the rows' batch dimensions.
        free: entries that are not compared. Defaults to none.

    Returns:
        A phrase for each entry that is missing, not stored, or differs in shape or dtype.

    Examples:
        >>> import torch
        >>> from tensordict import TensorDict
        >>> rows = TensorDict({"x": torch.zeros(5, 3)}, [5])
        >>> row_differences(rows, TensorDict({"x": torch.zeros(2)}), 1)
        ["'x' has shape [3] in place of [2]"]
    """
    expected, given = (
        {key: value for key, value in rows.items(include_nested=True, leaves_only=True) if key not in free}
        for rows in (stored, data)
    )
    found = [f"{key!r} is missing" for key in expected if key not in given]
    found += [f"{key!r} is not stored" for key in given if key not in expected]
    for key in expected.keys() & given.keys():
        own, value = given[key], expected[key]
        if own.shape[batch_dims:] != value.shape:
            found.append(f"{key!r} has shape {list(own.shape[batch_dims:])} in place of {list(value.shape)}")
        elif own.dtype != value.dtype:
            found.append(f"{key!r} is {own.dtype} in place of {value.dtype}")
    return found
