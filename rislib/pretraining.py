"""How the mini encoders came to know what things look like and what they are called.

Contrastive pretraining (CLIP: Radford et al. 2021, arXiv 2103.00020) on RefMini scenes that no
other split ever shows. A captioned scene is a `Sample` without a mask, so `rislib.training.fit`
does the work; this file says what is trained on what, and keeps the result with its papers.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import torch
from open_clip.modified_resnet import ModifiedResNet
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm.auto import tqdm

from rislib.data.batches import make_batch
from rislib.data.refmini import FLAVOURS, describe, paint, sample_scene, speak
from rislib.encoders import shipped_file
from rislib.encoders.clip import MEAN, STD, ClipEncoder, clip_rn_mini, clip_vit_mini, load_weights
from rislib.encoders.tokenizers import ClipTokenizer, build_vocabulary
from rislib.nouns import Batch, Preprocessing, Sample
from rislib.training import Recipe, fit, provenance

RECIPE = Recipe(learning_rate=2e-3, weight_decay=0.05, warmup=0.05, batch_size=80, clip_norm=1.0)
BUILDERS = {"clip-rn": (clip_rn_mini, 96), "clip-vit": (clip_vit_mini, 128)}  # and the pictures' side, pixels


class Contrastive(nn.Module):
    """A CLIP with its loss. Has what `fit` asks of a method.

    Captions are mostly told apart by what they name, so that a tower need not learn where things are. Hence a
    hard negative, ours: each picture whose caption says "left" or "right" is there a second time, mirrored,
    with the two words exchanged.
    """

    def __init__(self, encoder: ClipEncoder, tokenizer: ClipTokenizer, size: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.tokenizer = tokenizer
        self.preprocessing = Preprocessing(size, "letterbox", MEAN, STD)
        self.register_buffer("mirrored", _left_for_right(tokenizer.pieces), persistent=False)

    def tokenize(self, expressions: Sequence[str]) -> tuple[Tensor, Tensor]:
        return self.tokenizer(expressions)

    def encoder_parameters(self) -> Iterable[nn.Parameter]:
        return ()

    def forward(self, image: Tensor, tokens: Tensor) -> Tensor:
        """B pictures and captions -> scaled similarities (B, B), a row per picture."""
        images, sentences, scale = self.encoder(image, tokens)
        return scale.clamp(max=100) * images.float() @ sentences.float().T

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """Each picture finds its caption, and each caption its picture, among those of the batch."""
        exchanged = self.mirrored[batch.tokens]  # (B, L)
        sided = (exchanged != batch.tokens).any(dim=1)  # (B,), whose caption says left or right
        image = torch.cat([batch.image, batch.image[sided].flip(-1)])
        similarity = self(image, torch.cat([batch.tokens, exchanged[sided]]))
        own = torch.arange(len(similarity), device=similarity.device)
        return {
            "picture_to_caption": F.cross_entropy(similarity, own) / 2,
            "caption_to_picture": F.cross_entropy(similarity.T, own) / 2,
        }


def _left_for_right(pieces: Sequence[str]) -> Tensor:
    """For each id of a vocabulary, the id to read in a mirror: (V,) int64."""
    mirror = {"left": "right", "right": "left", "left</w>": "right</w>", "right</w>": "left</w>"}
    return torch.tensor([pieces.index(mirror.get(piece, piece)) for piece in pieces])


class CaptionedScenes(Sequence[Sample]):
    """Painted scenes, each with several captions: as many references with as many sentences."""

    def __init__(
        self, seed: str, scenes: int, captions: int = 8, size: int = 128, progress: bool = True
    ) -> None:
        self.captions_per_scene = captions
        draw = partial(_draw, captions=captions, size=size)
        seeds = [f"pretrain/{seed}/{i}" for i in range(scenes)]
        with ProcessPoolExecutor() as pool:
            drawn = pool.map(draw, seeds, chunksize=64)
            drawn = list(tqdm(drawn, total=scenes, desc="drawing scenes", disable=not progress))
        self.pixels = np.stack([pixels for pixels, _ in drawn])  # (scenes, size, size, 3) uint8
        self.captions = [captions for _, captions in drawn]
        self._no_mask = np.zeros((size, size), dtype=bool)

    def __len__(self) -> int:
        return len(self.captions) * self.captions_per_scene

    def __getitem__(self, index: int) -> Sample:
        scene, caption = divmod(index, self.captions_per_scene)
        return Sample(
            image=Image.fromarray(self.pixels[scene]),
            expression=self.captions[scene][caption],
            mask=self._no_mask,
            image_id=scene,
            ann_id=scene,
            ref_id=scene,
            sent_id=index,
            split="pretrain",
            category="scene",
        )

    def by_reference(self) -> list[list[int]]:
        n = self.captions_per_scene
        return [list(range(i * n, i * n + n)) for i in range(len(self.captions))]


def _draw(seed: str, captions: int, size: int) -> tuple[np.ndarray, list[str]]:
    scene = sample_scene(seed)
    rng = random.Random(f"describe/{seed}")
    return np.asarray(paint(scene, size).image), [_caption(scene, rng) for _ in range(captions)]


def _caption(scene, rng: random.Random) -> str:
    """Mostly a description; now and then one thing is told apart as in a referring expression."""
    caption = describe(scene, rng)
    if rng.random() < 0.4:
        spoken = speak(scene, rng.randrange(len(scene.things)), rng.choice(FLAVOURS), rng, sentences=1)
        caption = " and ".join([caption] + [expression.text for expression in spoken])
    return caption


@torch.no_grad()
def _set_lengths(model: Contrastive, samples: CaptionedScenes) -> None:
    """Bring pictures' and captions' vectors to a mean square of 1/4 per channel.

    CLIP compares directions, so lengths are left to chance, and by chance they would drown what a
    segmentation network adds to these vectors.
    """
    model.eval()
    batch = make_batch(
        [samples[i] for i in range(min(256, len(samples)))], model.preprocessing, model.tokenize
    )
    batch = batch.to(next(model.parameters()).device)
    clip = model.encoder.model
    images = model.encoder.encode_image(batch.image, dense=False).vector
    sentences = model.encoder.encode_text(batch.tokens).sentence
    clip.text_projection.mul_(0.5 / sentences.pow(2).mean().sqrt())
    factor = 0.5 / images.pow(2).mean().sqrt()
    if isinstance(clip.visual, ModifiedResNet):
        clip.visual.attnpool.c_proj.weight.mul_(factor)
        clip.visual.attnpool.c_proj.bias.mul_(factor)
    else:
        clip.visual.proj.mul_(factor)


def vocabulary(scenes: int = 4000) -> list[str]:
    """Every word piece that RefMini says, sorted: how data/vocab/refmini.txt was made."""
    captions = (
        _caption(sample_scene(s), random.Random(s)) for s in (f"vocabulary/{i}" for i in range(scenes))
    )
    return build_vocabulary(captions)


@torch.inference_mode()
def retrieval_accuracy(
    model: Contrastive, samples: CaptionedScenes, candidates: int = 192
) -> dict[str, float]:
    """Percent of captions that find their picture among `candidates`, and the other way round."""
    model.eval()
    device = next(model.parameters()).device
    found = {"caption_to_picture": [], "picture_to_caption": []}
    firsts = [sentences[0] for sentences in samples.by_reference()]
    for start in range(0, len(firsts) - candidates + 1, candidates):
        chosen = [samples[i] for i in firsts[start : start + candidates]]
        batch = make_batch(chosen, model.preprocessing, model.tokenize).to(device)
        similarity = model(batch.image, batch.tokens)
        own = torch.arange(candidates, device=device)
        found["picture_to_caption"].append((similarity.argmax(1) == own).float().mean().item())
        found["caption_to_picture"].append((similarity.argmax(0) == own).float().mean().item())
    return {name: round(100 * float(np.mean(values)), 2) for name, values in found.items()}


def pretrain(
    name: str,
    *,
    minutes: float,
    out: Path | str,
    seed: int = 0,
    scenes: int = 32_000,
    test_scenes: int = 1_920,
    start: Path | str | None = None,
    resume: bool = False,
) -> dict:
    """Pretrain `clip-rn` or `clip-vit`; writes out/NAME.safetensors (half precision) and out/NAME.json.

    The training itself is kept in runs/pretrain-NAME, from where `resume` goes on. `start` takes the weights
    of an earlier pretraining, whose record then stands in the new one.

    The JSON holds recipe, seed, machine, learning curve and retrieval accuracy on `test_scenes` scenes never
    trained on. Returns it.
    """
    origin = provenance()  # now: the commit may be another one when the training ends
    torch.manual_seed(seed)
    tokenizer = ClipTokenizer(32, shipped_file("vocab/refmini.txt"), trim=True)
    builder, size = BUILDERS[name]
    model = Contrastive(builder(tokenizer.vocab_size), tokenizer, size)
    if start is not None:
        load_weights(model.encoder, start)
    samples = CaptionedScenes(f"train/{seed}", scenes)
    held_out = CaptionedScenes(f"test/{seed}", test_scenes, captions=1)

    out, folder = Path(out), Path("runs") / f"pretrain-{name}"
    run = fit(
        model,
        samples,
        RECIPE,
        out=folder,
        seed=seed,
        minutes=minutes,
        resume=resume,
        log_every=20,
        channels_last=True,
    )
    _set_lengths(model, held_out)
    record = {
        "name": name,
        "start": start and json.loads(Path(start).with_suffix(".json").read_text()),
        "parameters": sum(p.numel() for p in model.parameters()),
        "recipe": {**vars(RECIPE), "minutes": minutes, "scenes": scenes, "seed": seed},
        "samples_seen": run.samples,
        "retrieval_percent_of_192": retrieval_accuracy(model, held_out),
        **origin,
        "curve": [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()][::20],
    }
    weights = {
        key: (value.half() if value.is_floating_point() else value).contiguous()
        for key, value in model.encoder.state_dict().items()
    }
    out.mkdir(parents=True, exist_ok=True)
    save_file(weights, out / f"{name}.safetensors")
    (out / f"{name}.json").write_text(json.dumps(record, indent=1) + "\n")
    return record
