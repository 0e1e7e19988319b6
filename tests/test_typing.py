"A checker of types finds nothing wrong where a script uses every public class; methods added by `@patch` included."
import ast
import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest
from typed_view import PACKAGE, write_stubs

pytestmark = pytest.mark.slow
SCRIPT = Path(__file__).with_name('typing_script.py')
HEAVY = 'torch transformers peft sklearn scipy pandas matplotlib tokenizers safetensors sentence_transformers joblib jinja2 dask IPython huggingface_hub'
CONFIG = f'''[mypy]
ignore_missing_imports = true
[mypy-{",".join(f"{m}.*" for m in HEAVY.split())}]
follow_imports = skip
[mypy-genrec_nb.*]
ignore_errors = true
'''


def public_classes():
    "The classes in `__all__` of every module"
    for path in PACKAGE.rglob('*.py'):
        body = ast.parse(path.read_text()).body
        shown = [ast.literal_eval(n.value) for n in body if isinstance(n, ast.Assign) and getattr(n.targets[0], 'id', '') == '__all__']
        yield from (n.name for n in body if isinstance(n, ast.ClassDef) and shown and n.name in shown[0])


def test_the_script_uses_every_public_class():
    tree = ast.parse(SCRIPT.read_text())
    used = {n.id for n in ast.walk(tree) if isinstance(n, ast.Name)}
    assert set(public_classes()) - used == set()


def check(folder, script):
    write_stubs(folder)
    (folder/'mypy.ini').write_text(CONFIG)
    command = [sys.executable, '-m', 'mypy', '--config-file', folder/'mypy.ini', '--cache-dir', folder/'cache', script]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True).stdout


@pytest.mark.skipif(importlib.util.find_spec('mypy') is None, reason='mypy is not installed')
def test_types_are_found_and_mistakes_are_seen(tmp_path):
    assert 'Success' in (found := check(tmp_path, SCRIPT)), found
    wrong = tmp_path/'wrong.py'
    wrong.write_text('from genrec_nb.recommender import GenerativeRecommender\nfrom genrec_nb.rec_config import RecommenderConfig\n'
                     'from genrec_nb.loaders import load_movielens\n'
                     "rec = GenerativeRecommender.fit(load_movielens(), RecommenderConfig(backbon='t5'))\n"
                     "load_movielens().interactions.item_count()\n")
    found = check(tmp_path, wrong)
    assert '"backbon"' in found and '"item_count"' in found, found
