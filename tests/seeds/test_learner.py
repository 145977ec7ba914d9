# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Each agent of a stacked update ends where its own updates would have taken it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from tests.seeds.agents import BATCH, TAU, Agent, make_agent, make_batches
from torchrl_o2o.errors import O2OSpecError
from torchrl_o2o.seeds import StackedLearner, StackedNonFiniteError

pytestmark = pytest.mark.filterwarnings("ignore:No target network updater")

AGENTS, UPDATES = 3, 5
SETTINGS: dict[str, dict[str, Any]] = {
    "rlpd": {"ensemble_reduction": "mean"},
    "sac": {"members": 2, "actor_q": "min", "form": "log_alpha"},
    "per sample, no entropy": {"subset_per": "sample", "entropy_backup": False},
    "sums, one member": {"reduction": "sum", "sub_sample_len": 1},
    "a3rl's authors": {"weight_actor": True, "weighted": True},
}


@pytest.fixture
def double() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def trained(
    tolerance: float, *, compiled_after: int | None = None, weighted: bool = False, **settings: Any
) -> tuple[list[Agent], list[Agent]]:
    """Agents trained one by one, and equal ones trained as a stack; the metrics are compared on the way."""
    torch.manual_seed(7)
    batches = make_batches(AGENTS, UPDATES, weighted=weighted)
    single, stacked = ([make_agent(seed, **settings) for seed in range(AGENTS)] for _ in range(2))
    learner = StackedLearner(stacked, tau=TAU)
    for step, batch in enumerate(batches):
        if step == compiled_after:
            learner.compile()
            assert not learner.optimizers
        together = learner.update(batch, BATCH)
        for position, agent in enumerate(single):
            for name, value in agent.update(batch[position]).items():
                torch.testing.assert_close(together[name][position], value, rtol=tolerance, atol=tolerance, msg=name)
    return single, stacked


def compare(single: list[Agent], stacked: list[Agent], tolerance: float, **settings: Any) -> None:
    for seed, (ours, theirs) in enumerate(zip(single, stacked, strict=True)):
        start, state = make_agent(seed, **settings).loss.state_dict(), theirs.loss.state_dict()
        for name, value in ours.loss.state_dict().items():
            torch.testing.assert_close(state[name], value, rtol=tolerance, atol=tolerance, msg=name)
            assert "gamma" in name or not torch.equal(value, start[name]), f"{name} has not moved"


@pytest.mark.parametrize("name", SETTINGS)
def test_equals_single_runs_in_float64(double: None, name: str) -> None:
    settings = dict(SETTINGS[name])
    weighted = settings.pop("weighted", False)
    compare(*trained(1e-9, weighted=weighted, **settings), 1e-9, **settings)


def test_equals_single_runs_in_float32() -> None:
    compare(*trained(1e-3), 1e-4)


@pytest.mark.slow
@pytest.mark.compiler
def test_kernels_equal_single_runs(double: None) -> None:
    compare(*trained(1e-9, compiled_after=0), 1e-9)


@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.parametrize("after", [0, 2])
def test_the_whole_update_as_one_function(double: None, captured: list[Any], name: str, after: int) -> None:
    """From the start, and taken over in the middle with the optimizers' states."""
    settings = dict(SETTINGS[name])
    weighted = settings.pop("weighted", False)
    single, stacked = trained(1e-9, compiled_after=after, weighted=weighted, **settings)
    compare(single, stacked, 1e-9, **settings)
    for ours, theirs in zip(single, stacked, strict=True):
        expected, state = (agent.critic_optim.state_dict()["state"] for agent in (ours, theirs))
        for index, moments in expected.items():
            assert state[index]["step"] == moments["step"] == UPDATES * 3
            torch.testing.assert_close(state[index]["exp_avg_sq"], moments["exp_avg_sq"], rtol=1e-9, atol=1e-12)


def test_not_finite_compiled_names_the_agent(captured: list[Any]) -> None:
    agents = [make_agent(seed) for seed in range(AGENTS)]
    learner = StackedLearner(agents, tau=TAU)
    learner.compile()
    before = [value.clone() for value in agents[1].loss.parameters()]
    batch = make_batches(AGENTS, 1)[0]
    batch["next", "reward"][1, 3] = torch.nan
    with pytest.raises(StackedNonFiniteError, match="not finite: a loss or gradient") as caught:
        learner.update(batch, BATCH)
    assert caught.value.agents == [1]
    assert all(torch.equal(old, new) for old, new in zip(before, agents[1].loss.parameters(), strict=True))


def test_agents_do_not_touch_each_other(double: None) -> None:
    """Another agent in the stack, other batches for it: the first agent's parameters stay the same, bit for bit."""
    torch.manual_seed(7)
    batches, others = make_batches(2, 1)[0], make_batches(2, 1)[0]
    others[0] = batches[0]
    ends = []
    for batch, seed in ((batches, 1), (others, 2)):
        agents = [make_agent(0), make_agent(seed)]
        StackedLearner(agents, tau=TAU).update(batch, BATCH)
        ends.append([agent.loss.state_dict() for agent in agents])
    assert all(torch.equal(value, ends[1][0][name]) for name, value in ends[0][0].items())
    assert not all(torch.equal(value, ends[1][1][name]) for name, value in ends[0][1].items())


def test_not_finite_names_the_agent_and_changes_nothing() -> None:
    agents = [make_agent(seed) for seed in range(AGENTS)]
    learner = StackedLearner(agents, tau=TAU)
    before = [leaf.clone() for leaf in learner.stack.leaves]
    batch = make_batches(AGENTS, 1)[0]
    batch["next", "reward"][1, 3] = torch.nan
    with pytest.raises(StackedNonFiniteError, match="loss_qvalue") as caught:
        learner.update(batch, BATCH)
    assert caught.value.agents == [1]
    assert all(torch.equal(old, new) for old, new in zip(before, learner.stack.leaves, strict=True))


@pytest.mark.parametrize(("agents", "rows"), [(2, 0), (3, 48)])
def test_batches_of_another_shape_are_refused(agents: int, rows: int) -> None:
    learner = StackedLearner([make_agent(seed) for seed in range(2)])
    with pytest.raises(O2OSpecError, match=r"expected \[2, "):
        learner.update(make_batches(agents, 1)[0][:, :rows], BATCH)
