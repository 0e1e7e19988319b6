"The main job: killed, out of disk, resumed; leaks; the command line's errors."
import errno, json, os, shutil, signal, subprocess, sys, time
from dataclasses import asdict, replace
from pathlib import Path
import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner
from genrec_nb.cli import app, explain_error
from genrec_nb.sequential_baselines import load_ranker
from genrec_nb.core import GenrecError
from genrec_nb.data import leave_one_out
from genrec_nb.loaders import load_dataset
from genrec_nb.metrics import evaluate_ranking, ranking_metrics
from genrec_nb.recommender import GenerativeRecommender, RecommenderConfig
import genrec_nb.run as run_module
from genrec_nb.run import METHODS, RunConfig, load_run_data, open_run, run_job
from genrec_nb.tokenizer import load_tokenized, tokenize_items
from genrec_nb.train import TrainConfig

GENREC = [sys.executable, '-c', 'from genrec_nb.cli import main; main()']


def small_data(folder, users=80, items=40, seed=0, text=True):
    "A made-up data set in the JSON layout: users walk through the catalogue, a few are too short to be evaluated"
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    walk = lambda u: list(dict.fromkeys(int(i) for i in (rng.integers(items) + np.cumsum(rng.integers(1, 4, rng.integers(6, 14)))) % items))
    inter = {str(u): walk(u) if u > 2 else [u, u + 1] for u in range(users)}
    (folder/f'{folder.name}.inter.json').write_text(json.dumps(inter))
    if text: (folder/f'{folder.name}.item.json').write_text(json.dumps({str(i): dict(title=f'Item {i}', description=f'colour {i % 5} shape {i % 7} size {i % 3}') for i in range(items)}))
    return folder


def small_config(data, **changes):
    r = RecommenderConfig(tokenizer=dict(method='rqkmeans', encoder='tfidf', size=6, levels=2), model=dict(d_model=16, num_heads=2, num_layers=1), train=TrainConfig(epochs=4, batch_size=16, lr=5e-3, eval_every=1))
    return RunConfig(str(data), recommender=r, **changes)


@pytest.fixture(scope='module')
def finished(tmp_path_factory):
    "A finished small run: (data folder, run folder, metrics)"
    base = tmp_path_factory.mktemp('run')
    data = small_data(base/'toy')
    return data, base/'out', run_job(small_config(data), base/'out')


def test_a_run_leaves_what_it_promises(finished):
    data, folder, metrics = finished
    stored = json.loads((folder/'metrics.json').read_text())
    assert stored == json.loads(json.dumps(metrics))
    assert list(stored['methods']) == ['popularity', *METHODS] and stored['users'] == 77 and stored['skipped_users'] == 3
    for m in stored['methods'].values():
        for x in ('recall', 'ndcg', 'mrr'):
            for k in (1, 5, 10, 20):
                lo, hi = m['intervals'][f'{x}@{k}']
                assert lo - 1e-9 <= m[f'{x}@{k}'] <= hi + 1e-9
        assert {'head/recall@10', 'tail/recall@10', 'coverage@10'} <= set(m)
    assert {'versions', 'config', 'seed', 'seconds', 'zero_gain_share', 'collisions_before'} <= set(stored)
    page = (folder/'report.html').read_text()
    assert page.count('class="card"') == 5 and 'src="http' not in page and '<link' not in page and '<script' not in page
    best = max(METHODS, key=lambda k: stored['methods'][k]['valid_ndcg@10'])
    assert stored['chosen'] == best
    assert GenerativeRecommender.from_pretrained(folder/'model').config.decode.alpha == stored['methods'][best]['alpha']


def test_a_sasrec_advises_and_some_users_are_tested(finished, tmp_path):
    "Rows of D3: by hand from the saved model and the saved adviser; what is saved recommends alone"
    data, before, _ = finished
    config, out = small_config(data, assistant_weight=.5, users=20), tmp_path/'out'
    got = run_job(config, out)
    ways = lambda t: [n for n, (training, _) in METHODS.items() if training == t]
    assert list(got['methods']) == ['popularity', 'SASRec', *(x for t in ('ce', 'igd') for x in (*ways(t), *(f'{n} + SASRec' for n in ways(t))))]
    assert got['users'] == 20 and got['chosen'] in METHODS and {n for n, m in got['methods'].items() if m['assistant_weight']} == {f'{n} + SASRec' for n in METHODS}
    _, split = load_run_data(config)
    cases, valid, rec, adviser = split.test.sample(20, 0), split.valid.sample(20, 0), GenerativeRecommender.from_pretrained(out/'work'/'igd'/'model'), load_ranker(out/'work'/'SASRec')
    for name, assistant_weight, alpha in (('IGD tuning + decoding + SASRec', .5, .2), ('IGD tuning', 0., 0.)):
        ranked = rec.rank(cases, 20, replace(rec.config.decode, alpha=alpha, assistant_weight=assistant_weight), adviser)
        assert got['methods'][name]['ndcg@10'] == pytest.approx(evaluate_ranking(ranked, cases, split.train)['ndcg@10'])
        assert got['methods'][name]['valid_ndcg@10'] == pytest.approx(ranking_metrics(rec.rank(valid, 20, replace(rec.config.decode, alpha=alpha, assistant_weight=assistant_weight), adviser), valid.targets, (10,))['ndcg@10'])
    assert GenerativeRecommender.from_pretrained(out/'model').config.decode.assistant_weight == 0
    page = (out/'report.html').read_text()
    assert '20 test users, drawn once' in page and '50% of each step from a SASRec' in page and 'SASRec' not in (before/'report.html').read_text()
    for name in ('SASRec', 'evaluate igd'): (out/'stages'/f'{name}.json').unlink()
    assert run_job(config, out, resume=True)['methods'] == got['methods']
    with pytest.raises(GenrecError, match=r'other settings \(assistant_weight\)'): run_job(replace(config, assistant_weight=.3), out, resume=True)


def test_the_same_seed_gives_the_same_figures_and_another_does_not(finished, tmp_path):
    data, _, metrics = finished
    assert run_job(small_config(data), tmp_path/'restart')['methods'] == metrics['methods']
    assert run_job(small_config(data).seeded(1), tmp_path/'other')['methods'] != metrics['methods']


@pytest.mark.parametrize('stage', ['tokenizer', 'train ce', 'evaluate ce', 'train igd', 'evaluate igd'])
def test_a_full_disk_is_told_in_one_line_and_resume_ends_alike(finished, tmp_path, monkeypatch, stage):
    import genrec_nb.run as module
    data, _, metrics = finished
    real = module.write_json
    def full(path, value):
        if Path(path).stem == stage: raise OSError(errno.ENOSPC, 'No space left on device', str(path))
        real(path, value)
    monkeypatch.setattr(module, 'write_json', full)
    with pytest.raises(OSError) as e: run_job(small_config(data), tmp_path/'out')
    line, code = explain_error(e.value)
    assert 'disk is full' in line and '--resume' in line and '\n' not in line and code == 3
    monkeypatch.undo()
    assert run_job(small_config(data), tmp_path/'out', resume=True)['methods'] == metrics['methods']


SLOW_RUN = '''
import json, sys, time
import genrec_nb.run as run
from genrec_nb.recommender import RecommenderConfig

class Slow(run.Steps):
    def on_step_end(self, *args, **kwargs): time.sleep(.05)

run.Steps = Slow
run.run_job(run.RunConfig(sys.argv[1], recommender=RecommenderConfig(**json.loads(sys.argv[3]))), sys.argv[2])
'''


def test_killed_in_training_resumed_same_figures(finished, tmp_path):
    "SIGKILL as soon as a checkpoint is there, then resume"
    data, _, metrics = finished
    out = tmp_path/'out'
    p = subprocess.Popen([sys.executable, '-c', SLOW_RUN, str(data), str(out), json.dumps(asdict(small_config(data).recommender))], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    until = time.monotonic() + 120
    while p.poll() is None and time.monotonic() < until and not list(out.glob('work/*/checkpoints/checkpoint-*/trainer_state.json')): time.sleep(.02)
    assert p.poll() is None, 'the run ended before it could be killed'
    p.send_signal(signal.SIGKILL); p.wait()
    assert not (out/'metrics.json').exists()
    assert run_job(small_config(data), out, resume=True)['methods'] == metrics['methods']


def test_leaks_neither_validation_nor_test_items_touch_what_is_learned(tmp_path):
    "Change every validation and test item: identifiers, counts, gains and the plain training loss stay as they were"
    data = small_data(tmp_path/'toy')
    path = data/'toy.inter.json'
    first = run_job(small_config(data), tmp_path/'a')
    inter = json.loads(path.read_text())
    changed = {u: h[:-2] + [i for i in range(40) if i not in h][:2] if len(h) > 2 else h for u, h in inter.items()}
    path.write_text(json.dumps(changed))
    second = run_job(small_config(data), tmp_path/'b')
    assert first['methods']['CE'] != second['methods']['CE']
    a, b = (GenerativeRecommender.from_pretrained(tmp_path/x/'model') for x in 'ab')
    assert a.ids == b.ids and (a.counts == b.counts).all() and (a.gain == b.gain).all()
    loss = lambda x, n: [l['loss'] for l in json.loads((tmp_path/x/'stages'/f'{n}.json').read_text())['result']['logs'] if 'loss' in l]
    for name in ('train ce', 'train igd'):
        for p, q in zip(loss('a', name), loss('b', name)): assert p == q           # up to where early stopping may end one of them


def test_ids_random_and_from_a_table(finished, tmp_path):
    data, folder, _ = finished
    bare = small_data(tmp_path/'bare', text=False)
    with pytest.raises(GenrecError, match='--ids random'): run_job(small_config(bare), tmp_path/'x')
    c = small_config(bare, ids='random')
    c.recommender.size = 8
    assert run_job(c, tmp_path/'r')['collisions']['rate'] == 0
    table = folder/'tokenizer'/'index.json'
    m = run_job(replace(small_config(data), ids=str(table)), tmp_path/'t')
    assert m['methods'] == finished[2]['methods']                                 # the same identifiers, the same figures


def test_ids_by_other_tokenizers(finished, tmp_path):
    "A name gives what `tokenize_items` gives; a folder gives the same figures again, and the whole tokenizer; what cannot work is refused before the folder is made"
    data, folder, metrics = finished
    letter = replace(small_config(data).recommender, tokenizer=dict(method='letter', encoder='tfidf', size=6, levels=2, cf='lightgcn', options=dict(steps=40, hidden=[8], clusters=3)), train=TrainConfig(epochs=1, batch_size=32, eval_every=1))
    m = run_job(replace(small_config(data), ids='letter', recommender=letter), tmp_path/'l')
    found, split = load_run_data(RunConfig(str(data)))
    assert load_tokenized(tmp_path/'l'/'tokenizer').ids == tokenize_items(found, split, letter.tokenizer_config).ids
    rec = GenerativeRecommender.from_pretrained(tmp_path/'l'/'model')
    assert rec.config.tokenizer.method == 'letter' and rec.quantizer.kind == 'letter' and m['config']['recommender']['tokenizer']['options']['clusters'] == 3
    assert run_job(small_config(data, ids=str(folder/'tokenizer')), tmp_path/'f')['methods'] == metrics['methods']
    assert GenerativeRecommender.from_pretrained(tmp_path/'f'/'model').quantizer is not None
    t5 = replace(small_config(data).recommender, tokenizer=dict(method='tree', options=dict(clusters=3, leaf=6)), backbone='t5', model=dict(d_model=16, d_ff=16, num_layers=1, num_heads=2, d_kv=8), train=TrainConfig(epochs=1, batch_size=32, eval_every=1))
    tree = RunConfig(str(data), ids='tree', recommender=t5)
    assert run_job(tree, tmp_path/'t')['collisions']['rate'] == 0
    with pytest.raises(GenrecError, match="backbone 't5'"): run_job(small_config(data, ids=str(tmp_path/'t'/'tokenizer')), tmp_path/'x')
    other = small_data(tmp_path/'other', items=39)
    with pytest.raises(GenrecError, match='another catalogue'): run_job(small_config(other, ids=str(folder/'tokenizer')), tmp_path/'x')
    with pytest.raises(GenrecError, match='no such file'): run_job(small_config(data, ids='leter'), tmp_path/'x')
    assert not (tmp_path/'x').exists()


def test_a_run_of_before_there_were_more_settings_can_be_resumed(finished, tmp_path):
    data, folder, metrics = finished
    shutil.copytree(folder, tmp_path/'old')
    stored = json.loads((tmp_path/'old'/'run.json').read_text())
    for name in ('cf', 'tokenizer'): stored['recommender'].pop(name)
    (tmp_path/'old'/'run.json').write_text(json.dumps(stored))
    assert run_job(small_config(data), tmp_path/'old', resume=True)['methods'] == metrics['methods']


def one_line(*args, ok=False):
    "What the command prints, or the one line that it ends with"
    r = CliRunner(env={'COLUMNS': '200'}).invoke(app, [str(a) for a in args])
    if ok: assert r.exit_code == 0, r.exception or r.output; return r.stdout
    assert not isinstance(r.exception, SystemExit), r.output
    line, code = explain_error(r.exception)
    assert code == 2 and '\n' not in line
    return line


def test_a_mistake_ends_the_process_with_one_line(tmp_path):
    "The command itself, from outside"
    r = subprocess.run(GENREC + ['run', '--data', 'nowhere', '--out', str(tmp_path/'o')], capture_output=True, text=True, env={**os.environ, 'COLUMNS': '200'})
    lines = [l for l in r.stderr.strip().splitlines() if l.strip()]
    assert r.returncode == 2 and lines[-1] == 'genrec: nowhere: neither a known data set (ml-100k) nor a folder nor a table' and 'Traceback' not in r.stderr



def test_the_command_line_tells_mistakes_in_one_line(finished, tmp_path):
    data, folder, _ = finished
    assert 'did you mean' in one_line('recommend', folder, '--history', 'Itm 3')
    assert 'other settings' in one_line('run', '--data', data, '--out', folder, '--resume')
    (tmp_path/'bad').mkdir(); (tmp_path/'bad'/'bad.inter.json').write_text('{"0": [1, 2,\n ]}'); (tmp_path/'bad'/'bad.item.json').write_text('{}')
    assert 'line 2' in one_line('run', '--data', tmp_path/'bad', '--out', tmp_path/'o1')
    pd.DataFrame(dict(user=[1], thing=[2])).to_csv(tmp_path/'x.csv', index=False)
    pd.DataFrame(dict(item=[2], title=['two'])).to_csv(tmp_path/'items.csv', index=False)
    assert "'item'" in one_line('run', '--data', tmp_path/'x.csv', '--out', tmp_path/'o2')
    assert 'no run to resume' in one_line('run', '--data', data, '--out', tmp_path/'o9', '--resume')
    assert 'epochs is 0' in one_line('run', '--data', data, '--epochs', '0', '--out', tmp_path/'o9')
    assert "user=NAME" in one_line('run', '--data', data, '--column', 'usr=u', '--out', tmp_path/'o2')
    table = json.loads((folder/'tokenizer'/'index.json').read_text())
    table.pop('7'); (tmp_path/'short.json').write_text(json.dumps(table))
    assert "'7'" in one_line('run', '--data', data, '--ids', tmp_path/'short.json', '--out', tmp_path/'o3')
    table['7'] = ['<a_0>', '<b_0>', '<c_99>']; (tmp_path/'long.json').write_text(json.dumps(table | {'new': ['<a_0>', '<b_0>', '<c_98>']}))
    line = one_line('run', '--data', data, '--ids', tmp_path/'long.json', '--out', tmp_path/'long')
    assert "the first is 'new'; add these items to the data's item file, or give a table without them" in line and not (tmp_path/'long').exists()
    table['7'] = table['8'][:1]; (tmp_path/'prefix.json').write_text(json.dumps(table))
    assert 'is the beginning of' in one_line('run', '--data', data, '--ids', tmp_path/'prefix.json', '--out', tmp_path/'o4')
    assert 'index.json' in one_line('run', '--data', data, '--ids', 'nope', '--out', tmp_path/'o5')
    assert "has no setting 'step'" in one_line('run', '--data', data, '--option', 'step=3', '--out', tmp_path/'o6')
    assert "backbone 't5'" in one_line('run', '--data', data, '--ids', 'tree', '--out', tmp_path/'o6')
    assert 'no tokenizer is made' in one_line('run', '--data', data, '--ids', folder/'tokenizer', '--option', 'levels=2', '--out', tmp_path/'o6')
    assert not list(tmp_path.glob('o*'))


def test_recommend_and_inspect(finished, tmp_path):
    data, folder, _ = finished
    out = one_line('recommend', folder, '--history', 'Item 3', '--history', 'item 5', '-k', '4', '--explain', ok=True)
    assert out.count('Item ') >= 4 and 'Why' in out
    out = one_line('inspect', folder/'tokenizer'/'index.json', '--data', data, ok=True)
    assert '40 items' in out and 'decide nothing' in out
    assert one_line('--version', ok=True).startswith('genrec_nb ')


@pytest.mark.parametrize('weighting,options', [('fg', dict(scale=8.)), ('multi', dict(half_life=2.)), ('cft', {}), ('ce', {})])
def test_any_weighting_can_be_run_and_is_the_one_of_losses(finished, tmp_path, weighting, options):
    import genrec_nb.train as training
    from genrec_nb.infogain import information_gain, item_prior
    from genrec_nb.objectives import make_weighting
    from genrec_nb.item_decoder import item_decoder
    from genrec_nb.trie import ItemTrie
    data, _, plain = finished
    config = small_config(data)
    config = replace(config, recommender=replace(config.recommender, weighting=weighting, weighting_options=options))
    metrics = run_job(config, tmp_path/'out')
    assert list(metrics['methods']) == ['popularity', 'CE', 'CE + IGD decoding', *([] if weighting == 'ce' else [weighting, f'{weighting} + IGD decoding'])]
    assert metrics['methods']['CE'] == plain['methods']['CE']                   # the same training whatever it is compared with
    found, split = load_run_data(config)
    made = tokenize_items(found, split, config.recommender.tokenizer_config)
    trie, r = ItemTrie.build(made.ids), config.recommender
    counts = split.train.target_counts()
    loss = make_weighting(weighting, **options).objective(trie, made.ids, counts=counts, gain=information_gain(trie, item_prior(counts)), vectors=made.vectors)
    by_hand = training.fit(item_decoder(made.ids, seed=0, **r.model), split.train, split.valid, trie, loss, r.train, tmp_path/'by_hand')
    stored = json.loads((tmp_path/'out'/'stages'/f'train {weighting}.json').read_text())['result']
    assert [l['loss'] for l in stored['logs'] if 'loss' in l] == [l['loss'] for l in by_hand.logs if 'loss' in l]
    rec = GenerativeRecommender.from_pretrained(tmp_path/'out'/'model')
    assert rec.config.weighting in (weighting, 'ce')


def test_a_weighting_that_cannot_be_is_refused_before_anything_is_made(tmp_path):
    small_data(tmp_path/'toy'); small_data(tmp_path/'bare', text=False)
    run = lambda *a: subprocess.run([*GENREC, 'run', '--data', str(tmp_path/'toy'), '--quick', '--out', str(tmp_path/'out'), *a], capture_output=True, text=True)
    for given, says in ((['--weighting', 'igdd'], "did you mean 'igd'"), (['--weighting', 'fg', '--weigh', 'beta=1'], 'no setting'), (['--weighting', 'fg', '--weigh', 'scale'], '--weigh scale: expected NAME=VALUE')):
        p = run(*given)
        assert p.returncode == 2 and says in p.stderr and len(p.stderr.strip().splitlines()) == 1 and not (tmp_path/'out').exists(), p.stderr
    with pytest.raises(GenrecError, match='a setting of its own'): RecommenderConfig(weighting_options=dict(beta=.5))
    bare = RunConfig(str(tmp_path/'bare'), recommender=replace(small_config('x').recommender, tokenizer=dict(method='random', size=20, levels=2), weighting='fg'), ids='random')
    with pytest.raises(GenrecError, match='no item texts'): run_job(bare, tmp_path/'out')
    assert not (tmp_path/'out').exists()


# ---- language models ---------------------------------------------------------------------------------------------------

@pytest.fixture(scope='module')
def lm(tmp_path_factory):
    "A data set with titles that take more than eight tokens, times in a table, and a tiny language model in a folder"
    from genrec_nb.backbones import tiny_llama
    base = tmp_path_factory.mktemp('lm')
    rng, words = np.random.default_rng(0), 'red blue steel wood long short'.split()
    titles = [f'the {rng.choice(words)} {rng.choice(words)} item number {i} of this <shop>' for i in range(30)]
    rows = [(u, i, 1000*t + u) for u in range(30) for t, i in enumerate(rng.permutation(30)[:rng.integers(4, 9)])]
    (base/'shop').mkdir()
    pd.DataFrame(rows, columns=['user', 'item', 'time']).to_csv(base/'shop'/'interactions.csv', index=False)
    pd.DataFrame(dict(item=range(30), title=titles)).to_csv(base/'shop'/'items.csv', index=False)
    for part in tiny_llama(titles[:6], 300): part.save_pretrained(base/'tiny')
    return base


LLM = ['--backbone', 'llm', '--model', 'r=4', '--model', 'max-items=4', '--model', 'max_tokens=500', '--epochs', 1, '--samples-per-epoch', 32, '--eval-users', 8]


@pytest.fixture(scope='module')
def told(lm):
    "A run of titles on the command line"
    out = one_line('run', '--data', lm/'shop', '--ids', 'title', '--model', f'base={lm}/tiny', *LLM, '--out', lm/'out', ok=True)
    return out, json.loads((lm/'out'/'metrics.json').read_text())


def test_a_language_model_writes_titles_from_the_command_line(lm, told):
    out, m = told
    assert all(x in out for x in METHODS) and m['config']['recommender']['model']['base'] == str((lm/'tiny').resolve())
    t = m['config']['recommender']['train']
    assert (t['samples_per_epoch'], t['eval_users'], t['epochs'], t['batch_size'], t['accumulate'], t['lr']) == (32, 8, 1, 8, 4, 3e-4)
    assert m['config']['split'] == 'leave-one-out' and 0 < m['zero_gain_share'] < 1 and m['prompts']['prompts'] == 2*m['users'] and m['prompts']['shortened'] == 0
    ids = load_tokenized(lm/'out'/'tokenizer').ids
    assert ids.kind == 'titles' and ids.backbone_ids is not None and GenerativeRecommender.from_pretrained(lm/'out'/'model').ids == ids
    page = (lm/'out'/'report.html').read_text()
    assert f'The recommender is {lm.resolve()}/tiny, lora, trained on 32 drawn samples an epoch' in page and 'read with 20 beams.' in page
    assert page.count('class="strip"') == 5 + 14 and '<shop>' not in page and '⏎' in page
    out = one_line('recommend', lm/'out', '--history', '3', '--history', '4', '-k', '2', '--explain', ok=True)
    assert 'item number' in out and '⏎∎' in out
    assert 'decide nothing' in one_line('inspect', lm/'out', ok=True) and 'decide nothing' in one_line('inspect', lm/'out'/'tokenizer', ok=True)


def test_packed_titles_without_their_tails_from_the_command_line(lm, tmp_path):
    "The list goes on behind a title, so that nothing but the end stands there"
    from transformers import AutoTokenizer
    one_line('run', '--data', lm/'shop', '--ids', 'title', '--option', 'drop= of this <shop>$', '--model', f'base={lm}/tiny', '--model', 'packed=true', *LLM, '--weighting', 'ce', '--out', tmp_path/'o', ok=True)
    ids, tokenizer, titles = load_tokenized(tmp_path/'o'/'tokenizer').ids, AutoTokenizer.from_pretrained(lm/'tiny'), load_dataset(lm/'shop').catalog.titles
    for i in (0, 7, 29): assert tokenizer.decode(ids.backbone_ids[ids.path(i)[:-1]]) + ' of this <shop>' == titles[i]
    rec = GenerativeRecommender.from_pretrained(tmp_path/'o'/'model')
    assert rec.model.config.packed and rec.recommend([titles[3]], 2)[0].title in titles
    assert GenerativeRecommender.from_pretrained(tmp_path/'o').recommend([titles[3]], 2) == rec.recommend([titles[3]], 2)   # a run's folder holds it


def test_a_run_of_titles_is_resumed_and_repeated_by_its_folder(lm, told, tmp_path):
    "Resumed after the second training is lost; the same from the saved tokenizer, which names the language model, and from its table"
    _, m = told
    shutil.copytree(lm/'out', tmp_path/'o')
    for p in [*(tmp_path/'o'/'stages').glob('*igd*'), *(tmp_path/'o'/'stages').glob('*IGD tuning*')]: p.unlink()
    shutil.rmtree(tmp_path/'o'/'work'/'igd'); (tmp_path/'o'/'metrics.json').unlink()
    one_line('run', '--resume', '--out', tmp_path/'o', ok=True)
    assert json.loads((tmp_path/'o'/'metrics.json').read_text())['methods'] == m['methods']
    one_line('run', '--data', lm/'shop', '--ids', lm/'out'/'tokenizer', *LLM, '--weighting', 'ce', '--out', tmp_path/'f', ok=True)
    again = json.loads((tmp_path/'f'/'metrics.json').read_text())
    assert again['config']['recommender']['model']['base'] == str((lm/'tiny').resolve()) and again['methods']['CE'] == m['methods']['CE']
    one_line('run', '--data', lm/'shop', '--ids', lm/'out'/'tokenizer'/'index.json', '--model', f'base={lm}/tiny', *LLM, '--weighting', 'ce', '--out', tmp_path/'i', ok=True)
    assert json.loads((tmp_path/'i'/'metrics.json').read_text())['methods']['CE'] == m['methods']['CE']


def test_a_language_model_writes_codes_with_tasks_and_a_split_by_time(lm, tmp_path):
    from genrec_nb.data import global_time
    one_line('run', '--data', lm/'shop', '--ids', 'letter', '--option', 'encoder=tfidf', '--option', 'cf=lightgcn', '--option', 'levels=2', '--option', 'size=6', '--option', 'steps=30', '--option', 'hidden=[8]', '--option', 'clusters=3',
             '--model', f'base={lm}/tiny', '--model', 'tasks=["item2index", "index2item"]', *LLM, '--split', 'time', '--assistant-weight', .5, '--decode', 'length_penalty=1', '--decode', 'beams=5', '--train', 'lr=1e-3', '--train', 'batch_size=4', '--users', 12, '--out', tmp_path/'o', ok=True)
    m, data = json.loads((tmp_path/'o'/'metrics.json').read_text()), load_dataset(lm/'shop')
    split = global_time(data.interactions)
    assert m['config']['split'] == 'time' and m['users'] == 12 < len(split.test) and m['config']['recommender']['quantizer'] == 'letter'
    rec = GenerativeRecommender.from_pretrained(tmp_path/'o'/'model')
    assert (m['config']['recommender']['train']['lr'], m['config']['recommender']['train']['batch_size']) == (1e-3, 4)
    assert (rec.config.decode.length_penalty, rec.config.decode.beams, rec.config.decode.assistant_weight) == (1, 5, 0) and 'CE + SASRec' in m['methods']
    assert (rec.counts == split.train.target_counts()).all() and rec.ids.kind == 'codes' and len(rec.recommend(['3'], 5)) == 5
    page = (tmp_path/'o'/'report.html').read_text()
    assert '12 test cases, drawn from the last tenth by time' in page and 'leave-one-out' not in page.split('How this was made')[0]


def test_prompts_without_room_for_all_are_counted(lm, tmp_path):
    "One answer, the template and two or three titles of four fit"
    short = [x if x != 'max_tokens=500' else 'max_tokens=150' for x in LLM]
    one_line('run', '--data', lm/'shop', '--ids', 'title', '--model', f'base={lm}/tiny', *short, '--weighting', 'ce', '--out', tmp_path/'o', ok=True)
    m, page = json.loads((tmp_path/'o'/'metrics.json').read_text()), (tmp_path/'o'/'report.html').read_text()
    rec, data = GenerativeRecommender.from_pretrained(tmp_path/'o'), load_dataset(lm/'shop')
    split, p = leave_one_out(data.interactions), rec.model.prompt
    fits = [sum(1 for k in range(1, len(h) + 1) if sum(int(p.length[i]) for i in h[-k:]) + p.gap*(k - 1) <= p.room) for c in (split.test, split.valid) for u in range(len(c)) for h in [c.history(u)[-4:]]]
    there = [len(c.history(u)[-4:]) for c in (split.test, split.valid) for u in range(len(c))]
    lost = sum(a - b for a, b in zip(there, fits))
    assert lost > 0 and m['prompts'] == dict(prompts=len(fits), shortened=sum(a > b for a, b in zip(there, fits)), items=lost)
    assert f'there was no room for {lost} of the oldest items' in page


def test_a_setting_left_out_is_another_setting(lm, told):
    "Of the names and values of a free table, too: the run was told max-items"
    less = [x for i, x in enumerate(LLM) if x != 'max-items=4' and LLM[i + 1:i + 2] != ['max-items=4']]
    line = one_line('run', '--data', lm/'shop', '--ids', 'title', '--model', f'base={lm}/tiny', *less, '--resume', '--out', lm/'out')
    assert 'was started with other settings (recommender.model.max_items); resume with the same ones' in line


def test_a_first_stage_that_fails_leaves_no_folder(tmp_path, monkeypatch):
    "So that the corrected command may have its name"
    def fails(*a): raise GenrecError('no codes today')
    data = small_data(tmp_path/'toy')
    with monkeypatch.context() as m:
        m.setattr(run_module, 'tokenizer_stage', fails)
        with pytest.raises(GenrecError, match='no codes today'): run_job(small_config(data), tmp_path/'out')
        assert not (tmp_path/'out').exists()
    open_run(tmp_path/'out', small_config(data), False)
    with monkeypatch.context() as m:
        m.setattr(run_module, 'tokenizer_stage', fails)
        with pytest.raises(GenrecError, match='no codes today'): run_job(small_config(data), tmp_path/'out', resume=True)
    assert (tmp_path/'out'/'run.json').is_file()                               # it was there before


def test_stages_are_lines_where_there_is_no_terminal(tmp_path):
    import io
    from rich.console import Console
    from genrec_nb.cli import Bars
    text, page = io.StringIO(), io.StringIO()
    with Bars(Console(file=text)) as bars:
        bars.stage('first'); bars.stage('first', 3); bars.advance(2)
        assert text.getvalue() == 'first\n'                                    # as it happens
        bars.stage('second')
    assert text.getvalue() == 'first\nsecond\n'
    with Bars(Console(file=page, force_terminal=True)) as bars: bars.stage('first', 3)
    assert '━' in page.getvalue()


def test_what_was_mended_is_said(tmp_path):
    "An item without a title gets a name, and its owner is told, on the command line too"
    data = small_data(tmp_path/'toy')
    items = json.loads((data/'toy.item.json').read_text())
    items['3']['title'] = ''
    (data/'toy.item.json').write_text(json.dumps(items))
    r = subprocess.run(GENREC + ['tokenize', str(data), '--method', 'random', '--size', '8', '--out', str(tmp_path/'o')], capture_output=True, text=True, env={**os.environ, 'COLUMNS': '200'})
    assert r.returncode == 0, r.stderr
    assert "1 items have an empty title, the first is '3'" in r.stderr


def test_mistakes_about_language_models_make_no_folder(lm, told, tmp_path):
    run = lambda *a: one_line('run', '--data', lm/'shop', '--out', tmp_path/'o', *a)
    assert "backbone is 'lmm', expected one of packed, t5, llm" in run('--backbone', 'lmm') and "lam is 'foo', expected a number" in run('--weighting', 'cft', '--weigh', 'lam=foo')
    title = ['--backbone', 'llm', '--ids', 'title', '--model', f'base={lm}/tiny']
    for told, *wrong in (('packed samples share theirs', 'packed=true', '--weighting', 'cft'), ('there is no room for one; ', 'max_tokens=60'), ('reads 1024 tokens at most', 'max_tokens=5000'), ("dtype is 'float99'", 'dtype=float99'), ("targets='foo'", 'targets=foo')):
        assert told in run(*title, '--model', *wrong)
    shutil.copytree(lm/'tiny', tmp_path/'light', ignore=shutil.ignore_patterns('*.safetensors'))
    assert 'holds no weights' in run('--backbone', 'llm', '--ids', 'title', '--model', f'base={tmp_path}/light')
    assert 'is no regular expression' in run(*title, '--option', 'drop=(') and 'leaves nothing of 30 titles' in run(*title, '--option', 'drop=.*')
    assert "backbone 'llm'" in run('--ids', 'title') and "'t5' cannot write them" in run('--ids', 'title', '--backbone', 't5')
    assert "'t5' cannot write them" in run('--ids', lm/'out'/'tokenizer', '--backbone', 't5') and "backbone 'llm'" in run('--ids', lm/'out'/'tokenizer'/'index.json')
    assert "did you mean 'max_items'" in run('--backbone', 'llm', '--model', 'max_itms=3') and '--model base: expected NAME=VALUE' in run('--backbone', 'llm', '--model', 'base')
    assert 'no/such/model' in run('--backbone', 'llm', '--model', 'base=no/such/model') and 'name one of the two' in run('--backbone', 'llm', '--ids', 'title', '--model', f'base={lm}/tiny', '--option', 'lm=other')
    assert "did you mean 'length_penalty'" in run('--decode', 'length_penalt=1') and '--train epochs: it has an option of its own' in run('--train', 'epochs=3') and "did you mean 'lr'" in run('--train', 'lrr=1') and 'lr is' in run('--train', 'lr=abc') and 'beams is' in run('--decode', 'beams=many') and '--decode mix: it has an option of its own, --assistant-weight' in run('--decode', 'assistant_weight=.5') and 'between 0 and 1' in run('--assistant-weight', 2)
    assert "did you mean 'd_model'" in run('--model', 'dmodel=3') and 'leave-one-out, time' in run('--split', 'tim')
    bare = small_data(tmp_path/'bare', text=False)
    assert 'no item texts, which --ids title needs; other ways are --ids random' in one_line('run', '--data', bare, '--backbone', 'llm', '--ids', 'title', '--model', f'base={lm}/tiny', '--out', tmp_path/'o')
    some = tmp_path/'some'; shutil.copytree(lm/'shop', some)
    (some/'items.csv').write_text((some/'items.csv').read_text().replace((some/'items.csv').read_text().splitlines()[4], '3,'))
    line = one_line('run', '--data', some, '--backbone', 'llm', '--ids', 'title', '--model', f'base={lm}/tiny', '--out', tmp_path/'o')
    assert "item '3' has neither title nor other text (1 such items)" in line
    inter = tmp_path/'timeless'; inter.mkdir()
    pd.DataFrame(dict(user=[0, 0, 0], item=[0, 1, 2])).to_csv(inter/'interactions.csv', index=False); pd.DataFrame(dict(item=range(3), title=list('abc'))).to_csv(inter/'items.csv', index=False)
    assert 'needs times' in one_line('run', '--data', inter, '--column', 'time=', '--split', 'time', '--out', tmp_path/'o')
    assert not (tmp_path/'o').exists()
