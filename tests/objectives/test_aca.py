# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
from __future__ import annotations

from typing import Any

import pytest
import torch
from tensordict import TensorDict
from tensordict.nn import TensorDictModule
from torch import nn

from tests.objectives.offline_losses import act, assert_discounted, assert_optimal, train
from torchrl_o2o.errors import O2OSpecError
from torchrl_o2o.modules import Temperature, make_actor, make_baselines, make_qvalue_ensemble
from torchrl_o2o.modules.gaussian_policies import make_gaussian_actor
from torchrl_o2o.objectives import ACALoss, BaselineLoss, EnsembleSACLoss, GeneratorNoise, SACMLLoss
from torchrl_o2o.testing import (
    ContextualTargetEnv,
    DelayedRewardEnv,
    LossContract,
    probe_transitions,
    random_transitions,
)

pytestmark = pytest.mark.filterwarnings("ignore:No target network updater")

Keys = tuple[Any, Any]
PLAIN: Keys = ("observation", "action")


def policy(observation: int, action: int, keys: Keys, squashed: bool = True) -> Any:
    names = {"observation_key": keys[0], "action_key": keys[1]}
    if squashed:
        return make_actor(observation, action, hidden_sizes=(16, 16), **names)
    return make_gaussian_actor(
        observation, action, hidden_sizes=(16, 16), std="sigmoid", log_std_bounds=(-5.0, 0.0), **names
    )


def critics(observation: int, action: int, keys: Keys = PLAIN) -> Any:
    return make_qvalue_ensemble(
        observation, action, num_qvalue_nets=2, hidden_sizes=(16, 16), layer_norm=False, in_keys=keys
    )


def aca(observation: int = 5, action: int = 3, *, keys: Keys = PLAIN, squashed: bool = True, **kw: Any) -> ACALoss:
    kw.setdefault("temperature", Temperature(-3.0, form="log_alpha"))
    actors = [policy(observation, action, keys, squashed) for _ in range(2)]
    return ACALoss(actors[0], critics(observation, action, keys), actors[1], **kw)


def sacml(observation: int = 5, action: int = 3, *, keys: Keys = PLAIN, squashed: bool = True, **kw: Any) -> SACMLLoss:
    kw.setdefault("temperature", Temperature(-3.0, form="log_alpha"))
    baselines = make_baselines(observation, hidden_sizes=(16, 16), observation_key=keys[0])
    actor = policy(observation, action, keys, squashed)
    return SACMLLoss(actor, critics(observation, action, keys), baselines, **kw)


class TestContractACA(LossContract):
    trains = {
        "loss_qvalue": ("qvalue_network_params",),
        "loss_actor": ("actor_network_params",),
        "loss_alpha": ("temperature",),
    }
    squashed = True

    def make_loss(self, *, observation_key: Any = "observation", action_key: Any = "action") -> ACALoss:
        return aca(keys=(observation_key, action_key), squashed=self.squashed, interpolation=0.7)


class TestContractACAUnsquashed(TestContractACA):
    squashed = False


class TestContractSACML(LossContract):
    trains = {
        "loss_qvalue": ("qvalue_network_params",),
        "loss_actor": ("actor_network_params",),
        "loss_alpha": ("temperature",),
        "loss_baseline": ("baseline_network_params",),
    }

    def make_loss(self, *, observation_key: Any = "observation", action_key: Any = "action") -> SACMLLoss:
        return sacml(keys=(observation_key, action_key))


class TestContractBaseline(LossContract):
    trains = {"loss_baseline": ("baseline_network_params",)}

    def make_loss(self, *, observation_key: Any = "observation", action_key: Any = "action") -> BaselineLoss:
        baselines = make_baselines(5, hidden_sizes=(16, 16), observation_key=observation_key)
        return BaselineLoss(policy(5, 3, (observation_key, action_key)), baselines, clip_min=None)

    def bootstrapped(self, loss: BaselineLoss, batch: TensorDict) -> torch.Tensor:
        return self._run(loss, batch)["loss_baseline"]


def load_members(members: Any, params: Any) -> Any:
    flat = params.data.flatten_keys(".")
    for index, member in enumerate(members):
        member.load_state_dict({key: value[index] for key, value in flat.items()})
    return members


def test_without_interpolation_aca_is_soft_actor_critic_with_the_residuals() -> None:
    """k = 0 against EnsembleSACLoss(E=2, min), critic, actor and temperature."""
    torch.manual_seed(0)
    ours = aca(interpolation=0.0)
    temperature = Temperature(-3.0, form="log_alpha")
    members = load_members(critics(5, 3), ours.qvalue_network_params)
    actor = make_actor(5, 3, hidden_sizes=(16, 16))
    actor.load_state_dict(ours.actor_network_params.data.flatten_keys(".").to_dict())
    theirs = EnsembleSACLoss(actor, members, actor_q="min", temperature=temperature)
    batch = random_transitions(12, 5, 3)
    outs = []
    for loss in (ours, theirs):
        loss.noise = GeneratorNoise(torch.Generator().manual_seed(1))
        outs.append(loss(batch.clone()))
    for key in ("loss_qvalue", "loss_actor", "loss_alpha", "target_value", "entropy"):
        torch.testing.assert_close(outs[0][key], outs[1][key])


def test_interpolation_weighs_the_density_everywhere() -> None:
    torch.manual_seed(0)
    loss, batch = aca(), random_transitions(12, 5, 3)
    values = []
    for weight in (0.0, 0.5, 1.0):
        loss.interpolation = weight
        values.append(loss.qvalue_loss(batch)[1]["qvalue"])
    torch.testing.assert_close(values[1] - values[0], values[2] - values[1])
    torch.testing.assert_close((values[2] - values[0])[0], (values[2] - values[0])[1], msg="the same for all members")


def test_interpolation_is_part_of_the_state() -> None:
    first, second = aca(interpolation=0.25), aca()
    second.load_state_dict(first.state_dict())
    assert second.interpolation == 0.25


def test_offline_policy_is_a_frozen_copy() -> None:
    offline = policy(5, 3, PLAIN)
    loss = ACALoss(policy(5, 3, PLAIN), critics(5, 3), offline)
    batch = random_transitions(12, 5, 3)
    before = loss.qvalue_loss(batch)[1]["reference_log_prob"]
    for value in offline.parameters():
        value.data.add_(1.0)
    assert torch.equal(loss.qvalue_loss(batch)[1]["reference_log_prob"], before)
    assert not any(value.requires_grad for value in loss.reference_network_params.parameters())


def test_options_that_do_not_fit_are_refused() -> None:
    with pytest.raises(O2OSpecError, match="got beta=0"):
        aca(beta=0.0)
    with pytest.raises(O2OSpecError, match=r"got interpolation=1\.5"):
        aca(interpolation=1.5)
    deterministic = TensorDictModule(nn.Linear(5, 3), in_keys=["observation"], out_keys=["action"])
    with pytest.raises(O2OSpecError, match="deterministic"):
        ACALoss(policy(5, 3, PLAIN), critics(5, 3), deterministic)
    with pytest.raises(O2OSpecError, match="no baseline"):
        SACMLLoss(policy(5, 3, PLAIN), critics(5, 3), [])
    with pytest.raises(O2OSpecError, match="no baseline"):
        BaselineLoss(policy(5, 3, PLAIN), [])
    with pytest.raises(O2OSpecError, match="no critic"):
        ACALoss(policy(5, 3, PLAIN), [], policy(5, 3, PLAIN))


def test_baseline_entropy_follows_the_code_or_the_paper() -> None:
    batch = random_transitions(12, 5, 3)
    targets = []
    for entropy in (True, False):
        torch.manual_seed(0)
        loss = sacml(baseline_entropy=entropy, temperature=Temperature(None, init=0.5))
        loss.noise = GeneratorNoise(torch.Generator().manual_seed(0))
        targets.append(loss.baseline_target(batch))
    loss.noise = GeneratorNoise(torch.Generator().manual_seed(0))
    # With alpha = 1/2 the entropy term takes half of the log-density away.
    noise = loss.noise.normal("baseline_next_action", batch["action"])
    with loss.actor_network_params.to_module(loss.actor_network):
        log_prob = loss.actor_network.get_dist(batch["next"]).rsample_and_log_prob(noise=noise)[1]
    alive = ~batch["next", "terminated"].squeeze(-1)
    torch.testing.assert_close((targets[1] - targets[0])[alive], 0.99 * 0.5 * log_prob.detach()[alive])


def test_baseline_of_sacml_is_the_baseline_on_a_frozen_policy() -> None:
    torch.manual_seed(0)
    ours, batch = sacml(), random_transitions(12, 5, 3)
    actor = policy(5, 3, PLAIN)
    actor.load_state_dict(ours.actor_network_params.data.flatten_keys(".").to_dict())
    members = load_members(make_baselines(5, hidden_sizes=(16, 16)), ours.baseline_network_params)
    theirs = BaselineLoss(actor, members, clip_min=None)
    for loss in (ours, theirs):
        loss.noise = GeneratorNoise(torch.Generator().manual_seed(0))
    torch.testing.assert_close(ours.baseline_loss(batch)[0], theirs(batch)["loss_baseline"])


def test_clip_min_bounds_the_density_from_below() -> None:
    torch.manual_seed(0)
    batch = random_transitions(12, 5, 3)
    actor = policy(5, 3, PLAIN)
    losses = [BaselineLoss(actor, make_baselines(5, hidden_sizes=(16,)), clip_min=value) for value in (1e6, None)]
    bounded, free = (loss.eval()(batch.clone())["target_value"] for loss in losses)
    assert bounded > 1e5 > free


def test_probe_aca_finds_the_contextual_optimum_from_a_useless_policy() -> None:
    torch.manual_seed(0)
    loss = aca(1, 1, temperature=Temperature(None, init=0.01), interpolation=0.0)
    train(loss, probe_transitions(ContextualTargetEnv(), 512), 500)
    assert_optimal(loss)


def test_probe_sacml_imitates_where_the_reward_says_nothing() -> None:
    """All rewards equal: the likelihood alone decides, and the actor learns the recorded action -x/2."""
    torch.manual_seed(0)
    data = probe_transitions(ContextualTargetEnv(), 512)
    data["action"] = -data["observation"] / 2
    data["next", "reward"] = torch.ones(512, 1)
    loss = sacml(1, 1, temperature=Temperature(None, init=1e-4), ml_weight=0.1)
    train(loss, data, 300)
    observation = torch.linspace(-0.9, 0.9, 7).unsqueeze(-1)
    assert (act(loss, observation) + observation / 2).abs().max() < 0.15


def test_probe_critic_discounts_a_delayed_reward() -> None:
    torch.manual_seed(0)
    loss = sacml(1, 1, temperature=Temperature(None, init=1e-6))
    loss.make_value_estimator(gamma=0.5)
    data = probe_transitions(DelayedRewardEnv(), 64)
    train(loss, data, 400)
    assert_discounted(loss, data)


def test_a_baselines_td_error_is_the_mean_absolute_one() -> None:
    loss = BaselineLoss(policy(5, 3, PLAIN), make_baselines(5, hidden_sizes=(16,)), clip_min=None)
    rows = random_transitions(8, 5, 3)
    _, info = loss.baseline_loss(rows)
    density = loss._policy(loss._state(rows)).log_prob(rows["action"])
    expected = (density + info["baseline"] - info["target_value"]).abs().mean(0)
    torch.testing.assert_close(info["td_error"], expected.detach())
