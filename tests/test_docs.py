"""The files and tests that the documentation names exist, and its Python code runs as it is written."""

import re
import tomllib
from pathlib import Path

import pytest
import torch

from .data.bad_files import put

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
    return code_in(Path(page).read_text())


def code_in(text):
    return re.findall(r"^```python\n(.*?)^```", text, re.M | re.S)


def test_the_readme_of_a_package_index_has_absolute_links():
    pyproject = tomllib.loads(Path("pyproject.toml").read_text())
    source = pyproject["project"]["urls"]["Source"]
    text = readme = Path("README.md").read_text()
    for each in pyproject["tool"]["hatch"]["metadata"]["hooks"]["fancy-pypi-readme"]["substitutions"]:
        text = re.sub(each["pattern"], each["replacement"], text)
    here, there = (re.findall(r"(!?)\[[^]]*\]\(([^()\s]+)\)", version) for version in (readme, text))
    assert len(here) == len(there) > 20 and code_in(text) == code_in(readme)
    for (picture, link), (_, absolute) in zip(here, there, strict=True):
        page = "README.md" if link.startswith("#") else ""
        folder = "raw" if picture else "blob"
        assert absolute == (link if "://" in link else f"{source}/{folder}/HEAD/{page}{link}")


def run(code, names, page):
    exec(compile(code, page, "exec"), names)


@pytest.fixture
def readers_folder(tmp_path, face_paths, small_run, monkeypatch):
    """A reader's current folder, and a run. There is no GPU.

    40 photos are in `photos`, with CelebA's file of attributes here; some are also here, and in `animals`.
    """
    put(face_paths, tmp_path / "photos", [Path(face).name for face in face_paths])
    put(face_paths[:2], tmp_path, ("a.jpg", "b.jpg"))
    for animal in ("cat", "dog"):
        put(face_paths[:4], tmp_path / "animals" / animal)
    rows = (f"{Path(face).name} {'-1  1 ' * 20}\n" for face in face_paths)
    header = " ".join(["Male", "Smiling", *(f"other{number}" for number in range(38))])
    (tmp_path / "list_attr_celeba.txt").write_text(f"40\n{header}\n{''.join(rows)}")
    (tmp_path / "RUN").symlink_to(small_run)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.chdir(tmp_path)


RUN_ELSEWHERE = [
    Path("docs/bottleneck.md"),  # by tests/monitor/test_watch.py, which checks the verdicts
    Path("docs/using-a-model.md"),  # by tests/tools/test_export.py, which has exported a model
]
WITH_PYTHON = [str(page) for page in PAGES if page not in RUN_ELSEWHERE and blocks(page)]


def run_all(page):
    """Runs the code of a page, block after block; returns the names that it defines."""
    names = {"__name__": "__main__"}
    for block in blocks(ROOT / page):
        run(block, names, page)
    return names


@pytest.mark.parametrize("page", WITH_PYTHON)
@pytest.mark.usefixtures("readers_folder")
def test_the_python_code_of_a_page_runs(page):
    run_all(page)


def test_the_example_training_loop_resumes_to_the_same_weights(readers_folder, monkeypatch):
    (example,) = (block for block in blocks(ROOT / "docs/python.md") if "EVERY" in block)
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
