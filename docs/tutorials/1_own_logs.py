"""
Your own logs to a deployed policy
==================================

A machine has been running under a hand-written controller, and you have its logs. This tutorial loads the logs, trains
on them while the policy also acts in the environment, and ends with a policy that runs in a plain loop without this
package's training code. It takes about a minute on one core.
"""

# %%
# The logs
# --------
# Here the machine is a pendulum. Its controller swings it up most of the time, but noise makes it fail now and
# then. The logs are arrays with one row per step.
import gymnasium
import numpy as np


def controller(observation: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Pump energy while the pendulum hangs, balance it when it is up, and add much noise."""
    cos, sin, speed = observation
    torque = -8.0 * sin - 2.0 * speed if cos > 0.8 else 2.0 * np.sign(speed + 1e-3)
    return np.clip(np.array([torque + rng.normal(0.0, 1.0)]), -2.0, 2.0)


env, rng = gymnasium.make("Pendulum-v1"), np.random.default_rng(0)
names = ("observations", "actions", "rewards", "next_observations", "terminals", "timeouts")
logs: dict[str, list] = {name: [] for name in names}
for episode in range(25):
    observation, _ = env.reset(seed=episode)
    truncated = False
    while not truncated:
        action = controller(observation, rng)
        following, reward, terminated, truncated, _ = env.step(action)
        for name, value in zip(names, (observation, action, reward, following, terminated, truncated), strict=True):
            logs[name].append(value)
        observation = following
arrays = {name: np.asarray(values) for name, values in logs.items()}

# %%
# Load and summarize
# ------------------
# ``load_offline`` takes arrays, a file or a Minari name. It scales actions from the machine's units to [-1, 1],
# finds the episodes, and raises an error with the row if the data are broken. ``describe_offline`` summarizes the data.
from torchrl_o2o.data import describe_offline, load_offline

offline = load_offline(arrays, env="Pendulum-v1", action_bounds=(-2.0, 2.0))
info = describe_offline(arrays)
print(f"{len(offline)} transitions, return {info.returns.mean:.0f} on average, {info.returns.max:.0f} at best")

# %%
# Train
# -----
# We train RLPD: an actor, critics with LayerNorm, and batches that are half logs and half new experience. All
# components are TorchRL's or plug into it.
import torch
from torchrl.data import TensorDictReplayBuffer
from torchrl.objectives import SoftUpdate

from torchrl_o2o.collectors import StepCollector
from torchrl_o2o.data import TRANSITION, BalancedSampler, OnlineWriter, offline_online_storage
from torchrl_o2o.envs import make_gym_env, seed_everything
from torchrl_o2o.modules import make_actor, make_qvalue_ensemble
from torchrl_o2o.objectives import EnsembleSACLoss
from torchrl_o2o.trainers import evaluate
from torchrl_o2o.updates import Descend, MoveTargets, Update

seed_everything(0)
steps = 3_000
actor = make_actor(3, 1, hidden_sizes=(64, 64))
loss = EnsembleSACLoss(actor, make_qvalue_ensemble(3, 1, num_qvalue_nets=2, hidden_sizes=(64, 64)))
update = Update(
    loss,
    Descend("qvalue", torch.optim.Adam(loss.qvalue_network_params.parameters(), lr=1e-3)),
    MoveTargets(SoftUpdate(loss, tau=0.005)),
    Descend("actor", torch.optim.Adam(loss.actor_network_params.parameters(), lr=1e-3)),
    Descend("alpha", torch.optim.Adam(loss.temperature.parameters(), lr=1e-3)),
)
buffer = TensorDictReplayBuffer(
    storage=offline_online_storage(offline, online_capacity=steps),
    sampler=BalancedSampler(len(offline), offline_fraction=0.5),
    writer=OnlineWriter(len(offline)),
    batch_size=128,
)

curve = []
collector = StepCollector(make_gym_env("Pendulum-v1"), actor, total_frames=steps, seed=0)
for step, data in enumerate(collector):
    if step % 300 == 0:
        curve.append((step, evaluate(actor, "Pendulum-v1", num_episodes=5, seed=100).returns.mean()))
    buffer.extend(data.select(*TRANSITION))
    if step >= 128:
        measured = update(buffer.sample())
curve.append((steps, evaluate(actor, "Pendulum-v1", num_episodes=5, seed=100).returns.mean()))

# %%
# Did it help?
# ------------
import matplotlib.pyplot as plt

plt.figure(figsize=(6, 3.2), layout="constrained")
plt.plot(*zip(*curve, strict=True), marker="o", label="RLPD on the logs")
plt.axhline(info.returns.mean, color="black", linestyle="--", label="mean of the logs")
plt.axhline(info.returns.max, color="black", linestyle=":", label="best of the logs")
plt.xlabel("environment steps")
plt.ylabel("return, 5 episodes")
plt.legend()
plt.show()

# %%
# Deploy
# ------
# ``save_policy`` writes one file with everything that is needed to act: the networks, the action bounds in the
# machine's units, and the scaling of observations. On the machine, ``load_policy`` and ``FastActor`` turn it into a
# function from numpy observations to numpy actions.
import tempfile
from pathlib import Path

from torchrl_o2o.collectors import FastActor
from torchrl_o2o.deploy import load_policy, save_policy

path = Path(tempfile.mkdtemp()) / "policy.pt"
save_policy(path, actor, env="Pendulum-v1")

act = FastActor(load_policy(path))
observation, _ = env.reset(seed=3)
total, truncated = 0.0, False
while not truncated:
    observation, reward, _, truncated, _ = env.step(act(observation))
    total += float(reward)
print(f"return in a plain loop: {total:.0f}")

# %%
# ``export_policy(path, "policy.onnx", format="onnx")`` writes a file that needs neither this package nor TorchRL.
