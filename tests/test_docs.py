"""The files and tests that the documentation names exist, and its Python code runs as it is written."""

import os
import re
from pathlib import Path

import pytest
import torch

from fastae.tools.export import export

ROOT = Path.cwd()
PAGES = [*map(Path, ("README.md", "SECURITY.md", "benchmarks/README.md")), *Path("docs").glob("*.md")]
SOURCES = "".join(path.read_text() for path in Path("tests").rglob("test_*.py"))


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_the_files_and_tests_that_a_page_names_exist(page):
    text = page.read_text()
    links = re.findall(r"\]\(([^()\s#:]+)(?:#[\w-]+)?\)", text)
    files = re.findall(r"`((?:fastae|tests|scripts|benchmarks)/[\w/]+\.\w+)", text)
    tests = re.findall(r"\b(test_\w+?)(?:(\.\.\.)|\b)(?!\.py)", text)
    assert [link for link in links if not (page.parent / link).exists()] == []
    assert [file for file in files if not Path(file).exists()] == []
    assert [name for name, is_cut in tests if f"def {name}{'' if is_cut else '('}" not in SOURCES] == []


def blocks(page):
    return re.findall(r"^```python\n(.*?)^```", Path(page).read_text(), re.M | re.S)


def run(code, names, page):
    exec(compile(code, page, "exec"), names)


@pytest.fixture
def readers_folder(tmp_path, face_paths, small_run, monkeypatch):
    """A reader's current folder: 40 photos in `photos`, two of them also here, and a run. There is no GPU."""
    (tmp_path / "photos").mkdir()
    for face in face_paths:
        os.link(face, tmp_path / "photos" / Path(face).name)
    for face, name in zip(face_paths, ("a.jpg", "b.jpg"), strict=False):
        os.link(face, tmp_path / name)
    (tmp_path / "RUN").symlink_to(small_run)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.chdir(tmp_path)


RUN_ELSEWHERE = Path("docs/bottleneck.md")  # by tests/monitor/test_watch.py, which checks the verdicts
WITH_PYTHON = [str(page) for page in PAGES if page != RUN_ELSEWHERE and blocks(page)]


@pytest.mark.parametrize("page", WITH_PYTHON)
def test_the_python_code_of_a_page_runs(page, readers_folder, small_run):
    found = blocks(ROOT / page)
    if any("onnxruntime" in block for block in found):
        pytest.importorskip("onnxruntime")
        export(small_run, Path("model"))
    names = {"__name__": "__main__"}
    for block in found:
        run(block, names, page)


def test_the_example_training_loop_resumes_to_the_same_weights(readers_folder, monkeypatch):
    (example,) = (block for block in blocks(ROOT / "docs/python.md") if "optimizer" in block)
    assert example.count("\n") <= 45
    straight, resumed = {}, {}
    run(example, straight, "docs/python.md")
    Path("state.pt").unlink()
    save = torch.save

    def save_and_stop(state, path):
        save(state, path)
        if state["done"] == 50:
            raise KeyboardInterrupt

    monkeypatch.setattr(torch, "save", save_and_stop)
    with pytest.raises(KeyboardInterrupt):
        run(example, {}, "docs/python.md")
    monkeypatch.setattr(torch, "save", save)
    run(example, resumed, "docs/python.md")
    assert resumed["done"] == 25  # the second checkpoint was not renamed, so it is not used
    for one, other in zip(straight["model"].parameters(), resumed["model"].parameters(), strict=True):
        assert torch.equal(one, other)
    assert straight["errors"].mean() < 0.1
