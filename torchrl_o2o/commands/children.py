# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Trainings as child processes that get each of the parent's signals once, and time to write their checkpoints."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Sequence
from types import FrameType, TracebackType
from typing import IO

__all__ = ["Children"]

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Children:
    """Start processes, forward SIGINT, SIGTERM and SIGHUP to them, and leave none running.

    Each child has its own process group, so that it gets a terminal's Ctrl-C only once, from the parent; a second one
    would end it without a checkpoint. A hang-up of the terminal (SIGHUP) is forwarded as SIGTERM.

    Examples:
        >>> with Children() as children:
        ...     child = children.start(["true"])
        ...     children.wait(child)
        0
    """

    def __init__(self) -> None:
        self._children: list[subprocess.Popen] = []
        self._previous: dict[signal.Signals, object] = {}
        self.received: signal.Signals | None = None

    def start(self, command: Sequence[str], *, log: IO[str] | None = None) -> subprocess.Popen:
        """Start a child.

        Args:
            command: the command's words.
            log: file for its output; ``None`` (default) is the parent's terminal.
        """
        output = None if log is None else subprocess.STDOUT
        child = subprocess.Popen(command, stdout=log, stderr=output, process_group=0)
        self._children.append(child)
        if self.received is not None:  # it came while the child was being started
            child.send_signal(self.received)
        return child

    def wait(self, child: subprocess.Popen) -> int:
        """Wait for a child's end, even if signals arrive meanwhile.

        Returns:
            Its status; 128 plus the signal's number if a signal ended it, as in a shell.
        """
        status = child.wait()
        return status if status >= 0 else 128 - status

    def _hand_on(self, number: int, frame: FrameType | None) -> None:
        self.received = signal.SIGTERM if number == signal.SIGHUP else signal.Signals(number)
        for child in self._children:
            child.send_signal(self.received)  # does nothing to one that has ended

    def __enter__(self) -> Children:
        self._previous = {number: signal.signal(number, self._hand_on) for number in _SIGNALS}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for child in self._children:
            if child.poll() is None:
                child.terminate()
        for child in self._children:
            child.wait()
        for number, handler in self._previous.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)  # pyright: ignore[reportArgumentType]
