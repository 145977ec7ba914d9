# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Pre-train, hand over, fine-tune: the pipeline that the offline learners' scripts share.

The two phases are two runs with a folder each, so that one pre-training serves many fine-tunings. A
:class:`Problem` is loaded once for both; a :class:`Learner` is a method's networks, loss, optimizers and update.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import gymnasium
import torch
from tensordict import TensorDictBase
from tensordict.nn import TensorDictModuleBase
from tensordict.utils import NestedKey
from torch import Tensor
from torch.optim import Optimizer
from torchrl.data import ReplayBuffer, TensorDictReplayBuffer
from torchrl.objectives import SoftUpdate
from torchrl.objectives.common import LossModule

from torchrl_o2o import deploy
from torchrl_o2o.checkpoint.reading import newest_valid, read_state
from torchrl_o2o.collectors.single import StepCollector
from torchrl_o2o.data import TRANSITION, load_offline
from torchrl_o2o.data.conventions import Convention, FittedConvention
from torchrl_o2o.envs.guard import GuardedEnv
from torchrl_o2o.envs.make import make_gym_env
from torchrl_o2o.envs.scores import find_reference
from torchrl_o2o.errors import O2OCheckpointError, O2OSpecError
from torchrl_o2o.functional.diagnostics import NonFiniteError, finite_or_raise
from torchrl_o2o.trainers.evaluation import EvaluationResult, evaluate
from torchrl_o2o.trainers.handover import HandOver
from torchrl_o2o.trainers.session import Schedule, Session
from torchrl_o2o.updates import CompiledUpdate, compile_update

__all__ = [
    "Learner",
    "Pretrained",
    "Problem",
    "RunOptions",
    "finetune",
    "hand_over",
    "make_collector",
    "pretrain",
    "save_policy",
]


class Learner(ABC):
    """A method's networks, loss, optimizers and update; a script derives one class for each of its learners.

    Attributes:
        actor: the policy that is evaluated, and collects unless :attr:`explorer` is another one.
        loss: the loss module.
        optims: optimizers by the name of what they train.
        target_updater: moves the targets, if there are any.
        keys: entries of a transition that the loss reads.

    Examples:
        >>> import torch
        >>> from torchrl_o2o.modules import make_gaussian_actor
        >>> from torchrl_o2o.objectives import BCLoss
        >>> class Imitator(Learner):
        ...     def __init__(self):
        ...         self.actor = make_gaussian_actor(3, 2)
        ...         self.loss = BCLoss(self.actor)
        ...         self.optims = {"actor": torch.optim.Adam(self.loss.parameters())}
        ...     def update(self, batch):
        ...         value, _ = self.loss.actor_loss(batch)
        ...         self.optims["actor"].zero_grad()
        ...         value.backward()
        ...         self.optims["actor"].step()
        ...         return {"loss_actor": value.detach()}
        >>> sorted(Imitator().objects())
        ['actor_optim', 'loss']
    """

    actor: TensorDictModuleBase
    loss: LossModule
    optims: dict[str, Optimizer]
    target_updater: SoftUpdate | None = None
    keys: ClassVar[tuple[NestedKey, ...]] = TRANSITION
    _compiled: CompiledUpdate | None = None

    @property
    def explorer(self) -> TensorDictModuleBase:
        """The policy that collects; a learner whose actor is deterministic puts noise behind it here."""
        return self.actor

    @abstractmethod
    def update(self, batch: TensorDictBase) -> dict[str, Tensor]:
        """One update from one batch, in the order of the method's authors.

        Args:
            batch: transitions [B].

        Returns:
            Scalars to log.
        """

    @property
    def compiled(self) -> CompiledUpdate | None:
        """What :meth:`step` calls next in the place of :meth:`update`; ``None``: nothing was compiled.

        A learner whose updates are not all alike (TD3's delayed actor) chooses here.
        """
        return self._compiled

    def compile(
        self,
        *,
        joint: bool = False,
        max_grad_norm: Mapping[str, float] | None = None,
        matmul_dtype: torch.dtype | None = None,
    ) -> None:
        """From now on :meth:`step` computes :meth:`update`'s numbers by :func:`~torchrl_o2o.updates.compile_update`.

        To be called at the end of a constructor whose ``optims`` stand in the order of the update. A learner whose
        update does more than step its losses and move its targets overrides :attr:`compiled` or :meth:`step`.

        Args:
            joint: all losses are taken at the parameters before the first step. Defaults to ``False``.
            max_grad_norm: by loss, clip the norm of its gradient. Defaults to none.
            matmul_dtype: type of the products of wide matrices. Defaults to that of the parameters.
        """
        self._compiled = compile_update(
            self.loss,
            self.optims,
            self.target_updater,
            joint=joint,
            max_grad_norm=max_grad_norm,
            matmul_dtype=matmul_dtype,
        )

    def step(self, batch: TensorDictBase) -> dict[str, Tensor]:
        """:meth:`update`, compiled if :meth:`compile` was called; what the pipeline calls.

        Args:
            batch: transitions [B].

        Returns:
            Scalars to log.

        Raises:
            NonFiniteError: if a loss or a gradient is NaN or infinite; the parameters are those before that step.
        """
        compiled = self.compiled
        if compiled is None:
            return self.update(batch)
        metrics = compiled(batch)
        if not metrics.pop("finite"):
            losses = {name: value for name, value in metrics.items() if name.startswith("loss_")}
            finite_or_raise(losses)
            raise NonFiniteError(f"not finite: a gradient, of {', '.join(losses)}; lower the learning rate or clip it")
        return metrics

    def objects(self) -> dict[str, Any]:
        """What a checkpoint has to hold; a learner with further state adds to it."""
        return {"loss": self.loss, **{f"{name}_optim": optim for name, optim in self.optims.items()}}


@dataclass(frozen=True)
class Problem:
    """An environment, its data and what both look like to the learner.

    Args:
        env: arguments of :func:`~torchrl_o2o.envs.make_gym_env`.
        offline: transitions [N] as the learner sees them.
        convention: what was applied to them.
    """

    env: Mapping[str, Any]
    offline: TensorDictBase
    convention: FittedConvention

    @classmethod
    def load(cls, env: Mapping[str, Any], dataset: Mapping[str, Any], convention: Convention) -> Problem:
        """Load and check the data, and apply the convention to them once.

        Args:
            env: arguments of :func:`~torchrl_o2o.envs.make_gym_env`.
            dataset: arguments of :func:`~torchrl_o2o.data.load_offline`.
            convention: see :func:`~torchrl_o2o.data.get_convention`.

        Raises:
            O2ODataError: if the data are broken or belong to another environment.
        """
        raw = load_offline(**dataset, env=make_gym_env(**env))
        fitted = convention.fit(raw)
        return cls(env, fitted.data(raw), fitted)

    @property
    def dims(self) -> tuple[int, int]:
        """Observation and action dimension."""
        return self.offline["observation"].shape[-1], self.offline["action"].shape[-1]

    def make_env(self) -> gymnasium.Env:
        """A new environment with the learner's observations and the task's own rewards."""
        return self.convention.env(make_gym_env(**self.env))


@dataclass(frozen=True)
class RunOptions:
    """What a run is besides its learner.

    Args:
        folder: the run's folder.
        config: recorded, and compared when a run is resumed.
        seed: of networks, sampling and exploration; evaluation uses ``seed + 10_000``.
        schedule: how often to evaluate, log and save.
        resume: go on with what is in the folder. Defaults to ``False``.
        evaluation: ``num_episodes`` and ``num_envs`` of :func:`~torchrl_o2o.trainers.evaluate`.
        recorder: further arguments of :class:`~torchrl_o2o.record.Recorder`.
        env_guard: further arguments of :class:`~torchrl_o2o.envs.GuardedEnv`.

    Examples:
        >>> RunOptions("runs/awac", {"algorithm": "awac"}, seed=0).schedule.eval_every
        5000
    """

    folder: str | Path
    config: Any
    seed: int
    schedule: Schedule = field(default_factory=Schedule)
    resume: bool = False
    evaluation: Mapping[str, int] = field(default_factory=dict)
    recorder: Mapping[str, Any] = field(default_factory=dict)
    env_guard: Mapping[str, Any] = field(default_factory=dict)

    def session(
        self, problem: Problem, learner: Learner, buffer: ReplayBuffer | None, objects: Mapping[str, Any], total: int
    ) -> Session:
        """Open the run folder for a learner; ``total`` is the last step, for the progress bar."""

        def score() -> EvaluationResult:
            reference, seed = find_reference(problem.env["env_id"]), self.seed + 10_000
            settings = {"timeout": self.env_guard.get("timeout"), **self.evaluation}
            return evaluate(learner.actor, problem.make_env, seed=seed, reference=reference, **settings)

        save = deploy.policy_saver(learner.actor, convention=problem.convention, env=problem.env)
        recorder = {"progress_total": total, **self.recorder}
        return Session(self.folder, self.config, objects, buffer, score, self.schedule, self.resume, recorder, save)


@dataclass(frozen=True)
class Pretrained:
    """A finished pre-training, read from its run folder.

    Args:
        folder: the run's folder.
        states: of the loss and the optimizers, by the names of :meth:`Learner.objects`.
        convention: what its data and observations went through.
        config: its configuration.
        updates: how many updates it made.
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
            folder: what :func:`pretrain` was given.

        Raises:
            O2OCheckpointError: if there is none, it is not of a pre-training, or that has not come to its end.
        """
        root = Path(folder) / "checkpoints"
        manifest, _ = newest_valid(root)
        if manifest is None:
            raise O2OCheckpointError(
                f"{root} holds no checkpoint; pre-train first, or name the folder of a run that did"
            )
        saved = [name.removesuffix(".pt") for name in manifest["files"]]
        if "convention" not in saved:
            raise O2OCheckpointError(f"{root} holds {saved}, no pre-training; name a folder that pretrain() wrote")
        planned = read_state(root, manifest, "pretraining")["num_steps"] if "pretraining" in saved else None
        if manifest["step"] != planned:
            total = "an unknown number of" if planned is None else planned
            raise O2OCheckpointError(
                f"{folder} stands at {manifest['step']} of {total} updates; let it end (resume=true) before "
                "something starts from it"
            )
        names = [name for name in saved if name == "loss" or name.endswith("_optim")]
        states = {name: read_state(root, manifest, name) for name in names}
        convention = FittedConvention.from_state_dict(read_state(root, manifest, "convention"))
        return cls(Path(folder), states, convention, manifest["config"], manifest["step"])

    def check(self, problem: Problem) -> None:
        """Refuse to go on in another world than the one that was pre-trained in.

        Args:
            problem: what is to be fine-tuned in.

        Raises:
            O2OSpecError: naming what differs.
        """
        here, there = dict(problem.env), dict(self.config.get("env", problem.env))
        if here != there:
            raise O2OSpecError(f"{self.folder} was pre-trained in {there}, this run is in {here}; use one environment")
        if not self.convention.same_as(problem.convention):
            raise O2OSpecError(
                f"{self.folder} was pre-trained with {self.convention.reward} and "
                f"{'' if self.convention.observation else 'no '}standardized observations, this run has "
                f"{problem.convention.reward} and {'' if problem.convention.observation else 'no '}such ones, or other "
                f"statistics; load the same data with the same convention"
            )


@dataclass(frozen=True)
class _Plan:
    """How many updates a pre-training is to make; kept with its checkpoints, so that a part is not taken for all."""

    num_steps: int

    def state_dict(self) -> dict[str, int]:
        return {"num_steps": self.num_steps}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """A run that goes on may be planned longer than it was."""


def pretrain(problem: Problem, learner: Learner, options: RunOptions, *, num_steps: int, batch_size: int) -> Pretrained:
    """Train on the data alone and keep the result as a checkpoint that any compatible fine-tuning can start from.

    Steps count up to 0. A run that is complete already is read and not repeated if ``options.resume`` is on.

    Args:
        problem: environment and data.
        learner: what is trained.
        options: where and how.

    Keyword Args:
        num_steps: updates.
        batch_size: rows drawn uniformly per update.

    Returns:
        The result, as read from the folder.

    Raises:
        NonFiniteError: if a loss becomes NaN or infinite; the batch is kept in the folder.
        SystemExit: if a signal asked to stop; the checkpoint is written.
    """
    buffer = HandOver(data="all").buffer(problem.offline, 1, batch_size=batch_size, keys=learner.keys)
    objects = {
        **learner.objects(),
        "convention": problem.convention.state_dict(),
        "pretraining": _Plan(num_steps),
    }
    with options.session(problem, learner, None, objects, 0) as session:
        for _ in session.offline(num_steps):
            batch = buffer.sample()
            with session.record.dump_if_not_finite(batch):
                session.metrics = learner.step(batch)
    return Pretrained.read(options.folder)


def hand_over(pretrained: Pretrained, learner: Learner, how: HandOver) -> list[str]:
    """Carry a pre-training into an online learner, as its :class:`~torchrl_o2o.trainers.HandOver` says.

    Args:
        pretrained: where to start from.
        learner: changed in place; its optimizers continue those of the same name if ``how.keep_optimizers``.
        how: the decisions.

    Returns:
        The networks that start afresh.

    Raises:
        O2OSpecError: if something does not fit.
    """
    offline = pretrained.states
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
) -> None:
    """Train online: one transition into the buffer, then one update, as soon as the hand-over allows.

    The policy is written to ``policy.pt`` at every checkpoint; :func:`~torchrl_o2o.deploy.load_policy` reads it.

    Args:
        problem: environment and data; the latter are used only as ``handover.data`` says.
        learner: the online learner, handed over already.
        options: where and how.

    Keyword Args:
        handover: starting buffer and warm-up.
        total_frames: environment steps.
        batch_size: rows per update.
        online_capacity: slots for online rows; ``None`` (default) keeps all.
        insert: applied to a transition [1] after the reward's transform, before it is stored. Defaults to ``None``.

    Raises:
        NonFiniteError: if a loss becomes NaN or infinite; the batch is kept in the folder.
        EnvFaultError: if the environment keeps failing.
        SystemExit: if a signal asked to stop; the checkpoint is written.
    """
    capacity = total_frames if online_capacity is None else online_capacity
    buffer = handover.buffer(problem.offline, capacity, batch_size=batch_size, keys=learner.keys)
    collector = make_collector(problem, learner, options, buffer, total_frames)
    with options.session(
        problem, learner, buffer, {**learner.objects(), "collector": collector}, total_frames
    ) as session:
        for step, data in session.online(collector):
            row = problem.convention.online(data)
            buffer.extend((row if insert is None else insert(row)).select(*learner.keys))
            if handover.may_update(step) and len(buffer) >= batch_size:
                batch = buffer.sample()
                with session.record.dump_if_not_finite(batch):
                    session.metrics = learner.step(batch)
    save_policy(learner, problem, options)


def make_collector(
    problem: Problem, learner: Learner, options: RunOptions, buffer: TensorDictReplayBuffer, total_frames: int
) -> StepCollector:
    """A guarded environment stepped by the learner's explorer; a failed step truncates the row before it."""
    env = GuardedEnv(problem.make_env, **options.env_guard)
    cut = buffer.writer.truncate_last  # pyright: ignore[reportAttributeAccessIssue]
    return StepCollector(env, learner.explorer, total_frames=total_frames, seed=options.seed, on_cut=cut)


def save_policy(learner: Learner, problem: Problem, options: RunOptions) -> None:
    """Write ``policy.pt``, as sessions of :meth:`RunOptions.session` do at every checkpoint by themselves."""
    deploy.save_policy(options.folder, learner.actor, convention=problem.convention, env=problem.env)
