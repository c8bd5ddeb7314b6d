"""Whether the files that are published hold what git tracks: ``python .ci/check_files.py SDIST WHEEL``."""

import subprocess
import sys
import tarfile
import zipfile

NOT_IN_THE_SDIST = (".github/", ".gitignore", ".pre-commit-config.yaml")  # of use in a clone alone
PACKAGES = ("fewshot_nam/", "episodes/", "backbones/")

tracked = set(subprocess.run(["git", "ls-files"], capture_output=True, text=True, check=True).stdout.splitlines())
with tarfile.open(sys.argv[1]) as archive:
    packed = {name.partition("/")[2] for name in archive.getnames()}
with zipfile.ZipFile(sys.argv[2]) as archive:
    installed = set(archive.namelist())
lacking = {
    "source distribution": {path for path in tracked - packed if not path.startswith(NOT_IN_THE_SDIST)},
    "wheel": {path for path in tracked - installed if path.startswith(PACKAGES)},
}
for name, missing in lacking.items():
    if missing:
        sys.exit(f"error: the {name} lacks {len(missing)} tracked files: {', '.join(sorted(missing)[:10])}")
print(f"the source distribution holds all {len(tracked & packed)} files, the wheel all of the packages")
