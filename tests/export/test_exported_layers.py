"""Networks with dynamic layers alone, as ``torch.onnx.export`` writes them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from layers.test_family import LAYERS, SOME, build, images
from torch.export import Dim


@pytest.mark.slow
@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("geometry", [name for name in SOME if name != "same"])
def test_batch_is_dynamic(layer, geometry, tmp_path) -> None:
    pytest.importorskip("onnxscript")
    onnxruntime = pytest.importorskip("onnxruntime")
    built = build(layer, geometry).eval()
    file = tmp_path / "layer.onnx"
    options = {"opset_version": 20, "external_data": False, "verbose": False}
    shapes = ({0: Dim("batch")},)
    with torch.no_grad():
        torch.onnx.export(built, (images(2),), file, dynamic_shapes=shapes, **options)
        session = onnxruntime.InferenceSession(file)
        name = session.get_inputs()[0].name
        for batch in (1, 3):
            x = images(batch)
            (found,) = session.run(None, {name: x.numpy()})
            np.testing.assert_allclose(found, built(x).numpy(), atol=1e-5, rtol=1e-5)
