"""`weigh show`: what parameters a model has."""

import click

from weighbridge.cli import output


@click.command()
@click.argument("models", metavar="MODEL...", nargs=-1)
@click.option(
    "--arch", metavar="TYPE", help="Instead of a MODEL: a model type with its class's defaults, as in 'llama'."
)
@click.option(
    "--set",
    "settings",
    metavar="FIELD=VALUE",
    multiple=True,
    help="Change a field of the config and count the model that it then describes; text_config.FIELD reaches inside.",
)
@click.option("--layers", is_flag=True, help="Parameters by layer and role.")
@click.option("--tensors", is_flag=True, help="Every tensor with its shape, dtype and meaning.")
@click.option("--match", metavar="GLOB", help="List only the tensors whose name matches, as in 'model.layers.0.*'.")
@click.option("--explain", is_flag=True, help="Each count's formula with the numbers put in.")
@click.option(
    "--compare", is_flag=True, help="config.json against the files: missing, unexpected, wrong shape. Exit 1 if any is."
)
@output.file
@output.base
@output.offline
@output.as_json
def show(
    models: tuple[str, ...],
    arch: str | None,
    settings: tuple[str, ...],
    layers: bool,
    tensors: bool,
    match: str | None,
    explain: bool,
    compare: bool,
    file: str | None,
    base: str | None,
    offline: bool,
    as_json: bool,
) -> int:
    """What parameters a model has: total and active, by role, by dtype; buffers and extras; from headers alone.

    Where there are no weights, config.json alone is counted. Several MODELs are shown side by side.
    """
    from weighbridge import verbs

    if not models and arch is None:
        what = "--set changes fields of a config" if settings else "Missing argument 'MODEL...'"
        raise click.UsageError(f"{what}: name a model, or a type by --arch")
    if file == "" or base == "" or "" in models:
        raise click.UsageError("a name is empty: a shell variable that is not set?")
    glob = match if match is not None else ("*" if tensors else None)
    if len(models) > 1 and (layers or glob is not None or explain or file or base):
        raise click.UsageError("--layers, --tensors, --match, --explain, --file and --base are for one model at a time")
    if compare:
        if len(models) != 1 or arch or settings or layers or glob is not None or explain or file or base:
            raise click.UsageError("--compare is for one MODEL and no other option")
        compared = verbs.compare(models[0], offline=offline)
        output.emit(compared, as_json=as_json)
        return 0 if compared.passed else 1
    with output.progress("headers") as advance:
        report = verbs.show(
            *models,
            arch=arch,
            settings=output.fields_of(settings),
            layers=layers,
            tensors=glob,
            explain=explain,
            file=file,
            base=base,
            offline=offline,
            progress=advance,
        )
    output.emit(report, as_json=as_json)
    return 0
