"""Differences over seeds: intervals, pairs and pools agree with figures that were computed by hand."""

import pytest

from fastae.experiment.losses import LOSSES, losses_with
from fastae.report.compare import compare
from fastae.report.differences import Contrast, contrasts, differences, subtract
from fastae.report.runs import find_runs

from .made import make_run

ELEMENT = "squared error − cross entropy"


def test_common_seeds_are_paired_and_fewer_than_two_values_give_no_difference():
    paired = subtract({1: 5.0, 2: 7.0, 3: 100.0}, {2: 4.0, 1: 3.0, 4: -100.0})
    assert (paired.value, paired.samples) == (2.5, "2 pairs")
    assert paired.half == pytest.approx(0.5 * 12.7062, rel=1e-5)  # Student's t of one degree of freedom
    separate = subtract({1: 5.0, 2: 7.0}, {2: 4.0, 3: 6.0, 4: 5.0})
    assert (separate.value, separate.samples) == (1, "2 and 3 runs, unpaired")
    # The variance of the mean is 1 on one side and 0 on the other, so Welch's degrees of freedom are one.
    assert subtract({1: 1.0, 2: 3.0}, {3: 0.0, 4: 0.0}).half == pytest.approx(12.7062, rel=1e-5)
    assert subtract({1: 5.0}, {1: 4.0}) is None and subtract({}, {1: 4.0, 2: 3.0}) is None


@pytest.mark.parametrize(
    ("one", "other", "number", "interval", "is_decided"),
    [
        ((5.0, 7.0), (4.0, 6.0), "+1.0", "+1.0 to +1.0", True),
        ((5.0, 7.0), (5.0, 7.0), "0.0", "0.0 to 0.0", False),
        ((0.7123456, 0.7125567), (0.7012345, 0.7013456), "+0.01116", "+0.01053 to +0.01180", True),
        ((0.75, 0.5), (0.5, 0.25), "+0.25", "+0.25 to +0.25", True),
        ((12_345.678, 14_000.0), (13_000.0, 13_000.0), "+173", "−10,337 to +10,683", False),
    ],
)
def test_differences_are_rounded_by_their_interval_and_zero_has_no_sign(
    one, other, number, interval, is_decided
):
    found = subtract(dict(enumerate(one)), dict(enumerate(other)))
    assert (found.number, found.interval, found.is_decided) == (number, interval, is_decided)


def test_the_contrasts_are_between_elements_and_between_reductions_of_one_element():
    losses = losses_with({"smooth_l1": lambda y, x: x - y}).values()
    of_elements = {each.name: each for each in contrasts(list(losses)) if each.is_of_elements}
    of_reductions = [each for each in contrasts(list(losses)) if not each.is_of_elements]
    assert [*of_elements] == [ELEMENT, "smooth_l1 − cross entropy", "smooth_l1 − squared error"]
    both = of_elements[ELEMENT]
    assert {*both.losses, *both.subtracted} == {*LOSSES}
    assert len(of_reductions) == 9 and of_reductions[-1].name == "pixel_smooth_l1 − sample_smooth_l1"
    assert [*contrasts([LOSSES["pixel_mse"], LOSSES["sample_bce"]])] == [
        Contrast(ELEMENT, ("pixel_mse",), ("sample_bce",), is_of_elements=True)
    ]


def made_sweep(folder, same_init, repeats=3, with_ssim=True):
    """Makes runs whose metrics are known functions of loss and seed; returns the runs' differences.

    Runs of the first loss were last evaluated at iteration 50, the others at 100, where all numbers are 0.
    """
    for index, loss in enumerate(LOSSES):
        for repeat in range(repeats):
            error = 300_000 + 1000 * repeat + 10 * repeat * ("mse" in loss) + 100 * index
            ends = {0: 9e5, 50: error} | ({100: 0.0} if index else {})
            numbers = {"psnr": 20.0 + index} | ({"ssim": 0.1 * index} if with_ssim else {})
            seed = repeat if same_init else len(LOSSES) * repeat + index
            make_run(
                folder / f"{loss}-{repeat}", loss, seed=seed, train={1: 9e5, max(ends): error}, held_out=ends,
                quality=lambda step, numbers=numbers: numbers if step == 50 else {"psnr": 0.0, "ssim": 0.0},
            )  # fmt: skip
    found = differences(compare(find_runs([folder])[0]))
    return {contrast.name: row for contrast, row in found.items()}


def test_an_element_is_the_mean_over_the_reductions_of_a_seed(tmp_path):
    found = made_sweep(tmp_path, same_init=True)
    assert len(found) == 7
    error = found[ELEMENT]["held-out error"]
    # mse lies one place after bce of the same reduction: 100 + (0, 10, 20).
    assert error.value == pytest.approx(110) and error.samples == "3 pairs" and error.is_decided
    assert error.half == pytest.approx(4.302653 * 10 / 3**0.5, rel=1e-5)
    assert [found[ELEMENT][name].value for name in ("PSNR", "SSIM")] == pytest.approx([1, 0.1])
    pixel = found["minibatch_bce − pixel_bce"]["held-out error"]
    assert (pixel.value, pixel.half) == (-200, 0)


def test_different_seeds_are_not_paired_and_a_metric_that_was_not_logged_has_no_difference(tmp_path):
    found = made_sweep(tmp_path, same_init=False, with_ssim=False)
    assert [*found[ELEMENT]] == ["held-out error", "PSNR"]
    assert found[ELEMENT]["held-out error"].samples == "9 and 9 runs, unpaired"
    assert found["minibatch_bce − pixel_bce"]["held-out error"].samples == "3 and 3 runs, unpaired"


def test_one_run_per_loss_gives_an_interval_only_between_elements_with_different_seeds(tmp_path):
    assert made_sweep(tmp_path / "same", same_init=True, repeats=1) == {}
    found = made_sweep(tmp_path / "other", same_init=False, repeats=1)
    assert [*found] == [ELEMENT] and found[ELEMENT]["PSNR"].samples == "3 and 3 runs, unpaired"
