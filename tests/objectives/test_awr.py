# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from tensordict import TensorDict

from tests import golden_vectors as golden
from torchrl_o2o.errors import O2OSpecError
from torchrl_o2o.functional import advantage_weight, lambda_return, normalized_advantage
from torchrl_o2o.modules import make_actor, make_deterministic_actor, make_gaussian_actor, make_value_network
from torchrl_o2o.objectives import AWRLoss
from torchrl_o2o.testing import LossContract, random_transitions


def build(
    observation: int = 5, action: int = 3, *, keys: tuple[Any, Any] = ("observation", "action"), **settings: Any
) -> AWRLoss:
    torch.manual_seed(0)
    names = {"observation_key": keys[0], "action_key": keys[1]}
    actor = make_gaussian_actor(observation, action, hidden_sizes=(16,), mean="linear", **names)
    return AWRLoss(actor, make_value_network(observation, hidden_sizes=(16,), observation_key=keys[0]), **settings)


class TestContract(LossContract):
    trains = {"loss_actor": ("actor_network_params",), "loss_value": ("value_network_params",)}
    weighted = ("loss_actor", "loss_value")

    def make_loss(self, *, observation_key: Any = "observation", action_key: Any = "action") -> AWRLoss:
        return build(self.observation_dim, self.action_dim, keys=(observation_key, action_key))

    def make_batch(self, **keys: Any) -> TensorDict:
        batch = super().make_batch(**keys)
        column = torch.linspace(0.5, 2.0, len(batch)).unsqueeze(-1)
        return batch.update({"value_target": column, "advantage_weight": column.flip(0)})

    def bootstrapped(self, loss: Any, batch: TensorDict) -> None:
        """Returns are in the rows."""


@pytest.mark.usefixtures("float64")
def test_golden_returns_and_weights() -> None:
    tree = golden.load("awr/A")
    lengths, failed = tree["in/path_length"], tree["in/failed"].bool()
    ends = torch.cumsum(lengths, 0) - 1
    done = torch.zeros(int(lengths.sum()), dtype=torch.bool)
    terminated = done.clone()
    done[ends], terminated[ends] = True, failed
    paths = tree["in/value_with_last_state"].split((lengths + 1).tolist())
    value, next_value = (torch.cat([path[cut] for path in paths]) for cut in (slice(None, -1), slice(1, None)))
    hp = {name: golden.hp(tree, name) for name in ("discount", "td_lambda", "temperature", "weight_clip", "adv_eps")}
    returns = lambda_return(tree["in/reward"], next_value, terminated, done, hp["discount"], hp["td_lambda"])
    golden.assert_close(returns, tree["out/td_lambda_return"], "returns")
    golden.assert_close(returns - value, tree["out/advantage"], "advantage")
    normalized = normalized_advantage(returns - value, hp["adv_eps"])
    golden.assert_close(normalized, tree["out/normalised_advantage"], "normalized advantage")
    weight = advantage_weight(normalized, 1.0 / hp["temperature"], hp["weight_clip"])
    golden.assert_close(weight, tree["out/weight"], "weight")

    loss = build(1, 3, lmbda=hp["td_lambda"], temperature=hp["temperature"], weight_clip=hp["weight_clip"])
    loss.make_value_estimator(gamma=hp["discount"])
    loss._value = lambda state: state["observation"].squeeze(-1)  # type: ignore[method-assign]
    column = {name: entry.unsqueeze(-1) for name, entry in {"reward": tree["in/reward"], "done": done}.items()}
    following = {**column, "terminated": terminated.unsqueeze(-1), "observation": next_value.unsqueeze(-1)}
    rows = TensorDict({"observation": value.unsqueeze(-1), "next": following}, [len(done)])
    loss.label(rows)
    golden.assert_close(rows["value_target"].squeeze(-1), tree["out/td_lambda_return"], "labels")
    golden.assert_close(rows["advantage_weight"].squeeze(-1), tree["out/weight"], "labels")


def test_rows_that_were_drawn_are_warned_of() -> None:
    """Their returns would lead from each row to another one of any episode."""
    rows = random_transitions(8, 5, 3)
    rows["next", "observation"][:-1] = rows["observation"][1:]
    for name in ("terminated", "truncated", "done"):
        rows["next", name] = torch.zeros(8, 1, dtype=torch.bool)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        build().label(rows.clone())
    with pytest.warns(UserWarning, match=r"7 of 8 rows, the first in row 0, do not continue in the next row, and no"):
        build().label(rows.flip(0))
    rows["next", "done"][:] = rows["next", "truncated"][:] = True
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        build().label(rows.flip(0))


def test_means_outside_of_the_box_are_paid_for() -> None:
    loss, rows = build(), random_transitions(6, 5, 3)
    rows.update({"value_target": torch.zeros(6, 1), "advantage_weight": torch.zeros(6, 1)})
    head = loss.actor_network[0].module[-1].mean
    head_params = loss.actor_network_params["module", "0", "module", "1", "mean"]
    assert head_params["weight"].shape == head.weight.shape
    head_params["weight"].data.zero_()
    head_params["bias"].data.copy_(torch.tensor([1.5, -3.0, 0.2]))
    assert loss.actor_loss(rows)[0].item() == pytest.approx(10.0 * (0.5**2 + 2.0**2))


def test_rows_without_labels_are_refused() -> None:
    with pytest.raises(O2OSpecError, match=r"loss\.label"):
        build().value_loss(random_transitions(4, 5, 3))
    with pytest.raises(O2OSpecError, match=r"\[2, 2\]"):
        build().label(random_transitions(4, 5, 3).reshape(2, 2))
    with pytest.raises(O2OSpecError, match="expected rows of one step"):
        build().label(random_transitions(4, 5, 3).set("steps_to_next_obs", torch.full((4,), 3)))


def test_wrong_settings_are_refused() -> None:
    with pytest.raises(O2OSpecError, match="temperature=0"):
        build(temperature=0.0)
    with pytest.raises(O2OSpecError, match="deterministic"):
        AWRLoss(make_deterministic_actor(5, 3), make_value_network(5))  # type: ignore[arg-type]
    with pytest.raises(O2OSpecError, match="TanhNormal, which has no mean"):
        AWRLoss(make_actor(5, 3), make_value_network(5))
