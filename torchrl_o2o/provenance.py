# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""What a run was: its configuration in plain JSON values, its command, the versions and the commit it ran on.

Environment variables are never recorded, not even where a configuration asks for one: they hold secrets.
"""

from __future__ import annotations

import dataclasses
import math
import platform
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path, PurePath
from typing import Any

import numpy as np
import torch
from omegaconf import OmegaConf

from torchrl_o2o.errors import O2OSpecError

__all__ = ["describe_run", "git_commit", "package_versions", "plain_config", "plain_number"]

_PACKAGES = ("torchrl_o2o", "torch", "torchrl", "tensordict", "gymnasium", "mujoco", "numpy")
_GIT_TIMEOUT_SECONDS = 10


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
        config: a mapping (a hydra config too) or a dataclass instance of numbers, strings, paths, dtypes, devices and
            sequences and mappings of them. Sequences become lists, non-finite floats strings (:func:`plain_number`).
            Interpolations are resolved, except those of environment variables, which stay as they are written.

    Returns:
        A dict with string keys.

    Raises:
        O2OSpecError: if a value has no faithful JSON form, naming its key.

    Examples:
        >>> plain_config({"lr": 3e-4, "hidden": (256, 256), "clip": float("inf"), "root": Path("a/b")})
        {'lr': 0.0003, 'hidden': [256, 256], 'clip': 'inf', 'root': 'a/b'}
        >>> plain_config({"optim": {"class": object()}})
        Traceback (most recent call last):
        torchrl_o2o.errors.O2OSpecError: config value optim.class is a object, ...
    """
    plain = _plain(_resolved(config), "config")
    if not isinstance(plain, dict):
        raise O2OSpecError(f"config is a {type(config).__name__}, expected a mapping or a dataclass instance")
    return plain


def _resolved(config: Any) -> Any:
    """Resolve a hydra config, with interpolations of environment variables turned into the text they are."""
    if not OmegaConf.is_config(config):
        return config
    raw = OmegaConf.to_container(config, resolve=False, structured_config_mode="dict")
    if "${oc.env:" not in str(raw):
        return config
    if config._get_parent() is not None:
        raise O2OSpecError("config is a part of one with ${oc.env:...} in it; pass the whole configuration")
    return OmegaConf.to_container(OmegaConf.create(_escaped(raw)), resolve=True)


def _escaped(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _escaped(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_escaped(item) for item in value]
    return value.replace("${oc.env:", "\\${oc.env:") if isinstance(value, str) else value


def _plain(value: Any, key: str) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or isinstance(value, (bool, str)):
        return value
    if isinstance(value, (int, float)):
        return plain_number(value)
    if isinstance(value, (PurePath, torch.dtype, torch.device)):
        return str(value)
    if isinstance(value, Mapping):
        return {str(name): _plain(item, f"{key}.{name}") for name, item in value.items()}
    if isinstance(value, Sequence):
        return [_plain(item, f"{key}.{index}") for index, item in enumerate(value)]
    raise O2OSpecError(
        f"config value {key.removeprefix('config.')} is a {type(value).__name__}, "
        "expected a number, string, path, list or mapping; store what it is made from instead"
    )


def package_versions() -> dict[str, str | None]:
    """Look up the versions of Python and of the packages that decide a run's numbers, without importing them.

    Returns:
        Version strings by package name; None for a package that is not installed.

    Examples:
        >>> sorted(package_versions())
        ['gymnasium', 'mujoco', 'numpy', 'python', 'tensordict', 'torch', 'torchrl', 'torchrl_o2o']
    """
    return {"python": platform.python_version()} | {name: _version(name) for name in _PACKAGES}


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def git_commit(folder: Path) -> dict[str, Any] | None:
    """Name the commit that a folder is checked out at.

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
    return {"hash": head, "dirty": bool(_git(folder, "status", "--porcelain", "--untracked-files=no"))}


def _git(folder: Path, *words: str) -> str | None:
    try:
        answer = subprocess.run(
            ["git", "-C", str(folder), *words], capture_output=True, text=True, timeout=_GIT_TIMEOUT_SECONDS
        )
    except (OSError, subprocess.TimeoutExpired):  # no git here: a run needs none
        return None
    return answer.stdout.strip() if answer.returncode == 0 else None


def describe_run(config: Mapping[str, Any]) -> dict[str, Any]:
    """Describe the running process: what was asked of it, and what it runs on.

    Args:
        config: JSON values, see :func:`plain_config`.

    Returns:
        ``config``; ``command``, the words of the command line quoted for a shell; ``commit`` of the running script's
        checkout, see :func:`git_commit`; ``versions``; ``threads`` of torch; ``started``, the time (UTC, ISO 8601).

    Examples:
        >>> sorted(describe_run({"seed": 1}))
        ['command', 'commit', 'config', 'started', 'threads', 'versions']
    """
    script_folder = Path(sys.argv[0]).resolve().parent
    return {
        "config": dict(config),
        "command": shlex.join(sys.argv),
        "commit": git_commit(script_folder) or git_commit(Path.cwd()),
        "versions": package_versions(),
        "threads": torch.get_num_threads(),
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
    }
