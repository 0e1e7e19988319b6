"The pipeline and the run: what they leave, killed and resumed, out of disk, leaks, side by side, mistakes."
import errno, json, shutil
from dataclasses import replace
from pathlib import Path
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, strategies as st
from oracles import change_held_out, kill_when, quick, slowly, small_data
from genrec_nb.core import GenrecError, GenrecWarning, MissingTextError, SettingError, read_json, read_settings, whole_file, write_json
from genrec_nb.metrics import evaluate_ranking, ranking_metrics
from genrec_nb.options import _pairs
from genrec_nb.pages import _rules_share
from genrec_nb.report import _user_card
from genrec_nb.recommender import GenerativeRecommender
from genrec_nb.rankers import load_ranker
from genrec_nb.splits import leave_one_out
from genrec_nb.tokenizer import load_tokenized
from genrec_nb.tokenizer_config import TokenizerConfig
import genrec_nb.pipeline as pipeline
import genrec_nb.run as run_module
from genrec_nb.pipeline import _pack, _ranked_lists, run_trials, _unpack
from genrec_nb.run import RunConfig, _open_run, load_config, run
import genrec_nb.tokenize as tokenize_module
from genrec_nb.tokenize import tokenize
from genrec_nb.trial import _content_digest

COUNTED = ['popularity', 'transitions', 'rules']
CHILDREN, SEVERAL = ([name, f'{name} + IGD decoding', f'{name} + sequential rules'] for name in ('children softmax', 'several identifiers'))
METHODS = CHILDREN + SEVERAL
TINY = dict(tokenizer=dict(method='rqkmeans', encoder='tfidf', size=6, levels=2), model=dict(d_model=16, num_heads=2, num_layers=1),
            train=dict(epochs=2, batch_size=16, lr=5e-3, eval_every=1), compare=['children'])


def small_config(data, **changes): return read_settings(RunConfig, TINY | dict(data=str(data)) | changes)


def plain_run(metrics, data, folder, resume=False, **changes):
    "A run of cross-entropy alone has the figures of the run with two trainings"
    found = run(small_config(data, identifiers='', **changes), folder, resume, jobs=1)['methods']
    assert list(found) == [*COUNTED, *CHILDREN] and found == {name: metrics['methods'][name] for name in found}


def trials_of(config):
    "The trials of a run, and its data"
    data, split = config.data_config.load()
    return config.trials(data), data, split


@pytest.fixture(scope='module')
def finished(tmp_path_factory):
    "A finished small run: (data folder, run folder, metrics)"
    base = tmp_path_factory.mktemp('run')
    data = small_data(base/'toy')
    return data, base/'out', run(small_config(data), base/'out', jobs=1)


@pytest.fixture
def pages(): "Asked for by tests that read a report"

@pytest.fixture(autouse=True)
def no_pages(request):
    "Plots take most of a small run's time: the other tests write none"
    class Nothing: save = staticmethod(lambda path: path.touch())
    with pytest.MonkeyPatch.context() as m:
        for module, page in ((run_module, '_run_page'), (tokenize_module, '_tokenizer_page')):
            if 'pages' not in request.fixturenames: m.setattr(module, page, lambda *a: Nothing)
        yield


def test_a_run_leaves_what_it_promises(finished):
    data, folder, metrics = finished
    stored = json.loads((folder/'metrics.json').read_text())
    assert stored == json.loads(json.dumps(metrics))
    assert list(stored['methods']) == [*COUNTED, *METHODS] and stored['users'] == 77 and stored['skipped_users'] == 3
    for m in stored['methods'].values():
        for x in ('recall', 'ndcg', 'mrr'):
            for k in (1, 5, 10, 20):
                lo, hi = m['intervals'][f'{x}@{k}']
                assert lo - 1e-9 <= m[f'{x}@{k}'] <= hi + 1e-9
        assert {'head/recall@10', 'tail/recall@10', 'coverage@10'} <= set(m)
    assert {'versions', 'config', 'seed', 'seconds', 'zero_gain_share', 'collisions_before'} <= set(stored)
    assert stored['ties']['targets'] == 77 and stored['ties']['tied'] is None                      # a list a user: no times, no ties
    page = (folder/'report.html').read_text()
    assert page.count('class="card"') == 5 and 'src="http' not in page and '<link' not in page and '<script' not in page
    best = max(METHODS, key=lambda k: stored['methods'][k]['valid_ndcg@10'])
    assert stored['chosen'] == best
    search = stored['search']
    assert 0 < search['users'] <= 77 and search['beams'] == 20 if 'lost' in search else list(search) == ['search']
    if 'lost' in search: assert f'loses the target of {search["lost"]:.1%}' in page
    assert search['search'] == 'exact' and 'all items are ranked exactly' in page
    assert GenerativeRecommender.from_pretrained(folder/'model').config.decode.alpha == stored['methods'][best]['alpha']
    assert load_config(folder/'config.toml') == small_config(data)


def test_a_model_below_an_untrained_baseline_is_said(finished):
    "Where one of the three ranks validation users better; in metrics.json and in the report; with an option that can be given"
    data, folder, metrics = finished
    best = max(COUNTED, key=lambda n: metrics['methods'][n]['valid_ndcg@10'])
    below = metrics['methods'][best]['valid_ndcg@10'] > metrics['methods'][metrics['chosen']]['valid_ndcg@10']
    said = metrics['below_baseline']
    assert below == bool(said) and (not said or best in said and metrics['chosen'] in said and said in (folder/'report.html').read_text())
    def ndcg(**figures): return {n: {'valid_ndcg@10': x} for n, x in dict(popularity=.1, transitions=.2, rules=.3).items() | figures.items()}
    assert run_module._below_baseline(ndcg(children=.3), 'children', 'x') == '' and run_module._below_baseline(ndcg(children=.3, itemknn=.9), 'children', 'x') == ''
    assert 'is not ahead of rules, an untrained baseline' in run_module._below_baseline(ndcg(children=.29), 'children', 'x')
    for changes, epochs, option in (({}, 2, 'train.epochs=4'), ({}, 1, 'train.lr=0.002'), (dict(rules_weight=0), 2, 'rules_weight=fitted')):
        helps = run_module._Run(small_config(data, **changes), None, None, {}).helps('children', dict(children=dict(epochs=epochs)))
        assert f'--set {option}' in helps and load_config(overrides=_pairs([option], '--set'))


def test_the_report_shows_the_part_of_the_rules(finished):
    data, folder, metrics = finished
    trials, _, split = trials_of(small_config(data))
    rec = GenerativeRecommender.from_pretrained(folder/'work'/trials['several'].key/'model')
    assert 'sequential rules' not in _user_card(rec, split.test, 0)
    rec.config = replace(rec.config, decode=replace(rec.config.decode, rules_weight='fitted'))
    seen = [rec.catalog.ids[i] for i in split.test.history(0)]
    counted, card = rec.explain_rules(seen, rec.recommend(seen, 1)[0].id), str(_user_card(rec, split.test, 0))
    assert counted.weight == rec.weights['rules']['product'] > 0 and f'of sequential rules {counted.counted:.4f} (weight {counted.weight:.2f})' in card and 'By the generator alone:' in card
    assert metrics['fitted']['rules'].keys() == {'product', 'mixture'} and '&#34;fitted&#34;: {' in (folder/'report.html').read_text()
    assert _rules_share(dict(rules_share=.75, config=dict(rules_weight='fitted'))).startswith('; sequential rules have 75% of its probability') and not _rules_share(dict(rules_share=0, config={}))


def test_the_metrics_are_those_of_the_stored_lists(finished):
    data, folder, metrics = finished
    trials, _, split = trials_of(small_config(data))
    lists = _ranked_lists(trials['several'], folder, 'igd')['test']
    by_hand = evaluate_ranking(lists, split.test, split.train)
    assert metrics['methods']['several identifiers + IGD decoding']['ndcg@10'] == pytest.approx(by_hand['ndcg@10'])
    rec = GenerativeRecommender.from_pretrained(folder/'work'/trials['several'].key/'model')
    assert (rec.rank(split.test, 20, replace(rec.config.decode, alpha=.2)) == lists).all()
    by_rules = evaluate_ranking(rec.rank(split.test, 20, replace(rec.config.decode, rules_weight='fitted')), split.test, split.train)
    assert metrics['methods'][SEVERAL[2]]['ndcg@10'] == pytest.approx(by_rules['ndcg@10']) and rec.exact(replace(rec.config.decode, rules_weight='fitted')).rules > 0


def test_an_assistant_and_a_sample_of_users(finished, pages, tmp_path):
    "Rows of D3: by hand from the saved model and the saved assistant; what is saved recommends alone"
    data, before, _ = finished
    config, out = small_config(data, assistant_weight=.5, users=20), tmp_path/'out'
    got = run(config, out, jobs=1)
    both = [f'{n} + assistant' for n in METHODS if 'rules' not in n]
    assert list(got['methods']) == [*COUNTED, 'assistant', *CHILDREN[:2], *both[:2], CHILDREN[2], *SEVERAL[:2], *both[2:], SEVERAL[2]]
    assert got['users'] == 20 and got['chosen'] in METHODS and {n for n, m in got['methods'].items() if m['assistant_weight']} == set(both)
    trials, _, split = trials_of(config)
    (kept,) = (p for p in (out/'work').glob('sasrec-*') if p.is_dir())
    rec, assistant = GenerativeRecommender.from_pretrained(out/'work'/trials['several'].key/'model'), load_ranker(kept)
    for name, w, alpha in (('several identifiers + IGD decoding + assistant', .5, .2), ('several identifiers', 0., 0.)):
        rank = lambda cases: rec.rank(cases, 20, replace(rec.config.decode, alpha=alpha, assistant_weight=w), assistant)
        assert got['methods'][name]['ndcg@10'] == pytest.approx(evaluate_ranking(rank(split.test), split.test, split.train)['ndcg@10'])
        assert got['methods'][name]['valid_ndcg@10'] == pytest.approx(ranking_metrics(rank(split.valid), split.valid.targets, (10,))['ndcg@10'])
    page = (out/'report.html').read_text()
    assert '20 test users, sampled once' in page and '50% of each step from a SASRec' in page and '+ assistant' not in (before/'report.html').read_text()
    with pytest.raises(GenrecError, match=r'other settings \(assistant_weight: 0.3, was 0'): run(replace(config, assistant_weight=.3), out, resume=True)


def test_the_same_seed_gives_the_same_figures_and_another_does_not(finished, tmp_path):
    data, _, metrics = finished
    assert run(small_config(data), tmp_path/'again', jobs=1)['methods'] == metrics['methods']
    assert run(small_config(data, seed=1, identifiers=''), tmp_path/'other', jobs=1)['methods']['children softmax'] != metrics['methods']['children softmax']


@pytest.mark.slow                                           # as is test_several_processes_give_the_same_rows of grids, which is quick
def test_side_by_side_gives_the_same_figures(finished, tmp_path):
    data, _, metrics = finished
    assert run(small_config(data), tmp_path/'out', jobs=2)['methods'] == metrics['methods']


@pytest.mark.parametrize('stage', ['facts', 'metrics'])   # at any moment: test_faults
def test_a_full_disk_and_then_resumed(finished, tmp_path, monkeypatch, stage):
    data, _, metrics = finished
    def full(path, *more, real):
        if Path(path).stem == stage: raise OSError(errno.ENOSPC, 'No space left on device', str(path))
        return real(path, *more)
    for module, name, real in ((pipeline, 'write_json', write_json), (run_module, 'write_json', write_json), (pipeline, 'whole_file', whole_file)):
        monkeypatch.setattr(module, name, lambda *a, real=real: full(*a, real=real))
    with pytest.raises(OSError, match='No space left'): plain_run(metrics, data, tmp_path/'out')
    assert not (tmp_path/'out'/'metrics.json').exists()
    monkeypatch.undo()
    plain_run(metrics, data, tmp_path/'out', resume=True)


def test_damaged_stages_are_made_again(finished, tmp_path):
    "Codes, a trained model, ranked lists: dropped with a warning each, and the figures are the same"
    data, folder, metrics = finished
    out = tmp_path/'out'
    shutil.copytree(folder, out)
    keys = [t.key for t in trials_of(small_config(data))[0].values()]
    broken = [next(out.glob('identifiers/*/codes.npy')), out/'work'/keys[0]/'model'/'counts.safetensors', out/'work'/keys[1]/'ranked'/'plain.npz']
    for path in broken: path.write_bytes(path.read_bytes()[:40])
    with pytest.warns(GenrecWarning, match='made again') as said: again = run(small_config(data), out, resume=True, jobs=1)
    told = [str(w.message) for w in said if w.category is GenrecWarning]
    assert len(told) == 3 and all(any(str(p) in t for t in told) for p in broken) and again['methods'] == metrics['methods']


@pytest.mark.parametrize('how', ['half', 'noise'])
def test_every_damaged_file_of_a_model_is_one_line(finished, tmp_path, how):
    _, folder, _ = finished
    shutil.copytree(folder/'model', tmp_path/'model')
    parts = [p for p in (tmp_path/'model').rglob('*') if p.is_file() and p.suffix != '.md' and p.name != 'generation_config.json']
    for path in sorted(parts):
        raw = path.read_bytes()
        path.write_bytes(raw[:len(raw)//2] if how == 'half' else bytes(range(256))*4)
        try: GenerativeRecommender.from_pretrained(tmp_path/'model')
        except GenrecError as e: assert str(path) in str(e) and str(e).endswith('train again') and '\n' not in str(e), e
        else: assert 0, path
        path.unlink()                                                           # and where it is missing
        with pytest.raises(GenrecError, match=path.name) as e: GenerativeRecommender.from_pretrained(tmp_path/'model')
        assert 'did you mean' not in str(e.value) and (path.name == 'genrec.json' or str(e.value).endswith('train again')), e.value
        path.write_bytes(raw)
    assert len(GenerativeRecommender.from_pretrained(tmp_path/'model').catalog)


def test_data_that_have_moved_or_changed(finished, tmp_path):
    data, folder, metrics = finished
    shutil.copytree(folder, tmp_path/'out')
    shutil.copytree(data, tmp_path/'else'/'toy')
    gone = replace(small_config(data), data=str(tmp_path/'gone'))
    with pytest.raises(GenrecError, match='if the data have moved: `genrec run DATA --resume --out'): run(gone, tmp_path/'out', resume=True)
    moved = run(small_config(tmp_path/'else'/'toy'), tmp_path/'out', resume=True, jobs=1)
    assert moved['methods'] == metrics['methods'] and load_config(tmp_path/'out'/'config.toml').data == str(tmp_path/'else'/'toy')
    change_held_out(tmp_path/'else'/'toy')
    with pytest.raises(GenrecError, match='started with other data and identifiers than'): run(small_config(tmp_path/'else'/'toy'), tmp_path/'out', resume=True)


def test_killed_in_training_resumed_same_figures(finished, tmp_path):
    "SIGKILL as soon as a checkpoint is there, then resume"
    data, folder, metrics = finished
    out = tmp_path/'out'
    kill_when(lambda: list(out.glob('work/*/checkpoints/checkpoint-*/trainer_state.json')),
              slowly(.05, lambda: run(small_config(data), out, jobs=1)))
    assert not (out/'metrics.json').exists()
    assert run(small_config(data), out, resume=True, jobs=1)['methods'] == metrics['methods']


def test_leaks_neither_validation_nor_test_items_touch_what_is_learned(finished, tmp_path):
    "Change every validation and test item: identifiers, counts, gains and the plain training loss stay as they were"
    data, folder, first = finished
    shutil.copytree(data, tmp_path/'toy')
    change_held_out(tmp_path/'toy')
    second = run(small_config(tmp_path/'toy'), tmp_path/'b', jobs=1)
    assert first['methods']['children softmax'] != second['methods']['children softmax']
    a, b = (GenerativeRecommender.from_pretrained(f/'model') for f in (folder, tmp_path/'b'))
    assert a.ids == b.ids and (a.counts == b.counts).all() and (a.gain == b.gain).all()
    def losses(config, folder, name): return [l['loss'] for l in read_json(folder/'work'/trials_of(config)[0][name].key/'trained.json')['logs'] if 'loss' in l]
    for name in ('children', 'several'): assert losses(small_config(data), folder, name) == losses(small_config(tmp_path/'toy'), tmp_path/'b', name)


def test_given_identifiers(finished, tmp_path):
    "A table and a folder give the same figures again; what cannot work is refused before the folder is made"
    data, folder, metrics = finished
    for name, ids in (('t', folder/'tokenizer'/'index.json'), ('f', folder/'tokenizer')): plain_run(metrics, data, tmp_path/name, ids=str(ids))
    assert GenerativeRecommender.from_pretrained(tmp_path/'f'/'model').quantizer is not None
    other = small_data(tmp_path/'other', items=39)
    for bad, message in ((small_config(other, ids=str(folder/'tokenizer')), 'another catalog'), (small_config(data, ids='leter'), 'no such file')):
        with pytest.raises(GenrecError, match=message): run(bad, tmp_path/'x')
    assert not (tmp_path/'x').exists()


def test_data_without_texts(tmp_path):
    bare = small_data(tmp_path/'bare', text=False)
    with pytest.raises(MissingTextError, match='tokenizers without text: .*random'): run(small_config(bare), tmp_path/'x')
    with pytest.raises(MissingTextError, match='weighting fg'): run(small_config(bare, tokenizer=dict(method='random', size=20), weighting='fg'), tmp_path/'x')
    assert not (tmp_path/'x').exists()
    assert run(small_config(bare, tokenizer=dict(method='random', size=8), identifiers='', train=dict(epochs=1)), tmp_path/'r', jobs=1)['collisions']['rate'] == 0


@pytest.mark.parametrize('weighting, options', [('fg', dict(scale=8.)), ('multi', dict(half_life=2.)), ('ce', {})])
def test_any_weighting_can_be_run(finished, tmp_path, weighting, options):
    data, folder, plain = finished
    config = small_config(data, weighting=weighting, weighting_options=options, identifiers='')
    shutil.copytree(folder/'work', tmp_path/'out'/'work')                       # plain cross-entropy is done already
    shutil.copytree(folder/'identifiers', tmp_path/'out'/'identifiers')
    shutil.copy(folder/'config.toml', tmp_path/'out'/'config.toml')
    (tmp_path/'out'/'config.toml').unlink()
    _open_run(tmp_path/'new', config, False)
    shutil.copy(tmp_path/'new'/'config.toml', tmp_path/'out'/'config.toml')
    metrics = run(config, tmp_path/'out', resume=True, jobs=1)
    assert list(metrics['methods']) == [*COUNTED, *CHILDREN, *([] if weighting == 'ce' else [weighting, f'{weighting} + IGD decoding', f'{weighting} + sequential rules'])]
    assert metrics['methods']['children softmax'] == plain['methods']['children softmax']                   # the same training whatever it is compared with


def test_a_folder_belongs_to_one_run(finished, tmp_path):
    data, folder, _ = finished
    (tmp_path/'full').mkdir()
    (tmp_path/'full'/'x').write_text('')
    for call, message in ((lambda: run(small_config(data), folder), '--resume goes on'), (lambda: run(small_config(data), tmp_path/'full'), 'is no run'),
                          (lambda: run(small_config(data), tmp_path/'none', resume=True), 'no run to resume'),
                          (lambda: run(small_config(data, train=TINY['train'] | dict(lr=1e-3)), folder, resume=True), r'other settings \(train.lr: 0.001, was '),
                          (lambda: run(small_config(data, model={}), folder, resume=True), r'other settings \(model')):
        with pytest.raises(GenrecError, match=message): call()


def test_a_first_stage_that_fails_leaves_no_folder(tmp_path, monkeypatch):
    "So that the corrected command may have its name"
    data = small_data(tmp_path/'toy')
    def fails(*a): raise GenrecError('no codes today')
    monkeypatch.setattr(run_module, '_make_identifiers', fails)
    with pytest.raises(GenrecError, match='no codes today'): run(small_config(data), tmp_path/'out')
    assert not (tmp_path/'out').exists()
    _open_run(tmp_path/'out', small_config(data), False)
    with pytest.raises(GenrecError, match='no codes today'): run(small_config(data), tmp_path/'out', resume=True)
    assert (tmp_path/'out'/'config.toml').is_file()                             # it was there before


def test_every_row_of_the_table(finished, tmp_path):
    "By default SASRec and both softmaxes stand beside several identifiers; what comes out the same is trained once"
    data, folder, plain = finished
    def rows(**changes): return list(small_config(data, **{**dict(compare=('SASRec', 'vocabulary', 'children')), **changes}).recommenders)
    assert RunConfig().compare == ('SASRec', 'vocabulary', 'children') and [s.method for s in RunConfig().identifiers] == ['item']
    assert rows() == ['SASRec', 'vocabulary', 'children', 'several'] and rows(identifiers='') == ['SASRec', 'vocabulary', 'children']
    assert rows(weighting='fg') == ['SASRec', 'vocabulary', 'children', 'fg', 'several'] and rows(compare=[]) == ['several']
    assert rows(model=TINY['model'] | dict(softmax='vocabulary'), identifiers='') == ['SASRec', 'vocabulary', 'children']
    assert rows(backbone='t5', model={}) == ['ce', 'igd'] and rows(beta=.3)[-2] == 'igd'
    c = small_config(data, compare=['SASRec', 'vocabulary'], identifiers=['item', dict(method='random', size=9)], train=TINY['train'] | dict(epochs=1))
    metrics = run(c, tmp_path/'out', jobs=1)
    assert list(metrics['methods']) == [*COUNTED, 'SASRec', 'SASRec + sequential rules', 'vocabulary softmax', *SEVERAL] and 'SASRec' not in metrics['chosen']
    trials, _, split = trials_of(c)
    rec = GenerativeRecommender.from_pretrained(tmp_path/'out'/'work'/trials['SASRec'].key/'model')
    assert rec.ids.kind == 'item' and rec.model.config.head_ff == 0
    assert metrics['methods']['SASRec']['ndcg@10'] == pytest.approx(evaluate_ranking(rec.rank(split.test), split.test, split.train)['ndcg@10'])
    assert load_config(tmp_path/'out'/'config.toml') == c


@pytest.mark.parametrize('given, message', [
    (dict(compare=['SASRek']), 'expected one of SASRec, vocabulary, children'), (dict(identifiers='itme'), "did you mean 'item'"),
    (dict(decode=dict(length_penalty=1.)), 'take rules_weight=0'),
    (dict(weighting='igdd'), "did you mean 'igd'"), ({'weighting_options.beta': .5, 'weighting': 'igd'}, 'a setting of its own'), (dict(split='tim'), 'leave-one-out, time'),
    (dict(users=0), 'users is 0'), (dict(alpha=1.5), 'alpha is 1.5'), ({'decode.alpha': 1.5}, 'alpha is 1.5'), ({'decode.rules_weight': 'fited'}, 'expected fitted'), ({'train.lrr': 1}, "did you mean 'lr'"),
    ({'train.epochs': 0}, 'epochs is 0'), ({'tokenizer.method': 'title'}, "backbone 'llm'"), (dict(aplha=.1), "did you mean 'alpha'"),
    ({'model.dmodel': 3}, "did you mean 'd_model'")])
def test_settings_that_cannot_be(given, message):
    with pytest.raises(SettingError, match=message): load_config(overrides=given)


def test_settings_from_a_file_and_by_name(tmp_path):
    (tmp_path/'c.toml').write_text('data = "x"\n[train]\nlr = 1e-3\nepochs = 7\n')
    c = load_config(tmp_path/'c.toml', {'train.epochs': 9, 'seed': 3})
    assert (c.data, c.train.lr, c.train.epochs, c.seed) == ('x', 1e-3, 9, 3)
    (tmp_path/'old.toml').write_text('rules_weight = "fitted"\nalpha = 0.3\n[decode]\nrules_weight = 0\nalpha = 0\n')  # as older versions wrote it
    (tmp_path/'new.toml').write_text('[decode]\nrules_weight = 0\nalpha = 0.3\n')
    old, new = (load_config(tmp_path/f'{n}.toml', {'decode.assistant_weight': .5}) for n in ('old', 'new'))
    assert [(c.rules_weight, c.alpha, c.assistant_weight) for c in (old, new)] == [('fitted', .3, .5), (0, .3, .5)]
    assert load_config(tmp_path/'new.toml', {'rules_weight': .5}).rules_weight == load_config(tmp_path/'old.toml', {'decode.rules_weight': .5}).rules_weight == .5
    q = load_config(overrides={'train.lr': 1e-3}, quick=True)
    assert (q.tokenizer.method, q.tokenizer.encoder, q.train.epochs, q.train.lr) == ('rqkmeans', 'tfidf', 2, 1e-3)


# ---- trials --------------------------------------------------------------------------------------------------------------

def test_a_trial_is_named_by_contents(finished, tmp_path):
    data, folder, _ = finished
    shutil.copytree(data, tmp_path/'moved'/'toy')
    key = lambda **c: trials_of(small_config(**c))[0]['several'].key
    here = key(data=data)
    assert key(data=tmp_path/'moved'/'toy') == here                             # wherever the data lie
    assert key(data=data, alpha=.3) == here                                     # α is a matter of decoding
    others = [key(data=data, **c) for c in (dict(seed=1), dict(beta=.5), dict(users=20), dict(model=dict(d_model=16)), dict(ids=str(folder/'tokenizer')))]
    assert len({here, *others}) == 6
    shutil.copytree(folder/'tokenizer', tmp_path/'copy')
    assert _content_digest(tmp_path/'copy') == _content_digest(folder/'tokenizer') != _content_digest(tmp_path/'moved'/'toy')


def test_failures_are_rows_and_the_others_go_on(finished, tmp_path, monkeypatch):
    data, folder, _ = finished
    config = small_config(data)
    trials, _, _ = trials_of(config)
    real = pipeline._train_trial
    def train(trial, *a):
        if trial.label == 'children': raise RuntimeError('out of memory')
        return real(trial, *a)
    monkeypatch.setattr(pipeline, '_train_trial', train)
    failed, row = run_trials([(t, config.decodings(n)) for n, t in trials.items()], folder)
    assert failed['kind'] == 'failure' and failed['error'] == 'children: out of memory' and row['kind'] == 'trial' and set(row['decodings']) == {'plain', 'igd', 'rules'}


@quick
@given(st.lists(st.integers(0, 2**32 - 1) | st.integers(0, 20), max_size=60))
def test_packed_numbers_come_back(x): assert _unpack(_pack(x)).tolist() == x


# ---- the tokenizer alone -------------------------------------------------------------------------------------------------

def test_tokenize_is_the_first_stage_of_a_run(finished, tmp_path):
    data, folder, metrics = finished
    c = small_config(data)
    figures = tokenize(str(data), c.tokenizer_config, tmp_path/'t')
    assert load_tokenized(tmp_path/'t').ids == load_tokenized(folder/'tokenizer').ids and figures['before'] == metrics['collisions_before']
    assert (tmp_path/'t'/'report.html').is_file() and json.loads((tmp_path/'t'/'report.json').read_text())['items'] == 40
    with pytest.raises(GenrecError, match='not empty'): tokenize(str(data), c.tokenizer_config, tmp_path/'t')

def test_a_table_says_which_order_of_ties_its_vectors_saw(finished, tmp_path):
    "Its collaborative vectors are those of that order; without times there is none to choose"
    from genrec_nb.hkmeans import cooccurrence_vectors
    from genrec_nb.loaders import load_dataset
    rng, how, found = np.random.default_rng(0), TokenizerConfig('hkmeans', cf='cooccurrence', options=dict(clusters=3, leaf=4)), {}
    pd.DataFrame(dict(user=np.repeat(np.arange(30), 6), item=np.concatenate([rng.permutation(12)[:6] for _ in range(30)]), time=np.tile([1, 1, 2, 2, 2, 2], 30))).to_csv(tmp_path/'x.csv', index=False)
    columns = dict(user='user', item='item', time='time')
    for seed in (None, 0, 3):
        found[seed] = tokenize(str(tmp_path/'x.csv'), how, tmp_path/f't{seed}', columns, tie_seed=seed)
        train = leave_one_out(load_dataset(str(tmp_path/'x.csv'), text=None, tie_seed=seed, **columns).interactions).train
        np.testing.assert_array_equal(load_tokenized(tmp_path/f't{seed}').cf, cooccurrence_vectors(train, 64))
        assert json.loads((tmp_path/f't{seed}'/'report.json').read_text())['tie_seed'] == (seed or 0)
    assert found[None]['source'] == found[0]['source'] != found[3]['source']
    orders = [RunConfig(data=str(tmp_path/'x.csv'), columns=columns, tokenizer=dict(method='random'), seed=seed, tie_seed=tie).data_config.load()[0].interactions.items for seed, tie in ((0, 3), (5, 3), (0, 4))]
    assert (orders[0] == orders[1]).all() and (orders[0] != orders[2]).any()                # whatever the seed of the training
    with pytest.raises(GenrecError, match='there are no times, so nothing is tied.*leave out ties and tie_seed'): tokenize(str(finished[0]), how, tmp_path/'t', tie_seed=1)
    assert not (tmp_path/'t').exists()

@pytest.mark.parametrize('changes, words', [(dict(backbone='t5', rules_weight=.5), 'not t5: take rules_weight=0'), (dict(model=dict(softmax='vocabulary', prior='trie')), "take softmax='children'"),
                                            (dict(backbone='t5', model=dict(prior='trie')), "take softmax='children'")])
def test_what_cannot_be_is_refused_with_the_settings(changes, words):
    with pytest.raises(SettingError, match=words): RunConfig(data='x', **changes)
    RunConfig(data='x', backbone='t5', rules_weight=0)

@pytest.mark.parametrize('given, encoders', [('hkmeans, item', ['tfidf', None]), (['rqvae', dict(method='hkmeans', encoder='minilm')], ['tfidf', 'minilm']), (None, [None]),
                                             ([dict(method='hkmeans', cf='cooccurrence'), 'random'], [None, None])])
def test_a_quick_run_downloads_no_encoder_for_further_identifiers(given, encoders):
    config = load_config(overrides=dict(data='x') | (dict(identifiers=given) if given else {}), quick=True)
    assert [s.encoder for s in config.identifiers] == encoders
    with pytest.raises(SettingError, match='a list of methods'): load_config(overrides=dict(data='x', identifiers=3), quick=True)
