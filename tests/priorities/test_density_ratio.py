# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
from __future__ import annotations

import pytest
import torch

from tests.priorities.parts import ACTION, OBSERVATION, make_rows, make_score
from torchrl_o2o.errors import O2OSpecError
from torchrl_o2o.modules import DensityRatio
from torchrl_o2o.objectives import DensityRatioLoss
from torchrl_o2o.priorities import DensityRatioScore
from torchrl_o2o.testing import random_transitions


def test_density_score_counts_offline_rows_only_and_averages_one() -> None:
    score, rows = make_score(), make_rows()
    got, offline = score(rows), rows["is_offline"]
    assert (got[~offline] == 0).all()
    torch.testing.assert_close(got[offline].exp().mean(), torch.tensor(1.0))
    raw = score.density_ratio(rows.clone())["log_density_ratio"].squeeze(-1)
    torch.testing.assert_close(got[offline] - got[offline][0], raw[offline] - raw[offline][0])


@pytest.mark.parametrize("temperature", [1.0, 5.0])
def test_sum_one_is_a_softmax_over_the_offline_rows(temperature: float) -> None:
    """A3RL's newer code: log softmax(log w / T) over the offline half."""
    ratio, rows = make_score().density_ratio, make_rows()
    raw = ratio(rows.clone())["log_density_ratio"].squeeze(-1)
    got = DensityRatioScore(ratio, temperature=temperature, normalize="sum")(rows)
    offline = rows["is_offline"]
    torch.testing.assert_close(got[offline], (raw[offline] / temperature).log_softmax(0))
    assert (got[~offline] == 0).all()


def test_sum_one_leaves_nine_percent_offline_rows() -> None:
    """A constant ratio, 2560 offline rows of 5120, alpha 0.3: their share is n^-0.3 / (1 + n^-0.3)."""
    ratio = DensityRatio(OBSERVATION, ACTION, hidden_sizes=(4,))
    for parameter in ratio.parameters():
        torch.nn.init.zeros_(parameter)
    rows = random_transitions(5120, OBSERVATION, ACTION).set("is_offline", torch.arange(5120) < 2560)
    for normalize, share in (("sum", 0.0867), (True, 0.5)):
        probability = (0.3 * DensityRatioScore(ratio, normalize=normalize)(rows)).softmax(0)  # type: ignore[arg-type]
        assert float(probability[:2560].sum()) == pytest.approx(share, abs=1e-4)


def test_density_score_follows_training() -> None:
    score, rows = make_score(), make_rows()
    loss = DensityRatioLoss(score.density_ratio)  # type: ignore[arg-type]
    before = score(rows)
    optim = torch.optim.SGD(loss.parameters(), lr=1.0)
    loss(rows)["loss_density_ratio"].backward()
    optim.step()
    assert not torch.allclose(score(rows), before)


def test_density_score_needs_to_know_the_source() -> None:
    with pytest.raises(O2OSpecError, match="without 'is_offline'"):
        make_score()(make_rows().exclude("is_offline"))
    rows = make_rows()
    for dtype in (torch.float32, torch.int64):
        with pytest.raises(O2OSpecError, match=r"got 'is_offline' as .*, expected bool"):
            make_score()(rows.set("is_offline", rows["is_offline"].to(dtype)))


def test_an_entry_that_the_ratio_reads_is_named_if_it_is_missing() -> None:
    for key in ("observation", "action"):
        with pytest.raises(O2OSpecError, match=f"expected '{key}', which DensityRatioScore reads"):
            make_score()(make_rows().exclude(key))


def test_temperature_of_the_ratio_must_be_positive() -> None:
    with pytest.raises(O2OSpecError, match="got temperature=0"):
        DensityRatioScore(DensityRatio(3, 2), temperature=0)
