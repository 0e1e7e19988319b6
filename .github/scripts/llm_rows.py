"""Train a language model on titles and store how it ranks: python .github/scripts/llm_rows.py DATA OUT.jsonl [--weighting ce|igd] [--softmax vocabulary|children] [--shortest] [--codes FILE] [--ways BIGRec D3] [--minutes 30] [--seed 0] [--split time]

One line of OUT.jsonl per call: SmolLM2-135M with LoRA on packed histories, plain cross-entropy or IGD-tuning, normalized over the whole vocabulary or,
with a prior by how often items are targets, over the children of a prefix; titles whole, or with `--shortest` up to their last choice, or with `--codes` the codes of a tokenizer instead; decoded plainly and with IGD-decoding under the
settings of BIGRec (scores divided by length), of D3 in IGD's release (not divided) and of D3 proper (a SASRec as the assistant). Nothing is tuned but
the weight of the assistant, which the validation users choose. Popularity and SASRec rank the same test users. The adapters stay beside OUT.jsonl,
with the time that their training took; a second call ranks by them.

`--ways` names the settings to decode with, and `--alpha 0` leaves out IGD-decoding, where ranking takes too long.

`--samples` says how many windows are trained on. `--minutes` says how long instead: a few steps are timed, and as many windows taken as fit, so that
losses of different cost are compared at equal time (processor time by number of threads, validation not counted).

`--tune` trains only, and stores one line: the rate and the mean loss of the last third of the steps. A window is trained on once, so the loss is that of
windows not seen before, and chooses the rate without a look at any validation or test target."""
import argparse, json, time, warnings
from dataclasses import asdict, replace
from pathlib import Path
import numpy as np
import torch
from transformers.utils.logging import disable_progress_bar
from genrec_nb.sequential_baselines import SASRecConfig, train_sasrec
from genrec_nb.core import GenrecError
from genrec_nb.loaders import load_dataset
from genrec_nb.beam_search import DecodeConfig, recommend_each
from genrec_nb.metrics import evaluate_ranking, popularity_ranking, ranking_metrics
from genrec_nb.semantic_ids import Identifiers
from genrec_nb.infogain import information_gain, item_prior
from genrec_nb.backbones import SMOLLM2, load_lm
from genrec_nb.language_recommender import LanguageRecommender, LMConfig, language_recommender
from genrec_nb.prompts import title_identifiers
from genrec_nb.objectives import make_weighting
from genrec_nb.core import versions
from genrec_nb.trial import _SPLITS as SPLITS
from genrec_nb.titles import short_titles
from genrec_nb.batches import LengthBatches
from genrec_nb.train import TrainConfig, fit

WAYS = ('BIGRec', 'D3 (release)', 'D3')
SHARES = (.25, .5, .75) # of the assistant
BEAMS = dict(beams=10)


def ranked(model, cases, configs: list, gain, assistant) -> list:
    "Items of all cases by several decodings, the prompts read once"
    longest, to = int(np.diff(cases.offsets).max()), torch.from_numpy
    seen = cases.tail(longest)
    found = recommend_each(model, model.trie, to(seen[:, -model.config.max_items:].copy()), 10, configs, gain, to(seen), assistant=assistant.scores(cases).float())
    return [items.numpy() for items, _ in found]


def clocked() -> float: # seconds of processor time by thread
    return time.process_time()/torch.get_num_threads()


def windows_in(minutes: float, model, loss, train, batch: int, steps: int = 12) -> int: # how many windows fit
    "Time some steps without an optimizer, on batches from the shortest to the longest of a pass"
    samples, weights = model.samples(train, model.config.max_items), [p for p in model.parameters() if p.requires_grad]
    batches = sorted(LengthBatches(samples, batch), key=lambda rows: samples.lengths[rows].max())
    some = [batches[i] for i in ((np.arange(steps) + .5)*len(batches)/steps).astype(int)]
    bf16, seconds = model.lm.dtype == torch.bfloat16, []
    model.train()
    for rows in [some[0], *some]: # the first one warms up
        inputs, start = samples.collate(rows), clocked()
        with torch.autocast('cpu', torch.bfloat16, enabled=bf16): loss(model(**inputs, tau=loss.tau))[0].backward()
        for p in weights: p.grad = None
        seconds.append(clocked() - start)
    return max(batch, int(60*minutes/np.mean(seconds[1:]))*batch)


def _name_of(codes: Path | None) -> str: # 'letter' of Scientific.letter.index.json, or of letter/index.json
    if codes is None: return ''
    return codes.parent.name if codes.name == 'index.json' else codes.name.split('.')[-3]


def tuned(a, result, windows: int): # one line of OUT.jsonl
    losses = [log['loss'] for log in result.logs if 'loss' in log]
    row = dict(data=a.data, tuning=a.softmax + ', shortest paths'*a.shortest + f', {_name_of(a.codes)}'*bool(a.codes), lr=a.lr, loss=round(float(np.mean(losses[-max(1, len(losses)//3):])), 4), windows=windows, minutes=a.minutes, seed=a.seed, versions=versions())
    with open(a.out, 'a', encoding='utf-8') as f: f.write(json.dumps(row) + '\n')
    print(a.softmax, f'{a.lr:g}', row['loss'], windows)


def main(a):
    codes = _name_of(a.codes)
    key = lambda r: (r['method'], r['seed'], r['config']['lm'].get('softmax', 'vocabulary'), r['config'].get('shortest', False), r['config'].get('codes', ''))
    same = [r for r in map(json.loads, a.out.read_text().splitlines()) if 'method' in r and key(r) == (a.weighting, a.seed, a.softmax, a.shortest, codes)] if a.out.is_file() else []
    if same and not a.tune: raise GenrecError(f'{a.out}: holds a row of {a.weighting} over {a.softmax} with seed {a.seed} already; name another file')
    data, start = load_dataset(a.data), time.perf_counter()
    split, seconds = SPLITS[a.split](data.interactions), {}
    def clock(name):
        nonlocal start
        seconds[name], start = round(time.perf_counter() - start, 1), time.perf_counter()
    test, valid = split.test.sample(a.users, 0), split.valid.sample(a.eval_users, 0)
    config = LMConfig(max_items=a.max_items, max_tokens=a.max_tokens, dropout=0., dtype=a.dtype, packed=True, checkpointing=False, seed=a.seed,
                      softmax=a.softmax, prior='trie' if a.softmax == 'children' else 'none')
    lm, tokenizer = load_lm(SMOLLM2, a.dtype)
    lm.set_attn_implementation('eager')                                       # on a CPU it trains no slower than the fused one, and in bfloat16 faster
    counts = split.train.target_counts()
    ids = Identifiers.from_index(a.codes, data.catalog) if a.codes else title_identifiers(short_titles(data.catalog.titles, a.strip), tokenizer, '', a.shortest)
    model = language_recommender(ids, (lm, tokenizer), replace(config, base=SMOLLM2), counts=counts)
    gain = information_gain(model.trie, item_prior(counts))
    rule = make_weighting(a.weighting, **({'beta': a.beta} if a.weighting == 'igd' else {}))
    loss = rule.objective(model.trie, model.ids, counts=counts, gain=gain)
    work = a.out.parent/('-'.join([a.out.stem, a.weighting, *['children']*(a.softmax == 'children'), *['shortest']*a.shortest, *[codes]*bool(codes), *[f'{a.lr:g}']*a.tune, str(a.seed)]))
    known = work/'windows.json' # a training that goes on must not be timed again
    if a.minutes and not known.is_file():
        known.parent.mkdir(parents=True, exist_ok=True)
        known.write_text(json.dumps(windows_in(a.minutes, model, loss, split.train, a.batch)))
    windows, all_ = json.loads(known.read_text()) if a.minutes else a.samples, len(model.samples(split.train, a.max_items))
    epochs = max(1, round(windows/all_))
    train = TrainConfig(epochs=epochs, batch_size=a.batch, lr=a.lr, weight_decay=.01, warmup=.05, eval_every=epochs, patience=0, samples_per_epoch=min(windows//epochs, all_), eval_users=40, seed=a.seed)
    if a.tune: return tuned(a, fit(model, split.train, split.valid, model.trie, loss, replace(train, eval_users=1), work/'checkpoints', logging_steps=10), windows)
    if (work/'model'/'llm.json').is_file(): model = LanguageRecommender.from_pretrained(work/'model')
    else:
        result = fit(model, split.train, split.valid, model.trie, loss, train, work/'checkpoints', DecodeConfig(**BEAMS, length_penalty=1.), resume=True, logging_steps=10)
        (work/'trained.json').write_text(json.dumps(dict(seconds=round(time.perf_counter() - start, 1), windows=windows, versions=versions(), logs=result.logs)))
        model.save_pretrained(work/'model')
    trained, start = json.loads((work/'trained.json').read_text()), time.perf_counter()
    seconds['train'] = trained['seconds']
    model.lm.float()
    model.merge()
    assistant = train_sasrec(split, SASRecConfig(), a.seed)
    clock('assistant')
    d3 = {} if 'D3' not in a.ways else {g: DecodeConfig(**BEAMS, assistant_weight=g) for g in SHARES}
    looked = {g: ranking_metrics(r, valid.targets, (10,))['ndcg@10'] for g, r in zip(d3, ranked(model, valid, list(d3.values()), gain, assistant))} if d3 else {}
    share = max(looked, key=looked.get, default=None)
    clock('validation')
    ways = {'BIGRec': DecodeConfig(**BEAMS, length_penalty=1.), 'D3 (release)': DecodeConfig(**BEAMS), **({'D3': d3[share]} if d3 else {})}
    configs = {(name, alpha): replace(ways[name], alpha=alpha) for name in a.ways for alpha in dict.fromkeys((0., a.alpha))}
    found = dict(zip(configs, ranked(model, test, list(configs.values()), gain, assistant)))
    clock('test')
    page = lambda items, name: evaluate_ranking(items, test, split.train, (1, 5, 10), name).to_dict(ranks=True)
    row = dict(data=data.name, method=a.weighting, seed=a.seed, share=share, looked=looked, rows=[dict(decoding=n, alpha=al, test=page(r, f'{n}, {al:g}')) for (n, al), r in found.items()],
               popularity=page(popularity_ranking(split.train.item_counts(), test, 10), 'popularity'), sasrec=page(assistant.rank(test, 10), 'SASRec'),
               logs=trained['logs'], cut=model.prompt.cut, minutes=a.minutes, config=dict(lm=asdict(config), train=asdict(train), weighting=asdict(rule), strip=a.strip, shortest=a.shortest, codes=codes, split=a.split, users=a.users, eval_users=a.eval_users, alpha=a.alpha), seconds=seconds, trained=trained['versions'], versions=versions())
    with open(a.out, 'a', encoding='utf-8') as f: f.write(json.dumps(row, default=str) + '\n')
    for r in row['rows']: print(a.weighting, a.seed, r['decoding'], r['alpha'], f"{r['test']['metrics']['recall@10']:.4f} {r['test']['metrics']['ndcg@10']:.4f}")
    for n in ('popularity', 'sasrec'): print(n, f"{row[n]['metrics']['recall@10']:.4f} {row[n]['metrics']['ndcg@10']:.4f}")


if __name__ == '__main__':
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument('data'); p.add_argument('out', type=Path)
    p.add_argument('--split', choices=SPLITS, default='leave-one-out'); p.add_argument('--weighting', default='ce'); p.add_argument('--softmax', choices=['vocabulary', 'children'], default='vocabulary'); p.add_argument('--shortest', action='store_true', help='end titles behind their last choice'); p.add_argument('--codes', type=Path, help='codes instead of titles: a published NAME.letter.index.json, or the index.json in a folder of `genrec tokenize`'); p.add_argument('--ways', nargs='+', choices=WAYS, default=WAYS, help='to decode'); p.add_argument('--seed', type=int, default=0)
    p.add_argument('--beta', type=float, default=.1); p.add_argument('--alpha', type=float, default=.2)
    p.add_argument('--minutes', type=float, help='of training, instead of --samples'); p.add_argument('--tune', action='store_true', help='train only'); p.add_argument('--samples', type=int, default=2700); p.add_argument('--max-items', type=int, default=20); p.add_argument('--max-tokens', type=int, default=1024); p.add_argument('--batch', type=int, default=2); p.add_argument('--lr', type=float, default=3e-3)
    p.add_argument('--users', type=int, default=None, help='test cases, drawn; all unless told'); p.add_argument('--eval-users', type=int, default=60); p.add_argument('--dtype', default='float32', help='bfloat16 trains faster where the processor has it, and 24 times slower where not')
    p.add_argument('--strip', default=r'\s*\(\d{4}\)$', help='what is left out of titles: the year of a film')
    warnings.simplefilter('ignore'); disable_progress_bar()
    main(p.parse_args())
