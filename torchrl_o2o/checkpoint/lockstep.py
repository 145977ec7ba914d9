# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Resume N runs that advance in lockstep: find the newest step at which every run has a valid checkpoint."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path

from torchrl_o2o.checkpoint.folders import retire, steps, verify
from torchrl_o2o.checkpoint.manifest import DamagedError
from torchrl_o2o.errors import O2OCheckpointError

__all__ = ["common_step"]


def common_step(folders: Sequence[str | Path]) -> int | None:
    """Find the newest step at which every run has a valid checkpoint, and set newer checkpoints aside.

    A process that is killed while it saves leaves some runs one checkpoint ahead; that checkpoint is set aside with a
    warning. If it was the first round of saves, some runs have no checkpoint yet, and all runs start from the
    beginning.

    Args:
        folders: the runs' checkpoint folders.

    Returns:
        The step, or ``None`` if the runs start from the beginning.

    Raises:
        O2OCheckpointError: if some runs have checkpoints but no step in common, or a checkpoint cannot be read at the
            moment.

    Examples:
        >>> import tempfile
        >>> from torchrl_o2o.checkpoint import Checkpointer
        >>> folders = [Path(tempfile.mkdtemp()) for _ in range(2)]
        >>> print(common_step(folders))
        None
        >>> for step, folder in ((5, folders[0]), (5, folders[1]), (9, folders[0])):
        ...     Checkpointer(folder, objects={"counters": {"updates": step}}).save(step)
        >>> with warnings.catch_warnings(action="ignore"):
        ...     common_step(folders)
        5
    """
    roots = [Path(folder) for folder in folders]
    found = {str(folder): steps(folder) for folder in roots}
    if not any(found.values()):
        return None
    if _first_round(list(found.values())):
        step = None
    elif common := set.intersection(*(_valid(folder) for folder in roots)):
        step = max(common)
    else:
        raise O2OCheckpointError(
            f"got runs with valid checkpoints at the steps {found}, expected a common step; resume those with a common "
            "step together, and start the others as new runs"
        )
    for folder in roots:
        for newer in [other for other in steps(folder) if step is None or other > step]:
            target = "the start" if step is None else f"{step}"
            warnings.warn(
                f"{folder} goes back from step {newer} to {target}, the newest state that all runs have", stacklevel=2
            )
            retire(folder, newer)
    return step


def _first_round(found: Sequence[Sequence[int]]) -> bool:
    """Whether some runs have saved exactly once, all at the same step, and the others have not saved."""
    saved = [tuple(own) for own in found if own]
    return len(saved) < len(found) and len(set(saved)) == 1 and len(saved[0]) == 1


def _valid(folder: Path) -> set[int]:
    valid = set()
    for step in steps(folder):
        try:
            verify(folder, step)
            valid.add(step)
        except DamagedError as error:
            warnings.warn(f"{error}; it is set aside", stacklevel=3)
    return valid
