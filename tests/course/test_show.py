"""A picture comes with its alt text, and stays when the widget that changed it is gone."""

from __future__ import annotations

import base64
import io

import numpy as np
import pytest
from nbclient import NotebookClient
from nbconvert import HTMLExporter
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell, new_notebook
from PIL import Image

from rislib.course.show import _slim
from rislib.data.refmini import paint, sample_scene
from rislib.viz import gallery, overlay

IMPORTS = """\
from ipywidgets import IntSlider
from PIL import Image
from rislib.course import show
from rislib.viz import Drawing
"""
CHANGED = """\
shown = show(Image.new("RGB", (20, 20)), alt="before")
slider = IntSlider()
slider.observe(lambda c: shown.update(Image.new("RGB", (c.new, 10)), alt=f"slider at {c.new}"), "value")
slider.value = 40
shown
"""


@pytest.fixture(scope="module")
def notebook() -> NotebookNode:
    sources = [
        'show(Image.new("RGB", (30, 20)), alt="a <black> box")',
        'show(Drawing(figsize=(3, 2), dpi=20), alt="nothing yet")',
        CHANGED,
    ]
    nb = new_notebook(cells=[new_code_cell(source) for source in [IMPORTS, *sources]])
    return NotebookClient(nb, timeout=600, kernel_name="python3").execute()


@pytest.mark.parametrize(
    ("cell", "size", "alt"),
    [(1, (30, 20), "a <black> box"), (2, (60, 40), "nothing yet"), (3, (40, 10), "slider at 40")],
)
def test_one_output_a_picture_with_its_alt_text(notebook: NotebookNode, cell: int, size, alt: str):
    (output,) = notebook.cells[cell].outputs
    assert Image.open(io.BytesIO(base64.b64decode(output.data["image/png"]))).size == size
    assert output.metadata["image/png"]["alt"] == output.data["text/plain"] == alt


def test_a_web_page_has_the_alt_text(notebook: NotebookNode):
    page, _ = HTMLExporter(template_name="classic").from_notebook_node(notebook)
    assert 'alt="a &lt;black&gt; box"' in page


def as_png(values: np.ndarray) -> bytes:
    png = io.BytesIO()
    Image.fromarray(values).save(png, "png")
    return png.getvalue()


def test_pictures_are_kept_slim_and_no_value_moves_by_more_than_one():
    """Gradients and noise too, where a palette would be seen; white stays white, black black."""
    noise = np.random.default_rng(0).integers(0, 256, (40, 256, 3))
    x, y = np.meshgrid(np.arange(256), np.arange(40))
    gradient = np.stack([x, 255 - x, 6 * y], axis=-1)
    values = np.concatenate([noise, gradient]).astype(np.uint8)
    slim = np.asarray(Image.open(io.BytesIO(_slim(as_png(values)))))
    assert np.abs(slim.astype(int) - values).max() == 1
    for extreme in (0, 255):
        assert (slim[values == extreme] == extreme).all()


def test_a_figure_gets_smaller():
    painting = paint(sample_scene("slim"), 384)
    png, _ = gallery([overlay(painting.image, painting.masks[0])], ["a thing"])._repr_png_()
    assert len(_slim(png)) < 0.7 * len(png)


def test_what_is_transparent_is_shown_on_white():
    clear = np.zeros((2, 2, 4), dtype=np.uint8)
    clear[0] = (0, 0, 255, 255)
    slim = Image.open(io.BytesIO(_slim(as_png(clear))))
    assert slim.mode == "RGB" and slim.getpixel((0, 0)) == (0, 0, 255) and slim.getpixel((0, 1)) == (255,) * 3


@pytest.mark.parametrize("mode", ["1", "L", "P"])
def test_pictures_of_every_kind_are_shown(mode):
    grey = Image.new("RGB", (3, 2), (255, 255, 255)).convert(mode)
    png = io.BytesIO()
    grey.save(png, "png")
    assert Image.open(io.BytesIO(_slim(png.getvalue()))).getpixel((0, 0)) == (255, 255, 255)
