"""Which images of a set are drawn, and that none is its own neighbour."""

from pathlib import Path

import numpy as np
import torch

from raydino.launch.model import open_model
from raydino.launch.show.drawing import Wanted, draw_subjects, seen_by
from raydino.launch.show.subjects import chosen, open_bank


def test_open_bank__rows_by_key_and_images_of_the_judged_split(small_images: Path) -> None:
    bank = open_bank(str(small_images), split=None, eval_split=None, most=50, seed=0)
    again = open_bank(str(small_images), split=None, eval_split=None, most=50, seed=0)
    other = open_bank(str(small_images), split=None, eval_split=None, most=50, seed=1)
    assert len(bank.rows) == 50 and np.array_equal(bank.rows, again.rows) and not np.array_equal(bank.rows, other.rows)
    assert bank.judged is not bank.collection
    subjects = chosen(bank, 4, seed=0)
    labels = bank.judged.labels()
    assert [s.row for s in subjects] == [-1] * 4 and len({s.name for s in subjects}) == 4
    for subject in subjects:
        assert subject.label == bank.classes[labels[int(subject.name.removeprefix("row-"))]]


def test_draw_subjects__an_image_of_the_set_is_not_its_own_neighbour(run_folder: Path, small_images: Path) -> None:
    model = open_model(str(run_folder))
    bank = open_bank(str(small_images), split="train", eval_split="train", most=10_000, seed=0)
    assert bank.judged is bank.collection
    [subject] = chosen(bank, 1, seed=0)
    assert subject.row >= 0
    wanted = Wanted(foreground=False, crops=2, neighbours=3, seed=0)
    seen = seen_by(model, bank)
    drawn = {each.kind: each for each in draw_subjects(model, [subject], seen, wanted)}
    place = int(np.flatnonzero(seen.images.rows[seen.features.positions.numpy()] == subject.row)[0])
    rows = torch.nn.functional.normalize(seen.features.cls[:, -1], dim=1)
    cosines = rows @ rows[place]
    cosines[place] = -1
    assert f"cosine {float(cosines.max()):.3f}" in drawn["neighbours"].words
