"""The runtimes that execute an exported model."""

from __future__ import annotations

import importlib
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from numpy.typing import NDArray

from condseg.export import EngineName
from condseg.export.contract import check_file, defaults_of

Arrays = dict[str, NDArray[Any]]
ROOT = "condseg"
"""Entry of an OpenVINO model's information under which the facts are."""


@runtime_checkable
class Engine(Protocol):
    """Executes one model.

    Attributes:
        facts: what the file says of itself, see :func:`condseg.export.contract.facts_of`.
        inputs: names of the inputs.
    """

    facts: Mapping[str, str]
    inputs: tuple[str, ...]

    def __call__(self, inputs: Arrays) -> Arrays:
        """Outputs by their names; thresholds that are left out have their defaults."""


class OnnxRuntime:
    """onnxruntime, on the CPU or a CUDA device; threads 0: one per core."""

    def __init__(self, path: str | Path, device: str, threads: int) -> None:
        onnxruntime = imported("onnxruntime", "onnx")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3  # errors; it warns of the thresholds' defaults
        kind, _, index = device.partition(":")
        providers: list[Any] = ["CPUExecutionProvider"]
        if kind == "cuda":
            if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
                raise ValueError(f"device is {device!r}; onnxruntime-gpu is not installed")
            providers.insert(0, ("CUDAExecutionProvider", {"device_id": int(index or 0)}))
        try:
            self.session = onnxruntime.InferenceSession(str(path), options, providers=providers)
        except Exception as error:  # of its own classes, without a common base
            raise _unreadable(path, error) from error
        self.facts: Mapping[str, str] = dict(self.session.get_modelmeta().custom_metadata_map)
        given = (*self.session.get_inputs(), *self.session.get_overridable_initializers())
        self.inputs = tuple(value.name for value in given)
        self._outputs = [value.name for value in self.session.get_outputs()]
        check_file(path, self.facts, self._outputs)

    def __call__(self, inputs: Arrays) -> Arrays:
        return dict(zip(self._outputs, self.session.run(None, inputs), strict=True))


class OpenVino:
    """OpenVINO on the CPU, of its own files and of ONNX files; threads 0: one per core."""

    def __init__(self, path: str | Path, device: str, threads: int) -> None:
        openvino = imported("openvino", "openvino")
        if device.partition(":")[0] not in ("auto", "cpu"):
            raise ValueError(f"device is {device!r}; openvino is for the CPU")
        core = openvino.Core()
        try:
            model = core.read_model(_without_defaults(path))
            options: dict[str, Any] = {"INFERENCE_PRECISION_HINT": "f32"}
            if threads:
                options["INFERENCE_NUM_THREADS"] = threads
            self.compiled = core.compile_model(model, "CPU", options)
        except Exception as error:  # of its own classes
            raise _unreadable(path, error) from error
        self.facts: Mapping[str, str] = _openvino_facts(model)
        self._defaults = defaults_of(self.facts)
        self.inputs = tuple(value.any_name for value in model.inputs)
        self._outputs = [value.any_name for value in model.outputs]
        check_file(path, self.facts, self._outputs)

    def __call__(self, inputs: Arrays) -> Arrays:
        given = {name: v for name, v in self._defaults.items() if name in self.inputs}
        results = self.compiled(given | inputs)
        return {name: results[i] for i, name in enumerate(self._outputs)}


def open_engine(
    name: EngineName, path: str | Path, device: str = "cpu", threads: int = 0
) -> Engine:
    """The engine of that name with the model of a file.

    Raises:
        ValueError: the engine is not installed, or the file is not one of its models.
    """
    if not Path(path).is_file():
        raise ValueError(f"model {path}: no such file")
    if name == "onnxruntime":
        return OnnxRuntime(path, device, threads)
    return OpenVino(path, device, threads)


def imported(module: str, extra: str) -> Any:
    """A module of an extra.

    Raises:
        ValueError: it is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ValueError(f"{module} is not installed: pip install 'condseg[{extra}]'") from error


def _without_defaults(path: str | Path) -> Any:
    """What OpenVINO reads: inputs of an ONNX file that have defaults would be constants in it."""
    if Path(path).suffix != ".onnx":
        return str(path)
    model = imported("onnx", "openvino").load(path)
    inputs = {value.name for value in model.graph.input}
    for value in [v for v in model.graph.initializer if v.name in inputs]:
        model.graph.initializer.remove(value)
    return io.BytesIO(model.SerializeToString())


def _openvino_facts(model: Any) -> dict[str, str]:
    for root in (ROOT, "framework"):  # of its own files, and of ONNX's
        if model.has_rt_info([root, "format"]):
            facts = model.get_rt_info(root).value.items()
            return {key: str(getattr(value, "value", value)) for key, value in facts}
    return {}


def _unreadable(path: str | Path, error: Exception) -> ValueError:
    reason = " ".join(str(error).split())
    return ValueError(f"model {path}: cannot be read ({reason[:200]})")
