"""From sources to a curated folder: every image is judged once, its bytes are kept as they came, and every decision is
written.

Order decides: sources as given, each in its own stable order, and of byte-identical images the first one stays. A bad
image costs itself and nothing else; too many bad ones stop the run, since then the source is at fault and not the
image. Images are decoded by threads (decoders release the interpreter lock) while one thread keeps the order and
writes.
"""

import json
import os
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

from raydino.config import ConfigError
from raydino.curation.archives import SourceError
from raydino.curation.ledger import SUMMARY, Input, Judgement, Ledger, Outputs, Rules
from raydino.curation.sources import SourceImage, open_source
from raydino.data.decode import ImageHeader, Undecodable, decode, header
from raydino.shards.manifest import Manifest, build
from raydino.shards.schema import Folder, content_id, redacted
from raydino.shards.writer import rows_per_group

AHEAD = 8  # images in flight per thread: hides a slow decode; 64 photos of 10 MB on 8 threads are 640 MB


def ingest(
    sources: Sequence[str],
    out: str,
    *,
    max_bad: float = 0.05,
    eval_fraction: float = 0.0,
    seed: int = 0,
    threads: int | None = None,
) -> Manifest:
    """Read `sources` (see `sources.open_source`) into the curated folder `out` and return its manifest.

    Writes data/SPLIT-*.parquet, manifest.json, decisions.parquet (a row per input), quarantine.parquet (a row per
    undecodable input) and summary.json. `eval_fraction` of the images without a split become `test`. Raises ConfigError
    for bad sources, an `out` that is not empty or no image left, and TooManyBad above `max_bad`, with
    quarantine.parquet left to look at.
    """
    if not sources:
        raise SourceError("sources = []: give at least one folder, .tar, .zip or Parquet folder.")
    opened = [open_source(source) for source in sources]
    inputs = [Input(redacted(s.address), s.total, s.images, s.classes, s.skipped) for s in opened]
    return ingest_inputs(inputs, out, rules=Rules(max_bad, eval_fraction, seed), threads=threads)


def ingest_inputs(
    inputs: Sequence[Input], out: str, *, rules: Rules, group_rows: int | None = None, threads: int | None = None
) -> Manifest:
    """`ingest` of inputs that need not be files. The class names of all inputs are merged in order of first appearance.
    `group_rows` None lets the number of images choose the rows of a row group (`shards.writer.rows_per_group`).
    """
    folder = Folder(out)
    if present := folder.files():
        raise ConfigError(
            f"out = {folder}: not empty ({len(present):,} files, {present[0].path}, …); give a new folder."
        )
    classes = tuple(dict.fromkeys(name for item in inputs for name in item.classes))
    total = sum(item.total for item in inputs)
    if not total:
        skipped = sum((item.skipped for item in inputs), Counter())
        raise SourceError(f"sources: 0 images found, {sum(skipped.values())} other files passed over; check the paths.")
    threads = threads or min(8, len(os.sched_getaffinity(0)))
    group_rows = group_rows or rows_per_group(round(total * (1 - rules.eval_fraction)))
    with Outputs(folder, classes, rows_per_group=group_rows) as outputs, ThreadPoolExecutor(threads) as pool:
        ledger = Ledger(outputs, rules, total)
        judged = _in_order(
            pool, _judge, ((item.name, image) for item in inputs for image in item.images()), threads * AHEAD
        )
        for judgement in judged:
            ledger.enter(judgement)
        ledger.check(final=True)
        files = outputs.finish()
    manifest = build(folder, files, classes=classes, labelled=ledger.labelled > 0, stages=ledger.stages(inputs))
    folder.write_bytes(SUMMARY, json.dumps(ledger.summary(manifest, inputs), indent=2).encode() + b"\n")
    manifest.save(folder)  # last: a folder with a manifest is whole
    return manifest


def _judge(item: tuple[str, SourceImage]) -> Judgement:
    source, image = item
    try:
        verdict: ImageHeader | Undecodable = header(image.data)
        decode(image.data)
    except Undecodable as error:
        verdict = error
    return Judgement(source, image, content_id(image.data), verdict)


def _in_order(
    pool: ThreadPoolExecutor,
    action: Callable[[tuple[str, SourceImage]], Judgement],
    items: Iterable[tuple[str, SourceImage]],
    ahead: int,
) -> Iterator[Judgement]:
    """Results in the order of `items`, at most `ahead` in flight; the pool's own map would read the whole source first."""
    waiting: deque[Future[Judgement]] = deque()
    for item in items:
        waiting.append(pool.submit(action, item))
        if len(waiting) >= ahead:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()
