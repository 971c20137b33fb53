"""The base class of errors whose message is written for the user."""

from __future__ import annotations


class UserError(Exception):
  """Something the user can put right; the message is one line and says how.

  Commands print the message without a traceback and end with a status that says whether to start
  again.

  Args:
    message: what is wrong, where, and what to do.
    may_pass: whether the same command may succeed when it starts again; by default as the class
      says.

  Attributes:
    may_pass: as above.
  """

  may_pass = False

  def __init__(self, message: str = "", *, may_pass: bool | None = None):
    super().__init__(message)
    if may_pass is not None:
      self.may_pass = may_pass
