"""The public names, once: type checkers read this file, and `__init__.py` imports each name on first use."""

from qwen_task_heads.data.labels import LabelMap as LabelMap
from qwen_task_heads.data.pair_readers import read_pairs as read_pairs
from qwen_task_heads.data.splits import split_by_group as split_by_group
from qwen_task_heads.data.text_datasets import read_text_sets as read_text_sets
from qwen_task_heads.data.title_datasets import read_title_sets as read_title_sets
from qwen_task_heads.errors import Problem as Problem
from qwen_task_heads.errors import TaskHeadsError as TaskHeadsError
from qwen_task_heads.errors import run_recipe as run_recipe
from qwen_task_heads.evaluate_modules import metric_path as metric_path
from qwen_task_heads.export.folders import save as save
from qwen_task_heads.export.stock import export_stock as export_stock
from qwen_task_heads.hubcode.configuration_task_heads import PooledClassifierConfig as PooledClassifierConfig
from qwen_task_heads.hubcode.configuration_task_heads import TitleScorerConfig as TitleScorerConfig
from qwen_task_heads.hubcode.modeling_task_heads import PooledClassifier as PooledClassifier
from qwen_task_heads.hubcode.modeling_task_heads import TitleScorer as TitleScorer
from qwen_task_heads.inference.arguments import ComparisonArguments as ComparisonArguments
from qwen_task_heads.inference.arguments import PredictArguments as PredictArguments
from qwen_task_heads.inference.batch_prediction import predict_file as predict_file
from qwen_task_heads.inference.label_scorer import LabelScorer as LabelScorer
from qwen_task_heads.inference.rewards import TitleReward as TitleReward
from qwen_task_heads.inference.scorer import Scorer as Scorer
from qwen_task_heads.models import adapter_config as adapter_config
from qwen_task_heads.models import build as build
from qwen_task_heads.models import load as load
from qwen_task_heads.models import load_tokenizer as load_tokenizer
from qwen_task_heads.models import merge as merge
from qwen_task_heads.reports.comparison_runs import run_comparison as run_comparison
from qwen_task_heads.runs.generative import GenerativeRun as GenerativeRun
from qwen_task_heads.runs.sweeps import SweepRun as SweepRun
from qwen_task_heads.runs.texts import ClassifierRun as ClassifierRun
from qwen_task_heads.runs.title_generator import TitleGeneratorRun as TitleGeneratorRun
from qwen_task_heads.runs.titles import TitleRun as TitleRun
from qwen_task_heads.tokenization.templates import Template as Template
from qwen_task_heads.tokenization.templates import bind_template as bind_template
from qwen_task_heads.tokenization.templates import compile_template as compile_template
from qwen_task_heads.tokenization.templates import label_template as label_template
from qwen_task_heads.training.classifier_arguments import ClassifierConfig as ClassifierConfig
from qwen_task_heads.training.classifier_trainer import ClassifierTrainer as ClassifierTrainer
from qwen_task_heads.training.features import extract_features as extract_features
from qwen_task_heads.training.grpo_trainer import TitleGeneratorTrainer as TitleGeneratorTrainer
from qwen_task_heads.training.head_sweep import sweep_heads as sweep_heads
from qwen_task_heads.training.sft_trainer import AnswerTrainer as AnswerTrainer
from qwen_task_heads.training.title_arguments import TitleConfig as TitleConfig
from qwen_task_heads.training.title_trainer import TitleTrainer as TitleTrainer

__version__: str
