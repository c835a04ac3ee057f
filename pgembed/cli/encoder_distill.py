"""``pgembed encoder distill``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pgembed.cli.allowed import loads_encoders
from pgembed.cli.app import EncoderName, Json, WrongUsage, database, examples
from pgembed.cli.encoder import encoder
from pgembed.cli.output import console, print_json, print_table, progress_bar, say_done

if TYPE_CHECKING:
    from pgembed.distilling import Distilled

LIMIT = 20_000


@encoder.command(
    "distill",
    epilog=examples(
        "pgembed encoder distill minilm",
        "pgembed encoder distill minilm --embedding product.embedding --log queries.txt",
        "pgembed encoder distill minilm --drop",
    ),
)
@loads_encoders
def encoder_distill(
    name: EncoderName,
    texts: Annotated[str | None, typer.Option(help="Learn from the texts of TABLE.COLUMN.")] = None,
    embedding: Annotated[
        str | None, typer.Option(help="Learn from the texts that the embedding TABLE.TARGET reads.")
    ] = None,
    log: Annotated[Path | None, typer.Option(help="Learn from queries, a line each.")] = None,
    words: Annotated[Path | None, typer.Option(help="Learn from words, a line each.")] = None,
    limit: Annotated[int, typer.Option(help="At most so many texts are encoded.")] = LIMIT,
    held_out: Annotated[
        float, typer.Option(help="The share of the sources that is kept to measure the agreement.")
    ] = 0.1,
    seed: Annotated[int, typer.Option(help="Of all that is drawn at random.")] = 0,
    drop: Annotated[bool, typer.Option("--drop", help="Take the static side away.")] = False,
    as_json: Json = False,
) -> None:
    """Give a text encoder a static side: vectors of queries inside Postgres, without a worker, nearly its own.

    Token vectors are trained so that their sums meet the encoder's vectors of texts and of pieces cut out of them.
    Without --texts, --embedding, --log and --words it learns from the embeddings of this encoder and from the words of
    its tokenizer. It is used only where it is asked for: pgembed.encode_text(..., prefer => 'static'), or
    pgembed search --prefer static. How near it comes, on texts held out, is told here and by encoder show.
    """
    named = {"--texts": texts, "--embedding": embedding, "--log": log, "--words": words}
    if drop:
        given = [option for option, value in named.items() if value is not None]
        if given:
            raise WrongUsage(f"--drop takes the static side away, and {given[0]} makes one.", "Leave one of them out.")
        with database() as db:
            db.drop_distilled(name)
        say_done(
            f"The distilled static side of encoder '{name}' is gone.",
            as_json=as_json, action="encoder distill --drop", name=name,
        )  # fmt: skip
        return
    queries, listed = _lines(log, "--log"), _lines(words, "--words")
    with database() as db, progress_bar() as bar:
        tasks: dict[str, int] = {}

        def say(step: str, done: int, of: int) -> None:
            if step not in tasks:
                tasks[step] = bar.add_task(step, total=of)
            bar.update(tasks[step], completed=done, total=of)  # pyright: ignore[reportArgumentType]

        found = db.distill_encoder(
            name, texts=texts, embedding=embedding, log=queries, words=listed, limit=limit, held_out=held_out,
            seed=seed, on_progress=say,
        )  # fmt: skip
    if as_json:
        print_json({"action": "encoder distill", **vars(found)})
    else:
        _print(found)


def _print(found: Distilled) -> None:
    agreement = found.agreement
    print_table(
        [f"{agreement.held_out:,} texts held out", "distilled", "untrained"],
        [
            ("mean cosine", f"{agreement.mean_cosine:.3f}", f"{agreement.untrained_mean_cosine:.3f}"),
            ("cosine above 0.9", f"{agreement.above_0_9:.1%}", None),
            ("ten nearest in common", f"{agreement.overlap_at_10:.1%}", None),
        ],
        right=["distilled", "untrained"],
    )
    console.print(
        f"Encoder '{found.encoder}' has a static side: {found.tokens:,} tokens ({found.tokenizer}), trained on"
        f" {found.texts:,} texts. Ask for it: pgembed.encode_text('{found.encoder}', '…', prefer => 'static').",
        markup=False,
        soft_wrap=True,
    )


def _lines(path: Path | None, option: str) -> list[str] | None:
    if path is None:
        return None
    try:
        return [line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise WrongUsage(f"{option} {path} cannot be read: {error}.", "Give a file of lines, in UTF-8.") from None
