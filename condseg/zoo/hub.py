"""Published models from their servers to the cache: fetched once, checked at each reading."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from email.message import Message
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import HTTPRedirectHandler, Request, build_opener, urlopen

from condseg.data.transfer import DownloadError, fetch, progress_bar
from condseg.zoo.published import MODELS, Published, unknown_model


def cache_folder() -> Path:
    """``$XDG_CACHE_HOME/condseg/models``, by default below ``~/.cache``."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "condseg" / "models"


def fetch_model(name: str, *, offline: bool = False, timeout: float = 60.0) -> Path:
    """The file of a published model, from the cache or, the first time, from its server.

    Its size and SHA-256 are kept beside it after the first fetch and compared each time. A
    download that broke goes on where it was; the file is there when it is whole. A file that was
    put there by hand is taken, and from then on checked as well.

    Args:
        name: a key of ``published.MODELS``.
        offline: ask no server.
        timeout: seconds without a byte after which the server is given up.

    Raises:
        ValueError: no such name, not there and offline, no longer what was fetched, or (as
            :class:`DownloadError`) not to be had; the message says what to do.
    """
    if name not in MODELS:
        raise ValueError(unknown_model(name))
    model = MODELS[name]
    folder = cache_folder()
    path = folder / model.file
    if offline and not path.is_file():
        raise ValueError(f"{name} is not in the cache: without --offline it is fetched to {path}")
    folder.mkdir(parents=True, exist_ok=True)
    with _alone(path):
        if path.is_file():
            _check(path, model)
        else:
            _fetch(path, model, timeout)
    return path


def _fetch(path: Path, model: Published, timeout: float) -> None:
    say = f"{model.name}: weights of {model.project}, {model.licence}\nfetching {model.url}"
    print(say, file=sys.stderr)
    size, checksum = _ask(model.url, path, timeout)
    first = _notes(path)
    if first is not None and checksum and first["sha256"] != checksum:
        raise DownloadError(
            f"{model.url}: has SHA-256 {checksum}, when it was first fetched it had "
            f"{first['sha256']}; if the change is meant, delete {_notes_path(path)}"
        )
    expected = first["sha256"] if first else checksum or model.checksum
    with progress_bar() as progress:
        digest = fetch(model.url, path, size, progress, checksum=expected, timeout=timeout)
    _note(path, model, digest)


def _check(path: Path, model: Published) -> None:
    """Compares a file of the cache with what is known of it."""
    with path.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    first = _notes(path)
    size = path.stat().st_size
    expected = first["sha256"] if first else model.checksum
    if not digest.startswith(expected) or (first and first["size"] != size):
        whole = f"{first['size']} bytes with {expected}" if first else f"{expected}..."
        raise ValueError(
            f"{path} is damaged: {size} bytes with SHA-256 {digest}, expected {whole}; delete it, "
            "and it will be fetched again"
        )
    if first is None:
        _note(path, model, digest)


def _notes_path(path: Path) -> Path:
    return path.with_name(f"{path.name}.json")


def _notes(path: Path) -> dict[str, Any] | None:
    """Size and SHA-256 of the first fetch, where there was one."""
    notes = _notes_path(path)
    if not notes.is_file():
        return None
    try:
        content = json.loads(notes.read_text())
        return {"size": int(content["size"]), "sha256": str(content["sha256"])}
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{notes} is damaged ({error}); delete it") from error


def _note(path: Path, model: Published, digest: str) -> None:
    content = {"url": model.url, "size": path.stat().st_size, "sha256": digest}
    partial = path.with_name(f".{path.name}.json.partial")
    partial.write_text(json.dumps(content, indent=2))
    partial.replace(_notes_path(path))


class _Stay(HTTPRedirectHandler):
    """The hub says size and SHA-256 in the redirection, its store only the size."""

    def redirect_request(self, *_: Any) -> None:
        return None


def _ask(url: str, path: Path, timeout: float) -> tuple[int, str]:
    """Size of the file on the server, and its SHA-256 where the server tells it."""
    try:
        try:
            with build_opener(_Stay).open(Request(url, method="HEAD"), timeout=timeout) as answer:
                headers: Message = answer.headers
        except HTTPError as error:
            if not 300 <= error.code < 400:
                raise
            headers = error.headers
        if headers["X-Linked-Size"] is None and headers["Location"] is not None:
            with urlopen(Request(url, method="HEAD"), timeout=timeout) as answer:
                headers = answer.headers
    except OSError as error:
        reason = str(error)
        if isinstance(error, HTTPError):
            reason = f"the server answers {error.code} {error.reason}"
        raise DownloadError(
            f"{url} cannot be fetched ({reason}); try again, or put the file at {path}"
        ) from error
    size = headers["X-Linked-Size"] or headers["Content-Length"]
    if size is None:
        raise DownloadError(f"{url}: the server does not say the size; put the file at {path}")
    tag = (headers["X-Linked-ETag"] or "").removeprefix("W/").strip('"').lower()
    return int(size), tag if len(tag) == 64 else ""


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Of several processes on this machine, one fetches, and the others wait."""
    with path.with_name(f".{path.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
