"""Beam search against `transformers`' generate with the trie as a logits processor, the library's and one of dictionaries."""
import pytest
import torch
from transformers import LogitsProcessor
from genrec_nb.batches import history_tokens
from genrec_nb.beam_search import DecodeConfig, beam_search
from genrec_nb.generate import TrieProcessor
from genrec_nb.semantic_ids import EOS
from oracles import t5
from test_beam_search import MODELS, TOL, found, models, same_list, setup, titles, users


class SlowLaw(LogitsProcessor):
    "The trie and the IGD weights with dictionaries"
    def __init__(self, d, prompt, gains, alpha): self.d, self.prompt, self.gains, self.alpha = d, prompt, gains, alpha
    def __call__(self, input_ids, scores):
        out = torch.full_like(scores, -torch.inf)
        scores = scores.log_softmax(1)                                          # greedy search hands over logits
        for r, prefix in enumerate(input_ids[:, self.prompt:].tolist()):
            kids = self.d.allowed(prefix)
            if not kids: out[r, EOS] = 0.
            gains = [self.gains[self.d.number[(*prefix, t)]] for t in kids]
            for t, g in zip(kids, gains):
                wide = max(gains) - min(gains)
                out[r, t] = (1 - self.alpha*(g - min(gains))/wide if wide > 0 else 1.)*scores[r, t]
        return out

def generate(model, ids, history, k, law, prompt_is_history=False, **kwargs):
    "What `transformers` finds: ranked (path, score) of each user"
    if prompt_is_history:
        L = ids.max_len
        here = history >= 0
        x = torch.where(here[..., None], model.paths[history.clamp(min=0)], 0).flatten(1)
        mask, prompt = here.long().repeat_interleave(L, 1), x.shape[1]
        kwargs.update(use_cache=False)
    else: (x, mask), prompt = history_tokens(model.paths, history), 1
    law = law(prompt)
    kwargs.update(dict(prefix_allowed_tokens_fn=law) if callable(law) and not isinstance(law, LogitsProcessor) else dict(logits_processor=[law]))
    out = model.generate(input_ids=x, attention_mask=mask, num_beams=k, num_return_sequences=k, max_new_tokens=ids.max_len, do_sample=False,
                         return_dict_in_generate=True, output_scores=True, **kwargs)
    if k == 1: out.sequences_scores = torch.zeros(len(history))                 # greedy search knows no scores
    rows = []
    for path, score in zip(out.sequences[:, prompt:].tolist(), out.sequences_scores.tolist()):
        path = path[:path.index(EOS) + 1] if EOS in path else path
        rows.append((tuple(path), score))
    return [[(p, s if k > 1 else None) for p, s in rows[u*k:(u + 1)*k] if s > -1e8] for u in range(len(history))]

def only_the_trie(d):
    "`prefix_allowed_tokens_fn` from the dictionary"
    return lambda prompt: lambda user, tokens: d.allowed(tokens[prompt:].tolist()) or [EOS]


@models
@pytest.mark.parametrize('seed, k, early', [(0, 1, False), (1, 2, 'never'), (2, 7, False), (1, 50, 'never')])
def test_plain_search_is_generate(which, k, seed, early):
    "Same paths, order and scores; `early_stopping` and lengths make no difference without a length penalty"
    make, table, flat = MODELS[which]
    ids = table(seed=seed)
    model, history = make(ids, seed), users(ids.n_items, seed=seed)
    trie, d, gain, _ = setup(ids, seed)
    ours = found(d, beam_search(model, trie, history, DecodeConfig(beams=k, exclude_seen=False), gain))
    theirs = generate(model, ids, history, k, only_the_trie(d), flat, length_penalty=0., early_stopping=early)
    for a, b in zip(ours, theirs, strict=True): same_list(a, b)
    assert all(len(a) == min(k, len(set(d.paths))) for a in ours) or which == 'titles'

@models
@pytest.mark.parametrize('seed, k, alpha', [(0, 1, .3), (2, 30, .3), (3, 10, 1.)])
def test_igd_decoding_is_generate_with_the_law(which, seed, k, alpha):
    "With the processor of the library and with one of dictionaries"
    make, table, flat = MODELS[which]
    ids = table(seed=seed)
    model, history = make(ids, seed), users(ids.n_items, seed=seed)
    trie, d, gain, slow_gain = setup(ids, seed)
    ours = found(d, beam_search(model, trie, history, DecodeConfig(beams=k, alpha=alpha, exclude_seen=False), gain))
    for law in (lambda prompt: SlowLaw(d, prompt, slow_gain, alpha), lambda prompt: TrieProcessor(trie, prompt, gain, alpha)):
        for a, b in zip(ours, generate(model, ids, history, k, law, flat, length_penalty=0., early_stopping='never'), strict=True): same_list(a, b)

@pytest.mark.parametrize('seed, k, alpha, penalty', [(0, 2, 0., 1.), (0, 2, 0., -1.), (1, 5, 0., .5), (2, 20, 0., -1.), (3, 30, 0., 1.), (0, 10, .3, .5)])
def test_length_penalty_is_generate_that_never_stops_early(seed, k, alpha, penalty):
    "early_stopping='never' bounds what may still come by the longest path, as we do; -1 favors short paths"
    ids = titles(seed=seed)
    model, history = t5(ids, seed), users(ids.n_items, seed=seed)
    trie, d, gain, slow_gain = setup(ids, seed)
    ours = found(d, beam_search(model, trie, history, DecodeConfig(beams=k, alpha=alpha, length_penalty=penalty, exclude_seen=False), gain))
    theirs = generate(model, ids, history, k, lambda prompt: SlowLaw(d, prompt, slow_gain, alpha), length_penalty=penalty, early_stopping='never')
    for a, b in zip(ours, theirs, strict=True): same_list(a, b)

@pytest.mark.parametrize('seed, early', [(0, False), (1, True), (2, False)])
def test_stopping_earlier_never_finds_more(seed, early):
    "Where `generate` stops by its heuristics, its list may be poorer than ours, place by place, never richer"
    ids = titles(seed=seed)
    model, history = t5(ids, seed), users(ids.n_items, seed=seed)
    trie, d, gain, _ = setup(ids, seed)
    ours = found(d, beam_search(model, trie, history, DecodeConfig(beams=4, length_penalty=1., exclude_seen=False), gain))
    theirs = generate(model, ids, history, 4, only_the_trie(d), length_penalty=1., early_stopping=early)
    for a, b in zip(ours, theirs, strict=True): assert len(a) >= len(b) and all(x >= y - TOL for (_, x), (_, y) in zip(a, b))

@models
def test_children_only_probabilities_in_generate(which):
    make, table, flat = MODELS[which]
    ids = table()
    model, history = make(ids), users(ids.n_items)
    trie, d, gain, _ = setup(ids)
    for alpha in (0., .3):
        ours = found(d, beam_search(model, trie, history, DecodeConfig(beams=10, alpha=alpha, normalize='children', exclude_seen=False), gain))
        theirs = generate(model, ids, history, 10, lambda prompt: TrieProcessor(trie, prompt, gain, alpha, 'children'), flat, length_penalty=0., early_stopping='never')
        for a, b in zip(ours, theirs, strict=True): same_list(a, b)
