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
from torchrl_o2o.functional import offline_share
from torchrl_o2o.scripts import start
from torchrl_o2o.trainers import (
    ONLINE_ONLY,
    Finetuning,
    HandOver,
    Learner,
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
    read_off2on_agents,
    replay_priority,
)

#: Settings that the agents do not read, so that ensembles with other values can share them.
OF_ENSEMBLE = ("num_agents", "online_optim", "density_ratio", "density_loss", "density_optim", "priority", "sampler")


def ensemble_of(cfg: DictConfig, problem: Problem, agents: list[dict[str, Tensor]]) -> Learner:
    """The ensemble, with the averaged policy and all critics of the agents, from the states of their losses."""
    learner = make_off2on_ensemble(cfg, problem.dims)
    carry_over(stack_agents(agents), learner.loss)
    return learner


def pretrain_agents(cfg: DictConfig, problem: Problem) -> None:
    """Train agents that differ only in their seeds, one after the other."""
    agent = make_off2on_agent(cfg, problem.dims).loss.state_dict()
    ensemble_of(cfg, problem, [agent] * cfg.num_agents)  # raises before the training if something does not fit
    options = run_options(cfg, Path(cfg.run_dir) / "offline", without=(*ONLINE_ONLY, *OF_ENSEMBLE))
    for number in range(cfg.num_agents):
        seed_everything(cfg.seed + 1000 * number)
        learner = make_off2on_agent(cfg, problem.dims)
        own = replace(options, folder=Path(options.folder) / f"agent{number}")
        with Pretraining(problem, learner, own, **plain(cfg.offline)) as offline:
            for _ in offline.steps():
                offline.log(learner.update(offline.sample()))


def replay(cfg: DictConfig, run: Finetuning) -> dict[str, Tensor]:
    """One update: learn from rows drawn by priority, set their priorities, let the ratio learn from both sources."""
    batch, number = run.sample(), len(run.problem.offline)
    rows = density_rows(run.buffer, number, 2 * len(batch))
    priority = replay_priority(cfg, run.learner, batch, rows[rows["is_offline"]])  # with the ratio from before its step
    metrics = run.learner.update(batch) | run.learner.further["density_ratio"](rows)
    run.buffer.update_priority(batch["index"], priority)
    return metrics | {"offline_share": offline_share(batch["index"], number), "priority": priority.mean()}


def train(cfg: DictConfig) -> None:
    """Epochs of environment steps, each followed by as many updates; several times as many in the first epoch."""
    problem, online = load_problem(cfg, "off2on"), cfg.online
    if cfg.pretrained is None:
        pretrain_agents(cfg, problem)
    if not online.total_frames:  # the offline phase alone
        return
    agents = [agent.states["loss"] for agent in read_off2on_agents(cfg, problem)]
    seed_everything(cfg.seed)
    learner = ensemble_of(cfg, problem, agents)
    buffer = balanced_replay_buffer(cfg, problem, learner)
    settings = {"handover": HandOver(), "total_frames": online.total_frames, "batch_size": online.batch_size}
    with Finetuning(problem, learner, run_options(cfg, cfg.run_dir), buffer=buffer, **settings) as run:
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
