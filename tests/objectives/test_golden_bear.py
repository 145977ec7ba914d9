# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""BEARLoss against the authors' numbers in float64, with tables in place of networks: the files hold arrays only."""

from __future__ import annotations

from typing import Any, Literal

import pytest
import torch
from tensordict import TensorDict
from tensordict.nn import TensorDictModule
from torch import Tensor, nn

from tests import golden_vectors as golden
from tests.objectives.test_golden_brac import Rows, actor
from torchrl_o2o.functional import squared_mmd
from torchrl_o2o.modules import Multiplier, TanhNormal, make_action_vae
from torchrl_o2o.objectives import BEARLoss, RecordedNoise
from torchrl_o2o.updates import Descend, Update

pytestmark = pytest.mark.usefixtures("float64")

CASES = ("bear/A", "bear/B")
KERNELS: tuple[Literal["gaussian", "laplacian"], ...] = ("gaussian", "laplacian")


class Values(nn.Module):
    """Q of the k-th action of a row, [N, rows]; zero of a recorded action."""

    def __init__(self, table: Tensor) -> None:
        super().__init__()
        self.table = nn.Parameter(table)

    def forward(self, observation: Tensor, action: Tensor) -> Tensor:
        index = observation[..., 0].long()
        if index.ndim == 1:
            return 0.0 * self.table[0, index].unsqueeze(-1)
        return self.table[torch.arange(len(index)).unsqueeze(-1), index].unsqueeze(-1)


def build(case: str, **settings: Any) -> tuple[golden.Tree, BEARLoss, TensorDict]:
    tree = golden.load(case)
    policy_q, target_q = tree["in/policy_q"], tree["in/target_q"].transpose(1, 2)  # both [E, N, rows]
    tables = torch.zeros(2, 10, 16)
    tables[:, : policy_q.shape[1], :8], tables[:, :, 8:] = policy_q, target_q
    keys = {"in_keys": ["observation", "action"], "out_keys": ["state_action_value"]}
    policy, behavior = (tree[f"in/{who}_raw_action"].transpose(0, 1) for who in ("policy", "behaviour"))
    bounds = golden.hp(tree, "log_lagrange_min"), golden.hp(tree, "log_lagrange_max")
    eta = tree["in/log_lagrange"].exp().item()
    loss = BEARLoss(
        actor(Rows(torch.zeros(16, 3), torch.ones(16, 3)), TanhNormal, ["loc", "scale"]),
        [TensorDictModule(Values(table), **keys) for table in tables],
        make_action_vae(1, 3, hidden_sizes=(4,)),
        mmd_sigma=golden.hp(tree, "sigma"),
        policy_samples=len(policy),
        behavior_samples=len(behavior),
        multiplier=Multiplier(eta, target=golden.hp(tree, "mmd_threshold"), form="log", bounds=bounds),
        soft_min_weight=golden.hp(tree, "soft_min_weight"),
        spread_weight=golden.hp(tree, "lambda_"),
        spread_confidence=golden.hp(tree, "delta_conf"),
        noise_clip=None,  # the files hold what was drawn, not the noise
        **settings,
    )
    loss.make_value_estimator(gamma=golden.hp(tree, "discount"))
    loss._behavior = lambda *_: behavior  # type: ignore[method-assign]
    # Mean 0 and deviation 1: what is drawn before tanh is the noise.
    loss.noise = RecordedNoise({"action": policy, "next_action": torch.zeros(10, 8, 3), "latent": torch.zeros(8, 6)})
    rows, terminated = torch.arange(8.0).unsqueeze(-1), tree["in/terminated"].bool().unsqueeze(-1)
    batch = TensorDict({"observation": rows, "action": torch.zeros(8, 3)}, [8])
    following = {"observation": rows + 8.0, "reward": tree["in/reward"].unsqueeze(-1)}
    return tree, loss, batch.set("next", {**following, "terminated": terminated, "done": terminated})


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("kernel", KERNELS)
def test_discrepancy_and_its_gradient(case: str, kernel: Literal["gaussian", "laplacian"]) -> None:
    tree, loss, batch = build(case, kernel=kernel)
    golden.assert_close(loss.estimate_divergence(batch), tree[f"out/mmd_{kernel}"], "MMD")
    policy = tree["in/policy_raw_action"].transpose(0, 1).clone().requires_grad_()
    behavior = tree["in/behaviour_raw_action"].transpose(0, 1)
    value = (squared_mmd(behavior, policy, 2.0 * golden.hp(tree, "sigma"), kernel) + golden.hp(tree, "mmd_eps")).sqrt()
    value.sum().backward()
    assert policy.grad is not None
    golden.assert_close(policy.grad.transpose(0, 1), tree[f"out/mmd_{kernel}_grad_policy"], "gradient")


@pytest.mark.parametrize("case", CASES)
def test_target(case: str) -> None:
    tree, loss, batch = build(case)
    golden.assert_close(loss.target_value(batch), tree["out/target"], "target")


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("warm", [True, False])
def test_losses_of_an_update(case: str, warm: bool) -> None:
    tree, loss, batch = build(case)
    loss.q_weight.fill_(0.0 if warm else 1.0)
    eta = tree["in/log_lagrange"].exp()
    optim = torch.optim.Adam(loss.multiplier.parameters(), lr=golden.hp(tree, "lagrange_lr"))
    policy_optim = torch.optim.Adam(loss.actor_network_params.parameters(), lr=1e-3)
    metrics = Update(loss, Descend("actor", policy_optim), Descend("multiplier", optim))(batch)
    golden.assert_close(metrics["loss_actor"], tree[f"out/actor_loss{'_warmup' if warm else ''}"], "actor loss")
    slack = eta * golden.hp(tree, "mmd_threshold")
    if not warm:
        golden.assert_close(metrics["loss_actor"] - slack, tree["out/lagrange_objective"], "objective of eta")
    # What is descended is -eta (D - 0.05), whose derivative by log eta is itself.
    golden.assert_close(-metrics["loss_multiplier"], tree["out/log_lagrange_gradient_ascent"], "gradient of log eta")
    ascent = tree["out/log_lagrange_gradient_ascent"]
    risen = golden.hp(tree, "lagrange_lr") * ascent / (ascent.abs() + 1e-8)  # Adam's first step
    golden.assert_close(loss.multiplier.raw, tree["in/log_lagrange"] + risen, "log eta")
