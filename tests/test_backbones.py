"Loading language models, new tokens, adapters: what is not there, or wants too much, is refused."
import json
import numpy as np
import pytest
from genrec_nb.backbones import adapt, load_lm, tiny_llama
from genrec_nb.core import GenrecError
from genrec_nb.language_recommender import LMConfig, language_recommender
from genrec_nb.semantic_ids import Identifiers
from language import WORDS, base_folder, base

def test_a_folder_without_tokenizer(tmp_path):
    lm, _ = tiny_llama(WORDS)
    lm.save_pretrained(tmp_path)
    with pytest.raises(GenrecError, match='holds no tokenizer'): load_lm(tmp_path)

def test_a_model_with_code_of_its_own_is_refused(tmp_path, base_folder):
    folder = base_folder(*tiny_llama(WORDS))
    config = json.loads(open(f'{folder}/config.json').read())
    config.update(model_type='my_own_model', auto_map=dict(AutoConfig='mine.MyConfig', AutoModelForCausalLM='mine.MyModel'))
    open(f'{folder}/config.json', 'w').write(json.dumps(config))
    open(f'{folder}/mine.py', 'w').write('raise SystemExit("this code was run")')
    with pytest.raises(GenrecError, match='refused'): load_lm(folder)

def test_a_model_that_is_not_there(tmp_path):
    (tmp_path/'empty').mkdir()
    with pytest.raises(GenrecError, match='no tokenizer'): load_lm(tmp_path/'empty')
    with pytest.raises(GenrecError, match='cannot be loaded'): load_lm(str(tmp_path/'nowhere'/'at'/'all'))

def test_four_bit_without_bitsandbytes():
    import importlib.util
    if importlib.util.find_spec('bitsandbytes'): pytest.skip('bitsandbytes is installed')
    with pytest.raises(GenrecError, match='bitsandbytes'): load_lm('anything', four_bit=True)

def test_a_model_that_already_holds_codes():
    lm, tokenizer = tiny_llama(WORDS)
    ids = Identifiers.from_codes(np.array([[0, 0], [1, 1]]), policy='keep')
    language_recommender(ids, (lm, tokenizer), LMConfig(base=None))
    with pytest.raises(GenrecError, match="already holds 4 of the 4 code tokens, '<a_0>'"): language_recommender(ids, (lm, tokenizer), LMConfig(base=None))

def test_layers_that_are_not_there():
    lm, _ = tiny_llama(WORDS)
    with pytest.raises(GenrecError, match='targets'): adapt(lm, targets=['nothing_proj'])

def test_smollm2_wants_gguf_once(tmp_path, monkeypatch):
    import importlib.util
    monkeypatch.setenv('GENREC_CACHE', str(tmp_path))
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, 'find_spec', lambda name, *a: None if name == 'gguf' else real(name, *a))
    with pytest.raises(GenrecError, match='pip install gguf'): load_lm()
