import os
import time

import pytest

from fastae.monitor.gpu_reader import GpuReader
from fastae.monitor.host import HostReader
from fastae.monitor.nvml import all_gpus, open_nvml
from fastae.monitor.poller import TRAIN, Poller

from .recorded_nvml import Card, RecordedNvml


@pytest.fixture
def record():
    """Samples a series of states through the real sampler, as a loop in training would."""

    def run(states, *, wait_share=None, images=0, seconds=0.25, hz=80, readers=None):
        library = open_nvml(RecordedNvml(Card(list(states))))
        readers = readers or [GpuReader(library, gpu) for gpu in all_gpus(library)]
        poller = Poller(readers, HostReader(os.getpid()), hz)
        poller.start()
        poller.enter(TRAIN)
        time.sleep(seconds)
        if wait_share is not None:
            poller.record(images, seconds, wait_share)
            time.sleep(2 / hz)
        poller.stop()
        return poller.recording()

    return run
