"""Metrics against loops written from the formulas, scikit-learn, and the laws of the bootstrap."""
import json, math, os
from pathlib import Path
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from scipy.stats import binom
from sklearn.metrics import label_ranking_average_precision_score, ndcg_score, top_k_accuracy_score
from genrec_nb.data import Interactions
from genrec_nb.splits import Cases, leave_one_out
from genrec_nb.core import GenrecError, _tie_order
from genrec_nb.metrics import *
from genrec_nb.metrics import _bootstrap_means, _popularity_order, _recommendation_counts
from genrec_nb.metrics import _METRICS, _check_ranked, _title_rank_of

quick = settings(max_examples=25, deadline=None)

def make_cases(histories, targets=None, users=None):
    m = len(histories)
    return Cases(users=np.arange(m) if users is None else np.asarray(users),
                 items=np.array([i for h in histories for i in h], np.int32),
                 offsets=np.cumsum([0] + [len(h) for h in histories]),
                 targets=np.zeros(m, np.int64) if targets is None else np.asarray(targets, np.int64))

def make_train(counts):
    items = np.repeat(np.arange(len(counts)), counts).astype(np.int32)
    return Interactions(items=items, offsets=np.array([0, len(items)]), user_ids=['u'], n_items=len(counts), times=None)

@st.composite
def lists(draw, n_items=9):
    "Lists without repeats, padded at the end, and a target for each"
    rows = draw(st.lists(st.lists(st.integers(0, n_items - 1), unique=True, max_size=6), min_size=1, max_size=8))
    targets = draw(st.lists(st.integers(0, n_items - 1), min_size=len(rows), max_size=len(rows)))
    return np.array([r + [-1] * (6 - len(r)) for r in rows]), np.array(targets)


# ---- accuracy -----------------------------------------------------------------------------------------------------

@quick
@given(lists())
def test_metrics_equal_the_formulas_in_loops(case):
    ranked, targets = case
    got = ranking_metrics(ranked, targets, ks=(1, 2, 3, 6), per_user=True)
    for k in (1, 2, 3, 6):
        for m in range(len(ranked)):
            recall = ndcg = mrr = 0.
            for place, item in enumerate(ranked[m][:k], start=1):
                if item == -1: continue
                if item == targets[m]: recall, ndcg, mrr = 1., 1 / math.log2(place + 1), 1 / place
            assert [got[f'{x}@{k}'][m] for x in ('recall', 'ndcg', 'mrr', 'hit')] == pytest.approx([recall, ndcg, mrr, recall])

@quick
@given(lists())
def test_order_between_metrics_and_cut_offs(case):
    m = ranking_metrics(*case, ks=(1, 3, 6))
    for k in (1, 3, 6): assert 0 <= m[f'mrr@{k}'] <= m[f'ndcg@{k}'] <= m[f'recall@{k}'] == m[f'hit@{k}'] <= 1
    for name in _METRICS: assert m[f'{name}@1'] <= m[f'{name}@3'] <= m[f'{name}@6']

@pytest.mark.parametrize('seed', range(3))
def test_against_scikit_learn(seed):
    rng = np.random.default_rng(seed); n, size = 50, 17
    scores = rng.permuted(np.tile(np.arange(size, dtype=float), (n, 1)), axis=1)
    ranked, targets = np.argsort(-scores, axis=1), rng.integers(0, size, n); truth = np.eye(size)[targets]
    m = ranking_metrics(ranked, targets, ks=(1, 5, 10, size))
    for k in (1, 5, 10):
        assert m[f'ndcg@{k}'] == pytest.approx(ndcg_score(truth, scores, k=k))
        assert m[f'recall@{k}'] == pytest.approx(top_k_accuracy_score(targets, scores, k=k, labels=range(size)))
    assert m[f'mrr@{size}'] == pytest.approx(label_ranking_average_precision_score(truth, scores))

def test_padding_never_counts():
    short, long = np.array([[3, -1, -1]]), np.array([[3]])
    assert ranking_metrics(short, [3], ks=(1,)) == ranking_metrics(long, [3], ks=(1,))
    assert ranking_metrics([[-1, -1]], [0], ks=(2,))['recall@2'] == 0
    assert _recommendation_counts(short, 5).sum() == 1 and coverage(short, 5) == 1/5 and average_popularity(short, [0, 0, 0, 7, 0]) == 7

def test_a_shared_string_counts_one_item():
    string = np.array([0, 1, 1, 1, 2]); targets = np.array([1, 2, 3])
    expanded = np.tile(np.flatnonzero(string == 1), (3, 1))             # one string, written first for everybody
    assert (string[targets] == 1).mean() == 1                           # counted by string: perfect
    assert ranking_metrics(expanded, targets, ks=(1,))['recall@1'] == 1/3

def test_no_case_gives_nan_not_zero():
    assert all(math.isnan(v) for v in ranking_metrics(np.zeros((0, 3), int), np.zeros(0, int), ks=(1, 3)).values())

@pytest.mark.parametrize('ranked, targets, ks, words', [
    ([[0, 1, 1]],       [1],      (1,),  ['row 0', '[0, 1, 1]', 'twice']),
    ([[0, 1], [2, 2]],  [1, 1],   (1,),  ['row 1', '[2, 2]', 'twice']),
    ([[0, -1, 1]],      [1],      (1,),  ['row 0', 'padding']),
    ([[0, -3]],         [1],      (1,),  ['row 0', '[0, -3]']),
    ([[.5, 1.]],        [1],      (1,),  ['float64', 'integers']),
    ([0, 1],            [1],      (1,),  ['[2]', '[cases, K]']),
    ([[0, 1]],          [1, 2],   (1,),  ['targets', '[2]', '[1]']),
    ([[0, 1]],          [-1],     (1,),  ['targets', 'row 0', '-1']),
    ([[0, 1]],          [1.],     (1,),  ['targets', 'float64']),
    ([[0, 1]],          [1],      (1, 3), ['ks', '3', '1 to 2']),
    ([[0, 1]],          [1],      (0, 1), ['ks', '1 to 2']),
    ([[0, 1]],          [1],      (),    ['ks']),
])
def test_bad_lists_are_refused_in_one_line(ranked, targets, ks, words):
    with pytest.raises(GenrecError) as e: ranking_metrics(ranked, targets, ks=ks)
    assert '\n' not in str(e.value) and all(w in str(e.value) for w in words), e.value

@pytest.mark.parametrize('name', ['recal@10', 'recall', 'recall@0', 'recall@x', '@3'])
def test_unknown_metric(name):
    with pytest.raises(GenrecError, match='NAME@K'): metric_values(np.array([0]), name)


# ---- the catalog ------------------------------------------------------------------------------------------------

@quick
@given(lists())
def test_coverage_gini_popularity_by_brute_force(case):
    ranked, _ = case; n, weight = 9, np.array([5, 0, 2, 7, 1, 1, 3, 0, 4])
    count = [sum(int(i == j) for row in ranked for j in row) for i in range(n)]
    assert _recommendation_counts(ranked, n).tolist() == count
    assert coverage(ranked, n) == sum(c > 0 for c in count) / n
    if not sum(count): assert math.isnan(gini(ranked, n)) and math.isnan(average_popularity(ranked, weight)); return
    pairs = sum(abs(a - b) for a in count for b in count) / (2 * n * sum(count))     # mean absolute difference over twice the mean
    assert gini(ranked, n) == pytest.approx(pairs)
    full = [[weight[i] for i in row if i >= 0] for row in ranked.tolist()]
    assert average_popularity(ranked, weight) == pytest.approx(np.mean([np.mean(r) for r in full if r]))

def test_lorenz_runs_from_0_to_1_below_the_diagonal():
    y = lorenz([3, 0, 1, 4]); assert y[0] == 0 and y[-1] == 1 and (np.diff(y, 2) >= -1e-12).all() and (y <= np.linspace(0, 1, 5) + 1e-12).all()

def test_item_outside_the_catalog():
    with pytest.raises(GenrecError, match='item 7.*5 items'): coverage([[7]], 5)


# ---- popularity ---------------------------------------------------------------------------------------------------

def slow_popularity(counts, histories, k, exclude_seen):
    rows, place = [], np.argsort(_tie_order(len(counts)))
    for h in histories:
        left = [i for i in range(len(counts)) if not (exclude_seen and i in h)]
        top = sorted(left, key=lambda i: (-counts[i], place[i]))[:k]
        rows.append(top + [-1] * (k - len(top)))
    return rows

@quick
@given(st.lists(st.integers(0, 3), min_size=1, max_size=9), st.data())
def test_popularity_ranking_by_brute_force(counts, data):
    n = len(counts)
    histories = data.draw(st.lists(st.lists(st.integers(0, n - 1), max_size=12), min_size=1, max_size=7))   # with repeats
    k, chunk, out = data.draw(st.integers(1, 12)), data.draw(st.integers(1, 8)), data.draw(st.booleans())
    got = popularity_ranking(np.array(counts), make_cases(histories), k, exclude_seen=out, chunk=chunk)
    assert got.dtype == np.int64 and got.tolist() == slow_popularity(counts, histories, k, out)
    _check_ranked(got, n)

def test_popularity_ranking_without_cases_and_with_unknown_items():
    assert popularity_ranking(np.array([1, 2]), make_cases([]), 2).shape == (0, 2)
    with pytest.raises(GenrecError, match='item 5.*2 items'): popularity_ranking(np.array([1, 2]), make_cases([[5]]), 2)

@quick
@given(st.lists(st.integers(0, 4), min_size=1, max_size=40), st.floats(0, 1))
def test_head_and_tail(counts, share):
    counts = np.array(counts); tail = head_tail(counts, share)
    assert tail.sum() == math.floor(share * len(counts) + .5)
    place = np.argsort(_tie_order(len(counts)))
    head = [(-counts[i], place[i]) for i in np.flatnonzero(~tail)]; rest = [(-counts[i], place[i]) for i in np.flatnonzero(tail)]
    if head and rest: assert max(head) < min(rest)                      # every head item before every tail item, ties by the seed

@quick
@given(st.lists(st.integers(0, 3), min_size=1, max_size=30), st.integers(0, 99), st.integers(0, 5))
def test_popularity_knows_no_item_numbers(counts, seed, tie_seed):
    "Renumbered items, with the order of ties renumbered alike, give the renumbered lists"
    rng, n = np.random.default_rng(seed), len(counts)
    new, counts, turn = rng.permutation(n), np.array(counts), _tie_order(n, tie_seed)        # item i becomes new[i]
    renumbered, histories = np.empty(n, int), [rng.integers(0, n, 5) for _ in range(4)]
    renumbered[new] = counts
    a = popularity_ranking(counts, make_cases(histories), 5, seed=tie_seed)
    b = popularity_ranking(renumbered, make_cases([new[h] for h in histories]), 5, seed=new[turn])
    np.testing.assert_array_equal(np.where(a >= 0, new[a], -1), b)

def test_equal_counts_are_ordered_by_chance():
    first = [popularity_ranking(np.ones(4), make_cases([[]]), 1, seed=s)[0, 0] for s in range(800)]
    assert abs(np.bincount(first, minlength=4) - 200).max() < 60        # five standard deviations

@quick
@given(st.lists(st.integers(0, 4), min_size=1, max_size=40), st.integers(1, 12))
def test_popularity_groups_are_equal_and_ordered(counts, g):
    group = popularity_groups(counts, g); size = np.bincount(group, minlength=g)
    assert len(size) == g and size.max() - size.min() <= 1
    assert (np.diff(group[_popularity_order(counts)]) >= 0).all()

def test_target_groups():
    g = target_groups([0, 4, 4, 1], np.array([9, 1, 2, 3, 0]))
    assert (g['head'] ^ g['tail']).all() and g['head'].tolist() == [True, False, False, False] and g['cold'].tolist() == [False, True, True, False]
    with pytest.raises(GenrecError, match='tail_share'): head_tail([1, 2], 80)


# ---- intervals ----------------------------------------------------------------------------------------------------

def test_bootstrap_of_hits_is_binomial():
    hits = np.arange(400) < 60; lo, hi = bootstrap_interval(hits, n=40_000)
    assert [lo * 400, hi * 400] == pytest.approx(binom(400, .15).ppf([.025, .975]), abs=1)

@pytest.mark.parametrize('distinct', [3, 1000])                         # few values, and all values different
def test_bootstrap_has_the_moments_of_resampling(distinct):
    rng = np.random.default_rng(1); values = rng.choice(rng.random(distinct), 1000)
    means = _bootstrap_means(values, n=3000)
    assert means.mean() == pytest.approx(values.mean(), abs=4 * values.std() / np.sqrt(1000 * 3000))
    assert means.std() == pytest.approx(values.std() / np.sqrt(1000), rel=.06)

def test_bootstrap_of_users_equals_resampling_users_in_a_loop():
    rng = np.random.default_rng(2); users = np.repeat(np.arange(40), rng.integers(1, 9, 40))
    values = (rng.random(len(users)) < rng.random(40)[users]).astype(float)
    loop = []
    for _ in range(2000):
        drawn = rng.integers(0, 40, 40)
        loop.append(np.concatenate([values[users == u] for u in drawn]).mean())
    fast = _bootstrap_means(values, 10_000, users=users)
    assert [fast.mean(), fast.std()] == pytest.approx([np.mean(loop), np.std(loop)], rel=.06)
    assert np.quantile(fast, [.025, .5, .975]) == pytest.approx(np.quantile(loop, [.025, .5, .975]), abs=.015)

def test_bootstrap_knows_users_by_identity_only():
    rng = np.random.default_rng(3); values, users = rng.random(60).round(1), rng.integers(0, 9, 60)
    order = rng.permutation(60)
    a, b = bootstrap_interval(values, users=users), bootstrap_interval(values[order], users=users[order])
    assert a == pytest.approx(b, abs=.02)
    assert bootstrap_interval(values, users=rng.permutation(60)) == pytest.approx(bootstrap_interval(values), abs=.01)   # one case each

def test_bootstrap_is_seeded_and_leaves_numpy_alone():
    values = np.arange(50) % 7; state = np.random.get_state()[1].copy()
    assert bootstrap_interval(values, seed=1) == bootstrap_interval(values, seed=1) != bootstrap_interval(values, seed=2)
    assert (np.random.get_state()[1] == state).all()

def test_interval_covers_the_truth_as_often_as_it_says():
    rng = np.random.default_rng(4); covered = 0
    for seed in range(200):
        lo, hi = bootstrap_interval(rng.random(300) < .2, n=400, seed=seed); covered += lo <= .2 <= hi
    assert .90 <= covered / 200 <= .99

def test_intervals_nest_and_edges():
    v = np.arange(100) % 5; a, b = bootstrap_interval(v, level=.5), bootstrap_interval(v, level=.99)
    assert b[0] < a[0] < v.mean() < a[1] < b[1]
    assert bootstrap_interval(np.ones(9)) == (1, 1) and all(map(math.isnan, bootstrap_interval([])))
    for bad in (0, 1, 95):
        with pytest.raises(GenrecError, match='level'): bootstrap_interval(v, level=bad)
    with pytest.raises(GenrecError, match='1 NaN'): bootstrap_interval([1., math.nan])
    with pytest.raises(GenrecError, match='users'): bootstrap_interval([1., 2.], users=[1])


# ---- one object and one table -------------------------------------------------------------------------------------

@pytest.fixture(scope='module')
def small():
    rng = np.random.default_rng(0); counts = np.array([30, 20, 20, 9, 5, 4, 3, 2, 1, 0]); m = 120
    cases = make_cases([rng.integers(0, 10, 3).tolist() for _ in range(m)], rng.choice(9, m, p=counts[:9] / counts.sum()), np.arange(m) // 3)
    return make_train(counts), cases, rng.permuted(np.tile(np.arange(10), (m, 1)), axis=1)

def test_evaluation_equals_its_parts(small):
    train, cases, ranked = small; e = evaluate_ranking(ranked, cases, train, ks=(5, 1), name='x')
    assert e.ks == (1, 5) and e.sizes['cases'] == 120 and e.sizes['users'] == 40 and e.sizes['head'] + e.sizes['tail'] == 120
    for m, v in ranking_metrics(ranked, cases.targets, ks=(1, 5)).items(): assert e[m] == v
    tail = head_tail(train.item_counts())[cases.targets]
    assert e['tail/ndcg@5'] == ranking_metrics(ranked[tail], cases.targets[tail], ks=(5,))['ndcg@5']
    assert e['gini@5'] == gini(ranked[:, :5], 10) and e['coverage@1'] == coverage(ranked[:, :1], 10)
    assert e.intervals['recall@5'] == bootstrap_interval(e.values('recall@5'), users=cases.users)
    assert e.intervals['recall@5'][0] < e['recall@5'] < e.intervals['recall@5'][1]

def test_evaluation_as_json(small):
    train, cases, ranked = small; e = evaluate_ranking(ranked, cases, train, ks=(5,), name='x')
    assert e.sizes['cold'] == 0 and math.isnan(e['cold/recall@5'])
    d = json.loads(json.dumps(e.to_dict(), allow_nan=False))
    assert d['metrics']['cold/recall@5'] is None and d['intervals']['cold/recall@5'] == [None, None] and 'ranks' not in d
    d = json.loads(json.dumps(e.to_dict(ranks=True), allow_nan=False))
    assert metric_values(np.array(d['ranks']), 'ndcg@5').mean() == e['ndcg@5'] and d['targets'] == cases.targets.tolist()

def test_evaluation_repr(small):
    train, cases, ranked = small; e = evaluate_ranking(ranked, cases, train, ks=(1, 5), name='mine <b>')
    text = repr(e); assert text.startswith('mine') and '120 cases of 40 users' in text and f"{e['ndcg@5']:.4f}" in text and '–' in text
    assert 'mine &lt;b&gt;: 120 cases' in e._repr_html_() and '<b>' not in e._repr_html_()
    with pytest.raises(GenrecError, match="no metric 'recall@7'"): e['recall@7']

def test_evaluation_is_deterministic_and_refuses_unknown_items(small):
    train, cases, ranked = small
    assert evaluate_ranking(ranked, cases, train, ks=(5,)).to_dict() == evaluate_ranking(ranked, cases, train, ks=(5,)).to_dict()
    with pytest.raises(GenrecError, match='ranked, row 0'): evaluate_ranking(ranked + 5, cases, train, ks=(5,))
    with pytest.raises(GenrecError, match='targets'): evaluate_ranking(ranked[:5], cases, train, ks=(5,))
    with pytest.raises(GenrecError, match='target 99'): evaluate_ranking(ranked, make_cases([[]] * 120, [99] * 120), train, ks=(5,))
    with pytest.raises(GenrecError, match='1 to 10'): evaluate_ranking(ranked, cases, train)                                 # asks for @20

def test_groups_come_from_training_alone(small):
    "Changing a target moves that case to another group and nothing else"
    train, cases, ranked = small; other = cases.targets.copy(); other[0] = (other[0] + 1) % 9
    a, b = target_groups(cases.targets, train.item_counts()), target_groups(other, train.item_counts())
    for g in a: assert (a[g][1:] == b[g][1:]).all()

def test_evaluation_without_cases():
    e = evaluate_ranking(np.zeros((0, 5), int), make_cases([]), make_train([3, 2]), ks=(5,))
    assert math.isnan(e['recall@5']) and e['coverage@5'] == 0; json.dumps(e.to_dict(), allow_nan=False); repr(e)

@pytest.fixture(scope='module')
def three(small):
    train, cases, ranked = small
    good = np.concatenate([cases.targets[:, None], np.full((120, 4), -1)], 1)
    return [evaluate_ranking(r, cases, train, ks=(1, 5), name=n) for n, r in (('a <b> & c', ranked), ('perfect', good), ('perfect too', good))]

COLUMNS = ['recall@5', 'gini@5', 'avg_popularity@5', 'cold/recall@5']

def test_a_table_holds_numbers_and_the_ends_of_intervals(three):
    t = metrics_table(three, COLUMNS)
    assert list(t.index) == [e.name for e in three] and list(t) == COLUMNS and (t.dtypes == float).all()
    assert t.loc['a <b> & c', 'recall@5'] == three[0]['recall@5'] and t['cold/recall@5'].isna().all()
    wide = metrics_table(three, COLUMNS, intervals=True).loc['a <b> & c']
    assert (wide['recall@5', 'low'], wide['recall@5', 'high']) == three[0].intervals['recall@5'] and np.isnan(wide['gini@5', 'low'])
    assert '&' in t.to_latex() and 'recall@5' in t.to_csv()

def test_a_table_for_reading_marks_the_best(three):
    "A tie is marked twice, the smallest Gini, never a description or a column of nothing"
    shown = show_metrics(three, COLUMNS); rows = shown.to_latex(convert_css=True).splitlines()
    bold = [[r'\bfseries' in c for c in row.split(' & ')[1:]] for row in rows if 'perfect' in row or 'a <b>' in row]
    assert bold == [[False, True, False, False], [True, False, False, False], [True, False, False, False]]
    assert shown.data.loc['perfect', 'recall@5'].startswith('1.0000 [1.000') and (shown.data['cold/recall@5'] == '–').all()
    assert r'a <b> \& c & ' in shown.to_latex() and '&amp;' not in shown.to_latex()
    assert 'a &lt;b&gt; &amp; c' in shown.to_html() and '<b>' not in shown.to_html()
    assert '[' in repr(shown) and '[' not in repr(show_metrics(three, ['recall@5'], intervals=False))
    assert shown.to_html() == show_metrics(three, COLUMNS).to_html()

def test_a_table_of_one_method_marks_nothing_and_refuses_nonsense(three):
    assert 'bold' not in show_metrics(three[:1]).to_html() and list(metrics_table(three))[0] == 'recall@5'
    with pytest.raises(GenrecError, match='none'): metrics_table([])
    with pytest.raises(GenrecError, match="'recal@5'"): show_metrics(three, ['recal@5'])


@quick
@given(st.data())
def test_a_hit_by_title_has_the_place_of_its_title_among_different_ones(data):
    n = data.draw(st.integers(2, 8)); k = data.draw(st.integers(1, n))
    titles = data.draw(st.lists(st.sampled_from(['a', 'b', 'b', 'c']), min_size=n, max_size=n))
    ranked = np.array([data.draw(st.permutations(range(n)))[:k] for _ in range(3)])
    ranked[0, data.draw(st.integers(1, k)):] = -1
    targets = np.array(data.draw(st.lists(st.integers(0, n - 1), min_size=3, max_size=3)))
    found = _title_rank_of(ranked, targets, titles)
    for row, target, rank in zip(ranked.tolist(), targets.tolist(), found.tolist()):
        shown = list(dict.fromkeys(titles[i] for i in row if i >= 0))
        own = titles[target]
        assert rank == (shown.index(own) if own in shown else k)


# ---- real data ----------------------------------------------------------------------------------------------------

def test_popularity_floor_of_scientific():
    "Every case of a larger set, against a loop"
    folder = Path(os.environ.get('GENREC_DATA', Path(__file__).parents[1] / '../shared/data')) / 'Scientific'
    if not folder.exists(): pytest.skip('needs the Scientific data: set GENREC_DATA to the folder that holds it')
    from genrec_nb.loaders import load_dataset
    split = leave_one_out(load_dataset(folder).interactions); counts, cases = split.train.item_counts(), split.test
    ranked = popularity_ranking(counts, cases, 10)
    order, hits = _popularity_order(counts).tolist(), 0
    for m in range(len(cases)):
        seen, top = set(cases.history(m).tolist()), []
        for i in order:
            if i not in seen: top.append(i)
            if len(top) == 10: break
        assert ranked[m].tolist() == top; hits += int(cases.targets[m]) in top
    assert evaluate_ranking(ranked, cases, split.train, ks=(10,))['recall@10'] == pytest.approx(hits / len(cases))
