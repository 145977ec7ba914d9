# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""A stream gives one agent the numbers it would draw alone, whatever the others draw."""

from __future__ import annotations

import random

import numpy as np
import torch

from torchrl_o2o.checkpoint.streams import RandomStream
from torchrl_o2o.envs.make import seed_everything


def draw() -> list[float]:
    return [random.random(), float(np.random.normal()), torch.rand(()).item(), torch.randn(()).item()]


def make(seed: int) -> RandomStream:
    seed_everything(seed)
    return RandomStream()


def test_taking_turns_equals_alone() -> None:
    alone = []
    for seed in (0, 1):
        seed_everything(seed)
        alone.append([draw() for _ in range(3)])
    streams = [make(0), make(1)]
    drawn: list[list[list[float]]] = [[], []]
    for _ in range(3):
        for own, stream in zip(drawn, streams, strict=True):
            with stream:
                own.append(draw())
    assert drawn == alone


def test_the_outside_is_left_alone_even_by_an_error() -> None:
    stream = make(0)
    seed_everything(5)
    expected = draw()
    seed_everything(5)
    for context in (stream, stream.torch_only(), stream):
        try:
            with context:
                torch.rand(3)
                raise KeyError
        except KeyError:
            pass
    assert draw() == expected


def test_generator_and_global_draws_are_one_sequence() -> None:
    seed_everything(3)
    alone = torch.cat([torch.rand(2), torch.randn(3), torch.rand(1)])
    stream = make(3)
    with stream.torch_only():
        first = torch.rand(2)
    second = torch.randn(3, generator=stream.generator)
    with stream:
        third = torch.rand(1)
    assert torch.equal(torch.cat([first, second, third]), alone)
