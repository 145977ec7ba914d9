# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""SAMG (Zhang et al. 2024): any base algorithm, online without the data set, guided by its frozen offline critic.

    python sota-implementations/samg/samg.py base=awac task=halfcheetah preset=cpu seed=0
    python sota-implementations/samg/samg.py base=awac task=halfcheetah preset=cpu seed=0 confidence=none
    python sota-implementations/samg/samg.py base=awac preset=cpu seed=0 pretrained=runs/samg/.../offline

The base's learner trains offline; then the confidence is fitted; then the data set is dropped. `confidence=none` is
the base algorithm under the same online protocol.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import hydra
import torch
from omegaconf import DictConfig, OmegaConf
from tensordict import TensorDict

from torchrl_o2o.checkpoint.manifest import dump, load
from torchrl_o2o.checkpoint.reading import check_config
from torchrl_o2o.durable import replace_durably
from torchrl_o2o.envs import seed_everything
from torchrl_o2o.errors import O2OSpecError
from torchrl_o2o.scripts import start
from torchrl_o2o.trainers import (
    Finetuning,
    HandOver,
    Pretrained,
    Problem,
    hand_over,
    launch,
    offline_phase,
    plain,
    returns_of,
    run_options,
)
from torchrl_o2o.trainers.algorithms import Guide, decay_actor_lr, make_base, make_confidence, raw_convention

#: Settings that the offline phase of the base algorithm does not read.
SAMG_ONLY = ("confidence", "encoder", "threshold", "guidance", "weigh_penalty", "run_name")


def prepare(cfg: DictConfig, start: Path) -> None:
    """Everything that needs the data set: the base algorithm's offline phase, and fitting the confidence."""
    problem = Problem.load(plain(cfg.env), plain(cfg.dataset), raw_convention(cfg))
    config = plain(cfg)
    base = OmegaConf.create({key: value for key, value in config.items() if key not in SAMG_ONLY})
    if cfg.learner.label == "cal_ql":
        problem = replace(problem, offline=returns_of(cfg, problem)(problem.offline))
    with offline_phase(base, problem, make_base(cfg, online=False), then=make_base(cfg, online=True)) as offline:
        for _ in offline.steps():
            metrics = offline.learner.update(offline.sample())
            offline.log(metrics | (decay_actor_lr(offline.learner) if cfg.learner.label == "iql" else {}))
    pretrained = Pretrained.read(offline.folder)
    online = make_base(cfg, online=True)(cfg, problem.dims)
    hand_over(pretrained, online, HandOver(**plain(cfg.handover)))  # raises before the fit if they do not match
    confidence = make_confidence(cfg, problem.dims, problem)
    state = {} if confidence is None else confidence.state_dict()
    start.parent.mkdir(parents=True, exist_ok=True)
    config = {"confidence": config["confidence"]}
    replace_durably(start, dump("start", {"config": config, "dims": list(problem.dims), "confidence": state}))


def online_run(cfg: DictConfig, start: Path) -> tuple[Finetuning, Guide | None]:
    """The online phase, which starts with an empty buffer, and its guidance."""
    saved = load(start.read_bytes())
    check_config(saved["config"], {"confidence": plain(cfg.confidence)})
    dims, how = tuple(saved["dims"]), HandOver(**plain(cfg.handover))
    confidence = make_confidence(cfg, dims)
    seed_everything(cfg.seed)
    learner = make_base(cfg, online=True)(cfg, dims)
    pretrained = Pretrained.read(cfg.pretrained or Path(cfg.run_dir) / "offline")
    hand_over(pretrained, learner, how)
    guide = None
    if confidence is not None:
        confidence.load_state_dict(saved["confidence"])
        guide = Guide(learner, confidence, plain(cfg.guidance), weigh_penalty=cfg.weigh_penalty)
    empty = TensorDict({key: torch.zeros(0, 1) for key in learner.keys}, [0])
    problem, options = Problem(plain(cfg.env), empty, pretrained.convention), run_options(cfg, cfg.run_dir)
    objects = {} if guide is None else guide.objects()
    return Finetuning(problem, learner, options, handover=how, objects=objects, **plain(cfg.online)), guide


def train(cfg: DictConfig) -> None:
    """Prepare with the data set, then train online without it; a run resumed online does not load it."""
    if cfg.handover.data != "none":
        raise O2OSpecError(f"got handover.data={cfg.handover.data!r}, expected 'none': SAMG keeps no offline data")
    start = Path(cfg.run_dir) / "start.pt"
    if not (cfg.resume and start.exists()):
        prepare(cfg, start)
    if not cfg.online.total_frames:  # the offline phase alone
        return
    online, guide = online_run(cfg, start)
    with online:
        for step, data in online.steps():  # the offline policy fills the buffer, then one update per step
            row = online.problem.convention.online(data)
            online.buffer.extend((row if guide is None else guide.insert(row)).select(*online.learner.keys))
            if online.may_update(step):
                batch = online.sample()
                guidance = {} if guide is None else guide.weigh(batch)
                online.log(online.learner.update(batch) | guidance)


@hydra.main(version_base="1.3", config_path=".", config_name="config")
def main(cfg: DictConfig) -> None:
    """Train one seed into one run folder."""
    launch(cfg, train)


if __name__ == "__main__":
    start(main)
