"""A trie that items join, leave and change weight in, against a rebuild after every operation; and models that serve it."""
import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from genrec_nb.core import GenrecError
from genrec_nb.beam_search import DecodeConfig, recommend
from genrec_nb.dynamic_trie import DynamicTrie
from genrec_nb.exact import exact_search
from genrec_nb.infogain import information_gain, item_prior
from genrec_nb.likelihood import ChildSoftmax
from genrec_nb.search import search_each
from genrec_nb.semantic_ids import Identifiers
from genrec_nb.trie import ItemTrie
import oracles
from oracles import identifiers

V, L = 8, 3                                                                  # tokens 3 .. 7
path = st.lists(st.integers(3, V - 1), min_size=L, max_size=L)
count = st.integers(0, 4) | st.just(10**5)
many = settings(max_examples=60, deadline=None)

def same(live, paths):
    "Children, counts, gains and items at every prefix of a rebuild, and the merged arrays"
    here = np.flatnonzero(live._item['here'][:live.n_items])
    assert live.n_items == len(paths) and not live.counts[np.setdiff1d(np.arange(len(paths)), here)].any()
    if not len(here): return
    trie = ItemTrie.build(identifiers(paths, V), here)
    merged = live.merged()
    assert (merged.vocab_size, merged.n_items) == (trie.vocab_size, trie.n_items)
    assert all(torch.equal(x, merged.tensors()[k]) for k, x in trie.tensors().items())
    nodes = trie.item_nodes(torch.from_numpy(here))
    rows = [[t for t in trie.token[r[r >= 0]].tolist()] for r in nodes]
    padded = torch.tensor([r + [0]*(trie.max_depth - len(r)) for r in rows])
    mine = live.item_nodes(torch.from_numpy(here))
    assert torch.equal(live.walk(padded)[padded > 0], mine[padded > 0]) and ((mine >= 0) == (padded > 0)).all()
    for a, b in zip(torch.cat([torch.zeros(1), nodes[nodes >= 0]]).long().tolist(), torch.cat([torch.zeros(1), mine[mine >= 0]]).long().tolist()):
        assert live.count[b] == trie.count[a] and live.n_children[b] == trie.n_children[a]
        kids = live.children(torch.tensor([b]))[0]
        want = trie.children(torch.tensor([a]))[0]
        assert live.token[kids].tolist() == trie.token[want].tolist()
        assert sorted(live.items_below(torch.tensor([b]))[0].tolist()) == sorted(trie.items_below(torch.tensor([a]))[0].tolist())
    if not live.counts.sum(): return
    real = nodes >= 0
    want, got = information_gain(trie, item_prior(live.counts))[nodes[real]], live.gain(mine[real])
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-12)
    assert torch.equal(got == 0, want == 0)

@st.composite
def sequences(draw):
    "Paths and counts to begin with, then operations"
    paths = draw(st.lists(path, min_size=1, max_size=8))
    counts = draw(st.lists(count, min_size=len(paths), max_size=len(paths)))
    pick = st.lists(st.integers(0, 99), min_size=1, max_size=3)
    steps = st.tuples(st.just('add'), st.lists(st.tuples(path, count), min_size=1, max_size=4)) | st.tuples(st.just('remove'), pick) \
        | st.tuples(st.just('reweigh'), st.lists(st.tuples(st.integers(0, 99), count), min_size=1, max_size=3)) | st.tuples(st.just('compact'), st.none())
    return paths, counts, draw(st.lists(steps, min_size=1, max_size=8))

@many
@given(sequences())
def test_any_sequence_equals_a_rebuild(case):
    paths, counts, steps = case
    live = DynamicTrie(ItemTrie.build(identifiers(paths, V)), counts)
    for what, arg in steps:
        here = np.flatnonzero(live._item['here'][:live.n_items])
        if what == 'add':
            assert live.add([p for p, _ in arg], [c for _, c in arg]).tolist() == list(range(len(paths), len(paths) + len(arg)))
            paths = paths + [p for p, _ in arg]
        elif len(here) and what == 'remove': live.remove(np.unique(here[np.array(arg) % len(here)]))
        elif len(here) and what == 'reweigh':
            new = {int(here[i % len(here)]): c for i, c in arg}
            live.reweigh(list(new), list(new.values()))
        elif len(here) and what == 'compact': live.compact()
    same(live, paths)

@settings(max_examples=15, deadline=None)
@given(st.lists(st.lists(st.integers(3, 6), min_size=1, max_size=3), min_size=2, max_size=10), st.data())
def test_paths_of_different_lengths(paths, data):
    paths = [p + [2] for p in paths]
    n = data.draw(st.integers(1, len(paths) - 1))
    longest = max(map(len, paths[:n]))
    paths = paths[:n] + [p for p in paths[n:] if len(p) <= longest]
    if len(paths) == n: return
    live = DynamicTrie(ItemTrie.build(identifiers(paths[:n], V)), np.ones(n))
    live.add([p + [0]*(longest - len(p)) for p in paths[n:]], np.ones(len(paths) - n))
    live.remove([0])
    same(live, paths)
    trie = ItemTrie.build(identifiers(paths, V), np.arange(1, len(paths)))
    depths = set(trie.node_depth[trie.leaves].tolist())
    assert {d for d, end in enumerate(trie.ends) if end} == depths and all(live.ends[d] for d in depths)

def test_a_large_addition():
    "Thousands of items, and the sums of nodes that are not on a changed path stay as they were"
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, 32, (30_000, 3)) + np.array([3, 35, 67])
    names = ['<pad>', '<s>', '</s>', *map(str, range(96))]
    table = lambda n: Identifiers(tokens[:n].ravel(), np.arange(n + 1)*3, names)
    counts = rng.integers(0, 5, 30_000)
    live = DynamicTrie(ItemTrie.build(table(20_000)), counts[:20_000])
    for a in (20_000, 25_000): live.add(tokens[a:a + 5_000], counts[a:a + 5_000])
    gone = rng.choice(30_000, 3000, replace=False)
    live.remove(gone)
    counts[gone] = 0
    here = np.setdiff1d(np.arange(30_000), gone)
    trie = ItemTrie.build(table(30_000), here)
    assert all(torch.equal(x, live.merged().tensors()[k]) for k, x in trie.tensors().items())
    np.testing.assert_allclose(live.gain(live.item_nodes(torch.from_numpy(here))), information_gain(trie, item_prior(counts))[trie.item_nodes(torch.from_numpy(here))], rtol=0, atol=1e-12)


# ---- bad input ----------------------------------------------------------------------------------------------------

def test_what_cannot_be_changed():
    live = DynamicTrie(ItemTrie.build(identifiers([[3, 4], [3, 5], [4, 4]], 8)), [1, 2, 3])
    live.remove([1])
    before = [x.copy() for x in live._node.values()]
    for f, words in ((lambda: live.remove([1]), 'item 1 was removed'), (lambda: live.reweigh([0, 1], [1, 2]), 'item 1 was removed: it cannot be a target'),
                     (lambda: live.remove([7]), 'found item 7'), (lambda: live.remove([0, 0]), 'named twice'), (lambda: live.reweigh([0], [-1]), 'count -1'),
                     (lambda: live.add([[3, 9]]), 'expected tokens 1 to 7'), (lambda: live.add([[3, -4]]), 'expected tokens'), (lambda: live.add([[3, 4, 5]]), 'at most 2 tokens'),
                     (lambda: live.add([[0, 4]]), 'expected tokens'), (lambda: live.add([[3, 4]], [1, 2]), '2 counts, expected one for each of 1 items'), (lambda: live.add([[3, 0]]), 'beginning of another'),
                     (lambda: DynamicTrie(live.base, [1]), '1 counts, expected one for each of 3 items')):
        with pytest.raises(GenrecError, match=words) as e: f()
        assert '\n' not in str(e.value)
    assert all((a == b).all() for a, b in zip(before, live._node.values())) and live.counts.tolist() == [1, 0, 3]

def test_a_removed_item_that_is_still_a_target():
    ids = identifiers([[3, 4], [3, 5], [4, 4]], 8)
    live = DynamicTrie(ItemTrie.build(ids), [1, 2, 3])
    live.remove([1])
    trie = live.merged()
    words = 'item 1 was removed from the trie, and is still a target'
    with pytest.raises(GenrecError, match=words): information_gain(trie, item_prior([1, 2, 3]))
    with pytest.raises(GenrecError, match=words): ChildSoftmax.build(trie, np.array([1, 2, 3]))
    with pytest.raises(GenrecError, match=words): DynamicTrie(trie, [1, 2, 3])
    from genrec_nb.data import Interactions
    from genrec_nb.train import _check_catalog
    with pytest.raises(GenrecError, match=words): _check_catalog(Interactions(np.array([0, 1, 2]), np.array([0, 3]), ['u'], 3), trie)
    assert ChildSoftmax.build(trie, live.counts).share.isneginf().tolist() == [False, True, False]


# ---- served -------------------------------------------------------------------------------------------------------

@pytest.fixture(scope='module')
def changed():
    "40 items, five of them removed and ten added; two of the new ones share a path"
    codes = np.random.default_rng(1).integers(0, 5, (50, 3)) + np.array([0, 5, 10]) + 3
    codes[:5], codes[48] = np.arange(5)[:, None] + np.array([3, 8, 13]), codes[47]
    names = ['<pad>', '<s>', '</s>', *map(str, range(15))]
    old, both = (Identifiers(codes[:n].ravel(), np.arange(n + 1)*3, names) for n in (40, 50))
    live = DynamicTrie(ItemTrie.build(old), np.arange(40))
    gone = np.array([7, 11, 20, 21, 33])
    live.remove(gone)
    live.add(codes[40:], np.arange(10))
    history = torch.tensor([[5, 7, 41], [1, 2, 3], [48, 8, -1]])
    return both, live, gone, history

@pytest.mark.parametrize('make', [oracles.t5, oracles.packed])
def test_beam_search_on_the_changed_trie_is_that_on_a_rebuild(changed, make):
    both, live, gone, history = changed
    model = make(both)
    with torch.inference_mode():
        new, scores = recommend(model, live, history, 60, DecodeConfig(60))
        want, other = recommend(model, ItemTrie.build(both, np.setdiff1d(np.arange(50), gone)), history, 60, DecodeConfig(60))
    assert torch.equal(new, want) and torch.allclose(scores, other) and not np.isin(new, gone).any()
    assert {*range(40, 50)} & set(new[1].tolist()) and (new >= 0).sum(1).tolist() == [43, 42, 43]

@pytest.mark.parametrize('search', ['exact', 'beam'])
@pytest.mark.parametrize('prior', ['none', 'trie'])
def test_a_served_model_takes_the_new_trie(changed, prior, search):
    "As the model of a catalog that never had the removed items, with the same weights and counts"
    both, live, gone, history = changed
    counts = np.r_[np.arange(40), np.arange(10)]
    model = oracles.packed(both, softmax='children', prior=prior, counts=counts)
    model.set_items(both, [live.merged()])
    here = np.setdiff1d(np.arange(50), gone)
    fewer = Identifiers(both.codes()[here].ravel(), np.arange(46)*3, both.tokens)
    other = oracles.packed(both, softmax='children', prior=prior, counts=counts).set_items(fewer, None) if prior == 'none' else None
    found, = search_each(model, model.tries[0], history, 60, [DecodeConfig(60, search=search)])
    assert not np.isin(found.items, gone).any() and len(set(found.items[1].tolist()) - {-1}) == 42
    p = found.scores[1][found.items[1] >= 0].double().exp().sum()
    if other is None: return
    inner = torch.from_numpy(np.searchsorted(here, np.array([[1, 2, 3]])))
    want, = search_each(other, other.tries[0], inner, 60, [DecodeConfig(60, search=search)])
    n = int((want.items[0] >= 0).sum())
    assert torch.allclose(want.scores[0][:n], found.scores[1][:n], atol=1e-5)

def test_tries_that_do_not_fit_are_refused(changed):
    both, live, *_ = changed
    model = oracles.packed(both)
    for tries in ([], [live.base], [live.merged()]*2):
        with pytest.raises(GenrecError, match='give one for each'): model.set_items(both, tries)

def test_a_t5_over_children_takes_the_new_trie(changed):
    "As one that never had the removed items, with the same weights"
    both, live, gone, history = changed
    here = np.setdiff1d(np.arange(50), gone)
    fewer = Identifiers(both.codes()[here].ravel(), np.arange(46)*3, both.tokens)
    model, other = (oracles.t5(both, softmax='children') for _ in range(2))
    model.set_items(both, [live.merged()])
    known = np.array([[1, 2, 3]])
    found, scores = recommend(model, model.trees[0].trie, torch.from_numpy(known), 60, DecodeConfig(60, exclude_seen=False))
    want, other = recommend(other.set_items(fewer), other.trees[0].trie, torch.from_numpy(np.searchsorted(here, known)), 60, DecodeConfig(60, exclude_seen=False))
    assert torch.allclose(scores[:, :45], other[:, :45], atol=1e-5) and not np.isin(found, gone).any()
    sums = {int(i): float(s) for i, s in zip(found[0], scores[0]) if i >= 0}
    assert {here[i]: pytest.approx(float(s), abs=1e-5) for i, s in zip(want[0], other[0]) if i >= 0} == sums

@pytest.mark.parametrize('make', [oracles.t5, oracles.packed])
def test_items_that_a_model_over_children_has_not(changed, make):
    both, live, _, history = changed
    old = Identifiers(both.codes()[:40].ravel(), np.arange(41)*3, both.tokens)
    with pytest.raises(GenrecError, match="the trie has 50 items, the model's own 40: give both to its `set_items` first"):
        recommend(make(old, softmax='children'), live, history[1:2], 5)

def test_every_search_is_that_of_the_trie_given(changed):
    "A removed item is not recommended, although the model has it, nor one that shares a path with an item that stays"
    both, live, gone, history = changed
    model, trie = oracles.packed(both), ItemTrie.build(both, np.setdiff1d(np.arange(50), gone))
    for search in ('beam', 'auto'):
        found, = search_each(model, trie, history, 60, [DecodeConfig(60, search=search)])
        assert found.search == 'beam' and torch.equal(found.items, recommend(model, trie, history, 60, DecodeConfig(60))[0])
    for some in (trie, ItemTrie.build(both, np.setdiff1d(np.arange(50), 47))): # 48 stays on its path
        with pytest.raises(GenrecError, match="the trie is not that of the model's items"): search_each(model, some, history, 5, [DecodeConfig(search='exact')])
    several = oracles.packed([both, Identifiers.from_codes(np.arange(50)[:, None], policy='keep')], softmax='children')
    with pytest.raises(GenrecError, match="the trie is not that of the model's items"): search_each(several, trie, history, 5)

@pytest.mark.parametrize('make', [oracles.t5, oracles.packed])
def test_counts_of_a_served_prior(changed, make):
    "As a model that was made with these counts; others are refused, and nothing is changed"
    both, live, gone, history = changed
    old = Identifiers(both.codes()[:40].ravel(), np.arange(41)*3, both.tokens)
    model, other = make(old, softmax='children', prior='trie', counts=np.arange(40)), make(both, softmax='children', prior='trie', counts=live.counts)
    known = torch.tensor([[1, 2, 3]])
    before = recommend(model, model.trees[0].trie, known, 10)
    with pytest.raises(GenrecError, match='the model has training counts of 40 items, the identifiers are those of 50: give counts='): model.set_items(both, [live.merged()])
    assert all(torch.equal(a, b) for a, b in zip(before, recommend(model, model.trees[0].trie, known, 10)))
    model.set_items(both, [live.merged()], live.counts)
    other.set_items(both, [live.merged()])
    assert torch.equal(model.trees[0].prior, other.trees[0].prior)
    found, _ = recommend(model, model.trees[0].trie, history, 60, DecodeConfig(60))
    assert not np.isin(found, gone).any() and len(model.counts) == model.config.n_items == 50
    with pytest.raises(GenrecError, match='searches plain tries: give `merged'): recommend(model, live, known, 5)

@pytest.mark.parametrize('make', [oracles.t5, oracles.packed])
def test_a_model_over_the_vocabulary_searches_the_changed_trie_at_once(changed, make):
    "With paths that it never had: as with the whole table"
    both, live, gone, _ = changed
    old = Identifiers(both.codes()[:40].ravel(), np.arange(41)*3, both.tokens)
    known = torch.tensor([[1, 2, 3], [8, 9, -1]])
    found, want = (recommend(make(ids), live, known, 60, DecodeConfig(60)) for ids in (old, both))
    assert torch.equal(found[0], want[0]) and torch.allclose(found[1], want[1], atol=1e-5) and {*range(40, 50)} & set(found[0][0].tolist())

def test_items_below_several_nodes(changed):
    "Old and new ones, some asked for twice, as one by one"
    _, live, *_ = changed
    nodes = torch.tensor([live.n_nodes - 1, 0, 3, live.n_nodes - 2, 3, live.n_nodes - 1])
    item, owner = live.items_below(nodes)
    for n, node in enumerate(nodes): assert item[owner == n].tolist() == live.items_below(node[None])[0].tolist()
    assert owner.tolist() == sorted(owner.tolist()) and len(item[owner == 1]) == 45

@pytest.mark.parametrize('f, words', [(lambda l: l.remove([1.9]), 'expected their numbers'), (lambda l: l.remove(np.array([False, True])), 'of a mask'), (lambda l: l.add([[3.5, 4]]), 'paths: expected whole numbers')])
def test_what_is_no_number_of_an_item(f, words):
    with pytest.raises(GenrecError, match=words): f(DynamicTrie(ItemTrie.build(identifiers([[3, 4], [3, 5]], 8))))

@pytest.mark.parametrize('make', [oracles.t5, oracles.packed])
def test_a_model_over_children_that_was_given_fewer_items_than_are_searched(changed, make):
    both, live, gone, history = changed
    model, all_items = make(both, softmax='children').set_items(both, [live.merged()]), ItemTrie.build(both)
    with pytest.raises(GenrecError, match=f"the trie has item {gone[0]}, which the model's own lacks: give the trie to its `set_items` first"):
        recommend(model, all_items, history, 5)
    (found, scores), (_, own) = (recommend(model, x, history, 5) for x in (live.merged(), model.trees[0].trie)) # colliding items in any order
    assert torch.equal(scores, own) and not np.isin(found, gone).any()
