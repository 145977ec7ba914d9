# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Random shifts of sampled frames, the data augmentation for learning from pixels."""

from __future__ import annotations

from collections.abc import Sequence

from tensordict import TensorDictBase
from tensordict.utils import NestedKey
from torchrl.envs.transforms import Transform

from torchrl_o2o.arguments import checked_arguments
from torchrl_o2o.data.keys import key_text
from torchrl_o2o.errors import O2OSpecError, check_count
from torchrl_o2o.functional.noise import GeneratorNoise, RowSource
from torchrl_o2o.functional.pixels import shift_frames

__all__ = ["RandomShift"]


class RandomShift(Transform):
    """Transform of a replay buffer that shifts each sampled stack of frames by a few pixels and repeats the edge.

    All frames and channels of a stack have the same shift; s and s' are shifted independently. Frames stay uint8. All
    losses of one update see the same shifts, because they are drawn with the batch.

    The draws are named after their entry, ``"observation_shift"`` and ``"next/observation_shift"``. They are the row
    and column of the crop for one batch row after the other, integers in 0..2 pad; see
    :class:`~torchrl_o2o.functional.noise.RowSource`. They are made on the CPU, from torch's global generator, and moved
    to the frames' device.

    Source: Kostrikov et al. 2020 (DrQ), section 3.1, with pad 4; the same in RLPD and DrQ-v2.

    Args:
        pad: number of pixels added on each side. Defaults to 4.
        keys: entries of stacked frames [B, C, H, W]. Defaults to ``"observation"``, at s and s'.

    Keyword Args:
        noise: source of the draws; ``None`` (default) takes torch's global generator.

    Raises:
        O2OSpecError: if ``pad`` is negative, or an entry holds no frames.

    Examples:
        >>> import torch
        >>> from tensordict import TensorDict
        >>> from torchrl.data import LazyTensorStorage, TensorDictReplayBuffer
        >>> buffer = TensorDictReplayBuffer(storage=LazyTensorStorage(8), batch_size=4)
        >>> buffer.append_transform(RandomShift(4, keys=["pixels", ("next", "pixels")]))
        TensorDictReplayBuffer(...
        >>> frames = torch.zeros(8, 9, 32, 32, dtype=torch.uint8)
        >>> _ = buffer.extend(TensorDict({"pixels": frames, "next": {"pixels": frames}}, [8]))
        >>> buffer.sample()["next", "pixels"].shape
        torch.Size([4, 9, 32, 32])
    """

    @checked_arguments
    def __init__(
        self,
        pad: int = 4,
        keys: Sequence[NestedKey] = ("observation", ("next", "observation")),
        *,
        noise: RowSource | None = None,
    ) -> None:
        super().__init__(in_keys=list(keys))
        self.pad = check_count("pad", pad)
        self.noise: RowSource = GeneratorNoise() if noise is None else noise

    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Shift the frames of a batch [B]; returns a batch with the same other entries.

        Raises:
            O2OSpecError: if an entry of ``keys`` is missing or is not stacked frames [B, C, H, W].
        """
        out = tensordict.copy()
        for key in self.in_keys:
            frames = tensordict.get(key, None)
            if frames is None or frames.ndim != 4:
                found = "nothing" if frames is None else f"shape {list(frames.shape)}"
                raise O2OSpecError(
                    f"got {found} under {key!r}, expected stacked frames [B, C, H, W]; name their entries with keys="
                )
            offset = self.noise.integers(f"{key_text(key, '/')}_shift", 0, 2 * self.pad + 1, 2 * len(frames))
            out.set(key, shift_frames(frames, offset.reshape(-1, 2).to(frames.device), self.pad))
        return out
