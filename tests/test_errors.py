import pytest
import torch

from condseg.errors import user_errors


@pytest.mark.parametrize("error", [ValueError("score is 2; 0..1"), FileNotFoundError("no a.json")])
def test_one_line_and_code_2(error, capsys, monkeypatch):
    monkeypatch.delenv("CONDSEG_TRACEBACK", raising=False)
    with pytest.raises(SystemExit) as stop, user_errors():
        raise error
    assert stop.value.code == 2
    assert capsys.readouterr().err == f"error: {error}\n"


def test_our_own_mistakes_keep_their_traceback():
    with pytest.raises(TypeError), user_errors():
        raise TypeError


def test_the_traceback_can_be_asked_for(monkeypatch):
    monkeypatch.setenv("CONDSEG_TRACEBACK", "1")
    with pytest.raises(ValueError, match="seen"), user_errors():
        raise ValueError("seen")


def test_memory_that_ended_names_what_to_turn(capsys):
    with pytest.raises(SystemExit) as stop, user_errors("--batch_size 1"):
        torch.empty(10**6, 10**9)
    assert stop.value.code == 2
    expected = "out of memory (CPU, 3725290.30 GiB asked for); what needs less: --batch_size 1"
    assert capsys.readouterr().err == f"error: {expected}\n"


def test_memory_of_a_gpu_that_ended(capsys):
    error = torch.OutOfMemoryError(
        "CUDA out of memory. Tried to allocate 20.00 GiB. GPU 0 has a total capacity of 10.00 GiB"
    )
    with pytest.raises(SystemExit), user_errors("--batch_size 1"):
        raise error
    assert "out of memory (CUDA, 20.00 GiB asked for)" in capsys.readouterr().err


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("MPS backend out of memory")])
def test_memory_that_ended_without_a_number(error, capsys):
    with pytest.raises(SystemExit), user_errors():
        raise error
    assert capsys.readouterr().err.startswith("error: out of memory; what needs less:")


def test_other_errors_of_torch_keep_their_traceback():
    with pytest.raises(RuntimeError, match="shapes"), user_errors():
        raise RuntimeError("shapes differ")
