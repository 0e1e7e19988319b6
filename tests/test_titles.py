"Titles as paths: they come back through the tokenizer's own ids, and damaged ones are refused."
import numpy as np
import pytest
from oracles import byte_tokenizer
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers

from genrec_nb.core import GenrecError
from genrec_nb.semantic_ids import EOS, PAD, Identifiers
from genrec_nb.titles import short_titles, title_ids


def word_tokenizer(titles):
    t = Tokenizer(models.WordLevel(unk_token='[UNK]'))
    t.pre_tokenizer = pre_tokenizers.Whitespace()
    t.train_from_iterator(titles, trainers.WordLevelTrainer(special_tokens=['[UNK]']))
    return t


TITLES = ['Star Wars', 'Star Trek', 'Alien', 'Alien Resurrection', 'Star Trek', 'Amélie 東京']

@pytest.mark.parametrize('make', [word_tokenizer, byte_tokenizer])
def test_titles_come_back_through_backbone_ids(make):
    tok = make(TITLES)
    ids = title_ids(TITLES, tok)
    for i, t in enumerate(TITLES):
        assert ids.path(i)[-1] == EOS
        assert tok.decode(ids.backbone_ids[ids.path(i)[:-1]].tolist()) == t
    assert ids.collisions()['groups'] == 1 and ids.group[1] == ids.group[4]
    assert set(np.unique(ids.flat)) == set(range(2, ids.vocab_size))             # compact: every token but pad and begin occurs

def test_suffix_is_part_of_the_path():
    tok = byte_tokenizer(TITLES)
    ids = title_ids(TITLES, tok, suffix='\n')
    assert all(ids.names(i)[-2:] == ['Ċ', '</s>'] for i in range(len(TITLES)))

def test_titles_that_begin_others_need_eos():
    tok = word_tokenizer(TITLES)
    with pytest.raises(GenrecError, match="item 2, Alien, is the beginning of item 3's, Alien Resurrection"): title_ids(TITLES, tok, eos=False)

def test_titles_a_tokenizer_cannot_give_back():
    tok = word_tokenizer(TITLES[:5])
    with pytest.raises(GenrecError, match=r"title of item 5: 'Amélie 東京' becomes '\[UNK\] \[UNK\]' \(1 such"): title_ids(TITLES, tok)
    ids = title_ids(TITLES, tok, lossy='keep')
    assert ids.n_items == 6 and ids.notes['damaged'] == 1
    with pytest.raises(GenrecError, match='item 1 has an empty title'): title_ids(['a', '  '], tok)
    mute = word_tokenizer(TITLES)
    mute.normalizer = normalizers.Replace('Alien', '')
    with pytest.raises(GenrecError, match="title of item 2: 'Alien' becomes ''"): title_ids(TITLES, mute, lossy='keep')

def test_uncased_tokenizer_is_not_called_lossy():
    tok = word_tokenizer([t.lower() for t in TITLES])
    tok.normalizer = normalizers.Lowercase()
    assert title_ids(TITLES, tok).notes['damaged'] == 0

def test_transformers_tokenizer_keeps_its_end_token():
    from transformers import PreTrainedTokenizerFast
    raw = byte_tokenizer(TITLES + ['</s>']); raw.add_special_tokens(['</s>'])
    tok = PreTrainedTokenizerFast(tokenizer_object=raw, eos_token='</s>')
    ids = title_ids(TITLES + ['a </s> b'], tok)                    # a title that spells the end token
    assert ids.backbone_ids[EOS] == tok.eos_token_id and ids.backbone_ids[PAD] == -1
    assert len(set(ids.tokens)) == ids.vocab_size

def test_saved_titles_keep_the_way_back(tmp_path):
    ids = title_ids(TITLES, byte_tokenizer(TITLES))
    ids.save(tmp_path)
    again = Identifiers.load(tmp_path)
    assert again == ids and again.notes == ids.notes and np.array_equal(again.backbone_ids, ids.backbone_ids)

def test_short_titles():
    assert short_titles(['Heat (1995)', 'Alien'], r' \(\d{4}\)$') == ['Heat', 'Alien'] and short_titles(['a '], '') == ['a ']
    with pytest.raises(GenrecError, match=r"leaves nothing of 1 titles: '1984'"): short_titles(['1984', 'Heat'], r'\d+')
    with pytest.raises(GenrecError, match='no regular expression'): short_titles(['x'], '(')
