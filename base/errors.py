"""The base class of errors with messages for the user, and the kinds of others."""

from __future__ import annotations


class UserError(Exception):
  """An error that the user can fix; the message is one line and says how.

  Commands print the message without a traceback; their exit status tells whether to start again.

  Args:
    message: what is wrong, where, and what to do.
    may_pass: whether the same command may succeed when it starts again; by default the class's.

  Attributes:
    may_pass: as above.
  """

  may_pass = False

  def __init__(self, message: str = "", *, may_pass: bool | None = None):
    super().__init__(message)
    if may_pass is not None:
      self.may_pass = may_pass


def is_out_of_memory(error: BaseException) -> bool:
  """Whether an error means that memory ran out, on the host or on a device."""
  return isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED: " in str(error)
