"LETTER's losses against loops written from the formulas, its gradients, limits, files and refusals"
from functools import cache
import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from numpy.testing import assert_allclose, assert_array_equal
from genrec_nb.core import GenrecError
from genrec_nb.kmeans import load_quantizer
from genrec_nb.letter import LETTERConcat, LETTER, LETTERConfig, code_overlap, collaborative_loss, diversity_loss, fit_letter, _group_mates, _nearest_neighbors
from genrec_nb.rqvae import RQVAEConfig, train_rqvae

SMALL = dict(levels=3, size=8, d_code=8, hidden=[16], steps=40, batch=64, clusters=2)

def gen(seed=0): return torch.Generator().manual_seed(seed)
def toy(n=200, d=16, d_code=8, seed=0):
    g = gen(seed)
    return torch.randn(n, d, generator=g), torch.randn(n, d_code, generator=g)

@settings(max_examples=15, deadline=None)
@given(st.integers(1, 12), st.integers(1, 6), st.integers(0, 99))
def test_collaborative_loss_is_the_formula(b, d, seed):
    z, h = torch.randn(b, d, generator=gen(seed)).double(), torch.randn(b, d, generator=gen(seed + 1)).double()
    slow = 0.
    for i in range(b):
        products = [sum(float(z[i, k]*h[j, k]) for k in range(d)) for j in range(b)]
        slow -= (products[i] - np.log(sum(np.exp(p) for p in products)))/b
    assert_allclose(collaborative_loss(z, h), slow, rtol=1e-9, atol=1e-12)

@settings(max_examples=15, deadline=None)
@given(st.integers(2, 20), st.integers(1, 5), st.integers(0, 99))
def test_diversity_loss_is_the_formula(k, clusters, seed):
    g = gen(seed)
    book, codes = torch.randn(k, 3, generator=g).double(), torch.randint(k, (15,), generator=g)
    groups = torch.randint(clusters, (k,), generator=g)
    mates = _group_mates(codes, groups, g)
    total, n = 0., 0
    for c, m in zip(codes.tolist(), mates.tolist()):
        others = [j for j in range(k) if groups[j] == groups[c] and j != c]
        assert (m == -1) == (not others)
        if not others: continue
        assert m in others
        e = {j: np.exp(float(book[c] @ book[j])) for j in range(k) if j != c}
        total, n = total - np.log(e[m]/sum(e.values())), n + 1
    assert_allclose(diversity_loss(codes, book, mates), total/max(n, 1), rtol=1e-8, atol=1e-12)

def test_mates_are_drawn_evenly():
    groups = torch.tensor([0, 1, 0, 0, 1, 0])
    mates = _group_mates(torch.zeros(30000, dtype=torch.long), groups, gen(1))
    share = torch.bincount(mates, minlength=6)/30000
    assert_allclose(share[[2, 3, 5]], [1/3]*3, atol=.015)
    assert share[[0, 1, 4]].sum() == 0

def test_groups_of_one_code_have_no_loss():
    codes, groups, book = torch.arange(4), torch.arange(4), torch.randn(4, 2, generator=gen(), requires_grad=True)
    mates = _group_mates(codes, groups, gen())
    assert (mates == -1).all()
    loss = diversity_loss(codes, book, mates)
    loss.backward()
    assert loss == 0 and torch.isfinite(book.grad).all()

def test_groups_of_a_codebook_have_equal_sizes_again_and_again():
    m = LETTER(LETTERConfig(16, **(SMALL | dict(size=[8, 13, 40], clusters=4))))
    for _ in range(2):
        m.refresh()
        assert [torch.bincount(g).tolist() for g in m.groups[:1]] == [[2, 2, 2, 2]]
        assert [sorted(torch.bincount(g).tolist()) for g in m.groups[1:]] == [[3, 3, 3, 4], [10, 10, 10, 10]]
        with torch.no_grad(): m.codebooks[1].add_(.05*torch.randn(13, 8, generator=gen(1)))

def test_without_both_terms_it_is_the_rqvae():
    x, h = toy()
    plain = {k: v for k, v in SMALL.items() if k != 'clusters'}
    rq = train_rqvae(x, RQVAEConfig(16, balanced=True, **plain), seed=3)
    lt = fit_letter(x, h, LETTERConfig(16, alpha=0, beta=0, **SMALL), seed=3)
    assert_array_equal(lt.encode(x), rq.encode(x))
    for a, b in zip(lt.state_dict().values(), rq.state_dict().values()): assert torch.equal(a, b)

def test_alpha_zero_ignores_the_collaborative_vectors():
    x, h = toy()
    c = LETTERConfig(16, alpha=0, beta=.01, **SMALL)
    assert_array_equal(fit_letter(x, h, c).encode(x), fit_letter(x, h.flip(0), c).encode(x))

def test_same_seed_same_codes_other_seed_other_codes():
    x, h = toy()
    c = LETTERConfig(16, alpha=.1, beta=.01, **SMALL)
    a, state = fit_letter(x, h, c, seed=1).encode(x), torch.get_rng_state()
    assert_array_equal(a, fit_letter(x, h, c, seed=1).encode(x))
    assert torch.equal(state, torch.get_rng_state())                             # nothing global is touched
    assert (a != fit_letter(x, h, c, seed=2).encode(x)).any()

def test_collaboration_reaches_the_encoder_only_and_diversity_the_codebooks_only():
    x, h = toy(64)
    m = LETTER(LETTERConfig(16, alpha=1., beta=1., **SMALL)).train()
    m.cf = h; m.refresh()
    out = m(x)
    zero = lambda ps: all(p.grad is None or not p.grad.any() for p in ps)
    collaborative_loss(out.z_hat, h).backward(retain_graph=True)
    assert not zero(m.encoder.parameters()) and zero(m.codebooks) and zero(m.decoder.parameters())
    m.zero_grad()
    m.diversity(out.codes).backward()
    assert zero(m.encoder.parameters()) and not zero(m.codebooks)

def test_variants_are_means_and_sums():
    x, h = toy(64)
    got = {}
    for variant in ('code', 'paper'):
        m = LETTER(LETTERConfig(16, variant=variant, **SMALL), seed=0).train()
        m.cf = h; m.refresh()
        got[variant] = m.diversity(m(x).codes)
    assert_allclose(got['paper'].detach(), 3*got['code'].detach(), rtol=1e-5)

def test_collaboration_makes_neighbors_share_codes():
    g = gen(5)
    h = torch.randn(20, 8, generator=g).repeat_interleave(10, 0) + .1*torch.randn(200, 8, generator=g)      # 20 kinds of buyers
    x = torch.randn(200, 16, generator=g)                                                                  # texts that know nothing of them
    c = dict(levels=2, size=20, d_code=8, hidden=[64], steps=400, batch=200, clusters=4, beta=0)
    without, with_ = (code_overlap(fit_letter(x, h, LETTERConfig(16, alpha=a, **c)).encode(x), h) for a in (0, .3))
    assert with_ > 2*without

def test_saved_and_loaded_it_is_the_same(tmp_path):
    x, h = toy()
    m = fit_letter(x, h, LETTERConfig(16, alpha=.1, **SMALL))
    m.save(tmp_path)
    again = load_quantizer(tmp_path)
    assert isinstance(again, LETTER) and again.config == m.config and again.history == m.history
    assert_array_equal(again.encode(x), m.encode(x))

def test_a_dead_code_is_revived_and_reported():
    x, h = toy(40)
    m = fit_letter(x, h, LETTERConfig(16, alpha=.1, **(SMALL | dict(size=32, steps=100, batch=40))))
    assert m.revived == sum(e['revived'] for e in m.history) > 0 and 'revived' in repr(m)

@pytest.mark.parametrize('change, words', [
    (lambda h: h[:-1], '199 collaborative vectors for 200 items'), (lambda h: h[:, :5], 'collaborative embeddings: vectors have 5 dimensions, expected 8'),
    (lambda h: torch.ones_like(h), 'all collaborative vectors are equal'), (lambda h: torch.where(torch.arange(200)[:, None] == 7, torch.nan, h), 'item 7 holds NaN'),
    (lambda h: h[:, 0], 'shape')])
def test_useless_vectors_are_refused_before_training(change, words, monkeypatch):
    monkeypatch.setattr('genrec_nb.letter.fit_rqvae', lambda *a: pytest.fail('training began'))
    x, h = toy()
    with pytest.raises(GenrecError, match=words): fit_letter(x, change(h), LETTERConfig(16, **SMALL))

@pytest.mark.parametrize('settings_, words', [(dict(alpha=-.1), 'alpha is -0.1'), (dict(beta=-1), 'beta is -1'), (dict(alpha=float('nan')), 'alpha is nan'), (dict(clusters=9), 'clusters is 9, expected 1 to 8'), (dict(clusters=0), 'clusters is 0'), (dict(fusion='both'), "fusion is 'both', expected one of loss, concat")])
def test_impossible_settings_are_refused(settings_, words):
    with pytest.raises(GenrecError, match=words): LETTERConfig(16, **(SMALL | settings_))

def test_fewer_items_than_codes_are_refused():
    with pytest.raises(GenrecError, match='5 vectors are too few, expected at least 8'): fit_letter(*toy(5), LETTERConfig(16, **SMALL))

@settings(max_examples=10, deadline=None)
@given(st.integers(2, 30), st.integers(0, 50))
def test_overlap_against_a_loop(n, seed):
    rng = np.random.default_rng(seed)
    h, codes = rng.normal(size=(n, 4)).astype('f4'), rng.integers(0, 3, (n, 2))
    mate = []
    for i in range(n):
        cos = [-9. if j == i else float(h[i] @ h[j]/np.linalg.norm(h[i])/np.linalg.norm(h[j])) for j in range(n)]
        mate.append(int(np.argmax(cos)))
    assert_array_equal(_nearest_neighbors(h), mate)
    assert code_overlap(codes, h, 'any') == pytest.approx(np.mean([any(codes[i] == codes[m]) for i, m in enumerate(mate)]))
    assert code_overlap(codes, h, 'mean') == pytest.approx(np.mean([np.mean(codes[i] == codes[m]) for i, m in enumerate(mate)]))

def test_overlap_of_the_published_table(data_dir):
    "LETTER reports .2760 for Instruments; its published identifiers and vectors give .279 when any common code counts"
    from genrec_nb.semantic_ids import Identifiers
    folder = data_dir/'Instruments'
    ids = Identifiers.from_index(folder/'Instruments.letter.index.json')
    assert code_overlap(ids.padded(), np.load(folder/'Instruments.sasrec-32d.npy', allow_pickle=False)) == pytest.approx(.2760, abs=.005)

def test_overlap_refusals():
    with pytest.raises(GenrecError, match='kind is .all., expected one of any, mean'): code_overlap([[0], [1]], np.eye(2), 'all')
    with pytest.raises(GenrecError, match='2 codes for 3 vectors'): code_overlap([[0], [1]], np.eye(3))


@cache
def joint(alpha=.5, x=None, cf=None, **more):
    a, b = toy()
    return fit_letter(a if x is None else x, b if cf is None else cf, LETTERConfig(16, alpha=alpha, fusion='concat', **(SMALL | more)))

def test_concat_latent_is_the_formula():
    x, cf = toy()
    m = joint()
    s = (x - x.mean(0))/(x - x.mean(0)).square().mean().sqrt()
    h = cf - cf.mean(0)
    slow = torch.cat([m.encoder(s), .5**.5*m.reach*h/h.norm(dim=1, keepdim=True)], 1)
    assert_allclose(m.latent(m.inputs(x, cf)).detach(), slow.detach(), atol=1e-5)
    z = m.encoder(s).detach()
    assert_allclose(m.reach, z.square().sum(1).mean().sqrt(), rtol=.1)         # follows the encoder to the last step
    assert_allclose(m.direction(cf).norm(dim=1), 1, atol=1e-5)

def test_concat_squared_error_falls_apart_into_two():
    x, cf = toy()
    m = joint(alpha=.3)
    u = m.latent(m.inputs(x, cf)).detach()
    u_hat = sum(e[c] for e, c in zip(m.codebooks, torch.as_tensor(m.encode(m.inputs(x, cf))).T)).detach()
    z, h, h_hat = u[:, :8], m.direction(cf), u_hat[:, 8:]/(.3**.5*m.reach)
    assert_allclose((u - u_hat).square().sum(), (z - u_hat[:, :8]).square().sum() + .3*m.reach**2*(h - h_hat).square().sum(), rtol=1e-4)

def test_concat_without_alpha_ignores_the_collaborative_vectors():
    x, cf = toy()
    a, b = joint(0.), joint(0., cf=cf.flip(0))
    assert_array_equal(a.encode(a.inputs(x, cf)), b.encode(b.inputs(x, cf)))
    assert_array_equal(a.encode(x), a.encode(a.inputs(x, cf)))

def test_concat_brings_neighbors_together_where_texts_say_nothing():
    g = gen(5)
    x = torch.randn(300, 16, generator=g)
    cf = torch.eye(8)[torch.arange(300) % 8] + .01*torch.randn(300, 8, generator=g)
    share = lambda m: code_overlap(m.encode(m.inputs(x, cf)), cf)
    assert share(joint(1., x, cf)) > share(joint(0., x, cf)) + .3

def test_new_items_get_the_expected_collaborative_vector():
    g = gen(6)
    x = torch.randn(400, 16, generator=g)
    cf = x[:, :8]                                                             # the text says all: a new item is placed as if it were known
    m = joint(1., x, cf, steps=150)
    same = (m.encode(x) == m.encode(m.inputs(x, cf))).mean()
    wrong = (m.encode(m.inputs(x, cf.flip(0))) == m.encode(m.inputs(x, cf))).mean()
    assert same > wrong + .15

@pytest.mark.parametrize('beta', [0., .01])
def test_concat_files_hold_everything(tmp_path, beta):
    x, cf = toy()
    m = joint(beta=beta)
    m.save(tmp_path)
    again = load_quantizer(tmp_path)
    assert isinstance(again, LETTERConcat)
    for given in (x, m.inputs(x, cf)):
        assert_array_equal(again.encode(given), m.encode(given))
        assert_allclose(again.last_distances(given), m.last_distances(given), rtol=1e-6)
    assert_allclose(again.decode(m.encode(x)), m.decode(m.encode(x)))

def test_concat_is_deterministic_and_refuses_other_widths():
    x, cf = toy()
    a, b = joint(), joint.__wrapped__()                                           # trained twice
    assert_array_equal(a.encode(a.inputs(x, cf)), b.encode(b.inputs(x, cf)))
    with pytest.raises(GenrecError, match='10 dimensions, expected 16 or 24'): a.encode(x[:, :10])

def test_first_levels_use_the_text_alone():
    x, cf = toy()
    m, more = joint(cf_levels=1), joint(cf_levels=2)
    a, b = (m.encode(m.inputs(x, h)) for h in (cf, cf.flip(0)))
    assert_array_equal(a[:, :-1], b[:, :-1]); assert (a[:, -1] != b[:, -1]).mean() > .2
    u = m.latent(m.inputs(x, cf)).detach()                                     # the slow way: only z decides, until the last level sees all of h
    r = u.clone()
    for level, e in enumerate(map(torch.Tensor.detach, m.codebooks)):
        last = level == len(m.codebooks) - 1
        c = torch.cdist(*(v if last else v[:, :8] for v in (r, e))).argmin(1)
        assert (c.numpy() == a[:, level]).mean() > .99
        if not last: assert (e[:, 8:] == 0).all()
        r = r - e[torch.as_tensor(a[:, level])]
        if not last: assert_allclose(r[:, 8:], u[:, 8:])
    assert (more.codebooks[-2][:, 8:] != 0).any()

def test_all_levels_by_number_or_by_none():
    x, cf = toy()
    a, b = joint(), joint(cf_levels=len(joint().codebooks))
    assert_array_equal(a.encode(a.inputs(x, cf)), b.encode(b.inputs(x, cf)))

def test_one_level_of_collaboration_is_enough_for_overlap():
    g = gen(7)
    x = torch.randn(300, 16, generator=g)
    cf = torch.eye(8)[torch.arange(300) % 8] + .01*torch.randn(300, 8, generator=g)
    share = lambda m: code_overlap(m.encode(m.inputs(x, cf)), cf)
    assert share(joint(1., x, cf, cf_levels=1, steps=100)) > share(joint(0., x, cf, steps=100)) + .3

@pytest.mark.parametrize('given, words', [(dict(cf_levels=1), "fusion='concat' only"), (dict(fusion='concat', cf_levels=0), 'cf_levels is 0, expected 1 or more'), (dict(fusion='concat', cf_levels=9), 'expected 1 to 3 levels'),
                                          *((dict(fusion='concat', cf_levels=bad), 'expected a whole number') for bad in ('x', 1.5, True))])
def test_levels_of_collaboration_are_checked(given, words):
    with pytest.raises(GenrecError, match=words): LETTERConfig(16, **(SMALL | given))

def test_vectors_of_other_items_are_not_put_beside_texts():
    x, cf = toy()
    with pytest.raises(GenrecError, match='expected one each'): joint().inputs(x, cf[:-1])
