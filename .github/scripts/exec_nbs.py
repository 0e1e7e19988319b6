"""Execute notebooks in place and store their outputs.

    python .github/scripts/exec_nbs.py [--slow] [--check] [nbs/30_trie.ipynb ...]      (all notebooks if none is named)

Cells are skipped by the rules the tests use: `#| eval: false`, and the flags of `tst_flags` in settings.ini (`slow`
cells run with --slow). A skipped cell keeps the outputs it has. --check runs everything and writes nothing.
Each notebook gets a fresh process (a fork of one that has imported other people's libraries and nothing else), its own
folder as working directory, no progress bars, and a plot backend without a window. Exit status 1 if any notebook fails.
"""
import argparse, base64, gc, importlib, io, json, os, signal, subprocess, sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
QUIET = dict(TQDM_DISABLE='1', HF_HUB_DISABLE_PROGRESS_BARS='1', TRANSFORMERS_VERBOSITY='error', TOKENIZERS_PARALLELISM='false',
             MPLBACKEND='Agg', IN_TEST='1', PYTHONHASHSEED='0', NO_COLOR='1', COLUMNS='110')
LARGE = ['execnb.shell', 'nbdev.process', 'nbdev.showdoc', 'pandas.io.formats.style', 'matplotlib.pyplot', 'matplotlib_inline.backend_inline',
         'scipy.stats', 'scipy.optimize', 'sklearn.cluster', 'sklearn.decomposition', 'sklearn.feature_extraction.text', 'transformers.trainer', 'transformers.models.t5.modeling_t5',
         'transformers.models.llama.modeling_llama', 'peft', 'sentence_transformers', 'pydantic.dataclasses', 'pydantic.json_schema', 'pooch', 'pyarrow.pandas_compat', 'pyarrow.parquet',
         'pandas.plotting', 'PIL.BmpImagePlugin', 'PIL.JpegImagePlugin', 'IPython.core.debugger', 'fastcore.test', 'typer.testing', 'rich.table']


def environment():
    "The environment a notebook runs in: quiet, deterministic, this checkout's library, one thread unless OMP_NUM_THREADS says more."
    return {'OMP_NUM_THREADS': '1', **os.environ, **QUIET,
            'PYTHONPATH': os.pathsep.join([str(ROOT), *filter(None, [os.environ.get('PYTHONPATH')])])}


def notebooks():
    "Every notebook of the project, in reading order."
    skip = lambda p: any(part[0] in '._' for part in p.relative_to(ROOT/'nbs').parts)
    return sorted(p for p in (ROOT/'nbs').rglob('*.ipynb') if not skip(p))


def with_palette(png):
    "A picture (base64) in at most 256 colors: a third of the size, and no difference to see in a plot."
    from PIL import Image
    raw = base64.b64decode(png)
    image, out = Image.open(io.BytesIO(raw)), io.BytesIO()
    if image.mode == 'P': return png
    image.convert('RGB').quantize(256, dither=Image.Dither.NONE).save(out, 'png', optimize=True)
    return base64.b64encode(out.getvalue()).decode() if len(out.getvalue()) < len(raw) else png


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
    for cell in nb.cells:
        if not skipped(cell): cell['outputs'] = []           # a cell that shows nothing would keep what it once showed
    if not store: pictures_without_layout(), results_formatted_once(CaptureShell)
    shell = CaptureShell(path, mpl_format='png')
    try: shell.run_all(nb, exc_stop=True, preproc=skipped)
    except Exception:
        print(shell.prettytb(fname=os.path.relpath(path, ROOT)), file=sys.stderr)
        return False
    if store:
        out = read_nb(path)                              # the source stays as it was written: only outputs are taken over
        for old, new in zip(out.cells, nb.cells):
            if old.cell_type == 'code' and not skipped(new): old['outputs'] = new.get('outputs', [])
            for data in (o.get('data', {}) for o in old.get('outputs', [])):
                if 'image/png' in data: data['image/png'] = with_palette(''.join(data['image/png']))
        write_nb(out, path)
    return True


def pictures_without_layout():
    "Pictures that nobody will see are drawn once and small, without being laid out or cut to size: each takes longer than the rest."
    from matplotlib import backend_bases, layout_engine
    for engine in (layout_engine.ConstrainedLayoutEngine, layout_engine.TightLayoutEngine): engine.execute = lambda self, fig: None
    canvas = backend_bases.FigureCanvasBase
    if canvas.draw_idle.__name__ == '<lambda>': return
    printed = canvas.print_figure
    canvas.draw_idle = lambda self, *args, **kwargs: None                       # of an interactive session, at the end of each cell
    def print_figure(self, *args, **how):
        self.figure.get_layout_engine = lambda: None
        return printed(self, *args, **{**how, 'bbox_inches': None, 'dpi': 20})
    canvas.print_figure = print_figure


def results_formatted_once(shell):
    "execnb formats what a cell returns; IPython's display hook did so before and threw it away: each picture was drawn twice."
    shell.displayhook_class.compute_format_data = lambda self, result: ({}, {})


class Forks:
    "Runs notebooks, each in a fork of a process that has imported the large libraries and no module of this project: fresh, and ten seconds cheaper."
    def __init__(self):
        self.server = subprocess.Popen([sys.executable, __file__, '--serve'], env=environment(), text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self.jobs, self.answers, self.wait = self.server.stdin, self.server.stdout, self.server.wait
    def __enter__(self): return self
    def __exit__(self, *_):
        self.jobs.close()
        self.wait()
        self.answers.close()
    def run(self, path, slow=False, store=True, log=None, limit=0):
        "Execute one notebook in at most `limit` seconds (0: any): (exit status, negative where a signal ended it, and processor seconds)."
        print(json.dumps([str(path), slow, store, log and str(log), limit]), file=self.jobs, flush=True)
        return json.loads(self.answers.readline())


class OwnForks(Forks):
    "The same for a process that has imported nothing of this project yet and will: it forks the server, so that large libraries are imported once."
    def __init__(self):
        import_large()
        (read_jobs, jobs), (answers, write_answers) = os.pipe(), os.pipe()
        if not (pid := os.fork()):
            try:
                for fd, mode in ((0, os.O_RDONLY), (1, os.O_WRONLY), (2, os.O_WRONLY)): os.dup2(os.open(os.devnull, mode), fd)
                read_jobs, write_answers = (os.dup2(fd, end) for fd, end in ((read_jobs, 1001), (write_answers, 1002)))
                os.closerange(3, 1001), os.closerange(1003, 4096)              # the test runner's pipes end with the test runner
                sys.stdin, sys.stdout, sys.stderr = open(0, closefd=False), open(1, 'w', closefd=False), open(2, 'w', closefd=False)
                os.environ.update(environment())
                import huggingface_hub.utils, transformers                     # read the environment as they were imported
                transformers.logging.set_verbosity_error(), huggingface_hub.utils.disable_progress_bars()
                serve(os.fdopen(read_jobs), os.fdopen(write_answers, 'w'))
            finally: os._exit(0)
        os.close(read_jobs), os.close(write_answers)
        self.jobs, self.answers, self.wait = os.fdopen(jobs, 'w'), os.fdopen(answers), lambda: os.waitpid(pid, 0)


def import_large():
    "What takes long to import, and is imported anyway."
    for name in LARGE: importlib.import_module(name)


def serve(jobs, answers):
    "The process that forks: a line of JSON in, a notebook executed, a line of JSON out."
    gc.collect(); gc.freeze()                            # not searched for garbage again before every training
    for job in jobs:
        path, slow, store, log, limit = json.loads(job)
        if not (pid := os.fork()): child(Path(path), slow, store, log, limit)
        _, status, used = os.wait4(pid, 0)
        try: os.killpg(pid, signal.SIGKILL)              # what it may have left behind
        except ProcessLookupError: pass
        print(json.dumps([os.waitstatus_to_exitcode(status), used.ru_utime+used.ru_stime]), file=answers, flush=True)


def serve_pipe():
    "The server as a program of its own, on its standard input and output."
    import_large()
    jobs, answers = sys.stdin, os.fdopen(os.dup(1), 'w')
    os.dup2(2, 1)                                        # what a notebook prints does not belong to the answers
    serve(jobs, answers)


def child(path, slow, store, log, limit):
    "A fork's work and end. What it writes goes to the file `log`, if there is one."
    os.setsid()
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    if log: os.dup2(fd := os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND), 1), os.dup2(fd, 2)
    signal.alarm(limit)
    done = False
    try: done = run_here(path, slow, store)
    finally:
        for stream in (sys.stdout, sys.stderr): stream.flush()
        os._exit(not done)


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('files', nargs='*', type=Path)
    p.add_argument('--slow', action='store_true', help='run `#| slow` cells too')
    p.add_argument('--check', action='store_true', help='run, but write nothing')
    p.add_argument('--serve', action='store_true', help=argparse.SUPPRESS)     # the process that forks
    a = p.parse_args()
    if a.serve: return serve_pipe()
    failed = False
    with Forks() as forks:
        for f in [f.resolve() for f in a.files] or notebooks():
            status, seconds = forks.run(f, a.slow, not a.check)
            print(f'{f.relative_to(ROOT)}: {"FAILED" if status else "ok"} in {seconds:.1f} s of processor time', flush=True)
            failed |= status != 0
    sys.exit(failed)


if __name__ == '__main__': main()
