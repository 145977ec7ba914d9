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
    """

    #: Source of the random numbers; ``None`` (default) is the replay buffer's generator.
    noise: RowSource | None = None

    def _source(self) -> RowSource:
        return GeneratorNoise(self._rng) if self.noise is None else self.noise
