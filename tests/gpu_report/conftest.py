import os
import time

import pytest

from fastae.gpu.host import HostReader
from fastae.gpu.metrics import GpuReader
from fastae.gpu.nvml import all_gpus, open_nvml
from fastae.gpu.sampler import TRAIN, Sampler

from .recorded_nvml import Card, RecordedNvml


@pytest.fixture
def record():
    """Samples a series of states through the real sampler, as a loop in training would."""

    def run(states, *, wait_share=None, images=0, seconds=0.25, hz=80, readers=None):
        library = open_nvml(RecordedNvml(Card(list(states))))
        readers = readers or [GpuReader(library, gpu) for gpu in all_gpus(library)]
        sampler = Sampler(readers, HostReader(os.getpid()), hz)
        sampler.start()
        sampler.enter(TRAIN)
        time.sleep(seconds)
        if wait_share is not None:
            sampler.record(images, seconds, wait_share)
            time.sleep(2 / hz)
        sampler.stop()
        return sampler.recording()

    return run
