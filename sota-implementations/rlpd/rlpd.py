# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""RLPD (Ball et al. 2023) and its relatives SACfD, REDQ and SAC, with the papers' settings, logs and resume.

    python sota-implementations/rlpd/rlpd.py task=halfcheetah-linear-mix seed=0
    python sota-implementations/rlpd/rlpd.py -m algorithm=rlpd,sac seed=0,1,2 task=halfcheetah-linear-mix-cpu

The update is the paper's Algorithm 1 as in examples/rlpd.py; a test runs both and compares every parameter.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import hydra
import torch
from omegaconf import DictConfig, OmegaConf
from tensordict import TensorDictBase
from tensordict.nn import TensorDictModuleBase
from torch import Tensor
from torchrl.data import ImmutableDatasetWriter, Storage, TensorDictReplayBuffer
from torchrl.data.replay_buffers.samplers import RandomSampler, Sampler
from torchrl.objectives import SoftUpdate

from torchrl_o2o.checkpoint import Checkpointer
from torchrl_o2o.checkpoint.manifest import dump
from torchrl_o2o.collectors import StepCollector
from torchrl_o2o.data import TRANSITION, BalancedSampler, OnlineWriter, load_offline, offline_online_storage
from torchrl_o2o.data.transforms import AffineReward
from torchrl_o2o.durable import replace_durably
from torchrl_o2o.envs import GuardedEnv, find_reference, make_gym_env, seed_everything
from torchrl_o2o.functional import NonFiniteError, finite_or_raise, offline_share
from torchrl_o2o.modules import Temperature, make_actor, make_qvalue_ensemble
from torchrl_o2o.objectives import EnsembleSACLoss
from torchrl_o2o.provenance import plain_config
from torchrl_o2o.record import Recorder
from torchrl_o2o.trainers import evaluate, graceful_exit, resume_command, weight_decay_groups
from torchrl_o2o.trainers.launch import launch as run_script
from torchrl_o2o.trainers.launch import product_dtype
from torchrl_o2o.updates import CompiledUpdate, compile_update

MakeStorage = Callable[[TensorDictBase, int], Storage]
# What may change between a run and its resumption.
NOT_COMPARED = ("resume", "run_dir", "recorder", "num_threads", "checkpoint_every", "env_guard")
#: What an update logs.
METRICS = ("loss_qvalue", "loss_actor", "loss_alpha", "alpha", "entropy", "qvalue", "qvalue_std", "target_value")


@dataclass
class Learner:
    """The loss with its optimizers and target update."""

    loss: EnsembleSACLoss
    critic_optim: torch.optim.Optimizer
    actor_optim: torch.optim.Optimizer
    alpha_optim: torch.optim.Optimizer
    target_updater: SoftUpdate
    compile: bool = False
    matmul_dtype: torch.dtype | None = None
    _compiled: CompiledUpdate | None = field(default=None, init=False)

    def update(self, batch: TensorDictBase, batch_size: int) -> dict[str, Tensor]:
        """Algorithm 1, as it is written out below or compiled from the same losses."""
        if not self.compile:
            return self.written_out(batch, batch_size)
        if self._compiled is None:
            optims = {"qvalue": self.critic_optim, "actor": self.actor_optim, "alpha": self.alpha_optim}
            ratio = len(batch) // batch_size
            self._compiled = compile_update(
                self.loss, optims, self.target_updater, utd_ratio=ratio, matmul_dtype=self.matmul_dtype
            )
        metrics = self._compiled(batch)
        if not metrics["finite"]:  # nothing was changed from there on: do that step again, to name the culprit
            self.written_out(batch, batch_size)
            raise NonFiniteError("not finite: a loss or gradient of the compiled update; resume with compile=false")
        return {name: metrics[name] for name in METRICS if name in metrics}

    def written_out(self, batch: TensorDictBase, batch_size: int) -> dict[str, Tensor]:
        """One critic step on each minibatch, then one actor and one temperature step on the last."""
        for minibatch in batch.split(batch_size):
            loss_qvalue, info = self.loss.qvalue_loss(minibatch)
            step(self.critic_optim, loss_qvalue, "loss_qvalue")
            self.target_updater.step()
        loss_actor, actor_info = self.loss.actor_loss(minibatch)
        step(self.actor_optim, loss_actor, "loss_actor")
        loss_alpha, alpha_info = self.loss.alpha_loss(minibatch, log_prob=actor_info["log_prob"])
        step(self.alpha_optim, loss_alpha, "loss_alpha")
        losses = {"loss_qvalue": loss_qvalue, "loss_actor": loss_actor, "loss_alpha": loss_alpha}
        spread = info["qvalue"].std(0).mean() if len(info["qvalue"]) > 1 else torch.zeros(())
        means = {"qvalue": info["qvalue"].mean(), "qvalue_std": spread, "target_value": info["target_value"].mean()}
        return {name: value.detach() for name, value in (losses | alpha_info | means).items()}


def step(optim: torch.optim.Optimizer, loss: Tensor, name: str) -> None:
    """One optimizer step, refused if the loss or a gradient is not finite."""
    optim.zero_grad()
    loss.backward()
    gradients = [parameter.grad for group in optim.param_groups for parameter in group["params"]]
    finite_or_raise({name: loss} | {f"{name}.gradient{i}": gradient for i, gradient in enumerate(gradients)})
    optim.step()


def make_learner(cfg: DictConfig, observation_dim: int, action_dim: int) -> tuple[TensorDictModuleBase, Learner]:
    """Networks, loss and optimizers from their sections; returns the actor and the learner."""
    actor = make_actor(observation_dim, action_dim, **plain(cfg.actor))
    qvalues = make_qvalue_ensemble(observation_dim, action_dim, **plain(cfg.qvalue))
    temperature = Temperature(cfg.target_entropy_per_dim * action_dim, **plain(cfg.temperature))
    loss = EnsembleSACLoss(actor, qvalues, temperature=temperature, **plain(cfg.loss))
    loss.make_value_estimator(**plain(cfg.value_estimator))
    target_updater = SoftUpdate(loss, **plain(cfg.target))
    critic_groups = weight_decay_groups(loss.qvalue_network_params, cfg.critic_weight_decay)
    learner = Learner(
        loss,
        torch.optim.AdamW(critic_groups, **plain(cfg.optim)),
        torch.optim.AdamW(loss.actor_network_params.parameters(), weight_decay=0.0, **plain(cfg.optim)),
        torch.optim.AdamW(loss.temperature.parameters(), weight_decay=0.0, **plain(cfg.optim)),
        target_updater,
        cfg.compile,
        product_dtype(cfg.matmul_dtype),
    )
    return actor, learner


def make_buffer(
    cfg: DictConfig, offline: TensorDictBase, make_storage: MakeStorage = offline_online_storage
) -> TensorDictReplayBuffer:
    """One storage for both sources; offline_fraction null draws from it as from one buffer (SACfD)."""
    sampler: Sampler = RandomSampler()
    storage = make_storage(offline, cfg.collector.total_frames)
    batch_size = cfg.training.utd_ratio * cfg.training.batch_size
    if cfg.offline_fraction is not None:
        sampler = BalancedSampler(len(offline), cfg.offline_fraction)
        sampler.check_capacity(storage, batch_size)
    writer = OnlineWriter(len(offline))
    return TensorDictReplayBuffer(storage=storage, sampler=sampler, writer=writer, batch_size=batch_size)


def plain(section: DictConfig) -> dict:
    """A section as keyword arguments."""
    return OmegaConf.to_container(section, resolve=True)  # type: ignore[return-value]


def compared(cfg: DictConfig) -> dict:
    """The configuration without what has no influence on the numbers."""
    return {key: value for key, value in plain_config(cfg).items() if key not in NOT_COMPARED}


@dataclass
class Run:
    """What one training consists of besides its configuration."""

    cfg: DictConfig
    actor: TensorDictModuleBase
    learner: Learner
    buffer: TensorDictReplayBuffer
    collector: StepCollector
    recorder: Recorder
    num_offline: int
    counters: dict[str, int] = field(default_factory=lambda: {"pretrain": 0})

    def update(self, batch: TensorDictBase) -> dict[str, Tensor]:
        """Update; a batch that makes a loss or gradient NaN or infinite is kept for a look, and ends the run."""
        with self.recorder.dump_if_not_finite(batch):
            return self.learner.update(batch, self.cfg.training.batch_size)

    def evaluate(self, at: int) -> None:
        """Deterministic episodes in fresh environments with seeds of their own."""
        settings = plain(self.cfg.evaluation)
        make = lambda: make_gym_env(**plain(self.cfg.env))  # noqa: E731
        reference = find_reference(self.cfg.env.env_id)
        result = evaluate(self.actor, make, seed=self.cfg.seed + 10_000, reference=reference, **settings)
        self.recorder.log(at, result.metrics())

    def pretrain(self, interrupt: graceful_exit, checkpoint: Checkpointer) -> None:
        """Updates on offline batches alone, at negative steps."""
        offline = self.offline_buffer()
        while self.counters["pretrain"] < self.cfg.training.pretrain_steps and not interrupt.requested:
            self.after_pretraining_step(self.update(offline.sample()), checkpoint)

    def offline_buffer(self) -> TensorDictReplayBuffer:
        """The offline rows alone."""
        return TensorDictReplayBuffer(
            storage=self.buffer.storage,
            sampler=BalancedSampler(self.num_offline, 1.0),
            writer=ImmutableDatasetWriter(),
            batch_size=self.buffer.batch_size,
        )

    def after_pretraining_step(self, metrics: dict[str, Tensor], checkpoint: Checkpointer) -> None:
        """Count, log, evaluate and save."""
        self.counters["pretrain"] += 1
        at = self.counters["pretrain"] - self.cfg.training.pretrain_steps
        if at % self.cfg.log_every == 0:
            self.recorder.log(at, {f"train/{name}": value for name, value in metrics.items()})
        if at % self.cfg.eval_every == 0 and at < 0:
            self.evaluate(at)
        if self.counters["pretrain"] % self.cfg.checkpoint_every == 0:
            checkpoint.save(self.counters["pretrain"])

    def replay(self, at: int) -> dict[str, Tensor]:
        """Draw one batch and learn from it; A3RL's script puts its own drawing here."""
        batch = self.buffer.sample()
        return self.update(batch) | self.sampled(at, batch)

    def sampled(self, at: int, batch: TensorDictBase) -> dict[str, Tensor]:
        """What the batch looked like."""
        return {"offline_share": offline_share(batch["index"], self.num_offline)}

    def finetune(self, interrupt: graceful_exit, checkpoint: Checkpointer) -> None:
        """One environment step, then utd_ratio critic steps and one of actor and temperature, until the end."""
        cfg, transform = self.cfg, AffineReward(**plain(self.cfg.reward))
        if interrupt.requested:  # before this phase began
            checkpoint.save(self.counters["pretrain"] + self.collector.frames)
            return
        metrics: dict[str, Tensor] = {}
        for data in self.collector:
            at = self.collector.frames
            self.buffer.extend(transform(data).select(*TRANSITION))
            if at > cfg.collector.init_random_frames:
                metrics = self.replay(at)
            self.after_step(at, data, metrics, interrupt, checkpoint)
            if interrupt.requested:
                return

    def after_step(
        self,
        at: int,
        data: TensorDictBase,
        metrics: dict[str, Tensor],
        interrupt: graceful_exit,
        checkpoint: Checkpointer,
    ) -> None:
        """Log, evaluate and save."""
        cfg = self.cfg
        if data["next", "done"].item():
            self.recorder.log(at, {"train/episode_return": data["next", "episode_reward"]})
        if metrics and at % cfg.log_every == 0:
            self.recorder.log(at, {f"train/{name}": value for name, value in metrics.items()})
        if at % cfg.eval_every == 0 or at == cfg.collector.total_frames:
            self.evaluate(at)
        if at % cfg.checkpoint_every == 0 or at == cfg.collector.total_frames or interrupt.requested:
            checkpoint.save(cfg.training.pretrain_steps + at)


def make_run(
    cfg: DictConfig,
    load: Callable[..., TensorDictBase] = load_offline,
    make_storage: MakeStorage = offline_online_storage,
) -> Run:
    """Build everything in a fixed order, so that one seed gives one run; runs of one process may share their data."""
    seed_everything(cfg.seed)
    env = GuardedEnv(lambda: make_gym_env(**plain(cfg.env)), **plain(cfg.env_guard))
    (observation_dim,), (action_dim,) = env.observation_space.shape, env.action_space.shape
    actor, learner = make_learner(cfg, observation_dim, action_dim)
    offline = AffineReward(**plain(cfg.reward))(load(**plain(cfg.dataset), env=env))
    collector = StepCollector(env, actor, seed=cfg.seed, **plain(cfg.collector))
    buffer = make_buffer(cfg, offline, make_storage)
    collector.on_cut = buffer.writer.truncate_last
    recorder = Recorder(  # last, so that whatever fails before it leaves no run folder behind
        cfg.run_dir,
        config=compared(cfg),
        resume=cfg.resume,
        progress_total=cfg.collector.total_frames,
        **plain(cfg.recorder),
    )
    return Run(cfg, actor, learner, buffer, collector, recorder, len(offline))


def make_checkpointer(run: Run) -> Checkpointer:
    """Everything that changes while training."""
    learner = run.learner
    config = compared(run.cfg)
    objects = {
        "loss": learner.loss,
        "critic_optim": learner.critic_optim,
        "actor_optim": learner.actor_optim,
        "alpha_optim": learner.alpha_optim,
        "collector": run.collector,
        "recorder": run.recorder,
        "counters": run.counters,
    }
    folder = Path(run.cfg.run_dir) / "checkpoints"
    return Checkpointer(folder, objects=objects, buffer=run.buffer, config=config)


def train(run: Run, checkpoint: Checkpointer) -> None:
    """Train from the start or the newest checkpoint to the end, or until a signal asks to stop."""
    cfg = run.cfg
    with graceful_exit() as interrupt, run.recorder:
        if not (cfg.resume and checkpoint.restore() is not None):
            run.evaluate(-cfg.training.pretrain_steps)
        run.pretrain(interrupt, checkpoint)
        run.finetune(interrupt, checkpoint)
        replace_durably(Path(cfg.run_dir) / "policy.pt", dump("policy", run.actor.state_dict()))
    run.collector.shutdown()
    if interrupt.requested:
        print(f"stopped by {interrupt.signal_name}; go on with:\n  {resume_command()}")
        sys.exit(interrupt.exit_code)


def launch(cfg: DictConfig, build: Callable[[DictConfig], Run], save: Callable[[Run], Checkpointer]) -> None:
    """Build and train a run."""

    def build_and_train(cfg: DictConfig) -> None:
        run = build(cfg)
        train(run, save(run))

    run_script(cfg, build_and_train)


@hydra.main(version_base="1.3", config_path=".", config_name="config")
def main(cfg: DictConfig) -> None:
    """Train one seed into one run folder."""
    launch(cfg, make_run, make_checkpointer)


if __name__ == "__main__":
    main()
