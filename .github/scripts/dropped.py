"""What was tried and dropped, measured: python .github/scripts/dropped.py OUT.json [NAME ..] [--quick]

Each of `TRIED` is an attempt beside what the library does, in turns on one thread. nbs/results/dropped.json was made so; results that OUT.json
has of other names are kept."""
import argparse, copy, json, warnings
from pathlib import Path
import torch
import torch.nn.functional as F
from torch import nn
from torch.ao.quantization import quantize_dynamic
from bench import (DecodeConfig, ItemTrie, LengthBatches, agreement, device_case, llm_case, llm_data, load_dataset, load_lm, leave_one_out, machine, race, ratio,
                   residual_kmeans, seconds, train_steps, embed_texts, item_decoder, Identifiers, recommend, smollm2_folder)
from genrec_nb.core import versions, write_json
from genrec_nb.other_tokenizers import word_ids
from genrec_nb.output_layer import output_rows
from genrec_nb.tiger import tiger_t5


def ratios(times: dict, slow: str, fast: str) -> dict: # how many times as long the first takes, by both clocks
    return {c: ratio(times, slow, fast, c) for c in ('wall', 'cpu')}


def compiled_step(quick: bool) -> dict:
    "The item decoder's training step by torch.compile with changing shapes: eight batches of Beauty, from short histories to long ones"
    what, ids, split = device_case(200)
    model = item_decoder(ids, softmax='children', prior='trie', counts=split.train.target_counts()).train()
    samples = model.samples(split.train, 20)
    rows = sorted(LengthBatches(samples, 4 if quick else 64), key=lambda r: samples.lengths[r].mean())
    batches = [samples.collate(rows[i]) for i in torch.linspace(0, len(rows) - 1, 2 if quick else 8).long().tolist()]
    def step(forward):
        def run():
            for x in batches: forward(**x).nll.sum().backward(); model.zero_grad()
        return run
    compiled = step(torch.compile(model, dynamic=True, backend='eager' if quick else 'inductor'))
    first, _ = race(dict(compiling=compiled), 1, warm_up=False)
    times, _ = race(dict(plain=step(model), compiled=compiled), 1 if quick else 5)
    return dict(data=what, batches=len(batches), compiling=first['compiling']['wall'][0], seconds=seconds(times), ratio=ratios(times, 'plain', 'compiled'))


def eight_bits(quick: bool) -> dict:
    "SmolLM2's linear layers in eight bits by torch's own dynamic quantization: titles over the vocabulary, ten beams"
    what, model, history = llm_case('titles', load_lm(dtype='float32', device='cpu'), 2 if quick else 24)
    model.merge(); model.eval()
    small = copy.deepcopy(model)
    quantize_dynamic(small.lm, {nn.Linear}, dtype=torch.qint8, inplace=True)
    config = DecodeConfig(10, exclude_seen=False)
    ranked = lambda m: recommend(m, m.trie, history, 10, config, batch_size=8)
    times, found = race(dict(full=lambda: ranked(model), eight_bits=lambda: ranked(small)), 1, warm_up=False)
    (a, _), (b, _) = found['full'], found['eight_bits']
    return dict(data=what, users=len(history), seconds=seconds(times), ratio=ratios(times, 'full', 'eight_bits'), **agreement(*found.values()),
                first=float((a[:, 0] == b[:, 0]).double().mean()), shared=float((a[:, :, None] == b[:, None]).any(2).double().mean()))


@torch.inference_mode()
def two_products(quick: bool) -> dict:
    "A beam's attention over a history, 32 users, 20 beams, 6 heads of 64: softmax between two products against PyTorch's operator"
    gen = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(32, 6, n, 64, generator=gen) for n in (20, 40, 40))
    mask = torch.randn(32, 1, 20, 40, generator=gen)
    products = lambda: (q @ k.transpose(2, 3) + mask).softmax(3) @ v
    operator = lambda: F.scaled_dot_product_attention(q, k, v, mask, scale=1.)
    many = lambda f: lambda: [f() for _ in range(3 if quick else 100)][-1]
    times, found = race(dict(products=many(products), operator=many(operator)), 2 if quick else 9)
    return dict(difference=float((found['products'] - found['operator']).abs().max()), seconds=seconds(times), ratio=ratios(times, 'products', 'operator'))


def dropout_by_bytes(quick: bool) -> dict:
    "A dropout mask of a layer of T5 by comparing random bytes, against bernoulli_"
    x = torch.empty(64*81, 128 if quick else 1024)
    def random_bytes(): return torch.empty(x.numel()//8, dtype=torch.int64).random_(torch.iinfo(torch.int64).min, None).view(torch.uint8) < 230
    times, found = race(dict(bernoulli=lambda: x.bernoulli_(.9), bytes=random_bytes), 3 if quick else 9)
    return dict(kept=float(found['bytes'].double().mean()), seconds=seconds(times), ratio=ratios(times, 'bernoulli', 'bytes'))


@torch.inference_mode()
def beams_that_cannot_enter(quick: bool) -> dict:
    "Of a trained item decoder's twenty beams on MovieLens: how many have a score above the twentieth of the next step, so that they could have entered it"
    movies = load_dataset('ml-100k')
    split = leave_one_out(movies.interactions)
    vectors = embed_texts(movies.catalog.texts, 'tfidf')
    ids = Identifiers.from_codes(residual_kmeans(vectors, levels=3, size=64, seed=0).encode(vectors), policy='extra')
    trie, beams = ItemTrie.build(ids), 20
    with torch.inference_mode(False), torch.enable_grad(): model, _, epochs = train_steps('packed decoder', (split, ids, trie), 20 if quick else 2000, 10 if quick else 60)
    history = torch.from_numpy(split.test.tail(50)[:16 if quick else None])
    logits, state = model.prefill(history)
    node, score, able = history.new_zeros(len(history), 1), torch.zeros(len(history), 1), []
    for depth in range(trie.max_depth):
        child = trie.children(node)
        logp = logits.log_softmax(2).gather(2, trie.token[child.clamp(min=0)].long().clamp(min=0)).masked_fill(child < 0, -torch.inf)
        best, place = (score[..., None] + logp).flatten(1).topk(min(beams, child[0].numel()))
        if depth: able.append(float((score > best[:, -1:]).sum(1).double().mean()))
        node, parent, score = child.flatten(1).gather(1, place), place//child.shape[2], best
        if depth < trie.max_depth - 1: logits = model.decode_step(state, trie.token[node.clamp(min=0)].long().clamp(min=0), parent)
    return dict(data='MovieLens-100K', users=len(history), beams=beams, epochs=epochs, able=able)


def logits_of_children(quick: bool) -> dict:
    "T5 over children, words of the titles as tokens: a training step with the output layer's rows of the batch's children alone"
    name, data, _ = llm_data()
    split, ids = leave_one_out(data.interactions), word_ids(data.catalog.titles)
    sizes = dict(d_model=64, d_ff=256, num_layers=2, num_decoder_layers=2, num_heads=4, d_kv=16)
    model = tiger_t5(ids, softmax='children', prior='trie', counts=split.train.target_counts(), **sizes).train()
    samples, whole = model.samples(split.train, 20), model._output
    batches = [samples.collate(rows) for _, rows in zip(range(2 if quick else 12), LengthBatches(samples, 8 if quick else 64))]
    def some(hidden, tokens): # logits of all tokens, computed for some
        if model.config.scale_decoder_outputs: hidden = hidden*model.model_dim**-.5
        return hidden.new_zeros(len(hidden), ids.vocab_size).index_copy(1, tokens, output_rows(model.lm_head, hidden, tokens, ids.vocab_size))
    def step(few):
        def run():
            for x in batches:
                if few:
                    children, _ = model.soft.edges(model.soft.deciding_nodes(x['targets']))
                    tokens = torch.unique(model.soft.trie.token[children].long())
                    model._output = lambda hidden: some(hidden, tokens)
                loss = model(**x).nll.sum()
                loss.backward(); model.zero_grad()
                model._output = whole
            return float(loss.detach())
        return run
    model.eval() # no dropout: both give the same loss
    times, found = race(dict(whole=step(False), some=step(True)), 1 if quick else 7)
    return dict(data=f'{name}, words of titles, {ids.vocab_size:,} tokens', difference=abs(found['whole'] - found['some']), seconds=seconds(times), ratio=ratios(times, 'whole', 'some'))


TRIED = dict(logits_of_children=logits_of_children, compiled_step=compiled_step, eight_bits=eight_bits, two_products=two_products, dropout_by_bytes=dropout_by_bytes, beams_that_cannot_enter=beams_that_cannot_enter)

def main(out: Path, names: list[str], quick: bool) -> None:
    torch.set_num_threads(1)
    warnings.simplefilter('ignore')
    found = json.loads(out.read_text())['tried'] if out.exists() else {}
    if 'eight_bits' in names: smollm2_folder() # before the others take their time
    for name in names:
        found[name] = dict(what=TRIED[name].__doc__, **TRIED[name](quick), versions=versions())
        print(name, json.dumps({k: v for k, v in found[name].items() if k not in ('what', 'versions')})[:400], flush=True)
        write_json(out, dict(machine=machine(), quick=quick, tried=found))


if __name__ == '__main__':
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('out', type=Path)
    p.add_argument('names', nargs='*', choices=[*TRIED, []], help='all if none is named')
    p.add_argument('--quick', action='store_true', help='smaller sizes')
    a = p.parse_args()
    main(a.out, a.names or [*TRIED], a.quick)
