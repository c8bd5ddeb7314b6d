"""Files: a picture read whole or refused by name, a file written whole or not at all. Imports nothing of ours."""
