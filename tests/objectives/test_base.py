# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch
from tensordict import TensorDict
from torchrl.data import Bounded, Composite
from torchrl.modules import Actor
from torchrl.objectives.value import TD0Estimator

from torchrl_o2o.errors import O2OSpecError
from torchrl_o2o.modules import (
    make_actor,
    make_deterministic_actor,
    make_gaussian_actor,
    make_qvalue_ensemble,
    make_value_network,
)
from torchrl_o2o.objectives import (
    AWACLoss,
    BCLoss,
    CalQLLoss,
    CQLLoss,
    EnsembleSACLoss,
    IQLLoss,
    PixelSACLoss,
    SAMGEstimator,
    TD3BCLoss,
)
from torchrl_o2o.objectives.base import TransitionLoss
from torchrl_o2o.testing import random_transitions

SMALL: dict[str, Any] = {"hidden_sizes": (8,)}


def critics() -> list:
    return make_qvalue_ensemble(3, 2, num_qvalue_nets=2, **SMALL)


def losses() -> list[TransitionLoss]:
    actor = make_gaussian_actor(3, 2, **SMALL)
    return [
        EnsembleSACLoss(make_actor(3, 2, **SMALL), critics()),
        AWACLoss(actor, critics()),
        IQLLoss(actor, critics(), make_value_network(3, **SMALL)),
    ]


@pytest.mark.filterwarnings("ignore:No target network updater")
class TestBatch:
    """What a batch lacks is named, whatever the loss."""

    @pytest.mark.parametrize("key", ["observation", "action", "next", ("next", "observation"), ("next", "reward")])
    def test_missing_entries_are_named(self, key: str | tuple[str, str]) -> None:
        batch = random_transitions(4, 3, 2).exclude(key)
        name = key if isinstance(key, str) else key[-1]
        for loss in losses():
            with pytest.raises(
                O2OSpecError, match=rf"expected '{name}', one of .* that {type(loss).__name__} reads; .*set_keys"
            ):
                loss(batch.clone())

    def test_cloning_names_them_too(self) -> None:
        with pytest.raises(O2OSpecError, match=r"expected 'action', one of .* that BCLoss reads"):
            BCLoss(make_gaussian_actor(3, 2, **SMALL))(random_transitions(4, 3, 2).exclude("action"))

    @pytest.mark.parametrize("key", ["reward", "done", "terminated"])
    def test_columns_without_their_last_dimension_are_named(self, key: str) -> None:
        batch = random_transitions(4, 3, 2)
        batch["next", key] = batch["next", key].squeeze(-1)
        for loss in losses():
            with pytest.raises(
                O2OSpecError, match=rf"'{key}' of shape \(4,\).*expected one column, \(4, 1\).*unsqueeze"
            ):
                loss(batch.clone())

    @pytest.mark.parametrize("key", ["done", "terminated"])
    @pytest.mark.parametrize("dtype", [torch.int64, torch.float32, torch.uint8])
    def test_ends_are_flags(self, key: str, dtype: torch.dtype) -> None:
        """Of whole numbers, ~1 is -2: each row would bootstrap from a negative multiple of the next value."""
        batch = random_transitions(4, 3, 2)
        batch["next", key] = batch["next", key].to(dtype)
        for loss in losses():
            with pytest.raises(O2OSpecError, match=rf"got '{key}' of {dtype} under 'next', expected bool"):
                loss(batch.clone())

    def test_a_batch_that_cannot_be_written_or_weighed_is_named(self) -> None:
        batch = random_transitions(4, 3, 2)
        for loss in losses():
            with pytest.raises(
                O2OSpecError, match=r"got a locked batch, expected one into which 'td_error' can be written"
            ):
                loss(batch.clone().lock_())
            with pytest.raises(O2OSpecError, match=r"'priority_weight' of shape \(4, 2\) for a batch of \(4,\)"):
                loss(batch.clone().set("priority_weight", torch.ones(4, 2)))
            for gamma in (2, -0.1, float("nan"), "0.9", None, torch.ones(2)):
                with pytest.raises(O2OSpecError, match=r"expected a discount in \[0, 1\]"):
                    loss.make_value_estimator(gamma=gamma)

    def test_several_batch_dimensions_are_fine(self) -> None:
        for loss in losses():
            torch.manual_seed(0)
            assert isinstance(loss(random_transitions(6, 3, 2).reshape(2, 3)), TensorDict)


def test_hyper_parameters_beside_an_estimator_are_refused() -> None:
    loss = losses()[0]
    with pytest.raises(O2OSpecError, match=r"\['gamma'\] together with a SAMGEstimator"):
        loss.make_value_estimator(SAMGEstimator.from_loss(loss), gamma=0.9)


def test_an_estimator_is_built_of_its_class() -> None:
    """As TorchRL's losses do."""
    loss, batch = losses()[1], random_transitions(4, 3, 2)
    expected, got = [], []
    for target, arguments in ((expected, {}), (got, {"value_type": TD0Estimator})):
        loss.make_value_estimator(gamma=0.5, **arguments)
        torch.manual_seed(0)
        target.append(loss.target_value(batch))
    torch.testing.assert_close(got, expected)
    assert type(loss.value_estimator) is TD0Estimator
    with pytest.raises(O2OSpecError, match=r"got TD0Estimator with \['lmbda'\].*make_value_estimator\(TD0Estimator"):
        loss.make_value_estimator(TD0Estimator, lmbda=0.9)


def test_choosing_an_estimator_gives_the_loss_back() -> None:
    """As TorchRL's losses do, so that calls can be chained."""
    loss = losses()[0]
    assert loss.make_value_estimator(gamma=0.9) is loss
    assert loss.make_value_estimator(SAMGEstimator.from_loss(loss)) is loss


@pytest.mark.slow
def test_a_compiled_loss_takes_other_batch_sizes() -> None:
    """Where noise is drawn with ``generator=None``, the second size was an error of torch's."""
    sizes = {"hidden_sizes": (8,)}
    loss = TD3BCLoss(make_deterministic_actor(5, 3, **sizes), make_qvalue_ensemble(5, 3, num_qvalue_nets=2, **sizes))
    compiled = torch.compile(loss, backend="eager")
    for size in (6, 4):
        batch, out = random_transitions(size, 5, 3), []
        for each in (loss, compiled):
            torch.manual_seed(0)
            out.append(each(batch.clone())["loss_qvalue"])
        torch.testing.assert_close(*out)


class TestState:
    """A strict load says which names differ: parameters of networks would stay as they were drawn."""

    def loss(self, seed: int) -> EnsembleSACLoss:
        torch.manual_seed(seed)
        return EnsembleSACLoss(make_actor(3, 2, hidden_sizes=(8,)), make_qvalue_ensemble(3, 2, num_qvalue_nets=2))

    NAME = "qvalue_network_params.module.head.weight"

    def test_a_missing_name(self) -> None:
        state, other = self.loss(0).state_dict(), self.loss(1)
        del state[self.NAME]
        with pytest.raises(
            O2OSpecError, match=r"lacks 1 names, such as \['qvalue_network_params.module.head.weight'\]"
        ):
            other.load_state_dict(state)
        before = other.state_dict()[self.NAME].clone()
        other.load_state_dict(state, strict=False)
        assert torch.equal(other.state_dict()[self.NAME], before)

    def test_an_unknown_name(self) -> None:
        state = self.loss(0).state_dict()
        state["actor_network_params.module.extra"] = torch.zeros(1)
        with pytest.raises(O2OSpecError, match=r"has 1 unknown ones, such as \['actor_network_params.module.extra'\]"):
            self.loss(1).load_state_dict(state)

    def test_inside_another_module(self) -> None:
        agent, other = (torch.nn.ModuleDict({"loss": self.loss(seed)}) for seed in (0, 1))
        state = agent.state_dict()
        other.load_state_dict(state)
        del state[f"loss.{self.NAME}"]
        state["loss.actor_network_params.module.extra"] = torch.zeros(1)
        with pytest.raises(RuntimeError, match=r"Missing key(.|\n)*head.weight(.|\n)*Unexpected key(.|\n)*extra"):
            other.load_state_dict(state)


@pytest.mark.parametrize(
    ("loss", "parent", "more"),
    [(PixelSACLoss, EnsembleSACLoss, {"encoder_network"}), (CalQLLoss, CQLLoss, {"calibrate"})],
)
def test_a_variant_has_all_settings_of_its_parent(loss: type, parent: type, more: set[str]) -> None:
    """Spelled out, with the same defaults."""
    own, theirs = (inspect.signature(each).parameters for each in (loss, parent))
    assert set(own) - set(theirs) == more
    assert all((own[name].default, own[name].kind) == (each.default, each.kind) for name, each in theirs.items())
    assert inspect.Parameter.VAR_KEYWORD not in {each.kind for each in own.values()}


def boxed() -> list[tuple[TransitionLoss, TransitionLoss, dict[str, Any]]]:
    """Two losses of a kind, and the state of the first as it was saved before losses kept the box alike."""
    torch.manual_seed(0)
    wide = Bounded(torch.tensor([-1.0, 0.0]), torch.tensor([3.0, 1.0]), shape=(2,))
    out = []
    for build, old in ((CQLLoss, {}), (EnsembleSACLoss, {"bc_alpha": 0.1})):
        one, other = (build(make_actor(3, wide, **SMALL), critics(), **old) for _ in range(2))
        state = {name: value for name, value in one.state_dict().items() if not name.startswith("action_")}
        if old:
            state |= {"cloning_middle": torch.tensor([1.0, 0.5]), "cloning_half_width": torch.tensor([2.0, 0.5])}
        out.append((one, other, state))
    return out


@pytest.mark.parametrize("inside", [False, True])
def test_earlier_states_have_their_box(inside: bool) -> None:
    for one, other, state in boxed():
        if inside:
            torch.nn.ModuleDict({"loss": other}).load_state_dict({f"loss.{name}": state[name] for name in state})
        else:
            other.load_state_dict(state)
        for name, value in one.state_dict().items():
            assert torch.equal(other.state_dict()[name], value), name
        assert other.state_dict()["action_high"].tolist() == [3.0, 1.0]


def test_the_box_has_the_type_of_the_networks() -> None:
    """An actor of your own may state a box of float64, as environments do; clipped actions became float64 by it."""
    spec = Bounded(-1.0, 1.0, shape=(2,), dtype=torch.float64)
    actor = Actor(torch.nn.Linear(3, 2), in_keys=["observation"], spec=Composite(action=spec))
    loss = TD3BCLoss(actor, critics())
    assert loss.action_low.dtype == torch.float32
    assert loss.target_value(random_transitions(4, 3, 2)).dtype == torch.float32


def test_the_discount_keeps_its_precision() -> None:
    critics = make_qvalue_ensemble(3, 2, num_qvalue_nets=2, hidden_sizes=(8,))
    loss = EnsembleSACLoss(make_actor(3, 2, hidden_sizes=(8,)), critics).bfloat16()
    gamma = loss.value_estimator.gamma
    assert gamma.dtype == torch.float32
    assert round(float(gamma), 6) == 0.99
    batch = random_transitions(4, 3, 2).apply(lambda value: value.bfloat16() if value.is_floating_point() else value)
    assert loss.target_value(batch).dtype == torch.float32
    loss(batch)["loss_qvalue"].backward()
    assert loss.double().value_estimator.gamma.dtype == torch.float64


def test_a_reduction_that_is_none_is_refused_at_any_time() -> None:
    loss = BCLoss(make_actor(3, 2, hidden_sizes=(8,)))
    with pytest.raises(O2OSpecError, match="got reduction='avg'"):
        loss.reduction = "avg"  # type: ignore[assignment]
    assert loss.reduction == "mean"


def test_none_is_the_mean() -> None:
    """TorchRL's losses take it so."""
    actor, batch = make_actor(3, 2, hidden_sizes=(8,)), random_transitions(4, 3, 2)
    loss = BCLoss(actor, reduction=None)
    assert loss.reduction == "mean"
    assert loss(batch)["loss_actor"].shape == ()


def test_outputs_are_inherited() -> None:
    """Whether an object of the parent was there before or not."""

    class Parent(BCLoss):
        out_keys = ["loss_actor", "imitation_error"]

    class Child(Parent):
        pass

    actor = make_actor(3, 2, hidden_sizes=(8,))
    child = Child(actor, reduction="none")
    Parent(actor)
    assert child.out_keys == ["loss_actor"]
    assert Child(actor).out_keys == ["loss_actor", "imitation_error"]


def test_selected_outputs_stay_selected() -> None:
    loss = BCLoss(make_actor(3, 2, hidden_sizes=(8,))).select_out_keys("loss_actor")
    for loss.reduction in ("none", "mean"):
        assert loss.out_keys == ["loss_actor"]
    loss.reset_out_keys()
    assert loss.out_keys == ["loss_actor", "imitation_error"]


def test_a_discount_of_one_loads_another() -> None:
    """A whole number made a buffer of integers, into which 0.5 was loaded as 0."""
    saved, loss = (BCLoss(make_actor(3, 2, **SMALL)) for _ in range(2))
    saved.make_value_estimator(gamma=0.5)
    loss.make_value_estimator(gamma=1)
    loss.load_state_dict(saved.state_dict())
    assert loss.value_estimator.gamma == 0.5


@pytest.mark.parametrize("shared_head", [False, True])
def test_members_are_reset_as_single_networks(shared_head: bool) -> None:
    """A layer of 5 inputs is drawn within 1 / sqrt(5), not by the shape [2, 400, 5] of all members."""
    critics = make_qvalue_ensemble(3, 2, num_qvalue_nets=2, hidden_sizes=(400,), shared_head=shared_head)
    loss = EnsembleSACLoss(make_actor(3, 2, **SMALL), critics)
    loss.reset_parameters_recursive()
    first, head = (loss.qvalue_network_params["module", *key, "weight"] for key in (("trunk", "0", "0"), ("head",)))
    bound = 5**-0.5
    for member in first:
        assert 0.95 * bound < member.abs().max() <= bound
    assert not torch.equal(first[0], first[1])
    assert torch.equal(head[0], head[1]) is shared_head
