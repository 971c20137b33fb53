"""Mixtures by size and with a schedule: right shares in every stage, and exact resume."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from base.errors import UserError
from data import corpora, dataset, loader, mixture, rows, tokenizers
from tests.data.test_rows import LENGTH, write


@settings(deadline=None, max_examples=50)
@given(
  st.lists(
    st.lists(st.sampled_from([0, 0.1, 1, 3, 7.7]), min_size=3, max_size=3).filter(any),
    min_size=1,
    max_size=3,
  ),
  st.lists(st.integers(1, 60), min_size=3, max_size=3),
)
def test_each_stage_has_its_shares_and_each_part_is_read_in_order(weights, lengths):
  firsts = np.cumsum([0, *lengths])[: len(weights)].tolist()
  stages = mixture.Stages(weights, firsts)
  end = firsts[-1] + lengths[-1]
  places = [stages.place(row) for row in range(end)]
  for part in range(3):
    # No row is left out or read twice, whatever the stage.
    assert [index for i, index in places if i == part] == list(
      range(sum(i == part for i, _ in places))
    )
  for stage, first, last in zip(weights, firsts, [*firsts[1:], end], strict=True):
    for row in range(first, last + 1):
      counts = np.bincount([i for i, _ in places[first:row]], minlength=3)
      expected = (row - first) * np.array(stage) / sum(stage)
      # Each split of the rows rounds once.
      assert np.abs(counts - expected).max() < 2
      assert not counts[np.array(stage) == 0].any()


def test_a_part_of_hardly_any_weight_need_not_come_to_its_end():
  stages = mixture.Stages([[1e-20, 1]], [0], [5, None])
  assert [stages.place(row) for row in (0, 10**9)] == [(1, 0), (1, 10**9)]


@pytest.fixture
def parts(tmp_path):
  """Rows of 'a', of 'b' and of 'c', each with a number of its own."""
  return [
    rows.RowFiles(write(tmp_path / x, [x * (LENGTH - 3) + f"{n:02}" for n in range(20)]))
    for x in "abc"
  ]


def read(mixed, count, batch_size=4, start=0, **options):
  batches = loader.batches(mixed, batch_size, seed=5, **options)
  batches.restore({"next_row": start})
  found = [next(batches)["targets"] for _ in range(count)]
  batches.close()
  return np.concatenate(found)


def test_the_weights_change_at_their_steps_and_a_resumed_run_reads_on(parts):
  mixed = mixture.MixedRows(parts, [1, 1, 2], [(5, [3, 1, 0]), (9, [0, 0, 1])])
  found = read(mixed, 14)
  letters = found[:, 0] - 3
  kinds = np.bincount(letters[:20], minlength=100)[[ord(x) for x in "abc"]]
  assert kinds.tolist() == [5, 5, 10]
  assert np.bincount(letters[20:36], minlength=100)[[ord(x) for x in "abc"]].tolist() == [12, 4, 0]
  assert set(letters[36:]) == {ord("c")}
  for start in (4, 8, 20, 24, 40):
    np.testing.assert_array_equal(read(mixed, 2, start=start), found[start : start + 8])
  slots = read(mixed, 14, slots=[3, 1])
  np.testing.assert_array_equal(slots[0::2], found[3::4])
  # An epoch of a part has all its rows, over the stages.
  of_a = found[letters == ord("a")]
  assert len(np.unique(of_a, axis=0)) == len(of_a) == 17
  assert mixed.fingerprint != mixture.MixedRows(parts, [1, 1, 2]).fingerprint


def test_stages_begin_at_their_steps_whatever_the_batch_size_was(parts):
  mixed = mixture.MixedRows(parts, [1, 0.5, 0.5], [(3, [0, 1, 0]), (6, [0, 0, 1]), (8, [1, 0, 0])])
  of_4 = loader.batches(mixed, 4, seed=5)
  first = [next(of_4)["targets"] for _ in range(4)]
  state = of_4.state()
  assert state == {"next_row": 16, "step": 4, "stages": [[0, 0], [3, 12]]}
  for size in (4, 10):
    other = loader.batches(mixed, size, seed=5)
    other.restore(state)
    later = [next(other)["targets"] for _ in range(5)]
    assert ["".join(sorted({chr(x) for x in rows[:, 0] - 3})) for rows in later] == list("bbcca")
    assert other.state()["step"] == 9
    # The first stage read three rows of b; none comes twice before all 20 are read.
    of_b = np.concatenate([first[3], *later[:2]])[:17]
    assert len(np.unique(of_b, axis=0)) == len(of_b)
    other.close()
  other = loader.batches(mixed, 4, seed=5)
  other.restore({"next_row": 16})  # of an older checkpoint
  np.testing.assert_array_equal(next(other)["targets"], next(of_4)["targets"])
  other.close()
  of_4.close()


def test_hardly_any_rows_are_not_none(parts):
  end = 3 * 10**9
  stages = mixture.Stages([[1, 1e-9], [0, 1]], [0, end])
  assert stages.place(end) in [(1, 3), (1, 4)]  # so many rows of the second part before
  assert mixture.MixedRows(parts[:2], [1.5e308, 1.5e308]).weights == (0.5, 0.5)
  with pytest.raises(UserError, match="1e-308 is nothing beside the others"):
    mixture.MixedRows(parts[:2], [1e308, 1e-308])
  assert mixture.weights_of_sizes([10, 1000], 1e-3) == [0, 1]


@pytest.mark.parametrize(
  ("schedule", "told"),
  [
    ([(0, [1, 1, 1])], "must have steps that grow, from 1 on: 0 follows 0"),
    ([(5, [1, 1, 1]), (5, [1, 2, 1])], "5 follows 5"),
    ([(5, [1, 1])], r"from step 5 on, \[1, 1\], must be one number .* for each of 3"),
    ([(5, [0, 0, 0])], "not all 0"),
    ([(5, [1, -1, 1])], "from 0 on"),
  ],
)
def test_odd_schedules_are_refused(parts, schedule, told):
  with pytest.raises(UserError, match=told):
    mixture.MixedRows(parts, [1, 1, 1], schedule)
  with pytest.raises(UserError, match=told):  # before anything is prepared
    dataset.Mixture(parts, [1, 1, 1], schedule=schedule)


def test_without_weights_the_sizes_decide(tmp_path):
  for name, count in (("small", 100), ("large", 10_000)):
    (tmp_path / f"{name}.txt").write_text("x" * (count - 1))
  components = [
    dataset.TextDataset(
      corpora.TextFiles(str(tmp_path / f"{name}.txt")),
      tokenizers.Bytes(),
      50,
      "all",
      str(tmp_path / "cache"),
    )
    for name in ("small", "large")
  ]
  mixed = dataset.Mixture(components).rows(lambda state: None)
  assert mixed.weights == pytest.approx((1 / 101, 100 / 101))
  warmer = dataset.Mixture(components, temperature=2.0).rows(lambda state: None)
  assert warmer.weights == pytest.approx((1 / 11, 10 / 11))
  with pytest.raises(ValueError, match=r"temperature=2.0 has no effect beside weights=\[1, 2\]"):
    dataset.Mixture(components, [1, 2], temperature=2.0)


@settings(deadline=None, max_examples=50)
@given(
  st.lists(st.integers(1, 25), min_size=2, max_size=2),
  st.integers(1, 40),
  st.lists(st.sampled_from([0.5, 1, 3]), min_size=6, max_size=6),
)
def test_a_part_ends_at_its_most_rows_and_the_others_share_the_rest(limits, first, weights):
  most = [limits[0], None, limits[1]]
  stages = mixture.Stages([weights[:3], weights[3:]], [0, first], most)
  places = [stages.place(row) for row in range(400)]
  counts = np.bincount([part for part, _ in places], minlength=3)
  assert counts[[0, 2]].tolist() == limits
  for part in range(3):
    assert [index for i, index in places if i == part] == list(range(counts[part]))
  # Until the first part ends, the shares are those of the weights.
  free = mixture.Stages([weights[:3], weights[3:]], [0, first])
  ends = next(row for row, _ in enumerate(places) if places[row] != free.place(row))
  assert min(limits) <= ends


def test_at_most_so_many_tokens_of_a_part_are_read_in_a_run(parts):
  tokens = parts[0].counts.tokens / len(parts[0])
  mixed = mixture.MixedRows(parts, [1, 1, 2], most_tokens=[3.5 * tokens, None, None])
  found = read(mixed, 12)
  letters = found[:, 0] - 3
  assert np.count_nonzero(letters == ord("a")) == 3
  for start in (4, 12, 20):
    np.testing.assert_array_equal(read(mixed, 2, start=start), found[start : start + 8])
  assert mixed.fingerprint != mixture.MixedRows(parts, [1, 1, 2]).fingerprint
  for most, told in [
    ([1.0], "must be one for each of 3 components"),
    ([1.0, None, 0], "must be above 0"),
    ([1.0, 1.0, 1.0], "from step 0 on, no component without a limit has a weight"),
  ]:
    with pytest.raises(UserError, match=told):
      mixture.MixedRows(parts, [1, 1, 1], most_tokens=most)
  with pytest.raises(UserError, match="from step 5 on, no component without a limit"):
    mixture.MixedRows(parts, [1, 1, 1], [(5, [1, 0, 0])], most_tokens=[1.0, None, None])
  with pytest.raises(UserError, match="must differ"):
    mixture.MixedRows(parts, [1, 1, 1], names=["a", "b", "a"])
  assert len(set(mixed.names)) == 3
