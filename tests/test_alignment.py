"LC-Rec's tasks: texts, losses against single rows, samples of the training part alone."
import numpy as np
import pytest
import torch
from genrec_nb.alignment import TASKS, _task_texts
from genrec_nb.backbones import tiny_llama
from genrec_nb.core import GenrecError
from genrec_nb.language_recommender import LMConfig, LanguageRecommender
from genrec_nb.semantic_ids import PAD
from language import WORDS, some_titles, base, make_codes, users, interactions, tiny_run

TOL = 1e-3

def catalog(n=30):
    rng = np.random.default_rng(0)
    titles = some_titles(n)
    from genrec_nb.data import Catalog
    return Catalog([str(i) for i in range(n)], titles, [f'{t}. {" ".join(rng.choice(WORDS, 6))}' for t in titles])

def with_tasks(names=('all',), share=.5, **config):
    model = make_codes(0, config=LMConfig(base=None, r=4, seed=0, **config))
    return model.set_tasks(catalog(), names, share)

def test_tasks_ask_and_answer_as_their_templates_say():
    model, items = with_tasks(), catalog()
    says = _task_texts(items)
    code = lambda i: ''.join(model.ids.names(i))
    read = lambda row, here: model.tokenizer.decode(row[here.bool()]).replace('> <', '><')
    history, target = [4, 9], 17
    shows = dict(codes=code, **{k: lambda i, v=v: v[i] for k, v in says.items()})
    for name in TASKS:
        x, mask, answers, real = model.tasks[name](model, torch.tensor([[-1] + history, [-1, -1, 3]]), torch.tensor([target, 5]))
        template, show, shown, say, about = TASKS[name]
        of = dict(history=history, target=[target])
        assert read(x[0], mask[0]) == template.format(history='\n'.join(shows[show](i) for i in of[shown]))
        assert read(answers[0], real[0]) == (code(target) if say == 'codes' else ', '.join(shows[say](i) for i in of[about]) + model.tokenizer.eos_token)
        assert (real.long().sort(1, descending=True).values == real.long()).all()

def test_tasks_in_one_pass_are_the_tasks_alone():
    "Rows of all tasks together against each row by itself; answers in words stand as their mean"
    model = with_tasks().eval()
    history, targets, task = users(30, n=14, seed=3), torch.arange(14), torch.arange(14) % len(TASKS)
    with torch.no_grad():
        nll = model(history, targets, task=task, tau=.8).nll
        for b, name in enumerate(list(TASKS)*2):
            x, mask, answers, real = model.tasks[name](model, history[b:b + 1], targets[b:b + 1])
            z = model.lm(torch.cat([x[0][mask[0] == 1], answers[0]])[None]).logits[0, int(mask.sum()) - 1:-1]
            ce = torch.nn.functional.cross_entropy(z.double()/.8, answers[0], reduction='none')
            n = int((model.paths[targets[b]] != PAD).sum())
            want = ce if TASKS[name][3] == 'codes' else ce.mean().expand(n)
            np.testing.assert_allclose(nll[b, :n], want, atol=TOL, err_msg=name)
        alone = model(history, targets).nll
        np.testing.assert_allclose(model(history, targets, task=torch.zeros(14, dtype=torch.long)).nll, alone, atol=1e-4)

def test_tasks_are_drawn_anew_from_the_training_part_alone():
    model, x = with_tasks(share=.25), interactions(30)
    model.tasks.to('cpu')
    samples = model.samples(x, 4)
    n = int((x.lengths - 1).sum())
    pairs = {(tuple(x.user(u)[max(p - 4, 0):p].tolist()), int(x.user(u)[p])) for u in range(x.n_users) for p in range(1, int(x.lengths[u]))}
    epochs = []
    for epoch in (0, 1, 0):
        samples.set_epoch(epoch)
        assert len(samples) == n + (len(TASKS) - 1)*round(.25*n) and sorted(samples.sample[:n]) == list(range(n))
        batch = samples.collate(list(range(len(samples))))
        assert {(tuple(i for i in h if i >= 0), t) for h, t in zip(batch['history'].tolist(), batch['targets'].tolist())} <= pairs
        epochs.append(samples.sample.tolist())
    assert epochs[0] == epochs[2] != epochs[1]
    for s in range(0, len(samples), 7):
        b = samples.collate([s])
        x_, mask, answers, real = list(model.tasks.values())[int(b['task'])](model, b['history'], b['targets'])
        assert samples.lengths[s] == pytest.approx(int(mask.sum() + real.sum()), abs=2*4 + 2)   # but for commas and separators at the ends

def test_training_on_tasks(tmp_path):
    model = with_tasks(share=.2)
    result = tiny_run(model, tmp_path, 2)
    assert result.losses[-1][1] < result.losses[0][1]
    model.save_pretrained(tmp_path/'saved')                                        # the tasks belong to the training, not to the recommender
    assert LanguageRecommender.from_pretrained(tmp_path/'saved', tiny_llama(WORDS, seed=0)).tasks is None

def test_seqrec_alone_is_a_switch():
    model = with_tasks(('seqrec',))
    assert list(model.tasks) == ['seqrec'] and len(model.samples(interactions(30), 4)) == len(make_codes(0).samples(interactions(30), 4))

def test_tasks_that_cannot_be():
    from genrec_nb.data import Catalog
    model = make_codes(0)
    with pytest.raises(GenrecError, match="'poetry' is unknown"): model.set_tasks(catalog(), ('poetry',))
    with pytest.raises(GenrecError, match='share'): model.set_tasks(catalog(), ['all'], share=0)
    with pytest.raises(GenrecError, match='no text'): model.set_tasks(Catalog([str(i) for i in range(30)], [str(i) for i in range(30)], ['']*30))
    with pytest.raises(GenrecError, match='30'): model.set_tasks(catalog(29))
    with pytest.raises(GenrecError, match='CFT'): with_tasks()(torch.tensor([[1]]), torch.tensor([2]), null_history=True, task=torch.tensor([1]))
