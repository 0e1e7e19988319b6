"Baselines as rows of a grid and of a run: the same figures as by hand, once an order of ties, refused, resumed"
import json
from dataclasses import asdict
import numpy as np
import pytest
from oracles import small_data
import genrec_nb.baseline_trials as baseline_trials
from genrec_nb.core import GenrecError, SettingError
from genrec_nb.baseline_trials import read_baselines
from genrec_nb.experiments.execution import dry_run, run_grid
from genrec_nb.experiments.grid import Grid
from genrec_nb.experiments.grid_report import results_page, summary
from genrec_nb.experiments.results import Block, read_results
from genrec_nb.loaders import load_dataset
from genrec_nb.metrics import ranking_metrics
from genrec_nb.pipeline import _unpack
from genrec_nb.rankers import _RANKERS, load_ranker, save_ranker
from genrec_nb.run import load_config
from genrec_nb.splits import leave_one_out

SHORT = dict(epochs=1, eval_every=1, dim=8)
FAST = {name: SHORT if 'epochs' in config.__dataclass_fields__ else {} for name, (_, config, _) in _RANKERS.items()}


def settings(folder, **changes):
    return {**dict(data={'toy': dict(path=str(folder))}, ids={'a': dict(method='random', size=8), 'b': dict(method='random', size=9)}, weightings=['ce'], alphas=[0, .2],
                   seeds=[0, 1], model=dict(d_model=16, num_heads=2, num_layers=1), train=dict(epochs=1, batch_size=16, eval_every=1)), **changes}


def trials(folder): return [r for r in map(json.loads, (folder/'results.jsonl').read_text().splitlines()) if r['kind'] == 'trial']


@pytest.fixture(scope='module')
def toy(tmp_path_factory): return small_data(tmp_path_factory.mktemp('data')/'toy')

@pytest.fixture(scope='module')
def split(toy): return leave_one_out(load_dataset(toy).interactions)

@pytest.fixture(scope='module')
def finished(toy, tmp_path_factory):
    "A grid of every baseline and one generative model, two kinds of identifiers"
    folder = tmp_path_factory.mktemp('grid')/'out'
    run_grid(Grid(**settings(toy, baselines=FAST, reference='ease', seeds=[1])), folder)
    return folder


@pytest.mark.parametrize('name', _RANKERS)
def test_a_row_is_what_the_ranker_says_by_hand(finished, split, name):
    _, config, train = _RANKERS[name]
    rows = [r for r in trials(finished) if r['method'] == name]
    assert len(rows) == 1, 'not once for each kind of identifiers'
    for r in rows:
        model = train(split, config(**FAST[name]), r['seed'])
        assert list(r['decodings']) == ['0'] and r['ids'] == '' and r['config']['settings'] == asdict(config(**FAST[name]))
        for part in ('valid', 'test'):
            cases = getattr(split, part)
            by_hand = ranking_metrics(model.rank(cases, 20), cases.targets, (10,))
            assert r['decodings']['0'][part]['metrics']['ndcg@10'] == pytest.approx(by_hand['ndcg@10'], abs=1e-12)
        assert {'train', 'decode'} == set(r['seconds']) and r['parameters'] > 0 and r['versions']['torch']


def test_baselines_stand_in_every_block_with_intervals_and_tests(finished):
    results = read_results(finished)
    for ids in 'ab':
        block = Block(results, ids=ids)
        assert block.methods == [*_RANKERS, 'ce'] and block.generative == ['ce'] and block.reference == 'ease' and block.setting('ease') == '–'
        e = block.evaluations(.2)
        np.testing.assert_array_equal(e['mf'][1].ranks, block.evaluations(0)['mf'][1].ranks)


def test_a_finished_grid_is_not_run_again_and_a_killed_one_keeps_what_was_trained(finished, toy, tmp_path, monkeypatch):
    grid = Grid(**settings(toy, baselines=dict(ease={}, mf=SHORT), weightings=[], ids=['random'], seeds=[0, 1]))
    first = run_grid(grid, tmp_path/'o')
    assert {r['label'] for r in first.trials.values()} == {'toy ease seed 0', 'toy mf seed 0', 'toy mf seed 1'} and '0 of 3 are to do' in dry_run(grid, tmp_path/'o')
    assert 'Against ease; 2 seeds, 77 users' in summary(first) and 'mf' in results_page(first).html()
    monkeypatch.setattr(baseline_trials, '_RANKERS', {k: (*v[:2], None) for k, v in _RANKERS.items()})         # nothing can be trained now
    assert len(run_grid(grid, tmp_path/'o').trials) == 3
    (tmp_path/'o'/'results.jsonl').unlink()
    again = run_grid(grid, tmp_path/'o')                                                                  # read from what is kept
    assert {k: r['decodings'] for k, r in again.trials.items()} == {k: r['decodings'] for k, r in first.trials.items()}


def test_a_search_chooses_by_validation(toy, tmp_path):
    grid = Grid(**settings(toy, weightings=[], ids=['random'], baselines=['popularity', 'ease'], tune=dict(seeds=[9], values=dict(ease=dict(l2=[.1, 1000.])))))
    results = run_grid(grid, tmp_path/'o')
    by = {r['values']['l2']: r['decodings']['0']['valid']['metrics']['ndcg@10'] for r in results.trials.values() if r['method'] == 'ease'}
    assert len(by) == 2 and Block(results).values['ease'] == dict(l2=max(by, key=by.get))


def test_seen_items_are_treated_as_in_the_other_rows(toy, split, tmp_path):
    grid = Grid(**settings(toy, weightings=[], ids=['random'], baselines=['ease'], seeds=[0], decode=dict(exclude_seen=False)))
    (row,) = run_grid(grid, tmp_path/'o').trials.values()
    kept = ranking_metrics(_RANKERS['ease'][2](split).rank(split.test, 20, exclude_seen=False), split.test.targets, (10,))
    assert row['decodings']['0']['test']['metrics']['ndcg@10'] == pytest.approx(kept['ndcg@10']) and row['config']['exclude_seen'] is False


@pytest.mark.parametrize('changes, what', [
    (dict(baselines=['ese']), "'ese'.*did you mean 'ease'"), (dict(baselines=dict(mf=dict(layrs=1))), "baselines.mf: 'layrs' is unknown, did you mean 'layers'"),
    (dict(baselines=dict(ease=dict(l2=-1))), 'baselines.ease: l2 is -1'), (dict(baselines=['ease', 'ease']), 'stands twice'), (dict(baselines=dict(ce=dict(kind='ease'))), 'ce is the name of a weighting'),
    (dict(baselines=['ease'], tune=dict(seeds=[9], values=dict(ease=dict(l2=[1, -2])), untuned=['ce'])), 'l2 is -2'), (dict(baselines=3), 'expected names'),
    (dict(baselines=['ease', 'mf'], tune=dict(seeds=[9], values=dict(ease=dict(l2=[1, 2])), untuned=['ce'])), 'ease has 2, mf has 1'), (dict(baselines=['ease'], reference='eas'), 'reference')])
def test_mistakes_are_one_line_before_any_work(toy, changes, what):
    with pytest.raises(SettingError, match=what) as e: Grid(**settings(toy, **changes))
    assert '\n' not in str(e.value)


def test_of_a_run_by_name_and_from_its_configuration(tmp_path):
    import tomli_w
    c = load_config(None, {'baselines': 'ease, gru4rec'})
    assert list(c.baselines) == ['ease', 'gru4rec'] and c.baselines['ease'] == dict(kind='ease', l2=300.)
    (tmp_path/'c.toml').write_text(tomli_w.dumps(dict(baselines=dict(strong=dict(kind='ease', l2=10)))))
    assert load_config(tmp_path/'c.toml').baselines == {'strong': dict(kind='ease', l2=10.)}
    with pytest.raises(SettingError, match="did you mean 'ease'"): load_config(None, {'baselines': 'eas'})


@pytest.mark.parametrize('name', ['popularity', 'transitions'])
def test_what_only_counts_is_saved_and_refused_under_another_split(split, tmp_path, name):
    model = _RANKERS[name][2](split)
    save_ranker(model, tmp_path/'m')
    np.testing.assert_array_equal(load_ranker(tmp_path/'m').rank(split.test, 20), model.rank(split.test, 20))
    assert load_ranker(tmp_path/'m').split == split.fingerprint


def test_a_row_that_lacks_texts_says_so_and_the_others_run(tmp_path):
    bare = small_data(tmp_path/'bare', text=False)
    grid = Grid(**settings(bare, data={'bare': dict(path=str(bare))}, ids=['random'], seeds=[0], alphas=[0], baselines=['ease'],
                           weightings=dict(ce={}, text=dict(kind='ce', tokenizer=dict(method='rqkmeans')), groups=dict(kind='ce', tokenizer=dict(method='category')))))
    results = run_grid(grid, tmp_path/'o')
    block = Block(results)
    assert block.methods == ['ease', 'ce'] and len(results.trials) == 2
    lacking = dict(m.split(': ', 1) for m in block.missing)
    assert 'rqkmeans' in lacking['text'] and 'category identifiers' in lacking['groups'] and str(tmp_path) not in str(lacking) and 'Not complete' in results_page(results).html()
    assert '0 of 2 are to do' in dry_run(grid, tmp_path/'o')
    with pytest.raises(GenrecError, match='text'): run_grid(Grid(**settings(bare, data={'bare': dict(path=str(bare))}, ids=['rqkmeans'])), tmp_path/'p')   # nothing else is left
