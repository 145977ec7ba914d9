# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
from __future__ import annotations

import json

import pytest

from torchrl_o2o.data import AuditReport, Finding
from torchrl_o2o.errors import O2ODataError

ERROR = Finding("non_finite", "error", "2 rows are NaN.", count=2, key="action", episode=1, step=3)
WARNING = Finding("constant_reward", "warning", "every reward is 0.")


def test_report_round_trip_through_json() -> None:
    report = AuditReport("toy", 10, 2, (ERROR, WARNING))
    assert AuditReport.from_dict(json.loads(json.dumps(report.to_dict()))) == report


def test_report_sorts_by_severity_and_raises_only_errors() -> None:
    report = AuditReport("toy", 10, 2, (WARNING, ERROR))
    assert (report.errors, report.warnings, report.ok) == ((ERROR,), (WARNING,), False)
    with pytest.raises(O2ODataError, match=r"^toy: 2 rows are NaN\.$"):
        report.raise_if_bad()
    AuditReport("toy", 10, 2, (WARNING,)).raise_if_bad()


def test_text_counts_in_words() -> None:
    text = str(AuditReport("toy", 10, 2, (ERROR, WARNING, WARNING)))
    assert text.splitlines()[0] == "toy: 10 transitions in 2 episodes; 1 error, 2 warnings"
    assert text.splitlines()[1] == "  error [non_finite] 2 rows are NaN."
