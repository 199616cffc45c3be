from __future__ import annotations

import contextlib
import io
import warnings

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps
from torchvision.io import ImageReadMode, decode_image
from torchvision.transforms.v2 import functional as transforms

from lightning_cnnopt.core.errors import DataError
from lightning_cnnopt.data import read_image
from lightning_cnnopt.data.decoding import read_header, to_pixels
from lightning_cnnopt.data.streams.shards import ShardSource

from .folder.files import MODES, pixels, save, save_png16, smooth

quick = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
sides = st.integers(1, 12)


def oracle(path, mode=ImageReadMode.RGB):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torchvision's decoders are deprecated
        return decode_image(str(path), mode, apply_exif_orientation=True)


def image_of(mode, height, width, seed):
    """Return an image, its RGB levels, and its grey ones where it has no colours."""
    levels = pixels(height, width, 4, seed)
    if mode == "1":
        on = levels[..., 0] > 127
        return Image.fromarray(on), np.stack([on * 255] * 3, -1), on * 255
    if mode in ("L", "LA"):
        grey = levels[..., 0]
        image = Image.fromarray(grey)
        if mode == "LA":
            image.putalpha(Image.fromarray(levels[..., 1]))
        return image, np.stack([grey] * 3, -1), grey
    if mode == "P":
        palette = pixels(256, 1, 3, seed + 1).reshape(256, 3)
        image = Image.fromarray(levels[..., 0]).convert("L")
        image.putpalette(palette.tobytes())
        return image, palette[levels[..., 0]], None
    return Image.fromarray(levels[..., : len(mode)]), levels[..., :3], None


@quick
@given(mode=st.sampled_from(MODES), height=sides, width=sides, seed=st.integers(0, 1000))
def test_levels_of_a_png_of_any_mode_are_those_that_were_stored(mode, height, width, seed, tmp_path):
    image, rgb, grey = image_of(mode, height, width, seed)
    path = save(tmp_path / "image.png", image)
    read = read_image(path)
    assert read.dtype == torch.uint8
    assert read.is_contiguous()
    assert np.array_equal(read.permute(1, 2, 0).numpy(), rgb)
    luma = rgb @ np.array([0.299, 0.587, 0.114]) if grey is None else grey
    assert np.abs(read_image(path, channels=1)[0].numpy() - luma).max() <= (1 if grey is None else 0)
    assert read_header(path) == (height, width, grey is not None)


def test_transparency_is_dropped_as_torchvision_drops_it(tmp_path):
    image, rgb, _ = image_of("P", 6, 8, 0)
    path = save(tmp_path / "palette.png", image, transparency=bytes(range(256)))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert np.array_equal(read_image(path).permute(1, 2, 0).numpy(), rgb)
    assert torch.equal(read_image(path), oracle(path))


@pytest.mark.parametrize("ending", ["png", "tif", "pgm"])
def test_16_bits_become_their_upper_8_and_are_not_clipped(ending, tmp_path):
    levels = pixels(channels=1, top=65536)
    path = save(tmp_path / f"deep.{ending}", levels)
    for channels in (1, 3):
        assert np.array_equal(read_image(path, channels).numpy(), np.stack([levels >> 8] * channels))
    assert read_header(path) == (6, 8, True)


def test_16_bits_of_every_colour(tmp_path):
    levels = pixels(top=65536)
    path = save_png16(tmp_path / "deep.png", levels)
    assert np.array_equal(read_image(path).permute(1, 2, 0).numpy(), levels >> 8)
    assert torch.equal(read_image(path), (oracle(path).int() >> 8).byte())


@pytest.mark.parametrize("dtype", [np.int32, np.float32])
def test_levels_whose_range_is_not_known_are_refused(dtype, tmp_path):
    path = save(tmp_path / "wide.tif", pixels(channels=1).astype(dtype))
    with pytest.raises(DataError, match=r"wide.tif can't be decoded: it has 32 bits a level"):
        read_image(path)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("ending", ["jpg", "png", "tif", "webp"])
def test_the_rotation_that_exif_states_is_done(ending, orientation, tmp_path):
    levels = smooth(32, 48)
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = save(tmp_path / f"turned.{ending}", levels, exif=exif)
    plain = save(tmp_path / f"plain.{ending}", levels)
    stored = read_image(plain).numpy()
    upright = {  # EXIF 2.32, 4.6.4 A: where the first row and the first column of the stored image are to be seen
        1: stored,
        2: stored[:, :, ::-1],
        3: stored[:, ::-1, ::-1],
        4: stored[:, ::-1],
        5: stored.transpose(0, 2, 1),
        6: stored[:, ::-1].transpose(0, 2, 1),
        7: stored[:, ::-1, ::-1].transpose(0, 2, 1),
        8: stored[:, :, ::-1].transpose(0, 2, 1),
    }[orientation]
    assert np.array_equal(read_image(path).numpy(), upright)
    assert read_header(path)[:2] == upright.shape[1:]
    expected = read_image(save(tmp_path / "upright.png", np.ascontiguousarray(upright.transpose(1, 2, 0))), size=(12, 16))
    assert (read_image(path, size=(12, 16)).int() - expected.int()).abs().max() <= 1
    if ending == "jpg":
        assert torch.equal(read_image(path), oracle(path))


def test_a_rotation_stated_after_the_pixels_of_a_png_is_done(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    levels = pixels()
    content = save(tmp_path / "turned.png", levels, exif=exif).read_bytes()
    at = content.index(b"eXIf") - 4
    length = 12 + int.from_bytes(content[at : at + 4], "big")
    end = content.index(b"IEND") - 4
    late = tmp_path / "late.png"
    late.write_bytes(content[:at] + content[at + length : end] + content[at : at + length] + content[end:])
    assert np.array_equal(read_image(late).permute(1, 2, 0).numpy(), levels[::-1].transpose(1, 0, 2))


def test_cmyk_is_converted(tmp_path):
    path = save(tmp_path / "print.jpg", Image.fromarray(smooth(32, 32)).convert("CMYK"))
    assert (read_image(path).int() - oracle(path).int()).abs().max() <= 2


@quick
@given(
    height=st.integers(1, 40),
    width=st.integers(1, 40),
    size=st.tuples(st.integers(2, 12), st.integers(2, 12)),
    seed=st.integers(0, 9),
)
def test_resizing_is_torchvisions(height, width, size, seed, tmp_path):
    path = save(tmp_path / "image.png", pixels(height, width, seed=seed))
    image = read_image(path)
    assert torch.equal(read_image(path, size=size, resize="squash"), transforms.resize(image, list(size), antialias=True))
    side = size[0]
    cropped = transforms.center_crop(transforms.resize(image, [side], antialias=True), [side, side])
    assert torch.equal(read_image(path, size=(side, side)), cropped)
    assert read_image(path, size=size).shape == (3, *size)


def test_the_crop_keeps_proportions(tmp_path):
    levels = np.zeros((40, 80, 3), np.uint8)
    levels[:, 20:60] = 200  # the centre, a square
    assert (read_image(save(tmp_path / "wide.png", levels), size=(10, 10)) > 150).all()
    assert (read_image(tmp_path / "wide.png", size=(10, 20))[:, :, [0, 4, 15, 19]] < 50).all()
    assert (read_image(tmp_path / "wide.png", size=(10, 10), resize="squash")[:, :, [0, 9]] < 50).all()


@pytest.mark.parametrize("orientation", [1, 6])
@pytest.mark.parametrize("shape", [(600, 800), (800, 600)])
def test_a_large_jpeg_is_decoded_smaller_and_looks_the_same(shape, orientation, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = save(tmp_path / "large.jpg", smooth(*shape), quality=95, exif=exif)
    upright = ImageOps.exif_transpose(Image.open(path))
    whole = read_image(save(tmp_path / "large.png", np.array(upright)), size=(48, 80))
    difference = (read_image(path, size=(48, 80)).int() - whole.int()).abs()
    assert 0 < difference.max() <= 8
    assert difference.float().mean() < 1


@quick
@given(ending=st.sampled_from(["jpg", "png"]), part=st.floats(0, 0.98))
def test_a_file_that_was_cut_short_is_named(ending, part, tmp_path):
    path = save(tmp_path / f"image.{ending}", pixels(32, 32))
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * part)])
    with pytest.raises(DataError, match=f"image.{ending} can't be decoded"):
        read_image(path)


@quick
@given(ending=st.sampled_from(["jpg", "png", "bmp", "webp", "tif"]), data=st.data())
def test_damage_gives_an_image_or_our_error(ending, data, tmp_path):
    path = save(tmp_path / f"image.{ending}", pixels(16, 16))
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 5))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(bytes(content))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for read in (lambda: read_image(path, size=(8, 8)).shape == (3, 8, 8), lambda: len(read_header(path)) == 3):
            with contextlib.suppress(DataError):
                assert read()


def test_a_file_that_is_not_there_is_no_broken_image(tmp_path):
    with pytest.raises(FileNotFoundError):
        read_image(tmp_path / "gone.png")


# a picture that a stream has opened


def in_one_format(picture, kind):
    held = io.BytesIO()
    picture.save(held, kind)
    held.seek(0)
    return Image.open(held)


def test_pixels_are_those_of_the_picture():
    pixels = np.random.default_rng(0).integers(0, 256, (5, 7, 3)).astype(np.uint8)
    picture = in_one_format(Image.fromarray(pixels), "PNG")
    assert np.array_equal(to_pixels(picture, 3, (5, 7)).permute(1, 2, 0).numpy(), pixels)
    grey = in_one_format(Image.fromarray(pixels[..., 0]), "PNG")
    assert np.array_equal(to_pixels(grey, 1, (5, 7))[0].numpy(), pixels[..., 0])
    assert torch.equal(to_pixels(grey, 3, (5, 7)), to_pixels(grey, 1, (5, 7)).expand(3, -1, -1))
    see_through = in_one_format(Image.fromarray(np.dstack([pixels, pixels[..., :1]]), "RGBA"), "PNG")
    assert torch.equal(to_pixels(see_through, 3, (5, 7)), to_pixels(picture, 3, (5, 7)))


def test_sixteen_bits_are_scaled_to_eight():
    levels = np.array([[0, 257 * 100, 65535]], np.uint16)
    assert to_pixels(in_one_format(Image.fromarray(levels), "PNG"), 1, (1, 3)).tolist() == [[[0, 100, 255]]]


def test_16_bits_of_every_level_are_torchvisions_8():
    levels = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    expected = transforms.to_dtype(torch.from_numpy(levels)[None], torch.uint8, scale=True)
    assert torch.equal(to_pixels(Image.fromarray(levels), 1), expected)
    assert torch.equal(to_pixels(Image.fromarray(levels), 3), expected.expand(3, -1, -1))


@quick
@given(
    kind=st.sampled_from([("PNG", mode) for mode in MODES] + [("PNG", "I;16"), ("JPEG", "L"), ("JPEG", "RGB")]),
    channels=st.sampled_from([1, 3]),
    size=st.sampled_from([None, (8, 8), (12, 5)]),
    is_decoded=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_a_file_and_the_picture_of_a_stream_become_the_same_pixels(kind, channels, size, is_decoded, seed, tmp_path):
    form, mode = kind
    image = Image.fromarray(pixels(20, 24, 1, seed, 65536)) if mode == "I;16" else image_of(mode, 20, 24, seed)[0]
    path = save(tmp_path / f"image.{form.lower()}", image)
    sample = {"__key__": "image", "__url__": "tar", "png": path.read_bytes(), "cls": b"3"}
    of_file = read_image(path, channels, size)
    if size is not None:
        of_stream, target = ShardSource(["tar"], ["png"], "cls", channels, size, 1).decode(sample)
        assert torch.equal(of_stream, of_file)
        assert target == 3
    picture = Image.open(path)
    if is_decoded:
        picture.load()
    assert torch.equal(to_pixels(picture, channels, size), of_file)


def test_a_picture_keeps_what_it_was(tmp_path):
    picture = Image.open(save(tmp_path / "palette.png", image_of("P", 6, 8, 0)[0], transparency=bytes(range(256))))
    first = to_pixels(picture)
    assert picture.mode == "P"
    assert "transparency" in picture.info
    assert torch.equal(to_pixels(picture), first)


def test_another_size_is_covered_and_cut_around_the_centre_and_exif_turns():
    pixels = np.zeros((4, 12), np.uint8)
    pixels[:, 4:8] = 200  # the middle third
    assert to_pixels(Image.fromarray(pixels), 1, (4, 4)).unique().tolist() == [200]
    turned = Image.fromarray(pixels)
    turned.getexif()[0x0112] = 6
    held = io.BytesIO()
    turned.save(held, "PNG", exif=turned.getexif())
    assert to_pixels(Image.open(held), 1, (12, 4)).shape == (1, 12, 4)
