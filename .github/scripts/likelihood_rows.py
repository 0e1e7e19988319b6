"""Train item decoders by their exact likelihood and store how they rank all items:

    python .github/scripts/likelihood_rows.py DATA OUT.jsonl --identifiers letter letter+rqvae+item --seeds 0 1 2 3 4 --jobs 14

DATA is a folder NAME with NAME.inter.json and published tables NAME.letter.index.json, NAME.rqvae.index.json; `item` means paths of one token, the
item itself: alone it is SASRec with the recipe of the others. Every item of the catalog is scored for every user, items of the history are left out
(`--keep-seen`: they are not). One line of OUT.jsonl a training: validation and test figures of every combination of the identifiers and of
IGD-decoding, the ranks of the test targets, seconds, device, settings, versions. Combination and strength are to be chosen by the validation figures.
A training that OUT.jsonl holds already is not repeated."""
import argparse, json, tempfile, time
from dataclasses import asdict, replace
from pathlib import Path
import numpy as np
import torch
from joblib import Parallel, delayed
from genrec_nb.beam_search import DecodeConfig
from genrec_nb.core import versions
from genrec_nb.splits import leave_one_out
from genrec_nb.exact import ExactConfig, fit_weights, item_nats, rank_exact
from genrec_nb.infogain import information_gain, item_prior
from genrec_nb.item_decoder import item_decoder
from genrec_nb.loaders import load_dataset
from genrec_nb.metrics import _rank_of, ranking_metrics
from genrec_nb.pipeline import _pack
from genrec_nb.semantic_ids import Identifiers
from genrec_nb.train import TrainConfig, fit

METRICS = 'recall@5', 'ndcg@5', 'recall@10', 'ndcg@10'


def table(folder: Path, name: str, catalog) -> Identifiers:
    "A published table, with one more code where items collide; or paths of one token"
    if name == 'item': return Identifiers.from_codes(np.arange(len(catalog.ids))[:, None], policy='keep')
    codes = Identifiers.from_index(folder/f'{folder.name}.{name}.index.json', catalog).codes()
    return Identifiers.from_codes(codes - codes.min(0), policy='extra')


def decodings(model, valid, memory: int) -> dict: # name -> (what, alpha)
    "Combinations of the identifiers, and IGD-decoding"
    plain = ExactConfig()
    found = {'plain': (plain, 0.), 'alpha=0.1': (plain, .1), 'alpha=0.2': (plain, .2)}
    if len(model.trees) > 1:
        mixture = replace(plain, combine='mixture')
        found |= {'mixture': (mixture, 0.), 'fitted product': (fit_weights(model, valid, plain, memory=memory), 0.),
                  'fitted mixture': (fit_weights(model, valid, mixture, memory=memory), 0.)}
    return found


def one(a, names: str, softmax: str, seed: int) -> dict:
    torch.set_num_threads(1)
    data = load_dataset(a.data, text=False)
    split, clock = leave_one_out(data.interactions), time.perf_counter
    counts, ids = split.train.target_counts(), [table(a.data, n, data.catalog) for n in names.split('+')]
    config = dict(dropout=a.dropout, d_model=a.width, scale_embeddings=True, softmax=softmax, prior='trie' if softmax == 'children' else 'none')
    model = item_decoder(ids, counts=counts, seed=seed, **config)
    train = TrainConfig(epochs=a.epochs, batch_size=a.batch, lr=a.lr, eval_every=a.eval_every, patience=0, eval_users=a.eval_users, seed=seed)
    start = clock()
    with tempfile.TemporaryDirectory() as folder: result = fit(model, split.train, split.valid, model.tries, None, train, folder)
    seconds, start = dict(train=round(clock() - start, 1)), clock()
    gains = [information_gain(t, item_prior(counts)) for t in model.tries]
    test = split.test.sample(min(a.test_users, len(split.test)), 0) if a.test_users else split.test
    valid, ways = split.valid.sample(min(a.valid_users, len(split.valid)), 1), {}
    for name, (exact, alpha) in decodings(model, valid, a.memory).items():
        decode = DecodeConfig(alpha=alpha, exclude_seen=not a.keep_seen, memory=a.memory)
        lists = {part: rank_exact(model, cases, 20, decode, gains if alpha else None, exact=exact) for part, cases in (('valid', valid), ('test', test))}
        ways[name] = dict(weights=exact.weights, alpha=alpha, ranks=_pack(_rank_of(lists['test'], test.targets)),
                          valid={m: round(v, 5) for m, v in ranking_metrics(lists['valid'], valid.targets).items() if m in METRICS},
                          test={m: round(v, 5) for m, v in ranking_metrics(lists['test'], test.targets).items() if m in METRICS})
        if softmax == 'children' and not alpha: ways[name] |= dict(nats=round(item_nats(model, test, exact, a.memory), 4))
    seconds['ranking'] = round(clock() - start, 1)
    return dict(data=a.data.name, identifiers=names, softmax=softmax, seed=seed, model=config, train=asdict(train), keep_seen=a.keep_seen,
                best_epoch=result.best_epoch, losses=result.losses, parameters=sum(p.numel() for p in model.parameters()), decodings=ways,
                seconds=seconds, device=torch.cuda.get_device_name() if torch.cuda.is_available() else 'cpu', processes=a.jobs,
                versions=versions() | ({'commit': a.commit} if a.commit else {}))


def main(a):
    done = {(r['data'], r['identifiers'], r['softmax'], r['seed'], r['train']['lr'], r['model']['dropout'], r['train']['epochs'])
            for r in map(json.loads, a.out.read_text().splitlines())} if a.out.is_file() else set()
    todo = [(names, softmax, seed) for seed in a.seeds for names in a.identifiers for softmax in a.softmax
            if (a.data.name, names, softmax, seed, a.lr, a.dropout, a.epochs) not in done]
    rows = Parallel(a.jobs, return_as='generator_unordered')(delayed(one)(a, *x) for x in todo)
    for row in rows:
        with a.out.open('a') as f: f.write(json.dumps(row) + '\n')
        best = max(row['decodings'], key=lambda n: row['decodings'][n]['valid']['ndcg@10'])
        print(row['identifiers'], row['softmax'], row['seed'], best, row['decodings'][best]['valid'], row['decodings'][best]['test'], row['seconds'], flush=True)


if __name__ == '__main__':
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('data', type=Path)
    p.add_argument('out', type=Path)
    p.add_argument('--identifiers', nargs='+', default=['letter+rqvae+item'])
    p.add_argument('--softmax', nargs='+', default=['children'], choices=['children', 'vocabulary'])
    p.add_argument('--seeds', nargs='+', type=int, default=[0])
    p.add_argument('--jobs', type=int, default=1, help='trainings side by side')
    p.add_argument('--epochs', type=int, default=15)
    p.add_argument('--batch', type=int, default=32)
    p.add_argument('--lr', type=float, default=5e-3)
    p.add_argument('--dropout', type=float, default=.3)
    p.add_argument('--width', type=int, default=64)
    p.add_argument('--eval-every', type=int, default=5)
    p.add_argument('--eval-users', type=int, default=2000)
    p.add_argument('--valid-users', type=int, default=4000)
    p.add_argument('--test-users', type=int, default=0, help='0: all')
    p.add_argument('--memory', type=int, default=2**26, help='bytes for scores')
    p.add_argument('--keep-seen', action='store_true')
    p.add_argument('--commit', help='where git cannot tell')
    main(p.parse_args())
