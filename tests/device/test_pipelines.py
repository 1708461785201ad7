"""No CUDA graph is captured while a DALI pipeline is alive on the device."""

import time
from threading import Thread

import torch
from nvidia.dali import Pipeline

from fastae.device import pipelines
from fastae.runs.folder import new_run
from fastae.training.runner import open_trainer
from fastae.training.session import open_session
from fastae.training.signals import StopSignals

from ..helpers import small_config

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


def test_a_run_that_has_ended_leaves_no_pipeline_though_its_trainer_is_kept(face_folder, tmp_path):
    """Otherwise the next run of a sweep or a notebook could not be captured."""

    def alive():
        return {each() for each in Pipeline._pipes} - {None}

    config = small_config(face_folder, loader="dali", iterations=1)
    before = alive()
    with new_run(tmp_path / "run", config.loss) as run, StopSignals() as stops:
        with open_trainer(open_session(config), config, run, stops) as trainer:
            trainer.advance()
            assert alive() > before
        assert trainer and alive() == before


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
