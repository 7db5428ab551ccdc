"""Asks the servers of all published files whether they have them; nothing is downloaded."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from urllib.request import Request, urlopen

from condseg.zoo.hub import address, size_of
from condseg.zoo.registry import BACKBONES, DRIVE, MODELS

TIMEOUT = 20.0


@dataclass(frozen=True, slots=True)
class Answer:
    """What a server says of a file.

    Attributes:
        name: of the model.
        url: of the file, or of the page of one that is downloaded by hand.
        size: in bytes; None if it is not known.
        error: why the file cannot be downloaded; "" if it can.
    """

    name: str
    url: str
    size: int | None = None
    error: str = ""


def check_files() -> Iterator[Answer]:
    """The servers' answers, in the order of the registry."""
    asked: list[tuple[str, str, Callable[[], int | None]]] = [
        (model.name, address(model), partial(size_of, model, TIMEOUT)) for model in MODELS.values()
    ]
    for name, experts, key, _ in BACKBONES:
        page = f"{DRIVE}/{key}/view"
        asked.append((f"{name}, {experts} experts", page, partial(_open, page)))
    with ThreadPoolExecutor(8) as pool:
        yield from pool.map(lambda each: _answer(*each), asked)


def check_table(answers: Iterable[Answer]) -> str:
    """The answers in Markdown."""
    lines = ["| file | answer | address |", "|---|---|---|"]
    for answer in answers:
        size = "there" if answer.size is None else f"{answer.size / 1e6:.1f} MB"
        lines.append(f"| `{answer.name}` | {answer.error or size} | {answer.url} |")
    return "\n".join(lines) + "\n"


def _answer(name: str, url: str, ask: Callable[[], int | None]) -> Answer:
    try:
        return Answer(name, url, ask())
    except Exception as error:  # the clients raise many types, not all of them OSError
        reason = " ".join(str(error).removeprefix(f"{url}: ").split())
        return Answer(name, url, error=reason[:120] or type(error).__name__)


def _open(page: str) -> None:
    with urlopen(Request(page, method="HEAD"), timeout=TIMEOUT):
        pass
