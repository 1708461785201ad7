"""What the report says, with numbers worked out by hand."""

import pytest

from fastae.report.compare import compare
from fastae.report.differences import differences
from fastae.report.groups import group_seeds
from fastae.report.runs import find_runs
from fastae.report.tables import answer, difference_table, hours, percent, settings, table, undecided

from .made import gpu_report, make_run

LONG = {"iterations": 100_000, "batch_size": 64}


def final(value, at=100):
    return {"train": {1: 9e5, at: value}, "held_out": {0: 9e5, at: value}}


def texts(row):
    return [cell.text for cell in row.cells]


def report_on(folder):
    """The groups of its runs, their comparison and differences, and the answer."""
    runs, _ = find_runs([folder])
    groups, comparison = group_seeds(runs), compare(runs)
    found = differences(comparison)
    return groups, comparison, found, answer(comparison, groups[0].label, found)


def test_a_short_comparison_claims_nothing(tmp_path):
    make_run(tmp_path / "a", "minibatch_bce", **final(310_000.0))
    make_run(tmp_path / "b", "pixel_bce", **final(290_000.0))
    *_, (headline, sentences) = report_on(tmp_path)
    # 100 iterations of 4 images, of 100,000 of 64.
    assert "too short" in headline.lower() and "0.01 %" in headline
    assert len(sentences) == 2 and "310,000" in sentences[0] and "290,000" in sentences[0]


@pytest.mark.parametrize(
    ("at", "batch_size", "short"),
    [(49_999, 64, True), (50_000, 64, False), (50_000, 32, True), (100_000, 32, False)],
)
def test_half_of_the_articles_images_are_long_enough(at, batch_size, short, tmp_path):
    for loss, value in (("minibatch_bce", 310_000.0), ("pixel_bce", 300_000.0), ("pixel_mse", 279_000.0)):
        make_run(tmp_path / loss, loss, iterations=at, batch_size=batch_size, **final(value, at))
    *_, (headline, _) = report_on(tmp_path)
    assert ("too short" in headline.lower()) is short and ("10 %" in headline) is not short


def test_seeds_are_given_beside_the_means(tmp_path):
    for loss, values in {"minibatch_bce": (310e3, 300e3, 305e3), "pixel_mse": (290e3, 296e3, 293e3)}.items():
        for seed, value in enumerate(values):
            make_run(tmp_path / f"{loss}-{seed}", loss, seed=seed, **LONG, **final(value, 100_000))
    groups, comparison, found, (_, (ends, element)) = report_on(tmp_path)
    assert "293,000 ± 3,000" in ends and "305,000 ± 5,000" in ends
    # The pairs differ by -20, -4 and -12 thousand: mean -12, deviation 8; t of 2 degrees is 4.3027.
    assert all(text in element for text in ("−12,000", "−31,873 to +7,873", "3 pairs"))
    differing = difference_table(found)
    assert differing.head == ["difference, 95 % interval", "held-out error"]
    assert differing.rows[0].cells[1].detail in element and not differing.rows[0].cells[1].is_bold
    assert "(held-out error)" in undecided(comparison, found)[0]
    means = [texts(row) for row in table(groups).rows if row.seeds == 3]
    assert [(name, error) for name, _, error, *_ in means] == [
        ("minibatch_bce", "305,000 ± 5,000"), ("pixel_mse", "293,000 ± 3,000"),
    ]  # fmt: skip


def test_a_run_alone_is_not_compared_nor_are_runs_that_have_only_begun(tmp_path):
    make_run(tmp_path / "a", "pixel_mse", **final(290_000.0))
    *_, (headline, (sentence,)) = report_on(tmp_path / "a")
    assert "pixel_mse" in headline and "290,000" in headline and "900,000" in sentence
    make_run(tmp_path / "b", train={1: 9e5}, held_out={0: 9e5})
    *_, (headline, _) = report_on(tmp_path / "b")
    assert "Nothing" in headline


def test_the_table_has_the_last_values_as_they_were_logged_and_no_empty_column(tmp_path):
    train = {1: 900e3, 50: 100e3, 100: 300e3}
    held_out = {0: 900e3, 50: 280e3, 100: 310e3}
    quality = {100: {"psnr": 21.234, "ssim": 0.56789}}
    make_run(
        tmp_path / "a", train=train, held_out=held_out, rate=1000.0, gpu=gpu_report(0.5),
        quality=lambda step: quality.get(step, {"psnr": 1.0}),
    )  # fmt: skip
    shown = table(report_on(tmp_path)[0])
    assert dict(zip(shown.head, texts(shown.rows[0]), strict=True)) == {
        "loss": "minibatch_bce", "iterations": "100", "held-out error": "310,000", "PSNR": "21.23",
        "SSIM": "0.5679", "images/s": "1,000.0", "training": "0 s", "energy": "0.5 kWh",
    }  # fmt: skip
    make_run(tmp_path / "old" / "b")
    assert table(report_on(tmp_path / "old")[0]).head == [
        "loss", "iterations", "held-out error", "images/s", "training",
    ]  # fmt: skip


def test_the_articles_work_is_projected_from_its_own_alone(tmp_path):
    conditions = {"image_size": 128, "latent": 512, "batch_size": 64}
    make_run(tmp_path / "a", "pixel_bce", rate=1000.0, **conditions)
    make_run(tmp_path / "b", "pixel_mse", rate=500.0, **conditions)
    # 38.4 million images at a mean of 1.5 ms: 57,600 s.
    _, projected = hours(find_runs([tmp_path])[0])
    assert "16 h 00 min" in projected and "1.88x faster" in projected
    make_run(tmp_path / "c", "sample_bce", **(conditions | {"latent": 16}))
    _, refused = hours(find_runs([tmp_path])[0])
    assert "--latent 16, 512" in refused


def test_settings_that_differ_are_apart_from_those_that_do_not(tmp_path):
    same = {"image_size": 128, "latent": 512, "iterations": 100_000, "eval_every": 1000, "log_every": 50}
    make_run(tmp_path / "a", "pixel_bce", seed=1, batch_size=8, threads=2, **same)
    make_run(tmp_path / "b", "pixel_mse", seed=2, batch_size=8, threads=2, device="NVIDIA H100", **same)
    differing, common = map(dict, settings(find_runs([tmp_path])[0]))
    assert differing == {
        "device": "AMD EPYC, 2 threads (a); NVIDIA H100 (b)", "--batch-size": "8 (default: 64)",
        "--threads": "2",
    }  # fmt: skip
    assert common["--lr"] == "0.0001" and common["torch"] == "2.13.0" and "--seed" not in common


def test_percentages_are_never_a_rounded_nothing():
    assert [percent(share) for share in (0, 1e-6, 0.0006, 0.0123, 0.5, 12)] == [
        "0.00 %", "less than 0.01 %", "0.06 %", "1.2 %", "50 %", "1200 %",
    ]  # fmt: skip
