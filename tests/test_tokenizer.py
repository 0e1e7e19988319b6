"Tokenizers behind one interface: what each owes its users, and the command line around them."
import atexit, json, shutil, signal, sys, tempfile
from dataclasses import replace
from pathlib import Path
import numpy as np
import pytest
from typer.testing import CliRunner
from genrec_nb.baselines import LightGCNConfig
from genrec_nb.sequential_baselines import _COLLABORATIVE, train_collaborative_embeddings
from genrec_nb.cli import app, _explain_error, main
from genrec_nb.data import Catalog, Dataset, Interactions
from genrec_nb.splits import leave_one_out
from genrec_nb.core import GenrecError, MissingTextError
from genrec_nb.semantic_ids import Identifiers
from genrec_nb.backbones import tiny_llama
from genrec_nb.prompts import title_identifiers
from genrec_nb.kmeans import residual_kmeans
from genrec_nb.recommender import RecommenderConfig
import genrec_nb.tokenize as tokenize_module
from genrec_nb.tokenizer import _collaborative_embeddings, load_tokenized, tokenize_items
from genrec_nb.tokenizer_config import _default_size, TokenizerConfig, TOKENIZERS
from genrec_nb.tokenizer_report import compare_reports
from genrec_nb.trie import shortest_paths

N, CODED = 60, [m for m, how in TOKENIZERS.items() if 'text' in how.needs]
NET = dict(steps=60, batch=32, hidden=[16])


def toy(seed=0, n=N, users=90):
    "Items in five groups whose vectors and histories agree, and their categories"
    rng = np.random.default_rng(seed)
    group = np.arange(n) % 5
    x = (rng.normal(size=(5, 12))[group]*2 + rng.normal(size=(n, 12))).astype(np.float32)
    histories = [rng.permutation(np.flatnonzero(group == u % 5))[:rng.integers(4, 9)] for u in range(users)]
    offsets = np.r_[0, np.cumsum([len(h) for h in histories])]
    catalog = Catalog([f'i{i:03}' for i in range(n)], [f'item {i}' for i in range(n)], [f'colour {i % 5} shape {i % 7} number {i}' for i in range(n)])
    return Dataset('toy', catalog, Interactions(np.concatenate(histories), offsets, [str(u) for u in range(users)], n)), x, [['goods', f'group {g}'] for g in group]


DATA, X, CATEGORIES = toy()
SPLIT = leave_one_out(DATA.interactions)
CF = train_collaborative_embeddings(SPLIT, 'lightgcn', config=LightGCNConfig(epochs=3, patience=0))
LM = tempfile.mkdtemp()                                                           # a language model's tokenizer, without the model
atexit.register(shutil.rmtree, LM, ignore_errors=True)
tiny_llama(DATA.catalog.titles)[1].save_pretrained(LM)
OWN = dict(title=dict(lm=LM), words=dict(words=1), letter=NET, rqvae=NET, tree=dict(clusters=3, leaf=6), hkmeans=dict(clusters=8, leaf=8, share=True), opq=dict(n_iter=5))


def config(method, **changes):
    given = dict(levels=2, size=8) if 'levels' in TOKENIZERS[method].uses else {}
    return TokenizerConfig(method, **{**given, 'options': OWN.get(method, {}), **changes})


def made(method, **changes): return tokenize_items(DATA, SPLIT, config(method, **changes), X, CF, CATEGORIES)


@pytest.fixture(scope='module')
def all_made(): return {m: made(m) for m in TOKENIZERS}


@pytest.mark.parametrize('method', TOKENIZERS)
def test_every_method_gives_every_item_a_path_of_its_own(all_made, method):
    t = all_made[method]
    assert t.ids.n_items == N and t.items == DATA.catalog.ids and len(t.ids.prefix_violations()) == 0
    assert len({tuple(t.ids.path(i)) for i in range(N)}) == N                     # 'extra', or by construction
    assert (t.quantizer is not None) == (method in CODED) == (t.codes is not None)
    if method in CODED:
        assert t.codes.shape == (N, 2) and t.codes.max() < 8
        first = t.ids.codes()[:, :2] - 3 - 8*np.arange(2)
        assert (first == t.codes).all() and (t.quantizer.encode(X) == t.codes).all()


@pytest.mark.parametrize('method', TOKENIZERS)
def test_the_same_seed_gives_the_same_and_another_does_not(all_made, method):
    assert made(method).ids == all_made[method].ids
    if method not in ('pq', 'opq', 'rqkmeans', 'title', 'item'): assert made(method, seed=1).ids != all_made[method].ids


@pytest.fixture
def short_rankers(monkeypatch):
    "Recommenders that are trained for two epochs"
    for cf, (made, settings, train) in _COLLABORATIVE.items():
        short = lambda split, c, seed, train=train: train(split, replace(c, epochs=2), seed)
        monkeypatch.setitem(_COLLABORATIVE, cf, (made, settings, short))


@pytest.mark.parametrize('method', TOKENIZERS)
def test_nothing_after_the_training_part_is_looked_at(short_rankers, method):
    "Other validation and test items, and other users in their order: the same identifiers; another training part: others, where it counts"
    x = DATA.interactions
    items, last = x.items.copy(), x.offsets[1:] - 1
    rng = np.random.default_rng(5)
    items[last], items[last - 1] = rng.integers(N, size=len(last)), rng.integers(N, size=len(last))
    assert (items != x.items).sum() > 100
    other = Dataset('toy', DATA.catalog, Interactions(items, x.offsets, x.user_ids, N))
    c = config(method, cf='lightgcn') if method == 'letter' else config(method)
    a, b = (tokenize_items(d, None, c, X, None, CATEGORIES) for d in (DATA, other))
    assert a.ids == b.ids and (a.cf is None or np.array_equal(a.cf, b.cf))
    if method != 'tree': return
    items = x.items.copy(); items[x.offsets[:-1]] = rng.integers(N, size=len(last))
    assert tokenize_items(Dataset('toy', DATA.catalog, Interactions(items, x.offsets, x.user_ids, N)), None, c).ids != a.ids


def test_collaborative_vectors_never_see_validation_or_test(short_rankers):
    "Whatever stands in `valid` and `test`, even nothing at all"
    empty = replace(SPLIT, valid=None, test=None)
    for cf in ('lightgcn', 'sasrec'):
        a, b = _collaborative_embeddings(cf, SPLIT), _collaborative_embeddings(cf, empty)
        assert a.shape == (N, 32) and np.array_equal(a, b)


@pytest.mark.parametrize('method', TOKENIZERS)
def test_save_and_load(all_made, method, tmp_path):
    t = all_made[method]
    again = load_tokenized(t.save(tmp_path/'t'), DATA.catalog)
    assert again.ids == t.ids and again.ids.notes == json.loads(json.dumps(t.ids.notes)) and again.config == t.config and again.items == t.items
    for a, b in ((again.codes, t.codes), (again.cf, t.cf)): assert (a is None) == (b is None) and (a is None or np.array_equal(a, b))
    assert again.source == t.source
    if t.quantizer is not None:
        assert (again.quantizer.encode(X) == t.codes).all()
        np.testing.assert_allclose(again.quantizer.last_distances(X), t.quantizer.last_distances(X), rtol=1e-5, atol=1e-5)
    report = t.report().to_dict()
    if t.codes is not None: report['use']['unexplained'] = []                     # needs the vectors
    assert again.report().to_dict()['use'] == report['use']
    t.save(tmp_path/'t')                                                          # again, over itself
    assert [f.name for f in tmp_path.iterdir()] == ['t']


def test_a_folder_of_something_else_is_left_alone(all_made, tmp_path):
    (tmp_path/'mine').mkdir(); (tmp_path/'mine'/'letter.txt').write_text('dear')
    with pytest.raises(GenrecError, match='holds no tokenizer.json'): all_made['pq'].save(tmp_path/'mine')
    assert (tmp_path/'mine'/'letter.txt').read_text() == 'dear'
    with pytest.raises(GenrecError, match='tokenizer.json is missing'): load_tokenized(tmp_path/'mine')
    folder = all_made['pq'].save(tmp_path/'t')
    with pytest.raises(GenrecError, match='another catalog'): load_tokenized(folder, DATA.catalog.ids[1:])
    with pytest.raises(GenrecError, match='another catalog'): load_tokenized(folder, DATA.catalog.ids[::-1])
    (folder/'codes.npy').write_bytes(b'no')
    with pytest.raises(GenrecError, match='codes.npy: not a readable'): load_tokenized(folder)


def test_a_failed_save_leaves_nothing_half(all_made, tmp_path):
    def fail(part): raise KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt): all_made['rqkmeans'].save(tmp_path/'t', fail)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize('method', [m for m in CODED if 'policy' in TOKENIZERS[m].uses])
@pytest.mark.parametrize('policy', ['extra', 'free', 'keep', 'sinkhorn'])
def test_new_items_leave_old_paths_alone(method, policy):
    "Old paths and vocabulary as they were; where a new item's path is free it has exactly its codes"
    old = tokenize_items(DATA, SPLIT, config(method, policy=policy), X, CF)
    new = (X[::4] + np.random.default_rng(1).normal(size=X[::4].shape)*.5).astype(np.float32)
    more, codes = old.assign(new), old.quantizer.encode(new)
    L, n = old.ids.max_len, len(old.ids.flat)
    assert np.array_equal(more.flat[:n], old.ids.flat) and more.tokens == old.ids.tokens and more.n_items == N + len(new)
    got = more.codes()[N:, :2] - 3 - 8*np.arange(2)
    assert (got[:, 0] == codes[:, 0]).all()                                       # only the last code may give way
    taken = {tuple(p) for p in old.ids.codes()[:, :2] - 3 - 8*np.arange(2)}
    if policy == 'keep': assert (got == codes).all()
    elif policy == 'extra':
        full = more.collisions()['rate'] == 0 or more.notes['appended'][0]['shared']
        assert full and L == 3
    else:
        for i, c in enumerate(codes):
            alone = tuple(c) not in taken and (codes == c).all(1).sum() == 1
            if alone: assert (got[i] == c).all()
        assert more.collisions()['rate'] <= old.ids.collisions()['rate'] or more.notes['appended'][0]['shared']


def test_assigning_twice_goes_on_and_old_items_get_their_own_codes(all_made):
    t = all_made['rqkmeans']
    one = t.assign(X[:5])
    two = replace(t, ids=one).assign(X[5:9])
    assert np.array_equal(two.flat[:len(one.flat)], one.flat) and two.n_items == N + 9
    assert (one.codes()[N:, :2] == t.ids.codes()[:5, :2]).all()                   # the same vector, the same codes, another number
    assert all(a != b for a, b in zip(one.codes()[N:, 2], t.ids.codes()[:5, 2])) or one.notes['appended'][0]['moved'] or one.notes['appended'][0]['shared']


@pytest.mark.parametrize('method', [m for m in TOKENIZERS if m not in CODED])
def test_methods_without_a_quantizer_cannot_place_new_items(all_made, method):
    with pytest.raises(GenrecError, match='rqkmeans.*can place new items'): all_made[method].assign(X[:2])


def test_titles_are_what_the_language_model_cuts_and_read_back(all_made, tmp_path):
    "Against `title_identifiers`, decoded again, and as the loaded table says it; only the tokenizer has to be there"
    from transformers import AutoTokenizer
    tokenizer, ids = AutoTokenizer.from_pretrained(LM), all_made['title'].ids
    assert ids == title_identifiers(DATA.catalog.titles, tokenizer) and not list(Path(LM).glob('*.safetensors'))
    again = load_tokenized(all_made['title'].save(tmp_path/'t')).ids
    assert (again.backbone_ids == ids.backbone_ids).all() and again.kind == 'titles'
    for i in (0, 7, 59): assert tokenizer.decode(again.backbone_ids[again.path(i)[:-1]]) == DATA.catalog.titles[i] + '\n'
    other = made('title', options=dict(lm=LM, suffix=' !')).ids
    assert tokenizer.decode(other.backbone_ids[other.path(3)[:-1]]) == 'item 3 !'
    short = made('title', options=dict(lm=LM, drop='^item')).ids
    assert [tokenizer.decode(short.backbone_ids[short.path(i)[:-1]]) for i in (0, 59)] == ['0\n', '59\n']
    own = made('title', options=dict(lm=LM, shortest=True))
    assert own.ids == shortest_paths(ids) == load_tokenized(own.save(tmp_path/'s')).ids and own.ids.lengths.sum() < ids.lengths.sum()


def test_titles_that_cannot_be_are_refused(tmp_path):
    "No titles, an empty folder, a tokenizer that drops what it does not know"
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast
    bare = Dataset('toy', Catalog(DATA.catalog.ids, DATA.catalog.ids, ['']*N), DATA.interactions)
    with pytest.raises(GenrecError, match='ids and no titles'): tokenize_items(bare, SPLIT, config('title'))
    (tmp_path/'empty').mkdir()
    with pytest.raises(GenrecError, match='holds no tokenizer'): made('title', options=dict(lm=str(tmp_path/'empty')))
    with pytest.raises(GenrecError, match=r"leaves nothing of 60 titles: 'item 0'"): made('title', options=dict(lm=LM, drop='.*'))
    with pytest.raises(GenrecError, match='no regular expression'): made('title', options=dict(lm=LM, drop='('))
    with pytest.raises(GenrecError, match='lm is 3, expected a word'): config('title', options=dict(lm=3))
    lossy = Tokenizer(models.WordLevel({'?': 0, 'item': 1, '<end>': 2}, unk_token='?'))
    lossy.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=lossy, eos_token='<end>', unk_token='?').save_pretrained(tmp_path/'lossy')
    with pytest.raises(GenrecError, match="cannot give back 60 of 60 titles: 0: 'item 0'"): made('title', options=dict(lm=str(tmp_path/'lossy')))


class Letters:
    "An encoder that needs no download: counts of letters; each text by itself"
    key = 'letters-1'
    def encode(self, texts, batch_size=0): return np.array([[t.count(c) + .01*len(t) for c in 'abcdefghijklmnop 0123456789'] for t in texts], np.float32)


def test_new_texts_are_encoded_like_the_old_ones(monkeypatch, tmp_path):
    import genrec_nb.embed as embed, genrec_nb.tokenizer as module
    fake = lambda encoder, device=None: Letters() if encoder == 'letters' else real(encoder, device)
    real = embed.make_encoder
    monkeypatch.setenv('GENREC_CACHE', str(tmp_path))
    monkeypatch.setattr(embed, 'make_encoder', fake); monkeypatch.setattr(module, 'make_encoder', fake)
    t = tokenize_items(DATA, SPLIT, config('rqkmeans', encoder='letters', policy='keep'))
    texts = ['colour 3 shape 2 number 99', DATA.catalog.texts[4]]
    more = load_tokenized(t.save(tmp_path/'t')).assign(texts)
    assert (more.codes()[N:, :2] - 3 - 8*np.arange(2) == t.quantizer.encode(embed.embed_texts(texts, 'letters'))).all()
    assert more == t.assign(Catalog(['x', 'y'], texts, texts))
    monkeypatch.setattr(Letters, 'key', 'letters-2')
    with pytest.raises(GenrecError, match='not the one that the tokenizer was made with'): t.assign(texts)


def test_a_tfidf_encoder_is_saved_with_the_tokenizer(monkeypatch, tmp_path):
    "Its terms, weights and directions are those of the old texts; an old text comes back to its own codes"
    monkeypatch.setenv('GENREC_CACHE', str(tmp_path/'cache'))
    t = tokenize_items(DATA, SPLIT, config('rqkmeans', encoder='tfidf', policy='keep'))
    again = load_tokenized(t.save(tmp_path/'t'))
    old, new = DATA.catalog.texts[4], 'colour 3 shape 2 number 99'
    for made_ in (t, again, load_tokenized(again.save(tmp_path/'u'))):
        more = made_.assign([old, new])
        assert (more.path(N) == t.ids.path(4)).all() and more == t.assign([old, new])
        assert (more.codes()[N:, :2] - 3 - 8*np.arange(2) == t.quantizer.encode(t.encoder.encode([old, new]))).all()
    other = tokenize_items(toy(n=40)[0], None, config('rqkmeans', encoder='tfidf', policy='keep'))
    with pytest.raises(GenrecError, match='not the one that the tokenizer was made with'): replace(t, encoder=other.encoder).assign([new])


REFUSED = [
    ('leter', {}, "expected one of letter, rqvae"), ('rqkmeans', dict(options=dict(alpha=1)), "'alpha' is unknown.*Known: method, levels, size, .*balanced, n_iter"), ('random', dict(options=dict(steps=1)), "'steps' is unknown"),
    ('tree', dict(levels=3), "does not use 'levels'"), ('random', dict(policy='extra'), "'policy'"), ('tree', dict(cf='sasrec'), "'cf'"), ('hkmeans', dict(policy='free'), "'policy'"), ('hkmeans', dict(options=dict(clusters=1)), 'clusters is 1, expected 2 or more'), ('hkmeans', dict(options=dict(leaf=0)), 'leaf is 0'),
    ('rqkmeans', dict(cf='sasrec', encoder='minilm'), "one source, and there are encoder='minilm' and cf='sasrec'"), ('pq', dict(policy='drop'), "policy is 'drop', expected one of extra"),
    ('rqvae', dict(levels=0), 'levels is 0'), ('rqvae', dict(size=[4, 4]), 'one for each of 3 levels'), ('rqvae', dict(options=dict(steps=1.5)), 'steps is 1.5, expected a whole number'),
    ('rqvae', dict(options=dict(lr='x')), 'expected a number'), ('letter', dict(options=dict(alpha=float('nan'))), 'expected a( finite)? number'), ('rqkmeans', dict(options=dict(balanced=1)), 'true or false'),
    ('rqvae', dict(options=[1]), 'options is .1., expected names with values'), ('rqvae', dict(seed=-1), 'seed is -1, expected 0 or more'), ('rqvae', dict(seed=1.5), 'seed is 1.5'), ('rqvae', dict(seed=True), 'seed is True'), ('rqvae', dict(seed=None), 'seed is None'),
    ('rqvae', dict(encoder=3), 'encoder is 3'), ('rqvae', dict(encoder=''), 'encoder is an empty name'), ('letter', dict(cf=3), 'cf is 3'), ('letter', dict(cf=['a']), 'cf is')]

@pytest.mark.parametrize('method, given, message', REFUSED)
def test_configurations_that_are_refused(method, given, message):
    with pytest.raises(GenrecError, match=message): TokenizerConfig(method, **given)


EARLY = [
    ('rqkmeans', dict(size=N + 1), {}, 'too few for 61 codes'), ('letter', dict(options=dict(alpha=-1.)), {}, 'alpha is -1'), ('letter', dict(options=dict(beta=-.1)), {}, 'beta is -0.1'),
    ('letter', dict(options=dict(clusters=9)), {}, 'clusters is 9'), ('letter', dict(cf='sasrek'), dict(cf=None), 'sasrec, lightgcn, cooccurrence, or a file'), ('letter', dict(cf='no.npy'), dict(cf=None), 'no such file'),
    ('letter', {}, dict(cf=CF[:-1]), '59 rows'), ('letter', {}, dict(cf=np.where(np.arange(N)[:, None] == 7, np.nan, CF)), 'item 7'), ('letter', {}, dict(cf=CF*0), 'all 60 vectors are equal'),
    ('letter', dict(options=dict(d_code=16)), {}, 'd_code dimensions.: found vectors of 32 dimensions, expected 16'), ('rqvae', dict(options=dict(lr=-1)), {}, 'lr is -1'), ('rqvae', dict(options=dict(variant='x')), {}, 'variant'),
    ('random', dict(levels=1, size=8), {}, 'too few for 60'), ('random', dict(size=[8, 9]), {}, 'as many codes at every level'), ('category', {}, dict(categories=None), 'categories=FOLDER'),
    ('category', {}, dict(categories=CATEGORIES[:-1]), '59 items'), ('category', dict(options=dict(top=0)), {}, 'top is 0'), ('category', dict(options=dict(missing='error')), dict(categories=[[]] + CATEGORIES[1:]), 'no category')]

@pytest.mark.parametrize('method, given, more, message', EARLY)
def test_what_cannot_work_is_refused_before_texts_are_embedded(monkeypatch, method, given, more, message):
    import genrec_nb.tokenizer as module
    def long_work(*args, **kwargs): raise AssertionError('long work was started')
    from genrec_nb import sequential_baselines, tokenizer_config
    monkeypatch.setattr(module, 'embed_texts', long_work); monkeypatch.setattr(sequential_baselines, 'train_collaborative_embeddings', long_work)
    for name in ('fit_letter', 'train_rqvae', 'residual_kmeans'): monkeypatch.setattr(tokenizer_config, name, long_work)
    sources = {**dict(cf=CF, categories=CATEGORIES), **more}
    with pytest.raises(GenrecError, match=message): tokenize_items(DATA, SPLIT, config(method, **given), **sources)


@pytest.mark.parametrize('method', ['rqvae', 'letter', 'hkmeans', 'pq'])
def test_one_text_of_all_items_is_refused_with_the_ways_out(monkeypatch, method):
    "Before it is embedded; vectors of one's own and methods without texts go on"
    import genrec_nb.tokenizer as module
    soap = replace(DATA, catalog=replace(DATA.catalog, texts=['Soap']*N))
    monkeypatch.setattr(module, 'embed_texts', lambda *_: pytest.fail('long work was started'))
    with pytest.raises(MissingTextError, match=r"^60 items share 1 text, 'Soap', .*--column text=.*--vectors FILE.*'item' or 'random'"): tokenize_items(soap, SPLIT, config(method), cf=CF)
    assert len(tokenize_items(soap, SPLIT, config('rqkmeans'), X).ids) == len(tokenize_items(soap, SPLIT, config('item')).ids) == N


def test_vectors_that_do_not_fit():
    for x, message in ((X[:-1], 'found 59 rows, but the catalog has 60 items'), (X*np.nan, 'NaN'), (X*0 + 1, 'are equal'), (X[:, :1], 'levels is 2, expected at most 1 dimensions')):
        with pytest.raises(GenrecError, match=message): tokenize_items(DATA, SPLIT, config('pq'), x)
    with pytest.raises(GenrecError, match='12 dimensions|have 5'): made('rqkmeans').assign(X[:3, :5])
    with pytest.raises(GenrecError, match='takes a Dataset'): tokenize_items(DATA.catalog, config('pq'))
    with pytest.raises(GenrecError, match='the split is of 40 items'): tokenize_items(DATA, leave_one_out(toy(n=40)[0].interactions), config('tree'))
    alone = Dataset('alone', DATA.catalog, Interactions(np.arange(6), np.arange(7), list('uvwxyz'), N))
    with pytest.raises(GenrecError, match='no two items stand together'): tokenize_items(alone, None, config('tree'))


def test_collaborative_vectors_of_another_width_set_the_width_of_the_codes(tmp_path):
    np.save(tmp_path/'cf.npy', CF[:, :10])
    t = tokenize_items(DATA, SPLIT, config('letter', cf=str(tmp_path/'cf.npy')), X)
    assert t.quantizer.config.d_code == 10 and np.array_equal(t.cf, CF[:, :10])


def test_the_report_against_counting_by_hand(all_made):
    counts = SPLIT.train.target_counts()
    for m, t in all_made.items():
        r = t.report(counts)
        rows = t.codes if t.codes is not None else t.ids.padded()
        for l, (used, p) in enumerate(zip(r.use.used, r.use.perplexity)):
            there = [int(c) for c in rows[:, l] if t.codes is not None or c > 0]
            share = [there.count(c)/len(there) for c in set(there)]
            assert used == len(set(there)) and np.isclose(p, np.prod([q**-q for q in share]))
        distinct = len({tuple(c) for c in rows.tolist()})
        assert np.isclose(r.before['rate'], 1 - distinct/N) and r.after['rate'] == 0
        assert r.tokens == (t.ids.lengths.min(), t.ids.max_len) and len(r.gain) == t.ids.max_len and min(r.gain) >= -1e-9
        if t.codes is not None: assert np.isclose(r.use.unexplained[-1], ((X - t.quantizer.decode(t.codes))**2).sum()/((X - X.mean(0))**2).sum())
        assert json.loads(json.dumps(r.to_dict())) and m in repr(r)
    table = compare_reports({m: t.report() for m, t in all_made.items()})
    assert list(table.index) == list(TOKENIZERS) and table.notna().drop(columns='unexplained %').all().all()


def test_category_paths_can_be_cut_and_sets_be_ordered():
    three = [[*c, f'kind {i % 2}'] for i, c in enumerate(CATEGORIES)]
    cut = tokenize_items(DATA, SPLIT, config('category', options=dict(top=2)), categories=three)
    assert cut.ids == made('category').ids and tokenize_items(DATA, SPLIT, config('category'), categories=three).ids.max_len == 4
    mixed = [c[::-1] for c in CATEGORIES]
    assert tokenize_items(DATA, SPLIT, config('category', options=dict(unordered=True)), categories=mixed).ids == cut.ids


def test_defaults_are_those_of_the_recommender():
    r, t = RecommenderConfig(), TokenizerConfig()
    assert r.tokenizer_config == t and t.levels == 3 and t.policy == 'extra' and t.encoder == 'minilm' and t.method == 'rqvae'
    assert [_default_size(n) for n in (5, 100, 1682, 3001)] == [2, 25, 64, 256]
    assert RecommenderConfig(tokenizer=dict(method='random', levels=2)).tokenizer_config == TokenizerConfig('random', levels=2)
    c = RecommenderConfig(tokenizer=dict(method='letter', cf='lightgcn', options=dict(alpha=.1)))
    assert c.tokenizer_config == TokenizerConfig('letter', cf='lightgcn', options=dict(alpha=.1))
    for bad in (dict(tokenizer=dict(method='title')), dict(tokenizer=dict(options=dict(alpha=1.))), dict(tokenizer=dict(policy='drop'))):
        with pytest.raises(GenrecError): RecommenderConfig(**bad)
    assert RecommenderConfig(tokenizer=dict(method='tree'), backbone='t5').tokenizer_config == TokenizerConfig('tree')


def test_the_old_way_gives_the_same_codes():
    "k-means and then `from_codes`, as a reader of the earlier notebooks would do it"
    t = tokenize_items(DATA, SPLIT, config('rqkmeans'), X)
    q = residual_kmeans(X, 2, 8)
    assert t.ids == Identifiers.from_codes(q.encode(X), [8, 8], seed=t.config.seed) and (q.fit_codes == t.codes).all()


# ---------------------------------------------------------------- files and the command line

@pytest.fixture(scope='module')
def shop(tmp_path_factory):
    "A small data set in the JSON layout, with categories"
    folder = tmp_path_factory.mktemp('x')/'shop'; folder.mkdir()
    x = DATA.interactions
    (folder/'shop.inter.json').write_text(json.dumps({str(u): x.user(u).tolist() for u in range(x.n_users)}))
    (folder/'shop.item.json').write_text(json.dumps({str(i): dict(title=f'item {i}', description=f'colour {i % 5} shape {i % 7}', categories=', '.join(c) if i else '') for i, c in enumerate(CATEGORIES)}))
    return folder


@pytest.fixture(scope='module')
def bare(shop, tmp_path_factory):
    folder = tmp_path_factory.mktemp('y')/'bare'; folder.mkdir()
    shutil.copy(shop/'shop.inter.json', folder/'bare.inter.json')
    return folder


@pytest.fixture
def no_page(monkeypatch):
    "Plots take most of the time of the commands: `test_genrec_tokenize` looks at them"
    class Nothing: save = staticmethod(lambda path: path.touch())
    monkeypatch.setattr(tokenize_module, '_tokenizer_page', lambda *a: Nothing)


def genrec(*args, ok=True):
    "What the command prints, or the one line that it ends with"
    r = CliRunner(env={'COLUMNS': '200'}).invoke(app, [str(a) for a in args])
    if ok: assert r.exit_code == 0, r.exception or r.output; return r.stdout
    line, code = _explain_error(r.exception)
    assert code == 2 and '\n' not in line
    return line



ASKED = dict(letter=['levels=2', 'size=8', 'encoder=tfidf', 'cf=cf.npy', 'alpha=0.1', 'beta=0.001', 'clusters=4', 'steps=40', 'hidden=[16]'],
             rqkmeans=['encoder=tfidf', 'policy=free'], tree=['clusters=3', 'leaf=8'], category=[], title=[f'lm={LM}'])

@pytest.mark.parametrize('method', ASKED)
def test_genrec_tokenize(shop, tmp_path, monkeypatch, method):
    monkeypatch.chdir(tmp_path)
    np.save(tmp_path/'cf.npy', CF)
    out = genrec('tokenize', shop, '--method', method, '--out', 'tok', *(x for o in ASKED[method] for x in ('--tokenizer', o)))
    assert '60 items' in out and 'collision rate' in out and method in out and 'gain [nats]' in out
    assert ('1 item without a category' in out) == (method == 'category')
    t, report, page = load_tokenized(tmp_path/'tok'), json.loads((tmp_path/'tok'/'report.json').read_text()), (tmp_path/'tok'/'report.html').read_text()
    assert report['method'] == method and report['items'] == 60 and report['after'] == t.ids.collisions() and set(report['versions']) and report['config']['seed'] == 0
    assert page.count('<img') == (4 if method == 'letter' else 3) and 'src="http' not in page and '<script' not in page and str(tmp_path) not in page.replace(LM, '').replace(report['config'].get('cf') or '\0', '')
    assert set(json.loads((tmp_path/'tok'/'index.json').read_text())) == {str(i) for i in range(60)}
    assert sorted(f.name for f in tmp_path.iterdir()) == ['cf.npy', 'tok']


def test_genrec_tokenize_without_texts(bare, no_page, tmp_path):
    assert '60 items' in genrec('tokenize', bare, '--method', 'tree', '--out', tmp_path/'t')
    assert '60 items' in genrec('tokenize', bare, '--method', 'random', '--out', tmp_path/'r')
    assert 'have no text' in genrec('tokenize', bare, '--method', 'rqkmeans', '--out', tmp_path/'k', ok=False)
    assert 'item' in genrec('tokenize', bare, '--method', 'category', '--out', tmp_path/'c', ok=False)
    assert not (tmp_path/'k').exists() and not (tmp_path/'c').exists()


def test_genrec_tokenize_tells_mistakes_in_one_line(shop, tmp_path):
    (tmp_path/'full').mkdir(); (tmp_path/'full'/'x').write_text('x')
    said = lambda *args: genrec('tokenize', shop, '--out', tmp_path/'o', *args, ok=False)
    assert 'expected one of letter' in said('--method', 'leter')
    assert 'not empty' in genrec('tokenize', shop, '--method', 'random', '--out', tmp_path/'full', ok=False)
    assert "'alpha' is unknown" in said('--method', 'rqkmeans', '--tokenizer', 'alpha=1')
    assert "does not use 'levels'" in said('--method', 'tree', '--tokenizer', 'levels=2')
    assert 'NAME=VALUE' in said('--method', 'rqvae', '--tokenizer', 'steps')
    assert 'whole number' in said('--method', 'rqvae', '--tokenizer', 'steps=many')
    assert 'more than once' in said('--method', 'rqvae', '--tokenizer', 'steps=3', '--tokenizer', 'steps=4')
    assert 'too few for 100 codes' in said('--method', 'rqvae', '--tokenizer', 'size=100')
    assert 'alpha is -1' in said('--method', 'letter', '--tokenizer', 'alpha=-1')
    assert 'no such file' in said('--method', 'letter', '--tokenizer', f"cf={tmp_path/'no.npy'}")
    np.save(tmp_path/'cf.npy', CF[:-1])
    assert '59 rows' in said('--method', 'letter', '--tokenizer', f"cf={tmp_path/'cf.npy'}")
    told = ' '.join(genrec('tokenize', '--help').replace('│', ' ').split())
    assert '.npy or .safetensors, float, items × 32' in told and 'of index.json' in told
    assert 'no known data set' in genrec('tokenize', 'nowhere', '--method', 'tree', '--out', tmp_path/'o', ok=False)
    assert not (tmp_path/'o').exists()


def test_ctrl_c_leaves_nothing_half(shop, tmp_path, monkeypatch, capsys):
    "A signal that arrives while the tokenizer works"
    def interrupted(*args): signal.raise_signal(signal.SIGINT)
    monkeypatch.setitem(TOKENIZERS, 'random', replace(TOKENIZERS['random'], make=interrupted))
    monkeypatch.setattr(sys, 'argv', ['genrec', 'tokenize', str(shop), '--method', 'random', '--out', str(tmp_path/'o')])
    before = signal.signal(signal.SIGINT, signal.default_int_handler)         # where the tests run in the background it would be ignored
    try:
        with pytest.raises(SystemExit) as e: main()
    finally: signal.signal(signal.SIGINT, before)
    err = capsys.readouterr().err
    assert e.value.code == 130 and 'nothing was written' in err and 'Traceback' not in err
    assert not list(tmp_path.iterdir())


def test_genrec_assign(tmp_path):
    new = {'n1': dict(title='item new', description='colour 1 shape 2'), 'n2': dict(title='item newer', description='colour 4 shape 6')}
    (tmp_path/'new.json').write_text(json.dumps(new))
    tokenize_items(DATA, SPLIT, config('rqkmeans', encoder='tfidf')).save(tmp_path/'tfidf')
    genrec('assign', tmp_path/'tfidf', tmp_path/'new.json', '--out', tmp_path/'more.json')
    old, more = (json.loads(f.read_text()) for f in (tmp_path/'tfidf'/'index.json', tmp_path/'more.json'))
    assert list(more)[-2:] == ['n1', 'n2'] and list(more.items())[:-2] == list(old.items())
    made('tree').save(tmp_path/'tree')
    assert 'no quantizer' in genrec('assign', tmp_path/'tree', tmp_path/'new.json', '--out', tmp_path/'o.json', ok=False)
    assert 'nowhere: no such file or folder' in genrec('assign', tmp_path/'nowhere', tmp_path/'new.json', '--out', tmp_path/'o.json', ok=False)
    (tmp_path/'empty').mkdir()
    assert 'no saved tokenizer' in genrec('assign', tmp_path/'empty', tmp_path/'new.json', '--out', tmp_path/'o.json', ok=False)
    assert not (tmp_path/'o.json').exists()


def test_assign_from_file_to_file(tmp_path, monkeypatch):
    import genrec_nb.embed as embed, genrec_nb.tokenizer as module
    real = embed.make_encoder
    fake = lambda encoder, device=None: Letters() if encoder == 'letters' else real(encoder, device)
    monkeypatch.setenv('GENREC_CACHE', str(tmp_path/'cache'))
    monkeypatch.setattr(embed, 'make_encoder', fake); monkeypatch.setattr(module, 'make_encoder', fake)
    t = tokenize_items(DATA, SPLIT, config('rqkmeans', encoder='letters', policy='keep'))
    t.save(tmp_path/'t')
    batches = [{f'n{k}{i}': dict(title=f'shape {i} colour {k}') for i in range(6)} for k in range(2)]
    for k, b in enumerate(batches): (tmp_path/f'{k}.json').write_text(json.dumps(b))
    module.assign_file(tmp_path/'t', tmp_path/'0.json', tmp_path/'a.json')
    ids, new, first = module.assign_file(tmp_path/'t', tmp_path/'1.json', tmp_path/'b.json', tmp_path/'a.json')
    tables = [json.loads((tmp_path/f).read_text()) for f in ('t/index.json', 'a.json', 'b.json')]
    for small, large in zip(tables, tables[1:]): assert list(large.items())[:len(small)] == list(small.items()) and len(large) == len(small) + 6
    assert first == 66 and new.ids == list(batches[1])
    with pytest.raises(GenrecError, match='6 of 6 items have an identifier'): module.assign_file(tmp_path/'t', tmp_path/'0.json', tmp_path/'c.json', tmp_path/'a.json')
    with pytest.raises(GenrecError, match='exists'): module.assign_file(tmp_path/'t', tmp_path/'1.json', tmp_path/'b.json')
    with pytest.raises(GenrecError, match='ends in .json'): module.assign_file(tmp_path/'t', tmp_path/'1.json', tmp_path/'b')
    made('pq').save(tmp_path/'pq')
    with pytest.raises(GenrecError, match='does not begin with'): module.assign_file(tmp_path/'t', tmp_path/'1.json', tmp_path/'d.json', tmp_path/'pq'/'index.json')


@pytest.mark.parametrize('was, asked', [('extra', 'free'), ('extra', 'keep'), ('keep', 'extra'), ('free', 'sinkhorn'), ('sinkhorn', 'extra')])
def test_a_policy_that_does_not_fit_the_table_is_refused_before_texts_are_embedded(tmp_path, monkeypatch, was, asked):
    import genrec_nb.tokenizer as module
    monkeypatch.setattr(module, '_new_vectors', lambda *a: pytest.fail('embedded'))
    made('rqkmeans', policy=was).save(tmp_path/'t')
    (tmp_path/'new.json').write_text('{"n": {"title": "x"}}')
    line = genrec('assign', tmp_path/'t', tmp_path/'new.json', '--out', tmp_path/'o.json', '--policy', asked, ok=False)
    assert line == (f"policy is {asked!r}, but the paths end with a running number: new items need policy 'extra'" if was == 'extra' else
                    f"policy is {asked!r}, but the paths have no running number: new items need policy 'free' or 'keep'")
    assert not (tmp_path/'o.json').exists()


def test_inspect_reads_tables_of_any_item_ids(no_page, tmp_path):
    "Ids that are not 0..N-1: a published table, ours, and one that is longer; with data, rows line up by item id"
    folder = tmp_path/'films'; folder.mkdir()
    x, ids = DATA.interactions, [str(i + 1) for i in range(N)]
    (folder/'interactions.csv').write_text('user,item,time\n' + ''.join(f'{u},{ids[i]},{t}\n' for u in range(x.n_users) for t, i in enumerate(x.user(u))))
    (folder/'items.csv').write_text('item,title\n' + ''.join(f'{i},film {i}\n' for i in ids))
    genrec('tokenize', folder, '--method', 'rqkmeans', '--tokenizer', 'encoder=tfidf', '--tokenizer', 'size=8', '--tokenizer', 'levels=2', '--out', tmp_path/'t')
    table = tmp_path/'t'/'index.json'
    said = genrec('inspect', table)
    assert '60 items' in said and said == genrec('inspect', tmp_path/'t')
    paths = json.loads(table.read_text())
    (tmp_path/'bare.json').write_text(json.dumps(dict(reversed(paths.items()))))
    figures = lambda out: out[out.index('information gain'):]
    assert figures(genrec('inspect', tmp_path/'bare.json')) == figures(said)
    with_data = genrec('inspect', table, '--data', folder)
    assert figures(with_data) == figures(genrec('inspect', tmp_path/'bare.json', '--data', folder)) != figures(said)
    made_ = load_tokenized(tmp_path/'t')
    longer = made_.ids.append(made_.codes[:2], 'extra', exhausted='free', distances=lambda i: np.zeros((len(i), 8), np.float32))
    longer.save(tmp_path/'longer.json', ids + ['n7', 'n1'])
    assert '62 items' in genrec('inspect', tmp_path/'longer.json')
    line = genrec('inspect', tmp_path/'longer.json', '--data', folder, ok=False)
    assert 'holds 2 items that the catalog lacks' in line and "add these items to the data's item file" in line and 'extra=' not in line
    assert 'lacks 60' in genrec('inspect', longer.save(tmp_path/'other.json', [f'q{i}' for i in range(62)]), '--data', folder, ok=False)


def test_a_real_catalogue(data_dir, no_page, tmp_path):
    figures = tokenize_module.tokenize(str(data_dir/'Scientific'), TokenizerConfig('category'), tmp_path/'c')
    assert figures['items'] == 4344 and figures['after']['rate'] == 0 and figures['notes']['missing'] == 131

def test_letter_with_collaboration_as_input_behaves_as_any_other(tmp_path):
    t = made('letter', options=dict(NET, fusion='concat', alpha=1.))
    assert t.ids.collisions()['rate'] == 0 and len(t.codes) == N
    other = tokenize_items(DATA, SPLIT, t.config, X, CF[::-1].copy())
    assert (other.codes != t.codes).any()                                     # the collaborative vectors do enter the codes
    assert np.isfinite(t.report(SPLIT.train.target_counts()).use.unexplained).all()
    t.save(tmp_path/'t')
    again = load_tokenized(tmp_path/'t', DATA.catalog)
    assert again.ids == t.ids
    more, same = t.assign(X[:7] + .1), again.assign(X[:7] + .1)               # new items have no collaborative vector
    assert more == same and more.n_items == N + 7
    assert all((more.path(i) == t.ids.path(i)).all() for i in range(N))
