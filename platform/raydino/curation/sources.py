"""Where images come from: folders, tar and WebDataset, zip, Parquet; local or by URI; always in one stable order.

A source is listed when it is opened and read afterwards. The listing alone shows whether its folders are classes,
counts the images, so that a share of bad ones means something, and refuses an archive with unsafe members before
anything is written. Archives are read as streams and never extracted. Whether bytes are an image is for `data.decode`
to say: everything is yielded but hidden files and side-cars, which are counted.
"""

import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import chain
from typing import Any

from raydino.curation.archives import ARCHIVES, SourceError, members
from raydino.data.decode import MAX_BYTES
from raydino.shards.reader import open_collection
from raydino.shards.schema import SPLITS, Folder, is_hidden, redacted, split_of

SIDE_CARS = frozenset({"txt", "json", "csv", "tsv", "md", "cls", "xml", "yaml", "yml", "html", "npy", "pth", "log"})
NOT_IMAGES = frozenset({"thumbs.db", "desktop.ini", "license", "readme"})
PART = 256  # files of a folder that are read together, a second of work
LABEL_BYTES = 1 << 20  # a label file is a few bytes; one of megabytes is not a label
_KEYS = ("cls", "label", "class")  # names of the label in a WebDataset sample's .json


@dataclass(frozen=True, slots=True)
class SourceImage:
    """One image of a source, judged by nobody yet."""

    data: bytes
    """Original bytes; of a file larger than the decoder takes, only so many that it is refused."""
    path: str
    """Path inside the source, unprintable characters escaped."""
    label: int | None = None
    """Number of the class, where the source gives a number but no name."""
    class_name: str | None = None
    """Name of the class, where the source gives one."""
    split: str | None = None
    """Split, where the source names one."""


@dataclass(frozen=True, slots=True)
class Label:
    """A label as a side-car states it: a number or a name."""

    number: int | None = None
    name: str | None = None


Part = Callable[[], Iterator[SourceImage]]
"""Reads a piece of a source, any number of times and wherever the source can be reached."""


@dataclass
class Source:
    """A listed source. `images` reads it, any number of times."""

    address: str
    total: int = 0
    """Images it will yield."""
    classes: tuple[str, ...] = ()
    """Class names, in the source's own order where it has one."""
    skipped: Counter[str] = field(default_factory=Counter)
    """Files that are not taken for images, by kind."""

    def images(self) -> Iterator[SourceImage]:
        """The images in a stable order."""
        return chain.from_iterable(part() for part in self.parts())

    def parts(self) -> list["Part"]:
        """The same in pieces that can be read apart; one after another they are `images`."""
        raise TypeError(f"{type(self).__name__} reads nothing; use open_source")


def open_source(address: str) -> Source:
    """List a source: a .tar (also compressed), .zip or .parquet file, or a folder of images, archives or Parquet
    shards.

    Raises SourceError for a missing, empty or unsafe source.
    """
    folder_address, _, name = address.rstrip("/").rpartition("/")
    if name.lower().endswith(ARCHIVES):
        return _Archive(Folder(folder_address or ("/" if address.startswith("/") else ".")), name)
    folder = Folder(address)
    entries = folder.files()
    if not entries:
        raise SourceError(
            f"{redacted(address)}: no such folder, or no files in it; give a folder, .tar, .zip or Parquet."
        )
    paths = [entry.path for entry in entries]
    if any(path.endswith(".parquet") and not is_hidden(path) for path in paths):
        return _Parquet(address)
    archives = [path for path in paths if path.lower().endswith(ARCHIVES)]
    if archives:
        return _Several(address, [_Archive(folder, path) for path in archives])
    return _Tree(folder, paths)


def read_source(address: str) -> Iterator[SourceImage]:
    """The images of a source, see `open_source`."""
    return open_source(address).images()


def escaped(path: str) -> str:
    """`path` fit for logs and tables: no line breaks, no control characters, no surrogates."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in path)


def side_car(path: str) -> str | None:
    """The kind of a file that is no image (`hidden` or its extension), else None."""
    parts = path.split("/")
    if is_hidden(path) or "__MACOSX" in parts:
        return "hidden"
    name = parts[-1].lower()
    extension = name.rpartition(".")[2] if "." in name else ""
    return name if name in NOT_IMAGES else extension if extension in SIDE_CARS else None


@dataclass(frozen=True)
class Shape:
    """What the folders of a tree mean: splits on top (`train/cat/1.jpg`), then classes; either may be absent."""

    splits: bool
    classes: tuple[str, ...]

    @classmethod
    def of(cls, paths: Sequence[str]) -> "Shape":
        """The shape of a tree. Folders are splits if all on top are named like splits, and classes if every image lies
        in one and there are at least two.
        """
        parts = [path.split("/") for path in paths]
        splits = bool(parts) and all(len(p) > 1 and p[0].lower() in SPLITS for p in parts)
        inner = [p[splits:] for p in parts]
        names = sorted({p[0] for p in inner}) if all(len(p) > 1 for p in inner) else []
        return cls(splits, tuple(names) if len(names) > 1 else ())

    def place(self, path: str) -> tuple[str | None, str | None]:
        """Split and class of a path."""
        parts = path.split("/")
        return (parts[0].lower() if self.splits else None, parts[self.splits] if self.classes else None)


class _Tree(Source):
    """A folder of files."""

    def __init__(self, folder: Folder, paths: Sequence[str]) -> None:
        super().__init__(folder.address)
        self.folder = folder
        self.skipped = Counter(kind for path in paths if (kind := side_car(path)))
        self.paths = [path for path in paths if side_car(path) is None]
        self.shape = Shape.of(self.paths)
        self.total, self.classes = len(self.paths), self.shape.classes

    def parts(self) -> list[Part]:
        starts = range(0, len(self.paths), PART)
        return [partial(_read_files, self.folder, self.shape, self.paths[start : start + PART]) for start in starts]


def _read_files(folder: Folder, shape: Shape, paths: Sequence[str]) -> Iterator[SourceImage]:
    for path in paths:
        split, name = shape.place(path)
        data = folder.read_bytes(path, at_most=MAX_BYTES + 1)
        yield SourceImage(data, escaped(path), None, name, split)


class _Parquet(Source):
    """A folder of Parquet shards in the Hugging Face layout."""

    def __init__(self, address: str) -> None:
        super().__init__(address)
        self.collection = open_collection(address)
        manifest = self.collection.manifest
        self.total, self.classes = manifest.rows, manifest.classes

    def parts(self) -> list[Part]:
        splits = [file.split for file in self.collection.manifest.files for _ in file.row_groups]
        return [partial(self._rows, group, split) for group, split in enumerate(splits)]

    def _rows(self, group: int, split: str) -> Iterator[SourceImage]:
        table = self.collection.read(group)
        columns = (table.column(name) for name in ("bytes", "path", "label"))
        for row, (data, path, label) in enumerate(zip(*columns, strict=True)):
            number = label.as_py()
            name = self.classes[number] if number is not None and number < len(self.classes) else None
            where = path.as_py() or f"row group {group}, row {row}"
            yield SourceImage(data.as_py(), escaped(where), number if name is None else None, name, split)


class _Several(Source):
    """Archives of one folder, one after the other."""

    def __init__(self, address: str, sources: Sequence[Source]) -> None:
        super().__init__(address)
        self.sources = sources
        self.total = sum(source.total for source in sources)
        self.classes = tuple(sorted({name for source in sources for name in source.classes}))
        self.skipped = sum((source.skipped for source in sources), Counter())

    def parts(self) -> list[Part]:
        return [part for source in self.sources for part in source.parts()]


class _Archive(Source):
    """A tar or zip. If label side-cars are found it is a WebDataset: files with the same name up to the first dot of
    the last part are one sample, and `.cls` or `.json` holds its label. Else its folders mean what they mean on disk.
    """

    def __init__(self, folder: Folder, name: str) -> None:
        super().__init__(f"{folder.address}/{name}")
        self.folder, self.name = folder, name
        self.labels: dict[str, Label] = {}
        paths = []
        for path, read in members(folder, name):
            kind = side_car(path)
            if kind is None:
                paths.append(path)
                continue
            self.skipped[kind] += 1
            if kind in ("cls", "json") and (label := read_label(kind, read(LABEL_BYTES))):
                self.labels.setdefault(sample_key(path), label)
        self.shape = Shape.of(paths)
        self.total = len(paths)
        named = {label.name for label in self.labels.values() if label.name is not None}
        self.classes = tuple(sorted(named)) if self.labels else self.shape.classes
        self.split = split_of(name) if name.rpartition("/")[2].lower().startswith(SPLITS) else None

    def parts(self) -> list[Part]:
        return [self._members]  # an archive is a stream

    def _members(self) -> Iterator[SourceImage]:
        for path, read in members(self.folder, self.name):
            if side_car(path) is not None:
                continue
            split, name = self.shape.place(path)
            label = self.labels.get(sample_key(path), Label()) if self.labels else Label(name=name)
            yield SourceImage(read(MAX_BYTES + 1), escaped(path), label.number, label.name, split or self.split)


def sample_key(path: str) -> str:
    """The WebDataset key of a member: its path up to the first dot of the last part."""
    folders, slash, name = path.rpartition("/")
    return f"{folders}{slash}{name.partition('.')[0]}"


def read_label(kind: str, data: bytes) -> Label | None:
    """The label in a `.cls` (a number or a name) or `.json` (under cls, label or class) side-car; None where there is
    none.
    """
    try:
        text = data.decode()
        value: Any = text.strip()
        if kind == "json":
            content = json.loads(text)
            found = [content[key] for key in _KEYS if key in content] if isinstance(content, dict) else []
            value = found[0] if found else None
    except ValueError:
        return None  # a side-car of another purpose
    if isinstance(value, int) and not isinstance(value, bool):
        return Label(number=value) if value >= 0 else None
    if isinstance(value, str) and value:
        return Label(number=int(value)) if value.isdecimal() else Label(name=value)
    return None
