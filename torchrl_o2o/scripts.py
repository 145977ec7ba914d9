# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Finding and starting the scripts of `sota-implementations/`, which live beside the package in a source checkout."""

from __future__ import annotations

import difflib
import sys
from collections.abc import Sequence
from pathlib import Path

from torchrl_o2o.errors import O2OSpecError

__all__ = ["find_script", "script_command"]

_SCRIPTS = Path(__file__).resolve().parents[1] / "sota-implementations"


def find_script(name: str) -> Path:
    """Locate the script of an algorithm.

    Args:
        name: a folder of ``sota-implementations``, for example ``"rlpd"``, or one of its other scripts, for example
            ``"rlpd/rlpd_seeds"``.

    Returns:
        The script's path.

    Raises:
        O2OSpecError: if the package does not run from a source checkout, or there is no such script.

    Examples:
        >>> from torchrl_o2o.scripts import find_script
        >>> find_script("rlpd").name
        'rlpd.py'
    """
    if not _SCRIPTS.is_dir():
        raise O2OSpecError(
            f"the training scripts are not part of the installed package (looked in {_SCRIPTS}); clone the "
            "repository and install it with pip install -e ."
        )
    scripts = {f"{path.parent.name}/{path.stem}": path for path in sorted(_SCRIPTS.glob("*/*.py"))}
    if name in scripts:
        return scripts[name]
    known = [path.stem for path in scripts.values() if path.stem == path.parent.name]
    if name not in known:
        close = difflib.get_close_matches(name, known)
        hint = f" ({close[0]}?)" if close else ""
        raise O2OSpecError(f"no script is called {name!r}; there are {', '.join(known)}{hint}")
    return _SCRIPTS / name / f"{name}.py"


def script_command(name: str, overrides: Sequence[str]) -> list[str]:
    """The command line that starts a script in this interpreter.

    Args:
        name: as in :func:`find_script`.
        overrides: Hydra overrides, for example ``["task=halfcheetah-linear-mix-cpu", "seed=1"]``.

    Returns:
        The words of the command.

    Examples:
        >>> from torchrl_o2o.scripts import script_command
        >>> script_command("rlpd", ["seed=1"])[2:]
        ['seed=1']
    """
    return [sys.executable, str(find_script(name)), *overrides]
