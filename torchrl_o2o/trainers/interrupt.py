# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Graceful exit: after the first signal the loop finishes its update, saves and stops."""

from __future__ import annotations

import shlex
import signal
import sys
import threading
import warnings
from types import FrameType, TracebackType

__all__ = ["graceful_exit", "resume_command"]

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class graceful_exit:
    """Turn SIGTERM and the first Ctrl-C into a request; a second Ctrl-C raises ``KeyboardInterrupt`` at once.

    Within the context, the loop checks :attr:`requested` between two updates. The previous handlers are restored at its
    end. Only the main thread gets signals, so a warning is given in another thread.

    Examples:
        >>> import os
        >>> with graceful_exit() as interrupt:
        ...     for step in range(10):
        ...         if step == 3:
        ...             os.kill(os.getpid(), signal.SIGTERM)
        ...         if interrupt.requested:  # save a checkpoint, then
        ...             break
        >>> step, interrupt.signal_name, interrupt.exit_code
        (3, 'SIGTERM', 143)
    """

    def __init__(self) -> None:
        self._received: signal.Signals | None = None
        self._previous: dict[signal.Signals, object] = {}

    @property
    def requested(self) -> bool:
        """Whether the run was asked to stop."""
        return self._received is not None

    @property
    def signal_name(self) -> str | None:
        """The name of the signal, ``"SIGINT"`` or ``"SIGTERM"``."""
        return None if self._received is None else self._received.name

    @property
    def exit_code(self) -> int:
        """The status to exit with: 130 after Ctrl-C, 143 after SIGTERM (128 + the signal, as shells do), else 0."""
        return 0 if self._received is None else 128 + self._received

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and self._received is not None:
            raise KeyboardInterrupt
        self._received = self._received or signal.Signals(number)

    def __enter__(self) -> graceful_exit:
        if threading.current_thread() is not threading.main_thread():
            warnings.warn(
                "only the main thread gets signals: Ctrl-C and SIGTERM will not end this run with a checkpoint, "
                "because it is in another thread",
                stacklevel=2,
            )
            return self
        self._previous = {number: signal.signal(number, self._handle) for number in _SIGNALS}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._previous.items():
            # None is a handler that was not installed from Python and cannot be restored.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)  # pyright: ignore[reportArgumentType]


def resume_command(option: str = "resume=true") -> str:
    """Return the command line that continues this run, to print when it stops.

    Args:
        option: the word that makes the script resume, appended unless it is already there.

    Returns:
        The command line, quoted for a shell.

    Examples:
        >>> resume_command("--resume").endswith(" --resume")
        True
    """
    words = [sys.executable, *sys.argv]
    return shlex.join(words if option in words else [*words, option])
