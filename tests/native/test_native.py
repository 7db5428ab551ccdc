"""The compiled loops, and what is done without them."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch
from studies.benchmarks import subjects
from studies.published.layers import filter_unfolded
from torch import Tensor
from torch.autograd import grad

from condseg import native
from condseg.layers.local_filter import filter_locally
from condseg.models.mask.head import DynamicMaskHead

needs_loops = pytest.mark.skipif(
    not native.available(), reason="needs Linux, AVX2 and a C++ compiler"
)
WITH_AND_WITHOUT = [
    pytest.param(True, marks=needs_loops, id="loops"),
    pytest.param(False, id="torch"),
]


def library() -> object:
    """As for the first time in a process."""
    return native._library.__wrapped__()


def close(got: Tensor, want: Tensor, bound: float) -> None:
    assert (got - want).norm() <= bound * want.norm()


@pytest.mark.parametrize("loops", WITH_AND_WITHOUT)
@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize(
    ("size", "kernel", "dilation"),
    [((9, 37), (3, 3), 1), ((6, 5), (5, 3), 2), ((1, 1), (3, 5), 3), ((4, 16), (1, 1), 1)],
)
def test_local_filter(
    loops: bool,
    shared: bool,
    size: tuple[int, int],
    kernel: tuple[int, int],
    dilation: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(native, "available", lambda: loops)
    torch.manual_seed(0)
    x = torch.randn(2, 5, *size, requires_grad=True)
    taps = kernel[0] * kernel[1]
    filters = torch.randn(2, 1 if shared else 5, taps, *size, requires_grad=True)
    inputs, cotangent = (x, filters), torch.randn(2, 5, *size)
    fast = filter_locally(x, filters, kernel, dilation)
    reference = filter_unfolded(x, filters, kernel, dilation)
    close(fast, reference, 1e-6)
    pairs = zip(grad(fast, inputs, cotangent), grad(reference, inputs, cotangent), strict=True)
    for got, want in pairs:
        close(got, want, 1e-6)


@pytest.mark.parametrize("loops", WITH_AND_WITHOUT)
@pytest.mark.parametrize(
    ("layers", "channels", "out_stride", "size", "counts"),
    [
        (3, 8, 4, (10, 13), (5, 3)),
        (3, 8, 8, (5, 7), (0, 2)),
        (1, 8, 4, (3, 40), (2, 1)),
        (4, 11, 2, (6, 11), (3, 4)),
        (2, 40, 1, (1, 1), (1, 1)),
    ],
)
def test_mask_head(
    loops: bool,
    layers: int,
    channels: int,
    out_stride: int,
    size: tuple[int, int],
    counts: tuple[int, int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(native, "available", lambda: loops)
    torch.manual_seed(0)
    fast, reference = (
        DynamicMaskHead(6, channels, layers, out_stride=out_stride, implementation=form)
        for form in ("fast", "reference")
    )
    device = torch.device("cpu")
    queries = subjects.mask_queries(sum(counts), size, fast.num_params, device)
    queries.image_index[counts[0] :] = 1
    features = torch.randn(2, 6, *size)
    close(fast(features, queries), reference(features, queries), 1e-6)


@needs_loops
def test_compiled_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert library() is not None
    (built,) = (tmp_path / "condseg").iterdir()
    before = built.stat().st_mtime_ns
    assert library() is not None
    assert built.stat().st_mtime_ns == before


def test_no_compiler(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    with caplog.at_level(logging.INFO, "condseg"):
        assert library() is None
    assert "C++ compiler" in caplog.text


@needs_loops
@pytest.mark.parametrize("broken", ["compiler", "cache"])
def test_what_goes_wrong_is_told(
    broken: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    cache = tmp_path / "cache"
    if broken == "compiler":
        compiler = tmp_path / "compiler"
        compiler.write_text("#!/bin/sh\necho no such standard >&2\nexit 1\n", "ascii")
        compiler.chmod(0o755)
        monkeypatch.setenv("CXX", str(compiler))
    else:
        cache.write_text("no folder", "ascii")
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
    assert library() is None
    assert ("no such standard" if broken == "compiler" else str(cache)) in caplog.text
