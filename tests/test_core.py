"Core: methods added by patch, checked settings, whole files and folders, one-line errors"
import json, os
from dataclasses import field, replace
from pathlib import Path
from typing import Literal
import numpy as np
import pytest
from genrec_nb.core import (Count, FileError, GenrecError, Natural, Positive, SettingError, Share, check_choice, check_keys, _check_option,
                            digest, explain, patch, plain, read_json, read_settings, _read_spec, require, settings, whole_file, whole_folder, write_json, _write_spec, _write_tensors)

@settings
class Train:
    "Settings of a training"
    epochs: Count = 60
    lr: Positive = 1e-3
    dropout: Share = .1
    warmup: Natural = 0
    kind: Literal['adam', 'sgd'] = 'adam'
    users: Count | None = None

@settings
class Run:
    "Settings within settings"
    train: Train = field(default_factory=Train)
    name: str = 'run'

# ---- settings ----------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize('given,words', [
    (dict(epochs=0), "epochs is 0, expected 1 or more"), (dict(epochs=2.5), 'a whole number'), (dict(epochs='many'), "epochs is 'many'"),
    (dict(epochs=True), 'epochs is True'), (dict(lr=0), 'above 0'), (dict(lr=float('nan')), 'lr is nan'), (dict(lr=float('inf')), 'lr is inf'),
    (dict(dropout=1.1), 'at most 1'), (dict(warmup=-1), '0 or more'), (dict(kind='adm'), 'one of adam, sgd'), (dict(users=0), 'users'),
    (dict(epoch=3), "did you mean 'epochs'?"), (dict(lr=None), 'lr is None')])
def test_impossible_settings_are_refused_in_one_line(given, words):
    with pytest.raises(SettingError) as e: Train(**given)
    assert words in str(e.value) and '\n' not in str(e.value)
    with pytest.raises(SettingError, match='run.toml, train'): read_settings(Train, given, 'run.toml, train')

def test_settings_nest_compare_and_are_replaced():
    assert Run(train=dict(epochs=3)) == Run(train=Train(epochs=3)) and Train(lr=1).lr == 1.
    assert replace(Train(), epochs=3) == Train(epochs=3) and digest(Train()) == digest(Train(epochs=60)) != digest(Train(epochs=3))
    with pytest.raises(SettingError, match='epochs'): replace(Train(), epochs=-1)
    with pytest.raises(SettingError, match="train.*epoch"): Run(train=dict(epoch=3))
    with pytest.raises(SettingError, match='expected names with values'): read_settings(Train, [1], 'x')

def test_options_of_another_library():
    _check_option('d', 3, int, 'model'); _check_option('lr', 1, float, 'model'); _check_option('x', None, int | None, 'model')
    for value, kind in ((True, int), ('wide', int), (float('nan'), float), (1, bool), ('False', bool), (3, str)):
        with pytest.raises(SettingError, match='model: d is'): _check_option('d', value, kind, 'model')
    with pytest.raises(SettingError, match="did you mean 'letter'"): check_choice('leter', ['letter', 'rqvae'], 'tokenizer')
    with pytest.raises(SettingError, match="did you mean 'lr'"): check_keys(dict(lrr=1), ['lr'], 'train')

# ---- patch -------------------------------------------------------------------------------------------------------------------
def test_patch():
    class A: n = 3
    @patch
    def twice(self: A, k=2): "Twice"; return self.n*k
    @patch(as_prop=True)
    def half(self: A): return self.n/2
    @patch(cached=True)
    def slow(self: A): return [self.n]
    @patch(cls_method=True)
    def make(cls: A): return cls()
    a = A.make()
    assert a.twice() == 6 and a.half == 1.5 and a.slow is a.slow and A.twice.__doc__ == 'Twice' and A.twice.__qualname__ == 'A.twice'

# ---- checks ------------------------------------------------------------------------------------------------------------------
def test_require_names_the_first_bad_row():
    require(True, 'x'); require([], 'x'); require(np.array([True, True]), 'x'); require(3, 'x')
    with pytest.raises(SettingError, match='^no$'): require(False, 'no', SettingError)
    with pytest.raises(GenrecError, match='^row 2$'): require(np.arange(5) < 2, lambda i: f'row {i}')

def test_explain_makes_one_line():
    with pytest.raises(FileError, match="^a.csv: one two; expected numbers$"):
        with explain('a.csv', OSError, ValueError, hint='; expected numbers'): raise ValueError('one\n  two')
    with pytest.raises(FileError, match='^no such file$'):
        with explain('', OSError): open('/nowhere')
    with pytest.raises(KeyError):
        with explain('a.csv', OSError): raise KeyError('other errors pass')

# ---- files -------------------------------------------------------------------------------------------------------------------
def test_a_file_is_whole_or_not_there(tmp_path):
    with pytest.raises(OSError):
        with whole_file(tmp_path/'new'/'x.json') as f: f.write_text('half'); raise OSError('No space left on device')
    assert not list((tmp_path/'new').iterdir())
    write_json(tmp_path/'x.json', [1])
    with pytest.raises(KeyboardInterrupt):
        with whole_file(tmp_path/'x.json') as f: f.write_text('half'); raise KeyboardInterrupt
    assert read_json(tmp_path/'x.json') == [1] and os.stat(tmp_path/'x.json').st_mode & 0o777 == 0o644

def test_a_file_does_not_take_the_place_of_a_folder(tmp_path):
    (tmp_path/'kept').mkdir()
    with pytest.raises(FileError, match='kept: a folder, where a file is to be written'): write_json(tmp_path/'kept', [1])
    assert [p.name for p in tmp_path.iterdir()] == ['kept'] and not [*(tmp_path/'kept').iterdir()]

def test_a_folder_is_whole_and_only_its_own_kind_is_replaced(tmp_path):
    def write(text, fail=False):
        with whole_folder(tmp_path/'model', 'model.json') as part:
            (part/'model.json').write_text(text)
            if fail: raise RuntimeError
    write('1')
    with pytest.raises(RuntimeError): write('2', fail=True)
    assert (tmp_path/'model'/'model.json').read_text() == '1' and os.listdir(tmp_path) == ['model']
    write('3'); assert (tmp_path/'model'/'model.json').read_text() == '3'
    (tmp_path/'photos').mkdir(); (tmp_path/'photos'/'cat.png').touch(); (tmp_path/'file').touch()
    for other in ('photos', 'file'):
        with pytest.raises(FileError, match='not replaced'):
            with whole_folder(tmp_path/other, 'model.json'): pass
    assert (tmp_path/'photos'/'cat.png').exists()

@pytest.mark.parametrize('text,message', [('{"a": 1,\n "b" 2}', 'line 2, column 6'), ('{"a": 1, "a": 2}', "'a' stands more than once"), ('', 'line 1, column 1')])
def test_malformed_json(tmp_path, text, message):
    (tmp_path/'x.json').write_text(text)
    with pytest.raises(FileError, match=message) as e: read_json(tmp_path/'x.json')
    assert str(e.value).startswith(str(tmp_path/'x.json')) and '\n' not in str(e.value)

def test_files_of_settings(tmp_path):
    given = dict(data='ml-100k', users=None, train=dict(lr=1e-3, epochs=20., sizes=[4, 2]))
    _write_spec(tmp_path/'run.toml', given); write_json(tmp_path/'run.json', dict(a=1))
    assert _read_spec(tmp_path/'run.toml') == dict(data='ml-100k', train=dict(lr=1e-3, epochs=20, sizes=[4, 2])) and _read_spec(tmp_path/'run.json') == dict(a=1)
    (tmp_path/'bad.toml').write_text('a = \n')
    with pytest.raises(FileError, match='bad.toml.*line 1'): _read_spec(tmp_path/'bad.toml')
    with pytest.raises(FileError, match='.toml or .json'): _read_spec(tmp_path/'x.yaml')
    with pytest.raises(FileError, match='no such file'): _read_spec(tmp_path/'x.toml')

def test_tensors_of_any_layout_are_written(tmp_path):
    import torch
    from safetensors.torch import load_file
    x = torch.arange(6.).reshape(2, 3).requires_grad_()
    _write_tensors(tmp_path/'x.safetensors', dict(x=x.T))
    assert torch.equal(load_file(tmp_path/'x.safetensors')['x'], x.T.detach())

def test_digest_names_the_content():
    assert digest(dict(a=0, b=[1.])) == digest(dict(b=(1,), a=np.float32(0))) != digest(dict(a=1, b=[1])) and len(digest(b'x')) == 12
    assert plain({1: Train()})['1']['epochs'] == 60


@pytest.mark.parametrize('name, near', [('gf', 'fg'), ('FG', 'fg'), ('IGD', 'igd'), ('igdd', 'igd'), ('zz', None)])
def test_near_names_are_found_in_any_case_and_with_letters_exchanged(name, near):
    with pytest.raises(SettingError) as e: check_choice(name, ('ce', 'igd', 'fg'), 'weighting')
    assert (f'did you mean {near!r}?' in str(e.value)) == (near is not None) and ('did you mean' in str(e.value)) == (near is not None)
