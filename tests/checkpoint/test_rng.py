# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""States of generators: exact, complete, and readable without code."""

from __future__ import annotations

import io
import random

import numpy as np
import torch

from torchrl_o2o.checkpoint import restore_rng_state, rng_state


def through_file(state):
    stream = io.BytesIO()
    torch.save(state, stream)
    stream.seek(0)
    return torch.load(stream, weights_only=True)


def draw():
    return (
        [random.random() for _ in range(700)],
        [random.gauss(0, 1) for _ in range(3)],
        np.random.standard_normal(701).tolist(),  # an odd number leaves one of a pair
        torch.randn(701).tolist(),
        torch.randperm(50).tolist(),
    )


def test_all_generators_go_on_exactly():
    random.gauss(0, 1)
    np.random.standard_normal()
    torch.randn(1)
    state = through_file(rng_state())
    first = draw()
    random.seed(1)
    np.random.seed(1)
    torch.manual_seed(1)
    restore_rng_state(state)
    assert draw() == first


def test_reading_the_state_changes_nothing():
    before = through_file(rng_state())
    rng_state()
    after = rng_state()
    assert before["python"] == after["python"]
    assert torch.equal(before["torch"], after["torch"])
    assert torch.equal(before["numpy"]["key"], after["numpy"]["key"])
