"""Where the time of a run goes, stage by stage."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from functools import wraps
from typing import Any, TypeVar

import torch

T = TypeVar("T")


class Stages:
    """Seconds of each stage; those of a stage inside another are not counted for the outer one.

    Args:
        device: waited for at each border, so that a stage is charged with its own work.

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
        """What runs inside is charged to the stage."""
        self._charge()
        self._open.append(stage)
        try:
            yield
        finally:
            self._charge()
            self._open.pop()

    def each(self, stage: str, items: Iterable[T]) -> Iterator[T]:
        """The items; waiting for one is charged to the stage."""
        iterator = iter(items)
        while True:
            with self(stage):
                try:
                    item = next(iterator)
                except StopIteration:
                    return
            yield item

    @contextmanager
    def watching(self, *calls: tuple[Any, str, str]) -> Iterator[None]:
        """Meanwhile calls of ``owner.name`` are charged to a stage.

        Args:
            calls: (owner, name, stage); a module's name is "forward".
        """
        with ExitStack() as stack:
            for owner, name, stage in calls:
                own = name in vars(owner)
                original = getattr(owner, name)
                setattr(owner, name, self._charged(original, stage))
                if own:
                    stack.callback(setattr, owner, name, original)
                else:
                    stack.callback(delattr, owner, name)
            yield

    def table(self) -> str:
        """One line a stage: its share, and its seconds."""
        total = sum(self.seconds.values())
        width = max(map(len, self.seconds), default=0)
        return "\n".join(
            f"{stage:{width}} {seconds / total:6.1%} {seconds:9.2f} s"
            for stage, seconds in self.seconds.items()
        )

    def _charged(self, function: Callable[..., Any], stage: str) -> Callable[..., Any]:
        @wraps(function)
        def charged(*args: Any, **kwargs: Any) -> Any:
            with self(stage):
                return function(*args, **kwargs)

        return charged

    def _charge(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        now = time.perf_counter()
        if self._open:
            stage = self._open[-1]
            self.seconds[stage] = self.seconds.get(stage, 0.0) + now - self._since
        self._since = now
