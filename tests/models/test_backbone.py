"""`Backbone` for models that are not of the Griffin family."""

import jax
import pytest

from models.accounting import list_parameters
from models.backbone import Backbone
from models.hawk import hawk
from tests.small_models import initialize


@pytest.mark.parametrize("width", [40, 33])
def test_the_mlp_may_have_any_width(width):
  backbone = Backbone(vocab_size=61, width=32, depth=2, mlp_width=width)
  params = initialize(hawk(backbone, rnn_width=32, gate_blocks=4))
  shapes = {p.path: p.shape for p in list_parameters(hawk(backbone, rnn_width=32, gate_blocks=4))}
  assert {shape[-1] for path, shape in shapes.items() if "mlp/up" in path} == {width}
  assert all(leaf.size for leaf in jax.tree.leaves(params))
