"""Golden vectors: cases of the official implementations, read from ``*.npz`` and judged strictly.

A file holds ``meta.json`` (``{"cases": {case: {"op": ..., options}}}``) and arrays named
``<case>/<group>.<name>``. A handler is found by the case's op, never by its name::

    @handles("ODConv2d", recorded={"std"}, mode={"eval", "train"})
    def odconv(case: Case) -> None:
        y = build(case.args["in_planes"])(case.inputs["x"])
        case.check("out.y", y, rel=1e-5)

A case fails when its op is unknown; when an option was never read, or has a value that the handler
does not list; when an input was never read; and when an ``out``, ``mid`` or ``grad`` array was
never compared. So a test that looks at nothing cannot pass.
"""

from __future__ import annotations

import functools
import json
import os
from collections import UserDict
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

HERE = Path(__file__).resolve().parent
COMMITTED = HERE / "cases"
DEFAULT_FOLDER = HERE.parents[1].parent / "shared" / "golden"
COMPANION = ".params_fp16.npz"

GRADIENTS = ("grad_in", "grad_param", "grad_norm")


class Read(UserDict[str, Any]):
    """A mapping that remembers which of its values were asked for."""

    def __init__(self, values: Mapping[str, Any]) -> None:
        super().__init__(values)
        self.seen = set[str]()

    def __getitem__(self, key: str) -> Any:
        value = self.data[key]
        self.seen.add(key)
        return value

    @property
    def unread(self) -> list[str]:
        return sorted(set(self.data) - self.seen)


@dataclass
class Case:
    """One case: its op, its options, its arrays by group, and what has been compared so far.

    Attributes:
        path: the file; name: the case in it; op: what computes it.
        args: the options, as stored beside ``op``.
        groups: ``{"param": {...}, "in": {...}, "out": {...}, "grad_in": {...}, ...}``; numbers are
            tensors, anything else (strings) stays a numpy array.
    """

    path: Path
    name: str
    op: str
    args: Read
    groups: dict[str, Read]
    compared: set[str] = field(default_factory=set)

    def group(self, name: str) -> Read:
        return self.groups.get(name, Read({}))

    @property
    def param(self) -> Read:
        return self.group("param")

    @property
    def inputs(self) -> Read:
        return self.group("in")

    @property
    def out(self) -> Read:
        return self.group("out")

    def leaves(self, *names: str) -> dict[str, Tensor]:
        """Copies of inputs that gradients are computed for."""
        return {name: self.inputs[name].clone().requires_grad_() for name in names}

    def expected(self, array: str) -> Any:
        """The stored array ``"<group>.<name>"``; asking for it marks it as compared."""
        group, _, name = array.partition(".")
        if name not in self.group(group):
            raise AssertionError(f"{self.name}: no array {array!r}")
        self.compared.add(array)
        return self.group(group)[name]

    def check(
        self,
        array: str,
        actual: Tensor,
        *,
        rel: float = 0.0,
        absolute: float = 0.0,
        norm: str = "max",
    ) -> None:
        """Compare with the stored array: max|a-b| <= rel * max|b| + absolute.

        ``norm="l2"`` compares L2 norms of difference and array instead of maxima. Whole numbers
        and booleans must be equal. A stored array of zeros is compared against a scale of one.
        """
        compare(f"{self.name}: {array}", actual, self.expected(array), rel, absolute, norm)

    def check_gradients(
        self,
        objective: Tensor,
        tensors: Mapping[str, Tensor],
        groups: Collection[str] = GRADIENTS,
        rel: float = 1e-4,
    ) -> None:
        """Compare every gradient stored in the groups, of ``grad_norm`` the L2 norm."""
        names = [(group, name) for group in groups for name in self.group(group)]
        grads = torch.autograd.grad(
            objective,
            [tensors[name] for _, name in names],
            retain_graph=True,
            materialize_grads=True,
        )
        for (group, name), grad in zip(names, grads, strict=True):
            self.check(f"{group}.{name}", grad.norm() if group == "grad_norm" else grad, rel=rel)

    def companion(self) -> dict[str, Tensor]:
        """The state dict that lies beside a large file as float16, cast to float32."""
        with np.load(self.path.with_name(self.path.stem + COMPANION)) as arrays:
            return {
                key: torch.from_numpy(arrays[key].astype(np.float32))
                for key in arrays.files
                if key != "meta.json"
            }

    def leftovers(self) -> list[str]:
        """What of the case nobody looked at."""
        judged = {
            f"{group}.{name}"
            for group, arrays in self.groups.items()
            if group in {"out", "mid"} or group.startswith("grad")
            for name in arrays
        }
        return [
            *(f"option {name} never read" for name in self.args.unread),
            *(f"in.{name} never read" for name in self.inputs.unread),
            *(f"{array} never compared" for array in sorted(judged - self.compared)),
        ]


def compare(
    what: str,
    actual: Tensor,
    expected: Any,
    rel: float = 0.0,
    absolute: float = 0.0,
    norm: str = "max",
) -> None:
    """Assert equality of shape and, within the tolerance, of values (see ``Case.check``)."""
    expected = torch.as_tensor(expected)
    actual = actual.detach().cpu()
    assert actual.shape == expected.shape, (
        f"{what}: shape {tuple(actual.shape)} instead of {tuple(expected.shape)}"
    )
    if not expected.is_floating_point():
        assert torch.equal(actual.to(expected.dtype), expected), f"{what}: differs"
        return
    assert actual.isfinite().all(), f"{what}: not finite"
    if expected.numel() == 0:
        return
    a, b = actual.double().flatten(), expected.double().flatten()
    order = float("inf") if norm == "max" else 2
    error, scale = (torch.linalg.vector_norm(v, order).item() for v in (a - b, b))
    limit = rel * (scale or 1.0) + absolute
    assert error <= limit, f"{what}: error {error:.3g} > {limit:.3g} (scale {scale:.3g})"


@dataclass(frozen=True)
class Handler:
    run: Callable[[Case], None]
    recorded: Collection[str]
    allowed: Mapping[str, Collection[Any]]


HANDLERS: dict[str, Handler] = {}
JUDGES: dict[str, Callable[[Any], None]] = {}


def handles(
    *ops: str, recorded: Collection[str] = (), **allowed: Collection[Any]
) -> Callable[[Callable[[Case], None]], Callable[[Case], None]]:
    """Register a handler for ops.

    Args:
        recorded: figures stored beside the options that are not options (sizes, statistics).
        allowed: values of the options that are not free. With a single one the handler need not
            read the option.
    """

    def register(run: Callable[[Case], None]) -> Callable[[Case], None]:
        for op in ops:
            assert op not in HANDLERS, f"two handlers for {op!r}"
            HANDLERS[op] = Handler(run, recorded, allowed)
        return run

    return register


def judges(file: str) -> Callable[[Callable[[Any], None]], Callable[[Any], None]]:
    """Register a test of a json file of the folder; it gets the parsed contents."""

    def register(run: Callable[[Any], None]) -> Callable[[Any], None]:
        JUDGES[file] = run
        return run

    return register


def judge(case: Case) -> None:
    """Run the handler of the case and fail on anything unknown or left over."""
    handler = HANDLERS.get(case.op)
    assert handler is not None, f"{case.name}: unknown op {case.op!r}; known: {sorted(HANDLERS)}"
    for name in handler.recorded:
        case.args.data.pop(name, None)
    for name, allowed in handler.allowed.items():
        if name in case.args:
            value = case.args[name]
            assert value in allowed, f"{case.op}: option {name}={value!r} is not among {allowed}"
            case.args.seen -= {name} if len(allowed) > 1 else set()
    handler.run(case)
    assert not case.leftovers(), f"{case.name}: {'; '.join(case.leftovers())}"


def folder() -> Path | None:
    """The big folder: ``$CONDSEG_GOLDEN``, else ``../shared/golden`` beside the repository."""
    if "CONDSEG_GOLDEN" in os.environ:
        path = Path(os.environ["CONDSEG_GOLDEN"])
        if not path.is_dir():
            raise ValueError(f"CONDSEG_GOLDEN={path} is not a folder")
        return path
    return DEFAULT_FOLDER if DEFAULT_FOLDER.is_dir() else None


def files(where: Path) -> list[Path]:
    return sorted(p for p in where.glob("*.npz") if not p.name.endswith(COMPANION))


@functools.lru_cache(maxsize=4)
def _open(path: Path) -> tuple[Any, dict[str, dict[str, Any]]]:
    arrays = np.load(path, allow_pickle=False)
    return arrays, json.loads(str(arrays["meta.json"]))["cases"]


def case_names(path: Path) -> list[str]:
    return list(_open(path)[1])


def orphans(path: Path) -> list[str]:
    """Arrays of a file that belong to none of its cases."""
    arrays, cases = _open(path)
    return [a for a in arrays.files if a != "meta.json" and a.partition("/")[0] not in cases]


def load(path: Path, name: str) -> Case:
    arrays, cases = _open(path)
    args = dict(cases[name])
    groups: dict[str, dict[str, Any]] = {}
    for key in arrays.files:
        if key.startswith(name + "/"):
            group, _, array = key.removeprefix(name + "/").partition(".")
            value = arrays[key]
            numeric = value.dtype.kind in "fiub"
            groups.setdefault(group, {})[array] = torch.from_numpy(value) if numeric else value
    return Case(path, name, args.pop("op"), Read(args), {g: Read(v) for g, v in groups.items()})
