"""Sequential rules: against counting by hand, their interpolation against brute force and a grid, files, and every way to them."""
from dataclasses import replace
import numpy as np
import pytest
import torch
from hypothesis import given, strategies as st
from safetensors.torch import load_file, save_file
from genrec_nb.beam_search import DecodeConfig
from genrec_nb.core import FileError, GenrecError, SettingError
from genrec_nb.data import Catalog, Interactions
from genrec_nb.exact import ExactConfig, combine, exact_scores, exact_search, fit_rules, item_nats, rank_exact
from genrec_nb.loaders import load_dataset
from genrec_nb.metrics import ranking_metrics
from genrec_nb.rankers import RulesRanker, load_ranker, save_ranker, _count_sequential_rules
from genrec_nb.rec_config import RecommenderConfig
from genrec_nb.recommender import GenerativeRecommender
from genrec_nb.search import chosen_search
from genrec_nb.semantic_ids import Identifiers
from genrec_nb.sequential_rules import (RulesConfig, SequentialRules, count_rules, fit_interpolation, interpolate, load_rules,
                                        save_rules, with_new_items)
from genrec_nb.splits import Cases, leave_one_out
from oracles import few, packed, small_data, t5

histories = st.lists(st.lists(st.integers(0, 5), max_size=8), min_size=1, max_size=6).filter(lambda h: any(h))
configs = st.builds(RulesConfig, window=st.integers(1, 9), backward=st.sampled_from([0., .3, 1.]), decay=st.sampled_from([0., .5, 1.]),
                    last=st.integers(1, 9))

def interactions(lists, n=6):
    offsets = np.concatenate([[0], np.cumsum([len(h) for h in lists])])
    return Interactions(np.array(sum(lists, []), np.int32), offsets, [f'u{i}' for i in range(len(lists))], n)

def counted(lists, c, n=6):
    "Every pair of every history, one at a time"
    out = np.zeros((n, n))
    for h in lists:
        for j, a in enumerate(h):
            for g, b in enumerate(h[j + 1:j + 1 + c.window], 1):
                out[a, b] += 1/g
                out[b, a] += c.backward/g
    return out

@few
@given(histories, configs)
def test_counts_of_pairs_one_at_a_time(lists, config):
    np.testing.assert_allclose(count_rules(interactions(lists), config).toarray(), counted(lists, config), rtol=1e-6)

@few
@given(histories, configs, st.lists(st.integers(0, 5), min_size=1, max_size=12))
def test_the_next_item_one_vote_at_a_time(lists, config, history):
    votes, c = np.zeros(6), counted(lists, config)
    for j, a in enumerate(history[::-1][:config.last]): votes += config.decay**j*c[a]
    rules = SequentialRules(count_rules(interactions(lists), config), config)
    padded = torch.tensor([[-1, -1, *history], [-1]*(len(history) + 2)])
    row, nothing = rules(padded)
    np.testing.assert_allclose(row, votes/max(votes.sum(), 1e-30), atol=1e-6)
    assert not nothing.any()

def test_names_of_items_decide_nothing():
    lists, new = [[0, 1, 2, 3], [2, 0, 4], [5, 1]], np.array([3, 5, 0, 1, 4, 2])
    a, b = (SequentialRules(count_rules(interactions(x)))
            for x in (lists, [new[h].tolist() for h in lists]))
    torch.testing.assert_close(a(torch.tensor([[0, 2]])), b(torch.from_numpy(new[[[0, 2]]]))[:, new])

@pytest.mark.parametrize('weight', [0., .3, 1.])
def test_interpolated_probabilities_sum_to_one(weight):
    logp = torch.randn(3, 6, dtype=torch.float64).log_softmax(1)
    rules = torch.tensor([[.5, .5, 0, 0, 0, 0], [0]*6, [1/6]*6], dtype=torch.float64)
    p = interpolate(logp, rules, weight).exp()
    want = (1 - weight)*logp.exp() + weight*rules
    want[1] = logp[1].exp()                                       # no rule is known: the generator alone
    torch.testing.assert_close(p, want)
    torch.testing.assert_close(p.sum(1), torch.ones(3, dtype=torch.float64))

@few
@given(st.lists(st.tuples(st.floats(.01, 1), st.floats(0, 1)), min_size=1, max_size=20))
def test_the_fitted_weight_is_the_most_likely_one(pairs):
    p, r = torch.tensor(pairs, dtype=torch.float64).T
    nats = lambda w: -float(((1 - w)*p + w*r).clamp(min=1e-300).log().mean())
    assert nats(fit_interpolation(p, r, 2000)) <= min(map(nats, np.linspace(0, 1, 101))) + 1e-4

def test_files_and_new_items(tmp_path):
    rules = SequentialRules(count_rules(interactions([[0, 1, 2], [1, 3]])), RulesConfig(decay=.9))
    save_rules(rules, tmp_path)
    history = torch.tensor([[0, 1], [-1, 3]])
    back = load_rules(tmp_path, 6)
    assert torch.equal(back(history), rules(history)) and back.settings == rules.settings
    longer = with_new_items(rules, 2)(history)
    assert torch.equal(longer[:, :6], rules(history)) and not longer[:, 6:].any()
    assert not with_new_items(rules, 2)(torch.tensor([[7]])).any()
    with pytest.raises(FileError, match='no rules of 7 items'): load_rules(tmp_path, 7)
    (tmp_path/'rules.safetensors').write_bytes(b'\0'*20)
    with pytest.raises(GenrecError): load_rules(tmp_path, 6)

# A ranker, and the exact ranking of a model

def a_split():
    rng = np.random.default_rng(0)
    return leave_one_out(interactions([rng.integers(0, 20, 9).tolist() for _ in range(30)], 20))

def test_the_ranker_knows_the_training_part_alone(tmp_path):
    split = a_split()
    ranker = _count_sequential_rules(split)
    np.testing.assert_allclose(ranker.rules()(torch.arange(20)[:, None]), SequentialRules(count_rules(split.train))(torch.arange(20)[:, None]))
    other = leave_one_out(interactions([[*split.train.items[a:b], 0, 0] for a, b in zip(split.train.offsets, split.train.offsets[1:])], 20))
    assert np.array_equal(ranker.rank(split.test), _count_sequential_rules(other).rank(split.test))   # other last two items
    save_ranker(ranker, tmp_path/'r')
    back = load_ranker(tmp_path/'r')
    assert isinstance(back, RulesRanker) and np.array_equal(back.rank(split.test), ranker.rank(split.test))

def test_popularity_decides_where_no_rule_does():
    x = interactions([[3, 3, 2, 0, 0], [3, 2, 2, 0, 0]])
    ranked = _count_sequential_rules(leave_one_out(x)).rank(Cases(np.zeros(1), np.array([5]), np.array([0, 1]), np.array([-1])), 2)
    assert ranked[0].tolist() == [3, 2]

def a_model(K=2):
    ids = [Identifiers.random(20, 2, 5, seed=s) for s in range(K)]
    return packed(ids if K > 1 else ids[0], d_model=8, softmax='children')

@pytest.mark.parametrize('K', [1, 2])
@pytest.mark.parametrize('how', ['product', 'mixture'])
def test_ranking_against_the_formula(K, how):
    split, model = a_split(), a_model(K)
    model.rules = SequentialRules(count_rules(split.train))
    history = torch.from_numpy(split.test.tail(7).astype(np.int64))
    logp = torch.empty(K, len(history), 20)
    for part in exact_scores(model, history, DecodeConfig(exclude_seen=False)): logp[:, part.rows] = part.logp
    p = .4*combine(logp, ExactConfig(how)).exp() + .6*model.rules(history)
    seen = torch.zeros(len(history), 21).scatter_(1, history % 21, 1)[:, :20].bool()
    items, scores = exact_search(model, history, 5, DecodeConfig(), exact=ExactConfig(how, rules=.6))
    torch.testing.assert_close(scores.exp(), p.masked_fill(seen, 0).sort(1, descending=True).values[:, :5])
    torch.testing.assert_close(p.gather(1, items), scores.exp())
    none = exact_search(model, history, 5, DecodeConfig(), exact=ExactConfig(how))
    model.rules = None
    assert torch.equal(none[0], exact_search(model, history, 5, DecodeConfig(), exact=ExactConfig(how))[0])

def test_the_fitted_weight_lowers_the_nats():
    split, model = a_split(), a_model()
    model.rules = SequentialRules(count_rules(split.train))
    (fitted, again) = fit_rules(model, split.valid, [ExactConfig()]*2, by='likelihood')
    assert fitted == again == fit_rules(model, split.valid, by='likelihood')
    nats = [item_nats(model, split.valid, replace(fitted, rules=w)) for w in (fitted.rules, 0., max(fitted.rules - .05, 0), min(fitted.rules + .05, .99))]
    assert min(nats) == pytest.approx(nats[0], abs=1e-6)

def test_refusals():
    model, rules = a_model(1), DecodeConfig(rules_weight=.5)
    with pytest.raises(SettingError, match='no sequential rules'): exact_search(model, torch.tensor([[1]]), exact=ExactConfig(rules=.5))
    with pytest.raises(SettingError, match="take search='exact'"): chosen_search(model, model.tries[0], replace(rules, search='beam'))
    assert chosen_search(model, model.tries[0], rules) == 'exact'
    other = t5(Identifiers.random(6, 2, 3))
    with pytest.raises(SettingError, match='item decoder'): chosen_search(other, None, rules)
    for wrong in ('some', -1, 2, True):
        with pytest.raises(SettingError, match='fitted'): DecodeConfig(rules_weight=wrong)

def test_shares_of_the_history_add_up():
    rules, history = SequentialRules(count_rules(interactions([[0, 1, 2, 3], [3, 2, 0], [1, 2]]))), torch.tensor([3, 0, 1])
    for item in range(6): torch.testing.assert_close(rules.shares(history, item).sum(), rules(history[None])[0, item])

def test_the_explanation_is_the_score(tmp_path):
    data = load_dataset(small_data(tmp_path/'shop'))
    config = RecommenderConfig(tokenizer=dict(method='rqkmeans', encoder='tfidf', levels=2, size=5), identifiers=['item'], model=dict(d_model=8, num_heads=2, num_layers=1),
                               train=dict(epochs=1, eval_every=1), decode=dict(rules_weight=.4))
    rec = GenerativeRecommender.fit(data, config)
    history = data.catalog.ids[:3]
    for r in rec.recommend(history, 3):
        e = rec.explain_rules(history, r.id)
        assert e.probability == pytest.approx(np.exp(r.score), rel=1e-4) and e.weight == .4
        assert not e.votes or sum(share for _, share in e.votes) == pytest.approx(1)
    assert rec.explain_rules(history, r.id, DecodeConfig()) is None
    rec.add_items(Catalog(["new"], ["a new one"], ["color 1 shape 1 size 1"]))
    assert rec.model.rules.n_items == len(rec.catalog) and len(rec.recommend(history, 3)) == 3

@pytest.mark.parametrize('exclude', [True, False])
def test_the_weight_of_the_best_list(exclude):
    split, model = a_split(), a_model()
    model.rules = SequentialRules(count_rules(split.train))
    def ndcg(w): return ranking_metrics(rank_exact(model, split.valid, 10, DecodeConfig(exclude_seen=exclude), exact=ExactConfig(rules=w)), split.valid.targets, (10,))['ndcg@10']
    found = fit_rules(model, split.valid, exclude_seen=exclude).rules
    assert ndcg(found) >= max(ndcg(w/20) for w in range(21)) - 1e-9


def test_new_items_keep_their_probability():
    "Rules share the probability of the items that they were counted on; what came later is the generator's"
    torch.manual_seed(0)
    logp, rules = torch.randn(4, 7).log_softmax(1), torch.rand(4, 7)
    rules[:, 5:] = 0.
    rules[2] = 0.
    rules = rules/rules.sum(1, keepdim=True).clamp(min=1e-9)
    for weight in (.3, .95, 1.):
        p = interpolate(logp, rules, weight, 5).exp()
        torch.testing.assert_close(p.sum(1), torch.ones(4))
        torch.testing.assert_close(p[:, 5:], logp[:, 5:].exp())
        old = logp[:, :5].exp()
        wanted = torch.where(rules[:, :5].sum(1, keepdim=True) > 0, (1 - weight)*old + weight*rules[:, :5]*old.sum(1, keepdim=True), old)
        torch.testing.assert_close(p[:, :5], wanted)
    assert torch.equal(interpolate(logp, rules, .5, 7), interpolate(logp, rules, .5))


def test_added_items_are_not_hidden_by_the_rules(tmp_path):
    split = a_split()
    rules = with_new_items(SequentialRules(count_rules(split.train)), 2)
    save_rules(rules, tmp_path)
    again = load_rules(tmp_path, rules.n_items)
    assert rules.counted == again.counted == rules.n_items - 2


def test_rules_saved_without_the_number_of_counted_items_are_read(tmp_path):
    rules = SequentialRules(count_rules(a_split().train))
    save_rules(rules, tmp_path)
    file = tmp_path/'rules.safetensors'
    save_file({k: v for k, v in load_file(file).items() if k != 'counted'}, file)
    assert load_rules(tmp_path, rules.n_items).counted == rules.n_items


@pytest.mark.parametrize('backbone', ['t5', 'llm'])
def test_settings_with_rules_for_another_generator_are_refused_at_once(backbone):
    with pytest.raises(SettingError, match=f'decode.rules_weight: .*not {backbone}'): RecommenderConfig(backbone=backbone, decode=dict(rules_weight=.3))
