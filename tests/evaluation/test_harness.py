"""The adapter returns the model's own results to lm-eval's task code, on a local task."""

import json
import logging
from pathlib import Path

import jax
import numpy as np
import pytest
from lm_eval import evaluator
from lm_eval.api.instance import Instance
from lm_eval.tasks import TaskManager

from base.errors import UserError
from data import tokenizers
from evaluation import harness, harness_table, harness_tasks
from evaluation.harness import HarnessModel
from inference.sampling import Sampler
from launch import evaluate_harness
from models.backbone import Backbone
from models.griffin import griffin
from tests import small_models
from tests.evaluation import harness_data

BYTES = tokenizers.Bytes()
QUESTIONS = [
  {"question": "two and two", "choices": [" four", " five", " fish"], "answer": 0},
  {"question": "one and two", "choices": [" none", " three", " many"], "answer": 1},
  {"question": "", "choices": ["a", "bb", "ccc"], "answer": 2},
]
COMMON = """
task: {name}
dataset_path: json
dataset_kwargs:
  data_files: {{test: "{data}"}}
test_split: test
output_type: {output}
"""
TASKS = {
  "local_choices": """
doc_to_text: "{{question}}"
doc_to_choice: "{{choices}}"
doc_to_target: answer
target_delimiter: ""
metric_list: [{metric: acc}, {metric: acc_norm}]
""",
  "local_perplexity": """
doc_to_text: ""
doc_to_target: "{{question}}{{choices[0]}}"
metric_list: [{metric: byte_perplexity}]
""",
  "local_generation": """
doc_to_text: "{{question}}:"
doc_to_target: "{{choices[0]}}"
generation_kwargs: {until: ["\\n", "e"], max_gen_toks: 12}
metric_list: [{metric: exact_match}]
""",
}
OUTPUTS = ["multiple_choice", "loglikelihood_rolling", "generate_until"]


@pytest.fixture(scope="module")
def model():
  return griffin(
    Backbone(vocab_size=260, width=32, depth=3), rnn_width=48, heads=2, window=8, gate_blocks=4
  )


@pytest.fixture(scope="module")
def params(model):
  params = small_models.initialize(model)
  # Far from uniform, and farthest for letters, so that choices differ and what is generated is
  # text.
  letters = np.isin(np.arange(260), BYTES.encode("abcdefghijklmnopqrstuvwxyz"))
  scale = np.where(letters, 8, 2)[:, None]
  return {**params, "embedding": jax.tree.map(lambda x: scale * x, params["embedding"])}


@pytest.fixture(scope="module")
def tasks(tmp_path_factory):
  """A folder of task YAMLs with their data."""
  folder = tmp_path_factory.mktemp("tasks")
  data = folder / "questions.jsonl"
  data.write_text("".join(json.dumps(question) + "\n" for question in QUESTIONS))
  for (name, text), output in zip(TASKS.items(), OUTPUTS, strict=True):
    head = COMMON.format(name=name, data=data, output=output)
    (folder / f"{name}.yaml").write_text(head + text)
  return folder


def adapter(model, params, **options):
  return HarnessModel(model, params, BYTES, **{"max_length": 64, **options})


def log_softmax(logits):
  exact = logits.astype(np.float64)
  return exact - np.log(np.exp(exact).sum(axis=1, keepdims=True))


def log_likelihood(model, params, context, text):
  """Log-likelihood of a text's bytes after those of a context, with BOS before both."""
  ids = [BYTES.bos_id, *BYTES.encode(context + text)]
  logs = log_softmax(small_models.logits(model, params, ids[:-1]))
  count = len(text.encode())
  return logs[np.arange(len(ids) - 1), ids[1:]][-count:].sum()


def instances(kind, *arguments):
  return [Instance(kind, {}, args, index) for index, args in enumerate(arguments)]


def test_task_code_of_lm_eval_scores_what_the_model_says(model, params, tasks, monkeypatch):
  monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")
  manager = TaskManager(include_path=str(tasks), include_defaults=False)
  results = evaluator.simple_evaluate(
    adapter(model, params),
    tasks=list(TASKS),
    task_manager=manager,
    torch_random_seed=None,
    bootstrap_iters=0,
  )
  found = results["results"]
  by_sum = by_byte = 0
  for question in QUESTIONS:
    logs = [log_likelihood(model, params, question["question"], c) for c in question["choices"]]
    by_sum += np.argmax(logs) == question["answer"]
    sizes = [len(choice) for choice in question["choices"]]
    by_byte += np.argmax(np.divide(logs, sizes)) == question["answer"]
  assert found["local_choices"]["acc,none"] == pytest.approx(by_sum / 3)
  assert found["local_choices"]["acc_norm,none"] == pytest.approx(by_byte / 3)
  texts = [question["question"] + question["choices"][0] for question in QUESTIONS]
  total = sum(log_likelihood(model, params, "", text) for text in texts)
  perplexity = np.exp(-total / sum(map(len, texts)))
  assert found["local_perplexity"]["byte_perplexity,none"] == pytest.approx(perplexity, rel=1e-5)
  assert found["local_generation"]["exact_match,none"] == 0


def test_a_copy_serves_all_tasks_of_a_group_and_of_a_tag(model, params, tmp_path, monkeypatch):
  monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")
  asked = harness_data.write(tmp_path, ["mmlu"])["mmlu"]
  manager = harness_tasks.manager_of(["mmlu"])
  # Of thousands of files it has read those of MMLU.
  assert "hellaswag" not in manager.all_tasks
  assert harness_tasks.data_sets(manager, "mmlu") == ["cais/mmlu"]
  copy = tmp_path / "mmlu"
  tagged = harness_tasks.load(manager, "mmlu_humanities_tasks", copy)
  assert len(tagged) == 13
  group = harness_tasks.load(manager, "mmlu", copy)
  paths = {str(task.config.dataset_path) for task in [*tagged, *group[0].get_all_tasks()]}
  assert paths == {str(copy)}
  found = harness_tasks.evaluate(adapter(model, params, max_length=512), group, manager, fewshot=1)
  sizes = {name: n["effective"] for name, n in found["n-samples"].items()}
  assert len(sizes) == 57
  assert sum(sizes.values()) == asked
  rights = [found["results"][name]["acc,none"] * size for name, size in sizes.items()]
  assert found["results"]["mmlu"]["acc,none"] == pytest.approx(sum(rights) / asked)
  assert 0 < sum(rights) < asked


def test_an_answer_that_does_not_fit_is_told_in_one_line(model, params):
  with pytest.raises(
    harness.HarnessError, match=r"an answer has 9 tokens.* max_length=8\. Raise it"
  ):
    adapter(model, params, max_length=8).loglikelihood(
      instances("loglikelihood", ("a", " b"), ("a", " bcdefghi"))
    )


def test_likelihoods_are_of_the_continuation_after_bos_and_context(model, params):
  pairs = [("the context", " and more"), ("", "alone"), ("trailing ", "space"), ("x", "")]
  found = adapter(model, params).loglikelihood(instances("loglikelihood", *pairs))
  expected = [log_likelihood(model, params, *pair) for pair in pairs[:2]]
  # lm-eval counts a context's last spaces as the continuation's.
  expected += [log_likelihood(model, params, "trailing", " space"), 0.0]
  assert [score for score, _ in found] == pytest.approx(expected, abs=1e-4)
  assert found[3] == (0.0, True)


def test_rolling_windows_predict_each_token_once_with_what_fits(model, params):
  text = "a text that is longer than the model may read"
  [found] = adapter(model, params, max_length=16).loglikelihood_rolling(
    instances("loglikelihood_rolling", (text,))
  )
  ids = [BYTES.bos_id, *BYTES.encode(text)]
  total, done = 0.0, 0
  while done < len(text):
    stop = min(done + 16, len(text))
    read = ids[max(0, stop - 16) : stop]
    logs = log_softmax(small_models.logits(model, params, read))[done - stop :]
    total += logs[np.arange(stop - done), ids[done + 1 : stop + 1]].sum()
    done = stop
  assert found == pytest.approx(total, abs=1e-4)


def greedy(model, params, ids, count):
  """Returns the text of a greedy continuation, without ids that have no text."""
  return BYTES.decode(small_models.greedy(model, params, ids, count, (0, 2, 259), BYTES.eos_id))


def test_generation_is_greedy_and_ends_at_stop_texts(model, params):
  options = {"until": [], "max_gen_toks": 20, "do_sample": False}
  contexts = ["a context", "another, longer than the first one"]
  expected = [
    greedy(model, params, [BYTES.bos_id, *BYTES.encode(context)], 20) for context in contexts
  ]
  lm = adapter(model, params)
  asked = [(context, options) for context in contexts]
  assert lm.generate_until(instances("generate_until", *asked)) == expected
  text = expected[0]
  assert text, "the model must say something for this test"
  stop = text[len(text) // 2]
  stopped = lm.generate_until(
    instances("generate_until", (contexts[0], {**options, "until": [stop]}))
  )
  assert stopped == [text.split(stop)[0]]


def test_generation_after_a_context_that_does_not_fit_reads_its_end(model, params):
  options = {"until": [], "max_gen_toks": 8}
  context = "0123456789" * 5
  [found] = adapter(model, params, max_length=24).generate_until(
    instances("generate_until", (context, options))
  )
  ids = [BYTES.bos_id, *BYTES.encode(context)][-16:]
  assert found == greedy(model, params, ids, 8)
  with pytest.raises(ValueError, match="up to 24 new tokens, max_length=24 leaves no room"):
    adapter(model, params, max_length=24).generate_until(
      instances("generate_until", (context, {"until": [], "max_gen_toks": 24}))
    )


@pytest.mark.parametrize(
  ("options", "expected"),
  [
    ({"do_sample": True}, Sampler(temperature=1.0)),
    ({"do_sample": True, "temperature": 0.0}, Sampler(temperature=0.0)),
    ({"do_sample": True, "temperature": 0}, Sampler(temperature=0)),
    ({"do_sample": True, "temperature": 0.7, "top_k": 0}, Sampler(temperature=0.7)),
    ({"do_sample": True, "top_k": 4, "top_p": 0.9}, Sampler(top_k=4, top_p=0.9)),
    ({"do_sample": True, "temperature": None, "top_p": None}, Sampler(temperature=1.0)),
    ({"do_sample": True, "top_p": 0.0}, Sampler(temperature=0)),
    ({"do_sample": False, "temperature": 0.7}, Sampler(temperature=0)),
    ({"temperature": 0.7}, Sampler(temperature=0.7)),
    ({"temperature": 0.0}, Sampler(temperature=0)),
    ({}, Sampler(temperature=0)),
  ],
)
def test_zeros_among_a_task_s_options_are_values(options, expected):
  assert harness._sampler(harness._options({"until": [], **options}, 8)) == expected


@pytest.mark.parametrize(
  "options",
  [
    {"temperature": -1.0},
    {"temperature": "hot"},
    {"temperature": float("inf")},
    {"do_sample": True, "top_p": 2.0},
    {"do_sample": True, "top_k": -1},
    {"do_sample": True, "top_k": "x"},
    {"max_gen_toks": "many"},
  ],
)
def test_options_out_of_range_are_told_in_one_line(model, params, options):
  lm = adapter(model, params)
  with pytest.raises(harness.HarnessError, match="generation_kwargs cannot be used: ") as caught:
    lm.generate_until(instances("generate_until", ("x", {"do_sample": True, **options})))
  assert "\n" not in str(caught.value)


def test_generation_ends_at_each_end_token(model, params):
  asked = instances("generate_until", ("a context", {"until": [], "max_gen_toks": 12}))
  [free] = adapter(model, params).generate_until(asked)
  [stop] = BYTES.encode(free[5])
  assert adapter(model, params, stop_ids=[stop]).generate_until(asked) == [
    free[: free.index(free[5])]
  ]


def test_a_generated_word_keeps_the_space_before_it(model, params):
  class Words:
    """Decodes as a SentencePiece model with its dummy prefix: drops the first space of a text."""

    size, pad_id, bos_id, eos_id, unk_id = 260, 0, 0, 1, 2

    def encode(self, text):
      return BYTES.encode(text)

    def decode(self, ids):
      return BYTES.decode(ids).replace("e", " e").removeprefix(" ")

    def describe(self):
      return {"kind": "words"}

  [text] = HarnessModel(model, params, BYTES, max_length=64).generate_until(
    instances("generate_until", ("a", {"until": [], "max_gen_toks": 12}))
  )
  [found] = HarnessModel(model, params, Words(), max_length=64).generate_until(
    instances("generate_until", ("a", {"until": [], "max_gen_toks": 12}))
  )
  assert found == text.replace("e", " e")


def test_the_table_has_lm_eval_s_headers():
  results = {
    "results": {"t": {"alias": "t", "acc,none": 0.25, "acc_stderr,none": 0.1}},
    "groups": {"g": {"alias": "g", "acc,none": 0.5}},
    "versions": {"t": 1},
    "n-shot": {"t": 0},
  }
  head = harness_table.table(results).split("\n")[0]
  names = [name.strip() for name in head.strip("|").split("|")]
  assert names == ["Tasks", "Version", "Filter", "n-shot", "Metric", "", "Value", "", "Stderr"]
  assert harness_table.table(results, "groups").startswith("|Groups|")


def test_without_a_network_no_try_is_printed():
  with pytest.raises(UserError, match=r"nowhere is not a folder\. Name one with YAML files"):
    evaluate_harness._load(["piqa"], Path("nowhere"), {})
  assert not logging.getLogger("huggingface_hub.utils._http").isEnabledFor(logging.WARNING)
