"Own vectors: by row or by id, in run, tokenize and assign; equal ones are one point."
import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, strategies as st
from oracles import small_data
from typer.testing import CliRunner
from genrec_nb.cli import app
from genrec_nb.core import FileError, GenrecError, GenrecWarning, SettingError, _write_tensors
from genrec_nb.data import Catalog
from genrec_nb.embed import embed_texts
from genrec_nb.loaders import load_dataset
from genrec_nb.own_vectors import _merge_equal, _own_vectors
from genrec_nb.recommender import GenerativeRecommender, RecommenderConfig
from genrec_nb.splits import leave_one_out
from genrec_nb.tokenizer import assign_file, load_tokenized, tokenize_items
from genrec_nb.tokenizer_config import TokenizerConfig
from genrec_nb.trial import DataConfig, Trial
import genrec_nb.tokenize as tokenize_module

IDS = ['a', 'b', 'c']
X = np.array([[1., 2], [3, 4], [5, 7]], np.float32)
CONFIG = TokenizerConfig('rqkmeans', encoder='tfidf', size=6, levels=2)

def write(path, x=X, ids=IDS, column='item', wide=False):
    "The same vectors in one of the formats"
    if path.suffix == '.npy': np.save(path, x)
    elif path.suffix == '.safetensors': _write_tensors(path, dict(x=torch.as_tensor(x)))
    elif wide: pd.DataFrame({column: ids} | {f'd{k}': v for k, v in enumerate(np.asarray(x).T)}).to_parquet(path)
    else: pd.DataFrame({column: ids, 'vector': list(x)}).to_parquet(path)
    return path

@pytest.mark.parametrize('name, more', [('x.npy', {}), ('x.safetensors', {}), ('x.parquet', {}), ('x.parquet', dict(wide=True)), ('x.parquet', dict(column='parent_asin')),
                                        ('x.parquet', dict(x=X[[2, 0, 1]], ids=['c', 'a', 'b']))])
def test_one_set_of_vectors_in_every_format(tmp_path, name, more):
    found = _own_vectors(write(tmp_path/name, **more), IDS)
    assert found.dtype == np.float32 and (found == X).all()

def test_numbers_as_ids(tmp_path):
    assert (_own_vectors(write(tmp_path/'x.parquet', ids=[3, 1, 2]), ['1', '2', '3']) == X[[1, 2, 0]]).all()

@pytest.mark.parametrize('name, more, words', [
    ('x.npy', dict(x=X[:2]), 'found 2 rows, but the catalog has 3'), ('x.npy', dict(x=np.array([[1, np.nan], [1, 2], [3, 4]])), 'item 0 holds NaN'),
    ('x.parquet', dict(ids=['a', 'b', 'b']), "1 id stands more than once, the first is 'b'"), ('x.parquet', dict(ids=['a', 'b', 'x']), "1 of 3 items has no vector, the first is 'c'"),
    ('x.parquet', dict(column='thing'), 'no column of ids; found thing, vector'), ('x.parquet', dict(x=[[1.], [1., 2], [3.]]), 'not vectors of one length'),
    ('x.parquet', dict(x=[['u'], ['v'], ['w']]), 'not vectors of one length'), ('x.npy', dict(x=np.ones((3, 2))), 'all 3 vectors are equal')])
def test_bad_files_are_one_line(tmp_path, name, more, words):
    with pytest.raises(GenrecError, match=words) as e: _own_vectors(write(tmp_path/name, **more), IDS)
    assert str(tmp_path/name) in str(e.value) and '\n' not in str(e.value)

def test_no_file_and_no_parquet(tmp_path):
    (tmp_path/'x.parquet').write_text('hello')
    for path in (tmp_path/'x.parquet', tmp_path/'none.npy'):
        with pytest.raises(FileError, match=path.name): _own_vectors(path, IDS)
    with pytest.warns(GenrecWarning, match="1 of 3 ids is not in the catalog and was left out, the first is 'c'"):
        assert (_own_vectors(write(tmp_path/'y.parquet'), ['b', 'a']) == X[[1, 0]]).all()

@given(st.integers(0, 10**6), st.integers(1, 60), st.integers(1, 8))
def test_equal_vectors_are_one_point(seed, n, groups):
    "Whatever the order and the noise: as many points as groups, each the first vector of its group, bit by bit"
    rng = np.random.default_rng(seed)
    centers = (rng.permutation(groups)[:, None] + rng.normal(size=(groups, 16))*.05).astype(np.float32)
    of = np.r_[np.arange(groups), rng.integers(0, groups, n)][rng.permutation(groups + n)]
    x = (centers[of] + rng.normal(size=(len(of), 16))*1e-7).astype(np.float32)
    out, first = _merge_equal(x), [int(np.flatnonzero(of == g)[0]) for g in of]
    assert (out == x[first]).all()

def test_equal_texts_get_one_code():
    "50 equal texts of an encoder that rounds: one path before the policy"
    rng = np.random.default_rng(0)
    x = rng.normal(size=(200, 32)).astype(np.float32)
    x[:50] = x[0] + rng.normal(size=(50, 32))*3e-7
    catalog = Catalog([str(i) for i in range(200)], ['t']*200, ['t']*200)
    class Rounding:
        key, fitted = 'rounding', True
        def encode(self, texts, batch_size=0): return x
    from genrec_nb.tokenizer import _add_vectors, Sources
    s = Sources(None, None)
    _add_vectors(s, catalog.texts, None, x)
    assert len(np.unique(s.vectors[:50], axis=0)) == 1 and (s.vectors[50:] == x[50:]).all()

@pytest.fixture(scope='module')
def toy(tmp_path_factory):
    "A small data set, the vectors of its texts in a Parquet file in another order, and a tokenizer made of them"
    folder = tmp_path_factory.mktemp('own')
    path = small_data(folder/'toy')
    data = load_dataset(path)
    x, order = embed_texts(data.catalog.texts, 'tfidf'), np.random.default_rng(0).permutation(40)
    file = write(folder/'x.parquet', x[order], [data.catalog.ids[i] for i in order])
    with pytest.MonkeyPatch.context() as m:
        m.setattr(tokenize_module, '_tokenizer_page', lambda *a: type('Page', (), dict(save=lambda self, p: p.touch()))())
        tokenize_module.tokenize(str(path), CONFIG, folder/'t', vectors=str(file))
    return path, data, x, file, folder/'t'

def test_a_tokenizer_of_own_vectors_is_that_of_the_same_vectors(toy, tmp_path):
    path, data, x, file, folder = toy
    made = load_tokenized(folder)
    assert made.ids == tokenize_items(data, None, CONFIG, vectors=x).ids and made.ids.notes['own_vectors']
    pd.DataFrame(dict(item=['n'], title=['New'])).to_csv(tmp_path/'new.csv', index=False)
    with pytest.raises(GenrecError, match='made from given vectors'): assign_file(folder, tmp_path/'new.csv', tmp_path/'a.json')
    with pytest.raises(GenrecError, match='have 3 dimensions'): assign_file(folder, tmp_path/'new.csv', tmp_path/'a.json', vectors=write(tmp_path/'n.parquet', np.ones((1, 3)), ['n']))
    ids, new, n = assign_file(folder, tmp_path/'new.csv', tmp_path/'a.json', vectors=write(tmp_path/'n.parquet', x[7:8], ['n']))
    assert n == 40 and ids.path(40)[:2].tolist() == ids.path(7)[:2].tolist()      # it lies where item 7 lies

def test_own_vectors_name_identifiers_and_need_no_texts(toy, tmp_path):
    "Keys follow the file's content, not its place; without a file they are what they were; a tokenizer without texts ignores it"
    path, data, x, file, _ = toy
    def keys(vectors, method='rqkmeans'): return Trial(DataConfig(str(path), vectors=vectors), 'd', RecommenderConfig(tokenizer=dict(method=method))).identifier_keys
    moved = tmp_path/'y.parquet'
    moved.write_bytes(file.read_bytes())
    assert keys(str(file)) == keys(str(moved)) != keys(None) and keys(str(file), 'random') == keys(None, 'random')
    bare = small_data(tmp_path/'bare', text=False)
    c = DataConfig(str(bare), vectors=str(file))
    Trial(c, 'd', RecommenderConfig(tokenizer=CONFIG)).check(*c.load())
    with pytest.raises(GenrecError): Trial(DataConfig(str(bare)), 'd', RecommenderConfig(tokenizer=CONFIG)).check(*c.load())

def test_two_new_items_may_have_one_vector(toy, tmp_path):
    path, data, x, file, folder = toy
    made = load_tokenized(folder)
    rec = GenerativeRecommender(data.catalog, made.ids, leave_one_out(data.interactions).train.target_counts(), None, RecommenderConfig(tokenizer=CONFIG, model=dict(d_model=16, num_heads=2, num_layers=1)), made.quantizer)
    new = pd.DataFrame(dict(item=['n', 'm'], title=['New', 'Newer']))
    with pytest.raises(GenrecError, match='vectors have 3 dimensions, expected'): rec.add_items(new, vectors=np.ones((2, 3)))
    with pytest.raises(FileError, match='a folder; expected item vectors as'): rec.add_items(new, vectors=tmp_path)
    (tmp_path/'x.csv').write_text('1,2')
    with pytest.raises(FileError, match=r'expected item vectors as .npy, .safetensors or .parquet'): rec.add_items(new, vectors=tmp_path/'x.csv')
    rec.add_items(new, vectors=np.stack([x[7], x[7]]))
    assert len(rec.catalog) == 42 and rec.ids.path(40)[:2].tolist() == rec.ids.path(41)[:2].tolist()

def test_new_items_of_a_recommender_of_own_vectors(toy, tmp_path):
    path, data, x, file, folder = toy
    config = RecommenderConfig(tokenizer=CONFIG, model=dict(d_model=16, num_heads=2, num_layers=1))
    made = load_tokenized(folder)
    rec = GenerativeRecommender(data.catalog, made.ids, leave_one_out(data.interactions).train.target_counts(), None, config, made.quantizer)
    new = pd.DataFrame(dict(item=['n'], title=['New']))
    with pytest.raises(SettingError, match='vectors=FILE'): rec.add_items(new)
    rec.save_pretrained(tmp_path/'rec')
    rec.add_items(new, vectors=write(tmp_path/'n.parquet', x[7:8], ['n']))
    assert rec.ids.path(40)[:2].tolist() == rec.ids.path(7)[:2].tolist() and rec.recommend(['n'], 3)
    # the command does the same
    new.to_csv(tmp_path/'new.csv', index=False)
    shell, command = CliRunner(), ['recommend', str(tmp_path/'rec'), '--history', 'n', '-k', '3', '--vectors', str(tmp_path/'n.parquet')]
    assert isinstance(shell.invoke(app, command).exception, SettingError)          # vectors of what?
    r = shell.invoke(app, [*command, '--items', str(tmp_path/'new.csv')])
    assert r.exception is None and all(f' {x.id} ' in r.stdout for x in rec.recommend(['n'], 3)), r.stdout
