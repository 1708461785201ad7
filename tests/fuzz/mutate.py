"""JPEGs broken in every way that came to mind, each a function of (seed, number) and of the files given.

`mutant(originals, seed, number)` takes one of the originals, as bytes, and does one to three things to it:
to its bits, to its length, or to the marker segments that it is made of.
"""

from __future__ import annotations

import io
import random
from collections.abc import Callable, Sequence

from PIL import Image

SIDES = (0, 1, 7, 8, 9, 255, 256, 1_000, 4_096, 13_000, 32_768, 65_500, 65_535)
MARKERS = bytes.fromhex("c0 c1 c2 c3 c4 c9 cc d0 d8 d9 da db dc dd e0 e1 ee fe 00 01 ff")

Pieces = list[bytes]
"""A JPEG cut before each of its markers; the compressed data lie behind their scan's header."""


def variants(jpeg: bytes) -> list[bytes]:
    """The same picture in the codings that a data set may hold."""
    image = Image.open(io.BytesIO(jpeg))

    def saved(picture: Image.Image, **options: object) -> bytes:
        file = io.BytesIO()
        picture.save(file, "JPEG", **options)
        return file.getvalue()

    return [
        jpeg,
        saved(image, progressive=True),
        saved(image, subsampling="4:4:4", optimize=True),
        saved(image, subsampling="4:2:2", restart_marker_blocks=3),
        saved(image.convert("L")),
        saved(image.convert("L"), progressive=True),
        saved(image.convert("CMYK")),
        saved(image, comment=b"x" * 60_000, icc_profile=bytes(70_000)),
    ]


def mutant(originals: Sequence[bytes], seed: int, number: int) -> bytes:
    """The `number`-th broken JPEG of this seed."""
    chance = random.Random(f"{seed} {number}")
    jpeg = chance.choice(originals)
    for _ in range(chance.choice((1, 1, 1, 2, 3))):
        if chance.random() < 0.5:
            jpeg = chance.choice(OF_BYTES)(jpeg, chance, originals)
        else:
            jpeg = b"".join(chance.choice(OF_SEGMENTS)(_pieces(jpeg), chance))
    return jpeg


def _pieces(jpeg: bytes) -> Pieces:
    cuts, place = [0], 2
    while 0 <= (place := jpeg.find(b"\xff", place)) < len(jpeg) - 1:
        if jpeg[place + 1] in (0x00, 0xFF):  # a byte of the data, fill
            place += 1
        else:
            cuts.append(place)
            # Those from D0 to D9 stand alone; behind a scan's header its data follow.
            length = 0 if 0xD0 <= jpeg[place + 1] <= 0xD9 else int.from_bytes(jpeg[place + 2 : place + 4])
            place += 2 + length
    return [jpeg[start:end] for start, end in zip(cuts, [*cuts[1:], None], strict=True)]


def _flip_bits(jpeg: bytes, chance: random.Random, originals: Sequence[bytes]) -> bytes:
    broken = bytearray(jpeg)
    for _ in range(chance.choice((1, 1, 4, 32))):
        if broken:
            broken[chance.randrange(len(broken))] ^= 1 << chance.randrange(8)
    return bytes(broken)


def _flip_bits_in_the_header(jpeg: bytes, chance: random.Random, originals: Sequence[bytes]) -> bytes:
    return _flip_bits(jpeg[:700], chance, originals) + jpeg[700:]


def _truncate(jpeg: bytes, chance: random.Random, originals: Sequence[bytes]) -> bytes:
    return jpeg[: chance.randrange(len(jpeg) + 1)]


def _truncate_and_end(jpeg: bytes, chance: random.Random, originals: Sequence[bytes]) -> bytes:
    return _truncate(jpeg, chance, originals) + b"\xff\xd9"


def _splice(jpeg: bytes, chance: random.Random, originals: Sequence[bytes]) -> bytes:
    other = chance.choice(originals)
    return _truncate(jpeg, chance, originals) + other[chance.randrange(len(other)) :]


def _cut_out(jpeg: bytes, chance: random.Random, originals: Sequence[bytes]) -> bytes:
    start = chance.randrange(len(jpeg) + 1)
    return jpeg[:start] + jpeg[start + chance.choice((1, 2, 16, 500)) :]


def _insert(jpeg: bytes, chance: random.Random, originals: Sequence[bytes]) -> bytes:
    start = chance.randrange(len(jpeg) + 1)
    return jpeg[:start] + chance.randbytes(chance.choice((1, 2, 16, 500))) + jpeg[start:]


def _overwrite(jpeg: bytes, chance: random.Random, originals: Sequence[bytes]) -> bytes:
    start, length = chance.randrange(len(jpeg) + 1), chance.choice((1, 2, 16, 500))
    filler = chance.choice((bytes(length), b"\xff" * length, chance.randbytes(length)))
    return jpeg[:start] + filler + jpeg[start + length :]


def _append(jpeg: bytes, chance: random.Random, originals: Sequence[bytes]) -> bytes:
    return jpeg + chance.choice((bytes(5_000), chance.choice(originals), chance.randbytes(3_000)))


def _other_marker(pieces: Pieces, chance: random.Random) -> Pieces:
    place = chance.randrange(len(pieces))
    pieces[place] = pieces[place][:1] + bytes([chance.choice(MARKERS)]) + pieces[place][2:]
    return pieces


def _other_length(pieces: Pieces, chance: random.Random) -> Pieces:
    place = chance.randrange(len(pieces))
    length = chance.choice((0, 1, 2, 3, 255, 65_535, chance.randrange(65_536)))
    pieces[place] = pieces[place][:2] + length.to_bytes(2) + pieces[place][4:]
    return pieces


def _drop(pieces: Pieces, chance: random.Random) -> Pieces:
    del pieces[chance.randrange(len(pieces))]
    return pieces


def _repeat(pieces: Pieces, chance: random.Random) -> Pieces:
    place = chance.randrange(len(pieces))
    return pieces[:place] + pieces[place : place + 1] * chance.choice((2, 3, 50, 300)) + pieces[place + 1 :]


def _shuffle(pieces: Pieces, chance: random.Random) -> Pieces:
    one, other = chance.randrange(len(pieces)), chance.randrange(len(pieces))
    pieces[one], pieces[other] = pieces[other], pieces[one]
    return pieces


def _new_segment(pieces: Pieces, chance: random.Random) -> Pieces:
    content = chance.randbytes(chance.choice((0, 1, 15, 17, 64, 65, 1_000, 65_533)))
    segment = bytes([0xFF, chance.choice(MARKERS)]) + (len(content) + 2).to_bytes(2) + content
    pieces.insert(chance.randrange(1, len(pieces) + 1), segment)
    return pieces


def _other_size(pieces: Pieces, chance: random.Random) -> Pieces:
    sides = b"".join(chance.choice(SIDES).to_bytes(2) for _ in range(2))
    return _in_frame(pieces, lambda frame: frame[:5] + sides + frame[9:])


def _other_components(pieces: Pieces, chance: random.Random) -> Pieces:
    """Precision, number, identifiers, sampling factors or tables of the components."""

    def edit(frame: bytes) -> bytes:
        place = chance.choice((4, *range(9, len(frame)))) if len(frame) > 9 else 0
        return frame[:place] + bytes([chance.randrange(256)]) + frame[place + 1 :]

    return _in_frame(pieces, edit)


def _in_frame(pieces: Pieces, edit: Callable[[bytes], bytes]) -> Pieces:
    return [edit(piece) if piece[1:2] in (b"\xc0", b"\xc1", b"\xc2") else piece for piece in pieces]


def _restarts(pieces: Pieces, chance: random.Random) -> Pieces:
    """Restart markers that are promised and missing, or there and not promised, or in the wrong order."""
    if chance.random() < 0.5:
        interval = chance.choice((1, 2, 7, 65_535))
        pieces.insert(1, b"\xff\xdd\x00\x04" + interval.to_bytes(2))
        return pieces
    place, data = len(pieces) - 1, b"".join(pieces)
    for _ in range(chance.choice((1, 10, 1_000))):
        place = chance.randrange(len(data) // 2, len(data) + 1)
        data = data[:place] + bytes([0xFF, 0xD0 + chance.randrange(8)]) + data[place:]
    return [data]


OF_BYTES = (_flip_bits, _flip_bits_in_the_header, _truncate, _truncate_and_end, _splice, _cut_out, _insert,
            _overwrite, _append)  # fmt: skip
OF_SEGMENTS = (_other_marker, _other_length, _drop, _repeat, _shuffle, _new_segment, _other_size,
               _other_components, _restarts)  # fmt: skip
