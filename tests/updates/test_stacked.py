# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Each agent of a stacked update ends where its own updates would have taken it."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from tensordict import TensorDict
from torch import Tensor
from torchrl.objectives import SoftUpdate

from tests.updates.agents import JOINT, LOSSES, REPEATED, UTD, Agent, make_agent, make_batch
from torchrl_o2o.errors import O2OSpecError
from torchrl_o2o.functional.noise import GeneratorNoise
from torchrl_o2o.updates import (
    Descend,
    Every,
    MoveTargets,
    StackedNonFiniteError,
    StackedUpdate,
    Update,
    compile_update,
    stack_updates,
)

AGENTS = 3


def make_agents(kind: str, dtype: torch.dtype = torch.float64) -> list[Agent]:
    agents = [make_agent(kind, dtype, seed) for seed in range(AGENTS)]
    for seed, agent in enumerate(agents):
        agent.loss.noise = GeneratorNoise(torch.Generator().manual_seed(seed))
    return agents


def make_batches(step: int, dtype: torch.dtype = torch.float64) -> TensorDict:
    batches = torch.stack([make_batch(dtype) for _ in range(AGENTS)])
    generator = torch.Generator().manual_seed(step)
    batches["next", "reward"] += torch.randn(batches["next", "reward"].shape, generator=generator, dtype=dtype)
    return batches


def update_of(kind: str, agent: Agent, **options: Any) -> Update:
    ratio = UTD if kind in REPEATED else None
    return compile_update(agent.loss, agent.optims, agent.updater, utd_ratio=ratio, joint=kind in JOINT, **options)


def stacked(kind: str, agents: list[Agent], **options: Any) -> StackedUpdate:
    return stack_updates([update_of(kind, agent, **options) for agent in agents])


def compare(kind: str, tolerance: float, dtype: torch.dtype = torch.float64, updates: int = 5) -> None:
    single, together = make_agents(kind, dtype), make_agents(kind, dtype)
    ones, update = [update_of(kind, agent, compile=False) for agent in single], stacked(kind, together)
    for step in range(updates):
        batches = make_batches(step, dtype)
        metrics = update(batches)
        assert metrics["finite"].tolist() == [True] * AGENTS
        for i, one in enumerate(ones):
            for name, value in one(batches[i]).items():
                torch.testing.assert_close(metrics[name][i], value, rtol=tolerance, atol=tolerance, msg=name)
    assert_equal(single, together, tolerance)


def assert_equal(single: list[Agent], together: list[Agent], tolerance: float) -> None:
    for ours, theirs in zip(single, together, strict=True):
        expected = ours.tensors()
        for name, value in theirs.tensors().items():
            torch.testing.assert_close(value, expected[name], rtol=tolerance, atol=tolerance, msg=name)


#: Each loss is stacked in `test_golden` as well.
@pytest.mark.parametrize(
    "kind", [kind if kind in ("rlpd", "awac") else pytest.param(kind, marks=pytest.mark.slow) for kind in LOSSES]
)
def test_every_agent_s_numbers_are_those_of_its_own_updates(kind: str, captured: list[Any]) -> None:
    """Parameters, targets, optimizer states and metrics, in float64."""
    compare(kind, 1e-9)


@pytest.mark.slow
@pytest.mark.compiler
@pytest.mark.parametrize("kind", ["rlpd", "awac", "cql"])
def test_kernels(kind: str) -> None:
    compare(kind, 1e-9)
    compare(kind, 1e-4, torch.float32)


def test_agents_stay_usable_and_loaded_states_are_followed(captured: list[Any]) -> None:
    """Saved agent by agent and loaded into other ones that had run together: they continue bit for bit."""
    agents, others = make_agents("rlpd"), make_agents("rlpd")
    update, resumed = stacked("rlpd", agents), stacked("rlpd", others)
    update(make_batches(0))
    resumed(make_batches(5))
    for agent, other in zip(agents, others, strict=True):
        other.loss.load_state_dict({name: value.clone() for name, value in agent.loss.state_dict().items()})
        for name, optim in other.optims.items():
            optim.load_state_dict(copy.deepcopy(agent.optims[name].state_dict()))  # torch copies nothing
        other.loss.noise.generator.set_state(agent.loss.noise.generator.get_state())
    update(make_batches(1))
    resumed(make_batches(1))
    for agent, other in zip(agents, others, strict=True):
        state = other.tensors()
        assert all(torch.equal(value, state[name]) for name, value in agent.tensors().items())
    own = update_of("rlpd", agents[1], compile=False)  # an agent by itself, after all
    before = agents[0].tensors()
    own(make_batches(2)[1])
    assert all(torch.equal(value, before[name]) for name, value in agents[0].tensors().items())


def test_an_agent_that_is_not_finite_stays_and_the_others_go_on(captured: list[Any]) -> None:
    single, together = make_agents("rlpd"), make_agents("rlpd")
    batches = make_batches(0)
    batches["next", "reward"][1, 0] = float("nan")
    before: dict[str, Tensor] = together[1].tensors()
    metrics = stacked("rlpd", together)(batches)
    assert metrics["finite"].tolist() == [True, False, True]
    after = together[1].tensors()
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    for i in (0, 2):
        update_of("rlpd", single[i], compile=False)(batches[i])
    assert_equal([single[0], single[2]], [together[0], together[2]], 1e-9)
    assert together[1].optims["qvalue"].state_dict()["state"][0]["step"] == 0


@pytest.mark.parametrize("kind", ["rlpd", "awac", "iql"])
def test_an_agent_that_was_not_finite_goes_on_like_its_own_updates(kind: str, captured: list[Any]) -> None:
    """The draws of skipped steps were left out eagerly, and steps before the first bad one of a part were not counted.

    In IQL the critic, which alone reads rewards, steps last.
    """
    single, together = make_agents(kind), make_agents(kind)
    ones, update = [update_of(kind, agent, compile=False) for agent in single], stacked(kind, together)
    for each in (*ones, *update.updates):
        each.check_finite = False
    for step in range(3):
        batches = make_batches(step)
        if step == 0:
            batches["next", "reward"][1, 8] = float("nan")  # in RLPD's second minibatch
        expected = [bool(one(batches[i])["finite"]) for i, one in enumerate(ones)]
        assert update(batches)["finite"].tolist() == expected == [True, step > 0, True]
    assert_equal(single, together, 1e-9)


def test_rows_come_agent_by_agent(captured: list[Any]) -> None:
    metrics = stacked("rlpd", make_agents("rlpd"), rows=("td_error",))(make_batches(0))
    assert metrics["td_error"].shape == (AGENTS, UTD * 8)


def test_an_agent_that_is_not_finite_has_no_rows() -> None:
    """Rows and the mean of a metric have one name; they were stacked, which failed."""
    losses = [make_agent("awac").loss for _ in range(2)]
    steps = [Descend("qvalue", torch.optim.Adam(loss.qvalue_network_params.parameters())) for loss in losses]
    moves = [MoveTargets(SoftUpdate(loss, tau=0.1)) for loss in losses]
    updates = [Update(*each, rows=("td_error",)) for each in zip(losses, steps, moves, strict=True)]
    batches = make_batches(0)[:2].clone()
    assert Update.stack(updates)(batches)["td_error"].shape == batches.shape
    batches[1, 0]["next", "reward"].fill_(torch.nan)
    with pytest.raises(StackedNonFiniteError) as error:
        Update.stack(updates)(batches)
    assert error.value.agents == [1]


def test_refusals(captured: list[Any]) -> None:
    agents = make_agents("awac")
    with pytest.raises(O2OSpecError, match="no updates"):
        stack_updates([])
    with pytest.raises(O2OSpecError, match="updates that share parameters"):
        stacked("awac", [agents[0], agents[0]])
    other = make_agent("awac")
    other.optims["actor"] = torch.optim.AdamW(other.loss.actor_network_params.parameters(), lr=1e-2)
    with pytest.raises(O2OSpecError, match="differ in optimizers"):
        stacked("awac", [*agents, other])
    with pytest.raises(O2OSpecError, match="their losses"):
        stack_updates([update_of("awac", agents[0]), update_of("iql", make_agent("iql"))])
    sharper, smooth = make_agent("awac"), make_agent("awac")
    sharper.loss.awac_lambda = 0.01  # type: ignore[assignment]
    smooth.loss.qvalue_network.module.trunk[0][-1] = torch.nn.Tanh()  # type: ignore[union-attr, index, operator]
    with pytest.raises(O2OSpecError, match=r"updates that differ in AWACLoss\.awac_lambda, expected one configuration"):
        stacked("awac", [*agents, sharper])  # compiled, all agents computed with the first one's
    with pytest.raises(O2OSpecError, match="updates that differ in the layers of qvalue_network"):
        stacked("awac", [*agents, smooth])
    update = stacked("awac", agents)
    with pytest.raises(O2OSpecError, match=r"expected \[3, n\]"):
        update(make_batches(0)[:2])
    wider = make_agent("awac")
    wider.loss.register_buffer("extra", torch.zeros(3))
    agents[0].loss.register_buffer("extra", torch.zeros(2))
    with pytest.raises(O2OSpecError, match=r"extra differ: \[2\] .*\[3\].*one configuration"):
        stacked("awac", [agents[0], wider])(make_batches(0)[:2])


def test_agents_whose_graphs_would_differ_are_refused(captured: list[Any]) -> None:
    """All agents computed with the first one's reduction, entries and groups of parameters."""
    summed, renamed = make_agent("awac"), make_agent("awac")
    summed.loss.reduction = "sum"
    renamed.loss.set_keys(reward="other")
    for other, name in ((summed, r"AWACLoss\.reduction"), (renamed, "the key 'reward' of AWACLoss")):
        with pytest.raises(O2OSpecError, match=f"updates that differ in {name}"):
            stacked("awac", [make_agent("awac"), other])
    ones, others = make_agent("awac"), make_agent("awac")
    for agent, slow in ((ones, "bias"), (others, "weight")):
        named = dict(agent.loss.qvalue_network_params.named_parameters())
        groups = [[value for name, value in named.items() if (slow in name) == own] for own in (False, True)]
        agent.optims["qvalue"] = torch.optim.Adam([{"params": groups[0]}, {"params": groups[1], "lr": 1e-5}])
    with pytest.raises(O2OSpecError, match="updates that differ in optimizers"):
        stacked("awac", [ones, others])


def test_agents_take_turns_together(captured: list[Any]) -> None:
    """An agent that was updated alone before has its actor's step at another call."""
    agents = make_agents("awac")

    def delayed(agent: Agent, *, first: bool = False) -> Update:
        optims = agent.optims
        actor = Every(2, Descend("actor", optims["actor"]), first=first)
        return Update(agent.loss, Descend("qvalue", optims["qvalue"]), MoveTargets(agent.updater), actor)

    with pytest.raises(O2OSpecError, match="updates that differ in order"):
        Update.stack([delayed(agents[0]), delayed(agents[1], first=True)])
    updates = [delayed(agent) for agent in agents]
    updates[1](make_batch())
    update = Update.stack(updates).compile()
    with pytest.raises(O2OSpecError, match=r"different turns.*\(0,\), \(1,\), \(0,\)"):
        update(make_batches(0))
    updates[1]._options = None
    updates[1](make_batch())
    updates[1]._options = updates[0].options
    assert update(make_batches(0))["finite"].all()
