"""Broken JPEGs by the thousand: no crash, no hang, no file that is bad and not named.

150 of them in `make test`; `make fuzz` sets FASTAE_FUZZ, the number of them. The same FASTAE_FUZZ_SEED gives
the same files, and a failure names the file, which is kept.
"""

from __future__ import annotations

import json
import os
import queue
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from ..conftest import CELEBA
from .mutate import mutant, variants

NUMBER = int(os.environ.get("FASTAE_FUZZ", "150"))
SEED = int(os.environ.get("FASTAE_FUZZ_SEED", "0"))
TOGETHER = 500
"""Files a process: what one of them does to it is seen soon, and not by the others."""

HANG = 5.0 if "FASTAE_FUZZ" in os.environ else 30.0
"""Seconds a file may take, and a batch of eight; in the short form a busy machine is no failure."""

START = 60.0
"""Seconds that anything else may take on a busy machine: importing PyTorch, the check of all files."""

MOST_MEMORY = 2 << 30
"""Bytes of a process that has all of PyTorch and DALI loaded, which alone is 0.4 GiB."""


@pytest.fixture(scope="module")
def originals(face_paths) -> list[bytes]:
    """Synthetic faces, and CelebA's where the machine has a part of it, in all codings."""
    pictures = face_paths[:4]
    if CELEBA.is_dir():
        pictures = pictures + [str(path) for path in sorted(CELEBA.glob("*.jpg"))[:8]]
    return [variant for path in pictures for variant in variants(Path(path).read_bytes())]


def test_broken_jpegs_neither_crash_nor_hang_and_every_bad_one_is_named(originals, tmp_path, capsys):
    started, outcomes, slowest, memory = time.monotonic(), Counter[str](), 0.0, 0
    for first in range(0, NUMBER, TOGETHER):
        folder = tmp_path / f"{first}"
        folder.mkdir()
        for number in range(first, min(first + TOGETHER, NUMBER)):
            (folder / f"{number:06d}.jpg").write_bytes(mutant(originals, SEED, number))
        outcome = dict.fromkeys((str(path) for path in folder.iterdir()), "decoded")
        unusable, undecodable = set(), set()
        for told, seconds in watched(folder):
            slowest = max(slowest, seconds)
            if told.get("check") == "quick":
                outcome |= told["found"]
                unusable = set(told["unusable"])
            elif told.get("check") == "deep":
                undecodable = set(told["unusable"]) - unusable
            elif "replaced" in told:
                assert told["replaced"] in undecodable
                outcome[told["replaced"]] = f"replaced in training: {told['fault']}"
            elif "peak_memory" in told:
                memory = max(memory, told["peak_memory"])
        outcomes.update(outcome.values())
    assert sum(outcomes.values()) == NUMBER
    assert memory < MOST_MEMORY
    with capsys.disabled():
        if "FASTAE_FUZZ" in os.environ:
            print(
                f"\n{NUMBER:,} broken JPEGs of seed {SEED} in {time.monotonic() - started:.0f} s, "
                f"the slowest {slowest:.2f} s, at most {memory / 2**30:.2f} GiB of memory:"
            )
            for what, count in outcomes.most_common():
                print(f"{count:8,}  {what}")


def watched(folder: Path) -> Iterator[tuple[dict, float]]:
    """A worker's lines, each with the seconds before it. Fails where it dies or hangs, and says at what."""
    with (folder.parent / "errors.txt").open("wb") as errors:
        worker = subprocess.Popen(
            [sys.executable, "-m", "tests.fuzz.worker", folder], stdout=subprocess.PIPE, stderr=errors
        )
    lines: queue.Queue[bytes] = queue.Queue()
    reader = threading.Thread(target=lambda: [*map(lines.put, worker.stdout), lines.put(b"")], daemon=True)
    reader.start()
    last, limit, before = "starting", START, time.monotonic()
    try:
        while True:
            try:
                line = lines.get(timeout=limit)
            except queue.Empty:
                pytest.fail(f"hangs in {last}")
            if not line:
                break
            told = json.loads(line)
            yield told, time.monotonic() - before if limit == HANG else 0.0
            if "at" in told:
                last, limit = f"{told['at']} {told['of']}", HANG if told["of"] else START
            before = time.monotonic()
        code = worker.wait(START)
        said = (folder.parent / "errors.txt").read_text(errors="replace")[-3000:]
        assert code == 0, f"exit code {code} in {last}\n{said}"
    finally:
        worker.kill()
        worker.wait()
