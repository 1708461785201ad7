"""Makes the figures and tables of docs/results.md from the numbers of a sweep's runs.

    python -m scripts.results docs/results/NAME...
    python -m scripts.results --copy SWEEP docs/results/NAME

writes, from the repository's root, docs/images/results-NAME*.svg and what is between the comments
`<!-- NAME -->` and `<!-- /NAME -->` in docs/results.md. For NAME.csv, the counts of `scripts.adam_eps`, it
does the same. `--copy` first copies a sweep's numbers: metrics.csv and sweep.json as they are, and
config.json without its paths and the host's kernel. It also draws results-NAME-faces.png from the sweep's
weights, which are too large to be copied: synthetic faces, since CelebA's may not be shown.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import cycle
from pathlib import Path
from tempfile import TemporaryDirectory

import click
import numpy as np

from fastae.data import CropResize, load_images
from fastae.data.faces import synthetic as faces
from fastae.errors import FastaeError
from fastae.experiment.losses import LOSSES
from fastae.report.analysis import Contrast, analyse
from fastae.report.compare import Comparison, by_seed, compare, group_seeds
from fastae.report.figures import GRID, HEIGHT, INK, SETTINGS, WIDTH, Chart, draw_charts, svg
from fastae.report.forest import LINE, WITHIN, draw_forest
from fastae.report.gallery import FLOAT32
from fastae.report.runs import PRIMARY, QUALITY, Run, find_runs
from fastae.report.tables import Cell, Row, Table, conclusions, difference_table, mean_text
from fastae.runs.folder import RunFolder
from fastae.runs.loaded_model import load_model
from fastae.sweep.folder import SweepFolder
from fastae.training.evaluate import reconstruct
from fastae.utils.console import log
from fastae.utils.files import write_json
from fastae.utils.pictures import named_rows, save_png
from fastae.utils.plotting import import_matplotlib
from scripts import adam_eps
from scripts.sweep_with_control import CONTROL, COPIED

PAGE, IMAGES = Path("docs/results.md"), Path("docs/images")
FACES_SHOWN = 8
SEED_MARKERS = "os^Dv"

CURVES = (
    "A line is the mean over the seeds, and its band reaches from the lowest seed to the highest. Blue is "
    "squared error, orange is cross entropy; width and marker show the reduction. The vertical axis is "
    "logarithmic."
)
BY_ITERATION = (
    "A thin line is the difference with one seed, in percent of the mean error at this iteration. The thick "
    "line is the mean of all seeds. The endpoint is the mean over the shaded evaluations."
)
ENDPOINTS = (
    "Each value is the mean over the seeds, ± their standard deviation, of the mean over the evaluations at "
    "iterations {ends}."
)
INTERVALS = (
    "The whole line is the 95 % interval, which the table shows. The thick part is the 90 % interval: if it "
    "lies within the margin, a difference as large as the margin is rejected. No interval is corrected, so "
    "one that excludes 0 does not by itself mean *different*. [The report's page](report.md#the-comparisons) "
    "says when sides are *different*, the *same* or *open*."
)


@click.command()
@click.argument("folders", metavar="DIR...", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--copy", "sweep", metavar="SWEEP", type=click.Path(path_type=Path), help="Fill DIR from it.")
def main(folders: tuple[Path, ...], sweep: Path | None) -> None:
    """Make the figures and tables of docs/results.md from the runs in each DIR."""
    if sweep and len(folders) > 1:
        raise click.UsageError("--copy fills one DIR")
    try:
        for folder in folders:
            if sweep:
                copy_numbers(sweep, folder)
                save_png(faces_sheet(sweep), faces_file(folder))
            made = eps_results(folder) if folder.suffix == ".csv" else results(folder)
            fill(PAGE, folder.stem, "\n\n".join(made))
    except FastaeError as error:
        raise click.UsageError(str(error)) from None


def copy_numbers(sweep: Path, out: Path) -> None:
    """Copies what the results are made from, without what is private to the machine."""
    runs, warnings = find_runs([sweep])
    for warning in warnings:
        log(f"warning   {warning}")
    for run in runs:
        old, new = RunFolder(run.path), RunFolder(out / run.path.name)
        new.path.mkdir(parents=True, exist_ok=True)
        described = replace(
            run.description,
            config=replace(run.config, data=None, out=None, cache_dir=None),
            data=replace(run.description.data, source=None, folder=None),
            environment=replace(run.description.environment, platform=None),
        )
        write_json(new.config_file, described.as_dict())
        shutil.copyfile(old.metrics_file, new.metrics_file)
    write_json(SweepFolder(out).file, SweepFolder(sweep).read_settings())
    size = sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
    log(f"{out}: {size / 1e3:,.0f} kB")


def faces_file(folder: Path) -> Path:
    """Returns the path of the picture of synthetic faces that belongs to the results in `folder`."""
    return IMAGES / f"results-{folder.name}-faces.png"


def faces_sheet(sweep: Path) -> np.ndarray:
    """Draws synthetic faces above their reconstructions by the first run of each loss: uint8 (H, W, 3)."""
    runs = [group.runs[0] for group in group_seeds(find_runs([sweep])[0])]
    config = runs[0].config
    crop_resize = CropResize(config.crop, config.image_size, config.antialias)
    with TemporaryDirectory() as folder:
        faces.write(Path(folder), FACES_SHOWN)
        images = load_images(sorted(Path(folder).iterdir()), crop_resize, "cpu")
    rows = [(run.config.loss, reconstruct(load_model(run.path).model, images, FLOAT32)) for run in runs]
    return named_rows("synthetic faces", [("original", images), *rows])


def results(folder: Path) -> Iterator[str]:
    """Writes the figures; yields the paragraphs: figures with captions, tables, what is not decided."""
    found, warnings = find_runs([folder])
    runs = [run for run in found if run.config.loss in LOSSES]  # the control is not one of the six
    groups, comparison = group_seeds(runs), compare(runs)
    analysis = analyse(comparison)
    for warning in (*warnings, *comparison.warnings):
        log(f"warning   {warning}")
    yield from written(folder, [chart for chart in draw_charts(groups) if chart.name == "held-out"])
    yield CURVES
    if (image := faces_file(folder)).is_file():
        yield embedded("Synthetic faces above their reconstructions by each loss", image)
    if comparison.ends:
        yield ENDPOINTS.format(ends=", ".join(f"{end:,}" for end in comparison.ends))
        yield markdown(endpoint_table(comparison))
    if analysis.effects:
        yield from written(folder, [draw_difference(comparison, next(iter(analysis.effects)))])
        yield BY_ITERATION
        yield from written(folder, draw_forest(analysis))
        yield INTERVALS
        yield markdown(difference_table(analysis))
        yield " ".join(conclusions(comparison, analysis))
    yield from control_differences(found, comparison.ends)


def difference_by_iteration(comparison: Comparison, contrast: Contrast) -> tuple[list[int], np.ndarray]:
    """Returns the seeds, and a contrast's difference in held-out error: (evaluations, seeds).

    It is in percent of the mean error of all losses.
    """
    errors = [by_seed(comparison.compared, "loss_index", [step]) for step in comparison.evaluated]
    seeds = sorted(set.intersection(*map(set, errors[0].values())))
    first, second, every = (
        np.array([[np.mean([at[loss][seed] for loss in losses]) for seed in seeds] for at in errors])
        for losses in (contrast.losses, contrast.subtracted, errors[0])
    )
    return seeds, 100 * (first - second) / every


def draw_difference(comparison: Comparison, contrast: Contrast) -> Chart:
    """Draws `difference_by_iteration`, with the evaluations of the endpoint shaded."""
    seeds, shares = difference_by_iteration(comparison, contrast)
    steps, ends = comparison.evaluated, comparison.ends
    matplotlib = import_matplotlib()
    with matplotlib.rc_context(SETTINGS):
        figure = matplotlib.figure.Figure(figsize=(WIDTH, HEIGHT), dpi=96, layout="constrained")
        axes = figure.add_subplot()
        axes.grid(axis="y", color=GRID, linewidth=0.7)
        axes.axhline(0, color=INK, linewidth=0.8)
        axes.axvspan(ends[0], ends[-1], color=WITHIN, linewidth=0, zorder=0)
        style = {"color": INK, "linewidth": 0.7, "markersize": 3.5}
        for share, seed, marker in zip(shares.T, seeds, cycle(SEED_MARKERS)):
            axes.plot(steps, share, marker=marker, label=f"seed {seed}", **style)
        axes.plot(steps, shares.mean(axis=1), color=LINE, linewidth=2.4, label="mean")
        axes.set_xlabel("iteration")
        axes.set_ylabel("difference in held-out error [%]")
        axes.xaxis.set_major_formatter("{x:,.0f}")
        figure.legend(loc="outside lower center", ncols=len(seeds) + 1, frameon=False)
        title = f"Held-out error by iteration: {contrast.name}, in percent"
        return Chart("difference-by-iteration", title, title, svg(figure))


def written(folder: Path, charts: Iterable[Chart]) -> Iterator[str]:
    """Writes charts of the results in `folder`; yields the paragraphs that show them."""
    for chart in charts:
        image = IMAGES / f"results-{folder.name}-{chart.name}.svg"
        image.write_bytes(chart.svg)
        yield embedded(chart.alt, image)


def embedded(alt: str, image: Path) -> str:
    """Returns the paragraph of the page that shows an image."""
    return f"![{alt}]({image.relative_to(PAGE.parent)})"


def control_differences(runs: Sequence[Run], ends: Sequence[int]) -> Iterator[str]:
    """Yields the differences between the control and the loss that it copies, if there is a control."""
    errors = by_seed(runs, "loss_index", ends)
    pairs = {seed: (error, errors[COPIED][seed]) for seed, error in errors.get(CONTROL, {}).items()}
    if pairs:
        shares = ", ".join(
            f"{error / copied - 1:+.2%} (seed {seed})" for seed, (error, copied) in pairs.items()
        )
        yield f"The control's held-out error, relative to that of {COPIED}: {shares}."


def eps_results(file: Path) -> Iterator[str]:
    """Writes the figure; yields the paragraphs: the figure, and the table of shares."""
    counts = adam_eps.read_counts(file)
    image = IMAGES / f"results-{file.stem}.svg"
    image.write_bytes(adam_eps.draw(counts))
    yield embedded("The weights of each layer by Adam's eps / √v", image)
    yield markdown(adam_eps.table(counts))


def endpoint_table(comparison: Comparison) -> Table:
    """Returns each loss's endpoints: the mean and the standard deviation over its seeds."""
    values = comparison.endpoints
    rows = []
    for loss in values[PRIMARY]:
        texts = [mean_text([*seeds[loss].values()], QUALITY[name].form) for name, seeds in values.items()]
        rows.append(Row([Cell(loss), *map(Cell, texts)]))
    return Table(["loss", *values], rows)


def markdown(shown: Table) -> str:
    """Returns the table in Markdown, with a cell's detail in parentheses."""
    lines = [shown.head, ["---", *["---:"] * (len(shown.head) - 1)]]
    lines += [[_text(cell) for cell in row.cells] for row in shown.rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _text(cell: Cell) -> str:
    """Returns a cell in Markdown."""
    text = f"**{cell.text}**" if cell.is_bold else cell.text
    return f"{text} ({cell.detail})" if cell.detail else text


def fill(page: Path, name: str, text: str) -> None:
    """Replaces what is between the comments with this name."""
    begin, end = f"<!-- {name} -->", f"<!-- /{name} -->"
    before, is_begun, rest = page.read_text().partition(begin)
    _, is_ended, after = rest.partition(end)
    if not (is_begun and is_ended):
        raise FastaeError(f"{page} has no place for these results: add the lines {begin} and {end}")
    page.write_text(f"{before}{begin}\n\n{text}\n\n{end}{after}")
    log(f"{page}: {name}")


if __name__ == "__main__":
    main()
