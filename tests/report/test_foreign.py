"""A report on a run folder from anybody neither hangs nor crashes, and shows no private images."""

import json
import os
import signal
from pathlib import Path

import pytest

from fastae.errors import FastaeError
from fastae.experiment.losses import LOSSES
from fastae.report import gallery
from fastae.report.make import make_report
from fastae.report.runs import find_runs
from fastae.runs.metrics import COLUMNS, NAME

from ..commands import claim
from .made import make_run
from .test_gallery import gallery_of


@pytest.fixture
def no_wait():
    """Ends a test process that waits for the other end of a pipe."""
    signal.alarm(60)
    yield
    signal.alarm(0)


def pictures(page):
    """Returns the number of pictures in a page, without charts."""
    return page.read_text().count('src="data:image/png')


@pytest.mark.parametrize("how", ["pipe", "device"])
def test_pipes_and_devices_are_not_read(how, run, face_folder, no_wait):
    def put(path):
        path.unlink(missing_ok=True)
        os.mkfifo(path) if how == "pipe" else path.symlink_to("/dev/zero")

    (run / "samples").mkdir()
    for name in ("events.out.tfevents.0", "samples/0000100.png", "nan.txt", "gpu.json", "model.safetensors"):
        put(run / name)
    assert pictures(make_report([run], data=str(face_folder))) == 0
    put(run / NAME)
    with pytest.raises(FastaeError, match=NAME):
        make_report([run])


def test_a_data_folder_in_config_json_is_opened_only_if_this_user_has_read_it_before(
    run, cache, face_folder, face_paths, monkeypatch
):
    (run / "samples").mkdir()
    (run / "samples" / "0000100.png").symlink_to(face_paths[0])
    with monkeypatch.context() as patch:
        patch.setattr(gallery, "open_source", lambda *_, **__: pytest.fail("it is opened"))
        patch.setattr(Path, "is_dir", lambda path: str(path) != str(face_folder) or pytest.fail("touched"))
        assert pictures(make_report([run])) == 0
    monkeypatch.setenv("FASTAE_DATA", str(face_folder))
    assert pictures(make_report([run])) == 2  # the user has named it
    monkeypatch.delenv("FASTAE_DATA")
    assert pictures(make_report([run])) == 2  # and is known to have read it


def test_images_are_shown_only_if_the_manifest_has_their_digests_and_sizes(
    run, cache, face_folder, monkeypatch
):
    assert gallery_of(run, face_folder)[0] and gallery_of(run)[0]
    monkeypatch.chdir(face_folder)
    described, listed = (json.loads((run / name).read_text()) for name in ("config.json", "images.json"))
    del described["data"]["fingerprint"]
    digests, sizes = listed["digests"], listed["held_out"]
    forged = [
        (described, listed | {"digests": {}}),
        (described, listed | {"digests": dict([*digests.items()][:-1])}),
        (described, listed | {"digests": dict.fromkeys(digests, 64 * "0")}),
        (described, listed | {"held_out": {name: size + 1 for name, size in sizes.items()}}),
    ]
    aside = f"{face_folder}/../{face_folder.name}"
    forged += [
        (described | {"data": described["data"] | {"folder": named}}, listed)
        for named in (aside, "", "a\0b", "\ud800", ".", 5, None)
    ]
    for config, images in forged:
        (run / "config.json").write_text(json.dumps(config))
        (run / "images.json").write_text(json.dumps(images))
        assert not gallery_of(run)[0]


def test_claimed_sizes_allocate_no_memory_and_claimed_threads_are_not_started(run, face_folder, monkeypatch):
    claim(run, threads=256)
    assert gallery_of(run, face_folder)[0]
    monkeypatch.setattr(gallery, "load_images", lambda *_, **__: pytest.fail("images are read"))
    for limit in ("MAX_SIDE", "MAX_SET"):
        with monkeypatch.context() as patch:
            patch.setattr(gallery, limit, 31)
            found, (warning,) = gallery_of(run, face_folder)
        assert not found and "32 pixels" in warning
    claim(run, image_size=4096)  # the weights do not fit
    assert not gallery_of(run, face_folder)[0]
    claim(run, threads=100_000)
    with pytest.raises(FastaeError, match="threads must be"):
        find_runs([run])


NUMBERS = ("", "nan", "inf", "-inf", "0", "-1", "1e300", "1e30", "5e-324", "1e-9", "300000", "123.5")
ANYTHING = (
    None, -1, 2**62, 1e308, 10**400, "x" * 10_000, [], [1], {"a": {"b": [1]}}, "<b>", "\x1b[31m", "\ud800",
)  # fmt: skip
CLAIMED = (
    "data", "device", "model", "element", "reduction", "step", "environment", "world_size", "resumed",
    "loader", "compiled",
)  # fmt: skip
CLAIMS = (
    {},
    {"image_size": 4096, "batch_size": 10**6, "iterations": 10**12, "seed": 2**62, "eval_images": 10**12},
    {"latent": 2**20, "minutes": 1e-300, "lr": 1e38, "threads": 256, "data": "a\nb"},
)


@pytest.mark.parametrize("numbers", [(), NUMBERS])  # first without them: all errors are 0
def test_any_claimed_values_still_give_a_page(numbers, tmp_path):
    nothing = {0: 0.0, 50: 0.0, 100: 0.0}
    for index, value in enumerate(ANYTHING):
        run = make_run(tmp_path / str(index), [*LOSSES][index % len(LOSSES)], train=nothing, held_out=nothing)
        described = claim(run, **CLAIMS[index % 3]) | dict.fromkeys(CLAIMED, value)
        (run / "config.json").write_text(json.dumps(described))
        with (run / NAME).open("a") as file:
            for row, number in enumerate(numbers):
                kind = ("train", "held_out")[(row + index) % 2]
                file.write(",".join((str(200 * 10**row), kind, *[number] * len(COLUMNS))) + "\n")
    assert make_report([tmp_path]).is_file()
