"Full disks, locks, damaged checkpoints and caches; the harness in small."
import errno, json, multiprocessing, os, socket
from pathlib import Path
import numpy as np
import pytest
import torch
import faults as harness
import genrec_nb.core as core
from genrec_nb.core import FileError, GenrecWarning, _write_tensors, _writing, read_json, whole_file, whole_folder, write_json
from genrec_nb.embed import TfidfEncoder, embed_texts
from genrec_nb.experiments.results import _results_writer
from genrec_nb.faults import _alone, _kept, _last_checkpoint, _moved_here

FULL = OSError(errno.ENOSPC, 'No space left on device')


# ---- the harness ------------------------------------------------------------------------------------------------------

def test_killed_and_without_disk_and_then_resumed():
    "One kill and one full disk of the harness, which has thirty"
    log = list(harness.main(kills=1, disks=1, kinds=('run',), mount=False, twice=False))
    assert len(log) == 3 and not [line for line, wrong in log if wrong], log
    assert 'the disk is full' in log[-1][0]


# ---- a full disk ------------------------------------------------------------------------------------------------------

@pytest.fixture
def disk(tmp_path):
    "A disk of 2 MB"
    if not harness.can_mount(tmp_path/'probe'): pytest.skip('needs a machine that lets us mount a tmpfs')
    with harness.Disk(tmp_path/'disk', '2m') as d: yield d.folder

WRITERS = dict(tensors=lambda p: _write_tensors(p/'x.safetensors', dict(x=torch.ones(10**6))),
               json=lambda p: write_json(p/'x.json', 'x'*3*10**6),
               array=lambda p: keep(p/'x.npy', lambda part: np.save(part, np.ones(10**6))),
               archive=lambda p: keep(p/'x.npz', lambda part: np.savez(part, np.ones(10**6))),
               torch=lambda p: keep(p/'x.pt', lambda part: torch.save(torch.ones(10**6), part)))

def keep(path, write):
    with whole_file(path) as part: write(part)

@pytest.mark.parametrize('kind', WRITERS)
def test_a_full_disk_is_one_error_whichever_library_writes(disk, kind):
    with pytest.raises(OSError) as e: WRITERS[kind](disk)
    assert e.value.errno == errno.ENOSPC and Path(e.value.filename).parent == disk and list(disk.iterdir()) == []

def test_a_full_disk_keeps_the_folder_that_was_there(disk):
    with whole_folder(disk/'model', 'm.json') as part: write_json(part/'m.json', 1)
    with pytest.raises(OSError), whole_folder(disk/'model', 'm.json') as part:
        write_json(part/'m.json', 2)
        (part/'weights').write_bytes(bytes(3*10**6))
    assert read_json(disk/'model'/'m.json') == 1 and os.listdir(disk) == ['model']

@pytest.mark.parametrize('why, want', [(FULL, OSError), (None, RuntimeError), (OSError(errno.EROFS, 'Read-only file system'), FileError)])
def test_what_a_library_raises_is_explained_by_the_place(monkeypatch, why, want):
    monkeypatch.setattr(core, '_try_to_write', lambda folder: why)
    with pytest.raises(want) as e, _writing('/data/x.pt'): raise RuntimeError('unexpected pos\n'*88)
    assert type(e.value) is want and (why is None or '/data/x.pt' in str(e.value) and '\n' not in str(e.value))

def test_errors_of_other_places_stay(tmp_path):
    with pytest.raises(FileNotFoundError, match='nowhere'), whole_file(tmp_path/'x'): open(tmp_path/'nowhere')

def test_a_row_that_does_not_fit_is_cut_off_at_the_next_start(tmp_path, monkeypatch):
    with _results_writer(tmp_path) as append: append(dict(a=1))
    with open(tmp_path/'results.jsonl', 'ab') as f: f.write(b'{"a": ')
    with _results_writer(tmp_path) as append: append(dict(a=2))
    assert [json.loads(line) for line in open(tmp_path/'results.jsonl')] == [dict(a=1), dict(a=2)]


# ---- two processes ----------------------------------------------------------------------------------------------------

def hold(folder, ready, done):
    with _alone(folder): ready.set(); done.wait(20)

def test_the_second_process_is_told_who_the_first_is(tmp_path):
    context = multiprocessing.get_context('fork')
    ready, done = context.Event(), context.Event()
    p = context.Process(target=hold, args=(tmp_path, ready, done))
    p.start(); ready.wait(20)
    with pytest.raises(FileError, match=f'process {p.pid} on {socket.gethostname()} is writing there'), _alone(tmp_path): pass
    p.kill(); p.join()
    with _alone(tmp_path): pass                              # a killed process holds nothing
    with pytest.raises(ZeroDivisionError), _alone(tmp_path): 1/0
    with _alone(tmp_path): pass


# ---- checkpoints, caches ----------------------------------------------------------------------------------------------

def checkpoint(folder, step, best=None, home='elsewhere'):
    path = folder/f'checkpoint-{step}'
    _write_tensors(path/'model.safetensors', dict(w=torch.ones(50)))
    torch.save(dict(step=step), path/'optimizer.pt')
    write_json(path/'trainer_state.json', dict(global_step=step, best_model_checkpoint=best and f'{home}/checkpoint-{best}'))
    return path

def cut(path, n=None):
    raw = path.read_bytes()
    path.write_bytes(raw[:len(raw)//2 if n is None else n])

@pytest.mark.parametrize('broken, left', [
    ([], 30), (['30/trainer_state.json'], 20), (['30/model.safetensors'], 20), (['30/optimizer.pt'], 20), (['20/optimizer.pt'], 10),
    (['30/optimizer.pt', '20/trainer_state.json'], 10), (['10/model.safetensors', '20/model.safetensors', '30/optimizer.pt'], None)])
def test_the_newest_checkpoint_that_can_be_read(tmp_path, broken, left):
    "Its best one is 20, and has to be readable too"
    for step, best in ((10, 10), (20, 20), (30, 20)): checkpoint(tmp_path, step, best)
    for name in broken: cut(tmp_path/f'checkpoint-{name}')
    if broken:
        with pytest.warns(GenrecWarning, match='made again'): found = _last_checkpoint(tmp_path)
    else: found = _last_checkpoint(tmp_path)
    assert found == (left and tmp_path/f'checkpoint-{left}')
    if left is None: return
    _moved_here(found)
    best = read_json(found/'trainer_state.json')['best_model_checkpoint']
    assert Path(best).parent == tmp_path and Path(best).is_dir()

def test_a_bit_in_the_optimizer(tmp_path):
    path = checkpoint(tmp_path, 10)/'optimizer.pt'
    raw = bytearray(path.read_bytes())
    raw[raw.index(b'step')] ^= 1
    path.write_bytes(raw)
    with pytest.warns(GenrecWarning): _last_checkpoint(tmp_path)

def test_kept_things_are_made_once_and_again_when_damaged(tmp_path):
    made, path = [], tmp_path/'a'/'x.json'
    def make(): made.append(1); write_json(path, 7)
    def load(): return read_json(path)
    assert _kept(path, make, load) == _kept(path, make, load) == 7 and len(made) == 1
    cut(path, 0)
    with pytest.warns(GenrecWarning, match='x.json, line 1, column 1'): assert _kept(path, make, load) == 7 and len(made) == 2

def test_a_damaged_cache_of_vectors_and_one_that_cannot_be_written(tmp_path):
    texts = ['a red car', 'a blue car', 'a green tree']
    x = embed_texts(texts, TfidfEncoder(2), cache=tmp_path)
    file, = tmp_path.glob('*.npy')
    for n in (0, 60, 100, len(file.read_bytes()) - 1):
        cut(file, n)
        with pytest.warns(GenrecWarning, match='made again'): assert (embed_texts(texts, TfidfEncoder(2), cache=tmp_path) == x).all()
        assert (embed_texts(texts, TfidfEncoder(2), cache=tmp_path) == x).all()
    (tmp_path/'file').touch()
    with pytest.warns(GenrecWarning, match='not kept'): assert (embed_texts(texts, TfidfEncoder(2), cache=tmp_path/'file'/'cache') == x).all()
