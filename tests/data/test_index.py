"""The index of a json: never of another content, whole or not there, and shared by processes."""

import gc
import json
import os
import pickle
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
import torch

from condseg.data import index_cache
from condseg.data.annotations import read_index
from condseg.data.index import Index
from condseg.data.index_cache import open_annotations
from condseg.data.records import Records

CROWD = {"size": [40, 60], "counts": [0, 400, 2000]}


@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path):
    """The folder of the indexes, of jsons of any size."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(index_cache, "MIN_BYTES", 0)
    return tmp_path / "cache" / "condseg" / "annotations"


@pytest.fixture
def reads(monkeypatch):
    """The jsons that were read instead of an index."""
    paths = []

    def read(path, images=None):
        paths.append(path)
        return read_index(path, images)

    monkeypatch.setattr(index_cache, "read_index", read)
    return paths


@pytest.fixture
def settled(monkeypatch):
    """The json counts as not changed just now."""
    monkeypatch.setattr(index_cache, "_CLOCK", -(10**12))


@pytest.fixture
def coco(coco_set):
    """A json with every kind of field."""
    coco = coco_set()
    coco.add(100, CROWD, [0, 0, 10, 40], iscrowd=1)
    coco.add(102, CROWD, [1, 2, 30.5, 4], n=1, visibility=0.25)
    coco.add(102, [[1, 2, 30.123456789, 4, 5, 6.1]], [1, 2, 30, 4], area=None)
    coco.content["images"][1]["depth_file"] = "d\u00e9.png"
    coco.write()
    return coco


def content(index):
    """All of an index as plain data."""
    records = Records(index)
    arrays = [array.tobytes() for array in (index.images, index.objects, index.data)]
    return arrays, index.categories, index.sha256, list(records), records.counts


def in_fork(call):
    """Starts a call in a fork of this process, which ends with code 0 if it returns true."""
    child = os.fork()
    if child:
        return child
    code = 1
    gc.disable()  # it would write to each object of this process
    try:
        code = 0 if call() else 2
    finally:
        os._exit(code)


def test_later_openings_map_what_the_first_one_read(coco, reads, settled, cache):
    expected = content(read_index(coco.json))
    for _ in range(3):
        assert content(open_annotations(coco.json)) == expected
    assert reads == [coco.json]
    assert [file.suffix for file in sorted(cache.iterdir())] == [".index", ".lock"]
    samples = [coco.open()[k] for k in range(3)]
    coco.json.unlink()
    coco.write()
    for k, sample in enumerate(samples):
        assert torch.equal(coco.open()[k].targets.masks, sample.targets.masks)


def test_small_jsons_are_read_directly(coco, monkeypatch, cache):
    monkeypatch.setattr(index_cache, "MIN_BYTES", coco.json.stat().st_size + 1)
    assert len(open_annotations(coco.json).objects) == 9
    assert not cache.exists()


@pytest.mark.parametrize("just_now", [True, False])
def test_a_json_that_keeps_size_and_time_is_read_again(coco, reads, monkeypatch, just_now):
    monkeypatch.setattr(index_cache, "_CLOCK", 10**12 if just_now else -(10**12))
    before = coco.json.stat()
    assert content(open_annotations(coco.json))[3][0].labels == [1, 0]
    coco.json.write_text(coco.json.read_text().replace('"category_id": 7', '"category_id": 3'))
    os.utime(coco.json, ns=(before.st_atime_ns, before.st_mtime_ns))
    after = coco.json.stat()
    assert (after.st_size, after.st_mtime_ns) == (before.st_size, before.st_mtime_ns)
    if just_now:  # the clock has not advanced
        monkeypatch.setattr(index_cache, "_facts", lambda _: [before.st_size, 0, 0, 0])
    assert content(open_annotations(coco.json))[3][0].labels == [0, 0]
    assert len(reads) == 2


def test_a_file_changed_just_now_is_known_by_its_content_alone(coco, reads, monkeypatch):
    monkeypatch.setattr(index_cache, "_facts", lambda _: [1, 1, 2**62, 2**62])
    open_annotations(coco.json)
    coco.json.write_text(coco.json.read_text().replace('"category_id": 7', '"category_id": 3'))
    assert content(open_annotations(coco.json))[3][0].labels == [0, 0]
    assert len(reads) == 2


def test_the_same_content_at_another_time_is_not_read_again(coco, reads, settled):
    open_annotations(coco.json)
    os.utime(coco.json, (1, 1))
    open_annotations(coco.json)
    shutil.copy(coco.json, coco.root / "copy")
    (coco.root / "copy").replace(coco.json)
    open_annotations(coco.json)
    assert len(reads) == 1


def test_a_json_that_changes_while_it_is_read_has_no_index(coco, monkeypatch, cache):
    def read(path, images=None):
        index = read_index(path, images)
        coco.content["images"].pop(0)
        del coco.content["annotations"][:2], coco.content["annotations"][4]
        coco.write()
        return index

    monkeypatch.setattr(index_cache, "read_index", read)
    assert len(open_annotations(coco.json).images) == 3
    assert not list(cache.glob("*.index"))


def test_other_rules_read_again_and_leave_one_file(coco, reads, settled, monkeypatch, cache):
    for rules in ("a" * 64, "b" * 64):
        monkeypatch.setattr(index_cache, "_rules", lambda rules=rules: rules)
        open_annotations(coco.json)
        (file,) = cache.glob("*.index")
        assert file.stem.endswith(f"-{rules[:16]}")
    assert len(reads) == 2


def test_jsons_of_the_same_name_have_their_own_index(coco, reads, settled, tmp_path, cache):
    other = tmp_path / "other" / coco.json.name
    other.parent.mkdir()
    coco.content["annotations"].pop()
    other.write_text(json.dumps(coco.content))
    for _ in range(2):
        assert [len(open_annotations(path).objects) for path in (coco.json, other)] == [9, 8]
    parts = [coco.json.with_name(f"{coco.json.name}@{part}") for part in ("train", "val")]
    for _ in range(2):
        assert [len(open_annotations(path).images) for path in parts] == [2, 1]
    assert len(reads) == len(list(cache.glob("*.index"))) == 4


@pytest.mark.parametrize("damage", ["head", "images", "end", "cut", "empty", "longer"])
def test_a_damaged_index_is_made_again(coco, reads, settled, cache, damage):
    expected = content(open_annotations(coco.json))
    (file,) = cache.glob("*.index")
    whole = file.read_bytes()
    damaged = bytearray(whole)
    if damage in ("head", "images", "end"):
        damaged[{"head": 3, "images": len(whole) // 2, "end": -1}[damage]] ^= 4
    file.write_bytes({"cut": whole[:-9], "empty": b"", "longer": whole + b"1"}.get(damage, damaged))
    for _ in range(2):
        assert content(open_annotations(coco.json)) == expected
    assert len(reads) == 2
    assert file.read_bytes() == whole


def test_a_writer_that_is_killed_leaves_no_index(coco, monkeypatch, cache, settled):
    expected = content(read_index(coco.json))

    def killed(self, file, facts):
        file.write(b"half")
        file.flush()
        os.kill(os.getpid(), signal.SIGKILL)

    with monkeypatch.context() as patch:
        patch.setattr(Index, "save", killed)
        child = in_fork(lambda: open_annotations(coco.json))
        assert os.waitpid(child, 0)[1] == signal.SIGKILL
    assert [file.suffix for file in sorted(cache.iterdir())] == [".lock", ".part"]
    assert content(open_annotations(coco.json)) == expected
    assert [file.suffix for file in sorted(cache.iterdir())] == [".index", ".lock"]


def test_eight_processes_at_once_read_the_json_once(coco, monkeypatch, tmp_path, settled):
    log = tmp_path / "log"
    expected = content(read_index(coco.json))

    def read(path, images=None):
        with log.open("a") as file:
            file.write("read\n")
        return read_index(path, images)

    monkeypatch.setattr(index_cache, "read_index", read)
    children = [in_fork(lambda: content(open_annotations(coco.json)) == expected) for _ in range(8)]
    assert [os.waitpid(child, 0)[1] for child in children] == [0] * 8
    assert log.read_text() == "read\n"


@pytest.mark.parametrize("problem", ["no folder", "others may write", "disk full"])
def test_without_a_cache_each_process_reads(coco, monkeypatch, tmp_path, cache, problem):
    lines = []
    monkeypatch.setattr(index_cache, "rank_zero_info", lines.append)
    if problem == "no folder":
        monkeypatch.setenv("XDG_CACHE_HOME", str(coco.json))
    elif problem == "others may write":
        cache.mkdir(parents=True)
        cache.parent.chmod(0o777)
    else:

        def full(self, file, facts):
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(Index, "save", full)
    assert content(open_annotations(coco.json)) == content(read_index(coco.json))
    (line,) = [line for line in lines if "no index can be kept" in line]
    assert line.startswith(f"{coco.json}: each process reads it")
    assert "\n" not in line


def test_sizes_of_image_files_are_not_kept(coco, reads, cache):
    for entry in coco.content["images"]:
        del entry["height"], entry["width"]
    coco.write()
    for _ in range(2):
        assert open_annotations(coco.json, coco.images).size(1) == (60, 40)
    assert len(reads) == 2
    assert not list(cache.glob("*.index"))


def test_an_error_is_the_same_with_an_index(coco, reads, settled):
    coco.content["annotations"][0]["segmentation"] = [[1, 2]]
    coco.write()
    for supervision in ("masks", "mixed"):
        for _ in range(2):
            with pytest.raises(ValueError, match=r"1000 \(image 100, 000.png\): .*three points"):
                coco.open(supervision=supervision)
    coco.json.write_text("[]")
    for _ in range(2):
        with pytest.raises(ValueError, match="is a list"):
            open_annotations(coco.json)


def private_bytes():
    """Memory that belongs to this process alone; clean pages of a mapped file do not count."""
    rollup = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in rollup if line.startswith("Private_Dirty"))


@pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="needs Linux")
def test_processes_share_an_index(coco_set, settled, cache):
    coco = coco_set(sizes=[(40, 60)] * 100, objects=0)
    polygon = np.random.default_rng(0).uniform(0, 40, 2000).round(3).tolist()
    for number in range(1000):
        coco.add(100 + number % 100, [polygon], [1, 2, 30, 40])
    dataset = coco.open()
    (file,) = cache.glob("*.index")
    assert file.stat().st_size > 16 * 2**20
    with file.open("rb+") as opened:
        os.fsync(opened.fileno())  # pages that are not written yet would count
    assert len(pickle.dumps(dataset._records.index)) < 1000  # to a spawned worker

    def reads_all(opened):
        def call():
            before = private_bytes()
            records = dataset._records if opened else Records(open_annotations(coco.json))
            for image in range(100):
                assert len(records[image].segmentations) == 10
            return private_bytes() - before < 10 * 2**20

        return in_fork(call)

    children = [reads_all(opened) for opened in (True, False)]  # a worker, and another rank
    assert [os.waitpid(child, 0)[1] for child in children] == [0, 0]


def test_where_files_have_no_owner(coco, monkeypatch, cache):
    """As on Windows."""
    monkeypatch.delattr(os, "geteuid")
    open_annotations(coco.json)
    assert list(cache.glob("*.index"))
