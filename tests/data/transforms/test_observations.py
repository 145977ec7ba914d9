# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
from __future__ import annotations

import pytest
import torch

from tests.data.transforms.rows import golden_data, load
from torchrl_o2o.data.transforms import (
    ObservationStats,
)
from torchrl_o2o.errors import O2ODataError, O2OSpecError
from torchrl_o2o.testing import random_transitions

# The golden rows have no actions, and their observations do not continue.
pytestmark = pytest.mark.filterwarnings("ignore:the dictionary")


def test_statistics_of_nothing_and_of_nan_are_refused() -> None:
    data = random_transitions(3, 3, 1)
    with pytest.raises(O2ODataError, match="got 0 transitions"):
        ObservationStats.of(data[:0])
    data["observation"][1] = float("nan")
    with pytest.raises(O2ODataError, match="got 3 transitions, 1 of them"):
        ObservationStats.of(data)


@pytest.mark.parametrize("eps", [0.0, 1e-50])
def test_what_never_changes_is_not_divided_by_zero(eps: float) -> None:
    data = random_transitions(4, 3, 1)
    data["observation"][:, 1] = 7.0
    with pytest.raises(O2ODataError, match=rf"entry 1 of the observations never changes, and eps={eps} is 0 in"):
        ObservationStats.of(data, eps=eps)
    assert ObservationStats.of(data, eps=1e-3).scale[1] == torch.tensor(1e-3)


@pytest.mark.parametrize("case", ["reward_A", "reward_antmaze_A"])
def test_observation_statistics_are_corls(case: str) -> None:
    tree = load(f"misc/{case}")
    data = golden_data(f"misc/{case}")
    stats = ObservationStats.of(data)
    torch.testing.assert_close(stats.mean, tree["out/obs_mean"], rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(stats.scale, tree["out/obs_std_plus_eps"], rtol=1e-12, atol=0)
    torch.testing.assert_close(stats(data)["observation"], tree["out/observation_normalised"], rtol=1e-12, atol=1e-12)


def test_statistics_of_another_type_leave_the_observations_their_own() -> None:
    """An environment's are float32, whatever the statistics are."""
    data = random_transitions(4, 3, 2)
    stats = ObservationStats.of(data)
    wide = ObservationStats(stats.mean.double(), stats.scale.double())
    torch.testing.assert_close(wide(data)["observation"], stats(data)["observation"])
    assert wide(data)["next", "observation"].dtype == torch.float32


def test_statistics_survive_a_checkpoint() -> None:
    stats = ObservationStats(torch.randn(3), torch.rand(3))
    again = ObservationStats.from_state_dict(stats.state_dict())
    assert torch.equal(again.mean, stats.mean)
    assert torch.equal(again.scale, stats.scale)


def test_statistics_of_arrays_are_refused_by_name() -> None:
    with pytest.raises(O2OSpecError, match=r"got scale of the type ndarray, expected a tensor"):
        ObservationStats(torch.zeros(2), torch.ones(2).numpy())  # type: ignore[arg-type]
