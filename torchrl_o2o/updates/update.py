# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
""":class:`Update`: one update of an agent as a list of steps, run eagerly, compiled, or stacked over agents."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor
from torchrl.objectives import HardUpdate, SoftUpdate
from torchrl.objectives.common import LossModule
from torchrl.objectives.utils import TargetNetUpdater

from torchrl_o2o.arguments import checked_arguments
from torchrl_o2o.errors import O2OSpecError, check_compiler, check_option, check_state
from torchrl_o2o.functional.diagnostics import NonFiniteError
from torchrl_o2o.updates.agents import StackedUpdate
from torchrl_o2o.updates.built_in import Setting, built_in, check_built_in
from torchrl_o2o.updates.eager import execute
from torchrl_o2o.updates.precision import has_bfloat16
from torchrl_o2o.updates.program import Mode, Program, Runner, columns_of, compiled_runner
from torchrl_o2o.updates.pure import learning_of
from torchrl_o2o.updates.state import copied_pairs, state_of, target_pairs
from torchrl_o2o.updates.steps import (
    Copy,
    Descend,
    Every,
    Ghost,
    Joint,
    MoveTargets,
    Plan,
    Repeat,
    Step,
    Whole,
    descends_of,
    plan,
    repeat_of,
    walk,
)

__all__ = ["Update"]

_MODES = ("default", "max-autotune-no-cudagraphs", "reduce-overhead")


class Update:
    r"""One update of an agent: steps on a loss, executed from top to bottom on each batch.

    RLPD (Ball et al. 2023, Algorithm 1): on each of 20 minibatches a step of the critics and of their targets, then
    once, on the last minibatch, a step of the actor and of the temperature::

        update = Update(
            loss,
            Repeat(20, Descend("qvalue", critic_optim), MoveTargets(target_updater)),
            Descend("actor", actor_optim),
            Descend("alpha", alpha_optim),
        )
        metrics = update(buffer.sample())

    ``Descend("qvalue", optim)`` is ``loss.qvalue_loss(batch)``, its gradient at the parameters that ``optim`` holds,
    and ``optim.step()``. Metrics that a loss returns are passed by name to later losses on the same minibatch that have
    such an argument: ``log_prob`` from ``actor_loss`` to ``alpha_loss``, ``gap`` to ``alpha_prime_loss``. A loss never
    gets its own metrics, and no loss gets a metric whose name begins with ``target_`` after the targets have moved.
    :class:`Joint` takes several gradients at the same parameters, :class:`Every` delays steps as TD3 does,
    :class:`Whole` uses all minibatches together.

    The update runs eagerly, with the loss's methods, autograd and the optimizers' own steps, until :meth:`compile` is
    called. Compiled, it gives the same numbers up to rounding, with the same random draws in the same order. Each part
    is then one graph in which everything between the matrix products is fused. Products that no critic step affects
    (next actions of a frozen actor) are computed for all minibatches in one pass. In both cases parameters, targets and
    optimizer states are modified in place, so that checkpoints, actors, schedulers and collectors see every step.
    :meth:`stack` combines the updates of N agents into one.

    Args:
        loss: a loss module whose losses are scalars (``reduction="mean"`` or ``"sum"``).
        steps: the steps, see above.

    Keyword Args:
        rows: metrics of the losses to be returned row by row, shape [number of minibatches * B], for example
            ``("td_error",)`` for priorities. Defaults to none.
        check_finite: whether a NaN or infinite loss or gradient raises an error, before its parameters change. With
            ``False``, that step and the rest of the call are skipped except for their random draws, and ``finite`` in
            the result is false; a compiled update then never waits for the device. Defaults to ``True``.

    Raises:
        O2OSpecError: if there is no gradient step, a step other than :class:`Copy` comes before a :class:`Repeat`, a
            step moves another loss's targets, or a :class:`Ghost` has an optimizer that no step uses.

    Examples:
        >>> import torch
        >>> from torchrl.objectives import SoftUpdate
        >>> from torchrl_o2o.modules import make_actor, make_qvalue_ensemble
        >>> from torchrl_o2o.objectives import EnsembleSACLoss
        >>> from torchrl_o2o.testing import random_transitions
        >>> critics = make_qvalue_ensemble(5, 2, num_qvalue_nets=3, hidden_sizes=(16,))
        >>> loss = EnsembleSACLoss(make_actor(5, 2, hidden_sizes=(16,)), critics, sub_sample_len=2)
        >>> critic_optim = torch.optim.Adam(loss.qvalue_network_params.parameters())
        >>> actor_optim = torch.optim.Adam(loss.actor_network_params.parameters())
        >>> update = Update(
        ...     loss,
        ...     Repeat(4, Descend("qvalue", critic_optim), MoveTargets(SoftUpdate(loss, tau=0.005))),
        ...     Descend("actor", actor_optim),
        ... )
        >>> metrics = update(random_transitions(4 * 8, 5, 2))
        >>> sorted(name for name in metrics if name.startswith("loss_"))
        ['loss_actor', 'loss_qvalue']
        >>> critic_optim.state_dict()["state"][0]["step"]
        tensor(4.)
    """

    @checked_arguments
    def __init__(self, loss: LossModule, *steps: Step, rows: Sequence[str] = (), check_finite: bool = True) -> None:
        self.loss, self.steps = loss, steps
        self.rows, self.check_finite = tuple(rows), check_finite
        self._counts: dict[int, int] = {}
        self._calls = 0
        self._options: tuple[Mode, torch.dtype | None] | None = None
        self._autocast: str | None = None
        self._programs: dict[Any, Runner] = {}
        self._built_in: tuple[Setting, ...] = ()
        if not descends_of(steps):
            raise O2OSpecError("got an update without a gradient step, expected Descend(...) among its steps")
        for position, step in enumerate(steps):
            if isinstance(step, Repeat) and not all(isinstance(before, Copy) for before in steps[:position]):
                raise O2OSpecError(
                    "got Repeat after another step, expected it first; put the steps that run once after it"
                )
            if isinstance(step, Whole) and position < len(steps) - 1:
                raise O2OSpecError("got Whole before another step, expected it last; put the following steps into it")
        for step in walk(steps):
            if isinstance(step, MoveTargets):
                _check_move(loss, step)
            elif isinstance(step, Copy):
                copied_pairs(loss, step.source, step.target)
            elif isinstance(step, Ghost) and step.step.optim not in [each.optim for each in descends_of(steps)]:
                raise O2OSpecError(
                    f"got a Ghost of {step.step.name!r}, whose optimizer no step of this update uses, expected one "
                    "that trains elsewhere in it; pass the same Descend to both, or leave the Ghost out"
                )
        _warn_of_still_targets(loss, steps)

    def __repr__(self) -> str:
        """The steps, one per line."""
        return "\n".join([f"Update of {type(self.loss).__name__}", *_described(self.steps, "  ")])

    @property
    def compiled(self) -> bool:
        """Whether :meth:`compile` was called."""
        return self._options is not None

    @property
    def calls(self) -> int:
        """The number of calls, including those before a resumption; schedules use it."""
        return self._calls

    @property
    def turns(self) -> tuple[int, ...]:
        """For each :class:`Every`, the number of turns since its steps were due."""
        every = [(index, step) for index, step in enumerate(walk(self.steps)) if isinstance(step, Every)]
        return tuple((self._counts.get(index, 0) - step.first) % step.interval for index, step in every)

    @property
    def options(self) -> tuple[Mode, torch.dtype | None] | None:
        """Mode and ``matmul_dtype`` of the compiled update, ``None`` of an eager one."""
        return self._options

    @property
    def optims(self) -> dict[str, torch.optim.Optimizer]:
        """The optimizers by the names of their losses."""
        return {step.name: step.optim for step in descends_of(self.steps)}

    @property
    def num_minibatches(self) -> int:
        """Minibatches per call: the update-to-data ratio."""
        repeat = repeat_of(self.steps)
        return 1 if repeat is None else repeat.times

    def compile(self, *, mode: Mode = "default", matmul_dtype: torch.dtype | None = None) -> Update:
        """Compute the same numbers with compiled graphs from now on. The *next* call compiles, and logs it.

        Compiled code is cached on disk, in ``TORCHINDUCTOR_CACHE_DIR`` if that is set. Settings that are not tensors
        (betas, ``loss.calibrate``) are read during compilation: after changing one, or a layer, call
        :meth:`recompile`. Otherwise the next call raises for a changed setting, and ignores a changed layer. Hooks of
        networks run only during compilation, not at each call.

        Args:
            mode: ``"max-autotune-no-cudagraphs"`` searches for faster kernels, for minutes; ``"reduce-overhead"``
                records the whole update as one CUDA graph. Defaults to ``"default"``.
            matmul_dtype: ``torch.bfloat16`` multiplies wide float32 matrices (no dimension below 64: the hidden layers)
                in bfloat16, which is twice as fast on hardware that supports it, with a relative error of about 1e-3
                per product. On other hardware it is slower, with a warning. ``None`` (default) keeps float32.

        Returns:
            This update.

        Raises:
            O2OSpecError: if an option is unknown, or there is no C++ compiler. At the next call: if the loss is not one
                of this package's, an optimizer is not Adam or AdamW, has hooks, holds parameters that are not the
                loss's, or is used by two steps, or targets are not moved by a :class:`~torchrl.objectives.SoftUpdate`.
        """
        check_option("mode", mode, _MODES)
        self._check_either(self._autocast is not None)
        if matmul_dtype not in (None, torch.bfloat16):
            raise O2OSpecError(f"got matmul_dtype={matmul_dtype}, expected torch.bfloat16, or None for float32")
        check_compiler()
        device = next(self.loss.parameters()).device
        if matmul_dtype is not None and not has_bfloat16(device):
            warnings.warn(
                f"got matmul_dtype={matmul_dtype} on {device.type}, expected hardware with instructions for it, "
                "because without them an update takes up to eleven times as long as in float32; leave it out",
                stacklevel=2,
            )
        self._options = (mode, matmul_dtype)
        self.recompile()
        return self

    def autocast(self) -> Update:
        """Compute under ``torch.autocast`` in bfloat16 from now on, also convolutions; parameters keep their dtype.

        This is for eager updates; compiled ones take ``matmul_dtype``.

        Returns:
            This update.

        Raises:
            O2OSpecError: if the update is compiled, or the hardware does not support bfloat16, which would make an
                update from pixels five times slower.
        """
        self._check_either(self.compiled)
        device = next(self.loss.parameters()).device
        if not has_bfloat16(device):
            raise O2OSpecError(
                f"got autocast on {device.type}, expected hardware with instructions for bfloat16, because without "
                "them an update takes several times as long; leave it out"
            )
        self._autocast = device.type
        return self

    @staticmethod
    def _check_either(other: bool) -> None:
        if other:
            raise O2OSpecError(
                "got both compile and autocast, expected one of them; compile the update with "
                "matmul_dtype=torch.bfloat16"
            )

    def recompile(self) -> None:
        """Discard compiled graphs, after a change of something that is not a tensor."""
        self._programs.clear()
        self._built_in = ()

    def check_built_in(self) -> None:
        """Raise if something has changed that is built into the compiled graphs. The first call records it.

        Raises:
            O2OSpecError: if a setting changed; the message names it.
        """
        if not self._built_in:
            self._built_in = built_in(self.loss, self.steps)
        check_built_in(self._built_in)

    @staticmethod
    def stack(updates: Sequence[Update]) -> StackedUpdate:
        """Combine the updates of N agents into one.

        Args:
            updates: one per agent, which differ only in their numbers.

        Returns:
            The :class:`StackedUpdate`.
        """
        return StackedUpdate(updates)

    def __getstate__(self) -> dict[str, Any]:
        """The state for pickling, without compiled graphs; the next call compiles again."""
        return {**self.__dict__, "_programs": {}, "_built_in": ()}

    def __deepcopy__(self, memo: dict[int, Any]) -> Update:
        """An update of a copy of the loss, with copies of the optimizers that hold the copy's parameters."""
        twin = memo[id(self)] = copy.copy(self)
        twin.loss = copy.deepcopy(self.loss, memo)
        tensors = state_of(twin.loss)
        memo |= {id(value): tensors[name] for name, value in state_of(self.loss).items()}
        twin.steps = copy.deepcopy(self.steps, memo)
        for step in [step for step in walk(twin.steps) if isinstance(step, MoveTargets)]:
            _rejoin(step.updater, twin.loss)
        twin._counts, twin._programs, twin._built_in = dict(self._counts), {}, ()
        return twin

    def state_dict(self) -> dict[str, Any]:
        """The number of calls and the turns of each :class:`Every` and ``HardUpdate``; the rest is in other states."""
        hard = {index: each.counter for index, each in self._hard_updates().items()}
        return {"calls": self._calls, "counts": self._counts | hard}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned.

        Raises:
            O2OSpecError: if it is not such a state, or counts turns of steps that this update does not have.
        """
        check_state(self, state_dict, {"calls": 0, "counts": None})
        hard = self._hard_updates()
        turns = [index for index, step in enumerate(walk(self.steps)) if isinstance(step, Every) or index in hard]
        counts = state_dict["counts"]
        check_state(self, counts, dict.fromkeys(turns, 0), optional=turns)
        if strange := sorted(set(counts) - set(turns), key=str):
            raise O2OSpecError(
                f"got a state with turns of step {strange[0]}, expected turns of the steps {turns}, which are not "
                "executed every time; load it into an update with the same steps"
            )
        self._calls, self._counts = state_dict["calls"], {key: counts[key] for key in counts if key not in hard}
        for index in set(counts) & set(hard):
            hard[index].counter = counts[index]

    def _hard_updates(self) -> dict[int, HardUpdate]:
        """The updaters that count their turns, by the positions of their steps."""
        moves = {index: step for index, step in enumerate(walk(self.steps)) if isinstance(step, MoveTargets)}
        return {index: step.updater for index, step in moves.items() if isinstance(step.updater, HardUpdate)}

    def plan(self) -> Plan:
        """Plan the next call, and count it."""
        self._calls += 1
        return plan(self.steps, self._counts)

    def __call__(self, batch: TensorDictBase) -> dict[str, Tensor]:
        """Make one update.

        Args:
            batch: transitions, shape [number of minibatches * B]; not modified. A compiled update compiles again for
                a new shape.

        Returns:
            Detached scalars of the last minibatch: ``loss_<name>``, the means of the losses' metrics, and
            ``qvalue_std`` between critics. Also ``finite``, and the requested rows.

        Raises:
            O2OSpecError: if the batch cannot be split into equal minibatches, or gradients are impossible (inference
                mode; ``torch.no_grad()`` is overruled), or a setting changed since the update was compiled.
            NonFiniteError: see ``check_finite``.
        """
        metrics, error = self.attempt(batch)
        if self.check_finite and not metrics["finite"]:
            raise error or _not_finite(metrics)
        return metrics

    def attempt(self, batch: TensorDictBase) -> tuple[dict[str, Tensor], NonFiniteError | None]:
        """Make one update without raising if it is not finite.

        Args:
            batch: see :meth:`__call__`.

        Returns:
            The result of :meth:`__call__`, and the error that names what was not finite, if this is known.
        """
        self._check_batch(batch)
        if self._options is not None:
            return self._run_compiled(batch), None
        autocast = torch.autocast(self._autocast or "cpu", torch.bfloat16, enabled=self._autocast is not None)
        with torch.enable_grad(), autocast:
            return execute(self.loss, self.plan(), batch, self.rows)

    def _check_batch(self, batch: TensorDictBase) -> None:
        if torch.is_inference_mode_enabled() or next(self.loss.parameters()).is_inference():
            raise O2OSpecError(
                "got an update, or networks that were built, under torch.inference_mode(), expected tensors with "
                "gradients; build the networks and call the update outside of it"
            )
        if not isinstance(batch, TensorDictBase):
            raise O2OSpecError(f"got a batch of {type(batch).__name__}, expected a TensorDict of shape [n]")
        if batch.ndim != 1 or not len(batch) or len(batch) % self.num_minibatches:
            raise O2OSpecError(
                f"got a batch of shape {list(batch.shape)}, expected [n], n a multiple of {self.num_minibatches}"
            )
        if any(value.is_inference() for value in batch.values(True, True)):
            raise O2OSpecError(
                "got a batch of tensors that were made under torch.inference_mode(), expected others, because torch "
                "computes no gradients with them; collect under torch.no_grad(), or pass batch.clone()"
            )

    def _run_compiled(self, batch: TensorDictBase) -> dict[str, Tensor]:
        assert self._options is not None
        self.check_built_in()
        (columns, signature), now = columns_of(batch), self.plan()
        if (signature, now) not in self._programs:
            program = Program(learning_of(self.loss, now, self.rows), now, columns)
            self._programs[signature, now] = compiled_runner(program, columns, self._options)
        runner = self._programs[signature, now]
        return runner.run(runner.inputs(columns))


def _rejoin(updater: TargetNetUpdater, loss: LossModule) -> None:
    """Let a copied updater move the targets of the copied loss: TorchRL's updater holds its own dictionaries."""
    for names, kept in ((updater._target_names, "_targets"), (updater._source_names, "_sources")):
        keys = list(getattr(updater, kept).keys(True, True))
        tensors = TensorDict({name: getattr(loss, name) for name in names}, [])
        setattr(updater, kept, tensors.select(*keys).lock_())


def _check_move(loss: LossModule, step: MoveTargets) -> None:
    updater = step.updater
    if getattr(updater, "loss_module", loss) is not loss:
        raise O2OSpecError(
            f"got a {type(updater).__name__} of another loss, expected one of this {type(loss).__name__}; build it "
            "from this loss"
        )
    if step.names is not None and not isinstance(updater, SoftUpdate):
        raise O2OSpecError(
            f"got names={step.names} with a {type(updater).__name__}, expected a SoftUpdate; leave names out or use "
            "torchrl.objectives.SoftUpdate"
        )
    missing = [name for name in step.names or () if not target_pairs(loss, (name,))]
    if missing:
        raise O2OSpecError(
            f"got names={step.names}, expected networks with targets, but {type(loss).__name__} has no target of "
            f"{missing[0]!r}; correct the names"
        )


def _warn_of_still_targets(loss: LossModule, steps: Sequence[Step]) -> None:
    """Warn if the update trains critics but does not move their targets."""
    if any(isinstance(step, MoveTargets) for step in walk(tuple(steps))):
        return
    state = state_of(loss)
    critic_steps = [step for step in descends_of(tuple(steps)) if step.name == "qvalue"]
    trained = {id(param) for step in critic_steps for param in step.parameters}
    still = [target for target, source in target_pairs(loss).items() if id(state[source]) in trained]
    if still:
        warnings.warn(
            f"no step of this update moves {still[0].partition('.')[0]}, whose critics it trains; add "
            "MoveTargets(SoftUpdate(loss, tau=0.005)) after their step, unless the targets are moved elsewhere",
            stacklevel=4,
        )


def _not_finite(metrics: Mapping[str, Tensor]) -> NonFiniteError:
    """The error for losses of a compiled update that are not finite."""
    losses = {name: value for name, value in metrics.items() if name.startswith("loss_")}
    bad = [name for name, value in losses.items() if not value.isfinite().all()]
    culprits = ", ".join(bad) or f"a gradient, or a loss of an earlier minibatch, of {', '.join(losses)}"
    return NonFiniteError(
        f"not finite: {culprits}. Expected finite losses and gradients; check the batch, lower the learning rate or "
        "clip the gradient, and resume from the last checkpoint"
    )


def _described(steps: Sequence[Step], indent: str) -> list[str]:
    out: list[str] = []
    for step in steps:
        if isinstance(step, Descend):
            clip = "" if step.clip_grad_norm is None else f", clip_grad_norm={step.clip_grad_norm}"
            scale = "" if step.scale == 1.0 else f", scale={step.scale}"
            out.append(f"{indent}Descend({step.name!r}, {type(step.optim).__name__}{clip}{scale})")
        elif isinstance(step, Copy):
            out.append(f"{indent}Copy({step.source!r}, {step.target!r})")
        elif isinstance(step, MoveTargets):
            some = "" if step.names is None else f", {step.names}"
            out.append(f"{indent}MoveTargets({type(step.updater).__name__}{some})")
        elif isinstance(step, Ghost):
            out.append(f"{indent}Ghost({step.step.name!r})")
        else:
            count = "" if isinstance(step, Joint | Whole) else step.times if isinstance(step, Repeat) else step.interval
            count = f"{count}, first=True" if isinstance(step, Every) and step.first else count
            out += [f"{indent}{type(step).__name__}({count})", *_described(step.steps, indent + "  ")]
    return out
