# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""The papers' claims: the runs for each, the results so far, and verdicts."""

from __future__ import annotations

from torchrl_o2o.reproduce.claims import Claim, Comparison, Job, find_claims, load_claim
from torchrl_o2o.reproduce.results import Result, read_results, write_results
from torchrl_o2o.reproduce.verdict import ComparisonResult, judge, score_of, verdict_of

__all__ = [
    "Claim",
    "Comparison",
    "ComparisonResult",
    "Job",
    "Result",
    "find_claims",
    "judge",
    "load_claim",
    "read_results",
    "score_of",
    "verdict_of",
    "write_results",
]
