"""The step on a GPU: cuDNN's gradients, and the CUDA graph of the step against the eager step."""

import copy
import gc

import pytest
import torch
import torch.distributed as dist
from torch.testing._internal.distributed.fake_pg import FakeStore

from fastae.data.loaders.crop_resize import CropResize
from fastae.data.loaders.decode import open_decoder
from fastae.data.loaders.pixel_ops import channel_means
from fastae.data.loaders.resident import ResidentSource
from fastae.data.loaders.sampler import Sampler
from fastae.data.loaders.store import Store
from fastae.data.loaders.tuning import Tuning
from fastae.device.apply import use_device, use_kernels
from fastae.device.choose import Precision, choose_device
from fastae.experiment.augment import Augmentation
from fastae.experiment.losses import CROSS_ENTROPY
from fastae.experiment.model import AutoEncoder
from fastae.training.step.cuda_graph import GraphedFunction, side_stream
from fastae.training.step.sync_batch_norm import synchronize

from .conftest import BATCH, SIZE, make_step, prepared, small_model

IMAGES = 200
FP16 = Precision(torch.float16, "fp16")


def resident(device):
    """A loader over random pixels: no file is decoded."""
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(256, (IMAGES, SIZE, 3, SIZE), dtype=torch.uint8, generator=generator)
    store = Store(pixels.to(device), channel_means(pixels).to(device), {})
    decoder = open_decoder(CropResize(size=SIZE), device, Tuning(threads=1, compiled=True))
    return ResidentSource(store, Sampler(IMAGES, BATCH, 0, Augmentation()), decoder)


@pytest.fixture(scope="module")
def loader(cuda):
    return resident(cuda)


@pytest.fixture
def recorded(hollow):
    """A function that records a step; on the hollow GPU counters advance though kernels do nothing."""

    def record(step, loader):
        if hollow:
            from scripts.hollow_gpu.driver import count_replays
            from scripts.hollow_gpu.seams import replay_counters

            count_replays(replay_counters(step))
        step.capture(loader.example())
        assert step.is_captured
        return step

    return record


def train(step, loader, steps, start=0):
    """The objectives of `steps` steps, read at the end as the loop reads them."""
    inputs = loader.inputs(start)
    return torch.stack([step(*next(inputs))[0].clone() for _ in range(steps)]).tolist()


@pytest.fixture
def train_alike(results):
    """Trains two steps, and compares their objectives and states."""

    def train_both(ours, theirs, loader, steps, start=0):
        objectives, expected = train(ours, loader, steps, start), train(theirs, loader, steps, start)
        results()
        assert objectives == pytest.approx(expected, rel=0.02)
        agrees(ours, theirs)

    return train_both


def agrees(ours, theirs):
    """Two trained steps: counters and Adam's steps exactly, the rest to what bf16 and atomics leave."""
    found = ours.model.state_dict()
    for name, expected in theirs.model.state_dict().items():
        if name.endswith("batches_tracked"):
            assert int(found[name]) == int(expected), name
        elif "running" in name:
            torch.testing.assert_close(found[name], expected, rtol=0.05, atol=0.01, msg=name)
        else:
            assert (found[name] - expected).abs().mean() < 2e-5, name  # ten steps of 1e-4 each
    found, expected = ours.state(), theirs.state()
    assert int(found.step) == int(expected.step)
    for name, gradient in expected.mean.items():
        assert (found.mean[name] - gradient).norm() < 0.1 * gradient.norm(), name


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
def test_gradients_of_every_layer_are_those_without_cudnn(cuda, results, compiled):
    """At the size that is trained: each size has kernels of its own."""
    use_kernels(cuda, deterministic=False)
    torch.manual_seed(0)
    model = AutoEncoder().to(cuda).to(memory_format=torch.channels_last)
    images = torch.rand(64, 3, 128, 128, device=cuda).contiguous(memory_format=torch.channels_last)

    def gradients(compiled):
        model.zero_grad()
        trained = prepared(model, Precision(torch.bfloat16, "bf16"), compiled)
        trained.copies = {}
        trained.objective(CROSS_ENTROPY)(images)[0].backward()
        return {name: weight.grad for name, weight in model.named_parameters()}

    found = gradients(compiled)
    with torch.backends.cudnn.flags(enabled=False):
        expected = gradients(compiled=False)
    results()
    for name, gradient in expected.items():  # two correct implementations on a CPU differ by 0.2 in bf16
        assert (found[name] - gradient).norm() < 0.4 * gradient.norm(), name


@pytest.mark.parametrize("precision", [None, FP16], ids=["bf16", "fp16"])
def test_ten_replays_train_as_ten_eager_steps(cuda, loader, recorded, train_alike, precision):
    """And the recording itself leaves weights and moments as they were."""
    model = small_model(cuda)
    eager = make_step(copy.deepcopy(model), loader=loader, precision=precision)
    before = copy.deepcopy(model.state_dict())
    ours = recorded(make_step(model, loader=loader, precision=precision), loader)
    after, state = copy.deepcopy((model.state_dict(), ours.state()))
    train_alike(ours, eager, loader, 10)
    assert all(torch.equal(before[name], value) for name, value in after.items())
    assert state.step == 0 and not any(value.any() for value in (state.mean | state.square).values())


def test_replays_keep_copies_of_the_weights_and_train_as_without(cuda, loader, recorded, results):
    """With bf16 on one GPU; a second rank's float32 gradients have none."""
    model = small_model(cuda)
    without = make_step(copy.deepcopy(model), loader=loader, copies=False)
    ours = recorded(make_step(model, loader=loader), loader)
    objectives, expected = train(ours, loader, 10), train(without, loader, 10)
    pairs = [
        (leaf, weight)
        for leaf, weight in zip(ours.optimizer.leaves, model.parameters(), strict=True)
        if leaf is not weight
    ]
    assert len(pairs) == 15 and all(leaf.grad.dtype is torch.bfloat16 for leaf, _ in pairs)
    results()
    assert all(torch.equal(leaf, weight.bfloat16()) for leaf, weight in pairs)
    assert objectives == pytest.approx(expected, rel=0.02)
    agrees(ours, without)


def test_the_second_run_of_a_sweep_trains_as_if_it_were_alone(cuda, loader, recorded, train_alike):
    """Its graph is captured on the model that the first run's graph has trained."""
    model = small_model(cuda)
    initial = copy.deepcopy(model.state_dict())
    train(recorded(make_step(model, loader=loader, loss="minibatch_mse"), loader), loader, 3)
    model.load_state_dict(initial)
    second = recorded(make_step(model, loader=loader, loss="pixel_bce"), loader)
    plain = make_step(small_model(cuda), loader=loader, loss="pixel_bce")
    train_alike(second, plain, loader, 5)


def test_a_recorded_step_continues_from_a_checkpoint(cuda, loader, recorded, train_alike):
    model = small_model(cuda)
    whole = make_step(copy.deepcopy(model), loader=loader)
    train(whole, loader, 4)
    state = copy.deepcopy(whole.state())
    ours = recorded(make_step(model, loader=loader), loader)
    train(ours, loader, 2)
    ours.restore(state)
    train_alike(ours, whole, loader, 4, start=4)


def test_an_upload_and_a_replay_are_all_that_a_step_asks_of_the_host(cuda, loader, recorded):
    step = recorded(make_step(small_model(cuda), loader=loader), loader)
    inputs = loader.inputs()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(3):
            step(*next(inputs))
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_a_recording_that_fails_leaves_stream_and_memory(cuda, loader, recorded):
    big = 1 << 28
    made = []

    def waits(values):
        made.append(torch.zeros(big, dtype=torch.uint8, device=cuda))
        assert not gc.isenabled()
        return values, values * float(values.sum())

    stream = torch.cuda.current_stream()
    example = [torch.ones(4, device=cuda)]
    torch.cuda.empty_cache()
    reserved = torch.cuda.memory_reserved()
    for _ in range(2):
        with pytest.raises(RuntimeError, match="captur"), side_stream(cuda):
            GraphedFunction(waits, example, cuda)
        assert torch.cuda.current_stream() == stream and gc.isenabled()
        made.clear()
    torch.cuda.empty_cache()
    assert torch.cuda.memory_reserved() <= reserved + (32 << 20)
    recorded(make_step(small_model(cuda), loader=loader), loader)


def test_shared_batch_norm_compiles_as_part_of_the_whole_objective(cuda, hollow, results):
    """With one rank it is batch norm."""
    model = small_model(cuda)
    images = torch.rand(BATCH, 3, SIZE, SIZE, device=cuda).contiguous(memory_format=torch.channels_last)
    expected, _ = prepared(copy.deepcopy(model)).objective(CROSS_ENTROPY)(images)
    store = FakeStore() if hollow else dist.HashStore()
    dist.init_process_group("fake" if hollow else "nccl", store=store, rank=0, world_size=1)
    try:
        synchronize(model)
        objective, _ = prepared(model).objective(CROSS_ENTROPY)(images)
        objective.backward()
        results()
        assert objective.item() == pytest.approx(expected.item(), rel=0.01)
    finally:
        dist.destroy_process_group()


@pytest.fixture
def second_gpu():
    if torch.cuda.device_count() < 2:
        pytest.skip("one GPU alone")
    yield torch.device("cuda", 1)
    torch.cuda.set_device(0)


@pytest.mark.parametrize("chosen", [True, False])
def test_a_step_on_the_second_gpu(second_gpu, recorded, train_alike, chosen):
    """By --device, which makes it the current one, and from Python, where another one may be current."""
    if chosen:
        assert use_device(choose_device("cuda:1")) == second_gpu
        assert torch.cuda.current_device() == 1
    loader, model = resident(second_gpu), small_model(second_gpu)
    eager = make_step(copy.deepcopy(model), loader=loader)
    ours = recorded(make_step(model, loader=loader), loader)
    train_alike(ours, eager, loader, 5)
