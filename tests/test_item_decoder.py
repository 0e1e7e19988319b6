"""The decoder over items: its training pass against its language model, causality, padding, `transformers`' own classes, refusals."""
import copy
import numpy as np
import pytest
import torch
from hypothesis import given, strategies as st
from transformers import AutoConfig, AutoModel
from genrec_nb.beam_search import DecodeConfig
from genrec_nb.core import GenrecError, SettingError
from genrec_nb.exact import exact_scores
from genrec_nb.item_decoder import ItemDecoder, ItemDecoderConfig, item_decoder, _CodeHead, _level_ranges
from genrec_nb.semantic_ids import EOS, Identifiers
from genrec_nb.tiger import tiger_t5
from oracles import identifiers, next_logp, packed, quick, t5

def codes(n=20, sizes=(4, 3, 4), seed=0): return Identifiers.from_codes(np.random.default_rng(seed).integers(0, sizes, (n, len(sizes))), list(sizes), 'keep')

RAGGED = [[3, 4, EOS], [5, EOS], [6, 7, 8, EOS], [3, 5, EOS], [9, EOS], [6, 7, 3, EOS], [6, 4, EOS], [3, 4, EOS]]


def test_loss_is_the_language_model_at_every_position():
    "One pass over rows against one flat pass for each item and token"
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

def test_later_items_change_nothing():
    model = packed(codes())
    a = torch.tensor([[1, 2, 3, 4, 5, 6]])
    for j in range(1, 6):
        b = a.clone()
        b[0, j:] = torch.randint(7, 20, (6 - j,), generator=torch.Generator().manual_seed(j))
        with torch.inference_mode(): torch.testing.assert_close(model(items=a).nll[:j - 1], model(items=b).nll[:j - 1])

def test_language_model_with_padding():
    "Whole items of padding on the left change nothing"
    ids = codes()
    model, paths = packed(ids), torch.from_numpy(ids.codes())
    plain = paths[torch.tensor([[4, 7, 9]])].flatten(1)
    padded = torch.cat([torch.zeros(1, 6, dtype=torch.long), plain], 1)
    mask = torch.cat([torch.zeros(1, 6, dtype=torch.long), torch.ones_like(plain)], 1)
    with torch.inference_mode(): torch.testing.assert_close(model(input_ids=padded, attention_mask=mask).logits, model(input_ids=plain).logits)

def test_paths_that_the_decoder_cannot_take():
    with pytest.raises(GenrecError, match='see Identifiers.by_level'): item_decoder(identifiers(RAGGED))
    with pytest.raises(GenrecError, match='share tokens'): _level_ranges(identifiers([[3, 4], [4, 5]]))
    ids = codes()
    with pytest.raises(GenrecError, match='at least one item'): packed(ids).prefill(torch.tensor([[-1, -1]]))
    with pytest.raises(GenrecError, match='8 at most'): packed(ids).prefill(torch.zeros(1, 9, dtype=torch.long))
    for make in (t5, packed):
        with pytest.raises(GenrecError, match='different runs'): make(ids).set_items(codes(20, (5, 3, 4)))

def test_auto_classes_load_it(tmp_path):
    "Registered by its model type: `AutoModel` knows it without code from a repository"
    model = packed(codes())
    model.save_pretrained(tmp_path)
    again = AutoModel.from_pretrained(tmp_path)
    assert isinstance(again, ItemDecoder) and isinstance(AutoConfig.from_pretrained(tmp_path), ItemDecoderConfig)
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), again.parameters()))


def test_a_new_item_may_have_a_code_that_no_old_item_had():
    "Every code of the vocabulary has weights, at the ends of a level, too: the longer table is ranked, and has probability 1"
    import genrec_nb.new_items
    old = Identifiers.from_codes([[0, 1], [1, 2], [2, 1], [3, 2]], [4, 4], 'keep')
    model = item_decoder(old, d_model=16, num_heads=2, softmax='children')
    assert model.config.sizes == [4, 4]
    new = old.append(np.array([[0, 3], [3, 0]]), policy='keep')
    (found,) = exact_scores(model.eval().set_items(new), torch.tensor([[1, 4]]), DecodeConfig(exclude_seen=False))
    torch.testing.assert_close(found.logp.exp().sum(-1), torch.ones(1, 1))
    small = item_decoder(Identifiers.from_codes([[0, 1], [1, 2]], [2, 3], 'keep'), d_model=16, num_heads=2)
    with pytest.raises(GenrecError, match='other levels or tokens than the model was made for'): small.set_items(new)


def test_a_prior_is_of_the_children():
    "Over the vocabulary it would be added to nothing: refused, before the model is made"
    for make in (item_decoder, tiger_t5):
        with pytest.raises(SettingError, match="prior='trie' is added to the logits of children"):
            make(Identifiers.random(9, 2, 4), counts=np.ones(9), prior='trie')


def test_how_many_users_are_searched_at_once_does_not_matter():
    "128 of a small vocabulary, fewer of a large one, which would fill the memory; the lists are those of any other number"
    from genrec_nb.beam_search import DecodeConfig, recommend
    from genrec_nb.semantic_ids import Identifiers
    ids = Identifiers.random(300, levels=3, size=8, seed=0)
    model = item_decoder(ids, seed=1)
    model.bias[0].data.normal_()
    assert model.users_at_once == 128 and item_decoder(Identifiers.from_codes(np.arange(30_000)[:, None], policy='keep'), d_model=4, num_heads=1).users_at_once == 2**21//30_003
    history = torch.randint(0, 300, (200, 5), generator=torch.Generator().manual_seed(0))
    config = DecodeConfig(6, search='beam')
    (a, x), (b, y) = recommend(model, model.tries[0], history, 6, config), recommend(model, model.tries[0], history, 6, config, batch_size=7)
    assert (a == b).float().mean() > .99
    torch.testing.assert_close(x, y, rtol=1e-4, atol=1e-5)


# ---- sums of users and prefixes ----------------------------------------------------------------------------------------------

@quick
@given(st.integers(0, 99), st.floats(.01, 30), st.floats(.01, 30), st.integers(1, 3))
def test_outputs_of_sums_are_those_of_each_sum(seed, far, near, width):
    """Whatever the lengths of a user's state and of a prefix, and where they cancel out but for a little: within the error that rounding to
    float32 must have, which both norms enlarge, the first by how much of a + b cancels out, the last by how little its input varies"""
    torch.manual_seed(seed)
    head, g = _CodeHead(12, width, .3).eval(), torch.Generator().manual_seed(seed)
    for p in head.parameters(): p.data = p.data + .5*torch.randn(p.shape, generator=g)
    a, b = far*torch.randn(5, 12, generator=g) + 1, near*torch.randn(4, 12, generator=g)
    b[0], b[1] = 0, .01*torch.randn(12, generator=g) - a[0]
    with torch.no_grad(): found, each = head.of_sums(a, b), head(a[:, None] + b)
    exact, sums = copy.deepcopy(head).double(), a.double()[:, None] + b.double()
    with torch.no_grad(): wanted, last = exact(sums), sums + exact.mlp(sums)
    canceled = (a.norm(dim=1)[:, None] + b.norm(dim=1))/(sums - sums.mean(-1, keepdim=True)).norm(dim=-1)
    allowed = 20*torch.finfo(torch.float32).eps*(1 + canceled)*(1 + 1/last.std(-1, correction=0))
    for x in (found, each): assert ((x - wanted).abs().amax(-1) <= allowed).all()

@pytest.mark.parametrize('settings', [{}, dict(head_ff=0), dict(cosine_temperature=.1), dict(head_ff=1, mean_embeddings=True)])
def test_head_outputs_of_every_kind_of_head(settings):
    model, g = packed(codes(), **settings), torch.Generator().manual_seed(1)
    a, b = torch.randn(3, 16, generator=g), torch.randn(5, 16, generator=g)
    with torch.no_grad():
        for l in range(3): torch.testing.assert_close(model.head_outputs(a, b, l), model.head_output(a[:, None] + b, l), atol=1e-5, rtol=1e-4)
