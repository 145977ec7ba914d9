# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""The base class of this package's samplers: the source of their random numbers."""

from __future__ import annotations

from torchrl.data.replay_buffers.samplers import Sampler

from torchrl_o2o.arguments import ChecksArguments
from torchrl_o2o.functional.noise import GeneratorNoise, RowSource

__all__ = ["DrawingSampler"]


class DrawingSampler(ChecksArguments, Sampler):
    """Abstract base of samplers whose draws can be recorded and replayed.

    The replay buffer gives a sampler its generator. Set :attr:`noise` to draw from another source, for example from
    :class:`~torchrl_o2o.objectives.RecordedNoise`.

    A subclass draws in ``sample``, which returns indices of the storage, shape [N], and entries to add to the batch.
    It draws only from ``self._source()``, with a name for each draw. TorchRL calls ``extend(index)`` for rows that are
    written, and ``update_priority(index, priority)`` of a sampler that has it. ``state_dict`` and ``dumps`` hold what
    changes; a sampler without state leaves them empty, as here. :class:`~torchrl_o2o.testing.SamplerContract` tests it.

    Examples:
        >>> import torch
        >>> from torchrl.data import TensorDictReplayBuffer
        >>> from torchrl_o2o.testing import counting_storage
        >>> class NewestFirst(DrawingSampler):
        ...     def sample(self, storage, batch_size):
        ...         score = storage[:]["x"].double()  # of a real transition, for example its reward
        ...         return self._source().choices("rows", (0.1 * score).softmax(0), batch_size), {}
        ...
        ...     def state_dict(self):
        ...         return {}
        ...
        ...     def load_state_dict(self, state_dict):
        ...         pass
        ...
        ...     def dumps(self, path):
        ...         pass
        ...
        ...     def loads(self, path):
        ...         pass
        ...
        ...     def _empty(self):  # of buffer.empty()
        ...         pass
        >>> buffer = TensorDictReplayBuffer(storage=counting_storage(40, 24, 64), sampler=NewestFirst(), batch_size=64)
        >>> bool(buffer.sample()["x"].double().mean() > 45)
        True
    """

    #: Source of the random numbers; ``None`` (default) is the replay buffer's generator.
    noise: RowSource | None = None

    def _source(self) -> RowSource:
        return GeneratorNoise(self._rng) if self.noise is None else self.noise
