"The attention mask and the forced runs against walks in the trie."
import pytest
import torch
from genrec_nb.prompts import title_identifiers
from genrec_nb.tree_attention import tree_mask
from genrec_nb.trie import ItemTrie
from language import some_titles, base

@pytest.mark.parametrize('seed', range(3))
def test_ancestors_and_chains_against_walks(seed):
    trie = ItemTrie.build(title_identifiers(some_titles(30, seed), base(some_titles(30, seed))[1]))
    nodes = torch.arange(-1, trie.n_nodes)[None]
    look, run = tree_mask(trie, nodes, nodes)[0], trie.forced_runs.tolist()
    kids = [trie.children(torch.tensor(n)).tolist() for n in range(trie.n_nodes)]
    for n in range(trie.n_nodes):
        up, at = set(), n
        while at >= 0: up, at = up | {at}, int(trie.parent[at])
        assert set((look[n + 1].nonzero()[:, 0] - 1).tolist()) == up
        length, at = 0, n
        while len(kids[at]) == 1 and kids[kids[at][0]]: length, at = length + 1, kids[at][0]
        assert run[n] == length
    assert not look[0].any() and not look[:, 0].any()
