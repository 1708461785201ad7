"""A file that cannot be decoded is reported and replaced, also during a run. Nothing else changes."""

import gc
import os
import shutil
import signal
import subprocess
import sys
import threading
from contextlib import nullcontext
from functools import partial
from pathlib import Path

import pytest
import torch
from PIL import Image

from fastae.data import CropResize, Tuning, load_images
from fastae.data.files import recovery
from fastae.data.files.faults import Fault
from fastae.data.files.folder import open_folder
from fastae.data.files.inspect import Inspection
from fastae.data.files.recovery import (
    DecoderError,
    DecoderOutOfMemory,
    DecoderStalled,
    ImageFiles,
    NoneLeft,
    recovered,
)
from fastae.data.loaders import kernel, pipeline
from fastae.data.loaders.choose import build_source
from fastae.data.loaders.cpu_ops import AHEAD
from fastae.data.loaders.decode import Decoder, open_decoder
from fastae.data.loaders.open import load_held_out
from fastae.data.loaders.sampler import Sampler
from fastae.experiment.augment import Augmentation
from fastae.runs.folder import RunFolder

from ..commands import SMALL, here, started, wait_for
from .bad_files import bad_table, claiming, encoded, two_orientations
from .batches import same, take

TRAIN = [*SMALL, "--loader", "dali", "--gpu-sample-hz", 0, "--no-cache", "--log-every", 1]
WAYS = {
    "truncated": lambda path: path.write_bytes(path.read_bytes()[:2500]),
    "emptied": lambda path: path.write_bytes(b""),
    "huge": lambda path: path.write_bytes(claiming(path.read_bytes(), 65_500, 65_500)),
    "removed": lambda path: path.unlink(),
    "does not decode": lambda path: path.write_bytes(bad_table(path.read_bytes())),
    "decodes, but not by DALI": lambda path: path.write_bytes(two_orientations(path.read_bytes())),
    "a PNG with a flipped bit": lambda path: path.write_bytes(flipped_png(path)),
    "a pipe": lambda path: (path.unlink(), os.mkfifo(path)),
}


def flipped_png(path):
    """Returns the image as a PNG with one bit of its data flipped, which the quick check does not see."""
    png = bytearray(encoded(Image.open(path), "PNG"))
    png[len(png) // 2] ^= 1
    return png


@pytest.fixture
def impatient(monkeypatch):
    """A batch may take one second, so that a test need not wait longer for a decoder that hangs."""
    monkeypatch.setattr(recovery, "PATIENCE", 1.0)


@pytest.fixture
def paths(tmp_path, face_paths):
    """Copies of twelve images, which a test may damage."""
    folder = tmp_path / "images"
    folder.mkdir()
    return [shutil.copy(face, f"{folder}/{number:02d}.jpg") for number, face in enumerate(face_paths[:12])]


@pytest.fixture
def replaced():
    """Path -> fault of the bad files that loaders report."""
    return {}


def note_in(replaced):
    return lambda bad, other: replaced.update({bad.path: bad.fault.value})


def open_(paths, replaced=None, kind="dali", **crop_resize):
    """Makes a loader of files without the quick check."""
    files = ImageFiles(paths, None if replaced is None else note_in(replaced))
    decoder = open_decoder(CropResize(**crop_resize), torch.device("cpu"), Tuning(compiled=False))
    return build_source(files, Sampler(len(paths), 4, 0, Augmentation()), decoder, kind)


def damage(way, *paths):
    for path in map(Path, paths):
        WAYS[way](path)


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("kind", ["dali", "resident"])
@pytest.mark.parametrize("way", WAYS)
def test_the_next_good_image_is_read_instead_and_nothing_else_changes(paths, way, kind, replaced):
    substituted = [*paths[:5], paths[7], paths[7], *paths[7:]]
    expected = take(open_(substituted, kind=kind).batches(), 9)
    damage(way, *paths[5:7])
    assert same(expected, take(open_(paths, replaced, kind).batches(), 9))
    assert sorted(replaced) == paths[5:7]


@pytest.mark.parametrize("kind", ["dali", "resident"])
def test_pngs_give_the_batches_of_the_jpegs_from_which_they_were_made(paths, kind):
    expected = take(open_(paths, kind=kind).batches(), 6)
    for path in paths[::2]:
        Path(path).write_bytes(encoded(Image.open(path), "PNG"))
    assert same(expected, take(open_(paths, kind=kind).batches(), 6))


def test_files_that_go_bad_during_a_run_are_replaced(paths, replaced):
    """One is emptied. The other becomes smaller than the crop, which only the decoder notices."""
    batches = open_(paths, replaced, crop=100).batches()
    next(batches)
    damage("emptied", paths[0])
    Image.new("RGB", (60, 60)).save(paths[3])
    take(batches, 15)
    assert replaced == {paths[0]: "empty", paths[3]: "does not decode"}


def test_an_image_smaller_than_the_crop_is_logged_with_its_replacement(paths, capsys):
    Image.new("RGB", (60, 60)).save(paths[3])
    load_images([paths[3], paths[4]], CropResize(100), "cpu")
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith(paths[3]) and line.endswith(paths[4])


def test_images_to_evaluate_on_are_replaced_and_reported_too(paths, replaced):
    expected = load_images([paths[0], paths[3], paths[3]], CropResize(), "cpu")
    damage("emptied", paths[1])
    damage("does not decode", paths[2])
    images = load_images(paths, CropResize(), "cpu", indices=range(3), on_replaced=note_in(replaced))
    assert torch.equal(images, expected)
    assert replaced == {paths[1]: "empty", paths[2]: "does not decode"}


def skipped(run):
    lines = (run / "skipped.txt").read_text().splitlines()
    return sorted(tuple(reversed(line.split("\t"))) for line in lines)


@pytest.mark.parametrize("held_out", [1, 4])
def test_a_held_out_file_that_does_not_decode_is_not_evaluated_on(paths, tmp_path, held_out, capsys):
    """If it is the only one, the file before it is held out instead. Five training files are bad, too."""
    names, images, run = [Path(path).name for path in paths], tmp_path / "images", tmp_path / "run"
    if held_out > 1:
        parts = [f"{name} {int(name in names[-held_out:])}\n" for name in names]
        (images / "list_eval_partition.txt").write_text("".join(parts))
    bad = [*paths[:5], paths[-held_out]]
    damage("does not decode", *bad)
    options = ["--iterations", 2, "--eval-images", 3, "--batch-size", 6]
    here("train", "--data", images, "--out", run, *TRAIN, *options)
    assert skipped(run) == [(path, "does not decode") for path in bad]
    printed = capsys.readouterr().out
    assert printed.count("; replaced by") == 3  # all are in skipped.txt
    divided = RunFolder(run).read_manifest()
    assert [*divided.held_out] == (names[-4:] if held_out > 1 else names[-2:-1])
    assert [*divided.train] == (names[:-4] if held_out > 1 else names[:-2])
    assert RunFolder(run).read_description().data.evaluated_on == min(3, held_out)


@pytest.mark.parametrize("bad", [1, 3])
def test_held_out_images_are_those_before_the_ones_that_do_not_decode(paths, bad):
    """A new run's folder is divided again. That of a resumed run cannot be."""
    damage("does not decode", *paths[-bad:])
    folder, crop_resize = open_folder(Path(paths[0]).parent), CropResize(size=32)
    load = partial(load_held_out, folder, crop_resize, torch.device("cpu"), number=10)
    divided, images = load()
    assert divided.held_out == [paths[-bad - 1]] and divided.train == paths[: -bad - 1]
    assert sorted(file.path for file in divided.skipped) == paths[-bad:]
    assert torch.equal(images, load_images([paths[-bad - 1]], crop_resize, "cpu"))
    with pytest.raises(NoneLeft):
        load(is_resumed=True)


@pytest.mark.parametrize("gone", [1.0, 0.5])
def test_hundreds_of_files_that_vanish_are_noticed_at_once(tmp_path, face_paths, gone, monkeypatch, replaced):
    """Finding them batch by batch, each time with a new pipeline, would take minutes."""
    paths = [str(tmp_path / f"{number:05d}.jpg") for number in range(400)]
    for number, path in enumerate(paths):
        os.link(face_paths[number % 40], path)
    built = []
    build = pipeline.DaliPipeline.build
    monkeypatch.setattr(pipeline.DaliPipeline, "build", lambda *given: built.append(0) or build(*given))
    batches = open_(paths, replaced, size=16).batches()
    next(batches)
    lost = paths[: int(gone * len(paths))]
    for path in lost:
        Path(path).unlink()
    if gone == 1:
        with pytest.raises(NoneLeft, match="none of the 400 images can be read"):
            take(batches, 20)
        assert not replaced
    else:
        take(batches, 100)
        assert sorted(replaced) == lost
    assert len(built) < 10


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize(("kind", "patience"), [(DecoderError, 1), (DecoderStalled, 8)])
def test_a_failed_batch_without_a_bad_file_is_tried_once_more(paths, kind, patience):
    """A file may be incomplete, or the storage slow. If it fails twice, the decoder's error is raised."""
    failures, restarted = [kind("once")], []

    def restart(position, patience):
        restarted.append((position, patience))
        for item in range(position, 5):
            if item == 3 and failures:
                raise failures.pop()
            yield item

    def items():
        files = ImageFiles(paths)
        return list(recovered(files, lambda all_good: [None] * len(all_good), restart, lambda at: range(12)))

    assert items() == [0, 1, 2, 3, 4]
    assert restarted == [(0, 1), (3, patience)]
    failures += [kind("second"), kind("first")]
    with pytest.raises(kind, match="second"):
        items()


def test_any_number_of_files_that_only_the_decoder_rejects_is_replaced(paths, replaced):
    damage("decodes, but not by DALI", *paths[1:])
    assert len(take(open_(paths, replaced).batches(), 6)) == 6 and sorted(replaced) == paths[1:]
    damage("decodes, but not by DALI", paths[0])
    with pytest.raises(NoneLeft, match="none of the 12 images"):
        take(open_(paths).batches(), 6)


def test_failed_pipelines_are_freed_at_once(paths):
    """They hold threads and device memory, and must not wait for the garbage collector."""

    def alive():
        return sum(each() is not None for each in pipeline.Pipeline._pipes)

    gc.collect()
    before = alive()
    damage("does not decode", paths[0])
    gc.disable()
    try:
        batches = open_(paths).batches()
        take(batches, 6)
        assert alive() == before + 1
        del batches
        assert alive() == before
    finally:
        gc.enable()


@pytest.mark.parametrize("kind", ["dali", "resident"])
def test_no_file_is_declared_bad_if_the_decoder_itself_fails(paths, monkeypatch, kind, replaced):
    """This happens, for example, if a GPU is lost."""

    def broken(self, stream):
        raise RuntimeError("Critical error in pipeline:\nworker thread 3 died")

    monkeypatch.setattr(pipeline.Pipeline, "run", broken)
    with pytest.raises(DecoderError, match="Critical error in pipeline"):
        next(open_(paths, replaced, kind).batches())
    assert not replaced


@pytest.mark.parametrize("short", [1, 10])
@pytest.mark.parametrize(
    "error",
    [
        MemoryError("std::bad_alloc"),
        RuntimeError("Error in GPU operator `nvidia.dali.fn.resize`\n\nCUDA allocation failed"),
        RuntimeError("Can't allocate 6912000000 bytes on device 0."),
    ],
    ids=str,
)
def test_no_file_is_replaced_because_memory_was_short(paths, monkeypatch, error, short, replaced):
    """The files are not tried one by one either. If memory was short only once, the run continues."""
    healthy, ran = pipeline.Pipeline.run, []

    def failing(self, stream):
        ran.append(self)
        if 3 <= len(ran) < 3 + short:
            raise error
        return healthy(self, stream)

    batches = open_(paths, replaced).batches()
    monkeypatch.setattr(pipeline.Pipeline, "run", failing)
    ends = pytest.raises(DecoderOutOfMemory, match="out of memory while decoding images")
    with ends if short > 1 else nullcontext():
        assert len(take(batches, 6)) == 6
    assert not replaced and len(ran) == (7 + AHEAD if short == 1 else 4)


def test_a_large_file_is_not_bad_if_a_valid_picture_of_its_size_also_fails(paths, tmp_path, monkeypatch):
    """nvImageCodec's errors do not show that memory was short."""
    large, bad = str(tmp_path / "large.jpg"), paths[0]
    Image.new("RGB", (500, 400)).save(large)
    damage("decodes, but not by DALI", bad)
    decoder = open_decoder(CropResize(size=16), torch.device("cpu"), Tuning(compiled=False))
    healthy = Decoder.stream

    def small_memory(self, batches, *rest):
        for (path,) in batches:
            with Image.open(path) as image:
                if image.width >= 500:
                    raise DecoderError("nvImageCodec failure")
            yield from healthy(self, [[path]], *rest)

    monkeypatch.setattr(Decoder, "stream", small_memory)
    assert list(decoder.faults([bad, paths[1]])) == [Fault.UNDECODABLE, None]
    with pytest.raises(DecoderError, match="nvImageCodec"):
        list(decoder.faults([large]))


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("no memory"), RuntimeError("DefaultCPUAllocator")])
def test_errors_outside_the_decoder_are_not_treated_as_decoder_errors(paths, monkeypatch, error, replaced):
    loader = open_(paths, replaced)

    def failing(*arguments):
        raise error

    monkeypatch.setattr(kernel, "augment_crops", failing)
    with pytest.raises(type(error), match=str(error)):
        next(loader.batches())
    assert not replaced


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("kind", ["dali", "resident"])
def test_a_file_at_which_the_decoder_hangs_is_replaced(paths, monkeypatch, kind, replaced):
    """The file is a pipe, and the quick check is made to accept it."""
    expected = take(open_([*paths[:5], paths[6], *paths[6:]], kind=kind).batches(), 4)
    monkeypatch.setattr(recovery, "inspect", lambda path: Inspection(None))
    monkeypatch.setattr("fastae.data.loaders.decode.FILE_PATIENCE", 1.0)
    damage("a pipe", paths[5])
    assert same(expected, take(open_(paths, replaced, kind).batches(), 4))
    assert replaced == {paths[5]: "does not decode in time"}


@pytest.mark.parametrize(("together", "seconds"), [(8, 20), (64, 20), (256, 80)])
def test_images_that_are_decoded_together_may_take_longer_in_proportion(
    paths, monkeypatch, together, seconds
):
    """A GPU decodes the batches of several iterations together."""
    allowed = set()
    monkeypatch.setattr(pipeline, "_within", lambda limit, decode: allowed.add(limit) or decode())
    decoder = open_decoder(CropResize(), torch.device("cpu"))
    assert len(list(decoder.stream([paths[:8]], together, patience=20))) == 1 and allowed == {seconds}


def test_the_decoder_is_not_blamed_for_the_time_in_which_the_process_was_stopped(monkeypatch):
    """As by Ctrl-Z, while DALI decodes."""
    monkeypatch.setattr(pipeline, "SLICE", 0.1)
    stopped = f"kill -STOP {os.getpid()}; sleep 2.5; kill -CONT {os.getpid()}"
    assert pipeline._within(2, lambda: subprocess.run(stopped, shell=True).returncode) == 0
    with pytest.raises(TimeoutError):
        pipeline._within(0.2, threading.Event().wait)


def test_a_file_that_becomes_a_pipe_hangs_neither_the_run_nor_the_end_of_its_process(paths, tmp_path):
    """When Python ends, DALI waits for its pipelines, and one of them waits for a writer of the pipe."""
    run = tmp_path / "run"
    code = (
        "import tests.narrow, fastae.cli.main as m, fastae.data.files.recovery as r; r.PATIENCE = 1; m.main()"
    )
    options = ["--data", tmp_path / "images", "--out", run, *TRAIN]
    with started("train", *options, command=(sys.executable, "-c", code)) as process:
        wait_for(process, "images/s")
        damage("a pipe", paths[1])
        wait_for(process, f"{paths[1]}: not a file; replaced by {paths[2]}")
        process.send_signal(signal.SIGTERM)
        assert process.wait(100) == 128 + signal.SIGTERM
    assert skipped(run) == [(paths[1], "not a file")]


def test_a_file_cut_short_while_it_is_read_does_not_kill_the_process(paths):
    """If it were mapped into memory, a read beyond its new end would raise SIGBUS."""
    for path in paths:
        whole = Path(path).read_bytes()
        Path(path).write_bytes(whole[:-2] + bytes(300_000) + whole[-2:])
    contents = {path: Path(path).read_bytes() for path in paths}
    done = threading.Event()

    def cut():
        while not done.is_set():
            for path, whole in contents.items():
                os.truncate(path, 10)
                Path(path).write_bytes(whole)

    cutter = threading.Thread(target=cut)
    cutter.start()
    decoder, failures = open_(paths).decoder, 0
    try:
        while failures < 10:
            try:
                for _ in decoder.stream([paths] * 50, len(paths), patience=60):
                    pass
            except DecoderError:
                failures += 1
    finally:
        done.set()
        cutter.join()
