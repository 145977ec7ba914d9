# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Record runs and evaluate the records: metrics, sinks, curves, reports, figures."""

from __future__ import annotations

from torchrl_o2o.record.curves import dip, gain, handover_score, iqm, regret, stratified_bootstrap_interval
from torchrl_o2o.record.figures import Curve, Panel, draw_panels
from torchrl_o2o.record.files import read_metrics, read_run
from torchrl_o2o.record.html import write_html
from torchrl_o2o.record.recorder import Recorder
from torchrl_o2o.record.report import load_peers, write_report
from torchrl_o2o.record.runs import Group, Run, find_runs, group_runs, load_run
from torchrl_o2o.record.sinks import ProgressSink, Sink, TensorBoardSink, WandbSink

__all__ = [
    "Curve",
    "Group",
    "Panel",
    "ProgressSink",
    "Recorder",
    "Run",
    "Sink",
    "TensorBoardSink",
    "WandbSink",
    "dip",
    "draw_panels",
    "find_runs",
    "gain",
    "group_runs",
    "handover_score",
    "iqm",
    "load_peers",
    "load_run",
    "read_metrics",
    "read_run",
    "regret",
    "stratified_bootstrap_interval",
    "write_html",
    "write_report",
]
