# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""The pages' blocks of Python run as they stand, with a reader's own small networks and fewer steps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.optim import Adam
from torchrl.data import OfflineToOnlineReplayBuffer, TensorDictReplayBuffer
from torchrl.objectives import SoftUpdate

from tests.docs.test_pages import blocks
from torchrl_o2o.data import BalancedSampler, Convention, OnlineWriter, offline_online_storage
from torchrl_o2o.modules import make_actor, make_gaussian_actor, make_qvalue_ensemble, make_value_network
from torchrl_o2o.objectives import EnsembleSACLoss, IQLLoss
from torchrl_o2o.testing import random_transitions
from torchrl_o2o.updates import Descend, Update

pytestmark = pytest.mark.filterwarnings("ignore")
SMALL = (8,)
LOW, HIGH = torch.full((6,), -2.0), torch.full((6,), 2.0)


def run(page: str, word: str, given: dict[str, Any], fewer: dict[str, str] | None = None) -> dict[str, Any]:
    """Run the only block of a page with a word, and give its names."""
    (code,) = [block for block in blocks(page, "python") if word in block]
    for before, after in (fewer or {}).items():
        assert before in code
        code = code.replace(before, after)
    names = {**given}
    exec(compile(code, page, "exec"), names)
    return names


def loss_of() -> EnsembleSACLoss:
    return EnsembleSACLoss(make_actor(17, 6, hidden_sizes=SMALL), make_qvalue_ensemble(17, 6, hidden_sizes=SMALL))


def reader() -> dict[str, Any]:
    """What a reader of the pages already has, in HalfCheetah's shapes."""
    offline, loss = random_transitions(64, 17, 6), loss_of()
    critic = Adam(loss.qvalue_network_params.parameters())
    return {
        "loss": loss,
        "actor": loss.actor_network,
        "critics": loss.qvalue_network,
        "critic_optim": critic,
        "actor_optim": Adam(loss.actor_network_params.parameters()),
        "alpha_optim": Adam(loss.temperature.parameters()),
        "optim": critic,
        "target_updater": SoftUpdate(loss, tau=0.005),
        "offline": offline,
        "data": random_transitions(4, 17, 6),
        "buffer": TensorDictReplayBuffer(
            storage=offline_online_storage(offline, 100),
            sampler=BalancedSampler(64),
            writer=OnlineWriter(64),
            batch_size=20,
        ),
        "update": Update(loss, Descend("qvalue", critic)),
    }


def iql() -> dict[str, Any]:
    actor = make_gaussian_actor(3, 2, hidden_sizes=SMALL)
    loss = IQLLoss(actor, make_qvalue_ensemble(3, 2, hidden_sizes=SMALL), make_value_network(3, hidden_sizes=SMALL))
    optims = {
        f"{name}_optim": Adam(getattr(loss, f"{part}_network_params").parameters())
        for name, part in (("value", "value"), ("actor", "actor"), ("critic", "qvalue"))
    }
    return {"loss": loss, "batch": random_transitions(8, 3, 2), "target_updater": SoftUpdate(loss, tau=0.1), **optims}


def write_log(path: Path) -> None:
    """Three episodes of four steps, in arrays that every loader knows."""
    rng, rows = np.random.default_rng(0), 12
    ends = np.arange(rows) % 4 == 3
    columns = {"observations": rng.normal(size=(rows, 3)), "next_observations": rng.normal(size=(rows, 3))}
    columns["next_observations"][:-1][~ends[:-1]] = columns["observations"][1:][~ends[:-1]]
    flags = {"terminals": np.zeros(rows, bool), "timeouts": ends}
    np.savez(path, actions=rng.uniform(-1, 1, (rows, 2)), rewards=rng.normal(size=rows), **columns, **flags)


def test_a_human_takes_over() -> None:
    given = reader()
    given["data"]["next", "intervened"] = torch.full((4, 6), torch.nan)
    given["data"]["next", "intervened"][1] = 0.5
    buffer = run("docs/actors_elsewhere.md", "insert_intervened", given)["buffer"]
    assert len(buffer) == 64 + 1_000 + 4
    assert (buffer[64 + 1_000 + 1]["action"] == 0.5).all()


def test_an_update_of_the_page_on_speed() -> None:
    given = reader()
    names = run("docs/speed.md", "Repeat(20", given, {".compile()": ""})
    assert names["metrics"]["loss_qvalue"].isfinite()
    assert given["optim"].state_dict()["state"][0]["step"] == 20


def test_the_loop_that_can_be_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names = run("docs/robustness.md", "Checkpointer(", reader(), {"250_000": "4", "25_000": "2", "timeout=60": ""})
    assert names["collector"].frames == 4
    assert (tmp_path / "run/checkpoints").is_dir()


def test_agents_in_one_update() -> None:
    agents = []
    for _ in range(2):
        loss = loss_of()
        optims = [Adam(part.parameters()) for part in (loss.qvalue_network_params, loss.actor_network_params)]
        agents.append((loss, *optims, SoftUpdate(loss, tau=0.005)))
    batches = torch.stack([random_transitions(40, 17, 6) for _ in range(2)])
    names = run("docs/seeds.md", "Update.stack", {"agents": agents, "batches": batches}, {"update.compile()": "pass"})
    assert names["metrics"]["loss_qvalue"].shape == (2,)


def test_rows_of_many_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "logs").mkdir()
    for name in "ab":
        write_log(tmp_path / "logs" / f"{name}.npz")
    names = run("docs/data.md", "memmap_like", {}, {"100_000": "10"})
    assert (len(names["data"]), int(names["data"]["episode"][-1])) == (24, 5)


def test_torchrls_buffer_reads_a_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_log(tmp_path / "log.npz")
    names = run("docs/coming_from.md", "OfflineToOnlineReplayBuffer", {}, {"100_000": "10", "=256": "=4"})
    assert isinstance(names["buffer"], OfflineToOnlineReplayBuffer)


def test_policies_are_saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    given = {**reader(), "low": LOW, "high": HIGH, "convention": Convention().fit(random_transitions(64, 17, 6))}
    run("docs/deployment.md", "policy_saver", given)
    assert (tmp_path / "policy.pt").is_file()
    act = {"actor": given["actor"], "observation": np.zeros(17, np.float32)}
    assert run("docs/deployment.md", "any of the actors above", act)["action"].shape == (6,)


def test_environments_in_lockstep() -> None:
    given = reader()
    names = run("docs/deployment.md", "make_vector_env", given, {"100_000": "20"})
    assert len(given["buffer"]) == 64 + 20
    names |= {"actions": torch.zeros(10, 6)}
    assert len(run("docs/deployment.md", "collector.accepted", names)["data"]) == 10


@pytest.mark.parametrize("word", ["for optim, objective", "old_advantage"])
def test_the_order_of_iqls_steps(word: str) -> None:
    run("docs/algorithms/iql.md", word, iql())
