"""
Many seeds and a report
=======================

A single run says little, because another seed may give a different result. This tutorial trains three agents with each
of two methods, records them in run folders, and turns the folders into intervals and a figure. It takes about two
minutes on one core, half of it for the compiler.
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
# One agent
# ---------
# An agent consists of its networks and its update, built from one seed. Two methods train on the logs alone: *SAC*,
# which does not account for the limited data, and *AWAC*, which stays close to recorded actions with a high advantage.
import torch
from torchrl.data import LazyTensorStorage, TensorDictReplayBuffer
from torchrl.objectives import SoftUpdate

from torchrl_o2o.envs import seed_everything
from torchrl_o2o.modules import make_actor, make_gaussian_actor, make_qvalue_ensemble
from torchrl_o2o.objectives import AWACLoss, EnsembleSACLoss, GeneratorNoise
from torchrl_o2o.updates import Descend, MoveTargets, Update

UPDATES, EVERY, SEEDS = 1_000, 200, (0, 1, 2)


def adam(parameters: torch.nn.Module) -> torch.optim.Adam:
    """An optimizer of one network."""
    return torch.optim.Adam(parameters.parameters(), lr=1e-3)


def make(method: str, seed: int) -> tuple[torch.nn.Module, Update]:
    """Actor and update of one method and seed."""
    seed_everything(seed)
    critics = make_qvalue_ensemble(3, 1, num_qvalue_nets=2, layer_norm=False, hidden_sizes=(64, 64))
    if method == "sac":
        actor = make_actor(3, 1, hidden_sizes=(64, 64))
        loss = EnsembleSACLoss(actor, critics)
        last = (Descend("alpha", adam(loss.temperature)),)
    else:
        actor = make_gaussian_actor(3, 1, hidden_sizes=(64, 64))
        loss, last = AWACLoss(actor, critics), ()
    loss.noise = GeneratorNoise(torch.Generator().manual_seed(seed))  # its own random numbers
    critic = Descend("qvalue", adam(loss.qvalue_network_params))
    targets = MoveTargets(SoftUpdate(loss, tau=0.005))
    return actor, Update(loss, critic, targets, Descend("actor", adam(loss.actor_network_params)), *last)


# %%
# Three agents at once
# --------------------
# :meth:`Update.stack <torchrl_o2o.updates.Update.stack>` combines three updates into one: their parameters become
# slices of stacked tensors, and each agent computes the same numbers as alone. ``compile()`` makes it faster. A
# :class:`~torchrl_o2o.record.Recorder` writes each seed's evaluations into a folder, with the configuration, the
# command and the versions. Negative steps are offline.
import tempfile
from pathlib import Path

from torchrl_o2o.record import Recorder
from torchrl_o2o.trainers import evaluate

runs = Path(tempfile.mkdtemp())


def train(method: str) -> None:
    """Train one method on all seeds and record every seed in its folder."""
    actors, updates = zip(*(make(method, seed) for seed in SEEDS), strict=True)
    update = Update.stack(updates)
    update.compile()
    buffer = TensorDictReplayBuffer(storage=LazyTensorStorage(len(offline)), batch_size=128)
    buffer.extend(offline)
    config = {"algorithm": method, "task": "Pendulum-v1"}
    recorders = [Recorder(runs / method / str(seed), config=config, seed=seed) for seed in SEEDS]
    for step in range(-UPDATES, 1):
        if step % EVERY == 0:
            for actor, recorder in zip(actors, recorders, strict=True):
                result = evaluate(actor, "Pendulum-v1", num_episodes=5, seed=100)
                recorder.log(step, {"evaluation/return": result.returns.mean()})
        update(torch.stack([buffer.sample() for _ in SEEDS]))
    for recorder in recorders:
        recorder.close()


train("awac")
train("sac")

# %%
# The report
# ----------
# :func:`~torchrl_o2o.record.write_report` groups runs that differ only in the seed, and writes a page and a
# figure. On the command line, use ``o2o report runs/``.
from torchrl_o2o.record import write_report

report = write_report([runs], runs / "report", levels={"mean of the logs": describe_offline(arrays).returns.mean})
table = report.read_text().partition("| task")[2].partition("\n\n")[0]
print(f"| task{table}")

# %%
# .. the figure that the report shows, drawn here from the same file
import matplotlib.pyplot as plt

plt.figure(figsize=(7, 5), layout="constrained")
plt.imshow(plt.imread(runs / "report" / "curves.png"))
plt.axis("off")
plt.show()

# %%
# How to read it
# --------------
# The line is the interquartile mean, the mean of the middle half of the seeds, which is robust to a single outlier.
# The band is its 95 % bootstrap interval. Overlapping bands do not show a difference; separate bands do, for
# this task. For a numeric comparison, compute the interval of the difference:
from torchrl_o2o.record import iqm, load_run

final = {
    method: np.array([load_run(folder).scores[-1] for folder in sorted((runs / method).iterdir())])
    for method in ("awac", "sac")
}
rng = np.random.default_rng(0)
drawn = [iqm(rng.choice(final["awac"], len(SEEDS))) - iqm(rng.choice(final["sac"], len(SEEDS))) for _ in range(2_000)]
low, high = np.percentile(drawn, [2.5, 97.5])
print(f"AWAC - SAC after {UPDATES} updates: {iqm(final['awac']) - iqm(final['sac']):.0f} [{low:.0f}, {high:.0f}]")

# %%
# Three seeds are few; the papers use five to ten. ``o2o reproduce`` automates all of this from one file, which declares
# the runs, the statistic and the smallest difference of interest, and prints the verdict. See :doc:`/reproduce`.
