"""
Add a method
============

You have an idea for a loss. This tutorial adds one to RLPD, trains it, and shows the contract tests that check it.
"""

# %%
# The loss
# --------
# The idea: RLPD whose actor also imitates the recorded actions of the batch. A loss has one method for each network.
# Each method takes the batch and returns a scalar loss and a dictionary of metrics. It is enough to override one of
# them, and to name a new metric in ``out_keys``. ``_state`` and ``_action`` read the batch by the networks' keys, and
# ``_policy`` is pi(.|s). ``_reduce`` applies the loss's ``reduction``, by default the mean over the rows.
import torch
from tensordict import TensorDictBase
from torch import Tensor

from torchrl_o2o.modules import make_actor, make_qvalue_ensemble
from torchrl_o2o.objectives import EnsembleSACLoss


class ImitatingSACLoss(EnsembleSACLoss):
    r"""RLPD with :math:`-c\,\log\pi(a|s)` of the recorded actions in the actor's loss."""

    out_keys = [*EnsembleSACLoss.out_keys, "imitation"]
    imitation_coef = 0.1

    def actor_loss(self, tensordict: TensorDictBase) -> tuple[Tensor, dict[str, Tensor]]:
        """The actor's loss of one minibatch."""
        loss, info = super().actor_loss(tensordict)
        action = self._action(tensordict).clamp(-1 + 1e-6, 1 - 1e-6)
        imitation = -self._policy(self._state(tensordict)).log_prob(action)  # one number per row
        info["imitation"] = imitation.mean().detach()
        return loss + self.imitation_coef * self._reduce(imitation), info


def make() -> ImitatingSACLoss:
    """The loss on small networks."""
    sizes = {"hidden_sizes": (32, 32)}
    return ImitatingSACLoss(make_actor(5, 3, **sizes), make_qvalue_ensemble(5, 3, num_qvalue_nets=2, **sizes))


# %%
# Train it
# --------
# An ``Update`` lists the optimization steps in order.
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
# ``LossContract`` tests what every loss must satisfy: each loss trains only its own parameters, terminal states do not
# bootstrap, and importance weights, custom keys, copies, casts and saved states work. In your project, put such a class
# into a test file, and pytest runs it:
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
# For samplers there is ``SamplerContract``. :class:`~torchrl_o2o.data.samplers.drawing.DrawingSampler` has an example
# of a sampler of your own. A new priority is only a function (:doc:`3_compose_a_priority`). :doc:`/architecture` says
# where to put a loss inside this package and what else it needs there.
