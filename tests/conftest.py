"What every test shares: the thread rule, the order of work on several cores, the folder of larger data sets where there is one."
import gc
import os
import sys
from pathlib import Path

os.environ.setdefault('OMP_NUM_THREADS', '1')             # before torch is imported: two processes with two threads each spin against one another
os.environ.setdefault('TQDM_DISABLE', '1')
os.environ.setdefault('MPLBACKEND', 'Agg')

import pytest

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT/'.github'/'scripts')]  # this checkout's library and tools, whatever else is installed

from exec_nbs import Forks, OwnForks, pictures_without_layout


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    "With `-n`, a file's tests stay together, for the sake of its fixtures; each notebook is a piece of work of its own."
    from xdist.scheduler import LoadScopeScheduling

    class ByFile(LoadScopeScheduling):
        def _split_scope(self, nodeid):
            file = nodeid.split('::')[0]
            return nodeid if file.endswith('test_notebooks.py') else file

    return ByFile(config, log)


def pytest_collection_modifyitems(items):
    "The site first; the notebooks last, tutorials and trials before the short lessons, so that all cores end together."
    site, rest = [i for i in items if i.path.stem == 'test_docs'], [i for i in items if i.path.stem != 'test_docs']
    files, books = [i for i in rest if i.path.stem != 'test_notebooks'], [i for i in rest if i.path.stem == 'test_notebooks']
    items[:] = site + files + books[::-1]


@pytest.fixture(scope='module', autouse=True)
def frozen():
    "What a module has imported is not searched for garbage again, as `accelerate` does before every training: a third of a second each time. Pictures are drawn without being laid out, which takes as long again."
    if 'matplotlib.layout_engine' in sys.modules: pictures_without_layout()
    gc.collect()
    gc.freeze()


def pytest_configure(config):
    "Where notebooks will be executed, what they are forked from is forked before this process imports the project."
    notebooks = ROOT/'tests'/'test_notebooks.py'
    asked = any(Path(a.split('::')[0]).resolve() in (notebooks, *notebooks.parents) for a in config.args)
    hands_out = config.getoption('numprocesses', None) and not hasattr(config, 'workerinput')
    if hasattr(os, 'fork') and asked and not hands_out and not config.option.collectonly: config.early_forks = OwnForks()


@pytest.fixture(scope='session')
def forks(pytestconfig):
    "Fresh processes that need not import other people's libraries: they execute notebooks."
    with getattr(pytestconfig, 'early_forks', None) or Forks() as f: yield f


@pytest.fixture(scope='session')
def data_dir():
    "Folder of the data sets beyond MovieLens-100K: $GENREC_DATA, or shared/data beside the project."
    folder = Path(os.environ.get('GENREC_DATA') or ROOT.parent/'shared'/'data')
    if not folder.is_dir(): pytest.skip('needs the folder of further data sets: set GENREC_DATA')
    return folder
