"""COCO 2017 from its server to a folder: resumed after an interruption, and checked."""

from __future__ import annotations

import shutil
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.progress import Progress

from condseg.data.fetch import DownloadError, fetch, locked, progress_bars

BASE_URL = "http://images.cocodataset.org"


@dataclass(frozen=True, slots=True)
class Archive:
    """A zip file on the server.

    Attributes:
        path: below the base address.
        size: bytes.
        md5: of the file.
        unpacked: bytes of its members, or a little more, to check the disk.
        holds: the folder that it contains.
    """

    path: str
    size: int
    md5: str
    unpacked: int
    holds: str

    @property
    def name(self) -> str:
        return self.path.rpartition("/")[2]


_VAL, _TRAIN = "442b8da7639aecaf257c1dceb8ba8c80", "cced6f7f71b7629ddf16f17bbcfab6b2"
_ANNOTATIONS = "annotations/annotations_trainval2017.zip"
COCO_2017 = (
    Archive(
        _ANNOTATIONS, 252_907_541, "f4bbac642086de4f52a3fdda2de5fa2c", 900 << 20, "annotations"
    ),
    Archive("zips/val2017.zip", 815_585_330, _VAL, 830 << 20, "val2017"),
    Archive("zips/train2017.zip", 19_336_861_798, _TRAIN, 19_000 << 20, "train2017"),
)
"""Sizes and checksums as the COCO consortium publishes them."""


def download(
    folder: str | Path,
    archives: Sequence[Archive] = COCO_2017,
    base_url: str = BASE_URL,
    *,
    keep_archives: bool = False,
    timeout: float = 60.0,
) -> None:
    """Downloads archives, checks them and unpacks them into ``folder``.

    Free disk space is checked first. An archive is downloaded to ``<name>.part`` and resumed from
    there by the next call. Members are unpacked to a temporary folder, each with its CRC checked,
    and moved when all are complete. A folder that exists is not downloaded again. Of several calls
    with one folder, also in other processes, one downloads and the others wait.

    Args:
        folder: destination.
        archives: what to download.
        base_url: the server, or a mirror with the same files at the same paths.
        keep_archives: keep the zip files.
        timeout: max seconds without a byte.

    Raises:
        DownloadError: a full disk, no such file, a lost connection, a wrong size or checksum.
    """
    folder = Path(folder)
    if not _missing(folder, archives):
        return
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder / ".download.lock"), progress_bars() as progress:
        missing = _missing(folder, archives)
        _check_disk(folder, missing, keep_archives)
        for archive in missing:
            path = folder / archive.name
            if not path.exists():
                url = f"{base_url.rstrip('/')}/{archive.path}"
                fetch(url, path, ("md5", archive.md5), progress, size=archive.size, timeout=timeout)
            _unpack(path, folder / archive.holds, progress)
            if not keep_archives:
                path.unlink()


def _missing(folder: Path, archives: Sequence[Archive]) -> list[Archive]:
    return [archive for archive in archives if not (folder / archive.holds).exists()]


def _check_disk(folder: Path, archives: Sequence[Archive], keep_archives: bool) -> None:
    needed, held = 0, 0
    for archive in archives:
        files = (folder / archive.name, folder / f"{archive.name}.part")
        there = sum(path.stat().st_size for path in files if path.exists())
        # The zip file and its members are there at the same time.
        needed = max(needed, held + archive.size - there + archive.unpacked)
        held += archive.unpacked - there + (archive.size if keep_archives else 0)
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise DownloadError(
            f"{folder}: {needed / 1e9:.1f} GB are needed, {free / 1e9:.1f} GB are free; free some, "
            "or choose another disk with --folder"
        )


def _unpack(path: Path, destination: Path, progress: Progress) -> None:
    temporary = destination.with_name(f"{destination.name}.unpacking")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
            task = progress.add_task(f"unpack {path.name}", total=sum(m.file_size for m in members))
            for member in members:
                archive.extract(member, temporary)  # reads to the end and so checks the CRC
                progress.advance(task, member.file_size)
        (temporary / destination.name).rename(destination)
    except (zipfile.BadZipFile, zlib.error, EOFError, FileNotFoundError) as error:
        path.unlink()
        raise DownloadError(
            f"{path}: cannot be unpacked ({error}); deleted, the same command downloads it again"
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
