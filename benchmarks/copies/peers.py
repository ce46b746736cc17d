"""The methods compared: what each makes of one folder of files, as its documentation says to use it, on one thread.

    python benchmarks/copies/peers.py METHOD FOLDER OUT.json        # one method in a process of its own, for its peak memory

A peer that is not installed is reported so; none is imitated. Where a package gives hashes and no search, the published radius is
applied with FAISS or NumPy.
"""

import importlib.metadata
import importlib.util
import json
import resource
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import numpy as np

Pairs = Iterable[tuple[str, str]]
Hashed = Callable[[Path], object]
"""A file to whatever the method remembers of it."""


@dataclass(frozen=True)
class Method:
    """One method: `find` gives the pairs of file names in a folder; `one` makes the function for a single file, for timing."""

    package: str
    find: Callable[[Path], Pairs]
    one: Callable[[], Hashed]
    rule: str

    def missing(self) -> str | None:
        """Why it cannot run here."""
        module = self.package.replace("ImageHash", "imagehash")
        if importlib.util.find_spec(module) is None:
            return "not installed"
        if self.find is imagededup_cnn and not weights():
            return "weights not available"
        return None


def files(folder: Path) -> list[Path]:
    return sorted(folder.iterdir())


def ours_one() -> Hashed:
    from raydino.curation.fingerprint import fingerprint
    from raydino.data.decode import decode

    return lambda file: fingerprint(decode(file.read_bytes()))


def ours(folder: Path) -> Pairs:
    from raydino.curation.duplicates import within
    from raydino.curation.table import Table

    one, names = ours_one(), [file.name for file in files(folder)]
    met = within(Table.of([one(file) for file in files(folder)]))  # pyright: ignore[reportArgumentType]
    return ((names[first], names[second]) for first, second in zip(met.first, met.second, strict=True))


def imagededup_hash(kind: str) -> Callable[[Path], Pairs]:
    def find(folder: Path) -> Iterator[tuple[str, str]]:
        from imagededup import methods

        method = getattr(methods, kind)(verbose=False)
        found = method.find_duplicates(
            image_dir=folder, max_distance_threshold=10, num_enc_workers=0, num_dist_workers=0
        )
        yield from ((name, other) for name, others in found.items() for other in others)

    return find


def imagededup_one(kind: str) -> Callable[[], Hashed]:
    def make() -> Hashed:
        from imagededup import methods

        method = getattr(methods, kind)(verbose=False)
        return lambda file: method.encode_image(image_file=str(file))

    return make


def weights() -> bool:
    """Whether the network of imagededup's CNN was downloaded before."""
    import torch

    return any((Path(torch.hub.get_dir()) / "checkpoints").glob("mobilenet_v3_small-*"))


def imagededup_cnn(folder: Path) -> Iterator[tuple[str, str]]:
    from imagededup.methods import CNN

    found = CNN(verbose=False).find_duplicates(
        image_dir=folder, min_similarity_threshold=0.9, num_enc_workers=0, num_sim_workers=1
    )
    yield from ((name, other) for name, others in found.items() for other in others)


def cleanvision(folder: Path) -> Iterator[tuple[str, str]]:
    from cleanvision import Imagelab

    lab = Imagelab(data_path=str(folder), verbose=False)
    lab.find_issues({"exact_duplicates": {}, "near_duplicates": {}}, n_jobs=1, verbose=False)
    for kind in ("exact_duplicates", "near_duplicates"):
        for together in lab.info[kind]["sets"]:
            yield from combinations([Path(place).name for place in together], 2)


def cleanvision_one() -> Hashed:
    from cleanvision.issue_managers.duplicate_issue_manager import get_hash
    from PIL import Image

    def one(file: Path) -> object:
        image = Image.open(file)
        return get_hash(image, {"hash_type": "md5"}), get_hash(image, {"hash_type": "phash", "hash_size": 8})

    return one


def imagehash_one(kind: str) -> Callable[[], Hashed]:
    def make() -> Hashed:
        import imagehash
        from PIL import Image

        method = getattr(imagehash, kind)
        return lambda file: np.packbits(method(Image.open(file)).hash.reshape(-1))

    return make


def pdq_one() -> Hashed:
    import pdqhash
    from PIL import Image

    return lambda file: np.packbits(pdqhash.compute(np.asarray(Image.open(file).convert("RGB")))[0])


def within_bits(make: Callable[[], Hashed], bits: int) -> Callable[[Path], Pairs]:
    """Pairs of hashes at most so many bits apart, by exact search."""

    def find(folder: Path) -> Iterator[tuple[str, str]]:
        import faiss

        one, names = make(), [file.name for file in files(folder)]
        hashes = np.stack([np.asarray(one(file)) for file in files(folder)])
        index = faiss.IndexBinaryFlat(hashes.shape[1] * 8)
        index.add(hashes)  # pyright: ignore[reportCallIssue]
        limits, _, found = index.range_search(hashes, bits + 1)  # pyright: ignore[reportCallIssue]
        for row, name in enumerate(names):
            yield from ((name, names[other]) for other in found[limits[row] : limits[row + 1]] if other > row)

    return find


METHODS: dict[str, Method] = {
    "raydino": Method(
        "raydino", ours, ours_one, "256 bits of the DCT, whole against crops and mirror; thumbnails agree"
    ),
    "imagededup PHash": Method(
        "imagededup", imagededup_hash("PHash"), imagededup_one("PHash"), "64 bits, at most 10 apart"
    ),
    "imagededup DHash": Method(
        "imagededup", imagededup_hash("DHash"), imagededup_one("DHash"), "64 bits, at most 10 apart"
    ),
    "imagededup CNN": Method("imagededup", imagededup_cnn, imagededup_one("CNN"), "MobileNetV3, cosine at least 0.9"),
    "CleanVision": Method("cleanvision", cleanvision, cleanvision_one, "equal pixels or equal 64-bit pHash"),
    "ImageHash pHash": Method(
        "ImageHash", within_bits(imagehash_one("phash"), 10), imagehash_one("phash"), "64 bits, 10 apart"
    ),
    "ImageHash dHash": Method(
        "ImageHash", within_bits(imagehash_one("dhash"), 10), imagehash_one("dhash"), "64 bits, 10 apart"
    ),
    "PDQ": Method("pdqhash", within_bits(pdq_one, 31), pdq_one, "256 bits, at most 31 apart, FAISS"),
}


def version(package: str) -> str:
    return importlib.metadata.version(package)


def speeds(images: Sequence[Path], *, rounds: int) -> dict[str, list[float]]:
    """Images a second and core of every method that is here, for each round: decoding included, methods taking turns."""
    makers = {name: method.one() for name, method in METHODS.items() if method.missing() is None}
    out: dict[str, list[float]] = {name: [] for name in makers}
    for one in makers.values():
        one(images[0])  # what is loaded late is loaded now
    for _ in range(rounds):
        for name, one in makers.items():
            started = time.process_time()
            for file in images:
                one(file)
            out[name].append(len(images) / (time.process_time() - started))
    return out


def single_threaded() -> None:
    import cv2
    import faiss

    cv2.setNumThreads(1)
    faiss.omp_set_num_threads(1)


def main() -> None:
    """Writes the pairs of file names, CPU seconds and peak memory."""
    name, folder, out = sys.argv[1:]
    single_threaded()
    METHODS[name].one()  # the imports, before the clock starts
    imports, started = peak(), seconds()
    pairs = sorted({tuple(sorted(pair)) for pair in METHODS[name].find(Path(folder))})
    result = {"pairs": pairs, "cpu_seconds": seconds() - started, "peak_mb": peak(), "imports_mb": imports}
    Path(out).write_text(json.dumps(result))


def seconds() -> float:
    """CPU time so far, of processes it started as well: imagededup works in one."""
    parts = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(part.ru_utime + part.ru_stime for part in parts)


def peak() -> float:
    """Most memory this process has held, MB of 10⁶ bytes. Not getrusage's: that starts from what the parent had held."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024 / 1e6


if __name__ == "__main__":
    main()
