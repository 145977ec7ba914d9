"""
A priority of A3RL with a loss of another paper
===============================================

Samplers and losses do not know each other. Here A3RL's priority, made for RLPD, draws the batches of AWAC.
"""

# %%
# Parts
# -----
# Any transitions will do for a look; random ones keep this page short. The first 1000 rows play the data, the rest
# what was collected online.
import torch
from torchrl.data import TensorDictReplayBuffer
from torchrl.objectives import SoftUpdate

from torchrl_o2o.data import OnlineWriter, PoolSampler, offline_online_storage
from torchrl_o2o.modules import DensityRatio, make_gaussian_actor, make_qvalue_ensemble
from torchrl_o2o.objectives import AWACLoss, DensityRatioLoss
from torchrl_o2o.priorities import Advantage, AdvantageAligned, DensityRatioScore
from torchrl_o2o.testing import random_transitions
from torchrl_o2o.updates import Descend, MoveTargets, Update

torch.manual_seed(0)
offline, online = random_transitions(1_000, 3, 1), random_transitions(1_000, 3, 1)
loss = AWACLoss(make_gaussian_actor(3, 1), make_qvalue_ensemble(3, 1, num_qvalue_nets=2))

# %%
# The priority
# ------------
# A3RL's Eq. 5: how much a row looks like the current policy's experience (a density ratio), times how good its action
# is (an advantage). `Advantage` asks the loss for its critics and its actor; it takes AWAC's as well as RLPD's, and
# TorchRL's `SACLoss` too.
ratio = DensityRatio(3, 1)
score = AdvantageAligned(Advantage(loss, num_samples=4), DensityRatioScore(ratio), adv_temp=1.0)

# %%
# The sampler
# -----------
# `PoolSampler` draws a uniform pool, half of it data, scores it, and draws the batch from it. It plugs into TorchRL's
# buffer.
sampler = PoolSampler(score, len(offline), pool_size=512, alpha=0.3)
buffer = TensorDictReplayBuffer(
    storage=offline_online_storage(offline, online_capacity=2_000),
    sampler=sampler,
    writer=OnlineWriter(len(offline)),
    batch_size=128,
)
buffer.extend(online)

# %%
# The loop
# --------
# First the density ratio learns to tell the two kinds of rows apart, then AWAC's update runs on prioritized rows.
# Their importance weights are in the batch as ``priority_weight``, and the critics' loss reads them.
ratio_loss = DensityRatioLoss(ratio)
ratio_optim = torch.optim.Adam(ratio_loss.parameters(), lr=1e-3)
update = Update(
    loss,
    Descend("qvalue", torch.optim.Adam(loss.qvalue_network_params.parameters(), lr=1e-3)),
    Descend("actor", torch.optim.Adam(loss.actor_network_params.parameters(), lr=1e-3)),
    MoveTargets(SoftUpdate(loss, tau=0.005)),
)
for step in range(50):
    sampler.beta = 0.4 + 0.6 * step / 50
    index = torch.cat([torch.randint(1_000, (64,)), 1_000 + torch.randint(1_000, (64,))])
    rows = buffer.storage.get(index).set("is_offline", index < 1_000)
    loss_ratio, _ = ratio_loss.density_ratio_loss(rows)
    ratio_optim.zero_grad()
    loss_ratio.backward()
    ratio_optim.step()
    measured = update(buffer.sample())
print({name: round(float(value), 2) for name, value in sampler.metrics().items()})

# %%
# Among the metrics is the effective sample size of the weights. If it falls to a few rows, lower ``alpha``.
