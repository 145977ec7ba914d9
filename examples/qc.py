"""Q-chunking (Li, Zhou & Levine 2025, arXiv:2507.07969): the best of N chunks of a flow of the data's actions.

Run:  python examples/qc.py                                   a point mass in a maze, some minutes on one core
      python examples/qc.py horizon=1 num_samples=4           single actions (the paper's BFN)
Steps up to zero are offline. Every field of Config can be given as field=value. The defaults are a CPU preset made for
seeing the effect. One buffer holds data and online rows. Batches consist of chunks of ``horizon`` rows, and the policy
chooses a new chunk only when the last one has been executed.
"""

from dataclasses import dataclass
from itertools import chain, repeat

import torch
from torchrl.data import LazyTensorStorage, RandomSampler, TensorDictReplayBuffer
from torchrl.objectives import SoftUpdate

from torchrl_o2o.collectors import StepCollector
from torchrl_o2o.config import parse_config
from torchrl_o2o.data import TRANSITION, ChunkSampler, OnlineWriter, load_offline
from torchrl_o2o.envs import make_gym_env, seed_everything
from torchrl_o2o.modules import act_in_chunks, chunk_box, make_flow_network, make_qvalue_ensemble
from torchrl_o2o.objectives import BestOfNLoss
from torchrl_o2o.trainers import evaluate
from torchrl_o2o.updates import Descend, Joint, MoveTargets, Update


@dataclass
class Config:
    """What can be set from the command line."""

    env: str = "o2o/PointMaze-UMaze-v0"
    dataset: str = "o2o/pointmaze/umaze-play-v0"
    seed: int = 0
    offline_steps: int = 5_000  # the paper: 1M
    total_frames: int = 5_000
    warmup_steps: int = 500  # the paper: 5000
    batch_size: int = 128  # the paper: 256
    hidden_sizes: tuple[int, ...] = (64, 64)  # the paper: (512, 512, 512, 512)
    horizon: int = 5
    num_samples: int = 8  # the paper: 32
    flow_steps: int = 5  # the paper: 10
    reward_shift: float = -1.0
    lr: float = 3e-4
    gamma: float = 0.99
    tau: float = 0.02  # the paper: 0.005; a fast one passes rewards on within few steps
    eval_every: int = 2_500
    eval_episodes: int = 10


def main(cfg: Config) -> BestOfNLoss:
    """Train, printing the evaluations; returns the trained loss module."""
    seed_everything(cfg.seed)
    env = make_gym_env(cfg.env)
    data = load_offline(cfg.dataset, env=env)
    data["next", "reward"] = data["next", "reward"] + cfg.reward_shift
    width, size = data["observation"].shape[-1], data["action"].shape[-1]
    chunk = chunk_box(size, cfg.horizon)
    flow = make_flow_network(width, chunk, hidden_sizes=cfg.hidden_sizes)
    norm = {"activation": "gelu", "layer_norm": "after_activation", "hidden_sizes": cfg.hidden_sizes}
    qvalues = make_qvalue_ensemble(width, chunk, num_qvalue_nets=2, **norm)
    loss = BestOfNLoss(flow, qvalues, num_samples=cfg.num_samples, flow_steps=cfg.flow_steps)
    loss.make_value_estimator(gamma=cfg.gamma)
    actor = act_in_chunks(loss.make_actor(), cfg.horizon)
    update = Update(
        loss,
        Joint(  # the target critics follow the critics from before the step
            MoveTargets(SoftUpdate(loss, tau=cfg.tau)),
            Descend("qvalue", torch.optim.Adam(loss.qvalue_network_params.parameters(), lr=cfg.lr, fused=True)),
            Descend("flow", torch.optim.Adam(loss.actor_network_params.parameters(), lr=cfg.lr, fused=True)),
        ),
    )
    buffer = TensorDictReplayBuffer(
        storage=LazyTensorStorage(len(data) + cfg.total_frames),
        sampler=ChunkSampler(RandomSampler(), cfg.horizon, gamma=cfg.gamma),
        writer=OnlineWriter(0),  # all rows are equally likely
        batch_size=cfg.batch_size,
    )
    buffer.extend(data.select(*TRANSITION))
    online = StepCollector(env, actor, total_frames=cfg.total_frames, seed=cfg.seed)
    metrics: dict[str, torch.Tensor] = {}
    for step, row in enumerate(chain(repeat(None, cfg.offline_steps), online), 1 - cfg.offline_steps):
        if row is not None:
            row["next", "reward"] = row["next", "reward"] + cfg.reward_shift
            buffer.extend(row.select(*TRANSITION))
        if row is None or step >= cfg.warmup_steps:
            metrics = update(buffer.sample())
        if step % cfg.eval_every == 0:
            result = evaluate(actor, cfg.env, num_episodes=cfg.eval_episodes, seed=cfg.seed + 10_000)
            learned = [f"{name} {metrics[name]:.3f}" for name in ("qvalue", "loss_flow") if name in metrics]
            print(f"step {step}:", ", ".join([str(result), *learned]))
    online.shutdown()
    return loss


if __name__ == "__main__":
    main(parse_config(Config))
