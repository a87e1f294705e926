"""RefMini: RefCOCO in miniature, drawn by the project itself.

A scene is data (`sample_scene`); `paint` turns it into pixels and masks at any size; `speak` turns
one of its things into expressions through a logical form; `resolve` turns a form back into things.
"""

from rislib.data.refmini.caption import describe
from rislib.data.refmini.forms import KINDS, Form, resolve
from rislib.data.refmini.paint import Painting, paint
from rislib.data.refmini.scene import CATEGORIES, COLOURS, PATTERNS, Outfit, Scene, Thing, sample_scene
from rislib.data.refmini.speak import FLAVOURS, Expression, speak
from rislib.data.refmini.wording import say

__all__ = [
    "CATEGORIES",
    "COLOURS",
    "FLAVOURS",
    "KINDS",
    "PATTERNS",
    "Expression",
    "Form",
    "Outfit",
    "Painting",
    "Scene",
    "Thing",
    "describe",
    "paint",
    "resolve",
    "sample_scene",
    "say",
    "speak",
]
