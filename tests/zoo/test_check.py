"""``condseg models --check`` against a server on loopback, for each kind of source."""

from dataclasses import replace
from pathlib import Path

import pytest
from support.loopback import HUB, serving, use_hub

from condseg.cli.models import main
from condseg.zoo import check
from condseg.zoo.registry import MODELS

HERE, ABSENT = "condinst_r50_1x", "condinst_r50_3x"
FOLDER = f"{HUB}/tianzhi/AdelaiDet-CondInst/resolve/main"


def test_each_kind_of_source(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with serving() as server:
        use_hub(monkeypatch, server.url, tmp_path)
        outside = replace(MODELS["rtmdet_ins_s"], folder=f"{server.url}/v3.0")
        gone = replace(MODELS["rtmdet_ins_m"], folder=f"{server.url}/v3.0")
        models = {m.name: m for m in (MODELS[HERE], MODELS[ABSENT], outside, gone)}
        monkeypatch.setattr(check, "MODELS", models)
        monkeypatch.setattr(check, "DRIVE", f"{server.url}/drive")
        pages = (("resnet18", 1, "key1", 70.0), ("resnet50", 4, "key2", None))
        monkeypatch.setattr(check, "BACKBONES", pages)
        server.files[f"{FOLDER}/CondInst_MS_R_50_1x.pth"] = bytes(1_500_000)
        server.files[f"/v3.0/{outside.file}"] = bytes(2_000_000)
        server.files["/drive/key1/view"] = b"<html>"
        assert main(["--check"]) == 1
        assert server.asked == []  # no GET
        url = server.url
    rows = [line.split(" | ") for line in capsys.readouterr().out.splitlines()[2:]]
    assert [row[0] for row in rows] == [
        *(f"| `{name}`" for name in models),
        "| `resnet18, 1 experts`",
        "| `resnet50, 4 experts`",
    ]
    answers = [row[1] for row in rows]
    assert [answers[0], answers[2], answers[4]] == ["1.5 MB", "2.0 MB", "there"]
    assert all("404" in answers[i] for i in (1, 3, 5))
    assert rows[2][2] == f"{url}/v3.0/{outside.file} |"


def test_without_a_server_each_file_has_its_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_hub(monkeypatch, "http://127.0.0.1:9", tmp_path)
    nowhere = replace(MODELS["rtmdet_ins_s"], folder="http://127.0.0.1:9")
    monkeypatch.setattr(check, "MODELS", {HERE: MODELS[HERE], nowhere.name: nowhere})
    monkeypatch.setattr(check, "BACKBONES", ())
    for answer in check.check_files():
        assert "refused" in answer.error
        assert answer.size is None
