"""Videos: frames, tracks, colors, and what is written."""

import json
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from support.tiny import write_checkpoint

from condseg.cli.predict import main
from condseg.inference.drawing import draw
from condseg.inference.instances import Instances
from condseg.inference.tracking import Tracker
from condseg.inference.video import Frame, VideoWriter, open_video
from condseg.models import PostProcess
from condseg.structures import Category

CATEGORIES = (Category(3, "cup"), Category(9, "fork"))
needs_av = pytest.mark.usefixtures("_av")
needs_trackers = pytest.mark.usefixtures("_trackers")


@pytest.fixture
def _av():
    pytest.importorskip("av")


@pytest.fixture
def _trackers():
    pytest.importorskip("trackers")


def write_clip(path, frames=6, size=(48, 64), rate=10.0, seconds=None):
    """The left half is red, the rest darkens from frame to frame."""
    with VideoWriter(path, rate) as writer:
        for k in range(frames):
            image = np.full((*size, 3), 250 - 30 * k, np.uint8)
            image[:, : size[1] // 2] = 255, 0, 0
            writer.write(Frame(k / rate if seconds is None else seconds[k], image))


def at(*corners, scores=None, size=(60, 80)):
    """Instances that fill boxes of 12 pixels at these corners."""
    boxes = np.array([[x, y, x + 12, y + 12] for x, y in corners], dtype=np.float32)
    masks = np.zeros((len(corners), *size), dtype=bool)
    for mask, (x, y) in zip(masks, corners, strict=True):
        mask[y : y + 12, x : x + 12] = True
    scores = np.full(len(corners), 0.9) if scores is None else np.array(scores)
    image = np.zeros((*size, 3), np.uint8)
    labels = np.arange(len(corners)) % 2
    return Instances(
        boxes.reshape(-1, 4), scores.astype(np.float32), labels, masks, CATEGORIES, image
    )


@needs_av
@pytest.mark.parametrize("size", [(48, 64), (47, 61)])
def test_frames_that_are_written_are_read(tmp_path, size):
    write_clip(tmp_path / "a.mp4", size=size, rate=12.5)
    with open_video(tmp_path / "a.mp4") as video:
        assert (video.rate, video.frames, video.endless) == (12.5, 6, False)
        frames = list(video.images)
    assert len(frames) == 6
    height, width = (side + side % 2 for side in size)
    for k, frame in enumerate(frames):
        assert frame.image.shape == (height, width, 3)
        assert frame.seconds == pytest.approx(k / 12.5, abs=1e-3)
        assert np.abs(frame.image[10, 50].astype(int) - (250 - 30 * k)).max() < 12
        red, green, _ = frame.image[10, 8].astype(int)
        assert red > 220 > 60 > green


@needs_av
def test_times_of_frames_are_kept(tmp_path):
    seconds = [0.0, 0.1, 0.7, 0.7, 0.8, 2.0]
    write_clip(tmp_path / "a.mp4", seconds=seconds)
    with open_video(tmp_path / "a.mp4") as video:
        assert [f.seconds for f in video.images] == pytest.approx(seconds, abs=1e-3)


@needs_av
@pytest.mark.parametrize("quarter", [0, 1, 2, 3])
def test_frames_are_upright(tmp_path, quarter):
    """The matrix in the header of a phone's video, as OpenCV applies it."""
    write_clip(tmp_path / "a.mp4", frames=2)
    content = (tmp_path / "a.mp4").read_bytes()
    start = content.index(b"tkhd") + 4 + 40
    cosine, sine = ((1, 0), (0, 1), (-1, 0), (0, -1))[quarter]
    matrix = np.array(
        [65536 * cosine, 65536 * sine, 0, -65536 * sine, 65536 * cosine, 0, 0, 0, 1 << 30], ">i4"
    )
    file = tmp_path / "turned.mp4"
    file.write_bytes(content[:start] + matrix.tobytes() + content[start + 36 :])
    with open_video(file) as video:
        image = next(video.images).image
    capture = cv2.VideoCapture(str(file))
    expected = capture.read()[1][:, :, ::-1]
    capture.release()
    assert image.shape == expected.shape == ((48, 64, 3), (64, 48, 3))[quarter % 2]
    assert np.abs(image.astype(int) - expected).max() < 16


@needs_av
def test_a_broken_video_is_named(tmp_path):
    write_clip(tmp_path / "a.mp4")
    content = (tmp_path / "a.mp4").read_bytes()
    parts = {
        "list.mp4": b"ffconcat version 1.0\nfile a.mp4\n",
        "empty.mp4": b"",
        "cut.mp4": content[:200],
        "text.mp4": b"no video" * 99,
    }
    for name, part in parts.items():
        (tmp_path / name).write_bytes(part)
        unreadable = pytest.raises(ValueError, match=f"{name}: cannot be read as a video: ")
        with unreadable, open_video(tmp_path / name) as video:
            list(video.images)
    with pytest.raises(ValueError, match="camera 99: cannot be opened"), open_video(99):
        pass


@needs_trackers
def test_tracks_follow_objects_from_their_first_frame():
    tracker = Tracker(score=0.5, rate=10.0)
    left, right = [], []
    for k in range(8):
        corners = [(2 + 3 * k, 5), (60 - 3 * k, 35)]
        found = at(*(corners if k % 2 else corners[::-1]))
        tracks = tracker(found, k / 10).tracks
        first, second = tracks if k % 2 else tracks[::-1]
        left.append(first)
        right.append(second)
    assert len(set(left)) == len(set(right)) == 1
    assert {*left, *right} == {1, 2}


@needs_trackers
def test_a_weak_instance_continues_a_track_and_starts_none():
    tracker = Tracker(score=0.5, rate=10.0)
    scores = ([0.9, 0.3], [0.2, 0.3], [0.05, 0.3], [0.9, 0.3])
    tracks = [
        tracker(at((10, 10), (50, 30), scores=s), k / 10).tracks.tolist()
        for k, s in enumerate(scores)
    ]
    assert tracks == [[1, 0], [1, 0], [0], [1, 0]]
    assert tracker(at(), 0.4).tracks.shape == (0,)
    assert tracker(at((10, 10)), 5.0).tracks.tolist() == [2]


def test_a_track_has_one_color_whatever_its_place():
    names = [category.name for category in CATEGORIES]
    numbers = np.array([5, 2, 0])
    first = at((2, 2), (30, 2), (60, 2))
    second = at((30, 40), (60, 40), (2, 40))
    colors = []
    for found, order in ((first, [0, 1, 2]), (second, [1, 0, 2])):
        tracks = numbers[order]
        drawn = draw(found.image, found._detections(), names, color_by="track", tracks=tracks)
        centers = found.boxes[:, :2].astype(int) + 6
        colors.append({n: tuple(drawn[y, x]) for n, (x, y) in zip(tracks, centers, strict=True)})
    assert colors[0] == colors[1]
    assert len(set(colors[0].values())) == 3
    with pytest.raises(ValueError, match="color_by is 'track'"):
        first.draw(color_by="track")


def test_selecting_keeps_tracks():
    found = Instances(**vars(at((2, 2), (30, 2))) | {"tracks": np.array([5, 2])})
    assert found[1:].tracks.tolist() == [2]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    pytest.importorskip("av")
    monkeypatch.chdir(tmp_path)
    write_checkpoint(Path("runs/tabletop/version_0/checkpoints/best.ckpt"))
    write_clip(Path("clip.mp4"), frames=4)
    Path("broken.mp4").write_bytes(b"no video")
    return tmp_path


@needs_trackers
def test_a_video_by_the_command(folder, capsys):
    args = ["broken.mp4", "clip.mp4", "--score", "0.01", "--save_frames", "--json"]
    assert main([*args, "--format", "labelme"]) == 1
    printed = capsys.readouterr()
    assert printed.err.startswith("error: broken.mp4: cannot be read as a video: ")
    assert printed.err.count("\n") == 1
    assert "clip.mp4: 4 frames, " in printed.out
    assert not Path("out/broken.mp4").exists()
    with open_video(Path("out/clip.mp4")) as video:
        assert [frame.image.shape for frame in video.images] == [(192, 256, 3)] * 4
    content = json.loads(Path("out/detections.json").read_text())
    files = [f"out/clip_frames/{k:06}.jpg" for k in range(4)]
    assert [image["file_name"] for image in content["images"]] == files
    assert all(Path(file).is_file() for file in files)
    assert {1} < {annotation["track_id"] for annotation in content["annotations"]}
    assert len(list(Path("out/labelme").iterdir())) == 4
    shown = json.loads(Path("out/labelme/clip_000002.json").read_text())
    assert shown["imagePath"] == "../clip_frames/000002.jpg"


@needs_trackers
@pytest.mark.parametrize("color_by", ["class", "track"])
def test_an_object_of_two_classes_has_one_track(folder, monkeypatch, color_by):
    """Two classes of equal scores everywhere, whose boxes are the same."""
    decode = PostProcess.__call__

    def twice(self, dense, *arguments):
        logits = dense.head.class_logits
        logits[..., 1] = logits[..., 0]
        return decode(self, dense, *arguments)

    monkeypatch.setattr(PostProcess, "__call__", twice)
    assert main(["clip.mp4", "--score", "0.01", "--json", "--color_by", color_by]) == 0
    content = json.loads(Path("out/detections.json").read_text())
    boxes = [(a["image_id"], *a["bbox"]) for a in content["annotations"]]
    assert (len(set(boxes)) < len(boxes)) == (color_by == "class")


def test_colors_by_class_need_no_tracker(folder, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "trackers", None)
    assert main(["clip.mp4", "--color_by", "class"]) == 0
    assert "clip.mp4: 4 frames (" in capsys.readouterr().out
    assert main(["clip.mp4"]) == 1
    assert "color_by is 'track', which needs trackers" in capsys.readouterr().err


def test_without_a_reader_of_videos(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "av", None)
    (tmp_path / "a.mp4").touch()
    message = r"a.mp4: videos need PyAV: pip install 'condseg\[video\]'"
    with pytest.raises(ValueError, match=message), open_video(tmp_path / "a.mp4"):
        pass


@needs_trackers
def test_a_key_press_ends_a_camera(folder, capsys, monkeypatch):
    class Camera:
        def __init__(self, number):
            self.left = 3

        def isOpened(self):
            return True

        def get(self, _):
            return 20.0

        def read(self):
            self.left -= 1
            if self.left < 0:
                raise KeyboardInterrupt
            return True, np.zeros((48, 64, 3), np.uint8)

        def release(self):
            pass

    monkeypatch.setattr("condseg.inference.video.cv2.VideoCapture", Camera)
    assert main(["0"]) == 0
    assert "camera0: 3 frames, " in capsys.readouterr().out
    with open_video(Path("out/camera0.mp4")) as video:
        assert len(list(video.images)) == 3
