"""TensorBoard's event files: written record by record, and wound back to an iteration.

PyTorch's SummaryWriter writes from a thread of its own, where a full disk ends in a traceback and where a
checkpoint cannot know what has reached the file. Here a record is in the file when `write` returns.
Records and their framing are TensorBoard's.
"""

from __future__ import annotations

import os
import socket
import struct
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from google.protobuf.message import DecodeError
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.compat.tensorflow_stub.pywrap_tensorflow import masked_crc32c
from tensorboard.summary.writer.record_writer import RecordWriter

from fastae.utils.files import atomic_write, require_file

BEFORE_ALL = -1
"""The iteration to rewind to for nothing to be left."""

VERSION = "brain.Event:2"
"""The first record of every file, which tells TensorBoard how to read the others."""

HEADER = struct.Struct("<QI")  # length of the data, checksum of these 8 bytes; after the data, 4 bytes more
CHECKSUM = struct.Struct("<I")


class DamagedFile(Exception):
    """Why a file's records end before the file does."""


class Record(NamedTuple):
    """framed: the record as it stands in the file."""

    event: Event
    framed: bytes


class EventFile:
    """Appends to one event file in `folder`: a new one, or the one that `rewind` left."""

    def __init__(self, folder: Path) -> None:
        found = event_files(folder)
        self.path = found[-1] if found else folder / _new_name()
        self._file = self.path.open("ab")
        self._records = RecordWriter(self._file)
        if not found:
            self._records.write(Event(wall_time=time.time(), file_version=VERSION).SerializeToString())

    def write(self, summary: Summary, iteration: int) -> None:
        """Raises OSError where the disk is full or the file has gone."""
        event = Event(wall_time=time.time(), step=iteration, summary=summary)
        self._records.write(event.SerializeToString())

    def flush(self) -> None:
        self._file.flush()

    def sync(self) -> None:
        """Returns when all that was written is on the disk."""
        self._file.flush()
        os.fsync(self._file.fileno())

    def close(self) -> None:
        self._file.close()


def event_files(folder: Path) -> list[Path]:
    """Those in `folder`, oldest first. Pipes, devices and folders of such a name are none."""
    return sorted(path for path in folder.glob("events.out.tfevents.*") if path.is_file())


def rewind(folder: Path, iteration: int) -> None:
    """Leaves what was written up to `iteration`, in one new file: what came later will come again.

    A new name, since a TensorBoard that reads the old file at this moment must not lose its place in it.
    """
    old = event_files(folder)
    if not old:
        return
    with atomic_write(folder / _new_name()) as file:
        seen = set()
        for path in old:
            with suppress(DamagedFile):  # a torn last record is no news after a crash
                for event, framed in records(path):
                    # Twice where a copy was made and its original not yet removed.
                    if (event.step <= iteration or event.file_version) and framed not in seen:
                        seen.add(framed)
                        file.write(framed)
    for path in old:
        path.unlink()


def records(path: Path, largest: int | None = None) -> Iterator[Record]:
    """The records of a file; those with more than `largest` bytes of data are passed over unread.

    TensorBoard's own loader is not used: it is silent about a file that is cut short or damaged, and cannot
    pass over pictures, whose checksums are computed in Python, at some 5 MB/s, where TensorFlow is not there.

    Raises DamagedFile at the first that is not whole, and OSError, also for a pipe or a device.
    """
    require_file(path)
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        while (offset := file.tell()) < size:
            header = file.read(HEADER.size)
            if len(header) < HEADER.size:
                raise DamagedFile(f"cut short at byte {offset:,}")
            length, checksum = HEADER.unpack(header)
            if masked_crc32c(header[:8]) != checksum:
                raise DamagedFile(f"damaged at byte {offset:,}")
            if file.tell() + length + CHECKSUM.size > size:
                raise DamagedFile(f"cut short at byte {offset:,}")
            if largest is not None and length > largest:
                file.seek(length + CHECKSUM.size, os.SEEK_CUR)
                continue
            data, tail = file.read(length), file.read(CHECKSUM.size)
            try:
                if masked_crc32c(data) != CHECKSUM.unpack(tail)[0]:
                    raise DamagedFile(f"damaged at byte {offset:,}")
                yield Record(Event.FromString(data), header + data + tail)
            except DecodeError:
                raise DamagedFile(f"damaged at byte {offset:,}") from None


def _new_name() -> str:
    # In nanoseconds: a run that is wound back within a second of its start needs another name.
    return f"events.out.tfevents.{time.time_ns()}.{socket.gethostname()}.{os.getpid()}"
