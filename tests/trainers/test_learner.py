# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""A learner's policies are those that its loss trains."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from tensordict.nn import TensorDictModule, TensorDictSequential
from torchrl.modules import AdditiveGaussianModule

from torchrl_o2o.errors import O2OSpecError
from torchrl_o2o.modules import make_deterministic_actor
from torchrl_o2o.objectives import BCLoss
from torchrl_o2o.trainers import Learner
from torchrl_o2o.updates import Descend, Update


def parts() -> tuple[Any, BCLoss, Update]:
    actor = make_deterministic_actor(3, 2, hidden_sizes=(8,))
    loss = BCLoss(actor)
    return actor, loss, Update(loss, Descend("actor", torch.optim.Adam(loss.parameters())))


def test_a_policy_that_would_never_learn_is_refused() -> None:
    actor, loss, update = parts()
    for policies in ({"actor": copy.deepcopy(actor)}, {"actor": actor, "tester": copy.deepcopy(actor)}):
        with pytest.raises(O2OSpecError, match=r"shares no parameter with the BCLoss, .* would never learn"):
            Learner(loss=loss, update=update, **policies)


def test_an_update_of_another_loss_is_refused() -> None:
    actor, loss, _ = parts()
    with pytest.raises(O2OSpecError, match="got an update of another BCLoss than the learner's loss"):
        Learner(actor, loss, parts()[2])


def test_policies_with_noise_or_without_parameters_pass() -> None:
    actor, loss, update = parts()
    explorer = TensorDictSequential(actor, AdditiveGaussianModule(actor.spec))
    still = TensorDictModule(lambda seen: seen[..., :2] * 0.0, in_keys=["observation"], out_keys=["action"])
    learner = Learner(actor, loss, update, explorer=explorer, tester=still)
    assert (learner.explorer, learner.tester) == (explorer, still)
