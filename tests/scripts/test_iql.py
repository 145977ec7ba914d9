# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""sota-implementations/iql/iql.py."""

from __future__ import annotations

import math
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.scripts.phases import PhasesContract, newest, rows
from tests.scripts.running import compose
from torchrl_o2o.errors import O2OSpecError
from torchrl_o2o.testing import random_transitions
from torchrl_o2o.trainers.algorithms import make_iql

pytestmark = pytest.mark.filterwarnings("ignore:No target network updater")
SMALL = ("actor.hidden_sizes=[16]", "qvalue.hidden_sizes=[16]", "value.hidden_sizes=[16]")


class TestIQL(PhasesContract):
    script = "iql"
    words = SMALL[1:]
    optims = ("value", "actor", "qvalue")

    def test_actor_rate_falls_offline_and_is_whole_again_online(self, tmp_path: Path) -> None:
        """The contract's resumption tests compare the rate at every step, since it is logged."""
        self.train(tmp_path)
        offline = [row["train/lr_actor"] for row in rows(tmp_path / "offline") if "train/lr_actor" in row]
        expected = [3e-4 * 0.5 * (1 + math.cos(math.pi * step / 6)) for step in range(1, 7)]
        assert offline == pytest.approx(expected, abs=1e-9)
        assert newest(tmp_path / "offline", "actor_schedule")["last_epoch"] == 6
        online = [row["train/lr_actor"] for row in rows(tmp_path) if "train/lr_actor" in row]
        assert online == pytest.approx([3e-4] * 24)


def learner(*words: str) -> Any:
    torch.manual_seed(0)
    cfg = compose("iql", "task=halfcheetah", "preset=cpu", "compile=false", *SMALL, *words)
    return make_iql(cfg, (3, 2))


DETERMINISTIC = ("policy=deterministic", "~actor.mean", "~actor.std", "~actor.log_std_bounds")


class TestDeterministicPolicy(TestIQL):
    words = (*TestIQL.words, *DETERMINISTIC)


def test_a_deterministic_policy_is_fitted_by_distance_and_explores_with_noise() -> None:
    iql, batch = learner(*DETERMINISTIC), random_transitions(64, 3, 2)
    acted = iql.actor(batch.select("observation"))["action"]
    distance = (acted - batch["action"]).square().sum(-1).mean()
    torch.testing.assert_close(iql.update(batch)["imitation_error"], distance)
    rows = batch.select("observation").expand(100, 64).reshape(-1)
    noise = iql.explorer(rows.clone())["action"] - iql.actor(rows.clone())["action"]
    assert noise.std().item() == pytest.approx(0.03, rel=0.1)
    stochastic = learner()
    assert stochastic.explorer is stochastic.actor
    with pytest.raises(O2OSpecError, match="policy='other'"):
        learner("policy=other")


@pytest.mark.parametrize("order", ["authors", "corl"])
def test_which_value_function_the_actor_and_the_critics_see(order: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Authors: the new one for both. CORL: the old one for both."""
    iql, batch, seen = learner(f"order={order}"), random_transitions(8, 3, 2), []
    old = iql.loss.target_value(batch), iql.loss.advantage(batch)
    actor_loss, qvalue_loss = iql.loss.actor_loss, iql.loss.qvalue_loss

    def spy_actor(batch: Any, *, old_advantage: Any = None) -> Any:
        seen.append(("actor", iql.loss.advantage(batch) if old_advantage is None else old_advantage))
        return actor_loss(batch, old_advantage=old_advantage)

    def spy_critics(batch: Any, *, target_value: Any = None) -> Any:
        seen.append(("qvalue", iql.loss.target_value(batch) if target_value is None else target_value))
        return qvalue_loss(batch, target_value=target_value)

    monkeypatch.setattr(iql.loss, "actor_loss", spy_actor)
    monkeypatch.setattr(iql.loss, "qvalue_loss", spy_critics)
    iql.update(batch)
    values = dict(seen)
    assert [name for name, _ in seen] == ["actor", "qvalue"]
    same = [torch.equal(values[name], was) for name, was in zip(("qvalue", "actor"), old)]
    assert same == [order == "corl"] * 2


def test_an_unknown_order_is_refused() -> None:
    with pytest.raises(O2OSpecError, match="order"):
        learner("order=alphabetic")


def test_it_acts_without_dropout_and_trains_with_it() -> None:
    iql, batch = learner("actor.dropout=0.5"), random_transitions(64, 3, 2)
    act = [iql.actor(batch.select("observation").clone())["loc"] for _ in range(2)]
    assert torch.equal(*act)
    with torch.no_grad():
        acting = -iql.actor.get_dist(batch.select("observation")).log_prob(batch["action"]).mean()
    trained_on = [iql.update(batch)["imitation_error"]]
    assert not torch.isclose(trained_on[0], acting, rtol=1e-5)
    assert not iql.actor.training


def test_that_dropout_keeps_an_update_from_being_compiled_is_said() -> None:
    """Adroit's actor has dropout and scripts compile by default."""
    words = ("iql", "task=adroit-pen", *SMALL)
    with pytest.warns(UserWarning, match=r"compile=true and dropout=0\.1: this update of IQLLoss is not compiled"):
        assert not make_iql(compose(*words), (3, 2)).update.compiled
    with pytest.raises(O2OSpecError, match="matmul_dtype=bfloat16 is for compiled updates"):
        make_iql(compose(*words, "matmul_dtype=bfloat16"), (3, 2))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not make_iql(compose(*words, "compile=false"), (3, 2)).update.compiled


def test_published_settings() -> None:
    """Kostrikov et al. 2022 and its authors' code; CORL's by ``reference``."""
    cfg, maze, hand = compose("iql"), compose("iql", "task=antmaze-medium"), compose("iql", "task=adroit-pen")
    assert [(c.loss.expectile, c.loss.beta, c.actor.dropout) for c in (cfg, maze, hand)] == [
        (0.7, 3.0, None),
        (0.9, 10.0, None),
        (0.7, 0.5, 0.1),
    ]
    assert (cfg.decay_actor_lr, maze.decay_actor_lr) == (True, False)
    assert (cfg.optim.lr, cfg.offline.num_steps, cfg.online.total_frames, cfg.target.tau) == (3e-4, 10**6, 10**6, 0.005)
    corl = compose("iql", "task=antmaze-medium", "reference=corl")
    assert (corl.order, corl.decay_actor_lr, corl.actor.initialization, corl.loss.beta) == ("corl", True, "torch", 10.0)
    assert (corl.convention_of, corl.loss.ensemble_reduction) == ("iql_corl", "mean")
