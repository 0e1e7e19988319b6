"Identifiers against plain Python dictionaries, the published tables, and bad input."
import json, os
from collections import Counter
from pathlib import Path
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from numpy.testing import assert_array_equal
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from genrec_nb.core import GenrecError
from genrec_nb.semantic_ids import BOS, EOS, PAD, POLICIES, SPECIAL, Identifiers, Paths, append_eos, code_tokens, collision_counts, compare_policies, pad_paths, path_groups, prefix_pairs, resolve_free, running_number

DATA = Path(os.environ.get('GENREC_DATA') or Path(__file__).parents[1]/'../shared/data')
paths = st.lists(st.lists(st.integers(3, 6), min_size=1, max_size=4), min_size=1, max_size=25)

def arrays(ps): return np.array([t for p in ps for t in p], np.int32), np.cumsum([0] + [len(p) for p in ps])
def table(tmp_path, text):
    f = tmp_path/'index.json'
    f.write_text(text if isinstance(text, str) else json.dumps(text))
    return f

def word_tokenizer(titles):
    t = Tokenizer(models.WordLevel(unk_token='[UNK]'))
    t.pre_tokenizer = pre_tokenizers.Whitespace()
    t.train_from_iterator(titles, trainers.WordLevelTrainer(special_tokens=['[UNK]']))
    return t

def byte_tokenizer(titles, size=400):
    t = Tokenizer(models.BPE())
    t.pre_tokenizer, t.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    t.train_from_iterator(titles, trainers.BpeTrainer(vocab_size=size, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False))
    return t


# ---- paths against dictionaries ----

@settings(max_examples=150, deadline=None)
@given(paths)
def test_paths_against_brute_force(ps):
    flat, offsets = arrays(ps)
    padded = pad_paths(flat, offsets)
    width = max(map(len, ps))
    assert_array_equal(padded, [p + [PAD]*(width - len(p)) for p in ps])
    number = {p: i for i, p in enumerate(sorted({tuple(p) for p in ps}))}
    group = path_groups(padded)
    assert_array_equal(group, [number[tuple(p)] for p in ps])
    size = Counter(map(tuple, ps))
    shared = [n for n in size.values() if n > 1]
    c = collision_counts(group)
    assert (c['distinct'], c['groups'], c['items'], c['largest']) == (len(size), len(shared), sum(shared), max(size.values()))
    assert c['rate'] == pytest.approx(1 - len(size)/len(ps))
    assert_array_equal(running_number(group), [sum(q == p for q in ps[:i]) for i, p in enumerate(ps)])
    begun = {a for a in size if any(len(b) > len(a) and b[:len(a)] == a for b in size)}
    pairs = prefix_pairs(padded)
    assert {tuple(ps[a]) for a, _ in pairs} == begun and len(pairs) == len(begun)
    assert all(len(ps[b]) > len(ps[a]) and ps[b][:len(ps[a])] == ps[a] for a, b in pairs)
    ended = pad_paths(*append_eos(flat, offsets))
    assert [[t for t in r if t] for r in ended.tolist()] == [p + [EOS] for p in ps] and len(prefix_pairs(ended)) == 0

def test_long_paths_need_several_sort_keys():
    rng = np.random.default_rng(0)
    rows = rng.integers(3, 60_000, (200, 9)); rows[50:100] = rows[:50]
    number = {p: i for i, p in enumerate(sorted(map(tuple, set(map(tuple, rows.tolist())))))}
    assert_array_equal(path_groups(rows), [number[tuple(r)] for r in rows.tolist()])

@pytest.mark.parametrize('flat,offsets,message', [
    ([3, 4], [0, 2, 2], 'item 1 has an empty path'),
    ([3, 4, 5], [0, 2], 'offsets run from 0 to 2'),
    ([3, PAD, 4], [0, 1, 3], 'item 1 holds a reserved token'),
    ([BOS, 3], [0, 2], 'item 0 holds a reserved token'),
    ([3, EOS, 4], [0, 3], 'item 0 holds a reserved token')])
def test_impossible_paths(flat, offsets, message):
    with pytest.raises(GenrecError, match=message): Paths(flat, offsets)

def test_vocabulary_is_checked():
    with pytest.raises(GenrecError, match='must start with'): Identifiers([3], [0, 1], ['a', 'b', 'c', 'd'])
    with pytest.raises(GenrecError, match='name no token twice'): Identifiers([3], [0, 1], SPECIAL + ['a', 'a'])
    with pytest.raises(GenrecError, match='token id 5 lies outside'): Identifiers([5], [0, 1], SPECIAL + ['a'])


# ---- codes ----

@settings(max_examples=80, deadline=None)
@given(st.lists(st.tuples(*[st.integers(0, 2)]*3), min_size=1, max_size=40))
def test_extra_token_makes_paths_distinct_and_keeps_codes(rows):
    ids = Identifiers.from_codes(np.array(rows), [3]*3)
    assert ids.collisions()['rate'] == 0 and not ids.is_ragged
    seen = Counter()
    for i, r in enumerate(rows):
        assert ids.names(i) == [f'<a_{r[0]}>', f'<b_{r[1]}>', f'<c_{r[2]}>', f'<d_{seen[r]}>']
        seen[r] += 1
    assert ids.vocab_size == 3 + 9 + max(seen.values())
    kept = Identifiers.from_codes(np.array(rows), [3]*3, 'keep')
    assert kept.collisions() == ids.notes['before'] and kept.codes().shape == (len(rows), 3)
    assert_array_equal(kept.codes(), np.array(rows) + [3, 6, 9])

def test_sinkhorn_policy_changes_only_colliding_items_at_the_last_level():
    rng = np.random.default_rng(0)
    codes, d = rng.integers(0, 4, (60, 2)), rng.random((60, 64))
    before = Identifiers.from_codes(codes, [4, 64], 'keep')
    after = Identifiers.from_codes(codes, [4, 64], 'sinkhorn', d)
    assert_array_equal(after.codes()[:, 0], before.codes()[:, 0])
    assert after.collisions()['rate'] < .3*before.collisions()['rate'] and after.notes['before'] == before.collisions()
    called = Identifiers.from_codes(codes, [4, 64], 'sinkhorn', lambda items: d[items])
    assert called == after
    lonely = np.bincount(before.group)[before.group] == 1
    one = Identifiers.from_codes(codes, [4, 64], 'sinkhorn', d, rounds=1)
    assert_array_equal(one.codes()[lonely], before.codes()[lonely])

def test_sinkhorn_policy_cannot_separate_equal_vectors_and_stops():
    ids = Identifiers.from_codes(np.zeros((3, 2), int), [1, 8], 'sinkhorn', np.tile(np.arange(8.), (3, 1)))
    assert ids.collisions()['largest'] == 3

@pytest.mark.parametrize('codes,kw,message', [
    ([[0, 1], [0, 5]], dict(sizes=[2, 3]), 'code 5 of item 1 at level 2 lies outside 0..2'),
    ([[0, -1]], {}, 'code -1 of item 0 at level 2'),
    ([[.5, 1]], {}, 'type float64'), ([1, 2], {}, r'shape \(2,\)'),
    ([[0, 1]], dict(sizes=[2]), '1 level sizes given for codes of 2 levels'),
    ([[0, 1]], dict(policy='drop'), "'drop' is unknown"),
    ([[0, 1]], dict(policy='sinkhorn'), 'distances'),
    ([[0, 1]], dict(policy='sinkhorn', distances=np.zeros((1, 5))), r'shape \(1, 5\), expected \(1, 2\)')])
def test_bad_codes(codes, kw, message):
    with pytest.raises(GenrecError, match=message): Identifiers.from_codes(np.array(codes), **kw)

def test_random_ids_are_distinct_seeded_and_full():
    a = Identifiers.random(64, 2, 8, seed=1)
    assert a.collisions()['rate'] == 0 and a == Identifiers.random(64, 2, 8, seed=1) and a != Identifiers.random(64, 2, 8, seed=2)
    with pytest.raises(GenrecError, match='too few for 65 items'): Identifiers.random(65, 2, 8)
    assert Identifiers.random(1000, 4, 256).collisions()['distinct'] == 1000


# ---- collision policies against brute force ----

def greedy_free(codes, d):
    "The queue of 'free', item by item with plain loops"
    codes, kept, near = [list(map(int, c)) for c in codes], 0, lambda i: (np.float32(d[i][codes0[i][-1]]), i)
    codes0 = [list(c) for c in codes]
    stays, movers = {}, []
    for i in sorted(range(len(codes)), key=near):
        if tuple(codes0[i]) in stays: movers.append(i)
        else: stays[tuple(codes0[i])] = i
    taken = set(stays)
    for i in movers:
        free = [k for k in range(len(d[i])) if (*codes0[i][:-1], k) not in taken]
        if not free: kept += 1; continue
        codes[i][-1] = min(free, key=lambda k: (np.float32(d[i][k]), k))
        taken.add(tuple(codes[i]))
    return codes, kept

@st.composite
def colliding(draw, levels=st.integers(1, 3), size=4):
    "Codes with many collisions, and distances whose values repeat"
    L, n = draw(levels), draw(st.integers(1, 30))
    codes = draw(st.lists(st.tuples(*[st.integers(0, 1)]*(L - 1), st.integers(0, size - 1)), min_size=n, max_size=n))
    d = draw(st.lists(st.lists(st.integers(0, 6), min_size=size, max_size=size), min_size=n, max_size=n))
    return np.array(codes), np.array(d, float)

@settings(max_examples=200, deadline=None)
@given(colliding())
def test_free_policy_against_a_greedy_loop(case):
    codes, d = case
    moved, kept = resolve_free(codes, d)
    expected, lost = greedy_free(codes, d)
    assert_array_equal(moved, expected)
    assert kept == lost
    assert_array_equal(moved[:, :-1], codes[:, :-1])
    for prefix in {tuple(c[:-1]) for c in codes.tolist()}:                      # distinct wherever there is room
        last = [c[-1] for c in moved.tolist() if tuple(c[:-1]) == prefix]
        assert len(set(last)) == min(len(last), d.shape[1])
    ids = Identifiers.from_codes(codes, [2]*(codes.shape[1] - 1) + [4], 'free', lambda items: d[items])
    assert ids == Identifiers.from_codes(codes, [2]*(codes.shape[1] - 1) + [4], 'free', d) and ids.notes['kept'] == lost
    assert ids.collisions()['rate'] == pytest.approx(lost/len(codes))

def test_free_policy_when_everybody_has_the_same_codes():
    n, k = 40_000, 256
    moved, kept = resolve_free(np.zeros((n, 2), int), lambda items: np.tile(np.arange(k, dtype=np.float32), (len(items), 1)), k)
    assert kept == n - k and len(np.unique(moved[:, 1])) == k and moved[:k, 1].tolist() == list(range(k))

@settings(max_examples=60, deadline=None)
@given(colliding())
def test_policies_compared(case):
    codes, d = case
    sizes = [2]*(codes.shape[1] - 1) + [4]
    table = compare_policies(codes, sizes, d)
    n, distinct = len(codes), len({tuple(c) for c in codes.tolist()})
    assert table.index.tolist() == list(POLICIES) and (table['before %'] == 100*(1 - distinct/n)).all()
    assert table.loc['extra', 'after %'] == 0 and table.loc['keep', 'after %'] == table.loc['keep', 'before %']
    assert table.loc[['extra', 'keep'], ['moved', 'paid', 'error +%']].to_numpy().any() == False
    moved, _ = greedy_free(codes, d)
    paid = [d[i][m[-1]] - d[i][c[-1]] for i, (m, c) in enumerate(zip(moved, codes.tolist())) if m != c]
    assert table.loc['free', 'moved'] == len(paid) and table.loc['free', 'paid'] == pytest.approx(np.mean(paid) if paid else 0)
    own = sum(d[i][c[-1]] for i, c in enumerate(codes.tolist()))
    if own: assert table.loc['free', 'error +%'] == pytest.approx(100*sum(paid)/own)
    assert table.loc['extra', 'tokens'] == codes.shape[1] + 1 and table.loc['free', 'tokens'] == codes.shape[1]

def test_distances_are_checked_before_work():
    codes = np.array([[0, 0], [0, 0]])
    for policy in ('free', 'sinkhorn'):
        with pytest.raises(GenrecError, match='item 1 at the last level hold NaN'): Identifiers.from_codes(codes, [1, 2], policy, np.array([[0, 1], [0, np.nan]]))
        with pytest.raises(GenrecError, match=r'shape \(2, 3\) for 2 items, expected \(2, 2\)'): Identifiers.from_codes(codes, [1, 2], policy, lambda items: np.zeros((2, 3)))
        with pytest.raises(GenrecError, match=r"policy '\w+' got distances of shape \(\)"): Identifiers.from_codes(codes, [1, 2], policy)
    with pytest.raises(GenrecError, match="'extra', 'sinkhorn', 'free', 'keep'"): Identifiers.from_codes(codes, policy='first')


# ---- new items ----

@settings(max_examples=150, deadline=None)
@given(colliding(st.integers(1, 2)), colliding(st.integers(2, 2)), st.sampled_from(['keep', 'free', 'extra']))
def test_append_never_changes_what_is_there(first, second, policy):
    codes, d = first
    L = codes.shape[1]
    sizes, (new, dn) = [2]*(L - 1) + [4], (second[0][:, -L:], second[1])
    ids = Identifiers.from_codes(codes, sizes, policy, d)
    more = ids.append(new, distances=dn, exhausted='free')
    assert more.tokens is ids.tokens and more.n_items == len(codes) + len(new)
    assert_array_equal(more.codes()[:len(codes)], ids.codes())
    got = more.codes()[len(codes):]
    if L == 2: assert_array_equal(got[:, 0] - 3, new[:, 0])                      # the first level stays
    note = more.notes['appended'][-1]
    assert ids.notes.get('appended') is None and note['items'] == len(new)
    if policy == 'keep': assert_array_equal(got[:, -1] - 3 - sum(sizes[:-1]), new[:, -1])
    # a path is shared only where every path under its prefix is taken
    room = 4*(ids.vocab_size - 3 - sum(sizes) if policy == 'extra' else 1)
    if policy != 'keep':
        rows = more.codes().tolist()
        for prefix in {tuple(r[:L - 1]) for r in rows}:
            here = [tuple(r) for r in rows if tuple(r[:L - 1]) == prefix]
            old = [tuple(r) for r in rows[:len(codes)] if tuple(r[:L - 1]) == prefix]
            assert len(set(here)) == min(len(here) - (len(old) - len(set(old))), room)
        assert note['shared'] == len(rows) - len({tuple(r) for r in rows}) - (len(codes) - ids.collisions()['distinct'])
    again = ids.append(new, distances=lambda items: dn[items], exhausted='free')
    assert again == more

@settings(max_examples=100, deadline=None)
@given(colliding(st.just(2)), st.integers(1, 29))
def test_appended_running_numbers_are_those_of_the_whole_catalogue(case, cut):
    codes, _ = case
    cut = min(cut, len(codes))
    whole = Identifiers.from_codes(codes, [2, 4], 'extra')
    begun = Identifiers(whole.flat[:3*cut], whole.offsets[:cut + 1], whole.tokens, notes=dict(policy='extra'))
    if cut == len(codes): assert begun == whole
    else: assert_array_equal(begun.append(codes[cut:]).codes(), whole.codes())

def append_by_loop(old, new, d):
    "New items one after another, those that fit their code best first"
    taken, out = {tuple(c) for c in old}, [list(c) for c in new]
    queue = sorted(range(len(new)), key=lambda i: (np.float32(d[i][new[i][-1]]), i))
    movers = []
    for i in queue:
        if tuple(new[i]) in taken: movers.append(i)
        else: taken.add(tuple(new[i]))
    for i in movers:
        free = [k for k in range(len(d[i])) if (*new[i][:-1], k) not in taken]
        if free:
            out[i][-1] = min(free, key=lambda k: (d[i][k], k))
            taken.add(tuple(out[i]))
    return out

@settings(max_examples=150, deadline=None)
@given(colliding(st.just(2)), colliding(st.just(2)))
def test_append_free_against_a_loop(first, second):
    ids = Identifiers.from_codes(first[0], [2, 4], 'free', first[1])
    more = ids.append(second[0], distances=second[1])
    old = (ids.codes() - [3, 5]).tolist()
    assert_array_equal(more.codes()[ids.n_items:] - [3, 5], append_by_loop(old, second[0].tolist(), second[1]))

def test_append_to_a_published_table(tmp_path):
    f = table(tmp_path, {'0': ['<a_1>', '<b_0>'], '1': ['<a_0>', '<b_7>'], '2': ['<a_0>', '<b_9>']})
    ids = Identifiers.from_index(f)
    with pytest.raises(GenrecError, match="choose policy='extra', 'free' or 'keep'"): ids.append(np.array([[0, 7]]))
    d = np.full((1, 10), 9.); d[0, [5, 9, 0]] = [0, 1, 2]                         # code 5 is nearest, but has no token; 9 is taken
    assert ids.append(np.array([[0, 7]]), 'free', d).names(3) == ['<a_0>', '<b_0>']
    assert ids.append(np.array([[1, 7]]), 'free', d).names(3) == ['<a_1>', '<b_7>']
    with pytest.raises(GenrecError, match='new item 1 has code 5 at level 2, for which the vocabulary has no token'): ids.append(np.array([[0, 7], [0, 5]]), 'keep')

def test_append_survives_saving(tmp_path):
    ids = Identifiers.from_codes(np.array([[0, 1], [0, 1]]), [2, 4], 'extra').append(np.array([[1, 1]]))
    ids.save(tmp_path)
    assert Identifiers.load(tmp_path) == ids and Identifiers.load(tmp_path).append(np.array([[1, 1]])).names(3)[-1] == '<c_1>'

def test_append_refuses():
    codes = np.array([[0, 1], [0, 1], [1, 1]])
    extra, sink = Identifiers.from_codes(codes, [2, 4]), Identifiers.from_codes(codes, [2, 4], 'sinkhorn', np.ones((3, 4)))
    with pytest.raises(GenrecError, match=r'running number 2, but the extra level has only 0..1 \(1 such'): extra.append(np.array([[0, 1]]))
    with pytest.raises(GenrecError, match="'sinkhorn' would move old items"): sink.append(np.array([[0, 1]]))
    with pytest.raises(GenrecError, match=r'shape \(1, 3\) and type int64, expected integers \[items, 2\]'): extra.append(np.array([[0, 1, 0]]))
    with pytest.raises(GenrecError, match='type float64'): extra.append(np.array([[0., 1.]]))
    with pytest.raises(GenrecError, match="'extra', 'sinkhorn', 'free', 'keep'"): extra.append(np.array([[0, 1]]), 'last')
    with pytest.raises(GenrecError, match="exhausted='drop' is unknown"): extra.append(np.array([[0, 1]]), exhausted='drop')
    with pytest.raises(GenrecError, match=r"policy 'extra' got distances of shape \(\)"): extra.append(np.array([[0, 1]]), exhausted='free')
    with pytest.raises(GenrecError, match='codes of one length only'): Identifiers.from_titles(TITLES, byte_tokenizer(TITLES)).append(np.array([[0, 1]]), 'keep')
    with pytest.raises(GenrecError, match='needs paths that have a level of running numbers'): Identifiers.from_codes(codes[:, :1], [2], 'keep').append(np.zeros((1, 0), int), 'extra')
    assert extra.append(np.empty((0, 2), int)).n_items == 3


# ---- titles ----

TITLES = ['Star Wars', 'Star Trek', 'Alien', 'Alien Resurrection', 'Star Trek', 'Amélie 東京']

@pytest.mark.parametrize('make', [word_tokenizer, byte_tokenizer])
def test_titles_come_back_through_backbone_ids(make):
    tok = make(TITLES)
    ids = Identifiers.from_titles(TITLES, tok)
    for i, t in enumerate(TITLES):
        assert ids.path(i)[-1] == EOS
        assert tok.decode(ids.backbone_ids[ids.path(i)[:-1]].tolist()) == t
    assert ids.collisions()['groups'] == 1 and ids.group[1] == ids.group[4]
    assert set(np.unique(ids.flat)) == set(range(2, ids.vocab_size))             # compact: every token but pad and begin occurs

def test_suffix_is_part_of_the_path():
    tok = byte_tokenizer(TITLES)
    ids = Identifiers.from_titles(TITLES, tok, suffix='\n')
    assert all(ids.names(i)[-2:] == ['Ċ', '</s>'] for i in range(len(TITLES)))

def test_titles_that_begin_others_need_eos():
    tok = word_tokenizer(TITLES)
    with pytest.raises(GenrecError, match="item 2, Alien, is the beginning of item 3's, Alien Resurrection"): Identifiers.from_titles(TITLES, tok, eos=False)

def test_titles_a_tokenizer_cannot_spell():
    tok = word_tokenizer(TITLES[:5])
    with pytest.raises(GenrecError, match=r"title of item 5: 'Amélie 東京' becomes '\[UNK\] \[UNK\]' \(1 such"): Identifiers.from_titles(TITLES, tok)
    ids = Identifiers.from_titles(TITLES, tok, lossy='keep')
    assert ids.n_items == 6 and ids.notes['damaged'] == 1
    with pytest.raises(GenrecError, match='item 1 has an empty title'): Identifiers.from_titles(['a', '  '], tok)
    mute = word_tokenizer(TITLES)
    mute.normalizer = normalizers.Replace('Alien', '')
    with pytest.raises(GenrecError, match="title of item 2: 'Alien' becomes ''"): Identifiers.from_titles(TITLES, mute, lossy='keep')

def test_uncased_tokenizer_is_not_called_lossy():
    tok = word_tokenizer([t.lower() for t in TITLES])
    tok.normalizer = normalizers.Lowercase()
    assert Identifiers.from_titles(TITLES, tok).notes['damaged'] == 0

def test_transformers_tokenizer_keeps_its_end_token():
    from transformers import PreTrainedTokenizerFast
    raw = byte_tokenizer(TITLES + ['</s>']); raw.add_special_tokens(['</s>'])
    tok = PreTrainedTokenizerFast(tokenizer_object=raw, eos_token='</s>')
    ids = Identifiers.from_titles(TITLES + ['a </s> b'], tok)                    # a title that spells the end token
    assert ids.backbone_ids[EOS] == tok.eos_token_id and ids.backbone_ids[PAD] == -1
    assert len(set(ids.tokens)) == ids.vocab_size


# ---- tables ----

def test_save_and_load_keep_the_numbering(tmp_path):
    for n, ids in enumerate((Identifiers.from_codes(np.array([[0, 5], [1, 2]]), [4, 8], 'keep'), Identifiers.from_titles(TITLES, byte_tokenizer(TITLES)))):
        for where in (tmp_path/f'f{n}', tmp_path/f'{n}.index.json'):
            ids.save(where)
            again = Identifiers.load(where)
            assert again == ids and again.notes == ids.notes
            assert (again.backbone_ids is None) == (ids.backbone_ids is None)
    assert json.loads((tmp_path/'f0'/'index.json').read_text()) == {'0': ['<a_0>', '<b_5>'], '1': ['<a_1>', '<b_2>']}
    assert not list(tmp_path.rglob('.*'))

def test_index_follows_the_catalogue(tmp_path):
    f = table(tmp_path, {'x': ['<a_1>', '<b_0>'], 'y': ['<a_0>', '<b_10>'], 'z': ['<a_0>', '<b_9>']})
    ids = Identifiers.from_index(f, ['z', 'x', 'y'])
    assert [ids.names(i)[1] for i in range(3)] == ['<b_9>', '<b_0>', '<b_10>']
    assert ids.tokens == SPECIAL + ['<a_0>', '<a_1>', '<b_0>', '<b_9>', '<b_10>']
    with pytest.raises(GenrecError, match="lacks 1 of the catalogue's 2 items, the first is 'q'"): Identifiers.from_index(f, ['x', 'q'])
    with pytest.raises(GenrecError, match="holds 1 items that the catalogue lacks, the first is 'y'"): Identifiers.from_index(f, ['x', 'z'])
    assert Identifiers.from_index(f, ['x', 'z'], extra='drop').n_items == 2
    with pytest.raises(GenrecError, match="lacks 3 of the catalogue's 3 items"): Identifiers.from_index(f)

@pytest.mark.parametrize('text,message', [
    ('{"0": ["<a_1>"],\n "1": ["<a_2>" "<b_1>"]}', 'line 2, column 16'),
    ('{"0": ["<a_1>"], "0": ["<a_2>"]}', "'0' stands"),
    ('["<a_1>"]', 'holds a list'),
    ('{"0": "<a_1>"}', "item '0' has '<a_1>'"), ('{"0": []}', "item '0' has"), ('{"0": [1]}', "item '0' has"),
    ('{"0": ["x"], "1": ["x", "y"]}', "path of item 0, x, is the beginning of item 1's, x y"),
    ('{"0": ["<pad>", "y"]}', 'reserved token')])
def test_broken_tables(tmp_path, text, message):
    f = table(tmp_path, text)
    with pytest.raises(GenrecError, match=message) as e: Identifiers.from_index(f)
    assert str(f) in str(e.value) and '\n' not in str(e.value)

def test_missing_files_and_repairs(tmp_path):
    with pytest.raises(GenrecError, match='no such file'): Identifiers.from_index(tmp_path/'none.json')
    f = table(tmp_path, {'0': ['x'], '1': ['x', 'y']})
    assert Identifiers.from_index(f, eos=True).names(0) == ['x', '</s>']
    with pytest.raises(GenrecError, match='vocab.json: no such file'): Identifiers.load(tmp_path)

@pytest.mark.parametrize('name,kind,items,distinct,largest', [
    ('Scientific', 'letter', 4344, 4317, 2), ('Scientific', 'rqvae', 4344, 3790, 22), ('Beauty', 'letter', 12101, 12088, 3), ('Beauty', 'rqvae', 12101, 11499, 12),
    ('Instruments', 'letter', 9922, 9897, 3), ('Yelp', 'letter', 20033, 19201, 65), ('Yelp', 'rqvae', 20033, 18831, 65)])
def test_published_tables(name, kind, items, distinct, largest):
    f = DATA/name/f'{name}.{kind}.index.json'
    if not f.is_file(): pytest.skip('set GENREC_DATA to the folder with the published data sets')
    ids = Identifiers.from_index(f, items)
    c = ids.collisions()
    assert (ids.n_items, c['distinct'], c['largest'], ids.max_len) == (items, distinct, largest, 4)
    raw = json.loads(f.read_text())
    assert all(ids.names(i) == raw[str(i)] for i in range(0, items, 97))
