import pytest
import torch

from vlprune.data import scenes
from vlprune.demo.tokenizer import PAD, WordTokenizer, caption_words


@pytest.fixture
def tokenizer():
    return WordTokenizer(caption_words(), 20)


def test_every_caption_round_trips(tokenizer):
    captions = [scenes.caption(s) for s in scenes.split_scenes("train", 3_000, 11)]
    ids = tokenizer(captions)
    assert ids.dtype == torch.int64
    assert [tokenizer.decode(row) for row in ids] == captions


def test_layout_is_start_words_end_padding(tokenizer):
    ids = tokenizer("a red ring")[0].tolist()
    start, end = tokenizer.sot_token_id, tokenizer.eot_token_id
    words = [caption_words().index(w) + 1 for w in ("a", "red", "ring")]
    assert ids == [start, *words, end] + [PAD] * 15


def test_end_of_text_is_the_highest_id_where_open_clip_pools(tokenizer):
    ids = tokenizer([scenes.caption(s) for s in scenes.split_scenes("test", 100)])
    assert torch.equal(ids.argmax(-1), (ids != PAD).sum(-1) - 1)
    assert tokenizer.eot_token_id == tokenizer.vocab_size - 1


def test_one_text_is_a_batch_of_one_and_case_and_marks_do_not_matter(tokenizer):
    assert torch.equal(tokenizer("A red ring, on white."), tokenizer(["a red ring on white"]))


def test_an_empty_list_gives_no_rows(tokenizer):
    assert tokenizer([]).shape == (0, 20)


def test_context_length_can_be_given(tokenizer):
    assert tokenizer("a red ring", context_length=5).shape == (1, 5)
    with pytest.raises(ValueError, match="needs 5 tokens"):
        tokenizer("a red ring", context_length=4)


def test_an_unknown_word_is_named(tokenizer):
    with pytest.raises(ValueError, match="does not know the word 'zebra' in 'a red zebra'"):
        tokenizer(["a red ring", "a red zebra"])


def test_words_must_be_distinct():
    with pytest.raises(ValueError, match="distinct"):
        WordTokenizer(["a", "a"], 5)
