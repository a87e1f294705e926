"""Pictures of what a method sees: overlays, contact sheets, galleries; and charts that all look alike.

Two colours mean the same everywhere: `PREDICTION` is what the method says, `TRUTH` what is right.
Figures are made without pyplot, so nothing has to be closed and no window opens.
"""

from __future__ import annotations

import io
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import FancyBboxPatch, Patch
from matplotlib.ticker import MaxNLocator
from PIL import Image, ImageFilter

from rislib.evaluation.metrics import intersection_and_union
from rislib.nouns import Sample

# Magenta and cyan: rare in photographs, and told apart by every common kind of colour vision.
PREDICTION = "#e5007d"
TRUTH = "#00b8d9"
INK = "#22252b"
QUIET = "#68707b"  # for words
FAINT = "#8a9099"  # for marks
HAIRLINE = "#dfe2e7"
METHODS = {
    "cris": PREDICTION,
    "lavt": TRUTH,
    "magnet": INK,
    "cm_masksd": "#f2a900",
    "mail": "#6c5ce7",
}
WORDS = {TRUTH: "#007f96", "#f2a900": "#9a6b00"}  # two colours too pale for words on white

DPI = 200  # pictures look sharp on a dense screen; notebooks show them at half that
GAP = 0.22  # inches between panels
LINE = 0.17  # inches per line of a caption


class Drawing(Figure):
    """A matplotlib figure that a notebook shows by itself, sharp and on white, without pyplot."""

    def __init__(self, figsize: tuple[float, float], *, dpi: float = DPI, **options: Any) -> None:
        super().__init__(figsize, dpi, facecolor="white", **options)

    def _repr_png_(self) -> tuple[bytes, dict[str, int]]:
        buffer = io.BytesIO()
        self.savefig(buffer, format="png")
        width, height = (round(side * self.dpi / 2) for side in self.get_size_inches())
        return buffer.getvalue(), {"width": width, "height": height}


def overlay(
    image: Image.Image,
    mask: np.ndarray,
    colour: str = PREDICTION,
    *,
    truth: np.ndarray | None = None,
    scale: int = 1,
) -> Image.Image:
    """The picture with a mask tinted and outlined, and the rest slightly dimmed.

    Args:
        image: RGB, H x W.
        mask: (H, W) bool.
        colour: of the tint and the outline, "#rrggbb".
        truth: (H, W) bool, drawn as an outline alone, in `TRUTH`.
        scale: enlarges the picture; outlines stay fine, so small pictures gain most.

    Returns:
        RGB, scale * H x scale * W.

    Raises:
        ValueError: a mask does not have the picture's size.
    """
    size = (image.width * scale, image.height * scale)
    pixels = np.asarray(image.convert("RGB").resize(size, Image.Resampling.LANCZOS), dtype=np.float32)

    coverage = _coverage(mask, image, scale)  # (H, W, 1)
    dimmed = 0.62 * pixels + 0.38 * (0.5 * pixels.mean(-1, keepdims=True) + 0.5 * 255)
    tinted = 0.74 * pixels + 0.26 * _rgb(colour)
    pixels = dimmed + coverage * (tinted - dimmed)

    # White below the colour keeps the line apart from things of its own colour.
    lines = [] if truth is None else [(truth, TRUTH, 1.0)]
    for outlined, line_colour, width in [*lines, (mask, "#ffffff", 1.8), (mask, colour, 1.0)]:
        line = _outline(outlined, image, scale, width)
        pixels += line * (_rgb(line_colour) - pixels)
    return Image.fromarray(pixels.round().clip(0, 255).astype(np.uint8))


def contact_sheet(
    samples: Sequence[Sample],
    predictions: Sequence[np.ndarray],
    *,
    columns: int = 4,
    title: str | None = None,
    width: float = 10,
) -> Drawing:
    """Many samples at a glance: picture, expression, ground truth, prediction and IoU of each.

    Args:
        samples: what was asked.
        predictions: (H, W) bool, each at its picture's original size.
        columns: panels side by side; `width` is of the whole sheet, in inches.
        title: stands above, beside the legend.

    Raises:
        ValueError: samples and predictions differ in number, or there are none.
    """
    pictures = _answers(samples, predictions, truth=True)
    captions = [sample.expression for sample in samples]
    figure, panels = _sheet(pictures, captions, columns, width, header=0.55)
    for axes, sample, mask in zip(panels, samples, predictions, strict=True):
        intersection, union = intersection_and_union(mask, sample.mask)
        _tag(axes, f"{100 * intersection / max(union, 1):.0f}")

    top = 1 - 0.24 / figure.get_figheight()
    edge = GAP / figure.get_figwidth()
    if title:
        figure.text(edge, top, title, fontsize=12, fontweight="bold", color=INK, va="center")
    handles = [
        Patch(facecolor=(PREDICTION, 0.26), edgecolor=PREDICTION, linewidth=1.3, label="prediction"),
        Line2D([], [], color=TRUTH, linewidth=2, label="ground truth"),
        Patch(facecolor=INK, linewidth=0, label="IoU in percent"),
    ]
    _legend(figure, handles, anchor=(1 - edge, top))
    return figure


def hero(
    samples: Sequence[Sample],
    predictions: Sequence[np.ndarray],
    *,
    columns: int = 4,
    width: float = 10,
) -> Drawing:
    """A front page: pictures, what was asked of them, and what the method answered.

    Several expressions about one picture, side by side, say best what the task is. Arguments and errors as in
    `contact_sheet`; ground truth is not needed and not shown.
    """
    captions = [f"“{sample.expression}”" for sample in samples]
    return _sheet(_answers(samples, predictions, truth=False), captions, columns, width)[0]


def gallery(
    pictures: Sequence[Any],
    captions: Sequence[str],
    *,
    columns: int | None = None,
    width: float = 8,
    limits: tuple[float | None, float | None] = (0, None),
) -> Drawing:
    """Pictures, masks and maps side by side, each with its caption below.

    Args:
        pictures: PIL images; or arrays or tensors: colours (H, W, 3), uint8 or in [0, 1]; masks (H, W) bool,
            True is white; maps (H, W) of numbers, bright where they are high.
        captions: one each. Long lines are wrapped, a line break is kept.
        columns: panels side by side, all of them unless given; `width` is of the whole, in inches.
        limits: the darkest and the brightest value of maps; None is a map's own least or most.

    Raises:
        ValueError: pictures and captions differ in number, or there are none.
    """
    return _sheet(pictures, captions, columns or len(pictures), width, limits=limits)[0]


def chart(
    title: str, x: str = "", y: str = "", *, width: float = 7, height: float = 3
) -> tuple[Drawing, Axes]:
    """An empty chart with quiet axes, to be drawn into. `x` and `y` name them; lengths are inches."""
    figure = Drawing((width, height), layout="constrained")
    axes = figure.add_subplot()
    axes.set_title(title, loc="left", color=INK, fontsize=10.5, fontweight="bold")
    axes.set_xlabel(x, color=QUIET, fontsize=9)
    axes.set_ylabel(y, color=QUIET, fontsize=9)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(HAIRLINE)
    axes.grid(axis="y", color=HAIRLINE, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(length=0, labelcolor=QUIET, labelsize=9)
    return figure, axes


def legend(axes: Axes, **options: Any) -> None:
    """A legend on white, so that no line of the grid runs through its words. `options` as in matplotlib."""
    look = {"facecolor": "white", "edgecolor": "none", "framealpha": 0.9, "fontsize": 9, "labelcolor": INK}
    axes.legend(**(look | options))


def bars(
    percent: Mapping[str, float],
    title: str,
    x: str = "percent",
    *,
    colours: str | Sequence[str] = PREDICTION,
    width: float = 7,
    limit: float = 100,
    digits: int = 0,
    groups: int | None = None,
) -> Drawing:
    """Percentages by name, from top to bottom: bars from 0 on, each with its number.

    Args:
        percent: names and their values, 0 to 100.
        x: what is counted.
        colours: one for all, or one each.
        width: inches.
        limit: where the axis ends.
        digits: of the numbers, behind the point.
        groups: so many bars belong together; between them and the next is a gap.
    """
    rows = [row + 0.5 * (row // (groups or len(percent))) for row in range(len(percent))]
    figure, axes = chart(title, x, width=width, height=1.03 + 0.28 * rows[-1])
    drawn = axes.barh(rows, list(percent.values()), color=colours, height=0.68)
    axes.bar_label(drawn, fmt=f"%.{digits}f", padding=4, fontsize=9, color=INK)
    axes.set_yticks(rows, percent)
    axes.set(xlim=(0, limit), ylim=(rows[-1] + 0.6, -0.6), xticks=[])
    axes.tick_params(labelcolor=INK, labelsize=9)
    axes.spines["bottom"].set_visible(False)
    axes.grid(visible=False)
    return figure


def variants(
    scores: Mapping[str, Sequence[float]],
    title: str,
    x: str = "oIoU on RefMini val, percent",
    *,
    colours: Sequence[str] | None = None,
    limits: tuple[float, float] | None = None,
) -> Drawing:
    """Trainings by name: squares are means with their standard deviation over seeds, dots are single runs.

    Args:
        scores: names, from top to bottom, and the scores of their runs.
        x: what is measured.
        colours: one each.
        limits: of the axis. A mean below them is written at the left edge.
    """
    figure, axes = chart(title, x, height=1 + 0.3 * len(scores))
    for row, values in enumerate(scores.values()):
        colour, mean = colours[row] if colours else INK, np.mean(values)
        if limits and mean < limits[0]:
            axes.text(limits[0], row, f"← {mean:.1f}", color=QUIET, fontsize=9, va="center")
            continue
        error = np.std(values, ddof=min(1, len(values) - 1))  # of a single run nothing is known
        axes.errorbar(mean, row, xerr=error, fmt="s", color=colour, capsize=4, markersize=5)
        axes.scatter(values, [row - 0.24] * len(values), s=14, color=FAINT, linewidth=0)
    axes.set_yticks(range(len(scores)), scores)
    axes.set(xlim=limits, ylim=(len(scores) - 0.4, -0.6))
    axes.grid(visible=False, axis="y")
    axes.grid(axis="x", color=HAIRLINE, linewidth=0.8)
    return figure


def learning_curve(
    runs: Sequence[Mapping[str, Any]] | Mapping[str, Sequence[Mapping[str, Any]]],
    *,
    metric: str = "loss",
    against: str = "step",
    smooth: float = 0.05,
    width: float = 6,
) -> Drawing:
    """How training went: one metric over steps, samples or seconds.

    Args:
        runs: the records of one log (as `rislib.training` writes them, a dict per line), or several by name.
        metric: "loss", one of the named losses, or any other key. Records that lack it are passed over.
        against: the key of the horizontal axis.
        smooth: length of the moving average, as a share of the run; the raw values stay visible behind it.
        width: inches.

    Raises:
        ValueError: no record of some run has both keys.
    """
    runs = runs if isinstance(runs, Mapping) else {"": runs}
    title, x = metric.replace("_", " "), against.replace("_", " ")
    figure, axes = chart(title, x, width=width, height=0.55 * width)
    colours = [PREDICTION, TRUTH, INK, "#f2a900", "#6c5ce7", "#3aa76d", FAINT]
    ends = []
    for i, (name, records) in enumerate(runs.items()):
        flat = [{**record.get("losses", {}), **record} for record in records]
        points = [(r[against], r[metric]) for r in flat if r.get(metric) is not None and against in r]
        if not points:
            raise ValueError(f"no record of the run {name!r} has both {against!r} and {metric!r}")
        x, y = np.asarray(points, dtype=np.float64).T
        colour = colours[i % len(colours)]
        axes.plot(x, y, color=colour, alpha=0.22, linewidth=0.8)
        average = _moving_average(y, max(1, round(smooth * len(y))))
        axes.plot(x, average, color=colour, linewidth=1.8, solid_capstyle="round")
        ends.append((average[-1], x[-1], f"{name} {average[-1]:#.3g}".strip(), WORDS.get(colour, colour)))
    line = 11 / (72 * figure.get_figheight() * 0.8) * np.ptp(axes.get_ylim())  # of text, in the metric
    lowest = -np.inf
    for y_end, x_end, text, colour in sorted(ends):  # none covers another
        lowest = max(y_end, lowest + line)
        axes.annotate(
            text,
            (x_end, lowest),
            xytext=(6, 0),
            textcoords="offset points",
            color=colour,
            fontsize=8.5,
            fontweight="bold",
            va="center",
            annotation_clip=False,
        )
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.yaxis.set_major_locator(MaxNLocator(5))
    return figure


def _coverage(mask: np.ndarray, image: Image.Image, scale: int, blur: float = 0) -> np.ndarray:
    """How much of each pixel of the enlarged picture the mask covers: (scale * H, scale * W, 1) in [0, 1]."""
    if mask.shape != (image.height, image.width):
        raise ValueError(f"mask {mask.shape} does not fit a picture of {image.height} x {image.width}")
    soft = Image.fromarray(255 * mask.astype(np.uint8))
    soft = soft.resize((image.width * scale, image.height * scale), Image.Resampling.BICUBIC)
    soft = soft.filter(ImageFilter.GaussianBlur(blur)) if blur else soft
    return np.asarray(soft, dtype=np.float32)[..., None] / 255


def _outline(mask: np.ndarray, image: Image.Image, scale: int, width: float) -> np.ndarray:
    """A smooth line along the mask's edge: opacity (H, W, 1) in [0, 1]. Width 1 is 1/150 of the picture."""
    width = max(width * max(image.size) * scale / 150, 2.5)  # pixels
    radius = 0.6 * width
    blurred = _coverage(mask, image, scale, blur=radius)
    # Across an edge the blurred mask rises from 0 to 1; its slope turns the rise into a distance in pixels.
    distance = np.abs(blurred - 0.5) * radius * np.sqrt(2 * np.pi)
    return (width / 2 - distance + 0.5).clip(0, 1)


def _rgb(colour: str) -> np.ndarray:
    return np.asarray([int(colour[i : i + 2], 16) for i in (1, 3, 5)], dtype=np.float32)


def _scale_for(image: Image.Image, side: int = 640) -> int:
    return max(1, round(side / max(image.size)))


def _answers(
    samples: Sequence[Sample], predictions: Sequence[np.ndarray], *, truth: bool
) -> list[Image.Image]:
    """What was answered, over each picture; perhaps with what is right."""
    if len(samples) != len(predictions):
        raise ValueError(f"cannot draw {len(samples)} samples with {len(predictions)} predictions")
    return [
        overlay(s.image, mask, truth=s.mask if truth else None, scale=_scale_for(s.image))
        for s, mask in zip(samples, predictions, strict=True)
    ]


def _sheet(
    pictures: Sequence[Any],
    captions: Sequence[str],
    columns: int,
    width: float,
    *,
    header: float = 0,
    limits: tuple[float | None, float | None] = (0, None),
) -> tuple[Drawing, list[Axes]]:
    """A figure with a panel and a wrapped caption per picture. Lengths are inches."""
    if len(pictures) != len(captions) or not len(pictures):
        raise ValueError(f"cannot draw {len(pictures)} pictures with {len(captions)} captions")
    columns = min(columns, len(pictures))
    rows = -(-len(pictures) // columns)
    panel = (width - (columns + 1) * GAP) / columns
    wrapped = [_wrap(caption, width=round(panel / 0.078)) for caption in captions]
    shapes = [np.shape(picture)[:2] for picture in pictures]
    aspects = [min(height / width, 1.25) for height, width in shapes]

    # A row is as tall as its tallest picture and its longest caption need.
    starts = range(0, len(pictures), columns)
    tallest = [panel * max(aspects[i : i + columns]) for i in starts]
    texts = [0.14 + LINE * max(map(len, wrapped[i : i + columns])) for i in starts]
    heights = [picture + text for picture, text in zip(tallest, texts, strict=True)]
    total = header + sum(heights) + (rows + (not header)) * GAP

    figure = Drawing((width, total))
    panels = []
    for i, (picture, lines) in enumerate(zip(pictures, wrapped, strict=True)):
        row, column = divmod(i, columns)
        left = GAP + column * (panel + GAP)
        bottom = total - (header or GAP) - sum(heights[:row]) - row * GAP - tallest[row]
        place = (left / width, bottom / total, panel / width, tallest[row] / total)
        axes = figure.add_axes(place, anchor="S")
        axes.set_axis_off()
        panels.append(axes)
        _show(axes, picture, limits)
        for k, line in enumerate(lines):  # one by one, since matplotlib sets blocks by their ink
            middle, baseline = left + panel / 2, bottom - 0.22 - k * LINE
            figure.text(middle / width, baseline / total, line, fontsize=9.5, color=INK, ha="center")
    return figure, panels


def _wrap(text: str, width: int) -> list[str]:
    """As few lines as `width` characters allow, and these of like length: no word is left alone."""
    if "\n" in text:
        return [line for part in text.split("\n") for line in _wrap(part, width)]
    fewest = len(textwrap.wrap(text, width))
    narrowest = next(w for w in range(1, width + 1) if len(textwrap.wrap(text, w)) <= fewest)
    return textwrap.wrap(text, narrowest)


def _show(axes: Axes, picture: Any, limits: tuple[float | None, float | None]) -> None:
    """The picture with rounded corners."""
    # Pictures are enlarged smoothly; of masks and maps one should see the cells.
    smooth = "hanning" if isinstance(picture, Image.Image) else "antialiased"
    values = np.asarray(picture)
    height, width = values.shape[:2]
    low, high = (0, 1) if values.dtype == bool else limits
    drawn = axes.imshow(
        values,
        cmap="gray" if values.dtype == bool else "magma",
        vmin=low,
        vmax=high,
        extent=(0, width, height, 0),
        interpolation=smooth,
    )
    corner = 0.03 * max(height, width)
    frame = FancyBboxPatch(
        (corner, corner),
        width - 2 * corner,
        height - 2 * corner,
        boxstyle=f"round,pad={corner}",
        transform=axes.transData,
    )
    drawn.set_clip_path(frame)


def _tag(axes: Axes, text: str) -> None:
    """A small number in the picture's upper right corner."""
    box = {"boxstyle": "round,pad=0.3", "facecolor": INK, "edgecolor": "none", "alpha": 0.85}
    axes.text(
        0.965,
        0.965,
        text,
        transform=axes.transAxes,
        ha="right",
        va="top",
        fontsize=8,
        color="white",
        bbox=box,
    )


def _legend(figure: Figure, handles: list, anchor: tuple[float, float]) -> None:
    figure.legend(
        handles=handles,
        loc="center right",
        bbox_to_anchor=anchor,
        ncols=len(handles),
        frameon=False,
        fontsize=9,
        labelcolor=INK,
        borderaxespad=0,
        borderpad=0,
        handlelength=1.3,
        columnspacing=1.6,
    )


def _moving_average(values: np.ndarray, length: int) -> np.ndarray:
    """The mean of about `length` values around each point; of fewer towards both ends.

    It begins with the first value: a curve that starts with a mean of what comes after would start too low.
    """
    sums = np.concatenate([[0.0], np.cumsum(values)])
    middles = np.arange(len(values))
    starts = np.maximum(middles - length // 2, 0)
    ends = np.minimum(middles + np.minimum(length // 2, middles) + 1, len(values))
    return (sums[ends] - sums[starts]) / (ends - starts)
