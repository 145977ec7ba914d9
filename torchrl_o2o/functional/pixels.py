# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Functions of frames as tensors: random shifts, and checks of their shape."""

from __future__ import annotations

import torch
from torch import Tensor

from torchrl_o2o.errors import O2OSpecError

__all__ = ["check_stack", "clipped_exploration", "linear_schedule", "shift_frames"]


def shift_frames(frames: Tensor, offset: Tensor, pad: int) -> Tensor:
    r"""Pad by repeating the edge and crop at integer positions, one for each sample and all of its channels.

    With ``offset`` equal to ``pad`` nothing moves. Bilinear sampling at pixel centers, as in DrQ-v2's code, gives the
    same crop up to rounding.

    Source: Kostrikov et al. 2020 (DrQ), section 3.1; RLPD's ``batched_random_crop``; DrQ-v2's ``RandomShiftsAug``.

    Args:
        frames: any type, uint8 in training, shape [N, C, H, W].
        offset: row and column of the crop in the padded frame, integers in 0..2 pad, shape [N, 2].
        pad: number of pixels added on each side.

    Returns:
        The crops, shape [N, C, H, W].

    Examples:
        >>> import torch
        >>> frame = torch.arange(4, dtype=torch.uint8).reshape(1, 1, 2, 2)
        >>> shift_frames(frame, torch.tensor([[0, 1]]), 1)[0, 0]  # one pixel down, the first row repeated
        tensor([[0, 1],
                [0, 1]], dtype=torch.uint8)
    """
    count, channels, height, width = frames.shape
    rows = torch.arange(height, device=frames.device) + offset[:, :1] - pad
    columns = torch.arange(width, device=frames.device) + offset[:, 1:] - pad
    index = rows.clamp(0, height - 1).unsqueeze(-1) * width + columns.clamp(0, width - 1).unsqueeze(-2)
    flat = index.reshape(count, 1, height * width).expand(count, channels, height * width)
    return frames.reshape(count, channels, height * width).gather(2, flat).reshape(frames.shape)


def check_stack(frames: Tensor, shape: tuple[int, ...]) -> None:
    """Raise unless frames have the form that an encoder reads: uint8, channels first, of its size.

    Args:
        frames: shape [*B, C, H, W].
        shape: the expected (C, H, W).

    Raises:
        O2OSpecError: if the type, the order of the dimensions, the channels or the size differ.

    Examples:
        >>> import torch
        >>> check_stack(torch.zeros(2, 64, 64, 9, dtype=torch.uint8), (9, 64, 64))
        Traceback (most recent call last):
        ...
        torchrl_o2o.errors.O2OSpecError: got frames of shape [64, 64, 9], channels last, expected channels first,
        [9, 64, 64]; move them with frames.movedim(-1, -3)
    """
    found, expected = list(frames.shape[-3:]), list(shape)
    if frames.dtype != torch.uint8:
        raise O2OSpecError(
            f"got frames of type {str(frames.dtype).removeprefix('torch.')}, expected uint8, which the encoder scales "
            f"itself; convert values in [0, 1] with (255 * frames).round().to(torch.uint8)"
        )
    if found == expected:
        return
    if found == [*expected[1:], expected[0]]:
        raise O2OSpecError(
            f"got frames of shape {found}, channels last, expected channels first, {expected}; move them with "
            f"frames.movedim(-1, -3)"
        )
    if len(found) == 3 and found[1:] == expected[1:]:
        raise O2OSpecError(
            f"got {found[0]} channels, expected {expected[0]}: the frames of one stack, three channels each, oldest "
            f"first; leave out a fourth channel (alpha)"
        )
    raise O2OSpecError(f"got frames of shape {found}, expected {expected}; render or resize them to that size")


def clipped_exploration(
    mean: Tensor, noise: Tensor, std: Tensor | float, noise_clip: float, low: Tensor, high: Tensor, margin: float = 1e-6
) -> Tensor:
    r"""DrQ-v2's action, :math:`\mu+h\,\mathrm{clip}(\sigma\varepsilon,\pm c)`, kept inside the box.

    The value is clamped, but the gradient passes as if it were not (straight-through).

    Source: Yarats et al. 2021 (DrQ-v2), section 3.1, ``TruncatedNormal`` of the code.

    Args:
        mean: the policy's action, shape [*B, A].
        noise: standard normal, shape [*B, A].
        std: sigma, as a share of the box's half-width h.
        noise_clip: c, a bound on sigma times noise.
        low: lower edge of the box, shape [A].
        high: upper edge, shape [A].
        margin: smallest distance to the edges, as a share of h. Defaults to 1e-6.

    Returns:
        The action, shape [*B, A].

    Examples:
        >>> import torch
        >>> one, mean = torch.ones(1), torch.tensor([0.9], requires_grad=True)
        >>> action = clipped_exploration(mean, torch.tensor([5.0]), 0.2, 0.3, -one, one)
        >>> action.item() <= 1.0, torch.autograd.grad(action.sum(), mean)[0]
        (True, tensor([1.]))
    """
    low, high = low.to(mean.dtype), high.to(mean.dtype)  # 1 - 1e-6 in the action's own precision
    half_width = 0.5 * (high - low)
    action = mean + half_width * (std * noise).clamp(-noise_clip, noise_clip)
    edges = low + margin * half_width, high - margin * half_width
    return action + (action.clamp(*edges) - action).detach()


def linear_schedule(step: int, start: float, end: float, duration: int) -> float:
    r"""DrQ-v2's ``linear(start, end, duration)``: from ``start`` at step 0 to ``end`` at ``duration``, then constant.

    Source: Yarats et al. 2021 (DrQ-v2), section 3.1; the step counts the agent's steps, not the environment's frames.

    Args:
        step: steps of the agent so far.
        start: value at step 0.
        end: value from ``duration`` on.
        duration: steps, at least 1.

    Returns:
        The value at that step.

    Raises:
        O2OSpecError: if the duration is below 1.

    Examples:
        >>> [round(linear_schedule(step, 1.0, 0.1, 100), 2) for step in (0, 50, 100, 200)]
        [1.0, 0.55, 0.1, 0.1]
    """
    if duration < 1:
        raise O2OSpecError(f"got duration={duration}, expected at least 1 step")
    share = min(max(step / duration, 0.0), 1.0)
    return (1.0 - share) * start + share * end
