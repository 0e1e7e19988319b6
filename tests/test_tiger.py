"""Both generators: prefill and decode steps against the training pass, T5's loss against `transformers`, saving, seeds, temperature."""
import json
import tempfile
import warnings
import numpy as np
import pytest
import torch
from genrec_nb.batches import hashed_users, history_tokens
from genrec_nb.beam_search import DecodeConfig, recommend
from genrec_nb.core import GenrecError, GenrecWarning, SettingError
from genrec_nb.data import Catalog, Interactions
from genrec_nb.generate import TrieProcessor
from genrec_nb.item_decoder import ItemDecoder, item_decoder
from genrec_nb.many_users import recommend_file
from genrec_nb.rank import rank_each
from genrec_nb.rec_config import RecommenderConfig
from genrec_nb.recommender import GenerativeRecommender
from genrec_nb.report import _user_card
from genrec_nb.semantic_ids import Identifiers, EOS
from genrec_nb.splits import Cases, leave_one_out
from genrec_nb.tiger import TigerT5, tiger_t5
from genrec_nb.train import TrainConfig, fit
from genrec_nb.trie import ItemTrie
from oracles import all_logp, identifiers, next_logp, packed, t5

def codes(n=20, sizes=(4, 3, 4), seed=0): return Identifiers.from_codes(np.random.default_rng(seed).integers(0, sizes, (n, len(sizes))), list(sizes), 'keep')

RAGGED = [[3, 4, EOS], [5, EOS], [6, 7, 8, EOS], [3, 5, EOS], [9, EOS], [6, 7, 3, EOS], [6, 4, EOS], [3, 4, EOS]]


# ---- T5's loss -----------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize('ids', [codes(), identifiers(RAGGED)], ids=['codes', 'titles'])
def test_t5_loss_is_transformers_own(ids):
    "One by one, by T5's own road from labels to loss"
    model, rng = t5(ids), np.random.default_rng(0)
    history, targets = torch.from_numpy(rng.integers(-1, ids.n_items, (6, 4))), torch.from_numpy(rng.integers(0, ids.n_items, 6))
    history[:, 0] = 2
    with torch.inference_mode():
        nll = model(history=history, targets=targets).nll
        for h, t, row in zip(history, targets, nll):
            x = torch.tensor([[k for i in h.tolist() if i >= 0 for k in ids.path(i).tolist() if k != EOS] + [EOS]])
            labels = torch.from_numpy(ids.path(int(t))[None].astype(np.int64))
            assert float(row.sum()/labels.numel()) == pytest.approx(float(super(TigerT5, model).forward(input_ids=x, labels=labels).loss), abs=1e-5)
            assert (row[labels.numel():] == 0).all()

def test_eos_is_a_setting_of_the_model(tmp_path):
    "As paths that end with EOS, through the recommender, saved and loaded"
    small = dict(d_model=16, d_ff=16, num_layers=1, num_decoder_layers=1, num_heads=2, d_kv=8)
    config = RecommenderConfig(tokenizer=dict(method='random'), backbone='t5', model=small | dict(eos=True))
    ids, catalog = Identifiers.random(20, 3, 4, seed=0), Catalog.from_ids([chr(97 + k) for k in range(20)])
    rec = GenerativeRecommender(catalog, ids, np.arange(20), None, config)
    plain = tiger_t5(ids.with_eos(), seed=config.seed, **small).eval()
    history = torch.tensor([[1, 2, 3], [4, 5, 6]])
    items, scores = recommend(plain, ItemTrie.build(ids.with_eos()), history, 5)
    assert (rec.model.paths[:, -1] == EOS).all()
    for r in (rec, GenerativeRecommender.from_pretrained(rec.save_pretrained(tmp_path/'m'))):
        for row, best in zip(history, items): assert [x.id for x in r.recommend([catalog.ids[i] for i in row], 5)] == [catalog.ids[i] for i in best]

# ---- both ---------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize('make, ids', [(t5, codes()), (t5, identifiers(RAGGED)), (packed, codes())], ids=['t5', 't5 titles', 'packed'])
def test_prefill_and_decode_steps_are_the_training_pass(make, ids):
    "Every prefix of every item, all users and beams at once with the shared cache, against the training pass"
    model, trie = make(ids), ItemTrie.build(ids)
    history = torch.tensor([[-1, -1, 3, 1], [5, 0, 2, 2], [-1, 7, 6, 4]])
    B, N = 3, ids.n_items
    paths = torch.from_numpy(ids.padded())
    logps = [all_logp(model, h, [ids.path(i).tolist() for i in range(N)]) for h in history.tolist()]
    with torch.inference_mode():
        logits, state = model.prefill(history)
        for depth in range(trie.max_depth):
            for b in range(B):
                for k in range(logits.shape[1]):
                    if 0 in paths[k, :depth + 1]: continue
                    np.testing.assert_allclose(logits[b, k].double().log_softmax(0), logps[b][tuple(paths[k, :depth].tolist())], atol=2e-5)
            if depth + 1 == trie.max_depth: break
            parents = torch.arange(N).expand(B, N) if depth else torch.zeros(B, N, dtype=torch.long)
            logits = model.decode_step(state, paths[:, depth].expand(B, N), parents)

@pytest.mark.parametrize('make', [t5, packed])
def test_beams_may_be_shuffled_dropped_and_doubled(make):
    "Ancestors are tracked: reorder the beams at each step in a way that differs from user to user"
    ids = codes(20, (4, 3, 4, 3))
    model, rng = make(ids), np.random.default_rng(0)
    history, paths = torch.tensor([[1, 2, 3], [-1, 9, 8]]), torch.from_numpy(ids.padded())
    with torch.inference_mode():
        logits, state = model.prefill(history)
        written = [[[]], [[]]]
        for depth in range(3):
            k = (7, 3, 11)[depth]
            parents = rng.integers(0, len(written[0]), (2, k))
            tokens = paths[torch.from_numpy(rng.integers(0, 20, (2, k))), depth]
            logits = model.decode_step(state, tokens, torch.from_numpy(parents))
            written = [[written[u][p] + [int(t)] for p, t in zip(parents[u], tokens[u])] for u in range(2)]
            for u in range(2):
                for b in range(k): np.testing.assert_allclose(logits[u, b].double().log_softmax(0), next_logp(model, history[u].tolist(), written[u][b]), atol=2e-5)

@pytest.mark.parametrize('make', [t5, packed])
def test_a_user_does_not_depend_on_its_batch(make):
    ids = codes()
    model, rng = make(ids), np.random.default_rng(0)
    history = torch.from_numpy(rng.integers(0, 20, (5, 6)))
    for u, n in enumerate((6, 1, 3, 5, 2)): history[u, :6 - n] = -1
    with torch.inference_mode():
        together = model.prefill(history)[0]
        for u, n in enumerate((6, 1, 3, 5, 2)): torch.testing.assert_close(model.prefill(history[u:u + 1, 6 - n:])[0][0], together[u], atol=1e-5, rtol=0)

@pytest.mark.parametrize('make, kind', [(t5, TigerT5), (packed, ItemDecoder)])
def test_saved_and_loaded_models_agree(make, kind, tmp_path):
    ids = codes()
    model = make(ids)
    model.save_pretrained(tmp_path)
    other = kind.from_pretrained(tmp_path).set_items(ids).eval()
    history = torch.tensor([[1, 2, 3], [-1, 4, 5]])
    with torch.inference_mode(): assert torch.equal(model.prefill(history)[0], other.prefill(history)[0])
    assert other.config.max_items == model.config.max_items and [*tmp_path.glob('*.safetensors')] and not [*tmp_path.glob('*.bin')]

@pytest.mark.parametrize('make', [tiger_t5, item_decoder])
def test_initial_weights_are_the_seeds_alone(make):
    before = torch.random.get_rng_state()
    a, b, c = (make(codes(), seed=s, d_model=16) for s in (1, 1, 2))
    assert torch.equal(before, torch.random.get_rng_state())
    assert all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters()))
    assert not all(torch.equal(p, q) for p, q in zip(a.parameters(), c.parameters()))

@pytest.mark.parametrize('make', [t5, packed])
def test_tau_reaches_the_loss(make):
    ids = codes()
    model = make(ids)
    batch = dict(history=torch.tensor([[1, 2]]), targets=torch.tensor([3])) if make is t5 else dict(items=torch.tensor([[1, 2, 3]]))
    with torch.inference_mode(): plain, cold = model(**batch).nll[-1], model(**batch, tau=.5).nll[-1]
    h, path = [1, 2], ids.path(3).tolist()
    want = [-float((next_logp(model, h, path[:l])/.5).log_softmax(0)[t]) for l, t in enumerate(path)]
    np.testing.assert_allclose(cold, want, atol=2e-5)
    assert not torch.allclose(plain, cold)


# ---- tokens for users ----------------------------------------------------------------------------------------------------

USERS = 12

def owners(length=5):
    "Histories that say nothing about what comes next, and users who always take the same: user u takes item 2 + u again and again"
    rows = [[u % 2, *[2 + u]*length] for u in range(USERS)]
    return Interactions(np.concatenate(rows), np.arange(USERS + 1)*(length + 1), [f'user {u}' for u in range(USERS)], 2 + USERS)

def test_only_user_tokens_can_tell_users_with_the_same_history_apart():
    "One item was seen, by half of the users; every user goes on with an item of her own"
    data = owners()
    ids, split = Identifiers.from_codes(np.arange(data.n_items)[:, None], policy='keep'), leave_one_out(data)
    cases = Cases(np.arange(USERS), data.items[data.offsets[:-1]], np.arange(USERS + 1), 2 + np.arange(USERS), split)
    few = Interactions(np.concatenate([[u % 2, 2 + u] for u in range(USERS)]), np.arange(USERS + 1)*2, data.user_ids, data.n_items)
    def hits(user_tokens):
        model, trie = t5(ids, user_tokens=user_tokens), ItemTrie.build(ids)
        with tempfile.TemporaryDirectory() as folder:
            fit(model, few, split.valid, trie, config=TrainConfig(epochs=100, batch_size=12, lr=1e-2, eval_every=100, patience=0, weight_decay=0), folder=folder)
        ranked = rank_each(model.eval(), trie, cases, [DecodeConfig(beams=20, exclude_seen=False)], k=1)[0]
        return float((ranked[:, 0] == cases.targets).mean())
    assert len(set(hashed_users(data.user_ids, 2000))) == USERS                # nobody shares a token
    assert hits(2000) >= .95 and hits(0) <= .2

def test_a_user_before_the_history_is_one_more_token_for_generate_and_for_beams():
    "Beams, T5's own `generate` and a training pass of one user agree, and the token matters"
    ids = codes()
    model, trie = t5(ids, user_tokens=7), ItemTrie.build(ids)
    read = torch.tensor([[20 + 3, 4, 9], [20 + 6, -1, 1]])
    items, scores = recommend(model, trie, read, 5, DecodeConfig(beams=20))
    for row, found, x in zip(read, items, scores):
        logp = {i: sum(float(next_logp(model, row.tolist(), ids.path(i)[:t].tolist())[c]) for t, c in enumerate(ids.path(i).tolist())) for i in found.tolist()}
        np.testing.assert_allclose([logp[i] for i in found.tolist()], x, atol=1e-4)
    assert not torch.isin(items, read).any()                                    # what was seen is left out, the user is no item
    tokens, mask = history_tokens(model.inputs, read)
    with torch.inference_mode(): out = model.generate(input_ids=tokens, attention_mask=mask, num_beams=20, num_return_sequences=3, max_new_tokens=3, logits_processor=[TrieProcessor(trie)])
    best = recommend(model, trie, read, 3, DecodeConfig(beams=20, exclude_seen=False))[0]
    assert out[:, 1:4].view(2, 3, 3).tolist() == model.paths[best].tolist()
    other = recommend(model, trie, torch.tensor([[20 + 4, 4, 9], [20, -1, 1]]), 5, DecodeConfig(beams=20))[1]
    assert not torch.allclose(other, scores, atol=1e-4)

@pytest.mark.parametrize('entry, good', [(26, True), (27, False)])
def test_no_more_users_than_tokens(entry, good):
    ids = codes()
    model, trie = t5(ids, user_tokens=7), ItemTrie.build(ids)
    history = torch.tensor([[entry, 4]])
    if good: assert recommend(model, trie, history, 1)[0].shape == (1, 1)
    else:
        with pytest.raises(GenrecError, match='27'): recommend(model, trie, history, 1)
    with pytest.raises(GenrecError): recommend(t5(ids), trie, torch.tensor([[20, 4]]), 1)      # a model without users

def test_users_through_the_recommender(tmp_path):
    "By id, in cases, in a file, saved and loaded; added items leave users their tokens; who is not named, and users of a model without tokens, are said"
    catalog, small = Catalog.from_ids([f'i{k:02}' for k in range(20)]), dict(d_model=16, d_ff=16, num_layers=1, num_decoder_layers=1, num_heads=2, d_kv=8)
    config = RecommenderConfig(tokenizer=dict(method='random'), backbone='t5', model=small | dict(user_tokens=50))
    rec = GenerativeRecommender(catalog, Identifiers.random(20, 3, 4, seed=0), np.ones(20), config=config)
    rec.model.shared.weight.data *= 8
    history, listed = ['i03', 'i05'], lambda r, **how: [(x.id, round(x.score, 4)) for x in r.recommend(history, 5, **how)]
    ann = listed(rec, user='ann')
    assert ann != listed(rec, user='bob')
    cases = Cases(np.arange(2), np.array([3, 5, 3, 5], np.int32), np.array([0, 2, 4]), np.full(2, -1), names=['bob', 'ann'])
    items, scores = rec.rank(cases.take(np.array([1])), 5, scores=True)
    assert [(f'i{i:02}', round(float(s), 4)) for i, s in zip(items[0], scores[0])] == ann
    assert rec.explain(history, ann[0][0], user='ann').score == pytest.approx(ann[0][1], abs=1e-3)
    with warnings.catch_warnings():                           # a report knows its test users
        warnings.simplefilter('error', GenrecWarning)
        card = str(_user_card(rec, Cases(cases.users, cases.items, cases.offsets, np.array([7, 9]), names=cases.names), 1, k=5))
    places = [card.index(f'>{i}<') if f'>{i}<' in card else card.index(i) for i, _ in ann]
    assert places == sorted(places)
    (tmp_path/'h.csv').write_text('user,item\nann,i03\nbob,i03\nann,i05\nbob,i05\n')
    recommend_file(rec, tmp_path/'h.csv', tmp_path/'out.json', k=5)
    got = {r['user']: [i['id'] if isinstance(i, dict) else i for i in r['items']] for r in map(json.loads, (tmp_path/'out.json').read_text().splitlines())}
    assert got['ann'] == [i for i, _ in ann] and set(got) == {'ann', 'bob'}
    rec.save_pretrained(tmp_path/'r')
    assert listed(GenerativeRecommender.from_pretrained(tmp_path/'r'), user='ann') == ann
    with pytest.warns(GenrecWarning, match='50 tokens for users'): listed(rec)
    before = rec.model.inputs[20:].clone()
    longer = rec.model.set_items(Identifiers.random(22, 3, 4, seed=0))
    assert torch.equal(longer.inputs[22:], before)
    plain = GenerativeRecommender(catalog, Identifiers.random(20, 3, 4, seed=0), np.ones(20), config=RecommenderConfig(tokenizer=dict(method='random'), backbone='t5', model=small))
    with pytest.raises(SettingError, match='no tokens for users'): listed(plain, user='ann')
