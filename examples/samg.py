"""SAMG (Zhang et al. 2024, arXiv:2410.18626) on AWAC: online without the data set, guided by the frozen offline critic.

Run:  python examples/samg.py                       HalfCheetah, about two minutes on one core
      python examples/samg.py confidence=none       AWAC without guidance, with the same settings
      python examples/samg.py confidence=even       p = 1/2 everywhere, the paper's ablation; random is another
Every field of Config can be given as field=value. The defaults are a CPU preset for
seeing the effect; docs/algorithms/samg.md lists the paper's settings and which of them we reconstructed.
"""

from dataclasses import dataclass

import torch
from tensordict import TensorDictBase
from torchrl.data import LazyTensorStorage, TensorDictReplayBuffer
from torchrl.objectives import SoftUpdate

from torchrl_o2o.collectors import StepCollector
from torchrl_o2o.config import parse_config
from torchrl_o2o.data import TRANSITION, load_offline
from torchrl_o2o.envs import make_gym_env, seed_everything
from torchrl_o2o.modules import make_conditional_vae, make_gaussian_actor, make_qvalue_ensemble
from torchrl_o2o.modules.confidence import Confidence, ConstantConfidence, OfflineConfidence, RandomConfidence
from torchrl_o2o.objectives import AWACLoss, ConditionalVAELoss, SAMGEstimator
from torchrl_o2o.trainers import evaluate


@dataclass
class Config:
    """What can be set from the command line."""

    env: str = "HalfCheetah-v5"
    dataset: str = "o2o/halfcheetah/medium-replay-v1"
    seed: int = 0
    offline_steps: int = 10_000  # the paper: 1M
    vae_steps: int = 5_000  # the paper: 100k
    total_frames: int = 10_000  # the paper: 500k
    online_capacity: int = 50_000
    init_frames: int = 1_000  # steps of the offline policy before the first online update
    batch_size: int = 256
    hidden_sizes: tuple[int, ...] = (64, 64)  # the paper: (256, 256)
    confidence: str = "vae"
    threshold: float = 0.5
    decoder: str = "full"  # the paper's "simplified decoder" on hopper and walker2d: latent
    guidance: str = "constant"  # or step, linear, with cutoff as its end
    cutoff: int = 100_000
    lr: float = 1e-3  # the paper: 3e-4
    gamma: float = 0.99
    tau: float = 0.005
    eval_every: int = 5_000
    eval_episodes: int = 5


def descend(optim: torch.optim.Optimizer, value: torch.Tensor) -> None:
    """One step of gradient descent."""
    optim.zero_grad()
    value.backward()
    optim.step()


def fit_confidence(cfg: Config, offline: TensorDictBase, buffer: TensorDictReplayBuffer) -> Confidence:
    """Fit the model of the offline critic's reliability."""
    if cfg.confidence != "vae":
        fixed = {"none": ConstantConfidence(0.0), "even": ConstantConfidence(0.5), "random": RandomConfidence()}
        return fixed[cfg.confidence]
    shape = {"hidden_sizes": cfg.hidden_sizes, "decoder": cfg.decoder}
    vae = make_conditional_vae(offline["observation"].shape[-1], offline["action"].shape[-1], **shape)
    loss = ConditionalVAELoss(vae)
    optim = torch.optim.Adam(loss.parameters(), lr=1e-3, fused=True)
    for step in range(cfg.vae_steps):
        loss.set_progress(step / cfg.vae_steps)
        descend(optim, loss.vae_loss(buffer.sample())[0])
    confidence = OfflineConfidence(vae, threshold=cfg.threshold)
    print(confidence.fit(offline))
    return confidence


def main(cfg: Config) -> AWACLoss:
    """Train, printing the evaluations; returns the trained loss module."""
    seed_everything(cfg.seed)
    offline = load_offline(cfg.dataset, env=cfg.env)
    dims, hidden = (offline["observation"].shape[-1], offline["action"].shape[-1]), cfg.hidden_sizes
    actor = make_gaussian_actor(*dims, std="sigmoid", log_std_bounds=(-6.0, 0.0), hidden_sizes=hidden)
    plain = {"layer_norm": False, "initialization": "torch", "hidden_sizes": hidden}
    critics = make_qvalue_ensemble(*dims, num_qvalue_nets=2, **plain)
    loss = AWACLoss(actor, critics)
    loss.make_value_estimator(gamma=cfg.gamma)
    target_updater = SoftUpdate(loss, tau=cfg.tau)
    critic_optim = torch.optim.Adam(loss.qvalue_network_params.parameters(), lr=cfg.lr, fused=True)
    actor_optim = torch.optim.Adam(loss.actor_network_params.parameters(), lr=cfg.lr, fused=True)

    def update(batch: TensorDictBase) -> None:
        descend(critic_optim, loss.qvalue_loss(batch)[0])
        descend(actor_optim, loss.actor_loss(batch)[0])
        target_updater.step()

    buffer = TensorDictReplayBuffer(storage=LazyTensorStorage(len(offline)), batch_size=cfg.batch_size)
    buffer.extend(offline.select(*TRANSITION))
    for _ in range(cfg.offline_steps):
        update(buffer.sample())
    confidence = fit_confidence(cfg, offline, buffer)
    guidance = {"gamma": cfg.gamma, "guidance": cfg.guidance, "cutoff": cfg.cutoff}
    guided = SAMGEstimator.from_loss(loss, **guidance)  # frozen here
    loss.make_value_estimator(guided)
    del offline, buffer  # from now on only the frozen critic, the confidence and new transitions are used
    buffer = TensorDictReplayBuffer(storage=LazyTensorStorage(cfg.online_capacity), batch_size=cfg.batch_size)
    online = StepCollector(make_gym_env(cfg.env), actor, total_frames=cfg.total_frames, seed=cfg.seed)
    for step, data in enumerate(online, 1):
        buffer.extend(confidence(data.select(*TRANSITION)))  # p is computed once, and stored with its transition
        if step > cfg.init_frames:
            guided.set_step(step)
            update(buffer.sample())
        if step == cfg.init_frames or step % cfg.eval_every == 0:  # the first time it is still the offline policy
            result = evaluate(actor, cfg.env, num_episodes=cfg.eval_episodes, seed=cfg.seed + 10_000)
            print(f"step {step}: {result}, mean p {buffer.storage[:]['p_off'].mean():.2f}")
    online.shutdown()
    return loss


if __name__ == "__main__":
    main(parse_config(Config))
