"""Training over children, with one identifier and several: gradients of whole steps, resume, exact validation."""
from dataclasses import replace
import numpy as np
import pandas as pd
import pytest
import torch
from torch.utils.data import DataLoader
from genrec_nb.beam_search import DecodeConfig
from genrec_nb.core import GenrecError
from genrec_nb.data import Dataset
from genrec_nb.exact import exact_scores, item_nats, rank_exact
from genrec_nb.item_decoder import item_decoder
from genrec_nb.metrics import ranking_metrics
from genrec_nb.objectives import make_weighting
from genrec_nb.semantic_ids import Identifiers
from genrec_nb.splits import leave_one_out
from genrec_nb.train import GenrecTrainer, TrainConfig, _as_loss, fit, _training_arguments
from test_train import Break, CODES, N, SPLIT, Watch, same_end

COUNTS = SPLIT.train.target_counts()
FLAT = Identifiers.from_codes(np.arange(N)[:, None], policy='keep')
SMALL = dict(max_items=5, d_model=16, num_layers=1, num_heads=2)

def children(ids, dropout=.1):
    return item_decoder(ids, counts=COUNTS, softmax='children', prior='trie', dropout=dropout, **SMALL)

@pytest.mark.parametrize('name', ['igd', 'multi', 'cft'])
def test_accumulation_changes_nothing(name, tmp_path):
    "The step of 24 samples has gradient and loss of plain torch, in one piece and in five"
    ids, numbers = [CODES, FLAT], list(range(24))
    options = dict(targets=dict(uniform={}, igd={}), rising=['igd']) if name == 'multi' else {}
    loss = make_weighting(name, **options).objective(children(ids).tries, ids, counts=COUNTS)
    if name == 'multi': loss.c = .05; loss.steps.fill_(9)
    model = children(ids, dropout=0.).train()
    loss.per_item(torch.cat([t.deciding for t in model.trees], 1), 2)
    out = model(**model.samples(SPLIT.train, 5).collate(numbers), null_history=loss.null_history)
    value, _ = loss(out)
    value.backward()
    want = torch.cat([p.grad.flatten() for p in model.parameters()])
    for size, pieces in ((24, 1), (5, 5)):
        if name == 'multi': loss.steps.fill_(9)
        model, watch = children(ids, dropout=0.), Watch()
        samples, batches = model.samples(SPLIT.train, 5), [numbers[i:i + size] for i in range(0, 24, size)]
        args = _training_arguments(TrainConfig(epochs=1, batch_size=size, accumulate=pieces), 1, tmp_path/str(size), learning_rate=0., weight_decay=0.,
                                  max_grad_norm=0., logging_steps=1, eval_strategy='no', save_strategy='no', load_best_model_at_end=False)
        trainer = GenrecTrainer(model, args, samples=samples, trie=model.tries, weights=loss, callbacks=[watch])
        trainer.get_train_dataloader = lambda: trainer.accelerator.prepare(DataLoader(samples, batch_sampler=batches, collate_fn=samples.collate))
        trainer.train()
        torch.testing.assert_close(watch.steps[0][:len(want)], want, rtol=1e-3, atol=1e-6)
        assert trainer.state.log_history[0]['loss'] == pytest.approx(value.item(), rel=1e-4)

def run(ids, folder, **more):
    model = children(ids)
    config = TrainConfig(epochs=2, batch_size=16, lr=1e-2, eval_every=1, patience=0, metric='ce')
    return fit(model, SPLIT.train, SPLIT.valid, model.tries, None, config, folder, **more)

@pytest.fixture(scope='module')
def trained(tmp_path_factory):
    "Two identifiers, trained to the end, and the folder of the checkpoint"
    folder = tmp_path_factory.mktemp('trained')
    return run([CODES, FLAT], folder), folder

OTHER = Identifiers.from_codes(np.random.default_rng(5).permutation(CODES.codes() - CODES.codes().min(0)), policy='keep')

@pytest.mark.parametrize('changes, message', [
    (dict(softmax='vocabulary', prior='none'), 'softmax children, not vocabulary; prior trie, not none'),
    (dict(prior='none'), 'prior trie, not none'), (dict(counts=COUNTS[::-1].copy()), 'counts'), (dict(ids=[OTHER, FLAT]), 'identifiers'), (dict(head_ff=1), 'parameters')])
def test_a_checkpoint_of_another_model_is_refused(trained, changes, message):
    "Its weights would load: the same shapes, another meaning"
    ids = changes.get('ids', [CODES, FLAT])
    model = item_decoder(ids, **{**SMALL, **dict(counts=COUNTS, softmax='children', prior='trie', dropout=.1), **{k: v for k, v in changes.items() if k != 'ids'}})
    with pytest.raises(GenrecError, match=f'was trained with {message}.*take the same settings') as e: fit(model, SPLIT.train, SPLIT.valid, model.tries, None, TrainConfig(epochs=2), trained[1], resume=True)
    assert '\n' not in str(e.value)

def test_several_identifiers_train_resume_and_are_ranked_exactly(trained, tmp_path):
    ids, whole = [CODES, FLAT], trained[0]
    with pytest.raises(KeyboardInterrupt): run(ids, tmp_path/'b', callbacks=[Break(5)])
    same_end(run(ids, tmp_path/'b', resume=True), whole)
    assert whole.losses[-1][1] < whole.losses[0][1] < np.log(N) + .2                    # nats an item
    assert whole.best == pytest.approx(item_nats(whole.model, SPLIT.valid), rel=1e-5)
    best = next(l for l in whole.logs if l.get('eval_ce') == whole.best)
    ranked = rank_exact(whole.model, SPLIT.valid)
    assert best['eval_ndcg@10'] == ranking_metrics(ranked, SPLIT.valid.targets, (10,))['ndcg@10']

def test_a_list_of_one_trains_as_the_single_model(tmp_path):
    one, several = run(CODES, tmp_path/'a'), run([CODES], tmp_path/'b')
    same_end(one, several)

def test_beta_of_igd_is_no_hyperparameter(tmp_path):
    "Weighted tokens have loss 0: two betas train the same model"
    ends = []
    for beta in (.1, .8):
        model = children(CODES)
        loss = make_weighting('igd', beta=beta).objective(model.tries[0], CODES, counts=COUNTS + 1)
        config = TrainConfig(epochs=1, batch_size=16, patience=0)
        fit(model, SPLIT.train, SPLIT.valid, model.tries[0], loss, config, tmp_path/str(beta))
        ends.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
    assert torch.equal(*ends)

def test_bfloat16(trained, tmp_path):
    "Nearly the losses and nats of float32; the log-probabilities of all items stay float32 and sum to 1"
    result, (single, _) = run([CODES, FLAT], tmp_path, bf16=True, use_cpu=True), trained
    for (_, a), (_, b) in zip(result.losses, single.losses): assert a == pytest.approx(b, abs=.05) and a != b
    assert result.best == pytest.approx(single.best, abs=.05)
    with torch.autocast('cpu', torch.bfloat16): (found,) = exact_scores(result.model, torch.from_numpy(SPLIT.valid.tail(5)), DecodeConfig(exclude_seen=False))
    assert found.logp.dtype == torch.float and (found.logp.exp().sum(-1) - 1).abs().max() < 1e-3


# ---- numbers of items ---------------------------------------------------------------------------------------------

def test_renumbered_items_train_the_same_model(tmp_path):
    "Histories, paths and counts renumbered alike: the same losses and validation curves"
    new, tables, ends = np.random.default_rng(0).permutation(N), [CODES, OTHER], []
    for number in (np.arange(N), new):
        x = replace(SPLIT.train, items=number[SPLIT.train.items])
        valid = replace(SPLIT.valid, items=number[SPLIT.valid.items], targets=number[SPLIT.valid.targets])
        ids = [Identifiers.from_codes((i.codes() - i.codes().min(0))[np.argsort(number)], policy='keep') for i in tables]
        model = item_decoder(ids, counts=x.target_counts(), softmax='children', prior='trie', dropout=.1, **SMALL)
        result = fit(model, x, valid, model.tries, None, TrainConfig(epochs=2, batch_size=16, eval_every=1, patience=0), tmp_path/str(number[0]))
        ends.append(np.array([v for _, v in result.losses + result.curve()]))
    np.testing.assert_allclose(*ends, rtol=1e-5)

def tied_figure(number, tie_seed, folder, **order):
    "Recall@3 after a short training; everything a user chose in a session has one time, and item 0 is the most popular"
    rng = np.random.default_rng(1)
    chosen = np.stack([np.argsort(rng.gumbel(size=16) - np.log1p(np.arange(16)))[::-1][:6] for _ in range(150)])
    df = pd.DataFrame(dict(user=np.repeat(np.arange(150), 6), item=number[chosen.flatten()], time=np.tile([0, 0, 0, 1, 1, 1], 150)))
    split = leave_one_out(Dataset.from_frame(df, time='time', tie_seed=tie_seed, **order).interactions)
    model = item_decoder(Identifiers.from_codes(np.arange(16)[:, None], policy='keep'), counts=split.train.target_counts(), softmax='children', prior='trie', head_ff=0, **SMALL)
    fit(model, split.train, split.valid, model.tries, None, TrainConfig(epochs=4, batch_size=32, eval_every=4), folder)
    return ranking_metrics(rank_exact(model.eval(), split.test), split.test.targets, (3,))['recall@3']

def test_the_numbers_of_items_decide_nothing_in_a_whole_training(tmp_path):
    "Ties by item: another numbering is another task. At random: the same figures up to the scatter of the seeds"
    up, down = np.arange(16), np.arange(16)[::-1]
    by_item = [tied_figure(n, None, tmp_path/f'item{n[0]}', ties='item') for n in (up, down)]
    at_random = np.array([[tied_figure(n, seed, tmp_path/f'{n[0]}{seed}') for seed in range(2)] for n in (up, down)])
    assert abs(by_item[0] - by_item[1]) > 3*np.ptp(at_random) and abs(at_random.mean(1) @ [1, -1]) < .05
