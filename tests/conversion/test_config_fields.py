"""Activations of transformers are ours, but for those with parameters of their own."""

from __future__ import annotations

import numpy as np
import torch
from transformers.activations import ACT2FN

from conversion import config_fields
from layers.activations import ACTIVATIONS


def test_every_activation_of_transformers_has_the_same_values():
  x = np.linspace(-12, 12, 97, dtype=np.float32)
  refused = set()
  for name in ACT2FN:
    if config_fields.wrong_activation({"act": name}, "act", ""):
      refused.add(name)
      continue
    ours = config_fields.our_activation(name)
    expected = ACT2FN[name](torch.tensor(x)).numpy()
    np.testing.assert_allclose(ACTIVATIONS[ours](x), expected, rtol=0, atol=1e-5, err_msg=name)
    # What is written again may be another name of the same function.
    assert config_fields.our_activation(config_fields.their_activation(ours)) == ours
  assert refused == {"prelu", "xielu"}
