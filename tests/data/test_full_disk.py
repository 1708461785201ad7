"""A disk that is full, and a /dev/shm that is: one clear line, nothing half-written, or no matter at all."""

import json
import subprocess
import sys
import zipfile

from ..commands import SMALL
from ..mounts import mounted, require_mounts


def test_a_full_disk_is_one_line_each_and_leaves_no_half_of_anything(tmp_path, face_folder, face_paths):
    place, archive = tmp_path / "disk", tmp_path / "celeba.zip"
    place.mkdir()
    require_mounts(place)
    with zipfile.ZipFile(archive, "w") as made:
        for face in face_paths:
            made.write(face, f"img_align_celeba/{face[-10:]}")
    command = mounted(
        place, "size=128k", sys.executable, "-m", "tests.data.full_disk", place, face_folder, archive
    )
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout.splitlines()[-1])
    told = found["told"]
    assert "cannot keep the decoded images in" in told["resident"] and "use --cache-dir" in told["resident"]
    assert "cannot write the synthetic faces to" in told["faces"] and "--cache-dir or" in told["faces"]
    assert "cannot prepare" in told["celeba"] and "the same command resumes" in told["celeba"]
    for name in ("resident", "faces", "celeba"):
        assert "No space left on device" in told[name] and str(place / name) in told[name]
    checks = {"faces/file-checks", "faces/file-checks/entry.json"}
    assert set(found["left"]) <= {"faces", "resident"} | checks and found["parts"] == []
    assert 0 < found["whole"] < len(face_paths)
    assert told["checks"] == told["celeba again"] == told["resident again"] == "done"


def test_a_full_dev_shm_does_not_matter(tmp_path, face_folder):
    """PyTorch's own loaders pass images through it; nothing here does."""
    require_mounts("/dev/shm")
    train = ["train", "--data", face_folder, "--out", tmp_path / "run", *SMALL, "--iterations", 2]
    command = mounted("/dev/shm", "size=4k,ro", sys.executable, "-m", "fastae", *train, "--loader", "dali")
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "run" / "checkpoints" / "0000002.pt").is_file()
