"Data: ties, splits against loops, data leakage"
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings, strategies as st
from genrec_nb.core import SettingError
from genrec_nb.data import Dataset, Interactions, k_core, _offsets_of, _ragged_index
from genrec_nb.splits import global_time, leave_one_out

histories = st.lists(st.lists(st.integers(0, 7), max_size=9), max_size=8)
def make(hs, times=None, n=8):
    return Interactions(np.array([i for h in hs for i in h], np.int32), _offsets_of([len(h) for h in hs]), [str(u) for u in range(len(hs))], n, times)

# ---- order -------------------------------------------------------------------------------------------------------------------
rows = st.lists(st.tuples(st.integers(0,3), st.integers(0,5), st.integers(0,2)), min_size=1, max_size=25)
def table(rows): return pd.DataFrame(rows, columns=['user','item','time'])
def load(df, **order): return Dataset.from_frame(df, time='time', **order).interactions
def lists(x): return [x.user(u).tolist() for u in range(x.n_users)]

@settings(max_examples=25, deadline=None)
@given(rows, st.randoms(), st.sampled_from([dict(ties='item'), dict(), dict(tie_seed=5)]))
def test_any_row_order_gives_the_same_arrays(rows, rnd, order):
    perm = list(range(len(rows))); rnd.shuffle(perm)
    np.random.seed(rnd.randrange(99))                     # no global generator has a say
    a, b = (load(d, **order) for d in (table(rows), table(rows).iloc[perm]))
    for k in ('items','offsets','times'): np.testing.assert_array_equal(getattr(a,k), getattr(b,k))
    ids = sorted({r[1] for r in rows}); users = sorted({r[0] for r in rows})
    want = [[ids.index(i) for _,i in sorted((t,i) for u2,i,t in rows if u2==u)] for u in users] # oracle: sort each user's rows
    assert a.user_ids==[str(u) for u in users]
    if order.get('ties')=='item': assert lists(a)==want
    for u, mine in enumerate(want): assert sorted(zip(a.times[a.users==u], a.user(u)))==sorted(zip(sorted(t for u2,_,t in rows if u2==users[u]), mine))

@settings(max_examples=25, deadline=None)
@given(rows)
def test_given_ties_keep_the_order_of_the_rows(rows):
    ids, users = sorted({r[1] for r in rows}), sorted({r[0] for r in rows})
    want = [[ids.index(i) for _,i,t in sorted((r for r in rows if r[0]==u), key=lambda r: r[2])] for u in users] # `sorted` is stable
    assert lists(load(table(rows), ties='given'))==want

def test_every_order_of_a_tie_is_equally_likely_and_no_item_is_preferred():
    df = table([(u, i, 7) for u in range(600) for i in range(3)])
    x = load(df, tie_seed=3)
    orders, n = np.unique(x.items.reshape(-1, 3), axis=0, return_counts=True)
    assert len(orders)==6 and abs(n - 100).max() < 40      # 4.4 standard deviations
    assert (load(df, tie_seed=4).items != x.items).any() and (load(df, tie_seed=3).items == x.items).all()
    assert (load(df).items == load(df, tie_seed=0).items).all()

@pytest.mark.parametrize('order, words', [(dict(ties='items'), ("'items'", 'given')), (dict(tie_seed=-1), ('-1', '0 or more')), (dict(tie_seed=.5), ('0.5', 'whole')),
                                          (dict(ties='item', tie_seed=1), ("ties='item'", 'leave out'))])
def test_impossible_tie_orders_are_refused(order, words):
    with pytest.raises(SettingError) as e: load(table([(0,0,0)]), **order)
    assert all(w in str(e.value) for w in words) and '\n' not in str(e.value)

@pytest.mark.parametrize('order', [dict(tie_seed=0), dict(ties='item')])
def test_a_tie_seed_without_times_is_refused(order):
    df = table([(0,1,0), (0,0,0)]).drop(columns='time')
    with pytest.raises(SettingError, match='no times.*leave out.*column of times'): Dataset.from_frame(df, **order)
    assert lists(Dataset.from_frame(df).interactions)==lists(Dataset.from_frame(df, ties='given').interactions)==[[1,0]]

@settings(max_examples=25, deadline=None)
@given(rows, st.booleans())
def test_tie_counts_against_a_loop(rows, timed):
    x = load(table(rows)) if timed else Dataset.from_frame(table(rows)).interactions
    c, test = x.count_ties(leave_one_out(x).test), as_lists(leave_one_out(x).test)
    assert (c.interactions, c.targets, c.seen_targets)==(len(rows), len(test), sum(t in h for _,h,t in test))
    if not timed: assert c.tied is None and c.tied_targets is None and 'no times' in repr(c); return
    key = list(zip(x.users, x.times))
    assert c.tied==sum(key.count(k)>1 for k in key)
    assert c.tied_targets==sum(key.count((u, x.times[x.offsets[u+1]-1]))>1 for u,_,_ in test)

@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(st.integers(0,30), st.integers(0,4)), max_size=12))
def test_ragged_index(pieces):
    s, n = [p[0] for p in pieces], [p[1] for p in pieces]
    assert _ragged_index(s, n).tolist()==[i for a,k in pieces for i in range(a, a+k)]

@settings(max_examples=25, deadline=None)
@given(histories)
def test_counts(hs):
    x = make(hs)
    assert x.item_counts().tolist()  ==[sum(h.count(i) for h in hs) for i in range(8)]
    assert x.target_counts().tolist()==[sum(h[1:].count(i) for h in hs) for i in range(8)]

# ---- splits ------------------------------------------------------------------------------------------------------------------
def as_lists(cases): return [(int(u), cases.history(m).tolist(), int(t)) for m,(u,t) in enumerate(zip(cases.users, cases.targets))]

@settings(max_examples=25, deadline=None)
@given(histories, st.integers(1,5))
def test_leave_one_out_against_a_loop(hs, h):
    s = leave_one_out(make(hs))
    assert [s.train.user(u).tolist() for u in range(len(hs))]==[x[:-2] if len(x)>=3 else x for x in hs]
    assert as_lists(s.valid)==[(u, x[:-2], x[-2]) for u,x in enumerate(hs) if len(x)>=3]
    assert as_lists(s.test) ==[(u, x[:-1], x[-1]) for u,x in enumerate(hs) if len(x)>=3]
    assert s.skipped==sum(len(x)<3 for x in hs)
    assert s.test.tail(h).tolist()==[([-1]*h + x[:-1])[-h:] for x in hs if len(x)>=3]
    if len(s.test):
        rows = np.random.default_rng(h).integers(0, len(s.test), 5)
        some = s.test.take(rows)
        assert [some.history(m).tolist() for m in range(5)]==[s.test.history(m).tolist() for m in rows]
        assert (some.users.tolist(), some.targets.tolist())==(s.test.users[rows].tolist(), s.test.targets[rows].tolist())

@settings(max_examples=25, deadline=None)
@given(histories, st.randoms(), st.sampled_from([(.8,.1,.1), (.5,.25,.25), (0,.5,.5), (1,0,0)]))
def test_global_time_against_a_loop(hs, rnd, fractions):
    ts = [sorted(rnd.randint(0,6) for _ in h) for h in hs]
    s = global_time(make(hs, np.array([t for x in ts for t in x], float)), fractions)
    samples = sorted((t, u, p) for u,x in enumerate(ts) for p,t in enumerate(x) if p)
    a, b = int(round(fractions[0]*len(samples))), int(round((fractions[0]+fractions[1])*len(samples)))
    want = lambda part: [(u, hs[u][:p], hs[u][p]) for _,u,p in part]
    assert as_lists(s.valid)==want(samples[a:b]) and as_lists(s.test)==want(samples[b:])
    now = samples[a-1][0] if a else -1
    learn = {(u,p) for _,u,p in samples[:a]} | {(u,0) for u,x in enumerate(ts) if x and x[0]<=now}
    assert [s.train.user(u).tolist() for u in range(len(hs))]==[[i for p,i in enumerate(h) if (u,p) in learn] for u,h in enumerate(hs)]
    assert s.skipped==sum(len(x)<2 for x in hs)

@settings(max_examples=25, deadline=None)
@given(histories, st.data())
def test_no_leak(hs, data):
    "Whatever stands at a validation or test place, training arrays and counts stay the same"
    x = make(hs, np.concatenate([np.arange(len(h)) for h in hs]) if hs else np.zeros(0))
    for split in (leave_one_out, global_time):
        before = split(x)
        place = [x.offsets[u] + len(c.history(m)) for c in (before.valid, before.test) for m,u in enumerate(c.users)]
        items = x.items.copy()
        for p in place: items[p] = data.draw(st.integers(0,7))
        after = split(Interactions(items, x.offsets, x.user_ids, 8, x.times))
        for k in ('items','offsets','times'): np.testing.assert_array_equal(getattr(before.train,k), getattr(after.train,k))
        np.testing.assert_array_equal(before.train.target_counts(), after.train.target_counts())
        np.testing.assert_array_equal(before.train.item_counts(), after.train.item_counts())

def test_short_users_stay_in_training():
    s = leave_one_out(make([[1,2],[3],[],[4,5,6]]))
    assert s.skipped==3 and s.train.n_users==4 and s.train.item_counts().tolist()==[0,1,1,1,1,0,0,0] and s.test.users.tolist()==[3]
    assert 'skipped=3' in repr(s)

@settings(max_examples=25, deadline=None)
@given(histories, st.integers(1,4))
def test_k_core_against_a_loop(hs, k):
    x, kept = k_core(make(hs), k)
    rows = [(u,i) for u,h in enumerate(hs) for i in h]
    while True: # oracle: one user or item at a time
        bad = next((('u',u) for u,_ in rows if sum(r[0]==u for r in rows)<k), None) or next((('i',i) for _,i in rows if sum(r[1]==i for r in rows)<k), None)
        if bad is None: break
        rows = [r for r in rows if r[0 if bad[0]=='u' else 1]!=bad[1]]
    assert [(int(x.user_ids[u]), int(kept[i])) for u in range(x.n_users) for i in x.user(u)]==rows


def test_one_of_a_kind_is_counted_in_the_singular():
    from genrec_nb.pages import _cases
    from genrec_nb.splits import TieCounts
    x = Interactions([0, 1, 2], [0, 3], ['u'], 3)
    said = [repr(x), repr(leave_one_out(x).test), repr(TieCounts(3, 0, 1, 0, 1))]
    m = dict(config=dict(split='auto', users=None), users=1, items=1, exclude_seen=True, unreachable=1, seed=0, skipped_users=1)
    for split in ('auto', 'time'): said.append(_cases(m | dict(config=dict(split=split, users=None))))
    assert said[0] == 'Interactions(1 user, 3 items, 3 interactions)' and said[1].startswith('Cases(1 case, 1 user,') and said[2].endswith('1 of 1 test target stands in its own history')
    assert said[3].startswith('1 user, leave-one-out; 1 item, full catalog') and '(1 of 1 target cannot be hit)' in said[3] and '1 user with fewer than 3 items was kept' in said[3]
    assert said[4].startswith('1 test case, the last tenth') and '1 user with fewer than 2 items was left out' in said[4]


def test_several_items_in_one_word_are_said():
    "Ids or titles with commas between them, as a user of a shell may write"
    from genrec_nb.core import GenrecError
    from genrec_nb.data import Catalog
    catalog = Catalog(['b1', 'b2', 'b3'], ['Rose tea', 'Mint tea', 'Tea, black'], ['', '', ''])
    assert catalog.find('tea, black') == 2
    for said in ('b1,b2', 'rose tea, B3'):
        with pytest.raises(GenrecError, match='several items: give each by itself'): catalog.find(said)
    with pytest.raises(GenrecError, match='did you mean'): catalog.find('rose teas, mint')
