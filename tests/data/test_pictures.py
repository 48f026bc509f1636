"""Laws of one picture from a file."""

import os
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from tinydiff.backend import default_rng
from tinydiff.data import pictures
from tinydiff.data.dataset import DataError, Dataset
from tinydiff.data.pictures import read_picture, resized, square

pytestmark = pytest.mark.data

RED, GREEN, BLUE, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)


@pytest.fixture
def put(tmp_path):
    """A function that saves a picture, and returns its path."""

    def save(picture, name="a.png", **settings):
        picture.save(tmp_path / name, **settings)
        picture.close()
        return tmp_path / name

    return save


def thirds(*colours, width=90, height=30):
    """Upright bands of flat colours, from left to right."""
    picture = Image.new("RGB", (width, height))
    for i, colour in enumerate(colours):
        picture.paste(colour, (i * width // len(colours), 0, (i + 1) * width // len(colours), height))
    return picture


def colours(pixels):
    """The colours of an image, as a set."""
    return set(map(tuple, pixels.reshape(-1, pixels.shape[2]).tolist()))


@pytest.mark.parametrize("size", [8, 30, 64])
@pytest.mark.parametrize("turned", [False, True])
def test_the_central_square_is_cropped_before_it_is_resized(put, size, turned):
    """Of three bands only the middle one is left, to the bit: the filter sees nothing of what was cut off."""
    picture = thirds(RED, GREEN, BLUE)
    path = put(picture.transpose(Image.Transpose.ROTATE_90) if turned else picture)
    pixels, grey, _ = read_picture(path, size, None)
    assert pixels.shape == (size, size, 3) and pixels.dtype == np.uint8
    assert colours(pixels) == {GREEN} and not grey


def test_channels_are_red_green_blue_and_rows_count_downwards(put):
    """A pixel of each colour comes back at its place, with size None and with the size that it has."""
    image = default_rng(0).integers(0, 256, (5, 5, 3), np.uint8)
    image[0, :3] = RED, GREEN, BLUE
    for size in (None, 5):
        np.testing.assert_array_equal(read_picture(put(Image.fromarray(image)), size, 3).pixels, image)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_picture_is_turned_as_its_camera_says(put, orientation):
    """EXIF's orientation 1 to 8: each turned copy, saved with its flag, reads as the upright picture."""
    upright = Image.fromarray(default_rng(1).integers(0, 256, (6, 4, 3), np.uint8))
    T = Image.Transpose  # what undoes 2, 3, ..., 8 when it is applied to the upright picture
    saved_as = [
        None,
        T.FLIP_LEFT_RIGHT,
        T.ROTATE_180,
        T.FLIP_TOP_BOTTOM,
        T.TRANSPOSE,
        T.ROTATE_90,
        T.TRANSVERSE,
        T.ROTATE_270,
    ]
    turn, exif = saved_as[orientation - 1], Image.Exif()
    exif[0x0112] = orientation
    path = put(upright.copy() if turn is None else upright.transpose(turn), exif=exif)
    np.testing.assert_array_equal(read_picture(path, None, None).pixels, np.asarray(upright))


@given(st.integers(0, 2**32), st.integers(8, 40), st.integers(1, 60), st.integers(1, 60), st.integers(0, 255))
def test_a_flat_picture_stays_flat_at_any_size(seed, size, width, height, level):
    """Resizing has weights that sum to 1: a flat colour keeps its level, and grey keeps to one channel or three."""
    picture = Image.new("L", (width, height), level)
    assert np.asarray(square(picture, size)).tolist() == [[level] * size] * size


@pytest.mark.parametrize("size", [8, 13, 32])
def test_a_fine_pattern_becomes_its_mean(size):
    """A chessboard of single pixels is too fine for the smaller picture: it is grey there, not black and white."""
    board = (np.indices((96, 96)).sum(0) % 2 * 255).astype(np.uint8)
    inner = np.asarray(square(Image.fromarray(board), size)).astype(int)[1:-1, 1:-1]  # a border has fewer neighbours
    assert np.abs(inner - 127.5).max() < 8


def test_grey_and_colour_become_what_is_asked_for(put):
    """Of the file's colours: 1 is Rec. 601's luma, 0.299 R + 0.587 G + 0.114 B; 3 repeats grey; None is 3."""
    red, grey = put(Image.new("RGB", (8, 8), RED), "r.png"), put(Image.new("L", (8, 8), 100), "g.png")
    assert colours(read_picture(red, 8, 1).pixels) == {(76,)} and colours(read_picture(grey, 8, 1).pixels) == {(100,)}
    for channels in (3, None):
        assert colours(read_picture(grey, 8, channels).pixels) == {(100, 100, 100)}
    assert read_picture(grey, 8, 3).grey and not read_picture(red, 8, 1).grey


def palette(*, transparent=False):
    picture = Image.new("P", (9, 9), 1)
    picture.putpalette([0, 0, 0, *RED])
    return picture, ({"transparency": 1} if transparent else {})


def film(kind):
    return Image.new(kind, (9, 9), RED), {"save_all": True, "append_images": [Image.new(kind, (9, 9), BLUE)]}


PALETTE, LAID = "a palette, its colours are taken", "transparent, laid on white"
WIDE, FIRST = "16 bits a pixel, the upper 8 are taken", "animated, the first frame is taken"
ODD = {  # what is saved, under which name, its one colour, whether it is grey, and what is said of it
    "CMYK": (
        lambda: (Image.new("CMYK", (9, 9), (255, 0, 0, 0)), {"quality": 100}),
        "a.jpg",
        (0, 255, 255),
        False,
        ["CMYK, converted without a colour profile"],
    ),
    "palette": (palette, "a.png", RED, False, [PALETTE]),
    "palette in a GIF": (palette, "a.gif", RED, False, [PALETTE]),
    "transparent palette": (lambda: palette(transparent=True), "a.png", WHITE, False, [PALETTE, LAID]),
    "transparent colour": (
        lambda: (Image.new("RGB", (9, 9), RED), {"transparency": RED}),
        "a.png",
        WHITE,
        False,
        [LAID],
    ),
    "half transparent": (lambda: (Image.new("RGBA", (9, 9), (*RED, 51)), {}), "a.png", (255, 204, 204), False, [LAID]),
    "half transparent grey": (lambda: (Image.new("LA", (9, 9), (0, 51)), {}), "a.png", (204,) * 3, True, [LAID]),
    "opaque with an alpha": (lambda: (Image.new("RGBA", (9, 9), (*RED, 255)), {}), "a.png", RED, False, []),
    "16 bits": (lambda: (Image.fromarray(np.full((9, 9), 0x12FF, np.uint16)), {}), "a.png", (0x12,) * 3, True, [WIDE]),
    "16 bits, white": (lambda: (Image.fromarray(np.full((9, 9), 0xFFFF, np.uint16)), {}), "a.png", WHITE, True, [WIDE]),
    "1 bit": (lambda: (Image.new("1", (9, 9), 1), {}), "a.png", WHITE, True, []),
    "animated GIF": (lambda: film("RGB"), "a.gif", RED, False, [FIRST, PALETTE]),
    "animated PNG": (lambda: film("RGB"), "a.png", RED, False, [FIRST]),
    "a PNG that is called JPEG": (lambda: (Image.new("RGB", (9, 9), RED), {"format": "PNG"}), "a.jpg", RED, False, []),
    "BMP": (lambda: (Image.new("RGB", (9, 9), RED), {}), "a.bmp", RED, False, []),
}


@pytest.mark.parametrize("what", ODD)
def test_each_kind_of_file_gives_its_colour_and_a_remark_if_it_is_odd(put, what):
    """Exact on flat colours; what is common, such as an alpha of 255 everywhere, is not remarked on."""
    make, name, colour, grey, remarks = ODD[what]
    picture, settings = make()
    read = read_picture(put(picture, name, **settings), 8, None)
    assert (colours(read.pixels), read.grey, read.remarks) == ({colour}, grey, remarks)


def test_a_small_picture_is_enlarged_and_named(put):
    """Smaller than the square on its shorter side; a picture that is just large enough is not remarked on."""
    assert read_picture(put(Image.new("RGB", (99, 7), RED)), 8, 3).remarks == ["smaller than 8 x 8, enlarged"]
    assert read_picture(put(Image.new("RGB", (99, 8), RED)), 8, 3).remarks == []


def test_a_large_photograph_is_decoded_small_and_looks_the_same(put):
    """The shortcut of JPEG, decoding at a half to an eighth, changes a pixel by a grey level or two."""
    y, x = np.mgrid[0:640, 0:800] / 100
    image = np.rint(127.5 + 60 * np.sin(x)[..., None] + 60 * np.cos(y[..., None] + [0, 1, 2])).astype(np.uint8)
    path = put(Image.fromarray(image), "a.jpg", quality=95)
    with Image.open(path) as whole:
        expected = np.asarray(square(whole, 16)).astype(int)
    assert np.abs(read_picture(path, 16, None).pixels - expected).max() <= 3


def png_of(width, height):
    """The first bytes of a PNG file of a size."""
    chunks = {b"IHDR": struct.pack(">2I5B", width, height, 8, 2, 0, 0, 0), b"IDAT": b"nothing"}
    framed = [
        struct.pack(">I", len(a)) + name + a + struct.pack(">I", zlib.crc32(name + a)) for name, a in chunks.items()
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(framed)


UNREADABLE = {
    "empty": (b"", "cannot identify image file"),
    "text": (b"not a picture", "cannot identify image file"),
    "cut short": (None, "truncated"),
    "too large": (png_of(9000, 9000), "it has 9,000 x 9,000 pixels, more than 80,000,000"),
    "a bomb": (png_of(2**30, 2**30), "exceeds limit"),
    "PostScript, which is a program": (
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
        "cannot identify image file",
    ),
}


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("what", UNREADABLE)
def test_what_cannot_be_read_is_a_remark_with_the_reason(put, tmp_path, what):
    """No exception leaves; the reason has no address of an object in it; memory is not taken for a lie about a size."""
    content, reason = UNREADABLE[what]
    if content is None:
        content = put(Image.fromarray(default_rng(0).integers(0, 256, (40, 40, 3), np.uint8))).read_bytes()[:2000]
    (tmp_path / "b.png").write_bytes(content)
    pixels, _, (remark,) = read_picture(tmp_path / "b.png", 8, None)
    assert pixels is None and remark.startswith("not readable (") and reason in remark and "0x" not in remark


@pytest.mark.skipif(os.name != "posix", reason="pipes and links with a path")
def test_a_pipe_and_a_link_to_itself_are_remarked_on_at_once(tmp_path):
    """Nothing waits for a writer, and a loop ends."""
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "loop.png").symlink_to(tmp_path / "loop.png")
    for name, reason in (("pipe.png", "a pipe"), ("loop.png", "symbolic links"), ("none.png", "No such file")):
        pixels, _, (remark,) = read_picture(tmp_path / name, 8, None)
        assert pixels is None and reason in remark


@pytest.mark.parametrize("channels", [1, 3])
def test_images_of_a_data_set_are_resized_as_pictures_are(channels):
    """Image by image `square`, labels and names kept; images of that size are left alone, and None changes nothing."""
    images = default_rng(0).integers(0, 256, (3, 20, 30, channels), np.uint8)
    dataset = Dataset("own", images, np.array([0, 1, 0]), "a drawer", ("a", "b"))
    made = resized(dataset, 12)
    for image, row in zip(made.images, images):
        expected = square(Image.fromarray(row[..., 0] if channels == 1 else row), 12)
        np.testing.assert_array_equal(image, np.asarray(expected).reshape(12, 12, channels))
    assert (made.name, made.source, made.classes) == ("own", "a drawer", ("a", "b")) and made.labels is dataset.labels
    assert resized(dataset, None) is dataset and resized(made, 12) is made


def test_images_of_two_channels_are_not_resized():
    dataset = Dataset("own", np.zeros((1, 9, 9, 2), np.uint8), None, "", ())
    with pytest.raises(DataError, match="--size 8: images of 1 or 3 channels can be resized, these have 2"):
        resized(dataset, 8)
    assert resized(dataset, 9) is dataset


def test_only_formats_without_programs_are_tried():
    """Pillow can start Ghostscript for EPS; no such format is in the list, and the common ones are."""
    assert set(pictures.FORMATS) <= {"PNG", "JPEG", "GIF", "BMP", "WEBP"} and {"PNG", "JPEG"} <= set(pictures.FORMATS)
