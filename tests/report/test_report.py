"""`fastae report` as a user runs it, on a real sweep; what its page says, and how a browser shows it."""

import base64
import html
import io
import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import pytest
from PIL import Image

from fastae.config import TrainConfig
from fastae.errors import FastaeError
from fastae.report.make import make_report
from fastae.sweep.plan import SweepConfig
from fastae.sweep.sweep import sweep as run_sweep

from ..commands import SMALL, fastae, here
from .made import gpu_report, make_run

FIGURES = {
    *(f"{name}{theme}.svg" for theme in ("", "-dark")
      for name in ("train-linear", "train-log", "held-out-linear", "held-out-log", "held-out-apart", "time")),
    "reconstructions.png",
}  # fmt: skip

HOSTILE = "<script>alert(1)</script>'\"&amp;{{ 7 * 7 }}"


def words_of(page):
    """The page's text, without markup, blanks evened out."""
    text = re.sub(r"<style>.*?</style>", "", page.read_text(), flags=re.DOTALL)
    return " ".join(html.unescape(re.sub(r"<[^>]*>", " ", text)).split())


class Addresses(HTMLParser):
    """Everything that a page would load or could run."""

    def __init__(self):
        super().__init__()
        self.found, self.tags = [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.found += [
            value for name, value in attrs if name in ("src", "href", "srcset", "action", "poster")
        ]
        assert not [name for name, _ in attrs if name.startswith("on")]


def addresses(page):
    parser = Addresses()
    parser.feed(page.read_text())
    return parser


def test_a_sweep_is_reported_on(face_folder, tmp_path):
    sweep = tmp_path / "small"
    config = TrainConfig(
        data=str(face_folder), image_size=32, latent=16, batch_size=4, iterations=6, eval_every=3,
        log_every=2, compile=False, device="cpu", loader="dali", cache_dir=str(tmp_path / "cache"),
    )  # fmt: skip
    run_sweep(SweepConfig(config, losses=("minibatch_bce", "pixel_mse"), repeats=2), sweep)

    result = fastae("report", sweep, "--data", face_folder)

    assert result.returncode == 0, result.stderr
    page = sweep / "report.html"
    answer, where = result.stdout.splitlines()[-2:]
    assert answer.startswith("answer    After 6 iterations, ")
    assert where == f"report    {page}, and its figures in {sweep / 'report'}"
    assert "warning" not in result.stdout
    assert {path.name for path in (sweep / "report").iterdir()} >= FIGURES
    assert Image.open(sweep / "report" / "reconstructions.png").size[0] > 200
    assert not list(sweep.rglob("*.partial"))
    stands_alone(page)
    words = words_of(page)
    for told in (
        "Do the losses differ?",
        "Between the two elements, ",
        "Runs of one loss that differ by their seed alone (minibatch bce, pixel mse) spread",
        "0.01 % of the article's 100,000 iterations",
        "The share of weights whose √v is below 10 eps",
        "The article's six runs of 100,000 iterations took 30 hours of its GPU. The 4 runs of this report",
        "images of 32 pixels, codes of 16 numbers, batches of 4",
        "fastae train --loss pixel_mse",
        f"fastae report {sweep} --data {face_folder}",
        "6 (the article: 100,000)",
        "All, from best to worst",
    ):
        assert told in words, told
    assert "Read with care" not in words
    finals = [entry["held_out"] for entry in json.loads((sweep / "sweep.json").read_text())["runs"]]
    assert len(finals) == 4 and all(f"{value:,.0f}" in words for value in finals)


def test_a_sweep_reports_on_the_images_that_its_user_named(face_folder, tmp_path):
    here(
        "sweep", "--data", face_folder, "--losses", "pixel_bce", "--out", tmp_path, *SMALL, "--iterations", 1,
        "--gpu-sample-hz", 0, "--no-cache",
    )  # fmt: skip
    assert (tmp_path / "report" / "reconstructions.png").is_file()


def stands_alone(page):
    """It loads nothing, and runs nothing."""
    found = addresses(page)
    assert found.found and all(address.startswith("data:") for address in found.found)
    assert not {"script", "iframe", "object", "embed"} & set(found.tags)
    style = re.search(r"<style>(.*?)</style>", page.read_text(), re.DOTALL)[1]
    assert "url(" not in style and "@import" not in style


def test_the_numbers_of_made_runs_as_worked_out_by_hand(tmp_path):
    for loss, final in (("minibatch_bce", 310_000.0), ("sample_mse", 290_000.0)):
        make_run(
            tmp_path / loss, loss, rate=1000.0, wait=0.25, gpu=gpu_report(120.0, kwh=0.5),
            held_out={0: 900_000.0, 50: 280_000.0, 100: final},
        )  # fmt: skip
    words = words_of(make_report([tmp_path]))
    # 20,000 of a mean of 300,000, and of the 600,000 that training gained.
    assert "come out about the same, within 6.7 %." in words
    assert "The losses' differences are 3.3 % of what they all gained" in words
    assert "mse ends 6.5 % below bce in the mean" in words
    assert "each with its own seed" not in words and "Every loss was run once, with the same seed" in words
    # Smoothed: (0.95 * 0.95 * 900 + 0.95 * 400 + 300) / 2.8525 thousand.
    assert "minibatch bce 310,000 – – 280,000 at 50 523,138 100" in words
    # 6 x 100,000 x 64 images at 1000 a second; 20 s for 3 evaluations, 100 for each of the six runs.
    assert "would take 10 h 40 min and 1 h 06 min for their evaluations" in words
    assert "2.5 times less than its 30 hours" in words
    assert "minibatch_bce 1,000.0 4.0 ms 8.0 ms 25 % 2 min 00 s none: CPU 0.5 kWh" in words


@pytest.mark.parametrize("where", ["folder", "device", "data", "version", "name of a package"])
def test_whatever_comes_from_outside_is_text(where, tmp_path):
    root = tmp_path / (HOSTILE.replace("/", "") if where == "folder" else "runs")
    package = HOSTILE if where == "name of a package" else "torch"
    make_run(
        root / (HOSTILE.replace("/", "") if where == "folder" else "run"),
        device=HOSTILE if where == "device" else "cpu, 2 threads",
        data=f"/gone/{HOSTILE}" if where == "data" else "/gone",
        environment={"fastae": HOSTILE if where == "version" else "0.1.0", "packages": {package: "1"}},
        gpu=gpu_report(),
    )
    page = make_report([root])
    assert "script" not in addresses(page).tags
    assert "<script" not in page.read_text()
    assert "alert(1)" in words_of(page) and "{{ 7 * 7 }}" in words_of(page)
    for figure in (root / "report").glob("*.svg"):
        assert "<script" not in figure.read_text()


def test_a_name_with_stray_bytes_does_not_stop_it(tmp_path):
    make_run(tmp_path / "caf\udce9")
    assert "<h1>" in make_report([tmp_path]).read_text()


def test_without_the_images_the_runs_own_pictures_are_shown(tmp_path):
    folder = make_run(tmp_path / "run", weights=0)
    (folder / "samples").mkdir()
    for iteration, colour in ((50, "red"), (100, "blue")):
        Image.new("RGB", (64, 64), colour).save(folder / "samples" / f"{iteration:07d}.png")
    page = make_report([tmp_path])
    assert "these are the last pictures that the runs drew themselves" in words_of(page)
    (shown,) = re.findall(r"data:image/png;base64,([^\"]*)", page.read_text())
    with Image.open(io.BytesIO(base64.b64decode(shown))) as picture:
        assert picture.getpixel((0, 0)) == (0, 0, 255)


def test_mixed_and_hurt_runs_are_warned_of_and_marked(tmp_path, capsys):
    make_run(tmp_path / "a", "minibatch_bce")
    make_run(tmp_path / "b", "pixel_bce")
    odd = make_run(tmp_path / "odd", "sample_bce", batch_size=8)
    path = next(odd.glob("events*"))
    path.write_bytes(path.read_bytes()[:-3])
    make_report([tmp_path], tmp_path / "else" / "page.html")
    told = capsys.readouterr().out
    assert f"warning   {path}: cut short at byte" in told
    assert "warning   different --batch-size: odd has 8, the others 4; not compared with them" in told
    words = words_of(tmp_path / "else" / "page.html")
    assert "Read with care" in words and "--batch-size 8, not 4" in words
    assert (tmp_path / "else" / "page" / "train-log.svg").is_file()


def test_a_lone_run_and_one_that_has_only_begun(tmp_path):
    lone = make_run(tmp_path / "lone")
    assert "One loss alone" in words_of(make_report([lone]))
    young = make_run(tmp_path / "young", train={1: 9e5}, held_out={0: 9e5})
    words = words_of(make_report([young], tmp_path / "young.html"))
    assert "Nothing can be said of the losses yet." in words and "unfinished: iteration 1 of 100" in words


def test_a_mistake_is_one_line_and_exit_code_2(tmp_path):
    result = fastae("report", "missing", cwd=tmp_path)
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr == "fastae: error: run folder 'missing' does not exist\n"


@pytest.mark.parametrize(
    ("folder", "out", "words"),
    [
        (".", None, "no run in '.'"),
        ("../run", "page.txt", "--out 'page.txt' must end in .html"),
        ("../run", "folder.html", "--out 'folder.html' is a folder"),
        ("../run", "/proc/fastae/page.html", "cannot write '/proc/fastae/page.html'"),
    ],
)
def test_a_mistake_leaves_nothing(folder, out, words, tmp_path, monkeypatch):
    make_run(tmp_path / "run")
    (tmp_path / "here" / "folder.html").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "here")
    with pytest.raises(FastaeError, match=re.escape(words)):
        make_report([Path(folder)], out and Path(out))
    assert [path.name for path in tmp_path.glob("here/*")] == ["folder.html"]


CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@pytest.fixture(scope="module")
def browser():
    if CHROMIUM is None:
        pytest.skip("no chromium on PATH")
    sync_api = pytest.importorskip("playwright.sync_api")
    quiet = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
             "--disable-background-networking", "--disable-component-update"]  # fmt: skip
    with sync_api.sync_playwright() as play:
        opened = play.chromium.launch(executable_path=CHROMIUM, args=quiet)
        yield opened
        opened.close()


@pytest.fixture(scope="module")
def page(face_folder, tmp_path_factory):
    """Two losses on the 2 held-out images, one a name that is too long for a phone, with a warning."""
    folder = tmp_path_factory.mktemp("made")
    make_run(folder / "minibatch_bce", "minibatch_bce", data=face_folder, weights=0, gpu=gpu_report())
    make_run(folder / ("pixel_mse" + 60 * "x"), "pixel_mse", data=face_folder, weights=1, gpu=gpu_report())
    return make_report([folder], data=str(face_folder))


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 1280])
def test_a_browser_shows_every_figure_and_nothing_too_wide(browser, page, width, scheme):
    context = browser.new_context(viewport={"width": width, "height": 800}, color_scheme=scheme, offline=True)
    try:
        tab = context.new_page()
        complaints = []
        tab.on("console", lambda message: complaints.append(message.text))
        tab.on("pageerror", lambda error: complaints.append(str(error)))
        tab.on("requestfailed", lambda request: complaints.append(request.url[:80]))
        tab.goto(page.as_uri())
        images = tab.evaluate(
            "[...document.images].map(i => [i.alt, i.naturalWidth, i.getClientRects().length > 0])"
        )
        assert complaints == []
        assert len(images) >= 14 and all(width > 0 and alt for alt, width, _ in images)
        # Of each pair of themes one is seen: 4 + 1 + 1 figures, and the 2 held-out images.
        assert sum(seen for *_, seen in images) == 8
        assert tab.evaluate("document.documentElement.scrollWidth") <= width
        dark = tab.evaluate("getComputedStyle(document.body).backgroundColor")
        assert (sum(map(int, re.findall(r"\d+", dark)[:3])) < 200) == (scheme == "dark")
        if scheme == "dark":  # printed, it is light, figures too
            tab.emulate_media(media="print")
            seen = tab.evaluate(
                "[...document.images].filter(i => i.getClientRects().length).map(i => i.className)"
            )
            assert "dark" not in seen and seen.count("light") == 6
    finally:
        context.close()
