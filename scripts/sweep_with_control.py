"""Trains the runs that docs/results.md plans: the six losses and a control, with three seeds.

    python -m scripts.sweep_with_control CELEBA OUT

The control, `pixel_control`, is `pixel_mse` with eps times 1.001. Its difference from `pixel_mse` shows
how far two runs drift apart that have the same loss, weights and batches. Seeds are trained one after the
other, so that each seed is a complete block. If it is stopped, the same command resumes it.
"""

from __future__ import annotations

from pathlib import Path

import click
from torch import Tensor

from fastae.config import TrainConfig
from fastae.errors import FastaeError, Stopped
from fastae.experiment.losses import LOSSES, squared_error
from fastae.sweep.sweep import run_sweep

EPS_FACTOR = 1.001
COPIED, CONTROL = "pixel_mse", "pixel_control"
SEEDS = 3


def control(reconstruction: Tensor, images: Tensor) -> Tensor:
    """The squared error / EPS_FACTOR. For Adam, this is the squared error with eps * EPS_FACTOR."""
    return squared_error(reconstruction, images) / EPS_FACTOR


def settings(data: Path) -> TrainConfig:
    """Returns what all runs on the images in `data` have in common."""
    return TrainConfig(
        data=str(data),
        image_size=64,
        batch_size=32,
        compile=True,
        iterations=2_000,
        log_every=10,
        eval_every=100,
        eval_images=2_000,
        keep=1,
    )


@click.command()
@click.argument("data", type=click.Path(path_type=Path))
@click.argument("out", type=click.Path(path_type=Path))
def main(data: Path, out: Path) -> None:
    """Train the six losses and the control on the images in DATA, in the sweep's folder OUT."""
    try:
        names = [*LOSSES, CONTROL]
        run_sweep(settings(data), names, losses={"control": control}, repeats=SEEDS, out=out)
    except Stopped as stopped:
        raise click.ClickException(f"stopped by {stopped.caught.name}; the same command resumes it") from None
    except FastaeError as error:
        raise click.UsageError(str(error)) from None


if __name__ == "__main__":
    main()
