"Published tables: every row can be run, the report is a function of the rows, what is published stands beside ours"
import json
from dataclasses import replace
from pathlib import Path
import numpy as np
import pytest
from typer.testing import CliRunner
from oracles import small_data
import genrec_nb.experiments.reproduce as reproduce
from genrec_nb.report import Page
from genrec_nb.cli import app, _explain_error
from genrec_nb.core import SettingError, tomllib
from genrec_nb.other_tokenizers import word_ids
from genrec_nb.experiments.execution import _make_plan, run_grid
from genrec_nb.experiments.grid import Grid
from genrec_nb.experiments.paper_tables import TABLES
from genrec_nb.experiments.reproduce import _find_data, _thirds, read_table, reproduce_page, reproduce_text, reproduced
from genrec_nb.experiments.results import Block, read_results
from genrec_nb.comparisons import Scores

RESULTS = Path(__file__).parents[1]/'nbs'/'results'
IDENTIFIERS = 'random', 'P5-TID', 'P5-SemID', 'P5-CID', 'TIGER', 'residual k-means', 'LETTER'
TINY = dict(packed=dict(d_model=16, num_heads=2, num_layers=1), t5=dict(d_model=16, d_ff=16, num_layers=1, num_decoder_layers=1, num_heads=2, d_kv=8))


def tiny(table, folder):
    "The same rows with models of a few numbers: one epoch, one seed, short codes"
    g = table.grid
    vectors = folder/'cf.npy'
    np.save(vectors, np.random.default_rng(0).normal(size=(200, 32)).astype(np.float32))
    def tokenizer(s):
        if 'levels' in s: s = s | dict(levels=2, size=16)
        if s['method'] in ('rqvae', 'rqkmeans', 'letter'): s = s | dict(encoder='tfidf')
        if s['method'] in ('rqvae', 'letter'): s = s | dict(steps=8, hidden=[8], batch=32)
        if s['method'] == 'letter': s = s | dict(cf=str(vectors), clusters=2)
        return s | dict(leaf=30) if s['method'] == 'tree' else s
    def method(m):
        kind = m.get('backbone', 'packed')
        soft = {k: m.get('model', g.model)[k] for k in ('softmax', 'prior') if k in m.get('model', g.model)}
        return m | dict(model=TINY[kind] | soft, train=dict(epochs=1, eval_every=1, batch_size=64)) | ({'tokenizer': tokenizer(m['tokenizer'])} if 'tokenizer' in m else {})
    ids = {n: tokenizer({k: v for k, v in s.items() if k != 'point'}) for n, s in g.ids.items()}
    fast = {n: {k: v for k, v in b.items() if k == 'kind'} | ({} if 'epochs' not in b else dict(epochs=1, dim=8, eval_every=1)) for n, b in g.baselines.items()}
    grid = Grid(g.data, ids, {n: method(m) for n, m in g.weightings.items()}, fast, g.alphas, [0], reference=g.reference, title=g.title, keep_models=False,
                decode=g.decode | dict(beams=20) if g.decode else {})
    return replace(table, grid=grid)


@pytest.fixture(scope='module')
def sample(tmp_path_factory):
    "200 items with titles and categories"
    folder = small_data(tmp_path_factory.mktemp('data')/'toy', users=60, items=200)
    path = folder/'toy.item.json'
    items = json.loads(path.read_text())
    path.write_text(json.dumps({i: x | dict(categories=f'goods, group {int(i) % 5}') for i, x in items.items()}))
    return folder


@pytest.fixture(scope='module')
def main_table(sample, tmp_path_factory):
    "LETTER's main table, trained on the sample, with two of its baselines"
    out = tmp_path_factory.mktemp('main')
    t = tiny(read_table('letter-main', str(sample)), out)
    t.grid.baselines = {n: t.grid.baselines[n] for n in ('popularity', 'mf')}
    return t, run_grid(t.grid, out/'o'), out/'o'


@pytest.mark.parametrize('name', TABLES)
def test_published_rows_are_rows_of_the_grid(name):
    t = read_table(name)
    rows = set(t.rows or t.grid.methods)
    assert all(set(x) <= rows for x in t.published.values()) and set(t.differs) - {'generators', 'baselines'} <= rows and {t.published_reference} <= {'', *rows}
    assert all(m in t.grid.methods and a in t.grid.alphas for m, a in t.rows.values()) and t.grid.reference in rows
    assert all(len(pair) == 2 and 0 <= pair[1] <= pair[0] < 1 for x in t.published.values() for pair in x.values())
    assert t.source and 'generators' in t.differs


@pytest.mark.parametrize('generator', ['', ', T5'], ids=['item decoder', 'T5'])
@pytest.mark.parametrize('name', IDENTIFIERS)
def test_every_kind_of_identifier_can_be_a_row_with_either_generator(main_table, name, generator):
    _, results, _ = main_table
    (row,) = (r for r in results.trials.values() if r['method'] == name + generator)
    assert row['config']['backbone'] == ('t5' if generator else 'packed') and 0 <= row['decodings']['0']['test']['metrics']['recall@20'] <= 1 and row['parameters'] > 0


def test_ours_stands_beside_the_published_figures(main_table):
    t, results, _ = main_table
    block = Block(results)
    found = reproduced(t, block)
    assert list(found.index) == block.methods and len(found) == 16
    np.testing.assert_allclose(found['mean'], block.scores('ndcg@10').means()[:, 0])
    assert found.loc['LETTER, T5', 'published'] == .0831 and found.off.isna().all() and 'published on Instruments, here toy' in found.differs['mf']
    s = block.scores('ndcg@10')
    ref = s.means()[s.index('TIGER'), 0]
    assert found.loc['mf', 'relative'] == pytest.approx(s.means()[s.index('mf'), 0]/ref - 1)
    same = reproduced(replace(t, data='Beauty'), block, 'recall@10')          # as if these were the paper's data
    assert same.loc['mf', 'off'] == pytest.approx(same.loc['mf', 'mean'] - .0474)
    assert same.loc['mf', 'published_relative'] == pytest.approx(.0474/.0610 - 1) and same.loc['TIGER, T5', 'published_relative'] == 0
    ablation = replace(read_table('letter-ablation'), data='Beauty')
    assert tomllib.loads(TABLES['letter-ablation'])['published']['Beauty']['LETTER'] == [.0672, .0357] and ablation.published['Beauty']['RQ-VAE'] == [.061, .0331]


def test_the_report_is_a_pure_function_of_the_rows(main_table, tmp_path):
    t, results, out = main_table
    (tmp_path/'x.jsonl').write_bytes((out/'results.jsonl').read_bytes())
    text = reproduce_text(t, results)
    assert text == reproduce_text(t, read_results(tmp_path/'x.jsonl')) and 'Source: LETTER' in text and 'All rows: published on Instruments, here toy.' in text
    assert 'All rows: seen items are excluded, where the papers keep them.' in text and 'Generators: 8 epochs' in text and 'Baselines: up to 24' in text and 'its %: published, relative to TIGER, T5' in text
    assert '8 epochs' not in reproduced(t, Block(results)).differs['mf'] and '8 epochs' in reproduced(t, Block(results)).differs['TIGER']
    with pytest.raises(SettingError, match='other methods than igd'): reproduce_text(read_table('igd'), results)


def test_stored_rows_are_reported_where_the_data_are_not(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    call = ['reproduce', 'letter-ablation', '--data', 'Scientific', '--report', '--out', str(RESULTS/'letter-ablation-scientific.jsonl')]
    found = CliRunner().invoke(app, call)
    assert found.exit_code == 0 and 'RQ-VAE' in found.output and (tmp_path/'runs'/'reproduce-letter-ablation-Scientific.html').is_file()
    assert CliRunner().invoke(app, call[:5]).exit_code != 0                    # there are no rows


def test_rows_of_other_identifiers_are_refused(tmp_path):
    "One method of the same name is not enough"
    stored = read_results(RESULTS/'ids-scientific.jsonl')
    for name in ('letter-sweeps', 'multi-target'):
        with pytest.raises(SettingError, match=f'other identifiers than {name}: .*rqkmeans'): reproduce_text(read_table(name), stored)


def test_the_two_by_two_of_igd_reads_one_training_at_two_strengths(sample, tmp_path, monkeypatch):
    t = tiny(read_table('igd', str(sample)), tmp_path)
    t.grid.weightings = {n: t.grid.weightings[n] for n in ('BIGRec', 'BIGRec, IGD-tuning')}
    results = run_grid(t.grid, tmp_path/'o')
    found, block = reproduced(t, Block(results)), Block(results)
    assert list(found.index) == ['popularity', 'transitions', 'rules', 'BIGRec', 'BIGRec + IGD-decoding', 'BIGRec + IGD-tuning', 'BIGRec + IGD']
    monkeypatch.setattr(reproduce, 'results_page', lambda results: Page('', sections=[('the rest', '', '')]))      # has its own tests
    assert [s[0] for s in reproduce_page(t, results).sections] == ['toy, words: ours and the published', 'the rest']
    for row, (method, a) in list(t.rows.items())[:4]: assert found['mean'][row] == pytest.approx(block.evaluations(a)[method][0]['ndcg@10'])


def test_thirds_hold_a_third_of_the_interactions_each():
    counts = np.array([1, 5, 1, 1, 3, 2, 2])
    masks = _thirds(Scores(np.zeros((1, 1, 7)), ['a'], targets=np.arange(7)), counts)
    assert {k: np.flatnonzero(m).tolist() for k, m in masks.items()} == dict(head=[1], middle=[4, 5], tail=[0, 2, 3, 6])


def test_data_without_categories_and_texts_lose_these_rows_only(tmp_path):
    bare = small_data(tmp_path/'bare', items=300, text=False)
    plan = _make_plan(read_table('letter-main', str(bare)).grid)
    lost = {m for *_, m in plan.missing}
    assert {f'{m}{g}' for m in ('P5-TID', 'P5-SemID', 'TIGER', 'LETTER', 'residual k-means') for g in ('', ', T5')} == lost and {'random', 'P5-CID'} <= {about[2] for about, _ in plan.trials}


def test_names_are_looked_for_and_mistakes_told(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    small_data(tmp_path/'data'/'toy')
    assert _find_data('toy') == 'data/toy' and _find_data('ml-100k') == 'ml-100k' and read_table('igd', 'toy').grid.data == {'toy': dict(path='data/toy')}
    with pytest.raises(SettingError, match="did you mean 'letter-ablation'"): read_table('letter-ablations')
    shell = CliRunner(env={'COLUMNS': '110', 'TERM': 'dumb'})
    listed = shell.invoke(app, ['reproduce']).stdout
    assert all(name in listed for name in TABLES)
    r = shell.invoke(app, ['reproduce', 'igd', '--data', 'toy', '--dry-run'])
    assert r.exit_code == 0 and '21 of 21 are to do' in r.stdout
    wrong = shell.invoke(app, ['reproduce', 'igd', '--data', 'nowhere']).exception
    assert 'no known data set' in _explain_error(wrong)[0]


def test_words_of_titles_as_identifiers():
    titles = ['The Red Saw', 'the red saw', 'Red, the saw!', '...', 'The Red Saw and more']
    ids = word_ids(titles, words=3)
    assert ids.kind == 'words' and ids.collisions()['rate'] == 0 and len(ids.prefix_violations()) == 0
    named = [ids.names(i) for i in range(5)]
    assert [n[:-1] for n in named] == [['<word the>', '<word red>', '<word saw>']]*2 + [['<word red>', '<word the>', '<word saw>'], ['<no word>'], ['<word the>', '<word red>', '<word saw>']]
    assert sorted(n[-1] for n in (named[0], named[1], named[4])) == ['<item_0>', '<item_1>', '<item_2>']
