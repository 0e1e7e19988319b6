"Trees by hierarchical k-means, and item vectors from co-occurrence."
from collections import Counter
import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from numpy.testing import assert_allclose, assert_array_equal
from genrec_nb.core import GenrecError
from genrec_nb.data import Interactions
from genrec_nb.splits import leave_one_out
from genrec_nb.hkmeans import _near_pairs, _ppmi, cooccurrence_vectors, hierarchical_kmeans
from genrec_nb.kmeans import kmeans, load_quantizer
from genrec_nb.semantic_ids import Identifiers


def interactions(histories, n_items):
    offsets = np.cumsum([0] + [len(h) for h in histories])
    return Interactions([i for h in histories for i in h], offsets, [str(u) for u in range(len(histories))], n_items)

def nodes(q, x): return np.c_[np.zeros(len(x), int), q._descend(torch.as_tensor(x)).numpy()]

def distances(x, e): return ((x[:, None].astype(np.float64) - e.numpy()[None])**2).sum(-1)


# ---- the tree ----

@settings(max_examples=12, deadline=None)
@given(st.integers(1, 40), st.integers(1, 3), st.integers(2, 5), st.integers(1, 6), st.booleans(), st.integers(0, 4), st.booleans())
def test_tree_against_its_definition(n, d, k, leaf, share, seed, rough):
    "Each item below the nearest of its siblings; two children or more unless a group is small or of one vector"
    rng = np.random.default_rng(seed)
    x = (rng.integers(0, 4, (n, d)) if rough else rng.normal(size=(n, d))).astype(np.float32)
    q = hierarchical_kmeans(x, k, leaf, share, seed)
    at = nodes(q, x)
    for depth, (e, first) in enumerate(zip(q.codebooks, q.first)):
        for v in np.unique(at[:, depth]):
            inside, (a, b) = np.flatnonzero(at[:, depth] == v), first[v:v + 2].tolist()
            assert 1 <= b - a <= k
            own, all_ = at[inside, depth + 1], distances(x[inside], e[a:b])
            assert ((a <= own) & (own < b)).all()
            assert_allclose(all_[np.arange(len(inside)), own - a], all_.min(1), atol=1e-4)
            if len(inside) <= leaf or (x[inside] == x[inside[0]]).all(): assert b - a == 1
            else: assert b - a >= 2
    for group in np.unique(at[:, -1]):
        inside = x[at[:, -1] == group]
        assert len(inside) <= leaf or (inside == inside[0]).all()
    ids = Identifiers.from_codes(q.fit_codes, q.sizes, 'extra', seed=seed)
    assert ids.collisions()['rate'] == 0 and len(ids.prefix_violations()) == 0

def test_both_kinds_of_codes_are_one_tree():
    x = np.random.default_rng(0).normal(size=(80, 4)).astype(np.float32)
    own, shared = (hierarchical_kmeans(x, 4, 8, share) for share in (False, True))
    for depth in range(1, len(own.sizes) + 1):
        groups = {tuple(map(tuple, (a, b))) for a, b in zip(own.fit_codes[:, :depth], shared.fit_codes[:, :depth])}
        assert len(groups) == len({a for a, _ in groups}) == len({b for _, b in groups})
        assert_array_equal(own.decode(own.fit_codes[:, :depth]), shared.decode(shared.fit_codes[:, :depth]))
    assert max(shared.sizes) <= 4 and own.sizes == [len(e) for e in own.codebooks] and shared.fit_codes.max() < 4

def test_first_level_is_k_means():
    x = np.random.default_rng(1).normal(size=(150, 3)).astype(np.float32)
    e, c = kmeans(x, 6, seed=2)
    q = hierarchical_kmeans(x, 6, 10, seed=2)
    assert_allclose(q.codebooks[0], e[c.unique()])
    assert_array_equal(q.fit_codes[:, 0], c)

@pytest.mark.parametrize('share', [False, True])
def test_last_distances_lead_to_the_own_code(share):
    x = np.random.default_rng(2).normal(size=(60, 3)).astype(np.float32)
    q = hierarchical_kmeans(x, 5, 6, share)
    d = q.last_distances(x)
    assert d.shape == (60, q.sizes[-1])
    assert_array_equal(d.argmin(1), q.fit_codes[:, -1])
    assert_allclose(d.min(1), ((x - q.decode(q.fit_codes))**2).sum(1), atol=1e-4)
    above = nodes(q, x)[:, -2]
    assert_array_equal((d < 1e29).sum(1), q.first[-1].diff()[above])

@pytest.mark.parametrize('share', [False, True])
def test_tree_comes_back_from_disk(tmp_path, share):
    x = np.random.default_rng(3).normal(size=(90, 3)).astype(np.float32)
    q = hierarchical_kmeans(x, 4, 6, share)
    q.save(tmp_path)
    again = load_quantizer(tmp_path)
    new = x + .1
    for a, b in ((again.encode(new), q.encode(new)), (again.fit_codes, q.fit_codes), (again.decode(q.fit_codes), q.decode(q.fit_codes))): assert_array_equal(a, b)
    assert again.share is share and again.sizes == q.sizes and repr(again) == repr(q)

def test_tree_depends_on_vectors_and_seed_alone():
    x = np.random.default_rng(4).normal(size=(60, 3)).astype(np.float32)
    torch.manual_seed(1); a = hierarchical_kmeans(x, 5, 8, seed=5).fit_codes
    torch.manual_seed(2); np.random.seed(2)
    assert_array_equal(hierarchical_kmeans(x, 5, 8, seed=5).fit_codes, a)
    other = hierarchical_kmeans(x, 5, 8, seed=6).fit_codes
    assert other.shape != a.shape or (other != a).any()

@pytest.mark.parametrize('x,sizes', [(np.ones((9, 2)), [1]), (np.arange(3.)[:, None], [1]), (np.arange(5.)[:, None], [3, 5])])
def test_what_cannot_be_cut_ends(x, sizes):
    "All vectors equal; no more items than a leaf holds; fewer items in a group than clusters"
    q = hierarchical_kmeans(x, 3, 3 if len(x) == 3 else 1)
    assert q.sizes == sizes

@pytest.mark.parametrize('x,kw,message', [
    (np.eye(3), dict(clusters=1), 'clusters=1, leaf=64: expected at least 2 clusters'), (np.eye(3), dict(leaf=0), 'leaf=0: expected'),
    ([[np.nan]], {}, 'vector of item 0 holds NaN'), (np.zeros((0, 2)), {}, 'expected real'), (np.zeros(3), {}, 'expected real')])
def test_tree_refuses(x, kw, message):
    with pytest.raises(GenrecError, match=message): hierarchical_kmeans(x, **kw)


# ---- co-occurrence ----

histories = st.lists(st.lists(st.integers(0, 5), max_size=7), min_size=1, max_size=8)

@settings(max_examples=50, deadline=None)
@given(histories, st.integers(1, 4))
def test_near_pairs_against_a_loop(hs, window):
    pairs = Counter()
    for h in hs:
        for p, a in enumerate(h):
            for w, b in enumerate(h[p + 1:p + 1 + window], 1):
                if a != b: pairs[a, b] += 1/w; pairs[b, a] += 1/w
    dense = [[pairs[i, j] for j in range(6)] for i in range(6)]
    assert_allclose(_near_pairs(interactions(hs, 6), window).toarray(), dense)

def test_vectors_of_four_items_by_hand():
    "0 1 2, 0 1, 2 3: counts, PPMI and its singular vectors in dense arithmetic"
    a = np.array([[0, 2, .5, 0], [2, 0, 1, 0], [.5, 1, 0, 1], [0, 0, 1, 0]])
    x = interactions([[0, 1, 2], [0, 1], [2, 3]], 4)
    assert_array_equal(_near_pairs(x).toarray(), a)
    f = np.array([2.5, 3, 2.5, 1]); chance = f[:, None]*f**.75/(f**.75).sum()
    with np.errstate(divide='ignore'): m = np.maximum(np.log(a/chance), 0)
    assert_allclose(_ppmi(_near_pairs(x)).toarray(), m)
    for dim in (2, 4):
        u, s, _ = np.linalg.svd(m)
        v = u[:, :dim]*np.sqrt(s[:dim]); v /= np.linalg.norm(v, axis=1, keepdims=True)
        found = cooccurrence_vectors(x, dim)
        assert_allclose(found @ found.T, v @ v.T, atol=1e-5)                     # singular vectors have no sign
    assert_allclose(cooccurrence_vectors(x, 9)[:, 4:], 0)

def test_items_without_a_neighbor_have_no_direction(caplog):
    "One never occurs, one is alone in its history"
    with caplog.at_level('INFO', 'genrec_nb'): x = cooccurrence_vectors(interactions([[0, 1, 2], [2, 1], [3]], 6), 3)
    assert_array_equal(x[[3, 4, 5]], 0)
    assert_allclose(np.linalg.norm(x[:3], axis=1), 1, rtol=1e-5) and '3 of 6 items have no neighbor' in caplog.text

def test_vectors_see_training_only():
    rng = np.random.default_rng(0)
    hs = [rng.choice(40, rng.integers(5, 9), replace=False).tolist() for _ in range(60)]
    other = [h[:-2] + rng.choice(np.setdiff1d(np.arange(40), h), 2, replace=False).tolist() for h in hs]
    a, b = (leave_one_out(interactions(h, 40)) for h in (hs, other))
    assert (a.test.targets != b.test.targets).all()
    assert_array_equal(cooccurrence_vectors(a.train, 8), cooccurrence_vectors(b.train, 8))
    assert (cooccurrence_vectors(interactions(hs, 40), 8) != cooccurrence_vectors(a.train, 8)).any()
    for wrong in (a, None):
        with pytest.raises(GenrecError, match=r'expected Interactions \(split.train\), found'): cooccurrence_vectors(wrong)

def test_item_numbers_do_not_matter():
    "Renamed items have the same similarities"
    rng = np.random.default_rng(1)
    hs = [rng.choice(30, rng.integers(3, 9), replace=False) for _ in range(80)]
    new = rng.permutation(30)
    x, y = (cooccurrence_vectors(interactions(h, 30), 30) for h in (hs, [new[h] for h in hs]))
    assert_allclose(x @ x.T, (y @ y.T)[new][:, new], atol=1e-3)

@pytest.mark.parametrize('x', [Interactions([], [0], [], 5), Interactions([0, 1], [0, 1, 2], ['u', 'v'], 2), Interactions([0, 0], [0, 2], ['u'], 2)])
def test_nobody_near_anybody(x):
    with pytest.raises(GenrecError, match='no two items stand near each other'): cooccurrence_vectors(x)
