"""Writes benchmark records (result.json, log.txt, README.md with the page, a chart) and their table.

`benchmarks/records/DATE_HARDWARE/` contains one record. result.json contains the figures with their spread,
the command, versions, commit and device.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import Any

from benchmarks import endtoend
from fastae.errors import FastaeError
from fastae.utils.files import atomic_write

RECORDS = Path(__file__).parent / "records"
FORMAT = 1


def folder_of(device: str, records: Path = RECORDS) -> Path:
    """Returns the folder of a record that is made today on this device."""
    hardware = re.sub(r"[^a-z0-9]+", "-", device.lower()).strip("-")
    return records / f"{date.today().isoformat()}_{hardware}"


def save(folder: Path, result: dict[str, Any], page: Sequence[str], log: str) -> None:
    """Writes a record. Each file is replaced completely or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    _write(folder / "result.json", json.dumps({"format": FORMAT, **result}, indent=2) + "\n")
    _write(folder / "log.txt", log)
    chart = "![Images per second](chart.png)\n\n" if draw(result, folder / "chart.png") else ""
    title = f"# {result['device']}, {result['date']}"
    about = f"`{result['command']}`, commit {result['environment']['commit']}. The log is [log.txt](log.txt)."
    page_block = "\n".join(["```text", *page, "```"])
    _write(
        folder / "README.md",
        f"{title}\n\n{about}\n\n{chart}{page_block}\n",
    )


def load(folder: Path) -> dict[str, Any]:
    """Reads a record's result.json. Raises FastaeError if the folder is not a record."""
    try:
        result = json.loads((folder / "result.json").read_text())
    except (OSError, ValueError) as error:
        raise FastaeError(f"{str(folder)!r} is not a benchmark record: {error}") from None
    if result.get("format") != FORMAT:
        raise FastaeError(f"{str(folder)!r} has format {result.get('format')}, not {FORMAT}")
    return result


def index(records: Path = RECORDS) -> None:
    """Rewrites the table of records in benchmarks/README.md, between its markers."""
    readme = records.parent / "README.md"
    start, end = "<!-- records -->\n", "<!-- end of records -->"
    rows = ["| record | resident | dali | step | budget |", "|---|---|---|---|---|"]
    for folder in sorted(records.iterdir(), reverse=True):
        if (folder / "result.json").is_file():
            rows.append(_row(folder, load(folder)))
    text = readme.read_text()
    head, rest = text.split(start)
    _, tail = rest.split(end)
    _write(readme, head + start + "\n".join(rows) + "\n" + end + tail)


def draw(result: dict[str, Any], path: Path) -> bool:
    """Draws bars with their spread: loaders on the left, variants of the step on the right.

    Returns whether any were measured; otherwise nothing is drawn.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    sections = [
        (
            title,
            {name: found["rate"] for name, found in result.get(key, {}).items() if "rate" in found},
        )
        for key, title in (("loaders", "Loaders, images/s"), ("steps", "Training step, images/s"))
    ]
    sections = [(title, rates) for title, rates in sections if rates]
    if not sections:
        return False
    figure = Figure(figsize=(6 * len(sections), 3.2), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, (title, rates) in zip(
        figure.subplots(1, len(sections), squeeze=False)[0], sections, strict=True
    ):
        names = list(rates)[::-1]
        medians = [rates[name]["median"] for name in names]
        spread = [
            [rates[name]["median"] - rates[name]["low"] for name in names],
            [rates[name]["high"] - rates[name]["median"] for name in names],
        ]
        colors = ["#0b6e4f" if "fastae" in name or name.startswith("+") else "#9aa5b1" for name in names]
        bars = axes.barh(names, medians, xerr=spread, color=colors, error_kw={"linewidth": 1})
        axes.bar_label(bars, [f"{median:,.0f}" for median in medians], padding=6, fontsize=8)
        axes.set_xlim(0, 1.18 * max(medians))
        axes.set_title(title, fontsize=10)
        axes.tick_params(labelsize=8)
        axes.spines[["top", "right"]].set_visible(False)
    with atomic_write(path) as file:
        figure.savefig(file, format="png", dpi=120)
    return True


def _medians(result: dict[str, Any]) -> dict[str, float]:
    """Returns name of a loader or step -> its median rate in images/s."""
    return {
        name: found["rate"]["median"]
        for section in ("loaders", "steps")
        for name, found in result.get(section, {}).items()
        if "rate" in found
    }


def _row(folder: Path, result: dict[str, Any]) -> str:
    """Returns a record's row of the table."""
    medians = _medians(result)

    def rate(name: str) -> str:
        return f"{medians[name]:,.0f} images/s" if name in medians else "-"

    best = [name for name in result.get("steps", {}) if name.startswith("+") and name in medians]
    budget = result.get("budget", "-")
    if isinstance(budget, dict):
        budget.pop("at_once", None)  # records up to 2026-11-25 have this number of runs
        budget = endtoend.budget_lines(budget)[-1].strip()
    link = f"[{folder.name}](records/{folder.name}/README.md)"
    return (
        f"| {link} | {rate('fastae resident')} | {rate('fastae dali')} | "
        f"{rate(best[-1]) if best else '-'} | {budget} |"
    )


def _write(path: Path, text: str) -> None:
    with atomic_write(path) as file:
        file.write(text.encode())
