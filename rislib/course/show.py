"""Pictures in lessons."""

from __future__ import annotations

import base64
import io
from typing import Any


class Shown:
    """A picture that a notebook shows. It can be replaced where it stands, by a widget for example."""

    def __init__(self, picture: Any, alt: str) -> None:
        from IPython.display import display

        data, metadata = _output(picture, alt)
        self._handle = display(data, metadata=metadata, raw=True, display_id=True)

    def update(self, picture: Any, *, alt: str) -> None:
        """Put another picture in its place."""
        data, metadata = _output(picture, alt)
        self._handle.update(data, metadata=metadata, raw=True)

    def _ipython_display_(self) -> None:
        """Nothing: as the last line of a cell it is shown already."""


def show(picture: Any, *, alt: str) -> Shown:
    """Display a picture with its alt text.

    Widgets are controls, such as a text field, that `update` the picture. So the picture is an output like
    any other, and the last one stays where there is no kernel to serve the widget.

    Args:
        picture: a PIL image, or a figure of `rislib.viz`: whatever knows its `_repr_png_`.
        alt: what it shows, for those who cannot see it. It is kept where nbconvert looks for it (JupyterLab
            4.6 does not yet), and as the output's plain text.
    """
    return Shown(picture, alt)


def _output(picture: Any, alt: str) -> tuple[dict[str, str], dict[str, Any]]:
    """Data and metadata of a display_data message."""
    png = picture._repr_png_()
    png, size = png if isinstance(png, tuple) else (png, {})
    data = {"image/png": base64.b64encode(_slim(png)).decode(), "text/plain": alt}
    return data, {"image/png": {**size, "alt": alt}}


def _slim(png: bytes) -> bytes:
    """The same picture to the eye, on white, and about a third smaller: no value moves by more than 1 of 255.

    A palette of 256 colours would be smaller still, but draws bands into gradients and drops rare colours.
    """
    from PIL import Image

    picture = Image.open(io.BytesIO(png)).convert("RGBA")
    white = Image.new("RGBA", picture.size, "white")
    thirds = [3 * round(value / 3) for value in range(256)]  # keeps 0 and 255
    slim = io.BytesIO()
    Image.alpha_composite(white, picture).convert("RGB").point(3 * thirds).save(slim, "png")
    return slim.getvalue()
