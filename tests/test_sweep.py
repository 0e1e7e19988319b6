"Sweeps over a tokenizer's settings: what is asked, what is measured, what is shared, what is refused."
import json
import shutil
from pathlib import Path
import matplotlib.pyplot as plt
import numpy as np
import pytest
import genrec_nb.experiments.sweep as module
from test_compare import lines, silent
from test_run import one_line, small_data
from genrec_nb.experiments.grid import Rows, dry_run, read_rows, run_all
from genrec_nb.core import digest
from genrec_nb.core import GenrecError
from genrec_nb.experiments.sweep import Sweep, parse_setting, plot_sweep, sweep_html, sweep_lines, sweep_points, sweep_table


@pytest.fixture(scope='module')
def toy(tmp_path_factory):
    folder = small_data(tmp_path_factory.mktemp('data')/'toy')
    np.save(folder/'cf.npy', np.random.default_rng(0).normal(size=(40, 8)).astype(np.float32))
    return folder


def asked(toy, **changes):
    "RQ-KMeans in two sizes and two depths, against random identifiers"
    return {**dict(data={'toy': dict(path=str(toy))}, vary=dict(size=[4, 8], levels=[2, 3]), method='rqkmeans', fixed=dict(encoder='tfidf'), seeds=[0, 1], cf=str(toy/'cf.npy'), against='random'), **changes}


def on_letter(toy, **changes):
    return asked(toy, **{**dict(vary=dict(alpha=[0, .5], tau=[.7]), method='letter', fixed=dict(encoder='tfidf', levels=2, size=8, clusters=2, steps=30), seeds=[0], against='rqvae', trained=True,
                                train=dict(epochs=2, batch_size=16, eval_every=1), model=dict(d_model=16, num_heads=2, num_layers=1)), **changes})


@pytest.fixture(scope='module')
def finished(toy, tmp_path_factory):
    folder = tmp_path_factory.mktemp('sweep')/'o'
    run_all(Sweep(**asked(toy)), folder, say=silent)
    return folder


def test_a_star_varies_one_at_a_time_and_a_grid_all():
    vary, base = dict(a=[1, 2], b=[0, 5]), dict(a=1, b=3)
    assert sweep_points(vary, base) == [dict(a=1, b=3), dict(a=2, b=3), dict(a=1, b=0), dict(a=1, b=5)]
    assert sweep_points(vary, base, 'grid') == [dict(a=a, b=b) for a in (1, 2) for b in (0, 5)]


def test_the_base_is_the_methods_own_default(finished):
    (plan,) = [l['record'] for l in lines(finished) if l['kind'] == 'sweep']
    assert plan['base'] == dict(size=10, levels=3)                                # a quarter of 40 items; three levels
    assert {t['ids'] for t in read_rows(finished).tokens.values()} == {'rqkmeans', 'rqkmeans size=4', 'rqkmeans size=8', 'rqkmeans levels=2', 'random'}


def test_measures_by_loops(finished, toy):
    cf = np.load(toy/'cf.npy')
    unit = cf/np.linalg.norm(cf, axis=1, keepdims=True)
    for t in read_rows(finished).tokens.values():
        folder = finished/'cache'/digest([t['config']['data'], t['config']['ids']])
        if t['method'] == 'random': continue
        codes, m = np.load(folder/'codes.npy'), t['measures']
        assert m['before'] == pytest.approx(1 - len({tuple(c) for c in codes.tolist()})/40) and m['after'] == 0
        assert m['used'] == [len(set(c)) for c in codes.T.tolist()]
        share = np.unique(codes[:, 0], return_counts=True)[1]/40
        assert m['perplexity'][0] == pytest.approx(np.prod(share**-share))
        shared = []
        for i in range(40):
            near = max((j for j in range(40) if j != i), key=lambda j: float(unit[i] @ unit[j]))
            shared.append((codes[i] == codes[near]).any())
        assert m['overlap_any'] == pytest.approx(np.mean(shared))


def test_nothing_runs_twice_and_no_path_is_stored(finished, toy, monkeypatch):
    monkeypatch.setattr(module, 'measure_cell', lambda *a: 1/0)
    assert len(run_all(Sweep(**asked(toy)), finished, say=silent).tokens) == 10
    assert str(toy) not in ''.join(f.read_text() for f in finished.glob('*.jsonl'))


def test_two_processes_give_the_same(finished, toy, tmp_path):
    rows = run_all(Sweep(**asked(toy)), tmp_path/'o', jobs=2, say=silent)
    assert {k: t['measures'] for k, t in rows.tokens.items()} == {k: t['measures'] for k, t in read_rows(finished).tokens.items()}
    assert sum(l['kind'] == 'tokens' for l in lines(tmp_path/'o')) == 10


def test_lines_hold_the_others_still(finished, toy, tmp_path):
    rows = read_rows(finished)
    by = sweep_lines(rows, 'size')
    assert list(by) == ['levels 3'] and sorted(by['levels 3']) == [4, 8, 10] and all(len(t) == 2 for t in by['levels 3'].values())
    grid = run_all(Sweep(**asked(toy, mode='grid', seeds=[0])), tmp_path/'o', say=silent)
    assert {k: sorted(v) for k, v in sweep_lines(grid, 'size').items()} == {'levels 2': [4, 8], 'levels 3': [4, 8]}
    with pytest.raises(GenrecError, match="'alpha' was not varied, expected one of size, levels"): sweep_lines(rows, 'alpha')
    assert len(plot_sweep(grid, 'size').axes[0].lines) and 'size' in sweep_html(rows) and len(sweep_table(rows).rows) == 5
    with pytest.raises(GenrecError, match='not the rows of a grid'): __import__('genrec_nb.experiments.grid', fromlist=['x']).Block(rows)


def test_training_on_each_and_the_temperature(toy, tmp_path):
    rows = run_all(Sweep(**on_letter(toy)), tmp_path/'o', say=silent)
    assert {t['ids'] for t in rows.tokens.values()} == {'letter', 'letter alpha=0', 'letter alpha=0.5', 'rqvae'}
    assert sorted((c['ids'], c['config']['weighting']['tau']) for c in rows.cells.values()) == [('letter', .7), ('letter', 1), ('letter alpha=0', 1), ('letter alpha=0.5', 1), ('rqvae', 1)]
    assert rows.tokens and all(t['config']['cf'].startswith('file:') for t in rows.tokens.values())
    table = sweep_table(rows)
    assert table.header[-4:] == ['NDCG@10, validation, tau 0.7', 'NDCG@10, test, tau 0.7', 'NDCG@10, validation, tau 1', 'NDCG@10, test, tau 1']
    assert [r[-4] != '–' for r in table.rows] == [r[0].startswith('letter (') for r in table.rows]
    assert plot_sweep(rows, 'tau') and 'tau' in sweep_html(rows)


def test_recommender_vectors_are_trained_once_and_from_training_alone(toy, tmp_path):
    sweep = on_letter(toy, vary=dict(alpha=[0, .5]), trained=False, cf='lightgcn')
    a = run_all(Sweep(**sweep), tmp_path/'a', say=silent)
    assert len(list((tmp_path/'a'/'cache').glob('cf-*.npy'))) == 1
    other = small_data(tmp_path/'toy')
    inter = json.loads((other/'toy.inter.json').read_text())
    changed = {u: h[:-2] + [i for i in range(40) if i not in h][:2] if len(h) > 2 else h for u, h in inter.items()}
    (other/'toy.inter.json').write_text(json.dumps(changed))
    b = run_all(Sweep(**{**sweep, 'data': {'toy': dict(path=str(other))}}), tmp_path/'b', say=silent)
    assert not set(a.tokens) & set(b.tokens)                                      # other data, other cells
    assert [t['measures'] for t in a.tokens.values()] == [t['measures'] for t in b.tokens.values()]


@pytest.mark.parametrize('changes, what', [
    (dict(vary={}), 'name at least one setting'), (dict(vary=dict(szie=[2, 4])), "rqkmeans has no setting 'szie'"), (dict(vary=dict(size=[4, 4])), 'stands twice'),
    (dict(vary=dict(tau=[.7])), 'add --train'), (dict(mode='all'), "mode is 'all'"), (dict(fixed=dict(size=3)), 'both varied and fixed'), (dict(seeds=[-1]), 'seeds'),
    (dict(method='kmeans'), "'kmeans' is unknown"), (dict(data=['a', 'b']), 'one data set')])
def test_mistakes_are_told(toy, changes, what):
    with pytest.raises(GenrecError, match=what): Sweep(**asked(toy, **changes))


def test_mistakes_that_the_data_show(toy, tmp_path):
    bare = small_data(tmp_path/'bare', text=False)
    for changes, what in [(dict(data={'bare': dict(path=str(bare))}), 'no item texts'), (dict(vary=dict(size=[4, 99])), 'size=99: 40 items are too few'), (dict(cf='no.npy'), 'no.npy: no such file')]:
        with pytest.raises(GenrecError, match=what): run_all(Sweep(**asked(toy, **changes)), tmp_path/'o', say=silent)
    assert not (tmp_path/'o').exists()


def test_the_command(toy, tmp_path):
    assert parse_setting('alpha=0,0.02,1e-4') == ('alpha', [0, .02, 1e-4]) and parse_setting('x=true,free') == ('x', [True, 'free'])
    same = ['sweep', toy, '--method', 'rqkmeans', '--vary', 'size=4,8', '--set', 'encoder=tfidf', '--cf', toy/'cf.npy', '--out', tmp_path/'o']
    assert '0 of 4 cells done' in one_line(*same, '--dry-run', ok=True)
    out = one_line(*same, ok=True)
    assert 'rqkmeans size=4' in out and (tmp_path/'o'/'report.html').is_file()
    assert 'expected NAME=VALUE' in one_line('sweep', toy, '--vary', 'size') and 'seeds' in one_line(*same, '--seeds', 'a')


def figures(rows, over='size'):
    "What is shown: the table, the lines and the plot with its reference"
    fig = plot_sweep(rows, over)
    drawn = [[np.asarray(x, float).tolist() for x in line.get_data()] for ax in fig.axes for line in ax.lines]
    plt.close(fig)
    return sweep_table(rows).rows, {k: {v: sorted(t['cell'] for t in ts) for v, ts in by.items()} for k, by in sweep_lines(rows, over).items()}, drawn


@pytest.mark.parametrize('changes', [dict(fixed=dict(encoder='tfidf', policy='free')), dict(fixed=dict(encoder='tfidf', levels=2), vary=dict(size=[4, 8])), dict(seeds=[1, 2]), dict(cf='other')])
def test_a_second_sweep_in_the_folder_is_shown_alone(finished, toy, tmp_path, changes):
    np.save(tmp_path/'other.npy', np.random.default_rng(1).normal(size=(40, 8)).astype(np.float32))
    second = asked(toy, **{**changes, **(dict(cf=str(tmp_path/'other.npy')) if 'cf' in changes else {})})
    shutil.copytree(finished, tmp_path/'both')
    both, alone = run_all(Sweep(**second), tmp_path/'both', say=silent), run_all(Sweep(**second), tmp_path/'alone', say=silent)
    assert len(both.tokens) > len(alone.tokens)
    np.testing.assert_equal(figures(both), figures(alone))
    np.testing.assert_equal(figures(run_all(Sweep(**asked(toy)), tmp_path/'both', say=silent)), figures(read_rows(finished)))    # and the first again


def test_trainings_of_another_sweep_are_not_shown(toy, tmp_path):
    first = on_letter(toy, vary=dict(alpha=[0, .5]), against=None)
    run_all(Sweep(**first), tmp_path/'o', say=silent)
    for second in (dict(first, train=dict(first['train'], epochs=1)), dict(first, trained=False, train={}, model={})):
        assert sweep_table(run_all(Sweep(**second), tmp_path/'o', say=silent)).rows == sweep_table(run_all(Sweep(**second), tmp_path/'alone', say=silent)).rows


def test_points_stand_in_the_order_that_was_asked_for(toy, tmp_path):
    sweep = Sweep(**asked(toy, vary=dict(size=[8, 10, 4], levels=[3, 2]), seeds=[0]))
    names = ['rqkmeans (size=10, levels=3)', 'rqkmeans size=8', 'rqkmeans size=4', 'rqkmeans levels=2', 'random']
    assert [r[0] for r in sweep_table(run_all(sweep, tmp_path/'o', say=silent)).rows] == names
    assert [l.split('  ')[-1] for l in dry_run(sweep, tmp_path/'o').splitlines()[:-1]] == [f'toy {n} seed 0' for n in names]
    assert {t['ids'] for t in read_rows(tmp_path/'o').tokens.values()} == {n.split(' (')[0] for n in names}


def test_old_rows_are_found_by_what_they_say(finished):
    "Rows from before the tokenizers had a setting `policy`, with other keys therefore"
    before = figures(read_rows(finished))
    rows = read_rows(finished)
    rows.tokens = {f'old {k}': dict(t, config={**t['config'], 'ids': {k: v for k, v in t['config']['ids'].items() if k != 'policy'}}) for k, t in rows.tokens.items()}
    table, _, drawn = figures(rows)
    np.testing.assert_equal((table, drawn), (before[0], before[2]))


def test_committed_rows_need_no_data():
    for f, n, over in [('letter', 10, 'beta'), ('letter-shape', 11, 'clusters')]:
        path = Path(__file__).parents[1]/'nbs'/'results'/f'{f}-scientific.jsonl'
        if not path.is_file(): continue
        rows = read_rows(path)
        assert len(sweep_table(rows).rows) == n == len(rows.tokens) and sweep_table(rows).rows[-1][0] == 'rqvae' and sweep_lines(rows, over)
