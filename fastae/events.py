"""TensorBoard's event files: written record by record, and wound back to an iteration.

PyTorch's SummaryWriter writes from a thread of its own, where a full disk ends in a traceback and where a
checkpoint cannot know what has reached the file. Here a record is in the file when `write` returns.
Records and their framing are TensorBoard's.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from tensorboard.backend.event_processing.event_file_loader import RawEventFileLoader
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.record_writer import RecordWriter
from tensorboard.util import tb_logging

from fastae.files import atomic_write

BEFORE_ALL = -1
"""The iteration to rewind to for nothing to be left."""

VERSION = "brain.Event:2"
"""The first record of every file, which tells TensorBoard how to read the others."""


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
    return sorted(folder.glob("events.out.tfevents.*"))


def rewind(folder: Path, iteration: int) -> None:
    """Leaves what was written up to `iteration`, in one new file: what came later will come again.

    A new name, since a TensorBoard that reads the old file at this moment must not lose its place in it.
    """
    old = event_files(folder)
    if not old:
        return
    with atomic_write(folder / _new_name()) as file:
        writer, seen = RecordWriter(file), set()
        for path in old:
            for record in _records(path):
                # Twice where a copy was made and its original not yet removed.
                event = Event.FromString(record)
                if (event.step <= iteration or event.file_version) and record not in seen:
                    seen.add(record)
                    writer.write(record)
    for path in old:
        path.unlink()


def _records(path: Path) -> Iterator[bytes]:
    """The whole records of a file, up to the first torn one."""
    tb_logging.get_logger().setLevel("CRITICAL")  # a torn last record is no news after a crash
    with suppress(Exception):
        yield from RawEventFileLoader(str(path)).Load()


def _new_name() -> str:
    # In nanoseconds: a run that is wound back within a second of its start needs another name.
    return f"events.out.tfevents.{time.time_ns()}.{socket.gethostname()}.{os.getpid()}"
