"""Compiling the C++ kernels, their cache, and what happens without a compiler."""

from __future__ import annotations

import logging
import os
import threading
from pathlib import Path

import pytest

from condseg import native
from condseg.native import build

needs_kernels = pytest.mark.skipif(
    not native.available(), reason="needs Linux, AVX2 and a C++ compiler"
)


def library() -> object:
    """As for the first time in a process."""
    return build.load_library.__wrapped__()


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A library from the compiler of this machine."""
    with pytest.MonkeyPatch.context() as patch:
        home = tmp_path_factory.mktemp("home")
        patch.setenv("XDG_CACHE_HOME", str(home))
        assert library() is not None
    (built,) = (home / "condseg").glob("*.so")
    return built


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, compiled: Path) -> Path:
    """The folder of the cache, with a compiler that copies a library and counts its calls."""
    compiler = tmp_path / "c++"
    compiler.write_text(
        f"""#!/bin/sh
echo call >> {tmp_path}/calls
while [ $# -gt 0 ]; do [ "$1" = -o ] && cp {compiled} "$2"; shift; done
exit 0
""",
        "ascii",
    )
    compiler.chmod(0o700)
    monkeypatch.setenv("CXX", str(compiler))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    return tmp_path / "home" / "condseg"


def no_home() -> Path:
    raise RuntimeError("Could not determine home directory.")


def calls(cache: Path) -> int:
    """Of the compiler: two compile and link a library."""
    return len((cache.parents[1] / "calls").read_text("ascii").split())


def give_away(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As if another user had created the file or folder."""
    if os.geteuid() == 0:
        os.chown(path, 12345, -1)
    else:
        monkeypatch.setattr(os, "geteuid", lambda: 12345)


@needs_kernels
def test_compiled_once_and_only_for_the_user(cache: Path) -> None:
    assert library() is not None
    (built,) = cache.glob("*.so")
    assert library() is not None
    assert calls(cache) == 2
    assert [path.stat().st_mode & 0o077 for path in (cache, built)] == [0, 0]
    assert {path.name for path in cache.iterdir()} <= {".lock", built.name}


@needs_kernels
def test_compiled_once_by_several(cache: Path) -> None:
    loaded = []
    threads = [threading.Thread(target=lambda: loaded.append(library())) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert None not in loaded
    assert len(loaded) == 3
    assert calls(cache) == 2


@needs_kernels
@pytest.mark.parametrize(
    "fault", ["half", "empty", "one bit", "others write", "foreign", "symbolic link"]
)
def test_a_wrong_library_is_compiled_again(
    fault: str, cache: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    library()
    (built,) = cache.glob("*.so")
    content = built.read_bytes()
    damaged = {
        "half": content[: len(content) // 2],
        "empty": b"",
        "one bit": content[:-1] + bytes([content[-1] ^ 1]),
    }
    if fault in damaged:
        built.unlink()  # this process has loaded it
        built.write_bytes(damaged[fault])
        built.chmod(0o700)
    elif fault == "others write":
        built.chmod(0o722)
    elif fault == "foreign":
        if os.geteuid() != 0:
            pytest.skip("only root can give a file away and keep its folder")
        give_away(built, monkeypatch)
    else:
        built.rename(cache.parent / "other")
        built.symlink_to(cache.parent / "other")
    assert library() is not None
    assert calls(cache) == 4
    assert "wrong checksum, owner or mode; it is compiled again" in caplog.text
    (built,) = cache.glob("*.so")
    assert built.read_bytes() == content
    assert not built.is_symlink()
    library()
    assert calls(cache) == 4


@needs_kernels
@pytest.mark.parametrize("fault", ["world-writable", "group-writable", "foreign"])
def test_a_folder_of_others_is_not_used(
    fault: str, cache: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    library()
    if fault == "foreign":
        give_away(cache, monkeypatch)
    else:
        cache.chmod(0o777 if fault == "world-writable" else 0o770)
    assert library() is None
    assert f"{cache} must belong to you and be writable by nobody else" in caplog.text
    assert len(caplog.records[-1].getMessage().splitlines()) == 1


@needs_kernels
def test_on_disk_before_it_has_its_name(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    events = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda file: (events.append("fsync"), fsync(file)))
    monkeypatch.setattr(os, "replace", lambda *a: (events.append("replace"), replace(*a)))
    assert library() is not None
    assert events == ["fsync", "replace"]


@needs_kernels
def test_what_killed_processes_leave_is_deleted(cache: Path) -> None:
    (cache / "build-killed").mkdir(parents=True)
    cache.chmod(0o700)
    (cache / "build-killed" / "winograd.o").write_bytes(b"half")
    assert library() is not None
    assert not list(cache.glob("build-*"))


@needs_kernels
@pytest.mark.parametrize("text", ["", "  ", None])
def test_without_cxx_it_is_the_systems_compiler(
    text: str | None, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if text is None:
        monkeypatch.delenv("CXX")
    else:
        monkeypatch.setenv("CXX", text)
    monkeypatch.setenv("PATH", str(cache.parents[1]), prepend=os.pathsep)
    assert library() is not None
    assert calls(cache) == 2


@pytest.mark.parametrize(
    ("text", "message"),
    [("no-such-compiler", "need Linux, a processor with AVX2 and a C++ compiler"), ('"c++', "CXX")],
)
def test_no_compiler(
    text: str, message: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("CXX", text)
    with caplog.at_level(logging.INFO, "condseg"):
        assert library() is None
    assert message in caplog.text


@needs_kernels
@pytest.mark.parametrize("broken", ["compiler", "cache", "home"])
def test_errors_are_logged(
    broken: str, cache: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    message = "no C++ kernels, PyTorch computes the same more slowly"
    if broken == "compiler":
        Path(os.environ["CXX"]).write_text("#!/bin/sh\necho no such standard >&2\nexit 1\n")
        message = "no such standard"
    elif broken == "cache":
        cache.parent.write_text("no folder", "ascii")
        message = str(cache)
    else:
        monkeypatch.delenv("XDG_CACHE_HOME")
        monkeypatch.setattr(Path, "home", no_home)
    assert library() is None
    assert message in caplog.text
