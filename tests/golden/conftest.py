"""Prints at the end how many golden cases of each file ran."""

from __future__ import annotations

import re
from collections import Counter, defaultdict

from _pytest.terminal import TerminalReporter

CASE = re.compile(r"test_vectors\.py::test_case\[(?P<file>[^:\]]+):")


def pytest_terminal_summary(terminalreporter: TerminalReporter) -> None:
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for outcome in ("passed", "failed", "skipped", "error"):
        for report in terminalreporter.stats.get(outcome, []):
            if match := CASE.search(getattr(report, "nodeid", "")):
                counts[match["file"]][outcome] += 1
    if counts:
        total = sum(map(Counter.total, counts.values()))
        terminalreporter.section(f"golden vectors: {total} cases of {len(counts)} files")
    for file, outcomes in sorted(counts.items()):
        what = ", ".join(f"{n} {outcome}" for outcome, n in outcomes.items())
        terminalreporter.write_line(f"{file}: {what}")
