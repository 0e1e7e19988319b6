"Identifiers against plain Python dictionaries, the published tables, and bad input."
import json, os
from collections import Counter
from pathlib import Path
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from numpy.testing import assert_array_equal

from genrec_nb.core import GenrecError
from genrec_nb.collisions import collision_counts, _path_groups, _running_number
from genrec_nb.semantic_ids import BOS, EOS, PAD, SPECIAL, Identifiers, _append_eos, _pad_paths, _prefix_pairs

from oracles import identifiers, tables

DATA = Path(os.environ.get('GENREC_DATA') or Path(__file__).parents[1]/'../shared/data')
paths = st.lists(st.lists(st.integers(3, 6), min_size=1, max_size=4), min_size=1, max_size=25)

def arrays(ps): return np.array([t for p in ps for t in p], np.int32), np.cumsum([0] + [len(p) for p in ps])
def table(tmp_path, text):
    f = tmp_path/'index.json'
    f.write_text(text if isinstance(text, str) else json.dumps(text))
    return f


# ---- paths against dictionaries ----

@settings(max_examples=60, deadline=None)
@given(paths)
def test_paths_against_brute_force(ps):
    flat, offsets = arrays(ps)
    padded = _pad_paths(flat, offsets)
    width = max(map(len, ps))
    assert_array_equal(padded, [p + [PAD]*(width - len(p)) for p in ps])
    number = {p: i for i, p in enumerate(sorted({tuple(p) for p in ps}))}
    group = _path_groups(padded)
    assert_array_equal(group, [number[tuple(p)] for p in ps])
    size = Counter(map(tuple, ps))
    shared = [n for n in size.values() if n > 1]
    c = collision_counts(group)
    assert (c['distinct'], c['groups'], c['items'], c['largest']) == (len(size), len(shared), sum(shared), max(size.values()))
    assert c['rate'] == pytest.approx(1 - len(size)/len(ps))
    assert_array_equal(_running_number(group), [sum(q == p for q in ps[:i]) for i, p in enumerate(ps)])
    begun = {a for a in size if any(len(b) > len(a) and b[:len(a)] == a for b in size)}
    pairs = _prefix_pairs(padded)
    assert {tuple(ps[a]) for a, _ in pairs} == begun and len(pairs) == len(begun)
    assert all(len(ps[b]) > len(ps[a]) and ps[b][:len(ps[a])] == ps[a] for a, b in pairs)
    ended = _pad_paths(*_append_eos(flat, offsets))
    assert [[t for t in r if t] for r in ended.tolist()] == [p + [EOS] for p in ps] and len(_prefix_pairs(ended)) == 0

def test_long_paths_need_several_sort_keys():
    rng = np.random.default_rng(0)
    rows = rng.integers(3, 60_000, (200, 9)); rows[50:100] = rows[:50]
    number = {p: i for i, p in enumerate(sorted(map(tuple, set(map(tuple, rows.tolist())))))}
    assert_array_equal(_path_groups(rows), [number[tuple(r)] for r in rows.tolist()])

@pytest.mark.parametrize('flat,offsets,message', [
    ([3, 4], [0, 2, 2], 'item 1 has an empty path'),
    ([3, 4, 5], [0, 2], 'offsets run from 0 to 2'),
    ([3, PAD, 4], [0, 1, 3], 'item 1 holds a reserved token'),
    ([BOS, 3], [0, 2], 'item 0 holds a reserved token'),
    ([3, EOS, 4], [0, 3], 'item 0 holds a reserved token')])
def test_impossible_paths(flat, offsets, message):
    with pytest.raises(GenrecError, match=message): Identifiers(flat, offsets, SPECIAL + ['a', 'b', 'c'])

def test_vocabulary_is_checked():
    with pytest.raises(GenrecError, match='must start with'): Identifiers([3], [0, 1], ['a', 'b', 'c', 'd'])
    with pytest.raises(GenrecError, match='name no token twice'): Identifiers([3], [0, 1], SPECIAL + ['a', 'a'])
    with pytest.raises(GenrecError, match='token id 5 lies outside'): Identifiers([5], [0, 1], SPECIAL + ['a'])


# ---- codes ----

@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(*[st.integers(0, 2)]*3), min_size=1, max_size=40))
def test_extra_token_makes_paths_distinct_and_keeps_codes(rows):
    ids = Identifiers.from_codes(np.array(rows), [3]*3)
    assert ids.collisions()['rate'] == 0 and not ids.is_ragged
    seen = Counter()
    for i, r in enumerate(rows):
        assert ids.names(i) == [f'<a_{r[0]}>', f'<b_{r[1]}>', f'<c_{r[2]}>', f'<d_{seen[r]}>']
        seen[r] += 1
    assert ids.vocab_size == 3 + 9 + max(seen.values())
    kept = Identifiers.from_codes(np.array(rows), [3]*3, 'keep')
    assert kept.collisions() == ids.notes['before'] and kept.codes().shape == (len(rows), 3)
    assert_array_equal(kept.codes(), np.array(rows) + [3, 6, 9])

@pytest.mark.parametrize('codes,kw,message', [
    ([[0, 1], [0, 5]], dict(sizes=[2, 3]), 'code 5 of item 1 at level 2 lies outside 0..2'),
    ([[0, -1]], {}, 'code -1 of item 0 at level 2'),
    ([[.5, 1]], {}, 'type float64'), ([1, 2], {}, r'shape \(2,\)'),
    ([[0, 1]], dict(sizes=[2]), '1 level sizes given for codes of 2 levels'),
    ([[0, 1]], dict(policy='drop'), "policy is 'drop', expected one of extra"),
    ([[0, 1]], dict(policy='sinkhorn'), 'distances have shape'),
    ([[0, 1]], dict(policy='sinkhorn', distances=np.zeros((1, 5))), r'shape \(1, 5\), expected \(1, 2\)')])
def test_bad_codes(codes, kw, message):
    with pytest.raises(GenrecError, match=message): Identifiers.from_codes(np.array(codes), **kw)

def test_random_ids_are_distinct_seeded_and_full():
    a = Identifiers.random(64, 2, 8, seed=1)
    assert a.collisions()['rate'] == 0 and a == Identifiers.random(64, 2, 8, seed=1) and a != Identifiers.random(64, 2, 8, seed=2)
    with pytest.raises(GenrecError, match='too few for 65 items'): Identifiers.random(65, 2, 8)
    assert Identifiers.random(1000, 4, 256).collisions()['distinct'] == 1000


# ---- tables ----

def test_save_and_load_keep_the_numbering(tmp_path):
    for n, ids in enumerate((Identifiers.from_codes(np.array([[0, 5], [1, 2]]), [4, 8], 'keep'), Identifiers([3, 4, 2, 3, 2], [0, 3, 5], SPECIAL + ['x', 'y'], 'titles', [-1, 1, 0, 7, 9], dict(eos=True)))):
        for where in (tmp_path/f'f{n}', tmp_path/f'{n}.index.json'):
            ids.save(where)
            again = Identifiers.load(where)
            assert again == ids and again.notes == ids.notes
            assert (again.backbone_ids is None) == (ids.backbone_ids is None)
    assert json.loads((tmp_path/'f0'/'index.json').read_text()) == {'0': ['<a_0>', '<b_5>'], '1': ['<a_1>', '<b_2>']}
    assert not list(tmp_path.rglob('.*'))

def test_index_follows_the_catalog(tmp_path):
    f = table(tmp_path, {'x': ['<a_1>', '<b_0>'], 'y': ['<a_0>', '<b_10>'], 'z': ['<a_0>', '<b_9>']})
    ids = Identifiers.from_index(f, ['z', 'x', 'y'])
    assert [ids.names(i)[1] for i in range(3)] == ['<b_9>', '<b_0>', '<b_10>']
    assert ids.tokens == SPECIAL + ['<a_0>', '<a_1>', '<b_0>', '<b_9>', '<b_10>']
    with pytest.raises(GenrecError, match="lacks 1 of the catalog's 2 items, the first is 'q'"): Identifiers.from_index(f, ['x', 'q'])
    with pytest.raises(GenrecError, match="holds 1 item that the catalog lacks, the first is 'y'"): Identifiers.from_index(f, ['x', 'z'])
    assert Identifiers.from_index(f, ['x', 'z'], extra='drop').n_items == 2
    with pytest.raises(GenrecError, match="lacks 3 of the catalog's 3 items"): Identifiers.from_index(f)

@pytest.mark.parametrize('text,message', [
    ('{"0": ["<a_1>"],\n "1": ["<a_2>" "<b_1>"]}', 'line 2, column 16'),
    ('{"0": ["<a_1>"], "0": ["<a_2>"]}', "'0' stands"),
    ('["<a_1>"]', 'holds a list'),
    ('{"0": "<a_1>"}', "item '0' has '<a_1>'"), ('{"0": []}', "item '0' has"), ('{"0": [1]}', "item '0' has"),
    ('{"0": ["x"], "1": ["x", "y"]}', "path of item 0, x, is the beginning of item 1's, x y"),
    ('{"0": ["<pad>", "y"]}', 'reserved token')])
def test_broken_tables(tmp_path, text, message):
    f = table(tmp_path, text)
    with pytest.raises(GenrecError, match=message) as e: Identifiers.from_index(f)
    assert str(f) in str(e.value) and '\n' not in str(e.value)

def test_missing_files_and_repairs(tmp_path):
    with pytest.raises(GenrecError, match='no such file'): Identifiers.from_index(tmp_path/'none.json')
    f = table(tmp_path, {'0': ['x'], '1': ['x', 'y']})
    assert Identifiers.from_index(f, eos=True).names(0) == ['x', '</s>']
    with pytest.raises(GenrecError, match='vocab.json: no such file'): Identifiers.load(tmp_path)

@pytest.mark.parametrize('name,kind,items,distinct,largest', [
    ('Scientific', 'letter', 4344, 4317, 2), ('Scientific', 'rqvae', 4344, 3790, 22), ('Beauty', 'letter', 12101, 12088, 3), ('Beauty', 'rqvae', 12101, 11499, 12),
    ('Instruments', 'letter', 9922, 9897, 3), ('Yelp', 'letter', 20033, 19201, 65), ('Yelp', 'rqvae', 20033, 18831, 65)])
def test_published_tables(name, kind, items, distinct, largest):
    f = DATA/name/f'{name}.{kind}.index.json'
    if not f.is_file(): pytest.skip('set GENREC_DATA to the folder with the published data sets')
    ids = Identifiers.from_index(f, items)
    c = ids.collisions()
    assert (ids.n_items, c['distinct'], c['largest'], ids.max_len) == (items, distinct, largest, 4)
    raw = json.loads(f.read_text())
    assert all(ids.names(i) == raw[str(i)] for i in range(0, items, 97))


# ---- one length ----

@settings(max_examples=80, deadline=None)
@given(tables(), st.data())
def test_paths_of_one_length_keep_what_is_equal_and_what_is_below(ps, data):
    "Equal where they were equal, the same items below each inner prefix, a range of tokens for each level"
    ids = identifiers(ps)
    level = ids.by_level()
    codes, L = level.codes(), ids.max_len
    assert level.by_level() is level and level.max_len == L and level.n_items == len(ps) and level.kind == ids.kind
    assert_array_equal(level.group[:, None] == level.group, ids.group[:, None] == ids.group)
    ends = codes.max(0)
    assert all((codes[:, l] > ends[m]).all() or (codes[:, l] < codes[:, m].min()).all() for l in range(L) for m in range(l))
    i, depth = data.draw(st.integers(0, len(ps) - 1)), data.draw(st.integers(0, L - 1))
    if depth < len(ps[i]):                                                       # without its last token
        below = [j for j, p in enumerate(ps) if p[:depth] == ps[i][:depth] and len(p) > depth]
        assert_array_equal(np.flatnonzero((codes[:, :depth] == codes[i, :depth]).all(1)), below)
    for p, row in zip(ps, codes):                                                # forced tokens between the last and the others
        names = [level.tokens[t] for t in row]
        assert [n.endswith('_->') for n in names] == [len(p) - 1 <= l < L - 1 for l in range(L)] or level is ids
