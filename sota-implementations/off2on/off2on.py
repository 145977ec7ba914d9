# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Off2On (Lee et al. 2021): agents trained offline by CQL go online as one pessimistic ensemble on balanced replay.

    python sota-implementations/off2on/off2on.py task=halfcheetah preset=cpu seed=0
    python sota-implementations/off2on/off2on.py preset=cpu seed=1 pretrained=runs/off2on/.../seed0/offline

The agents are trained one after the other, each in a folder of its own, `run_dir/offline/agent<k>`. `pretrained` names
such a folder of folders, or a list of pre-trainings of any script whose learner is CQL with the same networks. The
updates are those of examples/balanced_replay.py, in the same order.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import hydra
from omegaconf import DictConfig
from torch import Tensor

from torchrl_o2o.data import TRANSITION
from torchrl_o2o.envs import seed_everything
from torchrl_o2o.errors import O2OSpecError
from torchrl_o2o.functional import offline_share
from torchrl_o2o.scripts import start
from torchrl_o2o.trainers import (
    ONLINE_ONLY,
    Finetuning,
    HandOver,
    Pretrained,
    Pretraining,
    Problem,
    carry_over,
    launch,
    load_problem,
    plain,
    run_options,
    stack_agents,
)
from torchrl_o2o.trainers.algorithms import (
    balanced_replay_buffer,
    density_rows,
    make_off2on_agent,
    make_off2on_ensemble,
    replay_priority,
)

#: What the agents do not read, so that they serve ensembles that differ in it.
NOT_OF_AGENTS = (
    *(*ONLINE_ONLY, "num_agents", "online_optim"),
    *("density_ratio", "density_loss", "density_optim", "priority", "sampler"),
)


def pretrain_agents(cfg: DictConfig, problem: Problem) -> list[Path]:
    """Train the agents, which differ in their seeds alone, or find those that ``pretrained`` names."""
    if cfg.pretrained is not None:
        return agent_folders(cfg, problem)
    options = run_options(cfg, Path(cfg.run_dir) / "offline", without=NOT_OF_AGENTS)
    rehearse(cfg, problem)
    folders = [Path(options.folder) / f"agent{position}" for position in range(cfg.num_agents)]
    for position, folder in enumerate(folders):
        seed_everything(cfg.seed + 1000 * position)
        learner = make_off2on_agent(cfg, problem.dims)
        with Pretraining(problem, learner, replace(options, folder=folder), **plain(cfg.offline)) as agent:
            for _ in agent.steps():
                agent.log(learner.update(agent.sample()))
    return folders


def rehearse(cfg: DictConfig, problem: Problem) -> None:
    """Build agent and ensemble once, so that what does not fit is known before the training."""
    agent = make_off2on_agent(cfg, problem.dims).loss.state_dict()
    carry_over(stack_agents([agent] * cfg.num_agents), make_off2on_ensemble(cfg, problem.dims).loss)


def agent_folders(cfg: DictConfig, problem: Problem) -> list[Path]:
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
    for folder in folders[: cfg.num_agents]:
        Pretrained.read(folder).check(problem)
    return folders[: cfg.num_agents]


def ensemble_phase(cfg: DictConfig, problem: Problem, agents: list[Path]) -> Finetuning:
    """The online phase of an ensemble that starts from its agents."""
    states = [Pretrained.read(folder).states["loss"] for folder in agents]
    seed_everything(cfg.seed)
    learner = make_off2on_ensemble(cfg, problem.dims)
    carry_over(stack_agents(states), learner.loss)
    buffer, frames = balanced_replay_buffer(cfg, problem, learner), cfg.online.total_frames
    how = {"handover": HandOver(), "total_frames": frames, "batch_size": cfg.online.batch_size, "buffer": buffer}
    return Finetuning(problem, learner, run_options(cfg, cfg.run_dir), **how)


def replay(cfg: DictConfig, run: Finetuning) -> dict[str, Tensor]:
    """One update: learn from rows drawn by priority, set their priorities, let the ratio learn from both sources."""
    batch, number = run.sample(), len(run.problem.offline)
    rows = density_rows(run.buffer, number, 2 * len(batch))
    priority = replay_priority(cfg, run.learner, batch, rows[rows["is_offline"]])  # by the ratio before its step
    metrics = run.learner.update(batch) | run.learner.further["density_ratio"](rows)
    run.buffer.update_priority(batch["index"], priority)
    return metrics | {"offline_share": offline_share(batch["index"], number), "priority": priority.mean()}


def train(cfg: DictConfig) -> None:
    """Epochs of environment steps, each followed by as many updates, in the first epoch by several times as many."""
    problem, online = load_problem(cfg, "off2on"), cfg.online
    agents = pretrain_agents(cfg, problem)
    with ensemble_phase(cfg, problem, agents) as run:
        for step, data in run.steps():
            run.buffer.extend(problem.convention.online(data).select(*TRANSITION))
            run.log({})  # logged at the ends of epochs only
            if step % online.frames_per_epoch == 0:
                factor = online.first_epoch_factor if step == online.frames_per_epoch else 1
                for _ in range(online.frames_per_epoch * factor):
                    run.log(replay(cfg, run))


@hydra.main(version_base="1.3", config_path=".", config_name="config")
def main(cfg: DictConfig) -> None:
    """Train one seed into one run folder."""
    launch(cfg, train)


if __name__ == "__main__":
    start(main)
