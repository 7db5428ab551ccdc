"""Published models from a server on loopback: whole, cut off, tampered with."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from support import foreign
from support.loopback import Server, serving

from condseg.data.transfer import DownloadError
from condseg.zoo import hub, published
from condseg.zoo.hub import cache_folder, fetch_model
from condseg.zoo.pretrained import convert, open_model

NAME = "condinst_r50_3x"
PLACE = "/hub/tianzhi/AdelaiDet-CondInst/resolve/main/CondInst_MS_R_50_3x.pth"


def saved(state: dict[str, torch.Tensor]) -> bytes:
    buffer = io.BytesIO()
    torch.save(state, buffer)
    return buffer.getvalue()


@pytest.fixture(scope="module")
def content() -> bytes:
    return saved(foreign.adelaidet(foreign.small_network()))


@pytest.fixture
def server(content: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    with serving() as one:
        monkeypatch.setenv("HF_ENDPOINT", f"{one.url}/hub/")
        one.files[PLACE] = content
        yield one


def names() -> list[str]:
    return sorted(path.name for path in cache_folder().iterdir() if path.suffix != ".lock")


def test_fetched_once_converted_and_checked(
    server: Server, content: bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    restored = open_model(model=NAME)
    assert restored.network.num_classes == 80
    said = capsys.readouterr().err
    assert said.index("for non-commercial use only") < said.index("fetching http://127.0.0.1")
    assert names() == ["CondInst_MS_R_50_3x.pth", "CondInst_MS_R_50_3x.pth.json"]
    notes = json.loads((cache_folder() / "CondInst_MS_R_50_3x.pth.json").read_text())
    assert notes["size"] == len(content)
    assert notes["sha256"] == hashlib.sha256(content).hexdigest()
    asked = len(server.asked)
    open_model(model=NAME, offline=True)
    open_model()  # the default where nothing was trained
    assert len(server.asked) == asked
    assert "non-commercial" not in capsys.readouterr().err


def test_it_goes_on_where_the_connection_broke(server: Server, content: bytes) -> None:
    server.stop_after = len(content) // 2
    with pytest.raises(DownloadError, match=r"after \d+ of \d+ bytes.*goes on from there"):
        fetch_model(NAME)
    assert names() == ["CondInst_MS_R_50_3x.pth.part"]
    server.stop_after = None
    assert fetch_model(NAME).read_bytes() == content
    assert server.asked[-1] == (f"/store{PLACE}", f"bytes={len(content) // 2}-")


def test_other_bytes_than_the_hub_promises(
    server: Server, content: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    promised = hashlib.sha256(b"other").hexdigest()
    monkeypatch.setattr(hub, "_ask", lambda *_: (len(content), promised))
    with pytest.raises(DownloadError, match=f"SHA256 .* with {promised}; deleted"):
        fetch_model(NAME)
    assert names() == []


@pytest.mark.parametrize("damage", ["truncated", "tampered"])
def test_a_damaged_file_in_the_cache(server: Server, content: bytes, damage: str) -> None:
    path = fetch_model(NAME)
    path.write_bytes(content[:-20] if damage == "truncated" else content[:-1] + b"x")
    with pytest.raises(ValueError, match=r"is damaged: \d+ bytes with SHA-256 .*; delete it"):
        fetch_model(NAME)
    path.unlink()
    assert fetch_model(NAME).read_bytes() == content


def test_a_file_that_changed_on_the_server(server: Server, content: bytes) -> None:
    path = fetch_model(NAME)
    path.unlink()
    server.files[PLACE] = content + b"more"
    with pytest.raises(DownloadError, match=r"when it was first fetched it had .*delete .*json"):
        fetch_model(NAME)
    path.with_name(f"{path.name}.json").unlink()
    assert fetch_model(NAME).stat().st_size == len(content) + 4


def test_notes_that_cannot_be_read(server: Server) -> None:
    path = fetch_model(NAME)
    path.with_name(f"{path.name}.json").write_text("{}")
    with pytest.raises(ValueError, match=r"json is damaged .*; delete it"):
        fetch_model(NAME)


def test_a_file_put_there_by_hand(server: Server, content: bytes) -> None:
    cache_folder().mkdir(parents=True)
    path = cache_folder() / "CondInst_MS_R_50_3x.pth"
    path.write_bytes(content)
    assert fetch_model(NAME, offline=True) == path
    assert server.asked == []
    path.write_bytes(content[:-1] + b"x")
    with pytest.raises(ValueError, match="is damaged"):
        fetch_model(NAME, offline=True)


def test_offline_and_unknown(server: Server) -> None:
    with pytest.raises(ValueError, match=r"not in the cache: without --offline it is fetched to "):
        fetch_model(NAME, offline=True)
    with pytest.raises(ValueError, match="did you mean condinst_r50_3x"):
        fetch_model("condinst_r50_3xx")
    assert not cache_folder().exists()


def test_no_such_file_and_no_server(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    server.files.clear()
    with pytest.raises(DownloadError, match=r"answers 404 .*or put the file at .*3x\.pth"):
        fetch_model(NAME)
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(ValueError, match=r"none under runs/, .*refused.*quickstart\.yaml"):
        open_model()
    with pytest.raises(ValueError, match="give one of them"):
        open_model("a.ckpt", NAME)


def test_mmdetection_names_the_sum_in_the_file_name(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = saved(foreign.mmdetection(foreign.small_network("torchvision")))
    digest = hashlib.sha256(content).hexdigest()

    def publish(checksum: str) -> None:
        place = f"/v3.0/small_2022-{checksum}.pth"
        server.files[place] = content
        url = f"{server.url}{place}"
        model = published.Published("small", "x.yaml", "mmdetection", url, 1.0, 1.0)
        monkeypatch.setitem(published.MODELS, "small", model)

    publish("01234567")
    with pytest.raises(DownloadError, match="bytes with 01234567; deleted"):
        fetch_model("small")
    publish(digest[:8])
    assert convert(fetch_model("small"))["source"] == "mmdetection"


def test_a_page_in_place_of_the_file(server: Server) -> None:
    server.files[PLACE] = b"<html>moved</html>"
    with pytest.raises(ValueError, match=r"3x\.pth (is damaged|cannot be read)"):
        open_model(model=NAME)
