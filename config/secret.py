"""The secret that signs tokens: given, or made once and kept in the data folder.

Only where everything lives in one process may the secret be made here: several
processes or machines must share one, so it has to be given to them.
"""

from __future__ import annotations

import contextlib
import os
import secrets
from pathlib import Path

from pydantic import SecretStr

from config.settings import SECRET_BYTES_MIN, ConfigError, Settings


def with_token_secret(settings: Settings) -> Settings:
    """The settings with `token_secret` set, made at the first start of an embedded service. Raises ConfigError."""
    if settings.token_secret is not None:
        return settings
    if settings.is_shared:
        where = "with HEXHAIL_REDIS_URL and HEXHAIL_DATABASE_URL all processes share one"
        raise ConfigError([f"HEXHAIL_TOKEN_SECRET is not set: {where}; make it with: openssl rand -hex 32"])
    secret = _kept_secret(settings.data_dir / "token_secret")
    return settings.model_copy(update={"token_secret": SecretStr(secret)})


def _kept_secret(path: Path) -> str:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            _write_new(path, secrets.token_urlsafe(48))
        secret = path.read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not text"
        raise ConfigError([f"data_dir: {path} cannot be used: {reason}"]) from None
    if len(secret) < SECRET_BYTES_MIN:
        raise ConfigError([f"{path} holds no secret of {SECRET_BYTES_MIN} bytes: delete it to have a new one made"])
    return secret


def _write_new(path: Path, secret: str) -> None:
    """Readable by its owner alone, whole or not at all; of two processes that start together one wins."""
    draft = path.with_name(f"{path.name}.{os.getpid()}.{secrets.token_hex(4)}")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "w", encoding="ascii") as file:
            file.write(secret + "\n")
            file.flush()
            os.fsync(file.fileno())
        with contextlib.suppress(FileExistsError):  # the other process's secret stands
            os.link(draft, path)
    finally:
        draft.unlink(missing_ok=True)
