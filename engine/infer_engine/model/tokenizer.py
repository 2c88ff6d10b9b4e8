"""Text to token ids and back, for whole texts and for streams.

In: text, chat messages, output token ids as they come. Out: token ids, text cut at stop strings. Built on the `tokenizers`
library directly: the process that only tokenises loads no torch.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import tokenizers

from infer_engine.errors import InvalidRequestError, ModelLoadError
from infer_engine.model.chat_template import ChatTemplate, ChatTemplateError
from infer_engine.model.detokenizer import new_decoder

Message = Mapping[str, str]


class Tokenizer:
    """A fast tokenizer with its chat template and the ids that end an output. Immutable; safe to share between threads."""

    def __init__(
        self,
        backend: tokenizers.Tokenizer,
        *,
        chat_template: str | None = None,
        special_tokens: Mapping[str, str] | None = None,
        eos_token_ids: frozenset[int] = frozenset(),
    ) -> None:
        """special_tokens: names as the template uses them, e.g. {"bos_token": "<s>"}."""
        self.backend = backend
        self._template = ChatTemplate(chat_template) if chat_template is not None else None
        self.special_tokens = dict(special_tokens or {})
        self.eos_token_ids = eos_token_ids
        backend.no_padding()
        backend.no_truncation()
        state = json.dumps([backend.to_str(), chat_template, self.special_tokens, sorted(eos_token_ids)])
        self.longest_token = max(map(len, backend.get_vocab(with_added_tokens=True)), default=1)
        """Characters of a text that one token can stand for, at most."""
        self.digest = hashlib.sha256(state.encode()).hexdigest()

    @classmethod
    def from_directory(cls, directory: Path) -> Tokenizer:
        """Read tokenizer.json, the chat template and the eos ids of a model directory; ModelLoadError says what is wrong.

        A directory without tokenizer.json (only a SentencePiece model, say) is converted by transformers, which loads torch.
        """
        settings = _read_json(directory / "tokenizer_config.json")
        special_tokens = _special_tokens(settings)
        file = directory / "tokenizer.json"
        if file.is_file():
            try:
                backend = tokenizers.Tokenizer.from_file(str(file))
            except Exception as error:  # the library raises plain Exception for whatever is wrong with the file
                raise ModelLoadError(
                    f"{file}: not a readable tokenizer file ({error}); fetch the model again"
                ) from error
        else:
            backend = _convert(directory)
        eos_token_ids = read_eos_token_ids(directory)
        eos_token = special_tokens.get("eos_token")
        if eos_token is not None and (eos_token_id := backend.token_to_id(eos_token)) is not None:
            eos_token_ids |= {eos_token_id}
        try:
            return cls(
                backend,
                chat_template=_chat_template(directory, settings),
                special_tokens=special_tokens,
                eos_token_ids=eos_token_ids,
            )
        except ChatTemplateError as error:
            raise ModelLoadError(f"{directory}: the model's chat template is broken: {error}") from error

    @property
    def vocab_size(self) -> int:
        return self.backend.get_vocab_size(with_added_tokens=True)

    def encode(self, text: str) -> list[int]:
        """With the special tokens that the tokenizer puts around a text, such as a leading bos."""
        return self._encode(text, add_special_tokens=True)

    def decode(self, token_ids: Sequence[int]) -> str:
        """Special tokens are left out; bytes that are no UTF-8 become U+FFFD."""
        return self.backend.decode(list(token_ids), skip_special_tokens=True)

    def chat(self, messages: Sequence[Message]) -> list[int]:
        """Token ids of a conversation, up to where the assistant's next answer starts."""
        if self._template is None:
            raise InvalidRequestError("messages: this model has no chat template; send a prompt instead")
        try:
            text = self._template.render(messages, self.special_tokens)
        except ChatTemplateError as error:
            raise InvalidRequestError(f"messages: the model's chat template refuses them: {error}") from error
        return self._encode(text, add_special_tokens=False)

    def _encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        # As a batch of one: `encode` keeps the interpreter's lock, and with it every other thread, for up to a second
        return self.backend.encode_batch_fast([text], add_special_tokens=add_special_tokens)[0].ids


@dataclass(frozen=True, slots=True)
class TextDelta:
    """`stopped`: a stop string was found; `text` ends before it, and nothing more will come."""

    text: str
    stopped: bool = False


class TextStream:
    """One request's text. Text that may be the beginning of a stop string waits until it is certain that it isn't."""

    def __init__(self, tokenizer: Tokenizer, stop: Sequence[str] = ()) -> None:
        self._decoder = new_decoder(tokenizer.backend)
        self._stop = tuple(stop)
        self._beginnings = [_Beginning(string) for string in self._stop]
        self._held = ""
        self._stopped = False

    def push(self, token_ids: Sequence[int]) -> TextDelta:
        if self._stopped:
            return TextDelta("", stopped=True)
        return self._release(self._decoder.push(token_ids))

    def finish(self) -> str:
        """The rest, after the last token: what was held back, and U+FFFD for bytes that stayed incomplete."""
        if self._stopped:
            return ""
        text = self._held + self._decoder.finish()
        self._held, self._stopped = "", True
        return text[: _stop_index(text, self._stop)]

    def _release(self, new_text: str) -> TextDelta:
        text = self._held + new_text
        index = _stop_index(text, self._stop)
        if index is not None:
            self._held, self._stopped = "", True
            return TextDelta(text[:index], stopped=True)
        safe = len(text) - max((beginning.push(new_text) for beginning in self._beginnings), default=0)
        self._held = text[safe:]
        return TextDelta(text[:safe])


def _stop_index(text: str, stop: Sequence[str]) -> int | None:
    return min((index for string in stop if (index := text.find(string)) >= 0), default=None)


class _Beginning:
    """How much of a stop string a growing text ends with: the algorithm of Knuth, Morris and Pratt, O(1) a character.

    Comparing all lengths each time costs 0.3 ms a token for strings made for it, in a process that all tenants share.
    """

    __slots__ = ("_length", "_shorter", "_string")

    def __init__(self, string: str) -> None:
        self._string = string
        self._shorter = [0] * len(string)
        """by length - 1: the next shorter beginning that a text with that much of the string ends with, too"""
        self._length = 0
        for position in range(1, len(string)):
            self._shorter[position] = self.push(string[position])
        self._length = 0

    def push(self, text: str) -> int:
        """The length after `text`, in which the whole string must not occur."""
        string, shorter, length = self._string, self._shorter, self._length
        for character in text:
            while length and string[length] != character:
                length = shorter[length - 1]
            length += string[length] == character
        self._length = length
        return length


def read_eos_token_ids(directory: Path) -> frozenset[int]:
    """From generation_config.json, which knows best what ends a chat turn, else from config.json."""
    for name in ("generation_config.json", "config.json"):
        eos_token_ids = as_token_ids(_read_json(directory / name).get("eos_token_id"))
        if eos_token_ids:
            return eos_token_ids
    return frozenset()


def as_token_ids(value: object) -> frozenset[int]:
    """Configurations give one id, a list of ids, or null."""
    if isinstance(value, (list, tuple)):
        return frozenset(int(token_id) for token_id in value)
    return frozenset() if value is None else frozenset([int(value)])  # type: ignore[call-overload]


def _read_json(file: Path) -> dict[str, object]:
    """{} where the file doesn't exist."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise ModelLoadError(f"{file}: not readable as JSON ({error}); fetch the model again") from error
    if not isinstance(content, dict):
        raise ModelLoadError(f"{file}: must hold a JSON object; fetch the model again")
    return content


def _special_tokens(settings: Mapping[str, object]) -> dict[str, str]:
    """Plain strings, or objects with `content` in files written by older releases of transformers."""
    tokens = {}
    for name, value in settings.items():
        content = value.get("content") if isinstance(value, dict) else value
        if name.endswith("_token") and isinstance(content, str):
            tokens[name] = content
    return tokens


def _chat_template(directory: Path, settings: Mapping[str, object]) -> str | None:
    file = directory / "chat_template.jinja"
    if file.is_file():
        return file.read_text(encoding="utf-8")
    template = settings.get("chat_template")
    if isinstance(template, list):  # several named ones
        template = {entry["name"]: entry["template"] for entry in template}.get("default")
    return template if isinstance(template, str) else None


def _convert(directory: Path) -> tokenizers.Tokenizer:
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(directory, trust_remote_code=False, local_files_only=True)
    except Exception as error:  # whatever transformers and the conversion libraries raise means the same to the caller
        raise ModelLoadError(
            f"{directory}: no tokenizer.json, and the other tokenizer files could not be converted ({error}); "
            "add a tokenizer.json"
        ) from error
    if not tokenizer.is_fast:
        raise ModelLoadError(f"{directory}: {type(tokenizer).__name__} has no fast form; add a tokenizer.json")
    backend: tokenizers.Tokenizer = tokenizer.backend_tokenizer
    return backend
