"Are identifiers good, doubtful or collapsed? Planted ones, and those of a small shop."
import json

import numpy as np
import pytest

from genrec_nb.data import Catalog, Dataset, Interactions
from genrec_nb.kmeans import codebook_report
from genrec_nb.semantic_ids import Identifiers
from genrec_nb.splits import leave_one_out
from genrec_nb.tokenizer import Tokenized, tokenize_items
from genrec_nb.tokenizer_config import TokenizerConfig
from genrec_nb.tokenizer_report import TokenizerReport, Verdict, verdict_lines

N = 60


def shop(n=N, users=30):
    rng = np.random.default_rng(0)
    histories = [rng.permutation(n)[:6] for _ in range(users)]
    items = Interactions(np.concatenate(histories).astype(np.int32), np.arange(users + 1)*6, [str(u) for u in range(users)], n)
    return Dataset('shop', Catalog([str(i) for i in range(n)], [f'thing {i}' for i in range(n)], ['']*n), items)


DATA = shop()
X = np.random.default_rng(1).normal(size=(N, 8)).astype(np.float32)
COUNTS = leave_one_out(DATA.interactions).train.target_counts()


def made(method, x=X, **more): return tokenize_items(DATA, None, TokenizerConfig(method, **more), x)


CODED = made('rqkmeans', levels=2, size=8)


def judged(codes, size, rate_after=0., **more):
    "Grades of the verdicts on codes [N, L]: use, evenness, collisions before, after"
    use = codebook_report(codes, [size]*codes.shape[1])
    n = np.unique(codes, axis=0, return_counts=True)[1]
    collisions = dict(rate=use.collision_rate, items=int(n[n > 1].sum()), largest=int(n.max()))
    report = TokenizerReport('rqkmeans', use, collisions, dict(rate=rate_after, largest=1), [], [], (2, 2), 99, {}, **more)
    return [v.grade for v in report.verdicts()]


def test_verdicts_of_planted_codes():
    "All codes alike; one level of two dead; half of them; and no better than 8 items can do in a codebook of 256"
    grid = np.stack(np.divmod(np.arange(64), 8), 1)
    assert judged(grid, 8) == ['good']*4 and judged(grid[:8], 256)[2:] == ['good', 'good']
    assert judged(np.stack([np.arange(8), np.arange(8)], 1), 256) == ['good']*4
    assert judged(np.zeros((64, 2), int), 8) == ['collapsed']*3 + ['good']
    assert judged(np.zeros((64, 1), int), 1).count('collapsed') == 2                          # 1 of 1 is used, and tells nothing apart
    assert judged(np.stack([grid[:, 0], 0*grid[:, 1]], 1), 8)[:2] == ['collapsed']*2         # the worst level counts
    assert judged(np.stack([grid[:, 0], grid[:, 1] % 6], 1), 8)[:3] == ['doubtful', 'good', 'doubtful']
    assert judged(grid, 8, .01)[3] == 'doubtful' and judged(grid, 8, .2)[3] == 'collapsed'
    assert judged(grid, 8, alike=.5, covered=.8) == ['collapsed', *['good']*4, 'doubtful'] and judged(grid, 8, levels=0) == ['good']


def test_verdicts_are_written_with_their_help():
    report = CODED.report(COUNTS)
    assert [Verdict(**v) for v in json.loads(json.dumps(report.to_dict()))['verdicts']] == report.verdicts()
    assert all(str(v) in repr(report) and (v.grade == 'good') == (v.helps == '') for v in report.verdicts())
    assert len(made('item').report().verdicts()) == 1                                         # no codes: collisions alone
    lines = verdict_lines('mine', report.verdicts())
    assert all(line.startswith('mine: ') for line in lines) and (len(lines) == 1 or not any(': good' in line for line in lines))


def test_equal_texts_are_named_as_the_cause():
    "Sixty items with four texts: whatever has collapsed, more text helps and not the number of codes"
    found = made('rqkmeans', np.repeat(np.eye(4, 8, dtype=np.float32), 15, axis=0), levels=2, size=16).report()
    first = found.verdicts()[0]
    assert found.alike == pytest.approx(56/60) and first.grade == 'collapsed' and '--vectors' in first.helps and 'text' not in first.says + first.helps  # they were given
    assert first.says.startswith('60 of 60 items share their vector with another') and '60 items share their codes, up to 15' in str(found.verdicts()[-2])
    some = made('rqkmeans', np.repeat(np.eye(N, 8*N)[:, :N], 1, axis=0)[[0]*5 + list(range(5, N))], levels=2, size=8).report()
    assert some.shared == 5 and some.alike == pytest.approx(4/N) and f'5 of {N} items share' in some.verdicts()[0].says
    same = Dataset(DATA.name, Catalog(DATA.catalog.ids, DATA.catalog.titles, ['a red box', 'a blue box', 'a green ball']*(N//3)), DATA.interactions)
    text = tokenize_items(same, None, TokenizerConfig('rqkmeans', levels=2, size=3, encoder='tfidf')).report().verdicts()[0]
    assert text.says.startswith(f'{N} of {N} items share their text vector with another, as items with one text do') and '--column text=A,B' in text.helps
    assert {v.helps for v in found.verdicts() if v.grade != 'good'} == {found.verdicts()[0].helps}


def test_coverage_counts_items_of_trained_tokens():
    counts = np.arange(N) % 2                                                                 # every other item is a target
    assert made('item').report(counts).covered == pytest.approx(counts.mean())
    ids = CODED.ids
    trained = {t for i in range(N) if counts[i] for t in ids.names(i)}
    assert CODED.report(counts).covered == pytest.approx(np.mean([set(ids.names(i)) <= trained for i in range(N)]))


@pytest.mark.parametrize('codes,grades', [([9, 9, 9], ['collapsed', 'collapsed', 'collapsed']), ([None]*3, ['good']*3)])
def test_a_published_table_is_judged_by_its_numbers(codes, grades):
    "The codebook is as large as the largest number says; the last level may be a running number"
    rng = np.random.default_rng(0)
    rows = [[f'<{l}_{rng.integers(16) if c is None else (c if i else 0)}>' for l, c in zip('ab', codes)] + [f'<c_{i % 20}>'] for i in range(200)]
    report = Tokenized(Identifiers.from_names(rows)).report()
    said = report.verdicts()
    assert report.use.to_dict()['sizes'][:2] == ([10, 10] if codes[0] else [16, 16]) and report.levels == 2
    assert [v.grade for v in said][:2] == grades[:2] and said[-1].grade == ('collapsed' if codes[0] else said[-1].grade)


@pytest.mark.parametrize('n, levels, size', [(n, l, s) for n in (12, 40) for l in (2, 3) for s in (4, 16, 64) if s <= n])
def test_advice_does_not_go_in_a_circle(n, levels, size):
    "Followed three times on a small catalog, it never asks for what it advised against: fewer codes a level, more levels, and nothing back"
    x, said = np.random.default_rng(n).normal(size=(n, 6)).astype(np.float32), []
    data = shop(n)
    for _ in range(3):
        report = tokenize_items(data, None, TokenizerConfig('rqkmeans', levels=levels, size=size), x).report()
        helps = ' '.join(v.helps for v in report.verdicts() if v.grade != 'good')
        said.append(helps)
        assert 'size=N with more' not in helps and 'levels=N with fewer' not in helps and 'more of them' not in helps
        if 'size=N with fewer' in helps: size = max(size//2, 2)
        if 'levels=N with more' in helps: levels += 1


def test_a_level_that_is_nearly_forced_is_not_judged():
    "Where a first code leaves one item, the second one is no choice, whatever share of its codes it uses"
    codes = np.stack([np.arange(16), np.arange(16) % 2], 1)
    use = codebook_report(codes, [16, 16])
    fine = dict(rate=0., items=0, largest=1)
    def first(zero): return TokenizerReport('rqkmeans', use, fine, fine, [1., 0.], zero, (2, 2), 99, {}).verdicts()[0]
    assert first([0., .95]).grade == 'good' and first([0., .95]).says.startswith('level 1') and first([0., .1]).grade == 'collapsed'
