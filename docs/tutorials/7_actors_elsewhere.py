"""
Actors elsewhere
================

A robot does not wait for a gradient step. Here two pendulums swing in processes of their own, each under its own copy
of the policy, while one learner trains from what they send and from logs. It takes about a minute on two cores.
"""

# %%
# Logs
# ----
# The controller of the first tutorial.
import gymnasium
import numpy as np

from torchrl_o2o.data import describe_offline, load_offline

env, rng = gymnasium.make("Pendulum-v1"), np.random.default_rng(0)
names = ("observations", "actions", "rewards", "next_observations", "terminals", "timeouts")
logs: dict[str, list] = {name: [] for name in names}
for episode in range(25):
    observation, _ = env.reset(seed=episode)
    truncated = False
    while not truncated:
        cos, sin, speed = observation
        torque = -8.0 * sin - 2.0 * speed if cos > 0.8 else 2.0 * np.sign(speed + 1e-3)
        action = np.clip(np.array([torque + rng.normal(0.0, 1.0)]), -2.0, 2.0)
        following, reward, terminated, truncated, _ = env.step(action)
        for name, value in zip(names, (observation, action, reward, following, terminated, truncated), strict=True):
            logs[name].append(value)
        observation = following
arrays = {name: np.asarray(values) for name, values in logs.items()}
offline = load_offline(arrays, env="Pendulum-v1", action_bounds=(-2.0, 2.0))

# %%
# The learner
# -----------
# Networks, update and buffer are those of a run in one process: nothing in them knows of actors.
import torch
from torchrl.data import TensorDictReplayBuffer
from torchrl.objectives import SoftUpdate

from torchrl_o2o.data import TRANSITION, BalancedSampler, OnlineWriter, offline_online_storage
from torchrl_o2o.envs import seed_everything
from torchrl_o2o.modules import make_actor, make_qvalue_ensemble
from torchrl_o2o.objectives import EnsembleSACLoss
from torchrl_o2o.updates import Descend, MoveTargets, Repeat, Update

TOTAL = 2_000
seed_everything(0)
actor = make_actor(3, 1, hidden_sizes=(64, 64))
loss = EnsembleSACLoss(actor, make_qvalue_ensemble(3, 1, num_qvalue_nets=2, hidden_sizes=(64, 64)))


def adam(module: torch.nn.Module) -> torch.optim.Adam:
    """An optimizer of one network."""
    return torch.optim.Adam(module.parameters(), lr=1e-3)


critic = Descend("qvalue", adam(loss.qvalue_network_params))
update = Update(
    loss,
    Repeat(2, critic, MoveTargets(SoftUpdate(loss, tau=0.005))),
    Descend("actor", adam(loss.actor_network_params)),
    Descend("alpha", adam(loss.temperature)),
)
buffer = TensorDictReplayBuffer(
    storage=offline_online_storage(offline, online_capacity=TOTAL),
    sampler=BalancedSampler(len(offline)),
    writer=OnlineWriter(len(offline)),
    batch_size=2 * 128,
)

# %%
# The actors
# ----------
# :class:`~torchrl_o2o.collectors.ProcessActors` starts them. Each builds its environment in its own process, so what
# builds it has to be a function of a module; ``make_gym_env`` with its arguments is one. The policy's weights lie in
# shared memory, where an actor looks for newer ones before each step.
from functools import partial

from torchrl_o2o.collectors import Fleet, ProcessActors
from torchrl_o2o.envs import make_gym_env

actors = ProcessActors(partial(make_gym_env, "Pendulum-v1"), actor, seed=0)

# %%
# The loop
# --------
# :class:`~torchrl_o2o.collectors.Fleet` gives what has arrived, which at times is nothing. ``fleet.updates(n)`` counts:
# one update for each transition on average, at most ``slack`` more or less. So the learner continues learning while
# nothing waits, and takes what waits otherwise.
from torchrl_o2o.trainers import evaluate


def learn() -> tuple[Fleet, list[tuple[int, float]], list[dict[str, float]]]:
    """Train; returns the fleet, the learning curve, and what the fleet measured at each update."""
    fleet = Fleet(actors, offline, num_actors=2, total_frames=TOTAL, init_random_frames=200, slack=10)
    curve, seen = [], []
    with fleet:
        for data in fleet:
            buffer.extend(data.select(*TRANSITION))
            for _ in fleet.updates(len(data)):
                update(buffer.sample())
                fleet.publish()  # both act by the new policy from their next step on
                seen.append({name: float(value) for name, value in fleet.metrics().items()})
            if fleet.frames >= 400 * len(curve):
                result = evaluate(actor, "Pendulum-v1", num_episodes=5, seed=100)
                curve.append((fleet.frames, result.returns.mean()))
    return fleet, curve, seen


# %%
# What came of it
# ---------------
# A new process imports the script that starts it, so a script has to say what it does only when it is run itself.
#
# On the left the return. On the right the staleness: how many policies were published between the one that acted and
# the arrival of its transition. A pendulum in a simulator is faster than the learner, so the queue is full and rows
# wait in it. With a robot it is the other way round.
import matplotlib.pyplot as plt

if __name__ == "__main__":
    fleet, curve, seen = learn()
    print(f"{fleet.frames} transitions, {len(seen)} updates, {fleet.version} policies published")
    print(f"refused: {dict(fleet.refused)}, actors started again: {fleet.restarts}")
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.2), layout="constrained")
    left.plot(*zip(*curve, strict=True), marker="o", label="RLPD, two actors")
    left.axhline(describe_offline(arrays).returns.mean, color="black", linestyle="--", label="mean of the logs")
    left.set(xlabel="transitions", ylabel="return, 5 episodes")
    left.legend()
    right.plot([each["staleness"] for each in seen], label="mean of the last 1000")
    right.plot([each["staleness_max"] for each in seen], label="largest of them")
    right.set(xlabel="updates", ylabel="staleness, policies")
    right.legend()
    plt.show()

# %%
# What to set
# -----------
# ``max_staleness`` refuses what is older, ``queue_size`` bounds what may wait, ``slack`` bounds how far updates and
# transitions may part. An actor that dies is started again, and what it had delivered stays stored once. The promises,
# Ray instead of processes, and humans who take over are in :doc:`/actors_elsewhere`. This loop with logs, checkpoints
# and resume is ``actors=2`` for ``rlpd.py``, ``a3rl.py`` and ``awac.py`` in ``sota-implementations``.
