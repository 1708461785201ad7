"""Long running, in simulated time: one second an iteration, checkpoints by that clock."""

import json
import os
import subprocess
import sys

import pytest

from ..commands import curve

SECONDS, MINUTES = (20_000, 10) if os.environ.get("FASTAE_SOAK") else (240, 1)


def test_memory_is_flat_and_checkpoints_come_by_the_clock(face_folder, tmp_path):
    out = tmp_path / "run"
    result = subprocess.run(
        [sys.executable, "-m", "tests.training.soak_worker", face_folder, out, str(SECONDS), str(MINUTES)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    memory = json.loads(result.stdout.splitlines()[-1])
    # Epochs, evaluations and logs fall into every twentieth; the first quarter is warming up.
    settled, late = memory[5:10], memory[-5:]
    assert max(late) < max(settled) + 32 * 2**20, [size >> 20 for size in memory]
    steps = [step for step, _ in curve(out)]
    assert steps == sorted(set(steps)) and steps[-1] == SECONDS
    saved = sorted(int(path.stem) for path in (out / "checkpoints").glob("0*.pt"))
    assert saved[-1] == SECONDS and len(saved) == 3
    # By the clock, each as late as the step in which its time comes.
    assert saved[1] - saved[0] == pytest.approx(60 * MINUTES, abs=2)
    print(f"{SECONDS} simulated seconds: memory {memory[5] >> 20} -> {memory[-1] >> 20} MiB")
