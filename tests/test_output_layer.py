"""The output layer at some places and for some tokens: against all logits, whatever the layer is, and put back after an error."""
import numpy as np
import pytest
import torch
from hypothesis import given, strategies as st
from peft import LoraConfig, get_peft_model
from torch import nn
from genrec_nb.backbones import add_code_tokens, adapt, tiny_llama
from genrec_nb.output_layer import output_of, output_rows
from oracles import few

def lm(kind):
    "A tiny model with this output layer"
    model, tokenizer = tiny_llama(['a b'], tie_word_embeddings=kind in ('tied', 'tied rows', 'merged rows'))
    lora = dict(task_type='CAUSAL_LM', init_lora_weights=False)
    if 'rows' in kind: model = adapt(model, add_code_tokens(model, tokenizer, ['<x>', '<y>', '<z>']), r=2)
    if kind == 'lora': model = get_peft_model(model, LoraConfig(r=2, target_modules=['lm_head'], **lora))
    if kind == 'dora': model = get_peft_model(model, LoraConfig(r=2, target_modules=['lm_head'], use_dora=True, **lora))
    if kind == 'saved': model = get_peft_model(model, LoraConfig(r=2, target_modules=['q_proj'], modules_to_save=['lm_head'], **lora))
    if kind == 'off': model = adapt(model, add_code_tokens(model, tokenizer, ['<x>']), r=2); model.base_model.disable_adapter_layers()
    for p in model.parameters():
        if p.requires_grad: p.data += .3*torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel()))
    if kind == 'merged rows': model.merge_adapter()
    return model.eval()

@pytest.mark.parametrize('kind', ['tied', 'untied', 'tied rows', 'untied rows', 'merged rows', 'off', 'lora', 'dora', 'saved'])
def test_rows_are_those_of_all_logits(kind):
    "Values and gradients, of hidden states and of every weight"
    model = lm(kind)
    head, W = model.get_output_embeddings(), model.config.vocab_size
    h = torch.randn(5, 32, generator=torch.Generator().manual_seed(1), requires_grad=True)
    for tokens in (torch.tensor([3, W - 1, 0, W - 2, 17]), torch.arange(W), torch.empty(0, dtype=torch.long)):
        ours, theirs = output_rows(head, h, tokens, W), head(h)[:, tokens]
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)
        weights = [h, *(p for p in head.parameters() if p.requires_grad)]
        for a, b in zip(*(torch.autograd.grad(z.square().sum(), weights, allow_unused=True) for z in (ours, theirs))):
            if a is None: assert b is None or not b.any()
            else: torch.testing.assert_close(a, b, atol=1e-3, rtol=1e-3)

def test_an_unknown_layer_is_computed_whole():
    class Packed(nn.Module):
        def forward(self, h): return h.flip(-1)
    h = torch.arange(8.).view(2, 4)
    assert output_rows(Packed(), h, torch.tensor([2, 0]), 4).tolist() == h.flip(-1)[:, [2, 0]].tolist()

@few
@given(st.lists(st.tuples(st.integers(0, 1), st.integers(0, 4)), min_size=1, max_size=6), st.lists(st.integers(0, 200), min_size=1, max_size=5, unique=True))
def test_places_and_tokens_of_a_pass(places, tokens):
    model, x = MODEL, torch.tensor([[5, 9, 2, 8, 1], [7, 1, 4, 3, 3]])
    at, tokens = tuple(torch.tensor(places).T), torch.tensor(tokens)
    with torch.no_grad():
        ours = output_of(model, lambda head, hidden: output_rows(head, hidden[at], tokens, model.config.vocab_size), input_ids=x)
        torch.testing.assert_close(ours, model(input_ids=x).logits[at][:, tokens], atol=1e-4, rtol=1e-4)

MODEL = tiny_llama(['a b'])[0]

@pytest.mark.parametrize('kind', ['tied', 'untied rows'])
def test_the_layer_is_put_back(kind):
    model = lm(kind)
    head, names = model.get_output_embeddings(), [n for n, _ in model.named_modules()]
    def fail(head, hidden): raise ValueError('in the middle')
    with pytest.raises(ValueError, match='in the middle'): output_of(model, fail, input_ids=torch.tensor([[1, 2]]))
    assert model.get_output_embeddings() is head and [n for n, _ in model.named_modules()] == names
