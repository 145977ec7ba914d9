"""
The hand-over, and what can go wrong in it
==========================================

Training on logs alone and training online place different demands on a method. This tutorial trains two methods on the
same logs, continues both online, and compares the results.
"""

# %%
# Logs
# ----
# A controller swings up and balances a pendulum. The logs hold only the actions of this controller.
import gymnasium
import numpy as np

from torchrl_o2o.data import load_offline

env, rng = gymnasium.make("Pendulum-v1"), np.random.default_rng(0)
names = ("observations", "actions", "rewards", "next_observations", "terminals", "timeouts")
logs: dict[str, list] = {name: [] for name in names}
for episode in range(25):
    observation, _ = env.reset(seed=episode)
    truncated = False
    while not truncated:
        cos, sin, speed = observation
        torque = -8.0 * sin - 2.0 * speed if cos > 0.8 else 2.0 * np.sign(speed + 1e-3)
        action = np.clip(np.array([torque + rng.normal(0.0, 0.3)]), -2.0, 2.0)
        following, reward, terminated, truncated, _ = env.step(action)
        for name, value in zip(names, (observation, action, reward, following, terminated, truncated), strict=True):
            logs[name].append(value)
        observation = following
offline = load_offline(
    {name: np.asarray(values) for name, values in logs.items()}, env="Pendulum-v1", action_bounds=(-2.0, 2.0)
)

# %%
# One loop, two phases, two methods
# ---------------------------------
# Negative steps are offline: batches come from the logs alone. From step 0 on, the policy acts, and its transitions are
# added to the logs. *SAC* does not account for the limited data. *AWAC* changes the actor only toward recorded actions
# with a high advantage.
import torch
from torchrl.data import TensorDictReplayBuffer
from torchrl.data.replay_buffers.samplers import RandomSampler
from torchrl.objectives import SoftUpdate

from torchrl_o2o.collectors import StepCollector
from torchrl_o2o.data import TRANSITION, OnlineWriter, offline_online_storage
from torchrl_o2o.envs import make_gym_env, seed_everything
from torchrl_o2o.modules import make_actor, make_gaussian_actor, make_qvalue_ensemble
from torchrl_o2o.objectives import AWACLoss, EnsembleSACLoss
from torchrl_o2o.trainers import evaluate
from torchrl_o2o.updates import Descend, MoveTargets, Update

OFFLINE, ONLINE, EVERY = 1_500, 1_500, 150


def adam(parameters: torch.nn.Module) -> torch.optim.Adam:
    """An optimizer of one network."""
    return torch.optim.Adam(parameters.parameters(), lr=1e-3)


def make(method: str) -> tuple[torch.nn.Module, Update]:
    """Actor and update of one method."""
    critics = make_qvalue_ensemble(3, 1, num_qvalue_nets=2, layer_norm=False, hidden_sizes=(64, 64))
    if method == "SAC":
        actor = make_actor(3, 1, hidden_sizes=(64, 64))
        loss = EnsembleSACLoss(actor, critics)
        last = (Descend("alpha", adam(loss.temperature)),)
    else:
        actor = make_gaussian_actor(3, 1, hidden_sizes=(64, 64))
        loss, last = AWACLoss(actor, critics), ()
    critic = Descend("qvalue", adam(loss.qvalue_network_params))
    targets = MoveTargets(SoftUpdate(loss, tau=0.005))
    return actor, Update(loss, critic, targets, Descend("actor", adam(loss.actor_network_params)), *last)


def train(method: str) -> tuple[list[int], list[float], list[float]]:
    """Steps, returns, and the mean Q value of the batches."""
    seed_everything(0)
    actor, update = make(method)
    buffer = TensorDictReplayBuffer(
        storage=offline_online_storage(offline, online_capacity=ONLINE),
        sampler=RandomSampler(),
        writer=OnlineWriter(len(offline)),
        batch_size=128,
    )
    collector = iter(StepCollector(make_gym_env("Pendulum-v1"), actor, total_frames=ONLINE, seed=0))
    steps, returns, values, measured = [], [], [], {}
    for step in range(-OFFLINE, ONLINE + 1):
        if step % EVERY == 0 and measured:
            steps.append(step)
            returns.append(evaluate(actor, "Pendulum-v1", num_episodes=5, seed=100).returns.mean())
            values.append(float(measured["qvalue"]))
        if 0 <= step < ONLINE:
            buffer.extend(next(collector).select(*TRANSITION))
        measured = update(buffer.sample())
    return steps, returns, values


curves = {method: train(method) for method in ("SAC", "AWAC")}

# %%
# Results
# -------
import matplotlib.pyplot as plt

figure, axes = plt.subplots(1, 2, figsize=(9, 3.2), layout="constrained")
for method, (steps, returns, values) in curves.items():
    axes[0].plot(steps, returns, marker=".", label=method)
    axes[1].plot(steps, values, marker=".", label=method)
for axis, label in zip(axes, ("return, 5 episodes", "mean Q of the batches"), strict=True):
    axis.axvline(0, color="black", linewidth=0.8)
    axis.set_xlabel("step (online from 0 on)")
    axis.set_ylabel(label)
axes[0].legend()
plt.show()

# %%
# How to read it
# --------------
# In our run, SAC became worse than random on the logs alone. Its critic had seen only the controller's actions and
# extrapolated the values of all others. Where it overestimated them, the actor followed. Online, SAC tried these
# actions, learned that they are bad, and recovered. AWAC stayed close to recorded actions, so it was good at step 0.
# In the last steps of our run it became worse; one run of one seed does not show why.
#
# Watch three things in your own runs: the return at step 0 (``handover/return`` in the scripts), how far it falls after
# that (``handover/dip``), and whether Q values rise while returns do not.
#
# Some methods address this problem. :class:`~torchrl_o2o.objectives.ACALoss` rebuilds the critic from the policy at the
# switch. :class:`~torchrl_o2o.objectives.CalQLLoss` keeps values at the data's scale.
# :class:`~torchrl_o2o.objectives.PessimisticEnsembleLoss` uses pessimistic values of several critics. RLPD has no
# switch at all. :doc:`/choose` compares them.
