"""The training step: the same optimisation as the article's, whatever is switched on for speed."""

import copy

import pytest
import torch

from fastae.device import Precision, choose_compile, choose_device, choose_precision
from fastae.errors import FastaeError
from fastae.losses import LOSSES
from fastae.model import AutoEncoder
from fastae.step import ADAM_BETAS, ADAM_EPS, TrainingStep

SHAPE = (4, 3, 32, 32)
FLOAT32 = Precision(None, "float32")
BF16 = Precision(torch.bfloat16, "bf16")


@pytest.fixture
def model():
    torch.manual_seed(0)
    return AutoEncoder(32, 16)


def images(seed):
    return torch.rand(SHAPE, generator=torch.Generator().manual_seed(seed))


def training_step(model, loss="minibatch_bce", precision=FLOAT32, compiled=False):
    return TrainingStep(model, loss=loss, batch_shape=SHAPE, lr=1e-4, precision=precision, compiled=compiled)


@pytest.mark.parametrize("k", [3072, 12288])
def test_adam_on_k_times_g_is_adam_on_g_with_eps_over_k(k):
    torch.manual_seed(0)
    start, gradients = torch.rand(50).double(), torch.randn(20, 50).double() * 1e-7

    def descend(scale, eps):
        weight = start.clone().requires_grad_()
        adam = torch.optim.Adam([weight], lr=1e-2, betas=ADAM_BETAS, eps=eps)
        for gradient in gradients:
            weight.grad = scale * gradient
            adam.step()
        return weight.detach()

    torch.testing.assert_close(descend(k, 1e-8), descend(1, 1e-8 / k), rtol=1e-9, atol=0)
    # At gradients of 1e-7 eps does matter: without the division the result is another.
    assert (descend(k, 1e-8) - descend(1, 1e-8)).abs().max() > 1e-3


@pytest.mark.parametrize("loss", LOSSES)
def test_differentiating_the_mean_trains_as_the_articles_objective(model, loss):
    literal = copy.deepcopy(model)
    adam = torch.optim.Adam(literal.parameters(), lr=1e-4, betas=ADAM_BETAS, eps=ADAM_EPS)
    batch = images(0)
    LOSSES[loss](literal(batch), batch).backward()
    adam.step()
    training_step(model, loss)(batch)
    # One step, since rounding then grows by itself: it moves weights by up to 1e-4. The two agree to
    # 1e-9; with eps left as it is they would differ by 1e-7.
    difference = torch.cat(
        [
            (ours - theirs).detach().abs().flatten()
            for (name, ours), theirs in zip(model.named_parameters(), literal.parameters(), strict=True)
            if name.endswith("weight")
        ]
    )
    assert difference.mean() < 1e-9


def test_returns_the_mean_element_and_the_mean_squared_error(model):
    batch = images(0)
    expected = copy.deepcopy(model)(batch)
    objective, error = training_step(model, "pixel_bce")(batch)
    assert objective.item() == pytest.approx(LOSSES["minibatch_bce"](expected, batch).item())
    assert error.item() == pytest.approx((expected - batch).square().mean().item())


def test_channels_last_changes_the_layout_alone(model):
    last = copy.deepcopy(model).to(memory_format=torch.channels_last)
    objective, _ = training_step(model)(images(0))
    same, _ = training_step(last)(images(0).contiguous(memory_format=torch.channels_last))
    torch.testing.assert_close(objective, same, rtol=1e-5, atol=0)
    assert last.encoder[3].weight.is_contiguous(memory_format=torch.channels_last)


def test_bf16_follows_float32(model):
    half = copy.deepcopy(model)
    plain_step, half_step = training_step(model), training_step(half, precision=BF16)
    for iteration in range(10):
        plain, _ = plain_step(images(iteration % 2))
        rounded, _ = half_step(images(iteration % 2))
        assert rounded.dtype == torch.float32
        assert rounded.item() == pytest.approx(plain.item(), rel=0.02)
    assert all(parameter.dtype == torch.float32 for parameter in half.parameters())


def test_the_compiled_step_is_the_eager_one_and_compiles_once(model):
    eager = copy.deepcopy(model)
    compiled_step, eager_step = training_step(model, compiled=True), training_step(eager)
    compiled_step(images(0)), eager_step(images(0))
    with torch.compiler.set_stance("fail_on_recompile"):
        for iteration in range(1, 4):
            ours, error = compiled_step(images(iteration))
            theirs, their_error = eager_step(images(iteration))
            # Adam's first steps are the sign of a gradient, which amplifies rounding: 1e-4 after three.
            torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=0)
            torch.testing.assert_close(error, their_error, rtol=1e-3, atol=0)
    assert not any("_orig_mod" in name for name in model.state_dict())


def test_fail_on_recompile_does_notice_a_recompile(model):
    step = training_step(model, compiled=True)
    step(images(0))
    with (
        torch.compiler.set_stance("fail_on_recompile"),
        pytest.raises(RuntimeError, match="compile"),
    ):
        step(images(0)[:2])


def test_loss_scaling_is_for_fp16_alone():
    assert Precision(torch.float16, "").needs_scaling
    assert not BF16.needs_scaling and not FLOAT32.needs_scaling


def test_precision_follows_the_cpus_features(monkeypatch):
    cpu = torch.device("cpu")
    assert choose_precision(cpu, amp=False).dtype is None
    for features, dtype in (
        ({"amx_bf16": True}, torch.bfloat16),
        ({"avx512_bf16": True}, torch.bfloat16),
        ({"avx2": True}, None),
    ):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda features=features: features)
        assert choose_precision(cpu, amp=True).dtype is dtype
    assert "--amp brings nothing on this CPU" in choose_precision(cpu, amp=True).note


def test_a_cpu_run_is_compiled_where_it_is_long_enough(monkeypatch):
    cpu = torch.device("cpu")
    assert choose_compile(None, cpu, images=6_400_000)[0]
    assert not choose_compile(None, cpu, images=10_000)[0]
    assert not choose_compile(None, cpu, images=6_400_000, minutes=2)[0]
    assert choose_compile(True, cpu, images=1)[0]
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert choose_compile(None, cpu, images=6_400_000) == (
        False,
        "not compiled (no C++ compiler 'no-such-compiler')",
    )
    with pytest.raises(FastaeError, match="--compile needs the C\\+\\+ compiler"):
        choose_compile(True, cpu, images=1)


@pytest.mark.parametrize("name", ["gpu", "cuda:x", "meta", "cuda:99"])
def test_refuses_a_device_that_is_not_there(name):
    with pytest.raises(FastaeError, match=f"--device '?{name}"):
        choose_device(name)
