"""Broken JPEGs by the thousand: no crash, no hang, no file that is bad and not named.

150 of them in `make test`; `make fuzz` sets FASTAE_FUZZ, their number. The same FASTAE_FUZZ_SEED gives the
same files, and a failure names the file, which is kept.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from ..conftest import CELEBA
from .mutate import mutant, variants

NUMBER = int(os.environ.get("FASTAE_FUZZ", "150"))
SEED = int(os.environ.get("FASTAE_FUZZ_SEED", "0"))
TOGETHER = 500
"""Files per process: what one of them does to it shows soon, and does not hide the others."""

HANG = 5.0
"""Seconds that a batch of eight may take; asserted in the long form alone."""

MOST_MEMORY = 2 << 30
"""Bytes of a process that has all of PyTorch and DALI loaded, which alone is 0.4 GiB."""


@pytest.fixture(scope="module")
def originals(face_paths) -> list[bytes]:
    """Synthetic faces, and CelebA's if the machine has a part of it, in all codings."""
    pictures = face_paths[:4]
    if CELEBA.is_dir():
        pictures = pictures + [str(path) for path in sorted(CELEBA.glob("*.jpg"))[:8]]
    return [variant for path in pictures for variant in variants(Path(path).read_bytes())]


def test_broken_jpegs_neither_crash_nor_hang_and_every_bad_one_is_named(originals, tmp_path, capsys):
    outcomes, slowest = Counter[str](), 0.0
    for first in range(0, NUMBER, TOGETHER):
        folder = tmp_path / f"{first}"
        folder.mkdir()
        for number in range(first, min(first + TOGETHER, NUMBER)):
            (folder / f"{number:06d}.jpg").write_bytes(mutant(originals, SEED, number))
        result = work_on(folder)
        outcomes.update(result["outcome"].values())
        slowest = max(slowest, result["slowest"])
        assert result["peak_memory"] < MOST_MEMORY
    assert sum(outcomes.values()) == NUMBER
    if "FASTAE_FUZZ" in os.environ:
        with capsys.disabled():
            print(f"\n{NUMBER:,} broken JPEGs of seed {SEED}, the slowest batch {slowest:.2f} s:")
            print("".join(f"{count:8,}  {what}\n" for what, count in outcomes.most_common()))
        assert slowest < HANG


def work_on(folder: Path) -> dict:
    """What the worker reports; fails if it crashes or hangs, and names the file."""
    with (folder.parent / "out.txt").open("w+") as out, (folder.parent / "err.txt").open("w+") as errors:
        command = [sys.executable, "-m", "tests.fuzz.worker", folder]
        try:
            code = subprocess.run(command, stdout=out, stderr=errors, timeout=600, check=False).returncode
        except subprocess.TimeoutExpired:
            code = "hang"
        out.seek(0)
        errors.seek(0)
        last = out.read().splitlines()[-1:]
        assert code == 0, f"{code} in {last}\n{errors.read()[-3000:]}"
    return json.loads(last[0])
