"Embed: pooling, batch invariance, fitted tf-idf, caches, bad vectors"
import shutil, time
from multiprocessing import get_context
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.preprocessing import normalize
from genrec_nb.core import FileError, GenrecError, SettingError
from genrec_nb.embed import SentenceEncoder, TfidfEncoder, _checked, embed_texts, load_encoder, make_encoder, nearest_items
from genrec_nb.loaders import fetch, load_movielens

TEXTS = ['Alien. horror, space', 'Aliens. horror, space', 'Emma. romance', 'Clueless. romance, comedy', 'Ran. war', 'x', '!?', 'Les Misérables', '東京物語'] + [f'film number {i} ' * (1+i%9) for i in range(30)]

@pytest.fixture(scope='module')
def minilm():
    try: fetch('minilm')
    except GenrecError as e: pytest.skip(f'the MiniLM encoder cannot be had here: {e}')
    return SentenceEncoder()

@pytest.fixture(scope='module')
def tiny(tmp_path_factory):
    "A random two-layer BERT in a folder, with an embedding of width 16"
    from transformers import BertConfig, BertModel, BertTokenizerFast
    d = tmp_path_factory.mktemp('tiny'); torch.manual_seed(0)
    (d/'vocab.txt').write_text('\n'.join(['[PAD]','[UNK]','[CLS]','[SEP]','[MASK]', *'abcdefghijklmnopqrstuvwxyz', *('##'+c for c in 'abcdefghijklmnopqrstuvwxyz')]))
    BertTokenizerFast(str(d/'vocab.txt')).save_pretrained(d)
    BertModel(BertConfig(vocab_size=57, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32)).save_pretrained(d)
    return d

def refuses(f, *words):
    with pytest.raises(GenrecError) as e: f()
    assert '\n' not in str(e.value)
    for w in words: assert w in str(e.value), f'{w!r} is not in: {e.value}'

def hidden(folder, text):
    "The hidden states of one text alone, [T, d]"
    from transformers import AutoModel, AutoTokenizer
    tok, model = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder).eval()
    with torch.inference_mode(): return model(**tok(text, return_tensors='pt')).last_hidden_state[0].numpy()

def unit(x): return x/np.linalg.norm(x)

# ---- sentence encoders -------------------------------------------------------------------------------------------------------
def batch_invariant(enc, tol, texts=TEXTS):
    a = enc.encode(texts, batch_size=64)
    assert a.dtype==np.float32 and len(a)==len(texts)
    np.testing.assert_allclose(np.linalg.norm(a, axis=1), 1, atol=1e-5)
    order = np.random.default_rng(0).permutation(len(texts))
    for b in (enc.encode(texts, batch_size=1), enc.encode([texts[i] for i in order], batch_size=5)[np.argsort(order)]):
        np.testing.assert_allclose(b, a, atol=tol)

def test_batch_invariance_tiny(tiny): batch_invariant(SentenceEncoder(tiny, device='cpu'), 1e-5)
def test_batch_invariance_minilm(minilm): batch_invariant(minilm, 2e-5, TEXTS[:14])

def test_a_bare_folder_is_pooled_by_the_mean(minilm):
    "Against the model run by hand on one text, with its published pooling: mean over tokens, then length one"
    np.testing.assert_allclose(embed_texts(TEXTS, minilm, cache=False)[0], unit(hidden(minilm.where, TEXTS[0]).mean(0)), atol=1e-5)

@pytest.mark.parametrize('mode,at', [('cls', 0), ('lasttoken', -1)])
def test_an_encoder_pools_as_its_modules_say(tiny, tmp_path, mode, at):
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Pooling, Transformer
    SentenceTransformer(modules=[Transformer(str(tiny)), Pooling(16, mode)], device='cpu').save(str(tmp_path/'m'))
    e = SentenceEncoder(tmp_path/'m', device='cpu')
    np.testing.assert_allclose(e.encode(TEXTS)[0], unit(hidden(tiny, TEXTS[0])[at]), atol=1e-5)
    assert e.key != SentenceEncoder(tiny).key

def test_long_texts_are_cut(tiny):
    e = SentenceEncoder(tiny, max_length=8, device='cpu')
    a = e.encode(['a b c d e f g h i j', 'a b c d e f z z z z'])
    np.testing.assert_allclose(a[0], a[1], atol=1e-6)
    SentenceEncoder(tiny, device='cpu').encode(['a '*600]) # more than the model's 512 places

def test_a_changed_model_changes_the_key_and_is_refused(tiny, tmp_path):
    shutil.copytree(tiny, tmp_path/'m'); e = SentenceEncoder(tmp_path/'m', device='cpu'); k = e.key
    assert k==SentenceEncoder(tiny).key!=SentenceEncoder(tiny, max_length=9).key
    e.save(tmp_path/'saved'); assert load_encoder(tmp_path/'saved', 'cpu').key==k
    w = load_file(tmp_path/'m'/'model.safetensors'); n = next(iter(w)); w[n] += 1; save_file(w, tmp_path/'m'/'model.safetensors', metadata={'format':'pt'})
    assert SentenceEncoder(tmp_path/'m').key!=k
    refuses(lambda: load_encoder(tmp_path/'saved'), 'other weights')

# ---- tf-idf ------------------------------------------------------------------------------------------------------------------
def test_tfidf_cosines_with_full_rank():
    "With full rank the SVD keeps all inner products; the oracle counts words and n-grams apart"
    t = TEXTS[:6]
    words = TfidfVectorizer(token_pattern=r'(?u)\b\w+\b', sublinear_tf=True, norm=None).fit_transform(t)
    grams = TfidfVectorizer(analyzer='char_wb', ngram_range=(3,5), sublinear_tf=True, norm=None).fit_transform(t)
    dense = normalize(np.hstack([words.toarray(), grams.toarray()]))
    x = TfidfEncoder(32).fit(t).encode(t)
    np.testing.assert_allclose(x @ x.T, dense @ dense.T, atol=1e-4)

def test_tfidf_is_deterministic_and_small_catalogs_work():
    a, b = (TfidfEncoder(8, seed=0).fit(TEXTS).encode(TEXTS) for _ in range(2))
    np.testing.assert_array_equal(a, b)
    c = TfidfEncoder(8, seed=1).fit(TEXTS).encode(TEXTS) # another seed: the leading directions have the same signs
    np.testing.assert_allclose(a[:,:2], c[:,:2], atol=.05)
    for n in (1, 2, 3): assert embed_texts(TEXTS[:n], TfidfEncoder(8), cache=False).shape==(n,8)
    e = embed_texts(TEXTS, 'tfidf', cache=False)
    assert e.shape==(len(TEXTS),128) and np.allclose(np.linalg.norm(e,axis=1), 1, atol=1e-5) and nearest_items(e, 0, 1)[0][0]==1

def test_a_fitted_tfidf_encoder_places_new_texts(tmp_path):
    "Vectors depend on the fitted texts alone: not on company, and not on saving"
    enc = TfidfEncoder(8).fit(TEXTS); x = enc.encode(TEXTS)
    np.testing.assert_allclose(enc.encode(TEXTS[:1])[0], x[0], atol=1e-6)
    assert (enc.encode(['Aliens 3. horror, space']) @ x.T).argmax()==1
    enc.save(tmp_path/'e'); again = load_encoder(tmp_path/'e')
    assert sorted(f.name for f in (tmp_path/'e').iterdir())==['encoder.json', 'encoder.safetensors']
    np.testing.assert_allclose(again.encode(TEXTS + ['Ran 2']), enc.encode(TEXTS + ['Ran 2']), atol=1e-6)
    assert again.key==enc.key and again.key not in (TfidfEncoder(8).key, TfidfEncoder(8).fit(TEXTS[:9]).key)
    refuses(lambda: embed_texts(['Alien', '\u0416\u0416\u0416'], again, cache=False), 'ЖЖЖ', 'zeros', 'a text without a word that it knows') # no known term

def test_terms_have_one_order_in_every_process():
    "The columns are sorted by term, whatever the order in which Python's hashes put them"
    found = TfidfEncoder(8).fit(TEXTS).tfidf.vocabulary_
    assert sorted(found, key=found.get) == sorted(found)

class Counting:
    key = 'counting'
    calls = 0
    def encode(self, texts, batch_size): self.calls += 1; return np.array([[len(t), 1.] for t in texts])

def test_cache_follows_content(tmp_path):
    enc = Counting()
    a = embed_texts(['a','bb'], enc, cache=tmp_path); b = embed_texts(['a','bb'], enc, cache=tmp_path)
    np.testing.assert_array_equal(a, b); assert enc.calls==1 and a.dtype==np.float32
    embed_texts(['bb','a'], enc, cache=tmp_path); embed_texts(['a','bc'], enc, cache=tmp_path); assert enc.calls==3
    enc.key = 'changed'; embed_texts(['a','bb'], enc, cache=tmp_path); assert enc.calls==4
    for f in tmp_path.glob('*.npy'): f.write_bytes(f.read_bytes()[:100])
    np.testing.assert_array_equal(embed_texts(['a','bb'], enc, cache=tmp_path), a); assert enc.calls==5
    assert len(list(tmp_path.glob('*.npy')))==4 and {f.suffix for f in tmp_path.iterdir()}=={'.npy', '.lock'}

def _compute(folder):
    "A child that waits while it computes, and says how often"
    class Slow(Counting):
        def encode(self, texts, batch_size): time.sleep(.5); return super().encode(texts, batch_size)
    enc = Slow(); embed_texts(['a','bb'], enc, cache=folder)
    return enc.calls

def test_of_two_processes_one_computes(tmp_path):
    with get_context('fork').Pool(2) as pool: assert sorted(pool.map(_compute, [tmp_path]*2, chunksize=1))==[0, 1]

class Lengths:
    "Two numbers of a text; counts what it has read, and dies at a text"
    key, fitted = 'lengths', True
    def __init__(self, dies_at=None): self.read, self.dies_at = [], dies_at
    def __repr__(self): return 'Lengths()'
    def encode(self, texts, batch_size):
        if self.dies_at in texts: raise KeyboardInterrupt
        self.read += texts
        return np.array([[len(t), ord(t[-1])] for t in texts], np.float32)

def test_many_texts_are_embedded_in_blocks_and_a_killed_run_goes_on(tmp_path, monkeypatch):
    import genrec_nb.embed as embed
    texts = [f'text {i}' for i in range(23)]
    whole = embed_texts(texts, Lengths(), cache=False)
    monkeypatch.setattr(embed, '_BLOCK', 5)
    with pytest.raises(KeyboardInterrupt): embed_texts(texts, Lengths('text 17'), cache=tmp_path)
    assert not list(tmp_path.glob('*.npy'))
    second = Lengths()
    np.testing.assert_array_equal(embed_texts(texts, second, cache=tmp_path), whole)
    assert second.read == texts[15:] and [f.suffix for f in tmp_path.iterdir() if not f.name.startswith('.')] == ['.npy']
    third = Lengths()
    np.testing.assert_array_equal(embed_texts(texts, third, cache=tmp_path), whole)
    assert third.read == []
    for file, content in (('rows', b'x'), ('part', b'damaged')):             # what was kept cannot be read: all anew
        path = next(tmp_path.glob('*.npy'))
        path.unlink()
        with pytest.raises(KeyboardInterrupt): embed_texts(texts, Lengths('text 17'), cache=tmp_path)
        path.with_suffix(f'.{file}').write_bytes(content)
        again = Lengths()
        np.testing.assert_array_equal(embed_texts(texts, again, cache=tmp_path), whole)
        assert again.read == texts

def test_a_bad_vector_of_a_later_block_is_placed(tmp_path, monkeypatch):
    import genrec_nb.embed as embed
    monkeypatch.setattr(embed, '_BLOCK', 2)
    class Bad(Lengths):
        def encode(self, texts, batch_size): return np.full((len(texts), 2), np.nan if 'd' in texts else 1, np.float32)
    with pytest.raises(GenrecError, match='texts 2 and behind: vector of item 0 holds NaN'): embed_texts(['a', 'b', 'c', 'd'], Bad(), cache=tmp_path)

def test_tfidf_in_blocks_learns_from_all_texts(tmp_path, monkeypatch):
    import genrec_nb.embed as embed
    whole = embed_texts(TEXTS, 'tfidf', cache=False)
    monkeypatch.setattr(embed, '_BLOCK', 4)
    np.testing.assert_allclose(embed_texts(TEXTS, 'tfidf', cache=tmp_path), whole, atol=1e-6)

def test_bad_vectors():
    refuses(lambda: _checked([[1,2],[np.nan,1],[1,np.inf]], 3, 'x'), 'item 1', 'NaN', '2 of 3')
    refuses(lambda: _checked([[1,2],[0,0]], 2, 'x'), 'item 1', 'zeros')
    refuses(lambda: _checked([[1,2]], 5, 'mine.npy'), 'mine.npy', '1 rows for 5 items')
    refuses(lambda: _checked([1.,2.], 2, 'x'), 'shape')

def test_an_encoder_that_gives_nan_is_refused_and_not_cached(tmp_path):
    class Nan(Counting):
        def encode(self, texts, batch_size): return np.full((len(texts),2), np.nan)
    refuses(lambda: embed_texts(['a'], Nan(), cache=tmp_path), 'item 0', 'NaN')
    assert not list(tmp_path.glob('*.npy'))

def test_texts_and_names(tmp_path):
    refuses(lambda: embed_texts(['a','  '], 'tfidf'), 'text 1', 'empty')
    refuses(lambda: embed_texts([], 'tfidf'), 'no texts')
    refuses(lambda: embed_texts(['a'], str(tmp_path), cache=False), str(tmp_path)) # a folder without a model

def test_movielens_neighbors(minilm):
    try: ml = load_movielens()
    except GenrecError as e: pytest.skip(str(e))
    x = embed_texts(ml.catalog.texts)
    assert x.shape==(1682,384)
    top, cos = nearest_items(x, ml.catalog.find('The Godfather (1972)'), 3)
    assert ml.catalog.titles[top[0]]=='The Godfather: Part II (1974)' and (np.diff(cos)<=0).all()

def test_a_service_that_does_not_answer_keeps_what_was_done(tmp_path, monkeypatch):
    import genrec_nb.embed as embed
    monkeypatch.setattr(embed, '_BLOCK', 5)
    texts = [f'text {i}' for i in range(12)]
    class Down(Lengths):
        def encode(self, texts, batch_size):
            if 'text 7' in texts: raise ConnectionError('timed out')
            return super().encode(texts, batch_size)
    with pytest.raises(GenrecError, match='timed out'): embed_texts(texts, Down(), cache=tmp_path)
    again = Lengths()
    assert len(embed_texts(texts, again, cache=tmp_path)) == 12 and again.read == texts[5:]

@pytest.mark.parametrize('encoder', [type('Nameless', (), dict(encode=lambda self, texts, batch_size: np.ones((len(texts), 2))))(), 3, None], ids=lambda e: type(e).__name__)
def test_an_encoder_without_a_key_or_of_no_kind(encoder):
    with pytest.raises(SettingError, match=f'encoder is of the kind {type(encoder).__name__}, expected .*and a `key`'): make_encoder(encoder)

def test_an_encoder_whose_vectors_change_their_width(tmp_path, monkeypatch):
    import genrec_nb.embed as embed
    class Wider:
        key, width = 'wider', 2
        def encode(self, texts, batch_size):
            self.width += 1
            return np.random.default_rng(0).normal(size=(len(texts), self.width))
    monkeypatch.setattr(embed, '_BLOCK', 5)
    with pytest.raises(GenrecError, match='gave vectors of 3 numbers for the first texts, and of 4 from text 5 on'): embed_texts([f't {i}' for i in range(9)], Wider(), cache=tmp_path)

@pytest.mark.parametrize('name, near', [('minilmm', 'minilm'), ('tfdif', 'tfidf')])
def test_a_misspelled_encoder_is_told_without_a_download(name, near, monkeypatch):
    monkeypatch.setattr('genrec_nb.embed.SentenceEncoder', lambda *a, **k: pytest.fail('asked the Hub'))
    with pytest.raises(SettingError, match=f"did you mean '{near}'"): make_encoder(name)
