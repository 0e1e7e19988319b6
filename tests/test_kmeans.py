"Residual k-means against brute force, exact optima and bad input."
import itertools
import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from numpy.testing import assert_allclose, assert_array_equal
from scipy.optimize import linear_sum_assignment

from genrec_nb import kmeans as kmeans_module
from genrec_nb.core import GenrecError
from genrec_nb.embed import check_vectors
from genrec_nb.kmeans import (_CHUNK as CHUNK, ResidualQuantizer, _equal_shares, _prices, _swaps, _unit_scale, balanced_kmeans, codebook_report, generator, kmeans, _level_sizes,
                              load_quantizer, nearest, quantizer_report, _residual_codes, residual_kmeans, sinkhorn, sinkhorn_codes, _sq_distances, unexplained_share)


def cloud(n, d, seed=0): return torch.randn(n, d, generator=generator(seed))

def exact_balanced_cost(d):
    "Least total cost with floor(N/K)..ceil(N/K) vectors per code, by the Hungarian method: floor places must be filled, ceil places may"
    n, k = d.shape
    d = d.double().numpy()
    must, may = np.repeat(d, n//k, axis=1), d
    penalty = d.max()*n + 1
    r, c = linear_sum_assignment(np.c_[must - penalty, may])
    assert (c < k*(n//k)).sum() == k*(n//k)
    return np.c_[must, may][r, c].sum()


# ---- distances, codes ----

def test_distances_and_nearest_against_loops():
    x, e = cloud(40, 7), cloud(9, 7, 1)
    slow = np.array([[float(((a - b)**2).sum()) for b in e] for a in x])
    assert_allclose(_sq_distances(x, e), slow, rtol=1e-4, atol=1e-4)
    assert_array_equal(nearest(x, e), slow.argmin(1))

def test_residual_codes_against_loop():
    x, books = cloud(30, 5), [cloud(6, 5, s) for s in (1, 2, 3)]
    codes, rest = _residual_codes(x, books)
    for i in range(30):
        r = x[i].clone()
        for l, e in enumerate(books):
            c = int(((e - r)**2).sum(1).argmin())
            assert c == codes[i, l]
            r = r - e[c]
        assert_allclose(rest[i], r, atol=1e-6)

def assert_nearest_level_by_level(x, books, codes, tie=1e-5):
    "In double precision: the chosen vector is nearest at each level, or as near as the nearest up to rounding"
    r = np.asarray(x, np.float64)
    for e, c in zip(books, np.asarray(codes).T):
        e = e.double().numpy()
        d = ((r[:, None] - e)**2).sum(2)
        near = np.sort(d, 1)
        clear = np.ones(len(r), bool) if d.shape[1] == 1 else near[:, 1] - near[:, 0] > tie
        assert (d[np.arange(len(r)), c] <= near[:, 0] + tie).all()
        assert_array_equal(c[clear], d.argmin(1)[clear])
        r = r - e[c]

@settings(max_examples=30, deadline=None)
@given(n=st.integers(1, 70), d=st.integers(1, 9), sizes=st.lists(st.integers(1, 12), min_size=1, max_size=4), chunk=st.integers(1, 80), seed=st.integers(0, 10**6),
       form=st.sampled_from(['float16', 'float32', 'float64']))
def test_codes_are_the_nearest_level_by_level(n, d, sizes, chunk, seed, form):
    x = cloud(n, d, seed).to(getattr(torch, form))
    books = [cloud(k, d, seed + l + 1)/(l + 1) for l, k in enumerate(sizes)]
    before = x.clone()
    codes = ResidualQuantizer(books).encode(x)
    assert torch.equal(x, before)
    assert_nearest_level_by_level(x.float(), books, codes)

def test_codes_beyond_one_chunk():
    x = torch.nn.functional.normalize(cloud(2*CHUNK + 37, 96))
    q = residual_kmeans(x, 3, 64, n_iter=2)
    assert (_residual_codes(x, q.codebooks)[0].numpy() == q.fit_codes).all(1).mean() > .999
    assert_nearest_level_by_level(x[-300:], q.codebooks, q.fit_codes[-300:])

def test_no_levels_and_exact_ties():
    assert _residual_codes(cloud(5, 2), [])[0].shape == (5, 0)
    e = torch.tensor([[1., 0], [1, 0], [0, 1]])
    assert_array_equal(nearest(torch.tensor([[1., 0], [.5, .5]]), e), [0, 0])        # the lowest number wins

def test_codes_do_not_depend_on_the_other_vectors():
    x = cloud(3*CHUNK + 11, 12)
    q = residual_kmeans(x, 3, 16, n_iter=2)
    codes, p = q.encode(x), torch.randperm(len(x), generator=generator(7))
    for part in (codes[p] != q.encode(x[p]), codes[5:300] != q.encode(x[5:300])):    # other chunks round otherwise: ties only
        assert part.any(1).mean() < 1e-3


# ---- k-means ----

def test_kmeans_uses_every_code_and_is_deterministic():
    x = cloud(300, 3)
    e, a = kmeans(x, 40, seed=5)
    assert len(a.unique()) == 40
    state, numpy_state = torch.random.get_rng_state(), np.random.get_state()[1].copy()
    e2, a2 = kmeans(x, 40, seed=5)
    assert torch.equal(e, e2) and torch.equal(a, a2)
    assert torch.equal(state, torch.random.get_rng_state()) and (numpy_state == np.random.get_state()[1]).all()

def test_kmeans_on_equal_points_on_a_sample_and_in_batches(monkeypatch):
    e, a = kmeans(torch.ones(10, 2), 3)
    assert torch.isfinite(e).all() and a.max() < 3
    x = torch.cat([cloud(500, 2), cloud(500, 2, 1) + 50])
    for name, limit in (('_SAMPLE', 100), ('_BATCHED', 500)):
        monkeypatch.setattr(kmeans_module, name, limit)
        e, a = kmeans(x, 2)
        assert len(a) == 1000 and sorted(torch.bincount(a).tolist()) == [500, 500]


# ---- balance ----

@settings(max_examples=40, deadline=None)
@given(n=st.integers(1, 60), k=st.integers(1, 12), seed=st.integers(0, 10**6), ties=st.booleans())
def test_balanced_sizes_within_bounds(n, k, seed, ties):
    d = torch.rand(n, k, generator=generator(seed))
    if ties: d = (3*d).round()
    a = _equal_shares(d)
    size = torch.bincount(a, minlength=k)
    assert size.sum() == n and n//k <= size.min() and size.max() <= -(-n//k)
    b = _swaps(d, a)
    assert_array_equal(torch.bincount(b, minlength=k), size)
    assert d.gather(1, b[:, None]).sum() <= d.gather(1, a[:, None]).sum() + 1e-5

@settings(max_examples=12, deadline=None)
@given(n=st.integers(2, 80), k=st.integers(1, 12), d=st.integers(1, 4), copies=st.integers(1, 6), warm=st.booleans(), seed=st.integers(0, 10**6))
def test_balanced_kmeans_sizes_with_equal_points_and_given_centers(n, k, d, copies, warm, seed):
    "As a codebook is grouped again and again: from the last centers, with duplicates among its vectors"
    x, k = cloud(-(-n//copies), d, seed).repeat(copies, 1)[:n], min(k, n)
    centers, a = balanced_kmeans(x, k, seed, **(dict(centers=cloud(k, d, 1), n_iter=3) if warm else {}))
    assert set(torch.bincount(a, minlength=k).tolist()) <= {n//k, -(-n//k)} and torch.isfinite(centers).all()
    for c in range(k): assert_allclose(centers[c], x[a == c].mean(0), atol=1e-5)

@pytest.mark.parametrize('n,k', [(60, 6), (200, 16), (103, 10), (256, 10)])
def test_balanced_assignment_is_near_the_exact_optimum(n, k):
    x = cloud(n, 5)
    d = _sq_distances(x, kmeans(x, k)[0])
    c = _unit_scale(d)
    a = _swaps(d, _equal_shares(c - _prices(c, .02, 20)))
    best = exact_balanced_cost(d)
    assert best*(1 - 1e-5) <= float(d.gather(1, a[:, None]).sum()) <= 1.04*best


# ---- Sinkhorn ----

@pytest.mark.parametrize('n,k', [(12, 4), (5, 9), (30, 7)])
def test_sinkhorn_marginals(n, k):
    q = sinkhorn(torch.rand(n, k, generator=generator(n), dtype=torch.float64), eps=.1, n_iter=2000)
    assert_allclose(q.sum(1), 1, atol=1e-9)
    assert_allclose(q.sum(0), n/k, atol=1e-6)

@settings(max_examples=12, deadline=None)
@given(n=st.integers(1, 25), k=st.integers(1, 10), seed=st.integers(0, 10**6), ties=st.booleans(), scale=st.sampled_from([1e-6, 1, 1e3]))
def test_sinkhorn_marginals_of_any_shape_and_scale(n, k, seed, ties, scale):
    "On a cost of range 1 and temperature .2 a round shrinks the error by tanh(2.5)**2 at least, so 800 rounds leave nothing"
    d = torch.rand(n, k, generator=generator(seed), dtype=torch.float64)
    if ties: d = (2*d).round()/2
    q = sinkhorn(d*scale, eps=.2*scale, n_iter=800)
    assert (q >= 0).all()
    assert_allclose(q.sum(1), 1, rtol=1e-9)
    assert_allclose(q.sum(0), n/k, rtol=1e-6)

def test_sinkhorn_at_the_published_temperature_is_finite_and_improves():
    d = _unit_scale(_sq_distances(cloud(256, 8), cloud(64, 8, 1))).double()
    def error(n): q = sinkhorn(d, .003, n); assert torch.isfinite(q).all(); assert_allclose(q.sum(1), 1); return float((q.sum(0) - 4).abs().mean())
    assert error(200) < error(50) < error(1)

def test_sinkhorn_low_temperature_solves_the_transport_problem():
    d = torch.rand(6, 6, generator=generator(3), dtype=torch.float64)
    best = min(sum(float(d[i, p]) for i, p in enumerate(perm)) for perm in itertools.permutations(range(6)))
    assert_allclose(float((sinkhorn(d, .004, 5000)*d).sum()), best, rtol=2e-3)

def test_sinkhorn_batches_equal_single_runs():
    d = torch.rand(3, 4, 5, generator=generator(0))
    assert_allclose(sinkhorn(d, .05), torch.stack([sinkhorn(p, .05) for p in d]))
    assert_array_equal(sinkhorn_codes(d), np.stack([sinkhorn_codes(p) for p in d]))


# ---- residual k-means, report ----

def test_residual_kmeans_levels_only_help():
    x = cloud(400, 8)
    q = residual_kmeans(x, 3, [8, 16, 4])
    r = quantizer_report(q, x)
    assert q.sizes == [8, 16, 4] and r.used == [8, 16, 4]
    assert 1 > r.unexplained[0] > r.unexplained[1] > r.unexplained[2] > 0
    assert_array_equal(q.encode(x), q.fit_codes)
    d = q.last_distances(x)
    assert_array_equal(d.argmin(1), q.fit_codes[:, -1])
    assert_allclose(d.min(1), ((x.numpy() - q.decode(q.fit_codes))**2).sum(1), rtol=1e-3, atol=1e-4)

def test_levels_are_kmeans_of_the_residuals():
    x = r = cloud(900, 5)
    q = residual_kmeans(x, 3, 8, seed=4)
    for l in range(3):
        e, c = kmeans(r, 8, 4 + l)
        assert_allclose(q.codebooks[l], e, atol=1e-5)
        assert_array_equal(q.fit_codes[:, l], c)
        r = r - e[c]

@pytest.mark.parametrize('balanced', [False, True])
def test_levels_that_use_the_leading_dimensions_alone(balanced):
    x = cloud(120, 6)
    q, other = (residual_kmeans(v, 2, 4, balanced, widths=[3, None]) for v in (x, torch.cat([x[:, :3], -x[:, 3:]], 1)))
    assert (q.codebooks[0][:, 3:] == 0).all() and (q.codebooks[1][:, 3:] != 0).any()
    assert_array_equal(q.fit_codes[:, 0], other.fit_codes[:, 0])

@pytest.mark.filterwarnings('error')
@pytest.mark.parametrize('balanced', [False, True])
@pytest.mark.parametrize('form', ['float16', 'float32', 'float64'])
def test_vectors_mapped_from_a_file(tmp_path, form, balanced):
    "Read only, of any float type: not written, not copied if single precision, same result as the array in memory"
    x = cloud(CHUNK + 300, 6).numpy().astype(form)
    np.save(tmp_path/'x.npy', x)
    m = np.load(tmp_path/'x.npy', mmap_mode='r')
    assert (check_vectors(m).data_ptr() == m.ctypes.data) == (form == 'float32')
    q, again = (residual_kmeans(v, 2, 8, balanced, n_iter=3) for v in (m, x.astype(np.float32)))
    assert_array_equal(q.fit_codes, again.fit_codes)
    assert_array_equal(q.encode(m), again.encode(x))
    assert_allclose(q.last_distances(m), again.last_distances(x), rtol=1e-6)
    assert_allclose(quantizer_report(q, m).unexplained, quantizer_report(again, x).unexplained, rtol=1e-5)
    assert_array_equal(np.load(tmp_path/'x.npy'), x)

def test_balanced_residual_kmeans_decodes_its_own_codes():
    x = cloud(200, 6)
    q = residual_kmeans(x, 2, 8, balanced=True)
    assert all(set(np.bincount(c)) == {25} for c in q.fit_codes.T)
    assert quantizer_report(q, x, q.fit_codes).unexplained[1] < .8

def test_report_on_hand_values():
    r = codebook_report([[0, 0], [0, 1], [0, 1], [1, 0]], [2, 4])
    assert r.used == [2, 2] and r.collision_rate == .25
    assert_allclose(r.perplexity, [np.exp(-(.75*np.log(.75) + .25*np.log(.25))), 2])
    assert r.to_dict()['largest'] == [3, 2] and 'collision rate 25.00%' in repr(r)
    x = cloud(50, 3)
    assert unexplained_share(x, x) == 0 and unexplained_share(x, x.mean(0).expand(50, 3)) == pytest.approx(1)

@pytest.mark.parametrize('balanced', [False, True])
def test_save_and_load(tmp_path, balanced):
    x = cloud(100, 6)
    q = residual_kmeans(x, 2, 8, balanced)
    q.save(tmp_path)
    again = load_quantizer(tmp_path)
    assert type(again) is type(q) and again.sizes == q.sizes
    for a, b in ((again.encode(x), q.encode(x)), (again.fit_codes, q.fit_codes), (again.decode(q.fit_codes), q.decode(q.fit_codes))): assert_array_equal(a, b)
    assert sorted(f.name for f in tmp_path.iterdir()) == ['quantizer.json', 'quantizer.safetensors']


# ---- bad input ----

@pytest.mark.parametrize('bad,k,message', [
    (np.array([[1, 2], [np.nan, 1], [3, 4.]]), 2, 'item 1 holds NaN'),
    (np.array([[1, 2], [1, 1], [3, np.inf]]), 2, 'item 2 holds NaN or infinite'),
    (np.zeros((3, 2)), 4, '3 vectors are too few, expected at least 4'),
    (np.zeros(3), 1, 'expected .*items, dimensions'),
    (np.zeros((0, 3)), 1, 'expected .*items, dimensions'),
    (np.array([['a', 'b'], ['c', 'd']]), 1, 'not a matrix of numbers'),
    ([[1., 2], [3]], 1, 'not a matrix of numbers'),
    (np.ones((3, 2), complex), 1, 'complex')])
def test_bad_vectors(bad, k, message):
    for f in (lambda: kmeans(bad, k), lambda: balanced_kmeans(bad, k), lambda: residual_kmeans(bad, 2, k)):
        with pytest.raises(GenrecError, match=message) as e: f()
        assert '\n' not in str(e.value)

def test_first_bad_item_and_number_of_bad_items_beyond_the_first_chunk():
    x = cloud(2*CHUNK + 50, 3)
    x[CHUNK + 5, 1], x[2*CHUNK + 7, 0], x[2*CHUNK + 8] = torch.nan, -torch.inf, torch.nan
    for f in (check_vectors, residual_kmeans(cloud(50, 3), 1, 4).encode):
        with pytest.raises(GenrecError, match=rf'item {CHUNK + 5} holds NaN.*\(3 of {2*CHUNK + 50} items\)'): f(x)

def test_large_finite_values_pass_and_what_overflows_single_precision_does_not():
    assert len(check_vectors(torch.full((2, 4), 3e38))) == 2         # the row's sum is infinite, its elements are not
    with pytest.raises(GenrecError, match='item 0 holds NaN or infinite'): check_vectors(np.full((2, 4), 1e300))

def test_whole_numbers_and_lists_become_floats():
    assert check_vectors([[1, 2], [3, 4]]).dtype == check_vectors(np.eye(3, dtype=np.int8)).dtype == torch.float32

@pytest.mark.parametrize('size,levels', [([8], 2), (0, 1), ([4, -1], 2), ('a', 1), (2.5, 1), ([], 0)])
def test_sizes_that_do_not_fit(size, levels):
    with pytest.raises(GenrecError, match=f'expected one positive number or one for each of {levels} levels'): _level_sizes(size, levels)

@pytest.mark.parametrize('text,message', [('{"kind": "oracle"}', "kind is 'oracle', expected one of residual_kmeans"), ('[1]', 'expected a JSON object'),
                                          ('{"kind": "residual_kmeans",}', 'line 1, column'), ('{"kind": "residual_kmeans"}', 'do not belong together')])
def test_bad_description(tmp_path, text, message):
    residual_kmeans(cloud(20, 6), 1, 4).save(tmp_path)
    (tmp_path/'quantizer.json').write_text(text)
    with pytest.raises(GenrecError, match=message) as e: load_quantizer(tmp_path)
    assert '\n' not in str(e.value) and str(tmp_path) in str(e.value)

def test_missing_and_broken_files(tmp_path):
    with pytest.raises(GenrecError, match='quantizer.json'): load_quantizer(tmp_path)
    residual_kmeans(cloud(20, 6), 1, 4).save(tmp_path)
    (tmp_path/'quantizer.safetensors').write_bytes(b'not a tensor')
    with pytest.raises(GenrecError, match='safetensors'): load_quantizer(tmp_path)
