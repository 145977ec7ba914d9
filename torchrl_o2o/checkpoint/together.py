# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""N run folders that stand and fall together: each a single run's, restored at one common step."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager

from torchrl_o2o.checkpoint.checkpointer import Checkpointer
from torchrl_o2o.checkpoint.folders import retire, steps, verify
from torchrl_o2o.checkpoint.manifest import DamagedError
from torchrl_o2o.errors import O2OCheckpointError

__all__ = ["AgentCheckpointer", "restore_together"]


class AgentCheckpointer:
    """Saves one agent as its single run would: within its random state, with its slices of the stacked optimizers.

    Args:
        checkpoint: the agent's own.
        stream: a context in which the global random generators are the agent's, such as
            :class:`~torchrl_o2o.seeds.RandomStream`.
        before_save: called first, for example to :meth:`~torchrl_o2o.seeds.StackedOptimizer.share` the states.

    Examples:
        >>> import tempfile
        >>> from contextlib import nullcontext
        >>> counters = {"updates": 3}
        >>> checkpoint = Checkpointer(tempfile.mkdtemp(), objects={"counters": counters})
        >>> AgentCheckpointer(checkpoint, nullcontext(), lambda: None).save(3)
    """

    def __init__(
        self, checkpoint: Checkpointer, stream: AbstractContextManager[object], before_save: Callable[[], object]
    ) -> None:
        self.checkpoint = checkpoint
        self.stream = stream
        self.before_save = before_save

    def save(self, step: int) -> None:
        """Write a checkpoint; see :meth:`~torchrl_o2o.checkpoint.Checkpointer.save`."""
        self.before_save()
        with self.stream:
            self.checkpoint.save(step)


def restore_together(agents: Sequence[AgentCheckpointer]) -> int | None:
    """Restore all agents from the newest step of which every one has a valid checkpoint.

    A process killed while it saves leaves some agents one checkpoint ahead; that one is set aside, with a warning. If
    that was the first round of saves, some agents have none yet, and all of them start afresh.

    Args:
        agents: one per agent.

    Returns:
        The step, or ``None`` if the agents start afresh.

    Raises:
        O2OCheckpointError: if some agents have checkpoints, but no step in common; or one cannot be read at the moment.

    Examples:
        >>> import tempfile
        >>> from contextlib import nullcontext
        >>> counters = [{"updates": 0}, {"updates": 0}]
        >>> checkpoints = [Checkpointer(tempfile.mkdtemp(), objects={"counters": counter}) for counter in counters]
        >>> agents = [AgentCheckpointer(each, nullcontext(), lambda: None) for each in checkpoints]
        >>> print(restore_together(agents))
        None
        >>> for agent in agents:
        ...     agent.save(5)
        >>> agents[0].save(9)
        >>> with warnings.catch_warnings(action="ignore"):
        ...     print(restore_together(agents))
        5
    """
    found = {str(agent.checkpoint.folder): steps(agent.checkpoint.folder) for agent in agents}
    if not any(found.values()):
        return None
    if _first_round(list(found.values())):
        step = None
    elif common := set.intersection(*(_valid(agent) for agent in agents)):
        step = max(common)
    else:
        raise O2OCheckpointError(
            f"the agents have no valid checkpoint of one step; they have {found}. Resume together those that stand at "
            "one step, and start the others anew"
        )
    for agent in agents:
        folder = agent.checkpoint.folder
        for newer in [other for other in steps(folder) if step is None or other > step]:
            whither = "the start" if step is None else f"{step}"
            warnings.warn(f"{folder} goes back from step {newer} to {whither}, where all agents stand", stacklevel=2)
            retire(folder, newer)
        if step is not None:
            with agent.stream:
                agent.checkpoint.restore()
    return step


def _first_round(found: Sequence[Sequence[int]]) -> bool:
    """Whether some agents have saved once, at the same step, and the others never."""
    saved = [tuple(own) for own in found if own]
    return len(saved) < len(found) and len(set(saved)) == 1 and len(saved[0]) == 1


def _valid(agent: AgentCheckpointer) -> set[int]:
    valid = set()
    for step in steps(agent.checkpoint.folder):
        try:
            verify(agent.checkpoint.folder, step)
            valid.add(step)
        except DamagedError as error:
            warnings.warn(f"{error}; it is set aside", stacklevel=3)
    return valid
