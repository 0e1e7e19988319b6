"""T5 and language models over children: brute force on dictionaries, gradients against all logits, beams, priors, saving, resume."""
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from genrec_nb.beam_search import DecodeConfig, recommend
from genrec_nb.core import GenrecError, SettingError
from genrec_nb.data import Cases
from genrec_nb.infogain import information_gain, item_prior
from genrec_nb.likelihood import ChildSoftmax, segment_log_softmax
from genrec_nb.objectives import make_weighting
from genrec_nb.semantic_ids import EOS, Identifiers
from genrec_nb.tiger import TigerT5, tiger_t5
from genrec_nb.train import TrainConfig, _case_ce, fit
from genrec_nb.trie import ItemTrie
from oracles import DictTrie, all_logp, identifiers, tables_with_counts
from test_train import Break, CODES, SPLIT, TITLES, same_end

RAGGED = [[3, 4, EOS], [5, EOS], [6, 7, 8, EOS], [3, 5, EOS], [9, EOS], [6, 7, 3, EOS], [6, 4, EOS], [3, 4, EOS]]
HISTORY = torch.tensor([[-1, -1, 0], [-1, 0, 1], [0, 1, 0]])
DEEP = settings(max_examples=12, deadline=None)

def t5(ids, counts=None, sharp=3., **config):
    prior = 'none' if counts is None else 'trie'
    sizes = dict(max_items=5, d_model=16, d_ff=24, num_layers=1, num_decoder_layers=1, num_heads=2, d_kv=8)
    model = tiger_t5(ids, counts=counts, **{**sizes, **dict(softmax='children', prior=prior), **config}).eval()
    model.shared.weight.data *= sharp
    return model

def by_hand(plain, counts, logit, tau=1.):
    "ln P of each item's path; `logit(prefix)` gives the logits of the next token"
    out = []
    for path in plain.paths:
        total = 0.
        for t, token in enumerate(path):
            kids = plain.allowed(path[:t])
            mass = [0. if counts is None else np.log(sum(counts[i] + 1 for i in plain.branches[plain.number[path[:t] + (k,)]].items)) for k in kids]
            z = (np.array([float(logit(path[:t])[k]) for k in kids]) + mass)/tau
            total += z[kids.index(token)] - np.logaddexp.reduce(z)
        out.append(total)
    return np.array(out)

@DEEP
@given(tables_with_counts())
def test_t5_over_children_is_brute_force(case):
    "Loss, sum over the paths, a beam as wide as the catalog, forced tokens; ragged paths, collisions, priors"
    paths, counts = case
    ids, plain = identifiers(paths), DictTrie(paths)
    N, trie = len(paths), ItemTrie.build(ids)
    history = HISTORY % N*(HISTORY >= 0) - (HISTORY < 0).long()
    for c in (None, np.array(counts)):
        model = t5(ids, c)
        with torch.no_grad(): nll = torch.stack([model(history=h.expand(N, -1), targets=torch.arange(N)).nll for h in history])
        items, scores = recommend(model, trie, history, N, DecodeConfig(beams=N, exclude_seen=False))
        for h, row, found, score in zip(history.tolist(), nll, items, scores):
            logits = all_logp(model, h, paths)
            want = by_hand(plain, c, logits.__getitem__)
            np.testing.assert_allclose(-row.sum(1), want, atol=1e-4)
            np.testing.assert_allclose(score, want[found], atol=1e-4)
            assert sorted(found.tolist()) == list(range(N))
        np.testing.assert_allclose((-nll.sum(2)[:, [plain.paths.index(p) for p in set(plain.paths)]]).exp().sum(1), 1, atol=1e-4)
        assert (nll[:, ~model.soft.deciding] == 0).all()

def test_segments_are_rows():
    z, row = torch.randn(7, dtype=torch.double, requires_grad=True), torch.tensor([0, 0, 0, 1, 2, 2, 2])
    out = segment_log_softmax(z, row, 3)
    want = torch.cat([x.log_softmax(0) for x in z.split([3, 1, 3])])
    torch.testing.assert_close(out, want)
    assert out[3] == 0
    weights = torch.arange(7.).double()
    for a, b in zip(torch.autograd.grad((out*weights).sum(), z), torch.autograd.grad((want*weights).sum(), z)): torch.testing.assert_close(a, b)
    assert torch.autograd.grad(segment_log_softmax(z, row, 3)[3], z)[0].eq(0).all()
    assert segment_log_softmax(z + 1e4, row, 3).isfinite().all()

@pytest.mark.parametrize('tau', [1., .7])
def test_gradients_of_t5_are_those_of_masked_logits(tau):
    ids, counts = identifiers(RAGGED), np.arange(8)
    model = t5(ids, counts)
    history, targets = torch.tensor([[-1, 3, 1], [5, 0, 2], [7, 6, 4]]), torch.tensor([7, 2, 4])
    grads = []
    for ours in (True, False):
        model.zero_grad()
        if ours: loss = model(history=history, targets=targets, tau=tau).nll.sum()
        else:
            soft, labels = model.soft, model.paths[targets]
            del model.soft
            logits = model.target_logits(history, targets)
            before = soft.before[targets]
            offsets = soft.offsets(before.flatten(), 0, ids.vocab_size).view(logits.shape)
            real = labels != 0
            loss = -((logits + offsets)[real]/tau).log_softmax(-1).gather(1, labels[real][:, None]).sum()
        loss.backward()
        grads.append(torch.cat([p.grad.flatten() for p in model.parameters()]))
    torch.testing.assert_close(*grads, atol=1e-4, rtol=1e-4)

def test_the_prior_cancels_in_the_causal_effect():
    ids = identifiers(RAGGED)
    history, targets = torch.tensor([[-1, 3, 1], [5, 0, 2]]), torch.tensor([0, 2])
    a, b = (t5(ids, c)(history=history, targets=targets, null_history=True) for c in (np.arange(8), None))
    torch.testing.assert_close(a.effect, b.effect)
    assert not torch.allclose(a.nll, b.nll) and (a.effect[~t5(ids).soft.deciding[targets]] == 0).all()
    soft, model = t5(ids).soft, t5(ids)
    full, null = (model.target_logits(h, targets) for h in (history, torch.full_like(history[:, :1], -1)))
    torch.testing.assert_close(b.effect, soft.token_losses(targets, full - null))

def test_saved_with_its_counts(tmp_path):
    ids, counts = identifiers(RAGGED), np.arange(8)
    model = t5(ids, counts)
    model.save_pretrained(tmp_path)
    again = TigerT5.from_pretrained(tmp_path).set_items(ids).eval()
    batch = dict(history=torch.tensor([[3, 1]]), targets=torch.tensor([2]))
    assert torch.equal(model(**batch).nll, again(**batch).nll) and again.config.softmax == 'children'
    assert torch.equal(again.counts, torch.arange(8))
    with pytest.raises(GenrecError, match='needs counts='): tiger_t5(ids, softmax='children', prior='trie')
    with pytest.raises(SettingError, match="softmax is 'child'"): tiger_t5(ids, softmax='child')

def run(ids, folder, **more):
    model = t5(ids, SPLIT.train.target_counts(), 1.)
    config = TrainConfig(epochs=2, batch_size=16, lr=1e-2, eval_every=1, patience=0, metric='ce')
    return fit(model, SPLIT.train, SPLIT.valid, ItemTrie.build(ids), more.pop('weights', None), config, folder, **more)

def test_t5_trains_and_resumes(tmp_path):
    "Validation loss: nats an item by the training pass"
    whole = run(TITLES, tmp_path/'a')
    with pytest.raises(KeyboardInterrupt): run(TITLES, tmp_path/'b', callbacks=[Break(5)])
    same_end(run(TITLES, tmp_path/'b', resume=True), whole)
    assert whole.losses[-1][1] < whole.losses[0][1] < np.log(len(TITLES)) + .5
    cases, model = SPLIT.valid, whole.model.eval()
    history = torch.from_numpy(cases.tail(5).copy())
    with torch.no_grad(): nll = model(history=history, targets=torch.from_numpy(cases.targets).long()).nll
    share = model.soft.share[cases.targets]
    assert whole.best == pytest.approx(float((nll.sum(1) - share).mean()), rel=1e-4)
