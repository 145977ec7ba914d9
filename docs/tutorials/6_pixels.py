"""
From pixels
===========

This tutorial trains on images, as a robot with a camera does. It stores each frame once and trains RLPD with the
augmentation of DrQ: a convolutional encoder, random shifts, and half of each batch from logs. It takes about two
minutes on one core and needs no renderer.
"""

# %%
# The task
# --------
# A dot is steered to a target within 25 steps. An observation is a stack of the last three frames, with 9 channels.
import matplotlib.pyplot as plt

from torchrl_o2o.envs import make_gym_env, seed_everything

seed_everything(0)
env = make_gym_env("o2o/DotReach-v0")
print(env.observation_space)

# %%
# Logs
# ----
# The data come from a controller that steers to the target with much noise. ``load_offline`` reads rows with whole
# stacks. ``stack_rows`` keeps each frame only once: rows then hold the indices of their frames, and stacks are
# assembled when a batch is drawn. The storage has room for the online transitions.
from torchrl_o2o.data import load_offline, stack_rows
from torchrl_o2o.data.datasets.local import make_local_dataset

TOTAL = 2_000
make_local_dataset("o2o/dotreach/chase-v0")
data = stack_rows(load_offline("o2o/dotreach/chase-v0"))
storage = data.storage(TOTAL)
episode = data.stacks(range(0, 25, 4))["observation"]
print(f"{len(data)} transitions; a stack is {list(episode[0].shape)}, {episode.dtype}")

figure, axes = plt.subplots(1, len(episode), figsize=(9, 1.8), layout="constrained")
for step, (axis, stack) in enumerate(zip(axes, episode, strict=True)):
    axis.imshow(stack[-3:].movedim(0, -1))  # the newest frame
    axis.set(title=f"step {4 * step}", xticks=[], yticks=[])
plt.show()

# %%
# Random shifts
# -------------
# The augmentation is essential: each stack of a batch is shifted by a random number of pixels. The three frames of a
# stack have the same shift, those of s and s' different ones. ``RandomShift`` is a transform of the replay buffer.
from torchrl.data import TensorDictReplayBuffer

from torchrl_o2o.data import TRANSITION, BalancedSampler, OnlineWriter, RandomShift

buffer = TensorDictReplayBuffer(
    storage=storage,
    sampler=BalancedSampler(len(data), offline_fraction=0.5),
    writer=OnlineWriter(len(data)),
    batch_size=64,
    transform=RandomShift(1),
)

# %%
# Networks and update
# -------------------
# The critics share one encoder and train it. The actor has its own copy, which the actor's loss does not train: its
# convolutions are copied from the critics' at the start of each update (``Copy``).
import torch
from torchrl.objectives import SoftUpdate

from torchrl_o2o.modules import Temperature, encoder_width, make_pixel_actor, make_pixel_encoder, make_qvalue_ensemble
from torchrl_o2o.objectives import PixelSACLoss
from torchrl_o2o.updates import Copy, Descend, MoveTargets, Update

encoder = make_pixel_encoder(env.observation_space.shape, features=(16, 32), strides=(2, 2), latent_dim=32)
actor = make_pixel_actor(encoder, 2, hidden_sizes=(64, 64))
heads = make_qvalue_ensemble(
    encoder_width(encoder), 2, num_qvalue_nets=5, hidden_sizes=(64, 64), in_keys=("latent", "action")
)
loss = PixelSACLoss(
    actor,
    encoder,
    heads,
    temperature=Temperature(-1.0, init=0.1),
    sub_sample_len=1,
    entropy_backup=False,
    ensemble_reduction="mean",
)
loss.make_value_estimator(gamma=0.95)


def adam(*modules: torch.nn.Module) -> torch.optim.Adam:
    """One optimizer of some modules."""
    return torch.optim.Adam([parameter for module in modules for parameter in module.parameters()], lr=1e-3)


update = Update(
    loss,
    Copy(*PixelSACLoss.LATE_COPY),
    Descend("qvalue", adam(loss.encoder_network_params, loss.qvalue_network_params)),
    MoveTargets(SoftUpdate(loss, tau=0.01)),
    Descend("actor", adam(loss.actor_network_params)),
    Descend("alpha", adam(loss.temperature)),
)

# %%
# The loop
# --------
# The loop is the same as with vector observations.
from torchrl_o2o.collectors import StepCollector
from torchrl_o2o.trainers import evaluate

curve = []
collector = StepCollector(env, actor, total_frames=TOTAL, init_random_frames=500, seed=0)
for step, transition in enumerate(collector, 1):
    buffer.extend(transition.select(*TRANSITION))
    if step > 500:
        update(buffer.sample())
    if step % 250 == 0:
        curve.append((step, evaluate(actor, "o2o/DotReach-v0", num_episodes=10, seed=100).returns.mean()))

# %%
# Did it help?
# ------------
reward = data.rows["next", "reward"].flatten()
mean = float(reward.sum() / data.rows["episode"].unique().numel())
plt.figure(figsize=(6, 3.2), layout="constrained")
plt.plot(*zip(*curve, strict=True), marker="o", label="RLPD from pixels")
plt.axhline(mean, color="black", linestyle="--", label="mean of the logs")
plt.xlabel("environment steps")
plt.ylabel("return, 10 episodes")
plt.legend()
plt.show()

# %%
# For your own frames: :func:`~torchrl_o2o.data.pixel_data` takes episodes of images, and
# :func:`~torchrl_o2o.data.load_vd4rl` reads V-D4RL's files. The paper's sizes and a script with logs, checkpoints and
# resume are in ``sota-implementations/rlpd_pixels``.
