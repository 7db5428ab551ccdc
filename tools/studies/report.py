"""Where the numbers go: JSON files, and tables between two marks of a Markdown page."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


def write_json(content: Mapping[str, Any], path: Path) -> Path:
    """Write plain data."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return path


def markdown_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table; all columns but the first are numbers."""
    rule = ["---", *["---:"] * (len(head) - 1)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (head, rule, *rows))


def spread_text(spread: Mapping[str, Any], form: str = "{:.2f}", unit: str = "x") -> str:
    """Median and quartiles, such as "1.30x (1.24 to 1.33)"."""
    median, q1, q3 = (form.format(spread[key]) for key in ("median", "q1", "q3"))
    return f"{median}{unit} ({q1} to {q3})"


def write_between(path: Path, mark: str, text: str) -> None:
    """Put the text between ``<!-- mark -->`` and ``<!-- /mark -->``, added at the end if absent.

    Raises:
        ValueError: the page has the first mark without the second.
    """
    page = path.read_text(encoding="utf-8") if path.is_file() else ""
    first, last = f"<!-- {mark} -->", f"<!-- /{mark} -->"
    if first not in page:
        page = f"{page.rstrip()}\n\n{first}\n{last}\n".lstrip()
    before, _, rest = page.partition(first)
    if last not in rest:
        raise ValueError(f"{path} has the line {first!r}, but no {last!r} after it")
    after = rest.partition(last)[2]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"{before}{first}\n{text}\n{last}{after}", encoding="utf-8")


def machine_text(machine: Mapping[str, Any]) -> str:
    """Hardware and versions in one line, from :func:`studies.measure.machine`."""
    gpu = f"{machine['gpu']}, CUDA {machine['cuda']}; " if "gpu" in machine else ""
    load = ""
    if (average := machine.get("load_average_1min")) is not None:
        busy = ", a busy machine" if average > machine["cores"] / 2 else ""
        load = f"; load average at the start {average:g}{busy}"
    versions = ("torch", "torchvision", "Python", "condseg")
    return (
        f"{gpu}{machine['cpu']}, {machine['cores']} cores, threads: {machine['threads']}{load}; "
        + ", ".join(f"{v} {machine[v.lower()]}" for v in versions if v.lower() in machine)
    )
