"""Samples and batches against loops."""
import numpy as np
import pytest
import torch
from hypothesis import given, strategies as st
from genrec_nb.batches import LengthBatches, PrefixSamples, Windows, hashed_users, history_tokens
from genrec_nb.core import GenrecError
from genrec_nb.data import Interactions
from genrec_nb.semantic_ids import EOS
from oracles import identifiers, quick

def interactions(rows, n_items=8*14): # as many as `histories` may draw
    return Interactions(np.concatenate([np.asarray(r, np.int64) for r in rows]), np.cumsum([0] + [len(r) for r in rows]), [f'u{i}' for i in range(len(rows))], n_items)

@st.composite
def histories(draw):
    "Users of 0 to 14 items, each interaction with a number of its own; one user at least has two"
    lengths = draw(st.lists(st.integers(0, 14), min_size=0, max_size=7)) + [draw(st.integers(2, 14))]
    ends = np.cumsum([0] + draw(st.permutations(lengths)))
    return [list(range(a, b)) for a, b in zip(ends, ends[1:])]


# ---- samples ------------------------------------------------------------------------------------------------------

@quick
@given(histories(), st.integers(1, 6))
def test_prefix_samples_by_loops(rows, H):
    samples = PrefixSamples(interactions(rows), H)
    want = [(r[max(0, j - H):j], r[j]) for r in rows for j in range(1, len(r))]
    assert len(samples) == len(want) and samples.lengths.tolist() == [len(h) for h, _ in want]
    batch = samples.collate(list(range(len(samples))))
    width = max(len(h) for h, _ in want)
    assert batch['history'].tolist() == [[-1]*(width - len(h)) + h for h, _ in want] and batch['targets'].tolist() == [t for _, t in want]
    one = samples.collate([len(samples) - 1])                                   # a batch is as wide as its longest
    assert one['history'].tolist() == [want[-1][0]] and one['targets'].tolist() == [want[-1][1]]

@quick
@given(histories(), st.integers(1, 6), st.integers(1, 9))
def test_prefix_samples_begin_with_the_user(rows, H, n):
    data = interactions(rows)
    plain, known = (PrefixSamples(data, H, u).collate(list(range(sum(len(r) - 1 for r in rows if r)))) for u in (0, n))
    first = [data.n_items + hashed_users([f'u{u}'], n)[0] for u, r in enumerate(rows) for _ in r[1:]]
    assert known['history'][:, 0].tolist() == first and torch.equal(known['history'][:, 1:], plain['history']) and torch.equal(known['targets'], plain['targets'])

@quick
@given(histories(), st.integers(1, 6), st.integers(0, 4), st.integers(0, 99))
def test_windows_cover_every_target_once(rows, W, epoch, seed):
    "At most W+1 neighbors of one user, every position but the first a target once, as many windows in every epoch"
    windows = Windows(interactions(rows), W, seed)
    n = len(windows)
    windows.set_epoch(epoch)
    assert len(windows) == n == sum(-(-(len(r) - 1)//W) for r in rows if len(r) > 1)
    targets = []
    for i in range(n):
        run = [j for j in windows.collate([i])['items'][0].tolist() if j >= 0]
        assert len(run) == windows.lengths[i] and 2 <= len(run) <= W + 1
        assert any(run == r[a:a + len(run)] for r in rows for a in range(len(r)))
        targets += run[1:]
    assert sorted(targets) == [j for r in rows for j in r[1:]]

@quick
@given(histories(), st.integers(1, 6), st.integers(0, 99))
def test_cuts_depend_on_seed_and_epoch_alone(rows, W, seed):
    a, b = Windows(interactions(rows), W, seed), Windows(interactions(rows), W, seed)
    for epoch in (3, 0, 1): a.set_epoch(epoch)
    b.set_epoch(1)
    assert a.start.tolist() == b.start.tolist() and a.lengths.tolist() == b.lengths.tolist()

def test_cuts_move_and_every_cut_occurs():
    "A user of 11 items in windows of 4: all three pieces, each first length from rest to W"
    windows, seen = Windows(interactions([list(range(11))]), 4), set()
    for epoch in range(200):
        windows.set_epoch(epoch)
        seen.add(tuple(windows.lengths - 1))
    assert seen == {(2, 4, 4), (3, 4, 3), (4, 4, 2)}

@quick
@given(histories(), st.integers(1, 5), st.integers(1, 3), st.integers(0, 3), st.booleans())
def test_length_batches_hold_each_sample_once(rows, size, group, epoch, prefix):
    "Only the last batch may be smaller, the order is the seed's and the epoch's, in a group the lengths are sorted"
    make = lambda seed=5: LengthBatches(PrefixSamples(interactions(rows), 4) if prefix else Windows(interactions(rows), 4), size, seed, group)
    batches = make()
    batches.set_epoch(epoch)
    got = list(batches)
    assert len(got) == len(batches) and sorted(i for b in got for i in b) == list(range(len(batches.samples)))
    assert all(len(b) == size for b in got[:-1])
    again = make()
    again.set_epoch(epoch)
    assert got == list(again) == list(again)

@quick
@given(histories(), st.integers(1, 5), st.integers(2, 4), st.integers(0, 3))
def test_processes_share_the_samples_of_an_epoch(rows, size, processes, epoch):
    "Every process has a batch in each round, each sample is there once, full rounds are those of one process"
    samples = PrefixSamples(interactions(rows), 4)
    alone = LengthBatches(samples, size, 5)
    if len(samples) < processes:
        with pytest.raises(GenrecError, match=f'{len(samples)} training samples cannot be shared by {processes} processes'): list(LengthBatches(samples, size, 5, processes=processes))
        return
    shared = LengthBatches(samples, size, 5, processes=processes)
    alone.set_epoch(epoch); shared.set_epoch(epoch)
    one, got, rest = list(alone), list(shared), len(samples) % (size*processes)
    assert len(got) == len(shared) and len(got) % processes == 0 and all(1 <= len(b) <= size for b in got)
    full = len(samples)//(size*processes)*processes
    assert got[:full] == one[:full]
    left, want = [i for b in got[full:] for i in b], [i for b in one[full:] for i in b]
    assert left == (want if rest >= processes else [])

def test_length_batches_save_padding():
    rng = np.random.default_rng(0)
    samples = PrefixSamples(interactions([list(range(n)) for n in rng.integers(2, 60, 200)]), 50)
    spread = lambda b: samples.lengths[b].max()*len(b)
    sorted_, plain = sum(map(spread, LengthBatches(samples, 16))), sum(map(spread, LengthBatches(samples, 16, group=1)))
    assert sorted_ < .8*plain and sorted_ < 1.1*samples.lengths.sum()

def test_length_batches_of_two_epochs_differ():
    batches = LengthBatches(PrefixSamples(interactions([list(range(40))]), 5), 4)
    first = list(batches)
    batches.set_epoch(1)
    assert list(batches) != first

@pytest.mark.parametrize('make', [PrefixSamples, Windows])
def test_nothing_to_train_on(make):
    with pytest.raises(GenrecError, match='fewer than two'): make(interactions([[1], [2]]))

@quick
@given(st.lists(st.lists(st.integers(-1, 4), min_size=3, max_size=3), min_size=1, max_size=5))
def test_history_tokens_by_loops(rows):
    "Holes anywhere, ragged paths with their own EOS: one EOS at the end"
    paths = [[3, 4, EOS], [5, EOS], [6, 7, 8, EOS], [3, 5, EOS], [9, EOS]]
    x, mask = history_tokens(torch.from_numpy(identifiers(paths).padded()), torch.tensor(rows))
    want = [[t for i in r if i >= 0 for t in paths[i][:-1]] + [EOS] for r in rows]
    width = max(map(len, want))
    assert x.tolist() == [w + [0]*(width - len(w)) for w in want] and mask.tolist() == [[1]*len(w) + [0]*(width - len(w)) for w in want]
