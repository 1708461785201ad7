"""Measures the training step on a fixed batch, from plain PyTorch to fastae's step, one change at a time.

    plain float32 -> + channels-last -> + AMP -> + torch.compile -> + fused Adam
    -> + freed memory kept (CPU) or CUDA graph (GPU)

On a GPU, "+ fused Adam" also brings the other parts of fastae's compiled step: Inductor's options, ReLU's
recomputed masks, and bf16 copies of the weights with an Adam that Inductor compiles.

On a GPU, further changes are tried with the last variant (`TRIED`). Each variant runs in a separate process.
The device's work is timed: a synchronisation ends each repeat. `article` is the article's own graph in
TensorFlow, if TensorFlow can be imported.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from benchmarks import peers
from benchmarks.measure import LIMIT, Figure, isolated, rates
from fastae.utils.limits import peak_bytes

VARIANTS = (
    "plain float32",
    "+ channels-last",
    "+ AMP",
    "+ torch.compile",
    "+ fused Adam",
    "+ memory kept",
    "+ CUDA graph",
)
COMPILED = "+ torch.compile"
ARTICLE = "article's graph, TensorFlow"
WIDE = "8 channels at both ends"
CASTS = "weights cast in each step"
AUTOTUNE = "max autotune"
ALL_ENGINES = "all of cuDNN's engines timed"
OVERLAP = "Adam beside the backward pass"
TRIED: dict[str, dict[str, str]] = {
    "nn.ReLU's own mask": {},
    "no combo kernels": {},
    CASTS: {},
    "coordinate descent tuning": {"TORCHINDUCTOR_COORDINATE_DESCENT_TUNING": "1"},
    "programmatic dependent launch": {"TORCHINDUCTOR_ENABLE_PDL": "1"},
    AUTOTUNE: {"TORCHINDUCTOR_MAX_AUTOTUNE": "1"},
    ALL_ENGINES: {},
    OVERLAP: {},
    WIDE: {},
}
"""Change to the last variant on a GPU -> environment variables. `_fastae_step` makes the others by name."""
LOSS = "minibatch_bce"
WARM_UP = 3
LOSS_TOLERANCE = 0.01
"""The largest relative difference of losses in the warm-up, from the same weights and batch. bf16 rounds."""
SIZE = 128


def measure(name: str, batch_size: int, seconds: float, device: str) -> dict[str, Any]:
    """Measures one variant in this process; returns {"rate", "first_step", ...} or {"absent": reason}.

    Each repeat lasts at least `seconds`.
    """
    if name == ARTICLE:
        return _article(batch_size, seconds, device)
    import torch

    from fastae.device.apply import use_kernels, use_tf32
    from fastae.device.choose import choose_device, choose_precision

    target = choose_device(device)
    use_tf32(target)
    if name == AUTOTUNE:
        torch.set_float32_matmul_precision("high")  # Inductor asks by this name, which must not differ
    if (name == "+ CUDA graph" or name in TRIED) and target.type != "cuda":
        return {"absent": "needs a CUDA device"}
    if name == "+ memory kept" and target.type != "cpu":
        return {"absent": "only for CPUs: PyTorch always keeps a GPU's memory"}
    level = VARIANTS.index(name) if name in VARIANTS else len(VARIANTS) - 1
    if level >= 3:  # the fastest convolutions for all compiled variants
        use_kernels(target, deterministic=False)
    precision = choose_precision(target, amp=level >= 2)
    step = _fastae_step(level, target, name) if level >= 4 else _plain_step(level, target)
    torch.manual_seed(1)  # every variant has the same batch, so that losses can be compared
    images = torch.rand(batch_size, 3, SIZE, SIZE).to(target)
    if level >= 1:
        images = images.contiguous(memory_format=torch.channels_last)
    found = _timed(lambda: step(images), _steps_between_waits(device), batch_size, seconds)
    peak = torch.cuda.max_memory_allocated() if target.type == "cuda" else peak_bytes()
    return found | {"peak_memory": peak, "precision": precision.note, "ceiling": ceiling(target, precision)}


def _steps_between_waits(device: str) -> int:
    """Returns the number of steps after which the device is waited for."""
    return 1 if device == "cpu" else 50


def ceiling(device: Any, precision: Any) -> dict[str, Any]:
    """Measures the best FLOP/s of a large matrix product in the step's precision; returns both.

    A GPU with TF32 multiplies float32 in TF32, so the ceiling is measured in TF32 too.
    """
    import torch

    from fastae.device.choose import is_ampere

    dtype = precision.dtype or torch.float32
    name = "TF32" if dtype is torch.float32 and is_ampere(device) else str(dtype).removeprefix("torch.")
    side = 8192 if device.type == "cuda" else 2048
    a, b = (torch.rand(side, side, device=device).to(dtype) for _ in range(2))

    def work() -> int:
        torch.mm(a, b)[0, 0].item()  # waits for the device
        return 1

    work()
    return {"flops": 2 * side**3 * rates(work, repeats=7).high, "dtype": name}


def _timed(
    prepare: Callable[[], Callable[[], Any]], steps: int, batch_size: int, seconds: float
) -> dict[str, Any]:
    """Returns the rate of a step after its warm-up, its first losses, and the seconds of the first step.

    Args:
        prepare: returns the step. Its time, such as of a capture, belongs to the first step.
        steps: the steps after which the device is waited for.
        batch_size: the images of a step.
        seconds: the least time of a repeat.
    """
    import torch

    started = time.perf_counter()
    run = prepare()
    losses = [float(run())]
    first = time.perf_counter() - started
    losses += [float(run()) for _ in range(WARM_UP - 1)]

    def work() -> int:
        for _ in range(steps):
            loss = run()
        float(loss)  # waits for the device
        return steps * batch_size

    with torch.compiler.set_stance("fail_on_recompile"):
        rate = rates(work, seconds)
    return {"rate": asdict(rate), "first_step": first, "losses": losses}


def _model(level: int, device: Any) -> Any:
    import torch

    from fastae.experiment.model import AutoEncoder

    torch.manual_seed(0)
    model = AutoEncoder().to(device)
    return model.to(memory_format=torch.channels_last) if level >= 1 else model  # type: ignore[call-overload]


def _plain_step(level: int, device: Any) -> Callable[[Any], Callable[[], Any]]:
    """Makes a simple training step with the first `level` changes, for a batch that is given later."""
    import torch

    from fastae.device.choose import choose_precision
    from fastae.experiment.losses import LOSSES

    model, precision = _model(level, device), choose_precision(device, amp=level >= 2)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-4)

    def forward(images: Any) -> Any:
        with precision.autocast(device):
            reconstruction = model(images)
        return LOSSES[LOSS](reconstruction, images)

    measured = torch.compile(forward, dynamic=False) if level >= 3 else forward

    def bound(images: Any) -> Callable[[], Any]:
        def run() -> Any:
            optimizer.zero_grad()
            loss = measured(images)
            loss.backward()
            optimizer.step()
            return loss.detach()

        return run

    return bound


def _widened(model: Any) -> Any:
    """Returns the model with 8 channels instead of 3 at both ends, for tensor cores. Added weights are 0."""
    import torch
    from torch import nn
    from torch.nn import functional

    class Pad(nn.Module):
        def forward(self, images: Any) -> Any:
            return functional.pad(images, (0, 0, 0, 0, 0, 5))

    class Cut(nn.Module):
        def forward(self, images: Any) -> Any:
            return images[:, :3]

    first, last = model.encoder[0], model.decoder[-2]
    wide = nn.Conv2d(8, first.out_channels, 5, padding=2, bias=False).to(first.weight.device)
    narrow = nn.Conv2d(last.in_channels, 8, 5, padding=2).to(last.weight.device)
    with torch.no_grad():
        for weight in (*wide.parameters(), *narrow.parameters()):
            weight.zero_()
        wide.weight[:, :3] = first.weight
        narrow.weight[:3] = last.weight
        narrow.bias[:3] = last.bias  # type: ignore[index]
    model.encoder[0], model.decoder[-2] = nn.Sequential(Pad(), wide), nn.Sequential(narrow, Cut())
    return model.to(memory_format=torch.channels_last)


def _fastae_step(level: int, device: Any, name: str) -> Callable[[Any], Callable[[], Any]]:
    """Makes fastae's step with the first `level` changes and the tried one `name`, as `_plain_step` does."""
    import torch
    from torch import nn

    from fastae.device.choose import Hardware, choose_precision
    from fastae.experiment.adam import COPY_OPTIONS
    from fastae.experiment.losses import LOSSES
    from fastae.training.step.objective import GPU_OPTIONS, prepare
    from fastae.training.step.relu import RecomputedReLU
    from fastae.training.step.step import TrainingStep
    from fastae.utils.limits import keep_freed_memory

    if level >= 5 and device.type == "cpu":
        keep_freed_memory()
    model, precision = _model(level, device), choose_precision(device, amp=True)
    if name == "nn.ReLU's own mask":
        RecomputedReLU.forward = lambda self, input: nn.functional.relu(input, self.inplace)  # type: ignore[method-assign]
        del GPU_OPTIONS["realize_reads_threshold"]
    elif name == "no combo kernels":
        del GPU_OPTIONS["combo_kernels"], COPY_OPTIONS["combo_kernels"]
    elif name == ALL_ENGINES:
        torch.backends.cudnn.benchmark_limit = 0
    elif name == WIDE:
        model = _widened(model)

    trained = prepare(model, Hardware(device, precision, compiled=True, compile_note=""))
    if name == CASTS:
        trained.copies = {}

    def bound(images: Any) -> Callable[[], Any]:
        step = TrainingStep(trained, LOSSES[LOSS], batch_shape=images.shape, lr=1e-4)
        if name == OVERLAP:
            _overlap_adam(step, GPU_OPTIONS)
        note = step.capture([images]) if level >= 6 else ""
        if note and not step.is_captured:
            raise SystemExit(note)
        return lambda: step(images)[0]

    return bound


def _overlap_adam(step: Any, options: dict[str, Any]) -> None:
    """Makes the decoder's Adam run on a side stream while the encoder's gradients are computed."""
    import torch
    from torch.func import functional_call

    from fastae.experiment.losses import LOSSES, squared_error

    model, adam, side = step.model, step.optimizer, torch.cuda.Stream()
    names = [name for name, _ in model.named_parameters()]
    copies = dict(zip(names, adam.leaves, strict=True))

    def reconstruct(half: str, inputs: Any) -> Any:
        own = {name.removeprefix(f"{half}."): leaf for name, leaf in copies.items() if name.startswith(half)}
        return functional_call(getattr(model, half), own, inputs)

    def objective_of(latent: Any, images: Any) -> tuple[Any, Any]:
        with step.precision.autocast(images.device):
            reconstruction = reconstruct("decoder", latent)
        element = LOSSES[LOSS].element.function(reconstruction.float(), images)
        return element.mean(), squared_error(reconstruction.detach(), images).mean()

    encode = torch.compile(lambda images: reconstruct("encoder", images), dynamic=False, options=options)
    decode = torch.compile(objective_of, dynamic=False, options=options)

    @torch.no_grad()
    def update(half: str) -> None:
        gradients = [leaf.grad for leaf in adam.leaves]
        each = (adam._weights, adam.leaves, gradients, adam.mean.values(), adam.square.values())
        chosen = [
            [v for name, v in zip(names, values, strict=True) if name.startswith(half)] for values in each
        ]
        adam._update(adam.step_count, adam._lr, adam._eps, *chosen)

    def update_decoder(_gradient: Any) -> None:
        """Is called once the decoder's gradients are complete: autograd accumulates first."""
        adam.step_count += 1
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            update("decoder")

    def objective(images: Any) -> tuple[Any, Any]:
        with step.precision.autocast(images.device):
            latent = encode(images)
        latent.register_hook(update_decoder)
        return decode(latent, images)

    def update_encoder() -> None:
        update("encoder")
        torch.cuda.current_stream().wait_stream(side)

    step._objective, adam.step = objective, update_encoder
    for leaf in adam.leaves:
        leaf.grad = torch.zeros_like(leaf)
    adam.step_count += 1
    for half in ("encoder", "decoder"):
        update(half)  # compiles in this thread, whose settings of Inductor autograd's thread does not have
    adam.reset()


def _article(batch_size: int, seconds: float, device: str) -> dict[str, Any]:
    if why := peers.missing("tf.data"):
        return {"absent": why}
    import tensorflow as tf

    from benchmarks.article import build

    if device != "cpu" and not tf.config.list_physical_devices("GPU"):
        return {"absent": "this TensorFlow uses no GPU"}
    found = _timed(lambda: build(batch_size, SIZE), _steps_between_waits(device), batch_size, seconds)
    return found | {"peak_memory": peak_bytes()}


def measure_all(
    batch_size: int, seconds: float, device: str, log: Callable[[str], None]
) -> dict[str, dict[str, Any]]:
    """Measures every variant in a separate process; returns name -> result of `measure`."""
    tried = TRIED if device != "cpu" else {}
    results = {}
    with tempfile.TemporaryDirectory() as empty:
        environments = {COMPILED: {"TORCHINDUCTOR_CACHE_DIR": empty}, **tried}
        for name in (*VARIANTS, *tried, ARTICLE):
            arguments = {"name": name, "batch_size": batch_size, "seconds": seconds, "device": device}
            environment = environments.get(name, {})
            results[name] = isolated("benchmarks.steps:measure", arguments, log, LIMIT, **environment)
    return results


def disagreements(results: dict[str, dict[str, Any]]) -> list[str]:
    """Returns lines about our variants whose first losses differ from plain PyTorch's."""
    plain = results[VARIANTS[0]].get("losses")
    return [
        f"{name} trains differently: losses {found['losses']}, plain {plain}"
        for name, found in results.items()
        if plain
        and name != ARTICLE
        and "losses" in found
        and not all(  # a loss that is NaN does not agree
            abs(a / b - 1) <= LOSS_TOLERANCE for a, b in zip(found["losses"], plain, strict=True)
        )
    ]


def lines(results: dict[str, dict[str, Any]], batch_size: int, flops_per_image: float) -> list[str]:
    """Returns the results as lines: rate, time of a step, ratio to plain float32, share of the ceiling."""
    plain = results[VARIANTS[0]].get("rate", {}).get("median")
    shown = []
    for name, found in results.items():
        if "rate" not in found:
            shown.append(f"  {name:28} absent: {found['absent']}")
            continue
        figure = Figure(**found["rate"])
        line = (
            f"  {name:28} {figure.median:8,.1f} images/s ({figure.low:,.1f}-{figure.high:,.1f})"
            f"  {1e3 * batch_size / figure.median:8,.1f} ms"
        )
        if plain:
            line += f"  {figure.median / plain:5.2f}x plain"
        if found.get("ceiling"):
            flops, dtype = found["ceiling"]["flops"], found["ceiling"]["dtype"]
            share = figure.median * flops_per_image / flops
            line += f"  {share:4.0%} of {flops / 1e12:.2f} {dtype} TFLOP/s"
        line += f"  first step {found['first_step']:.1f} s{' without a compile cache' * (name == COMPILED)}"
        line += f", peak {found['peak_memory'] / 2**30:.1f} GiB"
        shown.append(line)
    if apart := disagreements(results):
        shown += [f"  {problem}" for problem in apart]
    elif plain:
        shown.append(
            f"  losses of the first {WARM_UP} steps agree within {LOSS_TOLERANCE:.0%} for all variants"
        )
    return shown
