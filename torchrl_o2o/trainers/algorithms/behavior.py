# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Behavior-regularized learners: BRAC (Wu et al. 2019) with a clone or with a critic of its divergence, BEAR (Kumar et
al. 2019)."""

from __future__ import annotations

from collections.abc import Mapping

from omegaconf import DictConfig
from tensordict.nn import TensorDictModuleBase
from torch import nn
from torch.optim import Adam
from torchrl.objectives import SoftUpdate

from torchrl_o2o.errors import O2OSpecError
from torchrl_o2o.modules import (
    Multiplier,
    Temperature,
    make_action_vae,
    make_actor,
    make_qvalue_ensemble,
)
from torchrl_o2o.objectives import BCLoss, BEARLoss, BestAction, BRACDualLoss, BRACLoss
from torchrl_o2o.trainers.algorithms.policies import make_policy
from torchrl_o2o.trainers.compiling import compiled
from torchrl_o2o.trainers.learner import Learner, MakeLearner, on_device
from torchrl_o2o.trainers.settings import plain
from torchrl_o2o.updates import Descend, Every, MoveTargets, Repeat, Update

__all__ = ["BEHAVIOR_REGULARIZED", "make_bear", "make_brac", "make_brac_dual", "start_on_penalty"]

#: A loss of these methods.
_Loss = BRACLoss | BRACDualLoss | BEARLoss


@on_device
def make_brac(cfg: DictConfig, dims: tuple[int, int]) -> Learner:
    """Build soft actor-critic with a penalty on the divergence from a clone of the data.

    The order is the authors': targets, critics, actor, then the weights that are learned.

    Source: Wu et al. 2019, arXiv:1911.11361, Eq. 3-6, and the authors' code.

    Args:
        cfg: sections ``actor``, ``qvalue``, ``multiplier``, ``temperature``, ``loss``, ``value_estimator``, ``target``,
            ``actor_optim``, ``qvalue_optim``, ``weight_optim``, ``behavior_optim``, and ``policy_family``, ``best_of``.
        dims: observation and action dimension.

    Returns:
        The learner. ``further["behavior"]`` is the update that clones the data beforehand.

    Raises:
        O2OSpecError: if the policy's family is unknown.

    Examples:
        >>> from torchrl_o2o.scripts import script_config
        >>> from torchrl_o2o.testing import random_transitions
        >>> cfg = script_config("behavior_regularized", ["preset=cpu", "compile=false", "method=brac_p"])
        >>> learner = make_brac(cfg, (3, 2))
        >>> learner.update
        Update of BRACLoss
          MoveTargets(SoftUpdate)
          Descend('qvalue', Adam)
          Descend('actor', Adam)
        >>> rows = random_transitions(64, 3, 2)
        >>> _ = learner.further["behavior"](rows)  # first a clone of the data
        >>> bool(learner.update(rows)["divergence"].isfinite())
        True
    """
    actor, behavior = make_policy(cfg, dims), make_policy(cfg, dims)
    loss = BRACLoss(
        actor,
        make_qvalue_ensemble(*dims, **plain(cfg.qvalue)),
        behavior,
        multiplier=Multiplier(**plain(cfg.multiplier)),
        temperature=Temperature(**plain(cfg.temperature)),
        **plain(cfg.loss),
    )
    loss.make_value_estimator(**plain(cfg.value_estimator))
    clone = BCLoss(behavior, action_clip=1.0 - loss.action_margin)  # trains the module that the loss uses
    clone_optim = Adam(clone.actor_network_params.parameters(), **plain(cfg.behavior_optim))
    update = Update(
        loss,
        MoveTargets(SoftUpdate(loss, **plain(cfg.target))),
        Descend("qvalue", Adam(loss.qvalue_network_params.parameters(), **plain(cfg.qvalue_optim))),
        Descend("actor", Adam(loss.actor_network_params.parameters(), **plain(cfg.actor_optim))),
        *_learned_weights(cfg, {"alpha": loss.temperature, "multiplier": loss.multiplier}),
    )
    further = {"behavior": compiled(Update(clone, Descend("actor", clone_optim)), cfg)}
    policy, tester = _tested(cfg, loss, actor)
    return Learner(policy, loss, compiled(update, cfg), explorer=actor, tester=tester, further=further)


@on_device
def make_brac_dual(cfg: DictConfig, dims: tuple[int, int]) -> Learner:
    """Soft actor-critic that pays for a divergence from the data which a critic of its own estimates.

    The order is the authors'. On every minibatch the divergence's critic takes a step; on the last of them targets are
    moved, and critics and actor take theirs before it, the weights that are learned behind it.

    Source: Wu et al. 2019, arXiv:1911.11361, and the authors' code (``brac_dual``).

    Args:
        cfg: sections ``actor``, ``qvalue``, ``divergence_critic``, ``multiplier``, ``temperature``, ``loss``,
            ``value_estimator``, ``target``, ``actor_optim``, ``qvalue_optim``, ``divergence_optim``, ``weight_optim``,
            and ``policy_family``, ``divergence_steps``, ``best_of``.
        dims: observation and action dimension.

    Returns:
        The learner.

    Raises:
        O2OSpecError: if the target is to be penalized, too: rows that were just collected have no next action yet.

    Examples:
        >>> from torchrl_o2o.scripts import script_config
        >>> from torchrl_o2o.testing import random_transitions
        >>> cfg = script_config("behavior_regularized", ["preset=cpu", "compile=false", "method=brac_dual"])
        >>> learner = make_brac_dual(cfg, (3, 2))
        >>> learner.update
        Update of BRACDualLoss
          Repeat(3)
            Every(3)
              MoveTargets(SoftUpdate)
              Descend('qvalue', Adam)
              Descend('actor', Adam)
            Descend('divergence', Adam)
        >>> bool(learner.update(random_transitions(3 * 64, 3, 2))["divergence"].isfinite())
        True
    """
    if cfg.loss.value_penalty:
        raise O2OSpecError(
            "got loss.value_penalty=true, expected false: BRAC-v's dual form reads the action of the next step, which "
            "rows that were just collected lack. Leave it false for BRAC-p's dual form, take method=brac_v for BRAC-v "
            "with a cloned policy, or learn from recorded data alone, in a loop of your own, with "
            "BRACDualLoss(value_penalty=True) on add_next_action(data)"
        )
    actor = make_policy(cfg, dims)
    loss = BRACDualLoss(
        actor,
        make_qvalue_ensemble(*dims, **plain(cfg.qvalue)),
        make_qvalue_ensemble(*dims, num_qvalue_nets=1, **plain(cfg.divergence_critic))[0],
        multiplier=Multiplier(**plain(cfg.multiplier)),
        temperature=Temperature(**plain(cfg.temperature)),
        **plain(cfg.loss),
    )
    loss.make_value_estimator(**plain(cfg.value_estimator))
    agent = (
        MoveTargets(SoftUpdate(loss, **plain(cfg.target))),
        Descend("qvalue", Adam(loss.qvalue_network_params.parameters(), **plain(cfg.qvalue_optim))),
        Descend("actor", Adam(loss.actor_network_params.parameters(), **plain(cfg.actor_optim))),
    )
    critic_optim = Adam(loss.divergence_network_params.parameters(), **plain(cfg.divergence_optim))
    steps, weights = (
        cfg.divergence_steps,
        _learned_weights(cfg, {"alpha": loss.temperature, "multiplier": loss.multiplier}),
    )
    behind = [Every(steps, *weights)] if weights else []
    update = Update(loss, Repeat(steps, Every(steps, *agent), Descend("divergence", critic_optim), *behind))
    policy, tester = _tested(cfg, loss, actor)
    return Learner(policy, loss, compiled(update, cfg), explorer=actor, tester=tester)


@on_device
def make_bear(cfg: DictConfig, dims: tuple[int, int]) -> Learner:
    """Build an actor-critic that stays within the support of the data, estimated by a VAE.

    The order is the authors': VAE, critics, actor, its weight, targets.

    Source: Kumar et al. 2019, arXiv:1906.00949, Algorithm 1, and the authors' code.

    Args:
        cfg: sections ``actor``, ``qvalue``, ``vae``, ``multiplier``, ``loss``, ``value_estimator``, ``target``,
            ``actor_optim``, ``qvalue_optim``, ``weight_optim``, ``behavior_optim``, and ``best_of``.
        dims: observation and action dimension.

    Returns:
        The learner.

    Examples:
        >>> from torchrl_o2o.scripts import script_config
        >>> from torchrl_o2o.testing import random_transitions
        >>> cfg = script_config("behavior_regularized", ["preset=cpu", "compile=false", "method=bear"])
        >>> learner = make_bear(cfg, (3, 2))
        >>> learner.update
        Update of BEARLoss
          Descend('vae', Adam)
          Descend('qvalue', Adam)
          Descend('actor', Adam)
          Descend('multiplier', Adam)
          MoveTargets(SoftUpdate)
        >>> bool(learner.update(random_transitions(64, 3, 2))["loss_actor"].isfinite())
        True
    """
    actor, vae = make_actor(*dims, **plain(cfg.actor)), make_action_vae(*dims, **plain(cfg.vae))
    qvalues, multiplier = make_qvalue_ensemble(*dims, **plain(cfg.qvalue)), Multiplier(**plain(cfg.multiplier))
    loss = BEARLoss(actor, qvalues, vae, multiplier=multiplier, **plain(cfg.loss))
    loss.make_value_estimator(**plain(cfg.value_estimator))
    update = Update(
        loss,
        Descend("vae", Adam(loss.vae_network_params.parameters(), **plain(cfg.behavior_optim))),
        Descend("qvalue", Adam(loss.qvalue_network_params.parameters(), **plain(cfg.qvalue_optim))),
        Descend("actor", Adam(loss.actor_network_params.parameters(), **plain(cfg.actor_optim))),
        *_learned_weights(cfg, {"multiplier": loss.multiplier}),
        MoveTargets(SoftUpdate(loss, **plain(cfg.target))),
    )
    policy, tester = _tested(cfg, loss, actor)
    return Learner(policy, loss, compiled(update, cfg), explorer=actor, tester=tester)


def start_on_penalty(cfg: DictConfig, learner: Learner) -> None:
    """Ignore the critics in the actor's loss during the first ``warm_start`` offline updates.

    Args:
        cfg: of which ``warm_start`` is read.
        learner: of :func:`make_brac`, :func:`make_brac_dual` or :func:`make_bear`.

    Examples:
        >>> from torchrl_o2o.scripts import script_config
        >>> cfg = script_config("behavior_regularized", ["preset=cpu", "method=bear", "warm_start=20_000"])
        >>> learner = make_bear(cfg, (3, 2))
        >>> start_on_penalty(cfg, learner)  # before each update
        >>> learner.loss.q_weight
        tensor(0.)
    """
    assert isinstance(learner.loss, _Loss)
    learner.loss.q_weight.fill_(float(learner.calls >= cfg.warm_start))


#: Constructors by the script's setting ``method``.
BEHAVIOR_REGULARIZED: Mapping[str, MakeLearner] = {
    "brac_p": make_brac,
    "brac_v": make_brac,
    "brac_dual": make_brac_dual,
    "bear": make_bear,
}


def _learned_weights(cfg: DictConfig, weights: Mapping[str, nn.Module]) -> list[Descend]:
    """Gradient steps of the weights that are trained."""
    return [
        Descend(name, Adam(part.parameters(), **plain(cfg.weight_optim)))
        for name, part in weights.items()
        if any(True for _ in part.parameters())
    ]


def _tested(
    cfg: DictConfig, loss: _Loss, actor: TensorDictModuleBase
) -> tuple[TensorDictModuleBase, BestAction | None]:
    """The saved policy, and the evaluated one: the best of ``best_of`` actions, or the mean policy if that is 0."""
    if not cfg.best_of:
        return actor, None
    tester = BestAction(loss, num_actions=cfg.best_of)
    return tester.make_actor(), tester
