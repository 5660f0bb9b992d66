"""FewCLUE and ZeroCLUE: rows in the official forms (texts made up here), patterns, whole runs, and the real files."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import pytest

from megatron.checkpoint import find_checkpoint, json_bytes, read_config, save_checkpoint, to_huggingface
from megatron.config import to_dict
from megatron.data.tokenizer import load_tokenizer
from megatron.errors import UserError
from megatron.model import BertForTask
from megatron.mpu.context import ParallelContext
from megatron.mpu.sharding import initialize, parameter_pieces
from megatron.tasks.config import FinetuneConfig, ModelSourceConfig, TaskConfig, TuningConfig
from megatron.tasks.finetune import finetune
from megatron.tasks.inputs import find_files, read_inputs
from megatron.tasks.kinds.prompts import with_prompt
from megatron.tasks.pretrained import open_pretrained
from megatron.tasks.readers import find_file
from megatron.tasks.sets.fewclue import APP_CATEGORIES, DISCIPLINES, FEWCLUE
from megatron.tasks.table import find_task
from tests.tasks.tiny import CHARACTERS, changed, metrics, run_command, write_checkpoint

SINGLE = ParallelContext.single()
NAMES = [task.name for task in FEWCLUE]

PAIR = {"sentence1": "他在河边钓鱼", "sentence2": "他在室外"}
IDIOMS = ["风和日丽", "山清水秀", "花好月圆", "天长地久", "鸟语花香", "人山人海", "水落石出"]
WSC = {
    "target": {"span2_index": 6, "span1_index": 0, "span1_text": "小猫", "span2_text": "它"},
    "text": "小猫看见鸟，它很高兴。",
}
ROWS: dict[str, dict[str, Any]] = {
    "eprstmt": {"id": 0, "sentence": "屏幕很亮，物流也快", "label": "Positive"},
    "csldcp": {"content": "研究了桥梁的振动", "label": "土木工程", "id": 1142},
    "tnews": {"label": 107, "label_desc": "news_car", "sentence": "新车上市", "keywords": "", "id": 591},
    "iflytek": {"label": 70, "label_des": "工具", "sentence": "一个记事本", "id": 4},
    "ocnli": {"level": "easy", **PAIR, "label": "neutral", "label0": None, "genre": "lit", "prem_id": "lit_1", "id": 0},
    "bustm": {"id": 3, **PAIR, "label": "1"},
    "chid": {"id": 42, "candidates": IDIOMS, "content": "今天#idiom#,适合出门", "answer": 5},
    "csl": {"id": 1, "abst": "本文研究振动", "keyword": ["桥梁", "振动"], "label": "0"},
    "cluewsc": {**WSC, "idx": 3, "label": "false"},
}
PLAIN: dict[str, tuple[str, ...]] = {
    "eprstmt": ("屏幕很亮，物流也快",),
    "csldcp": ("研究了桥梁的振动",),
    "tnews": ("新车上市",),
    "iflytek": ("一个记事本",),
    "ocnli": ("他在河边钓鱼", "他在室外"),
    "bustm": ("他在河边钓鱼", "他在室外"),
    "chid": ("今天", ",适合出门"),
    "csl": ("桥梁 振动", "本文研究振动"),
    "cluewsc": ("_小猫_看见鸟，[它]很高兴。",),
}
# The text with its blanks, and the word of the right label.
FILLED = {
    "eprstmt": ("_满意。屏幕很亮，物流也快", "很"),
    "csldcp": ("这篇__论文阐述了研究了桥梁的振动", "土木"),
    "tnews": ("下面报导一则__新闻。新车上市", "汽车"),
    "iflytek": ("做为一款__应用，一个记事本", "工具"),
    "ocnli": ("他在河边钓鱼？__,他在室外", "并且"),
    "bustm": ("他在河边钓鱼和他在室外意思_同", "相"),
    "chid": ("今天____,适合出门", "人山人海"),
    "csl": ("__用桥梁，振动概括本文研究振动", "不能"),
    "cluewsc": ("下面句子的指代关系正确吗？__。小猫（这是实体）看见鸟，它（这是代词）很高兴。", "错误"),
}
LABEL_KEYS = ("label", "label_desc", "label_des", "answer")


def short(name: str) -> str:
    return name.removeprefix("fewclue-")


def official(name: str, count: int) -> list[dict[str, Any]]:
    """Rows of a task with its first labels in turn and ids that are not in order."""
    rows = []
    for row in range(count):
        label: dict[str, Any] = {"answer": row % 7} if short(name) == "chid" else {}
        labels = find_task(name).labels
        if not label:
            value = labels[row % min(len(labels), 3)]
            label = {"label": int(value) if short(name) in ("tnews", "iflytek") else value}
        rows.append({**ROWS[short(name)], **label, "id": 3000 - 7 * row})
    return rows


def write(path: Path, rows: list[dict[str, Any]], end: str = "\r\n") -> Path:
    path.write_bytes("".join(json.dumps(row, ensure_ascii=False) + end for row in rows).encode())
    return path


def unlabelled(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{key: value for key, value in row.items() if key not in LABEL_KEYS} for row in rows]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its vocabulary has the characters of all patterns, words and rows above."""
    text = json.dumps([ROWS, FILLED], ensure_ascii=False)
    for task in FEWCLUE:
        assert task.prompt is not None
        text += "".join((task.prompt.pattern, *task.prompt.words))
    characters = "".join(character for character in text if character not in "\n ")
    return write_checkpoint(tmp_path_factory.mktemp("pretrained") / "checkpoint", characters=characters)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A folder of FewCLUE's files for each task."""
    made = {}
    for name in NAMES:
        folder = made[name] = tmp_path_factory.mktemp(name)
        write(folder / "train_0.json", official(name, 12))
        write(folder / "dev_0.json", official(name, 7))
        write(folder / "test_public.json", official(name, 5))
        write(folder / "test.json", unlabelled(official(name, 4)))
    return made


@pytest.fixture
def config(checkpoint: Path, folders: dict[str, Path], tmp_path: Path) -> FinetuneConfig:
    """A run of two steps of TNEWS."""
    return FinetuneConfig(
        task=TaskConfig(task="fewclue-tnews", data_dir=str(folders["fewclue-tnews"]), prompt=True, predict=True),
        source=ModelSourceConfig(pretrained_checkpoint=str(checkpoint), output_dir=str(tmp_path / "out")),
        tuning=TuningConfig(epochs=1, global_batch_size=6, lr=1e-3, seq_length=48),
    )



def result(folder: Path, name: str = "dev") -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / f"{name}_metrics.json").read_text())
    return found


# ---- The table -----------------------------------------------------------------------------------------------------


def test_labels_words_and_submission_names_are_the_benchmarks() -> None:
    sizes = {"eprstmt": 2, "csldcp": 67, "tnews": 15, "iflytek": 119, "ocnli": 3, "bustm": 2, "chid": 7}
    assert {short(task.name): len(set(task.labels)) for task in FEWCLUE} == {**sizes, "csl": 2, "cluewsc": 2}
    renamed = {name: f"{name}f" for name in ("tnews", "iflytek", "ocnli", "chid", "csl", "cluewsc")}
    for task in FEWCLUE:
        name = short(task.name)
        assert task.test_files == (("test.json", f"{renamed.get(name, name)}_predict.json"),)
        assert task.prompt is not None
        words, blanks = task.prompt.words, task.prompt.pattern.count("[MASK]")
        if name == "chid":
            assert (words, blanks) == ((), 4)
        else:
            assert len(set(words)) == len(words) == len(task.labels)
            assert {len(word) for word in words} == {blanks}
    assert find_task("fewclue-tnews").labels == find_task("tnews").labels
    assert find_task("fewclue-iflytek").labels == find_task("iflytek").labels
    codes = {0: "打车", 10: "社区", 11: "赚钱", 23: "竞技", 52: "两性", 61: "语言", 90: "资讯", 118: "其他"}
    assert {code: APP_CATEGORIES[code] for code in codes} == codes
    assert list(DISCIPLINES)[::33] == ["材料科学与工程", "交通运输工程", "植物保护"]


# ---- Rows ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_official_row_plainly_and_in_its_pattern(name: str, checkpoint: Path, tmp_path: Path) -> None:
    tokenizer = open_pretrained(checkpoint, tmp_path / "none", SINGLE).tokenizer
    task, row = find_task(name), ROWS[short(name)]
    labelled, test = write(tmp_path / "train_0.json", [row]), write(tmp_path / "test.json", unlabelled([row]), "\n")
    prompted = with_prompt(task)
    (example,) = task.read(task, labelled, "train")
    texts, label = (example.pieces, example.answer) if short(name) == "chid" else (example.texts, example.label)
    assert texts == PLAIN[short(name)]
    assert task.labels[label] == str(row["answer"] if short(name) == "chid" else row["label"])

    inputs = read_inputs(prompted, (labelled,), "dev", tokenizer, 64)
    encoded = inputs.encoded
    assert encoded.masks is not None and encoded.candidates is not None
    expected, word = FILLED[short(name)]
    text = "".join(tokenizer.tokens[i] for i in encoded.tokens)
    assert text == f"[CLS]{expected.replace('_', '[MASK]')}[SEP]"
    assert (encoded.tokens[encoded.masks[0]] == tokenizer.mask_id).all()
    assert encoded.candidates.shape == (1, len(task.labels), expected.count("_"))
    assert "".join(tokenizer.tokens[i] for i in encoded.candidates[0, encoded.labels[0]]) == word

    if "id" in row:
        (example,) = prompted.read(prompted, test, "test")
        assert (getattr(example, "answer" if short(name) == "chid" else "label"), example.id) == (None, row["id"])
    else:
        with pytest.raises(UserError, match=r"test\.json, line 1: no key 'id'"):
            prompted.read(prompted, test, "test")


@pytest.mark.parametrize(
    ("name", "values", "message"),
    [
        ("eprstmt", {"label": "Neutral"}, "label 'Neutral' is none of the 2 of fewclue-eprstmt: Positive, Negative"),
        ("csldcp", {"content": None}, "'content' must be a string, not null"),
        ("tnews", {"label": 105}, "label '105' is none of the 15"),
        ("iflytek", {"label": 119}, "label '119' is none of the 119"),
        ("ocnli", {"label": "-"}, "label '-' is none of the 3"),
        ("csl", {"keyword": "桥梁"}, "'keyword' must be a list of strings"),
        ("cluewsc", {"text": "小狗看见鸟，它很高兴。"}, "span1_text '小猫' does not stand at span1_index 0"),
        ("chid", {"content": "今天出门"}, "no #idiom...# in 'content'"),
        ("chid", {"content": "#idiom#和#idiom#"}, "more than one #idiom...# in 'content'"),
        ("chid", {"answer": 7}, "the answer 7 of #idiom# is no index of 7 candidates"),
        ("chid", {"answer": "5"}, "the answer '5' of #idiom# is no index of 7 candidates"),
        ("chid", {"answer": None}, "the answer None of #idiom# is no index of 7 candidates"),
        ("chid", {"answer": True}, "the answer True of #idiom# is no index of 7 candidates"),
    ],
)
def test_bad_rows_are_named(name: str, values: dict[str, Any], message: str, tmp_path: Path) -> None:
    path = write(tmp_path / "train_0.json", [ROWS[name], {**ROWS[name], **values}])
    task = with_prompt(find_task(f"fewclue-{name}"))
    with pytest.raises(UserError) as error:
        task.read(task, path, "train")
    assert str(error.value).startswith(f"{path}, line 2: ") and message in str(error.value)


# ---- Runs ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_every_task_by_its_pattern(
    name: str, config: FinetuneConfig, folders: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Zero-shot and fine-tuned: scores of dev and of the public test, and the submission file."""
    task = find_task(name)
    config = changed(config, "task", task=name, data_dir=str(folders[name]))
    zero = changed(changed(config, "task", prompt=False, zero_shot=True), "source", output_dir=str(tmp_path / "zero"))
    for run in (zero, config):
        finetune(run, SINGLE)
        output = Path(run.source.output_dir)
        assert result(output)["examples"] == 7
        assert result(output, "test_public")["examples"] == 5
        ((_, submission),) = task.test_files
        written = [json.loads(line) for line in (output / submission).read_text().splitlines()]
        assert [row["id"] for row in written] == [3000, 2993, 2986, 2979]
        key = "answer" if short(name) == "chid" else "label"
        assert all(set(row) == {"id", key} for row in written)
        values = {row[key] for row in written}
        assert values <= (set(range(7)) if short(name) == "chid" else set(task.labels))
    assert not (tmp_path / "zero" / "best").exists() and (tmp_path / "out" / "best").exists()
    assert metrics(tmp_path / "zero") == []
    assert [row["split"] for row in metrics(tmp_path / "out")] == ["train", "dev"]
    assert task.prompt is not None and f"pattern: {task.prompt.pattern}" in capsys.readouterr().out


def test_zero_shot_of_zeroclue_and_its_names(config: FinetuneConfig, folders: dict[str, Path], tmp_path: Path) -> None:
    config = changed(config, "task", prompt=False, zero_shot=True)
    finetune(config, SINGLE)
    folder = tmp_path / "zeroclue"
    folder.mkdir()
    for theirs, ours in (("dev.json", "dev_0.json"), ("test.json", "test.json")):
        (folder / theirs).write_bytes((folders["fewclue-tnews"] / ours).read_bytes())
    other = changed(changed(config, "task", data_dir=str(folder)), "source", output_dir=str(tmp_path / "zero"))
    finetune(other, SINGLE)
    assert result(tmp_path / "zero") == result(tmp_path / "out")
    name = "tnewsf_predict.json"
    assert (tmp_path / "zero" / name).read_bytes() == (tmp_path / "out" / name).read_bytes()
    assert not (tmp_path / "zero" / "test_public_metrics.json").exists()


@pytest.mark.parametrize("name", ["fewclue-tnews", "fewclue-chid"])
def test_a_tuned_checkpoint_says_its_prompt_and_is_evaluated_by_it(
    name: str, config: FinetuneConfig, folders: dict[str, Path], tmp_path: Path
) -> None:
    config = changed(config, "task", task=name, data_dir=str(folders[name]))
    finetune(config, SINGLE)
    best = find_checkpoint(tmp_path / "out" / "best", context=SINGLE)
    assert best is not None
    task = find_task(name)
    assert task.prompt is not None
    assert read_config(best)["task"] == {
        "name": name,
        "head": "prompts",
        "labels": list(task.labels),
        "text_columns": list(task.text_columns),
        "seq_length": 48,
        "prompt": {"pattern": task.prompt.pattern, "words": list(task.prompt.words)},
    }
    again = changed(config, "task", prompt=False)
    again = changed(again, "tuning", seq_length=None)
    source = {"pretrained_checkpoint": str(best.parent), "eval_only": True, "output_dir": str(tmp_path / "again")}
    finetune(changed(again, "source", **source), SINGLE)
    for part in ("dev", "test_public"):
        evaluated = result(tmp_path / "again", part)
        assert {key: result(tmp_path / "out", part)[key] for key in evaluated} == evaluated
    ((_, submission),) = task.test_files
    assert (tmp_path / "again" / submission).read_bytes() == (tmp_path / "out" / submission).read_bytes()
    to_huggingface(best.parent, tmp_path / "hub")
    transformers = pytest.importorskip("transformers")
    model, info = transformers.AutoModelForMaskedLM.from_pretrained(tmp_path / "hub", output_loading_info=True)
    assert not info["missing_keys"] and type(model).__name__ == "MegatronBertForMaskedLM"


def test_the_pattern_of_a_checkpoint_holds_for_it() -> None:
    saved = {"pattern": "{0}讲的是[MASK]", "words": ["甲"] * 15}
    task = with_prompt(find_task("fewclue-tnews"), saved)
    assert task.prompt is not None
    assert (task.prompt.pattern, list(task.prompt.words)) == (saved["pattern"], saved["words"])


def test_plain_fine_tuning_has_a_new_head(config: FinetuneConfig, tmp_path: Path) -> None:
    config = changed(config, "task", prompt=False)
    finetune(config, SINGLE)
    best = tmp_path / "out" / "best"
    saved = read_config(next(best.glob("iter_*")))["task"]
    assert saved["head"] == "classification" and "prompt" not in saved
    assert result(tmp_path / "out", "test_public")["examples"] == 5
    source = {"pretrained_checkpoint": str(best), "output_dir": str(tmp_path / "again")}
    with pytest.raises(UserError, match="--prompt: the checkpoint was fine-tuned without"):
        finetune(changed(changed(config, "source", **source, eval_only=True), "task", prompt=True), SINGLE)
    # its encoder has lost the head that fills blanks
    for values in ({"prompt": True}, {"zero_shot": True}):
        with pytest.raises(UserError, match="has no masked-language-model head, which fills the blanks of patterns"):
            finetune(changed(changed(config, "source", **source), "task", **values), SINGLE)


def test_an_encoder_without_the_head_of_masked_words(config: FinetuneConfig, checkpoint: Path, tmp_path: Path) -> None:
    pretrained = open_pretrained(checkpoint, tmp_path / "none", SINGLE)
    encoder = BertForTask(pretrained.model, SINGLE, num_outputs=2, dropout=0.0)
    initialize(encoder, 1)
    saved = {"model": to_dict(pretrained.model), "data": {"tokenizer_type": pretrained.tokenizer.kind}}
    files = {"config.json": json_bytes(saved), "train_state.json": json_bytes({}), **pretrained.tokenizer_files}
    named = [item for item in encoder.named_parameters() if not item[0].startswith("task_head")]
    save_checkpoint(tmp_path / "encoder", 0, model=parameter_pieces(named), optimizer=[], files=files, context=SINGLE)
    config = changed(config, "source", pretrained_checkpoint=str(tmp_path / "encoder"))
    with pytest.raises(UserError, match=r"encoder.* has no masked-language-model head"):
        finetune(config, SINGLE)
    finetune(changed(config, "source", from_scratch=True), SINGLE)


def test_splits_name_the_files(config: FinetuneConfig, folders: dict[str, Path]) -> None:
    folder = folders["fewclue-bustm"]
    for split in ("3", "few_all"):
        for part in ("train", "dev"):
            write(folder / f"{part}_{split}.json", official("fewclue-bustm", 4))
        task = TaskConfig(task="fewclue-bustm", data_dir=str(folder), split=split)  # type: ignore[arg-type]
        files = find_files(task, trained=True)
        assert [path.name for path in files.train + files.dev] == [f"train_{split}.json", f"dev_{split}.json"]
        assert find_files(task, trained=False).train == ()
    with pytest.raises(UserError, match=r"holds no train_4\.json"):
        find_files(dataclasses.replace(task, split="4"), trained=True)


@pytest.mark.parametrize(
    ("section", "values", "message"),
    [
        ("task", {"zero_shot": True, "train_file": ("train_0.json",)}, "--zero-shot reads no --train-file"),
        ("task", {"split": "0", "dev_file": ("dev_0.json",)}, "--split names the training and dev files"),
        ("task", {"task": "fewclue-tnew"}, "unknown task (did you mean fewclue-tnews?)"),
        ("tuning", {"seq_length": 13}, "--seq-length 13 leaves no room for texts"),
    ],
)
def test_mistakes_are_named(config: FinetuneConfig, section: str, values: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as error:
        finetune(changed(config, section, **values), SINGLE)
    assert message in str(error.value)
    assert not (Path(config.source.output_dir) / "best").exists()


def test_zero_shot_needs_no_tuned_checkpoint(config: FinetuneConfig) -> None:
    config = changed(changed(config, "task", zero_shot=True), "source", eval_only=True)
    with pytest.raises(UserError, match="--zero-shot is for a pre-trained checkpoint, so it excludes --eval-only"):
        finetune(config, SINGLE)


def test_the_command_learns_and_writes_its_submission(tmp_path: Path) -> None:
    words = "满意很不。"
    checkpoint = write_checkpoint(tmp_path / "checkpoint", characters=words)
    for name, count in (("train_0", 90), ("dev_0", 40), ("test", 6)):
        rows = []
        for row in range(count):
            text = CHARACTERS[row % 10] + CHARACTERS[10 + row % 7 :]
            rows.append({"id": 100 - row, "sentence": text, "label": "Positive" if row % 10 < 5 else "Negative"})
        write(tmp_path / f"{name}.json", unlabelled(rows) if name == "test" else rows)
    flags = ["--task", "fewclue-eprstmt", "--data-dir", tmp_path, "--pretrained-checkpoint", checkpoint, "--prompt"]
    numbers = ["--epochs", 8, "--lr", 5e-3, "--global-batch-size", 15, "--seq-length", 32]
    done = run_command(*flags, *numbers, "--predict", "--output-dir", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert "pattern: [MASK]满意。{0}" in done.stdout and "random" not in done.stdout
    found = result(tmp_path / "out")
    assert found["accuracy"] > found["majority_accuracy"] + 0.3
    lines = (tmp_path / "out" / "eprstmt_predict.json").read_text().splitlines()
    assert [json.loads(line)["id"] for line in lines] == list(range(100, 94, -1))
    assert re.fullmatch(r'\{"id":100,"label":"(Positive|Negative)"\}', lines[0])


# ---- Real files ----------------------------------------------------------------------------------------------------

COUNTS = {
    "eprstmt": (32, 32, 160, 160, 610),
    "csldcp": (536, 536, 2036, 2068, 1784),
    "tnews": (240, 240, 1185, 1098, 2010),
    "iflytek": (928, 690, 3024, 1373, 1749),
    "ocnli": (32, 32, 160, 160, 2520),
    "bustm": (32, 32, 160, 160, 1772),
    "chid": (42, 42, 202, 202, 2002),
    "csl": (32, 32, 160, 160, 2838),
    "cluewsc": (32, 32, 160, 159, 976),
}
FILES = ("train_0", "dev_0", "train_few_all", "dev_few_all", "test_public")


@pytest.mark.parametrize("name", NAMES)
def test_real_files(name: str, shared_data: Path, tmp_path: Path) -> None:
    """All rows are read and put into patterns whose blanks are whole, with a vocabulary of their characters."""
    folder = shared_data / "tasks" / "FewCLUE" / short(name)
    if not folder.is_dir():
        pytest.skip(f"no {folder.name}")
    task = with_prompt(find_task(name))
    assert task.prompt is not None
    there = {file: path for file in FILES if (path := find_file(folder, f"{file}.json"))}
    assert {"train_0", "dev_0"} <= set(there)
    examples = {file: task.read(task, path, "dev") for file, path in there.items()}
    counts = dict(zip(FILES, COUNTS[short(name)], strict=True))
    assert {file: len(rows) for file, rows in examples.items()} == {file: counts[file] for file in there}
    words = [*task.prompt.words, *(word for e in examples["dev_0"] for word in getattr(e, "candidates", ()))]
    characters = dict.fromkeys("".join([task.prompt.pattern, *words]))
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(c for c in characters if not c.isspace())]
    (tmp_path / "vocab.txt").write_text("".join(token + "\n" for token in tokens), encoding="utf-8")
    tokenizer = load_tokenizer("BertWordPieceCase", vocab_file=tmp_path / "vocab.txt")
    encoded = task.kind.encode(task, examples["dev_0"], tokenizer, 64)
    assert encoded.masks is not None and encoded.candidates is not None
    assert encoded.lengths.max() <= 64
    for start, masks in zip(encoded.offsets, encoded.masks, strict=False):
        assert (encoded.tokens[start + masks] == tokenizer.mask_id).all()
    assert not (encoded.candidates == tokenizer.unk_id).any()
