# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""SAMG (Zhang et al. 2024): any base algorithm, online without the data set, guided by its frozen offline critic.

    python sota-implementations/samg/samg.py base=awac task=locomotion-cpu seed=0
    python sota-implementations/samg/samg.py base=awac task=locomotion-cpu seed=0 confidence=none
    python sota-implementations/samg/samg.py base=awac task=locomotion-cpu seed=0 pretrained=runs/samg/.../offline

The base's own script trains offline; then the confidence is fitted; then the data set is let go. `confidence=none` is
the base algorithm under the same online protocol.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import hydra
import torch
from omegaconf import DictConfig, OmegaConf
from tensordict import TensorDict, TensorDictBase
from torch import Tensor

from torchrl_o2o.checkpoint.manifest import dump, load
from torchrl_o2o.checkpoint.reading import check_config
from torchrl_o2o.data import Convention, get_convention
from torchrl_o2o.durable import replace_durably
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
from torchrl_o2o.trainers import (
    HandOver,
    Learner,
    Pretrained,
    Problem,
    finetune,
    hand_over,
    launch,
    load_script,
    plain,
    pretrain_stage,
    read_encoder,
    run_options,
    train_encoder,
)

VAE, EMBEDDING = (make_conditional_vae, ConditionalVAELoss), (make_inverse_dynamics, InverseDynamicsLoss)
ENCODERS = {"vae": VAE, "embedding": EMBEDDING, "density_ratio": (DensityRatio, PerturbationRatioLoss)}
#: What the offline phase of the base does not read.
SAMG_ONLY = ("confidence", "encoder", "threshold", "guidance", "weigh_penalty", "run_name")


class RLPD(Learner):
    """RLPD's learner behind the pipeline's interface; a batch is its critic steps' minibatches in a row."""

    def __init__(self, cfg: DictConfig, dims: tuple[int, int]) -> None:
        self.actor, self.inner = load_script("rlpd").make_learner(cfg, *dims)
        self.loss, self.batch_size = self.inner.loss, cfg.minibatch_size
        names = {"qvalue": "critic", "actor": "actor", "alpha": "alpha"}
        self.optims = {name: getattr(self.inner, f"{theirs}_optim") for name, theirs in names.items()}

    def update(self, batch: TensorDictBase) -> dict[str, Tensor]:
        """Algorithm 1 of the paper."""
        return self.inner.update(batch, self.batch_size)


def base_class(cfg: DictConfig, phase: str) -> type[Learner]:
    """The base's learner of a phase, from its own script."""
    return RLPD if cfg.learner.script == "rlpd" else getattr(load_script(cfg.learner.script), cfg.learner[phase])


def guided(base: type[Learner]) -> type[Learner]:
    """The base's learner with SAMG's target; p is computed once per transition, and stored with it."""

    class Guided(base):  # type: ignore[misc, valid-type]
        keys = (*base.keys, "p_off")

        def guide(self, confidence: Confidence, settings: Mapping[str, Any], *, weigh_penalty: bool) -> None:
            """Freeze the critic as it is now."""
            if weigh_penalty and not hasattr(self.loss.tensor_keys, "penalty_weight"):
                raise O2OSpecError(f"{type(self.loss).__name__} has no penalty to weigh; set weigh_penalty=false")
            self.confidence, self.weigh_penalty, self.steps = confidence, weigh_penalty, {"online": 0}
            gamma = float(self.loss.value_estimator.gamma)
            self.estimator = SAMGEstimator.from_loss(self.loss, gamma=gamma, **settings)
            self.loss.make_value_estimator(self.estimator)

        def insert(self, row: TensorDictBase) -> TensorDictBase:
            """Store p with a transition, and let the guidance fade."""
            self.steps["online"] += 1
            self.estimator.set_step(self.steps["online"])
            return self.confidence(row)

        def step(self, batch: TensorDictBase) -> dict[str, Tensor]:
            """The base's update, compiled or not, on the mixed target."""
            if self.weigh_penalty:
                batch.set("penalty_weight", 1.0 - self.estimator.confidence(batch))
            p = batch["p_off"]
            return super().step(batch) | {"p_mean": p.mean(), "p_passing": (p > 0.0).to(p.dtype).mean()}

        def objects(self) -> dict[str, Any]:
            """The confidence and the count of steps too; the frozen critic is part of the loss."""
            return super().objects() | {"confidence": self.confidence, "steps": self.steps}

    return Guided


def encoder_config(cfg: DictConfig) -> dict[str, Any]:
    """What an encoder depends on, so that it can serve other bases, thresholds and aggregators."""
    own = {key: value for key, value in plain(cfg.confidence).items() if key not in ("fit", "pretrained", "name")}
    kept = {"env": plain(cfg.env), "dataset": plain(cfg.dataset), "encoder": own, "seed": cfg.seed}
    return kept | {"raw_observations": not convention(cfg).normalize_observations}


def make_confidence(cfg: DictConfig, dims: tuple[int, int], problem: Problem | None = None) -> Confidence | None:
    """The confidence, trained and fitted if there are data, else to be filled from a file; none for the base alone."""
    own = cfg.confidence
    check_option("confidence.kind", own.kind, ("none", "constant", "random", *ENCODERS))
    if own.kind in ("none", "constant"):
        return ConstantConfidence(own.value) if own.kind == "constant" else None
    if own.kind == "random":
        return RandomConfidence(**plain(own.fit))
    make_network, make_loss = ENCODERS[own.kind]
    seed_everything(cfg.seed)
    network = make_network(*dims, **plain(own.network))
    wrap = DensityRatioConfidence if isinstance(network, DensityRatio) else OfflineConfidence
    if problem is None:
        return wrap(network, **plain(own.fit))
    if isinstance(network, DensityRatio):
        network.fit_scale(problem.offline)
    loss = make_loss(network, **plain(own.loss))
    if own.pretrained is not None:
        read_encoder(own.pretrained, loss, encoder_config(cfg), num_steps=own.num_steps)
    else:
        optim = torch.optim.Adam(loss.parameters(), **plain(own.optim))
        options = replace(run_options(cfg, Path(cfg.run_dir) / "confidence"), config=encoder_config(cfg))
        run = {"num_steps": own.num_steps, "batch_size": own.batch_size, "anneal": own.anneal}
        train_encoder(problem.offline, loss, optim, options, **run)
    confidence = wrap(network, **plain(own.fit))
    look = confidence.fit if isinstance(confidence, OfflineConfidence) else confidence.check
    report = look(problem.offline)
    logging.getLogger(__name__).info("threshold %g: %s", confidence.threshold, report)
    return confidence


def convention(cfg: DictConfig) -> Convention:
    """The base's row without standardized observations, or the configuration's own."""
    if cfg.convention is not None:
        return Convention(**plain(cfg.convention))
    return replace(get_convention(cfg.learner.convention, cfg.domain), normalize_observations=False)


def prepare(cfg: DictConfig, start: Path) -> None:
    """All that needs the data set: the base's offline phase and the confidence."""
    problem = Problem.load(plain(cfg.env), plain(cfg.dataset), convention(cfg))
    config = OmegaConf.to_container(cfg, resolve=True)
    base = OmegaConf.create({key: value for key, value in config.items() if key not in SAMG_ONLY})
    offline = base_class(cfg, "offline")
    if "mc_return" in offline.keys:
        problem = replace(problem, offline=load_script("cql").make_add_return(cfg, problem)(problem.offline))
    pretrained = pretrain_stage(base, problem, partial(offline, **plain(cfg.learner.offline_arguments)))
    online = base_class(cfg, "online")(cfg, problem.dims)
    hand_over(pretrained, online, HandOver(**plain(cfg.handover)))  # what does not fit is refused before it costs
    confidence = make_confidence(cfg, problem.dims, problem)
    state = {} if confidence is None else confidence.state_dict()
    start.parent.mkdir(parents=True, exist_ok=True)
    config = {"confidence": config["confidence"]}
    replace_durably(start, dump("start", {"config": config, "dims": list(problem.dims), "confidence": state}))


def go_online(cfg: DictConfig, start: Path) -> None:
    """The offline policy fills the buffer, then one update per step; there is no data set any more."""
    saved = load(start.read_bytes())
    check_config(saved["config"], {"confidence": plain(cfg.confidence)})
    dims, how = tuple(saved["dims"]), HandOver(**plain(cfg.handover))
    confidence = make_confidence(cfg, dims)
    seed_everything(cfg.seed)
    base = base_class(cfg, "online")
    learner = (base if confidence is None else guided(base))(cfg, dims)
    pretrained = Pretrained.read(cfg.pretrained or Path(cfg.run_dir) / "offline")
    hand_over(pretrained, learner, how)
    if confidence is not None:
        confidence.load_state_dict(saved["confidence"])
        learner.guide(confidence, plain(cfg.guidance), weigh_penalty=cfg.weigh_penalty)
    empty = TensorDict({key: torch.zeros(0, 1) for key in learner.keys}, [0])
    problem = Problem(plain(cfg.env), empty, pretrained.convention)
    insert = None if confidence is None else learner.insert
    finetune(problem, learner, run_options(cfg, cfg.run_dir), handover=how, insert=insert, **plain(cfg.online))


def train(cfg: DictConfig) -> None:
    """Prepare with the data set, then train online without it; a run resumed online does not load it."""
    if cfg.handover.data != "none":
        raise O2OSpecError(f"got handover.data={cfg.handover.data!r}, expected 'none': SAMG keeps no offline data")
    start = Path(cfg.run_dir) / "start.pt"
    if not (cfg.resume and start.exists()):
        prepare(cfg, start)
    go_online(cfg, start)


@hydra.main(version_base="1.3", config_path=".", config_name="config")
def main(cfg: DictConfig) -> None:
    """Train one seed into one run folder."""
    launch(cfg, train)


if __name__ == "__main__":
    main()
