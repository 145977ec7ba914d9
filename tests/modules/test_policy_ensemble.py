# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
from __future__ import annotations

import copy

import pytest
import torch
from tensordict import TensorDict
from tensordict.nn import ProbabilisticTensorDictModule, ProbabilisticTensorDictSequential, TensorDictModule
from torch import nn
from torchrl.data import Bounded
from torchrl.envs import GymWrapper
from torchrl.envs.utils import ExplorationType, set_exploration_type

from torchrl_o2o.errors import O2OSpecError
from torchrl_o2o.functional.off2on import merge_gaussians
from torchrl_o2o.modules import (
    GaussianHead,
    PolicyEnsemble,
    TanhNormal,
    average_actors,
    make_actor,
    make_gaussian_actor,
)
from torchrl_o2o.testing import ContextualTargetEnv


def test_merged_moments_are_those_of_the_members() -> None:
    torch.manual_seed(0)
    actors = [make_actor(5, 2, hidden_sizes=(16, 16)) for _ in range(4)]
    data = TensorDict({"observation": torch.randn(6, 5)}, [6])
    each = [actor.get_dist(data) for actor in actors]
    loc, scale = torch.stack([dist.loc for dist in each]), torch.stack([dist.scale for dist in each])
    merged = average_actors(actors).get_dist(data)
    torch.testing.assert_close((merged.loc, merged.scale), merge_gaussians(loc, scale))


def test_members_are_copied() -> None:
    torch.manual_seed(0)
    actors = [make_actor(5, 2, hidden_sizes=(16,)) for _ in range(2)]
    merged, data = average_actors(actors), TensorDict({"observation": torch.randn(6, 5)}, [6])
    before = merged.get_dist(data).loc
    for value in actors[0].parameters():
        value.data.zero_()
    assert torch.equal(merged.get_dist(data).loc, before)


def test_one_actor_is_itself() -> None:
    torch.manual_seed(0)
    actor, data = make_actor(5, 2), TensorDict({"observation": torch.randn(6, 5)}, [6])
    merged = average_actors([actor]).get_dist(data)
    torch.testing.assert_close(merged.loc, actor.get_dist(data).loc)
    torch.testing.assert_close(merged.scale, actor.get_dist(data).scale)


def test_it_collects_and_evaluates() -> None:
    """Random under RANDOM, the squashed merged mean under DETERMINISTIC, single observations and batches alike."""
    torch.manual_seed(0)
    env = GymWrapper(ContextualTargetEnv())
    width, actions = env.observation_spec["observation"].shape[-1], env.action_spec.shape[-1]
    actor = average_actors([make_actor(width, actions, hidden_sizes=(16,)) for _ in range(3)])
    data = TensorDict({"observation": torch.zeros(width)}, [])
    with torch.no_grad(), set_exploration_type(ExplorationType.DETERMINISTIC):
        first, second = actor(data.clone()), actor(data.clone())
    torch.testing.assert_close(first["action"], first["loc"].tanh())
    assert torch.equal(first["action"], second["action"])
    with torch.no_grad(), set_exploration_type(ExplorationType.RANDOM):
        assert not torch.equal(actor(data.clone())["action"], actor(data.clone())["action"])
    rollout = env.rollout(3, actor)
    assert rollout["action"].shape[-1] == actions


def test_keys_spec_and_box_are_the_members() -> None:
    spec = Bounded(torch.tensor([-2.0, 0.0]), torch.tensor([2.0, 1.0]), shape=(2,), dtype=torch.float32)
    names = {"observation_key": ("agent", "state"), "action_key": ("agent", "action")}
    actor = average_actors([make_actor(5, spec, hidden_sizes=(16,), **names) for _ in range(2)])
    assert actor.spec["agent", "action"] == spec
    action = actor(TensorDict({("agent", "state"): 9.0 * torch.randn(100, 5)}, [100]))["agent", "action"]
    assert ((action >= spec.space.low) & (action <= spec.space.high)).all()


def test_copies_and_casts_are_independent() -> None:
    torch.manual_seed(0)
    actor = average_actors([make_actor(5, 2, hidden_sizes=(16,)) for _ in range(2)])
    observation = torch.randn(6, 5)
    expected = actor.get_dist(TensorDict({"observation": observation}, [6])).loc
    double = copy.deepcopy(actor).double()
    got = double.get_dist(TensorDict({"observation": observation.double()}, [6])).loc
    torch.testing.assert_close(got, expected.double(), rtol=1e-5, atol=1e-6)
    assert all(value.dtype == torch.float32 for value in actor.parameters())


def test_state_dict_round_trip() -> None:
    actors = [average_actors([make_actor(5, 2, hidden_sizes=(16,)) for _ in range(2)]) for _ in range(2)]
    actors[1].load_state_dict(actors[0].state_dict(), strict=True)
    data = TensorDict({"observation": torch.randn(6, 5)}, [6])
    assert torch.equal(actors[0].get_dist(data).loc, actors[1].get_dist(data).loc)


def test_what_cannot_be_merged_is_refused() -> None:
    with pytest.raises(O2OSpecError, match="no actor to average"):
        average_actors([])
    with pytest.raises(O2OSpecError, match="got policies 0 and 1 that differ in"):
        average_actors([make_actor(5, 2, hidden_sizes=(16,)), make_actor(5, 2, hidden_sizes=(8,))])
    with pytest.raises(O2OSpecError, match="no policy to merge"):
        PolicyEnsemble([])
    with pytest.raises(O2OSpecError, match="policies with buffers"):
        PolicyEnsemble([nn.Sequential(nn.BatchNorm1d(3), GaussianHead(3, 2))])


def test_actors_with_other_settings_are_refused() -> None:
    """The first one's bounds were taken for all."""
    actors = [make_actor(3, 2, hidden_sizes=(8,), log_std_bounds=bounds) for bounds in ((-5.0, 2.0), (-1.0, 0.0))]
    with pytest.raises(O2OSpecError, match=r"got policies 0 and 1 that have GaussianHead.*evaluate all"):
        average_actors(actors)


def test_what_is_no_actor_of_a_network_is_refused() -> None:
    body = TensorDictModule(GaussianHead(3, 2), in_keys=["observation"], out_keys=["loc", "scale"])
    head = ProbabilisticTensorDictModule(["loc", "scale"], ["action"], distribution_class=TanhNormal)
    with pytest.raises(O2OSpecError, match="ends in a ProbabilisticTensorDictModule"):  # which states no box
        average_actors([ProbabilisticTensorDictSequential(body, head)])
    actor = make_actor(3, 2, hidden_sizes=(8,))
    function = TensorDictModule(lambda seen: (seen, seen), in_keys=["observation"], out_keys=["loc", "scale"])
    with pytest.raises(O2OSpecError, match=r"got an actor with a function, expected a torch.nn.Module"):
        average_actors([actor, ProbabilisticTensorDictSequential(function, actor[-1])])
    deep = TensorDictModule(nn.Linear(3, 3), in_keys=["observation"], out_keys=["seen"])
    with pytest.raises(O2OSpecError, match=r"got an actor of 3 parts writing \['seen'\]"):
        average_actors([actor, ProbabilisticTensorDictSequential(deep, body, actor[-1])])


def test_dropout_is_that_of_the_members() -> None:
    """Off in evaluation, where the moments are the members' own, and drawn for each member in training."""
    torch.manual_seed(0)
    actors = [make_gaussian_actor(3, 1, dropout=0.5, hidden_sizes=(16,)) for _ in range(2)]
    net, seen = average_actors(actors)[0].module, torch.ones(5, 3)
    assert not torch.equal(net(seen)[0], net(seen)[0])
    net.eval()
    means = torch.stack([actor.eval()[0].module(seen)[0] for actor in actors])
    torch.testing.assert_close(net(seen)[0], means.mean(0))
