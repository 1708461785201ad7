"""The monitor of a run, which samples GPUs and host while the loop trains, and reports when the run ends.

It cannot harm the run: if something fails, one line is logged, and the run continues.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import pynvml
import torch

from fastae.device.nvml import Device, NvmlError, gpu_of_cuda, offered, open_nvml
from fastae.monitor.diagnosis import diagnose
from fastae.monitor.files import write_report
from fastae.monitor.gpu_reader import GpuReader
from fastae.monitor.host import HostReader, family
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
    devices = range(local_ranks()) if ranks > 1 else [device.index or 0]
    return [str(torch.cuda.get_device_properties(index).uuid) for index in devices]


def readers_of(library: Any, devices: Sequence[Device], own: Sequence[int]) -> list[GpuReader]:
    """Makes a reader for each GPU. The prefixes of several GPUs contain nvidia-smi's index.

    `own` are the run's process ids.
    """
    if len(devices) == 1:
        return [GpuReader(library, devices[0], prefix="gpu", own=own)]
    indices = [gpu.index for gpu, _ in devices]
    if len(set(indices)) < len(indices):  # MIG slices have the index of their board
        indices = list(range(len(devices)))
    return [
        GpuReader(library, device, prefix=f"gpu{index}", own=own)
        for device, index in zip(devices, indices, strict=True)
    ]


class Monitor(AbstractContextManager):
    """Samples while the block runs, then writes the report, and logs one line and any hardware troubles.

    It also marks the phases as NVTX ranges, even if `hz` is 0.

    Args:
        folder: the run's folder, for the report.
        hz: the number of samples per second; 0 for no report.
        gpus: the UUIDs of the run's GPUs, from `local_gpus`.
        info: the properties of the run.
        library: NVML.
    """

    def __init__(
        self, folder: Path, hz: float, gpus: list[str], info: RunInfo, library: Any = pynvml
    ) -> None:
        self._folder, self._hz, self._uuids, self._info, self._library = folder, hz, gpus, info, library
        self._phase: Phase | None = None
        self._range: int | None = None
        self._poller: Poller | None = None
        self._readers: list[GpuReader] = []
        self._missing = ""

    def enter(self, phase: Phase) -> None:
        """Starts a phase, unless it is the current one."""
        if phase is not self._phase:
            self._mark(phase)
            if self._poller:
                self._poller.enter(phase)

    def _mark(self, phase: Phase | None) -> None:
        """Ends the NVTX range of the current phase, and starts one for this phase."""
        self._phase = phase
        if torch.version.cuda is not None:  # without CUDA, PyTorch has no NVTX
            if self._range is not None:
                torch.cuda.nvtx.range_end(self._range)
            self._range = torch.cuda.nvtx.range_start(phase) if phase else None

    def record(self, images: float, seconds: float, data_wait: float, device_wait: float) -> None:
        """Records the loop's figures since the last call.

        Args:
            images: the number of images trained on.
            seconds: the time since the last call.
            data_wait: the seconds in which the device had no batch.
            device_wait: the seconds in which the host waited for the device.
        """
        if self._poller and seconds > 0:
            figures = {"images_per_second": images / seconds, "data_wait": 100 * data_wait / seconds}
            if self._info.on_gpu:
                figures["device_wait"] = 100 * device_wait / seconds
            self._poller.record(**figures, seconds=seconds)

    def means(self) -> dict[str, float]:
        """The mean of each metric since the last call, by TensorBoard tag."""
        return self._poller.means() if self._poller else {}

    def __enter__(self) -> Monitor:
        with self._harmless():
            if self._hz:
                self._start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        self._mark(None)
        with self._harmless():
            if self._poller:
                self._poller.stop()
                if self._poller.failure:  # NVML stays open: closing it during a reading hangs or crashes
                    log(f"monitor   ended early: {self._poller.failure}", "yellow")
                elif self._uuids:
                    for reader in self._readers:
                        reader.close()
                    offered(self._library.nvmlShutdown)
                if kind is None or (self._folder / "config.json").exists():  # else the run has not begun
                    self._report(self._poller.recording())

    @contextmanager
    def _harmless(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # the run matters more than its report
            log(f"monitor   no usage report: {error}")

    def _start(self) -> None:
        # If ranks share a run, torchrun is the parent of the processes of all local ranks.
        own = family(os.getppid()) if self._info.ranks > 1 else (os.getpid(),)
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
        write_report(report, recording, self._folder, title=title)
        for trouble in troubles(summary):
            log(f"trouble   {trouble}", "yellow")
        log(f"usage     {line}; table and plot: fastae gpu {shell_word(self._folder)}")
