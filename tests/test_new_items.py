"Items that come later against loops: no old path changes, and the vocabulary does not grow."
import json
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from numpy.testing import assert_array_equal
from oracles import byte_tokenizer, colliding

import genrec_nb.new_items  # gives `Identifiers.append`
from genrec_nb.core import GenrecError
from genrec_nb.semantic_ids import Identifiers
from genrec_nb.titles import title_ids


@settings(max_examples=35, deadline=None)
@given(colliding(st.integers(1, 2)), colliding(st.integers(2, 2)), st.sampled_from(['keep', 'free', 'extra']))
def test_append_never_changes_what_is_there(first, second, policy):
    codes, d = first
    L = codes.shape[1]
    sizes, (new, dn) = [2]*(L - 1) + [4], (second[0][:, -L:], second[1])
    ids = Identifiers.from_codes(codes, sizes, policy, d)
    more = ids.append(new, distances=dn, exhausted='free')
    assert more.tokens is ids.tokens and more.n_items == len(codes) + len(new)
    assert_array_equal(more.codes()[:len(codes)], ids.codes())
    got = more.codes()[len(codes):]
    if L == 2: assert_array_equal(got[:, 0] - 3, new[:, 0])                      # the first level stays
    note = more.notes['appended'][-1]
    assert ids.notes.get('appended') is None and note['items'] == len(new)
    if policy == 'keep': assert_array_equal(got[:, -1] - 3 - sum(sizes[:-1]), new[:, -1])
    # a path is shared only where every path under its prefix is taken
    room = 4*(ids.vocab_size - 3 - sum(sizes) if policy == 'extra' else 1)
    if policy != 'keep':
        rows = more.codes().tolist()
        for prefix in {tuple(r[:L - 1]) for r in rows}:
            here = [tuple(r) for r in rows if tuple(r[:L - 1]) == prefix]
            old = [tuple(r) for r in rows[:len(codes)] if tuple(r[:L - 1]) == prefix]
            assert len(set(here)) == min(len(here) - (len(old) - len(set(old))), room)
        assert note['shared'] == len(rows) - len({tuple(r) for r in rows}) - (len(codes) - ids.collisions()['distinct'])
    again = ids.append(new, distances=lambda items: dn[items], exhausted='free')
    assert again == more

@settings(max_examples=35, deadline=None)
@given(colliding(st.just(2)), st.integers(1, 29))
def test_appended_running_numbers_are_those_of_the_whole_catalog(case, cut):
    codes, _ = case
    cut = min(cut, len(codes))
    whole = Identifiers.from_codes(codes, [2, 4], 'extra')
    begun = Identifiers(whole.flat[:3*cut], whole.offsets[:cut + 1], whole.tokens, notes=dict(policy='extra'))
    if cut == len(codes): assert begun == whole
    else: assert_array_equal(begun.append(codes[cut:]).codes(), whole.codes())

def append_by_loop(old, new, d):
    "New items one after another, those that fit their code best first"
    taken, out = {tuple(c) for c in old}, [list(c) for c in new]
    queue = sorted(range(len(new)), key=lambda i: (np.float32(d[i][new[i][-1]]), i))
    movers = []
    for i in queue:
        if tuple(new[i]) in taken: movers.append(i)
        else: taken.add(tuple(new[i]))
    for i in movers:
        free = [k for k in range(len(d[i])) if (*new[i][:-1], k) not in taken]
        if free:
            out[i][-1] = min(free, key=lambda k: (d[i][k], k))
            taken.add(tuple(out[i]))
    return out

@settings(max_examples=35, deadline=None)
@given(colliding(st.just(2)), colliding(st.just(2)))
def test_append_free_against_a_loop(first, second):
    ids = Identifiers.from_codes(first[0], [2, 4], 'free', first[1])
    more = ids.append(second[0], distances=second[1])
    old = (ids.codes() - [3, 5]).tolist()
    assert_array_equal(more.codes()[ids.n_items:] - [3, 5], append_by_loop(old, second[0].tolist(), second[1]))

def test_append_to_a_published_table(tmp_path):
    f = tmp_path/'index.json'
    f.write_text(json.dumps({'0': ['<a_1>', '<b_0>'], '1': ['<a_0>', '<b_7>'], '2': ['<a_0>', '<b_9>']}))
    ids = Identifiers.from_index(f)
    with pytest.raises(GenrecError, match="choose policy='extra', 'free' or 'keep'"): ids.append(np.array([[0, 7]]))
    d = np.full((1, 10), 9.); d[0, [5, 9, 0]] = [0, 1, 2]                         # code 5 is nearest, but has no token; 9 is taken
    assert ids.append(np.array([[0, 7]]), 'free', d).names(3) == ['<a_0>', '<b_0>']
    assert ids.append(np.array([[1, 7]]), 'free', d).names(3) == ['<a_1>', '<b_7>']
    with pytest.raises(GenrecError, match='new item 1 has code 5 at level 2, for which the vocabulary has no token'): ids.append(np.array([[0, 7], [0, 5]]), 'keep')

def test_append_survives_saving(tmp_path):
    ids = Identifiers.from_codes(np.array([[0, 1], [0, 1]]), [2, 4], 'extra').append(np.array([[1, 1]]))
    ids.save(tmp_path)
    assert Identifiers.load(tmp_path) == ids and Identifiers.load(tmp_path).append(np.array([[1, 1]])).names(3)[-1] == '<c_1>'

def test_append_refuses():
    codes = np.array([[0, 1], [0, 1], [1, 1]])
    extra, sink = Identifiers.from_codes(codes, [2, 4]), Identifiers.from_codes(codes, [2, 4], 'sinkhorn', np.ones((3, 4)))
    with pytest.raises(GenrecError, match=r'running number 2, but the extra level has only 0..1 \(1 such'): extra.append(np.array([[0, 1]]))
    with pytest.raises(GenrecError, match="'sinkhorn' would move old items"): sink.append(np.array([[0, 1]]))
    with pytest.raises(GenrecError, match=r'shape \(1, 3\) and type int64, expected integers \[items, 2\]'): extra.append(np.array([[0, 1, 0]]))
    with pytest.raises(GenrecError, match='type float64'): extra.append(np.array([[0., 1.]]))
    with pytest.raises(GenrecError, match='expected one of extra, sinkhorn, free, keep'): extra.append(np.array([[0, 1]]), 'last')
    with pytest.raises(GenrecError, match="exhausted is 'drop', expected one of error, free"): extra.append(np.array([[0, 1]]), exhausted='drop')
    with pytest.raises(GenrecError, match=r'distances have shape \(\)'): extra.append(np.array([[0, 1]]), exhausted='free')
    with pytest.raises(GenrecError, match='codes of one length only'): title_ids(['Alien', 'Alien Resurrection'], byte_tokenizer(['Alien'])).append(np.array([[0, 1]]), 'keep')
    with pytest.raises(GenrecError, match='needs paths that have a level of running numbers'): Identifiers.from_codes(codes[:, :1], [2], 'keep').append(np.zeros((1, 0), int), 'extra')
    assert extra.append(np.empty((0, 2), int)).n_items == 3
