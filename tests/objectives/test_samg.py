# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""SAMG on this package's losses and on torchrl's own, unmodified."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from tensordict import TensorDict
from tensordict.nn import TensorDictModule, TensorDictSequential
from torch import Tensor, nn
from torchrl.data import Bounded
from torchrl.modules import MLP, NormalParamExtractor, ProbabilisticActor, ValueOperator
from torchrl.modules import TanhNormal as UpstreamTanhNormal
from torchrl.objectives import CQLLoss as UpstreamCQLLoss
from torchrl.objectives import DDPGLoss, REDQLoss, SACLoss, SoftUpdate, TD3Loss
from torchrl.objectives import IQLLoss as UpstreamIQLLoss
from torchrl.objectives.common import LossModule

from torchrl_o2o.errors import O2ODataError, O2OSpecError
from torchrl_o2o.modules import (
    ConservativePenalty,
    make_action_vae,
    make_actor,
    make_deterministic_actor,
    make_flow_network,
    make_gaussian_actor,
    make_one_step_actor,
    make_pixel_actor,
    make_pixel_encoder,
    make_qvalue_ensemble,
    make_value_network,
)
from torchrl_o2o.objectives import (
    ACALoss,
    AWACLoss,
    BEARLoss,
    BestOfNLoss,
    BRACLoss,
    CalQLLoss,
    CQLLoss,
    EnsembleSACLoss,
    FQLLoss,
    FrozenCritic,
    GeneratorNoise,
    IQLLoss,
    PessimisticEnsembleLoss,
    PixelSACLoss,
    ReBRACLoss,
    SAMGEstimator,
)
from torchrl_o2o.testing import random_transitions

pytestmark = pytest.mark.filterwarnings("ignore:No target network updater")

GAMMA = 0.9


def critics(number: int = 2, keys: tuple[Any, Any] = ("observation", "action")) -> list[ValueOperator]:
    return make_qvalue_ensemble(5, 3, num_qvalue_nets=number, layer_norm=False, hidden_sizes=(16, 16), in_keys=keys)


def actor(**names: Any) -> Any:
    return make_actor(5, 3, hidden_sizes=(16, 16), **names)


def awac() -> AWACLoss:
    return AWACLoss(make_gaussian_actor(5, 3, hidden_sizes=(16, 16)), critics(), q_max=0.1)


def iql() -> IQLLoss:
    return IQLLoss(
        make_gaussian_actor(5, 3, hidden_sizes=(16, 16)), critics(), make_value_network(5, hidden_sizes=(16, 16))
    )


def cql(kind: type[CQLLoss] = CQLLoss, **settings: Any) -> CQLLoss:
    return kind(actor(), critics(), penalty=ConservativePenalty(num_actions=4), **settings)


def upstream_networks() -> tuple[ProbabilisticActor, ValueOperator, ValueOperator]:
    body = nn.Sequential(MLP(in_features=5, out_features=6, num_cells=[16]), NormalParamExtractor())
    module = TensorDictModule(body, in_keys=["observation"], out_keys=["loc", "scale"])
    policy = ProbabilisticActor(
        module,
        in_keys=["loc", "scale"],
        spec=Bounded(-1, 1, (3,)),
        distribution_class=UpstreamTanhNormal,
        return_log_prob=True,
    )
    qvalue = ValueOperator(MLP(in_features=8, out_features=1, num_cells=[16]), in_keys=["observation", "action"])
    return policy, qvalue, ValueOperator(MLP(in_features=5, out_features=1, num_cells=[16]), in_keys=["observation"])


def upstream_sac() -> SACLoss:
    policy, qvalue, _ = upstream_networks()
    return SACLoss(policy, qvalue, num_qvalue_nets=2, loss_function="l2", alpha_init=0.5)


def upstream_iql() -> UpstreamIQLLoss:
    return UpstreamIQLLoss(*upstream_networks(), num_qvalue_nets=2, loss_function="l2")


def redq() -> REDQLoss:
    policy, qvalue, _ = upstream_networks()
    return REDQLoss(policy, qvalue, num_qvalue_nets=4, sub_sample_len=2, loss_function="l2")


OURS: dict[str, Callable[[], LossModule]] = {
    "awac": awac,
    "iql": iql,
    "cql": cql,
    "cql, entropy and best of n": lambda: cql(entropy_backup=True, max_target_backup=True),
    "cal_ql": lambda: cql(CalQLLoss),
    "sac": lambda: EnsembleSACLoss(actor(), critics(3), sub_sample_len=2),
    "sac without entropy": lambda: EnsembleSACLoss(actor(), critics(3), entropy_backup=False),
}


def fql(**settings: Any) -> FQLLoss:
    sizes: dict[str, Any] = {"hidden_sizes": (16, 16)}
    return FQLLoss(make_one_step_actor(5, 3, **sizes), make_flow_network(5, 3, **sizes), critics(), **settings)


#: Losses whose targets take something else than a minimum, or subtract a penalty on a'.
OTHERS: dict[str, Callable[[], LossModule]] = {
    "flow, mean": fql,
    "flow, minimum": lambda: fql(aggregation="min"),
    "best of n, mean": lambda: BestOfNLoss(make_flow_network(5, 3, hidden_sizes=(16,)), critics(), num_samples=3),
    "sac, mean": lambda: EnsembleSACLoss(actor(), critics(3), target_q="mean"),
    "best of n, bear": lambda: BEARLoss(actor(), critics(), make_action_vae(5, 3, hidden_sizes=(16,))),
    "brac": lambda: BRACLoss(actor(), critics(), actor(), soft_min_weight=0.75, value_penalty=True),
    "rebrac": lambda: ReBRACLoss(make_deterministic_actor(5, 3, hidden_sizes=(16,)), critics(), critic_bc_coef=1.0),
}
UPSTREAM: dict[str, Callable[[], LossModule]] = {
    "torchrl sac": upstream_sac,
    "torchrl iql": upstream_iql,
    "torchrl redq": redq,
}


def batch(seed: int = 0) -> TensorDict:
    data = random_transitions(24, 5, 3, generator=torch.Generator().manual_seed(seed))
    return data.set("mc_return", data["next", "reward"].clone())


def trust(data: TensorDict, p: float | Tensor) -> TensorDict:
    p = torch.as_tensor(p).expand(*data.batch_size, 1).clone()
    return data.clone().set("p_off", p).set(("next", "p_off"), p)


def samg(loss: LossModule, **settings: Any) -> SAMGEstimator:
    estimator = SAMGEstimator.from_loss(
        loss, gamma=GAMMA, noise=GeneratorNoise(torch.Generator().manual_seed(5)), **settings
    )
    loss.make_value_estimator(estimator)
    return estimator


def total(out: TensorDict) -> Tensor:
    return sum(value for key, value in out.items() if key.startswith("loss_"))  # type: ignore[return-value]


def train(loss: LossModule, data: TensorDict, updates: int = 5) -> dict[str, Tensor]:
    updater = SoftUpdate(loss, tau=0.1) if any(n.startswith("target_q") for n, _ in loss.named_children()) else None
    optim = torch.optim.Adam([value for value in loss.parameters() if value.requires_grad], lr=1e-2)
    torch.manual_seed(1)
    for _ in range(updates):
        out = loss(data.clone())
        optim.zero_grad()
        total(out).backward()
        optim.step()
        if updater is not None:
            updater.step()
    return {key: value.clone() for key, value in loss.state_dict().items() if not key.startswith("_value_estimator")}


@pytest.mark.parametrize("name", [*OURS, *UPSTREAM])
def test_no_confidence_is_the_base_algorithm_bit_for_bit(name: str) -> None:
    torch.manual_seed(0)
    base = {**OURS, **UPSTREAM}[name]()
    guided = copy.deepcopy(base)
    base.make_value_estimator(gamma=GAMMA)
    samg(guided)
    expected, got = train(base, batch()), train(guided, trust(batch(), 0.0))
    assert expected.keys() == got.keys()
    for key, value in expected.items():
        assert torch.equal(got[key], value), key


def targets(loss: Any, data: TensorDict) -> Tensor:
    torch.manual_seed(2)
    if hasattr(loss, "target_value"):
        return loss.target_value(data)
    if isinstance(loss, UpstreamIQLLoss):
        rows = data.select("next", "observation", "action")
        return loss.value_estimator.value_estimate(rows, target_params=loss.target_value_network_params).squeeze(-1)
    if isinstance(loss, SACLoss):
        return loss._compute_target_v2(data)
    loss.reduction = "none"
    return loss(data.clone())["target_value"]


def drift(loss: LossModule) -> None:
    """Move every live and target critic; the frozen one must not follow."""
    with torch.no_grad():
        for name in ("qvalue_network_params", "target_qvalue_network_params", "value_network_params"):
            if getattr(loss, name, None) is not None:
                for value in getattr(loss, name).values(True, True):
                    value.data.add_(0.3 * torch.randn_like(value))


@pytest.mark.parametrize("name", [*OURS, *OTHERS])
def test_full_confidence_bootstraps_on_the_frozen_critic_alone(name: str) -> None:
    torch.manual_seed(0)
    loss: Any = {**OURS, **OTHERS}[name]()
    SoftUpdate(loss, tau=0.5)  # makes targets equal to the critics
    if name == "sac":
        loss.sub_sample_len = loss.num_qvalue_nets
    samg(loss)
    data, untrusted = (trust(batch(), p) for p in (1.0, 0.0))
    if name == "rebrac":  # the action recorded in the next step
        for rows in (data, untrusted):
            rows["next", "action"] = rows["action"].roll(1, 0)
    before = targets(loss, data)
    base = copy.deepcopy(loss)
    base.make_value_estimator(gamma=GAMMA)
    torch.testing.assert_close(before, targets(base, data))  # at the hand-over the two critics are one
    drift(loss)
    if name.startswith(("cql,", "best of n")):  # which of the n next actions is best is the live critic's to say
        assert not torch.equal(targets(loss, untrusted), before)
    else:
        torch.testing.assert_close(targets(loss, data), before)
    assert not torch.allclose(targets(loss, untrusted), before)


@pytest.mark.parametrize("name", [*OURS, *UPSTREAM])
def test_target_is_linear_in_the_confidence_and_ends_at_terminals(name: str) -> None:
    torch.manual_seed(0)
    loss = {**OURS, **UPSTREAM}[name]()
    estimator = samg(loss)
    drift(loss)

    def target(p: float | Tensor) -> Tensor:
        if estimator.next_action is not None:  # the second action is the same at every call
            estimator.next_action.noise = GeneratorNoise(torch.Generator().manual_seed(5))
        return targets(loss, trust(batch(), p))

    none, full = target(0.0), target(1.0)
    p = torch.rand(24, 1)
    torch.testing.assert_close(target(p), (1 - p.squeeze(-1)) * none + p.squeeze(-1) * full)
    terminated = batch()["next", "terminated"].squeeze(-1)
    reward = batch()["next", "reward"].squeeze(-1)
    torch.testing.assert_close(full[terminated], reward[terminated])
    assert (full[~terminated] != none[~terminated]).all()


def test_entropy_is_subtracted_once_outside_the_mix() -> None:
    """y = r + gamma (1 - d) [(1 - p) Q + p Q_off - alpha log pi], with one a'."""
    torch.manual_seed(0)
    loss = EnsembleSACLoss(actor(), critics(2))
    estimator = samg(loss)
    drift(loss)
    seen = {}
    original = estimator.value_estimate
    loss.value_estimator.value_estimate = lambda data, **kw: seen.update(next=data["next"].clone()) or original(data)  # type: ignore[method-assign, func-returns-value]
    p = torch.rand(24, 1)
    y = targets(loss, trust(batch(), p))
    following = seen["next"]
    with torch.no_grad():
        entropy_term = loss.temperature.alpha * following["_log_prob"]
    frozen = estimator.critic(following)
    assert not torch.allclose(frozen, following["state_action_value"])
    mixed = (1 - p) * following["state_action_value"] + p * frozen - entropy_term
    alive = 1.0 - following["terminated"].float()
    torch.testing.assert_close(y, (following["reward"] + GAMMA * alive * mixed).squeeze(-1))


def test_second_action_for_torchrl_sac_is_the_policys() -> None:
    torch.manual_seed(0)
    loss = upstream_sac()
    estimator = samg(loss)
    following = batch()["next"]
    drawn, entropy_term = estimator.next_action(following)  # type: ignore[misc]
    assert "action" not in following
    dist = loss.actor_network.get_dist(following.clone())
    expected = 0.5 * dist.log_prob(drawn["action"]).unsqueeze(-1)
    torch.testing.assert_close(entropy_term, expected, rtol=1e-4, atol=1e-4)
    with torch.no_grad():
        for value in loss.actor_network_params.values(True, True):
            value.data.add_(1.0)
    other, _ = estimator.next_action(following)  # type: ignore[misc]
    assert not torch.allclose(other["action"], drawn["action"], atol=1e-2)  # it follows the policy


def test_torchrl_sac_mean_target_is_ours() -> None:
    """Over many draws, the target with a second action has the mean of the target with one."""
    torch.manual_seed(0)
    loss = upstream_sac()
    samg(loss)
    SoftUpdate(loss, tau=0.5)
    data = trust(batch(), 0.5)
    repeated = data.expand(4000, 24).reshape(-1)
    guided = loss._compute_target_v2(repeated).reshape(4000, 24)
    base = copy.deepcopy(loss)
    base.make_value_estimator(gamma=GAMMA)
    plain = base._compute_target_v2(repeated).reshape(4000, 24)
    spread = plain.std(0) / 4000**0.5
    assert ((guided.mean(0) - plain.mean(0)).abs() <= 6 * spread + 1e-6).all()


@pytest.mark.parametrize("name", [*OURS, *UPSTREAM])
def test_frozen_critic_is_saved_and_never_trained(name: str) -> None:
    torch.manual_seed(0)
    build = {**OURS, **UPSTREAM}[name]
    loss = build()
    estimator = samg(loss)
    frozen = {key: value.clone() for key, value in estimator.state_dict().items()}
    assert any(key.startswith("critic.params") for key in frozen)
    parameters = {id(value) for value in loss.parameters()}
    assert not parameters & {id(value) for value in estimator.critic.state_dict().values()}
    train(loss, trust(batch(), 0.7), updates=2)
    for key, value in estimator.state_dict().items():
        assert torch.equal(value, frozen[key]), key
    torch.manual_seed(3)
    other = build()
    samg(other)
    other(trust(batch(), 0.7))  # torchrl's losses register a buffer at first use
    other.load_state_dict(loss.state_dict(), strict=True)
    if isinstance(other, tuple(type(OURS[key]()) for key in OURS)):
        assert torch.equal(targets(other, trust(batch(), 0.7)), targets(loss, trust(batch(), 0.7)))


def test_frozen_critic_survives_casts_and_copies() -> None:
    torch.manual_seed(0)
    loss = cql()
    samg(loss)
    data = trust(batch(), 0.7)
    loss.noise = GeneratorNoise()
    other = copy.deepcopy(loss)
    train(other, data, updates=2)
    assert torch.equal(other.value_estimator.critic(data), loss.value_estimator.critic(data))
    double = loss.double()
    wide = data.apply(lambda x: x.double() if x.is_floating_point() else x)
    assert targets(double, wide).dtype == torch.float64


def test_a_frozen_critic_has_no_dropout():
    critics = make_qvalue_ensemble(5, 2, num_qvalue_nets=2, hidden_sizes=(16,), dropout=0.5)
    frozen = FrozenCritic.from_loss(EnsembleSACLoss(make_actor(5, 2, hidden_sizes=(16,)), critics))
    rows = random_transitions(8, 5, 2)
    assert torch.equal(frozen(rows), frozen(rows))
    with pytest.raises(O2OSpecError, match="expected 'action', which FrozenCritic reads"):
        frozen(rows.exclude("action"))


def test_frozen_sources() -> None:
    torch.manual_seed(0)
    loss = EnsembleSACLoss(actor(), critics(4), sub_sample_len=2)
    SoftUpdate(loss, tau=0.5)
    rows = batch()
    online = FrozenCritic.from_loss(loss)
    assert next(iter(online.params.values(True, True))).shape[0] == 2  # as many as a target takes the minimum of
    with torch.no_grad():
        for value in loss.target_qvalue_network_params.values(True, True):
            value.add_(0.5)
    assert torch.equal(online(rows), FrozenCritic.from_loss(loss)(rows))
    assert not torch.equal(online(rows), FrozenCritic.from_loss(loss, source="target")(rows))
    assert FrozenCritic.from_loss(iql()).kind == "value"
    assert FrozenCritic.from_loss(iql(), kind="qvalue").kind == "qvalue"
    assert float(FrozenCritic.from_loss(awac())(rows).max()) <= 0.1 + 1e-6
    with pytest.raises(O2OSpecError, match="got a EnsembleSACLoss, expected a loss with a value_network"):
        FrozenCritic.from_loss(loss, kind="value")
    with pytest.raises(O2OSpecError, match="got source='both'"):
        FrozenCritic.from_loss(loss, source="both")  # type: ignore[arg-type]


def test_frozen_critic_of_a_sequential_template() -> None:
    """Critics that are not one plain module are evaluated through a tensordict."""
    torch.manual_seed(0)
    plain = critics(1)[0]
    sequence = TensorDictSequential(plain)
    params = TensorDict.from_module(plain).data
    rows = batch()
    expected = plain(rows.clone())["state_action_value"]
    for network, stack in ((plain, params), (sequence, TensorDict.from_module(sequence).data)):
        frozen = FrozenCritic(network, stack.unsqueeze(0), out_key="state_action_value")
        torch.testing.assert_close(frozen(rows), expected)


def test_guidance_ends() -> None:
    torch.manual_seed(0)
    loss = awac()
    estimator = samg(loss, guidance="linear", cutoff=100)
    drift(loss)
    none, full = targets(loss, trust(batch(), 0.0)), targets(loss, trust(batch(), 1.0))
    estimator.set_step(25)
    torch.testing.assert_close(targets(loss, trust(batch(), 1.0)), 0.25 * none + 0.75 * full)
    restored = awac()
    samg(restored, guidance="linear", cutoff=100)
    restored.load_state_dict(loss.state_dict())
    assert float(restored.value_estimator.weight) == 0.75
    estimator.set_step(100)
    assert torch.equal(targets(loss, trust(batch(), 1.0)), none)
    assert torch.equal(targets(loss, batch()), none)  # not even p is needed any more
    loss.load_state_dict(restored.state_dict())  # of before the end: the guidance is there again
    torch.testing.assert_close(targets(loss, trust(batch(), 1.0)), 0.25 * none + 0.75 * full)
    estimator.set_step(99)
    assert not torch.equal(targets(loss, trust(batch(), 1.0)), none)


def test_nested_keys() -> None:
    torch.manual_seed(0)
    keys = (("agent", "state"), ("agent", "action"))
    nested = CQLLoss(actor(observation_key=keys[0], action_key=keys[1]), critics(keys=keys))
    nested.set_keys(action=keys[1])
    data = random_transitions(24, 5, 3, observation_key=keys[0], action_key=keys[1])
    estimator = samg(nested, confidence_key=("agent", "p"))
    drift(nested)
    data.set(("agent", "p"), torch.ones(24, 1))
    full = targets(nested, data)
    data.set(("agent", "p"), torch.zeros(24, 1))
    assert not torch.allclose(targets(nested, data), full)
    assert estimator.confidence(data).sum() == 0


def test_what_is_missing_is_named() -> None:
    loss = awac()
    samg(loss)
    with pytest.raises(O2ODataError, match=r"got a batch without 'p_off', .*; store it with every transition"):
        loss.target_value(batch())
    estimator = SAMGEstimator(FrozenCritic.from_loss(upstream_sac()))
    plain = upstream_sac()
    plain.make_value_estimator(estimator)
    with pytest.raises(O2OSpecError, match="got a batch without 'state_action_value' under 'next'"):
        plain(trust(batch(), 0.5))
    with pytest.raises(O2OSpecError, match="got cutoff=None for 'step' guidance"):
        samg(awac(), guidance="step")


@pytest.mark.parametrize("kind", [CQLLoss, CalQLLoss])
def test_penalty_weighting(kind: type[CQLLoss]) -> None:
    """1 - p on the penalty: rows with p = 0 keep theirs, rows with p = 1 have none, and 1 changes nothing."""
    torch.manual_seed(0)
    loss = cql(kind)
    loss.reduction = "none"
    estimator = samg(loss)
    p = torch.linspace(0, 1, 24).unsqueeze(-1)
    data = trust(batch(), p)

    def rows(data: TensorDict) -> tuple[Tensor, dict[str, Tensor]]:
        torch.manual_seed(4)
        return loss.qvalue_loss(data)

    full, info = rows(data)
    weighted, _ = rows(data.clone().set("penalty_weight", 1.0 - estimator.confidence(data)))
    penalty = loss.penalty.apply_to(info["gap"])
    torch.testing.assert_close(full - weighted, p.squeeze(-1) * penalty, rtol=1e-4, atol=1e-4)
    same, _ = rows(data.clone().set("penalty_weight", torch.ones(24, 1)))
    assert torch.equal(same, full)


class Table:
    """A random Markov decision process of which every value is known: S states, A actions, float64."""

    num_states, num_actions, gamma = 7, 3, 0.8

    def __init__(self, seed: int = 0) -> None:
        generator = torch.Generator().manual_seed(seed)
        S, A = self.num_states, self.num_actions
        self.transition = torch.rand(S, A, S, generator=generator, dtype=torch.float64).pow(4)
        self.transition /= self.transition.sum(-1, keepdim=True)
        self.reward = torch.randn(S, A, generator=generator, dtype=torch.float64)
        self.optimal = torch.zeros(S, A, dtype=torch.float64)
        for _ in range(400):
            self.optimal = self.backup(self.optimal, torch.zeros_like(self.optimal), self.optimal)

    def backup(self, table: Tensor, p: Tensor, offline: Tensor) -> Tensor:
        """One sweep of SAMG's operator over all (s, a, s'), by the estimator itself, with the greedy action at s'."""
        S, A = table.shape
        state, action, following = torch.meshgrid(torch.arange(S), torch.arange(A), torch.arange(S), indexing="ij")
        greedy = table.max(-1)
        rows = TensorDict({"state": state.reshape(-1), "p_off": p[state, action].reshape(-1, 1)}, [S * A * S])
        rows["next"] = TensorDict({"state": following.reshape(-1)}, [S * A * S])
        index = rows["next", "state"]
        flag = torch.zeros(S * A * S, 1, dtype=torch.bool)
        rows["next"].update({"reward": self.reward[state, action].reshape(-1, 1), "done": flag, "terminated": flag})
        rows["next", "action"] = greedy.indices[index]
        rows["next", "state_action_value"] = rows["next", "state_value"] = greedy.values[index].unsqueeze(-1)
        y = SAMGEstimator(self.critic(offline), gamma=self.gamma).double().value_estimate(rows)
        return (self.transition * y.reshape(S, A, S)).sum(-1)

    @staticmethod
    def critic(table: Tensor) -> FrozenCritic:
        class Lookup(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.table = nn.Parameter(table.clone())

            def forward(self, state: Tensor, action: Tensor) -> Tensor:
                return self.table.flatten()[state * table.shape[1] + action].unsqueeze(-1)

        module = TensorDictModule(Lookup(), in_keys=["state", "action"], out_keys=["state_action_value"])
        return FrozenCritic(module, TensorDict.from_module(module).data.unsqueeze(0))


def worst(error: Tensor) -> float:
    return float(error.abs().max())


@pytest.mark.parametrize("seed", range(3))
def test_theorem_1_contraction_and_fixed_point(seed: int) -> None:
    """With Q_off = Q* the sweep converges to Q*, at the rate gamma at the latest, whatever p is."""
    mdp = Table(seed)
    generator = torch.Generator().manual_seed(seed)
    p = torch.rand(mdp.optimal.shape, generator=generator, dtype=torch.float64)
    assert worst(mdp.backup(mdp.optimal, p, mdp.optimal) - mdp.optimal) < 1e-12
    table = 10 * torch.randn(mdp.optimal.shape, generator=generator, dtype=torch.float64)
    errors = [worst(table - mdp.optimal)]
    for _ in range(60):
        table = mdp.backup(table, p, mdp.optimal)
        errors.append(worst(table - mdp.optimal))
    assert all(later <= mdp.gamma * earlier + 1e-12 for earlier, later in itertools.pairwise(errors))
    assert errors[-1] < 1e-5


def policy_value(mdp: Table, table: Tensor, p: Tensor, offline: Tensor, policy: Tensor) -> Tensor:
    """The same sweep for the evaluation of one policy: an affine operator, written out."""
    mixed = (1 - p).unsqueeze(-1) * table[torch.arange(len(table)), policy] + p.unsqueeze(-1) * offline[
        torch.arange(len(table)), policy
    ]
    return mdp.reward + mdp.gamma * (mdp.transition * mixed).sum(-1)


@pytest.mark.parametrize("seed", range(3))
def test_theorem_2_error_bound(seed: int) -> None:
    """Row by row: |error after| <= gamma [(1 - p) |error before| + p |error of Q_off|].

    So where Q_off is good and p is high a sweep gains more than the base's gamma, where p = 0 exactly as much can be
    guaranteed as without SAMG, and the limit is as far off as p times Q_off's error allows.
    """
    mdp = Table(seed)
    generator = torch.Generator().manual_seed(seed + 10)
    policy = torch.randint(mdp.num_actions, (mdp.num_states,), generator=generator)
    value = torch.zeros_like(mdp.optimal)
    for _ in range(400):
        value = policy_value(mdp, value, torch.zeros_like(value), value, policy)
    p = (torch.rand(value.shape, generator=generator, dtype=torch.float64) - 0.3).clamp(min=0.0)
    offline = value + 0.5 * torch.rand(value.shape, generator=generator, dtype=torch.float64)
    table = value + 5 + 3 * torch.randn(value.shape, generator=generator, dtype=torch.float64)
    slow = table.clone()
    for _ in range(200):
        bound = mdp.gamma * ((1 - p) * worst(table - value) + p * worst(offline - value))
        table = policy_value(mdp, table, p, offline, policy)
        slow = policy_value(mdp, slow, torch.zeros_like(p), offline, policy)
        assert ((table - value).abs() <= bound + 1e-12).all()
        if worst(slow - value) > 2.0:  # as long as Q_off is the better of the two
            assert worst(table - value) <= worst(slow - value)
    limit = mdp.gamma * p.max() * worst(offline - value) / (1 - mdp.gamma * (1 - p).max())
    assert worst(table - value) <= float(limit) + 1e-9
    untouched = policy_value(mdp, value, torch.zeros_like(p), offline, policy)
    assert worst(untouched - value) < 1e-9


def test_theorems_speak_of_the_estimator() -> None:
    """The written-out sweep is the estimator's: they agree where the policy is the greedy one."""
    mdp = Table(1)
    p = torch.rand(mdp.optimal.shape, dtype=torch.float64)
    table, offline = mdp.optimal + torch.randn_like(mdp.optimal), torch.randn_like(mdp.optimal)
    greedy = table.argmax(-1)
    torch.testing.assert_close(mdp.backup(table, p, offline), policy_value(mdp, table, p, offline, greedy))


def test_a_target_without_any_next_value_is_refused_by_name() -> None:
    estimator = SAMGEstimator.from_loss(AWACLoss(actor(), critics()))
    with pytest.raises(O2OSpecError, match=r"without 'state_value' under 'next'.*pass next_value="):
        estimator.value_estimate(random_transitions(4, 5, 3).set("p_off", torch.ones(4, 1)))


def test_upstream_losses_of_unknown_targets_are_refused_by_name() -> None:
    policy, qvalue, value = upstream_networks()
    deterministic = make_deterministic_actor(5, 3, hidden_sizes=(16,))
    unknown: dict[str, LossModule] = {
        "CQLLoss.*another action": UpstreamCQLLoss(policy, qvalue),
        "version 1": SACLoss(policy, qvalue, value),
        "TD3Loss.*smoothed": TD3Loss(deterministic, qvalue, bounds=(-1.0, 1.0)),
        "DDPGLoss": DDPGLoss(deterministic, qvalue),
    }
    for message, loss in unknown.items():
        with pytest.raises(O2OSpecError, match=message):
            SAMGEstimator.from_loss(loss)


def test_losses_whose_critics_do_not_tell_the_target_are_refused_by_name() -> None:
    encoder = make_pixel_encoder((9, 16, 16), features=(8, 8), strides=(2, 2), latent_dim=10)
    heads = make_qvalue_ensemble(10, 3, num_qvalue_nets=2, hidden_sizes=(16,), in_keys=("latent", "action"))
    losses: dict[str, LossModule] = {
        "PixelSACLoss, whose critics read": PixelSACLoss(
            make_pixel_actor(encoder, 3, hidden_sizes=(16,)), encoder, heads
        ),
        "ACALoss": ACALoss(actor(), critics(), actor()),
        "PessimisticEnsembleLoss": PessimisticEnsembleLoss(actor(), critics()),
    }
    for message, loss in losses.items():
        with pytest.raises(O2OSpecError, match=f"got {message}"):
            SAMGEstimator.from_loss(loss)
