# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""The steps of an update. They are only descriptions, which :class:`~torchrl_o2o.updates.Update` executes."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torchrl.objectives.utils import TargetNetUpdater

from torchrl_o2o.arguments import checked_arguments
from torchrl_o2o.errors import O2OSpecError, check_count, check_number

__all__ = [
    "WHOLE",
    "Copy",
    "Descend",
    "Every",
    "Ghost",
    "Joint",
    "MoveTargets",
    "Plan",
    "Primitive",
    "Repeat",
    "Step",
    "Whole",
    "check_descends",
    "check_norm",
    "descends_of",
    "moves_targets",
    "plan",
    "repeat_of",
    "stepped",
    "walk",
]

#: In a plan, the index that stands for all minibatches together.
WHOLE = -1


def check_descends(optim: torch.optim.Optimizer, name: str) -> None:
    """Raise for an optimizer that does not make a step of descent by one given gradient.

    Args:
        optim: the optimizer.
        name: of its loss, for the message.

    Raises:
        O2OSpecError: if it is no optimizer, evaluates the loss itself, as ``LBFGS`` does, ascends, or is
            differentiated.

    Examples:
        >>> check_descends(torch.optim.Adam([torch.nn.Parameter(torch.zeros(1))]), "actor")
    """
    if not isinstance(optim, torch.optim.Optimizer):
        raise O2OSpecError(
            f"got a {type(optim).__name__} for {name!r}, expected an optimizer, such as torch.optim.Adam of the loss's "
            "parameters; step schedulers of its learning rate yourself, after the update"
        )
    closure = inspect.signature(optim.step).parameters.get("closure")
    if closure is not None and closure.default is closure.empty:
        raise O2OSpecError(
            f"got {type(optim).__name__} for {name!r}, whose step evaluates the loss several times, "
            "expected an optimizer that uses one gradient; use Adam or SGD, for example"
        )
    for group in optim.param_groups:
        for option in ("maximize", "differentiable"):
            if group.get(option):
                raise O2OSpecError(
                    f"got {option}=True in {type(optim).__name__} of {name!r}, expected False, because "
                    "this step descends, and no gradient passes through it; leave the option out"
                )


def check_norm(name: str, norm: float | None) -> None:
    """Raise for a bound of the gradient's norm that would erase the gradient or change its sign.

    Args:
        name: of the argument.
        norm: the bound; ``None`` is none.

    Raises:
        O2OSpecError: if it is not positive.

    Examples:
        >>> check_norm("clip_grad_norm", 1.0)
    """
    if norm is not None and not norm > 0.0:
        raise O2OSpecError(f"got {name}={norm}, expected a positive number, or None")


@checked_arguments
@dataclass(frozen=True, eq=False)
class Descend:
    """One step of gradient descent on one loss.

    Args:
        name: ``"qvalue"`` stands for ``loss.qvalue_loss(batch)``, and so on.
        optim: optimizer with the trained parameters; no other parameter gets a gradient.
        clip_grad_norm: largest norm of the gradient over all parameters of ``optim``; ``None`` (default) does not clip.
        scale: factor of the loss. Defaults to 1; SOPE's phases take half.

    Raises:
        O2OSpecError: if ``clip_grad_norm`` or ``scale`` is not positive, or the optimizer does not descend by a given
            gradient: it computes the loss itself, as ``LBFGS`` does, or has the option ``maximize`` or
            ``differentiable``.

    Examples:
        >>> weight = torch.nn.Parameter(torch.zeros(2))
        >>> Descend("actor", torch.optim.Adam([weight]), clip_grad_norm=1.0).name
        'actor'
    """

    name: str
    optim: torch.optim.Optimizer
    clip_grad_norm: float | None = None
    scale: float = 1.0

    def __post_init__(self) -> None:
        """Check the bound, the scale and the optimizer."""
        check_descends(self.optim, self.name)
        check_number("scale", self.scale, above=0)
        check_norm("clip_grad_norm", self.clip_grad_norm)

    @property
    def parameters(self) -> list[torch.nn.Parameter]:
        """The trained parameters."""
        return [param for group in self.optim.param_groups for param in group["params"]]


@checked_arguments
@dataclass(frozen=True, eq=False)
class MoveTargets:
    """Move the target networks.

    Args:
        updater: for example :class:`torchrl.objectives.SoftUpdate` of the update's loss.
        names: networks whose targets are moved, such as ``("actor_network",)``, by a ``SoftUpdate``; ``None`` (default)
            moves all targets of the loss.

    Raises:
        O2OSpecError: if ``names`` is empty, so that nothing would move.

    Examples:
        >>> from torchrl.objectives import SoftUpdate
        >>> from torchrl_o2o.modules import make_actor, make_qvalue_ensemble
        >>> from torchrl_o2o.objectives import EnsembleSACLoss
        >>> actor = make_actor(3, 2, hidden_sizes=(8,))
        >>> loss = EnsembleSACLoss(actor, make_qvalue_ensemble(3, 2, num_qvalue_nets=2, hidden_sizes=(8,)))
        >>> move = MoveTargets(SoftUpdate(loss, tau=0.005), ("qvalue_network",))  # as the last step of an Update
        >>> move.names
        ('qvalue_network',)
    """

    updater: TargetNetUpdater
    names: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        """Check that something moves."""
        if self.names is not None and not self.names:
            raise O2OSpecError(
                "got names=(), with which no target moves, expected names of networks; leave names out to move all "
                "targets"
            )


@dataclass(frozen=True, eq=False)
class Ghost:
    """An optimizer step with a gradient of zero (a ghost step): its moments decay and still move the parameters.

    WSRL's code makes one with every optimizer whose loss a call leaves out. This is for parity with that code only;
    without ghost steps, an equivalent learning rate is larger by the root of (steps + ghosts) / steps.

    Args:
        step: the step that trains these parameters, elsewhere in the update.

    Examples:
        >>> weight = torch.nn.Parameter(torch.zeros(2))
        >>> Ghost(Descend("actor", torch.optim.Adam([weight]))).step.name
        'actor'
    """

    step: Descend


@dataclass(frozen=True, eq=False)
class Copy:
    """Copy some tensors of the loss to others, once per call, before all other steps.

    In RLPD from pixels, the actor uses the critics' convolutions as they were at the start of the last call.

    Args:
        source: prefix of the names of the copied tensors, see :func:`~torchrl_o2o.updates.state.state_of`.
        target: prefix of the names of the overwritten tensors; the rest of their names is as in the source.

    Examples:
        >>> Copy("encoder_network_params.module.conv", "actor_network_params.module.0.module.encoder.conv").source
        'encoder_network_params.module.conv'
    """

    source: str
    target: str


class Joint:
    """Several steps of gradient descent whose gradients are all taken at the parameters before the first step.

    CQL, Cal-QL and CORL's IQL update this way. A :class:`MoveTargets` among the steps is executed after all gradients
    and before the first step, as in FQL's and QC's codes: the targets then follow the networks from before the steps,
    and the gradients use the targets from before.

    Args:
        steps: one or more :class:`Descend`, and any :class:`MoveTargets`.

    Raises:
        O2OSpecError: if there is another kind of step among them, or no :class:`Descend`.

    Examples:
        >>> optim = torch.optim.Adam([torch.nn.Parameter(torch.zeros(2))])
        >>> critic, actor = Descend("qvalue", optim), Descend("actor", optim)  # each with an optimizer of its own
        >>> [step.name for step in Joint(critic, actor).descends]
        ['qvalue', 'actor']
    """

    def __init__(self, *steps: Descend | MoveTargets) -> None:
        known = all(isinstance(step, Descend | MoveTargets) for step in steps)
        if not known or not any(isinstance(step, Descend) for step in steps):
            raise O2OSpecError(
                f"got Joint of {[type(step).__name__ for step in steps]}, expected Descend(...) steps and, optionally, "
                "MoveTargets; move other steps out of Joint"
            )
        self.steps = steps

    @property
    def descends(self) -> tuple[Descend, ...]:
        """The steps of gradient descent."""
        return tuple(step for step in self.steps if isinstance(step, Descend))

    @property
    def moves(self) -> tuple[MoveTargets, ...]:
        """The targets that follow the networks from before the steps."""
        return tuple(step for step in self.steps if isinstance(step, MoveTargets))


class Every:
    """Steps that are executed only every ``interval``-th time.

    ``Every(2, ...)`` executes its steps at the second, fourth, ... time, as for TD3's delayed actor, and
    ``Every(2, ..., first=True)`` at the first, third, ... time. The count is part of the update's ``state_dict()``.

    Args:
        interval: at least 1.
        steps: the steps that are executed then.

    Keyword Args:
        first: whether the steps are executed at the first turn. Defaults to ``False``: they start at the
            ``interval``-th.

    Source: Fujimoto et al. 2018 (TD3), arXiv:1802.09477, Algorithm 1.

    Raises:
        O2OSpecError: if ``interval`` is below 1, or there is no step.

    Examples:
        >>> optim = torch.optim.Adam([torch.nn.Parameter(torch.zeros(2))])
        >>> critic, actor = Descend("qvalue", optim), Descend("actor", optim)  # each with an optimizer of its own
        >>> steps = critic, Every(2, actor)  # of an Update
        >>> counts = {}
        >>> for _ in range(3):
        ...     print([step.name for step in plan(steps, counts).parts[0]])
        ['qvalue']
        ['qvalue', 'actor']
        ['qvalue']
    """

    def __init__(self, interval: int, *steps: Descend | Joint | MoveTargets | Ghost, first: bool = False) -> None:
        self.interval = check_count("the interval of Every", interval, least=1)
        _check_steps(f"Every({interval})", steps, (Descend, Joint, MoveTargets, Ghost))
        self.steps, self.first = steps, first


class Repeat:
    """Steps that are executed once on each of ``times`` minibatches, one after the other.

    The update's batch is the concatenation of the minibatches. Steps after a ``Repeat`` are executed once, on the last
    minibatch (RLPD's Algorithm 1), unless they are in a :class:`Whole`. An update has at most one ``Repeat``, and only
    :class:`Copy` may come before it.

    Args:
        times: number of minibatches, the update-to-data ratio.
        steps: the steps for each minibatch.

    Source: Ball et al. 2023 (RLPD), arXiv:2302.02948, Algorithm 1.

    Raises:
        O2OSpecError: if ``times`` is below 1, or there is no step.

    Examples:
        >>> optim = torch.optim.Adam([torch.nn.Parameter(torch.zeros(2))])
        >>> critic, actor = Descend("qvalue", optim), Descend("actor", optim)  # each with an optimizer of its own
        >>> steps = Repeat(20, critic), actor  # of an Update
        >>> plan(steps, {}).minibatches
        20
    """

    def __init__(self, times: int, *steps: Descend | Joint | MoveTargets | Ghost | Every) -> None:
        self.times = check_count("the times of Repeat", times, least=1)
        _check_steps(f"Repeat({times})", steps, (Descend, Joint, MoveTargets, Ghost, Every))
        self.steps = steps


class Whole:
    """Steps that are executed once on all minibatches together, as for WSRL's actor. It must come last.

    Args:
        steps: what is done.

    Source: Zhou et al. 2024 (WSRL), arXiv:2412.07762.

    Raises:
        O2OSpecError: if there is no step.

    Examples:
        >>> optim = torch.optim.Adam([torch.nn.Parameter(torch.zeros(2))])
        >>> critic, actor = Descend("qvalue", optim), Descend("actor", optim)  # each with an optimizer of its own
        >>> steps = Repeat(4, critic), Whole(actor)  # of an Update
        >>> plan(steps, {}).sequence[-1][1] == WHOLE
        True
    """

    def __init__(self, *steps: Descend | Joint | MoveTargets | Ghost | Every) -> None:
        _check_steps("Whole", steps, (Descend, Joint, MoveTargets, Ghost, Every))
        self.steps = steps


Primitive = Copy | Descend | Joint | MoveTargets | Ghost
Step = Primitive | Every | Repeat | Whole


def _check_steps(name: str, steps: tuple[object, ...], kinds: tuple[type, ...]) -> None:
    if not steps or not all(isinstance(step, kinds) for step in steps):
        expected = ", ".join(kind.__name__ for kind in kinds)
        raise O2OSpecError(f"got {name} of {[type(step).__name__ for step in steps]}, expected steps among {expected}")


@dataclass(frozen=True)
class Plan:
    """The plan of one call of an update, in order.

    Args:
        parts: different sequences of steps, each done on one minibatch.
        sequence: pairs of a part and its minibatch, or :data:`WHOLE` for all minibatches together.
        minibatches: number of minibatches.
    """

    parts: tuple[tuple[Primitive, ...], ...]
    sequence: tuple[tuple[int, int], ...]
    minibatches: int

    @property
    def whole(self) -> frozenset[int]:
        """The parts that are done on all minibatches together."""
        return frozenset(part for part, minibatch in self.sequence if minibatch == WHOLE)


def plan(steps: tuple[Step, ...], counts: dict[int, int]) -> Plan:
    """Plan the next call of an update, and count the turns of its :class:`Every`.

    Args:
        steps: of the update.
        counts: turns so far, by the position of the :class:`Every` in the update; changed in place.

    Returns:
        The plan.

    Examples:
        >>> optim = torch.optim.Adam([torch.nn.Parameter(torch.zeros(1))])
        >>> critic, actor = Descend("qvalue", optim), Descend("actor", optim)
        >>> plan((Repeat(3, critic), actor), {}).sequence
        ((0, 0), (0, 1), (0, 2), (1, 2))
        >>> counts = {}
        >>> [len(plan((critic, Every(2, actor)), counts).parts[0]) for _ in range(4)]
        [1, 2, 1, 2]
    """
    positions = {id(step): index for index, step in enumerate(walk(steps)) if isinstance(step, Every)}

    def due(steps: tuple[Step, ...]) -> tuple[Primitive, ...]:
        out: list[Primitive] = []
        for step in steps:
            if isinstance(step, Every):
                turn = counts[positions[id(step)]] = counts.get(positions[id(step)], 0) + 1
                out += step.steps if (turn - step.first) % step.interval == 0 else ()
            elif not isinstance(step, Repeat | Whole):
                out.append(step)
        return tuple(out)

    repeat = repeat_of(steps)
    rounds = [due(repeat.steps) for _ in range(repeat.times)] if repeat is not None else []
    once, last = due(steps), steps[-1] if steps else None
    if rounds:  # copies are made before the first minibatch
        rounds[0] = (*(step for step in once if isinstance(step, Copy)), *rounds[0])
        once = tuple(step for step in once if not isinstance(step, Copy))
    sequence = [*enumerate(rounds), (max(len(rounds) - 1, 0), once)]
    if isinstance(last, Whole):
        sequence.append((WHOLE, due(last.steps)))
    sequence = [(minibatch, part) for minibatch, part in sequence if part]
    kinds = [(minibatch == WHOLE, part) for minibatch, part in sequence]
    parts = list(dict.fromkeys(kinds))
    turns = tuple((parts.index(kind), minibatch) for kind, (minibatch, _) in zip(kinds, sequence, strict=True))
    return Plan(tuple(part for _, part in parts), turns, max(len(rounds), 1))


def repeat_of(steps: tuple[Step, ...]) -> Repeat | None:
    """The steps that are executed on each minibatch.

    Args:
        steps: of the update.

    Returns:
        The :class:`Repeat`, if there is one.

    Examples:
        >>> optim = torch.optim.Adam([torch.nn.Parameter(torch.zeros(1))])
        >>> repeat_of((Copy("a", "b"), Repeat(3, Descend("qvalue", optim)))).times
        3
    """
    return next((step for step in steps if isinstance(step, Repeat)), None)


def walk(steps: tuple[Step, ...]) -> Iterator[Primitive | Every]:
    """Iterate over an update's steps from top to bottom, including nested steps.

    Args:
        steps: of the update.

    Yields:
        Every step except :class:`Repeat` and :class:`Whole`; a :class:`Joint` comes before the steps in it.
    """
    for step in steps:
        if not isinstance(step, Repeat | Whole):
            yield step
        if not isinstance(step, Copy | Descend | MoveTargets | Ghost):
            yield from walk(step.steps)


def descends_of(steps: tuple[Step, ...]) -> list[Descend]:
    """All steps of gradient descent in an update, in the order in which they stand.

    Args:
        steps: of the update.

    Returns:
        The steps, including nested ones.
    """
    return [step for step in walk(steps) if isinstance(step, Descend)]


def moves_targets(step: Primitive) -> bool:
    """Whether a step changes target networks, so that values computed from them before become stale.

    Args:
        step: of a plan.

    Returns:
        The answer.

    Examples:
        >>> moves_targets(Copy("qvalue_network_params", "target_qvalue_network_params"))
        True
    """
    if isinstance(step, Copy):
        return step.target.startswith("target_")
    return isinstance(step, MoveTargets) or (isinstance(step, Joint) and bool(step.moves))


def stepped(steps: tuple[Step, ...]) -> list[Descend]:
    """The steps whose optimizers make a step, including those in a :class:`Ghost`.

    Args:
        steps: of an update, or of a part of it.

    Returns:
        The steps, in the order in which they stand.
    """
    moving = (step for step in walk(steps) if isinstance(step, Descend | Ghost))
    return [step.step if isinstance(step, Ghost) else step for step in moving]
