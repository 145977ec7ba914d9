"""
A3RL's priority with another loss
=================================

Samplers and losses are independent. Here A3RL's priority, designed for RLPD, selects the batches of AWAC.
"""

# %%
# Components
# ----------
# Random transitions keep this page short. The first 1000 rows stand for the data, and the others for
# online transitions.
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
# A3RL's Eq. 5 combines how much a row resembles the current policy's experience (a density ratio) with how good its
# action is (an advantage). ``Advantage`` uses the critics and the actor of a loss. It accepts AWAC's and RLPD's losses,
# and also TorchRL's ``SACLoss``.
ratio = DensityRatio(3, 1)
score = AdvantageAligned(Advantage(loss, num_samples=4), DensityRatioScore(ratio), adv_temp=1.0)

# %%
# The sampler
# -----------
# ``PoolSampler`` draws a uniform pool, half of it from the data, scores its rows, and draws the batch from the pool by
# these scores. It plugs into TorchRL's buffer.
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
# In each step, the density ratio first learns to distinguish the two kinds of rows. Then AWAC's update runs on
# prioritized rows. Their importance weights are in the batch as ``priority_weight``, and the critics' loss uses them.
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
# ``effective_sample_size`` is a share: 1 if all rows of the pool are equally likely, near 0 if few rows make up most
# batches. If it is that small, lower ``alpha``.
