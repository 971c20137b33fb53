"""The text of a continuation, in any pieces, equals decoding prompt and continuation at once."""

import io
import random

import pytest

from data.tokenizers import Bytes, SentencePiece, Symbols
from inference.text_stream import TextStream, continuation

TEXT = "naïve 日本語 🎉🎉 κόσμε\n\tdef f(x): return '€'\n"
PROSE = (
  "the griffin is a creature with the body of a lion and  the head of an eagle. hello world 🎉 café"
)
IDENTITY = {"normalization_rule_name": "identity", "remove_extra_whitespaces": False}
MODELS = {
  "plain": {},
  "no dummy prefix": {"add_dummy_prefix": False},
  "all whitespace": {"remove_extra_whitespaces": False},
  "whitespace as suffix": {"treat_whitespace_as_suffix": True},
  "bytes": {"byte_fallback": True},
  "bytes, identity": {"byte_fallback": True, **IDENTITY},
  "bytes, lossless": {"byte_fallback": True, "add_dummy_prefix": False, **IDENTITY},
  "across words": {"split_by_whitespace": False, "model_type": "unigram"},
}
PROMPTS = (
  "",
  "the",
  "the griffin",
  "the griffin ",
  " The  griffin",
  "hello 🎉",
  "日本\n",
  "� ",
  "</s>",
  "a\0b",
)


class ByteFallback:
  """Decodes as a SentencePiece model with byte fallback: U+FFFD for each byte of no character."""

  def decode(self, ids):
    return bytes(ids).decode("utf-8", errors="replace")


@pytest.fixture(scope="module", params=list(MODELS))
def tokenizer(request, tmp_path_factory):
  """A SentencePiece model of the kind that the name says."""
  import sentencepiece

  options = {"model_type": "bpe", **MODELS[request.param]}
  model = io.BytesIO()
  sentencepiece.SentencePieceTrainer.train(
    sentence_iterator=iter([PROSE] * 50),
    model_writer=model,
    vocab_size=360 if options.get("byte_fallback") else 80,
    hard_vocab_limit=False,
    pad_id=3,
    minloglevel=2,
    **options,
  )
  file = tmp_path_factory.mktemp("model") / "vocabulary.model"
  file.write_bytes(model.getvalue())
  return SentencePiece(str(file))


def drawn(tokenizer, count, source):
  """Ids that may follow one another in a generated text: no control symbols, nothing unknown."""
  never = {tokenizer.bos_id, tokenizer.eos_id, tokenizer.unk_id, 3}
  return source.choices([token for token in range(tokenizer.size) if token not in never], k=count)


@pytest.mark.parametrize("prompt", PROMPTS)
def test_prompt_and_continuation_read_as_all_ids_decoded_at_once(tokenizer, prompt):
  source = random.Random(len(prompt))
  ids = tokenizer.encode(prompt)
  alone = tokenizer.decode(ids)
  for count in (1, 2, 5, 40, 200):
    new = drawn(tokenizer, count, source)
    whole = tokenizer.decode([*ids, *new])
    text = continuation(tokenizer, prompt, ids, new)
    if alone.rstrip(" ") == prompt.rstrip(" ") and len(alone) >= len(prompt):
      assert prompt + text == whole
    else:  # The tokenizer changes the prompt, but no text behind it.
      assert whole.endswith(text)
      assert whole[: len(whole) - len(text)].rstrip(" ") == alone.rstrip(" ")
    for size in (1, 3, 64):
      stream = TextStream(tokenizer, prompt, ids)
      pieces = [stream.add(new[i : i + size]) for i in range(0, count, size)]
      assert "".join(pieces) + stream.end() == text


def test_the_space_before_the_first_word_is_kept(tokenizer):
  ids, whole = tokenizer.encode("the griffin"), tokenizer.encode("the griffin is a lion")
  if whole[: len(ids)] == ids:
    assert continuation(tokenizer, "the griffin", ids, whole[len(ids) :]).rstrip() == " is a lion"


def test_a_long_stream_decodes_a_few_ids_at_a_time(tokenizer):
  longest = 0

  class Counting:
    def decode(self, ids):
      nonlocal longest
      longest = max(longest, len(ids))
      return tokenizer.decode(ids)

  prompt = "the griffin " * 5
  ids, new = tokenizer.encode(prompt), drawn(tokenizer, 1000, random.Random(0))
  stream = TextStream(Counting(), prompt, ids)
  text = "".join(stream.add([token]) for token in new) + stream.end()
  assert text == continuation(tokenizer, prompt, ids, new)
  assert longest < 400


def test_symbols_are_kept_apart_from_the_prompt():
  tokenizer = Symbols(20)
  ids = tokenizer.encode("3 0")
  assert continuation(tokenizer, "3 0", ids, tokenizer.encode("15 7")) == " 15 7"
  assert continuation(tokenizer, "", [], tokenizer.encode("15 7")) == "15 7"


@pytest.mark.parametrize("size", [1, 2, 3, 7, 64])
def test_pieces_join_to_the_text_of_all_ids(size):
  text = TEXT * 20
  ids = Bytes().encode(text)
  stream = TextStream(Bytes())
  pieces = [stream.add(ids[i : i + size]) for i in range(0, len(ids), size)] + [stream.end()]
  assert "".join(pieces) == text


def test_a_character_appears_with_its_last_byte_and_not_before():
  for tokenizer, encode in ((Bytes(), Bytes().encode), (ByteFallback(), str.encode)):
    stream = TextStream(tokenizer)
    pieces = [stream.add([token]) for token in encode("a🎉b")]
    assert pieces == ["a", "", "", "", "🎉", "b"]


def test_invalid_bytes_in_between_lose_no_text():
  source = random.Random(0)
  data = b"".join(source.choice([b"\xff", b"\xe2\x82", "é".encode(), b"x"]) for _ in range(500))
  stream = TextStream(Bytes())
  text = "".join(stream.add([byte + 3]) for byte in data) + stream.end()
  assert text == data.decode("utf-8", errors="ignore")


def test_the_end_gives_what_was_held_back():
  stream = TextStream(ByteFallback())
  assert stream.add(list("é".encode())[:1]) == ""
  assert stream.end() == "\N{REPLACEMENT CHARACTER}"
