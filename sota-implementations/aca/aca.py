# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""ACA (Yu & Zhang 2023): pre-train by SAC+ML, align the critic with the policy, fine-tune; or fine-tune by plain SAC.

    python sota-implementations/aca/aca.py task=halfcheetah preset=cpu seed=0
    python sota-implementations/aca/aca.py preset=cpu seed=0 learner=sac pretrained=runs/aca-aca/.../offline
    python sota-implementations/aca/aca.py level=random policy=runs/cql/.../seed0/offline

The updates are those of examples/aca.py, in the same order.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from functools import partial
from typing import Any

import hydra
from omegaconf import DictConfig
from torch import Tensor

from torchrl_o2o.errors import O2OSpecError, check_option
from torchrl_o2o.scripts import start
from torchrl_o2o.trainers import Pretrained, Problem, launch, load_problem, offline_phase, online_phase
from torchrl_o2o.trainers.algorithms import (
    decay_alignment,
    make_aca,
    make_baseline_learner,
    make_sac_after_sac_ml,
    make_sac_ml,
)

#: Sections that only the online phase reads.
ONLINE_ONLY = ("learner", "level", "alignment", "interpolation", "max_grad_norm")
LEARNERS = {"aca": make_aca, "sac": make_sac_after_sac_ml}


def family_of(config: Mapping[str, Any], state: Mapping[str, Tensor]) -> str:
    """The policy family of a pre-training, from its configuration or its parameters."""
    if "policy_family" in config:
        return config["policy_family"]
    # Both families can have one standard deviation per action dimension; only make_actor calls that "vector".
    is_gaussian = any(key.endswith(".log_std") for key in state) and config["actor"].get("std") != "vector"
    return "gaussian" if is_gaussian else "tanh"


def policy_of(cfg: DictConfig, problem: Problem) -> tuple[DictConfig, dict[str, Tensor]]:
    """The policy that `policy` names, and the configuration with the sections that build it."""
    source = Pretrained.read(cfg.policy)
    source.check(problem)
    prefix = "actor_network_params."
    state = {key.removeprefix(prefix): value for key, value in source.states["loss"].items() if key.startswith(prefix)}
    if not any("log_std" in key for key in state):
        raise O2OSpecError(
            f"the policy of {source.folder} ({source.config['algorithm']}) is deterministic: it has no log-density "
            f"that a critic could be aligned with; name a pre-training with a Gaussian policy (CQL, AWAC, IQL)"
        )
    cfg = copy.deepcopy(cfg)
    cfg.policy_family = family_of(source.config, state)
    cfg.actor = source.config["actor"]
    return cfg, state


def train(cfg: DictConfig) -> None:
    """Pre-train, or read a pre-training, or train baselines on another learner's policy; then fine-tune."""
    check_option("learner", cfg.learner, tuple(LEARNERS))
    problem, make_offline = load_problem(cfg, "aca"), make_sac_ml
    if cfg.policy is not None:
        cfg, policy = policy_of(cfg, problem)
        make_offline = partial(make_baseline_learner, policy=policy)
    then = partial(LEARNERS[cfg.learner], source=make_offline(cfg, problem.dims).loss.state_dict())
    with offline_phase(cfg, problem, make_offline, then=then, online_only=ONLINE_ONLY) as offline:
        for _ in offline.steps():
            offline.log(offline.learner.update(offline.sample()))
    if not cfg.online.total_frames:  # the offline phase alone
        return
    make_online = partial(LEARNERS[cfg.learner], source=Pretrained.read(offline.folder).states["loss"])
    with online_phase(cfg, problem, offline.folder, make_online) as online:
        for step, data in online.steps():
            online.buffer.extend(problem.convention.online(data).select(*online.learner.keys))
            if online.may_update(step):
                metrics = online.learner.update(online.sample())
                online.log(metrics | decay_alignment(cfg, online.learner))


@hydra.main(version_base="1.3", config_path=".", config_name="config")
def main(cfg: DictConfig) -> None:
    """Train one seed into one run folder."""
    launch(cfg, train)


if __name__ == "__main__":
    start(main)
