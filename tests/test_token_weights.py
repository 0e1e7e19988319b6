"""Every weighting against a loop written from its formula, its limits, the published constants, and bad input."""
import math
from types import SimpleNamespace
import numpy as np
import pytest
import torch
from hypothesis import given, strategies as st
from genrec_nb.core import GenrecError
from genrec_nb.data import Interactions
from genrec_nb.splits import leave_one_out
from genrec_nb.infogain import information_gain, item_prior
from genrec_nb.objectives import WEIGHTINGS, make_weighting, token_nll, weighted_mean
from genrec_nb.semantic_ids import EOS, Identifiers
from genrec_nb.token_weights import (FrontGreater, Frequency, IGD, Position, Uniform, frequency_weights, gain_weights, igd_weights, 
                                     level_gains, _split_gains, uniform_weights)
from genrec_nb.trie import ItemTrie
import oracles
from oracles import DictTrie, few, identifiers, tables_with_counts


# ---- weights ------------------------------------------------------------------------------------------------------

@few
@given(tables_with_counts(), st.sampled_from([0., .1, .5, 1.]))
def test_igd_weights_by_definition(case, beta):
    "beta where the token eliminates no mass (by a dictionary), 1 elsewhere, 0 behind the end"
    paths, counts = case
    t, d, p = ItemTrie.build(identifiers(paths)), DictTrie(paths), item_prior(np.array(counts))
    table = igd_weights(t, information_gain(t, p), beta)
    assert table.dtype == torch.float and table.shape == (len(paths), t.max_depth)
    for i, path in enumerate(d.paths):
        for k in range(t.max_depth):
            if k >= len(path): want = 0.
            else:
                up, here = (set(d.branches[d.number[path[:m]]].items) for m in (k, k + 1))
                decides = any(0 < m < 1 for m in oracles.distinct_mass(d, up - here, p.tolist()))
                want = 1. if decides else beta
            assert float(table[i, k]) == pytest.approx(want)

@few
@given(tables_with_counts())
def test_beta_one_is_plain_cross_entropy(case):
    paths, counts = case
    t = ItemTrie.build(identifiers(paths))
    assert torch.equal(igd_weights(t, information_gain(t, item_prior(np.array(counts))), 1.), uniform_weights(t))
    labels = torch.from_numpy(identifiers(paths).padded())
    logits = torch.randn(*labels.shape, 9, generator=torch.Generator().manual_seed(0))
    plain = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=0)
    torch.testing.assert_close(weighted_mean(token_nll(logits, labels), uniform_weights(t)), plain)

def test_bad_gains_and_betas():
    ids = identifiers([[3, 4], [3, 5]])
    t = ItemTrie.build(ids)
    g = information_gain(t, item_prior([1, 1]))
    for beta in (-.1, 1.1, float('nan')):
        with pytest.raises(GenrecError, match='^beta is .*expected'): IGD(beta)
    with pytest.raises(GenrecError, match='3 rows, expected 4'): IGD().table(t, ids, gain=g[:-1])
    with pytest.raises(GenrecError, match='NaN'): IGD().table(t, ids, gain=g*math.nan)


# ---- the family, each member by a loop -----------------------------------------------------------------------------

def groups(paths, k):
    "Items that share their first k tokens, in a dictionary"
    out = {}
    for i, p in enumerate(paths): out.setdefault(tuple(p[:k]), []).append(i)
    return out

def mu(x, items):
    "Mean distance to the center"
    c = [math.fsum(x[i][d] for i in items)/len(items) for d in range(len(x[0]))]
    return math.fsum(math.dist(x[i], c) for i in items)/len(items)

def slow_levels(x, paths):
    "gain_k = mu_{k-1} - mu_k"
    means = [math.fsum(len(g)*mu(x, g) for g in groups(paths, k).values())/len(paths) for k in range(max(map(len, paths)) + 1)]
    return [a - b for a, b in zip(means, means[1:])]

def slow_prefix(x, paths, i, k):
    "Gain of the split of item i's first k tokens"
    inside = groups(paths, k)[tuple(paths[i][:k])]
    parts = groups([paths[j] for j in inside], k + 1).values()
    return mu(x, inside) - math.fsum(len(g)*mu(x, [inside[j] for j in g]) for g in parts)/len(inside)

def normalized(w): return [v*len(w)/math.fsum(w) for v in w] if math.fsum(w) > 1e-12 else [1.]*len(w)

def slow(name, paths, counts, x, beta, eos, i):
    "The weights of item i, token by token, from the formulas"
    identifier = [t for t in paths[i] if eos == 'token' or t != EOS]
    n = len(identifier)
    if name == 'uniform': w = [1.]*n
    if name == 'igd':
        p = [c/sum(counts) for c in counts]
        d, w = DictTrie(paths), []
        for k in range(n):
            out = set(groups(paths, k)[tuple(paths[i][:k])]) - set(groups(paths, k + 1)[tuple(paths[i][:k + 1])])
            w.append(1. if any(0 < m < 1 for m in oracles.distinct_mass(d, out, p)) else beta)
    if name == 'position': w = [1. if n == 1 else 1 - (1 - beta)*k/(n - 1) for k in range(n)]
    if name == 'front_greater':
        unit = 32/mu(x, range(len(x)))
        w = normalized([math.log1p(max(g*unit, 0)) for g in slow_levels(x, paths)[:n]])
    if name == 'prefix':
        unit = 32/mu(x, range(len(x)))
        w = normalized([math.log1p(max(slow_prefix(x, paths, i, k)*unit, 0)) for k in range(n)])
    if name == 'frequency':
        f = {}
        for q, c in zip(paths, counts):
            for t in q:
                if eos == 'token' or t != EOS: f[t] = f.get(t, 0) + c
        one = lambda v: 1. if f[v] == 0 else 1/f[v] if beta == 1 else (1 - beta)/(1 - beta**f[v])
        w = normalized([one(t) for t in identifier])
    return w + [1. if eos == 'one' else 0.]*(len(paths[i]) - n)

FAMILY = dict(uniform=lambda b, e: Uniform(eos=e), igd=lambda b, e: IGD(b, eos=e), position=lambda b, e: Position(b, eos=e), front_greater=lambda b, e: FrontGreater(eos=e),
              prefix=lambda b, e: FrontGreater('prefix', eos=e), frequency=lambda b, e: Frequency(b, eos=e))

@pytest.mark.parametrize('name', FAMILY)
@few
@given(tables_with_counts(), st.sampled_from([0., .1, .5, .997, 1.]), st.sampled_from(['token', 'one', 'zero']), st.integers(0, 99))
def test_each_weighting_by_its_loop(name, case, beta, eos, seed):
    "Codes and ragged titles, collisions, items that are never a target, every EOS policy"
    paths, counts = case
    ids, x = identifiers(paths), np.random.default_rng(seed).normal(size=(len(paths), 3)).astype(np.float32)
    if len(paths) == 1: return                                                 # no spread to speak of; tested below
    table = FAMILY[name](beta, eos).table(ItemTrie.build(ids), ids, counts=np.array(counts), vectors=x)
    assert table.dtype == torch.float and table.shape == (len(paths), ids.max_len)
    for i, p in enumerate(paths):
        np.testing.assert_allclose(table[i, :len(p)], slow(name, paths, counts, x.tolist(), beta, eos, i), rtol=1e-4, atol=1e-5)
        assert (table[i, len(p):] == 0).all()

@few
@given(tables_with_counts(), st.integers(0, 99))
def test_gains_add_up(case, seed):
    "Sum of the gains = mu_0 - mu_L; a level's gain is the mean over its prefixes; a prefix without a choice gains exactly 0"
    paths, _ = case
    x = np.random.default_rng(seed).normal(size=(len(paths), 4)).astype(np.float32)
    trie, gains = ItemTrie.build(identifiers(paths)), level_gains(x, identifiers(paths))
    rows = [r.tolist() for r in x]
    whole, left = mu(rows, range(len(x))), math.fsum(len(g)*mu(rows, g) for g in groups(paths, 99).values())/len(x)
    assert float(gains.sum()) == pytest.approx(whole - left, abs=1e-9)
    np.testing.assert_allclose(gains, slow_levels(rows, paths), atol=1e-9)
    assert (_split_gains(trie, torch.from_numpy(x).double())[trie.n_children <= 1] == 0).all()

def test_gains_of_codes_identifiers_and_trie_are_the_same():
    rng = np.random.default_rng(0)
    codes, x = rng.integers(0, 3, (30, 3)), rng.normal(size=(30, 5))
    ids = Identifiers.from_codes(codes, policy='keep')
    assert torch.equal(level_gains(x, codes), level_gains(x, ids)) and torch.equal(level_gains(x, ids), level_gains(x, ItemTrie.build(ids)))

@pytest.mark.parametrize('gains, weights', [([23.559, 11.152, 5.342, .742], [1.5806, 1.2332, .9121, .2742]), ([20.9990, 9.0382, 6.3263, 4.0124], [1.3737, 1.0250, .8850, .7163]),
                                            ([8.5805, 13.3060, 4.4580, .4284], [1.2961, 1.5260, .9734, .2045]), ([10.0190, 11.5636, .9299, .0657], [1.6984, 1.7912, .4653, .0450])])
def test_released_constants(gains, weights):
    "Four digits; the first list's gains have three decimals, so its last weight is open by one unit of the fourth"
    np.testing.assert_allclose(gain_weights(gains), weights, atol=1.5e-4 if gains[0] == 23.559 else 5.1e-5)
    np.testing.assert_allclose(gain_weights([gains, [0, 0, 0, 0], [1, -5, 0, 0]]), [gain_weights(gains).tolist(), [1]*4, [4, 0, 0, 0]])

@few
@given(tables_with_counts(), st.integers(0, 99))
def test_sums_of_each_item(case, seed):
    "Front-Greater and frequency: the identifier's weights sum to its length, EOS is 1"
    paths, counts = case
    ids, x = identifiers(paths), np.random.default_rng(seed).normal(size=(len(paths), 3))
    for w in (FrontGreater(), FrontGreater('prefix'), FrontGreater(scale=None), Frequency(.9), Frequency(1.)):
        table = w.table(ItemTrie.build(ids), ids, counts=np.array(counts), vectors=x)
        np.testing.assert_allclose(table.sum(1), [len(p) for p in paths], rtol=1e-5)
        for i, p in enumerate(paths):
            if p[-1] == EOS: assert table[i, len(p) - 1] == 1


# ---- limits --------------------------------------------------------------------------------------------------------

WORLD = SimpleNamespace(paths=[[3, 5, 8], [3, 5, 9], [3, 6, 8], [4, 5, 8], [4, 7, 9]], counts=np.array([4, 1, 0, 2, 9]), vectors=np.array([[0., 1], [2, 0], [4, 1], [12, 3], [11, 9]]))
WORLD.ids = identifiers(WORLD.paths); WORLD.trie = ItemTrie.build(WORLD.ids)
def table(w, **facts): return w.table(WORLD.trie, WORLD.ids, **{**dict(counts=WORLD.counts, vectors=WORLD.vectors), **facts})

def test_limits_that_are_plain_cross_entropy():
    plain = uniform_weights(WORLD.trie)
    for w in (Uniform(), IGD(1.), Position(1.), Frequency(0.)): assert torch.equal(table(w), plain)
    assert torch.equal(table(FrontGreater(), vectors=np.ones((5, 2))), plain)       # all embeddings equal: no gain anywhere
    assert torch.allclose(table(FrontGreater(scale=1e30))[:, 0], torch.ones(5), atol=.05)

def test_frequency_limits():
    f = torch.tensor([0, 1, 2, 50, 10**6])
    np.testing.assert_allclose(frequency_weights(f, 1.), [1, 1, .5, .02, 1e-6])
    np.testing.assert_allclose(frequency_weights(f, 1 - 1e-12), frequency_weights(f, 1.), rtol=1e-5)   # the limit is reached smoothly
    np.testing.assert_allclose(frequency_weights(f, 0.), 1)
    assert float(frequency_weights(f, .9)[3]) == pytest.approx(.1, rel=.01)          # saturated by f = 50
    assert (frequency_weights(torch.arange(1, 9999), .997).diff() <= 0).all()

def test_the_unit_of_the_embeddings_does_not_matter_unless_asked():
    x = WORLD.vectors
    assert torch.allclose(table(FrontGreater(), vectors=x), table(FrontGreater(), vectors=1000*x + 7), atol=1e-5)
    assert not torch.allclose(table(FrontGreater(scale=None), vectors=x), table(FrontGreater(scale=None), vectors=1000*x))
    gains = level_gains(x, WORLD.ids)
    np.testing.assert_allclose(table(FrontGreater(scale=1e-9))[0], 3*gains/gains.sum(), rtol=1e-4)      # tiny scale: proportional to the gains
    np.testing.assert_allclose(table(FrontGreater(scale=None))[0], gain_weights(gains), rtol=1e-5)

def test_one_item_alone():
    ids = identifiers([[3, 4, EOS]])
    for w in (FrontGreater(), FrontGreater('prefix'), Frequency(.5), Uniform()): assert w.table(ItemTrie.build(ids), ids, counts=[3], vectors=[[1., 2]]).tolist() == [[1, 1, 1]]
    assert IGD(.1).table(ItemTrie.build(ids), ids, counts=[3]).tolist() == [[pytest.approx(.1)]*3]

def test_gain_may_be_given_or_counted():
    gain = information_gain(WORLD.trie, item_prior(WORLD.counts))
    assert torch.equal(table(IGD(.3)), table(IGD(.3), counts=None, gain=gain)) and torch.equal(table(IGD(.3)), igd_weights(WORLD.trie, gain, .3))


# ---- no leak -------------------------------------------------------------------------------------------------------

def test_held_out_items_change_no_weight():
    "Other validation and test items of every user: each table is the same"
    rng, tables = np.random.default_rng(0), []
    rows, codes, x = [rng.integers(0, 20, rng.integers(4, 9)) for _ in range(30)], rng.integers(0, 4, (20, 3)), rng.normal(size=(20, 4))
    ids = Identifiers.from_codes(codes, policy='extra')
    for shift in (0, 7):
        moved = [np.r_[r[:-2], (r[-2:] + shift) % 20] for r in rows]
        split = leave_one_out(Interactions(np.concatenate(moved), np.cumsum([0] + [len(r) for r in moved]), [str(i) for i in range(30)], 20))
        facts = dict(counts=split.train.target_counts(), vectors=x)
        tables.append([make_weighting(n).table(ItemTrie.build(ids), ids, **facts) for n in WEIGHTINGS if n != 'multi'])
    assert all(torch.equal(a, b) for a, b in zip(*tables))


# ---- bad input ----------------------------------------------------------------------------------------------------

@pytest.mark.parametrize('bad, words', [
    (lambda: IGD(1.1), '^beta is 1.1'), (lambda: Position(-.1), '^beta is -0.1'), (lambda: Frequency(math.nan), '^beta is nan'),
    (lambda: Uniform(eos='last'), 'token, one, zero'), (lambda: Uniform(tau=0), 'tau is 0.*above 0'), (lambda: Uniform(tau=math.inf), 'tau is inf'),
    (lambda: FrontGreater('level'), 'position, prefix'), (lambda: FrontGreater(scale=-1), 'scale is -1'),
    (lambda: table(IGD(), counts=None), "'igd' needs counts="), (lambda: table(Frequency(), counts=None), "'frequency' needs counts="),
    (lambda: table(FrontGreater(), vectors=None), "'front_greater' needs vectors="),
    (lambda: table(Frequency(), counts=[0]*5), 'no item'), (lambda: table(IGD(), counts=[0]*5), 'no item'),
    (lambda: table(Frequency(), counts=[1]*4), 'counts= has 4 rows, expected 5'), (lambda: table(Frequency(), counts=[1, -1, 1, 1, 1]), 'negative'),
    (lambda: table(IGD(), counts=[1, math.nan, 1, 1, 1]), 'finite'), (lambda: table(IGD(), gain=torch.full((99,), .1)), 'gain= has 99 rows'),
    (lambda: table(FrontGreater(), vectors=np.ones((4, 2))), 'vectors= has 4 rows, expected 5'),
    (lambda: table(FrontGreater(), vectors=np.full((5, 2), np.nan)), 'item 0 holds NaN')])
def test_bad_input_is_refused_in_one_line(bad, words):
    with pytest.raises(GenrecError, match=words) as e: bad()
    assert '\n' not in str(e.value)

def test_labels_that_the_trie_does_not_hold():
    "The item is named; nothing silently gets the weight of another"
    for paths, item in (([[3, 5, 8], [3, 5, 9], [3, 6, 8], [4, 6, 8], [4, 7, 9]], 3), ([[3, 5, 9], [3, 5, 8], *WORLD.paths[2:]], 0), ([*WORLD.paths[:4], [4, 7, 9, 9]], 4)):
        with pytest.raises(GenrecError, match=f'item {item}: its path <?t'): Uniform().table(WORLD.trie, identifiers(paths, 11))
    with pytest.raises(GenrecError, match='4 items for a trie of 5'): Uniform().table(WORLD.trie, identifiers(WORLD.paths[:4]))


def test_items_left_out_of_the_trie_have_no_part_in_weights():
    "Weights of the others are those of a catalog without them; positions, too, whose mean is over the items that are left"
    rng = np.random.default_rng(0)
    codes, x, counts = rng.integers(0, 4, (40, 3)), rng.normal(size=(40, 5)), rng.integers(1, 9, 40)
    keep = np.flatnonzero(np.arange(40) % 4 > 0)
    every, rest = (Identifiers.from_codes(c, [4]*3, 'keep') for c in (codes, codes[keep]))
    some, alone = ItemTrie.build(every, keep), ItemTrie.build(rest)
    torch.testing.assert_close(level_gains(x, some), level_gains(x[keep], alone))
    for name in ('uniform', 'igd', 'pos', 'fg', 'fg-prefix', 'frequency'):
        found = make_weighting(name).table(some, every, counts=np.where(np.arange(40) % 4 > 0, counts, 0), vectors=x)
        torch.testing.assert_close(found[keep], make_weighting(name).table(alone, rest, counts=counts[keep], vectors=x[keep]))
