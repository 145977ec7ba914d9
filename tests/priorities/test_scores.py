# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
from __future__ import annotations

from typing import Any

import pytest
import torch
from tensordict import TensorDict
from torch import Tensor

from torchrl_o2o.errors import O2OSpecError
from torchrl_o2o.functional.replay import resampling_log_prob
from torchrl_o2o.modules import DensityRatio, Temperature, make_actor, make_gaussian_actor, make_qvalue_ensemble
from torchrl_o2o.objectives import AWACLoss, DensityRatioLoss, EnsembleSACLoss, GeneratorNoise, RecordedNoise
from torchrl_o2o.objectives.networks import flat_parameters
from torchrl_o2o.priorities.scores import (
    Advantage,
    AdvantageAligned,
    DensityRatioScore,
    LogPriority,
    Sum,
    TDError,
    _few_qvalues,
)
from torchrl_o2o.testing import random_transitions

pytestmark = pytest.mark.filterwarnings("ignore:No target network updater")

OBSERVATION, ACTION, ROWS = 5, 3, 24


def make_loss(**settings: Any) -> EnsembleSACLoss:
    torch.manual_seed(0)
    actor = make_actor(OBSERVATION, ACTION, hidden_sizes=(16,))
    critics = make_qvalue_ensemble(OBSERVATION, ACTION, num_qvalue_nets=4, hidden_sizes=(16,))
    settings.setdefault("temperature", Temperature(-1.5, init=0.3))
    return EnsembleSACLoss(actor, critics, sub_sample_len=2, **settings)


def make_rows() -> TensorDict:
    data = random_transitions(ROWS, OBSERVATION, ACTION, generator=torch.Generator().manual_seed(1))
    return data.set("is_offline", torch.arange(ROWS) % 2 == 0)


def make_score() -> DensityRatioScore:
    torch.manual_seed(2)
    return DensityRatioScore(DensityRatio(OBSERVATION, ACTION, hidden_sizes=(16,)))


def every_priority() -> dict[str, LogPriority]:
    loss = make_loss()
    return {
        "advantage": Advantage(loss),
        "advantage_std": Advantage(loss, normalize="std"),
        "advantage_rank": Advantage(loss, normalize="rank", entropy=True, critics="online"),
        "td_absolute": TDError(loss),
        "td_signed": TDError(loss, form="signed", entropy=True),
        "density": make_score(),
        "density_relu": DensityRatioScore(
            DensityRatio(OBSERVATION, ACTION, hidden_sizes=(16,), parametrization="relu"), normalize=False
        ),
        "aligned": AdvantageAligned(Advantage(loss), make_score(), adv_temp=0.5),
        "td_density": TDError(loss, form="signed") + make_score(),
    }


@pytest.mark.parametrize("name", list(every_priority()))
class TestContract:
    """What holds for every log-priority."""

    def test_one_finite_number_per_row_without_gradient(self, name: str) -> None:
        score = every_priority()[name](make_rows())
        assert score.shape == (ROWS,)
        assert score.isfinite().all()
        assert not score.requires_grad

    def test_input_is_not_modified(self, name: str) -> None:
        rows = make_rows()
        before = rows.clone()
        every_priority()[name](rows)
        assert set(rows.keys(True, True)) == set(before.keys(True, True))
        assert (rows == before).all()

    @pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf"), 3e38])
    def test_finite_whatever_the_inputs(self, name: str, bad: float) -> None:
        priority, rows = every_priority()[name], make_rows()
        rows["observation"][4] = bad
        rows["next", "observation"][6] = bad
        rows["next", "reward"][8] = bad
        score = priority(rows)
        assert score.isfinite().all()
        assert all(value.isfinite() for value in priority.metrics().values())

    def test_all_rows_broken(self, name: str) -> None:
        priority, rows = every_priority()[name], make_rows()
        for key in ("observation", ("next", "observation")):
            rows[key] = torch.full_like(rows[key], torch.nan)
        assert priority(rows).isfinite().all()

    def test_metrics_are_scalars(self, name: str) -> None:
        priority = every_priority()[name]
        assert priority.metrics() == {}
        priority(make_rows())
        metrics = priority.metrics()
        assert metrics
        assert all(value.shape == () for value in metrics.values())

    def test_float64(self, name: str) -> None:
        priority = every_priority()[name]
        _double(priority)
        rows = make_rows().apply(lambda x: x.double() if x.is_floating_point() else x)
        assert priority(rows).dtype == torch.float64


def _double(priority: LogPriority) -> None:
    for term in priority.terms if isinstance(priority, Sum) else (priority,):
        (term.density_ratio if isinstance(term, DensityRatioScore) else term.loss).double()  # type: ignore[attr-defined]


def test_clamped_rows_are_counted_and_logged() -> None:
    priority, rows = Advantage(make_loss()), make_rows()
    rows["observation"][3] = torch.nan
    for calls in (1, 2):
        score = priority(rows)
        assert priority.num_clamped == calls
    assert priority.metrics()["advantage_clamped"].item() == pytest.approx(1 / ROWS)
    assert score[3] == score.min(), "what cannot be scored ranks with the least"


@pytest.mark.parametrize("name", ["advantage", "advantage_std", "advantage_rank", "aligned"])
def test_a_constant_in_the_critics_changes_nothing(name: str) -> None:
    """Q + c for all members, actions and states: the same replay probabilities."""
    priority, rows = every_priority()[name], make_rows()
    _double(priority)
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
    critics, inputs = flat_parameters(loss.qvalue_network_params.data), {"observation": rows["observation"]}
    networks = Advantage(loss)._networks
    expected = networks.qvalues(critics, inputs, rows["action"])
    torch.testing.assert_close(_few_qvalues(networks, critics, inputs, rows["action"]), expected, rtol=1e-12, atol=0)


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


def test_density_score_counts_offline_rows_only_and_averages_one() -> None:
    score, rows = make_score(), make_rows()
    got, offline = score(rows), rows["is_offline"]
    assert (got[~offline] == 0).all()
    torch.testing.assert_close(got[offline].exp().mean(), torch.tensor(1.0))
    raw = score.density_ratio(rows.clone())["log_density_ratio"].squeeze(-1)
    torch.testing.assert_close(got[offline] - got[offline][0], raw[offline] - raw[offline][0])


def test_density_score_follows_training() -> None:
    score, rows = make_score(), make_rows()
    loss = DensityRatioLoss(score.density_ratio)  # type: ignore[arg-type]
    before = score(rows)
    optim = torch.optim.SGD(loss.parameters(), lr=1.0)
    loss(rows)["loss_density_ratio"].backward()
    optim.step()
    assert not torch.allclose(score(rows), before)


def test_density_score_needs_to_know_the_source() -> None:
    with pytest.raises(O2OSpecError, match="no entry 'is_offline'"):
        make_score()(make_rows().exclude("is_offline"))


def test_aligned_is_equation_five() -> None:
    loss, rows = make_loss(), make_rows()
    density, advantage = make_score(), Advantage(loss, num_samples=2)
    aligned = AdvantageAligned(advantage, density, adv_temp=2.0)
    scores = []
    for priority in (aligned, advantage):
        advantage.noise = GeneratorNoise(torch.Generator().manual_seed(0))
        scores.append(priority(rows))
    torch.testing.assert_close(scores[0], density(rows) + 2.0 * scores[1])
    aligned.adv_temp = 0.0
    torch.testing.assert_close(aligned(rows), density(rows))


def test_sums_add_up() -> None:
    density, rows = make_score(), make_rows()
    torch.testing.assert_close((density + 0.5 * density)(rows), 1.5 * density(rows))
    with pytest.raises(O2OSpecError, match="got 1 terms and 2 factors"):
        Sum(density, factors=(1.0, 2.0))


@pytest.mark.parametrize("build", [Advantage, TDError])
def test_compiled_equals_eager(build: Any) -> None:
    priority, rows, scores = build(make_loss()), make_rows(), []
    for compiled in (False, True):
        if compiled:
            priority.compile()
        priority.noise = GeneratorNoise(torch.Generator().manual_seed(0))
        scores.append(priority(rows))
    torch.testing.assert_close(*scores, rtol=1e-4, atol=1e-5)


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


def test_temperature_of_the_ratio_must_be_positive() -> None:
    with pytest.raises(O2OSpecError, match="got temperature=0"):
        DensityRatioScore(DensityRatio(3, 2), temperature=0)


def test_other_losses_are_refused_by_name() -> None:
    loss = AWACLoss(make_gaussian_actor(3, 2, hidden_sizes=(8,)), make_qvalue_ensemble(3, 2, hidden_sizes=(8,)))
    for score in (Advantage, TDError):
        with pytest.raises(O2OSpecError, match="got AWACLoss, expected EnsembleSACLoss"):
            score(loss)  # type: ignore[arg-type]
