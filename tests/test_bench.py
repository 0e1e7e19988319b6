"Measurements: the two sides must agree, the statistics must be right, and bad names must be refused."
import json
import os

import numpy as np
import pytest
import torch

from genrec_nb import bench
from genrec_nb.bench import (BENCHES, agreement, allowed_tokens, array_gains, dict_gains, format_bench, gain_error, generate_items, in_fresh_process,
                             machine, race, random_catalogue, ratio, run_bench, spread_of, train_steps, TimeLimit)
from genrec_nb.data import GenrecError
from genrec_nb.decode import DecodeConfig, recommend
from genrec_nb.identifiers import Identifiers
from genrec_nb.infogain import item_prior
from genrec_nb.tiger import tiger_t5
from genrec_nb.trie import ItemTrie


@pytest.mark.parametrize('seed', range(4))
def test_dictionaries_and_arrays_agree(seed):
    "Few codes, so that collisions and items without mass abound"
    ids, prior = random_catalogue(2000, levels=4, size=6, seed=seed)
    paths = ids.codes().tolist()
    assert ids.collisions()['groups'] > 100 and (prior == 0).any()
    assert gain_error(dict_gains(paths, prior.tolist()), array_gains(ids, prior), paths) < 1e-12


def test_gain_error_notices_a_difference():
    ids, prior = random_catalogue(200, levels=3, size=5)
    trie, *gains = array_gains(ids, prior)
    gains[1] = gains[1].clone()
    gains[1][-1] += 1e-3
    paths = ids.codes().tolist()
    assert gain_error(dict_gains(paths, prior.tolist()), (trie, *gains), paths) == pytest.approx(1e-3)


def test_ragged_paths_agree():
    ids = Identifiers([3, 4, 2, 3, 2, 5, 4, 4, 2, 5, 2], [0, 3, 5, 9, 11], ['<pad>', '<s>', '</s>', 'a', 'b', 'c'])
    paths, prior = [ids.path(i).tolist() for i in range(4)], item_prior([3, 1, 0, 2])
    assert gain_error(dict_gains(paths, prior.tolist()), array_gains(ids, prior), paths) < 1e-15


def test_rounds_are_taken_in_turns_and_divided_by_neighbours():
    order = []
    times, results = race(dict(a=lambda: order.append('a') or 1, b=lambda: order.append('b') or 2), rounds=3)
    assert order == list('ab'*4) and results == dict(a=1, b=2)
    assert all(len(t[c]) == 3 for t in times.values() for c in ('wall', 'cpu'))
    fixed = dict(s=dict(wall=[8., 30., 4.]), f=dict(wall=[2., 10., 1.]))
    assert ratio(fixed, 's', 'f') == dict(median=4., min=3., max=4., rounds=3)
    assert spread_of([3., 1., 9.]) == dict(median=3., min=1., max=9., rounds=3)


def test_the_collector_is_on_again_after_a_failure():
    import gc
    with pytest.raises(ZeroDivisionError): race(dict(a=lambda: 1/0))
    assert gc.isenabled()


def test_fresh_process_measures_its_own_memory():
    "Not the peak of the process that started it, which getrusage would report"
    ballast = np.ones(200_000_000)                                           # 1.6 GB
    out = in_fresh_process('measure_trie', 2000, 2)
    assert out['items'] == 2000 and out['wall']['rounds'] == 2
    assert 0 <= out['before_gb'] <= out['peak_gb']
    if os.path.exists('/proc/self/status'): assert .05 < out['peak_gb'] < ballast.nbytes/1e9


def test_fresh_process_reports_a_failure_in_one_line():
    with pytest.raises(GenrecError, match='AttributeError') as e: in_fresh_process('no_such_function')
    assert '\n' not in str(e.value)


@pytest.mark.parametrize('seed', range(3))
def test_engine_and_generate_give_the_same_lists(seed):
    "Batches of other sizes and orders on both sides; histories of all lengths"
    ids = Identifiers.random(400, levels=3, size=12, seed=seed).with_eos()
    rng, trie = np.random.default_rng(seed), ItemTrie.build(ids)
    length = rng.integers(1, 12, 9)
    history = torch.from_numpy(np.where(np.arange(12, 0, -1) <= length[:, None], rng.integers(0, 400, (9, 12)), -1))
    model = tiger_t5(ids, seed=seed, d_model=32, d_ff=64, num_layers=2, num_decoder_layers=2, num_heads=2, d_kv=16).eval()
    ours = recommend(model, trie, history, 10, DecodeConfig(10, exclude_seen=False), batch_size=4)
    theirs = generate_items(model, trie, history, allowed_tokens(ids), 10, 5)
    same = agreement(ours, theirs)
    assert same['identical'] == 1 and same['difference'] < 1e-4
    assert agreement(ours, (theirs[0].flip(0), theirs[1]))['identical'] < 1


def test_batch_size_changes_no_list():
    ids = Identifiers.random(300, levels=3, size=9, seed=0)
    rng, trie = np.random.default_rng(0), ItemTrie.build(ids)
    history = torch.from_numpy(np.where(np.arange(8, 0, -1) <= rng.integers(1, 9, 17)[:, None], rng.integers(0, 300, (17, 8)), -1))
    model = tiger_t5(ids, d_model=32, d_ff=64, num_layers=1, num_decoder_layers=1, num_heads=2, d_kv=16).eval()
    one, whole = (recommend(model, trie, history, 5, DecodeConfig(5), batch_size=b) for b in (1, 17))
    assert torch.equal(one[0], whole[0])
    torch.testing.assert_close(one[1], whole[1], atol=1e-4, rtol=1e-4)


def test_unknown_name_is_refused():
    with pytest.raises(GenrecError, match="'speed', expected some of: trie, decode, backbones"): run_bench(['speed'])


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
    from genrec_nb.data import leave_one_out, load_dataset
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
