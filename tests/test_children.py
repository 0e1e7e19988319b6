"""T5 and language models over children: brute force on dictionaries, gradients against all logits, beams, priors, saving, resume."""
from dataclasses import replace
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from genrec_nb.backbones import tiny_llama
from genrec_nb.beam_search import DecodeConfig, beam_search, recommend, recommend_each
from genrec_nb.branch_and_bound import proved_items
from genrec_nb.core import GenrecError, SettingError
from genrec_nb.splits import Cases
from genrec_nb.infogain import information_gain, item_prior
from genrec_nb.language_recommender import LMConfig, LanguageRecommender, language_recommender
from genrec_nb.likelihood import ChildSoftmax, segment_log_softmax
from genrec_nb.objectives import make_weighting
from genrec_nb.prompts import title_identifiers
from genrec_nb.semantic_ids import EOS, PAD, Identifiers
from genrec_nb.tiger import TigerT5, tiger_t5
from genrec_nb.rank import _case_ce
from genrec_nb.train import TrainConfig, fit
from genrec_nb.trie import ItemTrie
from language import base, make_codes, some_titles, tiny_run, users
from oracles import DictTrie, all_logp, identifiers, tables_with_counts
from test_train import Break, CODES, SPLIT, TITLES, same_end

RAGGED = [[3, 4, EOS], [5, EOS], [6, 7, 8, EOS], [3, 5, EOS], [9, EOS], [6, 7, 3, EOS], [6, 4, EOS], [3, 4, EOS]]
HISTORY = torch.tensor([[-1, -1, 0], [-1, 0, 1], [0, 1, 0]])
DEEP = settings(max_examples=8, deadline=None)

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
            want = want + model.soft.share.numpy()                                   # of colliding items
            np.testing.assert_allclose(score, want[found], atol=1e-4)
            np.testing.assert_allclose(score, -np.sort(-want), atol=1e-4)
            assert sorted(found.tolist()) == list(range(N))
        np.testing.assert_allclose((-nll.sum(2)[:, [plain.paths.index(p) for p in set(plain.paths)]]).exp().sum(1), 1, atol=1e-4)
        assert (nll[:, ~model.soft.deciding] == 0).all()

def test_colliding_items_have_parts_of_their_path():
    "Ten items on one path, one alone on a less probable one: the single item is first, for a beam and with a proof; what is called proved is"
    paths = [[3, 4, EOS]]*10 + [[5, EOS], [3, 6, EOS], [3, 6, EOS]]
    ids, counts = identifiers(paths), np.arange(13)
    trie, history = ItemTrie.build(ids), torch.tensor([[-1, 0], [2, 11], [7, 1]])
    for seed in range(3):
        model = t5(ids, counts, 1. + seed, seed=seed)
        with torch.no_grad(): want = model.soft.share - torch.stack([model(history=h.expand(13, -1), targets=torch.arange(13)).nll.sum(1) for h in history])
        torch.testing.assert_close(want.exp().sum(1), torch.ones(3))
        for k in (1, 2, 13):
            config = DecodeConfig(beams=5, exclude_seen=False)
            items, scores = recommend(model, model.soft.trie, history, k, config)
            found = proved_items(model, model.soft.trie, history, k, replace(config, beams=1))
            best = want.topk(k).values
            torch.testing.assert_close(scores, best, atol=1e-4, rtol=1e-4)
            torch.testing.assert_close(scores, want.gather(1, items), atol=1e-4, rtol=1e-4)
            torch.testing.assert_close(found.scores[found.proved], best[found.proved], atol=1e-4, rtol=1e-4)
            if k == 13: assert found.proved.all()

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


# ---- language models ----------------------------------------------------------------------------------------------

COUNTS = np.random.default_rng(0).integers(0, 9, 40)

def titles(seed=0, prior='trie', packed=False, lm=None, n=40, **config):
    "Untrained over children, titles of different lengths, some twice"
    words = some_titles(n, seed)
    lm, tokenizer = lm or base(words, seed)
    c = LMConfig(base=None, max_tokens=400, softmax='children', prior=prior, packed=packed, **config)
    ids = title_identifiers(words, tokenizer, **dict(suffix='') if packed else {})
    return LanguageRecommender(lm, tokenizer, ids, c, COUNTS[:n]).eval()

def coded(tie=True, prior='trie', n=30, **config):
    "The same of codes: adapters, and trainable rows for the codes"
    ids = Identifiers.from_codes(np.random.default_rng(1).integers(0, 4, (n, 3)), [4]*3, 'keep')
    c = LMConfig(base=None, r=4, max_tokens=256, dropout=0., softmax='children', prior=prior, **config)
    model = language_recommender(ids, tiny_llama(['a b c'], tie_word_embeddings=tie), c, counts=COUNTS[:n])
    for p in model.parameters():
        if p.requires_grad: p.data += .1*torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel()))
    return model.eval()

def dense(model, history, targets, tau=1., prior=True, null=None):
    "Loss of every token from all logits of the language model, masked to the children"
    soft, trie, out = model.soft, model.trie, []
    def logits(history): # [B, T, W]
        (x, mask), (words, real) = model.prompt(history), model.path_completions(targets)
        x, mask = torch.cat([x, words], 1), torch.cat([mask, real.long()], 1)
        return model.lm(input_ids=x, attention_mask=mask, position_ids=(mask.cumsum(1) - 1).clamp(min=0)).logits[:, -words.shape[1] - 1:-1]
    z = logits(history) if null is None else logits(history) - logits(null)
    for b, i in enumerate(targets.tolist()):
        nodes = [0, *[n for n in trie.item_nodes(torch.tensor(i)).tolist() if n >= 0]]
        for t, (a, c) in enumerate(zip(nodes, nodes[1:])):
            kids = range(int(trie.first[a]), int(trie.first[a + 1]))
            row = torch.stack([model.log_scale.exp()*z[b, t, model.own[int(trie.token[k])]] + (soft.prior[k] if prior else 0.) for k in kids])/tau
            out.append(-row.log_softmax(0)[list(kids).index(c)])
    return torch.stack(out)

def biased():
    "Phi's output layer has a bias"
    from transformers import PhiConfig, PhiForCausalLM
    tokenizer = base(some_titles())[1]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        lm = PhiForCausalLM(PhiConfig(vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=4, initializer_range=.3))
    lm.lm_head.bias.data.normal_(0, .5)
    return lm.eval(), tokenizer

def adapted():
    "LoRA on the output layer, too"
    from peft import LoraConfig, get_peft_model
    lm, tokenizer = base(some_titles(), tie_word_embeddings=False)
    return get_peft_model(lm, LoraConfig(r=2, target_modules=['lm_head', 'q_proj'], init_lora_weights=False, task_type='CAUSAL_LM')).eval(), tokenizer

def capped():
    "Gemma caps its logits"
    from transformers import Gemma2Config, Gemma2ForCausalLM
    tokenizer = base(some_titles())[1]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Gemma2ForCausalLM(Gemma2Config(vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=4, num_key_value_heads=2,
                                              head_dim=8, initializer_range=.3, final_logit_softcapping=2.)).eval(), tokenizer

MODELS = dict(titles=titles, tied=coded, untied=lambda: coded(False), bias=lambda: titles(lm=biased()), lora=lambda: titles(lm=adapted()), capped=lambda: titles(lm=capped()))

@pytest.mark.parametrize('name', MODELS)
def test_losses_and_gradients_are_those_of_all_logits(name):
    "Adapters, trainable rows, biases and caps of the output layer; forced tokens without loss and gradient"
    model = MODELS[name]()
    N = len(model.ids)
    history, targets = users(N, n=5, seed=9), torch.tensor([0, 1, 2, 3, N - 1])
    weights = [p for p in model.parameters() if p.requires_grad]
    out = model(history, targets, .7)
    real = model.paths[targets] != PAD
    want = dense(model, history, targets, .7)
    torch.testing.assert_close(out.nll[real], want, atol=1e-3, rtol=1e-3)
    assert (out.nll[~model.soft.deciding[targets]] == 0).all() and (out.nll[~real] == 0).all()
    ours, theirs = (torch.autograd.grad(x.sum(), weights, allow_unused=True) for x in (out.nll, want))
    assert [g is None for g in ours] == [g is None for g in theirs] and any(g is not None for g in ours)
    for a, b in zip(ours, theirs):
        if b is not None: torch.testing.assert_close(a, b, atol=2e-3, rtol=1e-3)

def test_training_starts_at_the_prior_and_the_factor_is_saved(tmp_path):
    "Logits times 0 leave the prior alone; what was learned of the factor is read again to the last bit"
    model = titles(logit_scale=1e-9)
    N = len(model.ids)
    with torch.no_grad(): nll = model(users(N, n=1, seed=3).expand(N, -1), torch.arange(N)).nll.sum(1)
    share = torch.from_numpy((COUNTS[:N] + 1)/(COUNTS[:N] + 1).sum()).float()
    torch.testing.assert_close(nll, -torch.stack([share[model.trie.leaf == model.trie.leaf[i]].sum() for i in range(N)]).log())
    assert {p: round(titles(prior=p).log_scale.exp().item(), 6) for p in ('none', 'trie')} == dict(none=1., trie=.1)
    assert titles(logit_scale=.3).log_scale.requires_grad
    model = coded()
    again = LanguageRecommender.from_pretrained(model.save_pretrained(tmp_path/'m'), tiny_llama(['a b c'])).eval()
    assert model.log_scale.item() == again.log_scale.item() != titles().log_scale.item()  # `coded` moved it
    with pytest.raises(SettingError, match="softmax='children', or no logit_scale"): LMConfig(base=None, logit_scale=.1)

@pytest.mark.parametrize('make', [titles, coded], ids=['titles', 'codes'])
def test_every_item_has_a_probability_and_the_beam_finds_it(make):
    "Exact sums, a beam as wide as the catalog, step by step down every path; nothing is read behind the last decision"
    for prior in ('none', 'trie'):
        model = make(prior=prior)
        N, history = len(model.ids), users(len(model.ids), n=3, seed=3)
        with torch.no_grad():
            nll = torch.stack([model(h.expand(N, -1), torch.arange(N)).nll for h in history])     # [B, N, T]
            total = -nll.sum(2)
            one = torch.unique(model.trie.leaf, return_inverse=True)[1]
            first = [(one == k).nonzero()[0, 0] for k in range(int(one.max()) + 1)]
            torch.testing.assert_close(total[:, first].exp().sum(1), torch.ones(3))
            total = total + model.soft.share                        # colliding items share their path, prior or not
            torch.testing.assert_close(total.exp().sum(1), torch.ones(3))
            items, scores = recommend(model, model.trie, history, N, DecodeConfig(beams=N, exclude_seen=False))
            np.testing.assert_allclose(scores, total.gather(1, items), atol=1e-3)
            np.testing.assert_allclose(scores, total.sort(descending=True).values, atol=1e-3)
            logits, state = model.prefill(history)
            logits, parents = logits.expand(-1, N, -1), torch.zeros(3, N, dtype=torch.long)
            for t in range(model.paths.shape[1]):
                here = (model.paths[:, t] != PAD)[None].expand(3, -1)
                got = -logits.gather(2, model.paths[:, t].expand(3, -1)[..., None])[..., 0]
                np.testing.assert_allclose(got[here], nll[:, :, t][here], atol=1e-3)
                np.testing.assert_allclose(logits.logsumexp(2)[here], 0, atol=1e-4)
                logits = model.decode_step(state, model.paths[:, t].expand(3, -1), parents)
                parents = torch.arange(N).expand(3, -1)
        branching = (model.trie.n_children > 1).nonzero()[:, 0]
        read = torch.unique(model.trie.item_nodes(model.trie.order[model.trie.row[branching].long()].long())[torch.arange(model.trie.max_depth) < model.trie.node_depth[branching][:, None]])
        assert state.tokens == 3*len(read) < 3*(model.trie.n_nodes - 1)          # what leads to a decision, once

def test_seen_items_and_igd_decoding():
    "Against scores of all items: without those of the history, steps weighted"
    model = titles(2)
    N, gain = 40, information_gain(model.trie, item_prior(COUNTS))
    history = users(N, n=3, seed=5)
    items, scores = recommend(model, model.trie, history, N, DecodeConfig(beams=N, alpha=.3), gain)
    from genrec_nb.beam_search import decoding_weights
    weights = torch.where(model.soft.after >= 0, decoding_weights(model.trie, gain, .3)[model.soft.after], 0.)
    with torch.no_grad(): want = model.soft.share - torch.stack([(model(h.expand(N, -1), torch.arange(N)).nll*weights).sum(1) for h in history])
    for h, found, row, w in zip(history, items, scores, want):
        left = [i for i in range(N) if i not in h.tolist()]
        assert sorted(found[:len(left)].tolist()) == left and (found[len(left):] == -1).all()
        np.testing.assert_allclose(row[:len(left)], w[found[:len(left)]], atol=1e-3)

@pytest.mark.parametrize('tau', [1., .7])
def test_packed_losses_are_those_of_the_samples_alone(tau):
    model = titles(packed=True)
    rows = [np.random.default_rng(1).integers(0, 40, n).tolist() for n in (6, 2, 1, 4)]
    items = torch.tensor([r + [-1]*(6 - len(r)) for r in rows])
    with torch.no_grad():
        out = model(items=items, tau=tau)
        alone = [model(torch.tensor([r[:k]]), torch.tensor([r[k]]), tau=tau) for r in rows for k in range(1, len(r))]
    np.testing.assert_allclose(out.nll, torch.cat([a.nll for a in alone]), atol=1e-3)

def test_causal_effect_of_a_language_model():
    model, history, targets = titles(), users(40, n=3, seed=4), torch.tensor([5, 6, 7])
    with torch.no_grad():
        out = model(history, targets, null_history=True)
        want = dense(model, history, targets, prior=False, null=torch.full((3, 1), -1))
    torch.testing.assert_close(out.effect[model.paths[targets] != PAD], want, atol=1e-3, rtol=1e-3)

def test_one_title_has_nothing_to_learn():
    lm, tokenizer = base(['red saw'])
    c = LMConfig(base=None, max_tokens=128, softmax='children')
    model = LanguageRecommender(lm, tokenizer, title_identifiers(['red saw']*2, tokenizer), c)
    out = model(torch.tensor([[0], [-1]]), torch.tensor([0, 1])).nll
    out.sum().backward()
    assert (out == 0).all() and all(p.grad is None or (p.grad == 0).all() for p in model.parameters())
    items, scores = recommend(model.eval(), model.trie, torch.tensor([[0]]), 2, DecodeConfig(beams=2, exclude_seen=False))
    assert items.tolist() == [[0, 1]]
    torch.testing.assert_close(scores.exp(), torch.tensor([[.5, .5]]))          # one path, shared

def test_bfloat16_differs_little():
    a, b = titles(1), titles(1)
    b.lm.to(torch.bfloat16)
    x = users(40, n=3), torch.tensor([0, 1, 2])
    with torch.no_grad(): np.testing.assert_allclose(a(*x).nll, b(*x).nll, atol=.3)
    beams = beam_search(b, b.trie, x[0], DecodeConfig(beams=5))
    assert beams.scores.dtype == torch.float and (beams.nodes >= 0).all()
    model, x = coded(), (users(30, n=3), torch.tensor([0, 1, 2]))
    with torch.no_grad(): want = model(*x).nll
    with torch.autocast('cpu', torch.bfloat16): nll = model(*x).nll
    nll.sum().backward()
    assert nll.dtype == torch.float and all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())
    np.testing.assert_allclose(nll.detach(), want, atol=.3)

def test_saved_with_counts_and_refused_without(tmp_path):
    model = coded()
    model.save_pretrained(tmp_path/'saved')
    again = LanguageRecommender.from_pretrained(tmp_path/'saved', tiny_llama(['a b c'])).eval()
    x = users(30, n=3), torch.tensor([0, 1, 2])
    with torch.no_grad(): torch.testing.assert_close(again(*x).nll, model(*x).nll)
    assert again.counts.tolist() == COUNTS[:30].tolist() and again.config == replace(model.config, logit_scale=again.config.logit_scale)
    with pytest.raises(GenrecError, match='needs counts='): language_recommender(model.ids, tiny_llama(['a']), LMConfig(base=None, softmax='children', prior='trie'))
    with pytest.raises(SettingError, match='alignment tasks say words'): LMConfig(softmax='children', tasks=['all'])
    with pytest.raises(SettingError, match='vocabulary, children'): LMConfig(softmax='child')

def test_a_language_model_trains_and_resumes(tmp_path):
    "Loss and validation in nats an item; a run goes on where it stopped"
    whole = tiny_run(coded(), tmp_path/'a', 3)
    with pytest.raises(KeyboardInterrupt): tiny_run(coded(), tmp_path/'b', 3, callbacks=[Break(5)])
    same_end(tiny_run(coded(), tmp_path/'b', 3, resume=True), whole)
    assert whole.losses[-1][1] < whole.losses[0][1]

@pytest.mark.parametrize('make', [lambda: t5(TITLES), lambda: titles(n=24)], ids=['t5', 'titles'])
def test_every_weighting_in_nats_an_item(make):
    "D/n times the weighted mean over deciding tokens, by hand; what becomes the same"
    model, rng = make(), np.random.default_rng(0)
    trie, soft = ItemTrie.build(TITLES) if isinstance(model, TigerT5) else model.trie, model.soft
    ids = TITLES if isinstance(model, TigerT5) else model.ids
    facts = dict(counts=np.arange(1, 25), vectors=rng.normal(size=(24, 4)))
    history, targets, value = users(24, n=6, seed=9).clamp(min=0), torch.arange(6)*4, {}
    ways = dict(uniform={}, igd={}, position={}, front_greater={}, frequency={}, ranking={}, cft={}, multi={}) | {'fg-prefix': {}, 'igd ': dict(beta=.9), 'cft ': dict(lam=0.), 'ranking ': dict(tau=1.)}
    for name, given in ways.items():
        rule = make_weighting(name.strip(), **given)
        loss = rule.objective(trie, ids, **facts).per_item(soft.deciding)
        if name == 'multi': loss.set_pace(10)
        with torch.no_grad():
            out = model(history=history, targets=targets, tau=loss.tau, null_history=loss.null_history)
            value[name] = float(loss(out)[0])
        if name == 'multi': continue
        w, nll = rule.table(trie, ids, **facts)[targets], out.nll + (loss.lam*out.effect if out.effect is not None else 0)
        here = soft.deciding[targets]
        assert value[name] == pytest.approx(float(here.sum()/6*(w*nll)[here].sum()/w[here].sum()), rel=1e-4)
    for same in ('igd', 'igd ', 'ranking '): assert value[same] == pytest.approx(value['uniform'], rel=1e-5)
    assert value['cft '] == pytest.approx(value['position'], rel=1e-5)
    assert len({round(value[n], 5) for n in ('uniform', 'position', 'front_greater', 'fg-prefix', 'frequency', 'ranking', 'cft', 'multi')}) == 8

@DEEP
@given(tables_with_counts(max_items=20, max_len=5))
def test_decided_beams_need_no_step(case):
    "Against a search that computes every beam: narrow beams, seen items, IGD-decoding; forced tokens before further choices"
    paths, counts = case
    ids, counts = identifiers(paths), np.array(counts)
    N, trie = len(paths), ItemTrie.build(ids)
    gain, history = information_gain(trie, item_prior(counts)), HISTORY % N*(HISTORY >= 0) - (HISTORY < 0).long()
    model = t5(ids, counts)
    below = [len(set(trie.leaf[trie.items_below(torch.tensor([n]))[0]].tolist())) for n in range(trie.n_nodes)]
    assert model.soft.decided.tolist() == [n == 1 for n in below]
    configs = [DecodeConfig(beams=k, alpha=a, exclude_seen=e) for k in (2, 4, N) for a, e in ((0., False), (.3, True))]
    found = recommend_each(model, trie, history, N, configs, gain)
    model.soft.__dict__['decided'] = torch.zeros(trie.n_nodes, dtype=torch.bool)
    for (items, scores), (every, theirs) in zip(found, recommend_each(model, trie, history, N, configs, gain)):
        assert items.tolist() == every.tolist()
        torch.testing.assert_close(scores, theirs, atol=1e-5, rtol=0)

def test_a_step_computes_undecided_beams_alone():
    "Rows of the cache: the start, then as many as the user with the most choices has; none once all is forced"
    ids = identifiers([[3, 3, 3, 3], [3, 3, 3, 4], [3, 4, 3, 3], [4, 3, 3, 3], [5, 3, 3, 3]])
    model, alone = t5(ids), t5(ids, softmax='vocabulary')
    for m, rows in ((model, [1, 2, 3, 4]), (alone, [1, 6, 11, 16])):
        state = m.prefill(torch.tensor([[0, 1], [2, 3]]))[1]
        kept, parents = [state.visible.shape[2]], torch.zeros(2, 5, dtype=torch.long)
        for t in (0, 1, 2):
            m.decode_step(state, m.paths[:, t].expand(2, 5), parents)
            kept.append(state.visible.shape[2])
            parents = torch.arange(5).expand(2, 5)
        assert kept == (rows if m is alone else [1, 4, 6, 8]), kept
