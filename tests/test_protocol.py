"What must not lead to a wrong table: broken numbers, strange ids, other splits, two treatments of seen items."
import math
import numpy as np
import pandas as pd
import pytest
import torch
from dataclasses import replace
from genrec_nb.beam_search import DecodeConfig, decoding_weights, recommend
from genrec_nb.branch_and_bound import proved_items
from genrec_nb.core import GenrecError
from genrec_nb.data import Catalog, Dataset, Interactions
from genrec_nb.exact import exact_search
from genrec_nb.generate import TrieProcessor
from genrec_nb.metrics import popularity_ranking
from genrec_nb.baselines import _load_vectors, save_vectors, transition_ranking
from genrec_nb.experiments.execution import _make_plan
from genrec_nb.experiments.grid import Grid
from genrec_nb.pages import _seen
from genrec_nb.rec_config import RecommenderConfig
from genrec_nb.recommender import GenerativeRecommender, _tokenize
from genrec_nb.run import RunConfig, _Run
from genrec_nb.tokenize import tokenize
from genrec_nb.tokenizer import _given_identifiers, load_tokenized, tokenize_items
from genrec_nb.tokenizer_config import TokenizerConfig
from genrec_nb.trial import DataConfig, Trial
from genrec_nb.rank import rank_each
from genrec_nb.rqvae import RQVAEConfig
from genrec_nb.semantic_ids import Identifiers
from genrec_nb.splits import Cases, _fitted_on, global_time, leave_one_out
from genrec_nb.trie import ItemTrie
from oracles import packed, t5

N = 12
IDS = Identifiers.from_codes(np.array([[i//4, i % 4] for i in range(N)]), [3, 4])
TRIE = ItemTrie.build(IDS)
HISTORY = torch.tensor([[1, 5], [2, 7]])
CASES = Cases(np.arange(2), np.array([1, 5, 2, 7]), np.array([0, 2, 4]), np.array([3, 4]))
MODELS = dict(t5=lambda: t5(IDS), packed=lambda: packed(IDS), children=lambda: packed(IDS, softmax='children'))
SEARCHES = dict(beam=recommend, proved=proved_items, exact=lambda m, trie, *a, **k: exact_search(m, *a, **k))
every = pytest.mark.parametrize('kind, search', [('t5', 'beam'), ('t5', 'proved'), ('packed', 'beam'), ('packed', 'exact'), ('children', 'beam'), ('children', 'proved'), ('children', 'exact')])

def rank(kind, search, history=HISTORY, k=5, model=None, **more):
    model = MODELS[kind]() if model is None else model
    return SEARCHES[search](model, TRIE, history, k, DecodeConfig(**more.pop('config', {})), **more)

def _recommender(kind):
    "An untrained model with two beams"
    config = RecommenderConfig(backbone=kind, tokenizer=TokenizerConfig('random', levels=2, size=4), decode=DecodeConfig(beams=2))
    names = [str(i) for i in range(N)]
    return GenerativeRecommender(Catalog(names, names, ['']*N), IDS, np.ones(N), MODELS[kind](), config)


# ---- broken numbers ------------------------------------------------------------------------------------------------

@pytest.mark.parametrize('value', [math.nan, math.inf])
@every
def test_broken_weights_end_a_ranking(kind, search, value):
    model = MODELS[kind]()
    with torch.no_grad(): next(p for n, p in model.named_parameters() if 'norm' in n).fill_(value)
    with pytest.raises(GenrecError, match='NaN or infinite'): rank(kind, search, model=model)

@pytest.mark.parametrize('place', ['codes', 'bias'])
@pytest.mark.parametrize('kind, search', [('packed', 'beam'), ('packed', 'exact'), ('children', 'beam'), ('children', 'exact')])
def test_one_broken_code_is_enough(kind, search, place):
    model = MODELS[kind]()
    with torch.no_grad(): (model.codes[1].weight if place == 'codes' else model.bias[1])[2] = math.nan
    with pytest.raises(GenrecError, match='NaN or infinite'): rank(kind, search, model=model)

@pytest.mark.parametrize('value', [math.nan, math.inf])
def test_broken_gains(value):
    gain = torch.ones(TRIE.n_nodes)
    gain[3] = value
    with pytest.raises(GenrecError, match='gains.*NaN or infinite'): decoding_weights(TRIE, gain, .2)

@pytest.mark.parametrize('value', [math.nan, math.inf])
@pytest.mark.parametrize('kind, search', [('t5', 'beam'), ('packed', 'exact')])
def test_broken_scores_of_an_assistant(kind, search, value):
    scores = torch.zeros(2, N)
    scores[1, 3] = value
    with pytest.raises(GenrecError, match="assistant's scores"): rank(kind, search, config=dict(assistant_weight=.5), assistant=scores)

def test_broken_counts_of_popularity():
    with pytest.raises(GenrecError, match='NaN or infinite'): popularity_ranking(np.array([1., math.nan, 2]), Cases(np.zeros(1), np.array([0]), np.array([0, 1]), np.zeros(1)), 2)

def test_generate_ends_too():
    processor = TrieProcessor(TRIE)
    scores = torch.zeros(1, IDS.vocab_size)
    scores[0, 3] = math.nan
    with pytest.raises(GenrecError, match='NaN or infinite'): processor(torch.tensor([[0]]), scores)
    processor(torch.tensor([[0]]), torch.zeros(1, IDS.vocab_size))


# ---- strange ids ---------------------------------------------------------------------------------------------------

@pytest.mark.parametrize('item', [N, N + 5, -2])
@every
def test_unknown_items_in_a_history(kind, search, item):
    with pytest.raises(GenrecError, match=f'item {item} .*{N} items'): rank(kind, search, torch.tensor([[1, 5], [2, item]]))

@pytest.mark.parametrize('item', [N, -2])
@every
def test_unknown_items_among_the_seen(kind, search, item):
    with pytest.raises(GenrecError, match=f'item {item} .*{N} items'): rank(kind, search, seen=torch.tensor([[1, 5], [2, item]]))

@pytest.mark.parametrize('item', [N, -1])
@pytest.mark.parametrize('path', ['rank_each', 'popularity', 'transitions'])
def test_unknown_items_in_cases(path, item):
    cases = replace(CASES, items=np.array([1, 5, 2, item]))
    train = Interactions([0, 1, 2, 5], [0, 2, 4], ['a', 'b'], N)
    call = dict(rank_each=lambda: rank_each(MODELS['packed'](), TRIE, cases, [DecodeConfig()], k=3),
                popularity=lambda: popularity_ranking(train.item_counts(), cases, 3, False), transitions=lambda: transition_ranking(train, cases, 3, False))
    with pytest.raises(GenrecError, match=f'item {item} .*{N} items'): call[path]()


# ---- settings that say nothing ---------------------------------------------------------------------------------------

@pytest.mark.parametrize('k', [0, -3])
@every
def test_lists_of_no_items(kind, search, k):
    with pytest.raises(GenrecError, match=f'k is {k}'): rank(kind, search, k=k)

@pytest.mark.parametrize('call', [lambda: popularity_ranking(np.ones(N), CASES, 0), lambda: transition_ranking(Interactions([0, 1], [0, 2], ['a'], N), CASES, 0)])
def test_baselines_with_no_items(call):
    with pytest.raises(GenrecError, match='k is 0'): call()

@pytest.mark.parametrize('penalty', [math.nan, math.inf, -math.inf])
def test_length_penalties(penalty):
    with pytest.raises(GenrecError, match='length_penalty'): DecodeConfig(length_penalty=penalty)

def test_a_quantizer_needs_steps_after_the_warmup():
    with pytest.raises(GenrecError, match='warmup is 1'): RQVAEConfig(8, warmup=1.)

def test_alpha_without_gains():
    with pytest.raises(GenrecError, match='gain='): TrieProcessor(TRIE, alpha=.2)

@pytest.mark.parametrize('make', [lambda: Dataset("none", Catalog([], [], []), Interactions([], [0], [], 0)), lambda: Identifiers([], [0], ['<pad>', '<s>', '</s>']), lambda: Identifiers.random(0),
                                  lambda: popularity_ranking(np.zeros(0), CASES, 3), lambda: Identifiers.from_codes(np.zeros((0, 2), int))])
def test_no_items_at_all(make):
    with pytest.raises(GenrecError): make()

GRID = dict(data='ml-100k', ids='random', weightings=['ce'], seeds=[0])
T5 = dict(backbone='t5', model=dict(d_model=16, d_ff=16, num_layers=1, num_decoder_layers=1, num_heads=2, d_kv=8))

@pytest.mark.parametrize('wrong, words', [
    (T5 | dict(decode=dict(beams=3)), 'weightings.ce: decode.beams is 3, but lists of 20'), (T5 | dict(weightings=dict(ce={}, few=dict(kind='ce', decode=dict(beams=19)))), 'weightings.few: decode.beams is 19'),
    (dict(decode=dict(beams=3, search='beam')), 'decode.beams is 3'), (dict(metric='ndcg@50'), "metric is 'ndcg@50', and ranked lists have 20"), (dict(alphas=[]), 'alphas'),
])
def test_grids_that_would_mislead_are_refused(wrong, words):
    with pytest.raises(GenrecError, match=words): Grid(**GRID | wrong)

def test_an_item_decoder_needs_no_beams(): assert Grid(**GRID | dict(decode=dict(beams=3)))

FEW = {'lists of 20 items hold the whole catalog of 20': {}, 'only 1 test case': dict(users=1), 'only 1 validation case': dict(users=1), 'only 5 validation cases': dict(train=dict(eval_users=5))}

@pytest.mark.parametrize('words', FEW)
def test_figures_of_few_are_said_in_a_grid(words, tmp_path, caplog):
    FRAME.to_csv(tmp_path/'interactions.csv', index=False)
    with caplog.at_level('INFO', 'genrec_nb'): _make_plan(Grid(**GRID | dict(data={'few': dict(path=str(tmp_path), tie_seeds=[0, 1]) | FEW[words]}, seeds=[0, 1])))
    assert caplog.text.count(words) == 1 and 'few: ' + words in caplog.text

def test_more_items_than_beams_are_found():
    "A list as long as asked for, from models that search with a beam"
    rec = _recommender('t5')
    assert rec.config.decode.beams == 2 and (rec.rank(CASES, 6) >= 0).all() and len(rec.recommend(['1', '5'], 6)) == 6


# ---- an assistant at any margin --------------------------------------------------------------------------------------

def slow_scores(model, scores, share):
    "Mixed log-probabilities of every item by the definition, in logarithms all the way"
    logp = scores.double().log_softmax(0).tolist()
    paths = [IDS.path(i).tolist() for i in range(N)]
    def mass(prefix):
        x = [logp[i] for i in range(N) if paths[i][:len(prefix)] == prefix]
        top = max(x)
        return top + math.log(math.fsum(math.exp(v - top) for v in x))
    logits, out = model, []
    for p in paths:
        total = 0.
        for t in range(len(p)): total += (1 - share)*float(logits(p[:t])[p[t]]) + share*(mass(p[:t + 1]) - mass(p[:t]))
        out.append(total)
    return np.array(out)

@pytest.mark.parametrize('margin', [1, 40, 400])
@pytest.mark.parametrize('search', ['beam', 'exact'])
def test_the_assistant_is_exact_at_any_margin(margin, search):
    from oracles import next_logp
    model, g = MODELS['packed'](), torch.Generator().manual_seed(0)
    scores, history = margin*torch.rand(1, N, generator=g, dtype=torch.float64), HISTORY[:1]
    cache = {}
    def logp(prefix): return cache.setdefault(tuple(prefix), next_logp(model, history[0].tolist(), prefix))
    want = slow_scores(logp, scores[0], .6)
    items, found = rank('packed', search, history, N, model, config=dict(assistant_weight=.6, exclude_seen=False, beams=N), assistant=scores)
    assert items[0].tolist() == np.argsort(-want).tolist()
    np.testing.assert_allclose(found[0].numpy(), np.sort(want)[::-1], rtol=1e-5, atol=1e-4)


# ---- one split -------------------------------------------------------------------------------------------------------

def table(seed=0, users=40, items=20):
    "Interactions with times, some of them equal"
    rng = np.random.default_rng(seed)
    user = np.repeat(np.arange(users), 6)
    return pd.DataFrame(dict(user=user, item=(rng.integers(0, items, len(user))), time=rng.integers(0, 30, len(user))))

FRAME = table()
DATA = Dataset.from_frame(FRAME, time='time')
LOO, TIMED = leave_one_out(DATA.interactions), global_time(DATA.interactions)
X = np.random.default_rng(0).normal(size=(20, 6)).astype(np.float32)
TREE, TEXT = TokenizerConfig('tree', options=dict(clusters=3, leaf=4)), TokenizerConfig('rqkmeans', levels=2, size=4)

def test_a_fingerprint_is_of_the_training_part():
    "Who, what, when and in which order; nothing that is held out"
    x = DATA.interactions
    changed = x.items.copy()
    for end in x.offsets[1:]: changed[end - 2:end] = (changed[end - 2:end] + 1) % 20
    assert leave_one_out(replace(x, items=changed)).fingerprint == LOO.fingerprint and LOO.fingerprint['ties'] == 'random, seed 0'
    later = replace(x, times=x.times + 1)
    other = Dataset.from_frame(FRAME, time='time', tie_seed=1)
    prints = [s.fingerprint['digest'] for s in (LOO, TIMED, leave_one_out(later), leave_one_out(other.interactions))]
    assert len(set(prints)) == 4 and LOO.fingerprint['kind'] == 'leave-one-out' and TIMED.fingerprint['kind'] == 'time'
    assert replace(LOO, test=LOO.test.sample(3)).fingerprint == LOO.fingerprint

def test_the_digest_of_a_data_set_has_its_times():
    later = Dataset.from_frame(FRAME.assign(time=FRAME.time*2), time='time')
    assert np.array_equal(later.interactions.items, DATA.interactions.items)
    assert DataConfig().key(DATA) != DataConfig().key(later)

@pytest.mark.parametrize('how, words', [(TREE, 'fitted on leave-one-out'), (TEXT, 'made elsewhere'), (TokenizerConfig('random', levels=2, size=8), 'made without interactions')])
def test_a_table_is_refused_under_another_split(tmp_path, how, words):
    made = tokenize_items(DATA, LOO, how, vectors=X if how is TEXT else None)
    made.save(tmp_path/'made')
    assert words in _fitted_on(made.ids.notes) and load_tokenized(tmp_path/'made').ids.notes.get('split') == made.ids.notes.get('split')
    for path in (tmp_path/'made', tmp_path/'made'/'index.json'): _given_identifiers(path, DATA.catalog, LOO)
    config = RecommenderConfig(tokenizer=how, train=dict(epochs=1))
    calls = [lambda: _given_identifiers(tmp_path/'made', DATA.catalog, TIMED), lambda: _given_identifiers(tmp_path/'made'/'index.json', DATA.catalog, TIMED),
             lambda: _tokenize(DATA, TIMED, config, [made]), lambda: Trial(DataConfig(), 'd', config, str(tmp_path/'made')).check(DATA, TIMED)]
    for call in calls:
        if how is not TREE: call(); continue
        with pytest.raises(GenrecError, match='another split .leave-one-out, 160 training.* than this one .time, ') as e: call()
        assert '\n' not in str(e.value)
    (tmp_path/'made'/'index.vocab.json').unlink()                              # a published table says nothing
    bare = _given_identifiers(tmp_path/'made'/'index.json', DATA.catalog, TIMED)
    assert 'made elsewhere' in _fitted_on(bare.ids.notes)

def test_vectors_are_refused_under_another_split(tmp_path):
    save_vectors(tmp_path/'cf.safetensors', X, LOO)
    np.save(tmp_path/'cf.npy', X)
    given = lambda name: TokenizerConfig('rqkmeans', levels=2, size=4, cf=str(tmp_path/name))
    made = tokenize_items(DATA, LOO, given('cf.safetensors'))
    assert made.ids.notes['split'] == LOO.fingerprint
    made.save(tmp_path/'made')
    for path in (tmp_path/'cf.safetensors', tmp_path/'made'/'cf.safetensors'):
        np.testing.assert_array_equal(_load_vectors(path, 20, split=LOO), X)
        with pytest.raises(GenrecError, match='another split'): _load_vectors(path, 20, split=TIMED)
    with pytest.raises(GenrecError, match='cf.safetensors: fitted on another split'): tokenize_items(DATA, TIMED, given('cf.safetensors'))
    assert 'split' not in tokenize_items(DATA, TIMED, given('cf.npy')).ids.notes
    assert 'split' not in tokenize_items(DATA, TIMED, replace(given('cf.npy'), cf='sasrec'), cf=X).ids.notes
    with pytest.raises(GenrecError, match='.safetensors'): save_vectors(tmp_path/'cf.npy', X, LOO)

def test_tokenize_by_time(tmp_path):
    FRAME.to_csv(tmp_path/'interactions.csv', index=False)
    found = tokenize(str(tmp_path), TREE, tmp_path/'out', split='time', tie_seed=3)
    _, split = DataConfig(str(tmp_path), split='time', tie_seed=3).load()
    assert 'fitted on time' in found['fitted_on'] and load_tokenized(tmp_path/'out').ids.notes['split'] == split.fingerprint
    page = (tmp_path/'out'/'report.html').read_text()
    assert 'ties: random, seed 3' in page


# ---- one treatment of seen items ---------------------------------------------------------------------------------------

@pytest.mark.parametrize('out', [True, False])
def test_baselines_treat_seen_items_as_the_models_do(out, tmp_path):
    config = RunConfig(decode=dict(exclude_seen=out), tokenizer=TREE)
    lists = _Run(config, DATA, LOO, {}, tmp_path).baselines()
    for test, valid in lists.values():
        for ranked, cases in ((test, LOO.test), (valid, LOO.valid)):
            seen = [bool(set(row.tolist()) & set(cases.history(m).tolist())) for m, row in enumerate(ranked)]
            assert any(seen) != out

def test_seen_items_are_named():
    m = dict(users=10, exclude_seen=True, unreachable=3)
    assert _seen(m) == 'seen items excluded in all rows (3 of 10 targets cannot be hit)' and 'kept' in _seen(m | dict(exclude_seen=False))
    with pytest.raises(GenrecError, match='weightings.igd.decode: seen items'): Grid(data=['ml-100k'], ids=['tree'], weightings=dict(ce={}, igd=dict(decode=dict(exclude_seen=False))))
