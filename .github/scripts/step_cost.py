"""What a training step over the children costs beside one over the vocabulary: python .github/scripts/step_cost.py packed|t5|llm [DATA] [--rounds 5]

Both in one process, in turns, on the same batch, with one thread: least processor time of the rounds, and floating-point operations of matrix products,
forward and backward. `llm` is SmolLM2 with LoRA on packed titles, in float32; there a third step is over the children of shortest paths."""
import argparse, contextlib, gc, time, warnings
import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode
from genrec_nb.backbones import adapt, load_lm
from genrec_nb.splits import leave_one_out
from genrec_nb.item_decoder import item_decoder
from genrec_nb.language_recommender import LMConfig, LanguageRecommender
from genrec_nb.loaders import load_dataset
from genrec_nb.prompts import title_identifiers
from genrec_nb.semantic_ids import Identifiers
from genrec_nb.tiger import tiger_t5
from genrec_nb.titles import short_titles

OVER = dict(vocabulary=dict(softmax='vocabulary'), children=dict(softmax='children', prior='trie'))


def generators(kind: str, data, counts, max_items: int) -> dict: # softmax -> model with the same weights
    if kind != 'llm':
        ids = Identifiers.random(len(data.catalog), 3, 64, seed=0)
        return {n: dict(packed=item_decoder, t5=tiger_t5)[kind](ids, counts=counts, **how) for n, how in OVER.items()}
    lm, tokenizer = load_lm(dtype='float32', device='cpu')
    titles, lm = short_titles(data.catalog.titles, r'\s*\(\d{4}\)$'), adapt(lm, dropout=0.)
    config = dict(base=None, packed=True, max_items=max_items, max_tokens=1024, checkpointing=False)
    made = lambda how, shortest=False: LanguageRecommender(lm, tokenizer, title_identifiers(titles, tokenizer, '', shortest), LMConfig(**config, **how), counts)
    return {n: made(how) for n, how in OVER.items()} | {'children, shortest paths': made(OVER['children'], True)}


def main(a):
    torch.set_num_threads(1)
    data = load_dataset(a.data)
    train = leave_one_out(data.interactions).train
    models = generators(a.kind, data, train.target_counts(), a.max_items)
    samples = models['children'].samples(train, models['children'].config.max_items)
    batch = samples.collate(np.sort(np.random.default_rng(0).choice(len(samples), a.batch, replace=False)).tolist())
    flops, seconds = {}, dict.fromkeys(models, np.inf)
    for r in range(a.rounds + 1):
        for name, model in models.items():
            gc.collect(); gc.disable()
            with (contextlib.nullcontext() if r else FlopCounterMode(display=False)) as count:
                start = time.process_time()
                out = model.train()(**batch)
                (out.nll.sum()/len(out.nll)).backward()
                passed = time.process_time() - start
            gc.enable(); model.zero_grad()
            if r: seconds[name] = min(seconds[name], passed)
            else: flops[name] = count.get_total_flops()/1e9
    decide = models['children'].trees[0].deciding[out.targets]
    print(f'{a.kind}, {data.name}: {len(decide)} targets, of whose tokens {int(decide.sum())} decide')
    for what, x in (('GFLOP', flops), ('s', seconds)):
        print('; '.join(f'{n} {v:.3f} {what}, {v/x["vocabulary"]:.3f} x' for n, v in x.items()))


if __name__ == '__main__':
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument('kind', choices=['packed', 't5', 'llm']); p.add_argument('data', nargs='?', default='ml-100k')
    p.add_argument('--rounds', type=int, default=5); p.add_argument('--batch', type=int, default=2); p.add_argument('--max-items', type=int, default=10)
    warnings.simplefilter('ignore')
    main(p.parse_args())
