"""Pictures, checked where a pixel or an artist can tell right from wrong."""

from __future__ import annotations

import io
import subprocess
import sys
from itertools import pairwise

import numpy as np
import pytest
import torch
from PIL import Image

from rislib import viz
from rislib.nouns import Sample

RGB = {colour: tuple(int(colour[i : i + 2], 16) for i in (1, 3, 5)) for colour in (viz.PREDICTION, viz.TRUTH)}


def square(top: int, left: int, side: int = 40, size: int = 100) -> np.ndarray:
    mask = np.zeros((size, size), dtype=bool)
    mask[top : top + side, left : left + side] = True
    return mask


def sample(expression: str, mask: np.ndarray) -> Sample:
    image = Image.new("RGB", mask.shape[::-1], (60, 120, 60))
    return Sample(image, expression, mask, 0, 0, 0, 0, "val", "thing")


def nearly(pixel, colour, tolerance: int = 4) -> bool:
    return bool(np.abs(np.subtract(pixel, colour, dtype=int)).max() <= tolerance)


@pytest.fixture
def three():
    truths = [square(10, 10), square(10, 50), square(50, 10)]
    expressions = ["left box", "the long red box that stands to the right of all of the others", "box"]
    samples = [sample(e, t) for e, t in zip(expressions, truths, strict=True)]
    return samples, [truths[0], square(30, 50), square(50, 55)]


@pytest.mark.parametrize("scale", [1, 4])
def test_overlay_tints_outlines_and_dims(scale):
    image = Image.new("RGB", (100, 100), (60, 120, 60))
    drawn = np.asarray(viz.overlay(image, square(30, 30), scale=scale))
    assert drawn.shape == (100 * scale, 100 * scale, 3)
    inside, outside = drawn[50 * scale, 50 * scale].astype(int), drawn[5 * scale, 5 * scale].astype(int)
    assert inside[0] > 60 and inside[1] < 120  # towards magenta
    assert outside.sum() > 240 and np.ptp(outside) < 60  # paler and greyer
    assert any(nearly(pixel, RGB[viz.PREDICTION]) for pixel in drawn[50 * scale, 27 * scale : 34 * scale])


def test_overlay_draws_the_truth_as_an_outline_only():
    image = Image.new("RGB", (100, 100), (60, 120, 60))
    without = np.asarray(viz.overlay(image, square(10, 10, side=20)))
    drawn = np.asarray(viz.overlay(image, square(10, 10, side=20), truth=square(50, 50)))
    assert any(nearly(pixel, RGB[viz.TRUTH]) for pixel in drawn[70, 47:54])
    assert (drawn[70, 70] == without[70, 70]).all()


@pytest.mark.parametrize("fill", [False, True])
def test_overlay_of_nothing_and_of_everything_has_no_outline(fill):
    image = Image.new("RGB", (60, 40), (60, 120, 60))
    drawn = np.asarray(viz.overlay(image, np.full((40, 60), fill)))
    assert (drawn == drawn[0, 0]).all()


def test_overlay_takes_another_colour():
    image = Image.new("RGB", (100, 100), (60, 120, 60))
    drawn = np.asarray(viz.overlay(image, square(30, 30), "#0000ff"))
    assert any(nearly(pixel, (0, 0, 255)) for pixel in drawn[50, 27:34])


def test_a_mask_of_another_size_is_refused(three):
    with pytest.raises(ValueError, match="does not fit"):
        viz.overlay(Image.new("RGB", (60, 40)), np.zeros((60, 40), dtype=bool))
    samples, masks = three
    with pytest.raises(ValueError, match="does not fit"):
        viz.contact_sheet(samples, [mask[:50] for mask in masks])


def test_contact_sheet_shows_every_sample(three):
    """A panel, the whole expression and the IoU of each; one legend."""
    figure = viz.contact_sheet(*three, columns=2, title="A title")
    assert len(figure.axes) == 3 and len(figure.legends) == 1
    words = " ".join(text.get_text() for text in figure.texts)
    assert all(s.expression in words for s in three[0]) and "A title" in words
    # 40 x 40 pixels shifted by half: 800 shared of 2400; the third overlaps nowhere.
    assert [axes.texts[0].get_text() for axes in figure.axes] == ["100", "33", "0"]


def test_panels_and_captions_stay_on_the_sheet(three):
    for figure in (viz.contact_sheet(*three, columns=3), viz.hero(*three, columns=2, width=6)):
        figure.canvas.draw()
        width, height = figure.bbox.size
        for artist in [*figure.texts, *figure.axes, *figure.legends]:
            box = artist.get_window_extent()
            assert box.x0 >= 0 and box.y0 >= 0 and box.x1 <= width + 1 and box.y1 <= height + 1


def test_captions_do_not_run_into_pictures(three):
    figure = viz.hero(*three, columns=1, width=3)
    figure.canvas.draw()
    for text in figure.texts:
        for axes in figure.axes:
            assert not text.get_window_extent().overlaps(axes.get_window_extent())


def test_hero_quotes_the_expressions_and_needs_no_legend(three):
    figure = viz.hero(*three)
    assert not figure.legends and not any(axes.texts for axes in figure.axes)
    assert "“left box”" in [text.get_text() for text in figure.texts]


def test_wide_and_tall_pictures_share_a_sheet():
    masks = [np.zeros((40, 90), dtype=bool), np.ones((90, 40), dtype=bool)]
    figure = viz.contact_sheet([sample("wide", masks[0]), sample("tall", masks[1])], masks)
    figure.savefig(io.BytesIO(), format="png")


def drawn_colours(figure: viz.Drawing) -> list[np.ndarray]:
    """What each panel of a gallery shows in the end: (H, W, 4) in [0, 1]."""
    return [image.to_rgba(image.get_array(), norm=True) for axes in figure.axes for image in axes.images]


def test_gallery_shows_pictures_masks_and_maps_as_they_are():
    mask = square(1, 1, side=2, size=6)
    colours = np.random.default_rng(0).random((6, 6, 3))
    picture, black_white, map_, tensor = drawn_colours(
        viz.gallery([colours, mask, 5.0 * mask, torch.arange(36.0).reshape(6, 6)], ["a", "b", "c", "d"])
    )
    assert (picture[..., :3] == colours).all()
    assert (black_white[..., :3] == mask[..., None]).all()
    assert map_[2, 2, :3].sum() > 2 and map_[0, 0, :3].sum() < 0.1  # magma: nearly white, nearly black
    brightness = tensor[..., :3].sum(-1).ravel()
    assert (np.diff(brightness) > 0).all()


def test_gallery_draws_maps_within_common_limits():
    weak, strong = np.full((2, 2), 0.25), np.full((2, 2), 1.0)
    own = drawn_colours(viz.gallery([weak, strong], ["weak", "strong"]))
    common = drawn_colours(viz.gallery([weak, strong], ["weak", "strong"], limits=(0, 1)))
    assert (own[0] == own[1]).all()
    assert (common[0] != common[1]).any() and (common[1] == own[1]).all()


def test_gallery_keeps_line_breaks_and_fills_its_columns():
    pictures = [Image.new("RGB", (30, 20))] * 5
    figure = viz.gallery(pictures, ["one\nand two", "b", "c", "d", "e"], columns=2)
    assert [text.get_text() for text in figure.texts][:2] == ["one", "and two"]
    lefts = [axes.get_position().x0 for axes in figure.axes]
    assert lefts[0] == lefts[2] == lefts[4] < lefts[1] == lefts[3]
    row = viz.gallery(pictures, list("abcde"))
    assert len({axes.get_position().y0 for axes in row.axes}) == 1


def test_all_of_a_picture_is_within_its_frame():
    """The corners are round, but no cell of a coarse map is cut off."""
    axes = viz.gallery([np.arange(4).reshape(2, 2)], ["four cells"]).axes[0]
    assert axes.images[0].get_extent() == [0, 2, 2, 0]
    box = axes.images[0].get_clip_path().get_fully_transformed_path().get_extents()
    assert np.allclose(box.get_points(), axes.transData.transform([[0, 2], [2, 0]]))


@pytest.mark.parametrize(("pictures", "captions"), [(1, 2), (2, 1), (0, 0)])
def test_pictures_and_captions_come_in_pairs(pictures, captions):
    with pytest.raises(ValueError, match=f"{pictures} pictures with {captions} captions"):
        viz.gallery([np.zeros((2, 2))] * pictures, ["a"] * captions)


def test_charts_are_quiet_and_named():
    figure, axes = viz.chart("Title", "across", "up", width=5, height=2)
    assert figure.get_size_inches().tolist() == [5, 2]
    assert (axes.get_title(loc="left"), axes.get_xlabel(), axes.get_ylabel()) == ("Title", "across", "up")
    assert [side for side, spine in axes.spines.items() if spine.get_visible()] == ["bottom"]


def test_bars_are_percentages_from_top_to_bottom():
    figure = viz.bars({"CRIS": 64.6, "nothing": 0.2}, "oIoU", colours=["#ff0000", "#0000ff"])
    (axes,) = figure.axes
    assert [bar.get_width() for bar in axes.patches] == [64.6, 0.2]
    assert [bar.get_facecolor()[:3] for bar in axes.patches] == [(1, 0, 0), (0, 0, 1)]
    assert [text.get_text() for text in axes.texts] == ["65", "0"]
    assert axes.get_xlim() == (0, 100)  # bars of different charts can be compared
    figure.canvas.draw()
    first, second = (label.get_window_extent().y0 for label in axes.get_yticklabels())
    assert [label.get_text() for label in axes.get_yticklabels()] == ["CRIS", "nothing"] and first > second


def test_bars_in_groups_keep_a_distance():
    figure = viz.bars(dict.fromkeys("abcd", 1.0), "pairs", limit=5, digits=1, groups=2)
    (axes,) = figure.axes
    middles = [bar.get_y() + bar.get_height() / 2 for bar in axes.patches]
    assert np.diff(middles) == pytest.approx([1, 1.5, 1])
    assert axes.get_xlim() == (0, 5) and [text.get_text() for text in axes.texts] == ["1.0"] * 4


def test_variants_show_every_run_and_say_what_lies_outside():
    scores = {"full": [50.0, 52.0], "once": [48.0], "from scratch": [0.1, 0.3]}
    (axes,) = viz.variants(scores, "Parts", limits=(45, 60)).axes
    assert [label.get_text() for label in axes.get_yticklabels()] == list(scores)
    dots = [points.get_offsets()[:, 0].tolist() for points in axes.collections if len(points.get_offsets())]
    assert [50.0, 52.0] in dots and [48.0] in dots and [0.1, 0.3] not in dots
    assert [text.get_text() for text in axes.texts] == ["← 0.2"]
    assert [bars[0].get_xdata()[0] for bars in axes.containers] == [51.0, 48.0]


@pytest.mark.parametrize("draw", [viz.contact_sheet, viz.hero])
def test_samples_and_predictions_come_in_pairs(draw, three):
    samples, masks = three
    for some, others in [(samples, masks[:2]), ([], [])]:
        with pytest.raises(ValueError, match="cannot draw"):
            draw(some, others)


def test_a_notebook_shows_the_figure_sharp(three):
    figure = viz.hero(*three, width=5)
    png, metadata = figure._repr_png_()
    assert abs(Image.open(io.BytesIO(png)).width - 2 * metadata["width"]) <= 1


def test_learning_curve_draws_what_the_log_says():
    log = [{"step": k, "seconds": 2.0 * k, "loss": 1 / (1 + k), "losses": {"dice": k}} for k in range(50)]
    log.insert(20, {"step": 20, "oIoU": 31.0})
    raw, average = viz.learning_curve(log).axes[0].lines
    assert raw.get_xdata().tolist() == list(range(50))
    assert raw.get_ydata() == pytest.approx([1 / (1 + k) for k in range(50)])
    assert len(average.get_xdata()) == 50
    dice = viz.learning_curve(log, metric="dice", against="seconds", smooth=0).axes[0].lines[1]
    assert dice.get_xdata().tolist() == [2.0 * k for k in range(50)]
    assert dice.get_ydata().tolist() == list(range(50))


def test_learning_curves_of_several_runs_carry_their_names():
    runs = {
        "CRIS": [{"step": 0, "loss": 0.5}],
        "LAVT": [{"step": 0, "loss": 0.25}, {"step": 9, "loss": None}],
    }
    labels = [text.get_text() for text in viz.learning_curve(runs).axes[0].texts]
    assert sorted(labels) == ["CRIS 0.500", "LAVT 0.250"]


def test_names_at_the_ends_of_curves_do_not_cover_each_other():
    falls = [1.0, 0.3, 0.106]
    ends = {"text-to-pixel": 0.104, "Dice": 0.105, "mask": 0.106}
    runs = {name: [{"step": i, "loss": y} for i, y in enumerate([*falls, end])] for name, end in ends.items()}
    figure = viz.learning_curve(runs, smooth=0)
    figure.canvas.draw()
    boxes = sorted((text.get_window_extent() for text in figure.axes[0].texts), key=lambda box: box.y0)
    assert all(lower.y1 <= upper.y0 for lower, upper in pairwise(boxes))
    lowest = min(figure.axes[0].texts, key=lambda text: text.xy[1])
    assert lowest.xy == pytest.approx((3, 0.104))  # that one stays where its curve ends


def test_a_metric_that_no_record_has_is_refused():
    with pytest.raises(ValueError, match="'accuracy'"):
        viz.learning_curve([{"step": 0, "loss": 0.5}], metric="accuracy")


@pytest.mark.parametrize("length", [1, 2, 7, 100])
def test_moving_average_is_a_mean_of_neighbours(length):
    values = np.random.default_rng(0).normal(size=30)
    half = length // 2
    naive = [values[max(i - half, 0) : i + min(half, i) + 1].mean() for i in range(30)]
    assert naive[0] == values[0]
    assert viz._moving_average(values, length) == pytest.approx(naive)


def test_a_line_break_is_kept():
    assert viz._wrap("a\nlong word", 5) == ["a", "long", "word"]


@pytest.mark.parametrize("text", ["", "box", "person in green trousers on the left", "Donaudampfschifffahrt"])
def test_wrapping_loses_no_word_and_balances_lines(text):
    lines = viz._wrap(text, 26)
    assert " ".join(lines) == text
    assert all(len(line) <= 26 for line in lines)
    assert len(lines) < 2 or min(map(len, lines)) > 13


def test_drawing_leaves_pyplot_alone():
    """Nothing of a user's own plotting changes: pyplot is not even imported."""
    code = "import sys, rislib.viz; sys.exit('matplotlib.pyplot' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
