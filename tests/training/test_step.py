"""The training step optimizes as the article's does, with every setting for speed."""

import copy
import gc
import subprocess
import weakref
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.backends import cudnn
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

from fastae.data.loaders.cpu_ops import CpuOps
from fastae.data.loaders.crop_resize import CropResize
from fastae.data.loaders.output_format import OutputFormat
from fastae.data.loaders.pixel_ops import PixelOps, pack_params
from fastae.data.loaders.sampler import Sampler
from fastae.device.choose import Hardware, Precision
from fastae.experiment.adam import Adam
from fastae.experiment.augment import Augmentation
from fastae.experiment.definition import Experiment
from fastae.experiment.losses import LOSSES
from fastae.experiment.model import AutoEncoder
from fastae.training.session import build_model
from fastae.training.step import step as step_module
from fastae.training.step.objective import prepare
from fastae.training.step.relu import recompute_masks, rectified
from fastae.training.step.step import CAPTURED, TrainingStep
from fastae.training.step.sync_batch_norm import SyncBatchNorm2d
from fastae.training.step.weight_copies import WeightCopies

from ..commands import same_state
from ..helpers import small_config
from ..operations import Graphs, Refuse, RefuseWaits, ReplayedFunction

SHAPE = (4, 3, 32, 32)
FLOAT32 = Precision(None, "float32")
BF16 = Precision(torch.bfloat16, "bf16")


class Scaled(Precision):
    """With fp16's loss scaling, but without fp16, in which CPUs are slow."""

    needs_scaling = True


SCALED = Scaled(None, "scaled")


@pytest.fixture
def model():
    torch.manual_seed(0)
    return AutoEncoder(32, 16)


def images(seed):
    return torch.rand(SHAPE, generator=torch.Generator().manual_seed(seed))


def trained(model, precision=FLOAT32, compiled=False):
    return prepare(model, Hardware(torch.device("cpu"), precision, compiled=compiled, compile_note=""))


def training_step(model, loss="minibatch_bce", precision=FLOAT32, compiled=False, **options):
    return TrainingStep(
        trained(model, precision, compiled), LOSSES[loss], batch_shape=SHAPE, lr=1e-4, **options
    )


@pytest.fixture
def copying():
    """Makes a step whose weights have bf16 copies, as on a GPU; its optimizer is not compiled."""

    def make(model):
        prepared = trained(model, BF16)
        prepared.copies = WeightCopies(model)
        return TrainingStep(prepared, LOSSES["minibatch_bce"], batch_shape=SHAPE, lr=1e-4)

    with torch.compiler.set_stance("force_eager"):
        yield make


@pytest.mark.parametrize("loss", LOSSES)
def test_differentiating_the_mean_trains_as_the_articles_objective(model, loss):
    literal, batch = copy.deepcopy(model), images(0)
    adam = Adam(dict(literal.named_parameters()), lr=1e-4)
    reconstruction = literal(batch)
    LOSSES[loss](reconstruction, batch).backward()
    adam.step()
    objective, error = training_step(model, loss)(batch)
    mean = LOSSES[loss].element.function(reconstruction, batch).mean()
    assert objective.item() == pytest.approx(mean.item())
    assert error.item() == pytest.approx((reconstruction - batch).square().mean().item())
    # Only one step is compared, since later ones amplify rounding, and move weights by up to 1e-4. The two
    # agree to 1e-9; with eps unchanged they would differ by 1e-7.
    pairs = zip(model.named_parameters(), literal.parameters(), strict=True)
    weights = [(ours - theirs).flatten() for (name, ours), theirs in pairs if name.endswith("weight")]
    assert torch.cat(weights).abs().mean() < 1e-9


def test_bf16_follows_float32(model):
    half = copy.deepcopy(model)
    plain_step, half_step = training_step(model), training_step(half, precision=BF16)
    for iteration in range(3):
        plain, _ = plain_step(images(iteration % 2))
        rounded, _ = half_step(images(iteration % 2))
        assert rounded.dtype == torch.float32
        assert rounded.item() == pytest.approx(plain.item(), rel=0.02)
    assert all(parameter.dtype == torch.float32 for parameter in half.parameters())


def test_the_compiled_step_agrees_with_the_eager_one_and_compiles_once(model):
    eager = copy.deepcopy(model)
    compiled_step, eager_step = training_step(model, compiled=True), training_step(eager)
    compiled_step(images(0)), eager_step(images(0))
    with torch.compiler.set_stance("fail_on_recompile"):
        for iteration in range(1, 4):
            for ours, theirs in zip(
                compiled_step(images(iteration)), eager_step(images(iteration)), strict=True
            ):
                # Adam's first steps are the sign of a gradient, which amplifies rounding: 1e-4 after three.
                torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=0)
        with pytest.raises(RuntimeError, match="compile"):
            compiled_step(images(0)[:2])
    assert not any("_orig_mod" in name for name in model.state_dict())


def test_a_step_is_freed_with_its_last_reference(model):
    """A cycle of references would keep gradients and moments, 340 MB, until Python collects it."""
    step = training_step(model)
    step(images(0))
    gone = weakref.ref(step)
    gc.disable()
    try:
        del step
        assert gone() is None
    finally:
        gc.enable()


def state_of(step):
    """Returns weights, batch statistics, counters and Adam's state, by name."""
    state = step.state()
    parts = {"model": state.model, "mean": state.mean, "square": state.square}
    named = {f"{part} {name}": value for part, values in parts.items() for name, value in values.items()}
    return {**named, "step": state.step}


def recorded(step, monkeypatch, graphs=None, example=None):
    """Makes a step record itself as on a GPU; returns its note."""
    monkeypatch.setattr(step_module, "graph", graphs or Graphs())
    note = step.capture(example or [images(99)])
    monkeypatch.undo()
    return note


def assert_the_same_after(ours, theirs, batches):
    """Trains both on the same batches and compares everything that they keep, bit by bit."""
    for batch in batches:
        for one, other in zip(ours(batch), theirs(batch), strict=True):
            assert torch.equal(one, other) or (one.isnan() and other.isnan())
    ours_kept, theirs_kept = state_of(ours), state_of(theirs)
    assert ours_kept.keys() == theirs_kept.keys()
    for name, value in ours_kept.items():
        assert torch.equal(value, theirs_kept[name]), name


@pytest.mark.parametrize("precision", [FLOAT32, SCALED], ids=["plain", "scaled"])
def test_a_recorded_step_trains_as_the_eager_one(model, monkeypatch, precision):
    eager, ours = (training_step(copy.deepcopy(model), precision=precision) for _ in range(2))
    assert recorded(ours, monkeypatch) == CAPTURED
    assert_the_same_after(ours, eager, [images(number) for number in range(6)])
    assert state_of(ours)["step"] == 6
    if precision is SCALED:
        assert ours.scaler.state_dict() == eager.scaler.state_dict()


def test_recording_a_step_changes_no_buffer_also_outside_of_the_state_dict(model, monkeypatch):
    class Counting(nn.Sequential):
        def forward(self, images):
            self.seen += 1
            return super().forward(images)

    counting = Counting(model)
    counting.register_buffer("seen", torch.zeros(()), persistent=False)
    assert recorded(training_step(counting), monkeypatch) == CAPTURED
    assert counting.seen == 0


@pytest.mark.parametrize("precision", [BF16, Precision(torch.float16, "fp16")], ids=["bf16", "fp16"])
def test_the_gradient_norm_is_of_the_loss_as_it_is_logged_not_as_it_is_scaled(model, precision):
    exact, ours = (training_step(copy.deepcopy(model), precision=each) for each in (FLOAT32, precision))
    for number in range(3):
        for step in (exact, ours):
            step(images(number))
        assert ours.gradient_norm().item() == pytest.approx(exact.gradient_norm().item(), rel=0.1)


def test_the_gradient_norm_of_a_step_that_overflowed_is_nan(model):
    ours = training_step(model, precision=SCALED)
    ours.scaler.load_state_dict({**ours.scaler.state_dict(), "scale": torch.inf})
    ours(images(0))
    assert ours.optimizer.step_count == 0 and ours.gradient_norm().isnan()


def test_the_images_are_made_within_the_recorded_step(monkeypatch, model):
    """The function that a GPU runs makes them, from one tensor of parameters, without a wait or a copy."""
    torch.manual_seed(1)
    store, means = torch.randint(256, (20, 32, 3, 32), dtype=torch.uint8), torch.rand(20, 3)
    ops = PixelOps(OutputFormat(), compiled=False)
    sampler = Sampler(20, 4, 0, Augmentation())
    inputs = [(pack_params(sampler.at(iteration)),) for iteration in range(4)]

    def step(make_batch):
        return training_step(copy.deepcopy(model), make_batch=make_batch)

    ours = step(lambda words: ops.gather(store, means, words))
    assert recorded(ours, monkeypatch, example=inputs[0]) == CAPTURED
    theirs = step(lambda images: images)
    on_cpu = CpuOps(CropResize(size=32), OutputFormat(), 1).gathered(store, means, map(sampler.at, range(4)))
    for words, batch in zip(inputs, on_cpu, strict=True):
        for one, other in zip(ours(*words), theirs(batch), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-3, atol=0)


def test_a_sweeps_recorded_steps_share_a_model_and_continue_from_a_checkpoint(model, monkeypatch):
    """The earlier step may be called in between, since each step has its own memory."""
    theirs = training_step(copy.deepcopy(model), "pixel_bce")
    theirs(images(0))
    state = copy.deepcopy(theirs.state())
    first, second = training_step(model, "minibatch_mse"), training_step(model, "pixel_bce")
    assert recorded(first, monkeypatch) == recorded(second, monkeypatch) == CAPTURED
    first(images(7))
    second.restore(state)
    assert_the_same_after(second, theirs, [images(number) for number in (1, 2)])
    first(images(0))
    model.load_state_dict(theirs.model.state_dict())
    assert_the_same_after(second, theirs, [images(3)])


def test_a_graph_that_does_nothing_is_not_used(model, monkeypatch):
    class Empty:
        def __init__(self, function, example, device):
            pass

        def __call__(self, *inputs):
            pass

    eager, ours = training_step(copy.deepcopy(model)), training_step(model)
    assert recorded(ours, monkeypatch, Graphs(Empty)) not in ("", CAPTURED)
    assert_the_same_after(ours, eager, [images(0)])


@pytest.mark.parametrize("failures", [1, 2])
@pytest.mark.parametrize("operation", ["_fused_adam_", "_amp_update_scale_"])
def test_a_recording_that_fails_is_tried_once_more_and_leaves_nothing(
    model, monkeypatch, failures, operation
):
    class Failing(ReplayedFunction):
        left = failures

        def __init__(self, function, example, device):
            assert all(weight.grad is None for weight in model.parameters())
            if Failing.left:
                Failing.left -= 1
                with Refuse(operation):
                    function(*example)
            super().__init__(function, example, device)

    eager = training_step(copy.deepcopy(model), precision=SCALED)
    ours = training_step(model, precision=SCALED)
    note = recorded(ours, monkeypatch, Graphs(Failing))
    if failures == 1:
        assert note == CAPTURED
    else:
        assert "not permitted" in note and "and much more" not in note
        assert all(weight.grad is None for weight in model.parameters())
    assert_the_same_after(ours, eager, [images(number) for number in range(2)])


def test_a_failing_c_compiler_leaves_a_step_without_a_cuda_graph(model, monkeypatch):
    """Triton compiles C when a kernel is first launched, where torch.compile does not catch errors."""

    class Failing(ReplayedFunction):
        def __init__(self, *arguments):
            raise subprocess.CalledProcessError(1, ["gcc", "main.c"])

    note = recorded(training_step(model), monkeypatch, Graphs(Failing))
    assert note.startswith("no CUDA graph") and "gcc" in note


class Wrong(TorchDispatchMode):
    """While the block runs, cuDNN's fastest kernels compute an operation's result number `index` wrongly."""

    def __init__(self, operation, index):
        super().__init__()
        self.operation, self.index, self.computed = operation, index, 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        results = function(*args, **(kwargs or {}))
        if function.overloadpacket.__name__ == self.operation and cudnn.benchmark:
            self.computed += 1
            if self.computed == 3:  # one layer of several
                (results if isinstance(results, tuple) else (results,))[self.index].mul_(1.05)
        return results


@pytest.mark.parametrize(
    ("operation", "index", "right"),
    [
        ("convolution", 0, False),
        ("convolution_backward", 0, False),
        ("convolution_backward", 1, False),
        ("none is wrong", 0, True),
    ],
)
@pytest.mark.parametrize("precision", [BF16, SCALED], ids=["bf16", "scaled"])
def test_kernels_that_compute_other_gradients_are_not_used(
    model, monkeypatch, operation, index, right, precision
):
    eager, ours = (training_step(copy.deepcopy(model), precision=precision) for _ in range(2))
    with cudnn.flags(benchmark=True, deterministic=False):
        with Wrong(operation, index):
            note = recorded(ours, monkeypatch)
        assert (cudnn.benchmark, cudnn.deterministic) == (right, not right)
    assert (note == CAPTURED) is right and note.startswith(CAPTURED)
    assert_the_same_after(ours, eager, [images(number) for number in range(2)])


@pytest.mark.parametrize(
    ("dtype", "compiled"),
    [(torch.float32, False), (torch.bfloat16, False), (torch.float16, False), (torch.bfloat16, True)],
)
def test_a_gpus_relu_has_relus_values_and_gradients(dtype, compiled):
    special = torch.tensor([0.0, -0.0, 1e-45, -1e-45, torch.inf, -torch.inf, torch.nan, 1.0, -1.0, 6e4, -6e4])
    upstream = torch.cat([torch.full_like(special, value) for value in (1.5, torch.inf, torch.nan)]).to(dtype)
    ours = torch.compile(rectified) if compiled else rectified

    def result(function):
        values = special.repeat(3).to(dtype).requires_grad_()
        output = function(values)
        output.backward(upstream)
        return output, values.grad

    for one, other in zip(result(ours), result(functional.relu), strict=True):
        assert one.dtype == dtype
        torch.testing.assert_close(one, other, rtol=0, atol=0, equal_nan=True)


def test_only_a_compiled_relu_is_replaced_and_the_state_dict_keeps_its_names(model):
    ours = copy.deepcopy(model)
    assert recompute_masks(ours) == 9
    assert not any(type(layer) is nn.ReLU for layer in ours.modules())
    assert list(ours.state_dict()) == list(model.state_dict())
    assert torch.equal(ours(images(0)), model(images(0)))


def test_copies_of_weights_have_the_gradients_of_the_weights(model, copying):
    """The numbers are the same, although autocast would cast them to float32. Batch norm has no copies."""
    theirs = training_step(copy.deepcopy(model), precision=BF16)
    ours = copying(model)
    assert ours(images(0)) == theirs(images(0))
    copied = 0
    for leaf, (name, weight) in zip(ours.optimizer.leaves, theirs.model.named_parameters(), strict=True):
        copied += leaf.dtype is torch.bfloat16
        assert torch.equal(leaf.grad.float(), weight.grad), name
    assert copied == 15 and len(ours.optimizer.leaves) == 15 + 2 * 9
    assert ours.gradient_norm().item() == pytest.approx(theirs.gradient_norm().item())


def test_copies_follow_the_weights_and_are_in_no_checkpoint(model, copying):
    """A run without copies continues with copies, in the same bits whatever the copies were before."""
    before = training_step(copy.deepcopy(model), precision=BF16)
    before(images(0))
    state = copy.deepcopy(before.state())
    new, used = copying(copy.deepcopy(model)), copying(model)
    used(images(1))
    for step in (new, used):
        step.restore(state)
        assert same_state(vars(step.state()), vars(state))
        for leaf, weight in zip(step.optimizer.leaves, step.model.parameters(), strict=True):
            assert torch.equal(leaf, weight.to(leaf.dtype)) and leaf.stride() == weight.stride()
    assert_the_same_after(used, new, [images(number) for number in range(2)])


def test_a_recorded_step_with_copies_trains_as_the_eager_one(model, copying, monkeypatch):
    eager, ours = copying(copy.deepcopy(model)), copying(model)
    assert recorded(ours, monkeypatch) == CAPTURED
    assert_the_same_after(ours, eager, [images(number) for number in range(3)])


def test_a_step_waits_for_nothing(model):
    step = training_step(model)
    step(images(0))
    with RefuseWaits():
        step(images(1))


@pytest.mark.parametrize(
    "wait",
    [float, lambda loss: torch.tensor(1.0) + loss, lambda loss: loss.nonzero(), lambda loss: loss.to("meta")],
)
def test_refuse_waits_notices_each_kind_of_wait(wait):
    loss = torch.ones(())
    with RefuseWaits(), pytest.raises(AssertionError):
        wait(loss)


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
def test_sync_batch_norm_agrees_with_batch_norm(compiled):
    """This holds even if a channel's mean is 3,000 times its deviation, where squares would cancel."""
    torch.manual_seed(0)
    shared, plain = SyncBatchNorm2d(4), torch.nn.BatchNorm2d(4).double()
    with torch.no_grad():
        shared.weight.uniform_(0.5, 1.5)
        plain.load_state_dict(shared.state_dict())
    means = torch.tensor([0.0, 1.0, 30.0, 300.0]).view(1, 4, 1, 1)
    values = (means + 0.1 * torch.randn(6, 4, 8, 8)).requires_grad_()
    exact = values.detach().double().requires_grad_()
    upstream = torch.randn(6, 4, 8, 8)
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        found = (torch.compile(shared, fullgraph=True) if compiled else shared)(values)
        found.backward(upstream)
    finally:
        dist.destroy_process_group()
    expected = plain(exact)
    expected.backward(upstream.double())
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=2e-3)
    torch.testing.assert_close(values.grad.double(), exact.grad, rtol=0, atol=2e-2)
    for (name, ours), (_, theirs) in zip(shared.named_buffers(), plain.named_buffers(), strict=True):
        torch.testing.assert_close(ours.double(), theirs.double(), rtol=1e-5, atol=1e-5, msg=name)


def test_models_made_at_once_have_the_weights_of_their_seeds_and_the_users_generators_are_left_alone(
    monkeypatch,
):
    """PyTorch's generators, a CPU's and each GPU's, are shared by all threads of the process."""
    monkeypatch.delattr(torch.cuda, "manual_seed_all")
    config = small_config("nowhere", "out", image_size=64)
    alone = build_model(Experiment(), config).state_dict()
    before = torch.get_rng_state()
    with ThreadPoolExecutor(4) as pool:
        made = list(pool.map(lambda _: build_model(Experiment(), config).state_dict(), range(8)))
    assert all(same_state(alone, other) for other in made)
    other = build_model(Experiment(), replace(config, seed=1)).state_dict()
    assert not torch.equal(alone["encoder.0.weight"], other["encoder.0.weight"])
    assert torch.equal(torch.get_rng_state(), before)
