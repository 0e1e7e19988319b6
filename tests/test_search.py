"""Which search is used: by cost, by name, or refused; the same lists whatever the way."""
import numpy as np
import pytest
import torch
from genrec_nb.beam_search import DecodeConfig, recommend
from genrec_nb.core import SettingError
from genrec_nb.exact import ExactConfig, exact_search, _multiplications
from genrec_nb.infogain import information_gain, item_prior
from genrec_nb.run import load_config
from genrec_nb.search import chosen_search, search_each, search_facts, _missed
from genrec_nb.semantic_ids import Identifiers
from genrec_nb.trie import ItemTrie
from oracles import packed, t5
from test_exact import HISTORY, three

IDS = Identifiers.random(30, levels=3, size=4, seed=0)

def test_the_choice_by_cost_and_by_name(monkeypatch):
    model, trie = packed(IDS), ItemTrie.build(IDS)
    assert [chosen_search(model, trie, DecodeConfig(search=s)) for s in ('auto', 'exact', 'beam')] == ['exact', 'exact', 'beam']
    for config in (DecodeConfig(memory=2000), DecodeConfig(min_max='step')): assert chosen_search(model, trie, config) == 'beam'
    monkeypatch.setattr('genrec_nb.search._MOST', _multiplications(model) - 1)
    assert [chosen_search(model, trie, DecodeConfig(search=s)) for s in ('auto', 'exact')] == ['beam', 'exact']
    assert chosen_search(three(), None) == 'exact'                                    # whatever it costs
    other = ItemTrie.build(Identifiers.random(30, levels=3, size=4, seed=1))
    assert chosen_search(model, other) == chosen_search(t5(IDS), trie) == 'beam'

def test_multiplications_by_counting():
    ids = Identifiers.from_codes([[0, 0, 0], [0, 1, 0], [1, 0, 0], [1, 0, 1], [2, 2, 2]], policy='keep')
    d = 4                                                                             # head: 2 layers of d x 2d
    children = packed(ids, d_model=d, softmax='children')
    assert _multiplications(children) == d*((2*2*d + 3) + (2*2*d + 2) + (2*2*d + 2))   # the root, '0', '1 0'
    vocabulary = packed(ids, d_model=d)
    assert _multiplications(vocabulary) == d*(1*(4*d + 3 + 3) + 3*(4*d + 2 + 3) + 4*(4*d + 2 + 3))
    assert _multiplications(vocabulary, DecodeConfig(normalize='children')) == _multiplications(children)

@pytest.mark.parametrize('model, config, words', [
    (three, DecodeConfig(search='beam'), "take search='exact'"), (three, DecodeConfig(min_max='step'), "needs min_max='prefix'$"),
    (three, DecodeConfig(memory=2000), 'give more by decode.memory$'),
    (lambda: packed(IDS), DecodeConfig(search='exact', memory=2000), "decode.memory, or take search='beam'"),
    (lambda: packed(IDS, max_items=8), DecodeConfig(search='exact', memory=2000), 'exact ranking of 30 items needs')])
def test_refused_in_one_line_before_any_work(model, config, words):
    with pytest.raises(SettingError, match=words) as e: search_each(model(), ItemTrie.build(IDS), HISTORY[:0], configs=[config])
    assert '\n' not in str(e.value)

def test_settings_that_cannot_go_together_are_refused_at_once():
    with pytest.raises(SettingError, match="'step' depends on the beams, search 'exact' has none"): DecodeConfig(search='exact', min_max='step')
    with pytest.raises(SettingError, match='one of auto, exact, beam'): DecodeConfig(search='best')
    with pytest.raises(SettingError, match="'beam' follows one identifier"): load_config(overrides={'decode.search': 'beam', 'identifiers': ['item']})
    assert load_config(overrides={'decode.search': 'exact', 'decode.memory': 10**6}).decode == DecodeConfig(search='exact', memory=10**6)

def test_each_search_gives_its_own_lists():
    "Exact and beams in one call; colliding items in one order"
    model, trie = packed(Identifiers.from_codes(np.random.default_rng(0).integers(0, 3, (30, 2)), policy='keep')), None
    gain = information_gain(model.tries[0], item_prior(np.arange(30)))
    configs = [DecodeConfig(search='beam', beams=3), DecodeConfig(alpha=.3), DecodeConfig(search='beam', beams=50, alpha=.3)]
    narrow, exact, wide = search_each(model, model.tries[0], HISTORY, 9, configs, gain)
    assert [f.search for f in (narrow, exact, wide)] == ['beam', 'exact', 'beam']
    assert torch.equal(narrow.items, recommend(model, model.tries[0], HISTORY, 9, configs[0], gain)[0])
    assert torch.equal(exact.items, wide.items)
    torch.testing.assert_close(exact.scores, wide.scores)

def test_t5_by_branch_and_bound():
    model, trie = t5(IDS), ItemTrie.build(IDS)
    few, beam, wide = search_each(model, trie, HISTORY, 4, [DecodeConfig(search='exact', expansions=1), DecodeConfig(beams=2), DecodeConfig(beams=50)])
    full, = search_each(model, trie, HISTORY, 4, [DecodeConfig(search='exact', beams=2)])
    assert [f.search for f in (few, beam, full)] == ['branch and bound', 'beam', 'branch and bound'] and beam.proved is None
    assert full.proved.all() and not few.proved.all() and torch.equal(full.items, wide.items)
    empty, = search_each(model, trie, HISTORY[:0], 4, [DecodeConfig(search='exact')])
    assert empty.items.shape == (0, 4)

def test_what_a_beam_misses_by_counting():
    model, history = packed(Identifiers.random(200, levels=3, size=8, seed=0), sharp=.2), torch.arange(60).view(20, 3)
    trie, best = model.tries[0], search_each(model, model.tries[0], history, 5)[0].items
    facts = search_facts(model, trie, history, best[:, 4], 5, DecodeConfig(beams=5))
    beam = recommend(model, trie, history, 5, DecodeConfig(beams=5))[0].tolist()
    assert facts == dict(search='exact', users=20, k=5, beams=5, differs=np.mean([set(a) != set(b) for a, b in zip(beam, best.tolist())]),
                         lost=np.mean([b[4] not in a for a, b in zip(beam, best.tolist())]))
    assert 0 < facts['lost'] <= facts['differs'] < 1
    assert _missed(best, best, best[:, 0]) == dict(differs=0, lost=0) == _missed(best, best, torch.full((20,), -2))
    assert search_facts(model, trie, history, best[:, 4], 5, DecodeConfig(beams=5, memory=2000)) == dict(search='beam')
    by_beam = search_facts(model, trie, history, best[:, 4], 5, DecodeConfig(beams=5, search='beam'))
    assert by_beam == facts | dict(search='beam')

def test_what_is_proved_of_t5():
    model, trie = t5(IDS), ItemTrie.build(IDS)
    shares = [search_facts(model, trie, HISTORY, HISTORY[:, 3], 4, DecodeConfig(search='exact', expansions=n)) for n in (1, 1000)]
    assert shares[0]['proved'] < 1 == shares[1]['proved'] and shares[0]['prefixes'] <= 1 < shares[1]['prefixes']
    assert search_facts(model, trie, HISTORY, HISTORY[:, 3]) == dict(search='beam')

def test_several_identifiers_are_combined():
    model, mixture = three(), ExactConfig('mixture', (1., 2., 3.))
    found, = search_each(model, None, HISTORY, 4, exact=mixture)
    assert torch.equal(found.items, exact_search(model, HISTORY, 4, exact=mixture)[0])
    assert not torch.equal(found.scores, search_each(model, None, HISTORY, 4)[0].scores)

def test_rules_are_mixed_with_probabilities_alone():
    for rules in (.3, 'fitted'):
        with pytest.raises(SettingError, match='take length_penalty 0, or rules_weight 0'): DecodeConfig(rules_weight=rules, length_penalty=1.)
    assert DecodeConfig(rules_weight=.3).length_penalty == 0 == DecodeConfig(length_penalty=1.).rules_weight

def test_removed_items_are_left_out_a_few_users_at_a_time(monkeypatch):
    import genrec_nb.search as search
    model, history, removed = packed(IDS), torch.randint(30, (13, 4), generator=torch.Generator().manual_seed(0)), torch.tensor([1, 5, 9])
    ways = [DecodeConfig(), DecodeConfig(search='beam'), DecodeConfig(exclude_seen=False)]
    whole, few = search_each(model, None, history, 20, ways, removed=removed), search._few_users
    assert [len(x) for x in few(history, removed, 20)] == [2]*6 + [1]
    monkeypatch.setattr(search, '_few_users', lambda seen, removed: few(seen, removed, 20))
    for a, b in zip(whole, search_each(model, None, history, 20, ways, removed=removed)):
        assert torch.equal(a.items, b.items) and torch.allclose(a.scores, b.scores, atol=1e-4) and a.search == b.search and not torch.isin(a.items, removed).any()
    assert search_each(model, None, history[:0], 20, ways, removed=removed)[0].items.shape == (0, 20)
