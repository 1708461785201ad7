"""A process that may die: puts a folder of broken JPEGs through the check and through the DALI loader.

Prints a line that names the files before anything that might crash or hang, and in the end, as JSON, what
became of each file. Called as `python -m tests.fuzz.worker FOLDER`.
"""

from __future__ import annotations

import json
import sys
import time

import torch

from fastae.data import CropResize, open_loader
from fastae.data.check import check
from fastae.data.folder import find_jpegs
from fastae.data.jpeg import inspect
from fastae.data.loader import open_decoder
from fastae.utils.memory import peak_bytes

BATCH = 8


def main(folder: str) -> None:
    times = [time.monotonic()]

    def begin(what: str) -> None:
        times.append(time.monotonic())
        print(what, flush=True)

    paths = find_jpegs(folder)
    outcome = dict.fromkeys(paths, "decoded")
    for path in paths:
        begin(f"the quick check of {path}")
        inspect(path)
    quick = check(folder, paths, crop=None, records=None)
    outcome |= {each.path: each.fault.value for each in quick.faults}
    replaced = {}
    loader = open_loader(
        quick.usable, kind="dali", batch_size=BATCH, device="cpu", seed=0, compiled=False, cache=None,
        on_replaced=lambda bad, _: replaced.update({bad.path: bad.fault.value}),
    )  # fmt: skip
    batches = loader.batches()
    for iteration in range(-(-len(quick.usable) // BATCH)):
        begin(f"loading {[quick.usable[image] for image in loader.sampler.at(iteration).indices]}")
        batch = next(batches)
        assert torch.isfinite(batch).all() and batch.min() >= 0 and batch.max() <= 1
    slowest = max(
        after - before for before, after in zip(times[len(paths) :], times[len(paths) + 1 :], strict=False)
    )
    begin("the deep check")
    decoder = open_decoder(CropResize(), torch.device("cpu"), threads=None, compiled=False)
    deep = check(folder, paths, crop=None, records=None, decoder=decoder)
    assert replaced.keys() == {each.path for each in deep.unusable} - {each.path for each in quick.unusable}
    outcome |= {path: f"replaced in training: {fault}" for path, fault in replaced.items()}
    print(json.dumps({"outcome": outcome, "slowest": slowest, "peak_memory": peak_bytes()}))


if __name__ == "__main__":
    main(sys.argv[1])
