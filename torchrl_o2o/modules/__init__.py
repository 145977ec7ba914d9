# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Networks: actors, critics and their parts."""

from __future__ import annotations

from torchrl_o2o._moved import old_names
from torchrl_o2o.modules.actors import GaussianHead, make_actor
from torchrl_o2o.modules.aligned import make_baselines
from torchrl_o2o.modules.best_of import BestOfN, BestOfPolicies, BestOfSamples
from torchrl_o2o.modules.chunks import act_in_chunks, chunk_box, chunk_length
from torchrl_o2o.modules.confidence import (
    Confidence,
    ConfidenceReport,
    ConstantConfidence,
    DensityRatioConfidence,
    OfflineConfidence,
    RandomConfidence,
)
from torchrl_o2o.modules.conservative import ConservativePenalty
from torchrl_o2o.modules.critics import QValueNet, make_qvalue_ensemble
from torchrl_o2o.modules.cvae import ConditionalVAE, InverseDynamics, make_conditional_vae, make_inverse_dynamics
from torchrl_o2o.modules.density_ratio import DensityRatio, DensityRatioNet, Parametrization
from torchrl_o2o.modules.deterministic import make_deterministic_actor
from torchrl_o2o.modules.distributions import TanhNormal
from torchrl_o2o.modules.flow import make_flow_network, make_one_step_actor
from torchrl_o2o.modules.gaussian_policies import BoxNormal, GaussianVectorHead, make_gaussian_actor
from torchrl_o2o.modules.initialization import Initialization, initialize_
from torchrl_o2o.modules.multiplier import Multiplier
from torchrl_o2o.modules.pixels import (
    Bottleneck,
    ConvStack,
    LatentPolicy,
    PixelEncoder,
    PixelPolicy,
    encoder_width,
    make_bottleneck,
    make_latent_actor,
    make_pixel_actor,
    make_pixel_encoder,
)
from torchrl_o2o.modules.policy_ensemble import PolicyEnsemble, average_actors
from torchrl_o2o.modules.rescaled import RescaledGaussian, make_rescaled_actor
from torchrl_o2o.modules.temperature import Temperature
from torchrl_o2o.modules.trunk import ResidualBlock, UnitNorm, make_residual_trunk, make_trunk
from torchrl_o2o.modules.vae import ActionVAE, make_action_vae
from torchrl_o2o.modules.values import make_value_network

__all__ = [
    "ActionVAE",
    "BestOfN",
    "BestOfPolicies",
    "BestOfSamples",
    "Bottleneck",
    "BoxNormal",
    "ConditionalVAE",
    "Confidence",
    "ConfidenceReport",
    "ConservativePenalty",
    "ConstantConfidence",
    "ConvStack",
    "DensityRatio",
    "DensityRatioConfidence",
    "DensityRatioNet",
    "GaussianHead",
    "GaussianVectorHead",
    "Initialization",
    "InverseDynamics",
    "LatentPolicy",
    "Multiplier",
    "OfflineConfidence",
    "Parametrization",
    "PixelEncoder",
    "PixelPolicy",
    "PolicyEnsemble",
    "QValueNet",
    "RandomConfidence",
    "RescaledGaussian",
    "ResidualBlock",
    "TanhNormal",
    "Temperature",
    "UnitNorm",
    "act_in_chunks",
    "average_actors",
    "chunk_box",
    "chunk_length",
    "encoder_width",
    "initialize_",
    "make_action_vae",
    "make_actor",
    "make_baselines",
    "make_bottleneck",
    "make_conditional_vae",
    "make_deterministic_actor",
    "make_flow_network",
    "make_gaussian_actor",
    "make_inverse_dynamics",
    "make_latent_actor",
    "make_one_step_actor",
    "make_pixel_actor",
    "make_pixel_encoder",
    "make_qvalue_ensemble",
    "make_rescaled_actor",
    "make_residual_trunk",
    "make_trunk",
    "make_value_network",
]

__getattr__ = old_names(__name__, {"initialise_": initialize_})
