"""Makes more than fifty kinds of files that are named like images and cannot be trained on."""

import io
import itertools
import os
import socket
import stat
import struct
import zlib
from collections.abc import Iterable
from contextlib import chdir
from pathlib import Path

from PIL import Image

from fastae.data.files.faults import MAX_METADATA
from fastae.data.files.jpeg import PIXELS_PER_BYTE
from fastae.data.files.png import START


def make(folder: Path, good: bytes) -> dict[str, str]:
    """Makes bad files in `folder` from the bytes of a good baseline JPEG. Returns name -> fault."""
    image = Image.open(io.BytesIO(good))
    frame, scan = good.index(b"\xff\xc0"), good.index(b"\xff\xda")
    png, text = encoded(image, "PNG"), png_chunk(b"tEXt", b"a\0b")

    def with_frame(offset: int, content: bytes) -> bytes:
        """Returns the JPEG with other bytes at this offset of its frame header."""
        return good[: frame + offset] + content + good[frame + offset + len(content) :]

    # A decoder that skips the unknown marker as if it had a length finds a second frame header.
    hidden = good[:2] + b"\xff\x02\x00\x13" + good[frame : frame + 17] + good[2:]
    too_many = encoded(image, "JPEG", progressive=True)[:-2] + good[scan : scan + 14] * 64 + b"\xff\xd9"
    contents = {
        "empty": [b""],
        "not a JPEG or PNG": [
            b"no picture\n" * 50, bytes(7000), b"<!DOCTYPE html><title>404 Not Found</title>", b"\xff",
            b"\x80\x04\x95" + bytes(100), b"PK\x03\x04" + bytes(100), b"BMW is not a bitmap", png[:7],
        ],
        "GIF": [encoded(image, "GIF")], "BMP": [encoded(image, "BMP")], "TIFF": [encoded(image, "TIFF")],
        "WebP": [encoded(image, "WEBP")], "AVIF": [b"\0\0\0 ftypavif" + bytes(90)],
        "HEIC": [b"\0\0\0 ftypheic" + bytes(90)], "JPEG XL": [b"\xff\x0a" + bytes(90)],
        "JPEG 2000": [b"\0\0\0\x0cjP  \r\n\x87\n" + bytes(90)],
        "header cut short": [
            b"\xff\xd8", b"\xff\xd8\xff", b"\xff\xd8\xff\xd9", b"\xff\xd8" + b"\x33" * 4000,
            good[: frame - 30], good[: frame + 6], good[:frame] + good[scan:],
            with_frame(5, b"\0\0"), with_frame(7, b"\0\0"), good[:scan] + good[frame:], hidden,
            png[:20], png[:29] + b"\0" + png[30:], png_of(0, 9), png_of(9, 9, color=3),
            png_of(9, 9, color=5), png_of(9, 9, depth=4), png_of(9, 9, before=png_chunk(b"IEND")),
            png_of(9, 9, before=b"\xff\xff\xff\xf0tEXt"), png_of(9, 9, before=png_chunk(b"NEWS")),
        ],
        "end marker missing": [
            good[: scan + 14], good[: len(good) // 2], good[:-2], good[:-2] + b"\0\0",
            png[: len(png) // 2], png[:-12], png[:-1], png_of(9, 9, behind=b"\xff\xff\xff\xf0tEXt"),
        ],
        "too large": [
            with_frame(5, b"\xff\xdc\xff\xdc"), with_frame(5, b"\xff\xff\x00\x08"),
            png_of(65_501, 1), png_of(65_500, 65_500), png_of(1 << 31, 1 << 31),
        ],
        "truncated": [with_frame(5, b"\x20\x00\x20\x00"), png_of(2_000, 2_000)],
        "too much metadata": [
            png_of(9, 9, before=65 * text), png_of(9, 9, behind=65 * text),
            png_of(9, 9, before=png_chunk(b"tEXt", bytes(1 + MAX_METADATA))),
        ],
        "more than 8 bits per channel": [
            with_frame(4, b"\x0c"), png_of(9, 9, depth=16), png_of(9, 9, depth=16, color=0),
        ],
        "too many scans": [too_many],
        "unsupported coding": [
            with_frame(1, b"\xc3"), with_frame(1, b"\xc9"), with_frame(9, b"\x02"),
        ],
        "CMYK": [encoded(image.convert("CMYK"), "JPEG")],
        "too small for the crop": [encoded(image.resize(size), "JPEG") for size in ((60, 60), (300, 20))],
    }  # fmt: skip
    expected = {}
    for fault, files in contents.items():
        for number, content in enumerate(files):
            (folder / f"{fault} {number}.jpg").write_bytes(content)
            expected[f"{fault} {number}.jpg"] = fault
    # Sparse files of 1 TiB, which take one block on the disk. Reading one whole would exhaust the memory.
    for name, start, fault in (
        ("head", b"\xff\xd8\xff\xe0\x00\x10", "header cut short"),
        ("tail", good, "too large"),
        ("PNG", png, "too large"),
    ):
        (folder / f"sparse {name}.jpg").write_bytes(start)
        os.truncate(folder / f"sparse {name}.jpg", 1 << 40)
        expected[f"sparse {name}.jpg"] = fault
    for name, target, fault in (
        ("dangling", "nowhere.jpg", "dangling link"), ("loop", "loop.jpg", "dangling link"),
        ("device", "/dev/zero", "not a file"), ("kernel", "/proc/self/environ", "empty"),
    ):  # fmt: skip
        (folder / f"{name}.jpg").symlink_to(target)
        expected[f"{name}.jpg"] = fault
    os.mkfifo(folder / "pipe.jpg")
    with socket.socket(socket.AF_UNIX) as listening, chdir(folder):  # a socket's path may have 107 bytes
        listening.bind("socket.jpg")
    expected |= dict.fromkeys(("pipe.jpg", "socket.jpg"), "not a file")
    if os.geteuid() != 0:
        (folder / "forbidden.jpg").write_bytes(good)
        (folder / "forbidden.jpg").chmod(stat.S_IWUSR)
        expected["forbidden.jpg"] = "unreadable"
    return expected


def put(faces: list[str], folder: Path, names: Iterable[str] | None = None) -> Path:
    """Links images into a folder, as 0.jpg, 1.jpg, ... unless other names are given. Returns the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    names = names or (f"{number}.jpg" for number in itertools.count())
    for face, name in zip(faces, names, strict=False):
        os.link(face, folder / name)
    return folder


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def png_chunk(name: bytes, content: bytes = b"") -> bytes:
    return struct.pack(">I", len(content)) + name + content + zlib.crc32(name + content).to_bytes(4)


def png_of(
    width: int, height: int, depth: int = 8, color: int = 2, before: bytes = b"", behind: bytes = b""
) -> bytes:
    """Returns a PNG of these claims with 9 black rows, and chunks before and behind its data."""
    header = struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, 0)
    data = png_chunk(b"IDAT", zlib.compress(9 * bytes(1 + 9 * 3)))
    return START + png_chunk(b"IHDR", header) + before + data + behind + png_chunk(b"IEND")


def bad_table(good: bytes) -> bytes:
    """Returns a JPEG with more codes in a Huffman table than there can be. Only decoding shows this."""
    table = good.index(b"\xff\xc4") + 5
    return good[:table] + b"\xff" * 16 + good[table + 16 :]


def two_orientations(good: bytes) -> bytes:
    """Returns a JPEG with two Exif segments, for orientations 1 and 6. Only DALI rejects it."""
    segments = b""
    for orientation in (1, 6):
        exif = Image.Exif()
        exif[0x0112] = orientation
        content = exif.tobytes()
        segments += b"\xff\xe1" + (len(content) + 2).to_bytes(2) + content
    return good[:2] + segments + good[2:]


def claiming(good: bytes, height: int, width: int) -> bytes:
    """Returns the JPEG with other dimensions in its header, and the fewest bytes that they may have."""
    frame = good.index(b"\xff\xc0")
    claim = good[: frame + 5] + height.to_bytes(2) + width.to_bytes(2) + good[frame + 9 : -2]
    return claim + bytes(height * width // PIXELS_PER_BYTE + 1) + good[-2:]
