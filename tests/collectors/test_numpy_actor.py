# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
from __future__ import annotations

import copy
import pickle
from collections.abc import Callable

import numpy as np
import pytest
import torch
from tensordict import TensorDict
from tensordict.nn import TensorDictModule, TensorDictModuleBase, TensorDictSequential
from torch import nn
from torch.nn.utils import prune
from torchrl.data import Bounded
from torchrl.envs.utils import ExplorationType, set_exploration_type
from torchrl.modules import Actor, AdditiveGaussianModule, ProbabilisticActor, ValueOperator

from torchrl_o2o.collectors import StepCollector
from torchrl_o2o.collectors.numpy_actor import FastActor, find_parts, policy_parts
from torchrl_o2o.data.transforms import ObservationStats
from torchrl_o2o.envs import make_gym_env
from torchrl_o2o.errors import O2OSpecError
from torchrl_o2o.modules import average_actors, make_actor, make_deterministic_actor, make_gaussian_actor
from torchrl_o2o.modules.distributions import TanhNormal

BOX = Bounded(torch.tensor([-2.0, 0.0]), torch.tensor([2.0, 0.5]), shape=(2,), dtype=torch.float32)

ACTORS: dict[str, Callable[[], TensorDictModuleBase]] = {
    "standard": lambda: make_actor(5, 2),
    "box": lambda: make_actor(5, BOX, affine_log_std=True, unit_norm=True),
    "narrow": lambda: make_actor(5, 2, log_std_bounds=(-0.1, 0.1), initialization="torch"),
    "gaussian": lambda: make_gaussian_actor(5, 2, dropout=0.1),
    "gaussian box": lambda: make_gaussian_actor(5, BOX, std="sigmoid", log_std_bounds=(-6.0, 0.0)),
    "gaussian linear": lambda: make_gaussian_actor(5, BOX, mean="linear"),
    "gaussian unclipped": lambda: make_gaussian_actor(5, 2, mean="linear", clip_samples=False),
    "deterministic": lambda: make_deterministic_actor(5, 2, dropout=0.2),
    "deterministic box": lambda: make_deterministic_actor(5, BOX),
    "ensemble": lambda: average_actors([make_actor(5, 2, affine_log_std=True, unit_norm=True) for _ in range(3)]),
    "ensemble box": lambda: average_actors([make_actor(5, BOX) for _ in range(3)], log_std_bounds=(-0.5, -0.4)),
}


def trained(name: str) -> TensorDictModuleBase:
    """An actor with parameters far from their initial ones, as training leaves them."""
    torch.manual_seed(0)
    actor = ACTORS[name]()
    with torch.no_grad():
        for parameter in actor.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return actor


def reference(actor: TensorDictModuleBase, observation: torch.Tensor, kind: ExplorationType) -> torch.Tensor:
    actor.eval()
    with torch.no_grad(), set_exploration_type(kind):
        return actor(TensorDict({"observation": observation}, observation.shape[:-1]))["action"]


@pytest.mark.parametrize("name", ACTORS)
@pytest.mark.parametrize("kind", [ExplorationType.DETERMINISTIC, ExplorationType.RANDOM], ids=["mode", "sample"])
def test_equals_the_torchrl_actor(name: str, kind: ExplorationType) -> None:
    """To 1e-6, on single observations and batches, in both modes; samples from the same global noise."""
    actor = trained(name)
    act = FastActor(actor, deterministic=kind is ExplorationType.DETERMINISTIC)
    observation = torch.randn(64, 5)
    for rows in (observation, observation[0]):
        torch.manual_seed(1)
        expected = reference(actor, rows, kind).numpy()
        torch.manual_seed(1)
        got = act(rows.numpy())
        assert got.dtype == expected.dtype
        assert got.shape == expected.shape
        half_width = 2.0 if "box" in name else 1.0
        # An action without a box is rounded in proportion to its size.
        assert (np.abs(got - expected) <= 1e-6 * np.maximum(half_width, np.abs(expected))).all()


@pytest.mark.parametrize("name", ACTORS)
def test_parts_act_bit_for_bit(name: str) -> None:
    actor, observation = trained(name), torch.randn(5)
    parts = policy_parts(actor)
    for kind in (ExplorationType.DETERMINISTIC, ExplorationType.RANDOM):
        torch.manual_seed(1)
        expected = reference(actor, observation, kind)
        torch.manual_seed(1)
        with torch.no_grad():
            got = parts.act(observation, deterministic=kind is ExplorationType.DETERMINISTIC)
        assert torch.equal(got, expected)


@pytest.mark.parametrize("make", [make_actor, make_deterministic_actor], ids=lambda make: make.__name__)
def test_no_action_leaves_the_box_by_rounding(make: Callable[..., TensorDictModuleBase]) -> None:
    low, high = torch.tensor([-0.3, -2.0]), torch.tensor([0.4, 0.1])
    act = FastActor(make(5, Bounded(low, high, (2,))), deterministic=True)
    action = act(1e6 * np.random.default_rng(0).standard_normal((200, 5), np.float32))
    assert (action >= low.numpy()).all()
    assert (action <= high.numpy()).all()
    assert (action > high.numpy() - 1e-6).any(0).all(), "some actions are at the edge"


def test_float64() -> None:
    actor = trained("box").double()
    observation = torch.randn(8, 5, dtype=torch.float64)
    expected = reference(actor, observation, ExplorationType.DETERMINISTIC).numpy()
    assert np.abs(FastActor(actor)(observation.numpy()) - expected).max() <= 1e-12


def test_follows_a_training_actor() -> None:
    """The optimizer's steps are seen without a refresh; a replaced parameter is after one."""
    actor = trained("standard")
    act, observation = FastActor(actor), torch.randn(5)
    before = act(observation.numpy())
    optim = torch.optim.Adam(actor.parameters(), lr=1e-2, fused=True)
    data = actor(TensorDict({"observation": observation}))
    data["loc"].sum().backward()
    optim.step()
    expected = reference(actor, observation, ExplorationType.DETERMINISTIC).numpy()
    assert np.abs(act(observation.numpy()) - before).max() > 1e-3
    assert np.abs(act(observation.numpy()) - expected).max() <= 1e-6
    actor.double()
    act.refresh()
    assert act(observation.numpy()).dtype == np.float64


def test_standardizes_observations() -> None:
    actor = trained("standard")
    stats = ObservationStats(torch.randn(5), torch.rand(5) + 0.5)
    observation = torch.randn(3, 5)
    expected = reference(actor, (observation - stats.mean) / stats.scale, ExplorationType.DETERMINISTIC).numpy()
    assert np.abs(FastActor(actor, stats=stats)(observation.numpy()) - expected).max() <= 1e-6


def test_noise_from_outside_and_from_a_generator() -> None:
    actor, observation = trained("standard"), np.zeros((3, 5), np.float32)
    noise = torch.randn(3, 2, generator=torch.Generator().manual_seed(4)).numpy()
    own = FastActor(actor, deterministic=False, generator=torch.Generator().manual_seed(4))
    before = torch.get_rng_state()
    assert np.array_equal(own(observation), own(observation, noise))
    assert torch.equal(torch.get_rng_state(), before), "the global generator is left alone"


def test_dropout_is_off_and_the_mode_of_training_untouched() -> None:
    actor = trained("deterministic").train()
    act, observation = FastActor(actor), np.ones(5)
    assert np.array_equal(act(observation), act(observation))
    assert actor.training


def test_observations_are_not_written_to() -> None:
    observation = np.full(5, -1.0, np.float32)
    FastActor(trained("standard"))(observation)
    assert (observation == -1.0).all()


def test_an_actor_of_a_plain_function_is_called_as_it_is() -> None:
    box = Bounded(-torch.ones(2), torch.ones(2))
    halved = Actor(lambda observation: observation[..., :2] / 2, spec=box)
    body = TensorDictModule(
        lambda observation: (observation[..., :2], torch.ones(2)), in_keys=["observation"], out_keys=["loc", "scale"]
    )
    drawn = ProbabilisticActor(
        body, in_keys=["loc", "scale"], out_keys=["action"], spec=box, distribution_class=TanhNormal
    )
    assert find_parts(halved) is None
    assert find_parts(drawn) is None
    pushed = Actor(lambda observation: observation[..., :1] / 2, spec=Bounded(-torch.ones(1), torch.ones(1)))
    (row,) = StepCollector(make_gym_env("Pendulum-v1"), pushed, total_frames=1, seed=0)
    assert torch.equal(row["action"], row["observation"][:, :1] / 2)


def test_what_it_cannot_do_it_says() -> None:
    explorer = TensorDictSequential(trained("deterministic"), AdditiveGaussianModule(ACTORS["deterministic"]().spec))
    value = ValueOperator(torch.nn.Linear(5, 1), in_keys=["observation"])
    for module in (explorer, value, make_actor(5, 2, observation_key="pixels")):
        assert find_parts(module) is None
        with pytest.raises(O2OSpecError, match="expected an actor from make_actor, make_gau"):
            FastActor(module)
    strange = make_deterministic_actor(5, 2)
    strange.module[1] = torch.nn.Softsign()
    with pytest.raises(O2OSpecError, match=r"Softsign.*expected an actor from make_actor"):
        FastActor(strange)
    with pytest.raises(O2OSpecError, match=r"bfloat16.*float32 or float64"):
        FastActor(make_actor(5, 2).bfloat16())
    with pytest.raises(O2OSpecError, match=r"statistics of \[1\] and \[1\], expected 5 entries"):
        FastActor(trained("standard"), stats=ObservationStats(*torch.ones(2, 1)))
    with pytest.raises(O2OSpecError, match=r"shape \(4,\), expected \[5\] or \[B, 5\]"):
        FastActor(trained("standard"))(np.zeros(4))
    for chosen in ({"joint": np.zeros(3), "target": np.zeros(2)}, [[0.0], [1.0, 2.0]]):
        with pytest.raises(
            O2OSpecError, match=r"no array of numbers.*expected \[5\].* join the entries of a dictionary"
        ):
            FastActor(trained("standard"))(chosen)  # pyright: ignore[reportArgumentType]


def test_parts_of_averaged_actors() -> None:
    actor, observation = average_actors([make_actor(5, 2) for _ in range(3)]), torch.randn(5)
    expected = reference(actor, observation, ExplorationType.DETERMINISTIC)
    with torch.no_grad():
        assert torch.equal(policy_parts(actor).act(observation, deterministic=True), expected)


@pytest.mark.parametrize("make", [make_actor, make_gaussian_actor, make_deterministic_actor])
def test_no_action_is_given_that_is_not_finite(make: Callable[..., TensorDictModuleBase]) -> None:
    actor = make(3, 2, hidden_sizes=(8,))
    act = FastActor(actor)
    assert np.isfinite(act(np.full(3, 1e30, np.float32))).all() or make is not make_actor
    with pytest.raises(
        O2OSpecError, match=r"the policy gave the action \[nan, nan\] for the observation \[nan, 0.0, 0.0\]"
    ):
        act(np.array([np.nan, 0.0, 0.0]))
    with pytest.raises(O2OSpecError, match="got numbers of an observation of which 1 are masked"):
        act(np.ma.array([1.0, 0.0, 0.0], mask=[True, False, False]))  # a sensor that failed; it acted on the 1
    with torch.no_grad():
        next(actor.parameters()).fill_(float("nan"))
    with pytest.raises(O2OSpecError, match="expected finite numbers"):
        act(np.zeros((4, 3)))


def test_noise_of_another_shape_is_not_broadcast() -> None:
    act = FastActor(make_actor(3, 2, hidden_sizes=(8,)), deterministic=False)
    for noise in (np.zeros((5, 2)), np.zeros(1), np.zeros(())):
        with pytest.raises(O2OSpecError, match=r"got noise of shape .*, expected \[2\]"):
            act(np.zeros(3), noise)
    assert act(np.zeros(3), np.zeros(2)).dtype == np.float32
    with pytest.raises(O2OSpecError, match=r"got noise of shape \[2\], expected \[5, 2\]"):
        policy_parts(act.actor).act(torch.zeros(5, 3), noise=torch.zeros(2))


class _Doubled(nn.Linear):
    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return 2 * super().forward(input)


def _hooked(layer: nn.Linear) -> None:
    layer.register_forward_hook(lambda layer, seen, out: 2 * out)


def _replaced(layer: nn.Linear) -> None:
    layer.forward = lambda seen: 2 * nn.functional.linear(seen, layer.weight, layer.bias)  # type: ignore[method-assign]


def _normed(layer: nn.Linear) -> None:
    nn.utils.parametrizations.weight_norm(layer)


def _subclassed(layer: nn.Linear) -> None:
    layer.__class__ = _Doubled


@pytest.mark.parametrize("alter", [_hooked, _replaced, _normed, _subclassed])
@pytest.mark.parametrize("part", [0, 1])  # a hidden layer, and one in the head
def test_layers_that_compute_something_else_are_refused(alter: Callable[[nn.Linear], None], part: int) -> None:
    actor = make_actor(3, 1, hidden_sizes=(8,))
    alter(next(layer for layer in actor[0].module[part].modules() if isinstance(layer, nn.Linear)))
    with pytest.raises(O2OSpecError, match=r"actor (with hooks|with another forward|of ParametrizedL|of _Doubled)"):
        FastActor(actor)


def test_an_actor_that_is_pruned_later_is_refused() -> None:
    """Its layer has lost its parameter, of which a KeyError told."""
    actor = make_actor(3, 1, hidden_sizes=(8,))
    act = FastActor(actor)
    prune.l1_unstructured(next(layer for layer in actor.modules() if isinstance(layer, nn.Linear)), "weight", amount=3)
    with pytest.raises(O2OSpecError, match="an actor with hooks"):
        act(np.ones(3))


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda act: pickle.loads(pickle.dumps(act))])
def test_a_copy_acts_with_its_own_actor(copied: Callable[[FastActor], FastActor]) -> None:
    act = FastActor(make_actor(3, 1, hidden_sizes=(8,)))
    before, twin = act(np.ones(3)), copied(act)
    with torch.no_grad():
        for parameter in act.actor.parameters():
            parameter.add_(0.5)
    assert np.array_equal(twin(np.ones(3)), before)
    assert not np.array_equal(act(np.ones(3)), before)


@pytest.mark.parametrize("how", ["assign", "data", "vector"])
@pytest.mark.parametrize("name", ["standard", "gaussian box", "ensemble"])
def test_parameters_that_are_replaced_are_used(name: str, how: str) -> None:
    actor, source = trained(name), trained(name)
    with torch.no_grad():
        for parameter in source.parameters():
            parameter.mul_(1.5)
    act, observation = FastActor(actor), torch.linspace(-1, 1, 5)
    before = act(observation.numpy())
    if how == "assign":
        actor.load_state_dict(source.state_dict(), assign=True)
    elif how == "data":
        for own, other in zip(actor.parameters(), source.parameters(), strict=True):
            own.data = other.data
    else:
        nn.utils.vector_to_parameters(nn.utils.parameters_to_vector(source.parameters()), actor.parameters())
    wanted = reference(source, observation, ExplorationType.DETERMINISTIC)
    assert not np.allclose(before, wanted, atol=1e-3)
    np.testing.assert_allclose(act(observation.numpy()), wanted, atol=1e-5)
