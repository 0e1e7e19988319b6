"Measures of codes against loops and identities"
import matplotlib
matplotlib.use('Agg')
import matplotlib.pyplot as plt
import numpy as np
import pytest
from collections import Counter, defaultdict
from hypothesis import given, settings, strategies as st
from numpy.testing import assert_allclose
from genrec_nb.diagnostics import analyze_codes, information_per_level, level_purity, _on_sphere, plot_codebook_sphere, plot_codebook_use, plot_first_codes, plot_first_tokens, _prefix_groups
from genrec_nb.core import GenrecError
from genrec_nb.kmeans import codebook_report
from genrec_nb.semantic_ids import Identifiers

def random_codes(n, levels, seed): return np.random.default_rng(seed).integers(0, 3, (n, levels))

@settings(max_examples=30, deadline=None)
@given(st.integers(1, 30), st.integers(1, 4), st.integers(0, 99))
def test_purity_against_a_loop(n, levels, seed):
    codes, labels = random_codes(n, levels, seed), np.random.default_rng(seed).integers(0, 4, n)
    for k, got in enumerate(level_purity(codes, labels)['purity'], 1):
        groups = defaultdict(list)
        for c, l in zip(codes, labels): groups[tuple(c[:k])].append(l)
        assert got == pytest.approx(sum(Counter(g).most_common(1)[0][1] for g in groups.values())/n)

def test_purity_never_falls_with_depth_and_shuffling_lowers_what_is_real():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 5, 500)
    codes = np.stack([labels, rng.integers(0, 2, 500)], 1)
    p = level_purity(codes, labels)
    assert p['purity'] == [1, 1] and p['shuffled'][0] < .5 and p['shuffled'][1] >= p['shuffled'][0]

@settings(max_examples=30, deadline=None)
@given(st.integers(2, 25), st.integers(1, 4), st.integers(0, 99))
def test_information_of_the_levels_sums_to_the_entropy_of_the_paths(n, levels, seed):
    rng = np.random.default_rng(seed)
    codes, counts = random_codes(n, levels, seed), rng.integers(0, 6, n)
    counts[0] += 1
    p = defaultdict(float)
    for c, m in zip(codes, counts/counts.sum()): p[tuple(c)] += m
    entropy = -sum(v*np.log(v) for v in p.values() if v)
    got = information_per_level(codes, counts)
    assert_allclose(got.sum(), entropy, atol=1e-6)
    assert (got > -1e-9).all()

@settings(max_examples=20, deadline=None)
@given(st.integers(3, 25), st.integers(1, 3), st.integers(0, 99))
def test_gains_sum_to_what_was_explained(n, levels, seed):
    rng = np.random.default_rng(seed)
    codes, x = random_codes(n, levels, seed), rng.normal(size=(n, 5)).astype('f4')
    spread = lambda groups: sum(np.linalg.norm(x[g] - x[g].mean(0), axis=1).sum() for g in groups)/n
    mu = [spread([np.arange(n)])] + [spread([np.flatnonzero(g == k) for k in range(g.max() + 1)]) for g in _prefix_groups(codes)]
    gains = analyze_codes(codes, x=x).gains
    assert_allclose(gains, -np.diff(mu), atol=1e-5)
    assert_allclose(sum(gains), mu[0] - mu[-1], atol=1e-5)

def test_directions_have_length_one_and_ignore_where_the_book_lies():
    book = np.random.default_rng(0).normal(size=(30, 6)).astype('f4')
    p, q = _on_sphere(book), _on_sphere(book + 5)
    assert_allclose(np.linalg.norm(p, axis=1), 1, rtol=1e-6)
    assert_allclose(abs((p*q).sum(0)), (p*p).sum(0), rtol=1e-3)                    # up to the sign of each axis
    assert _on_sphere(book[:, :2]).shape == (30, 3)

def test_pictures_show_every_tokenizer():
    codes = {'a': random_codes(50, 2, 0), 'b': random_codes(50, 2, 1)}
    fig = plot_first_codes(codes, 3)
    assert [t.get_text() for t in fig.axes[0].get_legend().get_texts()] == ['a: 3 used', 'b: 3 used']
    book = np.random.default_rng(0).normal(size=(3, 4))
    fig = plot_codebook_sphere({k: (book, np.bincount(c[:, 0], minlength=3)) for k, c in codes.items()})
    assert [ax.get_title() for ax in fig.axes[:2]] == ['a', 'b']
    fig = plot_first_tokens({k: Identifiers.from_codes(c, policy='keep') for k, c in codes.items()})
    assert [t.get_text() for t in fig.axes[0].get_legend().get_texts()] == ['a', 'b']
    assert [ax.get_title().split(',')[0] for ax in plot_codebook_use(codebook_report(codes['a'], [4, 4])).axes] == ['level 1: 3 of 4 used', 'level 2: 3 of 4 used']
    plt.close('all')

def test_what_was_not_given_is_not_measured():
    a = analyze_codes(random_codes(20, 2, 0))
    assert a.overlap_any is a.unexplained is a.gains is a.information is a.purity is None and a.to_dict()['levels'] == 2

@pytest.mark.parametrize('name', ['x', 'cf', 'counts', 'labels'])
def test_wrong_lengths_are_refused(name):
    with pytest.raises(GenrecError, match=f'{name} has 3 rows for 20 items'): analyze_codes(random_codes(20, 2, 0), **{name: np.ones((3, 2)) if name in ('x', 'cf') else np.ones(3)})

def test_codes_without_levels_are_refused():
    with pytest.raises(GenrecError, match='expected \\[items, levels\\]'): _prefix_groups(np.zeros((4, 0)))


@pytest.mark.parametrize('bad, words', [
    (dict(codes=np.zeros(4, int)), 'expected \\[items, levels\\]'), (dict(codes=np.zeros((4, 2))), 'whole numbers'), (dict(codes=np.full((4, 2), -1)), 'whole numbers'),
    (dict(codes=np.zeros((4, 2), int), sizes=[3]), 'codes of 2 levels'), (dict(codes=np.full((4, 2), 5), sizes=[3, 9]), 'go up to'),
    (dict(codes=np.zeros((4, 2), int), labels=['a', None, 'b', 'c']), 'label of item 1 is None'), (dict(codes=np.zeros((4, 2), int), labels=[1., 2., np.nan, 3.]), 'label of item 2 is nan'),
    (dict(codes=np.zeros((4, 2), int), labels=[['a'], ['b'], ['a', 'b'], []]), 'label of item 0'), (dict(codes=np.zeros((4, 2), int), x_hat=np.ones((4, 2))), 'expected that of x, \\(\\)'),
    (dict(codes=np.zeros((4, 2), int), x=np.ones((4, 3)), x_hat=np.ones((4, 2))), 'expected that of x')])
def test_what_cannot_be_codes_or_labels_is_refused(bad, words):
    with pytest.raises(GenrecError, match=words): analyze_codes(**bad)
