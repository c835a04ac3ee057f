"""``pgembed encoder export``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pgembed.cli.allowed import loads_encoders
from pgembed.cli.app import Json, WrongUsage, database, examples
from pgembed.cli.encoder import encoder, json_object
from pgembed.cli.output import console, errors, print_json, print_table

if TYPE_CHECKING:
    from pgembed.encoders.onnx_export import Exported


@encoder.command(
    "export",
    epilog=examples(
        "pgembed encoder export open_clip:ViT-B-32/laion2b_s34b_b79k models/shop",
        "pgembed encoder export shop models/shop-int8 --int8",
        "pgembed encoder export sentence-transformers:all-MiniLM-L6-v2 models/minilm",
    ),
)
@loads_encoders
def encoder_export(
    source: Annotated[
        str,
        typer.Argument(
            help="A spec, open_clip:MODEL/TAG or sentence-transformers:NAME, or the name of a registered encoder."
        ),
    ],
    folder: Annotated[Path, typer.Argument(help="A new folder.", file_okay=False)],
    settings: Annotated[
        str | None, typer.Option(help='With a spec, its settings: \'{"checkpoint": "model.safetensors"}\'.')
    ] = None,
    int8: Annotated[
        bool, typer.Option("--int8", help="Weights in 8 bits: smaller and faster; the loss is measured.")
    ] = False,
    opset: Annotated[int | None, typer.Option(min=18, help="ONNX's version of operators; default: torch's.")] = None,
    measure: Annotated[
        bool, typer.Option("--measure/--no-measure", help="Compare its speed with torch's: minutes for a large model.")
    ] = True,
    as_json: Json = False,
) -> None:
    """Make an encoder into ONNX files for onnx:FOLDER, which needs no torch and takes less time on a processor.

    The vectors are compared with torch's on sample texts and pictures first; a folder is written only where no number
    of them differs by more than a thousandth.
    """
    from pgembed.encoders.onnx_export import export

    spec, given, space = source, json_object(settings) or {}, None
    if ":" not in source:
        if given:
            raise WrongUsage("--settings go with a spec; a registered encoder has its own.", "Leave them out.")
        with errors.status("loading the registered encoder"), database() as db:
            row = db.encoder(source)
            db.load_encoder(source)  # refuses what the options do not allow, and weights that are not the registered
        spec, given, space = row.spec, row.settings, row.space
    with errors.status("starting") as status:
        found = export(
            spec, given, folder, space=space, int8=int8, opset=opset, measure=measure,
            say=lambda step: status.update(step),
        )  # fmt: skip
    name = folder.absolute().name
    if as_json:
        print_json({"action": "encoder export", **vars(found), "command": found.command(name)})
        return
    console.print(f"{spec} is exported to {folder}.", markup=False, soft_wrap=True)
    print_table(["file", "MB"], [(file, f"{size / 1e6:,.1f}") for file, size in found.sizes.items()], right=["MB"])
    for modality, difference in found.parity.items():
        exact = " before it was quantized" if int8 else ""
        console.print(f"{modality}: no number differs from torch's by more than {difference:.1g}{exact}.", markup=False)
    for modality, (mean, worst) in found.loss.items():
        console.print(f"{modality}: int8 loses {mean:.4f} of the cosine, at worst {worst:.4f}.", markup=False)
    if measure:
        _print_rates(found)
    console.print(f"Register it:\n{found.command(name)}", markup=False, soft_wrap=True)


def _print_rates(found: Exported) -> None:
    columns = ["onnx", "torch", "ratio"]
    rows: list[tuple[object, ...]] = [
        (one.modality, one.batch_size, f"{one.onnx:,.1f}", f"{one.torch:,.1f}", f"{one.onnx / one.torch:.2f}")
        for one in found.rates
    ]
    if any(one.openvino for one in found.rates):
        columns += ["openvino", "to torch"]
        others = [one.openvino or 0 for one in found.rates]
        rows = [
            (*row, f"{other:,.1f}", f"{other / one.torch:.2f}")
            for row, other, one in zip(rows, others, found.rates, strict=True)
        ]
    print_table(
        [f"a second, {found.threads} threads", "batch", *columns], rows, right=["batch", *columns],
    )  # fmt: skip
