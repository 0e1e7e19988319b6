"""The likelihood of items: sums to 1, forced tokens free, priors, models over children, several identifiers."""
import copy, warnings
import numpy as np
import pytest
import torch
from hypothesis import given
from genrec_nb.core import GenrecError, GenrecWarning, SettingError
from genrec_nb.infogain import information_gain, item_prior
from genrec_nb.item_decoder import ItemDecoder, item_decoder
from genrec_nb.likelihood import ChildSoftmax, item_log_probabilities, _log_prior, sibling_log_softmax
from genrec_nb.objectives import make_weighting
from genrec_nb.semantic_ids import Identifiers
from genrec_nb.sequential_baselines import SASRec, SASRecConfig
from genrec_nb.token_weights import Uniform
from genrec_nb.train import _as_loss
from genrec_nb.trie import ItemTrie
from genrec_nb.rank import _rank_cases
from genrec_nb.splits import Cases
from oracles import DictTrie, few, identifiers, packed, t5, tables, tables_with_counts

def codes(n=30, sizes=(4, 3, 4), seed=0): return Identifiers.from_codes(np.random.default_rng(seed).integers(0, sizes, (n, len(sizes))), list(sizes), 'keep')
def flat(n): return Identifiers.from_codes(np.arange(n)[:, None], policy='keep')

ITEMS = torch.tensor([[5, 9, 2, 17, 3], [1, 3, 8, -1, -1], [4, 4, -1, -1, -1]])

CASES = Cases(np.arange(3), np.array([5, 9, 2, 1, 4]), np.array([0, 3, 4, 5]), np.array([17, 3, 4]))


@few
@given(tables_with_counts())
def test_items_have_probability_one(case):
    "Brute force on dictionaries: every token's softmax over its siblings; distinct paths sum to 1; no logits: popularity"
    paths, counts = case
    trie, plain = ItemTrie.build(identifiers(paths)), DictTrie(paths)
    prior, z = _log_prior(trie, counts), torch.randn(trie.n_nodes, generator=torch.Generator().manual_seed(len(paths)))
    p = item_log_probabilities(trie, sibling_log_softmax(trie, (z + prior).double())).exp()
    for i, path in enumerate(plain.paths):
        want = 1.
        for t in range(len(path)):
            kids = [plain.number[path[:t] + (c,)] for c in plain.allowed(path[:t])]
            e = {k: np.exp(float(z[k]))*sum(counts[j] + 1 for j in plain.branches[k].items) for k in kids}
            want *= e[plain.number[path[:t + 1]]]/sum(e.values())
        assert float(p[i]) == pytest.approx(want, rel=1e-4)
    assert float(p[[plain.paths.index(q) for q in set(plain.paths)]].sum()) == pytest.approx(1)
    popular = item_log_probabilities(trie, sibling_log_softmax(trie, prior.double())).exp()
    mass = {q: sum(c + 1 for c, r in zip(counts, plain.paths) if r == q) for q in plain.paths}
    np.testing.assert_allclose(popular, [mass[q]/(sum(counts) + len(paths)) for q in plain.paths], rtol=1e-4)

@few
@given(tables_with_counts(least=1))
def test_zero_gain_is_zero_loss(case):
    paths, counts = case
    trie = ItemTrie.build(identifiers(paths))
    soft, gain = ChildSoftmax.build(trie, counts), information_gain(trie, item_prior(counts))
    nodes = trie.item_nodes()
    assert (soft.deciding == ((nodes >= 0) & (gain[nodes] != 0))).all()
    z = torch.randn(trie.n_nodes, requires_grad=True)
    logp = sibling_log_softmax(trie, z)
    assert ((logp == 0) == (gain == 0))[1:].all()
    grad, = torch.autograd.grad(item_log_probabilities(trie, logp).sum(), z)
    assert (grad[gain == 0] == 0).all()

@few
@given(tables())
def test_offsets_are_the_children(paths):
    trie, plain = ItemTrie.build(identifiers(paths)), DictTrie(paths)
    soft = ChildSoftmax.build(trie, np.arange(len(paths)))
    nodes = torch.tensor([-1, *range(trie.n_nodes), 0])
    block = soft.offsets(nodes, 2, 10)
    for n, row in zip(nodes.tolist(), block):
        allowed = plain.allowed(plain.branches[n].prefix) if n >= 0 else []
        assert (row.isfinite().nonzero().flatten() + 2).tolist() == allowed
        for t in allowed: assert row[t - 2] == soft.prior[plain.number[plain.branches[n].prefix + (t,)]]

def test_bad_priors():
    ids = codes()
    trie = ItemTrie.build(ids)
    for bad in (np.ones(3), -np.ones(30), np.full(30, np.nan)):
        with pytest.raises(GenrecError, match='expected 30 finite numbers'): _log_prior(trie, bad)
    with pytest.raises(GenrecError, match='needs counts='): item_decoder(ids, softmax='children', prior='trie')
    with pytest.raises(SettingError, match="softmax is 'child'"): item_decoder(ids, softmax='child')
    with pytest.raises(SettingError, match="prior is 'yes'"): item_decoder(ids, prior='yes')


# ---- the item decoder ---------------------------------------------------------------------------------------------

@pytest.mark.parametrize('ids', [codes(), [codes(), codes(30, (5, 4), 1), flat(30)]], ids=['one', 'several'])
def test_the_loss_is_the_likelihood(ids):
    "Logits of every edge of the trie from the model's parts, then the sums of the lesson; forced tokens without gradient"
    counts = np.arange(30)
    model = packed(ids, counts=counts, softmax='children', prior='trie')
    out = model(items=ITEMS)
    hidden = model.read(model.paths[ITEMS[:, :-1].clamp(min=0)] - model.first)[ITEMS[:, 1:] >= 0]
    for k, soft in enumerate(model.trees):
        columns, trie = range(model.starts[k], model.starts[k + 1]), soft.trie
        z = hidden.new_zeros(len(hidden), trie.n_nodes)
        for n in range(1, trie.n_nodes):
            path = model.paths[int(trie.order[trie.row[n]])] - model.first
            l = int(trie.node_depth[n]) - 1
            u = hidden + sum(model.codes[c].weight[path[c]] for c in columns[:l])
            z[:, n] = model.level_logits(u, columns[l])[:, path[columns[l]]] + soft.prior[n]
        logp = item_log_probabilities(trie, sibling_log_softmax(trie, z))
        want = -logp.gather(1, out.targets[:, None])[:, 0]
        torch.testing.assert_close(out.nll[:, columns].sum(1), want, atol=1e-4, rtol=1e-4)
    deciding = torch.cat([t.deciding for t in model.trees], 1)[out.targets]
    assert (out.nll[~deciding] == 0).all() and not deciding.all()
    assert (torch.autograd.grad(out.nll[~deciding].sum() + 0*hidden.sum(), model.bias[0])[0] == 0).all()

def test_forced_tokens_leave_no_gradient():
    "Exactly 0 in the head, bias and output rows of a level that no target decides; the level above is trained"
    table = np.array([[0, 0, 0], [0, 1, 0], [1, 0, 0], [1, 0, 1], [1, 1, 0], [2, 0, 0]])                          # items 2 and 3 differ in the last token
    for ids in (Identifiers.from_codes(table, policy='keep'), [flat(6), Identifiers.from_codes(table, policy='keep')]):
        model = packed(ids, counts=np.arange(6), softmax='children', prior='trie').train()
        last = model.starts[-1] - 1
        model(items=torch.tensor([[2, 0, 1, 4], [3, 5, 5, 0]])).nll.sum().backward()
        for p in (model.bias[last], *model.heads[last].parameters()): assert p.grad is None or (p.grad == 0).all()
        assert (model.bias[last - 1].grad != 0).any()
        model.zero_grad()
        model(items=torch.tensor([[0, 2]])).nll.sum().backward()
        assert (model.bias[last].grad != 0).any()

def test_weights_apply_to_deciding_tokens():
    "Nats an item under equal weights; every beta of IGD is the same; the others change it"
    ids, counts = codes(), np.arange(1, 31)
    model = packed(ids, softmax='children')
    trie, = model.tries
    out, (soft,) = model(items=ITEMS), model.trees
    nats = out.nll.sum(1).mean()
    loss = {}
    for name, given in (('uniform', {}), ('igd', dict(beta=.1)), ('igd', dict(beta=.9)), ('position', {}), ('frequency', {})):
        rule = make_weighting(name, **given).objective(trie, ids, counts=counts).per_item(soft.deciding)
        loss[(name, *given.values())] = rule(out)[0].item()
        halves = [rule.totals(out.targets[:3]), rule.totals(out.targets[3:])]           # additive over micro-batches
        torch.testing.assert_close(sum(halves), rule.totals(out.targets))
    for same in (('uniform',), ('igd', .1), ('igd', .9)): assert loss[same] == pytest.approx(nats.item(), rel=1e-6)
    for other in (('position',), ('frequency',)): assert abs(loss[other] - nats.item()) > 1e-3
    mixed = make_weighting('multi', targets=dict(uniform={}, igd={}), rising=['igd']).objective(trie, ids, counts=counts)
    assert mixed.set_pace(10).per_item(soft.deciding)(out)[0].item() == pytest.approx(nats.item(), rel=1e-5)

def test_causal_effect_under_children():
    "The prior cancels in the difference; forced tokens stay free"
    model = packed(codes(), counts=np.arange(30), softmax='children', prior='trie')
    out = model(items=ITEMS, null_history=True)
    none = packed(codes(), softmax='children')(items=ITEMS, null_history=True)
    torch.testing.assert_close(out.effect, none.effect)
    assert out.effect.isfinite().all() and not torch.allclose(out.nll, none.nll)

def test_beams_and_language_model_agree_with_the_loss():
    model = packed(codes(), counts=np.arange(30), softmax='children', prior='trie')
    with torch.inference_mode():
        out, paths = model(items=ITEMS[:1]), model.paths[ITEMS[0]]
        tokens = model.flat_logits(paths.view(1, -1))[0, :-1].gather(1, paths.view(-1)[3:, None]).view(-1, 3)
        torch.testing.assert_close(-tokens, out.nll, atol=1e-5, rtol=1e-4)
        logits, state = model.prefill(ITEMS[:1, :-1])
        path, parents = paths[-1], torch.zeros(1, 1, dtype=torch.long)
        for l in range(3):
            torch.testing.assert_close(-logits[0, 0, path[l]], out.nll[-1, l], atol=1e-5, rtol=1e-4)
            if l < 2: logits = model.decode_step(state, path[l].view(1, 1), parents)

def test_saved_with_its_counts(tmp_path):
    ids = [codes(), flat(30)]
    model = packed(ids, counts=np.arange(30), softmax='children', prior='trie', scale_embeddings=True)
    model.save_pretrained(tmp_path)
    again = ItemDecoder.from_pretrained(tmp_path).set_items(ids).eval()
    assert again.config.softmax == 'children' and again.config.scale_embeddings and again.config.levels == [3, 1]
    assert torch.equal(again(items=ITEMS).nll, model(items=ITEMS).nll)
    with pytest.raises(GenrecError, match='different runs'): again.set_items(ids[::-1])

@pytest.mark.parametrize('trained, asked', [('vocabulary', 'children'), ('children', 'vocabulary')])
def test_another_softmax_asked_of_a_saved_model(trained, asked, tmp_path):
    "It says so, and ranks as it was trained: item decoder and T5"
    for make in (packed, t5):
        model = make(codes(), softmax=trained)
        model.save_pretrained(tmp_path/make.__name__)
        with pytest.warns(GenrecWarning, match=f"{make.__name__}: softmax='{asked}' is asked of a model that was trained with '{trained}'"):
            again = type(model).from_pretrained(tmp_path/make.__name__, softmax=asked).set_items(codes()).eval()
        a, b = (_rank_cases(m, ItemTrie.build(codes()), CASES) for m in (model, again))
        assert again.config.softmax == trained and (a == b).all()
        with warnings.catch_warnings():
            warnings.simplefilter('error', GenrecWarning)
            type(model).from_pretrained(tmp_path/make.__name__, softmax=trained)

def test_one_token_paths_are_sasrec():
    "Same weights, same loss: the prior is SASRec's, a head without MLP is nothing"
    counts = np.arange(30)
    sasrec = SASRec(30, SASRecConfig(dim=16, heads=2, max_items=8)).eval()
    sasrec.prior = torch.from_numpy(np.log1p(counts)).float()
    sasrec.item.weight.data *= 20
    model = packed(flat(30), counts=counts, softmax='children', prior='trie', head_ff=0, scale_embeddings=True)
    own, theirs = model.state_dict(), sasrec.state_dict()
    theirs['codes.0.weight'] = theirs.pop('item.weight')
    missing, unexpected = model.load_state_dict({k: v for k, v in theirs.items() if k != 'prior'}, strict=False)
    assert set(missing) == {'bias.0', 'counts'} and not unexpected and len(own) == len(theirs) + 1
    loss, out = _as_loss(None, model.tries).per_item(model.trees[0].deciding), model(items=ITEMS)
    torch.testing.assert_close(loss(out)[0], sasrec(ITEMS)['loss'], atol=1e-5, rtol=1e-5)


# ---- several identifiers ------------------------------------------------------------------------------------------

def test_a_list_of_one_is_the_single_model():
    one, several = item_decoder(codes(), softmax='children'), item_decoder([codes()], softmax='children')
    assert one.config.to_dict() == several.config.to_dict()
    for model in (one, several): torch.manual_seed(0); model.train(); model(items=ITEMS).nll.sum().backward()
    assert all(torch.equal(p, q) and torch.equal(p.grad, q.grad) for p, q in zip(one.parameters(), several.parameters()))

def test_the_loss_is_the_mean_over_identifiers():
    ids = [codes(), flat(30)]
    model = packed(ids, softmax='children')
    out = model(items=ITEMS)
    loss = Uniform().objective(model.tries, ids).per_item(torch.cat([t.deciding for t in model.trees], 1), 2)(out)[0]
    torch.testing.assert_close(loss, (out.nll[:, :3].sum(1) + out.nll[:, 3]).mean()/2)
    with pytest.raises(GenrecError, match=r'30 items with 3 tokens, the trie has 30 with 4'): _as_loss(torch.ones(30, 3), model.tries)

def test_identifiers_that_do_not_fit():
    with pytest.raises(GenrecError, match=r'those of \[30, 31\] items'): item_decoder([codes(30), codes(31)])
    with pytest.raises(GenrecError, match='identifier 3 of 3 gives every item a path that it has already'): item_decoder([codes(), flat(30), copy.deepcopy(codes())])
    for same in (np.random.default_rng(1).permutation(30)[:, None], 29 - np.arange(30)[:, None]):              # other names of the same paths
        with pytest.raises(GenrecError, match='2 of 2 gives every item a path that it has already'): item_decoder([flat(30), Identifiers.from_codes(same, policy='keep')])
    item_decoder([codes(), codes(seed=1)])
