"""Folders as users have them: with links, other image formats, or a partition file that does not match."""

import pytest

from fastae.data.files.folder import RULE, open_folder
from fastae.data.files.search import find_files

from ..commands import here, refuses
from .bad_files import put


@pytest.fixture
def root(tmp_path):
    (tmp_path / "data").mkdir()
    return tmp_path / "data"


def names(root):
    return [path.removeprefix(f"{root}/") for path in find_files(str(root))]


def test_a_linked_folder_is_read_and_trained_on_with_its_split(root, tmp_path, face_paths):
    """CelebA's root folder looks like this if its images are on another disk."""
    put(face_paths[:4], tmp_path / "elsewhere" / "deep")
    (root / "img_align_celeba").symlink_to(tmp_path / "elsewhere")
    (root / "list_eval_partition.txt").write_text("0.jpg 0\n1.jpg 1\n2.jpg 0\n3.jpg 2\n")
    opened = open_folder(root)
    assert list(opened.manifest.train) == ["img_align_celeba/deep/0.jpg", "img_align_celeba/deep/2.jpg"]
    assert list(opened.manifest.held_out) == ["img_align_celeba/deep/1.jpg", "img_align_celeba/deep/3.jpg"]
    assert opened.manifest.split == "list_eval_partition.txt"
    assert open_folder(root, manifest=opened.manifest) == opened


def test_each_folder_is_read_once_even_if_several_links_lead_to_it(root, tmp_path, face_paths):
    put(face_paths[:1], tmp_path / "other" / "deep")
    put(face_paths[1:2], root / "z")
    (root / "z" / "up").symlink_to(root)
    (root / "z" / "above").symlink_to("/")
    before = names(root)
    assert before == ["z/0.jpg"]
    (root / "a").symlink_to("z")  # sorts before the real folder, but its files keep their names
    assert names(root) == before
    (root / "m").symlink_to(tmp_path / "other" / "deep")
    (root / "l").symlink_to(tmp_path / "other")
    (tmp_path / "other" / "deep" / "back").symlink_to(tmp_path / "other")
    assert names(root) == ["l/deep/0.jpg", *before]
    (tmp_path / "link").symlink_to(root)
    assert names(tmp_path / "link") == ["l/deep/0.jpg", *before]


@pytest.mark.parametrize(
    ("parts", "why"),
    [("", "none"), ("other.jpg 1\n", "none"), ("0.jpg 0\n1.jpg 0\n2.jpg 0\n", "none"),
     ("0.jpg 1\n1.jpg 2\n2.jpg 2\n", "all")],
)  # fmt: skip
def test_a_partition_file_that_does_not_divide_the_images_is_named(root, face_paths, parts, why):
    put(face_paths[:3], root)
    (root / "list_eval_partition.txt").write_text(parts)
    split = open_folder(root).manifest.split
    assert split == f"{RULE}: list_eval_partition.txt holds out {why} of these images"


@pytest.mark.parametrize(
    ("folders", "held_out"),
    [
        ({"": 38}, ["36", "37"]),
        ({"all": 38}, ["all/36", "all/37"]),
        ({"a": 30, "b": 2, "": 1}, ["a/28", "a/29", "b/01"]),
        ({"a": 1, "b": 1, "c": 1}, ["c/00"]),
        ({"train/a": 20, "train/b": 20, "val/a": 20}, ["train/a/19", "train/b/19", "val/a/19"]),
        ({f"{name}/{part:02}": 2 for name in "ab" for part in range(15)},
         [f"{name}/14/0{last}" for name in "ab" for last in range(2)]),
    ],
    ids=["flat", "below", "labels", "single images", "labels of parts", "small folders of labels"],
)  # fmt: skip
def test_the_last_images_of_each_folder_are_held_out(root, face_paths, folders, held_out):
    """A folder with fewer than twenty images counts with the one above it, but for the topmost ones."""
    for folder, number in folders.items():
        put(face_paths[:1] * number, root / folder, [f"{index:02}.jpg" for index in range(number)])
    opened = open_folder(root)
    assert list(opened.manifest.held_out) == [f"{name}.jpg" for name in held_out]
    assert len(opened.train) + len(held_out) == sum(folders.values())
    assert sorted(opened.train) == opened.train


def test_a_url_is_refused(root, monkeypatch):
    for url in ("s3://bucket/faces", "GS://bucket"):
        prepare = ["prepare", "celeba", url, "--out", root / "out"]
        for command in (["train", "--data", url], ["check", url], prepare):
            line = refuses(*command)
            assert url in line and "only local files and folders are read" in line
        monkeypatch.setenv("FASTAE_DATA", url)
        assert refuses("train").startswith("$FASTAE_DATA")


def test_the_error_for_a_subset_of_celeba_gives_the_option_for_it(root, tmp_path, face_paths, capsys):
    put(face_paths[:3], root, ["000001.jpg", "000002.jpg", "000003.jpg"])
    prepare = ["prepare", "celeba", root, "--out", tmp_path / "out"]
    assert here(*prepare) == 1
    printed = capsys.readouterr().out
    assert "202,596 of 202,599 images are missing" in printed and "--count 3 " in printed
    assert printed.count("non-commercial research") == 1
    assert here(*prepare, "--count", 3) == 0
    printed = capsys.readouterr().out
    assert "missing" not in printed and "3 to train on, 0 to validate on" in printed
