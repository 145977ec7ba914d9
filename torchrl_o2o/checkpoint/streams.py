# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""One agent's random number stream: the states that the global generators have in its single run, installed while
the agent runs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType

import torch

from torchrl_o2o.checkpoint.rng import restore_rng_state, rng_state

__all__ = ["RandomStream"]


class RandomStream:
    """The states that Python's, numpy's and torch's global generators have in one agent's run.

    It starts with the current states. Code that draws from the global generators runs within ``with stream:``, which
    installs the agent's states, saves them at the end and restores the previous ones. Code that accepts a generator
    uses :attr:`generator`. Both draw from the same sequence, so that a run draws the numbers that it would draw as a
    single run.

    Args:
        device: a CUDA device whose generator is included, because losses on it draw from it. Defaults to ``"cpu"``.

    Examples:
        >>> import torch
        >>> _ = torch.manual_seed(0)
        >>> stream = RandomStream()
        >>> alone = torch.rand(3)
        >>> with stream:
        ...     first = torch.rand(1)
        >>> second = torch.rand(1, generator=stream.generator)
        >>> with stream.torch_only():
        ...     third = torch.rand(1)
        >>> bool((torch.cat([first, second, third]) == alone).all())
        True
    """

    def __init__(self, device: torch.device | str = "cpu") -> None:
        self.device = torch.device(device)
        self._cpu = torch.Generator()
        #: The generator on the device, for functions that accept one.
        self.generator = self._cpu if self.device.type == "cpu" else torch.Generator(self.device)
        self._host = rng_state()
        self._outer: list[dict] = []
        self._take()

    def _take(self) -> None:
        self._cpu.set_state(torch.get_rng_state())
        if self.generator is not self._cpu:
            self.generator.set_state(torch.cuda.get_rng_state(self.device))

    def _put(self) -> None:
        torch.set_rng_state(self._cpu.get_state())
        if self.generator is not self._cpu:
            torch.cuda.set_rng_state(self.generator.get_state(), self.device)

    def __enter__(self) -> RandomStream:
        self._outer.append(rng_state())
        restore_rng_state(self._host)
        self._put()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._host = rng_state()
        self._take()
        restore_rng_state(self._outer.pop())

    @contextmanager
    def torch_only(self) -> Iterator[None]:
        """Install only torch's states, which takes microseconds instead of a fraction of a millisecond."""
        outer = torch.get_rng_state()
        outer_device = None if self.generator is self._cpu else torch.cuda.get_rng_state(self.device)
        self._put()
        try:
            yield
        finally:
            self._take()
            torch.set_rng_state(outer)
            if outer_device is not None:
                torch.cuda.set_rng_state(outer_device, self.device)
