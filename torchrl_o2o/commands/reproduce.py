# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""`o2o reproduce`: list the papers' claims, make their runs, and show the verdicts."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from torchrl_o2o.commands.parsers import add_command

__all__ = ["register"]

_RUNS = Path("runs/claims")
_RESULTS = Path("benchmarks/claims")


def register(subparsers: argparse._SubParsersAction) -> None:
    """Add the parser of `o2o reproduce`.

    Args:
        subparsers: of the `o2o` parser.
    """
    parser = add_command(subparsers, "reproduce", "test the papers' claims")
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    listing = add_command(actions, "list", "list the claims, and how many of their runs are finished")
    _add_folders(listing)
    listing.set_defaults(run=_list)
    run = add_command(actions, "run", "make the missing runs of claims; you can stop and restart it at any time")
    run.add_argument(
        "claims", nargs="+", metavar="CLAIM", help="a name from `o2o reproduce list`, your own file, or 'all'"
    )
    run.add_argument(
        "--workers", type=int, default=1, metavar="N", help="number of processes, each with one thread (default: 1)"
    )
    run.add_argument(
        "--part", metavar="K/N", help="make the K-th of N parts of the runs, for N machines that share the folders"
    )
    run.add_argument("--dry-run", action="store_true", help="print the commands of the missing runs, one per line")
    _add_folders(run)
    run.set_defaults(run=_run)
    show = add_command(actions, "show", "print tables and verdicts of claims")
    show.add_argument("claims", nargs="*", default=["all"], metavar="CLAIM", help="names of claims (default: all)")
    show.add_argument("--figures", type=Path, metavar="DIR", help="draw CLAIM.png into this folder")
    show.add_argument("--page", type=Path, metavar="FILE.md", help="write the results page")
    _add_folders(show)
    show.set_defaults(run=_show)


def _add_folders(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--runs", type=Path, default=_RUNS, metavar="DIR", help="folder of the runs (default: %(default)s)"
    )
    parser.add_argument(
        "--results", type=Path, default=_RESULTS, metavar="DIR", help="folder of the CSV files (default: %(default)s)"
    )


def _list(arguments: argparse.Namespace) -> int:
    for claim, results in _claims(["all"], arguments).values():
        done = sum(result.status == "finished" for result in results)
        print(f"{claim.name:28} {done:3} of {len(list(claim.jobs())):3} runs   {claim.statement}")
    return 0


def _run(arguments: argparse.Namespace) -> int:
    from torchrl_o2o.commands.children import Children
    from torchrl_o2o.reproduce.running import missing_jobs, run_jobs
    from torchrl_o2o.scripts import script_command

    claims = _claims(arguments.claims, arguments)
    jobs = [job for claim, _ in claims.values() for job in claim.jobs()]
    done = {result.key for _, results in claims.values() for result in results if result.status == "finished"}
    jobs = _part(missing_jobs(jobs, arguments.runs, finished=done), arguments.part)
    if arguments.dry_run:
        for job in jobs:
            print(*script_command(job.script, [*job.overrides, f"seed={job.seed}"]))
        return 0
    failed = False
    with Children() as children:
        for job, status, progress in run_jobs(
            jobs,
            arguments.runs.resolve(),
            start=lambda words, log: children.start(words, log=log),
            workers=arguments.workers,
            stopping=lambda: children.received is not None,
        ):
            print(
                f"{job.group} on {job.task}, seed {job.seed}: {status} ({arguments.runs / job.key}); {progress}",
                flush=True,
            )
            failed |= status == "failed"
            _claims(arguments.claims, arguments, save=True)
        stopped = children.received
    ours = {job.key for job in jobs}
    results = [result for _, each in _claims(arguments.claims, arguments, save=True).values() for result in each]
    failed |= any(result.status == "failed" for result in results if result.key in ours)  # also one without the metric
    return 128 + stopped if stopped is not None else int(failed)


def _part(jobs: list, part: str | None) -> list:
    from torchrl_o2o.errors import O2OSpecError

    if part is None:
        return jobs
    first, _, count = part.partition("/")
    if not (first.isdigit() and count.isdigit() and 1 <= int(first) <= int(count)):
        raise O2OSpecError(f"got --part {part}, expected K/N with K from 1 to N, such as 2/8")
    # By name, because the position in the list changes while other machines finish their runs.
    return [job for job in jobs if int(job.key.rpartition("-")[2], 16) % int(count) == int(first) - 1]


def _show(arguments: argparse.Namespace) -> int:
    from torchrl_o2o.reproduce.page import draw_claim, page, read_note, section

    claims, figures = _claims(arguments.claims, arguments, save=True), {}
    seen_from = Path() if arguments.page is None else arguments.page.parent
    notes = {name: read_note(arguments.results / f"{name}.md", seen_from) for name in claims}
    for claim, results in claims.values():
        print(section(claim, results, note=notes[claim.name]))
        if arguments.figures is not None:
            arguments.figures.mkdir(parents=True, exist_ok=True)
            figure = arguments.figures / f"{claim.name}.png"
            if draw_claim(claim, results, figure) and arguments.page is not None:
                figures[claim.name] = os.path.relpath(figure, arguments.page.parent)
    if arguments.page is not None:
        by_name = {name: results for name, (_, results) in claims.items()}
        text = page((claim for claim, _ in claims.values()), by_name, figures, notes)
        arguments.page.write_text(text, encoding="utf-8")
        print(f"written to {arguments.page}")
    return 0


def _claims(names: list[str], arguments: argparse.Namespace, *, save: bool = False) -> dict:
    """Claims by name, with their results from the CSV files and the run folders; ``save`` writes them to the files."""
    from torchrl_o2o.reproduce.claims import find_claims, load_claim
    from torchrl_o2o.reproduce.results import collect, read_results, write_results

    ours = {name: read_results(arguments.results / f"{name}.csv") for name in find_claims()}
    claims = {}
    for name in ours if "all" in names else names:
        claim = load_claim(name)
        path = arguments.results / f"{claim.name}.csv"
        shared = [result for other, rows in ours.items() if other != claim.name for result in rows]
        known = ours[claim.name] if claim.name in ours else read_results(path)
        results = collect(claim, arguments.runs, known, shared=shared)
        if save and results:
            write_results(path, results)
        claims[claim.name] = (claim, results)
    return claims
