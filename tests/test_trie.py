"""The trie of arrays against a trie of dictionaries, on tables made by hypothesis, and what files and odd tables do to it."""
import os
from dataclasses import fields
from types import SimpleNamespace
import numpy as np
import pytest
import torch
from hypothesis import given, strategies as st
from genrec_nb.core import FileError, GenrecError
from genrec_nb.semantic_ids import Identifiers
from genrec_nb.infogain import information_gain, item_prior
from genrec_nb.trie import ItemTrie, shortest_paths
from oracles import DictTrie, few, identifiers, quick, tables

ARRAYS = [f.name for f in fields(ItemTrie)][:6]
same = lambda a, b: (a.vocab_size, a.n_items) == (b.vocab_size, b.n_items) and all(torch.equal(getattr(a, n), getattr(b, n)) for n in ARRAYS)


# ---- structure ----------------------------------------------------------------------------------------------------

@quick
@given(tables())
def test_arrays_equal_dictionaries(paths):
    t, d = ItemTrie.build(identifiers(paths)), DictTrie(paths)
    assert t.n_nodes == len(d.branches) and t.n_items == len(paths) and t.max_depth == max(map(len, paths))
    assert t.token.tolist() == [b.prefix[-1] if b.prefix else -1 for b in d.branches]
    assert t.count.tolist() == [len(b.items) for b in d.branches]
    assert t.n_children.tolist() == [len(b.kids) for b in d.branches]
    assert t.node_depth.tolist() == [len(b.prefix) for b in d.branches]
    assert t.parent.tolist() == [d.number[b.prefix[:-1]] if b.prefix else -1 for b in d.branches]
    assert t.leaf.tolist() == [d.number[p] for p in d.paths]
    for how, f in dict(sum=sum, min=min, max=max).items():
        want = [f([d.number[b.prefix + (k,)]**2 for k in b.kids]) for b in d.branches if b.kids]
        assert t.reduce_children(torch.arange(t.n_nodes).double()**2, how)[t.n_children > 0].tolist() == want
    width = t.max_depth
    assert t.item_nodes().tolist() == [[d.number[p[:k + 1]] for k in range(len(p))] + [-1]*(width - len(p)) for p in d.paths]


@quick
@given(tables())
def test_shortest_paths_are_the_shortest_beginnings_of_their_own(paths):
    "No path begins another, what was cut off had no gain, and one token less would name others, too"
    ids = identifiers(paths)
    short = shortest_paths(ids)
    found, full = [tuple(short.path(i).tolist()) for i in range(len(paths))], [tuple(p) for p in paths]
    for p, f in zip(found, full):
        named = lambda beginning: {g for g in full if g[:len(beginning)] == beginning}
        assert f[:len(p)] == p and named(p) == {f} and (len(p) == 1 or len(named(p[:-1])) > 1)
    a, b = ItemTrie.build(ids), ItemTrie.build(short)
    assert (short.group[:, None] == short.group).tolist() == (ids.group[:, None] == ids.group).tolist() and b.max_depth <= a.max_depth
    gain, kept = (information_gain(t, item_prior(np.arange(1, len(paths) + 1))) for t in (a, b))
    for i, p in enumerate(found):
        whole, cut = gain[a.item_nodes()[i, :len(full[i])]], kept[b.item_nodes()[i, :len(p)]]
        torch.testing.assert_close(whole[:len(p)], cut)
        assert (whole[len(p):].abs() < 1e-6).all()
    assert shortest_paths(short) == short and short.tokens == ids.tokens


@few
@given(tables(), st.data())
def test_children_of_any_nodes(paths, data):
    t, d = ItemTrie.build(identifiers(paths)), DictTrie(paths)
    nodes = data.draw(st.lists(st.integers(0, t.n_nodes - 1), min_size=1, max_size=6))
    child = t.children(torch.tensor(nodes))
    assert child.shape == (len(nodes), max(len(d.branches[n].kids) for n in nodes))
    for n, row in zip(nodes, child.tolist()):
        want = [d.number[d.branches[n].prefix + (k,)] for k in sorted(d.branches[n].kids)]
        assert row == want + [-1]*(len(row) - len(want))
    assert torch.equal(t.children(torch.tensor([nodes, nodes])), torch.stack([child, child]))       # any shape


@few
@given(tables())
def test_one_step_with_every_token(paths):
    "Also with tokens that no vocabulary has, and from no node"
    ids, d = identifiers(paths), DictTrie(paths)
    t = ItemTrie.build(ids)
    tokens = torch.arange(-2, ids.vocab_size + 2)
    nodes = torch.arange(-1, t.n_nodes)
    got = t.step(nodes[:, None].expand(-1, len(tokens)), tokens.expand(len(nodes), -1)).tolist()
    for n, row in zip(nodes.tolist(), got):
        for k, to in zip(tokens.tolist(), row):
            assert to == (d.number.get(d.branches[n].prefix + (k,), -1) if n >= 0 else -1)


@few
@given(tables(), st.lists(st.lists(st.integers(-1, 9), min_size=5, max_size=5), min_size=1, max_size=8))
def test_walks_stop_where_the_dictionary_ends(paths, others):
    t, d = ItemTrie.build(identifiers(paths)), DictTrie(paths)
    longest = max(max(map(len, paths)), 5)
    rows = [list(p) + [0]*(longest - len(p)) for p in paths] + [o + [0]*(longest - 5) for o in others]
    want = [[d.number.get(tuple(r[:k + 1]), -1) for k in range(longest)] for r in rows]
    assert t.walk(torch.tensor(rows)).tolist() == want


@few
@given(tables(), st.data())
def test_items_below(paths, data):
    t, d = ItemTrie.build(identifiers(paths)), DictTrie(paths)
    nodes = data.draw(st.lists(st.integers(0, t.n_nodes - 1), max_size=6))
    items, owner = t.items_below(torch.tensor(nodes, dtype=torch.long))
    want = [(i, k) for k, n in enumerate(nodes) for i in sorted(d.branches[n].items, key=lambda i: (d.paths[i], i))]
    assert list(zip(items.tolist(), owner.tolist())) == want


@few
@given(tables(), st.randoms())
def test_the_order_of_the_items_does_not_matter(paths, random):
    t, turn = ItemTrie.build(identifiers(paths, 9)), random.sample(range(len(paths)), len(paths))
    u = ItemTrie.build(identifiers([paths[i] for i in turn], 9))
    assert all(torch.equal(getattr(t, n), getattr(u, n)) for n in ('token', 'first', 'count', 'level'))
    assert torch.equal(t.leaf[turn], u.leaf) and torch.equal(t.item_nodes()[turn], u.item_nodes())


@few
@given(tables())
def test_describe_counts(paths):
    t, d = ItemTrie.build(identifiers(paths)), DictTrie(paths)
    report = t.describe()
    assert report.index.tolist() == list(range(t.max_depth + 1))
    for depth, row in report.iterrows():
        here = [b for b in d.branches if len(b.prefix) == depth]
        inner = [len(b.kids) for b in here if b.kids]
        assert (row.nodes, row['items'], row.leaves) == (len(here), sum(len(b.items) for b in here), len(here) - len(inner))
        assert row.most == max(inner, default=0) and row.choices == pytest.approx(np.mean(inner) if inner else 0)
        assert row.forced == pytest.approx(np.mean([n == 1 for n in inner]) if inner else 0)


@pytest.mark.parametrize('sizes', [(10_000, 3, 40), (5_000, 6, 8)])
def test_many_items(sizes):
    "Against sets of prefixes; every leaf, every count"
    n, levels, k = sizes
    ids = Identifiers.from_codes(np.random.default_rng(0).integers(0, k, (n, levels)), policy='keep')
    t, paths = ItemTrie.build(ids), [tuple(p) for p in ids.codes().tolist()]
    assert t.n_nodes == 1 + sum(len({p[:d] for p in paths}) for d in range(1, levels + 1))
    nodes = t.walk(torch.from_numpy(ids.codes()))
    assert torch.equal(nodes, t.item_nodes()) and torch.equal(nodes[:, -1], t.leaf)
    assert torch.equal(torch.bincount(nodes.flatten(), minlength=t.n_nodes)[1:], t.count[1:].long())


# ---- odd tables ---------------------------------------------------------------------------------------------------

def test_one_item():
    t = ItemTrie.build(identifiers([[5, 3]]))
    assert (t.n_nodes, t.max_depth, t.leaf.tolist()) == (3, 2, [2])
    assert t.children(torch.tensor([0, 1])).tolist() == [[1], [2]] and t.children(torch.tensor([2])).shape == (1, 0)
    assert t.walk(torch.tensor([[5, 3], [5, 4], [3, 5]])).tolist() == [[1, 2], [1, -1], [-1, -1]]

def test_paths_of_a_single_token():
    t = ItemTrie.build(identifiers([[9], [4], [9], [6]]))
    assert t.token.tolist() == [-1, 4, 6, 9] and t.leaf.tolist() == [3, 1, 3, 2] and t.order.tolist() == [1, 3, 0, 2]

def test_all_items_on_one_path():
    t = ItemTrie.build(identifiers([[3, 4]]*5))
    assert t.n_nodes == 3 and t.count.tolist() == [5, 5, 5] and t.items_below(torch.tensor([2]))[0].tolist() == [0, 1, 2, 3, 4]

def test_large_token_ids():
    "Numbers near 2^31 in a vocabulary of that size: no edge is mistaken for another"
    paths = np.array([[2**31 - 2, 3, 7], [2**31 - 3, 3, 7], [3, 2**31 - 2, 2**31 - 2], [3, 2**31 - 2, 2**30]])
    table = SimpleNamespace(is_ragged=False, flat=paths.reshape(-1), n_items=4, vocab_size=2**31 - 1)
    t, d = ItemTrie.build(table), DictTrie(paths.tolist())
    assert t.leaf.tolist() == [d.number[p] for p in d.paths]
    assert torch.equal(t.walk(torch.from_numpy(paths)), t.item_nodes())
    assert t.walk(torch.tensor([[2**31 - 2, 4, 7]])).tolist() == [[d.number[(2**31 - 2,)], -1, -1]]

def test_long_ragged_paths_with_a_large_vocabulary():
    "More bits than one sort word holds"
    rng = np.random.default_rng(0)
    paths = [rng.integers(3, 5, rng.integers(1, 40)).tolist() + rng.integers(3, 200_000, 2).tolist() + [2] for _ in range(200)]
    t, d = ItemTrie.build(identifiers(paths, 200_000)), DictTrie(paths)
    assert t.leaf.tolist() == [d.number[p] for p in d.paths] and t.count.tolist() == [len(b.items) for b in d.branches]

@pytest.mark.parametrize('paths', [[[3], [3, 4]], [[3, 4, 5], [6], [3, 4]], [[3, 4], [3, 4], [3, 4, 2]]])
def test_a_path_that_begins_another_is_refused(paths):
    with pytest.raises(GenrecError) as e: ItemTrie.build(identifiers(paths))
    short, long = next((i, j) for i, p in enumerate(paths) for j, q in enumerate(paths) if q[:len(p)] == p and len(p) < len(q))
    assert f'item {long}' in str(e.value) and 'EOS' in str(e.value) and '\n' not in str(e.value)
    named = int(str(e.value).split('item ')[1].split(',')[0])
    assert paths[named] == paths[short]
    fixed = ItemTrie.build(identifiers(paths).with_eos())
    assert fixed.n_items == len(paths)


# ---- files --------------------------------------------------------------------------------------------------------

def saved(trie, path):
    trie.save(path)
    return path

@pytest.mark.parametrize('paths', [[[3, 4], [3, 5]], [[3, 4, 2], [5, 2], [3, 4, 2]], [[3]]])
def test_saved_and_loaded(tmp_path, paths):
    t = ItemTrie.build(identifiers(paths))
    u = ItemTrie.load(saved(t, tmp_path/'trie.safetensors'))
    assert same(t, u) and torch.equal(t.leaf, u.leaf) and [getattr(t, n).dtype for n in ARRAYS] == [getattr(u, n).dtype for n in ARRAYS]

def test_files_that_are_not_a_trie(tmp_path):
    from safetensors.torch import save_file
    path = tmp_path/'trie.safetensors'
    def refused(words):
        with pytest.raises(FileError, match=words) as e: ItemTrie.load(path)
        assert str(path) in str(e.value) and '\n' not in str(e.value)
    refused('No such file')
    good = saved(ItemTrie.build(identifiers([[3, 4], [3, 5]])), path).read_bytes()
    path.write_bytes(good[:len(good)//2])
    refused('not a saved trie')
    path.write_text('{"token": 1}')
    refused('not a saved trie')
    save_file(dict(token=torch.zeros(3)), path)
    refused('not a saved trie')

@pytest.mark.parametrize('die', [False, True])
def test_an_unfinished_write_leaves_the_old_file(tmp_path, monkeypatch, die):
    "A disk that fills up half-way; a process that dies between the first byte and the renaming"
    old, new = (ItemTrie.build(identifiers(p)) for p in ([[3, 4], [3, 5]], [[3], [4], [5]]))
    path = saved(old, tmp_path/'trie.safetensors')
    def half_a_file(arrays, file, metadata=None):
        with open(file, 'wb') as f: f.write(b'half a fi')
        if die: os._exit(9)
        raise OSError(28, 'No space left on device')
    monkeypatch.setattr('safetensors.torch.save_file', half_a_file)
    if die:
        child = os.fork()
        if not child: new.save(path)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
    else:
        with pytest.raises(OSError): new.save(path)
        with pytest.raises(OSError): new.save(tmp_path/'other.safetensors')
        assert os.listdir(tmp_path) == ['trie.safetensors']
    assert same(ItemTrie.load(path), old)
