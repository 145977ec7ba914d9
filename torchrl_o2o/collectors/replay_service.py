# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""The replay storage in a separate process, through TorchRL's replay service on Ray."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from tensordict import TensorDictBase
from torch import Tensor
from torchrl.data import TensorDictReplayBuffer

import torchrl_o2o
from torchrl_o2o.arguments import checked_arguments
from torchrl_o2o.collectors.ray_start import start_ray
from torchrl_o2o.collectors.received_rows import not_finite, version_of
from torchrl_o2o.data import BalancedSampler, OnlineWriter, offline_online_storage, stored_keys
from torchrl_o2o.data.keys import with_steps
from torchrl_o2o.errors import O2OSpecError, check_count

if TYPE_CHECKING:
    from torchrl.data import RayReplayBuffer

__all__ = ["ServedReplayBuffer", "serve_replay"]


class ServedReplayBuffer(TensorDictReplayBuffer):
    """The buffer of a replay service, with offline rows and online slots in one storage.

    It checks the rows that actors send. Rows of another version of this package, with other entries, shapes or types,
    or with values that are not finite raise an error, which ends the collection of that actor. Steps that a
    :class:`~torchrl_o2o.envs.GuardedEnv` rejected are left out. Other entries that the offline rows do not have are
    dropped.

    Args:
        load: loads the offline transitions [N].
        online_capacity: slots for online transitions.

    Keyword Args:
        batch_size: rows of one ``sample()``.
        offline_fraction: share of offline rows in each. Defaults to 0.5.
        seed: of the rows that are drawn. Defaults to 0.
        delayed_init: an argument of TorchRL's service, not used. Defaults to ``False``.

    Raises:
        O2OSpecError: if a number is out of range.

    Examples:
        >>> from functools import partial
        >>> from torchrl_o2o.testing import random_transitions
        >>> buffer = ServedReplayBuffer(partial(random_transitions, 40, 3, 2), 10, batch_size=8)
        >>> buffer.extend(random_transitions(2, 3, 2))
        tensor([40, 41])
        >>> int((buffer.sample()["index"] < 40).sum()), buffer.write_count
        (4, 2)
    """

    @checked_arguments
    def __init__(
        self,
        load: Callable[[], TensorDictBase],
        online_capacity: int,
        *,
        batch_size: int,
        offline_fraction: float = 0.5,
        seed: int = 0,
        delayed_init: bool = False,
    ) -> None:
        offline = load()
        self._keys = stored_keys(offline)
        super().__init__(
            storage=offline_online_storage(offline, online_capacity),
            sampler=BalancedSampler(len(offline), offline_fraction),
            writer=OnlineWriter(len(offline)),
            generator=torch.Generator().manual_seed(seed),
            batch_size=check_count("batch_size", batch_size, least=1),
            delayed_init=delayed_init,
        )

    def extend(self, tensordicts: TensorDictBase, *, update_priority: bool | None = None) -> Tensor:
        """Store transitions from an actor.

        Args:
            tensordicts: transitions [*B].
            update_priority: of TorchRL's method.

        Returns:
            Their slots.

        Raises:
            O2OSpecError: if they do not fit.
        """
        if not tensordicts.batch_size.numel():
            return torch.zeros(0, dtype=torch.long)
        rows = tensordicts.reshape(-1)
        if (theirs := version_of(rows)) not in (None, own := torchrl_o2o.__version__):
            raise O2OSpecError(
                f"got an actor with torchrl_o2o {theirs}, expected {own}, the service's; install the same version "
                "everywhere"
            )
        if (rejected := rows.get(("next", "rejected"), None)) is not None:
            rows = rows[~rejected.reshape(-1).bool()]
        rows = rows.select(*with_steps(self._keys, rows), strict=False)
        if (bad := not_finite(rows, rows.keys(True, True))) is not None:
            raise O2OSpecError(
                f"got {bad!r} of an actor's transition that is not finite, expected finite values; put its environment "
                "into a GuardedEnv"
            )
        return super().extend(rows, update_priority=update_priority)


def serve_replay(
    load: Callable[[], TensorDictBase],
    online_capacity: int,
    *,
    batch_size: int,
    offline_fraction: float = 0.5,
    seed: int = 0,
    address: str | None = None,
    num_cpus: float = 0,
) -> RayReplayBuffer:
    """Start a process with the offline rows and the online slots, to which actors write and from which a learner draws.

    The process, its queue and the clients are TorchRL's :class:`~torchrl.data.RayReplayBuffer`; its buffer is a
    :class:`ServedReplayBuffer`. The page on actors elsewhere describes its cost and its failures.

    Args:
        load: loads the offline transitions [N] in that process. It is pickled, so it should be a function of a module,
            or a ``functools.partial`` of one, that holds nothing large.
        online_capacity: slots for online transitions.

    Keyword Args:
        batch_size: rows of one ``sample()``.
        offline_fraction: share of offline rows in each. Defaults to 0.5.
        seed: of the rows that are drawn. Defaults to 0.
        address: of a Ray cluster; ``None`` (default) is this machine.
        num_cpus: number of CPUs that the process reserves. Defaults to 0: it starts however many actors there are.

    Returns:
        The service. ``sample``, ``extend``, ``write_count``, ``dumps`` and ``loads`` are those of a replay buffer;
        ``shutdown()`` ends it.

    Raises:
        O2OSpecError: if Ray is not installed.

    Examples:
        >>> from functools import partial
        >>> from torchrl_o2o.data import load_offline
        >>> load = partial(load_offline, "o2o/halfcheetah/linear-medium-v0")
        >>> service = serve_replay(load, 100_000, batch_size=256)  # doctest: +SKIP
    """
    start_ray(address, "a replay buffer in the learner's process")
    from torchrl.data import RayReplayBuffer

    service = RayReplayBuffer(
        load,
        online_capacity,
        replay_buffer_cls=ServedReplayBuffer,
        remote_config={"num_cpus": num_cpus},
        batch_size=batch_size,
        offline_fraction=offline_fraction,
        seed=seed,
    )
    len(service)  # errors in the data raise here, in the learner
    return service
