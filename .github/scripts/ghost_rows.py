"""How much of a title decides nothing? python .github/scripts/ghost_rows.py OUT.json DATA [DATA ..] [--drop REGEX]

Titles cut by SmolLM2's tokenizer, a line break and EOS behind them (as IGD's release has them); gains and shares from training targets alone.
A data set in which half of the titles end as --drop says (films: the year) gets a second row without these ends."""
import argparse
from pathlib import Path
import numpy as np
from transformers import AutoTokenizer
from genrec_nb.terminal import _set_up_logging
from genrec_nb.splits import global_time, leave_one_out
from genrec_nb.loaders import load_dataset
from genrec_nb.infogain import information_gain, item_prior, zero_gain_share
from genrec_nb.backbones import SMOLLM2, smollm2_folder
from genrec_nb.prompts import title_identifiers
from genrec_nb.core import write_json
from genrec_nb.core import versions
from genrec_nb.titles import short_titles
from genrec_nb.trie import ItemTrie


def row(name: str, tokenizer, drop: str = '') -> dict:
    "One data set"
    data = load_dataset(name)
    titles = short_titles(data.catalog.titles, drop)
    if drop and 2*sum(a != b for a, b in zip(titles, data.catalog.titles)) < len(titles): return None
    ids = title_identifiers(titles, tokenizer)
    trie = ItemTrie.build(ids)
    splits = {'leave-one-out': leave_one_out(data.interactions)} | ({'global time': global_time(data.interactions)} if data.interactions.times is not None else {})
    shares = {}
    for how, split in splits.items():
        counts = split.train.target_counts()
        shares[how] = zero_gain_share(trie, information_gain(trie, item_prior(counts)), counts)
    nodes = trie.item_nodes()
    written = nodes >= 0
    forced = written & (trie.n_children[trie.parent[nodes.clamp(min=0)].long().clamp(min=0)] == 1)
    n = ids.lengths
    return dict(data=data.name, drop=drop, items=len(ids), titles=len(set(titles)), tokens=dict(mean=float(n.mean()), median=int(np.median(n)), longest=int(n.max())),
                forced=float(forced.sum()/written.sum()), zero_gain=shares, position=dict(choice=(written & ~forced).sum(0).tolist()[:24], forced=forced.sum(0).tolist()[:24]))


if __name__ == '__main__':
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument('out', type=Path); p.add_argument('data', nargs='+')
    p.add_argument('--drop', default=r'\s*\(\d{4}\)$')
    a = p.parse_args()
    _set_up_logging()
    tokenizer = AutoTokenizer.from_pretrained(smollm2_folder())
    rows = [r for d in a.data for drop in ('', a.drop) if (r := row(d, tokenizer, drop))]
    write_json(a.out, dict(tokenizer=SMOLLM2, rows=rows, versions=versions()))
    for r in rows: print(r['data'], r['drop'], r['tokens'], f"{r['forced']:.1%} forced", {k: f'{v:.1%}' for k, v in r['zero_gain'].items()})
