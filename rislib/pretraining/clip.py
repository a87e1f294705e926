"""Contrastive pretraining (CLIP: Radford et al., 2021, arXiv 2103.00020): whose caption is this?"""

from __future__ import annotations

import math
import random
from collections import defaultdict
from collections.abc import Sequence
from functools import partial

import numpy as np
import torch
from open_clip.modified_resnet import ModifiedResNet
from torch import Tensor
from torch.nn import functional as F

from rislib.data.batches import make_batch
from rislib.data.refmini import FLAVOURS, describe, sample_scene, speak
from rislib.data.transforms import Letterbox
from rislib.encoders.clip import MEAN, STD, ClipEncoder
from rislib.encoders.tokenizers import ClipTokenizer, build_vocabulary
from rislib.nouns import Batch, Preprocessing
from rislib.pretraining.learner import Learner
from rislib.pretraining.scenes import Scenes, as_seen, with_few_things
from rislib.training import Recipe


class Contrastive(Learner):
    """A CLIP with its loss.

    A sample's expression holds several captions of its picture, a line each, and after a tab the lie of each.

    Two changes to CLIP's loss, ours, since minutes are not weeks. Captions of strangers differ in what they
    name, so that a tower would never need places or sizes: each picture also tells its captions from their
    lies (as in NegCLIP, Yuksekgonul et al., 2023, arXiv 2210.01936). And besides the picture's vector, the
    best of its dense features answers (as in FILIP, Yao et al., 2022, arXiv 2111.07783).
    """

    recipe = Recipe(learning_rate=2e-3, weight_decay=0.05, warmup=0.05, batch_size=64, clip_norm=1.0)

    def __init__(self, encoder: ClipEncoder, tokenizer: ClipTokenizer, size: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.tokenizer = tokenizer
        self.preprocessing = Preprocessing(size, "letterbox", MEAN, STD)
        self.draw = partial(captioned, bundles=6, captions=2, size=size)

    def tokenize(self, expressions: Sequence[str]) -> tuple[Tensor, Tensor]:
        """B bundles of K captions -> tokens (2 * B * K, L): first all captions, then all lies."""
        pairs = [pair.split("\t") for bundle in expressions for pair in bundle.split("\n")]
        return self.tokenizer([caption for caption, _ in pairs] + [lie for _, lie in pairs])

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

    def finish(self, samples: Scenes) -> None:
        set_lengths(self, samples)

    def measure(self, samples: Scenes) -> dict:
        return {"retrieval_percent_of_192": retrieval_accuracy(self, samples)}


class Student(Contrastive):
    """A CLIP whose image tower learns to see what another one's sees, whose text tower it takes over.

    Captions do not say where anything is, and a ViT has no need to know: any of its patches may gather the
    whole picture and answer for it (Darcet et al., 2024, arXiv 2309.16588). Ours did: its best patch lay on
    the thing that was meant no more often than any other. A convolution cannot see so far, and a ViT learns
    from its maps in minutes (as DeiT did from its answers: Touvron et al., 2021, arXiv 2012.12877).

    Args:
        learner: the CLIP that is to be trained.
        teacher: one that is. Its map may be coarser.
    """

    def __init__(self, learner: Contrastive, teacher: ClipEncoder) -> None:
        super().__init__(learner.encoder, learner.tokenizer, learner.preprocessing.size)
        self.recipe = learner.recipe
        self.teacher = teacher.requires_grad_(False)
        known = {k: v for k, v in teacher.state_dict().items() if not k.startswith("model.visual.")}
        self.encoder.load_state_dict(self.encoder.state_dict() | known)
        self.encoder.requires_grad_(False).model.visual.requires_grad_(True)

    def train(self, mode: bool = True) -> Student:
        super().train(mode)
        self.teacher.eval()
        return self

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """What of the teacher's map and of its vector is left unexplained."""
        with torch.no_grad():
            told = self.teacher.encode_image(batch.image)
        seen = self.encoder.encode_image(batch.image)
        cells = F.adaptive_avg_pool2d(seen.dense.float(), told.dense.shape[2:])  # (B, C, h, w)
        return {
            "dense": unexplained(cells.movedim(1, -1).flatten(0, 2), told.dense.movedim(1, -1).flatten(0, 2)),
            "vector": unexplained(seen.vector, told.vector),
        }


def unexplained(answer: Tensor, truth: Tensor) -> Tensor:
    """(N, C) both -> the squared error as a share of the truth's variance: 1 for its mean, 0 for itself."""
    answer, truth = answer.float(), truth.float()
    return (answer - truth).square().sum() / (truth - truth.mean(dim=0)).square().sum()


def captioned(seed: str, bundles: int, captions: int, size: int) -> tuple[np.ndarray, list[str]]:
    """A painted scene and its captions."""
    rng = random.Random(f"describe/{seed}")
    scene = with_few_things(sample_scene(seed), rng)
    return as_seen(scene, Letterbox, size), [
        "\n".join("\t".join(describe(scene, rng)) for _ in range(captions)) for _ in range(bundles)
    ]


@torch.inference_mode()
def retrieval_accuracy(model: Contrastive, samples: Scenes, candidates: int = 192) -> dict[str, float]:
    """Percent of captions that find their picture among `candidates`, and the other way round.

    "truth" is the percent of captions that the picture likes better than their lie.
    """
    model.eval()
    device = next(model.parameters()).device
    found: dict[str, list[float]] = defaultdict(list)
    firsts = samples.firsts()
    for start in range(0, len(firsts) - candidates + 1, candidates):
        chosen = firsts[start : start + candidates]
        batch = make_batch(chosen, model.preprocessing, model.tokenize).to(device)
        own = torch.arange(candidates, device=device)
        for name, similarity in model(batch.image, batch.tokens).items():
            captions, lies = similarity.unflatten(1, (2, candidates, -1)).unbind(1)  # (B, B, K)
            first = captions[:, :, 0]
            found[f"{name}_picture_to_caption"].append((first.argmax(1) == own).float().mean().item())
            found[f"{name}_caption_to_picture"].append((first.argmax(0) == own).float().mean().item())
            found[f"{name}_truth"].append((captions[own, own] > lies[own, own]).float().mean().item())
    return {name: round(100 * float(np.mean(values)), 2) for name, values in found.items()}


@torch.no_grad()
def set_lengths(model: Contrastive, samples: Scenes) -> None:
    """Bring pictures' and captions' vectors to a mean square of 1/4 per channel.

    CLIP compares directions, so lengths are left to chance, and by chance they would drown what a
    segmentation network adds to these vectors.
    """
    model.eval()
    batch = make_batch(samples.firsts()[:256], model.preprocessing, model.tokenize)
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
