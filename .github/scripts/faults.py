"""Kill a small `genrec run` and `genrec compare` at random moments, fill the disk under them, resume, and compare all figures
with those of an unbroken run. python .github/scripts/faults.py [--kills 20] [--disks 10] [--seed 0] [--folder EMPTY]

The disk is a tmpfs of a random size where this machine lets us mount one, else writing fails at a random moment: `os.replace`,
`torch.save` and safetensors raise what they raise on a full disk. Each case is a line; the exit code is the number of differences."""
import argparse, errno, gc, json, multiprocessing, os, random, shutil, subprocess, sys, tempfile, time, warnings
from pathlib import Path
import numpy as np
import safetensors.torch
import torch
import genrec_nb.core as core
import genrec_nb.run as run_module
from genrec_nb.core import read_settings
from genrec_nb.experiments.execution import run_grid
from genrec_nb.experiments.grid import read_grid
from genrec_nb.run import RunConfig, run
from genrec_nb.terminal import _explain_error

TOKENIZER = dict(method='rqkmeans', encoder='tfidf', size=4, levels=2)
TRAIN = dict(epochs=2, batch_size=16, lr=5e-3, eval_every=1)
MODEL = dict(d_model=16, num_heads=2, num_layers=1)


def small_data(folder, users=50, items=24):
    "Users walk through a small catalog"
    rng = np.random.default_rng(0)
    folder.mkdir(parents=True, exist_ok=True)
    walk = lambda: list(dict.fromkeys(int(i) % items for i in rng.integers(items) + np.cumsum(rng.integers(1, 4, rng.integers(6, 12)))))
    (folder/'toy.inter.json').write_text(json.dumps({str(u): walk() for u in range(users)}))
    about = {str(i): dict(title=f'Item {i}', description=f'color {i % 5} shape {i % 7}') for i in range(items)}
    (folder/'toy.item.json').write_text(json.dumps(about))
    return folder


class Case:
    "A command, its folder, and how its figures are read"
    def __init__(self, kind, data, folder): self.kind, self.data, self.folder = kind, data, folder

    def work(self):
        "What `genrec run` (`--resume`, if there is something to resume) and `genrec compare` do"
        if self.kind == 'compare': return run_grid(self.grid(), self.folder)
        given = dict(tokenizer=TOKENIZER, model=MODEL, train=TRAIN, compare=[], identifiers='', data=str(self.data))
        run(read_settings(RunConfig, given), self.folder, (self.folder/'config.toml').is_file(), jobs=1)

    def grid(self):
        "Two weightings, two alphas"
        file = self.data/'grid.json'
        if not file.is_file():
            file.write_text(json.dumps(dict(data=dict(toy=dict(path=str(self.data))), ids=dict(t=TOKENIZER), seeds=[0], alphas=[0, .2],
                                            weightings=dict(ce={}, igd=dict(beta=.5)), model=MODEL, train=TRAIN)))
        return read_grid(file)

    def figures(self):
        "Every number that does not depend on the clock"
        if self.kind == 'run': return json.loads((self.folder/'metrics.json').read_text())['methods']
        rows = [json.loads(line) for line in (self.folder/'results.jsonl').read_text().splitlines()]
        return {r['trial']: r['decodings'] for r in rows if r['kind'] == 'trial'}


def attempt(case, log, fault=None):
    "The process of a case: errors end as in the terminal"
    os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 2)
    warnings.filterwarnings('ignore', module='(?!genrec)')
    if fault: fault()
    try: case.work()
    except BaseException as e:
        found = _explain_error(e)
        if found is None: raise
        os.write(2, f'genrec: {found[0]}\n'.encode())                # sys.stderr may be a test's
        os._exit(found[1])
    os._exit(0)


def start(case, log, fault=None):
    p = multiprocessing.get_context('fork').Process(target=attempt, args=(case, log, fault))
    p.start()
    return p


def finish(case, log, wanted):
    "Resume to the end; what is wrong, or None"
    p = start(case, log)
    p.join()
    if p.exitcode: return f'resuming ended with {p.exitcode}: {log.read_text()[-300:]}'
    if case.figures() != wanted: return 'FIGURES DIFFER'
    half = [f.name for f in case.folder.rglob('.*') if f.is_dir()]
    return f'left over: {half}' if len(half) > 1 else None       # a killed process may leave one


def state(folder):
    "How far a case has come, by what lies there"
    marks = dict(identifiers='identifiers/*/facts.json', checkpoint='work/*/checkpoints/*/trainer_state.json', trained='work/*/trained.json',
                 ranked='work/*/ranked/*.npz', row='results.jsonl', saved='model/genrec.json')
    return ', '.join(f'{n} {name}' for name, glob in marks.items() if (n := len(list(folder.glob(glob))))) or 'nothing yet'


def fail_at(n):
    "The n-th write of this process, and all later ones, find a full disk"
    left = [n]
    def full(real, error):
        def write(*args, **kwargs):
            left[0] -= 1
            if left[0] < 0: raise error
            return real(*args, **kwargs)
        return write
    none = OSError(errno.ENOSPC, 'No space left on device')
    def fault():
        core._try_to_write = lambda folder: none if left[0] < 0 else None
        os.replace = full(os.replace, none)
        torch.save = full(torch.save, RuntimeError('[enforce fail at inline_container.cc:672] . unexpected pos 64 vs 0\n' + 'frame\n'*80))
        save = full(safetensors.torch.save_file, safetensors.SafetensorError('Error while serializing: I/O error'))
        import transformers.modeling_utils as hf
        safetensors.torch.save_file = hf.safe_save_file = save
    return fault


class Disk:
    "A small tmpfs, which grows when space is freed"
    def __init__(self, folder, size): self.folder, self.size = folder, size
    def __enter__(self):
        self.folder.mkdir()
        subprocess.run(['mount', '-t', 'tmpfs', '-o', f'size={self.size}', 'tmpfs', self.folder], check=True, capture_output=True)
        return self
    def grow(self): subprocess.run(['mount', '-o', 'remount,size=200m', self.folder], check=True)
    def __exit__(self, *_): subprocess.run(['umount', '-l', self.folder], check=True)


def can_mount(folder):
    try:
        with Disk(folder, '100k'): return True
    except (OSError, subprocess.CalledProcessError): return False


def told(log):
    "The lines of a process that ended with an error"
    return [line for line in log.read_text().splitlines() if line.startswith('genrec:') or 'Error' in line or 'Traceback' in line]


def fill_disk(data, home, n, kind, rng, wanted, total, mount):
    "One full disk: a log line, and what is wrong"
    log, where = home/'disk.log', home/f'disk-{n}'
    at = int(rng.uniform(.03, .95)*total[kind]) if mount else rng.randrange(1, 12)
    def check(case, grow, fault=None):
        p = start(case, log, fault)
        p.join()
        lines, how = told(log), state(case.folder)
        wrong = None if p.exitcode == 3 and len(lines) == 1 else f'ended with {p.exitcode}: {lines[:3]}'
        grow()
        last = str(lines[-1]).replace(str(home), '') if lines else ''
        return f'{at:>9,} {"bytes" if mount else "writes"}  {how}; {last[:90]}', wrong or finish(case, log, wanted[kind])
    if not mount: return check(Case(kind, data, where), lambda: None, fail_at(at))
    with Disk(where, at) as disk: return check(Case(kind, data, where/'out'), disk.grow)


def kill(data, home, n, kind, rng, wanted, seconds):
    "One SIGKILL: a log line, and what is wrong"
    case, log, after = Case(kind, data, home/f'kill-{n}'), home/'kill.log', rng.uniform(.02, .95)*seconds[kind]
    p = start(case, log)
    p.join(after)
    p.kill()
    p.join()
    how = state(case.folder)
    return f'{after:5.2f} of {seconds[kind]:.2f} s  {how}', finish(case, log, wanted[kind])


def main(**how):
    "Yields (line, what is wrong or None) for every case, see `cases`; reports, which take longest, are left out meanwhile"
    page = run_module._run_page
    run_module._run_page = lambda *a: type('Page', (), dict(save=lambda self, path: path.touch()))()
    try: yield from cases(**how)
    finally: run_module._run_page = page


def cases(kills=20, disks=10, seed=0, folder=None, kinds=('run', 'compare'), mount=True, twice=True):
    "All of it; twice: the unbroken run is made again, and timed, when all is warm"
    rng, scratch = random.Random(seed), tempfile.TemporaryDirectory()
    home = Path(folder or scratch.name)
    data, wanted, seconds, total = small_data(home/'toy'), {}, {}, {}
    for kind in kinds:
        case = Case(kind, data, home/kind)
        began = time.perf_counter()
        case.work()                                            # here: what it imports, the forks have
        if twice:
            gc.collect(); gc.freeze()
            began, again = time.perf_counter(), Case(kind, data, home/f'{kind}-again')
            wrong = finish(again, home/'whole.log', case.figures())
            assert not wrong, wrong
        seconds[kind], wanted[kind] = time.perf_counter() - began, case.figures()
        total[kind] = sum(f.stat().st_size for f in case.folder.rglob('*') if f.is_file())
        yield f'unbroken {kind}: {seconds[kind]:.1f} s, {total[kind]:,} bytes, {len(wanted[kind])} sets of figures', None
    mount = mount and disks and can_mount(home/'mounted')
    for n in range(kills + disks):
        kind, what = kinds[n % len(kinds)], 'kill' if n < kills else 'disk'
        if n < kills: line, wrong = kill(data, home, n, kind, rng, wanted, seconds)
        else: line, wrong = fill_disk(data, home, n, kind, rng, wanted, total, mount)
        for path in home.glob(f'{what}-{n}'): shutil.rmtree(path, ignore_errors=True)
        yield f'{what} {n + 1:2} {kind:8} at {line}  -> {wrong or "resumed, figures equal"}', wrong


if __name__ == '__main__':
    parser = argparse.ArgumentParser(description=__doc__)
    for name, default in (('kills', 20), ('disks', 10), ('seed', 0), ('folder', None)):
        parser.add_argument(f'--{name}', type=type(default) if default is not None else Path, default=default)
    wrong = 0
    for line, bad in main(**vars(parser.parse_args())):
        print(line, flush=True)
        wrong += bool(bad)
    sys.exit(wrong)
