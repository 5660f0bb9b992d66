"""What the servers of CLUE and FewCLUE read: names and forms of result files, and the test files that they answer.

From the submission pages of https://github.com/CLUEbenchmark (CLUE, CLUENER2020, FewCLUE, ZeroCLUE) and its issues on
files that scored zero.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Form = Literal["labels", "choices", "answers", "blanks", "spans"]
"""labels: lines `{"id":0,"label":"102"}`, choices: lines with the number of a choice, answers: one object of texts,
blanks: one object of numbers of candidates, spans: lines whose label holds `{type: {mention: [[first, last]]}}`."""


@dataclass(frozen=True, kw_only=True)
class Result:
    """A result file and the test file that it answers.

    test_files: names of it, the first that is there. rows: answers to the official one, None if not published.
    labels: the codes of "labels", the types of "spans". key: where a line has its label or number.
    """

    file: str
    task: str
    form: Form
    labels: tuple[str, ...] = ()
    test_files: tuple[str, ...] = ("test.json",)
    rows: int | None = None
    key: str = "label"
    id_key: str = "id"


@dataclass(frozen=True, kw_only=True)
class Board:
    """A server: the results it scores, and those it reads besides. splits: each may be there for every split."""

    name: str
    results: tuple[Result, ...]
    optional: tuple[Result, ...] = ()
    splits: bool = False

    def find(self, file: str) -> Result | None:
        """The result of a file's name."""
        if self.splits:
            # the guide writes these without the f that ends some names
            name = re.sub(r"_predict_([0-4]|all)\.json$", "_predict.json", file)
            names = (name, name.replace("_predict", "f_predict")) if name != file else (name,)
        else:
            names = (file,)
        return next((result for result in (*self.results, *self.optional) if result.file in names), None)


_NLI = ("contradiction", "entailment", "neutral")
_TRUTH = ("true", "false")
_YES = ("0", "1")
_TOPICS = tuple(str(code) for code in range(100, 117) if code not in (105, 111))
_APPS = tuple(str(code) for code in range(119))
_ENTITIES = tuple("address book company game government movie name organization position scene".split())
_DISCIPLINES = tuple(
    """材料科学与工程 作物学 口腔医学 药学 教育学 水利工程 理论经济学 食品科学与工程 畜牧学/兽医学 体育学
    核科学与技术 力学 园艺学 水产 法学 地质学/地质资源与地质工程 石油与天然气工程 农林经济管理 信息与通信工程
    图书馆、情报与档案管理 政治学 电气工程 海洋科学 民族学 航空宇航科学与技术 化学/化学工程与技术 哲学
    公共卫生与预防医学 艺术学 农业工程 船舶与海洋工程 计算机科学与技术 冶金工程 交通运输工程
    动力工程及工程热物理 纺织科学与工程 建筑学 环境科学与工程 公共管理 数学 物理学 林学/林业工程 心理学 历史学
    工商管理 应用经济学 中医学/中药学 天文学 机械工程 土木工程 光学工程 地理学 农业资源利用 生物学/生物科学与工程
    兵器科学与技术 矿业工程 大气科学 基础医学/临床医学 电子科学与技术 测绘科学与技术 控制科学与工程 军事学
    中国语言文学 新闻传播学 社会学 地球物理学 植物保护""".split()
)

_AFQMC = Result(file="afqmc_predict.json", task="afqmc", form="labels", labels=_YES, rows=3861)
_IFLYTEK = Result(file="iflytek_predict.json", task="iflytek", form="labels", labels=_APPS, rows=2600)
_CSL = Result(file="csl_predict.json", task="csl", form="labels", labels=_YES, rows=3000)
_CMRC = Result(file="cmrc2018_predict.json", task="cmrc2018", form="answers", rows=2000)
_CLUENER = Result(file="cluener_predict.json", task="cluener2020", form="spans", labels=_ENTITIES, rows=1345)
_DIAGNOSTICS = Result(
    file="diagnostics_predict.json",
    task="cmnli",
    form="labels",
    labels=_NLI,
    test_files=("diagnostics_test.json",),
    rows=514,
    id_key="index",
)
_FIRST, _SECOND = ("test1.0.json",), ("test1.1.json", "test.json")

CLUE_11 = Board(
    name="clue1.1",
    results=(
        _AFQMC,
        Result(file="tnews11_predict.json", task="tnews", form="labels", labels=_TOPICS, rows=10000),
        _IFLYTEK,
        Result(file="ocnli_50k_predict.json", task="ocnli", form="labels", labels=_NLI, rows=3000),
        Result(file="cluewsc11_predict.json", task="cluewsc2020", form="labels", labels=_TRUTH, rows=2574),
        _CSL,
        _CMRC,
        Result(file="chid11_predict.json", task="chid", form="blanks", test_files=_SECOND),
        Result(file="c311_predict.json", task="c3", form="choices", test_files=_SECOND, rows=1625),
    ),
    optional=(_CLUENER, _DIAGNOSTICS),
)

CLUE_10 = Board(
    name="clue1.0",
    results=(
        _AFQMC,
        Result(file="tnews10_predict.json", task="tnews", form="labels", labels=_TOPICS, test_files=_FIRST, rows=10000),
        _IFLYTEK,
        Result(file="cmnli_predict.json", task="cmnli", form="labels", labels=_NLI, rows=13880),
        Result(
            file="cluewsc10_predict.json", task="cluewsc2020", form="labels", labels=_TRUTH, test_files=_FIRST, rows=290
        ),
        _CSL,
        _CMRC,
        Result(file="drcd_predict.json", task="drcd", form="answers", test_files=("test.json", "DRCD_test.json")),
        Result(file="chid10_predict.json", task="chid", form="blanks", test_files=_FIRST),
        Result(file="c310_predict.json", task="c3", form="choices", test_files=_FIRST, rows=3892),
    ),
    optional=(_CLUENER, _DIAGNOSTICS),
)


def _few(stem: str, labels: tuple[str, ...], rows: int) -> Result:
    task = f"fewclue-{stem.removesuffix('f')}"
    return Result(file=f"{stem}_predict.json", task=task, form="labels", labels=labels, rows=rows)


FEWCLUE = Board(
    name="fewclue",
    results=(
        _few("eprstmt", ("Positive", "Negative"), 753),
        _few("csldcp", _DISCIPLINES, 2999),
        _few("tnewsf", _TOPICS, 1500),
        _few("iflytekf", _APPS, 2600),
        _few("ocnlif", _NLI, 3000),
        _few("bustm", _YES, 2000),
        Result(file="chidf_predict.json", task="fewclue-chid", form="choices", rows=2000, key="answer"),
        _few("cslf", _YES, 3000),
        _few("cluewscf", _TRUTH, 290),
    ),
    splits=True,
)

BOARDS = (CLUE_11, CLUE_10, FEWCLUE)


def task_folder(root: Path, task: str) -> Path | None:
    """The folder of a task's files under that of all tasks, in upper or lower case, if it is there.

    As the tasks' own archives are called, too (cluewsc2020_public); those of FewCLUE stand in a folder of that name.
    """
    name = task.removeprefix("fewclue-")
    if name != task:
        few = ("fewclue", "zeroclue", "datasets")
        below = next((path for path in _folders(root) if path.name.lower() in few), None)
        if below is not None:
            return task_folder(below, task)
        if root.name.lower() not in few:
            return None
    short = re.sub(r"20\d\d$", "", name)
    names = (name, f"{name}_public", short, f"{short}_public")
    there = {path.name.lower(): path for path in _folders(root)}
    return next((there[each] for each in names if each in there), None)


def _folders(root: Path) -> list[Path]:
    return sorted(path for path in root.iterdir() if path.is_dir()) if root.is_dir() else []
