from dataclasses import replace

import pytest
import torch
from support.networks import rectangles

from condseg.data.collate import collate
from condseg.structures import ImageInfo, Sample


def sample(height, width, objects=2):
    size = (height, width)
    targets = rectangles(*[(0, 0, width, height)] * objects, size=size)
    image = torch.full((3, *size), 9, dtype=torch.uint8)
    return Sample(image, targets, ImageInfo(1, "a.png", size, size))


def test_padding_to_a_multiple_of_32():
    batch = collate([sample(40, 33), sample(20, 65, objects=0)])
    assert batch.images.shape == (2, 3, 64, 96)
    assert [tuple(t.masks.shape) for t in batch.targets] == [(2, 64, 96), (0, 64, 96)]
    assert batch.sizes == ((40, 33), (20, 65))
    assert (batch.images[0, :, :40, :33] == 9).all()
    assert batch.images[0].sum() == 9 * 3 * 40 * 33
    assert batch.targets[0].masks.sum() == 2 * 40 * 33


def test_depth_is_padded_with_zeros():
    samples = [
        replace(sample(*size), depth=torch.full(size, 700.0)) for size in ((40, 33), (20, 65))
    ]
    depth = collate(samples).to("cpu").depth
    assert depth.shape == (2, 64, 96)
    assert (depth[1, :20, :65] == 700).all()
    assert depth[1].sum() == 700 * 20 * 65
    assert collate([sample(40, 33)]).to("cpu").depth is None


def test_min_padding():
    for size, padded in (((1, 1), (32, 32)), ((64, 96), (64, 96))):
        assert collate([sample(*size)]).images.shape[-2:] == padded


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_pinned_batches():
    loader = torch.utils.data.DataLoader(
        [sample(40, 33)] * 2, batch_size=2, collate_fn=collate, pin_memory=True
    )
    batch = next(iter(loader))
    assert batch.images.is_pinned()
    assert batch.targets[0].masks.is_pinned()
    assert batch.to("cuda", non_blocking=True).images.is_cuda
