"""
Actors in other processes
=========================

A robot cannot wait for a gradient step. Here two pendulums run in their own processes, each with its own copy
of the policy, while one learner trains on their transitions and on logs. It takes about a minute on two cores.
"""

# %%
# Logs
# ----
# A pendulum under a noisy controller, as in :doc:`1_own_logs`.
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
# Networks and update are the same as for a run in one process. They do not depend on the actors.
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

# %%
# The actors
# ----------
# :class:`~torchrl_o2o.collectors.ProcessActors` starts the actors. Each builds its environment in its own process, with
# a module-level function such as ``make_gym_env``. The policy's weights are in shared memory, and an actor checks for
# newer ones before each step.
from functools import partial

from torchrl_o2o.collectors import Fleet, ProcessActors
from torchrl_o2o.envs import make_gym_env

actors = ProcessActors(partial(make_gym_env, "Pendulum-v1"), actor, seed=0)

# %%
# The loop
# --------
# :class:`~torchrl_o2o.collectors.Fleet` yields the transitions that have arrived, sometimes none. ``fleet.updates(n)``
# yields one update per transition on average, with a deviation of at most ``slack``. So the learner continues to train
# while no transitions are queued, and otherwise stores them first.
#
# The buffer is built in the function, because each actor's process imports this script and has no use for a buffer.
from torchrl_o2o.trainers import evaluate


def learn() -> tuple[Fleet, list[tuple[int, float]], list[dict[str, float]]]:
    """Train; returns the fleet, the learning curve, and what the fleet measured at each update."""
    buffer = TensorDictReplayBuffer(
        storage=offline_online_storage(offline, online_capacity=TOTAL),
        sampler=BalancedSampler(len(offline)),
        writer=OnlineWriter(len(offline)),
        batch_size=2 * 128,
    )
    fleet = Fleet(actors, offline, num_actors=2, total_frames=TOTAL, init_random_frames=200, slack=10)
    curve, seen = [], []
    with fleet:
        for data in fleet:
            buffer.extend(data.select(*TRANSITION))
            for _ in fleet.updates(len(data)):
                update(buffer.sample())
                fleet.publish()  # both use the new policy from their next step on
                seen.append({name: float(value) for name, value in fleet.metrics().items()})
            if fleet.frames >= 400 * len(curve):
                result = evaluate(actor, "Pendulum-v1", num_episodes=5, seed=100)
                curve.append((fleet.frames, result.returns.mean()))
    return fleet, curve, seen


# %%
# Results
# -------
# A new process imports the script that starts it, so the main code must be below ``if __name__ == "__main__":``.
#
# The left plot shows the return. The right plot shows the staleness: how many policies were published between the one
# that acted and the arrival of its transition. A simulated pendulum is faster than the learner, so the queue is full
# and rows wait in it. With a robot it is the other way round.
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
# ``max_staleness`` rejects older transitions, ``queue_size`` limits the queue, and ``slack`` limits the difference
# between the numbers of updates and transitions. An actor that dies is restarted, and its delivered rows are stored
# exactly once. :doc:`/actors_elsewhere` describes the guarantees, actors on Ray, and human interventions. To run this
# loop with logs, checkpoints and resume, pass ``actors=2`` to ``rlpd.py``, ``a3rl.py`` or ``awac.py`` in
# ``sota-implementations``.
