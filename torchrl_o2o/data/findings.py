# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Findings of a reader or of the audit about data, and the report that collects them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from torchrl_o2o.errors import O2ODataError

__all__ = ["AuditReport", "Finding"]


@dataclass(frozen=True)
class Finding:
    """One observation about a data set.

    Args:
        code: a stable name for programs, e.g. ``"non_finite"``.
        severity: ``"error"`` if the data are unusable, ``"warning"`` if they need a check, ``"note"`` for changes by
            the reader.
        message: what was found, what was expected and how to fix it.
        count: number of affected transitions, columns or episodes.
        key: the affected entry, such as ``"next.observation"``.
        episode: the first affected episode.
        step: the first step in it.

    Examples:
        >>> from torchrl_o2o.data.findings import Finding
        >>> str(Finding("constant_reward", "warning", "every reward is 0.0"))
        'warning [constant_reward] every reward is 0.0'
    """

    code: str
    severity: Literal["error", "warning", "note"]
    message: str
    count: int = 1
    key: str | None = None
    episode: int | None = None
    step: int | None = None

    def __str__(self) -> str:
        return f"{self.severity} [{self.code}] {self.message}"


@dataclass(frozen=True)
class AuditReport:
    """The findings of an audit of a data set.

    Args:
        name: the data set.
        transitions: number of rows.
        episodes: number of episodes.
        findings: all findings, in the order in which they were found.

    Examples:
        >>> from torchrl_o2o.data.findings import AuditReport, Finding
        >>> report = AuditReport("demo", 10, 2, (Finding("constant_reward", "warning", "every reward is 0.0"),))
        >>> print(report)
        demo: 10 transitions in 2 episodes; 0 errors, 1 warning
          warning [constant_reward] every reward is 0.0
        >>> report.ok, report.codes
        (True, ('constant_reward',))
    """

    name: str
    transitions: int
    episodes: int
    findings: tuple[Finding, ...] = ()

    @property
    def errors(self) -> tuple[Finding, ...]:
        """The findings that make the data unusable."""
        return tuple(finding for finding in self.findings if finding.severity == "error")

    @property
    def warnings(self) -> tuple[Finding, ...]:
        """The findings that need a check."""
        return tuple(finding for finding in self.findings if finding.severity == "warning")

    @property
    def codes(self) -> tuple[str, ...]:
        """The codes of all findings, in order."""
        return tuple(finding.code for finding in self.findings)

    @property
    def ok(self) -> bool:
        """Whether the data can be used."""
        return not self.errors

    def to_dict(self) -> dict[str, Any]:
        """Return the report as JSON values."""
        return asdict(self) | {"findings": [asdict(finding) for finding in self.findings]}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> AuditReport:
        """Rebuild a report from :meth:`to_dict`."""
        return cls(**{**values, "findings": tuple(Finding(**finding) for finding in values["findings"])})

    def raise_if_bad(self) -> None:
        """Raise the errors, if there are any.

        Raises:
            O2ODataError: naming every error found.
        """
        if self.errors:
            raise O2ODataError(f"{self.name}: " + " ".join(finding.message for finding in self.errors))

    def __str__(self) -> str:
        errors, warnings = len(self.errors), len(self.warnings)
        head = (
            f"{self.name}: {self.transitions} transitions in {self.episodes} episodes; "
            f"{errors} error{'' if errors == 1 else 's'}, {warnings} warning{'' if warnings == 1 else 's'}"
        )
        return "\n".join([head, *(f"  {finding}" for finding in self.findings)])
