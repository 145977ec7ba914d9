"""PEX (Zhang et al. 2023, arXiv:2302.00935): the offline policy is frozen, and a new one learns next to it.

Run:  python examples/pex.py                       HalfCheetah, about two minutes on one core
      python examples/pex.py inv_temperature=0     chooses between the policies at random, not by their values
Every field of Config can be given as field=value. The defaults are a CPU preset made for seeing the effect; the paper's
own settings are in sota-implementations/pex.
"""

from dataclasses import dataclass

import torch
from torchrl.modules import ProbabilisticActor
from torchrl.objectives import SoftUpdate

from torchrl_o2o.collectors import StepCollector
from torchrl_o2o.config import parse_config
from torchrl_o2o.data import TRANSITION, load_offline
from torchrl_o2o.envs import make_gym_env, seed_everything
from torchrl_o2o.modules import make_gaussian_actor, make_qvalue_ensemble, make_value_network
from torchrl_o2o.objectives import ExpandedPolicy, IQLLoss, PEXLoss
from torchrl_o2o.trainers import HandOver, evaluate


@dataclass
class Config:
    """What can be set from the command line."""

    env: str = "HalfCheetah-v5"
    dataset: str = "o2o/halfcheetah/medium-replay-v1"
    seed: int = 0
    offline_steps: int = 10_000  # the paper: 1M
    total_frames: int = 10_000  # the paper: 1M
    warmup_steps: int = 1_000  # the paper: 5k
    batch_size: int = 256
    hidden_sizes: tuple[int, ...] = (64, 64)  # the paper: (256, 256)
    expectile: float = 0.7  # the paper: 0.9
    beta: float = 0.3  # the paper: 10; after so few steps values should not count more
    inv_temperature: float = 10.0
    lr: float = 3e-4
    gamma: float = 0.99
    tau: float = 0.005
    eval_every: int = 2_000
    eval_episodes: int = 5


def step(optim: torch.optim.Optimizer, loss: torch.Tensor) -> None:
    """One step of gradient descent."""
    optim.zero_grad()
    loss.backward()
    optim.step()


def main(cfg: Config) -> PEXLoss:
    """Train, printing the evaluations; returns the trained loss module."""
    seed_everything(cfg.seed)
    offline = load_offline(cfg.dataset, env=cfg.env)
    dims = offline["observation"].shape[-1], offline["action"].shape[-1]

    def policy() -> ProbabilisticActor:
        shape = {"hidden_sizes": cfg.hidden_sizes, "initialization": "xavier_uniform", "log_std_bounds": (-5.0, 2.0)}
        return make_gaussian_actor(*dims, clip_samples=False, **shape)

    def adams(loss: IQLLoss) -> list[torch.optim.Adam]:
        parts = loss.value_network_params, loss.qvalue_network_params, loss.actor_network_params
        return [torch.optim.Adam(part.parameters(), lr=cfg.lr, fused=True) for part in parts]

    sizes = {"hidden_sizes": cfg.hidden_sizes, "initialization": "torch"}
    actor, critics = policy(), make_qvalue_ensemble(*dims, num_qvalue_nets=2, layer_norm=False, **sizes)
    rule = {"expectile": cfg.expectile, "beta": cfg.beta, "ensemble_reduction": "mean"}
    iql = IQLLoss(actor, critics, make_value_network(dims[0], **sizes), **rule)
    iql.make_value_estimator(gamma=cfg.gamma)
    targets, (value_optim, critic_optim, actor_optim) = SoftUpdate(iql, tau=cfg.tau), adams(iql)
    buffer = HandOver(data="all").buffer(offline, 1, batch_size=cfg.batch_size)
    for _ in range(cfg.offline_steps):
        batch = buffer.sample()
        loss_value, info = iql.value_loss(batch)
        loss_qvalue, _ = iql.qvalue_loss(batch)  # with the old V, like the policy
        loss_actor, _ = iql.actor_loss(batch, old_advantage=info["advantage"])
        step(value_optim, loss_value)
        step(critic_optim, loss_qvalue)
        targets.step()
        step(actor_optim, loss_actor)

    # The hand-over: critics and V continue, the policy is frozen, and a new one begins.
    critics = make_qvalue_ensemble(*dims, num_qvalue_nets=2, layer_norm=False, **sizes)
    value, expansion = make_value_network(dims[0], **sizes), {"inv_temperature": cfg.inv_temperature, **rule}
    loss = PEXLoss(policy(), critics, value, policy(), **expansion)
    loss.make_value_estimator(gamma=cfg.gamma)
    targets, (value_optim, critic_optim, actor_optim) = SoftUpdate(loss, tau=cfg.tau), adams(loss)
    carry = ("qvalue_network", "value_network", "offline_actor_network=actor_network")
    how = HandOver(carry, data="symmetric", warmup_steps=cfg.warmup_steps)
    how.apply(iql, loss)
    buffer = how.buffer(offline, cfg.total_frames, batch_size=cfg.batch_size)
    both = ExpandedPolicy(loss)
    scored = {"env": cfg.env, "num_episodes": cfg.eval_episodes, "seed": cfg.seed + 10_000}
    print("step 0: offline policy", evaluate(loss.offline_actor_network, **scored))
    info = {"offline_share": torch.ones(1)}
    collector = StepCollector(make_gym_env(cfg.env), both, total_frames=cfg.total_frames, seed=cfg.seed)
    for frame, data in enumerate(collector, 1):
        buffer.extend(data.select(*TRANSITION))
        if how.may_update(frame):
            batch = buffer.sample()
            losses = loss.value_loss(batch)[0], loss.qvalue_loss(batch)[0]
            step(value_optim, losses[0])
            step(critic_optim, losses[1])
            targets.step()
            loss_actor, info = loss.actor_loss(batch)  # on actions that the two policies propose
            step(actor_optim, loss_actor)
        if frame % cfg.eval_every == 0:
            share = info["offline_share"].mean()
            print(f"step {frame}: {evaluate(both, **scored)}, offline policy chosen {share:.2f}")
    return loss


if __name__ == "__main__":
    main(parse_config(Config))
