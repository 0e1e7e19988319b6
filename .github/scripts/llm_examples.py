"""What trained language models say to a few users: python .github/scripts/llm_examples.py DATA OUT.json NAME=FOLDER [NAME=FOLDER ..]

FOLDER is the model/ that llm_rows.py left; a NAME without folder is SmolLM2 as it is. For validation users: the loss of tokens with and
without information gain. For three test users, drawn by seed: five titles each, and the target token by token."""
import argparse
from dataclasses import replace
from pathlib import Path
import numpy as np
import torch
from genrec_nb.terminal import _set_up_logging
from genrec_nb.splits import leave_one_out
from genrec_nb.loaders import load_dataset
from genrec_nb.beam_search import DecodeConfig
from genrec_nb.backbones import SMOLLM2, load_lm
from genrec_nb.language_recommender import LanguageRecommender, LMConfig
from genrec_nb.prompts import title_identifiers
from genrec_nb.core import write_json
from genrec_nb.recommender import GenerativeRecommender, RecommenderConfig
from genrec_nb.core import versions
from genrec_nb.titles import short_titles


@torch.inference_mode()
def losses(rec, cases, batch: int = 8) -> dict:
    "Mean loss [nats] of target tokens with and without gain, and how the sum divides"
    ghost = (rec.gain[rec.trie.item_nodes().clamp(min=0)] == 0)
    total = {True: [0., 0], False: [0., 0]}
    history, targets = torch.from_numpy(cases.tail(rec.model.config.max_items)), torch.from_numpy(cases.targets)
    for a in range(0, len(targets), batch):
        t = targets[a:a + batch]
        nll, real = rec.model(history[a:a + batch], t).nll, rec.model.paths[t] != 0
        for g in total:
            at = real & (ghost[t][:, :real.shape[1]] == g)
            total[g][0] += float(nll[at].sum()); total[g][1] += int(at.sum())
    return dict(tokens=dict(ghost=total[True][1], deciding=total[False][1]), mean=dict(ghost=total[True][0]/total[True][1], deciding=total[False][0]/total[False][1]),
                ghost_share=total[True][0]/(total[True][0] + total[False][0]))


def main(a):
    data = load_dataset(a.data)
    split = leave_one_out(data.interactions)
    users = np.sort(np.random.default_rng(a.seed).choice(len(split.test), 3, replace=False)).tolist()
    out = dict(data=data.name, seed=a.seed, users=[dict(history=[data.catalog.titles[i] for i in split.test.history(u)[-5:]], target=data.catalog.titles[split.test.targets[u]]) for u in users], models={}, versions=versions())
    for given in a.models:
        name, _, folder = given.partition('=')
        if folder: model = LanguageRecommender.from_pretrained(folder)
        else:
            lm, tokenizer = load_lm(SMOLLM2, 'float32')
            model = LanguageRecommender(lm, tokenizer, title_identifiers(short_titles(data.catalog.titles, a.strip), tokenizer, suffix=''), LMConfig(packed=True, max_items=20, max_tokens=1024))
        model.lm.float()
        rec = GenerativeRecommender(data.catalog, model.ids, split.train.target_counts(), model.eval(), RecommenderConfig(backbone='llm', tokenizer=dict(method='title')))
        said = []
        for u in users:
            history = [data.catalog.ids[i] for i in split.test.history(u)]
            top = rec.recommend(history, 5, DecodeConfig(beams=10, length_penalty=1.))
            e = rec.explain(history, data.catalog.ids[split.test.targets[u]], .2)
            said.append(dict(top=[dict(title=x.title, score=x.score) for x in top], target=[dict(token=p.token, choices=p.choices, probability=p.probability, gain=p.gain, weight=p.weight) for p in e.parts]))
        out['models'][name] = dict(losses=losses(rec, split.valid.sample(a.cases, 0)), users=said)
        print(name, out['models'][name]['losses'])
    write_json(a.out, out)


if __name__ == '__main__':
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument('data'); p.add_argument('out', type=Path); p.add_argument('models', nargs='+')
    p.add_argument('--strip', default=r'\s*\(\d{4}\)$', help='what is left out of titles, as in llm_rows.py')
    p.add_argument('--seed', type=int, default=0); p.add_argument('--cases', type=int, default=200)
    _set_up_logging()
    main(p.parse_args())
