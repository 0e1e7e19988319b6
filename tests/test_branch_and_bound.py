"""Branch and bound: against beams that lose nothing, brute force and the least work; what is called proved is true."""
import numpy as np
import pytest
import torch
from hypothesis import given, strategies as st
from genrec_nb.beam_search import DecodeConfig, Beams, beam_search, recommend, _Search
from genrec_nb.branch_and_bound import proved_items, proved_search, _improve
from genrec_nb.infogain import information_gain, item_prior
from genrec_nb.semantic_ids import Identifiers
from genrec_nb.trie import ItemTrie
from oracles import all_logp, few, identifiers, t5, tables

class Table:
    "Log-probabilities that depend on user, depth and last token"
    def __init__(self, trie, seed, sharp=2.):
        g = torch.Generator().manual_seed(seed)
        self.z, self.training, self.config = sharp*torch.randn(3, trie.max_depth + 1, trie.vocab_size, trie.vocab_size, generator=g), False, None
    def eval(self): pass
    def train(self, mode): pass
    def prefill(self, history): self.step = 0; self.user = history[:, 0] % 3; return self.z[self.user, 0, :1], None
    def decode_step(self, state, tokens, parents): self.step += 1; return self.z[self.user[:, None], self.step, tokens]

@st.composite
def searches(draw, **more):
    ids = identifiers(draw(tables(max_items=20)), vocab_size=9)
    trie, n = ItemTrie.build(ids), ids.n_items
    history = torch.tensor(draw(st.lists(st.lists(st.integers(0, n - 1), min_size=2, max_size=2), min_size=3, max_size=3)))
    config = DecodeConfig(alpha=draw(st.sampled_from([0., .4])), length_penalty=draw(st.sampled_from([0., 1., -.5])), exclude_seen=draw(st.booleans()),
                          normalize=draw(st.sampled_from(['vocabulary', 'children'])), assistant_weight=draw(st.sampled_from([0., .4])), beams=draw(st.integers(1, 3)), **more)
    how = dict(gain=information_gain(trie, item_prior(np.arange(n) + 1.)), assistant=torch.randn(3, n, generator=torch.Generator().manual_seed(0)))
    return Table(trie, draw(st.integers(0, 99))), trie, history, config, how, draw(st.integers(1, 4))

def truth(model, trie, history, config, how, k):
    return recommend(model, trie, history, k, DecodeConfig(**{**vars(config), 'beams': 200}), **how)

@few
@given(searches())
def test_a_beam_that_loses_nothing(case):
    model, trie, history, config, how, k = case
    found, (items, scores) = proved_items(model, trie, history, k, config, **how), truth(*case)
    assert found.proved.all()
    torch.testing.assert_close(found.scores, scores, atol=1e-4, rtol=1e-4)
    for a, b, s in zip(found.items.tolist(), items.tolist(), scores.tolist()):
        for x, y, z in zip(a, b, s): assert x == y or sum(abs(z - w) < 1e-4 for w in s) > 1 or abs(z - s[-1]) < 1e-4   # equal scores, perhaps with the next

@few
@given(searches(), st.integers(1, 12))
def test_what_is_called_proved_is_the_best_and_the_rest_no_worse_than_the_beam(case, limit):
    model, trie, history, config, how, k = case
    found, (_, scores) = proved_items(model, trie, history, k, DecodeConfig(**{**vars(config), 'expansions': limit}), **how), truth(*case)
    beam = recommend(model, trie, history, k, DecodeConfig(**{**vars(config), 'beams': max(k, config.beams)}), **how)[1]
    assert (found.prefixes <= limit).all()
    torch.testing.assert_close(found.scores[found.proved], scores[found.proved], atol=1e-4, rtol=1e-4)
    assert ((found.scores >= beam - 1e-4) | (beam == -torch.inf)).all()

@pytest.mark.parametrize('eos', [False, True])
def test_a_tiny_t5_against_every_item(eos):
    rng = np.random.default_rng(1)
    paths = [[*map(int, p[:rng.integers(1, 4) if eos else 3] + 3)] + [2]*eos for p in rng.integers(0, 5, (40, 3))]
    ids = identifiers(paths, vocab_size=8)
    model, trie, history = t5(ids, seed=2), ItemTrie.build(ids), torch.tensor([[1, 2], [3, 4], [-1, 9]])
    found = proved_items(model, trie, history, 6, DecodeConfig(beams=2))
    assert found.proved.all()
    for row, h in zip(found.scores, history.tolist()):
        logp = all_logp(model, h, paths)
        every = [sum(float(logp[tuple(p[:t])][x]) for t, x in enumerate(p)) for i, p in enumerate(paths) if i not in h]
        np.testing.assert_allclose(row, sorted(every, reverse=True)[:6], atol=1e-4)

def test_no_more_work_than_any_proof_needs():
    "From the final list on, just the prefixes above its last score are looked at"
    ids = Identifiers.random(60, levels=3, size=5, seed=0)
    trie, history, config = ItemTrie.build(ids), torch.tensor([[0], [1], [2]]), DecodeConfig(exclude_seen=False)
    model = Table(trie, 3)
    best = proved_search(model, trie, history, 4, config).beams
    again = _improve(model, _Search(trie, config), best, *model.prefill(history))
    assert again.proved.all() and torch.equal(again.beams.nodes, best.nodes)
    for u in range(3):
        score = torch.zeros(trie.n_nodes)
        for n in range(1, trie.n_nodes):
            p = int(trie.parent[n])
            last = 0 if p == 0 else int(trie.token[p])
            score[n] = score[p] + model.z[u, trie.node_depth[p], last].log_softmax(0)[trie.token[n]]
        open_ = (trie.n_children[1:] > 0) & (score[1:] > best.scores[u, -1])
        assert int(again.prefixes[u]) == int(open_.sum()) > 3

def test_a_limit_too_small_is_said():
    ids = Identifiers.random(300, levels=3, size=8, seed=0)
    trie, history = ItemTrie.build(ids), torch.arange(3)[:, None]
    model, shares = Table(trie, 0, .5), []
    for limit in (1, 20, 60, 1000):
        found = proved_items(model, trie, history, 5, DecodeConfig(beams=5, expansions=limit))
        shares.append(float(found.proved.float().mean()))
        assert (found.items >= 0).all()
    assert shares[0] == 0 and shares[-1] == 1 and shares == sorted(shares)
