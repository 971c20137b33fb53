"""Generation against the models' teacher-forced logits, for every model of the zoo."""

import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from inference import decoder
from inference.decoder import ENDED, Decoder, rows_of
from inference.sampling import Sampler
from tests import small_models

GREEDY = Sampler(temperature=0.0)
PROMPTS = ([1, 5, 9, 3], [1], [1, *range(2, 40)])


@pytest.fixture(scope="module", params=["griffin", "hawk", "transformer"])
def model_and_params(request):
  model = small_models.build(request.param, depth=2)
  params = small_models.initialize(model)
  # Else the embedding, which is tied, makes every token predict itself, whatever the state.
  params = params | {"stack": jax.tree.map(lambda x: 4 * x, params["stack"])}
  return model, params


def generate(model, params, prompts, sampler=GREEDY, max_tokens=20, seed=0, chunk=64, **options):
  decoder = Decoder(model, sampler, **options)
  chunks = decoder.generate(params, prompts, max_tokens=max_tokens, seed=seed, chunk=chunk)
  return rows_of(chunks, len(prompts))


def test_greedy_tokens_are_the_argmax_of_teacher_forced_logits(model_and_params):
  model, params = model_and_params
  rows = generate(model, params, PROMPTS)
  assert len({token for row in rows for token in row}) > 3  # Else a constant would pass.
  for prompt, row in zip(PROMPTS, rows, strict=True):
    logits = small_models.logits(model, params, [*prompt, *row])
    expected = np.argmax(logits[len(prompt) - 1 : -1], axis=-1)
    assert row == expected.tolist()


def test_a_prompt_gets_the_same_continuation_alone_and_in_any_batch(model_and_params):
  model, params = model_and_params
  sampler = Sampler()
  together = generate(model, params, PROMPTS, sampler, seed=3)
  for prompt, row in zip(PROMPTS, together, strict=True):
    assert generate(model, params, [prompt], sampler, seed=3) == [row]
  assert generate(model, params, PROMPTS[::-1], sampler, seed=3) == together[::-1]


def test_rows_that_cores_take_apart_get_what_they_get_together(monkeypatch):
  model = small_models.build("griffin", depth=2)
  params = small_models.initialize(model)
  params = params | {"stack": jax.tree.map(lambda x: 4 * x, params["stack"])}
  prompts = [[1, *range(2, 3 + row)] for row in range(9)]
  found = {}
  for cores in (1, 2):
    monkeypatch.setattr(decoder.platform, "cores", lambda cores=cores: cores)
    free = generate(model, params, prompts)
    # One row ends early; copies have draws of their own, whichever group they are in.
    ended = generate(model, params, prompts, stop_ids=[free[0][2]], chunk=5)
    drawn = generate(model, params, [prompts[3]] * 8, Sampler(), max_tokens=6)
    found[cores] = free, ended, drawn
  assert found[1] == found[2]
  assert len(found[1][0][0]) == 20 > len(found[1][1][0])
  assert len({tuple(row) for row in found[1][2]}) > 1


def test_a_cpu_s_cores_take_rows_apart_where_the_weights_stay_in_cache(monkeypatch):
  monkeypatch.setattr(decoder.platform, "cores", lambda: 4)
  one = Decoder(small_models.build("hawk", depth=1), GREEDY)
  small, large = ({"w": np.zeros((n, 2**20), np.float32)} for n in (8, 9))
  assert [one._groups(small, rows) for rows in (1, 7, 8, 16, 64)] == [1, 1, 2, 4, 4]
  assert one._groups(large, 64) == 1
  with decoder.platform.targeting("tpu"):
    assert one._groups(small, 64) == 1


def test_copies_of_a_prompt_and_other_seeds_give_other_continuations(model_and_params):
  model, params = model_and_params
  sampler = Sampler()
  first, second, _ = generate(model, params, [*[PROMPTS[0]] * 2, PROMPTS[1]], sampler)
  other, _, _ = generate(model, params, PROMPTS, sampler, seed=1)
  assert first != second
  assert first != other


def test_the_size_of_the_chunks_changes_nothing(model_and_params):
  model, params = model_and_params
  whole = generate(model, params, PROMPTS, Sampler(), max_tokens=13)
  assert [len(row) for row in whole] == [13, 13, 13]
  for chunk in (1, 5):
    assert generate(model, params, PROMPTS, Sampler(), max_tokens=13, chunk=chunk) == whole


def test_rows_end_at_a_stop_token_and_the_rest_go_on(model_and_params):
  model, params = model_and_params
  free = generate(model, params, PROMPTS)
  stop = free[0][2]
  chunks = list(Decoder(model, GREEDY, stop_ids=[stop]).generate(params, PROMPTS, max_tokens=20))
  rows = rows_of(chunks, 3)
  for row, whole in zip(rows, free, strict=True):
    assert row == whole[: whole.index(stop) if stop in whole else 20]
  ended_at = free[0].index(stop)
  assert (np.concatenate(chunks, axis=1)[0, ended_at:] == ENDED).all()


def test_generation_stops_early_when_all_rows_have_ended(model_and_params):
  model, params = model_and_params
  free = generate(model, params, PROMPTS)
  decoder = Decoder(model, GREEDY, stop_ids=[row[3] for row in free])
  chunks = list(decoder.generate(params, PROMPTS, max_tokens=20, chunk=5))
  assert len(chunks) == 1


def test_forbidden_tokens_are_never_generated(model_and_params):
  model, params = model_and_params
  forbidden = range(7, small_models.VOCAB_SIZE)
  rows = generate(model, params, PROMPTS, Sampler(), forbidden_ids=forbidden)
  assert {token for row in rows for token in row} <= set(range(7))


def test_an_empty_prompt_and_an_empty_choice_are_refused():
  model = small_models.build("hawk", depth=1)
  decoder = Decoder(model, GREEDY)
  with pytest.raises(ValueError, match="at least one token: begin with the tokenizer's BOS"):
    next(decoder.generate({}, [[]], max_tokens=1))
  with pytest.raises(ValueError, match="all 61 tokens are forbidden"):
    Decoder(model, GREEDY, forbidden_ids=range(small_models.VOCAB_SIZE))


def test_a_token_copies_no_keys_or_values_on_a_cpu():
  model = small_models.build("griffin", depth=2).clone(scan=False)
  params = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 1), jnp.int32))
  state = jax.eval_shape(lambda: model.initial_state(16, 100))

  def generate(params, state):
    def step(_, carry):
      token, state = carry
      logits, state = model.apply(params, token, state=state)
      return jnp.argmax(logits, axis=-1).astype(jnp.int32), state

    return jax.lax.fori_loop(0, 5, step, (jnp.zeros((16, 1), jnp.int32), state))

  program = jax.jit(generate, donate_argnums=1).lower(nn.unbox(params), state).compile()
  slots, channels = small_models.WINDOW, 16
  ring = rf"f32\[16,(1,)?({slots},(1,)?{channels}|{channels},(1,)?{slots})\]"
  found = re.findall(rf"%(\S+) = {ring}\S* (\w\S*)\(", program.as_text())
  assert len([name for name, *_ in found if "dynamic-update-slice" in name]) >= 2
  assert not [name for name, *_ in found if "copy" in name or "transpose" in name]
