"Tables, plots and pages follow from the ranks, and are the same each time."
import json, math
import matplotlib.pyplot as plt
import numpy as np
import pytest
from test_results import STORED, TUNE, made_up, written
from genrec_nb.comparisons import Scores, compare_methods
from genrec_nb.core import GenrecError, SettingError
from genrec_nb.experiments.grid_report import _provenance, _rules, plot_sweep, results_page, summary, sweep_table
from genrec_nb.experiments.results import Block, blocks, read_results
from genrec_nb.experiments.tables import compare_identifiers, compare_table, decoding_table, plot_alphas, plot_curves, plot_mixtures, plot_ranks, trial_table, two_by_two
from genrec_nb.pipeline import _pack, _unpack


@pytest.fixture(scope='module')
def rows(tmp_path_factory):
    tune = dict(TUNE, values=TUNE['values'] | dict(multi=dict(half_life=[1, 20])))
    return written(tmp_path_factory.mktemp('rows')/'r.jsonl', made_up(tune, ('ce', 'igd', 'pos', 'multi')))


@pytest.fixture(scope='module')
def searched(rows): return read_results(rows)


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close('all')


def test_the_table_follows_from_the_ranks(searched):
    "Means, differences, head and tail, and Holm, by loops"
    b, about = Block(searched), searched.data['d0']
    targets, counts = _unpack(about['test']['targets']), _unpack(about['counts']).tolist()
    order = sorted(range(len(counts)), key=lambda i: (-counts[i], i))
    head = set(order[:len(counts) - math.ceil(.8*len(counts) - 1e-9)])
    gain = lambda r: 1/math.log2(r + 2) if r < 10 else 0.
    found = {m: [[gain(x) for x in _unpack(r['decodings'][f'{b.alpha[m]:g}']['test']['ranks'])] for r in b.trials[m].values()] for m in b.methods}
    mean = lambda m, keep=lambda t: True: np.mean([v for s in found[m] for v, t in zip(s, targets) if keep(t)])
    table = compare_table(b)
    assert list(table.index)[0] == 'ce' and set(table.index) == set(b.methods)
    for m, r in table.iterrows():
        assert r['mean'] == pytest.approx(mean(m)) and r['low'] <= r['mean'] <= r['high']
        assert r['head'] == pytest.approx(mean(m, lambda t: t in head)) and r['tail'] == pytest.approx(mean(m, lambda t: t not in head))
        assert r['sd'] == pytest.approx(np.std([np.mean(s) for s in found[m]], ddof=1))
        if m == 'ce': continue
        assert r['difference'] == pytest.approx(mean(m) - mean('ce')) and r['relative'] == pytest.approx(mean(m)/mean('ce') - 1)
        assert r['tail_difference'] == pytest.approx(mean(m, lambda t: t not in head) - mean('ce', lambda t: t not in head))
    p, worst = sorted((r['p'], m) for m, r in table.iterrows() if m != 'ce'), 0
    for j, (x, m) in enumerate(p):
        worst = max(worst, min(1, (len(p) - j)*x))
        assert table.loc[m, 'holm'] == pytest.approx(worst)


def test_tables_of_a_search(searched):
    b = Block(searched)
    t = trial_table(b)
    assert len(t) == 7 and t.index[0] == ('ce', 'nothing to search')
    for m in b.methods:
        mine = t.loc[m]
        assert mine.to_numpy().max() == pytest.approx(mine.loc[', '.join(f'{k} {v}' for k, v in b.values[m].items()) or 'nothing to search', b.alpha[m]])
    d = decoding_table(b)
    assert len(d) == 8 and d.holm.notna().sum() == 4 and d.chosen.sum() == 4
    mean = lambda m, a: np.mean([e.values('ndcg@10').mean() for e in b.evaluations(a)[m].values()])
    assert d.loc[('pos', .2), 'mean'] == pytest.approx(mean('pos', .2)) and d.loc[('pos', .2), 'difference'] == pytest.approx(mean('pos', .2) - mean('pos', 0))
    both = {r.method: r for r in two_by_two(b).rows}
    igd = ', '.join(['igd', *(f'{k} {v}' for k, v in b.values['igd'].items())])
    wanted = {igd: mean('igd', 0)}
    wanted |= {f'{name}, α {b.alpha[m]:g}': mean(m, b.alpha[m]) for m, name in (('ce', 'ce'), ('igd', igd)) if b.alpha[m] != 0}
    assert both.keys() == wanted.keys()
    for name, want in wanted.items(): assert both[name].mean == pytest.approx(want) and both[name].difference == pytest.approx(want - mean('ce', 0))
    for bad in ('ce', 'nothing'):
        with pytest.raises(GenrecError, match='expected one of igd, pos, multi'): two_by_two(b, bad)


def test_plots(searched):
    b = Block(searched)
    assert len(plot_curves(b).axes[1].lines) == 5 and len(plot_alphas(b).axes) == 2 and plot_ranks([b]) is not None
    assert len(plot_mixtures(b).axes) == 1 and len(plot_mixtures(b).axes[0].get_lines()) == 2


def test_the_page_is_the_same_each_time_and_complete(searched, rows, tmp_path):
    "Made twice from the same rows: byte for byte"
    a, b = (results_page(read_results(rows)).save(tmp_path/f'{x}.html').read_text() for x in 'ab')
    assert a == b and not list(tmp_path.glob('*.part'))
    assert 'src="http' not in a and '<script' not in a and 'Not complete' not in a
    for part in ('results', 'decoding', 'search', 'learning', 'popularity of the targets', 'How this was made'): assert part in a
    for m, r in compare_table(Block(searched)).iterrows(): assert f'{r["mean"]:.4f}' in a
    assert 'Each method had 2 trials' in a and 'No tuning seed is reported' in a and 'Nothing to search for: ce' in a
    assert 'would other users and other seeds say the same?' in summary(searched)


def test_an_unfinished_grid_is_reported_as_far_as_it_is(tmp_path):
    keep = [r for r in made_up(TUNE) if (r.get('method'), r.get('seed')) != ('pos', 8)]
    page = results_page(read_results(written(tmp_path/'r.jsonl', keep))).html()
    assert 'Not complete' in page and 'pos: its search is not done' in page


def test_one_seed_is_about_these_models_only(tmp_path):
    results = read_results(written(tmp_path/'r.jsonl', made_up(seeds=(0,))))
    assert 'one seed: would other users say the same of these models?' in summary(results) and 'No search' in _rules(results.record())


# ---- identifiers against each other ----------------------------------------------------------------------------------

def two_kinds(seeds=(0, 1), same=(), **kwargs):
    "Rows of a grid with two kinds of identifiers; the methods `same` have one model for both"
    rng = np.random.default_rng(1)
    about, grid, *rows = made_up(seeds=seeds, **kwargs)
    record, more = grid['record'], []
    for r in rows:
        if r['method'] in same:
            record['trials'] += [[t[0], 'kn', *t[2:]] for t in record['trials'] if t[-1] == r['trial']]
            continue
        ranks = lambda: rng.integers(0, 21, 60)
        value = lambda x: float(np.mean([1/math.log2(i + 2) if i < 10 else 0 for i in x]))
        one = lambda: (lambda x: dict(ranks=_pack(x), metrics={'ndcg@10': value(x), 'recall@10': float((x < 10).mean())}))(ranks())
        more.append(r | dict(ids='kn', trial='n-' + r['trial'], decodings={a: dict(valid=one(), test=one()) for a in r['decodings']}))
        record['trials'] += [[t[0], 'kn', *t[2:-1], 'n-' + t[-1]] for t in record['trials'] if t[-1] == r['trial'] and t[1] == 'km']
    record['ids']['kn'] = {}
    return [about, grid, *rows, *more]


def test_identifiers_are_compared_by_the_ranks_of_one_method(tmp_path):
    results = read_results(written(tmp_path/'r.jsonl', two_kinds(alphas=(0,))))
    found = blocks(results)
    for method in ('ce', 'igd'):
        for reference, other in (('km', 'kn'), ('kn', 'km')):
            table = compare_identifiers(found, method, 'recall@10', reference)
            hits = {b.ids: np.array([(_unpack(r['decodings']['0']['test']['ranks']) < 10) for r in b.trials[method].values()], float) for b in found}
            wanted = compare_methods(Scores(np.stack([hits[reference], hits[other]]), [reference, other])).rows[0]
            assert list(table.index) == [reference, other] and table.loc[other, 'p'] == wanted.p
            for b in found: assert table.loc[b.ids, 'valid'] == pytest.approx(np.mean([_unpack(r['decodings']['0']['valid']['ranks']) < 10 for r in b.trials[method].values()]))
            assert table.loc[other, 'difference'] == pytest.approx(hits[other].mean() - hits[reference].mean())
    text, page = summary(results), results_page(results).html()
    for m in ('ce', 'igd', 'pos'): assert f'toy: identifiers, {m}' in text and f'toy: identifiers, {m}' in page
    with pytest.raises(SettingError, match="identifiers with ce is 'kx', expected one of km, kn"): compare_identifiers(found, 'ce', reference='kx')


def test_one_table_instead_of_tables_of_one_row(tmp_path):
    text = summary(read_results(written(tmp_path/'r.jsonl', two_kinds(weightings=('ce',)))))
    assert text.count('Against') == 1 and 'Against km; 2 seeds' in text and 'ndcg@10, validation' in text and 'not after Holm": below' in text and 'toy, km' not in text and 'Seen items' in text


def test_notes_are_those_of_the_data_set(tmp_path):
    rows = two_kinds(weightings=('ce',))
    more = two_kinds(weightings=('ce',), users=60, seeds=(0, 1, 2))
    record, other = rows[1]['record'], json.loads(json.dumps(more).replace('"toy"', '"shop"').replace('"d0"', '"d1"').replace("ce-", "shop-ce-"))
    record['data'] |= other[1]['record']['data']
    record['seeds'] = [0, 1]
    record['trials'] += [t for t in other[1]['record']['trials'] if t[3] < 2]
    half = other[0] | dict(skipped=7)
    half['test'] = half['test'] | dict(users=_pack(np.arange(60)//2))
    text = summary(read_results(written(tmp_path/'r.jsonl', [*rows, half, *(r for r in other[2:] if r['seed'] < 2)])))
    assert text.count('Against km') == 2 and text.count('Seen items') == 2 and '60 users;' in text and '30 users with 60 cases' in text


def test_a_model_of_its_own_tokenizer_is_not_compared_with_itself(tmp_path):
    results = read_results(written(tmp_path/'r.jsonl', two_kinds(same=('pos',))))
    assert 'identifiers, ce' in summary(results) and 'identifiers, pos' not in summary(results)


def test_identifiers_whose_seeds_are_not_done_wait(tmp_path):
    rows = [r for r in two_kinds() if (r.get('ids'), r.get('seed')) != ('kn', 1)]
    found = blocks(read_results(written(tmp_path/'r.jsonl', rows)))
    assert [b.seeds for b in found] == [[0, 1], [0]] and list(compare_identifiers(found).index) == ['km'] and list(compare_identifiers(found, reference='kn').index) == ['kn']


# ---- sweeps ----------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize('name, points, over', [('letter', 12, 'beta'), ('letter-concat', 5, 'alpha'), ('letter-last', 5, 'alpha')])
def test_sweeps_are_shown(name, points, over):
    results = read_results(STORED/f'{name}-scientific.jsonl')
    table = sweep_table(results)
    assert len(table) == points and 'rqvae' in table.index and table['collisions after'].notna().all()
    assert len(plot_sweep(results, over).axes[0].lines) > 1 and over in results_page(results).html()
    with pytest.raises(GenrecError, match='was not varied'): plot_sweep(results, 'gamma')
    with pytest.raises(GenrecError, match='identifiers only'): Block(results)


def test_a_report_says_which_version_made_its_rows():
    found = _provenance([Block(read_results(STORED/'likelihood-beauty.jsonl'))])
    assert found.genrec_nb.str.match(r'0\.\d+\.\d+').all() and found.commit.str.len().eq(12).all()
