"New items, many users, shared titles and empty lists, with a model that is trained already"
import json, os, shutil, subprocess, sys
from dataclasses import replace
from itertools import product
from pathlib import Path
import numpy as np
import pandas as pd
import pytest
import torch
from oracles import small_data
from genrec_nb.core import FileError, GenrecError, GenrecWarning, MissingTextError, SettingError
from genrec_nb.beam_search import DecodeConfig
from genrec_nb.exact import exact_scores
from genrec_nb.loaders import load_dataset
from genrec_nb.splits import Cases
import genrec_nb.many_users as many_users
from genrec_nb.many_users import recommend_file, _near_items
from genrec_nb.recommender import GenerativeRecommender, RecommenderConfig

@pytest.fixture(scope='module')
def saved(tmp_path_factory):
    "A small model of one kind of identifiers, from texts"
    folder = tmp_path_factory.mktemp('after')
    config = RecommenderConfig(tokenizer=dict(method='rqkmeans', encoder='tfidf', size=6, levels=2), model=dict(d_model=16, num_heads=2, num_layers=1), train=dict(epochs=1, batch_size=16, eval_every=1))
    rec = GenerativeRecommender.fit(load_dataset(small_data(folder/'toy')), config, use_cpu=True)
    rec.save_pretrained(folder/'model')
    return folder/'model'

@pytest.fixture
def rec(saved): return GenerativeRecommender.from_pretrained(saved)

NEW = pd.DataFrame(dict(item=['n1', 'n2', 'n3'], title=['Item new', 'Item fresh', 'Item 3'], description=['color 1 shape 2 size 0', 'color 4 shape 6 size 2', 'color 3 shape 3 size 0']))

def test_new_items_are_recommended_read_and_explained(rec, saved, tmp_path):
    before = rec.recommend(['3', '5'], 40)
    scores = {x.id: x.score for x in before}
    old = [rec.ids.path(i).tolist() for i in range(40)]
    NEW.to_csv(tmp_path/'new.csv', index=False)
    assert rec.add_items(tmp_path/'new.csv') is rec and len(rec.catalog) == 43
    assert [rec.ids.path(i).tolist() for i in range(40)] == old             # no old path changes
    after = rec.recommend(['3', '5'], 43)
    found = {x.id for x in after}
    assert {'n1', 'n2', 'n3'} <= found and len(after) == 41                 # all are reachable, but for the history
    assert [x.id for x in rec.recommend(['n1', '5'], 5)] and 'n1' not in {x.id for x in rec.recommend(['n1', '5'], 43)}
    e = rec.explain(['3', '5'], 'n2')
    assert e.score == pytest.approx(next(x.score for x in after if x.id == 'n2'), abs=1e-4)
    rec.save_pretrained(tmp_path/'longer')                                  # and it comes back from its folder
    again = GenerativeRecommender.from_pretrained(tmp_path/'longer').recommend(['n1', '5'], 5)
    assert [(x.id, pytest.approx(x.score, abs=1e-5)) for x in again] == [(x.id, x.score) for x in rec.recommend(['n1', '5'], 5)]

@pytest.mark.parametrize('items, kind, words', [(pd.DataFrame(dict(item=['3'], title=['x'])), GenrecError, "already, the first is '3'"), (pd.DataFrame(dict(item=['n'], title=[''])), MissingTextError, 'neither title'),
                                                (7, SettingError, 'not int'), (pd.DataFrame(dict(thing=['n'])), GenrecError, 'no column'), ('nowhere.csv', FileError, 'no such file')])
def test_items_that_cannot_be_added(rec, items, kind, words):
    with pytest.raises(kind, match=words): rec.add_items(items)
    assert len(rec.catalog) == 40 and rec.recommend(['3'], 3)

@pytest.mark.parametrize('which, decode', [*product(['saved', 'saved_both'], [{}, dict(exclude_seen=False), dict(alpha=.3)]), ('saved', dict(search='beam', beams=40)), ('saved', dict(search='beam', beams=40, alpha=.3))], ids=str)
def test_removed_items_leave_every_list_and_nothing_else_changes(request, tmp_path, which, decode):
    rec = GenerativeRecommender.from_pretrained(request.getfixturevalue(which))
    decode, cases = DecodeConfig(**decode), Cases(np.zeros(1), np.array([3, 5]), np.array([0, 2]), np.array([8]))
    everything = rec.recommend(['3', '5'], 40, decode)
    gone = ['5', everything[0].title, everything[4].id, everything[20].id]
    numbers = rec.find_items(gone)
    assert rec.remove_items(gone) is rec and rec.remove_items(gone[:1]).removed.tolist() == sorted(set(numbers))
    kept = [(x.id, pytest.approx(x.score, abs=1e-5)) for x in everything if x.item not in numbers]
    assert [(x.id, x.score) for x in rec.recommend(['3', '5'], len(kept), decode)] == kept
    rec.save_pretrained(tmp_path/'m')
    again = GenerativeRecommender.from_pretrained(tmp_path/'m')
    assert [(x.id, x.score) for x in again.recommend(['3', '5'], len(kept), decode)] == kept
    with pytest.raises(GenrecError, match='targets are removed items, which no list can hold'): rec.remove_items([rec.catalog.ids[cases.targets[0]]]).rank(cases, 5, decode)
    assert rec.restore_items().recommend(['3', '5'], 40, decode) == everything
    with pytest.raises(GenrecError, match="item '5' is not removed"): rec.restore_items(['5'])

def test_new_items_that_the_model_refuses_change_nothing(saved, monkeypatch):
    rec = GenerativeRecommender.from_pretrained(saved)
    before, counts = rec.recommend(['3', '5'], 10), getattr(rec.model, 'counts', None)
    def refuse(ids, counts=None): raise GenrecError('item 40 has a code that the model has no weights for')
    monkeypatch.setattr(rec.model, 'set_items', refuse, raising=False)
    with pytest.raises(GenrecError, match='no weights for'): rec.add_items(NEW)
    assert rec.recommend(['3', '5'], 10) == before and (counts is None or torch.equal(rec.model.counts, counts))
    monkeypatch.undo()
    assert len(rec.add_items(NEW).catalog) == len(rec.model.paths)

@pytest.mark.parametrize('form', ['json', 'parquet'])
def test_a_user_with_an_empty_list_is_counted_and_gets_one(rec, tmp_path, form):
    rows = pd.DataFrame(dict(user=['ann', 'nil', 'cy'], items=[['3'], [], ['nothing']]))
    (rows.to_json(tmp_path/'h.json', orient='records', lines=True) if form == 'json' else rows.to_parquet(tmp_path/'h.parquet'))
    done = recommend_file(rec, tmp_path/f'h.{form}', tmp_path/'out.json', 3)
    lists = [json.loads(l) for l in (tmp_path/'out.json').read_text().splitlines()]
    assert [(x['user'], len(x['items'])) for x in lists] == [('ann', 3), ('nil', 0), ('cy', 0)]
    assert (done['users'], done['without'], done['unknown']) == (3, 2, 1)

def test_removed_items_and_many_users_new_items_and_empty_lists(rec, tmp_path):
    gone = [rec.recommend(h, 1)[0].id for h in (['3', '5'], ['7'])]
    rec.remove_items(gone)
    (tmp_path/'rows.csv').write_text('user,item\na,3\na,5\nb,7\n')
    recommend_file(rec, tmp_path/'rows.csv', tmp_path/'out.csv', 40)
    lists = pd.read_csv(tmp_path/'out.csv', dtype=str)
    assert len(lists) == 2*40 - 3 - 2*len({*gone}) and not {*gone} & {*lists['item']}
    with pytest.raises(GenrecError, match='no title is'): rec.remove_items(['nothing of the kind'])
    rec.add_items(NEW)
    assert not {*gone} & {x.id for x in rec.recommend(['3', '5'], 43)}
    assert 'without the' in rec.why_few(['3'], 43)
    rec.remove_items(rec.catalog.ids)
    assert len(rec.recommend(['3'], 5)) == 0 and 'restore_items' in rec.why_few(['3'], 5)
    assert len(rec.restore_items(['n1']).recommend(['3'], 5)) == 1

@pytest.fixture(scope='module')
def saved_both(tmp_path_factory):
    "As `genrec run` trains it: codes of texts and one token an item, with a prior"
    folder = tmp_path_factory.mktemp('both')
    config = RecommenderConfig(tokenizer=dict(method='rqkmeans', encoder='tfidf', size=6, levels=2), identifiers=['item'], train=dict(epochs=1, batch_size=16, eval_every=1),
                               model=dict(d_model=16, num_heads=2, num_layers=1, softmax='children', prior='trie'))
    rec = GenerativeRecommender.fit(load_dataset(small_data(folder/'toy')), config, use_cpu=True)
    rec.save_pretrained(folder/'model')
    return folder/'model'

def each(rec, history):
    "Log-probabilities [K, N] by each identifier"
    part, = exact_scores(rec.model, torch.tensor([rec.find_items(history)]), DecodeConfig(exclude_seen=False))
    return part.logp[:, 0]

@pytest.mark.parametrize('how', ['product', 'mixture'])
def test_items_are_added_beside_an_identifier_that_has_no_token_for_them(saved_both, tmp_path, how):
    rec, history = GenerativeRecommender.from_pretrained(saved_both), ['3', '5']
    rec.config = replace(rec.config, decode=replace(rec.config.decode, combine=how, weights=(.7, .5)))
    before, old = each(rec, history), [[i.path(n).tolist() for n in range(40)] for i in rec.identifiers]
    rec.add_items(NEW)
    assert [[i.path(n).tolist() for n in range(40)] for i in rec.identifiers] == old
    after = each(rec, history)
    assert torch.equal(after[1, :40], before[1]) and (after[1, 40:] == -torch.inf).all() # own tokens: bit by bit, none for new items
    np.testing.assert_allclose(after[0].exp().sum(), 1, rtol=1e-5)                       # codes: a distribution over all 43
    p, w = after.double().exp().numpy(), np.array([.7, .5])
    if how == 'product': raw = np.r_[p[0, :40]**.7*p[1, :40]**.5, p[0, 40:]**1.2]
    else: raw = np.r_[w@p[:, :40], 1.2*p[0, 40:]]/1.2
    wanted = np.log(raw/raw.sum())                                                         # what both together give sums to 1, too
    found = {x.id: x.score for x in rec.recommend(history, 41)}
    assert {'n1', 'n2', 'n3'} < set(found) and len(found) == 41
    np.testing.assert_allclose([found[i] for i in rec.catalog.ids if i in found], [x for i, x in zip(rec.catalog.ids, wanted) if i in found], atol=1e-4)
    e = rec.explain(history, 'n2')
    assert list(e.parts) == ['rqkmeans'] and e.score == pytest.approx(found['n2'], abs=1e-4) and 'n2' not in rec.explain(history, '7').other
    assert set(rec.explain(history, '7').parts) == {'rqkmeans', 'item'}
    assert rec.recommend(['n1', '5'], 5) and 'n1' not in {x.id for x in rec.recommend(['n1', '5'], 43)}
    rec.save_pretrained(tmp_path/'longer')
    again = GenerativeRecommender.from_pretrained(tmp_path/'longer')
    assert {x.id: pytest.approx(x.score, abs=1e-5) for x in again.recommend(history, 41)} == found
    again.add_items(pd.DataFrame(dict(item=['m'], title=['Item m'], description=['color 2 shape 2 size 1'])))
    assert again.identifiers[1].notes['absent'] == [40, 41, 42, 43] and 'm' in {x.id for x in again.recommend(history, 44)}

def test_the_prior_of_new_items(saved_both):
    "Mean count of the nearest by codes, by brute force; or the one that is given"
    rec = GenerativeRecommender.from_pretrained(saved_both).add_items(NEW)
    path, counts = [tuple(rec.ids.path(i).tolist()) for i in range(43)], rec.counts[:40]
    for n in range(40, 43):
        near = next(near for d in (2, 1, 0) if (near := [i for i in range(40) if path[i][:d] == path[n][:d]]))
        assert rec.model.counts[n] == round(np.mean(counts[near]))
        assert rec.identifiers[1].path(n)[0] == rec.identifiers[1].path(max(near, key=lambda i: counts[i]))[0]
    assert (rec.counts[40:] == 0).all()
    many, none = (GenerativeRecommender.from_pretrained(saved_both).add_items(NEW, count=c) for c in (10**6, 0))
    assert many.recommend(['3'], 1)[0].id in NEW.item.values and each(none, ['3'])[0, 40:].max() < each(rec, ['3'])[0, 40:].max()
    with pytest.raises(SettingError, match='expected a whole number, 0 or more'): GenerativeRecommender.from_pretrained(saved_both).add_items(NEW, count=-1)
    for count in (float('inf'), 1e30, 2.7, True):
        with pytest.raises(SettingError, match='expected a whole number'): GenerativeRecommender.from_pretrained(saved_both).add_items(NEW, count=count)

def test_new_items_for_many_users_of_several_identifiers(saved_both, tmp_path):
    rec = GenerativeRecommender.from_pretrained(saved_both).add_items(NEW)
    rows = pd.DataFrame(dict(user=['a', 'a', 'b', 'c'], item=['n1', '5', '7', 'n3'], time=[1, 2, 1, 1]))
    rows.to_csv(tmp_path/'rows.csv', index=False)
    recommend_file(rec, tmp_path/'rows.csv', tmp_path/'out.json', 6)
    got = {r['user']: r['items'] for r in map(json.loads, (tmp_path/'out.json').read_text().splitlines())}
    assert got == {u: [x.id for x in rec.recommend(h, 6)] for u, h in dict(a=['n1', '5'], b=['7'], c=['n3']).items()}

def test_no_bars_while_a_model_is_read(saved, monkeypatch):
    "transformers draws one for each file of weights; what was set before holds afterwards"
    from transformers.utils import logging as hf
    drawn, bar = [], hf.tqdm_lib.tqdm
    monkeypatch.setattr(hf.tqdm_lib, 'tqdm', lambda *a, **k: drawn.append(a) or bar(*a, **k))
    for before in (hf.enable_progress_bar, hf.disable_progress_bar, hf.enable_progress_bar):
        before()
        GenerativeRecommender.from_pretrained(saved)
        assert not drawn and hf.is_progress_bar_enabled() == (before is hf.enable_progress_bar)

def test_a_shared_title_is_said(rec):
    rec.add_items(NEW)
    with pytest.warns(GenrecWarning, match="2 items are called 'item 3': ids 3, n3; '3' is taken"): assert rec.find_items(['item 3']) == [3]
    assert rec.find_items(['n3']) == [42]                                   # an id is never ambiguous

def test_a_short_list_says_the_true_cause(rec, monkeypatch):
    "The history, the catalog, too few beams, items without probability; beams are blamed for nothing else"
    everything, few = rec.catalog.ids, DecodeConfig(beams=3, search='beam')
    assert not rec.recommend(everything, 5) and 'all 40 items of the catalog stand in the history' in rec.why_few(everything)
    keep = DecodeConfig(exclude_seen=False)
    for history, k, decode, words in ((['3', '5'], 100, None, 'the catalog has 40 items, and 2 of them in the history'), (['3', '5'], 39, None, 'and 2 of them'), (['3', '3'], 40, None, 'and 1 of them'),
                                      (['3'], 41, keep, 'the catalog has 40 items'), (['3'], 9, few, 'a beam search of 3 beams finds no more; take --set decode.beams=9')):
        assert len(rec.recommend(history, k, decode)) < k and words in (said := rec.why_few(history, k, decode)) and ('beam' in said) == (decode is few), said
    for decode in (None, replace(few, beams=10)): assert len(rec.recommend(['3', '5'], 10, decode)) == 10 and 'it has the 10 items that were asked for' in rec.why_few(['3', '5'], 10, decode)
    class Half:                                                             # an assistant that excludes all but four items
        def scores(self, cases): return torch.full((1, 40), -torch.inf).index_fill(1, torch.arange(4), 0.)
    helped = DecodeConfig(assistant_weight=.5)
    assert len(rec.recommend(['7'], 5, helped, Half())) == 4 and 'the other 35 items have a probability of 0' in rec.why_few(['7'], 5, helped, Half())

@pytest.mark.parametrize('form', ['json', 'csv', 'parquet'])
def test_many_users_are_as_one(rec, tmp_path, form):
    "Batches of two give what `recommend` gives each; unknown items are skipped, and said"
    rng = np.random.default_rng(0)
    past = {f'u{n}': rng.permutation(40)[:rng.integers(1, 6)].tolist() for n in range(5)} | dict(nobody=[999])
    rows = pd.DataFrame([(u, i, t) for u, h in past.items() for t, i in enumerate(h)], columns=['user', 'item', 'time'])
    rows.sample(frac=1, random_state=0).to_csv(tmp_path/'rows.csv', index=False)
    pd.DataFrame(dict(user=list(past), items=list(past.values()))).to_parquet(tmp_path/'lists.parquet')
    for name in ('rows.csv', 'lists.parquet'):
        out = tmp_path/f'{name}.out'
        assert recommend_file(rec, tmp_path/name, out, 4, form, size=2) == dict(users=6, without=1, unknown=1, unknown_names=['999'])
        if form == 'json': got = {r['user']: (r['items'], r['scores']) for r in map(json.loads, out.read_text().splitlines())}
        elif form == 'csv': got = {str(u): (g.item.astype(str).tolist(), g.score.tolist()) for u, g in pd.read_csv(out).groupby('user')} | dict(nobody=([], []))
        else: got = {r.user: (list(r.items_), list(r.scores)) for r in pd.read_parquet(out).rename(columns=dict(items='items_')).itertuples()}
        want = {u: rec.recommend([str(i) for i in h], 4) if u != 'nobody' else [] for u, h in past.items()}
        assert {u: items for u, (items, _) in got.items()} == {u: [x.id for x in best] for u, best in want.items()}
        for u, best in want.items(): np.testing.assert_allclose(got[u][1], [x.score for x in best], rtol=1e-5)
    with pytest.raises(FileError, match='exists'): recommend_file(rec, tmp_path/'rows.csv', out, 4, form)
    with pytest.raises(SettingError, match='one of json, csv, parquet'): recommend_file(rec, tmp_path/'rows.csv', tmp_path/'x', 4, 'xml')
    (tmp_path/'bad.csv').write_text('a,b\n1,2\n')
    with pytest.raises(GenrecError, match="bad.csv: no column 'user'; the columns are 'a', 'b'; name it with --column user=NAME"): recommend_file(rec, tmp_path/'bad.csv', tmp_path/'y.json')
    assert not (tmp_path/'y.json').exists()


@pytest.mark.parametrize('form', ['csv', 'json', 'parquet', 'parquet of lists'])
def test_histories_of_titles_and_unknown_items(rec, tmp_path, form):
    "Titles in any case are what their ids are; the first unknown items are named; columns may have any name"
    past = dict(ann=['item 5', '7', 'Item 3'], bob=['Itm 3', '7', 'nothing like it', 'Itm 3', 'Itm 9', 'Itm 8'])
    rows = pd.DataFrame([(u, i) for u, h in past.items() for i in h], columns=['who', 'what'])
    file, out = tmp_path/'histories', tmp_path/'lists.json'
    if form == 'csv': rows.to_csv(file, index=False)
    elif form == 'json': rows.to_json(file, orient='records', lines=True)
    elif form == 'parquet': rows.to_parquet(file)
    else: pd.DataFrame(dict(who=list(past), what=list(past.values()))).to_parquet(file)
    said = recommend_file(rec, file, out, 4, size=1, columns=dict(user='who', item='what'))
    assert said == dict(users=2, without=0, unknown=5, unknown_names=['Itm 3', 'nothing like it', 'Itm 9'])
    got = {r['user']: r['items'] for r in map(json.loads, out.read_text().splitlines())}
    assert got == dict(ann=[x.id for x in rec.recommend(['5', '7', '3'], 4)], bob=[x.id for x in rec.recommend(['7'], 4)])
    assert _near_items(['Itm 3', 'nothing like it'], rec.catalog) == "'Itm 3', did you mean 'Item 3'?; 'nothing like it'"
    rows.rename(columns=dict(who='user', what='title')).to_csv(tmp_path/'t.csv', index=False)                 # a column of titles needs no name
    assert recommend_file(rec, tmp_path/'t.csv', tmp_path/'t.json', 4) == said and (tmp_path/'t.json').read_text() == out.read_text()


FOUR_WORKERS = '''
import os, signal, sys, threading, time
from pathlib import Path
from distributed import Client, LocalCluster
import genrec_nb.many_users as many_users
from genrec_nb.many_users import recommend_file
from genrec_nb.recommender import GenerativeRecommender

def kill_one(pids, part):
    "SIGKILL to a worker once lists have been written"
    while not any(p.stat().st_size > 2000 for p in part()): time.sleep(.01)
    os.kill(pids[0], signal.SIGKILL)
    print('killed', flush=True)

if __name__ == '__main__':
    model, histories, out = map(Path, sys.argv[1:])
    with LocalCluster(n_workers=4, threads_per_worker=1, dashboard_address=None) as cluster, Client(cluster) as client:
        pids, part = list(client.run(os.getpid).values()), lambda: [p for p in out.parent.iterdir() if p.name.startswith(('.', out.name)) and p.is_file()]
        threading.Thread(target=kill_one, args=(pids, part), daemon=True).start()
        print(recommend_file(GenerativeRecommender.from_pretrained(model), histories, out, 4, size=8, cluster=cluster.scheduler_address))
        print(len(pids), 'workers,', sum(p not in client.run(os.getpid).values() for p in pids), 'of them replaced')
'''

@pytest.mark.slow
def test_a_cluster_of_four_recommends_the_same_though_a_worker_is_killed(rec, saved, tmp_path):
    pytest.importorskip('distributed')
    rng = np.random.default_rng(1)
    (tmp_path/'o').mkdir()
    pd.DataFrame(dict(user=range(2000), items=[rng.integers(0, 40, 4).tolist() for _ in range(2000)])).to_parquet(tmp_path/'h.parquet')
    (tmp_path/'go.py').write_text(FOUR_WORKERS)
    r = subprocess.run([sys.executable, *map(str, (tmp_path/'go.py', saved, tmp_path/'h.parquet', tmp_path/'o'/'four.json'))], capture_output=True, text=True, timeout=300,
                       env={**os.environ, 'PYTHONPATH': str(Path(__file__).parents[1])})
    assert r.returncode == 0, r.stderr[-2000:]
    assert 'killed' in r.stdout and '4 workers, 1 of them replaced' in r.stdout, r.stdout
    recommend_file(rec, tmp_path/'h.parquet', tmp_path/'one.json', 4, size=8)
    assert (tmp_path/'o'/'four.json').read_text() == (tmp_path/'one.json').read_text()


PARTS = {'config.json': 'no settings|expected', 'catalog.json': 'lacks its ids, titles, texts|JSON object', 'index.json': 'lacks|list', 'genrec.json': 'lacks its format, versions|JSON object',
         'model/config.json': 'lacks its model_type|JSON object', 'quantizer/quantizer.json': 'lacks its kind|JSON object', 'index.vocab.json': 'lacks'}

@pytest.mark.parametrize('text', ['{}', '[]'])
@pytest.mark.parametrize('part', PARTS)
def test_a_part_that_was_emptied_is_refused(saved, tmp_path, part, text):
    "Valid JSON with nothing in it is no set of defaults; the file is named, what it lacks, and what to do, without Python's words"
    shutil.copytree(saved, tmp_path/'m')
    (tmp_path/'m'/part).write_text(text)
    with pytest.raises(GenrecError, match=f'm/{part}: .*({PARTS[part]}).*copy the folder again') as e: GenerativeRecommender.from_pretrained(tmp_path/'m')
    assert not [w for w in ('__init__', 'argument', 'object has no', 'unknown in another format') if w in str(e.value)]

@pytest.mark.parametrize('part', ['quantizer', 'index.json'])
def test_a_part_that_is_gone_is_named(saved, tmp_path, part):
    shutil.copytree(saved, tmp_path/'m')
    (tmp_path/'m'/part).rename(tmp_path/'away')
    with pytest.raises(FileError, match=f'm: .*{part}.* is missing.*copy the folder again'): GenerativeRecommender.from_pretrained(tmp_path/'m').add_items(NEW)

def test_a_tokenizer_without_its_parts_is_refused(tmp_path):
    from genrec_nb.tokenizer import load_tokenized, tokenize_items
    from genrec_nb.tokenizer_config import TokenizerConfig
    data = load_dataset(small_data(tmp_path/'toy'))
    made = tokenize_items(data, None, TokenizerConfig('rqkmeans', encoder='tfidf', size=4, levels=2)).save(tmp_path/'made')
    for part in ('quantizer', 'encoder', 'codes.npy'):
        (made/part).rename(tmp_path/'away')
        with pytest.raises(FileError, match=f'made: {part} is missing, which it was saved with'): load_tokenized(made)
        (tmp_path/'away').rename(made/part)
    for part, lacks in {'tokenizer.json': 'config, versions', 'index.vocab.json': 'items', 'encoder/encoder.json': 'kind', 'quantizer/quantizer.json': 'kind'}.items():
        whole = (made/part).read_text()
        (made/part).write_text('{}')
        with pytest.raises(FileError, match=f'made/{part}: lacks its {lacks}'): load_tokenized(made)
        (made/part).write_text(whole)
    assert load_tokenized(made).quantizer

def test_histories_with_gaps(rec, tmp_path):
    "An empty list has no recommendations, whatever stands beside it; a row without user or time, and a second list, are named"
    ids, out = rec.catalog.ids, tmp_path/'out.json'
    for items in ([[rec.catalog.titles[0]], [], [ids[3]]], [[ids[0]], [], [ids[3]]]):
        pd.DataFrame(dict(user=['a', 'b', 'c'], items=items)).to_parquet(tmp_path/'h.parquet')
        assert recommend_file(rec, tmp_path/'h.parquet', out, 3)['without'] == 1
        lists = {x['user']: x['items'] for x in map(json.loads, out.read_text().splitlines())}
        assert lists['b'] == [] and len(lists['a']) == len(lists['c']) == 3
        out.unlink()
    bad = {'row 2 has no user': dict(user=['a', None], items=[[ids[0]], [ids[1]]]), 'row 2 has a second list of its user': dict(user=['a', 'a'], items=[[ids[0]], [ids[1]]]),
           "row 3 has no time in 'time'": dict(user=['a', 'b', 'b'], item=ids[:3], time=['3', '4', 'x']), "row 1 has no time in 'time'": dict(user=['a', 'b'], item=ids[:2], time=['31.12.2020 10:00', '01.02.2021 11:00'])}
    for message, table in bad.items():
        pd.DataFrame(table).to_parquet(tmp_path/'bad.parquet')
        for size in (1, 100)[-1 if 'time' in message else 0:]: # also a user at a time
            with pytest.raises(FileError, match=message): recommend_file(rec, tmp_path/'bad.parquet', out, 3, size=size)
            assert not out.exists()
    with pytest.raises(SettingError, match='the name says json, the format is parquet'): recommend_file(rec, tmp_path/'h.parquet', out, 3, 'parquet')

def test_figures_of_a_saved_recommender(rec):
    "Those of the metrics on its own lists"
    from genrec_nb.metrics import ranking_metrics
    cases = Cases(np.arange(4), np.array([1, 2, 3, 4], np.int32), np.arange(5), np.array([2, 3, 4, 5]))
    assert rec.evaluate(cases, (3, 5)) == ranking_metrics(rec.rank(cases, 5), cases.targets, (3, 5))
    with pytest.raises(SettingError, match='k is 2.5, expected a whole number'): rec.rank(cases, 2.5)


# ---- more interactions than are read at once ----------------------------------------------------------------------

def many_rows(n=900, users=70):
    rng = np.random.default_rng(3)
    return pd.DataFrame(dict(item=rng.integers(0, 40, n).astype(str), user=rng.permutation(np.r_[np.arange(users), rng.integers(0, users, n - users)]), time=rng.integers(0, 50, n), price=1.))

@pytest.mark.parametrize('kind', [int, str, 'category', 'no times', 'dates'])
def test_many_interactions_are_read_some_users_at_a_time(rec, tmp_path, monkeypatch, kind):
    "The same lists as of the whole file, in another order, and nothing is left beside them"
    rows, columns = many_rows(), {}
    if kind == 'no times': rows, columns = rows.rename(columns=dict(time='when', user='who')), dict(user='who', time='')
    elif kind == 'dates': rows['time'] = pd.to_datetime('2026-01-01') + pd.to_timedelta(rows.time, 'h')
    else: rows['user'] = rows.user.astype(kind)
    rows.to_parquet(tmp_path/'h.parquet', row_group_size=100)
    said = recommend_file(rec, tmp_path/'h.parquet', tmp_path/'whole.json', 5, size=16, columns=columns)
    monkeypatch.setattr(many_users, '_AT_ONCE', 150)
    assert recommend_file(rec, tmp_path/'h.parquet', tmp_path/'parts.json', 5, size=16, columns=columns) == said
    whole, parts = ((tmp_path/f'{n}.json').read_text().splitlines() for n in ('whole', 'parts'))
    assert whole != parts and sorted(whole) == sorted(parts) and len(parts) == 70
    assert sorted(p.name for p in tmp_path.iterdir()) == ['h.parquet', 'parts.json', 'whole.json']

@pytest.mark.parametrize('column, value, words', [('user', None, 'row 612 has no user'), ('time', None, "row 612 has no time in 'time'")])
def test_a_bad_row_of_many_is_named_by_its_place_in_the_file(rec, tmp_path, monkeypatch, column, value, words):
    rows = many_rows().astype(object)
    rows.loc[611, column] = value
    rows.to_parquet(tmp_path/'h.parquet', row_group_size=100)
    monkeypatch.setattr(many_users, '_AT_ONCE', 150)
    with pytest.raises(FileError, match=words): recommend_file(rec, tmp_path/'h.parquet', tmp_path/'o.json', 5)
    assert [p.name for p in tmp_path.iterdir()] == ['h.parquet']


# ---- what a person gets wrong -------------------------------------------------------------------------------------

@pytest.mark.parametrize('name, text', [('a.csv', 'user,items\nann,"[\'3\', \'5\']"\ncy,3\n'), ('b.jsonl', '{"user":"ann","items":["3"]}\n{"user":"bob","items":"5"}\n'), ('c.csv', 'user,items\nann,"[\'3\']"\ncy,"[\'5\'"\n')])
def test_a_cell_without_a_list_among_lists_is_named(rec, tmp_path, name, text):
    (tmp_path/name).write_text(text)
    with pytest.raises(FileError, match=f"{name}: column 'items', data row 2: expected a list of ids, found"): recommend_file(rec, tmp_path/name, tmp_path/'o.csv', 1)

def test_bad_lines_of_histories_are_left_out_where_asked(rec, tmp_path):
    (tmp_path/'h.csv').write_text('user,item\nann,3\nbob,5,7,9\ncy,7\n')
    with pytest.raises(FileError, match='line 3'): recommend_file(rec, tmp_path/'h.csv', tmp_path/'o.csv', 1)
    assert recommend_file(rec, tmp_path/'h.csv', tmp_path/'o.csv', 1, bad_lines='skip')['users'] == 2

@pytest.mark.parametrize('how, words', [(dict(jobs=0), 'jobs is 0'), (dict(size=0), 'size is 0'), (dict(size=2.5), 'size is 2.5'), (dict(k='3'), "k is '3'"), (dict(columns=dict(users='user')), "'users' is unknown, did you mean 'user'")])
def test_wrong_settings_of_many_users(rec, tmp_path, how, words):
    (tmp_path/'h.csv').write_text('user,item\nann,3\n')
    with pytest.raises(SettingError, match=words): recommend_file(rec, tmp_path/'h.csv', tmp_path/'o.csv', **how)
    with pytest.raises(SettingError, match='expected a file, found DataFrame'): recommend_file(rec, pd.DataFrame(), tmp_path/'o.csv')

def test_histories_of_any_kind(rec):
    want = rec.recommend(['3', '5'], 3)
    for h in (pd.Series(['3', '5']), np.array(['3', '5']), ('3', '5')): assert rec.recommend(h, 3) == want
    with pytest.raises(SettingError, match='k is 3'): rec.recommend(['3'], '3')
    with pytest.raises(SettingError, match="items is 'Item 3': expected a list"): rec.remove_items('Item 3')
    with pytest.raises(SettingError, match="count is '3'"): rec.add_items(NEW, count='3')

def test_columns_of_new_items_are_named(rec, tmp_path):
    pd.DataFrame(dict(sku=['n1'], thing=['Item new'], words=['color 1 shape 2 size 0'])).to_csv(tmp_path/'n.csv', index=False)
    rec.add_items(tmp_path/'n.csv', columns=dict(item='sku', title='thing', text='words'))
    assert rec.catalog.titles[-1] == 'Item new' and 'color 1' in rec.catalog.texts[-1]
    with pytest.raises(GenrecError, match="did you mean 'title'"): rec.add_items(NEW, columns=dict(titel='x'))
    (tmp_path/'folder').mkdir()
    with pytest.raises(FileError, match='folder: a folder, expected a file'): rec.add_items(tmp_path/'folder')
