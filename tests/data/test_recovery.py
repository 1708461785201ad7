"""A file that cannot be decoded, at once or in mid-run: reported, replaced, and nothing else changes."""

import gc
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from PIL import Image

from fastae.data import CropResize, Tuning, load_images, open_loader, pipeline, recovery
from fastae.data.recovery import DecoderError, ImageFiles, NoneLeft, RecoverableStream
from fastae.data.sampler import Sampler
from fastae.errors import FastaeError

from ..commands import SMALL, here, started, wait_for
from .bad_files import bad_table, claiming, two_ways_up

TRUNCATED = slice(0, 2500)
WAYS = {
    "truncated": lambda path: path.write_bytes(path.read_bytes()[TRUNCATED]),
    "emptied": lambda path: path.write_bytes(b""),
    "header cut": lambda path: path.write_bytes(path.read_bytes()[:100]),
    "not a JPEG": lambda path: path.write_bytes(b"x" * 5000),
    "huge": lambda path: path.write_bytes(claiming(path.read_bytes(), 65_500, 65_500)),
    "removed": lambda path: path.unlink(),
    "does not decode": lambda path: path.write_bytes(bad_table(path.read_bytes())),
    "decodes, but not by DALI": lambda path: path.write_bytes(two_ways_up(path.read_bytes())),
    "a pipe": lambda path: (path.unlink(), os.mkfifo(path)),
}


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    monkeypatch.setattr(recovery, "PATIENCE", 1.0)


@pytest.fixture
def paths(tmp_path, face_paths):
    """Twelve images of one's own, to damage."""
    copies = []
    for number in range(12):
        copy = tmp_path / f"{number:02d}.jpg"
        copy.write_bytes(Path(face_paths[number]).read_bytes())
        copies.append(str(copy))
    return copies


def open_(paths, kind="dali", told=None, cache=False):
    return open_loader(
        paths, kind=kind, batch_size=4, device="cpu", seed=0, tuning=Tuning(compiled=False), cache=cache,
        on_replaced=None if told is None else lambda bad, other: told.append((bad, other)),
    )  # fmt: skip


@pytest.mark.parametrize("kind", ["dali", "resident"])
@pytest.mark.parametrize("way", WAYS)
def test_the_next_good_image_is_read_instead_and_nothing_else_changes(paths, way, kind):
    substituted = [*paths[:5], paths[7], paths[7], *paths[7:]]
    expected = list(itertools.islice(open_(substituted, kind).batches(), 9))
    told = []
    loader_paths = list(paths)
    WAYS[way](Path(paths[5]))
    WAYS[way](Path(paths[6]))
    got = list(itertools.islice(open_(loader_paths, kind, told).batches(), 9))
    assert all(torch.equal(one, other) for one, other in zip(expected, got, strict=True))
    assert sorted(bad.path for bad, _ in told) == paths[5:7]
    assert told[-1][1] == paths[7]


def test_a_file_that_goes_bad_in_mid_run(paths):
    told = []
    batches = open_(paths, told=told).batches()
    epoch = 3
    before = list(itertools.islice(batches, epoch))
    Path(paths[0]).write_bytes(b"")
    after = list(itertools.islice(batches, 4 * epoch))
    assert len(before) + len(after) == 15
    assert [bad.fault.value for bad, _ in told] == ["empty"]
    assert open_(paths).sampler == Sampler(12, 4, 0, open_(paths).sampler.augmentation)


def test_images_to_evaluate_on_are_replaced_and_reported_too(paths):
    expected = load_images([paths[0], paths[3], paths[3]], CropResize(), "cpu")
    Path(paths[1]).write_bytes(b"")
    Path(paths[2]).write_bytes(bad_table(Path(paths[2]).read_bytes()))
    told = []
    images = load_images(
        paths, CropResize(), "cpu", indices=range(3), on_replaced=lambda bad, _: told.append(bad)
    )
    assert torch.equal(images, expected)
    assert sorted((bad.path, bad.fault.value) for bad in told) == [
        (paths[1], "empty"), (paths[2], "does not decode"),
    ]  # fmt: skip


def skipped(run):
    lines = (run / "skipped.txt").read_text().splitlines()
    return sorted(tuple(reversed(line.split("\t"))) for line in lines)


@pytest.mark.parametrize("held_out", [1, 3])
def test_a_run_with_a_held_out_file_that_does_not_decode(paths, tmp_path, tmp_path_factory, held_out):
    """The only one makes way for the one before it, which is then not trained on."""
    names = [Path(path).name for path in paths]
    parts = [f"{name} {int(name in names[-held_out:])}\n" for name in names]
    if held_out > 1:
        (tmp_path / "list_eval_partition.txt").write_text("".join(parts))
    Path(paths[-1]).write_bytes(bad_table(Path(paths[-1]).read_bytes()))
    run = tmp_path_factory.mktemp("held out") / "run"
    options = [*SMALL, "--loader", "dali", "--gpu-sample-hz", 0, "--iterations", 1, "--no-cache"]
    here("train", "--data", tmp_path, "--out", run, *options)
    assert skipped(run) == [(paths[-1], "does not decode")]
    images = json.loads((run / "images.json").read_text())
    assert [*images["held_out"]] == (names[-3:] if held_out > 1 else names[-2:-1])
    assert [*images["train"]] == (names[:-3] if held_out > 1 else names[:-2])


def test_a_folder_that_vanishes_is_one_clear_error(paths):
    batches = open_(paths).batches()
    next(batches)
    for path in paths:
        Path(path).unlink()
    with pytest.raises(FastaeError, match="none of the 12 images can be read any more"):
        for _ in itertools.islice(batches, 10):
            pass


@pytest.mark.parametrize("gone", [1.0, 0.5])
def test_thousands_of_files_that_vanish_are_noticed_at_once(tmp_path, face_paths, gone):
    """Found batch by batch, each with a new pipeline, they would take minutes."""
    paths = [str(tmp_path / f"{number:05d}.jpg") for number in range(3_000)]
    for path, face in zip(paths, itertools.cycle(face_paths)):
        os.link(face, path)
    told = []
    batches = open_loader(
        paths, kind="dali", batch_size=64, device="cpu", seed=0, tuning=Tuning(compiled=False), cache=False,
        crop_resize=CropResize(size=16), on_replaced=lambda bad, _: told.append(bad.path),
    ).batches()  # fmt: skip
    next(batches)
    lost = paths[: int(gone * len(paths))]
    for path in lost:
        Path(path).unlink()
    started = time.perf_counter()
    if gone == 1:
        with pytest.raises(FastaeError, match="none of the 3000 images can be read any more"):
            next(itertools.islice(batches, 10, None))
        assert told == []
    else:
        next(itertools.islice(batches, 10, None))
        assert sorted(told) == lost
    assert time.perf_counter() - started < 10


def test_a_resident_run_does_not_need_its_folder_any_more(paths):
    expected = list(itertools.islice(open_(paths, "resident").batches(), 12))
    batches = open_(paths, "resident").batches()
    first = next(batches)
    shutil.rmtree(Path(paths[0]).parent)
    assert all(map(torch.equal, [first, *itertools.islice(batches, 11)], expected))


def test_a_file_that_dali_alone_refuses_is_found(paths, tmp_path):
    """An image that is smaller than the crop, by now: nothing is wrong with the file itself."""
    told = []
    batches = open_loader(
        paths, kind="dali", batch_size=4, device="cpu", seed=0, tuning=Tuning(compiled=False), cache=False,
        crop_resize=CropResize(crop=100), on_replaced=lambda bad, _: told.append(bad),
    ).batches()  # fmt: skip
    next(batches)
    for path in paths[3:5]:
        Image.new("RGB", (60, 60)).save(path)
    next(itertools.islice(batches, 12, None))
    assert sorted(bad.path for bad in told) == paths[3:5]
    assert {bad.fault.value for bad in told} == {"does not decode"}


class Stream(RecoverableStream):
    """Five items, each of all the images. restarted: how `restart` was called."""

    def __init__(self, files, failing, faults=lambda paths: [None] * len(paths)):
        super().__init__(files, type("Decoder", (), {"faults": staticmethod(faults)}))
        self.failing = failing
        self.restarted = []

    def images(self, position):
        return range(len(self.files))

    def restart(self, position, patience):
        self.restarted.append((position, patience))
        for item in range(position, 5):
            if error := self.failing(item):
                raise error
            yield item


@pytest.mark.parametrize(("error", "patience"), [(recovery.DecoderError, 1), (recovery.DecoderStalled, 8)])
def test_a_batch_in_which_nothing_is_wrong_is_tried_once_more(paths, error, patience):
    """A file was just being written, or the storage is slow; the second time, it is the decoder's fault."""
    failures = [error("once")]
    stream = Stream(ImageFiles(paths), lambda item: item == 3 and failures and failures.pop())
    assert list(stream.recovered()) == [0, 1, 2, 3, 4]
    assert stream.restarted == [(0, 1), (3, patience)]
    stream = Stream(ImageFiles(paths), lambda item: item == 3 and error("always"))
    with pytest.raises(error, match="always"):
        list(stream.recovered())


@pytest.mark.parametrize("refused", [1, 9, 11, 12])
def test_however_many_files_the_decoder_alone_refuses_are_replaced(paths, refused):
    told = []
    for path in paths[:refused]:
        Path(path).write_bytes(two_ways_up(Path(path).read_bytes()))
    stream = open_(paths, told=told).batches()
    if refused < len(paths):
        assert len(list(itertools.islice(stream, 6))) == 6
        assert sorted(bad.path for bad, _ in told) == paths[:refused]
    else:
        with pytest.raises(NoneLeft, match="none of the 12 images"):
            list(itertools.islice(stream, 6))


def test_pipelines_that_failed_are_gone_at_once(paths):
    """They hold threads and the device's memory, and must not wait for the garbage collector."""

    def alive():
        return sum(each() is not None for each in pipeline.Pipeline._pipes)

    gc.collect()
    before = alive()
    WAYS["does not decode"](Path(paths[0]))
    gc.disable()
    try:
        batches = open_(paths).batches()
        list(itertools.islice(batches, 6))
        assert alive() == before + 1
        del batches
        assert alive() == before
    finally:
        gc.enable()


@pytest.mark.parametrize("kind", ["dali", "resident"])
def test_a_decoder_that_decodes_nothing_any_more_is_to_blame_itself(paths, monkeypatch, kind):
    """A GPU is lost, say: the files are not declared bad for that."""

    def broken(self, stream):
        raise RuntimeError("Critical error in pipeline:\nworker thread 3 died")

    told = []
    monkeypatch.setattr(pipeline.Pipeline, "run", broken)
    with pytest.raises(DecoderError, match="Critical error in pipeline"):
        next(open_(paths, kind, told).batches())
    assert told == []


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("no memory"), RuntimeError("DefaultCPUAllocator")])
def test_what_is_not_the_decoders_error_is_not_taken_for_it(paths, monkeypatch, error):
    told = []
    loader = open_(paths, told=told)

    def failing(*arguments):
        raise error

    monkeypatch.setattr(loader.decoder.pixel_ops, "augment_crops", failing)
    with pytest.raises(type(error), match=str(error)):
        next(loader.batches())
    assert told == []


@pytest.mark.parametrize("kind", ["dali", "resident"])
def test_a_file_at_which_the_decoder_does_not_return_is_replaced(paths, monkeypatch, kind):
    """A pipe, of which its looks say nothing."""
    expected = list(itertools.islice(open_([*paths[:5], paths[6], *paths[6:]], kind).batches(), 4))
    monkeypatch.setattr(recovery, "visible_fault", lambda path: None)
    monkeypatch.setattr("fastae.data.decode.FILE_PATIENCE", 1.0)
    WAYS["a pipe"](Path(paths[5]))
    told = []
    got = list(itertools.islice(open_(paths, kind, told).batches(), 4))
    assert all(map(torch.equal, expected, got))
    assert [(bad.path, bad.fault.value) for bad, _ in told] == [(paths[5], "does not decode in time")]


def test_a_pipe_in_mid_run_neither_hangs_the_run_nor_keeps_its_process_from_ending(
    paths, tmp_path, tmp_path_factory
):
    """When Python ends, DALI waits for its pipelines, one of which waits for the pipe's other end."""
    out = tmp_path_factory.mktemp("piped") / "run"
    code = "from fastae import cli; from fastae.data import recovery; recovery.PATIENCE = 1.0; cli.main()"
    options = ["--loader", "dali", "--out", out, *SMALL, "--log-every", 1, "--gpu-sample-hz", 0]
    with started("train", "--data", tmp_path, *options, command=(sys.executable, "-c", code)) as run:
        wait_for(run, "images/s")
        WAYS["a pipe"](Path(paths[1]))
        wait_for(run, f"{paths[1]}: not a file; replaced by {paths[2]}")
        run.send_signal(signal.SIGTERM)
        assert run.wait(100) == 128 + signal.SIGTERM
    assert skipped(out) == [(paths[1], "not a file")]


def test_a_file_cut_short_while_it_is_read_does_not_kill_the_process(paths):
    """Mapped into memory, it did: a read behind the new end of the file is SIGBUS."""
    for path in paths:
        whole = Path(path).read_bytes()
        Path(path).write_bytes(whole[:-2] + bytes(300_000) + whole[-2:])
    cutting = f"""
import os, time
files = [(path, open(path, "rb").read()) for path in {paths!r}]
end = time.monotonic() + 60
while time.monotonic() < end:
    for path, whole in files:
        file = os.open(path, os.O_RDWR)
        os.ftruncate(file, 10)
        os.pwrite(file, whole, 0)
        os.close(file)
"""
    reading = f"""
import time, torch
from fastae.data.crop_resize import CropResize
from fastae.data.pipeline import DaliPipeline, read_crops
from fastae.data.recovery import DecoderError
from fastae.data.tuning import Tuning
end, failures = time.monotonic() + 1, 0
while time.monotonic() < end:
    try:
        batches = ({paths!r} for _ in range(50))
        dali = DaliPipeline(CropResize(100), torch.device("cpu"), 12, Tuning(threads=2))
        for _ in read_crops(batches, dali):
            if time.monotonic() > end:
                break
    except DecoderError:
        failures += 1
print(failures)
"""
    cutter = subprocess.Popen([sys.executable, "-c", cutting])
    try:
        reader = subprocess.run([sys.executable, "-c", reading], capture_output=True, text=True, check=False)
    finally:
        cutter.kill()
        cutter.wait()
    assert reader.returncode == 0, reader.stderr[-1000:]
    assert int(reader.stdout) > 0


def test_a_run_whose_folder_vanishes_ends_in_one_line(paths, tmp_path, tmp_path_factory):
    out = tmp_path_factory.mktemp("vanished") / "run"
    options = ["--loader", "dali", "--out", out, *SMALL, "--log-every", 1, "--gpu-sample-hz", 0]
    with started("train", "--data", tmp_path, *options) as run:
        wait_for(run, "images/s")
        shutil.rmtree(tmp_path)
        said = run.communicate(timeout=60)[1]
        assert run.returncode == 1
    (line,) = said.splitlines()
    assert "none of the 11 images can be read any more" in line and "nothing was saved yet" in line
    assert line.endswith(f"fastae train --resume {out}")
