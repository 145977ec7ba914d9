# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Off2On's learners (Lee et al. 2021): CQL agents offline, their ensemble and balanced replay online."""

from __future__ import annotations

from pathlib import Path

import torch
from omegaconf import DictConfig
from tensordict import TensorDictBase
from tensordict.nn import ProbabilisticTensorDictSequential, TensorDictModule
from torch import Tensor
from torch.optim import Adam
from torchrl.data import TensorDictReplayBuffer
from torchrl.objectives import SoftUpdate

from torchrl_o2o.data import BalancedReplaySampler, OnlineWriter, offline_online_storage
from torchrl_o2o.errors import O2OSpecError
from torchrl_o2o.functional import off2on_priority
from torchrl_o2o.modules import (
    ConservativePenalty,
    DensityRatio,
    Temperature,
    average_actors,
    make_actor,
    make_qvalue_ensemble,
)
from torchrl_o2o.objectives import CQLLoss, DensityRatioLoss, PessimisticEnsembleLoss
from torchrl_o2o.trainers.compiling import compiled
from torchrl_o2o.trainers.learner import Learner, on_device
from torchrl_o2o.trainers.pipeline import Pretrained
from torchrl_o2o.trainers.problem import Problem
from torchrl_o2o.trainers.settings import plain
from torchrl_o2o.updates import Descend, Joint, MoveTargets, Update

__all__ = [
    "balanced_replay_buffer",
    "make_off2on_agent",
    "make_off2on_ensemble",
    "read_off2on_agents",
    "replay_priority",
]


@on_device
def make_off2on_agent(cfg: DictConfig, dims: tuple[int, int]) -> Learner:
    """Build one offline agent: CQL with all losses at the same parameters, then all steps, then the targets.

    Source: Lee et al. 2021, arXiv:2107.00591, whose agents are CQL's (Kumar et al. 2020).

    Args:
        cfg: sections ``actor``, ``qvalue``, ``temperature``, ``penalty``, ``loss``, ``value_estimator``, ``target``,
            ``optim``, and ``actor_lr``.
        dims: observation and action dimension.

    Returns:
        The learner of one agent.

    Examples:
        >>> from torchrl_o2o.scripts import script_config
        >>> from torchrl_o2o.testing import random_transitions
        >>> cfg = script_config("off2on", ["preset=cpu", "compile=false"])
        >>> learner = make_off2on_agent(cfg, (3, 2))
        >>> learner.update
        Update of CQLLoss
          Joint()
            Descend('actor', Adam)
            Descend('alpha', Adam)
            Descend('qvalue', Adam)
          MoveTargets(SoftUpdate)
        >>> bool(learner.update(random_transitions(64, 3, 2))["loss_actor"].isfinite())
        True
    """
    actor, critics = _networks(cfg, dims)
    penalty = ConservativePenalty(**plain(cfg.penalty))
    loss = CQLLoss(actor, critics, temperature=_temperature(cfg, dims), penalty=penalty, **plain(cfg.loss))
    loss.make_value_estimator(**plain(cfg.value_estimator))
    critic, slow = plain(cfg.optim), {**plain(cfg.optim), "lr": cfg.actor_lr}
    steps = [
        Descend("actor", Adam(loss.actor_network_params.parameters(), **slow)),
        Descend("alpha", Adam(loss.temperature.parameters(), **slow)),
        Descend("qvalue", Adam(loss.qvalue_network_params.parameters(), **critic)),
    ]
    if cfg.penalty.target_gap is not None:
        steps.append(Descend("alpha_prime", Adam(loss.penalty.parameters(), **critic)))
    update = Update(loss, Joint(*steps), MoveTargets(SoftUpdate(loss, **plain(cfg.target))))
    return Learner(actor, loss, compiled(update, cfg))


def read_off2on_agents(cfg: DictConfig, problem: Problem) -> list[Pretrained]:
    """Read the first ``num_agents`` of the agents in ``pretrained``, from which an ensemble starts.

    Args:
        cfg: ``num_agents``, ``run_dir``, and ``pretrained``: a folder of folders ``agent0``, ``agent1``, ..., a list of
            folders, or the folder of one agent, from which all start. ``None`` means ``run_dir/offline``.
        problem: the problem of the fine-tuning.

    Returns:
        One pre-training for each agent.

    Raises:
        O2OSpecError: if there are too few agents, or one was trained in another environment or convention.
        O2OCheckpointError: if the training of one is not finished.

    Examples:
        >>> import tempfile
        >>> from torchrl_o2o.data import Convention
        >>> from torchrl_o2o.scripts import script_config
        >>> from torchrl_o2o.testing import random_transitions
        >>> from torchrl_o2o.trainers import RunOptions, pretrain
        >>> rows = random_transitions(100, 3, 1)
        >>> problem = Problem({"env_id": "Pendulum-v1", "max_episode_steps": 9}, rows, Convention().fit(rows))
        >>> folder = tempfile.mkdtemp() + "/agent0"
        >>> cfg = script_config("off2on", ["preset=cpu", "compile=false", "num_agents=2", f"pretrained={folder}"])
        >>> options = RunOptions(folder, {"algorithm": "off2on"}, seed=0, evaluation={"num_episodes": 1})
        >>> _ = pretrain(problem, make_off2on_agent(cfg, problem.dims), options, num_steps=2, batch_size=16)
        >>> [agent.updates for agent in read_off2on_agents(cfg, problem)]  # one for both
        [2, 2]
    """
    named = cfg.pretrained or str(Path(cfg.run_dir) / "offline")
    if isinstance(named, str):
        folders = sorted(Path(named).glob("agent*"), key=lambda folder: int(folder.name.removeprefix("agent")))
        folders = folders or [Path(named)] * cfg.num_agents
    else:
        folders = [Path(folder) for folder in named]
    if len(folders) < cfg.num_agents:
        raise O2OSpecError(
            f"got pretrained={named} with {len(folders)} agents, expected num_agents={cfg.num_agents}; train more"
        )
    agents = [Pretrained.read(folder) for folder in folders[: cfg.num_agents]]
    for agent in agents:
        agent.check(problem)
    return agents


@on_device
def make_off2on_ensemble(cfg: DictConfig, dims: tuple[int, int]) -> Learner:
    """Build the online learner: the averaged policy, all pairs of critics, and a density ratio.

    Source: Lee et al. 2021, arXiv:2107.00591, pessimistic Q-ensemble.

    Args:
        cfg: sections ``actor``, ``qvalue``, ``temperature``, ``value_estimator``, ``target``, ``online_optim``,
            ``density_ratio``, ``density_loss``, ``density_optim``, and ``num_agents``.
        dims: observation and action dimension.

    Returns:
        The learner; ``further["density_ratio"]`` is the update of the ratio.

    Examples:
        >>> from torchrl_o2o.scripts import script_config
        >>> from torchrl_o2o.testing import random_transitions
        >>> from torchrl_o2o.trainers import carry_over, stack_agents
        >>> cfg = script_config("off2on", ["preset=cpu", "compile=false", "num_agents=2"])
        >>> agents = [make_off2on_agent(cfg, (3, 2)).loss.state_dict() for _ in range(2)]
        >>> ensemble = make_off2on_ensemble(cfg, (3, 2))
        >>> carry_over(stack_agents(agents), ensemble.loss)  # starts from scratch
        ['temperature']
        >>> bool(ensemble.update(random_transitions(64, 3, 2))["loss_actor"].isfinite())
        True
    """
    agents = [_networks(cfg, dims) for _ in range(cfg.num_agents)]
    actor = average_actors([own for own, _ in agents])
    critics = [critic for _, pair in agents for critic in pair]
    loss = PessimisticEnsembleLoss(actor, critics, temperature=_temperature(cfg, dims))
    loss.make_value_estimator(**plain(cfg.value_estimator))
    steps = [
        Descend("actor", Adam(loss.actor_network_params.parameters(), **plain(cfg.online_optim))),
        Descend("alpha", Adam(loss.temperature.parameters(), **plain(cfg.online_optim))),
        Descend("qvalue", Adam(loss.qvalue_network_params.parameters(), **plain(cfg.online_optim))),
    ]
    update = Update(loss, Joint(*steps), MoveTargets(SoftUpdate(loss, **plain(cfg.target))))
    ratio = DensityRatioLoss(DensityRatio(*dims, **plain(cfg.density_ratio)), **plain(cfg.density_loss))
    ratio_optim = Adam(ratio.parameters(), **plain(cfg.density_optim))
    further = {"density_ratio": compiled(Update(ratio, Descend("density_ratio", ratio_optim)), cfg)}
    return Learner(actor, loss, compiled(update, cfg), further=further)


def balanced_replay_buffer(cfg: DictConfig, problem: Problem, learner: Learner) -> TensorDictReplayBuffer:
    """Build a buffer of recorded and new rows that draws by stored priorities.

    Source: Lee et al. 2021, arXiv:2107.00591, balanced replay.

    Args:
        cfg: sections ``sampler``, ``priority`` and ``online`` (with ``scratch_dir``, the rows lie in files there).
        problem: whose data come first.
        learner: of :func:`make_off2on_ensemble`.

    Returns:
        The buffer; its sampler is a :class:`~torchrl_o2o.data.BalancedReplaySampler`.

    Examples:
        >>> from torchrl_o2o.data import Convention
        >>> from torchrl_o2o.scripts import script_config
        >>> from torchrl_o2o.testing import random_transitions
        >>> rows = random_transitions(100, 3, 1)
        >>> problem = Problem({"env_id": "Pendulum-v1"}, rows, Convention().fit(rows))
        >>> cfg = script_config("off2on", ["preset=cpu", "compile=false", "online.capacity=1_000"])
        >>> buffer = balanced_replay_buffer(cfg, problem, make_off2on_ensemble(cfg, problem.dims))
        >>> len(buffer), buffer.sample().shape
        (100, torch.Size([256]))
    """
    ratio = _ratio(learner)

    @torch.no_grad()
    def refresh(rows: TensorDictBase) -> Tensor:
        log_ratio = torch.cat([ratio.log_ratio(part) for part in rows.split(65_536)])
        return off2on_priority(log_ratio, log_ratio, eps=ratio.network_eps, **plain(cfg.priority))

    capacity, number = cfg.online.capacity or cfg.online.total_frames, len(problem.offline)
    settings = {**plain(cfg.sampler), "first_epoch_frames": cfg.online.frames_per_epoch}
    refresh_with = refresh if cfg.sampler.refresh_every else None
    sampler = BalancedReplaySampler(number, capacity, refresh_with=refresh_with, **settings)
    folder = cfg.online.get("scratch_dir")
    storage = offline_online_storage(problem.offline, capacity, device=learner.device, scratch_dir=folder)
    writer = OnlineWriter(number)
    return TensorDictReplayBuffer(storage=storage, sampler=sampler, writer=writer, batch_size=cfg.online.batch_size)


@torch.no_grad()
def replay_priority(cfg: DictConfig, learner: Learner, rows: TensorDictBase, offline: TensorDictBase) -> Tensor:
    """Compute priorities of rows: their density ratio relative to the mean over recorded rows.

    The constant that a ReLU network adds to the ratio is removed, because the authors' priorities do not contain it.

    Args:
        cfg: section ``priority``.
        learner: of :func:`make_off2on_ensemble`.
        rows: the rows to score, shape [B].
        offline: recorded rows, uniformly drawn.

    Returns:
        Priorities, shape [B]; see :func:`~torchrl_o2o.functional.off2on_priority`.

    Examples:
        >>> from torchrl_o2o.scripts import script_config
        >>> from torchrl_o2o.testing import random_transitions
        >>> cfg = script_config("off2on", ["preset=cpu", "compile=false"])
        >>> learner = make_off2on_ensemble(cfg, (3, 2))
        >>> rows, offline = random_transitions(4, 3, 2), random_transitions(64, 3, 2)
        >>> replay_priority(cfg, learner, rows, offline).shape
        torch.Size([4])
    """
    ratio = _ratio(learner)
    log_ratios = ratio.log_ratio(rows), ratio.log_ratio(offline)
    return off2on_priority(*log_ratios, eps=ratio.network_eps, **plain(cfg.priority))


def _ratio(learner: Learner) -> DensityRatioLoss:
    loss = learner.further["density_ratio"].loss
    assert isinstance(loss, DensityRatioLoss)
    return loss


def _networks(
    cfg: DictConfig, dims: tuple[int, int]
) -> tuple[ProbabilisticTensorDictSequential, list[TensorDictModule]]:
    """One agent's policy and pair of critics."""
    critics = make_qvalue_ensemble(*dims, num_qvalue_nets=2, **plain(cfg.qvalue))
    return make_actor(*dims, **plain(cfg.actor)), list(critics)


def _temperature(cfg: DictConfig, dims: tuple[int, int]) -> Temperature:
    """A temperature, for an agent or for the ensemble."""
    return Temperature(-float(dims[1]), form="log_alpha", **plain(cfg.temperature))
