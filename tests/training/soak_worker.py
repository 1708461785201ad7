"""A run of many simulated seconds, one an iteration: prints the process's memory as it goes, as JSON.

python -m tests.soak_worker DATA OUT SECONDS CHECKPOINT_MINUTES
"""

import json
import sys
from pathlib import Path
from types import SimpleNamespace

from fastae.config import TrainConfig
from fastae.training import step_timer as meters
from fastae.training import trainer as loop
from fastae.training.runner import train
from fastae.training.step import TrainingStep
from fastae.utils.console import console

PAGE = 4096


def main(data, out, seconds, minutes):
    now, memory = [0.0], []
    clock = SimpleNamespace(monotonic=lambda: now[0], perf_counter=lambda: now[0])
    loop.time = meters.time = clock
    step = TrainingStep._step

    def one_second(self, *inputs):
        now[0] += 1.0
        if now[0] % (seconds // 20) == 0:
            memory.append(PAGE * int(Path("/proc/self/statm").read_text().split()[1]))
        return step(self, *inputs)

    TrainingStep._step = one_second
    console.quiet = True
    config = TrainConfig(
        data=data, out=out, iterations=seconds, batch_size=2, image_size=16, latent=4, compile=False,
        loader="dali", log_every=10, eval_every=100, checkpoint_minutes=minutes, gpu_sample_hz=10,
    )  # fmt: skip
    train(config)
    print(json.dumps(memory))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), float(sys.argv[4]))
