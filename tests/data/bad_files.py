"""More than forty kinds of file that are named like a JPEG and are not one to train on.

`make(folder, good)` writes them beside each other and returns what the check must say of each, None for
those that a marker alone cannot give away and only the deep check finds.
"""

import io
import os
import socket
import stat
from contextlib import chdir
from pathlib import Path

from PIL import Image

from fastae.data.jpeg import PIXELS_PER_BYTE


def make(folder: Path, good: bytes) -> dict[str, str]:
    """name -> fault, for files in `folder` made from the bytes of a good baseline JPEG."""
    expected = {}

    def write(name, content, fault):
        (folder / name).write_bytes(content)
        expected[name] = fault

    def save(name, image, fault, kind="JPEG", **options):
        image.save(folder / name, kind, **options)
        expected[name] = fault

    image = Image.open(folder / "good.jpg")
    frame = good.index(b"\xff\xc0")
    scan = good.index(b"\xff\xda")

    write("empty.jpg", b"", "empty")
    write("text.jpg", b"this is no picture\n" * 50, "not a JPEG")
    write("zeros.jpg", bytes(7000), "not a JPEG")
    write("html.jpg", b"<!DOCTYPE html><title>404 Not Found</title>", "not a JPEG")
    write("one_byte.jpg", b"\xff", "not a JPEG")
    write("pickle.jpg", b"\x80\x04\x95" + bytes(100), "not a JPEG")
    write("zip.jpg", b"PK\x03\x04" + bytes(100), "not a JPEG")
    write("half_a_marker.jpg", b"\xff\xd8\xff", "header cut short")
    write("start_only.jpg", b"\xff\xd8", "header cut short")
    write("start_and_end.jpg", b"\xff\xd8\xff\xd9", "header cut short")
    write("header_in_tables.jpg", good[: frame - 30], "header cut short")
    write("header_in_frame.jpg", good[: frame + 6], "header cut short")
    write("no_frame.jpg", good[:frame] + good[scan:], "header cut short")
    write(
        "noise_after_start.jpg",
        b"\xff\xd8" + os.urandom(1).replace(b"\xff", b"\0") * 4000,
        "header cut short",
    )
    write("zero_height.jpg", good[: frame + 5] + b"\0\0" + good[frame + 7 :], "header cut short")
    write("zero_width.jpg", good[: frame + 7] + b"\0\0" + good[frame + 9 :], "header cut short")
    write("after_header.jpg", good[: scan + 14], "end marker missing")
    write("half.jpg", good[: len(good) // 2], "end marker missing")
    write("without_end.jpg", good[:-2], "end marker missing")
    write("end_overwritten.jpg", good[:-2] + b"\0\0", "end marker missing")
    write("huge.jpg", good[: frame + 5] + b"\xff\xdc\xff\xdc" + good[frame + 9 :], "too large")
    write("long.jpg", good[: frame + 5] + b"\xff\xff\x00\x08" + good[frame + 9 :], "too large")
    write("claims.jpg", good[: frame + 5] + b"\x20\x00\x20\x00" + good[frame + 9 :], "truncated")
    write("two_frames.jpg", good[:scan] + good[frame:], "header cut short")
    # Where a marker that no decoder knows is skipped as if it had a length, a decoder sees another frame.
    write("hidden.jpg", good[:2] + b"\xff\x02\x00\x13" + good[frame : frame + 17] + good[2:],
          "header cut short")  # fmt: skip
    write("scans.jpg", progressive(image)[:-2] + good[scan : scan + 14] * 64 + b"\xff\xd9", "too many scans")
    sparse(folder / "sparse.jpg", b"\xff\xd8\xff\xe0\x00\x10")
    expected["sparse.jpg"] = "header cut short"
    sparse(folder / "sparse_behind.jpg", good)
    expected["sparse_behind.jpg"] = "too large"
    write("twelve_bits.jpg", good[: frame + 4] + b"\x0c" + good[frame + 5 :], "unsupported coding")
    write("lossless.jpg", good[: frame + 1] + b"\xc3" + good[frame + 2 :], "unsupported coding")
    write("arithmetic.jpg", good[: frame + 1] + b"\xc9" + good[frame + 2 :], "unsupported coding")
    write("two_components.jpg", good[: frame + 9] + b"\x02" + good[frame + 10 :], "unsupported coding")
    save("png.jpg", image, "not a JPEG", "PNG")
    save("gif.jpg", image, "not a JPEG", "GIF")
    save("bmp.jpg", image, "not a JPEG", "BMP")
    save("webp.jpg", image, "not a JPEG", "WEBP")
    save("tiff.jpg", image, "not a JPEG", "TIFF")
    save("cmyk.jpg", image.convert("CMYK"), "CMYK")
    save("small.jpg", image.resize((60, 60)), "too small for the crop")
    save("narrow.jpg", image.resize((300, 20)), "too small for the crop")
    (folder / "dangling.jpg").symlink_to(folder / "nowhere.jpg")
    expected["dangling.jpg"] = "dangling link"
    (folder / "loop.jpg").symlink_to(folder / "loop.jpg")
    expected["loop.jpg"] = "unreadable"
    (folder / "folder.jpg").mkdir()
    expected["folder.jpg"] = "not a file"
    os.mkfifo(folder / "pipe.jpg")
    expected["pipe.jpg"] = "not a file"
    with socket.socket(socket.AF_UNIX) as listening, chdir(folder):  # its name may have 107 bytes
        listening.bind("socket.jpg")
    expected["socket.jpg"] = "not a file"
    (folder / "device.jpg").symlink_to("/dev/zero")
    expected["device.jpg"] = "not a file"
    (folder / "kernel.jpg").symlink_to("/proc/self/environ")
    expected["kernel.jpg"] = "empty"
    if os.geteuid() != 0:
        write("forbidden.jpg", good, "unreadable")
        (folder / "forbidden.jpg").chmod(stat.S_IWUSR)
    return expected


def bad_table(good: bytes) -> bytes:
    """The counts of a Huffman table: more codes than there can be."""
    table = good.index(b"\xff\xc4") + 5
    return good[:table] + b"\xff" * 16 + good[table + 16 :]


def two_ways_up(good: bytes) -> bytes:
    """Two Exif segments: of orientation 1, and of 6."""
    segments = b""
    for orientation in (1, 6):
        exif = Image.Exif()
        exif[0x0112] = orientation
        content = exif.tobytes()
        segments += b"\xff\xe1" + (len(content) + 2).to_bytes(2) + content
    return good[:2] + segments + good[2:]


def progressive(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "JPEG", progressive=True)
    return file.getvalue()


def sparse(path: Path, start: bytes) -> None:
    """A file of 1 TiB that takes a block on the disk: whoever reads it whole has no memory left."""
    path.write_bytes(start)
    os.truncate(path, 1 << 40)


def claiming(good: bytes, height: int, width: int) -> bytes:
    """The same file under other dimensions, with as many bytes as these need at the least."""
    frame = good.index(b"\xff\xc0")
    claim = good[: frame + 5] + height.to_bytes(2) + width.to_bytes(2) + good[frame + 9 : -2]
    return claim + bytes(height * width // PIXELS_PER_BYTE + 1) + good[-2:]
