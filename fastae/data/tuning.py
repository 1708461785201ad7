"""How images are decoded and augmented, as far as it changes speed and nothing else."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Tuning:
    """Swept by `benchmarks/sweep.py`; no value has been swept on a GPU yet.

    threads: CPU threads that decode (default: by the number of cores). compiled: torch.compile for the passes
    over pixels (default: if there is a C++ compiler). prefetch: batches that DALI prepares ahead.

    On a GPU: hw_decoder_load: share of a batch for the JPEG engine, in [0, 1] (DALI's default: 0.65); with 0
    an image's pixels do not depend on the others in its batch.
    decode_on_cpu: decode there and upload. decode_batch: images that DALI decodes at once, for several
    training batches; fewer of large ones. colors_in_step: brightness, contrast and saturation run in the
    training step, as they do for `resident`, instead of in DALI's graph. padding: bytes reserved in the
    decoder's buffers, per thread; DALI's own (16 MiB on the device, 8 MiB pinned) are made for photographs of
    many megapixels, and a buffer that is too small grows once.
    """

    threads: int | None = None
    compiled: bool | None = None
    prefetch: int = 2
    hw_decoder_load: float = 0.65
    decode_on_cpu: bool = False
    decode_batch: int = 256
    colors_in_step: bool = False
    padding: int = 1 << 20


DEFAULT = Tuning()
