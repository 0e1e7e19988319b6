"""Tries built on disk against those built in memory, what a memory limit holds, and what is refused."""
import json, os, sys
import numpy as np
import pytest
import torch
from hypothesis import given, strategies as st
from genrec_nb.core import FileError, GenrecError
from genrec_nb.semantic_ids import Identifiers, SPECIAL
from genrec_nb.trie import ItemTrie
from genrec_nb.trie_files import _blocks, _merge_runs, _NumberFile, _plan, _write_runs, build_trie_file
from genrec_nb.trie import _find_packing
from oracles import few, identifiers

def table(n, levels=4, size=256, seed=0):
    "Token ids drawn at random; two items in a hundred share their path with another"
    tokens = np.random.default_rng(seed).integers(0, size, (n, levels), np.int32) + np.arange(levels, dtype=np.int32)*size + 3
    tokens[:n//50] = tokens[n//2:n//2 + n//50]
    return tokens, 3 + levels*size

def ids_of(tokens, size): return Identifiers(tokens.reshape(-1), np.arange(len(tokens) + 1)*tokens.shape[1], SPECIAL + [str(i) for i in range(3, size)])

def equal(a, b): return (a.vocab_size, a.n_items) == (b.vocab_size, b.n_items) and all(torch.equal(x, b.tensors()[k]) and x.dtype == b.tensors()[k].dtype for k, x in a.tensors().items())


# ---- the same trie ------------------------------------------------------------------------------------------------

@pytest.mark.parametrize('n, levels, size, memory', [(1, 2, 4, 10**6), (5_000, 4, 6, 10**6), (70_001, 3, 40, 2**20), (40_000, 4, 256, 2**24)])
def test_on_disk_equals_in_memory(tmp_path, n, levels, size, memory):
    tokens, vocab = table(n, levels, size)
    np.save(tmp_path/'tokens.npy', tokens)
    mapped = np.load(tmp_path/'tokens.npy', mmap_mode='r')
    ids = ids_of(tokens, vocab)
    made = build_trie_file(tmp_path/'trie.safetensors', mapped, vocab, memory)
    assert equal(made, ItemTrie.build(ids))
    assert equal(ItemTrie.load(tmp_path/'trie.safetensors', ids), made)                     # checksums and fingerprint, too
    assert sorted(os.listdir(tmp_path)) == ['tokens.npy', 'trie.safetensors']

@few
@given(st.lists(st.integers(0, 50), min_size=1, max_size=200), st.integers(16, 80))
def test_pieces_never_exceed_their_size(tmp_path_factory, codes, piece):
    "The bound of the lesson, for any numbers, and all of them in order"
    tokens = np.array(codes, np.int32)[:, None] + 3
    n = len(tokens)
    if 4*-(-n//piece) > piece: return
    folder = tmp_path_factory.mktemp('runs')
    packing, sizes = _find_packing(tokens, n), []
    runs, out = _NumberFile(folder/'runs'), _NumberFile(folder/'sorted')
    append = out.append
    out.append = lambda x: (sizes.append(len(x)), append(x))
    _merge_runs(runs, _write_runs(tokens, packing, 7, piece, runs), n, piece, out)
    assert max(sizes) <= piece and (out[0:n] == np.sort(packing.words(tokens, np.arange(n)))).all()


# ---- memory -------------------------------------------------------------------------------------------------------

LIMITED = """
import resource, numpy as np
from genrec_nb.trie_files import build_trie_file, ItemTrie
used = lambda name: next(int(l.split()[1]) for l in open('/proc/self/status') if l.startswith(name))*1024
tokens = np.load('tokens.npy', mmap_mode='r')
build_trie_file('small', tokens[:2000], 1027, 10**6)
ItemTrie.load = classmethod(lambda *a, **k: None)                           # what is mapped at the end is no work
before = resource.getrlimit(resource.RLIMIT_AS)
resource.setrlimit(resource.RLIMIT_AS, (used('VmSize'), before[1]))
held = []                                                                   # free parts of all heaps are no room: a thread's counts 64 MB, used or not
try:
    while True: held.append(np.empty(2**20, np.uint8))
except MemoryError: resource.setrlimit(resource.RLIMIT_AS, before)
resource.setrlimit(resource.RLIMIT_AS, (used('VmSize') + {room}, before[1]))
try: build_trie_file('trie', tokens, 1027, {memory})
finally: resource.setrlimit(resource.RLIMIT_AS, before)
"""

@pytest.mark.skipif(not sys.platform.startswith('linux'), reason='address space is limited as Linux does it')
def test_the_limit_holds_in_a_process_that_has_no_more(tmp_path, forks):
    "Four million bytes for a million items; and the check can fail: a limit of 256 MB does not fit into that"
    tokens, _ = table(1_000_000)
    np.save(tmp_path/'tokens.npy', tokens)
    def run(memory):
        cell = dict(cell_type='code', id='a', metadata={}, outputs=[], execution_count=None, source=LIMITED.format(room=6_000_000, memory=memory))
        (tmp_path/'limited.ipynb').write_text(json.dumps(dict(cells=[cell], metadata={}, nbformat=4, nbformat_minor=5)))
        return forks.run(tmp_path/'limited.ipynb', store=False, log=tmp_path/'log')[0], (tmp_path/'log').read_text()
    status, said = run(4_000_000)
    assert status == 0, said[-500:]
    status, said = run(2**28)
    assert status != 0 and ('MemoryError' in said or 'Cannot allocate memory' in said), said[-500:]

def test_processes_share_a_loaded_trie(tmp_path):
    "Its pages are the file's, not the process's"
    tokens, vocab = table(400_000)
    ItemTrie.build(ids_of(tokens, vocab)).save(tmp_path/'trie.safetensors')
    private = lambda: next(int(l.split()[1]) for l in open('/proc/self/status') if l.startswith('RssAnon'))*1024
    if not os.path.exists('/proc/self/status'): pytest.skip('memory is read from /proc')
    before = private()
    trie = ItemTrie.load(tmp_path/'trie.safetensors')
    assert trie.token[1:].min() == 3 and private() - before < 4_000_000 < sum(x.nbytes for x in trie.tensors().values())
    trie.token[5] = -7                                                        # and a write stays private
    assert ItemTrie.load(tmp_path/'trie.safetensors').token[5] != -7


# ---- bad input ----------------------------------------------------------------------------------------------------

@pytest.mark.parametrize('memory', [1, 1000, 500_000])
def test_a_limit_too_small_for_a_level(tmp_path, memory):
    tokens, vocab = table(1000)
    with pytest.raises(GenrecError, match='too little to write one level of 1,000 items: it takes') as e:
        build_trie_file(tmp_path/'trie.safetensors', tokens, vocab, memory)
    assert '\n' not in str(e.value) and not os.listdir(tmp_path)

@pytest.mark.parametrize('n', [10, 10**5, 10**7, 10**9])
def test_the_limit_that_is_asked_for_suffices(n):
    with pytest.raises(GenrecError) as e: _plan(n, 4, 1)
    need = int(str(e.value).split('takes ')[1].split()[0].replace(',', ''))
    block, piece = _plan(n, 4, need)
    assert block >= 1024 and 8*piece <= need

def test_tokens_that_are_no_paths(tmp_path):
    tokens, vocab = table(1000)
    path = tmp_path/'trie.safetensors'
    for bad, words in ((tokens - 3, 'tokens 0 to'), (tokens + 1, f'expected 1 to {vocab - 1}'), (np.tile(tokens.astype(np.int64)*9999, 2), 'expected 1 to')):
        with pytest.raises(GenrecError, match=words): build_trie_file(path, bad, vocab)
    with pytest.raises(GenrecError, match='bits, and 63 are the most'): build_trie_file(path, np.tile(tokens, 2), vocab)
    assert not os.listdir(tmp_path)

@pytest.mark.parametrize('name', ['token', 'first', 'row', 'count', 'order', 'level', 'vocab_size', 'n_items'])
def test_a_damaged_array_is_named(tmp_path, name):
    path, ids = tmp_path/'trie.safetensors', identifiers([[4, 4, 6], [3, 4, 5], [3, 4, 6]])
    trie = ItemTrie.build(ids)
    trie.save(path, ids)
    raw = path.read_bytes()
    if name in trie.tensors(): at = raw.rindex(trie.tensors()[name].numpy().tobytes())
    else:
        n = int.from_bytes(raw[:8], 'little')
        at = 8 + n + json.loads(raw[8:8 + n])[name]['data_offsets'][0]
    path.write_bytes(raw[:at + 4] + bytes([raw[at + 4] ^ 1]) + raw[at + 5:])
    with pytest.raises(FileError, match=f"trie.safetensors: the array '{name}' is damaged") as e: ItemTrie.load(path)
    assert '\n' not in str(e.value)
    if name in trie.tensors(): assert ItemTrie.load(path, check=False).n_items == 3

def test_damaged_checksums(tmp_path):
    path, trie = tmp_path/'trie.safetensors', ItemTrie.build(identifiers([[3, 4], [3, 5]], 8))
    trie.save(path)
    path.write_bytes(path.read_bytes().replace(b'"checksums"', b'"checksumz"', 1))
    with pytest.raises(FileError, match="trie.safetensors: no checksums: 'checksums': write the file again"): ItemTrie.load(path)
    assert ItemTrie.load(path, check=False).n_items == 2

@pytest.mark.parametrize('way', ['built', 'saved'])
def test_every_number_of_a_file_is_checked(tmp_path, way):
    "Any byte behind the head that is changed is found"
    tokens, vocab = table(50)
    path = tmp_path/'trie.safetensors'
    if way == 'built': build_trie_file(path, tokens, vocab)
    else: ItemTrie.build(identifiers(tokens.tolist(), vocab)).save(path)
    raw = path.read_bytes()
    begin = 8 + int.from_bytes(raw[:8], 'little')
    for at in range(begin, len(raw), 7):
        path.write_bytes(raw[:at] + bytes([raw[at] ^ 1]) + raw[at + 1:])
        with pytest.raises(FileError, match='is damaged'): ItemTrie.load(path)

@pytest.mark.parametrize('memory', [1e9, '256MB', 0, -5, True, None])
def test_a_limit_that_is_no_number_of_bytes(tmp_path, memory):
    tokens, vocab = table(10)
    with pytest.raises(GenrecError, match='expected bytes, a whole number as 2'): build_trie_file(tmp_path/'trie.safetensors', tokens, vocab, memory)

@pytest.mark.parametrize('vocab', ['9', 9.5, None])
def test_a_size_of_the_vocabulary_that_is_no_whole_number(tmp_path, vocab):
    with pytest.raises(GenrecError, match='vocab_size is .*, expected a whole number'): build_trie_file(tmp_path/'trie.safetensors', table(10)[0], vocab)
    assert not os.listdir(tmp_path)

def test_tokens_in_a_tensor(tmp_path):
    tokens, vocab = table(20)
    a, b = (build_trie_file(tmp_path/f'{n}.safetensors', x, vocab) for n, x in enumerate((tokens, torch.from_numpy(np.asarray(tokens)))))
    assert torch.equal(a.token, b.token) and torch.equal(a.order, b.order)

@pytest.mark.parametrize('bad', [np.zeros((0, 3), int), np.ones(3, int), np.ones((3, 2)), [[3, 4]]])
def test_what_is_no_table_of_tokens(tmp_path, bad):
    with pytest.raises(GenrecError, match='expected whole numbers \\[items, levels\\]'): build_trie_file(tmp_path/'trie.safetensors', bad, 9)
    assert not os.listdir(tmp_path)

@pytest.mark.parametrize('items, words', [([True, False, True], 'of a mask, numpy.flatnonzero'), ([0, 3], 'found item 3 for a trie'), ([-1, 1], 'found item -1'), ([1, 0], 'expected ascending'), ([1, 1], 'each once'), ([], 'items: expected')])
def test_items_that_cannot_be_chosen(items, words):
    with pytest.raises(GenrecError, match=words): ItemTrie.build(identifiers([[3, 4], [3, 5], [4, 4]], 8), np.array(items))

def test_a_trie_of_another_table_is_refused(tmp_path):
    path, a = tmp_path/'trie.safetensors', identifiers([[3, 4], [3, 5]], 8)
    ItemTrie.build(a).save(path, a)
    assert ItemTrie.load(path, a).n_items == 2
    others = [identifiers(p, n) for p, n in (([[3, 5], [3, 4]], 8), ([[3, 4], [3, 6]], 8), ([[3, 4], [3, 5]], 9), ([[3, 4, 3, 5]], 8), ([[3], [4, 3, 5]], 8))]
    for other in others:
        with pytest.raises(FileError, match='the trie of another table'): ItemTrie.load(path, other)
    ItemTrie.build(a).save(path)
    with pytest.raises(FileError, match='its fingerprint is none'): ItemTrie.load(path, a)

def test_items_that_are_left_out():
    "Their numbers stay; the trie is that of the others"
    paths = [[3, 4], [3, 5], [3, 4], [5, 4], [4, 4]]
    some, live = ItemTrie.build(identifiers(paths), np.array([1, 2, 4])), ItemTrie.build(identifiers([paths[i] for i in (1, 2, 4)], 6))
    assert (some.n_items, len(some.order)) == (5, 3) and some.has_items(np.arange(5)).tolist() == [False, True, True, False, True]
    assert all(torch.equal(x, y) for (k, x), y in zip(some.tensors().items(), live.tensors().values()) if k != 'order')
    assert torch.tensor([1, 2, 4])[live.order.long()].tolist() == some.order.tolist()
    assert torch.equal(some.item_nodes(torch.tensor([1, 2, 4])), live.item_nodes()) and (some.item_nodes(torch.tensor([0, 3])) == -1).all()
