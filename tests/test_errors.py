import pytest

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
