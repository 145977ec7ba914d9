# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""RLPD and its relatives, many seeds in one process: N agents, one update, N run folders.

    python sota-implementations/rlpd/rlpd_seeds.py task=halfcheetah-linear-mix seeds=[0,1,2,3,4]
    o2o report runs/rlpd/halfcheetah-linear-mix

Configuration, networks, random numbers and run folders are those of rlpd.py with each of the seeds; the networks of all
seeds are stacked and learn in one update (docs/seeds.md). A test compares the runs of both scripts.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import hydra
import torch
from omegaconf import DictConfig, OmegaConf, open_dict
from tensordict import TensorDictBase
from torch import Tensor
from torchrl.data import TensorDictReplayBuffer

from torchrl_o2o.checkpoint.manifest import dump
from torchrl_o2o.data import TRANSITION, load_offline
from torchrl_o2o.data.transforms import AffineReward
from torchrl_o2o.durable import replace_durably
from torchrl_o2o.errors import O2OSpecError
from torchrl_o2o.functional import NonFiniteError
from torchrl_o2o.objectives.noise import GeneratorNoise
from torchrl_o2o.seeds import (
    AgentCheckpointer,
    RandomStream,
    SharedRows,
    StackedActor,
    StackedCollector,
    StackedLearner,
    StackedNonFiniteError,
    StackedOptimizer,
    restore_together,
)
from torchrl_o2o.trainers import graceful_exit, resume_command
from torchrl_o2o.trainers.launch import launch as run_script
from torchrl_o2o.trainers.launch import load_script, product_dtype

Metrics = dict[str, Tensor]


@dataclass
class SeedRuns:
    """The runs of all seeds, each as its own script makes it, trained in lockstep."""

    cfg: DictConfig
    runs: list[Any]
    streams: list[RandomStream]
    learner: StackedLearner
    collector: StackedCollector

    @property
    def optimizers(self) -> list[StackedOptimizer]:
        """Whose states the agents' checkpoints hold slices of."""
        return self.learner.optimizers

    def share(self) -> None:
        """Give the agents' optimizers their states."""
        for optim in self.optimizers:
            optim.share()

    def sample(self, draw: Callable[[int], TensorDictBase]) -> list[TensorDictBase]:
        """draw(i) for every agent, in its own random state."""
        batches = []
        for agent, stream in enumerate(self.streams):
            with stream.torch_only():
                batches.append(draw(agent))
        return batches

    def update(self, batches: list[TensorDictBase]) -> Metrics:
        """One update of all agents; a batch that makes a loss or gradient not finite is kept for a look."""
        try:
            return self.learner.update(torch.stack(batches), self.cfg.training.batch_size)
        except StackedNonFiniteError as error:
            seeds = [self.runs[agent].cfg.seed for agent in error.agents]
            paths = [self.runs[agent].recorder.dump("offending-batch", batches[agent]) for agent in error.agents]
            raise NonFiniteError(f"{error}. Seeds {seeds}; the batches are in {', '.join(map(str, paths))}") from error

    def each(self, at: int, metrics: Metrics) -> list[Metrics]:
        """The agents' own metrics, where they are logged."""
        if at % self.cfg.log_every:
            return [{} for _ in self.runs]
        return [{name: value[agent] for name, value in metrics.items()} for agent in range(len(self.runs))]

    def replay(self, at: int) -> list[Metrics]:
        """Draw one batch per agent and learn from them."""
        batches = self.sample(lambda agent: self.runs[agent].buffer.sample())
        each = self.each(at, self.update(batches))
        return [own | run.sampled(at, batch) for run, own, batch in zip(self.runs, each, batches, strict=True)]

    def pretrain(self, interrupt: graceful_exit, checkpoints: Sequence[AgentCheckpointer]) -> None:
        """As Run.pretrain, all agents at once."""
        buffers: list[TensorDictReplayBuffer] = [run.offline_buffer() for run in self.runs]
        total = self.cfg.training.pretrain_steps
        while (done := self.runs[0].counters["pretrain"]) < total and not interrupt.requested:
            metrics = self.update(self.sample(lambda agent: buffers[agent].sample()))
            each = self.each(done + 1 - total, metrics)
            for run, own, checkpoint in zip(self.runs, each, checkpoints, strict=True):
                run.after_pretraining_step(own, checkpoint)

    def finetune(self, interrupt: graceful_exit, checkpoints: Sequence[AgentCheckpointer]) -> None:
        """As Run.finetune, in rounds of one environment step per agent."""
        cfg, transform = self.cfg, AffineReward(**OmegaConf.to_container(self.cfg.reward))
        if interrupt.requested:  # before this phase began
            for run, checkpoint in zip(self.runs, checkpoints, strict=True):
                checkpoint.save(run.counters["pretrain"] + self.collector.frames)
            return
        metrics: list[Metrics] = [{} for _ in self.runs]
        while self.collector.frames < cfg.collector.total_frames:
            transitions = self.collector.step()
            at = self.collector.frames
            for run, data in zip(self.runs, transitions, strict=True):
                run.buffer.extend(transform(data).select(*TRANSITION))
            if at > cfg.collector.init_random_frames:
                metrics = self.replay(at)
            stopping = interrupt.requested  # looked at once, so that a signal within the round ends the next one
            for agent, run in enumerate(self.runs):
                run.after_step(at, transitions[agent], metrics[agent], interrupt, checkpoints[agent])
            if stopping:
                return


def seed_configs(cfg: DictConfig) -> list[DictConfig]:
    """The single runs' configurations."""
    configs = []
    for seed in cfg.get("seeds", range(5)):
        own = copy.deepcopy(cfg)
        with open_dict(own):
            own.pop("seeds", None)
            own.seed = seed
        configs.append(own)
    folders = [Path(own.run_dir) for own in configs]
    if len(set(folders)) < len(folders):
        raise O2OSpecError(f"got run_dir={folders[0]} for several seeds, expected one each; put ${{seed}} into it")
    taken = [str(folder) for folder in folders if (folder / "run.json").exists()]
    if taken and not cfg.resume:
        raise O2OSpecError(f"{', '.join(taken)} hold runs; go on with resume=true, or choose other seeds or a run_dir")
    return configs


def make_agents(cfg: DictConfig, script: ModuleType) -> tuple[list[Any], list[RandomStream]]:
    """Every seed's run as its script makes it, with its random state after that; the offline data are there once."""
    configs, loaded, runs, streams = seed_configs(cfg), [], [], []
    shared = SharedRows(len(configs))

    def load(**dataset: Any) -> TensorDictBase:
        loaded[:] = loaded or [load_offline(**dataset)]
        return loaded[0]

    for own in configs:
        runs.append(script.make_run(own, load, shared))
        streams.append(RandomStream())
        runs[-1].learner.loss.noise = GeneratorNoise(streams[-1].generator)
    return runs, streams


def make_runs(cfg: DictConfig, script: ModuleType, kind: type[SeedRuns] = SeedRuns) -> SeedRuns:
    """All agents, stacked."""
    runs, streams = make_agents(cfg, script)
    tau = 1.0 - runs[0].learner.target_updater.eps
    learner = StackedLearner([run.learner for run in runs], tau=tau)
    if cfg.compile:
        learner.compile(matmul_dtype=product_dtype(cfg.matmul_dtype))
    (action_dim,) = runs[0].collector.env.action_space.shape
    act = StackedActor(learner.stack, streams, action_dim)
    foreign = bool(cfg.env.get("allow_modules"))
    collector = StackedCollector([run.collector for run in runs], act, foreign_envs=foreign)
    return kind(runs[0].cfg, runs, streams, learner, collector)


def train(seeds: SeedRuns, script: ModuleType) -> None:
    """Train all seeds from the start or their newest common checkpoint to the end, or until a signal asks to stop."""
    cfg, runs = seeds.cfg, seeds.runs
    checkpoints = [
        AgentCheckpointer(script.make_checkpointer(run), stream, seeds.share)
        for run, stream in zip(runs, seeds.streams, strict=True)
    ]
    with graceful_exit() as interrupt, ExitStack() as recorders:
        for run in runs:
            recorders.enter_context(run.recorder)
        if not (cfg.resume and restore_together(checkpoints) is not None):
            for run in runs:
                run.evaluate(-cfg.training.pretrain_steps)
        for optim in seeds.optimizers:
            optim.adopt()
        seeds.pretrain(interrupt, checkpoints)
        seeds.finetune(interrupt, checkpoints)
        for run in runs:
            replace_durably(Path(run.cfg.run_dir) / "policy.pt", dump("policy", run.actor.state_dict()))
    for run in runs:
        run.collector.shutdown()
    if interrupt.requested:
        print(f"stopped by {interrupt.signal_name}; go on with:\n  {resume_command()}")
        sys.exit(interrupt.exit_code)


def launch(cfg: DictConfig, script: ModuleType, kind: type[SeedRuns] = SeedRuns) -> None:
    """Build and train all seeds."""
    run_script(cfg, lambda cfg: train(make_runs(cfg, script, kind), script))


def accept_seeds() -> None:
    """Let the command line say seeds=..., which the single runs' configuration does not have."""
    sys.argv[1:] = [f"+{word}" if word.startswith("seeds=") else word for word in sys.argv[1:]]


@hydra.main(version_base="1.3", config_path=".", config_name="config")
def main(cfg: DictConfig) -> None:
    """Train all seeds into their run folders."""
    launch(cfg, load_script("rlpd"))


if __name__ == "__main__":
    accept_seeds()
    main()
