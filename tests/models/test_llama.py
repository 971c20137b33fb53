"""The Llama-style Transformer; tests/conversion compares it with Hugging Face's."""

import jax
import numpy as np
import pytest

from layers.rotary import RotaryScaling
from models.backbone import Backbone
from models.llama import llama
from tests.small_models import initialize


def test_the_head_is_a_matrix_of_its_own():
  model = llama(Backbone(vocab_size=61, width=32, depth=1), heads=4, kv_heads=2)
  params = initialize(model)
  changed = params | {"embedding": {"embedding": params["embedding"]["embedding"][::-1]}}
  hidden = jax.random.normal(jax.random.key(2), (1, 3, 32))
  logits = [model.apply({"params": p}, hidden, method="logits") for p in (params, changed)]
  np.testing.assert_array_equal(*logits)


def test_key_value_heads_that_do_not_divide_the_heads_are_refused():
  with pytest.raises(ValueError, match="kv_heads=3 does not divide heads=4"):
    llama(Backbone(vocab_size=8, width=32, depth=1), heads=4, kv_heads=3)


def test_wavelengths_grow_by_the_factor_where_few_fit_into_the_original_length():
  frequencies = np.asarray([2 * np.pi / 4, 2 * np.pi / 50, 2 * np.pi / 200])
  found = RotaryScaling(factor=8.0, original_length=100)(frequencies)
  # 25, 2 and 0.5 wavelengths: more than high=4, between, and fewer than low=1.
  np.testing.assert_allclose(found / frequencies, [1, 1 / 3 + 2 / 3 / 8, 1 / 8], rtol=1e-6)
  np.testing.assert_allclose(RotaryScaling(factor=8.0)(frequencies), frequencies / 8)


@pytest.mark.parametrize(
  ("options", "message"),
  [
    ({"rotary_low": 5.0}, r"rotary_high=4\.0 must be above rotary_low=5\.0"),
    ({"rotary_original_length": 8192}, "has no effect with rotary_factor=1: set rotary_factor"),
    ({"activation": "silo"}, "activation='silo' is unknown; did you mean silu?"),
  ],
)
def test_options_that_do_not_fit_are_named(options, message):
  with pytest.raises(ValueError, match=message):
    llama(Backbone(vocab_size=8, width=32, depth=1), heads=4, kv_heads=2, **options)
