"""Masked language modelling (BERT: Devlin et al., 2019, arXiv 1810.04805): which word is missing?

The sentences are RefMini's, of all three flavours, and captions of whole scenes. Nobody paints the scenes.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rislib.data.refmini import FLAVOURS, describe, sample_scene, speak
from rislib.encoders.bert import BertEncoder
from rislib.encoders.tokenizers import ClipTokenizer, hide_words
from rislib.nouns import Batch, Preprocessing
from rislib.pretraining.learner import Learner
from rislib.pretraining.scenes import Scenes
from rislib.training import Recipe

BLANK = np.zeros((1, 1, 3), dtype=np.uint8)


def spoken(seed: str) -> tuple[np.ndarray, list[str]]:
    """A blank pixel, and about twenty sentences about a scene, a line each."""
    rng = random.Random(f"talk/{seed}")
    scene = sample_scene(seed)
    said = [describe(scene, rng)[0] for _ in range(5)]
    for flavour in FLAVOURS:
        for target in rng.sample(range(len(scene.things)), 2):
            said += [expression.text for expression in speak(scene, target, flavour, rng)]
    return BLANK, ["\n".join(said)]


class WordHead(nn.Module):
    """Guesses words from their states, with the embeddings that it is handed as last layer."""

    def __init__(self, width: int, words: int) -> None:
        super().__init__()
        self.transform = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.LayerNorm(width))
        self.bias = nn.Parameter(torch.zeros(words))

    def forward(self, x: Tensor, embeddings: Tensor) -> Tensor:
        """States (N, width), embeddings (V, width) -> logits over the vocabulary (N, V), float32."""
        return (self.transform(x) @ embeddings.T + self.bias).float()


class MaskedWords(Learner):
    """A BERT with the head that guesses words. A sample's expression holds many sentences, a line each.

    Tried for 900 steps, by the perplexity of hidden words: a rate of 2e-3 gives 3.9, 1e-3 gives 4.3. For 200
    steps: 4e-3 gives 12.7, 2e-3 11.2, 1e-3 19.5.
    """

    recipe = Recipe(learning_rate=2e-3, weight_decay=0.01, warmup=0.05, batch_size=8, clip_norm=1.0)
    preprocessing = Preprocessing(1, "stretch", (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))  # of a blank pixel
    draw = staticmethod(spoken)

    def __init__(self, encoder: BertEncoder, tokenizer: ClipTokenizer) -> None:
        super().__init__()
        self.encoder = encoder
        self.tokenizer = tokenizer
        self.head = WordHead(encoder.width, tokenizer.vocab_size)

    def tokenize(self, expressions: Sequence[str]) -> tuple[Tensor, Tensor]:
        return self.tokenizer([sentence for lines in expressions for sentence in lines.split("\n")])

    def forward(self, tokens: Tensor, token_mask: Tensor, asked: Tensor) -> Tensor:
        """tokens (B, L), asked (B, L) bool -> logits over the vocabulary (number asked, V)."""
        words = self.encoder.model.embeddings.word_embeddings.weight  # (V, width)
        return self.head(self.encoder(tokens, token_mask)[asked], words)

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """Cross entropy at the words that are asked for; those that nobody asks for teach nothing."""
        tokens, asked = hide_words(batch.tokens, self.tokenizer, self.tokenizer.vocab_size)
        logits = self(tokens, batch.token_mask, asked)
        loss = F.cross_entropy(logits, batch.tokens[asked], reduction="sum")
        return {"masked_words": loss / asked.sum().clamp(min=1)}  # a short batch may ask for none

    @torch.inference_mode()
    def measure(self, samples: Scenes) -> dict:
        """Perplexity and percent right at hidden words, and those of the best guess without the sentence."""
        self.eval()
        device = next(self.parameters()).device
        torch.manual_seed(0)
        logits, words = [], []
        for start in range(0, len(samples), 8):
            texts = [samples[i].expression for i in range(start, min(start + 8, len(samples)))]
            tokens, token_mask = (t.to(device) for t in self.tokenize(texts))
            masked, asked = hide_words(
                tokens, self.tokenizer, self.tokenizer.vocab_size, masked=1.0, random=0.0
            )
            logits.append(self(masked, token_mask, asked).cpu())
            words.append(tokens[asked].cpu())
        logits, words = torch.cat(logits), torch.cat(words)
        often = torch.bincount(words, minlength=self.tokenizer.vocab_size) / len(words)
        return {
            "hidden_words": {
                "asked": len(words),
                "perplexity": round(F.cross_entropy(logits, words).exp().item(), 3),
                "percent_right": round(100 * (logits.argmax(1) == words).float().mean().item(), 2),
                "unigram_perplexity": round(math.exp(torch.special.entr(often).sum()), 3),
                "unigram_percent_right": round(100 * often.max().item(), 2),
            }
        }
