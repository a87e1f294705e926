"""What does mask grounding know? A word of a sentence is hidden, and guessed from the picture."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch

from rislib.data.batches import make_batch
from rislib.nouns import Method, Sample


@torch.inference_mode()
def hidden_words(
    method: Method,
    samples: Sequence[Sample],
    kinds: Mapping[str, Sequence[str]],
    *,
    other_picture: bool = False,
    batch_size: int = 48,
) -> dict[str, dict[str, float]]:
    """How often the first guess is right, by kind of word: {kind: {"asked", "right", "most_frequent"}}.

    Each word of `kinds` in each sentence is asked for by itself, with all others in sight. "right" is the
    share of first guesses that are the hidden word, "most_frequent" what always guessing the commonest of
    its kind would have; an empty kind has 0.

    Args:
        method: with its mask grounding head (`load_method(run, heads=True)`), in any mode; left in eval mode.
        kinds: words of one token each, such as {"colour": COLOURS}.
        other_picture: show the picture and the mask of another sample of the batch instead.

    Raises:
        ValueError: the method has no such head, or a word has several tokens.
    """
    if getattr(method, "grounding", None) is None:
        raise ValueError(
            "this network has no mask grounding head: train it with that, load it with heads=True"
        )
    kind_of = {_token(method, word): kind for kind, words in kinds.items() for word in words}
    method.eval()
    device = next(method.parameters()).device
    said, right = {kind: Counter() for kind in kinds}, Counter()
    for start in range(0, len(samples), batch_size):
        chosen = [samples[i] for i in range(start, min(start + batch_size, len(samples)))]
        batch = make_batch(chosen, method.preprocessing, method.tokenize)
        shown = [_stranger(row, chosen) if other_picture else row for row in range(len(chosen))]
        asked = [
            (row, at, shown[row])
            for row, ids in enumerate(batch.tokens.tolist())
            for at in _places(ids, kind_of)
            if shown[row] is not None
        ]
        if not asked:
            continue
        rows, places, pictures = torch.tensor(asked).T  # (N,) each
        each = torch.arange(len(rows))
        answers = batch.tokens[rows, places]
        tokens = batch.tokens[rows]
        tokens[each, places] = method.grounding.tokenizer.mask_id
        batch = replace(
            batch,
            tokens=tokens,
            token_mask=batch.token_mask[rows],
            mask=batch.mask[pictures],
            picture=pictures,
        ).to(device)
        reading = method.read(method.features(batch), batch.tokens, batch.token_mask)
        guesses = method.grounding(reading, batch.token_mask, batch.mask).argmax(dim=2).cpu()[each, places]
        for answer, guess in zip(answers.tolist(), guesses.tolist(), strict=True):
            said[kind_of[answer]][answer] += 1
            right[kind_of[answer]] += guess == answer
    return {
        kind: {
            "asked": words.total(),
            "right": right[kind] / max(words.total(), 1),
            "most_frequent": max(words.values(), default=0) / max(words.total(), 1),
        }
        for kind, words in said.items()
    }


def _stranger(row: int, samples: Sequence[Sample]) -> int | None:
    """Who has another picture than the sample in this row, looked for from half a batch away on."""
    others = ((row + len(samples) // 2 + step) % len(samples) for step in range(len(samples)))
    return next((i for i in others if samples[i].image_id != samples[row].image_id), None)


def _token(method: Method, word: str) -> int:
    tokens, token_mask = method.tokenize([word])
    if token_mask.sum() != 3:  # one, between start and end
        raise ValueError(f"{word!r} is more than one token")
    return int(tokens[0, 1])


def _places(ids: Sequence[int], wanted: Mapping[int, str]) -> list[int]:
    return [at for at, token in enumerate(ids) if token in wanted]
