# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
from __future__ import annotations

import pytest
from torch import nn

from torchrl_o2o.modules.modes import in_mode


@pytest.mark.parametrize("training", [False, True])
def test_each_part_comes_back_to_its_own_mode_after_an_error_too(training: bool) -> None:
    network = nn.Sequential(nn.Linear(2, 2), nn.Dropout().eval(), nn.Sequential(nn.Dropout()))
    before = [part.training for part in network.modules()]
    seen: list[bool] = []

    def fail() -> None:
        with in_mode(network, training=training):
            seen.extend(part.training for part in network.modules())
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert seen == [training] * len(before)
    assert [part.training for part in network.modules()] == before
