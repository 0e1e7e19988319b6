"""Packed rows against each history alone, and their gradients; the rows against a slow next-fit."""
import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from genrec_nb.causal_blocks import CausalBlock, PackedRows, _next_fit

LENGTHS = st.lists(st.integers(0, 7), min_size=1, max_size=9).filter(any)

def padded(lengths): return torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]

def slow_next_fit(lengths, width):
    "Where rows begin, one window after the other"
    first, left = [0], width
    for i, n in enumerate(lengths):
        if n > left: first.append(i); left = width
        left -= n
    return first

@settings(max_examples=60, deadline=None)
@given(LENGTHS)
def test_next_fit_is_the_slow_one(lengths):
    lengths = sorted(lengths, reverse=True)
    assert _next_fit(lengths, lengths[0]) == slow_next_fit(lengths, lengths[0])

@settings(max_examples=40, deadline=None)
@given(LENGTHS)
def test_rows_hold_each_position_once(lengths):
    here = padded(lengths); rows = PackedRows(here)
    x = torch.arange(1., here.sum() + 1)[:, None]
    assert (rows.collect(rows.spread(x)) == x).all() and (rows.pad(x)[here] == x).all()
    assert (rows.spread(x) > 0).sum() == here.sum() and (rows.pad(x)[~here] == 0).all()
    assert rows.shape[0] <= len(lengths) and rows.mask.any(-1).all()          # no place looks at nothing

@settings(max_examples=25, deadline=None)
@given(LENGTHS, st.integers(0, 100))
def test_packed_is_alone_with_its_gradients(lengths, seed):
    "Hidden states and gradients of each history are those that it has by itself, in a padded row of ones"
    torch.manual_seed(seed)
    blocks = [CausalBlock(8, 2, 0.).double() for _ in range(2)]
    def run(x, here):
        rows = PackedRows(here)
        for b in blocks: x = b(x, rows)
        return x
    x = torch.randn(sum(lengths), 8, dtype=torch.double, requires_grad=True)
    weight = torch.randn(sum(lengths), 8, dtype=torch.double)
    together = run(x, padded(lengths))
    packed = torch.autograd.grad((together*weight).sum(), [x, *blocks[0].parameters()])
    apart = torch.cat([run(h, torch.ones(1, len(h), dtype=torch.bool)) for h in x.split([n for n in lengths if n])])
    single = torch.autograd.grad((apart*weight).sum(), [x, *blocks[0].parameters()])
    torch.testing.assert_close(together, apart)
    for a, b in zip(packed, single): torch.testing.assert_close(a, b)

def test_a_block_is_torchs_own_layer():
    "The same weights in `nn.TransformerEncoderLayer`, pre-norm, causal"
    torch.manual_seed(0)
    ours, theirs = CausalBlock(8, 2, 0.), torch.nn.TransformerEncoderLayer(8, 2, 32, 0., 'gelu', batch_first=True, norm_first=True)
    same = {'self_attn.in_proj_weight': 'qkv.weight', 'self_attn.in_proj_bias': 'qkv.bias', 'self_attn.out_proj.weight': 'out.weight',
            'self_attn.out_proj.bias': 'out.bias', 'linear1.weight': 'ff.0.weight', 'linear1.bias': 'ff.0.bias', 'linear2.weight': 'ff.2.weight',
            'linear2.bias': 'ff.2.bias', 'norm1.weight': 'norm1.weight', 'norm1.bias': 'norm1.bias', 'norm2.weight': 'norm2.weight', 'norm2.bias': 'norm2.bias'}
    own = ours.state_dict(); theirs.load_state_dict({k: own[v] for k, v in same.items()})
    here = padded([5, 2, 3, 1]); x = torch.randn(len(here), here.shape[1], 8)
    mask = torch.ones(here.shape[1], here.shape[1], dtype=torch.bool).triu(1)
    torch.testing.assert_close(ours(x[here], PackedRows(here)), theirs(x, src_mask=mask)[here], rtol=1e-4, atol=1e-5)

@pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a GPU')
def test_the_same_on_a_gpu():
    here, block = padded([5, 2, 3, 1]), CausalBlock(8, 2, 0.)
    x = torch.randn(int(here.sum()), 8); want = block(x, PackedRows(here))
    torch.testing.assert_close(block.cuda()(x.cuda(), PackedRows(here.cuda())).cpu(), want, rtol=1e-3, atol=1e-4)
