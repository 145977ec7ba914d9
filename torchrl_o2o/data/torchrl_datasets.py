# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Data sets in the forms that TorchRL's own tools accept."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import make_dataclass
from typing import Any

import torch
from tensordict import TensorDictBase
from torchrl.data import ImmutableDatasetWriter, ReplayBuffer, TensorDictReplayBuffer, TensorStorage
from torchrl.data.datasets import register_dataset

from torchrl_o2o.arguments import checked_arguments
from torchrl_o2o.data.buffers import StartingData, starting_buffer
from torchrl_o2o.data.keys import TRANSITION, check_padding, with_steps
from torchrl_o2o.data.load import load_offline
from torchrl_o2o.errors import check_count

__all__ = ["offline_online_replay_buffer", "offline_replay_buffer", "register_with_torchrl", "select_transition"]


@checked_arguments
def offline_replay_buffer(
    source: str,
    *,
    batch_size: int | None = None,
    env: str | None = None,
    action_bounds: tuple[float, float] | None = None,
    max_episode_steps: int | None = None,
    obs_keys: Sequence[str] | None = None,
    device: torch.device | str = "cpu",
) -> ReplayBuffer:
    """A data set as a replay buffer that cannot be extended, with uniform draws with replacement.

    Rows have only the entries of :data:`TRANSITION`, so that they can be concatenated with a collector's rows. The
    arguments except ``batch_size`` and ``device`` are those of :func:`load_offline`, which audits the data.

    Args:
        source: name or file.
        batch_size: rows of one ``sample()``; with ``None`` (default), pass it to ``sample``.
        env: environment that the data should fit.
        action_bounds: box of the recorded actions.
        max_episode_steps: time limit.
        obs_keys: of observations in several entries.
        device: of the storage. Defaults to ``"cpu"``.

    Returns:
        The buffer.

    Raises:
        O2ODataError: if the data cannot be read or are broken.
        O2OSpecError: if the batch size is not positive.

    Examples:
        >>> import numpy as np, tempfile
        >>> path = tempfile.mkdtemp() + "/log.npz"
        >>> rows = {"observations": np.zeros((6, 2)), "actions": np.zeros((6, 1)), "rewards": np.ones(6)}
        >>> np.savez(path, **rows, terminals=np.arange(6) == 5, timeouts=np.zeros(6, bool))
        >>> buffer = offline_replay_buffer(f"path:{path}", batch_size=4)
        >>> buffer.sample()["next", "reward"].shape
        torch.Size([4, 1])
    """
    if batch_size is not None:
        check_count("batch_size", batch_size, least=1)
    data = load_offline(
        source, env=env, action_bounds=action_bounds, max_episode_steps=max_episode_steps, obs_keys=obs_keys
    )
    storage = TensorStorage(data.select(*TRANSITION).to(device), device=device)
    return ReplayBuffer(storage=storage, writer=ImmutableDatasetWriter(), batch_size=batch_size)


@checked_arguments
def offline_online_replay_buffer(
    source: str,
    *,
    online_capacity: int,
    batch_size: int,
    data: StartingData = "symmetric",
    offline_fraction: float = 0.5,
    env: str | None = None,
    action_bounds: tuple[float, float] | None = None,
    max_episode_steps: int | None = None,
    obs_keys: Sequence[str] | None = None,
) -> TensorDictReplayBuffer:
    """A data set and slots for online rows in one replay buffer, for TorchRL's trainers.

    Rows have only the entries of :data:`TRANSITION`. Cut a collector's rows to them with :func:`select_transition`, as
    the collector's ``postproc`` or in a trainer's hook.

    Args:
        source: name or file.

    Keyword Args:
        online_capacity: slots of online rows.
        batch_size: rows of one ``sample()``.
        data: which rows stay, and how they are drawn; see :func:`~torchrl_o2o.data.buffers.starting_buffer`. Defaults
            to ``"symmetric"``.
        offline_fraction: share of the data set in each batch of ``"symmetric"``. Defaults to 0.5.
        env: environment that the data should fit.
        action_bounds: box of the recorded actions.
        max_episode_steps: time limit.
        obs_keys: of observations in several entries.

    Returns:
        The buffer.

    Raises:
        O2ODataError: if the data cannot be read or are broken.
        O2OSpecError: if an argument is out of range.

    Examples:
        >>> import numpy as np, tempfile
        >>> path = tempfile.mkdtemp() + "/log.npz"
        >>> rows = {"observations": np.zeros((6, 2)), "actions": np.zeros((6, 1)), "rewards": np.ones(6)}
        >>> np.savez(path, **rows, terminals=np.arange(6) == 5, timeouts=np.zeros(6, bool))
        >>> buffer = offline_online_replay_buffer(f"path:{path}", online_capacity=10, batch_size=4)
        >>> len(buffer), buffer.sampler.num_offline, buffer.writer.num_offline
        (6, 6, 6)
    """
    rows = load_offline(
        source, env=env, action_bounds=action_bounds, max_episode_steps=max_episode_steps, obs_keys=obs_keys
    )
    return starting_buffer(
        rows, online_capacity, data=data, batch_size=check_count("batch_size", batch_size, least=1),
        offline_fraction=offline_fraction,
    )  # fmt: skip


def select_transition(data: TensorDictBase) -> TensorDictBase:
    """Cut a collector's rows to the entries of :data:`TRANSITION`; use it as ``postproc``.

    Rows over several steps keep their number of steps, too.

    Args:
        data: transitions.

    Returns:
        The same transitions without their other entries.

    Raises:
        KeyError: if an entry is missing.
        O2ODataError: if some rows are padding (:func:`~torchrl_o2o.data.keys.check_padding`).

    Examples:
        >>> from torchrl_o2o.testing import random_transitions
        >>> len(select_transition(random_transitions(4, 3, 2).set("log_prob", torch.zeros(4))).keys(True, True))
        7
    """
    check_padding(data)
    return data.select(*with_steps(TRANSITION, data))


def register_with_torchrl(prefix: str = "o2o") -> None:
    """Let TorchRL's own tools find this package's parts by name.

    ``load_dataset("o2o:NAME", batch_size=256)`` is then :func:`offline_replay_buffer`, and so are the data-set strings
    of TorchRL's ``OfflineToOnlineReplayBuffer`` and trainers. Calling it again changes nothing.

    If Hydra is installed and TorchRL has its configuration groups, they get entries, too: ``loss``
    (``o2o_ensemble_sac``, ``o2o_awac``, ``o2o_iql``, ...), ``sampler`` (``o2o_balanced``, ...), ``writer``
    (``o2o_online``), ``replay_buffer`` (``o2o``: :func:`offline_online_replay_buffer`) and ``env`` (``o2o``:
    :func:`~torchrl_o2o.envs.make_env`). An entry names the target, and its arguments are those of the constructor.

    Args:
        prefix: the part before the colon of a data set's name and before the underscore of an entry's. Defaults to
            ``"o2o"``.

    Examples:
        >>> from torchrl.data.datasets import load_dataset
        >>> register_with_torchrl()
        >>> load_dataset("o2o:path:nothing.npz")
        Traceback (most recent call last):
        ...
        torchrl_o2o.errors.O2ODataError: ...
    """
    register_dataset(prefix, f"{__name__}:{offline_replay_buffer.__name__}", replace=True)
    _store_entries(prefix)


#: Entries of TorchRL's configuration groups: group -> name -> target, as text, so that nothing is imported.
_ENTRIES = {
    "loss": {
        "aca": "torchrl_o2o.objectives.ACALoss",
        "awac": "torchrl_o2o.objectives.AWACLoss",
        "awr": "torchrl_o2o.objectives.AWRLoss",
        "baseline": "torchrl_o2o.objectives.BaselineLoss",
        "bc": "torchrl_o2o.objectives.BCLoss",
        "bear": "torchrl_o2o.objectives.BEARLoss",
        "best_of_n": "torchrl_o2o.objectives.BestOfNLoss",
        "brac": "torchrl_o2o.objectives.BRACLoss",
        "brac_dual": "torchrl_o2o.objectives.BRACDualLoss",
        "cal_ql": "torchrl_o2o.objectives.CalQLLoss",
        "conditional_vae": "torchrl_o2o.objectives.ConditionalVAELoss",
        "cql": "torchrl_o2o.objectives.CQLLoss",
        "dapg": "torchrl_o2o.objectives.DAPGLoss",
        "density_ratio": "torchrl_o2o.objectives.DensityRatioLoss",
        "drqv2": "torchrl_o2o.objectives.DrQV2Loss",
        "drqv2_bc": "torchrl_o2o.objectives.DrQV2BCLoss",
        "drqv2_cql": "torchrl_o2o.objectives.DrQV2CQLLoss",
        "ensemble_sac": "torchrl_o2o.objectives.EnsembleSACLoss",
        "fql": "torchrl_o2o.objectives.FQLLoss",
        "inverse_dynamics": "torchrl_o2o.objectives.InverseDynamicsLoss",
        "iql": "torchrl_o2o.objectives.IQLLoss",
        "perturbation_ratio": "torchrl_o2o.objectives.PerturbationRatioLoss",
        "pessimistic_ensemble": "torchrl_o2o.objectives.PessimisticEnsembleLoss",
        "pex": "torchrl_o2o.objectives.PEXLoss",
        "pixel_sac": "torchrl_o2o.objectives.PixelSACLoss",
        "rebrac": "torchrl_o2o.objectives.ReBRACLoss",
        "sac_ml": "torchrl_o2o.objectives.SACMLLoss",
        "spot": "torchrl_o2o.objectives.SPOTLoss",
        "td3_bc": "torchrl_o2o.objectives.TD3BCLoss",
        "vae": "torchrl_o2o.objectives.VAELoss",
    },
    "sampler": {
        "balanced": "torchrl_o2o.data.BalancedSampler",
        "balanced_replay": "torchrl_o2o.data.BalancedReplaySampler",
        "chunk": "torchrl_o2o.data.ChunkSampler",
        "pool": "torchrl_o2o.data.PoolSampler",
        "prioritized": "torchrl_o2o.data.PrioritizedReplaySampler",
    },
    "writer": {"online": "torchrl_o2o.data.OnlineWriter"},
    "replay_buffer": {"": "torchrl_o2o.data.offline_online_replay_buffer"},
}
#: Arguments of :func:`~torchrl_o2o.envs.make_env`.
_ENV_FIELDS: list[tuple[str, Any, Any]] = [
    ("env_id", str, "???"),
    ("seed", int | None, None),
    ("max_episode_steps", int | None, None),
    ("env_kwargs", dict[str, Any] | None, None),
    ("_partial_", bool, False),
    ("_target_", str, "torchrl_o2o.envs.make_env"),
]
_NOTHING_AFTER = {"__post_init__": lambda self: None}


def _store_entries(prefix: str) -> None:
    """Add entries to TorchRL's groups in Hydra's store, if both libraries are installed."""
    try:
        from hydra.core.config_store import ConfigStore
        from torchrl.trainers.algorithms.configs import ConfigBase  # registers TorchRL's own
    except ImportError:  # data sets need neither library
        return
    store = ConfigStore.instance()
    for group, entries in _ENTRIES.items():
        if group not in store.repo:
            continue
        for name, target in entries.items():
            store.store(group=group, name=f"{prefix}_{name}" if name else prefix, node={"_target_": target})
    if "env" in store.repo:  # a dataclass, because TorchRL's collectors require a type
        node = make_dataclass("EnvConfig", _ENV_FIELDS, bases=(ConfigBase,), namespace=_NOTHING_AFTER)
        store.store(group="env", name=prefix, node=node)
