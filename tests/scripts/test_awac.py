# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""sota-implementations/awac/awac.py."""

from __future__ import annotations

import pytest

from tests.scripts.phases import PhasesContract
from tests.scripts.running import compose

pytestmark = pytest.mark.filterwarnings("ignore:No target network updater")


class TestAWAC(PhasesContract):
    script = "awac"
    words = ("qvalue.hidden_sizes=[16]",)


def test_published_settings() -> None:
    """CORL's; the authors' by ``reference``."""
    cfg = compose("awac")
    assert (cfg.loss.awac_lambda, cfg.optim.lr, cfg.offline.num_steps, cfg.online.total_frames) == (
        0.3333,
        3e-4,
        1_000_000,
        1_000_000,
    )
    maze = compose("awac", "task=antmaze")
    assert (maze.domain, maze.loss.awac_lambda, maze.evaluation.num_episodes) == ("antmaze", 0.1, 100)
    hand = compose("awac", "task=adroit", "reference=authors_hand")
    assert (hand.loss.weight, hand.loss.q_max, hand.loss.score_clip, hand.online.batch_size) == (
        "softmax",
        0.0,
        0.5,
        1024,
    )
