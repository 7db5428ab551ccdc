"""RTMDet's backbone and pyramid, static and dynamic."""

import re
from functools import partial

import pytest
import timm
import torch
from support.networks import noise, randomize_norms
from torch import Tensor, nn

from condseg.layers import ODConv2d, to_dynamic
from condseg.models import PAFPN, Backbone
from condseg.models.backbones.cspnext import SCALES, CSPNeXt
from condseg.models.optimize import fold_norms_


def renamed(network: nn.Module) -> dict[str, Tensor]:
    """The tensors of timm's network by the names of ours, without the classifier's."""
    pattern = re.compile(r"^(?:model\.)?(?:stages\.(\d)|(stem))\.")
    return {
        pattern.sub(lambda m: f"stage{int(m[1]) + 1}." if m[1] else "stem.", key): tensor
        for key, tensor in network.state_dict().items()
        if pattern.match(key)
    }


@pytest.mark.parametrize("name", SCALES)
def test_tensors_are_timms(name: str) -> None:
    """timm has converted the published weights."""
    with torch.device("meta"):
        ours, theirs = CSPNeXt(name).state_dict(), renamed(timm.create_model(name))
    assert {k: v.shape for k, v in ours.items()} == {k: v.shape for k, v in theirs.items()}


def test_maps_are_timms() -> None:
    torch.manual_seed(0)
    reference = timm.create_model("cspnext_s", features_only=True).eval()
    randomize_norms(reference)
    network = CSPNeXt("cspnext_s").eval()
    network.load_state_dict(renamed(reference))
    x = torch.rand(1, 3, 64, 96)
    with torch.no_grad():
        expected = reference(x)
        torch.testing.assert_close(network(x), expected)
        folded = fold_norms_(network)
        torch.testing.assert_close(network(x), expected, rtol=1e-4, atol=1e-5)
    norms = sum(isinstance(m, nn.BatchNorm2d) for m in reference.modules())
    assert folded == norms > 30


def test_odconv_in_cspnext() -> None:
    """All convolutions but those of the stem and the attentions become dynamic."""
    torch.manual_seed(0)
    network, x = CSPNeXt("cspnext_tiny").eval(), torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        before = network(x)
        conversion = to_dynamic(network, partial(ODConv2d, num_experts=2))
        torch.testing.assert_close(network(x), before, rtol=1e-3, atol=1e-4)
    assert set(conversion.kept.values()) == {"stem", "attention on a pooled map"}
    assert all(name.startswith(("stem.", "stage")) for name in conversion.kept)
    assert "stage1.1.blocks.0.conv1.conv" in conversion.converted
    assert "stage4.2.blocks.0.conv2.depthwise_conv.conv" in conversion.converted
    network.train()(x)[-1].square().mean().backward()
    layer = network.get_submodule("stage3.1.blocks.0.conv1.conv")
    assert all(p.grad is not None for p in layer.parameters())


def test_odconv_by_configuration_and_stages() -> None:
    conv = partial(ODConv2d, num_experts=2)
    backbone = Backbone("cspnext_tiny", None, conv=conv, where=[5], norm="batch")
    stages = {
        n.split(".")[0] for n, m in backbone.network.named_modules() if isinstance(m, ODConv2d)
    }
    assert stages == {"stage4"}
    assert [x.shape[1] for x in backbone(backbone.normalize(noise(1)))] == [96, 192, 384]


def test_pafpn_keeps_sizes_and_mixes_all_levels() -> None:
    pyramid = PAFPN((8, 16, 24), 12, num_blocks=2).eval()
    maps = [torch.randn(1, c, 64 // s, 96 // s) for c, s in ((8, 8), (16, 16), (24, 32))]
    assert pyramid.strides == (8, 16, 32)
    with torch.no_grad():
        outputs = pyramid(maps)
        for level in range(3):
            changed = [x + 1 if i == level else x for i, x in enumerate(maps)]
            for before, after in zip(outputs, pyramid(changed), strict=True):
                assert not torch.allclose(before, after, atol=1e-7)
    assert [x.shape for x in outputs] == [(1, 12, 8, 12), (1, 12, 4, 6), (1, 12, 2, 3)]
    randomize_norms(pyramid)
    norms = sum(isinstance(module, nn.BatchNorm2d) for module in pyramid.modules())
    with torch.no_grad():
        outputs = pyramid(maps)
        assert fold_norms_(pyramid) == norms == 43
        torch.testing.assert_close(pyramid(maps), outputs, rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match="num_blocks is 0; 1 to 100"):
        PAFPN((8, 16, 24), 12, num_blocks=0)
