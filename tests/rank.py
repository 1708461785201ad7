"""A rank of narrow fastae: the second gets a SIGTERM in iteration 3, and each writes OUT.RANK at its end."""

import os
import signal

import torch

from fastae.training.trainer import Trainer

from . import narrow  # noqa: F401 (changes the model)

advance, close = Trainer.advance, Trainer._close


def advance_or_stop(trainer):
    if trainer.iteration == 2 and os.environ.get("RANK") == "1":
        os.kill(os.getpid(), signal.SIGTERM)
    return advance(trainer)


def close_and_save(trainer, end):
    torch.save(trainer._step.model.state_dict(), f"{trainer._run.path}.{os.environ.get('RANK', 0)}")
    return close(trainer, end)


Trainer.advance, Trainer._close = advance_or_stop, close_and_save

if __name__ == "__main__":
    from fastae.__main__ import main

    main()
