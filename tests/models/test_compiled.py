"""The whole network as one graph; in a process without runtime checks of shapes, which break it."""

import os
import subprocess
import sys

import pytest

SCRIPT = """
import functools
import torch
from condseg.layers import DynamicDilatedPyramid2d, ODConv2d
from support.networks import noise, tiny_backbone, tiny_condinst

torch.set_num_threads(1)
backbone = tiny_backbone(conv=functools.partial(ODConv2d, num_experts=2), where=[5])
network = tiny_condinst(backbone, mask_filter=DynamicDilatedPyramid2d)
images, sizes = noise(2, (32, 64)), [(32, 64), (28, 60)]
image, location = torch.tensor([0, 1, 1]), torch.tensor([0, 5, 40])


def whole(images):
    dense = network(images, sizes)
    masks = network.mask_logits(dense, image, location)
    return dense.head.class_logits, dense.head.ltrb, dense.head.centerness_logits, masks


def run(function):
    network.load_state_dict(state)
    results = function(images)
    if not network.training:
        return results
    parameters = [p for p in network.parameters() if p.requires_grad]
    loss = sum(part.square().mean() for part in results)
    return *results, *torch.autograd.grad(loss, parameters, materialize_grads=True)


state = {name: tensor.clone() for name, tensor in network.state_dict().items()}
for backend, training in (("eager", False), ("aot_eager", True)):
    network.train(training)
    compiled = torch.compile(whole, fullgraph=True, backend=backend)
    torch.testing.assert_close(run(compiled), run(whole), rtol=1e-3, atol=1e-4)
    print("one graph")
"""


@pytest.mark.tool
def test_whole_network_is_one_graph() -> None:
    paths = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", SCRIPT]
    run = subprocess.run(command, capture_output=True, text=True, check=False, env=paths)
    assert run.stdout == "one graph\n" * 2, run.stderr[-2000:]
