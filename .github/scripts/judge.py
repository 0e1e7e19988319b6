"""Another library on our splits, its lists through our metrics and ours through its.

    python .github/scripts/judge.py install ENV            # an environment of its own with cornac 3
    python .github/scripts/judge.py run DATA OUT.json --env ENV --minutes 60 --users 1000
    python .github/scripts/judge.py search DATA OUT.json --env ENV --users 256

DATA is a folder NAME with NAME.inter.json, texts, and published tables NAME.letter.index.json and NAME.rqvae.index.json. Each
model trains in a process of its own with one thread until its minutes of processor time are over, whatever else the machine does (the
epoch that has begun is finished), and ranks the last items of the same drawn users, seen items kept. cornac's models have the settings that it ships (SASRec its defaults,
TIGER its GRID recipe, LETTER its LETTER recipe on the published table, RPG its recipe) and keep their best state on validation,
the last three on 200 users of it.
OUT.json holds figures by both libraries' metrics, seconds of processor time, peak memory, parameters, versions. Lists and vectors are
kept in OUT.work: what is there is not made again (delete it for other minutes, users or data).

`search` compares the time of searches alone: cornac's TIGER and ours, both untrained, with the sizes that both take from LETTER's authors, the
same codes, users, histories and beams, in processes that take turns. It needs no texts and no vectors."""
import argparse, json, os, resource, subprocess, sys, time
from pathlib import Path
import numpy as np

CORNAC = 'sasrec', 'tiger', 'letter', 'rpg'
OURS = 'one token', 'LETTER codes', 'several'
KS = 5, 10
PACKAGES = 'cornac==3.0.1', 'torch==2.13.0', 'transformers', 'k-means-constrained', 'faiss-cpu', 'scikit-learn'


def install(env: Path) -> None:
    "An environment of its own: what cornac needs must not decide what this library needs"
    subprocess.run([sys.executable, '-m', 'venv', env], check=True)
    done = subprocess.run([env/'bin/python', '-m', 'pip', 'install', '-q', *PACKAGES])
    if done.returncode: sys.exit(f'judge: {" ".join(PACKAGES)} could not be installed into {env}; the report needs them')


# Both sides read the same file: histories, the drawn users, vectors, codes. No library of ours is imported on the other side.

def prepare(data: Path, folder: Path, n_users: int, seed: int = 0, text: bool = True) -> None:
    from genrec_nb.embed import embed_texts
    from genrec_nb.loaders import load_dataset
    from genrec_nb.semantic_ids import Identifiers
    from genrec_nb.splits import leave_one_out
    x = load_dataset(data, text=text)
    split = leave_one_out(x.interactions)
    test = split.test.sample(n_users, seed)
    codes = Identifiers.from_index(data/f'{data.name}.letter.index.json', x.catalog).codes()
    folder.mkdir(parents=True, exist_ok=True)
    np.savez(folder/'shared.npz', items=x.interactions.items, offsets=x.interactions.offsets, n_items=len(x.catalog.ids),
             users=test.users, targets=test.targets, codes=codes - codes.min(0), vectors=embed_texts(x.catalog.texts, 'minilm') if text else np.zeros((len(x.catalog.ids), 1), np.float32))


class Clock:
    "Epochs until the minutes of processor time are over"
    def __init__(self, minutes: float): self.end, self.epochs = time.process_time() + 60*minutes, 0

    def __call__(self, start, stop, desc='', **k):
        "In place of tqdm's `trange`: a tokenizer's loop runs to its end, a generator's until the time is over"
        outer, timed = self, 'RQ-VAE' not in (desc or '')
        class Loop:
            def __iter__(self):
                for n in range(start, stop):
                    if timed and time.process_time() > outer.end: return
                    if timed: outer.epochs = n
                    yield n
            def set_postfix(self, *a, **k): pass
            def close(self): pass
        return Loop()


def cornac_model(name: str, clock: Clock, shared: dict, seed: int):
    "The model with the settings that cornac ships; only its clock is ours"
    import importlib
    module = importlib.import_module(f'cornac.models.{name}.recom_{name}')
    module.trange = clock
    best = dict(model_selection='best', seed=seed, n_epochs=10**6)
    if name == 'sasrec': return module.SASRec(**best, val_metric='ndcg', val_k=10)
    if name == 'tiger':
        from cornac.models.tiger import GRID_CONFIG
        return module.TIGER(**{**GRID_CONFIG, **best, 'val_sample': 200, 'device': 'cpu'})
    if name == 'letter':
        from cornac.models.letter import LETTER_CONFIG
        codes = shared['codes']
        own = dict(precomputed_semantic_ids=codes, rqvae_num_levels=codes.shape[1], rqvae_codebook_size=int(codes.max()) + 1)
        return module.LETTER(**{**LETTER_CONFIG, **own, 'cf_weight': 0, 'model_selection': 'best', 'val_sample': 200, 'seed': seed, 'device': 'cpu'})
    from cornac.models.rpg import RPG_CONFIG
    return module.RPG(**{**RPG_CONFIG, 'pca_dim': 0, 'val_sample': 200, 'seed': seed, 'device': 'cpu', 'lr_schedule': 'constant'})


def evaluation(shared: dict):
    "cornac's evaluation on the same histories: train without the last two items, validation without the last"
    from cornac.data import FeatureModality
    from cornac.eval_methods import NextItemEvaluation
    items, offsets, n = shared['items'], shared['offsets'], int(shared['n_items'])
    def rows(cut):
        return [(u, u, i, t) for u, (a, b) in enumerate(zip(offsets[:-1].tolist(), offsets[1:].tolist()))
                for t, i in enumerate(items[a:b - cut].tolist()) if b - a > 2]
    catalog = [(-1 - i, -1 - i, i, 0) for i in range(n)]                     # items that only later parts name need a number, too
    feature = FeatureModality(features=shared['vectors'], ids=list(range(n)))
    method = NextItemEvaluation.from_splits(train_data=catalog + rows(2), val_data=rows(1), test_data=rows(0), fmt='USIT', mode='last',
                                            exclude_unknowns=False, item_feature=feature)
    assert [method.global_iid_map[i] for i in range(n)] == list(range(n))    # items have our numbers
    return method


def cornac_side(folder: Path, name: str, minutes: float, seed: int) -> None:
    "Train a model of cornac and store its lists"
    import torch
    torch.set_num_threads(1)
    shared = dict(np.load(folder/'shared.npz'))
    method, clock = evaluation(shared), Clock(minutes)
    model, start = cornac_model(name, clock, shared, seed), time.process_time()
    model.fit(method.train_set, method.val_set)
    seconds, start, lists = time.process_time() - start, time.process_time(), []
    for u in shared['users'].tolist():
        history = shared['items'][shared['offsets'][u]:shared['offsets'][u + 1] - 1].tolist()
        lists.append(np.asarray(model.rank(u, history_items=history)[0])[:20])
    net = next(v for v in vars(model).values() if isinstance(v, torch.nn.Module))
    store(folder, name, np.stack(lists), seconds, time.process_time() - start, clock.epochs, sum(p.numel() for p in net.parameters()))


def our_side(folder: Path, data: Path, name: str, minutes: float, seed: int) -> None:
    "Train an item decoder and store its lists: one identifier or several, the recipe of the likelihood grids"
    import tempfile, torch
    from transformers import TrainerCallback
    from genrec_nb.beam_search import DecodeConfig
    from genrec_nb.exact import ExactConfig, rank_exact
    from genrec_nb.item_decoder import item_decoder
    from genrec_nb.loaders import load_dataset
    from genrec_nb.semantic_ids import Identifiers
    from genrec_nb.splits import leave_one_out
    from genrec_nb.train import TrainConfig, fit
    torch.set_num_threads(1)
    shared, x = np.load(folder/'shared.npz'), load_dataset(data)
    split = leave_one_out(x.interactions)
    def published(table):
        codes = Identifiers.from_index(data/f'{data.name}.{table}.index.json', x.catalog).codes()
        return Identifiers.from_codes(codes - codes.min(0), policy='extra')
    item = Identifiers.from_codes(np.arange(len(x.catalog.ids))[:, None], policy='keep')
    ids = {'one token': [item], 'LETTER codes': [published('letter')]}.get(name) or [published('letter'), published('rqvae'), item]
    model = item_decoder(ids, counts=split.train.target_counts(), seed=seed, dropout=.3, scale_embeddings=True, softmax='children', prior='trie')
    test = split.test.take(np.flatnonzero(np.isin(split.test.users, shared['users'])))
    assert (test.targets == shared['targets']).all()
    start, epochs = time.process_time(), 15
    with tempfile.TemporaryDirectory() as run:
        result = fit(model, split.train, split.valid, model.tries, None, TrainConfig(epochs=epochs, eval_every=5, eval_users=2000, patience=0, seed=seed), run)
    seconds, start = time.process_time() - start, time.process_time()
    exact = ExactConfig(combine='mixture') if len(ids) > 1 else ExactConfig()
    lists = rank_exact(model, test, 20, DecodeConfig(exclude_seen=False), None, exact=exact)
    store(folder, name, np.asarray(lists), seconds, time.process_time() - start, epochs, sum(p.numel() for p in model.parameters()))


def untrained_tiger(shared: dict, beams: int, seed: int):
    "cornac's TIGER on given codes, before its first step"
    from cornac.models.tiger import TIGER
    class Given(TIGER):
        def _tokenize(self, torch, vectors): return shared['codes']
    model = Given(rqvae_num_levels=shared['codes'].shape[1], rqvae_codebook_size=int(shared['codes'].max()) + 1, max_len=20, n_beams=beams, n_epochs=0,
                  model_selection='last', seed=seed, device='cpu')
    model.fit(evaluation(shared).train_set)
    return model


def search_side(folder: Path, name: str, beams: int, seed: int) -> None:
    "Seconds of processor time for the lists of all drawn users, of two rounds"
    import torch
    torch.set_num_threads(1)
    shared = dict(np.load(folder/'shared.npz'))
    histories = [shared['items'][shared['offsets'][u]:shared['offsets'][u + 1] - 1][-20:].tolist() for u in shared['users'].tolist()]
    if name == 'cornac': # one user after the other is the only way
        model = untrained_tiger(shared, beams, seed)
        net, ranked = model.model, lambda: [model.rank(0, history_items=h) for h in histories]
    else:
        from genrec_nb.beam_search import DecodeConfig, recommend
        from genrec_nb.semantic_ids import Identifiers
        from genrec_nb.tiger import tiger_t5
        from genrec_nb.trie import ItemTrie
        counts = np.bincount(np.concatenate([shared['items'][a:max(b - 2, a)] for a, b in zip(shared['offsets'], shared['offsets'][1:])]), minlength=int(shared['n_items']))
        how = dict(softmax='children', prior='trie', counts=counts) if name == 'children' else {}
        ids = Identifiers.from_codes(shared['codes'], policy='extra')
        net, trie = tiger_t5(ids, seed=seed, **how).eval(), ItemTrie.build(ids)
        longest = max(map(len, histories))
        rows = torch.tensor([h + [-1]*(longest - len(h)) for h in histories])
        ranked = lambda: recommend(net, trie, rows, beams, DecodeConfig(beams, search='beam', exclude_seen=False))
    seconds = []
    for _ in range(2):
        start = time.process_time()
        ranked()
        seconds.append(time.process_time() - start)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss/1024
    print('RESULT' + json.dumps(dict(seconds=seconds, users=len(histories), parameters=sum(p.numel() for p in net.parameters()), peak_mb=round(peak))))


def search(a) -> None:
    "cornac, ours over the vocabulary, ours over children with a prior, in turns"
    from genrec_nb.core import versions, write_json
    folder, found = a.out.with_suffix('.work'), {}
    theirs = python_of(a.env)
    if not (folder/'shared.npz').exists(): prepare(a.data, folder, a.users, a.seed, text=False)
    for name in ('cornac', 'vocabulary', 'children')*a.rounds:
        python = theirs if name == 'cornac' else sys.executable
        done = subprocess.run([str(python), __file__, 'search-side', str(folder), name, str(a.beams), str(a.seed)], capture_output=True, text=True,
                              env=os.environ | dict(OMP_NUM_THREADS='1', MKL_NUM_THREADS='1', TQDM_DISABLE='1'))
        lines = [l for l in done.stdout.splitlines() if l.startswith('RESULT')]
        if not lines: sys.exit(f'judge: the search of {name} failed: {(done.stderr.strip() or "no output").splitlines()[-1]}')
        one = json.loads(lines[-1][6:])
        row = found.setdefault(name, one | dict(seconds=[], ms_per_user=[]))
        row['seconds'] += one['seconds']
        row['ms_per_user'] = [1000*s/one['users'] for s in row['seconds']]
        print(name, one, flush=True)
    for name in ('vocabulary', 'children'):
        found[name]['ratio'] = sorted(a/b for a, b in zip(found['cornac']['seconds'], found[name]['seconds']))
    write_json(a.out, dict(data=a.data.name, codes='letter', beams=a.beams, history=20, seed=a.seed, packages=PACKAGES, searches=found, versions=versions()))


def python_of(env: Path) -> Path: # the interpreter of the other side
    if not (env/'bin/python').exists(): sys.exit(f'judge: there is no environment in {env}: python .github/scripts/judge.py install {env}')
    return env/'bin/python'


def store(folder: Path, name: str, lists, train: float, rank: float, epochs: int, parameters: int) -> None:
    np.save(folder/f'{name}.npy', lists)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss/1024
    about = dict(epochs=epochs, parameters=int(parameters), seconds=dict(train=round(train, 1), ranking=round(rank, 2)), peak_mb=round(peak))
    (folder/f'{name}.json').write_text(json.dumps(about))


def their_metrics(folder: Path) -> None:
    "Every stored list through cornac's own Recall and NDCG"
    from cornac.metrics import NDCG, Recall
    targets, found = np.load(folder/'shared.npz')['targets'], {}
    for path in sorted(folder.glob('*.npy')):
        lists = np.load(path)
        for k in KS:
            for name, metric in (('recall', Recall(k=k)), ('ndcg', NDCG(k=k))):
                each = [metric.compute(gt_pos=np.array([t]), pd_rank=row) for t, row in zip(targets.tolist(), lists)]
                found.setdefault(path.stem, {})[f'{name}@{k}'] = float(np.mean(each))
    (folder/'cornac-metrics.json').write_text(json.dumps(found))


def call(python, *args) -> bool:
    env = os.environ | dict(OMP_NUM_THREADS='1', MKL_NUM_THREADS='1', TQDM_DISABLE='1')
    return subprocess.run([str(python), __file__, *map(str, args)], env=env).returncode == 0


def run(a) -> None:
    from genrec_nb.core import versions, write_json
    from genrec_nb.metrics import ranking_metrics
    folder, theirs = a.out.with_suffix('.work'), python_of(a.env)
    if not (folder/'shared.npz').exists(): prepare(a.data, folder, a.users)
    for name in a.models:
        if (folder/f'{name}.json').exists(): continue
        python, side = (sys.executable, 'ours') if name in OURS else (theirs, 'cornac')
        if not call(python, side, folder, a.data, name, a.minutes, a.seed): print(f'judge: {name} failed and is left out', file=sys.stderr)
    call(theirs, 'metrics', folder)
    by_theirs, targets, rows = json.loads((folder/'cornac-metrics.json').read_text()), np.load(folder/'shared.npz')['targets'], []
    for name in a.models:
        if not (folder/f'{name}.json').exists(): continue
        ours = ranking_metrics(np.load(folder/f'{name}.npy'), targets, KS)
        off = max(abs(ours[m] - v) for m, v in by_theirs[name].items())
        assert off < 1e-9, f'{name}: the two libraries differ by {off}'
        about = json.loads((folder/f'{name}.json').read_text())
        rows.append(dict(model=name, library='genrec_nb' if name in OURS else 'cornac 3.0.1', **about, metrics={m: ours[m] for m in by_theirs[name]},
                         difference_of_metrics=off))
        print(name, about, by_theirs[name], f'{off:.0e}', flush=True)
    write_json(a.out, dict(data=a.data.name, users=a.users, minutes=a.minutes, seed=a.seed, exclude_seen=False, rows=rows, packages=PACKAGES,
                           versions=versions()))


if __name__ == '__main__':
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    sub = p.add_subparsers(dest='what', required=True)
    sub.add_parser('install').add_argument('env', type=Path)
    main = sub.add_parser('run')
    main.add_argument('data', type=Path)
    main.add_argument('out', type=Path)
    main.add_argument('--env', type=Path, required=True)
    main.add_argument('--minutes', type=float, default=60)
    main.add_argument('--users', type=int, default=1000)
    main.add_argument('--seed', type=int, default=0)
    main.add_argument('--models', nargs='+', default=[*OURS, *CORNAC], choices=[*OURS, *CORNAC])
    race = sub.add_parser('search')
    race.add_argument('data', type=Path)
    race.add_argument('out', type=Path)
    race.add_argument('--env', type=Path, required=True)
    for option, usual in dict(users=256, beams=20, rounds=2, seed=0).items(): race.add_argument(f'--{option}', type=int, default=usual)
    one = sub.add_parser('search-side')
    for arg, kind in dict(folder=Path, name=str, beams=int, seed=int).items(): one.add_argument(arg, type=kind)
    for side in ('ours', 'cornac'):
        one = sub.add_parser(side)
        for arg, kind in dict(folder=Path, data=Path, name=str, minutes=float, seed=int).items(): one.add_argument(arg, type=kind)
    sub.add_parser('metrics').add_argument('folder', type=Path)
    a = p.parse_args()
    if a.what == 'install': install(a.env)
    elif a.what == 'search': search(a)
    elif a.what == 'search-side': search_side(a.folder, a.name, a.beams, a.seed)
    elif a.what == 'metrics': their_metrics(a.folder)
    elif a.what == 'ours': our_side(a.folder, a.data, a.name, a.minutes, a.seed)
    elif a.what == 'cornac': cornac_side(a.folder, a.name, a.minutes, a.seed)
    else: run(a)
