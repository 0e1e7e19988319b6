"Presets against the settings written down from papers and releases, and what a run makes of them."
import numpy as np
import pytest
from genrec_nb.core import SettingError
from genrec_nb.presets import PRESETS, preset_settings, preset_table
from genrec_nb.run import load_config
from genrec_nb.trial import DataConfig

T5 = dict(d_model=128, d_ff=1024, num_layers=4, num_decoder_layers=4, num_heads=6, d_kv=64, dropout_rate=.1, feed_forward_proj='relu', max_items=20,
          softmax='vocabulary', prior='none', eos=True)
LETTER = dict(d_code=32, commitment_weight=.25, alpha=.02, beta=1e-4, clusters=10, balanced=True, sinkhorn=True, warmup=0, standardize=False, revive=False,
              lr=1e-3, schedule='constant', weight_decay=1e-4, batch=1024)
LM_TRAIN = dict(lr=1e-4, samples_per_epoch=0)

def parts(config, name): # a nested setting
    for part in name.split('.'): config = config[part] if isinstance(config, dict) else getattr(config, part)
    return config

@pytest.mark.parametrize('name, want', [
    ('tiger-letter', {'backbone': 't5', 'weighting': 'ce', 'model': T5, 'train.epochs': 200, 'train.batch_size': 1024, 'train.lr': 5e-4, 'train.weight_decay': .01,
                      'train.warmup': .01, 'train.patience': 20, 'decode.beams': 20, 'decode.exclude_seen': False, 'tokenizer.levels': 4, 'tokenizer.size': 256}),
    ('letter-tiger', {'weighting': 'ranking', 'rule.tau': .7, 'model': T5, 'tokenizer.method': 'letter', 'train.lr': 5e-4, 'decode.exclude_seen': False}),
    ('letter-paper', {'tokenizer.method': 'letter', 'tokenizer.cf': 'sasrec', 'tokenizer.policy': 'sinkhorn', 'tokenizer.options.variant': 'paper'} |
                     {f'tokenizer.options.{k}': v for k, v in LETTER.items()}),
    ('letter-release', {'tokenizer.options.variant': 'code'} | {f'tokenizer.options.{k}': v for k, v in LETTER.items()}),
    ('multi-target', {'rule.c': 3e-5, 'rule.rising': ('frequency',), 'rule.variant': 'curriculum', 'model': T5, 'train.lr': 5e-4, 'train.batch_size': 512,
                      'train.epochs': 200, 'train.patience': 20, 'decode.beams': 20}),
    ('rpg', {'backbone': 'packed', 'weighting': 'ce', 'tokenizer.method': 'opq', 'tokenizer.levels': 16, 'tokenizer.size': 256, 'tokenizer.policy': 'keep',
             'tokenizer.options': dict(parallel=True, whiten=128), 'model.d_model': 448, 'model.dropout': .5, 'model.mean_embeddings': True,
             'model.cosine_temperature': .03, 'model.max_items': 50, 'train.lr': 3e-3, 'train.batch_size': 256, 'train.patience': 20, 'decode.weights': 'equal',
             'decode.exclude_seen': False}),
    ('lc-rec', {'backbone': 'llm', 'model.r': 8, 'model.alpha': 32, 'model.dropout': .05, 'model.targets': 'all-linear', 'model.tuning': 'lora', 'model.tasks': ['all'],
                'model.separator': ', ', 'train.epochs': 4} | {f'train.{k}': v for k, v in LM_TRAIN.items()}),
    ('igd-paper', {'backbone': 'llm', 'weighting': 'igd', 'beta': .1, 'alpha': .2, 'split': 'time', 'title_words': 20, 'tokenizer.method': 'title', 'model.max_items': 10,
                   'model.separator': ', ', 'train.epochs': 3, 'train.patience': 1, 'decode.beams': 10} | {f'train.{k}': v for k, v in LM_TRAIN.items()})])
def test_settings_are_those_written_down(name, want):
    config = load_config(preset=name)
    assert {k: parts(config, k) for k in want} == want
    if config.backbone == 'llm':
        assert config.train.batch_size*config.train.accumulate == 128
        assert config.model['template'].startswith('Below is an instruction') and config.model['template'].count('{history}') == 1

@pytest.mark.parametrize('name', PRESETS)
def test_every_setting_has_a_source(name):
    def leaves(d, prefix=''):
        return [x for k, v in d.items() for x in (leaves(v, f'{prefix}{k}.') if isinstance(v, dict) and v else [prefix + k])]
    table = preset_table(name)
    assert sorted(table.index) == sorted(leaves(preset_settings(name)))
    assert table.source.str.contains('^(?:paper|code|ours|one identifier|all)').all()

def test_what_is_given_goes_before_a_preset():
    config = load_config(overrides={'train.lr': 1e-2, 'model.d_model': 64, 'tokenizer.size': 8}, preset='tiger-letter')
    assert (config.train.lr, config.model['d_model'], config.tokenizer.size, config.train.weight_decay) == (1e-2, 64, 8, .01)
    with pytest.raises(SettingError, match="did you mean 'tiger-letter'"): load_config(preset='tiger-leter')

def test_a_quick_run_of_a_preset_trains_briefly():
    quick = load_config(overrides={'tokenizer.levels': 2}, quick=True, preset='letter-tiger')
    assert (quick.train.epochs, quick.train.lr, quick.weighting, quick.model['eos']) == (2, 5e-4, 'ranking', True)
    assert (quick.tokenizer.method, quick.tokenizer.levels, quick.tokenizer.encoder) == ('rqkmeans', 2, 'tfidf')
    assert load_config(quick=True, preset='igd-paper').train.samples_per_epoch == 256
    digits, own = (load_config(overrides=o, quick=True, preset='rpg').tokenizer for o in ({}, {'tokenizer.encoder': 'minilm'}))
    assert digits.options['parallel'] and (digits.method, digits.levels, digits.encoder, own.encoder) == ('opq', 16, 'tfidf', 'minilm')

def test_items_with_long_titles_are_left_out(tmp_path):
    words = {'a': 'one', 'b': 'one two', 'c': 'one two three', 'd': 'one two three four'}
    rows = [(u, i) for u, s in (('u', 'abcab'), ('v', 'cdcdc'), ('w', 'ddd')) for i in s]
    (tmp_path/'interactions.csv').write_text('user,item\n' + ''.join(f'{u},{i}\n' for u, i in rows))
    (tmp_path/'items.csv').write_text('item,title\n' + ''.join(f'{i},{t}\n' for i, t in words.items()))
    def histories(n):
        data = DataConfig(str(tmp_path), title_words=n).load()[0]
        x = data.interactions
        return {u: ''.join(data.catalog.ids[i] for i in x.user(k)) for k, u in enumerate(x.user_ids)}
    assert histories(None) == dict(u='abcab', v='cdcdc', w='ddd')
    assert histories(3) == dict(u='abcab', v='ccc')                     # w chose nothing else, and is gone
    assert histories(2) == dict(u='abab')
