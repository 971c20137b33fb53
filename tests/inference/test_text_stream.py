"""Streaming text equals the text decoded at once, however it is cut."""

import random

import pytest

from data.vocabularies import Bytes
from inference.text_stream import TextStream

TEXT = "naïve 日本語 🎉🎉 κόσμε\n\tdef f(x): return '€'\n"


class ByteFallback:
  """Decodes as a SentencePiece model with byte fallback: U+FFFD for each byte of no character."""

  def decode(self, ids):
    return bytes(ids).decode("utf-8", errors="replace")


@pytest.mark.parametrize("size", [1, 2, 3, 7, 64])
def test_pieces_join_to_the_text_of_all_ids(size):
  text = TEXT * 20
  ids = Bytes().encode(text)
  stream = TextStream(Bytes())
  pieces = [stream.add(ids[i : i + size]) for i in range(0, len(ids), size)] + [stream.end()]
  assert "".join(pieces) == text


def test_a_character_appears_with_its_last_byte_and_not_before():
  for vocabulary, encode in ((Bytes(), Bytes().encode), (ByteFallback(), str.encode)):
    stream = TextStream(vocabulary)
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
