"""Differences over seeds: intervals, pairs and pools against hand-made figures."""

import pytest

from fastae.losses import LOSSES
from fastae.report.compare import compare
from fastae.report.differences import ELEMENT, comparisons, differences, subtract
from fastae.report.runs import find_runs

from .made import make_run


def test_pairs_are_the_seeds_that_both_have_and_fewer_than_two_values_decide_nothing():
    paired = subtract({1: 5.0, 2: 7.0, 3: 100.0}, {2: 4.0, 1: 3.0, 4: -100.0})
    assert (paired.value, paired.samples) == (2.5, "2 pairs")
    assert paired.half == pytest.approx(0.5 * 12.7062, rel=1e-5)  # Student's t of one degree of freedom
    separate = subtract({1: 5.0, 2: 7.0}, {2: 4.0, 3: 6.0, 4: 5.0})
    assert (separate.value, separate.samples) == (1, "2 and 3 runs, unpaired")
    # The variance of the mean is 1 on one side and 0 on the other, so Welch's degrees of freedom are one.
    assert subtract({1: 1.0, 2: 3.0}, {3: 0.0, 4: 0.0}).half == pytest.approx(12.7062, rel=1e-5)
    assert subtract({1: 5.0}, {1: 4.0}) is None and subtract({}, {1: 4.0, 2: 3.0}) is None


def test_equal_differences_are_decided_unless_they_are_zero():
    same, shifted = {1: 5.0, 2: 7.0}, {1: 4.0, 2: 6.0}
    assert subtract(same, shifted).is_decided and subtract(same, shifted).interval == "+1.0 to +1.0"
    assert not subtract(same, same).is_decided and subtract(same, same).number == "0.0"
    separate = subtract({1: 5.0, 2: 5.0}, {3: 4.0, 4: 4.0})
    assert separate.is_decided and separate.half == 0


def test_numbers_have_the_digits_that_are_known():
    found = subtract({1: 0.7123456, 2: 0.7125567}, {1: 0.7012345, 2: 0.7013456})
    assert found.number == "+0.01116" and found.interval == "+0.01053 to +0.01180"
    assert subtract({1: 0.75, 2: 0.5}, {1: 0.5, 2: 0.25}).number == "+0.25"
    found = subtract({1: 12_345.678, 2: 14_000.0}, {1: 13_000.0, 2: 13_000.0})
    assert found.number == "+173" and found.interval == "−10,337 to +10,683"


def test_the_comparisons_are_of_the_elements_and_within_each_of_the_reductions():
    names = {name: (set(ones), set(others)) for name, ones, others in comparisons()}
    assert names.pop(ELEMENT) == tuple(
        {loss for loss in LOSSES if element in loss} for element in ("mse", "bce")
    )
    pairs = [ones | others for ones, others in names.values()]
    assert len(pairs) == 6 and all(len(pair) == 2 for pair in pairs)
    assert all(len({loss.split("_")[1] for loss in pair}) == 1 for pair in pairs)


def made_sweep(folder, same_init, repeats=3, with_ssim=True):
    """Runs whose held-out error, PSNR and SSIM are known functions of loss and seed; returns them compared.

    The first one was last evaluated at iteration 50, the others at 100, where all numbers are 0.
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
    return compare(find_runs([folder])[0])


def test_an_element_is_the_mean_over_the_reductions_of_a_seed(tmp_path):
    found = differences(made_sweep(tmp_path, same_init=True))
    assert len(found) == 7
    error = found[ELEMENT]["held-out error"]
    # mse lies one place after bce of the same reduction: 100 + (0, 10, 20).
    assert error.value == pytest.approx(110) and error.samples == "3 pairs" and error.is_decided
    assert error.half == pytest.approx(4.302653 * 10 / 3**0.5, rel=1e-5)
    assert [found[ELEMENT][name].value for name in ("PSNR", "SSIM")] == pytest.approx([1, 0.1])
    pixel = found["minibatch_bce − pixel_bce"]["held-out error"]
    assert (pixel.value, pixel.half) == (-200, 0)


def test_losses_with_seeds_of_their_own_are_not_paired_and_what_was_not_logged_has_no_difference(tmp_path):
    found = differences(made_sweep(tmp_path, same_init=False, with_ssim=False))
    assert [*found[ELEMENT]] == ["held-out error", "PSNR"]
    assert found[ELEMENT]["held-out error"].samples == "9 and 9 runs, unpaired"
    assert found["minibatch_bce − pixel_bce"]["held-out error"].samples == "3 and 3 runs, unpaired"


def test_a_run_per_loss_has_no_interval_but_for_the_elements_if_the_seeds_differ(tmp_path):
    assert differences(made_sweep(tmp_path / "same", same_init=True, repeats=1)) == {}
    found = differences(made_sweep(tmp_path / "other", same_init=False, repeats=1))
    assert [*found] == [ELEMENT] and found[ELEMENT]["PSNR"].samples == "3 and 3 runs, unpaired"
