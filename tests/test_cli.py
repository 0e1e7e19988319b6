"The command line: settings, one-line errors, exit codes, Ctrl-C, a full disk, lines in a log."
import errno, io, json, os, re, shutil, signal, subprocess, sys
from dataclasses import asdict
from pathlib import Path
import numpy as np
import pandas as pd
import pytest
from oracles import small_data
from rich.console import Console
from typer.testing import CliRunner
from genrec_nb.cli import app, _explain_error, main
from genrec_nb.terminal import Bars
from genrec_nb.options import _pairs, _value
from genrec_nb.core import GenrecError, SettingError, _took, plain, whole_file
from genrec_nb.recommender import GenerativeRecommender
from genrec_nb.tokenizer import load_tokenized
import genrec_nb.run as run_module
from genrec_nb.run import load_config

STORED = Path(__file__).parents[1]/'nbs'/'results'
TINY = ['--tokenizer', 'method=rqkmeans', '--tokenizer', 'encoder=tfidf', '--tokenizer', 'size=6', '--tokenizer', 'levels=2', '--model', 'd_model=16',
        '--model', 'num_heads=2', '--model', 'num_layers=1', '--set', 'train.epochs=1', '--set', 'train.batch_size=16', '--set', 'train.eval_every=1']


def invoke(*args, columns=200): return CliRunner(env={'COLUMNS': str(columns)}).invoke(app, [str(a) for a in args])

def prints(*args, **how):
    "What the command prints"
    r = invoke(*args, **how)
    assert r.exit_code == 0, r.exception or r.output
    return r.stdout

def line(*args):
    "The one line that the command ends with"
    r = invoke(*args)
    assert r.exception and not isinstance(r.exception, SystemExit), r.output
    text, code = _explain_error(r.exception)
    assert code == 2 and '\n' not in text
    return text


@pytest.fixture(scope='module', autouse=True)
def one_process():
    "Trainings one after the other"
    with pytest.MonkeyPatch.context() as m:
        m.setattr(run_module.os, 'cpu_count', lambda: 1)
        yield

@pytest.fixture(scope='module')
def toy(tmp_path_factory): return small_data(tmp_path_factory.mktemp('cli')/'toy')

@pytest.fixture(scope='module')
def finished(toy):
    out = toy.parent/'out'
    return out, prints('run', toy, *TINY, '--out', out)

@pytest.fixture
def seen(monkeypatch):
    "What `run` is called with, without running"
    calls = []
    def fake(config, folder, resume, progress, **how): calls.append((config, Path(folder), resume, how)); raise GenrecError('enough')
    monkeypatch.setattr(run_module, 'run', fake)
    return calls


# ---- settings -----------------------------------------------------------------------------------------------------

@pytest.mark.parametrize('text, value', [('1e-3', .001), ('3', 3), ('true', True), ('[64, 32]', [64, 32]), ('shop', 'shop'), ('"3"', '3'), ('a b', 'a b'), ('', ''), ('sasrec.npy', 'sasrec.npy')])
def test_values_are_toml_or_words(text, value): assert _value(text) == value and type(_value(text)) is type(value)

@pytest.mark.parametrize('given, words', [(['lr'], 'expected NAME=VALUE'), (['=3'], 'expected NAME=VALUE'), (['a=1', 'a=2'], 'more than once'), (['max-items=1', 'max_items=2'], 'more than once')])
def test_pairs_that_cannot_be(given, words):
    with pytest.raises(SettingError, match=words): _pairs(given, '--set')

def test_options_are_settings(seen, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path/'shop').mkdir()                                                # a data set that is there: names are looked up before anything is imported
    line('run', 'shop', '--set', 'train.lr=1e-3', '--set', 'seed=3', '--tokenizer', 'method=letter', '--tokenizer', 'levels=4', '--tokenizer', 'clusters=8',
         '--model', 'd-model=32', '--trainer', 'report_to=tensorboard', '--device', 'cpu', '--out', tmp_path/'o')
    (config, folder, resume, how), = seen
    assert (config.data, config.train.lr, config.seed, config.model['d_model'], config.trainer) == ('shop', 1e-3, 3, 32, {'report_to': 'tensorboard'})
    assert (config.tokenizer.method, config.tokenizer.levels, config.tokenizer.options) == ('letter', 4, {'clusters': 8})
    assert (folder, resume, how) == (tmp_path/'o', False, {'device': 'cpu'})

def test_a_file_of_settings_and_changes(seen, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path/'shop').mkdir()
    (tmp_path/'c.toml').write_text('data = "shop"\nalpha = 0.5\n[train]\nlr = 0.1\nepochs = 7\n')
    line('run', tmp_path/'c.toml', '--set', 'train.lr=1e-3')
    assert (seen[0][0].data, seen[0][0].alpha, seen[0][0].train.lr, seen[0][0].train.epochs) == ('shop', .5, 1e-3, 7)

def test_folders_of_runs(seen, tmp_path, monkeypatch):
    "A new name for a new run; the newest for --resume, with the settings that it wrote"
    monkeypatch.chdir(tmp_path)
    (tmp_path/'shop').mkdir()
    for n in ('shop', 'shop-2', 'other'): (tmp_path/'runs'/n).mkdir(parents=True); (tmp_path/'runs'/n/'config.toml').write_text(f'data = "{n}"\nalpha = 0.5')
    os.utime(tmp_path/'runs'/'other'/'config.toml', (1, 1)); os.utime(tmp_path/'runs'/'shop'/'config.toml', (2, 2))
    line('run', 'shop'); line('run', 'shop', '--quick'); line('run', '--resume'); line('run', '--resume', '--out', 'runs/other')
    assert [str(f) for _, f, _, _ in seen] == ['runs/shop-3', 'runs/shop-quick', 'runs/shop-2', 'runs/other']
    assert [(c.data, c.alpha, r) for c, _, r, _ in seen[2:]] == [('shop-2', .5, True), ('other', .5, True)]

@pytest.mark.parametrize('args, words', [
    (['run', '--epochs', 3], '--set train.epochs=N'), (['run', '--data', 'x'], 'genrec run DATA'), (['run', '--ids', 'tree'], '--tokenizer method=NAME'),
    (['run', '--option', 'a=1'], '--tokenizer NAME=VALUE'), (['run', '--alpha=.2'], '--set alpha=VALUE'), (['recommend', 'x', '--alpha', '.2'], '--set alpha=VALUE'), (['run', '--train', 'lr=1'], '--set train.NAME=VALUE'),
    (['tokenize', 'x', '--levels', 3], '--tokenizer levels=VALUE'), (['tokenize', 'x', '--option', 'a=1'], '--tokenizer NAME=VALUE'),
])
def test_former_options_are_refused_with_the_new_spelling(args, words):
    old = next(str(a) for a in args if str(a).startswith('--')).partition('=')[0]
    assert f'genrec {args[0]} has no option {old}: instead write ' in line(*args) and words in line(*args)


# ---- a run --------------------------------------------------------------------------------------------------------

def test_a_run_prints_its_table_and_writes_its_settings(finished, seen, tmp_path, monkeypatch):
    out, text = finished
    metrics = json.loads((out/'metrics.json').read_text())
    said = [v for vs in metrics['verdicts'].values() for v in vs]
    assert said and any(v['says'] in text for v in said) and all(n in text for n in metrics['verdicts']) and 'stand' in (out/'report.html').read_text()
    assert all(m in text for m in metrics['methods']) and f'★ {metrics["chosen"]}' in text and 'zero-gain' in text
    assert metrics['below_baseline'] in text.replace('\n', ' ')
    assert f'<b>{_took(sum(metrics["seconds"].values()))}</b>time of all stages' in (out/'report.html').read_text()    # as the console names it
    assert f'{metrics["methods"]["children softmax"]["ndcg@10"]:.4f}'.removeprefix('0') in text
    line('run', out/'config.toml', '--out', tmp_path/'again')
    line('run', '--resume', '--out', out)
    assert [asdict(c) for c, *_ in seen] == [asdict(load_config(out/'config.toml'))]*2 and metrics['config'] == plain(seen[0][0].to_dict())
    names = [l.partition(' =')[0] for l in (out/'config.toml').read_text().splitlines()]
    assert [names.count(n) for n in ('alpha', 'rules_weight', 'assistant_weight')] == [1, 1, 1]
    line('run', out/'config.toml', '--set', 'decode.rules_weight=0', '--set', 'decode.alpha=.3', '--column', 'user=who', '--column', 'time=', '--out', tmp_path/'again')
    assert (seen[-1][0].rules_weight, seen[-1][0].alpha, seen[-1][0].columns) == (0, .3, dict(user='who', time=''))
    monkeypatch.undo()
    assert 'other settings (alpha: 0.3, was ' in line('run', out/'config.toml', '--set', 'alpha=0.3', '--resume', '--out', out)

def test_recommend_and_inspect(finished, toy):
    out, _ = finished
    ids = lambda *a: [l.split()[-2] for l in prints('recommend', out, '--history', 'Item 3', '-k', '40', *a).splitlines() if 'Item' in l]
    assert '3' in ids('--set', 'decode.exclude_seen=false') and '3' not in ids()
    text = prints('recommend', out, '--history', 'Item 3', '--history', 'item 5', '-k', '4', '--explain', '--set', 'alpha=.1', '--device', 'cpu')
    assert text.count('Item ') >= 4 and 'Explanation' in text and 'such as' in text
    said = [x in text for x in ('α = 0.1', 'decided', ' leads by ')] # of one identifier, or of several: it leads, or another item does
    assert any(said) and said[1] == ('lead over' in text)
    assert '40 items, 3 tokens an item' in prints('inspect', out/'tokenizer'/'index.json', '--data', toy) and 'zero-gain' in prints('inspect', out)
    text = prints('inspect', out/'tokenizer'/'index.json', '--data', toy, '--top', 1)
    assert 'most decisive' in text and 'most decisive' not in prints('inspect', out) and 'Item ' in text.split('most decisive')[1]
    first = GenerativeRecommender.from_pretrained(out).ids.names(3)[0]
    text = prints('inspect', out, '--prefix', first).split('stands for')[1]
    assert first in text and 'such as' in text and 'Item ' in text and 'none of the' in line('inspect', out, '--prefix', 'nothing')
    assert 'did you mean' in line('recommend', out, '--history', 'Itm 3') and prints('--version').startswith('genrec_nb ')

def test_items_out_of_stock_are_left_out(finished, tmp_path):
    "By id, by title and as a file of both; unknown ones and other files are refused before torch"
    out, _ = finished
    listed = lambda *a: {l.split()[-2] for l in prints('recommend', out, '--history', 'Item 3', '-k', '40', *a).splitlines() if 'Item' in l}
    (tmp_path/'gone.txt').write_text('\ufeff5\r\n\r\nItem 8\r\n', encoding='utf-8')
    assert listed() - listed('--without', tmp_path/'gone.txt', '--without', 'Item 9') == {'5', '8', '9'}
    assert 'did you mean' in line('recommend', out, '--history', 'Item 3', '--without', 'Itm 5')
    assert 'no title is' in line('recommend', out, '--history', 'Item 3', '--without', 'x'*300)
    assert '--history A --history B' in ' '.join(invoke('recommend', out, '--history', 'Item 3', 'Item 5').output.replace('│', ' ').split())
    (tmp_path/'gone.bin').write_bytes(b'\xff\xfe\x00')
    assert 'cannot be read as UTF-8 text, an item a line' in line('recommend', out, '--history', 'Item 3', '--without', tmp_path/'gone.bin')

def test_more_items_than_the_catalog_has(finished, tmp_path):
    "One history: what there is, and why no more; a file of histories: a line, and lists of the rest"
    out, _ = finished
    r = invoke('recommend', out, '--history', 'Item 3', '-k', 50)
    assert r.exit_code == 0 and r.stdout.count('Item ') == 39 and '39 of 50 items: the catalog has 40 items, and 1 of them in the history' in r.stderr
    (tmp_path/'two.csv').write_text('user,item\nu,3\nv,3\nv,5\n')
    r = invoke('recommend', out, '--histories', tmp_path/'two.csv', '-k', 50, '--out', tmp_path/'lists.json')
    lists = {x['user']: x['items'] for x in map(json.loads, (tmp_path/'lists.json').read_text().splitlines())}
    assert '-k is 50, and the catalog has 40 items' in r.stderr and '2 users, 0 of them without' in r.stdout
    assert {u: (len(x), len({*x})) for u, x in lists.items()} == dict(u=(39, 39), v=(38, 38)) and not {'3', '5'} & {*lists['v']}

def test_no_igd_decoding_is_said(toy, tmp_path, monkeypatch):
    "Before anything is trained"
    def enough(*_): raise GenrecError('enough')
    monkeypatch.setattr(run_module, '_make_identifiers', enough)
    said = 'alpha is 0: rows of IGD decoding repeat the others'
    for alpha in (0, .1):
        r = invoke('run', toy, *TINY, '--set', f'alpha={alpha}', '--out', tmp_path/str(alpha))
        assert str(r.exception) == 'enough' and (said in r.stderr) == (alpha == 0)

def test_mistakes_are_one_line_and_make_no_folder(finished, toy, tmp_path):
    def run(*a): return line('run', *a, '--out', tmp_path/'o')
    (tmp_path/'bad').mkdir(); (tmp_path/'bad'/'bad.inter.json').write_text('{"0": [1, 2,\n ]}'); (tmp_path/'bad'/'bad.item.json').write_text('{}')
    pd.DataFrame(dict(user=[1], thing=[2])).to_csv(tmp_path/'x.csv', index=False)
    pd.DataFrame(dict(item=[2], title=['two'])).to_csv(tmp_path/'items.csv', index=False)
    assert 'line 2' in run(tmp_path/'bad') and "'item'" in run(tmp_path/'x.csv') and 'no known data set' in run('nowhere')
    (tmp_path/'log').mkdir(); pd.DataFrame(dict(who=[1, 1, 1], what=[2, 3, 4], when=[1, 2, 3])).to_csv(tmp_path/'log'/'log.csv', index=False)
    advice = run(tmp_path/'log').partition('in Python: ')[2]                  # whole, however long the line is; and it runs
    for short, full in dict(FILE=str(tmp_path/'log'/'log.csv'), WHO='who', WHAT='what', WHEN='when').items(): advice = advice.replace(short, full)
    exec(advice.replace('interactions.csv', f'{tmp_path}/log/interactions.csv')); (tmp_path/'log'/'log.csv').unlink()
    assert len(prints('describe', tmp_path/'log', '--out', tmp_path/'d.html'))
    assert 'no run to resume' in line('run', toy, '--resume', '--out', tmp_path/'o') and 'holds a run already; genrec run --resume' in line('run', toy, '--out', finished[0])
    (tmp_path/'mine').mkdir(); (tmp_path/'mine'/'x').write_text('x')
    assert 'exists and is no run' in line('run', toy, '--out', tmp_path/'mine') and 'is a file' in line('run', toy, '--out', tmp_path/'mine'/'x')
    assert 'epochs is 0' in run(toy, '--set', 'train.epochs=0') and "did you mean 'lr'" in run(toy, '--set', 'train.lrr=1') and 'alpha is 2' in run(toy, '--set', 'alpha=2')
    assert "did you mean 'weighting'" in run(toy, '--set', 'weigthing=fg') and "did you mean 'igd'" in run(toy, '--set', 'weighting=igdd')
    assert "did you mean 'd_model'" in run(toy, '--model', 'dmodel=3') and '--model d_model: expected NAME=VALUE' in run(toy, '--model', 'd_model')
    assert "did you mean 'steps'" in run(toy, '--tokenizer', 'step=3') and 'user' in run(toy, '--set', 'columns.usr=u')
    assert '--device' in run(toy, '--device', 'tpu') and 'no such file' in run('nowhere.toml') and 'no such file' in run(toy, '--set', 'ids=nope')
    table = json.loads((finished[0]/'tokenizer'/'index.json').read_text())
    table.pop('7'); (tmp_path/'short.json').write_text(json.dumps(table))
    assert "'7'" in run(toy, '--set', f'ids={tmp_path}/short.json', *TINY[8:])
    assert not (tmp_path/'o').exists()

def test_bad_lines_are_left_out_by_every_command(tmp_path):
    "And their number is in the console, in metrics.json and on the page; by default each command refuses them"
    rows = [f'u{u},{(u + 3*t) % 9},{10*u + t}\n' for u in range(20) for t in range(6)]
    (tmp_path/'reviews.csv').write_text('user,item,time\n' + ''.join(rows[:50] + ['u1,2,3,4\n', 'u1,2,soon\n'] + rows[50:]))
    (tmp_path/'items.csv').write_text('item,title\n' + ''.join(f'{i},Thing {i}\n' for i in range(9)))
    (tmp_path/'out').mkdir()
    commands = dict(run=[*TINY[:6], *TINY[8:], '--tokenizer', 'levels=2'], describe=[], tokenize=['--method', 'random', '--tokenizer', 'size=8'])
    for name, args in commands.items():
        out, skip = tmp_path/'out'/f'{name}.html', ['--set', 'bad_lines=skip'] if name == 'run' else ['--skip-bad-lines']
        refusal = line(name, tmp_path/'reviews.csv', *args, '--out', out)
        assert 'reviews.csv, line 52: expected at most 3 values as in the head' in refusal and ' '.join(skip) in refusal and not out.exists()
        r = invoke(name, tmp_path/'reviews.csv', *args, *skip, '--out', out)
        assert r.exit_code == 0, r.exception or r.output
        page = out if out.is_file() else out/'report.html'
        assert 'reviews.csv: 2 bad lines were left out' in ' '.join(r.output.split()) and 'reviews.csv: 2 bad lines were left out' in page.read_text(), name
    said = json.loads((tmp_path/'out'/'run.html'/'metrics.json').read_text())['notes'], json.loads((tmp_path/'out'/'tokenize.html'/'report.json').read_text())['data_notes']
    assert all(any('2 bad lines' in n for n in notes) for notes in said)
    assert '--set bad_lines=skip' in line('run', tmp_path/'reviews.csv', '--skip-bad-lines')


# ---- how it ends --------------------------------------------------------------------------------------------------

def test_a_mistake_ends_the_process_with_one_line(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, 'argv', ['genrec', 'run', 'nowhere', '--out', str(tmp_path/'o')])
    with pytest.raises(SystemExit) as end: main()
    assert end.value.code == 2 and capsys.readouterr().err.strip() == 'genrec: nowhere: no known data set (ml-100k), no folder and no table'

def test_a_run_that_is_not_there_is_missed_before_anything_is_loaded(tmp_path, monkeypatch):
    monkeypatch.setattr(run_module, 'load_config', None)
    e = invoke('run', '--resume', '--out', tmp_path/'nix').exception
    assert isinstance(e, GenrecError) and f'{tmp_path}/nix: there is no run to resume' in str(e)

def test_ctrl_c_ends_with_130_and_a_hint(toy, tmp_path, monkeypatch):
    def interrupted(*args, **kwargs): raise KeyboardInterrupt
    monkeypatch.setattr(run_module, 'run', interrupted)
    r = invoke('run', toy, '--out', tmp_path/'o')
    assert r.exit_code == 130 and f'stopped; `genrec run --resume --out {tmp_path}/o` continues' in r.stderr.replace('\n', '')

def test_a_kill_ends_as_ctrl_c_does_and_leaves_nothing(toy, tmp_path, monkeypatch, capsys):
    def killed(*args, **kwargs):
        with whole_file(tmp_path/'o'/'lists.csv') as part:
            part.write_text('half')
            signal.raise_signal(signal.SIGTERM)
    monkeypatch.setattr(run_module, 'run', killed)
    monkeypatch.setattr(sys, 'argv', ['genrec', 'run', str(toy), '--out', str(tmp_path/'o')])
    before = signal.getsignal(signal.SIGTERM)
    try:
        with pytest.raises(SystemExit) as end: main()
    finally: signal.signal(signal.SIGTERM, before)
    assert end.value.code == 130 and 'stopped; `genrec run --resume' in capsys.readouterr().err and not [*(tmp_path/'o').iterdir()]

def test_a_full_disk_ends_with_3(toy, tmp_path, monkeypatch):
    def full(*args, **kwargs): raise OSError(errno.ENOSPC, 'No space left on device', 'x.json')
    monkeypatch.setattr(run_module, 'run', full)
    text, code = _explain_error(invoke('run', toy, '--out', tmp_path/'o').exception)
    assert 'disk is full (x.json)' in text and '--resume' in text and '\n' not in text and code == 3

def test_a_fault_of_ours_keeps_its_traceback(): assert _explain_error(ZeroDivisionError()) is None

def test_warnings_are_lines_on_the_error_stream(tmp_path):
    data = small_data(tmp_path/'toy')
    items = json.loads((data/'toy.item.json').read_text()); items['3']['title'] = ''
    (data/'toy.item.json').write_text(json.dumps(items))
    r = invoke('tokenize', data, '--method', 'random', '--tokenizer', 'size=8', '--out', tmp_path/'o')
    assert r.exit_code == 0 and "genrec: " in r.stderr and "1 item has an empty title, the first is '3'" in r.stderr and 'done: all stages took' in r.stderr, r.stderr
    assert 'collision rate' in r.stdout and 'title' not in r.stdout

def test_tokenize_says_what_its_vectors_come_from(toy, tmp_path):
    "How many items share a text, before the figures that follow from it; or which file was read, and how"
    how = ['--method', 'rqkmeans', '--tokenizer', 'size=6', '--tokenizer', 'levels=2']
    shutil.copytree(toy, tmp_path/'toy')
    items = json.loads((toy/'toy.item.json').read_text())
    for n in range(10): items[str(n)].update(title='Soap', description='a soap')
    (tmp_path/'toy'/'toy.item.json').write_text(json.dumps(items))
    r = invoke('tokenize', tmp_path/'toy', *how, '--tokenizer', 'encoder=tfidf', '--out', tmp_path/'o')
    assert '10 of 40 items share their text with another' in r.stderr and '10 of 40 items share their text vector with another, as items with one text do' in r.stdout and '22.5%' in r.stdout
    assert 'made without interactions' in r.stdout and re.search(r'done: all stages took (\d+ s|\d+\.\d minutes), (\d+ s|\d+\.\d minutes) with loading; ', r.stderr)
    x = np.random.default_rng(0).normal(size=(40, 5)).astype(np.float32)
    np.save(tmp_path/'x.npy', x)
    pd.DataFrame(dict(id=[*items], v=[*x])).to_parquet(tmp_path/'x.parquet')
    for n, (file, method, words) in enumerate((('x.npy', how, 'x.npy: vectors of 5 numbers, row i for item i of 40 items'), ('x.parquet', how, 'x.parquet: vectors of 5 numbers, all 40 items matched by id'),
                                               ('x.npy', ['--method', 'item'], 'x.npy: not used, item reads no texts and no vectors'))):
        r = invoke('tokenize', tmp_path/'toy', *method, '--vectors', tmp_path/file, '--out', tmp_path/f'o{n}')
        assert words in r.stderr.replace('\n', ' ') and 'text' not in r.stderr.replace('no texts', '').replace('test', '') and 'text' not in r.stdout, r.stderr

def test_the_time_is_that_of_the_process():
    "Imports count; seconds below two minutes"
    assert [_took(s) for s in (.4, 2.6, 119, 120, 186)] == ['0 s', '3 s', '119 s', '2.0 minutes', '3.1 minutes']
    code = 'import time; time.sleep(2); from genrec_nb.terminal import _since_start; print(_since_start())'
    assert int(subprocess.run([sys.executable, '-c', code], capture_output=True, text=True).stdout.split()[0]) >= 2

def test_stages_are_lines_where_there_is_no_terminal():
    text, page = io.StringIO(), io.StringIO()
    with Bars(Console(file=text)) as bars:
        bars.stage('first'); bars.stage('first', 3); bars.advance(2)
        assert text.getvalue() == 'first\n'                                    # as it happens
        bars.stage('second')
    assert text.getvalue() == 'first\nsecond\n'
    with Bars(Console(file=page, force_terminal=True)) as bars: bars.stage('first', 3)
    assert '━' in page.getvalue()

def test_help_imports_nothing_large():
    names = [c.name for c in app.registered_commands]
    code = f"import sys; from typer.testing import CliRunner; from genrec_nb.cli import app; assert all(CliRunner().invoke(app, [n, '--help']).exit_code == 0 for n in {names})"
    code += "; print(sorted({'torch', 'numpy', 'pandas', 'transformers', 'sklearn'} & set(sys.modules)))"
    code += "; import genrec_nb.data_facts, genrec_nb.report; print(sorted({'torch', 'sklearn', 'transformers'} & set(sys.modules)))"   # for `genrec describe`
    code += "; import genrec_nb.run; print(sorted({'sklearn', 'scipy.stats'} & set(sys.modules)))"   # a second each, for every worker
    assert subprocess.run([sys.executable, '-c', code], capture_output=True, text=True).stdout == '[]\n'*3
    for name in names: assert invoke(name, '--help').output.count('--') <= 14

@pytest.mark.parametrize('columns', [30, 40, 60, 80])
def test_help_cuts_no_name(columns):
    "Every option of every command stands there whole; run says where a quick run goes"
    import typer
    for name, command in typer.main.get_command(app).commands.items():
        text = invoke(name, '--help', columns=columns).output
        assert {o for p in command.params for o in p.opts if o[0] == '-'} <= {*text.replace('│', ' ').split()} and '…' not in text, name
    assert 'runs/NAME-quick' in ' '.join(invoke('run', '--help').output.replace('│', ' ').split())

def test_wrong_options_and_files_of_recommend_are_said_before_anything_large_is_imported(finished, tmp_path):
    "Options and the model's own files without pandas and the Hub's client, histories without torch"
    model, good, bad = tmp_path/'m', tmp_path/'good.csv', tmp_path/'bad.csv'
    shutil.copytree(finished[0]/'model', model)
    good.write_text('user,item\nu,3\n'), bad.write_text('a,b\nu,3\n')
    def broken(part):
        shutil.copytree(model, tmp_path/part)
        (tmp_path/part/part).write_text('{}')
        return tmp_path/part
    some = ['--histories', good]
    small = [([model, *some, '--set', 'beam=3'], "did you mean 'beams'"), ([model, *some, '--set', 'alpha=7'], 'alpha is 7'), ([model, *some, '--format', 'cvs'], "did you mean 'csv'"), ([model, *some, '--device', 'tpu'], '--device'),
             ([model, *some, '--column', 'usr=a'], "did you mean 'user'"), ([model, '--histories', tmp_path/'nowhere.csv'], 'no such file'), ([tmp_path/'nowhere', *some], 'no saved recommender'),
             *(([broken(p), *some], p) for p in ('genrec.json', 'config.json', 'catalog.json'))]
    large = [([model, '--histories', bad], '--column user=NAME'), ([model, '--history', 'Itm 3'], 'did you mean'), ([model, *some, '--out', good], 'exists')]
    code = 'import sys; from typer.testing import CliRunner; from genrec_nb.cli import app\n'
    for cases, without in ((small, ['torch', 'pandas', 'transformers', 'huggingface_hub', 'sklearn']), (large, ['torch', 'transformers', 'sklearn'])):
        code += ''.join(f"print(CliRunner().invoke(app, {['recommend', *map(str, args)]}).exception)\n" for args, _ in cases) + f"print(sorted(set({without}) & set(sys.modules)))\n"
    said = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True).stdout.splitlines()
    for (_, words), text in zip([*small, (0, '[]'), *large, (0, '[]')], said, strict=True): assert words in text, (words, text)


# ---- any width ----------------------------------------------------------------------------------------------------

TABLES = {
    'run': lambda out, toy, new: ['run', toy, '--out', new],                # its figures are those of `finished`
    'tokenize': lambda out, toy, new: ['tokenize', toy, '--method', 'random', '--tokenizer', 'size=8', '--out', new],
    'assign': lambda out, toy, new: ['assign', out/'tokenizer', toy.parent/'more.json', '--out', new/'t.json'],
    'recommend': lambda out, toy, new: ['recommend', out, '--history', 'Item 3'],
    'explain': lambda out, toy, new: ['recommend', out, '--history', 'Item 3', '--explain'],
    'inspect': lambda out, toy, new: ['inspect', out, '--top', 2],
    'prefix': lambda out, toy, new: ['inspect', out, '--prefix', ''],
    'compare': lambda out, toy, new: ['compare', '--report', STORED/'likelihood-scientific.jsonl', '--out', new/'r.html'],
    'reproduce': lambda out, toy, new: ['reproduce'],
    'describe': lambda out, toy, new: ['describe', toy, '--out', new/'d.html'],
}

@pytest.mark.parametrize('name', TABLES)
def test_tables_keep_names_and_figures_at_any_width(name, finished, toy, tmp_path, monkeypatch):
    from genrec_nb.experiments import grid_report
    from genrec_nb.pages import Page
    monkeypatch.setattr(run_module, 'run', lambda *a, **k: json.loads((finished[0]/'metrics.json').read_text()))
    monkeypatch.setattr(grid_report, 'results_page', lambda rows: Page(''))   # its plots take a minute
    (toy.parent/'more.json').write_text(json.dumps({f'n{i}': dict(title=f'a rather long title of the new thing {i}', description='color 1') for i in range(3)}))
    def words(n): return {w for w in prints(*TABLES[name](finished[0], toy, tmp_path/f'{n}'), columns=n).split() if '─' not in w}
    wide = words(300)
    for n in (80, 40, 30): assert wide <= words(n), n

@pytest.mark.parametrize('columns', ['0', '1', '-5', 'x', ''])
def test_a_width_that_is_none_hides_nothing(columns):
    text = prints('reproduce', columns=columns)
    assert all(w in text for w in ('letter-ablation', 'minutes', '700', 'Industrial'))


# ---- grids --------------------------------------------------------------------------------------------------------

def test_compare(toy, tmp_path, monkeypatch):
    from genrec_nb.experiments import execution, grid_report
    (tmp_path/'g.toml').write_text(f'seeds = [0]\nweightings = ["ce"]\n[data.toy]\npath = "{toy}"\n[ids.km]\nmethod = "rqkmeans"\nencoder = "tfidf"\nlevels = 2\nsize = 6\n')
    assert 'to do' in prints('compare', tmp_path/'g.toml', '--out', tmp_path/'o', '--dry-run') and not (tmp_path/'o').exists()
    calls = []
    class Made:
        def save(self, path): calls.append(path); return path
    monkeypatch.setattr(execution, 'run_grid', lambda *a: calls.append(a) or 'rows')
    monkeypatch.setattr(grid_report, '_summary_parts', lambda rows: [f'the {rows}'])
    monkeypatch.setattr(grid_report, 'results_page', lambda rows: Made())
    assert prints('compare', tmp_path/'g.toml', '--out', tmp_path/'o', '--jobs', 2, '--device', 'cpu') == 'the rows\n'
    (grid, out, jobs, cluster, device, _), page = calls
    assert grid.seeds == [0] and (out, jobs, cluster, device) == (tmp_path/'o', 2, None, 'cpu') and page == tmp_path/'o'/'report.html'
    (tmp_path/'bad.json').write_text('{"data": ["ml-100k"],\n "alphas": [0,]}'); (tmp_path/'typo.json').write_text('{"data": "ml-100k", "weigthings": ["ce"]}')
    assert 'name either' in line('compare') and 'no such file' in line('compare', '--report', tmp_path/'nowhere') and 'no such file' in line('compare', 'nowhere.toml')
    assert 'line 2' in line('compare', tmp_path/'bad.json') and "did you mean 'weightings'" in line('compare', tmp_path/'typo.json')


# ---- language models ----------------------------------------------------------------------------------------------

@pytest.fixture(scope='module')
def lm(tmp_path_factory):
    "A data set with titles of more than eight tokens, and a tiny language model in a folder"
    from genrec_nb.backbones import tiny_llama
    base, rng, words = tmp_path_factory.mktemp('lm'), np.random.default_rng(0), 'red blue steel wood long short'.split()
    titles = [f'the {rng.choice(words)} {rng.choice(words)} item number {i} of this <shop>' for i in range(30)]
    rows = [(u, i, 1000*t + u) for u in range(30) for t, i in enumerate(rng.permutation(30)[:rng.integers(4, 9)])]
    (base/'shop').mkdir()
    pd.DataFrame(rows, columns=['user', 'item', 'time']).to_csv(base/'shop'/'interactions.csv', index=False)
    pd.DataFrame(dict(item=range(30), title=titles)).to_csv(base/'shop'/'items.csv', index=False)
    for part in tiny_llama(titles[:6], 300): part.save_pretrained(base/'tiny')
    return base

def llm(lm): return ['--set', 'backbone=llm', '--set', 'weighting=ce', '--model', f'base={lm}/tiny', '--model', 'r=4', '--model', 'max-items=4',
                     '--set', 'train.epochs=1', '--set', 'train.samples_per_epoch=32', '--set', 'train.eval_users=8']

def test_a_language_model_generates_titles(lm):
    out = lm/'out'
    assert 'CE + IGD decoding' in prints('run', lm/'shop', '--tokenizer', 'method=title', *llm(lm), '--model', 'max_tokens=150', '--set', 'users=10', '--out', out)
    m, page = json.loads((out/'metrics.json').read_text()), (out/'report.html').read_text()
    assert m['prompts']['prompts'] == 2*m['users'] == 20 and m['prompts']['items'] >= m['prompts']['shortened'] > 0 and 0 < m['zero_gain_share'] < 1
    ids = load_tokenized(out/'tokenizer').ids
    assert ids.kind == 'titles' and GenerativeRecommender.from_pretrained(out/'model').ids == ids and '<shop>' not in page and 'class="strip"' in page
    text = prints('recommend', out, '--history', '3', '--history', '4', '-k', '2', '--explain')
    assert 'item number' in text and '⏎∎' in text and 'zero-gain' in prints('inspect', out/'tokenizer')

def test_mistakes_about_language_models_make_no_folder(lm, tmp_path):
    def run(*a): return line('run', lm/'shop', '--out', tmp_path/'o', *a)
    title = ['--set', 'backbone=llm', '--tokenizer', 'method=title']
    base = ['--model', f'base={lm}/tiny']
    assert "backbone is 'lmm'" in run('--set', 'backbone=lmm') and "did you mean 'max_items'" in run('--set', 'backbone=llm', '--model', 'max_itms=3')
    assert 'there is no room for one; ' in run(*title, *base, '--model', 'max_tokens=60') and "dtype is 'float99'" in run(*title, *base, '--model', 'dtype=float99')
    assert 'no/such/model' in run('--set', 'backbone=llm', '--model', 'base=no/such/model') and 'is no regular expression' in run(*title, *base, '--tokenizer', 'drop=(')
    assert 'leaves nothing of 30 titles' in run(*title, *base, '--tokenizer', 'drop=.*') and "backbone 'llm'" in run('--tokenizer', 'method=title')
    assert not (tmp_path/'o').exists()


@pytest.mark.parametrize('args, message', [(['--set', 'decode.alpha=.3', '--set', 'alpha=.1'], 'alpha is given twice, as 0.3 and as 0.1'),
                                           (['--set', 'data=elsewhere'], "data is given twice, as 'elsewhere' and as 'shop'")])
def test_one_setting_given_twice(args, message, capsys, monkeypatch):
    "By two names, or as an argument, too: said, not decided by the order"
    monkeypatch.setattr(sys, 'argv', ['genrec', 'run', 'shop', *args])
    with pytest.raises(SystemExit) as e: main()
    assert e.value.code == 2 and message in capsys.readouterr().err


def test_a_point_before_the_digits():
    "As TOML writes it and as people do"
    from genrec_nb.options import _pairs
    assert _pairs(['a=.5', 'b=[.5, 1, -.25]', 'c=x.5', 'd=1.5'], '--set') == dict(a=.5, b=[.5, 1, -.25], c='x.5', d=1.5)
