# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""The errors this package raises on purpose. Each message says what was got, what was expected and how to fix it."""

from __future__ import annotations

import math
import operator
import sys
from collections.abc import Collection, Mapping
from typing import Any

__all__ = [
    "O2OCheckpointError",
    "O2ODataError",
    "O2OError",
    "O2OSpecError",
    "as_float",
    "check_compiler",
    "check_count",
    "check_number",
    "check_option",
    "check_order",
    "check_seed",
    "check_state",
    "check_unmasked",
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
    """Two things do not fit together: data and environment, network and spec, name and registry, option and range."""


class O2OCheckpointError(O2OError, RuntimeError):
    """A checkpoint cannot be written, or cannot be read because it is damaged or does not fit."""


def check_option(name: str, value: str, known: tuple[str, ...]) -> None:
    """Raise if a word is not one of the options.

    Args:
        name: the argument's name.
        value: the given value.
        known: the accepted values.

    Raises:
        O2OSpecError: if ``value`` is not among ``known``.

    Examples:
        >>> check_option("actor_q", "mean", ("mean", "min"))
    """
    if value not in known:
        raise O2OSpecError(f"got {name}={value!r}, expected one of {', '.join(map(repr, known))}")


def check_order(name: str, bounds: tuple[float, float]) -> None:
    """Raise if bounds are in the wrong order, because clamping with them would return a constant.

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
    """Check a count: an integer of Python or numpy, not below ``least``.

    Args:
        name: the argument's name.
        value: the given value.

    Keyword Args:
        least: the smallest accepted value. Defaults to 0.

    Returns:
        The number as Python's ``int``, which files can hold.

    Raises:
        O2OSpecError: if it is not an integer, or too small; ``True`` is not accepted.

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


def as_float(value: Any) -> float:
    """A given number as a float; NaN for a text and what else is no number, which no range contains.

    Args:
        value: the given value.

    Examples:
        >>> as_float(1), as_float("1"), as_float(None)
        (1.0, nan, nan)
    """
    try:
        return math.nan if isinstance(value, str) else float(value)
    except (TypeError, ValueError, RuntimeError):  # no number, or an array of several
        return math.nan


def check_number(name: str, value: Any, *, above: float | None = None, least: float | None = None) -> None:
    """Raise if a number is not finite or out of range.

    Args:
        name: the argument's name.
        value: the given value.

    Keyword Args:
        above: exclusive lower bound; ``None`` (default) for none.
        least: inclusive lower bound; ``None`` (default) for none.

    Raises:
        O2OSpecError: if it is not a finite number in that range.

    Examples:
        >>> check_number("reward_scale", 0.1, above=0)
        >>> check_number("reward_scale", float("inf"), above=0)
        Traceback (most recent call last):
        torchrl_o2o.errors.O2OSpecError: got reward_scale=inf, expected a finite number above 0
    """
    number = as_float(value)
    fits = (above is None or number > above) and (least is None or number >= least)
    if not fits or not math.isfinite(number):
        bound = f" above {above}" if above is not None else "" if least is None else f" of at least {least}"
        raise O2OSpecError(f"got {name}={value}, expected a finite number{bound}")


def check_seed(seed: Any, name: str = "seed", *, below: int | None = None) -> int:
    """Check a seed: an integer of Python or numpy, not negative.

    Args:
        seed: the given value.
        name: the argument's name.

    Keyword Args:
        below: exclusive upper bound; ``None`` (default) is 2**63, torch's limit.

    Returns:
        The seed as Python's ``int``, which every library accepts.

    Raises:
        O2OSpecError: if it is not such an integer; ``True`` is not accepted.

    Examples:
        >>> check_seed(7)
        7
    """
    try:
        number = -1 if isinstance(seed, bool) else operator.index(seed)
    except TypeError:
        number = -1
    if not 0 <= number < (2**63 if below is None else below):
        limit = "not negative and below 2**63" if below is None else f"in [0, {below})"
        raise O2OSpecError(f"got {name}={seed!r}, a {type(seed).__name__}; expected an integer, {limit}")
    return number


def check_unmasked(name: str, values: Any) -> None:
    """Raise for an array of which entries are masked, because numpy would read what is stored under the mask.

    Args:
        name: what the values are.
        values: anything.

    Raises:
        O2OSpecError: if an entry is masked.

    Examples:
        >>> import numpy as np
        >>> check_unmasked("scores", np.ma.array([1.0, 2.0], mask=[False, True]))
        Traceback (most recent call last):
        torchrl_o2o.errors.O2OSpecError: got scores of which 1 are masked, expected numbers; fill them, or leave them...
    """
    numpy = sys.modules.get("numpy")  # there are masked arrays only where somebody has imported it
    if numpy is not None and isinstance(values, numpy.ma.MaskedArray) and numpy.ma.is_masked(values):
        count = int(numpy.ma.getmaskarray(values).sum())
        raise O2OSpecError(f"got {name} of which {count} are masked, expected numbers; fill them, or leave them out")


def check_compiler() -> None:
    """Check that torch finds a C++ compiler for compiling graphs: ``CXX`` if that is set, otherwise ``g++``.

    Raises:
        O2OSpecError: if it finds none.

    Examples:
        >>> check_compiler()
    """
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.exc import InvalidCxxCompiler

    try:
        get_cpp_compiler()
    except InvalidCxxCompiler as error:
        raise O2OSpecError(
            "compile() needs a C++ compiler and torch finds none: install one (`apt install g++`, "
            "`xcode-select --install`), name it in the environment variable CXX, or leave compiling out "
            "(compile=false in a script; the numbers are the same)"
        ) from error


def check_state(
    owner: object,
    given: Any,
    own: Mapping[Any, Any],
    *,
    same: Mapping[str, str] | None = None,
    optional: Collection[Any] = (),
) -> None:
    """Raise if a state does not have the expected structure, before anything of it is loaded.

    Args:
        owner: the object that the state is to be loaded into.
        given: the state.
        own: the owner's current state, which shows the expected entries and their types; an entry of ``None`` may be
            anything. Numbers and tensors are counts and priorities: finite and not negative. The given state may have
            further entries, for derived classes.

    Keyword Args:
        same: entries that must be equal, each with the message if they are not. Defaults to none.
        optional: entries that may be missing. Defaults to none.

    Raises:
        O2OSpecError: naming the first entry that does not fit.

    Examples:
        >>> check_state("a counter", {"frames": 3}, {"frames": 0})
        >>> check_state("a counter", {"frames": -3}, {"frames": 0})
        Traceback (most recent call last):
        torchrl_o2o.errors.O2OSpecError: got a state of a counter in which 'frames' is -3, expected a whole number...
    """
    name = owner if isinstance(owner, str) else type(owner).__name__
    for key, words in (same or {}).items():
        if isinstance(given, Mapping) and key in given and not _equal(given[key], own[key]):
            raise O2OSpecError(words.format(given[key], own[key]))
    if found := _unlike("", given, own, optional):
        raise O2OSpecError(f"got a state of {name} in which {found}; load what its state_dict() returned, unchanged")


def _equal(one: Any, other: Any) -> bool:
    return type(one) is type(other) and one == other


def _unlike(name: str, given: Any, own: Any, optional: Collection[str] = ()) -> str | None:
    """Describe the first difference in structure between two states."""
    if isinstance(own, Mapping):
        where = f"{name!r} is" if name else "there is"
        if not isinstance(given, Mapping):
            return f"{where} {given!r:.60}, expected entries {sorted(map(str, own))}"
        if missing := [key for key in own if key not in given and key not in optional]:
            return f"{where} no {missing[0]!r}"
        pairs = [(key, given[key], own[key]) for key in own if key in given]
    elif isinstance(own, list | tuple):
        if not isinstance(given, list | tuple) or len(given) != len(own):
            return f"{name!r} is {given!r:.60}, expected {len(own)} entries"
        pairs = [(index, *pair) for index, pair in enumerate(zip(given, own, strict=True))]
    elif hasattr(own, "shape"):
        return _unlike_tensor(name, given, own)
    else:
        return _unlike_number(name, given, own)
    found = (_unlike(f"{name}.{key}" if name else str(key), one, other) for key, one, other in pairs)
    return next(filter(None, found), None)


def _unlike_tensor(name: str, given: Any, own: Any) -> str | None:
    if getattr(given, "shape", None) != own.shape:
        return f"{name!r} has shape {list(getattr(given, 'shape', []))}, expected {list(own.shape)}"
    if not bool(((given >= 0) & (given < float("inf"))).all()):
        return f"{name!r} has entries that are negative or not finite"
    return None


def _unlike_number(name: str, given: Any, own: Any) -> str | None:
    if isinstance(own, bool) or not isinstance(own, int | float):
        fits = own is None or isinstance(given, type(own))
        return None if fits else f"{name!r} is {given!r:.60}, expected {type(own).__name__}"
    number = isinstance(given, int if isinstance(own, int) else (int, float)) and not isinstance(given, bool)
    fits = number and 0 <= given < float("inf")
    return (
        None if fits else f"{name!r} is {given!r:.60}, expected a {'whole ' * isinstance(own, int)}number of at least 0"
    )
