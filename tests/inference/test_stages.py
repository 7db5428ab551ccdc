"""The time of each stage, by a clock of the test."""

import pytest
import torch

from condseg.inference import stages as module
from condseg.inference.stages import Stages


@pytest.fixture
def clock(monkeypatch):
    """A list whose one number is the time."""
    now = [0.0]
    monkeypatch.setattr(module.time, "perf_counter", lambda: now[0])
    return now


@pytest.fixture
def stages():
    return Stages(torch.device("cpu"))


def test_an_inner_stage_does_not_count_for_the_outer_one(clock, stages):
    with stages("outer"):
        clock[0] += 1
        with stages("inner"):
            clock[0] += 10
        clock[0] += 2
    clock[0] += 100
    with stages("outer"):
        clock[0] += 4
    assert stages.seconds == {"outer": 7, "inner": 10}
    assert stages.table().splitlines() == [
        "outer  41.2%      7.00 s",
        "inner  58.8%     10.00 s",
    ]


def test_calls_are_timed_inside_the_context_only(clock, stages):
    class Doubler(torch.nn.Module):
        def forward(self, x):
            clock[0] += 3
            if x is None:
                raise KeyError
            return 2 * x

    doubler = Doubler()
    with stages.timed_calls((doubler, "forward", "doubling")):
        assert doubler(4) == 8
        with pytest.raises(KeyError):
            doubler(None)
    doubler(4)
    assert stages.seconds == {"doubling": 6}
    assert "forward" not in vars(doubler)
    original = doubler.own = lambda: 1
    with stages.timed_calls((doubler, "own", "own")):
        assert doubler.own is not original
    assert doubler.own is original


def test_waiting_for_items_counts_and_using_them_does_not(clock, stages):
    def items():
        for i in range(3):
            clock[0] += 1
            yield i

    for _ in stages.each("load", items()):
        clock[0] += 50
    assert stages.seconds == {"load": 3}
