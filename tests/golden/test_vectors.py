"""Every case of every golden file is one test; see ``vectors.py`` for the rules.

``cases/`` holds some small cases of the golden folder, for checkouts without it.
"""

from __future__ import annotations

import json
from pathlib import Path

import ops_condinst  # noqa: F401
import ops_detector  # noqa: F401
import ops_layers  # noqa: F401
import pytest
import torch
import vectors

FOLDER = vectors.folder()
PATHS = [p for f in (vectors.COMMITTED, FOLDER) if f is not None for p in vectors.files(f)]
CASES = [
    pytest.param(path, name, id=f"{path.parent.name}/{path.name}:{name}")
    for path in PATHS
    for name in vectors.case_names(path)
]
pytestmark = pytest.mark.golden


@pytest.mark.skipif(
    FOLDER is None, reason="no ../shared/golden and no CONDSEG_GOLDEN: only the committed cases"
)
def test_folder_has_files() -> None:
    assert FOLDER is not None
    assert vectors.files(FOLDER), f"{FOLDER} holds no *.npz"


@pytest.mark.parametrize("path", PATHS, ids=lambda p: f"{p.parent.name}/{p.name}")
def test_no_array_without_case(path: Path) -> None:
    assert vectors.orphans(path) == []


@pytest.mark.parametrize(("path", "name"), CASES)
def test_case(path: Path, name: str) -> None:
    torch.manual_seed(0)
    vectors.judge(vectors.load(path, name))


@pytest.mark.parametrize("file", sorted(vectors.JUDGES))
def test_names(file: str) -> None:
    if FOLDER is None or not (FOLDER / file).is_file():
        pytest.skip(f"{file} is not there")
    vectors.JUDGES[file](json.loads((FOLDER / file).read_text()))


def _case(**groups: dict[str, torch.Tensor]) -> vectors.Case:
    return vectors.Case(
        Path("x.npz"), "c", "op", vectors.Read({}), {g: vectors.Read(v) for g, v in groups.items()}
    )


def test_a_case_nobody_looked_at_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vectors, "HANDLERS", {})
    vectors.handles("op", mode={"eval", "train"}, act={"ReLU"})(lambda case: None)
    one = {"y": torch.ones(2)}
    vectors.judge(_case())
    for group in ("out", "mid", "grad_in", "grad_param"):
        with pytest.raises(AssertionError, match=r"y never compared"):
            vectors.judge(_case(**{group: one}))
    with pytest.raises(AssertionError, match=r"in\.y never read"):
        vectors.judge(_case(**{"in": one}))
    for args, message in (
        ({"mode": "eval"}, "mode never read"),
        ({"mode": "x"}, "not among"),
        ({"act": "x"}, "not among"),
        ({"k": 1}, "k never read"),
    ):
        case = _case()
        case.args = vectors.Read(args)
        with pytest.raises(AssertionError, match=message):
            vectors.judge(case)
    with pytest.raises(AssertionError, match="unknown op"):
        vectors.judge(vectors.Case(Path("x"), "c", "other", vectors.Read({}), {}))


def test_comparison_sees_what_is_wrong() -> None:
    good = torch.tensor([1.0, -4.0])
    vectors.compare("x", good + 3e-5, good, rel=1e-5)
    for bad in (good + 5e-5, good[:1], torch.tensor([float("nan"), -4.0])):
        with pytest.raises(AssertionError):
            vectors.compare("x", bad, good, rel=1e-5)
