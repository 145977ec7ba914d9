# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""The provenance of a run: its configuration in plain JSON values, its command, versions and commit.

Environment variables are never recorded, not even if a configuration refers to one, because they may hold secrets.
torch is imported only when a run is described.
"""

from __future__ import annotations

import dataclasses
import math
import platform
import re
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path, PurePath
from typing import Any

import numpy as np
from omegaconf import OmegaConf, SCMode

from torchrl_o2o.errors import O2OSpecError

__all__ = ["describe_run", "git_commit", "package_versions", "plain_config", "plain_number"]

_PACKAGES = ("torchrl_o2o", "torch", "torchrl", "tensordict", "gymnasium", "mujoco", "dm_control", "numpy")
_GIT_TIMEOUT_SECONDS = 10
# Options that prevent git from running commands of a checkout's own configuration.
_GIT_HARMLESS = ("core.fsmonitor=false", "core.hooksPath=/dev/null", "status.submoduleSummary=false")
_REFERENCE = re.compile(r"(?<!\\)\$\{\s*(\.*[A-Za-z_0-9][\w\-]*(?:\.[\w\-]+|\[[\w\-]+\])*)\s*\}")
_DEPTH = 20


def plain_number(value: float) -> float | int | str:
    """Turn a number into a JSON value: JSON has no NaN or infinity, they become ``"nan"``, ``"inf"``, ``"-inf"``.

    Args:
        value: an int or float; ``float(result)`` gives it back.

    Examples:
        >>> plain_number(1.5), plain_number(3), plain_number(float("nan")), plain_number(-math.inf)
        (1.5, 3, 'nan', '-inf')
    """
    return value if math.isfinite(value) else str(float(value))


def plain_config(config: Any) -> dict[str, Any]:
    """Turn a configuration into JSON values, so that it can be written, compared and hashed.

    Args:
        config: a mapping (or a Hydra configuration) or a dataclass instance of numbers, strings, paths, dtypes,
            devices, and sequences and mappings of them. Sequences become lists and non-finite floats become strings
            (:func:`plain_number`). References to other keys, such as ``${seed}`` and ``${env.id}``, are replaced by the
            values of those keys. No resolver is called: ``${oc.env:HOME}`` and the like stay unchanged.

    Returns:
        A dict with string keys.

    Raises:
        O2OSpecError: if a value cannot be represented in JSON; the message names its key.

    Examples:
        >>> plain_config({"lr": 3e-4, "hidden": (256, 256), "clip": float("inf"), "root": Path("a/b")})
        {'lr': 0.0003, 'hidden': [256, 256], 'clip': 'inf', 'root': 'a/b'}
        >>> plain_config({"optim": {"class": object()}})
        Traceback (most recent call last):
        torchrl_o2o.errors.O2OSpecError: config value optim.class is a object, ...
    """
    plain = _plain(config, "config")
    if not isinstance(plain, dict):
        raise O2OSpecError(f"got a {type(config).__name__} as config, expected a mapping or a dataclass instance")
    return plain


def _plain(value: Any, key: str) -> Any:
    if OmegaConf.is_config(value):
        value = _referenced(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or isinstance(value, (bool, str)):
        return value
    if isinstance(value, (int, float)):
        return plain_number(value)
    if isinstance(value, PurePath) or _is_of_torch(value):
        return str(value)
    if isinstance(value, Mapping):
        return {str(name): _plain(item, f"{key}.{name}") for name, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, bytes | bytearray):
        return [_plain(item, f"{key}.{index}") for index, item in enumerate(value)]
    raise O2OSpecError(
        f"config value {key.removeprefix('config.')} is a {type(value).__name__}, "
        "expected a number, string, path, list or mapping; store what it is made from instead"
    )


def _is_of_torch(value: Any) -> bool:
    """Whether a value is a dtype or device of torch. If torch is not imported, there are none."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(value, (torch.dtype, torch.device))


def _referenced(config: Any) -> Any:
    """A Hydra configuration as plain values; only references to other keys are resolved.

    Resolvers (``${name:...}``) can read environment variables and files, so they are never called: everything except
    ``${key}`` and ``${a.b.c}`` stays as text.
    """
    raw, root = (
        OmegaConf.to_container(node, resolve=False, structured_config_mode=SCMode.DICT)
        for node in (config, config._get_root())
    )
    here = [] if config._get_parent() is None else str(config._get_full_key(None)).replace("]", "").split(".")
    return _replaced(raw, [part for word in here for part in word.split("[")], root, depth=0)


def _replaced(value: Any, place: list[str], root: Any, depth: int) -> Any:
    if isinstance(value, dict):
        return {key: _replaced(item, [*place, str(key)], root, depth) for key, item in value.items()}
    if isinstance(value, list):
        return [_replaced(item, [*place, str(index)], root, depth) for index, item in enumerate(value)]
    if not isinstance(value, str) or "${" not in value or depth > _DEPTH:
        return value
    whole = _REFERENCE.fullmatch(value)
    if whole:
        found, where = _look_up(whole[1], place, root)
        return value if where is None else _replaced(found, where, root, depth + 1)
    return _REFERENCE.sub(lambda match: _word(match, place, root, depth), value)


def _word(match: re.Match[str], place: list[str], root: Any, depth: int) -> str:
    """A reference within a longer text."""
    found, where = _look_up(match[1], place, root)
    if where is None or isinstance(found, (dict, list)):
        return match[0]
    return str(_replaced(found, where, root, depth + 1))


def _look_up(key: str, place: list[str], root: Any) -> tuple[Any, list[str] | None]:
    """The value of a key and its path; ``None`` if it does not exist. Leading dots make the key relative."""
    dots = len(key) - len(key.lstrip("."))
    words = [word for word in re.split(r"[.\[\]]+", key) if word]
    where = [*(place[: len(place) - dots] if dots else []), *words]
    for word in where:
        if isinstance(root, list) and word.isdecimal() and int(word) < len(root):
            root = root[int(word)]
        elif isinstance(root, dict) and any(str(name) == word for name in root):
            root = next(value for name, value in root.items() if str(name) == word)
        else:
            return None, None
    return root, where


def package_versions() -> dict[str, str | None]:
    """Look up the versions of Python and of the packages that affect a run's numbers, without importing them.

    Returns:
        Version strings by package name; None for a package that is not installed.

    Examples:
        >>> sorted(package_versions())
        ['dm_control', 'gymnasium', 'mujoco', 'numpy', 'python', 'tensordict', 'torch', 'torchrl', 'torchrl_o2o']
    """
    return {"python": platform.python_version()} | {name: _version(name) for name in _PACKAGES}


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def git_commit(folder: Path) -> dict[str, Any] | None:
    """Find the commit of a folder's checkout.

    Args:
        folder: any folder.

    Returns:
        ``{"hash": str, "dirty": bool}`` (dirty: tracked files differ from the commit), or None outside a checkout.

    Examples:
        >>> git_commit(Path("/")) is None
        True
    """
    head = _git(folder, "rev-parse", "HEAD")
    if head is None:
        return None
    words = ["status", "--porcelain", "--untracked-files=no", "--ignore-submodules=all"]
    return {"hash": head, "dirty": bool(_git(folder, *words, without=_filters(folder)))}


def _filters(folder: Path) -> list[str]:
    """Settings that turn off a checkout's filter commands."""
    named = _git(folder, "config", "--name-only", "--get-regexp", r"^filter\..*\.(clean|smudge|process|required)$")
    return [f"{name}={'false' if name.endswith('.required') else ''}" for name in (named or "").splitlines()]


def _git(folder: Path, *words: str, without: Sequence[str] = ()) -> str | None:
    """Run git so that the folder's configuration cannot run commands (no monitor, hooks, filters, index update)."""
    settings = [word for setting in (*_GIT_HARMLESS, *without) for word in ("-c", setting)]
    command = ["git", "--no-optional-locks", "--no-pager", *settings, "-C", str(folder), *words]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=_GIT_TIMEOUT_SECONDS)
    except (OSError, subprocess.TimeoutExpired):  # a run does not need git
        return None
    return answer.stdout.strip() if answer.returncode == 0 else None


def describe_run(config: Mapping[str, Any]) -> dict[str, Any]:
    """Describe the running process: its settings, command, versions and threads.

    Args:
        config: JSON values, see :func:`plain_config`.

    Returns:
        ``config``; ``command``, the words of the command line quoted for a shell; ``commit`` of the running script's
        checkout, see :func:`git_commit`; ``versions``; ``threads`` of torch; ``started``, the time (UTC, ISO 8601).

    Examples:
        >>> sorted(describe_run({"seed": 1}))
        ['command', 'commit', 'config', 'started', 'threads', 'versions']
    """
    import torch  # late, because programs that must start quickly import the base layer

    script_folder = Path(sys.argv[0]).resolve().parent
    return {
        "config": dict(config),
        "command": shlex.join(sys.argv),
        "commit": git_commit(script_folder) or git_commit(Path.cwd()),
        "versions": package_versions(),
        "threads": torch.get_num_threads(),
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
    }
