"""One file from a server to the disk: interrupted as often as need be, whole or not there."""

from __future__ import annotations

import hashlib
from http.client import HTTPException
from pathlib import Path
from typing import BinaryIO
from urllib.error import HTTPError
from urllib.request import Request, urlopen

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

_CHUNK = 1 << 20


class DownloadError(ValueError):
    """Something that another try, another mirror or a larger disk puts right."""


def progress_bar() -> Progress:
    """Bytes, speed and time to go, on stderr."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
    )


def fetch(
    url: str,
    path: Path,
    size: int,
    progress: Progress,
    *,
    checksum: str = "",
    algorithm: str = "sha256",
    timeout: float = 60.0,
) -> str:
    """Fetches a file, which grows as ``<name>.part`` and goes on from there in the next call.

    It gets its name when size and checksum are right.

    Args:
        url: where it is.
        path: where it goes; the folder is there.
        size: bytes that it must have.
        progress: shows what has come.
        checksum: hexadecimal digest that it must have, or the digest's first digits.
        algorithm: of the checksum, as hashlib calls it.
        timeout: seconds without a byte after which the server is given up.

    Returns:
        The hexadecimal digest of the file.

    Raises:
        DownloadError: no such file, a connection that broke, a wrong size or sum; the message
            says what to do.
    """
    part = path.with_name(f"{path.name}.part")
    digest = hashlib.new(algorithm, usedforsecurity=False)
    task = progress.add_task(path.name, total=size)
    with part.open("a+b") as file:
        file.seek(0)
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
            progress.advance(task, len(chunk))
        if file.tell() < size:
            digest = _receive(file, url, size, timeout, digest, progress, task)
        received = file.tell()
    if received < size:
        raise DownloadError(
            f"{part}: the connection ended after {received} of {size} bytes; the same command "
            "goes on from there"
        )
    if received > size or not digest.hexdigest().startswith(checksum):
        part.unlink()
        raise DownloadError(
            f"{part}: {received} bytes with {algorithm.upper()} {digest.hexdigest()}, expected "
            f"{size} bytes with {checksum or 'any'}; deleted, the same command fetches it anew"
        )
    part.rename(path)
    return digest.hexdigest()


def _receive(
    file: BinaryIO,
    url: str,
    size: int,
    timeout: float,
    digest: hashlib._Hash,
    progress: Progress,
    task: TaskID,
) -> hashlib._Hash:
    """Appends what is missing; starts over where the server cannot go on in the middle."""
    start = file.tell()
    request = Request(url, headers={"Range": f"bytes={start}-"} if start else {})
    try:
        with urlopen(request, timeout=timeout) as response:
            if start and response.status != 206:
                file.truncate(0)
                start, digest = 0, hashlib.new(digest.name, usedforsecurity=False)
                progress.reset(task)
            length = response.headers.get("Content-Length")
            if length is not None and start + int(length) != size:
                raise DownloadError(
                    f"{url}: the server offers {start + int(length)} bytes, expected "
                    f"{size}; it is another file, try another mirror"
                )
            while chunk := response.read(_CHUNK):
                file.write(chunk)
                digest.update(chunk)
                progress.advance(task, len(chunk))
    except HTTPError as error:
        raise DownloadError(f"{url}: the server answers {error.code} {error.reason}") from error
    except (OSError, HTTPException) as error:
        file.flush()
        raise DownloadError(
            f"{url}: the connection broke after {file.tell()} of {size} bytes ({error}); "
            "the same command goes on from there"
        ) from error
    return digest
