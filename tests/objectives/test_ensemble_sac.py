# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
from __future__ import annotations

from typing import Any

import pytest
import torch
from tensordict import TensorDict
from tensordict.nn import TensorDictModule, TensorDictSequential
from torch import nn
from torchrl.data import Bounded
from torchrl.modules import MLP, NormalParamExtractor, ProbabilisticActor, ValueOperator
from torchrl.modules import TanhNormal as UpstreamTanhNormal
from torchrl.objectives import SACLoss

from tests.objectives.offline_losses import assert_discounted, assert_optimal, train
from torchrl_o2o.errors import O2OSpecError
from torchrl_o2o.modules import Temperature, make_actor, make_qvalue_ensemble
from torchrl_o2o.objectives import EnsembleSACLoss, GeneratorNoise, RecordedNoise
from torchrl_o2o.testing import (
    ContextualTargetEnv,
    DelayedRewardEnv,
    LossContract,
    probe_transitions,
    random_transitions,
)

pytestmark = pytest.mark.filterwarnings("ignore:No target network updater")


def build(
    observation: int = 5,
    action: int = 3,
    *,
    num_qvalue_nets: int = 4,
    keys: tuple[Any, Any] = ("observation", "action"),
    layer_norm: bool = True,
    shared_head: bool = False,
    form: Any = "alpha",
    **settings: Any,
) -> EnsembleSACLoss:
    actor = make_actor(observation, action, hidden_sizes=(16, 16), observation_key=keys[0], action_key=keys[1])
    shape = {"num_qvalue_nets": num_qvalue_nets, "hidden_sizes": (16, 16), "in_keys": keys}
    critics = make_qvalue_ensemble(observation, action, **shape, layer_norm=layer_norm, shared_head=shared_head)
    settings.setdefault("temperature", Temperature(-action / 2, form=form))
    return EnsembleSACLoss(actor, critics, **settings)


class TestContractRLPD(LossContract):
    trains = {
        "loss_qvalue": ("qvalue_network_params",),
        "loss_actor": ("actor_network_params",),
        "loss_alpha": ("temperature",),
    }
    settings: dict[str, Any] = {"sub_sample_len": 2}

    def make_loss(self, *, observation_key: Any = "observation", action_key: Any = "action") -> EnsembleSACLoss:
        keys = (observation_key, action_key)
        return build(self.observation_dim, self.action_dim, keys=keys, **self.settings)


class TestContractSAC(TestContractRLPD):
    settings = {"num_qvalue_nets": 2, "actor_q": "min", "layer_norm": False}


class TestContractPerSample(TestContractRLPD):
    settings = {"sub_sample_len": 1, "subset_per": "sample", "entropy_backup": False, "ensemble_reduction": "mean"}


class TestContractWeighted(TestContractRLPD):
    """A3RL as its authors' code has it."""

    settings = {"sub_sample_len": 2, "weight_actor": True, "ensemble_reduction": "mean"}
    weighted = ("loss_qvalue", "loss_actor")

    def make_batch(self, **keys: Any) -> TensorDict:
        return super().make_batch(**keys).set("priority_weight", torch.linspace(0.5, 1.5, self.batch_size))

    def test_importance_weights(self) -> None:
        """The temperature's rows are the weighted mean; see ``test_weight_actor_weights_actor_and_entropy``."""
        self.trains = {name: groups for name, groups in self.trains.items() if name != "loss_alpha"}
        super().test_importance_weights()


class TestContractOnChunks(TestContractRLPD):
    """RLPD-AC and QC-RLPD."""

    settings = {"entropy_backup": False, "target_q": "mean", "bc_alpha": 0.1, "ensemble_reduction": "mean"}


class TestContractWSRL(TestContractRLPD):
    settings = {
        "sub_sample_len": 2,
        "subset_replacement": True,
        "num_target_actions": 3,
        "entropy_at": "next_state",
        "actor_q": "min",
        "ensemble_reduction": "mean",
        "shared_head": True,
        "form": "softplus",
    }


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_target_actions": 0}, "num_target_actions"),
        ({"target_q": "max"}, "got target_q='max'"),
        ({"bc_alpha": -1.0}, "got bc_alpha=-1"),
        ({"entropy_at": "here"}, "got entropy_at='here'"),
        ({"sub_sample_len": 5}, r"got sub_sample_len=5, expected 1\.\.4"),
        ({"sub_sample_len": 0}, r"got sub_sample_len=0, expected 1\.\.4"),
        ({"actor_q": "max"}, "got actor_q='max', expected one of 'mean', 'min'"),
        ({"subset_per": "row"}, "got subset_per='row'"),
        ({"ensemble_reduction": "none"}, "got ensemble_reduction='none'"),
        ({"reduction": "avg"}, "got reduction='avg'"),
    ],
)
def test_options_that_do_not_fit_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(O2OSpecError, match=message):
        build(**settings)


def test_default_target_entropy_is_minus_half_the_action_dimensions() -> None:
    assert build(action=6, temperature=None).temperature.target_entropy == -3.0


def test_default_target_entropy_needs_a_spec() -> None:
    module = TensorDictModule(nn.Linear(5, 3), in_keys=["observation"], out_keys=["loc"])
    scale = TensorDictModule(torch.ones_like, in_keys=["loc"], out_keys=["scale"])
    actor = ProbabilisticActor(
        TensorDictSequential(module, scale), in_keys=["loc", "scale"], distribution_class=UpstreamTanhNormal
    )
    with pytest.raises(O2OSpecError, match="pass temperature=Temperature"):
        EnsembleSACLoss(actor, make_qvalue_ensemble(5, 3, num_qvalue_nets=2))


def test_members_keep_their_own_initialization() -> None:
    critics = make_qvalue_ensemble(5, 3, num_qvalue_nets=3, initialization="orthogonal")
    stacked = EnsembleSACLoss(make_actor(5, 3), critics).qvalue_network_params["module", "head", "weight"]
    for member, critic in enumerate(critics):
        assert torch.equal(stacked[member], critic.module.head.weight)


def test_only_the_drawn_members_decide_the_target() -> None:
    torch.manual_seed(0)
    loss, batch = build(sub_sample_len=2), random_transitions(12, 5, 3)
    noise = torch.randn(12, 3)
    loss.noise = RecordedNoise({"next_action": noise, "target": torch.tensor([1, 3])})
    before = loss.target_value(batch)
    target = loss.target_qvalue_network_params["module", "head", "bias"]
    target.data[0] += 100.0
    assert torch.equal(loss.target_value(batch), before)
    target.data[3] -= 100.0
    assert (loss.target_value(batch) < before)[~batch["next", "terminated"].squeeze(-1)].all()


def test_importance_weights_multiply_and_are_not_renormalized() -> None:
    loss, batch = build(reduction="none"), random_transitions(12, 5, 3)
    weights = torch.rand(12) + 0.5
    weighted = batch.clone().set("priority_weight", weights)
    torch.manual_seed(0)
    rows = loss.qvalue_loss(batch)[0]
    loss.reduction = "mean"
    torch.manual_seed(0)
    torch.testing.assert_close(loss.qvalue_loss(weighted)[0], (weights * rows).mean())
    torch.manual_seed(0)
    plain = loss.actor_loss(batch)[0]
    torch.manual_seed(0)
    assert torch.equal(loss.actor_loss(weighted)[0], plain), "weights reach the actor only if asked"


def test_weight_actor_weights_actor_and_entropy() -> None:
    loss, batch = build(weight_actor=True), random_transitions(12, 5, 3)
    weighted = batch.clone().set("priority_weight", torch.full((12,), 3.0))
    torch.manual_seed(0)
    plain, info = loss.actor_loss(batch.clone().set("priority_weight", torch.ones(12)))
    torch.manual_seed(0)
    torch.testing.assert_close(loss.actor_loss(weighted)[0], 3.0 * plain)
    _, alpha_info = loss.alpha_loss(weighted, log_prob=info["log_prob"])
    torch.testing.assert_close(alpha_info["entropy"], -3.0 * info["log_prob"].mean())
    for method in (loss.actor_loss, loss.alpha_loss):
        with pytest.raises(O2OSpecError, match="got a batch without 'priority_weight'"):
            method(batch)


def test_calls_of_the_old_form_name_the_new_one() -> None:
    with pytest.raises(O2OSpecError, match="log_prob=log_prob"):
        build().alpha_loss(torch.zeros(6))  # type: ignore[arg-type]


def test_fixed_temperature() -> None:
    loss = build(temperature=Temperature(None, init=0.2))
    out = loss(random_transitions(6, 5, 3))
    assert out["loss_alpha"] == 0
    torch.testing.assert_close(out["alpha"], torch.tensor(0.2))
    assert not [name for name, _ in loss.named_parameters() if "alpha" in name]


def test_priority_is_written_for_prioritized_buffers() -> None:
    loss, batch = build(), random_transitions(12, 5, 3)
    torch.manual_seed(0)
    expected = loss.qvalue_loss(batch)[1]["td_error"]
    torch.manual_seed(0)
    loss(batch)
    torch.testing.assert_close(batch["td_error"], expected)
    assert expected.shape == (12,)


def test_generator_makes_a_loss_independent_of_the_global_one() -> None:
    loss, batch = build(sub_sample_len=2), random_transitions(12, 5, 3)
    values = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        loss.noise = GeneratorNoise(torch.Generator().manual_seed(5))
        values.append(loss(batch)["loss_qvalue"])
    assert torch.equal(*values)


def upstream_networks() -> tuple[ProbabilisticActor, ValueOperator]:
    spec = Bounded(-torch.ones(3), torch.ones(3), (3,))
    net = nn.Sequential(MLP(5, 6, num_cells=[16], activation_class=nn.ReLU), NormalParamExtractor())
    module = TensorDictModule(net, in_keys=["observation"], out_keys=["loc", "scale"])
    actor = ProbabilisticActor(module, in_keys=["loc", "scale"], spec=spec, distribution_class=UpstreamTanhNormal)
    return actor, ValueOperator(MLP(8, 1, num_cells=[16]), in_keys=["observation", "action"])


def test_two_critics_with_the_minimum_are_torchrls_sac() -> None:
    """EnsembleSAC(E=2, Z=2, min) against upstream's SACLoss, on upstream's own networks."""
    torch.manual_seed(0)
    actor, _ = upstream_networks()
    critics = [upstream_networks()[1] for _ in range(2)]
    ours = EnsembleSACLoss(actor, critics, actor_q="min", temperature=Temperature(-3.0, form="log_alpha", init=0.7))
    theirs = SACLoss(
        actor,
        critics,
        num_qvalue_nets=2,
        loss_function="l2",
        target_entropy=-3.0,
        alpha_init=0.7,
        action_spec=actor.spec,
    )
    batch = random_transitions(16, 5, 3)
    torch.manual_seed(3)
    got = {"loss_qvalue": ours.qvalue_loss(batch)[0]}
    got["loss_actor"], info = ours.actor_loss(batch)
    got["loss_alpha"], _ = ours.alpha_loss(batch, log_prob=info["log_prob"])
    torch.manual_seed(3)
    qvalue = theirs.qvalue_v2_loss(batch.clone())[0]
    actor_loss, metadata = theirs.actor_loss(batch.clone())
    # Theirs averages |Q - y|^2 over the batch after summing over members, as ours does.
    torch.testing.assert_close(got["loss_qvalue"], qvalue.sum(0).mean() if qvalue.ndim else qvalue)
    torch.testing.assert_close(got["loss_actor"], actor_loss.mean())
    torch.testing.assert_close(got["loss_alpha"], theirs.alpha_loss(metadata["log_prob"]).mean())


def test_critics_that_are_sequences_of_modules() -> None:
    """A critic that is not one plain module gives the same numbers as the plain one."""
    torch.manual_seed(0)
    plain = make_qvalue_ensemble(5, 3, num_qvalue_nets=3, hidden_sizes=(16,))
    sequential = [
        TensorDictSequential(
            TensorDictModule(lambda o, a: torch.cat([o, a], -1), in_keys=["observation", "action"], out_keys=["x"]),
            TensorDictModule(critic.module.trunk, in_keys=["x"], out_keys=["h"]),
            TensorDictModule(critic.module.head, in_keys=["h"], out_keys=["state_action_value"]),
        )
        for critic in plain
    ]
    actor, batch = make_actor(5, 3), random_transitions(6, 5, 3)
    values = []
    for critics in (plain, sequential):
        torch.manual_seed(1)
        values.append(EnsembleSACLoss(actor, critics).qvalue_loss(batch)[0])
    torch.testing.assert_close(*values)


def test_probe_actor_finds_the_contextual_optimum() -> None:
    torch.manual_seed(0)
    loss = build(1, 1, sub_sample_len=2, temperature=Temperature(None, init=0.01))
    train(loss, probe_transitions(ContextualTargetEnv(), 512), 500)
    assert_optimal(loss)


def test_probe_critic_discounts_a_delayed_reward() -> None:
    torch.manual_seed(0)
    loss = build(1, 1, sub_sample_len=2, temperature=Temperature(None, init=1e-6))
    loss.make_value_estimator(gamma=0.5)
    data = probe_transitions(DelayedRewardEnv(), 64)
    train(loss, data, 400)
    assert_discounted(loss, data)


def test_a_shared_output_layer_stays_one_under_adam_and_gets_the_sum_of_the_gradients() -> None:
    loss, batch = build(shared_head=True, sub_sample_len=2), random_transitions(12, 5, 3)
    head = loss.qvalue_network_params["module", "head", "weight"]
    own = loss.qvalue_network_params["module", "trunk", "0", "0", "weight"]
    optim = torch.optim.Adam(loss.qvalue_network_params.parameters(), lr=0.1)
    for _ in range(3):
        optim.zero_grad()
        loss.qvalue_loss(batch)[0].backward()
        optim.step()
    assert all(torch.equal(head[0], member) for member in head)
    assert not torch.equal(own[0], own[1])
    one = head.detach()[0].clone().requires_grad_()
    trunk, inputs = loss.qvalue_network.module.trunk, torch.cat([batch["observation"], batch["action"]], -1)
    params = {k.removeprefix("module.trunk."): v for k, v in loss.qvalue_network_params.flatten_keys(".").items()}
    values = [
        torch.func.functional_call(trunk, {k: v[i] for k, v in params.items() if "head" not in k}, inputs) @ one.T
        for i in range(4)
    ]
    bias = loss.qvalue_network_params["module", "head", "bias"].detach()[0]
    loss.noise = RecordedNoise({"next_action": torch.zeros(12, 3), "target": torch.tensor([0, 2])})
    target = loss.target_value(batch)
    (torch.stack(values).squeeze(-1) + bias - target).square().sum(0).mean().backward()
    optim.zero_grad()
    loss.qvalue_loss(batch)[0].backward()
    torch.testing.assert_close(head.grad[2], one.grad)


def test_unequal_copies_of_a_shared_output_layer_are_refused() -> None:
    critics = make_qvalue_ensemble(5, 3, num_qvalue_nets=2, shared_head=True)
    critics[1].module.head.weight.data += 1.0
    with pytest.raises(O2OSpecError, match="output layer"):
        EnsembleSACLoss(make_actor(5, 3), critics)


def test_the_target_takes_the_best_of_several_actions() -> None:
    """With an entropy term it is the soft value that is compared, each action with its own."""
    loss, batch = build(num_target_actions=5, sub_sample_len=2, subset_replacement=True), random_transitions(12, 5, 3)
    noise, members = torch.randn(5, 12, 3), torch.tensor([3, 3])
    loss.noise = RecordedNoise({"next_action": noise, "target": members})
    single = build(sub_sample_len=2, subset_replacement=True)
    single.load_state_dict(loss.state_dict())
    each = []
    for one in noise:
        single.noise = RecordedNoise({"next_action": one, "target": members})
        each.append(single.target_value(batch))
    torch.testing.assert_close(loss.target_value(batch), torch.stack(each).amax(0))


def test_a_subset_with_replacement_repeats_members() -> None:
    noise = GeneratorNoise(torch.Generator().manual_seed(0))
    draws = torch.stack([noise.subset("target", 4, 2, torch.zeros(3), replacement=True) for _ in range(200)])
    assert 0.15 < (draws[:, 0] == draws[:, 1]).float().mean() < 0.35
    assert noise.subset("target", 4, 2, torch.zeros(3), per_row=True, replacement=True).shape == (2, 3)


def test_the_temperature_at_the_next_state_draws_its_own_actions() -> None:
    loss, batch = build(entropy_at="next_state"), random_transitions(12, 5, 3)
    loss.noise = RecordedNoise({"temperature_next_action": torch.zeros(1, 12, 3)})
    here = loss.alpha_loss(batch, log_prob=torch.full((12,), 100.0))[1]["entropy"]
    assert here == loss.alpha_loss(batch)[1]["entropy"]
    moved = batch.clone()
    moved["next", "observation"] += 1.0
    assert here != loss.alpha_loss(moved)[1]["entropy"]
