"""The instrument against enumeration, scipy, simulated nulls, and the laws it must obey."""
import itertools, math
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from scipy import stats
from genrec_nb.core import GenrecError
from genrec_nb.metrics import bootstrap_interval
from genrec_nb.significance import *
from genrec_nb.significance import _bootstrap_totals
from genrec_nb.significance import _draws, _percentiles, _random_flip_sums, _resamples

quick = settings(max_examples=25, deadline=None)
tenths = st.integers(-9, 9).map(lambda i: i / 10)                       # many ties and zeros

def bootstrap_difference(d, over=None, n=2000, level=.95, seed=0):
    "Percentile interval of a mean difference [S, U]"
    d = np.asarray(d, float); total = _bootstrap_totals(d[None], over or ('both' if len(d) > 1 else 'users'), n, seed)
    return tuple(float(x) for x in _percentiles(total[:, 0] / d.shape[1], level))

def all_flip_sums(d):
    sums = np.zeros(1)
    for x in np.abs(d): sums = np.concatenate([sums + x, sums - x])
    return sums


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
    rng, R, ps = np.random.default_rng(2), 300, []
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
    p = np.random.default_rng(0).random((1500, 8)); p[:, 1] = p[:, 0]   # with dependence
    hit = np.array([(holm(row) < .05).any() for row in p]).mean()
    assert hit <= .05 + 3 * np.sqrt(.05 * .95 / 1500)
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
    assert [t.p, t.df] == pytest.approx([ref.pvalue, 39]) and list(t.interval) == pytest.approx(list(ref.confidence_interval()))
    by_seed = np.tile(rng.normal(.2, 1, (5, 1)), (1, 40)); t = crossed_test(by_seed); ref = stats.ttest_1samp(by_seed[:, 0], 0)
    assert [t.p, t.df] == pytest.approx([ref.pvalue, 4]) and list(t.interval) == pytest.approx(list(ref.confidence_interval()))

@pytest.mark.parametrize('users, seeds, rest', [(0, 0, 1), (.3, .5, 1), (.3, 2, 1), (.2, 6, 1)])
def test_false_positives_and_coverage_of_the_crossed_test(users, seeds, rest):
    "Six runs: at most a little above 5 %, whatever the mixture; the interval is the same statement"
    rng, R, S, U = np.random.default_rng(5), 700, 6, 100
    x = users**.5 * rng.standard_normal((R, 1, U)) + (seeds / U)**.5 * rng.standard_normal((R, S, 1)) + rest**.5 * rng.standard_normal((R, S, U))
    t = [crossed_test(d) for d in x]
    false = np.mean([a.p < .05 for a in t]); assert .015 <= false <= .075
    assert all((a.p < .05) == (not a.interval[0] <= 0 <= a.interval[1]) for a in t)

def test_one_seed_of_users_alone_cries_wolf():
    "What the crossed test is for: the same null, one run and users only"
    rng = np.random.default_rng(6); x = (6 / 100)**.5 * rng.standard_normal((500, 5, 1)) + rng.standard_normal((500, 5, 100))
    assert np.mean([sign_flip_test(d[0], 499).p < .05 for d in x]) > .3

@quick
@given(st.integers(2, 5), st.integers(2, 9), st.integers(0, 99))
def test_crossed_is_antisymmetric_and_knows_no_order(S, U, seed):
    rng = np.random.default_rng(seed); d = rng.normal(size=(S, U)); t, u = crossed_test(d), crossed_test(-d)
    assert [u.mean, *u.interval, u.p] == pytest.approx([-t.mean, -t.interval[1], -t.interval[0], t.p])
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
    for _ in range(3000):
        s, u = rng.integers(0, 4, 4), rng.integers(0, 12, 12)
        loop['users'].append(d[:, u].mean()); loop['seeds'].append(d[s].mean()); loop['both'].append(d[s][:, u].mean())
    for over, ref in loop.items():
        x = _bootstrap_totals(d[None], over, 8000)[:, 0] / 12
        assert x.std() == pytest.approx(np.std(ref), rel=.05)
        assert np.quantile(x, [.025, .5, .975]) == pytest.approx(np.quantile(ref, [.025, .5, .975]), abs=.08)

@pytest.mark.parametrize('share', [.1, .9])
def test_users_who_are_alike_count_as_often_as_they_are_drawn(share):
    "Few users or most differ from the usual one, whose values are 0, ½ and 1"
    rng = np.random.default_rng(0); x = np.broadcast_to(np.array([0., .5, 1])[:, None, None], (3, 2, 40)).copy()
    x[:2, :, rng.random(40) < share] += rng.normal(size=2)[:, None, None]
    weights, *times = _resamples('both', 300, 2, 40, 0)
    np.testing.assert_allclose(_bootstrap_totals(x, 'both', 300), np.einsum('fsu,nu,ns->nf', x, np.concatenate(times), weights))

def test_few_users_by_enumeration():
    d = np.array([[.5, -1., 2.]])
    means = np.sort([np.mean(r) for r in itertools.product(d[0], repeat=3)])                        # all 27 resamples
    x = _bootstrap_totals(d[None], 'users', 30_000)[:, 0] / 3
    for m in np.unique(means.round(9)): assert np.isclose(x, m).mean() == pytest.approx(np.isclose(means, m).mean(), abs=.012)

def test_interval_agrees_with_the_interval_of_evaluate():
    v = (np.random.default_rng(0).random(500) < .1).astype(float)
    assert bootstrap_difference(v[None], n=8000) == pytest.approx(bootstrap_interval(v, n=8000), abs=.003)

def test_coverage_over_users():
    rng, inside = np.random.default_rng(4), 0
    for seed in range(200):
        lo, hi = bootstrap_difference(((rng.random(200) < .3) * 1. - (rng.random(200) < .2))[None], n=500, seed=seed); inside += lo <= .1 <= hi
    assert .9 <= inside / 200 <= .99

def test_coverage_over_users_and_seeds_is_not_below():
    rng, inside = np.random.default_rng(4), 0
    for seed in range(200):
        d = .1 * rng.standard_normal((8, 1)) + rng.standard_normal((8, 100)); lo, hi = bootstrap_difference(d, n=400, seed=seed); inside += lo <= 0 <= hi
    assert inside / 200 >= .91

def test_blocks_do_not_change_the_draws():
    x = np.random.default_rng(0).normal(size=(2, 3, 70_000)); a = _bootstrap_totals(x, 'both', 7)
    one = _bootstrap_totals(x[:1], 'both', 7); np.testing.assert_allclose(a[:, 0], one[:, 0])          # the same people for every quantity
    x = x[..., :900]; np.testing.assert_allclose(_bootstrap_totals(x, 'users', 600)[:300], _bootstrap_totals(x, 'users', 300))

@quick
@given(st.integers(0, 99))
def test_bootstrap_is_antisymmetric(seed):
    d = np.random.default_rng(seed).normal(size=(3, 20)); lo, hi = bootstrap_difference(d, n=200)
    assert bootstrap_difference(-d, n=200) == pytest.approx((-hi, -lo))

def test_bootstrap_refuses():
    with pytest.raises(GenrecError, match='one seed'): bootstrap_difference([[1., 2.]], over='both')
    with pytest.raises(GenrecError, match="'user'.*users, seeds, both"): bootstrap_difference([[1., 2.]], over='user')


# ---- power --------------------------------------------------------------------------------------------------------

def test_detectable_effects_are_detected_as_often_as_asked():
    rng = np.random.default_rng(0); S, U = 6, 80; parts = VarianceComponents(.3, .02, 1., U, S); gain = minimal_detectable_effect(parts)
    x = gain + .3**.5 * rng.standard_normal((700, 1, U)) + .02**.5 * rng.standard_normal((700, S, 1)) + rng.standard_normal((700, S, U))
    assert np.mean([crossed_test(d).p < .05 for d in x]) == pytest.approx(.8, abs=.05)

def test_detectable_by_the_noncentral_t():
    for df in (4, 9, 100):
        effect = MeanDifference(0, 1 / np.sqrt(df + 1), df).detectable(); t = stats.t.ppf(.975, df); ncp = effect * np.sqrt(df + 1)
        assert stats.nct.sf(t, df, ncp) + stats.nct.cdf(-t, df, ncp) == pytest.approx(.8, abs=.015)

def test_planning():
    c = variance_components(np.random.default_rng(0).normal(size=(4, 50)) + .4 * np.random.default_rng(1).normal(size=(4, 1)))
    grid = minimal_detectable_effect(c, np.array([50, 500, 5000])[:, None], np.arange(4, 20)); assert grid.shape == (3, 16) and (np.diff(grid, axis=0) < 0).all() and (np.diff(grid, axis=1) < 0).all()
    assert minimal_detectable_effect(c, 10**9, 8) == pytest.approx(MeanDifference(0, np.sqrt(c.seeds / 8), 7).detectable(), rel=.01)           # users cannot help any more
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
    rng = np.random.default_rng(0); t = [rank_methods(rng.random((15, 5)), list('abcde')) for _ in range(80)]
    assert np.mean([x.p < .05 for x in t]) <= .12 and np.mean([x.ranks[-1] - x.ranks[0] > x.cd for x in t]) <= .12

def test_ranks_refuse():
    for x, names, words in (([[1., 2.]], 'ab', '1 blocks'), ([[1.], [2.]], 'a', '1 methods'), (np.ones((3, 2)), 'abc', '3 names'), ([[1., math.nan], [1., 2.]], 'ab', '1 NaN')):
        with pytest.raises(GenrecError, match=words): rank_methods(x, list(names))
    t = rank_methods(np.ones((4, 3)), list('abc')); assert t.p == 1 and t.groups == [(0, 2)] and t.friedman == 0
