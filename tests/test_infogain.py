"""Gains against sums over dictionaries, the identities they must obey, and what the validation and test items may not touch."""
import math
import numpy as np
import pytest
import torch
from hypothesis import example, given, strategies as st
from genrec_nb.core import GenrecError
from genrec_nb.data import Interactions
from genrec_nb.splits import leave_one_out
from genrec_nb.semantic_ids import Identifiers
from genrec_nb.infogain import gain_by_position, information_gain, item_prior, item_table, node_entropy, zero_gain_share
from genrec_nb.batches import PrefixSamples, Windows
from genrec_nb.trie import ItemTrie
import oracles
from oracles import DictTrie, few, identifiers, quick, tables_with_counts

kinds = pytest.mark.parametrize('kind', ['global', 'conditional'])

def both(paths, counts):
    p = item_prior(np.array(counts))
    return ItemTrie.build(identifiers(paths)), DictTrie(paths), p


# ---- against the definition ---------------------------------------------------------------------------------------

@kinds
@quick
@given(case=tables_with_counts())
def test_gain_is_what_the_definition_says(kind, case):
    t, d, p = both(*case)
    np.testing.assert_allclose(information_gain(t, p, kind), oracles.gain(d, p.tolist(), kind), rtol=0, atol=1e-12)

@kinds
def test_gain_of_a_thousand_items(kind):
    "Zipf counts, ragged paths, collisions, a third of the items without mass: agreement to 1e-12"
    rng = np.random.default_rng(1)
    paths = [rng.integers(3, 9, rng.integers(1, 7)).tolist() + [2] for _ in range(1000)]
    counts = rng.zipf(1.4, 1000).clip(max=10**6)*(rng.random(1000) < .67)
    t, d, p = both(paths, counts)
    np.testing.assert_allclose(information_gain(t, p, kind), oracles.gain(d, p.tolist(), kind), rtol=0, atol=1e-12)

@few
@given(tables_with_counts())
def test_global_gains_along_a_path_add_up(case):
    t, _, p = both(*case)
    H, g = node_entropy(t, p), information_gain(t, p)
    np.testing.assert_allclose(item_table(t, g).sum(1), H[0] - H[t.leaf], rtol=0, atol=1e-12)

@few
@given(tables_with_counts())
def test_mean_conditional_gain_is_the_mutual_information(case):
    "Averaged over the children by their mass: the entropy of the child, given the prefix"
    t, d, p = both(*case)
    g = information_gain(t, p, 'conditional')
    for b in d.branches:
        mass = [math.fsum(p[i].item() for i in k.items) for k in b.kids.values()]
        whole = math.fsum(mass)
        if not whole > 0: continue
        mean = math.fsum(m/whole*float(g[d.number[k.prefix]]) for m, k in zip(mass, b.kids.values()))
        assert mean == pytest.approx(oracles.entropy([m/whole for m in mass]), abs=1e-12)

@few
@given(tables_with_counts())
def test_the_root_holds_the_entropy_of_the_paths(case):
    t, d, p = both(*case)
    for kind in ('global', 'conditional'):
        assert float(node_entropy(t, p, kind)[0]) == pytest.approx(oracles.entropy(oracles.distinct_mass(d, range(len(d.paths)), p.tolist())), abs=1e-12)


# ---- zero-gain tokens ---------------------------------------------------------------------------------------------

@few
@given(tables_with_counts(least=1))
def test_zero_gain_means_only_child(case):
    "Both directions, exactly zero, when every item has mass; with one path nothing is ever decided"
    t, d, p = both(*case)
    g = information_gain(t, p)
    for b in d.branches[1:]:
        siblings = len(d.branches[d.number[b.prefix[:-1]]].kids)
        assert (float(g[d.number[b.prefix]]) == 0) == (siblings == 1)
    assert (information_gain(t, p, 'conditional')[[len(d.branches[d.number[b.prefix[:-1]]].kids) == 1 if b.prefix else True for b in d.branches]] == 0).all()

@few
@given(tables_with_counts())
@example(([[3, 2], [3, 3, 2], [3, 2], [3, 2]], [10**4, 0, 10**6, 12]))        # three shares whose sum is rounded
def test_zero_gain_means_that_no_mass_is_eliminated(case):
    "With items that are never a target; a single path with all the mass has no uncertainty either"
    t, d, p = both(*case)
    g = information_gain(t, p)
    assert (g >= 0).all()
    for b in d.branches[1:]:
        up = d.branches[d.number[b.prefix[:-1]]]
        gone = oracles.distinct_mass(d, set(up.items) - set(b.items), case[1])
        assert (float(g[d.number[b.prefix]]) == 0) == (not any(0 < m < sum(case[1]) for m in gone))

@few
@given(tables_with_counts())
def test_colliding_items_count_as_one(case):
    "All mass of a shared path on its first item, or spread: the same gains"
    paths, counts = case
    t, d, p = both(paths, counts)
    moved = [0]*len(paths)
    for i, path in enumerate(d.paths): moved[d.paths.index(path)] += counts[i]
    for kind in ('global', 'conditional'):
        np.testing.assert_allclose(information_gain(t, p, kind), information_gain(t, item_prior(np.array(moved)), kind), rtol=0, atol=1e-12)

@few
@given(tables_with_counts())
def test_shares_and_positions_by_counting(case):
    paths, counts = case
    t, d, p = both(paths, counts)
    g = information_gain(t, p)
    for weights in (None, counts):
        w = [1]*len(paths) if weights is None else weights
        each = [(k, float(g[d.number[path[:k + 1]]]), w[i]) for i, path in enumerate(d.paths) for k in range(len(path))]
        assert zero_gain_share(t, g, weights) == pytest.approx(sum(x for _, v, x in each if v == 0)/sum(x for _, _, x in each))
        report = gain_by_position(t, g, weights)
        for k in range(t.max_depth):
            here = [(v, x) for q, v, x in each if q == k]
            n = sum(x for _, x in here)
            assert report['items'][k] == len(here)
            if n: assert report['gain'][k] == pytest.approx(sum(v*x for v, x in here)/n) and report['zero'][k] == pytest.approx(sum(x for v, x in here if v == 0)/n)

# ---- bad input ----------------------------------------------------------------------------------------------------

def test_bad_counts_and_kinds():
    for bad in ([1, -1], [0, 0], [1, np.nan], [np.inf, 1]):
        with pytest.raises(GenrecError): item_prior(np.array(bad))
    t = ItemTrie.build(identifiers([[3], [4]]))
    with pytest.raises(GenrecError, match='prior has 3 items, the trie 2'): information_gain(t, item_prior([1, 1, 1]))
    with pytest.raises(GenrecError, match='both.*expected one of global, conditional'): information_gain(t, item_prior([1, 1]), 'both')
    for bad in (0., float('nan')):
        for kind in ('global', 'conditional'):
            with pytest.raises(GenrecError, match='no mass, or NaN'): information_gain(t, torch.tensor([bad, 0.]).double(), kind)
    assert item_prior([0, 0], smoothing=1).tolist() == [.5, .5]


# ---- no leak ------------------------------------------------------------------------------------------------------

@st.composite
def histories(draw, n_items=8):
    "Users of 1 to 9 items, at least one with 4"
    rows = draw(st.lists(st.lists(st.integers(0, n_items - 1), min_size=1, max_size=9), min_size=1, max_size=6))
    return rows + [draw(st.lists(st.integers(0, n_items - 1), min_size=4, max_size=9))]

def interactions(rows, n_items=8):
    return Interactions(np.concatenate(rows), np.cumsum([0] + [len(r) for r in rows]), [f'u{i}' for i in range(len(rows))], n_items)

def learned_from(rows, max_items=3):
    "Everything that training and decoding take from the ratings"
    split = leave_one_out(interactions(rows))
    ids = Identifiers.from_codes(np.arange(8)[:, None]//np.array([4, 2, 1]) % 2)
    t, p = ItemTrie.build(ids), item_prior(split.train.target_counts())
    samples, windows = PrefixSamples(split.train, max_items), Windows(split.train, max_items, seed=1)
    out = [p, information_gain(t, p), information_gain(t, p, 'conditional'), *samples.collate(list(range(len(samples)))).values()]
    for epoch in range(3):
        windows.set_epoch(epoch)
        out += [windows.collate(list(range(len(windows))))['items']]
    return out

@few
@given(histories(), st.data())
def test_held_out_items_change_nothing_that_is_learned_from(rows, data):
    "Other last items, other items before them: same prior, same gains, same samples"
    before = learned_from(rows)
    other = [list(r) for r in rows]
    for r in other:
        if len(r) >= 3: r[-2:] = data.draw(st.lists(st.integers(0, 7), min_size=2, max_size=2))
    for a, b in zip(before, learned_from(other), strict=True): assert torch.equal(a, b)

def test_a_training_item_does_change_it():
    "The leak test can fail"
    rows = [[0, 1, 2, 3, 4], [5, 6, 7, 0]]
    changed = [[0, 1, 3, 3, 4], [5, 6, 7, 0]]
    assert not all(torch.equal(a, b) for a, b in zip(learned_from(rows), learned_from(changed)))

def test_the_prior_counts_the_targets_of_the_samples():
    "Counts by position equal counts over the samples that both models train on"
    rows = [[0, 1, 2, 3, 4], [5, 6, 7, 0], [1], [2, 2]]
    train = leave_one_out(interactions(rows)).train
    n = train.target_counts()
    prefixes, windows = PrefixSamples(train, 3), Windows(train, 2)
    a = prefixes.collate(list(range(len(prefixes))))['targets']
    b = windows.collate(list(range(len(windows))))['items'][:, 1:]
    assert n.tolist() == np.bincount(a, minlength=8).tolist() == np.bincount(b[b >= 0], minlength=8).tolist()
