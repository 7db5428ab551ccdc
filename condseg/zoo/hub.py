"""Downloads of published models into the caches of ``huggingface_hub`` and ``torch.hub``."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from huggingface_hub import (
    constants,
    get_hf_file_metadata,
    hf_hub_download,
    hf_hub_url,
    try_to_load_from_cache,
)

from condseg.models.backbones.files import check_sha256, sha256_in_name
from condseg.zoo.registry import MODELS, PublishedModel, unknown_model


def fetch_model(name: str, *, offline: bool = False) -> Path:
    """The file of a published model, from the cache or, the first time, from its server.

    ``HF_HOME``, ``HF_ENDPOINT`` and ``TORCH_HOME`` are respected. Each time, the file's SHA-256 is
    compared where it is known (by the hub's cache, or from the file's name).

    Raises:
        ValueError: unknown name, not in the cache and offline, cannot be downloaded, or damaged.
    """
    if name not in MODELS:
        raise ValueError(unknown_model(name))
    model = MODELS[name]
    path = _cached(model)
    if path is None and offline:
        cache = constants.HF_HUB_CACHE if model.on_hub else _torch_cache(model).parent
        raise ValueError(f"{name} is not in {cache}; without --offline it is downloaded there")
    path = path or _download(model)
    # The hub's cache is of links to files that are named by their SHA-256.
    linked = model.on_hub and path.is_symlink()
    check_sha256(path.parent / path.readlink() if linked else path)
    return path


def _cached(model: PublishedModel) -> Path | None:
    if model.on_hub:
        path = try_to_load_from_cache(model.folder, model.file)
        return Path(path) if isinstance(path, str) else None
    file = _torch_cache(model)
    return file if file.is_file() else None


def _torch_cache(model: PublishedModel) -> Path:
    return Path(torch.hub.get_dir()) / "checkpoints" / model.file


def _download(model: PublishedModel) -> Path:
    on_hub, file = model.on_hub, model.file
    url = hf_hub_url(model.folder, file) if on_hub else f"{model.folder}/{file}"
    print(f"{model.name}: weights of {model.project}, {model.licence}", file=sys.stderr)
    print(f"downloading {url}", file=sys.stderr)
    try:
        if on_hub:
            get_hf_file_metadata(url)  # fails at once if offline; the download would retry
            return Path(hf_hub_download(model.folder, file))
        path = _torch_cache(model)
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(url, str(path), sha256_in_name(path))
        return path
    except Exception as error:  # the clients raise many types, not all of them OSError
        reason = " ".join(str(error.__cause__ or error).split())[:200]
        raise ValueError(
            f"{url} cannot be downloaded ({reason}); try again, or download the file by other "
            "means and convert it with tools/convert.py"
        ) from error
