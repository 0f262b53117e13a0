"""Settings: one flat, frozen list, from `headwater.yaml` and ``HEADWATER_*`` (the environment wins).

Takes: environment, YAML file. Gives: `Settings`. Owns: names, units and defaults (docs/settings.md is tested against it).
Never: holds components; never prints a secret.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import Field, SecretStr, ValidationError
from pydantic_settings import BaseSettings, EnvSettingsSource, PydanticBaseSettingsSource, SettingsConfigDict, YamlConfigSettingsSource
from pydantic_settings import SettingsError as UnreadableSettings

from contracts.errors import SettingsError

MEBIBYTE = 1024 * 1024
_PREFIX = "HEADWATER_"


class _UnknownNames(EnvSettingsSource):
    """Names in the environment that begin with our prefix and are no setting: a typing mistake must not be silence."""

    def __call__(self) -> dict[str, Any]:
        """Name each of them once, without its value, so that validation refuses it."""
        names = (name.lower().removeprefix(_PREFIX.lower()) for name in self.env_vars if name.lower().startswith(_PREFIX.lower()))
        return dict.fromkeys((name for name in names if name not in self.settings_cls.model_fields), "")


class Settings(BaseSettings):
    """All settings of all roles; each is documented by its description, with its unit in its name."""

    model_config = SettingsConfigDict(env_prefix=_PREFIX, yaml_file="headwater.yaml", frozen=True, extra="forbid", hide_input_in_errors=True)

    # ---- where things are -------------------------------------------------------------------------------------
    log_url: str = Field("sqlite:///headwater-data/log.sqlite", description="sqlite:///PATH, kafka://HOST:PORT[,HOST:PORT] or memory://")
    store_url: str = Field("file:///headwater-data/store", description="file:///PATH, s3://HOST:PORT/BUCKET, s3s:// with TLS, or memory://")
    store_access_key: str = Field("", description="access key of the object store")
    store_secret_key: SecretStr = Field(SecretStr(""), description="secret key of the object store")
    store_region: str = Field("us-east-1", description="region that requests to the object store are signed for")
    cache_dir: Path = Field(Path("headwater-data/cache"), description="folder for downloaded segments and converted models")

    # ---- Kafka ------------------------------------------------------------------------------------------------
    kafka_security_protocol: str = Field("PLAINTEXT", description="PLAINTEXT, SSL, SASL_PLAINTEXT or SASL_SSL")
    kafka_sasl_mechanism: str = Field("SCRAM-SHA-512", description="PLAIN, SCRAM-SHA-256 or SCRAM-SHA-512")
    kafka_username: str = Field("", description="SASL user name")
    kafka_password: SecretStr = Field(SecretStr(""), description="SASL password")
    kafka_ca_file: Path | None = Field(None, description="PEM file of the authority that signed the brokers' certificates")
    kafka_cert_file: Path | None = Field(None, description="PEM file of the client certificate, for mutual TLS")
    kafka_key_file: Path | None = Field(None, description="PEM file of the client certificate's key")
    kafka_replication: int = Field(-1, ge=-1, description="replication factor of the topics we create; -1 is the cluster's default")
    kafka_instance_id: str = Field(
        "",
        pattern=r"^([A-Za-z0-9_-][A-Za-z0-9._-]{0,199})?$",
        description="name of this process among those of its role, such as a pod's: after a restart within 15 s it has its partitions at once; "
        "without one they wait for the dead process to time out",
    )
    allow_plaintext: bool = Field(False, description="allow unencrypted connections to addresses that are not loopback")

    # ---- topics -----------------------------------------------------------------------------------------------
    media_retention_seconds: int = Field(7 * 86400, ge=-1, description="retention of the media topics that we create; -1 keeps all")
    dead_letter_retention_seconds: int = Field(30 * 86400, ge=-1, description="retention of the dead-letter topics")
    max_record_bytes: int = Field(32 * MEBIBYTE, gt=0, description="largest record that our topics take")
    claim_check_bytes: int = Field(
        8 * MEBIBYTE, gt=0, description="media above this size, or too large for the topic, is put into the store and the record names it"
    )

    # ---- embed worker -----------------------------------------------------------------------------------------
    embed_batch_items: int = Field(32, ge=1, description="most pictures or texts in one call of the encoder")
    embed_batch_seconds: float = Field(
        0.0, ge=0, le=10, description="longest wait for more pictures or texts until a batch is full; 0 takes what is there, and suits CPUs"
    )
    embed_queue_bytes: int = Field(128 * MEBIBYTE, ge=MEBIBYTE, description="fetched bytes that may wait; beyond, fetching pauses")
    embed_threads: int = Field(0, ge=0, description="threads of the encoder; 0 is all cores for OpenVINO and ONNX Runtime, half of them for torch")
    embed_device: str = Field(
        "auto", pattern=r"^(auto|cpu|cuda(:\d{1,3})?)$", description="auto, cpu, cuda or cuda:N; auto is CUDA where torch finds it"
    )
    embed_runtime: Literal["auto", "torch", "openvino", "onnx"] = Field("auto", description="what runs the encoder; auto is the fastest installed")
    embed_watchdog_seconds: float = Field(5.0, gt=0, description="how often the worker checks that the log holds what it wrote")

    # ---- decoding (embed worker, query service) -----------------------------------------------------------------
    decode_children: int = Field(2, ge=1, description="processes that decode pictures, for each embed role and each query service")
    decode_memory_bytes: int = Field(1536 * MEBIBYTE, ge=128 * MEBIBYTE, description="address space of a decoding process")
    decode_seconds: float = Field(30.0, gt=0, description="longest time that one picture may take to decode")
    max_picture_bytes: int = Field(32 * MEBIBYTE, gt=0, description="largest encoded picture that is decoded")
    max_picture_pixels: int = Field(89_478_485, gt=0, description="most pixels that a picture's header may name")
    max_text_bytes: int = Field(MEBIBYTE, gt=0, description="longest text or caption")

    # ---- encoders ---------------------------------------------------------------------------------------------
    model_dir: Path = Field(
        Path("headwater-data/models"),
        description="folder where a trained map is looked for by its file name, and weights by the path in an encoder's name",
    )
    encoder_keys: dict[str, SecretStr] = Field(
        default_factory=dict,
        description='API keys of remote encoders by origin, as JSON: {"https://HOST[:PORT]": "KEY"}; each goes to its origin only',
    )
    encoder_timeout_seconds: float = Field(30.0, gt=0, description="longest wait for one answer of a remote encoder")
    encoder_batch_items: int = Field(16, ge=1, description="most pictures or texts in one request to a remote encoder")
    encoder_requests: int = Field(4, ge=1, le=64, description="most requests to a remote encoder at one time")
    networks_dir: Path | None = Field(
        None, description="folder of networks that were converted before, such as in a container image; looked into before cache_dir"
    )

    # ---- builder ----------------------------------------------------------------------------------------------
    seal_rows: int = Field(100_000, ge=1, description="a growing segment is sealed at this many rows")
    seal_bytes: int = Field(256 * MEBIBYTE, ge=1, description="a growing segment is sealed at this many bytes")
    seal_seconds: float = Field(60.0, gt=0, description="a growing segment is sealed at this age")

    train_rows: int = Field(
        65_536, ge=300, description="vectors of a field in one partition's segments at which its index is trained, and on how many; flat until then"
    )
    train_threads: int = Field(
        0, ge=0, description="threads of training and of re-encoding, both in the background; 0 is half of the cores, at least one"
    )

    # ---- maintain ---------------------------------------------------------------------------------------------
    maintain_seconds: float = Field(10.0, gt=0, description="how often each partition is looked at for what can be compacted or collected")
    compact_fan_in: int = Field(8, ge=2, le=64, description="neighbouring segments of about one size that are compacted into one")
    compact_bytes: int = Field(
        512 * MEBIBYTE,
        ge=MEBIBYTE,
        description="most bytes of segments that one compaction reads; it holds up to three times as much; a larger segment is rewritten alone",
    )
    compact_dead_share: float = Field(0.2, gt=0, le=1, description="share of deleted or superseded rows at which a segment is rewritten")
    gc_seconds: float = Field(
        3600.0,
        ge=0,
        description="how long a replaced manifest, and objects that only it names, are kept; longer than the longest start of a query node",
    )

    # ---- archiver ---------------------------------------------------------------------------------------------
    archive_bytes: int = Field(64 * MEBIBYTE, ge=1, description="a tar of the archive is closed before it grows beyond this many bytes")
    archive_seconds: float = Field(3600.0, gt=0, description="a tar is closed at this age; until then its records are in the media topic only")
    archive_buffer_bytes: int = Field(256 * MEBIBYTE, ge=1, description="bytes of open tars of all partitions; beyond, the largest is closed")

    # ---- query ------------------------------------------------------------------------------------------------
    query_host: str = Field("127.0.0.1", description="address that the query service listens on")
    query_port: int = Field(8080, ge=0, le=65535, description="port of the query service; 0 picks a free one")
    query_poll_seconds: float = Field(30.0, gt=0, description="how often manifests are polled where no commit notice came")
    query_threads: int = Field(4, ge=1, description="threads that search")
    load_threads: int = Field(8, ge=1, le=256, description="threads that download and open segments")
    cache_bytes: int = Field(0, ge=0, description="most bytes of downloaded segments under cache_dir, exceeded only by what is in use; 0 is no limit")
    cache_seconds: float = Field(
        86400.0, gt=0, description="how long a downloaded segment is kept after its last use where this node no longer serves it"
    )
    memory_bytes: int = Field(
        0, ge=0, description="most memory that indexes may take on this node; what does not fit is not served, and answers say so; 0 is no limit"
    )
    target_recall: float = Field(0.95, gt=0, le=1, description="share of the true neighbours that a query is to find where it does not say more")
    max_limit: int = Field(1000, ge=1, description="most hits that one query may ask for")
    max_body_bytes: int = Field(32 * MEBIBYTE, gt=0, description="largest request body")

    query_deletes: bool = Field(
        False, description="whether callers of the query service may delete points; there are no users, so it is all of them or none"
    )

    # ---- operation --------------------------------------------------------------------------------------------
    metrics_host: str = Field("127.0.0.1", description="address that a worker's metrics listen on")
    metrics_port: int | None = Field(None, ge=0, le=65535, description="port of a worker's /metrics; none where it is not set")
    log_level: str = Field("WARNING", description="DEBUG, INFO, WARNING or ERROR")
    stop_seconds: float = Field(10.0, gt=0, description="how long a graceful stop may take")

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Order: arguments, environment, `headwater.yaml`."""
        return init_settings, env_settings, _UnknownNames(settings_cls), YamlConfigSettingsSource(settings_cls)


def load_settings(**overrides: Any) -> Settings:
    """Read the settings once, at the start of a process.

    Raises
    ------
    SettingsError
        A name is unknown or a value is out of range; the message names the setting, never its value.
    """
    try:
        return Settings(**overrides)
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        name = ".".join(str(part) for part in first["loc"]) or "headwater.yaml"
        if first["type"] == "extra_forbidden":
            raise SettingsError(
                f"setting {name} does not exist",
                hint=f"remove {name} from headwater.yaml or {_PREFIX}{name.upper()} from the environment; docs/settings.md lists every setting",
            ) from None
        raise SettingsError(
            f"setting {name}: {first['msg']}",
            hint=f"set {_PREFIX}{name.upper()} or mend headwater.yaml; docs/settings.md lists every setting",
        ) from None
    except (yaml.YAMLError, UnreadableSettings, AttributeError, TypeError, ValueError, OSError):
        # the parser's own message shows a piece of the file, which may be a secret
        raise SettingsError("headwater.yaml cannot be read", hint="it must be a YAML mapping of setting names to values, in UTF-8") from None
