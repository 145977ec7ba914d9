# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Losses: one algorithm per file, each a :class:`torchrl.objectives.LossModule`."""

from __future__ import annotations

from torchrl_o2o.functional.noise import GeneratorNoise, NoiseSource, RecordedNoise
from torchrl_o2o.objectives.aca import ACALoss
from torchrl_o2o.objectives.awac import AWACLoss
from torchrl_o2o.objectives.awr import AWRLoss
from torchrl_o2o.objectives.baseline import BaselineLoss
from torchrl_o2o.objectives.bc import BCLoss
from torchrl_o2o.objectives.bear import BEARLoss
from torchrl_o2o.objectives.best_action import BestAction
from torchrl_o2o.objectives.brac import BRACLoss
from torchrl_o2o.objectives.brac_dual import BRACDualLoss
from torchrl_o2o.objectives.cql import CalQLLoss, CQLLoss
from torchrl_o2o.objectives.cvae import ConditionalVAELoss, InverseDynamicsLoss
from torchrl_o2o.objectives.dapg import DAPGLoss
from torchrl_o2o.objectives.density_ratio import DensityRatioLoss, join_sources
from torchrl_o2o.objectives.drqv2 import DrQV2Loss
from torchrl_o2o.objectives.drqv2_bc import DrQV2BCLoss
from torchrl_o2o.objectives.drqv2_cql import DrQV2CQLLoss
from torchrl_o2o.objectives.ensemble_sac import EnsembleSACLoss
from torchrl_o2o.objectives.fql import BestOfNLoss, FQLLoss
from torchrl_o2o.objectives.frozen import FrozenCritic
from torchrl_o2o.objectives.iql import IQLLoss
from torchrl_o2o.objectives.off2on import PessimisticEnsembleLoss
from torchrl_o2o.objectives.parameters import load_parameters
from torchrl_o2o.objectives.perturbation import PerturbationRatioLoss
from torchrl_o2o.objectives.pex import ExpandedPolicy, PEXLoss
from torchrl_o2o.objectives.pixel_sac import PixelSACLoss
from torchrl_o2o.objectives.rebrac import ReBRACLoss
from torchrl_o2o.objectives.sac_ml import SACMLLoss
from torchrl_o2o.objectives.samg import SAMGEstimator
from torchrl_o2o.objectives.spot import SPOTLoss
from torchrl_o2o.objectives.td3_bc import TD3BCLoss
from torchrl_o2o.objectives.vae import VAELoss

__all__ = [
    "ACALoss",
    "AWACLoss",
    "AWRLoss",
    "BCLoss",
    "BEARLoss",
    "BRACDualLoss",
    "BRACLoss",
    "BaselineLoss",
    "BestAction",
    "BestOfNLoss",
    "CQLLoss",
    "CalQLLoss",
    "ConditionalVAELoss",
    "DAPGLoss",
    "DensityRatioLoss",
    "DrQV2BCLoss",
    "DrQV2CQLLoss",
    "DrQV2Loss",
    "EnsembleSACLoss",
    "ExpandedPolicy",
    "FQLLoss",
    "FrozenCritic",
    "GeneratorNoise",
    "IQLLoss",
    "InverseDynamicsLoss",
    "NoiseSource",
    "PEXLoss",
    "PerturbationRatioLoss",
    "PessimisticEnsembleLoss",
    "PixelSACLoss",
    "ReBRACLoss",
    "RecordedNoise",
    "SACMLLoss",
    "SAMGEstimator",
    "SPOTLoss",
    "TD3BCLoss",
    "VAELoss",
    "join_sources",
    "load_parameters",
]
