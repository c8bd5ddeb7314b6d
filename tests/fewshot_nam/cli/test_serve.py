"""Numbers among the options of the server and the page."""

import pytest

from fewshot_nam.cli.options import parser


@pytest.mark.parametrize("words", [["serve", "m.st"], ["page"]])
@pytest.mark.parametrize("port", ["0", "65536", "-1", "\uff18\uff10", "80_80", " 8080", "8" * 5000, "http"])
def test_a_port_is_a_number_in_plain_digits(words, port, capsys):
    with pytest.raises(SystemExit) as stopped:
        parser().parse_args([*words, f"--port={port}"])
    assert stopped.value.code == 2
    error = capsys.readouterr().err
    assert "--port: expected a number from 1 to 65535, got " in error
    assert len(error) < 1000


def test_ports_and_limits_within_bounds_are_taken():
    options = parser().parse_args(["serve", "m.st", "--port", "8080", "--workers", "2", "--max-images", "100000"])
    assert (options.port, options.workers, options.max_images, options.max_megabytes) == (8080, 2, 100_000, 64)
    assert parser().parse_args(["page"]).port is None


@pytest.mark.parametrize("name", ["https://teach.example", "teach.example:8000", "a b", "", "teach.example/"])
@pytest.mark.parametrize("command", [["serve", "m.st"], ["page"]])
def test_an_address_is_no_name_of_a_host(command, name, capsys):
    """It was taken, and never matched what a browser asks for."""
    with pytest.raises(SystemExit):
        parser().parse_args([*command, "--allow-host", name])
    assert "is no name of a host: give it without http:// and without a port" in capsys.readouterr().err
    for taken in ("teach.example", "::1", "[fd00::2]", "xn--bcher-kva.example"):
        assert parser().parse_args([*command, "--allow-host", taken]).allow_host == [taken]
    for other, why in (("*.teach.example", "stands for many names"), ("straße.example", "in letters of ASCII")):
        with pytest.raises(SystemExit):
            parser().parse_args([*command, "--allow-host", other])
        assert why in capsys.readouterr().err
