"""ReBRAC (Tarasov et al. 2023, arXiv:2305.09836), continued online without the critics' penalty.

Run:  python examples/rebrac.py                     HalfCheetah, about two minutes on one core
      python examples/rebrac.py critic_bc_coef=0    a penalty only on the actor
Steps up to zero are offline. Every field of Config can be given as field=value. The defaults are a CPU preset made for
seeing the effect. Online, half of each batch is from the data, and the policy collects without noise, as in CORL.
"""

from dataclasses import dataclass
from itertools import chain, repeat

import torch
from torchrl.data import LazyTensorStorage, TensorDictReplayBuffer

from torchrl_o2o.collectors import StepCollector
from torchrl_o2o.config import parse_config
from torchrl_o2o.data import (
    TRANSITION,
    BalancedSampler,
    OnlineWriter,
    add_next_action,
    load_offline,
    offline_online_storage,
)
from torchrl_o2o.envs import make_gym_env, seed_everything
from torchrl_o2o.functional import spot_cooling
from torchrl_o2o.modules import make_deterministic_actor, make_qvalue_ensemble
from torchrl_o2o.objectives import ReBRACLoss
from torchrl_o2o.trainers import evaluate


@dataclass
class Config:
    """What can be set from the command line."""

    env: str = "HalfCheetah-v5"
    dataset: str = "o2o/halfcheetah/medium-replay-v1"
    seed: int = 0
    offline_steps: int = 10_000  # the paper: 1M
    total_frames: int = 10_000
    batch_size: int = 256  # the paper: 1024 offline
    hidden_sizes: tuple[int, ...] = (64, 64)  # the paper: (256, 256, 256)
    actor_bc_coef: float = 0.1  # the paper: 0.001 to 0.1; after so few steps values should not count more
    critic_bc_coef: float = 0.01
    cooling_floor: float = 0.5
    policy_delay: int = 2
    lr: float = 1e-3
    gamma: float = 0.99
    tau: float = 0.005
    eval_every: int = 5_000
    eval_episodes: int = 5


def main(cfg: Config) -> ReBRACLoss:
    """Train, printing the evaluations; returns the trained loss module."""
    seed_everything(cfg.seed)
    env = make_gym_env(cfg.env)
    recorded = load_offline(cfg.dataset, env=env)
    pairs = add_next_action(recorded)  # with the recorded next actions, for the penalty on target actions
    dims = recorded["observation"].shape[-1], recorded["action"].shape[-1]
    init = {"hidden_sizes": cfg.hidden_sizes, "initialization": "uniform_small_last"}
    actor = make_deterministic_actor(*dims, **init)
    qvalues = make_qvalue_ensemble(*dims, num_qvalue_nets=2, layer_norm="after_activation", **init)
    loss = ReBRACLoss(actor, qvalues, actor_bc_coef=cfg.actor_bc_coef, critic_bc_coef=cfg.critic_bc_coef)
    loss.make_value_estimator(gamma=cfg.gamma)
    critics, target_critics = loss.qvalue_network_params, loss.target_qvalue_network_params
    policy, target_policy = loss.actor_network_params, loss.target_actor_network_params
    critic_optim = torch.optim.Adam(critics.parameters(), lr=cfg.lr, fused=True)
    actor_optim = torch.optim.Adam(policy.parameters(), lr=cfg.lr, fused=True)

    offline = TensorDictReplayBuffer(storage=LazyTensorStorage(len(pairs)), batch_size=cfg.batch_size)
    offline.extend(pairs.select(*TRANSITION, ("next", "action")))
    buffer = TensorDictReplayBuffer(
        storage=offline_online_storage(recorded, cfg.total_frames),
        sampler=BalancedSampler(len(recorded), 0.5),
        writer=OnlineWriter(len(recorded)),
        batch_size=cfg.batch_size,
    )
    online = StepCollector(env, actor, total_frames=cfg.total_frames, seed=cfg.seed)
    info = {"bc_error": torch.tensor(torch.nan)}  # of the actor's newest step
    for step, data in enumerate(chain(repeat(None, cfg.offline_steps), online), -cfg.offline_steps):
        if data is not None:
            buffer.extend(data.select(*TRANSITION))
            loss.critic_bc_coef = 0.0  # online the critics have no penalty, and the actor's decreases
            loss.actor_bc_coef.fill_(spot_cooling(cfg.actor_bc_coef, step, cfg.total_frames, cfg.cooling_floor))
        batch = (offline if data is None else buffer).sample()
        loss_qvalue, critic_info = loss.qvalue_loss(batch)
        critic_optim.zero_grad()
        loss_qvalue.backward()
        critic_optim.step()
        if step % cfg.policy_delay == 0:
            target_policy.data.lerp_(policy.data, cfg.tau)  # follows the policy from before its step
            loss_actor, info = loss.actor_loss(batch)
            actor_optim.zero_grad()
            loss_actor.backward()
            actor_optim.step()
            target_critics.data.lerp_(critics.data, cfg.tau)
        if (step + 1) % cfg.eval_every == 0:
            result = evaluate(actor, cfg.env, num_episodes=cfg.eval_episodes, seed=cfg.seed + 10_000)
            distance, qvalue = info["bc_error"].mean(), critic_info["qvalue"].mean()
            print(f"step {step + 1}: {result}, Q {qvalue:.1f}, squared distance to the data {distance:.3f}")
    online.shutdown()
    return loss


if __name__ == "__main__":
    main(parse_config(Config))
