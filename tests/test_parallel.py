"Parallel digits (RPG): brute force over small catalogs, ranks, loss, saved, resumed, explained, new items, a run, refusals."
import json
from dataclasses import replace
import numpy as np
import pytest
import torch
from hypothesis import given, settings as examples, strategies as st
from test_several import assert_same, walks
from genrec_nb.beam_search import DecodeConfig
from genrec_nb.core import GenrecError, SettingError
from genrec_nb.exact import ExactConfig, combine, exact_scores, exact_search, item_nats
from genrec_nb.item_decoder import item_decoder
from genrec_nb.rec_config import RecommenderConfig
from genrec_nb.recommender import GenerativeRecommender
from genrec_nb.run import load_config, run
from genrec_nb.semantic_ids import Identifiers
from genrec_nb.splits import leave_one_out
from genrec_nb.tokenizer import tokenize_items
from genrec_nb.tokenizer_config import TokenizerConfig

OPQ = dict(method='opq', levels=4, size=4, cf='cooccurrence', options=dict(parallel=True, n_iter=3))
MODEL = dict(d_model=16, num_layers=1, num_heads=2)
DATA = walks()
SPLIT = leave_one_out(DATA.interactions)
HISTORY = DATA.catalog.ids[3:9:2]


def settings(**changes):
    given = dict(tokenizer=OPQ, weighting='ce', model=MODEL, train=dict(epochs=2, batch_size=8, eval_every=1, lr=5e-3))
    return RecommenderConfig(**{**given, **changes})

def digits(n=14, m=4, size=3, seed=0):
    "Random codes, some items equal in all digits"
    codes = np.random.default_rng(seed).integers(size, size=(n, m))
    codes[-2:] = codes[:2]
    ids = Identifiers.from_codes(codes, policy='keep')
    ids.notes['parallel'] = True
    return ids

@pytest.fixture(scope='module')
def rec(): return GenerativeRecommender.fit(DATA, settings(), SPLIT)


# ---- scores --------------------------------------------------------------------------------------------------------------

def by_hand(model, history, prior): # float64 [N], the sum over the digits without and with its normalization
    hidden, codes = model.last_hidden(history), model.paths - model.first
    total = torch.zeros(len(codes)).double()
    for l, tree in enumerate(model.trees):
        z = model.level_logits(hidden, l)[0].double()
        if prior is not None: z = z + torch.bincount(codes[:, l], prior + 1., len(z)).log()
        total += z.log_softmax(0)[codes[:, l]]
        if prior is not None: total += ((prior + 1)/torch.bincount(codes[:, l], prior + 1., len(z))[codes[:, l]]).log()
    return total

@examples(deadline=None, max_examples=15)
@given(st.integers(1, 6), st.integers(2, 5), st.sampled_from([0., .07]), st.booleans(), st.sampled_from(['children', 'vocabulary']), st.booleans(), st.integers(0, 99))
def test_scores_are_the_sum_over_the_digits(m, size, tau, mean, softmax, prior, seed):
    "Of every item, and its normalization over the catalog sums to 1; items with equal digits have equal scores"
    ids, counts = digits(14, m, size, seed), np.arange(14) % 5
    prior = prior and softmax == 'children'
    model = item_decoder(ids, counts=counts, softmax=softmax, prior='trie' if prior else 'none', cosine_temperature=tau, mean_embeddings=mean, seed=seed, **MODEL).eval()
    history = torch.tensor([[seed % 14, 3, 5]])
    with torch.no_grad():
        want = by_hand(model, history, torch.from_numpy(counts).double() if prior else None)
        (found,) = exact_scores(model, history, DecodeConfig(exclude_seen=False))
        assert found.logp.shape == (m, 1, 14)
        for w in (1., 1/m):
            logp = combine(found.logp, ExactConfig(weights=(w,)*m))[0].double() if m > 1 else (w*found.logp[0, 0]).log_softmax(0).double()
            torch.testing.assert_close(logp, (w*want).log_softmax(0), atol=1e-4, rtol=1e-4)
            assert float(logp.exp().sum()) == pytest.approx(1, abs=1e-5)
        if not prior: assert (logp[:2] == logp[-2:]).all()

@pytest.mark.parametrize('seed', range(3))
def test_ranks_are_those_of_the_scores(seed):
    "Seen items left out; equal ones in the order of the first digit's trie"
    model = item_decoder(digits(30, 3, 3, seed), softmax='children', cosine_temperature=.1, **MODEL).eval()
    history = torch.tensor([[1, 4, 7], [2, 2, 28]])
    items, scores = exact_search(model, history, 30)
    with torch.no_grad(): want = torch.stack([by_hand(model, h[None], None) for h in history]).div(3).log_softmax(1)
    place = torch.argsort(model.tries[0].tie_order)
    for row, x, s, seen in zip(items, want, scores, history):
        left = [i for i in range(30) if i not in seen.tolist()]
        assert sorted(row[row >= 0].tolist()) == left
        torch.testing.assert_close(x[row[row >= 0]].float(), s[row >= 0], atol=1e-4, rtol=1e-4)
        for a, b in zip(row[row >= 0], row[row >= 0][1:]):
            if (model.paths[a] == model.paths[b]).all(): assert place[a] < place[b]

def test_the_loss_is_the_mean_over_the_digits():
    "Cross-entropies of cosines over the temperature; biases are no parameters of cosines"
    model = item_decoder(digits(), softmax='vocabulary', cosine_temperature=.05, mean_embeddings=True, **MODEL).eval()
    out = model(items=torch.tensor([[1, 4, 7]]))
    hidden, codes = model.last_hidden(torch.tensor([[1, 4]])), (model.paths - model.first)[7]
    for l in range(4):
        f, e = model.heads[l](hidden)[0], model.codes[l].weight
        z = torch.nn.functional.cosine_similarity(f[None], e)/.05
        torch.testing.assert_close(out.nll[1, l], -z.log_softmax(0)[codes[l]], atol=1e-4, rtol=1e-4)
    assert not any(b.requires_grad for b in model.bias) and model.config.levels == [1]*4

def test_an_item_enters_as_the_mean_of_its_codes():
    means, sums = (item_decoder(digits(), mean_embeddings=m, **MODEL).eval() for m in (True, False))
    with torch.no_grad():
        for e in sums.codes: e.weight /= 4
    codes = (sums.paths - sums.first)[None, [1, 4, 7]]
    torch.testing.assert_close(means.read(codes), sums.read(codes))


# ---- the recommender -----------------------------------------------------------------------------------------------------

def test_digits_of_a_recommender(rec):
    assert rec.names == [f'opq cooccurrence digit {d}' for d in (1, 2, 3, 4)] and len(rec.tables) == 1 and rec.ids.max_len == 4
    assert rec.weights.keys() == {'product', 'rules'} and len(rec.weights['product']) == 4
    model, cases = rec.model, SPLIT.test
    assert item_nats(model, cases) < np.log(len(DATA.catalog))*1.2

def test_saved_and_loaded_ranks_the_same(rec, tmp_path):
    folder = rec.save_pretrained(tmp_path/'saved')
    assert [p.name for p in folder.glob('index*') if 'vocab' not in p.name] == ['index.json']
    again = GenerativeRecommender.from_pretrained(folder)
    assert (again.rank(SPLIT.test, 10) == rec.rank(SPLIT.test, 10)).all() and again.names == rec.names and again.weights == rec.weights
    assert_same(again.recommend(HISTORY, 5), rec.recommend(HISTORY, 5))

def test_a_resumed_training_gives_the_same_numbers(rec, tmp_path):
    from transformers import TrainerCallback
    class Stop(Exception): "A training is interrupted"
    class Once(TrainerCallback):
        def on_save(self, args, state, control, **kw): raise Stop
    with pytest.raises(Stop): GenerativeRecommender.fit(DATA, settings(), SPLIT, folder=tmp_path, callbacks=[Once()])
    again = GenerativeRecommender.fit(DATA, settings(), SPLIT, folder=tmp_path, resume=True)
    for a, b in zip(rec.model.parameters(), again.model.parameters()): assert torch.equal(a, b)
    assert again.weights == rec.weights

def test_an_explanation_says_which_digits_decided(rec):
    best, second = rec.recommend(HISTORY, 2)
    e = rec.explain(HISTORY, best.id)
    assert list(e.parts) == rec.names and e.decided in rec.names and e.score == pytest.approx(best.score, abs=1e-4)
    assert e.other == second.title and sum(e.leads.values()) == pytest.approx(best.score - second.score, abs=1e-4)
    assert all(len(x.parts) == 1 and 0 < x.parts[0].probability <= 1 for x in e.parts.values())

def test_beside_another_identifier():
    "Digits count one by one; the tables are two"
    both = GenerativeRecommender.fit(DATA, settings(identifiers=['item'], decode=dict(weights=[1, 1, 1, 1, 2])), SPLIT)
    assert both.model.config.levels == [1]*5 and len(both.tables) == 2 and both.names[-1] == 'item'
    logp = torch.cat([p.logp for p in exact_scores(both.model, torch.from_numpy(SPLIT.test.tail(50)), DecodeConfig(exclude_seen=False))], 1)
    assert logp.shape == (5, len(SPLIT.test), len(DATA.catalog))
    torch.testing.assert_close(logp[-1].exp().sum(-1), torch.ones(len(SPLIT.test)), atol=1e-4, rtol=0)


# ---- a run, and new items ------------------------------------------------------------------------------------------------

RUN = '''
data = "{data}"
identifiers = []
compare = ["children"]
tokenizer = {{ method = "opq", encoder = "tfidf", levels = 4, size = 4, options = {{ parallel = true }} }}
model = {{ d_model = 16, num_heads = 2, num_layers = 1, mean_embeddings = true, cosine_temperature = 0.07 }}
train = {{ epochs = 1, batch_size = 16, eval_every = 1 }}
'''

def test_a_run_with_parallel_digits(tmp_path):
    from oracles import small_data
    (tmp_path/'run.toml').write_text(RUN.format(data=small_data(tmp_path/'toy')))
    metrics = run(load_config(tmp_path/'run.toml'), tmp_path/'out', jobs=1, device='cpu')
    assert metrics['methods'] and load_config(tmp_path/'out'/'config.toml') == load_config(tmp_path/'run.toml')
    rec = GenerativeRecommender.from_pretrained(tmp_path/'out')
    assert rec.ids.notes['parallel'] and rec.ids.notes['policy'] == 'keep' and len(rec.names) == 4
    n = len(rec.catalog)
    (tmp_path/'new.json').write_text(json.dumps({'new': dict(title=rec.catalog.titles[0], description=rec.catalog.texts[0])}))
    rec.add_items(tmp_path/'new.json')
    assert len(rec.catalog) == n + 1 and (rec.model.paths[n] == rec.model.paths[0]).all()
    ranked = rec.recommend(rec.catalog.ids[1:4], n)
    assert {'new', rec.catalog.ids[0]} <= {x.id for x in ranked}


def test_digits_that_items_share_are_said_with_what_helps():
    "Not a running number, which is refused"
    made = tokenize_items(DATA, SPLIT, TokenizerConfig(**OPQ | dict(levels=1)))
    said = [str(v) for v in made.report().verdicts()]
    assert any('recommended together' in x and '--identifiers item' in x for x in said) and not any('policy=extra' in x for x in said)


# ---- refusals ------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize('changes, message', [
    (dict(backbone='t5', model={}), "backbone 'packed' alone"), (dict(decode=dict(search='beam')), "take 'exact'"), (dict(decode=dict(combine='mixture')), "take 'product'"),
    (dict(decode=dict(weights=[1, 1])), '2 numbers for 4 identifiers'), (dict(tokenizer=OPQ | dict(policy='extra')), "take 'keep'"),
    (dict(tokenizer=dict(method='rqkmeans', options=dict(parallel=True))), "'parallel' is unknown"), (dict(model=dict(cosine_temperature=-1)), 'cosine_temperature'),
    (dict(tokenizer=OPQ | dict(options=dict(parallel='yes'))), 'parallel')])
def test_settings_that_cannot_be(changes, message):
    with pytest.raises(SettingError, match=message) as e: settings(**changes)
    assert '\n' not in str(e.value)

def test_data_that_do_not_fit(rec):
    "Before anything is trained"
    for changes, message in ((dict(levels=99), 'levels is 99, expected at most'), (dict(size=25), 'choose a size of at most 24'), (dict(options=dict(whiten=99)), 'whiten is 99')):
        with pytest.raises(GenrecError, match=message): tokenize_items(DATA, SPLIT, TokenizerConfig(**OPQ | changes))
    with pytest.raises(SettingError, match="take 'product'"): rec.rank(SPLIT.test, 5, replace(rec.config.decode, combine='mixture'))
    with pytest.raises(SettingError, match="take search='exact'"): rec.rank(SPLIT.test, 5, replace(rec.config.decode, search='beam'))
