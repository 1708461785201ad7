"""What the report says agrees with numbers that were computed by hand."""

import pytest

from fastae.report.analysis import analyse
from fastae.report.compare import compare, group_seeds
from fastae.report.runs import find_runs
from fastae.report.tables import answer, conclusions, difference_table, hours, percent, settings, table

from .made import make_run


def final(value, at=100):
    return {"train": {1: 9e5, at: value}, "held_out": {0: 9e5, at: value}}


def texts(row):
    return [cell.text for cell in row.cells]


def report_on(folder):
    """Returns the groups of the folder's runs, their comparison and analysis, and the answer."""
    runs, _ = find_runs([folder])
    groups, comparison = group_seeds(runs), compare(runs)
    analysis = analyse(comparison)
    return groups, comparison, analysis, answer(comparison, groups[0].label, analysis)


@pytest.mark.parametrize(
    ("at", "batch_size", "headline"),
    [
        (100, 4, "Too short to tell: less than 0.01 %"),
        (49_999, 64, "Too short to tell: 50 %"),
        (50_000, 64, "No difference can be shown"),
        (50_000, 32, "Too short to tell: 25 %"),
    ],
)
def test_short_training_gives_a_headline_without_a_conclusion(at, batch_size, headline, tmp_path):
    for loss, value in (("minibatch_bce", 310_000.0), ("pixel_bce", 300_000.0), ("pixel_mse", 279_000.0)):
        make_run(tmp_path / loss, loss, iterations=at, batch_size=batch_size, **final(value, at))
    *_, (found, (ends, seeds, *_)) = report_on(tmp_path)
    assert found.startswith(headline) and "--repeats" in seeds
    assert "279,000 for pixel_mse, 300,000 for pixel_bce, 310,000 for minibatch_bce" in ends


@pytest.mark.parametrize(
    ("mse", "headline"),
    [
        ((290e3, 291e3, 289e3), "The losses differ: squared error − cross entropy is −3.5 % of the error"),
        ((300.5e3, 299.9e3, 300e3), "The losses are the same within 2.0 % of the error"),
        ((290e3, 310e3, 296e3), "No difference shown; differences from "),
    ],
)
def test_the_headline_of_long_runs_is_their_verdict(mse, headline, tmp_path):
    for loss, values in {"pixel_bce": (300e3, 300.5e3, 300.2e3), "pixel_mse": mse}.items():
        for seed, value in enumerate(values):
            settings = {"seed": seed, "batch_size": 64, "iterations": 100_000}
            make_run(tmp_path / f"{loss}-{seed}", loss, **settings, **final(value, 100_000))
    *_, (found, _) = report_on(tmp_path)
    assert found.startswith(headline) and "on would have shown" in found


def test_means_are_shown_with_the_deviation_of_the_seeds(tmp_path):
    for loss, values in {"minibatch_bce": (310e3, 300e3, 305e3), "pixel_mse": (290e3, 296e3, 293e3)}.items():
        for seed, value in enumerate(values):
            make_run(tmp_path / f"{loss}-{seed}", loss, seed=seed, **final(value))
    groups, comparison, analysis, (_, (ends, *_)) = report_on(tmp_path)
    assert "293,000 ± 3,000" in ends and "305,000 ± 5,000" in ends
    # The pairs differ by -20, -4 and -12 thousand: mean -12, deviation 8; t of 2 degrees is 4.3027.
    differing = difference_table(analysis)
    assert differing.head == ["difference, 95 % interval", "held-out error"]
    ((_, cell),) = (row.cells for row in differing.rows)
    assert (cell.text, cell.detail, cell.is_bold) == ("−12,000", "−31,873 to +7,873, open", False)
    # F is the square of t = -12 / (8 / sqrt(3)).
    assert "F(1, 2) = 6.75, p = 0.12 (3 seeds as blocks)" in " ".join(conclusions(comparison, analysis))
    means = [texts(row) for row in table(groups).rows if row.seeds == 3]
    assert [(name, error) for name, _, error, *_ in means] == [
        ("minibatch_bce", "305,000 ± 5,000"), ("pixel_mse", "293,000 ± 3,000"),
    ]  # fmt: skip


def test_a_single_run_and_runs_that_have_only_begun_are_not_compared(tmp_path):
    make_run(tmp_path / "a", "pixel_mse", **final(290_000.0))
    *_, (headline, (sentence,)) = report_on(tmp_path / "a")
    assert "pixel_mse" in headline and "290,000" in headline and "900,000" in sentence
    make_run(tmp_path / "b", train={1: 9e5}, held_out={0: 9e5})
    *_, (headline, _) = report_on(tmp_path / "b")
    assert "Nothing" in headline


def test_the_table_has_the_last_values_as_they_were_logged_and_no_empty_column(tmp_path):
    logged = {"train": {1: 900e3, 50: 100e3, 100: 300e3}, "held_out": {0: 900e3, 50: 280e3, 100: 310e3}}
    last = {"psnr": 21.234, "ssim": 0.56789}
    quality = {"quality": lambda step: last if step == 100 else {"psnr": 1.0}}
    make_run(tmp_path / "a", rate=1000.0, kwh=[0.5], **logged, **quality)
    shown = table(report_on(tmp_path)[0])
    assert dict(zip(shown.head, texts(shown.rows[0]), strict=True)) == {
        "loss": "minibatch_bce", "iterations": "100", "held-out error": "310,000", "PSNR": "21.23",
        "SSIM": "0.5679", "images/s": "1,000.0", "training": "0 s", "energy": "0.5 kWh",
    }  # fmt: skip
    make_run(tmp_path / "old" / "b")
    columns = ["loss", "iterations", "held-out error", "images/s", "training"]
    assert table(report_on(tmp_path / "old")[0]).head == columns


def test_the_articles_time_is_projected_only_from_runs_of_its_sizes(tmp_path):
    conditions = {"image_size": 128, "latent": 512, "batch_size": 64}
    make_run(tmp_path / "a", "pixel_bce", rate=1000.0, **conditions)
    make_run(tmp_path / "b", "pixel_mse", rate=500.0, **conditions)
    # 38.4 million images at a mean of 1.5 ms: 57,600 s.
    _, projected = hours(find_runs([tmp_path])[0])
    assert "16 h 00 min" in projected and "1.88x faster" in projected
    make_run(tmp_path / "c", "sample_bce", **(conditions | {"latent": 16}))
    _, refused = hours(find_runs([tmp_path])[0])
    assert "not projected" in refused


def test_differing_settings_are_listed_apart_from_common_ones(tmp_path):
    same = {"image_size": 128, "latent": 512, "iterations": 100_000, "eval_every": 1000, "log_every": 50}
    for name, device in {"a": "AMD EPYC", "b": "NVIDIA H100"}.items():
        made = {"described": {"device": device}, "batch_size": 8, "threads": 2, "amp": True}
        make_run(tmp_path / name, **made, **same)
    differing, common = map(dict, settings(find_runs([tmp_path])[0]))
    assert differing == {
        "device": "AMD EPYC (a); NVIDIA H100 (b)", "--batch-size": "8", "--threads": "2",
        "--amp": "on",
    }  # fmt: skip
    expected = {"--lr": "0.0001", "--crop": "not set", "torch": "2.13.0", "images, held out": "2"}
    assert expected.items() <= common.items() and "--seed" not in common


def test_small_percentages_are_not_rounded_to_zero():
    assert [percent(share) for share in (0, 1e-6, 0.0006, 0.0123, 0.5, 12)] == [
        "0.00 %", "less than 0.01 %", "0.06 %", "1.2 %", "50 %", "1200 %",
    ]  # fmt: skip
