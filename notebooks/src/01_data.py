# %% [markdown]
# # 01 · Data
#
# **A reference is one thing in one picture, together with what people said to point at it.** This lesson
# opens the files in which references are kept, takes masks apart and puts them together again, and asks
# when a sentence means one thing only.
#
# *Time: 90 minutes. You need: lesson 00.*
#
# You will
#
# - follow a reference through RefCOCO's files, from a sentence to its pixels;
# - turn polygons into masks, and masks into run lengths and back;
# - see why there are three RefCOCOs, and two ways to split them;
# - find out which things a sentence denotes.

# %% tags=["parameters"]
profile = "cpu"  # "ci" takes seconds, "cpu" minutes, "gpu" is the full-scale world

# %% tags=["imports"]
import json
import random
import tempfile
from itertools import pairwise
from pathlib import Path

import ipywidgets
import numpy as np
from contourpy import contour_generator
from IPython.display import display
from PIL import Image, ImageFilter

# %% tags=["imports"]
from rislib.course import check, hint, show
from rislib.course.recorded import recorded
from rislib.data import build_refmini, decode_segmentation, encode_mask, load_refcoco
from rislib.data.published import PUBLISHED
from rislib.data.refmini import FLAVOURS, KINDS, Form, paint, resolve, sample_scene, speak
from rislib.data.refmini.forms import GROUPS, PLACES
from rislib.viz import FAINT, HAIRLINE, INK, PREDICTION, TRUTH, Drawing, bars, chart, gallery, legend, overlay

# %% [markdown]
# ## 1 · One reference
#
# We draw three small worlds: RefMini, our miniature of RefCOCO, in its three flavours. They go into a
# temporary folder, in **exactly the layout of the real RefCOCO**. So what you learn here you can use there.

# %%
folder = tempfile.TemporaryDirectory()
home = Path(folder.name)
worlds = {}
for flavour in FLAVOURS:
    build_refmini(home / flavour, flavour, train=120, val=24, progress=False)
    worlds[flavour] = load_refcoco(home / flavour, flavour, "rislib", split=None)
    print(worlds[flavour])

# %% [markdown]
# A helper for the figures of this lesson: one thing is marked, in its own colours, and the rest is pale.


# %%
def marked(image, mask, scale=3):
    """The picture with the mask outlined, and everything else dimmed."""
    drawn = overlay(image, mask, TRUTH, scale=scale)
    inner = Image.fromarray(mask).resize(drawn.size).filter(ImageFilter.MinFilter(7))  # within the line
    drawn.paste(image.resize(drawn.size, Image.Resampling.LANCZOS), mask=inner)
    return drawn


# %% [markdown]
# Here is the first reference of the first world.

# %%
samples = [worlds["refmini"][i] for i in range(3)]
show(
    gallery(
        [marked(s.image, s.mask) for s in samples],
        [f"“{s.expression}”\nref_id {s.ref_id}, sent_id {s.sent_id}" for s in samples],
    ),
    alt="Three times the same picture and mask, each time with another sentence about the same thing.",
)

# %% [markdown]
# **One reference, three samples.** Three sentences about the same thing: the `ref_id` stays, the `sent_id`
# counts on. A network is trained and measured on single sentences, so each of them is a sample of its own:
#
# | word | what it is |
# |---|---|
# | picture | pixels, with an `image_id` |
# | annotation | one outlined thing in a picture, with an `ann_id`; COCO drew them |
# | reference | an annotation that somebody speaks of, with a `ref_id` |
# | sentence | what was said, with a `sent_id` |

# %% [markdown]
# ## 2 · RefCOCO's files, by hand
#
# Which files are there?

# %%
root = home / "refmini"
for path in sorted(root.rglob("*.json")):
    print(f"{path.relative_to(root)!s:34} {path.stat().st_size / 1000:6.0f} kB")
pictures = sorted((root / "images/refmini").iterdir())
print(f"{pictures[0].relative_to(root)!s:34} and {len(pictures) - 1} more")

# %% [markdown]
# - `instances.json` is COCO's own format: pictures, annotations, categories.
# - `refs(rislib).json` holds the references. The name in brackets says *who split them*. RefCOCO has
#   `refs(unc).p`.
# - The real files end in `.p`: they are Python pickles. A pickle can run any code when it is opened. So
#   `rislib.data` reads them with a reader that lets nothing in but plain lists, dicts, text and numbers.
#
# Let us read the first reference without any library.

# %% tags=["nbval-check-output"]
refs = json.loads((root / "refmini/refs(rislib).json").read_text())
instances = json.loads((root / "refmini/instances.json").read_text())
for key in ("ref_id", "ann_id", "image_id", "category_id", "split"):
    print(f"{key:12} {refs[0][key]}")
for sentence in refs[0]["sentences"]:
    print(f"  sent_id {sentence['sent_id']}: {sentence['sent']}")

# %% [markdown]
# No pixel, no outline, not even the name of the category: only ids. They lead into `instances.json`.
#
# ### Exercise 1: follow the ids (easy, 10 minutes)
#
# Find the picture's file, the name of the category, and the box of a reference.
#
# Beware of a trap. References of the real RefCOCO carry a `file_name`, too, such as
# `COCO_train2014_000000573125_7.jpg`. There is no such picture: the `_7` was added. The picture's own name
# is where pictures are listed.


# %% exercise="follow_ids"
def follow_ids(ref, images, annotations, categories):
    """A reference (dict), and the three lists of dicts of `instances.json`, in any order
    -> (the picture's file_name, the category's name, the annotation's bbox: a list of 4)."""
    # BEGIN SOLUTION
    annotation = next(row for row in annotations if row["id"] == ref["ann_id"])
    picture = next(row for row in images if row["id"] == annotation["image_id"])
    category = next(row for row in categories if row["id"] == annotation["category_id"])
    return picture["file_name"], category["name"], annotation["bbox"]
    # END SOLUTION


# %% tests="follow_ids"
def _tables():
    images = [{"id": 9, "file_name": "b.jpg"}, {"id": 4, "file_name": "a.jpg"}]
    annotations = [
        {"id": 2, "image_id": 4, "category_id": 1, "bbox": [5, 5, 20, 40]},
        {"id": 0, "image_id": 4, "category_id": 18, "bbox": [30, 8, 12, 9]},
        {"id": 1, "image_id": 9, "category_id": 3, "bbox": [1, 2, 33, 24]},
    ]
    categories = [{"id": 1, "name": "person"}, {"id": 3, "name": "car"}, {"id": 18, "name": "dog"}]
    return images, annotations, categories


def cases():
    yield {"ref_id": 7, "ann_id": 2, "image_id": 4, "file_name": "a_2.jpg"}, *_tables()
    yield {"ref_id": 8, "ann_id": 0, "image_id": 4, "file_name": "a_0.jpg"}, *_tables()
    yield {"ref_id": 9, "ann_id": 1, "image_id": 9, "file_name": "b_1.jpg"}, *_tables()


hints = (
    "Begin with the annotation: which row of `annotations` has the id that the reference calls `ann_id`?",
    "`next(row for row in annotations if row['id'] == ref['ann_id'])` is that row. It knows its `image_id` "
    "and its `category_id`.",
    "Look up the other two in the same way: in `images` the row whose id is `annotation['image_id']`, in "
    "`categories` the one whose id is `annotation['category_id']`.",
)


def wrong_position(ref, images, annotations, categories):
    """you take an id for a position in the list. Ids are names: they need not begin at 0, nor follow each
    other, nor be in order. Look for the row whose `id` is the one you want."""
    annotation = annotations[ref["ann_id"]]
    picture = next(row for row in images if row["id"] == annotation["image_id"])
    category = next(row for row in categories if row["id"] == annotation["category_id"])
    return picture["file_name"], category["name"], annotation["bbox"]


def wrong_counted_from_one(ref, images, annotations, categories):
    """you take an id for a position that is counted from 1: `annotations[ann_id - 1]`. In RefMini this
    happens to work, in RefCOCO it does not: ids are names. Look for the row whose `id` is what you want."""
    chosen = annotations[ref["ann_id"] - 1]
    return follow_ids({**ref, "ann_id": chosen["id"]}, images, annotations, categories)


def wrong_first_of_picture(ref, images, annotations, categories):
    """you take the first annotation of the right picture. A picture has many: `ann_id` says which."""
    first = next(row for row in annotations if row["image_id"] == ref["image_id"])
    return follow_ids({**ref, "ann_id": first["id"]}, images, annotations, categories)


def wrong_category(ref, images, annotations, categories):
    """you count categories: `categories[category_id - 1]`. COCO has 80 categories with ids up to 90, so there
    are gaps. Look for the row whose `id` it is."""
    annotation = next(row for row in annotations if row["id"] == ref["ann_id"])
    name = categories[annotation["category_id"] - 1]["name"]
    return follow_ids(ref, images, annotations, categories)[0], name, annotation["bbox"]


def wrong_file_name(ref, images, annotations, categories):
    """this is the reference's own `file_name`, the trap named above. The picture's is in `images`."""
    return ref["file_name"], *follow_ids(ref, images, annotations, categories)[1:]


# %% points=2
check(follow_ids)

# %% [markdown]
# The same, drawn. Searching a list for each id is slow when there are a hundred thousand rows. So one makes
# a dictionary from ids to rows first.

# %%
rows = {table: {row["id"]: row for row in instances[table]} for table in instances}
ref = refs[0]
annotation, picture = rows["annotations"][ref["ann_id"]], rows["images"][ref["image_id"]]
category = rows["categories"][annotation["category_id"]]


def note(axes, at, title, row, keys):
    """Write a record into a box, its upper left corner at `at` (x, y)."""
    text = "\n".join([title, *(f"  {key}: {row[key]}" for key in keys)])
    box = {"boxstyle": "round,pad=0.6", "facecolor": "#f5f6f8", "edgecolor": FAINT}
    axes.text(*at, text, family="monospace", fontsize=9, color=INK, va="top", linespacing=1.5, bbox=box)


# %%
def lead(axes, start, end, key):
    """Draw an arrow from `start` to `end`, and write the id that it follows beside it."""
    axes.annotate("", end, start, arrowprops={"arrowstyle": "-|>", "color": PREDICTION, "lw": 1.6})
    middle = (start[0] + end[0]) / 2 + 0.15, (start[1] + end[1]) / 2 - 0.15
    axes.text(
        *middle, key, fontsize=9, color=PREDICTION, ha="center" if start[1] == end[1] else "left", va="bottom"
    )


# %%
figure = Drawing((9, 3.3), layout="constrained")
left, right = figure.subplots(1, 2, width_ratios=(1, 1.7))
left.imshow(marked(samples[0].image, samples[0].mask))
right.set(xlim=(0, 10), ylim=(10, 0))
note(right, (0.6, 0.9), "reference", ref, ("ref_id", "ann_id", "image_id"))
note(right, (6.1, 0.9), "annotation", annotation, ("id", "category_id", "bbox"))
note(right, (0.6, 6.6), "image", picture, ("id", "file_name"))
note(right, (6.1, 6.6), "category", category, ("id", "name"))
lead(right, (2.9, 2.2), (5.7, 2.2), "ann_id")
lead(right, (1.5, 3.7), (1.5, 6.1), "image_id")
lead(right, (7.6, 3.7), (7.6, 6.1), "category_id")
for axes in (left, right):
    axes.set_axis_off()
show(figure, alt="A reference leads by its ids to an annotation and an image, the annotation to a category.")

# %% [markdown]
# ## 3 · Polygons
#
# How does a file hold the *shape* of a thing? COCO's people clicked around it. The clicks are the corners
# of a **polygon**, kept as one flat list `[x0, y0, x1, y1, ...]`. They have fractions: x runs to the right
# and y downwards, and the pixel in row 3, column 5 covers all x from 5 to 6 and all y from 3 to 4.
#
# A network needs pixels. The usual rule: **a pixel belongs to the polygon if its centre lies inside.**
#
# Below is an arrow with seven corners, on a small grid.

# %%
arrow = [1.2, 4.3, 7.3, 4.3, 7.3, 1.7, 13.1, 6.2, 7.3, 10.8, 7.3, 7.8, 1.2, 7.8]
inside = decode_segmentation([arrow], 12, 15)
figure, axes = chart("Which centres lie inside?", "x", "y", width=6, height=4.6)
axes.pcolormesh(np.where(inside, 0.3, 0.0), cmap="Blues", vmin=0, vmax=1, edgecolors=HAIRLINE, linewidth=0.6)
y, x = np.mgrid[:12, :15] + 0.5
axes.scatter(x, y, s=9, color=np.where(inside.ravel(), INK, "#c3c8d0"))
axes.fill(arrow[0::2], arrow[1::2], fill=False, edgecolor=PREDICTION, linewidth=1.8)
axes.plot(arrow[0::2], arrow[1::2], "o", color=PREDICTION, markersize=5)
axes.set(aspect="equal", xlim=(0, 15), ylim=(12, 0), xticks=range(0, 16, 3), yticks=range(0, 13, 3))
show(figure, alt="An arrow on a grid of 12 by 15 pixels. Those whose centre lies inside are tinted.")

# %% [markdown]
# ### Exercise 2: rasterise a polygon (medium, 15 minutes)
#
# How does one know whether a point is inside? Walk from it straight to the right, and count the edges that
# you cross. **An odd number means inside.**
#
# Take the edge from (x0, y0) to (x1, y1), and the point (x, y):
#
# - You can only meet the edge if y lies between its ends: one of y0, y1 is above y, the other is not.
# - At height y, the edge is at `x0 + (y - y0) * (x1 - x0) / (y1 - y0)`: from its start, the share of the
#   way that y has gone. You cross it if that is to the right of x.
# - A level edge (y0 = y1) is never met in this way. Skip it, or you divide by 0.
#
# All pixels can walk at once: let `x` and `y` be arrays of shape (height, width).


# %% exercise="rasterise"
def rasterise(polygon, height, width):
    """A polygon [x0, y0, x1, y1, ...] -> mask (height, width) bool, True where the pixel's centre is inside.

    The polygon is closed: an edge leads from its last corner to its first. No edge passes through a centre.
    """
    # BEGIN SOLUTION
    y, x = np.mgrid[:height, :width] + 0.5  # centres, (height, width) each
    corners = np.reshape(polygon, (-1, 2))
    inside = np.zeros((height, width), dtype=bool)
    for (x0, y0), (x1, y1) in zip(np.roll(corners, 1, axis=0), corners, strict=True):
        between = (y0 > y) != (y1 > y)
        edge_x = x0 + (y - y0) * (x1 - x0) / (y1 - y0 or 1)  # a level edge lies between nothing
        inside ^= between & (edge_x > x)
    return inside
    # END SOLUTION


# %% tests="rasterise"
def cases():
    yield [0.8, 0.6, 6.2, 1.4, 2.3, 4.7], 5, 7
    yield [1.2, 4.3, 7.3, 4.3, 7.3, 1.7, 13.1, 6.2, 7.3, 10.8, 7.3, 7.8, 1.2, 7.8], 12, 15
    yield [-3.3, 2.2, 4.4, -2.1, 6.7, 9.8, 3.1, 3.2], 8, 6


hints = (
    "`y, x = np.mgrid[:height, :width] + 0.5` are the centres of all pixels. Begin with a mask of False, and "
    "turn a pixel over at each edge that it crosses: `inside ^= crosses`.",
    "`np.reshape(polygon, (-1, 2))` are the corners (N, 2); `np.roll(corners, 1, axis=0)` is the corner "
    "before each of them. So `zip` of the two gives all edges, the closing one included.",
    "`crosses = ((y0 > y) != (y1 > y)) & (x0 + (y - y0) * (x1 - x0) / (y1 - y0) > x)`. A level edge would "
    "divide by 0: skip it.",
)


def wrong_corner_of_pixel(polygon, height, width):
    """you test the upper left corner of each pixel, and not its centre. The whole mask moves by half a pixel
    down and to the right. Add 0.5 to rows and columns."""
    return rasterise([value + 0.5 for value in polygon], height, width)


def wrong_rows_first(polygon, height, width):
    """x and y are exchanged. A polygon has x first, an array has rows first, and rows are y."""
    return rasterise(np.reshape(polygon, (-1, 2))[:, ::-1].ravel().tolist(), height, width)


def wrong_open(polygon, height, width):
    """the polygon is not closed: the edge from the last corner to the first is missing, so some rows never
    change back."""
    y, x = np.mgrid[:height, :width] + 0.5
    corners = np.reshape(polygon, (-1, 2))
    inside = np.zeros((height, width), dtype=bool)
    for (x0, y0), (x1, y1) in pairwise(corners):
        inside ^= ((y0 > y) != (y1 > y)) & (x0 + (y - y0) * (x1 - x0) / (y1 - y0 or 1) > x)
    return inside


def wrong_or(polygon, height, width):
    """you join the edges with `or`: one crossing is enough. But walking from outside through a thing crosses
    two edges. Count them, or turn the pixel over each time: `inside ^= crosses`."""
    y, x = np.mgrid[:height, :width] + 0.5
    corners = np.reshape(polygon, (-1, 2))
    inside = np.zeros((height, width), dtype=bool)
    for (x0, y0), (x1, y1) in zip(np.roll(corners, 1, axis=0), corners, strict=True):
        inside |= ((y0 > y) != (y1 > y)) & (x0 + (y - y0) * (x1 - x0) / (y1 - y0 or 1) > x)
    return inside


# %% points=3
check(rasterise)

# %% [markdown]
# ### How good can an outline be?
#
# Every corner is a click, and clicks are work. Here is a chair, outlined again with fewer corners. The
# lesson goes on with the library's `decode_segmentation`, which asks pycocotools. That rounds slanted edges
# in a way of its own, so a pixel here and there differs from our rule.


# %%
def outline(mask, corners):
    """mask (H, W) bool -> its longest outline as a polygon [x0, y0, x1, y1, ...] with so many corners."""
    lines = contour_generator(z=np.pad(mask, 1).astype(float)).lines(0.5)
    points = max(lines, key=len)[:-1] - 0.5  # (N, 2): x, y; the last point is the first again
    while len(points) > corners:
        a, b = np.roll(points, 1, axis=0) - points, np.roll(points, -1, axis=0) - points
        matters = np.abs(a[:, 0] * b[:, 1] - a[:, 1] * b[:, 0])  # the area that goes with a corner, twice
        points = np.delete(points, matters.argmin(), axis=0)
    return points.ravel().tolist()


# %%
beach = sample_scene("data/146")
painting = paint(beach, 256)
chair = painting.masks[[thing.name for thing in beach.things].index("chair")]


# %%
def clicked(corners):
    """The chair outlined with so many corners -> a picture, and its IoU with the true mask."""
    polygon = outline(chair, corners)
    mask = decode_segmentation([polygon], *chair.shape)
    iou = (mask & chair).sum() / (mask | chair).sum()
    drawn = overlay(painting.image, mask, PREDICTION, truth=chair, scale=3)
    return drawn.crop((300, 450, 660, 768)), f"{len(polygon) // 2} corners, IoU {iou:.2f}"


drawn = [clicked(corners) for corners in (5, 9, 20, 10_000)]
show(
    gallery(*zip(*drawn, strict=True)),
    alt="A red chair outlined in cyan, and polygons of more and more corners around it in magenta.",
)

# %% [markdown]
# Magenta is the polygon, cyan the true outline. Two things to see:
#
# - A dozen clicks are not much. What the benchmark calls the truth has an error of its own.
# - Even with every corner there is, the IoU does not reach 1. Look between the chair's back and its seat.
#   **A list of polygons has no holes**: what lies inside is filled. Run lengths, which come next, can have
#   holes.
#
# Try it: how many corners would you be willing to click?

# %%
corners = ipywidgets.IntSlider(value=12, min=3, max=60, description="corners")
picture, caption = clicked(corners.value)
shown = show(gallery([picture], [caption], width=3.6), alt=f"The chair outlined with {caption}.")


def click(change):
    picture, caption = clicked(change["new"])
    shown.update(gallery([picture], [caption], width=3.6), alt=f"The chair outlined with {caption}.")


corners.observe(click, "value")
display(corners)

# %% [markdown]
# ### One thing, two polygons
#
# A dog behind a pole is seen in two parts. So a segmentation is a *list* of polygons, and all of them
# belong to the thing. What if two of them overlap? Published code does not agree:
#
# - COCO's own tool takes the **union**, and so do we.
# - CRIS adds the polygons up and keeps the sum times 255 in a byte. Where two overlap, 510 becomes 254:
#   still not zero, so still the thing.
# - LAVT adds them up, too, and then takes as the thing what equals 1. Where two overlap there is **a
#   hole**.

# %%
polygons = [[1.2, 2.2, 8.8, 2.2, 8.8, 7.8, 1.2, 7.8], [6.2, 4.2, 13.8, 4.2, 13.8, 9.8, 6.2, 9.8]]
total = sum(decode_segmentation([polygon], 12, 15).astype(int) for polygon in polygons)  # (12, 15): 0, 1, 2
rules = {
    "COCO: the union": decode_segmentation(polygons, 12, 15),
    "CRIS: sum x 255 in a byte, not 0": (total * 255).astype(np.uint8) > 0,
    "LAVT: the sum is 1": total == 1,
}
captions = [f"{rule}\n{mask.sum()} pixels" for rule, mask in rules.items()]
show(
    gallery(list(rules.values()), captions),
    alt="Two overlapping rectangles: joined under the first two rules, then with a hole where they overlap.",
)

# %% [markdown]
# A network that is measured against the third mask is punished for being right. How often polygons overlap
# in RefCOCO we have not counted. But whoever compares two papers compares their masks, too.

# %% [markdown]
# ## 4 · Run lengths
#
# The other way to keep a mask is to say how long each colour goes on: *6 outside, 3 inside, 2 outside ...*
# This is *run-length encoding*, RLE for short. COCO has two rules that everybody forgets once:
#
# 1. **Pixels are counted down the columns**, not along the rows.
# 2. **The first number counts outside pixels.** If the first pixel is inside, the first number is 0.

# %%
counts = [6, 3, 2, 3, 4, 1, 4, 1, 4, 2]
mask = decode_segmentation({"size": [5, 6], "counts": counts}, 5, 6)
figure, axes = chart(f"counts {counts}", "column", "row", width=5, height=4.2)
axes.imshow(mask, cmap="Blues", vmin=0, vmax=2.6)
axes.grid(visible=False)
for column in range(6):
    axes.plot([column + 0.33] * 2, [-0.35, 4.35], color=FAINT, lw=0.8)
    axes.plot(column + 0.33, 4.3, "v", color=FAINT, markersize=4)
    for row in range(5):
        axes.text(column - 0.05, row, 5 * column + row, ha="center", va="center", color=INK, fontsize=10)
show(figure, alt="A grid of 5 rows and 6 columns. The pixels are numbered down the columns, from 0 to 29.")

# %% [markdown]
# Read it with a finger: pixels 0 to 5 are outside (6 of them), 6 to 8 inside (3), 9 and 10 outside (2), and
# on.
#
# ### Exercise 3: a mask as run lengths (medium, 10 minutes)
#
# Turn a mask into such a list. Where does a run begin, and where does it end?


# %% exercise="run_lengths"
def run_lengths(mask):
    """mask (H, W) bool -> COCO's run lengths, a list of int: down the columns, False pixels first."""
    # BEGIN SOLUTION
    pixels = mask.flatten(order="F")  # (H * W,), column after column
    changes = np.flatnonzero(pixels[1:] != pixels[:-1]) + 1
    runs = np.diff([0, *changes, len(pixels)]).tolist()
    return [0, *runs] if pixels[0] else runs
    # END SOLUTION


# %% tests="run_lengths"
def cases():
    mask = np.zeros((3, 4), dtype=bool)
    mask[1:, 1] = mask[0, 2] = mask[1, 3] = True
    yield (mask,)
    yield (np.array([[1, 0, 1], [1, 1, 0]], dtype=bool),)
    yield (np.ones((2, 3), dtype=bool),)
    yield (np.zeros((2, 3), dtype=bool),)


hints = (
    "`mask.flatten(order='F')` are the pixels column after column (F as in Fortran, which stores them so).",
    "A run begins where a pixel differs from the one before. These places are "
    "`changes = np.flatnonzero(pixels[1:] != pixels[:-1]) + 1`.",
    "Lengths are differences of places, beginning and end included: "
    "`np.diff([0, *changes, len(pixels)]).tolist()`. If `pixels[0]` is True, put a 0 in front.",
)


def wrong_rows(mask):
    """you count along the rows. COCO counts down the columns: `mask.flatten(order="F")`."""
    return run_lengths(mask.T)


def wrong_no_zero(mask):
    """the first number counts whatever comes first. It must count False pixels: if the first pixel is True,
    the list begins with 0."""
    runs = run_lengths(mask)
    return runs[1:] if runs[0] == 0 else runs


def wrong_last(mask):
    """the last run is missing. No change ends it, but the end of the picture does. All runs together have
    H * W pixels: a good thing to test."""
    return run_lengths(mask)[:-1]


def wrong_places(mask):
    """these are the places at which runs end, and not their lengths. Take differences: `np.diff`."""
    return np.cumsum(run_lengths(mask)).tolist()


# %% points=3
check(run_lengths)

# %% [markdown]
# ### Exercise 4: and back (easy, 5 minutes)
#
# Now turn the list into the mask again. The first number, the third, the fifth ... count False pixels, the
# others True ones.


# %% exercise="from_run_lengths"
def from_run_lengths(counts, height, width):
    """COCO's run lengths, a list of int with the sum height * width -> mask (height, width) bool."""
    # BEGIN SOLUTION
    values = np.arange(len(counts)) % 2 == 1  # False, True, False, ...
    pixels = np.repeat(values, counts)  # (height * width,)
    return pixels.reshape((height, width), order="F")
    # END SOLUTION


# %% tests="from_run_lengths"
def cases():
    yield [6, 3, 2, 3, 4, 1, 4, 1, 4, 2], 5, 6
    yield [0, 3, 1, 2], 2, 3
    yield [9], 3, 3


hints = (
    "`np.repeat(values, counts)` repeats each value as often as its count says.",
    "The values are False, True, False, ...: `np.arange(len(counts)) % 2 == 1`.",
    "`pixels.reshape((height, width), order='F')` fills column after column; so does "
    "`pixels.reshape(width, height).T`.",
)


def wrong_reshape(counts, height, width):
    """the pixels are right, but you put them into rows. Fill the columns: `reshape(..., order="F")`."""
    return from_run_lengths(counts, height, width).ravel(order="F").reshape(height, width)


def wrong_inverted(counts, height, width):
    """inside and outside are exchanged. The first number counts False pixels."""
    return ~from_run_lengths(counts, height, width)


def wrong_transposed(counts, height, width):
    """you filled columns as if they were rows, which is right, but then the array must be turned over: `.T`.
    Now it has width rows and height columns."""
    return from_run_lengths(counts, height, width).T


def wrong_numbers(counts, height, width):
    """these are numbers, 0 and 1. Masks in this course are bool: compare, or use `.astype(bool)`."""
    return from_run_lengths(counts, height, width).astype(int)


# %% points=2
check(from_run_lengths)

# %% [markdown]
# Real files go one step further, and write the numbers as text: five bits a character, and differences
# instead of the numbers themselves. `encode_mask` and `decode_segmentation` do that. This is the chair,
# holes included:

# %% tags=["nbval-check-output"]
code = encode_mask(chair)
print(f"size {code['size']}, counts {code['counts'][:32]}...")
print(f"{chair.size:,} pixels in {len(code['counts'])} characters")
print("and back:", "every pixel" if (decode_segmentation(code, 256, 256) == chair).all() else "not the same")

# %% [markdown]
# ## 5 · Three ways to speak
#
# There are three RefCOCOs. Pictures and outlines of all three are COCO's. What differs is **how people were
# asked**:
#
# | | how | what comes of it |
# |---|---|---|
# | RefCOCO | a game for two: one describes, the other clicks | short, and mostly says *where* |
# | RefCOCO+ | the same game, but words of place are forbidden | looks: colour, clothes, size |
# | RefCOCOg | no game, nobody waits for an answer | long sentences, rich in detail |
#
# (How they were collected is from the catalogue of TensorFlow Datasets, page `ref_coco`. That RefCOCO
# mostly says where, we counted: see below.)
#
# RefMini has a flavour for each. Here is one girl, three times.

# %%
scene = sample_scene("data/243")
beach = paint(scene, 192)
captions = [
    "\n".join([flavour, *(f"“{e.text}”" for e in speak(scene, 0, flavour, random.Random(0))[:2])])
    for flavour in FLAVOURS
]
show(
    gallery([marked(beach.image, beach.masks[0], scale=2)] * 3, captions),
    alt="The same girl on a beach three times, described in each of the three flavours.",
)

# %% [markdown]
# The first two are short. The middle one may not say where. The third takes its time, and brings in the
# blue ball or the other child.
#
# The same in numbers. How long are the sentences of our three worlds?

# %%
figure, axes = chart("How long are sentences?", "words", "percent of sentences")
colours = dict(zip(FLAVOURS, (TRUTH, "#f2a900", INK), strict=True))
for i, (flavour, world) in enumerate(worlds.items()):
    words = np.array([len(record.expression.split()) for record in world.records])
    shares = 100 * np.bincount(words, minlength=20)[:20] / len(words)
    label = f"{flavour}, mean {words.mean():.1f}"
    axes.bar(np.arange(20) + 0.28 * (i - 1), shares, width=0.26, color=colours[flavour], label=label)
axes.set(xlim=(0.4, 19.6), xticks=range(1, 20))
legend(axes)
show(
    figure,
    alt="Words per sentence: most have two to five in refmini and refmini+, five to twelve in refminig.",
)

# %% [markdown]
# RefMini knows of each sentence which *kind* it is: the part of it that decides. In *red car left of the
# bus* it is the relation, if there are two red cars; if there is only one, it is the colour.

# %%
figure, axes = chart("What decides", "percent of sentences", height=3.4)
for flavour, world in worlds.items():
    kinds = [record.kind for record in world.records]
    percent = [100 * kinds.count(kind) / len(kinds) for kind in KINDS]
    axes.scatter(percent, KINDS, s=55, color=colours[flavour], label=flavour)
axes.invert_yaxis()
legend(axes, loc="lower right")
show(
    figure,
    alt="Shares of the kinds in the three flavours: refmini is half location, refmini+ has none of it.",
)

# %% [markdown]
# Is that what people really say? We once counted words in all sentences of RefCOCO's val and test splits,
# and the same words in RefMini. (*In all*: a sentence may have several kinds, or none.)

# %%
people, ours = recorded("kinds")["refcoco"], recorded("kinds")["refmini val"]
kinds = [kind for kind in people if kind != "sentences"]
figure, axes = chart("What sentences mention", "percent of sentences")
for kind in kinds:
    axes.plot([people[kind], ours[kind]], [kind, kind], color=HAIRLINE, linewidth=3, zorder=1)
for name, shares, colour in (("RefCOCO", people, INK), ("RefMini", ours, TRUTH)):
    label = f"{name}, {shares['sentences']:,} sentences"
    axes.scatter([shares[kind] for kind in kinds], kinds, s=55, color=colour, label=label, zorder=2)
axes.invert_yaxis()
legend(axes, loc="lower right")
show(figure, alt="Shares of location, colour, size and so on: RefCOCO and RefMini lie close together.")

# %% [markdown]
# They lie close, and not by chance: RefMini's shares were *set* after this count. Where they differ,
# RefMini says more of colours and patterns. Its words are far fewer, though, and nobody makes a spelling
# mistake.

# %% [markdown]
# ## 6 · Splits
#
# One part of the data is for training, one for choosing between networks (val), one for the number that is
# reported (test). RefCOCO's test part comes in two: in **testA** people are referred to, in **testB**
# everything else.

# %%
chosen = []
for split in ("testA", "testA", "testB", "testB"):
    of_split = [i for i, record in enumerate(worlds["refmini"].records) if record.split == split]
    chosen.append(worlds["refmini"][of_split[len(chosen) % 2 * 9]])
show(
    gallery(
        [marked(s.image, s.mask) for s in chosen],
        [f"{s.split}\n“{s.expression}”" for s in chosen],
    ),
    alt="Two pictures of testA in which a person is marked, two of testB in which another thing is.",
)

# %% [markdown]
# These are the sizes of the real ones. (*None*: we know of no published number.)

# %% tags=["nbval-check-output"]
print(f"{'dataset':9} {'split by':9} {'split':6} {'references':>10} {'sentences':>10} {'pictures':>9}")
for (dataset, split_by), splits in PUBLISHED.items():
    for name, size in splits.items():
        sentences = "None" if size.sentences is None else f"{size.sentences:,}"
        print(f"{dataset:9} {split_by:9} {name:6} {size.references:10,} {sentences:>10} {size.images:9,}")

# %% [markdown]
# RefCOCO and RefCOCOg were split twice. The two ways look alike in the table, and are not:
#
# - UNC and UMD (the universities of North Carolina and of Maryland) divide **pictures**. All references of a
#   picture are in the same part.
# - Google divides **things**. The left dog may be in train, and the right dog *of the same picture* in val.
#
# Does that matter? Whoever has trained on the picture has seen the place, the light, and the left dog. "The
# other dog" is then not hard to find.
#
# ### Exercise 5: seen before (easy, 5 minutes)
#
# Which share of a split's pictures is also in the training part?


# %% exercise="share_seen"
def share_seen(refs, split):
    """References, a list of N dicts with "ref_id", "image_id" and "split"; the name of a split
    -> float in [0, 1]: of the different pictures of that split, the share that is also in "train"."""
    # BEGIN SOLUTION
    training = {ref["image_id"] for ref in refs if ref["split"] == "train"}
    pictures = {ref["image_id"] for ref in refs if ref["split"] == split}
    return len(pictures & training) / len(pictures)
    # END SOLUTION


# %% tests="share_seen"
def _references(*rows):
    return [{"ref_id": i, "image_id": image, "split": split} for i, (image, split) in enumerate(rows)]


def cases():
    yield _references((5, "train"), (5, "train"), (6, "train"), (5, "val"), (5, "val"), (7, "val")), "val"
    yield _references((1, "train"), (2, "val"), (3, "test"), (3, "test")), "test"
    yield _references((1, "train"), (1, "test"), (2, "train"), (3, "val")), "test"


hints = (
    "Collect the `image_id`s of both parts into sets: a set keeps each picture once.",
    "`a & b` is what two sets share, `len` counts.",
    "`len(pictures & training) / len(pictures)`, where `pictures` are those of the split.",
)


def wrong_references(refs, split):
    """you count references. A picture with two references then counts twice. Asked for are different
    pictures: use sets."""
    training = {ref["image_id"] for ref in refs if ref["split"] == "train"}
    of_split = [ref for ref in refs if ref["split"] == split]
    return sum(ref["image_id"] in training for ref in of_split) / len(of_split)


def wrong_ids(refs, split):
    """you compare `ref_id`s. Two splits never share a reference, so this is always 0, as if all were well.
    It is pictures that leak: compare `image_id`s."""
    return 0.0


def wrong_denominator(refs, split):
    """you divide by the pictures of train. Asked for is the share of the split's own pictures."""
    training = {ref["image_id"] for ref in refs if ref["split"] == "train"}
    pictures = {ref["image_id"] for ref in refs if ref["split"] == split}
    return len(pictures & training) / len(training)


# %% points=2
check(share_seen)

# %% [markdown]
# Let us split our own world in Google's way, one thing in five into val, and count. Its pictures have up to
# three references each.

# %% tags=["nbval-check-output"]
order = random.Random(0).sample(refs, len(refs))
val, train = order[: len(order) // 5], order[len(order) // 5 :]
for way, parts in {
    "things": (val, train),
    "pictures": ([r for r in refs if r["split"] == "val"], [r for r in refs if r["split"] == "train"]),
}.items():
    in_val, in_train = ({ref["image_id"] for ref in part} for part in parts)
    share = len(in_val & in_train) / len(in_val)
    print(f"{way} divided: {len(in_val)} pictures in val, {share:.0%} of them are in train, too")

# %% [markdown]
# And the real ones? We need not open a single file: the table is enough.
#
# UMD's three parts of RefCOCOg and Google's two have the same number of references, 49,822, and of
# sentences, 95,010. So we take them for the same references, divided otherwise. (With RefCOCO it is 50,000
# both ways.) Then Google's parts cannot have more *different* pictures than UMD's. If their pictures add up
# to more, some were counted twice.

# %% tags=["nbval-check-output"]
seen_at_least = {}
for dataset, by_picture in (("refcoco", "unc"), ("refcocog", "umd")):
    honest, google = PUBLISHED[dataset, by_picture], PUBLISHED[dataset, "google"]
    total = sum(size.images for size in honest.values())
    assert sum(s.references for s in honest.values()) == sum(s.references for s in google.values())
    shared = google["train"].images + google["val"].images - total
    seen_at_least[f"{dataset} {by_picture}"] = 0.0
    seen_at_least[f"{dataset} google"] = 100 * shared / google["val"].images
    print(f"{dataset}: {total:,} pictures; Google's train and val share at least {shared:,}")

# %%
show(
    bars(seen_at_least, "Pictures of val that are also in train, at least"),
    alt="None of the pictures of UNC's and UMD's val is in train, but over three quarters of Google's.",
)

# %% [markdown]
# (UNC and UMD divide pictures, so theirs is 0 by definition.)
#
# At least three pictures in four of Google's val were trained on. So numbers on *val (G)* and *val (U)* are
# two different exams. Papers that report both say which is which: look for the letter.
#
# There is another leak, which no split prevents. Whoever chooses the best of fifty epochs *by the very split
# that is reported* reports a lucky epoch. CRIS's authors say that they chose a checkpoint for each reported
# split (issue 15 of their repository). How much this gains, nobody has said.

# %% [markdown]
# ## 7 · When does a sentence mean one thing only?
#
# "The dog", in a picture with two dogs, is not wrong. It is *ambiguous*: it denotes both. A benchmark wants
# sentences that denote exactly one thing. RefCOCO's game saw to it: the second player had to click on the
# right one. RefMini computes it.
#
# In the file of references, each of our sentences has its meaning beside it, as a small *form*:

# %%
for sentence in refs[0]["sentences"] + refs[1]["sentences"]:
    print(f"{sentence['sent']:24} {sentence['form']}")

# %% [markdown]
# ### Exercise 6: what does a sentence denote? (medium, 10 minutes)
#
# A form is a list of conditions. A thing is denoted if it meets **all** of them. What a form does not
# mention, it does not care about. Some nouns are names of groups, such as *person* or *kid*:

# %%
for noun, names in GROUPS.items():
    print(f"{noun:7} means any of {', '.join(names)}")


# %% exercise="denoted"
def denoted(form, things):
    """A form, such as {"noun": "kid", "size": "small"}, and N things, dicts that have a "name" and all other
    properties that a form may name -> the set of positions, 0 to N - 1, of the things that it denotes.

    `GROUPS` says which names a noun stands for; a noun that is not in it stands for itself.
    """
    # BEGIN SOLUTION
    conditions = {key: value for key, value in form.items() if key != "noun"}
    names = GROUPS.get(form["noun"], (form["noun"],))
    return {
        i
        for i, thing in enumerate(things)
        if thing["name"] in names and all(thing[key] == value for key, value in conditions.items())
    }
    # END SOLUTION


# %% tests="denoted"
def _things():
    return [
        {"name": "girl", "size": "small", "colour": None},
        {"name": "dog", "size": "big", "colour": "brown"},
        {"name": "dog", "size": "small", "colour": "brown"},
        {"name": "boy", "size": "small", "colour": None},
    ]


def cases():
    yield {"noun": "dog", "colour": "brown", "size": "small"}, _things()
    yield {"noun": "kid"}, _things()
    yield {"noun": "dog", "colour": "brown"}, _things()
    yield {"noun": "dog", "colour": "white"}, _things()


hints = (
    "Go through `enumerate(things)`, and keep the positions of those that pass every test.",
    "`GROUPS.get(noun, (noun,))` are the names that a noun stands for. The thing's name must be among them.",
    "For the rest: `all(thing[key] == value for key, value in form.items() if key != 'noun')`.",
)


def wrong_group(form, things):
    """you compare the noun with the name. Nothing is called `kid`: girls and boys are meant. Ask `GROUPS`
    which names a noun stands for."""
    return {
        i
        for i, thing in enumerate(things)
        if thing["name"] == form["noun"] and all(thing[k] == v for k, v in form.items() if k != "noun")
    }


def wrong_first(form, things):
    """you stop at the first. But the question is whether there are others: collect all."""
    return set(sorted(denoted(form, things))[:1])


def wrong_any(form, things):
    """for you, one condition that holds is enough. A small brown dog is small *and* brown: `all`, not
    `any`."""
    names = GROUPS.get(form["noun"], (form["noun"],))
    conditions = {key: value for key, value in form.items() if key != "noun"}
    return {
        i
        for i, thing in enumerate(things)
        if thing["name"] in names and (not conditions or any(thing[k] == v for k, v in conditions.items()))
    }


def wrong_noun_only(form, things):
    """you look at the noun alone. The other conditions have to hold, too."""
    return denoted({"noun": form["noun"]}, things)


# %% points=3
check(denoted)

# %% [markdown]
# From here on the lesson uses `resolve(form, scene)`, which also knows places, clothes, relations and
# order. Four sentences about one scene; marked is everything that they denote.

# %%
scene = sample_scene("data/265")
snow = paint(scene, 192)
forms = {
    "person": Form("person"),
    "person in red shirt": Form("person", wears=("shirt", "red")),
    "woman in red shirt": Form("woman", wears=("shirt", "red")),
    "woman in white skirt": Form("woman", wears=("skirt", "white")),
}
found = [sorted(resolve(form, scene)) for form in forms.values()]

# %%
show(
    gallery(
        [marked(snow.image, snow.masks[things].any(0), scale=2) for things in found],
        [f"“{text}”\n{len(things)} of them" for text, things in zip(forms, found, strict=True)],
    ),
    alt="Three, three, two and one person are marked, as the sentences become more exact.",
)

# %% [markdown]
# The second sentence is *longer* than the first, and not clearer: all three wear red. **How much a word
# tells depends on what else is in the picture.** This is why a network must look at the whole picture for
# every sentence.
#
# How often is a short sentence enough? We ask of many scenes, and of every thing that is not the only one
# of its category: does the sentence denote it alone?


# %%
def looks(thing):
    """A thing's colour; of people, the colour of the shirt."""
    return {"wears": ("shirt", thing.outfit.shirt)} if thing.outfit else {"colour": thing.colour}


def place(thing):
    """Left, right or middle, where one of them holds."""
    return {"place": next((p for p in ("left", "right", "middle") if PLACES[p](thing, 0.0)), None)}


# %%
ways = {
    "name": lambda thing: Form(thing.name),
    "name, looks": lambda thing: Form(thing.name, **looks(thing)),
    "name, place": lambda thing: Form(thing.name, **place(thing)),
    "name, looks, place": lambda thing: Form(thing.name, **looks(thing), **place(thing)),
}

# %%
alone = {way: [] for way in ways}
for number in range({"ci": 100, "cpu": 2000, "gpu": 2000}[profile]):
    scene = sample_scene(f"many/{number}")
    categories = [thing.category for thing in scene.things]
    for i, thing in enumerate(scene.things):
        if categories.count(thing.category) > 1:
            for way, form in ways.items():
                alone[way].append(resolve(form(thing), scene) == {i})
percent = {way: 100 * np.mean(answers) for way, answers in alone.items()}

# %%
show(
    bars(percent, "The sentence denotes one thing alone", "percent of things", colours=TRUTH),
    alt="The name alone is enough for few things, name and place for more, all three for most.",
)

# %% [markdown]
# The name alone leaves most things ambiguous. Looks help, a place helps, and both together still do not
# settle everything: then one needs an order (*second dog from the left*) or another thing (*the dog behind
# the car*).
#
# RefMini is stricter than this exercise. Is a thing at 0.36 of the width still *on the left*? People would
# quarrel. So RefMini asks with every border moved a little inwards and outwards, and keeps a sentence only
# if it denotes the same single thing each time.

# %% [markdown]
# ## 8 · Look around
#
# Nothing replaces looking at data. Choose a flavour and a kind, and turn the pages.

# %%
flavour_box = ipywidgets.Dropdown(options=FLAVOURS, value="refminig", description="flavour")
kind_box = ipywidgets.Dropdown(options=("any", *KINDS), value="relation", description="kind")
page_box = ipywidgets.IntSlider(value=0, min=0, max=99, description="page")
note_box = ipywidgets.Label()


def page():
    """What the controls ask for -> a figure of four samples, and its alt text."""
    world = worlds[flavour_box.value]
    fitting = [i for i, record in enumerate(world.records) if kind_box.value in ("any", record.kind)]
    note_box.value = f"{len(fitting)} sentences of this kind" if fitting else "none: here is any kind"
    fitting = random.Random(0).sample(fitting or range(len(world)), len(fitting or world))
    four = [world[fitting[(4 * page_box.value + k) % len(fitting)]] for k in range(4)]
    captions = [f"“{s.expression}”\n{s.kind}, {s.split}" for s in four]
    return gallery([marked(s.image, s.mask) for s in four], captions), "; ".join(captions).replace("\n", ", ")


# %%
figure, alt = page()
browser = show(figure, alt=f"Four samples: {alt}")


def turn(change):
    figure, alt = page()
    browser.update(figure, alt=f"Four samples: {alt}")


for box in (flavour_box, kind_box, page_box):
    box.observe(turn, "value")
display(ipywidgets.HBox([flavour_box, kind_box, page_box]), note_box)

# %% [markdown]
# > **Think!** Choose `refminig` and the kind *category*: here the noun alone would do, and yet the
# > sentences are long. What can a network learn about *left of* from such a sentence? And what from one of
# > the kind *relation*, where nothing else decides?
#
# The real thing looks the same in code: `open_split("data/refcoco/refs(unc).p", "val")` of `rislib.data`
# opens RefCOCO, once its files and COCO's pictures are there. `data/README.md` says how to get them.
# (Profile `gpu` runs the same cells as `cpu` in this lesson.)

# %% [markdown]
# ## 9 · What the papers claim, what we measured
#
# Papers state how large the datasets are, and what makes them differ. Let us hold that against the numbers.

# %%
claims = {"refcoco": (19_994, 142_210), "refcoco+": (19_992, 141_564), "refcocog": (26_711, 104_560)}
print(f"{'':10} {'stated: pictures':>17} {'sentences':>10} {'in the splits: pictures':>25} {'sentences':>10}")
for (dataset, split_by), splits in PUBLISHED.items():
    if split_by != "google":
        pictures = sum(size.images for size in splits.values())
        sentences = sum(size.sentences for size in splits.values())
        stated = claims[dataset]
        print(f"{dataset:10} {stated[0]:17,} {stated[1]:10,} {pictures:25,} {sentences:10,}")

# %%
where = set(PLACES) | {"center", "corner", "front", "back", "nearest", "closest", "farthest"}
for flavour, world in worlds.items():
    words = [record.expression.split() for record in world.records]
    say_where = np.mean([not where.isdisjoint(sentence) for sentence in words])
    mean = np.mean([len(sentence) for sentence in words])
    print(f"{flavour:9} {mean:4.1f} words a sentence, {say_where:4.0%} of them with a word of place")

# %% [markdown]
# | claim | claimed by | what we found |
# |---|---|---|
# | RefCOCO has 142,210 sentences, RefCOCO+ 141,564 | CRIS | the splits add up to just that |
# | RefCOCOg has 26,711 pictures, 104,560 sentences | CRIS | the splits in use have 25,799 and 95,010 |
# | RefCOCO+ has no words of place | TFDS | RefMini+ has none: built so. RefCOCO+ not counted |
# | RefCOCO has 3.5 words a sentence, RefCOCOg 8.4 | TFDS | RefMini 3.3, RefMinig 7.3: a little shorter |
# | Google's splits share pictures | TFDS | at least 83 % of val in RefCOCO, 76 % in RefCOCOg |
#
# (CRIS: Wang et al., CVPR 2022. TFDS: the catalogue of TensorFlow Datasets, on Kazemzadeh et al. 2014, Yu
# et al. 2016 and Mao et al. 2016.)
#
# The second line is a claim about something that nobody measures. Google's test part of RefCOCOg was never
# released. That is presumably where the rest is: counted in the paper, and in no experiment.
#
# What RefMini cannot replicate: people's mistakes, their thousands of words, and pictures that nobody drew.

# %% [markdown]
# ## Summary
#
# - A reference is a thing with an `ann_id`, and several sentences; each sentence is a sample.
# - Masks are kept as polygons (no holes, x first) or as run lengths (down the columns, False first).
# - RefCOCO, RefCOCO+ and RefCOCOg differ in how people were asked. A number is worth nothing without its
#   dataset, its split, and who split it.
# - Whether a sentence means one thing only depends on everything else in the picture.
#
# **Next:** lesson 02 shows what CLIP sees in these pictures, before it has been told anything about masks.
