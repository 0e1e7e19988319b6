"""Profiles before and after changes that made the library faster: python .github/scripts/profile_changes.py OUT.json --data DIR

Each change is a pair of commits of this repository's history. Both are checked out beside one another and run the same job, in processes of one
thread that take turns; the first five of every list must be the same. OUT.json holds the seconds of processor time of each round, and the operators that took them."""
import argparse, json, os, subprocess, sys, tempfile, time
from pathlib import Path
import numpy as np
import torch
from profiles import operators_of

CHANGES = {
    'every item: rows by index_select, children from all codes of a level': ('89fe422^', '89fe422', 'exact'),
    'beam search normalizes by log_softmax': ('4fcada8^', '4fcada8', 'beam'),
}
ROOT = Path(__file__).resolve().parents[2]


def job_of(name: str, data: Path): # a function without arguments, whose results are compared
    "What is timed, on Beauty with LETTER's identifiers, with the library of whatever checkout is on the path"
    from genrec_nb.beam_search import DecodeConfig, beam_search
    from genrec_nb.exact import exact_search
    from genrec_nb.item_decoder import item_decoder
    from genrec_nb.loaders import load_dataset
    from genrec_nb.semantic_ids import Identifiers
    from genrec_nb.splits import leave_one_out
    from genrec_nb.trie import ItemTrie
    ids, split = Identifiers.from_index(data/f'{data.name}.letter.index.json'), leave_one_out(load_dataset(data, text=False).interactions)
    counts, history = split.train.target_counts(), torch.from_numpy(split.test.tail(20)[:256])
    trees = dict(softmax='children', prior='trie', counts=counts)
    model = item_decoder(ids, **(trees if name == 'exact' else dict(softmax='vocabulary', prior='none'))).eval()
    if name == 'beam': # large logits, as of a long training
        with torch.no_grad(): [p.mul_(500) for p in model.codes.parameters()]
    config, trie = DecodeConfig(20, search=name, exclude_seen=False), ItemTrie.build(ids)
    search = (lambda x: exact_search(model, x, 20, config)) if name == 'exact' else (lambda x: beam_search(model, trie, x, config))
    @torch.inference_mode()
    def rank():
        found = [search(x) for x in history.split(32)]
        best = [x[0] if isinstance(x, tuple) else getattr(x, 'items', getattr(x, 'nodes', None)) for x in found]
        return hash(tuple(torch.cat([b[:, :5] for b in best]).flatten().tolist()))
    return rank


def one_side(name: str, data: Path) -> None:
    "Three rounds of a job, of which the first is not timed, then its profile"
    torch.set_num_threads(1)
    job, seconds = job_of(name, data), []
    for _ in range(3):
        start = time.process_time()
        result = job()
        seconds.append(time.process_time() - start)
    print('RESULT' + json.dumps(dict(seconds=seconds[1:], result=result, **operators_of(job))))


def main(out: Path, data: Path, rounds: int) -> None:
    from genrec_nb.core import versions, write_json
    git, found = lambda *x: subprocess.run(['git', '-C', ROOT, *x], check=True, capture_output=True, text=True).stdout.strip(), []
    with tempfile.TemporaryDirectory() as folder:
        for name, (before, after, job) in CHANGES.items():
            sides = {side: dict(commit=git('rev-parse', '--short', c), seconds=[]) for side, c in dict(before=before, after=after).items()}
            for side in sides.values(): git('worktree', 'add', '--detach', f'{folder}/{side["commit"]}', side['commit'])
            try:
                for side in [*sides.values()]*rounds:
                    env = os.environ | dict(OMP_NUM_THREADS='1', TQDM_DISABLE='1', PYTHONPATH=f'{folder}/{side["commit"]}')
                    done = subprocess.run([sys.executable, __file__, 'side', job, data.resolve()], capture_output=True, text=True, env=env, cwd=folder)
                    lines = [l for l in done.stdout.splitlines() if l.startswith('RESULT')]
                    if not lines: sys.exit(f'{name}, {side["commit"]}: {(done.stderr.strip() or "no output").splitlines()[-1]}')
                    one = json.loads(lines[-1][6:])
                    side['seconds'] += one.pop('seconds')
                    side.update(one)
            finally:
                for side in sides.values(): git('worktree', 'remove', '--force', f'{folder}/{side["commit"]}')
            results = [side.pop('result') for side in sides.values()]
            ratio = sorted(a/b for a, b in zip(sides['before']['seconds'], sides['after']['seconds']))
            found.append(dict(change=name, job=job, same=results[0] == results[1], ratio=dict(median=float(np.median(ratio)), min=ratio[0], max=ratio[-1], rounds=len(ratio)), **sides))
            print(f'{name}: {found[-1]["ratio"]}, same results: {found[-1]["same"]}', flush=True)
    write_json(out, dict(data=data.name, users=256, changes=found, versions=versions()))


if __name__ == '__main__':
    if sys.argv[1:2] == ['side']: one_side(sys.argv[2], Path(sys.argv[3]))
    else:
        p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
        p.add_argument('out', type=Path)
        p.add_argument('--data', type=Path, required=True)
        p.add_argument('--rounds', type=int, default=3)
        a = p.parse_args()
        main(a.out, a.data, a.rounds)
