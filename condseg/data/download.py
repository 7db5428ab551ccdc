"""COCO 2017 from its server to a folder: interrupted as often as need be, checked throughout."""

from __future__ import annotations

import shutil
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.progress import Progress

from condseg.data.transfer import DownloadError, fetch, progress_bar

BASE_URL = "http://images.cocodataset.org"


@dataclass(frozen=True, slots=True)
class Archive:
    """A zip file on the server.

    Attributes:
        path: below the base address.
        size: bytes.
        md5: of the file.
        unpacked: bytes of its members (for the check of the disk; a little more will do).
        holds: what lies in the folder once it is unpacked.
    """

    path: str
    size: int
    md5: str
    unpacked: int
    holds: str

    @property
    def name(self) -> str:
        return self.path.rpartition("/")[2]


COCO_2017 = (
    Archive(
        "annotations/annotations_trainval2017.zip",
        252_907_541,
        "f4bbac642086de4f52a3fdda2de5fa2c",
        900 << 20,
        "annotations",
    ),
    Archive(
        "zips/val2017.zip", 815_585_330, "442b8da7639aecaf257c1dceb8ba8c80", 830 << 20, "val2017"
    ),
    Archive(
        "zips/train2017.zip",
        19_336_861_798,
        "cced6f7f71b7629ddf16f17bbcfab6b2",
        19_000 << 20,
        "train2017",
    ),
)
"""Sizes and sums of the files as the COCO consortium publishes them."""


def download(
    folder: str | Path,
    archives: Sequence[Archive] = COCO_2017,
    base_url: str = BASE_URL,
    *,
    keep_archives: bool = False,
    timeout: float = 60.0,
) -> None:
    """Fetches archives, checks them and unpacks them into ``folder``.

    The disk is looked at first. An archive grows as ``<name>.part`` and goes on from there when
    the command is given again; it gets its name when size and MD5 sum are right. Members are
    unpacked beside it, each checked against its CRC, and moved to their place when all are
    there, so a folder is whole or not there. What is whole is not fetched again.

    Args:
        folder: where it goes.
        archives: what is fetched.
        base_url: the server, or a mirror with the same files at the same paths.
        keep_archives: do not delete a zip that was unpacked.
        timeout: seconds without a byte after which the server is given up.

    Raises:
        DownloadError: no room, no such file, a connection that broke, a wrong size or sum; the
            message says what to do.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    wanted = [archive for archive in archives if not (folder / archive.holds).exists()]
    _check_room(folder, wanted, keep_archives)
    with progress_bar() as progress:
        for archive in wanted:
            path = _fetch(folder, archive, base_url, timeout, progress)
            _unpack(path, folder / archive.holds, progress)
            if not keep_archives:
                path.unlink()


def _check_room(folder: Path, archives: Sequence[Archive], keep_archives: bool) -> None:
    needed, held = 0, 0
    for archive in archives:
        there = sum(
            path.stat().st_size
            for path in (folder / archive.name, folder / f"{archive.name}.part")
            if path.exists()
        )
        # While it is unpacked, an archive lies there twice.
        needed = max(needed, held + archive.size - there + archive.unpacked)
        held += archive.unpacked - there + (archive.size if keep_archives else 0)
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise DownloadError(
            f"{folder}: {needed / 1e9:.1f} GB are needed, {free / 1e9:.1f} GB are free; make room "
            "or name another disk with --folder"
        )


def _fetch(
    folder: Path, archive: Archive, base_url: str, timeout: float, progress: Progress
) -> Path:
    path = folder / archive.name
    if not path.exists():
        url = f"{base_url.rstrip('/')}/{archive.path}"
        fetch(
            url,
            path,
            archive.size,
            progress,
            checksum=archive.md5,
            algorithm="md5",
            timeout=timeout,
        )
    return path


def _unpack(path: Path, place: Path, progress: Progress) -> None:
    beside = place.with_name(f"{place.name}.unpacking")
    shutil.rmtree(beside, ignore_errors=True)
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
            task = progress.add_task(f"unpack {path.name}", total=sum(m.file_size for m in members))
            for member in members:
                archive.extract(member, beside)  # reads to the end and so checks the CRC
                progress.advance(task, member.file_size)
        (beside / place.name).rename(place)
    except (zipfile.BadZipFile, zlib.error, EOFError, FileNotFoundError) as error:
        path.unlink()
        raise DownloadError(
            f"{path}: cannot be unpacked ({error}); deleted, the same command fetches it anew"
        ) from error
    finally:
        shutil.rmtree(beside, ignore_errors=True)
