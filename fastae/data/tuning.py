"""How DALI's graph is run, as far as it changes speed and nothing else. Swept by `benchmarks/sweep.py`."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Tuning:
    """hw_decoder_load: share of a batch for the GPU's JPEG engine, in [0, 1] (DALI's default: 0.65).

    decode_on_cpu: decode there and upload, also where there is a GPU. prefetch: batches prepared ahead.
    padding: bytes reserved in the decoder's buffers, for each thread. DALI's own (16 MiB on the device,
    8 MiB pinned) are made for photographs of many megapixels; a buffer that is too small grows once.
    None of these has been swept on a GPU yet.
    """

    hw_decoder_load: float = 0.65
    decode_on_cpu: bool = False
    prefetch: int = 2
    padding: int = 1 << 20


DEFAULT = Tuning()
