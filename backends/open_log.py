"""Opens the log that ``log_url`` names.

Takes: `Settings`. Gives: a `Log`. Owns: the URL schemes of logs. Never: imports the Kafka client where no Kafka is asked for.
"""

from __future__ import annotations

from pathlib import Path

from backends.memory_log import MemoryLog
from backends.sqlite_log import SqliteLog
from contracts.errors import SettingsError
from contracts.log import Log
from contracts.settings import Settings

_HINT = "set HEADWATER_LOG_URL to sqlite:///PATH, kafka://HOST:PORT[,HOST:PORT] or memory://NAME"


def open_log(settings: Settings) -> Log:
    """Open the log of ``settings.log_url``.

    ``sqlite:///data/log.sqlite`` is a relative path, ``sqlite:////srv/log.sqlite`` an absolute one. ``memory://NAME`` is
    shared by name within the process, ``memory://`` is private to the caller.

    Raises
    ------
    SettingsError
        The URL names no log that we have, or the security settings do not fit together.
    UnavailableError
        The broker does not answer, or the file is locked.
    CorruptError
        The file is not a log.
    """
    scheme, separator, rest = settings.log_url.partition("://")
    if not separator:
        raise SettingsError("log_url is not a URL", hint=_HINT)
    if scheme == "memory":
        return MemoryLog(rest)
    if scheme == "sqlite":
        if not rest.startswith("/") or rest == "/":
            raise SettingsError("log_url of SQLite needs three slashes and a path", hint=_HINT)
        return SqliteLog(Path(rest[1:]))
    if scheme == "kafka":
        from backends.kafka_log import KafkaLog

        return KafkaLog(settings)
    raise SettingsError(f"log_url has the unknown scheme {scheme[:20]!r}", hint=_HINT)
