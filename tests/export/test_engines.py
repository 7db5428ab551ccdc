"""Engines with a model of three nodes, and what is not a model."""

from __future__ import annotations

import json

import numpy as np
import pytest

from condseg.export.contract import FORMAT, OUTPUTS
from condseg.export.engines import open_engine

ENGINES = ["onnxruntime", "openvino"]


def write(path, format_=FORMAT, outputs=OUTPUTS):
    """A model whose outputs are its threshold."""
    onnx = pytest.importorskip("onnx")
    make, kinds = onnx.helper, onnx.TensorProto
    value = make.make_tensor_value_info
    nodes = [make.make_node("Identity", ["score_threshold"], [name]) for name in outputs]
    graph = make.make_graph(
        [make.make_node("Shape", ["images"], ["shape"]), *nodes],
        "g",
        [
            value("images", kinds.UINT8, ["b", 3, "h", "w"]),
            value("score_threshold", kinds.FLOAT, []),
        ],
        [*(value(name, kinds.FLOAT, []) for name in outputs), value("shape", kinds.INT64, [4])],
        [onnx.numpy_helper.from_array(np.array(0.25, np.float32), "score_threshold")],
    )
    model = make.make_model(graph, opset_imports=[make.make_opsetid("", 20)], ir_version=10)
    thresholds = json.dumps({"score_threshold": 0.25})
    make.set_model_props(model, {"format": format_, "condseg": "0", "thresholds": thresholds})
    onnx.save(model, path)
    return path


@pytest.mark.parametrize("name", ENGINES)
def test_thresholds_have_defaults_and_can_be_changed(name, tmp_path) -> None:
    pytest.importorskip(name)
    engine = open_engine(name, write(tmp_path / "model.onnx"))
    assert set(engine.inputs) == {"images", "score_threshold"}
    assert engine.facts["format"] == FORMAT
    images = np.zeros((2, 3, 5, 6), np.uint8)
    for inputs, expected in (({}, 0.25), ({"score_threshold": np.array(0.5, np.float32)}, 0.5)):
        found = engine({"images": images} | inputs)
        assert found["scores"] == np.float32(expected)
        assert found["shape"].tolist() == [2, 3, 5, 6]


@pytest.mark.parametrize("name", ENGINES)
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"format_": "0"}, "its format is 0, written by condseg 0; 1 is supported"),
        ({"outputs": OUTPUTS[1:]}, "has no output boxes"),
    ],
)
def test_other_files(name, options, message, tmp_path) -> None:
    pytest.importorskip(name)
    with pytest.raises(ValueError, match=message):
        open_engine(name, write(tmp_path / "model.onnx", **options))


@pytest.mark.parametrize("name", ENGINES)
def test_a_file_that_is_no_model(name, tmp_path) -> None:
    pytest.importorskip(name)
    pytest.importorskip("onnx")
    file = tmp_path / "model.onnx"
    file.write_bytes(b"no model")
    with pytest.raises(ValueError, match="cannot be read"):
        open_engine(name, file)
