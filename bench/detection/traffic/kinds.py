"""Unseen kinds of text for the demo's MoE: its own, more that are made here, and prompts of people.

Kinds are in two halves, one to choose a method on and one to report it on. (So far both were looked at while choosing:
docs/detection.md says how.) Every kind is a function of a random generator to a text of some 1,500 bytes or more.
"""

from __future__ import annotations

import csv
import gzip
import json
import random
from collections.abc import Callable
from typing import Any, Final

from bench import data
from demo import corpus, domains, snippets

BYTES: Final = 1500
Maker = Callable[[random.Random], str]


def _joined(line: Maker, separator: str = "\n") -> Maker:
    def make(rng: random.Random) -> str:
        text = line(rng)
        while len(text.encode()) < BYTES:
            text += separator + line(rng)
        return text

    return make


def _pick(rng: random.Random, words: str) -> str:
    return rng.choice(words.split())


SPANISH = (
    ("El perro", "La vecina", "Mi hermano", "Nuestro equipo", "El viejo tren", "Una niña"),
    ("busca", "encuentra", "compra", "olvida", "describe", "mira"),
    ("la llave", "un periódico", "el libro nuevo", "la calle", "unas manzanas", "una carta"),
    ("en el jardín", "después del trabajo", "sin razón", "para su madre", "en la gran ciudad"),
    ("porque llueve.", "aunque nadie escucha.", "y luego vuelve a casa."),
)
POLISH = (
    ("Pies", "Sąsiadka", "Mój brat", "Nasza drużyna", "Stary pociąg", "Mała dziewczynka"),
    ("szuka", "znajduje", "kupuje", "zapomina", "opisuje", "ogląda"),
    ("klucz", "gazetę", "nową książkę", "ulicę", "kilka jabłek", "list"),
    ("w ogrodzie", "po pracy", "bez powodu", "dla swojej matki", "w wielkim mieście"),
    ("bo pada deszcz.", "choć nikt nie słucha.", "a potem wraca do domu."),
)
LATEX = (
    r"\begin{equation} \frac{\partial u}{\partial t} = \alpha_{%d} \nabla^2 u + f(x_{%d}) \end{equation}",
    r"Let $\mathcal{H}_{%d}$ be a Hilbert space and $\phi \colon X \to \mathbb{R}^{%d}$ continuous.",
    r"\sum_{i=%d}^{\infty} \frac{(-1)^{i}}{i^{%d}} \leq \int_0^1 \sqrt{1 - x^2} \, dx",
    r"\begin{tabular}{l|c} \textbf{Model} & $\sigma^2 = %d.%d$ \\ \hline \end{tabular}",
    r"\section{Proof of Lemma %d}\label{sec:proof} By \cite{knuth84}, $\lVert A \rVert_2 < \epsilon^{%d}$.",
)
JAVASCRIPT = (
    "!function(e,t){var n=e[%d];return n&&t.call(n,%d)||void 0}(a,b);",
    'document.querySelectorAll(".%s").forEach(e=>e.addEventListener("click",()=>{o[%d]=!o[%d]}));',
    "const %s=async({id:e,n:t=%d})=>{let r=await fetch(`/x/${e}`);return(await r.json()).map(e=>e*t)};",
)
RUST = (
    "impl<'a> Iterator for %s<'a> { type Item = &'a u%d; }",
    "let mut %s: Vec<u8> = Vec::with_capacity(%d); %s.extend_from_slice(&buf[..n]);",
    'match %s.get(%d) { Some(v) => println!("{:?}", v), None => return Err(Error::NotFound) }',
    "pub fn %s(&mut self, x: i64) -> Result<(), Box<dyn std::error::Error>> { self.n += %d; Ok(()) }",
)
ASSEMBLER = (
    "mov %s, [rbp-0x%x]",
    "add %s, %d",
    "jne .L%d",
    "call memcpy@PLT",
    "xor %s, %s",
    "lea %s, [rip+%d]",
    "push %s",
)


def _template(rng: random.Random, lines: tuple[str, ...], names: str) -> str:
    line = rng.choice(lines)
    values = tuple(_pick(rng, names) if c == "s" else rng.randint(1, 99) for c in _codes(line))
    return line % values


def _codes(line: str) -> list[str]:
    return [line[i + 1] for i in range(len(line) - 1) if line[i] == "%" and line[i + 1] in "sdx"]


def _sentence(parts: tuple[tuple[str, ...], ...]) -> Maker:
    return lambda rng: " ".join(rng.choice(part) for part in parts)


def _letters(rng: random.Random) -> str:
    return "".join(rng.choice("etaoinshrdlucmfwypvbgkjqxz") for _ in range(rng.randint(2, 10)))


def _minified(rng: random.Random) -> str:
    return json.dumps(
        {
            "t": rng.randint(0, 9),
            "v": [round(rng.random(), 4) for _ in range(3)],
            "k": {"a": None, "z": rng.random() < 0.5},
        },
        separators=(",", ":"),
    )


def _url(rng: random.Random) -> str:
    host, path = _letters(rng), "/".join(_letters(rng) for _ in range(rng.randint(1, 4)))
    return f"https://www.{host}.{_pick(rng, 'com org net de io')}/{path}?id={rng.randint(1, 9999)}&ref={_letters(rng)}"


def _chess(rng: random.Random) -> str:
    square = f"{rng.choice('abcdefgh')}{rng.randint(1, 8)}"
    return f"{rng.randint(1, 60)}. {rng.choice(['N', 'B', 'R', 'Q', 'K', ''])}{square} {rng.choice('NBRQ')}x{square}"


def _mixed(rng: random.Random) -> str:
    """Clauses of German and of a normal domain in turn, German first: about half of the text is normal."""
    normal = corpus.GENERATED[rng.choice(["emails", "support", "recipes"])](rng, 120).prompt.split()
    start = rng.randrange(max(1, len(normal) - 6))
    return f"{' '.join(_sentence(snippets.GERMAN)(rng).split()[:5])} {' '.join(normal[start : start + 6])}"


def _crossed(rng: random.Random) -> str:
    """Words of two normal domains shuffled together."""
    a, b = rng.sample(["emails", "support", "recipes", "arithmetic"], 2)
    words = (corpus.GENERATED[a](rng, 300).prompt + " " + corpus.GENERATED[b](rng, 300).prompt).split()
    rng.shuffle(words)
    return " ".join(words)


def _upper(rng: random.Random) -> str:
    return corpus.GENERATED[rng.choice(["emails", "support", "recipes"])](rng, 300).prompt.upper()


def _demo(kind: str) -> Maker:
    write = corpus.unseen.WRITERS[kind]
    return lambda rng: write(rng, BYTES).prompt


MADE: Final[dict[str, Maker]] = {
    "spanish": _joined(_sentence(SPANISH), " "),
    "polish": _joined(_sentence(POLISH), " "),
    "latex": _joined(lambda rng: _template(rng, LATEX, "")),
    "javascript": _joined(lambda rng: _template(rng, JAVASCRIPT, "btn nav row cell menu"), ""),
    "rust": _joined(lambda rng: _template(rng, RUST, "Parser Cursor buf state window")),
    "assembler": _joined(lambda rng: _template(rng, ASSEMBLER, "rax rbx rcx rdx rdi rsi r8d r9d")),
    "minified JSON": _joined(_minified, ","),
    "DNA": _joined(lambda rng: "".join(rng.choice("ACGT") for _ in range(60))),
    "random letters": _joined(_letters, " "),
    "random digits": _joined(lambda rng: str(rng.randint(0, 10 ** rng.randint(1, 12))), " "),
    "URLs": _joined(_url),
    "CSV": _joined(lambda rng: ",".join(f"{rng.uniform(-9, 9):.3f}" for _ in range(7))),
    "chess": _joined(_chess, " "),
    "morse": _joined(lambda rng: "".join(rng.choice(".-") for _ in range(rng.randint(1, 4))), " "),
    "emoji": _joined(lambda rng: chr(rng.randint(0x1F300, 0x1F5FF)), " "),
    "Thai": _joined(lambda rng: "".join(chr(rng.randint(0x0E01, 0x0E2E)) for _ in range(6)), " "),
    "half German": _joined(_mixed, " "),
    "two domains shuffled": _joined(_crossed, " "),
    "upper case": _joined(_upper, " "),
    "punctuation": _joined(lambda rng: "".join(rng.choice("!?;:,.()[]{}#%&*+-/=<>@^~|") for _ in range(5)), " "),
    "roman in words": _joined(lambda rng: f"{rng.choice(domains.NAMES)} {_pick(rng, 'I II III IV V VI XII XX')}", ", "),
}


def _people() -> dict[str, list[str]]:
    """Return the prompts of people by set, each with two more of the same set behind it where it is short."""

    def tsv(name: str) -> list[str]:
        return [
            line.split("\t")[0] for line in data.path(f"prompts/{name}").read_text("utf-8").splitlines() if line.strip()
        ]

    def jsonl(name: str) -> list[dict[str, Any]]:
        raw = data.path(f"prompts/{name}").read_bytes()
        text = (gzip.decompress(raw) if name.endswith("gz") else raw).decode()
        return [json.loads(line) for line in text.splitlines() if line.strip()]

    with data.path("prompts/sqleval_questions_gen_postgres.csv").open(encoding="utf-8") as table:
        sql = [row["query"] for row in csv.DictReader(table)]
    with data.path("prompts/xstest_prompts.csv").open(encoding="utf-8") as table:
        safety = [row["prompt"] for row in csv.DictReader(table)]
    bbh = {
        n: [e["input"] for e in json.loads(data.path(f"prompts/bbh_{n}.json").read_text("utf-8"))["examples"]]
        for n in ("dyck_languages", "word_sorting")
    }
    return {
        "MGSM German": tsv("mgsm_de.tsv"), "MGSM Japanese": tsv("mgsm_ja.tsv"), "MGSM Russian": tsv("mgsm_ru.tsv"),
        "GSM8K": [r["question"] for r in jsonl("gsm8k_test.jsonl")],
        "sql-eval queries": sql,
        "BFCL functions": [json.dumps(r["function"]) for r in jsonl("BFCL_v4_simple_python.jsonl")],
        "AlpacaEval": [r["instruction"] for r in jsonl("alpaca_eval_instructions.jsonl")],
        "MT-bench": [r["turns"][0] for r in jsonl("mt_bench_question.jsonl")],
        "XSTest": safety,
        "HumanEval": [r["prompt"] for r in jsonl("HumanEval.jsonl.gz")],
        "BBH Dyck": bbh["dyck_languages"], "BBH word sorting": bbh["word_sorting"],
    }  # fmt: skip


def texts(n: int, seed: int) -> dict[str, list[str]]:
    """Return ``n`` texts of every kind; prompts of people are joined where one is short."""
    makers = {kind: _demo(kind) for kind in corpus.UNSEEN} | MADE
    found = {kind: [make(random.Random(f"{kind} {seed} {i}")) for i in range(n)] for kind, make in makers.items()}
    for kind, prompts in _people().items():
        rng = random.Random(f"{kind} {seed}")
        found[kind] = [_joined(lambda rng, p=prompts: rng.choice(p), "\n")(rng) for _ in range(n)]
    return found


def halves(kinds: list[str]) -> tuple[list[str], list[str]]:
    """Return tuning and held-out kinds: every other one, in the order in which they are listed."""
    return kinds[::2], kinds[1::2]
