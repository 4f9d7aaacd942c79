"""Where the question sets and judge prompts of others are: a folder of the user's, or fetched from their owners.

Nothing of them is part of this project. What is fetched is checked against its SHA-256 and kept in the cache.
"""

import hashlib
import os
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

from bactrian import progress
from bactrian.data.sources import reader
from bactrian.errors import DataError
from bactrian.files import documents
from bactrian.files.atomic import replacing
from bactrian.files.cache import cache_root
from bactrian.recipe import Source

Rows = list[tuple[str, dict[str, Any]]]  # each with its place

_SECONDS = 60.0
_FASTCHAT = ("lm-sys/FastChat", "0e6d3e4beaab66f4d3f93db72541a4abab8af28d")
_ALPACA = ("tatsu-lab/alpaca_eval", "cd543a149df89434d8a54582c0151c0b945c3d20")


@dataclass(frozen=True)
class File:
    """One published file: what it is, the option that names one's own, and where in which repository it lies.

    `names` are other names under which a folder may hold it.
    """

    what: str
    option: str
    repository: tuple[str, str]
    path: str
    sha256: str
    names: tuple[str, ...] = ()


_JUDGE = "fastchat/llm_judge/data"
_EVALUATORS = "src/alpaca_eval/evaluators_configs"

MT_BENCH_QUESTIONS = File(
    "MT-Bench's questions",
    "--questions",
    _FASTCHAT,
    f"{_JUDGE}/mt_bench/question.jsonl",
    "119565adbab82227089cefdb44c8d7e2cf04dc0a0ec233634c82e7d4e2a944f7",
    ("question.jsonl",),
)
MT_BENCH_REFERENCES = File(
    "MT-Bench's reference answers",
    "--references",
    _FASTCHAT,
    f"{_JUDGE}/mt_bench/reference_answer/gpt-4.jsonl",
    "f957a5bc977badb66885ec970e6cd08527845780313f0995764260e5777b9b3f",
    ("reference_answer/gpt-4.jsonl", "reference_answer_gpt-4.jsonl"),
)
MT_BENCH_PROMPTS = File(
    "MT-Bench's judge prompts",
    "--judge-prompts",
    _FASTCHAT,
    f"{_JUDGE}/judge_prompts.jsonl",
    "fd283293406d024f44c174b094ef48031d0687a4682fd3a56b29b138f80281b6",
    ("judge_prompts.jsonl",),
)
ALPACA_REFERENCES = {
    1: File(
        "AlpacaEval 1's reference outputs",
        "--reference",
        _ALPACA,
        "results/text_davinci_003/model_outputs.json",
        "af0bc112f08c88bf589bbfe6fc1036806d0a0f6fec9c4d5a4db860f5afe73b4b",
        ("text_davinci_003_model_outputs.json",),
    ),
    2: File(
        "AlpacaEval 2's reference outputs",
        "--reference",
        _ALPACA,
        "results/gpt4_1106_preview/model_outputs.json",
        "83db546b872ddebee8965fd05fa48461ee3c32bc695c62fb57f2d214ff741ec4",
        ("gpt4_1106_preview_model_outputs.json",),
    ),
}
ALPACA_PROMPTS = {
    1: File(
        "AlpacaEval 1's judge prompt",
        "--judge-prompts",
        _ALPACA,
        f"{_EVALUATORS}/alpaca_eval_gpt4/alpaca_eval.txt",
        "cf4bace43fa6ac71944b9ca2506587ad7c509478a219e98a3950abf9d5b42a98",
        ("alpaca_eval.txt",),
    ),
    2: File(
        "AlpacaEval 2's judge prompt",
        "--judge-prompts",
        _ALPACA,
        f"{_EVALUATORS}/alpaca_eval_clf_gpt4_turbo/alpaca_eval_clf.txt",
        "784227e6dc2832fc08c43d2c8ea3a308e7523780187a1aaad2f85e30bac85f62",
        ("alpaca_eval_clf.txt",),
    ),
}


def locate(file: File, given: Path | None, folder: Path | None) -> Path:
    """The user's own file, or the one in the user's folder, or the one fetched before or now. Raises `DataError`."""
    if given is not None:
        if not given.is_file():
            raise DataError(f"{given}: there is no such file; give {file.what} with {file.option}")
        return given
    found = beside(folder, (*file.names, file.path))
    return found or _fetched(file)


def beside(folder: Path | None, names: tuple[str, ...]) -> Path | None:
    """The first of these names that is in the folder or in one of its folders, one level down."""
    if folder is None:
        return None
    if not folder.is_dir():
        raise DataError(f"{folder}: there is no such folder; give one that holds the published files with --data")
    within = [folder, *sorted(path for path in folder.iterdir() if path.is_dir())]
    return next((path / name for path in within for name in names if (path / name).is_file()), None)


def _fetched(file: File) -> Path:
    repository, commit = file.repository
    kept = cache_root() / "published" / repository / commit[:12] / file.path
    if kept.exists() and hashlib.sha256(kept.read_bytes()).hexdigest() != file.sha256:
        progress.say(f"{kept}: damaged: fetched again")
        kept.unlink()
    if not kept.exists():
        content = _fetch(f"{_host()}/{repository}/{commit}/{file.path}", file)
        if hashlib.sha256(content).hexdigest() != file.sha256:
            raise DataError(f"{file.what}: what was fetched from {repository} is another file; give one, {file.option}")
        with replacing(kept) as temporary:
            temporary.write_bytes(content)
    return kept


def _host() -> str:
    """Where repositories' files are served; a mirror has the same paths."""
    return os.environ.get("BACTRIAN_GITHUB", "https://raw.githubusercontent.com").rstrip("/")


def _fetch(url: str, file: File) -> bytes:
    try:
        with urllib.request.urlopen(url, timeout=_SECONDS) as response:
            return response.read()
    except (urllib.error.URLError, OSError) as error:
        why = getattr(error, "reason", None) or error
        raise DataError(
            f"{file.what}: cannot be fetched from {file.repository[0]} ({why}); give the file with {file.option}, "
            f"or a folder that holds it with --data"
        ) from None


def rows(path: Path) -> Rows:
    """The rows of a JSON or JSONL file, each with its place. Raises `DataError`."""
    return list(reader.read(Source(path=str(path), format="messages")))


def text(row: dict[str, Any], name: str, where: str) -> str:
    """A column that must be text. Raises `DataError`."""
    value = row.get(name)
    if not is_text(value):
        why = "missing" if value is None else "half of a surrogate pair" if isinstance(value, str) else "not text"
        raise DataError(f"{where}: `{name}` is {why}; it should be text")
    return value


def is_text(value: Any) -> TypeGuard[str]:
    """Whether a value is text that can be sent and written."""
    return isinstance(value, str) and documents.is_text(value)


def of_one(rows: Rows, name_of: Callable[[dict[str, Any]], Any], what: str, wanted: str | None, advice: str) -> Rows:
    """The rows of one model or judge, the `wanted` one where there are several. Raises `DataError`.

    `what` names them in the plural (judges), `advice` says how one of them is chosen. Rows that name none are all kept
    where there is but one.
    """
    names = dict.fromkeys(str(name) for _, row in rows if (name := name_of(row)) is not None)
    if len(names) < 2:
        return rows
    if wanted not in names:
        path = rows[0][0].rpartition(":")[0]
        shown = ", ".join(list(names)[:5]) + (", …" if len(names) > 5 else "")
        raise DataError(f"{path}: {len(names)} {what} in one file ({shown}); {advice}")
    return [(where, row) for where, row in rows if str(name_of(row)) == wanted]


def judge_of(row: dict[str, Any]) -> Any:
    """Who judged a row, in the layouts of MT-Bench ([judge, prompt]) and AlpacaEval."""
    judged = row.get("judge", row.get("annotator"))
    return judged[0] if isinstance(judged, list) and judged else judged


def digest(path: Path) -> str:
    """SHA-256 of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()
