"""How the mini encoders came to know what things look like and what they are called.

Each learns from RefMini scenes that no other split ever shows: CLIP's towers whose caption this is (`clip`),
Swin what is in a picture (`swin`), BERT which word is missing (`bert`), and ViLT that as well, before a
picture, and whether a caption fits it (`vilt`). The segmenter learns where things end (`segmenter`). What
they learn from is a `Sample` without a mask, so `rislib.training.fit` does the work. This file keeps the
result with its papers.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import save_file

from rislib.encoders import load_weights
from rislib.encoders.bert import bert_mini
from rislib.encoders.clip import ClipEncoder, clip_rn_mini, clip_vit_mini
from rislib.encoders.segmenter import segmenter_mini
from rislib.encoders.swin import swin_mini
from rislib.encoders.tokenizers import mini_tokenizer
from rislib.encoders.vilt import vilt_mini
from rislib.pretraining.bert import MaskedWords
from rislib.pretraining.clip import Contrastive, Student, vocabulary
from rislib.pretraining.learner import Learner
from rislib.pretraining.scenes import Scenes
from rislib.pretraining.segmenter import Outlines
from rislib.pretraining.swin import Presence
from rislib.pretraining.vilt import TowersStudent, WordsAndMatches
from rislib.training import fit, provenance

__all__ = [
    "BUILDERS",
    "Contrastive",
    "Learner",
    "MaskedWords",
    "Outlines",
    "Presence",
    "Scenes",
    "Student",
    "TowersStudent",
    "WordsAndMatches",
    "pretrain",
    "vocabulary",
]


def _clip(builder: Callable, **recipe) -> Contrastive:
    tokenizer = mini_tokenizer()
    learner = Contrastive(builder(tokenizer.vocab_size), tokenizer, size=96)
    learner.recipe = replace(learner.recipe, **recipe)
    return learner


def _bert() -> MaskedWords:
    tokenizer = mini_tokenizer()
    # Sentences hardly ever come back, and never with the same words missing: nothing to learn by heart.
    return MaskedWords(bert_mini(tokenizer.vocab_size, dropout=0.0), tokenizer)


def _vilt() -> WordsAndMatches:
    tokenizer = mini_tokenizer()
    return WordsAndMatches(vilt_mini(tokenizer.vocab_size), tokenizer)


BUILDERS: dict[str, Callable[[], Learner]] = {
    "clip-rn": lambda: _clip(clip_rn_mini),
    "clip-vit": lambda: _clip(clip_vit_mini, learning_rate=1e-3),
    "swin": lambda: Presence(swin_mini()),
    "bert": _bert,
    "vilt": _vilt,
    "segmenter": lambda: Outlines(segmenter_mini()),
}

STUDENTS: dict[str, Callable[[Learner, ClipEncoder], Learner]] = {
    "clip-rn": Student,
    "clip-vit": Student,
    "vilt": TowersStudent,
}


def pretrain(
    name: str,
    *,
    minutes: float,
    out: Path | str,
    seed: int = 0,
    scenes: int = 32_000,
    test_scenes: int = 1_920,
    start: Path | str | None = None,
    teacher: Path | str | None = None,
    compile: bool = False,
    resume: bool = False,
) -> dict:
    """Pretrain an encoder of `BUILDERS`; writes out/NAME.safetensors (half precision) and out/NAME.json.

    The training itself is kept in runs/pretrain-NAME, from where `resume` goes on. `start` takes the weights
    of an earlier pretraining, whose record then stands in the new one. With `teacher`, the weights of a CLIP,
    another learns to see what that one sees (`Student`), and ViLT what it knows (`TowersStudent`). `compile`
    compiles the blocks of clip-vit's image tower: worth its minute from some ten minutes on, if there is a
    C++ compiler.

    Returns what was measured on `test_scenes` scenes never trained on. The JSON holds that, too, and recipe,
    seed, machine and learning curve.

    Raises:
        ValueError: a teacher for what has no use for one, or no ViT to compile.
    """
    if teacher is not None and name not in STUDENTS:
        raise ValueError(f"{name} cannot learn from a CLIP: only {', '.join(STUDENTS)} can")
    if compile and name != "clip-vit":
        raise ValueError(f"only the blocks of clip-vit can be compiled, not those of {name}")
    origin = provenance()  # now: the commit may be another one when the training ends
    torch.manual_seed(seed)
    learner = BUILDERS[name]()
    if start is not None:
        learner.begin(start)
    if teacher is not None:
        other = BUILDERS[Path(teacher).stem]().encoder
        load_weights(other, teacher)
        learner = STUDENTS[name](learner, other)
    if compile:
        for block in learner.encoder.model.visual.transformer.resblocks:
            block.compile()
    samples = Scenes(learner.draw, f"train/{seed}", scenes)
    held_out = Scenes(learner.draw, f"test/{seed}", test_scenes)

    out, folder = Path(out), Path("runs") / f"pretrain-{name}"
    run = fit(
        learner,
        samples,
        learner.recipe,
        out=folder,
        seed=seed,
        minutes=minutes,
        resume=resume,
        log_every=20,
        channels_last=True,
    )
    learner.finish(held_out)
    measured = learner.measure(held_out)
    record = {
        "name": name,
        "teacher": teacher and Path(teacher).stem,
        "start": start and json.loads(Path(start).with_suffix(".json").read_text()),
        "parameters": sum(p.numel() for p in learner.encoder.parameters()),
        "recipe": {**vars(learner.recipe), "minutes": minutes, "scenes": scenes, "seed": seed},
        "samples_seen": run.samples,
        **measured,
        **origin,
        "curve": [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()][::20],
    }
    weights = {
        key: (value.half() if value.is_floating_point() else value).contiguous()
        for key, value in learner.encoder.state_dict().items()
    }
    out.mkdir(parents=True, exist_ok=True)
    save_file(weights, out / f"{name}.safetensors")
    (out / f"{name}.json").write_text(json.dumps(record, indent=1) + "\n")
    return measured
