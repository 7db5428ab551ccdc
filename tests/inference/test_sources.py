"""What folders and patterns stand for."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from condseg.data.images import read_image
from condseg.inference.sources import Source, find_inputs

PIXELS = np.full((16, 16, 3), 120, np.uint8)


def test_images_of_all_kinds_in_a_folder(tmp_path):
    """By suffix, or by content where there is none; the rest is counted."""
    kinds = {".jfif": "JPEG", ".avif": "AVIF", ".jp2": "JPEG2000", ".JPG": "JPEG", "": "PNG"}
    for suffix, kind in kinds.items():
        Image.fromarray(PIXELS).save(tmp_path / f"a{suffix}", kind)
    for name in ("photo.heic", "clip.mp4", "notes.txt", "more.txt", "Makefile", "labels.xml"):
        (tmp_path / name).write_text("nothing")
    (tmp_path / "folder.jpg").mkdir()
    found = find_inputs([str(tmp_path), str(tmp_path / "*")])
    names = {source.path.name for source in found.sources}
    assert names == {"a", "a.JPG", "a.avif", "a.jfif", "a.jp2", "clip.mp4", "photo.heic"}
    assert found.skipped == {".txt": 2, ".xml": 1, "without suffix": 1}
    text = "4 files that are neither images nor videos: 2 .txt, 1 "
    assert found.describe_skipped().startswith(text)
    for suffix in kinds:
        assert np.abs(read_image(tmp_path / f"a{suffix}").astype(int) - 120).max() < 4


def test_a_named_file_counts_whatever_its_suffix(tmp_path):
    file = tmp_path / "scan.dat"
    file.touch()
    (tmp_path / "other.dat").touch()
    found = find_inputs([str(tmp_path / "*"), str(file)])
    assert [source.location for source in found.sources] == [file]
    assert found.skipped == {".dat": 1}


def test_two_stars_follow_no_links(tmp_path):
    """Which may be a loop; hidden folders are left out, as by ``*``."""
    for name in ("a", "a/b", "a/.hidden", "c"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "x.png").touch()
    (tmp_path / "a/again").symlink_to(tmp_path)
    for pattern in ("**", "**/*.png", "**/**/x.png"):
        found = find_inputs([str(tmp_path / pattern)])
        names = [str(source.path.relative_to(tmp_path)) for source in found.sources]
        assert names == ["a/b/x.png", "a/x.png", "c/x.png"]
    found = find_inputs([str(tmp_path / "a/again/**/x.png"), str(tmp_path / "[c]/**/x.png")])
    assert len(found.sources) == 3  # a link before the stars is followed


@pytest.mark.parametrize(
    ("text", "is_video", "stem"),
    [
        ("0", True, "camera0"),
        ("rtsp://camera.local/live", True, "live"),
        ("rtsp://camera.local", True, ""),
        ("https://example.org/a%20b.JPG?size=2", False, "a b"),
        ("https://example.org/clip.mp4?token=1.jpg", True, "clip"),
    ],
)
def test_cameras_and_addresses(text, is_video, stem):
    source = find_inputs([text]).sources[0]
    assert (source.is_video, source.path.stem) == (is_video, stem)


def test_a_file_named_as_a_number_is_no_camera(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("0").touch()
    assert find_inputs(["0"]).sources == [Source(Path("0"))]


def test_heic(tmp_path):
    heif = pytest.importorskip("pillow_heif")
    heif.from_pillow(Image.fromarray(PIXELS)).save(tmp_path / "a.heic")
    assert np.abs(read_image(tmp_path / "a.heic").astype(int) - 120).max() < 4


def test_heic_without_its_reader(tmp_path, monkeypatch):
    monkeypatch.delitem(Image.OPEN, "HEIF", raising=False)
    (tmp_path / "a.heic").write_bytes(b"\0\0\0\x18ftypheic")
    with pytest.raises(ValueError, match=r"HEIC needs pillow-heif: pip install 'condseg\[heif\]'"):
        read_image(tmp_path / "a.heic")
