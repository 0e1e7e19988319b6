"The workshop's own rules: the library is what the notebooks export, everything generated is fresh, nothing stored is private or stale."
import ast
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from configparser import ConfigParser
from pathlib import Path

import pytest
from exec_nbs import ROOT, notebooks
from packaging.requirements import Requirement
from packaging.version import Version

LIB = ROOT/'genrec_nb'
INI = ConfigParser(delimiters=['='])
INI.read(ROOT/'settings.ini')
CFG = INI['DEFAULT']
FORBIDDEN = {'nbdev', 'fastcore', 'execnb', 'IPython', 'ipywidgets', 'pickle', 'cPickle', 'dill', 'cloudpickle', 'shelve', 'marshal'}


def name(path): return path.relative_to(ROOT).as_posix()
def cells(path): return json.loads(path.read_text())['cells']
def source(cell): return ''.join(cell['source'])
def modules(): return sorted(p for p in LIB.rglob('*.py') if p.name != '_modidx.py')
def files(folder): return {p.relative_to(folder).as_posix(): p.read_text() for p in sorted(folder.rglob('*.py'))}


def copy_of_project(folder):
    "What nbdev needs, without the library's modules: they have to come from the notebooks."
    shutil.copytree(ROOT/'nbs', folder/'nbs', ignore=shutil.ignore_patterns('.*', '_*.ipynb', '__pycache__'))
    for f in ('settings.ini', 'pyproject.toml'): shutil.copy(ROOT/f, folder)
    (folder/'genrec_nb').mkdir()
    for f in ('__init__.py', '__main__.py'): shutil.copy(LIB/f, folder/'genrec_nb')      # three lines each, of no notebook
    return folder


COMMANDS = """from nbdev.clean import nbdev_clean
from nbdev.doclinks import nbdev_export
from nbdev.quarto import refresh_quarto_yml
for f in (nbdev_export, nbdev_clean, refresh_quarto_yml): getattr(f, '__wrapped__', f)()"""


@pytest.fixture(scope='module')
def fresh(tmp_path_factory):
    "A copy of the project, exported and cleaned anew by nbdev's own functions."
    folder = copy_of_project(tmp_path_factory.mktemp('fresh'))
    env = {k: v for k, v in os.environ.items() if k != 'IN_TEST'} | {'PYTHONPATH': str(folder)}
    r = subprocess.run([sys.executable, '-c', COMMANDS], cwd=folder, env=env, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    assert r.returncode == 0, r.stderr[-1500:]
    return folder


def test_library_is_a_fresh_export(fresh):
    have, want = files(LIB), files(fresh/'genrec_nb')
    assert sorted(have) == sorted(want), f'without a notebook: {sorted(set(have)-set(want))}; not exported: {sorted(set(want)-set(have))}'
    stale = [f for f in have if have[f] != want[f]]
    assert not stale, f'{stale} are not what the notebooks export. Run: nbdev_export'
    assert (ROOT/'pyproject.toml').read_text() == (fresh/'pyproject.toml').read_text()


def test_notebooks_are_clean(fresh):
    dirty = [name(p) for p in notebooks() if p.read_bytes() != (fresh/p.relative_to(ROOT)).read_bytes()]
    assert not dirty, f'nbdev_clean would change {dirty}'


def test_readme_is_its_notebook():
    r = subprocess.run([sys.executable, ROOT/'.github/scripts/build_readme.py', '--check'], capture_output=True, text=True)
    assert r.returncode == 0, r.stderr


def test_generated_site_settings_are_fresh(fresh):
    assert (ROOT/'nbs'/'nbdev.yml').read_text() == (fresh/'nbs'/'nbdev.yml').read_text(), \
        'nbs/nbdev.yml is stale. Run: python -c "from nbdev.quarto import *; refresh_quarto_yml()"'


@pytest.mark.parametrize('path', notebooks(), ids=name)
def test_notebook_form(path):
    "Title and subtitle first; a notebook that exports says where to, in a cell of its own."
    all_cells = cells(path)
    assert re.fullmatch(r'# \S.*\n+> \S.*\n*', source(all_cells[0])) and all_cells[0]['cell_type'] == 'markdown', 'first cell: "# name" and "> subtitle" alone, as the site drops what follows'
    code = [source(c) for c in all_cells if c['cell_type'] == 'code']
    exports = [s for s in code if re.match(r'#\|\s*export', s)]
    homes = [s for s in code if re.search(r'^#\|\s*default_exp', s, re.M)]
    assert not exports or (len(homes) == 1 and re.fullmatch(r'#\|\s*default_exp [\w.]+', homes[0].strip())), 'one cell with nothing but `#| default_exp name`'
    if path.parent == ROOT/'nbs' and homes:
        assert re.fullmatch(r'\d\d_'+homes[0].split()[-1].split('.')[-1], path.stem), 'the module is named as the notebook'
    if path.parent != ROOT/'nbs': assert not exports, 'only the numbered notebooks export'


def outputs(path):
    "Number of the cell, kind and text of every stored output."
    for n, cell in enumerate(cells(path)):
        for out in cell.get('outputs', []):
            yield n, out['output_type'], ''
            for kind, text in {'stream': out.get('text', ''), **out.get('data', {})}.items():
                if kind == 'stream' or kind.startswith('text/'): yield n, kind, ''.join(text)


HOME_PATH = re.compile(r'(?<![\w.:/])/(?:home|root|Users|usr|opt|var|tmp|mnt|private|Volumes)/\w|\b[A-Z]:\\\w|site-packages|dist-packages')
TIME = re.compile(r'\b\d+(?:\.\d+)?\s?(?:ns|µs|us|ms|s|secs?|seconds?|min|minutes?)\b(?!\s*/)|\bit/s\b|\b\d+%\|')
ADDRESS = re.compile(r'\bat 0x[0-9a-f]{6,}')


def numbers(x):
    "Every number in a JSON value."
    if isinstance(x, (dict, list)): return [y for v in (x.values() if isinstance(x, dict) else x) for y in numbers(v)]
    return [x] if isinstance(x, (int, float)) and not isinstance(x, bool) else []


def stored(time):
    "Is this time a number of nbs/results/bench.json, rounded as it is shown?"
    shown = re.match(r'[\d.]+', time)[0]
    digits = len(shown.partition('.')[2])
    return any(f'{x:.{digits}f}' == shown for x in numbers(json.loads((ROOT/'nbs'/'results'/'bench.json').read_text())))


def test_only_stored_times_pass():
    real = numbers(json.loads((ROOT/'nbs'/'results'/'bench.json').read_text()))
    assert stored(f'{max(real):.3f} s') and not stored('98765.4321 s')


@pytest.mark.parametrize('path', notebooks(), ids=name)
def test_stored_outputs(path):
    "No error, no path of somebody's machine, no time that the next run would not repeat."
    bad, here = [], [str(ROOT), str(Path.home()), tempfile.gettempdir(), sys.prefix]
    for n, kind, text in outputs(path):
        if kind == 'error': bad.append(f'cell {n}: an error')
        plain = re.sub(r'<[^>]*>|base64,\S+', ' ', text) if kind in ('text/html', 'text/markdown') else text
        times = [m[0] for m in TIME.finditer(plain)]
        if 'results/' in source(cells(path)[n]): times = [t for t in times if not stored(t)]   # a stored measurement repeats; any other time does not
        found = times[:1] + [m[0] for r in (HOME_PATH, ADDRESS) if (m := r.search(plain))] + [h for h in here if len(h) > 1 and h in plain]
        if found: bad.append(f'cell {n}: {found[0]!r}')
    assert not bad, '; '.join(bad)


@pytest.mark.parametrize('path', modules(), ids=name)
def test_exported_code(path):
    "No tool of the workshop, no pickle, no code from a download; and imports of the library's own modules point downwards only."
    bad, number = [], {p.stem.split('_', 1)[1]: p.stem for p in (ROOT/'nbs').glob('[0-9]*.ipynb')}
    for node in ast.walk(ast.parse(path.read_text())):
        where = f'line {getattr(node, "lineno", 0)}'
        if isinstance(node, ast.Import): imported = [a.name for a in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level: imported = [f'genrec_nb.{node.module}'] if node.module else [f'genrec_nb.{a.name}' for a in node.names]
        elif isinstance(node, ast.ImportFrom): imported = [node.module] if node.module != 'genrec_nb' else [f'genrec_nb.{a.name}' for a in node.names]
        else: imported = []
        for module in imported:
            top, _, rest = module.partition('.')
            if top in FORBIDDEN: bad.append(f'{where}: imports {module}')
            below = rest.removeprefix('experiments.')
            if top == 'genrec_nb' and below in number and path.stem in number and number[below] >= number[path.stem]:
                bad.append(f'{where}: imports {module}, whose notebook comes later')
            if top == 'genrec_nb' and rest.startswith('experiments') and path.parent.name != 'experiments' and path.stem != 'cli':
                bad.append(f'{where}: imports {module}; experiments use the library, never the other way')
        if isinstance(node, ast.Call):
            if ast.unparse(node.func) == 'torch.load': bad.append(f'{where}: torch.load unpickles; use safetensors')
            for k in node.keywords:
                if k.arg in ('trust_remote_code', 'allow_pickle') and not (isinstance(k.value, ast.Constant) and k.value.value is False): bad.append(f'{where}: {k.arg}')
    assert not bad, '; '.join(bad)


def test_version_has_one_source():
    import genrec_nb
    assert genrec_nb.__version__ == CFG['version'] and Path(genrec_nb.__file__).parent == LIB


def test_licence_and_files_to_ship():
    assert 'Apache License' in (ROOT/'LICENSE').read_text() and CFG['license'] == 'apache2'
    assert 'settings.ini' in (ROOT/'MANIFEST.in').read_text()           # setup.py of a source distribution reads it


@pytest.mark.parametrize('python', ['3.10', '3.11', '3.12', '3.13'])
def test_every_requirement_has_one_tested_version(python):
    env = {'python_version': python, 'python_full_version': python+'.0', 'extra': ''}
    applies = lambda r: r.marker is None or r.marker.evaluate(env)
    pins = {}
    for line in (ROOT/'constraints.txt').read_text().splitlines():
        if line and line[0] != '#' and applies(r := Requirement(line)):
            key = r.name.lower().replace('_', '-')
            assert key not in pins, f'{r.name} is pinned twice for Python {python}'
            pins[key] = Version(str(r.specifier).removeprefix('=='))
    for r in filter(applies, map(Requirement, ' '.join(CFG[f'{extra}requirements'] for extra in ('', 'dev_', 'llm_')).split())):
        pin = pins.get(r.name.lower().replace('_', '-'))
        assert pin is not None, f'{r.name} has no tested version'
        assert r.specifier.contains(pin), f'{r.name}: {pin} is tested, {r.specifier} is asked for'
