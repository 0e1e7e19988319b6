"""Speed, measured as ratios of two things in one run.

    OMP_NUM_THREADS=1 python .github/scripts/bench.py [trie catalog decode constraint exact tokenizers backbones weightings llm device profile memory] [--quick] [--out FILE.json]

Both sides of a race take turns and must give the same results. The figures in nbs/results/bench.json were made so.
"""

import gc, json, math, os, platform, random, subprocess, sys, tempfile, threading, time
import numpy as np
import torch
import torch.nn.functional as F
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from statistics import median
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import TrainerCallback

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))                # this checkout's library, whatever else is installed
from genrec_nb.core import GenrecError, versions, write_json
from genrec_nb.data import Interactions
from genrec_nb.splits import leave_one_out
from genrec_nb.loaders import load_dataset
from genrec_nb.embed import embed_texts
from genrec_nb.metrics import popularity_ranking, ranking_metrics
from genrec_nb.kmeans import balanced_kmeans, generator, residual_kmeans
from genrec_nb.rqvae import RQVAE, _batches
from genrec_nb.letter import LETTER, LETTERConfig, diversity_loss, _group_mates
from genrec_nb.semantic_ids import EOS, Identifiers, PAD, _code_tokens
from genrec_nb.trie import ItemTrie
from genrec_nb.trie_files import build_trie_file
from genrec_nb.dynamic_trie import DynamicTrie
from genrec_nb.collisions import _sort_rows
from genrec_nb.infogain import information_gain, item_prior, item_table
from genrec_nb.objectives import MultiTargetLoss, make_weighting
from genrec_nb.batches import LengthBatches, history_tokens
from genrec_nb.tiger import tiger_t5
from genrec_nb.item_decoder import item_decoder
from genrec_nb.generators import BACKBONES
from genrec_nb.beam_search import Beams, DecodeConfig, _expand_items, _item_share, beam_search, recommend
from genrec_nb.exact import exact_search
from genrec_nb.generate import TrieProcessor
from genrec_nb.rank import _rank_cases, rank_each
from genrec_nb.train import TrainConfig, _batch_targets, fit
from genrec_nb.backbones import SMOLLM2, load_lm, smollm2_folder
from genrec_nb.language_recommender import LMConfig, language_recommender
from genrec_nb.prompts import title_identifiers
from profiles import functions_of, operators_of

def race(
    contestants: dict, # name -> function without arguments
    rounds: int = 3, # times that each is run: A B A B A B
    warm_up: bool = True, # run each once before, untimed
) -> tuple[dict, dict]: # (name -> {wall, cpu: seconds of each round}, name -> last result)
    "Time functions in turns"
    times, results = {n: dict(wall=[], cpu=[]) for n in contestants}, {}
    for r in range(-warm_up, rounds):
        for name, f in contestants.items():
            results.pop(name, None)
            gc.collect(); gc.disable()
            try:
                wall, cpu = time.perf_counter(), time.process_time()
                results[name] = f()
                wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
            finally: gc.enable()
            if r >= 0: times[name]['wall'].append(wall); times[name]['cpu'].append(cpu)
    return times, results

def spread_of(
    values: list[float], # one for each round
) -> dict: # median, min, max, rounds
    "What is reported of a list of figures"
    return dict(median=median(values), min=min(values), max=max(values), rounds=len(values))

def seconds(
    times: dict, # from `race`
) -> dict: # name -> {wall: .., cpu: ..} with median, min, max
    "Medians and ranges of a race"
    return {n: {clock: spread_of(t) for clock, t in c.items()} for n, c in times.items()}

def ratio(
    times: dict, # from `race`
    slow: str, # name of the slower contestant
    fast: str, # name of the faster one
    clock: str = 'wall', # or 'cpu'
) -> dict: # median, min, max of slow/fast
    "How many times faster, round by round: only neighbors are divided by each other"
    return spread_of([a/max(b, 1e-9) for a, b in zip(times[slow][clock], times[fast][clock])])

def processor_name() -> str: # as the maker calls it
    "Name of the processor"
    try: return next(l.split(':')[1].strip() for l in open('/proc/cpuinfo') if l.startswith('model name'))
    except (OSError, StopIteration): return platform.processor() or platform.machine()

def machine() -> dict:
    "Where the figures were taken"
    return dict(processor=processor_name(), cores=len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count(),
                threads=torch.get_num_threads(), system=platform.system(), python=platform.python_version(),
                **{p: version(p) for p in ('torch', 'transformers', 'numpy')})

def dict_gains(
    paths: list[list[int]], # token ids of every item, none the beginning of another
    prior: list[float], # p of every item
) -> dict: # the root; a node maps tokens to nodes, and 'gain' to its (global, conditional) gain
    "Trie and both gains with nested dictionaries: the opponent and the oracle"
    root = {}
    for path, p in zip(paths, prior):
        node = root
        for t in path: node = node.setdefault(t, {})
        node['mass'] = node.get('mass', 0.) + p
    def up(node): # -> global H, mass, conditional H
        if 'mass' in node:
            m = node['mass']
            H = -m*math.log(m) if m else 0.
            return H, m, 0.
        below = [(child, *up(child)) for child in node.values()]
        H, m = sum(b[1] for b in below), sum(b[2] for b in below)
        Hc = (H + m*math.log(m))/m if m else 0.
        for child, h, _, hc in below: child['gain'] = (H - h, Hc - hc)
        return H, m, Hc
    up(root)
    return root

def array_gains(
    ids: Identifiers,
    prior: torch.Tensor, # float64 [N]
) -> tuple[ItemTrie, torch.Tensor, torch.Tensor]: # (trie, global gain [M], conditional gain [M])
    "The same with this library"
    trie = ItemTrie.build(ids)
    return trie, information_gain(trie, prior), information_gain(trie, prior, 'conditional')

def random_catalog(
    n: int, # N items
    levels: int = 4, # L
    size: int = 256, # codes per level
    seed: int = 0, # of the draw
) -> tuple[Identifiers, torch.Tensor]: # (identifiers, prior float64 [N])
    "Items with codes drawn at random and popularities that fall as a power: nearly two nodes an item, more than learned codes have"
    rng = np.random.default_rng(seed)
    flat = rng.integers(0, size, (n, levels), dtype=np.int32) + np.arange(levels, dtype=np.int32)*size + 3
    ids = Identifiers(flat.reshape(-1), np.arange(n + 1)*levels, _code_tokens([size]*levels))
    return ids, item_prior(rng.zipf(1.5, n).clip(max=10_000) - 1)            # many items with no training target, as in life

def gain_error(
    root: dict, # from `dict_gains`
    arrays: tuple, # from `array_gains`
    paths: list[list[int]], # token ids of every item
) -> float: # largest absolute difference, in nats
    "Largest difference between the two, over both gains and every token of every item"
    trie, *gains = arrays
    ours = torch.stack([item_table(trie, g) for g in gains], 2).numpy()      # [N, L, 2]
    worst = 0.
    for path, row in zip(paths, ours):
        node = root
        for t, g in zip(path, row):
            node = node[t]
            a, b = node['gain']
            worst = max(worst, abs(a - g[0]), abs(b - g[1]))
    return float(worst)

def race_trie(
    n: int, # items
    rounds: int = 3, # A B A B A B
    seed: int = 0, # of the catalog
) -> dict: # seconds, ratio and largest difference
    "Arrays and dictionaries in turns on one catalog"
    ids, prior = random_catalog(n, seed=seed)
    paths, masses = ids.codes().tolist(), prior.tolist()                     # lists are what the dictionaries read fastest
    times, results = race(dict(arrays=lambda: array_gains(ids, prior), dictionaries=lambda: dict_gains(paths, masses)), rounds, n <= 200_000)
    return dict(items=n, nodes=results['arrays'][0].n_nodes, seed=seed, seconds=seconds(times), ratio=ratio(times, 'dictionaries', 'arrays'),
                ratio_cpu=ratio(times, 'dictionaries', 'arrays', 'cpu'), difference=gain_error(results['dictionaries'], results['arrays'], paths))

def peak_memory() -> float: # GB
    "The most memory that this process ever held"
    try: return next(int(l.split()[1]) for l in open('/proc/self/status') if l.startswith('VmHWM'))*1024/1e9
    except (OSError, StopIteration): pass                                    # not on Linux
    try: import resource
    except ImportError: return 0.                                            # nor on a Mac: not known
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss*(1 if sys.platform == 'darwin' else 1024)/1e9

def measure_trie(
    n: int, # items
    rounds: int = 3, # builds
    seed: int = 0, # of the catalog
) -> dict: # seconds by both clocks, memory before and at the peak
    "Build the trie and both gains of one catalog in this process, which should be a fresh one"
    ids, prior = random_catalog(n, seed=seed)
    before = peak_memory()
    times, _ = race(dict(arrays=lambda: array_gains(ids, prior)[0].n_nodes), rounds, warm_up=False)
    return dict(items=n, seed=seed, **seconds(times)['arrays'], first=times['arrays']['wall'][0], before_gb=before, peak_gb=peak_memory())

def in_fresh_process(
    function: str, # name of a function of this module
    *args, # JSON values
): # what it returned
    "Run one of our functions in a new Python"
    code = f'import json, sys; sys.path.insert(0, {str(Path(__file__).parent)!r}); import bench as b; print("RESULT" + json.dumps(b.{function}(*{list(args)!r})))'
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
    lines = [l for l in done.stdout.splitlines() if l.startswith('RESULT')]
    if done.returncode or not lines: raise GenrecError(f'{function}{args} failed in its own process: {(done.stderr.strip() or "no output").splitlines()[-1]}')
    return json.loads(lines[-1][6:])

def each_in_fresh_process(
    name: str, # of a measurement: `measure_NAME` takes the number of items
    sizes: tuple[int, ...], # numbers of items
    progress=None, # something with `stage(name)`
) -> dict: # sizes: what was measured of each
    "Catalogs of several sizes, each measured in a new Python"
    found = []
    for n in sizes:
        if progress: progress.stage(f'{name}: {n:,} items, fresh process')
        found.append(in_fresh_process(f'measure_{name}', n))
    return dict(sizes=found)

def bench_trie(
    quick: bool = False, # smaller catalogs
    progress=None, # something with `stage(name)`
) -> dict:
    "trie and both information gains: arrays against dictionaries, time and memory by size"
    stage = progress.stage if progress else lambda name: None
    races, sizes = ((20_000,), (100_000, 1_000_000)) if quick else ((200_000, 1_000_000), (1_000_000, 10_000_000))
    out = dict(races=[], sizes=[])
    for n in races:
        stage(f'trie: {n:,} items, dictionaries')
        out['races'].append(race_trie(n, 3 if n < 1_000_000 else 1))
    for n in sizes:
        stage(f'trie: {n:,} items, fresh process')
        out['sizes'].append(in_fresh_process('measure_trie', n))
    small, large = out['sizes']
    out['per_item_growth'] = (large['cpu']['min']/large['items'])/(small['cpu']['min']/small['items'])
    return out

def trie_by_gathering(ids: Identifiers) -> tuple: # (token, first, row, count, order)
    "How version 0.1 built the arrays: rows are sorted and gathered, whole columns compared"
    order, rows = _sort_rows(np.reshape(ids.flat, (ids.n_items, -1)))
    new = np.ones(rows.shape[::-1], bool)
    new[:, 1:] = np.logical_or.accumulate((rows[1:] != rows[:-1]).T)
    node = new.cumsum(dtype=np.int32).reshape(new.shape)
    at, N = np.flatnonzero(new), len(rows)
    parent = np.where(at < N, 0, node.ravel()[at - N])
    children = np.bincount(parent, minlength=len(at) + 1)
    count = np.bincount(node[rows.T > 0])
    count[0] = N
    arrays = np.r_[-1, rows.T[new]], np.cumsum(np.r_[1, children]), np.r_[0, at % N], count, order
    return tuple(a.astype(np.int32) for a in arrays)

def measure_updates(
    trie: ItemTrie,
    more: np.ndarray, # int [3*k, L] paths of items that join, k at a time
    rounds: int = 3,
) -> dict: # seconds by both clocks
    "Items join, are re-weighed and leave; then everything is merged"
    k, n, live, rng = len(more)//3, trie.n_items, DynamicTrie(trie, np.ones(trie.n_items)), np.random.default_rng(1)
    times = {name: dict(wall=[], cpu=[]) for name in ('add', 'remove', 'reweigh', 'merge')}
    def clock(name, f):
        wall, cpu = time.perf_counter(), time.process_time()
        f()
        times[name]['wall'].append(time.perf_counter() - wall); times[name]['cpu'].append(time.process_time() - cpu)
    for r in range(rounds):
        some = rng.choice(n, min(k, n//8), replace=False)
        clock('reweigh', lambda: live.reweigh(some, rng.integers(0, 9, len(some))))
        clock('add', lambda: live.add(more[r*k:(r + 1)*k]))
    clock('remove', lambda: live.remove(some))
    clock('merge', live.merged)
    return dict(items=k, **{name: {c: spread_of(t) for c, t in x.items()} for name, x in times.items()})

def measure_catalog(
    n: int, # items
    rounds: int = 2, # builds
    memory: int = 2**28, # limit of the one on disk
    seed: int = 0, # of the catalog
) -> dict: # seconds, bytes and memory
    "Trie, gains, trie on disk and updates of one catalog, in this process, which should be a fresh one"
    k = min(10_000, n//4)
    every, prior = random_catalog(n + 3*k, seed=seed)
    paths, prior = every.flat.reshape(-1, 4), item_prior(prior[:n])
    ids, before = Identifiers(paths[:n].reshape(-1), np.arange(n + 1)*4, every.tokens), peak_memory()
    def trie_and_gain():
        trie = ItemTrie.build(ids)
        information_gain(trie, prior)
        return trie
    mine, results = race(dict(trie_and_gain=trie_and_gain), rounds, warm_up=False)
    peak, trie = peak_memory(), results['trie_and_gain']
    with tempfile.TemporaryDirectory() as folder:
        disk, _ = race(dict(on_disk=lambda: build_trie_file(Path(folder)/'trie.safetensors', paths[:n], ids.vocab_size, memory)), rounds, warm_up=False)
    updates = measure_updates(trie, paths[n:])
    both, results = race(dict(build=lambda: ItemTrie.build(ids), gathering=lambda: trie_by_gathering(ids)), rounds, warm_up=False)
    assert all(np.array_equal(x, getattr(trie, name).numpy()) for name, x in zip(('token', 'first', 'row', 'count', 'order'), results['gathering']))
    return dict(items=n, nodes=trie.n_nodes, bytes=sum(x.nbytes for x in trie.tensors().values()), seed=seed, memory=memory, before_gb=before, peak_gb=peak,
                seconds=seconds(mine | disk | both), ratio=ratio(both, 'gathering', 'build', 'cpu'), updates=updates)

def bench_catalog(
    quick: bool = False, # up to 10^5 items
    progress=None, # something with `stage(name)`
) -> dict:
    "catalogs of 10^3 to 10^7 items: seconds, bytes, additions; against gathering sorted rows"
    return each_in_fresh_process('catalog', (10**3, 10**5) if quick else (10**3, 10**4, 10**5, 10**6, 10**7), progress)

class MemoryCurve(threading.Thread):
    "Memory of this process every few milliseconds: its own pages, and those of mapped files with them"
    def __init__(self, every: float = .01): # seconds
        super().__init__(daemon=True)
        self.every, self.done, self.found = every, threading.Event(), []
    def run(self) -> None:
        start = time.perf_counter()
        while not self.done.wait(self.every):
            lines = dict(l.split(':', 1) for l in open('/proc/self/status') if l.startswith(('RssAnon', 'VmRSS')))
            self.found.append((time.perf_counter() - start, *(int(lines[k].split()[0])*1024/1e9 for k in ('RssAnon', 'VmRSS'))))
    def __exit__(self, *error) -> None: self.done.set(); self.join()
    def __enter__(self): self.start(); return self

def write_catalog(
    path: Path, # of a .npy file
    n: int, # items
    levels: int = 4, # L
    size: int = 256, # codes per level
    seed: int = 0, # of the draw
) -> None:
    "Codes drawn at random, a million items at a time, as int32 tokens [n, levels]"
    rng, out = np.random.default_rng(seed), np.lib.format.open_memmap(path, 'w+', np.int32, (n, levels))
    for a in range(0, n, 10**6):
        part = out[a:a + 10**6]
        part[:] = rng.integers(0, size, part.shape, dtype=np.int32) + np.arange(levels, dtype=np.int32)*size + 3
    out.flush()

def measure_memory(
    n: int, # items
    way: str, # 'memory' or 'disk'
    memory: int, # bytes that the one on disk may take
    seed: int = 0, # of the catalog
) -> dict: # curve: rows (seconds, own GB, GB with mapped files), of 200 at most
    "How much memory a build takes while it runs, in this process, which should be a fresh one; its paths are mapped from a file"
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        write_catalog(folder/'paths.npy', n, seed=seed)
        paths, file = np.load(folder/'paths.npy', mmap_mode='r'), folder/'trie.safetensors'
        tokens = _code_tokens([256]*4)
        gc.collect()
        with MemoryCurve(.01 if n < 10**8 else .1) as curve:
            cpu = time.process_time()
            if way == 'disk': trie = build_trie_file(file, paths, len(tokens), memory)
            else:
                trie = ItemTrie.build(Identifiers(np.asarray(paths).reshape(-1), np.arange(n + 1)*4, tokens))
                trie.save(file)
            cpu = time.process_time() - cpu
        nodes, size = trie.n_nodes, file.stat().st_size
    rows = curve.found[::-(-len(curve.found)//200)] if curve.found else []
    return dict(items=n, way=way, limit=memory if way == 'disk' else None, seed=seed, nodes=nodes, file_bytes=size, cpu=cpu, peak_gb=max((r[1] for r in curve.found), default=0.),
                before_gb=rows[0][1] if rows else 0., curve=[[round(v, 4) for v in r] for r in rows])

def bench_memory(
    quick: bool = False, # 200,000 and 300,000 items instead of 10^7 and 10^8
    progress=None, # something with `stage(name)`
) -> dict:
    "memory while a trie is built and saved: in memory, and on disk within two limits; 10^8 items on disk within one"
    stage, found = progress.stage if progress else lambda name: None, []
    some, most = (200_000, 300_000) if quick else (10**7, 10**8)
    for n, way, limit in ((some, 'memory', 0), (some, 'disk', 2**28), (some, 'disk', 2**27), (most, 'disk', 2**30)):
        stage(f'memory: {n:,} items, {way}')
        found.append(in_fresh_process('measure_memory', n, way, limit))
    return dict(builds=found, versions=versions())

def data_folder(
    name: str, # such as 'Beauty'
) -> Path | None: # None: not here
    "A data set with LETTER's identifiers in `$GENREC_DATA`, or in a folder shared/data beside the project or beside its parent"
    places = [os.environ.get('GENREC_DATA'), *(p/'shared'/'data' for p in (Path.cwd().parent, Path.cwd().parent.parent))]
    return next((Path(p)/name for p in places if p and (Path(p)/name/f'{name}.letter.index.json').is_file()), None)

def decode_case(
    users: int, # B
    items: int = 20, # last items of each history
    seed: int = 0, # of the synthetic case
) -> tuple: # (what it is, paths that end with EOS, histories int64 [B, H], training targets int64 [N])
    "Beauty with LETTER's identifiers where the data are, else random codes of the same shape with histories of like lengths"
    folder = data_folder('Beauty')
    if folder:
        ids = Identifiers.from_index(folder/'Beauty.letter.index.json').with_eos()
        split = leave_one_out(load_dataset(folder, text=False).interactions)
        return 'Beauty, letter identifiers, real histories', ids, torch.from_numpy(split.test.tail(items)[:users]), split.train.target_counts()
    rng = np.random.default_rng(seed)
    ids = Identifiers.random(12_101, levels=4, size=256, seed=seed).with_eos()
    length = (4 + rng.geometric(.2, users)).clip(max=items)
    history = rng.integers(0, ids.n_items, (users, items))
    counts = (9/(1 + np.arange(ids.n_items)/100)).astype(int)                # a few of them often
    return 'synthetic: 12,101 items, 4 codes of 256', ids, torch.from_numpy(np.where(np.arange(items, 0, -1) <= length[:, None], history, -1)), counts

def allowed_tokens(
    ids: Identifiers,
) -> dict: # decoder prefix (with the start token) -> list of allowed tokens
    "The prefix dictionary that is commonly handed to `generate`"
    out = {}
    for i in range(ids.n_items):
        path = (0, *ids.path(i).tolist())
        for t in range(1, len(path)): out.setdefault(path[:t], set()).add(path[t])
    return {k: sorted(v) for k, v in out.items()}

def generate_items(
    model, # a `TigerT5`
    trie: ItemTrie, # to read the answers
    history: torch.Tensor, # int64 [B, H]
    allowed: dict, # from `allowed_tokens`; a model with a prior has our processor instead
    beams: int, # k
    batch_size: int, # users in one call
) -> tuple[torch.Tensor, torch.Tensor]: # (items int64 [B, k], scores float [B, k])
    "Ranked items by `transformers`' own beam search"
    out, law = [], dict(prefix_allowed_tokens_fn=lambda _, path: allowed.get(tuple(path.tolist()), [EOS]), renormalize_logits=model.soft is not None)
    if hasattr(model, 'counts'): law = dict(logits_processor=[TrieProcessor(trie, prior=model.soft.prior)])
    for rows in history.split(batch_size):
        x, mask = history_tokens(model.paths, rows)
        found = model.generate(input_ids=x, attention_mask=mask, num_beams=beams, num_return_sequences=beams, max_new_tokens=trie.max_depth,
                               **law, length_penalty=0., return_dict_in_generate=True, output_scores=True)
        nodes = trie.walk(found.sequences[:, 1:])[:, -1].view(-1, beams)
        share = _item_share(model, trie, DecodeConfig())                      # of colliding items, if there is a prior
        out.append(_expand_items(trie, Beams(nodes, found.sequences_scores.view(-1, beams)), beams, share=share))
    return tuple(torch.cat(x) for x in zip(*out))

def by_length(history: torch.Tensor) -> torch.Tensor: # int64 [B, H]
    "Users with short histories first"
    return history[torch.argsort((history >= 0).sum(1), stable=True)]

@torch.inference_mode()
def encode_only(
    model, # a `TigerT5`
    history: torch.Tensor, # int64 [B, H]
    batch_size: int = 32, # as `recommend` does on a CPU
) -> None:
    "The part of the engine's work that is the encoder's"
    for rows in by_length(history).split(batch_size):
        x, mask = history_tokens(model.paths, rows)
        model.encoder(input_ids=x, attention_mask=mask)

def agreement(
    a: tuple, # (items, scores) of one side
    b: tuple, # of the other
) -> dict: # share of users with identical lists, largest difference of scores
    "Are these the same lists?"
    return dict(identical=float((a[0] == b[0]).all(1).double().mean()), difference=float((a[1] - b[1]).abs().nan_to_num().max()))

@torch.inference_mode()
def computed_rows(
    model, # a `TigerT5`
    trie: ItemTrie,
    history: torch.Tensor, # int64 [B, H]
    config: DecodeConfig,
    batch_size: int = 32, # as `recommend` does on a CPU
) -> float: # rows of the decoder a user, the start token's with them
    "How many beams are computed in all steps of a search together"
    found = []
    for rows in by_length(history).split(batch_size):
        logits, state = model.prefill(rows)
        beam_search(model, trie, rows, config, prefilled=(logits, state))
        found += [state.visible.shape[2]]*len(rows)
    return float(np.mean(found))

def race_t5(
    ids: Identifiers, # paths that end with EOS
    history: torch.Tensor, # int64 [B, H]
    beams: int, # k
    quick: bool, # one opponent, two rounds
    **how, # softmax, prior and counts of the model
) -> dict: # seconds, ratios, agreement
    "Engine, `generate` fed in several ways, the encoder and an item decoder in turns"
    trie, allowed, config = ItemTrie.build(ids), allowed_tokens(ids), DecodeConfig(beams, search='beam', exclude_seen=False)
    t5 = tiger_t5(ids, **how).eval()
    codes = Identifiers(ids.codes()[:, :-1].reshape(-1), np.arange(ids.n_items + 1)*(ids.max_len - 1), ids.tokens)   # without EOS
    small, small_trie = item_decoder(codes, **how).eval(), ItemTrie.build(codes)
    users = len(history)
    engine = lambda: recommend(t5, trie, history, beams, config)
    ways = {'generate, batches of 32': lambda: generate_items(t5, trie, history, allowed, beams, 32)}
    if not quick: ways['generate, batches of 32 sorted by length'] = lambda: generate_items(t5, trie, by_length(history), allowed, beams, 32)
    if not (quick or how): ways['generate, one batch'] = lambda: generate_items(t5, trie, history, allowed, beams, users)
    times, results = race({'engine': engine, **ways, 'encoder alone': lambda: encode_only(t5, history),
                           'packed decoder': lambda: recommend(small, small_trie, history, beams, config)}, 2 if quick else 3, warm_up=False)
    compare = {w: dict(wall=ratio(times, w, 'engine'), cpu=ratio(times, w, 'engine', 'cpu')) for w in ways}
    return dict(seconds=seconds(times), ratio=compare, **agreement(results['engine'], results['generate, batches of 32']), rows=computed_rows(t5, trie, history, config),
                engine_over_encoder={c: ratio(times, 'engine', 'encoder alone', c) for c in ('wall', 'cpu')},
                ms_per_user={n: {c: 1000*median(t[c])/users for c in t} for n, t in times.items()})

def bench_decode(
    quick: bool = False, # 24 users instead of 256
    progress=None, # something with `stage(name)`
    beams: int = 20, # k
) -> dict:
    "decoding with T5, beam 20: one cache a user, and over children no forced token, against generate(prefix_allowed_tokens_fn=..)"
    stage = progress.stage if progress else lambda name: None
    what, ids, history, counts = decode_case(24 if quick else 256)
    found = dict(data=what, users=len(history), beams=beams, tokens=ids.max_len, seed=0, mean_history=float((history >= 0).sum(1).double().mean()), versions=versions())
    for name, how in {'vocabulary': {}, 'children': dict(softmax='children'), 'children with prior': dict(softmax='children', prior='trie', counts=counts)}.items():
        stage(f'decode: softmax over {name}, engine and generate in turns')
        found[name] = race_t5(ids, history, beams, quick, **how)
    return found

@torch.inference_mode()
def free_search(
    model, # with `prefill` and `decode_step`
    history: torch.Tensor, # int64 [B, H]
    beams: int, # k
    length: int, # tokens
) -> tuple[torch.Tensor, torch.Tensor]: # (last tokens int64 [B, k], scores float [B, k])
    "Beam search that may write any token of the vocabulary: no trie, no candidates, nothing left out"
    logits, state = model.prefill(history)
    score = torch.zeros(len(history), 1, device=history.device)
    for step in range(length):
        total = (score[..., None] + logits.float().log_softmax(2)).flatten(1)
        score, place = total.topk(min(beams, total.shape[1]))
        token = place % logits.shape[2]
        if step < length - 1: logits = model.decode_step(state, token, place//logits.shape[2])
    return token, score

class StaticTables:
    "The tables of STATIC (arXiv 2602.22647) for paths of one length: dense for the first two tokens, rows of (token, next node) behind them"
    def __init__(self, trie: ItemTrie):
        V, D, device = trie.vocab_size, trie.max_depth, trie.device
        token, children = trie.token.long(), trie.n_children.long()
        self.start = torch.zeros(V, dtype=torch.bool, device=device)
        one, two = (torch.arange(*trie.level[d:d + 2].tolist(), device=device) for d in (1, 2))
        self.start[token[one]] = True
        self.node = torch.zeros(V, dtype=torch.long, device=device).index_put((token[one],), one)
        pair = token[trie.parent[two]], token[two]
        self.mask = torch.zeros(V, V, dtype=torch.bool, device=device).index_put(pair, self.start.new_ones(()))
        self.state = torch.zeros(V, V, dtype=torch.long, device=device).index_put(pair, two)
        self.edges, self.first = torch.stack([token, torch.arange(len(token), device=device)], 1), trie.first.long()
        self.width = [int(children[slice(*trie.level[d:d + 2].tolist())].max()) for d in range(D)]   # most children at each depth

    def below(self, node: torch.Tensor, logp: torch.Tensor, depth: int) -> tuple: # int64 [n], float [n, V] -> (float, int64, int64) [n, C]
        "Log-probabilities, tokens and nodes of the children, as many as any node of this depth has"
        begin, place = self.first[node][:, None], torch.arange(self.width[depth], device=node.device)
        token, child = self.edges[(begin + place).clamp(max=len(self.edges) - 1)].unbind(-1)
        return torch.where(begin + place < self.first[node + 1][:, None], logp.gather(1, token.clamp(min=0)), -torch.inf), token, child

@torch.inference_mode()
def static_search(
    model, # with `prefill` and `decode_step`
    tables: StaticTables,
    history: torch.Tensor, # int64 [B, H]
    beams: int, # k
) -> tuple[torch.Tensor, torch.Tensor]: # (leaves int64 [B, k], scores float [B, k])
    "STATIC's beam search: the vocabulary masked for the first two tokens, then the children gathered; no user's history left out"
    logits, state = model.prefill(history)
    score, token = logits[:, 0].float().log_softmax(1).masked_fill(~tables.start, -torch.inf).topk(beams)
    node, parent = tables.node[token], torch.zeros_like(token)
    for depth in range(1, len(tables.width)):
        logp = model.decode_step(state, token, parent).float().log_softmax(2).flatten(0, 1)
        if depth == 1:
            best, tokens = logp.masked_fill(~tables.mask[token.flatten()], -torch.inf).topk(beams)
            nodes = tables.state[token.flatten()[:, None], tokens]
        else: best, tokens, nodes = tables.below(node.flatten(), logp, depth)
        best, tokens, nodes = (x.view(len(history), beams, -1) for x in (best, tokens, nodes))
        score, place = (score[..., None] + best).flatten(1).topk(beams)
        token, node, parent = tokens.flatten(1).gather(1, place), nodes.flatten(1).gather(1, place), place//tokens.shape[2]
    return node, score

def measure_constraint(
    n: int, # items
    rounds: int = 5, # A B A B ..
    users: int = 64, # B
    beams: int = 20, # k
    seed: int = 0, # of the catalog
) -> dict: # seconds and ratios of both generators
    "A search that follows the trie, STATIC's, and one that follows nothing, of the same model, in turns"
    ids, _ = random_catalog(n, seed=seed)
    rng, config = np.random.default_rng(seed), DecodeConfig(beams, search='beam', exclude_seen=False)
    history, trie = torch.from_numpy(rng.integers(0, n, (users, 10))), ItemTrie.build(ids)
    tables, out, models = StaticTables(trie), {}, {'T5': lambda: tiger_t5(ids), 'packed decoder': lambda: item_decoder(ids, softmax='vocabulary', prior='none')}
    for name, make in models.items():
        model = make().eval()
        def searched(search): return [search(rows) for rows in history.split(32)]
        ways = dict(constrained=lambda: searched(lambda x: beam_search(model, trie, x, config)), static=lambda: searched(lambda x: static_search(model, tables, x, beams)), free=lambda: searched(lambda x: free_search(model, x, beams, ids.max_len)))
        times, found = race(ways, rounds)
        ours, theirs = (torch.cat([x.nodes if way == 'constrained' else x[0] for x in found[way]]) for way in ('constrained', 'static'))
        out[name] = dict(seconds=seconds(times), identical=float((ours == theirs).all(1).double().mean()), ratio={c: ratio(times, 'constrained', 'free', c) for c in ('wall', 'cpu')},
                         static={c: ratio(times, 'static', 'constrained', c) for c in ('wall', 'cpu')})
    return dict(items=n, nodes=trie.n_nodes, users=users, beams=beams, tokens=ids.max_len, seed=seed, models=out)

def bench_constraint(
    quick: bool = False, # up to 10^4 items
    progress=None, # something with `stage(name)`
) -> dict:
    "what the constraint costs: beam search along the trie against beam search over all tokens, same model"
    return each_in_fresh_process('constraint', (10**3, 10**4) if quick else (10**4, 10**5, 10**6, 10**7), progress)

def exact_case(
    name: str, # data set
    users: int | None, # test users; None: all
) -> tuple: # (untrained item decoder over children, one with a token an item as SASRec, split, cases)
    "Published letter identifiers of a data set"
    folder = data_folder(name)
    data = load_dataset(folder, text=False)
    split, ids = leave_one_out(data.interactions), Identifiers.from_index(folder/f'{name}.letter.index.json', data.catalog)
    how = dict(softmax='children', prior='trie', counts=split.train.target_counts())
    single = Identifiers.from_codes(np.arange(ids.n_items)[:, None], policy='keep')
    return item_decoder(ids, **how).eval(), item_decoder(single, head_ff=0, **how).eval(), split, split.test.sample(users)

def some_steps(model, split, steps: int): # the model
    "A short training, after which scores no longer lie close together"
    with tempfile.TemporaryDirectory() as folder:
        fit(model, split.train, split.valid, model.tries[0], None, TrainConfig(batch_size=64, lr=5e-3, weight_decay=.1, patience=0), folder, max_steps=steps,
            warmup_steps=10, eval_strategy='no', save_strategy='no', load_best_model_at_end=False)
    return model.eval()

def bench_exact(
    quick: bool = False, # 300 users of Scientific alone
    progress=None, # something with `stage(name)`
    beams: int = 20, # k
) -> dict:
    "exact ranking of the whole catalog by an item decoder against a beam of 20, and against SASRec's scores, all test users"
    out = {}
    for name in ('Scientific',) if quick else ('Scientific', 'Beauty'):
        if not data_folder(name): out[name] = dict(skipped='no data'); continue
        model, single, split, cases = exact_case(name, 300 if quick else None)
        for steps in (0, 10 if quick else 1200):
            label = f'{name}, {steps:,} training steps'
            if progress: progress.stage(f'exact: {label}')
            if steps: some_steps(model, split, steps), some_steps(single, split, steps)
            way = lambda m, search: lambda: rank_each(m, m.tries[0], cases, [DecodeConfig(beams, search=search)], k=20)[0]
            times, lists = race({'exact': way(model, 'exact'), 'beam': way(model, 'beam'), 'one token an item': way(single, 'exact')}, 2 if quick else 5, warm_up=False)
            out[label] = dict(users=len(cases), items=len(model.paths), seconds=seconds(times), ratio={c: ratio(times, 'exact', 'beam', c) for c in ('wall', 'cpu')},
                              over_single={c: ratio(times, 'exact', 'one token an item', c) for c in ('wall', 'cpu')},
                              differs=float((np.sort(lists['exact'][:, :10]) != np.sort(lists['beam'][:, :10])).any(1).mean()))
    return out

class TimeLimit(TrainerCallback):
    "Stop training when this process has used so much processor time since training began"
    def __init__(self, seconds: float): self.seconds, self.used = seconds, 0.
    def on_train_begin(self, args, state, control, **kwargs): self.start = time.process_time()
    def on_step_end(self, args, state, control, **kwargs):
        self.used = time.process_time() - self.start
        if self.used >= self.seconds: control.should_training_stop = True

RACERS = { # backbone, changes to its sizes, settings of the training
    'packed decoder': ('packed', {}, dict(batch_size=32, lr=2e-3, weight_decay=.1)),
    'T5, 2 + 2 layers': ('t5', dict(d_ff=256, num_layers=2, num_decoder_layers=2, num_heads=4, d_kv=32), dict(batch_size=64, lr=2e-3, weight_decay=.01)),
    'T5, 4 + 4 layers': ('t5', {}, dict(batch_size=256, lr=1e-3, weight_decay=.01))}

def train_steps(
    racer: str, # one of `RACERS`
    data: tuple, # (split, identifiers, trie)
    steps: int, # optimizer steps
    limit: float, # processor seconds at most
    seed: int = 0, # of weights, order and dropout
) -> tuple: # (model, processor seconds used, steps done)
    "Train for a number of steps, or until the time is up"
    (split, ids, trie), (backbone, sizes, settings) = data, RACERS[racer]
    watch, config = TimeLimit(limit), TrainConfig(seed=seed, patience=0, **settings)
    with tempfile.TemporaryDirectory() as folder:
        run = fit(BACKBONES[backbone].make(ids, seed=seed, **sizes), split.train, split.valid, trie, None, config, folder, callbacks=[watch], max_steps=steps,
                  warmup_steps=math.ceil(config.warmup*steps), eval_strategy='no', save_strategy='no', load_best_model_at_end=False)
    return run.model.eval(), watch.used, run.epochs

def bench_backbones(
    quick: bool = False, # 10 seconds instead of 60
    progress=None, # something with `stage(name)`
    budget: float | None = None, # processor seconds for each training; None: 60 (quick: 10) for each thread
) -> dict:
    "packed decoder and T5 on MovieLens-100K, trained for the same processor time"
    stage = progress.stage if progress else lambda name: None
    budget = budget or (10 if quick else 60)*torch.get_num_threads()
    movies = load_dataset('ml-100k')
    split, vectors = leave_one_out(movies.interactions), embed_texts(movies.catalog.texts, 'tfidf')
    ids = Identifiers.from_codes(residual_kmeans(vectors, levels=3, size=64, seed=0).encode(vectors), policy='extra')
    trie, models = ItemTrie.build(ids), {}
    parts = dict(validation=split.valid, test=split.test)
    score = lambda ranked, cases: {m: ranking_metrics(ranked, cases.targets, (10,))[m] for m in ('recall@10', 'ndcg@10')}
    for name in RACERS:
        stage(f'backbones: {name}')
        _, used, _ = train_steps(name, (split, ids, trie), 30, budget/4)                    # warm-up and estimate
        model, used, epochs = train_steps(name, (split, ids, trie), max(int(30*budget/used), 1), budget)
        models[name] = dict(cpu_seconds=used, epochs=epochs, parameters=sum(p.numel() for p in model.parameters()), settings={**RACERS[name][1], **RACERS[name][2]},
                            **{part: score(_rank_cases(model, trie, cases), cases) for part, cases in parts.items()})
    models['popularity'] = {part: score(popularity_ranking(split.train.item_counts(), cases, 20), cases) for part, cases in parts.items()}
    return dict(data='MovieLens-100K, seen items excluded, leave-one-out', users=len(split.test), budget_cpu_seconds=budget, seed=0, models=models)

def topic_vectors(
    n: int, # N
    d: int = 384, # dimensions
    seed: int = 0, # of the draw
    chunk: int = 50_000, # rows at a time
): # float32 [<= chunk, d] parts that have N rows together
    "Vectors of length one around 2,000 topics, as a sentence encoder might give"
    rng = np.random.default_rng(seed)
    topics = rng.standard_normal((2000, d), dtype=np.float32)
    for start in range(0, n, chunk):
        x = topics[rng.integers(0, 2000, min(chunk, n - start))]
        x = x + .7*rng.standard_normal(x.shape, dtype=np.float32)
        yield x/np.linalg.norm(x, axis=1, keepdims=True)

def loop_clusters(
    book: torch.Tensor, # float [K, d]
    k: int = 10, # groups
    seed: int = 0, # of the starts
) -> list[int]: # group of each code
    "The released grouping of a codebook: constrained k-means, the best of ten starts"
    from k_means_constrained import KMeansConstrained
    low = max(min(len(book)//(2*k), 10), 2)                                   # a group of one would leave nothing to draw
    return KMeansConstrained(k, size_min=low, size_max=min(6*k, len(book)), n_init=10, max_iter=10, n_jobs=1, random_state=seed).fit(book.numpy()).labels_.tolist()

def loop_diversity(
    z: torch.Tensor, # float [B, d] codebook vector of each item
    book: torch.Tensor, # float [K, d]
    codes: torch.Tensor, # int64 [B]
    clusters: list[int], # group of each code, from `loop_clusters`
    rng: random.Random, # draws the targets
) -> torch.Tensor: # scalar
    "The released diversity loss, item by item"
    members, targets, own = {}, [], torch.zeros(len(z), len(book))
    for code, group in enumerate(clusters): members.setdefault(group, []).append(code)
    for i, c in enumerate(codes):
        mates = members[clusters[c.item()]]
        other = rng.choice(mates)
        while other == c: other = rng.choice(mates)
        targets.append(other)
        own[i, c] = 1e12
    return F.cross_entropy(z @ book.T - own, torch.tensor(targets))

def diversity_error(
    books: list[torch.Tensor], # codebooks, float [K, d], K even
    codes: torch.Tensor, # int64 [N, L]
) -> float: # largest absolute difference of the two losses over levels
    "Difference between the loop and the batch where each group has two codes and leaves no choice"
    worst = 0.
    for book, c in zip(books, codes.T):
        pairs = torch.arange(len(book))//2
        slow, fast = loop_diversity(book[c], book, c, pairs.tolist(), random.Random(0)), diversity_loss(c, book, _group_mates(c, pairs, generator(0)))
        worst = max(worst, float((slow - fast).abs()))
    return worst

def letter_model(
    x: np.ndarray, # float32 [N, d]
    size: int, # codes per level
) -> tuple[LETTER, torch.Tensor]: # (model whose codebooks describe a projection of x, codes int64 [N, 4])
    "A LETTER model in the middle of its training, more or less"
    z = torch.from_numpy(x) @ torch.randn(x.shape[1], 32, generator=generator(0))/x.shape[1]**.5
    q, model = residual_kmeans(z, 4, size, n_iter=5), LETTER(LETTERConfig(x.shape[1], size=size))
    with torch.no_grad():
        for p, e in zip(model.codebooks, q.codebooks): p.copy_(e)
    model.refresh()
    return model, torch.from_numpy(q.fit_codes)

@torch.no_grad()
def drift(model: LETTER, gen: torch.Generator) -> None:
    "Move the codebooks a little"
    for e in model.codebooks: e += .05*e.std()*torch.randn(e.shape, generator=gen)

def batch_epoch(
    model: LETTER, # with groups
    codes: torch.Tensor, # int64 [N, L]
    batch: int = 1024, # items
): # function without arguments
    "One epoch of diversity with *letter*: groups, then loss and gradient of every batch"
    gen = generator(0)
    def epoch():
        drift(model, gen)
        model.refresh()
        for part in codes.split(batch): model.diversity(part).backward()
    return epoch

def loop_epoch(
    model: LETTER, # its codebooks are used
    codes: torch.Tensor, # int64 [N, L]
    batch: int = 1024, # items
): # function without arguments
    "The same with the released procedure"
    gen, rng = generator(0), random.Random(0)
    def epoch():
        drift(model, gen)
        groups = [loop_clusters(e.detach(), model.config.clusters) for e in model.codebooks]
        for part in codes.split(batch):
            terms = [loop_diversity(F.embedding(c, e), e, c, g, rng) for c, e, g in zip(part.T, model.codebooks, groups)]
            torch.stack(terms).mean().backward()
    return epoch

def network_epoch(
    model: LETTER,
    x: np.ndarray, # float32 [N, d]
    batch: int = 1024, # items
): # function without arguments
    "One epoch of the RQ-VAE itself, which both ways share: loss, gradient, optimizer"
    x, opt = torch.from_numpy(x), torch.optim.AdamW(model.parameters(), lr=1e-5)
    stream = _batches(len(x), batch, generator(0))
    def epoch():
        for _ in range(-(-len(x)//batch)):
            loss = RQVAE.loss(model, model(x[next(stream)]), None)
            opt.zero_grad(); loss.backward(); opt.step()
    return epoch

def race_diversity(
    x: np.ndarray, # float32 [N, d]
    size: int = 256, # codes per level
    rounds: int = 5, # A B A B ..
) -> dict: # seconds, ratios with and without the network, largest difference; {skipped: why} without k-means-constrained
    "One epoch of LETTER's diversity, loops against batches, beside an epoch of the network"
    try: import k_means_constrained
    except ImportError: return dict(skipped='the released grouping needs the package k-means-constrained (pip install k-means-constrained)')
    (ours, codes), (theirs, _), (network, _) = (letter_model(x, size) for _ in range(3))
    times, _ = race(dict(loops=loop_epoch(theirs, codes), batches=batch_epoch(ours, codes), network=network_epoch(network, x)), rounds)
    whole = {n: {c: [a + b for a, b in zip(times[n][c], times['network'][c])] for c in ('wall', 'cpu')} for n in ('loops', 'batches')}
    return dict(seconds=seconds(times), difference=diversity_error([e.detach() for e in ours.codebooks], codes[:1024]),
                ratio={c: ratio(times, 'loops', 'batches', c) for c in ('wall', 'cpu')}, ratio_with_network={c: ratio(whole, 'loops', 'batches', c) for c in ('wall', 'cpu')})

def race_balanced(
    n: int, # vectors
    k: int, # groups
    d: int = 32, # dimensions, as of a codebook
    seed: int = 0, # of vectors and starts
) -> dict: # seconds, ratio, and the mean squared distance of both
    "Groups of equal size: prices and swaps against the minimum-cost flow of KMeansConstrained, one start and ten rounds each"
    try: from k_means_constrained import KMeansConstrained
    except ImportError: return dict(skipped='needs the package k-means-constrained')
    x = np.concatenate(list(topic_vectors(n, d, seed)))
    n = len(x)
    def flow():
        found = KMeansConstrained(k, size_min=n//k, size_max=-(-n//k), n_init=1, max_iter=10, n_jobs=1, random_state=seed).fit(x)
        return found.labels_
    def prices(): return balanced_kmeans(torch.from_numpy(x), k, seed)[1].numpy()
    times, found = race(dict(prices=prices, flow=flow), 3, warm_up=False)
    def distance(codes):
        centers = np.stack([x[codes == c].mean(0) for c in range(k)])
        return float(((x - centers[codes])**2).sum(1).mean())
    sizes = {name: sorted({int(m) for m in np.bincount(codes, minlength=k)}) for name, codes in found.items()}
    return dict(vectors=n, dimensions=d, groups=k, seed=seed, seconds=seconds(times), ratio={clock: ratio(times, 'flow', 'prices', clock) for clock in ('wall', 'cpu')},
                distance={name: distance(codes) for name, codes in found.items()}, sizes=sizes)

def write_vectors(
    path: Path, # *.npy
    n: int, # N
    d: int = 384, # dimensions
    seed: int = 0, # of the draw
) -> None:
    "`topic_vectors` in a file, never all in memory"
    with open(path, 'wb') as f:
        np.lib.format.write_array_header_1_0(f, dict(descr='<f4', fortran_order=False, shape=(n, d)))
        for x in topic_vectors(n, d, seed): f.write(np.ascontiguousarray(x, '<f4').tobytes())

def exact_codes(
    x: np.ndarray, # float [n, d]
    books: list, # L codebooks, float [K, d]
) -> np.ndarray: # int64 [n, L]
    "Codes by differences in double precision, the definition"
    r, codes = np.asarray(x, np.float64), []
    for e in np.asarray([e.numpy() for e in books], np.float64):
        codes.append(np.array([((v - e)**2).sum(1).argmin() for v in r]))
        r = r - e[codes[-1]]
    return np.stack(codes, 1)

def measure_residual_kmeans(
    n: int, # items
    size: int = 256, # codes at each of 4 levels
    seed: int = 0, # of vectors and k-means
) -> dict: # seconds by both clocks, items per second, memory before and at the peak, agreement with double precision
    "RQ-KMeans and assignment of a catalog in this process, which should be a fresh one"
    with tempfile.TemporaryDirectory() as folder:
        write_vectors(Path(folder)/'x.npy', n, seed=seed)
        x, before = np.load(Path(folder)/'x.npy', mmap_mode='r'), peak_memory()
        fit_times, found = race(dict(fit=lambda: residual_kmeans(x, 4, size, seed=seed)), 1, warm_up=False)
        q = found['fit']
        times, found = race(dict(encode=lambda: q.encode(x)), 3, warm_up=False)
        some = np.random.default_rng(seed).integers(0, n, 500)
        return dict(items=n, seed=seed, fit={c: t[0] for c, t in fit_times['fit'].items()}, assign=seconds(times)['encode'],
                    per_second={c: n/median(t) for c, t in times['encode'].items()}, exact=float((exact_codes(x[some], q.codebooks) == found['encode'][some]).all(1).mean()),
                    before_gb=before, peak_gb=peak_memory())

def bench_tokenizers(
    quick: bool = False, # 2,000 items with 64 codes, and 50,000 for the large catalog
    progress=None, # something with `stage(name)`
) -> dict:
    "codes for items: balanced start, an epoch of LETTER's diversity, RQ-KMeans of a million vectors"
    stage = progress.stage if progress else lambda name: None
    n, size, large = (2000, 64, 50_000) if quick else (12_101, 256, 1_000_000)
    x = np.concatenate(list(topic_vectors(n)))
    stage(f'tokenizers: balanced start of {n:,} items')
    times, found = race(dict(start=lambda: residual_kmeans(x, 4, size, balanced=True)), 3, warm_up=not quick)
    shares = {int(s) for c in found['start'].fit_codes.T for s in np.bincount(c, minlength=size)}
    out = dict(items=n, dimensions=x.shape[1], levels=4, size=size, seed=0, start=seconds(times)['start'], smallest=min(shares), largest=max(shares))
    stage('tokenizers: an epoch of diversity, loops and batches in turns')
    out['diversity'] = race_diversity(x, size)
    stage('tokenizers: groups of equal size, prices and flow in turns')
    out['balanced'] = race_balanced(*((300, 10) if quick else (3000, 64)))
    stage(f'tokenizers: {large:,} items, fresh process')
    return out | dict(versions=versions()) | dict(large=in_fresh_process('measure_residual_kmeans', large, size))

WEIGHED = ('ce again', 'igd', 'pos', 'fg', 'fg-prefix', 'frequency', 'ranking', 'multi', 'cft')

def weighted_steps(
    backbone: str, # 'packed' or 't5'
    ids: Identifiers,
    trie: ItemTrie, # of these identifiers
    batches: list, # of `samples.collate`
    loss, # of a weighting's `objective`
): # function without arguments: one optimizer step a batch
    "A training without anything around it"
    model = BACKBONES[backbone].make(ids, seed=0).train()
    if isinstance(loss, MultiTargetLoss): loss.set_pace(100)
    opt = torch.optim.AdamW([*model.parameters(), *loss.parameters()], lr=1e-4)
    totals = [loss.totals(_batch_targets(b)) for b in batches]
    def work():
        for b, total in zip(batches, totals):
            value, _ = loss(model(**b, tau=loss.tau, null_history=loss.null_history), total)
            value.backward()
            opt.step(); opt.zero_grad()
            if isinstance(loss, MultiTargetLoss): loss.advance()
        return float(value.detach())
    return work

def bench_weightings(
    quick: bool = False, # 3 rounds instead of 25 (T5: 9), the packed decoder only
    progress=None, # something with `stage(name)`
) -> dict:
    "what a training step costs with weighted tokens, beside plain cross-entropy"
    stage = progress.stage if progress else lambda name: None
    movies = load_dataset('ml-100k')
    train, vectors = leave_one_out(movies.interactions).train, embed_texts(movies.catalog.texts, 'tfidf')
    ids = Identifiers.from_codes(residual_kmeans(vectors, levels=3, size=64, seed=0).encode(vectors), policy='extra')
    trie, counts, out = ItemTrie.build(ids), train.target_counts(), {}
    for backbone, batch, rounds in (('packed', 32, 25),) if quick else (('packed', 32, 25), ('t5', 64, 9)):
        stage(f'weightings: {backbone}')
        samples = BACKBONES[backbone].make(ids, seed=0)
        samples = samples.samples(train, samples.config.max_items)
        some = torch.randperm(len(samples), generator=generator(0)).tolist()[:2*batch]
        data = [samples.collate([samples[i] for i in some[a:a + batch]]) for a in (0, batch)]
        rule = lambda name: make_weighting(name.split()[0]).objective(trie, ids, counts=counts, vectors=vectors)
        times, _ = race({name: weighted_steps(backbone, ids, trie, data, rule(name)) for name in ('ce', *WEIGHED)}, 3 if quick else rounds)
        took = seconds(times)
        out[backbone] = dict(batch=batch, seconds=took, ms_a_step={n: 1000*s['cpu']['median']/len(data) for n, s in took.items()}, ratio={n: {c: ratio(times, n, 'ce', c) for c in ('wall', 'cpu')} for n in WEIGHED})
    return dict(data='MovieLens-100K', items=len(movies.catalog), steps_a_round=len(data), seed=0, backbones=out)

def race_groups(
    contestants: dict, # name -> function of some users' histories, gives (items, scores)
    history: torch.Tensor, # int64 [M, H]
    size: int, # users in a group
) -> tuple[dict, dict]: # (name -> {wall, cpu: seconds of each group}, name -> (items, scores) of all users)
    "Time functions in turns on a group of users, then on the next group; before, untimed, on one user"
    on = lambda rows: {n: (lambda f=f: f(rows)) for n, f in contestants.items()}
    race(on(history[:1]), 0)
    parts = [race(on(rows), 1, warm_up=False) for rows in history.split(size)]
    times = {n: {c: [s for t, _ in parts for s in t[n][c]] for c in ('wall', 'cpu')} for n in contestants}
    return times, {n: tuple(torch.cat(x) for x in zip(*(r[n] for _, r in parts))) for n in contestants}

class Watched(nn.Module):
    "A language recommender, and how much it read behind the prompts"
    normalized = True
    def __init__(self, model):
        super().__init__()
        self.model, self.read = model, dict(passes=0, tokens=0, steps=0, written=0)
    def prefill(self, history): return self.model.prefill(history)
    def decode_step(self, state, tokens, parents):
        passes, read = state.passes, state.tokens
        out = self.model.decode_step(state, tokens, parents)
        new = dict(passes=state.passes - passes, tokens=state.tokens - read, steps=1, written=int((tokens != PAD).sum()))
        self.read = {k: n + new[k] for k, n in self.read.items()}
        return out

def lm_generate_items(
    model, # a `LanguageRecommender`
    history: torch.Tensor, # int64 [B, H]
    beams: int, # k
) -> tuple[torch.Tensor, torch.Tensor]: # (items int64 [B, k], scores float [B, k])
    "Ranked items by `transformers`' own beam search"
    x, mask = model.prompt(history)
    law = TrieProcessor(model.trie, x.shape[1], normalize=model.config.softmax, vocabulary=model.own)
    found = model.lm.generate(input_ids=x, attention_mask=mask, num_beams=beams, num_return_sequences=beams, max_new_tokens=model.trie.max_depth, do_sample=False,
                              logits_processor=[law], length_penalty=0., early_stopping='never', return_dict_in_generate=True, output_scores=True)
    path = found.sequences[:, x.shape[1]:]
    path = torch.where(path < len(law.to_trie), law.to_trie[path.clamp(max=len(law.to_trie) - 1)], -1)
    leaf = model.trie.walk(path).amax(1)                                     # nodes are numbered from the root down; -1 behind the end
    return _expand_items(model.trie, Beams(leaf.view(-1, beams), found.sequences_scores.view(-1, beams)), beams)

@torch.inference_mode()
def exact_scores(
    model, # a `LanguageRecommender`
    history: torch.Tensor, # int64 [B, H]
    items: torch.Tensor, # int64 [B, k]
) -> torch.Tensor: # float64 [B, k] log-probability of each item's path
    "Scores in double precision, the definition"
    out, dtype = [], model.lm.get_input_embeddings().weight.dtype
    model.double()
    for rows, found in zip(history[:, None], items):
        if model.soft is not None: out.append(-model(rows.expand(len(found), -1), found).nll.sum(1)); continue
        x, mask = model.prompt(rows.expand(len(found), -1))
        path, real = model.path_completions(found)
        mask = torch.cat([mask, real[:, :-1].long()], 1)
        logits = model.lm(input_ids=torch.cat([x, path[:, :-1]], 1), attention_mask=mask, position_ids=(mask.cumsum(1) - 1).clamp(min=0), logits_to_keep=path.shape[1], use_cache=False).logits
        out.append(((logits.gather(2, path[..., None])[..., 0] - logits.logsumexp(2))*real).sum(1))
    model.to(dtype)
    return torch.stack(out)

def race_lm(
    model, # a `LanguageRecommender`
    history: torch.Tensor, # int64 [M, H]
    beams: int, # k
    size: int, # users in a group
    exact: int = 1, # users whose scores are computed in double precision, too
) -> dict: # seconds of a group, ratio over groups, agreement, and what was read
    "Engine and `generate` in turns"
    model.eval()
    tokens, config, reads = model.prompt(history)[1].sum(1), DecodeConfig(beams, exclude_seen=False), []
    def engine(rows):
        watched = Watched(model).eval()
        out = recommend(watched, model.trie, rows, beams, config, batch_size=size)
        reads.append(watched.read)
        return out
    history = history[torch.argsort(tokens, stable=True)]
    times, found = race_groups(dict(engine=engine, generate=lambda rows: lm_generate_items(model, rows, beams)), history, size)
    some = torch.linspace(0, len(history) - 1, exact).long()
    true = exact_scores(model, history[some], found['engine'][0][some])
    error = {n: float((scores[some] - true).abs().max()) for n, (_, scores) in found.items()}      # place by place, as in `agreement`
    read = {k: sum(r[k] for r in reads[1:]) for k in reads[0]}               # without the warm-up
    return dict(users=len(history), group=size, beams=beams, longest=model.trie.max_depth, mean_prompt=float(tokens.double().mean()), seconds=seconds(times),
                ratio={c: ratio(times, 'generate', 'engine', c) for c in ('wall', 'cpu')}, **agreement(found['engine'], found['generate']), error=error, exact_users=exact, read=read,
                ms_per_user={n: {c: 1000*sum(t)/len(history) for c, t in clocks.items()} for n, clocks in times.items()})

def llm_data(
) -> tuple: # (name, `Dataset`, file of published identifiers or None)
    "Scientific where the data are, else MovieLens-100K"
    folder = data_folder('Scientific')
    if folder: return 'Scientific', load_dataset(folder), folder/'Scientific.letter.index.json'
    return 'MovieLens-100K', load_dataset('ml-100k'), None

def llm_case(
    kind: str, # 'titles' or 'codes'
    lm: tuple, # (model, tokenizer), changed in place
    users: int, # M
    softmax: str = 'vocabulary', # or 'children'
) -> tuple: # (what it is, `LanguageRecommender`, histories int64 [M, H])
    "An untrained language recommender and test users"
    name, data, file = llm_data()
    if kind == 'titles': what, ids = 'titles', title_identifiers(data.catalog.titles, lm[1])
    elif file: what, ids = 'letter identifiers', Identifiers.from_index(file)
    else:
        vectors = embed_texts(data.catalog.texts, 'tfidf')
        what, ids = 'RQ-KMeans codes', Identifiers.from_codes(residual_kmeans(vectors, levels=3, size=64, seed=0).encode(vectors), policy='extra')
    model = language_recommender(ids, lm, LMConfig(softmax=softmax))
    return f'{name}, {what}, softmax over {softmax}', model, torch.from_numpy(leave_one_out(data.interactions).test.tail(model.config.max_items)[:users])

def measure_lm_step(
    batch: int = 16, # samples
    tokens: int = 512, # of prompt and answer together
    checkpointing: bool = False, # gradient checkpointing
    seed: int = 0, # of histories, adapters and dropout
) -> dict: # processor seconds, memory before and at the peak
    "One LoRA step in float32 (on many processors bfloat16 takes many times as long) on the longest titles and prompts, in this process, which should be a fresh one"
    name, data, _ = llm_data()
    lm = load_lm(dtype='float32', device='cpu')
    before, ids = peak_memory(), title_identifiers(data.catalog.titles, lm[1])
    model = language_recommender(ids, lm, LMConfig(max_tokens=tokens, checkpointing=checkpointing, seed=seed)).train()
    targets = torch.from_numpy(np.argsort(-ids.lengths, kind='stable')[:batch].copy())
    history = torch.randint(ids.n_items, (batch, tokens), generator=generator(seed))     # more than can be shown
    opt = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4)
    def step():
        torch.manual_seed(seed)
        loss = model(history, targets).nll.sum()/ids.lengths[targets].sum()
        loss.backward()
        opt.step(); opt.zero_grad()
        return float(loss.detach())
    times, found = race(dict(step=step), 1, warm_up=False)
    return dict(data=name, batch=batch, tokens=model.prompt(history)[0].shape[1] + int(ids.lengths[targets].max()), checkpointing=checkpointing, seed=seed, loss=found['step'],
                **{c: t[0] for c, t in times['step'].items()}, before_gb=before, peak_gb=peak_memory())

def bench_llm(
    quick: bool = False, # 8 users instead of 64, a batch of 2 instead of 4
    progress=None, # something with `stage(name)`
) -> dict:
    "SmolLM2-135M writes titles and codes: prompts read once a user against generate(num_beams=..); memory of a training step"
    stage = progress.stage if progress else lambda name: None
    smollm2_folder()                                                          # here it fails if the weights cannot be had
    users, size, batch = (8, 4, 2) if quick else (64, 8, 4)
    out = dict(model=SMOLLM2)
    for softmax in ('vocabulary', 'children'):
        for kind, beams in (('titles', 10), ('codes', 20)):
            stage(f'llm: {kind}, softmax over {softmax}, engine and generate in turns')
            what, model, history = llm_case(kind, load_lm(dtype='float32', device='cpu'), users if softmax == 'vocabulary' else size, softmax) # `generate` goes to the end of the longest title
            out[kind if softmax == 'vocabulary' else f'{kind} over children'] = dict(data=what, **race_lm(model, history, beams, size, 1 if quick else 4))
            del model
    for on in (False, True):
        stage(f'llm: a training step with{"" if on else "out"} gradient checkpointing, fresh process')
        out['checkpointed' if on else 'plain'] = in_fresh_process('measure_lm_step', batch, 512, on)
    return out

def wait(device: torch.device) -> None:
    "Until the device has done what it was told"
    if device.type == 'cuda': torch.cuda.synchronize(device)

def matmul_peak(
    device: torch.device,
    dtype: torch.dtype,
    n: int, # rows and columns
    rounds: int = 5,
) -> float: # FLOP/s
    "What a product of two square matrices reaches at best: the roof"
    a, b = (torch.randn(n, n, device=device).to(dtype) for _ in range(2))
    def product(): a @ b; wait(device)
    times, _ = race(dict(product=product), rounds)
    return 2*n**3/min(times['product']['wall'])

def flops_of(f) -> int: # function without arguments
    "Floating-point operations of the products in a call, as PyTorch counts them"
    with FlopCounterMode(display=False) as counter: f()
    return counter.get_total_flops()

class StepClock(TrainerCallback):
    "Seconds from step `first` to the last"
    def __init__(self, first: int, device: torch.device): self.first, self.device = first, device
    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == self.first: wait(self.device); self.start = time.perf_counter()
    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == state.max_steps: wait(self.device); self.seconds = time.perf_counter() - self.start

def device_case(
    users: int, # at most
    seed: int = 0, # of the synthetic case
) -> tuple: # (what it is, identifiers, split)
    "Beauty with LETTER's identifiers where the data are, else random codes and histories of the same shape"
    folder = data_folder('Beauty')
    if folder: return 'Beauty, letter identifiers', Identifiers.from_index(folder/'Beauty.letter.index.json'), leave_one_out(load_dataset(folder, text=False).interactions)
    rng = np.random.default_rng(seed)
    ids = Identifiers.random(12_101, levels=4, size=256, seed=seed)
    lengths = (5 + rng.geometric(.25, users)).clip(max=60)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    items = rng.integers(0, ids.n_items, offsets[-1])
    return 'synthetic: 12,101 items, 4 codes of 256', ids, leave_one_out(Interactions(items, offsets, [str(u) for u in range(users)], ids.n_items))

def measure_training(
    make, # function without arguments: a model on the device
    ids: Identifiers,
    split,
    device: torch.device,
    batch: int, # samples a step
    steps: int, # timed, behind three others
    peak: float, # FLOP/s
) -> dict: # samples a second, share of the peak
    "A training as `fit` does it, without evaluations; bfloat16 on an accelerator"
    model, clock, config = make(), StepClock(3, device), TrainConfig(batch_size=batch, patience=0)
    trie = ItemTrie.build(ids)
    with tempfile.TemporaryDirectory() as folder:
        fit(model, split.train, split.valid, trie, None, config, folder, callbacks=[clock], max_steps=steps + 3, bf16=device.type != 'cpu', use_cpu=device.type == 'cpu',
            eval_strategy='no', save_strategy='no', load_best_model_at_end=False)
    samples = model.samples(split.train, 20)
    rows = sorted(LengthBatches(samples, batch), key=lambda rows: samples.lengths[rows].mean())
    inputs = {k: x.to(device) for k, x in samples.collate(rows[len(rows)//2]).items()}
    flops = flops_of(lambda: model(**inputs).nll.sum().backward())
    return dict(batch=batch, steps=steps, samples_per_second=batch*steps/clock.seconds, tflops_per_step=flops/1e12, share_of_peak=flops*steps/clock.seconds/peak, parameters=sum(p.numel() for p in model.parameters()))

@torch.inference_mode()
def measure_ranking(
    ways: dict, # name -> function (histories of a batch of users)
    history: torch.Tensor, # int64 [B, H], on the device
    batch: int, # users at once
    rounds: int,
    peak: float, # FLOP/s
) -> dict: # name -> users a second, share of the peak
    "The same users in several ways, in turns"
    def all_users(way):
        def run():
            for rows in history.split(batch): way(rows)
            wait(history.device)
        return run
    runs = {name: all_users(way) for name, way in ways.items()}
    times, _ = race(runs, rounds)
    out = {}
    for name, t in times.items():
        flops = flops_of(runs[name])
        out[name] = dict(users_per_second=spread_of([len(history)/x for x in t['wall']]), share_of_peak=flops/median(t['wall'])/peak)
    if {'constrained', 'free'} <= ways.keys(): out['constraint'] = dict(ratio=ratio(times, 'constrained', 'free'))
    return out

def bench_device(
    quick: bool = False, # a few steps and users
    progress=None, # something with `stage(name)`
    device: str | None = None, # as PyTorch names it; None: an accelerator if there is one
    dtype: str | None = None, # of the weights in ranking; None: bfloat16 on an accelerator, else float32
    beams: int = 20, # k
) -> dict:
    "T5 and the item decoder on one device: training samples and ranked users a second, what the constraint costs, and which share of a matrix product's speed is reached"
    stage = progress.stage if progress else lambda name: None
    device = torch.device(device or ('cuda' if torch.cuda.is_available() else 'cpu'))
    on = device.type != 'cpu'
    dtype = getattr(torch, dtype or ('bfloat16' if on else 'float32'))
    users, batch, steps = (40, 8, 2) if quick else (8192, 1024, 100) if on else (256, 64, 12)
    stage('device: a matrix product')
    peak = matmul_peak(device, dtype, 8192 if on else 256 if quick else 1024)
    what, ids, split = device_case(max(users, 200))
    counts, history = split.train.target_counts(), torch.from_numpy(split.test.tail(20)[:users]).to(device)
    made = dict(T5=lambda **how: tiger_t5(ids, **how).to(device), **{'item decoder': lambda **how: item_decoder(ids, **how).to(device)})
    over = dict(vocabulary={}, children=dict(softmax='children', prior='trie', counts=counts))
    out = dict(device=torch.cuda.get_device_name(device) if on else processor_name(), dtype=str(dtype).removeprefix('torch.'), data=what, users=len(history), beams=beams, peak_tflops=peak/1e12, seed=0, training={}, ranking={}, versions=versions())
    for name, make in made.items():
        for softmax, how in over.items():
            if name == 'item decoder' and not how: how = dict(softmax='vocabulary', prior='none')
            stage(f'device: {name} over {softmax}')
            out['training'][f'{name}, {softmax}'] = measure_training(lambda: make(**how), ids, split, device, batch, steps, peak)
            model, trie, config = make(**how).eval().to(dtype), ItemTrie.build(ids).to(device), DecodeConfig(beams, search='beam', exclude_seen=False)
            ways = dict(constrained=lambda x: beam_search(model, trie, x, config))
            if softmax == 'vocabulary': ways['free'] = lambda x: free_search(model, x, beams, ids.max_len)
            elif name != 'T5': ways['exact'] = lambda x: exact_search(model, x, beams, replace(config, search='exact'))
            out['ranking'][f'{name}, {softmax}'] = measure_ranking(ways, history, 512 if on else 32, 2 if quick else 3, peak)
    return out


def profile_of(
    job, # function without arguments
) -> dict: # seconds of processor time, and what `operators_of` and `functions_of` say
    "Time of a job, and of its operators"
    job()
    start = time.process_time()
    job()
    seconds = time.process_time() - start
    return dict(seconds=seconds, **operators_of(job), functions=functions_of(job))

def training_step(model, split, batch: int, steps: int): # a function without arguments
    "`steps` optimizer steps on a batch of middling length"
    samples, optimizer = model.train().samples(split.train, 20), torch.optim.AdamW(model.parameters(), fused=True)
    rows = sorted(LengthBatches(samples, batch), key=lambda rows: samples.lengths[rows].mean())
    inputs = samples.collate(rows[len(rows)//2])
    def run():
        for _ in range(steps):
            model(**inputs).nll.mean().backward()
            optimizer.step()
            optimizer.zero_grad()
    return run

def bench_profile(
    quick: bool = False, # 8 users instead of 256, batches of 4 instead of 64
    progress=None, # something with `stage(name)`
    beams: int = 20, # k
) -> dict:
    "where the time goes, operator by operator: search and training of T5 and the item decoder over children with a prior"
    stage = progress.stage if progress else lambda name: None
    users, batch = (8, 4) if quick else (256, 64)
    what, ids, split = device_case(max(users, 200))
    counts, history = split.train.target_counts(), by_length(torch.from_numpy(split.test.tail(20)[:users]))
    trie, config, how = ItemTrie.build(ids), DecodeConfig(beams, search='beam', exclude_seen=False), dict(softmax='children', prior='trie', counts=counts)
    t5, packed = tiger_t5(ids, **how).eval(), item_decoder(ids, **how).eval()
    each = lambda f: torch.inference_mode()(lambda: [f(rows) for rows in history.split(32)])
    jobs = {'T5, generate': torch.inference_mode()(lambda: generate_items(t5, trie, history, {}, beams, 32)),
            'T5, beam search': each(lambda x: beam_search(t5, trie, x, config)),
            'item decoder, beam search': each(lambda x: beam_search(packed, trie, x, config)),
            'item decoder, every item': each(lambda x: exact_search(packed, x, beams, replace(config, search='exact')))}
    out = dict(data=what, users=len(history), beams=beams, batch=batch, versions=versions(), jobs={})
    for name, job in jobs.items():
        stage(f'profile: {name}')
        out['jobs'][name] = profile_of(job)
    for name, make in {'T5, training': tiger_t5, 'item decoder, training': item_decoder}.items():
        stage(f'profile: {name}')
        out['jobs'][name] = profile_of(training_step(make(ids, **how), split, batch, 2 if quick else 10))
    return out


BENCHES = dict(trie=bench_trie, catalog=bench_catalog, decode=bench_decode, constraint=bench_constraint, exact=bench_exact, backbones=bench_backbones, tokenizers=bench_tokenizers, weightings=bench_weightings, llm=bench_llm, device=bench_device, profile=bench_profile, memory=bench_memory) # the first line of each docstring describes it

def run_bench(
    names: list[str] | None = None, # which of `BENCHES`; None: trie and decode, which need no training
    quick: bool = False, # smaller sizes
    progress=None, # something with `stage(name)`; None: silence
) -> dict: # JSON-able: machine, quick, and one entry for each measurement
    "Run measurements one after the other; raises `GenrecError` for an unknown name, and for a language model that cannot be had"
    names = list(names or ('trie', 'decode'))
    unknown = [n for n in names if n not in BENCHES]
    if unknown: raise GenrecError(f"there is no measurement {unknown[0]!r}, expected some of: {', '.join(BENCHES)}")
    if 'llm' in names: smollm2_folder()                                       # before the others take their time
    return dict(machine=machine(), quick=quick, results={n: BENCHES[n](quick, progress) for n in names})

def format_ratio(r: dict) -> str: return f'{r["median"]:.1f} × [{r["min"]:.1f}, {r["max"]:.1f}]'

def trie_lines(r: dict) -> list[str]:
    "Text of `bench_trie`"
    lines = [f'{x["items"]:>12,} items: {x["seconds"]["arrays"]["wall"]["median"]:.2f} s, dictionaries {x["seconds"]["dictionaries"]["wall"]["median"]:.2f} s: '
             f'{format_ratio(x["ratio"])}, by processor time {x["ratio_cpu"]["median"]:.1f} ×; largest difference {x["difference"]:.0e}' for x in r['races']]
    lines += [f'{x["items"]:>12,} items, fresh process: {x["wall"]["median"]:.2f} s [{x["wall"]["min"]:.2f}, {x["wall"]["max"]:.2f}], processor time {x["cpu"]["median"]:.2f} s, first build {x["first"]:.2f} s, '
              f'peak {x["peak_gb"]:.2f} GB ({x["before_gb"]:.2f} GB before)' for x in r['sizes']]
    return lines + [f'{"":>4}processor time per item in the largest catalog, relative to the one a tenth as large: {r["per_item_growth"]:.2f}']

def catalog_lines(r: dict) -> list[str]:
    "Text of `bench_catalog`"
    cpu, lines = lambda x: f'{x["cpu"]["median"]:.3f} s', []
    for x in r['sizes']:
        t, u = x['seconds'], x['updates']
        lines += [f'{x["items"]:>12,} items, {x["nodes"]:,} nodes, {x["bytes"]/1e6:,.1f} MB: trie and gain {cpu(t["trie_and_gain"])} of processor time, peak {x["peak_gb"]:.2f} GB ({x["before_gb"]:.2f} GB before); on disk within {x["memory"]/1e6:,.0f} MB {cpu(t["on_disk"])}; build {format_ratio(x["ratio"])} faster than by gathering rows',
                  f'{"":>12} {u["items"]:,} items join in {1000*u["add"]["cpu"]["min"]:.1f} ms, are re-weighed in {1000*u["reweigh"]["cpu"]["min"]:.1f}, leave in {1000*u["remove"]["cpu"]["min"]:.1f}; merged in {cpu(u["merge"])}']
    return lines

def decode_lines(r: dict) -> list[str]:
    "Text of `bench_decode`"
    lines = [f'{"":>4}{r["data"]}; {r["users"]} users, {r["beams"]} beams, {r["tokens"]} tokens, {r["mean_history"]:.1f} items of history in the mean']
    for name in ('vocabulary', 'children', 'children with prior'):
        x = r[name]
        lines += [f'{"":>4}softmax over {name}:']
        lines += [f'{n:>44}: {ms["cpu"]:>7.1f} ms a user of processor time' + (f', engine is {format_ratio(x["ratio"][n]["cpu"])} faster' if n in x['ratio'] else '')
                  for n, ms in x['ms_per_user'].items()]
        lines += [f'{"":>8}engine/encoder {format_ratio(x["engine_over_encoder"]["cpu"])}; identical lists: {x["identical"]:.1%} of users, largest difference of scores {x["difference"]:.0e}']
    return lines

def constraint_lines(r: dict) -> list[str]:
    "Text of `bench_constraint`"
    return [f'{x["items"]:>12,} items, {n}: {1000*m["seconds"]["constrained"]["cpu"]["median"]/x["users"]:.1f} ms a user of processor time, free {1000*m["seconds"]["free"]["cpu"]["median"]/x["users"]:.1f}: '
            f'constrained/free {m["ratio"]["cpu"]["median"]:.2f} [{m["ratio"]["cpu"]["min"]:.2f}, {m["ratio"]["cpu"]["max"]:.2f}], STATIC/ours {m["static"]["cpu"]["median"]:.2f}, {m["identical"]:.1%} identical' for x in r['sizes'] for n, m in x['models'].items()]

def exact_lines(r: dict) -> list[str]:
    "Text of `bench_exact`"
    return [f'{n:>20}: {x["users"]:,} users x {x["items"]:,} items: exact {x["seconds"]["exact"]["cpu"]["median"]:.1f} s of processor time, beam {x["seconds"]["beam"]["cpu"]["median"]:.1f} s: '
            f'exact/beam {x["ratio"]["cpu"]["median"]:.2f}, exact/one token an item {x["over_single"]["cpu"]["median"]:.2f}; the beam\'s ten best are others for {x["differs"]:.1%}' if 'users' in x else f'{n:>20}: not measured, {x["skipped"]}'
            for n, x in r.items()]

def backbone_lines(r: dict) -> list[str]:
    "Text of `bench_backbones`"
    head = f'{"":>4}{r["data"]}, {r["users"]} users, {r["budget_cpu_seconds"]:.0f} s of processor time each'
    cell = lambda m: f'recall@10 {m["validation"]["recall@10"]:.4f} validation, {m["test"]["recall@10"]:.4f} test'
    return [head] + [f'{n:>20}: {cell(m)}' + (f' ({m["parameters"]/1e6:.2f}M parameters, {m["epochs"]:.1f} epochs in {m["cpu_seconds"]:.0f} s)' if 'epochs' in m else '') for n, m in r['models'].items()]

def tokenizer_lines(r: dict) -> list[str]:
    "Text of `bench_tokenizers`"
    clocks = lambda s: f'{s["wall"]["median"]:.2f} s [{s["wall"]["min"]:.2f}, {s["wall"]["max"]:.2f}], processor time {s["cpu"]["median"]:.2f} s'
    b, d = r['large'], r['diversity']
    lines = [f'{r["items"]:>12,} items x {r["dimensions"]}, balanced start of {r["levels"]} x {r["size"]} codes: {clocks(r["start"])}; {r["smallest"]} to {r["largest"]} items per code']
    if 'skipped' in d: lines += [f'{"":>4}an epoch of diversity: not measured, {d["skipped"]}']
    else: lines += [f'{"":>4}an epoch of diversity: {clocks(d["seconds"]["batches"])}; loops {clocks(d["seconds"]["loops"])}: {format_ratio(d["ratio"]["wall"])}, by processor time {format_ratio(d["ratio"]["cpu"])}; largest difference {d["difference"]:.0e}',
                    f'{"":>4}an epoch of the network itself: {clocks(d["seconds"]["network"])}; both together are {format_ratio(d["ratio_with_network"]["cpu"])} faster than with loops, by processor time']
    e = r['balanced']
    if 'skipped' in e: lines += [f'{"":>4}groups of equal size: not measured, {e["skipped"]}']
    else: lines += [f'{"":>4}{e["vectors"]:,} vectors in {e["groups"]} groups of equal size: {clocks(e["seconds"]["prices"])}; KMeansConstrained {clocks(e["seconds"]["flow"])}: {format_ratio(e["ratio"]["cpu"])} by processor time; mean squared distance {e["distance"]["prices"]:.4f} and {e["distance"]["flow"]:.4f}']
    return lines + [f'{b["items"]:>12,} items, fresh process: RQ-KMeans {b["fit"]["wall"]:.0f} s, processor time {b["fit"]["cpu"]:.0f} s, peak {b["peak_gb"]:.2f} GB ({b["before_gb"]:.2f} GB before)',
                    f'{"":>12} assignment alone: {b["per_second"]["wall"]:,.0f} items a second, {b["per_second"]["cpu"]:,.0f} a second of processor time; {b["exact"]:.1%} of a sample as in double precision']

def weighting_lines(r: dict) -> list[str]:
    "Text of `bench_weightings`"
    lines = []
    for name, b in r['backbones'].items():
        lines.append(f'{"":>4}{name}, batches of {b["batch"]}, {r["data"]}: a step of plain cross-entropy takes {b["ms_a_step"]["ce"]:.0f} ms of processor time')
        lines += [f'{n:>20}: {100*(x["cpu"]["median"] - 1):+.1f} % by processor time, {100*(x["wall"]["median"] - 1):+.1f} % by the clock' for n, x in b['ratio'].items()]
    return lines

def lm_lines(r: dict) -> list[str]:
    "Text of `bench_llm`"
    lines = []
    for x in (r[k] for k in ('titles', 'codes', 'titles over children', 'codes over children')):
        ms, read = x['ms_per_user'], x['read']
        lines += [f'{"":>4}{x["data"]}; {x["users"]} users in groups of {x["group"]}, {x["beams"]} beams, {x["longest"]} tokens at most, prompts of {x["mean_prompt"]:.0f} tokens in the mean',
                  f'{"engine":>20}: {ms["engine"]["wall"]:>7.1f} ms a user, {format_ratio(x["ratio"]["wall"])} faster ({x["ratio"]["cpu"]["median"]:.1f} × by processor time)', f'{"generate":>20}: {ms["generate"]["wall"]:>7.1f} ms a user',
                  f'{"":>4}identical lists: {x["identical"]:.1%} of users, largest difference of scores {x["difference"]:.1e}; distance from double precision (users: {x["exact_users"]}): engine {x["error"]["engine"]:.1e}, generate {x["error"]["generate"]:.1e}',
                  f'{"":>4}behind the prompts the engine read {read["tokens"]:,} tokens in {read["passes"]:,} passes, where its beams wrote {read["written"]:,} in {read["steps"]:,} steps']
    for on, x in (('without', r['plain']), ('with', r['checkpointed'])):
        lines.append(f'{"":>4}a LoRA step, float32, {x["batch"]} x {x["tokens"]} tokens of {x["data"]}, {on} gradient checkpointing, fresh process: peak {x["peak_gb"]:.2f} GB ({x["before_gb"]:.2f} GB before), processor time {x["cpu"]:.0f} s')
    return lines

def device_lines(r: dict) -> list[str]:
    lines = [f'{"":>4}{r["device"]}, {r["dtype"]}; {r["data"]}; a matrix product reaches {r["peak_tflops"]:.3g} TFLOP/s']
    for name, x in r['training'].items(): lines.append(f'{"":>4}training {name}, batches of {x["batch"]}: {x["samples_per_second"]:,.0f} samples a second, {x["share_of_peak"]:.1%} of the product')
    for name, ways in r['ranking'].items():
        for way, x in ways.items():
            if way == 'constraint': lines.append(f'{"":>4}ranking {name}: constrained takes {format_ratio(x["ratio"])} the time of free')
            else: lines.append(f'{"":>4}ranking {name}, {way}: {x["users_per_second"]["median"]:,.0f} users a second, {x["share_of_peak"]:.1%} of the product')
    return lines

def profile_lines(r: dict) -> list[str]:
    "Text of `bench_profile`"
    return [f'{"":>4}{r["data"]}; {r["users"]} users, {r["beams"]} beams; ten training steps of {r["batch"]} samples'] + [
        f'{n:>28}: {x["seconds"]:.2f} s of processor time, {x["calls"]:,} operators, {x["products"]:.0%} in products; ' + ', '.join(f'{o["name"].removeprefix("aten::")} {o["share"]:.0%}' for o in x['operators'])
        for n, x in r['jobs'].items()]

def memory_lines(r: dict) -> list[str]:
    "Text of `bench_memory`"
    return [f'{x["items"]:>12,} items, {"within " + format(x["limit"]/1e6, ",.0f") + " MB on disk" if x["limit"] else "in memory"}: {x["cpu"]:.1f} s of processor time, {x["nodes"]:,} nodes, a file of {x["file_bytes"]/1e9:.2f} GB, {x["peak_gb"] - x["before_gb"]:.2f} GB more than before' for x in r['builds']]

def format_bench(
    result: dict, # from `run_bench`
) -> str: # lines of text
    "Readable table of all measurements"
    m, text = result['machine'], dict(trie=trie_lines, catalog=catalog_lines, decode=decode_lines, constraint=constraint_lines, exact=exact_lines, backbones=backbone_lines, tokenizers=tokenizer_lines, weightings=weighting_lines, llm=lm_lines, device=device_lines, profile=profile_lines, memory=memory_lines)
    lines = [f'{m["processor"]}, {m["cores"]} cores, {m["threads"]} threads; python {m["python"]}, torch {m["torch"]}, transformers {m["transformers"]}, numpy {m["numpy"]}']
    for name, r in result['results'].items(): lines += ['', f'{name}: {BENCHES[name].__doc__.splitlines()[0]}', *text[name](r)]
    return '\n'.join(lines)


def main() -> None:
    "The command line"
    import argparse
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('names', nargs='*', help=f'which of {", ".join(BENCHES)}; trie and decode if none is named')
    parser.add_argument('--quick', action='store_true', help='smaller sizes')
    parser.add_argument('--out', type=Path, help='also write the figures to this JSON file')
    args = parser.parse_args()
    result = run_bench(args.names or None, args.quick)
    print(format_bench(result))
    if args.out: write_json(args.out, result | dict(versions=versions()))

if __name__ == '__main__': main()
