# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Pre-train, hand over, fine-tune: the pipeline around the two phases.

The two phases are separate runs with a folder each, so that many fine-tunings can use one pre-training. They share one
:class:`~torchrl_o2o.trainers.Problem`, and each trains a :class:`~torchrl_o2o.trainers.Learner`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tensordict import TensorDictBase

from torchrl_o2o.checkpoint.reading import newest_valid, read_state
from torchrl_o2o.data.conventions import FittedConvention
from torchrl_o2o.errors import O2OCheckpointError, O2OSpecError
from torchrl_o2o.trainers.handover import HandOver
from torchrl_o2o.trainers.learner import Learner
from torchrl_o2o.trainers.options import RunOptions
from torchrl_o2o.trainers.phases import Finetuning, Pretraining
from torchrl_o2o.trainers.problem import Problem

__all__ = ["Pretrained", "finetune", "hand_over", "pretrain"]


@dataclass(frozen=True)
class Pretrained:
    """A finished pre-training, read from its run folder.

    Args:
        folder: the run's folder.
        states: states of the loss and the optimizers, by the names of :meth:`~torchrl_o2o.trainers.Learner.objects`.
        convention: the convention of its data and observations.
        config: its configuration.
        updates: number of its updates.

    Examples:
        >>> import tempfile
        >>> from torchrl_o2o.data import Convention
        >>> from torchrl_o2o.scripts import script_config
        >>> from torchrl_o2o.testing import random_transitions
        >>> from torchrl_o2o.trainers.algorithms import make_bc
        >>> rows = random_transitions(100, 3, 1)
        >>> problem = Problem({"env_id": "Pendulum-v1", "max_episode_steps": 9}, rows, Convention().fit(rows))
        >>> cfg = script_config("bc", ["preset=cpu", "compile=false"])
        >>> folder = tempfile.mkdtemp() + "/run"
        >>> options = RunOptions(folder, {"algorithm": "bc"}, seed=0, evaluation={"num_episodes": 1})
        >>> _ = pretrain(problem, make_bc(cfg, problem.dims), options, num_steps=2, batch_size=16)
        >>> pretrained = Pretrained.read(folder)
        >>> pretrained.updates, sorted(pretrained.states)
        (2, ['actor_optim', 'loss'])
        >>> pretrained.check(problem)  # no error: it is of this problem
    """

    folder: Path
    states: Mapping[str, Any]
    convention: FittedConvention
    config: Mapping[str, Any]
    updates: int

    @classmethod
    def read(cls, folder: str | Path) -> Pretrained:
        """Read the last checkpoint of a finished pre-training.

        Args:
            folder: the folder passed to :func:`pretrain`.

        Raises:
            O2OCheckpointError: if there is none, it is not of a pre-training, or the pre-training is not finished.
        """
        root = Path(folder) / "checkpoints"
        manifest, _ = newest_valid(root)
        if manifest is None:
            raise O2OCheckpointError(
                f"{root} holds no checkpoint, expected a finished pre-training; pre-train first, or name the folder of "
                "a pre-training"
            )
        saved = [name.removesuffix(".pt") for name in manifest["files"]]
        if "convention" not in saved:
            raise O2OCheckpointError(
                f"{root} holds {saved}, expected a pre-training; name a folder that pretrain() wrote"
            )
        planned = read_state(root, manifest, "pretraining")["num_steps"] if "pretraining" in saved else None
        if manifest["step"] != planned:
            total = "an unknown number of" if planned is None else planned
            raise O2OCheckpointError(
                f"{folder} is at {manifest['step']} of {total} updates, expected a finished pre-training; let it "
                "finish (resume=true) first"
            )
        names = [name for name in saved if name == "loss" or name.endswith("_optim")]
        states = {name: read_state(root, manifest, name) for name in names}
        convention = FittedConvention.from_state_dict(read_state(root, manifest, "convention"))
        return cls(Path(folder), states, convention, manifest["config"], manifest["step"])

    def check(self, problem: Problem) -> None:
        """Raise if the environment or convention differs from that of the pre-training.

        Args:
            problem: the problem for the fine-tuning.

        Raises:
            O2OSpecError: if they differ; the message names the difference.
        """
        here, there = dict(problem.env), dict(self.config.get("env", problem.env))
        if here != there:
            raise O2OSpecError(
                f"{self.folder} was pre-trained in {there}, expected {here} as in this run; use the same environment"
            )
        if not self.convention.same_as(problem.convention):
            raise O2OSpecError(
                f"{self.folder} was pre-trained with {self.convention.reward} and "
                f"{'' if self.convention.observation else 'no '}standardized observations, this run has "
                f"{problem.convention.reward} and {'' if problem.convention.observation else 'no '}such ones, or other "
                f"statistics; load the same data with the same convention"
            )


def pretrain(problem: Problem, learner: Learner, options: RunOptions, *, num_steps: int, batch_size: int) -> Pretrained:
    """The loop of a script's offline phase, as a function; see :class:`Pretraining`.

    With ``options.resume``, a complete run is read and not repeated.

    Args:
        problem: environment and data.
        learner: the learner that is trained.
        options: the run's options.

    Keyword Args:
        num_steps: updates.
        batch_size: rows drawn uniformly per update.

    Returns:
        The result, read from the folder.

    Raises:
        NonFiniteError: if a loss becomes NaN or infinite; the batch is kept in the folder.
        SystemExit: if a signal asked to stop; the checkpoint is written.

    Examples:
        >>> import tempfile
        >>> from torchrl_o2o.data import Convention
        >>> from torchrl_o2o.scripts import script_config
        >>> from torchrl_o2o.testing import random_transitions
        >>> from torchrl_o2o.trainers.algorithms import make_bc
        >>> rows = random_transitions(100, 3, 1)
        >>> problem = Problem({"env_id": "Pendulum-v1", "max_episode_steps": 9}, rows, Convention().fit(rows))
        >>> cfg = script_config("bc", ["preset=cpu", "compile=false"])
        >>> folder = tempfile.mkdtemp() + "/run"
        >>> options = RunOptions(folder, {"algorithm": "bc"}, seed=0, evaluation={"num_episodes": 1})
        >>> pretrain(problem, make_bc(cfg, problem.dims), options, num_steps=2, batch_size=16).updates
        2
    """
    with Pretraining(problem, learner, options, num_steps=num_steps, batch_size=batch_size) as phase:
        for _ in phase.steps():
            phase.log(learner.update(phase.sample()))
    return Pretrained.read(options.folder)


def hand_over(source: Pretrained | Learner, learner: Learner, how: HandOver) -> list[str]:
    """Copy a pre-training to an online learner, according to a :class:`~torchrl_o2o.trainers.HandOver`.

    Args:
        source: a finished pre-training, or the offline learner itself.
        learner: the online learner, modified in place; with ``how.keep_optimizers``, its optimizers continue those of
            the same name.
        how: the decisions of the hand-over.

    Returns:
        The networks that are not carried over.

    Raises:
        O2OSpecError: if something does not fit.

    Examples:
        >>> from torchrl_o2o.scripts import script_config
        >>> from torchrl_o2o.trainers.algorithms import make_cql, make_sac_after_cql
        >>> cfg = script_config("cql", ["preset=cpu", "compile=false", "learner=sac"])
        >>> offline, online = make_cql(cfg, (3, 2)), make_sac_after_cql(cfg, (3, 2))
        >>> hand_over(offline, online, HandOver(carry=("actor_network",)))  # or from a Pretrained
        ['qvalue_network', 'temperature']
    """
    offline = source.states if isinstance(source, Pretrained) else source.objects()
    pairs = [(offline[f"{name}_optim"], optim) for name, optim in learner.optims.items() if f"{name}_optim" in offline]
    return how.apply(offline["loss"], learner.loss, pairs)


def finetune(
    problem: Problem,
    learner: Learner,
    options: RunOptions,
    *,
    handover: HandOver,
    total_frames: int,
    batch_size: int,
    online_capacity: int | None = None,
    insert: Callable[[TensorDictBase], TensorDictBase] | None = None,
    scratch_dir: str | Path | None = None,
) -> None:
    """The loop of a script's online phase, as a function: store one transition, then make one update.

    See :class:`Finetuning`. The policy is written to ``policy.pt`` at every checkpoint;
    :func:`~torchrl_o2o.deploy.load_policy` reads it.

    Args:
        problem: environment and data; ``handover.data`` says how the data are used.
        learner: the online learner, already handed over.
        options: the run's options.

    Keyword Args:
        handover: starting buffer and warm-up.
        total_frames: environment steps.
        batch_size: rows per update.
        online_capacity: slots for online rows; ``None`` (default) keeps all.
        insert: applied to a transition [1] after the reward's transform, before it is stored. Defaults to ``None``.
        scratch_dir: folder for the buffer's rows in memory-mapped files. Defaults to ``None``: in memory.

    Raises:
        NonFiniteError: if a loss becomes NaN or infinite; the batch is kept in the folder.
        EnvFaultError: if the environment keeps failing.
        SystemExit: if a signal asked to stop; the checkpoint is written.

    Examples:
        >>> import tempfile
        >>> from torchrl_o2o.data import Convention
        >>> from torchrl_o2o.scripts import script_config
        >>> from torchrl_o2o.testing import random_transitions
        >>> from torchrl_o2o.trainers.algorithms import make_bc
        >>> rows = random_transitions(100, 3, 1)
        >>> problem = Problem({"env_id": "Pendulum-v1", "max_episode_steps": 9}, rows, Convention().fit(rows))
        >>> cfg = script_config("bc", ["preset=cpu", "compile=false"])
        >>> folder = tempfile.mkdtemp() + "/run"
        >>> options = RunOptions(folder, {"algorithm": "bc"}, seed=0, evaluation={"num_episodes": 1})
        >>> learner = make_bc(cfg, problem.dims)
        >>> finetune(problem, learner, options, handover=HandOver(warmup_steps=2), total_frames=3, batch_size=16)
        >>> learner.calls  # after steps 2 and 3
        2
        >>> Path(folder, "policy.pt").exists()
        True
    """
    phase = Finetuning(
        problem,
        learner,
        options,
        handover=handover,
        total_frames=total_frames,
        batch_size=batch_size,
        online_capacity=online_capacity,
        scratch_dir=scratch_dir,
    )
    with phase:
        for step, data in phase.steps():
            row = problem.convention.online(data)
            phase.buffer.extend((row if insert is None else insert(row)).select(*learner.keys))
            if phase.may_update(step):
                phase.log(learner.update(phase.sample()))
