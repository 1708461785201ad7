"""A full disk gives one-line errors and leaves no partial files, and a read-only disk can be used."""

import json
import subprocess
import sys
import zipfile
from pathlib import Path

from fastae.data.faces import portrait
from fastae.data.faces import synthetic as faces
from fastae.data.files.folder import open_folder
from fastae.data.files.prepare import prepare_celeba
from fastae.data.files.search import find_files
from fastae.data.loaders import store
from fastae.data.source import open_source
from fastae.errors import FastaeError

from ..commands import NARROW, SMALL
from ..mounts import mounted, require_mounts
from .batches import opened


def test_a_full_disk_gives_one_line_errors_and_a_read_only_disk_works(tmp_path, face_folder, face_paths):
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
    assert found["checks"] == "done"
    for name in ("celeba again", "resident again", "faces again", "resident read-only", "faces read-only"):
        assert found[name] == "done", found[name]


def work(disk: Path, images: str, archive: Path) -> None:
    """Fills a file system of 128 KiB with all that fastae caches. Prints the errors and the files left."""
    found = {}
    faces.FACES = 40

    def attempt(name, action):
        try:
            action(disk / name.split()[0])
            found[name] = "done"
        except FastaeError as error:
            found[name] = str(error)

    def keep(cache):
        opened(find_files(images), "resident", cache=cache)

    def draw(cache):
        open_source(None, cache=cache)

    def prepare(out):
        prepare_celeba(archive, out, 40)

    attempt("resident", keep)
    attempt("faces", draw)
    found["left"] = sorted(str(path.relative_to(disk)) for path in disk.rglob("*"))
    attempt("celeba", prepare)
    found["partial"] = [path.name for path in disk.rglob(".*partial*")]
    found["whole"] = len(list((disk / "celeba" / "img_align_celeba").iterdir()))
    attempt("checks", lambda records: open_folder(images, records=records))
    subprocess.run(["mount", "-o", "remount,size=8m", disk], check=True)
    for name, action in (("celeba", prepare), ("resident", keep), ("faces", draw)):
        attempt(f"{name} again", action)
    subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
    store._build = portrait.draw = None  # building again would fail
    attempt("resident read-only", keep)
    attempt("faces read-only", draw)
    print(json.dumps(found))


def test_a_machine_without_proc_and_dev_shm_trains(tmp_path, face_folder):
    """Empty, read-only file systems hide them. PyTorch's own loaders pass images through /dev/shm."""
    require_mounts("/proc")
    run = tmp_path / "run"
    train = ["train", "--data", face_folder, "--out", run, *SMALL, "--iterations", 2, "--loader", "dali"]
    command = [*NARROW, *train]
    for folder in ("/proc", "/dev/shm"):
        command = mounted(folder, "size=4k,ro", *command)
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0 and "Traceback" not in result.stderr, result.stderr
    assert (run / "checkpoints" / "0000002.safetensors").is_file()


if __name__ == "__main__":
    work(Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3]))
