"Which of PyTorch's operators a job spends its time in: for `bench.py`, and for `profile_changes.py`, which runs it with libraries of other commits."
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
