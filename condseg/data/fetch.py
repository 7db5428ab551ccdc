"""One file over HTTP: resumed after an interruption, limited to its promised size, and checked."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from typing import BinaryIO
from urllib.error import HTTPError
from urllib.request import Request, urlopen

from filelock import FileLock, Timeout
from rich.console import Console
from rich.progress import DownloadColumn, Progress, TaskID, TransferSpeedColumn

_CHUNK = 1 << 20


class DownloadError(ValueError):
    """A download failed; a retry, another mirror or a larger disk helps."""


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Holds the lock file ``path``, after waiting for another process that holds it."""
    lock = FileLock(path)
    try:
        lock.acquire(blocking=False)
    except Timeout:
        print(f"{path}: locked by another process, waiting", file=sys.stderr)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def progress_bars() -> Progress:
    """Of downloads, on stderr."""
    columns = (*Progress.get_default_columns(), DownloadColumn(), TransferSpeedColumn())
    return Progress(*columns, console=Console(stderr=True))


def fetch(
    url: str,
    path: Path,
    digest: tuple[str, str],
    progress: Progress,
    *,
    size: int | None = None,
    timeout: float = 60.0,
) -> None:
    """Downloads to ``<name>.part``, which is renamed to ``path`` when size and digest are right.

    An interrupted download is resumed by the next call. Not more than ``size`` and one chunk of
    1 MiB is written. One process at a time may download a file: see :func:`locked`.

    Args:
        url: of the file.
        path: destination.
        digest: algorithm ("md5", "sha256") and the expected hexadecimal digits, or the first.
        progress: shows the bytes received.
        size: of the file in bytes; by default what the server promises.
        timeout: max seconds without a byte.

    Raises:
        DownloadError: no such file, a lost connection, a web page in place of the file, a wrong
            size or digest.
    """
    part = path.with_name(f"{path.name}.part")
    if size is None:
        size = promised_size(url, timeout)
    with part.open("a+b") as file:
        task = progress.add_task(path.name, total=size, completed=file.tell())
        if file.tell() < size:
            _receive(url, file, size, timeout, progress, task)
        received = file.tell()
        file.seek(0)
        algorithm, expected = digest
        found = hashlib.file_digest(file, algorithm).hexdigest()[: len(expected)]
    if received < size:
        raise DownloadError(
            f"{part}: the download ended after {received} of {size} bytes; the same command "
            "resumes it"
        )
    if received > size or found != expected:
        part.unlink()
        raise DownloadError(
            f"{part}: {received} bytes with {algorithm.upper()} {found}, expected {size} bytes "
            f"with {expected}; deleted, the same command downloads it again"
        )
    part.rename(path)


def promised_size(url: str, timeout: float = 60.0) -> int:
    """The size in bytes that the server states for a file, which is not downloaded.

    Raises:
        DownloadError: no such file, no connection, a web page in place of the file, or no size.
    """
    with answer(Request(url, method="HEAD"), timeout) as response:
        length = response.headers.get("Content-Length")
    if length is None:
        raise DownloadError(f"{url}: the server sends no Content-Length")
    return int(length)


def _receive(
    url: str, file: BinaryIO, size: int, timeout: float, progress: Progress, task: TaskID
) -> None:
    """Appends the rest; starts again where the server does not support ranges."""
    start = file.tell()
    headers = {"Range": f"bytes={start}-"} if start else {}
    try:
        with answer(Request(url, headers=headers), timeout) as response:
            if start and response.status != 206:
                start = file.truncate(0)
                progress.reset(task)
            length = response.headers.get("Content-Length")
            if length is not None and start + int(length) != size:
                raise DownloadError(
                    f"{url}: the server has {start + int(length)} bytes, expected {size}; it is "
                    "another file, try another mirror"
                )
            while file.tell() <= size and (chunk := response.read(_CHUNK)):
                file.write(chunk)
                progress.advance(task, len(chunk))
    except (OSError, HTTPException) as error:
        file.flush()
        raise DownloadError(
            f"{url}: the download broke off after {file.tell()} of {size} bytes ({error}); the "
            "same command resumes it"
        ) from error


@contextmanager
def answer(request: Request, timeout: float) -> Iterator[HTTPResponse]:
    """The server's answer, unless it is an error or a web page."""
    try:
        response = urlopen(request, timeout=timeout)
    except HTTPError as error:
        reason = f"the server answers {error.code} {error.reason}"
        raise DownloadError(f"{request.full_url}: {reason}") from error
    except (OSError, HTTPException) as error:
        raise DownloadError(f"{request.full_url}: no connection ({error})") from error
    with response:
        kind = response.headers.get_content_type()
        if kind in ("text/html", "application/xhtml+xml"):
            raise DownloadError(
                f"{request.full_url}: the server sends a web page ({kind}) in place of the file; "
                "does a proxy or the mirror ask for a login?"
            )
        yield response
