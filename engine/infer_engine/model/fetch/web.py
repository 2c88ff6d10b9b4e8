"""http:// and https:// as a remote: the URL of a .gguf file, or of a directory with a model's files by their usual names.

A directory on a web server can't be listed, so its files are asked for by name: config.json, the weights (the index names
them where there are several files), and what there is of tokenizer and template.

Redirects stay on http and https, never lead from https to http, and take the token along to no other server.
"""

from __future__ import annotations

import email.message
import http.client
import json
import re
import ssl
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import IO, Any
from urllib.parse import SplitResult, quote, unquote, urlsplit

from infer_engine.errors import ModelLoadError
from infer_engine.model.fetch.download import ChangedError, RemoteFile, TransientError, stem_of

CONFIG, INDEX, WEIGHTS = "config.json", "model.safetensors.index.json", "model.safetensors"
OPTIONAL = (
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
    "generation_config.json",
    "merges.txt",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "vocab.json",
    "vocab.txt",
)
TIMEOUT_SECONDS = 60
"""of one wait on the socket, not of a file"""
_CHUNK_BYTES = 2**20
_MAX_INDEX_BYTES = 100 * 2**20
_ABSENT = (403, 404, 410)  # 403: how object stores that may not be listed say 404
_BUSY = (408, 425, 429, 500, 502, 503, 504)
_SHARD = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*\.safetensors")


class Web:
    def __init__(self, uri: str, token: str | None) -> None:
        """`token`: sent as a bearer token to the server that the URI names. Raises ModelLoadError."""
        try:
            parts = urlsplit(uri)
            _origin(parts)
        except ValueError as error:
            raise ModelLoadError(
                "an http(s) URL with no usable host and port: must be http(s)://HOST[:PORT]/PATH"
            ) from error
        self.uri = uri.rstrip("/")
        self.shown = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"  # a query may be a signature
        if not parts.hostname or "@" in parts.netloc:
            raise ModelLoadError(
                f"{self.shown}: must be http(s)://HOST/PATH, without user and password; give a bearer token in "
                "INFERENGINE_HTTP_TOKEN (on a cluster: credentialsSecretRef)"
            )
        self.single = parts.path.endswith(".gguf")
        if not self.single and (
            parts.query or re.search(r"\.(tar|tgz|zip|zst|gz|bz2|xz|bin|safetensors)$", parts.path)
        ):
            raise ModelLoadError(
                f"{self.shown}: must be the URL of a .gguf file, or of a directory with config.json, tokenizer and "
                ".safetensors files; archives are not unpacked"
            )
        self._base = uri if self.single else uri.rstrip("/") + "/"
        self._parts = parts
        self._token = (token or "").strip()
        self._opener = _opener()

    def files(self) -> Sequence[RemoteFile]:
        if self.single:
            return [self._required(f"{stem_of(unquote(self._parts.path))}.gguf")]
        config = self._required(CONFIG)
        index = self._look(INDEX)
        if index is None:
            weights = [self._required(WEIGHTS)]
        else:
            with ThreadPoolExecutor(4) as threads:
                weights = [index, *threads.map(self._required, self._shards(index))]
        with ThreadPoolExecutor(4) as threads:
            rest = [file for file in threads.map(self._look, OPTIONAL) if file is not None]
        return [config, *weights, *rest]

    def _shards(self, index: RemoteFile) -> list[str]:
        """Raises TransientError, ChangedError or ModelLoadError."""
        if index.size > _MAX_INDEX_BYTES:
            raise ModelLoadError(f"{self._shown(INDEX)}: {index.size} bytes is no index of weights")
        content = bytearray()
        for chunk in self.read(index, 0)[1]:
            content += chunk
            if len(content) > index.size:
                raise ChangedError(f"{INDEX} is longer than {index.size} bytes")
        if len(content) < index.size:
            raise TransientError(f"{self._shown(INDEX)}: the connection ended early")
        try:
            names = sorted(set(json.loads(content)["weight_map"].values()))
            wrong = [name for name in names if not _SHARD.fullmatch(name)]
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ModelLoadError(f"{self.shown}: {index.name} is not a readable index of weights") from error
        if wrong or not names:
            raise ModelLoadError(
                f"{self.shown}: {index.name} names {wrong[:1] or 'nothing'}; must name .safetensors files"
            )
        return names

    def _required(self, name: str) -> RemoteFile:
        found = self._look(name)
        if found is None:
            missing = self.shown if self.single else f"{self.shown.rstrip('/')}/{name}"
            raise ModelLoadError(
                f"{missing}: no such file, or not for everybody; check the URL, or give a token in INFERENGINE_HTTP_TOKEN "
                "(on a cluster: credentialsSecretRef)"
            )
        return found

    def _look(self, name: str) -> RemoteFile | None:
        """A GET of the first byte: a URL that was signed for GET allows no HEAD."""
        try:
            with self._open(self._url(name), {"Range": "bytes=0-0"}) as response:
                size = _total(response)
                if size is None:
                    raise ModelLoadError(f"{self._shown(name)}: the server doesn't say how long the file is")
                return RemoteFile(name, size, _version(response.headers))
        except urllib.error.HTTPError as error:
            if error.code in _ABSENT:
                return None
            if error.code == 416:  # of an empty file there is no first byte
                return RemoteFile(name, 0, _version(error.headers))
            raise self._refused(name, error) from error

    def read(self, file: RemoteFile, start: int) -> tuple[int, Iterator[bytes]]:
        validator = file.version if file.version and not file.version.startswith("W/") else ""
        headers = {"Range": f"bytes={start}-", "If-Range": validator} if start and validator else {}
        try:
            response = self._open(self._url(file.name), headers)
        except urllib.error.HTTPError as error:
            if error.code in (*_ABSENT, 416):
                raise ChangedError(f"{file.name} is gone") from error
            raise self._refused(file.name, error) from error
        if _version(response.headers) != file.version or _total(response) not in (None, file.size):
            response.close()
            raise ChangedError(f"{file.name} has changed")
        first = _first(response) if response.status == 206 else 0
        if first not in (0, start):  # it would leave a hole
            response.close()
            raise TransientError(
                f"{self._shown(file.name)}: the server sends from byte {first} where {start} was asked for"
            )
        return first, _chunks(response, self._shown(file.name))

    def _url(self, name: str) -> str:
        return self._base if self.single else self._base + quote(name)

    def _shown(self, name: str) -> str:
        return self.shown if self.single else f"{self.shown.rstrip('/')}/{name}"

    def _open(self, url: str, headers: dict[str, str]) -> Any:
        """The response. Raises HTTPError where that is a matter of the file, TransientError or ModelLoadError else."""
        request = urllib.request.Request(
            url, headers={"Accept-Encoding": "identity", "User-Agent": "inferengine", **headers}
        )
        if self._token:
            request.add_unredirected_header("Authorization", f"Bearer {self._token}")
        shown = url.partition("?")[0]
        try:
            response = self._opener.open(request, timeout=TIMEOUT_SECONDS)
        except urllib.error.HTTPError as error:
            error.close()
            if error.code in _BUSY:
                raise TransientError(f"{shown}: the server answers {error.code} {error.reason}") from error
            raise
        except urllib.error.URLError as error:
            if isinstance(error.reason, ssl.SSLCertVerificationError):
                raise ModelLoadError(f"{shown}: {error.reason}; name your authority's file in SSL_CERT_FILE") from error
            raise TransientError(f"{shown}: {error.reason}") from error
        except (OSError, http.client.HTTPException) as error:
            raise TransientError(f"{shown}: {error or type(error).__name__}") from error
        if response.headers.get("Content-Encoding", "identity") != "identity":
            response.close()
            raise ModelLoadError(
                f"{shown}: the server encodes the file ({response.headers['Content-Encoding']}); it must not"
            )
        return response

    def _refused(self, name: str, error: urllib.error.HTTPError) -> ModelLoadError:
        advice = {
            401: "; give a bearer token in INFERENGINE_HTTP_TOKEN (on a cluster: credentialsSecretRef)",
            **dict.fromkeys(
                (301, 302, 303, 307, 308), "; redirects are followed on http and https, and not from https to http"
            ),
        }.get(error.code, "")
        return ModelLoadError(f"{self._shown(name)}: the server answers {error.code} {error.reason}{advice}")


class _Redirects(urllib.request.HTTPRedirectHandler):
    def redirect_request(
        self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, headers: Any, newurl: str
    ) -> urllib.request.Request | None:
        old, new = urlsplit(req.full_url), urlsplit(newurl)
        if new.scheme not in ("http", "https") or (old.scheme == "https" and new.scheme == "http"):
            return None  # the answer is an HTTPError then
        request = super().redirect_request(req, fp, code, msg, headers, newurl)
        token = req.get_header("Authorization")
        if request is not None and token is not None and _origin(old) == _origin(new):
            request.add_unredirected_header("Authorization", token)
        return request


def _origin(parts: SplitResult) -> tuple[str, str | None, int | None]:
    return parts.scheme, parts.hostname, parts.port or {"http": 80, "https": 443}.get(parts.scheme)


def _opener() -> urllib.request.OpenerDirector:
    """Without the handlers of file:, ftp: and data:."""
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler(),
        urllib.request.HTTPHandler(),
        urllib.request.HTTPSHandler(),
        urllib.request.HTTPErrorProcessor(),
        urllib.request.HTTPDefaultErrorHandler(),
        _Redirects(),
    ):
        opener.add_handler(handler)
    return opener


def _version(headers: email.message.Message) -> str:
    return headers.get("ETag") or headers.get("Last-Modified") or ""


def _range(response: Any) -> re.Match[str] | None:
    return re.fullmatch(r"bytes (\d+)-\d+/(\d+)", response.headers.get("Content-Range", ""))


def _total(response: Any) -> int | None:
    """Of the whole file."""
    if response.status == 206:
        found = _range(response)
        return int(found[2]) if found else None
    length = response.headers.get("Content-Length", "")
    return int(length) if length.isdigit() else None


def _first(response: Any) -> int:
    found = _range(response)
    assert found is not None  # the total was read from it
    return int(found[1])


def _chunks(response: Any, shown: str) -> Iterator[bytes]:
    with response:
        try:
            while chunk := response.read(_CHUNK_BYTES):
                yield chunk
        except (OSError, http.client.HTTPException) as error:
            raise TransientError(f"{shown}: {str(error) or type(error).__name__}") from error
