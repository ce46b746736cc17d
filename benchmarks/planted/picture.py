"""The picture of curation_matters: what copies cost an encoder, and what leaks add to a score."""

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import pyplot

BANKS = ("leaky", "screened", "never_leaked")


def draw(pools: list[dict[str, Any]], banks: list[dict[str, Any]], place: Path) -> None:
    """Left k-NN against images seen, mean and range over seeds; right k-NN against the share of queries leaked, mean."""
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(9, 3.4), layout="constrained")
    for row, colour in zip(pools, ("black", "tab:orange", "tab:orange", "tab:red", "tab:red"), strict=True):
        mean, least, most = np.array(row["curve"]).T
        name = f"{row['copies']:.0%} copies" + (", screened" if row["screened"] else ", raw" if row["copies"] else "")
        style = "-" if row["screened"] or not row["copies"] else "--"
        left.plot(row["images_seen"], mean, style, color=colour, label=name)
        left.fill_between(row["images_seen"], least, most, color=colour, alpha=0.1, linewidth=0)
    left.set(xlabel="images seen", ylabel="k-NN top-1", title="encoders trained on pools with copies")
    for kind, colour in (("pixels", "tab:blue"), ("encoder", "tab:green")):
        for bank, style in zip(BANKS, ("--", "-", ":"), strict=True):
            shares, scores = [row["leaked"] for row in banks], np.array([row[kind][bank][0] for row in banks])
            right.plot(shares, scores, style, color=colour, marker="o", ms=3, label=f"{kind}, {bank.replace('_', ' ')}")
    right.set(xlabel="share of the queries with a copy in the bank", title="banks with leaked queries")
    for axes in (left, right):
        axes.legend(fontsize=7)
        axes.grid(alpha=0.3)
    figure.savefig(place, dpi=90)
