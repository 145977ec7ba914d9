# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Read CSV tables: one row per step, one column per number."""

from __future__ import annotations

import csv
import re
from pathlib import Path

import numpy as np

from torchrl_o2o.errors import O2ODataError

__all__ = ["csv_arrays"]

_NUMBERED = re.compile(r"(.+?)[_.\[ ]?(\d+)\]?")
_WORDS = {"true": "1", "false": "0", "": "nan"}


def csv_arrays(path: Path) -> dict[str, np.ndarray]:
    r"""Read a CSV file with a header line, and join columns that are numbered from 0 or 1 into one array.

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
    names, values = _table(path)
    groups: dict[str, dict[int, int]] = {}
    for column, name in enumerate(names):
        parts = _NUMBERED.fullmatch(name)
        base, number = (parts[1], int(parts[2])) if parts else (name, -1)
        group = groups.setdefault(base, {})
        if number in group or -1 in group or (number < 0 and group):
            raise O2ODataError(f"{path} has two columns named {name!r}; expected different names.")
        group[number] = column
    for base, columns in groups.items():
        numbers = sorted(columns)
        if numbers[0] > 1 or numbers[-1] - numbers[0] + 1 != len(numbers):
            raise O2ODataError(f"{path}: the columns of {base!r} have the numbers {numbers}; expected 0, 1, 2, ...")
    return {
        base: values[:, columns[-1]] if -1 in columns else values[:, [columns[number] for number in sorted(columns)]]
        for base, columns in groups.items()
    }


def _table(path: Path) -> tuple[list[str], np.ndarray]:
    rows: list[list[float]] = []
    line = 1
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:  # spreadsheet programs write a byte order mark
            reader = csv.reader(file)
            # Unnamed columns get a name that can be reported if they are not read, and that matches no column group.
            first = next(reader)
            if first and all(_is_number(cell) for cell in first):
                raise ValueError("the first line holds numbers, not names")
            names = [name.strip() or f"(unnamed, column {number})" for number, name in enumerate(first, 1)]
            for cells in filter(None, reader):  # skip empty lines
                line = reader.line_num
                if len(cells) != len(names):
                    raise ValueError(f"{len(cells)} cells for {len(names)} names")
                rows.append([float(_WORDS.get(cell.strip().lower(), cell)) for cell in cells])
    except (OSError, ValueError, StopIteration, csv.Error) as error:
        raise O2ODataError(
            f"{path}, line {line}: {str(error) or 'it is empty'}; expected a line of names, then numbers, with commas "
            "between them."
        ) from error
    return names, np.array(rows, dtype=np.float64).reshape(len(rows), len(names))


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True
