"""Options that several commands share, each declared once, and how lists of words are read."""

from __future__ import annotations

import types
import typing
from collections.abc import Callable, Iterable, Mapping
from dataclasses import fields
from typing import Any, Literal

import click

from svd_hybrid.compress.config import DEFAULT_PROFILE, CompressConfig, known_keys
from svd_hybrid.compress.profiles.params import PROFILE_PARAMS
from svd_hybrid.console import F
from svd_hybrid.methods import METHODS


class WordsCommand(click.Command):
    """A command whose options in `word_lists` take several words: `--tasks cars dtd eurosat`."""

    word_lists = ("--tasks",)

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Repeat the option before each of its words, which is what click understands."""
        return super().parse_args(ctx, list(_repeat_options(ctx, args, self.word_lists)))


def _repeat_options(ctx: click.Context, args: list[str], options: tuple[str, ...]) -> Iterable[str]:
    current = ""
    for position, word in enumerate(args):
        if word == "--":
            yield from args[position:]
            return
        if word.startswith("-"):
            current = word if word in options else ""
            follows = args[position + 1 : position + 2]
            if current and (not follows or follows[0].startswith("-")):
                raise click.UsageError(f"{word} needs at least one word", ctx)
            if current:
                continue
        if current:
            yield current
        yield word


def config_options(command: F) -> F:
    """One option per configuration key, with its type, default and help from the dataclasses."""
    described: list[type[Any]] = [
        CompressConfig,
        METHODS["svd-hybrid"].params,
        PROFILE_PARAMS[DEFAULT_PROFILE],
    ]
    options = [
        _config_option(
            field.name,
            hints[field.name],
            field.default,
            field.metadata["help"] + _other_defaults(field.name, field.default),
        )
        for kind in described
        for hints in [typing.get_type_hints(kind)]
        for field in fields(kind)
        if "help" in field.metadata
    ]
    options += [
        _config_option(name, _common_hint(owners, name), None, _owners_help(owners, name))
        for name, owners in _other_parameters().items()
    ]
    for option in reversed(options):
        command = option(command)
    return command


def _other_defaults(name: str, usual: Any) -> str:
    """The defaults of profiles that give a parameter of the default profile another one."""
    others: dict[Any, list[str]] = {}
    for profile, params in PROFILE_PARAMS.items():
        for field in fields(params):
            if field.name == name and field.default != usual:
                others.setdefault(field.default, []).append(profile)
    return "".join(f"; {value} for {', '.join(names)}" for value, names in others.items())


def _other_parameters() -> dict[str, dict[str, type[Any]]]:
    """Parameters that only other methods and profiles than the default ones have, by owner."""
    known = known_keys("svd-hybrid", DEFAULT_PROFILE)
    described = {method.name: method.params for method in METHODS.values()} | PROFILE_PARAMS
    owners: dict[str, dict[str, type[Any]]] = {}
    for owner, params in described.items():
        for field in fields(params):
            if field.name not in known:
                owners.setdefault(field.name, {})[owner] = params
    return owners


def _common_hint(owners: Mapping[str, type[Any]], name: str) -> Any:
    """The type of a parameter; text where owners differ, which then check it themselves."""
    hints = [typing.get_type_hints(params)[name] for params in owners.values()]
    return hints[0] if all(hint == hints[0] for hint in hints) else str


def _owners_help(owners: Mapping[str, type[Any]], name: str) -> str:
    first = next(iter(owners.values()))
    field = next(field for field in fields(first) if field.name == name)
    listed = [owner for owner in owners if owner not in PROFILE_PARAMS]
    profiles = [owner for owner in owners if owner in PROFILE_PARAMS]
    if profiles:
        listed.append(f"profile{'s' if len(profiles) > 1 else ''} {', '.join(profiles)}")
    return f"{field.metadata['help']}; of {', '.join(listed)}"


def _config_option(name: str, hint: Any, default: Any, help_text: str) -> Callable[[F], F]:
    flag = "--" + name.replace("_", "-")
    shown = f"{help_text[:1].upper()}{help_text[1:]}."
    if hint is bool:
        preset = "" if default is None else f"  [default: {'on' if default else 'off'}]"
        return click.option(f"{flag}/--no-{flag[2:]}", name, default=None, help=shown + preset)
    kind = _option_type(hint)
    text = shown if default in ("", None, ()) else f"{shown}  [default: {default}]"
    return click.option(flag, name, type=kind, default=None, help=text)


class OptionalNumber(click.ParamType):  # type: ignore[type-arg] # generic only since click 8.4
    """A number or `none`, which stays text: so it counts as given, and coerce() reads it."""

    def __init__(self, number: Any) -> None:
        self.name = number.name
        self._number = number

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Refuse what is neither."""
        if isinstance(value, str) and value.lower() == "none":
            return value
        return self._number.convert(value, param, ctx)


def _option_type(hint: Any) -> Any:
    """What click checks; types of their own are parsed with the configuration."""
    parts = typing.get_args(hint)
    if typing.get_origin(hint) is Literal:
        return click.Choice(parts)
    if typing.get_origin(hint) in (types.UnionType, typing.Union):
        if int in parts or float in parts:
            return OptionalNumber(click.INT if int in parts else click.FLOAT)
        return str
    return hint if hint in (int, float, str) else str


def given(values: dict[str, Any]) -> dict[str, Any]:
    """The configuration keys that were really passed on the command line."""
    known = known_keys("svd-hybrid", DEFAULT_PROFILE).keys() | _other_parameters().keys()
    return {key: value for key, value in values.items() if key in known and value is not None}
