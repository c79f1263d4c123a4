"""Install jmedlite from the folder in which this file is, without a network, and check all that the folder holds.

python install.py [FOLDER]    FOLDER, of the virtual environment; default: env, beside this file

It stands alone: it runs before jmedlite is there, with Python's own library.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any, NoReturn

HERE = Path(__file__).resolve().parent
SUMS = "SHA256SUMS"
ENVIRONMENT = "env"
BLOCK = 1 << 22


def say(en: str, ja: str) -> None:
    print(f"{ja}\n  {en}", flush=True)


def end(en: str, ja: str) -> NoReturn:
    print(f"{ja}\n  {en}", file=sys.stderr, flush=True)
    sys.exit(1)


def check_system(about: dict[str, Any]) -> None:
    """The wheels fit one kind of system and one Python."""
    here, wanted = (platform.system(), platform.machine()), (about["system"], about["machine"])
    if here != wanted or sys.maxsize < 1 << 32:
        end(
            f"This folder is for {about['title']}; this is {here[0]} on {here[1]}.",
            f"このフォルダは {about['title']} 用です（このパソコン: {here[0]}、{here[1]}）。",
        )
    if not sys.version.startswith(about["python"] + "."):
        end(
            f"This folder is for Python {about['python']}; this is {platform.python_version()}.",
            f"Python {about['python']} が必要です（実行中の Python: {platform.python_version()}）。",
        )
    name, _, oldest = about["oldest_system"].partition(" ")
    found = platform.libc_ver()[1] if name == "glibc" else platform.mac_ver()[0] if name == "macOS" else ""
    if oldest and found and numbers(found) < numbers(oldest):
        end(
            f"{name} {oldest} or newer is needed; this system has {found}.",
            f"{name} {oldest} 以降が必要です（このシステム: {found}）。",
        )


def numbers(version: str) -> list[int]:
    return [int(part) for part in version.split(".") if part.isdigit()]


def sha256(path: Path) -> str:
    found = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(BLOCK):
            found.update(block)
    return found.hexdigest()


def read_sums(folder: Path) -> dict[str, str]:
    """SHA-256 by path, as `sha256sum` writes them."""
    lines = (folder / SUMS).read_text(encoding="utf-8").splitlines()
    return {path: digest for digest, _, path in (line.partition("  ") for line in lines)}


def broken_files(folder: Path) -> list[str]:
    """Files that are missing or not what they were, and wheels that nobody packed: pip would take them."""
    sums = read_sums(folder)
    broken = []
    for name, digest in sums.items():
        path = folder / name
        if not path.is_file() or sha256(path) != digest:
            broken.append(name)
    more = [f"wheels/{p.name}" for p in sorted((folder / "wheels").glob("*"))]
    return broken + [name for name in more if name not in sums]


def run(*command: str | Path, **settings: Any) -> subprocess.CompletedProcess[str]:
    """A command for which no setting of pip or Python that stands in the environment counts."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("PIP_", "PYTHON", "JMEDLITE_"))}
    environment = {**kept, "PIP_CONFIG_FILE": os.devnull, "PYTHONUTF8": "1"}
    return subprocess.run([*map(str, command)], env=environment, check=False, text=True, encoding="utf-8", **settings)


def is_well(*command: str | Path) -> bool:
    """Whether it succeeds; only what it says of a failure is shown."""
    done = run(*command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    if done.returncode:
        print(f"{done.stderr}({done.returncode})", file=sys.stderr, flush=True)
    return not done.returncode


def main() -> None:
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(encoding="utf-8", errors="replace")  # type: ignore[union-attr]
    if len(sys.argv) > 2 or any(a.startswith("-") for a in sys.argv[1:]):
        end("usage: install.py [FOLDER]", "使い方: install.py [フォルダ]")
    about = json.loads((HERE / "stick.json").read_text(encoding="utf-8"))
    check_system(about)
    say("1/4 Checking all files (SHA-256) ...", "1/4 すべてのファイルを確認しています（SHA-256）…")
    if broken := broken_files(HERE):
        shown = ", ".join(broken[:5]) + (" ..." if len(broken) > 5 else "")
        end(
            f"Not as they were packed: {shown}. Copy the folder again.",
            f"作成時と異なるファイルがあります: {shown}。フォルダをコピーし直してください。",
        )
    folder = Path(sys.argv[1]).resolve() if len(sys.argv) > 1 else HERE / ENVIRONMENT
    if folder.exists() and not (folder / "pyvenv.cfg").is_file() and (not folder.is_dir() or any(folder.iterdir())):
        end(
            f"{folder} is there and holds something else; name a new folder.",
            f"{folder} には別のものが入っています。新しいフォルダを指定してください。",
        )
    say(f"2/4 Installing into {folder} ...", f"2/4 {folder} にインストールしています…")
    if run(sys.executable, "-m", "venv", "--clear", folder).returncode:
        end(
            "No virtual environment could be made. Is the folder on a disk that can be written (not on the stick), and "
            f"Python's venv there (Debian, Ubuntu: python{about['python']}-venv)?",
            "仮想環境を作成できませんでした。フォルダを USB メモリからディスクへコピーしたか、"
            f"Python の venv があるか（Debian、Ubuntu: python{about['python']}-venv）を確認してください。",
        )
    bin_, exe = (folder / "Scripts", ".exe") if os.name == "nt" else (folder / "bin", "")
    python, jmedlite = bin_ / f"python{exe}", bin_ / f"jmedlite{exe}"
    installed = run(
        python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-index", "--no-cache-dir",
        "--find-links", HERE / "wheels", f"jmedlite=={about['jmedlite']}",
    )  # fmt: skip
    if installed.returncode:
        end("pip could not install (see above).", "インストールできませんでした（上のメッセージを参照）。")
    say("3/4 Checking the models ...", "3/4 モデルを確認しています…")
    models = [HERE / m["file"] for m in about["models"]]
    for entry, path in zip(about["models"], models, strict=True):
        if entry["manifest"] and not is_well(jmedlite, "inspect", "--check", path):
            end(f"{path.name} failed its check (see above).", f"{path.name} を確認できませんでした（上を参照）。")
    say("4/4 Asking one question ...", "4/4 質問を一つ試しています…")
    least = min(models, key=lambda p: p.stat().st_size)
    if not is_well(jmedlite, "ask", "-m", least, "--max-tokens", "1", "test"):
        end(
            f"{least.name} did not answer (see above). An illegal instruction: the runtime was built for another "
            "processor; too little memory: a smaller model.",
            f"{least.name} から回答がありませんでした（上を参照）。illegal instruction の場合は、別の CPU "
            "向けに作られた実行環境です。メモリ不足の場合は、より小さいモデルを使ってください。",
        )
    quote = subprocess.list2cmdline if os.name == "nt" else __import__("shlex").join
    say("All is installed. Begin with:", "インストールが終わりました。次のコマンドで開始します:")
    for path in models:
        print(f"\n    {quote([str(jmedlite), 'serve', str(path), '--open'])}")
    print()
    say("For research only, not for diagnosis or treatment.", "研究用です。診断や治療の判断には使わないでください。")


if __name__ == "__main__":
    main()
