# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""What is not one row for each action is refused by every loss: torch would take all pairs of rows, or say little."""

from __future__ import annotations

import importlib
import inspect
import pathlib
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from tensordict import TensorDict
from torch import Tensor, nn

from torchrl_o2o import objectives
from torchrl_o2o.errors import O2OError, O2OSpecError
from torchrl_o2o.modules import make_actor, make_deterministic_actor, make_gaussian_actor, make_qvalue_ensemble
from torchrl_o2o.objectives import BCLoss, EnsembleSACLoss, ReBRACLoss
from torchrl_o2o.objectives.base import TransitionLoss
from torchrl_o2o.objectives.feed_forward import event_dims
from torchrl_o2o.testing import LossContract, random_transitions


def contracts() -> Iterator[Any]:
    """Every loss of the package, as its own contract builds it."""
    for file in sorted(pathlib.Path(__file__).parent.glob("test_*.py")):
        if "golden" in file.name or file.stem == "test_entries":
            continue
        module = importlib.import_module(f"tests.objectives.{file.stem}")
        for name, value in vars(module).items():
            if inspect.isclass(value) and issubclass(value, LossContract) and value.__module__ == module.__name__:
                yield pytest.param(value, id=f"{file.stem[5:]}-{name}")


def observed(change: Callable[[Tensor], Tensor]) -> Callable[[TensorDict], TensorDict]:
    def altered(batch: TensorDict) -> TensorDict:
        batch["observation"] = change(batch["observation"])
        batch["next", "observation"] = change(batch["next", "observation"])
        return batch

    return altered


def acted(change: Callable[[Tensor], Tensor]) -> Callable[[TensorDict], TensorDict]:
    return lambda batch: batch.set("action", change(batch["action"]))


WRONG = {
    "observations [B]": observed(lambda value: value.flatten(1)[:, 0]),
    "observations [B, 1, o]": observed(lambda value: value.unsqueeze(1)),
    "observations [B, 2, o]": observed(lambda value: torch.stack([value, value], 1)),
    "actions [B]": acted(lambda value: value[:, 0]),
    "actions [B, 1, A]": acted(lambda value: value.unsqueeze(1)),
    "no rows": lambda batch: batch[:0],
}


@pytest.mark.parametrize("wrong", WRONG)
@pytest.mark.parametrize("contract", contracts())
def test_every_loss_refuses(contract: type[LossContract], wrong: str) -> None:
    tests = contract()
    loss, batch = tests.make_loss(), WRONG[wrong](tests.make_batch())
    with pytest.raises(O2OError, match=r"got (an empty batch|'(observation|action)')"):
        loss(batch)


LOSSES = [value for value in vars(objectives).values() if isinstance(value, type) and issubclass(value, TransitionLoss)]


@pytest.mark.parametrize("loss", LOSSES)
def test_every_loss_says_what_importance_weights_do(loss: type[TransitionLoss]) -> None:
    """Their contracts hold it to ``weighted``."""
    assert "mportance weights" in (loss.__doc__ or "")


def test_every_loss_has_a_contract() -> None:
    built = {type(contract.values[0]().make_loss()) for contract in contracts()}
    assert set(LOSSES) - built == set()


@pytest.mark.parametrize("actor", [make_gaussian_actor, make_actor, make_deterministic_actor])
def test_a_column_of_numbers_is_no_single_row(actor: Callable[..., Any]) -> None:
    """As many rows as entries of a row: the shapes fit, and each action would be compared with one prediction."""
    batch = random_transitions(6, 6, 2)
    batch["observation"] = batch["observation"][:, 0]
    with pytest.raises(O2OSpecError, match=r"'observation' of shape \[6\] with 'action' of shape \[6, 2\]"):
        BCLoss(actor(6, 2, hidden_sizes=(8,)))(batch)


def test_a_network_of_ones_own_may_read_what_it_likes() -> None:
    class Windows(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4 * 3 + 2, 1)

        def forward(self, observation: Tensor, action: Tensor) -> Tensor:
            return self.layer(torch.cat([observation.flatten(-2), action], -1))

    assert event_dims(Windows()) == ()


def sac(observation_dim: int = 3, action_dim: int = 2, reduction: Any = "mean") -> EnsembleSACLoss:
    torch.manual_seed(0)
    critics = make_qvalue_ensemble(observation_dim, action_dim, num_qvalue_nets=2, hidden_sizes=(8,))
    return EnsembleSACLoss(make_actor(observation_dim, action_dim, hidden_sizes=(8,)), critics, reduction=reduction)


@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("dims", [(1, 1), (3, 3), (3, 2)])
def test_tensors_by_name_are_rows_however_wide(dims: tuple[int, int], reduction: str) -> None:
    batch = random_transitions(3, *dims)
    for loss in (sac(*dims, reduction=reduction), BCLoss(make_actor(*dims, hidden_sizes=(8,)), reduction=reduction)):
        torch.manual_seed(1)
        expected = loss(batch.clone())
        names = {"_".join(key) if isinstance(key, tuple) else key: batch[key] for key in loss.in_keys}
        torch.manual_seed(1)
        found = loss(**names)
        for key, value in zip(loss.out_keys, found if isinstance(found, tuple) else (found,), strict=True):
            torch.testing.assert_close(value, expected[key])


def test_a_batch_that_does_not_say_its_size_has_its_actions() -> None:
    loss, batch = sac(), random_transitions(6, 3, 2).set("priority_weight", torch.linspace(0.0, 2.0, 6))
    torch.manual_seed(1)
    expected = loss(batch)["loss_qvalue"]
    torch.manual_seed(1)
    torch.testing.assert_close(loss(TensorDict(batch.to_dict()))["loss_qvalue"], expected)


def test_columns_that_are_none_are_refused() -> None:
    batch = random_transitions(4, 3, 2).set("steps_to_next_obs", torch.ones(4, 2, dtype=torch.long))
    with pytest.raises(O2OSpecError, match="'steps_to_next_obs' of shape"):
        sac()(batch)
    actor = make_deterministic_actor(3, 2, hidden_sizes=(8,))
    loss = ReBRACLoss(actor, make_qvalue_ensemble(3, 2, num_qvalue_nets=2, hidden_sizes=(8,)))
    batch = random_transitions(4, 3, 2)
    batch["next", "action"] = torch.zeros(4, 1, 2)
    with pytest.raises(O2OSpecError, match=r"\('next', 'action'\) of shape \[4, 1, 2\]"):
        loss(batch)


def test_an_actor_without_a_spec_clones_actions_of_its_own_width() -> None:
    from tensordict.nn import TensorDictModule

    actor = TensorDictModule(nn.Linear(3, 1), in_keys=["observation"], out_keys=["action"])
    with pytest.raises(O2OSpecError, match=r"recorded actions of shape \[4, 2\], expected \[4, 1\]"):
        BCLoss(actor)(random_transitions(4, 3, 2))
