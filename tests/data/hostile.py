"""Texts that careless tokenizers change, and bytes that are no text."""

TEXTS = [
  "plain text",
  "  indented\n\n\ttwo tabs  and   blanks \n",
  "é 中文 😀 ﬁ ½ Å",
  "nul \0 inside",
  "▁ sentencepiece's own blank",
  "control \x01\x7f\r\n",
  "a byte order mark \ufeff inside",
  " ",
  "\n",
]

INVALID = [b"a\xffb", b"\xc3", b"ok \xf0\x9f\x98 cut", b"\xed\xa0\x80"]
