import io
import warnings

import numpy as np
import PIL.features
import PIL.Image
import PIL.ImageCms
import pytest

from ltx2_diffusers.media.images import is_clip
from ltx2_diffusers.media.reading import iterate_video, probe, read_image, read_video

RAMP = np.linspace(0, 65535, 32 * 16).reshape(16, 32)


def with_avif(suffixes):
    """The suffixes, of which AVIF is left out with a word where Pillow was built without it."""
    mark = pytest.mark.skipif(not PIL.features.check("avif"), reason="this Pillow has no AVIF")
    return [pytest.param(suffix, marks=mark) if suffix == "avif" else suffix for suffix in suffixes]


def saved(path, image, **options):
    image.save(path, **options)
    return path


def values(source):
    return np.asarray(read_image(source))[..., 0]


@pytest.mark.parametrize(("suffix", "dtype"), [("png", np.uint16), ("tif", np.uint16), ("tif", np.int32)])
def test_sixteen_bit_grey_is_scaled(tmp_path, suffix, dtype):
    path = saved(tmp_path / f"depth.{suffix}", PIL.Image.fromarray(RAMP.astype(dtype)))
    assert (values(path) == np.rint(RAMP.astype(np.uint16) / 257)).all()


def test_sixteen_bit_images_in_memory_are_scaled_in_any_byte_order():
    grey = PIL.Image.fromarray(RAMP.astype(np.uint16))
    assert (values(grey) == np.rint(RAMP.astype(np.uint16) / 257)).all()
    assert (values(PIL.Image.fromarray(RAMP.astype(np.int32)).convert("I;16B")) == values(grey)).all()


def test_integers_in_memory_are_bytes_or_refused():
    assert (values(PIL.Image.fromarray((RAMP // 257).astype(np.int32))) == RAMP // 257).all()
    with pytest.raises(ValueError, match=r"the image has values from 0 to 65535.*\[0, 255\].*I;16"):
        read_image(PIL.Image.fromarray(RAMP.astype(np.int32)))


@pytest.mark.parametrize("white", [1.0, 255.0])
def test_floats_lie_between_nought_and_one_or_are_bytes(tmp_path, white):
    path = saved(tmp_path / "render.tif", PIL.Image.fromarray((RAMP / 65535 * white).astype(np.float32)))
    assert np.abs(values(path) - RAMP / 257).max() <= 0.51


@pytest.mark.parametrize("wrong", [-1.0, 300.0, np.nan, np.inf])
def test_other_floats_are_refused(tmp_path, wrong):
    floats = (RAMP / 65535).astype(np.float32)
    floats[3, 3] = wrong
    path = saved(tmp_path / "render.tif", PIL.Image.fromarray(floats))
    with pytest.raises(ValueError, match=r"render\.tif.*has values from .*\[0, 1\] or \[0, 255\]"):
        read_image(path)


def half_seen():
    """Red whose left half is transparent, with green hidden there."""
    pixels = np.zeros((8, 8, 4), np.uint8)
    pixels[:, :4], pixels[:, 4:] = (0, 255, 0, 0), (255, 0, 0, 255)
    return PIL.Image.fromarray(pixels)


@pytest.mark.parametrize("name", ["a.png", "a.tif", "a.webp", "palette.png", "a.gif", "premultiplied"])
def test_what_is_transparent_is_black(tmp_path, name):
    image = half_seen()
    if name == "premultiplied":
        source = image.convert("RGBa")
    else:
        options = {"lossless": True, "exact": True} if name == "a.webp" else {}
        source = saved(tmp_path / name, image.quantize() if name == "palette.png" else image, **options)
    pixels = np.asarray(read_image(source))
    assert (pixels[:, :4] == 0).all()
    assert (pixels[:, 4:] == (255, 0, 0)).all()


def with_palette(colour, alpha):
    """Old versions of Pillow lose the transparency when they make such an image of another."""
    image = PIL.Image.new("P", (4, 4), 1)
    image.putpalette([0, 0, 0, *colour])
    image = image.convert("PA")
    image.putalpha(alpha)
    return image


@pytest.mark.parametrize(
    ("image", "seen"),
    [
        (PIL.Image.new("LA", (4, 4), (200, 51)), 40),
        (PIL.Image.new("LA", (4, 4), (200, 51)).convert("La"), 40),
        (PIL.Image.new("RGBA", (4, 4), (200, 200, 200, 51)), 40),
        (with_palette((200, 200, 200), 51), 40),
    ],
    ids=["LA", "La", "RGBA", "PA"],
)
def test_what_is_half_transparent_is_dark(image, seen):
    assert np.abs(values(image).astype(int) - seen).max() <= 4


def test_colours_that_stand_for_transparency_are_black(tmp_path):
    rgb = saved(tmp_path / "rgb.png", PIL.Image.new("RGB", (4, 4), (10, 20, 30)), transparency=(10, 20, 30))
    grey = saved(tmp_path / "grey.png", PIL.Image.new("L", (4, 4), 77), transparency=77)
    assert values(rgb).max() == values(grey).max() == 0


def test_colours_of_a_profile_are_converted_where_the_image_is_seen():
    profile = PIL.ImageCms.ImageCmsProfile(PIL.ImageCms.createProfile("sRGB")).tobytes()
    swapped = profile.replace(b"rXYZ", b"tXYZ").replace(b"gXYZ", b"rXYZ").replace(b"tXYZ", b"gXYZ")
    file = io.BytesIO()
    half_seen().save(file, "PNG", icc_profile=swapped)
    pixels = np.asarray(read_image(file.getvalue()))
    assert (pixels[:, :4] == 0).all()
    assert pixels[0, 7].argmax() == 1


@pytest.mark.parametrize("mode", ["CMYK", "YCbCr", "HSV", "P", "1", "L"])
def test_other_colours_become_rgb(mode):
    white = PIL.Image.new("RGB", (4, 4), (255, 255, 255)).convert(mode)
    assert read_image(white).mode == "RGB"
    assert values(white).min() == 255


ANIMATED = {"gif": {}, "png": {}, "webp": {"lossless": True}, "avif": {"quality": 100}}
DELAYS_MS = [100, 200, 50, 100, 400, 50]


def animation(path, delays_ms, **options):
    """An animated picture whose frames get brighter."""
    pictures = [PIL.Image.new("RGB", (32, 16), (40 * n, 40 * n, 40 * n)) for n in range(6)]
    return saved(path, pictures[0], save_all=True, append_images=pictures[1:], duration=delays_ms, **options)


@pytest.mark.parametrize("suffix", with_avif(ANIMATED))
def test_animated_pictures_are_clips_with_their_own_times(tmp_path, suffix):
    path = animation(tmp_path / f"clip.{suffix}", DELAYS_MS, **ANIMATED[suffix])
    assert is_clip(path)
    info = probe(path)
    assert (info.num_frames, info.height, info.width, info.duration_s) == (6, 16, 32, pytest.approx(0.9))
    assert float(info.frame_rate) == pytest.approx(6 / 0.9)
    levels = [round(float(frame.mean()) / 40) for frame in iterate_video(path)]
    assert levels == [0, 1, 2, 3, 4, 5]
    # Starts at 0, 100, 300, 350, 450 and 850 ms.
    assert [round(float(f.mean()) / 40) for f in iterate_video(path, start_s=0.3, end_s=0.84)] == [2, 3, 4]


@pytest.mark.parametrize("suffix", with_avif(ANIMATED))
def test_one_of_the_pictures_is_taken_with_a_warning_where_one_is_wanted(tmp_path, suffix):
    path = animation(tmp_path / f"clip.{suffix}", DELAYS_MS, **ANIMATED[suffix])
    with pytest.warns(UserWarning, match=rf"clip\.{suffix}.* holds 6 pictures"):
        assert values(path).max() <= 2


def test_delays_that_no_browser_keeps_are_a_tenth_of_a_second(tmp_path):
    path = animation(tmp_path / "fast.gif", 10)
    assert (probe(path).frame_rate, probe(path).duration_s) == (10, pytest.approx(0.6))


def test_transparent_parts_of_animated_pictures_are_black(tmp_path):
    second = np.asarray(half_seen()).copy()
    second[0, 7] = (0, 0, 255, 255)
    path = saved(
        tmp_path / "a.png", half_seen(), save_all=True, append_images=[PIL.Image.fromarray(second)], duration=50
    )
    frames = read_video(path)
    assert len(frames) == 2
    assert frames[:, :, :4].max() == 0
    assert frames[1, 0, 7].tolist() == [0, 0, 255]


def test_pages_are_no_frames(tmp_path):
    pages = [PIL.Image.new("RGB", (8, 8), (n, n, n)) for n in range(3)]
    path = saved(tmp_path / "pages.tif", pages[0], save_all=True, append_images=pages[1:])
    assert not is_clip(path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert values(path).max() == 0


@pytest.mark.parametrize("suffix", with_avif(["png", "jpg", "webp", "avif", "gif", "tif", "bmp", "jp2"]))
def test_images_that_are_cut_off_are_named(tmp_path, suffix):
    noise = PIL.Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8))
    path = saved(tmp_path / f"whole.{suffix}", noise)
    cut = tmp_path / f"cut.{suffix}"
    cut.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(ValueError, match=rf"cut\.{suffix}"):
        read_image(cut)


def test_frames_beside_which_stands_what_pyav_does_not_know_are_read(tmp_path):
    """Such as the EXIF data of a TIFF file."""
    path = saved(tmp_path / "depth.tif", PIL.Image.fromarray(RAMP.astype(np.uint16)))
    assert (probe(path).height, probe(path).width) == RAMP.shape
    assert len(read_video(path)) == 1


def test_images_beyond_the_limit_are_refused_with_both_numbers(tmp_path, monkeypatch):
    path = saved(tmp_path / "huge.png", PIL.Image.new("L", (64, 64)))
    for limit in (4000, 1000):
        monkeypatch.setattr(PIL.Image, "MAX_IMAGE_PIXELS", limit)
        with pytest.raises(
            ValueError, match=r"huge\.png.* too large: .*4096 pixels.*(4000|2000) pixels.*MAX_IMAGE_PIXELS"
        ):
            read_image(path)
    monkeypatch.setattr(PIL.Image, "MAX_IMAGE_PIXELS", 5000)
    assert read_image(path).size == (64, 64)


def test_images_are_known_by_their_content(tmp_path):
    path = saved(tmp_path / "picture.mp4", PIL.Image.new("RGB", (8, 8), (9, 9, 9)), format="PNG")
    assert not is_clip(path)
    assert values(path).max() == 9
