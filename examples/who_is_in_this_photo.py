"""Say who is in a photo: python examples/who_is_in_this_photo.py PHOTO GALLERY."""

import sys

import edgeface

if len(sys.argv) != 3:
    print("usage: python examples/who_is_in_this_photo.py PHOTO GALLERY", file=sys.stderr)
    sys.exit(2)
photo, gallery = sys.argv[1:]
with edgeface.load() as app:
    for answer in app.identify(photo, gallery):
        x0, y0, _, _ = answer.face.box.astype(int)
        print(f"face at {x0}, {y0}: {answer.person if answer else answer.verdict.value}")
