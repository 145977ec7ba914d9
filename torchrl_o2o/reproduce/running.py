# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Run missing jobs in worker processes; finished ones are not repeated, and a failure does not affect the others."""

from __future__ import annotations

import json
import os
import platform
import signal
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from torchrl_o2o.durable import replace_durably
from torchrl_o2o.errors import check_count
from torchrl_o2o.reproduce.claims import Job
from torchrl_o2o.reproduce.results import OUTCOME
from torchrl_o2o.scripts import script_command

__all__ = ["Progress", "missing_jobs", "run_jobs"]

_LOG = "output.log"
_POLL_SECONDS = 0.2
#: Exit codes of a run that was stopped by Ctrl-C or SIGTERM, after saving (130, 143) or before it could save.
_ASKED_TO_STOP = (130, 143, -signal.SIGINT, -signal.SIGTERM)
Start = Callable[[Sequence[str], IO[str]], subprocess.Popen]


@dataclass
class Progress:
    """The progress of the jobs.

    Args:
        total: number of jobs.
        workers: number of jobs that run at once.
    """

    total: int
    workers: int
    finished: int = 0
    failed: int = 0
    hours: list[float] = field(default_factory=list)

    def __str__(self) -> str:
        """Text such as ``3 of 40 finished, 1 failed, about 2.1 h left``; the time is omitted until a run has ended."""
        left = self.total - self.finished - self.failed
        failed = f", {self.failed} failed" if self.failed else ""
        mean = sum(self.hours) / len(self.hours) if self.hours else float("nan")
        time_left = f", about {mean * left / self.workers:.1f} h left" if self.hours else ""
        return f"{self.finished} of {self.total} finished{failed}{time_left}"


def missing_jobs(jobs: Iterable[Job], runs: Path, *, finished: Iterable[str] = ()) -> list[Job]:
    """Select the jobs that have not finished, each once; failed ones are repeated.

    Args:
        jobs: the jobs of one or more claims.
        runs: folder of the run folders.
        finished: keys of further finished jobs, whose results are stored elsewhere.
    """
    known = set(finished)
    once: dict[str, Job] = {}
    for job in jobs:
        once.setdefault(job.key, job)
    return [job for key, job in once.items() if key not in known and _status(runs / key) != "finished"]


def run_jobs(
    jobs: Sequence[Job],
    runs: Path,
    *,
    start: Start,
    workers: int = 1,
    stopping: Callable[[], bool] = lambda: False,
) -> Iterator[tuple[Job, str, Progress]]:
    """Run jobs in parallel and yield each with its outcome when it ends.

    A job that was begun before continues from its newest checkpoint. A run's output goes to ``output.log`` in its
    folder. A job that starts from another job's offline phase waits for it; if that job failed or does not exist, it
    runs its own offline phase.

    Args:
        jobs: the jobs, in this order.
        runs: folder of the run folders.
        start: a function that starts a command with a file for its output.
        workers: number of processes at once, each with one thread.
        stopping: a function called before every start; once it returns true, nothing new is started.

    Yields:
        The job, its outcome (``finished``, ``failed``, or ``stopped`` by ``stopping`` or a signal), and the progress of
        all.
    """
    workers = check_count("workers", workers, least=1)
    waiting, running = list(jobs), {}
    progress = Progress(len(waiting), workers)
    while running or (waiting and not stopping()):
        while len(running) < workers and not stopping() and (job := _next(waiting, running)) is not None:
            waiting.remove(job)
            running[job] = _begin(job, runs, start)
        time.sleep(_POLL_SECONDS)
        for job, (child, log, began) in list(running.items()):
            if child.poll() is not None:
                del running[job]
                log.close()
                hours = (time.monotonic() - began) / 3600
                yield job, _end(runs / job.key, child.returncode, hours, progress, stopping()), progress


def _next(waiting: Sequence[Job], running: Iterable[Job]) -> Job | None:
    """The first job that does not have to wait for another one's offline phase."""
    ahead = {job.key for job in (*waiting, *running)}
    return next((job for job in waiting if job.offline_of not in ahead), None)


def _begin(job: Job, runs: Path, start: Start) -> tuple[subprocess.Popen, IO[str], float]:
    folder = runs / job.key
    folder.mkdir(parents=True, exist_ok=True)
    own = [f"seed={job.seed}", f"run_dir={folder}", "resume=true", "num_threads=1"]
    begun_alone = (folder / "offline").exists()
    if job.offline_of is not None and not begun_alone and _status(runs / job.offline_of) == "finished":
        own.append(f"pretrained={runs / job.offline_of / 'offline'}")
    log = (folder / _LOG).open("a", encoding="utf-8")
    return start(script_command(job.script, [*job.overrides, *own]), log), log, time.monotonic()


def _end(folder: Path, code: int, hours: float, progress: Progress, stopping: bool) -> str:
    """Record how a run ended; for a stopped run only the time counts."""
    status = "finished" if code == 0 else "stopped" if stopping or code in _ASKED_TO_STOP else "failed"
    before = _read(folder)
    total = before.get("hours", 0.0) + hours
    replace_durably(
        folder / OUTCOME, json.dumps({"status": status, "hours": round(total, 5), "machine": _machine()}).encode()
    )
    progress.finished += status == "finished"
    progress.failed += status == "failed"
    if status == "finished":
        progress.hours.append(total)
    return status


def _read(folder: Path) -> dict:
    path = folder / OUTCOME
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def _status(folder: Path) -> str | None:
    return _read(folder).get("status")


def _machine() -> str:
    """Processor and cores; the host name is omitted, because the file may be published."""
    return f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores"
