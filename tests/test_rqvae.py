"The RQ-VAE against its formula, its gradients, and what keeps codebooks alive."
import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal

from genrec_nb import kmeans as kmeans_module
from genrec_nb.core import GenrecError
from genrec_nb.kmeans import generator, load_quantizer, nearest, quantizer_report, residual_kmeans
from genrec_nb.rqvae import RQVAE, RQVAEConfig, _revive_dead, fit_rqvae, quantize, train_rqvae

TINY = dict(levels=2, size=4, d_code=3, hidden=[5])

def cloud(n, d, seed=0): return torch.randn(n, d, generator=generator(seed))


@pytest.mark.parametrize('variant', ['code', 'paper'])
def test_loss_terms_against_the_formula(variant):
    x = cloud(16, 6)
    m = RQVAE(RQVAEConfig(6, variant=variant, commitment_weight=.25, **TINY))
    out, z = m(x), m.encoder(x)
    e1 = m.codebooks[0][out.codes[:, 0]]; r2 = z - e1; e2 = m.codebooks[1][out.codes[:, 1]]
    a, b, rec = (z - e1)**2, (r2 - e2)**2, (m.decoder(e1 + e2) - x)**2
    code = variant == 'code'
    want = 1.25*(a.mean() + b.mean())/2 if code else 1.25*(a.sum(1).mean() + b.sum(1).mean())
    assert_allclose(out.quant.detach(), want.detach(), rtol=1e-5)
    assert_allclose((m.loss(out, None) - out.quant).detach(), (rec.mean() if code else rec.sum(1).mean()).detach(), rtol=1e-4)

@pytest.mark.parametrize('variant,reaches', [('code', False), ('paper', True)])
def test_commitment_of_deeper_levels_reaches_the_encoder_only_in_the_paper_variant(variant, reaches):
    z = cloud(8, 3).requires_grad_()
    books = [cloud(5, 3, s).requires_grad_() for s in (1, 2)]
    def grad(n): return torch.autograd.grad(quantize(z, books[:n], lambda r, l: nearest(r, books[l]), variant=variant)[2], z)[0]
    one, two = grad(1), grad(2)
    if variant == 'code': two = 2*two                                # undo the mean over levels
    assert (not torch.allclose(one, two)) == reaches

def test_reconstruction_sends_no_gradient_to_codebooks():
    m = RQVAE(RQVAEConfig(6, **TINY))
    out = m(cloud(16, 6))
    g = torch.autograd.grad((out.s_hat - out.s).square().mean(), list(m.codebooks) + list(m.encoder.parameters()), allow_unused=True)
    assert g[0] is None and g[1] is None and all(p is not None for p in g[2:])

def test_training_learns_is_deterministic_and_leaves_global_state_alone():
    x = torch.cat([cloud(40, 12, s)*.1 + cloud(1, 12, 50 + s) for s in range(8)])
    cfg = RQVAEConfig(12, levels=2, size=8, d_code=6, hidden=[16], steps=200, batch=64)
    state = torch.random.get_rng_state()
    a, b, c = (train_rqvae(x, cfg, seed) for seed in (1, 1, 2))
    assert torch.equal(state, torch.random.get_rng_state())
    assert_array_equal(a.encode(x), b.encode(x))
    assert a.history == b.history and a.history != c.history
    assert quantizer_report(a, x).unexplained[-1] < .2

def test_codes_do_not_depend_on_the_other_vectors():
    x, m = cloud(300, 12), RQVAE(RQVAEConfig(12, levels=3, size=16, d_code=6, hidden=[10])).eval()
    codes, p = m.encode(x), torch.randperm(300, generator=generator(7))
    for part in (codes[p] != m.encode(x[p]), codes[5:50] != m.encode(x[5:50])): assert part.any(1).mean() < .01

def test_dead_codes_are_revived_and_reported():
    x = cloud(64, 6)
    m = RQVAE(RQVAEConfig(6, **TINY)).eval()
    with torch.no_grad(): m.codebooks[0][3] = 1e3
    codes = torch.as_tensor(m.encode(x))
    assert 3 not in codes[:, 0]
    assert _revive_dead(m, x, [codes], generator(0)) >= 1
    assert m.codebooks[0][3].abs().max() < 100
    assert (m.latent(x) == m.codebooks[0][3]).all(1).any()           # it now lies on some item's latent vector

    class Far(RQVAE):                                                # throws one code away in every step
        def loss(self, out, index):
            with torch.no_grad(): self.codebooks[0][0] = 1e3
            return super().loss(out, index)
    f = fit_rqvae(Far(RQVAEConfig(6, **(TINY | dict(levels=1, steps=200, batch=32)))), x)
    assert f.revived == sum(h['revived'] for h in f.history) > 0
    off = TINY | dict(levels=1, steps=50, batch=32, revive=False)
    assert fit_rqvae(Far(RQVAEConfig(6, **off)), x).revived == 0
    assert repr(f) == f'Far(6 → 3 dimensions, 4 codes, trained for 200 steps, {f.revived} revived)'

def test_a_constant_rate_does_not_depend_on_the_number_of_steps():
    first = {schedule: [train_rqvae(cloud(40, 6), RQVAEConfig(6, steps=n, warmup=0, schedule=schedule, **TINY)).history[0]['loss']
                        for n in (50, 100)] for schedule in ('constant', 'cosine')}
    assert first['constant'][0] == first['constant'][1] and first['cosine'][0] != first['cosine'][1]

def test_vectors_are_standardized_unless_told_otherwise():
    x = cloud(40, 6)
    for standardize in (True, False):
        a, b = (train_rqvae(v, RQVAEConfig(6, steps=50, standardize=standardize, **TINY)) for v in (x, 3*x + 5))
        assert np.array_equal(a.encode(x), b.encode(3*x + 5)) == standardize
    assert not a.mean.any() and a.scale == 1

def test_refresh_is_called_from_the_start_of_the_codebooks_on():
    class Watch(RQVAE):
        seen = ()
        def refresh(self): self.seen += ((len(self.history), self.codebooks[0].detach().clone()),)
    cfg = RQVAEConfig(6, **(TINY | dict(levels=1)), steps=200, batch=32, warmup=.3)
    x = cloud(64, 6)
    w = fit_rqvae(Watch(cfg), x)
    assert [n for n, _ in w.seen] == [2, 3, 4, 5, 6, 7, 8]           # steps 60 (start), 75, 100 .. 200; 25 and 50 were before
    assert not torch.equal(w.seen[0][1], w.seen[1][1])
    assert_array_equal(w.encode(x), fit_rqvae(RQVAE(cfg), x).encode(x))     # doing nothing changes nothing

def test_other_kinds_register_themselves(tmp_path, monkeypatch):
    monkeypatch.setattr(kmeans_module, '_KINDS', dict(kmeans_module._KINDS))
    class Other(RQVAE, kind='other'): pass
    x = cloud(40, 6)
    m = fit_rqvae(Other(RQVAEConfig(6, **TINY, steps=30)), x)
    m.save(tmp_path)
    again = load_quantizer(tmp_path)
    assert type(again) is Other and again.history == m.history and again.revived == m.revived and repr(again) == repr(m)
    assert_array_equal(again.encode(x), m.encode(x))
    del kmeans_module._KINDS['other']
    with pytest.raises(GenrecError, match=r"kind is 'other', expected one of residual_kmeans, .*rqvae.*import the module"): load_quantizer(tmp_path)

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
    q = train_rqvae(x, RQVAEConfig(6, levels=2, size=8, d_code=4, hidden=[5], steps=30, balanced=balanced))
    q.save(tmp_path)
    again = load_quantizer(tmp_path)
    assert type(again) is RQVAE and again.config == q.config
    assert_array_equal(again.encode(x), q.encode(x)); assert_array_equal(again.decode(q.encode(x)), q.decode(q.encode(x)))
    assert len(list(tmp_path.iterdir())) == 2

def test_paper_widths():
    assert RQVAEConfig(4096).hidden == [2048, 1024, 512, 256, 128, 64]
    assert RQVAEConfig(768).hidden == [512, 256, 128, 64]


# ---- bad input ----

def test_files_that_do_not_belong_together(tmp_path):
    residual_kmeans(cloud(30, 6), 2, 4).save(tmp_path/'a')
    RQVAE(RQVAEConfig(6, **TINY)).save(tmp_path/'b')
    a, b = ((tmp_path/kind/'quantizer.json').read_bytes() for kind in 'ab')
    for kind, other in (('a', b), ('b', a)):
        (tmp_path/kind/'quantizer.json').write_bytes(other)
        with pytest.raises(GenrecError, match='do not belong together') as e: load_quantizer(tmp_path/kind)
        assert '\n' not in str(e.value)

@pytest.mark.parametrize('given,message', [(dict(variant='mean'), 'variant'), (dict(commitment_weight=-1), 'commitment_weight'), (dict(size=[8]), 'levels'), (dict(steps=0), 'steps'),
    (dict(lr=0), 'lr is 0'), (dict(hidden=['[512', '256]']), 'hidden'), (dict(hidden=[512, 0]), 'hidden'), (dict(hidden=[64.5]), 'hidden'), (dict(mu=.25), "'mu' is unknown")])
def test_impossible_settings_are_refused(given, message):
    with pytest.raises(GenrecError, match=message) as e: RQVAEConfig(16, **given)
    assert '\n' not in str(e.value)

@pytest.mark.parametrize('bad,k,message', [(np.full((3, 2), np.nan), 2, 'item 0 holds NaN'), (np.zeros((3, 2)), 4, '3 vectors are too few'), (np.array([['a', 'b']]), 1, 'not a matrix')])
def test_bad_vectors_are_refused_before_training(bad, k, message):
    with pytest.raises(GenrecError, match=message): train_rqvae(bad, RQVAEConfig(2, size=k, steps=5))

def test_vectors_of_another_width():
    with pytest.raises(GenrecError, match="6 dimensions, expected 5"): train_rqvae(cloud(20, 6), RQVAEConfig(5))
    with pytest.raises(GenrecError, match='5 dimensions, expected 6'): RQVAE(RQVAEConfig(6)).encode(cloud(3, 5))
