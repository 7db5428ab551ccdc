"""The download of COCO from a server on loopback that can misbehave."""

import hashlib
import io
import os
import threading
import time
import zipfile
from dataclasses import replace

import pytest
from support.loopback import serving
from support.tiny import error

from condseg.cli.download import main
from condseg.data import download as module
from condseg.data import fetch
from condseg.data.download import COCO_2017, Archive, DownloadError, download


def zipped(folder, files):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in files.items():
            archive.writestr(f"{folder}/{name}", content)
    return buffer.getvalue()


@pytest.fixture
def server():
    with serving() as one:
        yield one


CONTENT = {"a.bin": os.urandom(200_000), "sub/b.txt": b"text"}
ZIP = zipped("val2017", CONTENT)


def archive_of(content, **change):
    md5 = hashlib.md5(content).hexdigest()
    archive = Archive("zips/val2017.zip", len(content), md5, 300_000, "val2017")
    return replace(archive, **change)


def check_in_place(folder):
    for name, content in CONTENT.items():
        assert (folder / "val2017" / name).read_bytes() == content
    assert [path.name for path in folder.glob("[!.]*")] == ["val2017"]


def test_downloaded_checked_unpacked_and_not_downloaded_again(tmp_path, server):
    server.files["/zips/val2017.zip"] = ZIP
    for _ in range(2):
        download(tmp_path / "new", [archive_of(ZIP)], server.url)
    assert server.asked == [("/zips/val2017.zip", None)]
    check_in_place(tmp_path / "new")


def test_three_downloads_into_one_folder(tmp_path, server, capsys):
    """One downloads while the others wait."""
    server.files["/zips/val2017.zip"] = ZIP
    server.may_answer.clear()
    failures = []

    def call():
        try:
            download(tmp_path, [archive_of(ZIP)], server.url)
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=call) for _ in range(3)]
    for thread in threads:
        thread.start()
    waiting, deadline = "", time.monotonic() + 60
    while len(server.asked) + waiting.count("locked by another process, waiting") < 3:
        assert time.monotonic() < deadline
        time.sleep(0.01)
        waiting += capsys.readouterr().err
    server.may_answer.set()
    for thread in threads:
        thread.join()
    assert not failures
    assert server.asked == [("/zips/val2017.zip", None)]
    check_in_place(tmp_path)


def test_a_lost_connection_is_resumed(tmp_path, server):
    server.files["/zips/val2017.zip"] = ZIP
    server.stop_after = [80_000, 80_000]
    for _ in range(2):
        with pytest.raises(DownloadError, match=r"after \d+ of \d+ bytes.*resumes it"):
            download(tmp_path, [archive_of(ZIP)], server.url)
    assert (tmp_path / "val2017.zip.part").stat().st_size == 160_000
    download(tmp_path, [archive_of(ZIP)], server.url)
    assert [asked for _, asked in server.asked] == [None, "bytes=80000-", "bytes=160000-"]
    check_in_place(tmp_path)


@pytest.mark.parametrize("size", [10, len(ZIP), len(ZIP) + 10])
@pytest.mark.parametrize("kind", ["right", "wrong", "without ranges"])
def test_a_part_of_any_size(tmp_path, server, size, kind):
    """Killed at any time, also before the renaming; or the part of another file."""
    server.files["/zips/val2017.zip"] = ZIP
    server.ranges = kind != "without ranges"
    part = ZIP + b"x" * 10 if kind == "right" else b"x" * (len(ZIP) + 10)
    (tmp_path / "val2017.zip.part").write_bytes(part[:size])
    restarts = kind == "without ranges" and size < len(ZIP)
    if size > len(ZIP) or (kind != "right" and not restarts):
        with pytest.raises(DownloadError, match=r"MD5 .* downloads it again"):
            download(tmp_path, [archive_of(ZIP)], server.url)
    download(tmp_path, [archive_of(ZIP)], server.url)
    check_in_place(tmp_path)


WRONG_CRC = ZIP[:100_000] + bytes([ZIP[100_000] ^ 1]) + ZIP[100_001:]  # in a.bin
OTHER = zipped("other", CONTENT)


@pytest.mark.parametrize(
    ("sent", "expected", "message"),
    [
        (ZIP + b"more", ZIP, f"has {len(ZIP) + 4} bytes, expected {len(ZIP)}"),
        (ZIP[:-1] + b"?", ZIP, "MD5"),
        (WRONG_CRC, WRONG_CRC, r"cannot be unpacked .*CRC"),
        (b"no zip", b"no zip", "cannot be unpacked"),
        (OTHER, OTHER, "cannot be unpacked"),
    ],
    ids=["size", "checksum", "CRC", "no zip", "other zip"],
)
def test_a_wrong_file_leaves_nothing_behind(tmp_path, server, sent, expected, message):
    server.files["/zips/val2017.zip"] = sent
    with pytest.raises(DownloadError, match=message):
        download(tmp_path, [archive_of(expected)], server.url)
    assert not any(path.is_dir() or path.stat().st_size for path in tmp_path.iterdir())


@pytest.mark.parametrize(
    ("headers", "message"),
    [
        ({"Content-Type": "text/html; charset=utf-8"}, r"sends a web page \(text/html\) in place"),
        ({"Content-Length": None}, r"with MD5 .*, expected 200\d+ bytes"),
    ],
    ids=["web page", "endless"],
)
def test_no_more_is_written_than_was_promised(tmp_path, server, monkeypatch, headers, message):
    server.files["/zips/val2017.zip"] = ZIP + bytes(50 << 20)
    server.headers = headers
    written = []
    advance = fetch.Progress.advance
    monkeypatch.setattr(
        fetch.Progress, "advance", lambda *args: (written.append(args[2]), advance(*args))
    )
    with pytest.raises(DownloadError, match=message):
        download(tmp_path, [archive_of(ZIP)], server.url)
    assert sum(written) <= len(ZIP) + (1 << 20)
    assert not list(tmp_path.glob("val2017"))


def test_no_server(tmp_path):
    with pytest.raises(DownloadError, match=r"val2017\.zip: no connection \(.*refused"):
        download(tmp_path, [archive_of(ZIP)], "http://127.0.0.1:9")


@pytest.mark.parametrize("keep", [True, False])
def test_the_disk_is_checked_first(tmp_path, server, monkeypatch, keep):
    archives = [archive_of(ZIP), archive_of(ZIP, path="zips/train2017.zip", holds="train2017")]
    # Peak: the first unpacked (and kept), the second there twice.
    peak = 300_000 + (len(ZIP) if keep else 0) + len(ZIP) + 300_000
    usage = module.shutil.disk_usage(tmp_path)

    def free(amount):
        monkeypatch.setattr(module.shutil, "disk_usage", lambda _: usage._replace(free=amount))

    free(peak - 1)
    with pytest.raises(DownloadError, match=r"GB are needed, .* are free"):
        download(tmp_path, archives, server.url, keep_archives=keep)
    assert server.asked == []
    server.files["/zips/val2017.zip"] = ZIP
    server.files["/zips/train2017.zip"] = zipped("train2017", CONTENT)
    md5 = hashlib.md5(server.files["/zips/train2017.zip"]).hexdigest()
    archives[1] = replace(archives[1], size=len(server.files["/zips/train2017.zip"]), md5=md5)
    free(2 * peak)
    download(tmp_path, archives, server.url, keep_archives=keep)
    assert (tmp_path / "val2017.zip").exists() == keep
    assert (tmp_path / "train2017" / "a.bin").exists()


def test_the_command(tmp_path, server, capsys):
    """A mirror without the file: one line and code 2."""
    args = ["--folder", str(tmp_path), "--base-url", server.url, "--only", "annotations"]
    message = "annotations_trainval2017.zip: the server answers 404"
    assert message in error(main, args, capsys)


def test_the_archives_of_coco_2017():
    assert {archive.holds for archive in COCO_2017} == {"annotations", "train2017", "val2017"}
    assert sum(archive.size for archive in COCO_2017) == 20_405_354_669
