"""Checkpoints of an address, or of a repository of the Hugging Face hub."""

from __future__ import annotations

import hashlib
import re
import sys
from pathlib import Path
from urllib.parse import unquote, urlsplit

import torch
from huggingface_hub import HfApi, hf_hub_url, snapshot_download, try_to_load_from_cache

from condseg.data.fetch import DownloadError, fetch, locked, progress_bars, promised_size
from condseg.models.backbones.files import sha256_in_name
from condseg.zoo.hub import hub_file, hub_size

SUFFIXES = (".ckpt", ".pth", ".pt", ".safetensors")
MAX_BYTES = 8 << 30
"""Of a file at an address, whose server alone says its size."""

_HUB = re.compile(r"(?:hf://)?([\w-][\w.-]*/[\w-][\w.-]*)(?:/(.+))?")


def is_remote(source: str) -> bool:
    """Whether this is an address, ``hf://user/repository[/file]``, or ``user/repository``.

    The last is a path if its first part is a folder or it has a checkpoint's suffix.
    """
    if "://" in source:
        return urlsplit(source).scheme in ("http", "https", "hf")
    match = _HUB.fullmatch(source)
    is_path = source.endswith(SUFFIXES) or Path(source).parent.is_dir()
    return match is not None and match[2] is None and not is_path


def fetch_checkpoint(source: str, *, offline: bool = False) -> Path:
    """The file of a remote source, from the cache or, the first time, from its server.

    A file of the hub is checked by the size and the SHA-256 that the hub promises; another one by
    the size that its server promises, up to ``MAX_BYTES``, and by the digits of a SHA-256 in its
    name, if there are any.

    Raises:
        ValueError: not in the cache and offline, cannot be downloaded, or damaged.
    """
    if source.startswith(("http://", "https://")):
        return _from_address(source, offline)
    match = _HUB.fullmatch(source)
    if match is None:
        raise ValueError(f"{source}: hf://user/repository or hf://user/repository/file is allowed")
    repository, file = match.groups()
    try:
        file = file or _only_checkpoint(repository, offline)
        cached = try_to_load_from_cache(repository, file)
        if isinstance(cached, str):
            return Path(cached)
        if not offline:
            url = hf_hub_url(repository, file)
            print(f"downloading {url}", file=sys.stderr)
            return hub_file(repository, file, hub_size(url))
    except Exception as error:  # the client raises many types, not all of them OSError
        raise _no_download(source, error) from error
    raise ValueError(f"{source} is not in the cache; without --offline it is downloaded")


def _only_checkpoint(repository: str, offline: bool) -> str:
    if offline:
        folder = Path(snapshot_download(repository, local_files_only=True))
        names = [path.relative_to(folder).as_posix() for path in folder.rglob("*")]
    else:
        names = HfApi().list_repo_files(repository)
    found = [name for name in names if name.endswith(SUFFIXES)]
    if len(found) == 1:
        return found[0]
    has = ", ".join(found[:5]) or f"no file with the suffix {', '.join(SUFFIXES)}"
    raise ValueError(f"it has {has}; hf://{repository}/FILE names one")


def _from_address(url: str, offline: bool) -> Path:
    name = Path(unquote(urlsplit(url).path)).name or "checkpoint"
    folder = (
        Path(torch.hub.get_dir()) / "checkpoints" / hashlib.sha256(url.encode()).hexdigest()[:16]
    )
    path = folder / name
    if path.is_file():
        return path
    if offline:
        raise ValueError(f"{url} is not in {folder}; without --offline it is downloaded there")
    print(f"downloading {url}", file=sys.stderr)
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with locked(path.with_name(f".{name}.lock")), progress_bars() as progress:
            if not path.exists():
                if (size := promised_size(url)) > MAX_BYTES:
                    raise DownloadError(f"it has {size} bytes; up to {MAX_BYTES} are allowed")
                fetch(url, path, ("sha256", sha256_in_name(path)), progress, size=size)
    except (OSError, ValueError) as error:
        raise _no_download(url, error) from error
    return path


def _no_download(source: str, error: Exception) -> ValueError:
    lines = str(error).removeprefix(f"{source}: ").strip().splitlines()
    reason = lines[0] if lines else type(error).__name__
    return ValueError(f"{source} cannot be downloaded ({reason[:400]})")
