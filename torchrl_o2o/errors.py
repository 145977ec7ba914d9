# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""The errors this package raises on purpose. Each message says what was got, what was expected and how to mend it."""

from __future__ import annotations

import operator
from typing import Any

__all__ = [
    "O2OCheckpointError",
    "O2ODataError",
    "O2OError",
    "O2OSpecError",
    "check_count",
    "check_number",
    "check_option",
    "check_order",
    "check_seed",
]


class O2OError(Exception):
    """Base of every error that torchrl_o2o raises about its inputs.

    Examples:
        >>> from torchrl_o2o.errors import O2ODataError, O2OError
        >>> issubclass(O2ODataError, O2OError)
        True
    """


class O2ODataError(O2OError, ValueError):
    """A data set is unusable as given: missing, truncated, misaligned, not finite, or outside the action box."""


class O2OSpecError(O2OError, ValueError):
    """Two things that must fit do not: data and environment, network and spec, name and registry, option and range."""


class O2OCheckpointError(O2OError, RuntimeError):
    """A checkpoint cannot be written or read back as what it claims to be."""


def check_option(name: str, value: str, known: tuple[str, ...]) -> None:
    """Refuse a word that is not an option.

    Args:
        name: the argument's name.
        value: what was given.
        known: what is accepted.

    Raises:
        O2OSpecError: if ``value`` is not among ``known``.

    Examples:
        >>> check_option("actor_q", "mean", ("mean", "min"))
    """
    if value not in known:
        raise O2OSpecError(f"got {name}={value!r}, expected one of {', '.join(map(repr, known))}")


def check_order(name: str, bounds: tuple[float, float]) -> None:
    """Refuse bounds in the wrong order, which clamping would take for one constant.

    Args:
        name: the argument's name.
        bounds: (lo, hi).

    Raises:
        O2OSpecError: if lo is not below hi.

    Examples:
        >>> check_order("log_std_bounds", (-5.0, 2.0))
    """
    low, high = bounds
    if not low < high:
        raise O2OSpecError(f"got {name}=({low}, {high}), expected (lo, hi) with lo below hi, for example (-5, 2)")


def check_count(name: str, value: Any, *, least: int = 0) -> int:
    """Read a number of things: an integer of Python or numpy, not below the least.

    Args:
        name: the argument's name.
        value: what was given.

    Keyword Args:
        least: the smallest that is accepted. Defaults to 0.

    Returns:
        The number as Python's ``int``, which files can hold.

    Raises:
        O2OSpecError: if it is no integer or too small; ``True`` is none.

    Examples:
        >>> check_count("pool_size", 1024, least=1)
        1024
        >>> check_count("pool_size", 0, least=1)
        Traceback (most recent call last):
        ...
        torchrl_o2o.errors.O2OSpecError: got pool_size=0, expected a whole number of at least 1
    """
    try:
        number = least - 1 if isinstance(value, bool) else operator.index(value)
    except TypeError:
        number = least - 1
    if number < least:
        raise O2OSpecError(f"got {name}={value!r}, expected a whole number of at least {least}")
    return number


def check_number(name: str, value: Any, *, above: float | None = None, least: float | None = None) -> None:
    """Refuse a number that is not finite or out of range.

    Args:
        name: the argument's name.
        value: what was given.

    Keyword Args:
        above: the largest number that is too small, ``None`` (default) for none.
        least: the smallest that is accepted, ``None`` (default) for none.

    Raises:
        O2OSpecError: if it is none in that range.

    Examples:
        >>> check_number("reward_scale", 0.1, above=0)
        >>> check_number("reward_scale", float("inf"), above=0)
        Traceback (most recent call last):
        torchrl_o2o.errors.O2OSpecError: got reward_scale=inf, expected a finite number above 0
    """
    fits = (above is None or value > above) and (least is None or value >= least)
    if not fits or not abs(value) < float("inf"):
        bound = f" above {above}" if above is not None else "" if least is None else f" of at least {least}"
        raise O2OSpecError(f"got {name}={value}, expected a finite number{bound}")


def check_seed(seed: Any, name: str = "seed", *, below: int | None = None) -> int:
    """Read a seed: an integer of Python or numpy, not negative.

    Args:
        seed: what was given.
        name: the argument's name.

    Keyword Args:
        below: the first integer that is too large; ``None`` (default) is no limit.

    Returns:
        The seed as Python's ``int``, which every library takes.

    Raises:
        O2OSpecError: if it is no such integer; ``True`` is none.

    Examples:
        >>> check_seed(7)
        7
    """
    try:
        number = -1 if isinstance(seed, bool) else operator.index(seed)
    except TypeError:
        number = -1
    if number < 0 or (below is not None and number >= below):
        limit = "not negative" if below is None else f"in [0, {below})"
        raise O2OSpecError(f"got {name}={seed!r}, a {type(seed).__name__}; expected an integer, {limit}")
    return number
