"""Lines become prompts and responses, and the loss is on the responses alone."""

from __future__ import annotations

import json

import numpy as np
import pytest

from data import corpora, instructions
from data.corpora import CorpusError
from data.dataset import TextDataset
from data.instructions import GemmaTurns, Instructions, PromptResponse
from data.loader import batches
from data.packing import Packer
from data.tasks import examples
from data.tokenizers import Bytes

BYTES = Bytes()
QUESTIONS = PromptResponse("Q: {q}\nA:", " {a}")


def written(folder, *lines):
  file = folder / "lines.jsonl"
  file.write_text("".join(json.dumps(line) + "\n" for line in lines))
  return str(file)


def text_and_scored(example):
  """Returns the example's text, and the part of it in the loss."""
  scored = example.tokens[example.loss_mask]
  return BYTES.decode(example.tokens), BYTES.decode(scored)


def test_the_loss_is_on_the_response(tmp_path):
  file = written(tmp_path, {"q": "One?", "a": "yes é", "unused": 1}, {"q": "Two?", "a": "no {q}"})
  found = list(examples(Instructions(file, QUESTIONS), BYTES, "all"))
  assert [text_and_scored(example) for example in found] == [
    ("Q: One?\nA: yes é", " yes é"),
    # What a field holds is no template.
    ("Q: Two?\nA: no {q}", " no {q}"),
  ]
  assert found[0].text_bytes == len("Q: One?\nA: yes é".encode())


def test_gemma_s_turns_are_written_as_its_models_were_trained(tmp_path):
  messages = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": " Hello "},
    {"role": "assistant", "content": "Hi."},
    {"role": "user", "content": "Bye"},
    {"role": "model", "content": "Ciao."},
  ]
  file = written(tmp_path, {"messages": messages})
  (found,) = examples(Instructions(file, GemmaTurns()), BYTES, "all")
  text, scored = text_and_scored(found)
  assert text == (
    "<start_of_turn>user\nBe brief.\n\nHello<end_of_turn>\n<start_of_turn>model\nHi.<end_of_turn>\n"
    "<start_of_turn>user\nBye<end_of_turn>\n<start_of_turn>model\nCiao.<end_of_turn>\n"
  )
  assert scored == "Hi.<end_of_turn>\nCiao.<end_of_turn>\n"


def test_rows_hold_whole_examples_and_batches_their_loss(tmp_path):
  lines = [{"q": f"{n}?", "a": "x" * n} for n in range(1, 12)]
  corpus = Instructions(written(tmp_path, *lines), QUESTIONS)
  dataset = TextDataset(
    corpus, BYTES, 32, split="all", cache_dir=str(tmp_path / "cache"), whole_documents=True
  )
  rows = dataset.rows(lambda progress: None)
  batch = next(batches(rows, len(rows), shuffle=False, repeat=False))
  responses, questions = [], 0
  for targets, weights, ids in zip(
    batch["targets"], batch["loss_weights"], batch["segment_ids"], strict=True
  ):
    for segment in range(1, ids.max() + 1):
      inside = ids == segment
      questions += BYTES.decode(targets[inside]).startswith("Q: ")
      scored = targets[inside & (weights > 0)]
      assert scored[-1] == BYTES.eos_id
      responses.append(BYTES.decode(scored))
  assert questions == len(lines)
  assert responses == [" " + line["a"] for line in lines]
  assert rows.text_bytes() == sum(len(response) for response in responses)


@pytest.mark.parametrize("template", [QUESTIONS, PromptResponse("{q}", "{a}")])
def test_the_end_after_an_empty_response_is_in_the_loss(tmp_path, template):
  file = written(tmp_path, {"q": "One?", "a": ""}, {"q": "", "a": ""})
  packer = Packer(BYTES, 32)
  (example, other) = examples(Instructions(file, template), BYTES, "all")
  assert example.tokens[-1] == BYTES.eos_id
  assert example.loss_mask[-1]
  assert not list(packer.add(*example))
  rows = packer.finish()
  assert rows.tokens[rows.loss_mask].tolist()[-1] == BYTES.eos_id
  assert packer.counts.tokens == len(example.tokens)
  if template is not QUESTIONS:
    # Neither prompt nor response: no document.
    assert not list(packer.add(*other))
    assert packer.counts.empty_documents == 1


def test_a_prompt_has_the_ids_that_it_has_alone(tmp_path):
  file = written(tmp_path, {"q": "One?", "a": "yes"})
  (found,) = examples(Instructions(file, QUESTIONS), BYTES, "all")
  prompt = BYTES.encode("Q: One?\nA:")
  np.testing.assert_array_equal(found.tokens[: len(prompt)], prompt)
  assert not found.loss_mask[: len(prompt)].any()
  assert found.tokens[-1] == BYTES.eos_id


def test_copies_of_an_example_are_held_out_together(tmp_path):
  lines = [{"q": str(n % 40), "a": "x"} for n in range(80)]
  corpus = Instructions(written(tmp_path, *lines), QUESTIONS, heldout_fraction=0.5)
  parts = [{str(e) for e in corpus.examples(split)} for split in ("train", "heldout")]
  assert not parts[0] & parts[1]
  assert len(parts[0] | parts[1]) == 40
  assert min(map(len, parts)) > 5


USER = {"role": "user", "content": "x"}


@pytest.mark.parametrize(
  ("line", "template", "message"),
  [
    ({"a": "x"}, QUESTIONS, r"lines\.jsonl:2: no 'q', which the template 'Q: \{q\}\\nA:' names"),
    ({"q": 5, "a": "x"}, QUESTIONS, r"lines\.jsonl:2: 'q' is a number, not a string"),
    ({"q": "x"}, GemmaTurns("chat"), r"lines\.jsonl:2: no 'chat', only 'q'\. Set GemmaTurns"),
    ({"messages": "x"}, GemmaTurns(), r"jsonl:2: 'messages' is a string, not a list"),
    ({"messages": [{"role": "user"}]}, GemmaTurns(), r"jsonl:2: message 1 .* 'role' and 'content'"),
    (
      {"messages": [USER | {"role": "bot"}]},
      GemmaTurns(),
      r"jsonl:2: .* has the unknown role 'bot'",
    ),
    ({"messages": [USER, USER]}, GemmaTurns(), r"jsonl:2: message 2 is from user"),
    ({"messages": [USER]}, GemmaTurns(), r"jsonl:2: 'messages' has no message of the model"),
  ],
)
def test_a_line_that_the_template_cannot_write_is_named(tmp_path, line, template, message):
  good = {"q": "x", "a": "x", "chat": [USER, USER | {"role": "model"}]}
  good["messages"] = good["chat"]
  corpus = Instructions(written(tmp_path, good, line), template)
  with pytest.raises(CorpusError, match=message):
    list(examples(corpus, BYTES, "all"))


@pytest.mark.parametrize(
  ("template", "message"),
  [
    ("{a.b}", r"template '\{a\.b\}': \{a\.b\} must be the plain name of a field"),
    ("{}", r"must be the plain name of a field"),
    ("{a", r"template '\{a': .* Write \{\{ for a brace"),
  ],
)
def test_a_template_that_is_none_is_told(template, message):
  with pytest.raises(CorpusError, match=message):
    PromptResponse(prompt=template)


def test_rows_made_before_an_empty_answers_end_was_scored_have_another_name(tmp_path):
  (tmp_path / "a.jsonl").write_text('{"prompt": "a", "response": ""}\n' * 3)
  task = corpora.RegisteredTask("a", features=("inputs", "targets"), loss_on=("targets",))
  for corpus in (instructions.Instructions(str(tmp_path / "a.jsonl")), task):
    assert corpus.describe()["empty_answers"] == "their end is scored"
  assert "empty_answers" not in corpora.RegisteredTask("a").describe()
