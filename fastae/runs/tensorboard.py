"""What a run shows in TensorBoard: scalars, image grids, settings and hyperparameters.

The protocol buffers are PyTorch's, the records TensorBoard's; they are written from the calling thread. The
thread of PyTorch's SummaryWriter would print a traceback when the disk is full; here that is an OSError.
A resumed run writes a new file that begins with a restart at its iteration, by which TensorBoard drops the
points that the earlier files hold beyond it (SummaryWriter's `purge_step`).
"""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from collections.abc import Mapping, Sequence
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
"""The first record of each file: its format."""


class TensorBoardWriter(AbstractContextManager):
    """Appends to a new event file in `folder`, from any thread; methods raise OSError.

    start: the iteration that the run continues from; 0 for a new run.
    """

    def __init__(self, folder: Path, start: int = 0) -> None:
        self.name = f"events.out.tfevents.{time.time_ns():020d}.{socket.gethostname()}.{os.getpid()}"
        """Of the event file."""
        self._file = open_own(folder / self.name, "x")
        self._records = RecordWriter(self._file)
        self._lock = threading.Lock()
        self._write(Event(file_version=VERSION))
        self._write(Event(session_log=SessionLog(status=SessionLog.START), step=start + 1 if start else 0))

    def scalars(self, iteration: int, values: Mapping[str, float]) -> None:
        """By tag; a TensorBoard that is open on the folder sees them when this returns."""
        for tag, value in values.items():
            self._summary(summary.scalar(tag, value), iteration)

    def image(self, iteration: int, tag: str, png: bytes, shape: tuple[int, int]) -> None:
        """An encoded PNG of `shape` (height, width)."""
        image = Summary.Image(height=shape[0], width=shape[1], colorspace=3, encoded_image_string=png)
        self._summary(Summary(value=[Summary.Value(tag=tag, image=image)]), iteration)

    def settings(self, iteration: int, values: Mapping[str, Any]) -> None:
        """A table under TEXT, one row per setting."""
        rows = (
            f"| {name} | {printable(value) if isinstance(value, str) else json.dumps(value)} |"
            for name, value in values.items()
        )
        table = "\n".join(["| setting | value |", "|---|---|", *rows])
        self._summary(summary.text("config", table), iteration)

    def hyperparameters(self, settings: Mapping[str, Any], metrics: Sequence[str]) -> None:
        """The run's row under HPARAMS; `metrics` are the tags of the scalars beside them."""
        for part in summary.hparams(dict(settings), dict.fromkeys(metrics, 0.0)):
            self._summary(part, 0)

    def layout(self, charts: Mapping[str, Sequence[str]]) -> None:
        """The scalars that share a chart under CUSTOM SCALARS: title -> tags."""
        parts = {title: ["Multiline", list(tags)] for title, tags in charts.items()}
        self._summary(summary.custom_scalars({"train and held-out": parts}), 0)

    def sync(self) -> None:
        """Returns when all records are on the disk."""
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
