"Names read from the source are those of the classes; errors come before torch."
import inspect, json, re, subprocess, sys
from pathlib import Path
from dataclasses import MISSING, asdict, fields
import pytest
import typer
from hypothesis import given, settings, strategies as st
from transformers import T5Config, TrainingArguments
from transformers.activations import ACT2FN
from genrec_nb.beam_search import DecodeConfig
from genrec_nb.causal_lm import LMConfig
from genrec_nb.cli import app
from genrec_nb.core import GenrecError, SettingError, _read_spec, read_settings
from genrec_nb.experiments.grid import Grid, Tune
from genrec_nb.generators import BACKBONES, _defaults
from genrec_nb.item_decoder import ItemDecoderConfig
from genrec_nb.limits import DecoderSizes, T5Sizes, _ACTIVATIONS, _TRAINER_LIMITS
from genrec_nb.objectives import PUBLISHED, WEIGHTINGS, _SHORT
from genrec_nb.options import _COLUMN_NAMES
from genrec_nb.presets import PRESETS, preset_settings
from genrec_nb.rankers import _RANKERS
from genrec_nb.rec_config import RecommenderConfig
from genrec_nb.run import RunConfig
from genrec_nb.setting_names import _check_grid, _check_run, _check_trainer_settings, _entries, _fields, _methods, _model_settings, _run_names, _weightings
from genrec_nb.tokenizer_config import TOKENIZERS, TokenizerConfig
from genrec_nb.tiger import tiger_t5
from genrec_nb.train import TrainConfig, _training_arguments

CLASSES = [(RunConfig, 'run'), (RecommenderConfig, 'recommender'), (TrainConfig, 'train'), (DecodeConfig, 'rec_config'), (TokenizerConfig, 'run'), (LMConfig, 'causal_lm'),
           (Grid, 'experiments.grid'), (Tune, 'experiments.grid')]


@pytest.mark.parametrize('cls, module', CLASSES, ids=lambda x: getattr(x, '__name__', x))
def test_the_source_names_the_fields_of_a_class_in_their_order(cls, module):
    assert [*_fields(cls.__name__, module)] == [f.name for f in fields(cls)]

def test_arguments_of_the_trainer(tmp_path):
    "Every name; the defaults are possible, and what is refused here the class refuses, too, or would take and fail later"
    _check_trainer_settings({f.name: f.default for f in fields(TrainingArguments) if f.init and f.default is not MISSING})
    assert {*_TRAINER_LIMITS} <= {f.name for f in fields(TrainingArguments)}
    with pytest.raises(SettingError, match='adam_beta2 is 1, expected a number below 1'): _training_arguments(TrainConfig(), 10, tmp_path, adam_beta2=1)
    assert {f.name for f in fields(TrainingArguments) if f.init} <= {*_fields("TrainingArguments", "training_args", "transformers")}

def test_methods_and_their_own_settings():
    assert [*_methods()] == [*TOKENIZERS]
    for name, how in TOKENIZERS.items():
        assert [n for n in _fields(_methods()[name], 'tokenizer_config') if n not in ('d_in', 'levels', 'size')] == [*how.options], name

def test_weightings_and_baselines():
    assert {n: c for n, c in _weightings().items() if n in WEIGHTINGS} == {n: c.__name__ for n, c in WEIGHTINGS.items()} and [*_weightings()] == [*WEIGHTINGS, *_SHORT, *PUBLISHED]
    assert {n: x.elts[1].id for n, (_, x) in _entries('_RANKERS', 'rankers').items()} == {n: config.__name__ for n, (_, config, _) in _RANKERS.items()}

@pytest.mark.parametrize('backbone', BACKBONES)
def test_settings_of_a_generator(backbone): assert {*_model_settings(backbone)} == {*BACKBONES[backbone].sizes()}

def test_settings_of_a_generator_are_those_of_its_class():
    "Names, defaults, and activations"
    made = inspect.signature(ItemDecoderConfig).parameters
    assert _defaults(DecoderSizes) == {n: made[n].default for n in _defaults(DecoderSizes)} and {*made} - {*_defaults(DecoderSizes)} == {'vocab_size', 'first', 'sizes', 'levels', 'n_items', 'kwargs'}
    made = inspect.signature(tiger_t5).parameters
    own = {n: made[n].default for n in ('max_items', 'softmax', 'prior', 'eos', 'user_tokens')}
    assert own.items() <= _defaults(T5Sizes).items() and {*_defaults(T5Sizes)} - {*own} <= {f.name for f in fields(T5Config)}
    assert {*_ACTIVATIONS} <= {*ACT2FN}



# ---- the same line as the class ------------------------------------------------------------------------------------

nan = float('nan')
IMPOSSIBLE = [
    *(dict(model={k: v}) for k, v in dict(d_model=-1, num_layers=0, num_heads=0, head_ff=-1, dropout=2, max_items=0, softmax='foo', prior='foo', scale_embeddings='False').items()),
    dict(model=dict(d_model=10)), dict(model=dict(num_heads=3)), dict(model=dict(dropout=nan)), dict(model=dict(dropout=1)),
    *(dict(backbone='t5', model={k: v}) for k, v in dict(d_model=-1, d_kv=0, d_ff=0, num_layers=0, num_decoder_layers=-1, num_heads=0, dropout_rate=2, layer_norm_epsilon=-1, initializer_factor=0, eos='no',
                                                         feed_forward_proj='foo', relative_attention_num_buckets=3, relative_attention_max_distance=8, max_items=0, softmax='foo', prior='foo').items()),
    dict(backbone='t5', model=dict(dropout_rate=nan)), dict(backbone='t5', model=dict(d_model='64')),
    *(dict(train={k: v}) for k, v in dict(lr=-1, batch_size=0, epochs=-1, weight_decay=-1, warmup=2, accumulate=0, eval_every=0, patience=-1, seed=2**32, samples_per_epoch=-1).items()),
    *(dict(train={k: nan}) for k in ('lr', 'weight_decay', 'warmup')),
    *(dict(decode={k: v}) for k, v in dict(beams=0, alpha=nan, length_penalty=nan, weights=[1, -1], rules_weight=2, memory=0, expansions=0).items()),
    dict(train=3), dict(train=None), dict(tokenizer=3), dict(tokenizer=dict(size=0)), dict(tokenizer=dict(size=[8, 0])), dict(seed=2**32), dict(seed=-1), dict(rules_weight=-1), dict(identifiers='foo'), dict(identifiers=3),
    dict(backbone='llm', model=dict(tasks=3)), dict(backbone='llm', model=dict(dropout=1)),
]

@pytest.mark.parametrize('wrong', [
    dict(alhpa=1), dict(train=dict(lrr=3)), dict(decode=dict(beam=3)), dict(tokenizer=dict(methd='letter')), dict(tokenizer=dict(method='lettr')),
    dict(tokenizer=dict(options=dict(foo=1))), dict(tokenizer=dict(method='hkmeans', options=dict(leef=1))), dict(model=dict(dmodel=8)),
    dict(backbone='t5', model=dict(head_ff=2)), *IMPOSSIBLE,
    dict(train=dict(epochs='abc')), dict(train=dict(lr=0)), dict(train=dict(metric='foo')), dict(train=dict(eval_users=-1)), dict(decode=dict(search='foo')), dict(decode=dict(beams=2.5)),
    dict(alpha=2), dict(seed='x'), dict(split='foo'), dict(backbone='lmm'), dict(compare=['foo']), dict(tokenizer=dict(levels=0)), dict(tokenizer=dict(policy='foo')),
    dict(tokenizer=dict(method='hkmeans', options=dict(leaf='x'))), dict(model=dict(d_model='wide')), dict(backbone='llm', model=dict(tuning='foo')),
    dict(epochs=3), dict(tokenizer=dict(options=dict(size=3))), dict(tokenizer=dict(options=dict(methd=3))), dict(weighting='foo'), dict(weighting=3), dict(weighting='cft', weighting_options=dict(lamda=1)), dict(weighting='fg', weighting_options=dict(form='foo')),
    dict(baselines=dict(sasrec=dict(heads=3))), dict(baselines=dict(bert4rec=dict(dim=7))), dict(baselines=dict(hgn=dict(warmup=2))), dict(baselines='foo'), dict(baselines=['ease', 'sasrek']), dict(baselines=dict(wide=dict(kind='ease', lam='much'))), dict(baselines=dict(mf=dict(foo=1))),
])
def test_the_line_is_that_of_the_class(wrong):
    def line(f):
        with pytest.raises(SettingError) as e: f()
        return str(e.value)
    for where in ('', 'shop.toml'):
        ours, its = line(lambda: _check_run(wrong, where)), line(lambda: read_settings(RunConfig, wrong, where))
        assert ours.split(' Known')[0] == its.split(' Known')[0]
        assert {*ours.split(', ')[2:]} <= {*its.split(', ')} or 'did you' in ours

def test_what_is_right_passes():
    _check_run(dict(data='x', train=dict(lr=1), tokenizer=dict(method='letter', levels=4, options=dict(clusters=3)), model=dict(d_model=8), trainer=dict(bf16=True, adam_beta2=.9)))
    _check_run(dict(backbone='llm', model=dict(base='x', r=8)))
    for name in PRESETS: _check_run(preset_settings(name), name)
    for path in (Path(__file__).parents[1]/'nbs'/'results').glob('*.toml'): _check_grid(_read_spec(path), str(path))
    search = dict(seeds=[0], values=dict(igd={'model.d_model': [30, 60], 'model.num_heads': [3]}, sasrec=dict(dim=[30], heads=[3, 5])))  # only together
    _check_grid(dict(data='x', weightings=['igd'], baselines=['sasrec'], tune=search), '')
    _check_run(asdict(RunConfig()))
    _check_run(dict(tokenizer=dict(options=dict(balanced=True))), quick=True)                  # of the method of a quick run
    _check_grid(dict(data='ml-100k', train=dict(lr=.1), decode=dict(beams=5), tune=dict(seeds=[0], values={})), 'g')

@pytest.mark.parametrize('wrong, words', [
    *((dict(trainer={k: v}), words) for k, v, words in (
        ('bf61', 1, "did you mean 'bf16'"), ('learning_rate', -1, '0 or more'), ('learning_rate', nan, 'finite'), ('adam_beta1', 2, 'below 1'), ('adam_epsilon', -1, '0 or more'), ('max_grad_norm', -1, '0 or more'),
        ('gradient_accumulation_steps', 0, '1 or more'), ('warmup_steps', -1, '0 or more'), ('logging_steps', 0, 'above 0'), ('seed', 2**32, 'at most 4294967295'), ('optim', 'adamw', 'expected one of adamw_torch,'),
        ('lr_scheduler_type', 'cosin', "did you mean 'cosine'"), ('save_strategy', 'bst', 'no, steps, epoch, best'), ('bf16', 'False', 'true or false'), ('run_name', 3, 'a word'), ('dataloader_num_workers', 2.5, 'a whole number'))),
    (dict(tokenizer=dict(method=3)), 'expected a word'), (dict(tokenizer=dict(method='lettr')), 'expected one of letter')])
def test_other_wrong_names(wrong, words):
    with pytest.raises(SettingError, match=words): _check_run(wrong)

@pytest.mark.parametrize('wrong', [dict(dta='x'), dict(train=dict(lrr=1)), dict(decode=dict(beam=1)), dict(model=dict(dmodel=1)), dict(tune=dict(sed=1)), dict(weightings='idg'), dict(weightings=['ce', 'idg']), dict(weightings=dict(a=dict(kind='idg'))), dict(alphas=[2]), dict(seeds=['a']), dict(baselines=['foo']), dict(train=dict(epochs=0)), dict(decode=dict(search='foo')), dict(decode=dict(beams=0)),
                                   dict(model=dict(d_model=-1)), dict(trainer=dict(adam_beta2=1)), dict(seeds=[2**32]), *(dict(data=dict(toy={k: v})) for k, v in dict(train=dict(lr=nan), model=dict(num_heads=0), trainer=dict(bf16='no')).items()),
                                   dict(ids=dict(t=dict(size=0))), dict(ids=dict(t=dict(method='letter', clustrs=3))), dict(ids=dict(t=dict(vary=dict(size=[8, 0])))), dict(weightings=dict(a=dict(kind='igd', beta=2))),
                                   dict(weightings=dict(a=dict(kind='ce', backbone='t5', model=dict(dropout_rate=2)))), dict(weightings=dict(ce=dict(train=dict(batch_size=0))))])
def test_grids(wrong):
    with pytest.raises(SettingError, match='^g.toml: .*(unknown|expected)'): _check_grid(wrong, 'g.toml')

JSON = st.recursive(st.none() | st.booleans() | st.integers() | st.text(max_size=4), lambda x: st.lists(x, max_size=2) | st.dictionaries(st.text(max_size=3), x, max_size=2), max_leaves=4)

@settings(max_examples=50, deadline=None)
@given(st.dictionaries(st.sampled_from(['train', 'decode', 'tokenizer', 'model', 'trainer', 'backbone', 'data']), JSON, max_size=3))
def test_whatever_is_given_is_right_or_one_of_our_errors(x):
    try: _check_run(x)
    except GenrecError as e: assert '\n' not in str(e)


# ---- advice -------------------------------------------------------------------------------------------------------

ROOT = Path(__file__).parents[1]
COMMANDS = {n: {o for p in c.params for o in p.opts if o[:2] == '--'} | {'--help'} for n, c in typer.main.get_command(app).commands.items()}

def test_settings_and_options_in_messages_exist():
    "Whatever a message tells to give, a command takes"
    text = '\n'.join(p.read_text() for p in (ROOT/'genrec_nb').rglob('*.py') if p.name not in ('options.py', '_modidx.py'))
    own = {n for m in _methods().values() for n in _fields(m, 'tokenizer_config')}
    known = {'set': {*_fields('RunConfig', 'run'), *(n for b in BACKBONES for n in _run_names(b))}, 'tokenizer': {*_fields('TokenizerConfig', 'tokenizer_config'), *own}, 'model': {n for b in BACKBONES for n in _model_settings(b)},
             'column': {*_COLUMN_NAMES}}
    found = [(option, name) for option, name in re.findall(r'--(set|tokenizer|model|column) ([a-z_]+(?:\.[a-z_]+)*)=', text)]
    assert len(found) > 20 and not [f'--{option} {name}' for option, name in found if name not in known[option]]
    assert not {*re.findall(r"""(?<=[\s(`'"])--[a-z][a-z-]*""", text)} - {o for c in COMMANDS.values() for o in c} - {'--version', *'--porcelain --untracked-files --short --no-input --ignore-requires-python --no-deps --disable-pip-version-check'.split()} # of git and pip

def test_commands_in_the_pages_have_their_options():
    pages = [(p, json.loads(p.read_text())) for p in sorted((ROOT/'nbs').rglob('*.ipynb'))]
    lines = [(p.name, line) for p, d in pages for c in d['cells'] for line in re.split(r'[\n`;|]', ''.join(c['source']))] + [('README', line) for line in (ROOT/'README.md').read_text().splitlines()]
    found = [(where, m[1], option) for where, line in lines if (m := re.match(r'\s*genrec (\w+) ([^#]*)', line)) and m[1] in COMMANDS for option in re.findall(r'(?<=\s)--[a-z-]+', m[2])]
    assert len(found) > 30 and not [f for f in found if f[2] not in COMMANDS[f[1]]]


# ---- before torch --------------------------------------------------------------------------------------------------

WRONG = [
    (['run', 'nowhere'], 'no known data set'), (['run', 'shop', '--set', 'train.lrr=3'], "did you mean 'lr'"), (['run', 'shop', '--set', 'alhpa=3'], "did you mean 'alpha'"),
    (['run', 'shop', '--model', 'foo=1'], 'unknown'), (['run', 'shop', '--trainer', 'foo=1'], 'unknown'), (['run', 'shop', '--tokenizer', 'foo=1'], 'unknown'),
    (['run', 'shop', '--tokenizer', 'method=foo'], 'expected one of'), (['run', 'shop', '--preset', 'foo'], 'expected one of'), (['run', 'shop', '--device', 'tpu'], 'expected cpu'),
    (['run', 'shop', '--set', 'train.epochs=abc'], "train: epochs is 'abc', expected a whole number"), (['run', 'shop', '--set', 'weighting=foo'], 'expected one of'),
    (['run', 'shop', '--set', 'decode.search=foo'], 'expected one of auto, exact, beam'), (['run', 'shop', '--baselines', 'foo'], 'expected one of'), (['run', 'shop', '--model', 'd_model=wide'], 'a whole number'),
    (['run', 'shop', '--tokenizer', 'levels=0'], '1 or more'), (['tokenize', 'shop', '--out', 'o', '--method', 'letter', '--tokenizer', 'levels=x'], 'a whole number'), (['compare', 'values.toml'], 'expected one of'),
    (['tokenize', 'shop', '--out', 'o', '--method', 'letter', '--tokenizer', 'clusters=x'], 'a whole number'), (['run', 'shop', '--set', 'columns.user=3', '--set', 'alpha=2'], 'at most 1'),
    (['run', 'no.toml'], 'no such file'), (['run', 'bad.toml'], 'bad.toml: train'), (['run', 'shop', '--vectors', 'no.npy'], 'no.npy'), (['run', 'shop', '--set', 'ids=no.json'], 'no.json'),
    (['run', 'shop', '--set', 'columns.usr=a'], "did you mean 'user'"), (['tokenize', 'nowhere', '--out', 'o', '--method', 'letter'], 'no known'), (['tokenize', 'shop', '--out', 'o'], '--method'),
    (['tokenize', 'shop', '--out', 'o', '--method', 'letter', '--tokenizer', 'clustrs=1'], "did you mean 'clusters'"), (['assign', 'nowhere', 'shop', '--out', 'x.json'], 'nowhere: no such'),
    (['recommend', 'nowhere', '--history', 'x'], 'no saved recommender'), (['recommend', 'shop', '--history', 'x'], 'no saved recommender'), (['recommend', 'shop', '--histories', 'no.csv'], 'no.csv'),
    (['recommend', 'saved', '--history', 'The red swa'], "did you mean 'The red saw'"), (['recommend', 'saved', '--history', 'The red saw', '--history', 'xyz'], 'none is near'),
    *((['recommend', 'saved', '--history', 'The red saw', *given], f'{given[0]}: for the lists of all users; give --histories') for given in (('--out', 'o.csv'), ('--format', 'csv'), ('--jobs', '2'), ('--cluster', 'tcp://x:1'))),
    (['recommend', 'saved', '--histories', 'shop/x.csv', '--explain'], '--explain: for one --history'),
    (['inspect', 'nowhere'], 'nowhere: no such'), (['inspect', 'shop', '--data', 'nowhere'], 'no known'), (['inspect', 'shop', '--kind', 'foo'], 'expected one of'), (['describe', 'nowhere'], 'no known'),
    (['compare', 'no.toml'], 'no such file'), (['compare', 'grid.toml'], "did you mean 'weightings'"), (['compare', '--report', 'nowhere'], 'nowhere: no such'), (['compare'], 'either'),
    *((['run', 'shop', *given], words) for *given, words in (
        ('--model', 'd_model=-1', 'model: d_model is -1, expected 1 or more'), ('--model', 'num_heads=0', '1 or more'), ('--model', 'd_model=30', 'cannot be shared by 4 heads'), ('--model', 'dropout=2', 'below 1'),
        ('--set', 'backbone=t5', '--model', 'd_kv=0', '1 or more'), ('--set', 'train.lr=-1', 'above 0'), ('--set', 'train.lr=nan', 'finite'), ('--set', 'train.batch_size=0', '1 or more'), ('--set', 'decode.beams=0', '1 or more'),
        ('--set', 'train.weight_decay=-1', '0 or more'), ('--trainer', 'adam_beta2=1', 'below 1'), ('--trainer', 'optim=foo', 'one of'), ('--trainer', 'bf16=False', 'true or false'), ('--identifiers', 'foo', 'a method is'),
        ('--set', 'seed=9999999999', 'at most 4294967295'), ('--tokenizer', 'size=0', '1 or more'), ('--preset', 'tiger-letter', '--model', 'num_layers=0', '1 or more'))),
    (['tokenize', 'shop', '--out', 'o', '--method', 'rqvae', '--tokenizer', 'size=0'], '1 or more'), (['tokenize', 'shop', '--out', 'o', '--method', 'rqvae', '--tokenizer', 'lr=nan'], 'finite'),
    (['compare', 'sizes.toml'], 'sizes.toml: data.toy.model: d_model is -1'), (['compare', 'trainer.toml'], 'trainer.toml: trainer: adam_beta2 is 1'),
    (['reproduce', 'foo'], 'expected one of'), (['reproduce', 'igd', '--data', 'nowhere'], 'no known'),
    # a setting without its section, or under another one; a path that is nearly right
    *((['run', 'shop', '--set', f'{given}=3'], f"did you mean '{full}'?") for given, full in dict(epochs='train.epochs', beams='decode.beams', d_model='model.d_model', levels='tokenizer.levels', bf16='trainer.bf16').items()),
    *((['run', 'shop', *given], f"did you mean '{full}'?") for *given, full in (('--set', 'model.epochs=3', 'train.epochs'), ('--set', 'train.dropout=.1', 'model.dropout'), ('--model', 'lr=1', 'train.lr'), ('--tokenizer', 'methd=letter', 'method'),
                                                                                ('--set', 'tokenizer.options.size=3', 'tokenizer.size'))),
    (['run', 'shop', '--tokenizer', 'foo=letter'], 'Known: method, levels, size,'), (['run', 'shop', '--quick', '--tokenizer', 'methd=letter'], "did you mean 'method'"), (['tokenize', 'shop', '--out', 'o', '--method', 'letter', '--tokenizer', 'foo=1'], 'Known: method, levels, size,'),
    (['run', 'shap'], "did you mean 'shop'?"), (['describe', 'ml100k'], "did you mean 'ml-100k'?"), (['run', 'shop', '--vectors', 'bad.tml'], "did you mean 'bad.toml'?"), (['inspect', 'saved/modle'], "did you mean 'saved/model'?"),
    (['recommend', 'save', '--history', 'x'], "did you mean 'saved'?"), (['compare', 'gird.toml'], "did you mean 'grid.toml'?"), (['recommend', '.', '--history', 'x'], 'there is saved'),
    # one name of a setting, with its section or without it
    *((['run', 'shop', '--set', f'{name}=2'], words) for short, words in dict(alpha='alpha is 2', rules_weight='rules_weight: found 2', assistant_weight='assistant_weight is 2').items() for name in (short, f'decode.{short}')),
    *((['recommend', 'saved', '--history', 'The red saw', '--set', f'{name}=2'], words) for short, words in dict(alpha='alpha is 2', rules_weight='rules_weight: found 2').items() for name in (short, f'decode.{short}')),
    (['recommend', 'saved', '--history', 'The red saw', '--set', 'aplha=1'], "did you mean 'alpha'"), (['recommend', 'saved', '--history', 'The red saw', '--alpha', '1'], '--set alpha=VALUE'),
    # what does not fit together in a baseline, and in the search of a grid
    (['run', 'shop', '--set', 'baselines.sasrec.heads=3'], 'baselines.sasrec: dim 32 cannot be shared by 3 heads'), (['run', 'shop', '--set', 'baselines.wide={kind="bert4rec", dim=33}'], 'baselines.wide: dim 33 cannot'),
    (['run', 'shop', '--set', 'baselines.gru4rec.dim=0'], '1 or more'), (['run', 'shop', '--set', 'baselines.sasrec.weight_decay=-1'], '0 or more'), (['compare', 'tune0.toml'], 'tune.values.igd.model: d_model 33 cannot'),
    (['compare', 'tune1.toml'], 'tune.values.igd.train: lr is -1'), (['compare', 'tune2.toml'], 'beta is 2'), (['compare', 'tune3.toml'], 'tune.values: baselines.sasrec: dim 32 cannot be shared by 5'), (['compare', 'tune4.toml'], "did you mean 'values'"),
    (['run', 'twice.toml'], 'twice.toml: alpha and decode.alpha are one setting'), (['run', 'shop', '--column', 'usr=a'], "did you mean 'user'"),
]
CODE = '''
import json, sys
from typer.testing import CliRunner
from genrec_nb.cli import app
from genrec_nb.terminal import _explain_error
said = []
for args, _ in json.loads(sys.argv[1]):
    e = CliRunner().invoke(app, args).exception
    said.append([_explain_error(e), str(e), [m for m in ('torch', 'transformers', 'sklearn') if m in sys.modules]])
json.dump(said, open('said.json', 'w'))
'''

@pytest.fixture(scope='module')
def said(tmp_path_factory):
    "What each command says, all in one process that has not imported torch"
    place = tmp_path_factory.mktemp('early')
    (place/'shop').mkdir()
    (place/'saved'/'model'/'model').mkdir(parents=True)
    for name, x in {'genrec.json': dict(format=2), 'config.json': dict(seed=0), 'index.json': {}, 'counts.safetensors': {}, 'model/config.json': dict(model_type=''), 'catalog.json': dict(ids=['1'], titles=['The red saw'], texts=[''])}.items():
        (place/'saved'/'model'/name).write_text(json.dumps(x))
    (place/'bad.toml').write_text('train.lrr = 3')
    for n, search in enumerate(('igd = { "model.d_model" = [32, 33] }', 'igd = { "train.lr" = [0.1, -1] }', 'igd = { beta = [0.1, 2] }', 'sasrec = { heads = [2, 5] }', 'x = 1')):
        (place/f'tune{n}.toml').write_text(f'data = "ml-100k"\nweightings = ["igd"]\nbaselines = ["sasrec"]\n[tune]\nseeds = [0]\n[tune.{"valeus" if n == 4 else "values"}]\n{search}')
    (place/'twice.toml').write_text('alpha = 0.1\ndecode.alpha = 0.2')
    (place/'grid.toml').write_text('data = "ml-100k"\nweighting = ["ce"]')
    (place/'values.toml').write_text('data = "ml-100k"\nweightings = ["cee"]')
    (place/'sizes.toml').write_text('[data.toy]\npath = "shop"\nmodel.d_model = -1')
    (place/'trainer.toml').write_text('data = "ml-100k"\ntrainer.adam_beta2 = 1')
    done = subprocess.run([sys.executable, '-c', CODE, json.dumps(WRONG)], cwd=place, capture_output=True, text=True)
    assert not done.returncode, done.stderr
    return json.loads((place/'said.json').read_text())

@pytest.mark.parametrize('n', range(len(WRONG)), ids=lambda n: ' '.join(WRONG[n][0]))
def test_an_error_comes_before_torch(said, n):
    explained, text, imported = said[n]
    assert explained and explained[1] == 2 and WRONG[n][1] in explained[0] and not imported, text
