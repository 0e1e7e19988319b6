"Which operators of PyTorch and which functions a job spends its time in: for `bench.py`, and for `profile_changes.py`, which runs it with libraries of other commits."
import cProfile, pstats
from pathlib import Path
import torch

PRODUCTS = 'aten::mm', 'aten::addmm', 'aten::bmm', 'aten::baddbmm', 'aten::_scaled_dot_product_flash_attention_for_cpu', 'aten::_scaled_dot_product_flash_attention_for_cpu_backward'

def operators_of(
    job, # function without arguments
    top: int = 8, # operators that are listed
) -> dict: # shares of the time in operators: products of matrices and attention, each of the longest; how many were called
    "Run a job under the profiler"
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as found: job()
    rows = sorted(found.key_averages(), key=lambda x: -x.self_cpu_time_total)
    whole = max(sum(x.self_cpu_time_total for x in rows), 1)
    listed = [x for x in rows if x.key.startswith('aten::')][:top]
    return dict(products=sum(x.self_cpu_time_total for x in rows if x.key in PRODUCTS)/whole, calls=sum(x.count for x in rows),
                operators=[dict(name=x.key, share=x.self_cpu_time_total/whole, calls=x.count) for x in listed])

def functions_of(
    job, # function without arguments
    top: int = 12, # functions that are listed
) -> list: # name, share of the time without what it calls, and calls of each of the longest
    "Run a job under Python's profiler"
    found = cProfile.Profile()
    found.runcall(job)
    rows = pstats.Stats(found).stats                             # (file, line, name) -> (.., calls, own seconds, ..)
    whole = max(sum(x[2] for x in rows.values()), 1e-9)
    name = lambda file, line, what: what if file == '~' else f'{Path(file).name}:{line} {what}'
    longest = sorted(rows.items(), key=lambda r: -r[1][2])[:top]
    return [dict(name=name(*where), share=x[2]/whole, calls=x[1]) for where, x in longest]
