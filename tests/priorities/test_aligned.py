# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
from __future__ import annotations

import pytest
import torch

from tests.priorities.parts import make_loss, make_rows, make_score
from torchrl_o2o.objectives import GeneratorNoise
from torchrl_o2o.priorities import Advantage, AdvantageAligned

pytestmark = pytest.mark.filterwarnings("ignore:No target network updater")


def test_aligned_is_equation_five() -> None:
    loss, rows = make_loss(), make_rows()
    density, advantage = make_score(), Advantage(loss, num_samples=2)
    aligned = AdvantageAligned(advantage, density, adv_temp=2.0)
    scores = []
    for priority in (aligned, advantage):
        advantage.noise = GeneratorNoise(torch.Generator().manual_seed(0))
        scores.append(priority(rows))
    torch.testing.assert_close(scores[0], density(rows) + 2.0 * scores[1])
    aligned.adv_temp = 0.0
    torch.testing.assert_close(aligned(rows), density(rows))
