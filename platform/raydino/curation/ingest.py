"""From sources to a curated folder: every image is decoded and judged once, its bytes are kept as they came, and every decision
is written.

Order decides: sources as given, each in its own stable order, and of byte-identical images the first one stays. A bad
image costs itself and nothing else; too many bad ones stop the run, since then the source is at fault and not the
image. Images are read and judged by threads here or by tasks on a Ray cluster, while one thread keeps the order and writes.
A later batch goes into the same folder (see `addition`), with no image decoded again.
"""

import os
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict
from functools import partial
from itertools import islice
from typing import Any

import pyarrow as pa

from raydino.config import ConfigError
from raydino.curation.addition import PLACE, Addition, begin_addition, readable
from raydino.curation.archives import SourceError
from raydino.curation.features import SCHEMA, measured
from raydino.curation.ledger import DECISIONS, SUMMARY, Input, Judgement, Ledger, Outputs, Rules
from raydino.curation.sources import Part, SourceImage, open_source
from raydino.curation.spread import Spread
from raydino.data.decode import ImageHeader, Undecodable
from raydino.shards.manifest import FILE_NAME, Manifest, build
from raydino.shards.schema import Folder, redacted
from raydino.shards.writer import rows_per_group

AHEAD = 8  # images in flight per thread: hides a slow decode; 64 photos of 10 MB on 8 threads are 640 MB
ROWS = 128  # images that come back from a task at once
_JUDGED = pa.schema(
    [
        ("source", pa.string()),
        (
            "image",
            pa.struct(
                [
                    ("data", pa.large_binary()),
                    ("path", pa.string()),
                    ("label", pa.int64()),
                    ("class_name", pa.string()),
                    ("split", pa.string()),
                ]
            ),
        ),
        (
            "header",
            pa.struct(
                [
                    *((name, pa.string()) for name in ("format", "mode")),
                    *((name, pa.int64()) for name in ("width", "height", "frames", "orientation")),
                ]
            ),
        ),
        ("error", pa.struct([("reason", pa.string()), ("detail", pa.string())])),
        ("features", pa.struct(list(SCHEMA))),
    ]
)
Done = Callable[[int, int], None]
"""Told how many images are done, of how many."""


def ingest(
    sources: Sequence[str],
    out: str,
    *,
    add: bool = False,
    max_bad: float = 0.05,
    eval_fraction: float | None = None,
    seed: int | None = None,
    threads: int | None = None,
    spread: Spread | None = None,
    done: Done = lambda _done, _total: None,
) -> Manifest:
    """Read `sources` (see `sources.open_source`) into the curated folder `out` and return its manifest.

    Writes data/SPLIT-*.parquet, features/SPLIT.parquet, manifest.json, decisions.parquet (a row per input),
    quarantine.parquet (a row per undecodable input) and summary.json. `eval_fraction` of the images without a split become
    `test`, chosen by content and `seed`; None is 0 for both. `spread` judges in its pieces, None in `threads` of this process;
    what is written is the same. What an ingest that did not end has left in `out` is removed. Raises ConfigError for bad
    sources, an `out` that is not empty or no image left, and TooManyBad above `max_bad`, with quarantine.parquet left to look at.

    With `add` the sources are a further batch for the curated folder `out`: rows are appended to every split and table, shards
    that are there are not touched, and images that are there are duplicates. `eval_fraction` and `seed` are the folder's; None
    takes them. Keep-masks go where images came: screen again. Raises ConfigError where `out` is not curated, names other
    settings or changes meanwhile, and where class names and bare numbers would meet. An addition that does not end leaves the
    folder as it was.
    """
    if not sources:
        raise SourceError("sources = []: give at least one folder, .tar, .zip or Parquet folder.")
    opened = [open_source(source) for source in sources]
    inputs = [Input(redacted(s.address), s.total, s.parts(), s.classes, s.skipped) for s in opened]
    addition = begin_addition(Folder(out)) if add else None
    asked = (max_bad, eval_fraction, seed)
    rules = Rules(max_bad, eval_fraction or 0.0, seed or 0) if addition is None else addition.rules(*asked)
    return ingest_inputs(inputs, out, rules=rules, addition=addition, threads=threads, spread=spread, done=done)


def ingest_inputs(
    inputs: Sequence[Input],
    out: str,
    *,
    rules: Rules,
    addition: Addition | None = None,
    group_rows: int | None = None,
    threads: int | None = None,
    spread: Spread | None = None,
    done: Done = lambda _done, _total: None,
) -> Manifest:
    """`ingest` of inputs that need not be files. The class names of all inputs are merged in order of first appearance.
    `group_rows` None lets the number of images choose the rows of a row group (`shards.writer.rows_per_group`).
    """
    folder = _emptied(Folder(out)) if addition is None else addition.folder
    classes = tuple(dict.fromkeys(name for item in inputs for name in item.classes))
    total = sum(item.total for item in inputs)
    if not total:
        skipped = sum((item.skipped for item in inputs), Counter())
        raise SourceError(f"sources: 0 images found, {sum(skipped.values())} other files passed over; check the paths.")
    before, batch, place = 0, 0, ""
    if addition is not None:
        before, batch, place = addition.manifest.rows, addition.batch, PLACE
        classes = addition.classes(classes)
    threads = threads or min(8, len(os.sched_getaffinity(0)))
    group_rows = group_rows or rows_per_group(round((before + total) * (1 - rules.eval_fraction)))
    judged = judged_here(inputs, threads) if spread is None else judged_in_pieces(inputs, spread)
    with Outputs(folder, classes, rows_per_group=group_rows, batch=batch, place=place) as outputs:
        ledger = Ledger(outputs, rules, total, kept=addition.ids() if addition else ())
        for judgement in judged:
            ledger.enter(judgement)
            done(ledger.seen, total)
        ledger.check(final=True)
        files = outputs.finish()
        manifest = build(folder, files, classes=classes, labelled=ledger.labelled > 0, stages=ledger.stages(inputs))
        outputs.stamp(manifest)
    summary = ledger.summary(manifest, inputs)
    if addition is not None:
        return addition.commit(manifest, summary)
    folder.write_bytes(SUMMARY, readable(summary))
    manifest.save(folder)  # last: a folder with a manifest is whole
    return manifest


def _emptied(folder: Folder) -> Folder:
    """The folder, without what an ingest that did not end has left there. Raises ConfigError if there is anything else."""
    paths = [entry.path for entry in folder.files()]
    ours = ("data/", "features/", DECISIONS, "quarantine.parquet", SUMMARY)
    if DECISIONS in paths and FILE_NAME not in paths and all(path.startswith(ours) for path in paths):
        for path in paths:
            folder.delete(path)
        paths = [entry.path for entry in folder.files()]
    if paths:
        raise ConfigError(
            f"out = {folder}: not empty ({len(paths):,} files, {paths[0]}, …); give a new folder, or --add."
        )
    return folder


def judged_here(inputs: Sequence[Input], threads: int) -> Iterator[Judgement]:
    """Judgements in the order of the inputs, from threads; the pool's own map would read the whole source first."""
    images = ((item.name, image) for item in inputs for part in item.parts for image in part())
    waiting: deque[Future[Judgement]] = deque()
    with ThreadPoolExecutor(threads, thread_name_prefix="raydino-ingest") as pool:
        for source, image in images:
            waiting.append(pool.submit(judge, source, image))
            if len(waiting) >= threads * AHEAD:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def judged_in_pieces(inputs: Sequence[Input], spread: Spread) -> Iterator[Judgement]:
    """The same, read and judged in pieces that may lie on other machines; the images come back as they are."""
    parts = [(item.name, part) for item in inputs for part in item.parts]
    for table in spread(partial(_judged_part, parts=parts), len(parts)):
        yield from (_judgement(row) for row in table.to_pylist())


def judge(source: str, image: SourceImage) -> Judgement:
    """The judgement on one image."""
    return Judgement(source, image, *measured(image.data))


def _judged_part(number: int, *, parts: Sequence[tuple[str, Part]]) -> Iterator[pa.Table]:
    source, part = parts[number]
    rows = (_row(judge(source, image)) for image in part())
    while some := list(islice(rows, ROWS)):
        yield pa.Table.from_pylist(some, schema=_JUDGED)


def _row(found: Judgement) -> dict[str, object]:
    if isinstance(found.verdict, ImageHeader):
        verdict: dict[str, object] = {"header": asdict(found.verdict)}
    else:
        verdict = {"error": {"reason": found.verdict.reason, "detail": found.verdict.detail}}
    return {"source": found.source, "image": asdict(found.image), "features": found.features, **verdict}


def _judgement(row: dict[str, Any]) -> Judgement:
    verdict = ImageHeader(**row["header"]) if row["header"] else Undecodable(**row["error"])
    return Judgement(row["source"], SourceImage(**row["image"]), verdict, row["features"])
