"""Checkpoints of an address and of repositories of the hub, from a server on loopback."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
from huggingface_hub import constants
from support import tiny

import condseg
from condseg.cli.predict import main as predict
from condseg.zoo import remote
from condseg.zoo.pretrained import open_model, start_content
from condseg.zoo.remote import is_remote

ON_HUB = "/hub/me/shapes/resolve/main/runs/best.ckpt"
LIST = "/api/models/me/shapes/tree/main?recursive=true&expand=false"


@pytest.fixture(scope="module")
def content(tmp_path_factory):
    return tiny.write_checkpoint(tmp_path_factory.mktemp("run") / "best.ckpt").read_bytes()


@pytest.fixture
def server(content, hub, monkeypatch):
    monkeypatch.setattr(constants, "ENDPOINT", hub.url)
    hub.files |= {ON_HUB: content, "/models/best.ckpt": content}
    files = [{"type": "file", "path": p, "oid": "0", "size": 1} for p in FILES]
    hub.files[LIST] = json.dumps(files).encode()
    return hub


FILES = ["README.md", "runs/best.ckpt"]


def test_what_is_remote(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    for source in ("https://a.org/x", "hf://me/shapes", "hf://me/shapes/a/b.ckpt", "me/shapes"):
        assert is_remote(source)
    for source in ("me/shapes.ckpt", "runs/shapes", "a/b/c", "condinst_r50_3x", "/me/shapes"):
        assert not is_remote(source)


@pytest.mark.parametrize("source", ["me/shapes", "hf://me/shapes", "hf://me/shapes/runs/best.ckpt"])
def test_a_repository_of_the_hub(server, source):
    model = condseg.load(source, device="cpu")
    assert (model.names, model.source) == (("box", "disc", "spoon"), source)
    assert "/storage" in server.asked[-1][0]
    # The second time, and offline, it is not downloaded.
    count = len(server.asked)
    assert str(open_model(source)).startswith(f"checkpoint {source}: 3 classes")
    assert [path for path, _ in server.asked[count:]] in ([], [LIST])
    server.files.clear()
    condseg.load(source, device="cpu", offline=True)


def test_an_address(server, tmp_path):
    url = f"{server.url}/models/best.ckpt"
    assert condseg.load(url, device="cpu").source == url
    server.files.clear()
    condseg.load(url, device="cpu")
    assert start_content(url)["global_step"] == 70
    assert len(server.asked) == 1


def test_a_file_that_its_name_or_the_hub_does_not_promise(server, content, monkeypatch):
    digits = hashlib.sha256(content).hexdigest()[:8]
    server.files |= {f"/right-{digits}.ckpt": content, "/wrong-12345678.ckpt": content}
    condseg.load(f"{server.url}/right-{digits}.ckpt", device="cpu")
    with pytest.raises(ValueError, match=r"expected \d+ bytes with 12345678"):
        condseg.load(f"{server.url}/wrong-12345678.ckpt")
    server.promised = "0" * 64
    server.size = len(content) - 1
    with pytest.raises(ValueError, match="sends more than the"):
        condseg.load("hf://me/shapes/runs/best.ckpt")
    monkeypatch.setattr(remote, "MAX_BYTES", 1000)
    with pytest.raises(ValueError, match=r"has \d+ bytes; up to 1000 are allowed"):
        condseg.load(f"{server.url}/models/best.ckpt")
    assert not [p for p in Path("cache").rglob("*wrong*.ckpt") if p.is_file()]


def test_one_line(server, capsys):
    pages = {"/page.ckpt": b"text", "/hub/me/shapes/resolve/main/runs/best.ckpt": b""}
    server.files |= pages
    two = [{"type": "file", "path": f"{n}.ckpt", "oid": "0", "size": 1} for n in "ab"]
    server.files[LIST] = json.dumps(two).encode()
    for source, message in (
        ("me/shapes", "me/shapes cannot be downloaded (it has a.ckpt, b.ckpt; hf://me/shapes/FILE"),
        ("hf://me", "hf://me: hf://user/repository or hf://user/repository/file is allowed"),
        ("hf://me/none/a.ckpt", "hf://me/none/a.ckpt cannot be downloaded ("),
        (f"{server.url}/none.ckpt", f"{server.url}/none.ckpt cannot be downloaded (the server ans"),
        (f"{server.url}/page.ckpt", "page.ckpt cannot be read, is it whole?"),
    ):
        assert message in tiny.error(predict, ["x.png", "--checkpoint", source], capsys)
    for source in (f"{server.url}/models/best.ckpt", "hf://me/shapes/a.ckpt"):
        message = tiny.error(predict, ["x.png", "--checkpoint", source, "--offline"], capsys)
        assert "without --offline" in message
