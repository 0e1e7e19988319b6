"""Execute notebooks in place and store their outputs.

    python .github/scripts/exec_nbs.py [--slow] [--check] [nbs/30_trie.ipynb ...]      (all notebooks if none is named)

Cells are skipped by the rules the tests use: `#| eval: false`, and the flags of `tst_flags` in settings.ini (`slow`
cells run with --slow). A skipped cell keeps the outputs it has. --check runs everything and writes nothing.
Each notebook gets a fresh process, its own folder as working directory, no progress bars, and a plot backend without
a window. Exit status 1 if any notebook fails.
"""
import argparse, os, subprocess, sys, time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
QUIET = dict(TQDM_DISABLE='1', HF_HUB_DISABLE_PROGRESS_BARS='1', TRANSFORMERS_VERBOSITY='error', TOKENIZERS_PARALLELISM='false',
             MPLBACKEND='Agg', IN_TEST='1', PYTHONHASHSEED='0', NO_COLOR='1', COLUMNS='110')


def environment():
    "The environment a notebook runs in: quiet, deterministic, this checkout's library, one thread unless OMP_NUM_THREADS says more."
    return {'OMP_NUM_THREADS': '1', **os.environ, **QUIET,
            'PYTHONPATH': os.pathsep.join([str(ROOT), *filter(None, [os.environ.get('PYTHONPATH')])])}


def notebooks():
    "Every notebook of the project, in reading order."
    skip = lambda p: any(part[0] in '._' for part in p.relative_to(ROOT/'nbs').parts)
    return sorted(p for p in (ROOT/'nbs').rglob('*.ipynb') if not skip(p))


def run_here(path, slow=False, store=True):
    "Execute one notebook in this process; True if every cell ran."
    from execnb.nbio import read_nb, write_nb
    from execnb.shell import CaptureShell
    from fastcore.basics import str2bool
    from nbdev.config import get_config
    from nbdev.frontmatter import FrontmatterProc
    from nbdev.process import NBProcessor

    flags = set(get_config(path=ROOT).tst_flags.split()) - ({'slow'} if slow else set())
    nb = NBProcessor(path, procs=FrontmatterProc, process=True, rm_directives=False).nb
    if str2bool((getattr(nb, 'frontmatter_', None) or {}).get('skip_exec', False)): return True

    def skipped(cell):
        if cell.cell_type != 'code' or 'nbdev_export(' in cell.source: return True
        directives = getattr(cell, 'directives_', None) or {}
        return directives.get('eval:', [''])[0].lower() == 'false' or bool(flags & directives.keys())

    os.chdir(path.parent)
    shell = CaptureShell(path, mpl_format='png')
    try: shell.run_all(nb, exc_stop=True, preproc=skipped)
    except Exception:
        print(shell.prettytb(fname=path.relative_to(ROOT)), file=sys.stderr)
        return False
    if store:
        out = read_nb(path)                              # the source stays as it was written: only outputs are taken over
        for old, new in zip(out.cells, nb.cells):
            if old.cell_type == 'code' and not skipped(new): old['outputs'] = new.get('outputs', [])
        write_nb(out, path)
    return True


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('files', nargs='*', type=Path)
    p.add_argument('--slow', action='store_true', help='run `#| slow` cells too')
    p.add_argument('--check', action='store_true', help='run, but write nothing')
    p.add_argument('--here', action='store_true', help=argparse.SUPPRESS)      # the child of the loop below
    a = p.parse_args()
    files = [f.resolve() for f in a.files] or notebooks()
    if a.here: sys.exit(not run_here(files[0], a.slow, not a.check))
    options = [o for o in ('--slow', '--check') if getattr(a, o[2:])]
    failed = []
    for f in files:
        start = time.perf_counter()
        r = subprocess.run([sys.executable, __file__, '--here', *options, str(f)], env=environment(), stdin=subprocess.DEVNULL)
        if r.returncode: failed.append(f)
        print(f'{f.relative_to(ROOT)}: {"FAILED" if r.returncode else "ok"} in {time.perf_counter()-start:.1f} s', flush=True)
    sys.exit(bool(failed))


if __name__ == '__main__': main()
