"""The instrument against enumeration, scipy, simulated nulls, and the laws it must obey."""
import itertools, json, math
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from scipy import stats
from genrec_nb.data import Cases, Interactions
from genrec_nb.core import GenrecError
from genrec_nb.metrics import bootstrap_interval, evaluate_ranking, head_tail, popularity_groups
from genrec_nb.significance import *
from genrec_nb.significance import _draws, _percentiles, _random_flip_sums

quick = settings(max_examples=50, deadline=None)
tenths = st.integers(-9, 9).map(lambda i: i / 10)                       # many ties and zeros

def bootstrap_difference(d, over=None, n=2000, level=.95, seed=0):
    "Percentile interval of a mean difference [S, U]"
    d = np.asarray(d, float); total = bootstrap_totals(d[None], over or ('both' if len(d) > 1 else 'users'), n, seed)
    return tuple(float(x) for x in _percentiles(total[:, 0] / d.shape[1], level))

def all_flip_sums(d):
    sums = np.zeros(1)
    for x in np.abs(d): sums = np.concatenate([sums + x, sums - x])
    return sums

def table(A=3, S=4, U=60, seed=0, **kwargs):
    rng = np.random.default_rng(seed)
    v = rng.random((A, S, U)).round(1) + .05 * np.arange(A)[:, None, None]
    return Scores(v, [f'm{a}' for a in range(A)], **kwargs)


# ---- sign flips ---------------------------------------------------------------------------------------------------

def slow_flip(d, alternative='two-sided'):
    "Every pattern of signs over every unit, zeros too"
    f = {'two-sided': abs, 'greater': lambda x: x, 'less': lambda x: -x}[alternative]
    sums = [f(sum(s * x for s, x in zip(signs, d))) for signs in itertools.product([1, -1], repeat=len(d))]
    return sum(x >= f(sum(d)) - 1e-9 for x in sums) / len(sums)

@quick
@given(st.lists(tenths, min_size=1, max_size=9), st.sampled_from(['two-sided', 'greater', 'less']))
def test_few_units_by_enumeration(d, alternative):
    t = sign_flip_test(d, alternative=alternative)
    assert t.exact and t.p == pytest.approx(slow_flip(d, alternative)) and t.mean == pytest.approx(np.mean(d))

@pytest.mark.parametrize('seed', range(3))
def test_exact_against_scipy(seed):
    d = np.random.default_rng(seed).normal(.3, 1, 10)
    for alternative in ('two-sided', 'greater', 'less'):
        r = stats.permutation_test((d,), np.mean, permutation_type='samples', alternative=alternative, n_resamples=10_000)
        assert sign_flip_test(d, alternative=alternative).p == pytest.approx(r.pvalue)

@pytest.mark.parametrize('values', ['continuous', 'hits', 'mixed'])
def test_random_flips_have_the_law_of_the_exact_ones(values):
    "Coins one by one, coins by the binomial, and both together, against all 2**16 patterns"
    rng = np.random.default_rng(1)
    d = {'continuous': rng.normal(size=16), 'hits': np.ones(16), 'mixed': np.r_[np.ones(16), rng.normal(size=3)]}[values]
    all_, some = all_flip_sums(d), _random_flip_sums(d, 40_000)
    assert len(all_) == 2**len(d) and some.std() == pytest.approx(np.sqrt((d**2).sum()), rel=.02) and some.mean() == pytest.approx(0, abs=.08)
    for x in (.5, 1.5, 3.): assert (some >= x - 1e-9).mean() == pytest.approx((all_ >= x - 1e-9).mean(), abs=4 * .5 / 200)

def test_monte_carlo_p_by_mcnemar_and_t():
    d = np.repeat([1., -1., 0.], [70, 45, 800])
    assert sign_flip_test(d, 100_000).p == pytest.approx(stats.binomtest(70, 115).pvalue, abs=.003)
    x = np.random.default_rng(0).normal(.1, 1, 500)
    assert sign_flip_test(x, 100_000).p == pytest.approx(stats.ttest_1samp(x, 0).pvalue, abs=.006)
    assert sign_flip_test(x, 100_000, alternative='less').p == pytest.approx(stats.ttest_1samp(x, 0, alternative='less').pvalue, abs=.006)

def test_no_p_of_zero_and_the_correction():
    d = np.ones(500); t = sign_flip_test(d, n=999)
    assert not t.exact and t.p == 1 / 1000 and sign_flip_test(np.ones(6)).p == 2 / 64 and sign_flip_test(np.zeros(9)).p == 1

@quick
@given(st.lists(tenths, min_size=1, max_size=60), st.randoms(use_true_random=False))
def test_flips_know_no_order_and_no_sign(d, rnd):
    d = np.array(d); t = sign_flip_test(d, n=200); other = d.copy(); rnd.shuffle(other)
    assert sign_flip_test(other, n=200) == t                           # the same p to the last digit, for exact and for random
    u = sign_flip_test(-d, n=200); assert u.p == t.p and u.mean == -t.mean
    assert sign_flip_test(3 * d, n=200).p == t.p and sign_flip_test(np.r_[d, np.zeros(7)], n=200).p == t.p

def test_seeded_and_without_global_state():
    d, state = np.random.default_rng(0).normal(size=40), np.random.get_state()[1].copy()
    assert sign_flip_test(d, 500, seed=1).p == sign_flip_test(d, 500, seed=1).p
    assert len({sign_flip_test(d, 500, seed=s).p for s in range(5)}) > 1 and (np.random.get_state()[1] == state).all()

def test_memory_stays_bounded():
    import tracemalloc
    d = np.random.default_rng(0).random(20_000); tracemalloc.start(); _random_flip_sums(d, 3000); top = tracemalloc.get_traced_memory()[1]; tracemalloc.stop()
    assert top < 60e6                                                   # the whole matrix would be 480 MB

@pytest.mark.parametrize('kind', ['continuous', 'hits'])
def test_false_positive_rate_of_the_sign_flip(kind):
    "Users exchangeable between the methods, with very unequal users: 5 % and 10 % within binomial bounds"
    rng, R, ps = np.random.default_rng(2), 600, []
    for r in range(R):
        user = rng.beta(.5, 2, 150)
        v = rng.random((2, 150)) * user**2 if kind == 'continuous' else (rng.random((2, 150)) < user)
        ps.append(sign_flip_test(v[0] * 1. - v[1], n=999, seed=r).p)
    for level in (.05, .1):
        k = (np.array(ps) <= level).sum(); assert k <= stats.binom(R, level).ppf(.999)
        assert k >= stats.binom(R, level).ppf(.001) * (.5 if kind == 'hits' else 1)              # discrete p: a little cautious

@pytest.mark.parametrize('d, words', [([], ['d', '[0]']), ([1., math.nan], ['1 NaN', 'of 2']), ([[1.]], ['[1, 1]', '[units]'])])
def test_bad_differences(d, words):
    with pytest.raises(GenrecError) as e: sign_flip_test(d)
    assert all(w in str(e.value) for w in words) and '\n' not in str(e.value)

def test_bad_settings():
    with pytest.raises(GenrecError, match="'two_sided'.*greater"): sign_flip_test([1.], alternative='two_sided')
    with pytest.raises(GenrecError, match='n is 0'): sign_flip_test([1.], n=0)


# ---- Holm ---------------------------------------------------------------------------------------------------------

@quick
@given(st.lists(st.one_of(st.floats(0, 1), st.just(math.nan)), max_size=12))
def test_holm_in_a_loop(p):
    left, out, worst = [i for i in range(len(p)) if not math.isnan(p[i])], [math.nan] * len(p), 0.
    m = len(left)
    for step in range(m):                                               # the smallest p that is left, times the number left
        i = min(left, key=lambda j: p[j]); worst = max(worst, p[i] * (m - step)); out[i] = min(1., worst); left.remove(i)
    np.testing.assert_allclose(holm(p), out)

def test_holm_controls_any_false_rejection():
    p = np.random.default_rng(0).random((4000, 8)); p[:, 1] = p[:, 0]   # with dependence
    hit = np.array([(holm(row) < .05).any() for row in p]).mean()
    assert hit <= .05 + 3 * np.sqrt(.05 * .95 / 4000)
    with pytest.raises(GenrecError, match='between 0 and 1'): holm([.2, 1.1])


# ---- users and seeds together -------------------------------------------------------------------------------------

def test_components_are_recovered():
    rng = np.random.default_rng(0); got = []
    for _ in range(200):
        c = variance_components(.8 * rng.standard_normal(80) + .6 * rng.standard_normal((12, 1)) + rng.standard_normal((12, 80)))
        got.append([c.users, c.seeds, c.residual])
    np.testing.assert_allclose(np.mean(got, 0), [.64, .36, 1], rtol=.06)

def test_components_by_the_table_of_mean_squares():
    d = np.random.default_rng(3).normal(size=(5, 7)) + np.arange(7); S, U = d.shape
    ms_s, ms_u = (U * np.var(d.mean(1), ddof=1), S * np.var(d.mean(0), ddof=1))
    ms_e = sum((d[s, u] - d[s].mean() - d[:, u].mean() + d.mean())**2 for s in range(S) for u in range(U)) / ((S - 1) * (U - 1))
    c = variance_components(d)
    assert [c.users, c.seeds, c.residual] == pytest.approx([max(0, (ms_u - ms_e) / S), max(0, (ms_s - ms_e) / U), ms_e])

def test_crossed_becomes_the_one_sample_t_test_in_both_limits():
    rng = np.random.default_rng(0)
    by_user = np.tile(rng.normal(.2, 1, 40), (5, 1)); t = crossed_test(by_user); ref = stats.ttest_1samp(by_user[0], 0)
    assert [t.p, t.df] == pytest.approx([ref.pvalue, 39]) and [t.lo, t.hi] == pytest.approx(list(ref.confidence_interval()))
    by_seed = np.tile(rng.normal(.2, 1, (5, 1)), (1, 40)); t = crossed_test(by_seed); ref = stats.ttest_1samp(by_seed[:, 0], 0)
    assert [t.p, t.df] == pytest.approx([ref.pvalue, 4]) and [t.lo, t.hi] == pytest.approx(list(ref.confidence_interval()))

@pytest.mark.parametrize('users, seeds, rest', [(0, 0, 1), (.3, .5, 1), (.3, 2, 1), (.2, 6, 1)])
def test_false_positives_and_coverage_of_the_crossed_test(users, seeds, rest):
    "Six runs: at most a little above 5 %, whatever the mixture; the interval is the same statement"
    rng, R, S, U = np.random.default_rng(5), 1500, 6, 100
    x = users**.5 * rng.standard_normal((R, 1, U)) + (seeds / U)**.5 * rng.standard_normal((R, S, 1)) + rest**.5 * rng.standard_normal((R, S, U))
    t = [crossed_test(d) for d in x]
    false = np.mean([a.p < .05 for a in t]); assert .015 <= false <= .075
    assert all((a.p < .05) == (not a.lo <= 0 <= a.hi) for a in t)

def test_one_seed_of_users_alone_cries_wolf():
    "What the crossed test is for: the same null, one run and users only"
    rng = np.random.default_rng(6); x = (6 / 100)**.5 * rng.standard_normal((500, 5, 1)) + rng.standard_normal((500, 5, 100))
    assert np.mean([sign_flip_test(d[0], 499).p < .05 for d in x]) > .3

@quick
@given(st.integers(2, 5), st.integers(2, 9), st.integers(0, 99))
def test_crossed_is_antisymmetric_and_knows_no_order(S, U, seed):
    rng = np.random.default_rng(seed); d = rng.normal(size=(S, U)); t, u = crossed_test(d), crossed_test(-d)
    assert [u.mean, u.lo, u.hi, u.p] == pytest.approx([-t.mean, -t.hi, -t.lo, t.p])
    v = crossed_test(d[rng.permutation(S)][:, rng.permutation(U)]); assert [v.mean, v.p, v.df] == pytest.approx([t.mean, t.p, t.df])

def test_crossed_edges():
    assert crossed_test(np.zeros((3, 4))).p == 1 and crossed_test(np.full((3, 4), .5)).p == 0
    with pytest.raises(GenrecError, match='1 seed, expected at least 2'): crossed_test([[.1, .2]])
    with pytest.raises(GenrecError, match='1 user'): crossed_test([[.1], [.2]])
    with pytest.raises(GenrecError, match='1 NaN'): crossed_test([[.1, math.nan], [.1, .2]])
    with pytest.raises(GenrecError, match='level'): crossed_test(np.eye(3), level=95)


# ---- bootstrap ----------------------------------------------------------------------------------------------------

def test_draws_are_multinomial():
    w = _draws(np.random.default_rng(0), 20_000, 6)
    assert (w.sum(1) == 6).all() and w.mean(0) == pytest.approx(np.ones(6), abs=.03) and w.var(0) == pytest.approx(np.full(6, 5/6), rel=.05)
    assert np.cov(w.T)[0, 1] == pytest.approx(-1/6, abs=.02)

def test_totals_equal_resampling_in_a_loop():
    rng = np.random.default_rng(0); d = rng.normal(size=(4, 12)) + rng.normal(size=(4, 1)); loop = {'users': [], 'seeds': [], 'both': []}
    for _ in range(8000):
        s, u = rng.integers(0, 4, 4), rng.integers(0, 12, 12)
        loop['users'].append(d[:, u].mean()); loop['seeds'].append(d[s].mean()); loop['both'].append(d[s][:, u].mean())
    for over, ref in loop.items():
        x = bootstrap_totals(d[None], over, 20_000)[:, 0] / 12
        assert x.std() == pytest.approx(np.std(ref), rel=.04)
        assert np.quantile(x, [.025, .5, .975]) == pytest.approx(np.quantile(ref, [.025, .5, .975]), abs=.05)

def test_few_users_by_enumeration():
    d = np.array([[.5, -1., 2.]])
    means = np.sort([np.mean(r) for r in itertools.product(d[0], repeat=3)])                        # all 27 resamples
    x = bootstrap_totals(d[None], 'users', 30_000)[:, 0] / 3
    for m in np.unique(means.round(9)): assert np.isclose(x, m).mean() == pytest.approx(np.isclose(means, m).mean(), abs=.012)

def test_interval_agrees_with_the_interval_of_evaluate():
    v = (np.random.default_rng(0).random(500) < .1).astype(float)
    assert bootstrap_difference(v[None], n=8000) == pytest.approx(bootstrap_interval(v, n=8000), abs=.003)

def test_coverage_over_users():
    rng, inside = np.random.default_rng(4), 0
    for seed in range(400):
        lo, hi = bootstrap_difference(((rng.random(200) < .3) * 1. - (rng.random(200) < .2))[None], n=500, seed=seed); inside += lo <= .1 <= hi
    assert .91 <= inside / 400 <= .98

def test_coverage_over_users_and_seeds_is_not_below():
    rng, inside = np.random.default_rng(4), 0
    for seed in range(200):
        d = .1 * rng.standard_normal((8, 1)) + rng.standard_normal((8, 100)); lo, hi = bootstrap_difference(d, n=400, seed=seed); inside += lo <= 0 <= hi
    assert inside / 200 >= .91

def test_blocks_do_not_change_the_draws():
    x = np.random.default_rng(0).normal(size=(2, 3, 70_000)); a = bootstrap_totals(x, 'both', 7)
    one = bootstrap_totals(x[:1], 'both', 7); np.testing.assert_allclose(a[:, 0], one[:, 0])          # the same people for every quantity
    x = x[..., :900]; np.testing.assert_allclose(bootstrap_totals(x, 'users', 600)[:300], bootstrap_totals(x, 'users', 300))

@quick
@given(st.integers(0, 99))
def test_bootstrap_is_antisymmetric(seed):
    d = np.random.default_rng(seed).normal(size=(3, 20)); lo, hi = bootstrap_difference(d, n=200)
    assert bootstrap_difference(-d, n=200) == pytest.approx((-hi, -lo))

def test_bootstrap_refuses():
    with pytest.raises(GenrecError, match='one seed'): bootstrap_difference([[1., 2.]], over='both')
    with pytest.raises(GenrecError, match="'user'.*users, seeds, both"): bootstrap_difference([[1., 2.]], over='user')


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
    assert [row.difference, *row.interval, row.p] == pytest.approx([d.mean(), t.lo, t.hi, t.p])
    assert row.p_users == sign_flip_test(d.mean(0)).p and row.p_seeds == slow_flip(d.mean(1))
    assert [x.p_holm for x in r.rows] == pytest.approx(holm([x.p for x in r.rows]).tolist())
    assert [row.relative, row.d, row.superiority] == pytest.approx([d.mean() / b.mean(), d.mean() / d.std(), ((a > b) + .5 * (a == b)).mean()])
    assert row.detectable == pytest.approx((stats.t.ppf(.975, t.df) + stats.t.ppf(.8, t.df)) * t.se)
    for x, (lo, hi) in ((row.relative, row.relative_interval), (row.d, row.d_interval), (row.superiority, row.superiority_interval)): assert lo < x < hi

def test_other_questions():
    s = table(); d = s.values[1] - s.values[0]
    users, seeds = compare_methods(s, over='users', n=200)['m1'], compare_methods(s, over='seeds', n=200)['m1']
    for row, x in ((users, d.mean(0)), (seeds, d.mean(1))): assert list(row.interval) == pytest.approx(list(stats.ttest_1samp(x, 0).confidence_interval()))
    assert users.p == users.p_users == sign_flip_test(d.mean(0)).p and seeds.p == seeds.p_seeds

def test_effect_intervals_against_a_loop():
    s = table(2, 3, 25); rng, a, b = np.random.default_rng(0), s.values[1], s.values[0]; loop = []
    for _ in range(4000):
        i = np.ix_(rng.integers(0, 3, 3), rng.integers(0, 25, 25)); x, y = a[i], b[i]; d = x - y
        loop.append([d.mean() / y.mean(), d.mean() / d.std(), ((x > y) + .5 * (x == y)).mean()])
    row = compare_methods(s, n=6000)['m1']
    for got, ref in zip((row.relative_interval, row.d_interval, row.superiority_interval), np.quantile(loop, [.025, .975], axis=0).T):
        assert list(got) == pytest.approx(ref.tolist(), abs=.1 * np.diff(ref)[0])

@quick
@given(st.integers(0, 30))
def test_swapping_the_methods_flips_the_signs(seed):
    s = table(2, 3, 15, seed); x, y = compare_methods(s, 'm0', n=50)['m1'], compare_methods(s, 'm1', n=50)['m0']
    assert [y.difference, *y.interval, y.d] == pytest.approx([-x.difference, -x.interval[1], -x.interval[0], -x.d])
    assert [y.p, y.p_users, y.p_seeds] == pytest.approx([x.p, x.p_users, x.p_seeds]) and y.superiority == pytest.approx(1 - x.superiority)
    assert {x.verdict, y.verdict} in ({'better', 'worse'}, {'not significant'})

@quick
@given(st.integers(0, 30))
def test_the_order_of_the_users_is_nothing(seed):
    rng = np.random.default_rng(seed); v, users, order = rng.random((2, 2, 20)).round(1), rng.permutation(20), rng.permutation(20)
    a, b = (compare_methods(Scores(x, ['a', 'b'], users=u), n=50).to_dict() for x, u in ((v, users), (v[..., order], users[order])))
    assert json.dumps(a) == json.dumps(b)

def test_more_cases_of_a_user_weigh_as_the_mean_over_cases_does():
    "Doubling every case changes no p and no interval: twice the cases are not twice the people"
    v = np.random.default_rng(0).random((2, 4, 30)); one, two = Scores(v, ['a', 'b']), Scores(np.tile(v, 2), ['a', 'b'], users=np.tile(np.arange(30), 2))
    x, y = compare_methods(one, n=50)['b'], compare_methods(two, n=50)['b']
    assert [y.difference, *y.interval, y.p, y.p_users, y.relative, *y.relative_interval, y.d] == pytest.approx([x.difference, *x.interval, x.p, x.p_users, x.relative, *x.relative_interval, x.d])

def test_ragged_users_cover():
    "Users with many cases and their own taste: the mean over cases is covered"
    rng, inside = np.random.default_rng(1), 0
    for _ in range(300):
        n = rng.integers(1, 12, 60); users = np.repeat(np.arange(60), n); d = .2 + (.3 * rng.standard_normal(60))[users] + .1 * rng.standard_normal((4, 1)) + rng.standard_normal((4, len(users)))
        s = Scores(np.stack([np.zeros_like(d), d]), ['b', 'a'], users=users); lo, hi = compare_methods(s, n=2, flips=9)['a'].interval; inside += lo <= .2 <= hi
    assert inside / 300 >= .9

def test_verdicts():
    rng = np.random.default_rng(0); b = rng.random((6, 80)); noise = .2 * rng.standard_normal((3, 6, 80))
    s = Scores(np.stack([b, b + .3 + noise[0], b - .3 + noise[1], b + noise[2]]), ['b', 'up', 'down', 'same'])
    r = compare_methods(s, n=100); assert [x.verdict for x in r.rows] == ['better', 'worse', 'not significant'] and 'not significant' in repr(r['same'])
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
    assert [x.difference, *x.interval, x.p, x.d, *x.d_interval] == pytest.approx([y.difference, *y.interval, y.p, y.d, *y.d_interval])
    assert x.p_holm == pytest.approx(holm([q.p for q in r.rows])[1]) and math.isnan(r['m1', 'none'].p) and r['m1', 'none'].verdict == 'too few users'
    json.dumps(r.to_dict(), allow_nan=False); assert '–' in repr(r)

def test_frame_html_and_json():
    s = Scores(table().values, ['a <b> & c', 'x', 'y']); r = compare_methods(s, 'x', n=50); row = r['y']
    assert 'a &lt;b&gt; &amp; c' in r._repr_html_() and '<b>' not in r._repr_html_() and r._repr_html_() == r._repr_html_()
    t = r.frame().loc['y', '']; assert (t.difference, t.p_holm, t.verdict) == (row.difference, row.p_holm, row.verdict)
    assert (t.difference_low, t.difference_high, t.relative_low, t.d_high) == (*row.interval, row.relative_interval[0], row.d_interval[1])
    d = json.loads(json.dumps(r.to_dict(), allow_nan=False)); assert d['rows'][1]['method'] == 'y' and len(d['rows'][0]['interval']) == 2
    assert max(map(len, repr(compare_methods(table(), n=50)).splitlines())) <= 130

def test_identical_methods_differ_in_nothing():
    v = np.random.default_rng(0).random((1, 3, 20)); r = compare_methods(Scores(np.concatenate([v, v]), ['a', 'b']), n=50)['b']
    assert (r.difference, r.p, r.p_users, r.p_seeds, r.d, r.superiority, r.verdict) == (0, 1, 1, 1, 0, .5, 'not significant')

def test_a_reference_of_zero():
    v = np.zeros((2, 3, 30)); v[1] = np.random.default_rng(0).random((3, 30)); r = compare_methods(Scores(v, ['zero', 'a']), n=50)
    assert math.isnan(r['a'].relative) and all(map(math.isnan, r['a'].relative_interval)) and r['a'].verdict == 'better'; json.dumps(r.to_dict(), allow_nan=False)


# ---- power --------------------------------------------------------------------------------------------------------

def test_detectable_effects_are_detected_as_often_as_asked():
    rng = np.random.default_rng(0); S, U = 6, 80; parts = VarianceComponents(.3, .02, 1., U, S); gain = minimal_detectable_effect(parts)
    x = gain + .3**.5 * rng.standard_normal((1500, 1, U)) + .02**.5 * rng.standard_normal((1500, S, 1)) + rng.standard_normal((1500, S, U))
    assert np.mean([crossed_test(d).p < .05 for d in x]) == pytest.approx(.8, abs=.05)

def test_detectable_by_the_noncentral_t():
    for df in (4, 9, 100):
        effect = detectable(1 / np.sqrt(df + 1), df); t = stats.t.ppf(.975, df); ncp = effect * np.sqrt(df + 1)
        assert stats.nct.sf(t, df, ncp) + stats.nct.cdf(-t, df, ncp) == pytest.approx(.8, abs=.015)

def test_planning():
    c = variance_components(np.random.default_rng(0).normal(size=(4, 50)) + .4 * np.random.default_rng(1).normal(size=(4, 1)))
    grid = minimal_detectable_effect(c, np.array([50, 500, 5000])[:, None], np.arange(4, 20)); assert grid.shape == (3, 16) and (np.diff(grid, axis=0) < 0).all() and (np.diff(grid, axis=1) < 0).all()
    assert minimal_detectable_effect(c, 10**9, 8) == pytest.approx(detectable(np.sqrt(c.seeds / 8), 7), rel=.01)           # users cannot help any more
    assert grid[0, 0] == pytest.approx(minimal_detectable_effect(c))
    with pytest.raises(GenrecError, match='at least 2'): minimal_detectable_effect(c, n_seeds=1)


# ---- ranks --------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize('ties', [False, True])
@pytest.mark.parametrize('n, k', [(5, 3), (12, 6), (40, 4)])
def test_friedman_against_scipy(n, k, ties):
    x = np.random.default_rng(n).random((n, k)); x = x.round(1) if ties else x
    t, ref = rank_methods(x, list('abcdef')[:k]), stats.friedmanchisquare(*x.T)
    assert [t.friedman, t.p] == pytest.approx([ref.statistic, ref.pvalue])

def test_ranks_by_brute_force():
    x = np.random.default_rng(0).integers(0, 4, (9, 5)); t = rank_methods(x, list('abcde'))
    ref = {m: np.mean([sum(row > row[j]) + (sum(row == row[j]) + 1) / 2 for row in x]) for j, m in enumerate('abcde')}
    assert dict(zip(t.methods, t.ranks)) == pytest.approx(ref) and t.ranks.sum() == pytest.approx(15) and (np.diff(t.ranks) >= 0).all()

@pytest.mark.parametrize('k, q', [(2, 1.960), (3, 2.343), (5, 2.728), (10, 3.164)])                  # Demšar (2006), table 5
def test_critical_difference_of_the_published_table(k, q):
    assert rank_methods(np.random.default_rng(0).random((8, k)), list('abcdefghij')[:k]).cd == pytest.approx(q * np.sqrt(k * (k + 1) / 48), rel=5e-4)
    assert rank_methods(np.random.default_rng(0).random((8, k)), list('abcdefghij')[:k]).cd == pytest.approx(stats.studentized_range.ppf(.95, k, 1e6) * np.sqrt(k * (k + 1) / 96), rel=1e-3)

@quick
@given(st.integers(2, 8), st.integers(2, 9), st.integers(0, 200))
def test_groups_are_the_maximal_sets_within_reach(k, n, seed):
    t = rank_methods(np.random.default_rng(seed).random((n, k)) + .3 * np.arange(k), list('abcdefgh')[:k])
    runs = {(i, j) for i in range(k) for j in range(i + 1, k) if t.ranks[j] - t.ranks[i] <= t.cd}
    assert set(t.groups) == {(i, j) for i, j in runs if not any((a, b) != (i, j) and a <= i and j <= b for a, b in runs)}

def test_false_positive_rate_of_friedman_and_nemenyi():
    rng = np.random.default_rng(0); t = [rank_methods(rng.random((15, 5)), list('abcde')) for _ in range(200)]
    assert np.mean([x.p < .05 for x in t]) <= .09 and np.mean([x.ranks[-1] - x.ranks[0] > x.cd for x in t]) <= .09

def test_ranks_refuse():
    for x, names, words in (([[1., 2.]], 'ab', '1 blocks'), ([[1.], [2.]], 'a', '1 methods'), (np.ones((3, 2)), 'abc', '3 names'), ([[1., math.nan], [1., 2.]], 'ab', '1 NaN')):
        with pytest.raises(GenrecError, match=words): rank_methods(x, list(names))
    t = rank_methods(np.ones((4, 3)), list('abc')); assert t.p == 1 and t.groups == [(0, 2)] and t.friedman == 0


# ---- deciles, head and tail ---------------------------------------------------------------------------------------

def test_decile_curve_by_loops():
    rng = np.random.default_rng(0); counts, targets = rng.integers(0, 30, 40), rng.integers(0, 25, 300)
    s = Scores(rng.random((2, 3, 300)), ['a', 'b'], users=rng.integers(0, 90, 300), targets=targets); c = decile_curve(s, counts, n=300); g = popularity_groups(counts)[s.targets]
    for a in range(2):
        for j in range(10):
            if not (g == j).any(): assert math.isnan(c.mean[a, j]); continue
            assert c.mean[a, j] == pytest.approx(s.values[a][:, g == j].mean())
            if c.cases[j] > 20: assert c.lo[a, j] < c.mean[a, j] < c.hi[a, j]
    assert c.cases.sum() == 300 and 'cases' in repr(c)

def test_decile_interval_is_the_bootstrap_of_that_decile():
    rng = np.random.default_rng(1); counts = np.arange(10)[::-1]; targets = np.repeat([0, 5], 200)
    s = Scores((rng.random((1, 1, 400)) < .3), ['a'], targets=targets); c = decile_curve(s, counts, n=6000)
    assert [c.lo[0, 0], c.hi[0, 0]] == pytest.approx(bootstrap_interval(s.values[0, 0, :200], n=6000), abs=.02)

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
    top, low = plot_deciles(decile_curve(s, np.arange(30), n=50)); assert len(top.lines) == 3 and sum(p.get_height() for p in low.patches) == 50
    ax = plot_critical_difference(rank_methods(s.means().T, s.methods)); assert 'critical difference' in ' '.join(t.get_text() for t in ax.texts)
    plt.close('all')
