"""What a run shows in TensorBoard: scalars, image grids and settings.

PyTorch makes the protocol buffers, and TensorBoard's RecordWriter writes them in the calling thread, where a
full disk raises OSError. PyTorch's SummaryWriter would print a traceback from a thread of its own.

A resumed run writes a new file, which begins with a restart record at the iteration that the run continues
from. TensorBoard then drops the points of later iterations in earlier files, as for SummaryWriter's
`purge_step`.
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Mapping
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from typing import Any

from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.record_writer import RecordWriter
from torch.utils.tensorboard import summary

from fastae.utils.console import printable
from fastae.utils.files import open_own

VERSION = "brain.Event:2"
"""The content of each file's first record, which names the format."""


EVENTS = "events.out.tfevents"
"""The beginning of an event file's name. A number follows."""


class TensorBoardWriter(AbstractContextManager):
    """Appends to a new event file in `folder`. Any thread may call the methods, which raise OSError."""

    def __init__(self, folder: Path, start: int = 0) -> None:
        """Makes the event file. `start` is the iteration that the run continues from; 0 for a new run."""
        numbers = [path.name.split(".")[3] for path in folder.glob(f"{EVENTS}.*")]
        last = max((int(number) for number in numbers if number.isdecimal()), default=0)
        self.name = f"{EVENTS}.{last + 1:020d}"
        """The name of the event file. TensorBoard reads the files in the order of their names."""
        self._file = open_own(folder / self.name, "x")
        self._records = RecordWriter(self._file)
        self._lock = threading.Lock()
        self._write(Event(file_version=VERSION))
        self._write(Event(session_log=SessionLog(status=SessionLog.START), step=start + 1 if start else 0))

    def scalars(self, iteration: int, values: Mapping[str, float]) -> None:
        """Writes scalars, tag -> value, which a TensorBoard that is open on the folder can read at once."""
        for tag, value in values.items():
            self._summary(summary.scalar(tag, value), iteration)

    def image(self, iteration: int, tag: str, png: bytes, shape: tuple[int, int]) -> None:
        """Writes an image, which is encoded as PNG; `shape` is its (height, width) in pixels."""
        image = Summary.Image(height=shape[0], width=shape[1], colorspace=3, encoded_image_string=png)
        self._summary(Summary(value=[Summary.Value(tag=tag, image=image)]), iteration)

    def settings(self, iteration: int, values: Mapping[str, Any]) -> None:
        """Writes settings, name -> JSON value, as a table for the tab TEXT."""
        rows = (
            f"| {name} | {printable(value) if isinstance(value, str) else json.dumps(value)} |"
            for name, value in values.items()
        )
        table = "\n".join(["| setting | value |", "|---|---|", *rows])
        self._summary(summary.text("config", table), iteration)

    def sync(self) -> None:
        """Flushes all records to the disk."""
        os.fsync(self._file.fileno())

    def _summary(self, values: Summary, iteration: int) -> None:
        self._write(Event(summary=values, step=iteration))

    def _write(self, event: Event) -> None:
        event.wall_time = time.time()
        with self._lock:
            self._records.write(event.SerializeToString())
            self._records.flush()

    def __exit__(self, *exception: object) -> None:
        with suppress(OSError):  # a record that could not be written has been reported
            self._file.close()
