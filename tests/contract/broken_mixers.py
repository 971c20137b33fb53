"""Mixers that break the contract, each in one way, and one that keeps it."""

from __future__ import annotations

from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from kernels.linear_scan import linear_scan
from layers.linear import Linear
from models.backbone import Backbone
from models.language_model import LanguageModel


class Averaging(nn.Module):
  """`out(h)` with h_t = h_{t-1} / 2 + u_t and u = in(x): keeps the contract, as subclasses do not.

  Attributes:
    channels: R.
  """

  channels: int = 128
  dtype: jnp.dtype = jnp.float32
  param_dtype: jnp.dtype = jnp.float32

  constant_state = True
  input_axis = "rnn"

  @property
  def unsplit_axes(self) -> tuple[str, ...]:
    return ("time",)

  def reset(self, segments):
    return segments.starts

  def drive(self, u):
    return u

  def state_after(self, h_last, state):
    del state
    return h_last

  @nn.compact
  def __call__(self, x, segments, state=None, capacity=None):
    kinds = {"dtype": self.dtype, "param_dtype": self.param_dtype}
    u = self.drive(Linear(self.channels, ("embed", "rnn"), name="in", **kinds)(x))
    decays = jnp.full_like(u, jnp.log(0.5))
    h0 = None if state is None else self.first(state)
    h, h_last = linear_scan(u, decays, h0, reset=self.reset(segments))
    y = Linear(x.shape[-1], ("rnn", "embed"), name="out", **kinds)(h)
    return y, self.state_after(h_last, state)

  def first(self, state):
    return state

  def initial_state(self, batch_size: int, capacity: int) -> Any:
    del capacity
    return jnp.zeros((batch_size, self.channels), jnp.float32)

  def matmul_flops(self, width: int, length: int) -> int:
    del length
    return 2 * 2 * width * self.channels


class LooksAhead(Averaging):
  """Sees the next token."""

  def drive(self, u):
    return u + jnp.roll(u, -1, axis=1).at[:, -1].set(0)


class LeaksAcrossSegments(Averaging):
  """Never resets, so that a document continues from the previous one."""

  def reset(self, segments):
    return jnp.zeros_like(segments.positions, bool)


class WrongDecodeState(Averaging):
  """Returns a state that is slightly wrong."""

  def state_after(self, h_last, state):
    return 0.9 * h_last


class WrongFlops(Averaging):
  """Does not count the second product."""

  def matmul_flops(self, width: int, length: int) -> int:
    return 2 * width * self.channels


class GrowingState(Averaging):
  """Has a state that grows with the capacity, but claims a constant size."""

  def first(self, state):
    return state[:, 0]

  def initial_state(self, batch_size: int, capacity: int) -> Any:
    return jnp.zeros((batch_size, capacity, self.channels), jnp.float32)

  def state_after(self, h_last, state):
    if state is None:
      return jnp.zeros((*h_last.shape[:1], 35, self.channels)).at[:, 0].set(h_last)
    return state.at[:, 0].set(h_last)


class AppendingState(Averaging):
  """Adds to the state at every step."""

  def first(self, state):
    return state[:, -1]

  def initial_state(self, batch_size: int, capacity: int) -> Any:
    return jnp.zeros((batch_size, 1, self.channels), jnp.float32)

  def state_after(self, h_last, state):
    new = h_last[:, None]
    return new if state is None else jnp.concatenate([state, new], axis=1)


class UndeclaredRefusal(Averaging):
  """Does not say that it cannot be split along time, where it starts afresh on every device."""

  @property
  def unsplit_axes(self) -> tuple[str, ...]:
    return ()


class MisspellsInputAxis(Averaging):
  """Names an axis that no rule splits, so that no gradient would be summed."""

  input_axis = "rrn"


class MisspellsUnsplitAxes(Averaging):
  """Would be split along time after all."""

  @property
  def unsplit_axes(self) -> tuple[str, ...]:
    return ("tiem",)


class UnsplitAxesOfLetters(Averaging):
  """Forgets the comma that makes a tuple."""

  @property
  def unsplit_axes(self):
    return "time"


class ForgetsInputAxis(Averaging):
  """Does not say that every shard of its channels reads all of x."""

  input_axis = None


class WrongGradient(Averaging):
  """Backpropagates through half of what it computes."""

  def drive(self, u):
    return jax.lax.stop_gradient(u / 2) + u / 2


class CutsTheGradient(Averaging):
  """Passes no gradient from a state to the tokens before."""

  def state_after(self, h_last, state):
    return jax.lax.stop_gradient(h_last)


class IgnoresThePast(Averaging):
  """Resets the state at every token."""

  def reset(self, segments):
    return jnp.ones_like(segments.positions, bool)


class NoInitialState(Averaging):
  """Lacks a method."""

  initial_state = None


class WrongShape(Averaging):
  """Leaves out the last channel."""

  @nn.compact
  def __call__(self, x, segments, state=None, capacity=None):
    return x[..., :-1], None


class NoPair(Averaging):
  """Returns its output alone."""

  @nn.compact
  def __call__(self, x, segments, state=None, capacity=None):
    return x


class AnotherStructure(Averaging):
  """Returns a state of another structure than its initial one."""

  def state_after(self, h_last, state):
    return {"h": h_last}


class AnotherType(Averaging):
  """Rounds its state."""

  def state_after(self, h_last, state):
    return h_last.astype(jnp.bfloat16)


def model(backbone: Backbone, *, mixer: type) -> LanguageModel:
  """A language model of one kind of mixer.

  Args:
    backbone: what all models share.
    mixer: a class of this module.
  """
  kinds = {"dtype": jnp.dtype(backbone.dtype), "param_dtype": jnp.dtype(backbone.param_dtype)}
  return backbone.model((partial(mixer, **kinds),))
