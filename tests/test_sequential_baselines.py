"SASRec beside LightGCN: against loops, for leaks, seeds and cold items, saved and loaded"
import json
import math
import random
from dataclasses import replace
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, strategies as st
from genrec_nb.baselines import LightGCNConfig, train_lightgcn
from genrec_nb.core import GenrecError
from genrec_nb.data import Interactions
from genrec_nb.splits import Cases, Split, leave_one_out
from genrec_nb.metrics import evaluate_ranking, popularity_ranking, ranking_metrics
from genrec_nb.sequential_baselines import SASRec, SASRecConfig, _own_random_state, _catalog_ce, _left_aligned, train_collaborative_embeddings, train_sasrec
from genrec_nb.rankers import load_ranker, save_ranker
from oracles import few
from test_baselines import ring

QUICK = dict(sasrec=SASRecConfig(dim=8, epochs=4, eval_every=2, batch_size=16), lightgcn=LightGCNConfig(dim=8, epochs=10, batch_size=256))
TRAIN = dict(sasrec=train_sasrec, lightgcn=train_lightgcn)
both = pytest.mark.parametrize('method', ['sasrec', 'lightgcn'])

@pytest.fixture(scope='module')
def split(): return leave_one_out(ring())

@pytest.fixture(scope='module')
def models(split): return {m: TRAIN[m](split, QUICK[m], seed=3) for m in TRAIN}

def with_targets(split, part, targets):
    "The same split, another truth in one part"
    c = getattr(split, part)
    new = Cases(c.users, c.items, c.offsets, targets)
    return Split(split.train, new if part == 'valid' else split.valid, new if part == 'test' else split.test, split.skipped)

@both
def test_rank_against_one_case_at_a_time(models, split, method):
    model, cases = models[method], split.test
    ranked = model.rank(cases, 30)
    assert ranked.shape == (len(cases), 30) and ranked.dtype == np.int64
    for m in range(0, len(cases), 7):
        one = Cases(cases.users[m:m + 1], cases.history(m), np.array([0, len(cases.history(m))]), cases.targets[m:m + 1])
        with torch.no_grad(): s = model.scores(one)[0].double().numpy()
        seen = set(cases.history(m).tolist())
        want = [i for i in np.argsort(-s, kind='stable').tolist() if i not in seen]
        np.testing.assert_allclose(s[ranked[m][ranked[m] >= 0]], s[want], atol=1e-5)         # rounding may swap near equals
        assert (ranked[m] >= 0).sum() == len(want) and not seen & set(ranked[m].tolist())

@both
def test_seen_items_can_be_kept(models, split, method):
    assert (models[method].rank(split.test, 26, exclude_seen=False) >= 0).all()

def test_learns_the_ring(models, split):
    floor = ranking_metrics(popularity_ranking(split.train.item_counts(), split.test, 5), split.test.targets, (5,))['recall@5']
    trained = train_sasrec(split, SASRecConfig(dim=16, epochs=15, eval_every=5, batch_size=16))
    e = evaluate_ranking(trained.rank(split.test, 10), split.test, split.train, (5, 10))
    assert e['recall@5'] > 2*floor

@few
@given(st.integers(1, 9), st.integers(1, 7), st.integers(1, 12), st.integers(0, 10**6))
def test_ce_against_a_loop(n, items, rows, seed):
    g = torch.Generator().manual_seed(seed)
    h, e, b, y = torch.randn(n, 3, generator=g), torch.randn(items, 3, generator=g), torch.randn(items, generator=g), torch.randint(items, (n,), generator=g)
    loss = 0.
    for t in range(n):
        scores = [sum(float(h[t, k])*float(e[i, k]) for k in range(3)) + float(b[i]) for i in range(items)]
        loss += math.log(sum(map(math.exp, scores))) - scores[int(y[t])]
    assert float(_catalog_ce(h, e, y, b, rows)) == pytest.approx(loss/n, abs=1e-5)

def test_ce_gradients_in_double_precision():
    g = torch.Generator().manual_seed(0)
    h, e = (torch.randn(n, 4, dtype=torch.float64, generator=g, requires_grad=True) for n in (11, 6))
    b, y = torch.randn(6, dtype=torch.float64, generator=g), torch.randint(6, (11,), generator=g)
    assert torch.autograd.gradcheck(lambda h, e: _catalog_ce(h, e, y, b, rows=4), (h, e))
    for ours, theirs in zip(torch.autograd.grad(3*_catalog_ce(h, e, y, b, 4), (h, e)), torch.autograd.grad(3*F.cross_entropy(h @ e.T + b, y), (h, e))):
        torch.testing.assert_close(ours, theirs)

def test_ce_with_scores_that_overflow():
    h, e = torch.tensor([[300.]]), torch.tensor([[1.], [-1.]])
    assert float(_catalog_ce(h, e, torch.tensor([0]))) == 0 and float(_catalog_ce(h, e, torch.tensor([1]))) == 600

def test_forward_is_the_mean_over_every_question(split):
    torch.manual_seed(0)
    model = SASRec(26, SASRecConfig(dim=8)).eval()
    model.prior = torch.randn(26)
    items = torch.tensor([[1, 2, 3, 4], [5, 6, -1, -1]])
    losses = []
    for row in ([1, 2, 3, 4], [5, 6]):
        for t in range(1, len(row)):
            h = model.read(torch.tensor([row[:t]]))[0, -1]
            losses.append(F.cross_entropy(model.item.weight @ h + model.prior, torch.tensor(row[t])))
    torch.testing.assert_close(model(items)['loss'], torch.stack(losses).mean())

@few
@given(st.integers(1, 7), st.integers(0, 10**6))
def test_the_future_does_not_change_the_past(t, seed):
    rng = np.random.default_rng(seed)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = SASRec(9, SASRecConfig(dim=8, heads=4)).eval()
    a = rng.integers(0, 9, (2, 8)); b = a.copy(); b[:, t:] = rng.integers(-1, 9, (2, 8 - t))
    with torch.no_grad(): x, y = (model.read(torch.from_numpy(i))[:, :t] for i in (a, b))
    torch.testing.assert_close(x, y)

def test_padding_does_not_change_scores(models):
    short = Cases(np.array([0]), np.array([3, 4]), np.array([0, 2]), np.array([5]))
    pair = Cases(np.array([0, 1]), np.array([3, 4, 1, 2, 3, 4, 5, 6]), np.array([0, 2, 8]), np.array([5, 7]))
    with torch.no_grad(): torch.testing.assert_close(models['sasrec'].scores(short)[0], models['sasrec'].scores(pair)[0])

def test_only_the_last_items_are_read():
    torch.manual_seed(0)
    model = SASRec(9, SASRecConfig(dim=8, max_items=3)).eval()
    a, b = (Cases(np.array([0]), np.array(h), np.array([0, len(h)]), np.array([5])) for h in ([8, 7, 1, 2, 3], [1, 2, 3]))
    with torch.no_grad(): assert torch.equal(model.scores(a), model.scores(b))

def test_left_aligned_against_a_loop(split):
    got = _left_aligned(split.test, 6)
    for m, row in enumerate(got.tolist()):
        h = split.test.history(m).tolist()[-6:]
        assert row == h + [-1]*(len(row) - len(h))

def test_prior_is_log_popularity_of_targets(split, models):
    np.testing.assert_allclose(models['sasrec'].prior, np.log1p(split.train.target_counts()), rtol=1e-6)
    assert not train_sasrec(split, SASRecConfig(dim=8, epochs=1, prior=False)).prior.any()

def test_untrained_sasrec_with_prior_is_popularity(split):
    model = SASRec(26, SASRecConfig(dim=8)).eval()
    torch.nn.init.zeros_(model.item.weight)
    model.prior = torch.from_numpy(np.log1p(split.train.item_counts())).float()
    np.testing.assert_array_equal(model.rank(split.test, 20), popularity_ranking(split.train.item_counts(), split.test, 20))

@both
def test_test_targets_change_nothing(split, models, method):
    other = with_targets(split, 'test', (split.test.targets + 5) % 24)
    x = train_collaborative_embeddings(other, method, dim=8, seed=3, config=QUICK[method])
    assert x.dtype == np.float32 and x.shape == (26, 8)
    np.testing.assert_array_equal(x, models[method].item_vectors())

@both
def test_validation_targets_only_choose_the_epoch(split, models, method):
    other = with_targets(split, 'valid', np.random.default_rng(0).permutation(split.valid.targets))
    curve = TRAIN[method](other, QUICK[method], seed=3).history
    assert [l['loss'] for l in curve] == [l['loss'] for l in models[method].history][:len(curve)]
    blind = replace(QUICK[method], patience=0)
    a, b = (TRAIN[method](s, blind, seed=3).item_vectors() for s in (split, other))
    np.testing.assert_array_equal(a, b)

@both
def test_one_seed_one_result(split, models, method):
    "Whatever the global random state is; it and the settings are left alone"
    def numbers(): return torch.rand(2).tolist(), np.random.rand(2).tolist(), random.random()
    def seed(): torch.manual_seed(1); np.random.seed(1); random.seed(1)
    seed(); want = numbers(); seed()
    config = replace(QUICK[method])
    again = TRAIN[method](split, config, seed=3)
    assert numbers() == want and config == QUICK[method]
    another = TRAIN[method](split, config, seed=4)
    np.testing.assert_array_equal(again.item_vectors(), models[method].item_vectors())
    assert again.history == models[method].history and (another.item_vectors() != again.item_vectors()).any()

def test_random_state_comes_back_after_an_error():
    random.seed(1); want = random.random(); random.seed(1)
    with pytest.raises(KeyError), _own_random_state(): random.random(); raise KeyError
    assert random.random() == want

@both
def test_cold_items_get_the_mean(models, split, method):
    x, known = models[method].item_vectors(), split.train.item_counts() > 0
    assert not known[24:].any() and np.isfinite(x).all()
    np.testing.assert_allclose(x[~known], np.tile(x[known].mean(0), ((~known).sum(), 1)), atol=1e-5)

def test_a_cold_item_never_outscores_everybody(models, split):
    with torch.no_grad(): s = models['lightgcn'].scores(split.test)
    assert (s[:, 24:].amax(1) <= s[:, :24].amax(1)).all()

@both
def test_best_epoch_is_kept(models, split, method):
    m = models[method]
    kept = ranking_metrics(m.rank(split.valid, 10), split.valid.targets, (10,))['ndcg@10']
    assert kept == pytest.approx(max(l['ndcg@10'] for l in m.history)) and m.best['ndcg@10'] == pytest.approx(kept)

@both
def test_patience_stops(split, method):
    config = replace(QUICK[method], epochs=30, eval_every=1, patience=1)
    looks = [l['ndcg@10'] for l in TRAIN[method](split, config).history]
    assert len(looks) < 30 and looks[-1] <= max(looks[:-1]) and all(b > max(looks[:i + 1]) for i, b in enumerate(looks[1:-1]))

def test_vectors_are_a_copy(models):
    models['sasrec'].item_vectors()[:] = 0
    assert models['sasrec'].item_vectors().any()

def test_collaborative_vectors_refuses_what_does_not_fit(split):
    with pytest.raises(GenrecError, match="method is 'bert'.*sasrec, lightgcn"): train_collaborative_embeddings(split, 'bert')
    with pytest.raises(GenrecError, match='SASRecConfig.*LightGCNConfig'): train_collaborative_embeddings(split, 'lightgcn', config=SASRecConfig())
    with pytest.raises(GenrecError, match='dim 32, expected a SASRecConfig of dim 16'): train_collaborative_embeddings(split, dim=16, config=SASRecConfig())

@both
def test_nothing_to_learn_from(split, method):
    none = Split(Interactions([], [0, 0], ['u'], 26), split.valid, split.test, 0)
    with pytest.raises(GenrecError, match='no training interaction'): TRAIN[method](none, QUICK[method])
    empty = Cases(*(np.zeros(n, np.int64) for n in (0, 0, 1, 0)))
    with pytest.raises(GenrecError, match='patience=0'): TRAIN[method](Split(split.train, empty, empty, 0), QUICK[method])

@both
def test_saved_and_loaded(models, split, tmp_path, method):
    save_ranker(models[method], tmp_path/'kept')
    again = load_ranker(tmp_path/'kept')
    assert type(again) is type(models[method]) and again.settings == models[method].settings and again.history == models[method].history and repr(again) == repr(models[method])
    np.testing.assert_array_equal(again.rank(split.test, 10), models[method].rank(split.test, 10))
    np.testing.assert_array_equal(again.item_vectors(), models[method].item_vectors())
    assert sorted(p.name for p in (tmp_path/'kept').iterdir()) == ['ranker.json', 'ranker.safetensors']

def test_damaged_models(models, tmp_path):
    with pytest.raises(GenrecError): load_ranker(tmp_path/'none')
    save_ranker(models['sasrec'], tmp_path)
    meta = json.loads((tmp_path/'ranker.json').read_text())
    for change, words in ((dict(kind='gru'), 'expected one of .*sasrec, lightgcn'), (dict(config=dict(size=3)), "'size' is unknown"), (dict(n_items=5), 'do not fit'),
                          (dict(config=meta['config'] | dict(heads=3)), 'heads')):
        (tmp_path/'ranker.json').write_text(json.dumps(meta | change))
        with pytest.raises(GenrecError, match=words): load_ranker(tmp_path)
    (tmp_path/'ranker.json').write_text(json.dumps(meta))
    (tmp_path/'ranker.safetensors').write_bytes(b'cut')
    with pytest.raises(GenrecError, match='not a readable safetensors'): load_ranker(tmp_path)

def test_cases_of_another_catalog(models):
    far = Cases(np.array([0]), np.array([99]), np.array([0, 1]), np.array([1]))
    for m in models.values():
        with pytest.raises(GenrecError, match='item 99.*0..25'): m.rank(far, 3)
        with pytest.raises(GenrecError, match='k is 0'): m.rank(far, 0)
    with pytest.raises(GenrecError, match='user 999.*0..59'): models['lightgcn'].rank(Cases(np.array([999]), np.array([1]), np.array([0, 1]), np.array([1])), 3)
    with pytest.raises(GenrecError, match='case 1.*empty'): models['sasrec'].rank(Cases(np.array([0, 1]), np.array([1]), np.array([0, 1, 1]), np.array([1, 2])), 3)

@both
def test_no_cases_no_lists(models, method):
    empty = Cases(*(np.zeros(n, np.int64) for n in (0, 0, 1, 0)))
    assert models[method].rank(empty, 3).shape == (0, 3)

@pytest.mark.parametrize('config, settings, words', [
    (SASRecConfig, dict(dim=30, heads=4), 'dim 30.*4 heads'), (SASRecConfig, dict(dropout=1.), 'dropout is 1'), (SASRecConfig, dict(lr=0), 'lr is 0'), (SASRecConfig, dict(epochs=0), 'epochs is 0'),
    (SASRecConfig, dict(patience=-1), 'patience is -1'), (SASRecConfig, dict(max_items=0), 'max_items is 0'), (LightGCNConfig, dict(layers=0), 'layers is 0'), (LightGCNConfig, dict(l2=-1), 'l2 is -1')])
def test_settings_out_of_range(config, settings, words):
    with pytest.raises(GenrecError, match=words): config(**settings)
