"""`python -m scripts.results` makes the page of results from copied numbers that contain nothing private."""

import re
from pathlib import Path

import pytest
from click.testing import CliRunner

from fastae.config import TrainConfig
from fastae.report.runs import find_runs
from fastae.sweep.plan import SweepConfig
from scripts.results import main

from .report.made import EVALUATED, SMALL, make_sweep

PAGE = Path("docs/results.md")
ASIDE = "# Results\n\n<!-- small -->\nold\n<!-- /small -->\n\nWords.\n"


@pytest.fixture
def sweep(tmp_path, monkeypatch):
    """A sweep of two losses and two seeds, in a repository that has a page for it."""
    (tmp_path / "docs/images").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    PAGE.write_text(ASIDE)
    config = SweepConfig(TrainConfig(**SMALL), ("pixel_bce", "pixel_mse"), repeats=2, same_init=True)
    made = make_sweep(
        tmp_path / "secret" / "sweep",
        config,
        lambda run: (
            EVALUATED | dict.fromkeys((50, 75, 100), 3e5 + 1000 * run.seed - 5000 * (run.loss == "pixel_mse"))
        ),
        quality=lambda step: {"ssim": 0.5},
        data="/secret",
        cache_dir="/secret",
    )
    return made.path


def results(*arguments):
    return CliRunner().invoke(main, [*map(str, arguments)])


def test_a_page_is_made_from_the_numbers_of_a_sweep_and_made_again_from_their_copy(sweep):
    copied = Path("docs/results/small")
    assert results("--copy", sweep, copied).exit_code == 0
    files = [path for path in copied.rglob("*") if path.is_file()]
    assert {path.name for path in files} == {"sweep.json", "config.json", "metrics.csv"} and len(files) == 9
    assert not any("secret" in path.read_text() for path in files)
    assert len(find_runs([copied])[0]) == 4
    page = PAGE.read_text()
    assert "| pixel_mse | 295,500 ± 707 | 0.5000 | 100 | 2 |" in page
    assert "| squared error − cross entropy | **−5,000** (−5,000 to −5,000, different) |" in page
    assert page.startswith("# Results\n\n<!-- small -->") and page.endswith("<!-- /small -->\n\nWords.\n")
    figures = re.findall(r"\]\((images/results-small-[\w-]+\.svg)\)", page)
    assert (
        "old" not in page
        and len(figures) == 4
        and all((PAGE.parent / figure).is_file() for figure in figures)
    )
    assert results(copied).exit_code == 0 and PAGE.read_text() == page


def test_a_page_without_a_place_for_the_results_is_not_changed(sweep):
    PAGE.write_text("# Results\n")
    result = results(sweep)
    assert result.exit_code == 2 and "<!-- sweep -->" in result.output and PAGE.read_text() == "# Results\n"
