"""What the order of equal times does to figures: popularity, transitions and SASRec on MovieLens-100K under several
orders. python .github/scripts/tie_rows.py OUT.json [--seeds 0,1,2] [--tie-seeds 0,1,2,3,4]

'item descending' is the item order backwards: it shows which way a fixed order by item id moves each figure. Leave-one-out,
full catalog, seen items left out; SASRec with the library's default settings. Random orders take the training seeds in turn."""
import argparse
import numpy as np
from pathlib import Path
from genrec_nb.baselines import _top_items
from genrec_nb.core import versions, write_json
from genrec_nb.data import Dataset
from genrec_nb.splits import leave_one_out
from genrec_nb.loaders import fetch, load_dataset, _read_atomic
from genrec_nb.metrics import popularity_ranking, ranking_metrics
from genrec_nb.sequential_baselines import train_sasrec
from transformers.utils import logging
import torch


def descending():
    "MovieLens with equal times in descending order of the item ids"
    rows = _read_atomic(fetch('ml-100k')/'ml-100k.inter')
    rows = rows.iloc[np.argsort(-rows.item_id.astype(int), kind='stable')]
    return Dataset.from_frame(rows, user='user_id', item='item_id', time='timestamp', ties='given').interactions


def transitions(split, k=20):
    "Items by how often they came right after the last item of the history, in training; then by popularity"
    x, n = split.train, split.train.n_items
    inside = np.diff(x.users) == 0
    after = np.zeros((n, n))
    np.add.at(after, (x.items[:-1][inside], x.items[1:][inside]), 1)
    scores = after[split.test.tail(1)[:, 0]] + x.item_counts()/(x.item_counts().sum() + 1)
    scores[np.repeat(np.arange(len(split.test)), np.diff(split.test.offsets)), split.test.items] = -np.inf
    return _top_items(torch.from_numpy(scores), k).numpy()


def rows(order, tie_seed, x, seeds):
    "The figures of one order"
    split = leave_one_out(x)
    lists = {('popularity', None): popularity_ranking(split.train.item_counts(), split.test, 20), ('transitions', None): transitions(split)}
    lists |= {('SASRec', s): train_sasrec(split, seed=s).rank(split.test, 20) for s in seeds}
    for (method, seed), ranked in lists.items():
        m = ranking_metrics(ranked, split.test.targets, (10,))
        yield dict(order=order, tie_seed=tie_seed, method=method, seed=seed, **{k: m[k] for k in ('recall@10', 'ndcg@10')})


if __name__ == '__main__':
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument('out', type=Path); p.add_argument('--seeds', default='0,1,2'); p.add_argument('--tie-seeds', default='0,1,2,3,4')
    a = p.parse_args()
    logging.disable_progress_bar()
    seeds, tie_seeds = ([int(s) for s in x.split(',')] for x in (a.seeds, a.tie_seeds))
    found = []
    fixed = {o: load_dataset('ml-100k', ties=o).interactions for o in ('item', 'given')} | {'item descending': descending()}
    for order, x in fixed.items():
        found += rows(order, None, x, seeds)
    for n, t in enumerate(tie_seeds):
        found += rows('random', t, load_dataset('ml-100k', tie_seed=t).interactions, [seeds[n % len(seeds)]])
    write_json(a.out, dict(data='ml-100k', rows=found, versions=versions()))
