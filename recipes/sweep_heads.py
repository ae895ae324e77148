"""Find layer, pooling and head for labelled texts on a frozen backbone, which runs over them once.

Requires: pip install "qwen-task-heads[train]"

accelerate launch recipes/sweep_heads.py  # the embedded sample and backbone
accelerate launch recipes/sweep_heads.py --model_name_or_path Qwen/Qwen2.5-0.5B --dataset_name reviews.jsonl
"""

import shlex
import sys
import time
from functools import partial

from transformers import set_seed

from qwen_task_heads.adapters import with_adapter
from qwen_task_heads.batching.collators import text_datasets
from qwen_task_heads.batching.text import bind_template
from qwen_task_heads.data.text_sets import read_text_sets
from qwen_task_heads.errors import Problem, TaskHeadsError, run_recipe
from qwen_task_heads.models import adapter_config, build, load_tokenizer, saved_task
from qwen_task_heads.publishing.accounts import card_facts
from qwen_task_heads.publishing.destination import destination_of
from qwen_task_heads.publishing.manifest import settings_of
from qwen_task_heads.publishing.text_outcome import TFIDF, TextRun, finish_texts
from qwen_task_heads.publishing.trackers import track
from qwen_task_heads.training.callbacks import check_world
from qwen_task_heads.training.checkpoints import open_output
from qwen_task_heads.training.classification_metrics import BEST_METRIC
from qwen_task_heads.training.classifier_arguments import MAX_SEQ_LENGTH
from qwen_task_heads.training.early_exits import measure_exits, sweep_table, write_exits
from qwen_task_heads.training.features import extract_features
from qwen_task_heads.training.head_sweep import choose, parse_head, sweep_heads, text_rows
from qwen_task_heads.training.sweep_arguments import parse_sweep_arguments, warm_start_command


def main() -> None:
    """Parse, load, run the backbone once, try the heads, save the best, and say how good it is."""
    texts, args, model_args = parse_sweep_arguments()
    args.announce(texts, model_args)
    check_world(1, running=args.world_size)  # features and heads are made by one process
    destination, trackers = destination_of(texts, args, model_args), track(args, task=texts)
    base, where = model_args.model_name_or_path, {"hub": texts.hub}
    backbone, revision = base, model_args.load_options()["revision"]
    if saved_task(backbone, revision=revision, **where):
        found, accepted = "found a model of ours, which has a head", "accepted: a plain backbone"
        raise TaskHeadsError(Problem("--model_name_or_path", found, accepted, "name its base"))

    # Data, model and token ids, as in classify.py
    sets = read_text_sets(texts.dataset_name, **texts.data_options())
    kind, losses = sets.problem_type, texts.losses_for(sets.problem_type)
    open_output(args.output_dir, None)
    tokenizer = load_tokenizer(backbone, revision=revision, **where)
    pairs, template = sets.have_pairs, texts.template_for(sets.labels)
    make = partial(
        build,
        backbone,
        task="pooled_classifier",
        labels=sets.labels.names,
        problem_type=kind,
        **sets.labels.described(),
        **model_args.load_options(),
        **{"max_seq_length": MAX_SEQ_LENGTH} | texts.head_options(),
        **where,
    )

    def with_head(**head):
        set_seed(args.seed)
        model = make(**head)
        bind_template(tokenizer, model.config, template=template, pairs=pairs)
        return model.to(args.device)

    start, model, shown = time.monotonic(), with_head(), {"progress": not args.disable_tqdm}
    encode = {"tokenizer": tokenizer, "config": model.config, "num_labels": len(sets.labels)}
    (train, cut), (dev, _), lines = text_datasets(sets.train, sets.dev, sets.test, **encode)
    print("\n".join([*sets.lines, cut.line(), *lines]), flush=True)

    # The backbone once, then the heads
    rows, layers = [*train["input_ids"], *dev["input_ids"]], texts.layers_of(model.config.text_config)
    features = extract_features(model, rows, layers=layers, **texts.feature_options(), **shown)
    given = {"problem_type": kind, "label_smoothing": args.label_smoothing_factor}
    options = {loss: texts.options_of(loss, **given) for loss in losses}
    results = sweep_heads(
        model,
        features,
        text_rows(train, dev, config=model.config, options=options),
        heads=[parse_head(head) for head in texts.heads],
        losses=losses,
        seeds=texts.seeds,
        settings=args.head_training(),
        **shown,
    )
    seconds, chosen = time.monotonic() - start, choose(results, tolerance=texts.tolerance)
    best, figure = chosen.combination, BEST_METRIC[kind][0].removeprefix("eval_")

    # What answers cost with a head on each layer; then the best one as a model like any other
    points = measure_exits(results, lambda one: with_head(**one.head_options()), rows=list(dev["input_ids"]))
    write_exits(args.output_dir, points, figure=figure, chosen=chosen)
    trained = with_head(**best.head_options())
    trained.score.load_state_dict(chosen.fitted.state)
    told = {**vars(texts), **texts.settled(trained.config), "loss": best.loss, "base": base}
    if texts.save_as == "adapter":
        trained = with_adapter(trained, adapter_config(trained, head_only=True))
    run = TextRun(
        sets=sets, cut=cut.line(), card=card_facts(texts), backbone=base, seed=chosen.seed, seconds=seconds,
        settings=settings_of(args, {**told, "dtype": model_args.dtype or "float32", "seed": chosen.seed}),
        log_history=chosen.fitted.history, trackers=trackers,
    )  # fmt: skip
    metrics = finish_texts(trained, tokenizer=tokenizer, folder=args.output_dir, run=run)
    said = {"chosen": chosen, "points": points, "figure": figure, "floor": metrics["dev"].get(TFIDF)}
    command = shlex.join(warm_start_command(texts, model_args, folder=args.output_dir, chosen=best))
    following = ["", "Next, LoRA that starts from this head:", f"  {command}"]
    print("", *sweep_table(results, **said), *following, sep="\n", flush=True)
    if destination:
        destination.push(args.output_dir)


if __name__ == "__main__":
    sys.exit(run_recipe(main))
