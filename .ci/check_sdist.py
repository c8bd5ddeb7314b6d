"""Whether a source distribution holds every file that git tracks: ``python .ci/check_sdist.py FILE``."""

import subprocess
import sys
import tarfile

LEFT_OUT = (".github/", ".gitignore", ".pre-commit-config.yaml")  # of use in a clone alone

tracked = set(subprocess.run(["git", "ls-files"], capture_output=True, text=True, check=True).stdout.splitlines())
with tarfile.open(sys.argv[1]) as archive:
    packed = {name.partition("/")[2] for name in archive.getnames()}
missing = sorted(path for path in tracked - packed if not path.startswith(LEFT_OUT))
if missing:
    sys.exit(f"error: the source distribution lacks {len(missing)} tracked files: {', '.join(missing[:10])}")
print(f"the source distribution holds all {len(tracked & packed)} tracked files")
