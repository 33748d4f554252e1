"""Instructions as token ids: the released Qwen2.5 vocabulary, or a compact one made of the corpus's own words.

Both begin with one special token, after which the model splices the vision tokens in, and both apply the prompt
template, so that training, evaluation and the server cannot phrase an instruction differently.
"""

import hashlib
import json
import re
from collections.abc import Iterable
from collections.abc import Mapping
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from typing import Protocol

import numpy as np

from pokevla_jax.config import DataConfig
from pokevla_jax.data.codec import DataError
from pokevla_jax.typing import Bool
from pokevla_jax.typing import Int

# The conversation that VLA-Adapter, the code PokeVLA grew from, wraps every prompt in. It is spelled out because the
# chat template that comes with a tokenizer differs between Qwen2.5's base and instruct models.
QWEN_CHAT = (
    "<|im_start|>system\nYou are Qwen, created by Alibaba Cloud. You are a helpful assistant.<|im_end|>\n"
    "<|im_start|>user\n{prompt}<|im_end|>\n<|im_start|>assistant\n"
)
# The same conversation in pieces, for several turns; it ends with <|endoftext|> where the last newline would be.
_QWEN_SYSTEM = QWEN_CHAT.partition("<|im_start|>user")[0]
_QWEN_USER = "<|im_start|>user\n{text}<|im_end|>\n<|im_start|>assistant\n"
_QWEN_TURN, _QWEN_TEXT = "<|im_end|>", "<|endoftext|>"
_QWEN_END, _QWEN_LAST = f"{_QWEN_TURN}\n", f"{_QWEN_TURN}{_QWEN_TEXT}"
_WORD = re.compile(r"\w+|[^\w\s]")
_SPECIALS = ("<pad>", "<unk>", "<bos>")
# Words that no text contains, since _WORD splits them: an answer begins, a turn ends.
_ANSWER, _END = "<answer>", "<end>"
_DECIMALS = re.compile(r"\d\.\d{3}(?!\d)")


class Tokenizer(Protocol):
    """Turns an instruction into the ids of the whole prompt.

    Attributes:
        vocab_size: ids are below it.
        pad_id: fills the positions behind a prompt.
        end_ids: each ends an answer; empty where the vocabulary was made for instructions only.
    """

    vocab_size: int
    pad_id: int
    end_ids: tuple[int, ...]

    def encode(self, instruction: str) -> list[int]:
        """Ids of the prompt for this instruction, template applied, instruction in lower case."""

    def encode_conversation(self, turns: Sequence[str]) -> tuple[list[int], list[bool]]:
        """Ids of a stage-1 conversation, and which of them an answer consists of.

        Args:
            turns: question, answer, question, ... as plain text. After a last question the ids end where the network
                starts to answer.
        """

    def decode(self, ids: Sequence[int]) -> str:
        """The text of an answer, up to the end of its turn."""

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types from which ``from_json`` makes an equal tokenizer."""


class CompactTokenizer:
    """One id per word of the corpus; what it has never seen becomes ``<unk>``."""

    def __init__(self, words: Sequence[str], prompt_template: str):
        self.words = tuple(words)
        self.prompt_template = _checked_template(prompt_template)
        self.pad_id = 0
        self.vocab_size = len(_SPECIALS) + len(self.words)
        self._ids = {word: index for index, word in enumerate(self.tokens)}
        self.end_ids: tuple[int, ...] = (self._ids[_END],) if _END in self._ids else ()

    @property
    def tokens(self) -> tuple[str, ...]:
        """The token of every id."""
        return (*_SPECIALS, *self.words)

    @classmethod
    def from_corpus(cls, corpus: Iterable[str], prompt_template: str) -> "CompactTokenizer":
        """A vocabulary of all words in the templated instructions, in alphabetical order."""
        _checked_template(prompt_template)
        prompts = {_prompt(prompt_template, instruction) for instruction in (*corpus, "")}
        return cls(sorted({word for prompt in prompts for word in _WORD.findall(prompt)}), prompt_template)

    def encode(self, instruction: str) -> list[int]:
        words = _WORD.findall(_prompt(self.prompt_template, instruction))
        return [self._ids["<bos>"], *(self._ids.get(word, self._ids["<unk>"]) for word in words)]

    @classmethod
    def from_conversations(cls, texts: Iterable[str], prompt_template: str) -> "CompactTokenizer":
        """A vocabulary of all words of questions, answers and instructions, in alphabetical order.

        Instructions are templated too, so that stage 2 can go on with the same vocabulary. Where coordinates with three
        decimals occur, every such coordinate has a token: others will be asked for.
        """
        words: set[str] = set(_WORD.findall(_prompt(_checked_template(prompt_template), "")))
        decimals = False
        for text in texts:
            words.update(_WORD.findall(text.lower()))
            decimals = decimals or bool(_DECIMALS.search(text))
        if decimals:
            words.update(f"{number:03d}" for number in range(1000))
            words.update("01.")
        return cls([_ANSWER, _END, *sorted(words)], prompt_template)

    def encode_conversation(self, turns: Sequence[str]) -> tuple[list[int], list[bool]]:
        if _ANSWER not in self._ids or _END not in self._ids:
            raise DataError("This vocabulary was made for instructions only; make one from conversations for stage 1")
        ids, is_answer = [self._ids["<bos>"]], [False]
        for index, text in enumerate(turns):
            words = [self._ids.get(word, self._ids["<unk>"]) for word in _WORD.findall(text.lower())]
            words.append(self._ids[_END if index % 2 else _ANSWER])
            ids += words
            is_answer += [bool(index % 2)] * len(words)
        return ids, is_answer

    def decode(self, ids: Sequence[int]) -> str:
        names, words = self.tokens, []
        for index in ids:
            if names[index] == _END:
                break
            if names[index] not in ("<pad>", "<bos>", _ANSWER):
                words.append(names[index])
        text = " ".join(words)
        text = re.sub(r"(?<=\d) \. (?=\d)", ".", text)
        text = re.sub(r" (?=[,.;:?!)\]'])", "", text)
        return re.sub(r"(?<=[(\[']) ", "", text)

    def to_json(self) -> dict[str, Any]:
        return {"kind": "compact", "words": list(self.words), "prompt_template": self.prompt_template}


class QwenTokenizer:
    """The Qwen2.5 tokenizer of a folder (or hub id) with the reference's chat template."""

    def __init__(self, path: str, prompt_template: str):
        self.path = str(path)
        self.prompt_template = _checked_template(prompt_template)
        self._tokenizer = _load_transformers(self.path)
        self._fingerprint: str | None = None
        self.pad_id = self._tokenizer.pad_token_id
        self.vocab_size = len(self._tokenizer)
        self.end_ids = tuple(self._tokenizer.convert_tokens_to_ids(token) for token in (_QWEN_TURN, _QWEN_TEXT))

    def encode(self, instruction: str) -> list[int]:
        check_text(instruction)
        prompt = self.prompt_template.format(instruction=instruction.strip().lower())
        return list(self._tokenizer(QWEN_CHAT.format(prompt=prompt))["input_ids"])

    def encode_conversation(self, turns: Sequence[str]) -> tuple[list[int], list[bool]]:
        pieces: list[tuple[str, bool]] = [(_QWEN_SYSTEM, False)]
        for index, text in enumerate(turns):
            check_text(text)
            if index % 2 == 0:
                pieces.append((_QWEN_USER.format(text=text.strip()), False))
            else:
                pieces.append(((text.strip() or " ") + (_QWEN_LAST if index + 1 == len(turns) else _QWEN_END), True))
        ids: list[int] = []
        is_answer: list[bool] = []
        # Every piece starts or ends at a control token or a newline, where Qwen's tokenizer splits anyway: piece by
        # piece gives the ids of the whole text.
        for piece, flag in pieces:
            encoded = self._tokenizer(piece)["input_ids"]
            ids += encoded
            is_answer += [flag] * len(encoded)
        return ids, is_answer

    def decode(self, ids: Sequence[int]) -> str:
        text = self._tokenizer.decode(list(ids), skip_special_tokens=False)
        return text.partition(_QWEN_TURN)[0].partition(_QWEN_TEXT)[0]

    def to_json(self) -> dict[str, Any]:
        return {
            "kind": "qwen",
            "path": self.path,
            "fingerprint": self.fingerprint(),
            "prompt_template": self.prompt_template,
        }

    def save(self, folder: str | Path) -> None:
        """Writes the vocabulary's files, ``tokenizer.json`` among them, into a folder."""
        self._tokenizer.save_pretrained(str(folder))

    def fingerprint(self) -> str:
        """Digest of the vocabulary: a checkpoint names its tokenizer by it, wherever the files lie."""
        if self._fingerprint is None:
            vocabulary = json.dumps(sorted(self._tokenizer.get_vocab().items()))
            self._fingerprint = hashlib.sha256(vocabulary.encode()).hexdigest()
        return self._fingerprint


def check_text(text: str) -> None:
    """Raises ``DataError`` for text that could be read as a control token and end a turn."""
    if "<|" in text:
        raise DataError(f"Text {text[:80]!r} contains '<|', which starts a control token; remove it")


def count_words(turns: Sequence[str]) -> int:
    """Ids of a conversation under any compact vocabulary: words and marks of all turns, and the start."""
    return 1 + sum(len(_WORD.findall(text.lower())) + 1 for text in turns)


def load_tokenizer(
    spec: str,
    corpus: Iterable[str] | None = None,
    *,
    prompt_template: str = DataConfig.prompt_template,
) -> Tokenizer:
    """The tokenizer that ``config.data.tokenizer`` names.

    Args:
        spec: ``"compact"``, a JSON file with what ``to_json`` gave (as in a checkpoint's assets), or a folder or hub id
            that holds Qwen2.5's tokenizer.
        corpus: instructions whose words a compact vocabulary consists of.
        prompt_template: contains ``{instruction}``.
    """
    if spec.endswith(".json"):
        try:
            values = json.loads(Path(spec).read_text())
            return from_json(values.get("tokenizer", values))
        except (ValueError, AttributeError) as error:
            raise DataError(f"Tokenizer file {spec} cannot be used: {error}") from error
    if spec != "compact":
        return QwenTokenizer(spec, prompt_template)
    if corpus is None:
        raise DataError("A compact tokenizer is made from the instructions of a dataset; give it a corpus")
    return CompactTokenizer.from_corpus(corpus, prompt_template)


def from_json(values: Mapping[str, Any], *, path: str | None = None) -> Tokenizer:
    """The tokenizer stored in a checkpoint.

    Args:
        values: what ``Tokenizer.to_json`` returned.
        path: where Qwen2.5's files lie on this machine, if not where they lay in training.

    Raises:
        DataError: when the description is unknown or the files hold another vocabulary.
        FileNotFoundError: when the files are not there.
    """
    try:
        if values["kind"] == "compact":
            return CompactTokenizer(values["words"], values["prompt_template"])
        if values["kind"] == "qwen":
            tokenizer = QwenTokenizer(path or values["path"], values["prompt_template"])
            if tokenizer.fingerprint() != values["fingerprint"]:
                raise DataError(f"{tokenizer.path} holds another vocabulary than the checkpoint was trained with")
            return tokenizer
    except KeyError as error:
        raise DataError(f"The checkpoint's tokenizer lacks {error}; take the file from an intact copy") from error
    raise DataError(f"The checkpoint's tokenizer is of unknown kind {values['kind']!r}; known: compact, qwen")


def pad_prompt(ids: Sequence[int], length: int, pad_id: int) -> tuple[Int[np.ndarray, " l"], Bool[np.ndarray, " l"]]:
    """The ids right padded to ``length``, and which positions are real.

    Raises:
        DataError: when the prompt is longer.
    """
    if len(ids) > length:
        raise DataError(
            f"A prompt of {len(ids)} tokens does not fit config.model.max_prompt_length {length}; raise it to "
            f"{len(ids)} or shorten the instruction"
        )
    tokens = np.full(length, pad_id, np.int32)
    tokens[: len(ids)] = ids
    return tokens, np.arange(length) < len(ids)


def _prompt(template: str, instruction: str) -> str:
    return template.format(instruction=instruction.strip()).lower()


def _checked_template(template: str) -> str:
    try:
        valid = "\0" in template.format(instruction="\0")
    except (KeyError, IndexError, ValueError):
        valid = False
    if not valid:
        raise DataError(f"config.data.prompt_template {template!r} must contain {{instruction}} and no other field")
    return template


def _load_transformers(path: str) -> Any:
    # Only this class needs transformers, which takes seconds to import.
    from transformers import AutoTokenizer

    is_folder = Path(path).is_dir()
    if not is_folder and (path.startswith((".", "/", "~")) or path.count("/") > 1):
        raise FileNotFoundError(f"Tokenizer folder {path} does not exist; download Qwen/Qwen2.5-0.5B's tokenizer there")
    try:
        # Never code from the folder or the hub.
        return AutoTokenizer.from_pretrained(path, trust_remote_code=False, local_files_only=is_folder)
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise DataError(
            f"No tokenizer could be loaded from {path!r}: {reason}; give a folder with its files"
        ) from error
