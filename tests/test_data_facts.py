"What data allow, counted before training: against counts by hand and by brute force"
import numpy as np
import pandas as pd
import pytest
from dataclasses import asdict, replace
from oracles import small_data
from genrec_nb.beam_search import DecodeConfig
from genrec_nb.core import GenrecError, SettingError
from genrec_nb.data import Catalog, Dataset
from genrec_nb.data_facts import cut_texts, describe_data, plot_data, _check_beams, _cutter, _misleading, _pieces
from genrec_nb.loaders import load_dataset
from genrec_nb.metrics import evaluate_ranking
from genrec_nb.splits import leave_one_out

def random_data(seed, n=300):
    rng = np.random.default_rng(seed)
    df = pd.DataFrame(dict(user=rng.integers(0, 40, n), item=rng.integers(0, 60, n), time=rng.integers(0, 30, n)))
    catalog = Catalog.from_texts([str(i) for i in range(60)], [f'T{i % 50}' for i in range(60)], [[f'x{i % 55}'] for i in range(60)])
    return Dataset.from_frame(df, catalog.sort(), time='time')

@pytest.mark.parametrize('seed', range(4))
def test_counts_by_brute_force(seed):
    d = random_data(seed)
    x, s = d.interactions, leave_one_out(d.interactions)
    f = describe_data(d)
    assert f.repeats == sum(len(x.user(u)) - len(set(x.user(u).tolist())) for u in range(x.n_users))
    assert f.seen_targets == sum(t in s.test.history(m) for m, t in enumerate(s.test.targets))
    trained = set(s.train.items.tolist())
    assert f.cold_targets == sum(t not in trained for t in s.test.targets.tolist()) and f.unused_items == 60 - len(trained)
    assert f.same_title == sum(d.catalog.titles.count(t) > 1 for t in d.catalog.titles) and f.same_text == sum(d.catalog.texts.count(t) > 1 for t in d.catalog.texts)
    best = np.full((len(s.test), 20), -1)
    for m, t in enumerate(s.test.targets):
        if t not in s.test.history(m): best[m, 0] = t                  # a method that knows the answer, seen items excluded
    assert evaluate_ranking(best, s.test, s.train).to_dict()['metrics']['recall@1'] == pytest.approx(1 - f.seen_targets/f.targets)
    assert f'{1 - f.seen_targets/f.targets:.3f}' in ' '.join(f.lines())

def test_clean_data_say_little(tmp_path):
    df = pd.DataFrame([(u, i, t) for u in 'abc' for t, i in enumerate('vwxyz')], columns=['user', 'item', 'time'])
    f = describe_data(Dataset.from_frame(df, pd.DataFrame(dict(item=[*'vwxyz'], title=[f'the {i}' for i in 'vwxyz'])), time='time'))
    assert f.lines() == ['3 users, 5 items, 15 interactions, 3 test cases', '3 test targets (100.0%) were never chosen in training', '2 of 5 items were never chosen in training']
    assert type(f)(**asdict(f)) == f and f.cut is None

def test_texts_that_are_cut():
    class Encoder:
        class model:
            max_seq_length = 130
            def tokenizer(text, truncation): return type('T', (), dict(input_ids=text.split('.')))
    assert cut_texts(['a.'*200, 'b'*400, 'c'], Encoder) == 1 and cut_texts(['a.'*200], object()) is None and cut_texts(['short'], None) == 0

def test_plots_end_at_one():
    a, b = plot_data(random_data(0)).axes
    assert a.lines[0].get_ydata().max() == 1 and all(line.get_ydata()[-1] == pytest.approx(1) for line in b.lines)

def test_too_few_beams_are_refused():
    with pytest.raises(SettingError, match='beams is 4.*20 or more'): _check_beams(DecodeConfig(beams=4), 20, False)
    _check_beams(DecodeConfig(beams=20), 20, False)
    _check_beams(DecodeConfig(beams=4), 20, True)                                         # an item decoder ranks all items

def test_figures_that_mislead():
    split = leave_one_out(random_data(0).interactions)
    few = replace(split, test=split.test.sample(1), valid=split.valid.sample(1))
    assert _misleading(split, 20) == [] and _misleading(split, 60) == ['lists of 60 items hold the whole catalog of 60']
    assert _misleading(few, 20) == ['only 1 test case: intervals are wide', 'only 1 validation case: the epoch that is kept is chosen almost by chance']
    assert _misleading(split, 20, eval_users=9) == ['only 9 validation cases: the epoch that is kept is chosen almost by chance']

def test_pieces_counted_by_words_are_those_of_the_whole_text():
    try: whole = _cutter()
    except GenrecError as e: pytest.skip(str(e))
    texts = ["Rosie's soap—50 % off!", 'naïve café 北京烤鸭 x'*9, '', ' a  b ', 'supercalifragilistic '*300, '[SEP] is_a_mark, e.g. <br/>', 'ß İstanbul ﬁne 1,000.5']
    assert _pieces(texts) == [len(whole.encode(t).ids) for t in texts]
    assert cut_texts(texts, 'minilm') == 1


def test_items_without_title_or_text_are_counted(tmp_path):
    rows = ''.join(f'u{u},{(u + t) % 6},{t}\n' for u in range(6) for t in range(4))
    (tmp_path/'interactions.csv').write_text('user,item,time\n' + rows)
    bare = describe_data(load_dataset(tmp_path, text=None))
    assert (bare.no_text, bare.no_title) == (6, 6) and '6 of 6 items have no text' in ' '.join(bare.lines())
    (tmp_path/'items.csv').write_text('item,title,note\n' + ''.join(f'{i},{"" if i == 2 else f"T{i}"},a long note {i}\n' for i in range(6)))
    with pytest.warns(UserWarning, match='empty title'): some = describe_data(load_dataset(tmp_path))
    assert (some.no_text, some.no_title) == (0, 1) and '1 of 6 items has no title, its id stands for it' in some.lines()
    with pytest.warns(UserWarning, match='empty title'): assert 'no text' not in ' '.join(describe_data(load_dataset(tmp_path)).lines())
