# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""States of everything that has one: snapshots, copies of their own, refused as a whole where they do not fit."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tensordict import TensorDict
from torchrl.data import TensorDictReplayBuffer
from torchrl.objectives import HardUpdate, SoftUpdate

from torchrl_o2o.checkpoint import Checkpointer
from torchrl_o2o.data import (
    BalancedReplaySampler,
    BalancedSampler,
    ChunkSampler,
    OnlineWriter,
    PoolSampler,
    PrioritizedReplaySampler,
    TrajectoryReplay,
    offline_online_storage,
)
from torchrl_o2o.errors import O2OCheckpointError, O2OSpecError
from torchrl_o2o.modules import make_actor, make_qvalue_ensemble
from torchrl_o2o.objectives import EnsembleSACLoss
from torchrl_o2o.testing import random_transitions
from torchrl_o2o.trainers import Trajectory
from torchrl_o2o.updates import Descend, Every, MoveTargets, Update
from torchrl_o2o.updates.state import state_of

OFFLINE, ONLINE = 20, 12


def reward(rows: Any) -> torch.Tensor:
    return rows["next", "reward"].squeeze(-1)


SAMPLERS: dict[str, Callable[[int, int], Any]] = {
    "balanced": lambda n, c: BalancedSampler(n),
    "pool": lambda n, c: PoolSampler(reward, n, pool_size=16),
    "prioritized": lambda n, c: PrioritizedReplaySampler(n + c, 0.6, 0.4),
    "replay": lambda n, c: BalancedReplaySampler(n, c, first_epoch_frames=5),
    "chunks": lambda n, c: ChunkSampler(PrioritizedReplaySampler(n + c, 0.6, 0.4), 3, gamma=0.9),
}


def rows(count: int, seed: int = 0) -> TensorDict:
    return random_transitions(count, 3, 2, generator=torch.Generator().manual_seed(seed))


def buffer(kind: str, offline: int = OFFLINE, online: int = ONLINE) -> TensorDictReplayBuffer:
    storage, sampler = offline_online_storage(rows(offline), online), SAMPLERS[kind](offline, online)
    return TensorDictReplayBuffer(storage=storage, sampler=sampler, writer=OnlineWriter(offline), batch_size=8)


def used(replay: TensorDictReplayBuffer, count: int = 5, seed: int = 1) -> TensorDictReplayBuffer:
    replay.extend(rows(count, seed))
    batch = replay.sample()
    replay.update_priority(batch["index"], torch.linspace(0.1, 2.0, len(batch)))
    return replay


def drawn(replay: TensorDictReplayBuffer) -> list[Any]:
    replay.set_rng(torch.Generator().manual_seed(5))
    batch = replay.sample()
    return [batch["index"].tolist(), batch["observation"].tolist(), replay.sampler.state_dict().get("num_batches")]


def same(one: Any, other: Any) -> bool:
    if isinstance(one, torch.Tensor) or isinstance(other, torch.Tensor):
        return isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor) and torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list):
        return len(one) == len(other) and all(map(same, one, other))
    return one == other


@pytest.mark.parametrize("kind", SAMPLERS)
def test_states_and_copies_are_of_their_moment(kind: str) -> None:
    """Also of a ring that has come round, loaded twice, and after use."""
    first = used(used(used(buffer(kind)), 9, 2), 3, 3)
    states = first.sampler.state_dict(), first.writer.state_dict()
    kept, copies = copy.deepcopy(states), (copy.deepcopy(first), pickle.loads(pickle.dumps(first)))
    whole, twin = copy.deepcopy(first.state_dict()), used(buffer(kind), 7, 9)
    for _ in range(2):
        twin.load_state_dict(whole)
    expected = drawn(first)
    assert all(drawn(other) == expected for other in (*copies, twin))
    used(first, 7, 4)
    assert same(list(states), list(kept))


def broken(state: Any) -> Iterator[Any]:
    """The state, with one entry that is missing or another thing."""
    entries = list(state.items() if isinstance(state, dict) else enumerate(state))
    for key, value in entries:
        for wrong in (KeyError, None, "a", float("nan"), -1, torch.ones(3)):
            other = copy.copy(state)
            if wrong is not KeyError:
                other[key] = wrong
            elif key not in ("unit", "capacity") and isinstance(other, dict):
                del other[key]
            else:
                continue
            yield other
        if isinstance(value, dict | list):
            for part in broken(value):
                other = copy.copy(state)
                other[key] = part
                yield other


@pytest.mark.parametrize("kind", SAMPLERS)
def test_a_state_that_does_not_fit_is_refused_as_a_whole(kind: str) -> None:
    replay = used(buffer(kind))
    for part in (replay.sampler, replay.writer):
        kept = part.state_dict()
        for wrong in (None, {}, [], "state", 5, *broken(copy.deepcopy(kept))):
            with pytest.raises(O2OSpecError, match=r"load what its state_dict|the saved "):
                part.load_state_dict(wrong)
            assert same(part.state_dict(), kept)


def test_another_data_sets_state_is_refused() -> None:
    """It went into a balanced sampler in silence, and 21 rows were taken for offline of 20."""
    for kind in ("balanced", "pool", "replay"):
        with pytest.raises(O2OSpecError, match="21 offline rows, this one 20"):
            buffer(kind).sampler.load_state_dict(used(buffer(kind, 21)).sampler.state_dict())


def test_a_full_ring_of_another_size_is_refused() -> None:
    longer, shorter = used(buffer("balanced", online=ONLINE + 1)), buffer("balanced")
    shorter.writer.load_state_dict(longer.writer.state_dict())  # nothing was overwritten yet
    used(longer, 10)
    with pytest.raises(O2OSpecError, match="13 online slots were full, this one has 12"):
        shorter.writer.load_state_dict(longer.writer.state_dict())


def update(*, first: bool = False) -> Update:
    loss = EnsembleSACLoss(
        make_actor(3, 2, hidden_sizes=(8,)), make_qvalue_ensemble(3, 2, num_qvalue_nets=2, hidden_sizes=(8,))
    )
    critic, actor = (
        Descend(name, torch.optim.Adam(params.parameters()))
        for name, params in (("qvalue", loss.qvalue_network_params), ("actor", loss.actor_network_params))
    )
    targets = MoveTargets(SoftUpdate(loss, tau=0.1))
    return Update(loss, *((Every(2, actor), critic) if first else (critic, Every(2, actor))), targets)


def test_an_updates_counts_are_of_its_own_steps() -> None:
    trained = update()
    for _ in range(3):
        trained(rows(4))
    state = trained.state_dict()
    twin = update()
    twin.load_state_dict(state)
    assert twin.state_dict() == state == {"calls": 3, "counts": {1: 3}}
    for wrong in ({}, {"calls": 3}, state | {"calls": -1}, state | {"counts": None}, state | {"counts": {1: 0.5}}):
        with pytest.raises(O2OSpecError, match="got a state of Update"):
            twin.load_state_dict(wrong)
    with pytest.raises(O2OSpecError, match=r"turns of step 1, expected turns of the steps \[0\]"):
        update(first=True).load_state_dict(state)


def test_the_turns_of_hard_updates_are_saved() -> None:
    """TorchRL's HardUpdate copies at its fourth step with an interval of 3; a resumed one began to count again."""

    def hard_update() -> Update:
        loss = update().loss
        critic = Descend("qvalue", torch.optim.Adam(loss.qvalue_network_params.parameters()))
        return Update(loss, critic, MoveTargets(HardUpdate(loss, value_network_update_interval=3)))

    def follows(each: Update) -> bool:
        each(rows(4))
        networks = each.loss.qvalue_network_params, each.loss.target_qvalue_network_params
        return all(torch.equal(*pair) for pair in zip(*(one.values(True, True) for one in networks), strict=True))

    first = hard_update()
    assert [follows(first) for _ in range(3)] == [False, False, False]
    second = hard_update()
    second.load_state_dict(first.state_dict())
    assert [follows(second) for _ in range(2)] == [True, False]
    second.load_state_dict({"calls": 3, "counts": {}})  # as saved before the turns were


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda one: pickle.loads(pickle.dumps(one))])
def test_a_copy_of_an_update_is_a_run_of_its_own(copied: Callable[[Update], Update]) -> None:
    """A deep copy's optimizers held the first one's parameters, and its targets stood still."""
    first = update()
    first(rows(6))
    twin, tensors = copied(first), {name: value.clone() for name, value in state_of(first.loss).items()}
    for one in (twin, first):
        torch.manual_seed(3)
        one(rows(6, 2))
        if one is twin:
            assert all(torch.equal(value, tensors[name]) for name, value in state_of(first.loss).items())
    assert all(torch.equal(value, state_of(twin.loss)[name]) for name, value in state_of(first.loss).items())
    bias = "target_qvalue_network_params.module.head.bias"
    assert not torch.equal(tensors[bias], state_of(twin.loss)[bias])


def test_a_loss_of_other_networks_is_refused_as_a_whole() -> None:
    first = update().loss
    kept = {name: value.clone() for name, value in state_of(first).items()}
    wider = EnsembleSACLoss(
        make_actor(3, 2, hidden_sizes=(8,)), make_qvalue_ensemble(3, 2, num_qvalue_nets=3, hidden_sizes=(8,))
    )
    with pytest.raises(
        O2OSpecError, match=r"'qvalue_network_params.*of shape \[3, .*expected \[2, .*number of critics"
    ):
        first.load_state_dict(wider.state_dict())
    with pytest.raises(O2OSpecError, match="got a list, expected"):
        first.load_state_dict([])
    assert all(torch.equal(value, kept[name]) for name, value in state_of(first).items())


def test_trajectories_go_back_to_a_state() -> None:
    """What was appended since stayed behind the episodes of the state."""

    def episodes(count: int) -> TensorDict:
        ends = (torch.arange(2 * count) % 2 == 1).unsqueeze(-1)
        return rows(2 * count).set("episode", torch.arange(2 * count) // 2).set(("next", "done"), ends)

    data, replay = episodes(2), TrajectoryReplay(4)
    replay.load(data)
    state = replay.state_dict()
    for count in (1, 2):
        replay.append(*(part[:count] for part in (data["observation"], data["action"], data["next", "reward"][:, 0])))
    replay.load_state_dict(state)
    assert [len(each) for each in replay.episodes] == [2, 2]
    for _ in range(3):
        replay.append(data["observation"], data["action"], data["next", "reward"][:, 0])
    with pytest.raises(O2OSpecError, match="was overwritten"):
        replay.load_state_dict(state)
    longer = TrajectoryReplay(4)
    longer.load(episodes(3))
    with pytest.raises(O2OSpecError, match="other data"):
        longer.load_state_dict(state)


def test_a_running_trajectory_does_not_write_into_the_state_it_came_from() -> None:
    running = Trajectory()
    running.rows += rows(3).set(("next", "truncated"), torch.zeros(3, 1, dtype=torch.bool)).split(1)
    state = running.state_dict()
    running.load_state_dict(state)
    running.truncate()
    assert not state["rows"]["next"]["truncated"].any()


def test_what_an_optimizer_remembers_has_its_parameters_shapes(tmp_path: Path) -> None:
    """Torch loads moments of other networks without a word."""
    weights = [torch.nn.Parameter(torch.ones(size, 2)) for size in (3, 4)]
    optims = [torch.optim.Adam([weight]) for weight in weights]
    weights[0].square().sum().backward()
    optims[0].step()
    Checkpointer(tmp_path, objects={"optim": optims[0]}).save(1)
    with pytest.raises(O2OCheckpointError, match=r"'exp_avg(_sq)?' of parameter 0 is \[3, 2\], the parameter \[4, 2\]"):
        Checkpointer(tmp_path, objects={"optim": optims[1]}).restore()
    assert not optims[1].state


def test_a_checkpoint_of_half_a_step_would_never_be_found(tmp_path: Path) -> None:
    checkpoint = Checkpointer(tmp_path, objects={})
    with pytest.raises(O2OSpecError, match=r"got step=1.5, expected a whole number"):
        checkpoint.save(1.5)  # type: ignore[arg-type]
    checkpoint.save(np.int64(2))
    assert checkpoint.restore() == 2
