"""Lightning and accelerate train with fastae's loader, as docs/python.md shows."""

import os

import numpy as np
import pytest
import torch

from .commands import TORCHRUN, started
from .test_docs import ROOT, blocks, readers_folder  # noqa: F401 (a fixture)

RANK = """
torch.save([loader.indices(1), list(model.parameters())], f"{accelerator.process_index}.pt")
loader.load_state_dict({**loader.state_dict(), "epoch": 0})
accelerator.wait_for_everyone()  # save_state returns while the main rank may still write
accelerator.load_state("accelerated")
assert loader.state_dict()["epoch"] == 1
"""


def example(word):
    (block,) = (block for block in blocks(ROOT / "docs/python.md") if word in block)
    return block


@pytest.mark.usefixtures("readers_folder")
def test_a_lightning_run_resumes_with_the_same_batches():
    """An epoch has four batches. The sanity check takes batches of the validation first."""
    code, _, _ = example("lightning").partition("trainer = ")
    names = {}
    exec(code, names)
    lightning, options = names["lightning"], {"logger": False, "enable_progress_bar": False}

    def fit(steps, checkpoint=None):
        torch.manual_seed(0)
        trainer = lightning.Trainer(max_steps=steps, enable_model_summary=False, **options)
        model = names["Autoencoder"]()
        trainer.fit(model, ckpt_path=checkpoint)
        return trainer, model

    _, straight = fit(8)
    for step in (2, 4, 6):  # within an epoch, after an epoch, in the second epoch
        trainer, _ = fit(step)
        trainer.save_checkpoint("stopped.ckpt")
        trainer, resumed = fit(8, "stopped.ckpt")
        assert "error" in trainer.callback_metrics
        assert all(map(torch.equal, resumed.parameters(), straight.parameters())), step


@pytest.mark.skipif(not os.environ.get("FASTAE_SOAK"), reason="runs weekly (FASTAE_SOAK=1)")
@pytest.mark.usefixtures("readers_folder")
def test_two_ranks_of_accelerate_share_each_batch_and_have_the_same_weights(tmp_path):
    (tmp_path / "script.py").write_text(example("accelerate") + RANK)
    with started("script.py", command=TORCHRUN, cwd=tmp_path, ACCELERATE_USE_CPU="1") as process:
        _, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors[-2000:]
    (ours, weights), (theirs, same) = (
        torch.load(tmp_path / f"{rank}.pt", weights_only=False) for rank in (0, 1)
    )
    assert all(map(torch.equal, weights, same))
    names = {"__name__": "__main__"}
    exec(example("accelerate"), names)
    assert np.array_equal(names["loader"].indices(1), [*ours, *theirs])
    for one, other in zip(names["model"].parameters(), weights, strict=True):
        assert torch.allclose(one, other, atol=1e-5)
