"""Table 1 of the Griffin paper (arXiv 2402.19427): accuracies on six tasks after 300B tokens."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

SOURCE = "arXiv 2402.19427, table 1"
# The tasks of the columns as lm-eval names them, and as the paper does.
TASKS = {
  "mmlu": "MMLU",
  "hellaswag": "HellaSwag",
  "piqa": "PIQA",
  "winogrande": "WinoGrande",
  "arc_easy": "ARC-E",
  "arc_challenge": "ARC-C",
}
# Percent right by model and billions of parameters, as the table names them, in the order of TASKS.
# The paper's own models; its rows of Mamba and Llama-2 are other authors' reports.
TABLE = {
  "MQA Transformer": {
    1: (28.9, 64.8, 75.0, 62.0, 60.2, 35.4),
    3: (31.7, 71.0, 77.6, 66.1, 68.1, 39.2),
    6: (38.9, 77.0, 79.5, 70.4, 74.1, 45.2),
  },
  "Hawk": {
    1: (29.7, 63.3, 76.1, 57.2, 60.6, 34.6),
    3: (31.3, 71.7, 78.8, 66.5, 68.4, 40.2),
    7: (35.0, 77.6, 80.0, 69.9, 74.4, 45.9),
  },
  "Griffin": {
    1: (29.5, 67.2, 77.4, 65.2, 67.0, 36.9),
    3: (32.6, 73.5, 78.1, 67.2, 71.5, 41.4),
    7: (39.3, 78.6, 81.0, 72.6, 75.4, 47.9),
    14: (49.5, 81.4, 81.8, 74.1, 79.1, 50.8),
  },
}


def accuracies(model: str, tasks: Sequence[str]) -> dict[float, float]:
  """Returns a model's share of right answers by parameters: the mean over tasks of TASKS."""
  columns = [list(TASKS).index(task) for task in tasks]
  return {
    size * 1e9: float(np.mean([row[column] for column in columns])) / 100
    for size, row in TABLE[model].items()
  }
