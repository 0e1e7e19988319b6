"""Slow, plain second opinions that the tests hold against the library: dictionaries, loops and the standard library's sums."""
import json, math
import numpy as np
from hypothesis import settings, strategies as st
from genrec_nb.semantic_ids import Identifiers, SPECIAL, EOS

quick = settings(max_examples=60, deadline=None)
few = settings(max_examples=20, deadline=None)


# ---- identifiers --------------------------------------------------------------------------------------------------

def identifiers(paths, vocab_size=None):
    "Identifiers from lists of token ids"
    size = vocab_size or max(max(p) for p in paths) + 1
    return Identifiers(np.concatenate([np.asarray(p) for p in paths]), np.cumsum([0] + [len(p) for p in paths]),
                       SPECIAL + [f't{j}' for j in range(3, max(size, 3))], 'index')

def begins(a, b): return len(a) < len(b) and b[:len(a)] == a

@st.composite
def tables(draw, max_items=14, codes=5, max_len=4):
    "Paths of one length, or ragged with EOS, or ragged without and prefix-free; paths may be shared"
    token = st.integers(3, 2 + codes)
    form = draw(st.sampled_from(['fixed', 'eos', 'free']))
    if form == 'fixed':
        n = draw(st.integers(1, max_len))
        paths = draw(st.lists(st.lists(token, min_size=n, max_size=n), min_size=1, max_size=max_items))
    else:
        paths = draw(st.lists(st.lists(token, min_size=1, max_size=max_len), min_size=1, max_size=max_items))
        paths = [p + [EOS] for p in paths] if form == 'eos' else [p for p in paths if not any(begins(p, q) for q in paths)]
    again = draw(st.lists(st.sampled_from(paths), max_size=4))                 # collisions
    return draw(st.permutations(paths + again))

@st.composite
def tables_with_counts(draw, least=0, **kwargs):
    "A table and how often each item is a target, at least one of them once"
    paths = draw(tables(**kwargs))
    counts = draw(st.lists(st.integers(least, 30) | st.sampled_from([10**4, 10**6]), min_size=len(paths), max_size=len(paths)))
    if not any(counts): counts[0] = 1
    return paths, counts


# ---- a trie of dictionaries ---------------------------------------------------------------------------------------

class Branch:
    "One prefix"
    def __init__(self, prefix): self.prefix, self.kids, self.items = prefix, {}, []
    def inside(self): return [self] + [b for t in sorted(self.kids) for b in self.kids[t].inside()]

class DictTrie:
    "The textbook trie; `branches` lists its prefixes breadth first, children by ascending token"
    def __init__(self, paths):
        self.root, self.paths = Branch(()), [tuple(p) for p in paths]
        for i, path in enumerate(self.paths):
            at = self.root
            at.items.append(i)
            for t in path:
                at = at.kids.setdefault(t, Branch(at.prefix + (t,)))
                at.items.append(i)
        self.branches, row = [], [self.root]
        while row:
            self.branches += row
            row = [b.kids[t] for b in row for t in sorted(b.kids)]
        self.number = {b.prefix: n for n, b in enumerate(self.branches)}
    def allowed(self, prefix): return sorted(self.branches[self.number[tuple(prefix)]].kids) if tuple(prefix) in self.number else []


# ---- entropies by their definition --------------------------------------------------------------------------------

def distinct_mass(trie, items, p):
    "Mass of each distinct path among the items"
    mass = {}
    for i in items: mass[trie.paths[i]] = mass.get(trie.paths[i], []) + [p[i]]
    return [math.fsum(m) for m in mass.values()]

def entropy(masses): return -math.fsum(m*math.log(m) for m in masses if m > 0)

def gain(trie, p, kind):
    "Gain of the edge into each branch, breadth first"
    def H(b):
        m = distinct_mass(trie, b.items, p)
        whole = math.fsum(m)
        if kind == 'global': return entropy(m)
        return entropy([x/whole for x in m]) if whole > 0 else 0.
    return [0. if not b.prefix else H(trie.branches[trie.number[b.prefix[:-1]]]) - H(b) for b in trie.branches]


# ---- small models -------------------------------------------------------------------------------------------------

def t5(ids, seed=0, max_items=8, sharp=3., **config):
    "An untrained T5 whose logits are far apart"
    from genrec_nb.tiger import tiger_t5
    model = tiger_t5(ids, max_items=max_items, seed=seed, d_model=16, d_ff=24, num_layers=2, num_decoder_layers=2, num_heads=2, d_kv=8, **config).eval()
    model.shared.weight.data *= sharp
    return model

def packed(ids, seed=0, max_items=8, sharp=2., **config):
    "An untrained item decoder whose logits are far apart"
    from genrec_nb.item_decoder import item_decoder
    model = item_decoder(ids, max_items=max_items, seed=seed, **{**dict(d_model=16, num_layers=2, num_heads=2), **config}).eval()
    for e in model.codes: e.weight.data *= 30*sharp
    return model

def next_logp(model, history, prefix):
    "Log-probabilities of the token after `prefix`, from the training pass alone: no cache, no beams, one user; float64 [V]"
    import torch
    from genrec_nb.batches import history_tokens
    items = torch.tensor([[i for i in history if i >= 0]])
    with torch.inference_mode():
        if hasattr(model, 'encoder'):
            x, mask = history_tokens(model.inputs, items)
            start = torch.tensor([[model.config.decoder_start_token_id, *prefix]])
            logits = model(input_ids=x, attention_mask=mask, decoder_input_ids=start, use_cache=False).logits[0, -1]
        else: logits = model(input_ids=torch.cat([model.paths[items].flatten(1), torch.tensor([list(prefix)], dtype=torch.long)], 1)).logits[0, -1]
    return logits.double().log_softmax(0)


def all_logp(model, history, paths):
    "The same after every beginning of the `paths`, in one training pass over all of them: {prefix: float64 [V]}"
    import torch
    from genrec_nb.batches import history_tokens
    paths = sorted(set(map(tuple, paths)))
    width = max(map(len, paths))
    before = torch.tensor([[*p, *[0]*(width - len(p))][:-1] for p in paths], dtype=torch.long).view(len(paths), -1)
    items = torch.tensor([[i for i in history if i >= 0]]).expand(len(paths), -1).long()
    with torch.inference_mode():
        if hasattr(model, 'encoder'):
            x, mask = history_tokens(model.inputs, items)
            start = torch.nn.functional.pad(before, (1, 0), value=model.config.decoder_start_token_id)
            logits = model(input_ids=x, attention_mask=mask, decoder_input_ids=start, use_cache=False).logits
        else: logits = model.flat_logits(torch.cat([model.paths[items].flatten(1), before], 1))[:, -width:]
    logp = logits.double().log_softmax(-1)
    return {p[:t]: row[t] for p, row in zip(paths, logp) for t in range(len(p))}


def byte_tokenizer(titles, size=400):
    "A byte-level BPE that gives back every text"
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    t = Tokenizer(models.BPE())
    t.pre_tokenizer, t.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    t.train_from_iterator(titles, trainers.BpeTrainer(vocab_size=size, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False))
    return t


@st.composite
def colliding(draw, levels=st.integers(1, 3), size=4):
    "Codes with many collisions, and distances whose values repeat"
    L, n = draw(levels), draw(st.integers(1, 30))
    codes = draw(st.lists(st.tuples(*[st.integers(0, 1)]*(L - 1), st.integers(0, size - 1)), min_size=n, max_size=n))
    d = draw(st.lists(st.lists(st.integers(0, 6), min_size=size, max_size=size), min_size=n, max_size=n))
    return np.array(codes), np.array(d, float)


def small_data(folder, users=80, items=40, seed=0, text=True):
    "A made-up data set in the JSON layout: users walk through the catalog, a few are too short to be evaluated"
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    walk = lambda u: list(dict.fromkeys(int(i) for i in (rng.integers(items) + np.cumsum(rng.integers(1, 4, rng.integers(6, 14)))) % items))
    inter = {str(u): walk(u) if u > 2 else [u, u + 1] for u in range(users)}
    about = {str(i): dict(title=f'Item {i}', description=f'color {i % 5} shape {i % 7} size {i % 3}') for i in range(items)}
    (folder/f'{folder.name}.inter.json').write_text(json.dumps(inter))
    if text: (folder/f'{folder.name}.item.json').write_text(json.dumps(about))
    return folder


def change_held_out(folder, items=40):
    "Replace every validation and test item of `small_data` by others"
    path = folder/f'{folder.name}.inter.json'
    inter = json.loads(path.read_text())
    path.write_text(json.dumps({u: h[:-2] + [i for i in range(items) if i not in h][:2] if len(h) > 2 else h for u, h in inter.items()}))


# ---- processes ------------------------------------------------------------------------------------------------------

def kill_when(there, work):
    "Do `work` in a fork, and SIGKILL it as soon as `there()`"
    import multiprocessing, time
    p = multiprocessing.get_context('fork').Process(target=work)
    p.start()
    until = time.monotonic() + 120
    while p.is_alive() and time.monotonic() < until and not there(): time.sleep(.01)
    assert p.is_alive(), 'it ended before it could be killed'
    p.kill()
    p.join()

def slowly(seconds, work):
    "`work` with training steps that take their time"
    import time
    import genrec_nb.pipeline as pipeline
    class Slow(pipeline._Steps):
        def on_step_end(self, *args, **kwargs): time.sleep(seconds)
    def run():
        pipeline._Steps = Slow
        work()
    return run
