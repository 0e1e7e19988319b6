"Item-kNN, EASE and matrix factorization: against dense algebra and loops, saved and loaded."
import math
import numpy as np
import pytest
import torch
from hypothesis import given, strategies as st
from genrec_nb.core import GenrecError
from genrec_nb.linear_baselines import EASEConfig, ItemKNNConfig, MFConfig, train_ease, train_item_knn, train_mf
from genrec_nb.metrics import popularity_ranking, ranking_metrics
from genrec_nb.rankers import load_ranker, save_ranker
from genrec_nb.splits import Cases, leave_one_out
from oracles import few
from test_baselines import ring

@pytest.fixture(scope='module')
def split(): return leave_one_out(ring())

def dense(train):
    X = np.zeros((train.n_users, train.n_items))
    for u in range(train.n_users): X[u, train.user(u)] = 1
    return X

HOW = {'itemknn': lambda s: train_item_knn(s, ItemKNNConfig(neighbors=4, shrink=1.)), 'ease': lambda s: train_ease(s, EASEConfig(l2=2.)),
       'mf': lambda s: train_mf(s, MFConfig(dim=8, epochs=10, batch_size=256))}
every = pytest.mark.parametrize('kind', list(HOW))

@pytest.mark.parametrize('l2', [.5, 20.])
def test_ease_is_a_ridge_regression_of_each_item_on_the_others(split, l2):
    X, W = dense(split.train), train_ease(split, EASEConfig(l2=l2)).weights.numpy()
    for j in range(0, X.shape[1], 5):
        others = np.delete(np.arange(X.shape[1]), j)
        A = X[:, others]
        np.testing.assert_allclose(W[others, j], np.linalg.solve(A.T @ A + l2*np.eye(len(others)), A.T @ X[:, j]), atol=1e-5)
    assert not W.diagonal().any()

def test_neighbors_against_loops(split):
    X, k = dense(split.train), 4
    W = train_item_knn(split, ItemKNNConfig(neighbors=k, shrink=1.)).weights.numpy()
    n = X.shape[1]
    cosine = np.array([[0. if i == j else X[:, i] @ X[:, j]/(math.sqrt(X[:, i].sum()*X[:, j].sum()) + 1) for j in range(n)] for i in range(n)])
    for j in range(n):
        kth = sorted(cosine[:, j], reverse=True)[k - 1]
        np.testing.assert_allclose(W[:, j], np.where(cosine[:, j] >= kth, cosine[:, j], 0.), atol=1e-6)

@few
@given(st.lists(st.integers(0, 25), min_size=1, max_size=8))
def test_scores_sum_the_rows_of_different_items(history):
    model = test_scores_sum_the_rows_of_different_items.model
    case = Cases(np.zeros(1, int), np.array(history), np.array([0, len(history)]), np.zeros(1, int))
    np.testing.assert_allclose(model.scores(case)[0], sum(model.weights[i] for i in set(history)), atol=1e-5)

test_scores_sum_the_rows_of_different_items.model = train_ease(leave_one_out(ring()), EASEConfig(l2=2.))

def test_mf_ranks_by_inner_products_and_propagates_nothing(split):
    model = HOW['mf'](split)
    np.testing.assert_allclose(model.scores(split.test), model.users[split.test.users] @ model.items.T, rtol=1e-6)
    assert type(model).__name__ == 'MF' and model.settings.layers == 0 and model.history

@every
def test_beats_popularity(split, kind):
    floor = ranking_metrics(popularity_ranking(split.train.item_counts(), split.test, 5), split.test.targets, (5,))['recall@5']
    model = train_mf(split, MFConfig(dim=8, epochs=60, eval_every=60, batch_size=256, patience=0)) if kind == 'mf' else HOW[kind](split)
    assert ranking_metrics(model.rank(split.test, 5), split.test.targets, (5,))['recall@5'] > floor

@every
def test_saved_and_loaded(split, tmp_path, kind):
    model = HOW[kind](split)
    save_ranker(model, tmp_path/'m')
    again = load_ranker(tmp_path/'m')
    assert type(again) is type(model) and again.settings == model.settings and again.split == split.fingerprint and repr(again) == repr(model)
    np.testing.assert_array_equal(again.rank(split.test, 5), model.rank(split.test, 5))

def test_what_cannot_be():
    for config, given, words in ((EASEConfig, dict(l2=0), 'l2 is 0'), (ItemKNNConfig, dict(neighbors=0), 'neighbors is 0'), (MFConfig, dict(dim=0), 'dim is 0')):
        with pytest.raises(GenrecError, match=words): config(**given)
