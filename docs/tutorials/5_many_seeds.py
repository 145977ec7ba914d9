"""
Many seeds and a report
=======================

One run says little: the next seed may end elsewhere. This tutorial trains three agents of each of two methods,
keeps what they did in run folders, and turns the folders into intervals and a figure. It takes about two minutes on
one core, half of them for the compiler.
"""

# %%
# Logs
# ----
# A pendulum under a controller that errs a lot, as in the first tutorial.
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
# An agent is its networks and its update, from one seed. Two methods learn from the logs alone: *SAC*, which does not
# know that the data are limited, and *AWAC*, which stays with actions that were recorded and turned out well.
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
    loss.noise = GeneratorNoise(torch.Generator().manual_seed(seed))  # its own draws, whoever learns beside it
    critic = Descend("qvalue", adam(loss.qvalue_network_params))
    targets = MoveTargets(SoftUpdate(loss, tau=0.005))
    return actor, Update(loss, critic, targets, Descend("actor", adam(loss.actor_network_params)), *last)


# %%
# Three of them at once
# ---------------------
# :meth:`Update.stack <torchrl_o2o.updates.Update.stack>` makes one update of three: their parameters become slices of
# one, and each agent's numbers stay its own. ``compile()`` makes one function of it, which is faster. A
# :class:`~torchrl_o2o.record.Recorder` keeps each seed's evaluations in a folder, with the configuration, the command
# and the versions that made them. Steps below zero are offline.
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
# :func:`~torchrl_o2o.record.write_report` groups runs that differ in nothing but the seed, and writes a page and a
# figure. At the command line it is ``o2o report runs/``.
from torchrl_o2o.record import write_report

report = write_report([runs], runs / "report", levels={"mean of the logs": describe_offline(arrays).returns.mean})
print("\n".join(line for line in report.read_text().splitlines() if line.startswith("| Pendulum"))[:200])

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
# The line is the interquartile mean: the mean of the middle half of the seeds, which one lucky or broken seed does not
# move. The band is its 95 % bootstrap interval. Two bands that overlap do not show a difference; bands apart do, for
# this task. To say it in numbers, take the interval of the difference:
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
# Three seeds are few; the papers use five to ten. ``o2o reproduce`` does all of this from a file: the runs, the
# statistic, the smallest difference that matters, and the verdict. See :doc:`/reproduce`.
