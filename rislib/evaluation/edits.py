"""How answers react to small edits, of the sentence and of the picture. RefMini only.

RefMini remembers of every picture the scene and of every sentence its logical form. An edit exchanges words;
the same exchange in the form says what the edited sentence means, and `resolve` which thing that is, if any.

    left_right      left <-> right, leftmost <-> rightmost
    top_bottom      top <-> bottom
    other_colour    the first colour that is named becomes another one
    other_name      the first noun becomes another name
    synonym         every word that RefMini has a synonym for becomes that ("lady" for "woman")
    shuffled        the words in random order
    mirrored        the picture mirrored left-right; the sentence names no side
    mirrored_kept   the picture mirrored, the sentence as it was, although it names a side
    mirrored_both   the picture mirrored, and left <-> right in the sentence

A word is exchanged wherever it occurs. The other colour, or name, is drawn among those with which the
sentence is clearly true of another thing of the picture; where there are none, among all. synonym, mirrored
and mirrored_both keep what is meant, and so does shuffled for whom order is nothing; of the others an edited
sentence is asked only if it is no longer true of the thing that was meant.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from PIL import ImageOps
from tqdm.auto import tqdm

from rislib.data import DataError, RefDataset, with_instances
from rislib.data.index import load_json
from rislib.data.refmini import COLOURS, Form, Scene, resolve, sample_scene
from rislib.data.refmini.build import SPLIT_BY, SPLITS
from rislib.data.refmini.forms import is_clear
from rislib.data.refmini.scene import MODELS
from rislib.data.refmini.wording import NTH, PICK_WORDS, RELATION_WORDS, SIZE_WORDS, SYNONYMS
from rislib.evaluation.metrics import Scores
from rislib.evaluation.protocols import Protocol
from rislib.evaluation.report import answers
from rislib.nouns import Method, Sample

SIDES = {"left": "right", "right": "left", "leftmost": "rightmost", "rightmost": "leftmost"}
ENDS = {"top": "bottom", "bottom": "top"}


@dataclass(frozen=True)
class Edit:
    """A question that differs a little from the one that was asked."""

    name: str
    expression: str
    meant: int | None  # place in the scene of the one thing it is clearly true of; None where there is none
    mirrored: bool = False  # whether the picture is


@dataclass(frozen=True)
class Memory:
    """What RefMini remembers of its pictures and sentences."""

    scenes: Mapping[int, Scene]  # by image id; things as annotated, in that order
    forms: Mapping[int, dict[str, Any]]  # by sent_id, as JSON


def remembered(samples: RefDataset) -> Memory | None:
    """The scenes and forms behind samples of RefMini; None for those of any other dataset.

    Raises:
        DataError: the scenes are other ones by now: a world drawn by an older version of rislib.
    """
    images = load_json(samples.folder / "instances.json")["images"]
    if not all("scene" in image for image in images):
        return None
    casts = {record.image_id: SPLITS[record.split] for record in samples.records}
    scenes = {i["id"]: sample_scene(i["scene"], casts[i["id"]]) for i in images if i["id"] in casts}
    objects = with_instances(samples, "oracle").source
    for image_id, scene in scenes.items():
        annotated = [objects.instances.category_of[ann_id] for ann_id in objects.of_picture[image_id]]
        if annotated != [thing.category for thing in scene.things]:
            raise DataError("its seeds give other scenes today: draw it again", file=str(samples.folder))
    references = load_json(samples.folder / f"refs({SPLIT_BY}).json")
    forms = {s["sent_id"]: s["form"] for reference in references for s in reference["sentences"]}
    return Memory(scenes, forms)


def edits_of(
    expression: str, form: dict[str, Any], scene: Scene, target: int, rng: random.Random
) -> Iterator[Edit]:
    """The question as it is, by the name "unedited", and every edit of it that applies.

    Args:
        form: of the expression, as RefMini's files have it.
        target: place in `scene.things` of the thing that is meant.
    """
    yield Edit("unedited", expression, target)
    words = expression.split()
    colours = [word for word in words if word in COLOURS][:1]
    nouns = SYNONYMS.get(form["noun"], (form["noun"],))
    tables = {
        "left_right": [SIDES],
        "top_bottom": [ENDS],
        "other_colour": [{colour: other} for colour in colours for other in COLOURS],
        "other_name": [dict.fromkeys(nouns, other) for other in MODELS],
    }
    for name, choices in tables.items():
        drawn = rng.sample(choices, len(choices))
        asked = [(swap(expression, table), swap(form, table)) for table in drawn]
        yield from _changed(name, [each for each in asked if each[0] != expression], scene, target)

    if (other := swap(expression, _synonyms())) != expression:
        yield Edit("synonym", other, target)
    if len(set(words)) > 1:
        order = words
        while order == words:
            order = rng.sample(words, len(words))
        yield Edit("shuffled", " ".join(order), target)

    if (swapped := swap(expression, SIDES)) == expression:
        yield Edit("mirrored", expression, target, mirrored=True)
    else:
        yield Edit("mirrored_both", swapped, target, mirrored=True)
        things = tuple(replace(thing, x=1 - thing.x, faces=-thing.faces) for thing in scene.things)
        for edit in _changed("mirrored_kept", [(expression, form)], replace(scene, things=things), target):
            yield replace(edit, mirrored=True)


def reactions(
    method: Method,
    samples: RefDataset,
    memory: Memory,
    protocol: Protocol,
    *,
    seed: int = 0,
    progress: bool = True,
) -> dict[str, dict[str, Any]]:
    """{name of the edit: how the answers changed}, at the pictures' own size. Plain numbers, in percent:

        n               edited questions
        same_answer     share whose answer is the one before: an IoU of at least 0.5 between the two masks
        iou             mean IoU between the two, and its 95 % "interval" (bootstrap over pictures)
        n_meant         edited questions that are clearly true of one thing
        right_before    share of these whose answer had an IoU of 0.5 with the thing meant, before the edit
        right_after     and after it, now with the thing that the edited question means

    Answers about a mirrored picture are mirrored back. Where both are empty there is nothing to compare: such
    questions are not in n. An edit that no sentence allows is missing. `memory` is `remembered(samples)`.
    """
    objects = with_instances(samples, "oracle").source
    asked = []
    for i, record in enumerate(samples.records):
        scene, form = memory.scenes[record.image_id], memory.forms[record.sent_id]
        target = objects.of_picture[record.image_id].index(record.ann_id)
        rng = random.Random(f"{seed}/{record.sent_id}")
        asked += [(i, edit) for edit in edits_of(record.expression, form, scene, target, rng)]

    protocol = replace(protocol, resolution="original")
    counts: dict[str, tuple[Scores, Scores, Scores]] = {}
    shown = (_edited(samples[i], edit) for i, edit in tqdm(asked, desc="edits", disable=not progress))
    for (i, edit), (_, scores) in zip(asked, answers(method, shown, protocol), strict=True):
        image_id, ann_id = samples.records[i].image_id, samples.records[i].ann_id
        masks, mask = objects.masks(image_id), protocol.foreground(scores)
        mask = mask[:, ::-1] if edit.mirrored else mask
        if edit.name == "unedited":
            before, truth = mask, masks[objects.of_picture[image_id].index(ann_id)]
        three = tuple(protocol.scores() for _ in range(3))
        between, right_before, right_after = counts.setdefault(edit.name, three)
        if mask.any() or before.any():
            between.add(mask, before, image_id=image_id)
        if edit.meant is not None:
            right_before.add(before, truth, image_id=image_id)
            right_after.add(mask, masks[edit.meant], image_id=image_id)
    return {name: _row(*scores) for name, scores in counts.items()}


def swap(value: Any, table: Mapping[str, str]) -> Any:
    """Words exchanged in a sentence, or in a form as JSON: in every text of it."""
    if isinstance(value, dict):
        return {key: swap(each, table) for key, each in value.items()}
    if isinstance(value, list):
        return [swap(each, table) for each in value]
    if not isinstance(value, str):
        return value
    text = " ".join(table.get(word, word) for word in value.split())
    return re.sub(r"\ban? (\w)", lambda m: ("an " if m[1] in "aeiou" else "a ") + m[1], text)


def _changed(
    name: str, asked: Sequence[tuple[str, dict[str, Any]]], scene: Scene, target: int
) -> Iterator[Edit]:
    """Of those questions that are not true of the target the first that is clear, else the first, if any."""
    found = []
    for expression, plain in asked:
        form = _form(plain)
        denoted = resolve(form, scene)
        if target not in denoted:
            meant = next((i for i in denoted if is_clear(form, scene, i)), None)
            found.append(Edit(name, expression, meant))
    yield from sorted(found, key=lambda edit: edit.meant is None)[:1]


def _form(plain: dict[str, Any]) -> Form:
    parts = {key: tuple(value) if isinstance(value, list) else value for key, value in plain.items()}
    if "relation" in parts:
        name, landmark = parts["relation"]
        parts["relation"] = name, _form(landmark)
    return Form(**parts)


def _synonyms() -> dict[str, str]:
    """Of RefMini's wordings, those single words of which there are several: each with the next one."""
    found = {}
    for wordings in (SYNONYMS, SIZE_WORDS, NTH, PICK_WORDS, RELATION_WORDS):
        for phrases in wordings.values():
            words = [word for phrase in phrases if " " not in (word := phrase.removesuffix(" {}"))]
            found |= dict(zip(words, words[1:] + words[:1], strict=True))
    return found


def _edited(sample: Sample, edit: Edit) -> Sample:
    sample = replace(sample, expression=edit.expression)
    if not edit.mirrored:
        return sample
    return replace(
        sample,
        image=ImageOps.mirror(sample.image),
        mask=sample.mask[:, ::-1],
        instances=None if sample.instances is None else sample.instances[:, :, ::-1],
        image_id=-1 - sample.image_id,  # a picture of its own
    )


def _row(between: Scores, before: Scores, after: Scores) -> dict[str, Any]:
    row: dict[str, Any] = {"n": len(between), "n_meant": len(after)}
    if len(between):
        low, high = between.interval("mIoU")
        row |= {"same_answer": round(between.precision_at(0.5), 2), "iou": round(between.mean_iou(), 2)}
        row["interval"] = [round(low, 2), round(high, 2)]
    for name, scores in (("right_before", before), ("right_after", after)):
        if len(scores):
            row[name] = round(scores.precision_at(0.5), 2)
    return row
