"""Exact ranking: against brute force over all items, against beams that lose nothing; chunks, memory, several identifiers."""
import math
from dataclasses import replace
from unittest import mock
import numpy as np
import pytest
import torch
from hypothesis import example, given, strategies as st
from scipy import sparse
from genrec_nb import exact as exact_module
from genrec_nb.beam_search import DecodeConfig, recommend
from genrec_nb.core import GenrecError, SettingError
from genrec_nb.splits import Cases
from genrec_nb.exact import ExactConfig, combine, exact_scores, exact_search, fit_rules, fit_weights, item_nats, rank_exact, _first_topk, _fit, _selected, ValidationScores
from genrec_nb.infogain import information_gain, item_prior
from genrec_nb.item_decoder import item_decoder
from genrec_nb.rank import _case_ce, _rank_cases
from genrec_nb.semantic_ids import Identifiers
from genrec_nb.sequential_rules import SequentialRules, interpolate
from genrec_nb.trie import ItemTrie
from oracles import few, packed, t5

HISTORY = torch.tensor([[1, 0, 2, 3], [-1, -1, -1, 4], [-1, 2, 2, 5]])

@st.composite
def models(draw):
    "A model over random codes, with many collisions or none, any softmax and prior"
    n, levels = draw(st.integers(6, 25)), draw(st.integers(1, 4))
    table = np.random.default_rng(draw(st.integers(0, 9))).integers(0, draw(st.integers(1, 5)), (n, levels))
    soft, prior = draw(st.sampled_from([('vocabulary', 'none'), ('children', 'none'), ('children', 'trie')]))
    return packed(Identifiers.from_codes(table, policy='keep'), d_model=8, softmax=soft, prior=prior, counts=np.arange(n))

def whole(model, history, **kwargs): # float [K, M, N] in the order of the users
    parts = list(exact_scores(model, history, **kwargs))
    return torch.cat([p.logp for p in parts], 1)[:, torch.argsort(torch.cat([p.rows for p in parts]))]

@few
@given(models())
def test_scores_are_the_losses_of_the_training_pass(model):
    n = len(model.paths)
    logp = whole(model, HISTORY)[0]
    for h, row in zip(HISTORY, logp):
        items = torch.cat([h[h >= 0].expand(n, -1), torch.arange(n)[:, None]], 1)
        with torch.inference_mode(): nll = model(items=items).nll.view(n, -1, model.paths.shape[1])[:, -1].sum(1)
        torch.testing.assert_close(row, model.trees[0].share - nll, atol=1e-4, rtol=1e-4)
    if model.config.softmax == 'children' and model.config.prior == 'trie':
        torch.testing.assert_close(logp.exp().sum(1), torch.ones(len(HISTORY)))            # over items, colliding ones too

@few
@given(models(), st.sampled_from(['vocabulary', 'children']), st.booleans(), st.sampled_from([0., .3, 1.]),
       st.sampled_from([0., 1.]), st.sampled_from([0., .4, 1.]))
def test_a_beam_that_loses_nothing(model, normalize, exclude, alpha, penalty, share):
    trie, n = model.tries[0], len(model.paths)
    gain = information_gain(trie, item_prior(np.arange(n) + 1.))
    config = DecodeConfig(beams=100, alpha=alpha, length_penalty=penalty, normalize=normalize, exclude_seen=exclude, assistant_weight=share)
    assistant = torch.randn(3, n, generator=torch.Generator().manual_seed(0))
    items, scores = exact_search(model, HISTORY, n + 2, config, gain, assistant=assistant)
    want, beams = recommend(model, trie, HISTORY, n + 2, config, gain, assistant=assistant)
    torch.testing.assert_close(scores[scores > -1e30], beams[beams > -1e30], atol=1e-4, rtol=1e-4)
    assert ((items >= 0) == (want >= 0)).all()
    for row, other, s in zip(items.tolist(), want.tolist(), scores):                   # the same items but for equal scores
        for a, b, x in zip(row, other, s): assert a == b or (s - x).abs().sort().values[1] < 1e-4

def some_levels_open(few): return mock.patch.object(exact_module, '_FEW', few)

@few
@example(0, 1, 0., True, 'vocabulary', 1)
@given(st.integers(0, 99), st.integers(1, 9), st.sampled_from([0., .3]), st.booleans(), st.sampled_from(['vocabulary', 'children']), st.sampled_from([0, 1, 6]))
def test_prefixes_that_cannot_lead_to_the_best_are_left_out(seed, k, alpha, exclude, normalize, few):
    rng = np.random.default_rng(seed)
    model = packed(Identifiers.from_codes(rng.integers(0, 7, (60, 3)), policy='keep'), d_model=8, softmax='children', prior='trie', counts=rng.zipf(1.5, 60))
    history, gain = torch.from_numpy(rng.integers(-1, 60, (5, 12))).sort().values, information_gain(model.tries[0], item_prior(np.ones(60)))
    history[:, -1] = 7
    model.config.max_items, config = 12, DecodeConfig(alpha=alpha, exclude_seen=exclude, normalize=normalize)
    model.place = torch.nn.Embedding(12, 8)
    full = whole(model, history, config=config, gain=gain)[0]
    if exclude: full = full.masked_fill(torch.nn.functional.one_hot(history.clamp(min=0), 60).masked_fill((history < 0)[..., None], 0).sum(1) > 0, -torch.inf)
    with some_levels_open(few): items, scores = exact_search(model, history, k, config, gain)
    torch.testing.assert_close(scores, full.topk(k).values)
    torch.testing.assert_close(full.gather(1, items), scores)

@pytest.mark.parametrize('k', [5, 300, 380])
@pytest.mark.parametrize('few', [0, 30, 10**6])
def test_items_that_the_trie_lacks_come_out_of_no_search(k, few):
    "The last ones among them, asked for more than are left, with and without open levels"
    rng = np.random.default_rng(0)
    ids, gone = Identifiers.from_codes(rng.integers(0, 12, (400, 3)), policy='keep'), np.r_[rng.choice(390, 60, replace=False), np.arange(390, 400)]
    model = packed(ids, d_model=8, softmax='children')
    with torch.no_grad():
        for t in (*model.codes, model.place): t.weight.mul_(4)
    model.set_items(ids, [ItemTrie.build(ids, np.setdiff1d(np.arange(400), gone))])
    every = next(exact_scores(model, HISTORY, DecodeConfig(exclude_seen=False)))
    with some_levels_open(few): items, scores = exact_search(model, HISTORY, k, DecodeConfig(exclude_seen=False))
    full = torch.stack([x for _, x in sorted(zip(every.rows.tolist(), every.logp[0]))])
    n = min(k, 400 - len({*gone.tolist()}))
    assert not np.isin(items, gone).any() and ((items >= 0).sum(1) == n).all()
    torch.testing.assert_close(scores[:, :n], full.topk(n).values, atol=1e-4, rtol=1e-4)

def test_few_items_are_scored_to_their_end():
    rng = np.random.default_rng(0)
    model = packed([Identifiers.from_codes(rng.integers(0, 30, (2000, 3)), policy='keep') for _ in range(2)], d_model=8, softmax='children')
    with torch.no_grad():
        for t in (*model.codes, model.place): t.weight.mul_(4)
    asked, ours = [], exact_module._Scorer.of_items
    def count(self, level, user, *args): asked.append(len(user)); return ours(self, level, user, *args)
    with some_levels_open(30), mock.patch.object(exact_module._Scorer, 'of_items', count):
        items, _ = exact_search(model, HISTORY, 5, exact=ExactConfig('mixture'))
    first, last = asked[:2], asked[2:]                          # one open level of each identifier, for the floor and for the rest
    assert first == [3*(2000//75)]*2 and len(last) == 2 and last[1] <= last[0] < .1*3*2000
    assert torch.equal(items, exact_search(model, HISTORY, 5, exact=ExactConfig('mixture'))[0])

@few
@given(st.integers(0, 99), st.integers(1, 30), st.sampled_from(['product', 'mixture']), st.booleans(), st.sampled_from([0., .3, 1.]), st.booleans(), st.sampled_from([0, 1, 6]))
def test_bounds_of_several_identifiers(seed, k, how, exclude, rules, cold, few):
    "Brute force: all scores, combined, mixed with the rules, sorted"
    rng, n = np.random.default_rng(seed), 40
    ids = [Identifiers.from_codes(rng.integers(0, s, (n, 3)), policy='keep') for s in (3, 4)]
    absent = [3, 17, 39] if cold else []
    codes = np.arange(n)
    codes[absent] = [5, 6, 5][:len(absent)]                                      # the numbers of others, without a share
    own = Identifiers.from_codes(codes[:, None], policy='keep')
    own.notes['absent'] = absent
    model = packed([*ids, own], counts=np.arange(n), softmax='children', prior='trie')
    assert cold == (model.reached is not None)
    history = torch.from_numpy(rng.integers(0, n, (6, 4)))
    config, way = DecodeConfig(exclude_seen=exclude), ExactConfig(how, weights=(.5, .2, .3), rules=rules)
    if rules: model.rules = SequentialRules(sparse.random_array((n, n), density=.05, random_state=rng, dtype=np.float32).tocsr())
    full = combine(whole(model, history, config=config), way, model.reached)
    if rules: full = interpolate(full, model.rules(history), rules)
    if exclude: full = full.scatter(1, history, -torch.inf)
    want = full.topk(k).values
    for scores in (True, False):
        with some_levels_open(few): items, got = exact_search(model, history, k, config, exact=way, scores=scores)
        if scores or how == 'mixture' and not cold: torch.testing.assert_close(got, want, atol=1e-4, rtol=1e-4)
        found = torch.where(items < 0, -torch.inf, full.gather(1, items.clamp(min=0)))
        torch.testing.assert_close(found, want, atol=1e-4, rtol=1e-4)

def test_colliding_items_come_in_the_order_of_the_trie():
    model = packed(Identifiers.from_codes(np.array([[0, 0], [1, 1], [0, 0], [1, 0], [1, 1], [0, 0]]), policy='keep'))
    config = DecodeConfig(exclude_seen=False)
    for k in (2, 3, 6): assert torch.equal(exact_search(model, HISTORY, k, config)[0], recommend(model, model.tries[0], HISTORY, k, config)[0])

def test_colliding_items_by_count_then_at_random():
    "Never by number: the same catalog renumbered gives the same list but for equal counts"
    table, counts = np.array([[0, 0], [1, 1]])[np.arange(30) % 2], np.arange(30) // 6
    model = packed(Identifiers.from_codes(table, policy='keep'), softmax='children', prior='trie', counts=counts)
    items, scores = exact_search(model, HISTORY, 30, DecodeConfig(exclude_seen=False))
    for row in items.tolist():
        for path in (0, 1):
            same = [i for i in row if i % 2 == path]
            assert [counts[i] for i in same] == sorted(counts[path::2], reverse=True)
            assert same != sorted(same, key=lambda i: (-counts[i], i))

@few
@given(st.lists(st.integers(-1, 2), min_size=3, max_size=12), st.integers(1, 12))
def test_first_topk(row, k):
    x = torch.tensor([row, row[::-1]], dtype=torch.float).masked_fill(torch.tensor([row, row[::-1]]) < 0, -torch.inf)
    for a, b in zip(x, _first_topk(x, k)): assert b.tolist() == sorted(range(len(a)), key=lambda i: -a[i])[:k]

def three(n=25, softmax='children', **config):
    rng = np.random.default_rng(3)
    ids = [Identifiers.from_codes(rng.integers(0, s, (n, 3)), policy='extra') for s in (3, 4)]
    return packed([*ids, Identifiers.from_codes(np.arange(n)[:, None], policy='keep')], counts=np.arange(n), softmax=softmax, **config)

def test_the_mode_comes_back_before_the_generator_is_read_to_its_end():
    model = three().train()
    scores = exact_scores(model, torch.randint(0, 25, (40, 5)), DecodeConfig(memory=20_000))
    next(scores)
    assert model.training
    model.last_hidden = None
    with pytest.raises(TypeError): next(scores)
    assert model.training

def test_chunks_change_nothing():
    model, history = three(prior='trie'), torch.randint(0, 25, (40, 5), generator=torch.Generator().manual_seed(0))
    want = exact_search(model, history, 5)
    for memory in (20_000, 60_000):
        parts = list(exact_scores(model, history, DecodeConfig(memory=memory)))
        assert len(parts) > 1 and torch.equal(torch.cat([p.rows for p in parts]).sort().values, torch.arange(40))
        got = exact_search(model, history, 5, DecodeConfig(memory=memory))
        assert torch.equal(got[0], want[0])
        torch.testing.assert_close(got[1], want[1])

def test_refusals():
    model = three()
    with pytest.raises(SettingError, match='memory is 2,000: give more'): exact_search(model, HISTORY, config=DecodeConfig(memory=2000))
    with pytest.raises(SettingError, match="min_max='prefix'"): exact_search(model, HISTORY, config=DecodeConfig(min_max='step'))
    with pytest.raises(GenrecError, match='needs the gains'): exact_search(model, HISTORY, config=DecodeConfig(alpha=.2))
    with pytest.raises(GenrecError, match='needs an assistant'): exact_search(model, HISTORY, config=DecodeConfig(assistant_weight=.2))
    with pytest.raises(SettingError, match='needs the item decoder'): exact_search(t5(Identifiers.random(9, 2, 3)), HISTORY)
    for bad in (HISTORY.tolist(), HISTORY.numpy(), HISTORY[0], HISTORY.float()):
        for search in (exact_search, lambda *a: next(exact_scores(*a))):
            with pytest.raises(SettingError, match=r'expected an int64 tensor \[users, items\]'): search(model, bad)
    for fit in (fit_weights, fit_rules):
        with pytest.raises(SettingError, match="did you mean 'likelihood'"): fit(model, None, by='likelyhood')
    with pytest.raises(SettingError, match='expected 3 numbers'): exact_search(model, HISTORY, exact=ExactConfig(weights=(1., 1.)))

@pytest.mark.parametrize('item, target, known, message', [(7, 25, False, 'item 25 as a target'), (25, 3, False, 'item 25 in a history'),
                                                          (-2, 3, False, 'item -2 in a history'), (7, -1, True, 'item -1 as a target')])
def test_items_without_a_path_are_refused(item, target, known, message):
    "By everything that reads cases, whatever the model; an unknown target (-1) can be ranked, but has no likelihood"
    ids = Identifiers.from_codes(np.arange(25)[:, None], policy='keep')
    cases = Cases(np.arange(2), np.array([1, 2, item]), np.array([0, 2, 3]), np.array([4, target]))
    for model in (packed(ids), t5(ids)):
        trie = ItemTrie.build(ids)
        nats = [lambda: item_nats(model, cases), lambda: fit_weights(model, cases)] if hasattr(model, 'last_hidden') else []
        ranks = [lambda: _rank_cases(model, trie, cases)] + [lambda: rank_exact(model, cases)]*bool(nats)
        for f in nats + [lambda: _case_ce(model, cases)] + ranks*(not known):
            with pytest.raises(GenrecError, match=f'found {message}, but the catalog has 25 items') as e: f()
            assert '\n' not in str(e.value)
        if known: assert all(len(f()) == 2 for f in ranks)
    for f in (item_nats, rank_exact):
        with pytest.raises(SettingError, match='expected Cases, such as split.test; found list'): f(packed(ids), [[1, 2]])

@pytest.mark.parametrize('how', ['product', 'mixture'])
def test_combinations_by_hand(how):
    logp = torch.randn(3, 2, 6).log_softmax(-1)
    p, w = logp.exp().numpy(), np.array([.2, .5, .3])
    want = np.einsum('k,kbn->bn', w, p) if how == 'mixture' else np.prod(p**w[:, None, None], 0)
    got = combine(logp, ExactConfig(how, tuple(w)))
    np.testing.assert_allclose(got.exp(), want/want.sum(-1, keepdims=True), rtol=1e-4)
    assert torch.equal(combine(logp[:1]), logp[0])
    torch.testing.assert_close(combine(logp, ExactConfig(how, (0., 1., 0.))), logp[1])

@few
@given(st.integers(0, 999), st.integers(2, 4), st.sampled_from([1., 10., 40.]))
def test_what_an_untrained_token_costs(seed, K, scale):
    "A mixture at most ln 1/w beyond each identifier, a product at most the weighted mean of the nats, whatever the other says"
    rng = torch.Generator().manual_seed(seed)
    logp, w = (scale*torch.randn(K, 3, 9, generator=rng, dtype=torch.double)).log_softmax(-1), torch.rand(K, generator=rng, dtype=torch.double) + .01
    w, weights = w/w.sum(), tuple((w/w.sum()).tolist())
    assert (-combine(logp, ExactConfig('mixture', weights)) <= (-logp - w.log()[:, None, None]).min(0).values + 1e-9).all()
    assert (-combine(logp, ExactConfig('product', weights)) <= (w[:, None, None]*-logp).sum(0) + 1e-9).all()

def test_a_count_that_is_given_later_moves_the_prior_alone():
    "A new item with the mean count of its siblings starts with them; no weight changes"
    counts, ids = np.array([9, 9, 0, 9, 9]), Identifiers.from_codes(np.array([[0, 0], [0, 1], [0, 2], [1, 0], [1, 1]]), policy='keep')
    model = packed(ids, softmax='children', prior='trie', counts=counts)
    for p in (*model.bias, *(e.weight for e in model.codes)): p.data.zero_()
    before = {k: v.clone() for k, v in model.state_dict().items() if k != 'counts'}
    history = torch.tensor([[0, 3]])
    p = whole(model, history, config=DecodeConfig(exclude_seen=False))[0, 0].exp()
    torch.testing.assert_close(p, torch.tensor([10., 10., 1., 10., 10.])/41)
    model.counts[2] = 9
    p = whole(model.set_items(ids), history, config=DecodeConfig(exclude_seen=False))[0, 0].exp()
    torch.testing.assert_close(p, torch.full((5,), .2))
    assert all(torch.equal(v, model.state_dict()[k]) for k, v in before.items())

def test_several_identifiers_rank_by_their_combination():
    model = three(prior='trie')
    logp = whole(model, HISTORY)
    for exact in (ExactConfig(), ExactConfig('mixture', (1., 2., 3.))):
        total = combine(logp, exact).scatter(1, HISTORY.clamp(min=0), torch.tensor(-torch.inf).expand(3, 4))
        for u in (1, 2): total[u, 0] = combine(logp, exact)[u, 0]                      # the padding of these histories
        assert torch.equal(exact_search(model, HISTORY, 4, exact=exact)[0], total.topk(4).indices)

def cases(n=25, users=60):
    rng = np.random.default_rng(0)
    return Cases(np.arange(users), rng.integers(0, n, 3*users), np.arange(users + 1)*3, rng.integers(0, n, users))

def test_nats_and_fitted_weights():
    model, valid = three(), cases()
    logp = whole(model, torch.from_numpy(valid.tail(3)))
    own = combine(logp).gather(1, torch.from_numpy(valid.targets)[:, None])
    assert item_nats(model, valid) == pytest.approx(-own.mean().item(), rel=1e-4)
    for how in ('product', 'mixture'):
        fitted, equal = fit_weights(model, valid, ExactConfig(how)), ExactConfig(how)
        assert item_nats(model, valid, fitted) < item_nats(model, valid, equal)
    assert rank_exact(model, valid, 7).shape == (60, 7)

def test_where_no_identifier_is_better_than_chance_they_weigh_the_same():
    "The best product then weighs nothing, which ranks nothing"
    sure = torch.full((2, 3, 4), -30.)
    sure[:, :, 0] = -1e-9                                    # certain, and always wrong
    scores = ValidationScores(sure.log_softmax(2), torch.tensor([1, 2, 3]))
    assert max(_fit(scores.logp, scores.targets, 'product')) < 1e-3
    assert fit_weights(None, scores, ExactConfig('product')).weights == (.5, .5)


def slow_ndcg(scores, targets):
    "By sorting each list; an equal score stands before the target"
    out = []
    for row, t in zip(scores.tolist(), targets.tolist()):
        rank = sum(x >= row[t] for x in row) - 1
        out.append(1/math.log2(rank + 2) if rank < 10 else 0.)
    return out

@pytest.mark.parametrize('how', ['mixture', 'product'])
@pytest.mark.parametrize('seed', range(5))
def test_selected_weights_are_the_best_that_greedy_addition_finds(how, seed):
    "By a loop over sums, without the seen items; at least as good as each identifier alone and as equal weights of two"
    g = torch.Generator().manual_seed(seed)
    logp, targets = torch.randn(3, 30, 40, generator=g).mul(2).log_softmax(2), torch.randint(0, 40, (30,), generator=g)
    seen = torch.randint(-1, 40, (30, 4), generator=g)
    seen[seen == targets[:, None]] = -1
    def value(w):
        total = sum(x*(l.double().exp() if how == 'mixture' else l.double()) for x, l in zip(w, logp))
        for u in range(30):
            for i in seen[u].tolist():
                if i >= 0: total[u, i] = -torch.inf
        return np.mean(slow_ndcg(total, targets))
    taken, path = [0, 0, 0], []
    for _ in range(20):
        tries = [[n + (j == k) for j, n in enumerate(taken)] for k in range(3)]
        values = [value(t) for t in tries]
        taken = tries[int(np.argmax(values))]
        path.append((max(values), [n/sum(taken) for n in taken]))
    w = _selected(logp, targets, how, seen)
    best = max(v for v, _ in path)
    assert value(w) == pytest.approx(best, abs=2e-3) and best >= max(value(x) for x in np.eye(3).tolist()) - 1e-9
    if how == 'mixture': assert sum(w) == pytest.approx(1)
    else:
        by = ExactConfig('product', tuple(w))
        nats = lambda c: -combine(logp, replace(by, weights=tuple(c*x for x in w))).gather(1, targets[:, None]).mean()
        assert nats(1) <= min(nats(.8), nats(1.25)) + 1e-4       # the common factor is the most likely one

def test_weights_by_ndcg_of_a_model():
    model, valid = three(), cases()
    for how in ('product', 'mixture'):
        w = fit_weights(model, valid, ExactConfig(how), 'ndcg@10', exclude_seen=False)
        ranks = lambda c: np.mean(slow_ndcg(combine(whole(model, torch.from_numpy(valid.tail(3))), c), torch.from_numpy(valid.targets)))
        assert ranks(w) >= max(ranks(ExactConfig(how, x)) for x in ((1., 0, 0), (0, 1., 0), (0, 0, 1.))) - 5e-3

def test_weights_find_the_expert():
    "One identifier knows the targets, the other is noise"
    targets = torch.arange(40) % 8
    good = torch.nn.functional.one_hot(targets, 8).float()*2 + torch.randn(40, 8, generator=torch.Generator().manual_seed(0))
    logp = torch.stack([good, torch.randn(40, 8, generator=torch.Generator().manual_seed(1))*3]).log_softmax(-1)
    for how in ('product', 'mixture'): w = _fit(logp, targets, how); assert w[0] > 5*w[1]


def test_colliding_items_share_their_path_without_a_prior():
    "All items together have probability 1, as with a prior; over the vocabulary nothing is shared"
    ids = Identifiers.from_codes([[0, 0]]*3 + [[0, 1], [1, 0], [1, 1]], policy='keep')
    model = item_decoder(ids, d_model=16, num_heads=2, softmax='children').eval()
    (found,) = exact_scores(model, torch.tensor([[1, 4]]), DecodeConfig(exclude_seen=False))
    torch.testing.assert_close(found.logp.exp().sum(-1), torch.ones(1, 1))
    torch.testing.assert_close(found.logp[0, 0, :3], found.logp[0, 0, :1].expand(3))
    assert item_decoder(ids, d_model=16, num_heads=2).trees[0].share.eq(0).all()


def test_weights_are_fitted_with_items_that_an_identifier_lacks():
    "An item that only one identifier reaches changes nothing for the others, and breaks no gradient"
    logp = torch.randn(2, 30, 8, generator=torch.Generator().manual_seed(0)).log_softmax(-1)
    targets = torch.arange(30) % 7
    gone = logp.clone()
    gone[0, :, 7] = -torch.inf
    for how in ('product', 'mixture'):
        fitted, plain = _fit(gone, targets, how), _fit(logp[..., :7].contiguous(), targets, how)
        assert np.isfinite(fitted).all()
        if how == 'product': np.testing.assert_allclose(fitted, plain, atol=1e-3)
