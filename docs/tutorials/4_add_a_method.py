"""
Add a method
============

You have an idea for a loss. This tutorial adds one to RLPD, trains it, and shows the contract tests that check it.
"""

# %%
# The loss
# --------
# The idea: RLPD, whose actor also imitates what was recorded in the batch. A loss has one method for each network. A
# method takes the batch and returns a scalar, and a dictionary with what it measured. So it is enough to override one
# of them. `_state` and `_action` read the batch by the names that the networks use, `_policy` is pi(.|s), and `_reduce`
# takes the mean over the rows, or what else the loss was asked for.
import torch
from tensordict import TensorDictBase
from torch import Tensor

from torchrl_o2o.modules import make_actor, make_qvalue_ensemble
from torchrl_o2o.objectives import EnsembleSACLoss


class ImitatingSACLoss(EnsembleSACLoss):
    r"""RLPD with :math:`-c\,\log\pi(a|s)` of the recorded actions in the actor's loss."""

    imitation_coef = 0.1

    def actor_loss(self, tensordict: TensorDictBase) -> tuple[Tensor, dict[str, Tensor]]:
        """The actor's loss of one minibatch."""
        loss, info = super().actor_loss(tensordict)
        action = self._action(tensordict).clamp(-1 + 1e-6, 1 - 1e-6)
        imitation = -self._policy(self._state(tensordict)).log_prob(action)  # one number a row
        info["imitation"] = imitation.mean().detach()
        return loss + self.imitation_coef * self._reduce(imitation, None), info


def make() -> ImitatingSACLoss:
    """The loss on small networks."""
    sizes = {"hidden_sizes": (32, 32)}
    return ImitatingSACLoss(make_actor(5, 3, **sizes), make_qvalue_ensemble(5, 3, num_qvalue_nets=2, **sizes))


# %%
# Train it
# --------
# The order of the steps is a value, too: read it from top to bottom.
from torchrl.objectives import SoftUpdate

from torchrl_o2o.testing import random_transitions
from torchrl_o2o.updates import Descend, MoveTargets, Repeat, Update

torch.manual_seed(0)
loss = make()
update = Update(
    loss,
    Repeat(
        4,
        Descend("qvalue", torch.optim.Adam(loss.qvalue_network_params.parameters(), lr=3e-4)),
        MoveTargets(SoftUpdate(loss, tau=0.005)),
    ),
    Descend("actor", torch.optim.Adam(loss.actor_network_params.parameters(), lr=3e-4)),
    Descend("alpha", torch.optim.Adam(loss.temperature.parameters(), lr=3e-4)),
)
measured = update(random_transitions(4 * 64, 5, 3))
print({name: round(float(measured[name]), 3) for name in ("imitation", "loss_actor", "qvalue")})

# %%
# Check it
# --------
# `LossContract` holds what every loss here keeps: gradients that reach only their own parameters, terminals that cut
# off the next state, weights, other key names, copies, casts, saved states. In a project it is a class in a test
# file, and pytest runs it:
#
# .. code-block:: python
#
#    from torchrl_o2o.testing import LossContract
#
#    class TestImitatingSAC(LossContract):
#        trains = {
#            "loss_qvalue": ("qvalue_network_params",),
#            "loss_actor": ("actor_network_params",),
#            "loss_alpha": ("temperature",),
#        }
#
#        def make_loss(self, *, observation_key="observation", action_key="action"):
#            keys, sizes = (observation_key, action_key), {"hidden_sizes": (32, 32)}
#            actor = make_actor(5, 3, observation_key=observation_key, action_key=action_key, **sizes)
#            return ImitatingSACLoss(actor, make_qvalue_ensemble(5, 3, num_qvalue_nets=2, in_keys=keys, **sizes))
#
# Samplers have a `SamplerContract` of the same kind. Where a loss goes inside this package, and what else it needs
# there, is in "How the package is built".
