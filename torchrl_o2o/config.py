# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Typed ``field=value`` settings for scripts, on OmegaConf: unknown fields and wrong types raise an error."""

from __future__ import annotations

import dataclasses
import difflib
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, TypeVar, cast

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from torchrl_o2o.errors import O2OSpecError

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

__all__ = ["parse_config"]

T = TypeVar("T", bound="DataclassInstance")


def parse_config(schema: type[T], words: Sequence[str] | None = None) -> T:
    """Fill a dataclass from ``field=value`` words.

    Sequences come back as tuples. ``--help`` prints the fields with their types and defaults and ends the process.

    Args:
        schema: a dataclass whose fields all have defaults.
        words: the words, for example ``["seed=1", "hidden_sizes=[64,64]"]``. Defaults to the process's own arguments.

    Returns:
        An instance of the dataclass.

    Raises:
        O2OSpecError: if a word is not ``field=value``, the field is unknown, or the value has another type.
        SystemExit: after ``--help`` or ``-h``.

    Examples:
        >>> from dataclasses import dataclass
        >>> @dataclass
        ... class Config:
        ...     seed: int = 0
        >>> parse_config(Config, ["seed=3"])
        Config(seed=3)
        >>> parse_config(Config, ["sede=3"])
        Traceback (most recent call last):
        ...
        torchrl_o2o.errors.O2OSpecError: unknown setting 'sede'; did you mean seed? Known are: seed
    """
    words = sys.argv[1:] if words is None else list(words)
    known = [field.name for field in dataclasses.fields(schema)]
    if {"-h", "--help"} & set(words):
        sys.stdout.write(_usage(schema))
        raise SystemExit(0)
    for word in words:
        name, equals, _ = word.partition("=")
        if not equals:
            raise O2OSpecError(f"got {word!r}, expected field=value, for example {known[0]}=...")
        if name not in known:
            close = difflib.get_close_matches(name, known)
            hint = f"did you mean {' or '.join(close)}? " if close else ""
            raise O2OSpecError(f"unknown setting {name!r}; {hint}Known are: {', '.join(known)}")
    try:
        merged = OmegaConf.merge(OmegaConf.structured(schema), OmegaConf.from_dotlist(words))
        config = cast(T, OmegaConf.to_object(merged))  # an object of the schema
    except OmegaConfBaseException as error:
        raise O2OSpecError(f"{str(error).splitlines()[0]} (in {' '.join(words)})") from error
    tuples = {name: tuple(value) for name, value in vars(config).items() if isinstance(value, list)}
    return dataclasses.replace(config, **tuples)


def _usage(schema: type[DataclassInstance]) -> str:
    """The fields with types and defaults, one per line."""
    fields = dataclasses.fields(schema)
    defaults = vars(schema())
    kinds = [field.type.__name__ if isinstance(field.type, type) else field.type for field in fields]
    lines = [f"  {field.name}={defaults[field.name]}  ({kind})" for field, kind in zip(fields, kinds, strict=True)]
    return "\n".join([f"usage: {sys.argv[0]} [field=value ...]", "", "fields and their defaults:", *lines, ""])
