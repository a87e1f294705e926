"""How the mini encoders came to know what things look like and what they are called.

Contrastive pretraining (CLIP: Radford et al. 2021, arXiv 2103.00020) on RefMini scenes that no
other split ever shows. A captioned scene is a `Sample` without a mask, so `rislib.training.fit`
does the work; this file says what is trained on what, and keeps the result with its papers.
"""

from __future__ import annotations

import json
import math
import random
from collections import defaultdict
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
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
from rislib.data.transforms import Letterbox
from rislib.encoders import load_weights, shipped_file
from rislib.encoders.clip import MEAN, STD, ClipEncoder, clip_rn_mini, clip_vit_mini
from rislib.encoders.tokenizers import ClipTokenizer, build_vocabulary
from rislib.nouns import Batch, Preprocessing, Sample
from rislib.training import Recipe, fit, provenance

RECIPE = Recipe(learning_rate=2e-3, weight_decay=0.05, warmup=0.05, batch_size=64, clip_norm=1.0)
BUILDERS = {"clip-rn": (clip_rn_mini, 96), "clip-vit": (clip_vit_mini, 128)}  # and the pictures' side, pixels


class Contrastive(nn.Module):
    """A CLIP with its loss. Has what `fit` asks of a method.

    A sample's expression holds several captions of its picture, a line each, and after a tab the lie of each.

    Two changes to CLIP's loss, ours, since minutes are not weeks. Captions of strangers differ in what they
    name, so that a tower would never need places or sizes: each picture also tells its captions from their
    lies (as in NegCLIP, Yuksekgonul et al., 2023, arXiv 2210.01936). And besides the picture's vector, the
    best of its dense features answers (as in FILIP, Yao et al., 2022, arXiv 2111.07783).
    """

    def __init__(self, encoder: ClipEncoder, tokenizer: ClipTokenizer, size: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.tokenizer = tokenizer
        self.preprocessing = Preprocessing(size, "letterbox", MEAN, STD)

    def tokenize(self, expressions: Sequence[str]) -> tuple[Tensor, Tensor]:
        """B bundles of K captions -> tokens (2 * B * K, L): first all captions, then all lies."""
        pairs = [pair.split("\t") for bundle in expressions for pair in bundle.split("\n")]
        return self.tokenizer([caption for caption, _ in pairs] + [lie for _, lie in pairs])

    def encoder_parameters(self) -> Iterable[nn.Parameter]:
        return ()

    def forward(self, image: Tensor, tokens: Tensor) -> dict[str, Tensor]:
        """B pictures, T captions -> similarities (B, T), scaled: by the pictures' vectors, by their cells."""
        seen = self.encoder.encode_image(image)
        sentences = F.normalize(self.encoder.encode_text(tokens).sentence.float(), dim=-1)  # (T, C)
        vectors = F.normalize(seen.vector.float(), dim=-1)  # (B, C)
        cells = F.normalize(seen.dense.float().flatten(2).transpose(1, 2), dim=-1)  # (B, h*w, C)
        scale = self.encoder.model.logit_scale.exp().clamp(max=100)
        by_cell = scale * cells.flatten(0, 1) @ sentences.T  # (B*h*w, T)
        by_cell = by_cell.unflatten(0, cells.shape[:2])  # (B, h*w, T)
        return {
            "global": scale * vectors @ sentences.T,
            "local": by_cell.logsumexp(dim=1) - math.log(cells.shape[1]),  # near the best cell's
        }

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """Each picture finds its captions, and each caption its picture, among those of the batch."""
        losses = {}
        for name, similarity in self(batch.image, batch.tokens).items():
            pictures = len(similarity)
            captions, lies = similarity.unflatten(1, (2, pictures, -1)).unbind(1)  # (B, B, K) each
            own = torch.arange(pictures, device=similarity.device)
            own_lies = lies[own, own]  # (B, K)
            by_caption = captions.permute(2, 0, 1)  # (K, B, B), a row per picture
            lies_too = own_lies.expand(len(by_caption), -1, -1)  # (K, B, K)
            candidates = torch.cat([by_caption, lies_too], dim=2)  # (K, B, B + K)
            target = own.repeat(len(by_caption))
            losses[f"{name}_picture_to_caption"] = F.cross_entropy(candidates.flatten(0, 1), target) / 4
            losses[f"{name}_caption_to_picture"] = F.cross_entropy(by_caption.mT.flatten(0, 1), target) / 4
        return losses


class CaptionedScenes(Sequence[Sample]):
    """Painted scenes, each with several bundles of captions: as many references with as many sentences."""

    def __init__(
        self,
        seed: str,
        scenes: int,
        bundles: int = 6,
        captions: int = 2,
        size: int = 96,
        progress: bool = True,
    ) -> None:
        self.bundles = bundles
        draw = partial(_draw, bundles=bundles, captions=captions, size=size)
        seeds = [f"pretrain/{seed}/{i}" for i in range(scenes)]
        with ProcessPoolExecutor(initializer=torch.set_num_threads, initargs=(1,)) as pool:
            drawn = pool.map(draw, seeds, chunksize=64)
            drawn = list(tqdm(drawn, total=scenes, desc="drawing scenes", disable=not progress))
        self.pixels = np.stack([pixels for pixels, _ in drawn])  # (scenes, size, size, 3) uint8
        self.captions = [captions for _, captions in drawn]
        self._no_mask = np.zeros((size, size), dtype=bool)

    def __len__(self) -> int:
        return len(self.captions) * self.bundles

    def __getitem__(self, index: int) -> Sample:
        scene, bundle = divmod(index, self.bundles)
        return Sample(
            image=Image.fromarray(self.pixels[scene]),
            expression=self.captions[scene][bundle],
            mask=self._no_mask,
            image_id=scene,
            ann_id=scene,
            ref_id=scene,
            sent_id=index,
            split="pretrain",
            category="scene",
        )

    def by_reference(self) -> list[list[int]]:
        n = self.bundles
        return [list(range(i * n, i * n + n)) for i in range(len(self.captions))]


def _draw(seed: str, bundles: int, captions: int, size: int) -> tuple[np.ndarray, list[str]]:
    """A painted scene and its captions. Half of the scenes show one thing, as most pictures on the web do."""
    rng = random.Random(f"describe/{seed}")
    scene = sample_scene(seed)
    few = sorted(rng.sample(range(len(scene.things)), rng.choice((1, 1, 1, 2, 3, len(scene.things)))))
    scene = replace(scene, things=tuple(scene.things[i] for i in few))
    as_seen = Letterbox(128, 128, size).image(paint(scene, 128).image)  # as RefMini's pictures are seen
    pixels = np.asarray(as_seen)
    return pixels, [
        "\n".join("\t".join(describe(scene, rng)) for _ in range(captions)) for _ in range(bundles)
    ]


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
    said: set[str] = set()
    for i in range(scenes):
        scene, rng = sample_scene(f"vocabulary/{i}"), random.Random(f"vocabulary/{i}")
        said.update(describe(scene, rng))
        for flavour in FLAVOURS:
            said.update(e.text for e in speak(scene, rng.randrange(len(scene.things)), flavour, rng))
    return build_vocabulary(said)


@torch.inference_mode()
def retrieval_accuracy(
    model: Contrastive, samples: CaptionedScenes, candidates: int = 192
) -> dict[str, float]:
    """Percent of captions that find their picture among `candidates`, and the other way round.

    "truth" is the percent of captions that the picture likes better than their lie.
    """
    model.eval()
    device = next(model.parameters()).device
    found: dict[str, list[float]] = defaultdict(list)
    firsts = [sentences[0] for sentences in samples.by_reference()]
    for start in range(0, len(firsts) - candidates + 1, candidates):
        chosen = [samples[i] for i in firsts[start : start + candidates]]
        batch = make_batch(chosen, model.preprocessing, model.tokenize).to(device)
        own = torch.arange(candidates, device=device)
        for name, similarity in model(batch.image, batch.tokens).items():
            captions, lies = similarity.unflatten(1, (2, candidates, -1)).unbind(1)  # (B, B, K)
            first = captions[:, :, 0]
            found[f"{name}_picture_to_caption"].append((first.argmax(1) == own).float().mean().item())
            found[f"{name}_caption_to_picture"].append((first.argmax(0) == own).float().mean().item())
            found[f"{name}_truth"].append((captions[own, own] > lies[own, own]).float().mean().item())
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
    samples = CaptionedScenes(f"train/{seed}", scenes, size=size)
    held_out = CaptionedScenes(f"test/{seed}", test_scenes, bundles=1, size=size)

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
