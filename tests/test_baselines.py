"LightGCN and item vectors: against loops and dense algebra, and with bad input"
import math
from pathlib import Path
import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, strategies as st
from safetensors.torch import save_file
from genrec_nb.baselines import LightGCNConfig, _NegativeSampler, bpr_loss, _check_item_vectors, _fill_cold, _interaction_matrix, _load_vectors, _normalized_graph, propagate, _top_items, train_lightgcn, transition_ranking
from genrec_nb.core import GenrecError, _tie_order
from genrec_nb.data import Dataset, Interactions
from genrec_nb.splits import Cases, Split, leave_one_out
from genrec_nb.metrics import popularity_ranking, ranking_metrics
from oracles import few, quick

def ring(users=60, items=24, cold=2, seed=0):
    "People who walk along a ring of items: what comes next is known to who knows what came before"
    rng = np.random.default_rng(seed)
    n, start = rng.integers(3, 15, users), rng.integers(0, items, users)
    walks = [(s + np.arange(k)) % items for s, k in zip(start, n)]
    return Interactions(np.concatenate(walks), np.r_[0, np.cumsum(n)], list(map(str, range(users))), items + cold)

@quick
@given(st.integers(1, 6), st.integers(1, 9), st.integers(1, 12), st.integers(0, 10**6))
def test_top_items_sorts_by_score_then_chance(rows, n, k, seed):
    scores = np.random.default_rng(seed).integers(0, 4, (rows, n)).astype(float)            # many ties
    scores[scores == 0] = -np.inf
    place = np.argsort(_tie_order(n, 5))
    for got, s in zip(_top_items(torch.from_numpy(scores), k, 5).tolist(), scores):
        want = [i for i in sorted(range(n), key=lambda i: (-s[i], place[i])) if s[i] > -np.inf][:k]
        assert got == want + [-1]*(k - len(want))

def test_transitions_read_two_items_and_the_pages_say_so():
    train = ring()
    def scores(*past): return transition_ranking(train, Cases(np.zeros(1, int), np.array(past), np.array([0, len(past)]), np.array([0])), 24, False).tolist()
    assert scores(7, 3, 12) == scores(20, 3, 12) != scores(7, 9, 12) and scores(7, 3, 12) != scores(7, 12, 3)
    pages = [*(Path(__file__).parents[1]/'nbs').rglob('*.ipynb'), Path(__file__).parents[1]/'README.md']
    assert not [p.name for p in pages if 'last-item transition' in p.read_text().lower()]

def test_an_order_by_item_number_is_found_out():
    """What a fixed order of ties does: two choices at a time, ids by popularity. By id the last item is the one with the larger
    number, and figures move when items are renumbered; under tie seeds they are the same up to the scatter of the seeds"""
    rng, n = np.random.default_rng(0), 40
    w = 1/(np.arange(n) + 2.)                             # low numbers are popular
    chosen = [rng.choice(n, 8, replace=False, p=w/w.sum()) for _ in range(600)]
    def recall(number, **order):
        rows = [(u, number[i], place//2) for u, c in enumerate(chosen) for place, i in enumerate(c)]     # two at a time
        split = leave_one_out(Dataset.from_frame(pd.DataFrame(rows, columns=['user', 'item', 'time']), time='time', **order).interactions)
        return ranking_metrics(popularity_ranking(split.train.item_counts(), split.test, 5), split.test.targets, (5,))['recall@5']
    ways = np.arange(n), np.arange(n)[::-1], rng.permutation(n)
    by_item = [recall(w, ties='item') for w in ways]
    by_seed = [np.mean([recall(w, tie_seed=s) for s in range(5)]) for w in ways]
    assert by_item[1] - by_item[0] > .4 and np.ptp(by_seed) < .05         # .17 and .69; .42 to .44

@few
@given(st.integers(1, 5), st.integers(1, 6), st.integers(0, 4), st.integers(0, 10**6))
def test_propagation_against_dense_algebra(users, items, layers, seed):
    rng = np.random.default_rng(seed)
    n = rng.integers(0, 5, users)
    train = Interactions(rng.integers(0, items, n.sum()), np.r_[0, np.cumsum(n)], list(map(str, range(users))), items)    # repeats, empty histories
    R = np.zeros((users, items))
    for u in range(users): R[u, train.user(u)] = 1
    A = np.block([[np.zeros((users, users)), R], [R.T, np.zeros((items, items))]])
    D = np.diag([1/math.sqrt(d) if d else 0. for d in A.sum(1)])
    e = rng.normal(size=(users + items, 3)).astype(np.float32)
    want = sum(np.linalg.matrix_power(D @ A @ D, k) @ e for k in range(layers + 1))/(layers + 1)
    np.testing.assert_allclose(propagate(torch.from_numpy(e), _normalized_graph(_interaction_matrix(train)), layers), want, atol=1e-5)

def test_gradient_of_propagation():
    graph = _normalized_graph(_interaction_matrix(ring(users=4, items=6))).to(torch.float64)
    e = torch.randn(12, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0), requires_grad=True)
    assert torch.autograd.gradcheck(lambda e: propagate(e, graph, 3), (e,))

@quick
@given(st.lists(st.sets(st.integers(0, 7)), min_size=1, max_size=5))
def test_negatives_are_all_items_that_were_not_chosen(chosen):
    train = Interactions([i for c in chosen for i in c], np.cumsum([0] + [len(c) for c in chosen]), list(map(str, range(len(chosen)))), 8)
    negatives = _NegativeSampler(_interaction_matrix(train))
    for u, c in enumerate(chosen):
        r = torch.arange(8 - len(c))
        assert negatives.at(torch.full_like(r, u), r).tolist() == [i for i in range(8) if i not in c]

def test_drawn_negatives_are_uniform_and_never_chosen():
    train = Interactions([0, 2, 3], [0, 3], ['u'], 6)
    drawn = _NegativeSampler(_interaction_matrix(train)).draw(torch.zeros(30_000, dtype=torch.int64), torch.Generator().manual_seed(0))
    counts = np.bincount(drawn, minlength=6)
    assert counts[[0, 2, 3]].sum() == 0 and abs(counts[[1, 4, 5]] - 10_000).max() < 400       # about five standard deviations

def test_bpr_against_the_formula():
    u, i, j = (torch.randn(5, 3, generator=torch.Generator().manual_seed(s)) for s in range(3))
    want = np.mean([-math.log(1/(1 + math.exp(-float(u[n] @ i[n] - u[n] @ j[n])))) for n in range(5)])
    assert float(bpr_loss(u, i, j)) == pytest.approx(want, rel=1e-5)

def test_a_user_who_chose_everything_is_no_trouble():
    train = Interactions([0, 1, 2, 0, 1], [0, 3, 5], ['all', 'some'], 3)
    empty = Cases(*(np.zeros(n, np.int64) for n in (0, 0, 1, 0)))
    model = train_lightgcn(Split(train, empty, empty, 0), LightGCNConfig(dim=4, epochs=5, patience=0))
    assert np.isfinite(model.item_vectors()).all()
    with pytest.raises(GenrecError, match='every user chose every item'):
        train_lightgcn(Split(Interactions([0, 1], [0, 2], ['u'], 2), empty, empty, 0), LightGCNConfig(patience=0))

def test_nothing_known_nothing_settled():
    x = torch.ones(2, 2)
    assert torch.equal(_fill_cold(x.clone(), torch.zeros(2, dtype=torch.bool)), x)

@pytest.mark.parametrize('make', [lambda p, x: np.save(p.with_suffix('.npy'), x), lambda p, x: save_file({'item.weight': torch.from_numpy(x)}, p.with_suffix('.safetensors'))])
def test_load_vectors(tmp_path, make):
    x = np.random.default_rng(0).normal(size=(7, 4)).astype(np.float32)
    make(tmp_path/'v', x)
    path = next(tmp_path.iterdir())
    np.testing.assert_array_equal(_load_vectors(path, 7, 4), x)

@pytest.mark.parametrize('change, n, dim, words', [
    (lambda x: x, 9, None, '7 rows.*9 items'),
    (lambda x: x, 6, None, '7 rows.*6 items.*padding'),
    (lambda x: x.T, 7, None, '4 rows.*7 items.*transposed'),
    (lambda x: x, 7, 32, '4 dimensions, expected 32'),
    (lambda x: np.where(np.arange(7)[:, None] == 3, np.nan, x), 7, None, 'item 3 holds NaN.*1 of 7 items'),
    (lambda x: np.where(x == x.max(), np.inf, x), 7, None, 'infinite'),
    (lambda x: np.ones_like(x), 7, None, 'all 7 vectors are equal'),
    (lambda x: x[:, 0], 7, None, r'expected real \[items, dimensions'),
    (lambda x: x[:, :0], 7, None, r'shape \(7, 0\)'),
    (lambda x: x.astype(str), 7, None, 'not a matrix of numbers'),
    (lambda x: x.astype(object), 7, None, 'not a readable .npy')])
def test_vectors_that_do_not_fit(tmp_path, change, n, dim, words):
    x = np.random.default_rng(0).normal(size=(7, 4)).astype(np.float32)
    np.save(tmp_path/'v.npy', change(x), allow_pickle=True)
    with pytest.raises(GenrecError, match=words) as e: _load_vectors(tmp_path/'v.npy', n, dim)
    assert 'v.npy' in str(e.value) and '\n' not in str(e.value)

def test_files_that_are_not_vectors(tmp_path):
    with pytest.raises(GenrecError, match='no such file'): _load_vectors(tmp_path/'none.npy', 3)
    for name, words in (('v.npy', 'readable .npy'), ('v.safetensors', 'readable safetensors'), ('v.csv', 'ends in .npy or')):
        for content in (b'', b'nonsense'):
            (tmp_path/name).write_bytes(content)
            with pytest.raises(GenrecError, match=words): _load_vectors(tmp_path/name, 3)
    save_file({'a': torch.ones(3, 2), 'b': torch.ones(3, 2)}, tmp_path/'two.safetensors')
    with pytest.raises(GenrecError, match='2 tensors .a, b.'): _load_vectors(tmp_path/'two.safetensors', 3)

def test_whole_numbers_and_halves_become_float32():
    assert _check_item_vectors(np.array([[1, 2], [3, 4]]), 2, 'x').dtype == np.float32
    assert _check_item_vectors(np.array([[1, 2], [3, 4]], np.float16), 2, 'x').dtype == np.float32


@few
@given(st.lists(st.lists(st.integers(0, 7), min_size=1, max_size=6), min_size=1, max_size=8), st.lists(st.lists(st.integers(0, 7), min_size=1, max_size=4), min_size=1, max_size=4), st.booleans())
def test_transitions_by_counting(histories, asked, exclude):
    "Shares of successors by a double loop; the one before last counts half; equal scores by popularity"
    train = Interactions(np.concatenate(histories), np.cumsum([0] + [len(h) for h in histories]), list(map(str, range(len(histories)))), 8)
    cases = Cases(np.arange(len(asked)), np.concatenate(asked), np.cumsum([0] + [len(h) for h in asked]), np.zeros(len(asked), int))
    ranked, popular = transition_ranking(train, cases, 8, exclude), popularity_ranking(train.item_counts(), cases, 8, False)[0].tolist()
    def share(i, j):
        after = [b for h in histories for a, b in zip(h, h[1:]) if a == i]
        return after.count(j)/len(after) if after else 0
    for history, row in zip(asked, ranked.tolist()):
        score = {j: share(history[-1], j) + (share(history[-2], j)/2 if len(history) > 1 else 0) for j in range(8) if not (exclude and j in history)}
        want = sorted(score, key=lambda j: (-round(score[j], 9), popular.index(j)))
        assert row == want + [-1]*(8 - len(want))
