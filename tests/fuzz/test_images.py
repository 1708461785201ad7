"""Broken JPEGs and PNGs by the thousand: no crash, no hang, no file that is bad and not named.

150 of them in `make test`; `make fuzz` sets FASTAE_FUZZ, their number. The same FASTAE_FUZZ_SEED gives the
same files, and a failure names the file, which is kept.
"""

import json
import os
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import torch

from fastae.data import CropResize, Tuning, open_loader
from fastae.data.files.check import check_folder
from fastae.data.files.inspect import inspect
from fastae.data.files.search import find_files
from fastae.data.loaders.decode import open_decoder
from fastae.utils.limits import peak_bytes

from ..helpers import CELEBA
from .mutate import mutant, variants

NUMBER = int(os.environ.get("FASTAE_FUZZ", "150"))
SEED = int(os.environ.get("FASTAE_FUZZ_SEED", "0"))
TOGETHER = 500
"""Files per process: what one of them does to it shows soon, and does not hide the others."""

BATCH = 8
HANG = 5.0
"""Seconds that a batch may take; asserted in the long form alone."""

MOST_MEMORY = 2 << 30
"""Bytes of a process that has all of PyTorch and DALI loaded, which alone is 0.4 GiB."""


def test_broken_images_neither_crash_nor_hang_and_every_bad_one_is_named(face_paths, tmp_path, capsys):
    pictures = face_paths[:4] + sorted(map(str, CELEBA.glob("*.jpg")))[:8]
    originals = [variant for path in pictures for variant in variants(Path(path).read_bytes())]
    outcomes, slowest = Counter(), 0.0
    for first in range(0, NUMBER, TOGETHER):
        folder = tmp_path / f"{first}"
        folder.mkdir()
        for number in range(first, min(first + TOGETHER, NUMBER)):
            (folder / f"{number:06d}.jpg").write_bytes(mutant(originals, SEED, number))
        command = [sys.executable, "-m", "tests.fuzz.test_images", folder]
        with (tmp_path / "printed.txt").open("w") as printed:
            try:
                code = subprocess.run(
                    command, stdout=printed, stderr=subprocess.STDOUT, timeout=600
                ).returncode
            except subprocess.TimeoutExpired:
                code = "hang"
        lines = (tmp_path / "printed.txt").read_text(errors="replace").splitlines()
        assert code == 0, lines[-30:]
        (result,) = [json.loads(line) for line in lines if line.startswith('{"outcome"')]
        outcomes.update(result["outcome"].values())
        slowest = max(slowest, result["slowest"])
        assert result["peak_memory"] < MOST_MEMORY
    assert sum(outcomes.values()) == NUMBER
    if "FASTAE_FUZZ" in os.environ:
        with capsys.disabled():
            print(f"\n{NUMBER:,} broken images of seed {SEED}, the slowest batch {slowest:.2f} s:")
            print("".join(f"{count:8,}  {what}\n" for what, count in outcomes.most_common()))
        assert slowest < HANG


def work(folder: str) -> None:
    """Puts a folder of broken images through the check and the DALI loader, in a process that may die.

    Prints a line that names the files before anything that might crash or hang, and in the end, as JSON, what
    became of each file.
    """
    paths, slowest = find_files(folder), 0.0
    for path in paths:
        print(f"the quick check of {path}", flush=True)
        inspect(path)
    quick = check_folder(folder, crop=None, records=None)
    replaced = {}
    loader = open_loader(
        quick.usable, kind="dali", batch_size=BATCH, device="cpu", seed=0, cache=False,
        tuning=Tuning(compiled=False),
        on_replaced=lambda bad, _: replaced.update({bad.path: bad.fault.value}),
    )  # fmt: skip
    batches = loader.batches()
    for iteration in range(-(-len(quick.usable) // BATCH)):
        print(f"loading {[quick.usable[image] for image in loader.indices(iteration)]}", flush=True)
        started = time.monotonic()
        batch = next(batches)
        slowest = max(slowest, time.monotonic() - started)
        assert torch.isfinite(batch).all() and batch.min() >= 0 and batch.max() <= 1
    print("the deep check", flush=True)
    decoder = open_decoder(CropResize(), torch.device("cpu"), Tuning(compiled=False))
    deep = check_folder(
        folder, crop=None, records=None, find_faults=lambda check: decoder.faults(check.usable)
    )
    assert replaced.keys() == {each.path for each in deep.unusable} - {each.path for each in quick.unusable}
    outcome = dict.fromkeys(paths, "decoded") | {each.path: each.fault.value for each in quick.faults}
    outcome |= {path: f"replaced in training: {fault}" for path, fault in replaced.items()}
    print(json.dumps({"outcome": outcome, "slowest": slowest, "peak_memory": peak_bytes()}))


if __name__ == "__main__":
    work(sys.argv[1])
