"""Which addresses calls may go to, by the registries of special addresses (RFC 6890 and its kin) and clouds' own."""

from __future__ import annotations

import pytest

from serving.reach import Reach, gives_credentials, is_public
from serving.settings import Settings

PUBLIC = ["8.8.8.8", "172.32.0.1", "100.128.0.1", "2606:4700::1111", "::ffff:8.8.8.8", "64:ff9b::808:808"]
PRIVATE = [
    "127.0.0.1",
    "127.9.9.9",
    "0.0.0.0",  # noqa: S104 - an address to refuse
    "10.0.0.5",
    "172.16.0.1",
    "172.31.255.255",
    "192.168.1.1",
    "169.254.169.254",
    "100.64.0.1",
    "100.100.100.200",
    "168.63.129.16",
    "198.18.0.1",
    "192.0.2.1",
    "224.0.0.1",
    "240.0.0.1",
    "255.255.255.255",
    "::1",
    "::",
    "fe80::1",
    "fe80::1%eth0",
    "fc00::1",
    "fd00:ec2::254",
    "ff02::1",
    "::ffff:127.0.0.1",
    "::ffff:169.254.169.254",
    "64:ff9b::a00:5",
    "2002:7f00:1::",
    "2001:0:53aa:64c::1",
    "2001:db8::1",
]


@pytest.mark.parametrize("address", PUBLIC)
def test_the_public_internet_is_public(address):
    assert is_public(address)


@pytest.mark.parametrize("address", PRIVATE)
def test_what_is_inside_is_private_however_it_is_spelled(address):
    assert not is_public(address)


def test_the_configurations_origins_are_the_operators_word_and_no_others():
    """Another port of the same machine may be anything: it is another origin."""
    reach = Reach(["http://10.0.0.5:8000/v1", "https://api.example.com/v1", "http://[::1]:80/a"], private=False)
    for url in ("http://10.0.0.5:8000/other", "https://API.example.com:443/v2", "http://[::1]/b"):
        assert not reach.bounds(url)
        assert not reach.forbids(url)
    for url in (
        "http://10.0.0.5:8001/v1",
        "https://10.0.0.5:8000/v1",
        "http://localhost:8000/v1",
        "http://x.localhost/",
    ):
        assert reach.bounds(url)
        assert reach.forbids(url)
    assert reach.bounds("https://name.example/v1")
    assert not reach.forbids("https://name.example/v1")  # what it stands for is seen when it is called
    assert not Reach([], private=True).bounds("http://10.0.0.5/v1")


@pytest.mark.parametrize("host", ["169.254.169.254", "fe80::a9fe:a9fe", "fd00:ec2::254", "Metadata.Google.Internal."])
def test_check_warns_of_an_endpoint_where_clouds_give_credentials(host):
    assert gives_credentials(host)
    model = {"name": "m", "endpoint": f"http://{f'[{host}]' if ':' in host else host}/v1"}
    settings = Settings.parse({"models": [model], "pools": [{"name": "auto", "models": ["m"]}]})
    (warned,) = [warning for warning in settings.warnings if warning.path == "models[0].endpoint"]
    assert "credentials" in warned.message
    assert host not in str(warned)


@pytest.mark.parametrize("host", ["10.0.0.5", "127.0.0.1", "localhost", "vllm.internal", "8.8.8.8"])
def test_it_does_not_warn_of_ones_own_network(host):
    assert not gives_credentials(host)
