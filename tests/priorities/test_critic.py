# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
from __future__ import annotations

import copy
import re
from typing import Any

import pytest
import torch
import torch._inductor.config
from tensordict import TensorDict
from tensordict.nn import TensorDictModule
from torch import Tensor
from torchrl.data import Bounded, LazyTensorStorage, TensorDictReplayBuffer
from torchrl.modules import MLP, NormalParamExtractor, ProbabilisticActor, ValueOperator
from torchrl.modules import TanhNormal as UpstreamTanhNormal
from torchrl.objectives import REDQLoss, SACLoss, TD3Loss

from tests.priorities.parts import ACTION, OBSERVATION, ROWS, double, every_priority, make_loss, make_rows, make_score
from torchrl_o2o.data import PoolSampler
from torchrl_o2o.errors import O2OSpecError
from torchrl_o2o.functional.replay import resampling_log_prob
from torchrl_o2o.modules import (
    Temperature,
    make_actor,
    make_bottleneck,
    make_deterministic_actor,
    make_flow_network,
    make_gaussian_actor,
    make_latent_actor,
    make_one_step_actor,
    make_pixel_actor,
    make_pixel_encoder,
    make_qvalue_ensemble,
    make_value_network,
)
from torchrl_o2o.objectives import (
    ACALoss,
    AWACLoss,
    BCLoss,
    BestOfNLoss,
    CQLLoss,
    DrQV2Loss,
    EnsembleSACLoss,
    FQLLoss,
    GeneratorNoise,
    IQLLoss,
    PessimisticEnsembleLoss,
    PixelSACLoss,
    RecordedNoise,
    TD3BCLoss,
)
from torchrl_o2o.objectives.networks import call_network, flat_parameters
from torchrl_o2o.priorities import Advantage, AdvantageAligned, Sum, TDError

pytestmark = pytest.mark.filterwarnings("ignore:No target network updater")


@pytest.mark.parametrize("name", ["advantage", "advantage_std", "advantage_rank", "aligned"])
def test_a_constant_in_the_critics_changes_nothing(name: str) -> None:
    """Q + c for all members, actions and states: the same replay probabilities."""
    priority, rows = every_priority()[name], make_rows()
    double(priority)
    rows = rows.apply(lambda x: x.double() if x.is_floating_point() else x)
    probs = []
    for constant in (0.0, 1000.0):
        torch.manual_seed(7)
        for term in priority.terms if isinstance(priority, Sum) else (priority,):
            if isinstance(term, Advantage):
                for params in (term.loss.target_qvalue_network_params, term.loss.qvalue_network_params):
                    params["module", "head", "bias"].data += constant
        probs.append(resampling_log_prob(priority(rows), 0.3))
    torch.testing.assert_close(probs[1], probs[0], rtol=1e-8, atol=1e-8)


def naive_advantage(loss: EnsembleSACLoss, rows: TensorDict, noise: Tensor, members: Tensor, alpha: float) -> Tensor:
    """One member and one sample at a time."""
    with loss.actor_network_params.to_module(loss.actor_network):
        dist = loss.actor_network.get_dist(rows)

    def qvalue(action: Tensor) -> Tensor:
        values = []
        for member in members.tolist():
            with loss.target_qvalue_network_params[member].to_module(loss.qvalue_network):
                values.append(loss.qvalue_network(rows.copy().set("action", action))["state_action_value"].squeeze(-1))
        return torch.stack(values).amin(0)

    value = torch.zeros(len(rows))
    for sample in noise:
        action, log_prob = dist.rsample_and_log_prob(noise=sample)
        value += (qvalue(action) - alpha * log_prob) / len(noise)
    return (qvalue(rows["action"]) - value).detach()


@pytest.mark.parametrize("entropy", [False, True])
@pytest.mark.parametrize("chunk_size", [1, 50, 4096])
def test_advantage_is_the_naive_loop(entropy: bool, chunk_size: int) -> None:
    loss, rows = make_loss(), make_rows()
    noise, members = torch.randn(6, ROWS, ACTION), torch.tensor([3, 1])
    advantage = Advantage(
        loss, num_samples=6, entropy=entropy, shared_noise=False, antithetic=False, chunk_size=chunk_size
    )
    advantage.noise = RecordedNoise({"advantage_action": noise, "advantage": members})
    expected = naive_advantage(loss, rows, noise, members, 0.3 if entropy else 0.0)
    torch.testing.assert_close(advantage(rows), expected, rtol=1e-4, atol=1e-5)


def test_members_one_by_one_are_the_batched_product() -> None:
    loss, rows = make_loss().double(), make_rows().apply(lambda x: x.double() if x.is_floating_point() else x)
    got = Advantage(loss)._networks("online", None).qvalues({"observation": rows["observation"]}, rows["action"])
    params, inputs = flat_parameters(loss.qvalue_network_params.data), rows.select("observation", "action")

    def member(each: dict[str, Tensor]) -> Tensor:
        return call_network(loss.qvalue_network, each, dict(inputs.items()), "state_action_value").squeeze(-1)

    expected = torch.vmap(member)(params)
    torch.testing.assert_close(got, expected, rtol=1e-12, atol=0)


def test_shared_antithetic_noise() -> None:
    loss, rows = make_loss(), make_rows()
    half, members = torch.randn(2, 1, ACTION), torch.tensor([0, 2])
    advantage = Advantage(loss, num_samples=3)
    advantage.noise = RecordedNoise({"advantage_action": half, "advantage": members})
    noise = torch.cat([half, -half])[:3].expand(3, ROWS, ACTION)
    torch.testing.assert_close(advantage(rows), naive_advantage(loss, rows, noise, members, 0.0), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("which", ["target", "online"])
def test_which_critics_decide(which: Any) -> None:
    loss, rows = make_loss(), make_rows()
    advantage = Advantage(loss, critics=which, sub_sample_len=4)
    advantage.noise = GeneratorNoise(torch.Generator().manual_seed(0))
    before = advantage(rows)
    other = loss.qvalue_network_params if which == "target" else loss.target_qvalue_network_params
    other["module", "head", "weight"].data.mul_(3.0)
    advantage.noise = GeneratorNoise(torch.Generator().manual_seed(0))
    assert torch.equal(advantage(rows), before)
    own = loss.target_qvalue_network_params if which == "target" else loss.qvalue_network_params
    own["module", "head", "weight"].data.mul_(3.0)
    advantage.noise = GeneratorNoise(torch.Generator().manual_seed(0))
    torch.testing.assert_close(advantage(rows), 3.0 * before, rtol=1e-3, atol=1e-5)


def test_normalized_advantages_do_not_depend_on_the_rewards_scale() -> None:
    for normalize in ("std", "rank"):
        scores = []
        for factor in (1.0, 100.0):
            loss, rows = make_loss(), make_rows()
            for name in ("weight", "bias"):
                loss.target_qvalue_network_params["module", "head", name].data.mul_(factor)
            advantage = Advantage(loss, normalize=normalize)  # type: ignore[arg-type]
            advantage.noise = GeneratorNoise(torch.Generator().manual_seed(0))
            scores.append(advantage(rows))
        torch.testing.assert_close(scores[1], scores[0], rtol=1e-3, atol=1e-4)


def test_td_error_forms() -> None:
    """With one sample and all members drawn once, the loss's own target and error."""
    loss, rows = make_loss(entropy_backup=True), make_rows()
    noise, members = torch.randn(ROWS, ACTION), torch.tensor([2, 0])
    loss.noise = RecordedNoise({"next_action": noise, "target": members})
    qvalue = loss.qvalue_loss(rows)[1]["qvalue"].mean(0)
    expected = loss.target_value(rows) - qvalue
    values = {}
    for form in ("signed", "absolute"):
        error = TDError(
            loss,
            form=form,  # type: ignore[arg-type]
            num_samples=1,
            entropy=True,
            shared_noise=False,
            antithetic=False,
        )
        error.noise = RecordedNoise({"td_action": noise.unsqueeze(0), "td": members})
        values[form] = error(rows)
    torch.testing.assert_close(values["signed"], expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(values["absolute"], (expected.abs() + 1e-6).log(), rtol=1e-3, atol=1e-4)


def test_absolute_td_error_is_proportional_prioritization() -> None:
    error, rows = TDError(make_loss()), make_rows()
    error.noise = GeneratorNoise(torch.Generator().manual_seed(0))
    log_priority = error(rows)
    error.noise = GeneratorNoise(torch.Generator().manual_seed(0))
    powers = (error.td_error(rows).abs() + 1e-6) ** 0.6
    torch.testing.assert_close(resampling_log_prob(log_priority, 0.6).exp(), powers / powers.sum(), rtol=1e-4, atol=0)


@pytest.mark.slow
@pytest.mark.parametrize("build", [Advantage, TDError])
def test_compiled_equals_eager(build: Any) -> None:
    priority, rows, scores = build(make_loss()), make_rows(), []
    for compiled in (False, True):
        if compiled:
            priority.compile()
        priority.noise = GeneratorNoise(torch.Generator().manual_seed(0))
        scores.append(priority(rows))
    torch.testing.assert_close(*scores, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("build", [Advantage, TDError])
def test_compiled_scores_take_pools_of_many_sizes(build: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """More than torch's limit of eight, and of several scores. Traced, but without the time of generating code."""
    compile_ = torch.compile
    monkeypatch.setattr(torch, "compile", lambda function, **how: compile_(function, backend="eager", **how))
    for _ in range(2):
        score = build(make_loss())
        score.compile()
        assert all(len(score(make_rows()[:size])) == size for size in range(3, 13))


@pytest.mark.parametrize(
    ("build", "settings", "message"),
    [
        (Advantage, {"num_samples": 0}, "got num_samples=0"),
        (Advantage, {"sub_sample_len": 5}, r"got sub_sample_len=5, expected 1\.\.4"),
        (Advantage, {"critics": "both"}, "got critics='both'"),
        (Advantage, {"normalize": "max"}, "got normalize='max'"),
        (Advantage, {"chunk_size": 0}, "chunk_size=0"),
        (TDError, {"form": "squared"}, "got form='squared'"),
    ],
)
def test_options_out_of_range(build: Any, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(O2OSpecError, match=message):
        build(make_loss(), **settings)


ROOMY: dict[str, Any] = {"hidden_sizes": (16,)}


def ours(kind: str) -> Any:
    """Losses of this package with an actor and critics, temperature or none, stochastic or not."""
    torch.manual_seed(0)
    critics = make_qvalue_ensemble(OBSERVATION, ACTION, num_qvalue_nets=2, **ROOMY)
    if kind == "td3_bc":
        return TD3BCLoss(make_deterministic_actor(OBSERVATION, ACTION, **ROOMY), critics)
    if kind in ("awac", "iql"):
        actor = make_gaussian_actor(OBSERVATION, ACTION, **ROOMY)
        value = make_value_network(OBSERVATION, **ROOMY)
        return AWACLoss(actor, critics, q_max=0.05) if kind == "awac" else IQLLoss(actor, critics, value)
    actor = make_actor(OBSERVATION, ACTION, **ROOMY)
    return CQLLoss(actor, critics) if kind == "cql" else PessimisticEnsembleLoss(actor, critics)


@pytest.mark.parametrize("kind", ["awac", "iql", "td3_bc", "cql", "off2on"])
def test_every_loss_with_actor_and_critics_is_scored(kind: str) -> None:
    """Q(s, a) - V(s) of two critics, worked out on the modules themselves."""
    loss, rows = ours(kind), make_rows()
    noise = torch.randn(3, ROWS, ACTION)
    score = Advantage(loss, num_samples=3, shared_noise=False, antithetic=False, chunk_size=20)
    score.noise = RecordedNoise({"advantage_action": noise, "advantage": torch.tensor([0, 1])})

    def qvalue(action: Tensor) -> Tensor:
        values = []
        for member in range(2):
            with loss.target_qvalue_network_params[member].to_module(loss.qvalue_network):
                values.append(loss.qvalue_network(rows.copy().set("action", action))["state_action_value"].squeeze(-1))
        return torch.stack(values).amin(0).clamp(max=0.05 if kind == "awac" else 1e9)

    with loss.actor_network_params.to_module(loss.actor_network):
        if kind == "td3_bc":
            sampled = [loss.actor_network(rows.copy())["action"]]
        else:
            dist = loss.actor_network.get_dist(rows)
            sampled = [dist.rsample_and_log_prob(noise=sample)[0] for sample in noise]
    expected = qvalue(rows["action"]) - torch.stack([qvalue(action) for action in sampled]).mean(0)
    torch.testing.assert_close(score(rows), expected.detach(), rtol=1e-4, atol=1e-6)
    assert TDError(loss)(rows).isfinite().all()


def upstream(kind: str, members: int) -> tuple[Any, EnsembleSACLoss]:
    """TorchRL's loss, and ours on copies of the same networks."""
    torch.manual_seed(0)
    actor = make_actor(OBSERVATION, ACTION, **ROOMY)
    critics = make_qvalue_ensemble(OBSERVATION, ACTION, num_qvalue_nets=members, **ROOMY)
    temperature = Temperature(-1.5, init=0.3)
    same = EnsembleSACLoss(copy.deepcopy(actor), copy.deepcopy(critics), sub_sample_len=2, temperature=temperature)
    if kind == "sac":
        loss: Any = SACLoss(actor, critics, num_qvalue_nets=members, alpha_init=0.3)
    else:
        loss = REDQLoss(actor, critics, num_qvalue_nets=members, sub_sample_len=2, alpha_init=0.3)
    loss.make_value_estimator(gamma=0.9)
    same.make_value_estimator(gamma=0.9)
    for source in (loss, same):  # targets that differ from what they follow
        source.target_qvalue_network_params["module", "head", "bias"].data.add_(torch.arange(float(members))[:, None])
    return loss, same


@pytest.mark.parametrize(("kind", "members"), [("sac", 2), ("redq", 4)])
@pytest.mark.parametrize("entropy", [False, True])
@pytest.mark.parametrize("build", [Advantage, TDError])
def test_torchrls_losses_are_scored_as_ours(kind: str, members: int, entropy: bool, build: Any) -> None:
    scores, rows = [], make_rows()
    for loss in upstream(kind, members):
        score = build(loss, entropy=entropy)
        assert score.sub_sample_len == 2
        score.noise = GeneratorNoise(torch.Generator().manual_seed(0))
        scores.append(score(rows))
    torch.testing.assert_close(scores[0], scores[1], rtol=1e-6, atol=1e-7)


def torchrl_networks() -> tuple[ProbabilisticActor, ValueOperator]:
    """An actor and a critic as TorchRL's documentation builds them, without anything of this package."""
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(OBSERVATION, 2 * ACTION), NormalParamExtractor())
    module = TensorDictModule(net, in_keys=["observation"], out_keys=["loc", "scale"])
    spec = Bounded(-torch.ones(ACTION), torch.ones(ACTION), (ACTION,))
    actor = ProbabilisticActor(
        module, in_keys=["loc", "scale"], spec=spec, distribution_class=UpstreamTanhNormal, return_log_prob=True
    )
    return actor, ValueOperator(MLP(in_features=OBSERVATION + ACTION, out_features=1), ["observation", "action"])


@pytest.mark.parametrize("build", [SACLoss, REDQLoss])
def test_torchrls_own_networks(build: Any) -> None:
    """A(s, a) and the TD error by hand: one member of each target, one action, tanh(loc + scale * noise)."""
    loss, rows = build(*torchrl_networks(), num_qvalue_nets=3), make_rows()
    loss.make_value_estimator(gamma=0.9)
    noise, member = torch.randn(1, ROWS, ACTION), torch.tensor([1])
    settings = {"num_samples": 1, "sub_sample_len": 1, "shared_noise": False, "antithetic": False}

    def qvalue(params: Any, state: Tensor, action: Tensor) -> Tensor:
        with params.to_module(loss.qvalue_network):
            return loss.qvalue_network(TensorDict({"observation": state, "action": action}, [ROWS]))[
                "state_action_value"
            ].squeeze(-1)

    def policy(state: Tensor) -> Tensor:
        with loss.actor_network_params.to_module(loss.actor_network):
            out = loss.actor_network[0](TensorDict({"observation": state}, [ROWS]))
        return (out["loc"] + out["scale"] * noise[0]).tanh()

    target = loss.target_qvalue_network_params[1]
    now, then = rows["observation"], rows["next", "observation"]
    advantage = Advantage(loss, **settings)
    advantage.noise = RecordedNoise({"advantage": member, "advantage_action": noise})
    expected = qvalue(target, now, rows["action"]) - qvalue(target, now, policy(now))
    torch.testing.assert_close(advantage(rows), expected.detach(), rtol=1e-4, atol=1e-6)

    error = TDError(loss, form="signed", **settings)
    error.noise = RecordedNoise({"td": member, "td_action": noise})
    bootstrap = qvalue(target, then, policy(then)) * ~rows["next", "terminated"].squeeze(-1)
    online = torch.stack([qvalue(loss.qvalue_network_params[i], now, rows["action"]) for i in range(3)]).mean(0)
    expected = rows["next", "reward"].squeeze(-1) + 0.9 * bootstrap - online
    torch.testing.assert_close(error(rows), expected.detach(), rtol=1e-4, atol=1e-6)


def test_a3rls_sampler_serves_torchrls_sac() -> None:
    loss, rows = upstream("sac", 2)[0], make_rows().exclude("is_offline")
    storage = LazyTensorStorage(ROWS)
    storage.set(torch.arange(ROWS), rows)
    sampler = PoolSampler(AdvantageAligned(Advantage(loss), make_score()), ROWS // 2, pool_size=ROWS)
    batch = TensorDictReplayBuffer(storage=storage, sampler=sampler, batch_size=32).sample()
    assert batch["priority_weight"].isfinite().all()
    assert "advantage_q50" in sampler.metrics()
    assert loss(batch)["loss_qvalue"].isfinite()


def test_n_step_rows_are_discounted_by_gamma_to_the_n() -> None:
    loss, rows = make_loss(), make_rows()
    steps = torch.arange(ROWS) % 3 + 1
    errors = []
    for batch in (rows, rows.copy().set("steps_to_next_obs", steps)):
        score = TDError(loss, form="signed")
        score.noise = GeneratorNoise(torch.Generator().manual_seed(0))
        errors.append(score(batch))
    reward = rows["next", "reward"].squeeze(-1)
    with torch.no_grad():
        online = loss.qvalue_loss(rows)[1]["qvalue"].mean(0)
    bootstrap = (errors[0] - reward + online) / 0.99
    torch.testing.assert_close(errors[1], reward + 0.99**steps * bootstrap - online, rtol=1e-4, atol=1e-5)


def behind_something() -> list[Any]:
    """Losses whose networks read what the losses make themselves: noise, a latent vector."""
    critics = make_qvalue_ensemble(3, 2, num_qvalue_nets=2, **ROOMY)
    flow = make_flow_network(3, 2, **ROOMY)
    encoder = make_pixel_encoder((9, 16, 16), features=(8, 8), strides=(2, 2), latent_dim=10)
    heads = make_qvalue_ensemble(10, 2, num_qvalue_nets=2, in_keys=("latent", "action"), **ROOMY)
    features = make_pixel_encoder((9, 16, 16), features=(8,), strides=(2,), latent_dim=None, out_key="features")
    width = features.module.out_features
    latent_actor = make_latent_actor(width, 2, latent_dim=10, **ROOMY)
    return [
        DrQV2Loss(features, latent_actor, make_bottleneck(width, 10), heads),
        FQLLoss(make_one_step_actor(3, 2, **ROOMY), flow, critics),
        BestOfNLoss(flow, critics),
        PixelSACLoss(make_pixel_actor(encoder, 2, **ROOMY), encoder, heads),
    ]


@pytest.mark.parametrize("score", [Advantage, TDError])
def test_what_does_not_fit_is_refused_by_name(score: Any) -> None:
    actor, critics = make_actor(3, 2, **ROOMY), make_qvalue_ensemble(3, 2, **ROOMY)
    value = make_value_network(3, **ROOMY)
    deterministic = make_deterministic_actor(3, 2, **ROOMY)
    cases = {
        "got BCLoss, expected a loss of this package with an actor and critics": BCLoss(actor),
        "got TD3Loss, expected": TD3Loss(
            deterministic, critics[:2], num_qvalue_nets=2, action_spec=deterministic.spec["action"]
        ),
        "got ACALoss, expected a loss whose value comes from its critics alone": ACALoss(
            actor, critics, make_actor(3, 2, **ROOMY)
        ),
        r"got SACLoss with a value_network": SACLoss(actor, critics[:2], value),
    }
    for message, loss in cases.items():
        with pytest.raises(O2OSpecError, match=re.escape(message)):
            score(loss)
    for loss in behind_something():
        with pytest.raises(O2OSpecError, match=f"got {type(loss).__name__}, whose actor and critics read"):
            score(loss)
    with pytest.raises(O2OSpecError, match="got entropy=True with TD3BCLoss, expected a loss with a temperature"):
        score(ours("td3_bc"), entropy=True)


def test_without_a_compiler_compile_says_what_to_do() -> None:
    nowhere = torch._inductor.config.patch({"cpp.cxx": ("no-such-compiler",)})
    with nowhere, pytest.raises(O2OSpecError, match=r"C\+\+ compiler.*CXX"):
        Advantage(make_loss()).compile()


@pytest.mark.parametrize("score", [Advantage, TDError])
def test_an_entry_that_is_missing_is_named(score: Any) -> None:
    """It was an AttributeError of NoneType."""
    rate = score(ours("cql"))
    outcome = ["next", ("next", "observation"), ("next", "reward"), ("next", "terminated")]
    for key in ["observation", "action", *(outcome if score is TDError else [])]:
        name = key if isinstance(key, str) else key[1]
        with pytest.raises(O2OSpecError, match=f"got rows with .*, expected '{name}', which {score.__name__} reads"):
            rate(make_rows().exclude(key))
