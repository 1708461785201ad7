"""How images are decoded and augmented, as far as it changes speed and nothing else."""

from __future__ import annotations

from dataclasses import dataclass

from fastae.utils.arguments import SHARE, THREADS, Range, require_int, require_number, require_type


@dataclass(frozen=True)
class Tuning:
    """What changes a loader's speed alone.

    `benchmarks/sweep.py` sweeps the values; none has been swept on a GPU yet. From `hw_decoder_load` on, the
    fields are for GPUs.
    """

    threads: int | None = None
    """CPU threads that decode. Default: by the number of cores."""

    compiled: bool | None = None
    """torch.compile for the passes over pixels. Default: if there is a C++ compiler."""

    prefetch: int = 2
    """Batches that DALI prepares ahead."""

    hw_decoder_load: float = 0.65
    """Share of a batch that the JPEG engine decodes, 0 to 1 (DALI's default: 0.65).

    With 0 an image's pixels do not depend on the others in its batch.
    """

    decode_on_cpu: bool = False
    """Decode on the CPU and upload."""

    decode_batch: int = 256
    """Images that DALI decodes at once, for several training batches; fewer of large ones."""

    colors_in_step: bool = False
    """Change the colors in the training step, as the loader `resident` does, instead of in DALI's graph."""

    padding: int = 1 << 20
    """Bytes reserved in the decoder's buffers, per thread.

    DALI's own (16 MiB on the device, 8 MiB pinned) are made for photographs of many megapixels, and a buffer
    that is too small grows once.
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
