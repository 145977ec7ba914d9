# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""The equations as functions of tensors, each tested on numbers worked out by hand."""

from __future__ import annotations

from torchrl_o2o._moved import old_names
from torchrl_o2o.functional.alignment import (
    aligned_value,
    baseline_value,
    beta_clip,
    clip_level,
    interpolation_weight,
    ml_actor_objective,
)
from torchrl_o2o.functional.behavior import (
    DualDivergence,
    Kernel,
    dual_divergence,
    slope_penalty,
    soft_minimum,
    squared_mmd,
)
from torchrl_o2o.functional.conservative import (
    best_of,
    calibrated,
    conservative_gap,
    lagrange_coefficient,
    lagrange_objective,
    max_backup,
    scaled_logsumexp,
)
from torchrl_o2o.functional.diagnostics import (
    NonFiniteError,
    effective_sample_size,
    finite_or_raise,
    offline_share,
)
from torchrl_o2o.functional.episodes import (
    conjugate_gradient,
    dapg_weights,
    discounted_sum,
    generalized_advantage,
    lambda_return,
    normalized_advantage,
    normalized_step,
)
from torchrl_o2o.functional.off2on import initial_online_priority, merge_gaussians, off2on_priority, pair_minimum
from torchrl_o2o.functional.offline import (
    AdvantageWeight,
    advantage_weight,
    awac_weight,
    clip_score,
    elbo_penalty,
    expansion_probability,
    expectile_objective,
    gaussian_kl,
    iwae_penalty,
    normal_log_prob,
    q_normalization,
    smoothed_action,
    spot_cooling,
)
from torchrl_o2o.functional.pixels import clipped_exploration, linear_schedule, shift_frames
from torchrl_o2o.functional.replay import (
    advantage_aligned_log_priority,
    annealed_alpha,
    annealed_beta,
    centered_rank,
    finite_scores,
    importance_log_weight,
    js_conjugate,
    js_derivative,
    kl_to_uniform,
    mean_one_log_ratio,
    resampling_log_prob,
    standardized,
)
from torchrl_o2o.functional.samg import (
    Aggregator,
    Guidance,
    guidance_factor,
    kl_weight,
    latent_confidence,
    perturbed_pairs,
    samg_value,
    two_sided_tail,
)
from torchrl_o2o.functional.soft import (
    ensemble_squared_error,
    inverse_tanh,
    sac_actor_objective,
    soft_value,
    tanh_normal_log_prob,
    td_target,
    temperature_objective,
)

__all__ = [
    "AdvantageWeight",
    "Aggregator",
    "DualDivergence",
    "Guidance",
    "Kernel",
    "NonFiniteError",
    "advantage_aligned_log_priority",
    "advantage_weight",
    "aligned_value",
    "annealed_alpha",
    "annealed_beta",
    "awac_weight",
    "baseline_value",
    "best_of",
    "beta_clip",
    "calibrated",
    "centered_rank",
    "clip_level",
    "clip_score",
    "clipped_exploration",
    "conjugate_gradient",
    "conservative_gap",
    "dapg_weights",
    "discounted_sum",
    "dual_divergence",
    "effective_sample_size",
    "elbo_penalty",
    "ensemble_squared_error",
    "expansion_probability",
    "expectile_objective",
    "finite_or_raise",
    "finite_scores",
    "gaussian_kl",
    "generalized_advantage",
    "guidance_factor",
    "importance_log_weight",
    "initial_online_priority",
    "interpolation_weight",
    "inverse_tanh",
    "iwae_penalty",
    "js_conjugate",
    "js_derivative",
    "kl_to_uniform",
    "kl_weight",
    "lagrange_coefficient",
    "lagrange_objective",
    "lambda_return",
    "latent_confidence",
    "linear_schedule",
    "max_backup",
    "mean_one_log_ratio",
    "merge_gaussians",
    "ml_actor_objective",
    "normal_log_prob",
    "normalized_advantage",
    "normalized_step",
    "off2on_priority",
    "offline_share",
    "pair_minimum",
    "perturbed_pairs",
    "q_normalization",
    "resampling_log_prob",
    "sac_actor_objective",
    "samg_value",
    "scaled_logsumexp",
    "shift_frames",
    "slope_penalty",
    "smoothed_action",
    "soft_minimum",
    "soft_value",
    "spot_cooling",
    "squared_mmd",
    "standardized",
    "tanh_normal_log_prob",
    "td_target",
    "temperature_objective",
    "two_sided_tail",
]

__getattr__ = old_names(
    __name__, {"q_normalisation": q_normalization, "standardised": standardized, "centred_rank": centered_rank}
)
