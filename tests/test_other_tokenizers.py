"Product codes against brute force and faiss, trees against planted graphs, categories against loops, and bad input."
import itertools, json, os
from collections import Counter
from pathlib import Path
import numpy as np
import pytest
import scipy.sparse as sp
import torch
from hypothesis import given, settings, strategies as st
from numpy.testing import assert_allclose, assert_array_equal

from genrec_nb.other_tokenizers import (_grow_tree, _shuffled_number, _spectral_clusters, _split_cluster, category_ids, _co_occurrence, compare_identifiers,
                                        _first_tokens, _popular_first, read_categories, _split_names, tree_ids)
from genrec_nb.data import Catalog, Interactions
from genrec_nb.splits import leave_one_out
from genrec_nb.core import GenrecError, SettingError
from genrec_nb.loaders import load_dataset
from genrec_nb.semantic_ids import Identifiers
from genrec_nb.kmeans import load_quantizer, quantizer_report, residual_kmeans
from genrec_nb.product_quantization import _allocate, product_kmeans

DATA = Path(os.environ.get('GENREC_DATA') or Path(__file__).parents[1]/'../shared/data')

def correlated(n=600, d=12, seed=0):
    "Vectors whose coordinates depend on each other, with falling variances"
    rng = np.random.default_rng(seed)
    return (rng.normal(size=(n, d))*np.geomspace(3, .2, d) @ np.linalg.qr(rng.normal(size=(d, d)))[0] + 5).astype(np.float32)

def squared_error(q, x): return ((q.decode(q.encode(x)).astype(np.float64) - x)**2).sum(1).mean()


# ---- product codes ----

@pytest.mark.parametrize('rotate', [False, True])
def test_product_codes_are_the_nearest_of_all_combinations(rotate):
    x = correlated(80, 5)
    q = product_kmeans(x, 3, [3, 4, 2], rotate=rotate)
    combinations = np.array(list(itertools.product(range(3), range(4), range(2))))
    assert q.widths == [2, 2, 1]
    d = ((x[:, None] - q.decode(combinations)[None])**2).sum(-1)
    assert_array_equal(q.encode(x), combinations[d.argmin(1)])
    assert_allclose(((x - q.decode(q.encode(x)))**2).sum(1), d.min(1), rtol=1e-4, atol=1e-5)
    assert_array_equal(q.encode(x), q.fit_codes)

@pytest.mark.parametrize('seed', range(2))
def test_a_learned_rotation_is_orthogonal_and_never_worse(seed):
    x = correlated(seed=seed)
    plain, turned = (product_kmeans(x, 3, 16, rotate=r, seed=seed, n_iter=16) for r in (False, True))
    assert_allclose(turned.rotation.T @ turned.rotation, np.eye(12), atol=1e-5)
    assert squared_error(turned, x) < .9*squared_error(plain, x)
    few = [squared_error(product_kmeans(x, 3, 16, seed=seed, n_iter=n), x) for n in (8, 16)]
    assert few[1] <= few[0]*1.0001

def mixed_pieces(seed, n=400):
    "Three pieces of two dimensions, four points in each on two axes, variances balanced; mixed by a random rotation"
    rng = np.random.default_rng(seed)
    true, cross = rng.integers(4, size=(n, 3)), np.array([[1, 0], [-1, 0], [0, 1], [0, -1]])
    z = np.concatenate([(cross*w)[c] for w, c in zip(((8, 1), (6, 4/3), (4, 2)), true.T)], 1)
    return true, (z @ np.linalg.qr(rng.normal(size=(6, 6)))[0] + 3).astype(np.float32)

@pytest.mark.parametrize('seed', range(3))
def test_a_planted_rotation_is_found(seed):
    "Not one item is described wrongly, and each planted piece is one of the learned"
    true, x = mixed_pieces(seed)
    q = product_kmeans(x, 3, 4, seed=seed)
    assert squared_error(q, x) < 1e-6 < 1 < squared_error(product_kmeans(x, 3, 4, rotate=False, seed=seed), x)
    same = [[len({*zip(a, b)}) == 4 for b in q.fit_codes.T] for a in true.T]
    assert_array_equal(np.sum(same, 0), 1); assert_array_equal(np.sum(same, 1), 1)

def test_eigenvalues_go_to_the_smallest_product():
    assert _allocate(torch.tensor([8., 4, 2, 1]), [2, 2]) == [0, 3, 1, 2]
    rng = np.random.default_rng(0)
    for _ in range(20):
        values = np.sort(rng.lognormal(size=8))[::-1]
        order = _allocate(torch.tensor(values.copy()), [3, 3, 2])
        assert sorted(order) == list(range(8))
    assert sorted(_allocate(torch.tensor([3., 2, 1, 0]), [2, 2])) == [0, 1, 2, 3]        # a direction without variance

@pytest.mark.parametrize('rotate', [False, True])
def test_whitened_codes(rotate, tmp_path):
    "The nearest combination in the whitened space; with all codes that there are, exact in every direction kept"
    x = correlated(200, 6)
    q = product_kmeans(x, 2, 16, rotate=rotate, whiten=4)
    z = q.latent(torch.from_numpy(x))
    assert_allclose(np.cov(z.T, bias=True), np.eye(4), atol=1e-3)
    combinations = np.array(list(itertools.product(range(16), range(16))))
    books = sum(e[c] for e, c in zip(q.codebooks, combinations.T))
    assert_array_equal(q.encode(x), combinations[torch.cdist(z, books).argmin(1)])
    q.save(tmp_path/'q')
    again = load_quantizer(tmp_path/'q')
    assert_array_equal(again.encode(x), q.encode(x)); assert_allclose(again.decode(q.encode(x)), q.decode(q.encode(x)))
    u, s, v = np.linalg.svd(x - x.mean(0), full_matrices=False)
    kept = (x - x.mean(0)) @ v[:4].T @ v[:4] + x.mean(0)
    assert_allclose(q.restore(z), kept, atol=1e-3)
    with pytest.raises(SettingError, match='vary in 3 directions only: take that many'): product_kmeans(np.pad(x[:, :3], ((0, 0), (0, 3))), 2, 4, whiten=4)

def test_partial_decoding_and_the_report():
    x = correlated()
    q = product_kmeans(x, 3, 16)
    c = q.encode(x)
    steps = [((q.decode(c[:, :l]) - x)**2).sum() for l in range(4)]
    assert steps[0] == pytest.approx(((x - x.mean(0))**2).sum(), rel=1e-4) and sorted(steps, reverse=True) == steps
    assert_allclose(quantizer_report(q, x).unexplained, np.array(steps[1:])/steps[0], rtol=1e-4)

def test_last_distances_belong_to_the_last_piece():
    x = correlated(60)
    q = product_kmeans(x, 3, 8)
    d, codes = q.last_distances(x), q.encode(x)
    assert d.shape == (60, 8)
    assert_array_equal(d.argmin(1), codes[:, -1])
    for k in range(8):                                                           # moving at the last level changes the error by the difference
        other = codes.copy(); other[:, -1] = k
        change = ((q.decode(other) - x)**2).sum(1) - ((q.decode(codes) - x)**2).sum(1)
        assert_allclose(change, d[:, k] - d[np.arange(60), codes[:, -1]], rtol=1e-3, atol=1e-3)
    assert Identifiers.from_codes(codes, q.sizes, 'free', d).collisions()['rate'] <= Identifiers.from_codes(codes, q.sizes, 'keep').collisions()['rate']

@pytest.mark.parametrize('rotate', [False, True])
def test_product_quantizer_comes_back_from_disk(tmp_path, rotate):
    x = correlated(100)
    q = product_kmeans(x, 2, 8, rotate=rotate, seed=3)
    q.save(tmp_path)
    again = load_quantizer(tmp_path)
    for a, b in ((again.encode(x), q.encode(x)), (again.decode(q.fit_codes), q.decode(q.fit_codes)), (again.fit_codes, q.fit_codes)): assert_array_equal(a, b)
    assert (again.rotation is None) == (not rotate) and type(again) is type(q)

def test_product_codes_depend_on_the_seed_alone():
    x = correlated()
    torch.manual_seed(1); a = product_kmeans(x, 3, 16, seed=5).fit_codes
    torch.manual_seed(2); np.random.seed(2); b = product_kmeans(x, 3, 16, seed=5).fit_codes
    assert_array_equal(a, b)
    assert (a != product_kmeans(x, 3, 16, seed=6).fit_codes).any()

def test_against_faiss():
    faiss = pytest.importorskip('faiss')
    x = correlated(3000, 16)
    pq = faiss.ProductQuantizer(16, 4, 5); pq.train(x)
    ours = squared_error(product_kmeans(x, 4, 32, rotate=False), x)
    assert ours == pytest.approx(((pq.decode(pq.compute_codes(x)) - x)**2).sum(1).mean(), rel=.05)
    opq = faiss.OPQMatrix(16, 4); opq.pq = faiss.ProductQuantizer(16, 4, 5); opq.train(x)
    z = opq.apply_py(x) if hasattr(opq, 'apply_py') else opq.apply(x)
    pq.train(z)
    assert squared_error(product_kmeans(x, 4, 32), x) < 1.08*((pq.decode(pq.compute_codes(z)) - z)**2).sum(1).mean()

@pytest.mark.parametrize('x,levels,size,message', [
    (np.zeros((5, 2)), 3, 2, 'levels is 3, expected at most 2 dimensions'), (np.zeros((5, 2)), 0, 2, 'each of 0 levels'),
    (np.zeros((5, 2)), 2, 6, '5 vectors are too few, expected at least 6'), (np.full((5, 2), np.nan), 2, 2, 'vector of item 0 holds NaN'),
    (np.zeros((5, 2)), 2, [2, 2, 2], 'each of 2 levels'), (np.zeros(5), 1, 2, 'expected real')])
def test_product_quantizer_refuses(x, levels, size, message):
    with pytest.raises(GenrecError, match=message): product_kmeans(x, levels, size)

def test_vectors_of_another_width():
    q = product_kmeans(correlated(50, 6), 2, 4)
    with pytest.raises(GenrecError, match='vectors have 5 dimensions, expected 6'): q.encode(np.zeros((2, 5)))
    assert product_kmeans(correlated(50, 7), 3, 4).widths == [3, 2, 2] and 'rotated' in repr(q)


# ---- co-occurrence ----

def interactions(histories, n_items):
    return Interactions([i for h in histories for i in h], np.cumsum([0] + [len(h) for h in histories]), [str(u) for u in range(len(histories))], n_items)

histories = st.lists(st.lists(st.integers(0, 7), max_size=6), min_size=1, max_size=10)

@settings(max_examples=40, deadline=None)
@given(histories)
def test_co_occurrence_against_pairs(hs):
    pairs = Counter((a, b) for h in hs for a, b in itertools.permutations(h, 2) if a != b)
    if not pairs:
        with pytest.raises(GenrecError, match='no two items stand together'): _co_occurrence(interactions(hs, 8))
        return
    a = _co_occurrence(interactions(hs, 8)).toarray()
    assert_array_equal(a, [[pairs[i, j] for j in range(8)] for i in range(8)])

def planted(groups, links, seed=0, weight=20):
    "A graph of groups with many edges inside and `links` random edges in all between them, items in random order"
    rng = np.random.default_rng(seed)
    group = rng.permutation(np.repeat(np.arange(len(groups)), groups))
    n = len(group)
    a = np.where((group[:, None] == group) & (rng.random((n, n)) < .7), weight, 0)
    i, j = rng.integers(0, n, (2, links)); a[i, j] += 1
    a = np.triu(a, 1); a = a + a.T
    return group, sp.csr_array(a.astype(float))

def same_partition(a, b): return len(set(zip(a.tolist(), b.tolist()))) == len(set(a.tolist())) == len(set(b.tolist()))

@pytest.mark.parametrize('seed', range(3))
def test_spectral_clusters_recover_planted_groups(seed):
    group, a = planted([12, 20, 9, 30], 60, seed)
    label = _spectral_clusters(a, 4, seed)
    assert same_partition(label, group)
    _, first = np.unique(label, return_index=True)
    assert (np.diff(first) > 0).all()                                            # numbered by first items

def test_spectral_clusters_of_a_large_sparse_graph():
    group, a = planted([500, 400, 600], 3000)                                    # beyond the dense limit
    assert same_partition(_spectral_clusters(a, 3), group)

def test_items_without_edges_are_told_apart():
    _, a = planted([10, 10], 5)
    a = sp.csr_array(np.pad(a.toarray(), (0, 4)))
    label = _spectral_clusters(a, 2)
    assert_array_equal(label[20:], -1); assert set(label[:20]) == {0, 1}
    child = _split_cluster(a, 2)
    assert set(child[20:]) == {2} and set(child[:20]) == {0, 1}
    alone = _split_cluster(sp.csr_array((7, 7)), 3)
    assert sorted(np.bincount(alone)) == [2, 2, 3]                               # dealt out

@pytest.mark.parametrize('seed', range(3))
def test_tree_recovers_a_planted_tree(seed):
    "Two halves, each of two groups: strong inside a group, weak inside a half, hardly any between halves"
    group = np.random.default_rng(seed).permutation(np.repeat(np.arange(4), [20, 18, 16, 19]))
    half = group//2
    a = np.where(group[:, None] == group, 50., np.where(half[:, None] == half, 6., .1)); np.fill_diagonal(a, 0)
    levels = _grow_tree(sp.csr_array(a), 2, 20, seed)
    assert levels.shape[1] == 2 and same_partition(levels[:, 0], half)
    assert same_partition(np.unique(levels, axis=0, return_inverse=True)[1].reshape(-1), group)
    assert_array_equal(_grow_tree(sp.csr_array(a), 2, 40, seed)[:, 0], levels[:, 0])


# ---- tree ids ----

@settings(max_examples=20, deadline=None)
@given(histories, st.integers(2, 4), st.integers(1, 5), st.booleans())
def test_tree_ids_are_distinct_and_prefix_free(hs, k, leaf, share):
    x = interactions(hs + [[0, 1]], 8)
    ids = tree_ids(x, k, leaf, share)
    assert ids.n_items == 8 and ids.collisions()['rate'] == 0 and len(ids.prefix_violations()) == 0
    assert ids == tree_ids(x, k, leaf, share)
    names = [ids.names(i) for i in range(8)]
    assert all(n[-1].startswith('<leaf_') and not any(t.startswith('<leaf_') for t in n[:-1]) for n in names)
    assert all(int(n[-1][6:-1]) < leaf for n in names)
    kids = {}
    for n in names:
        for d in range(len(n)): kids.setdefault((d, tuple(n[:d])), set()).add(n[d])
    assert all(len(v) <= max(k + 1, leaf) for v in kids.values())
    if not share:                                                                # a cluster's token stands below one parent only
        parents = Counter((d, t) for (d, _), v in kids.items() for t in v if not t.startswith('<leaf_'))
        assert max(parents.values(), default=1) == 1
    assert ids.notes['unlinked'] == 8 - len({i for h in hs + [[0, 1]] if len(set(h)) > 1 for i in h})

def test_tree_sees_training_only():
    rng = np.random.default_rng(0)
    hs = [rng.choice(40, rng.integers(5, 9), replace=False).tolist() for _ in range(60)]
    other = [h[:-2] + rng.choice(np.setdiff1d(np.arange(40), h), 2, replace=False).tolist() for h in hs]     # other validation and test items
    a, b = (leave_one_out(interactions(h, 40)) for h in (hs, other))
    assert (a.test.targets != b.test.targets).all()
    assert tree_ids(a.train, 3, 5) == tree_ids(b.train, 3, 5)
    assert tree_ids(interactions(hs, 40), 3, 5) != tree_ids(a.train, 3, 5)
    for wrong in (a, load_dataset('ml-100k'), None):
        with pytest.raises(GenrecError, match=r'expected Interactions \(split.train\), found'): tree_ids(wrong)

def test_leaf_numbers_are_drawn_not_counted():
    group = np.repeat(np.arange(50), 20)
    number = _shuffled_number(group)
    assert_array_equal(np.sort(number.reshape(50, 20)), np.tile(np.arange(20), (50, 1)))
    assert abs(np.corrcoef(number, np.tile(np.arange(20), 50))[0, 1]) < .1

@pytest.mark.parametrize('x,kw,message', [
    (Interactions([], [0], [], 5), {}, 'no two items stand together in any of the 0'), (Interactions([0, 1], [0, 1, 2], ['u', 'v'], 2), {}, 'any of the 2 training'),
    (Interactions([0, 1], [0, 2], ['u'], 2), dict(clusters=1), 'at least 2 clusters'), (Interactions([0, 1], [0, 2], ['u'], 2), dict(leaf=0), 'leaf=0')])
def test_tree_refuses(x, kw, message):
    with pytest.raises(GenrecError, match=message): tree_ids(x, **kw)

def test_small_catalog_is_one_leaf(tmp_path):
    ids = tree_ids(Interactions([0, 1, 2], [0, 3], ['u'], 3))
    assert sorted(ids.names(i)[0] for i in range(3)) == ['<leaf_0>', '<leaf_1>', '<leaf_2>']
    ids.save(tmp_path)
    assert Identifiers.load(tmp_path) == ids


# ---- categories ----

@settings(max_examples=40, deadline=None)
@given(st.lists(st.lists(st.sampled_from('abc'), max_size=3), min_size=1, max_size=20))
def test_category_ids_against_a_loop(paths):
    if not any(paths):
        with pytest.raises(GenrecError, match='none of the'): category_ids(paths, 'group')
        return
    ids = category_ids(paths, 'group', seed=1)
    assert ids.collisions()['rate'] == 0 and len(ids.prefix_violations()) == 0 and ids.kind == 'categories'
    names = [ids.names(i) for i in range(len(paths))]
    assert [n[:-1] for n in names] == [[f'<category {c}>' for c in p] or ['<no category>'] for p in paths]
    for p in set(map(tuple, paths)):
        assert sorted(int(n[-1][6:-1]) for n, q in zip(names, paths) if tuple(q) == p) == list(range(paths.count(list(p))))
    assert ids.notes['missing'] == paths.count([]) and ids == category_ids(paths, 'group', seed=1)

@pytest.mark.parametrize('paths,kw,message', [
    ([['a'], []], {}, r"item 1 has no category \(1 of 2 items\): missing='group'"), ([['a'], 'b'], {}, "item 1 has the categories 'b', expected a list"),
    ([['a'], ['a', ' ']], {}, 'item 1 has the categories'), ([['a'], None], {}, 'item 1'), ([['a']], dict(missing='drop'), "missing is 'drop', expected one of error, group"), ([], {}, 'none of the 0')])
def test_categories_refuse(paths, kw, message):
    with pytest.raises(GenrecError, match=message): category_ids(paths, **kw)

def test_reading_categories(tmp_path):
    catalog = Catalog(['b', 'a'], ['B', 'A'], ['', ''])
    f = tmp_path/'Shop.item.json'
    f.write_text(json.dumps({'a': dict(title='A', categories='X,Y, Z'), 'b': dict(title='B', categories=None)}))
    assert read_categories(tmp_path, catalog) == read_categories(f, catalog) == [[], ['X', 'Y, Z']]
    assert read_categories(f, catalog, separator=', ') == [[], ['X,Y', 'Z']]
    with pytest.raises(GenrecError, match="no item has a field 'tags'; the fields are categories, title"): read_categories(f, catalog, 'tags')
    with pytest.raises(GenrecError, match="lacks 1 of the catalog's 3 items, the first is 'c'"): read_categories(f, Catalog(['a', 'b', 'c'], ['A', 'B', 'C'], ['']*3))
    (tmp_path/'empty').mkdir()
    with pytest.raises(GenrecError, match='found none'): read_categories(tmp_path/'empty', catalog)
    f.write_text('["a"]')
    with pytest.raises(GenrecError, match='expected an object'): read_categories(f, catalog)
    (tmp_path/'r').mkdir()
    (tmp_path/'r'/'r.item').write_text('item_id:token\ttags:token_seq\na\tx y\nb\t\n')
    assert read_categories(tmp_path/'r', catalog, 'tags', ' ') == [[], ['x', 'y']]

def test_unordered_labels():
    assert _popular_first([['rare', 'x'], ['x', 'y', 'x'], ['y', 'x'], []], least=2) == [['x'], ['x', 'y'], ['x', 'y'], []]
    assert _split_names(['a b', None], ' ') == [['a', 'b'], []] and _split_names([]) == []

def test_genres_follow_the_catalog():
    catalog = load_dataset('ml-100k').catalog
    genres = read_categories('ml-100k', catalog)
    assert sorted(genres[catalog.find('Toy Story (1995)')]) == ['Animation', "Children's", 'Comedy']
    assert all(all(g in t for g in gs) or gs == ['unkonwn'] for gs, t in zip(genres, catalog.texts))

def test_scientific_categories():
    if not (DATA/'Scientific').is_dir(): pytest.skip('set GENREC_DATA to the folder with the published data sets')
    catalog = load_dataset(DATA/'Scientific').catalog
    paths = read_categories(DATA/'Scientific', catalog)
    assert sum(not p for p in paths) == 131 and ['Industrial & Scientific', 'Tapes, Adhesives & Sealants', 'Adhesive Tapes', 'Duct Tape'] in paths
    with pytest.raises(GenrecError, match='131 of 4344 items'): category_ids(paths)
    ids = category_ids(paths, 'group')
    assert ids.collisions()['rate'] == 0 and ids.lengths.min() == 2


# ---- side by side ----

def test_comparison():
    ids = Identifiers.from_codes(np.array([[0, 0], [0, 0], [1, 2], [3, 0]]), [4, 4], 'keep')
    assert_array_equal(_first_tokens(ids), [2, 1, 1])
    row = compare_identifiers(dict(a=ids)).loc['a']
    assert row['tokens'] == 2 and row['vocabulary'] == 11 and row['first'] == 3 and row['collisions %'] == 25 and row['largest'] == 2
    assert row['perplexity'] == pytest.approx(np.exp(-(.5*np.log(.5) + 2*.25*np.log(.25))))
