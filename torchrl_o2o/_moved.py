# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Deprecated modules and names of the first edition: they work for one release, with a warning."""

from __future__ import annotations

import functools
import importlib
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any, ParamSpec, TypeVar

__all__ = ["MOVED", "install", "old_names", "renamed_arguments"]

P = ParamSpec("P")
T = TypeVar("T")

#: Old module -> new one, both below ``torchrl_o2o``.
MOVED = {
    "acting": "collectors.numpy_actor",
    "cli": "commands.cli",
    "collect": "collectors.single",
    "collect_vector": "collectors.vector",
    "compiled": "updates",
    "conventions": "data.conventions",
    "curves": "record.curves",
    "demo": "commands.demo_summary",
    "diagnostics": "functional.diagnostics",
    "encoding": "trainers.encoding",
    "env_faults": "envs.guard",
    "env_state": "envs.snapshot",
    "evaluation": "trainers.evaluation",
    "export": "deploy.export",
    "figures": "record.figures",
    "functional_alignment": "functional.alignment",
    "functional_conservative": "functional.conservative",
    "functional_off2on": "functional.off2on",
    "functional_offline": "functional.offline",
    "functional_replay": "functional.replay",
    "functional_samg": "functional.samg",
    "handover": "trainers.handover",
    "interrupt": "trainers.interrupt",
    "launch": "trainers.launch",
    "matmul": "updates.matmul",
    "objectives.noise": "functional.noise",
    "optim": "trainers.optim",
    "pipeline": "trainers.pipeline",
    "report": "record.report",
    "runs": "record.runs",
    "scores": "envs.scores",
    "session": "trainers.session",
    "sinks": "record.sinks",
}
_ROOT = "torchrl_o2o."


class _Redirect(MetaPathFinder, Loader):
    """Import a moved module from its new place. Python asks this finder only after all others have failed."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        known = fullname.startswith(_ROOT) and fullname.removeprefix(_ROOT) in MOVED
        return ModuleSpec(fullname, self) if known else None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        new = _ROOT + MOVED[spec.name.removeprefix(_ROOT)]
        warnings.warn(
            f"{spec.name} has moved to {new}; the next release removes the old path", DeprecationWarning, stacklevel=2
        )
        module = importlib.import_module(new)
        self._spec, spec.loader_state = module.__spec__, module.__spec__
        return module

    def exec_module(self, module: ModuleType) -> None:
        """Restore only the module's own specification, because it was already executed under its new name."""
        module.__spec__ = self._spec


def install() -> None:
    """Make the old paths importable; nothing is imported until one of them is."""
    if not any(isinstance(finder, _Redirect) for finder in sys.meta_path):
        sys.meta_path.append(_Redirect())


def renamed_arguments(**renamed: str) -> Callable[[Callable[P, T]], Callable[P, T]]:
    """Let a function accept keyword arguments by their old names for one release, with a warning.

    Args:
        renamed: new names by old name.

    Examples:
        >>> import warnings
        >>> @renamed_arguments(standardise="standardize")
        ... def scale(*, standardize: bool) -> bool:
        ...     return standardize
        >>> with warnings.catch_warnings():
        ...     warnings.simplefilter("ignore", DeprecationWarning)
        ...     scale(standardise=True)
        True
    """

    def decorate(function: Callable[P, T]) -> Callable[P, T]:
        @functools.wraps(function)
        def call(*args: P.args, **kwargs: P.kwargs) -> T:
            named: dict[str, Any] = dict(kwargs)
            for old in [name for name in renamed if name in named]:
                new = renamed[old]
                if new in named:
                    raise TypeError(f"got both {new!r} and its old name {old!r}; leave {old!r} out")
                _warn(f"the argument {old!r} is now called {new!r}")
                named[new] = named.pop(old)
            return function(*args, **named)

        return call

    return decorate


def old_names(module: str, names: Mapping[str, Any]) -> Callable[[str], Any]:
    """A module's ``__getattr__`` for functions and classes that were renamed, or moved to other modules.

    Args:
        module: its ``__name__``.
        names: functions and classes by old name.

    Examples:
        >>> old_names("here", {"summarise": sum})("nothing")
        Traceback (most recent call last):
        ...
        AttributeError: module 'here' has no attribute 'nothing'
    """

    def lookup(name: str) -> Any:
        if name not in names:
            raise AttributeError(f"module {module!r} has no attribute {name!r}")
        new = names[name]
        moved = new.__name__ == name
        _warn(f"{module}.{name} {f'has moved to {new.__module__}' if moved else f'is now called {new.__name__}'}")
        return new

    return lookup


def _warn(text: str) -> None:
    warnings.warn(f"{text}; the next release removes the old name", DeprecationWarning, stacklevel=3)
