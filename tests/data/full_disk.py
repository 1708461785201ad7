"""A process on a file system of 128 KiB, which fills it in every way in which data are kept.

Prints, as JSON, what each said and what it left. `python -m tests.data.full_disk PLACE FACES ARCHIVE`.
"""

import json
import subprocess
import sys
from pathlib import Path

from fastae.data import Tuning, open_loader
from fastae.data.folder import find_jpegs, open_folder
from fastae.data.prepare import prepare_celeba
from fastae.data.source import open_source
from fastae.errors import FastaeError


def main(place: Path, images: str, archive: Path) -> None:
    told = {}

    def attempt(name, action):
        try:
            action(place / name)
            told[name] = "done"
        except FastaeError as error:
            told[name] = str(error)

    def keep(cache):
        open_loader(find_jpegs(images), kind="resident", batch_size=4, device="cpu", seed=0,
                    tuning=Tuning(compiled=False), cache=cache)  # fmt: skip

    attempt("resident", keep)
    attempt("faces", lambda cache: open_source(None, cache=cache))
    left = sorted(str(path.relative_to(place)) for path in place.rglob("*"))
    attempt("celeba", lambda out: prepare_celeba(archive, out, 40))
    parts = [path.name for path in place.rglob("*.partial")]
    whole = len(list((place / "celeba" / "img_align_celeba").iterdir()))
    attempt("checks", lambda records: open_folder(images, records=records))
    subprocess.run(["mount", "-o", "remount,size=8m", place], check=True)
    attempt("celeba again", lambda _: prepare_celeba(archive, place / "celeba", 40))
    attempt("resident again", lambda _: keep(place / "resident"))
    print(json.dumps({"told": told, "left": left, "parts": parts, "whole": whole}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3]))
