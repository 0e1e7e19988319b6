"""Samples, batches and both generators: each against loops, against itself by another road, and against `transformers`."""
import numpy as np
import pytest
import torch
from hypothesis import given, strategies as st
from genrec_nb.core import GenrecError
from genrec_nb.data import Interactions
from genrec_nb.semantic_ids import Identifiers, EOS
from genrec_nb.batches import LengthBatches, PrefixSamples, Windows, history_tokens
from genrec_nb.item_decoder import ItemDecoder, level_ranges, item_decoder
from genrec_nb.tiger import TigerT5, tiger_t5
from genrec_nb.trie import ItemTrie
from oracles import identifiers, next_logp, packed, quick, t5

def interactions(rows, n_items=100):
    return Interactions(np.concatenate([np.asarray(r, np.int64) for r in rows]), np.cumsum([0] + [len(r) for r in rows]), [f'u{i}' for i in range(len(rows))], n_items)

def codes(n=20, sizes=(4, 3, 4), seed=0): return Identifiers.from_codes(np.random.default_rng(seed).integers(0, sizes, (n, len(sizes))), list(sizes), 'keep')

@st.composite
def histories(draw):
    "Users of 0 to 14 items, each interaction with a number of its own; one user at least has two"
    lengths = draw(st.lists(st.integers(0, 14), min_size=0, max_size=7)) + [draw(st.integers(2, 14))]
    ends = np.cumsum([0] + draw(st.permutations(lengths)))
    return [list(range(a, b)) for a, b in zip(ends, ends[1:])]


# ---- samples ------------------------------------------------------------------------------------------------------

@quick
@given(histories(), st.integers(1, 6))
def test_prefix_samples_by_loops(rows, H):
    samples = PrefixSamples(interactions(rows), H)
    want = [(r[max(0, j - H):j], r[j]) for r in rows for j in range(1, len(r))]
    assert len(samples) == len(want) and samples.lengths.tolist() == [len(h) for h, _ in want]
    batch = samples.collate(list(range(len(samples))))
    width = max(len(h) for h, _ in want)
    assert batch['history'].tolist() == [[-1]*(width - len(h)) + h for h, _ in want] and batch['targets'].tolist() == [t for _, t in want]
    one = samples.collate([len(samples) - 1])                                   # a batch is as wide as its longest
    assert one['history'].tolist() == [want[-1][0]] and one['targets'].tolist() == [want[-1][1]]

@quick
@given(histories(), st.integers(1, 6), st.integers(0, 4), st.integers(0, 99))
def test_windows_cover_every_target_once(rows, W, epoch, seed):
    "At most W+1 neighbours of one user, every position but the first a target once, as many windows in every epoch"
    windows = Windows(interactions(rows), W, seed)
    n = len(windows)
    windows.set_epoch(epoch)
    assert len(windows) == n == sum(-(-(len(r) - 1)//W) for r in rows if len(r) > 1)
    targets = []
    for i in range(n):
        run = [j for j in windows.collate([i])['items'][0].tolist() if j >= 0]
        assert len(run) == windows.lengths[i] and 2 <= len(run) <= W + 1
        assert any(run == r[a:a + len(run)] for r in rows for a in range(len(r)))
        targets += run[1:]
    assert sorted(targets) == [j for r in rows for j in r[1:]]

@quick
@given(histories(), st.integers(1, 6), st.integers(0, 99))
def test_cuts_depend_on_seed_and_epoch_alone(rows, W, seed):
    a, b = Windows(interactions(rows), W, seed), Windows(interactions(rows), W, seed)
    for epoch in (3, 0, 1): a.set_epoch(epoch)
    b.set_epoch(1)
    assert a.start.tolist() == b.start.tolist() and a.lengths.tolist() == b.lengths.tolist()

def test_cuts_move_and_every_cut_occurs():
    "A user of 11 items in windows of 4: all three pieces, each first length from rest to W"
    windows, seen = Windows(interactions([list(range(11))]), 4), set()
    for epoch in range(200):
        windows.set_epoch(epoch)
        seen.add(tuple(windows.lengths - 1))
    assert seen == {(2, 4, 4), (3, 4, 3), (4, 4, 2)}

@quick
@given(histories(), st.integers(1, 5), st.integers(1, 3), st.integers(0, 3), st.booleans())
def test_length_batches_hold_each_sample_once(rows, size, group, epoch, prefix):
    "Only the last batch may be smaller, the order is the seed's and the epoch's, in a group the lengths are sorted"
    make = lambda seed=5: LengthBatches(PrefixSamples(interactions(rows), 4) if prefix else Windows(interactions(rows), 4), size, seed, group)
    batches = make()
    batches.set_epoch(epoch)
    got = list(batches)
    assert len(got) == len(batches) and sorted(i for b in got for i in b) == list(range(len(batches.samples)))
    assert all(len(b) == size for b in got[:-1])
    again = make()
    again.set_epoch(epoch)
    assert got == list(again) == list(again)

def test_length_batches_save_padding():
    rng = np.random.default_rng(0)
    samples = PrefixSamples(interactions([list(range(n)) for n in rng.integers(2, 60, 200)]), 50)
    spread = lambda b: samples.lengths[b].max()*len(b)
    sorted_, plain = sum(map(spread, LengthBatches(samples, 16))), sum(map(spread, LengthBatches(samples, 16, group=1)))
    assert sorted_ < .8*plain and sorted_ < 1.1*samples.lengths.sum()

def test_length_batches_of_two_epochs_differ():
    batches = LengthBatches(PrefixSamples(interactions([list(range(40))]), 5), 4)
    first = list(batches)
    batches.set_epoch(1)
    assert list(batches) != first

@pytest.mark.parametrize('make', [PrefixSamples, Windows])
def test_nothing_to_train_on(make):
    with pytest.raises(GenrecError, match='fewer than two'): make(interactions([[1], [2]]))

@quick
@given(st.lists(st.lists(st.integers(-1, 4), min_size=3, max_size=3), min_size=1, max_size=5))
def test_history_tokens_by_loops(rows):
    "Holes anywhere, ragged paths with their own EOS: one EOS at the end"
    paths = [[3, 4, EOS], [5, EOS], [6, 7, 8, EOS], [3, 5, EOS], [9, EOS]]
    x, mask = history_tokens(torch.from_numpy(identifiers(paths).padded()), torch.tensor(rows))
    want = [[t for i in r if i >= 0 for t in paths[i][:-1]] + [EOS] for r in rows]
    width = max(map(len, want))
    assert x.tolist() == [w + [0]*(width - len(w)) for w in want] and mask.tolist() == [[1]*len(w) + [0]*(width - len(w)) for w in want]


# ---- T5 -----------------------------------------------------------------------------------------------------------

RAGGED = [[3, 4, EOS], [5, EOS], [6, 7, 8, EOS], [3, 5, EOS], [9, EOS], [6, 7, 3, EOS], [6, 4, EOS], [3, 4, EOS]]

@pytest.mark.parametrize('ids', [codes(), identifiers(RAGGED)], ids=['codes', 'titles'])
def test_t5_loss_is_transformers_own(ids):
    "One by one, by T5's own road from labels to loss"
    model, rng = t5(ids), np.random.default_rng(0)
    history, targets = torch.from_numpy(rng.integers(-1, ids.n_items, (6, 4))), torch.from_numpy(rng.integers(0, ids.n_items, 6))
    history[:, 0] = 2
    with torch.inference_mode():
        nll = model(history=history, targets=targets).nll
        for h, t, row in zip(history, targets, nll):
            x = torch.tensor([[k for i in h.tolist() if i >= 0 for k in ids.path(i).tolist() if k != EOS] + [EOS]])
            labels = torch.from_numpy(ids.path(int(t))[None].astype(np.int64))
            assert float(row.sum()/labels.numel()) == pytest.approx(float(super(TigerT5, model).forward(input_ids=x, labels=labels).loss), abs=1e-5)
            assert (row[labels.numel():] == 0).all()

@pytest.mark.parametrize('make, ids', [(t5, codes()), (t5, identifiers(RAGGED)), (packed, codes())], ids=['t5', 't5 titles', 'packed'])
def test_begin_and_advance_are_the_training_pass(make, ids):
    "Every prefix of every item, all users and beams at once with the shared cache, against one forward each"
    model, trie = make(ids), ItemTrie.build(ids)
    history = torch.tensor([[-1, -1, 3, 1], [5, 0, 2, 2], [-1, 7, 6, 4]])
    B, N = 3, ids.n_items
    paths = torch.from_numpy(ids.padded())
    with torch.inference_mode():
        logits, state = model.prefill(history)
        beams = torch.zeros(B, 1, dtype=torch.long)
        for depth in range(trie.max_depth):
            for b in range(B):
                for k in range(logits.shape[1]):
                    prefix = paths[k, :depth].tolist() if depth else []
                    if depth and 0 in ids.padded()[k, :depth + 1]: continue
                    np.testing.assert_allclose(logits[b, k].double().log_softmax(0), next_logp(model, history[b].tolist(), prefix), atol=2e-5)
            if depth + 1 == trie.max_depth: break
            parents = torch.arange(N).expand(B, N) if depth else torch.zeros(B, N, dtype=torch.long)
            logits = model.decode_step(state, paths[:, depth].expand(B, N), parents)

@pytest.mark.parametrize('make', [t5, packed])
def test_beams_may_be_shuffled_dropped_and_doubled(make):
    "Ancestors are tracked: reorder the beams at each step in a way that differs from user to user"
    ids = codes(20, (4, 3, 4, 3))
    model, rng = make(ids), np.random.default_rng(0)
    history, paths = torch.tensor([[1, 2, 3], [-1, 9, 8]]), torch.from_numpy(ids.padded())
    with torch.inference_mode():
        logits, state = model.prefill(history)
        written = [[[]], [[]]]
        for depth in range(3):
            k = (7, 3, 11)[depth]
            parents = rng.integers(0, len(written[0]), (2, k))
            tokens = paths[torch.from_numpy(rng.integers(0, 20, (2, k))), depth]
            logits = model.decode_step(state, tokens, torch.from_numpy(parents))
            written = [[written[u][p] + [int(t)] for p, t in zip(parents[u], tokens[u])] for u in range(2)]
            for u in range(2):
                for b in range(k): np.testing.assert_allclose(logits[u, b].double().log_softmax(0), next_logp(model, history[u].tolist(), written[u][b]), atol=2e-5)

@pytest.mark.parametrize('make', [t5, packed])
def test_a_user_does_not_depend_on_its_batch(make):
    ids = codes()
    model, rng = make(ids), np.random.default_rng(0)
    history = torch.from_numpy(rng.integers(0, 20, (5, 6)))
    for u, n in enumerate((6, 1, 3, 5, 2)): history[u, :6 - n] = -1
    with torch.inference_mode():
        together = model.prefill(history)[0]
        for u, n in enumerate((6, 1, 3, 5, 2)): torch.testing.assert_close(model.prefill(history[u:u + 1, 6 - n:])[0][0], together[u], atol=1e-5, rtol=0)


# ---- the packed decoder -------------------------------------------------------------------------------------------

def test_packed_loss_is_the_language_model_at_every_position():
    "One packed pass against one flat pass for each item and token"
    ids = codes()
    model, rng = packed(ids), np.random.default_rng(1)
    items = torch.from_numpy(rng.integers(0, 20, (4, 6)))
    for r, n in enumerate((6, 2, 4, 3)): items[r, n:] = -1
    with torch.inference_mode(): out = model(items=items)
    want, targets = [], []
    for row in items.tolist():
        row = [i for i in row if i >= 0]
        for j in range(1, len(row)):
            path = ids.path(row[j]).tolist()
            want.append([-float(next_logp(model, row[:j], path[:l])[t]) for l, t in enumerate(path)])
            targets.append(row[j])
    assert out.targets.tolist() == targets
    np.testing.assert_allclose(out.nll, want, atol=2e-5)

def test_packed_decoder_does_not_see_the_future():
    model = packed(codes())
    a = torch.tensor([[1, 2, 3, 4, 5, 6]])
    for j in range(1, 6):
        b = a.clone()
        b[0, j:] = torch.randint(7, 20, (6 - j,), generator=torch.Generator().manual_seed(j))
        with torch.inference_mode(): torch.testing.assert_close(model(items=a).nll[:j - 1], model(items=b).nll[:j - 1])

def test_packed_language_model_with_padding():
    "Whole items of padding on the left change nothing"
    ids = codes()
    model, paths = packed(ids), torch.from_numpy(ids.codes())
    plain = paths[torch.tensor([[4, 7, 9]])].flatten(1)
    padded = torch.cat([torch.zeros(1, 6, dtype=torch.long), plain], 1)
    mask = torch.cat([torch.zeros(1, 6, dtype=torch.long), torch.ones_like(plain)], 1)
    with torch.inference_mode(): torch.testing.assert_close(model(input_ids=padded, attention_mask=mask).logits, model(input_ids=plain).logits)

def test_paths_that_the_packed_decoder_cannot_take():
    with pytest.raises(GenrecError, match="use backbone 't5'"): item_decoder(identifiers(RAGGED))
    with pytest.raises(GenrecError, match='share tokens'): level_ranges(identifiers([[3, 4], [4, 5]]))
    ids = codes()
    with pytest.raises(GenrecError, match='empty history'): packed(ids).prefill(torch.tensor([[-1, -1]]))
    with pytest.raises(GenrecError, match='8 at most'): packed(ids).prefill(torch.zeros(1, 9, dtype=torch.long))
    for make in (t5, packed):
        with pytest.raises(GenrecError, match='different runs'): make(ids).set_items(codes(20, (5, 3, 4)))


# ---- both ---------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize('make, kind', [(t5, TigerT5), (packed, ItemDecoder)])
def test_saved_and_loaded_models_agree(make, kind, tmp_path):
    ids = codes()
    model = make(ids)
    model.save_pretrained(tmp_path)
    other = kind.from_pretrained(tmp_path).set_items(ids).eval()
    history = torch.tensor([[1, 2, 3], [-1, 4, 5]])
    with torch.inference_mode(): assert torch.equal(model.prefill(history)[0], other.prefill(history)[0])
    assert other.config.max_items == model.config.max_items and [*tmp_path.glob('*.safetensors')] and not [*tmp_path.glob('*.bin')]

@pytest.mark.parametrize('make', [tiger_t5, item_decoder])
def test_initial_weights_are_the_seeds_alone(make):
    before = torch.random.get_rng_state()
    a, b, c = (make(codes(), seed=s, d_model=16) for s in (1, 1, 2))
    assert torch.equal(before, torch.random.get_rng_state())
    assert all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters()))
    assert not all(torch.equal(p, q) for p, q in zip(a.parameters(), c.parameters()))

@pytest.mark.parametrize('make', [t5, packed])
def test_tau_reaches_the_loss(make):
    ids = codes()
    model = make(ids)
    batch = dict(history=torch.tensor([[1, 2]]), targets=torch.tensor([3])) if make is t5 else dict(items=torch.tensor([[1, 2, 3]]))
    with torch.inference_mode(): plain, cold = model(**batch).nll[-1], model(**batch, tau=.5).nll[-1]
    h, path = [1, 2], ids.path(3).tolist()
    want = [-float((next_logp(model, h, path[:l])/.5).log_softmax(0)[t]) for l, t in enumerate(path)]
    np.testing.assert_allclose(cold, want, atol=2e-5)
    assert not torch.allclose(plain, cold)
