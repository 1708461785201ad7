"""Every peer does fastae's work: the same images, order and parameters give nearly the same batches."""

import numpy as np
import pytest

from benchmarks import peers
from fastae.augment import Augmentation
from fastae.data import open_loader
from fastae.data.order import Order

# Pillow rounds to bytes before the colours; TensorFlow decodes with a faster, coarser transform, by which
# single pixels at sharp edges differ more.
TOLERANCE = {"Pillow + DataLoader": 2 / 255, "WebDataset": 2 / 255, "tf.data": 16 / 255}


@pytest.mark.parametrize("peer", peers.PEERS)
def test_a_peers_batches_are_fastaes(peer, face_paths, tmp_path):
    if why := peers.missing(peer):
        pytest.skip(why)
    order = Order(len(face_paths), 8, 0, Augmentation())
    loader = open_loader(face_paths, kind="dali", batch_size=8, device="cpu", seed=0, compiled=False)
    ours = loader.batches()
    for theirs in peers.first_batches(peer, face_paths, order, tmp_path, 3):
        expected = next(ours).permute(0, 2, 3, 1).numpy()
        assert theirs.shape == expected.shape and theirs.dtype == np.float32
        difference = np.abs(theirs - expected)
        assert difference.max() <= TOLERANCE[peer]
        assert difference.mean() <= 1.5 / 255
        assert np.quantile(difference, 0.99) <= 4 / 255
