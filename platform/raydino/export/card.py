"""The README.md of an export: what the model is, how it was judged, how it is loaded, and what was verified."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from raydino.export.model import Model
from raydino.export.verify import LIMIT, Comparison, Loading
from raydino.views import height_width

HEADER = """\
---
license: # yours to state: it depends on the images
library_name: raydino
tags: [self-supervised, image-feature-extraction]
---"""


@dataclass(frozen=True)
class Origin:
    """What is known of where a model comes from."""

    recipe: str = ""
    """The run's recipe as YAML; empty for published weights."""
    data_digest: str = ""
    """Digest of the images it was trained on."""
    metrics: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Evaluation metrics of the run's summary: untrained, last and best."""
    note: str = ""
    """A sentence on it."""


def card(model: Model, origin: Origin, loading: Loading, comparisons: Sequence[Comparison], *, images: str) -> str:
    """The page. The licence is left to whoever publishes: it follows from the images, which only they know."""
    high, wide = height_width(model.size)
    rule = model.normalisation
    parts = [
        HEADER,
        f"# {model.name}",
        f"A frozen image encoder: {model.config.name}, {model.backbone.width} dimensions, {model.config.registers} registers, "
        f"trained at {high} × {wide} pixels in patches of {model.config.patch_size}. Pixels on the 0..1 scale, minus "
        f"{list(rule.mean)}, over {list(rule.std)}. {origin.note}".strip(),
        f"- step: {model.step if model.step is not None else 'not known'}\n- weights (sha256): {model.digest}\n"
        f"- images (digest): {origin.data_digest or 'not known'}",
        "## Use\n\nIn this folder, with `images` a normalised float tensor [B, C, H, W], or `pixels` uint8 [B, H, W, C]:\n\n"
        f"```python\n{loading.load}\n{loading.use}\n```",
        loading.note,
        "## Verified\n\n"
        f"These lines were run in a fresh process on {images}; largest difference of a feature from the model's, float32 "
        f"(limit {LIMIT:g}):\n\n" + "\n".join(f"- {each}" for each in comparisons),
        _results(origin.metrics),
        f"## Recipe\n\n```yaml\n{origin.recipe.strip()}\n```" if origin.recipe else "",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _results(metrics: Mapping[str, Mapping[str, Any]]) -> str:
    if not metrics:
        return ""
    rows = [f"| {name} | {_figure(m.get('untrained'))} | {_figure(m.get('last'))} | {_figure(m.get('best'))} |"
            for name, m in metrics.items()]  # fmt: skip
    head = "| metric | untrained | last | best |\n| --- | --- | --- | --- |\n"
    return "## Results\n\nFrom the run's summary, of its last step:\n\n" + head + "\n".join(rows)


def _figure(value: float | None) -> str:
    return "–" if value is None else f"{value:.4g}"
