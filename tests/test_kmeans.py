"Quantisers against brute force, exact optima, gradient facts and bad input."
import itertools
import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from numpy.testing import assert_allclose, assert_array_equal
from scipy.optimize import linear_sum_assignment

from genrec_nb import quantize
from genrec_nb.core import GenrecError
from genrec_nb.kmeans import CHUNK, as_vectors, assign_codes, balanced_assign, balanced_kmeans, centre_distances, check_vectors, codebook_report, generator, kmeans, nearest, quantizer_report, residual_codes, residual_kmeans, sinkhorn, sinkhorn_codes, sinkhorn_prices, sq_distances, swap_improve, unexplained_share
from genrec_nb.rqvae import QUANTIZERS, RQVAE, RQVAEConfig, fit_rqvae, load_quantizer, read_rqvae, revive_dead, train_rqvae


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


# ---- distances, k-means ----

def test_distances_and_nearest_against_loops():
    x, e = cloud(40, 7), cloud(9, 7, 1)
    slow = np.array([[float(((a - b)**2).sum()) for b in e] for a in x])
    assert_allclose(sq_distances(x, e), slow, rtol=1e-4, atol=1e-4)
    assert_array_equal(nearest(x, e, chunk=7), slow.argmin(1))

def test_residual_codes_against_loop():
    x, books = cloud(30, 5), [cloud(6, 5, s) for s in (1, 2, 3)]
    codes, rest = residual_codes(x, books)
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

@settings(max_examples=40, deadline=None)
@given(n=st.integers(1, 70), d=st.integers(1, 9), sizes=st.lists(st.integers(1, 12), min_size=1, max_size=4), chunk=st.integers(1, 80), seed=st.integers(0, 10**6),
       form=st.sampled_from(['float16', 'float32', 'float64']))
def test_fast_codes_are_the_readable_ones_and_exact(n, d, sizes, chunk, seed, form):
    x = cloud(n, d, seed).to(getattr(torch, form))
    books = [cloud(k, d, seed + l + 1)/(l + 1) for l, k in enumerate(sizes)]
    before = x.clone()
    fast = assign_codes(x, books, chunk)
    assert torch.equal(x, before)                                    # residuals are overwritten, the vectors are not
    assert_nearest_level_by_level(x.float(), books, fast)
    assert_nearest_level_by_level(x.float(), books, residual_codes(x.float(), books)[0])

def test_fast_codes_of_the_real_size():
    "Beyond one chunk, wide vectors, 256 codes: all but ties agree with the readable loop and with double precision"
    x = torch.nn.functional.normalize(cloud(2*CHUNK + 37, 96))
    q = residual_kmeans(x, 4, 256, n_iter=3)
    slow = residual_codes(x, q.codebooks)[0]
    assert (assign_codes(x, q.codebooks) == slow).all(1).double().mean() > .999
    assert_nearest_level_by_level(x[-300:], q.codebooks, q.fit_codes[-300:])

def test_no_levels_and_exact_ties():
    assert assign_codes(cloud(5, 2), []).shape == (5, 0) and residual_codes(cloud(5, 2), [])[0].shape == (5, 0)
    e = torch.tensor([[1., 0], [1, 0], [0, 1]])
    assert_array_equal(assign_codes(torch.tensor([[1., 0], [.5, .5]]), [e])[:, 0], [0, 0])   # the lowest number wins, as in `nearest`

def test_assignment_does_not_depend_on_neighbours_or_repetition():
    x = cloud(3*CHUNK + 11, 12)
    for q in (residual_kmeans(x, 3, 16, n_iter=2), RQVAE(RQVAEConfig(12, levels=3, size=16, d_code=6, hidden=[10])).eval()):
        codes, p = q.encode(x), torch.randperm(len(x), generator=generator(7))
        assert_array_equal(codes, q.encode(x))
        for part in (codes[p] != q.encode(x[p]), codes[5:300] != q.encode(x[5:300])):   # other chunks round otherwise: ties only
            assert part.any(1).mean() < 1e-3

def test_kmeans_never_worse_with_more_rounds_and_near_sklearn():
    from sklearn.cluster import KMeans
    x = torch.cat([cloud(60, 4, s) + 4*cloud(1, 4, 100 + s) for s in range(8)])
    def cost(n): e, a = kmeans(x, 12, 0, n); return float((x - e[a]).square().sum())
    costs = [cost(n) for n in (1, 2, 4, 8, 25)]
    assert all(b <= a*(1 + 1e-5) for a, b in zip(costs, costs[1:]))
    assert costs[-1] <= 1.15*KMeans(12, n_init=10, random_state=0).fit(x.numpy()).inertia_

def test_kmeans_uses_every_code_and_is_deterministic():
    x = cloud(300, 3)
    e, a = kmeans(x, 40, seed=5)
    assert len(a.unique()) == 40
    state = torch.random.get_rng_state()
    e2, a2 = kmeans(x, 40, seed=5)
    assert torch.equal(e, e2) and torch.equal(a, a2)
    assert torch.equal(state, torch.random.get_rng_state())          # the global generator is left alone

def test_kmeans_on_equal_points_and_on_a_sample():
    e, a = kmeans(torch.ones(10, 2), 3)
    assert torch.isfinite(e).all() and a.max() < 3
    x = torch.cat([cloud(500, 2), cloud(500, 2, 1) + 50])
    e, a = kmeans(x, 2, sample=100)
    assert len(a) == 1000 and sorted(torch.bincount(a).tolist()) == [500, 500]


# ---- balance ----

@settings(max_examples=60, deadline=None)
@given(n=st.integers(1, 60), k=st.integers(1, 12), seed=st.integers(0, 10**6), ties=st.booleans())
def test_balanced_sizes_within_bounds(n, k, seed, ties):
    d = torch.rand(n, k, generator=generator(seed))
    if ties: d = (3*d).round()
    a = balanced_assign(d)
    size = torch.bincount(a, minlength=k)
    assert size.sum() == n and n//k <= size.min() and size.max() <= -(-n//k)
    b = swap_improve(d, a)
    assert_array_equal(torch.bincount(b, minlength=k), size)
    assert d.gather(1, b[:, None]).sum() <= d.gather(1, a[:, None]).sum() + 1e-5

@settings(max_examples=15, deadline=None)
@given(n=st.integers(6, 60), k=st.integers(2, 6), seed=st.integers(0, 10**6))
def test_balanced_kmeans_sizes(n, k, seed):
    _, a = balanced_kmeans(cloud(n, 3, seed), k, seed)
    assert set(torch.bincount(a, minlength=k).tolist()) <= {n//k, -(-n//k)}

@settings(max_examples=25, deadline=None)
@given(n=st.integers(2, 80), k=st.integers(1, 12), d=st.integers(1, 4), copies=st.integers(1, 6), warm=st.booleans(), seed=st.integers(0, 10**6))
def test_balanced_kmeans_sizes_with_equal_points_and_given_centres(n, k, d, copies, warm, seed):
    "As a codebook is grouped again and again: from the last centres, with duplicates among its vectors"
    x, k = cloud(-(-n//copies), d, seed).repeat(copies, 1)[:n], min(k, n)
    centres, a = balanced_kmeans(x, k, seed, **(dict(centers=cloud(k, d, 1), n_iter=3) if warm else {}))
    size = torch.bincount(a, minlength=k)
    assert set(size.tolist()) <= {n//k, -(-n//k)} and torch.isfinite(centres).all()
    for c in range(k): assert_allclose(centres[c], x[a == c].mean(0), atol=1e-5)

@pytest.mark.parametrize('n,k', [(60, 6), (200, 16), (103, 10), (256, 10)])
def test_balanced_assignment_is_near_the_exact_optimum(n, k):
    x = cloud(n, 5)
    d = sq_distances(x, kmeans(x, k)[0])
    c = centre_distances(d)
    a = swap_improve(d, balanced_assign(c - sinkhorn_prices(c, .02, 20)))
    best = exact_balanced_cost(d)
    assert best*(1 - 1e-5) <= float(d.gather(1, a[:, None]).sum()) <= 1.04*best


# ---- Sinkhorn ----

@pytest.mark.parametrize('n,k', [(12, 4), (5, 9), (30, 7)])
def test_sinkhorn_marginals(n, k):
    q = sinkhorn(torch.rand(n, k, generator=generator(n), dtype=torch.float64), eps=.1, n_iter=2000)
    assert_allclose(q.sum(1), 1, atol=1e-9)
    assert_allclose(q.sum(0), n/k, atol=1e-6)

@settings(max_examples=40, deadline=None)
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
    d = centre_distances(sq_distances(cloud(256, 8), cloud(64, 8, 1))).double()
    def error(n): q = sinkhorn(d, .003, n); assert torch.isfinite(q).all(); assert_allclose(q.sum(1), 1); return float((q.sum(0) - 4).abs().mean())
    assert error(200) < error(50) < error(1)

def test_sinkhorn_low_temperature_solves_the_transport_problem():
    d = torch.rand(6, 6, generator=generator(3), dtype=torch.float64)
    best = min(sum(float(d[i, p]) for i, p in enumerate(perm)) for perm in itertools.permutations(range(6)))
    assert_allclose(float((sinkhorn(d, .004, 20000)*d).sum()), best, rtol=2e-3)

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

def test_levels_learn_on_a_sample_and_code_everything(monkeypatch):
    "More vectors than the sample: same codebooks as level-by-level k-means on residuals of all, which draws the same rows"
    monkeypatch.setattr(quantize, 'SAMPLE', 200)
    x = cloud(900, 5)
    q, r = residual_kmeans(x, 3, 8, seed=4), x
    for l in range(3):
        e, c = kmeans(r, 8, 4 + l, sample=200)
        assert_allclose(q.codebooks[l], e, atol=1e-5)
        assert_array_equal(q.fit_codes[:, l], c)
        r = r - e[c]
    assert len(q.fit_codes) == 900

@pytest.mark.parametrize('form', ['float16', 'float32', 'float64'])
@pytest.mark.filterwarnings('error')
def test_vectors_mapped_from_a_file(tmp_path, form):
    "Read only, of any float type: not written, not copied where it can be helped, same result as the array in memory"
    x = cloud(CHUNK + 300, 6).numpy().astype(form)
    np.save(tmp_path/'x.npy', x)
    m = np.load(tmp_path/'x.npy', mmap_mode='r')
    t = as_vectors(m)
    assert t.data_ptr() == m.ctypes.data and t.dtype == getattr(torch, form)
    assert (check_vectors(m).data_ptr() == m.ctypes.data) == (form == 'float32')
    for balanced in (False, True):
        q, again = (residual_kmeans(v, 2, 8, balanced, n_iter=3) for v in (m, x.astype(np.float32)))
        assert all(torch.equal(a, b) for a, b in zip(q.codebooks, again.codebooks))
        assert_array_equal(q.fit_codes, again.fit_codes)
        assert_array_equal(q.encode(m), again.encode(x))
        assert_allclose(q.last_distances(m), again.last_distances(x), rtol=1e-6)
        assert_allclose(quantizer_report(q, m).unexplained, quantizer_report(again, x).unexplained, rtol=1e-5)
    assert_array_equal(np.load(tmp_path/'x.npy'), x)

def test_report_in_chunks_is_the_report_of_the_whole():
    x = cloud(5*CHUNK//4*4 + 9, 3) + 5
    q = residual_kmeans(x, 2, 8, n_iter=3)
    whole = [unexplained_share(x, q.decode(q.fit_codes[:, :l])) for l in (1, 2)]
    assert_allclose(quantizer_report(q, x).unexplained, whole, rtol=1e-6)
    assert_allclose(quantizer_report(q, x, q.fit_codes.tolist()).unexplained, whole, rtol=1e-6)

def test_balanced_residual_kmeans_decodes_its_own_codes():
    x = cloud(200, 6)
    q = residual_kmeans(x, 2, 8, balanced=True)
    assert all(set(np.bincount(c)) == {25} for c in q.fit_codes.T)
    assert quantizer_report(q, x, q.fit_codes).unexplained[1] < .8

def test_report_on_hand_values():
    r = codebook_report([[0, 0], [0, 1], [0, 1], [1, 0]], [2, 4])
    assert r.used == [2, 2] and r.collision_rate == .25
    assert_allclose(r.entropy, [-(.75*np.log(.75) + .25*np.log(.25)), np.log(2)])
    assert_allclose(r.perplexity[1], 2)
    assert r.to_dict()['largest'] == [3, 2] and 'collision rate 25.00%' in repr(r)


# ---- RQ-VAE ----

def test_loss_terms_against_the_formula():
    x = cloud(16, 6)
    for variant in ('code', 'paper'):
        m = RQVAE(RQVAEConfig(6, levels=2, size=4, d_code=3, hidden=[5], variant=variant, mu=.25))
        out = m(x)
        z = m.encoder(x)
        e1 = m.codebooks[0][out.codes[:, 0]]; r2 = z - e1; e2 = m.codebooks[1][out.codes[:, 1]]
        a, b = ((z - e1)**2), ((r2 - e2)**2)
        want = 1.25*(a.mean() + b.mean())/2 if variant == 'code' else 1.25*(a.sum(1).mean() + b.sum(1).mean())
        assert_allclose(out.quant.detach(), want.detach(), rtol=1e-5)
        rec = (m.decoder(e1 + e2) - x)**2
        assert_allclose((m.loss(out, None) - out.quant).detach(), (rec.mean() if variant == 'code' else rec.sum(1).mean()).detach(), rtol=1e-4)

@pytest.mark.parametrize('variant,reaches', [('code', False), ('paper', True)])
def test_commitment_of_deeper_levels_reaches_the_encoder_only_in_the_paper_variant(variant, reaches):
    from genrec_nb.rqvae import quantize
    z = cloud(8, 3).requires_grad_()
    books = [cloud(5, 3, s).requires_grad_() for s in (1, 2)]
    def grad(n): return torch.autograd.grad(quantize(z, books[:n], lambda r, l: nearest(r, books[l]), variant=variant)[2], z)[0]
    one, two = grad(1), grad(2)
    if variant == 'code': two = 2*two                                # undo the mean over levels
    assert (not torch.allclose(one, two)) == reaches

def test_reconstruction_sends_no_gradient_to_codebooks():
    m = RQVAE(RQVAEConfig(6, levels=2, size=4, d_code=3, hidden=[5]))
    out = m(cloud(16, 6))
    g = torch.autograd.grad((out.s_hat - out.s).square().mean(), list(m.codebooks) + list(m.encoder.parameters()), allow_unused=True)
    assert g[0] is None and g[1] is None and all(p is not None for p in g[2:])

def test_training_learns_is_deterministic_and_leaves_global_state_alone():
    x = torch.cat([cloud(40, 12, s)*.1 + cloud(1, 12, 50 + s) for s in range(8)])
    cfg = RQVAEConfig(12, levels=2, size=8, d_code=6, hidden=[16], steps=300, batch=64)
    state = torch.random.get_rng_state()
    a, b, c = train_rqvae(x, cfg, 1), train_rqvae(x, cfg, 1), train_rqvae(x, cfg, 2)
    assert torch.equal(state, torch.random.get_rng_state())
    assert_array_equal(a.encode(x), b.encode(x))
    assert a.history == b.history and a.history != c.history
    assert quantizer_report(a, x).unexplained[-1] < .2

def test_dead_codes_are_revived_and_reported():
    x = cloud(64, 6)
    m = RQVAE(RQVAEConfig(6, levels=2, size=4, d_code=3, hidden=[5])).eval()
    with torch.no_grad(): m.codebooks[0][3] = 1e3
    codes = torch.as_tensor(m.encode(x))
    assert 3 not in codes[:, 0]
    assert revive_dead(m, x, [codes], generator(0)) >= 1
    assert m.codebooks[0][3].abs().max() < 100
    assert (m.latent(x) == m.codebooks[0][3]).all(1).any()           # it now sits on some item's latent vector

    class Far(RQVAE):                                                # throws one code away in every step
        def loss(self, out, index):
            with torch.no_grad(): self.codebooks[0][0] = 1e3
            return super().loss(out, index)
    f = fit_rqvae(Far(RQVAEConfig(6, levels=1, size=4, d_code=3, hidden=[5], steps=200, batch=32)), x)
    assert f.revived == sum(h['revived'] for h in f.history) > 0
    assert repr(f) == f'Far(6 → 3 dimensions, 4 codes, trained for 200 steps, {f.revived} dead codes revived)'
    assert repr(m).endswith('codes, not trained)') and m.revived == 0

def test_refresh_is_called_from_the_start_of_the_codebooks_on():
    class Watch(RQVAE):
        kind = 'watch'
        seen = ()
        def refresh(self, gen): self.seen += ((len(self.history), self.codebooks[0].detach().clone(), gen),)
    cfg = RQVAEConfig(6, levels=1, size=4, d_code=3, hidden=[5], steps=200, batch=32, warmup=.3)
    x = cloud(64, 6)
    w = fit_rqvae(Watch(cfg), x)
    assert [n for n, *_ in w.seen] == [2, 3, 4, 5, 6, 7, 8]          # steps 60 (start), 75, 100 .. 200; 25 and 50 were before
    assert not torch.equal(w.seen[0][1], w.seen[1][1]) and all(isinstance(g, torch.Generator) for *_, g in w.seen)
    assert_array_equal(w.encode(x), fit_rqvae(RQVAE(cfg), x).encode(x))     # doing nothing changes nothing
    class Draws(RQVAE):
        def refresh(self, gen): torch.rand(3, generator=gen)         # the generator of the batches: other batches follow
    assert fit_rqvae(Draws(cfg), x).history != w.history

def test_other_kinds_register_themselves(tmp_path, monkeypatch):
    class Other(RQVAE): kind = 'other'
    x = cloud(40, 6)
    m = fit_rqvae(Other(RQVAEConfig(6, levels=2, size=4, d_code=3, hidden=[5], steps=30)), x)
    m.save(tmp_path)
    with pytest.raises(GenrecError, match=r"kind is 'other', expected one of residual_kmeans, rqvae.*import the module"): load_quantizer(tmp_path)
    monkeypatch.setitem(QUANTIZERS, 'other', lambda *a: read_rqvae(*a, model=Other))
    again = load_quantizer(tmp_path)
    assert type(again) is Other and again.history == m.history and again.revived == m.revived and repr(again) == repr(m)
    assert_array_equal(again.encode(x), m.encode(x))

def test_sinkhorn_assignment_while_training_is_more_even():
    x = cloud(128, 6)
    m = RQVAE(RQVAEConfig(6, levels=1, size=16, d_code=3, hidden=[5], sinkhorn=True))
    soft = torch.bincount(m.train()(x).codes[:, 0], minlength=16)
    hard = torch.bincount(m.eval()(x).codes[:, 0], minlength=16)
    assert soft.max() < hard.max() and soft.min() >= hard.min()
    assert_array_equal(m(x).codes, m.encode(x))

@pytest.mark.parametrize('balanced', [False, True])
def test_save_and_load(tmp_path, balanced):
    x = cloud(100, 6)
    for q in (residual_kmeans(x, 2, 8, balanced), train_rqvae(x, RQVAEConfig(6, levels=2, size=8, d_code=4, hidden=[5], steps=30, balanced=balanced))):
        q.save(tmp_path)
        again = load_quantizer(tmp_path)
        assert type(again) is type(q) and again.sizes == q.sizes
        assert_array_equal(again.encode(x), q.encode(x)); assert_array_equal(again.decode(q.encode(x)), q.decode(q.encode(x)))
    assert not list(tmp_path.glob('.*')) and len(list(tmp_path.iterdir())) == 2

def test_paper_widths():
    assert RQVAEConfig(4096).hidden == [2048, 1024, 512, 256, 128, 64]
    assert RQVAEConfig(768).hidden == [512, 256, 128, 64]


# ---- bad input ----

@pytest.mark.parametrize('bad,k,message', [
    (np.array([[1, 2], [np.nan, 1], [3, 4.]]), 2, 'item 1 holds NaN'),
    (np.array([[1, 2], [1, 1], [3, np.inf]]), 2, 'item 2 holds NaN or infinite'),
    (np.zeros((3, 2)), 4, '3 vectors are too few for 4 codes'),
    (np.zeros(3), 1, 'expected .items, dimensions.'),
    (np.zeros((0, 3)), 1, 'expected .items, dimensions.'),
    (np.array([['a', 'b'], ['c', 'd']]), 1, 'not a matrix of numbers'),
    ([[1., 2], [3]], 1, 'not a matrix of numbers'),
    (np.ones((3, 2), complex), 1, 'complex numbers')])
def test_bad_vectors(bad, k, message):
    for f in (lambda: kmeans(bad, k), lambda: balanced_kmeans(bad, k), lambda: residual_kmeans(bad, 2, k)):
        with pytest.raises(GenrecError, match=message): f()
    if isinstance(bad, np.ndarray) and bad.ndim == 2:
        with pytest.raises(GenrecError, match=message): train_rqvae(bad, RQVAEConfig(bad.shape[1], size=k, steps=5))

def test_first_bad_item_and_number_of_bad_items_beyond_the_first_chunk():
    x = cloud(2*CHUNK + 50, 3)
    x[CHUNK + 5, 1], x[2*CHUNK + 7, 0], x[2*CHUNK + 8] = torch.nan, -torch.inf, torch.nan
    for f in (check_vectors, residual_kmeans(cloud(50, 3), 1, 4).encode):
        with pytest.raises(GenrecError, match=rf'item {CHUNK + 5} holds NaN.*\(3 such items of {2*CHUNK + 50}\)'): f(x)

def test_large_finite_values_pass_and_what_overflows_single_precision_does_not():
    assert len(check_vectors(torch.full((2, 4), 3e38))) == 2         # the row's sum is infinite, its elements are not
    with pytest.raises(GenrecError, match='item 0 holds NaN or infinite'): check_vectors(np.full((2, 4), 1e300))

def test_whole_numbers_and_lists_become_floats():
    assert check_vectors([[1, 2], [3, 4]]).dtype == as_vectors(np.eye(3, dtype=np.int8)).dtype == torch.float32

def test_files_that_do_not_belong_together(tmp_path):
    x = cloud(30, 6)
    residual_kmeans(x, 2, 4).save(tmp_path/'a')
    RQVAE(RQVAEConfig(6, levels=2, size=4, d_code=3, hidden=[5])).save(tmp_path/'b')
    for kind in 'ab': (tmp_path/f'{kind}.json').write_bytes((tmp_path/kind/'quantizer.json').read_bytes())
    for kind, other in ('ab', 'ba'):
        (tmp_path/kind/'quantizer.json').write_bytes((tmp_path/f'{other}.json').read_bytes())
        with pytest.raises(GenrecError, match='do not belong together') as e: load_quantizer(tmp_path/kind)
        assert '\n' not in str(e.value)
    for text in ('{"kind": "oracle"}', '[1]'):
        (tmp_path/'a'/'quantizer.json').write_text(text)
        with pytest.raises(GenrecError, match='quantizer.json: kind is .*expected one of residual_kmeans, rqvae'): load_quantizer(tmp_path/'a')

def test_bad_configuration_and_files(tmp_path):
    for kw, message in ((dict(variant='mean'), 'variant'), (dict(mu=-1), 'mu'), (dict(size=[8]), 'levels'), (dict(steps=0), 'steps')):
        with pytest.raises(GenrecError, match=message): RQVAEConfig(8, **kw)
    x = cloud(20, 6)
    with pytest.raises(GenrecError, match='d_in = 5'): train_rqvae(x, RQVAEConfig(5))
    with pytest.raises(GenrecError, match='made for 6'): RQVAE(RQVAEConfig(6)).encode(cloud(3, 5))
    with pytest.raises(GenrecError, match='quantizer.json'): load_quantizer(tmp_path)
    (tmp_path/'quantizer.json').write_text('{"kind": "rqvae",}')
    with pytest.raises(GenrecError, match='line 1, column'): load_quantizer(tmp_path)
    residual_kmeans(x, 1, 4).save(tmp_path)
    (tmp_path/'quantizer.safetensors').write_bytes(b'not a tensor')
    with pytest.raises(GenrecError, match='safetensors'): load_quantizer(tmp_path)


@pytest.mark.parametrize('hidden', [['[512', '256]'], [512, 0], [64.5]])
def test_widths_of_an_encoder_are_whole_numbers(hidden):
    with pytest.raises(GenrecError, match='expected the widths of the encoder'): RQVAEConfig(16, hidden=hidden)
