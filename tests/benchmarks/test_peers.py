"""Peers do fastae's work, with the sampler's parameters or with random numbers of their own."""

import itertools
from pathlib import Path

import numpy as np
import pytest

from benchmarks import peers
from benchmarks.measure import isolated
from benchmarks.peers import PEERS, Work
from benchmarks.task import Task
from fastae.data import Tuning, load_images, open_loader
from fastae.data.loaders.sampler import Sampler
from fastae.experiment.augment import Augmentation

# Pillow rounds to bytes before the colours; TensorFlow and FFCV decode with a faster, coarser transform, by
# which single pixels at sharp edges differ more.
TOLERANCE = {"Pillow + DataLoader": 2 / 255, "tf.data": 16 / 255, "FFCV": 16 / 255, "FFCV raw": 2 / 255}
LIMIT = 240


@pytest.fixture
def batches_of(face_paths, tmp_path):
    """A function that returns the peer's batches of the first epoch, float32 (5, 8, 128, 128, 3)."""

    def load(peer, augmentation):
        if why := peers.missing(peer):
            pytest.skip(why)
        arguments = {"peer": peer, "paths": face_paths, "scratch": str(tmp_path)}
        arguments["strengths"] = [augmentation.brightness, augmentation.contrast, augmentation.saturation]
        # In a process of its own: a peer whose thread dies would wait for ever.
        saved = isolated("tests.benchmarks.test_peers:save_batches", arguments, print, LIMIT)
        batches = np.load(saved["file"])
        assert batches.dtype == np.float32 and batches.min() >= 0 and batches.max() <= 1
        return batches if batches.shape[-1] == 3 else np.moveaxis(batches, 2, -1)

    return load


def save_batches(peer, paths, scratch, strengths):
    """The peer's batches of the first epoch in a file."""
    task = Task(paths, Sampler(len(paths), 8, 0, Augmentation(*strengths)), 2, Path(scratch), "cpu")
    batches = itertools.islice(PEERS[peer].batches(task), len(paths) // 8)
    file = f"{scratch}/batches.npy"
    np.save(file, [np.array(batch) for batch in batches])  # FFCV reuses its buffers
    return {"file": file}


@pytest.mark.parametrize("peer", TOLERANCE)
def test_a_peer_with_the_samplers_parameters_yields_fastaes_batches(peer, face_paths, batches_of):
    tuning = Tuning(compiled=False)
    loader = open_loader(face_paths, kind="dali", batch_size=8, device="cpu", seed=0, tuning=tuning)
    for theirs, ours in zip(batches_of(peer, Augmentation()), loader.batches(), strict=False):
        difference = np.abs(theirs - ours.permute(0, 2, 3, 1).numpy())
        assert difference.max() <= TOLERANCE[peer]
        assert difference.mean() <= 1.5 / 255
        assert np.quantile(difference, 0.99) <= 4 / 255


def test_the_other_peers_say_that_their_numbers_and_colors_are_their_own():
    for name, peer in PEERS.items():
        assert {Work.SEEDED, Work.COLORS}.isdisjoint(peer.does_not) == (name in TOLERANCE)


@pytest.mark.parametrize("peer", sorted(PEERS.keys() - TOLERANCE.keys()))
def test_a_librarys_own_pipeline_yields_each_image_once(peer, face_paths, batches_of):
    """Compared with hardly any change of colors, and flipped as fits. The square is half a pixel away."""
    expected = load_images(face_paths, device="cpu").permute(0, 2, 3, 1).numpy()
    found = []
    for image in batches_of(peer, Augmentation(1e-3, 1e-3, 1e-3)).reshape(-1, 128, 128, 3):
        differences = np.abs(np.stack([image, image[:, ::-1]]) - expected[:, None]).mean((2, 3, 4)).min(1)
        found.append(differences.argmin())
        assert differences.min() <= 4 / 255
    assert sorted(found) == list(range(len(face_paths)))


def test_a_package_that_does_not_import_is_absent_with_its_reason(tmp_path, monkeypatch):
    (tmp_path / "misfit.py").write_text("raise RuntimeError('operator misfit::nms does not exist\\nhint')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(PEERS, "misfit", peers.Peer("misfit", peers.pillow, ()))
    monkeypatch.setitem(PEERS, "nowhere", peers.Peer("nowhere.inner", peers.pillow, ()))
    assert "RuntimeError: operator misfit::nms does not exist" in peers.missing("misfit")
    assert "pip install -e '.[peers]'" in peers.missing("nowhere")
