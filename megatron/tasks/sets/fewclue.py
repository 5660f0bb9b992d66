"""FewCLUE (https://github.com/CLUEbenchmark/FewCLUE) and ZeroCLUE: nine tasks with few labelled examples, or none.

Files, keys, labels and submission names are the benchmark's. Patterns, words and their hyper-parameters are those of
its PET baseline; without a pattern a task is fine-tuned as its like of CLUE.
"""

from __future__ import annotations

from typing import Any

from megatron.tasks.kinds.choices import choice_scores
from megatron.tasks.kinds.classification import columns, text_parser, text_reader, text_task
from megatron.tasks.kinds.cloze import CLOZE
from megatron.tasks.readers import Row
from megatron.tasks.sets.choices import chid_answers, parse_chid, read_chid
from megatron.tasks.sets.clue import NLI_LABELS, keywords_and_abstract, marked_pronoun, marked_spans
from megatron.tasks.task import Hyperparameters, Prompt, Task

# Disciplines of CSLDCP in the order of the benchmark's list, each with the word that stands for it in a pattern.
DISCIPLINES = {
    "材料科学与工程": "材料",
    "作物学": "作物",
    "口腔医学": "口腔",
    "药学": "药学",
    "教育学": "教育",
    "水利工程": "水利",
    "理论经济学": "理经",
    "食品科学与工程": "食品",
    "畜牧学/兽医学": "兽医",
    "体育学": "体育",
    "核科学与技术": "核能",
    "力学": "力学",
    "园艺学": "园艺",
    "水产": "水产",
    "法学": "法学",
    "地质学/地质资源与地质工程": "地质",
    "石油与天然气工程": "能源",
    "农林经济管理": "农林",
    "信息与通信工程": "通信",
    "图书馆、情报与档案管理": "情报",
    "政治学": "政治",
    "电气工程": "电气",
    "海洋科学": "海洋",
    "民族学": "民族",
    "航空宇航科学与技术": "航空",
    "化学/化学工程与技术": "化工",
    "哲学": "哲学",
    "公共卫生与预防医学": "卫生",
    "艺术学": "艺术",
    "农业工程": "农工",
    "船舶与海洋工程": "船舶",
    "计算机科学与技术": "计科",
    "冶金工程": "冶金",
    "交通运输工程": "交通",
    "动力工程及工程热物理": "动力",
    "纺织科学与工程": "纺织",
    "建筑学": "建筑",
    "环境科学与工程": "环境",
    "公共管理": "公管",
    "数学": "数学",
    "物理学": "物理",
    "林学/林业工程": "林业",
    "心理学": "心理",
    "历史学": "历史",
    "工商管理": "工商",
    "应用经济学": "应经",
    "中医学/中药学": "中医",
    "天文学": "天文",
    "机械工程": "机械",
    "土木工程": "土木",
    "光学工程": "光学",
    "地理学": "地理",
    "农业资源利用": "农资",
    "生物学/生物科学与工程": "生物",
    "兵器科学与技术": "兵器",
    "矿业工程": "矿业",
    "大气科学": "大气",
    "基础医学/临床医学": "医学",
    "电子科学与技术": "电子",
    "测绘科学与技术": "测绘",
    "控制科学与工程": "控制",
    "军事学": "军事",
    "中国语言文学": "语言",
    "新闻传播学": "新闻",
    "社会学": "社会",
    "地球物理学": "地球",
    "植物保护": "植物",
}

# Words of the 119 categories of IFLYTEK, in the order of their codes.
APP_CATEGORIES = (
    "打车 地图 免费 租车 同城 快递 婚庆 家政 交通 政务 社区 赚钱 魔幻 仙侠 卡牌 飞行 射击 休闲 动作 体育 "
    "棋牌 养成 策略 竞技 辅助 约会 通讯 工作 论坛 婚恋 情侣 社交 生活 博客 新闻 漫画 小说 技术 教辅 问答 "
    "搞笑 杂志 百科 影视 求职 兼职 视频 短视 音乐 直播 电台 唱歌 两性 小学 职考 公务 英语 在线 教育 成人 "
    "艺术 语言 旅游 预定 民航 铁路 酒店 行程 民宿 出国 工具 亲子 母婴 驾校 违章 汽车 买车 养车 行车 租房 "
    "买房 装修 电子 挂号 养生 医疗 减肥 美妆 菜谱 餐饮 资讯 运动 支付 保险 股票 借贷 理财 彩票 记账 银行 "
    "美颜 影像 摄影 相机 绘画 二手 电商 团购 外卖 票务 超市 购物 笔记 办公 日程 女性 经营 收款 其他"
).split()

TOPICS = {
    "100": "故事",
    "101": "文化",
    "102": "娱乐",
    "103": "体育",
    "104": "财经",
    "106": "房产",
    "107": "汽车",
    "108": "教育",
    "109": "科技",
    "110": "军事",
    "112": "旅游",
    "113": "国际",
    "114": "股票",
    "115": "农业",
    "116": "电竞",
}

def keywords_with_commas(row: Row) -> tuple[str, ...]:
    """The texts of CSL's pattern: the keywords joined by a comma, and the abstract."""
    return "，".join(row.texts("keyword")), row.text("abst")


def explained_pronoun(row: Row) -> tuple[str, ...]:
    """The text of CLUEWSC's pattern: what the noun and the pronoun are stands behind them."""
    return (marked_spans(row, ("", "（这是实体）"), ("", "（这是代词）")),)


# ZeroCLUE has FewCLUE's dev_0.json under the name dev.json.
_FILES: dict[str, Any] = {
    "train_files": ("train_0.json",),
    "dev_files": ("dev_0.json", "dev.json"),
    "scored_files": ("test_public.json",),
}
_FEW = Hyperparameters(epochs=20, lr=2e-5)
_PET = Hyperparameters(epochs=20, lr=1e-5)

FEWCLUE = (
    text_task(
        name="fewclue-eprstmt",
        texts=columns("sentence"),
        labels=("Positive", "Negative"),
        prompt=Prompt(pattern="[MASK]满意。{0}", words=("很", "不"), defaults=_PET),
        **_FILES,
        test_files=(("test.json", "eprstmt_predict.json"),),
        defaults=_FEW,
    ),
    text_task(
        name="fewclue-csldcp",
        texts=columns("content"),
        labels=tuple(DISCIPLINES),
        prompt=Prompt(pattern="这篇[MASK][MASK]论文阐述了{0}", words=tuple(DISCIPLINES.values()), defaults=_PET),
        **_FILES,
        test_files=(("test.json", "csldcp_predict.json"),),
        defaults=_FEW,
    ),
    text_task(
        name="fewclue-tnews",
        texts=columns("sentence"),
        labels=tuple(TOPICS),
        prompt=Prompt(pattern="下面报导一则[MASK][MASK]新闻。{0}", words=tuple(TOPICS.values()), defaults=_PET),
        **_FILES,
        test_files=(("test.json", "tnewsf_predict.json"),),
        defaults=_FEW,
    ),
    text_task(
        name="fewclue-iflytek",
        texts=columns("sentence"),
        labels=tuple(str(code) for code in range(119)),
        prompt=Prompt(pattern="做为一款[MASK][MASK]应用，{0}", words=tuple(APP_CATEGORIES), defaults=_PET),
        **_FILES,
        test_files=(("test.json", "iflytekf_predict.json"),),
        defaults=_FEW,
    ),
    text_task(
        name="fewclue-ocnli",
        texts=columns("sentence1", "sentence2"),
        labels=NLI_LABELS,
        prompt=Prompt(
            pattern="{0}？[MASK][MASK],{1}",
            words=("不是", "是的", "并且"),
            defaults=Hyperparameters(epochs=20, lr=3e-5, seq_length=256),
        ),
        **_FILES,
        test_files=(("test.json", "ocnlif_predict.json"),),
        defaults=_FEW,
    ),
    text_task(
        name="fewclue-bustm",
        texts=columns("sentence1", "sentence2"),
        labels=("0", "1"),
        prompt=Prompt(pattern="{0}和{1}意思[MASK]同", words=("不", "相"), defaults=Hyperparameters(epochs=20, lr=3e-5)),
        **_FILES,
        test_files=(("test.json", "bustm_predict.json"),),
        defaults=_FEW,
    ),
    Task(
        name="fewclue-chid",
        kind=CLOZE,
        labels=tuple(str(number) for number in range(7)),
        read=read_chid,
        scores=choice_scores,
        submission=chid_answers,
        parse=parse_chid,
        prompt=Prompt(pattern="{0}[MASK][MASK][MASK][MASK]{1}", defaults=_PET),
        **_FILES,
        test_files=(("test.json", "chidf_predict.json"),),
        defaults=_FEW,
    ),
    text_task(
        name="fewclue-csl",
        texts=keywords_and_abstract,
        text_columns=("keywords", "abst"),
        labels=("0", "1"),
        truncate="second",
        prompt=Prompt(
            pattern="[MASK][MASK]用{0}概括{1}",
            words=("不能", "可以"),
            read=text_reader(keywords_with_commas),
            parse=text_parser(keywords_with_commas),
            defaults=Hyperparameters(epochs=20, lr=1e-5, seq_length=256),
        ),
        **_FILES,
        test_files=(("test.json", "cslf_predict.json"),),
        defaults=Hyperparameters(epochs=20, lr=2e-5, seq_length=256),
    ),
    text_task(
        name="fewclue-cluewsc",
        texts=marked_pronoun,
        text_columns=("text",),
        labels=("true", "false"),
        # The published script has these words the wrong way round.
        prompt=Prompt(
            pattern="下面句子的指代关系正确吗？[MASK][MASK]。{0}",
            words=("正确", "错误"),
            read=text_reader(explained_pronoun),
            parse=text_parser(explained_pronoun),
            defaults=Hyperparameters(epochs=20, lr=8e-5),
        ),
        **_FILES,
        test_files=(("test.json", "cluewscf_predict.json"),),
        defaults=_FEW,
    ),
)
