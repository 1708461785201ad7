"""Every peer does fastae's work: the same images, sampler and parameters give nearly the same batches."""

from pathlib import Path

import numpy as np
import pytest

from benchmarks import peers
from benchmarks.measure import isolated
from fastae.data import Tuning, open_loader
from fastae.data.loaders.sampler import Sampler
from fastae.experiment.augment import Augmentation

# Pillow rounds to bytes before the colours; TensorFlow and FFCV decode with a faster, coarser transform, by
# which single pixels at sharp edges differ more.
TOLERANCE = {"Pillow + DataLoader": 2 / 255, "torchvision": 0.1 / 255, "tf.data": 16 / 255, "FFCV": 16 / 255}
LIMIT = 120


@pytest.mark.parametrize("peer", peers.PEERS)
def test_a_peers_batches_are_fastaes(peer, face_paths, tmp_path):
    if why := peers.missing(peer):
        pytest.skip(why)
    tuning = Tuning(compiled=False)
    loader = open_loader(face_paths, kind="dali", batch_size=8, device="cpu", seed=0, tuning=tuning)
    ours = loader.batches()
    arguments = {"peer": peer, "paths": face_paths, "scratch": str(tmp_path)}
    # In a process of its own: a peer whose thread dies would wait for ever.
    saved = isolated("tests.benchmarks.test_peers:save_batches", arguments, print, LIMIT)
    for theirs in np.load(saved["file"]):
        expected = next(ours).permute(0, 2, 3, 1).numpy()
        assert theirs.shape == expected.shape and theirs.dtype == np.float32
        difference = np.abs(theirs - expected)
        assert difference.max() <= TOLERANCE[peer]
        assert difference.mean() <= 1.5 / 255
        assert np.quantile(difference, 0.99) <= 4 / 255


def save_batches(peer, paths, scratch):
    """The peer's first three batches in a file."""
    sampler = Sampler(len(paths), 8, 0, Augmentation())
    file = f"{scratch}/batches.npy"
    np.save(file, peers.first_batches(peer, paths, sampler, Path(scratch), 3))
    return {"file": file}


def test_a_package_that_does_not_import_is_absent_with_its_reason(tmp_path, monkeypatch):
    (tmp_path / "misfit.py").write_text("raise RuntimeError('operator misfit::nms does not exist\\nhint')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(peers.PEERS, "misfit", peers.Peer("misfit", peers.pillow))
    monkeypatch.setitem(peers.PEERS, "nowhere", peers.Peer("nowhere.inner", peers.pillow))
    assert "RuntimeError: operator misfit::nms does not exist" in peers.missing("misfit")
    assert "pip install '.[peers]'" in peers.missing("nowhere")
