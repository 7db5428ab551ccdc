"""Compiling the C++ kernels, and what happens without a compiler."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from condseg import native

needs_kernels = pytest.mark.skipif(
    not native.available(), reason="needs Linux, AVX2 and a C++ compiler"
)


def library() -> object:
    """As for the first time in a process."""
    return native._library.__wrapped__()


@needs_kernels
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


@needs_kernels
@pytest.mark.parametrize("broken", ["compiler", "cache"])
def test_errors_are_logged(
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
