# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Read CSV tables: one row per step, one column per number."""

from __future__ import annotations

import csv
import re
from pathlib import Path
from typing import Any

import numpy as np

from torchrl_o2o.data.datasets.casting import refuse_stand_in
from torchrl_o2o.data.datasets.names import NAMES
from torchrl_o2o.errors import O2ODataError

__all__ = ["csv_arrays"]

_NUMBERED = re.compile(r"(.+?)[_.\[ ]?(\d+)\]?")
_WORDS = {"true": "1", "false": "0", "": "nan"}
#: Whole numbers with more digits than float64 holds, such as identifiers.
_LONG = re.compile(r"[+-]?\d{16,}")
#: Names of columns that hold numbers.
_NUMBERS = frozenset(alias for role, aliases in NAMES.items() if role != "episode" for alias in aliases)
_KNOWN = frozenset(alias for aliases in NAMES.values() for alias in aliases)


def csv_arrays(path: Path) -> dict[str, np.ndarray]:
    r"""Read a CSV file with a header line, and join columns that are numbered from 0 or 1 into one array.

    A column that begins with a text, such as an episode's name, is kept as texts. Whole numbers keep all their digits.

    Args:
        path: the file; its columns are, for example, ``observations_0, observations_1, actions_0, rewards, terminals``.

    Returns:
        Name -> [N] or, for numbered columns, [N, columns].

    Raises:
        O2ODataError: if it is not such a table; the message names the first wrong line.

    Examples:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from torchrl_o2o.data.datasets.tables import csv_arrays
        >>> path = Path(tempfile.mkdtemp()) / "log.csv"
        >>> _ = path.write_text("obs_0,obs_1,done\n1,2,False\n3,4,True\n")
        >>> csv_arrays(path)["obs"].tolist(), csv_arrays(path)["done"].tolist()
        ([[1.0, 2.0], [3.0, 4.0]], [0.0, 1.0])
    """
    names, columns = _table(path)
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise O2ODataError(f"{path} has two columns named {twice!r}; expected different names.")
    groups: dict[str, list[tuple[int, str]]] = {}
    for name in names:
        base, number = _numbered(name)
        groups.setdefault(base, []).append((number, name))
    by_name, arrays = dict(zip(names, columns, strict=True)), {}
    for base, group in groups.items():
        numbers, members = zip(*sorted(group), strict=True)
        if numbers == (-1,):
            arrays[base] = by_name[base]
        elif numbers in (tuple(range(len(numbers))), tuple(range(1, len(numbers) + 1))):
            arrays[base] = np.stack([by_name[name] for name in members], 1)
        elif base in _KNOWN:
            raise O2ODataError(
                f"{path}: the columns of {base!r} have the numbers {[number for number in numbers if number >= 0]}"
                f"{' and none' if -1 in numbers else ''}; expected 0, 1, 2, ..."
            )
        else:  # numbers that are part of the names, such as joint_7
            arrays |= {name: by_name[name] for name in members}
    return arrays


def _numbered(name: str) -> tuple[str, int]:
    """A column's name without its number, and the number, or -1 if it has none."""
    parts = _NUMBERED.fullmatch(name)
    return (parts[1], int(parts[2])) if parts else (name, -1)


def _table(path: Path) -> tuple[list[str], list[np.ndarray]]:
    rows: list[list[Any]] = []
    line, texts = 1, set()
    refuse_stand_in(path)
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:  # spreadsheet programs write a byte order mark
            reader = csv.reader(file)
            # Unnamed columns get a name that can be reported if they are not read, and that matches no column group.
            first = next(reader)
            if first and all(_is_number(cell) for cell in first):
                raise ValueError("the first line holds numbers, not names")
            names = [name.strip() or f"(unnamed, column {number})" for number, name in enumerate(first, 1)]
            free = [number for number, name in enumerate(names) if _numbered(name)[0] not in _NUMBERS]
            for cells in filter(None, reader):  # skip empty lines
                line = reader.line_num
                if len(cells) != len(names):
                    raise ValueError(f"{len(cells)} cells for {len(names)} names")
                if not rows:
                    texts = {number for number in free if not _is_number(_plain(cells[number]))}
                    texts = texts if len(texts) < len(names) else set()  # then other marks separate the cells
                rows.append([cell if number in texts else _value(cell) for number, cell in enumerate(cells)])
            return names, [_column(list(values)) for values in zip(*rows)] or [np.zeros(0) for _ in names]
    except (OSError, ValueError, OverflowError, StopIteration, csv.Error) as error:
        raise O2ODataError(
            f"{path}, line {line}: {str(error) or 'it is empty'}; expected a line of names, then numbers, with commas "
            "between them."
        ) from error


def _plain(cell: str) -> str:
    return _WORDS.get(cell.strip().lower(), cell)


def _value(cell: str) -> float | int:
    return int(cell) if _LONG.fullmatch(cell.strip()) else float(_plain(cell))


def _column(values: list[Any]) -> np.ndarray:
    """float64, texts, or whole numbers where float64 would round."""
    kinds = set(map(type, values))
    if str in kinds:
        return np.array(values)
    if int in kinds and all(type(value) is int or value.is_integer() for value in values):
        whole = [int(value) for value in values]
        return np.array(whole, np.int64 if max(whole) < 2**63 else np.uint64)
    return np.array(values, dtype=np.float64)


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True
