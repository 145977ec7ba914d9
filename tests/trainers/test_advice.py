# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
from __future__ import annotations

import numpy as np
import pytest

from torchrl_o2o.envs.scores import Reference
from torchrl_o2o.errors import O2OSpecError
from torchrl_o2o.trainers.advice import advise, compare

REFERENCE = Reference(0.0, 100.0, "here")


@pytest.mark.parametrize(
    ("policy", "regime"),
    [
        (80.0, "better"),
        (20.0, "worse"),
        (50.0, "equal"),
        (53.0, "equal"),  # within the margin of 5
    ],
)
def test_regimes(policy: float, regime: str) -> None:
    noise = np.linspace(-1.0, 1.0, 30)
    found = compare(policy + noise, 50.0 + noise, scale=100.0)
    assert found.regime == regime
    assert found.margin == 5.0
    assert found.low <= found.difference <= found.high


def test_few_and_scattered_episodes_decide_nothing() -> None:
    assert compare([0.0, 100.0], [50.0] * 5, scale=100.0).regime == "undecided"


def test_what_cannot_be_compared_is_refused() -> None:
    with pytest.raises(O2OSpecError, match="got 1 episodes of the policy"):
        compare([1.0], [1.0, 2.0], scale=1.0)
    with pytest.raises(O2OSpecError, match="finite"):
        compare([1.0, np.nan], [1.0, 2.0], scale=1.0)
    with pytest.raises(O2OSpecError, match="scale"):
        compare([1.0, 2.0], [1.0, 2.0], scale=0.0)


@pytest.mark.parametrize(
    ("returns", "policy", "word"),
    [
        ([2.0] * 9 + [3.0], None, "rlpd or a3rl, online"),
        ([2.0] * 9 + [90.0], None, "iql, awac, cql"),
        ([2.0, 8.0, 10.0, 28.0], None, "iql, awac, cql"),
        ([89.0, 90.0, 91.0], None, "bc, td3_bc"),
        ([10.0, 11.0, 12.0], [80.0, 82.0, 84.0], "handover.data=none"),
        ([80.0, 82.0, 84.0], [10.0, 11.0, 12.0], "need no pre-training"),
        ([80.0, 81.0, 82.0], [80.0, 81.0, 82.0], "half offline"),
    ],
)
def test_advice(returns: list[float], policy: list[float] | None, word: str) -> None:
    lines = advise(returns, policy_returns=policy, reference=REFERENCE)
    assert any(word in line for line in lines), lines
    assert len(lines) <= 7


def test_equal_returns_without_a_reference_are_compared_by_their_size() -> None:
    assert any("better" in line for line in advise([1.0, 1.0, 1.0], policy_returns=[9.0, 9.0, 9.0]))


def test_a_score_just_below_zero_is_zero() -> None:
    assert "(scores 0 and 0)" in advise([-0.1, -0.2, -0.3], reference=REFERENCE)[0]
