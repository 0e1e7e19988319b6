"""Every public class as its user meets it, for a checker of types; nothing here is run."""
from pathlib import Path

import numpy as np
from torch import Tensor

from genrec_nb.alignment import TASKS, AlignmentTasks, TaskSpec
from genrec_nb.backbones import load_lm
from genrec_nb.baselines import ItemRanker, LightGCN, LightGCNConfig
from genrec_nb.batches import LengthBatches, PrefixSamples, Windows
from genrec_nb.beam_search import Beams, DecodeConfig, beam_search, recommend
from genrec_nb.comparisons import Comparisons, Scores
from genrec_nb.core import FileError, GenrecError, GenrecWarning, MissingTextError, SettingError, read_settings
from genrec_nb.data import Catalog, Dataset, Interactions
from genrec_nb.splits import Cases, Split, TieCounts, leave_one_out
from genrec_nb.diagnostics import CodeAnalysis
from genrec_nb.embed import SentenceEncoder, TfidfEncoder
from genrec_nb.exact import ExactConfig, ExactScores, ValidationScores
from genrec_nb.branch_and_bound import ProvedBeams, ProvedItems, proved_items, proved_search
from genrec_nb.search import Found, chosen_search, search_each
from genrec_nb.baseline_trials import BaselineTrial
from genrec_nb.experiments.execution import Plan
from genrec_nb.experiments.grid import Grid, Tune
from genrec_nb.experiments.reproduce import Table, read_table
from genrec_nb.experiments.results import Block, Results
from genrec_nb.cluster_labels import ClusterLabel, find_prefix, label_prefixes
from genrec_nb.explanations import (Explanation, JointExplanation, Recommendation, Recommendations, RulesExplanation,
                                    Strip, TokenPart)
from genrec_nb.generate import TrieProcessor
from genrec_nb.grounding import ground
from genrec_nb.causal_blocks import CausalBlock, PackedRows
from genrec_nb.dynamic_trie import DynamicTrie
from genrec_nb.item_decoder import ItemDecoder, ItemDecoderConfig
from genrec_nb.kmeans import CodebookReport, Quantizer, ResidualQuantizer
from genrec_nb.limits import DecoderSizes, T5Sizes
from genrec_nb.causal_lm import LanguageRecommender, LMConfig
from genrec_nb.language_recommender import language_recommender
from genrec_nb.letter import LETTER, LETTERConcat, LETTERConfig
from genrec_nb.limits import DecoderSizes, T5Sizes
from genrec_nb.likelihood import ChildSoftmax
from genrec_nb.loaders import load_movielens
from genrec_nb.metrics import Evaluation
from genrec_nb.objectives import CFT, CFTLoss, Mixture, MultiTargetLoss, RankingGuided, WeightedLoss
from genrec_nb.hkmeans import TreeQuantizer
from genrec_nb.product_quantization import ProductQuantizer
from genrec_nb.prompts import PackedSamples, Prompter, PromptSamples, title_identifiers
from genrec_nb.rec_config import RecommenderConfig
from genrec_nb.recommender import GenerativeRecommender
from genrec_nb.report import Page
from genrec_nb.rqvae import RQOutput, RQVAE, RQVAEConfig
from genrec_nb.run import RunConfig
from genrec_nb.semantic_ids import Identifiers
from genrec_nb.sequential_baselines import SASRec, SASRecConfig, SequenceConfig, SequenceRanker
from genrec_nb.linear_baselines import (EASE, EASEConfig, ItemKNN, ItemKNNConfig, ItemMatrix, MF, MFConfig, train_ease, train_item_knn, train_mf)
from genrec_nb.more_sequential_baselines import (BERT4Rec, BERT4RecConfig, Caser, CaserConfig, ESASRec, ESASRecConfig, GatedBlock, GRU4Rec, GRU4RecConfig, HGN,
                                                 WindowConfig, WindowRanker, train_bert4rec, train_caser, train_esasrec, train_gru4rec, train_hgn)
from genrec_nb.rankers import Popularity, RulesRanker, Transitions, load_ranker, save_ranker
from genrec_nb.sequential_rules import RulesConfig, SequentialRules, count_rules
from genrec_nb.data_facts import DataFacts, describe_data
from genrec_nb.formats import BadLines, FileTable, Format, read_file, recognize
from genrec_nb.significance import MeanDifference, RankTable, SignFlip, VarianceComponents
from genrec_nb.terminal import Bars
from genrec_nb.tiger import TigerT5, TokenLoss
from genrec_nb.token_weights import IGD, FrontGreater, Frequency, ItemFacts, Position, Uniform, Weighting
from genrec_nb.tokenizer import Tokenized
from genrec_nb.tokenizer_config import Method, Sources, TokenizerConfig
from genrec_nb.tokenizer_report import TokenizerReport, Verdict
from genrec_nb.train import FitResult, GenrecTrainer, RankingTrainer, TrainConfig
from genrec_nb.tree_attention import LMState
from genrec_nb.trial import DataConfig, Trial
from genrec_nb.trie import ItemTrie, shortest_paths


def data() -> tuple[Dataset, Split]:
    found: Dataset = load_movielens()
    catalog: Catalog = found.catalog.take(np.arange(5))
    train: Interactions = found.interactions
    split: Split = leave_one_out(train)
    cases: Cases = split.test.sample(10)
    numbers: int = catalog.index('1') + train.n_items + len(cases.tail(5)) + catalog.find('Heat')
    assert numbers
    return found, split


def identifiers(catalog: Catalog) -> tuple[Identifiers, ItemTrie]:
    ids = Identifiers.from_codes(np.zeros((5, 2), int), [4, 4], 'extra')
    trie: ItemTrie = ItemTrie.build(shortest_paths(ids))
    names: list[str] = ids.names(0)
    width: int = ids.max_len + ids.vocab_size + trie.n_nodes + trie.max_depth + len(names)
    ids.save(Path('index.json')), trie.to('cpu').describe()
    trie.save('trie.safetensors')
    assert width and catalog.titles
    return Identifiers.random(len(catalog.ids)).with_eos().check(), trie


def quantizers(x: np.ndarray) -> CodebookReport:
    kinds: list[type[Quantizer]] = [ResidualQuantizer, ProductQuantizer, TreeQuantizer, RQVAE, LETTER, LETTERConcat]
    report = CodebookReport([np.ones(4)], 0.)
    used: list[int] = report.used
    RQVAEConfig(d_in=8), LETTERConfig(d_in=8)
    assert kinds and used
    return report


def codes_of(q: Quantizer, x: np.ndarray) -> np.ndarray: return q.encode(x)
def loss_of(out: RQOutput) -> RQOutput: return out


def tokenized(t: Tokenized, method: Method, sources: Sources) -> TokenizerReport:
    config: TokenizerConfig | None = t.config
    t.save('folder', more=None)
    assert config is None or TokenizerConfig(method='title')
    verdicts: list[Verdict] = t.report().verdicts()
    assert all(v.grade for v in verdicts)
    return t.report()


def recommender(found: Dataset, split: Split) -> list[Recommendation]:
    config = RecommenderConfig(backbone='t5', seed=1, decode=DecodeConfig(beams=5))
    rec = GenerativeRecommender.fit(found, config, split)
    top: Recommendations = rec.recommend(['1', '2'], 5)
    why: Explanation | JointExplanation = rec.explain(['1', '2'], '3', .2)
    node: int = find_prefix(rec.trie, rec.ids, rec.ids.names(0)[0])
    labels: list[ClusterLabel] = label_prefixes(rec.trie, [node], rec.catalog, rec.counts)
    assert labels[0].items >= 1
    if isinstance(why, JointExplanation): return [x for x in top if x.title == why.other and why.leads[why.decided] > 0]
    parts: list[TokenPart] = why.parts
    strip: Strip = why.strip()
    again = GenerativeRecommender.from_pretrained(rec.save_pretrained('folder'))
    ranks: np.ndarray = again.rank(split.test, 10)
    top.to_frame(), why.to_frame()
    assert strip and len(ranks) and parts[0].probability + why.score
    return list(top)


def losses(ids: Identifiers, trie: ItemTrie, facts: ItemFacts) -> list[Weighting]:
    every: list[Weighting] = [Uniform(), IGD(beta=.1), Position(), FrontGreater(), Frequency(), CFT(), RankingGuided()]
    table: Tensor = every[1].table(trie, ids, np.ones(5))
    kinds = [WeightedLoss, CFTLoss, MultiTargetLoss, Mixture]
    assert len(kinds) and len(table) and facts.asked_by
    return every


def models(ids: Identifiers, decoder: ItemDecoder, t5: TigerT5, history: Tensor) -> Beams:
    softmax = ChildSoftmax.build(ItemTrie.build(ids), np.ones(5))
    loss: TokenLoss = t5(history)
    kinds = [CausalBlock, PackedRows, DynamicTrie, TrieProcessor, ItemDecoderConfig, ExactScores, ValidationScores]
    exact = ExactConfig(combine='mixture', weights=(.5, .5))
    assert kinds and exact.weights and loss and decoder and softmax.to('cpu').deciding is not None
    return beam_search(t5, ItemTrie.build(ids), history, DecodeConfig(beams=5))


def training(train: Interactions, result: FitResult) -> TrainConfig:
    batches = LengthBatches(PrefixSamples(train, 10), batch_size=4, seed=1)
    windows = Windows(train, 20)
    trainers = [GenrecTrainer, RankingTrainer]
    best: float = result.best + result.epochs
    assert len(batches) and len(windows) and trainers and best and result.curve()
    return TrainConfig(epochs=2, lr=1e-3)


def language_models(titles: list[str], catalog: Catalog, train: Interactions, history: Tensor) -> LanguageRecommender:
    lm, tokenizer = load_lm(device='cpu')
    config = LMConfig(base=None, r=4, packed=False, tasks=['all'])
    model = language_recommender(title_identifiers(titles, tokenizer), (lm, tokenizer), config).set_tasks(catalog)
    prompt: Prompter = model.prompt
    state: LMState = model.prefill(history)[1]
    logits: Tensor = model.decode_step(state, history, history)
    samples: list[PromptSamples | PackedSamples] = [model.samples(train, 10)]
    tasks: AlignmentTasks = model.tasks
    spec: TaskSpec = TASKS['seqrec']
    generated: list[str] = model.free_titles(history)
    items, scores = recommend(model, model.trie, history, 10, DecodeConfig(beams=10))
    nearest, distance = ground(model.title_vectors(generated), model.title_vectors(titles), 10, items)
    trained: int = model.num_parameters(True) + state.passes + prompt.room
    assert spec.template and tasks and samples and trained
    return LanguageRecommender.from_pretrained(model.merge().save_pretrained('folder'), device='cpu')


def baselines(split: Split, ranker: ItemRanker, model: SASRec, graph: LightGCN) -> np.ndarray:
    SASRecConfig(), LightGCNConfig()
    return ranker.rank(split.test, 10)


def more_baselines(split: Split, folder: str) -> ItemRanker:
    closed: list[ItemMatrix] = [train_item_knn(split, ItemKNNConfig()), train_ease(split, EASEConfig())]
    factors: MF = train_mf(split, MFConfig())
    learned: list[SequenceRanker] = [train_gru4rec(split, GRU4RecConfig()), train_caser(split, CaserConfig()), train_hgn(split, WindowConfig()),
                                     train_bert4rec(split, BERT4RecConfig()), train_esasrec(split, ESASRecConfig())]
    kinds = [ItemKNN, EASE, GRU4Rec, Caser, HGN, BERT4Rec, ESASRec, GatedBlock, WindowRanker, SequenceConfig, Popularity, Transitions, RulesRanker]
    rules: SequentialRules = SequentialRules(count_rules(split.train, RulesConfig()))
    save_ranker(factors, folder)
    assert closed and learned and kinds and rules
    return load_ranker(folder)


def named(data: DataConfig) -> str:
    trial, table = BaselineTrial(data, 'a1', 'ease', dict(l2=300.)), read_table('igd')
    shown: Table = table
    return trial.key + shown.name


def files(path: str, data: Dataset) -> list[str]:
    table: FileTable = read_file(path, bad_lines='skip')
    bad: BadLines | None = table.bad
    known: Format = recognize(list(table.frame.columns))
    facts: DataFacts = describe_data(data)
    return [known.name, *facts.lines()]


def numbers(e: Evaluation, scores: Scores, rows: Comparisons, flip: SignFlip, test: MeanDifference) -> float:
    values: np.ndarray = e.values('recall@10')
    parts: VarianceComponents | None = test.components
    kinds = [RankTable, CodeAnalysis]
    Evaluation.from_dict(e.to_dict(ranks=True)), scores.show(), rows.show()
    assert kinds and len(values)
    return flip.p + test.df + (parts.users if parts else 0.) + scores.n_users


def experiments(results: Results, plan: Plan, trial: Trial) -> Page:
    run = RunConfig(data='ml-100k', alpha=.2)
    grid = Grid(data='ml-100k', seeds=[0, 1], tune=Tune(seeds=[0], values=dict(igd=dict(beta=[.1, .5]))))
    block = Block(results, 'ml-100k', 'rqvae')
    where: DataConfig = run.data_config
    scores: Scores = block.scores()
    assert grid.title + trial.label + where.path and plan.size() and scores
    return Page('title').add('section', 'text')


def searches(model: ItemDecoder, t5: TigerT5, history: Tensor) -> Tensor:
    name: str = chosen_search(model, model.tries[0], DecodeConfig(search='auto'))
    found: list[Found] = search_each(model, model.tries[0], history, 10)
    proved: ProvedItems = proved_items(t5, t5.trie, history, 10)
    beams: ProvedBeams = proved_search(t5, t5.trie, history, 10)
    assert name and len(beams.prefixes)
    return found[0].items[proved.proved]


def ties(split: Split) -> int:
    found: TieCounts = split.train.count_ties(split.test)
    return found.interactions + (found.tied_targets or 0)


def texts(titles: list[str]) -> list: return [TfidfEncoder, SentenceEncoder, Bars]


def errors(given: dict) -> DecodeConfig:
    try: return read_settings(DecodeConfig, given, 'decode')
    except (SettingError, FileError, MissingTextError, GenrecError, GenrecWarning): raise


def sizes(width: int) -> tuple[int, str]:
    packed, t5 = DecoderSizes(d_model=width, num_layers=1), T5Sizes(d_model=width)
    return packed.max_items + t5.max_items, t5.softmax


def share(said: RulesExplanation) -> float: return said.weight*said.counted + sum(part for _, part in said.votes)
