"""Write what an installed package consists of as a software bill of materials (CycloneDX 1.5, JSON): ``python .ci/sbom.py FILE``.

The package and all that it requires without extras, as installed here: names, versions, licences, and what requires what. Nothing
is fetched, and there is no date in it, so that two builds can be compared.
"""

import importlib.metadata
import json
import re
import sys

from packaging.requirements import Requirement

NAME = "fewshot-nam"


def key(name: str) -> str:
    """Return a name as the package index writes it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def collected(name: str) -> dict[str, list[str]]:
    """Return what each installed package requires, from ``name`` on."""
    found: dict[str, list[str]] = {}
    waiting = [key(name)]
    while waiting:
        current = waiting.pop()
        if current in found:
            continue
        required = [Requirement(line) for line in importlib.metadata.requires(current) or []]
        needed = sorted({key(one.name) for one in required if one.marker is None or one.marker.evaluate({"extra": ""})})
        found[current] = needed
        waiting += needed
    return found


def component(name: str) -> dict[str, object]:
    """Return one package as CycloneDX has it."""
    about = importlib.metadata.metadata(name)
    version, licence = about["Version"], about.get("License-Expression") or about.get("License") or ""
    purl = f"pkg:pypi/{name}@{version}"
    made: dict[str, object] = {"type": "library", "bom-ref": purl, "name": name, "version": version, "purl": purl}
    if licence and "\n" not in licence:
        made["licenses"] = [{"license": {"name": licence}}]
    return made


def main() -> None:
    """Write the file."""
    required = collected(NAME)
    refs = {name: str(component(name)["bom-ref"]) for name in required}
    content = {
        "bomFormat": "CycloneDX",
        "specVersion": "1.5",
        "version": 1,
        "metadata": {"component": component(NAME)},
        "components": [component(name) for name in sorted(required) if name != NAME],
        "dependencies": [
            {"ref": refs[name], "dependsOn": [refs[one] for one in needed]} for name, needed in sorted(required.items())
        ],
    }
    with open(sys.argv[1], "w", encoding="utf-8") as file:
        json.dump(content, file, indent=2)
        file.write("\n")
    print(f"{sys.argv[1]}: {NAME} and {len(required) - 1} packages that it requires")


if __name__ == "__main__":
    main()
