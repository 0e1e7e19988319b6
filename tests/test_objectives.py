"""Token losses, the temperature, the causal loss and the learned mixture, each against a loop written from its formula; names."""
import math
from types import SimpleNamespace
import numpy as np
import pytest
import torch
from hypothesis import given, strategies as st
from genrec_nb.causal_blocks import PackedRows
from genrec_nb.core import GenrecError
from genrec_nb.objectives import (CFTLoss, Mixture, MultiTargetLoss, PUBLISHED, RankingGuided, WEIGHTINGS, WeightedLoss,
                                  make_weighting, token_nll, weighted_mean)
from genrec_nb.semantic_ids import EOS, Identifiers
from genrec_nb.token_weights import FrontGreater, Frequency, IGD, Position, Uniform, uniform_weights
from genrec_nb.trie import ItemTrie
import oracles
from oracles import identifiers, quick


def loop_nll(logits, labels, tau):
    "-log softmax at the label, by hand; 0 at PAD"
    out = []
    for row, y in zip(logits, labels):
        x = [v/tau for v in row]
        top = max(x)
        out.append(0. if y == 0 else top + math.log(math.fsum(math.exp(v - top) for v in x)) - x[y])
    return out

@quick
@given(st.integers(0, 10**6), st.sampled_from([.3, 1., 2.5]))
def test_nll_and_weighted_mean_are_their_loops(seed, tau):
    rng = np.random.default_rng(seed)
    logits, labels, w = rng.normal(0, 4, (5, 7, 9)), rng.integers(0, 9, (5, 7)), rng.random((5, 7))
    w *= labels > 0
    nll = token_nll(torch.tensor(logits, dtype=torch.float), torch.tensor(labels), tau)
    want = np.array([loop_nll(a, b, tau) for a, b in zip(logits, labels)])
    np.testing.assert_allclose(nll, want, rtol=1e-5, atol=1e-5)
    got = weighted_mean(nll, torch.tensor(w, dtype=torch.float))
    assert float(got) == pytest.approx((w*want).sum()/w.sum(), rel=1e-5)
    parts = sum(weighted_mean(nll[a:b], torch.tensor(w[a:b], dtype=torch.float), w.sum()) for a, b in ((0, 1), (1, 4), (4, 5)))
    assert float(parts) == pytest.approx(float(got), rel=1e-5)              # micro-batches over the step's total

def test_padding_neither_counts_nor_learns():
    logits = torch.randn(3, 4, 6, generator=torch.Generator().manual_seed(0)).requires_grad_()
    labels = torch.tensor([[3, 0, 0, 0], [4, 5, 0, 0], [3, 4, 5, 2]])
    nll = token_nll(logits, labels)
    weighted_mean(nll, (labels > 0).float()).backward()
    assert (nll[labels == 0] == 0).all() and (nll[labels > 0] > 0).all()
    assert (logits.grad[labels == 0] == 0).all() and (logits.grad[labels > 0].abs().sum(-1) > 0).all()

def test_tau_scales_the_logits_only():
    x, y = torch.randn(4, 5, 6, generator=torch.Generator().manual_seed(0)), torch.full((4, 5), 3)
    torch.testing.assert_close(token_nll(x, y, .7), token_nll(x/.7, y))
    assert not torch.allclose(token_nll(x, y, .7), token_nll(x, y))

def test_half_precision_logits_are_summed_in_float():
    x, y = torch.randn(4, 50, generator=torch.Generator().manual_seed(0)), torch.full((4,), 3)
    assert token_nll(x.bfloat16(), y).dtype == torch.float
    torch.testing.assert_close(token_nll(x.bfloat16(), y), token_nll(x.bfloat16().float(), y))


def test_a_batch_without_weight_is_no_nan():
    "0/0 is defined as 0: with beta = 0 a batch may hold no token that decides anything"
    logits = torch.randn(2, 3, 6, generator=torch.Generator().manual_seed(0)).requires_grad_()
    labels = torch.tensor([[3, 4, 5], [3, 4, 0]])
    for total in (None, 0., torch.tensor(0.)):
        loss = weighted_mean(token_nll(logits, labels), torch.zeros(2, 3), total)
        loss.backward()
        assert float(loss.detach()) == 0 and (logits.grad == 0).all()
    t = ItemTrie.build(identifiers([[3, 4], [3, 4], [3, 5]]))
    table = IGD(0.).table(t, identifiers([[3, 4], [3, 4], [3, 5]]), counts=[1, 1, 0])   # the only mass is on one path: nothing decides
    assert (table[:2] == 0).all()
    one = WeightedLoss(torch.cat([table[:2], torch.ones(1, 2)]))
    loss, _ = one(SimpleNamespace(nll=torch.rand(2, 2), targets=torch.tensor([0, 1])))
    assert float(loss) == 0



WORLD = SimpleNamespace(paths=[[3, 5, 8], [3, 5, 9], [3, 6, 8], [4, 5, 8], [4, 7, 9]], counts=np.array([4, 1, 0, 2, 9]), vectors=np.array([[0., 1], [2, 0], [4, 1], [12, 3], [11, 9]]))
WORLD.ids = identifiers(WORLD.paths); WORLD.trie = ItemTrie.build(WORLD.ids)
def table(w, **facts): return w.table(WORLD.trie, WORLD.ids, **{**dict(counts=WORLD.counts, vectors=WORLD.vectors), **facts})


# ---- temperature ---------------------------------------------------------------------------------------------------

def test_gradient_of_the_temperature():
    "(softmax(z/tau) - [v = y])/tau; among the wrong tokens the share is a softmax of temperature tau"
    z = torch.randn(7, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for tau in (.1, .7, 1., 3.):
        x = z.clone().requires_grad_()
        token_nll(x[None], torch.tensor([2]), tau).sum().backward()
        want = ((z/tau).softmax(0) - torch.nn.functional.one_hot(torch.tensor(2), 7))/tau
        torch.testing.assert_close(x.grad, want, rtol=1e-5, atol=1e-7)
        wrong = [v for v in range(7) if v != 2]
        torch.testing.assert_close(x.grad[wrong]/x.grad[wrong].sum(), (z[wrong]/tau).softmax(0), rtol=1e-5, atol=1e-7)


# ---- causal loss ---------------------------------------------------------------------------------------------------

def answer(n=6, seed=0):
    g = torch.Generator().manual_seed(seed)
    return SimpleNamespace(nll=torch.rand(n, 3, generator=g), effect=torch.rand(n, 3, generator=g), targets=torch.randint(0, 5, (n,), generator=g))

def test_causal_loss_by_its_formula():
    w, out = table(Position(.25)), answer()
    mean = lambda nll: sum(float(w[i, k]*nll[j, k]) for j, i in enumerate(out.targets.tolist()) for k in range(3))/sum(float(w[i].sum()) for i in out.targets.tolist())
    loss, parts = CFTLoss(w, .3)(out)
    assert float(loss) == pytest.approx(mean(out.nll) + .3*mean(out.effect), rel=1e-5)
    np.testing.assert_allclose(parts, [mean(out.nll), mean(out.effect)], rtol=1e-5)
    none = CFTLoss(w, 0.)
    assert not none.null_history and torch.equal(none(SimpleNamespace(nll=out.nll, targets=out.targets))[0], WeightedLoss(w)(out)[0])

@pytest.mark.parametrize('tau', [1., .6])
def test_effect_of_the_history_by_hand(tau):
    "Packed decoder: logits minus those of places alone, through the blocks one by one; T5: minus those of a lone EOS by `transformers`"
    ids = Identifiers.from_codes(np.random.default_rng(0).integers(0, 4, (12, 3)), [4]*3, 'keep')
    model, items = oracles.packed(ids), torch.tensor([[1, 5, 3, 2], [7, 0, 4, -1]])
    with torch.no_grad():
        out = model(items=items, tau=tau, null_history=True)
        x, rows = model.place.weight[:3], PackedRows(torch.ones(1, 3, dtype=torch.bool))
        for block in model.blocks: x = block(x, rows)
        null_history, row = model.norm(x), 0
        for b, t in [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1)]:
            history, target = items[b, :t + 1], items[b, t + 1]
            codes, u = model.paths[target] - model.first, [model.read((model.paths[history] - model.first)[None])[0, -1], null_history[t]]
            for l in range(3):
                full, empty = (model.level_logits(v, l) for v in u)
                assert float(out.nll[row, l]) == pytest.approx(float(-(full/tau).log_softmax(0)[codes[l]]), abs=1e-4)
                assert float(out.effect[row, l]) == pytest.approx(float(-((full - empty)/tau).log_softmax(0)[codes[l]]), abs=1e-4)
                u = [v + model.codes[l].weight[codes[l]] for v in u]
            row += 1
        assert row == len(out.targets)
        model, history, targets = oracles.t5(ids), torch.tensor([[-1, 1, 5], [7, 0, 4]]), torch.tensor([3, 2])
        out, labels = model(history=history, targets=targets, tau=tau, null_history=True), model.paths[targets]
        start = torch.cat([torch.zeros(2, 1, dtype=torch.long), labels[:, :-1]], 1)
        logits = lambda x: model(input_ids=x, decoder_input_ids=start).logits
        full = torch.cat([logits(torch.cat([model.paths[h[h >= 0]].flatten(), torch.tensor([EOS])])[None].expand(2, -1))[[r]] for r, h in enumerate(history)])
        torch.testing.assert_close(out.effect, token_nll(full - logits(torch.full((2, 1), EOS)), labels, tau), rtol=1e-4, atol=1e-4)
        assert model(history=history, targets=targets).effect is None

def test_the_effect_trains_both_predictions():
    ids = Identifiers.from_codes(np.random.default_rng(0).integers(0, 4, (12, 2)), [4]*2, 'keep')
    model = oracles.packed(ids)
    model(items=torch.tensor([[1, 5, 3]]), null_history=True).effect.sum().backward()
    both = model.place.weight.grad.clone()
    model.zero_grad()
    states = model.null_states
    model.null_states = lambda here: states(here).detach()
    model(items=torch.tensor([[1, 5, 3]]), null_history=True).effect.sum().backward()
    assert not torch.allclose(both, model.place.weight.grad)


# ---- mixture -------------------------------------------------------------------------------------------------------

def three(**kwargs): return MultiTargetLoss({'a': table(Uniform()), 'b': table(FrontGreater()), 'frequency': table(Frequency(.5))}, **kwargs)

def slow_mixture(s, c, t, rising):
    "softmax(-20 tanh(s/20) + log max(pace, 1e-6)), in plain floats"
    pace = [1 - math.exp(-c*t) if r else math.exp(-c*t) for r in rising]
    z = [-20*math.tanh(v/20) + math.log(max(p, 1e-6)) for v, p in zip(s, pace)]
    e = [math.exp(v - max(z)) for v in z]
    return [v/sum(e) for v in e]

@quick
@given(st.lists(st.floats(-60, 60), min_size=3, max_size=3), st.sampled_from([0., 1e-5, 5e-5, .01, 2.]), st.integers(0, 10**6))
def test_mixture_by_its_formula(s, c, t):
    m = three(c=c)
    with torch.no_grad(): m.s.copy_(torch.tensor(s)); m.steps.fill_(t)
    np.testing.assert_allclose(m.mixture().tolist(), slow_mixture(s, c, t, [False, False, True]), rtol=2e-4, atol=1e-7)
    m.mixture()[0].backward()
    assert torch.isfinite(m.s.grad).all() and float(m.mixture().detach().sum()) == pytest.approx(1)

def at(m, t):
    m.steps.fill_(t)
    return m.mixture().tolist()

def test_limits_of_the_pace():
    none, fast = three(c=0.), three(c=1e12)
    for t in (0, 1, 10**9): np.testing.assert_allclose(at(none, t), [.5, .5, 0], atol=1e-6)        # c -> 0: frequency never comes
    np.testing.assert_allclose(at(fast, 0), [.5, .5, 0], atol=1e-6)
    np.testing.assert_allclose(at(fast, 1), [0, 0, 1], atol=1e-5)                                  # c -> infinity: it is alone after one step
    assert np.isfinite(at(fast, 2**40)).all()
    free = three(variant='exp')
    with torch.no_grad(): free.s.copy_(torch.tensor([0., 1., 30.]))
    for t in (0, 10**6): np.testing.assert_allclose(at(free, t), np.exp([0, -1, -30])/np.exp([0, -1, -30]).sum(), rtol=1e-5)

def test_half_life_is_in_epochs():
    m = three(half_life=4.).set_pace(25)
    assert m.c == pytest.approx(math.log(2)/100)
    m.steps.fill_(100)
    np.testing.assert_allclose(m.log_pace().exp(), [.5, .5, .5])
    assert three(c=.1).set_pace(25).c == .1
    ids = identifiers(WORLD.paths)
    mixture = Mixture(c=.1, targets=dict(uniform={}, frequency={})).objective(ItemTrie.build(ids), ids, counts=WORLD.counts)
    assert mixture.set_pace(25).c == .1
    with pytest.raises(GenrecError, match='set_pace'): three().mixture()

def test_mixed_loss_is_the_mixed_losses():
    "One nll, three tables: against three separate losses; pieces add up; the gradient of s by its formula"
    out, m = answer(12), three(c=.01)
    m.steps.fill_(50)
    singles = [float(WeightedLoss(t)(out)[0]) for t in m.table.unbind(1)]
    loss, parts = m(out)
    np.testing.assert_allclose(parts, singles, rtol=1e-5)
    want = sum(w*l for w, l in zip(slow_mixture([0, 0, 0], .01, 50, [False, False, True]), singles))
    assert float(loss.detach()) == pytest.approx(want, rel=1e-5)
    loss.backward()
    w = m.mixture().detach()
    torch.testing.assert_close(m.s.grad, -w*(parts - loss.detach()), rtol=1e-4, atol=1e-6)
    piece = lambda a, b: SimpleNamespace(nll=out.nll[a:b], targets=out.targets[a:b])
    totals = m.totals(out.targets)
    assert float(sum(m(piece(a, b), totals)[0].detach() for a, b in ((0, 1), (1, 7), (7, 12)))) == pytest.approx(want, rel=1e-5)
    given = SimpleNamespace(**vars(out), mixture=torch.tensor([1., 0, 0]))
    assert float(m(given)[0]) == pytest.approx(singles[0], rel=1e-5)

def test_only_advance_moves_the_clock():
    m, out = three(c=.01), answer()
    for _ in range(3): m(out)[0].backward()
    m.eval(); m(out); m.train()
    assert int(m.steps) == 0
    m.advance(); m.advance()
    assert int(m.steps) == 2 and set(m.state_dict()) == {'s', 'steps'}
    again = three(c=.01)
    again.load_state_dict(m.state_dict())
    assert torch.equal(again.mixture(), m.mixture())
    m.reset()
    assert int(m.steps) == 0 and (m.s == 0).all()


# ---- names, settings, bad input ------------------------------------------------------------------------------------

def test_every_name_becomes_a_loss_that_learns():
    for name in [*WEIGHTINGS, *PUBLISHED]:
        loss = make_weighting(name).objective(WORLD.trie, WORLD.ids, counts=WORLD.counts, vectors=WORLD.vectors)
        if isinstance(loss, MultiTargetLoss): loss.set_pace(10)
        out = answer()
        out.nll.requires_grad_()
        loss(out)[0].backward()
        assert loss.shape == (5, 3) and torch.isfinite(out.nll.grad).all() and out.nll.grad.abs().sum() > 0
    assert make_weighting('ranking').objective(WORLD.trie, WORLD.ids).tau == .7 and make_weighting('igd', beta=.2, tau=.5).objective(WORLD.trie, WORLD.ids, counts=WORLD.counts).tau == .5
    assert make_weighting('frequency-tiger') == Frequency(.9) and make_weighting('frequency-tiger', beta=.5) == Frequency(.5)
    assert make_weighting('multi-tiger').variant == 'exp'

def test_unknown_names_list_the_known_ones():
    with pytest.raises(GenrecError, match='uniform, igd, position, front_greater, frequency'): make_weighting('idg')
    with pytest.raises(GenrecError, match='igd'): make_weighting('igd_weights')          # no guessing by substrings
    with pytest.raises(GenrecError, match="'bta'.*beta"): make_weighting('igd', bta=1)
    with pytest.raises(GenrecError, match='idg'): Mixture(targets=dict(uniform={}, idg={}), rising=())

@pytest.mark.parametrize('bad, words', [
    (lambda: make_weighting('cft', lam=-1), 'lam is -1'), (lambda: make_weighting('cft', lam=math.inf), 'lam is inf'),
    (lambda: Mixture(targets=dict(uniform={}), rising=()), 'two or more'), (lambda: Mixture(targets=dict(uniform={})), "'frequency'"),
    (lambda: Mixture(rising=('rare',)), "'rare'"), (lambda: Mixture(half_life=0), 'half_life is 0'), (lambda: Mixture(variant='kendall'), 'exp'),
    (lambda: Mixture(targets=dict(ranking={}, uniform={}), rising=()), 'temperature'), (lambda: Mixture(targets=dict(cft={}, uniform={}), rising=()), 'cft'),
    (lambda: WeightedLoss(torch.tensor([[1., 1], [math.nan, 1]])), 'item 1'), (lambda: WeightedLoss(torch.tensor([[1., -1]])), 'item 0'),
    (lambda: WeightedLoss(torch.zeros(2, 2)), 'all weights are 0'), (lambda: WeightedLoss(torch.ones(4)), 'shape'),
    (lambda: MultiTargetLoss(dict(a=torch.ones(2, 2), b=torch.zeros(2, 2))), '^b: all weights')])
def test_bad_input_is_refused_in_one_line(bad, words):
    with pytest.raises(GenrecError, match=words) as e: bad()
    assert '\n' not in str(e.value)
