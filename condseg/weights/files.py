"""Tensors out of checkpoint files, and into networks: nothing executed, nothing lost in silence."""

from __future__ import annotations

import logging
import pickle
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

log = logging.getLogger(__name__)


def read_state(path: str | Path) -> dict[str, Tensor]:
    """Reads the named tensors of a ``.pth``/``.pt``/``.ckpt`` or ``.safetensors`` file.

    A dictionary inside under ``state_dict``, ``model`` or ``model_state_dict`` is unwrapped, and
    the prefix ``module.`` of data-parallel training taken off.

    Args:
        path: the file; pickled code in it is never executed (``weights_only``).

    Raises:
        ValueError: the file is missing, damaged, holds pickled code or no named tensors.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"weights: no such file: {path}")
    content: Any
    if path.suffix == ".safetensors":
        content = _read_safetensors(path)
    else:
        try:
            content = torch.load(path, map_location="cpu", weights_only=True)
        except pickle.UnpicklingError as error:
            raise ValueError(
                f"weights: {path} is damaged, or holds more than tensors (pickled code is never "
                f"executed): {str(error).splitlines()[0]}"
            ) from error
        except (RuntimeError, EOFError, OSError) as error:
            raise ValueError(f"weights: {path} cannot be read, is it whole? {error}") from error
    for key in ("state_dict", "model", "model_state_dict"):
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    if not isinstance(content, Mapping) or not content:
        raise ValueError(f"weights: {path} holds no named tensors but a {type(content).__name__}")
    wrong = [str(k) for k, v in content.items() if not isinstance(v, Tensor)]
    if wrong:
        raise ValueError(f"weights: in {path} these are no tensors: {', '.join(wrong[:5])}")
    return {str(k).removeprefix("module."): v for k, v in content.items()}


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        from safetensors import SafetensorError
        from safetensors.torch import load_file
    except ImportError as error:
        raise ValueError(
            f"weights: {path} needs safetensors: pip install 'condseg[pretrained]'"
        ) from error
    try:
        return dict(load_file(path))
    except SafetensorError as error:
        raise ValueError(f"weights: {path} cannot be read, is it whole? {error}") from error


def load_strict(
    network: nn.Module,
    state: Mapping[str, Tensor],
    *,
    source: str,
    left_out: Mapping[str, str] | None = None,
) -> None:
    """Loads ``state`` so that each of its tensors is used, or named as left out with a reason.

    Args:
        network: takes the tensors; its ``num_batches_tracked`` counters alone may be missing.
        state: named as the network names them.
        source: where the tensors come from, for messages.
        left_out: key -> reason, for tensors that the network has no place for.

    Raises:
        ValueError: a tensor is missing, unknown, or of another shape (both sides are named).
    """
    left_out = left_out or {}
    own = network.state_dict()
    missing = [k for k in own if k not in state and not k.endswith("num_batches_tracked")]
    unknown = [k for k in state if k not in own and k not in left_out]
    unlike = [
        f"{k}: {tuple(state[k].shape)} in the file, {tuple(own[k].shape)} in the network"
        for k in own
        if k in state and state[k].shape != own[k].shape
    ]
    problems = [
        f"{what}: {', '.join(keys[:5])}{f' and {len(keys) - 5} more' if len(keys) > 5 else ''}"
        for what, keys in (("missing", missing), ("unknown", unknown), ("other shape", unlike))
        if keys
    ]
    if problems:
        raise ValueError(f"weights: {source} does not fit the network; {'; '.join(problems)}")
    network.load_state_dict({k: state.get(k, own[k]) for k in own}, strict=True)
    for key in state:
        if key not in own:
            log.info("%s: %s left out: %s", source, key, left_out[key])


def rename(
    state: Mapping[str, Tensor],
    rules: Sequence[tuple[str, str]],
    derived: Mapping[str, str],
    source: str,
) -> dict[str, Tensor]:
    """Gives each tensor the name of the first rule whose pattern matches its whole old name.

    Args:
        state: as a checkpoint holds it.
        rules: (regular expression, replacement with ``\\1``...).
        derived: regular expression -> reason, for what is left out because we compute it.
        source: whose names these are, for messages.

    Raises:
        ValueError: a name that no rule knows, or two tensors with the same new name.
    """
    renamed: dict[str, Tensor] = {}
    for key, tensor in state.items():
        reason = next((why for old, why in derived.items() if re.fullmatch(old, key)), None)
        if reason is not None:
            log.info("%s: %s left out: %s", source, key, reason)
            continue
        match = next(((m, new) for old, new in rules if (m := re.fullmatch(old, key))), None)
        if match is None:
            raise ValueError(f"weights: {source}: no place is known for {key}")
        name = match[0].expand(match[1])
        if name in renamed:
            raise ValueError(f"weights: {source}: two tensors would be {name}, one of them {key}")
        renamed[name] = tensor
    return renamed
