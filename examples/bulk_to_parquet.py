"""Embed every face of a folder of photos: python examples/bulk_to_parquet.py FOLDER OUT.parquet.

Run it again, and it embeds only photos that are new or have changed. Needs the extra `parquet`.
"""

import sys
from pathlib import Path

import edgeface
from edgeface.pipeline.batch import embed_folder
from edgeface.pipeline.table import require_format

if len(sys.argv) != 3:
    print("usage: python examples/bulk_to_parquet.py FOLDER OUT.parquet", file=sys.stderr)
    sys.exit(2)
folder, output = sys.argv[1:]
try:
    require_format(Path(output))  # the extra is checked before the model is loaded
    with edgeface.load() as app:
        result = embed_folder([folder], app.pipeline(faces="all"), Path(output))
except edgeface.EdgeFaceError as error:
    print(error, file=sys.stderr)
    sys.exit(error.exit_code)
print(result)
for path, reason in result.failures.items():
    print(f"{path}: {reason}")
