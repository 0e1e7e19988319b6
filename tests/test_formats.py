"Raw files: every kind read alike, whatever its dialect; splits that are there; texts; broken files"
import ast, gzip, io, json, os, re
from pathlib import Path
import numpy as np
import pandas as pd
import pytest
import raw
from hypothesis import HealthCheck, example, given, settings, strategies as st
from genrec_nb.core import FileError, GenrecError, MissingTextError, SettingError
from genrec_nb.formats import BadLines, _as_json, _loads, _pick, _picked, _records, read_file
from genrec_nb.item_texts import _clean, _no_prose
from genrec_nb.loaders import load_dataset, load_files, _read_items

MORE = int(os.environ.get('GENREC_FUZZ', 1))                # as many times as many cases
ROWS, ITEMS = raw.shop()
WITHOUT_ITEMS = 'amazon2018_csv',

def made(folder, kind, rows=ROWS, items=ITEMS):
    raw.KINDS[kind](folder, rows, items)
    return folder

def histories(d): return {u: [d.catalog.ids[i] for i in d.interactions.user(n)] for n, u in enumerate(d.interactions.user_ids)}

def expected(kind):
    "By hand: each user's items in order of time, spelled as the kind spells them"
    user, item = {'amazon': (raw.reviewer, raw.asin), 'yelp': (raw.reviewer, raw.asin), 'split_csv': (raw.reviewer, raw.asin), 'movielens': (lambda u: str(u + 1), lambda i: str(i + 1)),
                  'steam': (raw.reviewer, lambda i: str(i + 10)), 'minionerec': (raw.reviewer, str)}.get(next((k for k in ('amazon', 'yelp', 'split_csv', 'movielens', 'steam', 'minionerec') if kind.startswith(k)), ''), (str, str))
    return {user(u): [item(i) for i in g.item] for u, g in ROWS.sort_values('time').groupby('user')}

@pytest.mark.parametrize('kind', raw.KINDS)
def test_every_kind_is_read(tmp_path, kind):
    "The same interactions out of every layout, in order of time; titles and prose as texts, and no number, link or price"
    d = load_dataset(made(tmp_path, kind), text=kind not in WITHOUT_ITEMS)
    assert histories(d) == expected(kind)
    if kind in WITHOUT_ITEMS: return
    assert d.catalog.titles[1].startswith('Rose soap, no 1 & more') and 'Rose soap' in d.catalog.texts[1]
    assert not any(w in t for t in d.catalog.texts for w in ('.99', 'http', '&amp;', '4.5', '<', 'B00000', 'True', "['"))
    if kind not in ('recbole', 'grid'): assert any(w in d.catalog.texts[1] for w in ("It's a rose soap", 'Rose'))

DIALECTS = dict(crlf=lambda b: b.replace(b'\n', b'\r\n') + b'\r\n', bom=lambda b: b'\xef\xbb\xbf' + b, gz=lambda b: gzip.compress(b, 1))

@pytest.mark.parametrize('dialect', DIALECTS)
@pytest.mark.parametrize('kind', ['table', 'amazon2018', 'movielens20m', 'recbole', 'letter', 'split_csv'])
def test_figures_do_not_depend_on_the_dialect(tmp_path, kind, dialect):
    want = load_dataset(made(tmp_path, kind))
    for f in [f for f in tmp_path.rglob('*') if f.is_file()]: f.write_bytes(DIALECTS[dialect](f.read_bytes()))
    got = load_dataset(tmp_path)
    assert got.catalog == want.catalog and (got.interactions.items == want.interactions.items).all()

@pytest.mark.parametrize('sep', [',', ';', '\t', '|'])
@pytest.mark.parametrize('comma', [False, True])
def test_figures_do_not_depend_on_rows_columns_or_spelling(tmp_path, sep, comma):
    "Ties too: the order of rows is shuffled, that of columns turned, ids are numbers or text with spaces, times have decimal commas"
    rows = ROWS.assign(time=ROWS.time // (30*86400) * 10 + .5)
    a, b = tmp_path/'a', tmp_path/'b'
    for f in (a, b): f.mkdir()
    made(a, 'table', rows)
    other = rows.sample(frac=1, random_state=3)[rows.columns[::-1]].assign(user=lambda d: [f'{u} ' for u in d.user], item=lambda d: [f'{i}.0' for i in d.item])
    if comma and sep != ',': other['time'] = [str(t).replace('.', ',') for t in other.time]
    other.to_csv(b/'interactions.csv', sep=sep, index=False)
    pd.read_csv(a/'items.csv', dtype=str).iloc[::-1, ::-1].to_csv(b/'items.csv', index=False, sep=sep)
    x, y = load_dataset(a), load_dataset(b)
    assert x.interactions.tied.any() and x.catalog == y.catalog and histories(x) == histories(y)

def test_python_dictionaries_are_read_exactly():
    import random
    rng, pieces = random.Random(0), ['a', "'", '"', '\\', '\n', '\t', 'é', '\x00', 'None', 'True', 'u', "u'", ' ', ',', '{', '\\n']
    for _ in range(2000):
        record = {rng.choice('kl'): [''.join(rng.choices(pieces, k=5)), rng.choice([None, True, -2.5, ()])] for _ in range(3)}
        try: found = _loads(_as_json(repr(record)))
        except ValueError: continue                       # it is read in the slow way then
        assert found == json.loads(json.dumps(record))
    assert _loads(_as_json("{u'a': u'b\\'', 'None': None}")) == {'a': "b'", 'None': None}

TEXTS = st.text(st.sampled_from('ab\'"\\\n\r\t\0é\x85 ,:{}[]u') | st.characters(exclude_categories=['Cs']), max_size=12)
ATOMS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXTS
VALUES = st.recursive(ATOMS, lambda x: st.lists(x, max_size=3) | st.dictionaries(TEXTS, x, max_size=2), max_leaves=6)
WANTED = ['id', 'a']

@settings(max_examples=100*MORE, deadline=None)
@given(st.lists(st.dictionaries(st.sampled_from('id a ida b u it\'s'.split()) | TEXTS, VALUES, max_size=5), min_size=1, max_size=4))
def test_wanted_columns_of_dictionaries_are_what_python_reads(records):
    "Whole, or by columns; whichever of the ways a line takes"
    lines = [repr(r) for r in records]
    truth = [ast.literal_eval(s) for s in lines]
    file = lambda: io.StringIO(''.join(s + '\n' for s in lines), newline='')
    assert [r for x in _records(file(), BadLines('f'), None) for r in x] == truth
    wanted = lambda r: {k: r.get(k) for k in WANTED}
    assert [wanted(r) for x in _records(file(), BadLines('f'), None, WANTED) for r in x] == list(map(wanted, truth))
    pick = _pick(WANTED)
    for s, r in zip(lines, truth):                        # a line that is picked is a dictionary, and gives the same
        if m := pick(s): assert _picked([s], pick, WANTED) == [wanted(r)]

@settings(max_examples=400*MORE, deadline=None)
@example('"\\\\\'id\'"')                               # an escaped backslash, then a quote
@given(st.lists(st.sampled_from(["'id'", "u'a'", ': ', ', ', '{', '}', '[', ']', "'", '"', '\\', 'n', 'x41', 'u00e9', '1', '-', '.5', '0', 'None', 'True', "''", ' ', '(', '+']), max_size=12).map(''.join))
def test_what_is_picked_is_a_dictionary(inside):
    "No line that Python refuses passes, and none is misread"
    line = f"{{'id': {inside}}}"
    if not (m := _pick(WANTED)(line)): return
    r = ast.literal_eval(line)
    assert _picked([line], _pick(WANTED), WANTED) == [{k: r.get(k) for k in WANTED}] and m.group(0) == line

def test_simple_reviews_are_picked_and_a_broken_one_is_named(tmp_path):
    "Reviews as repr writes them, of Python 2 too, are not left to the slow way; one that is cut off has its line"
    record = dict(reviewerID='A1', asin='B1', helpful=[0, 2], reviewText='I don\'t "mind" \\ \t', summary="it's", overall=5., unixReviewTime=1_300_000_000)
    keep = ['reviewerID', 'unixReviewTime', 'nowhere']
    simple = [repr(record), repr(record).replace("'reviewerID': '", "u'reviewerID': u'")]
    assert all(map(_pick(keep), simple)) and _picked(simple, _pick(keep), keep) == [dict(reviewerID='A1', unixReviewTime=1_300_000_000, nowhere=None)]*2
    assert _pick(["it's"]) is None and not _pick(keep)("{'a': {'b': 1}}")
    (tmp_path/'r').write_text('\n'.join([*simple*3, simple[0][:50]]))
    with pytest.raises(FileError, match='line 7: expected a JSON object or a Python dictionary'): read_file(tmp_path/'r', keep=keep)

# ---- splits --------------------------------------------------------------------------------------------------------

def test_a_split_in_files_is_used(tmp_path):
    d = load_dataset(made(tmp_path, 'split_csv'))
    want = expected('split_csv')
    ids, s = d.catalog.ids, d.split
    assert 'Beauty.train.csv, Beauty.valid.csv, Beauty.test.csv' in d.notes[-1]
    for cases, back in ((s.valid, 2), (s.test, 1)):
        for m, u in enumerate(d.interactions.user_ids):
            assert [ids[i] for i in cases.history(m)] == want[u][:-back] and ids[cases.targets[m]] == want[u][-back]
    assert [ids[i] for i in s.train.user(0)] == want[d.interactions.user_ids[0]][:-2] and s.skipped == 0
    assert (load_dataset(tmp_path/'Beauty.train.csv').split.test.targets == s.test.targets).all()      # its neighbors are not ignored

def test_a_split_by_samples_with_histories(tmp_path):
    "MiniOneRec: a row is a history and what followed; the rows of test.csv, and no others, are the test cases"
    d = load_dataset(made(tmp_path, 'minionerec'))
    want, cases = expected('minionerec'), pd.read_csv(next((tmp_path/'test').iterdir()))
    found = {(d.interactions.user_ids[u], tuple(d.catalog.ids[i] for i in d.split.test.history(m)), d.catalog.ids[d.split.test.targets[m]]) for m, u in enumerate(d.split.test.users)}
    assert found == {(r.user_id, tuple(map(str, json.loads(r.history_item_id))), str(r.item_id)) for r in cases.itertuples()}
    assert d.interactions.times is not None and len(d.split.test) == len(cases)
    n = pd.read_csv(next((tmp_path/'train').iterdir())).shape[0]
    assert d.split.train.target_counts().sum() == n                   # nothing of the test is trained on

def test_a_split_without_validation_or_against_time(tmp_path):
    made(tmp_path, 'split_csv')
    (tmp_path/'Beauty.valid.csv').unlink()
    d = load_dataset(tmp_path)
    assert len(d.split.valid) == len(d.split.test) == 12 and (d.split.train.lengths == 3).all()
    test, train = (pd.read_csv(tmp_path/f'Beauty.{p}.csv') for p in ('test', 'train'))
    test.assign(timestamp=1).to_csv(tmp_path/'Beauty.test.csv', index=False)
    d = load_dataset(tmp_path)
    assert d.interactions.times is None and any('do not follow one another' in n for n in d.notes)
    assert [d.catalog.ids[t] for t in d.split.test.targets] == test.parent_asin.tolist()

# ---- columns -------------------------------------------------------------------------------------------------------

def test_columns_by_name(tmp_path):
    pd.DataFrame(dict(who=['u', 'u', 'v'], what=[1, 2, 1], at=['2024-05-01', '2024-05-02', '2024-05-03'])).to_csv(tmp_path/'log.csv', index=False)
    pd.DataFrame(dict(key=[1, 2], label=['One', 'Two'], kind=['x y', 'z'], story=['long', 'short'], cost=[1., 2.], family=['A|B', 'C'])).to_csv(tmp_path/'shop.csv', index=False)
    names = dict(user='who', item='what,key', time='at', title='label')
    d = load_files(tmp_path/'log.csv', tmp_path/'shop.csv', **names)
    assert d.catalog.texts == ['One. A, B. x y. long', 'Two. C. z. short'] and "numbers 'cost'" in ' '.join(d.notes)
    d = load_files(tmp_path/'log.csv', tmp_path/'shop.csv', **names, fields='label,story,cost', category='family')
    assert d.catalog.texts == ['One. long. 1.0', 'Two. short. 2.0'] and d.categories == ['A|B', 'C']
    for wrong, words in ((dict(item='what,id'), "no column 'id'"), (dict(time='when'), "no column 'when'"), (dict(item='a,b,c'), 'two with a comma')):
        with pytest.raises(GenrecError, match=words): load_files(tmp_path/'log.csv', tmp_path/'shop.csv', **names | wrong)
    with pytest.raises(GenrecError, match="is 'at' the time.*--column time=at"): load_files(tmp_path/'log.csv', tmp_path/'shop.csv', **names | dict(time=''))
    assert load_files(tmp_path/'log.csv', text=False, user='who', item='what', time=None).interactions.times is None
    assert all(load_dataset(tmp_path/'log.csv', text=False, user='who', item='what', time=none).interactions.times is None for none in ('', None))

@pytest.mark.parametrize('name, values, why', [('price', ['$3.99', '5'], 'numbers'), ('average_rating', ['a', 'b'], 'by its name'), ('image', ['http://x.org/a.jpg'], 'links'), ('also_buy', ['B000000001, B000000002'], 'codes'),
                                               ('tmdbId', ['tt a'], 'ids'), ('details', [''], 'without text'), ('made', ['2014-01-02'], 'dates'), ('story', ['Once upon a time'], ''), ('brand', ['Lush', 'L8'], ''), ('genres', ['Drama, War'], '')])
def test_what_is_prose(name, values, why): assert _no_prose(name, values) == why

def test_texts_are_cleaned():
    assert _clean([['A', 'B'], ['A', 'C &lt; D']]) == 'A, B, C < D' and _clean(float('nan')) == _clean(None) == '' and _clean({'a': 1}) == '' and _clean('1 < 2') == '1 < 2'

def test_repeats_are_merged_and_lost_items_counted(tmp_path):
    made(tmp_path, 'amazon2018', pd.concat([ROWS, ROWS.head(5)]), ITEMS)
    f = tmp_path/'meta_Beauty.json'
    f.write_text('\n'.join(f.read_text().splitlines()[:-1] + [json.dumps(dict(asin='B999', title='Never chosen'))]*2))
    d = load_dataset(tmp_path)
    said = ' '.join(d.notes)
    assert len(d.catalog) == 8 and '5 rows that repeat' in said and '1 of 9 items was never chosen and is left out' in said and 'left out: 1 item without text, with ' in said
    with pytest.raises(MissingTextError, match='belong together'): load_dataset(tmp_path, item='asin,title')

# ---- what cannot be read -------------------------------------------------------------------------------------------

@pytest.mark.parametrize('files, words', [
    ({'a.csv': 'x,y\n1,2\n'}, ["a.csv (columns x, y)", '--column', 'read_csv']), ({'a.dat': b'\x00\x01\x02\x00'*20}, ['a.dat', 'neither text nor Parquet', 'pandas.read_..(']), ({'a.xlsx': b'PK\x03\x04\x00\x00'*20}, ["pandas.read_excel('a.xlsx'); df.to_csv('a.csv', index=False)"]), ({}, ['holds nothing']),
    ({'a.csv': 'user,item,time\nu,"[[1, 2], [3]]",5\n'}, ["column 'item'", 'list of ids']), ({'a.csv': 'user,item,time\n"[1]",2,5\n'}, ["column 'user' holds lists"]),
    ({'a.jsonl': '{"user": "u", "item": [1, 2], "time": [1]}\n'}, ["2 items in 'item' and 1 times"]), ({'a.csv': 'user,item\nu,1\n', 'b.csv': 'user,item\nu,2\n'}, ['a.csv, b.csv', 'name the one']),
    ({'a.jsonl': '{"user": 1, "item": 2}\n{"user": 1, "item": \n'}, ['line 2', 'JSON object or a Python dictionary']), ({'a.csv': 'a:x\ta:y\n1\t2\n'}, ['two columns', "'a'"]),
    ({'a.csv.gz': gzip.compress(b'user,item\nu,1\n'*2000)[:-20]}, ['a.csv.gz', 'not a readable']), ({'a.parquet': b'PAR1' + b'x'*50}, ['a.parquet', 'not a readable table']), ({'a.csv': 'user,item,when\nu,1,1300000000\n'}, ["is 'when' the time"])])
def test_refused_in_one_line(tmp_path, files, words):
    for name, x in files.items(): (tmp_path/name).write_bytes(x if isinstance(x, bytes) else x.encode())
    with pytest.raises(GenrecError) as e: load_dataset(tmp_path, text=False)
    assert '\n' not in str(e.value) and all(w in str(e.value) for w in words), e.value

def test_an_encoding_that_was_guessed_is_named(tmp_path):
    d = load_dataset(made(tmp_path, 'movielens1m'))
    assert 'é' in d.catalog.titles[0] and 'movies.dat: a table with :: and no head in cp1252' in ' '.join(d.notes)

SCRAPS = st.sampled_from(['user', 'item', 'time', '{', '}', '[', ']', '"', "'", ',', ';', '\t', '::', '\n', '\r\n', ':', '\\', '1', '2.5', 'NaN', 'None', 'é', '\x00', '\ufeff', '{"user": 1, "item": 2}\n', "{'user': 'a', 'item': 'b'}\n",
                          'user,item,time\n', 'user_id:token\titem_id:token\n', '1,2,3\n', '[1, 2]', 'title', 'a,"b\n', '1e999', '-', '|'])

@settings(max_examples=200*MORE, deadline=None, suppress_health_check=list(HealthCheck), database=None)
@given(st.one_of(st.lists(SCRAPS, max_size=25).map(lambda x: ''.join(x).encode()), st.binary(max_size=200), st.lists(SCRAPS, max_size=9).map(lambda x: ''.join(x).encode('utf-16')),
                 st.lists(SCRAPS, max_size=9).map(lambda x: gzip.compress(''.join(x).encode())), st.binary(max_size=60).map(lambda b: b'PAR1' + b), st.binary(max_size=60).map(lambda b: b'\x1f\x8b' + b)))
def test_any_bytes_give_a_result_or_one_line(tmp_path_factory, data):
    folder = tmp_path_factory.getbasetemp()/'fuzz'
    folder.mkdir(exist_ok=True)
    (folder/'x.csv').write_bytes(data)
    for read in (load_files, _read_items):
        try: read(folder/'x.csv', **dict(text=False) if read is load_files else {})
        except GenrecError as e: assert '\n' not in str(e)

@pytest.mark.parametrize('text', ['user,item,time\n1,2,x\n3,4,"', 'user,item,time\n1,2,1\n\r"', 'user,item,time\n1,2,3\n4,5,6\n7,8,x'], ids=repr)
def test_a_bad_row_has_a_place_even_where_lines_and_rows_are_counted_differently(tmp_path, text):
    (tmp_path/'x.csv').write_bytes(text.encode())
    try: load_files(tmp_path/'x.csv', text=False)
    except GenrecError as e: assert re.search(r'line \d|row \d|x\.csv', str(e)) and '\n' not in str(e)

@settings(max_examples=40*MORE, deadline=None, suppress_health_check=list(HealthCheck), database=None)
@given(st.sampled_from(sorted(raw.KINDS)), st.integers(0, 10**6), st.binary(min_size=0, max_size=3))
def test_a_damaged_file_gives_a_result_or_one_line(tmp_path_factory, kind, at, scrap):
    folder = tmp_path_factory.getbasetemp()/f'damaged-{kind}'
    if not folder.exists():
        folder.mkdir()
        made(folder, kind)
    files = sorted(f for f in folder.rglob('*') if f.is_file())
    f = files[at % len(files)]
    whole = f.read_bytes()
    k = at % (len(whole) + 1)
    f.write_bytes(whole[:k] + scrap + (whole[k+1:] if scrap else b''))
    try: load_dataset(folder, text=None)
    except GenrecError as e: assert '\n' not in str(e)
    finally: f.write_bytes(whole)


@pytest.mark.parametrize('note', [b'{"index_columns": [], "columns": [{"name": "user", " umpy_type": "int64"}]}', b'{"columns": 3', b'[]'])
def test_a_damaged_note_of_pandas_costs_nothing(tmp_path, note):
    "Parquet keeps its own types, too"
    import pyarrow as pa, pyarrow.parquet as pq
    table = pa.table(dict(user=[1, 1, 2], item=['a', 'b', 'a'], time=[1, 2, 3]))
    pq.write_table(table.replace_schema_metadata({b'pandas': note}), tmp_path/'a.parquet')
    assert histories(load_dataset(tmp_path, text=False)) == {'1': ['a', 'b'], '2': ['a']}

def test_a_parquet_with_bytes_that_are_no_text_is_refused(tmp_path):
    import pyarrow as pa, pyarrow.parquet as pq
    broken = pa.array([b'a', b'\x80', b'b']).cast(pa.binary()).view(pa.string())
    pq.write_table(pa.table(dict(user=[1, 1, 2], item=broken, time=[1, 2, 3])), tmp_path/'a.parquet')
    for read in (lambda: load_dataset(tmp_path, text=False), lambda: read_file(tmp_path/'a.parquet'), lambda: read_file(tmp_path/'a.parquet', rows=2)):
        with pytest.raises(FileError, match='^[^\n]*a.parquet: not a readable table: [^\n]*UTF8[^\n]*$'): read()

def test_columns_for_the_encoder_are_those_that_are_named(tmp_path):
    "In Python, in a run's settings, and on the command line"
    from genrec_nb.trial import DataConfig
    rows = dict(item=range(4), title=list('ABCD'), maker=['x', 'y', 'z', 'w'], description=[f'long {i}' for i in range(4)])
    pd.DataFrame(rows).to_csv(tmp_path/'items.csv', index=False)
    pd.DataFrame([(u, i, t) for u in range(4) for t, i in enumerate(range(4))], columns=['user', 'item', 'time']).to_csv(tmp_path/'interactions.csv', index=False)
    named = ['A. x', 'B. y', 'C. z', 'D. w']
    assert load_dataset(tmp_path, text='maker').catalog.texts == named != load_dataset(tmp_path).catalog.texts
    assert DataConfig(str(tmp_path), dict(text='maker')).load()[0].catalog.texts == named
    with pytest.raises(GenrecError, match="no column 'makr'"): load_dataset(tmp_path, text='makr')

# ---- bad lines -----------------------------------------------------------------------------------------------------

REVIEW = lambda u, i, t: json.dumps(dict(reviewerID=f'u{u}', asin=f'B{i}', unixReviewTime=1_300_000_000 + t)) + '\n'
BAD_RECORDS = ['{"reviewerID": "u0", "as\n', 'garbage\n', '[1, 2]\n', '{"reviewerID": null, "asin": "B1", "unixReviewTime": 1300000000}\n', '{"asin": "B1", "unixReviewTime": 1300000000}\n',
               '{"reviewerID": "u1", "asin": "B1", "unixReviewTime": "n/a"}\n', '{"reviewerID": "u1", "asin": "", "unixReviewTime": 1300000000}\n']
BAD_ROWS = ['u0,B1,1300000000,more\n', 'u0,"B1,1300000000\n', 'u0\n', ',B1,1300000000\n', 'u0,B1,\n', 'u0,B1,yesterday\n']

def with_bad(lines, bad, at): return lines[:at] + [bad]*2 + lines[at:] + [bad]

@pytest.mark.parametrize('form, bad, at', [(f, b, at) for f, bads in (('json', BAD_RECORDS), ('csv', BAD_ROWS)) for b in bads for at in (0, 7, 300)])
def test_bad_lines_are_named_and_counted_or_left_out(tmp_path, form, bad, at):
    "Wherever they stand, in the first line, in the first that are looked at, and behind; the rest is what it would be without them"
    pairs = [(u, (u + 3*t) % 9, 10*u + t) for u in range(60) for t in range(6)]
    lines, head = ([REVIEW(*p) for p in pairs], '') if form == 'json' else ([f'u{u},B{i},{1_300_000_000 + t}\n' for u, i, t in pairs], 'user,item,time\n')
    path = tmp_path/f'reviews.{form}'
    path.write_text(head + ''.join(lines))
    want = load_dataset(path, text=False)
    path.write_text(head + ''.join(with_bad(lines, bad, at)))
    place, said = at + 1 + bool(head), ''
    with pytest.raises(FileError) as e: load_dataset(path, text=False)
    assert f'{path}, line {place}: expected' in str(e.value) and '3 lines are bad in all' in str(e.value) and '--skip-bad-lines' in str(e.value) and '\n' not in str(e.value)
    found = load_dataset(path, text=False, bad_lines='skip')
    assert histories(found) == histories(want)
    note, = [n for n in found.notes if 'bad lines' in n]
    assert 'reviews.' in note and '3 bad lines were left out' in note and f'line {place}: expected' in note

def test_rows_that_lack_different_things_are_counted_together(tmp_path):
    "One without an item, one without a time: neither is the only bad line, and the first in the file is named"
    (tmp_path/'x.csv').write_text('user,item,time\nu,a,1\nu,b,later\nu,c,3\nv,,4\nv,a,5\nv,b,6\n')
    with pytest.raises(FileError, match="x.csv, line 3: expected a time in column 'time', found 'later'; 2 lines are bad in all"): load_dataset(tmp_path/'x.csv', text=False)
    assert histories(load_dataset(tmp_path/'x.csv', text=False, bad_lines='skip')) == dict(u=['a', 'c'], v=['a', 'b'])

def test_times_of_histories_that_are_none(tmp_path):
    "The row of the file is named; left out, the user's next row is the first, whose history counts"
    rows = 'user_id,item_id,timestamp,history,history_timestamps\nu,c,30,a b,1 2\nv,c,30,a b,1 x\nv,d,40,a b c,1 2 30\nw,c,30,a b,1 2\n'
    (tmp_path/'x.csv').write_text(rows)
    with pytest.raises(FileError, match="x.csv, line 3: expected times in column 'history_timestamps', found '1 x'; it is the only bad line"): load_dataset(tmp_path/'x.csv', text=False)
    assert histories(load_dataset(tmp_path/'x.csv', text=False, bad_lines='skip')) == dict(u=['a', 'b', 'c'], v=['a', 'b', 'c', 'd'], w=['a', 'b', 'c'])
    (tmp_path/'x.csv').write_text(rows.replace('1 2 30', '1 2 y'))
    assert set(histories(load_dataset(tmp_path/'x.csv', text=False, bad_lines='skip'))) == {'u', 'w'}

def test_bad_lines_of_items_are_left_out(tmp_path):
    made(tmp_path, 'amazon2018')
    f = tmp_path/'meta_Beauty.json'
    whole = f.read_text()
    f.write_text('{"asin": "B9", "tit\n' + whole + '{"title": "without an id"}\n')
    with pytest.raises(GenrecError, match=r'meta_Beauty.json, line 1: .*'): load_dataset(tmp_path)
    with pytest.raises(FileError, match=r'line 1: expected a JSON object or a Python dictionary, found .*it is the only bad line'): read_file(f)
    d = load_dataset(tmp_path, bad_lines='skip')
    assert len(d.catalog) == 9 and any('meta_Beauty.json: 2 bad lines were left out' in n for n in d.notes)

def test_many_bad_lines(tmp_path):
    "Counting ends somewhere; and a file with more bad lines than good ones is refused whatever is asked for"
    f = tmp_path/'reviews.json'
    f.write_text(''.join(REVIEW(1, n % 7, n) for n in range(3000)) + '{"reviewerID": \n'*2000)
    with pytest.raises(FileError, match='line 3001: .*at least 2,000 lines are bad in all'): load_dataset(f, text=False)
    assert any('2,000 bad lines' in n for n in load_dataset(f, text=False, bad_lines='skip').notes)
    f.write_text(''.join(REVIEW(1, n % 7, n) for n in range(30)) + '{"reviewerID": \n'*31)
    with pytest.raises(FileError, match='31 lines are bad and 30 are good: is it the right file'): load_dataset(f, text=False, bad_lines='skip')
    with pytest.raises(SettingError, match="bad_lines is 'skp', expected one of error, skip; did you mean 'skip'"): load_dataset(f, text=False, bad_lines='skp')

def test_rows_over_several_lines_are_read_around_a_bad_one(tmp_path):
    text = 'user,item,note\nu,1,"two\nlines"\nu,2,"a ""quote"""\nu,3,"never closed\nv,1,x\n'
    (tmp_path/'a.csv').write_text(text)
    with pytest.raises(FileError, match=r"line 5: expected at most 3 values as in the head, found 'u,3,\"never closed'"): read_file(tmp_path/'a.csv')
    assert read_file(tmp_path/'a.csv', bad_lines='skip').frame.values.tolist() == [['u', '1', 'two\nlines'], ['u', '2', 'a "quote"'], ['v', '1', 'x']]
    (tmp_path/'a.csv').write_text('user,item,note\nu,1,"two\nlines"\n,2,x\nu,2,y\n')
    with pytest.raises(FileError, match="a.csv, line 4: expected a user in column 'user', found nothing"): load_dataset(tmp_path/'a.csv', text=False)


# ---- titles among the interactions -----------------------------------------------------------------------------------

def named_log(**changes): # 3 users, 5 items
    rows = [(f'u{u}', f'p{i}', f'Thing {i} for the table', f'kind {i % 2}', 3 + (u + i) % 3, 100*u + t) for u in range(3) for t, i in enumerate((np.arange(5) + u)[:4] % 5)]
    return pd.DataFrame(rows, columns=['user', 'item', 'title', 'category', 'rating', 'time']).assign(**changes)


@pytest.mark.parametrize('form', ['csv', 'jsonl', 'parquet'])
def test_titles_among_the_interactions_are_those_of_a_table_of_items(tmp_path, form):
    def write(df, path):
        if form == 'csv': df.to_csv(path, index=False)
        elif form == 'jsonl': df.to_json(path, orient='records', lines=True)
        else: df.to_parquet(path, index=False)
    log = named_log()
    for name in ('one', 'two'): (tmp_path/name).mkdir()
    write(log, tmp_path/'one'/f'interactions.{form}')
    write(log[['user', 'item', 'rating', 'time']], tmp_path/'two'/f'interactions.{form}')
    write(log[['item', 'title', 'category']].drop_duplicates(), tmp_path/'two'/f'items.{form}')
    one, two = (load_dataset(tmp_path/n) for n in ('one', 'two'))
    assert one.catalog.ids == two.catalog.ids and one.catalog.titles == two.catalog.titles and one.catalog.texts == two.catalog.texts and one.categories == two.categories
    assert one.interactions.items.tolist() == two.interactions.items.tolist() and 'rating' not in ' '.join(one.catalog.texts)


def test_titles_of_a_split_in_files(tmp_path):
    log = named_log()
    for part, rows in (('train', log[log.time % 100 < 2]), ('valid', log[log.time % 100 == 2]), ('test', log[log.time % 100 == 3])): rows.to_csv(tmp_path/f'{part}.csv', index=False)
    data = load_dataset(tmp_path)
    assert data.split is not None and dict(zip(data.catalog.ids, data.catalog.titles)) == {f'p{i}': f'Thing {i} for the table' for i in range(5)}


def test_what_is_no_title_is_not_taken_for_one(tmp_path):
    "A review's title differs from row to row; asked for by name it is refused"
    log = named_log()
    log['title'] = [f'great {n}' for n in range(len(log))]
    log.to_csv(tmp_path/'log.csv', index=False)
    with pytest.raises(MissingTextError, match='titles to the interactions, one an item'): load_dataset(tmp_path/'log.csv')
    with pytest.raises(MissingTextError, match="'title' has several values for one item"): load_dataset(tmp_path/'log.csv', title='title')
    assert len(load_dataset(tmp_path/'log.csv', text=False).catalog) == 5
    amazon = named_log().rename(columns=dict(user='user_id', item='parent_asin', time='timestamp'))
    amazon.to_json(tmp_path/'reviews.jsonl', orient='records', lines=True)
    with pytest.raises(MissingTextError): load_dataset(tmp_path/'reviews.jsonl')
