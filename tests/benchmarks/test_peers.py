"""Every peer does fastae's work: the same images, sampler and parameters give nearly the same batches."""

import multiprocessing

import numpy as np
import pytest

from benchmarks import peers
from fastae.augment import Augmentation
from fastae.data import Tuning, open_loader
from fastae.data.loaders.sampler import Sampler

# Pillow rounds to bytes before the colours; TensorFlow and FFCV decode with a faster, coarser transform, by
# which single pixels at sharp edges differ more.
TOLERANCE = {
    "Pillow + DataLoader": 2 / 255,
    "torchvision": 0.1 / 255,
    "tf.data": 16 / 255,
    "FFCV": 16 / 255,
}
LIMIT = 120


@pytest.mark.parametrize("peer", peers.PEERS)
def test_a_peers_batches_are_fastaes(peer, face_paths, tmp_path):
    if why := peers.missing(peer):
        pytest.skip(why)
    sampler = Sampler(len(face_paths), 8, 0, Augmentation())
    tuning = Tuning(compiled=False)
    loader = open_loader(face_paths, kind="dali", batch_size=8, device="cpu", seed=0, tuning=tuning)
    ours = loader.batches()
    for theirs in first_batches(peer, face_paths, sampler, tmp_path):
        expected = next(ours).permute(0, 2, 3, 1).numpy()
        assert theirs.shape == expected.shape and theirs.dtype == np.float32
        difference = np.abs(theirs - expected)
        assert difference.max() <= TOLERANCE[peer]
        assert difference.mean() <= 1.5 / 255
        assert np.quantile(difference, 0.99) <= 4 / 255


def first_batches(peer, paths, sampler, scratch):
    """Three batches from a process of its own: a peer whose thread dies would wait for ever."""
    file = scratch / "batches.npy"
    run = multiprocessing.get_context("spawn").Process(
        target=_save, args=(peer, paths, sampler, scratch, file)
    )
    run.start()
    run.join(LIMIT)
    if run.is_alive():
        run.kill()
        pytest.fail(f"{peer} gave no batches in {LIMIT} s")
    assert run.exitcode == 0, f"{peer} failed: its traceback is on stderr"
    return np.load(file)


def _save(peer, paths, sampler, scratch, file):
    multiprocessing.set_start_method(None, force=True)  # a spawned process would spawn its workers too
    np.save(file, peers.first_batches(peer, paths, sampler, scratch, 3))


def test_a_package_that_does_not_import_is_absent_with_its_reason(tmp_path, monkeypatch):
    (tmp_path / "misfit.py").write_text("raise RuntimeError('operator misfit::nms does not exist\\nhint')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(peers.PEERS, "misfit", peers.Peer("misfit", peers.pillow))
    monkeypatch.setitem(peers.PEERS, "nowhere", peers.Peer("nowhere.inner", peers.pillow))
    assert "RuntimeError: operator misfit::nms does not exist" in peers.missing("misfit")
    assert "pip install '.[peers]'" in peers.missing("nowhere")
