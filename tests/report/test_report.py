"""`fastae report` on a real sweep and on made runs: what its page says, and how a browser shows it."""

import html
import re
import shutil
from pathlib import Path

import pytest

from fastae.errors import FastaeError
from fastae.report.make import make_report
from fastae.runs.folder import RunFolder

from ..commands import SMALL, here
from .made import make_run

FIGURES = {"train.svg", "held-out.svg", "reconstructions.png"}
HIDDEN = "\x1b[31m\x07\x7f\x9b\u202e"
HOSTILE = "<script>alert(1)</script>'\"&amp;{{ 7 * 7 }}"


def words_of(page):
    """Returns the page's text without markup, with single blanks."""
    text = re.sub(r"<style>.*?</style>|</?span[^>]*>|<wbr>", "", page.read_text(), flags=re.DOTALL)
    return " ".join(html.unescape(re.sub(r"<[^>]*>", " ", text)).split())


def figures_of(page):
    return {path.name for path in page.with_suffix("").iterdir()}


def require_harmless(page):
    """Fails if the page contains code, or loads anything."""
    text = page.read_text()
    assert not re.findall(r"<(script|iframe|object|embed)|<[^>]*\son\w+=|url\(|@import", text)
    found = re.findall(r'\s(?:src|href|srcset|action|poster)="([^"]*)"', text)
    assert found and all(address.startswith("data:") for address in found)


def test_a_sweep_is_reported_on_with_the_images_that_its_user_named(face_folder, tmp_path, capsys):
    sweep = tmp_path / "small"
    command = [
        "sweep", "--losses", "minibatch_bce,pixel_mse", "--out", sweep, *SMALL,
        "--iterations", 6, "--eval-every", 3, "--log-every", 2, "--device", "cpu", "--data", face_folder,
    ]  # fmt: skip
    here(*command)
    page = sweep / "report.html"
    answer, where = capsys.readouterr().out.splitlines()[-2:]
    assert "Too short" in answer and str(page) in where
    assert figures_of(page) == FIGURES and not list(sweep.rglob(".partial-*"))
    require_harmless(page)
    words = words_of(page)
    assert 'class="warnings"' not in page.read_text()
    finals = [RunFolder(config.parent).held_out_error(6) for config in sweep.glob("*/config.json")]
    assert len(finals) == 2 and all(f"{value:,.0f}" in words for value in finals)


def test_a_page_with_pictures_is_not_replaced_by_one_without(face_folder, tmp_path, monkeypatch):
    run = make_run(tmp_path / "run", "sample_mse", weights=0, data=face_folder)
    page = make_report([run], data=face_folder)
    before = page.read_bytes()
    assert b'class="single"' in before and b'class="gallery"' not in before
    monkeypatch.setenv("FASTAE_CACHE", str(tmp_path / "cache"))  # where the folder is not known
    with pytest.raises(FastaeError, match=r"report\.html.*--data DIR.*fastae report --out FILE"):
        make_report([run])
    assert page.read_bytes() == before and figures_of(page) == FIGURES
    assert make_report([run], tmp_path / "other.html").is_file()


def test_a_page_needs_only_numbers(tmp_path):
    for seed in range(3):
        for index, loss in enumerate(("pixel_bce", "pixel_mse")):
            make_run(
                tmp_path / f"{loss}-{seed}", loss, seed=seed, quality=lambda _: {"psnr": 21.0, "ssim": 0.75},
                held_out={0: 9e5, 100: 300_000 - 1000 * index + 3000 * seed * index},
            )  # fmt: skip
    page = make_report([tmp_path])
    assert page.read_text().count("no reconstructions") == 1
    numbers, _, found = words_of(page).partition("Differences")
    assert "mean of 3 seeds 100 302,000 ± 3,000 21.00 0.7500" in numbers and "bands reach" in numbers
    assert "the iterations compared: 100." in found
    assert "squared error − cross entropy +2,000" in found and "F(1, 2) =" in found and "open" in found


def test_the_page_says_how_it_is_smoothed_and_what_is_wrong_with_runs(tmp_path, capsys):
    for name, points in (("a", 200), ("b", 125), ("odd", 3)):
        train = {step: 1e6 / step for step in range(1, points + 1)}
        make_run(tmp_path / name, train=train, iterations=200, batch_size=8 if name == "odd" else 4)
    page = make_report([tmp_path], tmp_path / "else" / "page.html")
    words = words_of(page)
    assert "smoothed by up to 0.5" in words and "bands" not in words
    wrong = "odd: not compared: --batch-size 8, not 4"
    assert wrong in words and wrong in capsys.readouterr().out
    assert (tmp_path / "else" / "page" / "train.svg").is_file()


@pytest.mark.parametrize("text", [f"{HOSTILE}caf\udce9", HIDDEN])
def test_text_from_outside_is_escaped_wherever_it_comes_from(text, tmp_path):
    described = {"environment": {"fastae": text, "packages": {text: text}}, "device": text}
    run = make_run(tmp_path / f"run{text.replace('/', '')}", data=f"/gone/{text}", described=described)
    page = make_report([run])
    require_harmless(page)
    assert not set(HIDDEN) - set("[31m") & set(page.read_text())
    assert words_of(page).count("alert(1)" if text != HIDDEN else r"\x07\x7f\x9b\u202e") >= 6


@pytest.mark.parametrize(
    ("folder", "out", "words"),
    [
        (".", None, "no run in '.'"),
        ("../run", "page.txt", "--out 'page.txt'"),
        ("../run", "folder.html", "--out 'folder.html'"),
        ("../run", "/proc/fastae/page.html", "'/proc/fastae/page.html'"),
    ],
)
def test_a_refused_report_leaves_nothing(folder, out, words, tmp_path, monkeypatch):
    make_run(tmp_path / "run")
    (tmp_path / "here" / "folder.html").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "here")
    with pytest.raises(FastaeError, match=re.escape(words)):
        make_report([Path(folder)], out and Path(out))
    assert [path.name for path in tmp_path.glob("here/*")] == ["folder.html"]


@pytest.mark.parametrize(("arguments", "name"), [(([],), "folders"), ((["."], None, "gone"), "data")])
def test_a_wrong_argument_in_python_is_named(arguments, name):
    with pytest.raises(FastaeError, match=f"^{name} "):
        make_report(*arguments)


CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
QUIET = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
         "--disable-background-networking", "--disable-component-update"]  # fmt: skip


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium on PATH")
def test_a_browser_shows_every_figure_and_nothing_too_wide(face_folder, tmp_path):
    """Two losses on the 2 held-out images, one with a name that is too long for a phone, and a warning."""
    sync_playwright = pytest.importorskip("playwright.sync_api").sync_playwright
    make_run(tmp_path / "minibatch_bce", "minibatch_bce", data=face_folder, weights=0)
    make_run(tmp_path / ("pixel_mse" + 60 * "x"), "pixel_mse", data=face_folder, weights=1, iterations=101)
    page = make_report([tmp_path], data=str(face_folder)).as_uri()
    complaints = []
    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=CHROMIUM, args=QUIET)
        for width, scheme in ((360, "light"), (360, "dark"), (1280, "light")):
            seen = {"viewport": {"width": width, "height": 800}, "color_scheme": scheme, "offline": True}
            tab = browser.new_page(**seen)
            for event in ("console", "pageerror", "requestfailed"):
                tab.on(event, lambda complaint: complaints.append(str(complaint)))
            tab.goto(page)
            images = tab.evaluate("[...document.images].map(i => [i.alt, i.naturalWidth, i.clientWidth])")
            assert len(images) == 4 and all(alt and width and shown for alt, width, shown in images)
            assert tab.evaluate("document.documentElement.scrollWidth") <= width
    assert complaints == []
