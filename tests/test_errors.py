"""Errors that a user can correct; others keep their traceback."""

import subprocess
import sys

import pytest
import torch
from support.tiny import environment
from torch.utils.data import DataLoader, Dataset

from condseg import errors
from condseg.errors import user_errors

OOM = "CUDA out of memory. Tried to allocate 20.00 GiB. GPU 0 has a total capacity of 10.00 GiB"


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (ValueError("score is 2; 0..1"), "score is 2; 0..1"),
        (FileNotFoundError("no a.json"), "no a.json"),
        (torch.OutOfMemoryError(OOM), "out of memory (CUDA, 20.00 GiB requested); to use less: b"),
        (MemoryError(), "out of memory; to use less: b"),
        (RuntimeError("MPS backend out of memory"), "out of memory; to use less: b"),
    ],
)
def test_one_line_and_code_2(error, message, capsys, monkeypatch):
    monkeypatch.delenv("CONDSEG_TRACEBACK", raising=False)
    with pytest.raises(SystemExit) as stop, user_errors("b"):
        raise error
    assert stop.value.code == 2
    assert capsys.readouterr().err == f"error: {message}\n"


def test_ctrl_c_is_one_line_and_code_130(capsys, monkeypatch):
    monkeypatch.delenv("CONDSEG_TRACEBACK", raising=False)
    with pytest.raises(SystemExit) as stop, user_errors():
        raise KeyboardInterrupt
    assert stop.value.code == 130
    assert capsys.readouterr().err == "stopped\n"


def test_exhausted_memory_of_the_cpu(capsys):
    with pytest.raises(SystemExit), user_errors("--batch_size 1"):
        torch.empty(10**6, 10**9)
    message = "out of memory (CPU, 3725290.30 GiB requested); to use less: --batch_size 1"
    assert capsys.readouterr().err == f"error: {message}\n"


class Broken(Dataset):
    def __getitem__(self, index):
        try:
            raise OSError("image file is truncated")
        except OSError as error:
            raise ValueError("a.jpg (image 3): cannot be read") from error


def test_an_error_in_a_worker_of_a_loader(capsys):
    with pytest.raises(SystemExit), user_errors():
        next(iter(DataLoader(Broken(), sampler=[0], num_workers=1)))
    assert capsys.readouterr().err == "error: a.jpg (image 3): cannot be read\n"


@pytest.mark.parametrize("error", [TypeError("x"), RuntimeError("shapes differ")])
def test_bugs_keep_their_traceback(error):
    with pytest.raises(type(error), match=str(error)), user_errors():
        raise error


def test_traceback_on_request(monkeypatch):
    monkeypatch.setenv("CONDSEG_TRACEBACK", "1")
    with pytest.raises(ValueError, match="seen"), user_errors():
        raise ValueError("seen")


RANK_1 = """
from condseg.errors import user_errors
with user_errors():
    print("started", flush=True)
    raise ValueError("rank 1")
"""
FIRST = """
import subprocess, sys
child = subprocess.Popen([sys.executable, "-c", sys.argv[1]], stdout=subprocess.PIPE)
child.stdout.readline()
if "waits" in sys.argv:
    child.wait()
"""


@pytest.mark.tool
@pytest.mark.parametrize("first", ["waits", "ends"])
def test_of_several_processes_the_first_reports(first):
    """The others do if the first one goes on, as they alone may have the error."""
    variables = environment() | {"LOCAL_RANK": "1"}
    command = [sys.executable, "-c", FIRST, RANK_1, first]
    done = subprocess.run(command, env=variables, capture_output=True, text=True)
    assert done.stderr == ("error: rank 1\n" if first == "waits" else "")


def test_a_process_that_torchrun_ends_has_not_reported(capsys, monkeypatch):
    class EndedError(BaseException):
        """Raised by the handler of a signal."""

    def sleep(seconds):
        raise EndedError

    monkeypatch.setenv("RANK", "1")
    monkeypatch.setattr(errors.time, "sleep", sleep)
    with pytest.raises(EndedError), user_errors():
        raise ValueError("all ranks")
    assert not capsys.readouterr().err
