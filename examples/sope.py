"""SOPE (2025): soft actor-critic with prior data at one update per step, and phases that train only the critics.

Run:  python examples/sope.py                       HalfCheetah, a few minutes on one core
      python examples/sope.py patience=0            SPEQ-O2O: every phase runs to its maximum
      python examples/sope.py phase_every=100000    no phases: SAC with prior data
A phase ends when the values of the policy's actions have not risen on held-out rows for `patience` updates. Every field
of Config can be given as field=value. The defaults are a CPU preset; the paper's are in sota-implementations/sope.
"""

from dataclasses import dataclass

import torch
from torchrl.objectives import LossModule, SoftUpdate

from torchrl_o2o.collectors import StepCollector
from torchrl_o2o.config import parse_config
from torchrl_o2o.data import TRANSITION, load_offline
from torchrl_o2o.envs import make_gym_env, seed_everything
from torchrl_o2o.modules import Temperature, make_actor, make_qvalue_ensemble
from torchrl_o2o.objectives import EnsembleSACLoss
from torchrl_o2o.trainers import HandOver, Learner, StoppingRule, critics_alone, evaluate, is_due, stabilize
from torchrl_o2o.updates import Descend, Joint, MoveTargets, Update


@dataclass
class Config:
    """What can be set from the command line."""

    env: str = "HalfCheetah-v5"
    dataset: str = "o2o/halfcheetah/medium-replay-v1"
    seed: int = 0
    total_frames: int = 10_000  # the paper: 300k
    init_random_frames: int = 1_000  # the paper: 5k
    phase_every: int = 2_000  # the paper: 10k
    max_updates: int = 5_000  # of a phase; the paper: 75k
    check_every: int = 250  # the paper: 1k
    patience: int = 1_000  # the paper: 10k
    sope_code: bool = False  # stop as their code does: flat values never stop a phase
    batch_size: int = 128  # offline rows, and as many online ones; the paper: 256
    hidden_sizes: tuple[int, ...] = (64, 64)  # the paper: (256, 256)
    dropout: float = 0.0  # of the critics; the paper: 0.001 to 0.1, by environment
    lr: float = 1e-3  # the paper: 3e-4
    gamma: float = 0.99
    tau: float = 0.005
    eval_every: int = 1_000
    eval_episodes: int = 5


def make_learner(cfg: Config, dims: tuple[int, int]) -> Learner:
    """Two critics with LayerNorm and dropout; the actor maximizes their mean."""
    shape = {"hidden_sizes": cfg.hidden_sizes, "layer_norm": True, "layer_norm_eps": 1e-5}
    actor = make_actor(*dims, log_prob_edge=1e-6, **shape)
    critics = make_qvalue_ensemble(*dims, num_qvalue_nets=2, dropout=cfg.dropout or None, **shape)
    temperature = Temperature(-float(dims[1]), form="log_alpha")
    loss = EnsembleSACLoss(actor, critics, temperature=temperature, actor_q="mean")
    loss.make_value_estimator(gamma=cfg.gamma)
    parts = {"qvalue": loss.qvalue_network_params, "actor": loss.actor_network_params, "alpha": loss.temperature}
    steps = [Descend(name, torch.optim.Adam(part.parameters(), lr=cfg.lr, fused=True)) for name, part in parts.items()]
    return Learner(actor, loss, Update(loss, Joint(*steps), MoveTargets(SoftUpdate(loss, tau=cfg.tau))))


def main(cfg: Config) -> LossModule:
    """Train, printing phases and evaluations; returns the trained loss module."""
    offline = load_offline(cfg.dataset, env=cfg.env)
    seed_everything(cfg.seed)
    learner = make_learner(cfg, (offline["observation"].shape[-1], offline["action"].shape[-1]))
    alone = critics_alone(learner)  # the step of the critics and targets, at half the loss
    watch = {"check_every": cfg.check_every, "patience": cfg.patience or None, "sope_code": cfg.sope_code}
    rule = StoppingRule(max_updates=cfg.max_updates, **watch)
    buffer = HandOver(data="symmetric").buffer(offline, cfg.total_frames, batch_size=2 * cfg.batch_size)
    collector = StepCollector(
        make_gym_env(cfg.env),
        learner.actor,
        total_frames=cfg.total_frames,
        init_random_frames=cfg.init_random_frames,
        seed=cfg.seed,
    )
    updates = 0
    for step, data in enumerate(collector, 1):
        buffer.extend(data.select(*TRANSITION))
        if step > cfg.init_random_frames:
            if is_due(step, cfg.phase_every):
                report = stabilize(learner, alone, buffer, rule, num_offline=len(offline), batch_size=cfg.batch_size)
                updates += report.updates
                print(f"step {step}: the critics alone for {report.updates} updates, {report.metrics()}")
            learner.update(buffer.sample())
            updates += 1
        if step % cfg.eval_every == 0:
            result = evaluate(learner.actor, cfg.env, num_episodes=cfg.eval_episodes, seed=cfg.seed + 10_000)
            print(f"step {step}: {result}, {updates} critic updates")
    return learner.loss


if __name__ == "__main__":
    main(parse_config(Config))
