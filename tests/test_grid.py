"Grids of trainings: killed, shared, merged, contradicted; settings chosen on validation; reports that follow from the rows alone."
import json
import math
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, strategies as st
from oracles import quick
from test_run import one_line, small_data
import genrec_nb.experiments.grid as compare
from genrec_nb.experiments.grid import Block, Claim, Grid, MACHINE, Writer, compare_table, decoding_table, dry_run, last_plan, pack, plot_alphas, plot_curves, plot_mixtures, plot_ranks, read_rows, report_html, run_all, trial_table, two_by_two, unpack, work, write_report
from genrec_nb.core import digest, plain
from genrec_nb.sequential_baselines import load_ranker
from genrec_nb.core import GenrecError
from genrec_nb.data import global_time, leave_one_out
from genrec_nb.loaders import load_dataset
from genrec_nb.beam_search import DecodeConfig
from genrec_nb.metrics import ranking_metrics
from genrec_nb.generators import BACKBONES
from genrec_nb.train import rank_cases

SMALL = dict(ids={'km': dict(method='rqkmeans', encoder='tfidf', levels=2, size=6)}, encoder='tfidf', model=dict(d_model=16, num_heads=2, num_layers=1), train=dict(epochs=3, batch_size=16, eval_every=1))
silent = lambda text: None


def settings(folder, **changes):
    "A grid of four cells, a second each"
    return {**dict(data={'toy': dict(path=str(folder))}, weightings=['ce', 'igd'], alphas=[0, .2], seeds=[0, 1]), **SMALL, **changes}


def lines(folder): return [json.loads(l) for f in sorted(Path(folder).glob('*.jsonl')) for l in f.read_text().splitlines()]
def cells(folder): return {l['cell']: l for l in lines(folder) if l['kind'] == 'cell'}


def said(row):
    "What a row says, without when and where"
    return {k: v for k, v in row.items() if k not in ('seconds', 'machine', 'versions', 'device')}


@pytest.fixture(scope='module')
def toy(tmp_path_factory): return small_data(tmp_path_factory.mktemp('data')/'toy')


@pytest.fixture(scope='module')
def finished(toy, tmp_path_factory):
    "A folder with every cell of a small grid"
    folder = tmp_path_factory.mktemp('compare')/'out'
    run_all(Grid(**settings(toy)), folder, say=silent)
    return folder


@pytest.fixture(scope='module')
def searched(toy, tmp_path_factory):
    "A folder with a search of two trials a method, and a method that mixes losses"
    folder = tmp_path_factory.mktemp('search')/'out'
    tune = dict(seeds=[7, 8], values=dict(igd=dict(beta=[.1, .6]), pos=dict(beta=[.2, .7]), multi=dict(half_life=[1, 20])), untuned=['ce'])
    run_all(Grid(**settings(toy, weightings=['ce', 'igd', 'pos', 'multi'], tune=tune)), folder, say=silent)
    return folder


def timed(toy, folder):
    "The toy data as a table: the n-th item of every user is picked on day n, one user after the other"
    found = load_dataset(toy)
    x, n = found.interactions, found.interactions.lengths
    place = np.arange(len(x.items)) - np.repeat(x.offsets[:-1], n)
    folder.mkdir()
    pd.DataFrame(dict(user=np.repeat(np.array(x.user_ids), n), item=np.array(found.catalog.ids)[x.items], time=place*86400 + np.repeat(np.arange(len(n)), n))).to_csv(folder/'interactions.csv', index=False)
    pd.DataFrame(dict(item=found.catalog.ids, title=found.catalog.texts)).to_csv(folder/'items.csv', index=False)
    return folder


def test_two_protocols_side_by_side(toy, tmp_path):
    "One folder split twice: leave-one-out is the cell that stood there, by time the model ranks the last tenth and learns from nothing later than its first eight"
    folder = timed(toy, tmp_path/'shop')
    one = dict(weightings=['igd'], seeds=[1])
    run_all(Grid(**settings(folder, **one)), tmp_path/'p', say=silent)
    twice = Grid(**settings(toy, data={'users': dict(path=str(folder), split='leave-one-out'), 'clock': dict(path=str(folder), split='time')}, **one))
    run_all(twice, tmp_path/'o', say=silent)
    by = {r['data']: r for r in cells(tmp_path/'o').values()}
    (old,) = cells(tmp_path/'p').values()
    assert by['users']['cell'] == old['cell'] != by['clock']['cell'] and by['users']['decodings'] == old['decodings']
    split = global_time(load_dataset(folder).interactions)
    about = {l['digest']: l for l in lines(tmp_path/'o') if l['kind'] == 'data'}[by['clock']['config']['data']]
    for part, cases in (('valid', split.valid), ('test', split.test)):
        np.testing.assert_array_equal(unpack(about[part]['targets']), cases.targets)
        np.testing.assert_array_equal(unpack(about[part]['users']), cases.users)
    np.testing.assert_array_equal(unpack(about['counts']), split.train.item_counts())
    shared = compare.Shared(twice, tmp_path/'o'/'cache')
    cell = next(c for c in twice.plan(shared).cells(compare.Rows(tmp_path/'o').refresh()) if c.data == 'clock')
    ids, trie, gain = shared.structure(cell)
    model = BACKBONES['packed'].load(tmp_path/'o'/'work'/by['clock']['cell']/'model', ids, 'cpu')
    ranked = rank_cases(model, trie, split.test, DecodeConfig(alpha=.2), gain, 20)
    assert ranking_metrics(ranked, split.test.targets, (10,))['ndcg@10'] == pytest.approx(by['clock']['decodings']['0.2']['test']['metrics']['ndcg@10'])
    page = report_html(read_rows(tmp_path/'o'))
    assert 'Test cases, the last tenth of all samples by time' in page and 'Test users, at the setting' in page
    with pytest.raises(GenrecError, match=r"data.toy.split.*'tiem'.*time"): Grid(**settings(toy, data={'toy': dict(path=str(toy), split='tiem')}))
    with pytest.raises(GenrecError, match='data.toy: a split by time needs times'): run_all(Grid(**settings(toy, data={'toy': dict(path=str(toy), split='time')})), tmp_path/'q', say=silent)


def test_a_draw_of_users(toy, tmp_path):
    "The same users of all cells, other rows than those of all users, and fewer than those"
    grid = lambda **d: Grid(**settings(toy, data={'toy': dict(path=str(toy), **d)}, weightings=['ce'], seeds=[0, 1]))
    run_all(grid(users=20), tmp_path/'o', say=silent)
    (about,) = [l for l in lines(tmp_path/'o') if l['kind'] == 'data']
    whole = leave_one_out(load_dataset(toy).interactions)
    for part, cases in (('valid', whole.valid), ('test', whole.test)):
        users = unpack(about[part]['users'])
        assert len(users) == 20 < len(cases) and set(users) < set(cases.users) and dict(zip(users, unpack(about[part]['targets']))).items() <= dict(zip(cases.users, cases.targets)).items()
    assert {len(unpack(r['decodings']['0']['test']['ranks'])) for r in cells(tmp_path/'o').values()} == {20}
    run_all(grid(), tmp_path/'o', say=silent)
    assert len(cells(tmp_path/'o')) == 4 and 'Test users (drawn once)' not in report_html(read_rows(tmp_path/'o'))
    for bad in (0, -1, 'all', True):
        with pytest.raises(GenrecError, match='data.toy.users is'): grid(users=bad)


def test_an_adviser_in_a_grid(finished, toy, tmp_path):
    "Decoding with a SASRec of the same seed: by hand from what is kept; training does not hear of it"
    grid = Grid(**settings(toy, weightings=['igd'], seeds=[1], decode=dict(assistant_weight=.5)))
    run_all(grid, tmp_path/'o', say=silent)
    (row,) = cells(tmp_path/'o').values()
    plain = next(r for r in cells(finished).values() if (r['method'], r['seed']) == ('igd', 1))
    assert row['curve'] == plain['curve'] and row['decodings']['0'] != plain['decodings']['0']
    data = load_dataset(toy)
    split = leave_one_out(data.interactions)
    (kept,) = (tmp_path/'o'/'cache').glob('sasrec-*-1')
    shared = compare.Shared(grid, tmp_path/'o'/'cache')
    (cell,) = grid.plan(shared).cells(compare.Rows(tmp_path/'o').refresh())
    ids, trie, gain = shared.structure(cell)
    model, scores = BACKBONES['packed'].load(tmp_path/'o'/'work'/row['cell']/'model', ids, 'cpu'), load_ranker(kept).scores(split.test)
    for a in (0., .2):
        ranked = rank_cases(model, trie, split.test, DecodeConfig(assistant_weight=.5, alpha=a), gain, 20, assistant=scores)
        assert row['decodings'][f'{a:g}']['test']['metrics']['ndcg@10'] == pytest.approx(ranking_metrics(ranked, split.test.targets, (10,))['ndcg@10'])


# ---- small parts ---------------------------------------------------------------------------------------------------

@quick
@given(st.lists(st.integers(0, 2**32 - 1) | st.integers(0, 20), max_size=60))
def test_packed_numbers_come_back(x): assert unpack(pack(x)).tolist() == x


def test_a_digest_knows_values_not_spelling():
    assert digest(dict(a=0, b=[1.0, .5])) == digest(dict(b=[1, .5], a=0.)) != digest(dict(a=0, b=[.5, 1]))
    assert plain(dict(a=np.float64(2), b=(np.int64(3), 'x'), c=True)) == dict(a=2, b=[3, 'x'], c=True)


# ---- claims ----------------------------------------------------------------------------------------------------------

def test_one_of_many_gets_a_claim(tmp_path):
    got = []
    def go():
        c = Claim(tmp_path/'c')
        if c.take(): got.append(c)
    threads = [threading.Thread(target=go) for _ in range(20)]
    for t in threads: t.start()
    for t in threads: t.join()
    assert len(got) == 1 and not Claim(tmp_path/'c').take()
    got[0].release()
    assert Claim(tmp_path/'c').take()


def dead_pid():
    p = subprocess.Popen([sys.executable, '-c', ''])
    p.wait()
    return p.pid


@pytest.mark.parametrize('who, age, free', [(dict(machine=MACHINE, pid='dead'), 0, True), (dict(machine=MACHINE, pid='me'), 0, False), (dict(machine='other', pid=1), 0, False),
                                            (dict(machine='other', pid=1), 601, True), (dict(machine=MACHINE, pid='me'), 601, True)])
def test_claims_of_the_dead_are_void(tmp_path, who, age, free):
    path = tmp_path/'c'
    path.write_text(json.dumps(dict(who, pid=dict(dead=dead_pid(), me=os.getpid()).get(who['pid'], who['pid']), token='x')))
    os.utime(path, (time.time() - age,)*2)
    assert Claim(path).take() is free


def test_half_written_claims_wait_for_their_age(tmp_path):
    (tmp_path/'c').write_text('{"mach')
    assert not Claim(tmp_path/'c').take()
    os.utime(tmp_path/'c', (1, 1))
    assert Claim(tmp_path/'c').take()


def test_a_dead_claim_is_inherited_once(tmp_path):
    "Many see the same dead claim at once: one takes it over"
    path, got, start = tmp_path/'c', [], threading.Barrier(16)
    path.write_text(json.dumps(dict(machine=MACHINE, pid=dead_pid(), token='x')))
    def go():
        c = Claim(path)
        start.wait()
        if c.take(): got.append(c)
    threads = [threading.Thread(target=go) for _ in range(16)]
    for t in threads: t.start()
    for t in threads: t.join()
    assert len(got) == 1 and json.loads(path.read_text())['token'] == got[0].token and [p.name for p in tmp_path.iterdir()] == ['c']


# ---- running -----------------------------------------------------------------------------------------------------------

def test_rows_hold_what_they_promise(finished, toy):
    rows = cells(finished)
    assert len(rows) == 4 and {(r['method'], r['seed']) for r in rows.values()} == {(m, s) for m in ('ce', 'igd') for s in (0, 1)}
    for key, r in rows.items():
        assert key == digest(r['config']) and r['config']['train']['epochs'] == 3 and r['config']['weighting']['kind'] in ('uniform', 'igd')
        assert list(r['decodings']) == ['0', '0.2'] and {'genrec_nb', 'commit', 'threads', 'torch'} <= set(r['versions']) and r['device'] and r['seconds']['train'] > 0
        assert [e for e, _ in r['curve']['ndcg@10']] == [1, 2, 3] and len(r['curve']['loss']) == 3
        for d in r['decodings'].values():
            for part in ('valid', 'test'): assert len(unpack(d[part]['ranks'])) == 77 and {'ndcg@10', 'recall@20', 'coverage@10'} <= set(d[part]['metrics'])
    data = [l for l in lines(finished) if l['kind'] == 'data']
    inter = json.loads((toy/'toy.inter.json').read_text())
    assert len(data) == 1 and unpack(data[0]['test']['targets']).tolist() == [h[-1] for h in inter.values() if len(h) > 2]
    assert str(toy) not in ''.join(f.read_text() for f in finished.glob('*.jsonl')), 'rows must not hold paths'


def test_finished_cells_are_never_run_again(finished, toy, monkeypatch):
    def fail(*args, **kwargs): raise AssertionError('a finished cell was run')
    monkeypatch.setattr(compare, 'run_cell', fail)
    before = {f.name: f.read_bytes() for f in finished.glob('*.jsonl')}
    assert len(run_all(Grid(**settings(toy)), finished, say=silent)) == 8
    assert work(Grid(**settings(toy)), finished, say=silent) == 0
    assert {f.name: f.read_bytes() for f in finished.glob('*.jsonl')} == before


def test_a_new_alpha_needs_no_new_training(finished, toy, tmp_path, monkeypatch):
    import shutil
    folder = tmp_path/'out'
    shutil.copytree(finished, folder)
    def fail(*args, **kwargs): raise AssertionError('trained again')
    monkeypatch.setattr(compare, 'fit', fail)
    rows = run_all(Grid(**settings(toy, alphas=[0, .2, .4])), folder, say=silent)
    assert all(set(r['decodings']) == {'0', '0.2', '0.4'} for r in rows.cells.values())
    assert [list(l['decodings']) for l in lines(folder) if l['kind'] == 'cell'][-4:] == [['0.4']]*4


def test_the_same_data_elsewhere_is_the_same_data(finished, tmp_path, monkeypatch):
    "Cells are named by content, so another machine's rows count wherever its folders are"
    other = small_data(tmp_path/'moved'/'toy')
    monkeypatch.setattr(compare, 'run_cell', lambda *a, **k: 1/0)
    assert work(Grid(**settings(other)), finished, say=silent) == 0


def test_figures_do_not_depend_on_the_order_of_cells(finished, toy, tmp_path):
    work(Grid(**settings(toy, seeds=[1], weightings=['igd'])), tmp_path/'o', say=silent)
    (row,) = cells(tmp_path/'o').values()
    assert said(row) == said(cells(finished)[row['cell']])


def test_two_processes_share_the_work(finished, toy, tmp_path):
    run_all(Grid(**settings(toy)), tmp_path/'o', jobs=2, say=silent)
    found = [l for l in lines(tmp_path/'o') if l['kind'] == 'cell']
    assert sorted(r['cell'] for r in found) == sorted(cells(finished))                # each once
    for r in found: assert said(r) == said(cells(finished)[r['cell']])
    assert not list((tmp_path/'o'/'claims').iterdir())


SLOW = '''
import sys, time
import genrec_nb.experiments.grid as compare
from genrec_nb.core import read_json

class Slow(compare.Steps):
    def on_step_end(self, *args, **kwargs): time.sleep(.03)

compare.Steps = Slow
from genrec_nb.run import Silent
compare.work(compare.Grid(**read_json(sys.argv[1])), sys.argv[2], Silent())
'''


@pytest.mark.parametrize('moment', ['in training', 'between training and decoding'])
def test_killed_and_resumed_gives_the_same_rows(finished, toy, tmp_path, moment):
    out, given = tmp_path/'out', tmp_path/'grid.json'
    given.write_text(json.dumps(settings(toy)))
    p = subprocess.Popen([sys.executable, '-c', SLOW, str(given), str(out)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    wanted = 'work/*/checkpoints/checkpoint-*/trainer_state.json' if moment == 'in training' else 'work/*/model/config.json'
    until = time.monotonic() + 120
    while p.poll() is None and time.monotonic() < until and not list(out.glob(wanted)): time.sleep(.01)
    assert p.poll() is None, 'it ended before it could be killed'
    p.send_signal(signal.SIGKILL); p.wait()
    assert len(cells(out)) < 4
    run_all(Grid(**settings(toy)), out, say=silent)
    assert {k: said(r) for k, r in cells(out).items()} == {k: said(r) for k, r in cells(finished).items()}


def test_a_failing_cell_does_not_stop_the_others(toy, tmp_path, monkeypatch):
    real, told = compare.run_cell, []
    def run(cell, *args, **kwargs):
        if cell.method == 'ce' and cell.seed == 0: raise RuntimeError('out of memory')
        return real(cell, *args, **kwargs)
    monkeypatch.setattr(compare, 'run_cell', run)
    with pytest.raises(GenrecError, match='1 of the cells failed.*toy km ce seed 0: out of memory'): work(Grid(**settings(toy)), tmp_path/'o', say=told.append)
    assert len(cells(tmp_path/'o')) == 3 and any('failed' in t for t in told) and not list((tmp_path/'o'/'claims').iterdir())


def test_dry_run_lists_and_leaves_nothing(finished, toy, tmp_path):
    text = dry_run(Grid(**settings(toy)), tmp_path/'none')
    assert text.count('to do') == 4 and '0 of 4 cells done' in text and 'no estimate' in text and not (tmp_path/'none').exists()
    text = dry_run(Grid(**settings(toy, seeds=[0, 1, 2])), finished)
    assert text.count('to do') == 2 and text.count('done ') >= 4 and '4 of 6 cells done; about 0 minutes' in text


# ---- files ---------------------------------------------------------------------------------------------------------------

def test_rows_of_two_machines_are_merged(finished, tmp_path):
    "Each machine did half; a cell that both did counts once"
    all_lines = (next(finished.glob('*.jsonl'))).read_text().splitlines(keepends=True)
    about, rows = all_lines[:2], all_lines[2:]
    (tmp_path/'a.jsonl').write_text(''.join(about + rows[:3]))
    (tmp_path/'b.jsonl').write_text(''.join(about + rows[2:]))
    both = read_rows(tmp_path/'b.jsonl', tmp_path/'a.jsonl')
    assert len(both) == 8 and len(both.data) == 1 and not both.notes
    assert report_html(both) == report_html(read_rows(finished)) == report_html(read_rows(tmp_path))


def test_rows_that_contradict_are_refused_by_name(finished, tmp_path):
    f = next(finished.glob('*.jsonl'))
    row = json.loads(f.read_text().splitlines()[-1])
    ranks = unpack(row['decodings']['0']['test']['ranks'])
    ranks[3] = (ranks[3] + 1) % 20
    row['decodings']['0']['test']['ranks'] = pack(ranks)
    (tmp_path/'other.jsonl').write_text(json.dumps(row) + '\n')
    with pytest.raises(GenrecError, match=r'line 1: cell .*seed 1, alpha 0\) is there already with other figures \(.*\.jsonl, line 6\)'): read_rows(f, tmp_path/'other.jsonl')


def test_a_torn_last_line_is_told_and_runs_again(finished, toy, tmp_path):
    name = next(finished.glob('*.jsonl')).name
    (tmp_path/name).write_bytes((finished/name).read_bytes()[:-200])
    rows = read_rows(tmp_path)
    assert len(rows.cells) == 3 and len(rows.notes) == 1 and 'torn' in rows.notes[0]
    told = []
    assert work(Grid(**settings(toy)), tmp_path, say=told.append) == 1 and any('torn' in t for t in told)
    assert {k: said(r) for k, r in cells(tmp_path).items()} == {k: said(r) for k, r in cells(finished).items()}


def test_a_whole_line_without_its_end_is_kept(finished, tmp_path):
    name = next(finished.glob('*.jsonl')).name
    (tmp_path/name).write_bytes((finished/name).read_bytes()[:-1])
    assert len(read_rows(tmp_path).cells) == 4
    w = Writer(tmp_path)
    if w.path.name == name: w.append(dict(kind='sweep', n=0, digest='x', record={}))
    w.close()
    assert len(read_rows(tmp_path).cells) == 4


def test_a_broken_line_inside_is_named(finished, tmp_path):
    body = next(finished.glob('*.jsonl')).read_text().splitlines(keepends=True)
    (tmp_path/'r.jsonl').write_text(''.join(body[:3] + ['{"kind": "cel\n'] + body[3:]))
    with pytest.raises(GenrecError, match='r.jsonl, line 4'): read_rows(tmp_path)
    with pytest.raises(GenrecError, match='no such file'): read_rows(tmp_path/'nowhere')
    (tmp_path/'empty').mkdir()
    with pytest.raises(GenrecError, match='no result rows'): read_rows(tmp_path/'empty')


# ---- mistakes ------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize('changes, what', [
    (dict(alhpas=[0]), "'alhpas' is unknown, did you mean 'alphas'"),
    (dict(weightings=['ce', 'igdd']), "weightings.igdd: weighting 'igdd' is unknown, did you mean 'igd'"),
    (dict(weightings={'igd': dict(bta=.1)}), "weightings.igd: weighting 'igd' has no setting 'bta', expected one of .*beta"),
    (dict(weightings={'igd': dict(beta=1.5)}), 'weightings.igd: beta is 1.5'),
    (dict(weightings={'a': dict(kind='igd'), 'b': dict(kind='igd')}), "'a' and 'b' are the same method"),
    (dict(train=dict(epoch=3)), "train: 'epoch' is unknown, did you mean 'epochs'"),
    (dict(train=dict(epochs=0)), 'epochs is 0'),
    (dict(train=dict(seed=0)), "'seed' is set by seeds"),
    (dict(decode=dict(alpha=.1)), "'alpha' is set by alphas"),
    (dict(decode=dict(beam=10)), "did you mean 'beams'"),
    (dict(alphas=[0, 2]), 'alphas: found 2'),
    (dict(alphas=[]), 'alphas'),
    (dict(seeds=[0, 0]), 'stands twice'),
    (dict(seeds=[.5]), 'seeds: found 0.5'),
    (dict(backbone='gpt'), 'backbone'),
    (dict(reference='igd2'), 'reference'),
    (dict(metric='ndgc@10'), 'metric'),
    (dict(data=[]), 'data'),
    (dict(data={'toy': dict(pth='x')}), "data.toy: 'pth' is unknown, did you mean 'path'"),
    (dict(tune=dict(seeds=[9], values=dict(igd=dict(beta=[.1, .2])))), 'ce has 1, igd has 2 trials'),
    (dict(tune=dict(seeds=[9], values=dict(igd=dict(beta=[.1, 2.])), untuned=['ce'])), 'beta is 2'),
    (dict(tune=dict(seeds=[9], values=dict(igf=dict(beta=[.1])), untuned=['ce'])), "tune.values: 'igf' is unknown, did you mean 'igd'"),
    (dict(tune=dict(seeds=[9], values=dict(igd=dict(gamma=[.1])), untuned=['ce'])), "'gamma'"),
    (dict(tune=dict(seeds=[9], values=dict(igd={'train.lrr': [.1]}), untuned=['ce'])), "did you mean 'lr'"),
    (dict(tune=dict(seed=[9], values={})), "did you mean 'seeds'"),
])
def test_mistakes_in_a_grid_are_told_before_any_work(toy, tmp_path, changes, what):
    (tmp_path/'g.json').write_text(json.dumps(settings(toy, **changes)))
    with pytest.raises(GenrecError, match=what): Grid.read(tmp_path/'g.json')


def test_mistakes_that_only_the_data_show(toy, tmp_path):
    bare = small_data(tmp_path/'bare', text=False)
    out = tmp_path/'o'
    def refused(match, **changes):
        with pytest.raises(GenrecError, match=match): run_all(Grid(**settings(toy, **changes)), out, say=silent)
        assert not out.exists()
    refused('neither a known data set', data=['nowhere'])
    refused('no item texts to learn', data={'bare': dict(path=str(bare))})
    refused("no item texts, but weighting 'fg' looks at item vectors", data={'bare': dict(path=str(bare))}, weightings=['fg'], ids=dict(r=dict(method='random')))
    refused('no such file', ids=dict(x=dict(file='{path}/{name}.index.json')))
    with pytest.raises(GenrecError, match='jobs is 0'): run_all(Grid(**settings(toy)), out, jobs=0)


def test_equal_budgets_are_enforced_and_said(searched):
    page = report_html(read_rows(searched))
    assert 'Each method had 2 trials' in page and 'No tuning seed is reported' in page and 'Nothing of its own to search for: ce' in page


def test_toml_and_json_say_the_same(toy, tmp_path, monkeypatch):
    (tmp_path/'g.json').write_text(json.dumps(settings(toy)))
    (tmp_path/'g.toml').write_text(f"""
weightings = ["ce", "igd"]
alphas = [0.0, 0.2]
seeds = [0, 1]
encoder = "tfidf"
model = {{ d_model = 16, num_heads = 2, num_layers = 1 }}
[data.toy]
path = {json.dumps(str(toy))}
[ids.km]
method = "rqkmeans"
encoder = "tfidf"
levels = 2
size = 6
[train]
epochs = 3
batch_size = 16
eval_every = 1
""")
    pytest.importorskip('tomllib')
    assert Grid.read(tmp_path/'g.json') == Grid.read(tmp_path/'g.toml')
    (tmp_path/'bad.toml').write_text('alphas = [0,\nseeds = ')
    with pytest.raises(GenrecError, match='bad.toml'): Grid.read(tmp_path/'bad.toml')
    monkeypatch.setitem(sys.modules, 'tomllib', None)
    with pytest.raises(GenrecError, match='Python 3.11 or newer.*as JSON'): Grid.read(tmp_path/'g.toml')
    with pytest.raises(GenrecError, match='ends in .toml or .json'): Grid.read(toy)


# ---- what validation chose, and what the report says -------------------------------------------------------------------

def test_validation_alone_chooses(searched):
    "The best mean over tuning seeds, recomputed from the ranks by loops; and test ranks may be anything"
    rows = read_rows(searched)
    b = Block(rows)
    value = lambda ranks: sum(1/math.log2(r + 2) for r in ranks if r < 10)/len(ranks)
    for m in b.methods:
        best = {}
        for r in rows.cells.values():
            if r['method'] == m and r['seed'] in (7, 8):
                for a, d in r['decodings'].items(): best.setdefault((json.dumps(r['values']), float(a)), []).append(value(unpack(d['valid']['ranks'])))
        assert len(best) == (2 if m == 'ce' else 4) and all(len(v) == 2 for v in best.values())
        values, alpha = max(best, key=lambda k: sum(best[k]))
        assert (b.values[m], b.alpha[m]) == (json.loads(values), alpha)
    for r in rows.cells.values():
        for d in r['decodings'].values(): d['test'] = dict(d['test'], ranks=pack(np.zeros(77, int)))
    again = Block(rows)
    assert (again.values, again.alpha) == (b.values, b.alpha)


def test_without_a_search_the_reported_seeds_choose_alpha(finished):
    rows = read_rows(finished)
    b = Block(rows)
    for m in b.methods:
        score = {a: np.mean([r['decodings'][a]['valid']['metrics']['ndcg@10'] for r in rows.cells.values() if r['method'] == m]) for a in ('0', '0.2')}
        assert f'{b.alpha[m]:g}' == max(score, key=score.get)
    assert 'No search' in report_html(rows)


def test_the_table_follows_from_the_ranks(searched):
    "Means, differences, head and tail, and Holm, by loops"
    rows = read_rows(searched)
    b = Block(rows)
    data = next(iter(rows.data.values()))
    users, targets, counts = unpack(data['test']['users']), unpack(data['test']['targets']), unpack(data['counts']).tolist()
    order = sorted(range(len(counts)), key=lambda i: (-counts[i], i))
    head = set(order[:len(counts) - math.ceil(.8*len(counts) - 1e-9)])
    gain = lambda r: 1/math.log2(r + 2) if r < 10 else 0.
    found = {}
    for m in b.methods:
        for r in rows.cells.values():
            if r['method'] == m and r['seed'] in (0, 1): found.setdefault(m, {})[r['seed']] = [gain(x) for x in unpack(r['decodings'][f'{b.alpha[m]:g}']['test']['ranks'])]
    table = compare_table(b)
    mean = lambda m, keep=lambda t: True: np.mean([v for s in found[m].values() for v, t in zip(s, targets) if keep(t)])
    for r in table.rows:
        m = r['method']
        assert r['mean'] == pytest.approx(mean(m)) and r['interval'][0] <= r['mean'] <= r['interval'][1]
        assert r['head'] == pytest.approx(mean(m, lambda t: t in head)) and r['tail'] == pytest.approx(mean(m, lambda t: t not in head))
        assert r['sd'] == pytest.approx(np.std([np.mean(s) for s in found[m].values()], ddof=1))
        if m != 'ce':
            assert r['difference'] == pytest.approx(mean(m) - mean('ce')) and r['relative'] == pytest.approx(mean(m)/mean('ce') - 1)
            assert r['tail_difference'] == pytest.approx(mean(m, lambda t: t not in head) - mean('ce', lambda t: t not in head))
    p = sorted((r['p'], r['method']) for r in table.rows if r['method'] != 'ce')
    worst = 0
    for j, (x, m) in enumerate(p):
        worst = max(worst, min(1, (len(p) - j)*x))
        assert table[m]['p_holm'] == pytest.approx(worst)
    page = report_html(rows)
    for r in table.rows: assert f'{r["mean"]:.4f}' in page
    with pytest.raises(GenrecError, match='known: ce'): table['ranking']


def test_tables_and_plots_of_a_search(searched):
    import matplotlib.pyplot as plt
    b = Block(read_rows(searched))
    t = trial_table(b)
    assert len(t.rows) == 7 and sum('★' in c for r in t.rows for c in r) == 4 and t.rows[0][1] == 'nothing to search'
    d = decoding_table(b)
    assert [r[0] for r in d.rows] == ['ce', 'igd', 'pos', 'multi'] and all('Holm' in r[2] for r in d.rows)
    both = {r.method: r for r in two_by_two(b).rows}
    mean = lambda m, a: np.mean([e.values('ndcg@10').mean() for e in b.runs(a)[m].values()])
    beta = ', '.join(['igd', *(f'{k} {v}' for k, v in b.values['igd'].items())])
    for name, want in ((beta, mean('igd', 0)), (f'{beta}, α {b.alpha["igd"]:g}', mean('igd', b.alpha['igd'])), (f'ce, α {b.alpha["ce"]:g}', mean('ce', b.alpha['ce']))):
        if name in both: assert both[name].mean == pytest.approx(want) and both[name].difference == pytest.approx(want - mean('ce', 0))
    assert beta in both and len(both) == 1 + sum(b.alpha[m] != 0 for m in ('ce', 'igd'))
    for bad in ('ce', 'nothing'):
        with pytest.raises(GenrecError, match='expected one of igd, pos, multi'): two_by_two(b, bad)
    assert plot_curves(b) and plot_alphas(b) and plot_ranks([b]) is not None
    assert len(plot_mixtures(b).axes) == 1 and len(plot_mixtures(b).axes[0].get_lines()) == 3
    plt.close('all')


def test_the_report_is_the_same_each_time_and_complete(searched, tmp_path):
    a, b = (write_report(read_rows(searched), tmp_path/f'{x}.html').read_bytes() for x in 'ab')
    assert a == b and b'src="http' not in a and b'<script' not in a and b'Not complete' not in a
    for part in ('results', 'decoding', 'search', 'learning', 'whom does each method serve', 'How this was made'): assert part.encode() in a
    assert not list(tmp_path.glob('*.part'))


def test_an_unfinished_grid_is_reported_as_far_as_it_is(searched, tmp_path):
    f = next(searched.glob('*.jsonl'))
    keep = [l for l in f.read_text().splitlines(keepends=True) if not (json.loads(l).get('method') == 'pos' and json.loads(l)['seed'] == 8) and not (json.loads(l).get('method') == 'igd' and json.loads(l)['seed'] == 1)]
    (tmp_path/'r.jsonl').write_text(''.join(keep))
    b = Block(read_rows(tmp_path))
    assert b.methods == ['ce', 'igd', 'multi'] and b.seeds == [0] and b.missing == ['igd: 1 of 2 seeds are not done', 'pos: its search is not done']
    page = report_html(read_rows(tmp_path))
    assert 'Not complete' in page and 'pos: its search is not done' in page
    with pytest.raises(GenrecError, match='was not run'): b.runs(.7)
    with pytest.raises(GenrecError, match="data 'x' is not in the rows"): Block(read_rows(tmp_path), 'x')


def test_old_rows_stay_readable_when_defaults_change(finished, monkeypatch):
    "A library with one more setting names its cells anew; what a row says still finds it"
    real = compare.weighting_config
    monkeypatch.setattr(compare, 'weighting_config', lambda *a: real(*a) | dict(brandnew=1))
    rows = read_rows(finished)
    assert not any(rows.done(c, [0]) for c in last_plan(rows).cells(rows)) and Block(rows).seeds == [0, 1]


def test_given_identifiers(finished, toy, tmp_path, monkeypatch):
    "A table made by a cell, given as a file, leads to the same figures"
    row = next(r for r in cells(finished).values() if r['method'] == 'ce' and r['seed'] == 0)
    made = finished/'cache'/digest([row['config']['data'], row['config']['ids']])/'index.json'
    (toy/'toy.made.index.json').write_text(made.read_text())
    work(Grid(**settings(toy, weightings=['ce'], seeds=[0], ids=dict(made=dict(file='{path}/{name}.made.index.json')))), tmp_path/'o', say=silent)
    (again,) = cells(tmp_path/'o').values()
    assert again['decodings']['0']['test'] == row['decodings']['0']['test'] and again['config']['ids'] == dict(file=digest((toy/'toy.made.index.json').read_bytes()))


def test_a_size_that_does_not_fit_the_catalogue_and_ragged_paths_are_refused_early(toy, tmp_path):
    with pytest.raises(GenrecError, match='ids.km: 40 items are too few for 64 codes'): dry_run(Grid(**settings(toy, ids={'km': dict(method='rqkmeans', encoder='tfidf', size=64)})), tmp_path/'o')
    with pytest.raises(GenrecError, match="ids.tree: tree identifiers differ in length.*backbone 't5' or 'llm'"): Grid(**settings(toy, ids=['tree']))
    with pytest.raises(GenrecError, match="ids.km: rqkmeans has no setting 'levles'"): Grid(**settings(toy, ids={'km': dict(method='rqkmeans', levles=2)}))


# ---- language models ---------------------------------------------------------------------------------------------------

@pytest.fixture(scope='module')
def tiny(tmp_path_factory):
    "A tiny language model in a folder"
    from genrec_nb.backbones import tiny_llama
    folder = tmp_path_factory.mktemp('lm')/'tiny'
    for part in tiny_llama(['Item 1', 'Item 20'], 280): part.save_pretrained(folder)
    return folder


def written(toy, tiny, **changes):
    "A grid of titles and codes by a language model, two methods"
    return {**dict(data={'toy': dict(path=str(toy))}, ids={'title': dict(method='title'), 'random': dict(method='random', levels=2, size=8)}, weightings=['ce', 'igd'], alphas=[0, .2], seeds=[0], backbone='llm',
                   model=dict(base=str(tiny), r=4, max_items=3, max_tokens=300), train=dict(epochs=1, samples_per_epoch=24, eval_users=6, batch_size=8, accumulate=1), decode=dict(beams=5)), **changes}


def test_a_grid_with_a_language_model(toy, tiny, tmp_path, monkeypatch):
    "Two methods on titles and on codes; stopped, gone on with, not repeated; what is kept is read and decoded again; rows name no folder"
    first = Grid(**written(toy, tiny))
    assert work(first, tmp_path/'o', say=silent, most=1) == 1
    (one,) = cells(tmp_path/'o').values()
    rows = run_all(Grid(**written(toy, tiny)), tmp_path/'o', say=silent)
    assert len(rows.cells) == 4 and said(cells(tmp_path/'o')[one['cell']]) == said(one) and not any(str(tiny) in json.dumps(l) for l in lines(tmp_path/'o'))
    assert {r['config']['model']['base'][:7] for r in cells(tmp_path/'o').values()} == {'folder:'}
    monkeypatch.setattr(compare, 'fit', None)                                     # nothing is trained any more
    run_all(Grid(**written(toy, tiny)), tmp_path/'o', say=silent)
    run_all(Grid(**written(toy, tiny, alphas=[0, .2, .4])), tmp_path/'o', say=silent)     # only decoded, from the saved adapters
    assert all('0.4' in r['decodings'] and r['decodings'].keys() == {'0.4'} for r in lines(tmp_path/'o')[-4:])
    page = report_html(read_rows(tmp_path/'o'))
    assert 'toy, title: results' in page and 'toy, random: results' in page


def test_a_saved_model_of_a_cell_says_what_the_trained_one_said(toy, tiny, tmp_path):
    "All figures are the same when a cell is decoded anew from its folder"
    grid = Grid(**written(toy, tiny, weightings=['igd']))
    run_all(grid, tmp_path/'o', say=silent)
    rows = cells(tmp_path/'o')
    for f in (tmp_path/'o').glob('*.jsonl'): f.unlink()
    run_all(grid, tmp_path/'o', say=silent)
    assert {k: r['decodings'] for k, r in cells(tmp_path/'o').items()} == {k: r['decodings'] for k, r in rows.items()} and len(rows) == 2


def test_a_cell_is_named_by_the_language_model_it_holds(toy, tiny, tmp_path):
    "The same content in another folder is the same; other weights are not; a seed or a setting makes another cell, and young settings that are not given none"
    import shutil
    from genrec_nb.backbones import tiny_llama
    keys = lambda grid, n: [c.key for c in grid.plan(compare.Shared(grid, tmp_path/str(n))).cells(compare.Rows())]
    shutil.copytree(tiny, tmp_path/'copy')
    a, b = keys(Grid(**written(toy, tiny)), 0), keys(Grid(**written(toy, tmp_path/'copy')), 1)
    assert a == b and len(set(a)) == 4
    tiny_llama(['Item 1', 'Item 20'], 280, seed=1)[0].save_pretrained(tmp_path/'copy')
    assert not set(a) & set(keys(Grid(**written(toy, tmp_path/'copy')), 2)) and not set(a) & set(keys(Grid(**written(toy, tiny, seeds=[1])), 3))
    assert not set(a) & set(keys(Grid(**written(toy, tiny, model=dict(base=str(tiny), r=4, max_items=2, max_tokens=300))), 4))
    said = [c.config for c in Grid(**settings(toy)).plan(compare.Shared(Grid(**settings(toy)), tmp_path/'5')).cells(compare.Rows())]
    assert not {'samples_per_epoch', 'eval_users'} & set(said[0]['train']) and 'assistant_weight' not in said[0]['decode']
    (tmp_path/'g').mkdir(); shutil.copytree(tiny, tmp_path/'g'/'lm')
    (tmp_path/'g'/'g.json').write_text(json.dumps(written(toy, 'lm')))            # named from the file's own folder
    assert keys(Grid.read(tmp_path/'g'/'g.json'), 6) == a
    by_lm = written(toy, tiny, ids={'t': dict(method='title', lm=str(tiny))}, model=dict(r=4))
    assert Grid(**by_lm).model['base'] == str(tiny.resolve())


@pytest.mark.parametrize('changes,what', [
    (dict(backbone='t5', model={}), "ids.title: title identifiers are pieces of a language model.s vocabulary"),
    (dict(model=dict(bsae='x')), "did you mean 'base'"),
    (dict(ids={'t': dict(method='title', lm='other')}), 'one language model, found'),
    (dict(data={'toy': dict(path='x', model=dict(base='y'))}), 'its base stands in model'),
    (dict(model=dict(tasks=['item2index'])), 'ids.title: alignment tasks'),
    (dict(ids=['random'], weightings=['ce', 'cft'], model=dict(tasks=['item2index'])), 'weightings.cft: cft blanks'),
    (dict(tune=dict(seeds=[9], values=dict(igd={'model.base': ['a', 'b']}), untuned=['ce'])), "'model.base' cannot be searched"),
    (dict(tune=dict(seeds=[9], values=dict(igd={'model.rr': [2, 4]}), untuned=['ce'])), "'rr' is unknown"),
])
def test_mistakes_about_language_models_in_a_grid(toy, tiny, changes, what):
    with pytest.raises(GenrecError, match=what): Grid(**written(toy, tiny, **changes))


def test_a_language_model_that_is_not_there_is_told_before_any_cell(toy, tmp_path):
    with pytest.raises(GenrecError, match='no/such/model'): dry_run(Grid(**written(toy, 'no/such/model')), tmp_path/'o')


# ---- the command ---------------------------------------------------------------------------------------------------------

def test_the_command(finished, toy, tmp_path):
    (tmp_path/'g.json').write_text(json.dumps(settings(toy)))
    out = one_line('compare', tmp_path/'g.json', '--out', tmp_path/'o', '--dry-run', ok=True)
    assert '0 of 4 cells done' in out and not (tmp_path/'o').exists()
    out = one_line('compare', tmp_path/'g.json', '--out', finished, ok=True)               # everything is there
    assert 'igd' in out and 'Holm' in out and (finished/'report.html').is_file()
    assert 'would other users and other seeds say the same?' in out
    f = next(finished.glob('*.jsonl'))
    one_line('compare', '--report', f, '--report', finished, '--out', tmp_path/'r.html', ok=True)
    assert (tmp_path/'r.html').read_bytes() == (finished/'report.html').read_bytes()
    assert 'name either' in one_line('compare') and 'no such file' in one_line('compare', '--report', tmp_path/'nowhere')
    (tmp_path/'one.json').write_text(json.dumps(settings(toy, seeds=[0])))
    out = one_line('compare', tmp_path/'one.json', '--out', tmp_path/'one', ok=True)
    assert 'one seed: would other users say the same of these models?' in out
    (tmp_path/'bad.json').write_text('{"data": ["ml-100k"],\n "alphas": [0,]}')
    assert 'line 2' in one_line('compare', tmp_path/'bad.json')
    (tmp_path/'typo.json').write_text(json.dumps(settings(toy, weigthings=['ce'])))
    assert "did you mean 'weightings'" in one_line('compare', tmp_path/'typo.json')
