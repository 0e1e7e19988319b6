"Results: merged, contradicted, torn; settings chosen on validation alone; the stored grids."
import json, math
from itertools import product
from pathlib import Path
import numpy as np
import pytest
from genrec_nb.core import FileError, GenrecError
from genrec_nb.experiments.grid import read_grid
from genrec_nb.experiments.results import Block, blocks, read_results, _results_writer
from genrec_nb.pipeline import _pack, _unpack

STORED = Path(__file__).parents[1]/'nbs'/'results'


def made_up(tune=None, weightings=('ce', 'igd', 'pos'), seeds=(0, 1), alphas=(0, .2), users=60, items=30):
    "Rows of a grid whose ranks are random"
    rng = np.random.default_rng(0)
    targets, counts = rng.integers(items, size=users), rng.integers(1, 50, items)
    part = lambda: dict(users=_pack(np.arange(users)), targets=_pack(targets), popularity=_pack(rng.integers(0, 21, users)))
    ties = dict(interactions=500, tied=None, targets=users, tied_targets=None, seen_targets=0)
    about = dict(kind='data', data='toy', digest='d0', items=items, interactions=500, skipped=0, ties=ties, counts=_pack(counts), valid=part(), test=part())
    record = dict(data=dict(toy=dict(digest='d0')), ids=dict(km={}), weightings={m: {} for m in weightings}, alphas=list(alphas), seeds=list(seeds), tune=tune,
                  reference='ce', metric='ndcg@10', title='', sweep={}, trials=[], tokens=[])
    rows = []
    for m in weightings:
        values = ((tune or {}).get('values') or {}).get(m) or {}
        combinations = [dict(zip(values, x)) for x in product(*values.values())]
        wanted = dict.fromkeys([(s, json.dumps(v)) for v in combinations for s in [*(tune or {}).get('seeds', []), *seeds]])
        for s, v in wanted:
            key = f'{m}-{s}-{v}'
            record['trials'].append(['toy', 'km', m, s, json.loads(v), key])
            ranks = lambda: rng.integers(0, 21, users)
            value = lambda r: float(np.mean([1/math.log2(x + 2) if x < 10 else 0 for x in r]))
            one = lambda: (lambda r: dict(ranks=_pack(r), metrics={'ndcg@10': value(r), 'recall@10': float((r < 10).mean())}))(ranks())
            curve = {'loss': [[1, 3.], [2, 2.]], 'ndcg@10': [[1, .1], [2, .2]]} | ({'weight_a': [[1, .5], [2, .4]], 'weight_b': [[1, .5], [2, .6]]} if m == 'multi' else {})
            rows.append(dict(kind='trial', trial=key, label=f'toy km {m} seed {s}', data='toy', ids='km', method=m, seed=s, values=json.loads(v), config=dict(data='d0'), curve=curve,
                             versions=dict(genrec_nb='0.2', commit='abc'), device='cpu', seconds=dict(train=1.), decodings={f'{a:g}': dict(valid=one(), test=one()) for a in alphas}))
    return [about, dict(kind='grid', n=0, digest='g0', record=record), *rows]


TUNE = dict(seeds=[7, 8], values=dict(igd=dict(beta=[.1, .6]), pos=dict(beta=[.2, .7])), untuned=['ce'])


def written(path, rows):
    path.write_text(''.join(json.dumps(r) + '\n' for r in rows))
    return path


@pytest.fixture
def simple(tmp_path): return written(tmp_path/'r.jsonl', made_up())


def test_rows_of_two_machines_are_merged(tmp_path):
    "Each machine did half; a trial that both did counts once"
    about, grid, *rows = made_up()
    written(tmp_path/'a.jsonl', [about, grid, *rows[:4]])
    written(tmp_path/'b.jsonl', [about, grid, *rows[3:]])
    both = read_results(tmp_path/'b.jsonl', tmp_path/'a.jsonl')
    assert len(both.trials) == 6 and len(both.data) == 1 and not both.notes and Block(both).seeds == [0, 1]


def test_decodings_of_one_trial_may_stand_in_several_rows(tmp_path):
    rows = made_up()
    split = [dict(r, decodings={a: d}) for r in rows[2:] for a, d in r['decodings'].items()]
    both = read_results(written(tmp_path/'r.jsonl', rows[:2] + split))
    assert all(set(r['decodings']) == {'0', '0.2'} for r in both.trials.values())


def test_rows_that_contradict_are_refused_by_name(simple, tmp_path):
    row = json.loads(simple.read_text().splitlines()[-1])
    ranks = _unpack(row['decodings']['0']['test']['ranks'])
    ranks[3] = (ranks[3] + 1) % 20
    row['decodings']['0']['test']['ranks'] = _pack(ranks)
    other = written(tmp_path/'other.jsonl', [row])
    with pytest.raises(FileError, match=r'other.jsonl, line 1: trial .*alpha 0\) is there already with other figures \(.*r.jsonl, line 8\)'): read_results(simple, other)


def test_a_torn_last_line_is_told_and_cut_off(simple, tmp_path):
    whole = simple.read_bytes()
    (tmp_path/'results.jsonl').write_bytes(whole[:-200])
    simple.unlink()
    results = read_results(tmp_path)
    assert len(results.trials) == 5 and 'torn' in results.notes[0]
    with _results_writer(tmp_path) as append: append(json.loads(whole.splitlines()[-1]))
    assert (tmp_path/'results.jsonl').read_bytes().count(b'\n') == 8 and len(read_results(tmp_path).trials) == 6 and not read_results(tmp_path).notes


def test_a_whole_line_without_its_end_is_kept(simple, tmp_path):
    (tmp_path/'results.jsonl').write_bytes(simple.read_bytes()[:-1])
    with _results_writer(tmp_path) as append: append(dict(kind='grid', n=1, digest='g1', record={}))
    simple.unlink()
    assert len(read_results(tmp_path).trials) == 6


def test_a_broken_line_inside_is_named(simple, tmp_path):
    lines = simple.read_text().splitlines(keepends=True)
    simple.write_text(''.join(lines[:3] + ['{"kind": "tri\n'] + lines[3:]))
    with pytest.raises(FileError, match='r.jsonl, line 4'): read_results(tmp_path)
    with pytest.raises(FileError, match='no such file'): read_results(tmp_path/'nowhere')
    (tmp_path/'empty').mkdir()
    with pytest.raises(FileError, match='no result rows'): read_results(tmp_path/'empty')
    with pytest.raises(FileError, match="kind 'cake'"): read_results(written(tmp_path/'k.jsonl', [dict(kind='cake')]))


def test_two_grids_are_not_mixed(simple, tmp_path):
    about, grid, *rows = made_up()
    written(tmp_path/'s.jsonl', [grid | dict(digest='g1')])
    with pytest.raises(FileError, match='2 different grids'): read_results(simple, tmp_path/'s.jsonl').record()
    written(tmp_path/'s.jsonl', [grid | dict(digest='g1', n=1)])
    assert read_results(simple, tmp_path/'s.jsonl').record()                     # the newest


# ---- what validation chose -------------------------------------------------------------------------------------------

def test_validation_alone_chooses(tmp_path):
    "The best mean over tuning seeds, recomputed from the ranks by loops; and test ranks may be anything"
    results = read_results(written(tmp_path/'r.jsonl', made_up(TUNE)))
    b = Block(results)
    value = lambda ranks: sum(1/math.log2(r + 2) for r in ranks if r < 10)/len(ranks)
    for m in b.methods:
        best = {}
        for r in results.trials.values():
            if r['method'] == m and r['seed'] in (7, 8):
                for a, d in r['decodings'].items(): best.setdefault((json.dumps(r['values']), float(a)), []).append(value(_unpack(d['valid']['ranks'])))
        assert len(best) == (2 if m == 'ce' else 4) and all(len(v) == 2 for v in best.values())
        values, alpha = max(best, key=lambda k: sum(best[k]))
        assert (b.values[m], b.alpha[m]) == (json.loads(values), alpha)
    for r in results.trials.values():
        for d in r['decodings'].values(): d['test'] = dict(d['test'], ranks=_pack(np.zeros(60, int)))
    again = Block(results)
    assert (again.values, again.alpha) == (b.values, b.alpha)


def test_without_a_search_the_reported_seeds_choose_alpha(simple):
    results = read_results(simple)
    b = Block(results)
    for m in b.methods:
        score = {a: np.mean([r['decodings'][a]['valid']['metrics']['ndcg@10'] for r in results.trials.values() if r['method'] == m]) for a in ('0', '0.2')}
        assert f'{b.alpha[m]:g}' == max(score, key=score.get)


def test_an_unfinished_grid_is_there_as_far_as_it_is(tmp_path):
    keep = [r for r in made_up(TUNE) if (r.get('method'), r.get('seed')) not in (('pos', 8), ('igd', 1))]
    results = read_results(written(tmp_path/'r.jsonl', keep))
    b = Block(results)
    assert b.methods == ['ce', 'igd'] and b.seeds == [0] and b.missing == ['igd: 1 of 2 seeds are not done', 'pos: its search is not done']
    assert results.choose(results.record(), 'toy', 'km', 'pos') is None
    with pytest.raises(GenrecError, match='was not run'): b.evaluations(.7)
    with pytest.raises(GenrecError, match="data is 'x'"): Block(results, 'x')


def test_all_decodings_as_a_data_frame(simple):
    results = read_results(simple)
    frame = results.frame('valid')
    assert len(frame) == 12 and set(frame.method) == {'ce', 'igd', 'pos'}
    row = results.trials['igd-1-{}']
    assert frame[(frame.method == 'igd') & (frame.seed == 1) & (frame.alpha == .2)]['ndcg@10'].item() == row['decodings']['0.2']['valid']['metrics']['ndcg@10']


# ---- stored grids ----------------------------------------------------------------------------------------------------

@pytest.mark.parametrize('path', sorted(STORED.glob('*.toml')), ids=lambda p: p.stem)
def test_a_stored_grid_is_what_its_file_asks_for_and_whole(path):
    "No trial is missing, none was made by version 0.1, and seeds, methods and search are those of the .toml"
    asked, results = read_grid(path), read_results(path.with_suffix('.jsonl'))
    record = results.record()
    assert record['title'] == asked.title and record['seeds'] == list(asked.seeds)
    assert list(record['data']) == list(asked.data) and {*record['weightings']} == {*asked.weightings}
    if record['ids']: assert all(not b.missing for b in blocks(results, record))
    rows = [*results.trials.values(), *results.tokens.values()]
    assert rows and not {r['versions']['genrec_nb'] for r in rows if 'versions' in r} & {'0.1.0'}

@pytest.mark.parametrize('softmax, methods', [('children', 8), ('vocabulary', 5)])
def test_stored_weightings_are_whole_and_of_one_protocol(softmax, methods):
    "Every trial of the grid is there, of one commit, each seed with its own order of ties, tuned on a seed that is not reported"
    b = blocks(read_results(STORED/f'weightings-{softmax}-ml-100k.jsonl'))[0]
    rows = [r for t in b.trials.values() for r in t.values()]
    assert not b.missing and (len(b.methods), len(b.seeds)) == (methods, 5)
    assert len({r['versions']['commit'] for r in rows}) == 1
    assert not set(b.record['tune']['seeds']) & set(b.seeds)
    for r in rows: assert r['config']['model']['softmax'] == softmax
