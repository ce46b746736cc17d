"""Reading sources: trees, tar, WebDataset, zip, Parquet; and refusing unsafe archives."""

import io
import json
import os
import tarfile
import zipfile
from pathlib import Path

import pytest

from raydino.config import ConfigError
from raydino.curation.archives import SourceError
from raydino.curation.sources import SourceImage, escaped, open_source, read_source
from raydino.shards.schema import Folder

Row = tuple[str, bytes, int | None, str | None, str | None]


def rows(address: Path | str) -> list[Row]:
    return [(i.path, i.data, i.label, i.class_name, i.split) for i in read_source(str(address))]


def tree(root: Path, files: dict[str, bytes]) -> Path:
    for name, data in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return root


def tar(path: Path, files: list[tuple[str, bytes]], *, mode: str = "w") -> Path:
    with tarfile.open(path, mode) as archive:
        for name, data in files:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


def test_tree__splits_and_classes_from_folders(tmp_path: Path) -> None:
    files = {"train/dog/2.jpg": b"2", "train/cat/1.jpg": b"1", "test/cat/3.bin": b"3"}
    source = open_source(str(tree(tmp_path, files)))
    assert source.classes == ("cat", "dog")
    assert source.total == 3
    assert rows(tmp_path) == [
        ("test/cat/3.bin", b"3", None, "cat", "test"),
        ("train/cat/1.jpg", b"1", None, "cat", "train"),
        ("train/dog/2.jpg", b"2", None, "dog", "train"),
    ]


@pytest.mark.parametrize("names", [["a/1.jpg", "2.jpg"], ["a/1.jpg", "a/2.jpg"], ["1.jpg", "2.jpg"]])
def test_tree__without_the_shape_of_classes_has_none(names: list[str], tmp_path: Path) -> None:
    tree(tmp_path, dict.fromkeys(names, b"x"))
    assert [(row[2], row[3], row[4]) for row in rows(tmp_path)] == [(None, None, None)] * 2


def test_tree__side_cars_are_counted_not_read(tmp_path: Path) -> None:
    names = ["a.jpg", "noextension", "a.txt", "b.JSON", ".hidden.jpg", "sub/.git/x", "Thumbs.db", "README"]
    source = open_source(str(tree(tmp_path, dict.fromkeys(names, b"x"))))
    assert [image.path for image in source.images()] == ["a.jpg", "noextension"]
    assert source.skipped == {"txt": 1, "json": 1, "hidden": 2, "thumbs.db": 1, "readme": 1}


def test_tree__by_uri() -> None:
    folder = Folder("memory://raydino-sources/tree")
    folder.write_bytes("b/2.jpg", b"2")
    folder.write_bytes("a/1.jpg", b"1")
    assert rows("memory://raydino-sources/tree") == [
        ("a/1.jpg", b"1", None, "a", None),
        ("b/2.jpg", b"2", None, "b", None),
    ]


def test_tree__larger_than_the_decoder_takes_is_read_only_so_far(tmp_path: Path) -> None:
    with (tmp_path / "huge.jpg").open("wb") as stream:
        stream.truncate(200 << 20)
    (image,) = read_source(str(tmp_path))
    assert len(image.data) == (32 << 20) + 1


def test_tree__odd_names_links_and_pipes(tmp_path: Path) -> None:
    root = tree(tmp_path / "root", {"a.jpg": b"a"})
    elsewhere = tree(tmp_path / "elsewhere", {"z.jpg": b"z"})
    Path(os.fsdecode(os.fsencode(root) + b"/b\xff\n.jpg")).write_bytes(b"b")
    os.mkfifo(root / "c.jpg")
    (root / "loop").symlink_to(root, target_is_directory=True)
    (root / "more").symlink_to(elsewhere, target_is_directory=True)
    assert [row[:2] for row in rows(root)] == [("a.jpg", b"a"), (r"b\udcff\n.jpg", b"b"), ("more/z.jpg", b"z")]


@pytest.mark.parametrize(("name", "mode"), [("t.tar", "w"), ("t.tar.gz", "w:gz"), ("t.tgz", "w:gz")])
def test_tar__a_tree_in_archive_order(name: str, mode: str, tmp_path: Path) -> None:
    tar(tmp_path / name, [("./dog/1.jpg", b"1"), ("cat/2.jpg", b"2"), ("cat/notes.txt", b"n")], mode=mode)
    source = open_source(str(tmp_path / name))
    assert (source.classes, source.total, dict(source.skipped)) == (("cat", "dog"), 2, {"txt": 1})
    assert rows(tmp_path / name) == [("dog/1.jpg", b"1", None, "dog", None), ("cat/2.jpg", b"2", None, "cat", None)]


def test_tar__webdataset_labels(tmp_path: Path) -> None:
    members = [
        ("0.jpg", b"zero"),
        ("0.cls", b"3\n"),
        ("1.json", json.dumps({"label": 4, "caption": "c"}).encode()),
        ("1.left.jpg", b"one"),
        ("2.jpg", b"two"),
    ]
    tar(tmp_path / "train-0000.tar", members)
    assert rows(tmp_path / "train-0000.tar") == [
        ("0.jpg", b"zero", 3, None, "train"),
        ("1.left.jpg", b"one", 4, None, "train"),
        ("2.jpg", b"two", None, None, "train"),
    ]


def test_folder_of_archives__class_names_are_merged(tmp_path: Path) -> None:
    tar(tmp_path / "0.tar", [("a.jpg", b"a"), ("a.cls", b"owl")])
    tar(tmp_path / "1.tar", [("b.jpg", b"b"), ("b.cls", b"bat")])
    source = open_source(str(tmp_path))
    assert source.classes == ("bat", "owl")
    assert [(image.path, image.class_name) for image in source.images()] == [("a.jpg", "owl"), ("b.jpg", "bat")]


@pytest.mark.parametrize("name", ["../x.jpg", "a/../../x.jpg", "/etc/x.jpg", "..\\x.jpg"])
def test_tar__member_outside_is_refused(name: str, tmp_path: Path) -> None:
    tar(tmp_path / "t.tar", [("ok.jpg", b"1"), (name, b"2")])
    with pytest.raises(SourceError, match="points outside the archive"):
        open_source(str(tmp_path / "t.tar"))


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE])
def test_tar__link_or_device_is_refused(kind: bytes, tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "t.tar", "w") as archive:
        info = tarfile.TarInfo("x.jpg")
        info.type, info.linkname = kind, "/etc/passwd"
        archive.addfile(info)
    with pytest.raises(SourceError, match=r"member 'x\.jpg' is a link or a device"):
        open_source(str(tmp_path / "t.tar"))


def test_tar__cut_short(tmp_path: Path) -> None:
    path = tar(tmp_path / "t.tar", [("1.jpg", b"1" * 3000), ("2.jpg", b"2" * 3000)])
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(SourceError, match="damaged"):
        list(read_source(str(path)))


def test_zip__tree_and_unsafe_member(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "good.zip", "w") as archive:
        archive.writestr("a/1.jpg", b"1")
        archive.writestr("b/2.jpg", b"2")
    assert rows(tmp_path / "good.zip") == [("a/1.jpg", b"1", None, "a", None), ("b/2.jpg", b"2", None, "b", None)]
    with zipfile.ZipFile(tmp_path / "bad.zip", "w") as archive:
        archive.writestr("../1.jpg", b"1")
    with pytest.raises(SourceError, match="points outside"):
        open_source(str(tmp_path / "bad.zip"))
    with zipfile.ZipFile(tmp_path / "link.zip", "w") as archive:
        info = zipfile.ZipInfo("l.jpg")
        info.external_attr = 0o120777 << 16
        archive.writestr(info, "/etc/passwd")
    with pytest.raises(SourceError, match="link"):
        open_source(str(tmp_path / "link.zip"))


@pytest.mark.parametrize("name", ["absent", "absent.tar", "absent.zip"])
def test_open_source__missing(name: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=name):
        open_source(str(tmp_path / name))


def test_escaped__line_breaks_and_surrogates() -> None:
    assert escaped("a b/é.jpg") == "a b/é.jpg"
    assert escaped("a\nb\udcff.jpg") == r"a\nb\udcff.jpg"


@pytest.mark.data
def test_parquet__labels_become_names(data_folder: Path) -> None:
    source = open_source(str(data_folder / "caltech101"))
    first = next(source.images())
    assert isinstance(first, SourceImage)
    assert first.split == "test"
    assert first.class_name in source.classes
    assert first.label is None
    assert source.total == 3471
