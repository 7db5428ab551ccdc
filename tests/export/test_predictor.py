"""Prediction with an exported model, and its comparison with PyTorch."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
from support.engines import GraphEngine
from support.tiny import error, write_checkpoint

import condseg
from condseg.cli import eval as eval_command
from condseg.cli import export as export_command
from condseg.cli import predict as predict_command
from condseg.export import contract, engines
from condseg.export import export as exporting
from condseg.export import predictor as predicting
from condseg.export.predictor import EnginePredictor, open_predictor
from condseg.export.verify import table, verify
from condseg.inference.predictor import Predictor
from condseg.zoo.checkpoint import restore
from condseg.zoo.registry import DEFAULT_MODEL, MODELS

RGBD = {
    "mask_filter": {"class_path": "condseg.layers.DynamicDilatedPyramid2d"},
    "depth_channels": 8,
}


@pytest.fixture(name="checkpoint", scope="module")
def checkpoint_fixture(tmp_path_factory):
    return write_checkpoint(tmp_path_factory.mktemp("export") / "tiny.ckpt")


@pytest.fixture(name="photographs")
def photographs_fixture():
    random = np.random.default_rng(0)
    return [random.integers(0, 256, (50 + k, 70, 3), dtype=np.uint8) for k in range(3)]


def assert_same(found, expected) -> None:
    assert len(found) == len(expected) > 0
    np.testing.assert_allclose(found.boxes, expected.boxes, atol=1e-3)
    np.testing.assert_allclose(found.scores, expected.scores, atol=1e-5)
    assert (found.labels == expected.labels).all()
    assert (found.masks != expected.masks).float().mean() < 2e-5


def test_it_predicts_what_the_network_does(checkpoint, photographs) -> None:
    expected = Predictor(restore(checkpoint), "cpu")
    found = EnginePredictor(GraphEngine(checkpoint))
    assert (found.names, found.restored.data) == (expected.names, expected.restored.data)
    for image in photographs:
        assert_same(found(image), expected(image))
    options = {"score_threshold": 0.0008, "max_detections": 3, "keep_islands": False}
    image = photographs[0]
    changed = found.with_options(**options)(image)
    assert_same(changed, expected.with_options(**options)(image))
    assert len(changed) < len(found(image))


def test_depth_is_an_input(tmp_path, photographs) -> None:
    checkpoint = write_checkpoint(tmp_path / "rgbd.ckpt", **RGBD)
    image = photographs[0]
    depth = np.random.default_rng(0).integers(0, 3000, image.shape[:2]).astype(np.uint16)
    found = EnginePredictor(GraphEngine(checkpoint))(image, depth)
    assert_same(found, Predictor(restore(checkpoint), "cpu")(image, depth))


def test_options_inside_the_graph_are_fixed(checkpoint) -> None:
    predictor = EnginePredictor(GraphEngine(checkpoint))
    with pytest.raises(ValueError, match="class_agnostic_nms is fixed in an exported model"):
        predictor.with_options(class_agnostic_nms=True)


@pytest.mark.parametrize(
    ("facts", "message"),
    [
        ({"masks": "full size"}, "masks of full size; logits are needed"),
        ({"config": "{"}, "the model's configuration cannot be read"),
        ({"config": json.dumps({"model": {}})}, "not compatible with this version of condseg"),
    ],
)
def test_files_that_predict_refuses(checkpoint, facts, message) -> None:
    with pytest.raises(ValueError, match=message):
        EnginePredictor(GraphEngine(checkpoint, **facts))


def test_files_of_others_and_of_other_versions_are_refused() -> None:
    facts = {"format": contract.FORMAT}
    contract.check_file("a.onnx", facts, contract.OUTPUTS)
    with pytest.raises(ValueError, match="not written by condseg export"):
        contract.check_file("a.onnx", {}, contract.OUTPUTS)
    with pytest.raises(ValueError, match=r"its format is 0, .* export the checkpoint again"):
        contract.check_file("a.onnx", {"format": "0"}, contract.OUTPUTS)
    with pytest.raises(ValueError, match="has no output scores"):
        contract.check_file("a.onnx", facts, ("boxes", "labels", "image_index", "masks"))


def test_the_comparison_passes_and_counts_differences(checkpoint, photographs) -> None:
    engine = GraphEngine(checkpoint)
    rows = verify(engine.restored, engine, photographs)
    assert [row.batch for row in rows] == [1, 3, 3, 1, 1]
    assert all(row.passed for row in rows), table(rows)
    counts = {row.name: row.expected for row in rows}
    assert counts["no detection"] == 0
    assert counts["many detections"] > counts["one image"] > 0

    def moved(inputs):
        outputs = GraphEngine.__call__(engine, inputs)
        outputs["boxes"] = outputs["boxes"] + np.float32(0.02)
        return outputs

    def flipped(inputs):
        outputs = GraphEngine.__call__(engine, inputs)
        return outputs | {"masks": -outputs["masks"]}

    def fewer(inputs):
        return {k: v[:-1] for k, v in GraphEngine.__call__(engine, inputs).items()}

    for change in (moved, flipped, fewer):
        changed = Changed(engine, change)
        rows = verify(engine.restored, changed, photographs)
        by_name = {row.name: row for row in rows}
        assert not by_name["one image"].passed
        assert "different" in table(rows)


@dataclasses.dataclass
class Changed:
    engine: GraphEngine
    call: object

    @property
    def facts(self):
        return self.engine.facts

    @property
    def inputs(self):
        return self.engine.inputs

    def __call__(self, inputs):
        return self.call(inputs)


def test_export_describes_the_file_and_ends_with_1_if_it_differs(
    checkpoint, tmp_path, monkeypatch, capsys
) -> None:
    engine = GraphEngine(checkpoint)
    written = []

    def write(restored, path, *, full_size):
        written.append((path, full_size))

    monkeypatch.setitem(exporting.WRITERS, "onnx", write)
    monkeypatch.setattr(exporting, "opened", lambda path, file_format: engine)
    path = tmp_path / "new" / "model.onnx"
    args = ["--checkpoint", str(checkpoint), "--output", str(path)]
    assert export_command.main(args) == 0
    assert written == [(path, False)]
    text = path.with_name("MODEL.md").read_text()
    assert '["box", "disc", "spoon"]' in text
    assert "| three images | 3 | 96 x 64 |" in text
    assert "| three images | 3 | 96 x 64 |" in capsys.readouterr().out
    graph = engine.graph
    monkeypatch.setattr(engine, "graph", lambda **inputs: [v[:0] for v in graph(**inputs)])
    assert export_command.main(args) == 1
    assert "different" in path.with_name("MODEL.md").read_text()


def test_a_published_model_has_its_licence(checkpoint) -> None:
    """Also the default one, which no argument names."""
    restored = restore(checkpoint)
    assert contract.facts_of(restored, False)["licence"] == "that of the checkpoint"
    published = dataclasses.replace(restored, source=f"model {DEFAULT_MODEL}")
    assert contract.facts_of(published, False)["licence"] == MODELS[DEFAULT_MODEL].licence


@pytest.mark.parametrize(
    ("command", "args", "message"),
    [
        (export_command.main, ["--output", "model.xml"], "a file that ends with .onnx is allowed"),
        (export_command.main, ["--images", "nowhere"], "images nowhere: has 0 JPEG or PNG files"),
        (eval_command.main, ["--checkpoint", "missing.onnx"], "model missing.onnx: no such file"),
        (
            predict_command.main,
            ["a.png", "--checkpoint", "b.onnx", "--precision", "bf16-mixed"],
            "precision is 'bf16-mixed'; 32-true is supported with b.onnx",
        ),
        (
            predict_command.main,
            ["a.png", "--checkpoint", "b.ckpt", "--engine", "openvino"],
            "engine is 'openvino', checkpoint is b.ckpt",
        ),
    ],
)
def test_errors_in_one_line(command, args, message, capsys) -> None:
    assert message in error(command, args, capsys)


def test_an_engine_that_is_not_installed(tmp_path, monkeypatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "onnxruntime", None)
    (tmp_path / "model.onnx").write_bytes(b"")
    with pytest.raises(ValueError, match=r"onnxruntime is not installed: .*condseg\[onnx\]"):
        engines.open_engine("onnxruntime", tmp_path / "model.onnx")


def test_checkpoints_are_opened_as_before(checkpoint) -> None:
    assert type(open_predictor(checkpoint, device="cpu")) is Predictor


def test_api(checkpoint, tmp_path, monkeypatch, photographs) -> None:
    engine = GraphEngine(checkpoint)
    monkeypatch.setitem(exporting.WRITERS, "openvino", lambda *args, **options: None)
    monkeypatch.setattr(exporting, "opened", lambda path, file_format: engine)
    model = condseg.load(checkpoint, device="cpu")
    model.export(tmp_path / "model.xml")
    assert (tmp_path / "MODEL.md").is_file()
    monkeypatch.setattr(predicting, "open_engine", lambda *args: engine)
    exported = condseg.load(tmp_path / "model.xml")
    found = exported.predict(photographs[0], score_threshold=0.0005)
    expected = model.predict(photographs[0], score_threshold=0.0005)
    assert len(found) == len(expected) > 0
    np.testing.assert_allclose(found.boxes, expected.boxes, atol=1e-3)
    with pytest.raises(ValueError, match=r"model\.xml, an exported file; export its checkpoint"):
        exported.export(tmp_path / "again.onnx")
    with pytest.raises(ValueError, match=r"a file that ends with \.onnx, \.xml allowed"):
        model.export(tmp_path / "model.bin")
