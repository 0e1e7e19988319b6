"Tiny language models and histories that several tests share."
import numpy as np
import pytest
import torch
from genrec_nb.backbones import tiny_llama
from genrec_nb.beam_search import DecodeConfig
from genrec_nb.data import Interactions
from genrec_nb.splits import Cases
from genrec_nb.language_recommender import LMConfig, LanguageRecommender, language_recommender
from genrec_nb.prompts import title_identifiers
from genrec_nb.semantic_ids import EOS, Identifiers
from genrec_nb.train import TrainConfig, fit

WORDS = 'red blue steel wood long short screw bolt hammer glue tape saw'.split()

def some_titles(n=40, seed=0):
    "Titles of one to eight words, some twice, some the beginning of others, some with long endings of their own"
    rng = np.random.default_rng(seed)
    out = [' '.join(rng.choice(WORDS[:6], rng.integers(1, 4))) for _ in range(n - 6)]
    out += [f'{out[0]} {i} of a set that has {w} in it' for i, w in enumerate(WORDS[6:9])] + [out[1], f'{out[2]} again and again', 'Ångström: naïve, 100 % – “x”']
    return [out[i] for i in rng.permutation(n)]

def base(titles, seed=0, **config): return tiny_llama(titles + WORDS, vocab_size=330, seed=seed, **{**dict(initializer_range=.15), **config})

def make(seed=0, n=40, config=None, **sizes):
    "A recommender of titles, untrained, without adapters"
    titles = some_titles(n, seed)
    lm, tokenizer = base(titles, seed, **sizes)
    return LanguageRecommender(lm, tokenizer, title_identifiers(titles, tokenizer), config or LMConfig(base=None, max_tokens=256)).eval()

def make_codes(seed=0, tie=True, config=None, n=30):
    rng = np.random.default_rng(seed)
    ids = Identifiers.from_codes(rng.integers(0, 4, (n, 3)), [4, 4, 4], 'extra')
    lm = tiny_llama(WORDS, seed=seed, tie_word_embeddings=tie)
    return language_recommender(ids, lm, config or LMConfig(base=None, r=4, max_tokens=256, seed=seed))

def users(n_items, n=3, width=5, seed=0):
    rng = np.random.default_rng([seed, 1])
    history = torch.from_numpy(rng.integers(0, n_items, (n, width)))
    for u in range(n): history[u, :rng.integers(0, width)] = -1
    return history

def interactions(N, n_users=12, seed=0):
    rng = np.random.default_rng(seed)
    lengths = rng.integers(3, 8, n_users)
    items = np.concatenate([(rng.integers(N) + np.arange(l)) % N for l in lengths]).astype(np.int32)   # the next item is the next number
    return Interactions(items, np.r_[0, lengths.cumsum()], [str(u) for u in range(n_users)], N)

def valid_cases(x): return Cases(np.arange(4), x.items[:12], np.arange(0, 13, 3), x.items[3:7].astype(np.int64))

def tiny_run(model, folder, epochs=2, weights=None, **kwargs):
    x = interactions(len(model.ids), 6)
    config = TrainConfig(epochs=epochs, batch_size=8, lr=5e-3, eval_every=1, patience=0, warmup=0, weight_decay=0)
    return fit(model, x, valid_cases(x), model.trie, weights, config, folder, DecodeConfig(beams=5), **kwargs)

def slow_prompt(model, history):
    "Newest items first, as many as fit"
    c, cut = model.config, lambda text: model.tokenizer(text)['input_ids']
    before, after = c.template.split('{history}')
    longest = max(len(model.ids.path(i)) for i in range(len(model.ids)))
    own = model.own.tolist()
    room, out = c.max_tokens - len(cut(before)) - len(cut(after)) - longest, []
    for i in [i for i in history if i >= 0][::-1]:
        text = model.tokenizer.decode([own[t] for t in model.ids.path(i) if t != EOS]).strip()
        new = cut(text) + (cut(c.separator) if out else [])
        if len(out) + len(new) > room: break
        out = new + out
    return cut(before) + out + cut(after)

@pytest.fixture
def base_folder(tmp_path):
    "A tiny model as a folder"
    def save(lm, tokenizer, name='base'):
        lm.save_pretrained(tmp_path/name); tokenizer.save_pretrained(tmp_path/name)
        return str(tmp_path/name)
    return save
