"Collisions and their policies against plain loops."
from collections import Counter
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from numpy.testing import assert_array_equal
from oracles import colliding

from genrec_nb.core import GenrecError
from genrec_nb.collisions import POLICIES, collision_counts, compare_policies, _path_groups, resolve_collisions, _resolve_free, _running_number, _sort_rows
from genrec_nb.semantic_ids import Identifiers


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(*[st.integers(0, 6)]*3), min_size=1, max_size=25), st.sampled_from([1, 10**6, 10**12]))
def test_sorting_and_counting_against_python(rows, scale):
    "Small numbers fit into one word, large ones into several"
    codes = np.array(rows)*scale
    order, found = _sort_rows(codes)
    assert order.tolist() == sorted(range(len(rows)), key=lambda i: (rows[i], i))
    assert_array_equal(found, codes[order])
    number = {p: i for i, p in enumerate(sorted(set(rows)))}
    group, size = _path_groups(codes), Counter(rows)
    assert group.tolist() == [number[r] for r in rows]
    assert _running_number(group).tolist() == [rows[:i].count(r) for i, r in enumerate(rows)]
    shared = [n for n in size.values() if n > 1]
    expected = dict(rate=pytest.approx(1 - len(size)/len(rows)), distinct=len(size), groups=len(shared), items=sum(shared), largest=max(size.values()))
    assert collision_counts(group) == expected

def test_no_rows():
    assert _sort_rows(np.empty((0, 3), int))[0].shape == (0,) and collision_counts(_path_groups(np.empty((0, 3), int)))['rate'] == 1.

def test_sinkhorn_policy_changes_only_colliding_items_at_the_last_level():
    rng = np.random.default_rng(0)
    codes, d = rng.integers(0, 4, (60, 2)), rng.random((60, 64))
    before = Identifiers.from_codes(codes, [4, 64], 'keep')
    after = Identifiers.from_codes(codes, [4, 64], 'sinkhorn', d)
    assert_array_equal(after.codes()[:, 0], before.codes()[:, 0])
    assert after.collisions()['rate'] < .3*before.collisions()['rate'] and after.notes['before'] == before.collisions()
    called = Identifiers.from_codes(codes, [4, 64], 'sinkhorn', lambda items: d[items])
    assert called == after
    lonely = np.bincount(before.group)[before.group] == 1
    one = Identifiers.from_codes(codes, [4, 64], 'sinkhorn', d, rounds=1)
    assert_array_equal(one.codes()[lonely], before.codes()[lonely])

def test_sinkhorn_policy_cannot_separate_equal_vectors_and_stops():
    ids = Identifiers.from_codes(np.zeros((3, 2), int), [1, 8], 'sinkhorn', np.tile(np.arange(8.), (3, 1)))
    assert ids.collisions()['largest'] == 3

def greedy_free(codes, d):
    "The queue of 'free', item by item with plain loops"
    codes, kept, near = [list(map(int, c)) for c in codes], 0, lambda i: (np.float32(d[i][codes0[i][-1]]), i)
    codes0 = [list(c) for c in codes]
    stays, movers = {}, []
    for i in sorted(range(len(codes)), key=near):
        if tuple(codes0[i]) in stays: movers.append(i)
        else: stays[tuple(codes0[i])] = i
    taken = set(stays)
    for i in movers:
        free = [k for k in range(len(d[i])) if (*codes0[i][:-1], k) not in taken]
        if not free: kept += 1; continue
        codes[i][-1] = min(free, key=lambda k: (np.float32(d[i][k]), k))
        taken.add(tuple(codes[i]))
    return codes, kept

@settings(max_examples=50, deadline=None)
@given(colliding())
def test_free_policy_against_a_greedy_loop(case):
    codes, d = case
    moved, kept = _resolve_free(codes, d.__getitem__, np.ones(4, bool))
    expected, lost = greedy_free(codes, d)
    assert_array_equal(moved, expected)
    assert kept == lost
    assert_array_equal(moved[:, :-1], codes[:, :-1])
    for prefix in {tuple(c[:-1]) for c in codes.tolist()}:                      # distinct wherever there is room
        last = [c[-1] for c in moved.tolist() if tuple(c[:-1]) == prefix]
        assert len(set(last)) == min(len(last), d.shape[1])
    ids = Identifiers.from_codes(codes, [2]*(codes.shape[1] - 1) + [4], 'free', lambda items: d[items])
    assert ids == Identifiers.from_codes(codes, [2]*(codes.shape[1] - 1) + [4], 'free', d) and ids.notes['kept'] == lost
    assert ids.collisions()['rate'] == pytest.approx(lost/len(codes))

def test_free_policy_when_everybody_has_the_same_codes():
    n, k = 40_000, 256
    moved, kept = _resolve_free(np.zeros((n, 2), int), lambda items: np.tile(np.arange(k, dtype=np.float32), (len(items), 1)), np.ones(k, bool))
    assert kept == n - k and len(np.unique(moved[:, 1])) == k and moved[:k, 1].tolist() == list(range(k))

@settings(max_examples=8, deadline=None)
@given(colliding())
def test_policies_compared(case):
    codes, d = case
    sizes = [2]*(codes.shape[1] - 1) + [4]
    table = compare_policies(codes, sizes, d)
    n, distinct = len(codes), len({tuple(c) for c in codes.tolist()})
    assert table.index.tolist() == list(POLICIES) and (table['before %'] == 100*(1 - distinct/n)).all()
    assert table.loc['extra', 'after %'] == 0 and table.loc['keep', 'after %'] == table.loc['keep', 'before %']
    assert table.loc[['extra', 'keep'], ['moved', 'paid', 'error +%']].to_numpy().any() == False
    moved, _ = greedy_free(codes, d)
    paid = [d[i][m[-1]] - d[i][c[-1]] for i, (m, c) in enumerate(zip(moved, codes.tolist())) if m != c]
    assert table.loc['free', 'moved'] == len(paid) and table.loc['free', 'paid'] == pytest.approx(np.mean(paid) if paid else 0)
    own = sum(d[i][c[-1]] for i, c in enumerate(codes.tolist()))
    if own: assert table.loc['free', 'error +%'] == pytest.approx(100*sum(paid)/own)
    assert table.loc['extra', 'tokens'] == codes.shape[1] + 1 and table.loc['free', 'tokens'] == codes.shape[1]

def test_distances_are_checked_before_work():
    codes = np.array([[0, 0], [0, 0]])
    for policy in ('free', 'sinkhorn'):
        with pytest.raises(GenrecError, match='item 1 at the last level hold NaN'): Identifiers.from_codes(codes, [1, 2], policy, np.array([[0, 1], [0, np.nan]]))
        with pytest.raises(GenrecError, match=r'shape \(2, 3\) for 2 items, expected \(2, 2\)'): Identifiers.from_codes(codes, [1, 2], policy, lambda items: np.zeros((2, 3)))
        with pytest.raises(GenrecError, match=r'distances have shape \(\), expected \(2, 2\)'): Identifiers.from_codes(codes, [1, 2], policy)
    with pytest.raises(GenrecError, match='expected one of extra, sinkhorn, free, keep'): Identifiers.from_codes(codes, policy='first')


@pytest.mark.parametrize('policy', ['extra', 'free', 'sinkhorn'])
def test_running_numbers_and_moves_know_no_item_numbers(policy):
    "Renumbered items, with the order of equals renumbered alike, get the same codes; other seeds give the codes to others"
    rng, n = np.random.default_rng(0), 60
    codes = rng.integers(0, 3, (n, 2))
    d = rng.integers(0, 3, (n, 12)).astype(np.float32)     # many equal distances
    new, turn = rng.permutation(n), rng.permutation(n)
    old = np.argsort(new)
    a, sizes, notes = resolve_collisions(codes, [3, 12], policy, d, seed=turn)
    b, *same = resolve_collisions(codes[old], [3, 12], policy, d[old], seed=new[turn])
    np.testing.assert_array_equal(a[old], b)
    assert same == [sizes, notes]
    if policy == 'extra':
        zero = [resolve_collisions(codes, seed=s)[0][:, -1] == 0 for s in range(200)]
        shared = np.bincount(_path_groups(codes))[_path_groups(codes)]
        assert abs(np.mean(zero, 0) - 1/shared).max() < .15    # every item of a group is the first equally often
