"""MMLU (Hendrycks et al. 2021): 57 subjects, four answers each; the likeliest letter after "The answer is:" counts."""

from bactrian.errors import DataError
from bactrian.evaluate.benchmarks import files
from bactrian.evaluate.benchmarks.files import Origin, Rows
from bactrian.evaluate.benchmarks.task import Benchmark, Clip, Graded, asked, shown
from bactrian.evaluate.protocol import Responder

_LETTERS = "ABCD"
_BEGUN = "The answer is:"
_ROWS = tuple(f"mmlu/{name}" for name in ("mmlu_test.jsonl.gz", "mmlu_test.jsonl", "test.jsonl", "test.parquet"))


def read(origin: Origin) -> Rows:
    """Rows of `subject`, `question`, `choices` and `answer` (a number), by subject."""
    if origin.folder is None:
        found = files.hub("cais/mmlu", "all", "test")
    else:
        try:
            found = _of_tables(origin)
        except DataError:
            path = origin.file("MMLU", ("mmlu/test/SUBJECT_test.csv", *_ROWS))
            found = [files.columns(path, row, ("subject", "question", "choices", "answer")) for row in files.rows(path)]
    return sorted(found, key=lambda row: row["subject"])


def _of_tables(origin: Origin) -> Rows:
    """The original layout: a table a subject, of question, four choices and a letter."""
    found: Rows = []
    for path in origin.files("MMLU", "*_test.csv"):
        for number, row in enumerate(files.table(path), 1):
            if len(row) != 6 or row[5] not in _LETTERS:
                raise DataError(f"{path}:{number}: not a question, four choices and a letter; fetch it again")
            subject = path.name.removesuffix("_test.csv")
            answer = _LETTERS.index(row[5])
            found.append({"subject": subject, "question": row[0], "choices": row[1:5], "answer": answer})
    return found


def run(responder: Responder, clip: Clip, rows: Rows) -> list[Graded]:
    prompts = [asked(_question(row), _BEGUN) for row in rows]
    contexts = [prompt for prompt in prompts for _ in _LETTERS]
    scores = responder.score(contexts, [f" {letter}" for _ in prompts for letter in _LETTERS])
    graded = []
    for number, (row, prompt) in enumerate(zip(rows, prompts, strict=True)):
        logprobs = [score.logprob for score in scores[4 * number : 4 * number + 4]]
        taken, wanted = _LETTERS[logprobs.index(max(logprobs))], _LETTERS[row["answer"]]
        said = " ".join(f"{letter} {value:.4f}" for letter, value in zip(_LETTERS, logprobs, strict=True))
        graded.append(Graded(str(number), row["subject"], shown(prompt), said, taken, wanted, float(taken == wanted)))
    return graded


def _question(row: dict) -> str:
    # Two spaces before the subject, as the original has.
    heading = f"The following are multiple choice questions (with answers) about  {row['subject'].replace('_', ' ')}."
    choices = "".join(f"\n{letter}. {choice}" for letter, choice in zip(_LETTERS, row["choices"], strict=True))
    return f"{heading}\n\n{row['question']}{choices}\nAnswer:"


BENCHMARK = Benchmark(
    name="mmlu",
    title="MMLU, 0-shot",
    metric="accuracy over all questions",
    settings={"shots": 0, "answer begins with": _BEGUN, "choice": "likeliest of the letters, each after a space"},
    read=read,
    run=run,
)
