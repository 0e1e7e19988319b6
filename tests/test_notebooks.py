"Every notebook runs from top to bottom, each in a fresh process, by the skip rules of settings.ini."
import json
import os
import re
import signal

import pytest
from exec_nbs import ROOT, notebooks

LIMIT = int(os.environ.get('GENREC_NB_LIMIT', 300))         # seconds a notebook
SLOW = bool(os.environ.get('GENREC_NB_SLOW'))


def execute(forks, path, log):
    "Run one notebook, writing nothing but `log`; None, or what went wrong."
    status, _ = forks.run(path, SLOW, store=False, log=log, limit=LIMIT)
    return f'not finished after {LIMIT} s' if status == -signal.SIGALRM else shortened(log.read_text(errors='replace')) if status else None


def shortened(text):
    "A traceback without the frames of the machinery that ran the cell, at most 60 lines."
    text = re.sub(r'\x1b\[[0-9;]*m', '', text)
    frame = r'  File "[^"]*(?:exec_nbs|execnb|IPython)[^"]*", line .*\n(?:    .*\n)*'
    lines = re.sub(frame, '', text).strip().split('\n')
    return '\n'.join(lines if len(lines) <= 60 else [*lines[:15], '    ...', *lines[-44:]])


@pytest.mark.parametrize('path', notebooks(), ids=lambda p: p.relative_to(ROOT/'nbs').with_suffix('').as_posix())
def test_notebook(forks, path, tmp_path):
    if wrong := execute(forks, path, tmp_path/'log'): pytest.fail(f'{path.relative_to(ROOT)}\n{wrong}', pytrace=False)


def test_a_failing_notebook_is_reported(forks, tmp_path):
    "The check itself: an error is seen, its cause is shown, and nothing is written."
    path = ROOT/'nbs'/f'_failing_{os.getpid()}.ipynb'       # a leading underscore: no tool of the project takes it for a lesson
    text = ('{"cells": [{"cell_type": "code", "id": "a", "metadata": {}, "outputs": [], "execution_count": null, "source": "#| slow\\nraise OSError"},'
            ' {"cell_type": "code", "id": "b", "metadata": {}, "outputs": [], "execution_count": null, "source": "def f(x): return 1/x\\nf(0)"}],'
            ' "metadata": {}, "nbformat": 4, "nbformat_minor": 5}')
    try:
        path.write_text(text)
        wrong = execute(forks, path, tmp_path/'log')
        assert 'ZeroDivisionError' in wrong and 'def f(x): return 1/x' in wrong and 'OSError' not in wrong
        assert 'execnb' not in wrong and path.read_text() == text
        assert path not in notebooks()
    finally: path.unlink()


def test_outputs_are_those_of_this_run(forks):
    "A cell that shows nothing keeps nothing of what it once showed."
    path = ROOT/'nbs'/f'_stale_{os.getpid()}.ipynb'
    old = [dict(output_type='execute_result', data={'text/plain': ['77']}, metadata={}, execution_count=None)]
    cells = [dict(cell_type='code', id=x, metadata={}, outputs=old, execution_count=None, source=x) for x in ('x = 1', 'x + 1')]
    try:
        path.write_text(json.dumps(dict(cells=cells, metadata={}, nbformat=4, nbformat_minor=5)))
        assert forks.run(path)[0] == 0
        first, second = json.loads(path.read_text())['cells']
        assert first['outputs'] == [] and '2' in str(second['outputs']) and '77' not in str(second['outputs'])
    finally: path.unlink()
