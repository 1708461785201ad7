"""Adam is TensorFlow's: it agrees with the formula in float64, in each of its modes."""

import math

import pytest
import torch

from fastae.experiment.adam import BETAS, EPSILON, Adam, step_size

STEPS = 1_000


def gradients(shape, seed=0):
    """Yields gradients from 1e-11 to 1e-3: eps matters for most of them."""
    generator = torch.Generator().manual_seed(seed)
    scale = 10 ** (-11 + 8 * torch.rand(shape, generator=generator))
    while True:
        yield scale * torch.randn(shape, generator=generator)


def reference(weight, given, lr, eps, steps=STEPS):
    """Returns the weight after some steps of `tf.raw_ops.ApplyAdam`, in float64."""
    weight, mean, square = weight.double(), 0.0, 0.0
    for t, gradient in zip(range(1, steps + 1), given, strict=False):
        gradient = gradient.double()
        mean = BETAS[0] * mean + (1 - BETAS[0]) * gradient
        square = BETAS[1] * square + (1 - BETAS[1]) * gradient**2
        size = lr * math.sqrt(1 - BETAS[1] ** t) / (1 - BETAS[0] ** t)
        weight = weight - size * mean / (square.sqrt() + eps)
    return weight


def relative(found, expected, start):
    """Returns the norm of the error, relative to that of the whole movement."""
    return ((found.double() - expected).norm() / (expected - start).norm()).item()


@pytest.mark.parametrize("k", [1, 3 * 64 * 64, 32 * 3 * 64 * 64])
def test_a_thousand_steps_agree_with_the_formula_in_float64(k):
    weight = torch.zeros(400, requires_grad=True)  # from zero, float32 resolves the smallest updates
    adam = Adam({"weight": weight}, lr=1e-4, eps=EPSILON / k)
    for _, gradient in zip(range(STEPS), gradients(400), strict=False):
        weight.grad = gradient
        adam.step()
    expected = reference(torch.zeros(400), gradients(400), 1e-4, EPSILON / k)
    assert relative(weight.detach(), expected, 0) < 1e-5
    assert adam.step_count == STEPS


def test_pytorchs_adam_is_another_one_in_the_first_steps():
    """Its eps weighs 1 / 31.6 of the article's in the first step, where most gradients are below it."""
    theirs = torch.zeros(400, requires_grad=True)
    adam = torch.optim.Adam([theirs], lr=1e-4, eps=EPSILON)
    theirs.grad = next(gradients(400))
    adam.step()
    expected = reference(torch.zeros(400), gradients(400), 1e-4, EPSILON, steps=1)
    assert relative(theirs.detach(), expected, 0) > 0.2


def test_weights_with_copies_in_bf16_follow_the_gradients_of_the_copies():
    """The compiled update is run here without compiling. A weight may have no copy."""
    weights = {"copied": torch.zeros(40, 5), "alone": torch.zeros(7)}
    copies = {"copied": weights["copied"].bfloat16().requires_grad_()}
    weights["alone"].requires_grad_()
    with torch.compiler.set_stance("force_eager"):
        adam = Adam(weights, 1e-3, copies=copies)
        drawn = {name: gradients(weight.shape) for name, weight in weights.items()}
        for _ in range(50):
            for name, leaf in zip(weights, adam.leaves, strict=True):
                leaf.grad = next(drawn[name]).to(leaf.dtype)
            adam.step()
    rounded = (gradient.bfloat16() for gradient in gradients((40, 5)))
    expected = reference(torch.zeros(40, 5), rounded, 1e-3, EPSILON, steps=50)
    assert relative(weights["copied"], expected, 0) < 1e-5
    assert torch.equal(copies["copied"].detach(), weights["copied"].bfloat16())
    expected = reference(torch.zeros(7), gradients(7), 1e-3, EPSILON, steps=50)
    assert relative(weights["alone"].detach(), expected, 0) < 1e-5


def test_a_step_whose_scaled_gradients_overflow_changes_nothing():
    """The scaler skips it, and it does not count. The next step is Adam's first."""
    weight = torch.zeros(3, requires_grad=True)
    adam, scaler = Adam({"weight": weight}, 1e-2), torch.amp.GradScaler("cpu", init_scale=2.0**10)
    for value, count in ((math.inf, 0), (1.0, 1)):
        adam.zero_grad()
        scaler.scale((weight * value).sum()).backward()
        scaler.step(adam)
        scaler.update()
        assert adam.step_count == count
        assert torch.equal(weight == 0, torch.full((3,), count == 0))
    torch.testing.assert_close(weight.detach(), torch.full((3,), -1e-2), rtol=1e-5, atol=0)
    assert torch.equal(weight.grad, torch.ones(3))  # it was divided by the scale


def test_restored_state_takes_the_memory_format_of_the_weights():
    """The fused kernel reads weights and moments in memory order, and would mix them up."""
    shape = (4, 3, 5, 5)
    weight = torch.zeros(shape, requires_grad=True)
    before = Adam({"weight": weight}, 1e-3)
    weight.grad = torch.randn(shape)
    before.step()
    other = weight.detach().to(memory_format=torch.channels_last, copy=True).requires_grad_()
    adam = Adam({"weight": other}, 1e-3)
    adam.restore(before.step_count, before.mean, before.square)
    for own, given in ((adam.mean, before.mean), (adam.square, before.square)):
        assert torch.equal(own["weight"], given["weight"])
        assert own["weight"].stride() == other.stride()
    assert adam.step_count == 1


def test_the_step_size_has_no_cancellation_in_the_first_steps():
    exact = 1e-4 * math.sqrt(1 - 0.999) / (1 - 0.9)
    found = step_size(torch.tensor(1), torch.tensor(1e-4, dtype=torch.float64))
    assert found.item() == pytest.approx(exact, rel=1e-6)
