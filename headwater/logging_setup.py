"""Logging of a process: plain lines on a terminal, JSON lines elsewhere.

Takes: settings. Gives: a configured root logger. Owns: the form of a line, and that no secret of the settings is in it.
Never: logs by itself.
"""

from __future__ import annotations

import json
import logging
import sys
from datetime import UTC, datetime

from contracts.errors import SettingsError
from contracts.settings import Settings

_LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR")
_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}
_HIDDEN = "[secret]"
_CLIENTS = ("kafka", "urllib3", "minio")


class _Formatter(logging.Formatter):
    """One record as one line; secrets of the settings are blanked wherever they turn up."""

    def __init__(self, secrets: list[str], as_json: bool) -> None:
        super().__init__()
        self._secrets, self._as_json = secrets, as_json

    def format(self, record: logging.LogRecord) -> str:
        extra = {name: value for name, value in vars(record).items() if name not in _STANDARD}
        stamp = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        trace = self.formatException(record.exc_info) if record.exc_info else None
        if self._as_json:
            body = {"time": stamp, "level": record.levelname, "logger": record.name, "message": record.getMessage(), **extra}
            line = json.dumps(body | ({"trace": trace} if trace else {}), default=str, ensure_ascii=False)
        else:
            values = "".join(f" {name}={value}" for name, value in extra.items())
            line = f"{stamp} {record.levelname:<7} {record.name}: {record.getMessage()}{values}"
        for secret in self._secrets:
            line, trace = line.replace(secret, _HIDDEN), trace and trace.replace(secret, _HIDDEN)
        line = _escaped(line)
        return line if self._as_json or not trace else "\n".join((line, *map(_escaped, trace.splitlines())))


def _escaped(line: str) -> str:
    """`line` with whatever could end it, or speak to the terminal, as JSON's escapes: ids and file names come from strangers."""
    return line if line.isprintable() else "".join(c if c.isprintable() else json.dumps(c)[1:-1] for c in line)


def set_up_logging(settings: Settings, *, as_json: bool | None = None) -> None:
    """Send the process's log records to stderr.

    Parameters
    ----------
    settings : Settings
        ``log_level`` is read; secrets are read so that they can be blanked.
    as_json : bool, optional
        JSON lines; by default wherever stderr is no terminal.

    Raises
    ------
    SettingsError
        ``log_level`` is none of DEBUG, INFO, WARNING and ERROR.
    """
    level = settings.log_level.upper()
    if level not in _LEVELS:
        raise SettingsError("setting log_level is not known", hint=f"set HEADWATER_LOG_LEVEL to one of {', '.join(_LEVELS)}")
    kept = (settings.store_secret_key, settings.kafka_password, *settings.encoder_keys.values())
    secrets = [secret for secret in (one.get_secret_value() for one in kept) if secret]
    handler = logging.StreamHandler()
    handler.setFormatter(_Formatter(secrets, not sys.stderr.isatty() if as_json is None else as_json))
    logging.basicConfig(level=level, handlers=[handler], force=True)
    for client in _CLIENTS:
        logging.getLogger(client).setLevel(max(logging.getLevelName(level), logging.INFO))  # at DEBUG they tell whole records and requests
    # It warns whenever another thread held the interpreter for 100 ms, as loading a model does: nothing that an operator can act on.
    logging.getLogger("kafka.net.selector").setLevel(logging.ERROR)
