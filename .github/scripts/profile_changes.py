"""Profiles before and after changes that made the library faster: python .github/scripts/profile_changes.py OUT.json --data DIR

Each change is a pair of commits of this repository's history. Both are checked out beside one another and run the same job, in processes of one
thread that take turns; the first five of every list, or the loss, must be the same. OUT.json holds the seconds of processor time of each round, and the operators that took them."""
import argparse, json, os, subprocess, sys, tempfile, time
from pathlib import Path
import numpy as np
import torch
from profiles import operators_of

CHANGES = { # before, after, job
    'training computes real positions only; histories of any length in a batch': ('581482d^', '71f7dbe', 'train'),
    'the same; histories of one length in a batch': ('581482d^', '71f7dbe', 'train by length'),
    'every item: rows by index_select, children from all codes of a level': ('89fe422^', '89fe422', 'exact'),
    'T5 over children computes no beam whose tokens are all forced': ('6af9aaa^', '6af9aaa', 't5'),
    'beam search normalizes by log_softmax': ('4fcada8^', '4fcada8', 'large logits'),
    'the item decoder searches for 128 users at once': ('bbc42e3^', 'bbc42e3', 'beam'),
    'beam search looks for finished paths only where paths end': ('efaa50b^', 'efaa50b', 'beam, 32 at once'),
    'a mixture of three identifiers: only prefixes that can lead to one of the 20 best items': ('2b1cc94^', '5190a3f', 'mixture'),
    'the same for one identifier, with a floor from the items with the largest bounds': ('2b1cc94^', '5190a3f', 'exact'),
    'every item: the first layer of a head once a user and once a prefix, no item scored twice': ('0fafc31^', 'd42d4ae', 'exact'),
    'the same for a mixture of three identifiers': ('0fafc31^', 'd42d4ae', 'mixture'),
}
ROOT = Path(__file__).resolve().parents[2]


def job_of(name: str, data: Path): # a function without arguments, whose results are compared
    "What is timed, on Beauty with LETTER's identifiers, with the library of whatever checkout is on the path"
    from genrec_nb.beam_search import DecodeConfig, recommend
    from genrec_nb.exact import ExactConfig, exact_search
    from genrec_nb.item_decoder import item_decoder
    from genrec_nb.loaders import load_dataset
    from genrec_nb.semantic_ids import Identifiers
    from genrec_nb.splits import leave_one_out
    from genrec_nb.tiger import tiger_t5
    from genrec_nb.trie import ItemTrie
    ids, split = Identifiers.from_index(data/f'{data.name}.letter.index.json'), leave_one_out(load_dataset(data, text=False).interactions)
    children = dict(softmax='children', prior='trie', counts=split.train.target_counts())
    if 'train' in name: return training_of(item_decoder(ids, **children), split, 'length' in name)
    history = torch.from_numpy(split.test.tail(20)[:64 if name == 't5' else 256])
    exact, tables = name in ('exact', 'mixture'), ids
    if name == 'mixture':
        other, n = Identifiers.from_index(data/f'{data.name}.rqvae.index.json'), len(ids)
        tables = [ids, other, Identifiers.from_codes(np.arange(n)[:, None], policy='keep')]
    model = tiger_t5(ids, softmax='children') if name == 't5' else item_decoder(tables, **(children if exact else dict(softmax='vocabulary', prior='none')))
    model.eval()
    how = ExactConfig('mixture') if name == 'mixture' else ExactConfig()
    if name == 'large logits': # as of a long training
        with torch.no_grad(): [p.mul_(500) for p in model.codes.parameters()]
    config, trie = DecodeConfig(20, search='exact' if exact else 'beam', exclude_seen=False), ItemTrie.build(ids)
    @torch.inference_mode()
    def rank():
        if exact: best = torch.cat([exact_search(model, x, 20, config, exact=how)[0] for x in history.split(32)])
        else: best, _ = recommend(model, trie, history, 20, config, batch_size=32 if '32' in name else None)
        return hash(tuple(best[:, :5].flatten().tolist()))
    return rank


def training_of(model, split, by_length: bool, batch: int = 64, steps: int = 16): # a function without arguments
    "Training steps of the item decoder; its result is the loss before them, without dropout"
    from genrec_nb.batches import LengthBatches
    samples = model.samples(split.train, 20)
    order = iter(LengthBatches(samples, batch)) if by_length else np.random.default_rng(0).permutation(len(samples))[:batch*steps].reshape(steps, batch).tolist()
    batches = [samples.collate(rows) for _, rows in zip(range(steps), order)]
    with torch.no_grad(): loss = sum(float(model.eval()(**x).nll.sum()) for x in batches)
    optimizer = torch.optim.AdamW(model.train().parameters())
    def train():
        for x in batches: model(**x).nll.sum().backward(); optimizer.step(); optimizer.zero_grad()
        return f'{loss:.4g}'
    return train


def one_side(name: str, data: Path) -> None:
    "Three rounds of a job, of which the first is not timed, then its profile"
    torch.set_num_threads(1)
    job, seconds = job_of(name, data), []
    for _ in range(3):
        start = time.process_time()
        result = job()
        seconds.append(time.process_time() - start)
    print('RESULT' + json.dumps(dict(seconds=seconds[1:], result=result, **operators_of(job))))


def main(out: Path, data: Path, rounds: int, only: str) -> None:
    from genrec_nb.core import read_json, versions, write_json
    git = lambda *x: subprocess.run(['git', '-C', ROOT, *x], check=True, capture_output=True, text=True).stdout.strip()
    known = {c['change']: c for c in read_json(out)['changes']} if out.exists() else {}
    git('worktree', 'prune') # of a run that was killed
    with tempfile.TemporaryDirectory() as folder:
        for name, (before, after, job) in CHANGES.items():
            if only not in name: continue
            sides = {side: dict(commit=git('rev-parse', '--short', c), seconds=[]) for side, c in dict(before=before, after=after).items()}
            for side in sides.values(): git('worktree', 'add', '--detach', f'{folder}/{side["commit"]}', side['commit'])
            try:
                for side in [*sides.values()]*rounds:
                    env = os.environ | dict(OMP_NUM_THREADS='1', TQDM_DISABLE='1', PYTHONPATH=f'{folder}/{side["commit"]}')
                    done = subprocess.run([sys.executable, __file__, 'side', job, data.resolve()], capture_output=True, text=True, env=env, cwd=folder)
                    lines = [l for l in done.stdout.splitlines() if l.startswith('RESULT')]
                    if not lines: raise SystemExit(f'{name}, {side["commit"]}: {(done.stderr.strip() or "no output").splitlines()[-1]}')
                    one = json.loads(lines[-1][6:])
                    side['seconds'] += one.pop('seconds')
                    side.update(one)
            finally:
                for side in sides.values(): git('worktree', 'remove', '--force', f'{folder}/{side["commit"]}')
            results = [side.pop('result') for side in sides.values()]
            ratio = sorted(a/b for a, b in zip(sides['before']['seconds'], sides['after']['seconds']))
            known[name] = dict(change=name, job=job, same=results[0] == results[1], ratio=dict(median=float(np.median(ratio)), min=ratio[0], max=ratio[-1], rounds=len(ratio)), **sides)
            print(f'{name}: {known[name]["ratio"]}, same results: {known[name]["same"]}', flush=True)
    write_json(out, dict(data=data.name, users=256, changes=[known[n] for n in CHANGES if n in known], versions=versions()))


if __name__ == '__main__':
    if sys.argv[1:2] == ['side']: one_side(sys.argv[2], Path(sys.argv[3]))
    else:
        p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
        p.add_argument('out', type=Path)
        p.add_argument('--data', type=Path, required=True)
        p.add_argument('--rounds', type=int, default=3)
        p.add_argument('--only', default='', help='changes with these words; of the others OUT.json keeps what it has')
        a = p.parse_args()
        main(a.out, a.data, a.rounds, a.only)
