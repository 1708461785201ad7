"""A full disk is one line and leaves nothing half-written; a full /dev/shm does not matter."""

import json
import subprocess
import sys
import zipfile
from pathlib import Path

from fastae.data import Tuning, open_loader
from fastae.data.files.folder import find_jpegs, open_folder
from fastae.data.files.prepare import prepare_celeba
from fastae.data.source import open_source
from fastae.errors import FastaeError

from ..commands import SMALL
from ..mounts import mounted, require_mounts


def test_a_full_disk_is_one_line_each_and_leaves_no_half_of_anything(tmp_path, face_folder, face_paths):
    disk, archive = tmp_path / "disk", tmp_path / "celeba.zip"
    disk.mkdir()
    require_mounts(disk)
    with zipfile.ZipFile(archive, "w") as made:
        for face in face_paths:
            made.write(face, f"img_align_celeba/{face[-10:]}")
    worker = [sys.executable, "-m", "tests.data.test_full_disk", disk, face_folder, archive]
    command = mounted(disk, "size=128k", *worker)
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout.splitlines()[-1])
    for name in ("resident", "faces", "celeba"):
        assert "No space left on device" in found[name] and str(disk / name) in found[name]
    checks = {"faces/file-checks", "faces/file-checks/entry.json"}
    assert set(found["left"]) <= {"faces", "resident"} | checks and found["partial"] == []
    assert 0 < found["whole"] < len(face_paths)
    assert found["checks"] == found["celeba again"] == found["resident again"] == "done"


def work(disk: Path, images: str, archive: Path) -> None:
    """Fills a file system of 128 KiB in every way that data are kept; prints what each raised and left."""
    found = {}

    def attempt(name, action):
        try:
            action(disk / name.removesuffix(" again"))
            found[name] = "done"
        except FastaeError as error:
            found[name] = str(error)

    def keep(cache):
        tuning = Tuning(compiled=False)
        open_loader(
            find_jpegs(images),
            kind="resident",
            batch_size=4,
            device="cpu",
            seed=0,
            tuning=tuning,
            cache=cache,
        )

    attempt("resident", keep)
    attempt("faces", lambda cache: open_source(None, cache=cache))
    found["left"] = sorted(str(path.relative_to(disk)) for path in disk.rglob("*"))
    attempt("celeba", lambda out: prepare_celeba(archive, out, 40))
    found["partial"] = [path.name for path in disk.rglob(".*partial*")]
    found["whole"] = len(list((disk / "celeba" / "img_align_celeba").iterdir()))
    attempt("checks", lambda records: open_folder(images, records=records))
    subprocess.run(["mount", "-o", "remount,size=8m", disk], check=True)
    attempt("celeba again", lambda out: prepare_celeba(archive, out, 40))
    attempt("resident again", keep)
    print(json.dumps(found))


def assert_trains_without(folder, run, face_folder):
    """With an empty folder in its place that takes nothing."""
    require_mounts(folder)
    train = ["train", "--data", face_folder, "--out", run, *SMALL, "--iterations", 2, "--loader", "dali"]
    command = mounted(folder, "size=4k,ro", sys.executable, "-m", "fastae", *train)
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0 and "Traceback" not in result.stderr, result.stderr
    assert (run / "checkpoints" / "0000002.pt").is_file()


def test_a_full_dev_shm_does_not_matter(tmp_path, face_folder):
    """PyTorch's own loaders pass images through it; nothing here does."""
    assert_trains_without("/dev/shm", tmp_path / "run", face_folder)


def test_a_machine_without_proc_trains(tmp_path, face_folder):
    assert_trains_without("/proc", tmp_path / "run", face_folder)


if __name__ == "__main__":
    work(Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3]))
