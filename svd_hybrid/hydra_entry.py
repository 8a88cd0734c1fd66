"""The original launcher, configured by Hydra: `python -m svd_hybrid.hydra_entry`.

    python -m svd_hybrid.hydra_entry --config-dir . --config-name my_config method.svd_low_bits=3

Hydra only composes the configuration (files, defaults lists, overrides). It makes no `outputs/`
folder, does not change the working directory and handles no error; the run itself is that of
`scripts/run_svd_hybrid.py`. Needs the extra: pip install 'svd-hybrid[hydra]'.
"""

from __future__ import annotations

import re
import sys
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from svd_hybrid.cli.original import original, run
from svd_hybrid.compress.config_file import normalise_keys
from svd_hybrid.console import PATH, common_options, overwrite_option
from svd_hybrid.errors import StorageError, UsageError
from svd_hybrid.faults import run_guarded
from svd_hybrid.methods import METHODS
from svd_hybrid.signals import exit_on_signals

HYDRA_VERSION_BASE = "1.3"
SECTION_OVERRIDE = re.compile(r"[A-Za-z_]\w*\.[\w.]+=")
"""`method.svd_low_bits=3`: unlike Hydra's rule, the key need not stand in the file already."""


@click.command()
@click.option(
    "--config-dir",
    "-cd",
    type=PATH,
    default=Path(),
    metavar="DIR",
    help="Folder of the configuration.  [default: the working directory]",
)
@click.option(
    "--config-name",
    "-cn",
    default="config",
    show_default=True,
    metavar="NAME",
    help="Its file, without .yaml.",
)
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]…")
@overwrite_option
@common_options
def hydra_entry(
    config_dir: Path,
    config_name: str,
    overrides: tuple[str, ...],
    overwrite: bool,
    quiet: bool,
    as_json: bool,
    debug: bool,
) -> None:
    """Merge as a Hydra configuration says; overrides are Hydra's.

    The configuration has tasks, checkpoint_dir, base_model_path, mask_dir, output_dir, artifact_dir
    and a section method with name and the svd_* keys.
    """
    where = str(config_dir / f"{config_name.removesuffix('.yaml')}.yaml")
    if overrides:
        where += " with " + " ".join(overrides)
    record = normalise_keys(compose(config_dir, config_name, overrides, where), where)
    values = {
        str(option.name): () if getattr(option, "multiple", False) else None
        for option in original.params
    }
    run(values, record, where, overwrite=overwrite, quiet=quiet, as_json=as_json)


def compose(
    config_dir: Path, config_name: str, overrides: tuple[str, ...], where: str
) -> Mapping[str, Any]:
    """The configuration that Hydra composes, as plain Python.

    Args:
        config_dir: folder of the configuration.
        config_name: its name.
        overrides: in Hydra's grammar.
        where: what to call it in errors.

    Raises:
        UsageError: Hydra is not installed, or cannot compose it.
        StorageError: there is no such file or folder.
    """
    try:
        import hydra
        from hydra.core.config_store import ConfigStore
        from hydra.errors import HydraException, MissingConfigException
        from omegaconf import OmegaConf, open_dict
        from omegaconf.errors import OmegaConfBaseException
    except ImportError as error:
        raise UsageError(
            f"Hydra is not installed: {error}", fix="pip install 'svd-hybrid[hydra]'"
        ) from error
    import yaml

    if not config_dir.is_dir():
        raise StorageError("configuration folder does not exist", where=str(config_dir))
    if any(text.lstrip("+~").startswith("hydra.") for text in overrides):
        raise UsageError(
            "hydra.* settings mean nothing here: Hydra only composes the configuration",
            fix="leave them out; output_dir says where the results go",
        )
    store = ConfigStore.instance()
    for method in METHODS:  # what `defaults: - method: svd_hybrid` finds without such a file
        store.store(method.replace("-", "_"), {"name": method}, group="method")
    try:
        with warnings.catch_warnings(), _initialized(hydra, config_dir):
            warnings.simplefilter("ignore", UserWarning)  # no _self_ in the original's defaults
            config = hydra.compose(
                config_name,
                [f"++{text}" if SECTION_OVERRIDE.match(text) else text for text in overrides],
                return_hydra_config=True,
            )
            choices = config.hydra.runtime.choices
            with open_dict(config):
                del config["hydra"]
            record = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    except MissingConfigException as error:
        raise _missing(error.missing_cfg_file, config_dir, where) from error
    except (HydraException, OmegaConfBaseException, yaml.YAMLError, ValueError) as error:
        raise _not_composed(error, where) from error
    if not isinstance(record, dict):
        raise UsageError("configuration is not a mapping of keys to values", where=where)
    if "method" in choices and not isinstance(record.get("method"), Mapping):
        raise UsageError(
            "method is both in the defaults list and a key, which hides what the list chose",
            where=where,
            fix="keep one of them",
        )
    return {str(key): value for key, value in record.items()}


def _initialized(hydra: Any, config_dir: Path) -> Any:
    return hydra.initialize_config_dir(
        version_base=HYDRA_VERSION_BASE, config_dir=str(config_dir.absolute())
    )


def _missing(name: str | None, config_dir: Path, where: str) -> UsageError | StorageError:
    if name and name.startswith("method/"):
        return UsageError(
            f"there is no merge method {name.removeprefix('method/')!r} here",
            where=where,
            fix="use one of: " + ", ".join(METHODS),
        )
    return StorageError(
        f"there is no configuration {name!r}",
        where=str(config_dir),
        fix="--config-dir is its folder, --config-name its name without .yaml",
    )


def _not_composed(error: Exception, where: str) -> UsageError:
    text = " ".join(str(error).split())
    fix = ""
    if "duplicate key method" in text:
        fix = "write method once, as a section: its name and the svd_* keys below it"
    return UsageError(f"configuration cannot be composed: {text[:300]}", where=where, fix=fix)


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    args = sys.argv[1:] if argv is None else argv
    name = "python -m svd_hybrid.hydra_entry"
    return run_guarded(lambda: hydra_entry.main(args, prog_name=name, standalone_mode=False), args)


if __name__ == "__main__":
    exit_on_signals()
    sys.exit(main())
