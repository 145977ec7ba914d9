# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Keep memory that an update frees for the next one, instead of returning it to the system after every call."""

from __future__ import annotations

import ctypes
import logging
import os
import sys

from torchrl_o2o.errors import O2OSpecError

__all__ = ["keep_freed_memory"]

_LOG = logging.getLogger(__name__)
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # the numbers of <malloc.h>
# The largest block that glibc lets come from the heap on 64-bit systems. Larger ones always go back to the system.
_LARGEST_BLOCK = 32
# What users set to choose for themselves: MALLOC_<name>_, or the same in small letters in GLIBC_TUNABLES.
_CHOICES = ("TRIM_THRESHOLD", "MMAP_THRESHOLD", "MMAP_MAX", "TOP_PAD")


def keep_freed_memory(mebibytes: int = 256) -> bool:
    """Let this process keep freed memory for its next allocations, instead of returning it to the system.

    A compiled update frees all its temporary tensors when it ends. By default, glibc's ``malloc`` then returns them to
    the system, which has to clear and map every page again at the next call. With large temporaries, such as CQL's
    values of thirty actions per state, this takes up to a third of an update on a CPU
    (``benchmarks/README.md``). Nothing that is computed changes. Memory on accelerators is not affected.

    The setting holds for the whole process and cannot be taken back. It is made only where it is known to work: with
    glibc (Linux), and unless the environment already sets one of ``MALLOC_TRIM_THRESHOLD_``,
    ``MALLOC_MMAP_THRESHOLD_``, ``MALLOC_MMAP_MAX_`` and ``MALLOC_TOP_PAD_``, or the same in ``GLIBC_TUNABLES``. The log
    says when it is not made.

    Args:
        mebibytes: how much freed memory the process keeps at most at the end of its heap, in MiB. Blocks above 32 MiB
            are always returned. Defaults to 256.

    Returns:
        Whether the setting was made.

    Raises:
        O2OSpecError: if ``mebibytes`` is not between 1 and 2047.

    Examples:
        >>> isinstance(keep_freed_memory(), bool)  # True on Linux
        True
    """
    if not 1 <= mebibytes <= 2047:
        raise O2OSpecError(f"got {mebibytes=}, expected 1 to 2047 MiB, for example 256")
    if chosen := _chosen():
        _LOG.info("the environment sets %s, so freed memory is kept or returned as that says", ", ".join(chosen))
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is None:
        _LOG.info("this system has no glibc, so freed memory is kept or returned as its C library decides")
        return False
    # Both, because setting either one stops glibc from adapting the other to the sizes that it sees.
    kept = mallopt(_M_MMAP_THRESHOLD, _LARGEST_BLOCK << 20) and mallopt(_M_TRIM_THRESHOLD, mebibytes << 20)
    return bool(kept)


def _chosen() -> list[str]:
    """The variables of the environment by which the user has chosen."""
    tunables = os.environ.get("GLIBC_TUNABLES", "")
    found = [f"MALLOC_{name}_" for name in _CHOICES if f"MALLOC_{name}_" in os.environ]
    by_tunables = any(f"glibc.malloc.{name.lower()}=" in tunables for name in _CHOICES)
    return [*found, "GLIBC_TUNABLES"] if by_tunables else found
