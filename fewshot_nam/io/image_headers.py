"""What the headers of an image file say: files that would take far more memory or time than their size are refused unopened.

Pillow limits the pixels of the image, but some decoders allocate by other fields, and some before that limit is checked. What
each function here refuses is such a field; files that programs write honestly pass. All functions take any bytes and raise
nothing but the ``ValueError`` of a refusal.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from typing import NamedTuple

MAX_ASPECT = 1000
"""The largest ratio of an image's sides. A file of 200 bytes can hold 30000x1 pixels, which take gigabytes once the short side is
resized to 224, and an RLE bitmap of 60,000,000x1 takes gigabytes to decode."""

_SMALL_PIXELS = 1 << 24  # of a tile or icon: more than programs write, and cheap
_MOST_ICONS = 256
_MOST_CHUNKS = 10_000  # of a PNG before its pixels
_MOST_COMMENT_BLOCKS = 4096  # of a GIF, 255 bytes each; Pillow joins them in quadratic time

# A marker with a length behind it. Within a scan 0xFF is followed by 0 or a restart marker; before a marker there may be more 0xFF.
_JPEG_MARKER = re.compile(rb"\xff[^\x00\x01\xd0-\xd8\xff]", re.DOTALL)
_START_OF_SCAN, _END_OF_IMAGE = 0xDA, 0xD9
_MOST_SCANS = 100  # progressive files have 10 or so
_MOST_SEGMENTS = 10_000
# A marker as Pillow reads them up to the first scan, and those that it takes to have no length.
_ANY_JPEG_MARKER = re.compile(rb"\xff[^\x00\xff]", re.DOTALL)
_BARE_JPEG_MARKERS = {0xC8, *range(0xD0, 0xDA), *range(0xF0, 0xFE)}
_MOST_EXIF_SEGMENTS = 100  # Pillow joins them in quadratic time

_PNG = b"\x89PNG\r\n\x1a\n"
_ICO = b"\0\0\1\0"
_JP2 = b"\0\0\0\x0cjP  \r\n\x87\n"
_J2K = b"\xff\x4f\xff\x51"
_MOST_TILES = 1024  # of JPEG 2000, where they have fewer than 64 x 64 pixels; each takes 10 kB or so

_MOST_EXIF_BLOCKS = 1000  # where any bytes may look like one
_EXIF = b"Exif\0\0"
_TIFF = re.compile(rb"II\*\0|MM\0\*|II\+\0|MM\0\+|II\0\*|MM\*\0")
_MOST_TAG_NUMBERS = 1 << 20  # bytes of numbers in EXIF: Python's numbers take 30 times as many
# Bytes of a value of each TIFF type, and how to read those that are whole numbers.
_TYPE_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}
_WHOLE_NUMBERS = {1: "B", 3: "H", 4: "L", 6: "b", 8: "h", 9: "l", 13: "L", 16: "Q", 17: "q", 18: "Q"}
_BYTES_AND_TEXT = (1, 2, 7)
_WIDTH, _HEIGHT, _STRIP_OFFSETS, _SAMPLES, _ROWS_PER_STRIP, _PLANAR = 256, 257, 273, 277, 278, 284
_TILE_WIDTH, _TILE_HEIGHT, _TILE_OFFSETS = 322, 323, 324
_LINKED_DIRECTORIES = (34665, 34853, 40965)  # EXIF, GPS and interoperability
# Of a few values at most, which Pillow makes Python's numbers of.
_SHORT_TAGS = (
    254,
    255,
    256,
    257,
    258,
    259,
    262,
    266,
    274,
    277,
    278,
    282,
    283,
    284,
    296,
    317,
    322,
    323,
    338,
    339,
    530,
    532,
)
_MOST_SHORT_VALUES = 1024
_SPARE_STRIPS = 1024


def check_sides(width: int, height: int) -> None:
    """Raise ``ValueError`` for sides that differ by a factor of more than ``MAX_ASPECT``."""
    if max(width, height) > MAX_ASPECT * min(width, height):
        raise ValueError(
            f"an image of {width}x{height} pixels is too narrow to resize: its sides may differ by a factor of "
            f"{MAX_ASPECT}: crop it"
        )


def check_header(content: bytes) -> None:
    """Check an image file before Pillow opens it.

    Args:
        content: the whole file.

    Raises:
        ValueError: opening or decoding it could take far more memory or time than its size. The message is one line.
    """
    if content.startswith(b"\xff\xd8"):
        _check_scans(content)
        _check_jpeg_tags(content)
    elif content.startswith(_PNG):
        _check_png(content, 0)
    elif _TIFF.match(content):
        _check_tiff(content)
    elif content.startswith((_J2K, _JP2)):
        _check_jpeg2000(content)
    elif content.startswith(_ICO):
        _check_ico(content)
    elif content.startswith((b"GIF87a", b"GIF89a")):
        _check_gif(content)
    elif content[4:8] == b"ftyp":
        _check_tags_anywhere(content)


def check_exif(block: bytes) -> None:
    """Check an EXIF block, which any format may hold, before Pillow reads it.

    Raises:
        ValueError: its tags claim more than twice its bytes together, or more than a megabyte of numbers.
    """
    if block.startswith(5 * _EXIF):
        raise ValueError("an EXIF block that begins many times")
    while block.startswith(_EXIF):
        block = block[len(_EXIF) :]
    _claimed(block, _limit(len(block)))


def _check_scans(content: bytes) -> None:
    """Refuse a JPEG of many scans: one may take 95 bytes, and decoding goes over the whole image for each."""
    scans, segments, place = 0, 0, 2
    while (found := _JPEG_MARKER.search(content, place)) is not None:
        segments += 1
        if segments > _MOST_SEGMENTS:
            raise ValueError(f"a JPEG of more than {_MOST_SEGMENTS:,} segments")
        marker, place = content[found.start() + 1], found.end()
        if marker == _END_OF_IMAGE:
            return
        if marker == _START_OF_SCAN:
            scans += 1
            if scans > _MOST_SCANS:
                raise ValueError(f"a JPEG of more than {_MOST_SCANS} scans")
        place += int.from_bytes(content[place : place + 2], "big")


def _check_jpeg_tags(content: bytes) -> None:
    """Check the tags that Pillow reads when it opens a JPEG: EXIF, joined of all its segments, and the index of several images."""
    exif: list[bytes] = []
    place = 2
    while (found := _ANY_JPEG_MARKER.search(content, place)) is not None:
        marker, place = content[found.start() + 1], found.end()
        if marker < 0xC0 or marker == _START_OF_SCAN:
            break
        if marker in _BARE_JPEG_MARKERS:
            continue
        end = place + max(2, int.from_bytes(content[place : place + 2], "big"))
        if marker == 0xE1 and content.startswith(_EXIF, place + 2):
            exif.append(content[place + 2 : end][len(_EXIF) if exif else 0 :])
            if len(exif) > _MOST_EXIF_SEGMENTS:
                raise ValueError(f"a JPEG of more than {_MOST_EXIF_SEGMENTS} EXIF segments")
        elif marker == 0xE2 and content.startswith(b"MPF\0", place + 2):
            check_exif(content[place + 6 : end])
        place = end
    check_exif(b"".join(exif))


def _check_tags_anywhere(content: bytes) -> None:
    """Check the EXIF blocks of an AVIF or HEIC file wherever they may be: Pillow reads one when it opens the file."""
    if b"Exif" not in content:  # the item's type
        return
    if 5 * _EXIF in content:
        raise ValueError("an EXIF block that begins many times")
    left = _limit(len(content))
    for position, found in enumerate(_TIFF.finditer(content)):
        if position == _MOST_EXIF_BLOCKS:
            raise ValueError(f"an image with more than {_MOST_EXIF_BLOCKS:,} EXIF blocks")
        left -= _claimed(memoryview(content)[found.start() :], left)


class _Tag(NamedTuple):
    """An entry of a TIFF directory: how many values it has, the bytes it claims with them, and its value if one whole number."""

    number: int
    type: int
    values: int
    claims: int
    value: int | None


def _tags(block: bytes | memoryview) -> Iterator[_Tag]:
    """Yield the entries of the first directory of a TIFF block and of those it links to, as far as there are any."""
    head = bytes(block[:4])
    if not _TIFF.match(head):
        return
    order = ">" if head.startswith(b"MM") else "<"
    # Pillow takes BigTIFF of this order for plain TIFF, libtiff does not.
    for big in (False, True) if head == b"MM\0+" else (head[2] == 43,):
        count_form, entry_form = (order + "Q", order + "HHQ8s") if big else (order + "H", order + "HHL4s")
        offset_form = order + ("Q" if big else "L")
        room = 8 if big else 4
        places, seen = [_read(offset_form, block, 8 if big else 4)], set()
        while places:
            place = places.pop()
            if place is None or place < 0 or place in seen:
                continue
            seen.add(place)
            entries = _read(count_form, block, place) or 0
            start, step = place + struct.calcsize(count_form), struct.calcsize(entry_form)
            for at in range(start, min(start + entries * step, len(block) - step + 1), step):
                number, kind, count, field = struct.unpack_from(entry_form, block, at)
                size = count * _TYPE_SIZES.get(kind, 0)
                value = claims = None
                if size > room:
                    claims = min(size, max(0, len(block) - struct.unpack(offset_form, field)[0]))
                elif count == 1 and kind in _WHOLE_NUMBERS:
                    value = struct.unpack_from(order + _WHOLE_NUMBERS[kind], field)[0]
                if number in _LINKED_DIRECTORIES:
                    places.append(value)
                yield _Tag(number, kind, count, step + (claims or 0), value)


def _read(form: str, block: bytes | memoryview, place: int) -> int | None:
    """Return the number at a place of a block, ``None`` where the block ends before."""
    if place + struct.calcsize(form) > len(block):
        return None
    return int(struct.unpack_from(form, block, place)[0])


def _limit(size: int) -> int:
    """Return how many bytes tags may claim in a block of ``size`` bytes; honest ones overlap nowhere."""
    return 2 * size + (1 << 16)


def _claimed(block: bytes | memoryview, most: int) -> int:
    """Return how many bytes the tags of an EXIF block claim together; ``ValueError`` for more than ``most``."""
    claimed = numbers = 0
    for tag in _tags(block):
        claimed += tag.claims
        numbers += 0 if tag.type in _BYTES_AND_TEXT else tag.claims
        if claimed > most or numbers > _MOST_TAG_NUMBERS:
            raise ValueError("an EXIF block whose tags claim more bytes than it has")
    return claimed


def _check_tiff(content: bytes) -> None:
    """Refuse tags that overlap, tiles far larger than the image, and more strips or tiles than the image has."""
    most, claimed = _limit(len(content)), 0
    counts: dict[int, int] = {}
    values: dict[int, list[int]] = {}
    for tag in _tags(content):
        claimed += tag.claims
        if claimed > most:
            raise ValueError("a TIFF whose tags claim more bytes than it has")
        if tag.number in _SHORT_TAGS and tag.values > _MOST_SHORT_VALUES:
            raise ValueError(f"a TIFF with {tag.values:,} values of tag {tag.number}")
        counts[tag.number] = max(tag.values, counts.get(tag.number, 0))
        if tag.value is not None:
            values.setdefault(tag.number, []).append(tag.value)
    # A tag may come twice, and decoders differ in which they take.
    width, height = min(values.get(_WIDTH, [0])), min(values.get(_HEIGHT, [0]))
    tile_width, tile_height = max(values.get(_TILE_WIDTH, [0])), max(values.get(_TILE_HEIGHT, [0]))
    if tile_width * tile_height > max(_SMALL_PIXELS, (width + 15) * (height + 15)):
        raise ValueError(f"a TIFF of {width}x{height} pixels in tiles of {tile_width}x{tile_height}")
    planes = max(values.get(_SAMPLES, [1])) if 2 in values.get(_PLANAR, []) else 1
    rows = max(1, min(values.get(_ROWS_PER_STRIP, [1])))
    columns = max(1, min(values.get(_TILE_WIDTH, [width])))
    tile_rows = max(1, min(values.get(_TILE_HEIGHT, [height])))
    strips = -(-height // rows) * planes
    tiles = -(-width // columns) * -(-height // tile_rows) * planes
    for parts, number in ((strips, _STRIP_OFFSETS), (tiles, _TILE_OFFSETS)):
        if counts.get(number, 0) > max(0, parts) + _SPARE_STRIPS:
            raise ValueError(f"a TIFF of {width}x{height} pixels in {counts[number]:,} parts")


def _check_png(content: bytes, start: int, most_pixels: int | None = None) -> None:
    """Refuse a PNG with a header of too many pixels: of an animated one, Pillow makes an empty image before its own limit.

    Args:
        content: a file.
        start: where the PNG begins in it.
        most_pixels: of the PNG; ``None`` for no limit other than that of animated ones.
    """
    place, largest, narrowest, animated = start + len(_PNG), 0, (1, 1), False
    for _ in range(_MOST_CHUNKS):
        kind = content[place + 4 : place + 8]
        if len(kind) < 4 or kind in (b"IDAT", b"fdAT", b"IEND"):
            break
        if kind == b"IHDR" and len(content) >= place + 16:  # it may come again, and the last one counts
            size = struct.unpack_from(">II", content, place + 8)
            largest, narrowest = max(largest, size[0] * size[1]), max(narrowest, size, key=_aspect)
        animated |= kind == b"acTL"
        place += 12 + int.from_bytes(content[place : place + 4], "big")
    else:
        raise ValueError(f"a PNG of more than {_MOST_CHUNKS:,} chunks before its pixels")
    if animated:
        most_pixels = _SMALL_PIXELS
    if most_pixels is not None:
        if largest > most_pixels:
            raise ValueError(f"{largest:,} pixels are too many for an icon or an animated PNG: at most {most_pixels:,}")
        check_sides(*narrowest)


def _aspect(size: tuple[int, int]) -> float:
    return max(size) / max(1, min(size))


def _check_ico(content: bytes) -> None:
    """Check all images of an icon, since Pillow decodes the largest when it opens the file."""
    count = int.from_bytes(content[4:6], "little")
    if count > _MOST_ICONS:
        raise ValueError(f"an icon of {count:,} images")
    for entry in range(6, min(6 + 16 * count, len(content) - 15), 16):
        start = int.from_bytes(content[entry + 12 : entry + 16], "little")
        if content.startswith(_PNG, start):
            _check_png(content, start, _SMALL_PIXELS)
            continue
        header = content[start : start + 12]
        if len(header) < 12:
            continue
        if int.from_bytes(header[:4], "little") == 12:
            width, height = struct.unpack_from("<HH", header, 4)
        else:
            width, height = struct.unpack_from("<II", header, 4)
            height = 2**32 - height if header[11] == 0xFF else height
        if width * height > 2 * _SMALL_PIXELS:  # the height is that of image and mask
            raise ValueError(f"{width}x{height} pixels are too many for an icon")
        if width and height:
            check_sides(width, height)


def _check_gif(content: bytes) -> None:
    """Refuse a GIF with a long comment before its first image."""
    place = 13 + ((6 << (content[10] & 7)) if len(content) > 10 and content[10] & 128 else 0)
    comments = 0
    introducer = re.compile(rb"[!,;]")
    while (found := introducer.search(content, place)) is not None and found[0] == b"!":
        comment = content[found.end() : found.end() + 1] == b"\xfe"
        place = found.end() + 1
        while place < len(content) and content[place]:
            place += 1 + content[place]
            comments += comment
            if comments > _MOST_COMMENT_BLOCKS:
                raise ValueError("a GIF with a comment of more than a megabyte, or in very small parts")
        place += 1


def _check_jpeg2000(content: bytes) -> None:
    """Refuse a JPEG 2000 image of very many tiles, and one whose two headers differ: the memory goes by the second."""
    size, start = _jp2_boxes(content) if content.startswith(_JP2) else (None, 0)
    if start is None or not content.startswith(_J2K, start) or len(content) < start + 42:
        return
    x1, y1, x0, y0, tile_width, tile_height, tile_x, tile_y, bands = struct.unpack_from(">8IH", content, start + 8)
    width, height = x1 - x0, y1 - y0
    if size is not None and size != (width, height):
        raise ValueError(f"a JPEG 2000 image of {size[0]}x{size[1]} and {width}x{height} pixels")
    if bands > 4:
        raise ValueError(f"a JPEG 2000 image of {bands:,} bands")
    if not tile_width or not tile_height:
        return  # the decoder refuses it
    tiles = -(-(x1 - tile_x) // tile_width) * -(-(y1 - tile_y) // tile_height)
    if tiles > _MOST_TILES and tiles > -(-width // 64) * -(-height // 64):  # smaller ones than 64 by 64
        raise ValueError(f"a JPEG 2000 image of {width}x{height} pixels in {tiles:,} tiles")


def _jp2_boxes(content: bytes) -> tuple[tuple[int, int] | None, int | None]:
    """Return the size that the boxes of a JPEG 2000 file name, as Pillow reads them, and where the image itself begins."""
    size: tuple[int, int] | None = None
    for kind, place, end in _boxes(content, 0, len(content)):
        if kind == b"jp2c":
            return size, place
        if kind == b"jp2h" and size is None:
            for inner, at, inner_end in _boxes(content, place, end):
                if inner == b"ihdr" and inner_end >= at + 8:
                    height, width = struct.unpack_from(">II", content, at)
                    size = (width, height)
    return size, None


def _boxes(content: bytes, place: int, end: int) -> Iterator[tuple[bytes, int, int]]:
    """Yield the type of each box between two places, where its content begins and where it ends."""
    while place + 8 <= end:
        length, kind, head = int.from_bytes(content[place : place + 4], "big"), content[place + 4 : place + 8], 8
        if length == 1:
            length, head = int.from_bytes(content[place + 8 : place + 16], "big"), 16
        elif length == 0:
            length = end - place
        if length < head:
            return
        yield kind, place + head, min(end, place + length)
        place += length
