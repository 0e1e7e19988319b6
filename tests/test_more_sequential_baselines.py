"GRU4Rec, Caser, HGN, BERT4Rec and eSASRec: a planted order is learned, formulas against loops, leaks, saved and loaded."
import math
import numpy as np
import pytest
import torch
from genrec_nb.core import GenrecError
from genrec_nb.data import Interactions
from genrec_nb.causal_blocks import PackedRows
from genrec_nb.more_sequential_baselines import (BERT4Rec, BERT4RecConfig, Caser, CaserConfig, ESASRec, ESASRecConfig, GatedBlock, GRU4Rec, GRU4RecConfig, HGN, WindowConfig,
                                                 _last_items, _sampled_ce, _UserWindows, train_bert4rec, train_caser, train_esasrec, train_gru4rec, train_hgn)
from genrec_nb.rankers import load_ranker, save_ranker
from genrec_nb.splits import Cases, leave_one_out

N, U = 12, 24
SHARED = dict(dim=16, dropout=0., epochs=25, eval_every=25, batch_size=4, patience=0, max_items=3, lr=1e-2)
HOW = dict(gru4rec=(train_gru4rec, GRU4RecConfig(**SHARED)), caser=(train_caser, CaserConfig(**SHARED, window=2)), hgn=(train_hgn, WindowConfig(**SHARED, window=1)),
           bert4rec=(train_bert4rec, BERT4RecConfig(**SHARED | dict(epochs=40, eval_every=40, batch_size=8), last=1.)),
           esasrec=(train_esasrec, ESASRecConfig(**SHARED, negatives=8)))
every = pytest.mark.parametrize('kind', list(HOW))

@pytest.fixture(scope='module')
def split():
    "Each item has one successor"
    rng = np.random.default_rng(0)
    order = rng.permutation(N)
    walks = order[(np.arange(U)[:, None] + np.arange(6)) % N]
    return leave_one_out(Interactions(walks.reshape(-1), np.arange(U + 1)*6, [str(u) for u in range(U)], N))

@pytest.fixture(scope='module')
def models(split): return {kind: train(split, config) for kind, (train, config) in HOW.items()}

@every
def test_learns_a_planted_successor(models, split, kind):
    assert (models[kind].rank(split.test, 1, exclude_seen=False)[:, 0] == split.test.targets).mean() >= .99

@every
def test_saved_and_loaded(models, split, tmp_path, kind):
    save_ranker(models[kind], tmp_path/'m')
    again = load_ranker(tmp_path/'m')
    assert type(again) is type(models[kind]) and again.settings == models[kind].settings and again.split == split.fingerprint
    np.testing.assert_array_equal(again.rank(split.test, 5), models[kind].rank(split.test, 5))

@every
def test_padding_and_the_future_change_nothing(models, kind):
    "The state after an item depends on what came before it"
    model = models[kind]
    short = Cases(np.array([0]), np.array([3, 4]), np.array([0, 2]), np.array([5]))
    pair = Cases(np.array([0, 1]), np.array([3, 4, 1, 2, 5]), np.array([0, 2, 5]), np.array([5, 7]))
    with torch.no_grad():
        torch.testing.assert_close(model.scores(short)[0], model.scores(pair)[0])
        if kind == 'bert4rec': return
        a, b = (model.read(torch.tensor([[3, 1, last]]), torch.tensor([0])) for last in (2, 7))
    torch.testing.assert_close(a[:, :2], b[:, :2])
    assert (a[:, 2] != b[:, 2]).any()

def test_bert_looks_both_ways_but_not_under_the_mask(models):
    model, masked = models['bert4rec'], torch.tensor([[False, True, False]])
    with torch.no_grad(): here, same, other = (model.read(torch.tensor([x]), masked)[0, 1] for x in ([3, 1, 2], [3, 9, 2], [3, 1, 7]))
    torch.testing.assert_close(here, same)
    assert (here - other).abs().max() > 1e-3

def test_masks_are_as_often_as_said():
    torch.manual_seed(0)
    items = torch.arange(40).expand(4000, -1)
    some, last = (BERT4Rec(50, BERT4RecConfig(dim=4, mask=.3, last=share)).draw_mask(items) for share in (0., 1.))
    assert abs(float(some.float().mean()) - .3) < .01 and last[:, -1].all() and last.sum() == len(items)
    ragged = BERT4Rec(50, BERT4RecConfig(dim=4, last=1.)).draw_mask(torch.tensor([[1, 2, -1], [3, 4, 5]]))
    assert ragged.tolist() == [[False, True, False], [False, False, True]]

def sigmoid(x): return 1/(1 + math.exp(-x))

def test_hgn_against_loops():
    torch.manual_seed(0)
    m = HGN(6, 2, WindowConfig(dim=3, window=2, dropout=0.)).eval()
    E, p = m.item.weight[[4, 1]].tolist(), m.user.weight[1].tolist()
    W1, b, W2, w3, W4 = (x.tolist() for x in (m.feature.weight, m.feature.bias, m.taste.weight, m.item_gate.weight[0], m.user_gate.weight))
    passed = [[e[i]*sigmoid(sum(W1[i][j]*e[j] + W2[i][j]*p[j] for j in range(3)) + b[i]) for i in range(3)] for e in E]
    gate = [sigmoid(sum(w3[j]*f[j] + W4[l][j]*p[j] for j in range(3))) for l, f in enumerate(passed)]
    want = [p[i] + sum(gate[l]*passed[l][i] for l in range(2))/2 + sum(e[i] for e in E) for i in range(3)]
    np.testing.assert_allclose(m.read(torch.tensor([[2, 4, 1]]), torch.tensor([1]))[0, 2].detach(), want, rtol=1e-5)

def test_caser_against_loops():
    torch.manual_seed(0)
    m = Caser(6, 2, CaserConfig(dim=3, window=3, vertical=2, horizontal=2, dropout=0.)).eval()
    E = m.item.weight[[4, 1, 5]]
    o = [sum(m.vertical.weight[v, l]*E[l, i] for l in range(3)) for i in range(3) for v in range(2)]
    for h, filters in enumerate(m.horizontal, 1):
        for n in range(2):                                                       # a run of h items: feature by feature, item by item
            answers = [filters.bias[n] + sum(filters.weight[n, i*h + r]*E[a + r, i] for r in range(h) for i in range(3)) for a in range(4 - h)]
            o.append(max(max(a, 0*a) for a in answers))
    want = torch.cat([(m.dense.weight @ torch.stack(o) + m.dense.bias).relu(), m.user.weight[1]])
    torch.testing.assert_close(m.read(torch.tensor([[2, 4, 1, 5]]), torch.tensor([1]))[0, 3], want)

def test_gru_against_its_equations():
    torch.manual_seed(0)
    m = GRU4Rec(6, GRU4RecConfig(dim=3, dropout=0.)).eval()
    h = torch.zeros(3)
    for i in (4, 1):
        x = m.item.weight[i]*3**.5
        a, b = (w.view(3, 3, -1) for w in (m.gru.weight_ih_l0, m.gru.weight_hh_l0))
        p, q = m.gru.bias_ih_l0.view(3, 3), m.gru.bias_hh_l0.view(3, 3)
        r, z = ((a[j] @ x + p[j] + b[j] @ h + q[j]).sigmoid() for j in (0, 1))
        new = (a[2] @ x + p[2] + r*(b[2] @ h + q[2])).tanh()
        h = (1 - z)*new + z*h
    torch.testing.assert_close(m.read(torch.tensor([[4, 1]]))[0, 1], m.norm(h))

def test_gated_block_against_attention_of_torch():
    "Equations of LiGR, with torch's own attention, SwiGLU written out, and gates that read the state before the norm"
    torch.manual_seed(0)
    b, x = GatedBlock(6, 2, 0., 3).eval(), torch.randn(5, 6)
    attention = torch.nn.MultiheadAttention(6, 2, batch_first=True)
    attention.load_state_dict(dict(in_proj_weight=b.qkv.weight, in_proj_bias=b.qkv.bias) | {f'out_proj.{k}': v for k, v in b.out.state_dict().items()})
    u, later = b.norm1(x)[None], torch.ones(5, 5).triu(1).bool()
    h = x + torch.sigmoid(b.gates[0](x))*attention(u, u, u, attn_mask=later, need_weights=False)[0][0]
    v, A, B, C = b.norm2(h), b.ff.a.weight, b.ff.b.weight, b.ff.c.weight
    assert A.shape == (18, 6)
    want = h + torch.sigmoid(b.gates[1](h))*(((v @ A.T)*torch.sigmoid(v @ A.T)*(v @ B.T)) @ C.T)
    torch.testing.assert_close(b(x, PackedRows(torch.ones(1, 5).bool())), want)

def test_sampled_softmax_against_a_loop():
    torch.manual_seed(0)
    h, e, prior, y = torch.randn(4, 3), torch.randn(7, 3), torch.randn(7), torch.tensor([2, 0, 6, 2])
    torch.manual_seed(1)
    found = _sampled_ce(h, e, y, prior, 5)
    torch.manual_seed(1)
    drawn = torch.randint(7, (4, 5))
    def score(n, i): return math.exp(float(h[n] @ e[i] + prior[i]))
    want = [-math.log(score(n, t)/(score(n, t) + sum(score(n, j) for j in drawn[n].tolist()))) for n, t in enumerate(y.tolist())]
    assert abs(float(found) - sum(want)/4) < 1e-5

def test_many_negatives_are_the_whole_softmax():
    "Uniform negatives: K/N times the mass of the catalog, and gradients that point the same way"
    torch.manual_seed(0)
    m, x = ESASRec(20, ESASRecConfig(dim=8, dropout=0., negatives=20_000)), torch.randint(20, (6, 5))
    m.item.weight.data.normal_()
    def gradient(loss): return torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(m.blocks.parameters()) + [m.item.weight])])
    few = gradient(m(x)['loss'])
    m.settings = ESASRecConfig(dim=8, dropout=0., negatives=0)
    whole = gradient(m(x)['loss'])
    assert torch.cosine_similarity(few, whole, 0) > .999 and abs(float(few.norm()/whole.norm()) - 1) < .02

def test_windows_know_their_users(split):
    w = _UserWindows(split.train, 2)
    for n in range(len(w)):
        batch = w.collate([n])
        u, items = int(batch['users'][0]), batch['items'][0].tolist()
        assert str(items)[1:-1] in str(split.train.user(u).tolist())
    assert len(w) == 2*U and _last_items(torch.arange(3.).view(1, 3, 1), 2)[0, :, :, 0].tolist() == [[0, 0], [0, 1], [1, 2]]

def test_what_cannot_be(models, split):
    far = Cases(np.array([99]), np.array([1]), np.array([0, 1]), np.array([1]))
    for kind in ('caser', 'hgn'):
        with pytest.raises(GenrecError, match='user 99.*0..23'): models[kind].rank(far, 3)
    with pytest.raises(GenrecError, match='dim 15 cannot be shared by 2 heads'): BERT4RecConfig(dim=15)
    with pytest.raises(GenrecError, match='mask is 2'): BERT4RecConfig(mask=2)
    with pytest.raises(GenrecError, match='dim 15 cannot be shared by 2 heads'): ESASRecConfig(dim=15)
    with pytest.raises(GenrecError, match='negatives is -1'): ESASRecConfig(negatives=-1)
    with pytest.raises(GenrecError, match='case 0.*empty'): models['bert4rec'].rank(Cases(np.array([0]), np.array([], int), np.array([0, 0]), np.array([1])), 3)
