"""Time of a run by stage."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from functools import wraps
from typing import Any, TypeVar

import torch

T = TypeVar("T")


class Stages:
    """Measures the seconds of each stage; an inner stage's do not count for the outer one.

    Args:
        device: synchronized where a stage starts and ends.

    Attributes:
        seconds: stage -> seconds so far, in the order in which the stages first ended.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.seconds: dict[str, float] = {}
        self._open: list[str] = []
        self._since = 0.0

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        """A context whose time counts for the stage."""
        self._count()
        self._open.append(stage)
        try:
            yield
        finally:
            self._count()
            self._open.pop()

    def each(self, stage: str, items: Iterable[T]) -> Iterator[T]:
        """The items; the time until each is ready counts for the stage."""
        iterator, end = iter(items), object()
        while (item := self.timed(next, stage)(iterator, end)) is not end:
            yield item

    @contextmanager
    def timed_calls(self, *calls: tuple[Any, str, str]) -> Iterator[None]:
        """A context in which calls of ``owner.name`` count for a stage: (owner, name, stage)."""
        with ExitStack() as stack:
            for owner, name, stage in calls:
                original = getattr(owner, name)
                own = name in vars(owner)
                undo = (setattr, owner, name, original) if own else (delattr, owner, name)
                stack.callback(*undo)
                setattr(owner, name, self.timed(original, stage))
            yield

    def table(self) -> str:
        """One line per stage: its share and its seconds."""
        total = sum(self.seconds.values())
        width = max(map(len, self.seconds), default=0)
        return "\n".join(
            f"{stage:{width}} {seconds / total:6.1%} {seconds:9.2f} s"
            for stage, seconds in self.seconds.items()
        )

    def timed(self, function: Callable[..., Any], stage: str) -> Callable[..., Any]:
        """The function; the time of its calls counts for the stage."""

        @wraps(function)
        def timed(*args: Any, **kwargs: Any) -> Any:
            with self(stage):
                return function(*args, **kwargs)

        return timed

    def _count(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        now = time.perf_counter()
        if self._open:
            stage = self._open[-1]
            self.seconds[stage] = self.seconds.get(stage, 0.0) + now - self._since
        self._since = now
