"""JPEGs and PNGs broken in many ways, each a function of (seed, number) and of the files given.

`mutant(originals, seed, number)` takes one of the originals, as bytes, and changes it once to three times:
its bits, its length, or the segments or chunks that it is made of.
"""

from __future__ import annotations

import io
import random
from collections.abc import Sequence

from PIL import Image

from ..data.bad_files import encoded, png_chunk

MARKERS = bytes.fromhex("c0 c1 c2 c3 c4 c9 cc d0 d1 d8 d9 da db dc dd e0 e1 ee fe 00 01 ff")
SIDES = (0, 1, 7, 8, 9, 255, 256, 1_000, 4_096, 13_000, 32_768, 65_500, 65_535)
LENGTHS = (0, 0, 1, 2, 16, 500)


def variants(jpeg: bytes) -> list[bytes]:
    """The same picture in the codings that a data set may hold."""
    image = Image.open(io.BytesIO(jpeg))
    return [
        jpeg,
        encoded(image, "JPEG", progressive=True),
        encoded(image, "JPEG", subsampling="4:4:4", optimize=True),
        encoded(image, "JPEG", subsampling="4:2:2", restart_marker_blocks=3),
        encoded(image, "JPEG", comment=b"x" * 60_000, icc_profile=bytes(70_000)),
        encoded(image.convert("L"), "JPEG"),
        encoded(image.convert("L"), "JPEG", progressive=True),
        encoded(image.convert("CMYK"), "JPEG"),
        encoded(image, "PNG"),
        encoded(image.quantize(64), "PNG", transparency=bytes(64)),
        encoded(image.convert("LA"), "PNG", icc_profile=bytes(9_000)),
        encoded(image, "PNG", save_all=True, append_images=[image.convert("L")]),
    ]


def mutant(originals: Sequence[bytes], seed: int, number: int) -> bytes:
    """The `number`-th broken image of this seed."""
    chance = random.Random(f"{seed} {number}")
    image = chance.choice(originals)
    for _ in range(chance.choice((1, 1, 1, 2, 3))):
        is_png = image.startswith(b"\x89PNG")
        parts = (change_chunk,) * 3 if is_png else (change_head, change_head, rearrange)
        change = chance.choice((flip_bits, replace_bytes, splice, *parts))
        image = change(image, chance, chance.choice(originals))
    return image


def flip_bits(jpeg: bytes, chance: random.Random, other: bytes) -> bytes:
    broken, end = bytearray(jpeg), chance.choice((700, len(jpeg)))
    for _ in range(chance.choice((1, 1, 4, 32)) if jpeg else 0):
        broken[chance.randrange(min(end, len(jpeg)))] ^= 1 << chance.randrange(8)
    return bytes(broken)


def replace_bytes(jpeg: bytes, chance: random.Random, other: bytes) -> bytes:
    """Some bytes missing, added or others; in the data, a restart marker that was not promised."""
    start = chance.choice((len(jpeg), chance.randrange(len(jpeg) + 1)))
    length = chance.choice(LENGTHS)
    restart = bytes([0xFF, 0xD0 + chance.randrange(8)])
    filler = chance.choice((bytes(length), b"\xff" * length, chance.randbytes(length), restart, bytes(5_000)))
    return jpeg[:start] + filler + jpeg[start + chance.choice(LENGTHS) :]


def splice(jpeg: bytes, chance: random.Random, other: bytes) -> bytes:
    """Cut short, with or without an end marker, or continued as another file."""
    rest = chance.choice((b"", b"\xff\xd9", other, other[chance.randrange(len(other)) :]))
    return jpeg[: chance.randrange(len(jpeg) + 1)] + rest


def change_head(jpeg: bytes, chance: random.Random, other: bytes) -> bytes:
    """Another marker, length, size in pixels, or any other byte at the beginning of a segment."""
    segments = cut_at_markers(jpeg)
    frames = [n for n, segment in enumerate(segments) if segment[1:2] in (b"\xc0", b"\xc1", b"\xc2")]
    index = chance.choice((*frames, chance.randrange(len(segments))))
    start, new = chance.choice(
        (
            (1, bytes([chance.choice(MARKERS)])),
            (2, chance.choice((0, 1, 2, 3, 255, 65_535, chance.randrange(65_536))).to_bytes(2)),
            (5, b"".join(chance.choice(SIDES).to_bytes(2) for _ in range(2))),
            (chance.randrange(4, 20), chance.randbytes(1)),
        )
    )
    segments[index] = segments[index][:start] + new + segments[index][start + len(new) :]
    return b"".join(segments)


def change_chunk(png: bytes, chance: random.Random, other: bytes) -> bytes:
    """A chunk of a PNG with other bytes, size in pixels, name or length; it is missing, repeated or moved."""
    chunks = cut_at_chunks(png)
    name, content = chunks.pop(index := chance.choice((0, chance.randrange(len(chunks)))))
    start, new = chance.choice(
        (
            (0, b"".join(chance.choice(SIDES).to_bytes(4) for _ in range(2))),
            (8, bytes(chance.choice((0, 1, 2, 3, 4, 6, 8, 16)) for _ in range(2))),
            (chance.randrange(14), chance.randbytes(1)),
            (len(content), bytes(chance.choice(LENGTHS))),
        )
    )
    name = chance.choice((name, name, b"IDAT", b"PLTE", b"tRNS", b"acTL", b"eXIf", b"iCCP", b"zTXt", b"NEWS"))
    chunk = png_chunk(name, content[:start] + new + content[start + len(new) :])
    if chance.random() < 0.2:
        chunk = chance.choice((0, 1, 65_535, 1 << 31, (1 << 32) - 1)).to_bytes(4) + chunk[4:]
    before = chance.choice((index, chance.randrange(len(chunks) + 1)))
    parts = [png_chunk(*each) for each in chunks]
    parts[before:before] = [chunk] * chance.choice((0, 1, 1, 1, 2, 70))
    return png[:8] + b"".join(parts)


def cut_at_chunks(png: bytes) -> list[tuple[bytes, bytes]]:
    """The name and content of each chunk of a PNG, which may be broken."""
    chunks, offset = [(b"IHDR", b"")], 8
    while offset < len(png):
        length = int.from_bytes(png[offset : offset + 4])
        chunks.append((png[offset + 4 : offset + 8], png[offset + 8 : offset + 8 + length]))
        offset += 12 + length
    return chunks[1:] or chunks


def rearrange(jpeg: bytes, chance: random.Random, other: bytes) -> bytes:
    """A segment missing, repeated or moved, or a new one."""
    segments = cut_at_markers(jpeg)
    segment = segments.pop(chance.randrange(len(segments)))
    content = chance.randbytes(chance.choice((0, 1, 2, 15, 17, 64, 65, 1_000, 65_533)))
    new = bytes([0xFF, chance.choice(MARKERS)]) + (len(content) + 2).to_bytes(2) + content
    index = chance.randrange(len(segments) + 1)
    segments[index:index] = chance.choice(([], [segment], [segment] * 50, [segment] * 300, [segment, new]))
    return b"".join(segments)


def cut_at_markers(jpeg: bytes) -> list[bytes]:
    """Cut before each marker; compressed data follow their scan's header."""
    cuts, offset = [0], 2
    while 0 <= (offset := jpeg.find(b"\xff", offset)) < len(jpeg) - 1:
        if jpeg[offset + 1] in (0x00, 0xFF):  # a byte of the data, fill
            offset += 1
        else:
            cuts.append(offset)
            # Those from D0 to D9 stand alone.
            length = 0 if 0xD0 <= jpeg[offset + 1] <= 0xD9 else int.from_bytes(jpeg[offset + 2 : offset + 4])
            offset += 2 + length
    return [jpeg[start:end] for start, end in zip(cuts, [*cuts[1:], None], strict=True)]
