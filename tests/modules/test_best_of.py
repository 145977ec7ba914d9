# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from tensordict.nn import ProbabilisticTensorDictSequential, TensorDictModule
from torch import nn
from torchrl.modules import ProbabilisticActor

from torchrl_o2o.errors import O2OSpecError
from torchrl_o2o.modules import BestOfPolicies, GaussianHead, make_actor, make_gaussian_actor, make_qvalue_ensemble
from torchrl_o2o.modules.best_of import mode_net
from torchrl_o2o.modules.boxes import action_box


@pytest.mark.parametrize("make", [make_actor, make_gaussian_actor])
def test_the_mode_is_the_distributions(make: Callable[..., ProbabilisticActor]) -> None:
    actor, seen = make(3, 2, hidden_sizes=(8,)), torch.randn(5, 3)
    loc, scale = actor[0](seen)
    mode = actor[-1].distribution_class(loc, scale).mode
    torch.testing.assert_close(mode_net(actor, action_box(2))(seen), mode)


def test_an_actor_of_other_parts_has_no_mode_net() -> None:
    """The layers of its other parts would be left out."""
    head = make_actor(3, 2, hidden_sizes=(8,))[-1]
    first = TensorDictModule(nn.Linear(3, 3), in_keys=["observation"], out_keys=["features"])
    second = TensorDictModule(GaussianHead(3, 2), in_keys=["features"], out_keys=["loc", "scale"])
    function = TensorDictModule(lambda seen: (seen, seen), in_keys=["observation"], out_keys=["loc", "scale"])
    for parts in ((first, second, head), (function, head)):
        with pytest.raises(O2OSpecError, match=f"of {len(parts)} parts, expected a network and a distribution"):
            mode_net(ProbabilisticTensorDictSequential(*parts), action_box(2))


def test_critics_choose_without_dropout() -> None:
    torch.manual_seed(0)
    (critic,) = make_qvalue_ensemble(3, 1, num_qvalue_nets=1, hidden_sizes=(8,), dropout=0.5)
    params = {name: value[None] for name, value in critic.module.named_parameters()}
    best = BestOfPolicies([nn.Linear(3, 1), nn.Linear(3, 1)], critic.module, params, aggregation="min")
    seen = torch.randn(50, 3)
    actions = torch.stack([policy(seen) for policy in best.policies])
    value = torch.stack([critic.eval()(seen, action).squeeze(-1) for action in actions])
    critic.train()
    assert torch.equal(best(seen), actions[value.argmax(0), torch.arange(50)])
