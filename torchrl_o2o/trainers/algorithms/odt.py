# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""The online decision transformer (Zheng et al. 2022) on TorchRL's actor and loss."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig
from tensordict import TensorDictBase
from tensordict.nn import TensorDictModule
from tensordict.utils import NestedKey
from torch import Tensor
from torch.optim import Adam, AdamW
from torch.optim.lr_scheduler import LambdaLR
from torchrl.data import Bounded
from torchrl.modules import OnlineDTActor, ProbabilisticActor, TanhNormal
from torchrl.objectives import OnlineDTLoss

from torchrl_o2o.checkpoint.fingerprints import fingerprint
from torchrl_o2o.collectors import ReturnConditionedRollouts
from torchrl_o2o.data import TrajectoryReplay
from torchrl_o2o.data.datasets.optional import require
from torchrl_o2o.data.keys import CONVENTION_APPLIED
from torchrl_o2o.envs import CheckedEnv, GuardedEnv, seed_everything
from torchrl_o2o.envs.scores import find_reference, normalized_score
from torchrl_o2o.errors import O2OSpecError
from torchrl_o2o.functional.diagnostics import finite_or_raise
from torchrl_o2o.trainers.evaluation import EvaluationResult
from torchrl_o2o.trainers.launch import run_options
from torchrl_o2o.trainers.phases import PretrainingPlan
from torchrl_o2o.trainers.problem import Problem
from torchrl_o2o.trainers.session import Session
from torchrl_o2o.trainers.settings import plain

__all__ = ["TransformerLearner", "make_odt", "open_odt"]


class TransformerLearner:
    """ODT's policy, TorchRL's loss and two optimizers.

    Args:
        actor: reads ``observation``, ``action``, ``return_to_go`` of shape [B, K, ...].
        loss: its loss. optim: optimizer of the transformer.
        warmup: schedule of its learning rate, one step per update.
        alpha_optim: of the entropy's weight.
        clip_grad_norm: bound of the transformer's gradient.

    Examples:
        >>> from torch import nn
        >>> from tensordict.nn import NormalParamExtractor
        >>> body = nn.Sequential(nn.Linear(3, 4), NormalParamExtractor())  # in the place of a transformer
        >>> policy = TensorDictModule(body, in_keys=["observation"], out_keys=["loc", "scale"])
        >>> box = Bounded(-torch.ones(2), torch.ones(2))
        >>> actor = ProbabilisticActor(policy, in_keys=["loc", "scale"], spec=box, distribution_class=TanhNormal)
        >>> loss, optim = OnlineDTLoss(actor), AdamW(body.parameters())
        >>> warmup, alpha_optim = LambdaLR(optim, lambda step: 1.0), Adam([loss.log_alpha])
        >>> learner = TransformerLearner(actor, loss, optim, warmup, alpha_optim, clip_grad_norm=0.25)
        >>> replay = TrajectoryReplay()
        >>> replay.append(torch.randn(9, 3), torch.zeros(9, 2), torch.ones(9))
        >>> sorted(learner.update(replay.sample(4, context=5)))
        ['alpha', 'entropy', 'loss_alpha', 'loss_entropy', 'loss_log_likelihood']
    """

    def __init__(
        self,
        actor: ProbabilisticActor,
        loss: OnlineDTLoss,
        optim: AdamW,
        warmup: LambdaLR,
        alpha_optim: Adam,
        clip_grad_norm: float,
    ) -> None:
        self.actor, self.loss, self.optim, self.warmup = actor, loss, optim, warmup
        self.alpha_optim, self.clip_grad_norm = alpha_optim, clip_grad_norm

    def update(self, batch: TensorDictBase) -> dict[str, Tensor]:
        """Make a step of the transformer, then one of the entropy's weight.

        Args:
            batch: of :meth:`~torchrl_o2o.data.TrajectoryReplay.sample`.

        Returns:
            The losses, ``entropy`` and ``alpha``, detached.

        Raises:
            NonFiniteError: if a loss is NaN or infinite, before anything changes.
        """
        out = self.loss(batch)
        finite_or_raise({name: out[name] for name in self.loss.out_keys})
        self.optim.zero_grad()
        (out["loss_log_likelihood"] + out["loss_entropy"]).backward()
        torch.nn.utils.clip_grad_norm_(self.optim.param_groups[0]["params"], self.clip_grad_norm)
        self.optim.step()
        self.warmup.step()
        self.alpha_optim.zero_grad()
        out["loss_alpha"].backward()
        self.alpha_optim.step()
        return {name: out[name].detach() for name in self.loss.out_keys}

    def objects(self) -> dict[str, Any]:
        """The objects for the checkpoint, by name."""
        return {"loss": self.loss, "optim": self.optim, "warmup": self.warmup, "alpha_optim": self.alpha_optim}


def make_odt(cfg: DictConfig, dims: tuple[int, int]) -> TransformerLearner:
    """Build ODT's learner with TorchRL's ``OnlineDTActor`` and ``OnlineDTLoss``.

    Source: Zheng et al. 2022, arXiv:2202.05607, with AdamW instead of LAMB.

    Args:
        cfg: sections ``transformer``, ``loss``, ``optim``, ``alpha_optim``, and ``context``, ``warmup_updates``,
            ``clip_grad_norm``.
        dims: observation and action dimension.

    Returns:
        The learner.

    Raises:
        O2OSpecError: if ``compile`` is on, ``device`` is not the CPU, or the library transformers is not installed.

    Examples:
        >>> from torchrl_o2o.scripts import script_config
        >>> cfg = script_config("odt", ["preset=cpu", "compile=false"])
        >>> learner = make_odt(cfg, (3, 2))  # doctest: +SKIP
        >>> learner.actor.in_keys  # doctest: +SKIP
        ['observation', 'action', 'return_to_go']
        >>> make_odt(script_config("odt", ["compile=true"]), (3, 2))
        Traceback (most recent call last):
        torchrl_o2o.errors.O2OSpecError: got compile=true, expected false, because ODT trains TorchRL's loss ...
    """
    if cfg.compile:
        raise O2OSpecError(
            "got compile=true, expected false, because ODT trains TorchRL's loss without an Update; set compile=false"
        )
    if torch.device(cfg.get("device", "cpu")).type != "cpu":
        raise O2OSpecError(
            f"got device={cfg.device}, expected cpu, because ODT's rollouts build their sequences on it; leave it out"
        )
    require("transformers", "odt")
    keys: list[NestedKey] = ["observation", "action", "return_to_go"]
    size = cfg.transformer.n_embd
    shape = {"n_positions": 3 * cfg.context, "n_inner": 4 * size, "activation": "relu", **plain(cfg.transformer)}
    body = TensorDictModule(OnlineDTActor(*dims, transformer_config=shape), in_keys=keys, out_keys=["loc", "scale"])
    box = Bounded(-torch.ones(dims[1]), torch.ones(dims[1]))
    actor = ProbabilisticActor(body, in_keys=["loc", "scale"], spec=box, distribution_class=TanhNormal)
    loss = OnlineDTLoss(actor, **plain(cfg.loss))
    optim = AdamW([value for name, value in loss.named_parameters() if name != "log_alpha"], **plain(cfg.optim))
    warmup = LambdaLR(optim, lambda step: min((step + 1) / cfg.warmup_updates, 1.0))
    alpha_optim = Adam([loss.get_parameter("log_alpha")], **plain(cfg.alpha_optim))
    return TransformerLearner(actor, loss, optim, warmup, alpha_optim, cfg.clip_grad_norm)


def open_odt(
    cfg: DictConfig, problem: Problem
) -> tuple[Session, TransformerLearner, TrajectoryReplay, ReturnConditionedRollouts]:
    """Open a run of ODT: its session, learner, replay and collector.

    Args:
        cfg: sections of :func:`make_odt`, ``online``, ``evaluation``, and ``returns``, ``capacity``, ``context``,
            ``acting_context``, ``return_scale``.
        problem: environment and data.

    Returns:
        All four; entering the session restores them.

    Raises:
        O2OSpecError: if videos are asked for, or the library transformers is not installed.

    Examples:
        >>> import tempfile
        >>> from torchrl_o2o.data import Convention
        >>> from torchrl_o2o.scripts import script_config
        >>> from torchrl_o2o.testing import random_transitions
        >>> rows = random_transitions(100, 3, 1).set("episode", torch.arange(100))
        >>> problem = Problem({"env_id": "Pendulum-v1"}, rows, Convention().fit(rows))
        >>> cfg = script_config("odt", ["preset=cpu", "compile=false", f"run_dir={tempfile.mkdtemp()}/run"])
        >>> session, learner, replay, rollouts = open_odt(cfg, problem)  # doctest: +SKIP
        >>> len(replay.episodes), rollouts.asked  # doctest: +SKIP
        (100, 7200)
        >>> cfg.evaluation.num_envs = 10
        >>> open_odt(cfg, problem)
        Traceback (most recent call last):
        torchrl_o2o.errors.O2OSpecError: got evaluation.video=None, evaluation.num_envs=10, expected null and 1, ...
    """
    video, num_envs = cfg.evaluation.video, cfg.evaluation.num_envs
    if video is not None or num_envs != 1:
        raise O2OSpecError(
            f"got evaluation.video={video}, evaluation.num_envs={num_envs}, expected null and 1, because a policy that "
            "reads its past is evaluated in one environment without videos"
        )
    seed_everything(cfg.seed)
    learner, options = make_odt(cfg, problem.dims), run_options(cfg, cfg.run_dir)
    replay = TrajectoryReplay(cfg.capacity, return_scale=cfg.return_scale)
    replay.load(problem.offline)
    how = {"context": cfg.acting_context, "return_scale": cfg.return_scale}
    env = GuardedEnv(problem.make_env, **options.env_guard)
    frames = cfg.online.total_frames
    rollouts = ReturnConditionedRollouts(
        env, learner.actor, cfg.returns.exploration, total_frames=frames, seed=cfg.seed + 1_000, **how
    )
    objects = {
        **learner.objects(),
        "replay": replay,
        "rollouts": rollouts,
        "convention": problem.convention.state_dict(),
        "pretraining": PretrainingPlan(cfg.offline.num_steps, fingerprint(problem.offline.exclude(CONVENTION_APPLIED))),
    }
    score = _scorer(cfg, problem, learner, how) if options.evaluates else None
    session = options.open(objects, None, score, frames)
    return session, learner, replay, rollouts


def _scorer(
    cfg: DictConfig, problem: Problem, learner: TransformerLearner, how: Mapping[str, Any]
) -> Callable[[], EvaluationResult]:
    """An evaluation with deterministic episodes at the target return for evaluation, always with the same seeds."""
    reference = find_reference(problem.env["env_id"])

    def score() -> EvaluationResult:
        env = CheckedEnv(problem.make_env())
        rollouts = ReturnConditionedRollouts(env, learner.actor, cfg.returns.evaluation, **how)
        seeds = range(cfg.seed + 10_000, cfg.seed + 10_000 + cfg.evaluation.num_episodes)
        rewards = [rollouts.roll_out(rollouts.asked, seed=seed, explore=False)["next", "reward"] for seed in seeds]
        env.close()
        returns = np.array([float(each.double().sum()) for each in rewards])
        normalized = None if reference is None else normalized_score(returns, reference)
        return EvaluationResult(returns, np.array([len(each) for each in rewards]), normalized_score=normalized)

    return score
