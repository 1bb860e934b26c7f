"""Embed every face of a folder of photos: python examples/bulk_to_parquet.py FOLDER OUT.parquet.

Run it again, and it embeds only photos that are new or have changed. Needs the extra `parquet`.
"""

import sys
from pathlib import Path

import edgeface
from edgeface.pipeline.batch import embed_folder

folder, output = sys.argv[1:3]
with edgeface.load() as app:
    result = embed_folder([folder], app.pipeline(faces="all"), Path(output))
print(result)
for path, reason in result.failures.items():
    print(f"{path}: {reason}")
