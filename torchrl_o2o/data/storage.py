# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""One storage for both sources: offline data in the first slots, online data cycling through the rest."""

from __future__ import annotations

import torch
from tensordict import TensorDictBase
from torchrl.data import LazyTensorStorage

from torchrl_o2o.arguments import checked_arguments
from torchrl_o2o.data.keys import TRANSITION, stored_keys
from torchrl_o2o.errors import O2ODataError, O2OSpecError

__all__ = ["offline_online_storage"]


@checked_arguments
def offline_online_storage(
    offline: TensorDictBase, online_capacity: int, *, device: torch.device | str = "cpu"
) -> LazyTensorStorage:
    """Storage whose first ``len(offline)`` slots hold the data set and whose others wait for online transitions.

    A row is offline exactly if its index is below ``len(offline)``, so that any sampler over this one storage can tell
    the sources apart, any fraction is exact, a batch is one gather and a checkpoint one file. Write to it with
    :class:`~torchrl_o2o.data.OnlineWriter`, which never touches the offline slots.

    ``device`` is the one argument that puts the data path on a GPU: the writer moves what is written there, and every
    sampler of this package delivers its batches there, with their ``index`` and ``priority_weight``. Row numbers are
    drawn on the CPU, from the replay buffer's generator, so that a seed draws the same rows on every device; they are
    moved once per batch. :class:`~torchrl_o2o.data.PoolSampler` gathers and scores its pool on the storage's and the
    networks' device and brings one number per row back; samplers with stored priorities keep those in host memory.

    Args:
        offline: transitions, shape [N], with at least the entries of :data:`~torchrl_o2o.data.TRANSITION`. The steps of
            :func:`~torchrl_o2o.data.n_step` are kept; other entries are dropped, since the environment will not deliver
            them.
        online_capacity: number of slots for online transitions, at least 1.
        device: where the storage lives. Defaults to ``"cpu"``.

    Returns:
        A storage of ``N + online_capacity`` slots, the first N filled.

    Raises:
        O2ODataError: if the data are empty or lack entries.
        O2OSpecError: if the capacity is below 1.

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
        raise O2ODataError(f"the offline data lack {missing}; load them with torchrl_o2o.data.load_offline")
    if online_capacity < 1:
        raise O2OSpecError(
            f"got online_capacity={online_capacity}, expected at least 1, usually the number of online steps"
        )
    size = len(offline)
    storage = LazyTensorStorage(size + online_capacity, device=device)
    storage.set(torch.arange(size), offline.select(*stored_keys(offline)).to(device))
    return storage
