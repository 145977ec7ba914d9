# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
from __future__ import annotations

import logging
import os
import platform
import subprocess
import sys

import pytest

from torchrl_o2o.errors import O2OSpecError
from torchrl_o2o.updates import keep_freed_memory, memory

GLIBC = platform.libc_ver()[0] == "glibc"
# What a compiled update does: many blocks at once, all freed when it ends. Page faults of ten rounds, before and after.
# Whether glibc returns them by default depends on the blocks that lie above them, so here it always does at first.
ROUNDS = """
import ctypes
import resource
import torch
from torchrl_o2o.updates import keep_freed_memory

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(10):
        blocks = [torch.zeros(1_000_000) for _ in range(20)]
        del blocks
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

ctypes.CDLL(None).mallopt(-3, 131072)
before = faults()
kept = keep_freed_memory()
faults()
print(int(kept), before, faults())
"""


def run_rounds(**environment: str) -> tuple[bool, int, int]:
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_"))}
    out = subprocess.run(
        [sys.executable, "-c", ROUNDS], capture_output=True, text=True, check=True, env=inherited | environment
    ).stdout
    kept, before, after = (int(word) for word in out.split())
    return bool(kept), before, after


@pytest.mark.skipif(not GLIBC, reason="needs glibc")
def test_blocks_that_were_freed_are_used_again_without_a_page_fault() -> None:
    kept, before, after = run_rounds()
    assert kept
    assert before > 300  # 80 MB are 20 000 pages of 4 KiB in each of ten rounds, or 40 huge ones
    assert after < before / 10


@pytest.mark.skipif(not GLIBC, reason="needs glibc")
@pytest.mark.parametrize(
    ("name", "value", "left"),
    [
        ("MALLOC_TRIM_THRESHOLD_", "131072", True),
        ("GLIBC_TUNABLES", "glibc.malloc.hugetlb=1:glibc.malloc.mmap_max=0", True),
        ("GLIBC_TUNABLES", "glibc.malloc.hugetlb=1", False),
    ],
)
def test_what_the_environment_says_is_left(name: str, value: str, left: bool) -> None:
    kept, _, _ = run_rounds(**{name: value})
    assert kept is not left


def test_another_c_library_is_left(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(memory.sys, "platform", "darwin")
    for name in ("GLIBC_TUNABLES", *(f"MALLOC_{choice}_" for choice in memory._CHOICES)):
        monkeypatch.delenv(name, raising=False)
    with caplog.at_level(logging.INFO, logger="torchrl_o2o"):
        assert not keep_freed_memory()
    assert "no glibc" in caplog.text


@pytest.mark.parametrize("mebibytes", [0, -1, 2048])
def test_sizes_that_malloc_cannot_take_are_refused(mebibytes: int) -> None:
    with pytest.raises(O2OSpecError, match=f"got mebibytes={mebibytes}, expected 1 to 2047"):
        keep_freed_memory(mebibytes)
