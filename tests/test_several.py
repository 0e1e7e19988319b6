"Several identifiers of an item: one is the single model bit for bit, products by hand, saved, killed and resumed, explained, cold items, refusals."
import json
import re
from dataclasses import asdict, replace
import numpy as np
import pandas as pd
import pytest
import torch
from genrec_nb.beam_search import DecodeConfig
from genrec_nb.core import GenrecError, GenrecWarning, SettingError
from genrec_nb.data import Catalog, Dataset, Interactions
from genrec_nb.splits import Cases, leave_one_out
from genrec_nb.exact import exact_scores, fit_weights, item_nats, validation_scores
from genrec_nb.explanations import JointExplanation
from genrec_nb.item_decoder import item_decoder
from genrec_nb.rec_config import RecommenderConfig, _source_names
from genrec_nb.recommender import GenerativeRecommender
from genrec_nb.semantic_ids import Identifiers
from genrec_nb.sequential_baselines import SASRec, SASRecConfig
from genrec_nb.run import load_config, run, RunConfig
from genrec_nb.tokenizer import tokenize_items
from genrec_nb.train import TrainConfig, fit
from genrec_nb.trial import DataConfig

N = 24
QUICK = dict(epochs=2, batch_size=8, eval_every=1, lr=5e-3)
MODEL = dict(d_model=16, num_layers=1, num_heads=2, softmax='children', prior='trie')


def walks(users=40, n=N, seed=0):
    "Users walk through the catalog"
    rng = np.random.default_rng(seed)
    histories = [(rng.integers(n) + np.arange(rng.integers(5, 9))*2) % n for _ in range(users)]
    catalog = Catalog([f'i{i:02}' for i in range(n)], [f'Item {i}' for i in range(n)], ['']*n)
    return Dataset('walks', catalog, Interactions(np.concatenate(histories), np.r_[0, np.cumsum([len(h) for h in histories])], [str(u) for u in range(users)], n))


DATA = walks()
SPLIT = leave_one_out(DATA.interactions)
HISTORY = DATA.catalog.ids[3:9:2]


def settings(**changes):
    return RecommenderConfig(**{**dict(tokenizer=dict(method='random', levels=2, size=6), identifiers=['item'], weighting='ce', model=MODEL, train=QUICK), **changes})


@pytest.fixture(scope='module')
def rec(): return GenerativeRecommender.fit(DATA, settings(), SPLIT)


def every_logp(rec, cases): # float [K, M, N], in the order of the cases
    history = torch.from_numpy(cases.tail(rec.model.config.max_items))
    parts = list(exact_scores(rec.model, history, DecodeConfig(exclude_seen=False)))
    return torch.cat([p.logp for p in parts], 1)[:, torch.argsort(torch.cat([p.rows for p in parts]))].double()


# ---- paths of one token --------------------------------------------------------------------------------------------------

@pytest.mark.parametrize('prior', [True, False])
def test_paths_of_one_token_are_sasrec(prior):
    "The same weights give the same log-probabilities of all items"
    sasrec = SASRec(N, SASRecConfig(dim=16, heads=2, max_items=8)).eval()
    counts = SPLIT.train.target_counts()
    if prior: sasrec.prior = torch.from_numpy(np.log1p(counts)).float()
    ids = tokenize_items(DATA, SPLIT, settings(tokenizer=dict(method='item'), identifiers=[]).tokenizer).ids
    model = item_decoder(ids, max_items=8, counts=counts, d_model=16, num_heads=2, head_ff=0, softmax='children', prior='trie' if prior else 'none', scale_embeddings=True).eval()
    weights = {k.replace('item.', 'codes.0.'): v for k, v in sasrec.state_dict().items() if k != 'prior'}
    left = model.load_state_dict(weights, strict=False)
    assert not left.unexpected_keys and set(left.missing_keys) <= {'bias.0', 'counts'}
    history = torch.from_numpy(SPLIT.test.tail(8))
    (found,) = exact_scores(model, history, DecodeConfig(exclude_seen=False))
    want = sasrec.scores(SPLIT.test).log_softmax(1)[found.rows]
    torch.testing.assert_close(found.logp[0], want, atol=1e-5, rtol=1e-5)


# ---- one of several ------------------------------------------------------------------------------------------------------

def test_a_list_of_one_is_the_single_model_bit_for_bit(tmp_path):
    c = settings(identifiers=[])
    made = tokenize_items(DATA, SPLIT, c.tokenizer_config)
    one = GenerativeRecommender.fit(DATA, c, SPLIT, made)
    other = GenerativeRecommender.fit(DATA, c, SPLIT, [made])
    alone = item_decoder(made.ids, counts=one.counts, **c.model)
    fit(alone, SPLIT.train, SPLIT.valid, alone.tries, c.rule.objective(alone.tries, [made.ids], counts=one.counts, gain=one.gains), replace(c.train, seed=0), tmp_path)
    for a, b, d in zip(one.model.parameters(), other.model.parameters(), alone.parameters()): assert torch.equal(a, b) and torch.equal(a, d)
    assert one.result.logs[0]['loss'] == other.result.logs[0]['loss'] and not one.several and one.weights.keys() <= {'rules'}


def test_the_product_by_hand(rec):
    "Ranks of the recommender: log-probabilities times fitted weights, seen items left out"
    logp = every_logp(rec, SPLIT.test)
    for how in ('product', 'mixture'):
        for given in ('fitted', 'ndcg@10', 'equal', (3., 1.)):
            w = np.array({'fitted': rec.weights[how], 'ndcg@10': rec.weights['ndcg@10'][how], 'equal': [.5, .5]}.get(given, given))
            total = (w[:, None, None]*logp.numpy()).sum(0) if how == 'product' else np.log((w[:, None, None]/w.sum()*np.exp(logp.numpy())).sum(0))
            ranked = rec.rank(SPLIT.test, 5, DecodeConfig(combine=how, weights=given))
            for m in range(len(SPLIT.test)):
                seen = set(SPLIT.test.history(m).tolist())
                best = [i for i in np.argsort(-total[m], kind='stable') if i not in seen][:5]
                np.testing.assert_allclose(total[m][ranked[m]], total[m][best], atol=1e-4)
                assert not seen & set(ranked[m].tolist())


def test_recommend_gives_the_ranks_and_probabilities(rec):
    ranked = rec.rank(SPLIT.test, 4)
    for m in (0, 7):
        found = rec.recommend([DATA.catalog.ids[i] for i in SPLIT.test.history(m)], 4)
        assert [x.item for x in found] == ranked[m].tolist()
        assert all(-20 < x.score < 0 for x in found)


def assert_same(found, expected):
    "The same items with the same scores, but for the last digit: where weights lie in memory moves it"
    assert [x.id for x in found] == [x.id for x in expected]
    np.testing.assert_allclose([x.score for x in found], [x.score for x in expected], rtol=1e-5)

def test_saved_and_loaded_ranks_the_same(rec, tmp_path):
    folder = rec.save_pretrained(tmp_path/'saved')
    assert {'index.json', 'index-1.json', 'counts.safetensors'} <= {p.name for p in folder.iterdir()}
    again = GenerativeRecommender.from_pretrained(folder)
    assert again.weights == rec.weights and again.identifiers == rec.identifiers and again.names == ['random', 'item']
    assert (again.rank(SPLIT.test, 10) == rec.rank(SPLIT.test, 10)).all() and again.config == rec.config
    assert 'random, item' in (folder/'README.md').read_text()
    assert_same(again.recommend(HISTORY, 5), rec.recommend(HISTORY, 5))
    with pytest.warns(GenrecWarning, match="saved: softmax='vocabulary' is asked of a model that was trained with 'children'"): asked = GenerativeRecommender.from_pretrained(folder, softmax='vocabulary')
    assert (asked.rank(SPLIT.test, 10) == rec.rank(SPLIT.test, 10)).all() and asked.config == rec.config
    with pytest.raises(SettingError, match="'revison' is unknown, did you mean 'revision'"): GenerativeRecommender.from_pretrained(folder, revison='main')
    (folder/'index-1.json').unlink()
    with pytest.raises(GenrecError, match='index-1.json'): GenerativeRecommender.from_pretrained(folder)


class Stop(Exception): "A training is interrupted"

def test_a_resumed_training_gives_the_same_numbers(rec, tmp_path):
    from transformers import TrainerCallback
    class Once(TrainerCallback):
        def on_save(self, args, state, control, **kw): raise Stop
    with pytest.raises(Stop): GenerativeRecommender.fit(DATA, settings(), SPLIT, folder=tmp_path, callbacks=[Once()])
    again = GenerativeRecommender.fit(DATA, settings(), SPLIT, folder=tmp_path, resume=True)
    for a, b in zip(rec.model.parameters(), again.model.parameters()): assert torch.equal(a, b)
    assert again.weights == rec.weights and again.result.best == rec.result.best


# ---- explanations --------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize('how', ['product', 'mixture'])
@pytest.mark.parametrize('alpha', [0., .3])
def test_an_explanation_adds_up(rec, how, alpha):
    "Parts to the score of the identifier, leads to the difference of scores or probabilities"
    decode = DecodeConfig(combine=how, alpha=alpha)
    found = rec.recommend(HISTORY, N, decode)
    explained = [rec.explain(HISTORY, found[n].id, decode=decode) for n in (0, 4)]
    score = {x.title: x.score for x in found}
    for e, other in zip(explained, (found[1], found[0])):
        assert isinstance(e, JointExplanation) and e.other == other.title and list(e.parts) == ['random', 'item']
        assert e.score == pytest.approx(score[e.title], abs=1e-4)
        a, b = score[e.title], score[e.other]
        assert sum(e.leads.values()) == pytest.approx(a - b if how == 'product' else np.exp(a) - np.exp(b), abs=1e-4)
        assert e.decided == max(e.leads, key=e.leads.get) and e.decided in e._repr_html_() and e.title in repr(e)
        one = e.parts['random']
        assert len(one.parts) == 2 and sum(p.lead for p in one.parts)*e.weights['random'] == pytest.approx(e.leads['random'], abs=1e-5) or how == 'mixture'
        assert all(0 < p.probability <= 1 for x in e.parts.values() for p in x.parts)

@pytest.mark.parametrize('backbone, search', [('packed', 'exact'), ('packed', 'beam'), ('t5', 'beam')])
@pytest.mark.parametrize('normalize', ['vocabulary', 'children'])
def test_an_explanation_of_one_identifier_gives_the_score_of_the_search(backbone, search, normalize):
    "Of a model over the vocabulary, whose probabilities the search may normalize over the children"
    sizes = dict(d_model=16, num_layers=1, num_heads=2) | (dict(d_kv=8, d_ff=16) if backbone == 't5' else {})
    one = GenerativeRecommender.fit(DATA, settings(backbone=backbone, identifiers=[], model=sizes | dict(softmax='vocabulary', prior='none'), train=QUICK | dict(epochs=1)), SPLIT)
    decode = DecodeConfig(normalize=normalize, search=search, beams=N)
    for x in one.recommend(HISTORY, 9, decode)[::4]: assert one.explain(HISTORY, x.id, decode=decode).score == pytest.approx(x.score, abs=1e-4)

def test_an_explanation_says_what_its_score_leaves_out(rec):
    said = {n: rec.explain(HISTORY, 'i09', decode=d) for n, d in dict(plain=DecodeConfig(), rules=DecodeConfig(rules_weight='fitted'), children=DecodeConfig(normalize='children'), kept=DecodeConfig(normalize='children', exclude_seen=False)).items()}
    assert {n: e.note for n, e in said.items()} == dict(plain='', rules='without sequential rules', children='normalized with the items of the history', kept='')
    assert all((e.note or ' ') in e.summary() and (e.note or ' ') in repr(e) for e in said.values())
    kept = rec.recommend(HISTORY, N, DecodeConfig(normalize='children', exclude_seen=False))
    assert said['kept'].score == pytest.approx(next(x.score for x in kept if x.id == 'i09'), abs=1e-4)

def test_the_constant_of_a_product_makes_all_items_sum_to_one(rec):
    "ln Z by hand, over the catalog; the sentence shows the sum; a mixture has none"
    history = torch.tensor([rec.find_items(HISTORY)])
    (part,) = exact_scores(rec.model, history, DecodeConfig(exclude_seen=False))
    e = rec.explain(HISTORY, 'i09', decode=DecodeConfig())
    total = sum(w*part.logp[n, 0].double() for n, w in enumerate(e.weights.values()))
    assert e.constant == pytest.approx(float(total.logsumexp(0)), abs=1e-4)
    numbers = [float(x) for x in re.findall(r'-?[0-9]+[.][0-9]+', e.formula)]
    assert sum(w*s for w, s in zip(numbers[:4:2], numbers[1:4:2])) - numbers[4] == pytest.approx(e.score, abs=.05) and e.formula in e.summary()
    assert rec.explain(HISTORY, 'i09', decode=DecodeConfig(combine='mixture')).constant == pytest.approx(0, abs=1e-5)

@pytest.mark.parametrize('how, weights', [('product', 'fitted'), ('mixture', 'fitted'), ('mixture', 'equal'), ('mixture', (.2, .8)), ('mixture', (0., 1.))])
def test_probabilities_sum_to_one_with_items_that_an_identifier_lacks(tmp_path, how, weights):
    "A new item has no token of its own; with it every list is a distribution, and the explanation gives the score"
    own = np.random.default_rng(0).normal(size=(N, 8)).astype(np.float32)
    one = GenerativeRecommender.fit(DATA, settings(tokenizer=dict(method='rqkmeans', levels=2, size=6), train=QUICK | dict(epochs=1)), SPLIT, vectors=own)
    one.add_items([dict(item='n1', title='New'), dict(item='n2', title='Newer')], vectors=own[:2]*1.01)
    decode = DecodeConfig(combine=how, weights=weights, exclude_seen=False)
    found = one.recommend(HISTORY, N + 2, decode)
    assert len(found) == N + 2 and sum(np.exp(x.score) for x in found) == pytest.approx(1, abs=1e-4)
    for x in found[::9] + [x for x in found if x.id == 'n1']:
        e = one.explain(HISTORY, x.id, decode=decode)
        assert e.score == pytest.approx(x.score, abs=1e-4) and (how == 'product' or (e.constant > 1e-3) == ('ln Z' in e.formula))

@pytest.mark.parametrize('call', ['recommend', 'rank', 'explain', 'explain_rules', 'why_few'])
@pytest.mark.parametrize('decode', [{}, dict(alpha=.2), 'beam', 0])
def test_settings_of_decoding_are_no_dictionary(rec, call, decode):
    first = SPLIT.test if call == 'rank' else HISTORY
    with pytest.raises(SettingError, match='expected a DecodeConfig, such as'): getattr(rec, call)(first, *['i09']*call.startswith('explain'), decode=decode)

@pytest.mark.parametrize('ks, words', [(10, 'ks is 10: expected cut-offs'), ((), 'expected cut-offs'), ((5, 0), 'k is 0'), ((5, 'x'), 'k is x'), ((True,), 'k is True')])
def test_cut_offs_that_cannot_be(rec, ks, words):
    with pytest.raises(SettingError, match=words): rec.evaluate(SPLIT.test, ks)

def test_no_cases(rec):
    with pytest.raises(SettingError, match='no cases: there is nothing to evaluate'): rec.evaluate(SPLIT.test.sample(0))
    with pytest.raises(SettingError, match='no cases'): item_nats(rec.model, SPLIT.test.sample(0))

@pytest.mark.parametrize('cases', [SPLIT, DATA.interactions, HISTORY, None], ids=['split', 'interactions', 'list', 'none'])
def test_what_is_evaluated_are_cases(rec, cases):
    with pytest.raises(SettingError, match='expected Cases, such as split.test'): rec.evaluate(cases)
    for fit in (fit_weights, validation_scores):
        with pytest.raises(SettingError, match='expected Cases, such as split.test'): fit(rec.model, cases)

def test_cases_of_another_split_are_told(rec, tmp_path, recwarn):
    "Of the same split, sampled, or of none: silent; the same users in another order: their targets may have been trained on"
    rec.save_pretrained(tmp_path/'m')
    again = GenerativeRecommender.from_pretrained(tmp_path/'m')
    x = SPLIT.test
    for cases in (x, x.sample(5), leave_one_out(DATA.interactions).valid, Cases(x.users, x.items, x.offsets, x.targets)): again.evaluate(cases)
    assert not [w for w in recwarn if 'another split' in str(w.message)]
    y = DATA.interactions
    turned = np.concatenate([y.user(u)[::-1] for u in range(y.n_users)])
    with pytest.warns(GenrecWarning, match='cases are of another split .*leave-one-out, .* than the recommender was trained on'):
        again.evaluate(leave_one_out(replace(y, items=turned)).test)

@pytest.mark.parametrize('how, words', [(dict(device='foo'), "device is 'foo', expected cpu, cuda"), (dict(device=None), 'device is None, expected cpu'), (dict(softmax='foo'), "softmax is 'foo', expected one of vocabulary, children"), (dict(prior='tree'), "prior is 'tree', expected one of none, trie"),
                                        *[(dict(device='cuda'), 'no GPU is here: take cpu')]*(not torch.cuda.is_available())])
def test_what_a_saved_recommender_cannot_be_loaded_with(rec, tmp_path, how, words):
    rec.save_pretrained(tmp_path/'m')
    with pytest.raises(SettingError, match=words): GenerativeRecommender.from_pretrained(tmp_path/'m', **how)

def test_own_vectors_of_a_recommender(tmp_path):
    "As the tokenizer alone makes identifiers of them, from an array or a file; new items need theirs; nobody may ignore them"
    own = np.random.default_rng(0).normal(size=(N, 8)).astype(np.float32)
    c = settings(tokenizer=dict(method='rqkmeans', levels=2, size=6), identifiers=[], train=QUICK | dict(epochs=1))
    np.save(tmp_path/'own.npy', own)
    made = tokenize_items(DATA, SPLIT, c.tokenizer, own)
    for given in (own, tmp_path/'own.npy'):
        one = GenerativeRecommender.fit(DATA, c, SPLIT, vectors=given)
        assert [one.ids.path(i).tolist() for i in range(N)] == [made.ids.path(i).tolist() for i in range(N)]
    with pytest.raises(GenrecError, match='vectors'): one.add_items([dict(item='new', title='New')])
    one.add_items([dict(item='new', title='New')], vectors=own[:1])
    assert one.ids.path(N)[0] == one.ids.path(0)[0] and not np.array_equal(one.ids.path(N), one.ids.path(0))
    with pytest.raises(SettingError, match='neither the tokenizer nor the weighting reads any'): GenerativeRecommender.fit(DATA, settings(), SPLIT, vectors=own)
    with pytest.raises(GenrecError, match='found 5 rows, but the catalog has 24 items'): GenerativeRecommender.fit(DATA, c, SPLIT, vectors=own[:5])
    with pytest.raises(SettingError, match="did you mean 'vectors'"): GenerativeRecommender.fit(DATA, c, SPLIT, vector=own)
    with pytest.raises(SettingError, match='split is a Cases'): GenerativeRecommender.fit(DATA, c, SPLIT.test)
    with pytest.raises(SettingError, match='tokenized is x: expected what tokenize_items makes'): GenerativeRecommender.fit(DATA, c, SPLIT, 'x')
    with pytest.raises(SettingError, match='split is a ndarray'): GenerativeRecommender.fit(DATA, c, own)
    assert GenerativeRecommender.fit(DATA, c, SPLIT, vectors=pd.DataFrame(own)).ids.path(3).tolist() == made.ids.path(3).tolist()


# ---- cold items ----------------------------------------------------------------------------------------------------------

def test_a_cold_item_is_reached_by_its_codes(tmp_path):
    "Nobody chose item 3; its code is that of the items that follow item 0. The codes rank it first, its own token last"
    ids = Identifiers.from_codes([[0, 0], [1, 0], [1, 1], [1, 2], [0, 1], [0, 2]], policy='keep')
    own = Identifiers.from_codes(np.arange(6)[:, None], policy='keep')
    train = Interactions(np.array([0, 1]*8 + [0, 2]*8 + [4, 5]*8), np.arange(25)*2, [str(u) for u in range(24)], 6)
    model = item_decoder([ids, own], counts=train.target_counts(), softmax='children', prior='trie', d_model=16, num_heads=2, num_layers=1, dropout=0.)
    cases = leave_one_out(Interactions(np.array([0, 1, 2]*4), np.arange(5)*3, list('abcd'), 6)).valid
    fit(model, train, cases, model.tries, None, TrainConfig(epochs=30, batch_size=8, lr=.01, eval_every=30), tmp_path)
    (found,) = exact_scores(model.eval(), torch.tensor([[0]]), DecodeConfig(exclude_seen=False))
    codes, alone = found.logp[:, 0].exp()
    assert codes[3] > max(codes[[0, 4, 5]]) and alone[3] < codes[3]


# ---- refusals ------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize('given, message', [
    (dict(identifiers=['itme']), "did you mean 'item'"), (dict(identifiers='item, item'), 'item with the same settings'), (dict(identifiers=['tree', dict(method='tree')]), 'tree with the same settings'),
    (dict(identifiers=[dict(method='hkmeens')]), "did you mean 'hkmeans'"), (dict(identifiers=[dict(method='hkmeans', clustres=3)]), "did you mean 'clusters'"), (dict(identifiers=[dict(method='hkmeans', cf='cooccurrence', encoder='tfidf')]), 'one source'),
    (dict(identifiers=['title']), "backbone 'llm'"), (dict(identifiers=3), 'expected a list'), (dict(identifiers=[dict(method='random', levles=2)]), "did you mean 'levels'"),
    (dict(backbone='t5', model={}), 'several are generated'), (dict(backbone='llm', model={}), 'several are generated'),
    (dict(decode=dict(weights=[1, 1, 1])), '3 numbers for 2 identifiers'), (dict(decode=dict(weights=[0, 0])), 'not all 0'), (dict(decode=dict(weights='even')), "found 'even'"),
    (dict(decode=dict(combine='sum')), 'product, mixture')])
def test_settings_that_cannot_be(given, message):
    with pytest.raises(SettingError, match=message) as e: settings(**given)
    assert '\n' not in str(e.value)


def test_identifiers_that_do_not_fit(tmp_path):
    c = settings(tokenizer=dict(method='item'))
    with pytest.raises(SettingError, match='item with the same settings'): GenerativeRecommender.fit(DATA, c, SPLIT)
    table = tmp_path/'other.index.json'
    table.write_text(json.dumps({str(i): [f'<a_{i}>'] for i in range(N)}))
    with pytest.raises(GenrecError, match="lacks 24 of the catalog's 24 items"): GenerativeRecommender.fit(DATA, settings(identifiers=[str(table)]), SPLIT)
    with pytest.raises(GenrecError, match='no such file'): GenerativeRecommender.fit(DATA, settings(identifiers=[str(tmp_path/'x.json')]), SPLIT)
    table.write_text(json.dumps({i: [f'<x_{n}>'] for n, i in enumerate(DATA.catalog.ids)}))
    with pytest.raises(GenrecError, match='twice'): GenerativeRecommender.fit(DATA, settings(identifiers=['item', str(table)]), SPLIT)
    with pytest.raises(GenrecError, match='same catalog'): item_decoder([Identifiers.from_codes(np.arange(n)[:, None], policy='keep') for n in (5, 6)])
    with pytest.raises(GenrecError, match="prior='trie' needs counts="): item_decoder(Identifiers.random(9, 2, 3), softmax='children', prior='trie')


def test_names_and_roundtrip():
    c = settings(identifiers=['item', dict(method='random', levels=3, size=9), 'data/Beauty.letter.index.json'])
    assert _source_names(c.sources) == ['random', 'item', 'random 2', 'letter'] and [s.seed for s in replace(c, seed=4).sources[:3]] == [4, 4, 4]
    assert RecommenderConfig(**json.loads(json.dumps(asdict(c)))) == c and settings(identifiers='item,x.json') == settings(identifiers=['item', 'x.json'])


# ---- runs ----------------------------------------------------------------------------------------------------------------

RUN = '''
data = "{data}"
identifiers = ["item", {{ method = "hkmeans", cf = "cooccurrence", clusters = 4, leaf = 4 }}, {{ method = "tree", clusters = 4, leaf = 4 }}]
compare = ["children"]
tokenizer = {{ method = "rqkmeans", encoder = "tfidf", levels = 2, size = 4 }}
model = {{ d_model = 16, num_heads = 2, num_layers = 1 }}
train = {{ epochs = 1, batch_size = 16, eval_every = 1 }}
'''

@pytest.fixture(scope='module')
def three(tmp_path_factory):
    "A run with three further identifiers, and what was tokenized for it"
    import genrec_nb.pipeline as pipeline
    from oracles import small_data
    home, calls = tmp_path_factory.mktemp('three'), []
    (home/'run.toml').write_text(RUN.format(data=small_data(home/'toy')))
    tokenize = pipeline.tokenize_items
    def count(data, split, config, *more):
        calls.append(config.method)
        return tokenize(data, split, config, *more)
    with pytest.MonkeyPatch.context() as m:
        m.setattr(pipeline, 'tokenize_items', count)
        yield home, run(load_config(home/'run.toml'), home/'out', jobs=1, device='cpu'), calls

def test_a_run_makes_each_identifier_once(three):
    "Two trainings share the tokenizer; resumed from what the run wrote, nothing is made again"
    home, metrics, calls = three
    assert sorted(calls) == ['hkmeans', 'item', 'rqkmeans', 'tree'] and set(metrics["parameters"]) == {"children", "several"}
    c = load_config(home/'out'/'config.toml')
    assert c == load_config(home/'run.toml') and c.identifiers[1].options == c.identifiers[2].options == dict(clusters=4, leaf=4)
    assert run(c, home/'out', resume=True, jobs=1, device='cpu')['methods'] == metrics['methods'] and len(calls) == 4

def test_trees_of_a_run_explain(three):
    "Ragged paths have one length in the item decoder; each identifier has its name"
    home, _, _ = three
    key = next(p.parent for p in (home/'out'/'work').glob('*/model/index-3.json'))
    rec = GenerativeRecommender.from_pretrained(key)
    assert rec.names == ['rqkmeans', 'item', 'hkmeans cooccurrence', 'tree'] and not any(i.is_ragged for i in rec.identifiers)
    e = rec.explain(rec.catalog.titles[:3], rec.catalog.titles[9])
    assert list(e.parts) == rec.names and all(0 < p.probability <= 1 for x in e.parts.values() for p in x.parts)
    logp = every_logp(rec, DataConfig(str(home/'toy')).load()[1].test)
    torch.testing.assert_close(logp.exp().sum(-1), torch.ones(logp.shape[:2], dtype=torch.float64), atol=1e-5, rtol=0)

def test_what_a_further_identifier_lacks_is_said_first(tmp_path):
    "Texts, a file of vectors, a recommender's name: before the first identifier is made"
    from oracles import small_data
    data = small_data(tmp_path/'toy', text=False)
    for more, message in ((dict(method='hkmeans', encoder='tfidf'), "tokenizer hkmeans needs it.*cf='cooccurrence'"), (dict(method='hkmeans', cf='x.npy'), 'no such file'), (dict(method='hkmeans', cf='sasrek'), 'expected sasrec')):
        with pytest.raises(GenrecError, match=message): run(RunConfig(data=str(data), tokenizer=dict(method='item'), identifiers=[more], compare=[]), tmp_path/'out')
        assert not (tmp_path/'out').exists()


# ---- grids ---------------------------------------------------------------------------------------------------------------

def test_methods_of_a_grid_have_identifiers_of_their_own(tmp_path, monkeypatch):
    "Read from TOML, with the data set's folder and name in file names; rows hold every method, and none twice"
    import genrec_nb.pipeline as pipeline
    from genrec_nb.experiments.execution import run_grid
    from genrec_nb.experiments.grid import Grid, read_grid
    from oracles import small_data
    data = small_data(tmp_path/'toy')
    (data/'toy.two.index.json').write_text(json.dumps({str(i): [f'<a_{i % 7}>', f'<b_{i // 7}>'] for i in range(40)}))
    (tmp_path/'g.toml').write_text('''
alphas = [0]
seeds = [0]
reference = "sasrec"
model = { d_model = 16, num_heads = 2, num_layers = 1, softmax = "children", prior = "trie" }
train = { epochs = 1, batch_size = 16, eval_every = 1 }
[data.toy]
path = "toy"
[ids.two]
file = "{path}/{name}.two.index.json"
[weightings.sasrec]
kind = "ce"
tokenizer = { method = "item" }
model = { head_ff = 0 }
[weightings.ce]
[weightings.several]
kind = "ce"
identifiers = ["item", { method = "random", levels = 2, size = 9 }]
decode = { combine = "mixture" }
[weightings.products]
kind = "position"
identifiers = ["item", { method = "random", levels = 2, size = 9 }]
''')
    grid = read_grid(tmp_path/'g.toml')
    r = {m: grid.recommender('toy', 'two', m, 0, {}) for m in grid.weightings}
    assert _source_names(r['several'].sources) == ['random', 'item', 'random 2'] and r['several'].decode.combine == 'mixture'
    assert r['sasrec'].tokenizer.method == 'item' and r['sasrec'].model['head_ff'] == 0 and r['ce'].identifiers == []
    calls, tokenize = [], pipeline.tokenize_items
    monkeypatch.setattr(pipeline, 'tokenize_items', lambda data, split, config, *more: (calls.append(config.method), tokenize(data, split, config, *more))[1])
    results = run_grid(grid, tmp_path/'out')
    assert sorted(calls) == ['item', 'random']                                # shared by three methods, and made once each
    ids = {t['method']: t['config']['ids'] for t in results.trials.values()}
    assert set(ids) == set(grid.weightings) and ids['ce'].startswith('file:') and ids['several'][0] == ids['ce'] and [x['method'] for x in ids['several'][1:]] == ['item', 'random']
    assert str(tmp_path) not in (tmp_path/'out'/'results.jsonl').read_text()
    with pytest.raises(SettingError, match="'a' and 'b' are the same method"): Grid('toy', weightings=dict(a=dict(kind='ce', identifiers=['item']), b=dict(kind='ce', identifiers=['item'])))
    with pytest.raises(SettingError, match="weightings.ce.*did you mean 'item'"): Grid('toy', weightings=dict(ce=dict(identifiers=['itme'])))


def test_weights_by_ndcg_have_rules_of_their_own_and_share_the_training(rec, tmp_path):
    found = rec.weights['ndcg@10']
    assert found.keys() == {'product', 'mixture', 'rules'} and found['rules'].keys() == {'product', 'mixture'}
    decode = DecodeConfig(combine='mixture', weights='ndcg@10', rules_weight='fitted')
    assert list(rec.exact(decode).weights) == found['mixture'] and rec.exact(decode).rules == found['rules']['mixture']
    again = GenerativeRecommender.from_pretrained(rec.save_pretrained(tmp_path/'m'))
    assert (again.rank(SPLIT.test, 5, decode) == rec.rank(SPLIT.test, 5, decode)).all() and again.weights == rec.weights
    again.weights.pop('ndcg@10')
    with pytest.raises(SettingError, match="weights: 'ndcg@10' chooses among identifiers.*take fitted"): again.rank(SPLIT.test, 5, decode)
