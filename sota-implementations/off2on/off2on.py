# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Off2On (Lee et al. 2021): agents trained offline by CQL go online as one pessimistic ensemble on balanced replay.

    python sota-implementations/off2on/off2on.py task=locomotion-cpu seed=0
    python sota-implementations/off2on/off2on.py task=locomotion-cpu seed=1 pretrained=runs/off2on/.../seed0/offline

The agents are trained one after the other, each in a folder of its own, `run_dir/offline/agent<k>`. `pretrained` names
such a folder of folders, or a list of pre-trainings of any script whose learner is CQL with the same networks. The
updates are those of examples/balanced_replay.py, in the same order.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import hydra
import torch
from omegaconf import DictConfig
from tensordict import TensorDictBase
from tensordict.nn import ProbabilisticTensorDictSequential, TensorDictModule
from torch import Tensor
from torchrl.data import TensorDictReplayBuffer
from torchrl.objectives import SoftUpdate

from torchrl_o2o.data import TRANSITION, BalancedReplaySampler, BalancedSampler, OnlineWriter, offline_online_storage
from torchrl_o2o.envs import seed_everything
from torchrl_o2o.errors import O2OSpecError
from torchrl_o2o.functional import off2on_priority, offline_share
from torchrl_o2o.modules import (
    ConservativePenalty,
    DensityRatio,
    Temperature,
    average_actors,
    make_actor,
    make_qvalue_ensemble,
)
from torchrl_o2o.objectives import CQLLoss, DensityRatioLoss, PessimisticEnsembleLoss, join_sources
from torchrl_o2o.trainers import (
    ONLINE_ONLY,
    Learner,
    Pretrained,
    Problem,
    carry_over,
    descend,
    launch,
    load_problem,
    make_collector,
    plain,
    pretrain,
    product_dtype,
    run_options,
    save_policy,
    stack_agents,
)

#: What the agents do not read, so that they serve ensembles that differ in it.
NOT_OF_AGENTS = (
    *(*ONLINE_ONLY, "num_agents", "online_optim"),
    *("density_ratio", "density_loss", "density_optim", "priority", "sampler"),
)


def make_agent(
    cfg: DictConfig, dims: tuple[int, int]
) -> tuple[ProbabilisticTensorDictSequential, list[TensorDictModule]]:
    """One agent's policy and pair of critics."""
    return make_actor(*dims, **plain(cfg.actor)), list(
        make_qvalue_ensemble(*dims, num_qvalue_nets=2, **plain(cfg.qvalue))
    )


def make_temperature(cfg: DictConfig, dims: tuple[int, int]) -> Temperature:
    """Each agent's, and afresh the ensemble's."""
    return Temperature(-float(dims[1]), form="log_alpha", **plain(cfg.temperature))


class Agent(Learner):
    """Offline: CQL, all losses taken at the same parameters, then all optimizers step, then the targets."""

    loss: CQLLoss

    def __init__(self, cfg: DictConfig, dims: tuple[int, int]) -> None:
        self.actor, critics = make_agent(cfg, dims)
        parts = {"temperature": make_temperature(cfg, dims), "penalty": ConservativePenalty(**plain(cfg.penalty))}
        self.loss = CQLLoss(self.actor, critics, **parts, **plain(cfg.loss))
        self.loss.make_value_estimator(**plain(cfg.value_estimator))
        self.target_updater = SoftUpdate(self.loss, **plain(cfg.target))
        critic, actor = plain(cfg.optim), {**plain(cfg.optim), "lr": cfg.actor_lr}
        self.optims = {
            "actor": torch.optim.Adam(self.loss.actor_network_params.parameters(), **actor),
            "alpha": torch.optim.Adam(self.loss.temperature.parameters(), **actor),
            "qvalue": torch.optim.Adam(self.loss.qvalue_network_params.parameters(), **critic),
        }
        if cfg.penalty.target_gap is not None:
            self.optims["alpha_prime"] = torch.optim.Adam(self.loss.penalty.parameters(), **critic)
        if cfg.compile:
            self.compile(joint=True, matmul_dtype=product_dtype(cfg.matmul_dtype))

    def update(self, batch: TensorDictBase) -> dict[str, Tensor]:
        """One step of everything."""
        return joint_update(self, batch)


class Ensemble(Learner):
    """Online: the averaged policy and all pairs of critics as one learner; the order of steps is the agents'."""

    loss: PessimisticEnsembleLoss

    def __init__(self, cfg: DictConfig, dims: tuple[int, int]) -> None:
        agents = [make_agent(cfg, dims) for _ in range(cfg.num_agents)]
        self.actor = average_actors([actor for actor, _ in agents])
        critics = [critic for _, pair in agents for critic in pair]
        self.loss = PessimisticEnsembleLoss(self.actor, critics, temperature=make_temperature(cfg, dims))
        self.loss.make_value_estimator(**plain(cfg.value_estimator))
        self.target_updater = SoftUpdate(self.loss, **plain(cfg.target))
        parts = {"actor": self.loss.actor_network_params, "alpha": self.loss.temperature}
        parts["qvalue"] = self.loss.qvalue_network_params
        rates = plain(cfg.online_optim)
        self.optims = {name: torch.optim.Adam(part.parameters(), **rates) for name, part in parts.items()}
        if cfg.compile:
            self.compile(joint=True, matmul_dtype=product_dtype(cfg.matmul_dtype))

    def update(self, batch: TensorDictBase) -> dict[str, Tensor]:
        """One step of everything."""
        return joint_update(self, batch)


def joint_update(learner: Learner, batch: TensorDictBase) -> dict[str, Tensor]:
    """All losses at the same parameters, then one step of each optimizer, then the targets."""
    metrics = learner.loss(batch)
    for name, optim in learner.optims.items():
        descend(optim, metrics[f"loss_{name}"], f"loss_{name}")
    if learner.target_updater is not None:
        learner.target_updater.step()
    return {name: value.detach() for name, value in metrics.items()}


class Density:
    """The density ratio of new to recorded rows, and the priorities that follow from it."""

    def __init__(self, cfg: DictConfig, dims: tuple[int, int], num_offline: int) -> None:
        self.loss = DensityRatioLoss(DensityRatio(*dims, **plain(cfg.density_ratio)), **plain(cfg.density_loss))
        self.optim = torch.optim.Adam(self.loss.parameters(), **plain(cfg.density_optim))
        self.sources, self.settings = BalancedSampler(num_offline, 0.5), plain(cfg.priority)
        if cfg.compile:
            self.loss.compile()

    def draw(self, buffer: TensorDictReplayBuffer, batch_size: int) -> tuple[TensorDictBase, TensorDictBase]:
        """Uniform rows of either source, recorded and new."""
        rows = buffer.storage.get(self.sources.sample(buffer.storage, 2 * batch_size)[0])
        return rows[0::2], rows[1::2]

    @torch.no_grad()
    def priority(self, rows: TensorDictBase, offline: TensorDictBase) -> Tensor:
        """How much rows look like the policy's own, in units of the mean recorded row."""
        return off2on_priority(self.loss.log_ratio(rows), self.loss.log_ratio(offline), **self.settings)

    def refresh(self, rows: TensorDictBase) -> Tensor:
        """Priorities of all recorded rows at once, an option that the authors do not have."""
        log_ratio = torch.cat([self.loss.log_ratio(part) for part in rows.split(65_536)])
        return off2on_priority(log_ratio, log_ratio, **self.settings)

    def update(self, offline: TensorDictBase, online: TensorDictBase) -> dict[str, Tensor]:
        """One step."""
        value, info = self.loss.density_ratio_loss(join_sources(offline, online))
        descend(self.optim, value, "loss_density_ratio")
        return {"loss_density_ratio": value.detach(), **info}


def pretrain_agents(cfg: DictConfig, problem: Problem) -> list[Pretrained]:
    """Train the agents, which differ in their seeds alone, or read those that ``pretrained`` names."""
    if cfg.pretrained is not None:
        agents = [Pretrained.read(folder) for folder in agent_folders(cfg)]
        for agent in agents:
            agent.check(problem)
        return agents
    options = run_options(cfg, Path(cfg.run_dir) / "offline", without=NOT_OF_AGENTS)
    agents = []
    for position in range(cfg.num_agents):
        seed_everything(cfg.seed + 1000 * position)
        own = replace(options, folder=Path(options.folder) / f"agent{position}")
        agents.append(pretrain(problem, Agent(cfg, problem.dims), own, **plain(cfg.offline)))
    return agents


def agent_folders(cfg: DictConfig) -> list[Path]:
    """The folders that ``pretrained`` means: a list of them, a folder of agents, or the folder of one agent."""
    if not isinstance(cfg.pretrained, str):
        folders = [Path(folder) for folder in cfg.pretrained]
    else:
        folders = sorted(Path(cfg.pretrained).glob("agent*"), key=lambda folder: int(folder.name[5:]))
        folders = folders or [Path(cfg.pretrained)] * cfg.num_agents
    if len(folders) < cfg.num_agents:
        raise O2OSpecError(
            f"pretrained={cfg.pretrained} holds {len(folders)} agents, expected num_agents={cfg.num_agents}; train more"
        )
    return folders[: cfg.num_agents]


def make_buffer(cfg: DictConfig, problem: Problem, density: Density) -> TensorDictReplayBuffer:
    """One storage for recorded and new rows, drawn from by stored priorities."""
    capacity, number = cfg.online.capacity or cfg.online.total_frames, len(problem.offline)
    settings = {**plain(cfg.sampler), "first_epoch_frames": cfg.online.frames_per_epoch}
    refresh = density.refresh if cfg.sampler.refresh_every else None
    sampler = BalancedReplaySampler(number, capacity, refresh_with=refresh, **settings)
    storage, writer = offline_online_storage(problem.offline, capacity), OnlineWriter(number)
    return TensorDictReplayBuffer(storage=storage, sampler=sampler, writer=writer, batch_size=cfg.online.batch_size)


def replay(
    batch: TensorDictBase, buffer: TensorDictReplayBuffer, learner: Ensemble, density: Density
) -> dict[str, Tensor]:
    """One update: learn from rows drawn by priority, set their priorities, let the ratio learn from both sources."""
    offline, online = density.draw(buffer, len(batch))
    priority = density.priority(batch, offline)  # by the ratio before its step
    metrics = learner.step(batch) | density.update(offline, online)
    buffer.update_priority(batch["index"], priority)
    share = offline_share(batch["index"], density.sources.num_offline)
    return metrics | {"offline_share": share, "priority": priority.mean()}


def finetune(cfg: DictConfig, problem: Problem, agents: list[Pretrained]) -> None:
    """Epochs of environment steps, each followed by as many updates, in the first epoch by several times as many."""
    seed_everything(cfg.seed)
    learner, density = Ensemble(cfg, problem.dims), Density(cfg, problem.dims, len(problem.offline))
    carry_over(stack_agents([agent.states["loss"] for agent in agents]), learner.loss)
    options, online = run_options(cfg, cfg.run_dir), cfg.online
    buffer = make_buffer(cfg, problem, density)
    collector = make_collector(problem, learner, options, buffer, online.total_frames)
    objects = {**learner.objects(), "density": density.loss, "density_optim": density.optim, "collector": collector}
    with options.session(problem, learner, buffer, objects, online.total_frames) as session:
        for step, data in session.online(collector):
            buffer.extend(problem.convention.online(data).select(*TRANSITION))
            session.metrics = {}  # logged at the ends of epochs only
            if step % online.frames_per_epoch == 0:
                factor = online.first_epoch_factor if step == online.frames_per_epoch else 1
                for _ in range(online.frames_per_epoch * factor):
                    batch = buffer.sample()
                    with session.record.dump_if_not_finite(batch):
                        session.metrics = replay(batch, buffer, learner, density)
    save_policy(learner, problem, options)


def train(cfg: DictConfig) -> None:
    """Pre-train the agents or read them, then fine-tune the ensemble."""
    problem = load_problem(cfg, "off2on")
    finetune(cfg, problem, pretrain_agents(cfg, problem))


@hydra.main(version_base="1.3", config_path=".", config_name="config")
def main(cfg: DictConfig) -> None:
    """Train one seed into one run folder."""
    launch(cfg, train)


if __name__ == "__main__":
    main()
