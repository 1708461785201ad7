"""No CUDA graph is captured while a DALI pipeline is alive on the device."""

import time
from threading import Thread

import torch
from nvidia.dali import Pipeline

from fastae.device import pipelines

GPU, OTHER = torch.device("cuda", 0), torch.device("cuda", 1)


def open_pipeline():
    """Makes a pipeline that fastae knows nothing of. It is not built, so it needs no GPU."""
    return Pipeline(batch_size=1, num_threads=1, device_id=0)


def is_allowed(device):
    try:
        with pipelines.no_pipelines(device):
            return True
    except RuntimeError as error:
        assert str(device) in str(error)
        return False


def test_a_pipeline_forbids_captures_on_its_device_until_it_is_gone():
    held = [open_pipeline()]
    held.append(held)  # a cycle, as of an error that was raised while the pipeline ran
    assert not is_allowed(GPU) and is_allowed(OTHER)
    del held
    assert is_allowed(GPU)


def test_an_abandoned_pipeline_forbids_captures_while_a_thread_still_runs_it():
    pipeline = open_pipeline()
    pipelines.abandon(pipeline)
    assert pipeline not in [each() for each in Pipeline._pipes]
    assert not is_allowed(GPU)
    del pipeline
    assert is_allowed(GPU)


def test_no_pipeline_is_built_during_a_capture():
    built = []

    def build():
        with pipelines.no_capture():
            built.append(time.monotonic())

    with pipelines.no_pipelines(GPU):
        thread = Thread(target=build)
        thread.start()
        thread.join(0.1)
        assert not built
    thread.join()
    assert built
