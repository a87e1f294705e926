"""A picture comes with its alt text, and stays when the widget that changed it is gone."""

from __future__ import annotations

import base64
import io

import pytest
from nbclient import NotebookClient
from nbconvert import HTMLExporter
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell, new_notebook
from PIL import Image

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
