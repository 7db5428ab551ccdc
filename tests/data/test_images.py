import os
import tracemalloc

import cv2
import numpy as np
import pytest
from PIL import EpsImagePlugin, Image

from condseg.data.images import read_image

RED = (200, 30, 10)


def saved(tmp_path, image, name, **options):
    image.save(tmp_path / name, **options)
    return tmp_path / name


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P", "CMYK", "L", "1", "LA"])
def test_modes_agree(tmp_path, mode):
    color = (255, 255, 255) if mode in ("L", "1", "LA") else RED
    image = Image.new("RGB", (5, 4), color).convert(mode, palette=Image.Palette.ADAPTIVE)
    name, tolerance = ("a.jpg", 6) if mode == "CMYK" else ("a.png", 0)
    read = read_image(saved(tmp_path, image, name))
    assert read.shape == (4, 5, 3)
    assert read.dtype == np.uint8
    assert np.abs(read.astype(int) - color).max() <= tolerance


def test_transparency_is_blended_with_white(tmp_path):
    for mode, opaque, transparent, color, options in (
        ("RGBA", (*RED, 255), (0, 0, 0, 0), RED, {}),
        ("LA", (90, 255), (0, 0), (90, 90, 90), {}),
        ("P", 0, 1, RED, {"transparency": 1}),
    ):
        image = Image.new(mode, (2, 1), opaque)
        if mode == "P":
            image.putpalette([*RED, 0, 0, 0])
        image.putpixel((1, 0), transparent)
        read = read_image(saved(tmp_path, image, "a.png", **options))
        assert read.tolist() == [[list(color), [255, 255, 255]]]


@pytest.mark.parametrize(("brightest", "full"), [(200, 255), (4000, 4095), (65000, 65535)])
@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_16_bit_grey_is_scaled_by_its_depth(tmp_path, brightest, full, suffix):
    pixels = np.array([[0, brightest // 2, brightest]], dtype=np.uint16)
    read = read_image(saved(tmp_path, Image.fromarray(pixels), f"a.{suffix}"))
    assert read[0, :, 0].tolist() == [v * 255 // full for v in (0, brightest // 2, brightest)]
    assert (read == read[..., :1]).all()


def test_16_bit_colour_keeps_the_upper_8_bits(tmp_path):
    pixels = np.array([[[0x1234, 0xABCD, 0xFFFF]]], dtype=np.uint16)  # blue, green, red
    assert cv2.imwrite(str(tmp_path / "a.png"), pixels)
    assert read_image(tmp_path / "a.png").tolist() == [[[0xFF, 0xAB, 0x12]]]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(tmp_path, orientation):
    pixels = np.zeros((16, 32, 3), dtype=np.uint8)
    pixels[:8, :8] = 255  # the stored top left corner
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = saved(tmp_path, Image.fromarray(pixels), "a.jpg", exif=exif, quality=95)
    read = read_image(path)
    rotated = pixels.transpose(1, 0, 2) if orientation > 4 else pixels
    rotated = rotated[:, ::-1] if orientation in (2, 3, 6, 7) else rotated
    rotated = rotated[::-1] if orientation in (3, 4, 7, 8) else rotated
    assert read.shape == rotated.shape
    assert np.abs(read.astype(int) - rotated).max() < 20
    assert read_image(path, upright=False).shape == pixels.shape


@pytest.mark.parametrize("suffix", ["jpg", "png", "bmp", "tif"])
@pytest.mark.parametrize("part", [0.0, 0.3, 0.9])
def test_truncated_files_are_named(tmp_path, suffix, part):
    noise = np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    path = saved(tmp_path, Image.fromarray(noise), f"a.{suffix}")
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * part)])
    with pytest.raises(ValueError, match=f"a.{suffix}"):
        read_image(path)


def test_other_invalid_files_are_named(tmp_path):
    (tmp_path / "text.jpg").write_text("no image")
    Image.fromarray(np.ones((2, 2), dtype=np.float32)).save(tmp_path / "float.tif")
    Image.fromarray(np.full((2, 2), 1 << 20, dtype=np.int32)).save(tmp_path / "deep.tif")
    for name in ("text.jpg", "float.tif", "deep.tif", "missing.jpg", "."):
        with pytest.raises(ValueError, match=r"text.jpg|8 or 16|0\.\.65535|no such|a folder"):
            read_image(tmp_path / name)


@pytest.mark.parametrize("kind", ["folder", "pipe", "link in a circle", "device"])
def test_no_regular_file(tmp_path, kind):
    """None of them hangs."""
    path = tmp_path / "a.png"
    if kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    else:
        path.symlink_to(path if kind == "link in a circle" else "/dev/zero")
    with pytest.raises(ValueError, match=r"a.png: a folder, device, pipe or broken link"):
        read_image(path)


def test_images_above_the_limit(tmp_path):
    """A file of a few hundred kilobytes."""
    Image.new("1", (13000, 13000)).save(tmp_path / "a.png")
    with pytest.raises(ValueError, match=r"a.png: .* is 13000x13000 .* 1 to 50331648 pixels"):
        read_image(tmp_path / "a.png")


def test_memory_of_deep_grey(tmp_path):
    """Besides the result, there are the file's pixels, in the order of two copies."""
    path = saved(tmp_path, Image.fromarray(np.full((2000, 3000), 4000, np.uint16)), "a.png")
    tracemalloc.start()
    read = read_image(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert read[0, 0].tolist() == [249] * 3
    assert peak < 10 * 2000 * 3000


def test_no_program_is_started_for_an_image(tmp_path, monkeypatch):
    """Pillow runs Ghostscript for what begins as EPS, whatever the file's name."""
    program, trace, path = (tmp_path / name for name in ("gs", "trace", "x.jpg"))
    program.write_text(f"#!/bin/sh\ntouch {trace}\n")
    program.chmod(0o700)
    monkeypatch.setattr(EpsImagePlugin, "gs_binary", str(program))
    path.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n")
    with pytest.raises(ValueError, match=r"x\.jpg: cannot be read as an image"):
        read_image(path)
    assert not trace.exists()


def test_a_flipped_bit_of_a_png_is_noticed_or_changes_nothing(tmp_path):
    pixels = np.add.outer(np.arange(40), np.arange(60))[:, :, None].repeat(3, axis=2)
    path = saved(tmp_path, Image.fromarray(pixels.astype(np.uint8)), "a.png")
    content, refused = path.read_bytes(), 0
    for bit in range(0, 8 * len(content), 3):
        damaged = bytearray(content)
        damaged[bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)
        try:
            assert np.array_equal(read_image(path), pixels), f"bit {bit}"
        except ValueError:
            refused += 1
    assert refused > 8 * len(content) / 4
