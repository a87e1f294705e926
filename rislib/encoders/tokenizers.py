"""From sentences to token ids.

`ClipTokenizer` is CLIP's byte-pair encoding (Radford et al., 2021, section 2.4), cut into pieces by
open_clip's table. The mini towers know only the few hundred pieces that RefMini ever says, so for them
the same pieces are renumbered by a compact vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from open_clip.tokenizer import SimpleTokenizer
from torch import Tensor

from rislib.encoders import shipped_file

PAD, UNKNOWN = 0, 1  # of a compact vocabulary
NEVER_SAID = 443  # of CLIP's own: byte 0xFF at a word's end, and no UTF-8 text has such a byte


class ClipTokenizer:
    """CLIP's tokenizer: lower-cased pieces between a start and an end token, zero padded.

    A sentence that is too long is cut, and its last id becomes the end token. The end token has the
    largest id of all, which is how CLIP finds it again.

    Args:
        context_length: L, the number of tokens including start and end.
        vocabulary: a text file with one byte-pair piece per line. Without it, ids are CLIP's own (49,408 of
            them). With it they are 0 for padding, 1 for any unlisted piece, 2... in the file's order, then
            start and end.
        trim: cut L to the longest sentence of each batch. The networks' results are the same, sooner.

    >>> tokens, token_mask = ClipTokenizer(context_length=17)(["the red cup"])  # (1, 17), (1, 17)
    """

    def __init__(
        self, context_length: int, vocabulary: str | Path | None = None, *, trim: bool = False
    ) -> None:
        if context_length < 2:
            raise ValueError(f"context_length must hold a start and an end token, got {context_length}")
        self.context_length = context_length
        self.vocabulary = vocabulary
        self.trim = trim
        if vocabulary is None:
            self.pieces = list(_bpe().encoder)  # ids are positions in CLIP's table
        else:
            listed = Path(vocabulary).read_text(encoding="utf-8").split()
            self.pieces = ["<pad>", "<unknown></w>", *listed, "<start_of_text>", "<end_of_text>"]
        self._ids = {piece: i for i, piece in enumerate(self.pieces)}
        if len(self._ids) != len(self.pieces):
            raise ValueError(f"{vocabulary} lists a piece more than once")

    @property
    def vocab_size(self) -> int:
        return len(self.pieces)

    @property
    def sot(self) -> int:
        return self.vocab_size - 2

    @property
    def eot(self) -> int:
        return self.vocab_size - 1

    @property
    def mask_id(self) -> int:
        """The id that stands for a hidden word: one that cannot be read.

        A compact vocabulary has its unknown piece for that. CLIP never hid a word, but it has pieces that no
        text contains.
        """
        return NEVER_SAID if self.vocabulary is None else UNKNOWN

    @property
    def special_ids(self) -> frozenset[int]:
        """Ids that are no words (padding, hidden, start, end): never to be hidden, never to be guessed."""
        return frozenset({PAD, self.mask_id, self.sot, self.eot})

    def __call__(self, sentences: Sequence[str]) -> tuple[Tensor, Tensor]:
        """B sentences -> tokens (B, L) int64 and token_mask (B, L) bool, True where the id is not 0.

        In CLIP's own numbering, id 0 is also an exclamation mark in the middle of other punctuation
        ("!@#"). Published networks mask it like padding, and so does this mask.
        """
        rows = [self._encode(sentence) for sentence in sentences]
        length = max((len(row) for row in rows), default=2) if self.trim else self.context_length
        tokens = torch.tensor([row + [PAD] * (length - len(row)) for row in rows], dtype=torch.int64)
        tokens = tokens.reshape(len(rows), length)  # a batch of no sentences has a length, too
        return tokens, tokens != PAD

    def decode(self, tokens: Iterable[int] | Tensor) -> str:
        """One row of ids (L,) -> the text between its start and its end token."""
        ids = [int(i) for i in tokens]
        ids = ids[ids.index(self.sot) + 1 :] if self.sot in ids else ids
        ids = ids[: ids.index(self.eot)] if self.eot in ids else ids
        letters = _bpe().byte_decoder  # pieces spell bytes with printable letters
        text = bytes(letters[letter] for i in ids for letter in self.pieces[i])
        return text.decode("utf-8", errors="replace").replace("</w>", " ").strip()

    def _encode(self, sentence: str) -> list[int]:
        ids = [self.sot, *(self._ids.get(piece, UNKNOWN) for piece in _pieces(sentence)), self.eot]
        return ids if len(ids) <= self.context_length else [*ids[: self.context_length - 1], self.eot]


def mini_tokenizer(vocabulary: str | Path | None = None) -> ClipTokenizer:
    """The one that the mini towers know: at most 32 tokens, RefMini's vocabulary unless another is given.

    Raises:
        FileNotFoundError: the vocabulary is not here; says what to do.
    """
    return ClipTokenizer(32, vocabulary or shipped_file("vocab/refmini.txt"), trim=True)


def hide_words(
    tokens: Tensor,
    tokenizer: Any,
    vocab_size: int,
    *,
    ratio: float = 0.15,
    masked: float = 0.8,
    random: float = 0.1,
    at_least_one: bool = False,
) -> tuple[Tensor, Tensor]:
    """Masked language modelling's input (BERT: Devlin et al., 2019, section 3.1), by torch's generator.

    Each word is chosen with probability `ratio`. Of those the share `masked` becomes `tokenizer.mask_id`,
    `random` becomes any word of the vocabulary, and the rest stays: a word that is there may not be the true
    one. Ids in `tokenizer.special_ids` are neither chosen nor put anywhere.

    Args:
        tokens: (B, L).
        at_least_one: choose one word of each sentence where chance chose none.

    Returns:
        The sentences with holes (B, L), and which words were chosen (B, L) bool.
    """
    special = torch.tensor(sorted(tokenizer.special_ids), device=tokens.device)
    ids = torch.arange(vocab_size, device=tokens.device)
    words = ids[~torch.isin(ids, special)]
    draw = torch.rand(tokens.shape, device=tokens.device)
    draw = draw.masked_fill(torch.isin(tokens, special), torch.inf)
    chosen = draw < ratio
    if at_least_one:
        chosen |= (draw == draw.amin(dim=1, keepdim=True)) & draw.isfinite()
    fate = torch.rand(tokens.shape, device=tokens.device)
    any_word = words[torch.randint(len(words), tokens.shape, device=tokens.device)]
    hidden = tokens.masked_fill(chosen & (fate < masked), tokenizer.mask_id)
    return torch.where(chosen & (masked <= fate) & (fate < masked + random), any_word, hidden), chosen


def build_vocabulary(sentences: Iterable[str]) -> list[str]:
    """Every byte-pair piece that occurs in `sentences`, sorted: the lines of a compact vocabulary."""
    return sorted({piece for sentence in sentences for piece in _pieces(sentence)})


@lru_cache(maxsize=1)
def _bpe() -> SimpleTokenizer:
    return SimpleTokenizer()


def _pieces(sentence: str) -> list[str]:
    bpe = _bpe()
    return [bpe.decoder[i] for i in bpe.encode(sentence)]
