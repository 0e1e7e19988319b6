"""Train the text-free baseline on a data set and store its figures: python .github/scripts/baseline_rows.py DATA OUT.json [--seeds 0,1,2]

SASRec with the library's default settings (nothing tuned), leave-one-out, full catalog, seen items left out."""
import argparse
from dataclasses import asdict
from pathlib import Path
from genrec_nb.sequential_baselines import SASRecConfig, train_sasrec
from genrec_nb.terminal import _set_up_logging
from genrec_nb.splits import leave_one_out
from genrec_nb.loaders import load_dataset
from genrec_nb.metrics import evaluate_ranking
from genrec_nb.core import write_json
from genrec_nb.core import versions


def row(split, seed: int) -> dict:
    "One seed"
    model = train_sasrec(split, SASRecConfig(), seed)
    figures = {name: evaluate_ranking(model.rank(cases), cases, split.train).metrics for name, cases in (('valid', split.valid), ('test', split.test))}
    return dict(seed=seed, **{name: {k: m[k] for k in ('recall@5', 'recall@10', 'ndcg@5', 'ndcg@10')} for name, m in figures.items()})


if __name__ == '__main__':
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument('data'); p.add_argument('out', type=Path); p.add_argument('--seeds', default='0,1,2')
    a = p.parse_args()
    _set_up_logging()
    data = load_dataset(a.data)
    split = leave_one_out(data.interactions)
    write_json(a.out, dict(data=data.name, method='SASRec', config=asdict(SASRecConfig()), rows=[row(split, int(s)) for s in a.seeds.split(',')], versions=versions()))
    print(a.out.read_text())
