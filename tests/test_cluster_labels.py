"What a prefix stands for: words against brute force, and catalogs without words."
import re

import numpy as np
import pytest
import torch

from genrec_nb.cluster_labels import ClusterLabel, _word_information, find_prefix, label_prefixes
from genrec_nb.core import SettingError
from genrec_nb.data import Catalog
from genrec_nb.semantic_ids import Identifiers
from genrec_nb.trie import ItemTrie
from sklearn.metrics import mutual_info_score

rng = np.random.default_rng(0)
N, WORDS = 300, [f'w{i}' for i in range(40)]


def a_catalog(codes):
    "Texts whose words follow the codes, beside random ones"
    texts = [' '.join([f'kind{a}', f'color{b}', *rng.choice(WORDS, 6)]) for a, b, *_ in codes]
    return Catalog([str(i) for i in range(len(codes))], [f'Title {i}' for i in range(len(codes))], texts)


def by_brute_force(below, other, texts):
    "Words of the items below, by scikit-learn's mutual information of two lists of yes and no"
    items, found = below + other, []
    has = [set(re.findall(r"\w[\w'’-]*\w", texts[i].lower())) for i in items]
    for word in sorted(set().union(*has)):
        is_below, with_word = [i in below for i in items], [word in x for x in has]
        y, o = sum(with_word[:len(below)]), sum(with_word[len(below):])
        gain = mutual_info_score(is_below, with_word)
        if y/len(below) > o/len(other) and 2*len(items)*gain > 10.83 and y >= 2 and y >= len(below)/10:
            found.append((-gain, -y, word))
    return [(word, -g) for g, _, word in sorted(found)]


def test_words_and_items_by_brute_force():
    codes = np.c_[rng.integers(0, 3, N), rng.integers(0, 4, N), rng.integers(0, 50, N)]
    catalog, counts = a_catalog(codes), rng.integers(0, 20, N)
    ids = Identifiers.from_codes(codes, [3, 4, 50])
    trie = ItemTrie.build(ids)
    nodes = list(range(1, 1 + 3 + 12))
    for node, label in zip(nodes, label_prefixes(trie, nodes, catalog, counts)):
        first = int(trie.order[int(trie.row[node])])
        depth = 1 if node < 4 else 2
        below = [i for i in range(N) if (codes[i, :depth] == codes[first, :depth]).all()]
        other = [i for i in range(N) if (codes[i, :depth - 1] == codes[first, :depth - 1]).all() and i not in below]
        want = by_brute_force(below, other, catalog.texts)[:5]
        assert label.items == len(below) and label.words == [w for w, _ in want]
        assert (f'kind{codes[first, 0]}' in label.words) == (depth == 1)      # the parent has said it already
        best = sorted(below, key=lambda i: (-counts[i], i))[:3]
        assert label.typical == [catalog.titles[i] for i in best]


def test_information_is_that_of_two_yes_or_no_questions():
    for n, m in ((3, 2), (40, 7), (1, 90)):
        y, o = rng.integers(0, n + 1, 30), rng.integers(0, m + 1, 30)
        is_below = [1]*n + [0]*m
        want = [mutual_info_score(is_below, [1]*a + [0]*(n - a) + [1]*b + [0]*(m - b))*(a*m > b*n) for a, b in zip(y, o)]
        np.testing.assert_allclose(_word_information(y, n, o, m), want, atol=1e-12)


def test_a_large_catalog_is_sampled_and_says_the_same():
    codes = np.c_[rng.integers(0, 3, 9000), rng.integers(0, 4, 9000)]
    catalog = a_catalog(codes)
    trie = ItemTrie.build(Identifiers.from_codes(codes, [3, 4], policy='keep'))
    labels = label_prefixes(trie, list(range(1, 4)), catalog, np.ones(9000))
    assert [x.words[0] for x in labels] == ['kind0', 'kind1', 'kind2'] and sum(x.items for x in labels) == 9000


@pytest.mark.parametrize('catalog', [Catalog.from_ids(['11', '12', '13', '14']),
                                     Catalog(list('abcd'), list('ABCD'), ['']*4)])
def test_items_without_words_have_labels_without_words(catalog):
    trie = ItemTrie.build(Identifiers.from_codes(np.array([[0, 0], [0, 1], [1, 0], [1, 1]]), [2, 2]))
    group, alone, forced = label_prefixes(trie, trie.item_nodes(torch.tensor([1]))[0].tolist(), catalog, np.arange(4))
    titles = catalog.titles
    assert str(group) == f'2 items; such as {titles[1]}; {titles[0]}' and str(alone) == f'{titles[1]} alone'
    assert str(forced) == 'the same item' and forced.forced


def test_one_token_an_item_reads_no_text(monkeypatch):
    import genrec_nb.cluster_labels as module
    monkeypatch.setattr(module, '_readable', lambda catalog, items: pytest.fail('read') if len(items) else [])
    trie = ItemTrie.build(Identifiers.from_codes(np.arange(9)[:, None], [9], policy='keep'))
    labels = label_prefixes(trie, list(range(1, 10)), Catalog.from_ids([str(i) for i in range(9)]), np.zeros(9))
    assert labels == [ClusterLabel(1, [str(i)], []) for i in range(9)]


def test_all_items_on_one_path():
    trie = ItemTrie.build(Identifiers.from_codes(np.zeros((5, 2), int), [4, 4], policy='keep'))
    labels = label_prefixes(trie, [1, 2], Catalog(list('abcde'), ['Same tea']*5, ['same tea']*5), np.ones(5))
    assert [str(x) for x in labels] == ['the same 5 items']*2


def test_a_prefix_is_found_by_its_name_or_refused_in_one_line():
    codes = np.c_[rng.integers(0, 30, N), rng.integers(0, 40, N)]
    ids = Identifiers.from_codes(codes, [30, 40])
    trie = ItemTrie.build(ids)
    for i in range(0, N, 17):
        assert [find_prefix(trie, ids, ' '.join(ids.names(i)[:t])) for t in (1, 2)] == trie.item_nodes()[i, :2].tolist()
    assert find_prefix(trie, ids, '') == 0
    for wrong, near in (('<a_3', '<a_3>'), ('<b_1>', '<a_1'), ('<a_1> <a_1>', 'none of the')):
        with pytest.raises(SettingError, match=near) as e: find_prefix(trie, ids, wrong)
        assert '\n' not in str(e.value) and len(str(e.value)) < 250
