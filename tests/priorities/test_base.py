# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
from __future__ import annotations

import pytest
import torch
from tensordict import TensorDictBase

from tests.priorities.parts import ROWS, double, every_priority, make_loss, make_rows, make_score
from torchrl_o2o.errors import O2OSpecError
from torchrl_o2o.priorities import Advantage, LogPriority, Sum, TDError

pytestmark = pytest.mark.filterwarnings("ignore:No target network updater")


@pytest.mark.parametrize("name", list(every_priority()))
class TestContract:
    """What holds for every log-priority."""

    def test_one_finite_number_per_row_without_gradient(self, name: str) -> None:
        score = every_priority()[name](make_rows())
        assert score.shape == (ROWS,)
        assert score.isfinite().all()
        assert not score.requires_grad

    def test_rows_of_several_batch_dimensions(self, name: str) -> None:
        """Trajectories [B, T] as TorchRL's collectors give them are scored like the same rows in one dimension."""
        rows = make_rows()
        torch.manual_seed(0)
        expected = every_priority()[name](rows)
        torch.manual_seed(0)
        score = every_priority()[name](rows.reshape(2, -1))
        torch.testing.assert_close(score, expected.reshape(2, -1))

    def test_input_is_not_modified(self, name: str) -> None:
        rows = make_rows()
        before = rows.clone()
        every_priority()[name](rows)
        assert set(rows.keys(True, True)) == set(before.keys(True, True))
        assert (rows == before).all()

    def test_no_rows_and_rows_of_other_shapes_are_refused(self, name: str) -> None:
        with pytest.raises(O2OSpecError, match="got no rows"):
            every_priority()[name](make_rows()[:0])
        for change in (lambda value: value[:, 0], lambda value: value.unsqueeze(1)):
            rows = make_rows()
            rows["observation"] = change(rows["observation"])
            with pytest.raises(O2OSpecError, match="got 'observation' of shape"):
                every_priority()[name](rows)

    @pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf"), 3e38])
    def test_finite_whatever_the_inputs(self, name: str, bad: float) -> None:
        priority, rows = every_priority()[name], make_rows()
        rows["observation"][4] = bad
        rows["next", "observation"][6] = bad
        rows["next", "reward"][8] = bad
        score = priority(rows)
        assert score.isfinite().all()
        assert all(value.isfinite() for value in priority.metrics().values())

    def test_all_rows_broken(self, name: str) -> None:
        priority, rows = every_priority()[name], make_rows()
        for key in ("observation", ("next", "observation")):
            rows[key] = torch.full_like(rows[key], torch.nan)
        assert priority(rows).isfinite().all()

    def test_metrics_are_scalars(self, name: str) -> None:
        priority = every_priority()[name]
        assert priority.metrics() == {}
        priority(make_rows())
        metrics = priority.metrics()
        assert metrics
        assert all(value.shape == () for value in metrics.values())

    def test_float64(self, name: str) -> None:
        priority = every_priority()[name]
        double(priority)
        rows = make_rows().apply(lambda x: x.double() if x.is_floating_point() else x)
        assert priority(rows).dtype == torch.float64


def test_clamped_rows_are_counted_and_logged() -> None:
    priority, rows = Advantage(make_loss()), make_rows()
    rows["observation"][3] = torch.nan
    for calls in (1, 2):
        score = priority(rows)
        assert priority.num_clamped == calls
    assert priority.metrics()["advantage_clamped"].item() == pytest.approx(1 / ROWS)
    assert score[3] == score.min(), "what cannot be scored ranks with the least"


def test_sums_add_up() -> None:
    density, rows = make_score(), make_rows()
    torch.testing.assert_close((density + 0.5 * density)(rows), 1.5 * density(rows))
    with pytest.raises(O2OSpecError, match="got 1 terms and 2 factors"):
        Sum(density, factors=(1.0, 2.0))


def test_scores_of_another_dtype_are_refused() -> None:
    class Ended(LogPriority):
        def score(self, tensordict: TensorDictBase) -> torch.Tensor:
            return tensordict["next", "terminated"].squeeze(-1)

    with pytest.raises(O2OSpecError, match=r"got scores of type bool, expected floating point.*with \.float\(\)"):
        Ended()(make_rows())


def test_rewards_of_two_columns_give_no_score() -> None:
    class Reward(LogPriority):
        def score(self, tensordict: TensorDictBase) -> torch.Tensor:
            return tensordict["next", "reward"].squeeze(-1)

    rows = make_rows()
    rows["next", "reward"] = rows["next", "reward"].expand(-1, 2)
    with pytest.raises(O2OSpecError, match=r"Reward gave scores of shape \[2, 2\]"):
        Reward()(rows[:2])
    with pytest.raises(O2OSpecError, match=r"got 'reward' of shape \[2, 2\] for 2 rows, expected one number per row"):
        TDError(make_loss())(rows[:2])
