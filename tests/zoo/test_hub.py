"""Published models from a server on loopback: whole, cut off, tampered with."""

import gzip
import hashlib
from dataclasses import replace
from pathlib import Path

import pytest
from huggingface_hub import constants, file_download
from support import foreign
from support.loopback import use_hub
from support.rtmdet_tensors import checkpoint

from condseg.zoo.hub import fetch_model
from condseg.zoo.pretrained import convert, open_model
from condseg.zoo.registry import DEFAULT_MODEL, MODELS, PublishedModel

NAME = "condinst_r50_3x"
FILE = "/hub/tianzhi/AdelaiDet-CondInst/resolve/main/CondInst_MS_R_50_3x.pth"
PAGE = b"<html>please log in</html>"


@pytest.fixture(scope="module")
def content(tmp_path_factory):
    path = tmp_path_factory.mktemp("published") / "x.pth"
    return Path(foreign.save(foreign.adelaidet(foreign.small_network()), path)).read_bytes()


@pytest.fixture
def server(content, hub):
    hub.files[FILE] = content
    return hub


def publish(monkeypatch, server, digits):
    """A model of mmdetection, outside of the hub, whose file's name has digits of a SHA-256."""
    state = foreign.mmdetection(foreign.small_network("torchvision"))
    content = Path(foreign.save(state, "small.pth")).read_bytes()
    digits = digits or hashlib.sha256(content).hexdigest()[:8]
    model = PublishedModel(
        "small", "x.yaml", "mmdetection", f"{server.url}/v3.0", f"small-{digits}.pth", 1.0, 1.0
    )
    server.files[f"/v3.0/{model.file}"] = content
    monkeypatch.setitem(MODELS, "small", model)
    return f"/v3.0/{model.file}"


def test_downloaded_once_and_converted(server, capsys):
    assert len(open_model(model=NAME).categories) == 80
    printed = capsys.readouterr().err
    licence = printed.index("weights of AdelaiDet, for non-commercial use only")
    size = f"{len(server.files[FILE]) / 1e6:.1f} MB"
    assert licence < printed.index(f"downloading {size} from {server.url}{FILE}")
    server.files.clear()
    open_model(model=NAME, offline=True)
    assert server.asked == [(f"/storage{FILE}", None)]
    assert "non-commercial" not in capsys.readouterr().err


def test_a_lost_connection_is_resumed(server, content, monkeypatch):
    half = len(content) // 2
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", half)
    server.stop_after = [half]
    assert fetch_model(NAME).read_bytes() == content
    assert server.asked == [(f"/storage{FILE}", None), (f"/storage{FILE}", f"bytes={half}-")]


def test_a_download_that_breaks_off_leaves_nothing(server, content):
    server.stop_after = [0] * 6
    with pytest.raises(ValueError, match=r"3x\.pth cannot be downloaded \(.*; try again, or "):
        fetch_model(NAME)
    assert fetch_model(NAME).read_bytes() == content


@pytest.mark.parametrize("damage", ["truncated", "tampered", "a web page"])
def test_a_damaged_file_in_the_cache(server, content, damage):
    path = fetch_model(NAME).resolve()
    wrong = {"truncated": content[:-20], "tampered": content[:-1] + b"x", "a web page": PAGE}[
        damage
    ]
    path.write_bytes(wrong)
    asked = len(server.asked)
    with pytest.raises(ValueError, match=rf"{path} is .*; delete it, and it will be"):
        fetch_model(NAME)
    assert len(server.asked) == asked
    path.unlink()
    assert fetch_model(NAME).read_bytes() == content


def sends_a_page(server, content):
    server.files[FILE] = PAGE


def sends_other_bytes_than_promised(server, content):
    server.promised = "0" * 64


def promises_no_digest(server, content):
    server.promised = "5f3-abc"


def sends_more_than_promised(server, content):
    server.files[FILE] = content + bytes(30 << 20)
    server.size = len(content)


def unpacks_to_more_than_promised(server, content):
    server.files[FILE] = gzip.compress(content + bytes(30 << 20))
    server.headers["Content-Encoding"] = "gzip"


@pytest.mark.parametrize(
    ("server_that", "message"),
    [
        (sends_a_page, "is no file of torch.save, it begins with b'<html>.*; it was not kept"),
        (sends_other_bytes_than_promised, "SHA-256 begins with .*, not 0000.*; it was not kept"),
        (promises_no_digest, "sends no size and SHA-256 of the file"),
        (sends_more_than_promised, r"sends more than the \d+ bytes that it promised"),
        (unpacks_to_more_than_promised, r"sends more than the \d+ bytes that it promised"),
    ],
)
def test_a_wrong_file_is_not_kept(server, content, tmp_path, monkeypatch, server_that, message):
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 1 << 20)
    sizes = []

    def download(url, file, **options):
        try:
            http_get(url, file, **options)
        finally:
            sizes.append(file.tell())

    http_get = file_download.http_get
    monkeypatch.setattr(file_download, "http_get", download)
    server_that(server, content)
    with pytest.raises(ValueError, match=message):
        fetch_model(NAME)
    assert all(size <= max(len(content), len(PAGE)) for size in sizes)
    assert not list((tmp_path / "cache").glob("hub/models*/blobs/*"))
    assert not list((tmp_path / "cache").rglob("*.pth"))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (NAME, r"condinst_r50_3x is not in .*hub; without --offline .* with 'condseg convert"),
        (
            "rtmdet_ins_m",
            r"download https://download.openmmlab.com/.*-6eba602e.pth .* put it at .*",
        ),
        ("condinst_r50_mmdet", r"condinst_r50_mmdet is not in .*torch/hub/checkpoints; without"),
        ("condinst_r50_3xx", "did you mean condinst_r50_3x?"),
    ],
)
def test_offline_and_unknown(server, name, message):
    with pytest.raises(ValueError, match=message):
        fetch_model(name, offline=True)
    assert server.asked == []


def test_where_nothing_was_trained_rtmdet_is_downloaded(server, tmp_path, monkeypatch, capsys):
    state = checkpoint("tiny")
    foreign.save({"meta": {"epoch": 300}, "state_dict": state}, tmp_path / "x.pth")
    content = (tmp_path / "x.pth").read_bytes()
    digits = hashlib.sha256(content).hexdigest()[:8]
    published = MODELS[DEFAULT_MODEL]
    assert published.name == "rtmdet_ins_m"
    model = replace(published, folder=f"{server.url}/v3.0", file=f"rtmdet_x-{digits}.pth")
    monkeypatch.setitem(MODELS, DEFAULT_MODEL, model)
    server.files[f"/v3.0/{model.file}"] = content
    restored = open_model()
    assert restored.network.backbone.letterbox
    assert (restored.short_side, restored.max_long_side) == (640, 640)
    assert restored.categories[0].name == "person"
    printed = capsys.readouterr().err
    assert "rtmdet_ins_m: weights of mmdetection, Apache-2.0\n" in printed
    size = f"{len(content) / 1e6:.1f} MB"
    assert f"downloading {size} from {server.url}/v3.0/{model.file}" in printed
    server.files.clear()
    assert open_model(offline=True).source == "model rtmdet_ins_m"


def test_no_such_file_and_no_server(server, tmp_path, monkeypatch):
    server.files.clear()
    with pytest.raises(ValueError, match=r"3x\.pth cannot be downloaded \(.*404.*condseg convert"):
        fetch_model(NAME)
    use_hub(monkeypatch, "http://127.0.0.1:9", tmp_path / "other")
    nowhere = replace(MODELS[DEFAULT_MODEL], folder="http://127.0.0.1:9")
    monkeypatch.setitem(MODELS, DEFAULT_MODEL, nowhere)
    with pytest.raises(ValueError, match=r"none under runs/, .*refused.*--config quickstart'"):
        open_model()
    with pytest.raises(ValueError, match="only one is allowed"):
        open_model("a.ckpt", NAME)


def test_outside_of_the_hub(server, monkeypatch):
    file = publish(monkeypatch, server, "01234567")
    with pytest.raises(ValueError, match=r"with SHA256 .*, expected .* with 01234567; deleted"):
        fetch_model("small")
    server.headers["Content-Type"] = "text/html"
    with pytest.raises(ValueError, match=r"the server sends a web page \(text/html\) in place"):
        fetch_model("small")
    server.headers = {"Content-Length": None}
    with pytest.raises(ValueError, match="sends no Content-Length"):
        fetch_model("small")
    server.headers.clear()
    assert [asked for asked, _ in server.asked] == [file]
    with pytest.raises(ValueError, match="is not in"):
        fetch_model("small", offline=True)
    file = publish(monkeypatch, server, "")
    path = fetch_model("small")
    assert convert(path)["source"] == "mmdetection"
    assert path.is_file()
    path.rename(path.with_name("elsewhere"))
    path.write_bytes(server.files[file])  # by hand
    asked = len(server.asked)
    assert fetch_model("small", offline=True) == path
    path.write_bytes(server.files[file][:-1] + b"x")
    with pytest.raises(ValueError, match="is damaged: its SHA-256"):
        fetch_model("small")
    assert len(server.asked) == asked
