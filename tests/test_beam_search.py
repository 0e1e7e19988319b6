"""Beam search against a slow search in loops, and against scoring the whole catalog."""
import itertools, math
import numpy as np
import pytest
import torch
from hypothesis import given, strategies as st
from genrec_nb.core import GenrecError
from genrec_nb.beam_search import Beams, DecodeConfig, _merge_finished, _stable_topk, _assistant_logp, _assistant_mass, beam_search, decoding_weights, _exhausted_prefixes, recommend, recommend_each
from genrec_nb.semantic_ids import Identifiers, EOS
from genrec_nb.infogain import information_gain, item_prior
from genrec_nb.trie import ItemTrie, _find_keys
import oracles
from oracles import DictTrie, all_logp, few, identifiers, packed, t5, tables, tables_with_counts

TOL = 2e-4

def codes(n=40, sizes=(4, 3, 4), seed=0): return Identifiers.from_codes(np.random.default_rng(seed).integers(0, sizes, (n, len(sizes))), list(sizes), 'keep')

def titles(n=40, seed=0):
    "Ragged paths with EOS, some shared, some the beginning of others but for the EOS"
    rng = np.random.default_rng(seed)
    return identifiers([rng.integers(3, 7, rng.integers(1, 6)).tolist() + [EOS] for _ in range(n)], 7)

def users(n_items, n=3, width=5, seed=0):
    rng = np.random.default_rng([seed, 1])
    history = torch.from_numpy(rng.integers(0, n_items, (n, width)))
    for u in range(n): history[u, :rng.integers(0, width)] = -1
    return history

def setup(ids, seed=0, zeros=.2):
    "Array trie, dictionary trie, gains of both kinds of reckoning"
    rng = np.random.default_rng([seed, 2])
    p = item_prior(rng.integers(1, 50, ids.n_items)*(rng.random(ids.n_items) > zeros))
    trie, d = ItemTrie.build(ids), DictTrie([ids.path(i).tolist() for i in range(ids.n_items)])
    return trie, d, information_gain(trie, p), oracles.gain(d, p.tolist(), 'global')

def same_list(a, b, tol=TOL):
    "Two ranked lists of (path, score): equal scores place by place, equal paths but inside ties"
    assert len(a) == len(b)
    if b and b[0][1] is None: return a[0][0] == b[0][0] or pytest.fail(f'{a[0][0]} is not {b[0][0]}')
    np.testing.assert_allclose([s for _, s in a], [s for _, s in b], atol=tol, rtol=0)
    for _, tie in itertools.groupby(range(len(a)), key=lambda i, g=np.cumsum([0] + [x - y > tol for (_, x), (_, y) in zip(a, a[1:])]): g[i]):
        tie = list(tie)
        if tie[-1] < len(a) - 1 or len(tie) == 1: assert {a[i][0] for i in tie} == {b[i][0] for i in tie}

def found(d, beams):
    "Ranked (path, score) of each user"
    return [[(d.branches[n].prefix, s) for n, s in zip(row, score) if n >= 0] for row, score in zip(beams.nodes.tolist(), beams.scores.tolist())]


MODELS = dict(t5=(t5, codes, False), titles=(t5, titles, False), packed=(packed, codes, True))
models = pytest.mark.parametrize('which', MODELS)


# ---- against a slow search ----------------------------------------------------------------------------------------

def slow_search(logps, d, seen, gains, c):
    "The definition, one user, one prefix at a time: ranked (path, score); `logps` from `all_logp`"
    left = lambda b: not c.exclude_seen or any(i not in seen for i in b.items)
    running, done, depth = [((), 0.)], [], max(map(len, d.paths))
    for length in range(1, depth + 1):
        candidates = []
        for prefix, score in running:
            logp, b = logps[prefix], d.branches[d.number[prefix]]
            kids = [k for t in sorted(b.kids) if left(k := b.kids[t])]
            if c.normalize == 'children' and kids:
                whole = torch.logsumexp(torch.stack([logp[k.prefix[-1]] for k in kids]), 0)
                logp = logp - whole
            everyone = [gains[d.number[k.prefix]] for k in b.kids.values()]      # the range of a prefix knows nothing of users
            candidates += [(k.prefix, score, float(logp[k.prefix[-1]]), gains[d.number[k.prefix]], min(everyone), max(everyone)) for k in kids]
        if not candidates: break
        if c.min_max == 'step': candidates = [(*x[:4], min(y[3] for y in candidates), max(y[3] for y in candidates)) for x in candidates]
        weigh = lambda g, low, high: 1 - c.alpha*(g - low)/(high - low) if high > low else 1.
        scored = sorted(((p, s + weigh(g, low, high)*lp) for p, s, lp, g, low, high in candidates), key=lambda x: -x[1])[:2*c.beams]
        ends = lambda p: not d.branches[d.number[p]].kids
        done += [(p, s/length**c.length_penalty) for r, (p, s) in enumerate(scored) if ends(p) and r < c.beams]
        running = [(p, s) for p, s in scored if not ends(p)][:c.beams]
        if not running: break
    return sorted(done, key=lambda x: -x[1])[:c.beams]

OPTIONS = list(itertools.product(('vocabulary', 'children'), ('prefix', 'step'), (False, True), (0., .3, 1.)))

@pytest.mark.parametrize('which, n', [(w, n) for k, w in enumerate(MODELS) for n in range(24) if w == 'packed' or n % 3 == (n//3 + k) % 3])
def test_every_option_against_a_slow_search(which, n):
    make, table, _ = MODELS[which]
    normalize, min_max, exclude, alpha = OPTIONS[n]
    ids = table(n=20, seed=n)
    model, history = make(ids, n), users(ids.n_items, n=2, seed=n)
    trie, d, gain, slow_gain = setup(ids, n)
    seen = torch.from_numpy(np.random.default_rng(n).integers(-1, 20, (2, 10)))
    logps = [all_logp(model, h, d.paths) for h in history.tolist()]
    for k, penalty in ((1, 0.), (4, 1.), (9, 0.), (40, 1.)):
        c = DecodeConfig(beams=k, alpha=alpha, length_penalty=penalty if which == 'titles' else 0., normalize=normalize, min_max=min_max, exclude_seen=exclude)
        ours = found(d, beam_search(model, trie, history, c, gain, seen))
        for u in range(2): same_list(ours[u], slow_search(logps[u], d, set(seen[u].tolist()), slow_gain, c))

@pytest.mark.parametrize('seed', range(3))
@pytest.mark.parametrize('penalty', [2., .7, -.3, -1.])
def test_the_search_stops_only_when_nothing_better_can_come(seed, penalty):
    "One user, so that nobody else keeps the search alive; the slow search never stops early"
    ids = titles(n=30, seed=seed)
    model, history = t5(ids, seed), users(30, n=1, seed=seed)
    trie, d, gain, slow_gain = setup(ids, seed)
    logps = all_logp(model, history[0].tolist(), d.paths)
    for k in (1, 2, 3):
        c = DecodeConfig(beams=k, length_penalty=penalty, exclude_seen=False)
        same_list(found(d, beam_search(model, trie, history, c))[0], slow_search(logps, d, set(), slow_gain, c))

class Bigrams:
    "The next token depends on the last one; token 0 begins"
    def __init__(self, table): self.logp = torch.tensor(table).log()
    def prefill(self, history): return self.logp[0].expand(len(history), 1, -1), None
    def decode_step(self, state, tokens, parents): return self.logp[tokens]

def test_a_negative_length_penalty_by_hand():
    "k = 2: [3] ends with .3, [4 5] with .69*.2, [4 6 7] with .69*.6*.99 in thrice the length: better than ln(.138)*2, though seven tokens would not be"
    table = np.full((9, 9), 1e-6)
    table[0, [3, 4]], table[4, [5, 6]], table[6, [7, 8]] = (.3, .69), (.2, .6), (.99, .01)
    ids = identifiers([[3], [4, 5], [4, 6, 7], [4, 6, 8, 8, 8, 8, 8]])
    trie, d = ItemTrie.build(ids), DictTrie([[3], [4, 5], [4, 6, 7], [4, 6, 8, 8, 8, 8, 8]])
    got = found(d, beam_search(Bigrams(table/table.sum(1, keepdims=True)), trie, torch.tensor([[0]]), DecodeConfig(2, length_penalty=-1., exclude_seen=False)))[0]
    assert [p for p, _ in got] == [(3,), (4, 6, 7)]
    p = [math.log(.3/.99), 3*math.log(.69/.99*.6/.8*.99)]
    np.testing.assert_allclose([s for _, s in got], p, atol=1e-2)

@models
def test_alpha_zero_is_plain_beam_search(which):
    "The gains do not matter, nor does their range"
    make, table, _ = MODELS[which]
    ids = table()
    model, history = make(ids), users(ids.n_items)
    trie, _, gain, _ = setup(ids)
    plain = recommend(model, trie, history, 10, DecodeConfig(beams=10))
    for min_max in ('prefix', 'step'):
        for g in (gain, torch.rand_like(gain)):
            for a, b in zip(recommend(model, trie, history, 10, DecodeConfig(beams=10, alpha=0., min_max=min_max), g), plain): assert torch.equal(a, b)


# ---- against the whole catalog ----------------------------------------------------------------------------------

def score_catalog(model, d, history, gains, alpha):
    "Score of each item's path, from the training pass: {path: score}"
    logp, out = all_logp(model, history, d.paths), {}
    for path in set(d.paths):
        total = 0.
        for n, t in enumerate(path):
            prefix = path[:n]
            g = [gains[d.number[(*prefix, s)]] for s in d.allowed(prefix)]
            f = (gains[d.number[path[:n + 1]]] - min(g))/(max(g) - min(g)) if max(g) > min(g) else 0.
            total += (1 - alpha*f)*float(logp[prefix][t])
        out[path] = total
    return out

@models
@pytest.mark.parametrize('seed, alpha', [(0, 0.), (1, .3), (2, 0.), (3, .7)])
def test_wide_beams_rank_the_whole_catalog(which, seed, alpha):
    "Every item, seen ones left out, collisions by item number"
    make, table, _ = MODELS[which]
    ids = table(n=25, seed=seed)
    model, history = make(ids, seed), users(ids.n_items, n=2, seed=seed)
    trie, d, gain, slow_gain = setup(ids, seed)
    seen = torch.from_numpy(np.random.default_rng(seed).integers(-1, ids.n_items, (2, 15)))
    exact = [score_catalog(model, d, h, slow_gain, alpha) for h in history.tolist()]
    for exclude in (False, True):
        items, scores = recommend(model, trie, history, ids.n_items, DecodeConfig(beams=200, alpha=alpha, exclude_seen=exclude), gain, seen)
        for u, by_path in enumerate(exact):
            want = sorted((-by_path[d.paths[i]], d.paths[i], i) for i in range(ids.n_items) if not exclude or i not in seen[u].tolist())
            n = len(want)
            assert (items[u, n:] == -1).all() and (scores[u, n:] == -torch.inf).all()
            same_list(list(zip(items[u, :n].tolist(), scores[u, :n].tolist())), [(i, -s) for s, _, i in want])
            for path in set(d.paths):                                           # colliding items stand together, by number
                at = [r for r, i in enumerate(items[u, :n].tolist()) if d.paths[i] == path]
                assert not at or (at == list(range(at[0], at[-1] + 1)) and (row := items[u, at].tolist()) == sorted(row))


# ---- what users have seen -----------------------------------------------------------------------------------------

@few
@given(tables(), st.data())
def test_exhausted_prefixes_by_counting(paths, data):
    t, d = ItemTrie.build(identifiers(paths)), DictTrie(paths)
    seen = data.draw(st.lists(st.lists(st.integers(-1, len(paths) - 1), min_size=6, max_size=6), min_size=1, max_size=3))
    want = [u*t.n_nodes + n for u, row in enumerate(seen) for n, b in enumerate(d.branches) if set(b.items) <= set(row)]
    got = _exhausted_prefixes(t, torch.tensor(seen))
    assert got.tolist() == want
    keys = torch.arange(-1, len(seen)*t.n_nodes + 1)
    assert _find_keys(got, keys)[1].tolist() == [k in want for k in keys.tolist()]

@models
def test_nearly_everything_seen(which):
    "A user with one unseen item, one with none, one with all but half a collision: a beam of 1 finds what is left"
    make, table, _ = MODELS[which]
    ids = table()
    model, (trie, d, gain, _) = make(ids), setup(table())
    twin = next(i for i, p in enumerate(d.paths) if d.paths.count(p) > 1)
    N = ids.n_items
    seen = torch.tensor([[i if i != 7 else -1 for i in range(N)], list(range(N)), [i if i != twin else 0 for i in range(N)]])
    for k in (1, 20):
        for alpha, *options in ((0., 'vocabulary', 'prefix'), (0., 'children', 'step'), (1., 'vocabulary', 'step'), (1., 'children', 'prefix')):
                items, scores = recommend(model, trie, users(N), 5, DecodeConfig(k, alpha, 0., *options), gain, seen)
                assert items.tolist() == [[7, -1, -1, -1, -1], [-1]*5, [twin, -1, -1, -1, -1]] and not scores.isnan().any()

@models
def test_no_user_gets_what_was_seen_and_no_item_comes_twice(which):
    make, table, _ = MODELS[which]
    ids = table(n=60)
    model, (trie, _, gain, _) = make(ids), setup(table(n=60))
    history = users(60, n=16)
    for k in (1, 3, 30):
        items, scores = recommend(model, trie, history, 10, DecodeConfig(beams=k, alpha=.3), gain, batch_size=7)
        for row, h in zip(items.tolist(), history.tolist()):
            real = [i for i in row if i >= 0]
            assert len(set(real)) == len(real) and not set(real) & set(h) and row == real + [-1]*(10 - len(real))
        assert (scores.diff(dim=1)[items[:, 1:] >= 0] <= 0).all()


# ---- shapes and edges ---------------------------------------------------------------------------------------------

@models
def test_batches_do_not_matter(which):
    make, table, _ = MODELS[which]
    ids = table()
    model, (trie, _, gain, _) = make(ids), setup(table())
    history = users(ids.n_items, n=9)
    whole = recommend(model, trie, history, 10, DecodeConfig(beams=12, alpha=.2), gain)
    pieces = recommend(model, trie, history, 10, DecodeConfig(beams=12, alpha=.2), gain, batch_size=2)
    assert torch.equal(whole[0], pieces[0])
    torch.testing.assert_close(whole[1], pieces[1], atol=1e-5, rtol=0)
    none = recommend(model, trie, history[:0], 10)
    assert none[0].shape == none[1].shape == (0, 10)

@pytest.mark.parametrize('paths', [[[3]], [[3, 4]], [[3, 4]]*3, [[3], [4], [5]], [[3, 5], [4, 5], [3, 6]]])
def test_tiny_catalogs_and_more_beams_than_paths(paths):
    ids = identifiers(paths)
    trie = ItemTrie.build(ids)
    gain = information_gain(trie, item_prior([1]*len(paths)))
    for make in (t5, packed) if len(paths[0]) == 1 or paths[0][1] != paths[-1][0] else (t5,):
        for alpha in (0., 1.):
            items, scores = recommend(make(ids), trie, torch.tensor([[0]]), 6, DecodeConfig(beams=50, alpha=alpha, exclude_seen=False), gain)
            assert sorted(items[0].tolist()) == [-1]*(6 - len(paths)) + list(range(len(paths))) and scores[0, :len(paths)].isfinite().all()
            items, _ = recommend(make(ids), trie, torch.tensor([[0]]), 6, DecodeConfig(beams=50, alpha=alpha), gain)
            assert sorted(items[0].tolist()) == [-1]*(7 - len(paths)) + list(range(1, len(paths)))

def test_dropout_is_off_and_the_mode_comes_back():
    ids = codes()
    model, trie, history = packed(ids, dropout=.5).train(), ItemTrie.build(ids), users(40)
    a, b = recommend(model, trie, history, 5), recommend(model, trie, history, 5)
    assert torch.equal(a[0], b[0]) and torch.equal(a[1], b[1]) and model.training and model.blocks[0].training

@few
@given(st.integers(0, 10**6), st.integers(1, 12))
def test_stable_topk_sorts_and_breaks_ties_by_place(seed, k):
    x = torch.from_numpy(np.random.default_rng(seed).integers(0, 12, (3, 10))).float()
    values, places = _stable_topk(x, k)
    for row, v, p in zip(x.tolist(), values.tolist(), places.tolist()):
        assert v == sorted(row, reverse=True)[:k] and v == [row[i] for i in p] and len(set(p)) == len(p)
        assert all(a > b or i < j for a, b, i, j in zip(v, v[1:], p, p[1:]))

def test_merge_finished_keeps_the_best_of_both():
    done = Beams(torch.tensor([[5, -1]]), torch.tensor([[-2., -torch.inf]]))
    out = _merge_finished(done, torch.tensor([[7, 8, 9]]), torch.tensor([[-1., -torch.inf, -3.]]))
    assert out.nodes.tolist() == [[7, 5]] and out.scores.tolist() == [[-1., -2.]]

@few
@given(tables_with_counts(), st.sampled_from([0., .25, 1.]))
def test_decoding_weights_by_definition(case, alpha):
    paths, counts = case
    p = item_prior(np.array(counts))
    t, d = ItemTrie.build(identifiers(paths)), DictTrie(paths)
    gains, w = oracles.gain(d, p.tolist(), 'global'), decoding_weights(t, information_gain(t, p), alpha)
    assert w.dtype == torch.float and w[0] == 1
    for b in d.branches:
        g = [gains[d.number[k.prefix]] for k in b.kids.values()]
        for k, x in zip(b.kids.values(), g):
            want = 1 - alpha*(x - min(g))/(max(g) - min(g)) if max(g) - min(g) > 1e-9 else 1.
            assert math.isclose(float(w[d.number[k.prefix]]), want, abs_tol=1e-5)

def test_bad_arguments():
    for bad, words in ((dict(beams=0), 'beams'), (dict(alpha=1.5), 'alpha'), (dict(alpha=float('nan')), 'alpha'), (dict(normalize='all'), 'one of vocabulary, children'), (dict(min_max='beam'), 'one of prefix, step')):
        with pytest.raises(GenrecError, match=words): DecodeConfig(**bad)
    ids = codes()
    trie = ItemTrie.build(ids)
    with pytest.raises(GenrecError, match='needs the gains'): recommend(packed(ids), trie, users(40), 5, DecodeConfig(alpha=.1))
    with pytest.raises(GenrecError, match='on this trie'): recommend(packed(ids), trie, users(40), 5, DecodeConfig(alpha=.1), torch.zeros(3))


# ---- assistant log-probabilities ------------------------------------------------------------------------------------------------

def assistant_scores(n_items, n, seed=0): return torch.randn(n, n_items, generator=torch.Generator().manual_seed(seed))*2

def slow_assistant_logp(ids, scores, seen, path):
    "log p(token | prefix) of every token of a path, from dictionaries of Python floats"
    p = {i: math.exp(s) for i, s in enumerate(scores.tolist()) if i not in seen}
    total = sum(p.values())
    below = lambda prefix: sum(v for i, v in p.items() if ids.path(i).tolist()[:len(prefix)] == list(prefix))/total
    return [math.log(below(path[:t + 1])/below(path[:t])) for t in range(len(path))]

@pytest.mark.parametrize('which', ['codes', 'titles'])
@pytest.mark.parametrize('share, alpha, penalty', [(.3, 0., 0.), (.7, .3, 0.), (.5, .2, 1.), (1., 0., 0.)])
def test_assistant_weight_against_hand_computation(which, share, alpha, penalty):
    ids = codes() if which == 'codes' else titles()
    model = (packed if which == 'codes' else t5)(ids)
    trie, d, gain, slow_gain = setup(ids)
    history, scores = users(ids.n_items), assistant_scores(ids.n_items, 3)
    items, got = recommend(model, trie, history, 40, DecodeConfig(beams=60, assistant_weight=share, alpha=alpha, length_penalty=penalty), gain, assistant=scores)
    weights = decoding_weights(trie, gain, alpha)
    for u in range(3):
        logps = all_logp(model, history[u].tolist(), d.paths)
        seen = {i for i in history[u].tolist() if i >= 0}
        assert set(items[u].tolist()) - {-1} == set(range(ids.n_items)) - seen
        for i, s in list(zip(items[u].tolist(), got[u].tolist()))[::7]:
            if i < 0: continue
            path = ids.path(i).tolist()
            lm = [logps[tuple(path[:t])][path[t]].item() for t in range(len(path))]
            w = weights[trie.walk(torch.tensor(path))].tolist()
            want = sum(a*((1 - share)*x + share*y) for a, x, y in zip(w, lm, slow_assistant_logp(ids, scores[u], seen, path)))
            assert s == pytest.approx(want/len(path)**penalty, abs=TOL)

def test_along_a_path_the_assistant_gives_the_items_own_probability():
    "No matter how a title is cut: the assistant alone ranks as it would without tokens"
    ids = identifiers([[3 + i % 3]*(1 + i % 5) + [4 + i // 5, EOS] for i in range(20)], 9)
    trie, scores = ItemTrie.build(ids), assistant_scores(20, 4, seed=3)
    items, got = recommend(t5(ids), trie, torch.full((4, 1), -1), 20, DecodeConfig(beams=20, assistant_weight=1.), assistant=scores)
    want = scores.double().log_softmax(1)
    leaf = torch.tensor([[w[trie.items_below(trie.walk(torch.as_tensor(ids.path(i).astype(np.int64)))[-1:])[0]].logsumexp(0).item() for i in range(20)] for w in want], dtype=torch.float64)
    torch.testing.assert_close(got.double(), leaf.gather(1, items), atol=TOL, rtol=0)
    torch.testing.assert_close(got.double(), leaf.sort(descending=True).values, atol=TOL, rtol=0)

@given(st.integers(0, 10**6))
@few
def test_assistant_probabilities_sum_to_one_over_the_children(seed):
    ids = titles(seed=seed)
    trie = ItemTrie.build(ids)
    mass = _assistant_mass(trie, assistant_scores(ids.n_items, 2, seed))
    inner = torch.nonzero(trie.n_children > 0)[:, 0]
    child = trie.children(inner[None].expand(2, -1))
    total = _assistant_logp(trie, mass, child).exp().masked_fill(child < 0, 0).sum(2)
    torch.testing.assert_close(total, torch.ones_like(total), atol=1e-5, rtol=0)

@pytest.mark.parametrize('make', [packed, t5])
def test_many_searches_are_each_alone(make):
    ids = codes()
    trie, _, gain, _ = setup(ids)
    model, history, scores = make(ids), users(40, n=9), assistant_scores(40, 9)
    configs = [DecodeConfig(beams=8), DecodeConfig(beams=5, alpha=.3), DecodeConfig(beams=8, assistant_weight=.4), DecodeConfig(beams=8, exclude_seen=False)]
    for c, (items, s) in zip(configs, recommend_each(model, trie, history, 6, configs, gain, batch_size=4, assistant=scores)):
        alone, t = recommend(model, trie, history, 6, c, gain, batch_size=4, assistant=scores)
        assert items.tolist() == alone.tolist() and torch.equal(s, t)

@pytest.mark.parametrize('scores, words', [(None, 'needs an assistant'), (torch.zeros(3, 39), 'row of 40 items'), (torch.full((3, 40), torch.nan), 'NaN')])
def test_an_assistant_that_cannot_help(scores, words):
    ids = codes()
    with pytest.raises(GenrecError, match=words): recommend(packed(ids), ItemTrie.build(ids), users(40), 5, DecodeConfig(beams=5, assistant_weight=.5), assistant=scores)
    with pytest.raises(GenrecError, match='assistant_weight is 1.5'): DecodeConfig(assistant_weight=1.5)

def test_a_user_who_has_seen_everything_gets_nothing():
    ids = codes()
    seen = torch.arange(40)[None]
    items, _ = recommend(packed(ids), ItemTrie.build(ids), seen[:, -5:], 5, DecodeConfig(beams=5, assistant_weight=.5), seen=seen, assistant=assistant_scores(40, 1))
    assert items.tolist() == [[-1]*5]
