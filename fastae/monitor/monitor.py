"""The monitor of a run, which samples GPUs and host while the loop trains, and reports when the run ends.

It cannot harm the run: if something fails, one line is logged, and the run continues.
"""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import pynvml
import torch

from fastae.device.gpu_reader import GpuReader, Pids
from fastae.device.nvml import Device, NvmlError, gpu_of_cuda, offered, open_nvml
from fastae.monitor.diagnosis import diagnose
from fastae.monitor.files import write_report
from fastae.monitor.host import Family, HostReader
from fastae.monitor.loop_timer import Timing
from fastae.monitor.poller import Poller
from fastae.monitor.recording import Phase, Recording
from fastae.monitor.summary import RunInfo, UsageReport, summarize
from fastae.monitor.text import headline, troubles
from fastae.utils.console import log, printable
from fastae.utils.limits import count_cores
from fastae.utils.paths import shell_word
from fastae.utils.ranks import local_ranks


def local_gpus(device: torch.device, ranks: int = 1) -> list[str]:
    """The UUIDs, without a prefix, of a run's GPUs on this machine; none for a CPU.

    These are the GPU `device`, or, if torchrun started several ranks for this run, the GPUs of all local
    ranks.
    """
    if device.type != "cuda":
        return []
    count = min(local_ranks(), torch.cuda.device_count()) if ranks > 1 else 1
    devices = range(count) if count > 1 else [device.index]  # None for the current one
    return [str(torch.cuda.get_device_properties(index).uuid) for index in devices]


def root_process(ranks: int) -> int:
    """The process whose descendants are a run's: of several ranks that were launched, the launcher."""
    is_launched = "LOCAL_WORLD_SIZE" in os.environ or multiprocessing.parent_process() is not None
    return os.getppid() if ranks > 1 and is_launched else os.getpid()


def readers_of(library: Any, devices: Sequence[Device], own: Pids) -> list[GpuReader]:
    """Makes a reader for each GPU. The prefixes of several GPUs contain nvidia-smi's index.

    `own` returns the ids of the run's processes.
    """
    indices: Sequence[object] = [gpu.index for gpu, _ in devices] if len(devices) > 1 else [""]
    if len(set(indices)) < len(devices):  # MIG slices have the index of their board
        indices = range(len(devices))
    pairs = zip(devices, indices, strict=False)
    return [GpuReader(library, device, f"gpu{index}", own) for device, index in pairs]


class Monitor(AbstractContextManager):
    """Samples while the block runs, then writes the report, and logs one line and any hardware troubles.

    Args:
        folder: the run's folder, for the report.
        hz: the number of samples per second; 0 for no report.
        gpus: the UUIDs of the run's GPUs, from `local_gpus`.
        info: the properties of the run.
        nvml: NVML.
    """

    def __init__(self, folder: Path, hz: float, gpus: list[str], info: RunInfo, nvml: Any = pynvml) -> None:
        self._folder, self._hz, self._uuids, self._info, self._library = folder, hz, gpus, info, nvml
        self.phase: Phase | None = None
        self.reports: list[UsageReport] = []
        """The reports of the folder's parts, once this one is written."""
        self._poller: Poller | None = None
        self._readers: list[GpuReader] = []
        self._missing = ""

    def enter(self, phase: Phase) -> None:
        """Starts a phase, unless it is the current one."""
        if phase is not self.phase:
            self.phase = phase
            if self._poller:
                self._poller.enter(phase)

    def record(self, timing: Timing, is_replayed: bool = False) -> None:
        """Records the figures of a window of the loop. Of replayed batches, only the speed is recorded."""
        if not self._poller or not timing.seconds:
            return
        figures = {"replayed": timing.images_per_second}
        if not is_replayed:
            figures = {"images_per_second": timing.images_per_second, "seconds": timing.seconds}
            for name in ("data_wait", "device_wait", "queued"):
                if (share := getattr(timing, f"{name}_share")) is not None:
                    figures[name] = 100 * share
        self._poller.record(figures, timing.ended)

    def means(self) -> dict[str, float]:
        """The mean of each metric since the last call, by TensorBoard tag."""
        return self._poller.means() if self._poller else {}

    def __enter__(self) -> Monitor:
        with self._harmless():
            if self._hz:
                self._start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        has_begun = self.phase not in (None, Phase.COMPILE)
        with self._harmless():
            if self._poller:
                self._poller.stop()
                if self._poller.failure:  # NVML stays open: closing it during a reading hangs or crashes
                    log(f"monitor   ended early: {self._poller.failure}", "yellow")
                elif self._uuids:
                    for reader in self._readers:
                        reader.close()
                    offered(self._library.nvmlShutdown)
                if kind is None or has_begun:  # else the run's folder will be removed
                    self._report(self._poller.recording())

    @contextmanager
    def _harmless(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # the run matters more than its report
            log(f"monitor   no usage report: {error}")

    def _start(self) -> None:
        own = Family(root_process(self._info.ranks))
        self._readers = readers_of(self._library, self._open() if self._uuids else (), own)
        poller = Poller([*self._readers, HostReader(own)], self._hz)
        poller.start()
        self._poller = poller

    def _open(self) -> list[Device]:
        """The run's GPUs that NVML shows."""
        try:
            open_nvml(self._library)
        except NvmlError as error:
            self._missing = str(error)
            return []
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        devices = [gpu_of_cuda(self._library, uuid, visible) for uuid in self._uuids]
        if None in devices:
            self._missing = "NVML does not show the GPU or MIG slice that CUDA uses"
        return [device for device in devices if device]

    def _report(self, recording: Recording) -> None:
        summary = summarize(recording, self._info, count_cores())
        report = UsageReport(summary, diagnose(summary, self._info), self._missing)
        line = headline(report)
        title = printable(f"{self._folder.name}: {line}")
        self.reports = write_report(report, recording, self._folder, title=title)
        for trouble in troubles(summary):
            log(f"trouble   {trouble}", "yellow")
        log(f"usage     {line}; table and advice: fastae gpu {shell_word(self._folder)}")
