"Weights that a file does not hold are an error, whatever the model: they would be random."
import numpy as np
import pytest
from safetensors.torch import load_file, save_file
from genrec_nb.backbones import load_lm, tiny_llama
from genrec_nb.core import GenrecError
from genrec_nb.data import Catalog, Dataset, Interactions
from genrec_nb.embed import TfidfEncoder, load_encoder
from genrec_nb.rankers import _RANKERS, load_ranker, save_ranker
from genrec_nb.rec_config import RecommenderConfig
from genrec_nb.recommender import GenerativeRecommender
from genrec_nb.splits import leave_one_out
from genrec_nb.tokenizer import load_tokenized, tokenize_items
from genrec_nb.tokenizer_config import TokenizerConfig

N = 12
TEXTS = [f'a {c} {w} of size {i}' for i, (c, w) in enumerate([(c, w) for c in ('red', 'blue', 'green') for w in ('box', 'ball', 'cup', 'hat')])]
DATA = Dataset('toy', Catalog([f'i{i:02}' for i in range(N)], TEXTS, TEXTS), Interactions(np.concatenate([(np.random.default_rng(u).integers(N) + np.arange(6)*2 + u % 2) % N for u in range(30)]), np.arange(31)*6, [str(u) for u in range(30)], N))
SPLIT = leave_one_out(DATA.interactions)
SIZES = dict(d_model=16, num_layers=1, num_heads=2)
RANDOM = dict(method='random', size=8, levels=2)

def settings(backbone, base, **model):
    quick = dict(epochs=1, batch_size=8, eval_every=1)
    if backbone == 'packed': return RecommenderConfig(tokenizer=dict(method='rqkmeans', encoder='tfidf', size=4, levels=2), model=SIZES, train=quick, **model)
    if backbone == 't5': return RecommenderConfig(backbone='t5', tokenizer=RANDOM, model=SIZES | dict(d_ff=16, num_decoder_layers=1, d_kv=8), train=quick)
    return RecommenderConfig(backbone='llm', tokenizer=RANDOM, model=dict(base=str(base), max_tokens=200, **model), train=quick | dict(samples_per_epoch=8, eval_users=2))

def recommender(folder, backbone, **model):
    for part in tiny_llama(TEXTS, 300): part.save_pretrained(folder/'base')
    return GenerativeRecommender.fit(DATA, settings(backbone, folder/'base', **model), SPLIT).save_pretrained(folder/'saved'), GenerativeRecommender.from_pretrained

def tokenizer(folder, method, **options):
    tokenize_items(DATA, SPLIT, TokenizerConfig(method, encoder='tfidf', options=options, **({} if method == 'hkmeans' else dict(size=4, levels=2)))).save(folder/'made')
    return folder/'made', lambda f: load_tokenized(f)

def ranker(folder, kind):
    _, config, train = _RANKERS[kind]
    how = dict(epochs=1) if 'epochs' in config.__dataclass_fields__ else {}
    save_ranker(train(SPLIT, config(**how), 0, True), folder/'ranker')
    return folder/'ranker', load_ranker

def encoder(folder):
    made = TfidfEncoder(3).fit(TEXTS)
    made.save(folder/'encoder')
    return folder/'encoder', load_encoder

def language_model(folder):
    for part in tiny_llama(TEXTS, 300): part.save_pretrained(folder/'base')
    return folder/'base', lambda f: load_lm(f, device='cpu')

KINDS = dict(packed=lambda f: recommender(f, 'packed'), several=lambda f: recommender(f, 'packed', identifiers=['item']), t5=lambda f: recommender(f, 't5'),
             lora=lambda f: recommender(f, 'llm', r=2), full=lambda f: recommender(f, 'llm', tuning='full'), language_model=language_model, encoder=encoder,
             **{m: lambda f, m=m, o=o: tokenizer(f, m, **o) for m, o in dict(rqkmeans={}, opq={}, hkmeans={}, rqvae=dict(steps=3), letter=dict(steps=3, clusters=2)).items()},
             **{k: lambda f, k=k: ranker(f, k) for k in ('popularity', 'rules', 'itemknn', 'ease', 'mf', 'sasrec', 'gru4rec')})

@pytest.mark.parametrize('kind', KINDS)
def test_a_tensor_that_is_missing_is_named(tmp_path, kind, capfd):
    "Each file of weights without its first, its last, and all but one tensor; and nothing of other libraries is printed"
    folder, load = KINDS[kind](tmp_path)
    load(folder)
    files = sorted(folder.rglob('*.safetensors'))
    assert files
    capfd.readouterr()
    for file in files:
        whole = load_file(file)
        names = sorted(whole.keys() - {'counted'})                              # which old rules had not
        for names in {(names[0],), (names[-1],), tuple(names[1:])} - {()}:
            save_file({k: v for k, v in whole.items() if k not in names}, file, dict(format='pt'))
            with pytest.raises(GenrecError) as e: load(folder)
            said = str(e.value)
            told = sorted(names)[0] in said and 'missing' in said or said.endswith('found 0 tensors (), expected one')
            assert file.name in said and told and '\n' not in said, (file.name, names, said)
        save_file(whole, file, dict(format='pt'))
    out, err = capfd.readouterr()
    assert not out + err, out + err
    load(folder)
