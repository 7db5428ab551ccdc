"""What ``import condseg`` offers: :func:`load`, :class:`Model`, :func:`train`."""

from __future__ import annotations

import html
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

from condseg.data.images import read_depth
from condseg.evaluation import Report
from condseg.export import EXPORTED, SUFFIXES, Masks
from condseg.export.predictor import EnginePredictor, open_predictor
from condseg.inference import SCORE_THRESHOLD
from condseg.inference.inputs import ImageSource, read_source
from condseg.inference.instances import Instances
from condseg.inference.predictor import Predictor
from condseg.zoo.allowed import allowing
from condseg.zoo.checkpoint import best_of, newest_best
from condseg.zoo.pretrained import open_model
from condseg.zoo.registry import DEFAULT_MODEL, MODELS, unknown_model
from condseg.zoo.remote import is_remote

DepthSource = str | os.PathLike[str] | NDArray[np.uint16]


def load(
    model: str | os.PathLike[str] | None = None,
    *,
    device: str = "auto",
    precision: str = "32-true",
    offline: bool = False,
    allow: Sequence[str] = (),
) -> Model:
    """A trained model.

    Args:
        model: path of a checkpoint or of an exported file (.onnx, .xml), name of a published
            model, address (http, https) of a checkpoint, or its place in the Hugging Face hub,
            ``hf://user/repository[/file]`` or ``user/repository``; what is not local is downloaded
            the first time. None: the best checkpoint of the newest run under ``runs/``, or
            ``rtmdet_ins_m`` if there is no run.
        device: "auto", "cpu", "cuda", "cuda:1", "mps".
        precision: "32-true", or "bf16-mixed", which is faster on hardware with bfloat16
            instructions and less accurate.
        offline: download nothing.
        allow: packages or modules whose classes the checkpoint may name besides condseg's, torch's
            and Lightning's; their code is run.

    Raises:
        ValueError: there is no such file or model, it cannot be read or downloaded, or a value is
            outside its range.
    """
    with allowing(allow):
        if model is None:
            restored, source = open_model(offline=offline), str(newest_best() or DEFAULT_MODEL)
        elif Path(source := os.fspath(model)).suffix in EXPORTED:
            return Model(open_predictor(source, device=device, precision=precision), source)
        elif Path(source).exists():
            restored = open_model(source)
        elif source in MODELS:
            restored = open_model(model=source, offline=offline)
        elif is_remote(source):
            restored = open_model(source, offline=offline)
        else:
            raise ValueError(f"model is {source!r}: no such file, and {unknown_model(source)}")
    return Model(Predictor(restored, device, precision=precision), source)


class Model:
    """A trained model: :meth:`predict` finds instances in images, :meth:`evaluate` computes AP.

    Args:
        predictor: network, post-process, classes.
        source: the checkpoint or the published model's name.
    """

    def __init__(self, predictor: Predictor, source: str = "") -> None:
        self.predictor = predictor
        self.source = source

    @property
    def names(self) -> tuple[str, ...]:
        """The classes: that of label k at position k."""
        return self.predictor.names

    @overload
    def predict(
        self,
        source: ImageSource,
        *,
        score_threshold: float = ...,
        max_detections: int | None = ...,
        class_agnostic_nms: bool | None = ...,
        keep_islands: bool | None = ...,
        depth: DepthSource | None = ...,
    ) -> Instances: ...

    @overload
    def predict(
        self,
        source: list[Any] | tuple[Any, ...],
        *,
        score_threshold: float = ...,
        max_detections: int | None = ...,
        class_agnostic_nms: bool | None = ...,
        keep_islands: bool | None = ...,
        depth: Sequence[DepthSource] | None = ...,
    ) -> list[Instances]: ...

    def predict(
        self,
        source: ImageSource | list[Any] | tuple[Any, ...],
        *,
        score_threshold: float = SCORE_THRESHOLD,
        max_detections: int | None = None,
        class_agnostic_nms: bool | None = None,
        keep_islands: bool | None = None,
        depth: DepthSource | Sequence[DepthSource] | None = None,
    ) -> Instances | list[Instances]:
        """The instances in an image, or a list with those of each image of a list.

        Images of a list are processed one by one, so that results do not depend on the others.
        Options that are None are as in the training.

        Args:
            source: path, address (http, https), PIL image, RGB array (H, W, 3) of uint8, RGB
                tensor (3, H, W) of uint8 or of floats 0..1, or a list of them.
            score_threshold: min score, as in ``Instances.scores``.
            max_detections: per image.
            class_agnostic_nms: remove overlapping boxes of different classes as well.
            keep_islands: False removes the parts of a mask that do not touch its box.
            depth: for a network that takes depth: path or (H, W) array of the depth map, or a list
                for a list.

        Raises:
            ValueError: an image cannot be read, or a value is outside its range.
        """
        predictor = self.predictor.with_options(
            score_threshold=score_threshold,
            max_detections=max_detections,
            class_agnostic_nms=class_agnostic_nms,
            keep_islands=keep_islands,
        )
        if not isinstance(source, list | tuple):
            return _predict(predictor, source, depth)
        depths = [None] * len(source) if depth is None else depth
        if not isinstance(depths, list | tuple) or len(depths) != len(source):
            raise ValueError(f"depth is not a list of {len(source)} depth maps, one for each image")
        return [_predict(predictor, *pair) for pair in zip(source, depths, strict=True)]

    def evaluate(
        self,
        data: str | os.PathLike[str] | None = None,
        *,
        annotations: str | os.PathLike[str] | None = None,
        images: str | os.PathLike[str] | None = None,
        batch_size: int = 1,
        workers: int = 2,
        score_threshold: float | None = None,
        max_detections: int | None = None,
        output: str | os.PathLike[str] | None = None,
        visibility: tuple[float, float] | None = None,
    ) -> Report:
        """Box and mask AP on a set in COCO format: ``report["mask/AP"]``, ``report.table()``.

        The arguments are those of the command, see :func:`condseg.inference.evaluate.evaluate`;
        ``data`` is "tabletop" or a folder, by default the validation set of the training.

        Raises:
            ValueError, OSError: the files are missing or wrong, or a value is outside its range.
        """
        from condseg.inference.evaluate import evaluate

        report, _ = evaluate(
            self.predictor.with_options(
                score_threshold=score_threshold, max_detections=max_detections
            ),
            data=None if data is None else os.fspath(data),
            annotations=None if annotations is None else os.fspath(annotations),
            images=None if images is None else os.fspath(images),
            batch_size=batch_size,
            workers=workers,
            output=None if output is None else Path(output),
            visibility=visibility,
        )
        return report

    def export(
        self,
        path: str | os.PathLike[str],
        *,
        masks: Masks = "logits",
        images: str | os.PathLike[str] | None = None,
        verify: bool = True,
    ) -> None:
        """Writes the model as one file for other engines, and ``MODEL.md`` beside it.

        Args:
            path: .onnx or .xml (OpenVINO).
            masks: "logits", of a quarter of the image's size, or "full".
            images: folder of images for the comparison; by default of the tabletop set.
            verify: whether the file is compared with PyTorch.

        Raises:
            ValueError: another ending, what the format needs is not installed, or the file
                computes something else than PyTorch.
        """
        from condseg.export.export import export, read_photographs
        from condseg.export.verify import table

        path = Path(path)
        if isinstance(self.predictor, EnginePredictor):
            raise ValueError(f"model is {self.source}, an exported file; export its checkpoint")
        formats = {suffix: name for name, suffix in SUFFIXES.items()}
        if path.suffix not in formats:
            raise ValueError(f"path is {path}; a file that ends with {', '.join(formats)} allowed")
        photographs = read_photographs(Path(images) if images else None) if verify else []
        rows = export(self.predictor.restored, path, formats[path.suffix], masks, photographs)
        if not all(row.passed for row in rows):
            raise ValueError(f"{path} computes something else than PyTorch:\n{table(rows)}")

    def __repr__(self) -> str:
        return f"Model({', '.join(f'{key}: {value}' for key, value in self._summary().items())})"

    def _repr_html_(self) -> str:
        """What notebooks show."""
        rows = "".join(
            f"<tr><th>{key}</th><td>{html.escape(value)}</td></tr>"
            for key, value in self._summary().items()
        )
        return f"<table>{rows}</table>"

    def _summary(self) -> dict[str, str]:
        restored, names = self.predictor.restored, list(self.names)
        shown = names if len(names) <= 10 else [*names[:10], "..."]
        count = sum(p.numel() for p in self.predictor.network.parameters())
        return {
            "model": self.source,
            "parameters": f"{count:,}",
            f"{len(names)} classes": ", ".join(shown),
            "short side": f"{restored.short_side} (long side up to {restored.max_long_side})",
            "device": str(self.predictor.device),
        }


def _predict(predictor: Predictor, source: ImageSource, depth: Any) -> Instances:
    image, name = read_source(source)
    if isinstance(depth, str | os.PathLike):
        depth = read_depth(os.fspath(depth), (image.shape[0], image.shape[1]))
    return Instances.of(predictor(image, depth), predictor.categories, image, name)


def train(
    config: str | os.PathLike[str] | Sequence[str | os.PathLike[str]] | None = None,
    data: str | os.PathLike[str] | None = None,
    *,
    init_from: str | os.PathLike[str] | None = None,
    max_steps: int | None = None,
    batch_size: int | None = None,
    runs: str | os.PathLike[str] | None = None,
    name: str | None = None,
    allow: Sequence[str] = (),
    options: Mapping[str, Any] | None = None,
) -> Model:
    """Trains a model, as the command does with the same arguments, and returns the best.

    Args:
        config: name of a configuration, path of a YAML file, or several; later ones override
            earlier ones. None chooses all options by the data and the machine, or is
            "quickstart" without ``data``.
        data: "tabletop", or a folder or json in COCO format, see
            ``condseg.data.datamodule.DataModule``; by default the configuration's.
        init_from: checkpoint or published model with whose network and weights to start.
        max_steps: steps of the training; its last one is validated.
        batch_size: images of a step over all processes.
        runs: folder of the runs; by default ``runs``.
        name: folder of the run in it.
        allow: packages or modules whose classes may be named besides condseg's, torch's and
            Lightning's; their code is run.
        options: any other option by its name in configurations and on the command line, such as
            ``{"data.workers": 2, "model.optimizer.init_args.lr": 0.001}``.

    Returns:
        The model of the best checkpoint, or of the last one if there was no validation. Its
        ``source`` is the path.

    Raises:
        ValueError, OSError: an option, a file or a value is wrong.
    """
    from condseg.cli.train import CommandLine

    if config is None:
        config = "quickstart" if data is None else ()
    files = [config] if isinstance(config, str | os.PathLike) else config
    named = {
        "data": data,
        "name": name,
        "init_from": init_from,
        "trainer.max_steps": max_steps,
        "data.batch_size": batch_size,
        "trainer.default_root_dir": runs,
    }
    given = {key: value for key, value in named.items() if value is not None} | dict(options or {})
    command = CommandLine(
        [f"--config={os.fspath(file)}" for file in files]
        + [f"--allow={package}" for package in allow]
        + [f"--{key}={_text(value)}" for key, value in given.items()]
    )
    command.fit()
    folder: Path | None = command.run_folder
    checkpoint = None if folder is None else best_of(folder / "checkpoints")
    if checkpoint is None:
        raise ValueError("the training has written no checkpoint")
    return load(checkpoint, allow=allow)


def _text(value: Any) -> str:
    """A value as the command line takes it."""
    return os.fspath(value) if isinstance(value, str | os.PathLike) else json.dumps(value)
