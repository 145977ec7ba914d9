# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
from __future__ import annotations

import pytest
import torch
from tensordict import TensorDict
from torchrl.envs.utils import ExplorationType, set_exploration_type

from torchrl_o2o.errors import O2OSpecError
from torchrl_o2o.modules import RescaledGaussian, make_rescaled_actor


def test_standardized_in_and_rescaled_out() -> None:
    observation, action = torch.randn(50, 3) * 4.0 + 1.0, torch.randn(50, 2) * 0.1 + 0.3
    net = RescaledGaussian(observation, action)
    loc, scale = net(observation)
    standardized = (observation - observation.mean(0)) / (observation.std(0) + 1e-8)
    torch.testing.assert_close(loc, net.net(standardized) * action.std(0) + action.mean(0))
    torch.testing.assert_close(scale, action.std(0).expand(50, 2))
    assert net.net[-1].weight.abs().max() <= 1e-2 / 32**0.5


def test_the_width_begins_at_its_least_where_the_demonstrations_are_narrow() -> None:
    action = torch.randn(50, 2) * torch.tensor([0.5, 1e-4])
    scale = RescaledGaussian(torch.randn(50, 3), action)(torch.zeros(1, 3))[1][0]
    torch.testing.assert_close(scale, torch.stack([action[:, 0].std(), torch.tensor(-3.0).exp()]))
    wider = make_rescaled_actor(torch.randn(50, 3), action, min_log_std=0.0)
    torch.testing.assert_close(wider[0].module.log_std.data, torch.zeros(2))


def test_samples_are_as_drawn_and_the_deterministic_action_is_in_the_box() -> None:
    actor = make_rescaled_actor(torch.randn(50, 3), torch.randn(50, 2) + 4.0)
    rows = TensorDict({"observation": torch.randn(20, 3)}, [20])
    with set_exploration_type(ExplorationType.RANDOM):
        assert actor(rows.clone())["action"].max() > 1.0
    with set_exploration_type(ExplorationType.DETERMINISTIC):
        assert actor(rows.clone())["action"].max() == 1.0


@pytest.mark.parametrize(
    ("observation", "action", "message"),
    [
        (torch.randn(5, 3), torch.randn(4, 2), r"got demonstrations of the shapes \(\[5, 3\], \[4, 2\]\), expected"),
        (torch.randn(1, 3), torch.randn(1, 2), "N >= 2"),
        (torch.tensor([[0.0], [torch.nan]]), torch.randn(2, 2), r"observations .* not finite in the rows \[1\]"),
        (torch.randn(5, 3), torch.ones(5, 2), r"standard deviations \[0.0, 0.0\], expected more than 0"),
    ],
)
def test_demonstrations_without_statistics_are_refused(
    observation: torch.Tensor, action: torch.Tensor, message: str
) -> None:
    with pytest.raises(O2OSpecError, match=message):
        make_rescaled_actor(observation, action)


def test_demonstrations_of_any_type() -> None:
    """As numpy and HDF5 return them."""
    actor = make_rescaled_actor(torch.tensor([[0], [4]]), torch.tensor([[0.0], [1.0]], dtype=torch.float64))
    net = actor[0].module
    assert (net.in_shift.item(), net.out_shift.item()) == (2.0, 0.5)
    assert net(torch.zeros(5, 1))[0].dtype == torch.float32
