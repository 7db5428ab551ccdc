"""The median that is exported."""

import pytest
import torch

from condseg.models.mask.depth import normalized_depth


@pytest.mark.parametrize("measured", [0, 1, 2, 7, 8, 24])
def test_depth_is_normalized_as_before(measured, monkeypatch) -> None:
    torch.manual_seed(0)
    depth = torch.rand(2, 4, 6) * 1000 + 1
    depth.flatten(1)[:, measured:] = 0
    depth = depth.flatten(1)[:, torch.randperm(24)].view(2, 4, 6)
    expected = normalized_depth(depth)
    monkeypatch.setattr(torch.compiler, "is_exporting", lambda: True)
    assert torch.equal(normalized_depth(depth), expected)
