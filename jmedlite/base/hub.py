"""Hub: a model's or data set's name to files here: a folder as it is, or a Hub id through the Hub's cache."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath
from typing import Any

from . import filenames as names
from .errors import InputMissing, JmedliteError, NotPermitted, Unavailable, UsageError
from .gguf import split_stem
from .outputs import sha256_file

DEFAULT_MODEL = "stardust-coder/jmedllm-7b-v1"
_ID = re.compile(r"(?P<repo>[\w.-]+/[\w.-]+)(?:@(?P<revision>[\w./-]+))?")
_MODEL_FILES = (names.CONFIG, names.GENERATION_CONFIG, *names.TOKENIZER_FILES, names.CARD)
_SAFETENSORS = (names.SINGLE, names.INDEX, "model-*-of-*.safetensors")
_BIN = (names.BIN_SINGLE, names.BIN_INDEX, "pytorch_model-*-of-*.bin")
_ADAPTER_FILES = (names.ADAPTER_CONFIG, *names.TOKENIZER_FILES, names.CARD)


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


def resolve(model: str) -> Source:
    """A model to convert: a checkpoint folder, a GGUF file, or a Hub id, of which the needed files are downloaded.

    Raises InputMissing, UsageError, Unavailable, NotPermitted.
    """
    return _resolve(model, "checkpoint folder", (*_MODEL_FILES, *_SAFETENSORS), (names.SINGLE, names.INDEX), _BIN)


def resolve_adapter(adapter: str) -> Source:
    """An adapter: a PEFT folder, a GGUF file, or a Hub id; raises as `resolve` does."""
    patterns = (*_ADAPTER_FILES, names.ADAPTER_WEIGHTS)
    return _resolve(adapter, "PEFT folder", patterns, (names.ADAPTER_WEIGHTS,), (names.ADAPTER_BIN,))


def _resolve(
    model: str, kind: str, patterns: tuple[str, ...], preferred: tuple[str, ...], instead: tuple[str, ...]
) -> Source:
    """`instead` are the patterns fetched from the Hub where none of the `preferred` files is there."""
    path = Path(model).expanduser()
    if path.is_dir():
        return Source(path, path.resolve().name)
    if path.is_file() and path.suffix == ".gguf":
        return Source(path, split_stem(path.name))
    if path.exists():
        raise UsageError(f"{model}: is a file, expected a {kind}, a .gguf file or a Hub id (owner/name)")
    parsed = parse_id(model)
    if parsed is None or model.startswith((".", "~", os.sep)) or model.endswith(".gguf"):
        raise InputMissing(f"{model}: no such folder or GGUF file, and not a Hub id (owner/name[@revision])")
    repo, revision = parsed
    folder = _download(repo, revision, patterns)
    if not any((folder / name).is_file() for name in preferred):
        folder = _download(repo, revision, (*patterns, *instead))
    commit = folder.name if re.fullmatch(r"[0-9a-f]{40}", folder.name) else None
    return Source(folder, repo.partition("/")[2], repo, commit)


def fetch_data(repo: str, revision: str, files: Sequence[str]) -> Source:
    """Files of a data set on the Hub; the network is left alone where the cache has them all at this commit.

    Raises InputMissing, Unavailable, NotPermitted.
    """
    import huggingface_hub

    cached = [huggingface_hub.try_to_load_from_cache(repo, f, revision=revision, repo_type="dataset") for f in files]
    if (
        re.fullmatch(r"[0-9a-f]{40}", revision)
        and isinstance(cached[0], str)
        and all(isinstance(c, str) for c in cached)
    ):
        folder = Path(cached[0]).parents[len(PurePosixPath(files[0]).parts) - 1]
    else:
        folder = _download(repo, revision, tuple(files), "dataset")
    for file in files:
        if not (folder / file).is_file():
            raise Unavailable(f"{repo}: has no {file} at {revision}, or only a part of it is in the local cache")
    commit = folder.name if re.fullmatch(r"[0-9a-f]{40}", folder.name) else None
    return Source(folder, repo.partition("/")[2], repo, commit)


def _download(repo: str, revision: str | None, patterns: tuple[str, ...], kind: str = "model") -> Path:
    """huggingface_hub's snapshot of one commit; cut downloads go on where they stopped. `kind`: "model", "dataset"."""
    import huggingface_hub
    from huggingface_hub import constants

    started = time.time()
    with _faults(repo, revision, kind):
        # by the revision's name, so that the cache learns which commit it is and can answer offline
        folder = Path(
            huggingface_hub.snapshot_download(repo, repo_type=kind, revision=revision, allow_patterns=list(patterns))
        )
        if not constants.HF_HUB_OFFLINE:
            api = huggingface_hub.HfApi()
            ask = api.dataset_info if kind == "dataset" else api.model_info
            info = ask(repo, revision=folder.name, files_metadata=True)
            wanted = [s for s in info.siblings or [] if any(fnmatch(s.rfilename, p) for p in patterns)]
            _check_files(folder, wanted, since=started)
    return folder


def _check_files(folder: Path, files: list[Any], since: float) -> None:
    """Sizes of all files, and hashes of what was downloaded since `since`; files that are wrong are removed."""
    faults = []
    for file in files:
        path = folder / file.rfilename
        size = path.stat().st_size if path.is_file() else 0
        if not path.is_file() or (file.size is not None and size != file.size):
            faults.append(f"{file.rfilename}: the download has {size:,} bytes, the Hub says {file.size or 0:,}")
        elif file.lfs is not None and path.stat().st_mtime >= since - 2 and sha256_file(path) != file.lfs.sha256:
            faults.append(f"{file.rfilename}: the download has another SHA-256 than the Hub says")
        else:
            continue
        if path.is_file():
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
        raise NotPermitted(
            f"{repo}: the {kind} is gated; accept its terms on its page and run `hf auth login`"
        ) from None
    except errors.RevisionNotFoundError:
        raise InputMissing(f"{repo}: has no revision {revision}") from None
    except errors.RepositoryNotFoundError:
        raise InputMissing(f"{repo}: no such {kind} on the Hub, nor a local folder of that name") from None
    except errors.LocalEntryNotFoundError:
        raise Unavailable(
            f"{repo}: is not in the local cache and the Hub can't be reached; "
            f"connect, or carry the {kind}'s folder here and give its path"
        ) from None
    except errors.OfflineModeIsEnabled:
        raise Unavailable(f"{repo}: offline mode is on (HF_HUB_OFFLINE) and the {kind} is not in the cache") from None
    except errors.HFValidationError as e:
        raise UsageError(f"{repo}: is not a valid Hub id ({e})") from None
    except errors.HfHubHTTPError as e:
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


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
