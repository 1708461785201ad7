"""The analysis agrees with SciPy and with a regression, and finds a difference only if it is there."""

import csv

import numpy as np
import pytest
from scipy import stats

from fastae.experiment.losses import LOSSES, REDUCTIONS, Element, Loss
from fastae.report.analysis import (
    MINUS,
    Contrast,
    Effect,
    analyse,
    analyse_samples,
    contrasts,
    estimate,
    fit,
    holm,
)
from fastae.report.compare import compare
from fastae.report.runs import find_runs
from fastae.report.tables import verdict

from .made import REPOSITORY, make_run

SIX = {name: loss for name, loss in LOSSES.items() if loss.element.name in ("bce", "mse")}
"""The article's losses."""
ELEMENT = "squared error − cross entropy"
WIDEST = Contrast("minibatch − pixel", ("minibatch_bce", "minibatch_mse"), ("pixel_bce", "pixel_mse"))
PAIR = Contrast("b − a", ("b",), ("a",))
COMMITTED = REPOSITORY / "docs/results/2000-iterations"


def drawn(counts, seed=0, first_seed=lambda index: 0):
    """Returns random values: loss -> seed -> value. The seeds of a loss are counted from `first_seed`."""
    generator = np.random.default_rng(seed)
    return {
        loss: {first_seed(index) + repeat: generator.normal(10, 2) for repeat in range(count)}
        for index, (loss, count) in enumerate(counts.items())
    }


def test_separate_seeds_are_a_one_way_analysis_of_variance():
    samples = drawn({"a": 3, "b": 4, "c": 2}, first_seed=lambda index: 10 * index)
    found, expected = fit(samples), stats.f_oneway(*(list(seeds.values()) for seeds in samples.values()))
    assert (found.blocks, found.freedom) == (0, 6)
    assert (found.f, found.p) == pytest.approx((expected.statistic, expected.pvalue))


def test_two_losses_with_common_seeds_are_a_paired_t_test():
    samples = drawn({"a": 4, "b": 5})  # the fifth seed of b is not a block
    first, second = (np.array(list(samples[loss].values())[:4]) for loss in "ba")
    found, expected = fit(samples), stats.ttest_rel(first, second)
    effect = estimate(found, PAIR)
    assert (found.blocks, found.freedom) == (4, 3)
    assert (found.f, found.p) == pytest.approx((expected.statistic**2, expected.pvalue))
    ends = (effect.value - effect.half, effect.value + effect.half)
    assert (effect.p, *ends) == pytest.approx((expected.pvalue, *expected.confidence_interval(0.95)))


@pytest.mark.parametrize("margin", [0.5, 2, 4, 8, 16])
def test_sides_are_the_same_if_two_one_sided_tests_say_so(margin):
    samples = drawn({"a": 4, "b": 4})
    pairs = np.array(list(samples["b"].values())) - list(samples["a"].values())
    low = stats.ttest_1samp(pairs, -margin, alternative="greater").pvalue
    high = stats.ttest_1samp(pairs, margin, alternative="less").pvalue
    assert estimate(fit(samples), PAIR, margin).is_within_margin == (max(low, high) < 0.05)


def test_main_effects_in_blocks_are_those_of_a_regression():
    samples = drawn(dict.fromkeys(SIX, 3))
    rows = [(index, seed) for index, loss in enumerate(samples) for seed in samples[loss]]
    design = np.array([[*np.eye(6)[loss], *np.eye(3)[seed][1:]] for loss, seed in rows])
    values = np.array([value for seeds in samples.values() for value in seeds.values()])
    weights, (rest,), *_ = np.linalg.lstsq(design, values)
    found = fit(samples)
    assert (found.freedom, found.variance) == pytest.approx((10, rest / 10))
    for contrast in contrasts([*SIX.values()]):
        side = np.array([(name in contrast.losses) / len(contrast.losses) for name in SIX])
        side -= [(name in contrast.subtracted) / len(contrast.subtracted) for name in SIX]
        vector = np.array([*side, 0, 0])
        error = (rest / 10 * (vector @ np.linalg.inv(design.T @ design) @ vector)) ** 0.5
        effect = estimate(found, contrast)
        assert (effect.value, effect.error) == pytest.approx((vector @ weights, error))


@pytest.mark.parametrize("samples", [{}, {"a": {0: 1.0, 1: 2.0}}, {"a": {0: 1.0}, "b": {0: 2.0}}])
def test_fewer_than_two_losses_or_no_repeats_are_not_analysed(samples):
    assert fit(samples) is None
    assert fit(samples | {"c": {0: np.nan, 1: np.inf}}) is None


def test_p_values_are_corrected_by_holm():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.5, 0.9]) == [1, 1] and holm([]) == []


def test_the_contrasts_are_the_main_effects_of_elements_and_reductions():
    own = [Loss(Element("own", "own", min), reduction) for reduction in REDUCTIONS]
    found = {each.name: each for each in contrasts([*SIX.values(), *own])}
    assert [*found] == [
        ELEMENT, "own − cross entropy", "own − squared error",
        "minibatch − pixel", "minibatch − sample", "pixel − sample",
    ]  # fmt: skip
    assert found[ELEMENT].losses == ("minibatch_mse", "pixel_mse", "sample_mse")
    assert found["pixel − sample"].subtracted == ("sample_bce", "sample_mse", "sample_own")


def test_the_sides_of_a_contrast_have_what_is_common():
    found = contrasts([SIX[name] for name in ("pixel_bce", "pixel_mse", "sample_bce")])
    assert [(each.losses, each.subtracted) for each in found] == [
        (("pixel_mse",), ("pixel_bce",)), (("pixel_bce",), ("sample_bce",)),
    ]  # fmt: skip
    (only,) = contrasts([SIX["pixel_mse"], SIX["sample_bce"]])  # nothing is common
    assert (only.losses, only.subtracted) == (("pixel_mse",), ("sample_bce",))


@pytest.mark.parametrize(
    ("value", "error", "number", "interval"),
    [
        (1.0, 0.0, "+1.0", "+1.0 to +1.0"),
        (0.0, 0.0, "0.0", "0.0 to 0.0"),
        (0.0111556, 0.00005, "+0.01116", "+0.01052 to +0.01179"),
        (172.839, 827.161, "+173", "−10,337 to +10,683"),
    ],
)
def test_differences_are_rounded_by_their_interval_and_zero_has_no_sign(value, error, number, interval):
    effect = Effect(value, error, freedom=1, p=1.0, margin=None)
    assert (effect.number, effect.interval) == (number, interval)


def made_analysis(folder, factor, same_init=True, repeats=3, metrics=("loss_index", "ssim")):
    """Makes a sweep and analyses it. `factor` returns what multiplies the error of a loss and a repeat."""
    for index, loss in enumerate(SIX):
        for repeat in range(repeats):
            error = 150_000 * factor(loss, repeat)
            make_run(
                folder / f"{loss}-{repeat}", loss, seed=repeat + (0 if same_init else 100 * index),
                held_out={0: 9e5, 20: 5e5} | dict.fromkeys((40, 60, 80), error) | {100: error},
                quality=lambda step, ssim=1e-6 * error: {"ssim": ssim} if "ssim" in metrics else {},
            )  # fmt: skip
    found = analyse(compare(find_runs([folder])[0]))
    return found, {contrast.name: effect for contrast, effect in found.primary.items()}


def simulated(difference, generator):
    """Returns factors of the error: seeds differ by 2.4 %, runs by 1 %, and the elements by `difference`."""
    seeds = generator.normal(1, 0.024, 3)
    noise = {(loss, repeat): generator.normal(0, 0.01) for loss in SIX for repeat in range(3)}
    return lambda loss, repeat: seeds[repeat] + noise[loss, repeat] - difference * loss.endswith("mse")


@pytest.mark.parametrize("difference", [0.0, 0.03])
def test_in_95_of_100_draws_the_headline_has_a_difference_if_and_only_if_it_is_there(difference):
    """In 5 % of draws, a headline may claim what is not there, by the level of the tests."""
    generator = np.random.RandomState(0)  # NumPy never changes its numbers
    claims = []
    for _ in range(100):
        factor = simulated(difference, generator)
        samples = {loss: {repeat: factor(loss, repeat) for repeat in range(3)} for loss in SIX}
        claims.append(verdict(analyse_samples({"held-out error": samples}, [*SIX.values()])))
    differing = [claim for claim in claims if "differ:" in claim]
    if difference:
        assert sum(f"{ELEMENT} is {MINUS}" in each and "pixel" not in each for each in differing) >= 95
    else:
        assert len(differing) <= 5


def test_the_detectable_difference_is_found_in_80_of_100_draws():
    """Two reductions have this difference, and the third lies between them: the F test's worst case."""
    generator = np.random.default_rng(0)
    error = (2 / (2 * 3)) ** 0.5  # of the difference between two reductions, for a residual of 1
    difference = Effect(0.0, error, 10, 1.0, None).detectable(tests=4, losses=6)
    shift = {"pixel": difference / 2, "sample": 0.0, "minibatch": -difference / 2}
    found = []
    for _ in range(400):
        samples = {
            name: {seed: 100 + shift[loss.reduction.name] + generator.normal() for seed in range(3)}
            for name, loss in SIX.items()
        }
        primary = analyse_samples({"held-out error": samples}, [*SIX.values()]).primary
        found.append(primary[WIDEST].is_different)
    assert np.mean(found) == pytest.approx(0.8, abs=0.06)


def test_the_detectable_difference_of_three_losses_is_found_by_the_t_test_in_80_of_100_draws():
    """With three seeds of three losses, the corrected t test needs a larger difference than the F test."""
    generator = np.random.RandomState(0)
    difference = Effect(0.0, 1.0, 4, 1.0, None).detectable(tests=3, losses=3)
    estimates = difference + generator.normal(size=200_000)
    errors = np.sqrt(generator.chisquare(4, size=200_000) / 4)
    found = 2 * stats.t.sf(estimates / errors, 4) < 0.05 / 3
    assert found.mean() == pytest.approx(0.8, abs=0.004)


@pytest.mark.parametrize("same_init", [True, False])
def test_a_sweep_with_a_difference_is_analysed_by_its_last_four_evaluations(same_init, tmp_path):
    factor = simulated(0.2, np.random.default_rng(0))
    found, effects = made_analysis(tmp_path, factor, same_init)
    assert [name for name, effect in effects.items() if effect.is_different] == [ELEMENT]
    assert -0.25 < effects[ELEMENT].value / 150_000 < -0.15
    assert [fitted.blocks for fitted in found.fits.values()] == [3 if same_init else 0] * 2
    assert [*found.fits] == ["held-out error", "SSIM"] and len(found.effects) == 4


def test_losses_with_little_noise_are_shown_to_be_the_same(tmp_path):
    generator = np.random.default_rng(0)
    found, effects = made_analysis(tmp_path, lambda *_: generator.normal(1, 0.002), metrics=("loss_index",))
    assert all(effect.is_within_margin and not effect.is_different for effect in effects.values())
    assert 0 < found.detectable < 0.02 and [*found.fits] == ["held-out error"]


def test_the_committed_results_agree_with_a_recomputation_from_their_csv():
    """The primary table: F test, differences, intervals, p values, and what is different or the same."""
    values, means, variance, freedom = endpoints()
    f = 3 * np.square(means - means.mean()).sum() / (6 - 1) / variance
    bce, mse = means.mean(axis=1)
    minibatch, pixel, sample = means.mean(axis=0)
    differences = np.array([mse - bce, minibatch - pixel, minibatch - sample, pixel - sample])
    errors = np.sqrt(variance * np.array([2 / 9, 2 / 6, 2 / 6, 2 / 6]))  # a side is the mean of 9 or 6 runs
    p = 2 * stats.t.sf(np.abs(differences) / errors, freedom)
    order = np.argsort(p)
    p[order] = np.minimum(1, np.maximum.accumulate(p[order] * [4, 3, 2, 1]))
    margin = 0.02 * values.mean()
    outside = [stats.t.sf((margin + sign * differences) / errors, freedom) for sign in (1, -1)]

    found = analyse(compare([run for run in find_runs([COMMITTED])[0] if run.config.loss in SIX]))
    effects = [*found.primary.values()]
    assert [contrast.name for contrast in found.primary] == [
        ELEMENT, "minibatch − pixel", "minibatch − sample", "pixel − sample",
    ]  # fmt: skip
    fitted = found.fits["held-out error"]
    assert (fitted.blocks, fitted.f, fitted.p) == pytest.approx((3, f, stats.f.sf(f, 5, freedom)))
    assert [effect.value for effect in effects] == pytest.approx(differences)
    assert [effect.half for effect in effects] == pytest.approx(stats.t.isf(0.025, freedom) * errors)
    assert [effect.p for effect in effects] == pytest.approx(p)
    assert [effect.is_different for effect in effects] == [each < 0.05 > fitted.p for each in p]
    assert [effect.is_within_margin for effect in effects] == [
        max(each) < 0.05 for each in zip(*outside, strict=True)
    ]


def test_the_unplanned_numbers_of_the_results_page_are_those_of_the_csv():
    page, (values, means, variance, freedom) = results_page(), endpoints()
    (bce, mse), percent = values, 100 / values.mean()
    error = np.sqrt(variance * 2 / 3)  # of the difference between two losses

    lower = percent * (bce - mse).mean(axis=1)
    assert (
        "{:.1f} % with `minibatch`, {:.1f} % with `pixel` and {:.1f} % with `sample`".format(*lower) in page
    )
    interaction = means - means.mean(axis=0) - means.mean(axis=1, keepdims=True) + means.mean()
    f = 3 * np.square(interaction).sum() / 2 / variance
    assert f"F(2, 10) = {f:.2f}, p = {stats.f.sf(f, 2, freedom):.2f}" in page
    half = percent * error * stats.t.isf(0.05, freedom)
    assert [share + half < 2 for share in lower] == [False, False, True]

    half = percent * error * stats.t.isf(0.025, freedom)
    value = percent * (mse[2] - mse[0]).mean()
    assert (
        f"{value:.1f} % below `sample` with squared error ({value - half:.1f} to {value + half:.1f} %" in page
    )
    value = percent * (bce[0] - bce[2]).mean()
    assert f"with cross entropy (−{half - value:.1f} to +{value + half:.1f} %)" in page

    seeds = percent * (bce - mse).mean(axis=0)
    assert "The three seeds agree: {:.1f}, {:.1f} and {:.1f} %".format(*seeds) in page
    alone = stats.ttest_1samp(seeds, 0)
    low, high = alone.confidence_interval()
    assert (
        f"the interval is {low:.1f} to {high:.1f} %, and p is {alone.pvalue:.3f}, or {4 * alone.pvalue:.3f}"
        in page
    )
    assert seeds.std(ddof=1) < percent * error


def test_the_difference_by_iteration_and_other_endpoints_on_the_results_page_are_those_of_the_csv():
    page, errors = results_page(), held_out()[..., 1:]  # from iteration 100 on

    def lower(evaluations):
        """By how much squared error is lower, in percent, for each seed."""
        bce, mse = errors[..., evaluations].mean(axis=(1, 3))
        return 100 * (bce - mse) / np.mean([bce, mse], axis=0)

    by_iteration = [lower([index]).mean() for index in range(20)]
    assert f"within {max(map(abs, by_iteration[:6])):.1f} % of 0 up to iteration 600" in page
    later = by_iteration[6:]
    assert f"{min(later):.1f} to {max(later):.1f} % lower from iteration 700 on" in page
    others = [lower(slice(-count, None)).mean() for count in (2, 3, 5, 6, 8, 11)]
    assert f"squared error is {min(others):.1f} to {max(others):.1f} % lower" in page
    last = lower([-1])
    text = "it is {:.1f} % lower, mostly by one seed ({:.1f}, {:.1f} and {:.1f} %)"
    assert text.format(last.mean(), *last) in page


def results_page():
    """Returns the text of docs/results.md, whose lines are joined."""
    return " ".join((REPOSITORY / "docs/results.md").read_text().split())


def endpoints():
    """Returns the committed runs' means over the last four evaluations, and their analysis of variance.

    They are (elements, reductions, seeds), followed by their means over the seeds, and by the residual's
    variance and degrees of freedom.
    """
    values = held_out()[..., -4:].mean(axis=-1)
    means = values.mean(axis=-1)
    residuals = values - means[..., None] - values.mean(axis=(0, 1)) + values.mean()
    freedom = (6 - 1) * (3 - 1)
    return values, means, np.square(residuals).sum() / freedom, freedom


def held_out():
    """Reads the held-out errors of the committed runs: (elements, reductions, seeds, evaluations)."""
    losses = [[f"{side}_{name}" for side in ("minibatch", "pixel", "sample")] for name in ("bce", "mse")]
    return np.array(
        [[[evaluations(f"{loss}{seed}") for seed in ("", "-2", "-3")] for loss in row] for row in losses]
    )


def evaluations(run):
    """Reads a run's held-out errors, every 100 iterations from 0 on."""
    with (COMMITTED / run / "metrics.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["kind"] == "held_out"]
    assert [int(row["iteration"]) for row in rows] == [*range(0, 2001, 100)]
    return [float(row["loss_index"]) for row in rows]
