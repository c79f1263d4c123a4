"""Hub: a model's or data set's name to files here: a folder as it is, or a Hub id through the Hub's cache."""

from __future__ import annotations

import glob
import os
import re
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import Context
from dataclasses import dataclass
from fnmatch import fnmatch
from importlib import import_module
from pathlib import Path, PurePosixPath
from typing import Any

from . import filenames as names
from .errors import InputMissing, JmedliteError, NotPermitted, Unavailable, UsageError
from .gguf import split_stem
from .inputs import MAX_INDEX, check_links, read_json
from .looking import exists, is_dir, is_file
from .outputs import sha256_file

DEFAULT_MODEL = "stardust-coder/jmedllm-7b-v1"
_ID = re.compile(r"(?P<repo>[\w.-]+/[\w.-]+)(?:@(?P<revision>[\w./-]+))?")
# with an adapter's configuration, by which an adapter that is given as the model is known
_MODEL_FILES = (
    names.CONFIG, names.GENERATION_CONFIG, names.GPTQ_CONFIG, names.AWQ_CONFIG, *names.TOKENIZER_FILES, names.CARD,
    names.ADAPTER_CONFIG,
)  # fmt: skip
_ADAPTER_FILES = (names.ADAPTER_CONFIG, *names.TOKENIZER_FILES, names.CARD)
# (whole, index) file names, the second pair fetched only where the repository has neither of the first
_WEIGHTS = ((names.SINGLE, names.INDEX), (names.BIN_SINGLE, names.BIN_INDEX))
_ADAPTER_WEIGHTS = ((names.ADAPTER_WEIGHTS, None), (names.ADAPTER_BIN, None), (names.MLX_ADAPTER_WEIGHTS, None))
DRIP = 1024  # bytes that any line carries in the time that huggingface_hub waits
_COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True)
class Source:
    """A local folder or GGUF file and where it came from; `revision` is a full commit hash for a Hub model."""

    path: Path
    name: str
    repo: str | None = None
    revision: str | None = None

    @property
    def full_name(self) -> str:
        """The Hub id with its revision, or the local name."""
        return f"{self.repo}@{self.revision}" if self.revision else self.repo or self.name

    def describe(self) -> dict[str, Any]:
        """For a manifest: no local path."""
        return {"name": self.name, "repo": self.repo, "revision": self.revision}


def parse_id(model: str) -> tuple[str, str | None] | None:
    """`owner/name[@revision]` as (repo, revision); None where it is not a Hub id."""
    found = _ID.fullmatch(model)
    return (found["repo"], found["revision"]) if found else None


def resolve(model: str, *, follow_links: bool = False) -> Source:
    """A model to convert: a checkpoint folder, a GGUF file, or a Hub id, of which the needed files are downloaded.

    Links in a folder are followed as `inputs.check_links` says, all of them with `follow_links`. Raises InputMissing,
    UsageError, Unavailable, NotPermitted.
    """
    return _resolve(model, "checkpoint folder", _MODEL_FILES, _WEIGHTS, follow_links)


def resolve_adapter(adapter: str, *, follow_links: bool = False) -> Source:
    """An adapter: a PEFT folder, a GGUF file, or a Hub id; as `resolve`."""
    return _resolve(adapter, "PEFT folder", _ADAPTER_FILES, _ADAPTER_WEIGHTS, follow_links)


def _resolve(
    model: str,
    kind: str,
    files: tuple[str, ...],
    weights: tuple[tuple[str, str | None], ...],
    follow_links: bool,
) -> Source:
    path = Path(model).expanduser()
    if is_dir(path):
        check_links(path, follow=follow_links)
        return Source(path, path.resolve().name)
    if is_file(path) and path.suffix == ".gguf":
        return Source(path, split_stem(path.name))
    if exists(path):
        raise UsageError(f"{model}: is a file, expected a {kind}, a .gguf file or a Hub id (owner/name)")
    parsed = parse_id(model)
    if parsed is None or model.startswith((".", "~", os.sep)) or model.endswith(".gguf"):
        raise InputMissing(f"{model}: no such folder or GGUF file, and not a Hub id (owner/name[@revision])")
    repo, revision = parsed
    for single, index in weights:
        folder = _download(repo, revision, (*files, single, index or single))
        if index and is_file(folder / index):
            _download_shards(repo, revision, folder, index)
            break
        if is_file(folder / single):
            break
    commit = folder.name if _COMMIT.fullmatch(folder.name) else None
    return Source(folder, repo.partition("/")[2], repo, commit)


def _download_shards(repo: str, revision: str | None, folder: Path, index: str) -> None:
    """The files that an index in `folder` names, of the same commit; what it names wrongly is told when it is read."""
    weight_map = read_json(folder / index, MAX_INDEX).get("weight_map")
    given = weight_map.values() if isinstance(weight_map, dict) else []
    shards = sorted({name for name in given if names.is_plain(name)})
    commit = folder.name if _COMMIT.fullmatch(folder.name) else revision
    _download(repo, commit, tuple(map(glob.escape, shards)))
    if missing := [name for name in shards if not is_file(folder / name)]:
        raise Unavailable(
            f"{repo}: has no {missing[0]}, which its {index} names, or only a part of it is in the local cache"
        )


def fetch_data(repo: str, revision: str, files: Sequence[str]) -> Source:
    """Files of a data set on the Hub; the network is left alone where the cache has them all at this commit.

    Raises InputMissing, Unavailable, NotPermitted.
    """
    import huggingface_hub

    cached = [huggingface_hub.try_to_load_from_cache(repo, f, revision=revision, repo_type="dataset") for f in files]
    if _COMMIT.fullmatch(revision) and isinstance(cached[0], str) and all(isinstance(c, str) for c in cached):
        folder = Path(cached[0]).parents[len(PurePosixPath(files[0]).parts) - 1]
    else:
        folder = _download(repo, revision, tuple(files), "dataset")
    for file in files:
        if not is_file(folder / file):
            raise Unavailable(f"{repo}: has no {file} at {revision}, or only a part of it is in the local cache")
    commit = folder.name if _COMMIT.fullmatch(folder.name) else None
    return Source(folder, repo.partition("/")[2], repo, commit)


def _download(repo: str, revision: str | None, patterns: tuple[str, ...], kind: str = "model") -> Path:
    """huggingface_hub's snapshot of one commit; cut downloads go on where they stopped. `kind`: "model", "dataset"."""
    import huggingface_hub
    from huggingface_hub import constants

    before = _cached(repo, kind)
    silence = bounded_silence(huggingface_hub.get_session(), constants.HF_HUB_DOWNLOAD_TIMEOUT)
    with _faults(repo, revision, kind), silence:
        # by the revision's name, so that the cache learns which commit it is and can answer offline
        folder = Path(
            huggingface_hub.snapshot_download(repo, repo_type=kind, revision=revision, allow_patterns=list(patterns))
        )
        if not constants.HF_HUB_OFFLINE:
            api = huggingface_hub.HfApi()
            ask = api.dataset_info if kind == "dataset" else api.model_info
            info = ask(repo, revision=folder.name, files_metadata=True)
            wanted = [s for s in info.siblings or [] if any(fnmatch(s.rfilename, p) for p in patterns)]
            # what it reads and removes is no input yet, and no Watch's business
            Context().run(_check_files, folder, wanted, before)
    return folder


@contextmanager
def bounded_silence(client: Any, seconds: float) -> Iterator[None]:
    """Around requests of huggingface_hub's `client`: none waits longer than `seconds` for an answer to go on.

    Of its own it waits without end for most of them. An answer that drips, less than DRIP bytes in that time, is one
    that does not go on; huggingface_hub asks again, a few times.
    """
    library = import_module(type(client).__module__.partition(".")[0])  # httpx, by whatever name
    hooks = client.event_hooks

    def limit(request: Any) -> None:
        given = request.extensions.get("timeout") or {}
        request.extensions["timeout"] = {
            what: min(given.get(what) or seconds, seconds) for what in ("connect", "read", "write", "pool")
        }

    def watch(response: Any) -> None:
        response.stream = Watched(response.stream)

    class Watched(library.SyncByteStream):  # type: ignore[misc, name-defined]
        """The body of an answer, as it comes."""

        def __init__(self, stream: Any) -> None:
            self.stream = stream

        def __iter__(self) -> Iterator[bytes]:
            began, n = time.monotonic(), 0
            for piece in self.stream:
                n += len(piece)
                if (now := time.monotonic()) - began > seconds:
                    if n < DRIP:
                        raise library.ReadTimeout(f"it sent {n} bytes in {now - began:.0f} s")
                    began, n = now, 0
                yield piece

        def close(self) -> None:
            self.stream.close()

    client.event_hooks = {
        "request": [*hooks.get("request", []), limit], "response": [*hooks.get("response", []), watch],
    }  # fmt: skip
    try:
        yield
    finally:
        client.event_hooks = hooks


def _cached(repo: str, kind: str) -> set[tuple[int, ...]]:
    """What tells apart the whole files of a repository that are in the cache; no clock says what is new."""
    from huggingface_hub import constants
    from huggingface_hub.file_download import repo_folder_name

    folder = Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=repo, repo_type=kind)
    return {_identity(p) for p in folder.rglob("*") if p.suffix != ".incomplete" and is_file(p)}


def _identity(path: Path) -> tuple[int, ...]:
    found = path.stat()
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


def _check_files(folder: Path, files: list[Any], before: set[tuple[int, ...]]) -> None:
    """Sizes of all files, and hashes of those that were not there `before`; files that are wrong are removed."""
    faults = []
    for file in files:
        path = folder / file.rfilename
        size = path.stat().st_size if is_file(path) else 0
        if not is_file(path) or (file.size is not None and size != file.size):
            faults.append(f"{file.rfilename}: the download has {size:,} bytes, the Hub says {file.size or 0:,}")
        elif file.lfs is not None and _identity(path) not in before and sha256_file(path) != file.lfs.sha256:
            faults.append(f"{file.rfilename}: the download has another SHA-256 than the Hub says")
        else:
            continue
        if is_file(path):
            path.resolve().unlink()
            path.unlink(missing_ok=True)
    if faults:
        raise Unavailable(f"{faults[0]} ({len(faults)} file(s) removed); run again")


@contextmanager
def _faults(repo: str, revision: str | None, kind: str) -> Iterator[None]:
    """huggingface_hub's and the network's exceptions as one-line faults about this kind of repository."""
    from huggingface_hub import errors

    try:
        yield
    except JmedliteError:
        raise
    except errors.GatedRepoError:
        raise NotPermitted(f"{repo}: the {kind} is gated; accept its terms on its page, and {_TOKEN}") from None
    except errors.RevisionNotFoundError:
        raise InputMissing(f"{repo}: has no revision {revision}") from None
    except errors.RepositoryNotFoundError:
        raise InputMissing(
            f"{repo}: no such {kind} on the Hub that may be seen, nor a local folder of that name; for a private one "
            f"{_TOKEN}"
        ) from None
    except errors.LocalEntryNotFoundError as e:
        if (answer := _answer(e)) is not None:
            raise _refusal(repo, answer) from None
        raise Unavailable(
            f"{repo}: is not in the local cache and the Hub can't be reached; "
            f"connect, or carry the {kind}'s folder here and give its path"
        ) from None
    except errors.OfflineModeIsEnabled:
        raise Unavailable(f"{repo}: offline mode is on (HF_HUB_OFFLINE) and the {kind} is not in the cache") from None
    except errors.HFValidationError as e:
        raise UsageError(f"{repo}: is not a valid Hub id ({e})") from None
    except errors.HfHubHTTPError as e:
        if (answer := _answer(e)) is not None:
            raise _refusal(repo, answer) from None
        raise Unavailable(
            f"{repo}: the Hub could not be read ({_first_line(e)}); try again, finished files stay"
        ) from None
    except (ValueError, KeyError, TypeError) as e:
        raise Unavailable(
            f"{repo}: the Hub answered something unexpected ({_first_line(e)}); is a proxy between?"
        ) from None
    except OSError as e:
        raise Unavailable(
            f"{repo}: the download failed ({_first_line(e)}); run again to go on where it stopped"
        ) from None
    except Exception as e:
        # huggingface_hub lets its HTTP library's exceptions through, and has changed libraries between releases
        if type(e).__module__.partition(".")[0] not in ("httpx", "httpx2", "httpcore", "requests"):
            raise
        raise Unavailable(
            f"{repo}: the Hub can't be reached ({_first_line(e)}); connect, or use a local folder"
        ) from None


_TOKEN = "give a token that may read it, by HF_TOKEN or `hf auth login`"


def _answer(error: BaseException | None) -> Any:
    """The Hub's answer that led to an error, somewhere among its causes; None where it gave none."""
    while error is not None:
        response = getattr(error, "response", None)
        if getattr(response, "status_code", None) is not None:
            return response
        error = error.__cause__ or error.__context__
    return None


def _refusal(repo: str, answer: Any) -> JmedliteError:
    """The Hub's answer, other than the expected one, as a fault."""
    status = answer.status_code
    told = f"{status}: {str(answer.headers.get('X-Error-Message') or 'it gives no reason').rstrip('.')}"
    if status == 401:
        return NotPermitted(f"{repo}: the Hub does not accept the token ({told}); {_TOKEN}")
    if status == 403:
        return NotPermitted(
            f"{repo}: the Hub does not let this token read it ({told}); {_TOKEN}: a fine-grained one needs the "
            "permission for this repository, or for gated ones"
        )
    return Unavailable(f"{repo}: the Hub could not be read ({told}); try again, finished files stay")


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
