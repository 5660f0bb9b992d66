"""Every flag has its effect: a run with it differs from one without it, where it should."""

import json
import shutil
import time
from pathlib import Path
from typing import Any

import pytest

from megatron.config import PretrainConfig
from tests.checkpoint.weights import weights_of
from tests.training.corpus import records, write_corpus
from tests.training.run import config_of, train


def rows(folder: Path, kind: str = "train", /, **flags: Any) -> list[dict[str, Any]]:
    """The records of a small run with flags."""
    train(folder, **flags)
    return records(folder, kind)


# Flags that must change the numbers of training from the first or second step on.
CHANGE_THE_LOSS: dict[str, dict[str, Any]] = {
    "architecture": {"architecture": "bert"},
    "num-layers": {"num_layers": 3},
    "hidden-size": {"hidden_size": 64},
    "num-attention-heads": {"num_attention_heads": 2},
    "ffn-hidden-size": {"ffn_hidden_size": 48},
    "vocab-size": {"vocab_size": 80},
    "make-vocab-size-divisible-by": {"make_vocab_size_divisible_by": 64},
    "task-type-vocab-size": {"task_type_vocab_size": 3},
    "activation": {"activation": "relu"},
    "activation gelu_new": {"activation": "gelu_new"},
    "layernorm-epsilon": {"layernorm_epsilon": 0.1},
    "hidden-dropout": {"hidden_dropout": 0.5},
    "attention-dropout": {"attention_dropout": 0.5},
    "init-method-std": {"init_method_std": 0.2},
    "seq-length": {"seq_length": 24},
    "mask-prob": {"mask_prob": 0.4},
    "short-seq-prob": {"short_seq_prob": 1.0},
    "max-ngrams": {"max_ngrams": 1},
    "mask-prob-end": {"mask_prob_end": 0.5, "mask_prob_samples": 16},
    "masking": {"masking": "token"},
    "sentence-objective": {"sentence_objective": "nsp"},
    "full-sentences": {"sentence_objective": "none", "full_sentences": True},
    "split": {"split": "50,50,0"},
    "seed": {"seed": 7},
    "lr": {"lr": 1e-2},
    "min-lr": {"min_lr": 9e-4},
    "lr-decay-style": {"lr_decay_style": "cosine"},
    "lr-decay-iters": {"lr_decay_iters": 3},
    "lr-warmup-iters": {"lr_warmup_iters": 3},
    "lr-warmup-fraction": {"lr_warmup_fraction": 0.5},
    "weight-decay": {"weight_decay": 10.0},
    "clip-grad": {"clip_grad": 0.01, "adam_eps": 1.0},
    "adam-beta1": {"adam_beta1": 0.1},
    "adam-beta2": {"adam_beta2": 0.1},
    "adam-eps": {"adam_eps": 1.0},
    "bf16": {"bf16": True},
    "global-batch-size": {"global_batch_size": 12},
}


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    folder = tmp_path_factory.mktemp("plain")
    write_corpus(folder)
    return rows(folder)


@pytest.mark.parametrize("name", CHANGE_THE_LOSS)
def test_the_flag_changes_the_numbers(name: str, corpus: Path, plain: list[dict[str, Any]]) -> None:
    changed = rows(corpus, **CHANGE_THE_LOSS[name])
    assert [row["mlm_loss"] for row in changed] != [row["mlm_loss"] for row in plain]


def test_rows_of_the_tables(corpus: Path) -> None:
    """Rows that no token uses change no number, only the shape."""
    train(corpus, train_iters=1, save=corpus / "save", type_vocab_size=3, max_position_embeddings=96)
    weights = weights_of(corpus / "save" / "iter_0000001")
    assert weights["embeddings.token_type_embeddings.weight"].shape == (3, 32)
    assert weights["embeddings.position_embeddings.weight"].shape == (96, 32)


@pytest.mark.parametrize(
    "flags",
    [{"micro_batch_size": 2}, {"num_workers": 3}, {"eval_interval": 2}, {"tokenizer_type": "BertWordPieceCase"}],
    ids=str,
)
def test_the_flag_changes_no_numbers(flags: dict[str, Any], corpus: Path, plain: list[dict[str, Any]]) -> None:
    changed = rows(corpus, **flags)
    for ours, theirs in zip(changed, plain, strict=True):
        for name in ("mlm_loss", "sop_loss", "grad_norm"):
            assert ours[name] == pytest.approx(theirs[name], rel=1e-5)


def test_lr_warmup_init(corpus: Path) -> None:
    first = rows(corpus, lr_warmup_iters=4, lr_warmup_init=8e-4)[0]
    assert first["learning_rate"] == pytest.approx(8e-4)


def test_sample_based_run(corpus: Path) -> None:
    run = rows(corpus, train_iters=None, train_samples=20, lr_decay_samples=40, lr_warmup_samples=16)
    assert [row["consumed_samples"] for row in run] == [8, 16, 24]
    assert [row["learning_rate"] for row in run] == pytest.approx([0.0, 5e-4, 1e-3])


def test_rampup(corpus: Path) -> None:
    run = rows(corpus, train_iters=None, train_samples=40, rampup_batch_size=(4, 4, 16))
    assert [row["global_batch_size"] for row in run][:6] == [4, 4, 4, 4, 8, 8]


def test_no_binary_head(corpus: Path) -> None:
    write_corpus(corpus, sentences=1)
    run = rows(corpus, bert_no_binary_head=True, save=corpus / "save")
    assert all(row["sop_loss"] == 0 for row in run)


def test_blend(corpus: Path, plain: list[dict[str, Any]]) -> None:
    write_corpus(corpus, seed=5, name="other")
    data_path = ["0.3", corpus / "corpus_text_sentence", "0.7", corpus / "other_text_sentence"]
    assert [row["mlm_loss"] for row in rows(corpus, data_path=data_path)] != [row["mlm_loss"] for row in plain]


def test_splits_with_corpora_of_their_own(corpus: Path) -> None:
    write_corpus(corpus, seed=5, name="other")
    paths = {"train_data_path": corpus / "corpus_text_sentence", "valid_data_path": corpus / "other_text_sentence"}
    run = rows(corpus, data_path=None, split=None, eval_interval=6, **paths)
    assert len(run) == 6 and len(records(corpus, "valid")) == 1
    only_test = {"data_path": None, "split": None, "test_data_path": corpus / "other_text_sentence"}
    assert len(rows(corpus, "test", skip_train=True, **only_test)) == 1
    from megatron.errors import UserError

    with pytest.raises(UserError, match="without --train-data-path there are no documents for training"):
        train(corpus, data_path=None, split=None, valid_data_path=corpus / "other_text_sentence")


def test_sentence_objective_none_is_no_binary_head(corpus: Path) -> None:
    flags = {"hidden_dropout": 0, "attention_dropout": 0, "train_iters": 2}
    by_name = rows(corpus, sentence_objective="none", **flags)
    by_megatron = rows(corpus, bert_no_binary_head=True, **flags)
    assert [row["mlm_loss"] for row in by_name] == [row["mlm_loss"] for row in by_megatron]
    assert all(row["sop_loss"] == 0 for row in by_name)


def test_data_cache_path(corpus: Path) -> None:
    shutil.rmtree(corpus / "cache", ignore_errors=True)
    train(corpus, data_cache_path=corpus / "elsewhere")
    assert list((corpus / "elsewhere").iterdir())
    assert not (corpus / "cache").exists()


def test_log_interval_and_the_mean_over_its_steps(corpus: Path, plain: list[dict[str, Any]]) -> None:
    run = rows(corpus, log_interval=3)
    assert [row["step"] for row in run] == [3, 6]
    assert min(r["mlm_loss"] for r in plain[:3]) < run[0]["mlm_loss"] < max(r["mlm_loss"] for r in plain[:3])


def test_evaluation(corpus: Path) -> None:
    flags = {"eval_interval": 2, "eval_iters": 1, "split": "60,20,20"}
    assert [row["step"] for row in rows(corpus, "valid", **flags)] == [2, 4, 6]
    (test,) = records(corpus, "test")
    assert test["step"] == 6 and test["evaluation_samples"] == 8


def test_evaluation_is_at_most_one_epoch(corpus: Path) -> None:
    valid = rows(corpus, "valid", eval_interval=6, eval_iters=10_000)[0]
    assert valid["evaluation_samples"] < 100


def test_eval_iters_zero_is_no_evaluation(corpus: Path) -> None:
    assert rows(corpus, "valid", eval_interval=2, eval_iters=0) == []


def test_skip_train(corpus: Path) -> None:
    assert rows(corpus, skip_train=True) == [] and len(records(corpus, "valid")) == 1


def test_evaluation_of_the_untrained_model_is_near_chance(corpus: Path) -> None:
    valid = rows(corpus, "valid", skip_train=True, eval_iters=5)[0]
    assert valid["mlm_loss"] == pytest.approx(4.17, abs=0.3) and valid["sop_loss"] == pytest.approx(0.69, abs=0.1)


def test_save_and_exit_interval(corpus: Path) -> None:
    train(corpus, save=corpus / "save", save_interval=2, exit_interval=5)
    saved = sorted(path.name for path in (corpus / "save").glob("iter_*"))
    assert saved == ["iter_0000002", "iter_0000004", "iter_0000005"]
    assert json.loads((corpus / "save" / "config.json").read_text())["model"]["num_layers"] == 2


def test_exit_duration(corpus: Path) -> None:
    started = time.monotonic()
    run = rows(corpus, train_iters=10_000_000, exit_duration_in_mins=0.02, save=corpus / "save")
    assert time.monotonic() - started < 60 and len(run) < 100_000
    assert (corpus / "save" / f"iter_{run[-1]['step']:07d}").is_dir()


def test_max_skipped_steps(corpus: Path) -> None:
    from megatron.errors import UserError

    with pytest.raises(UserError, match=r"3 steps in a row.*samples \d+ to \d+ \(documents \d+"):
        train(corpus, lr=1e30, lr_decay_style="constant", clip_grad=0, max_skipped_steps=3, train_iters=100)


def test_no_load_optim(corpus: Path) -> None:
    train(corpus, save=corpus / "first", train_iters=3)
    shared = {"load": corpus / "first", "train_iters": 6}
    kept = rows(corpus, **shared, metrics_file=corpus / "metrics.jsonl")[-1]
    fresh = rows(corpus, **shared, no_load_optim=True)[-1]
    assert kept["mlm_loss"] != fresh["mlm_loss"]


def test_tensorboard(corpus: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = rows(corpus, tensorboard_dir=corpus / "events")
    events = EventAccumulator(str(corpus / "events"))
    events.Reload()
    assert [e.value for e in events.Scalars("lm loss")] == pytest.approx([row["mlm_loss"] for row in run])


def test_wandb(corpus: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a stand-in of the package: the run is named and every record arrives."""
    import importlib.machinery
    import sys
    import types

    logged: list[tuple[int, float]] = []
    made: list[tuple[str, str]] = []
    run = types.SimpleNamespace(log=lambda row, step: logged.append((step, row["mlm_loss"])), finish=lambda: None)
    fake = types.ModuleType("wandb")
    fake.__spec__ = importlib.machinery.ModuleSpec("wandb", None)
    fake.init = lambda project, name, config: made.append((project, name)) or run  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "wandb", fake)
    run_rows = rows(corpus, wandb_project="encoders", wandb_exp_name="first")
    assert made == [("encoders", "first")] and logged == [(row["step"], row["mlm_loss"]) for row in run_rows]


def test_metrics_have_full_digits_and_all_fields(plain: list[dict[str, Any]]) -> None:
    required = "step consumed_samples mlm_loss sop_loss mlm_accuracy sop_accuracy learning_rate grad_norm "
    required += "tokens_per_second model_tflops_per_second mfu peak_memory_bytes step_seconds loader_wait_seconds"
    for row in plain:
        assert set(required.split()) <= set(row)
        assert 0 <= row["loader_wait_seconds"] < row["step_seconds"]
    assert len(repr(plain[0]["mlm_loss"])) > 12


def test_preset(corpus: Path) -> None:
    flags = dict.fromkeys(("num_layers", "hidden_size", "num_attention_heads", "max_position_embeddings"))
    config = config_of(corpus, **flags, preset="roberta-tiny-clue", vocab_size=None)
    assert isinstance(config, PretrainConfig) and config.model.hidden_size == 312


def test_every_flag_is_tried_somewhere() -> None:
    """No flag without a test: those not above are tried in the files named."""
    import dataclasses

    elsewhere = {
        # tests/optimizer/test_loss_scale.py
        "fp16", "loss_scale", "initial_loss_scale", "min_loss_scale", "loss_scale_window", "hysteresis",
        "finetune", "ckpt_step", "no_save_optim", "load",  # test_resume
        "distributed_backend",  # test_data_parallel
        "distributed_timeout_minutes", "startup_timeout_minutes",  # test_failures
        "vocab_file",  # test_bad_input
        "spike_threshold", "check_replicas_interval",  # test_health
        # test_saving
        "async_save", "keep_last", "keep_every",
        "accept_changes", "exit_on_missing_checkpoint", "no_checkpoint_fallback",
        "tokenizer_model",  # test_tokenizers
        "optimizer", "layernorm",  # tests/ops/test_apex.py
        "cuda_graphs",  # tests/layouts/test_graphs.py
        "dry_run", "world_size", "rank",  # end_to_end/test_dry_run
        "compile",  # test_compile
        "profile", "profile_step_start", "profile_step_end", "profile_ranks",  # test_profiling
    }  # fmt: skip
    layouts = [Path(__file__).parents[1] / "layouts" / name for name in ("test_layouts.py", "test_command_line.py")]
    here = "".join(path.read_text(encoding="utf-8") for path in (Path(__file__), *layouts))
    for section in dataclasses.fields(PretrainConfig):
        for field in dataclasses.fields(section.default_factory()):  # type: ignore[misc]
            assert field.name in elsewhere or field.name in here, field.name
