"""A long run in simulated time: an iteration takes a second, and checkpoints follow this clock."""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from fastae.runs import saver
from fastae.training import clock as clock_module
from fastae.training import trainer
from fastae.training.runner import train
from fastae.training.step.step import TrainingStep

from ..commands import curve
from ..helpers import small_config

SECONDS, MINUTES = (20_000, 10.0) if os.environ.get("FASTAE_SOAK") else (40, 0.15)
PAGE = 4096


def test_memory_does_not_grow_and_checkpoints_follow_the_clock(face_folder, tmp_path):
    """The run has a process of its own, so that only its memory is measured."""
    command = [sys.executable, "-m", "tests.training.test_soak", face_folder, tmp_path / "run"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    memory, saved = json.loads(result.stdout.splitlines()[-1])
    # Each twentieth contains epochs, evaluations and logs. The first quarter is the warm-up.
    settled, late = memory[5:10], memory[-5:]
    assert max(late) < max(settled) + 32 * 2**20, [size >> 20 for size in memory]
    steps = [step for step, _ in curve(tmp_path / "run")]
    assert steps == sorted(set(steps)) and steps[-1] == SECONDS
    assert saved[-1] == SECONDS and len(saved) >= 4
    # A checkpoint follows the step during which it becomes due.
    assert saved[1] - saved[0] == pytest.approx(60 * MINUTES, abs=2)
    print(f"{SECONDS} simulated seconds: memory {memory[5] >> 20} -> {memory[-1] >> 20} MiB")


def main(data, out):
    """Prints the process's memory as it trains, and the iterations that it saved, as JSON."""
    now, memory, saved = [0.0], [], []
    clock = SimpleNamespace(monotonic=lambda: now[0], perf_counter=lambda: now[0])
    trainer.time = clock_module.time = clock
    step, save = TrainingStep._step, saver.Saver.save

    def one_second(self, *inputs):
        now[0] += 1.0
        if now[0] % (SECONDS // 20) == 0:
            memory.append(PAGE * int(Path("/proc/self/statm").read_text().split()[1]))
        return step(self, *inputs)

    def noted(self, found, weights=None):
        saved.append(found.iteration)
        save(self, found, weights)

    TrainingStep._step, saver.Saver.save = one_second, noted
    train(
        small_config(
            data, out, iterations=SECONDS, batch_size=2, image_size=16, latent=4, loader="dali", log_every=10,
            eval_every=20, checkpoint_minutes=MINUTES, gpu_sample_hz=10,
        )
    )  # fmt: skip
    print(json.dumps([memory, saved]))


if __name__ == "__main__":
    main(*sys.argv[1:])
