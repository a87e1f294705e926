"""BERT (Devlin et al., 2019, arXiv 1810.04805) as a referring segmentation network wants to see it.

`BertEncoder` holds transformers' network without its pooler, and gives it out layer by layer, so that a
method can do something in between. `WordPieceTokenizer` makes its tokens.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn
from transformers import BertConfig, BertModel, BertTokenizer

from rislib.encoders import from_transformers, load_weights, shipped

PAD = 0  # of BERT's vocabulary
MASK, SPECIAL = 103, frozenset({PAD, 100, 101, 102, 103})  # of bert-base-uncased's; also [UNK], [CLS], [SEP]


class BertEncoder(nn.Module):
    """One BERT without pooler. Word states are (B, L, width).

    Args:
        model: transformers' network.
    """

    def __init__(self, model: BertModel) -> None:
        super().__init__()
        self.model = model
        self.model.pooler = None
        # Attention written out rounds as in published networks, and twenty words gain nothing from a kernel.
        self.model.set_attn_implementation("eager")

    @property
    def width(self) -> int:
        """Width of the word states."""
        return self.model.config.hidden_size

    @property
    def depth(self) -> int:
        """Number of encoder layers."""
        return len(self.model.encoder.layer)

    def embed(self, tokens: Tensor) -> Tensor:
        """tokens (B, L) int64 -> word, position and segment embeddings, normalised (B, L, width).

        Raises:
            ValueError: L is longer than the position table.
        """
        if tokens.shape[1] > (limit := self.model.config.max_position_embeddings):
            raise ValueError(f"{tokens.shape[1]} tokens, but this BERT has positions for {limit}")
        table = self.model.embeddings  # added up in the order of the first BERTs, for the last bit
        x = table.word_embeddings(tokens) + table.position_embeddings.weight[: tokens.shape[1]]
        return table.dropout(table.LayerNorm(x + table.token_type_embeddings.weight[0]))

    def layers(self, x: Tensor, token_mask: Tensor, start: int = 0, stop: int | None = None) -> Tensor:
        """Encoder layers start, ..., stop - 1: x (B, L, width), token_mask (B, L), True at words -> x."""
        mask = torch.zeros(token_mask.shape, dtype=x.dtype, device=x.device)
        mask = mask.masked_fill(~token_mask.bool(), torch.finfo(x.dtype).min)
        mask = mask[:, None, None]  # (B, 1, 1, L): the same for all heads and queries
        for layer in self.model.encoder.layer[start:stop]:
            x = layer(x, mask)
        return x

    def forward(self, tokens: Tensor, token_mask: Tensor) -> Tensor:
        """tokens (B, L) int64, token_mask (B, L) -> states after the last layer (B, L, width)."""
        return self.layers(self.embed(tokens), token_mask)


class WordPieceTokenizer:
    """BERT's tokenizer: lower-cased pieces between [CLS] and [SEP], zero padded.

    A sentence that is too long is cut off hard, as LAVT and MagNet cut it: its [SEP] is lost.

    Args:
        vocab_file: one piece per line. Without it, bert-base-uncased's from the Hugging Face hub. It is read
            at the first sentence: a network can be built without it.
        context_length: L, the number of tokens including [CLS] and [SEP].
        trim: cut L to the longest sentence of each batch. The networks' results are the same, sooner.

    >>> tokens, token_mask = WordPieceTokenizer("vocab.txt")(["the red cup"])  # (1, 20), (1, 20)
    """

    def __init__(
        self, vocab_file: str | Path | None = None, *, context_length: int = 20, trim: bool = False
    ) -> None:
        if context_length < 2:
            raise ValueError(f"context_length must hold [CLS] and [SEP], got {context_length}")
        self.vocab_file = vocab_file
        self.context_length = context_length
        self.trim = trim

    @cached_property
    def bert(self) -> BertTokenizer:
        """transformers' tokenizer.

        Raises:
            FileNotFoundError: there is no such file, or no hub to ask; says what to do.
        """
        if self.vocab_file is not None:
            pieces = Path(self.vocab_file).read_text(encoding="utf-8").splitlines()
            return BertTokenizer(vocab={piece: i for i, piece in enumerate(pieces)})
        try:
            return BertTokenizer.from_pretrained("bert-base-uncased")
        except OSError as error:
            raise FileNotFoundError(
                f"BERT's vocabulary could not be had from the Hugging Face hub ({error}). Give the tokenizer "
                "a vocab_file: the vocab.txt of bert-base-uncased, 30,522 lines."
            ) from error

    @property
    def vocab_size(self) -> int:
        return len(self.bert)

    # These two are known before the hub was asked: networks are built from them, and read later.
    @property
    def mask_id(self) -> int:
        """The id that stands for a hidden word: [MASK]."""
        return MASK if self.vocab_file is None else self.bert.mask_token_id

    @property
    def special_ids(self) -> frozenset[int]:
        """Ids that are no words ([PAD], [UNK], [CLS], ...): never to be hidden, never to be guessed."""
        return SPECIAL if self.vocab_file is None else frozenset(self.bert.all_special_ids)

    def __call__(self, sentences: Sequence[str]) -> tuple[Tensor, Tensor]:
        """B sentences -> tokens (B, L) int64 and token_mask (B, L) bool, True where the id is not 0."""
        rows = [self.bert.encode(sentence)[: self.context_length] for sentence in sentences]
        length = max((len(row) for row in rows), default=2) if self.trim else self.context_length
        tokens = torch.tensor([row + [PAD] * (length - len(row)) for row in rows], dtype=torch.int64)
        tokens = tokens.reshape(len(rows), length)  # a batch of no sentences has a length, too
        return tokens, tokens != PAD

    def decode(self, tokens: Iterable[int] | Tensor) -> str:
        """One row of ids (L,) -> its text, lower-cased, without special tokens."""
        return self.bert.decode([int(i) for i in tokens], skip_special_tokens=True)


# --- named sizes ------------------------------------------------------------------------------


def bert_base(pretrained: Literal["bert-base-uncased"] | bool | None = None) -> BertEncoder:
    """BERT-base, 108.9 M parameters, width 768: random, or bert-base-uncased from the Hugging Face hub.

    Raises:
        RuntimeError: the weights cannot be had; says what to do.
    """
    return BertEncoder(from_transformers(BertModel, "bert-base-uncased", pretrained))


def bert_mini(
    vocab_size: int,
    pretrained: bool = False,
    *,
    width: int = 128,
    layers: int = 4,
    heads: int = 4,
    context_length: int = 32,
    dropout: float = 0.1,
) -> BertEncoder:
    """A BERT for RefMini's few hundred words: random, or the shipped weights.

    Its id 0 is padding, as in our tokenizers.

    Raises:
        FileNotFoundError: the shipped weights are asked for, but not here; says what to do.
    """
    config = BertConfig(
        vocab_size=vocab_size,
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=4 * width,
        max_position_embeddings=context_length,
        hidden_dropout_prob=dropout,
        attention_probs_dropout_prob=dropout,
    )
    encoder = BertEncoder(BertModel(config, add_pooling_layer=False))
    if pretrained:
        load_weights(encoder, shipped("bert"))
    return encoder
