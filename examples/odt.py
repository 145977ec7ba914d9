"""Online decision transformer (Zheng et al. 2022, arXiv:2202.05607) on TorchRL's OnlineDTLoss; needs transformers.

Run:  python examples/odt.py                       Hopper, a small transformer, some minutes on one core

Updates before the first rollout are offline. Each rollout has a high target return and is followed by updates. The
defaults are a CPU preset made for seeing the effect; docs/algorithms/odt.md lists the settings of the paper.
"""

from dataclasses import dataclass
from functools import partial

import torch
from tensordict import NestedKey
from tensordict.nn import TensorDictModule
from torchrl.data import Bounded
from torchrl.modules import OnlineDTActor, ProbabilisticActor, TanhNormal
from torchrl.objectives import OnlineDTLoss

from torchrl_o2o.collectors import ReturnConditionedRollouts
from torchrl_o2o.config import parse_config
from torchrl_o2o.data import Convention, TrajectoryReplay, load_offline
from torchrl_o2o.data.datasets.optional import require
from torchrl_o2o.envs import make_gym_env, seed_everything

KEYS: list[NestedKey] = ["observation", "action", "return_to_go"]


@dataclass
class Config:
    """What can be set from the command line."""

    env: str = "Hopper-v5"
    dataset: str = "o2o/hopper/linear-medium-v0"
    seed: int = 0
    offline_updates: int = 2_000  # the paper: 5 000
    rollouts: int = 10  # the paper: 1 500
    updates_per_rollout: int = 50  # the paper: 300
    batch_size: int = 64  # the paper: 256
    context: int = 20
    acting_context: int = 5
    width: int = 64  # the paper: 512
    layers: int = 2  # the paper: 4
    capacity: int = 1_000  # trajectories
    return_scale: float = 0.001
    eval_return: float = 3_600.0
    exploration_return: float = 7_200.0
    lr: float = 1e-3  # the paper: 1e-4, with LAMB; here AdamW, because torch has no LAMB
    weight_decay: float = 5e-4
    warmup: int = 500  # the paper: 10 000
    eval_every: int = 5
    eval_episodes: int = 3


def main(cfg: Config) -> OnlineDTLoss:
    """Train, printing the evaluations; returns the trained loss module."""
    require("transformers", "odt")
    seed_everything(cfg.seed)
    raw = load_offline(cfg.dataset, env=make_gym_env(cfg.env))
    convention = Convention(normalize_observations=True, observation_eps=1e-6).fit(raw)  # unchanged online
    data, env = convention.data(raw), convention.env(make_gym_env(cfg.env))
    replay = TrajectoryReplay(cfg.capacity, return_scale=cfg.return_scale)
    replay.load(data)
    dims = data["observation"].shape[-1], data["action"].shape[-1]
    shape = {"n_embd": cfg.width, "n_layer": cfg.layers, "n_head": 4, "n_inner": 4 * cfg.width, "activation": "relu"}
    shape |= {"n_positions": 3 * cfg.context, "resid_pdrop": 0.1, "attn_pdrop": 0.1}
    body = TensorDictModule(OnlineDTActor(*dims, transformer_config=shape), in_keys=KEYS, out_keys=["loc", "scale"])
    spec = Bounded(-torch.ones(dims[1]), torch.ones(dims[1]))
    actor = ProbabilisticActor(body, in_keys=["loc", "scale"], spec=spec, distribution_class=TanhNormal)
    loss = OnlineDTLoss(actor, alpha_init=0.1)
    transformer = [value for name, value in loss.named_parameters() if name != "log_alpha"]
    optim = torch.optim.AdamW(transformer, lr=cfg.lr, weight_decay=cfg.weight_decay)
    warmup = torch.optim.lr_scheduler.LambdaLR(optim, lambda step: min((step + 1) / cfg.warmup, 1.0))
    alpha_optim = torch.optim.Adam([loss.get_parameter("log_alpha")], lr=1e-4)
    how = {"context": cfg.acting_context, "return_scale": cfg.return_scale}
    rollouts = ReturnConditionedRollouts(env, actor, cfg.exploration_return, **how)
    entropy = torch.tensor(torch.nan)  # of the newest update
    for rollout in range(cfg.rollouts + 1):
        if rollout:
            episode = rollouts.roll_out(cfg.exploration_return, seed=cfg.seed + 1_000 + rollout)
            replay.append(episode["observation"], episode["action"], episode["next", "reward"].squeeze(-1))
        for _ in range(cfg.updates_per_rollout if rollout else cfg.offline_updates):
            out = loss(replay.sample(cfg.batch_size, cfg.context))
            optim.zero_grad()
            (out["loss_log_likelihood"] + out["loss_entropy"]).backward()
            torch.nn.utils.clip_grad_norm_(transformer, 0.25)
            optim.step()
            warmup.step()
            alpha_optim.zero_grad()
            out["loss_alpha"].backward()
            alpha_optim.step()
            entropy = out["entropy"]
        if rollout % cfg.eval_every == 0:
            ask = partial(rollouts.roll_out, cfg.eval_return, explore=False)
            seeds = range(cfg.seed + 10_000, cfg.seed + 10_000 + cfg.eval_episodes)
            mean = sum(float(ask(seed=seed)["next", "reward"].sum()) for seed in seeds) / cfg.eval_episodes
            print(f"rollout {rollout}: return {mean:.1f}, entropy {entropy:.2f}")
    return loss


if __name__ == "__main__":
    main(parse_config(Config))
