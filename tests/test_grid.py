"Grids: killed, shared, resumed; equal budgets; sweeps; mistakes told before any work."
import json, os, shutil, subprocess, sys
from pathlib import Path
import numpy as np
import pandas as pd
import pytest
from oracles import change_held_out, kill_when, slowly, small_data
import genrec_nb.experiments.execution as execution
import genrec_nb.pipeline as pipeline
from genrec_nb.core import GenrecError, SettingError, digest
from genrec_nb.beam_search import DecodeConfig
from genrec_nb.splits import global_time, leave_one_out
from genrec_nb.experiments.execution import dry_run, _make_plan, run_grid
from genrec_nb.experiments.grid_report import summary
from genrec_nb.experiments.results import Block, read_results
from genrec_nb.experiments.grid import Grid, _points, read_grid
from genrec_nb.loaders import load_dataset
from genrec_nb.many_users import recommend_file
from genrec_nb.metrics import ranking_metrics
from genrec_nb.pipeline import _unpack
from genrec_nb.recommender import GenerativeRecommender
from genrec_nb.rankers import load_ranker

SMALL = dict(ids={'km': dict(method='rqkmeans', encoder='tfidf', levels=2, size=6)}, model=dict(d_model=16, num_heads=2, num_layers=1),
             train=dict(epochs=2, batch_size=16, eval_every=1))


def settings(folder, **changes):
    "A grid of four trials, a second each"
    return {**dict(data={'toy': dict(path=str(folder))}, weightings=['ce', 'igd'], alphas=[0, .2], seeds=[0, 1]), **SMALL, **changes}


def lines(folder): return [json.loads(l) for f in sorted(Path(folder).glob('*.jsonl')) for l in f.read_text().splitlines()]
def trials(folder): return {l['trial']: l for l in lines(folder) if l['kind'] == 'trial'}
def said(row): return {k: v for k, v in row.items() if k not in ('seconds', 'versions', 'device')}      # without when and where


@pytest.fixture(scope='module')
def toy(tmp_path_factory):
    folder = small_data(tmp_path_factory.mktemp('data')/'toy')
    np.save(folder/'near.npy', np.random.default_rng(0).normal(size=(40, 8)).astype(np.float32))
    return folder


@pytest.fixture(scope='module')
def finished(toy, tmp_path_factory):
    "A folder with every trial of a small grid"
    folder = tmp_path_factory.mktemp('grid')/'out'
    run_grid(Grid(**settings(toy)), folder)
    return folder


# ---- running -------------------------------------------------------------------------------------------------------------

def test_rows_hold_what_they_promise(finished, toy):
    rows = trials(finished)
    assert len(rows) == 4 and {(r['method'], r['seed']) for r in rows.values()} == {(m, s) for m in ('ce', 'igd') for s in (0, 1)}
    for key, r in rows.items():
        assert key == digest(r['config']) and r['config']['train']['epochs'] == 2
        assert list(r['decodings']) == ['0', '0.2'] and {'genrec_nb', 'commit', 'threads', 'torch'} <= set(r['versions']) and r['seconds']['train'] > 0
        assert [e for e, _ in r['curve']['ndcg@10']] == [1, 2] and len(r['curve']['loss']) == 2
        for d in r['decodings'].values():
            for part in ('valid', 'test'): assert len(_unpack(d[part]['ranks'])) == 77 and {'ndcg@10', 'recall@20', 'coverage@10'} <= set(d[part]['metrics'])
    (about,) = [l for l in lines(finished) if l['kind'] == 'data']
    inter = json.loads((toy/'toy.inter.json').read_text())
    assert _unpack(about['test']['targets']).tolist() == [h[-1] for h in inter.values() if len(h) > 2]
    assert str(toy) not in (finished/'results.jsonl').read_text(), 'rows must not hold paths'


# ---- the order of equal times --------------------------------------------------------------------------------------------

@pytest.fixture(scope='module')
def shop(tmp_path_factory):
    "Tables of 40 users, who chose 8 items each, four at a time"
    folder, rng = tmp_path_factory.mktemp('shop'), np.random.default_rng(0)
    rows = [(u, i, n//4) for u in range(40) for n, i in enumerate(rng.permutation(30)[:8])]
    pd.DataFrame(rows, columns=['user', 'item', 'time']).to_csv(folder/'interactions.csv', index=False)
    pd.DataFrame(dict(item=range(30), title=[f'item {i} {"abc"[i % 3]}' for i in range(30)])).to_csv(folder/'items.csv', index=False)
    return folder

def test_a_mean_over_tie_seeds(shop, tmp_path):
    "Each training seed has an order of its own; rows, tests and pages know the targets of each"
    data = {'toy': dict(path=str(shop), tie_seeds=[7, 3])}
    run_grid(Grid(**settings(shop, data=data, weightings=['ce'], alphas=[0], train=SMALL['train'] | dict(epochs=1))), tmp_path/'out')
    results = read_results(tmp_path/'out')
    block = Block(results)
    splits = [leave_one_out(load_dataset(shop, tie_seed=s).interactions) for s in (7, 3)]
    s = block.scores()
    assert s.targets.tolist() == [x.test.targets.tolist() for x in splits] and (s.targets[0] != s.targets[1]).any()
    np.testing.assert_array_equal(block.counts, [x.train.item_counts() for x in splits])
    assert len(results.data) == 2 and all(d['ties'] == dict(interactions=320, tied=320, targets=40, tied_targets=40, seen_targets=0) for d in results.data.values())
    for seed, split in zip((0, 1), splits):               # the stored ranks are those of the order's own targets
        row = block.trials['ce'][seed]
        with np.load(tmp_path/'out'/'work'/row['trial']/'ranked'/'0.npz') as f: ranked = f['test']
        assert row['decodings']['0']['test']['metrics']['ndcg@10'] == pytest.approx(ranking_metrics(ranked, split.test.targets, (10,))['ndcg@10'])
    text = summary(results)
    assert '2 seeds with 2 tie seeds' in text and '320 of 320 interactions and 40 of 40 test targets are tied' in text and 'means are over 2 tie seeds (7, 3)' in text

def test_tie_seeds_go_side_by_side_with_seeds():
    g = Grid({'a': dict(path='ml-100k', tie_seeds=[5, 6]), 'b': dict(path='ml-100k', tie_seed=9), 'c': dict(path='ml-100k')}, weightings=['ce'], seeds=[3, 1, 4],
             tune=dict(seeds=[1, 8], values={}, untuned=['ce']))
    assert [g.tie_seed('a', s) for s in (3, 1, 4, 8)] == [5, 6, 5, 6] and g.tie_seed('b', 4) == 9 and g.tie_seed('c', 4) is None

@pytest.mark.parametrize('ties, words', [(dict(tie_seeds=[0, 0]), 'twice'), (dict(tie_seeds=[0, 1, 2]), '3 tie seeds for 2 seeds'), (dict(tie_seeds=[-1]), '0 or more'),
                                         (dict(tie_seed=1, tie_seeds=[2]), 'expected one'), (dict(ties='items'), "'items'"), (dict(tie_seeds=3), 'list')])
def test_impossible_tie_seeds(toy, ties, words):
    with pytest.raises(SettingError, match=words): Grid(**settings(toy, data={'toy': dict(path=str(toy)) | ties}))

def test_tie_seeds_of_data_without_times(toy):
    with pytest.raises(SettingError, match='^data.toy: .*no times.*leave out'): _make_plan(Grid(**settings(toy, data={'toy': dict(path=str(toy), tie_seeds=[0, 1])})))


def test_finished_trials_are_never_run_again(finished, toy, tmp_path, monkeypatch):
    "Not from the same folder, and not with the same data elsewhere"
    monkeypatch.setattr(execution, 'run_trials', lambda tasks, *a, **k: [1/0 for _ in tasks])
    before = (finished/'results.jsonl').read_bytes()
    assert len(run_grid(Grid(**settings(toy)), finished).trials) == 4
    assert len(run_grid(Grid(**settings(shutil.copytree(toy, tmp_path/'toy'))), finished).trials) == 4
    assert (finished/'results.jsonl').read_bytes() == before


def test_a_new_alpha_needs_no_new_training(finished, toy, tmp_path, monkeypatch):
    folder = shutil.copytree(finished, tmp_path/'out')
    monkeypatch.setattr(GenerativeRecommender, 'fit', None)
    results = run_grid(Grid(**settings(toy, alphas=[0, .2, .4])), folder)
    assert all(set(r['decodings']) == {'0', '0.2', '0.4'} for r in results.trials.values())
    assert [list(l['decodings']) for l in lines(folder) if l['kind'] == 'trial'][-4:] == [['0.4']]*4


def test_sequential_rules_need_no_new_training(toy, tmp_path, monkeypatch):
    trained, anew = [], pipeline._train_anew
    monkeypatch.setattr(pipeline, '_train_anew', lambda trial, *args: (trained.append(trial.label), anew(trial, *args))[1])
    rows = dict(plain=dict(kind='ce'), counted=dict(kind='ce', decode=dict(rules_weight='fitted')))
    grid = Grid(**settings(toy, weightings=rows, ids={'a': dict(method='random', size=8)}, seeds=[0], alphas=[0], backbone='packed'))
    run_grid(grid, tmp_path/'out')
    found = {r['method']: r for r in trials(tmp_path/'out').values()}
    lists = [found[m]['decodings']['0']['test']['ranks'] for m in rows]
    assert len(trained) == 1 and found['plain']['best'] == found['counted']['best'] and lists[0] != lists[1]

def test_figures_do_not_depend_on_the_order_of_trials(finished, toy, tmp_path):
    run_grid(Grid(**settings(toy, seeds=[1], weightings=['igd'])), tmp_path/'o')
    (row,) = trials(tmp_path/'o').values()
    assert said(row) == said(trials(finished)[row['trial']])


def test_several_processes_give_the_same_rows(finished, toy, tmp_path):
    "In new processes, as users run them"
    run_grid(Grid(**settings(toy)), tmp_path/'o', jobs=2)
    assert {k: said(r) for k, r in trials(tmp_path/'o').items()} == {k: said(r) for k, r in trials(finished).items()}


def test_several_processes_recommend_the_same(finished, tmp_path):
    "In the processes of the test before this, started already; the folder with the model is gone afterwards"
    rec = GenerativeRecommender.from_pretrained(sorted(finished.glob('work/*/model'))[0])
    pd.DataFrame([(f'u{u}', i) for u in range(5) for i in range(u, u + 3)] + [('nobody', 999)], columns=['user', 'item']).to_csv(tmp_path/'rows.csv', index=False)
    for name, jobs in (('one', 1), ('two', 2)):
        assert recommend_file(rec, tmp_path/'rows.csv', tmp_path/name, 4, 'json', size=2, jobs=jobs) == dict(users=6, without=1, unknown=1, unknown_names=['999'])
    assert (tmp_path/'two').read_text() == (tmp_path/'one').read_text() and not list(tmp_path.glob('.model-*'))


@pytest.mark.parametrize('wanted', ['work/*/checkpoints/checkpoint-*/trainer_state.json', 'work/*/trained.json'], ids=['in training', 'before decoding'])
def test_killed_and_resumed_gives_the_same_rows(finished, toy, tmp_path, wanted):
    out, grid = tmp_path/'out', Grid(**settings(toy, seeds=[1]))
    kill_when(lambda: list(out.glob(wanted)), slowly(.03, lambda: run_grid(grid, out)))
    assert len(trials(out)) < 2
    run_grid(grid, out)
    assert {k: said(r) for k, r in trials(out).items()} == {k: said(r) for k, r in trials(finished).items() if r['seed'] == 1}


ON_A_CLUSTER = '''
import os, signal, sys, threading, time
from pathlib import Path
from genrec_nb.experiments.execution import run_grid
from genrec_nb.experiments.grid import read_grid

def slow(busy):
    "In a worker: steps take their time, and a file named by the process stands there while it trains"
    import genrec_nb.pipeline as pipeline
    class Slow(pipeline._Steps):
        def on_step_end(self, *args, **kwargs):
            super().on_step_end(*args, **kwargs)
            (busy/str(os.getpid())).touch()
            time.sleep(.1)
        def on_train_end(self, *args, **kwargs): (busy/str(os.getpid())).unlink(missing_ok=True)
    pipeline._Steps = Slow

def kill_one(pids, out, busy):
    "SIGKILL to a worker that is training, as soon as there is a checkpoint"
    while not list(out.glob('work/*/checkpoints/checkpoint-*')) or not list(busy.iterdir()): time.sleep(.02)
    pid = int(next(busy.iterdir()).name)
    assert pid in pids
    os.kill(pid, signal.SIGKILL)
    (out/'killed').write_text(str(pid))

if __name__ == '__main__':
    from distributed import Client, LocalCluster
    out, busy = Path(sys.argv[2]), Path(sys.argv[3])
    busy.mkdir()
    with LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster, Client(cluster) as client:
        client.run(slow, busy)
        threading.Thread(target=kill_one, args=(client.run(os.getpid).values(), out, busy), daemon=True).start()
        run_grid(read_grid(sys.argv[1]), out, cluster=cluster.scheduler_address)
'''


@pytest.mark.slow
def test_a_cluster_gives_the_same_rows_though_a_worker_is_killed(finished, toy, tmp_path):
    pytest.importorskip('distributed')
    out, busy = tmp_path/'o', tmp_path/'busy'
    (tmp_path/'grid.json').write_text(json.dumps(settings(toy)))
    (tmp_path/'go.py').write_text(ON_A_CLUSTER)
    r = subprocess.run([sys.executable, *map(str, (tmp_path/'go.py', tmp_path/'grid.json', out, busy))], capture_output=True, text=True, timeout=600,
                       env={**os.environ, 'PYTHONPATH': str(Path(__file__).parents[1])})
    assert r.returncode == 0, r.stderr[-2000:]
    assert [p.name for p in busy.iterdir()] == [(out/'killed').read_text()], 'one worker, and in training'
    assert {k: said(x) for k, x in trials(out).items()} == {k: said(x) for k, x in trials(finished).items()}


def test_a_cluster_that_is_not_there_is_told_in_one_line(toy, tmp_path, monkeypatch):
    distributed = pytest.importorskip('distributed')
    inner = distributed.Client
    monkeypatch.setattr(distributed, 'Client', lambda address, timeout: inner(address, timeout=timeout/20))
    with pytest.raises(GenrecError, match='tcp://127.0.0.1:9: no dask scheduler answers there'): run_grid(Grid(**settings(toy)), tmp_path/'o', cluster='tcp://127.0.0.1:9')


def test_a_failing_trial_does_not_stop_the_others(finished, toy, tmp_path, monkeypatch):
    shutil.copytree(finished/'work', tmp_path/'o'/'work')
    real = pipeline._train_trial
    def train(trial, *args):
        if trial.label == 'toy km ce seed 0': raise RuntimeError('out of memory')
        return real(trial, *args)
    monkeypatch.setattr(pipeline, '_train_trial', train)
    with pytest.raises(GenrecError, match='1 of the trials failed.*toy km ce seed 0: out of memory'): run_grid(Grid(**settings(toy)), tmp_path/'o')
    assert len(trials(tmp_path/'o')) == 3


def test_one_process_writes(finished, toy, tmp_path):
    from genrec_nb.experiments.results import _results_writer
    with _results_writer(tmp_path/'o'):
        with pytest.raises(GenrecError, match='is writing there; wait for it'): run_grid(Grid(**settings(toy)), tmp_path/'o')


def test_dry_run_lists_and_leaves_nothing(finished, toy, tmp_path):
    text = dry_run(Grid(**settings(toy)), tmp_path/'none')
    assert text.count('to do  ') == 4 and '4 of 4 are to do; no estimate' in text and not (tmp_path/'none').exists()
    text = dry_run(Grid(**settings(toy, seeds=[0, 1, 2])), finished)
    assert text.count('to do  ') == 2 and text.count('done  ') == 4 and '2 of 6 are to do; about 0 minutes' in text


# ---- data and decodings ------------------------------------------------------------------------------------------------

def timed(toy, folder):
    "The toy data as a table: the n-th item of every user is picked on day n, one user after the other"
    found = load_dataset(toy)
    x, n = found.interactions, found.interactions.lengths
    place = np.arange(len(x.items)) - np.repeat(x.offsets[:-1], n)
    folder.mkdir()
    table = dict(user=np.repeat(np.array(x.user_ids), n), item=np.array(found.catalog.ids)[x.items], time=place*86400 + np.repeat(np.arange(len(n)), n))
    pd.DataFrame(table).to_csv(folder/'interactions.csv', index=False)
    pd.DataFrame(dict(item=found.catalog.ids, title=found.catalog.texts)).to_csv(folder/'items.csv', index=False)
    return folder


def test_two_protocols_side_by_side(toy, tmp_path):
    "One folder split twice: by time the model ranks the last tenth and learns from nothing later than its first eight"
    folder = timed(toy, tmp_path/'shop')
    twice = Grid(**settings(toy, data={'users': dict(path=str(folder)), 'clock': dict(path=str(folder), split='time')}, weightings=['igd'], seeds=[1]))
    run_grid(twice, tmp_path/'o')
    by = {r['data']: r for r in trials(tmp_path/'o').values()}
    split = global_time(load_dataset(folder).interactions)
    about = next(l for l in lines(tmp_path/'o') if l['kind'] == 'data' and l['data'] == 'clock')
    for part, cases in (('valid', split.valid), ('test', split.test)):
        np.testing.assert_array_equal(_unpack(about[part]['targets']), cases.targets)
        np.testing.assert_array_equal(_unpack(about[part]['users']), cases.users)
    np.testing.assert_array_equal(_unpack(about['counts']), split.train.item_counts())
    rec = GenerativeRecommender.from_pretrained(tmp_path/'o'/'work'/by['clock']['trial']/'model')
    ranked = rec.rank(split.test, 20, DecodeConfig(alpha=.2))
    assert ranking_metrics(ranked, split.test.targets, (10,))['ndcg@10'] == pytest.approx(by['clock']['decodings']['0.2']['test']['metrics']['ndcg@10'])
    with pytest.raises(GenrecError, match='data.toy: .*needs times'): run_grid(Grid(**settings(toy, data={'toy': dict(path=str(toy), split='time')})), tmp_path/'q')


def test_a_sample_of_users(toy, tmp_path):
    "The same users of all trials, and fewer than all"
    run_grid(Grid(**settings(toy, data={'toy': dict(path=str(toy), users=20)}, weightings=['ce'])), tmp_path/'o')
    (about,) = [l for l in lines(tmp_path/'o') if l['kind'] == 'data']
    whole = leave_one_out(load_dataset(toy).interactions)
    for part, cases in (('valid', whole.valid), ('test', whole.test)):
        users = _unpack(about[part]['users'])
        assert len(users) == 20 < len(cases) and dict(zip(users, _unpack(about[part]['targets']))).items() <= dict(zip(cases.users, cases.targets)).items()
    assert {len(_unpack(r['decodings']['0']['test']['ranks'])) for r in trials(tmp_path/'o').values()} == {20}


def test_an_assistant_in_a_grid(finished, toy, tmp_path):
    "Decoding with a SASRec of the same seed: by hand from what is kept; training is the same"
    run_grid(Grid(**settings(toy, weightings=['igd'], seeds=[1], decode=dict(assistant_weight=.5))), tmp_path/'o')
    (row,) = trials(tmp_path/'o').values()
    plain = next(r for r in trials(finished).values() if (r['method'], r['seed']) == ('igd', 1))
    assert row['curve'] == plain['curve'] and row['decodings']['0'] != plain['decodings']['0']
    split = leave_one_out(load_dataset(toy).interactions)
    (kept,) = (p for p in (tmp_path/'o'/'work').glob('sasrec-*') if p.is_dir())
    rec = GenerativeRecommender.from_pretrained(tmp_path/'o'/'work'/row['trial']/'model')
    for a in (0., .2):
        ranked = rec.rank(split.test, 20, DecodeConfig(assistant_weight=.5, alpha=a), load_ranker(kept))
        assert row['decodings'][f'{a:g}']['test']['metrics']['ndcg@10'] == pytest.approx(ranking_metrics(ranked, split.test.targets, (10,))['ndcg@10'])


def test_given_identifiers(finished, toy, tmp_path):
    "A table made by a trial, given as a file, leads to the same figures"
    row = next(r for r in trials(finished).values() if r['method'] == 'ce' and r['seed'] == 0)
    made = finished/'identifiers'/digest([row['config']['data'], row['config']['ids']])/'index.json'
    shutil.copy(made, toy/'toy.made.index.json')
    run_grid(Grid(**settings(toy, weightings=['ce'], seeds=[0], ids=dict(made=dict(file='{path}/{name}.made.index.json')))), tmp_path/'o')
    (again,) = trials(tmp_path/'o').values()
    assert again['decodings']['0']['test'] == row['decodings']['0']['test'] and again['config']['ids'].startswith('file:')


def tuned(**t): return dict(tune={**dict(seeds=[9], values=dict(igd=dict(beta=[.1, .2])), untuned=['ce']), **t})


def test_a_search_is_run_first_and_only_its_choice_is_reported(finished, toy, tmp_path):
    "Three trials with the tuning seed; of IGD the setting that is best on validation goes on to the reported seed"
    out = shutil.copytree(finished, tmp_path/'o', ignore=shutil.ignore_patterns('results.jsonl'))
    grid = Grid(**settings(toy, seeds=[0], **tuned()))
    run_grid(grid, out)
    ran = [l for l in lines(out) if l['kind'] == 'trial']
    best = lambda r: max(d['valid']['metrics']['ndcg@10'] for d in r['decodings'].values())
    chosen = max((r for r in ran[:3] if r['method'] == 'igd'), key=best)['values']['beta']
    named = [(r['method'], r['seed'], r['values'].get('beta')) for r in ran]
    assert sorted(named[:3], key=str) == [('ce', 9, None), ('igd', 9, .1), ('igd', 9, .2)] and sorted(named[3:]) == [('ce', 0, None), ('igd', 0, chosen)]
    assert '0 of 5 are to do; nothing is left' in dry_run(grid, out)


# ---- mistakes ------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize('changes, what', [
    (dict(alhpas=[0]), "'alhpas' is unknown, did you mean 'alphas'"), (dict(weightings=['ce', 'igdd']), "'igdd'.* did you mean 'igd'"),
    (dict(weightings={'igd': dict(bta=.1)}), "weightings.igd: .*'bta'"), (dict(weightings={'igd': dict(beta=1.5)}), 'weightings.igd: beta is 1.5'),
    (dict(weightings={'a': dict(kind='igd'), 'b': dict(kind='igd')}), "'a' and 'b' are the same method"),
    (dict(train=dict(epoch=3)), "train: 'epoch' is unknown, did you mean 'epochs'"), (dict(train=dict(epochs=0)), 'epochs is 0'),
    (dict(train=dict(seed=0)), "'seed' is set by seeds"), (dict(decode=dict(alpha=.1)), "'alpha' is set by alphas"), (dict(decode=dict(beam=10)), "did you mean 'beams'"),
    (dict(alphas=[0, 2]), 'alphas.* is 2'), (dict(alphas=[]), 'alphas'), (dict(seeds=[0, 0]), 'stands twice'), (dict(seeds=[.5]), 'seeds.* is 0.5'),
    (dict(backbone='gpt'), 'backbone is'), (dict(reference='igd2'), 'reference'), (dict(metric='ndgc@10'), 'metric'), (dict(data=[]), 'data: name'),
    (dict(data={'toy': dict(pth='x')}), "data.toy: 'pth' is unknown, did you mean 'path'"), (dict(data={'toy': dict(users=0)}), 'data.toy: users is 0'),
    (dict(data={'toy': dict(columns=dict(usr='u'))}), "data.toy: columns: 'usr' is unknown, did you mean 'user'"),
    (dict(data={'toy': dict(split='tiem')}), "data.toy: split is 'tiem'"), (tuned(untuned=[]), 'ce has 1, igd has 2 trials'),
    (tuned(values=dict(igd=dict(beta=[.1, 2.]))), 'beta is 2'), (tuned(values=dict(igf=dict(beta=[.1]))), "tune.values: 'igf' is unknown, did you mean 'igd'"),
    (tuned(values=dict(igd=dict(gamma=[.1]))), "'gamma'"), (tuned(values=dict(igd={'train.lrr': [.1]})), "did you mean 'lr'"), (tuned(seed=[9]), "did you mean 'seeds'"),
    (dict(ids=['title']), "ids.title.*backbone 'llm'"), (dict(ids={'km': dict(method='rqkmeans', levles=2)}), "ids.km: .*'levles'"),
    (dict(encoder='tfidf'), 'set in each tokenizer'), (dict(ids={'km': dict(method='rqkmeans', vary=dict(size=[4, 4]), size=4)}), 'stands twice'),
    (dict(ids={'km': dict(method='rqkmeans', vary=dict(size=[4]), mode='all', size=4)}), "mode is 'all'"), (dict(ids={'km': dict(method='rqkmeans', vary=dict(size=[4]))}), 'size is varied: give its value'),
])
def test_mistakes_in_a_grid_are_told_before_any_work(toy, tmp_path, changes, what):
    (tmp_path/'g.json').write_text(json.dumps(settings(toy, **changes)))
    with pytest.raises(SettingError, match=what): read_grid(tmp_path/'g.json')


def test_mistakes_that_only_the_data_show(toy, tmp_path):
    bare, out = small_data(tmp_path/'bare', text=False), tmp_path/'o'
    random = dict(r=dict(method='random', size=8))
    for match, changes in (('no known data set', dict(data=['nowhere'])), ('tokenizers without text', dict(data={'bare': dict(path=str(bare))})),
                           ('weighting fg', dict(data={'bare': dict(path=str(bare))}, weightings=['fg'], ids=random)), ('no such file', dict(ids=dict(x=dict(file='{path}/{name}.index.json')))),
                           ('ids.km.*40 items are too few for 64 codes', dict(ids={'km': dict(method='rqkmeans', encoder='tfidf', size=64)}))):
        with pytest.raises(GenrecError, match=match): run_grid(Grid(**settings(toy, **changes)), out)
        assert not out.exists()


def test_toml_and_json_say_the_same(toy, tmp_path):
    import tomli_w
    (tmp_path/'g.json').write_text(json.dumps(settings(toy)))
    (tmp_path/'g.toml').write_text(tomli_w.dumps(settings(toy)))
    assert read_grid(tmp_path/'g.json') == read_grid(tmp_path/'g.toml')
    (tmp_path/'bad.toml').write_text('alphas = [0,\nseeds = ')
    with pytest.raises(GenrecError, match='bad.toml'): read_grid(tmp_path/'bad.toml')


# ---- sweeps --------------------------------------------------------------------------------------------------------------

def swept(toy, **vary):
    "RQ-KMeans in two sizes and two depths, and random identifiers"
    return Grid(**settings(toy, weightings=[], overlap=str(toy/'near.npy'), ids=dict(km=dict(method='rqkmeans', encoder='tfidf', size=10, levels=3, vary=dict(size=[4, 8], levels=[2]), **vary),
                                                                                 random=dict(method='random', levels=3, size=10))))


def test_a_star_varies_one_at_a_time_and_a_grid_all():
    vary, base = dict(a=[1, 2], b=[0, 5]), dict(a=1, b=3)
    assert _points(vary, base) == [dict(a=1, b=3), dict(a=2, b=3), dict(a=1, b=0), dict(a=1, b=5)]
    assert _points(vary, base, 'grid') == [dict(a=a, b=b) for a in (1, 2) for b in (0, 5)]


def test_identifiers_are_measured_and_not_twice(toy, tmp_path, monkeypatch):
    results = run_grid(swept(toy), tmp_path/'o')
    assert {t['ids'] for t in results.tokens.values()} == {'km', 'km size=4', 'km size=8', 'km levels=2', 'random'} and len(results.tokens) == 10 and not results.trials
    assert str(toy) not in (tmp_path/'o'/'results.jsonl').read_text()
    cf = np.load(toy/'near.npy')
    unit = cf/np.linalg.norm(cf, axis=1, keepdims=True)
    for t in results.tokens.values():
        if t['ids'] == 'random': continue
        codes, m = np.load(tmp_path/'o'/'identifiers'/digest([t['config']['data'], t['config']['ids']])/'codes.npy'), t['measures']
        assert m['before'] == pytest.approx(1 - len({tuple(c) for c in codes.tolist()})/40) and m['after'] == 0
        assert m['used'] == [len(set(c)) for c in codes.T.tolist()]
        share = np.unique(codes[:, 0], return_counts=True)[1]/40
        assert m['perplexity'][0] == pytest.approx(np.prod(share**-share))
        near = [max((j for j in range(40) if j != i), key=lambda j: float(unit[i] @ unit[j])) for i in range(40)]
        assert m['overlap_any'] == pytest.approx(np.mean([(codes[i] == codes[j]).any() for i, j in enumerate(near)]))
    monkeypatch.setattr(execution, '_measure_identifiers', lambda *a: 1/0)
    assert len(run_grid(swept(toy), tmp_path/'o').tokens) == 10


def test_vectors_of_a_recommender_are_trained_once_and_from_training_alone(toy, tmp_path):
    letter = dict(method='letter', encoder='tfidf', levels=2, size=8, clusters=2, steps=20, hidden=[8], cf='lightgcn', alpha=.1, vary=dict(alpha=[.5]))
    def run(data, out): return run_grid(Grid(**settings(data, weightings=[], seeds=[0], overlap='lightgcn', ids=dict(letter=letter))), out)
    a = run(toy, tmp_path/'a')
    assert len(list((tmp_path/'a'/'identifiers').glob('vectors-*.safetensors'))) == 1
    change_held_out(shutil.copytree(toy, tmp_path/'toy'))
    b = run(tmp_path/'toy', tmp_path/'b')
    assert not set(a.tokens) & set(b.tokens)                                    # other data, other rows
    assert [t['measures'] for t in a.tokens.values()] == [t['measures'] for t in b.tokens.values()]


# ---- language models -----------------------------------------------------------------------------------------------------

@pytest.fixture(scope='module')
def tiny(tmp_path_factory):
    "A tiny language model in a folder"
    from genrec_nb.backbones import tiny_llama
    folder = tmp_path_factory.mktemp('lm')/'tiny'
    for part in tiny_llama(['Item 1', 'Item 20'], 280): part.save_pretrained(folder)
    return folder


def written(toy, tiny, **changes):
    "A grid of titles by a language model, two methods"
    return {**dict(data={'toy': dict(path=str(toy), users=12)}, ids={'title': dict(method='title')}, weightings=['ce', 'igd'], alphas=[0, .2], seeds=[0], backbone='llm',
                   model=dict(base=str(tiny), r=4, max_items=3, max_tokens=300), train=dict(epochs=1, samples_per_epoch=16, eval_users=4, batch_size=8, accumulate=1), decode=dict(beams=20)), **changes}


def test_a_grid_with_a_language_model(toy, tiny, tmp_path, monkeypatch):
    "What is kept is read and decoded again, with the same figures; rows name no folder"
    results = run_grid(Grid(**written(toy, tiny)), tmp_path/'o')
    first = {k: r['decodings'] for k, r in results.trials.items()}
    assert len(first) == 2 and str(tiny) not in (tmp_path/'o'/'results.jsonl').read_text()
    assert {r['config']['model']['base'][:7] for r in results.trials.values()} == {'folder:'}
    monkeypatch.setattr(GenerativeRecommender, 'fit', None)                     # nothing is trained any more
    (tmp_path/'o'/'results.jsonl').unlink()
    for ranked in (tmp_path/'o').glob('work/*/ranked/*'): ranked.unlink()
    assert {k: r['decodings'] for k, r in run_grid(Grid(**written(toy, tiny)), tmp_path/'o').trials.items()} == first


def test_a_trial_is_named_by_the_language_model_it_holds(toy, tiny, tmp_path):
    "The same content in another folder is the same; other weights are not"
    from genrec_nb.backbones import tiny_llama
    keys = lambda grid: {t.key for _, t in _make_plan(grid).trials}
    shutil.copytree(tiny, tmp_path/'copy')
    here = keys(Grid(**written(toy, tiny)))
    assert keys(Grid(**written(toy, tmp_path/'copy'))) == here and len(here) == 2
    tiny_llama(['Item 1', 'Item 20'], 280, seed=1)[0].save_pretrained(tmp_path/'copy')
    assert not here & keys(Grid(**written(toy, tmp_path/'copy'))) and not here & keys(Grid(**written(toy, tiny, seeds=[1])))


@pytest.mark.parametrize('changes, what', [
    (dict(backbone='t5', model={}), "title identifiers"), (dict(model=dict(bsae='x')), "did you mean 'base'"), (dict(ids={'t': dict(method='title', lm='other')}), 'name one of the two'),
    (dict(data={'toy': dict(path='x', model=dict(base='y'))}), 'its base stands in model'), (dict(model=dict(tasks=['item2index'])), 'tasks'),
    (dict(ids=['random'], weightings=['ce', 'cft'], model=dict(tasks=['item2index'])), 'cft blanks'),
    (dict(tune=dict(seeds=[9], values=dict(igd={'model.base': ['a', 'b']}), untuned=['ce'])), "'model.base' cannot be searched"),
    (dict(tune=dict(seeds=[9], values=dict(igd={'model.rr': [2, 4]}), untuned=['ce'])), "'rr'")])
def test_mistakes_about_language_models_in_a_grid(toy, tiny, changes, what):
    with pytest.raises(SettingError, match=what): Grid(**written(toy, tiny, **changes))


def test_a_language_model_that_is_not_there_is_told_before_any_trial(toy, tmp_path):
    with pytest.raises(GenrecError, match='no/such/model'): dry_run(Grid(**written(toy, 'no/such/model')), tmp_path/'o')


def test_a_weighting_that_changes_nothing_is_told():
    "IGD-tuning over children is plain cross-entropy; over the vocabulary it is not"
    how = dict(data=['ml-100k'], ids={'km': dict(method='rqkmeans', encoder='tfidf')}, weightings=['ce', 'igd'])
    assert list(Grid(**how).notes) == ['igd'] and 'plain cross-entropy' in Grid(**how).notes['igd']
    assert Grid(**how, model=dict(softmax='vocabulary')).notes == {}
