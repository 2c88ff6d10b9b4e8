"""s3://BUCKET/PREFIX as a remote: a .gguf object, or the objects right below the prefix that make up a model.

Credentials and endpoint come from where the AWS tools look: variables, the token file that a cluster gives to a service account
(AWS_WEB_IDENTITY_TOKEN_FILE), the container's and the machine's own role, and the files named by AWS_SHARED_CREDENTIALS_FILE
and AWS_CONFIG_FILE, which the library doesn't read by itself. AWS_ENDPOINT_URL leads to another store of that protocol.
"""

from __future__ import annotations

import configparser
import re
from collections.abc import Iterator, Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from infer_engine.errors import ModelLoadError
from infer_engine.model.fetch.digest import is_model_file
from infer_engine.model.fetch.download import ChangedError, RemoteFile, TransientError, stem_of

if TYPE_CHECKING:
    from obstore import GetOptions
    from obstore.store import ClientConfig, RetryConfig, S3Config, S3Store

CHUNK_BYTES = 2**20
READ_TIMEOUT = timedelta(seconds=60)
WHOLE_TIMEOUT = timedelta(days=1)  # of one request with its body; the library's own is 30 s
_RETRIES = 2  # the library's; ours come on top
_FILES = {
    "AWS_SHARED_CREDENTIALS_FILE": "~/.aws/credentials",
    "AWS_CONFIG_FILE": "~/.aws/config",
}
_KEYS = {
    "aws_access_key_id": "access_key_id",
    "aws_secret_access_key": "secret_access_key",
    "aws_session_token": "session_token",
}
_PLACES = {"region": ("AWS_REGION", "AWS_DEFAULT_REGION"), "endpoint_url": ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL")}
_FORMS = {"region": re.compile(r"[a-z0-9-]+"), "endpoint_url": re.compile(r"https?://[A-Za-z0-9.\[\]:-]+/?")}
_URI = re.compile(r"s3://([a-z0-9][a-z0-9.-]{1,61}[a-z0-9])/(.+)")


class Bucket:
    def __init__(self, uri: str, store: S3Store, prefix: str) -> None:
        self.uri = self.shown = uri
        self.single = prefix.endswith(".gguf")
        self._store = store
        self._prefix = prefix

    @classmethod
    def of(cls, uri: str, environment: Mapping[str, str]) -> Bucket:
        """Raises ModelLoadError."""
        uri = uri.rstrip("/")
        found = _URI.fullmatch(uri)
        if found is None or not found[2].strip("/"):
            raise ModelLoadError(f"{uri}: must be s3://BUCKET/PREFIX, the prefix a model's directory or a .gguf object")
        return cls(uri, _store(uri, found[1], environment), found[2].strip("/"))

    def files(self) -> Sequence[RemoteFile]:
        import obstore

        try:
            if self.single:
                found = [obstore.head(self._store, self._prefix)]
            else:
                found = list(obstore.list_with_delimiter(self._store, f"{self._prefix}/")["objects"])
        except Exception as error:
            raise self._trouble(error) from error
        if self.single:
            return [RemoteFile(f"{stem_of(self._prefix)}.gguf", entry["size"], entry["e_tag"] or "") for entry in found]
        files = [RemoteFile(entry["path"].rpartition("/")[2], entry["size"], entry["e_tag"] or "") for entry in found]
        files = [file for file in files if is_model_file(file.name)]
        if not any(file.name == "config.json" for file in files):
            raise ModelLoadError(
                f"{self.uri}: no config.json below it; give the prefix of a directory with config.json, tokenizer and "
                ".safetensors files, or a .gguf object"
            )
        return files

    def read(self, file: RemoteFile, start: int) -> tuple[int, Iterator[bytes]]:
        import obstore

        path = self._prefix if self.single else f"{self._prefix}/{file.name}"
        if not file.version:
            start = 0
        options: GetOptions = {"if_match": file.version} if file.version else {}
        if start:
            options["range"] = {"offset": start}
        try:
            result = obstore.get(self._store, path, options=options)
            changed = result.meta["e_tag"] != (file.version or None) or result.meta["size"] != file.size
            first, stream = result.range[0], result.stream(min_chunk_size=CHUNK_BYTES)
        except Exception as error:
            raise self._trouble(error) from error
        if changed:
            raise ChangedError(f"{file.name} has changed")
        return first, self._chunks(stream)

    def _chunks(self, stream: Any) -> Iterator[bytes]:
        try:
            for chunk in stream:
                yield bytes(chunk)
        except Exception as error:
            raise self._trouble(error) from error

    def _trouble(self, error: Exception) -> Exception:
        """The library's errors are of a few kinds, and their text has the server's answer."""
        from obstore import exceptions

        told = _told(error)
        if isinstance(error, exceptions.PreconditionError):
            return ChangedError("an object has changed")
        if isinstance(error, FileNotFoundError) or "NoSuch" in told:
            return ModelLoadError(f"{self.uri}: no such bucket or object ({told}); check the name")
        if re.search(r"169[.]254[.]|/latest/", told):  # the machine's own role, the last place that is asked
            return ModelLoadError(
                f"{self.uri}: no credentials; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or name a file in "
                "AWS_SHARED_CREDENTIALS_FILE (on a cluster: credentialsSecretRef), or AWS_SKIP_SIGNATURE=true for a public bucket"
            )
        if isinstance(error, exceptions.PermissionDeniedError | exceptions.UnauthenticatedError):
            return ModelLoadError(
                f"{self.uri}: the store refuses ({told}); check the credentials and what they may read"
            )
        if re.search(r"status code: [34]\d\d", str(error)):
            return ModelLoadError(f"{self.uri}: {told}; check the bucket's region (AWS_REGION) and the endpoint")
        return TransientError(f"{self.uri}: {told}")


def _store(uri: str, bucket: str, environment: Mapping[str, str]) -> S3Store:
    try:
        from obstore.exceptions import BaseError
        from obstore.store import S3Store
    except ImportError as error:
        raise ModelLoadError(f"{uri}: needs the package obstore; install inferengine[s3]") from error
    config = settings(environment)
    retry: RetryConfig = {"max_retries": _RETRIES, "retry_timeout": READ_TIMEOUT}
    options: ClientConfig = {"timeout": WHOLE_TIMEOUT, "read_timeout": READ_TIMEOUT}
    if config.get("endpoint", "").startswith("http://"):
        options["allow_http"] = True
    authorities = environment.get("AWS_CA_BUNDLE")
    try:
        if authorities:
            options["root_certificate"] = Path(authorities).read_bytes()
        return S3Store(bucket, config=cast("S3Config", config), client_options=options, retry_config=retry)
    except OSError as error:
        raise ModelLoadError(f"AWS_CA_BUNDLE: {authorities} can't be read ({error.strerror})") from error
    except (BaseError, ValueError) as error:
        advice = "; the system has no authorities' certificates: install them, or name a file in AWS_CA_BUNDLE"
        told = f"{_told(error)}{advice if 'CA certificates' in str(error) else ''}"
        raise ModelLoadError(f"{uri}: S3 can't be used: {told}") from error


def _told(error: Exception) -> str:
    """In one line, without the library's own structures."""
    text = str(error)
    code, message = (re.search(rf"<{tag}>([^<]*)</{tag}>", text) for tag in ("Code", "Message"))
    if code is not None:
        return f"{code[1]}: {message[1]}" if message else code[1]
    return " ".join(text.partition("Debug source:")[0].split())


def settings(environment: Mapping[str, str]) -> dict[str, str]:
    """Keys, region and endpoint, where they are known; roles are the library's to look for. Raises ModelLoadError."""
    known = _from_files(environment)
    keys = known
    if environment.get("AWS_ACCESS_KEY_ID"):  # what belongs together comes from one place
        keys = {name: environment[name.upper()] for name in _KEYS if environment.get(name.upper())}
    found = {ours: keys[theirs] for theirs, ours in _KEYS.items() if theirs in keys}
    for name, variables in _PLACES.items():
        value = next((environment[variable] for variable in variables if environment.get(variable)), known.get(name))
        if value:
            if not _FORMS[name].fullmatch(value):  # the library would panic
                allowed = "the code of a region" if name == "region" else "https://HOST[:PORT] or http://HOST[:PORT]"
                raise ModelLoadError(f"{variables[-1]} ({name}): got {value!r}; must be {allowed}")
            found[name.removesuffix("_url")] = value
    return found


def _from_files(environment: Mapping[str, str]) -> dict[str, str]:
    profile = environment.get("AWS_PROFILE") or "default"
    found: dict[str, str] = {}
    for variable, default in _FILES.items():
        path = Path(environment.get(variable) or default).expanduser()
        parser = configparser.ConfigParser(interpolation=None, default_section="")
        try:
            parser.read_string(path.read_text())
        except FileNotFoundError:
            continue
        except (OSError, UnicodeDecodeError, configparser.Error) as error:
            kind = type(error).__name__  # its text may quote a line with a key
            raise ModelLoadError(f"{path}: can't be read as a file of AWS credentials ({kind})") from error
        for section in (profile, f"profile {profile}"):
            if parser.has_section(section):
                found = {**dict(parser[section]), **found}
    return found
