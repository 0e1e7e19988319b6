"Language models as recommenders, on a tiny random Llama: the engine against generate of transformers and against scoring every item, losses against loops, saving."
import numpy as np
import pytest
import torch
from transformers import TrainerCallback
from genrec_nb.backbones import load_lm, tiny_llama
from genrec_nb.beam_search import DecodeConfig, beam_search, recommend, recommend_each
from genrec_nb.core import GenrecError
from genrec_nb.splits import Cases
from genrec_nb.generate import TrieProcessor
from genrec_nb.infogain import information_gain, item_prior
from genrec_nb.language_recommender import LMConfig, LanguageRecommender, language_recommender
from genrec_nb.objectives import make_weighting
from genrec_nb.prompts import title_identifiers
from genrec_nb.semantic_ids import PAD, Identifiers
from genrec_nb.rank import _case_ce
from genrec_nb.train import TrainConfig, _as_loss, _batch_targets, fit
from language import base_folder, WORDS, some_titles, base, make, make_codes, users, interactions, valid_cases, tiny_run, slow_prompt

TOL = 1e-3

def gains(trie, seed=0):
    rng = np.random.default_rng([seed, 2])
    return information_gain(trie, item_prior(rng.integers(1, 50, trie.n_items)*(rng.random(trie.n_items) > .2)))

def same(a, b, tol=TOL):
    "Two `Beams`: equal scores place by place, equal nodes but inside ties"
    np.testing.assert_allclose(a.scores.numpy(), b.scores.numpy(), atol=tol, rtol=1e-6)
    for x, y, s in zip(a.nodes.tolist(), b.nodes.tolist(), a.scores.tolist()):
        for i in range(len(x)):
            tie = [j for j in range(len(x)) if abs(s[j] - s[i]) <= 2*tol or s[j] == s[i]]
            assert x[i] == y[i] or x[i] in [y[j] for j in tie] or tie[-1] == len(x) - 1

def by_generate(model, history, k, gain, alpha, normalize='vocabulary', **kwargs):
    "What `transformers` finds: leaves and scores"
    x, mask = model.prompt(history)
    law = TrieProcessor(model.trie, x.shape[1], gain, alpha, normalize, vocabulary=model.own)
    out = model.lm.generate(input_ids=x, attention_mask=mask, num_beams=k, num_return_sequences=k, max_new_tokens=model.trie.max_depth, do_sample=False,
                            logits_processor=[law], return_dict_in_generate=True, output_scores=True, **kwargs)
    path = torch.where(out.sequences[:, x.shape[1]:] < len(law.to_trie), law.to_trie[out.sequences[:, x.shape[1]:].clamp(max=len(law.to_trie) - 1)], -1)
    nodes = model.trie.walk(path)
    leaf = torch.where(nodes >= 0, nodes, 0).amax(1)
    return leaf.view(-1, k), out.sequences_scores.view(-1, k)

@pytest.mark.parametrize('seed, k, alpha, penalty', [(0, 2, 0., 0.), (2, 10, 0., 0.), (3, 8, .3, 0.), (4, 7, 0., 1.), (5, 10, .2, 1.)])
def test_search_is_generate(seed, k, alpha, penalty):
    "Ragged titles with chains, histories of different lengths: same leaves, same scores"
    model = make(seed)
    history, gain = users(len(model.ids), seed=seed), gains(model.trie, seed)
    ours = beam_search(model, model.trie, history, DecodeConfig(beams=k, alpha=alpha, length_penalty=penalty, exclude_seen=False), gain)
    nodes, scores = by_generate(model, history, k, gain, alpha, length_penalty=penalty, early_stopping='never')
    real = ours.nodes >= 0
    assert real[:, :min(k, 10)].all()
    np.testing.assert_allclose(ours.scores[real], scores[real], atol=TOL)
    assert ours.nodes[real].tolist() == nodes[real].tolist()

@pytest.mark.parametrize('seed, alpha', [(0, 0.), (1, .3)])
def test_children_only_probabilities(seed, alpha):
    "A token without an alternative is certain then, also where it was read ahead"
    model = make(seed)
    gain = gains(model.trie, seed)
    history = users(40, seed=seed)
    ours = beam_search(model, model.trie, history, DecodeConfig(beams=8, alpha=alpha, normalize='children', exclude_seen=False), gain)
    nodes, scores = by_generate(model, history, 8, gain, alpha, 'children', length_penalty=0., early_stopping='never')
    np.testing.assert_allclose(ours.scores, scores, atol=TOL)
    assert ours.nodes.tolist() == nodes.tolist()

@pytest.mark.parametrize('seed, k', [(0, 4), (1, 8)])
def test_search_on_codes_is_generate(seed, k):
    model = make_codes(seed).eval()
    history = users(30, seed=seed)
    ours = beam_search(model, model.trie, history, DecodeConfig(beams=k, exclude_seen=False))
    nodes, scores = by_generate(model, history, k, None, 0., length_penalty=0., early_stopping='never')
    np.testing.assert_allclose(ours.scores, scores, atol=TOL)
    assert ours.nodes.tolist() == nodes.tolist()

@pytest.mark.parametrize('seed, alpha, penalty', [(0, 0., 0.), (1, .3, 0.), (2, 0., 1.), (0, 0., -1.)])
def test_chains_change_nothing(seed, alpha, penalty):
    "Token by token, or any number of forced tokens at once: the same beams; fewer passes"
    found, passes = [], []
    for fill in (0, 100, 10**6):
        model = make(seed, config=LMConfig(base=None, max_tokens=256, fill=fill))
        states, prefill = [], model.prefill
        def remember(history): states.append(prefill(history)); return states[-1]
        model.prefill = remember
        gain = gains(model.trie, seed)
        found.append(beam_search(model, model.trie, users(40, seed=seed), DecodeConfig(beams=30, alpha=alpha, length_penalty=penalty, exclude_seen=False), gain))
        passes.append(states[0][1].passes)
    for other in found[1:]: same(found[0], other, 1e-4)
    assert passes == sorted(passes, reverse=True) and passes[0] > 2*passes[2]

@pytest.mark.parametrize('which', ['titles', 'codes'])
def test_a_beam_as_wide_as_the_catalog_is_exact(which):
    "Every item's score by the training pass, sorted"
    model = make(3) if which == 'titles' else make_codes(3).eval()
    N = len(model.ids)
    history = users(N, seed=3)
    items, scores = recommend(model, model.trie, history, N, DecodeConfig(beams=N, exclude_seen=False))
    with torch.no_grad(): exact = torch.stack([-model(h.expand(N, -1), torch.arange(N)).nll.sum(1) for h in history])
    np.testing.assert_allclose(scores, exact.sort(descending=True).values, atol=TOL)
    np.testing.assert_allclose(scores, exact.gather(1, items), atol=TOL)
    assert all(sorted(row) == list(range(N)) for row in items.tolist())            # items of one title too: each by itself

def family(name, vocabulary):
    "Untrained models of other families: positions learned or turned, with an offset, scaled embeddings, capped logits, windows"
    import transformers as T
    like_llama = dict(vocab_size=vocabulary, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
                      max_position_embeddings=1024, initializer_range=.15, bos_token_id=None, eos_token_id=0, pad_token_id=0)
    ends = dict(eos_token_id=0, bos_token_id=0, pad_token_id=0)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return dict(qwen2=lambda: T.Qwen2ForCausalLM(T.Qwen2Config(**like_llama, tie_word_embeddings=False)),
                    mistral=lambda: T.MistralForCausalLM(T.MistralConfig(**like_llama, sliding_window=512)),
                    gemma2=lambda: T.Gemma2ForCausalLM(T.Gemma2Config(**like_llama, head_dim=8)),
                    gpt2=lambda: T.GPT2LMHeadModel(T.GPT2Config(vocab_size=vocabulary, n_embd=32, n_layer=2, n_head=4, initializer_range=.15, **ends)),
                    opt=lambda: T.OPTForCausalLM(T.OPTConfig(vocab_size=vocabulary, hidden_size=32, ffn_dim=64, num_hidden_layers=2, num_attention_heads=4,
                                                             word_embed_proj_dim=32, init_std=.15, **ends)))[name]().eval()

@pytest.mark.parametrize('what', ['titles', 'codes'])
@pytest.mark.parametrize('name', ['qwen2', 'mistral', 'gemma2', 'gpt2', 'opt'])
def test_any_causal_model_will_do(name, what):
    "The shared cache gives what the training pass gives, and the adapters find their layers"
    titles = some_titles(20)
    tokenizer = base(titles)[1]
    ids = title_identifiers(titles, tokenizer) if what == 'titles' else Identifiers.from_codes(np.arange(20)[:, None]//np.array([5, 1]) % 5, policy='keep')
    model = language_recommender(ids, (family(name, len(tokenizer)), tokenizer), LMConfig(base=None, r=4, max_tokens=256)).eval()
    for p in model.parameters():
        if p.requires_grad: p.data += .02*torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel()))
    history = users(20, seed=3)
    items, scores = recommend(model, model.trie, history, 20, DecodeConfig(beams=20, exclude_seen=False))
    with torch.no_grad(): exact = torch.stack([-model(h.expand(20, -1), torch.arange(20)).nll.sum(1) for h in history])
    np.testing.assert_allclose(scores, exact.gather(1, items), atol=TOL)
    np.testing.assert_allclose(scores, exact.sort(descending=True).values, atol=TOL)
    assert any('lora' in n for n, _ in model.named_parameters())

@pytest.mark.parametrize('n', [1, 2])
def test_a_catalog_of_one_title(n):
    "Nothing to choose: every token is forced, and no history is needed"
    titles = ['red saw']*n
    lm, tokenizer = base(titles)
    model = LanguageRecommender(lm, tokenizer, title_identifiers(titles, tokenizer), LMConfig(base=None, max_tokens=128)).eval()
    items, scores = recommend(model, model.trie, torch.tensor([[0], [-1]]), 3, DecodeConfig(beams=3, exclude_seen=False))
    assert items.tolist() == [[*range(n), *[-1]*(3 - n)]]*2
    with torch.no_grad(): np.testing.assert_allclose(-scores[:, 0], model(torch.tensor([[0], [-1]]), torch.tensor([0, 0])).nll.sum(1), atol=TOL)

def test_seen_items_and_small_batches():
    model = make(4)
    history = users(40, n=7, seed=4)
    one, _ = recommend(model, model.trie, history, 10, DecodeConfig(beams=10), batch_size=2)
    all_, _ = recommend(model, model.trie, history, 10, DecodeConfig(beams=10), batch_size=7)
    assert one.tolist() == all_.tolist()
    assert not (one[:, :, None] == history[:, None]).any()

def test_the_prompt_is_read_once_a_user():
    "No pass has more rows than users; the first one alone reads the prompts; dead beams are not read"
    model, shapes = make(5), []
    model.lm.register_forward_pre_hook(lambda m, args, kwargs: shapes.append(tuple(kwargs['input_ids'].shape)), with_kwargs=True)
    history = users(40, n=4, seed=5)
    beam_search(model, model.trie, history, DecodeConfig(beams=10, exclude_seen=False))
    assert {s[0] for s in shapes} == {4} and len(shapes) < model.trie.max_depth
    assert sum(s[1] for s in shapes[1:]) < 10*model.trie.max_depth
    logits, state = model.prefill(history)
    first = model.trie.children(torch.zeros(4, 1, dtype=torch.long))[:, 0, :1]
    model.decode_step(state, torch.full((4, 1), PAD), torch.zeros(4, 1, dtype=torch.long))
    assert state.passes == state.tokens == 0 and (state.at == -1).all() and len(first)

def test_what_was_read_for_one_search_serves_the_next():
    "The same lists as from searches alone, and only what is new is read"
    model, read = make(5), []
    gain, history = gains(model.trie, 5), users(40, n=5, seed=5)
    scores = torch.randn(5, 40, generator=torch.Generator().manual_seed(5))
    configs = [DecodeConfig(beams=6), DecodeConfig(beams=6), DecodeConfig(beams=6, alpha=.3, length_penalty=1.), DecodeConfig(beams=6, assistant_weight=.5)]
    hook = model.lm.register_forward_pre_hook(lambda m, args, kwargs: read.append(kwargs['input_ids'].numel()), with_kwargs=True)
    together = recommend_each(model, model.trie, history, 6, configs, gain, assistant=scores)
    once = sum(read)
    read.clear()
    for c, (items, s) in zip(configs, together):
        alone, t = recommend(model, model.trie, history, 6, c, gain, assistant=scores)
        assert items.tolist() == alone.tolist()
        torch.testing.assert_close(s, t, atol=TOL, rtol=0)
    hook.remove()
    assert once < .6*sum(read)
    first, state = model.prefill(history)
    model.decode_step(state, model.trie.token[model.trie.children(torch.zeros(5, 1, dtype=torch.long))[:, 0, :1]].long(), torch.zeros(5, 1, dtype=torch.long))
    again, _ = model.restart(state)
    assert torch.equal(again, first)

def test_predictions_of_every_prefix_are_those_of_the_training_pass():
    "Down every item's path, all items as beams of one user; each row sums to one"
    model = make(6)
    history, n = users(40, n=2, seed=6), 40
    with torch.no_grad():
        want = torch.stack([model(h.expand(n, -1), torch.arange(n)).nll for h in history])       # [2, N, T]
        logits, state = model.prefill(history)
        logits, parents = logits.expand(-1, n, -1), torch.zeros(2, n, dtype=torch.long)
        for t in range(model.paths.shape[1]):
            here = (model.paths[:, t] != PAD)[None].expand(2, -1)
            np.testing.assert_allclose(logits.logsumexp(2)[here], 0, atol=1e-4)
            got = -logits.gather(2, model.paths[:, t].expand(2, -1)[..., None])[..., 0]
            np.testing.assert_allclose(got[here], want[:, :, t][here], atol=TOL)
            logits = model.decode_step(state, model.paths[:, t].expand(2, -1), parents)
            parents = torch.arange(n).expand(2, -1)

def test_case_ce_is_the_mean_loss():
    model = make(7)
    history, targets = users(40, n=6, seed=7), torch.arange(6)
    cases = Cases(np.arange(6), history[history >= 0].numpy().astype(np.int32), np.r_[0, (history >= 0).sum(1).cumsum(0)], targets.numpy())
    with torch.no_grad(): nll = model(history, targets).nll
    assert _case_ce(model, cases, batch_size=4) == pytest.approx(float(nll.sum()/(nll > 0).sum()), abs=1e-4)

def slow_logits(model, history, target):
    "Logits at each answer token: one sequence alone, all positions [T, W]"
    own = model.own.tolist()
    prompt, answer = slow_prompt(model, history), [own[t] for t in model.ids.path(target)]
    return model.lm(torch.tensor([prompt + answer])).logits[0, len(prompt) - 1:-1].double(), answer

@pytest.mark.parametrize('name', ['uniform', 'igd', 'position', 'frequency', 'front_greater', 'ranking', 'cft'])
@pytest.mark.parametrize('which', ['titles', 'codes'])
def test_weighted_losses_against_a_loop(name, which):
    "Prompt tokens get none, every answer token its weight, the sum is divided by the weights' sum"
    model = make(1) if which == 'titles' else make_codes(1).eval()
    N, rng = len(model.ids), np.random.default_rng(0)
    facts = dict(counts=rng.integers(0, 9, N), vectors=rng.normal(size=(N, 4)))
    weighting = make_weighting(name)
    loss = weighting.objective(model.trie, model.ids, **facts)
    table = weighting.table(model.trie, model.ids, **facts)
    history, targets = users(N, n=5, seed=9), torch.tensor([0, 1, 2, 3, N - 1])
    with torch.no_grad():
        got = float(loss(model(history, targets, tau=loss.tau, null_history=loss.null_history))[0])
        total = over = extra = 0.
        for h, target in zip(history.tolist(), targets.tolist()):
            z, answer = slow_logits(model, h, target)
            null_history, _ = slow_logits(model, [-1], target)
            for t, a in enumerate(answer):
                w = float(table[target, t])
                total -= w*float((z[t]/loss.tau).log_softmax(0)[a])
                extra -= w*float(((z[t] - null_history[t])/loss.tau).log_softmax(0)[a])
                over += w
    assert got == pytest.approx((total + (loss.lam*extra if name == 'cft' else 0))/over, rel=1e-4)

def test_shape_is_that_of_the_weights():
    model = make(2)
    out = model(users(40, n=2), torch.tensor([0, 1]))
    assert out.nll.shape == (2, model.trie.max_depth) == (2, _as_loss(None, model.trie).table.shape[1])
    assert ((out.nll > 0) == (model.paths[[0, 1]] != PAD)).all()

def test_bfloat16_differs_little():
    a, b = make(2), make(2)
    b.lm.to(torch.bfloat16)
    x = users(40, n=3), torch.tensor([0, 1, 2])
    with torch.no_grad(): np.testing.assert_allclose(a(*x).nll, b(*x).nll, atol=.3)
    beams = beam_search(b, b.trie, x[0], DecodeConfig(beams=5))
    assert beams.scores.dtype == torch.float and (beams.nodes >= 0).all()

def test_training_with_adapters(tmp_path):
    "The loss falls, adapters and new rows change, everything else stands still; checkpoints hold what is trained"
    model = make_codes(2)
    old = {n: p.detach().clone() for n, p in model.named_parameters()}
    result = tiny_run(model, tmp_path, 3)
    assert result.losses[-1][1] < result.losses[0][1]
    for n, p in model.named_parameters():
        assert torch.equal(p, old[n]) == (not p.requires_grad), n
    from safetensors import safe_open
    with safe_open(next(tmp_path.glob('checkpoint-*/model.safetensors')), 'pt') as f: kept = set(f.keys())
    assert kept == {n for n, p in model.named_parameters() if p.requires_grad}

@pytest.mark.parametrize('tie', [True, False])
def test_new_rows_learn_and_old_ones_do_not(tie):
    "In the embedding and, where they are not tied, in the output layer"
    model = make_codes(0, tie)
    tables = model.lm.get_input_embeddings(), model.lm.get_output_embeddings()
    everything, own = torch.arange(len(model.tokenizer)), model.own[3:]
    def rows():
        with torch.no_grad(): return tables[0](everything), tables[1](torch.eye(32)).T
    before = rows()
    model.train()
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=.1)
    targets = torch.arange(30)
    model(targets[:, None].flip(0), targets).nll.sum().backward()
    optimizer.step()
    for name, a, b in zip(('embedding', 'output'), before, rows()):
        moved = (a != b).any(1)[:len(everything)]
        new = torch.zeros(len(everything), dtype=torch.bool)
        new[own] = True
        assert not moved[~new].any(), name
        used = torch.unique(model.own[model.paths[model.paths >= 3]])
        assert moved[used].all(), name
    if tie: assert torch.equal(*rows())

def test_mixture_of_targets_and_resume(tmp_path):
    "MultiTargetLoss learns its weights beside the adapters, and a run goes on where it stopped"
    from genrec_nb.objectives import MultiTargetLoss
    def loss(model):
        rng = np.random.default_rng(0)
        facts = dict(counts=rng.integers(1, 9, len(model.ids)), vectors=rng.normal(size=(len(model.ids), 4)))
        return MultiTargetLoss({n: make_weighting(n).table(model.trie, model.ids, **facts) for n in ('uniform', 'front_greater', 'frequency')})
    model = make_codes(4)
    whole = tiny_run(model, tmp_path/'a', 2, loss(model))
    assert {'loss_uniform', 'weight_frequency'} <= set().union(*whole.logs)
    again = make_codes(4)
    other = tiny_run(again, tmp_path/'a', 2, loss(again), resume=True)                # all is done: the best is loaded
    for (n, p), q in zip(model.named_parameters(), again.parameters()): np.testing.assert_allclose(p.detach(), q.detach(), atol=1e-6, err_msg=n)
    assert other.best == whole.best

@pytest.mark.filterwarnings('ignore:`gradient_checkpointing` is deprecated')
def test_training_with_gradient_checkpointing(tmp_path):
    a, b = (tiny_run(make_codes(5), tmp_path/str(on), 1, gradient_checkpointing=on) for on in (False, True))
    assert a.losses[0][1] == pytest.approx(b.losses[0][1], rel=1e-3)

def test_full_fine_tuning_with_tied_weights(tmp_path):
    titles = some_titles(12)
    lm, tokenizer = base(titles)
    model = language_recommender(title_identifiers(titles, tokenizer), (lm, tokenizer), LMConfig(base=None, tuning='full', max_tokens=256))
    assert model.num_parameters() == model.num_parameters(True)
    result = tiny_run(model, tmp_path)
    assert result.losses[-1][1] < result.losses[0][1]
    assert model.lm.lm_head.weight is model.lm.model.embed_tokens.weight

def test_gradient_checkpointing_gives_the_same_gradients(tmp_path):
    grads = []
    for on in (False, True):
        model = make_codes(1, config=LMConfig(base=None, r=4, dropout=0., max_tokens=256, seed=1)).train()
        if on: model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=dict(use_reentrant=False))
        model(users(30, n=4), torch.arange(4)).nll.sum().backward()
        grads.append({n: p.grad for n, p in model.named_parameters() if p.requires_grad})
    for n, g in grads[0].items(): np.testing.assert_allclose(g, grads[1][n], atol=1e-4, err_msg=n)

@pytest.mark.parametrize('what', ['titles', 'codes', 'full'])
def test_saved_and_loaded_it_recommends_the_same(tmp_path, base_folder, what):
    titles = some_titles(20)
    folder = base_folder(*base(titles))
    lm = load_lm(folder, device='cpu')
    ids = Identifiers.from_codes(np.arange(20).reshape(20, 1)//np.array([5, 1]) % 5) if what == 'codes' else title_identifiers(titles, lm[1])
    model = language_recommender(ids, lm, LMConfig(base=folder, tuning='full' if what == 'full' else 'lora', r=4, max_tokens=256))
    torch.manual_seed(0)
    for p in model.parameters():
        if p.requires_grad: p.data += .05*torch.randn_like(p)                       # as if trained
    history = users(20)
    want = recommend(model, model.trie, history, 5, DecodeConfig(beams=5))
    size = sum(f.stat().st_size for f in model.save_pretrained(tmp_path/'saved').rglob('*.safetensors'))
    assert (size > 4*model.num_parameters()*.9) == (what == 'full')                # adapters alone are small
    loaded = LanguageRecommender.from_pretrained(tmp_path/'saved', device='cpu')
    got = recommend(loaded, loaded.trie, history, 5, DecodeConfig(beams=5))
    assert got[0].tolist() == want[0].tolist()
    np.testing.assert_allclose(got[1], want[1], atol=1e-4)
    assert loaded.num_parameters(True) == model.num_parameters(True) and loaded.config == model.config and loaded.ids == model.ids

@pytest.mark.parametrize('tie', [True, False])
def test_folded_adapters_say_the_same(tmp_path, tie):
    model = make_codes(0, tie).eval()
    torch.manual_seed(0)
    for p in model.parameters():
        if p.requires_grad: p.data += .05*torch.randn_like(p)
    history, targets = users(30), torch.arange(3)
    with torch.no_grad():
        a = model(history, targets).nll
        b = model.merge()(history, targets).nll
        c = LanguageRecommender.from_pretrained(model.save_pretrained(tmp_path/'whole'), device='cpu').eval()(history, targets).nll
    np.testing.assert_allclose(a, b, atol=1e-4)
    np.testing.assert_allclose(a, c, atol=1e-4)

def test_saving_spares_other_folders(tmp_path):
    (tmp_path/'mine').mkdir(); (tmp_path/'mine'/'thesis.txt').write_text('do not delete')
    with pytest.raises(GenrecError, match='is not replaced'): make(0, 12).save_pretrained(tmp_path/'mine')
    with pytest.raises(GenrecError, match='llm.json'): LanguageRecommender.from_pretrained(tmp_path/'mine')

def test_adapters_on_a_nameless_model_want_it_back(tmp_path):
    model = make_codes(0)
    model.save_pretrained(tmp_path/'saved')
    with pytest.raises(GenrecError, match='hand it over again'): LanguageRecommender.from_pretrained(tmp_path/'saved')
    again = LanguageRecommender.from_pretrained(tmp_path/'saved', tiny_llama(WORDS, seed=0))
    history = users(30)
    a, b = (recommend(m.eval(), m.trie, history, 5, DecodeConfig(beams=5)) for m in (model, again))
    assert a[0].tolist() == b[0].tolist()

@pytest.mark.parametrize('setting, message', [
    (dict(tuning='prompt'), 'lora, full'), (dict(template='Next?'), 'once'), (dict(template='{history} {history}'), 'once'),
    (dict(r=0), 'r is 0'), (dict(max_items=0), 'max_items'), (dict(dtype='float99'), 'float99'), (dict(dtype='int8'), 'bfloat16'),
    (dict(dropout=1.), 'dropout'), (dict(tuning='full', four_bit=True), '4-bit'),
    (dict(packed=True, template='so far: {history}; next:'), 'template must end')])
def test_settings_that_cannot_be(setting, message):
    with pytest.raises(GenrecError, match=message): LMConfig(**setting)

def test_nothing_to_load_by_name():
    titles = some_titles(12)
    with pytest.raises(GenrecError, match='hand over'): language_recommender(title_identifiers(titles, base(titles)[1]), config=LMConfig(base=None))

def test_smollm2_finds_what_generate_finds():
    "One user, two beams, real titles; only where the model was converted before"
    from genrec_nb.loaders import load_movielens, cache_dir
    if not (cache_dir()/'smollm2-135m-instruct-from-q4_1'/'config.json').is_file(): pytest.skip('SmolLM2 has not been converted here: load_lm() does it')
    lm, tokenizer = load_lm(device='cpu')
    assert lm.num_parameters() == 134_515_008 and not hasattr(lm.config, 'quantization_config')
    model = LanguageRecommender(lm, tokenizer, title_identifiers(load_movielens().catalog.titles, tokenizer), LMConfig(base=None)).eval()
    history = torch.tensor([[49, 171]])
    ours = beam_search(model, model.trie, history, DecodeConfig(beams=2, exclude_seen=False))
    nodes, scores = by_generate(model, history, 2, None, 0., length_penalty=0., early_stopping='never')
    assert ours.nodes.tolist() == nodes.tolist()
    np.testing.assert_allclose(ours.scores, scores, atol=TOL)

def packing(kind='titles', seed=0, **config):
    "Untrained, lists as prompts; titles, the shortest paths of titles, or codes"
    if kind == 'codes': return make_codes(seed, config=LMConfig(base=None, r=4, max_tokens=256, seed=seed, packed=True, **config)).eval()
    titles = some_titles(40, seed)
    lm, tokenizer = base(titles, seed)
    ids = title_identifiers(titles, tokenizer, '', shortest=kind == 'shortest')
    return LanguageRecommender(lm, tokenizer, ids, LMConfig(base=None, max_tokens=400, packed=True, **config)).eval()

@pytest.mark.parametrize('kind', ['titles', 'shortest', 'codes'])
@pytest.mark.parametrize('tau', [1., .7])
def test_packed_losses_are_those_of_the_samples_alone(kind, tau):
    model = packing(kind)
    rng = np.random.default_rng(1)
    rows = [rng.integers(0, len(model.ids), n).tolist() for n in (6, 2, 1, 4)]
    items = torch.tensor([r + [-1]*(6 - len(r)) for r in rows])
    with torch.no_grad():
        out = model(items=items, tau=tau)
        alone = [model(torch.tensor([r[:k]]), torch.tensor([r[k]]), tau=tau) for r in rows for k in range(1, len(r))]
    assert out.targets.tolist() == [r[k] for r in rows for k in range(1, len(r))] == _batch_targets(dict(items=items)).tolist()
    np.testing.assert_allclose(out.nll, torch.cat([a.nll for a in alone]), atol=TOL)

def test_shortest_paths_are_what_is_read_and_written(tmp_path):
    "The history holds the tokens of the paths, not words cut anew; search is exact over the children; a table that was read back is read the same way"
    model = packing('shortest', softmax='children')
    whole = title_identifiers(some_titles(40), model.tokenizer, suffix='')
    cut = [whole.names(i)[:n] for i, n in enumerate(model.ids.lengths)]
    assert [model.ids.names(i) for i in range(40)] == cut and model.ids.lengths.sum() < .8*whole.lengths.sum()
    x, mask = model.prompt(torch.tensor([[3, 17, 8]]))
    text = model.tokenizer.convert_ids_to_tokens(x[0].tolist())
    gap = model.tokenizer.tokenize('\n')
    listed = [t for i in (3, 17, 8) for t in [*(n for n in model.ids.names(i) if n != '</s>'), *gap]][:-len(gap)]
    assert any(text[k:k + len(listed)] == listed for k in range(len(text)))
    history = torch.tensor([[3, 17, 8], [-1, 5, 6]])
    items, logp = recommend(model, model.trie, history, 40, DecodeConfig(beams=40, exclude_seen=False))
    assert sorted(items[0].tolist()) == list(range(40))
    np.testing.assert_allclose(logp.exp().sum(1), 1., atol=1e-4)                                       # equal titles share their path
    with torch.no_grad(): want = [float(model.soft.share[i] - model(history[:1], torch.tensor([i])).nll.sum()) for i in items[0].tolist()]
    np.testing.assert_allclose(logp[0], want, atol=1e-3)
    model.ids.save(tmp_path/'index.json')
    again = LanguageRecommender(model.lm, model.tokenizer, Identifiers.load(tmp_path/'index.json'), model.config).eval()
    assert again.ids == model.ids and again.prompt.words == model.prompt.words

def test_packed_training_learns_and_resumes(tmp_path):
    x = interactions(40, 6)
    def run(folder, **kwargs):
        model = language_recommender(title_identifiers(some_titles(), base(some_titles())[1], suffix=''), base(some_titles()), LMConfig(base=None, r=4, max_tokens=300, max_items=4, packed=True, dropout=0.))
        trie = model.trie
        return fit(model, x, valid_cases(x), trie, make_weighting('igd', beta=.3).objective(trie, model.ids, counts=x.target_counts()), TrainConfig(epochs=3, batch_size=4, lr=1e-2, eval_every=1, patience=0), folder, DecodeConfig(beams=4), **kwargs)
    whole = run(tmp_path/'a')
    assert whole.losses[-1][1] < whole.losses[0][1]
    class Break(TrainerCallback):
        def on_step_begin(self, args, state, control, **kwargs):
            if state.global_step == 3: raise KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt): run(tmp_path/'b', callbacks=[Break()])
    again = run(tmp_path/'b', resume=True)
    assert again.curve() == whole.curve() and again.losses[-1][1] == pytest.approx(whole.losses[-1][1], rel=1e-5)

def test_frozen_bfloat16_is_multiplied_in_bfloat16(tmp_path):
    "Adapters stay in float32; the products beside them are bfloat16 unless somebody says otherwise"
    x, seen = interactions(40, 6), []
    class Look(TrainerCallback):
        def on_train_begin(self, args, state, control, model=None, **kwargs): seen.append((args.bf16, {p.dtype for p in model.parameters() if p.requires_grad}))
    def run(dtype, **kwargs):
        lm, tokenizer = base(some_titles())
        ids = title_identifiers(some_titles(), tokenizer, suffix='')
        model = language_recommender(ids, (lm.to(dtype), tokenizer), LMConfig(base=None, r=4, max_tokens=300, max_items=4, packed=True, dropout=0.))
        products = []
        lora = next(m for n, m in model.named_modules() if n.endswith('lora_A.default'))
        lora.register_forward_hook(lambda m, a, out: products.append(out.dtype) if m.training else None)
        result = fit(model, x, valid_cases(x), model.trie, None, TrainConfig(epochs=2, batch_size=4, lr=1e-2, eval_every=2, patience=0), tmp_path/str(len(seen)), DecodeConfig(beams=4), callbacks=[Look()], **kwargs)
        return result, set(products)
    (single, of_single), (half, of_half), (mixed, of_mixed) = run(torch.float), run(torch.bfloat16), run(torch.bfloat16, bf16=False)
    assert seen == [(False, {torch.float}), (True, {torch.float}), (False, {torch.float})]
    assert (of_single, of_half, of_mixed) == ({torch.float}, {torch.bfloat16}, {torch.float})
    assert half.losses[-1][1] < half.losses[0][1] and half.losses[-1][1] == pytest.approx(single.losses[-1][1], rel=.05)

def test_packed_training_refuses():
    with pytest.raises(GenrecError, match="suffix=''"): make(config=LMConfig(base=None, max_tokens=256, packed=True))(items=torch.tensor([[0, 1]]))
    with pytest.raises(GenrecError, match='CFT blanks'): packing()(items=torch.tensor([[0, 1]]), null_history=True)
    with pytest.raises(GenrecError, match='max_items lower'): packing().samples(interactions(40, 24), 100)
