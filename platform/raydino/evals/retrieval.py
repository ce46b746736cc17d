"""Retrieval by the cosine of cls features: does what belongs together come first?

What belongs together is told by what the images have: `gnd.json` of the revisited Oxford and Paris benchmark (Radenović et al.
2018; DINO, section 4.2.1; DINOv2, section 7.3), the `pose` of the camera, or labels. Databases are the training split, queries
the other one. Centre crops at the size of the others, one scale; published for Paris: 512 pixels and the mean of three.
Letters: Q queries, N database, D width.
"""

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor
from torch.nn import functional as F

from raydino import collectives
from raydino.data.decode import Undecodable, decode
from raydino.evals.config import RetrievalConfig
from raydino.evals.dense import encode_each, rows_with
from raydino.evals.evaluation import Evaluation, Labelled
from raydino.evals.features import extract
from raydino.evals.images import centre_crop
from raydino.evals.ranking import Judged, average_precision, ranked, revisited

if TYPE_CHECKING:
    from raydino.nn.backbone import Backbone
    from raydino.shards.reader import Collection

GROUND_TRUTH = "gnd.json"
"""Beside the shards: {"imlist": [name, …], "qimlist": [name, …], "gnd": [{"bbx": [x0, y0, x1, y1], "easy": [i, …], "hard": […],
"junk": […]}, …]}, the benchmark's own fields; a name is an image's `path` without folders and ending."""


class Retrieval(Evaluation):
    """Mean average precision; returns `map` and `recall1`, for the revisited benchmark its nine figures instead."""

    def __init__(self, config: RetrievalConfig) -> None:
        """An evaluation by `config`."""
        self.config = config

    @property
    def protocol(self) -> str:
        """The protocol in words."""
        c = self.config
        return (
            "cosine of cls features, the whole database ranked; by gnd.json where there is one (trapezoidal AP, easy, medium and "
            f"hard, junk left out), else by `pose` (within {c.metres:g} m and {c.degrees:g}°), else by labels (mean precision at "
            "the relevant images; queries without any do not count)"
        )

    def unfit(self, labelled: Labelled) -> str | None:
        """It needs a database and queries, and to know what belongs together."""
        if labelled.classes:
            return None
        if labelled.train is None or labelled.test is None:
            return "no labels, and no split to be the database"
        known = _ground_truth(labelled) is not None or _posed(labelled)
        return None if known else f"no labels, no column 'pose' and no {GROUND_TRUTH}"

    def images(self, labelled: Labelled) -> str:
        """The number of images, and their size."""
        train, test = labelled.train, labelled.test
        if train is None or test is None or (_ground_truth(labelled) is None and not _posed(labelled)):
            return labelled.description
        return f"{len(test)} queries against {len(train)} images, centre crops of {labelled.queries.shape[-1]}"

    def run(self, encoder: "Backbone", labelled: Labelled) -> dict[str, float]:
        """Rank the database for every query. Raises ValueError where images or poses are missing."""
        truth = _ground_truth(labelled)
        if truth is not None:
            return self._benchmark(encoder, labelled, truth)
        if _posed(labelled):
            return self._poses(encoder, labelled)
        device = next(encoder.parameters()).device
        bank, labels = extract(
            encoder, labelled.bank.at_most(self.config.bank, seed=labelled.seed), labelled.normalisation, device=device
        )
        queries, own = extract(
            encoder,
            labelled.queries.at_most(self.config.queries, seed=labelled.seed),
            labelled.normalisation,
            device=device,
        )
        return scored(queries, bank, (own[:, None] == labels).cpu().numpy())

    def _poses(self, encoder: "Backbone", labelled: Labelled) -> dict[str, float]:
        assert labelled.train is not None and labelled.test is not None, "see unfit"
        (bank, theirs), (queries, own) = (self._posed(encoder, labelled, p) for p in (labelled.train, labelled.test))
        metres, degrees = apart(own, theirs)
        found = scored(queries, bank, (metres < self.config.metres) & (degrees < self.config.degrees))
        first = (F.normalize(queries, dim=1) @ F.normalize(bank, dim=1).T).argmax(1).cpu().numpy()
        return found | {"first_metres": float(np.median(metres[np.arange(len(first)), first]))}

    def _posed(self, encoder: "Backbone", labelled: Labelled, part: "Collection") -> tuple[Tensor, np.ndarray]:
        images, poses = [], []
        for _, values in rows_with(part, ["pose"], np.arange(len(part))):
            images.append(_centre(values["bytes"], labelled))
            poses.append(np.asarray(values["pose"], dtype=np.float64))
        if any(pose.shape != (16,) for pose in poses):
            raise ValueError("column 'pose': each must be 16 numbers, camera to world, row by row")
        features = _cls(encoder, images, labelled)
        kept = [index for index, row in enumerate(features) if row is not None]
        rows = [features[index] for index in kept]
        return torch.stack([row for row in rows if row is not None]), np.stack([poses[i].reshape(4, 4) for i in kept])

    def _benchmark(self, encoder: "Backbone", labelled: Labelled, truth: dict[str, Any]) -> dict[str, float]:
        assert labelled.train is not None and labelled.test is not None, "see unfit"
        boxes = dict(zip(truth["qimlist"], (entry.get("bbx") for entry in truth["gnd"]), strict=True))
        database = _named(encoder, labelled, labelled.train, dict.fromkeys(truth["imlist"]))
        queries = _named(encoder, labelled, labelled.test, boxes)
        order = ranked((F.normalize(queries, dim=1) @ F.normalize(database, dim=1).T).cpu().numpy())
        judged = [Judged(*(np.asarray(g[k], dtype=np.int64) for k in ("easy", "hard", "junk"))) for g in truth["gnd"]]
        return revisited(order, judged)


def scored(
    queries: Float[Tensor, "Q D"], bank: Float[Tensor, "N D"], relevant: Bool[np.ndarray, "Q N"]
) -> dict[str, float]:
    """`map` and `recall1` (the first is relevant) over the queries that have a relevant image; shared out among the ranks.

    Raises ValueError where no query has one.
    """
    if not relevant.any():
        raise ValueError("no query has a relevant image in the database")
    mine = np.arange(collectives.rank(), len(queries), collectives.world_size())
    mine = mine[relevant[mine].any(1)]
    bank = F.normalize(bank, dim=1)
    sums = torch.zeros(3, dtype=torch.float64, device=bank.device)
    for part in np.array_split(mine, max(1, len(mine) * len(bank) // (1 << 24))):
        scores = (F.normalize(queries[torch.from_numpy(part).to(bank.device)], dim=1) @ bank.T).cpu().numpy()
        for row, order in zip(part, ranked(scores), strict=True):
            hits = relevant[row][order]
            sums += torch.tensor([average_precision(hits), float(hits[0]), 1.0], dtype=torch.float64).to(sums)
    total = collectives.all_sum(sums).tolist()
    return {"map": total[0] / total[2], "recall1": total[1] / total[2]}


def apart(one: Float[np.ndarray, "Q 4 4"], other: Float[np.ndarray, "N 4 4"]) -> tuple[np.ndarray, np.ndarray]:
    """Metres between the cameras and degrees between their directions, each [Q, N]."""
    metres = np.linalg.norm(one[:, None, :3, 3] - other[None, :, :3, 3], axis=-1)
    cosine = (np.einsum("qij,nij->qn", one[:, :3, :3], other[:, :3, :3]) - 1) / 2
    return metres, np.degrees(np.arccos(cosine.clip(-1, 1)))


def _posed(labelled: Labelled) -> bool:
    parts = (labelled.train, labelled.test)
    return all(part is not None and "pose" in part.columns for part in parts)


def _ground_truth(labelled: Labelled) -> dict[str, Any] | None:
    """gnd.json of the folder, None without one. Raises ValueError where it lacks a field."""
    if labelled.train is None or labelled.test is None:
        return None
    folder = labelled.test.folder
    if not any(entry.path == GROUND_TRUTH for entry in folder.files()):
        return None
    truth = json.loads(folder.read_bytes(GROUND_TRUTH))
    if missing := {"imlist", "qimlist", "gnd"} - set(truth):
        raise ValueError(f"{GROUND_TRUTH} lacks {', '.join(sorted(missing))}; it must have the benchmark's own fields")
    return truth


def _named(encoder: "Backbone", labelled: Labelled, part: "Collection", boxes: dict[str, Any]) -> Float[Tensor, "M D"]:
    """cls features of the images of these names, in their order, each cut to its box if it has one."""
    places = {name: index for index, name in enumerate(boxes)}
    images: list[Tensor | None] = [None] * len(places)
    for _, values in rows_with(part, [], np.arange(len(part))):
        name = str(values["path"]).rpartition("/")[2].rpartition(".")[0]
        if name in places:
            images[places[name]] = _centre(values["bytes"], labelled, box=boxes[name])
    if missing := [name for name, index in places.items() if images[index] is None]:
        raise ValueError(
            f"{len(missing)} images of {GROUND_TRUTH} are not there or cannot be decoded, first {missing[0]!r}"
        )
    return torch.stack([row for row in _cls(encoder, images, labelled) if row is not None])


def _cls(encoder: "Backbone", images: list[Tensor | None], labelled: Labelled) -> list[Float[Tensor, " D"] | None]:
    return encode_each(
        encoder, images, blocks=(-1,), say=lambda outputs: outputs[0].cls[0], normalise=labelled.normalisation
    )


def _centre(data: bytes, labelled: Labelled, *, box: Any = None) -> UInt8[Tensor, "C S S"] | None:
    channels, *size = labelled.queries.shape
    try:
        image = decode(data, channels=channels)
    except Undecodable:
        return None
    if box is not None:
        left, top, right, bottom = (round(value) for value in box)
        image = image[max(0, top) : bottom, max(0, left) : right]
    return torch.from_numpy(centre_crop(image, (size[0], size[1])))
