# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Build the buffer for the start of online training: choose its offline rows and how rows are drawn."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

import torch
from tensordict import TensorDictBase
from tensordict.utils import NestedKey
from torchrl.data import LazyTensorStorage, Storage, TensorDictReplayBuffer, TensorStorage
from torchrl.data.replay_buffers.samplers import RandomSampler

from torchrl_o2o.arguments import checked_arguments
from torchrl_o2o.data.episodes import number_episodes
from torchrl_o2o.data.keys import EPISODE, TRANSITION, check_flat, check_steps, with_steps
from torchrl_o2o.data.samplers import BalancedSampler
from torchrl_o2o.data.storage import MappedStorage, check_mapped, check_no_gradients
from torchrl_o2o.data.transforms import episode_returns
from torchrl_o2o.data.writers import OnlineWriter
from torchrl_o2o.errors import O2ODataError, O2OSpecError, check_count, check_option

__all__ = ["MakeStorage", "StartingData", "offline_buffer", "starting_buffer", "top_episodes"]

StartingData = Literal["none", "all", "top", "symmetric"]
#: A function like ``offline_online_storage``, which makes a storage from offline rows and a number of online slots.
MakeStorage = Callable[[TensorDictBase, int], Storage]


def top_episodes(data: TensorDictBase, number: int) -> TensorDictBase:
    """The episodes of highest return, the best last, so that a full first-in-first-out buffer overwrites the best last.

    Difference from ACA's code: the last reward of an episode that ends by timeout counts (its library drops that
    transition, and its ranking misses the reward).

    Args:
        data: transitions [N] with ``episode``.
        number: number of episodes; all are taken if there are fewer.

    Returns:
        Their transitions, in order.

    Raises:
        O2OSpecError: if ``number`` is not an integer of at least 0.
        O2ODataError: if the data have no episode numbers, rows are shuffled, or a return is not finite.

    Examples:
        >>> import torch
        >>> from tensordict import TensorDict
        >>> reward = torch.tensor([[5.0], [1.0], [1.0], [9.0]])
        >>> data = TensorDict({"episode": torch.tensor([0, 1, 1, 2]), "next": {"reward": reward}}, [4])
        >>> top_episodes(data, 2)["episode"]
        tensor([0, 2])
    """
    number = check_count("number", number)
    returns, episode = episode_returns(data), number_episodes(data)
    if (bad := ~returns.isfinite()).any():  # they would be the highest
        first = int(bad.nonzero()[0])
        named = int(data[EPISODE][episode == first][0])
        raise O2ODataError(
            f"episode {named} returns {float(returns[first])}, expected finite returns to rank episodes by; "
            "load the data with load_offline, which checks them"
        )
    best = returns.argsort(stable=True)[max(len(returns) - number, 0) :]
    return data[torch.cat([torch.where(episode == index)[0] for index in best] or [episode[:0]])]


@checked_arguments
def starting_buffer(
    offline: TensorDictBase,
    online_capacity: int,
    *,
    data: StartingData = "all",
    batch_size: int = 256,
    num_top_episodes: int = 0,
    offline_fraction: float = 0.5,
    keys: Sequence[NestedKey] = TRANSITION,
    make_storage: MakeStorage | None = None,
    scratch_dir: str | Path | None = None,
    device: torch.device | str = "cpu",
) -> TensorDictReplayBuffer:
    """The replay buffer that online training starts from.

    =================  =======================================================================  =====================
    ``data``           content and sampling                                                     used by
    =================  =======================================================================  =====================
    ``"none"``         empty; uniform                                                           WSRL, SAMG
    ``"all"``          the data set, then online rows; uniform over both                        AWAC, IQL, CORL's CQL
    ``"top"``          the best episodes, overwritten in the end; uniform                       ACA
    ``"symmetric"``    the data set, never overwritten; an exact ``offline_fraction`` of it     Cal-QL, RLPD
    =================  =======================================================================  =====================

    Args:
        offline: transitions [N] with ``episode``.
        online_capacity: number of slots besides those of the offline rows, usually the number of online steps.

    Keyword Args:
        data: the offline rows to keep. Defaults to ``"all"``.
        batch_size: rows per sample. Defaults to 256.
        num_top_episodes: number of episodes that ``"top"`` keeps, only for it. Defaults to 0.
        offline_fraction: share of offline rows in ``"symmetric"`` batches, only for it. Defaults to 0.5.
        keys: entries of a transition; Cal-QL adds ``"mc_return"``. Defaults to
            :data:`~torchrl_o2o.data.TRANSITION`.
        make_storage: makes the storage from the offline rows and the number of online slots, for example
            :class:`~torchrl_o2o.data.shared_rows.SharedRows` for several agents; ``None`` (default) makes a
            :class:`~torchrl.data.LazyTensorStorage`.
        scratch_dir: folder for the rows in memory-mapped files, see :class:`~torchrl_o2o.data.storage.MappedStorage`.
            ``None`` (default) keeps them in memory.
        device: of rows and batches, without ``make_storage`` and ``scratch_dir``. Defaults to ``"cpu"``.

    Returns:
        The buffer. Except under ``"symmetric"``, the oldest rows are overwritten first, offline ones included.

    Raises:
        O2OSpecError: if an option is unknown or does not fit, ``data`` does not read it, or ``batch_size`` is below 1.
        O2ODataError: if the data are not flat, or the disk has no room for the rows.

    Examples:
        >>> from torchrl_o2o.testing import ContextualTargetEnv, probe_transitions
        >>> offline = probe_transitions(ContextualTargetEnv(), 20)
        >>> len(starting_buffer(offline, 100)), len(starting_buffer(offline, 100, data="none"))
        (20, 0)
    """
    check_option("data", data, ("none", "all", "top", "symmetric"))
    if online_capacity < 1:
        raise O2OSpecError(f"got online_capacity={online_capacity}, expected at least 1")
    batch_size = check_count("batch_size", batch_size, least=1)
    for name, given, default, reader in (
        ("num_top_episodes", num_top_episodes, 0, "top"),
        ("offline_fraction", offline_fraction, 0.5, "symmetric"),
    ):
        if given != default and data != reader:
            raise O2OSpecError(
                f"got {name}={given} and data={data!r}, expected data={reader!r}, which alone reads it; leave {name} "
                f"out, or set data={reader!r}"
            )
    if data == "top":
        offline = top_episodes(offline, num_top_episodes)
    rows = _to_learn_from(offline[:0] if data == "none" else offline, keys, "the hand-over")
    if make_storage is not None and (scratch_dir is not None or len(rows) != len(offline)):
        what = f"data={data!r}" if scratch_dir is None else "scratch_dir"
        raise O2OSpecError(
            f"got {what} and make_storage, expected only one, because make_storage keeps all offline rows; leave one "
            "out"
        )
    if make_storage is not None and torch.device(device).type != "cpu":
        raise O2OSpecError(
            f"got device={str(device)!r} and make_storage, expected only one, because make_storage places the rows; "
            "leave device out"
        )
    fixed = len(rows) if data == "symmetric" else 0
    if make_storage is not None:
        storage = make_storage(offline, online_capacity)
    else:
        storage = LazyTensorStorage(len(rows) + online_capacity, device=device)
        if scratch_dir is not None:
            check_mapped(device)
            storage = MappedStorage(fixed, len(rows) + online_capacity - fixed, scratch_dir)
        if len(rows):
            storage.set(slice(0, len(rows)), rows.to(device))
    writer = OnlineWriter(fixed)
    if not fixed:
        writer.total_written = len(rows)  # online rows follow the offline ones; a full buffer overwrites them
    sampler = RandomSampler()
    if data == "symmetric":
        sampler = BalancedSampler(fixed, offline_fraction)
    buffer = TensorDictReplayBuffer(storage=storage, writer=writer, sampler=sampler, batch_size=batch_size)
    if not fixed and _is_open(rows):  # the online rows follow in the same ring: chunks and slices would lead into them
        writer.truncate_last()
    return buffer


def _is_open(rows: TensorDictBase) -> bool:
    """Whether no flag ends the last row's episode, as in the first rows of a data set."""
    flags = [rows.get(("next", name), None) for name in ("done", "terminated", "truncated")]
    return len(rows) > 0 and all(flag is not None and not flag[-1].any() for flag in flags)


@checked_arguments
def offline_buffer(
    offline: TensorDictBase,
    *,
    batch_size: int = 256,
    keys: Sequence[NestedKey] = TRANSITION,
    device: torch.device | str = "cpu",
) -> TensorDictReplayBuffer:
    """The replay buffer for offline updates; it uses the data's own rows without a copy if they are on the device.

    Args:
        offline: transitions [N].
        batch_size: rows per batch. Defaults to 256.
        keys: entries to draw. Defaults to those of a transition.
        device: device of the rows, and of the batches. Defaults to ``"cpu"``.

    Raises:
        O2OSpecError: if the data lack an entry, or ``batch_size`` is below 1.
        O2ODataError: if they are not flat.

    Examples:
        >>> from torchrl_o2o.testing import ContextualTargetEnv, probe_transitions
        >>> buffer = offline_buffer(probe_transitions(ContextualTargetEnv(), 20), batch_size=4)
        >>> len(buffer), len(buffer.sample())
        (20, 4)
    """
    batch_size = check_count("batch_size", batch_size, least=1)
    rows, writer = _to_learn_from(offline, keys, "the training").to(device), OnlineWriter(0)
    writer.total_written = len(rows)  # marks all rows as written, because samplers read the last row's position there
    return TensorDictReplayBuffer(storage=TensorStorage(rows), writer=writer, batch_size=batch_size)


def _to_learn_from(rows: TensorDictBase, keys: Sequence[NestedKey], before: str) -> TensorDictBase:
    """The entries that a learner reads, including the step counts by which its losses discount."""
    check_flat(rows)
    if missing := [key for key in keys if key not in rows.keys(include_nested=True)]:
        raise O2OSpecError(f"got offline data without {missing}, expected these entries; add them before {before}")
    check_no_gradients(rows)
    check_steps(rows)
    return rows.select(*with_steps(keys, rows))
