"""WSRL (Zhou et al. 2024, arXiv:2412.07762): from an offline learner to an online one without keeping the data.

Run:  python examples/wsrl.py                   HalfCheetah, a few minutes on one core
      python examples/wsrl.py warmup_steps=0    no warm-up: the return falls after the hand-over
Every field of Config can be given as field=value. The defaults are a CPU preset made for seeing the effect; the paper's
own settings are in sota-implementations/wsrl.
"""

import math
from dataclasses import dataclass

import torch
from torchrl.objectives import SoftUpdate

from torchrl_o2o.collectors import StepCollector
from torchrl_o2o.config import parse_config
from torchrl_o2o.data import TRANSITION, load_offline
from torchrl_o2o.envs import make_gym_env, seed_everything
from torchrl_o2o.modules import ConservativePenalty, Temperature, make_actor, make_qvalue_ensemble
from torchrl_o2o.objectives import CQLLoss, EnsembleSACLoss
from torchrl_o2o.trainers import HandOver, evaluate

SOFT = {"sub_sample_len": 2, "subset_replacement": True, "entropy_at": "next_state", "actor_q": "min"}


@dataclass
class Config:
    """What can be set from the command line."""

    env: str = "HalfCheetah-v5"
    dataset: str = "o2o/halfcheetah/medium-replay-v1"
    seed: int = 0
    offline_steps: int = 5_000  # the paper: 250k in locomotion
    total_frames: int = 6_000  # the paper: 500k
    warmup_steps: int = 1_000  # the paper: 5k
    utd_ratio: int = 4
    batch_size: int = 128  # rows of one critic step; the paper: 256
    hidden_sizes: tuple[int, ...] = (64, 64)  # the paper: (256, 256)
    num_qvalue_nets: int = 4  # the paper: 10
    cql_alpha: float = 5.0
    num_actions: int = 4  # the paper: 10
    actor_lr: float = 3e-4  # the paper: 1e-4
    critic_lr: float = 3e-4
    gamma: float = 0.99
    tau: float = 0.02  # the paper: 0.005; a fast one passes rewards on within few steps
    eval_every: int = 1_000
    eval_episodes: int = 5


def networks(cfg: Config, dims: tuple[int, int]) -> tuple:
    """Actor, critics that share their output layer, and temperature."""
    shape = {"hidden_sizes": cfg.hidden_sizes, "layer_norm": True, "initialization": "orthogonal_small_hidden"}
    actor = make_actor(*dims, log_std_bounds=(math.log(1e-5), math.log(10.0)), **shape)
    qvalues = make_qvalue_ensemble(*dims, num_qvalue_nets=cfg.num_qvalue_nets, shared_head=True, **shape)
    return actor, qvalues, Temperature(-float(dims[1]), form="softplus")


def optimizers(loss: CQLLoss | EnsembleSACLoss, critic_lr: float, actor_lr: float) -> dict[str, torch.optim.Adam]:
    """One of each network."""
    parts = {"qvalue": loss.qvalue_network_params, "actor": loss.actor_network_params, "alpha": loss.temperature}
    rates = {"qvalue": critic_lr, "actor": actor_lr, "alpha": actor_lr}
    return {name: torch.optim.Adam(part.parameters(), lr=rates[name], fused=True) for name, part in parts.items()}


def descend(loss: torch.nn.Module, optims: dict, batch: object, *names: str) -> None:
    """All gradients at the same parameters, then all steps."""
    losses = [getattr(loss, f"{name}_loss")(batch)[0] for name in names]
    for name in names:
        optims[name].zero_grad()
    sum(losses, torch.zeros(())).backward()
    for name in names:
        optims[name].step()


def main(cfg: Config) -> EnsembleSACLoss:
    """Train, printing the evaluations; returns the trained loss module."""
    seed_everything(cfg.seed)
    offline = load_offline(cfg.dataset, env=cfg.env)
    dims = offline["observation"].shape[-1], offline["action"].shape[-1]
    actor, qvalues, temperature = networks(cfg, dims)
    penalty = ConservativePenalty(cfg.cql_alpha, num_actions=cfg.num_actions)
    cql = CQLLoss(actor, qvalues, temperature=temperature, penalty=penalty, **SOFT)
    cql.make_value_estimator(gamma=cfg.gamma)
    targets, before = SoftUpdate(cql, tau=cfg.tau), optimizers(cql, cfg.critic_lr, cfg.actor_lr)
    buffer = HandOver(data="all").buffer(offline, 1, batch_size=cfg.batch_size)
    for _ in range(cfg.offline_steps):
        descend(cql, before, buffer.sample(), "qvalue", "actor", "alpha")
        targets.step()

    # The hand-over: everything continues except the penalty, and the data are dropped.
    seed_everything(cfg.seed)
    actor, qvalues, temperature = networks(cfg, dims)
    sac = {"ensemble_reduction": "mean", "entropy_backup": False, **SOFT}
    loss = EnsembleSACLoss(actor, qvalues, temperature=temperature, **sac)
    loss.make_value_estimator(gamma=cfg.gamma)
    rows, carry = cfg.utd_ratio * cfg.batch_size, ("actor_network", "qvalue_network", "temperature")
    how = HandOver(carry, keep_optimizers=True, data="none", warmup_steps=max(cfg.warmup_steps, rows))
    # The authors' code steps all optimizers in every call; these rates have the same effect.
    rates = cfg.critic_lr * math.sqrt(1 + 1 / cfg.utd_ratio), cfg.actor_lr * math.sqrt(1 + cfg.utd_ratio)
    targets, optims = SoftUpdate(loss, tau=cfg.tau), optimizers(loss, *rates)
    how.apply(cql, loss, [(before[name], optims[name]) for name in optims])
    buffer = how.buffer(offline, cfg.total_frames, batch_size=rows)
    scored = {"env": cfg.env, "num_episodes": cfg.eval_episodes, "seed": cfg.seed + 10_000}
    print("step 0:", evaluate(actor, **scored))
    collector = StepCollector(make_gym_env(cfg.env), actor, total_frames=cfg.total_frames, seed=cfg.seed)
    for step, data in enumerate(collector, 1):
        buffer.extend(data.select(*TRANSITION))
        if how.may_update(step):  # until then the policy does not change
            batch = buffer.sample()
            for minibatch in batch.split(cfg.batch_size):
                descend(loss, optims, minibatch, "qvalue")
                targets.step()
            descend(loss, optims, batch, "actor", "alpha")
        if step % cfg.eval_every == 0:
            print(f"step {step}:", evaluate(actor, **scored))
    return loss


if __name__ == "__main__":
    main(parse_config(Config))
