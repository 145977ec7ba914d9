# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""The hand-over as one value."""

from __future__ import annotations

import pytest
import torch

from tests.data.test_buffers import toy_dataset
from tests.objectives.test_carry import actor, critics, sac, sacml
from torchrl_o2o.errors import O2OSpecError
from torchrl_o2o.modules import Temperature
from torchrl_o2o.objectives import EnsembleSACLoss
from torchrl_o2o.testing import random_transitions
from torchrl_o2o.trainers.handover import HandOver

pytestmark = pytest.mark.filterwarnings("ignore:No target network updater")


class TestHandOver:
    def test_applies_all_its_parts(self) -> None:
        offline, online = sacml(), sac()
        optims = [torch.optim.Adam(loss.qvalue_network_params.parameters()) for loss in (offline, online)]
        offline.qvalue_loss(random_transitions(6, 5, 3))[0].backward()
        optims[0].step()
        plan = HandOver(keep_optimizers=True, init_alpha=0.2, warmup_steps=3, data="none")
        assert plan.apply(offline, online, [(optims[0], optims[1])]) == ["temperature"]
        torch.testing.assert_close(online.temperature.alpha, torch.tensor(0.2))
        assert len(optims[1].state) == len(optims[0].state)
        assert [plan.may_update(step) for step in (0, 2, 3, 4)] == [False, False, True, True]
        assert len(plan.buffer(toy_dataset(), 5)) == 0

    def test_refusals(self) -> None:
        with pytest.raises(O2OSpecError, match="got warmup_steps=-1"):
            HandOver(warmup_steps=-1)
        with pytest.raises(O2OSpecError, match=r"init_alpha=0\.0"):
            HandOver(init_alpha=0.0)
        with pytest.raises(O2OSpecError, match="got data='best'"):
            HandOver(data="best")  # type: ignore[arg-type]
        with pytest.raises(O2OSpecError, match="no optimizers were given"):
            HandOver(keep_optimizers=True).apply(sacml(), sac())

    def test_a_fixed_temperature_can_be_set_too(self) -> None:
        online = EnsembleSACLoss(actor(), critics(), temperature=Temperature(None))
        HandOver(init_alpha=0.5).apply(sacml(), online)
        torch.testing.assert_close(online.temperature.alpha, torch.tensor(0.5))
