"""Credentials of an AWS profile: of the chain that AWS tools follow, the part that obstore does not.

obstore reads the environment, the token of a web identity, and the services of containers and instances.
"""

from __future__ import annotations

import configparser
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict

from retrodb.errors import MissingDependency, RetroDBError

if TYPE_CHECKING:
    from obstore.store import S3CredentialProvider

_KEYS = ("aws_access_key_id", "aws_secret_access_key", "aws_session_token")
_OF_ANOTHER_SOURCE = ("sso_session", "sso_start_url", "role_arn", "credential_process")


class ProfileOptions(TypedDict, total=False):
    """Options of an S3 store that a profile gives."""

    access_key_id: str
    secret_access_key: str
    session_token: str
    region: str
    endpoint: str
    credential_provider: S3CredentialProvider


def profile_options() -> ProfileOptions:
    """What the profile in use says that the environment does not.

    Raises:
        RetroDBError: AWS_PROFILE names a profile that does not exist.
        MissingDependency: the profile needs boto3, as those with single sign-on or a role do.
    """
    name = os.environ.get("AWS_PROFILE") or "default"
    settings = _settings_of(name)
    options = ProfileOptions()
    if "region" in settings and not {"AWS_REGION", "AWS_DEFAULT_REGION"} & os.environ.keys():
        options["region"] = settings["region"]
    if "endpoint_url" in settings and not {"AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3"} & os.environ.keys():
        options["endpoint"] = settings["endpoint_url"]
    if "AWS_ACCESS_KEY_ID" in os.environ:
        return options
    if all(key in settings for key in _KEYS[:2]):
        options["access_key_id"], options["secret_access_key"] = settings[_KEYS[0]], settings[_KEYS[1]]
        if _KEYS[2] in settings:
            options["session_token"] = settings[_KEYS[2]]
    elif any(key in settings for key in _OF_ANOTHER_SOURCE):
        options["credential_provider"] = _boto3_provider(name)
    elif "AWS_PROFILE" in os.environ and not settings:
        raise RetroDBError(f"there is no AWS profile '{name}'", remedy="Check AWS_PROFILE, or run 'aws configure'.")
    return options


def _settings_of(name: str) -> Mapping[str, str]:
    """The settings of a profile in both files; those in the credentials file come first."""
    credentials = _section(os.environ.get("AWS_SHARED_CREDENTIALS_FILE", "~/.aws/credentials"), name)
    section = name if name == "default" else f"profile {name}"
    return {**_section(os.environ.get("AWS_CONFIG_FILE", "~/.aws/config"), section), **credentials}


def _section(file: str, name: str) -> Mapping[str, str]:
    parser = configparser.RawConfigParser()
    try:
        parser.read(Path(file).expanduser(), encoding="utf-8")
    except (configparser.Error, OSError, UnicodeDecodeError):
        remedy = "Correct the file, or set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY."
        raise RetroDBError("this file of AWS profiles cannot be read", where=file, remedy=remedy) from None
    return dict(parser[name]) if name in parser else {}


def _boto3_provider(name: str) -> S3CredentialProvider:
    try:
        import boto3
        from obstore.auth.boto3 import Boto3CredentialProvider
    except ImportError as error:
        raise MissingDependency(
            f"the AWS profile '{name}' needs boto3", remedy="Install it: pip install boto3."
        ) from error
    provider: S3CredentialProvider = Boto3CredentialProvider(boto3.Session(profile_name=name))
    return provider
