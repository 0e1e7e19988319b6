"""Training: gradients against plain torch, runs that break off, the best checkpoint, two processes."""
import json, math, multiprocessing, os, socket
import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from hypothesis import given, strategies as st
from torch.utils.data import DataLoader
from transformers import TrainerCallback
from safetensors.torch import save_file
from genrec_nb.core import GenrecError, GenrecWarning
from genrec_nb.data import Interactions
from genrec_nb.splits import leave_one_out
from genrec_nb.beam_search import DecodeConfig
from genrec_nb.metrics import ranking_metrics
from genrec_nb.semantic_ids import Identifiers, EOS
from genrec_nb.infogain import information_gain, item_prior
from genrec_nb.token_weights import igd_weights, uniform_weights
from genrec_nb.objectives import MultiTargetLoss, WeightedLoss, make_weighting, weighted_mean
from genrec_nb.batches import LengthBatches
from genrec_nb.item_decoder import item_decoder
from genrec_nb.tiger import tiger_t5
from genrec_nb.rank import _case_ce, _rank_cases, rank_each
from genrec_nb.train import _EpochSubset, FitResult, GenrecTrainer, TrainConfig, _attached, _as_loss, _batch_targets, fit, _last_checkpoint, _training_arguments
from genrec_nb.trie import ItemTrie
from oracles import few, identifiers, next_logp

N = 24

def ratings(users=40, seed=0):
    "Users who mostly walk in steps of one around a circle of items: something can be learned"
    rng = np.random.default_rng(seed)
    rows = [(rng.integers(N) + np.cumsum(np.where(rng.random(n) < .8, 1, rng.integers(2, 9, n)))) % N for n in rng.integers(3, 13, users)]
    return Interactions(np.concatenate(rows), np.cumsum([0] + [len(r) for r in rows]), [f'u{i}' for i in range(users)], N)

SPLIT = leave_one_out(ratings())
CODES = Identifiers.from_codes(np.random.default_rng(3).integers(0, 4, (N, 3)), [4]*3, 'extra')
TITLES = identifiers([np.random.default_rng([4, i]).integers(3, 8, 1 + i % 4).tolist() + [3 + i % 5, EOS] for i in range(N)], 8)

def packed(dropout=.1, seed=0): return item_decoder(CODES, max_items=5, seed=seed, d_model=16, num_layers=1, num_heads=2, dropout=dropout)
def t5(dropout=.1, seed=0, ids=CODES): return tiger_t5(ids, max_items=5, seed=seed, d_model=16, d_ff=16, num_layers=1, num_decoder_layers=1, num_heads=2, d_kv=8, dropout_rate=dropout)
def titles(dropout=.1, seed=0): return t5(dropout, seed, TITLES)

def world(make, beta=.1):
    "Trie and IGD weights of the model's identifiers"
    trie = ItemTrie.build(TITLES if make is titles else CODES)
    return trie, igd_weights(trie, information_gain(trie, item_prior(SPLIT.train.target_counts())), beta)

def run(make, folder, **kwargs):
    "A short training"
    trie, weights = world(make)
    config = TrainConfig(**{**dict(epochs=4, batch_size=16, lr=1e-2, eval_every=1, patience=0), **{k: kwargs.pop(k) for k in list(kwargs) if k in TrainConfig.__dataclass_fields__}})
    return fit(make(), SPLIT.train, SPLIT.valid, trie, weights, config, folder, **kwargs)

def flat(model): return torch.cat([p.detach().flatten() for p in model.parameters()])

def same_end(a, b, losses=True):
    "To the last bit"
    assert a.curve() == b.curve() and (a.losses == b.losses or not losses) and (a.best, a.best_epoch, a.epochs) == (b.best, b.best_epoch, b.epochs)
    assert torch.equal(flat(a.model), flat(b.model))

class Break(TrainerCallback):
    "A power cut before a step"
    def __init__(self, step): self.step = step
    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == self.step: raise KeyboardInterrupt


# ---- gradients ----------------------------------------------------------------------------------------------------

class Watch(TrainerCallback):
    "Keeps the gradient of every step"
    def __init__(self): self.steps = []
    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        self.steps.append(torch.cat([p.grad.flatten() if p.grad is not None else torch.zeros(p.numel()) for p in model.parameters()]))

def gradients(make, batches, accumulate, folder):
    "Gradient of each step and the logged loss, by the trainer"
    model, (trie, weights), watch = make(dropout=0.), world(make), Watch()
    samples = model.samples(SPLIT.train, 5)
    args = _training_arguments(TrainConfig(epochs=1, batch_size=len(batches[0]), accumulate=accumulate), 1, folder, learning_rate=0., weight_decay=0., max_grad_norm=0.,
                              logging_strategy='steps', logging_steps=1, eval_strategy='no', save_strategy='no', load_best_model_at_end=False)
    trainer = GenrecTrainer(model, args, samples=samples, trie=trie, weights=weights, callbacks=[watch])
    trainer.get_train_dataloader = lambda: trainer.accelerator.prepare(DataLoader(samples, batch_sampler=batches, collate_fn=samples.collate))
    trainer.train()
    return watch.steps, [l['loss'] for l in trainer.state.log_history if 'loss' in l]

def by_hand(make, numbers):
    "Gradient and loss of one step over some samples, in plain torch"
    model, (_, weights) = make(dropout=0.).train(), world(make)
    out = model(**model.samples(SPLIT.train, 5).collate(numbers))
    loss = weighted_mean(out.nll, weights[out.targets])
    loss.backward()
    return torch.cat([p.grad.flatten() if p.grad is not None else torch.zeros(p.numel()) for p in model.parameters()]), float(loss.detach())

@pytest.mark.parametrize('make, size, accumulate', [(packed, 24, 1), (packed, 8, 3), (packed, 1, 24), (t5, 6, 4), (titles, 12, 2)])
def test_accumulation_changes_nothing(make, size, accumulate, tmp_path):
    "The step of 24 samples has the gradient and the loss of plain torch, in however many pieces of unequal weight"
    numbers = list(range(24))
    (got,), (loss,) = gradients(make, [numbers[i:i + size] for i in range(0, 24, size)], accumulate, tmp_path)
    want, plain = by_hand(make, numbers)
    assert want.abs().max() > 1e-3
    torch.testing.assert_close(got, want, rtol=1e-3, atol=1e-6)
    assert loss == pytest.approx(plain, rel=1e-4)

@pytest.mark.parametrize('make', [packed, t5])
def test_the_last_step_of_an_epoch_may_be_shorter(make, tmp_path):
    "Five batches in steps of two: the third step has one"
    batches = [list(range(i, i + 4)) for i in range(0, 20, 4)]
    got, losses = gradients(make, batches, 2, tmp_path)
    assert len(got) == 3
    for step, loss, numbers in zip(got, losses, ([*batches[0], *batches[1]], [*batches[2], *batches[3]], batches[4])):
        want, plain = by_hand(make, numbers)
        torch.testing.assert_close(step, want, rtol=1e-3, atol=1e-6)
        assert loss == pytest.approx(plain, rel=1e-4)

@pytest.mark.parametrize('make', [packed])
def test_only_the_ratio_of_the_weights_counts(make, tmp_path):
    "Weights of 1 are no weights; ten times the weights are the same weights"
    trie, weights = world(make)
    config = TrainConfig(epochs=1, batch_size=16, patience=0)
    go = lambda w, name: flat(fit(make(), SPLIT.train, SPLIT.valid, trie, w, config, tmp_path/name).model)
    plain, igd = go(None, 'a'), go(weights, 'b')
    assert torch.equal(plain, go(uniform_weights(trie), 'c')) and not torch.allclose(plain, igd, atol=1e-4)
    torch.testing.assert_close(igd, go(8*weights, 'd'), rtol=1e-3, atol=1e-5)


# ---- what is seen -------------------------------------------------------------------------------------------------

@pytest.mark.parametrize('make, accumulate', [(packed, 3), (t5, 1)])
def test_every_training_target_once_an_epoch(make, accumulate, tmp_path, monkeypatch):
    "Counted where the loss is computed; the batches are those of (seed, epoch)"
    seen = []
    def compute_loss(self, model, inputs, *args, **kwargs):
        seen.append((self.state.epoch, _batch_targets(inputs).tolist()))
        return inner(self, model, inputs, *args, **kwargs)
    inner = GenrecTrainer.compute_loss
    monkeypatch.setattr(GenrecTrainer, 'compute_loss', compute_loss)
    run(make, tmp_path, epochs=2, eval_every=2, accumulate=accumulate, seed=7)
    samples = make().samples(SPLIT.train, 5, **(dict(seed=7) if make is packed else {}))
    batches = LengthBatches(samples, 16, 7)
    want, n = SPLIT.train.target_counts().tolist(), len(batches)
    assert len(seen) == 2*n
    for epoch in range(2):
        part = [t for _, t in seen[epoch*n:(epoch + 1)*n]]
        assert np.bincount(sum(part, []), minlength=N).tolist() == want
        batches.set_epoch(epoch)
        assert part == [_batch_targets(samples.collate(b)).tolist() for b in batches]
    assert [t for _, t in seen[:n]] != [t for _, t in seen[n:2*n]]

@pytest.mark.parametrize('make', [packed, t5])
def test_held_out_items_leave_the_trained_weights_as_they_are(make, tmp_path):
    "Other last items of every user: the weights after an epoch are the same to the last bit"
    x, trained = ratings(), []
    for shift in (0, 5):
        items = x.items.copy()
        for back in (1, 2): items[x.offsets[1:] - back] = (items[x.offsets[1:] - back] + shift) % N
        split = leave_one_out(Interactions(items, x.offsets, x.user_ids, N))
        trie = ItemTrie.build(CODES)
        weights = igd_weights(trie, information_gain(trie, item_prior(split.train.target_counts())))
        result = fit(make(), split.train, split.valid, trie, weights, TrainConfig(epochs=1, batch_size=16, eval_every=1), tmp_path/str(shift))
        trained.append((flat(result.model), result.curve()))
    assert torch.equal(trained[0][0], trained[1][0]) and trained[0][1] != trained[1][1]


# ---- runs that break off ------------------------------------------------------------------------------------------

def steps_of(make, accumulate=1): return -(-(-(-len(make().samples(SPLIT.train, 5))//16))//accumulate)

@pytest.mark.parametrize('make, accumulate', [(packed, 2)])
def test_resumed_equals_unbroken(make, accumulate, tmp_path):
    "Cut in the middle of the third epoch and again in the fourth; dropout is on"
    whole, steps = run(make, tmp_path/'a', accumulate=accumulate), steps_of(make, accumulate)
    for cut in (2*steps + steps//2, 3*steps + 1):
        with pytest.raises(KeyboardInterrupt): run(make, tmp_path/'b', accumulate=accumulate, callbacks=[Break(cut)], resume=True)
    same_end(run(make, tmp_path/'b', accumulate=accumulate, resume=True), whole)

@pytest.mark.parametrize('make, accumulate', [(t5, 2)])
def test_resumed_from_the_middle_of_an_epoch(make, accumulate, tmp_path):
    "Checkpoints that do not fall on the end of an epoch"
    every = steps_of(make, accumulate)//2 + 1
    more = dict(accumulate=accumulate, save_steps=every, eval_steps=every)
    whole = run(make, tmp_path/'a', **more)
    with pytest.raises(KeyboardInterrupt): run(make, tmp_path/'b', callbacks=[Break(every + 2)], **more)
    assert json.loads((_last_checkpoint(tmp_path/'b')/'trainer_state.json').read_text())['epoch'] % 1 > 0
    same_end(run(make, tmp_path/'b', resume=True, **more), whole, losses=False)   # of the broken epoch only the rest is averaged

@pytest.fixture(scope='module')
def unbroken(tmp_path_factory):
    "A training that nothing disturbed, and its folder"
    folder = tmp_path_factory.mktemp('unbroken')
    return run(packed, folder), folder

def test_a_run_that_is_over_is_not_run_again(unbroken):
    whole, folder = unbroken
    again = run(packed, folder, resume=True)
    assert torch.equal(flat(again.model), flat(whole.model)) and again.curve() == whole.curve() and again.best == whole.best

def test_resume_without_a_checkpoint_starts_at_the_beginning(tmp_path):
    same_end(run(packed, tmp_path/'a', epochs=2, resume=True), run(packed, tmp_path/'b', epochs=2))

def test_without_resume_an_old_run_does_not_matter(tmp_path):
    run(packed, tmp_path/'a', epochs=3, lr=1e-4)
    same_end(run(packed, tmp_path/'a', epochs=2), run(packed, tmp_path/'b', epochs=2))

def test_killed_while_a_checkpoint_was_written(unbroken, tmp_path, monkeypatch):
    "Weights are there, the rest is not; the checkpoint before it counts"
    (whole, _), steps = unbroken, steps_of(packed)
    inner = GenrecTrainer._save_rng_state
    def die(self, folder):
        if self.state.global_step == 3*steps: raise KeyboardInterrupt
        inner(self, folder)
    with monkeypatch.context() as m:
        m.setattr(GenrecTrainer, '_save_rng_state', die)
        with pytest.raises(KeyboardInterrupt): run(packed, tmp_path/'b')
    assert (tmp_path/'b'/f'checkpoint-{3*steps}'/'model.safetensors').exists()
    assert _last_checkpoint(tmp_path/'b').name == f'checkpoint-{2*steps}'
    same_end(run(packed, tmp_path/'b', resume=True), whole)

def test_torn_checkpoints_are_skipped(tmp_path):
    assert _last_checkpoint(tmp_path) is None and _last_checkpoint(tmp_path/'none') is None
    for step, text in ((5, '{"global_step": 5}'), (10, '{"global_step": 10}'), (90, '{"global_st'), (95, ''), (96, '{}'), (97, '\x00\x00')):
        (tmp_path/f'checkpoint-{step}').mkdir()
        (tmp_path/f'checkpoint-{step}'/'trainer_state.json').write_text(text)
        save_file(dict(w=torch.ones(2)), tmp_path/f'checkpoint-{step}'/'model.safetensors')
    (tmp_path/'checkpoint-99').mkdir()
    with pytest.warns(GenrecWarning, match='made again'): assert _last_checkpoint(tmp_path) == tmp_path/'checkpoint-10'


# ---- the best checkpoint ------------------------------------------------------------------------------------------

def ndcg(model, trie, decode=None, k=10): return ranking_metrics(_rank_cases(model, trie, SPLIT.valid, decode or DecodeConfig()), SPLIT.valid.targets, (k,))[f'ndcg@{k}']

@pytest.mark.parametrize('make', [packed])
def test_the_model_of_the_best_evaluation_comes_back(make, tmp_path):
    "Its metric, computed afresh, is the best of the curve"
    trie, _ = world(make)
    result = run(make, tmp_path, epochs=4, lr=3e-2)
    values = dict(result.curve())
    assert result.best == max(values.values()) == values[result.best_epoch] == ndcg(result.model, trie)
    assert len(values) == 4 and len(result.losses) == 4 and result.epochs == 4 and min(l for _, l in result.losses) < result.losses[0][1]
    assert f'{result.best:.4f}' in repr(result) and isinstance(result, FitResult)

def test_a_run_that_gets_worse_gives_back_its_beginning(tmp_path):
    trie, _ = world(packed)
    result = run(packed, tmp_path, epochs=8, lr=3e-2, callbacks=[Spoil(6*steps_of(packed))])
    assert result.best_epoch <= 6 and result.curve()[-1][1] < result.best == ndcg(result.model, trie)

class Spoil(TrainerCallback):
    "Noise instead of weights, after a step"
    def __init__(self, after): self.after = after
    def on_step_begin(self, args, state, control, model=None, **kwargs):
        if state.global_step >= self.after:
            with torch.no_grad():
                for p in model.parameters(): p.normal_(generator=torch.Generator().manual_seed(0))

def test_the_validation_users_are_ranked_as_asked(tmp_path):
    decode = DecodeConfig(beams=3, exclude_seen=False)
    trie, _ = world(packed)
    result = run(packed, tmp_path, epochs=2, decode=decode)
    assert result.best == ndcg(result.model, trie, decode) != ndcg(result.model, trie)

def test_another_metric_chooses(tmp_path):
    trie, _ = world(packed)
    result = run(packed, tmp_path, epochs=3, metric='recall@5')
    assert result.best == max(v for _, v in result.curve('recall@5'))


# ---- early stopping -----------------------------------------------------------------------------------------------

def test_the_warm_up_leaves_a_step(tmp_path):
    "A training of one step moves"
    warmup = lambda epochs, steps: _training_arguments(TrainConfig(epochs=epochs, warmup=.1), steps, tmp_path).warmup_steps
    assert (warmup(1, 1), warmup(1, 2), warmup(2, 30)) == (0, 1, 6)
    before = flat(packed())
    after = flat(run(packed, tmp_path, epochs=1, samples_per_epoch=4, warmup=.02).model)
    assert (before != after).any()

def test_patience(tmp_path):
    "A learning rate that moves nothing: the first look is the best, two more are granted"
    result = run(packed, tmp_path, epochs=9, lr=1e-12, patience=2)
    assert (result.epochs, result.best_epoch, len(result.curve())) == (3, 1, 3)
    assert run(packed, tmp_path/'b', epochs=4, lr=1e-12, patience=0).epochs == 4
    assert run(packed, tmp_path/'c', epochs=6, lr=1e-12, patience=1, eval_every=2).epochs == 4

def test_patience_survives_a_power_cut(tmp_path):
    "The looks that were in vain before the cut still count"
    whole, steps = run(packed, tmp_path/'a', epochs=9, lr=1e-12, patience=3), steps_of(packed)
    with pytest.raises(KeyboardInterrupt): run(packed, tmp_path/'b', epochs=9, lr=1e-12, patience=3, callbacks=[Break(3*steps)])
    same_end(run(packed, tmp_path/'b', epochs=9, lr=1e-12, patience=3, resume=True), whole)

def test_a_run_that_stopped_early_stays_stopped(tmp_path):
    whole = run(packed, tmp_path, epochs=9, lr=1e-12, patience=2)
    again = run(packed, tmp_path, epochs=9, lr=1e-12, patience=2, resume=True)
    assert again.epochs == whole.epochs and again.curve() == whole.curve() and torch.equal(flat(again.model), flat(whole.model))


# ---- ranking ------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize('make', [packed, titles])
def test_rank_cases_against_scoring_every_item(make):
    "Seen items are those of the whole history, also where the model reads only its end"
    model, (trie, _), ids = make(seed=3).eval(), world(make), TITLES if make is titles else CODES
    ranked = _rank_cases(model, trie, SPLIT.test, DecodeConfig(beams=100), k=N)
    assert max(np.diff(SPLIT.test.offsets)) > 5                                 # longer than what the model reads
    for m in range(0, len(SPLIT.test), 7):
        history = SPLIT.test.history(m).tolist()
        score = lambda i: sum(float(next_logp(model, history[-5:], ids.path(i)[:l].tolist())[t]) for l, t in enumerate(ids.path(i).tolist()))
        want = {i: score(i) for i in range(N) if i not in history}
        got = [i for i in ranked[m].tolist() if i >= 0]
        assert sorted(got) == sorted(want) and (ranked[m, len(got):] == -1).all()
        assert all(want[a] >= want[b] - 1e-4 for a, b in zip(got, got[1:]))

def test_rank_each_is_every_search_by_itself():
    model, (trie, _) = packed(seed=2), world(packed)
    gain = information_gain(trie, item_prior(SPLIT.train.target_counts()))
    scores = torch.randn(len(SPLIT.valid), N, generator=torch.Generator().manual_seed(1))
    configs = [DecodeConfig(beams=4), DecodeConfig(beams=6, alpha=.4), DecodeConfig(beams=4, assistant_weight=.5, length_penalty=1.)]
    together = rank_each(model, trie, SPLIT.valid, configs, gain, 5, assistant=scores)
    assert len(together) == 3 and not (together[0] == together[2]).all()
    for c, ranked in zip(configs, together): assert (ranked == _rank_cases(model, trie, SPLIT.valid, c, gain, 5, assistant=scores)).all()

def test_an_assistant_helps_rank_cases():
    model, trie = packed(), world(packed)[0]
    scores = torch.randn(len(SPLIT.valid), N, generator=torch.Generator().manual_seed(0))
    alone = _rank_cases(model, trie, SPLIT.valid, DecodeConfig(beams=N, assistant_weight=1.), k=5, assistant=scores)     # the assistant alone: its own ranking
    for m in range(len(SPLIT.valid)):
        left = scores[m].clone(); left[torch.from_numpy(SPLIT.valid.history(m).astype(np.int64))] = -torch.inf
        assert alone[m].tolist() == left.argsort(descending=True)[:5].tolist()
    with pytest.raises(GenrecError, match='rows of scores'): _rank_cases(model, trie, SPLIT.valid, DecodeConfig(assistant_weight=.5), assistant=scores[:-1])

class Ten:
    lengths = np.arange(10)
    def set_epoch(self, epoch): self.epoch = epoch
    def __len__(self): return 10
    def __getitem__(self, i): return i
    def collate(self, x): return x

@few
@given(st.integers(1, 14), st.integers(0, 99))
def test_an_epoch_is_a_subset(n, seed):
    d = _EpochSubset(Ten(), n, seed)
    epochs = []
    for e in range(3):
        d.set_epoch(e)
        rows = [d[i] for i in range(len(d))]
        assert d.base.epoch == e and len(set(rows)) == len(rows) == min(n, 10) and d.lengths.tolist() == rows
        epochs.append(rows)
    d.set_epoch(0)
    assert [d[i] for i in range(len(d))] == epochs[0]
    if 2 <= n <= 5: assert len({tuple(_EpochSubset(Ten(), n, seed + k)[i] for i in range(n)) for k in range(40)}) > 5

@pytest.mark.parametrize('make', [packed])
def test_few_samples_and_few_evaluation_users(make, tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr('genrec_nb.train._rank_cases', lambda model, trie, cases, *args, **kwargs: seen.append(cases.users.tolist()) or _rank_cases(model, trie, cases, *args, **kwargs))
    a = run(make, tmp_path/'a', samples_per_epoch=20, eval_users=7)
    assert {len(u) for u in seen} == {7} and len({tuple(u) for u in seen}) == 1
    assert next(l['step'] for l in a.logs if 'loss' in l) == 2                  # 20 samples in batches of 16
    same_end(a, run(make, tmp_path/'b', samples_per_epoch=20, eval_users=7))
    seen.clear()
    run(make, tmp_path/'c', samples_per_epoch=20, eval_users=0)                 # 0: all of them
    assert {len(u) for u in seen} == {len(SPLIT.valid)}
    with pytest.raises(GenrecError, match='eval_users is -1'): TrainConfig(eval_users=-1)

def test_resumed_subsets_are_those_of_the_unbroken_run(tmp_path):
    whole = run(packed, tmp_path/'a', samples_per_epoch=20)
    with pytest.raises(KeyboardInterrupt): run(packed, tmp_path/'b', samples_per_epoch=20, callbacks=[Break(5)])
    same_end(whole, run(packed, tmp_path/'b', samples_per_epoch=20, resume=True))

def test_no_case_at_all():
    from genrec_nb.splits import Cases
    none = Cases(np.empty(0, np.int64), np.empty(0, np.int32), np.zeros(1, np.int64), np.empty(0, np.int64))
    assert _rank_cases(packed(), ItemTrie.build(CODES), none, k=5).shape == (0, 5)
    with pytest.raises(GenrecError, match='no validation case'): fit(packed(), SPLIT.train, none, ItemTrie.build(CODES))


# ---- other losses: mixtures, the causal loss, temperature ---------------------------------------------------------

VECTORS = np.random.default_rng(8).normal(size=(N, 4))

def loss_of(make, name='multi', **settings):
    "A loss by name, from training counts"
    ids = TITLES if make is titles else CODES
    return make_weighting(name, **settings).objective(ItemTrie.build(ids), ids, counts=SPLIT.train.target_counts(), vectors=VECTORS)

def run_loss(make, loss, folder, **kwargs):
    "A short training"
    config = TrainConfig(**{**dict(epochs=4, batch_size=16, lr=1e-2, eval_every=1, patience=0), **{k: kwargs.pop(k) for k in list(kwargs) if k in TrainConfig.__dataclass_fields__}})
    return fit(make(), SPLIT.train, SPLIT.valid, ItemTrie.build(TITLES if make is titles else CODES), loss, config, folder, **kwargs)

def step_of(make, loss, batches, accumulate, folder):
    "Gradient of model and loss in each step, and the log, by the trainer"
    model, watch = make(dropout=0.), Watch()
    samples = model.samples(SPLIT.train, 5)
    args = _training_arguments(TrainConfig(epochs=1, batch_size=len(batches[0]), accumulate=accumulate), 1, folder, learning_rate=0., weight_decay=0., max_grad_norm=0., logging_steps=1, eval_strategy='no', save_strategy='no', load_best_model_at_end=False)
    trainer = GenrecTrainer(model, args, samples=samples, trie=ItemTrie.build(TITLES if make is titles else CODES), weights=loss, callbacks=[watch])
    trainer.get_train_dataloader = lambda: trainer.accelerator.prepare(DataLoader(samples, batch_sampler=batches, collate_fn=samples.collate))
    trainer.train()
    return watch.steps, [l for l in trainer.state.log_history if 'loss' in l]

def loss_by_hand(make, loss, numbers):
    "Gradient of model and loss, and the loss, of one step in plain torch"
    model = make(dropout=0.).train()
    out = model(**model.samples(SPLIT.train, 5).collate(numbers), tau=loss.tau, null_history=loss.null_history)
    value, parts = loss(out)
    loss.zero_grad()
    value.backward()
    return torch.cat([p.grad.flatten() if p.grad is not None else torch.zeros(p.numel()) for p in [*model.parameters(), *loss.parameters()]]), float(value.detach()), parts

@pytest.mark.parametrize('make, name, settings', [(packed, 'multi', {}), (packed, 'multi', dict(variant='exp')), (packed, 'cft', {}), (packed, 'ranking', {}),
                                                  (t5, 'multi', {}), (t5, 'cft', {}), (titles, 'frequency', dict(tau=.5))])
def test_accumulation_changes_nothing_for_any_loss(make, name, settings, tmp_path):
    "Gradients, those of the mixture included, the loss and each part"
    numbers = list(range(24))
    loss = loss_of(make, name, **settings)
    if isinstance(loss, MultiTargetLoss): loss.c = .05; loss.steps.fill_(9); loss.s.data += torch.tensor([.3, -.2, .1])
    want, plain, parts = loss_by_hand(make, loss, numbers)
    for size, accumulate in ((24, 1), (5, 5)):
        if isinstance(loss, MultiTargetLoss): loss.steps.fill_(9)
        (got,), (log,) = step_of(make, loss, [numbers[i:i + size] for i in range(0, 24, size)], accumulate, tmp_path/str(size))
        torch.testing.assert_close(got, want, rtol=1e-3, atol=1e-6)
        assert log['loss'] == pytest.approx(plain, rel=1e-4)
        np.testing.assert_allclose([log[f'loss_{n}'] for n in loss.names], parts.tolist()[:len(loss.names)], rtol=1e-4)
        if isinstance(loss, MultiTargetLoss): assert int(loss.steps) == 10           # one step, however many pieces

def test_the_clock_counts_optimizer_steps_only(tmp_path):
    "Looks at the validation users and micro-batches do not move it; the pace is that of the half-life"
    logs = {}
    for name, every, size, accumulate in (('a', 1, 16, 1), ('b', 4, 16, 1), ('c', 2, 8, 2)):
        loss = loss_of(packed, half_life=2.)
        result = run_loss(packed, loss, tmp_path/name, eval_every=every, batch_size=size, accumulate=accumulate, lr=1e-12)
        steps = steps_of(packed)
        assert loss.c == pytest.approx(np.log(2)/(2*steps))
        logs[name] = result.part('weight_frequency')
        np.testing.assert_allclose([w for _, w in logs[name]], [(1 - 2**-(e/2))/(1 + 2**-(e/2)) for e in (1, 2, 3, 4)], rtol=1e-4)
    assert [w for _, w in logs['a']] == [w for _, w in logs['b']]

@pytest.mark.parametrize('make, accumulate', [(packed, 2)])
def test_a_mixture_resumes_where_it_stood(make, accumulate, tmp_path):
    "Cut in the middle of the third epoch and in the fourth: same model, same mixture, same log, to the last bit; the model is itself again"
    steps, losses = steps_of(make, accumulate), [loss_of(make, half_life=2.) for _ in range(3)]
    whole = run_loss(make, losses[0], tmp_path/'a', accumulate=accumulate)
    for cut, loss in zip((2*steps + steps//2, 3*steps + 1), losses[1:]):
        with pytest.raises(KeyboardInterrupt): run_loss(make, loss, tmp_path/'b', accumulate=accumulate, callbacks=[Break(cut)], resume=True)
    again = loss_of(make, half_life=2.)                                         # as in a new process
    resumed = run_loss(make, again, tmp_path/'b', accumulate=accumulate, resume=True)
    same_end(resumed, whole)
    assert again.s.tolist() == losses[0].s.tolist() != [0, 0, 0] and int(again.steps) == int(losses[0].steps) > 0
    for n in again.names: assert resumed.part(f'weight_{n}') == whole.part(f'weight_{n}') and resumed.part(f'loss_{n}') == whole.part(f'loss_{n}')
    assert not hasattr(whole.model, 'objective') and not any('objective' in k for k in whole.model.state_dict()) and not whole.model._forward_hooks

def test_a_fit_begins_anew(tmp_path):
    "The same object twice: the second run does not begin where the first ended"
    loss = loss_of(packed)
    a = run_loss(packed, loss, tmp_path/'a', epochs=2)
    same_end(run_loss(packed, loss, tmp_path/'b', epochs=2), a)

def test_no_weight_decay_on_the_mixture(tmp_path):
    model, loss = packed(), loss_of(packed)
    trainer = GenrecTrainer(model, _training_arguments(TrainConfig(weight_decay=.3), 1, tmp_path), samples=model.samples(SPLIT.train, 5), trie=ItemTrie.build(CODES), weights=loss, valid=SPLIT.valid)
    with _attached(loss, model): groups = trainer.create_optimizer().param_groups
    assert [g['weight_decay'] for g in groups if any(p is loss.s for p in g['params'])] == [0.] and any(g['weight_decay'] == .3 for g in groups)

def test_the_mixture_learns_and_chooses_nothing(tmp_path):
    "It moves, toward the smaller loss; the best checkpoint has the best NDCG all the same"
    trie, _ = world(packed)
    result = run_loss(packed, loss_of(packed, variant='exp'), tmp_path, epochs=6, lr=3e-2)
    last = {n: result.part(f'weight_{n}')[-1][1] for n in ('uniform', 'front_greater', 'frequency')}
    mean = {n: np.mean([l for _, l in result.part(f'loss_{n}')]) for n in last}
    assert max(last, key=last.get) == min(mean, key=mean.get) and min(last.values()) < .33
    assert result.best == max(v for _, v in result.curve()) == ndcg(result.model, trie)

def test_a_checkpoint_of_another_loss_is_refused(tmp_path):
    run_loss(packed, loss_of(packed), tmp_path/'a', epochs=1)
    run(packed, tmp_path/'b', epochs=1)
    with pytest.raises(GenrecError, match='mixture of 3 targets, not with one loss'): run_loss(packed, None, tmp_path/'a', epochs=2, resume=True)
    with pytest.raises(GenrecError, match='one loss, not with a mixture of 3 targets'): run_loss(packed, loss_of(packed), tmp_path/'b', epochs=2, resume=True)
    with pytest.raises(GenrecError, match='mixture of 3 targets, not with a mixture of 2 targets'): run_loss(packed, loss_of(packed, targets=dict(uniform={}, igd={}), rising=('igd',)), tmp_path/'a', epochs=2, resume=True)

def test_limits_of_the_losses(tmp_path):
    "lambda = 0 is Pos, tau = 1 is the plain table, a mixture of one thing twice is that thing: same trained weights"
    trie, weights = world(packed)
    end = lambda loss, name: flat(run_loss(packed, loss, tmp_path/name, epochs=1).model)
    pos = end(loss_of(packed, 'position'), 'a')
    assert torch.equal(pos, end(loss_of(packed, 'cft', lam=0.), 'b')) and not torch.allclose(pos, end(loss_of(packed, 'cft', lam=.5), 'c'), atol=1e-4)
    igd = end(weights, 'd')
    assert torch.equal(igd, end(WeightedLoss(weights, 1.), 'e')) and not torch.allclose(igd, end(WeightedLoss(weights, .5), 'f'), atol=1e-4)
    torch.testing.assert_close(igd, end(MultiTargetLoss(dict(a=weights, b=weights), rising=('b',), c=.1), 'g'), rtol=1e-2, atol=1e-4)

def test_a_batch_without_weight_trains_on(tmp_path):
    "IGD with beta = 0, one sample a batch: some batches weigh nothing"
    trie, weights = world(packed, 0.)
    weights = weights*(torch.arange(N) % 2)[:, None]
    result = run_loss(packed, weights, tmp_path, epochs=1, batch_size=1)
    assert flat(result.model).isfinite().all() and all(np.isfinite(l) for _, l in result.losses)

@pytest.mark.parametrize('make', [packed, titles])
def test_plain_cross_entropy_of_the_validation_users(make, tmp_path):
    "Against one user at a time, from the training pass; chosen by it, the best checkpoint has the least"
    model, ids = make(seed=3), TITLES if make is titles else CODES
    model.eval()
    nats = [-float(next_logp(model, SPLIT.valid.history(m).tolist()[-5:], ids.path(t)[:l].tolist())[ids.path(t)[l]]) for m, t in enumerate(SPLIT.valid.targets.tolist()) for l in range(len(ids.path(t)))]
    assert _case_ce(model.train(), SPLIT.valid, batch_size=7) == pytest.approx(np.mean(nats), rel=1e-4) and model.training
    result = run_loss(make, loss_of(make, 'igd'), tmp_path, epochs=2, metric='ce')
    values = dict(result.curve('ce'))
    assert len(values) == 2 and result.best == min(values.values()) == values[result.best_epoch] == pytest.approx(_case_ce(result.model, SPLIT.valid), rel=1e-6)
    assert len(result.curve()) == 2

def test_histories_of_another_catalog_are_refused(tmp_path):
    "Before anything is trained; more items than paths would not even be noticed"
    other = Interactions(SPLIT.train.items, SPLIT.train.offsets, SPLIT.train.user_ids, N + 6)
    with pytest.raises(GenrecError, match=f'over {N + 6} items, the trie has paths for {N}'): fit(packed(), other, SPLIT.valid, ItemTrie.build(CODES), None, TrainConfig(), tmp_path)

def test_weights_that_do_not_fit_are_refused():
    trie, weights = world(packed)
    for bad, words in ((weights[:-1], 'items'), (weights[:, :-1], 'tokens'), (make_weighting('igd'), 'objective'), ('igd', 'str'), (weights*float('nan'), 'item 0'), (0*weights, 'all weights are 0')):
        with pytest.raises(GenrecError, match=words): _as_loss(bad, trie)
        with pytest.raises(GenrecError, match=words): fit(packed(), SPLIT.train, SPLIT.valid, trie, bad)

@pytest.mark.parametrize('make', [packed])
def test_held_out_items_leave_mixture_and_model_as_they_are(make, tmp_path):
    "Other last items of every user: counts, tables, mixture and weights after two epochs are the same"
    x, ends = ratings(), []
    for shift in (0, 5):
        items = x.items.copy()
        for back in (1, 2): items[x.offsets[1:] - back] = (items[x.offsets[1:] - back] + shift) % N
        split = leave_one_out(Interactions(items, x.offsets, x.user_ids, N))
        loss = make_weighting('multi', half_life=1.).objective(ItemTrie.build(CODES), CODES, counts=split.train.target_counts(), vectors=VECTORS)
        result = fit(make(), split.train, split.valid, ItemTrie.build(CODES), loss, TrainConfig(epochs=2, batch_size=16, eval_every=2), tmp_path/str(shift))
        ends.append((flat(result.model), loss.s.detach().clone()))
    assert all(torch.equal(a, b) for a, b in zip(*ends))


# ---- bad settings -------------------------------------------------------------------------------------------------

@pytest.mark.parametrize('bad, words', [(dict(epochs=0), 'epochs is 0'), (dict(batch_size=-1), 'batch_size'), (dict(accumulate=0), 'accumulate'), (dict(eval_every=0), 'eval_every'),
                                        (dict(lr=0.), 'lr'), (dict(lr=float('nan')), 'lr'), (dict(patience=-1), 'patience'), (dict(metric='ndcg@7'), 'metric'), (dict(metric='loss'), 'metric'), (dict(metric='loss_igd'), 'metric')])
def test_bad_settings_are_refused_before_anything_is_trained(bad, words):
    with pytest.raises(GenrecError, match=words) as e: TrainConfig(**bad)
    assert '\n' not in str(e.value)


# ---- mixed precision, two processes -------------------------------------------------------------------------------

def test_bfloat16(tmp_path):
    result = run(packed, tmp_path, epochs=2, bf16=True, use_cpu=True)
    assert all(np.isfinite(l) for _, l in result.losses) and flat(result.model).dtype == torch.float and flat(result.model).isfinite().all()

def in_one_of_two(rank, port, out, size):
    "One of two processes that share a gradient leaves behind what it has come to"
    os.environ |= dict(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE='2', MASTER_ADDR='127.0.0.1', MASTER_PORT=str(port), ACCELERATE_USE_CPU='true')
    AcceleratorState._reset_state(reset_partial_state=True)                     # the parent's says that it is alone
    trie, weights = world(packed)
    model, watch = packed(dropout=0.), Watch()
    samples = model.samples(SPLIT.train, 5)
    args = _training_arguments(TrainConfig(epochs=1, batch_size=size), 1, out/'run', max_grad_norm=0., eval_strategy='no', save_strategy='no', load_best_model_at_end=False, use_cpu=True)
    trainer = GenrecTrainer(model, args, samples=samples, trie=trie, weights=weights, callbacks=[watch])
    targets, inner = [], trainer.compute_loss
    def compute_loss(m, inputs, *a, **k):
        targets.append(_batch_targets(inputs).tolist())
        return inner(m, inputs, *a, **k)
    trainer.compute_loss = compute_loss
    trainer.train()
    ranked = _rank_cases(trainer.accelerator.unwrap_model(trainer.model), trie, SPLIT.valid, accelerator=trainer.accelerator)
    assert trainer.accelerator.process_index == rank and trainer.accelerator.num_processes == 2
    torch.save(dict(steps=watch.steps, end=flat(trainer.accelerator.unwrap_model(trainer.model)), ranked=torch.from_numpy(ranked), targets=targets), out/f'{rank}.pt')
    fitted = fit(packed(dropout=0.), SPLIT.train, SPLIT.valid, trie, weights, TrainConfig(epochs=2, batch_size=size, eval_every=1, patience=0), out/'fit', use_cpu=True)
    torch.save(dict(curve=fitted.curve(), losses=fitted.losses, best=fitted.best, best_epoch=fitted.best_epoch, epochs=fitted.epochs, end=flat(fitted.model)), out/f'fit{rank}.pt')
    model, watch, loss = packed(dropout=0.), Watch(), loss_of(packed)
    loss.c = .05; loss.steps.fill_(9)
    args = _training_arguments(TrainConfig(epochs=1, batch_size=size), 1, out/'mixed', max_grad_norm=0., logging_steps=1, eval_strategy='no', save_strategy='no', load_best_model_at_end=False, use_cpu=True)
    trainer = GenrecTrainer(model, args, samples=model.samples(SPLIT.train, 5), trie=ItemTrie.build(CODES), weights=loss, callbacks=[watch])
    trainer.train()
    torch.save(dict(first=watch.steps[0], s=loss.s.detach(), steps=int(loss.steps), log=[l for l in trainer.state.log_history if 'loss' in l][0], n=len(watch.steps)), out/f'mixed{rank}.pt')

@pytest.fixture(scope='module')
def two_processes(tmp_path_factory):
    "What two forks of this process leave behind"
    folder = tmp_path_factory.mktemp('two')
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        port = s.getsockname()[1]
    both = [multiprocessing.get_context('fork').Process(target=in_one_of_two, args=(rank, port, folder, 5), daemon=True) for rank in range(2)]
    for p in both: p.start()
    both[0].join(120); both[1].join(10)
    for p in both: p.kill()
    assert [p.exitcode for p in both] == [0, 0]
    return folder

def test_two_processes_are_one(two_processes, tmp_path):
    "Same gradient in both, that of one process over both halves; together they see every target once; same ranking; losses and curve of one that accumulates"
    a, b = (torch.load(two_processes/f'{r}.pt', weights_only=True) for r in range(2))
    assert all(torch.equal(p, q) for p, q in zip(a['steps'], b['steps'], strict=True)) and torch.equal(a['end'], b['end']) and torch.equal(a['ranked'], b['ranked'])
    samples, size = packed().samples(SPLIT.train, 5), 5
    batches = list(LengthBatches(samples, size, 0, processes=2))
    assert len(samples) % (2*size) not in (0, 1) and len(a['targets']) == math.ceil(len(samples)/size/2)  # the last step is not a full one
    one = [_batch_targets(samples.collate(x)).tolist() for x in batches]
    assert [t for pair in zip(a['targets'], b['targets']) for t in pair] == one
    every = _batch_targets(samples.collate(list(range(len(samples))))).tolist()
    assert sorted(sum(one, [])) == sorted(every)
    want, _ = by_hand(packed, batches[0] + batches[1])
    torch.testing.assert_close(a['steps'][0], want, rtol=1e-3, atol=1e-6)
    model = packed()
    torch.nn.utils.vector_to_parameters(a['end'], model.parameters())
    assert torch.equal(a['ranked'], torch.from_numpy(_rank_cases(model, world(packed)[0], SPLIT.valid)))
    f, g = (torch.load(two_processes/f'fit{r}.pt', weights_only=True) for r in range(2))
    assert f['curve'] == g['curve'] and torch.equal(f['end'], g['end'])
    single = fit(packed(dropout=0.), SPLIT.train, SPLIT.valid, *world(packed), TrainConfig(epochs=2, batch_size=size, accumulate=2, eval_every=1, patience=0), tmp_path, use_cpu=True)
    np.testing.assert_allclose(f['losses'], single.losses, rtol=1e-5)
    np.testing.assert_allclose(f['curve'], single.curve(), rtol=1e-3)
    torch.testing.assert_close(f['end'], flat(single.model), rtol=1e-3, atol=1e-4)
    assert [e for e, _ in f['curve']] == [1, 2] and f['epochs'] == 2 and f['best_epoch'] in (1, 2)
    torch.nn.utils.vector_to_parameters(f['end'], model.parameters())
    assert f['best'] == ndcg(model, world(packed)[0])

def test_a_mixture_in_two_processes(two_processes):
    "The gradient of model and mixture is that of one process over both halves; both end alike; the log is that of the whole batch"
    a, b = (torch.load(two_processes/f'mixed{r}.pt', weights_only=True) for r in range(2))
    assert torch.equal(a['first'], b['first']) and torch.equal(a['s'], b['s']) and a['steps'] == b['steps'] == 9 + a['n'] and a['log'] == b['log']
    batches, loss = list(LengthBatches(packed().samples(SPLIT.train, 5), 5, 0)), loss_of(packed)
    loss.c = .05; loss.steps.fill_(9)
    want, plain, parts = loss_by_hand(packed, loss, batches[0] + batches[1])
    torch.testing.assert_close(a['first'], want, rtol=1e-3, atol=1e-6)
    assert want[-3:].abs().min() > 1e-5 and a['log']['loss'] == pytest.approx(plain, rel=1e-4)
    np.testing.assert_allclose([a['log'][f'loss_{n}'] for n in loss.names], parts, rtol=1e-4)


def test_validation_targets_of_another_catalog_end_it_before_training(tmp_path):
    "No step, no checkpoint"
    from dataclasses import replace
    ids = Identifiers.random(SPLIT.train.n_items, 2, 16)
    bad = replace(SPLIT.valid, targets=SPLIT.valid.targets + 999)
    with pytest.raises(GenrecError, match='as a validation target'):
        fit(item_decoder(ids, d_model=16, num_heads=2), SPLIT.train, bad, ItemTrie.build(ids), None, TrainConfig(epochs=2, eval_every=2), tmp_path)
    assert not list(tmp_path.iterdir())


def test_training_leaves_the_loss_as_it_was(tmp_path):
    "One loss trains a model over children and then one over the vocabulary, which weighs every token"
    ids = Identifiers.random(SPLIT.train.n_items, 2, 16)
    trie, how = ItemTrie.build(ids), dict(d_model=16, num_heads=2)
    loss = make_weighting('uniform').objective(trie, ids)
    before = loss.table.clone()
    for n, softmax in enumerate(('children', 'vocabulary')):
        fit(item_decoder(ids, softmax=softmax, **how), SPLIT.train, SPLIT.valid, trie, loss, TrainConfig(epochs=1, eval_every=1), tmp_path/str(n), DecodeConfig(beams=4))
        assert loss.deciding is None and loss.table.equal(before)


@pytest.mark.parametrize('make', [packed, t5])
def test_a_compiled_step_is_the_plain_one(make):
    "What the compiler captures gives the loss and the gradients of the model itself, to the last bit where its operators are run as they are"
    trees = dict(softmax='children', prior='trie', counts=SPLIT.train.target_counts())
    sizes = dict(max_items=5, d_model=16, num_layers=1, num_heads=2)
    model = item_decoder(CODES, dropout=0., **sizes, **trees) if make is packed else tiger_t5(CODES, d_ff=16, num_decoder_layers=1, d_kv=8, dropout_rate=0., **sizes, **trees)
    inputs = model.samples(SPLIT.train, 5).collate(np.arange(8))
    def step(f):
        model.zero_grad()
        nll = f(**inputs).nll
        nll.sum().backward()
        return nll.detach(), [p.grad.clone() for p in model.parameters() if p.grad is not None]
    (plain, a), (compiled, b) = step(model), step(torch.compile(model, backend='eager', dynamic=True))
    assert torch.equal(plain, compiled) and len(a) == len(b) and all(map(torch.equal, a, b))
