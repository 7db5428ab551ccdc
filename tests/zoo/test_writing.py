"""A failed or killed write leaves the file from before."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from condseg.zoo.checkpoint import load
from condseg.zoo.writing import earlier, write

CONTENT = {"state_dict": {"weight": torch.ones(50, 1000)}, "step": 2}


def step(path: Path) -> int:
    return int(torch.load(path)["step"])


@pytest.mark.parametrize(
    ("keep", "steps"), [(1, {"": 4}), (2, {"": 4, "_1": 3}), (3, {"": 4, "_1": 3, "_2": 2})]
)
@pytest.mark.parametrize("links", [True, False])
def test_keeps_earlier_versions(
    tmp_path: Path, keep: int, steps: dict[str, int], links: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> None:
        raise PermissionError(1, "Operation not permitted")

    if not links:
        monkeypatch.setattr(Path, "hardlink_to", refuse)
    for number in range(5):
        write({"step": number}, tmp_path / "last.ckpt", keep)
    assert {path.name: step(path) for path in tmp_path.iterdir()} == {
        f"last{suffix}.ckpt": number for suffix, number in steps.items()
    }
    assert earlier(tmp_path / "last.ckpt").name == "last_1.ckpt"


def test_a_file_size_limit(tmp_path: Path) -> None:
    """torch.save hides the system's error behind one of its own."""
    path = tmp_path / "last.ckpt"
    write({"step": 1}, path, 2)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        with pytest.raises(OSError, match=r"last\.ckpt: File too large; 200,000 bytes needed, "):
            write(CONTENT, path, 2)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert os.listdir(tmp_path) == ["last.ckpt"]
    assert step(path) == 1


def test_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = Path.open

    def full(path: Path, *args: Any) -> Any:
        opened(path, *args).close()
        return open("/dev/full", *args)

    path = tmp_path / "last.ckpt"
    write({"step": 1}, path, 2)
    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", full)
        with pytest.raises(
            OSError,
            match=r"last\.ckpt: disk full; 200,000 bytes needed, [\d,]+ free; last\.ckpt is still",
        ):
            write(CONTENT, path, 2)
    assert os.listdir(tmp_path) == ["last.ckpt"]
    assert step(path) == 1


def test_temporary_files_of_dead_processes_are_removed(tmp_path: Path) -> None:
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    path = tmp_path / "last.ckpt"
    numbers = {"dead": dead.pid, "own": os.getpid(), "parent": os.getppid()}
    for name in ("last.ckpt", "last_1.ckpt", "best.ckpt"):
        for number in numbers.values():
            (tmp_path / f".{name}.{number}.partial").touch()
    write({"step": 1}, path, 2)
    left = {p.name for p in tmp_path.glob(".last*")}
    assert left == {f".{name}.{os.getppid()}.partial" for name in ("last.ckpt", "last_1.ckpt")}
    assert len(list(tmp_path.glob(".best.*"))) == 3


def test_an_error_of_the_content_keeps_its_type(tmp_path: Path) -> None:
    with pytest.raises((AttributeError, TypeError), match=r"pickle|local object"):
        write({"step": lambda: None}, tmp_path / "last.ckpt")
    assert os.listdir(tmp_path) == []


def test_a_damaged_checkpoint_names_the_one_before(tmp_path: Path) -> None:
    path = tmp_path / "last.ckpt"
    for number in range(2):
        write(CONTENT | {"step": number}, path, 2)
    path.write_bytes(path.read_bytes()[:-3000])
    with pytest.raises(
        ValueError, match=r"/last\.ckpt .*; the checkpoint before it is .*/last_1\."
    ):
        load(path)
    assert load(earlier(path))["step"] == 0
