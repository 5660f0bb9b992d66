"""Tokenizer files of a checkpoint as those of a Hugging Face folder, and back.

A checkpoint holds vocab.txt (WordPiece) or tokenizer.model (SentencePiece); its configuration says which kind.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron.checkpoint.files import read_json, write_json
from megatron.errors import UserError
from megatron.files import durable_file

VOCABULARY = "vocab.txt"
SENTENCEPIECE_MODEL = "tokenizer.model"
CASED, UNCASED, SENTENCEPIECE = "BertWordPieceCase", "BertWordPieceLowerCase", "SentencePieceTokenizer"

SPECIAL_TOKENS = {
    "unk_token": "[UNK]",
    "sep_token": "[SEP]",
    "pad_token": "[PAD]",
    "cls_token": "[CLS]",
    "mask_token": "[MASK]",
}


@dataclass(frozen=True, kw_only=True)
class TokenizerFile:
    """kind: a value of --tokenizer-type. name: the file in a checkpoint. content: its bytes."""

    kind: str
    name: str
    content: bytes

    @property
    def tokens(self) -> list[str]:
        """Id -> token. Raises `UserError` if the vocabulary is not UTF-8."""
        if self.kind == SENTENCEPIECE:
            processor = _sentencepiece(self.content)
            return [processor.id_to_piece(number) for number in range(processor.get_piece_size())]
        try:
            lines = self.content.decode("utf-8").replace("\r\n", "\n").split("\n")
        except UnicodeDecodeError:
            raise UserError(f"{self.name} is not UTF-8") from None
        return lines[:-1] if lines[-1] == "" else lines


def read_checkpoint_tokenizer(checkpoint: Path, kind: str) -> TokenizerFile | None:
    """The tokenizer in a checkpoint; None if it holds none."""
    name = SENTENCEPIECE_MODEL if kind == SENTENCEPIECE else VOCABULARY
    path = checkpoint / name
    return TokenizerFile(kind=kind, name=name, content=path.read_bytes()) if path.is_file() else None


def write_hub_tokenizer(tokenizer: TokenizerFile, folder: Path, max_length: int) -> tuple[str, ...]:
    """Write the files from which AutoTokenizer makes a tokenizer with the same ids. Returns what the user should know.

    max_length: tokens that the model's position table has room for.
    """
    with durable_file(folder / tokenizer.name) as file:
        file.write(tokenizer.content)
    settings: dict[str, Any] = {**SPECIAL_TOKENS, "model_max_length": max_length}
    settings["model_input_names"] = ["input_ids", "token_type_ids", "attention_mask"]
    if tokenizer.kind == SENTENCEPIECE:
        missing = _write_tokenizer_json(tokenizer.content, folder / "tokenizer.json")
        if missing is not None:
            return (
                f"AutoTokenizer cannot load the folder ({missing}); encode with {tokenizer.name} and sentencepiece",
            )
        settings["tokenizer_class"] = "PreTrainedTokenizerFast"
    else:
        lower_case = tokenizer.kind == UNCASED
        # strip_accents null: as do_lower_case says, which is what the original BERT does.
        settings |= {"tokenizer_class": "BertTokenizer", "do_lower_case": lower_case}
        settings |= {"strip_accents": None, "tokenize_chinese_chars": True}
    write_json(folder / "tokenizer_config.json", settings)
    write_json(folder / "special_tokens_map.json", SPECIAL_TOKENS)
    return ()


def read_hub_tokenizer(folder: Path) -> tuple[TokenizerFile | None, tuple[str, ...]]:
    """The tokenizer of a Hugging Face folder and notices; None if there is none.

    vocab.txt, or the vocabulary inside tokenizer.json, which is all that transformers 5 writes; case as
    tokenizer_config.json or tokenizer.json says. Raises `UserError` for settings that give other ids than ours.
    """
    if (folder / SENTENCEPIECE_MODEL).is_file() and not (folder / VOCABULARY).is_file():
        content = (folder / SENTENCEPIECE_MODEL).read_bytes()
        return TokenizerFile(kind=SENTENCEPIECE, name=SENTENCEPIECE_MODEL, content=content), ()
    config_path, json_path = folder / "tokenizer_config.json", folder / "tokenizer.json"
    config = read_json(config_path) if config_path.is_file() else {}
    whole = read_json(json_path) if json_path.is_file() else {}
    if (folder / VOCABULARY).is_file():
        content = (folder / VOCABULARY).read_bytes()
    elif whole:
        content = _vocabulary_of_json(whole, json_path)
    else:
        return None, (f"{folder} has no {VOCABULARY}; give training the vocabulary of these weights",)
    notices: tuple[str, ...] = ()
    normalizer = whole.get("normalizer")
    normalizer = normalizer if isinstance(normalizer, dict) else {}
    settings = {
        "do_lower_case": config.get("do_lower_case", normalizer.get("lowercase")),
        "strip_accents": config.get("strip_accents", normalizer.get("strip_accents")),
        "tokenize_chinese_chars": config.get("tokenize_chinese_chars", normalizer.get("handle_chinese_chars", True)),
    }
    if settings["do_lower_case"] is None:
        settings["do_lower_case"] = True
        notices = ("the folder does not say do_lower_case; taken as true, the default of transformers",)
    if settings["strip_accents"] not in (None, settings["do_lower_case"]) or not settings["tokenize_chinese_chars"]:
        raise UserError(
            f"{folder}: strip_accents must be as do_lower_case, and tokenize_chinese_chars true; the tokenizer has "
            f"{settings}"
        )
    kind = UNCASED if settings["do_lower_case"] else CASED
    return TokenizerFile(kind=kind, name=VOCABULARY, content=content), notices


def _vocabulary_of_json(whole: dict[str, Any], path: Path) -> bytes:
    """The lines of vocab.txt from a tokenizer.json."""
    model = whole.get("model")
    model = model if isinstance(model, dict) else {}
    ids = dict(model["vocab"]) if isinstance(model.get("vocab"), dict) else {}
    for token in whole.get("added_tokens") or []:
        if isinstance(token, dict) and "content" in token and "id" in token:
            ids[token["content"]] = token["id"]
    if not ids or model.get("type", "WordPiece") != "WordPiece":
        raise UserError(f"{path} is no WordPiece tokenizer; only WordPiece vocabularies can be converted")
    tokens = {number: token for token, number in ids.items()}
    if sorted(tokens, key=str) != sorted(range(len(ids)), key=str) or any("\n" in token for token in ids):
        raise UserError(f"{path}: the ids of its vocabulary do not run from 0 without gaps")
    return "".join(f"{tokens[number]}\n" for number in range(len(ids))).encode()


def _sentencepiece(content: bytes) -> Any:
    try:
        import sentencepiece
    except ImportError:
        raise UserError("a SentencePiece model needs the package sentencepiece: pip install sentencepiece") from None
    try:
        return sentencepiece.SentencePieceProcessor(model_proto=content)
    except RuntimeError as error:
        raise UserError(f"{SENTENCEPIECE_MODEL} is not a SentencePiece model: {error}") from None


def _write_tokenizer_json(content: bytes, path: Path) -> str | None:
    """Write a SentencePiece model as tokenizer.json. Returns the reason where that is not possible.

    Ids are those of SentencePiece, but where two ways to cut a unigram text have equal scores, as in a run of one
    character, `tokenizers` may choose the other one.
    """
    try:
        from sentencepiece import sentencepiece_model_pb2
    except ImportError:
        return "reading its model needs the packages sentencepiece and protobuf"
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

    proto = sentencepiece_model_pb2.ModelProto.FromString(content)  # type: ignore[attr-defined]
    trainer, normalizer = proto.trainer_spec, proto.normalizer_spec
    if not normalizer.add_dummy_prefix or not normalizer.remove_extra_whitespaces:
        return "its SentencePiece model keeps white space"
    ids = {piece.piece: number for number, piece in enumerate(proto.pieces)}
    if not {"[CLS]", "[SEP]"} <= set(ids):
        return "its SentencePiece model has no [CLS] and [SEP]"
    if trainer.model_type == trainer.UNIGRAM:
        scores = [(piece.piece, piece.score) for piece in proto.pieces]
        tokenizer = Tokenizer(models.Unigram(scores, trainer.unk_id, trainer.byte_fallback))
    elif trainer.model_type == trainer.BPE:
        unknown = proto.pieces[trainer.unk_id].piece
        merges = _merges({piece.piece: piece.score for piece in proto.pieces if piece.type == piece.NORMAL})
        tokenizer = Tokenizer(
            models.BPE(ids, merges, unk_token=unknown, fuse_unk=True, byte_fallback=trainer.byte_fallback)
        )
    else:
        return "its SentencePiece model is neither unigram nor BPE"
    steps = [normalizers.Strip(), normalizers.Replace(Regex(" {2,}"), " ")]
    if normalizer.precompiled_charsmap:
        steps.insert(0, normalizers.Precompiled(normalizer.precompiled_charsmap))
    tokenizer.normalizer = normalizers.Sequence(steps)
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always", split=False)
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="always", split=False)
    tokenizer.add_special_tokens(
        [AddedToken(token, normalized=False) for token in SPECIAL_TOKENS.values() if token in ids]
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS]:0 $A:0 [SEP]:0",
        pair="[CLS]:0 $A:0 [SEP]:0 $B:1 [SEP]:1",
        special_tokens=[(token, ids[token]) for token in ("[CLS]", "[SEP]")],
    )
    with durable_file(path) as file:
        file.write(tokenizer.to_str(pretty=True).encode())
    return None


def _merges(scores: dict[str, float]) -> list[tuple[str, str]]:
    """The merges of a BPE model, which SentencePiece does not store: all cuts of a piece into two, best piece first."""
    pieces = sorted((piece for piece in scores if len(piece) > 1), key=lambda piece: -scores[piece])
    cuts = ((piece[:at], piece[at:]) for piece in pieces for at in range(1, len(piece)))
    return [(left, right) for left, right in cuts if left in scores and right in scores]
