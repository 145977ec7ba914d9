# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""BRACLoss against the authors' equations in float64, with tables in place of networks: the files hold arrays only."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tensordict import TensorDict
from tensordict.nn import TensorDictModule
from torch import Tensor, nn
from torchrl.data import Bounded
from torchrl.modules import ProbabilisticActor

from tests import golden_vectors as golden
from torchrl_o2o.functional import squared_mmd
from torchrl_o2o.modules import Multiplier, TanhNormal, Temperature
from torchrl_o2o.objectives import BRACLoss, RecordedNoise
from torchrl_o2o.updates import Descend, Update

pytestmark = pytest.mark.usefixtures("float64")

CASES = ("brac/A", "brac/B")


class Rows(nn.Module):
    """Columns of a table, of which the observation names the row."""

    def __init__(self, *columns: Tensor) -> None:
        super().__init__()
        self.columns = nn.ParameterList(column.clone() for column in columns)

    def forward(self, observation: Tensor) -> tuple[Tensor, ...]:
        index = observation[..., 0].long()
        return tuple(column[index] for column in self.columns)


class Values(nn.Module):
    """Q of a recorded action from one table, Q of any other action from another."""

    def __init__(self, action: Tensor, data: Tensor, other: Tensor) -> None:
        super().__init__()
        self.register_buffer("action", action)
        self.data, self.other = nn.Parameter(data), nn.Parameter(other)

    def forward(self, observation: Tensor, action: Tensor) -> Tensor:
        index = observation[..., 0].long()
        recorded = (self.action[index] == action).all(-1)
        return torch.where(recorded, self.data[index], self.other[index]).unsqueeze(-1)


class Scored(TanhNormal):
    """Single actions have a log-density that was written down, as the files do not say what they are."""

    def __init__(self, loc: Tensor, scale: Tensor, written: Tensor, **box: Any) -> None:
        super().__init__(loc, scale, **box)
        self.written = written

    def rsample_and_log_prob(self, sample_shape: Any = (), *, noise: Tensor | None = None) -> tuple[Tensor, Tensor]:
        action, log_prob = super().rsample_and_log_prob(sample_shape, noise=noise)
        return action, log_prob if sample_shape else self.written


def both(tree: golden.Tree, name: str) -> Tensor:
    """Rows of the states and of the next states."""
    return torch.cat([tree[f"in/{name}"], tree[f"in/next_{name}"]])


def actor(table: Rows, kind: type[TanhNormal], names: list[str]) -> ProbabilisticActor:
    spec = Bounded(-torch.ones(3), torch.ones(3), (3,))
    body = TensorDictModule(table, in_keys=["observation"], out_keys=names)
    box = {"low": -1.0, "high": 1.0}
    return ProbabilisticActor(
        body, in_keys=names, out_keys=["action"], spec=spec, distribution_class=kind, distribution_kwargs=box
    )


def build(case: str, **settings: Any) -> tuple[golden.Tree, BRACLoss, TensorDict]:
    tree = golden.load(case)
    policy = actor(
        Rows(both(tree, "policy_mean"), both(tree, "policy_std"), both(tree, "log_prob")),
        Scored,
        ["loc", "scale", "written"],
    )
    behavior = actor(Rows(both(tree, "behaviour_mean"), both(tree, "behaviour_std")), TanhNormal, ["loc", "scale"])
    rows, action = torch.arange(8.0).unsqueeze(-1), torch.full((16, 3), 0.5)
    members = [
        TensorDictModule(
            Values(
                action,
                torch.cat([tree["in/data_q"][index], torch.zeros(8)]),
                torch.cat([tree["in/policy_q"][index], tree["in/next_target_q"][index]]),
            ),
            in_keys=["observation", "action"],
            out_keys=["state_action_value"],
        )
        for index in range(2)
    ]
    alpha, entropy = golden.hp(tree, "alpha"), golden.hp(tree, "alpha_entropy")
    loss = BRACLoss(
        policy,
        members,
        behavior,
        divergence_samples=int(golden.hp(tree, "n_div_samples")),
        multiplier=Multiplier(
            alpha, target=golden.hp(tree, "target_divergence"), bounds=(0.0, golden.hp(tree, "alpha_max"))
        ),
        temperature=Temperature(golden.hp(tree, "target_entropy") if entropy else None, init=entropy),
        soft_min_weight=golden.hp(tree, "ensemble_q_lambda"),
        action_margin=golden.hp(tree, "action_clip_eps"),
        mmd_sigma=golden.hp(tree, "mmd_sigma"),
        **settings,
    )
    loss.make_value_estimator(gamma=golden.hp(tree, "discount"))
    anything = torch.zeros(8, 3)
    loss.noise = RecordedNoise(
        {
            "action": anything,
            "next_action": anything,
            "divergence": tree["noise/policy"],
            "behavior": tree["noise/behaviour"],
            "next_divergence": tree["noise/next_policy"],
            "next_behavior": tree["noise/next_behaviour"],
        }
    )
    terminated = tree["in/terminated"].bool().unsqueeze(-1)
    batch = TensorDict({"observation": rows, "action": action[:8]}, [8])
    following = {"observation": rows + 8.0, "reward": tree["in/reward"].unsqueeze(-1)}
    return tree, loss, batch.set("next", {**following, "terminated": terminated, "done": terminated})


@pytest.mark.parametrize("case", CASES)
def test_divergences(case: str) -> None:
    for kind, name in (("kl", "kl"), ("mmd", "mmd")):
        tree, loss, batch = build(case, divergence=kind)
        golden.assert_close(loss.estimate_divergence(batch), tree[f"out/{name}"], name)


@pytest.mark.parametrize("case", CASES)
def test_next_discrepancy(case: str) -> None:
    tree = golden.load(case)
    samples = [
        (tree[f"in/next_{who}_mean"] + tree[f"in/next_{who}_std"] * tree[f"noise/next_{who}"]).tanh()
        for who in ("policy", "behaviour")
    ]
    golden.assert_close(squared_mmd(*samples, golden.hp(tree, "mmd_sigma")), tree["out/next_mmd"], "next MMD")


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize(("value_penalty", "name"), [(True, "target_value_penalty"), (False, "target_policy_reg")])
def test_targets(case: str, value_penalty: bool, name: str) -> None:
    tree, loss, batch = build(case, value_penalty=value_penalty)
    golden.assert_close(loss.target_value(batch), tree[f"out/{name}"], name)


def adam(params: Any) -> torch.optim.Adam:
    return torch.optim.Adam(params.parameters(), lr=1e-3)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("warm", [True, False])
def test_losses_of_an_update(case: str, warm: bool) -> None:
    """No step moves what a later loss of the same update reads of the tables."""
    tree, loss, batch = build(case, value_penalty=True)
    loss.q_weight.fill_(0.0 if warm else 1.0)
    steps = [
        Descend("qvalue", adam(loss.qvalue_network_params)),
        Descend("actor", adam(loss.actor_network_params)),
        Descend("multiplier", adam(loss.multiplier)),
    ]
    if loss.temperature.target_entropy is not None:
        steps.append(Descend("alpha", adam(loss.temperature)))
    metrics = Update(loss, *steps)(batch)
    golden.assert_close(metrics["loss_qvalue"], tree["out/critic_loss_value_penalty"], "critic loss")
    golden.assert_close(metrics["loss_actor"], tree[f"out/actor_loss{'_warm_start' if warm else ''}"], "actor loss")
    golden.assert_close(metrics["loss_multiplier"], tree["out/alpha_loss"], "loss of the weight")
    if len(steps) == 4:
        golden.assert_close(metrics["loss_alpha"], tree["out/alpha_entropy_loss"], "temperature loss")
    else:
        assert float(tree["out/alpha_entropy_loss"]) == 0.0
