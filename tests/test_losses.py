"""Token losses and weights against loops."""
import math
import numpy as np
import pytest
import torch
from hypothesis import given, strategies as st
from genrec_nb.data import GenrecError
from genrec_nb.infogain import information_gain, item_prior
from genrec_nb.losses import igd_weights, token_nll, uniform_weights, weighted_mean
from genrec_nb.trie import ItemTrie
import oracles
from oracles import DictTrie, identifiers, quick, tables_with_counts


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
