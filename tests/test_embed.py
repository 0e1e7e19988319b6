"Embed: masks, company, caches, bad vectors"
import json, subprocess, sys
from pathlib import Path
import numpy as np
import pytest
import torch
from sklearn.feature_extraction.text import TfidfVectorizer
from genrec_nb.core import GenrecError
from genrec_nb.loaders import fetch, load_movielens
from genrec_nb.embed import *
from genrec_nb.embed import TfidfEncoder, HFEncoder

TEXTS = ['Alien. horror, space', 'Aliens. horror, space', 'Emma. romance', 'Clueless. romance, comedy', 'Ran. war', 'x', '!?', 'Les Misérables', '東京物語'] + [f'film number {i} ' * (1+i%9) for i in range(30)]

@pytest.fixture(scope='module')
def minilm():
    try: fetch('minilm')
    except GenrecError as e: pytest.skip(f'the MiniLM encoder cannot be had here: {e}')
    return HFEncoder()

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

def test_masked_mean_against_a_loop():
    g = torch.Generator().manual_seed(0)
    h, n = torch.randn(5, 7, 3, generator=g), [7,1,3,5,2]
    mask = torch.tensor([[1]*k + [0]*(7-k) for k in n])
    torch.testing.assert_close(masked_mean(h, mask), torch.stack([h[b,:k].mean(0) for b,k in enumerate(n)]))
    h[mask==0] = 1e9 # what stands on padding does not matter
    torch.testing.assert_close(masked_mean(h, mask), torch.stack([h[b,:k].mean(0) for b,k in enumerate(n)]))
    assert masked_mean(h.to(torch.bfloat16), mask).dtype==torch.float32

def company_does_not_matter(enc, tol):
    a = enc.encode(TEXTS, batch_size=64)
    assert a.dtype==np.float32 and len(a)==len(TEXTS)
    order = np.random.default_rng(0).permutation(len(TEXTS))
    for b in (enc.encode(TEXTS, batch_size=1), enc.encode(TEXTS, batch_size=7), enc.encode([TEXTS[i] for i in order], batch_size=5)[np.argsort(order)]):
        np.testing.assert_allclose(b, a, atol=tol)

def test_company_does_not_matter_tiny(tiny): company_does_not_matter(HFEncoder(tiny, device='cpu'), 1e-5)
def test_company_does_not_matter_minilm(minilm): company_does_not_matter(minilm, 2e-5)

def test_minilm_is_the_sentence_transformer(minilm):
    "Against the model run by hand on one text, with its published pooling: mean over tokens, then length one"
    tok, model = minilm.load()
    with torch.inference_mode(): h = model(**tok('Alien. horror, space', return_tensors='pt')).last_hidden_state[0].mean(0).numpy()
    np.testing.assert_allclose(embed_texts(TEXTS, minilm, cache=False)[0], h/np.linalg.norm(h), atol=1e-5)

def test_long_texts_are_cut(tiny):
    e = HFEncoder(tiny, max_length=8, device='cpu')
    a = e.encode(['a b c d e f g h i j', 'a b c d e f z z z z'])
    np.testing.assert_allclose(a[0], a[1], atol=1e-6)

def test_tfidf_cosines_before_the_svd():
    "With full rank the SVD keeps all inner products; the oracle lists the terms instead of hashing them"
    t = TEXTS[:6]
    e = TfidfEncoder(5); x = e.encode(t)
    words = TfidfVectorizer(token_pattern=r'(?u)\b\w+\b', sublinear_tf=True, norm=None).fit_transform(t)
    grams = TfidfVectorizer(analyzer='char_wb', ngram_range=(3,5), sublinear_tf=True, norm=None).fit_transform(t)
    dense = normalize(np.hstack([words.toarray(), grams.toarray()]))
    full = TfidfEncoder(5); k = np.linalg.svd(dense, compute_uv=False)
    np.testing.assert_allclose(np.linalg.svd(x, compute_uv=False), k[:5], rtol=1e-3)

def test_tfidf_is_deterministic_and_small_catalogues_work():
    a, b = (TfidfEncoder(8, seed=0).encode(TEXTS) for _ in range(2))
    np.testing.assert_array_equal(a, b)
    c = TfidfEncoder(8, seed=1).encode(TEXTS) # another seed: the leading directions have the same signs
    np.testing.assert_allclose(a[:,:2], c[:,:2], atol=.05)
    for n in (1, 2, 3): assert embed_texts(TEXTS[:n], TfidfEncoder(8), cache=False).shape==(n,8)
    e = embed_texts(TEXTS, 'tfidf', cache=False)
    assert e.shape==(len(TEXTS),128) and np.allclose(np.linalg.norm(e,axis=1), 1, atol=1e-5) and nearest(e, 0, 1)[0][0]==1

def test_same_vectors_in_another_process():
    code = f'import hashlib; from genrec_nb.embed import *; print(hashlib.sha256(embed_texts({TEXTS[:9]!r}, "tfidf", cache=False).tobytes()).hexdigest())'
    out = {subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True).stdout for _ in range(2)}
    assert len(out)==1

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
    for f in tmp_path.iterdir(): f.write_bytes(f.read_bytes()[:100])
    np.testing.assert_array_equal(embed_texts(['a','bb'], enc, cache=tmp_path), a); assert enc.calls==5
    assert len(list(tmp_path.iterdir()))==4 and all(f.suffix=='.npy' for f in tmp_path.iterdir())

def test_a_changed_model_changes_the_key(tiny, tmp_path):
    import shutil
    from safetensors.torch import load_file, save_file
    shutil.copytree(tiny, tmp_path/'m'); k = HFEncoder(tmp_path/'m').key
    assert k==HFEncoder(tiny).key!=HFEncoder(tiny, max_length=9).key
    w = load_file(tmp_path/'m'/'model.safetensors'); n = next(iter(w)); w[n] += 1; save_file(w, tmp_path/'m'/'model.safetensors', metadata={'format':'pt'})
    assert HFEncoder(tmp_path/'m').key!=k

def test_bad_vectors():
    refuses(lambda: check_vectors([[1,2],[np.nan,1],[1,np.inf]]), 'row 1', 'NaN', '2 of 3')
    refuses(lambda: check_vectors([[1,2],[0,0]]), 'row 1', 'zeros')
    refuses(lambda: check_vectors([[1,2]], n=5, where='mine.npy'), 'mine.npy', '1 rows for 5 items')
    refuses(lambda: check_vectors([1.,2.]), 'matrix')

def test_an_encoder_that_gives_nan_is_refused_and_not_cached(tmp_path):
    class Nan(Counting):
        def encode(self, texts, batch_size): return np.full((len(texts),2), np.nan)
    refuses(lambda: embed_texts(['a'], Nan(), cache=tmp_path), 'row 0', 'NaN')
    assert not list(tmp_path.iterdir())

def test_texts_and_names(tmp_path):
    refuses(lambda: embed_texts(['a','  '], 'tfidf'), 'text 1', 'empty')
    refuses(lambda: embed_texts([], 'tfidf'), 'no texts')
    refuses(lambda: embed_texts(['a'], str(tmp_path), cache=False), str(tmp_path)) # a folder without a model

def test_movielens_neighbours(minilm):
    try: ml = load_movielens()
    except GenrecError as e: pytest.skip(str(e))
    x = embed_texts(ml.catalog.texts)
    assert x.shape==(1682,384)
    top, cos = nearest(x, ml.catalog.find('The Godfather (1972)'), 3)
    assert ml.catalog.titles[top[0]]=='The Godfather: Part II (1974)' and (np.diff(cos)<=0).all()
