# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""SAMG (Zhang et al. 2024): a confidence and a mixed target for another method's learner."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from omegaconf import DictConfig
from tensordict import TensorDictBase
from torch import Tensor
from torchrl.objectives.utils import ValueEstimators

from torchrl_o2o.data import Convention, get_convention
from torchrl_o2o.envs import seed_everything
from torchrl_o2o.errors import O2OSpecError, check_option
from torchrl_o2o.modules import DensityRatio, make_conditional_vae, make_inverse_dynamics
from torchrl_o2o.modules.confidence import (
    Confidence,
    ConstantConfidence,
    DensityRatioConfidence,
    OfflineConfidence,
    RandomConfidence,
)
from torchrl_o2o.objectives import ConditionalVAELoss, InverseDynamicsLoss, PerturbationRatioLoss, SAMGEstimator
from torchrl_o2o.trainers.algorithms.awac import make_awac
from torchrl_o2o.trainers.algorithms.cql import make_cal_ql, make_cql
from torchrl_o2o.trainers.algorithms.iql import make_iql
from torchrl_o2o.trainers.algorithms.sac import make_rlpd
from torchrl_o2o.trainers.encoding import read_encoder, train_encoder
from torchrl_o2o.trainers.launch import run_options
from torchrl_o2o.trainers.learner import Learner, MakeLearner
from torchrl_o2o.trainers.problem import Problem
from torchrl_o2o.trainers.settings import overlay_convention, plain

__all__ = ["BASES", "Guide", "make_base", "make_confidence", "raw_convention"]

#: Base algorithm -> its offline and its online learner. Cal-QL goes online as CQL, because SAMG keeps no returns.
BASES: Mapping[str, tuple[MakeLearner, MakeLearner]] = {
    "awac": (make_awac, make_awac),
    "iql": (make_iql, make_iql),
    "cql": (make_cql, make_cql),
    "cal_ql": (make_cal_ql, make_cql),
    "rlpd": (make_rlpd, make_rlpd),
}
_VAE, _EMBEDDING = (make_conditional_vae, ConditionalVAELoss), (make_inverse_dynamics, InverseDynamicsLoss)
_ENCODERS = {"vae": _VAE, "embedding": _EMBEDDING, "density_ratio": (DensityRatio, PerturbationRatioLoss)}


def make_base(cfg: DictConfig, *, online: bool) -> MakeLearner:
    """Choose the constructor of the base algorithm's learner for a phase.

    Args:
        cfg: ``learner.label``, a key of :data:`BASES`, and for IQL offline ``learner.decay_steps``.

    Keyword Args:
        online: whether it is for the online phase.

    Returns:
        A function of configuration and dimensions.

    Raises:
        O2OSpecError: if the base is unknown.

    Examples:
        >>> from torchrl_o2o.scripts import script_config
        >>> cfg = script_config("samg", ["preset=cpu", "compile=false", "base=cal_ql"])
        >>> offline, online = (make_base(cfg, online=phase)(cfg, (3, 2)) for phase in (False, True))
        >>> type(offline.loss).__name__, type(online.loss).__name__
        ('CalQLLoss', 'CQLLoss')
    """
    check_option("learner.label", cfg.learner.label, tuple(BASES))
    make = BASES[cfg.learner.label][int(online)]
    if make is make_iql and not online:
        return partial(make_iql, decay_steps=cfg.learner.decay_steps)
    return make


def raw_convention(cfg: DictConfig) -> Convention:
    """The base's convention without standardized observations, with the configuration's changes.

    Args:
        cfg: ``convention``, ``learner.convention`` and ``domain``.

    Returns:
        The convention, not fitted to data yet.

    Examples:
        >>> from torchrl_o2o.scripts import script_config
        >>> cfg = script_config("samg", ["base=iql", "convention={reward_scale: 2.0}"])
        >>> raw_convention(cfg)
        Convention(reward_scale=2.0, reward_shift=0.0, scale_by_returns=False, normalize_observations=False, ...)
    """
    row = replace(get_convention(cfg.learner.convention, cfg.domain), normalize_observations=False)
    return overlay_convention(row, cfg)


class Guide:
    """The mixed target of a learner, and the confidence p that is stored with each transition.

    The constructor freezes the learner's current critic.

    Source: Zhang et al. 2024 (SAMG), arXiv:2410.18626; see :class:`~torchrl_o2o.objectives.SAMGEstimator`.

    Args:
        learner: the learner, changed in place: its targets are mixed, and its rows hold ``p_off``.
        confidence: the confidence of a transition.
        settings: arguments of :meth:`~torchrl_o2o.objectives.SAMGEstimator.from_loss`.

    Keyword Args:
        weigh_penalty: whether the conservative penalty of a row is multiplied by 1 - p (CQL, Cal-QL).

    Raises:
        O2OSpecError: if ``weigh_penalty`` is on and the loss has no penalty.

    Examples:
        >>> from torchrl_o2o.scripts import script_config
        >>> from torchrl_o2o.testing import random_transitions
        >>> cfg = script_config("samg", ["preset=cpu", "compile=false", "base=cql", "confidence=random"])
        >>> learner = make_base(cfg, online=True)(cfg, (3, 2))
        >>> confidence = make_confidence(cfg, (3, 2))
        >>> guide = Guide(learner, confidence, {"guidance": "step", "cutoff": 100}, weigh_penalty=True)
        >>> learner.keys[-1]
        'p_off'
        >>> row = guide.insert(random_transitions(1, 3, 2))  # what the environment gave, on its way into the buffer
        >>> sorted(guide.weigh(row)), "penalty_weight" in row
        (['p_mean', 'p_passing'], True)
        >>> bool(learner.update(row)["loss_qvalue"].isfinite())
        True
    """

    def __init__(
        self, learner: Learner, confidence: Confidence, settings: Mapping[str, Any], *, weigh_penalty: bool
    ) -> None:
        loss = learner.loss
        if weigh_penalty and not hasattr(loss.tensor_keys, "penalty_weight"):
            raise O2OSpecError(
                f"got weigh_penalty=true with {type(loss).__name__}, expected a loss with a conservative penalty; set "
                "weigh_penalty=false"
            )
        self.confidence, self.weigh_penalty, self.steps = confidence, weigh_penalty, {"online": 0}
        self.estimator = SAMGEstimator.from_loss(loss, gamma=float(loss.value_estimator.gamma), **settings)  # type: ignore[arg-type]
        # TorchRL's annotation omits estimator instances.
        loss.make_value_estimator(cast(ValueEstimators, self.estimator))
        learner.keys = (*learner.keys, "p_off")

    def insert(self, row: TensorDictBase) -> TensorDictBase:
        """Store p with a transition, and advance the fading of the guidance.

        Args:
            row: a transition [1].

        Returns:
            The transition with ``p_off``.
        """
        self.steps["online"] += 1
        self.estimator.set_step(self.steps["online"])
        return self.confidence(row)

    def weigh(self, batch: TensorDictBase) -> dict[str, Tensor]:
        """Set the penalty weights of a batch, if ``weigh_penalty`` is on.

        Args:
            batch: transitions [B]; gets ``penalty_weight``.

        Returns:
            ``p_mean`` and ``p_passing``, the share of rows above the threshold, for the log.
        """
        if self.weigh_penalty:
            batch.set("penalty_weight", 1.0 - self.estimator.confidence(batch))
        p = batch["p_off"]
        return {"p_mean": p.mean(), "p_passing": (p > 0.0).to(p.dtype).mean()}

    def objects(self) -> dict[str, Any]:
        """The objects for the checkpoint, by name; the frozen critic is part of the loss."""
        return {"confidence": self.confidence, "steps": self.steps}


def make_confidence(cfg: DictConfig, dims: tuple[int, int], problem: Problem | None = None) -> Confidence | None:
    """Build the confidence; with data, train and fit it. Without SAMG's guidance, there is none.

    Args:
        cfg: section ``confidence``, and the settings of a run.
        dims: observation and action dimension.
        problem: environment and data; ``None`` (default) trains nothing.

    Returns:
        The confidence, or ``None``.

    Raises:
        O2OSpecError: if the kind is unknown.
        O2OCheckpointError: if ``confidence.pretrained`` is not a finished run of such an encoder.

    Examples:
        >>> from torchrl_o2o.scripts import script_config
        >>> from torchrl_o2o.testing import random_transitions
        >>> cfg = script_config("samg", ["preset=cpu", "compile=false", "confidence=even"])
        >>> make_confidence(cfg, (3, 2))(random_transitions(2, 3, 2))["p_off"].squeeze(-1)
        tensor([0.5000, 0.5000])
    """
    own = cfg.confidence
    check_option("confidence.kind", own.kind, ("none", "constant", "random", *_ENCODERS))
    if own.kind in ("none", "constant"):
        return ConstantConfidence(own.value) if own.kind == "constant" else None
    if own.kind == "random":
        return RandomConfidence(**plain(own.fit))
    make_network, make_loss = _ENCODERS[own.kind]
    seed_everything(cfg.seed)
    network = make_network(*dims, **plain(own.network))
    wrap = DensityRatioConfidence if isinstance(network, DensityRatio) else OfflineConfidence
    if problem is None:
        return wrap(network, **plain(own.fit))
    if isinstance(network, DensityRatio):
        network.fit_scale(problem.offline)
    loss = make_loss(network, **plain(own.loss))
    if own.pretrained is not None:
        read_encoder(own.pretrained, loss, _encoder_config(cfg), num_steps=own.num_steps)
    else:
        optim = torch.optim.Adam(loss.parameters(), **plain(own.optim))
        options = replace(run_options(cfg, Path(cfg.run_dir) / "confidence"), config=_encoder_config(cfg))
        run = {"num_steps": own.num_steps, "batch_size": own.batch_size, "anneal": own.anneal}
        train_encoder(problem.offline, loss, optim, options, **run)
    confidence = wrap(network, **plain(own.fit))
    look = confidence.fit if isinstance(confidence, OfflineConfidence) else confidence.check
    logging.getLogger(__name__).info("threshold %g: %s", confidence.threshold, look(problem.offline))
    return confidence


def _encoder_config(cfg: DictConfig) -> dict[str, Any]:
    """The settings that an encoder depends on; it can serve other bases, thresholds and aggregators."""
    own = {key: value for key, value in plain(cfg.confidence).items() if key not in ("fit", "pretrained", "name")}
    kept = {"env": plain(cfg.env), "dataset": plain(cfg.dataset), "encoder": own, "seed": cfg.seed}
    return kept | {"raw_observations": not raw_convention(cfg).normalize_observations}
