"""Reading files of ``torch.save``: no code in them is executed, no damaged record is used."""

from __future__ import annotations

import logging
import pickle
import re
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

log = logging.getLogger(__name__)

# What numpy arrays are pickled with, under the names of numpy 1 and 2: the only additions to what
# torch itself reads with weights_only.
_NUMPY: list[Any] = [
    *(
        (value.__reduce__()[0], f"{module}.multiarray.{name}")
        for value, name in ((np.empty(0), "_reconstruct"), (np.float64(), "scalar"))
        for module in ("numpy.core", "numpy._core")
    ),
    np.ndarray,
    np.dtype,
    *(type(np.dtype(code)) for code in "efdbhilqB?"),
]


class _History:
    """In place of mmengine's ``HistoryBuffer``, the course of a loss, of which nothing is used."""


def _method(owner: Any, name: str) -> None:
    """In place of ``getattr``, by which its methods are pickled."""
    if owner is not _History:
        raise pickle.UnpicklingError("Unsupported global: GLOBAL getattr")


_MMENGINE: list[Any] = [
    (_History, "mmengine.logging.history_buffer.HistoryBuffer"),
    *((_method, f"{module}.getattr") for module in ("builtins", "__builtin__")),
]
_ARCHIVE = b"PK\x03\x04"


def read_pickled(path: Path, what: str, device: str | torch.device = "cpu") -> Any:
    """Reads a file of ``torch.save`` without executing code in it; messages begin with ``what``.

    The checksum of each record is compared first, which ``torch.load`` does not do. torch's format
    before 1.6 has none, nor has a file written after ``set_crc32_options(False)``.

    Raises:
        ValueError: a damaged file, or one that holds more than tensors, numpy arrays, plain data
            and mmengine's records of losses (the message names what was refused).
    """
    try:
        with path.open("rb") as stream:
            archive = stream.read(len(_ARCHIVE)) == _ARCHIVE  # as torch.load decides
        if archive:
            _check_records(path)
        with torch.serialization.safe_globals(_NUMPY + _MMENGINE):
            return torch.load(path, map_location=device, weights_only=True)
    except pickle.UnpicklingError as error:
        refused = re.search(r"GLOBAL ([\w.]+)", str(error))
        reason = (
            f"holds {refused[1]}, and pickled code is never executed; a file of tensors alone "
            "(a state dict) is allowed"
            if refused
            else f"is damaged, or holds more than tensors (pickled code is never executed): "
            f"{str(error).splitlines()[0]}"
        )
        raise ValueError(f"{what}: {path} {reason}") from error
    except Exception as error:  # the unpickler raises any of them on bytes that torch did not write
        lines = str(error).strip().splitlines() or [repr(error)]
        raise ValueError(f"{what}: {path} cannot be read, is it whole? {lines[0]}") from error


def _check_records(path: Path) -> None:
    """Raises ValueError unless each record of torch's archive has its checksum."""
    with zipfile.ZipFile(path) as archive:
        records = archive.infolist()
        if not any(record.CRC for record in records):
            log.warning("%s has no checksums: damage to it is not noticed", path)
            return
        for record in records:
            # torch compresses nothing; so what is read is no larger than the file.
            if (
                record.compress_type != zipfile.ZIP_STORED
                or record.compress_size != record.file_size
            ):
                raise ValueError(f"the record {record.filename} is compressed")
        damaged = archive.testzip()
        if damaged is not None:
            raise ValueError(f"the record {damaged} is damaged (its checksum is another one)")
