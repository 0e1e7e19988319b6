"A language model inside the whole: titles and codes, a fresh process, settings that cannot be, the colored strip."
import json
from dataclasses import asdict, replace
from types import SimpleNamespace
from html.parser import HTMLParser
import numpy as np
import pytest
import torch
from transformers import Trainer
from genrec_nb.data import Catalog, Dataset, Interactions
from genrec_nb.splits import leave_one_out
from genrec_nb.core import GenrecError, GenrecWarning, MissingTextError, SettingError
from genrec_nb.beam_search import DecodeConfig
from genrec_nb.backbones import tiny_llama
from genrec_nb.explanations import Explanation, token_strip
from genrec_nb.generators import BACKBONES, _train_defaults
from genrec_nb.recommender import GenerativeRecommender, RecommenderConfig
from genrec_nb.tokenizer import tokenize_items
from genrec_nb.tokenizer_config import TokenizerConfig
from genrec_nb.train import GenrecTrainer, TrainConfig

WORDS = 'red blue steel wood long short screw bolt'.split()
QUICK = dict(epochs=1, batch_size=8, accumulate=1, samples_per_epoch=24, eval_users=6, lr=3e-3)


def toy(n=30, users=40, seed=0):
    "Titles of some words, two of them equal, one with letters of several bytes"
    rng = np.random.default_rng(seed)
    titles = [' '.join(rng.choice(WORDS, rng.integers(1, 5))) + f' {i}' for i in range(n)]
    titles[5], titles[9] = titles[4], 'Ångström: naïve “x” <b>'
    histories = [rng.permutation(n)[:rng.integers(4, 9)] for _ in range(users)]
    catalog = Catalog([f'i{i:02}' for i in range(n)], titles, [f'{t}. {WORDS[i % 8]} {WORDS[i*3 % 8]}' for i, t in enumerate(titles)])
    return Dataset('toy', catalog, Interactions(np.concatenate(histories), np.r_[0, np.cumsum([len(h) for h in histories])], [str(u) for u in range(users)], n))


DATA = toy()
SPLIT = leave_one_out(DATA.interactions)


@pytest.fixture(scope='module')
def base(tmp_path_factory):
    "A tiny language model in a folder"
    folder = tmp_path_factory.mktemp('lm')/'tiny'
    for part in tiny_llama(DATA.catalog.titles[:8] + WORDS, 300): part.save_pretrained(folder)
    return folder


def settings(base, **changes):
    model = dict(base=str(base), r=4, max_items=5, max_tokens=400) | changes.pop('model', {})
    return RecommenderConfig(**{**dict(backbone='llm', tokenizer=dict(method='title'), model=model, train=QUICK), **changes})


def codes(base, **changes):
    return settings(base, **{**dict(tokenizer=dict(method='random', size=8, levels=2)), **changes})


@pytest.fixture(scope='module')
def writer(base): return GenerativeRecommender.fit(DATA, settings(base), SPLIT)


FRESH = """
import json, sys
from pathlib import Path
assert not [m for m in sys.modules if m.startswith('genrec_nb')]
from genrec_nb.recommender import GenerativeRecommender
assert 'genrec_nb.language_recommender' not in sys.modules                    # only if one is asked for
found = GenerativeRecommender.from_pretrained('films').recommend(json.loads(Path('history').read_text()), 8)
Path('found').write_text(json.dumps([(x.id, x.score) for x in found]))
"""
HISTORY = [DATA.catalog.titles[i] for i in (3, 11, 20)]


def check_loaded(rec, folder, pairs):
    "The loaded one recommends what the trained one does, and an untrained one does not"
    here = [(x.id, x.score) for x in rec.recommend(HISTORY, 8)]
    assert [i for i, _ in pairs] == [i for i, _ in here] and len(here) == 8
    np.testing.assert_allclose([s for _, s in pairs], [s for _, s in here], atol=1e-3)
    whole = rec.config.model.get('tuning') == 'full'
    assert (folder/'model'/'lm'/'adapter_model.safetensors').is_file() != whole == (folder/'model'/'lm'/'model.safetensors').is_file()
    untrained = GenerativeRecommender(DATA.catalog, rec.ids, rec.counts, None, rec.config)
    assert not np.allclose([s for _, s in here], [x.score for x in untrained.recommend(HISTORY, 8)], atol=1e-3)


def test_a_fresh_process_recommends_the_same(writer, forks, tmp_path):
    "From another working directory, by the code of a notebook; with adapters only they are saved"
    folder = writer.save_pretrained(tmp_path/'films')
    (tmp_path/'history').write_text(json.dumps(HISTORY))
    cell = dict(cell_type='code', id='a', metadata={}, outputs=[], execution_count=None, source=FRESH)
    (tmp_path/'fresh.ipynb').write_text(json.dumps(dict(cells=[cell], metadata={}, nbformat=4, nbformat_minor=5)))
    status, _ = forks.run(tmp_path/'fresh.ipynb', store=False, log=tmp_path/'log')
    assert status == 0, (tmp_path/'log').read_text()
    check_loaded(writer, folder, json.loads((tmp_path/'found').read_text()))


@pytest.mark.parametrize('kind', ['whole', 'codes with tasks'])
def test_all_kinds_are_loaded_as_they_were(base, tmp_path, kind):
    config = settings(base, model=dict(tuning='full')) if kind == 'whole' else codes(base, model=dict(tasks=['item2index', 'fusiontitle'], share=.5))
    rec = GenerativeRecommender.fit(DATA, config, SPLIT)
    folder = rec.save_pretrained(tmp_path/'films')
    check_loaded(rec, folder, [(x.id, x.score) for x in GenerativeRecommender.from_pretrained(folder).recommend(HISTORY, 8)])


def test_the_whole_is_the_parts_put_together(base, writer):
    "The scores are those of the language model by itself, item by item, and `explain` adds up to them"
    history, items = [3, 11, 20], [7, 9, 12]
    x, mask = writer.model.prompt(torch.tensor([history]*3))
    out = writer.model(torch.tensor([history]*3), torch.tensor(items)).nll.sum(1)
    for i, nll in zip(items, out.tolist()):
        e = writer.explain([DATA.catalog.ids[j] for j in history], DATA.catalog.ids[i], alpha=0)
        assert abs(e.score + nll) < 1e-3
        assert [p.token for p in e.parts][-1] == '∎' and len(e.parts) == len(writer.ids.path(i))
    found = writer.recommend([DATA.catalog.ids[j] for j in history], 30, DecodeConfig(beams=60))
    assert {x.item: x.score for x in found}[12] == pytest.approx(-out[2].item(), abs=1e-3)
    assert not {x.item for x in found} & set(history)
    assert {x.item: x.score for x in found}[4] == {x.item: x.score for x in found}[5]               # one title, two items
    assert writer.rank(SPLIT.test, 5).shape == (len(SPLIT.test), 5)


def test_an_explanation_gives_the_score_that_ranks(writer):
    "Also where IGD-decoding weighs steps and scores are divided by length"
    history, usual = [DATA.catalog.ids[j] for j in (3, 11, 20)], writer.config
    for decode in (DecodeConfig(beams=40), DecodeConfig(beams=40, alpha=.3, length_penalty=1.), DecodeConfig(beams=40, length_penalty=.5)):
        writer.config = replace(usual, decode=decode)
        try:
            for x in writer.recommend(history, 3):
                e = writer.explain(history, x.id)
                assert e.score == pytest.approx(x.score, abs=1e-3) and ('divided by' in repr(e)) == ('divided by' in e._repr_html_()) == bool(decode.length_penalty)
        finally: writer.config = usual


def test_titles_are_read_back_from_the_pieces(writer):
    "All titles, with the pieces of a letter shown as dots"
    for i, title in enumerate(DATA.catalog.titles):
        words = writer.path_words(writer.ids.path(i))
        text = ''.join(w for w in words if w != '·')
        assert text == title + '⏎∎' and len(words) == len(writer.ids.path(i))
    assert writer.path_words(writer.ids.path(9)).count('·') > 0


class Spans(HTMLParser):
    def __init__(self, text):
        super().__init__(); self.text, self.styles, self.deep = [], [], 0
        self.feed(text)
    def handle_starttag(self, tag, attrs):
        if tag == 'span': self.styles.append(dict(attrs)['style']); self.text.append(''); self.deep = 1
    def handle_endtag(self, tag):
        if tag == 'span': self.deep = 0
    def handle_data(self, data):
        if self.deep: self.text[-1] += data


def test_the_strip_writes_the_title_and_colors_what_decides(writer):
    e = writer.explain(DATA.catalog.ids[:2], DATA.catalog.ids[9], alpha=.3)
    assert len(e.parts) > 8 and e._repr_html_() == e.strip() == e.strip()._repr_html_()
    spans = Spans(e.strip())
    assert ''.join(spans.text) == ''.join(p.token for p in e.parts)               # escaped: the title holds a tag
    assert '<b> alone' not in e.strip() and '&lt;b&gt; alone' in e.strip()
    assert [('background' in s) for s in spans.styles] == [p.gain > 0 for p in e.parts]
    assert any(p.gain > 0 for p in e.parts) and any(p.gain == 0 for p in e.parts)
    few = Explanation('x', e.parts[:3])
    assert few._repr_html_().startswith('<table') and 'class="strip"' in few.strip()
    assert token_strip([], [], []) and 'border-bottom' not in token_strip(['a'], [1.], ['t'])


def test_one_name_for_the_language_model_is_enough(base, tmp_path, monkeypatch):
    "As base, as lm, relative or not; two different ones are refused"
    full = str(base.resolve())
    def titles(tokenizer={}, **more): return RecommenderConfig(backbone='llm', tokenizer=dict(method='title', options=tokenizer), **more)
    assert settings(base).tokenizer_config.options['lm'] == full
    by_lm = titles(tokenizer=dict(lm=full))
    assert by_lm.model['base'] == full and by_lm.tokenizer_config.options['lm'] == full
    monkeypatch.chdir(base.parent)
    assert titles(model=dict(base='tiny')).model['base'] == full
    assert titles(model=dict(base='tiny'), tokenizer=dict(lm=full, suffix='.')).tokenizer_config.options == dict(lm=full, suffix='.')
    with pytest.raises(GenrecError, match='name one of the two'): titles(model=dict(base='tiny'), tokenizer=dict(lm='other'))
    r = titles()
    assert 'base' not in r.model and r.tokenizer_config.options == {}
    packed = titles(model=dict(packed=True))
    assert packed.tokenizer_config.options == dict(suffix='') and replace(packed, tokenizer=dict(method='title', options=dict(suffix='.'))).tokenizer_config.options == dict(suffix='.')
    for given in ('item2index, fusiontitle', 'all', ['all']): codes(base, model=dict(tasks=given))
    assert RecommenderConfig(**json.loads(json.dumps(asdict(settings(base))))) == settings(base)


@pytest.mark.parametrize('make,what', [
    (lambda b: RecommenderConfig(tokenizer=dict(method='title')), "backbone 'llm'"),
    (lambda b: RecommenderConfig(tokenizer=dict(method='title'), backbone='t5'), "'t5' cannot write them"),
    (lambda b: settings(b, model=dict(bsae='x')), "did you mean 'base'"),
    (lambda b: RecommenderConfig(weighting='fg', beta=.5), "beta = 0.5 belongs to the weighting 'igd', and the weighting is 'fg'"),
    (lambda b: settings(b, model=dict(max_items='ten')), 'max_items is \'ten\', expected a whole number'),
    (lambda b: settings(b, model=dict(max_items=0)), 'max_items is 0'),
    (lambda b: settings(b, model=dict(tuning='lroa')), 'tuning is'),
    (lambda b: settings(b, model=dict(fill='x')), 'model: '),
    (lambda b: settings(b, model=dict(seed=3)), "'seed' is unknown"),
    (lambda b: settings(b, model=dict(tasks=['item2index'])), 'leave out tasks'),
    (lambda b: codes(b, model=dict(tasks=['item2idx'])), "did you mean 'item2index'"),
    (lambda b: codes(b, model=dict(tasks=3)), 'expected a list'),
    (lambda b: codes(b, model=dict(tasks='item2index,seqrek')), "did you mean 'seqrec'"),
    (lambda b: codes(b, model=dict(tasks='all', packed=True)), 'no lists: take one of the two'),
    (lambda b: codes(b, model=dict(share=2)), 'share is 2'),
    (lambda b: codes(b, model=dict(tasks=['seqrec']), weighting='cft'), 'cft blanks the history'),
    (lambda b: RecommenderConfig(model=dict(d_modle=3)), "did you mean 'd_model'"),
    (lambda b: RecommenderConfig(backbone='t5', model=dict(d_modle=3)), "did you mean 'd_model'"),
    (lambda b: RecommenderConfig(backbone='gpt'), 'backbone is'),
])
def test_settings_that_cannot_be(base, make, what):
    with pytest.raises(GenrecError, match=what): make(base)


def test_a_base_that_is_not_there_is_told_before_the_items_are_tokenized(base, tmp_path, monkeypatch):
    import genrec_nb.recommender as module
    def never(*a, **k): raise AssertionError('tokenized first')
    monkeypatch.setattr(module, 'tokenize_items', never)
    (tmp_path/'no').mkdir()
    with pytest.raises(GenrecError, match='holds no tokenizer'): GenerativeRecommender.fit(DATA, codes(tmp_path/'no'))
    with pytest.raises(GenrecError, match='no/such/model'): GenerativeRecommender.fit(DATA, codes('no/such/model'))
    mute = replace(DATA, catalog=replace(DATA.catalog, texts=['']*len(DATA.catalog)))
    with pytest.raises(GenrecError, match='item texts, and there are none'): GenerativeRecommender.fit(mute, codes(base, model=dict(tasks=['item2index'])))
    titles = tokenize_items(DATA, SPLIT, TokenizerConfig('title', options=dict(lm=str(base))))
    tiny_llama(WORDS[::-1], 290)[1].save_pretrained(tmp_path/'other')
    with pytest.raises(GenrecError, match='cut by another tokenizer'): GenerativeRecommender.fit(DATA, settings(tmp_path/'other'), SPLIT, titles)
    with pytest.raises(GenrecError, match="backbone 'llm'"): GenerativeRecommender.fit(DATA, RecommenderConfig(backbone='t5'), SPLIT, titles)


def test_how_each_backbone_is_usually_trained():
    assert RecommenderConfig().train == TrainConfig(epochs=12) and set(BACKBONES) == {'packed', 't5', 'llm'}
    r = RecommenderConfig(backbone='llm', train=dict(samples_per_epoch=7))
    assert (r.train.lr, r.train.samples_per_epoch, r.train.accumulate) == (3e-4, 7, 4) and r.train.batch_size*r.train.accumulate == 32
    assert RecommenderConfig(backbone='t5').train.batch_size == 256 and _train_defaults('packed') == dict(epochs=12)
    for b in BACKBONES.values(): assert 'max_items' in b.sizes()


def test_an_assistant_advises_the_ranking_and_the_single_list(writer):
    class Assistant:                                                           # likes items near the last one of the history
        def scores(self, cases): return -(torch.arange(len(DATA.catalog))[None] - torch.from_numpy(cases.items[cases.offsets[1:] - 1].astype(int))[:, None]).abs().float()
    alone = replace(writer.config.decode, beams=len(DATA.catalog), assistant_weight=1., alpha=0.)
    ranked = writer.rank(SPLIT.test, 5, alone, Assistant())
    for m in range(3):
        history = SPLIT.test.history(m)
        order = [i for i in np.argsort(np.abs(np.arange(len(DATA.catalog)) - history[-1]), kind='stable') if i not in history]
        near = lambda items: [abs(int(i) - int(history[-1])) for i in items]
        single = [i for i in ranked[m] if i not in (4, 5)]                         # these two share a title, and with it their probabilities
        assert near(single) == near([i for i in order if i not in (4, 5)][:len(single)]) and len(single) >= 3
        said = writer.recommend([DATA.catalog.ids[i] for i in history], 5, alone, Assistant())
        assert [x.item for x in said] == ranked[m].tolist()
    with pytest.raises(GenrecError, match='needs an assistant'): writer.rank(SPLIT.test, 5, alone)


def test_a_folder_is_readable_and_has_a_model_card(writer, tmp_path):
    "Settings as JSON, figures kept, an example that names items of the catalog"
    writer.figures = {'NDCG@10': .25}
    try: folder = writer.save_pretrained(tmp_path/'films', model_card_kwargs=dict(name='someone/films', license='cc-by-4.0'))
    finally: writer.figures = {}
    assert {p.name for p in folder.iterdir()} >= {'README.md', 'config.json', 'genrec.json', 'catalog.json', 'index.json', 'counts.safetensors', 'model'}
    assert RecommenderConfig(**json.loads((folder/'config.json').read_text())) == writer.config
    card = (folder/'README.md').read_text()
    assert 'license: cc-by-4.0' in card and "from_pretrained('someone/films')" in card and '|\n| NDCG@10 | 0.25 |\n' in card and 'packed' not in card
    assert GenerativeRecommender.from_pretrained(folder).figures == {'NDCG@10': .25}
    (tmp_path/'run').mkdir()
    folder.rename(tmp_path/'run'/'model')                                      # a run's folder holds it
    assert GenerativeRecommender.from_pretrained(tmp_path/'run').ids == writer.ids


def test_folders_that_cannot_be_read(writer, tmp_path):
    with pytest.raises(GenrecError, match='genrec.json is missing'): GenerativeRecommender.from_pretrained('nowhere')
    folder = writer.save_pretrained(tmp_path/'films')
    (folder/'counts.safetensors').rename(folder/'elsewhere')
    with pytest.raises(GenrecError, match='counts.safetensors is missing'): GenerativeRecommender.from_pretrained(folder)
    (folder/'genrec.json').write_text(json.dumps(dict(config={}, versions=dict(genrec_nb='0.1.0'))))
    with pytest.raises(GenrecError, match=r'saved by version 0\.1\.0 .*format 2'): GenerativeRecommender.from_pretrained(folder)
    (tmp_path/'mine').mkdir(); (tmp_path/'mine'/'thesis.txt').write_text('do not delete')
    with pytest.raises(GenrecError, match='is not replaced'): writer.save_pretrained(tmp_path/'mine')


def test_sharing_uploads_the_folder_and_loading_takes_it_from_the_hub(writer, tmp_path, monkeypatch):
    "The client is replaced: what is uploaded is what is read back"
    import shutil
    import huggingface_hub
    import huggingface_hub.hub_mixin as mixin
    class Hub:
        def __init__(self, token=None): pass
        def create_repo(self, repo_id, private, exist_ok): Hub.private = private; return type('Url', (), dict(repo_id=repo_id))
        def upload_folder(self, repo_id, folder_path, **more): shutil.copytree(folder_path, tmp_path/'hub'); return f'https://hub/{repo_id}'
    monkeypatch.setattr(mixin, 'HfApi', Hub)
    monkeypatch.setattr(huggingface_hub, 'snapshot_download', lambda name, **more: tmp_path/'hub')
    assert writer.push_to_hub('someone/films', license='mit') == 'https://hub/someone/films' and Hub.private
    assert 'license: mit' in (tmp_path/'hub'/'README.md').read_text()
    history = DATA.catalog.ids[:3]
    assert GenerativeRecommender.from_pretrained('someone/films').recommend(history, 5) == writer.recommend(history, 5)


def test_lists_and_explanations_are_tables(writer):
    found = writer.recommend(DATA.catalog.ids[:3], 4)
    assert found.to_frame().title.tolist() == [x.title for x in found] and found.to_frame().index.tolist() == [1, 2, 3, 4]
    e = writer.explain(DATA.catalog.ids[:3], found[0].id)
    assert e.to_frame().part.sum() == pytest.approx(found[0].score, abs=1e-3) and [x.items for _, x in e.labels()][-1] == 1
    assert e.labels()[-1][1].typical == [found[0].title] and f'{e.labels()[-1][1]}' in repr(e) and str(e.labels()[0][1]).split(';')[0] in e.strip()
    assert not writer.explain(DATA.catalog.ids[:3], found[0].id, labels=False).labels() and '&lt;b&gt;' in writer.explain(DATA.catalog.ids[:3], DATA.catalog.ids[9]).strip()


# ---- over children ----------------------------------------------------------------------------------------------------

@pytest.mark.parametrize('backbone', ['t5', 'llm'])
def test_a_recommender_over_children(base, backbone, tmp_path):
    "Scores are ln P and add up in the explanation; priors are those of the training targets; the setting of the training counts"
    over = dict(softmax='children', prior='trie')
    sizes = over | dict(d_model=16, d_ff=16, num_layers=1, num_decoder_layers=1, num_heads=2, d_kv=8, max_items=5)
    config = settings(base, model=over) if backbone == 'llm' else RecommenderConfig(backbone='t5', tokenizer=dict(method='random', size=8, levels=2), model=sizes, train=dict(QUICK, batch_size=8))
    other = DATA.interactions.items.copy()
    for end in DATA.interactions.offsets[1:]: other[end - 2:end] = 7             # valid and test
    hidden = leave_one_out(replace(DATA.interactions, items=other))
    rec = GenerativeRecommender.fit(DATA, config, SPLIT, folder=tmp_path/'run')
    assert (np.asarray(rec.model.counts) == hidden.train.target_counts()).all() and rec.model.soft is not None
    found = rec.recommend(HISTORY, 30, DecodeConfig(beams=40, exclude_seen=False))
    assert sum(np.exp(x.score) for x in found) == pytest.approx(1, abs=1e-4) and len(found) == 30            # colliding items have parts of their path
    for x in found[:3]:
        why = rec.explain(HISTORY, x.id)
        assert why.score == pytest.approx(x.score, abs=1e-3) and [p.probability for p in why.parts if p.choices == 1] == [1.]*sum(p.choices == 1 for p in why.parts)
    folder = rec.save_pretrained(tmp_path/'saved')
    again = GenerativeRecommender.from_pretrained(folder)
    written = json.loads((folder/'config.json').read_text())
    written['model'] |= dict(softmax='vocabulary', prior='none')
    (folder/'config.json').write_text(json.dumps(written))
    with pytest.warns(GenrecWarning, match="softmax='vocabulary' is asked of a model that was trained with 'children'"): asked = GenerativeRecommender.from_pretrained(folder)
    for r in (again, asked): np.testing.assert_allclose([x.score for x in r.recommend(HISTORY, 8)], [x.score for x in rec.recommend(HISTORY, 8)], atol=1e-3)
    with pytest.raises(GenrecError, match="softmax is 'child'"): replace(config, model=config.model | dict(softmax='child'))


# ---- new items of a language model --------------------------------------------------------------------------------

MORE = [dict(item='n1', title='glue that glows'), dict(item='n2', title=DATA.catalog.titles[3] + ' again'), dict(item='n3', title=DATA.catalog.titles[11])]

def scores_of(rec, items): return {x.id: x.score for x in rec.recommend(items, 40, DecodeConfig(beams=60, exclude_seen=False))}

@pytest.mark.parametrize('model, options', [({}, {}), (dict(softmax='children'), {}), (dict(softmax='children', prior='trie'), dict(shortest=True))], ids=str)
def test_new_titles_are_written_without_training(base, tmp_path, model, options):
    "As by the same weights with a catalog that always had them; scores of titles over the vocabulary do not change"
    rec = GenerativeRecommender.fit(DATA, settings(base, model=model, tokenizer=dict(method='title', options=options)), SPLIT)
    before, first = scores_of(rec, HISTORY), [DATA.catalog.ids[i] for i in (3, 11, 20)]
    assert rec.add_items(MORE) is rec and len(rec.catalog) == 33 == len(rec.ids) and rec.ids.kind == 'titles'
    after, m = scores_of(rec, first), rec.model
    assert {'n1', 'n2', 'n3'} <= after.keys() and after['n3'] == pytest.approx(after[DATA.catalog.ids[11]], abs=1e-4)
    if not model: assert {i: after[i] for i in before} == pytest.approx(before, abs=1e-3)
    else: assert sum(np.exp(list(after.values()))) == pytest.approx(1, abs=1e-3)
    counts = None if m.counts is None else m.counts.numpy()
    fresh = type(m)(m.lm, m.tokenizer, rec.ids, m.config, counts).eval()
    if m.log_scale is not None: fresh.log_scale = m.log_scale
    other = GenerativeRecommender(rec.catalog, rec.ids, rec.counts, fresh, rec.config)
    assert scores_of(other, first) == pytest.approx(after, abs=1e-4)
    why = rec.explain(['n1', first[0]], 'n2')
    assert why.score == pytest.approx(scores_of(rec, ['n1', first[0]])['n2'], abs=1e-3)
    again = GenerativeRecommender.from_pretrained(rec.save_pretrained(tmp_path/'longer'))
    assert scores_of(again, first) == pytest.approx(after, abs=1e-3)
    assert 'n1' in scores_of(again.add_items([dict(item='n4', title='red saw')]), first) and len(again.catalog) == 34

def test_new_codes_of_a_language_model(base, tmp_path):
    rec = GenerativeRecommender.fit(DATA, settings(base, tokenizer=dict(method='rqkmeans', encoder='tfidf', size=6, levels=2)), SPLIT)
    old = [rec.ids.path(i).tolist() for i in range(30)]
    rec.add_items(MORE)
    assert [rec.ids.path(i).tolist() for i in range(30)] == old and {'n1', 'n2', 'n3'} <= scores_of(rec, HISTORY).keys()
    found = scores_of(rec, ['n2', 'n1'])
    again = GenerativeRecommender.from_pretrained(rec.save_pretrained(tmp_path/'longer'))
    assert scores_of(again, ['n2', 'n1']) == pytest.approx(found, abs=1e-3)

@pytest.mark.parametrize('items, how, kind, words', [
    (Catalog(['n'], ['n'], ['']), {}, MissingTextError, 'ids and no titles'), ([dict(item='n', title='a <end> b')], {}, GenrecError, 'special token'),
    (MORE, dict(policy='extra'), SettingError, 'neither a policy nor vectors'), (MORE, dict(count=-1), SettingError, 'expected a whole number, 0 or more')], ids=str)
def test_titles_that_cannot_be_added(writer, items, how, kind, words):
    before = writer.recommend(HISTORY, 5)
    with pytest.raises(kind, match=words): writer.add_items(items, **how)
    assert len(writer.catalog) == 30 == len(writer.model.ids) and writer.recommend(HISTORY, 5) == before

def test_a_language_model_is_asked_for_no_item_that_it_lacks(writer):
    from genrec_nb.beam_search import recommend
    from genrec_nb.trie import ItemTrie
    known, more = torch.tensor([[3, 11]]), DATA.catalog.titles + ['a new one']
    from genrec_nb.prompts import title_identifiers
    longer = title_identifiers(more, writer.model.tokenizer)
    with pytest.raises(GenrecError, match="the trie has 31 items, the model's own 30"): recommend(writer.model, ItemTrie.build(longer), known, 5)
    fewer = ItemTrie.build(writer.ids, np.setdiff1d(np.arange(30), 7))
    writer.model.set_items(writer.ids, [fewer])
    with pytest.raises(GenrecError, match="the trie has item 7, which the model's own lacks"): recommend(writer.model, writer.trie, known, 5)
    with pytest.raises(GenrecError, match='give one'): writer.model.set_items(longer, [fewer])
    found, _ = recommend(writer.model, fewer, known, 40, DecodeConfig(beams=60))
    assert 7 not in found
    writer.model.set_items(writer.ids)
    assert 7 in recommend(writer.model, writer.trie, known, 40, DecodeConfig(beams=60))[0]

@pytest.mark.parametrize('over', [{}, dict(eos=True), dict(softmax='children', prior='trie')], ids=str)
def test_new_codes_of_t5(tmp_path, over):
    sizes = over | dict(d_model=16, d_ff=16, num_layers=1, num_decoder_layers=1, num_heads=2, d_kv=8, max_items=5)
    rec = GenerativeRecommender.fit(DATA, RecommenderConfig(backbone='t5', tokenizer=dict(method='rqkmeans', encoder='tfidf', size=6, levels=2), model=sizes, train=dict(QUICK, batch_size=8)), SPLIT)
    old = [rec.ids.path(i).tolist() for i in range(30)]
    rec.add_items(MORE)
    assert [rec.ids.path(i).tolist() for i in range(30)] == old and {'n1', 'n2', 'n3'} <= scores_of(rec, HISTORY).keys()
    again = GenerativeRecommender.from_pretrained(rec.save_pretrained(tmp_path/'longer'))
    assert scores_of(again, ['n2', 'n1']) == pytest.approx(scores_of(rec, ['n2', 'n1']), abs=1e-3)

@pytest.mark.parametrize('more, message', [(dict(backbone='t5'), r'give fit\(data, RecommenderConfig\(backbone=...\)\)'), (dict(learning_rat=.1), "did you mean 'learning_rate'")])
def test_what_training_refuses_is_refused_before_the_identifiers(more, message, monkeypatch):
    monkeypatch.setattr('genrec_nb.recommender._tokenize', None)
    with pytest.raises(SettingError, match=message): GenerativeRecommender.fit(DATA, **more)

def test_tied_weights_of_t5_are_not_called_missing(monkeypatch):
    missing, sizes = [], dict(d_model=16, d_ff=16, num_layers=1, num_decoder_layers=1, num_heads=1, d_kv=16)
    monkeypatch.setattr(Trainer, '_issue_warnings_after_load', lambda self, load_result: missing.append(load_result.missing_keys))
    rec = GenerativeRecommender.fit(DATA, RecommenderConfig(backbone='t5', tokenizer=dict(method='random', size=6, levels=2), model=sizes, train=dict(QUICK, batch_size=8)), SPLIT)
    trainer = GenrecTrainer.__new__(GenrecTrainer)
    trainer.model = rec.model
    trainer._issue_warnings_after_load(SimpleNamespace(missing_keys=['lm_head.weight', 'shared.weight']))
    assert missing == [[], ['shared.weight']]
