"""Calls on a dask cluster of processes: their order, their errors, workers that are killed again and again, a scheduler that is lost."""
import os, signal, subprocess, sys, textwrap
from pathlib import Path
import pytest

pytest.importorskip('distributed')
MODULE = '''
    import os, signal, time
    def square(x, wait=0): time.sleep(wait); return x*x
    def inverse(x): return 1/x
    def die(x): os.kill(os.getpid(), signal.SIGKILL)
    def process(x): return os.getpid()
'''
SCRIPT = '''
    import logging, os, sys
    sys.path.insert(0, sys.argv[1])
    import calls
    from genrec_nb.core import GenrecError
    from genrec_nb.workers import _in_workers
    from distributed import LocalCluster

    def told(f):
        try: return f()
        except (GenrecError, ZeroDivisionError) as e: return f'{type(e).__name__}: {e}'.replace(address, 'ADDRESS')

    if __name__ == '__main__':
        with LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster:
            address, before = cluster.scheduler_address, logging.getLogger('distributed.client').level
            on = lambda work, tasks, **how: list(_in_workers(work, (((*t,), t[0]) for t in tasks), cluster=address, **how))
            print(on(calls.square, [(x, .2*(x == 0)) for x in range(6)]))
            late = on(calls.square, [(x, .5*(x == 0)) for x in range(6)], ordered=False)
            print(sorted(late) == [(x, x*x) for x in range(6)], late[0][0] != 0)
            print(os.getpid() not in dict(on(calls.process, [(x,) for x in range(4)])).values())
            print(told(lambda: on(calls.inverse, [(1,), (0,), (2,)])))
            print(told(lambda: on(calls.die, [(1,), (2,)])), flush=True)
            found = _in_workers(calls.square, (((x, .1), x) for x in range(100)), cluster=address)
            next(found)
            cluster.close()
            print(told(lambda: list(found)), flush=True)
            print(logging.getLogger('distributed.client').level == before)
            sys.stdout.flush(); os._exit(0)
'''

def test_a_cluster(tmp_path):
    (tmp_path/'calls.py').write_text(textwrap.dedent(MODULE))
    (tmp_path/'script.py').write_text(textwrap.dedent(SCRIPT))
    env = os.environ | dict(PYTHONPATH=os.pathsep.join([str(tmp_path), str(Path(__file__).parents[1])]), DASK_DISTRIBUTED__SCHEDULER__ALLOWED_FAILURES='1')
    done = subprocess.run([sys.executable, tmp_path/'script.py', tmp_path], capture_output=True, text=True, env=env, timeout=120)
    assert done.stdout.splitlines() == [
        str([(x, x*x) for x in range(6)]), 'True True', 'True', 'ZeroDivisionError: division by zero',
        'GenrecError: ADDRESS: worker processes were killed again and again (out of memory?)',
        'GenrecError: ADDRESS: the scheduler was lost; start it, and call again', 'True'], done.stderr[-3000:]
    assert 'distributed.client' not in done.stderr and 'Traceback (most' not in done.stderr
