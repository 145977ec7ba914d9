# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Signals end a run in order, and only within the context."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator

import pytest

from torchrl_o2o.trainers.interrupt import graceful_exit, resume_command


@pytest.fixture(autouse=True)
def _default_handlers() -> Iterator[None]:
    """Python's own handlers: a shell that started the tests in the background had SIGINT ignored."""
    previous = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    yield
    for number, handler in previous.items():
        signal.signal(number, handler)


LOOP = """
import sys, time
from torchrl_o2o.trainers.interrupt import graceful_exit
with graceful_exit() as interrupt:
    print("ready", flush=True)
    for update in range(100):
        for part in range(10):
            time.sleep(0.01)
        print("update done", flush=True)
        if interrupt.requested and "deaf" not in sys.argv:
            print("saved", flush=True)
            break
sys.exit(interrupt.exit_code)
"""


def start_loop(*words):
    loop = subprocess.Popen(
        [sys.executable, "-c", LOOP, *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert loop.stdout.readline() == "ready\n"
    return loop


def send(number):
    os.kill(os.getpid(), number)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_first_signal_lets_the_update_finish_and_the_run_save(number, code):
    loop = start_loop()
    loop.send_signal(number)
    output, _ = loop.communicate(timeout=20)
    assert output.endswith("update done\nsaved\n")
    assert loop.returncode == code


def test_second_ctrl_c_is_immediate():
    loop = start_loop("deaf")
    loop.send_signal(signal.SIGINT)
    time.sleep(0.05)
    assert loop.poll() is None
    loop.send_signal(signal.SIGINT)
    _, errors = loop.communicate(timeout=20)
    assert "KeyboardInterrupt" in errors


def test_nothing_is_requested_without_a_signal():
    with graceful_exit() as interrupt:
        assert not interrupt.requested
    assert (interrupt.exit_code, interrupt.signal_name) == (0, None)


def test_first_signal_decides_the_exit_code():
    with graceful_exit() as interrupt:
        send(signal.SIGINT)
        send(signal.SIGTERM)
        send(signal.SIGTERM)
    assert (interrupt.exit_code, interrupt.signal_name) == (130, "SIGINT")


def test_ctrl_c_after_sigterm_is_immediate():
    with graceful_exit() as interrupt:
        send(signal.SIGTERM)
        assert interrupt.requested
        with pytest.raises(KeyboardInterrupt):
            send(signal.SIGINT)


def test_previous_handlers_come_back_also_after_an_error():
    seen = []
    previous = signal.signal(signal.SIGTERM, lambda number, frame: seen.append(number))
    try:
        with pytest.raises(ZeroDivisionError), graceful_exit():
            raise ZeroDivisionError
        send(signal.SIGTERM)
        assert seen == [signal.SIGTERM]
    finally:
        signal.signal(signal.SIGTERM, previous)
    with pytest.raises(KeyboardInterrupt):
        send(signal.SIGINT)


def test_context_can_be_entered_again():
    interrupt = graceful_exit()
    for _ in range(2):
        with interrupt:
            send(signal.SIGTERM)
            assert interrupt.requested


def test_resume_command_repeats_the_words_once(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["train.py", "name=two words"])
    assert shlex.split(resume_command()) == [sys.executable, "train.py", "name=two words", "resume=true"]
    monkeypatch.setattr(sys, "argv", ["train.py", "resume=true"])
    assert shlex.split(resume_command()) == [sys.executable, "train.py", "resume=true"]


def test_in_another_thread_a_run_is_told_that_it_gets_no_signals() -> None:
    found: list[object] = []

    def run() -> None:
        with pytest.warns(UserWarning, match="only the main thread"), graceful_exit() as interrupt:
            found.append(interrupt.requested)

    before = signal.getsignal(signal.SIGTERM)
    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert found == [False]
    assert signal.getsignal(signal.SIGTERM) is before
