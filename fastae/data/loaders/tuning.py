"""The settings of decoding and augmentation that change only the speed."""

from __future__ import annotations

from dataclasses import dataclass

from fastae.utils.arguments import SHARE, THREADS, Range, require_int, require_number, require_type

BATCH = 64
"""The number of images that are decoded at once, unless a loader needs more."""


@dataclass(frozen=True)
class Tuning:
    """Settings that change only a loader's speed.

    `benchmarks/sweep.py` sweeps the values. None has been swept on a GPU yet. The fields from
    `hw_decoder_load` on are for GPUs.
    """

    threads: int | None = None
    """The number of threads that decode, and without a GPU, of those that make batches.

    Default: see `fastae.data.loaders.decode.default_threads`.
    """

    compiled: bool | None = None
    """Whether torch.compile is used on a GPU for the passes over pixels. Default: if it can be."""

    prefetch: int = 2
    """The number of batches that DALI prepares ahead."""

    hw_decoder_load: float = 0.65
    """The share of a batch that the JPEG engine decodes, 0 to 1 (DALI's default: 0.65).

    With 0, an image's pixels do not depend on the other images in its batch.
    """

    decode_batch: int = 256
    """The number of images that DALI decodes at once, for several batches; fewer if they are large."""

    padding: int = 1 << 20
    """The bytes reserved in the decoder's buffers, per thread.

    DALI's defaults (16 MiB on the device, 8 MiB pinned) are for photographs of many megapixels. A buffer that
    is too small grows once.
    """

    def __post_init__(self) -> None:
        if self.threads is not None:
            require_int(self.threads, "threads", THREADS)
        require_type(self.compiled, "compiled", bool, type(None))
        require_int(self.prefetch, "prefetch", Range(1, 1000))
        require_number(self.hw_decoder_load, "hw_decoder_load", SHARE)
        require_int(self.decode_batch, "decode_batch", Range(1, 1_000_000))
        require_int(self.padding, "padding", Range(0, 1 << 40))


DEFAULT = Tuning()
