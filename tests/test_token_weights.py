"""Token losses, every weighting, the causal loss and the learned mixture, each against a loop written from its formula."""
import math
from types import SimpleNamespace
import numpy as np
import pytest
import torch
from hypothesis import given, strategies as st
from genrec_nb.core import GenrecError
from genrec_nb.data import Interactions, leave_one_out
from genrec_nb.semantic_ids import EOS, Identifiers
from genrec_nb.infogain import information_gain, item_prior
from genrec_nb.token_weights import CFT, FrontGreater, Frequency, IGD, Mixed, MultiTargetLoss, Position, PUBLISHED, RankingGuided, Uniform, WEIGHTINGS, WeightedLoss, check_table, frequency_weights, gain_weights, igd_weights, level_gains, make_weighting, split_gains, token_nll, uniform_weights, weighted_mean
from genrec_nb.trie import ItemTrie
import oracles
from oracles import DictTrie, few, identifiers, quick, tables_with_counts


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


# ---- weights ------------------------------------------------------------------------------------------------------

@quick
@given(tables_with_counts(), st.sampled_from([0., .1, .5, 1.]))
def test_igd_weights_by_definition(case, beta):
    "beta where the token eliminates no mass (by a dictionary), 1 elsewhere, 0 behind the end"
    paths, counts = case
    t, d, p = ItemTrie.build(identifiers(paths)), DictTrie(paths), item_prior(np.array(counts))
    table = igd_weights(t, information_gain(t, p), beta)
    assert table.dtype == torch.float and table.shape == (len(paths), t.max_depth)
    for i, path in enumerate(d.paths):
        for k in range(t.max_depth):
            if k >= len(path): want = 0.
            else:
                up, here = (set(d.branches[d.number[path[:m]]].items) for m in (k, k + 1))
                decides = any(0 < m < 1 for m in oracles.distinct_mass(d, up - here, p.tolist()))
                want = 1. if decides else beta
            assert float(table[i, k]) == pytest.approx(want)

@quick
@given(tables_with_counts())
def test_beta_one_is_plain_cross_entropy(case):
    paths, counts = case
    t = ItemTrie.build(identifiers(paths))
    assert torch.equal(igd_weights(t, information_gain(t, item_prior(np.array(counts))), 1.), uniform_weights(t))
    labels = torch.from_numpy(identifiers(paths).padded())
    logits = torch.randn(*labels.shape, 9, generator=torch.Generator().manual_seed(0))
    plain = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=0)
    torch.testing.assert_close(weighted_mean(token_nll(logits, labels), uniform_weights(t)), plain)

def test_bad_arguments():
    t = ItemTrie.build(identifiers([[3, 4], [3, 5]]))
    g = information_gain(t, item_prior([1, 1]))
    for bad in (-.1, 1.1, float('nan')):
        with pytest.raises(GenrecError, match='between 0 and 1'): igd_weights(t, g, bad)
    with pytest.raises(GenrecError, match='on this trie'): igd_weights(t, g[:-1])
    with pytest.raises(GenrecError, match='NaN'): igd_weights(t, g*math.nan)

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


# ---- the family, each member by a loop -----------------------------------------------------------------------------

def groups(paths, k):
    "Items that share their first k tokens, in a dictionary"
    out = {}
    for i, p in enumerate(paths): out.setdefault(tuple(p[:k]), []).append(i)
    return out

def mu(x, items):
    "Mean distance to the centre"
    c = [math.fsum(x[i][d] for i in items)/len(items) for d in range(len(x[0]))]
    return math.fsum(math.dist(x[i], c) for i in items)/len(items)

def slow_levels(x, paths):
    "gain_k = mu_{k-1} - mu_k"
    means = [math.fsum(len(g)*mu(x, g) for g in groups(paths, k).values())/len(paths) for k in range(max(map(len, paths)) + 1)]
    return [a - b for a, b in zip(means, means[1:])]

def slow_prefix(x, paths, i, k):
    "Gain of the split of item i's first k tokens"
    inside = groups(paths, k)[tuple(paths[i][:k])]
    parts = groups([paths[j] for j in inside], k + 1).values()
    return mu(x, inside) - math.fsum(len(g)*mu(x, [inside[j] for j in g]) for g in parts)/len(inside)

def normalised(w): return [v*len(w)/math.fsum(w) for v in w] if math.fsum(w) > 1e-12 else [1.]*len(w)

def slow(name, paths, counts, x, beta, eos, i):
    "The weights of item i, token by token, from the formulas"
    identifier = [t for t in paths[i] if eos == 'token' or t != EOS]
    n = len(identifier)
    if name == 'uniform': w = [1.]*n
    if name == 'igd':
        p = [c/sum(counts) for c in counts]
        d, w = DictTrie(paths), []
        for k in range(n):
            out = set(groups(paths, k)[tuple(paths[i][:k])]) - set(groups(paths, k + 1)[tuple(paths[i][:k + 1])])
            w.append(1. if any(0 < m < 1 for m in oracles.distinct_mass(d, out, p)) else beta)
    if name == 'position': w = [1. if n == 1 else 1 - (1 - beta)*k/(n - 1) for k in range(n)]
    if name == 'front_greater':
        unit = 32/mu(x, range(len(x)))
        w = normalised([math.log1p(max(g*unit, 0)) for g in slow_levels(x, paths)[:n]])
    if name == 'prefix':
        unit = 32/mu(x, range(len(x)))
        w = normalised([math.log1p(max(slow_prefix(x, paths, i, k)*unit, 0)) for k in range(n)])
    if name == 'frequency':
        f = {}
        for q, c in zip(paths, counts):
            for t in q:
                if eos == 'token' or t != EOS: f[t] = f.get(t, 0) + c
        one = lambda v: 1. if f[v] == 0 else 1/f[v] if beta == 1 else (1 - beta)/(1 - beta**f[v])
        w = normalised([one(t) for t in identifier])
    return w + [1. if eos == 'one' else 0.]*(len(paths[i]) - n)

FAMILY = dict(uniform=lambda b, e: Uniform(eos=e), igd=lambda b, e: IGD(b, eos=e), position=lambda b, e: Position(b, eos=e), front_greater=lambda b, e: FrontGreater(eos=e),
              prefix=lambda b, e: FrontGreater('prefix', eos=e), frequency=lambda b, e: Frequency(b, eos=e))

@pytest.mark.parametrize('name', FAMILY)
@few
@given(tables_with_counts(), st.sampled_from([0., .1, .5, .997, 1.]), st.sampled_from(['token', 'one', 'zero']), st.integers(0, 99))
def test_each_weighting_by_its_loop(name, case, beta, eos, seed):
    "Codes and ragged titles, collisions, items that are never a target, every EOS policy"
    paths, counts = case
    ids, x = identifiers(paths), np.random.default_rng(seed).normal(size=(len(paths), 3)).astype(np.float32)
    if len(paths) == 1: return                                                 # no spread to speak of; tested below
    table = FAMILY[name](beta, eos).table(ItemTrie.build(ids), ids, counts=np.array(counts), vectors=x)
    assert table.dtype == torch.float and table.shape == (len(paths), ids.max_len)
    for i, p in enumerate(paths):
        np.testing.assert_allclose(table[i, :len(p)], slow(name, paths, counts, x.tolist(), beta, eos, i), rtol=1e-4, atol=1e-5)
        assert (table[i, len(p):] == 0).all()

@quick
@given(tables_with_counts(), st.integers(0, 99))
def test_gains_add_up(case, seed):
    "Sum of the gains = mu_0 - mu_L; a level's gain is the mean over its prefixes; a prefix without a choice gains exactly 0"
    paths, _ = case
    x = np.random.default_rng(seed).normal(size=(len(paths), 4)).astype(np.float32)
    trie, gains = ItemTrie.build(identifiers(paths)), level_gains(x, identifiers(paths))
    rows = [r.tolist() for r in x]
    whole, left = mu(rows, range(len(x))), math.fsum(len(g)*mu(rows, g) for g in groups(paths, 99).values())/len(x)
    assert float(gains.sum()) == pytest.approx(whole - left, abs=1e-9)
    np.testing.assert_allclose(gains, slow_levels(rows, paths), atol=1e-9)
    assert (split_gains(trie, torch.from_numpy(x).double())[trie.n_children <= 1] == 0).all()

def test_gains_of_codes_identifiers_and_trie_are_the_same():
    rng = np.random.default_rng(0)
    codes, x = rng.integers(0, 3, (30, 3)), rng.normal(size=(30, 5))
    ids = Identifiers.from_codes(codes, policy='keep')
    assert torch.equal(level_gains(x, codes), level_gains(x, ids)) and torch.equal(level_gains(x, ids), level_gains(x, ItemTrie.build(ids)))

@pytest.mark.parametrize('gains, weights', [([23.559, 11.152, 5.342, .742], [1.5806, 1.2332, .9121, .2742]), ([20.9990, 9.0382, 6.3263, 4.0124], [1.3737, 1.0250, .8850, .7163]),
                                            ([8.5805, 13.3060, 4.4580, .4284], [1.2961, 1.5260, .9734, .2045]), ([10.0190, 11.5636, .9299, .0657], [1.6984, 1.7912, .4653, .0450])])
def test_released_constants(gains, weights):
    "Four digits; the first list's gains have three decimals, so its last weight is open by one unit of the fourth"
    np.testing.assert_allclose(gain_weights(gains), weights, atol=1.5e-4 if gains[0] == 23.559 else 5.1e-5)
    np.testing.assert_allclose(gain_weights([gains, [0, 0, 0, 0], [1, -5, 0, 0]]), [gain_weights(gains).tolist(), [1]*4, [4, 0, 0, 0]])

@quick
@given(tables_with_counts(), st.integers(0, 99))
def test_sums_of_each_item(case, seed):
    "Front-Greater and frequency: the identifier's weights sum to its length, EOS is 1"
    paths, counts = case
    ids, x = identifiers(paths), np.random.default_rng(seed).normal(size=(len(paths), 3))
    for w in (FrontGreater(), FrontGreater('prefix'), FrontGreater(scale=None), Frequency(.9), Frequency(1.)):
        table = w.table(ItemTrie.build(ids), ids, counts=np.array(counts), vectors=x)
        np.testing.assert_allclose(table.sum(1), [len(p) for p in paths], rtol=1e-5)
        for i, p in enumerate(paths):
            if p[-1] == EOS: assert table[i, len(p) - 1] == 1


# ---- limits --------------------------------------------------------------------------------------------------------

WORLD = SimpleNamespace(paths=[[3, 5, 8], [3, 5, 9], [3, 6, 8], [4, 5, 8], [4, 7, 9]], counts=np.array([4, 1, 0, 2, 9]), vectors=np.array([[0., 1], [2, 0], [4, 1], [12, 3], [11, 9]]))
WORLD.ids = identifiers(WORLD.paths); WORLD.trie = ItemTrie.build(WORLD.ids)
def table(w, **facts): return w.table(WORLD.trie, WORLD.ids, **{**dict(counts=WORLD.counts, vectors=WORLD.vectors), **facts})

def test_limits_that_are_plain_cross_entropy():
    plain = uniform_weights(WORLD.trie)
    for w in (Uniform(), IGD(1.), Position(1.), Frequency(0.), RankingGuided()): assert torch.equal(table(w), plain)
    assert torch.equal(table(FrontGreater(), vectors=np.ones((5, 2))), plain)       # all embeddings equal: no gain anywhere
    assert torch.allclose(table(FrontGreater(scale=1e30))[:, 0], torch.ones(5), atol=.05)

def test_frequency_limits():
    f = torch.tensor([0, 1, 2, 50, 10**6])
    np.testing.assert_allclose(frequency_weights(f, 1.), [1, 1, .5, .02, 1e-6])
    np.testing.assert_allclose(frequency_weights(f, 1 - 1e-12), frequency_weights(f, 1.), rtol=1e-5)   # the limit is reached smoothly
    np.testing.assert_allclose(frequency_weights(f, 0.), 1)
    assert float(frequency_weights(f, .9)[3]) == pytest.approx(.1, rel=.01)          # saturated by f = 50
    assert (frequency_weights(torch.arange(1, 9999), .997).diff() <= 0).all()

def test_the_unit_of_the_embeddings_does_not_matter_unless_asked():
    x = WORLD.vectors
    assert torch.allclose(table(FrontGreater(), vectors=x), table(FrontGreater(), vectors=1000*x + 7), atol=1e-5)
    assert not torch.allclose(table(FrontGreater(scale=None), vectors=x), table(FrontGreater(scale=None), vectors=1000*x))
    gains = level_gains(x, WORLD.ids)
    np.testing.assert_allclose(table(FrontGreater(scale=1e-9))[0], 3*gains/gains.sum(), rtol=1e-4)      # tiny scale: proportional to the gains
    np.testing.assert_allclose(table(FrontGreater(scale=None))[0], gain_weights(gains), rtol=1e-5)

def test_one_item_alone():
    ids = identifiers([[3, 4, EOS]])
    for w in (FrontGreater(), FrontGreater('prefix'), Frequency(.5), Uniform()): assert w.table(ItemTrie.build(ids), ids, counts=[3], vectors=[[1., 2]]).tolist() == [[1, 1, 1]]
    assert IGD(.1).table(ItemTrie.build(ids), ids, counts=[3]).tolist() == [[pytest.approx(.1)]*3]

def test_gain_may_be_given_or_counted():
    gain = information_gain(WORLD.trie, item_prior(WORLD.counts))
    assert torch.equal(table(IGD(.3)), table(IGD(.3), counts=None, gain=gain)) and torch.equal(table(IGD(.3)), igd_weights(WORLD.trie, gain, .3))


# ---- no leak -------------------------------------------------------------------------------------------------------

def test_held_out_items_change_no_weight():
    "Other validation and test items of every user: each table is the same"
    rng, tables = np.random.default_rng(0), []
    rows, codes, x = [rng.integers(0, 20, rng.integers(4, 9)) for _ in range(30)], rng.integers(0, 4, (20, 3)), rng.normal(size=(20, 4))
    ids = Identifiers.from_codes(codes, policy='extra')
    for shift in (0, 7):
        moved = [np.r_[r[:-2], (r[-2:] + shift) % 20] for r in rows]
        split = leave_one_out(Interactions(np.concatenate(moved), np.cumsum([0] + [len(r) for r in moved]), [str(i) for i in range(30)], 20))
        facts = dict(counts=split.train.target_counts(), vectors=x)
        tables.append([make_weighting(n).table(ItemTrie.build(ids), ids, **facts) for n in WEIGHTINGS if n != 'multi'])
    assert all(torch.equal(a, b) for a, b in zip(*tables))


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
    loss, parts = CFT(w, .3)(out)
    assert float(loss) == pytest.approx(mean(out.nll) + .3*mean(out.effect), rel=1e-5)
    np.testing.assert_allclose(parts, [mean(out.nll), mean(out.effect)], rtol=1e-5)
    none = CFT(w, 0.)
    assert not none.null_history and torch.equal(none(SimpleNamespace(nll=out.nll, targets=out.targets))[0], WeightedLoss(w)(out)[0])

@pytest.mark.parametrize('tau', [1., .6])
def test_effect_of_the_history_by_hand(tau):
    "Packed decoder: logits minus those of places alone, through the blocks one by one; T5: minus those of a lone EOS by `transformers`"
    ids = Identifiers.from_codes(np.random.default_rng(0).integers(0, 4, (12, 3)), [4]*3, 'keep')
    model, items = oracles.packed(ids), torch.tensor([[1, 5, 3, 2], [7, 0, 4, -1]])
    with torch.no_grad():
        out = model(items=items, tau=tau, null_history=True)
        x = model.place.weight[None, :3]
        for block in model.blocks: x = block(x)
        null_history, row = model.norm(x)[0], 0
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
    states = model.blank_states
    model.blank_states = lambda here: states(here).detach()
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
    with pytest.raises(GenrecError, match='set_pace'): three().mixture()

def test_mixed_loss_is_the_mixed_losses():
    "One nll, three tables: against three separate losses; pieces add up; the gradient of s by its formula"
    out, m = answer(12), three(c=.01)
    m.steps.fill_(50)
    singles = [float(WeightedLoss(t)(out)[0]) for t in m.tables.unbind(1)]
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
    with pytest.raises(GenrecError, match='idg'): Mixed(targets=dict(uniform={}, idg={}), rising=())

@pytest.mark.parametrize('bad, words', [(lambda: IGD(1.1), 'beta'), (lambda: Position(-.1), 'beta'), (lambda: Frequency(math.nan), 'beta'), (lambda: Uniform(eos='last'), 'token, one, zero'),
    (lambda: Uniform(tau=0), 'tau'), (lambda: FrontGreater('level'), 'prefix'), (lambda: FrontGreater(scale=-1), 'scale'), (lambda: make_weighting('cft', lam=-1), 'lam'),
    (lambda: Mixed(targets=dict(uniform={})), 'rising|two or more'), (lambda: Mixed(rising=('rare',)), "'rare'"), (lambda: Mixed(half_life=0), 'half_life'), (lambda: Mixed(variant='kendall'), 'exp'),
    (lambda: Mixed(targets=dict(ranking={}, uniform={}), rising=()), 'temperature'), (lambda: Mixed(targets=dict(cft={}, uniform={}), rising=()), 'cft'),
    (lambda: three(c=-1.), 'c is'), (lambda: WeightedLoss(torch.ones(2, 2), tau=math.nan), 'tau'), (lambda: CFT(torch.ones(2, 2), math.inf), 'lam'),
    (lambda: table(IGD(), counts=None), 'counts='), (lambda: table(Frequency(), counts=None), 'counts='), (lambda: table(FrontGreater(), vectors=None), 'vectors='),
    (lambda: table(Frequency(), counts=[0]*5), 'never a training target|no item'), (lambda: table(IGD(), counts=[0]*5), 'no item'), (lambda: table(Frequency(), counts=[1]*4), '4 counts for 5'),
    (lambda: table(Frequency(), counts=[1, -1, 1, 1, 1]), 'negative'), (lambda: table(IGD(), counts=[1, math.nan, 1, 1, 1]), 'finite'), (lambda: table(IGD(), gain=torch.full((99,), .1)), 'this trie'),
    (lambda: table(FrontGreater(), vectors=np.ones((4, 2))), '4 vectors for 5'), (lambda: table(FrontGreater(), vectors=np.full((5, 2), np.nan)), 'item 0 holds NaN'),
    (lambda: check_table(torch.tensor([[1., 1], [math.nan, 1]])), 'item 1'), (lambda: check_table(torch.tensor([[1., -1]])), 'item 0'), (lambda: check_table(torch.zeros(2, 2)), 'all weights are 0'),
    (lambda: check_table(torch.ones(4)), 'shape')])
def test_bad_input_is_refused_in_one_line(bad, words):
    with pytest.raises(GenrecError, match=words) as e: bad()
    assert '\n' not in str(e.value)

def test_labels_that_the_trie_does_not_hold():
    "The item is named; nothing silently gets the weight of another"
    for paths, item in (([[3, 5, 8], [3, 5, 9], [3, 6, 8], [4, 6, 8], [4, 7, 9]], 3), ([[3, 5, 9], [3, 5, 8], *WORLD.paths[2:]], 0), ([*WORLD.paths[:4], [4, 7, 9, 9]], 4)):
        with pytest.raises(GenrecError, match=f'item {item}: its path <?t'): Uniform().table(WORLD.trie, identifiers(paths, 11))
    with pytest.raises(GenrecError, match='4 items for a trie of 5'): Uniform().table(WORLD.trie, identifiers(WORLD.paths[:4]))
