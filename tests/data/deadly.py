"""A tokenizer whose process dies, or fails, at a certain text: for tests of workers."""

import dataclasses
import os
import signal
from pathlib import Path

from data.tokenizers import Bytes


@dataclasses.dataclass(frozen=True)
class Deadly:
  """Bytes that end the process at the word 'deadly', so many times.

  Attributes:
    folder: counts the deaths.
    deaths: how many times.
    fails: raise OSError instead.
  """

  folder: str
  deaths: int
  fails: bool = False

  size = Bytes().size
  pad_id = bos_id = 0
  eos_id = 1
  unk_id = 2

  def encode(self, text):
    if "deadly" in text and len(os.listdir(self.folder)) < self.deaths:
      Path(self.folder, str(os.getpid())).touch()
      if self.fails:
        raise OSError(5, "the disk of this test failed")
      os.kill(os.getpid(), signal.SIGKILL)
    return Bytes().encode(text)

  def decode(self, ids):
    return Bytes().decode(ids)

  def byte_lengths(self):
    return Bytes().byte_lengths()

  def describe(self):
    return Bytes().describe()
