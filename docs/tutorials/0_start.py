"""
The start page as a notebook
============================

This tutorial does in Python what ``make demo`` does, with fewer steps: it trains RLPD on HalfCheetah with recorded
data, and the same learner without data. It takes about two minutes on one core; the data are made within seconds.
"""

# %%
# Data
# ----
# The data set has 100 000 steps of a linear policy at many stages of its training. You can use a Minari name, a D4RL
# file or your own arrays instead.
from torchrl_o2o.data import describe_offline, load_offline, make_local_dataset

NAME = "o2o/halfcheetah/linear-mix-v0"
make_local_dataset(NAME)
offline = load_offline(NAME)
info = describe_offline(NAME)
print(f"{info.transitions} transitions in {info.episodes} episodes")
print(f"mean return {info.returns.mean:.0f}, best {info.returns.max:.0f}")

# %%
# The learner
# -----------
# The learner consists of an actor, two critics and the loss, a storage whose first rows are the data, and the steps of
# an update in order. Half of each batch comes from the data, or none of it in the run without data.
import torch
from torchrl.data import TensorDictReplayBuffer
from torchrl.objectives import SoftUpdate

from torchrl_o2o.collectors import StepCollector
from torchrl_o2o.data import TRANSITION, BalancedSampler, OnlineWriter, offline_online_storage
from torchrl_o2o.envs import make_gym_env, seed_everything
from torchrl_o2o.modules import Temperature, make_actor, make_qvalue_ensemble
from torchrl_o2o.objectives import EnsembleSACLoss
from torchrl_o2o.trainers import evaluate
from torchrl_o2o.updates import Descend, MoveTargets, Repeat, Update

ENV, FRAMES, EVERY = "HalfCheetah-v5", 6_000, 1_500


def learn(offline_fraction: float) -> list[float]:
    """Train online, and return the evaluations, one every 1 500 steps."""
    seed_everything(0)
    actor = make_actor(17, 6, hidden_sizes=(64, 64))
    critics = make_qvalue_ensemble(17, 6, num_qvalue_nets=2, hidden_sizes=(64, 64))
    loss = EnsembleSACLoss(actor, critics, temperature=Temperature(-3.0, init=0.1))
    loss.make_value_estimator(gamma=0.99)
    critic_optim = torch.optim.Adam(loss.qvalue_network_params.parameters(), lr=1e-3)
    actor_optim = torch.optim.Adam(loss.actor_network_params.parameters(), lr=1e-3)
    alpha_optim = torch.optim.Adam(loss.temperature.parameters(), lr=1e-3)
    targets = MoveTargets(SoftUpdate(loss, tau=0.005))
    update = Update(
        loss,
        Repeat(2, Descend("qvalue", critic_optim), targets),
        Descend("actor", actor_optim),
        Descend("alpha", alpha_optim),
    )
    update.compile()  # takes half a minute; then each update takes a fraction of its time
    buffer = TensorDictReplayBuffer(
        storage=offline_online_storage(offline, online_capacity=FRAMES),
        sampler=BalancedSampler(len(offline), offline_fraction=offline_fraction),
        writer=OnlineWriter(len(offline)),
        batch_size=2 * 256,
    )
    returns = []
    for step, data in enumerate(StepCollector(make_gym_env(ENV), actor, total_frames=FRAMES, seed=0), 1):
        buffer.extend(data.select(*TRANSITION))
        if step > 500:
            update(buffer.sample())
        if step % EVERY == 0:
            returns.append(evaluate(actor, ENV, num_episodes=2, seed=100).returns.mean().item())
    return returns


curves = {"RLPD, half of each batch from the data": learn(0.5), "the same without data": learn(0.0)}

# %%
# Results
# -------
# In our run, RLPD approached the mean return of the data within 6 000 steps, while the learner without data had hardly
# improved. The demo trains for 12 000 steps, after which RLPD comes close to the best recorded episode.
import matplotlib.pyplot as plt

figure, axis = plt.subplots(figsize=(6, 3), layout="constrained")
for label, returns in curves.items():
    axis.plot(range(EVERY, FRAMES + 1, EVERY), returns, marker=".", label=label)
axis.axhline(info.returns.mean, color="gray", linestyle="--", label="mean of the data")
axis.set_xlabel("environment step")
axis.set_ylabel("return, 2 episodes")
axis.legend(fontsize=8)
plt.show()

# %%
# Next: :doc:`your own logs <1_own_logs>`, or :doc:`the dip at the hand-over <2_the_hand_over>`.
