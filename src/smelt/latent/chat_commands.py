"""What a line with a slash does in the terminal chat."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from smelt.core.errors import LatentError
from smelt.latent.recipe import OPERATORS, SCOPES, choose
from smelt.latent.recipe_choice import as_layer, with_ratio
from smelt.latent.serving import Blend

if TYPE_CHECKING:
    from smelt.latent.chat import Chat

CONTROL = {code: "\ufffd" for code in [*range(32), *range(127, 160)] if chr(code) not in "\n\t"}
STOP = object()


@dataclass(frozen=True, slots=True)
class Command:
    """What a line with a slash does."""

    usage: str
    help: str
    act: Callable[[Chat, str], Any]


def _number(text: str, what: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise LatentError(f"{text!r} is no number", where=what) from None


def _whole(text: str, what: str, least: int) -> int:
    if not text.isdecimal() or int(text) < least:
        raise LatentError(f"{text!r}", where=what, expected=f"a whole number of at least {least}")
    return int(text)


def _change(chat: Chat, **changes: Any) -> None:
    """New settings of the blend, if they can be run."""
    blend = replace(chat.talk.blend, **changes)
    chat.talk.served.options(chat.talk.served.blend, blend)
    chat.talk.blend = blend
    chat.console.print(chat.talk.describe(), style="dim", highlight=False)


def _beta(chat: Chat, text: str) -> None:
    values = tuple(_number(part, "/beta") for part in text.replace(",", " ").split())
    if not values:
        raise LatentError("no ratio", where="/beta", expected="a number, or one for each donor")
    donors = len(chat.talk.served.wrapper.donors)
    proxy = any(site.op == "proxy" for site in chat.talk.served.settings_for(chat.talk.blend).sites)
    if len(values) == 1 and not proxy:
        values = (values[0] / donors,) * donors
    _change(chat, beta=values if len(values) > 1 else values[0])


def _layer(chat: Chat, text: str) -> None:
    if not text:
        raise LatentError("no layer", where="/layer", expected=f"0 to {chat.talk.served.wrapper.depth}")
    _change(chat, layer=as_layer(text))


def _speaker(kind: str) -> Callable[[Chat, str], None]:
    def act(chat: Chat, text: str) -> None:
        served = chat.talk.served
        name = served.blend.name if kind == "blend" else kind
        if kind == "donor" and text:
            name = f"donor-{text}"
        elif kind == "donor" and name not in served.voices and "donor-1" in served.voices:
            name = "donor-1"
        chat.talk.voice = served.voice(name)
        chat.console.print(f"{name} answers now", style="dim")

    return act


def _last(chat: Chat) -> str:
    """Takes the last turn back, to ask it again."""
    if not chat.talk.turns:
        raise LatentError("nothing was asked yet")
    return chat.talk.turns.pop()[0]


def _compare(chat: Chat, text: str) -> None:
    chat.compare(text or _last(chat))


def _again(chat: Chat, text: str) -> None:
    chat.say(_last(chat))


def _system(chat: Chat, text: str) -> None:
    chat.talk.system = text
    chat.console.print("system prompt set" if text else "no system prompt", style="dim")


def _reset(chat: Chat, text: str) -> None:
    chat.talk.turns.clear()
    chat.console.print("a new conversation", style="dim")


def _history(chat: Chat, text: str) -> None:
    for asked, answered in chat.talk.turns:
        for who, said in (("you", asked), ("model", answered)):
            chat.console.print(f"{who}: {said.translate(CONTROL)}", markup=False, highlight=False)


def _save(chat: Chat, text: str) -> None:
    """The blend as it is now, as a directory that transformers opens."""
    if not text:
        raise LatentError("no directory", where="/save", expected="/save DIR")
    served, blend = chat.talk.served, chat.talk.blend
    settings = served.settings_for(blend)
    sites = settings.sites
    if isinstance(blend.beta, tuple):
        sites = tuple(replace(site, weights=blend.beta) for site in sites)
    elif blend.beta is not None:
        donors = len(served.wrapper.donors)
        sites = tuple(with_ratio(site, blend.beta, donors) for site in sites)
    served.wrapper.set_sites(sites, scope=settings.scope)
    chat.talk.blend = Blend()
    served.wrapper.save_pretrained(Path(text).expanduser())
    chat.console.print(f"saved to {text}", style="dim", highlight=False)


def _decode(name: str, least: float) -> Callable[[Chat, str], None]:
    def act(chat: Chat, text: str) -> None:
        value: Any = _number(text, f"/{name}") if least == 0.0 else _whole(text, f"/{name}", int(least))
        if name == "max":
            chat.talk.max_tokens = value
        else:
            chat.talk.sampling = replace(chat.talk.sampling, **{name: value})
        chat.console.print(f"{name} {value:g}", style="dim", highlight=False)

    return act


def _seed(chat: Chat, text: str) -> None:
    seed = None if text in ("", "none") else _whole(text, "/seed", 0)
    chat.talk.sampling = replace(chat.talk.sampling, seed=seed)
    chat.console.print("every answer is drawn anew" if seed is None else f"seed {seed}", style="dim")


def _plain(chat: Chat, text: str) -> None:
    chat.talk.plain = not chat.talk.plain
    chat.console.print("text is sent as it is" if chat.talk.plain else "lines are chat messages", style="dim")


def _settings(chat: Chat, text: str) -> None:
    talk, how = chat.talk, chat.talk.sampling
    chat.console.print(talk.describe(), highlight=False)
    seed = "" if how.seed is None else f", seed {how.seed}"
    chat.console.print(
        f"{talk.voice.name} answers; temperature {how.temperature:g}, top_p {how.top_p:g}, "
        f"at most {talk.max_tokens} tokens{seed}",
        highlight=False,
    )


def _help(chat: Chat, text: str) -> None:
    width = max(len(command.usage) for command in COMMANDS.values())
    for command in COMMANDS.values():
        chat.console.print(f"  {command.usage:<{width}}  {command.help}", markup=False, highlight=False)
    chat.console.print(
        "  A line that ends with \\ goes on in the next. Ctrl-C stops an answer.", markup=False
    )


COMMANDS = {
    "beta": Command("/beta 0.7", "share of the donor: 0 is the base; several numbers: one per donor", _beta),
    "layer": Command("/layer 20", "where states are blended: a number, 0.75n, or last", _layer),
    "op": Command("/op slerp", "operator: " + ", ".join(OPERATORS),
                  lambda chat, text: _change(chat, op=choose(text, OPERATORS, "operator"))),
    "scope": Command("/scope all", "blend all tokens, or only generated ones",
                     lambda chat, text: _change(chat, scope=choose(text, SCOPES, "scope"))),
    "blend": Command("/blend", "the blend answers", _speaker("blend")),
    "base": Command("/base", "the base answers", _speaker("base")),
    "donor": Command("/donor [N]", "a donor answers", _speaker("donor")),
    "compare": Command("/compare [TEXT]", "all models answer this, or the last line again", _compare),
    "again": Command("/again", "the last line once more, with the settings as they are now", _again),
    "system": Command("/system [TEXT]", "set or drop the system prompt", _system),
    "reset": Command("/reset", "forget the conversation", _reset),
    "history": Command("/history", "what was said", _history),
    "temperature": Command("/temperature 0.7", "0 is greedy", _decode("temperature", 0.0)),
    "top_p": Command("/top_p 0.9", "draw from the likeliest tokens only", _decode("top_p", 0.0)),
    "max": Command("/max 512", "longest answer, in tokens", _decode("max", 1)),
    "seed": Command("/seed [N]", "the same draws every time, or not", _seed),
    "plain": Command("/plain", "send lines as they are, without chat template, or stop doing so", _plain),
    "settings": Command("/settings", "show them", _settings),
    "save": Command("/save DIR", "save the blend as it is now, as a model directory", _save),
    "help": Command("/help", "this list", _help),
    "quit": Command("/quit", "leave (or Ctrl-D)", lambda chat, text: STOP),
}  # fmt: skip
ALIASES = {"exit": "quit", "q": "quit", "ratio": "beta", "?": "help", "clear": "reset", "temp": "temperature"}
