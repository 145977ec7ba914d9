# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""TorchRL's own front doors read the package's data sets."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.utils import get_object, instantiate
from torchrl.data import OfflineToOnlineReplayBuffer
from torchrl.data.datasets import load_dataset
from torchrl.data.replay_buffers import Sampler, Writer
from torchrl.objectives import LossModule

from torchrl_o2o import data, objectives
from torchrl_o2o.data import TRANSITION, load_offline, offline_replay_buffer, register_with_torchrl
from torchrl_o2o.data.torchrl_datasets import select_transition
from torchrl_o2o.errors import O2OSpecError
from torchrl_o2o.objectives import EnsembleSACLoss
from torchrl_o2o.testing import random_transitions


@pytest.fixture
def source(tmp_path: Path) -> str:
    rng = np.random.default_rng(0)
    rows = {"observations": rng.normal(size=(40, 3)), "next_observations": rng.normal(size=(40, 3))}
    ends = {"terminals": np.arange(40) % 10 == 9, "timeouts": np.zeros(40, bool)}
    np.savez(tmp_path / "log.npz", actions=rng.uniform(-1, 1, (40, 2)), rewards=rng.normal(size=40), **rows, **ends)
    return f"path:{tmp_path / 'log.npz'}"


def test_the_buffer_holds_the_loaded_rows_and_no_others(source: str) -> None:
    buffer, data = offline_replay_buffer(source, batch_size=16), load_offline(source)
    torch.testing.assert_close(buffer[:].select(*TRANSITION), data.select(*TRANSITION))
    assert buffer.sample().batch_size == (16,)
    with pytest.raises(RuntimeError):
        buffer.extend(data)
    with pytest.raises(O2OSpecError, match="batch_size=0"):
        offline_replay_buffer(source, batch_size=0)


def test_torchrl_loads_it_by_a_string(source: str) -> None:
    register_with_torchrl()
    register_with_torchrl()
    assert len(load_dataset(f"o2o:{source}", batch_size=8)) == 40


def test_rows_over_several_steps_keep_their_number_of_steps() -> None:
    rows = random_transitions(4, 3, 2).set("steps_to_next_obs", torch.tensor([3, 3, 2, 1]))
    rows["log_prob"] = torch.ones(4)
    assert set(select_transition(rows).keys(True, True)) == {*TRANSITION, "steps_to_next_obs"}


def test_torchrls_offline_to_online_buffer_takes_it(source: str) -> None:
    register_with_torchrl()
    buffer = OfflineToOnlineReplayBuffer(f"o2o:{source}", online_capacity=20, batch_size=8)
    buffer.extend(random_transitions(10, 3, 2).select(*TRANSITION))
    batch = buffer.sample()
    assert batch.batch_size == (8,)
    assert set(TRANSITION) <= set(batch.keys(True, True))


TRAINER = """
defaults:
  - trainer: sac
  - loss@trainer.loss_module: o2o_ensemble_sac
  - replay_buffer@trainer.replay_buffer: o2o
  - optimizer@trainer.optimizer: adam
  - target_net_updater@trainer.target_net_updater: soft
  - collector@trainer.collector: sync
  - env@trainer.collector.create_env_fn: o2o
  - _self_
actor: {_target_: torchrl_o2o.modules.make_actor, observation: 3, action: 1, hidden_sizes: [8]}
critics:
  _target_: torchrl_o2o.modules.make_qvalue_ensemble
  observation: 3
  action: 1
  hidden_sizes: [8]
  num_qvalue_nets: 2
trainer:
  total_frames: 24
  optim_steps_per_batch: 2
  save_trainer_file: null
  logger: null
  enable_logging: false
  progress_bar: false
  seed: 0
  loss_module: {actor_network: "${actor}", qvalue_network: "${critics}"}
  replay_buffer: {source: SOURCE, online_capacity: 100, batch_size: 8}
  collector:
    create_env_fn: {env_id: Pendulum-v1}
    policy: ${actor}
    frames_per_batch: 8
    total_frames: 24
    postproc: {_target_: torchrl_o2o.data.select_transition, _partial_: true}
"""


@pytest.mark.filterwarnings("ignore")
def test_torchrls_trainer_trains_from_configuration_alone(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    ends = {"terminals": np.zeros(40, bool), "timeouts": np.arange(40) % 10 == 9}
    columns = {"observations": rng.normal(size=(40, 3)), "next_observations": rng.normal(size=(40, 3))}
    np.savez(tmp_path / "log.npz", actions=rng.uniform(-1, 1, (40, 1)), rewards=rng.normal(size=40), **columns, **ends)
    (tmp_path / "config.yaml").write_text(TRAINER.replace("SOURCE", f"path:{tmp_path / 'log.npz'}"))
    register_with_torchrl()
    with initialize_config_dir(str(tmp_path), version_base="1.3"):
        trainer = instantiate(compose("config").trainer)
    before = {name: value.clone() for name, value in trainer.loss_module.state_dict().items()}
    trainer.train()
    after = trainer.loss_module.state_dict()
    for network in ("actor_network_params", "qvalue_network_params", "target_qvalue_network_params", "temperature"):
        assert any(name.startswith(network) and not torch.equal(after[name], before[name]) for name in after), network
    buffer = trainer.replay_buffer
    assert isinstance(trainer.loss_module, EnsembleSACLoss)
    assert (len(buffer), buffer.sampler.num_offline, buffer.writer.total_written) == (64, 40, 24)
    assert (buffer.sample()["index"] < 40).sum() == 4, "half of each batch is offline"


def test_every_entry_names_something_that_exists() -> None:
    register_with_torchrl()
    store = ConfigStore.instance()
    for group in ("loss", "sampler", "writer", "replay_buffer", "env"):
        entries = [name for name in store.list(group) if name.startswith("o2o")]
        assert entries, group
        for name in entries:
            assert callable(get_object(store.load(f"{group}/{name}").node._target_))


@pytest.mark.parametrize(
    ("group", "subpackage", "kind"),
    [
        ("loss", objectives, LossModule),
        ("sampler", data, Sampler),
        ("writer", data, Writer),
    ],
)
def test_every_part_has_an_entry(group: str, subpackage: Any, kind: type) -> None:
    register_with_torchrl()
    store = ConfigStore.instance()
    names = [name for name in store.list(group) if name.startswith("o2o")]
    parts = [getattr(subpackage, name) for name in subpackage.__all__]
    expected = {part for part in parts if isinstance(part, type) and issubclass(part, kind)}
    assert {get_object(store.load(f"{group}/{name}").node._target_) for name in names} == expected
