# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""CQL (Kumar et al. 2020) and Cal-QL (Nakamoto et al. 2023): conservative values offline, fine-tuned online.

    python sota-implementations/cql/cql.py algorithm=cal_ql task=antmaze seed=0
    python sota-implementations/cql/cql.py algorithm=cql task=locomotion-cpu seed=0
    python sota-implementations/cql/cql.py algorithm=cql learner=sac task=locomotion-cpu pretrained=runs/cql/.../offline

The update is that of examples/cal_ql.py: all gradients at the same parameters, then all steps, then the targets.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import hydra
import torch
from omegaconf import DictConfig
from tensordict import TensorDict, TensorDictBase
from torch import Tensor
from torchrl.objectives import SoftUpdate

from torchrl_o2o.data import TRANSITION
from torchrl_o2o.data.transforms import add_mc_return
from torchrl_o2o.envs import seed_everything
from torchrl_o2o.errors import O2OSpecError, check_option
from torchrl_o2o.modules import ConservativePenalty, Temperature, make_actor, make_qvalue_ensemble
from torchrl_o2o.objectives import CalQLLoss, CQLLoss, EnsembleSACLoss
from torchrl_o2o.trainers import (
    HandOver,
    Learner,
    Pretrained,
    Problem,
    descend,
    finetune_stage,
    hand_over,
    launch,
    load_problem,
    make_collector,
    plain,
    pretrain_stage,
    product_dtype,
    run_options,
    save_policy,
)

#: Entries that only the online phase reads.
ONLINE_ONLY = ("learner", "collect", "utd_ratio")
AddReturn = Callable[[TensorDictBase], TensorDictBase]


class CQL(Learner):
    """Values of actions that the data do not show are pushed down."""

    loss: CQLLoss | EnsembleSACLoss
    kind: type[CQLLoss] = CQLLoss

    def __init__(self, cfg: DictConfig, dims: tuple[int, int]) -> None:
        self.actor, critics = make_actor(*dims, **plain(cfg.actor)), make_qvalue_ensemble(*dims, **plain(cfg.qvalue))
        penalty, temperature = ConservativePenalty(**plain(cfg.penalty)), make_temperature(cfg, dims)
        self.loss = self.kind(self.actor, critics, temperature=temperature, penalty=penalty, **plain(cfg.loss))
        self.finish(cfg)

    def finish(self, cfg: DictConfig) -> None:
        """What follows the loss."""
        self.loss.make_value_estimator(**plain(cfg.value_estimator))
        self.target_updater = SoftUpdate(self.loss, **plain(cfg.target))
        critics, actor = self.loss.qvalue_network_params, self.loss.actor_network_params
        parts = {"qvalue": critics, "actor": actor, "alpha": self.loss.temperature}
        if isinstance(self.loss, CQLLoss) and cfg.penalty.target_gap is not None:
            parts["alpha_prime"] = self.loss.penalty
        rates = {"qvalue": cfg.qvalue_lr, "actor": cfg.actor_lr, "alpha": cfg.actor_lr, "alpha_prime": cfg.qvalue_lr}
        self.optims = {
            name: torch.optim.Adam(part.parameters(), lr=rates[name], **plain(cfg.optim))
            for name, part in parts.items()
        }
        if cfg.compile:
            self.compile(joint=True, matmul_dtype=product_dtype(cfg.matmul_dtype))

    def update(self, batch: TensorDictBase) -> dict[str, Tensor]:
        """All gradients at the same parameters, then all steps, then the targets."""
        out = self.loss(batch)
        for name in ("actor", "qvalue", "alpha", "alpha_prime"):  # the actor's gradient goes through the critics
            if name in self.optims:
                descend(self.optims[name], out[f"loss_{name}"], f"loss_{name}")
        self.target_updater.step()
        return {name: value.detach() for name, value in out.items()}


class CalQL(CQL):
    """CQL that stops at the value that the data's own policy earned."""

    kind = CalQLLoss
    keys = (*TRANSITION, "mc_return")


class SAC(CQL):
    """Online, for comparison: plain soft actor-critic on CQL's actor and critics."""

    def __init__(self, cfg: DictConfig, dims: tuple[int, int]) -> None:
        self.actor, critics = make_actor(*dims, **plain(cfg.actor)), make_qvalue_ensemble(*dims, **plain(cfg.qvalue))
        self.loss = EnsembleSACLoss(self.actor, critics, temperature=make_temperature(cfg, dims), actor_q="min")
        self.finish(cfg)


LEARNERS = {"cql": CQL, "cal_ql": CalQL, "sac": SAC}


def make_temperature(cfg: DictConfig, dims: tuple[int, int]) -> Temperature:
    """The temperature, steered toward an entropy of -A."""
    return Temperature(-float(dims[1]), form="log_alpha", **plain(cfg.temperature))


class Trajectory:
    """The running trajectory, whose returns are known when it is over, and the last update's metrics; saved."""

    def __init__(self) -> None:
        self.rows: list[TensorDictBase] = []
        self.metrics: dict[str, Tensor] = {}

    def truncate(self) -> None:
        """The environment failed after the last row, which so becomes the trajectory's last."""
        if self.rows:
            for key in ("truncated", "done"):
                self.rows[-1]["next", key] = torch.ones(1, 1, dtype=torch.bool)

    @property
    def over(self) -> bool:
        """Whether its last row ends it."""
        return bool(self.rows) and bool(self.rows[-1]["next", "done"])

    def take(self) -> TensorDictBase:
        """Its rows [T] as one episode; a new trajectory begins."""
        rows = torch.cat(self.rows)
        self.rows = []
        return rows.set("episode", torch.zeros(len(rows), dtype=torch.long))

    def state_dict(self) -> dict[str, Any]:
        """The rows' entries, nested as they are, and the metrics."""
        return {"rows": torch.cat(self.rows).to_dict() if self.rows else None, "metrics": self.metrics}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned."""
        rows = state_dict["rows"]
        self.rows = [] if rows is None else list(TensorDict(rows, [len(rows["action"])]).split(1))
        self.metrics = state_dict["metrics"]


def finetune_trajectories(cfg: DictConfig, problem: Problem, pretrained: Pretrained, add_return: AddReturn) -> None:
    """The authors' online phase: a whole trajectory, its returns, then `utd_ratio` updates for each of its steps."""
    seed_everything(cfg.seed)
    learner, how = LEARNERS[cfg.learner](cfg, problem.dims), HandOver(**plain(cfg.handover))
    hand_over(pretrained, learner, how)
    options, total, trajectory = run_options(cfg, cfg.run_dir), cfg.online.total_frames, Trajectory()
    buffer = how.buffer(problem.offline, total, batch_size=cfg.online.batch_size, keys=learner.keys)
    collector = make_collector(problem, learner, options, buffer, total)
    collector.on_cut = trajectory.truncate  # its last row is not in the buffer yet
    objects = {**learner.objects(), "collector": collector, "trajectory": trajectory}
    with options.session(problem, learner, buffer, objects, total) as session:

        def learn() -> None:
            rows = trajectory.take()
            buffer.extend(add_return(rows).select(*learner.keys))  # a learner without returns leaves them out
            for _ in range(len(rows) * cfg.utd_ratio):
                batch = buffer.sample()
                with session.record.dump_if_not_finite(batch):
                    session.metrics = trajectory.metrics = learner.step(batch)

        session.metrics = trajectory.metrics  # of a run that goes on
        for _, data in session.online(collector):
            if trajectory.over:  # cut by a failure of the environment
                learn()
            trajectory.rows.append(problem.convention.online(data).select(*TRANSITION))
            if trajectory.over:
                learn()
    save_policy(learner, problem, options)


def make_add_return(cfg: DictConfig, problem: Problem) -> AddReturn:
    """Adds each row's return under the transformed reward; `failure_reward` is a step's without success, as paid."""
    failure = cfg.failure_reward
    if failure is not None:  # by the same arithmetic as the rows', since they are compared for equality
        row = TensorDict({"next": {"reward": torch.tensor([[float(failure)]])}}, [1])
        failure = problem.convention.online(row)["next", "reward"].item()
    return partial(add_mc_return, gamma=cfg.value_estimator.gamma, failure_reward=failure)


def train(cfg: DictConfig) -> None:
    """Pre-train or read a pre-training, then fine-tune."""
    check_option("algorithm", cfg.algorithm, ("cql", "cal_ql"))
    check_option("learner", cfg.learner, tuple(LEARNERS))
    check_option("collect", cfg.collect, ("step", "trajectory"))
    if cfg.learner == "cal_ql" and cfg.collect == "step":
        raise O2OSpecError(
            "Cal-QL needs the returns of whole trajectories, but collect=step; set collect=trajectory, or learner=cql "
            "to turn the calibration off online as CORL does"
        )
    problem = load_problem(cfg, cfg.algorithm)
    add_return = make_add_return(cfg, problem)
    if "cal_ql" in (cfg.algorithm, cfg.learner):
        problem = replace(problem, offline=add_return(problem.offline))
    pretrained = pretrain_stage(cfg, problem, LEARNERS[cfg.algorithm], online_only=ONLINE_ONLY)
    if cfg.collect == "trajectory":
        finetune_trajectories(cfg, problem, pretrained, add_return)
    else:
        finetune_stage(cfg, problem, pretrained, LEARNERS[cfg.learner])


@hydra.main(version_base="1.3", config_path=".", config_name="config")
def main(cfg: DictConfig) -> None:
    """Train one seed into one run folder."""
    launch(cfg, train)


if __name__ == "__main__":
    main()
