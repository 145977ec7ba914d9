# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
from __future__ import annotations

from typing import Any

import pytest
import torch
from tensordict import TensorDict

from torchrl_o2o.data import RandomShift
from torchrl_o2o.errors import O2OSpecError
from torchrl_o2o.functional import shift_frames
from torchrl_o2o.modules import ConvStack, make_pixel_actor, make_pixel_encoder
from torchrl_o2o.objectives import RecordedNoise


@pytest.mark.parametrize(
    ("features", "strides", "size", "flat"),
    [
        ((32, 64, 128, 256), (2, 2, 2, 2), 64, 2304),
        ((32, 32, 32, 32), (2, 1, 1, 1), 64, 20000),
        ((32, 32, 32, 32), (2, 1, 1, 1), 84, 39200),
        ((16, 32), (2, 2), 16, 288),
    ],
)
def test_sizes_of_the_papers(features: Any, strides: Any, size: int, flat: int) -> None:
    assert ConvStack((9, size, size), features, strides).out_features == flat


def test_each_layer_may_have_its_own_kernel() -> None:
    """RLPD's encoder class has kernels 2, 1, 1, 1 by default."""
    stack = ConvStack((9, 21, 16), (4, 3, 2, 5), (2, 1, 1, 1), kernel_size=[2, 1, 1, 1])
    assert [tuple(conv.kernel_size) for conv in stack.convs] == [(2, 2), (1, 1), (1, 1), (1, 1)]
    frames = torch.randint(0, 256, (3, 9, 21, 16), dtype=torch.uint8)
    expected = frames.float() / 255
    for conv in stack.convs:
        expected = torch.relu(torch.nn.functional.conv2d(expected, conv.weight, conv.bias, conv.stride))
    assert stack.out_features == 5 * 10 * 8
    torch.testing.assert_close(stack(frames), expected.flatten(1), rtol=1e-5, atol=1e-6)
    with pytest.raises(O2OSpecError, match=r"kernel_size=\[2, 1\], expected .* one kernel per layer"):
        ConvStack((9, 16, 16), (4,), (2,), kernel_size=[2, 1])


def test_batches_of_any_shape() -> None:
    encoder = make_pixel_encoder((9, 16, 16), features=(8,), strides=(2,)).module
    frames = torch.randint(0, 256, (2, 3, 9, 16, 16), dtype=torch.uint8)
    torch.testing.assert_close(encoder(frames)[1, 2], encoder(frames[1, 2]), rtol=1e-5, atol=1e-6)


def test_another_order_of_channels_is_another_order_of_weights() -> None:
    first = ConvStack((9, 16, 16), (8,), (2,))
    order = torch.arange(9).reshape(3, 3).T.flatten()
    second = ConvStack((9, 16, 16), (8,), (2,))
    second.load_state_dict(first.state_dict())
    second.layers[0].weight.data = first.layers[0].weight.data[:, order]
    frames = torch.randint(0, 256, (4, 9, 16, 16), dtype=torch.uint8)
    torch.testing.assert_close(first(frames), second(frames[:, order]), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("frames", "match"),
    [
        (torch.zeros(2, 9, 16, 16), "convert values"),
        (torch.zeros(2, 16, 16, 9, dtype=torch.uint8), "channels last"),
        (torch.zeros(2, 12, 16, 16, dtype=torch.uint8), "alpha"),
        (torch.zeros(2, 6, 16, 16, dtype=torch.uint8), "got 6 channels, expected 9"),
        (torch.zeros(2, 9, 32, 32, dtype=torch.uint8), "render or resize"),
    ],
)
def test_what_is_no_stack_of_frames_is_refused(frames: torch.Tensor, match: str) -> None:
    encoder = make_pixel_encoder((9, 16, 16), features=(8,), strides=(2,))
    with pytest.raises(O2OSpecError, match=match):
        encoder(frames)


def test_frames_that_are_too_small_are_refused() -> None:
    with pytest.raises(O2OSpecError, match="got frames of 16x16"):
        make_pixel_encoder((9, 16, 16))


def test_an_encoder_names_its_parts() -> None:
    net = make_pixel_encoder({"pixels": (9, 16, 16)}, vectors={"state": 5}, features=(8, 4), strides=(2, 1)).module
    assert [conv.out_channels for stack in net.stacks for conv in stack.convs] == [8, 4]
    sizes = [(each.in_features, each.out_features) for each in net.bottlenecks]
    assert sizes == [(4 * 5 * 5, 50), (5, 50)]


def test_an_actor_needs_a_bottleneck() -> None:
    with pytest.raises(O2OSpecError, match="without bottleneck"):
        make_pixel_actor(make_pixel_encoder((9, 16, 16), features=(8,), strides=(2,), latent_dim=None), 2)


def test_shifts_by_pad_move_nothing_and_others_repeat_the_edge() -> None:
    frames = torch.randint(0, 256, (2, 9, 16, 12), dtype=torch.uint8)
    assert torch.equal(shift_frames(frames, torch.full((2, 2), 4), 4), frames)
    moved = shift_frames(frames, torch.tensor([[0, 4], [4, 8]]), 4)
    assert torch.equal(moved[0, :, 4:], frames[0, :, :-4])
    assert torch.equal(moved[0, :, 0], frames[0, :, 0])
    assert torch.equal(moved[1, :, :, :-4], frames[1, :, :, 4:])
    assert torch.equal(moved[1, :, :, -1], frames[1, :, :, -1])


def test_s_and_the_next_are_shifted_by_themselves() -> None:
    frames = torch.randint(0, 256, (3, 9, 16, 16), dtype=torch.uint8)
    batch = TensorDict({"observation": frames, "next": {"observation": frames}}, [3])
    shift = RandomShift(4)
    torch.manual_seed(0)
    out = shift(batch)
    assert not torch.equal(out["observation"], out["next", "observation"])
    assert torch.equal(batch["observation"], frames)
    noise = {"observation_shift": torch.full((6,), 4), "next/observation_shift": torch.zeros(6)}
    out = RandomShift(4, noise=RecordedNoise(noise))(batch)
    assert torch.equal(out["observation"], frames)
    assert torch.equal(out["next", "observation"], shift_frames(frames, torch.zeros(3, 2, dtype=torch.long), 4))
    with pytest.raises(O2OSpecError, match="got nothing"):
        shift(batch.exclude("observation"))
