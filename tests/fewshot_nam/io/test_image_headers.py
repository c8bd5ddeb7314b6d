"""Bombs of all formats are refused by what their headers say; honest files are decoded as Pillow decodes them."""

import io
import struct
import zlib
from contextlib import suppress

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from fewshot_nam.io.image_headers import check_exif, check_header, check_sides
from fewshot_nam.io.image_io import UnreadableImage, decoded

LARGE = 50_000  # a side of an image that is too large to decode


def entries(tags, order="<", big=False):
    """Return a TIFF directory without links to others, from (number, type, count, value) each."""
    form = "HHQQ" if big else "HHLL"
    parts = [struct.pack(order + ("Q" if big else "H"), len(tags))]
    for number, kind, count, value in tags:
        # A short value comes first in its field, in either order.
        field = value << (8 * ((8 if big else 4) - 2)) if order == ">" and kind == 3 and count == 1 else value
        parts.append(struct.pack(order + form, number, kind, count, field))
    return b"".join(parts) + bytes(8 if big else 4)


def tiff(tags, data=b"", order="<", big=False):
    """Return a TIFF block: a header, ``data`` at ``place(big)``, and a directory of ``tags``."""
    start = place(big) + len(data)
    mark = b"II" if order == "<" else b"MM"
    head = struct.pack(order + "HHHQ", 43, 8, 0, start) if big else struct.pack(order + "HL", 42, start)
    return mark + head + data + entries(tags, order, big)


def place(big=False):
    return 16 if big else 8


def grey(width, height, *more):
    """Return the tags of an uncompressed 8-bit TIFF without its data."""
    return [(256, 3, 1, width), (257, 3, 1, height), (258, 3, 1, 8), (259, 3, 1, 1), (262, 3, 1, 1), *more]


def overlapping(big=False, kind=1):
    """Return tags that all claim the same 10 kB."""
    return [(40_000 + i, kind, 10_000, place(big)) for i in range(20)]


def linked(number, inner=b""):
    """Return a TIFF block whose first directory links to one of overlapping tags."""
    data = bytes(10_000) + entries(overlapping())
    return tiff(grey(8, 8, (273, 4, 1, 8), (number, 4, 1, place() + 10_000)), data)


def exif_bomb(prefix=b""):
    return prefix + tiff([(0x0112, 3, 1, 6), *overlapping()], bytes(10_000))


def rle(width, height, codes):
    """Return an RLE bitmap of 256 greys."""
    palette = b"".join(bytes([i, i, i, 0]) for i in range(256))
    head = struct.pack("<IiiHHIIiiII", 40, width, height, 1, 8, 1, len(codes), 0, 0, 256, 0)
    return b"BM" + struct.pack("<IHHI", 54 + 1024 + len(codes), 0, 0, 54 + 1024) + head + palette + codes


def chunk(kind, content):
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png(width, height, *before, rows=b""):
    size = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    pixels = zlib.compress(rows or (b"\0" + bytes(min(width, 8))) * min(height, 8))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", size) + b"".join(before) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def icon(*images):
    directory, start = b"", 6 + 16 * len(images)
    for image in images:
        directory += struct.pack("<BBBBHHII", 32, 32, 0, 0, 1, 8, len(image), start)
        start += len(image)
    return struct.pack("<HHH", 0, 1, len(images)) + directory + b"".join(images)


def dib(width, height):
    return struct.pack("<IiiHHIIiiII", 40, width, height, 1, 8, 0, 0, 0, 0, 0, 0)


def codestream(width, height, tile_width, tile_height, bands=1):
    size = struct.pack(">HIIIIIIIIH", 0, width, height, 0, 0, tile_width, tile_height, 0, 0, bands) + b"\7\1\1" * bands
    return b"\xff\x4f\xff\x51" + struct.pack(">H", len(size) + 2) + size


def boxed(width, height, stream):
    header = struct.pack(">I4sIIHBBBB", 22, b"ihdr", height, width, 1, 7, 7, 0, 0)
    return (
        b"\0\0\0\x0cjP  \r\n\x87\n"
        + struct.pack(">I4s4sI4s", 20, b"ftyp", b"jp2 ", 0, b"jp2 ")
        + struct.pack(">I4s", 8 + len(header), b"jp2h")
        + header
        + struct.pack(">I4s", 0, b"jp2c")
        + stream
    )


def segment(marker, content):
    return bytes([0xFF, marker]) + (len(content) + 2).to_bytes(2, "big") + content


def saved(name, **options):
    """Return an image file of noise that Pillow wrote."""
    noise = np.random.default_rng(0).integers(0, 256, (40, 56, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(noise).save(file, name, **options)
    return file.getvalue()


def jpeg(*before):
    whole = saved("JPEG")
    return whole[:2] + b"".join(before) + whole[2:]


def gif(extensions):
    whole = saved("GIF")
    start = 13 + (6 << (whole[10] & 7))
    return whole[:start] + extensions + whole[start:]


BOMBS = {
    "tags.tif": (tiff(grey(8, 8, (273, 4, 1, 8), *overlapping()), bytes(10_000)), "tags claim more bytes"),
    "tags of the other order": (
        tiff(grey(8, 8, (273, 4, 1, 8), *overlapping()), bytes(10_000), ">"),
        "tags claim more bytes",
    ),
    "BigTIFF": (tiff(grey(8, 8, *overlapping(True)), bytes(10_000), "<", True), "tags claim more bytes"),
    "BigTIFF of the other order": (
        tiff(grey(8, 8, *overlapping(True)), bytes(10_000), ">", True),
        "tags claim more bytes",
    ),
    "EXIF directory": (linked(34665), "tags claim more bytes"),
    "GPS directory": (linked(34853), "tags claim more bytes"),
    "interoperability directory": (linked(40965), "tags claim more bytes"),
    "tile": (tiff(grey(64, 64, (322, 4, 1, LARGE), (323, 4, 1, LARGE))), "64x64 pixels in tiles of 50000x50000"),
    "tile, given twice": (
        tiff(grey(64, 64, (322, 3, 1, 64), (323, 3, 1, 64), (322, 3, 1, LARGE), (323, 3, 1, LARGE))),
        "in tiles of 50000x50000",
    ),
    "strips": (tiff(grey(8, 8, (273, 3, 2000, 8)), bytes(4000)), "8x8 pixels in 2,000 parts"),
    "parts": (tiff(grey(8, 8, (322, 3, 1, 8), (323, 3, 1, 8), (324, 3, 2000, 8)), bytes(4000)), "in 2,000 parts"),
    "depths": (tiff(grey(8, 8, (338, 3, 9000, 8)), bytes(18_000)), "9,000 values of tag 338"),
    "EXIF.jpg": (jpeg(segment(0xE1, exif_bomb(b"Exif\0\0"))), "an EXIF block whose tags claim"),
    "EXIF in two segments.jpg": (
        jpeg(
            segment(0xE1, exif_bomb(b"Exif\0\0")[:100]),
            segment(0xE0, b"x"),
            segment(0xE1, b"Exif\0\0" + exif_bomb(b"Exif\0\0")[100:]),
        ),
        "an EXIF block whose tags claim",
    ),
    "EXIF after a marker without length.jpg": (
        jpeg(b"\xff\xf0\xff\xff" + segment(0xE1, exif_bomb(b"Exif\0\0"))),
        "an EXIF block whose tags claim",
    ),
    "EXIF segments.jpg": (jpeg(segment(0xE1, b"Exif\0\0x") * 101), "more than 100 EXIF segments"),
    "index.jpg": (jpeg(segment(0xE2, exif_bomb(b"MPF\0"))), "an EXIF block whose tags claim"),
    "prefixes.jpg": (jpeg(segment(0xE1, b"Exif\0\0" * 100)), "an EXIF block that begins many times"),
    "EXIF.avif": (
        b"\0\0\0\x18ftypavif" + bytes(20) + b"Exif" + bytes(9) + exif_bomb(),
        "an EXIF block whose tags claim",
    ),
    "EXIF blocks.avif": (b"\0\0\0\x18ftypavif" + bytes(20) + b"Exif" + b"II*\0" * 2000, "EXIF block"),
    "EXIF blocks that are empty.avif": (
        b"\0\0\0\x18ftypavif" + bytes(20) + b"Exif" + b"II*\0\xff\xff\xff\xff" * 1001,
        "more than 1,000 EXIF blocks",
    ),
    "prefixes.avif": (b"\0\0\0\x18ftypavif" + b"Exif\0\0" * 100, "an EXIF block that begins many times"),
    "segments.jpg": (jpeg(segment(0xFE, b"") * 10_000), "more than 10,000 segments"),
    "delta.ico": (icon(dib(16, 32), dib(8000, 8000)), "8000x8000 pixels are too many for an icon"),
    "narrow.ico": (icon(dib(30_000, 2)), "30000x1|30000x2"),
    "narrow png.ico": (icon(png(8000, 1)), "8000x1 pixels is too narrow"),
    "turned.ico": (icon(dib(8000, -8000)), "8000x8000 pixels are too many for an icon"),
    "png.ico": (icon(png(13_000, 13_000)), "169,000,000 pixels are too many for an icon"),
    "png of two headers.ico": (
        icon(png(8, 8, chunk(b"IHDR", struct.pack(">IIBBBBB", 9000, 9000, 1, 0, 0, 0, 0)))),
        "81,000,000 pixels are too many for an icon",
    ),
    "many.ico": (icon(*[dib(8, 16)] * 257), "an icon of 257 images"),
    "animated.png": (png(LARGE, LARGE, chunk(b"acTL", bytes(8))), "2,500,000,000 pixels are too many"),
    "chunks.png": (png(8, 8, chunk(b"aaAa", b"") * 10_000), "more than 10,000 chunks"),
    "comment.gif": (gif(b"!\xfe" + b"\1x" * 5000 + b"\0"), "a GIF with a comment"),
    "tiles.j2k": (codestream(255, 255, 1, 1), "255x255 pixels in 65,025 tiles"),
    "tiles.jp2": (boxed(255, 255, codestream(255, 255, 1, 1)), "255x255 pixels in 65,025 tiles"),
    "other.jp2": (boxed(64, 64, codestream(LARGE, LARGE, LARGE, LARGE)), "64x64 and 50000x50000 pixels"),
    "bands.j2k": (codestream(255, 255, 255, 255, 5), "5 bands"),
}


@pytest.mark.parametrize("name", BOMBS)
def test_bombs_are_refused_before_pillow_opens_them(name, monkeypatch):
    content, message = BOMBS[name]
    assert len(content) < 200_000
    if name.endswith(".avif") and ".avif" not in Image.registered_extensions():
        expected = "here: an AVIF image, which this version of Pillow cannot read"
    else:
        expected = rf"here: not an image, or cut short \(.*({message})"
    monkeypatch.setattr("PIL.Image.open", None)
    with pytest.raises(ValueError, match=BOMBS[name][1]) as raised:
        check_header(content)
    assert "\n" not in str(raised.value)
    with pytest.raises(UnreadableImage, match=expected):
        decoded(content, "here")


@pytest.mark.parametrize(
    "content",
    [rle(60_000_000, 1, b"\0\2\xff\xff"), png(30_000, 1), b"P5 1 30000 255\n" + bytes(30_000)],
    ids=["bmp", "png", "pgm"],
)
def test_narrow_images_are_refused_before_they_are_decoded(content, monkeypatch):
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", None)
    with pytest.raises(
        UnreadableImage, match=r"here: an image of .* pixels is too narrow to resize: its sides may differ by a"
    ):
        decoded(content, "here")


@pytest.mark.parametrize("name", ["PNG", "PNG of text", "WEBP"])
def test_exif_blocks_are_refused_before_their_tags_are_read(name, monkeypatch):
    if name == "PNG":
        content = png(8, 8, chunk(b"eXIf", exif_bomb()))
    elif name == "PNG of text":
        text = f"\nexif\n{len(exif_bomb())}\n" + exif_bomb().hex()
        content = png(8, 8, chunk(b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(text.encode())))
    else:
        content = saved("WEBP", exif=exif_bomb())
    monkeypatch.setattr("PIL.Image.Exif.load", None)
    with pytest.raises(UnreadableImage, match=r"here: .*an EXIF block whose tags claim more bytes than it has"):
        decoded(content, "here")


def test_numbers_in_exif_are_bounded():
    """Pillow makes a Python number of each."""
    size = (1 << 20) + 8
    assert check_exif(tiff([(40_000, 7, size, 8)], bytes(size))) is None
    with pytest.raises(ValueError, match="an EXIF block whose tags claim"):
        check_exif(tiff([(40_000, 5, size // 8, 8)], bytes(size)))


def progressive(scans: int, side: int = 64) -> bytes:
    """Return a progressive JPEG of one grey, of a DC scan and empty AC scans."""

    def segment(marker: int, content: bytes) -> bytes:
        return bytes([0xFF, marker]) + (len(content) + 2).to_bytes(2, "big") + content

    one_code = bytes([1] + [0] * 15)
    blocks = (side // 8) ** 2
    run = blocks.bit_length() - 1  # one code for 2^run blocks and as many more as the bits behind it say: all
    bits = "0" + format(blocks - (1 << run), f"0{run}b")
    ends = int(bits.ljust(-(-len(bits) // 8) * 8, "1"), 2).to_bytes(-(-len(bits) // 8), "big")
    parts = [
        b"\xff\xd8",
        segment(0xE1, b"no scans: " + b"\xff\xda" * 200),  # of metadata
        segment(0xDB, bytes([0]) + bytes([1] * 64)),
        segment(0xC2, bytes([8]) + side.to_bytes(2, "big") * 2 + bytes([1, 1, 0x11, 0])),
        segment(0xC4, bytes([0x00]) + one_code + bytes([0])),
        segment(0xC4, bytes([0x10]) + one_code + bytes([run << 4])),
        segment(0xDA, bytes([1, 1, 0, 0, 0, 0])) + bytes(-(-blocks // 8)),
        *[segment(0xDA, bytes([1, 1, 0, 1, 63, 0])) + ends] * (scans - 1),
        b"\xff\xff\xd9",
    ]
    return b"".join(parts)


def test_a_jpeg_of_thousands_of_scans_is_refused_before_it_is_decoded(monkeypatch):
    """Half a megabyte of them kept a server busy for a minute."""
    assert decoded(progressive(100), "file").getextrema() == (128, 128)
    monkeypatch.setattr("PIL.Image.open", None)
    with pytest.raises(UnreadableImage, match=r"file: not an image, or cut short \(a JPEG of more than 100 scans\)"):
        decoded(progressive(101), "file")


def tiled(order="<", big=False, compression=1):
    """Return a TIFF of 40x24 pixels in tiles of 16x16, and its pixels."""
    pixels = np.random.default_rng(1).integers(0, 256, (24, 40), dtype=np.uint8)
    padded = np.pad(pixels, ((0, 8), (0, 8)))
    data, starts, sizes = b"", [], []
    for y in range(0, 24, 16):
        for x in range(0, 40, 16):
            tile = padded[y : y + 16, x : x + 16].tobytes()
            starts.append(place(big) + len(data))
            sizes.append(len(tile) if compression == 1 else len(zlib.compress(tile)))
            data += tile if compression == 1 else zlib.compress(tile)
    at = place(big) + len(data)
    lists = struct.pack(order + "6L", *starts) + struct.pack(order + "6L", *sizes)
    tags = [tag for tag in grey(40, 24) if tag[0] != 259]
    tags += [
        (259, 3, 1, compression),
        (277, 3, 1, 1),
        (322, 3, 1, 16),
        (323, 3, 1, 16),
        (324, 4, 6, at),
        (325, 4, 6, at + 24),
    ]
    return tiff(sorted(tags), data + lists, order, big), pixels


@pytest.mark.parametrize("compression", [1, 8])
@pytest.mark.parametrize(("order", "big"), [("<", False), (">", False), ("<", True)])
def test_tiled_tiffs_are_decoded(order, big, compression):
    content, pixels = tiled(order, big, compression)
    np.testing.assert_array_equal(np.asarray(decoded(content, "here")), pixels)


def test_rle_bitmaps_are_decoded():
    found = decoded(rle(4, 2, b"\4\x07\0\0\0\4abcd\0\1"), "here")
    np.testing.assert_array_equal(np.asarray(found), [list(b"abcd"), [7] * 4])


def turned():
    exif = Image.Exif()
    exif[0x0112], exif[0x010F], exif[0x011A] = 6, "a maker", 72.0
    exif.get_ifd(0x8769)[0x829A] = 0.01
    return exif


HONEST = {
    "JPEG": {"exif": turned()},
    "progressive": {"name": "JPEG", "progressive": True, "exif": turned(), "comment": b"x"},
    "MPO": {"save_all": True, "append_images": [Image.new("RGB", (56, 40))]},
    "PNG": {"exif": turned()},
    "animated": {"name": "PNG", "save_all": True, "append_images": [Image.new("RGB", (56, 40))]},
    "WEBP": {"exif": turned(), "lossless": True},
    "AVIF": {"exif": turned()},
    "TIFF": {"exif": turned()},
    "deflate": {"name": "TIFF", "compression": "tiff_adobe_deflate"},
    "lzw": {"name": "TIFF", "compression": "tiff_lzw", "exif": turned()},
    "strips": {"name": "TIFF", "strip_size": 500},
    "pages": {"name": "TIFF", "save_all": True, "append_images": [Image.new("RGB", (56, 40))]},
    "GIF": {"comment": b"x" * 2000, "save_all": True, "append_images": [Image.new("RGB", (56, 40))]},
    "ICO": {"sizes": [(16, 16), (32, 32), (40, 40)]},
    "bitmaps": {"name": "ICO", "sizes": [(16, 16), (32, 32)], "bitmap_format": "bmp"},
    "JPEG2000": {"tile_size": (16, 16)},
    "codestream": {"name": "JPEG2000", "tile_size": (16, 16), "no_jp2": True},
    "BMP": {},
    "DIB": {},
    "TGA": {"compression": "tga_rle"},
    "PPM": {},
}


@pytest.mark.parametrize("name", HONEST)
def test_honest_files_are_decoded_as_pillow_decodes_them(name):
    options = dict(HONEST[name])
    kind = options.pop("name", name)
    Image.init()
    if kind not in Image.SAVE:
        pytest.skip(f"this Pillow writes no {kind}")
    content = saved(kind, **options)
    with Image.open(io.BytesIO(content)) as image:
        expected = ImageOps.exif_transpose(image)
    found = decoded(content, "here")
    assert (found.size, found.mode) == (expected.size, expected.mode)
    assert ("exif" in options) == (found.size == (40, 56))
    np.testing.assert_array_equal(np.asarray(found), np.asarray(expected))


def test_sides_are_checked_either_way():
    check_sides(1000, 1)
    for sides in ((1001, 1), (1, 1001)):
        with pytest.raises(ValueError, match="too narrow"):
            check_sides(*sides)


HEADS = [content[:60] for content, _ in BOMBS.values()] + [
    b"GIF89a",
    b"\0\0\1\0\2\0",
    b"\0\0\0\x18ftypavifExif",
    b"Exif\0\0",
]


@settings(max_examples=300, deadline=None)
@given(
    st.one_of(
        st.binary(max_size=300),
        st.tuples(st.sampled_from(HEADS), st.binary(max_size=200)).map(b"".join),
        st.tuples(
            st.sampled_from([content for content, _ in BOMBS.values()]), st.integers(0, 400), st.binary(max_size=8)
        ).map(lambda drawn: drawn[0][: drawn[1]] + drawn[2] + drawn[0][drawn[1] + len(drawn[2]) :]),
    )
)
def test_any_bytes_pass_or_are_refused(content):
    for check in (check_header, check_exif):
        with suppress(ValueError):
            assert check(content) is None
