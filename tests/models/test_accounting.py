"""Parameter counts against the paper's sizes; tests/contract compares them with the trees."""

import pytest

from models.accounting import account
from models.backbone import Backbone
from models.griffin import griffin
from models.hawk import hawk
from models.transformer import transformer

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
