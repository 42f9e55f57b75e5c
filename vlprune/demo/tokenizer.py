"""A word-level tokenizer for the demo model, called the way open_clip's tokenizers are."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from vlprune.data import scenes
from vlprune.files import read_json

FOLDER = Path(__file__).parent

PAD = 0


def caption_words() -> list[str]:
    """Return every word that a scene's caption can hold, sorted."""
    wording = [word for text in scenes.WORDINGS for word in text.split() if "{" not in word]
    named: Iterable[str] = [
        *scenes.SIZES,
        *scenes.COLOURS,
        *scenes.SHAPES,
        *scenes.BACKGROUNDS,
        *(word for place in scenes.PLACES for word in place.split()),
    ]
    return sorted({*wording, *named})


class WordTokenizer:
    """Text to token ids: padding is 0, words follow, then start of text, then end of text.

    End of text has the highest id because open_clip's text tower takes its features at `argmax` of the ids.
    """

    def __init__(self, words: Sequence[str], context_length: int) -> None:
        self.words = tuple(words)
        self.context_length = context_length
        self._ids = {word: index for index, word in enumerate(self.words, start=1)}
        if len(self._ids) != len(self.words):
            raise ValueError("WordTokenizer: words must be distinct")
        self.sot_token_id = len(self.words) + 1
        self.eot_token_id = len(self.words) + 2
        self.vocab_size = len(self.words) + 3

    def __call__(self, texts: str | Sequence[str], context_length: int | None = None) -> Tensor:
        """Return int64 ids [n, context_length]; one text counts as n = 1.

        Case and the marks `.` and `,` are ignored. ValueError for a word the vocabulary lacks, and for a text
        that does not fit.
        """
        listed = [texts] if isinstance(texts, str) else list(texts)
        length = self.context_length if context_length is None else context_length
        ids = torch.full((len(listed), length), PAD, dtype=torch.long)
        for row, text in enumerate(listed):
            tokens = self.encode(text)
            if len(tokens) > length:
                raise ValueError(f"context_length is {length}, but {text!r} needs {len(tokens)} tokens")
            ids[row, : len(tokens)] = torch.tensor(tokens)
        return ids

    def encode(self, text: str) -> list[int]:
        """Return the ids of one text, between start and end of text."""
        words = text.lower().replace(",", " ").replace(".", " ").split()
        unknown = sorted({word for word in words if word not in self._ids})
        if unknown:
            raise ValueError(
                f"the demo model does not know the word {unknown[0]!r} in {text!r}; "
                f"it knows: {' '.join(self.words)}"
            )
        return [self.sot_token_id, *(self._ids[word] for word in words), self.eot_token_id]

    def decode(self, ids: Tensor | Sequence[int]) -> str:
        """Return the words of one row of ids, without padding, start and end."""
        numbers = ids.tolist() if isinstance(ids, Tensor) else list(ids)
        return " ".join(self.words[n - 1] for n in numbers if 1 <= n <= len(self.words))


def load_tokenizer(folder: Path = FOLDER) -> WordTokenizer:
    """Return the tokenizer of the demo model in a folder."""
    length = read_json(folder / "config.json")["text_cfg"]["context_length"]
    return WordTokenizer((folder / "vocab.txt").read_text().split(), length)
