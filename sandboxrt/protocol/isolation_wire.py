"""An isolation report as JSON, between our own ends only.

Source: ours.
"""

from __future__ import annotations

from typing import Any

from sandboxrt.models import Isolation, IsolationFinding, IsolationReport

__all__ = ["isolation_from_json", "isolation_to_json"]


def isolation_to_json(report: IsolationReport) -> dict[str, Any]:
    """``runtime``, and under ``findings`` what is known of each property."""
    return {
        "runtime": report.runtime,
        "findings": {
            prop.value: {"achieved": finding.achieved, "detail": finding.detail, "fix": finding.fix}
            for prop, finding in report.findings.items()
        },
    }


def isolation_from_json(body: object) -> IsolationReport | None:
    """The report, without the properties that are not known here; ``None`` for what is none."""
    if not isinstance(body, dict) or not isinstance(body.get("findings"), dict):
        return None
    findings: dict[Isolation, IsolationFinding] = {}
    known = {prop.value: prop for prop in Isolation}
    for name, found in body["findings"].items():
        if name in known and isinstance(found, dict):
            fix = found.get("fix")
            findings[known[name]] = IsolationFinding(
                found.get("achieved") is True, str(found.get("detail", "")), fix if isinstance(fix, str) else None
            )
    return IsolationReport(str(body.get("runtime", "")), findings)
