"""Parameters and FLOPs against the paper's sizes and XLA's own counts."""

import jax
import jax.numpy as jnp
import pytest

from models.accounting import account
from models.backbone import Backbone
from models.griffin import griffin
from models.hawk import hawk
from models.transformer import transformer
from tests.small_models import build, initialize

# Appendix C: D, D_rnn, heads, depth, and billions of parameters of Griffin, Hawk and the baseline
# with a vocabulary of 32,000.
PAPER_SIZES = {
  "100m": (768, 1024, 6, 12, 0.114, 0.118, 0.105),
  "200m": (1024, 1536, 8, 12, 0.196, 0.206, 0.174),
  "400m": (1536, 2048, 12, 12, 0.404, 0.424, 0.365),
  "1b": (2048, 2560, 16, 24, 1.308, 1.369, 1.185),
  "3b": (3072, 4096, 24, 24, 2.932, 3.094, 2.609),
  "7b": (4096, 5632, 32, 32, 6.920, 7.306, 6.070),
}


@pytest.mark.parametrize("size", PAPER_SIZES)
def test_parameter_counts_of_the_paper_s_sizes(size):
  width, rnn_width, heads, depth, *billions = PAPER_SIZES[size]
  backbone = Backbone(vocab_size=32_000, width=width, depth=depth)
  models = (
    griffin(backbone, rnn_width=rnn_width, heads=heads),
    hawk(backbone, rnn_width=rnn_width),
    transformer(backbone, heads=heads),
  )
  for model, expected in zip(models, billions, strict=True):
    counted = account(model, batch_size=1, length=2048).parameter_count / 1e9
    # The table leaves out biases, norms and taps and rounds to three digits.
    assert counted == pytest.approx(expected, abs=1.5e-3)


def test_parameter_table_equals_the_initialised_tree(model, params):
  table = {p.path: (p.shape, p.dtype) for p in account(model, batch_size=1, length=8).parameters}
  leaves = jax.tree_util.tree_leaves_with_path(params)
  assert table == {"/".join(k.key for k in path): (x.shape, x.dtype) for path, x in leaves}


def test_every_parameter_names_an_axis_for_each_dimension(model):
  for parameter in account(model, batch_size=1, length=8).parameters:
    assert len(parameter.axes) == len(parameter.shape), parameter
    assert None not in parameter.axes, parameter


def count_dot_flops(jaxpr) -> int:
  """Operations of all dot products of a jaxpr, loops included."""
  total = 0
  for equation in jaxpr.eqns:
    if equation.primitive.name == "dot_general":
      ((contract, _), _) = equation.params["dimension_numbers"]
      depth = 1
      for axis in contract:
        depth *= equation.invars[0].aval.shape[axis]
      total += 2 * equation.outvars[0].aval.size * depth
    trips = equation.params["length"] if equation.primitive.name == "scan" else 1
    for inner in jax.core.jaxprs_in_params(equation.params):
      total += trips * count_dot_flops(inner)
  return total


@pytest.mark.parametrize("kind", ["hawk", "transformer"])
def test_declared_flops_equal_the_traced_products(kind):
  model, length = build(kind), 33
  attention = {"transformer": 4 * 32 * 5}.get(kind, 0)
  tokens = jax.ShapeDtypeStruct((1, length), jnp.int32)
  params = jax.eval_shape(lambda: initialize(model))
  jaxpr = jax.make_jaxpr(lambda p, t: model.apply({"params": p}, t))(params, tokens)
  # The declared count of causal attention is the mean over the row: (length + 1) / 2 keys; the
  # kernel multiplies by some masked keys too, so attention is compared without that part.
  declared = model.matmul_flops(length) - attention * (length + 1) / 2
  traced = count_dot_flops(jaxpr.jaxpr) / length
  if kind == "hawk":
    assert traced == declared
  else:
    assert declared + attention * (length + 1) / 2 <= traced <= declared + attention * 64
