"""`python -m scripts.results` makes the page of results from copied numbers that contain nothing private."""

import re
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from PIL import Image

from fastae.config import TrainConfig
from fastae.experiment.adam import EPSILON
from fastae.report.runs import find_runs
from fastae.sweep.plan import SweepConfig
from fastae.utils.pictures import GAP, MARGIN, TITLE
from scripts import adam_eps
from scripts.results import main
from scripts.sweep_with_control import CONTROL, COPIED

from .report.made import EVALUATED, SMALL, make_run, make_sweep

PAGE = Path("docs/results.md")
ASIDE = "# Results\n\n<!-- small -->\nold\n<!-- /small -->\n\nWords.\n"


@pytest.fixture(autouse=True)
def page(tmp_path, monkeypatch):
    """The current folder is a repository with a page for results."""
    (tmp_path / "docs/images").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    PAGE.write_text(ASIDE)


@pytest.fixture
def sweep(tmp_path):
    """A sweep of two losses and two seeds, and a control of one seed."""
    config = SweepConfig(TrainConfig(**SMALL), ("pixel_bce", "pixel_mse"), repeats=2, same_init=True)
    others = {"quality": lambda step: {"ssim": 0.5}, "data": "/secret", "cache_dir": "/secret", "weights": 0}
    made = make_sweep(
        tmp_path / "secret" / "sweep",
        config,
        lambda run: (
            EVALUATED | dict.fromkeys((50, 75, 100), 3e5 + 1000 * run.seed - 5000 * (run.loss == "pixel_mse"))
        ),
        **others,
    )
    make_run(
        made.path / CONTROL,
        CONTROL,
        described={"reduction": "pixel", "element": "control"},
        held_out=EVALUATED | dict.fromkeys((50, 75, 100), 295_295.0),
        **others,
    )
    return made.path


def results(*arguments):
    return CliRunner().invoke(main, [*map(str, arguments)])


def test_a_page_is_made_from_the_numbers_of_a_sweep_and_made_again_from_their_copy(sweep):
    copied = Path("docs/results/small")
    assert results("--copy", sweep, copied).exit_code == 0
    files = [path for path in copied.rglob("*") if path.is_file()]
    assert {path.name for path in files} == {"sweep.json", "config.json", "metrics.csv"} and len(files) == 11
    assert not any("secret" in path.read_text() for path in files)
    assert len(find_runs([copied])[0]) == 5
    page = PAGE.read_text()
    assert "| pixel_mse | 295,500 ± 707 | – | 0.5000 |" in page
    assert (
        "| squared error − cross entropy | **−5,000** (−5,000 to −5,000, different, within the margin) |"
        in page
    )
    assert f"The control's held-out error, relative to that of {COPIED}: +0.10% (seed 0)." in page
    assert page.startswith("# Results\n\n<!-- small -->") and page.endswith("<!-- /small -->\n\nWords.\n")
    figures = re.findall(r"\]\((images/results-small-[\w-]+\.(?:svg|png))\)", page)
    assert (
        "old" not in page
        and len(figures) == 5
        and all((PAGE.parent / figure).is_file() for figure in figures)
    )
    with Image.open("docs/images/results-small-faces.png") as faces:  # the faces, two losses and the control
        assert faces.size == (MARGIN + 8 * (32 + GAP), TITLE + 4 * (32 + GAP))
    assert results(copied).exit_code == 0 and PAGE.read_text() == page


def test_a_page_without_a_place_for_the_results_is_not_changed(sweep):
    PAGE.write_text("# Results\n")
    result = results(sweep)
    assert result.exit_code == 2 and "<!-- sweep -->" in result.output and PAGE.read_text() == "# Results\n"


def test_the_weights_of_eps_are_counted_and_shown():
    """One of four weights has had no gradient, and eps shortens the step of one other by 10 %."""
    layers = {"encoder.0": [EPSILON / 0.1, EPSILON / 1e-3, 0.0], "decoder.0": [EPSILON / 1e-6]}
    rows = [
        ("bce", 1, layer, low, weights)
        for layer, roots in layers.items()
        for low, weights in adam_eps.counted(torch.tensor(roots, dtype=torch.float64).square())
    ]
    file = Path("small.csv")
    adam_eps.append(file, [adam_eps.HEAD])
    adam_eps.append(file, rows)
    counts = adam_eps.read_counts(file)
    assert sum(sum(row.values()) for row in counts["bce", 1].values()) == 4
    assert counts["bce", 1]["encoder.0"][float("inf")] == 1
    assert results(file).exit_code == 0
    page = PAGE.read_text()
    assert "| minibatch_bce | 33.33% |" in page and "| pixel_bce | 0.00% |" in page and "_mse" not in page
    assert b"encoder.0" in (PAGE.parent / "images/results-small.svg").read_bytes()
