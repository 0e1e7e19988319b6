"Grounding against a loop, title embeddings and unconstrained generation against single steps."
import numpy as np
import pytest
import torch
from genrec_nb.core import GenrecError
from genrec_nb.grounding import ground
from language import make, users

def slow_ground(written, items, counts, gamma, seen):
    out = []
    for w, s in zip(written, seen):
        d = np.array([np.sqrt(((w - i)**2).sum()) for i in items])
        d = (d - d.min())/(d.max() - d.min())
        p = (counts - counts.min())/(counts.max() - counts.min())
        d = d/(1 + p)**gamma
        out.append([i for i in np.argsort(d, kind='stable') if i not in s])
    return out

@pytest.mark.parametrize('gamma', [0., 1., 3.])
def test_grounding_against_a_loop(gamma):
    rng = np.random.default_rng(0)
    written, items, counts = rng.normal(size=(4, 6)), rng.normal(size=(30, 6)), rng.integers(1, 50, 30)
    seen = [[1, 2], [], [29], [0, 5, 7]]
    rows = torch.tensor([s + [-1]*(3 - len(s)) for s in seen])
    found, d = ground(torch.tensor(written), torch.tensor(items), 30, rows, counts, gamma)
    for row, want in zip(found.tolist(), slow_ground(written, items, counts, gamma, seen)): assert [i for i in row if i >= 0] == want
    assert (d.diff(dim=1)[torch.isfinite(d[:, 1:])] >= 0).all() and ((found < 0) == torch.isinf(d)).all()
    assert ground(torch.tensor(written), torch.tensor(items), 40)[0].shape == (4, 40)

def test_vectors_of_titles_are_those_of_a_title_alone():
    model = make(3)
    some = ['red saw', 'wood glue for long boards', 'x']
    together = model.title_vectors(some)
    for t, v in zip(some, together):
        with torch.no_grad(): alone = model.lm(input_ids=torch.tensor([model.tokenizer(t)['input_ids']]), output_hidden_states=True).hidden_states[-1][0, -1]
        np.testing.assert_allclose(v, alone, atol=1e-4)

def test_free_titles_are_greedy_steps():
    model = make(3)
    history = users(40, n=3, seed=3)
    for h, text in zip(history, model.free_titles(history, most=6)):
        x, _ = model.prompt(h[None])
        for _ in range(6):
            with torch.no_grad(): nxt = model.lm(input_ids=x).logits[0, -1].argmax()
            if nxt == model.tokenizer.eos_token_id: break
            x = torch.cat([x, nxt.view(1, 1)], 1)
        assert text == model.tokenizer.decode(x[0, model.prompt(h[None])[0].shape[1]:], skip_special_tokens=True).strip().split('\n')[0]

def test_grounding_refusals():
    with pytest.raises(GenrecError, match='counts='): ground(torch.zeros(1, 2), torch.ones(3, 2), gamma=1.)
    with pytest.raises(GenrecError, match='2 and 3 dimensions'): ground(torch.zeros(1, 2), torch.ones(3, 3))
    with pytest.raises(GenrecError, match='no title'): make(3).title_vectors([])
