"""README.md of an exported model: what it is, how to load it, how it was trained."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from megatron import __version__

_CARD = """---
library_name: transformers
tags:
- {model_type}
---

# {name}

A `{class_name}` exported by megatron {version}. Weights are fp32.

```python
from transformers import {auto_class}, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("{name}")
model = {auto_class}.from_pretrained("{name}")
```

## Shape

{shape}

## Training

{training}
"""


def model_card(
    name: str,
    class_name: str,
    auto_class: str,
    config: Mapping[str, Any],
    train_state: Mapping[str, Any],
    model_type: str,
) -> str:
    """The card's text. config, train_state: those of the checkpoint; their plain values are listed.

    auto_class: what loads the model.
    """
    options = {
        key: value
        for section in ("data", "optimizer", "precision", "training")
        for key, value in (config.get(section) or {}).items()
    }
    return _CARD.format(
        name=name,
        class_name=class_name,
        auto_class=auto_class,
        model_type=model_type,
        version=__version__,
        shape=_table(config["model"]),
        training=_table({**train_state, **options}),
    )


def _table(facts: Mapping[str, Any]) -> str:
    """A Markdown table of the facts that are numbers, words or lists of them and are set."""
    rows = ["| | |", "|---|---|"]
    for name, value in facts.items():
        if isinstance(value, list) and all(isinstance(part, str | int | float) for part in value):
            value = " ".join(map(str, value))
        if isinstance(value, str | int | float) and value not in ("", False):
            rows.append(f"| {name.replace('_', ' ')} | {str(value).replace('|', '/')} |")
    return "\n".join(rows)
