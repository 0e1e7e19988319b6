"Data: ties, splits against loops, data leakage"
import numpy as np
import pandas as pd
from hypothesis import given, settings, strategies as st
from genrec_nb.data import Dataset, Interactions, global_time, k_core, leave_one_out, _offsets_of, _ragged_index

histories = st.lists(st.lists(st.integers(0, 7), max_size=9), max_size=8)
def make(hs, times=None, n=8):
    return Interactions(np.array([i for h in hs for i in h], np.int32), _offsets_of([len(h) for h in hs]), [str(u) for u in range(len(hs))], n, times)

# ---- order -------------------------------------------------------------------------------------------------------------------
@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(st.integers(0,3), st.integers(0,5), st.integers(0,2)), min_size=1, max_size=25), st.randoms())
def test_any_row_order_gives_the_same_arrays(rows, rnd):
    df = pd.DataFrame(rows, columns=['user','item','time'])
    perm = list(range(len(rows))); rnd.shuffle(perm)
    a, b = (Dataset.from_frame(d, time='time').interactions for d in (df, df.iloc[perm]))
    for k in ('items','offsets','times'): np.testing.assert_array_equal(getattr(a,k), getattr(b,k))
    ids = sorted({r[1] for r in rows}); users = sorted({r[0] for r in rows})
    want = [[ids.index(i) for _,i in sorted((t,i) for u2,i,t in rows if u2==u)] for u in users] # oracle: sort each user's rows
    assert [a.user(u).tolist() for u in range(a.n_users)]==want and a.user_ids==[str(u) for u in users]

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
