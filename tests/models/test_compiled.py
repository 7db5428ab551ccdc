"""The whole network as one graph; in a process without the checks of shapes, which are no graph."""

import subprocess
import sys

import pytest

SCRIPT = """
import functools
import torch
from condseg.layers import DynamicDilatedPyramid2d, ODConv2d
from condseg.models import Backbone, FCOSHead, build_condinst

torch.manual_seed(0)
conv = functools.partial(ODConv2d, num_experts=2)
backbone = Backbone("resnet18", weights=None, conv=conv, where=[5], width=16, stem_width=16)
head = functools.partial(FCOSHead, tower_convs=1)
network = build_condinst(
    backbone, 5, channels=64, head=head, mask_filter=DynamicDilatedPyramid2d
).{mode}()
images = torch.randint(0, 256, (2, 3, 64, 96), dtype=torch.uint8)
image, location = torch.tensor([0, 1, 1]), torch.tensor([0, 5, 60])


def whole(images):
    dense = network(images, [(64, 96), (60, 90)])
    masks = network.mask_logits(dense, image, location)
    return dense.head.class_logits, dense.head.ltrb, dense.head.centerness_logits, masks


def run(function):
    results = function(images)
    if not network.training:
        return results
    parameters = [p for p in network.parameters() if p.requires_grad]
    loss = sum(part.square().mean() for part in results)
    grads = torch.autograd.grad(loss, parameters, allow_unused=True, materialize_grads=True)
    return *results, *grads


state = {{name: tensor.clone() for name, tensor in network.state_dict().items()}}
expected = run(whole)
network.load_state_dict(state)
results = run(torch.compile(whole, fullgraph=True, backend="aot_eager"))
for result, right in zip(results, expected, strict=True):
    torch.testing.assert_close(result, right, rtol=1e-3, atol=1e-4)
print("one graph")
"""


@pytest.mark.parametrize("mode", ["eval", "train"])
def test_whole_network_is_one_graph(mode: str) -> None:
    run = subprocess.run(
        [sys.executable, "-c", SCRIPT.format(mode=mode)], capture_output=True, text=True
    )
    assert run.stdout == "one graph\n", run.stderr[-2000:]
