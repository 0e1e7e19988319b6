"""Scores lined up, comparisons with a reference, popularity groups: against their parts, loops, and the laws they must obey."""
import json, math
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from scipy import stats
from genrec_nb.comparisons import *
from genrec_nb.target_popularity import compare_head_tail, decile_curve, plot_deciles
from genrec_nb.core import GenrecError
from genrec_nb.data import Interactions
from genrec_nb.splits import Cases
from genrec_nb.metrics import bootstrap_interval, evaluate_ranking, head_tail, popularity_groups
from genrec_nb.significance import crossed_test, holm, plot_critical_difference, rank_methods, sign_flip_test

quick = settings(max_examples=20, deadline=None)

def table(A=3, S=4, U=60, seed=0, **kwargs):
    rng = np.random.default_rng(seed)
    v = rng.random((A, S, U)).round(1) + .05 * np.arange(A)[:, None, None]
    return Scores(v, [f'm{a}' for a in range(A)], **kwargs)


# ---- lining up evaluations ----------------------------------------------------------------------------------------

def evaluation(users, targets, seed=0, n_items=9, name='x'):
    rng = np.random.default_rng(seed); m = len(users)
    cases = Cases(users=np.asarray(users), items=np.zeros(0, np.int32), offsets=np.zeros(m + 1, np.int64), targets=np.asarray(targets))
    train = Interactions(items=np.arange(n_items, dtype=np.int32), offsets=np.array([0, n_items]), user_ids=['u'], n_items=n_items, times=None)
    return evaluate_ranking(rng.permuted(np.tile(np.arange(n_items), (m, 1)), axis=1)[:, :5], cases, train, ks=(5,), name=name, n=20)

def test_evaluations_are_paired_by_user_whatever_their_order():
    from dataclasses import replace
    users, targets = np.array([5, 2, 9, 7]), np.array([0, 1, 2, 3]); a, b = evaluation(users, targets), evaluation(users, targets, 1)
    order = [2, 0, 3, 1]; mixed = replace(b, ranks=b.ranks[order], users=b.users[order], targets=b.targets[order])
    one, two = Scores.from_evaluations({'a': a, 'b': b}, 'ndcg@5'), Scores.from_evaluations({'a': a, 'b': mixed}, 'ndcg@5')
    np.testing.assert_array_equal(one.values, two.values); assert one.users.tolist() == [2, 5, 7, 9] and one.targets.tolist() == [1, 0, 3, 2]
    assert one.means()[1, 0] == pytest.approx(b['ndcg@5']) and one.metric == 'ndcg@5'

def test_one_evaluation_stands_for_every_seed():
    users, targets = np.arange(6), np.arange(6)
    s = Scores.from_evaluations({'floor': evaluation(users, targets), 'a': {3: evaluation(users, targets, 1), 8: evaluation(users, targets, 2)}}, 'recall@5')
    assert s.seeds == [3, 8] and np.array_equal(s.values[0, 0], s.values[0, 1]) and s.values.shape == (2, 2, 6)

def test_a_tie_seed_is_part_of_the_seed():
    "Seeds may have other targets (equal times in another order), the methods of one seed may not"
    users, first, other = np.arange(6), np.arange(6), np.arange(6)[::-1]
    a, b = ({3: evaluation(users, first, n), 8: evaluation(users, other, n)} for n in (1, 2))
    s = Scores.from_evaluations(dict(a=a, b=b), 'recall@5')
    assert s.targets.tolist() == [first.tolist(), other.tolist()]
    np.testing.assert_array_equal(s.values[1], [b[3].values('recall@5'), b[8].values('recall@5')])
    for wrong in (dict(a=a, b={3: b[3], 8: b[3]}), dict(a=a, floor=a[3])):
        with pytest.raises(GenrecError, match='seed 8: user 0 has target 0, but 5 in a, seed 8'): Scores.from_evaluations(wrong, 'recall@5')
    with pytest.raises(GenrecError, match='seed 8: other users than a, seed 3: lacks cases of user 5'): Scores.from_evaluations(dict(a={3: a[3], 8: evaluation(users[:5], first[:5])}), 'recall@5')

def test_several_cases_of_a_user():
    users, targets = np.array([1, 0, 1, 1]), np.array([3, 1, 0, 3]); s = Scores.from_evaluations({'a': evaluation(users, targets), 'b': evaluation(users, targets, 1)}, 'recall@5')
    assert s.n_users == 2 and s.users.tolist() == [0, 1, 1, 1]
    d, sizes = s.difference('a', 'b'); assert sizes.tolist() == [1, 3]
    assert d.mean() == pytest.approx(s.means()[0, 0] - s.means()[1, 0])                               # the mean over cases, not over users

@pytest.mark.parametrize('users, targets, words', [
    ([0, 1, 2],       [0, 1, 2],       ['b, seed 0', 'lacks', 'user 3']),
    ([0, 1, 2, 3, 8], [0, 1, 2, 3, 4], ['too many', 'user 8']),
    ([0, 1, 2, 4],    [0, 1, 2, 3],    ['lacks cases of user 3', 'too many of user 4']),
    ([0, 1, 2, 3],    [0, 1, 2, 7],    ['user 3 has target 7', '3 in a, seed 0']),
])
def test_other_cases_are_named(users, targets, words):
    with pytest.raises(GenrecError) as e: Scores.from_evaluations({'a': evaluation(range(4), range(4)), 'b': evaluation(users, targets)}, 'recall@5')
    assert all(w in str(e.value) for w in words) and '\n' not in str(e.value), e.value

def test_other_seeds_are_named():
    e = evaluation(range(4), range(4))
    with pytest.raises(GenrecError, match=r'b: found seeds 0, expected 0, 1'): Scores.from_evaluations({'a': [e, e], 'b': [e]}, 'recall@5')
    with pytest.raises(GenrecError, match='b: found seeds none'): Scores.from_evaluations({'a': [e, e], 'b': []}, 'recall@5')
    with pytest.raises(GenrecError, match='no method'): Scores.from_evaluations({}, 'recall@5')
    with pytest.raises(GenrecError, match='NAME@K'): Scores.from_evaluations({'a': e, 'b': e}, 'recal@5')

@pytest.mark.parametrize('values, kwargs, words', [
    (np.zeros((2, 0, 3)), {}, ['[2, 0, 3]', 'at least one']),
    (np.zeros((2, 3)), {}, ['[2, 3]', '[methods, seeds, cases]']),
    (np.zeros((2, 1, 3)), dict(methods=['a', 'a']), ['methods', '1 different', 'expected 2']),
    (np.zeros((2, 1, 3)), dict(users=[1, 2]), ['users: found 2', 'expected 3']),
    (np.zeros((2, 1, 3)), dict(targets=[1, 2]), ['targets: found 2', 'expected 3']),
    (np.array([[[0, 1.]], [[2, math.nan]]]), dict(users=[4, 6], seeds=[35]), ['1 NaN', 'm1', 'seed 35', 'user 6']),
])
def test_bad_scores(values, kwargs, words):
    with pytest.raises(GenrecError) as e: Scores(values, **dict(dict(methods=['m0', 'm1']), **kwargs))
    assert all(w in str(e.value) for w in words), e.value


# ---- the table ----------------------------------------------------------------------------------------------------

def test_comparison_equals_its_parts():
    s = table(); r = compare_methods(s, 'm1', n=500); a, b = s.values[2], s.values[1]; d = a - b; row = r['m2']; t = crossed_test(d)
    assert len(r) == 2 and [x.method for x in r.rows] == ['m0', 'm2'] and r.over == 'both'
    assert [row.difference, row.difference_low, row.difference_high, row.p] == pytest.approx([d.mean(), *t.interval, t.p])
    assert row.p_users == sign_flip_test(d.mean(0)).p and row.p_seeds == sign_flip_test(d.mean(1)).p
    assert [x.p_holm for x in r.rows] == pytest.approx(holm([x.p for x in r.rows]).tolist())
    assert [row.relative, row.d, row.superiority] == pytest.approx([d.mean() / b.mean(), d.mean() / d.std(), ((a > b) + .5 * (a == b)).mean()])
    assert row.detectable == pytest.approx((stats.t.ppf(.975, t.df) + stats.t.ppf(.8, t.df)) * t.se)
    assert row.relative_low < row.relative < row.relative_high and row.d_low < row.d < row.d_high and row.superiority_low < row.superiority < row.superiority_high

def test_other_questions():
    s = table(); d = s.values[1] - s.values[0]
    users, seeds = compare_methods(s, over='users', n=200)['m1'], compare_methods(s, over='seeds', n=200)['m1']
    for row, x in ((users, d.mean(0)), (seeds, d.mean(1))): assert [row.difference_low, row.difference_high] == pytest.approx(list(stats.ttest_1samp(x, 0).confidence_interval()))
    assert users.p == users.p_users == sign_flip_test(d.mean(0)).p and seeds.p == seeds.p_seeds

def test_effect_intervals_against_a_loop():
    s = table(2, 3, 25); rng, a, b = np.random.default_rng(0), s.values[1], s.values[0]; loop = []
    for _ in range(2000):
        i = np.ix_(rng.integers(0, 3, 3), rng.integers(0, 25, 25)); x, y = a[i], b[i]; d = x - y
        loop.append([d.mean() / y.mean(), d.mean() / d.std(), ((x > y) + .5 * (x == y)).mean()])
    row = compare_methods(s, n=3000)['m1']
    for name, ref in zip(('relative', 'd', 'superiority'), np.quantile(loop, [.025, .975], axis=0).T):
        assert [getattr(row, f'{name}_low'), getattr(row, f'{name}_high')] == pytest.approx(ref.tolist(), abs=.12 * np.diff(ref)[0])

@quick
@given(st.integers(0, 30))
def test_swapping_the_methods_flips_the_signs(seed):
    s = table(2, 3, 15, seed); x, y = compare_methods(s, 'm0', n=50)['m1'], compare_methods(s, 'm1', n=50)['m0']
    assert [y.difference, y.difference_low, y.difference_high, y.d] == pytest.approx([-x.difference, -x.difference_high, -x.difference_low, -x.d])
    assert [y.p, y.p_users, y.p_seeds] == pytest.approx([x.p, x.p_users, x.p_seeds]) and y.superiority == pytest.approx(1 - x.superiority)
    assert {x.verdict, y.verdict} in ({'better', 'worse'}, {'not significant'})

@quick
@given(st.integers(0, 30))
def test_the_order_of_the_users_is_nothing(seed):
    rng = np.random.default_rng(seed); v, users, order = rng.random((2, 2, 20)).round(1), rng.permutation(20), rng.permutation(20)
    a, b = (compare_methods(Scores(x, ['a', 'b'], users=u), n=50).table for x, u in ((v, users), (v[..., order], users[order])))
    assert a.equals(b)

def test_more_cases_of_a_user_weigh_as_the_mean_over_cases_does():
    "Doubling every case changes no p and no interval: twice the cases are not twice the people"
    v = np.random.default_rng(0).random((2, 4, 30)); one, two = Scores(v, ['a', 'b']), Scores(np.tile(v, 2), ['a', 'b'], users=np.tile(np.arange(30), 2))
    x, y = compare_methods(one, n=50)['b'], compare_methods(two, n=50)['b']
    assert y[3:-2] == pytest.approx(x[3:-2], nan_ok=True)

def test_ragged_users_cover():
    "Users with many cases and their own taste: the mean over cases is covered"
    rng, inside = np.random.default_rng(1), 0
    for _ in range(150):
        n = rng.integers(1, 12, 60); users = np.repeat(np.arange(60), n); d = .2 + (.3 * rng.standard_normal(60))[users] + .1 * rng.standard_normal((4, 1)) + rng.standard_normal((4, len(users)))
        s = Scores(np.stack([np.zeros_like(d), d]), ['b', 'a'], users=users); d, sizes = s.difference('a', 'b'); lo, hi = crossed_test(d, sizes=sizes).interval; inside += lo <= .2 <= hi
    assert inside / 150 >= .88

def test_verdicts():
    rng = np.random.default_rng(0); b = rng.random((6, 80)); noise = .2 * rng.standard_normal((3, 6, 80))
    s = Scores(np.stack([b, b + .3 + noise[0], b - .3 + noise[1], b + noise[2]]), ['b', 'up', 'down', 'same'])
    r = compare_methods(s, n=100); assert [x.verdict for x in r.rows] == ['better', 'worse', 'not significant'] and 'not significant' in repr(r)
    text = repr(r); assert 'against b, for other users and other seeds; 6 seeds, 80 users' in text and all(x in text for x in ('Holm', 'detectable', 'worse'))
    p = np.array([.03, .04]); assert (holm(p) > .05).all()                # 'not after Holm' is for such

def test_one_seed_says_what_it_is_about():
    s = table(S=1); r = compare_methods(s, n=50); assert r.over == 'users' and 'of these trained models' in repr(r) and math.isnan(r.rows[0].p_seeds)
    for over in ('both', 'seeds'):
        with pytest.raises(GenrecError, match="one seed.*over='users'"): compare_methods(s, over=over)
    with pytest.raises(GenrecError, match="'m9'.*m0, m1, m2"): compare_methods(s, 'm9')
    with pytest.raises(GenrecError, match='one method'): compare_methods(table(A=1))
    with pytest.raises(GenrecError, match=r"groups, 'x'.*\[60\]"): compare_methods(s, groups={'x': [True]})
    with pytest.raises(GenrecError, match='is not there'): r['m7']

def test_groups_are_the_comparison_of_those_cases_and_share_one_holm():
    s = table(); mask = np.arange(60) % 3 == 0; r = compare_methods(s, groups={'third': mask, 'rest': ~mask, 'none': mask & ~mask}, n=200)
    alone = compare_methods(Scores(s.values[..., mask], s.methods), n=200)
    x, y = r['m2', 'third'], alone['m2']
    assert [*x[3:7], x.p, x.d, x.d_low, x.d_high] == pytest.approx([*y[3:7], y.p, y.d, y.d_low, y.d_high])
    assert x.p_holm == pytest.approx(holm([q.p for q in r.rows])[1]) and math.isnan(r['m1', 'none'].p) and r['m1', 'none'].verdict == 'too few users'
    assert '–' in repr(r)

def test_frame_html_and_json():
    s = Scores(table().values, ['a <b> & c', 'x', 'y']); r = compare_methods(s, 'x', n=50); row = r['y']
    assert 'a &lt;b&gt; &amp; c' in r._repr_html_() and '<b>' not in r._repr_html_() and r._repr_html_() == r._repr_html_()
    t = r.table.loc['y', '']; assert (t.difference, t.p_holm, t.verdict) == (row.difference, row.p_holm, row.verdict)
    stored = json.loads(r.table.reset_index().to_json(orient='records')); assert stored[1]['method'] == 'y' and stored[1]['d'] == pytest.approx(row.d)
    assert max(map(len, repr(compare_methods(table(), n=50)).splitlines())) <= 130

def test_identical_methods_differ_in_nothing():
    v = np.random.default_rng(0).random((1, 3, 20)); r = compare_methods(Scores(np.concatenate([v, v]), ['a', 'b']), n=50)['b']
    assert (r.difference, r.p, r.p_users, r.p_seeds, r.d, r.superiority, r.verdict) == (0, 1, 1, 1, 0, .5, 'not significant')

def test_a_reference_of_zero():
    v = np.zeros((2, 3, 30)); v[1] = np.random.default_rng(0).random((3, 30)); r = compare_methods(Scores(v, ['zero', 'a']), n=50)
    assert math.isnan(r['a'].relative) and math.isnan(r['a'].relative_low) and r['a'].verdict == 'better'


# ---- deciles, head and tail ---------------------------------------------------------------------------------------

def test_decile_curve_by_loops():
    rng = np.random.default_rng(0)
    counts, targets = rng.integers(0, 30, 40), rng.integers(0, 25, 300)
    s = Scores(rng.random((2, 3, 300)), ['a', 'b'], users=rng.integers(0, 90, 300), targets=targets)
    curve, g = decile_curve(s, counts, n=300), popularity_groups(counts)[s.targets]
    for (method, group), r in curve.iterrows():
        here = g == group - 1
        assert r.cases == here.sum()
        if not here.any(): assert math.isnan(r['mean']); continue
        assert r['mean'] == pytest.approx(s.values[s.index(method)][:, here].mean())
        if r.cases > 20: assert r.low < r['mean'] < r.high
    assert curve.loc['a'].cases.sum() == 300

def test_groups_of_tie_seeds_by_loops():
    "Targets and training counts of every seed: means and differences of the head, the tail and the deciles"
    rng = np.random.default_rng(3); S, M = 3, 200
    counts, targets = rng.integers(0, 30, (S, 20)), rng.integers(0, 20, (S, M))
    s = Scores(rng.random((2, S, M)), ['a', 'b'], users=np.sort(rng.integers(0, 60, M)), targets=targets)
    tail = np.stack([head_tail(c)[t] for c, t in zip(counts, targets)])
    r, curve = compare_head_tail(s, counts, n=50), decile_curve(s, counts, n=50)
    for group, mask in dict(head=~tail, tail=tail).items():
        assert r['b', group].mean == pytest.approx(s.values[1][mask].mean()) and r['b', group].difference == pytest.approx((s.values[1] - s.values[0])[mask].mean())
    decile = np.stack([popularity_groups(c)[t] for c, t in zip(counts, targets)])
    for (method, g), row in curve.iterrows():
        assert row['mean'] == pytest.approx(s.values[s.index(method)][decile == g - 1].mean()) and row.cases == pytest.approx((decile == g - 1).sum()/S)
    alike, one = Scores(s.values, ['a', 'b'], s.users, np.tile(targets[0], (S, 1))), Scores(s.values, ['a', 'b'], s.users, targets[0])
    for f in (lambda s: compare_head_tail(s, counts[0], n=50).table, lambda s: decile_curve(s, counts[0], n=50)):
        assert f(alike).equals(f(one)) or np.allclose(f(alike).select_dtypes('number'), f(one).select_dtypes('number'), equal_nan=True)
    with pytest.raises(GenrecError, match=r'expected \[200\].*\[3, 200\]'): compare_methods(s, groups=dict(x=np.ones((2, 200), bool)))

def test_decile_interval_is_the_bootstrap_of_that_decile():
    rng = np.random.default_rng(1); counts = np.arange(10)[::-1]; targets = np.repeat([0, 5], 200)
    s = Scores((rng.random((1, 1, 400)) < .3), ['a'], targets=targets); c = decile_curve(s, counts, n=3000).loc['a', 1]
    assert [c.low, c.high] == pytest.approx(bootstrap_interval(s.values[0, 0, :200], n=3000), abs=.02)

def test_head_and_tail():
    rng = np.random.default_rng(0); counts = np.arange(20)[::-1]; targets = rng.integers(0, 20, 120); v = rng.random((2, 4, 120)); v[1, :, targets < 4] += .5
    r = compare_head_tail(Scores(v, ['a', 'b'], targets=targets), counts, n=100); tail = head_tail(counts)[targets]
    assert r['b', 'head'].verdict == 'better' and r['b', 'tail'].verdict == 'not significant' and r['b', 'tail'].difference == pytest.approx((v[1] - v[0])[:, tail].mean())
    with pytest.raises(GenrecError, match='targets are not known'): compare_head_tail(table(), counts)
    with pytest.raises(GenrecError, match='target.*3 items'): decile_curve(Scores(v, ['a', 'b'], targets=targets), counts[:3])


# ---- pictures -----------------------------------------------------------------------------------------------------

def test_pictures_show_the_numbers():
    import matplotlib.pyplot as plt
    rng = np.random.default_rng(0); s = Scores(rng.random((3, 3, 50)), list('abc'), targets=rng.integers(0, 30, 50)); r = compare_methods(s, n=50)
    ax = plot_comparisons(r); assert [t.get_text() for t in ax.get_yticklabels()] == ['b', 'c']
    top, low = plot_deciles(decile_curve(s, np.arange(30), n=50), s.metric); assert len(top.lines) == 3 and sum(p.get_height() for p in low.patches) == 50
    ax = plot_critical_difference(rank_methods(s.means().T, s.methods)); assert 'critical difference' in ' '.join(t.get_text() for t in ax.texts)
    plt.close('all')
