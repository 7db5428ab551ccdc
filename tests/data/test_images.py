import numpy as np
import pytest
from PIL import Image

from condseg.data.images import read_image

RED = (200, 30, 10)


def saved(tmp_path, image, name, **options):
    image.save(tmp_path / name, **options)
    return tmp_path / name


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P", "CMYK"])
def test_colour_modes_agree(tmp_path, mode):
    image = Image.new("RGB", (5, 4), RED).convert(mode, palette=Image.Palette.ADAPTIVE)
    if mode == "CMYK":
        path, slack = saved(tmp_path, image, "a.jpg", quality=95), 6
    else:
        path, slack = saved(tmp_path, image, "a.png"), 0
    read = read_image(path)
    assert read.shape == (4, 5, 3)
    assert read.dtype == np.uint8
    assert np.abs(read.astype(int) - RED).max() <= slack


@pytest.mark.parametrize("mode", ["L", "1", "LA"])
def test_grey_has_three_equal_channels(tmp_path, mode):
    read = read_image(saved(tmp_path, Image.new("L", (5, 4), 255).convert(mode), "a.png"))
    assert read.shape == (4, 5, 3)
    assert (read == 255).all()


def test_transparency_is_blended_with_white(tmp_path):
    rgba = Image.new("RGBA", (2, 1), (*RED, 255))
    rgba.putpixel((1, 0), (0, 0, 0, 0))
    grey = Image.new("LA", (2, 1), (90, 255))
    grey.putpixel((1, 0), (0, 0))
    palette = Image.new("P", (2, 1), 0)
    palette.putpalette([*RED, 0, 0, 0])
    palette.putpixel((1, 0), 1)
    for image, colour, options in (
        (rgba, RED, {}),
        (grey, (90, 90, 90), {}),
        (palette, RED, {"transparency": 1}),
    ):
        read = read_image(saved(tmp_path, image, "a.png", **options))
        assert read.tolist() == [[list(colour), [255, 255, 255]]]


@pytest.mark.parametrize(("brightest", "full"), [(200, 255), (4000, 4095), (65000, 65535)])
@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_16_bit_grey_is_scaled_by_its_depth(tmp_path, brightest, full, suffix):
    pixels = np.array([[0, brightest // 2, brightest]], dtype=np.uint16)
    read = read_image(saved(tmp_path, Image.fromarray(pixels), f"a.{suffix}"))
    assert read[0, :, 0].tolist() == [v * 255 // full for v in (0, brightest // 2, brightest)]
    assert (read == read[..., :1]).all()


def test_16_bit_colour_keeps_the_upper_8_bits(tmp_path):
    import cv2

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
    rotated = {
        1: pixels,
        2: pixels[:, ::-1],
        3: pixels[::-1, ::-1],
        4: pixels[::-1],
        5: pixels.transpose(1, 0, 2),
        6: np.rot90(pixels, -1),
        7: pixels[::-1, ::-1].transpose(1, 0, 2),
        8: np.rot90(pixels),
    }[orientation]
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
        with pytest.raises(ValueError, match=r"text.jpg|8 or 16|0\.\.65535|no such"):
            read_image(tmp_path / name)
