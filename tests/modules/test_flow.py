# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
from __future__ import annotations

import pytest
import torch
from torch import nn
from torchrl.data import Composite
from torchrl.modules import Actor

from torchrl_o2o.errors import O2OSpecError
from torchrl_o2o.modules.boxes import action_box
from torchrl_o2o.modules.flow import Joined, one_step_network


def test_inputs_are_joined_in_their_order() -> None:
    net = Joined(nn.Identity())
    assert net(torch.tensor([1.0]), torch.tensor([2.0, 3.0]), torch.tensor([4.0])).tolist() == [1.0, 2.0, 3.0, 4.0]
    assert net(input=torch.tensor([1.0])).tolist() == [1.0]  # by name, as any nn.Sequential


def test_only_a_one_step_actor_has_a_one_step_network() -> None:
    spec = Composite({"action": action_box(2)})
    for module in (nn.Linear(3, 2), lambda seen: seen[..., :2]):
        actor = Actor(module, in_keys=["observation"], spec=spec)
        with pytest.raises(O2OSpecError, match=r"got Actor, expected an actor from make_one_step_actor\(\.\.\.\)"):
            one_step_network(actor)
