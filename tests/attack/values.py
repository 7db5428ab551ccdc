"""Absurd values, and changes of nested plain data and of bytes."""

from __future__ import annotations

import copy
import gzip
import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from hypothesis import strategies as st

DEEP, LONG = "@deep@", "@long@"
"""Stand for lists in lists and an integer of 5000 digits, which only a text file can hold."""

DELETE, REPEAT = "@delete@", "@repeat@"

ABSURD: list[Any] = [
    *(None, True, False, 0, -1, 1, 2, 0.5, -0.0, float("nan"), float("inf"), float("-inf")),
    *(1e-300, 1e9, 1e308, 10**9, -(10**9), 2**31, 2**32, 2**53, 2**63, 2**64, 10**400),
    *("", "x", "nan", "1", "a\0b", "\ud800", "../../etc/passwd", "x" * 10**5, "é" * 300),
    *([], {}, [[]], [None], {"": None}, ["1"], [1e308] * 6, DEEP, LONG),
]
Path = tuple[Any, ...]


@dataclass(frozen=True)
class Change:
    """``content[path[0]][path[1]]... = value``."""

    path: Path
    value: Any

    def apply(self, content: Any) -> None:
        """Changes the content in place, unless an earlier change has removed the path."""
        *parents, last = self.path
        try:
            for key in parents:
                content = content[key]
            content[last]
        except (LookupError, TypeError):
            return
        if not isinstance(content, dict | list):
            return
        if self.value == DELETE:
            del content[last]
        elif self.value == REPEAT and isinstance(content, list):
            content.append(copy.deepcopy(content[last]))
        else:
            content[last] = self.value

    def __repr__(self) -> str:
        return f"{'.'.join(map(str, self.path))} = {self.value!r:.60}"


def paths(content: Any, prefix: Path = ()) -> Iterator[Path]:
    """The paths of all values in nested lists and dictionaries, those of containers included."""
    keys: Any = ()
    if isinstance(content, dict):
        keys = content
    elif isinstance(content, list | tuple):
        keys = range(len(content))
    for key in keys:
        yield (*prefix, key)
        yield from paths(content[key], (*prefix, key))


def changes(content: Any, most: int = 2) -> st.SearchStrategy[list[Change]]:
    """Up to ``most`` changes of the content."""
    values = st.one_of(
        st.sampled_from(ABSURD),
        st.sampled_from([DELETE, REPEAT]),
        st.integers(-3, 3),
        st.integers(),
        st.floats(),
        st.text(max_size=5),
    )
    one = st.builds(Change, st.sampled_from(list(paths(content))), values)
    return st.lists(one, min_size=1, max_size=most)


def changed(content: Any, list_of_changes: list[Change]) -> Any:
    """A changed copy."""
    content = copy.deepcopy(content)
    for change in list_of_changes:
        change.apply(content)
    return content


def as_text(dumped: str) -> str:
    """Dumped json or YAML with the values that only a text can hold."""
    for quote in ('"', "'", ""):
        dumped = dumped.replace(f"{quote}{DEEP}{quote}", "[" * 50_000 + "]" * 50_000)
        dumped = dumped.replace(f"{quote}{LONG}{quote}", "1" * 5000)
    return dumped


@dataclass(frozen=True)
class Damage:
    """A change of a file's bytes; ``part`` (0..1) says where, ``seed`` the rest."""

    kind: str
    part: float
    seed: int

    def apply(self, content: bytes) -> bytes:
        random_ = random.Random(self.seed)
        place = int(self.part * len(content))
        damaged = bytearray(content)
        if self.kind == "cut":
            return content[:place]
        if self.kind.startswith("flip"):
            for _ in range(int(self.kind.removeprefix("flip "))):
                damaged[random_.randrange(len(content))] ^= 1 << random_.randrange(8)
        elif self.kind == "block":
            size = random_.randrange(1, 5000)
            damaged[place : place + size] = random_.choice(
                [bytes(size), random_.randbytes(size), b"", content[:size]]
            )
        elif self.kind == "tail":
            damaged += random_.randbytes(random_.randrange(1, 2000))
        elif self.kind == "head":
            damaged[:0] = random_.choice([b"\xef\xbb\xbf", b"\0", b"\n", b"\xff\xfe", b"<html>"])
        elif self.kind == "empty":
            return b""
        elif self.kind == "gzip":
            return gzip.compress(content)
        else:
            assert self.kind == "utf-16"
            return content.decode("latin-1").encode("utf-16")
        return bytes(damaged)

    def __repr__(self) -> str:
        return f"{self.kind} at {self.part:.3f} ({self.seed})"


def damages(*kinds: str) -> st.SearchStrategy[Damage]:
    """Damages of these kinds, each as often as it is named."""
    seeds = st.integers(0, 2**32 - 1)
    # Hypothesis prefers the ends of a range; a place in a file should be anywhere.
    parts = seeds.map(lambda seed: random.Random(seed).random())
    return st.builds(Damage, st.sampled_from(kinds), parts, seeds)


ANY_DAMAGE = ("flip 1", "flip 1", "flip 3", "flip 40", "cut", "cut", "block", "tail", "head")
ANY_DAMAGE += ("empty", "gzip", "utf-16")
