"""Downloads of published models into the caches of ``huggingface_hub`` and ``torch.hub``."""

from __future__ import annotations

import re
import sys
from os.path import normpath
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import (
    constants,
    get_hf_file_metadata,
    hf_hub_download,
    hf_hub_url,
    try_to_load_from_cache,
)
from huggingface_hub.utils.tqdm import tqdm

from condseg.data.fetch import DownloadError, fetch, locked, progress_bars, promised_size
from condseg.models.backbones.files import check_sha256, sha256_in_name
from condseg.zoo.registry import MODELS, PublishedModel, unknown_model

_BEGINNINGS = (b"PK\x03\x04", b"\x80\x02")
"""Of files of ``torch.save``: a zip file; before torch 1.6, a pickle."""


def fetch_model(name: str, *, offline: bool = False) -> Path:
    """The file of a published model, from the cache or, the first time, from its server.

    ``HF_HOME``, ``HF_ENDPOINT`` and ``TORCH_HOME`` are respected. Each time, the file's beginning
    is checked, and its SHA-256 where it is known (by the hub's cache, or from the file's name). A
    wrong file is not kept after a download, and not deleted where it was in the cache before.

    Raises:
        ValueError: unknown name, not in the cache and offline, cannot be downloaded, or damaged.
    """
    if name not in MODELS:
        raise ValueError(unknown_model(name))
    model = MODELS[name]
    path = _cached(model)
    if path is not None:
        _check(path, "delete it, and it will be downloaded again")
        return path
    if offline:
        cache = constants.HF_HUB_CACHE if model.on_hub else _torch_cache(model).parent
        raise ValueError(
            f"{name} is not in {cache}; without --offline it is downloaded there. Without a "
            f"network, download {address(model)} elsewhere and {_by_hand(model)}"
        )
    path = _download(model)
    try:
        _check(path, "it was not kept; is it a login page, or does the mirror have another file?")
    except ValueError:
        _stored(path).unlink()
        path.unlink(missing_ok=True)
        raise
    return path


def address(model: PublishedModel) -> str:
    """The address of a model's file."""
    if model.on_hub:
        return hf_hub_url(model.folder, model.file)
    return f"{model.folder}/{model.file}"


def size_of(model: PublishedModel, timeout: float = 60.0) -> int:
    """The size in bytes that the server states for a model's file.

    Raises:
        Exception: of many types, also if the server states none.
    """
    url = address(model)
    return hub_size(url, timeout) if model.on_hub else promised_size(url, timeout)


def hub_size(url: str, timeout: float = 60.0) -> int:
    """The size in bytes that the hub states for a file, with a SHA-256.

    Raises:
        Exception: of many types, also if the server states none.
    """
    promised = get_hf_file_metadata(url, timeout=timeout)  # the download would retry if offline
    if promised.size is None or not re.fullmatch("[0-9a-f]{64}", promised.etag or ""):
        raise DownloadError("the server sends no size and SHA-256 of the file; it is no hub")
    return promised.size


def _cached(model: PublishedModel) -> Path | None:
    if model.on_hub:
        path = try_to_load_from_cache(model.folder, model.file)
        return Path(path) if isinstance(path, str) else None
    file = _torch_cache(model)
    return file if file.is_file() else None


def _torch_cache(model: PublishedModel) -> Path:
    return Path(torch.hub.get_dir()) / "checkpoints" / model.file


def _stored(path: Path) -> Path:
    """The file itself: the hub's cache is of links to files that are named by their SHA-256."""
    return Path(normpath(path.parent / path.readlink())) if path.is_symlink() else path


def _check(path: Path, cure: str) -> None:
    path = _stored(path)
    with path.open("rb") as file:
        beginning = file.read(16)
    if not beginning.startswith(_BEGINNINGS):
        raise ValueError(
            f"weights: {path} is no file of torch.save, it begins with {beginning!r}; {cure}"
        )
    check_sha256(path, cure)


def _download(model: PublishedModel) -> Path:
    url = address(model)
    print(f"{model.name}: weights of {model.project}, {model.licence}", file=sys.stderr)
    try:
        size = size_of(model)
        print(f"downloading {size / 1e6:.1f} MB from {url}", file=sys.stderr)
        if model.on_hub:
            return hub_file(model.folder, model.file, size)
        path = _torch_cache(model)
        path.parent.mkdir(parents=True, exist_ok=True)
        with locked(path.with_name(f".{path.name}.lock")), progress_bars() as progress:
            if not path.exists():
                fetch(url, path, ("sha256", sha256_in_name(path)), progress, size=size)
        return path
    except Exception as error:  # the clients raise many types, not all of them OSError
        reason = " ".join(str(error.__cause__ or error).removeprefix(f"{url}: ").split())[:200]
        raise ValueError(
            f"{url} cannot be downloaded ({reason}); try again, or download the file by other "
            f"means and {_by_hand(model)}"
        ) from error


def _by_hand(model: PublishedModel) -> str:
    """What to do with a file that was downloaded by other means."""
    if model.on_hub:
        return "convert it with 'condseg convert'"
    return f"put it at {_torch_cache(model)}, or convert it with 'condseg convert'"


def hub_file(repository: str, file: str, limit: int) -> Path:
    """Downloads a file of the hub, which is checked by its size and SHA-256."""

    class LimitedBar(tqdm):
        """The client tells its bar of each chunk before it writes the chunk."""

        received: int | float = 0

        def update(self, n: int | float | None = 1) -> Any:
            self.received += n or 0
            if self.received > limit:
                raise DownloadError(
                    f"the server sends more than the {limit} bytes that it promised"
                )
            return super().update(n)

    return Path(hf_hub_download(repository, file, tqdm_class=LimitedBar))
