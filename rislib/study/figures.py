"""The report's pictures, made of `results/` alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rislib import viz
from rislib.evaluation import ERRORS, mean_interval
from rislib.study.claims import CLAIMS, differences
from rislib.study.report import LABELS, NAMES, by_budget, by_method, dissected, error_shares, read_runs

# From right to nothing: what is nearly right is green, too. None is a method's.
ERROR_COLOURS = (
    "#3aa76d",
    "#9bd3b4",
    "#f2d479",
    "#d98e3f",
    "#a9825a",
    "#b3261e",
    "#c9a3bd",
    viz.HAIRLINE,
)


def five_minutes(methods: Mapping[str, Sequence[Mapping[str, Any]]]) -> viz.Drawing:
    """oIoU: bars are means, lines intervals over pictures, dots seeds."""
    figure, axes = viz.chart("Five methods, five minutes", "oIoU on RefMini val, percent", height=2.4)
    for row, (method, runs) in enumerate(methods.items()):
        values = [run["oIoU"] for run in runs]
        axes.barh(row, np.mean(values), color=viz.METHODS[method], alpha=0.25, height=0.6)
        axes.plot(values, [row] * len(values), "o", color=viz.METHODS[method], markersize=4)
        axes.plot(mean_interval([run["by_picture"] for run in runs]), [row + 0.2] * 2, color=viz.INK)
    axes.set_yticks(range(len(methods)), [NAMES[method] for method in methods])
    axes.set(xlim=(0, 100), ylim=(len(methods) - 0.5, -0.5))
    axes.tick_params(axis="y", labelcolor=viz.INK)
    return figure


def curves(methods: Mapping[str, Sequence[Mapping[str, Any]]]) -> viz.Drawing:
    """The loss over samples, as a share of what it was at first: methods have different losses."""
    figure, axes = viz.chart("How they learn, seed 0", "samples", "loss, share of the first", height=3.2)
    for method, runs in methods.items():
        samples, loss = runs[0]["curve"]["samples"], runs[0]["curve"]["loss"]
        axes.plot(
            samples, np.divide(loss, loss[0]), color=viz.METHODS[method], linewidth=2, label=NAMES[method]
        )
    axes.xaxis.set_major_formatter("{x:,.0f}")
    viz.legend(axes)
    return figure


def budgets(variants: Mapping[str, Mapping[int, Sequence[Mapping[str, Any]]]]) -> viz.Drawing:
    """oIoU against samples: dots are seeds, lines join means."""
    figure, axes = viz.chart(
        "What more samples buy", "samples", "oIoU on RefMini val, percent", width=8, height=3.2
    )
    for variant, found in variants.items():
        method = next(run["method"] for runs in found.values() for run in runs)
        means = [np.mean([run["oIoU"] for run in runs]) for runs in found.values()]
        axes.plot(list(found), means, color=viz.METHODS[method], linewidth=2, label=LABELS[variant])
        dots = [(samples, run["oIoU"]) for samples, runs in found.items() for run in runs]
        axes.plot(*zip(*dots, strict=True), "o", color=viz.METHODS[method], markersize=4)
    axes.set_xscale("log")
    longest = max(samples for found in variants.values() for samples in found)
    ticks = [tick for tick in (5_000, 10_000, 25_000, 50_000, 100_000) if tick < 1.1 * longest]
    axes.set_xticks(ticks, [f"{tick:,}" for tick in ticks])
    axes.minorticks_off()
    viz.legend(axes, loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


def errors(methods: Mapping[str, Sequence[Mapping[str, Any]]]) -> viz.Drawing:
    """Stacked bars: what the answers are."""
    figure, axes = viz.chart("What the answers are", "percent of all answers", height=3)
    found, left = [error_shares(runs) for runs in methods.values()], np.zeros(len(methods))
    for error, colour in zip(ERRORS, ERROR_COLOURS, strict=True):
        shares = [one[error] for one in found]
        axes.barh(range(len(methods)), shares, left=left, color=colour, height=0.66, label=error)
        left += shares
    axes.set_yticks(range(len(methods)), [NAMES[method] for method in methods])
    axes.set(xlim=(0, 100), ylim=(len(methods) - 0.5, -0.5))
    axes.tick_params(axis="y", labelcolor=viz.INK)
    figure.legend(
        *axes.get_legend_handles_labels(), frameon=False, fontsize=8, ncols=4, loc="outside lower left"
    )
    return figure


def claims(results: Path) -> viz.Drawing:
    """Every claim's difference: thick over pictures, thin over seeds."""
    x, edge = "points; thin lines: 95 % over seeds, thick ones: over pictures", 30
    found = [(claim, *differences(claim, read_runs(results, claim.study))) for claim in CLAIMS]
    found = [(claim, by_seeds, by_pictures) for claim, by_seeds, by_pictures, _ in found if by_seeds]
    figure, axes = viz.chart("What each part is worth", x, width=8, height=0.8 + 0.28 * len(found))
    axes.axvline(0, color=viz.FAINT, linewidth=1)
    for row, (claim, by_seeds, by_pictures) in enumerate(found):
        colour = viz.METHODS[{name: key for key, name in NAMES.items()}[claim.paper]]
        points = by_seeds.points
        if abs(points) > edge:
            text, side = (f"← {points:+.0f}", "left") if points < 0 else (f"{points:+.0f} →", "right")
            where, words = np.copysign(edge - 0.5, points), viz.WORDS.get(colour, colour)
            axes.text(where, row, text, ha=side, va="center", color=words, fontsize=9)
            continue
        if np.isfinite(by_seeds.high):
            axes.plot([by_seeds.low, by_seeds.high], [row, row], color=colour, linewidth=1)
        if by_pictures:
            axes.plot([by_pictures.low, by_pictures.high], [row, row], color=colour, linewidth=4, alpha=0.4)
        axes.plot(points, row, "o", color=colour, markersize=5)
    names = []
    for claim, *_ in found:
        elsewhere = "" if claim.study.endswith("_ablation") else f", {claim.study}"
        name = f"{claim.paper}: {claim.first} − {claim.second}{elsewhere}, {claim.metric}"
        names.append(name.replace("_", " "))
    axes.set_yticks(range(len(found)), names)
    axes.set(xlim=(-edge, edge), ylim=(max(len(found), 1) - 0.5, -0.5))
    axes.tick_params(axis="y", labelcolor=viz.INK)
    return figure


def draw_report(results: Path | str = "results") -> list[Path]:
    """Draw every figure of the report into RESULTS/figures; returns the files."""
    methods = by_method(Path(results))
    drawn = {"differences": claims(Path(results))}
    if methods:
        drawn |= {"five_minutes": five_minutes(methods), "curves": curves(methods)}
        drawn["errors"] = errors(dissected(Path(results)))
    if variants := by_budget(Path(results)):
        drawn["budgets"] = budgets(variants)
    folder = Path(results) / "figures"
    folder.mkdir(exist_ok=True)
    for name, figure in drawn.items():
        figure.savefig(folder / f"{name}.png", metadata={"Software": None})
    return [folder / f"{name}.png" for name in drawn]
