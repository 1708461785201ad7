"""Folders as users have them: with links, other image formats, or a partition file that does not match."""

import pytest

from fastae.data.files.folder import open_folder
from fastae.data.files.search import find_files
from fastae.data.loaders.crop_resize import CropResize
from fastae.tools.images import UnusableImage, load_image

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
    assert split == f"the last 5 % by name: list_eval_partition.txt holds out {why} of these images"


def test_a_url_is_refused(root, monkeypatch):
    for url in ("s3://bucket/faces", "GS://bucket"):
        prepare = ["prepare", "celeba", url, "--out", root / "out"]
        for command in (["train", "--data", url], ["check", url], prepare):
            line = refuses(*command)
            assert url in line and "only local files and folders are read" in line
        monkeypatch.setenv("FASTAE_DATA", url)
        assert refuses("train").startswith("$FASTAE_DATA")
        with pytest.raises(UnusableImage, match="only local files"):
            load_image(url, CropResize())


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
