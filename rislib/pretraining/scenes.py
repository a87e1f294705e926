"""Scenes to pretrain on, drawn from seeds that no other split ever has."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace

import numpy as np
import torch
from PIL import Image
from tqdm.auto import tqdm

from rislib.data.refmini import Scene, paint
from rislib.data.transforms import Geometry
from rislib.nouns import Sample

Draw = Callable[[str], tuple[np.ndarray, list[str]]]  # seed -> pixels (h, w, 3) uint8, texts


class Scenes(Sequence[Sample]):
    """What is seen and said of many scenes: as many references, whose texts are their sentences.

    Args:
        draw: makes one scene of its seed; of each the same number of texts. Worker processes call it.
        seed: of all scenes. Whatever it is, it names none of RefMini's own.
    """

    def __init__(self, draw: Draw, seed: str, scenes: int, progress: bool = True) -> None:
        seeds = [f"pretrain/{seed}/{i}" for i in range(scenes)]
        with ProcessPoolExecutor(initializer=torch.set_num_threads, initargs=(1,)) as pool:
            drawn = pool.map(draw, seeds, chunksize=64)
            drawn = list(tqdm(drawn, total=scenes, desc="drawing scenes", disable=not progress))
        self.pixels = np.stack([pixels for pixels, _ in drawn])  # (scenes, h, w, 3) uint8
        self.texts = [texts for _, texts in drawn]
        self._no_mask = np.zeros(self.pixels.shape[1:3], dtype=bool)

    def __len__(self) -> int:
        return sum(map(len, self.texts))

    def __getitem__(self, index: int) -> Sample:
        scene, text = divmod(index, len(self.texts[0]))
        return Sample(
            image=Image.fromarray(self.pixels[scene]),
            expression=self.texts[scene][text],
            mask=self._no_mask,
            image_id=scene,
            ann_id=scene,
            ref_id=scene,
            sent_id=index,
            split="pretrain",
            category="scene",
        )

    def by_reference(self) -> list[list[int]]:
        n = len(self.texts[0])
        return [list(range(i * n, i * n + n)) for i in range(len(self.texts))]

    def firsts(self) -> list[Sample]:
        """Each scene once, with its first text."""
        return [self[indices[0]] for indices in self.by_reference()]


def with_few_things(scene: Scene, rng: random.Random) -> Scene:
    """Some of its things. Half of the time it is one, as in most pictures on the web."""
    few = sorted(rng.sample(range(len(scene.things)), rng.choice((1, 1, 1, 2, 3, len(scene.things)))))
    return replace(scene, things=tuple(scene.things[i] for i in few))


def as_seen(scene: Scene, geometry: type[Geometry], size: int) -> np.ndarray:
    """The scene's pixels (size, size, 3), brought to that size on the way that RefMini's pictures take."""
    return np.asarray(geometry(128, 128, size).image(paint(scene, 128).image))
