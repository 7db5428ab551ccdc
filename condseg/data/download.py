"""COCO 2017 from its server to a folder: resumed after an interruption, and checked."""

from __future__ import annotations

import hashlib
import shutil
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from typing import BinaryIO
from urllib.error import HTTPError
from urllib.request import Request, urlopen

from rich.console import Console
from rich.progress import DownloadColumn, Progress, TaskID, TransferSpeedColumn

BASE_URL = "http://images.cocodataset.org"
_CHUNK = 1 << 20


class DownloadError(ValueError):
    """A download failed; a retry, another mirror or a larger disk helps."""


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

    Free disk space is checked first. An archive is downloaded to ``<name>.part``, resumed from
    there by the next call, and renamed when its size and MD5 are right. Members are unpacked to a
    temporary folder, each with its CRC checked, and moved when all are complete. A folder that
    exists is not downloaded again.

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
    folder.mkdir(parents=True, exist_ok=True)
    missing = [archive for archive in archives if not (folder / archive.holds).exists()]
    _check_disk(folder, missing, keep_archives)
    columns = (*Progress.get_default_columns(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        for archive in missing:
            path = folder / archive.name
            if not path.exists():
                url = f"{base_url.rstrip('/')}/{archive.path}"
                _download(url, path, archive, timeout, progress)
            _unpack(path, folder / archive.holds, progress)
            if not keep_archives:
                path.unlink()


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


def _download(url: str, path: Path, archive: Archive, timeout: float, progress: Progress) -> None:
    """Downloads to ``<name>.part``, which is renamed when its size and MD5 are right."""
    part, size = path.with_name(f"{path.name}.part"), archive.size
    with part.open("a+b") as file:
        task = progress.add_task(path.name, total=size, completed=file.tell())
        if file.tell() < size:
            _receive(url, file, size, timeout, progress, task)
        received = file.tell()
        file.seek(0)
        md5 = hashlib.file_digest(file, "md5").hexdigest()
    if received < size:
        raise DownloadError(
            f"{part}: the connection ended after {received} of {size} bytes; the same command "
            "resumes the download"
        )
    if received > size or md5 != archive.md5:
        part.unlink()
        raise DownloadError(
            f"{part}: {received} bytes with MD5 {md5}, expected {size} bytes with {archive.md5}; "
            "deleted, the same command downloads it again"
        )
    part.rename(path)


def _receive(
    url: str, file: BinaryIO, size: int, timeout: float, progress: Progress, task: TaskID
) -> None:
    """Appends the rest; starts again where the server does not support ranges."""
    start = file.tell()
    request = Request(url, headers={"Range": f"bytes={start}-"} if start else {})
    try:
        with urlopen(request, timeout=timeout) as response:
            if start and response.status != 206:
                start = file.truncate(0)
                progress.reset(task)
            length = response.headers.get("Content-Length")
            if length is not None and start + int(length) != size:
                raise DownloadError(
                    f"{url}: the server has {start + int(length)} bytes, expected {size}; it is "
                    "another file, try another mirror"
                )
            while chunk := response.read(_CHUNK):
                file.write(chunk)
                progress.advance(task, len(chunk))
    except HTTPError as error:
        reason = f"the server answers {error.code} {error.reason}"
        raise DownloadError(f"{url}: {reason}") from error
    except (OSError, HTTPException) as error:
        file.flush()
        raise DownloadError(
            f"{url}: the connection broke after {file.tell()} of {size} bytes ({error}); the same "
            "command resumes the download"
        ) from error


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
