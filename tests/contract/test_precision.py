"""Gradients against differences in float64, where the loss has kinks."""

from __future__ import annotations

from contract import precision
from contract.subject import Subject
from experiment import model_zoo


def test_a_learned_state_of_mlstm_has_the_gradient_beside_the_kinks_of_its_normalizer():
  """Documents begin with |n^T q| near 1: a wide difference crosses the kink of max(|n^T q|, 1)."""
  files = [model_zoo.file_of("xlstm"), "gin/train/learned_state.gin"]
  (finding,) = precision.gradients(Subject(model_zoo.build(files)[0]))
  assert finding.outcome == "passed", finding
