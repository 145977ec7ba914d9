# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Check the arguments of public functions against their annotations, and raise a clear error if they do not fit."""

from __future__ import annotations

import functools
import inspect
import operator
import os
from collections.abc import Callable, Collection, Iterable, Mapping
from numbers import Real
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from torchrl_o2o.errors import O2OSpecError

__all__ = ["ChecksArguments", "check_values", "checked_arguments"]

T = TypeVar("T", bound=Callable[..., Any])

_WORDS = {float: "a number", int: "a whole number", bool: "True or False", str: "a word", NoneType: "None"}
#: Any network of the same family is accepted here; the function itself checks which of them fit.
_FAMILIES = ("TensorDictModuleBase", "Module")
#: Values of these types are never accepted in place of an instance of a class.
_PLAIN = (NoneType, str, bytes, Real, list, tuple, dict)
#: Arguments that :func:`~torchrl_o2o.errors.check_seed` checks instead.
_SEEDS = ("seed", "seeds")


class _UnfitError(Exception):
    """A value does not fit its annotation."""


def checked_arguments(function: T) -> T:
    """Make a function raise an error for arguments that do not fit its annotations.

    It checks numbers, booleans, strings, choices, networks, plain values in place of other objects, and lists of these.
    NaN and ``True`` are not numbers, and ``"false"`` is not a boolean. Numbers of numpy and torch become Python
    numbers, which files can store. The default is always accepted. The function itself checks ranges.

    Args:
        function: a function, or a class for its constructor, with annotations. They are evaluated at its first call.

    Returns:
        The function with the check before its call, or the class. The check raises
        :class:`~torchrl_o2o.errors.O2OSpecError`.

    Examples:
        >>> @checked_arguments
        ... def anneal(start: float, *, steps: int = 10, kind: Literal["linear", "cosine"] = "linear") -> float:
        ...     return start
        >>> anneal(0.5, steps=10)
        0.5
        >>> anneal(float("nan"))
        Traceback (most recent call last):
        torchrl_o2o.errors.O2OSpecError: got start=nan, expected a number
        >>> anneal(0.5, kind="cubic")
        Traceback (most recent call last):
        torchrl_o2o.errors.O2OSpecError: got kind='cubic', expected one of 'linear', 'cosine'
    """
    if isinstance(function, type):
        function.__init__ = checked_arguments(function.__init__)
        return function  # type: ignore[return-value]
    signature = inspect.signature(function)

    @functools.cache
    def kinds() -> dict[str, Any]:
        return _kinds_of(function)

    @functools.cache
    def numbers() -> list[str]:  # NaN is refused in numbers; arrays of data may hold it
        return [name for name, kind in kinds().items() if float in (kind, *get_args(kind))]

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        try:
            bound = signature.bind(*args, **kwargs)
        except TypeError:  # too many, too few, or an old name: let the function raise its own error
            return function(*args, **kwargs)
        for name, kind in kinds().items():
            value = bound.arguments.get(name, _ABSENT)
            if value is not _ABSENT and value is not signature.parameters[name].default:
                bound.arguments[name] = _checked(name, kind, value)
        out = function(*bound.args, **bound.kwargs)  # may name the valid range, which NaN is outside of
        for name in numbers():
            if _has_nan(bound.arguments.get(name)):
                raise O2OSpecError(f"got {name}={bound.arguments[name]}, expected {_words(kinds()[name])}")
        return out

    return call  # type: ignore[return-value]


_ABSENT = object()


def check_values(function: Callable[..., Any], values: Mapping[str, Any], *, section: str) -> None:
    """Raise for values that :func:`checked_arguments` would refuse, long before the function is called.

    Args:
        function: a function or class with annotations.
        values: some of its arguments, by name.

    Keyword Args:
        section: what the message puts before their names.

    Raises:
        O2OSpecError: if a value does not fit its annotation.

    Examples:
        >>> def evaluate(*, timeout: float | None = None) -> None: ...
        >>> check_values(evaluate, {"timeout": "long"}, section="evaluation")
        Traceback (most recent call last):
        torchrl_o2o.errors.O2OSpecError: got evaluation.timeout='long', expected a number or None
    """
    kinds, parameters = _kinds_of(function), inspect.signature(function).parameters
    for name in values.keys() & kinds.keys():
        if values[name] is not parameters[name].default:
            _checked(f"{section}.{name}", kinds[name], values[name])


def _kinds_of(function: Callable[..., Any]) -> dict[str, Any]:
    """The annotations of a function's single arguments."""
    signature = inspect.signature(function)
    try:
        named = get_type_hints(function.__init__ if isinstance(function, type) else function)
    except NameError:  # annotations may name types that exist only for type checkers
        return {}
    several = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    single = [name for name, each in signature.parameters.items() if each.kind not in several]
    return {name: named[name] for name in single if name in named and name not in _SEEDS}


class ChecksArguments:
    """Base of classes whose constructors, and those of classes derived from them, are :func:`checked_arguments`.

    Examples:
        >>> class Step(ChecksArguments):
        ...     def __init__(self, size: float) -> None:
        ...         self.size = size
        >>> Step("large")
        Traceback (most recent call last):
        torchrl_o2o.errors.O2OSpecError: got size='large', expected a number
    """

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Check the arguments of this class's own constructor, if it has one."""
        super().__init_subclass__(**kwargs)
        if "__init__" in vars(cls):
            cls.__init__ = checked_arguments(cls.__init__)


def _checked(name: str, kind: Any, value: Any) -> Any:
    try:
        return _fitted(kind, value)
    except _UnfitError:
        if get_origin(kind) is list and _FAMILIES[-1] in {each.__name__ for each in type(value).__mro__}:
            raise O2OSpecError(f"got one {type(value).__name__}, expected a list of them for {name}") from None
        raise O2OSpecError(f"got {name}={_shown(value)}, expected {_words(kind)}") from None


def _fitted(kind: Any, value: Any) -> Any:
    """The value, with numbers converted to Python's types."""
    origin, inner = get_origin(kind), get_args(kind)
    if origin in (Union, UnionType):
        return _first_fitting(inner, value)
    if origin is Literal:
        return _only_if(any(isinstance(value, type(option)) and value == option for option in inner), value)
    if kind in (float, int, bool):
        return _number(kind, value)
    if kind is NoneType:
        return _only_if(value is None, value)
    if origin is Callable:
        return _only_if(callable(value), value)
    if isinstance(origin, type) and issubclass(origin, Iterable):
        return _collection(origin, inner, value)
    if isinstance(kind, type) and kind not in (Any, object) and not getattr(kind, "_is_protocol", False):
        return _only_if(_is_kin(kind, value), value)
    return value


def _is_kin(kind: type, value: Any) -> bool:
    """Whether a value is an instance of a class, or of a type that is accepted in its place."""
    family = next((each for each in _FAMILIES if each in {base.__name__ for base in kind.__mro__}), None)
    if family is not None:
        return family in {base.__name__ for base in type(value).__mro__}
    if hasattr(kind, "__fspath__"):  # paths
        return isinstance(value, os.PathLike)
    return isinstance(value, kind) or not (kind in (str, bytes) or isinstance(value, _PLAIN))


def _only_if(fits: bool, value: Any) -> Any:
    if not fits:
        raise _UnfitError
    return value


def _first_fitting(kinds: Collection[Any], value: Any) -> Any:
    if type(value) in kinds:  # where tensors are accepted as well as numbers, a tensor stays a tensor
        return value
    for kind in kinds:
        try:
            return _fitted(kind, value)
        except _UnfitError:
            continue
    raise _UnfitError


def _number(kind: type, value: Any) -> Any:
    # An array or tensor of one element is a number, unless it is trained.
    single = getattr(value, "ndim", None) == 0 and not getattr(value, "requires_grad", False)
    plain = value.item() if single else value
    if kind is bool:
        return _only_if(isinstance(plain, bool), plain)
    if isinstance(plain, bool) or not (isinstance(plain, Real) or (kind is int and hasattr(plain, "__index__"))):
        raise _UnfitError
    if kind is float:
        return value if type(value) in (int, float) else float(plain)
    try:
        return operator.index(plain)  # type: ignore[arg-type]
    except TypeError:
        raise _UnfitError from None


def _has_nan(value: Any) -> bool:
    """Whether a number, or one of several, is NaN."""
    several = value if isinstance(value, tuple | list) else [value]
    return any(isinstance(each, float) and each != each for each in several)


def _collection(origin: type, inner: tuple[Any, ...], value: Any) -> Any:
    """A sequence whose elements fit. Of mappings and iterators only the type is checked."""
    if issubclass(origin, Mapping):
        return _only_if(isinstance(value, Mapping) or hasattr(value, "keys"), value)
    if not issubclass(origin, Collection):
        return _only_if(isinstance(value, Iterable) and not isinstance(value, str), value)
    sized = hasattr(value, "__len__") and hasattr(value, "__iter__") and not isinstance(value, str | bytes | Mapping)
    _only_if(sized and getattr(value, "ndim", 1) == 1, value)
    pairs = origin is tuple and inner and inner[-1] is not Ellipsis
    _only_if(not pairs or len(value) == len(inner), value)
    each = inner if pairs else inner[:1] * len(value)
    found = [_fitted(kind, item) for kind, item in zip(each, value, strict=False)]
    changed = any(new is not old for new, old in zip(found, value, strict=False))
    return tuple(found) if changed else value


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 and "\n" not in text else f"something of the kind {type(value).__name__}"


def _words(kind: Any) -> str:
    origin, inner = get_origin(kind), get_args(kind)
    if origin in (Union, UnionType):
        return " or ".join(map(_words, inner))
    if origin is Literal:
        return f"one of {', '.join(map(repr, inner))}"
    if kind in _WORDS:
        return _WORDS[kind]
    if origin is tuple and inner[-1] is not Ellipsis:
        return f"({', '.join(map(_words, inner))})"
    if isinstance(origin, type) and inner and issubclass(origin, Collection) and not issubclass(origin, Mapping):
        return f"a list, each {_words(inner[0])}"
    return getattr(kind, "__name__", str(kind))
