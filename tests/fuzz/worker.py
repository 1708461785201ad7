"""A process that may die: puts a folder of broken JPEGs through the check and through the DALI loader.

One JSON line for each thing done, and before each thing that might crash or hang a line that names it, so
that whoever reads them knows what it was. Called as `python -m tests.fuzz.worker FOLDER`.
"""

from __future__ import annotations

import itertools
import json
import sys

import torch

from fastae.data import CropResize, Tuning, open_loader
from fastae.data.check import check
from fastae.data.decode import open_decoder
from fastae.data.folder import find_jpegs
from fastae.data.jpeg import inspect
from fastae.data.loader import DaliLoader
from fastae.utils.memory import peak_bytes

BATCH = 8


def tell(**what: object) -> None:
    print(json.dumps(what), flush=True)


def main(folder: str) -> None:
    paths = find_jpegs(folder)
    for path in paths:
        tell(at="the quick check", of=[path])
        inspect(path)
    tell(at="fastae check", of=[])
    decoder = open_decoder(CropResize(), torch.device("cpu"), Tuning(compiled=False))
    for deep in (False, True):
        found = check(folder, paths, crop=None, records=None, decoder=decoder if deep else None)
        tell(check="deep" if deep else "quick", found={f.path: f.fault.value for f in found.findings},
             unusable=[f.path for f in found.unusable])  # fmt: skip
    usable = check(folder, paths, crop=None, records=None).usable
    for path in usable:
        tell(at="the deep check", of=[path])
        list(decoder.faults([path]))
    tell(at="opening the loader", of=[])
    loader = open_loader(
        usable, kind="dali", batch_size=BATCH, device="cpu", seed=0, cache=False,
        tuning=Tuning(compiled=False),
        on_replaced=lambda bad, _: tell(replaced=bad.path, fault=bad.fault.value),
    )  # fmt: skip
    assert isinstance(loader, DaliLoader)
    batches, seen = loader.batches(), set[int]()
    for iteration in itertools.count():
        if len(seen) == len(usable):
            break
        images = loader.sampler.at(iteration).indices.tolist()
        tell(at="the loader", of=[usable[image] for image in images])
        batch = next(batches)
        assert torch.isfinite(batch).all() and batch.min() >= 0 and batch.max() <= 1
        seen.update(images)
    tell(peak_memory=peak_bytes())


if __name__ == "__main__":
    main(sys.argv[1])
