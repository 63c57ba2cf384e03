"""`pointsman keys`: lists, makes, rotates and revokes the keys of a running service, through its `/admin/keys`.

Reads arguments, shows answers, turns refusals into exit codes. A secret goes to standard output alone, once.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Mapping
from typing import Annotated, Any
from urllib.parse import quote

import typer

__all__ = ["keys"]

_TIMEOUT_S = 30.0
_DAY_S = 86_400.0
_MOST_BYTES = 64 * 2**20
_COLUMNS = ("id", "key", "user", "team", "tier", "allow", "state", "made", "last used", "expires")

keys = typer.Typer(name="keys", help="Keys of a running service.", no_args_is_help=True)
UrlOption = Annotated[str, typer.Option(help="Base URL of the running service.")]
KeyEnvOption = Annotated[str, typer.Option(help="Environment variable that holds the admin key.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print the service's answer as JSON.")]
IdArgument = Annotated[str, typer.Argument(help="The key's id, as `keys list` shows it.")]
_ENV = "POINTSMAN_ADMIN_KEY"


@keys.command("list")
def list_keys(url: UrlOption, admin_key_env: KeyEnvOption = _ENV, as_json: JsonOption = False) -> None:  # noqa: FBT002
    """List every key: whose it is, whether it is valid, when it was used last; never a secret."""
    answer = _asked("GET", url, "", admin_key_env)
    if as_json:
        _print_json(answer)
    else:
        _print_table(answer["keys"])


@keys.command("create")
def create(
    url: UrlOption,
    user: Annotated[str, typer.Option(help="Whom the calls are logged under.")],
    team: Annotated[str | None, typer.Option(help="The user's team.")] = None,
    tier: Annotated[str | None, typer.Option(help="The user's tier.")] = None,
    name: Annotated[str | None, typer.Option(help="A name to know the key by.")] = None,
    allow: Annotated[str | None, typer.Option(help="Only these pools and models, separated by commas.")] = None,
    days: Annotated[float | None, typer.Option(help="It expires after so many days.", min=1e-5, max=36_500)] = None,
    admin_key_env: KeyEnvOption = _ENV,
    as_json: JsonOption = False,  # noqa: FBT002
) -> None:
    """Make a key. Its secret is printed once, alone on standard output; the service keeps only a digest."""
    body: dict[str, Any] = {"user": user, "team": team, "tier": tier, "name": name}
    if allow is not None:
        body["allow"] = [entry.strip() for entry in allow.split(",") if entry.strip()]
    if days is not None:
        body["expires_at"] = time.time() + days * _DAY_S
    answer = _asked("POST", url, "", admin_key_env, {name: value for name, value in body.items() if value is not None})
    _print_made(answer, as_json=as_json)


@keys.command("rotate")
def rotate(
    key_id: IdArgument,
    url: UrlOption,
    grace_s: Annotated[float, typer.Option(help="Seconds for which the old secret stays valid.", min=0)] = 3_600.0,
    admin_key_env: KeyEnvOption = _ENV,
    as_json: JsonOption = False,  # noqa: FBT002
) -> None:
    """Give a key a new secret, printed once; the old one is valid for `--grace-s` more seconds."""
    answer = _asked("POST", url, f"/{quote(key_id, safe='')}/rotate", admin_key_env, {"grace_s": grace_s})
    _print_made(answer, as_json=as_json)


@keys.command("revoke")
def revoke(
    key_id: IdArgument,
    url: UrlOption,
    admin_key_env: KeyEnvOption = _ENV,
    as_json: JsonOption = False,  # noqa: FBT002
) -> None:
    """Revoke a key: no call is admitted with it from now on."""
    answer = _asked("DELETE", url, f"/{quote(key_id, safe='')}", admin_key_env)
    if as_json:
        _print_json(answer)
    else:
        typer.echo(f"{answer['id']} of {answer['user']} is {answer['state']}")


def _asked(method: str, url: str, path: str, env: str, body: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The service's answer; ends the command with exit code 2 and a sentence where there is none."""
    from aiohttp import ClientError

    from bandit.errors import InvalidInput
    from evaluation.benchmark_client import service_url

    key = os.environ.get(env)
    if key is not None and (not key.isprintable() or key != key.strip()):
        raise _ended(f"the key in {env} has spaces around it, or a line break in it")
    try:
        base = service_url(url)
        status, answer = asyncio.run(_sent(method, f"{base}/admin/keys{path}", key, body))
    except InvalidInput as error:
        raise _ended(str(error)) from None
    except (ClientError, OSError, ValueError) as error:
        raise _ended(f"nothing usable answers at {url}: {type(error).__name__}") from None
    if status in (200, 201):
        return answer
    error_of = answer.get("error")
    message = error_of.get("message") if isinstance(error_of, dict) else None
    hint = f" (the admin key is read from {env}, which is {'set' if os.environ.get(env) else 'not set'})"
    raise _ended(f"{message or f'status {status}'}{hint if status in (401, 403) else ''}")


async def _sent(method: str, url: str, key: str | None, body: Mapping[str, Any] | None) -> tuple[int, dict[str, Any]]:
    import aiohttp
    import orjson

    headers = {} if key is None else {"Authorization": f"Bearer {key}"}
    timeout = aiohttp.ClientTimeout(total=_TIMEOUT_S)
    data = None if body is None else orjson.dumps(body)
    async with (
        aiohttp.ClientSession(timeout=timeout, headers=headers, cookie_jar=aiohttp.DummyCookieJar()) as session,
        session.request(method, url, data=data, allow_redirects=False) as response,
    ):
        raw = bytearray()
        async for chunk in response.content.iter_any():
            raw += chunk
            if len(raw) > _MOST_BYTES:
                raise ValueError("the answer is too long")
        answer = orjson.loads(bytes(raw))
    if not isinstance(answer, dict):
        raise ValueError("the answer is no object")  # noqa: TRY004 - wrong from outside, as bad JSON is
    return response.status, answer


def _ended(message: str) -> typer.Exit:
    typer.echo(f"pointsman: {message}", err=True)
    return typer.Exit(2)


def _print_made(answer: Mapping[str, Any], *, as_json: bool) -> None:
    if as_json:
        _print_json(answer)
        return
    until = answer.get("old_secret_until")
    grace = "" if until is None else f"; an old secret is valid until {_moment(until)}"
    typer.echo(f"{answer['id']} of {answer['user']}: keep the key, it is not shown again{grace}", err=True)
    typer.echo(answer["secret"])


def _print_json(answer: Mapping[str, Any]) -> None:
    import orjson

    typer.echo(orjson.dumps(answer, option=orjson.OPT_INDENT_2))


def _print_table(entries: list[dict[str, Any]]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD)
    for column in _COLUMNS:
        table.add_column(column, overflow="fold")
    for entry in entries:
        allow = entry.get("allow")
        row = (
            entry["id"],
            entry.get("prefix") or entry.get("source"),
            entry["user"] + (f" ({entry['name']})" if entry.get("name") else ""),
            entry.get("team"),
            entry.get("tier"),
            None if allow is None else ", ".join(allow),
            entry["state"],
            _moment(entry.get("made_at")),
            _moment(entry.get("last_used_at")),
            _moment(entry.get("expires_at")),
        )
        table.add_row(*(Text(cell or "—") for cell in row))  # Text: a name such as [red] is no markup
    Console(highlight=False).print(table)


def _moment(ts: float | None) -> str | None:
    return None if ts is None else time.strftime("%Y-%m-%d %H:%M", time.gmtime(ts))
