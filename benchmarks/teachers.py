# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Train a teacher of the local data sets with RLPD's loop, keeping its actor at every evaluation.

    python benchmarks/teachers.py task=halfcheetah data=linear-mix-v0 preset=cpu run_dir=runs/teachers/HalfCheetah \\
        compile=true 'qvalue.hidden_sizes=[256,256]' handover.offline_fraction=0.25 optim.lr=3e-4 resume=true \\
        online.total_frames=1_000_000 evaluation.num_episodes=3 evaluation.num_envs=3 schedule.eval_every=5_000

Actors need two hidden layers. `benchmarks/pack_teachers.py` makes the packaged file of the snapshots.
"""

from __future__ import annotations

import json
from pathlib import Path

import hydra
import torch
from omegaconf import DictConfig

from torchrl_o2o.scripts import start
from torchrl_o2o.trainers import Finetuning, launch, load_problem, online_phase
from torchrl_o2o.trainers.algorithms import make_rlpd
from torchrl_o2o.trainers.session import HasMetrics

SCRIPT = Path(__file__).parents[1] / "sota-implementations" / "rlpd"


def keep_snapshots(run: Finetuning) -> None:
    """Let every evaluation of a run write the actor and its return to the run folder's `snapshots`."""
    session, evaluate = run.session, run.session.evaluate
    assert evaluate is not None
    folder = Path(session.folder) / "snapshots"

    def evaluate_and_keep() -> HasMetrics:
        folder.mkdir(exist_ok=True)
        result, step = evaluate(), session.counters["online"]
        torch.save(run.learner.actor.state_dict(), folder / f"{step:08}.pt")
        returns = result.metrics()
        row = {
            "step": step,
            "return": float(returns["evaluation/return"]),
            "std": float(returns["evaluation/return_std"]),
        }
        (folder / f"{step:08}.json").write_text(json.dumps(row))
        return result

    session.evaluate = evaluate_and_keep


def train(cfg: DictConfig) -> None:
    """RLPD's loop."""
    problem = load_problem(cfg, "rlpd")
    with online_phase(cfg, problem, None, make_rlpd) as run:
        keep_snapshots(run)
        for step, data in run.steps():
            run.buffer.extend(problem.convention.online(data).select(*run.learner.keys))
            if run.may_update(step):
                run.log(run.learner.update(run.sample()))


@hydra.main(version_base="1.3", config_path=str(SCRIPT), config_name="config")
def main(cfg: DictConfig) -> None:
    """Train one teacher."""
    launch(cfg, train)


if __name__ == "__main__":
    start(main)
