"Prompts against a slow one, lengths of samples, titles that no prompt can hold."
import re
import numpy as np
import pytest
import torch
from genrec_nb.backbones import tiny_llama
from genrec_nb.beam_search import DecodeConfig, recommend
from genrec_nb.core import GenrecError
from genrec_nb.language_recommender import LMConfig, LanguageRecommender
from genrec_nb.prompts import title_identifiers
from genrec_nb.semantic_ids import Identifiers
from genrec_nb.titles import title_ids
from language import some_titles, base, make, make_codes, users, interactions, slow_prompt

@pytest.mark.parametrize('max_tokens', [256, 130, 112])
def test_prompts_are_cut_from_the_old_end_and_counted(max_tokens):
    config = LMConfig(base=None, max_tokens=max_tokens, separator=', ')
    model = make(0, config=config)
    history = users(40, n=30, width=9, seed=8)
    x, mask = model.prompt(history)
    want = [slow_prompt(model, h) for h in history.tolist()]
    assert [row[m == 1].tolist() for row, m in zip(x, mask)] == want
    assert all(m.tolist() == sorted(m.tolist()) for m in mask)                     # padding on the left
    assert x.shape[1] == max(map(len, want)) <= max_tokens - model.ids.max_len
    full = make(0, config=LMConfig(base=None, max_tokens=1000, separator=', ')).prompt(history)[1].sum(1)
    assert model.prompt.cut['prompts'] == 30 and model.prompt.cut['shortened'] == int((mask.sum(1) < full).sum())
    assert (model.prompt.cut['items'] > 0) == (max_tokens < 256)

def test_text_of_codes_is_their_words():
    model = make_codes(0)
    x, mask = model.prompt(torch.tensor([[-1, 3, 7]]))
    names = [n for i in (3, 7) for n in model.ids.names(i)]
    assert [t for t in model.tokenizer.convert_ids_to_tokens(x[0].tolist()) if t in set(model.ids.tokens)] == names

@pytest.mark.parametrize('which', ['titles', 'codes'])
def test_samples_are_tigers_by_token_length(which):
    model = make(0) if which == 'titles' else make_codes(0)
    N = len(model.ids)
    x = interactions(N)
    samples = model.samples(x, 4)
    assert len(samples) == int((x.lengths - 1).sum())
    for s in (0, 5, len(samples) - 1):
        batch = samples.collate([s])
        words = [int(model.prompt.lengths[i]) for i in batch['history'][0] if i >= 0]
        assert samples.lengths[s] == sum(words) + model.ids.lengths[batch['targets'][0]]

def test_titles_that_the_tokenizer_cannot_give_back_are_listed():
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast
    words = Tokenizer(models.WordLevel({'<unk>': 0, '</s>': 1, 'red': 2, 'saw': 3}, unk_token='<unk>'))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, unk_token='<unk>', eos_token='</s>')
    with pytest.raises(GenrecError, match=r"2 of 3 titles: 1: 'blue saw'; 2: 'Δ'"): title_identifiers(['red saw', 'blue saw', 'Δ'], tokenizer)

def test_equal_titles_share_a_path_and_count_by_item():
    titles = ['red saw', 'glue', 'red saw', 'red saw long']
    lm, tokenizer = base(titles)
    ids = title_identifiers(titles, tokenizer)
    assert ids.group[0] == ids.group[2] and not len(ids.prefix_violations())       # 'red saw' ends before 'red saw long' goes on
    model = LanguageRecommender(lm, tokenizer, ids, LMConfig(base=None, max_tokens=128)).eval()
    items, scores = recommend(model, model.trie, torch.tensor([[1]]), 4, DecodeConfig(beams=4, exclude_seen=False))
    rank = items[0].tolist()
    assert rank.index(2) == rank.index(0) + 1 and scores[0, rank.index(0)] == scores[0, rank.index(2)]

def test_identifiers_of_another_tokenizer():
    titles = some_titles(20)
    lm, tokenizer = base(titles)
    other = tiny_llama(['entirely', 'different', 'words entirely'], vocab_size=300)[1]
    with pytest.raises(GenrecError, match='another tokenizer'): LanguageRecommender(lm, tokenizer, title_identifiers(titles, other), LMConfig(base=None))
    with pytest.raises(GenrecError, match='no token'): LanguageRecommender(lm, tokenizer, Identifiers.from_codes(np.eye(2, dtype=int)), LMConfig(base=None))

def test_a_title_that_spells_the_end_token():
    titles = ['red saw', 'the <end> of it']
    lm, tokenizer = base(titles)
    with pytest.raises(GenrecError, match=r"special token .*<end>.* 1 of 2 titles: 1: 'the <end> of it'"): title_identifiers(titles, tokenizer)
    with pytest.raises(GenrecError, match='end-of-sequence token as a word'): LanguageRecommender(lm, tokenizer, title_ids(titles, tokenizer), LMConfig(base=None))

def test_no_room_for_a_history():
    with pytest.raises(GenrecError, match='no room'): make(0, config=LMConfig(base=None, max_tokens=90))
    with pytest.raises(GenrecError, match='reads 1024 tokens at most'): make(0, config=LMConfig(base=None, max_tokens=2000))

def test_no_prompt_comes_out_empty():
    "Just room for the longest title: every item fits alone; with one token less it is refused, and the message names what would do"
    titles = some_titles(20) + ['red saw of the long and very blue steel that no prompt can hold']
    lm, tokenizer = base(titles)
    ids = title_identifiers(titles, tokenizer)
    with pytest.raises(GenrecError, match='no room') as e: LanguageRecommender(lm, tokenizer, ids, LMConfig(base=None, max_tokens=80))
    enough = int(re.search(r'; (\d+) would do', str(e.value))[1])
    with pytest.raises(GenrecError, match=f'; {enough} would do'): LanguageRecommender(lm, tokenizer, ids, LMConfig(base=None, max_tokens=enough - 1))
    prompt = LanguageRecommender(lm, tokenizer, ids, LMConfig(base=None, max_tokens=enough)).prompt
    history = torch.tensor([[0, i] for i in range(len(titles))])
    assert (prompt.fits(history)[:, 1] == torch.tensor(prompt.lengths)).all() and prompt.cut['items'] >= 1
